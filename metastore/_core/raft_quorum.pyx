"""Quorums, membership changes and the state that a leader keeps for its peers.

Everything here is a pure function or a plain record; raft.pyx decides when to use it. Sources: Ongaro, "Consensus:
Bridging Theory and Practice" (dissertation), sections 3.6.2 (commitment), 4.2-4.3 (membership changes, joint
consensus) and 10.2.1 (pipelining); Raft paper, section 6.
"""

from enum import IntEnum

from libc.stdint cimport uint64_t
from libc.stdlib cimport free, realloc

from metastore._core.raft_types cimport ConfChange, ConfState

from metastore._core.raft_types import ConfChangeError

MAX_INDEX = 0xFFFFFFFFFFFFFFFF

cdef enum:
    MAX_VOTERS = 128
    PACE = 1 << 20          # see Peer
    PIECE = 256 << 10
    SLOW_TURNS = 4
    FAST_TURNS = 8


class VoteResult(IntEnum):
    """Current result of an election."""

    VotePending = 1
    VoteLost = 2
    VoteWon = 3


# -- quorums --------------------------------------------------------------------------------------------------


def committed(voters, acked):
    """Return the greatest index that a majority of `voters` has acknowledged (dissertation, section 3.6.2).

    voters: ids. acked: id -> index; a missing id counts as 0. Without voters the result is MAX_INDEX, so an empty half
    of a joint configuration never holds the other half back."""
    indexes = sorted(acked.get(voter, 0) for voter in set(voters))
    return indexes[(len(indexes) - 1) // 2] if indexes else MAX_INDEX


def joint_committed(incoming, outgoing, acked):
    """Return the same for a joint configuration, which needs both majorities (dissertation, section 4.3)."""
    return min(committed(incoming, acked), committed(outgoing, acked))


def vote(voters, votes):
    """VoteResult of an election among `voters` with votes id -> bool. Without voters the election is won."""
    voters = set(voters)
    if not voters:
        return VoteResult.VoteWon
    needed = len(voters) // 2 + 1
    yes = sum(1 for voter in voters if votes.get(voter) is True)
    missing = sum(1 for voter in voters if votes.get(voter) is None)
    if yes >= needed:
        return VoteResult.VoteWon
    return VoteResult.VotePending if yes + missing >= needed else VoteResult.VoteLost


def joint_vote(incoming, outgoing, votes):
    """VoteResult in a joint configuration: the candidate must win both halves and loses if it loses either."""
    first, second = vote(incoming, votes), vote(outgoing, votes)
    if first == second:
        return first
    if VoteResult.VoteLost in (first, second):
        return VoteResult.VoteLost
    return VoteResult.VotePending


def doubting_vote(incoming, outgoing, votes, doubtful):
    """VoteResult of an election in which the voters in `doubtful` may lack entries that they acknowledged. Their votes
    count only if all voters have voted for the candidate, because then no voter has an entry that it lacks."""
    sure = {voter: granted for voter, granted in votes.items() if voter not in doubtful}
    result = joint_vote(incoming, outgoing, sure)
    if result == VoteResult.VotePending and all(votes.get(voter) for voter in (*incoming, *outgoing)):
        return VoteResult.VoteWon
    return result


cdef uint64_t majority_index(list peers, bint read_acks) except? 0:
    """The same as `committed`, fast, over Peer records: it uses their `match` or their `read_ack`."""
    cdef uint64_t[MAX_VOTERS] values
    cdef uint64_t value
    cdef Peer peer
    cdef int count = 0, at
    for peer in peers:
        value = peer.read_ack if read_acks else peer.match
        at = count
        while at > 0 and values[at - 1] > value:
            values[at] = values[at - 1]
            at -= 1
        values[at] = value
        count += 1
        if count == MAX_VOTERS:
            break
    return values[(count - 1) // 2] if count else <uint64_t>0xFFFFFFFFFFFFFFFF


# -- membership changer ---------------------------------------------------------------------------------------


cdef class _Draft:
    """A ConfState being changed."""

    cdef public set voters, learners, outgoing, learners_next

    def __init__(self, ConfState state not None):
        self.voters = set(state.voters)
        self.learners = set(state.learners)
        self.outgoing = set(state.voters_outgoing)
        self.learners_next = set(state.learners_next)

    def apply(self, changes):
        """Apply the changes one after the other. Node id 0 means a change that was withdrawn."""
        for change in changes:
            node = change.node_id
            if node == 0:
                continue
            if change.type == 0:
                self.forget_learner(node)
                self.voters.add(node)
            elif change.type == 3:
                self.make_learner(node)
            elif change.type == 1:
                self.voters.discard(node)
                self.forget_learner(node)
            elif change.type != 2:
                raise ConfChangeError(f"unknown membership change {change.type}")
        if not self.voters:
            raise ConfChangeError("a membership change must not remove all voters")

    def forget_learner(self, node):
        self.learners.discard(node)
        self.learners_next.discard(node)

    def make_learner(self, node):
        """Make a node a learner. A voter of the outgoing configuration has to wait until that configuration is left."""
        self.voters.discard(node)
        self.forget_learner(node)
        (self.learners_next if node in self.outgoing else self.learners).add(node)

    def state(self, auto_leave):
        if self.learners & (self.voters | self.outgoing) or self.learners_next - self.outgoing:
            raise ConfChangeError("a member is voter and learner at once")
        return ConfState(self.voters, self.learners, self.outgoing, self.learners_next, auto_leave)


def simple(ConfState state not None, changes):
    """ConfState after changes that affect at most one voter (dissertation, section 4.2). Raises ConfChangeError."""
    if state.voters_outgoing:
        raise ConfChangeError("a simple change is not possible in a joint configuration")
    draft = _Draft(state)
    draft.apply(changes)
    if len(draft.voters ^ set(state.voters)) > 1:
        raise ConfChangeError("more than one voter changed without a joint configuration")
    return draft.state(False)


def enter_joint(ConfState state not None, auto_leave, changes):
    """ConfState with the present voters as its outgoing half and the changed voters as its incoming half."""
    if state.voters_outgoing:
        raise ConfChangeError("the configuration is joint already")
    if not state.voters:
        raise ConfChangeError("a configuration without voters cannot become joint")
    draft = _Draft(state)
    draft.outgoing = set(state.voters)
    draft.apply(changes)
    return draft.state(auto_leave)


def leave_joint(ConfState state not None):
    """ConfState with only the incoming half. Nodes that waited in `learners_next` become learners."""
    if not state.voters_outgoing:
        raise ConfChangeError("the configuration is not joint")
    return ConfState(state.voters, set(state.learners) | set(state.learners_next))


def apply_change(ConfState state not None, change):
    """ConfState after a ConfChange or ConfChangeV2. The change itself selects one of the three functions above."""
    change = change.as_v2()
    if change.leaves_joint:
        return leave_joint(state)
    if change.enters_joint:
        return enter_joint(state, change.auto_leave, change.changes)
    return simple(state, change.changes)


# -- the state that a leader keeps for a peer -----------------------------------------------------------------


cdef class Inflights:
    """Window of appends that were sent and not answered yet: at most `capacity` appends, and no new one once
    `max_bytes` are on their way. The ring grows with use, so an idle peer costs almost nothing."""

    def __cinit__(self, int capacity, uint64_t max_bytes):
        self.capacity = capacity
        self.max_bytes = max_bytes

    def __dealloc__(self):
        free(self.indexes)
        free(self.sizes)

    cdef bint full(self) noexcept:
        return self.count >= self.capacity or self.bytes >= self.max_bytes

    cdef int push(self, uint64_t index, uint64_t size) except -1:
        cdef uint64_t* grown
        cdef int at, larger
        if self.count >= self.capacity:
            raise OverflowError("in-flight window is full")
        if self.count == self.allocated:
            larger = min(self.capacity, max(8, self.allocated * 2))
            grown = <uint64_t*>realloc(self.indexes, larger * sizeof(uint64_t))
            if grown == NULL:
                raise MemoryError()
            self.indexes = grown
            grown = <uint64_t*>realloc(self.sizes, larger * sizeof(uint64_t))
            if grown == NULL:
                raise MemoryError()
            self.sizes = grown
            # The ring is full here. The items before `start` move behind the old end. If there is not enough space for
            # all, the part before the old end moves to the new end.
            self.unroll(larger)
        at = (self.start + self.count) % self.allocated
        self.indexes[at] = index
        self.sizes[at] = size
        self.count += 1
        self.bytes += size
        return 0

    def unroll(self, int larger):
        """Move the oldest item to the front again, after a full ring has grown."""
        cdef list kept = [(self.indexes[(self.start + n) % self.allocated], self.sizes[(self.start + n)
                           % self.allocated]) for n in range(self.count)]
        cdef int n
        for n in range(self.count):
            self.indexes[n], self.sizes[n] = kept[n]
        self.start = 0
        self.allocated = larger

    cdef uint64_t free_up_to(self, uint64_t index) noexcept:
        """Remove the appends up to `index`, which were answered, and return how many bytes they had."""
        cdef uint64_t before = self.bytes
        while self.count > 0 and self.indexes[self.start] <= index:
            self.bytes -= self.sizes[self.start]
            self.start = (self.start + 1) % self.allocated
            self.count -= 1
        return before - self.bytes

    cdef void reset(self) noexcept:
        self.count = self.start = 0
        self.bytes = 0

    def add(self, index, size=0):
        """Record an append of `size` bytes whose last entry is `index`."""
        self.push(index, size)

    def free_le(self, index):
        """Remove all appends up to `index`, because they were answered."""
        self.free_up_to(index)

    @property
    def is_full(self):
        """Whether no further append may be sent."""
        return self.full()


cdef class Peer:
    """One member as its leader sees it.

    match: the highest index known to be durable there. next: the next index to send. In the state Probe the leader
    sends one append at a time to find where the logs agree. In the state Replicate it is optimistic: `next` runs ahead
    within the in-flight window. In the state Snapshot it sends nothing until it knows what became of the snapshot.
    (Dissertation, section 10.2.1; the names are etcd's.)

    Catching up has a pace. A quorum already has every committed entry, and nobody waits for a lagging peer to get it.
    Of committed entries, therefore, at most `pace` bytes are on their way, in pieces of PIECE. A leader that fills the
    whole window has long turns, in which new writes wait; and on shared processors the system suspends a thread for
    milliseconds after it ran for milliseconds. Measured (30,000 puts/s of 1 KiB, half load, on two cores for three
    nodes and the load; 250 MB to catch up): the p50 of the puts is 20 ms with 16 MiB on their way in pieces of 1 MiB,
    and 4.9 ms when the peer is level; with this pace it is 5.7 and 4.3 ms. The rate of catching up is 230 MB/s with 16
    MiB and 217 MB/s with this pace. With 4 MiB the p50 is 11 ms. Smaller writes to the socket did not help, and a
    window of 512 KiB was only slower. `pace` follows the distance of the peer: it doubles, up to the whole window,
    while the window turns over less than SLOW_TURNS times between two heartbeats, and halves again, down to PACE,
    above FAST_TURNS."""

    def __cinit__(self, uint64_t id, uint64_t next, int max_inflight, uint64_t max_bytes, bint is_learner):
        self.id = id
        self.next = next
        self.is_learner = is_learner
        self.inflights = Inflights(max_inflight, max_bytes)
        self.pace = min(max_bytes, <uint64_t>PACE)

    cdef bint paused(self) noexcept:
        if self.waiting_load:
            return True
        if self.state == PROGRESS_PROBE:
            return self.probe_sent
        if self.state == PROGRESS_REPLICATE:
            return self.inflights.full()
        return True

    cdef bint held(self, uint64_t committed) noexcept:
        """Whether no entries may be sent now. `committed` is the commit index."""
        if self.paused():
            return True
        if self.next > committed or self.inflights.bytes < self.pace:
            return False
        self.slowed = True
        return True

    cdef uint64_t piece(self, uint64_t committed, uint64_t limit) noexcept:
        """Size in bytes of the next append. `limit` is the limit for any append."""
        return limit if self.next > committed else min(limit, <uint64_t>PIECE)

    cdef void adapt(self) noexcept:
        """Adapt the pace to the turnover since the last heartbeat. Called once per heartbeat."""
        if self.slowed and self.answered < SLOW_TURNS * self.pace:
            self.pace = min(2 * self.pace, self.inflights.max_bytes)
        elif self.answered > FAST_TURNS * self.pace or not self.slowed:
            self.pace = min(max(self.pace // 2, <uint64_t>PACE), self.inflights.max_bytes)
        self.answered = 0
        self.slowed = False

    cdef void become_probe(self) noexcept:
        if self.state == PROGRESS_SNAPSHOT:
            self.next = max(self.match + 1, self.pending_snapshot + 1)
        else:
            self.next = self.match + 1
        self.enter(PROGRESS_PROBE)

    cdef void become_replicate(self) noexcept:
        self.enter(PROGRESS_REPLICATE)
        self.next = self.match + 1

    cdef void become_snapshot(self, uint64_t index) noexcept:
        self.enter(PROGRESS_SNAPSHOT)
        self.pending_snapshot = index
        self.next = index + 1

    cdef void enter(self, int state) noexcept:
        self.state = state
        self.pending_snapshot = 0
        self.probe_sent = False
        self.sent_commit = 0
        self.inflights.reset()

    cdef bint maybe_update(self, uint64_t index) noexcept:
        """Record that the peer has `index` on disk, and return whether that is new."""
        if index <= self.match:
            return False
        self.match = index
        if self.next <= index:
            self.next = index + 1
        self.probe_sent = False
        return True

    cdef bint maybe_decrease(self, uint64_t rejected, uint64_t hint) noexcept:
        """Continue after `hint`: the append after `rejected` did not match. Returns False for a stale answer."""
        if self.state == PROGRESS_REPLICATE:
            if rejected <= self.match:
                return False
            self.next = self.match + 1
            return True
        if self.next - 1 != rejected:
            return False
        self.next = max(min(rejected, hint + 1), self.match + 1)
        self.probe_sent = False
        return True
