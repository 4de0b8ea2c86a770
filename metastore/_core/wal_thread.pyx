"""The disk thread of the log. It waits for a group, writes and syncs it, and reports that through an eventfd.

The thread never takes the GIL once it runs. One group is in flight at a time. The main thread hands it over with
`start`. When the eventfd becomes readable, the group has ended, and `finished` and `failed` give the result. After a
failed write or sync the thread does nothing any more: after a failed fsync the page cache may be wrong about what is on
disk, so nothing is ever tried again on that file.

The end of a group is not always worth a turn of the main thread's loop. The main thread says by `listen` whether it waits
for it. No end that it waits for is lost: it first says so and then looks at the status, while the thread first changes the
status and then looks whether the main thread waits. Both use sequentially consistent operations, so at least one of them
sees what the other has done.

A main thread that has nothing else to do may wait for a moment until its group is finished. This saves the way through
the eventfd and its loop. The main thread never writes or syncs by itself, because a disk that stands still would then stop
the loop.

With a sync interval a group is finished when it is written, and the thread syncs later. It does not write while it
syncs. The bytes that are reported and not synced are therefore never more than those reported within one interval. A later
sync that went well is reported only if it was requested (`sync_now`), because nobody waits for any other.
"""

from libc.errno cimport EINTR, EIO, ENOSPC, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from metastore._core.idle_poll cimport IdlePollers, ms_gate, ms_gate_open, ms_gate_wait, ms_now
from metastore._core.wal_records cimport Group
from metastore._core.wal_tail cimport ENDED, IN_VAIN, NOT_WAITED, LogDisk

cdef extern from "unistd.h" nogil:
    ssize_t pwrite(int, const void*, size_t, int64_t)
    ssize_t c_write "write"(int, const void*, size_t)
    int fdatasync(int)
    int usleep(unsigned int)
    int access(const char*, int)
    int pause()

cdef extern from "sys/types.h" nogil:
    ctypedef int pid_t

cdef extern from "signal.h" nogil:
    int SIGKILL
    int kill(pid_t, int)

cdef extern from "unistd.h" nogil:
    pid_t getpid()

cdef extern from *:
    """
    #define ms_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define ms_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    #define ms_swap(p, v) __atomic_exchange_n((p), (v), __ATOMIC_ACQ_REL)
    #define ms_load_ordered(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #define ms_store_ordered(p, v) __atomic_store_n((p), (v), __ATOMIC_SEQ_CST)
    """
    int ms_swap(int*, int) nogil
    int ms_load(int*) nogil
    void ms_store(int*, int) nogil
    int ms_load_ordered(int*) nogil
    void ms_store_ordered(int*, int) nogil
    uint64_t ms_load64 "ms_load"(uint64_t*) nogil
    void ms_store64 "ms_store"(uint64_t*, uint64_t) nogil

# Failpoint actions, with the numbers of metastore/failpoints.py.
cdef enum:
    POINT_OFF = 0
    POINT_PANIC = 1
    POINT_SLEEP = 2
    POINT_ERROR = 3
    POINT_BLOCK = 4

cdef enum:
    BEFORE_WRITE = 0
    AFTER_WRITE = 1
    BEFORE_SYNC = 2
    AFTER_SYNC = 3
    POINTS = 4

# The failpoints of this thread, in this order.
POINT_NAMES = ("wal.before_write", "wal.after_write", "wal.before_sync", "wal.after_sync")

cdef enum:
    IDLE = 0
    BUSY = 1
    DONE = 2
    FAILED = 3

cdef enum:
    PATH_SIZE = 1024

cdef struct Point:
    int action
    int skip            # hits that pass before the action begins
    int error           # errno for POINT_ERROR
    unsigned int micros
    char[PATH_SIZE] path


cdef inline double seconds() noexcept nogil:
    return <double>ms_now() * 1e-9


cdef int hit(Point* point) noexcept nogil:
    """Perform the action of the failpoint. Returns an errno for POINT_ERROR, otherwise 0."""
    cdef int action = ms_load(&point.action)
    if action == POINT_OFF:
        return 0
    if point.skip > 0:
        point.skip -= 1
        return 0
    if action == POINT_PANIC:
        kill(getpid(), SIGKILL)
        while True:
            pause()
    if action == POINT_SLEEP:
        usleep(point.micros)
    elif action == POINT_ERROR:
        return point.error if point.error else EIO
    while action == POINT_BLOCK:
        if point.path[0] != 0 and access(point.path, 0) != 0:
            break
        usleep(500)
        action = ms_load(&point.action)
    return 0


cdef class DiskThread(LogDisk):
    """The loop of the thread and the state that the main thread shares with it. `event` is the eventfd to write to.
    `pollers` are informed when the main thread waits for its group, and help both threads to wake each other.

    With sync_interval 0 a group is finished when it is synced. Otherwise a group that is not firm is finished when it
    is written, and the thread syncs at most `sync_interval` seconds after the first unsynced byte was written. If a
    group would bring the bytes that are reported and not synced above max_unsynced, it is synced, together with all
    before it, before it is finished.
    """
    cdef ms_gate work           # opened when there is something to do
    cdef ms_gate done           # opened when the group that the main thread waits for is finished
    cdef int watched            # 1 while the main thread waits for it. Whoever sets it to 0 decides about the event.
    cdef int unheard            # 1 while nobody waits for the end of a group that ends well
    cdef int event
    cdef int stopping
    cdef int status
    cdef int hurry              # sync now whatever is not synced
    cdef int fd
    cdef Group group
    cdef const uint8_t* data
    cdef size_t size
    cdef int64_t offset
    cdef uint64_t number
    cdef bint firm
    cdef int error
    cdef int error_in_sync
    cdef int broken             # errno of a failed sync that no group waited for
    # Written and not synced. The disk thread owns these, but the statistics read them.
    cdef int dirty_fd
    cdef uint64_t dirty_bytes
    cdef double dirty_since
    cdef uint64_t dirty_group
    cdef uint64_t synced
    cdef double sync_interval
    cdef uint64_t max_unsynced
    cdef Point[POINTS] points
    cdef IdlePollers pollers
    cdef readonly uint64_t syncs, bytes
    cdef readonly double sync_seconds, write_seconds
    cdef double since           # time at which the current write or sync was requested; 0: there is none
    cdef double longest         # longest of those that ended since `take_longest`, in seconds

    def __cinit__(self, int event, double sync_interval=0.0, uint64_t max_unsynced=0,
                  IdlePollers pollers=None):
        self.event = event
        self.pollers = pollers
        self.sync_interval = sync_interval
        self.max_unsynced = max_unsynced
        if pollers is not None:
            pollers.help(&self.work, &self.done, self)

    def run(self):
        """Main function of the thread. It returns after `stop`."""
        with nogil:
            self.loop()

    cdef void loop(self) noexcept nogil:
        cdef uint64_t one = 1
        cdef double due = 0
        cdef bint news, failed
        cdef int error
        while True:
            ms_gate_wait(&self.work, <int64_t>(due * 1e9))
            if ms_load(&self.stopping):
                return
            news = False
            if ms_load(&self.status) == BUSY:
                if self.since == 0:
                    self.since = seconds()
                self.error = self.carry()
                self.ended()
                failed = self.error != 0
                if failed and self.error_in_sync:
                    ms_store(&self.broken, self.error)  # otherwise what is not synced would be synced once more
                ms_store_ordered(&self.status, FAILED if failed else DONE)
                if ms_swap(&self.watched, 0):
                    self.open_gate(&self.done)
                else:
                    news = failed or not ms_load_ordered(&self.unheard)
            elif (self.dirty_bytes and not self.broken
                    and (ms_load(&self.hurry) or seconds() >= self.dirty_since + self.sync_interval)):
                news = ms_swap(&self.hurry, 0)
                self.since = seconds()
                error = self.sync()
                self.ended()
                if error:
                    ms_store(&self.broken, error)
                    news = True
            due = 0
            if self.dirty_bytes and not self.broken:
                due = self.dirty_since if ms_load(&self.hurry) else self.dirty_since + self.sync_interval
            elif ms_swap(&self.hurry, 0):
                news = True
            # An eventfd holds up to 2**64-2 unread signals, so this write cannot block.
            while news and c_write(self.event, &one, 8) < 0 and errno == EINTR:
                pass

    cdef void open_gate(self, ms_gate* gate) noexcept nogil:
        ms_gate_open(gate, NULL if self.pollers is None else &self.pollers.looked)

    cdef void ended(self) noexcept nogil:
        """Record that the write or sync that began at `since` has ended."""
        self.longest = max(self.longest, seconds() - self.since)
        self.since = 0

    cdef int carry(self) noexcept nogil:
        """Write the group in flight, and sync it if it must not be reported earlier. Returns 0 or an errno."""
        cdef size_t done = 0
        cdef ssize_t wrote
        cdef int bad
        cdef double begin, written
        self.error_in_sync = 1
        if self.broken:
            return self.broken
        if self.dirty_bytes and self.dirty_fd != self.fd:
            # A segment begins only after all of the segment before is synced.
            bad = self.sync()
            if bad:
                return bad
        self.error_in_sync = 0
        bad = hit(&self.points[BEFORE_WRITE])
        if bad:
            return bad
        begin = seconds()
        while done < self.size:
            wrote = pwrite(self.fd, self.data + done, self.size - done, self.offset + <int64_t>done)
            if wrote > 0:
                done += <size_t>wrote
            elif wrote == 0:
                return ENOSPC
            elif errno != EINTR:
                return errno
        written = seconds()
        self.write_seconds += written - begin
        self.bytes += self.size
        bad = hit(&self.points[AFTER_WRITE])
        if bad:
            return bad
        if self.dirty_bytes == 0:
            self.dirty_since = begin
        self.dirty_fd = self.fd
        self.dirty_bytes += self.size
        self.dirty_group = self.number
        if (not self.firm and self.dirty_bytes <= self.max_unsynced
                and written - self.dirty_since < self.sync_interval):
            return 0
        return self.sync()

    cdef int sync(self) noexcept nogil:
        """Sync everything that is written. Returns 0 or an errno."""
        cdef int bad
        cdef double begin = seconds()
        self.error_in_sync = 1
        bad = hit(&self.points[BEFORE_SYNC])
        if bad:
            return bad
        if fdatasync(self.dirty_fd) != 0:
            return errno
        bad = hit(&self.points[AFTER_SYNC])
        if bad:
            return bad
        self.sync_seconds += seconds() - begin
        self.syncs += 1
        self.dirty_bytes = 0
        ms_store64(&self.synced, self.dirty_group)
        return 0

    cpdef int start(self, Group group, fd, double patience, size_t client) except -1:
        """See `LogDisk.start`. `fd` must stay open until the group and a later group in another file are finished. The
        caller waits without the GIL, and not at all while the thread is syncing earlier groups. client: whose write it
        is, a number for the pollers."""
        cdef bint ended = False
        if self.busy:
            raise RuntimeError("a group is in flight, or the disk failed")
        self.group = group
        self.fd = fd
        self.data = group.data
        self.size = group.size
        self.offset = <int64_t>group.offset
        self.number = group.group
        self.firm = group.firm
        self.busy = True
        # The thread may still be syncing earlier groups. This group then waits for that, so the earlier time counts.
        if self.since == 0:
            self.since = seconds()
        else:
            patience = 0
        ms_store(&self.watched, 1 if patience > 0 else 0)
        ms_store(&self.status, BUSY)
        with nogil:
            if patience > 0:
                ended = self.start_and_wait(<int64_t>(patience * 1e9), client)
            else:
                ms_gate_open(&self.work, NULL)
        if patience <= 0:
            return NOT_WAITED
        return ENDED if ended else IN_VAIN

    cdef bint start_and_wait(self, int64_t patience, size_t client) noexcept nogil:
        cdef bint finished
        if self.pollers is not None:
            self.pollers.waiting(client)
        self.open_gate(&self.work)
        finished = ms_gate_wait(&self.done, ms_now() + patience)
        if not finished and ms_swap(&self.watched, 0) == 0:
            # The group has just finished, and the thread is about to open the gate.
            finished = ms_gate_wait(&self.done, 0)
        if self.pollers is not None:
            self.pollers.waited()
        return finished

    cpdef Group finished(self):
        """See `LogDisk.finished`. The group is written, and synced if it must be."""
        cdef Group group
        if ms_load(&self.status) != DONE:
            return None
        group = self.group
        self.group = None
        self.busy = False
        ms_store(&self.status, IDLE)
        return group

    def sync_now(self):
        """Request a sync of everything that is written. An event reports it, also if nothing was to be synced."""
        ms_store(&self.hurry, 1)
        with nogil:
            ms_gate_open(&self.work, NULL)

    @property
    def synced_group(self):
        """Number of the last group that is synced together with all before it; 0 before the first."""
        return ms_load64(&self.synced)

    @property
    def unsynced(self):
        """(bytes that are written and not synced, seconds since the first of these was written)."""
        cdef uint64_t count = ms_load64(&self.dirty_bytes)
        return count, max(0.0, seconds() - self.dirty_since) if count else 0.0

    @property
    def pending_since(self):
        """Time (seconds, CLOCK_MONOTONIC) at which the current write or sync was requested; None if there is none. Any
        thread may call this."""
        cdef double since = self.since
        return since if since else None

    def take_longest(self):
        """Seconds of the longest write or sync that ended since the last call; 0.0 if none ended."""
        cdef double longest = self.longest
        self.longest = 0
        return longest

    cpdef bint has_failed(self) except -1:
        """See `LogDisk.has_failed`."""
        return ms_load(&self.broken) != 0 or ms_load(&self.status) == FAILED

    cpdef bint has_ended(self) except -1:
        """See `LogDisk.has_ended`."""
        return ms_load(&self.status) == DONE

    cpdef bint listen(self, bint wanted) except -1:
        """See `LogDisk.listen`."""
        if wanted and not self.unheard:
            return False
        ms_store_ordered(&self.unheard, not wanted)
        return wanted and ms_load_ordered(&self.status) == DONE

    @property
    def failed(self):
        """(errno, whether the sync failed) after a failure, otherwise None. The value stays for ever."""
        if ms_load(&self.broken):
            return self.broken, True
        if ms_load(&self.status) != FAILED:
            return None
        return self.error, bool(self.error_in_sync)

    def stop(self):
        """Let `run` return after its current work. A group that it has not begun is not written."""
        ms_store(&self.stopping, 1)
        with nogil:
            ms_gate_open(&self.work, NULL)

    def point(self, int which, int action, int argument, int skip, bytes path not None):
        """Set failpoint `which` (an index into POINT_NAMES). Actions: 0 off, 1 panic, 2 sleep (microseconds), 3 error
        (errno), 4 block (while the file `path` exists; with an empty path until the action changes). The first `skip`
        hits pass."""
        cdef Point* point
        if not 0 <= which < POINTS:
            raise ValueError(f"no failpoint {which}")
        if len(path) >= PATH_SIZE:
            raise ValueError(f"a failpoint's path has at most {PATH_SIZE - 1} bytes")
        point = &self.points[which]
        # Switch it off while the other fields change, because the thread may pass it meanwhile.
        ms_store(&point.action, POINT_OFF)
        memcpy(point.path, <const char*>path, len(path) + 1)
        point.micros = <unsigned int>argument
        point.error = argument
        point.skip = skip
        ms_store(&point.action, action)
