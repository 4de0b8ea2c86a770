"""The records of a snapshot: an engine's view as a byte stream, and back. Layout: FORMATS.md, "Snapshot file"."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from metastore._core.engine cimport Engine, EngineCursor
from metastore._core.ordered_map_walk cimport Cursor
from metastore._core.record cimport Record

cdef enum:
    RECORD_HEADER = 8
    MAX_RECORD = 1 << 30     # bytes of one key or value; a greater length is damage


cdef class Walker:
    cdef readonly uint64_t records        # records begun so far
    cdef readonly uint64_t nbytes         # bytes of the stream taken so far
    cdef readonly bint done
    cdef Engine view
    cdef object pause
    cdef bint in_memory
    cdef Cursor cur                       # cursor of an engine in memory
    cdef EngineCursor cursor              # cursor of any other engine
    cdef Record* rec                      # the current record (borrowed), NULL at the end
    cdef size_t copied                    # bytes of the current record that were copied, including its header

    cdef size_t copy_some(self, uint8_t* out, size_t room) noexcept nogil
    cdef size_t fill_nogil(self, uint8_t* out, size_t room) noexcept nogil
    cdef size_t fill_gil(self, uint8_t* out, size_t room) except? 0
    cpdef bytes take(self, size_t limit)


cdef class RecordReader:
    cdef readonly uint64_t records
    cdef readonly uint64_t nbytes
    cdef object pieces
    cdef bytes piece
    cdef size_t at                        # position in it
    cdef uint8_t head[RECORD_HEADER]
    cdef Record* last                     # the previous record (owned), to check the order

    cdef bint more(self) except -1
    cdef size_t read(self, uint8_t* out, size_t n) except? 0
    cdef bint scan(self, const uint8_t* data, size_t n, const uint8_t** key, uint32_t* size) noexcept nogil
    cdef int scan_piece(self) except -1
    cdef Record* next_record(self) except? NULL
