"""Reading entries of the log back from disk: a copy of their places, which stays valid while the log goes on.

A `Stretch` is a copy of the log's table for consecutive entries. Later changes of the log (a suffix is overwritten, a
segment is released) do not affect it, so another thread can read by it meanwhile. A reader checks each image that it
reads.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from metastore._core.entry cimport ENTRY_OK, EntryView, entry_read
from metastore._core.wal_records cimport RECORD_HEADER, LogState, Place

from metastore.errors import FormatError

cdef enum:
    MAX_GAP = 65536  # bytes of other records that one read includes; a longer gap begins a new read


cdef struct Piece:
    uint64_t end        # bytes of the images up to and including this one
    uint64_t at         # offset of the record in its segment
    uint32_t segment
    uint32_t size


cdef class Stretch:
    """Places of the entries first to end-1. `nbytes` is the size of their concatenated images, `term` is the term of
    the last one, and `table_bytes` is the memory of this object."""

    cdef Piece* pieces
    cdef readonly uint64_t first, end, term, nbytes

    def __init__(self, LogState state not None, uint64_t lo, uint64_t hi, uint64_t max_size):
        """Copy the places of entries from lo on: at least one, then as many below hi as fit into max_size bytes.

        Raises IndexError if the log does not hold them."""
        cdef Place* place = state.place(lo)
        cdef uint64_t index = lo
        state.place(hi - 1)
        while index < hi:
            if index > lo and self.nbytes + place.size > max_size:
                break
            self.nbytes += place.size
            place += 1
            index += 1
        self.first, self.end = lo, index
        self.pieces = <Piece*>malloc((index - lo) * sizeof(Piece))
        if self.pieces == NULL:
            raise MemoryError()
        self.nbytes = 0
        for index in range(lo, self.end):
            place = state.place(index)
            self.nbytes += place.size
            self.pieces[index - lo] = Piece(self.nbytes, <uint64_t>place.at * 8, place.segment, place.size)
        self.term = place.term

    def __dealloc__(self):
        free(self.pieces)

    @property
    def table_bytes(self):
        """Memory of the table in bytes."""
        return (self.end - self.first) * sizeof(Piece)

    def runs(self):
        """The reads to do: a list of (segment number, offset, length, first, end). A read returns the entries first to
        end-1."""
        cdef Piece* piece
        cdef uint64_t index, run = self.first
        cdef uint64_t start = 0, end = 0
        cdef uint32_t segment = 0
        out = []
        for index in range(self.first, self.end):
            piece = &self.pieces[index - self.first]
            if index > run and (piece.segment != segment or piece.at > end + MAX_GAP):
                out.append((segment, start, end - start, run, index))
                run = index
            if index == run:
                segment = piece.segment
                start = piece.at
            end = piece.at + RECORD_HEADER + piece.size
        out.append((segment, start, end - start, run, self.end))
        return out

    def pick(self, const uint8_t[::1] buf not None, uint64_t offset, uint64_t lo, uint64_t hi):
        """Return the concatenated images of entries lo to hi-1, which are one run, out of `buf`, which was read at
        `offset`. Their CRCs are checked without the GIL. Raises FormatError if bytes are missing or damaged."""
        if lo < self.first or hi > self.end or lo >= hi:
            raise IndexError(f"entries [{lo}, {hi}) of [{self.first}, {self.end})")
        cdef Piece* pieces = self.pieces + (lo - self.first)
        cdef size_t count = <size_t>(hi - lo), i, at, held = <size_t>buf.shape[0]
        cdef EntryView view
        cdef bytes out = b"\0" * (pieces[count - 1].end - pieces[0].end + pieces[0].size)
        cdef uint8_t* dst = out
        cdef const uint8_t* src = &buf[0] if held else NULL
        cdef bint cut = False
        with nogil:
            for i in range(count):
                at = <size_t>(pieces[i].at + RECORD_HEADER - offset)
                cut = at + pieces[i].size > held
                if (cut or entry_read(src + at, pieces[i].size, &view, True) != ENTRY_OK or view.index != lo + i
                        or view.size != pieces[i].size):
                    break
                memcpy(dst, src + at, pieces[i].size)
                dst += pieces[i].size
            else:
                i = count
        if i < count:
            raise FormatError(f"entry {lo + i} is {'cut off' if cut else 'damaged'} at offset {pieces[i].at}")
        return out

    def span(self, uint64_t lo, uint64_t hi, uint64_t max_size):
        """Return (begin, end) within the concatenated images: entry lo and those after it below hi, at least one, then
        at most max_size bytes. Raises IndexError outside the stretch."""
        if lo < self.first or lo >= self.end or hi <= lo:
            raise IndexError(f"entries [{lo}, {hi}) of [{self.first}, {self.end})")
        cdef uint64_t index = lo, begin = self.pieces[lo - self.first].end - self.pieces[lo - self.first].size
        hi = min(hi, self.end)
        while index + 1 < hi and self.pieces[index + 1 - self.first].end - begin <= max_size:
            index += 1
        return begin, self.pieces[index - self.first].end
