from metastore._core.raft_types import Snapshot
from metastore.ports import LogStore

class RaftLog:
    """The log of one node: a tail in memory over a storage. Fields are indexes unless stated; sizes are bytes."""

    @property
    def settled_bytes(self) -> int: ...  # bytes of images in the tail that are persisted and committed
    def __init__(self, storage: LogStore, max_tail_bytes: int, read_ahead_bytes: int) -> None: ...
    @property
    def storage(self) -> LogStore: ...
    @property
    def tail_first(self) -> int: ...  # first entry in memory
    @property
    def last_index(self) -> int: ...
    @property
    def pending_snapshot(self) -> Snapshot | None: ...  # received and not persisted yet
    @property
    def committed(self) -> int: ...
    @property
    def applying(self) -> int: ...  # handed out for applying up to here
    @property
    def applied(self) -> int: ...  # reported as applied up to here
    @property
    def persisted(self) -> int: ...  # durable up to here, and will stay
    @property
    def emitted(self) -> int: ...  # handed out for persisting up to here
