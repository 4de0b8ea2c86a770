"""The entry image: one encoding of a log entry for memory, disk and network. Layout: FORMATS.md, "Entry image"."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    ENTRY_HEADER = 32
    ENTRY_IMAGE_VERSION = 1
    ENTRY_MAX_PAYLOAD = 256 * 1024 * 1024
    HARD_STATE_SIZE = 32

# Results of entry_read.
cdef enum:
    ENTRY_OK = 0
    ENTRY_SHORT = 1       # `avail` ends inside the image; EntryView.size is its size, or 0 if the header is cut
    ENTRY_CRC = 2         # the CRC is wrong
    ENTRY_VERSION = 3     # written by a later version (the CRC is right, if it was checked)
    ENTRY_BAD = 4         # impossible type, length or reserved bytes

cdef enum:
    ENTRY_NORMAL = 0
    ENTRY_CONF_CHANGE = 1
    ENTRY_CONF_CHANGE_V2 = 2

cdef struct EntryView:
    uint64_t term
    uint64_t index
    uint8_t type
    const uint8_t* data   # points into the image; never NULL, even if n is 0
    size_t n              # bytes of payload
    uint32_t crc
    size_t size           # bytes of the whole image

# Size in bytes of the image with a payload of n bytes.
cdef size_t entry_size(size_t n) noexcept nogil
# Writes the image to dst and returns its CRC-32. The caller ensures that dst has entry_size(n) bytes and that
# n <= ENTRY_MAX_PAYLOAD. If `payload` already stands at dst + ENTRY_HEADER it is not copied.
cdef uint32_t entry_write(uint8_t* dst, uint64_t term, uint64_t index, uint8_t type,
                          const uint8_t* payload, size_t n) noexcept nogil
# Reads one image at src, where `avail` bytes are available. With check_crc=0 the payload is not touched.
cdef int entry_read(const uint8_t* src, size_t avail, EntryView* out, bint check_crc) noexcept nogil
# Raises the FormatError that belongs to a result of entry_read; `offset` is for the text only.
cdef int entry_raise(int answer, size_t offset) except -1


cdef class Entry:
    cdef readonly uint64_t term
    cdef readonly uint64_t index
    cdef readonly uint8_t type
    cdef readonly bytes data


# Creates an Entry without argument parsing.
cdef Entry entry_make(uint64_t term, uint64_t index, uint8_t type, bytes data)
# Creates an Entry from a view and copies the payload.
cdef Entry entry_of_view(const EntryView* view)


cdef class HardState:
    cdef readonly uint64_t term
    cdef readonly uint64_t vote
    cdef readonly uint64_t commit


cdef HardState hard_state_make(uint64_t term, uint64_t vote, uint64_t commit)
# Writes HARD_STATE_SIZE bytes to dst.
cdef void hard_state_write(uint8_t* dst, uint64_t term, uint64_t vote, uint64_t commit) noexcept nogil
