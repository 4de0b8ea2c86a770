"""The one exception tree of MetaStore, and the one table error -> gRPC code and text -> HTTP status -> exit code.

Texts and codes of the API errors are those of etcd's client contract (`rpctypes`): clients match on them.
"""

from __future__ import annotations

from typing import ClassVar

# gRPC status codes (grpc/statuscodes.md).
OK = 0
CANCELLED = 1
UNKNOWN = 2
INVALID_ARGUMENT = 3
DEADLINE_EXCEEDED = 4
NOT_FOUND = 5
ALREADY_EXISTS = 6
PERMISSION_DENIED = 7
RESOURCE_EXHAUSTED = 8
FAILED_PRECONDITION = 9
ABORTED = 10
OUT_OF_RANGE = 11
UNIMPLEMENTED = 12
INTERNAL = 13
UNAVAILABLE = 14
DATA_LOSS = 15
UNAUTHENTICATED = 16

HTTP_STATUS = {
    OK: 200,
    CANCELLED: 408,
    UNKNOWN: 500,
    INVALID_ARGUMENT: 400,
    DEADLINE_EXCEEDED: 504,
    NOT_FOUND: 404,
    ALREADY_EXISTS: 409,
    PERMISSION_DENIED: 403,
    RESOURCE_EXHAUSTED: 429,
    FAILED_PRECONDITION: 412,
    ABORTED: 409,
    OUT_OF_RANGE: 400,
    UNIMPLEMENTED: 501,
    INTERNAL: 500,
    UNAVAILABLE: 503,
    DATA_LOSS: 500,
    UNAUTHENTICATED: 401,
}


class MetaStoreError(Exception):
    """Base of all errors. `code` is the gRPC code, `text` what the client reads."""

    code: ClassVar[int] = UNKNOWN
    exit_code: ClassVar[int] = 1
    default: ClassVar[str] = "metastore: unknown error"

    def __init__(self, text: str | None = None) -> None:
        self.text = self.default if text is None else text
        super().__init__(self.text)

    @property
    def http_status(self) -> int:
        """The HTTP status that stands for `code`."""
        return HTTP_STATUS[self.code]


class ApiError(MetaStoreError):
    """An error that a client's request can get; code and text as etcd has them."""


def _api(name: str, code: int, text: str) -> type[ApiError]:
    return type(name, (ApiError,), {"code": code, "default": text, "__doc__": text, "__module__": __name__})


EmptyKey = _api("EmptyKey", INVALID_ARGUMENT, "etcdserver: key is not provided")
KeyNotFound = _api("KeyNotFound", INVALID_ARGUMENT, "etcdserver: key not found")
ValueProvided = _api("ValueProvided", INVALID_ARGUMENT, "etcdserver: value is provided")
LeaseProvided = _api("LeaseProvided", INVALID_ARGUMENT, "etcdserver: lease is provided")
TooManyOps = _api("TooManyOps", INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
DuplicateKey = _api("DuplicateKey", INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
InvalidSortOption = _api("InvalidSortOption", INVALID_ARGUMENT, "etcdserver: invalid sort option")
Compacted = _api("Compacted", OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FutureRevision = _api("FutureRevision", OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
NoSpace = _api("NoSpace", RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
LeaseNotFound = _api("LeaseNotFound", NOT_FOUND, "etcdserver: requested lease not found")
RequestTooLarge = _api("RequestTooLarge", INVALID_ARGUMENT, "etcdserver: request is too large")
TooManyRequests = _api("TooManyRequests", RESOURCE_EXHAUSTED, "etcdserver: too many requests")
NoLeader = _api("NoLeader", UNAVAILABLE, "etcdserver: no leader")
NotLeader = _api("NotLeader", FAILED_PRECONDITION, "etcdserver: not leader")
LeaderChanged = _api("LeaderChanged", UNAVAILABLE, "etcdserver: leader changed")
Stopped = _api("Stopped", UNAVAILABLE, "etcdserver: server stopped")
Timeout = _api("Timeout", UNAVAILABLE, "etcdserver: request timed out")
Unhealthy = _api("Unhealthy", UNAVAILABLE, "etcdserver: unhealthy cluster")
Corrupt = _api("Corrupt", DATA_LOSS, "etcdserver: corrupt cluster")
MemberNotFound = _api("MemberNotFound", NOT_FOUND, "etcdserver: member not found")


class MalformedRequest(ApiError):
    """A request whose bytes are not what its message type says; the text names the message."""

    code = INTERNAL
    default = "grpc: error unmarshalling request"


class Unimplemented(ApiError):
    """A method or a field this server does not have."""

    code = UNIMPLEMENTED
    default = "unknown method"


class ConfigError(MetaStoreError):
    """A configuration that cannot be used; the text names file, key and reason."""

    exit_code = 2


class DataDirInUse(MetaStoreError):
    """Another process holds the lock of the data directory."""

    exit_code = 3


class DamagedData(MetaStoreError):
    """Bytes that were proven synced are wrong; the text names file and offset."""

    code = DATA_LOSS
    exit_code = 4


class AddressInUse(MetaStoreError):
    """A listen address cannot be bound."""

    exit_code = 5


class DiskFailed(MetaStoreError):
    """A write or a sync failed: the node stops, for the page cache can no longer be believed."""

    code = DATA_LOSS
    exit_code = 6


class FormatError(MetaStoreError):
    """Bytes that do not follow their format; raised by decoders, mapped by their callers."""

    code = DATA_LOSS
