"""The end of a write-ahead log, where it grows."""

from libc.stdint cimport int64_t, uint64_t

from metastore._core.wal_records cimport Group, Writer

# What became of a group that was handed to a disk; see LogDisk.start.
cdef enum:
    NOT_WAITED = 0
    ENDED = 1       # while the caller waited
    IN_VAIN = 2     # the caller has waited, and the group has not ended


cdef class LogDisk:
    # Whether a group was handed over that `finished` has not returned. A group that failed is never returned.
    cdef public bint busy
    cpdef int start(self, Group group, fd, double patience, size_t client) except -1
    cpdef Group finished(self)
    cpdef bint has_failed(self) except -1
    cpdef bint has_ended(self) except -1
    cpdef bint listen(self, bint wanted) except -1


cdef class LogTail:
    cdef public Writer _writer
    cdef public LogDisk _disk
    cdef public object _folder, _preparer, _failure
    cdef public object _results         # segments that were prepared and not taken in
    cdef public list _snapshots         # (group, index) of the snapshot positions that are not durable
    cdef public list _commits           # (group, commit index) of those that `save_commit` was given
    cdef public uint64_t durable, durable_commit, groups
    cdef public double quick_sync
    cdef public bint edge_triggered
    cdef public bint tells_all          # somebody besides the driver waits for the end of each group
    cdef public bint _lagging           # whether groups are reported before they are synced
    cdef public bint _stalled           # whether a group waits for its segment
    cdef public bint _full              # whether the last attempt to make a segment lacked room
    cdef public bint _proven
    cdef public bint _quick
    cdef uint64_t quick_again           # the disk may be quick again when so many groups have ended
    cdef public uint64_t _written_segment, _written_end     # behind the last group that has ended
    # The segment that the last group went to.
    cdef uint64_t generation, size
    cdef object fd

    cdef int begin(self, double patience, size_t client) except -1
    cdef int end(self, Group group) except -1
    cpdef room(self, int64_t enough)
    cpdef uint64_t settle(self) except? 0
    cpdef bint has_ended(self) except -1
    cpdef bint listen(self, bint wanted) except -1
