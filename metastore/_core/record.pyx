"""What the records and nodes of all ordered maps take of the process's memory; the rest is in record.pxd."""

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

cdef size_t held = 0


cdef void* held_alloc(size_t n) noexcept nogil:
    """A piece of n bytes; NULL without memory."""
    cdef void* piece = malloc(n)
    if piece != NULL:
        count_add(&held, chunk_of(n))
    return piece


cdef void held_free(void* piece, size_t n) noexcept nogil:
    """Give back a piece of n bytes."""
    count_sub(&held, chunk_of(n))
    free(piece)


cdef size_t held_bytes() noexcept nogil:
    return count_get(&held)


def held_now() -> int:
    """Bytes of memory that all maps of this process hold: contents, what only views still see, and garbage."""
    return held_bytes()
