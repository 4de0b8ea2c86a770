"""Entries and snapshots that handed-out Readies will make durable, and the messages that must wait for that (Raft
paper, figure 2: "updated on stable storage before responding"). This is bookkeeping only: RawNode decides which
message depends on which Ready.
"""

from libc.stdint cimport uint64_t

from metastore._core.raft_types cimport MSG_APP_RESP, Message


cdef class Claim:
    """See raft_promises.pxd."""


cdef class Held:
    """See raft_promises.pxd."""


cdef bint covers(Message m, Message before) except -1:
    """Whether this append response says everything that the earlier one says."""
    return (m.type == MSG_APP_RESP and before.type == MSG_APP_RESP and m.to == before.to and m.term == before.term
            and not m.reject and not before.reject and m.index >= before.index)


cdef class Promises:
    """The promises of one node; see raft_promises.pxd."""

    def __cinit__(self):
        self.claims, self.held = [], []

    cdef int claim(self, uint64_t number, uint64_t last_index, uint64_t last_term, uint64_t snapshot) except -1:
        """Note that Ready `number` carries entries up to this one and the snapshot of this index (0: none)."""
        cdef Claim claim = Claim.__new__(Claim)
        claim.number = number
        claim.last_index = last_index
        claim.last_term = last_term
        claim.snapshot_index = snapshot
        self.claims.append(claim)
        return 0

    cdef int cut(self, uint64_t index) except -1:
        """Note that the log was cut at `index`. Readies that are on their way can no longer make the old entries
        durable. Even if the same entry comes again, their report concerns bytes that another write will replace
        (ABA)."""
        cdef Claim claim
        for claim in self.claims:
            if claim.last_index >= index:
                claim.last_index = index - 1
        return 0

    cdef Claim kept(self, uint64_t number):
        """Remove and return the oldest promise that a durable Ready `number` keeps; None if there is no other."""
        cdef Claim claim
        if not self.claims:
            return None
        claim = <Claim>self.claims[0]
        if claim.number > number:
            return None
        del self.claims[0]
        return claim

    cdef int hold(self, uint64_t need, Message m) except -1:
        """Hold a message until Ready `need` is durable. An append response replaces an earlier one that it covers."""
        cdef Held held
        if m.type == MSG_APP_RESP and not m.reject and self.held:
            held = <Held>self.held[len(self.held) - 1]
            if held.need == need and covers(m, held.message):
                held.message = m
                return 0
        held = Held.__new__(Held)
        held.need = need
        held.message = m
        self.held.append(held)
        return 0

    cdef Message freed(self, uint64_t number, uint64_t term):
        """Remove and return the oldest message that may leave now that Ready `number` is durable; None if there is no
        other. Answers of terms before `term` are dropped."""
        cdef Held held
        while self.held:
            held = <Held>self.held[0]
            if held.need > number:
                break
            del self.held[0]
            if held.message.term >= term:
                return held.message
        return None
