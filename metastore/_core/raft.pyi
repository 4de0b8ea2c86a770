"""The Raft state machine. One thread at a time calls a RawNode; the head of raft.pyx describes the duties."""

from typing import Final

from typing_extensions import Buffer

from metastore._core.raft_election import Election
from metastore._core.raft_types import ConfChange, ConfChangeV2, ConfState, Message, RaftConfig, Ready
from metastore.ports import LogStore

PLANT_VOTE_NOT_PERSISTED: Final[int]
PLANT_ACK_BEFORE_SYNC: Final[int]
PLANT_COMMIT_OLD_TERM: Final[int]
PLANT_READ_WITHOUT_ROUND: Final[int]
PLANT_LEASE_KEPT: Final[int]
PLANT_JOINT_HALF: Final[int]
PLANT_ABA: Final[int]
PLANT_PROMISE_FORGOTTEN: Final[int]
PLANT_READ_OVERTAKES: Final[int]
PLANT_REMOVAL_UNTOLD: Final[int]
READ_ROUNDS: Final[int]

class RawNode(Election):
    def __init__(self, config: RaftConfig, storage: LogStore) -> None: ...  # raises DamagedData
    def propose(self, payload: Buffer) -> int:
        """The index. Raises NoLeader, NotLeader, ProposalDropped, RequestTooLarge."""
    def propose_conf_change(self, change: ConfChange | ConfChangeV2) -> int:
        """The index. Raises ConfChangeError, and as propose."""
    def has_ready(self) -> bool: ...
    def ready(self) -> Ready: ...
    def on_persisted(self, number: int) -> None: ...  # number of a Ready; raises ValueError
    def awaits_disk(self) -> bool: ...  # whether anything can go on when all that was handed out is durable
    def on_applied(self, index: int) -> None: ...  # raises ValueError
    def advance(self, ready: Ready) -> None: ...  # reports the Ready as persisted and applied
    def entries_loaded(self) -> None: ...  # the storage can answer after NotYetLoaded
    def tick(self, now: float = 0.0) -> None: ...  # now: monotonic seconds
    def step(self, m: Message) -> None: ...  # raises FormatError, RaftInvariantBroken
    def apply_conf_change(self, change: ConfChange | ConfChangeV2) -> ConfState: ...  # raises ConfChangeError
    def enter_conf(self, conf: ConfState) -> ConfState: ...  # takes effect at once
