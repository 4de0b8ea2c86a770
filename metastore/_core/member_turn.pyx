"""The end of a member's turn: everything that came in goes on, and every answer is sent.

It is compiled because each turn passes it, and nearly all of it is to find out that a part has nothing to do. Each part
says so in a field that it changes itself, and inherits these fields from here. `member/running.py` has the member, and
what is rare: `_begin_drain`, `_announce`, `_log_leader`, `_publish`, `_turn_at(due)` and `_end_removed`.
"""

from metastore._core.wal_tail cimport LogTail


cdef class WatchingFields:
    """Fields of `Watching`."""


cdef class LeasingFields:
    """Fields of `Leasing`."""


cdef class TasksFields:
    """Fields of `Tasks`."""


cdef class MembershipFields:
    """Fields of `MembershipClient`."""


cdef class AlarmsFields:
    """Fields of `Alarms`."""


cdef class TicksFields:
    """Fields of `Ticks`."""


cdef class GatheringFields:
    """Fields of `Gathering`."""


cdef class SpaceTurn:
    """The base of `Space`. `_tell(left)` tells the KV server how much room there is."""

    def __init__(self, LogTail wal not None, most_in_flight):
        self._wal = wal
        self._most_in_flight = most_in_flight
        self._tight = ""

    cpdef turn(self):
        """Tell the KV server how much clients may write until the next turn."""
        left = self._wal.room(self._most_in_flight)
        if left is not None or self._limited or self._tight:
            self._tell(left)


cdef class FrontTurn:
    """The base of `Front`. It takes requests, and bounds what is in flight."""

    cpdef handle(self, list requests):
        """Take the requests that came in on one connection."""
        if self._membership.learner:
            requests = self._for_learner(requests)
        if not self._driver.leader_id:
            requests = self._without_leader(requests)
        for request in self._kv.handle(requests, self._loop.now()):
            self._services.dispatch(request)

    cpdef bint crowded(self) except -1:
        """Whether at least half of the requests or bytes that may be in flight are in flight."""
        return self.beyond(2)

    cpdef balance(self):
        """Stop reading from all clients while more than three quarters of what may be in flight is in flight."""
        if self.beyond(3):
            self.listener.pause_all()
        elif self.listener.paused and not self.beyond(2):
            self.listener.resume_all()

    cdef bint beyond(self, size_t quarters) except -1:
        """Whether that many quarters are in flight: at least two, or more than three."""
        cdef BatchProposer proposer = self._proposer
        cdef size_t requests = proposer.queued + proposer.inflight
        cdef size_t nbytes = proposer.queued_bytes + proposer.inflight_bytes
        if quarters == 2:
            return requests * 2 >= self.most_requests or nbytes * 2 >= self.most_bytes
        return requests * 4 > self.most_requests * 3 or nbytes * 4 > self.most_bytes * 3


cdef class MemberTurn:
    """The base of `member.running.RunningMember`, which makes its fields."""

    def _on_disk(self, int events):
        """The log's disk has news."""
        self.driver.on_disk(self.loop.now())

    cpdef _turn(self):
        """End a turn of the loop."""
        cdef double now
        if self.ended_by is not None and self.drain is None:
            return  # nothing more is sent, see `end`
        if self._stopping.opened and self.drain is None:
            self._begin_drain()
        now = self.loop.now()
        self.send(now, self.before(now))
        self.after(now)

    cdef bint before(self, double now) except -1:
        """Go on with what came in. Return whether requests are left that can go on at once."""
        cdef bint left = False
        cdef LeasingFields leasing = self.leasing
        if self.watching.ready and self.watching.turn(now):
            left = True
        if (leasing.ready or leasing.lifetimes) and leasing.gather(now):
            left = True
        self.replica.turn(now, self.space.full and self.space.disk_full)
        if leasing.gathering and leasing.turn():
            left = True
        if self.tasks.ready and self.tasks.turn():
            left = True
        if self.driver.applier.alarms.raised != self.alarms.logged:
            self.upkeep.turn()
        if not self.ready:
            self._announce(now)
        elif not self.membership.settled:
            self._publish(now)
        if self.driver.leader_id != self._logged_leader:
            self._log_leader()
        return left

    cdef int send(self, double now, bint requests_left) except -1:
        """Send what clients and peers are to get, and see when the next turn must come."""
        cdef bint streaming
        flush = self.replica.send
        flush()
        streaming = bool(self.backups.running) and self.backups.turn(now)
        if streaming:
            flush()
        transport = self.peering.transport
        if transport is not None:
            transport.flush()
        if self.kv.deferred:
            self.kv.serve_deferred()
            flush()
        due = now if streaming or requests_left else self.replica.next_turn(now)
        if due is not None:
            self._turn_at(due)
        return 0

    cdef int after(self, double now) except -1:
        """Look after what is there: the room for more, a stop, when the clients are looked at, the rest, readers."""
        cdef BatchProposer proposer = self.driver.proposer
        if proposer.queued or proposer.inflight or self.front.listener.paused:
            self.front.balance()
        self.space.turn()
        if self.kv.sweep_pending:
            self.upkeep.sweep.turn()
        if self.membership.removed and self.drain is None:
            self._end_removed()
        if self.drain is not None:
            self.drain.turn(now)
        if proposer.inflight > 1 or self.gathering.flying or self.loop.gather:
            self.gathering.turn()
        if self.ticks.rests:
            self.ticks.turn(now)
        if self.direct is not None:
            self.direct.open = self.may_read()
        return 0

    cdef bint may_read(self) except -1:
        """Whether other threads may read the store until the next turn, see `_core/kv_direct`."""
        cdef DriverPath driver = self.driver
        if not self.ready or self.drain is not None or self.ended_by is not None or driver.leader_id != driver.raw.id:
            return False
        state = driver.roster.conf_state
        return (state.voters == self._alone and not state.voters_outgoing
                and driver.applier.applied_term == driver.term)
