"""The one exception tree of MetaStore, and the table that maps each error to its gRPC code, text, HTTP status and exit
code.

The texts and codes of the API errors are those of etcd's client contract (`rpctypes` of etcd 3.6), because clients
match on them. The class names are etcd's without the prefix.
"""

from __future__ import annotations

from collections.abc import Callable
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
    #: Whether the log has it already.
    told = False
    #: Whether what it answers was surely not done, though another error of its class may leave that open.
    not_done = False

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


# Keys, values, transactions.
EmptyKey = _api("EmptyKey", INVALID_ARGUMENT, "etcdserver: key is not provided")
KeyNotFound = _api("KeyNotFound", INVALID_ARGUMENT, "etcdserver: key not found")
ValueProvided = _api("ValueProvided", INVALID_ARGUMENT, "etcdserver: value is provided")
LeaseProvided = _api("LeaseProvided", INVALID_ARGUMENT, "etcdserver: lease is provided")
TooManyOps = _api("TooManyOps", INVALID_ARGUMENT, "etcdserver: too many operations in txn request")
DuplicateKey = _api("DuplicateKey", INVALID_ARGUMENT, "etcdserver: duplicate key given in txn request")
InvalidClientAPIVersion = _api("InvalidClientAPIVersion", INVALID_ARGUMENT, "etcdserver: invalid client api version")
InvalidSortOption = _api("InvalidSortOption", INVALID_ARGUMENT, "etcdserver: invalid sort option")
Compacted = _api("Compacted", OUT_OF_RANGE, "etcdserver: mvcc: required revision has been compacted")
FutureRevision = _api("FutureRevision", OUT_OF_RANGE, "etcdserver: mvcc: required revision is a future revision")
NoSpace = _api("NoSpace", RESOURCE_EXHAUSTED, "etcdserver: mvcc: database space exceeded")
# This error is our own; etcd crashes instead.
NoDescriptors = _api(
    "NoDescriptors", RESOURCE_EXHAUSTED, "metastore: out of file descriptors: the log's next file cannot be opened"
)
# Of our own: etcd holds up all writes for as long as it takes.
TooManyKeys = _api("TooManyKeys", INVALID_ARGUMENT, "metastore: the transaction looks at too many keys")
RequestTooLarge = _api("RequestTooLarge", INVALID_ARGUMENT, "etcdserver: request is too large")
TooManyRequests = _api("TooManyRequests", RESOURCE_EXHAUSTED, "etcdserver: too many requests")

# Leases and watches.
LeaseNotFound = _api("LeaseNotFound", NOT_FOUND, "etcdserver: requested lease not found")
LeaseExist = _api("LeaseExist", FAILED_PRECONDITION, "etcdserver: lease already exists")
LeaseTTLTooLarge = _api("LeaseTTLTooLarge", OUT_OF_RANGE, "etcdserver: too large lease TTL")
WatchCanceled = _api("WatchCanceled", CANCELLED, "etcdserver: watch canceled")

# Members.
MemberExist = _api("MemberExist", FAILED_PRECONDITION, "etcdserver: member ID already exist")
PeerURLExist = _api("PeerURLExist", FAILED_PRECONDITION, "etcdserver: Peer URLs already exists")
MemberNotEnoughStarted = _api(
    "MemberNotEnoughStarted",
    FAILED_PRECONDITION,
    "etcdserver: re-configuration failed due to not enough started members",
)
MemberBadURLs = _api("MemberBadURLs", INVALID_ARGUMENT, "etcdserver: given member URLs are invalid")
MemberNotFound = _api("MemberNotFound", NOT_FOUND, "etcdserver: member not found")
MemberNotLearner = _api("MemberNotLearner", FAILED_PRECONDITION, "etcdserver: can only promote a learner member")
LearnerNotReady = _api(
    "LearnerNotReady",
    FAILED_PRECONDITION,
    "etcdserver: can only promote a learner member which is in sync with leader",
)
TooManyLearners = _api("TooManyLearners", FAILED_PRECONDITION, "etcdserver: too many learner members in cluster")
ClusterIDMismatch = _api("ClusterIDMismatch", FAILED_PRECONDITION, "etcdserver: cluster ID mismatch")
NotSupportedForLearner = _api("NotSupportedForLearner", UNAVAILABLE, "etcdserver: rpc not supported for learner")
BadLeaderTransferee = _api("BadLeaderTransferee", FAILED_PRECONDITION, "etcdserver: bad leader transferee")

# Users and roles.
RootUserNotExist = _api("RootUserNotExist", FAILED_PRECONDITION, "etcdserver: root user does not exist")
RootRoleNotExist = _api("RootRoleNotExist", FAILED_PRECONDITION, "etcdserver: root user does not have root role")
UserAlreadyExist = _api("UserAlreadyExist", FAILED_PRECONDITION, "etcdserver: user name already exists")
UserEmpty = _api("UserEmpty", INVALID_ARGUMENT, "etcdserver: user name is empty")
UserNotFound = _api("UserNotFound", FAILED_PRECONDITION, "etcdserver: user name not found")
RoleAlreadyExist = _api("RoleAlreadyExist", FAILED_PRECONDITION, "etcdserver: role name already exists")
RoleNotFound = _api("RoleNotFound", FAILED_PRECONDITION, "etcdserver: role name not found")
RoleEmpty = _api("RoleEmpty", INVALID_ARGUMENT, "etcdserver: role name is empty")
AuthFailed = _api("AuthFailed", INVALID_ARGUMENT, "etcdserver: authentication failed, invalid user ID or password")
PermissionNotGiven = _api("PermissionNotGiven", INVALID_ARGUMENT, "etcdserver: permission not given")
PermissionDenied = _api("PermissionDenied", PERMISSION_DENIED, "etcdserver: permission denied")
RoleNotGranted = _api("RoleNotGranted", FAILED_PRECONDITION, "etcdserver: role is not granted to the user")
PermissionNotGranted = _api(
    "PermissionNotGranted", FAILED_PRECONDITION, "etcdserver: permission is not granted to the role"
)
AuthNotEnabled = _api("AuthNotEnabled", FAILED_PRECONDITION, "etcdserver: authentication is not enabled")
InvalidAuthToken = _api("InvalidAuthToken", UNAUTHENTICATED, "etcdserver: invalid auth token")
InvalidAuthMgmt = _api("InvalidAuthMgmt", INVALID_ARGUMENT, "etcdserver: invalid auth management")
AuthOldRevision = _api("AuthOldRevision", INVALID_ARGUMENT, "etcdserver: revision of auth store is old")

# The group and the node.
NoLeader = _api("NoLeader", UNAVAILABLE, "etcdserver: no leader")
NotLeader = _api("NotLeader", FAILED_PRECONDITION, "etcdserver: not leader")
LeaderChanged = _api("LeaderChanged", UNAVAILABLE, "etcdserver: leader changed")
NotCapable = _api("NotCapable", FAILED_PRECONDITION, "etcdserver: not capable")


class Stopped(ApiError):
    """The node does not run, or it stopped before it answered."""

    code = UNAVAILABLE
    default = "etcdserver: server stopped"


class Timeout(ApiError, TimeoutError):
    """No answer came in time. This is a `TimeoutError` of Python too. A write may still be done, also later."""

    code = UNAVAILABLE
    default = "etcdserver: request timed out"


class TimeoutDueToLeaderFail(Timeout):
    """No answer came in time, perhaps because the leader was lost."""

    default = "etcdserver: request timed out, possibly due to previous leader failure"


class TimeoutDueToConnectionLost(Timeout):
    """No answer came in time, perhaps because a connection was lost."""

    default = "etcdserver: request timed out, possibly due to connection lost"


class TimeoutWaitAppliedIndex(Timeout):
    """The member did not apply in time what a read has to see."""

    default = "etcdserver: request timed out, waiting for the applied index took too long"


class NotStarted(Stopped):
    """The node of a call in its own process was not started, or does not serve yet."""

    default = "metastore: this node has not been started, or does not serve yet"


Unhealthy = _api("Unhealthy", UNAVAILABLE, "etcdserver: unhealthy cluster")
Corrupt = _api("Corrupt", DATA_LOSS, "etcdserver: corrupt cluster")
StateBehind = _api(
    "StateBehind",
    UNAVAILABLE,
    "metastore: the state of this member is behind, for its disk is full: it serves serializable reads only",
)
# These errors are our own; etcd crashes instead.
InvalidAlarm = _api("InvalidAlarm", INVALID_ARGUMENT, "metastore: unknown alarm or action")
Canceled = _api("Canceled", CANCELLED, "etcdserver: request canceled")
DeadlineExceeded = _api("DeadlineExceeded", DEADLINE_EXCEEDED, "context deadline exceeded")

# Downgrades.
ClusterVersionUnavailable = _api(
    "ClusterVersionUnavailable",
    FAILED_PRECONDITION,
    "etcdserver: cluster version not found during downgrade",
)
WrongDowngradeVersionFormat = _api(
    "WrongDowngradeVersionFormat", INVALID_ARGUMENT, "etcdserver: wrong downgrade target version format"
)
InvalidDowngradeTargetVersion = _api(
    "InvalidDowngradeTargetVersion", INVALID_ARGUMENT, "etcdserver: invalid downgrade target version"
)
DowngradeInProcess = _api(
    "DowngradeInProcess", FAILED_PRECONDITION, "etcdserver: cluster has a downgrade job in progress"
)
NoInflightDowngrade = _api("NoInflightDowngrade", FAILED_PRECONDITION, "etcdserver: no inflight downgrade job")


class Forked(ApiError):
    """The node, or the library that it needs, belongs to the process that this one was forked from. The text names
    that process.
    """

    code = FAILED_PRECONDITION
    default = "metastore: this Node belongs to another process, which this one was forked from"


class ReplyTooLarge(ApiError):
    """A reply needs more memory than a request may hold. For a write, only the reply is refused; the write
    itself was done.
    """

    code = RESOURCE_EXHAUSTED
    default = "etcdserver: the reply takes too much memory; a write that asked for it was done"


class MalformedRequest(ApiError):
    """The bytes of a request do not match its message type; the text names the message."""

    code = INTERNAL
    default = "grpc: error unmarshalling request"


class Unimplemented(ApiError):
    """The request uses a method or a field that this server does not have."""

    code = UNIMPLEMENTED
    default = "unknown method"


class PutManyFailed(ApiError):
    """`put_many` ended early. `reason` is the exception that ended it, and this one has its gRPC code and text.

    Positions count from 0 in the order of the pairs. The three tuples of ranges ascend and cover all up to `taken`:

    * `written`: these pairs are surely stored. Their revisions lie from `first_revision` to `last_revision`, which are
      0 where no pair is stored;
    * `not_written`: these pairs are surely not stored;
    * `open`: nobody knows. These pairs are stored, or will be, or never will;
    * `taken`: so many pairs were taken out of the iterable. The pair at this position and all behind it are surely not
      stored.
    """

    default = "metastore: put_many ended early"

    def __init__(
        self, reason: Exception, written: tuple[range, ...] = (), not_written: tuple[range, ...] = (),
        open: tuple[range, ...] = (), taken: int = 0, first_revision: int = 0, last_revision: int = 0,
    ) -> None:  # fmt: skip
        self.reason = reason
        self.written = written
        self.not_written = not_written
        self.open = open
        self.taken = taken
        self.first_revision = first_revision
        self.last_revision = last_revision
        counts = [sum(map(len, spans)) for spans in (written, not_written, open)]
        super().__init__(
            f"{str(reason) or type(reason).__name__} (put_many took {taken} pairs: {counts[0]} are written, "
            f"{counts[1]} are not, {counts[2]} are open)"
        )
        if isinstance(reason, MetaStoreError):
            self.code = reason.code  # type: ignore[misc]  # of this one object

    def __reduce__(self) -> tuple[type[PutManyFailed], tuple[object, ...]]:
        return type(self), (
            self.reason, self.written, self.not_written, self.open, self.taken, self.first_revision, self.last_revision,
        )  # fmt: skip


class PutManyTimeout(PutManyFailed, Timeout):
    """`put_many` ended early because no answer came in time."""

    default = "metastore: put_many ended early, for no answer came in time"


class WrongPair(PutManyFailed, TypeError, ValueError):
    """`put_many` ended early at a pair that is none, or whose key or value cannot be stored; the text names its
    position."""

    default = "metastore: put_many ended early at a wrong pair"


class ConfigError(MetaStoreError, ValueError):
    """A configuration that cannot be used; the text names file, key and reason."""

    exit_code = 2


class DataDirInUse(MetaStoreError):
    """Another process holds the lock of the data directory."""

    exit_code = 3


class DamagedData(MetaStoreError):
    """Bytes that were proven synced are wrong now; the text names file and offset."""

    code = DATA_LOSS
    exit_code = 4


class AddressInUse(MetaStoreError):
    """A listen address cannot be bound."""

    exit_code = 5


class DiskFailed(MetaStoreError):
    """A write or a sync failed. The node stops, because it can no longer trust the page cache."""

    code = DATA_LOSS
    exit_code = 6


class EngineFailed(DiskFailed):
    """A call of the storage engine failed for a reason that lies in no request. The text names engine, call and
    exception.

    The node stops, because a member that went on would differ from the others.
    """


class EngineDamaged(DamagedData):
    """The storage engine found its own data damaged."""


class EngineBusy(MetaStoreError):
    """A storage engine accepts no writes at the moment. The caller tries the write again a little later."""


class EngineFull(EngineBusy):
    """The engine accepts no writes because the disk has no room, so this may last long. The engine can
    still be read.
    """


class UnsupportedPlatform(MetaStoreError):
    """The program cannot run here: the system is not Linux, or the compiled modules were not built."""

    exit_code = 7


class RemovedFromCluster(MetaStoreError):
    """The cluster has removed this member, and it stopped by itself. Its data directory is of no use to the cluster."""

    code = FAILED_PRECONDITION
    exit_code = 8


class MustJoinAnew(MetaStoreError):
    """The others know this member with another data directory; the promises that it made there are lost
    with that directory.
    """

    code = FAILED_PRECONDITION
    exit_code = 9


class AnotherProcess(MetaStoreError):
    """Another process runs as this member, on a copy of the same data directory."""

    code = FAILED_PRECONDITION
    exit_code = 10


class OutOfMemory(MetaStoreError):
    """The data does not fit into the memory that the process may use. The text gives the limit and says what to do."""

    code = RESOURCE_EXHAUSTED
    exit_code = 11


class OutOfResources(MetaStoreError):
    """The process may have no more threads or file descriptors. The text says which, and what sets the limit."""

    code = RESOURCE_EXHAUSTED
    exit_code = 12


class FormatError(MetaStoreError):
    """Bytes do not follow their format. Decoders raise this error, and their callers map it to others."""

    code = DATA_LOSS


class CodecMissing(FormatError):
    """The data was compressed by a codec plug-in that is not installed here."""

    exit_code = 2


def caused(kind: type[ApiError], cause: BaseException | None) -> Callable[[], ApiError]:
    """Makes errors of a class, a new one for each who gets it, and each with this cause."""

    def made() -> ApiError:
        error = kind()
        error.__cause__ = cause
        return error

    return made


def reason(error: BaseException) -> str:
    """What went wrong, for people: an OSError as file and reason, and never an empty text."""
    if isinstance(error, MemoryError):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
    return str(error) or type(error).__name__


EXIT_CODES = {
    0: "stopped as asked (SIGTERM, SIGINT)",
    1: "an error that has no code of its own",
    2: "bad configuration or command line",
    3: "the data directory is in use by another process",
    4: "damaged data: the message names file and offset",
    5: "a listen address is in use or cannot be bound",
    6: "the disk or the storage engine failed: what was to be read, written or synced was not",
    7: "cannot run here: no Linux, or compiled modules or Python packages are missing",
    8: "removed from the cluster",
    9: "the data directory was lost: the member must be removed and added again",
    10: "another process runs as this member, on a copy of its data directory",
    11: "the data does not fit into the memory that the process may use",
    12: "the process may have no more threads or file descriptors",
}
"""What each exit code of the program means; every class above uses one of these."""
