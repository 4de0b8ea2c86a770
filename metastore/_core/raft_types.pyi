"""Types of the Raft core. All ids, indexes and terms are unsigned 64-bit numbers; 0 means none unless stated."""

from collections.abc import Callable, Iterable
from enum import IntEnum
from typing import Any, Final

from typing_extensions import Buffer

from metastore._core.entry import Entry, HardState
from metastore.errors import ApiError, MetaStoreError

FORMAT_VERSION: Final[int]
MAX_MEMBERS: Final[int]

class MessageType(IntEnum):
    """Type of a message, with the numbers of raftpb."""

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
    """Role of a node."""

    StateFollower = 0
    StateCandidate = 1
    StateLeader = 2
    StatePreCandidate = 3

class ProgressState(IntEnum):
    """How a leader replicates to a peer: one append at a time, a pipeline of appends, or a snapshot."""

    StateProbe = 0
    StateReplicate = 1
    StateSnapshot = 2

class ConfChangeType(IntEnum):
    ConfChangeAddNode = 0
    ConfChangeRemoveNode = 1
    ConfChangeUpdateNode = 2
    ConfChangeAddLearnerNode = 3

class ConfChangeTransition(IntEnum):
    """Auto: use a joint configuration only if needed. JointExplicit: leave it only when asked."""

    Auto = 0
    JointImplicit = 1
    JointExplicit = 2

class NotYetLoaded(MetaStoreError):
    """The storage reads in the background. `RawNode.entries_loaded` reports that it can answer now."""

class LogCompacted(MetaStoreError):
    """The requested part of the log was compacted. The peer needs a snapshot."""

class LogUnavailable(MetaStoreError):
    """The requested part of the log does not exist."""

class SnapshotNotReady(MetaStoreError):
    """The storage has no snapshot now. The leader asks again after the next heartbeat."""

class ProposalDropped(ApiError):
    """The proposal did not enter the log: too many uncommitted bytes, or leadership is being transferred."""

class ConfChangeError(MetaStoreError):
    """The membership change is not allowed; the text gives the reason. Nothing was changed."""

class RaftInvariantBroken(MetaStoreError):
    """An event happened that Raft excludes. The node must stop."""

class ConfState:
    """Membership as ascending tuples of node ids, at most MAX_MEMBERS in each."""

    @property
    def voters(self) -> tuple[int, ...]: ...
    @property
    def learners(self) -> tuple[int, ...]: ...
    @property
    def voters_outgoing(self) -> tuple[int, ...]: ...  # not empty while a joint change is under way
    @property
    def learners_next(self) -> tuple[int, ...]: ...  # voters of the outgoing half that become learners when it is left
    @property
    def auto_leave(self) -> bool: ...  # the joint configuration is left automatically
    def __init__(
        self,
        voters: Iterable[int] = (),
        learners: Iterable[int] = (),
        voters_outgoing: Iterable[int] = (),
        learners_next: Iterable[int] = (),
        auto_leave: bool = False,
    ) -> None: ...
    def encode(self) -> bytes: ...  # FORMATS.md, "Membership"
    @staticmethod
    def decode(data: Buffer) -> ConfState: ...  # raises FormatError

class Snapshot:
    """Position and membership of a snapshot."""

    @property
    def index(self) -> int: ...  # of the last entry in it
    @property
    def term(self) -> int: ...  # of that entry
    @property
    def conf_state(self) -> ConfState: ...
    @property
    def data(self) -> Any: ...  # belongs to the caller; the core only passes it on
    def __init__(self, index: int = 0, term: int = 0, conf_state: ConfState | None = None, data: Any = b"") -> None: ...

class ConfChange:
    """One membership change."""

    @property
    def type(self) -> int: ...  # ConfChangeType
    @property
    def node_id(self) -> int: ...  # 0: the change was withdrawn
    @property
    def context(self) -> bytes: ...  # belongs to the proposer; the core only carries it
    def __init__(self, type: int = 0, node_id: int = 0, context: bytes = b"") -> None: ...
    def as_v2(self) -> ConfChangeV2: ...
    def encode(self) -> bytes: ...  # payload of an entry of type 1

class ConfChangeV2:
    """Several membership changes at once. Without changes it leaves the joint configuration."""

    @property
    def transition(self) -> int: ...  # ConfChangeTransition
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
    def encode(self) -> bytes: ...  # payload of an entry of type 2

def decode_conf_change(entry_type: int, data: Buffer) -> ConfChange | ConfChangeV2: ...  # raises FormatError

class Message:
    """A Raft message. The fields have the meaning of raftpb.Message."""

    type: int  # MessageType
    to: int  # id of the receiver
    from_: int  # id of the sender
    term: int  # term of the sender; 0 for a local message, which no peer may send
    log_term: int  # term of the entry at `index`, or at `reject_hint` in a rejection
    index: int  # append: the entry before the first; response: the last match; vote: the last entry
    commit: int  # commit index of the sender; in a heartbeat at most what the receiver has
    vote: int  # not used by this core
    reject_hint: int  # index from which the leader should go on after a rejected append
    reject: bool  # the response refuses what was asked
    snapshot: Snapshot | None  # only in a MsgSnap
    context: bytes  # at most 1024 bytes on the wire: number of a round, id of a read, or a mark of a vote
    @property
    def images(self) -> Buffer: ...  # concatenated entry images
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
    def encode_parts(self) -> tuple[bytes, Buffer]: ...  # (head, images); the snapshot's data stays behind
    def encode(self) -> bytes: ...
    @staticmethod
    def decode(data: Buffer) -> Message: ...  # raises FormatError; the images stay a view of `data`

class SoftState:
    """State that is not persisted."""

    @property
    def lead(self) -> int: ...  # id of the known leader
    @property
    def raft_state(self) -> int: ...  # StateType
    def __init__(self, lead: int = 0, raft_state: int = 0) -> None: ...

class ReadState:
    """Answer to a read_index."""

    @property
    def index(self) -> int: ...  # a state that is applied up to this index may serve the read
    @property
    def request_ctx(self) -> bytes: ...  # the context of the read_index call
    def __init__(self, index: int = 0, request_ctx: bytes = b"") -> None: ...

class Ready:
    """The work that the caller has to do now. The head of raft.pyx describes the duties."""

    @property
    def number(self) -> int: ...  # from 1, one higher each time
    @property
    def soft_state(self) -> SoftState | None: ...  # None: unchanged
    @property
    def hard_state(self) -> HardState | None: ...  # to persist; None: unchanged
    @property
    def snapshot(self) -> Snapshot | None: ...  # to persist and install; None: there is none
    @property
    def messages(self) -> list[Message]: ...  # to send, in ascending order of the receiver's id
    @property
    def read_states(self) -> list[ReadState]: ...  # reads that may be served once their index is applied
    @property
    def dropped_reads(self) -> list[bytes]: ...  # contexts of reads of this node that get no answer
    @property
    def must_sync(self) -> bool: ...  # False: only the commit index moved, and nothing depends on a sync
    @property
    def entry_images(self) -> Buffer: ...  # concatenated images to persist; never changes
    @property
    def first_index(self) -> int: ...  # index of the first entry to persist; 0: there is none
    @property
    def last_index(self) -> int: ...  # index of the last one; 0: there is none
    @property
    def entries(self) -> list[Entry]: ...  # the same as `entry_images`, decoded
    @property
    def committed_images(self) -> Buffer: ...  # concatenated images to apply; never changes
    @property
    def committed_first(self) -> int: ...  # index of the first entry to apply; 0: there is none
    @property
    def committed_last(self) -> int: ...  # index of the last one; 0: there is none
    @property
    def committed_entries(self) -> list[Entry]: ...  # the same as `committed_images`, decoded

class RaftConfig:
    """Settings of a RawNode. All limits are positive. Raises ConfigError if they contradict each other."""

    @property
    def id(self) -> int: ...  # not 0
    @property
    def election_ticks(self) -> int: ...  # greater than heartbeat_ticks
    @property
    def heartbeat_ticks(self) -> int: ...  # at least 1
    @property
    def applied(self) -> int: ...  # index that the state machine has already applied
    @property
    def max_size_per_msg(self) -> int: ...  # bytes of images in an append
    @property
    def max_inflight(self) -> int: ...  # unanswered appends to one peer
    @property
    def max_inflight_bytes(self) -> int: ...  # bytes of these
    @property
    def max_uncommitted_bytes(self) -> int: ...  # bytes of proposals that are not committed
    @property
    def max_committed_size_per_ready(self) -> int: ...  # bytes of committed_images
    @property
    def max_tail_bytes(self) -> int: ...  # bytes of images in memory
    @property
    def read_ahead_bytes(self) -> int: ...  # bytes read from the storage at once
    @property
    def max_pending_reads(self) -> int: ...  # reads that wait for a round
    @property
    def pre_vote(self) -> bool: ...
    @property
    def check_quorum(self) -> bool: ...
    @property
    def lease_reads(self) -> bool: ...  # read_only_option is "lease"
    @property
    def lease_seconds(self) -> float: ...
    @property
    def seed(self) -> int: ...
    @property
    def random(self) -> Callable[[int], int] | None: ...
    @property
    def doubt(self) -> int: ...  # a term: acknowledged entries of it or before may be missing; 0: none
    @property
    def accept_loss(self) -> bool: ...  # vote in spite of the doubt
    @property
    def planted(self) -> int: ...  # bits of raft.PLANT_...; 0 outside of tests
    def __init__(
        self,
        id: int,
        *,
        election_ticks: int = 10,  # each election timeout is drawn from [n, 2n) ticks
        heartbeat_ticks: int = 1,  # ticks between heartbeats
        applied: int = 0,
        max_size_per_msg: int = ...,  # bytes of images in an append, 1 MiB
        max_inflight: int = 256,  # unanswered appends to one peer
        max_inflight_bytes: int = ...,  # bytes of these, 16 MiB
        max_uncommitted_bytes: int = ...,  # bytes of proposals that are not committed, 256 MiB
        pre_vote: bool = True,
        check_quorum: bool = True,
        read_only_option: str = "safe",  # or "lease", which needs check_quorum and lease_seconds
        lease_seconds: float = 0.0,  # how long after a heartbeat no other leader can be elected
        max_committed_size_per_ready: int = ...,  # bytes of committed_images, 4 MiB
        max_tail_bytes: int = ...,  # bytes of images in memory, 32 MiB
        read_ahead_bytes: int = ...,  # bytes read from the storage at once, 1 MiB
        max_pending_reads: int = 65536,  # reads that wait for a round
        seed: int = 0,  # of the election jitter
        random: Callable[[int], int] | None = None,  # random(n) returns an int in [0, n)
        doubt: int = 0,
        accept_loss: bool = False,
        planted: int = 0,
    ) -> None: ...

class Progress:
    """The state that a leader keeps for a peer."""

    state: ProgressState
    match: int  # highest index known to be durable there
    next: int  # next index to send
    is_learner: bool
    is_paused: bool  # nothing may be sent now
    pending_snapshot: int  # index of the snapshot under way; 0: none
    recent_active: bool  # a message came since the last check of the quorum
    inflight: int  # number of unanswered appends
    heard: bool  # a message came since the last check of the quorum, or between that and the one before

class Status:
    """State of a RawNode at the time of the call."""

    id: int
    term: int
    vote: int  # member voted for in this term; 0: none
    commit: int
    applied: int  # index up to which applying was reported
    lead: int  # id of the known leader; 0: none
    raft_state: StateType
    config: ConfState
    progress: dict[int, Progress]  # peer id -> Progress; {} on a node that does not lead
    last_index: int  # index of the last entry, whether durable or not
    persisted: int  # index up to which the log is durable here
    lead_transferee: int  # member that gets leadership; 0: none
