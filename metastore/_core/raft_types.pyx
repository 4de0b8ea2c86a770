"""Types of the Raft core: messages, Ready, membership, configuration, and their errors.

The names and numbers of the message, entry and membership types are those of etcd's `raftpb`. The layouts on the wire
are our own (FORMATS.md, "Raft messages"). This module makes no decisions.
"""

import struct
from enum import IntEnum

from libc.stdint cimport uint64_t

from metastore._core.entry cimport ENTRY_CONF_CHANGE, ENTRY_CONF_CHANGE_V2

from metastore._core.entry import decode_entries, encode_entry
from metastore.errors import ConfigError, FormatError, MetaStoreError, TooManyRequests

FORMAT_VERSION = 1
MAX_MEMBERS = 128


class MessageType(IntEnum):
    """Type of a `Message`, with the numbers of raftpb."""

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


class EntryType(IntEnum):
    """Type of an entry, with the numbers of raftpb."""

    EntryNormal = 0
    EntryConfChange = 1
    EntryConfChangeV2 = 2


class StateType(IntEnum):
    """Role of a node."""

    StateFollower = 0
    StateCandidate = 1
    StateLeader = 2
    StatePreCandidate = 3


class ProgressState(IntEnum):
    """How a leader replicates to a peer: one append at a time (probe), a pipeline of appends, or a snapshot."""

    StateProbe = 0
    StateReplicate = 1
    StateSnapshot = 2


class ConfChangeType(IntEnum):
    """Effect of a single membership change."""

    ConfChangeAddNode = 0
    ConfChangeRemoveNode = 1
    ConfChangeUpdateNode = 2
    ConfChangeAddLearnerNode = 3


class ConfChangeTransition(IntEnum):
    """Auto: use a joint configuration only if it is needed, and leave it automatically. JointImplicit: always use one,
    and leave it automatically. JointExplicit: always use one, and leave it when an empty change asks for it."""

    Auto = 0
    JointImplicit = 1
    JointExplicit = 2


class NotYetLoaded(MetaStoreError):
    """The storage cannot answer at once because it reads in the background. `entries_loaded()` reports that it can."""

    default = "metastore: log entries are not yet loaded"


class LogCompacted(MetaStoreError):
    """The requested part of the log was compacted. The peer needs a snapshot."""

    default = "metastore: log entries were compacted"


class LogUnavailable(MetaStoreError):
    """The requested part of the log does not exist."""

    default = "metastore: log entries do not exist"


class SnapshotNotReady(MetaStoreError):
    """The storage has no snapshot to send now. The leader asks again after the next heartbeat."""

    default = "metastore: snapshot is not ready"


class ProposalDropped(TooManyRequests):
    """The proposal did not enter the log: there are too many uncommitted bytes, or leadership is being transferred."""


class ConfChangeError(MetaStoreError):
    """The membership change is not allowed; the text gives the reason. Nothing was changed."""

    default = "metastore: membership change refused"


class RaftInvariantBroken(MetaStoreError):
    """An event happened that Raft excludes (disk contents were lost, a message was forged). The node must stop."""

    exit_code = 4


cdef tuple sorted_ids(object ids):
    cdef tuple out = tuple(sorted(set(ids)))
    if len(out) > MAX_MEMBERS:
        raise ConfChangeError(f"more than {MAX_MEMBERS} members")
    return out


cdef class ConfState:
    """Membership as sorted tuples of node ids. `voters_outgoing` is not empty while a joint change is under way."""

    def __init__(self, voters=(), learners=(), voters_outgoing=(), learners_next=(), auto_leave=False):
        self.voters = sorted_ids(voters)
        self.learners = sorted_ids(learners)
        self.voters_outgoing = sorted_ids(voters_outgoing)
        self.learners_next = sorted_ids(learners_next)
        self.auto_leave = bool(auto_leave)

    cpdef bytes encode(self):
        """Encode as FORMATS.md, "Membership", describes."""
        out = [struct.pack("<BB", FORMAT_VERSION, self.auto_leave)]
        for ids in (self.voters, self.learners, self.voters_outgoing, self.learners_next):
            out.append(struct.pack(f"<H{len(ids)}Q", len(ids), *ids))
        return b"".join(out)

    @staticmethod
    def decode(data):
        """Decode the bytes of `encode()`. Raises FormatError on anything else."""
        data = bytes(data)
        try:
            version, auto_leave = struct.unpack_from("<BB", data)
            pos, groups = 2, []
            for _ in range(4):
                (count,) = struct.unpack_from("<H", data, pos)
                if count > MAX_MEMBERS:
                    raise FormatError("membership: too many members")
                groups.append(struct.unpack_from(f"<{count}Q", data, pos + 2))
                pos += 2 + 8 * count
        except struct.error as error:
            raise FormatError(f"membership: {error}") from error
        if version != FORMAT_VERSION or auto_leave > 1 or pos != len(data):
            raise FormatError("membership: unknown version, flags or length")
        return ConfState(*groups, auto_leave=auto_leave)

    def _key(self):
        return (self.voters, self.learners, self.voters_outgoing, self.learners_next, self.auto_leave)

    def __eq__(self, other):
        return isinstance(other, ConfState) and self._key() == (<ConfState>other)._key()

    def __hash__(self):
        return hash(self._key())

    def __repr__(self):
        out = "(" + " ".join(map(str, self.voters)) + ")"
        if self.voters_outgoing:
            out += "&&(" + " ".join(map(str, self.voters_outgoing)) + ")"
        if self.learners:
            out += " learners=(" + " ".join(map(str, self.learners)) + ")"
        if self.learners_next:
            out += " learners_next=(" + " ".join(map(str, self.learners_next)) + ")"
        return out + (" autoleave" if self.auto_leave else "")


cdef class Snapshot:
    """Position and membership of a snapshot. `data` (a name, a reader) belongs to the caller; the core passes it on."""

    def __init__(self, index=0, term=0, conf_state=None, data=b""):
        self.index = index
        self.term = term
        self.conf_state = ConfState() if conf_state is None else conf_state
        self.data = data

    def __eq__(self, other):
        if not isinstance(other, Snapshot):
            return NotImplemented
        return (self.index, self.term, self.conf_state, self.data) == (
            other.index, other.term, other.conf_state, other.data)

    __hash__ = None

    def __repr__(self):
        return f"Snapshot(index={self.index}, term={self.term}, conf={self.conf_state!r})"


cdef class ConfChange:
    """One membership change. `context` (the member's record) belongs to the proposer; the core only carries it."""

    def __init__(self, type=0, node_id=0, context=b""):
        self.type = type
        self.node_id = node_id
        self.context = bytes(context)

    def as_v2(self):
        """The same change as a ConfChangeV2."""
        return ConfChangeV2(0, (ConfChange(self.type, self.node_id),), self.context)

    def encode(self):
        """Encode as the payload of an entry of type 1."""
        return self.as_v2().encode()

    def __eq__(self, other):
        if not isinstance(other, ConfChange):
            return NotImplemented
        return (self.type, self.node_id, self.context) == (other.type, other.node_id, other.context)

    def __hash__(self):
        return hash((self.type, self.node_id, self.context))

    def __repr__(self):
        return f"{ConfChangeType(self.type).name}({self.node_id})"


cdef class ConfChangeV2:
    """Several membership changes at once. An empty list of changes means: leave the joint configuration."""

    def __init__(self, transition=0, changes=(), context=b""):
        self.transition = transition
        self.changes = tuple(changes)
        self.context = bytes(context)
        if len(self.changes) > MAX_MEMBERS:
            raise ConfChangeError("too many changes at once")

    def as_v2(self):
        """Return this object itself."""
        return self

    @property
    def leaves_joint(self):
        """Whether this change ends a joint configuration."""
        return not self.changes

    @property
    def enters_joint(self):
        """Whether this change begins a joint configuration (dissertation section 4.3)."""
        return bool(self.changes) and (self.transition != 0 or len(self.changes) > 1)

    @property
    def auto_leave(self):
        """Whether the node leaves the joint configuration automatically."""
        return self.transition != 2

    cpdef bytes encode(self):
        """Encode as the payload of an entry of type 2; see FORMATS.md, "Membership"."""
        out = [struct.pack("<BBH", FORMAT_VERSION, self.transition, len(self.changes))]
        out += [struct.pack("<BQ", change.type, change.node_id) for change in self.changes]
        out.append(self.context)
        return b"".join(out)

    def __eq__(self, other):
        if not isinstance(other, ConfChangeV2):
            return NotImplemented
        return (self.transition, self.changes, self.context) == (other.transition, other.changes, other.context)

    def __hash__(self):
        return hash((self.transition, self.changes, self.context))

    def __repr__(self):
        return f"ConfChangeV2({ConfChangeTransition(self.transition).name}, {list(self.changes)!r})"


def decode_conf_change(entry_type, data):
    """Decode the payload of an entry: a ConfChange (type 1) or a ConfChangeV2 (type 2). Raises FormatError."""
    data = bytes(data)
    if not data and entry_type == ENTRY_CONF_CHANGE_V2:
        return ConfChangeV2()
    try:
        version, transition, count = struct.unpack_from("<BBH", data)
        changes = []
        for number in range(count):
            kind, node_id = struct.unpack_from("<BQ", data, 4 + 9 * number)
            if kind > 3:
                raise FormatError("membership change: unknown type")
            changes.append(ConfChange(kind, node_id))
    except struct.error as error:
        raise FormatError(f"membership change: {error}") from error
    if version != FORMAT_VERSION or transition > 2 or count > MAX_MEMBERS:
        raise FormatError("membership change: unknown version or transition")
    context = data[4 + 9 * count:]
    if entry_type == ENTRY_CONF_CHANGE:
        if count != 1 or transition:
            raise FormatError("membership change: not a single one")
        return ConfChange(changes[0].type, changes[0].node_id, context)
    if entry_type != ENTRY_CONF_CHANGE_V2:
        raise FormatError("membership change: not an entry of that type")
    return ConfChangeV2(transition, changes, context)


cdef class Message:
    """A Raft message. It holds its entries as images (the same bytes as in the log) or as Entry objects, and builds
    one form from the other when asked. A message with `term` 0 is local, and no peer may send it."""

    def __init__(self, type=0, to=0, from_=0, term=0, log_term=0, index=0, entries=None, commit=0, vote=0,
                 snapshot=None, reject=False, reject_hint=0, context=b"", images=None):
        self.type = type
        self.to = to
        self.from_ = from_
        self.term = term
        self.log_term = log_term
        self.index = index
        self.commit = commit
        self.vote = vote
        self.snapshot = snapshot
        self.reject = reject
        self.reject_hint = reject_hint
        self.context = b"" if context is None else bytes(context)
        self._entries = list(entries) if entries else None
        self._images = images

    cdef object get_images(self):
        if self._images is None:
            if not self._entries:
                return b""
            self._images = b"".join([encode_entry(entry) for entry in self._entries])
        return self._images

    @property
    def images(self):
        """The images of the entries, concatenated (bytes-like)."""
        return self.get_images()

    @property
    def entries(self):
        """The entries as a list of Entry."""
        if self._entries is None:
            self._entries = [] if self._images is None else decode_entries(self._images)
        return self._entries

    def _key(self):
        return (self.type, self.to, self.from_, self.term, self.log_term, self.index, self.commit, self.vote,
                self.reject, self.reject_hint, self.context, self.snapshot, bytes(self.get_images()))

    def __eq__(self, other):
        return isinstance(other, Message) and self._key() == (<Message>other)._key()

    __hash__ = None

    def __repr__(self):
        name = MessageType(self.type).name if 0 <= self.type <= 18 else str(self.type)
        out = f"{self.from_}->{self.to} {name} Term:{self.term} Log:{self.log_term}/{self.index}"
        if self.reject:
            out += f" Rejected (Hint: {self.reject_hint})"
        if self.commit:
            out += f" Commit:{self.commit}"
        if self.vote:
            out += f" Vote:{self.vote}"
        if self.context:
            out += f" Ctx:{self.context!r}"
        if self.snapshot is not None:
            out += f" {self.snapshot!r}"
        if self.entries:
            out += " Entries:[" + ", ".join(
                f"{e.term}/{e.index} {EntryType(e.type).name}" + (f" {e.data!r}" if e.data else "")
                for e in self.entries) + "]"
        return out

    def encode_parts(self):
        """Encode for the wire as (head bytes, images), without copying the images. A snapshot loses its data."""
        snapshot = b""
        if self.snapshot is not None:
            snapshot = struct.pack("<QQ", self.snapshot.index, self.snapshot.term) + self.snapshot.conf_state.encode()
        images = self.get_images()
        head = struct.pack("<BBBxIIQ8Q", FORMAT_VERSION, self.type, self.reject | (self.snapshot is not None) << 1,
                           len(self.context), len(snapshot), len(images), self.to, self.from_, self.term,
                           self.log_term, self.index, self.commit, self.vote, self.reject_hint)
        return head + self.context + snapshot, images

    def encode(self):
        """Encode the message as one bytes object."""
        return b"".join(self.encode_parts())

    @staticmethod
    def decode(data):
        """Decode the bytes of `encode()`; the images stay a view of `data`. Raises FormatError.

        The core checks the images themselves when they enter the log."""
        view = memoryview(data)
        try:
            (version, kind, flags, context_len, snapshot_len, images_len, *rest) = HEAD.unpack_from(view)
        except struct.error as error:
            raise FormatError(f"raft message: {error}") from error
        if version != FORMAT_VERSION or kind > MSG_PRE_VOTE_RESP or flags > 3:
            raise FormatError("raft message: unknown version, type or flags")
        at = HEAD.size
        if at + context_len + snapshot_len + images_len != len(view):
            raise FormatError("raft message: wrong length")
        to, from_, term, log_term, index, commit, vote, reject_hint = rest
        context = bytes(view[at:at + context_len])
        at += context_len
        snapshot = None
        if flags & 2:
            if snapshot_len < 16:
                raise FormatError("raft message: snapshot cut short")
            position = struct.unpack_from("<QQ", view, at)
            snapshot = Snapshot(position[0], position[1], ConfState.decode(view[at + 16:at + snapshot_len]))
        elif snapshot_len:
            raise FormatError("raft message: snapshot without its flag")
        images = view[at + snapshot_len:] if images_len else None
        return Message(kind, to, from_, term, log_term, index, None, commit, vote, snapshot, bool(flags & 1),
                       reject_hint, context, images)


HEAD = struct.Struct("<BBBxIIQ8Q")


cdef class SoftState:
    """State that is not persisted: the known leader (0: none) and the role (StateType)."""

    def __init__(self, lead=0, raft_state=0):
        self.lead = lead
        self.raft_state = raft_state

    def __eq__(self, other):
        if not isinstance(other, SoftState):
            return NotImplemented
        return (self.lead, self.raft_state) == (other.lead, other.raft_state)

    __hash__ = None

    def __repr__(self):
        return f"SoftState(lead={self.lead}, raft_state={StateType(self.raft_state).name})"


cdef class ReadState:
    """Answer to a read_index: a state that is applied up to `index` may serve the reads of `request_ctx`."""

    def __init__(self, index=0, request_ctx=b""):
        self.index = index
        self.request_ctx = request_ctx

    def __eq__(self, other):
        if not isinstance(other, ReadState):
            return NotImplemented
        return (self.index, self.request_ctx) == (other.index, other.request_ctx)

    __hash__ = None

    def __repr__(self):
        return f"ReadState(index={self.index}, request_ctx={self.request_ctx!r})"


cdef class Ready:
    """The work that the caller has to do now. The head of raft.pyx describes the duties.

    `entry_images` and `committed_images` are bytes-like and never change. `entries` and `committed_entries` are the
    same as lists of Entry, decoded on demand. first_index, last_index, committed_first and committed_last are 0 where
    there are no entries. `dropped_reads` holds the contexts of read_index calls on this node that will get no answer
    because leadership was lost.
    """

    @property
    def entries(self):
        """The entries to persist, as a list of Entry."""
        return decode_entries(self.entry_images) if self.last_index else []

    @property
    def committed_entries(self):
        """The entries to apply, as a list of Entry."""
        return decode_entries(self.committed_images) if self.committed_last else []

    def __repr__(self):
        out = [f"Ready(number={self.number}"]
        if self.soft_state is not None:
            out.append(repr(self.soft_state))
        if self.hard_state is not None:
            out.append(repr(self.hard_state))
        if self.snapshot is not None:
            out.append(repr(self.snapshot))
        if self.last_index:
            out.append(f"entries={self.first_index}..{self.last_index}")
        if self.committed_last:
            out.append(f"committed={self.committed_first}..{self.committed_last}")
        if self.read_states:
            out.append(f"read_states={self.read_states!r}")
        if self.messages:
            out.append(f"messages={self.messages!r}")
        return ", ".join(out) + ")"


cdef class RaftConfig:
    """Settings of a RawNode. Times are in ticks, which the caller defines, and sizes in bytes. All limits are positive.

    id: the id of this node, not 0. applied: the index that the state machine has already applied. election_ticks: the
    election timeout; each one is drawn from [election_ticks, 2*election_ticks). Lease reads need check_quorum and
    lease_seconds. lease_seconds: after a heartbeat that a quorum answered was sent, no other leader can be elected for
    this long; it is at most (election_ticks - 1) tick intervals less the drift of the clocks. seed, random: the source
    of the jitter; random(n) returns an int in [0, n). doubt: not 0 if entries may be missing that this node
    acknowledged in this term or before; see raft.pyx. accept_loss: vote in spite of the doubt. planted: bugs for the
    simulator's own test; see raft.pyx. Raises ConfigError if the settings contradict each other.
    """

    def __init__(self, id, *, election_ticks=10, heartbeat_ticks=1, applied=0, max_size_per_msg=1 << 20,
                 max_inflight=256, max_inflight_bytes=16 << 20, max_uncommitted_bytes=256 << 20, pre_vote=True,
                 check_quorum=True, read_only_option="safe", lease_seconds=0.0,
                 max_committed_size_per_ready=4 << 20, max_tail_bytes=32 << 20, read_ahead_bytes=1 << 20,
                 max_pending_reads=65536, seed=0, random=None, doubt=0, accept_loss=False,
                 planted=0):
        if not id:
            raise ConfigError("raft: node id must not be 0")
        if heartbeat_ticks < 1 or election_ticks <= heartbeat_ticks:
            raise ConfigError("raft: election_ticks must be greater than heartbeat_ticks, and those at least 1")
        if read_only_option not in ("safe", "lease"):
            raise ConfigError("raft: read_only_option is 'safe' or 'lease'")
        if read_only_option == "lease" and (not check_quorum or lease_seconds <= 0):
            raise ConfigError("raft: lease reads need check_quorum and lease_seconds")
        if min(max_size_per_msg, max_inflight, max_inflight_bytes, max_uncommitted_bytes, max_pending_reads,
               max_committed_size_per_ready, max_tail_bytes, read_ahead_bytes) < 1:
            raise ConfigError("raft: limits must be positive")
        self.id = id
        self.applied = applied
        self.election_ticks = election_ticks
        self.heartbeat_ticks = heartbeat_ticks
        self.max_size_per_msg = max_size_per_msg
        self.max_inflight = max_inflight
        self.max_inflight_bytes = max_inflight_bytes
        self.max_uncommitted_bytes = max_uncommitted_bytes
        self.max_committed_size_per_ready = max_committed_size_per_ready
        self.max_tail_bytes = max_tail_bytes
        self.read_ahead_bytes = read_ahead_bytes
        self.max_pending_reads = max_pending_reads
        self.pre_vote = pre_vote
        self.check_quorum = check_quorum
        self.lease_reads = read_only_option == "lease"
        self.lease_seconds = lease_seconds
        self.seed = seed & 0xFFFFFFFFFFFFFFFF
        self.random = random
        self.doubt = doubt
        self.accept_loss = accept_loss
        self.planted = planted


class Progress:
    """The state that a leader keeps for a peer, as `Status.progress` shows it."""

    __slots__ = ("state", "match", "next", "is_learner", "is_paused", "pending_snapshot", "recent_active", "inflight",
                 "heard")

    def __init__(self, state, match, next, is_learner, is_paused, pending_snapshot, recent_active, inflight, heard):
        self.state = ProgressState(state)
        self.match = match
        self.next = next
        self.is_learner = is_learner
        self.is_paused = is_paused
        self.pending_snapshot = pending_snapshot
        self.recent_active = recent_active
        self.heard = heard
        self.inflight = inflight

    def __repr__(self):
        return "Progress(" + ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__) + ")"


class Status:
    """State of a RawNode at the time of the call. `progress` is {} on a node that does not lead."""

    __slots__ = ("id", "term", "vote", "commit", "applied", "lead", "raft_state", "config", "progress",
                 "last_index", "persisted", "lead_transferee")

    def __init__(self, **fields):
        for name in self.__slots__:
            setattr(self, name, fields[name])

    def __repr__(self):
        return "Status(" + ", ".join(f"{name}={getattr(self, name)!r}" for name in self.__slots__) + ")"


globals().update(MessageType.__members__)
globals().update(EntryType.__members__)
