"""The entry image and the hard state: their encodings, checked by CRC-32.

The leader encodes an entry once. The same bytes go to its log, to the peers and into their logs, and each hop checks
the CRC. The C functions here therefore work on raw memory without the GIL. The Python classes are for tests, tools and
membership changes.
"""

from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memmove

from metastore._core.crc cimport crc32
from metastore._core.le cimport get32, get64, put32, put64

from metastore.errors import FormatError

MAX_PAYLOAD = ENTRY_MAX_PAYLOAD
NORMAL = ENTRY_NORMAL
CONF_CHANGE = ENTRY_CONF_CHANGE
CONF_CHANGE_V2 = ENTRY_CONF_CHANGE_V2

cdef enum:
    HARD_STATE_VERSION = 1


cdef size_t entry_size(size_t n) noexcept nogil:
    return ENTRY_HEADER + n


cdef uint32_t entry_write(uint8_t* dst, uint64_t term, uint64_t index, uint8_t type,
                          const uint8_t* payload, size_t n) noexcept nogil:
    cdef uint32_t crc
    put32(dst + 4, <uint32_t>n)
    put64(dst + 8, term)
    put64(dst + 16, index)
    put64(dst + 24, 0)
    dst[24] = type
    dst[25] = ENTRY_IMAGE_VERSION
    if n > 0 and payload != dst + ENTRY_HEADER:
        # memmove, because a caller may shift a payload inside one buffer.
        memmove(dst + ENTRY_HEADER, payload, n)
    crc = crc32(0, dst + 4, ENTRY_HEADER - 4 + n)
    put32(dst, crc)
    return crc


cdef int entry_read(const uint8_t* src, size_t avail, EntryView* out, bint check_crc) noexcept nogil:
    cdef size_t n
    out.size = 0
    if avail < ENTRY_HEADER:
        return ENTRY_SHORT
    n = get32(src + 4)
    if n > ENTRY_MAX_PAYLOAD:
        return ENTRY_BAD
    out.size = ENTRY_HEADER + n
    if avail < out.size:
        return ENTRY_SHORT
    out.crc = get32(src)
    if check_crc and crc32(0, src + 4, out.size - 4) != out.crc:
        return ENTRY_CRC
    if src[25] != ENTRY_IMAGE_VERSION:
        return ENTRY_VERSION
    # One load reads type, version and the six reserved bytes.
    if get64(src + 24) >> 16 != 0 or src[24] > ENTRY_CONF_CHANGE_V2:
        return ENTRY_BAD
    out.term = get64(src + 8)
    out.index = get64(src + 16)
    out.type = src[24]
    out.data = src + ENTRY_HEADER
    out.n = n
    return ENTRY_OK


cdef int entry_raise(int answer, size_t offset) except -1:
    if answer == ENTRY_SHORT:
        raise FormatError(f"entry image at byte {offset}: cut short")
    if answer == ENTRY_CRC:
        raise FormatError(f"entry image at byte {offset}: wrong checksum")
    if answer == ENTRY_VERSION:
        raise FormatError(f"entry image at byte {offset}: unknown version")
    if answer != ENTRY_OK:
        raise FormatError(f"entry image at byte {offset}: impossible header")
    return 0


cdef class Entry:
    """One entry of the Raft log. It is immutable; equality and hash go by value.

    Args: term, index (unsigned 64-bit), type (NORMAL, CONF_CHANGE or CONF_CHANGE_V2), data (the payload: flag byte and
    batch for a proposal, empty for a new leader's first entry). Raises ValueError for an unknown type.
    """

    def __init__(self, uint64_t term=0, uint64_t index=0, uint8_t type=ENTRY_NORMAL, bytes data not None=b""):
        if type > ENTRY_CONF_CHANGE_V2:
            raise ValueError(f"unknown entry type {type}")
        self.term = term
        self.index = index
        self.type = type
        self.data = data

    def __eq__(self, other):
        cdef Entry that
        if not isinstance(other, Entry):
            return NotImplemented
        that = <Entry>other
        return (self.term == that.term and self.index == that.index and self.type == that.type
                and self.data == that.data)

    def __hash__(self):
        return hash((self.term, self.index, self.type, self.data))

    def __repr__(self):
        return f"Entry(term={self.term}, index={self.index}, type={self.type}, data={self.data!r})"


cdef Entry entry_make(uint64_t term, uint64_t index, uint8_t type, bytes data):
    cdef Entry entry = Entry.__new__(Entry)
    entry.term = term
    entry.index = index
    entry.type = type
    entry.data = data
    return entry


cdef Entry entry_of_view(const EntryView* view):
    return entry_make(view.term, view.index, view.type, PyBytes_FromStringAndSize(<const char*>view.data, view.n))


def encode_entry(Entry entry not None):
    """Encode the entry as its image (bytes). Raises ValueError if its payload is longer than MAX_PAYLOAD."""
    cdef size_t n = PyBytes_GET_SIZE(entry.data)
    if n > ENTRY_MAX_PAYLOAD:
        raise ValueError(f"a payload of {n} bytes is longer than {MAX_PAYLOAD}")
    cdef bytes image = PyBytes_FromStringAndSize(NULL, ENTRY_HEADER + n)
    entry_write(<uint8_t*>PyBytes_AS_STRING(image), entry.term, entry.index, entry.type,
                <const uint8_t*>PyBytes_AS_STRING(entry.data), n)
    return image


def decode_entry(buf, size_t pos=0):
    """Return the entry whose image starts at byte `pos` of a bytes-like object, and the position after it.

    Raises FormatError if the image is cut, damaged, or of an unknown version.
    """
    cdef Py_buffer view
    cdef EntryView found
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    try:
        if pos > <size_t>view.len:
            entry_raise(ENTRY_SHORT, pos)
        entry_raise(entry_read(<const uint8_t*>view.buf + pos, view.len - pos, &found, True), pos)
        return entry_of_view(&found), pos + found.size
    finally:
        PyBuffer_Release(&view)


def decode_entries(buf):
    """Decode concatenated images that fill a bytes-like object exactly. Raises FormatError as decode_entry does."""
    cdef Py_buffer view
    cdef EntryView found
    cdef size_t pos = 0
    cdef list entries = []
    PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
    try:
        while pos < <size_t>view.len:
            entry_raise(entry_read(<const uint8_t*>view.buf + pos, view.len - pos, &found, True), pos)
            entries.append(entry_of_view(&found))
            pos += found.size
        return entries
    finally:
        PyBuffer_Release(&view)


cdef class HardState:
    """The state that a Raft node must have on disk before it sends messages that depend on it: term, vote (0: none),
    commit. It is immutable; equality goes by value.

    Raft paper, figure 2 ("persistent state"). The commit index is stored with it as in etcd's raft library.
    """

    def __init__(self, uint64_t term=0, uint64_t vote=0, uint64_t commit=0):
        self.term = term
        self.vote = vote
        self.commit = commit

    def __eq__(self, other):
        cdef HardState that
        if not isinstance(other, HardState):
            return NotImplemented
        that = <HardState>other
        return self.term == that.term and self.vote == that.vote and self.commit == that.commit

    def __hash__(self):
        return hash((self.term, self.vote, self.commit))

    def __repr__(self):
        return f"HardState(term={self.term}, vote={self.vote}, commit={self.commit})"

    def __bool__(self):
        """False for the state of a node that never ran."""
        return self.term != 0 or self.vote != 0 or self.commit != 0

    def encode(self):
        """Encode as 32 bytes."""
        cdef uint8_t[HARD_STATE_SIZE] image
        hard_state_write(image, self.term, self.vote, self.commit)
        return PyBytes_FromStringAndSize(<const char*>image, HARD_STATE_SIZE)

    @staticmethod
    def decode(buf):
        """Decode exactly 32 bytes (any bytes-like object). Raises FormatError on damage or an unknown version."""
        cdef Py_buffer view
        cdef const uint8_t* at
        PyObject_GetBuffer(buf, &view, PyBUF_SIMPLE)
        try:
            if view.len != HARD_STATE_SIZE:
                raise FormatError(f"hard state: {view.len} bytes instead of {HARD_STATE_SIZE}")
            at = <const uint8_t*>view.buf
            if crc32(0, at + 4, HARD_STATE_SIZE - 4) != get32(at):
                raise FormatError("hard state: wrong checksum")
            if at[4] != HARD_STATE_VERSION:
                raise FormatError(f"hard state: unknown version {at[4]}")
            if get32(at + 4) >> 8 != 0:
                raise FormatError("hard state: reserved bytes are set")
            return hard_state_make(get64(at + 8), get64(at + 16), get64(at + 24))
        finally:
            PyBuffer_Release(&view)


cdef HardState hard_state_make(uint64_t term, uint64_t vote, uint64_t commit):
    cdef HardState state = HardState.__new__(HardState)
    state.term = term
    state.vote = vote
    state.commit = commit
    return state


cdef void hard_state_write(uint8_t* dst, uint64_t term, uint64_t vote, uint64_t commit) noexcept nogil:
    put32(dst + 4, HARD_STATE_VERSION)
    put64(dst + 8, term)
    put64(dst + 16, vote)
    put64(dst + 24, commit)
    put32(dst, crc32(0, dst + 4, HARD_STATE_SIZE - 4))
