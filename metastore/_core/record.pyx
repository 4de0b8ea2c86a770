"""The memory of the process that the records and nodes of all ordered maps take. The rest is in record.pxd."""

from libc.stdlib cimport free, malloc

cdef extern from *:
    """
    #define count_add(count, n) __atomic_add_fetch(count, n, __ATOMIC_RELAXED)
    #define count_sub(count, n) __atomic_sub_fetch(count, n, __ATOMIC_RELAXED)
    #define count_get(count) __atomic_load_n(count, __ATOMIC_RELAXED)
    """
    size_t count_add(size_t* count, size_t n) noexcept nogil
    size_t count_sub(size_t* count, size_t n) noexcept nogil
    size_t count_get(size_t* count) noexcept nogil

cdef size_t total = 0


cdef void* held_alloc(size_t n) noexcept nogil:
    """Return a piece of n bytes, or NULL without memory."""
    cdef void* piece = malloc(n)
    if piece != NULL:
        count_add(&total, chunk_of(n))
    return piece


cdef void held_free(void* piece, size_t n) noexcept nogil:
    """Give back a piece of n bytes."""
    count_sub(&total, chunk_of(n))
    free(piece)


cdef size_t held_bytes() noexcept nogil:
    return count_get(&total)


def held_now() -> int:
    """Return the bytes of memory that all maps of this process hold: contents, garbage, and what only views still
    see."""
    return held_bytes()
