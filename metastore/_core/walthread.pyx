"""The log's disk thread: waits, writes a group, syncs it, says so through an eventfd. Never takes the GIL once inside.

One group is in flight at a time. The main thread hands it over with `start`, and learns of its end when the eventfd
becomes readable; `finished` and `failed` then tell. A failed write or sync ends the loop for good: after a failed fsync the
page cache lies, so nothing is ever tried again on that file.
"""

from libc.errno cimport EINTR, EIO, ENOSPC, errno
from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

from metastore._core.wal cimport Group

cdef extern from "semaphore.h" nogil:
    ctypedef struct sem_t:
        pass
    int sem_init(sem_t*, int, unsigned int)
    int sem_wait(sem_t*)
    int sem_post(sem_t*)
    int sem_destroy(sem_t*)

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

cdef extern from "time.h" nogil:
    struct timespec:
        int64_t tv_sec
        long tv_nsec
    int CLOCK_MONOTONIC
    int clock_gettime(int, timespec*)

cdef extern from *:
    """
    #define ms_load(p) __atomic_load_n((p), __ATOMIC_ACQUIRE)
    #define ms_store(p, v) __atomic_store_n((p), (v), __ATOMIC_RELEASE)
    """
    int ms_load(int*) nogil
    void ms_store(int*, int) nogil

# Failpoint actions; the numbers are those of metastore/failpoints.py.
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

# In this order: the failpoints this thread passes.
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
    int error           # errno of POINT_ERROR
    unsigned int micros
    char[PATH_SIZE] path


cdef inline double seconds() noexcept nogil:
    cdef timespec now
    clock_gettime(CLOCK_MONOTONIC, &now)
    return <double>now.tv_sec + <double>now.tv_nsec * 1e-9


cdef int hit(Point* point) noexcept nogil:
    """Do what the failpoint says; gives an errno for POINT_ERROR, else 0."""
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
    """The loop and what the main thread shares with it. `event` is the eventfd to write to."""
    cdef sem_t wake
    cdef int event
    cdef int stopping
    cdef int status
    cdef int fd
    cdef Group group
    cdef const uint8_t* data
    cdef size_t size
    cdef int64_t offset
    cdef int error
    cdef int error_in_sync
    cdef Point[POINTS] points
    cdef readonly uint64_t syncs, bytes
    cdef readonly double sync_seconds, write_seconds

    def __cinit__(self, int event):
        self.event = event
        if sem_init(&self.wake, 0, 0) != 0:
            raise OSError(errno, "sem_init")

    def __dealloc__(self):
        sem_destroy(&self.wake)

    def run(self):
        """The thread's main function; returns after `stop`."""
        with nogil:
            self.loop()

    cdef void loop(self) noexcept nogil:
        cdef uint64_t one = 1
        while True:
            while sem_wait(&self.wake) != 0:
                pass
            if ms_load(&self.stopping):
                return
            if ms_load(&self.status) != BUSY:
                continue
            self.error = self.carry()
            ms_store(&self.status, FAILED if self.error else DONE)
            # An eventfd takes 2**64-2 unread signals; this write cannot block.
            while c_write(self.event, &one, 8) < 0 and errno == EINTR:
                pass

    cdef int carry(self) noexcept nogil:
        """Write and sync the group in flight; gives 0 or an errno."""
        cdef size_t done = 0
        cdef ssize_t wrote
        cdef int bad
        cdef double begin, written
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
        bad = hit(&self.points[AFTER_WRITE])
        if bad:
            return bad
        self.error_in_sync = 1
        bad = hit(&self.points[BEFORE_SYNC])
        if bad:
            return bad
        if fdatasync(self.fd) != 0:
            return errno
        bad = hit(&self.points[AFTER_SYNC])
        if bad:
            return bad
        self.sync_seconds += seconds() - written
        self.syncs += 1
        self.bytes += self.size
        return 0

    def start(self, Group group not None, int fd, bint here=False):
        """Hand a group over. Only when idle; `fd` must stay open until it is finished.

        here: do it in the caller's thread, without the GIL; no event is written, `finished` and `failed` tell at once."""
        if ms_load(&self.status) != IDLE:
            raise RuntimeError("a group is in flight, or the disk failed")
        self.group = group
        self.fd = fd
        self.data = group.data
        self.size = group.size
        self.offset = <int64_t>group.offset
        ms_store(&self.status, BUSY)
        if here:
            with nogil:
                self.error = self.carry()
                ms_store(&self.status, FAILED if self.error else DONE)
        else:
            sem_post(&self.wake)

    def finished(self):
        """The group that was written and synced since the last call, or None. The thread is idle then."""
        cdef Group group
        if ms_load(&self.status) != DONE:
            return None
        group = self.group
        self.group = None
        ms_store(&self.status, IDLE)
        return group

    @property
    def busy(self):
        """Whether a group is in flight or waits to be collected with `finished`."""
        return ms_load(&self.status) != IDLE

    @property
    def in_flight(self):
        """Whether the thread is at work on a group."""
        return ms_load(&self.status) == BUSY

    @property
    def failed(self):
        """(errno, whether it was the sync) after a failure, else None. Stays so for ever."""
        if ms_load(&self.status) != FAILED:
            return None
        return self.error, bool(self.error_in_sync)

    def stop(self):
        """Make `run` return; a group in flight is finished first."""
        ms_store(&self.stopping, 1)
        sem_post(&self.wake)

    def point(self, int which, int action, int argument, int skip, bytes path not None):
        """Set failpoint `which` (place in POINT_NAMES): action 0 off, 1 panic, 2 sleep (microseconds), 3 error (errno),
        4 block (while the file `path` is there; with an empty path until the action changes). The first `skip` hits
        pass."""
        cdef Point* point
        if not 0 <= which < POINTS:
            raise ValueError(f"no failpoint {which}")
        if len(path) >= PATH_SIZE:
            raise ValueError(f"a failpoint's path has at most {PATH_SIZE - 1} bytes")
        point = &self.points[which]
        # Off while the other fields change: the thread may be passing by.
        ms_store(&point.action, POINT_OFF)
        memcpy(point.path, <const char*>path, len(path) + 1)
        point.micros = <unsigned int>argument
        point.error = argument
        point.skip = skip
        ms_store(&point.action, action)
