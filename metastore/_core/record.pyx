"""The memory of the process that the records and nodes of all ordered maps take. The rest is in record.pxd."""

cimport cython
from libc.stdlib cimport free, malloc

from metastore._core.slabs cimport SLAB_MOST, slab_alloc, slab_free

cdef size_t total = 0


@cython.linetrace(False)
cdef void* held_alloc(size_t n) noexcept nogil:
    """Return a piece of n bytes, or NULL without memory."""
    global total
    cdef void* piece = slab_alloc(n) if n <= SLAB_MOST else malloc(n)
    if piece != NULL:
        total += chunk_of(n)
    return piece


@cython.linetrace(False)
cdef void held_free(void* piece, size_t n) noexcept nogil:
    """Give back a piece of n bytes."""
    global total
    total -= chunk_of(n)
    if n <= SLAB_MOST:
        slab_free(piece)
    else:
        free(piece)


cdef size_t held_bytes() noexcept nogil:
    return total


def held_now() -> int:
    """Return the bytes of memory that all maps of this process hold: contents, garbage, and what only views still
    see."""
    return held_bytes()
