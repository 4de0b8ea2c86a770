from typing import Final

from metastore._core.raft_log import RaftLog
from metastore._core.raft_types import ConfState, Message, RaftConfig, StateType, Status

TRANSFER: Final[bytes]
DOUBT: Final[bytes]
COMMIT_ONLY: Final[bytes]
PATIENT: Final[bytes]

class NodeState:
    """The state of a Raft node. Ids, terms and indexes are unsigned 64-bit numbers; 0 means none."""

    apply_held: bool
    patient: bool  # set by the caller: nobody here waits for entries, so the commit index may come late
    @property
    def config(self) -> RaftConfig: ...
    @property
    def log(self) -> RaftLog: ...
    @property
    def id(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def doubt(self) -> int: ...  # not 0: acknowledged entries of this term or before may be missing
    @property
    def vote(self) -> int: ...  # member voted for in this term
    @property
    def lead(self) -> int: ...  # the known leader
    @property
    def state(self) -> int: ...  # StateType as an int
    @property
    def conf_state(self) -> ConfState: ...
    @property
    def term_start(self) -> int: ...  # a leader's first entry
    @property
    def lead_transferee(self) -> int: ...  # member that gets leadership
    @property
    def raft_state(self) -> StateType: ...
    @property
    def is_leader(self) -> bool: ...
    @property
    def commit(self) -> int: ...  # commit index
    @property
    def applied(self) -> int: ...  # index up to which applying was reported
    @property
    def last_index(self) -> int: ...  # index of the last entry, whether durable or not
    @property
    def changing(self) -> bool: ...  # leader: a membership change may be unapplied or incomplete
    @property
    def restoring(self) -> bool: ...  # a received snapshot is about to replace the state
    @property
    def persisted(self) -> int: ...  # index up to which the log is durable here
    @property
    def apply_waiting(self) -> bool: ...  # committed entries were requested and are NotYetLoaded
    @property
    def untold(self) -> bool: ...  # leader: a patient member has not been sent the commit index
    @property
    def uncommitted_bytes(self) -> int: ...
    @property
    def election_timeout_ticks(self) -> int: ...  # the current election timeout
    @election_timeout_ticks.setter
    def election_timeout_ticks(self, ticks: int) -> None: ...
    def step(self, m: Message) -> None: ...
    def term_of(self, index: int) -> int | None: ...  # None: the log does not hold the entry
    def status(self) -> Status: ...
