"""The leader's clock for leases: when each lease ends, and whose remaining time goes into the log. Pure.

Only the leader knows how long a lease still lives. A member that begins to lead gives each lease the remaining time that
the log has of it (its checkpoint), else its whole TTL, and `extend` seconds on top. From then on a renewal only moves the
deadline in the lease's clock: the heap is put right when the old deadline is reached. So a renewal costs a look into a
table.

A lease that lives longer than `checkpoint_after` has its remaining time put into the log that often, or it would live for
ever if leaders changed often. When such a lease is renewed, the checkpoint must be cleared in the log before the client
is told, for the next leader would end the lease too early. `renew` says so (CLEARING), and `news` tells when it has
happened. A lease whose time is over cannot be renewed any more; who asks is answered when it is revoked (ENDING).

The owner hands the ids of `due` and the pairs of `checkpoints` to the log, in the order in which it got them. The applied
state tells this object what became of them (`changed`, `reloaded`). Nothing here looks at a clock: `now` is in seconds and
only grows.

Leases whose time is over are taken ORDERED at a time, the oldest first, and these are handed out by their ids, because the
notes of the RocksDB engine about removed records (`gaps`) cost less for neighbours. 100,000 leases that ended within a
second had been granted over some 25 seconds, so each entry of the log changed about 25 places of the engine.

The clocks stand in SHARDS dicts, each of which grows by itself, and what is to be done with a lease is a flag of its clock.
One dict of all clocks took 30 ms to grow at 350,000 leases. A former leader's clocks are freed part by part in `step`, which
took 30 ms for 400,000.
"""

from collections import deque

cimport cython
from libc.math cimport ceil
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, realloc

cdef enum:
    ENDED = 1                # it was handed out by `due`
    MARKED = 2               # the log has a checkpoint of it
    MARKING = 4              # a checkpoint was handed out and is not applied
    CLEARED = 8              # the clearing of its checkpoint was asked for and is not applied
    ANY_MARK = 14
    TO_CLEAR = 16            # it stands in `clears`
    WATCHED = 32             # somebody waits for its revocation or cleared checkpoint
    GONE = 64                # it has no place among the clocks any more
    SHARDS = 256
    ORDERED = 2000           # to sort them takes 0.3 ms
    POPS = 4000              # places of the heap that one call puts right: a millisecond
    FIRST_ROOM = 64

cdef double NEVER = 1e300
cdef double AGAIN = 10.0     # seconds until a lease is handed out again that is still there
cdef double ROUNDING = 1e-6  # sums of times are not exact

#: What `renew` gives in place of a TTL. UNKNOWN: there is no such lease. ENDING, CLEARING: see above.
UNKNOWN = 0
ENDING = -1
CLEARING = -2

CHECKPOINT_AFTER = 300.0     # seconds


cdef inline Py_ssize_t shard_of(int64_t ident) noexcept nogil:
    return <Py_ssize_t>((<uint64_t>ident * <uint64_t>0x9E3779B97F4A7C15) >> 56)


def id_of(Clock clock not None):
    return clock.id


@cython.final
@cython.no_gc
cdef class Clock:
    """One lease. The garbage collector does not track clocks, which are in no cycle."""
    cdef int64_t id, ttl                 # seconds
    cdef double deadline                 # when the lease ends
    cdef double mark                     # when its remaining time goes into the log; NEVER: not at all
    cdef double when                     # the time under which it stands in the heap
    cdef Py_ssize_t at                   # its place in the heap; -1: none
    cdef uint8_t flags


cdef class Lessor:
    """The clock of all leases of one member.

    `leases` is the applied state; it offers ttl(id), remaining(id), part_count and part(n). `checkpoint_after`: seconds.
    """
    cdef object leases
    cdef double checkpoint_after
    cdef readonly bint leading           # the methods about time have an answer
    cdef list shards                     # dicts, id -> Clock; empty while this member does not lead
    cdef Py_ssize_t size                 # clocks in all of them
    cdef list dropped                    # shards and queues of earlier times that are not freed yet
    cdef void** heap
    cdef Py_ssize_t count, room
    cdef double began, extend            # when this member began to lead, and what leases get on top then; seconds
    cdef readonly bint reading           # some leases have no clock yet
    cdef list unread                     # ids of some of them, and of others
    cdef int parts_left                  # parts of the leases that were not looked at
    cdef list fresh                      # ids that were granted since the last call with the time
    cdef object over                     # deque of clocks whose time is over, not handed out
    cdef list next_over                  # those of them that come next, the last one first
    cdef double oldest                   # the earliest deadline among these
    cdef object marks                    # deque of clocks whose checkpoint is due
    cdef object clears                   # deque of clocks whose checkpoint must be cleared in the log
    cdef list news                       # ids of WATCHED clocks that it has happened to
    cdef readonly Py_ssize_t ending      # leases that were handed out by `due` and are still there
    cdef readonly uint64_t expired_total

    def __init__(self, leases, double checkpoint_after=CHECKPOINT_AFTER):
        self.leases = leases
        self.checkpoint_after = checkpoint_after
        self.shards, self.dropped = [], []
        self.over, self.marks, self.clears = deque(), deque(), deque()
        self.forget()

    def __dealloc__(self):
        free(self.heap)

    # ---- leading

    cdef int forget(self) except -1:
        self.dropped += [old for old in self.shards + [self.over, self.marks, self.clears] if old]
        self.shards = [{} for _ in range(SHARDS)]
        self.count = self.size = 0
        self.unread, self.fresh, self.news = [], [], []
        self.over, self.marks, self.clears = deque(), deque(), deque()
        self.next_over = []
        self.ending = 0
        self.reading = False
        return 0

    def lead(self, double now, double extend):
        """This member leads and has applied everything that earlier leaders have logged. `step` must follow."""
        self.forget()
        self.leading = True
        self.began, self.extend = now, extend
        self.parts_left = self.leases.part_count
        self.reading = True

    def follow(self):
        """This member does not lead any more."""
        self.leading = False
        self.forget()

    def step(self, double now, Py_ssize_t most):
        """Start the clocks of leases that were granted, and of `most` of those that were there when this member began to
        lead, or free as many of an earlier time. Whether some are left."""
        cdef Py_ssize_t done = self.free_dropped(most)
        if self.fresh:
            self.settle(now)
        while self.reading and done < most:
            done += 1
            if self.unread:
                self.clock(self.unread.pop())
            elif self.parts_left:
                self.parts_left -= 1
                self.unread = self.leases.part(self.parts_left)
            else:
                self.reading = False
        return self.busy

    cdef Py_ssize_t free_dropped(self, Py_ssize_t most) except -1:
        """Free about `most` of what an earlier time has left. How many it were."""
        cdef Py_ssize_t done = 0
        while self.dropped and done < most:
            done += 1
            old = self.dropped[len(self.dropped) - 1]
            if type(old) is dict:
                done += len(<dict>old)
                self.dropped.pop()
            elif old:
                old.popleft()
            else:
                self.dropped.pop()
        return done

    @property
    def busy(self):
        return self.reading or bool(self.dropped) or bool(self.fresh)

    # ---- the applied state (listener of Leases)

    def changed(self, list news not None):
        """See Listener."""
        cdef str what
        if not self.leading:
            return
        for what, ident, value in news:
            if what == "revoked":
                self.revoked(ident)
            elif what == "granted":
                self.granted(ident, value)
            else:
                self.checkpointed(ident, value)

    cpdef granted(self, ident, ttl):
        """A lease was granted."""
        if self.leading:
            self.fresh.append(ident)

    cpdef revoked(self, ident):
        """A lease is gone."""
        cdef Clock clock
        if not self.leading:
            return
        clock = (<dict>self.shards[shard_of(ident)]).pop(ident, None)
        if clock is None:
            return
        self.size -= 1
        self.take_out(clock)
        clock.flags |= GONE
        if clock.flags & ENDED:
            self.ending -= 1
        self.tell(clock)

    cpdef checkpointed(self, ident, remaining):
        """The log has a remaining time of a lease, in seconds; 0: none any more."""
        cdef Clock clock
        if not self.leading:
            return
        clock = self.get(ident)
        if clock is None:
            return
        if remaining:
            clock.flags = (clock.flags & ~MARKING) | MARKED
            return
        clock.flags &= ~(MARKED | CLEARED)
        if not clock.flags & ENDED:
            self.tell(clock)

    def reloaded(self):
        """All leases were replaced by those of another state."""
        if self.leading:
            self.lead(self.began, self.extend)

    cdef int tell(self, Clock clock) except -1:
        """Make news of a clock that somebody waits for."""
        if clock.flags & WATCHED:
            clock.flags &= ~WATCHED
            self.news.append(clock.id)
        return 0

    # ---- clocks

    cdef Clock get(self, int64_t ident):
        """Return a clock that runs, or None."""
        return (<dict>self.shards[shard_of(ident)]).get(ident)

    cdef int settle(self, double now) except -1:
        """Start the clocks of leases that were granted."""
        fresh, self.fresh = self.fresh, []
        for ident in fresh:
            ttl = self.leases.ttl(ident)
            if ttl and self.get(ident) is None:
                self.start(ident, ttl, now, 0, 0)
        return 0

    cdef Clock clock(self, object ident):
        """Return the clock of a lease, or None. A lease that was there when this member began to lead gets one now."""
        cdef Clock found = self.get(ident)
        if found is None and self.reading:
            ttl = self.leases.ttl(ident)
            if ttl:
                self.start(ident, ttl, self.began, self.extend, self.leases.remaining(ident))
                found = self.get(ident)
        return found

    cdef int start(self, object ident, int64_t ttl, double now, double extra, int64_t left) except -1:
        cdef Clock clock = Clock.__new__(Clock)
        clock.id, clock.ttl, clock.at = ident, ttl, -1
        clock.flags = MARKED if left else 0
        if not left:
            left = ttl
        clock.deadline = now + left + extra
        clock.mark = now + self.checkpoint_after if left > self.checkpoint_after else NEVER
        (<dict>self.shards[shard_of(clock.id)])[ident] = clock
        self.size += 1
        return self.push(clock, min(clock.deadline, clock.mark))

    def renew(self, list idents, double now):
        """Renew leases. Return for each its TTL in seconds, or UNKNOWN, ENDING, CLEARING.

        Who got ENDING or CLEARING renews again when `take_news` has the lease."""
        cdef list found = []
        if self.fresh:
            self.settle(now)
        for ident in idents:
            found.append(self.renew_one(ident, now))
        return found

    cdef int64_t renew_one(self, object ident, double now) except? -100:
        cdef Clock clock = self.get(ident)
        if clock is None:
            clock = self.clock(ident)
            if clock is None:
                return 0
        if clock.deadline <= now or clock.flags & ENDED:
            clock.flags |= WATCHED
            return -1
        clock.deadline = now + clock.ttl
        if clock.ttl > self.checkpoint_after:
            clock.mark = now + self.checkpoint_after
        if min(clock.deadline, clock.mark) < clock.when:
            # The deadline of a lease with a short TTL may have been later: it had extra time.
            self.take_out(clock)
            self.push(clock, min(clock.deadline, clock.mark))
        if not clock.flags & ANY_MARK:
            return clock.ttl
        if not clock.flags & CLEARED:
            clock.flags |= CLEARED
            self.clear(clock)
        clock.flags |= WATCHED
        return -2

    cdef int clear(self, Clock clock) except -1:
        if not clock.flags & TO_CLEAR:
            clock.flags |= TO_CLEAR
            self.clears.append(clock)
        return 0

    def remaining(self, ident, double now):
        """Seconds that a lease has left, whole ones; 0 if its time is over and it is still there, -1 if there is no
        such lease."""
        cdef Clock clock
        if self.fresh:
            self.settle(now)
        clock = self.clock(ident)
        if clock is None:
            return -1
        return <int64_t>max(0.0, clock.deadline - now + ROUNDING)

    def take_news(self):
        """Return the leases that were revoked, or whose checkpoint was cleared, since the last call; only those of which
        `renew` said ENDING or CLEARING."""
        news, self.news = self.news, []
        return news

    # ---- what goes into the log

    def due(self, double now, Py_ssize_t limit):
        """Return at most `limit` ids of leases to revoke. Until they are revoked they count as `ending`."""
        cdef Clock clock
        cdef list found = []
        if self.fresh:
            self.settle(now)
        self.advance(now)
        while len(found) < limit and (self.next_over or self.order()):
            clock = self.next_over.pop()
            if clock.flags & GONE:
                continue
            if not clock.flags & ENDED:
                clock.flags |= ENDED
                self.ending += 1
                self.expired_total += 1
            self.push(clock, now + AGAIN)
            found.append(clock.id)
        return found

    cdef bint order(self) except -1:
        """Take the next clocks that are over. Return whether there are any."""
        cdef Py_ssize_t n = min(<Py_ssize_t>len(self.over), <Py_ssize_t>ORDERED)
        if n:
            self.oldest = (<Clock>self.over[0]).deadline
            self.next_over = sorted([self.over.popleft() for _ in range(n)], key=id_of, reverse=True)
        return n > 0

    def late(self, double now):
        """Seconds since the end of the oldest of the leases that `due` gives next, by the last look at the clocks; 0 if
        there is none."""
        if self.next_over:
            return now - self.oldest
        return now - (<Clock>self.over[0]).deadline if self.over else 0.0

    def put_back(self, list idents):
        """The log has not taken these ids of `due`."""
        cdef Clock clock
        for ident in reversed(idents):
            clock = self.get(ident)
            if clock is not None:
                self.take_out(clock)
                if not self.next_over:
                    self.oldest = clock.deadline
                self.next_over.append(clock)

    def checkpoints(self, double now, Py_ssize_t limit):
        """Return at most `limit` pairs (id, remaining seconds) for the log; 0 clears what the log has."""
        cdef Clock clock
        cdef list found = []
        cdef int64_t left
        while self.clears and len(found) < limit:
            clock = self.clears.popleft()
            clock.flags &= ~TO_CLEAR
            if self.get(clock.id) is clock:
                found.append((clock.id, 0))
        if self.fresh:
            self.settle(now)
        self.advance(now)
        while self.marks and len(found) < limit:
            clock = self.marks.popleft()
            # A renewal has put the mark off.
            if clock.mark > now or clock.flags & ENDED or self.get(clock.id) is not clock:
                continue
            left = <int64_t>ceil(clock.deadline - now)
            clock.mark = now + self.checkpoint_after if left > self.checkpoint_after else NEVER
            if 0 < left < clock.ttl:
                clock.flags |= MARKING
                found.append((clock.id, left))
        return found

    def unlogged(self, list pairs):
        """The log has not taken these pairs of `checkpoints`."""
        cdef Clock clock
        for ident, remaining in pairs:
            clock = self.get(ident)
            if clock is None:
                continue
            if remaining:
                clock.flags &= ~MARKING
                clock.mark = 0
                self.marks.append(clock)
            else:
                self.clear(clock)

    def next_due(self):
        """When `due` or `checkpoints` have something (seconds); None: never."""
        if self.next_over or self.over or self.marks or self.clears:
            return self.began
        return (<Clock>self.heap[0]).when if self.count else None

    def __len__(self):
        return self.size

    # ---- the heap: each clock once, the earliest first; `when` is never later than deadline and mark

    cdef int advance(self, double now) except -1:
        """Sort out the clocks whose time in the heap has come."""
        cdef Clock clock
        cdef int pops = 0
        while self.count and (<Clock>self.heap[0]).when <= now and pops < POPS:
            pops += 1
            clock = <Clock>self.heap[0]
            self.take_out(clock)
            if clock.deadline <= now or clock.flags & ENDED:
                self.over.append(clock)
            elif clock.mark <= now:
                self.marks.append(clock)
                # `checkpoints` sets the next mark.
                self.push(clock, min(clock.deadline, now + self.checkpoint_after))
            else:
                self.push(clock, min(clock.deadline, clock.mark))
        return 0

    cdef int push(self, Clock clock, double when) except -1:
        cdef void* grown
        if self.count == self.room:
            grown = realloc(self.heap, max(<size_t>FIRST_ROOM, 2 * <size_t>self.room) * sizeof(void*))
            if grown == NULL:
                raise MemoryError
            self.heap = <void**>grown
            self.room = max(<Py_ssize_t>FIRST_ROOM, 2 * self.room)
        clock.when = when
        clock.at = self.count
        self.heap[self.count] = <void*>clock
        self.count += 1
        self.up(clock.at)
        return 0

    cdef void take_out(self, Clock clock) noexcept:
        cdef Py_ssize_t at = clock.at
        if at < 0:
            return
        clock.at = -1
        self.count -= 1
        if at < self.count:
            self.heap[at] = self.heap[self.count]
            (<Clock>self.heap[at]).at = at
            self.up(at)
            self.down(at)

    cdef void up(self, Py_ssize_t at) noexcept:
        cdef void* moved = self.heap[at]
        cdef double when = (<Clock>moved).when
        cdef Py_ssize_t above
        while at > 0:
            above = (at - 1) >> 1
            if (<Clock>self.heap[above]).when <= when:
                break
            self.heap[at] = self.heap[above]
            (<Clock>self.heap[at]).at = at
            at = above
        self.heap[at] = moved
        (<Clock>moved).at = at

    cdef void down(self, Py_ssize_t at) noexcept:
        cdef void* moved = self.heap[at]
        cdef double when = (<Clock>moved).when
        cdef Py_ssize_t below
        while True:
            below = 2 * at + 1
            if below >= self.count:
                break
            if below + 1 < self.count and (<Clock>self.heap[below + 1]).when < (<Clock>self.heap[below]).when:
                below += 1
            if (<Clock>self.heap[below]).when >= when:
                break
            self.heap[at] = self.heap[below]
            (<Clock>self.heap[at]).at = at
            at = below
        self.heap[at] = moved
        (<Clock>moved).at = at
