"""Linearizable reads on the leader: which reads wait, which round of heartbeats confirms which reads, and how long the
lease lasts (dissertation, sections 6.4 and 6.4.1). This is bookkeeping only: RawNode creates and processes the
messages, and knows when leadership begins and ends.

A round is a number that heartbeats carry and peers return. If a quorum returned `n` or a later number, it accepted this
node as leader after round n was created. The commit index of that time is therefore valid for all reads that arrived
before the round.
"""

from libc.stdint cimport uint64_t

from metastore._core.raft_quorum cimport majority_index
from metastore._core.raft_types cimport RaftConfig

cdef enum:
    MAX_LEASE_TIMES = 256

cdef bytes NOTHING = b""
cdef tuple NONE_DONE = ()
cdef double NEVER = -1e300


cdef class Round:
    """See raft_reads.pxd."""


cdef class Reads:
    """The reads of one node. Empty and without a lease unless the node leads. config: RaftConfig."""

    def __cinit__(self, RaftConfig config not None):
        self.config = config
        self.open, self.rounds, self.lease_times = [], [], []
        self.lease_start = NEVER

    cdef list drop(self, uint64_t own):
        """End the term. Return the contexts of the reads that node `own` asked for itself; they get no answer."""
        cdef list dropped = []
        for reads in [self.open] + [(<Round>one).reads for one in self.rounds]:
            dropped += [context for origin, context in reads if origin == own]
        self.open, self.rounds = [], []
        self.number = self.confirmed = 0
        self.lease_ended = False
        self.forget_lease()
        return dropped

    cdef bint add(self, uint64_t origin, bytes context) except -1:
        """Add a read. Return False, without adding it, over the limit of pending reads."""
        if len(self.open) >= <Py_ssize_t>self.config.max_pending_reads:
            return False
        self.open.append((origin, context))
        return True

    cdef list take(self):
        """Remove and return the collected reads, which need no round."""
        reads, self.open = self.open, []
        return reads

    cdef bint room(self) except -1:
        """Whether another round may be started."""
        return len(self.rounds) < MAX_READ_ROUNDS

    cdef int gather(self, uint64_t index, double now) except -1:
        """Create a round for all collected reads. It answers them with this commit index."""
        cdef Round fresh = Round.__new__(Round)
        self.number += 1
        if self.config.lease_reads:
            self.lease_times.append((self.number, now))
        fresh.number = self.number
        fresh.index = index
        fresh.reads = self.take()
        self.rounds.append(fresh)
        return 0

    cdef int beat(self, double now) except -1:
        """Note heartbeats that the clock has caused. With lease reads they are a round too."""
        if self.config.lease_reads:
            self.number += 1
            self.lease_times.append((self.number, now))
            if len(self.lease_times) > MAX_LEASE_TIMES:
                del self.lease_times[0]
        return 0

    cdef bytes token(self):
        """The bytes that heartbeats carry; empty if nothing waits for their return."""
        if self.rounds or self.config.lease_reads:
            return self.number.to_bytes(8, "little")
        return NOTHING

    cdef tuple confirm(self, list voters_in, list voters_out):
        """Return the rounds that a quorum has answered now, and extend the lease. Called when a voter has answered;
        `voters_in` and `voters_out` are lists of Peer, and their `read_ack` counts."""
        cdef Py_ssize_t done = 0
        cdef tuple answered
        cdef uint64_t number = majority_index(voters_in, True)
        if voters_out:
            number = min(number, majority_index(voters_out, True))
        if number <= self.confirmed or number > self.number:
            return NONE_DONE
        self.confirmed = number
        while self.lease_times and self.lease_times[0][0] <= number:
            self.lease_start = self.lease_times[0][1]
            del self.lease_times[0]
        while done < len(self.rounds) and (<Round>self.rounds[done]).number <= number:
            done += 1
        if not done:
            return NONE_DONE
        answered = tuple(self.rounds[:done])
        del self.rounds[:done]
        return answered

    cdef int forget_lease(self) except -1:
        """Drop the lease. It is a promise of the quorum that gave it, and a new membership has other quorums."""
        self.lease_start = NEVER
        self.lease_times = []
        return 0

    cdef bint lease_holds(self, double now) noexcept:
        return now < self.lease_start + self.config.lease_seconds
