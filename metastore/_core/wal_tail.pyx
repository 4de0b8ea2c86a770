"""The end of a write-ahead log, where it grows: appends gather in a group, the disk gets the group, and the group ends.

`storage/wal.py` has the whole log. This part is compiled because each group passes it, in the thread of the log's
owner. At a few thousand puts a second a put often has a group of its own, and the processor's caches are cold.

Whatever is rare is in Python, in methods that the subclass has: `_segment_of(group)` looks for a segment, or notes that
the group waits for it (None). `_collect()` takes in what the preparing thread has made. `_left(number)` closes the
segments up to this one. `_note_end(group)` and `_note_synced()` note for others than those who append how far the log
is written, and synced. `_fail(code, in_sync)` raises DiskFailed. `_read_event()` resets the eventfd.
`_little_room(left)` counts what is set aside.

This module is pure: the disk is a `LogDisk`, which the node and the simulator each have their own of.
"""

from metastore._core.wal_records cimport Group, Writer

QUICK_SYNC = 0.002
SLOW_GROUPS = 50


cdef class LogDisk:
    """Writes and syncs one group at a time, and reports the end of each to the log's owner."""

    cpdef int start(self, Group group, fd, double patience, size_t client) except -1:
        """Take over a group for the file `fd`. Call this only while the disk is not busy.

        patience: seconds for which the caller waits here until the group has ended. If it ends meanwhile (ENDED),
        `finished` and `has_failed` give the result at once, and nothing else reports it. client: a number for whoever
        waits for the group."""
        raise NotImplementedError

    cpdef Group finished(self):
        """The group that has ended well since the last call, or None."""
        raise NotImplementedError

    cpdef bint has_failed(self) except -1:
        """Whether a write or a sync has failed. Nothing is written after that."""
        raise NotImplementedError

    cpdef bint has_ended(self) except -1:
        """Whether a group was handed over that has ended, and that `finished` has not returned."""
        raise NotImplementedError

    cpdef bint listen(self, bint wanted) except -1:
        """Say whether the end of a group is to be reported, from now on and until the next call; at first it is. A
        failure is reported in any case.

        If reports are wanted again, the group may have ended without one. In that case the answer is True, and the
        owner takes the group in."""
        raise NotImplementedError


cdef class LogTail:
    """See above. durable: the highest append number known to be on disk, or, with a lag, that may be acknowledged.
    durable_commit: the highest commit index that `save_commit` is known to have synced, or that was recovered. groups:
    how many have ended. edge_triggered: the owner is told of each write to the eventfd, so `poll` need not read it.
    tells_all: the end of each group is reported, whoever waits for it.

    quick_sync: a caller that is alone waits for the disk for so many seconds. After a sync that took longer it does not
    wait for the following SLOW_GROUPS groups.
    """

    def __init__(self, folder, Writer writer not None, LogDisk disk not None, preparer, bint lagging):
        self._folder = folder
        self._writer = writer
        self._disk = disk
        self._preparer = preparer
        self._results = preparer.results
        self._lagging = lagging
        self._snapshots, self._commits = [], []
        self._proven = self._quick = True
        self._written_segment, self._written_end = writer.generation >> 32, writer.position
        self.durable_commit = writer.state.hard_commit
        self.quick_sync = QUICK_SYNC

    @property
    def idle(self):
        """Whether nothing is in flight and nothing waits for a segment."""
        return not self._disk.busy and not self._stalled

    def append(self, uint64_t number, images, hard_state, bint must_sync=True):
        """Copy entry images (bytes-like, joined, or None) and a hard state (or None) into the group being built.

        `poll` reports `number` when it is durable. An entry index at or below the last one overwrites the suffix. With
        must_sync=False the append goes out with the next group. Raises DiskFailed after a failure, FormatError for a
        gap.
        """
        if self._failure is not None:
            raise self._failure
        self._writer.append(number, images, hard_state, must_sync, False)

    def submit(self, size_t writer=0):
        """Hand the queued group to the disk if it is idle. Raises DiskFailed after a failure.

        `writer`: a number for who waits if the caller has nothing to do until this is durable, else 0. A quick disk is
        then awaited right here, for `quick_sync` seconds at most. Return whether to `settle` at once.
        """
        if self._failure is not None:
            raise self._failure
        if self._disk.busy:
            return False
        return self.begin(self.quick_sync if writer and self._quick else 0.0, writer) == ENDED

    cdef int begin(self, double patience, size_t client) except -1:
        cdef Group group = self._writer.peek()
        cdef int became
        if group is None:
            self._stalled = False
            return NOT_WAITED
        if group.generation != self.generation or group.offset + group.size > self.size:
            segment = self._segment_of(group)
            if segment is None:
                return NOT_WAITED
            self.generation, self.size, self.fd = group.generation, segment.size, segment.fd
        self._stalled = False
        if group.offset > self.size // 4 * 3:
            # No group shall wait for the next segment, so its remaining zeros are left out.
            self._preparer.urgent = True
        self._writer.take()
        became = self._disk.start(group, self.fd, patience, client)
        if became == IN_VAIN:
            self._quick = False
            self.quick_again = self.groups + SLOW_GROUPS
        return became

    def poll(self, bint start=True):
        """Take in the finished group, start the next one, and return the highest durable number. With `start` false the
        next group is not started, because the caller has more to append to it and submits then.

        Raises DiskFailed if a write or a sync failed; all later calls then fail, too.
        """
        if not self.edge_triggered:
            self._read_event()
        if self._failure is not None:
            raise self._failure
        if self._results:
            self._collect()
        self.settle()
        if start and not self._disk.busy:
            self.begin(0.0, 0)
        return self.durable

    cpdef uint64_t settle(self) except? 0:
        """Take in the group that `submit` waited for. Returns the highest durable number. Raises DiskFailed."""
        cdef Group group
        if self._disk.has_failed():
            self._fail(*self._disk.failed)
        group = self._disk.finished()
        if group is not None:
            self.end(group)
        if self._lagging:
            self._note_synced()
        return self.durable

    cdef int end(self, Group group) except -1:
        cdef uint64_t number = group.generation >> 32, before = self._written_segment
        self.groups += 1
        if not self._quick and self.groups >= self.quick_again:
            self._quick = True
        self._written_segment, self._written_end = number, group.offset + group.size
        if number != before:
            self._left(before)
        self._proven = not group.content
        if self._lagging or self._snapshots or self._commits:
            self._note_end(group)
        self._writer.recycle(group)
        self.durable = self._writer.next_before()
        return 0

    cpdef bint has_ended(self) except -1:
        """Whether a group has ended that was not taken in. Some ends are not reported, see `listen`."""
        return self._disk.has_ended()

    cpdef bint listen(self, bint wanted) except -1:
        """Say whether anybody waits for the end of the group that is being written, except for the log itself. If
        nobody does, the end is not reported, and the owner takes the group in when something else wakes it. Return
        whether somebody waits and the group has ended already, perhaps without a report.

        The log itself waits where another group follows, and where the group holds what others look for: a snapshot
        position or a commit index."""
        return self._disk.listen(wanted or self.tells_all or self._writer.pending_sync > 0 or bool(self._snapshots)
                                 or bool(self._commits))

    cpdef room(self, int64_t enough):
        """The bytes that clients' writes may still take, or None if these are `enough` or more.

        They count what is set aside for the log and, unless the last attempt to set some aside failed, the disk's free
        bytes. The result may be below 0, by up to `reserve`.
        """
        cdef int64_t left = 0
        if not self._full:
            # A snapshot may have taken more than what was left for it. The room that is set aside is there all the same.
            left = max(left, <int64_t>self._folder.free - <int64_t>self._folder.spare)
        if left >= enough:
            return None
        left = self._little_room(left)
        return None if left >= enough else left
