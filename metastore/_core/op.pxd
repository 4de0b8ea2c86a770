"""An operation: a small header and the client's unchanged request message. Layout: FORMATS.md, "Operation"."""

from libc.stdint cimport uint8_t, uint64_t

cdef enum:
    OP_VERSION = 1
    OP_HEADER = 12        # bytes of the header without any optional field

cdef enum:
    OP_PUT = 1
    OP_DELETE_RANGE = 2
    OP_TXN = 3
    OP_COMPACT = 4
    OP_MEMBER = 5         # a membership operation; body: FORMATS.md, "Membership"
    OP_ALARM = 6          # raises or clears an alarm; body: FORMATS.md, "Alarms"
    OP_LEASE_GRANT = 7    # bodies of this and the next two: FORMATS.md, "Leases"
    OP_LEASE_REVOKE = 8
    OP_LEASE_CHECKPOINT = 9
    OP_KIND_LAST = 9      # the highest kind that this version knows

# The operation level is a number that says what a member can apply (FORMATS.md, "Operation level"). It rises with every
# kind, flag or field that an earlier member could not apply; see op_level.
cdef enum:
    OP_LEVEL = 2

cdef enum:
    OP_FLAG_USER = 1
    OP_FLAG_LEASE = 2
    OP_FLAG_WALL = 4
    OP_FLAGS_KNOWN = 7

# Results of op_read.
cdef enum:
    OP_OK = 0
    OP_SHORT = 1          # the bytes end inside the header
    OP_BAD_VERSION = 2
    OP_BAD_KIND = 3
    OP_BAD_FLAGS = 4      # a reserved flag, or a user length that the flags do not announce

cdef struct OpView:
    uint8_t kind
    uint8_t flags
    uint64_t request_id
    const uint8_t* user   # points into the operation; NULL without OP_FLAG_USER
    size_t user_len
    uint64_t auth_rev
    uint64_t lease_id     # 0 without OP_FLAG_LEASE
    uint64_t wall_ms      # 0 without OP_FLAG_WALL; milliseconds since 1970, fixed by the leader
    const uint8_t* body   # the request message; points into the operation
    size_t n

# Reads the operation of `size` bytes at src and copies nothing. On failure request_id is right if 12 bytes were there.
cdef int op_read(const uint8_t* src, size_t size, OpView* out) noexcept nogil
# Writes the plain header (OP_HEADER bytes) and returns OP_HEADER.
cdef size_t op_write_header(uint8_t* dst, uint8_t kind, uint64_t request_id) noexcept nogil
# The lowest operation level at which every member of a cluster can apply this kind with these flags.
cdef int op_level(uint8_t kind, uint8_t flags) noexcept nogil
# Raises the FormatError that belongs to a result of op_read.
cdef int op_raise(int answer) except -1


cdef class Operation:
    cdef readonly uint8_t kind
    cdef readonly uint64_t request_id
    cdef readonly bytes user
    cdef readonly uint64_t auth_rev
    cdef readonly object lease_id
    cdef readonly object wall_ms
    cdef readonly bytes request
