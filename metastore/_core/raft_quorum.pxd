from libc.stdint cimport uint64_t

from metastore._core.raft_types cimport ConfState

cdef enum:
    VOTE_PENDING = 1
    VOTE_LOST = 2
    VOTE_WON = 3

cdef enum:
    PROGRESS_PROBE = 0
    PROGRESS_REPLICATE = 1
    PROGRESS_SNAPSHOT = 2

# Appends that were sent and not answered yet, as a ring of (last index, bytes).
cdef class Inflights:
    cdef uint64_t* indexes
    cdef uint64_t* sizes
    cdef readonly int capacity
    cdef readonly int count
    cdef int start
    cdef int allocated
    cdef readonly uint64_t bytes
    cdef readonly uint64_t max_bytes
    cdef bint full(self) noexcept
    cdef int push(self, uint64_t index, uint64_t size) except -1
    cdef uint64_t free_up_to(self, uint64_t index) noexcept
    cdef void reset(self) noexcept

cdef class Peer:
    cdef readonly uint64_t id
    cdef readonly uint64_t match
    cdef readonly uint64_t next
    cdef readonly int state
    cdef readonly uint64_t pending_snapshot
    cdef readonly uint64_t sent_commit      # commit index of the last append, or of a later heartbeat
    cdef readonly bint patient              # the peer said that it may learn the commit index later
    cdef readonly uint64_t awaited          # index that reads of the peer wait for
    cdef readonly uint64_t read_ack         # newest heartbeat round that the peer answered
    cdef readonly bint recent_active        # a message came since the last check of the quorum
    cdef readonly bint active_before        # a message came between the last check and the one before
    cdef readonly bint probe_sent           # one append is on its way; wait for its answer or a heartbeat's
    cdef readonly bint waiting_load         # the log raised NotYetLoaded
    cdef readonly bint heartbeat_due        # a heartbeat sent by the clock is unanswered
    cdef readonly bint nudge                # send an append even if it is empty
    cdef readonly bint is_learner
    cdef readonly Inflights inflights
    cdef readonly uint64_t pace             # committed bytes that may be on their way at once
    cdef uint64_t answered                  # bytes answered since the last heartbeat
    cdef bint slowed                        # `pace` has held entries back since the last heartbeat
    cdef bint paused(self) noexcept
    cdef bint held(self, uint64_t committed) noexcept
    cdef uint64_t piece(self, uint64_t committed, uint64_t limit) noexcept
    cdef void adapt(self) noexcept
    cdef void enter(self, int state) noexcept
    cdef void become_probe(self) noexcept
    cdef void become_replicate(self) noexcept
    cdef void become_snapshot(self, uint64_t index) noexcept
    cdef bint maybe_update(self, uint64_t index) noexcept
    cdef bint maybe_decrease(self, uint64_t rejected, uint64_t hint) noexcept

cdef uint64_t majority_index(list peers, bint read_acks) except? 0
