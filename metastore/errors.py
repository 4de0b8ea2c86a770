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
    """An error that a client's request can get; code and text as etcd has them.

    A class of errors is made with its `code` and its `default` text, or with those of the class above it.
    """

    def __init_subclass__(cls, code: int | None = None, default: str | None = None) -> None:
        super().__init_subclass__()
        if code is not None:
            cls.code = code
        if default is not None:
            cls.default = default


# Keys, values, transactions.


class EmptyKey(ApiError, code=INVALID_ARGUMENT, default="etcdserver: key is not provided"):
    """The request names no key."""


class KeyNotFound(ApiError, code=INVALID_ARGUMENT, default="etcdserver: key not found"):
    """A put that keeps the value or the lease of its key found no such key."""


class ValueProvided(ApiError, code=INVALID_ARGUMENT, default="etcdserver: value is provided"):
    """A put that keeps the value of its key brings a value."""


class LeaseProvided(ApiError, code=INVALID_ARGUMENT, default="etcdserver: lease is provided"):
    """A put that keeps the lease of its key brings a lease."""


class TooManyOps(ApiError, code=INVALID_ARGUMENT, default="etcdserver: too many operations in txn request"):
    """A branch of a transaction has more operations than `limits.max_txn_ops`."""


class DuplicateKey(ApiError, code=INVALID_ARGUMENT, default="etcdserver: duplicate key given in txn request"):
    """A transaction would change the same key twice."""


class InvalidClientAPIVersion(ApiError, code=INVALID_ARGUMENT, default="etcdserver: invalid client api version"):
    """The client speaks a version of the API that is unknown here."""


class InvalidSortOption(ApiError, code=INVALID_ARGUMENT, default="etcdserver: invalid sort option"):
    """A range asks for an order or a target of sorting that does not exist."""


class Compacted(ApiError, code=OUT_OF_RANGE, default="etcdserver: mvcc: required revision has been compacted"):
    """The revision that the request names is compacted."""


class WatchCompacted(Compacted, default="metastore: history that the watch needs is compacted"):
    """A watch cannot go on, for history that it needs is compacted. It can begin again at `compact_revision`."""

    def __init__(self, compact_revision: int = 0) -> None:
        self.compact_revision = compact_revision
        more = f": the oldest revision that can be watched is {compact_revision}" if compact_revision else ""
        super().__init__(self.default + more)

    def __reduce__(self) -> tuple[type[WatchCompacted], tuple[object, ...]]:
        return type(self), (self.compact_revision,)


class FutureRevision(ApiError, code=OUT_OF_RANGE, default="etcdserver: mvcc: required revision is a future revision"):
    """The store has not reached the revision that the request names."""


class NoSpace(ApiError, code=RESOURCE_EXHAUSTED, default="etcdserver: mvcc: database space exceeded"):
    """The store has reached its quota, or the disk has no room."""


class NoDescriptors(
    ApiError,
    code=RESOURCE_EXHAUSTED,
    default="metastore: out of file descriptors: the log's next file cannot be opened",
):
    """The process has no file descriptor left for the log. This error is our own; etcd crashes instead."""


class TooManyKeys(ApiError, code=INVALID_ARGUMENT, default="metastore: the transaction looks at too many keys"):
    """A transaction that writes would look at more keys than `limits.max_txn_walk`. This error is our own; etcd holds
    up all writes for as long as that takes."""


class RequestTooLarge(ApiError, code=INVALID_ARGUMENT, default="etcdserver: request is too large"):
    """The request is larger than `limits.max_request_bytes`."""


class TooManyRequests(ApiError, code=RESOURCE_EXHAUSTED, default="etcdserver: too many requests"):
    """As many requests are in flight as `limits` allow. Nothing was done."""


# Leases and watches.


class LeaseNotFound(ApiError, code=NOT_FOUND, default="etcdserver: requested lease not found"):
    """There is no lease with this id."""


class LeaseLost(LeaseNotFound, default="metastore: the lease is lost"):
    """A lease that a node keeps alive for its program has ended, or may have ended, because nobody renewed it in time.
    `__cause__` says why where that is known."""


class LeaseExist(ApiError, code=FAILED_PRECONDITION, default="etcdserver: lease already exists"):
    """There is a lease with this id already."""


class LeaseTTLTooLarge(ApiError, code=OUT_OF_RANGE, default="etcdserver: too large lease TTL"):
    """The time to live of a lease is too long."""


class WatchCanceled(ApiError, code=CANCELLED, default="etcdserver: watch canceled"):
    """The watch was cancelled. For a watch of the node's own process the text names the limit that ended it."""


# Members.


class MemberExist(ApiError, code=FAILED_PRECONDITION, default="etcdserver: member ID already exist"):
    """There is a member with this id already."""


class PeerURLExist(ApiError, code=FAILED_PRECONDITION, default="etcdserver: Peer URLs already exists"):
    """Another member has this peer URL."""


class MemberNotEnoughStarted(
    ApiError, code=FAILED_PRECONDITION, default="etcdserver: re-configuration failed due to not enough started members"
):
    """A change of the membership would leave too few live members for a quorum."""


class MemberBadURLs(ApiError, code=INVALID_ARGUMENT, default="etcdserver: given member URLs are invalid"):
    """A peer URL cannot be used."""


class MemberNotFound(ApiError, code=NOT_FOUND, default="etcdserver: member not found"):
    """There is no member with this id."""


class MemberNotLearner(ApiError, code=FAILED_PRECONDITION, default="etcdserver: can only promote a learner member"):
    """The member that is to be promoted is no learner."""


class LearnerNotReady(
    ApiError,
    code=FAILED_PRECONDITION,
    default="etcdserver: can only promote a learner member which is in sync with leader",
):
    """The learner that is to be promoted is too far behind the leader."""


class TooManyLearners(ApiError, code=FAILED_PRECONDITION, default="etcdserver: too many learner members in cluster"):
    """The cluster has as many learners as it may have."""


class ClusterIDMismatch(ApiError, code=FAILED_PRECONDITION, default="etcdserver: cluster ID mismatch"):
    """The request is for another cluster."""


class NotSupportedForLearner(ApiError, code=FAILED_PRECONDITION, default="etcdserver: rpc not supported for learner"):
    """A learner does not answer this request. etcd has this code since 3.6; before, it was UNAVAILABLE."""


class BadLeaderTransferee(ApiError, code=FAILED_PRECONDITION, default="etcdserver: bad leader transferee"):
    """The member that is to lead cannot."""


# Users and roles.


class RootUserNotExist(ApiError, code=FAILED_PRECONDITION, default="etcdserver: root user does not exist"):
    """There is no user root."""


class RootRoleNotExist(ApiError, code=FAILED_PRECONDITION, default="etcdserver: root user does not have root role"):
    """The user root lacks the role root."""


class UserAlreadyExist(ApiError, code=FAILED_PRECONDITION, default="etcdserver: user name already exists"):
    """There is a user of this name already."""


class UserEmpty(ApiError, code=INVALID_ARGUMENT, default="etcdserver: user name is empty"):
    """The request names no user."""


class UserNotFound(ApiError, code=FAILED_PRECONDITION, default="etcdserver: user name not found"):
    """There is no user of this name."""


class RoleAlreadyExist(ApiError, code=FAILED_PRECONDITION, default="etcdserver: role name already exists"):
    """There is a role of this name already."""


class RoleNotFound(ApiError, code=FAILED_PRECONDITION, default="etcdserver: role name not found"):
    """There is no role of this name."""


class RoleEmpty(ApiError, code=INVALID_ARGUMENT, default="etcdserver: role name is empty"):
    """The request names no role."""


class AuthFailed(
    ApiError, code=INVALID_ARGUMENT, default="etcdserver: authentication failed, invalid user ID or password"
):
    """The user or the password is wrong."""


class PermissionNotGiven(ApiError, code=INVALID_ARGUMENT, default="etcdserver: permission not given"):
    """The request names no permission."""


class PermissionDenied(ApiError, code=PERMISSION_DENIED, default="etcdserver: permission denied"):
    """The user may not do this."""


class RoleNotGranted(ApiError, code=FAILED_PRECONDITION, default="etcdserver: role is not granted to the user"):
    """The user does not have this role."""


class PermissionNotGranted(
    ApiError, code=FAILED_PRECONDITION, default="etcdserver: permission is not granted to the role"
):
    """The role does not have this permission."""


class AuthNotEnabled(ApiError, code=FAILED_PRECONDITION, default="etcdserver: authentication is not enabled"):
    """Authentication is not switched on."""


class InvalidAuthToken(ApiError, code=UNAUTHENTICATED, default="etcdserver: invalid auth token"):
    """The token is wrong, or its time is over."""


class InvalidAuthMgmt(ApiError, code=INVALID_ARGUMENT, default="etcdserver: invalid auth management"):
    """Users and roles cannot be changed in this way."""


class AuthOldRevision(ApiError, code=INVALID_ARGUMENT, default="etcdserver: revision of auth store is old"):
    """The users and roles have changed since the token was made."""


# Locks and elections. What their requests get wrong has the code UNKNOWN in etcd.


class SessionExpired(ApiError, code=UNKNOWN, default="mutex: session is expired"):
    """The lease of whoever waited for a lock has ended."""


class ElectionNoLeader(ApiError, code=UNKNOWN, default="election: no leader"):
    """Nobody leads."""


class ElectionNotLeader(ApiError, code=UNKNOWN, default="election: not leader"):
    """The caller leads no more, or waits no more to lead."""


class MissingLeaderKey(ApiError, code=UNKNOWN, default='"leader" field must be provided'):
    """The request says by nothing that its caller leads."""


# The group and the node.


class NoLeader(ApiError, code=UNAVAILABLE, default="etcdserver: no leader"):
    """No leader is known. Nothing was done."""


class NotLeader(ApiError, code=FAILED_PRECONDITION, default="etcdserver: not leader"):
    """This member does not lead."""


class LeaderChanged(ApiError, code=UNAVAILABLE, default="etcdserver: leader changed"):
    """The leader was lost before it answered. A write may be done all the same, also later."""


class NotCapable(ApiError, code=FAILED_PRECONDITION, default="etcdserver: not capable"):
    """The members of the cluster cannot all do this yet."""


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


class Unhealthy(ApiError, code=UNAVAILABLE, default="etcdserver: unhealthy cluster"):
    """Too few members of the cluster are live for this."""


class Corrupt(ApiError, code=DATA_LOSS, default="etcdserver: corrupt cluster"):
    """The alarm CORRUPT is raised: the members of the cluster differ."""


class StateBehind(
    ApiError,
    code=UNAVAILABLE,
    default="metastore: the state of this member is behind, for its disk is full: it serves serializable reads only",
):
    """The disk of this member is full, and its state is behind. It answers serializable reads only."""


class InvalidAlarm(ApiError, code=INVALID_ARGUMENT, default="metastore: unknown alarm or action"):
    """The request names an alarm or an action that does not exist. This error is our own; etcd crashes instead."""


class Canceled(ApiError, code=CANCELLED, default="etcdserver: request canceled"):
    """The client gave up its request. A write may be done all the same."""


class DeadlineExceeded(ApiError, code=DEADLINE_EXCEEDED, default="context deadline exceeded"):
    """The time that the client gave its request is over. A write may be done all the same."""


# Downgrades.


class ClusterVersionUnavailable(
    ApiError, code=FAILED_PRECONDITION, default="etcdserver: cluster version not found during downgrade"
):
    """The version of the cluster is not known."""


class WrongDowngradeVersionFormat(
    ApiError, code=INVALID_ARGUMENT, default="etcdserver: wrong downgrade target version format"
):
    """The version to downgrade to cannot be read."""


class InvalidDowngradeTargetVersion(
    ApiError, code=INVALID_ARGUMENT, default="etcdserver: invalid downgrade target version"
):
    """The cluster cannot be downgraded to this version."""


class DowngradeInProcess(
    ApiError, code=FAILED_PRECONDITION, default="etcdserver: cluster has a downgrade job in progress"
):
    """A downgrade is under way already."""


class NoInflightDowngrade(ApiError, code=FAILED_PRECONDITION, default="etcdserver: no inflight downgrade job"):
    """No downgrade is under way."""


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

    exit_code = 13


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
    """The data was compressed by a codec plug-in that is not installed here. `flag` is the codec's flag byte."""

    exit_code = 14

    def __init__(self, text: str | None = None, flag: int = 0) -> None:
        super().__init__(text)
        self.flag = flag


class CodecFailed(FormatError):
    """A codec plug-in broke its contract when it was to unpack something. The text names the codec."""

    exit_code = 15


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


def one_line(error: BaseException) -> str:
    """An exception of a plug-in as one line: its class and its text."""
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001 - even its text is the work of a stranger
        text = "its text cannot be made"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


EXIT_CODES = {
    0: "stopped as asked (SIGTERM, SIGINT)",
    1: "an error that has no code of its own",
    2: "bad configuration or command line",
    3: "the data directory is in use by another process",
    4: "damaged data: the message names file and offset",
    5: "a listen address is in use or cannot be bound",
    6: "the disk failed: what was to be read, written or synced was not",
    7: "cannot run here: no Linux, or compiled modules or Python packages are missing",
    8: "removed from the cluster",
    9: "the data directory was lost: the member must be removed and added again",
    10: "another process runs as this member, on a copy of its data directory",
    11: "the data does not fit into the memory that the process may use",
    12: "the process may have no more threads or file descriptors",
    13: "the storage engine failed: the message names engine, call and exception",
    14: "data needs a codec that is not installed here: the message names entry or file, and the codec's flag",
    15: "a codec failed to unpack what it had compressed: the message names the codec",
}
"""What each exit code of the program means; every class above uses one of these."""
