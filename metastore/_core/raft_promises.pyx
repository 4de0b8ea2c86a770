"""What the Readies that are out promised to make durable, and the messages that must not leave before (Raft paper,
figure 2: "updated on stable storage before responding"). Pure bookkeeping: RawNode says what depends on what.
"""

from libc.stdint cimport uint64_t

from metastore._core.raft_types cimport MSG_APP_RESP, Message


cdef class Claim:
    """See promises.pxd."""


cdef class Held:
    """See promises.pxd."""


cdef bint covers(Message m, Message before) except -1:
    """Whether this append response says all that the one before it says."""
    return (m.type == MSG_APP_RESP and before.type == MSG_APP_RESP and m.to == before.to and m.term == before.term
            and not m.reject and not before.reject and m.index >= before.index)


cdef class Promises:
    """The promises of one node; see promises.pxd."""

    def __cinit__(self):
        self.claims, self.held = [], []

    cdef int claim(self, uint64_t number, uint64_t last_index, uint64_t last_term, uint64_t snapshot) except -1:
        """Ready `number` carries entries up to this one and the snapshot of this index (0: none)."""
        cdef Claim claim = Claim.__new__(Claim)
        claim.number = number
        claim.last_index = last_index
        claim.last_term = last_term
        claim.snapshot_index = snapshot
        self.claims.append(claim)
        return 0

    cdef int cut(self, uint64_t index) except -1:
        """The log was cut at `index`: Readies that are out can no longer make durable what was there. Even if the
        same entry comes again, their report is about bytes that another write is going to replace (ABA)."""
        cdef Claim claim
        for claim in self.claims:
            if claim.last_index >= index:
                claim.last_index = index - 1
        return 0

    cdef Claim kept(self, uint64_t number):
        """Ready `number` is durable -> the oldest promise that it keeps, taken off the list; None: no other."""
        cdef Claim claim
        if not self.claims:
            return None
        claim = <Claim>self.claims[0]
        if claim.number > number:
            return None
        del self.claims[0]
        return claim

    cdef int hold(self, uint64_t need, Message m) except -1:
        """Keep a message until Ready `need` is durable. An append response takes the place of one that it covers."""
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
        """Ready `number` is durable -> the oldest message that may go, taken off the list; None: no other. Answers
        from a term before `term` are over and dropped."""
        cdef Held held
        while self.held:
            held = <Held>self.held[0]
            if held.need > number:
                break
            del self.held[0]
            if held.message.term >= term:
                return held.message
        return None
