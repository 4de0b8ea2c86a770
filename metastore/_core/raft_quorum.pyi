"""Quorums and membership changes. Voters are node ids; `acked` maps id to index, `votes` maps id to granted."""

from collections.abc import Container, Iterable, Mapping
from enum import IntEnum
from typing import Final

from metastore._core.raft_types import ConfChange, ConfChangeV2, ConfState

MAX_INDEX: Final[int]

class VoteResult(IntEnum):
    """The result of an election so far."""

    VotePending = 1
    VoteLost = 2
    VoteWon = 3

def committed(voters: Iterable[int], acked: Mapping[int, int]) -> int: ...  # MAX_INDEX without voters
def joint_committed(incoming: Iterable[int], outgoing: Iterable[int], acked: Mapping[int, int]) -> int: ...
def vote(voters: Iterable[int], votes: Mapping[int, bool]) -> VoteResult: ...
def joint_vote(incoming: Iterable[int], outgoing: Iterable[int], votes: Mapping[int, bool]) -> VoteResult: ...
def doubting_vote(
    incoming: Iterable[int], outgoing: Iterable[int], votes: Mapping[int, bool], doubtful: Container[int]
) -> VoteResult: ...
def simple(state: ConfState, changes: Iterable[ConfChange]) -> ConfState: ...  # raises ConfChangeError
def enter_joint(state: ConfState, auto_leave: bool, changes: Iterable[ConfChange]) -> ConfState:
    """Raises ConfChangeError."""

def leave_joint(state: ConfState) -> ConfState: ...  # raises ConfChangeError
def apply_change(state: ConfState, change: ConfChange | ConfChangeV2) -> ConfState: ...  # raises ConfChangeError

class Inflights:
    """Appends that were sent and not answered yet."""

    def __init__(self, capacity: int, max_bytes: int) -> None: ...
    @property
    def capacity(self) -> int: ...  # appends
    @property
    def count(self) -> int: ...  # appends
    @property
    def bytes(self) -> int: ...
    @property
    def max_bytes(self) -> int: ...
    @property
    def is_full(self) -> bool: ...
    def add(self, index: int, size: int = 0) -> None: ...  # index of the append's last entry, bytes
    def free_le(self, index: int) -> None: ...  # all appends up to index were answered

class Peer:
    """What a leader knows about a peer."""

    def __init__(self, id: int, next: int, max_inflight: int, max_bytes: int, is_learner: bool) -> None: ...
    @property
    def id(self) -> int: ...
    @property
    def match(self) -> int: ...  # highest index known to be durable there
    @property
    def next(self) -> int: ...  # next index to send
