"""One turn of a replica: the parts that have something to do are called, in their order.

It is compiled because each turn passes it, in the node and in the simulator alike, and nearly all of a turn is to find
out that a part has nothing to do. `member/assembly.py` puts the replica together. The parts that say so in fields
inherit these from here.
"""

from libc.stdint cimport uint64_t

from metastore._core.kv_server import LATE_UNITS

cdef double LOOK_AGAIN = 0.01  # seconds between two looks at watch streams that took no more
# Seconds until a batch is offered again that neither the core nor the leader's connection took.
cdef double RETRY = 0.01
BATCH_RETRY = RETRY
cdef Py_ssize_t LATE = LATE_UNITS


cdef class RoundsFields:
    """Fields of `LeaseRounds`."""


cdef class KeeperFields:
    """Fields of whoever keeps the snapshots of a replica. A fresh keeper is asked in each turn."""

    cpdef bint idle(self, double now, bint pressed, uint64_t applied) except -1:
        """Whether `turn` would have nothing to do; `applied` is the last applied entry."""
        if pressed or self._pressed or self._releasing or self._sweeping or self._flushed_to or self._waiting:
            return False
        return applied < self._look_at or self._thread is not None or now < self._not_before


cdef class ReplicaTurn:
    """The base of `member.assembly.Replica`, which makes its fields."""

    cpdef turn(self, double now, bint disk_full=False):
        """Go on with everything that came in, at `now` (seconds, monotonic).

        `disk_full` says that the log has no room left on the disk.
        """
        cdef DriverPath driver = self.driver
        cdef KVServer kv = self.kv
        cdef Py_ssize_t late = LATE
        if (self.watches.count > 0) != driver.watched:
            driver.set_watched(self.watches.count > 0)
        if not self.leases_rest():
            self.leases.gather(now)
        driver.pump(now)
        # The pump may have changed the role, and granted leases.
        if not self.leases_rest() or self._lessor.busy:
            self.leases.turn(now)
        # A leader refuses at admission what the raised alarms would refuse when it is applied.
        kv.barred = self.applier.barred if driver.leader_id == self.raw.id else 0
        # What is left of the turn costs calls to find out, and most turns have nothing of earlier ones.
        if kv.queue.busy() or self.watches.feeds:
            self.send()
        if kv.queue.busy():
            late = self._budgets.part(LATE)
        self._more = kv.serve_late(self._budgets.serve, late)
        if not self.watches.idle:
            self.turn_watches(now)
        if kv.sweep_pending or not self.snapshots.idle(now, disk_full, self.applier.applied_index):
            self.snapshots.turn(now, disk_full)

    cdef bint leases_rest(self) except -1:
        cdef tuple rest = self.leases.rests_in
        return (rest is not None and <uint64_t>rest[0] == self.driver.leader_id and <uint64_t>rest[1] == self.driver.term
                and self.store.leases.count == 0)

    cdef int turn_watches(self, double now) except -1:
        # To look at the streams that take no more costs time for each, and the sockets make many turns.
        cdef bint look = now >= self._next_look
        if look:
            self._next_look = now + LOOK_AGAIN
        if self.watches.step(self._budgets.part(self._budgets.watch), look):
            self._more = True
        self._unseen = not look and self.watches.stuck
        return 0

    cpdef next_turn(self, double now):
        """When the next turn must come although nothing comes in (seconds, `now` for at once); None if it need not."""
        cdef DriverPath driver = self.driver
        if self._more or driver.backlog or self.kv.resumed:
            return now
        first = None if self.leases.rests_in is not None else self.leases.next_turn(now)
        if self._unseen:
            first = earlier(first, self._next_look)
        first = earlier(earlier(first, driver.retry_at), driver.reads.begin_at)
        first = earlier(first, driver.tell_at)
        due = driver.proposer.next_deadline()
        if due is None:
            return first
        if driver.log.listen(True):
            # It came in after the driver had told the log that nobody waits for the disk.
            return now
        if <double>due <= now:
            # A batch that was due at `now` and is still here waits for a leader. Looking again at once would be a busy
            # loop.
            due = now + RETRY
        return earlier(first, due)


cdef inline object earlier(one, other):
    """The earlier of two times; None is never."""
    if other is None or (one is not None and <double>one <= <double>other):
        return one
    return other
