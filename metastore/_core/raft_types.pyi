from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Final

from typing_extensions import Buffer

from metastore._core.entry import Entry, HardState
from metastore.errors import ApiError, MetaStoreError

FORMAT_VERSION: Final[int]
MAX_MEMBERS: Final[int]

class MessageType(IntEnum):
    MsgHup = 0
    MsgBeat = 1
    MsgProp = 2
    MsgApp = 3
    MsgAppResp = 4
    MsgVote = 5
    MsgVoteResp = 6
    MsgSnap = 7
    MsgHeartbeat = 8
    MsgHeartbeatResp = 9
    MsgUnreachable = 10
    MsgSnapStatus = 11
    MsgCheckQuorum = 12
    MsgTransferLeader = 13
    MsgTimeoutNow = 14
    MsgReadIndex = 15
    MsgReadIndexResp = 16
    MsgPreVote = 17
    MsgPreVoteResp = 18

MsgHup: Final = MessageType.MsgHup
MsgBeat: Final = MessageType.MsgBeat
MsgProp: Final = MessageType.MsgProp
MsgApp: Final = MessageType.MsgApp
MsgAppResp: Final = MessageType.MsgAppResp
MsgVote: Final = MessageType.MsgVote
MsgVoteResp: Final = MessageType.MsgVoteResp
MsgSnap: Final = MessageType.MsgSnap
MsgHeartbeat: Final = MessageType.MsgHeartbeat
MsgHeartbeatResp: Final = MessageType.MsgHeartbeatResp
MsgUnreachable: Final = MessageType.MsgUnreachable
MsgSnapStatus: Final = MessageType.MsgSnapStatus
MsgCheckQuorum: Final = MessageType.MsgCheckQuorum
MsgTransferLeader: Final = MessageType.MsgTransferLeader
MsgTimeoutNow: Final = MessageType.MsgTimeoutNow
MsgReadIndex: Final = MessageType.MsgReadIndex
MsgReadIndexResp: Final = MessageType.MsgReadIndexResp
MsgPreVote: Final = MessageType.MsgPreVote
MsgPreVoteResp: Final = MessageType.MsgPreVoteResp

class EntryType(IntEnum):
    EntryNormal = 0
    EntryConfChange = 1
    EntryConfChangeV2 = 2

EntryNormal: Final = EntryType.EntryNormal
EntryConfChange: Final = EntryType.EntryConfChange
EntryConfChangeV2: Final = EntryType.EntryConfChangeV2

class StateType(IntEnum):
    StateFollower = 0
    StateCandidate = 1
    StateLeader = 2
    StatePreCandidate = 3

class ProgressState(IntEnum):
    StateProbe = 0
    StateReplicate = 1
    StateSnapshot = 2

class ConfChangeType(IntEnum):
    ConfChangeAddNode = 0
    ConfChangeRemoveNode = 1
    ConfChangeUpdateNode = 2
    ConfChangeAddLearnerNode = 3

class ConfChangeTransition(IntEnum):
    Auto = 0
    JointImplicit = 1
    JointExplicit = 2

class NotYetLoaded(MetaStoreError): ...
class LogCompacted(MetaStoreError): ...
class LogUnavailable(MetaStoreError): ...
class SnapshotNotReady(MetaStoreError): ...
class ProposalDropped(ApiError): ...
class ConfChangeError(MetaStoreError): ...
class RaftInvariantBroken(MetaStoreError): ...

class ConfState:
    @property
    def voters(self) -> tuple[int, ...]: ...
    @property
    def learners(self) -> tuple[int, ...]: ...
    @property
    def voters_outgoing(self) -> tuple[int, ...]: ...
    @property
    def learners_next(self) -> tuple[int, ...]: ...
    @property
    def auto_leave(self) -> bool: ...
    def __init__(
        self,
        voters: Iterable[int] = (),
        learners: Iterable[int] = (),
        voters_outgoing: Iterable[int] = (),
        learners_next: Iterable[int] = (),
        auto_leave: bool = False,
    ) -> None: ...
    def encode(self) -> bytes: ...
    @staticmethod
    def decode(data: Buffer) -> ConfState: ...

class Snapshot:
    @property
    def index(self) -> int: ...
    @property
    def term(self) -> int: ...
    @property
    def conf_state(self) -> ConfState: ...
    @property
    def data(self) -> Any: ...
    def __init__(self, index: int = 0, term: int = 0, conf_state: ConfState | None = None, data: Any = b"") -> None: ...

class ConfChange:
    @property
    def type(self) -> int: ...
    @property
    def node_id(self) -> int: ...
    @property
    def context(self) -> bytes: ...
    def __init__(self, type: int = 0, node_id: int = 0, context: bytes = b"") -> None: ...
    def as_v2(self) -> ConfChangeV2: ...
    def encode(self) -> bytes: ...

class ConfChangeV2:
    @property
    def transition(self) -> int: ...
    @property
    def changes(self) -> tuple[ConfChange, ...]: ...
    @property
    def context(self) -> bytes: ...
    @property
    def leaves_joint(self) -> bool: ...
    @property
    def enters_joint(self) -> bool: ...
    @property
    def auto_leave(self) -> bool: ...
    def __init__(self, transition: int = 0, changes: Iterable[ConfChange] = (), context: bytes = b"") -> None: ...
    def as_v2(self) -> ConfChangeV2: ...
    def encode(self) -> bytes: ...

def decode_conf_change(entry_type: int, data: Buffer) -> ConfChange | ConfChangeV2: ...

class Message:
    type: int
    to: int
    from_: int
    term: int
    log_term: int
    index: int
    commit: int
    vote: int
    reject_hint: int
    reject: bool
    snapshot: Snapshot | None
    context: bytes
    @property
    def images(self) -> Buffer: ...
    @property
    def entries(self) -> list[Entry]: ...
    def __init__(
        self,
        type: int = 0,
        to: int = 0,
        from_: int = 0,
        term: int = 0,
        log_term: int = 0,
        index: int = 0,
        entries: Iterable[Entry] | None = None,
        commit: int = 0,
        vote: int = 0,
        snapshot: Snapshot | None = None,
        reject: bool = False,
        reject_hint: int = 0,
        context: bytes = b"",
        images: Buffer | None = None,
    ) -> None: ...
    def encode_parts(self) -> tuple[bytes, Buffer]: ...
    def encode(self) -> bytes: ...
    @staticmethod
    def decode(data: Buffer) -> Message: ...

class SoftState:
    @property
    def lead(self) -> int: ...
    @property
    def raft_state(self) -> int: ...
    def __init__(self, lead: int = 0, raft_state: int = 0) -> None: ...

class ReadState:
    @property
    def index(self) -> int: ...
    @property
    def request_ctx(self) -> bytes: ...
    def __init__(self, index: int = 0, request_ctx: bytes = b"") -> None: ...

class Ready:
    @property
    def number(self) -> int: ...
    @property
    def soft_state(self) -> SoftState | None: ...
    @property
    def hard_state(self) -> HardState | None: ...
    @property
    def snapshot(self) -> Snapshot | None: ...
    @property
    def messages(self) -> list[Message]: ...
    @property
    def read_states(self) -> list[ReadState]: ...
    @property
    def dropped_reads(self) -> list[bytes]: ...
    @property
    def must_sync(self) -> bool: ...
    @property
    def entry_images(self) -> Buffer: ...
    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def entries(self) -> list[Entry]: ...
    @property
    def committed_images(self) -> Buffer: ...
    @property
    def committed_first(self) -> int: ...
    @property
    def committed_last(self) -> int: ...
    @property
    def committed_entries(self) -> list[Entry]: ...

class RaftConfig:
    @property
    def id(self) -> int: ...
    @property
    def election_ticks(self) -> int: ...
    @property
    def heartbeat_ticks(self) -> int: ...
    @property
    def applied(self) -> int: ...
    @property
    def doubt(self) -> int: ...
    @property
    def accept_loss(self) -> bool: ...
    @property
    def planted(self) -> int: ...
    def __init__(
        self,
        id: int,
        *,
        election_ticks: int = 10,
        heartbeat_ticks: int = 1,
        applied: int = 0,
        max_size_per_msg: int = ...,
        max_inflight: int = 256,
        max_inflight_bytes: int = ...,
        max_uncommitted_bytes: int = ...,
        pre_vote: bool = True,
        check_quorum: bool = True,
        read_only_option: str = "safe",
        lease_seconds: float = 0.0,
        max_committed_size_per_ready: int = ...,
        max_tail_bytes: int = ...,
        read_ahead_bytes: int = ...,
        max_pending_reads: int = 65536,
        seed: int = 0,
        random: Callable[[int], int] | None = None,
        doubt: int = 0,
        accept_loss: bool = False,
        planted: int = 0,
    ) -> None: ...

class Progress:
    state: ProgressState
    match: int
    next: int
    is_learner: bool
    is_paused: bool
    pending_snapshot: int
    recent_active: bool
    inflight: int
    heard: bool

class Status:
    id: int
    term: int
    vote: int
    commit: int
    applied: int
    lead: int
    raft_state: StateType
    config: ConfState
    progress: dict[int, Progress]
    last_index: int
    persisted: int
    lead_transferee: int
