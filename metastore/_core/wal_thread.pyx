"""The disk thread of the log. It waits for a group, writes and syncs it, and reports that through an eventfd.

The thread never takes the GIL once it runs. One group is in flight at a time. The main thread hands it over with
`start`. When the eventfd becomes readable, the group has ended, and `finished` and `failed` give the result. After a
failed write or sync the thread does nothing any more: after a failed fsync the page cache may be wrong about what is on
disk, so nothing is ever tried again on that file.

With a sync interval a group is finished when it is written, and the thread syncs later. It does not write while it
syncs. The bytes that are reported and not synced are therefore never more than those reported within one interval.
"""

from libc.errno cimport EINTR, EIO, ENOSPC, ETIMEDOUT, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from metastore._core.idle_poll cimport IdlePollers
from metastore._core.wal_records cimport Group

cdef extern from "time.h" nogil:
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int, timespec*)

cdef extern from "pthread.h" nogil:
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_mutex_init(pthread_mutex_t*, void*)
    int pthread_mutex_lock(pthread_mutex_t*)
    int pthread_mutex_trylock(pthread_mutex_t*)
    int pthread_mutex_unlock(pthread_mutex_t*)
    int pthread_mutex_destroy(pthread_mutex_t*)
    int pthread_condattr_init(pthread_condattr_t*)
    int pthread_condattr_setclock(pthread_condattr_t*, int)
    int pthread_condattr_destroy(pthread_condattr_t*)
    int pthread_cond_init(pthread_cond_t*, pthread_condattr_t*)
    int pthread_cond_wait(pthread_cond_t*, pthread_mutex_t*)
    int pthread_cond_timedwait(pthread_cond_t*, pthread_mutex_t*, timespec*)
    int pthread_cond_signal(pthread_cond_t*)
    int pthread_cond_destroy(pthread_cond_t*)

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
    """
    int ms_load(int*) nogil
    void ms_store(int*, int) nogil
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
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


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


cdef class DiskThread:
    """The loop of the thread and the state that the main thread shares with it. `event` is the eventfd to write to. The
    thread informs `pollers` when the main thread itself waits for the disk.

    With sync_interval 0 a group is finished when it is synced. Otherwise a group that is not firm is finished when it
    is written, and the thread syncs at most `sync_interval` seconds after the first unsynced byte was written. If a
    group would bring the bytes that are reported and not synced above max_unsynced, it is synced, together with all
    before it, before it is finished.
    """
    cdef pthread_mutex_t wake_lock
    cdef pthread_cond_t wake
    cdef int posted             # protected by wake_lock
    cdef pthread_mutex_t work   # held by the thread that writes or syncs; the main thread never waits for it
    cdef int event
    cdef int stopping
    cdef int status
    cdef int handed             # the disk thread owns the group in flight, not the caller
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
    # Written and not synced. `work` protects these, but the statistics read them without it.
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
        cdef pthread_condattr_t attributes
        self.event = event
        self.pollers = pollers
        self.sync_interval = sync_interval
        self.max_unsynced = max_unsynced
        pthread_mutex_init(&self.wake_lock, NULL)
        pthread_mutex_init(&self.work, NULL)
        pthread_condattr_init(&attributes)
        # The default clock can be set by users, and a sync could then come hours late.
        pthread_condattr_setclock(&attributes, CLOCK_MONOTONIC)
        pthread_cond_init(&self.wake, &attributes)
        pthread_condattr_destroy(&attributes)

    def __dealloc__(self):
        pthread_cond_destroy(&self.wake)
        pthread_mutex_destroy(&self.work)
        pthread_mutex_destroy(&self.wake_lock)

    def run(self):
        """Main function of the thread. It returns after `stop`."""
        with nogil:
            self.loop()

    cdef void post(self) noexcept nogil:
        pthread_mutex_lock(&self.wake_lock)
        self.posted = 1
        pthread_cond_signal(&self.wake)
        pthread_mutex_unlock(&self.wake_lock)

    cdef void wait(self, double due) noexcept nogil:
        """Wait until `post` is called, or until the time `due` if that is not 0."""
        cdef timespec until
        until.tv_sec = <int64_t>due
        until.tv_nsec = <long>((due - <double>until.tv_sec) * 1e9)
        pthread_mutex_lock(&self.wake_lock)
        while not self.posted:
            if due == 0:
                pthread_cond_wait(&self.wake, &self.wake_lock)
            elif pthread_cond_timedwait(&self.wake, &self.wake_lock, &until) == ETIMEDOUT:
                break
        self.posted = 0
        pthread_mutex_unlock(&self.wake_lock)

    cdef void loop(self) noexcept nogil:
        cdef uint64_t one = 1
        cdef double due = 0
        cdef bint news
        cdef int error
        while True:
            self.wait(due)
            if ms_load(&self.stopping):
                return
            news = False
            pthread_mutex_lock(&self.work)
            if ms_load(&self.status) == BUSY and ms_load(&self.handed):
                self.handed = 0
                if self.since == 0:
                    self.since = seconds()
                self.error = self.carry()
                self.ended()
                ms_store(&self.status, FAILED if self.error else DONE)
                news = True
            elif (self.dirty_bytes and not self.broken
                    and (ms_load(&self.hurry) or seconds() >= self.dirty_since + self.sync_interval)):
                ms_store(&self.hurry, 0)
                self.since = seconds()
                error = self.sync()
                self.ended()
                if error:
                    ms_store(&self.broken, error)
                news = True
            due = 0
            if self.dirty_bytes and not self.broken:
                due = self.dirty_since if ms_load(&self.hurry) else self.dirty_since + self.sync_interval
            else:
                ms_store(&self.hurry, 0)
            pthread_mutex_unlock(&self.work)
            # An eventfd holds up to 2**64-2 unread signals, so this write cannot block.
            while news and c_write(self.event, &one, 8) < 0 and errno == EINTR:
                pass

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

    def start(self, Group group not None, int fd, bint here=False):
        """Hand over a group. Call this only while the thread is idle. `fd` must stay open until the group and a later
        group in another file are finished.

        here: write in the caller's thread, without the GIL. No event is written then, and `finished` and `failed` give
        the result at once. If the thread is syncing, it does the write itself nevertheless, and `busy` is true."""
        if ms_load(&self.status) != IDLE:
            raise RuntimeError("a group is in flight, or the disk failed")
        cdef bint clean
        self.group = group
        self.fd = fd
        self.data = group.data
        self.size = group.size
        self.offset = <int64_t>group.offset
        self.number = group.group
        self.firm = group.firm
        if here and pthread_mutex_trylock(&self.work) == 0:
            if self.pollers is not None:
                self.pollers.waiting()
            with nogil:
                clean = self.dirty_bytes == 0
                self.since = seconds()
                ms_store(&self.status, BUSY)
                self.error = self.carry()
                self.ended()
                ms_store(&self.status, FAILED if self.error else DONE)
                clean = clean and self.dirty_bytes > 0
                pthread_mutex_unlock(&self.work)
                if clean:
                    self.post()     # the thread has something to sync when the interval is over
            if self.pollers is not None:
                self.pollers.waited()
            return
        self.handed = 1
        # The thread may still be syncing earlier groups. This group then waits for that, so the earlier time counts.
        if self.since == 0:
            self.since = seconds()
        ms_store(&self.status, BUSY)
        with nogil:
            self.post()

    def finished(self):
        """Return the group that was written, and synced if it must be, since the last call, or None. If a group is
        returned, the thread is idle."""
        cdef Group group
        if ms_load(&self.status) != DONE:
            return None
        group = self.group
        self.group = None
        ms_store(&self.status, IDLE)
        return group

    def sync_now(self):
        """Request a sync of everything that is written. An event reports it."""
        ms_store(&self.hurry, 1)
        with nogil:
            self.post()

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

    @property
    def busy(self):
        """Whether a group is in flight or can be collected with `finished`."""
        return ms_load(&self.status) != IDLE

    @property
    def in_flight(self):
        """Whether the thread is working on a group."""
        return ms_load(&self.status) == BUSY

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
            self.post()

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
