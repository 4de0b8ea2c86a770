"""The accounts of batches that are proposed or forwarded and not yet applied: they count for the back pressure."""

from metastore._core.batch import BatchProposer
from metastore._core.kv_server import KVServer

class Accounts:
    """Batches that a proposer counts as in flight, the oldest first."""

    def __init__(self, proposer: BatchProposer) -> None: ...
    @property
    def count(self) -> int: ...
    def add(self, limit: int) -> None: ...  # the batch that the proposer has handed out last; the limits rise
    def release(self, limit: int) -> None: ...  # those with this limit or a lower one

class PendingBatches:
    """The part of `replica.pending.Pending` that every put passes."""

    def __init__(self, kv: KVServer, proposer: BatchProposer) -> None: ...
    @property
    def _kv(self) -> KVServer: ...
    @property
    def _proposer(self) -> BatchProposer: ...
    @property
    def _proposed(self) -> Accounts: ...  # our own proposals; the limit is the index of the entry
    @property
    def _forwarded(self) -> Accounts: ...  # sent to a leader; all their request ids are below the limit
    def receive_forward(self, sender: int, batch: bytes, now: float, leads: bool) -> None:
        """Takes the operations that `sender` wants proposed. `leads`: whether this member is the leader. Raises
        FormatError if the operations cannot be read."""

    def proposed(self, index: int) -> None: ...  # the batch that was taken last is entry `index` of our log
    def passed(self, applied: int) -> None: ...  # entry `applied` has been applied
    def _settle_forwarded(self) -> None: ...
