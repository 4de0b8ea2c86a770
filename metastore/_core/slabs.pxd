# Memory for small pieces, see slabs.pyx. The shares are here because the account of records (record.pxd) needs them.

from libc.stdint cimport uint16_t

cdef extern from *:
    """
    #define SLAB 131072
    /* AddressSanitizer sees what is wrong with pieces of malloc only. */
    #ifdef __SANITIZE_ADDRESS__
    #define SLAB_MOST 0
    #else
    #define SLAB_MOST 2048
    #endif
    #define SHARE(i) SLAB / (SLAB / (16 * (i)))
    #define SHARES_4(i) SHARE(i), SHARE(i + 1), SHARE(i + 2), SHARE(i + 3)
    #define SHARES_16(i) SHARES_4(i), SHARES_4(i + 4), SHARES_4(i + 8), SHARES_4(i + 12)
    #define SHARES_64(i) SHARES_16(i), SHARES_16(i + 16), SHARES_16(i + 32), SHARES_16(i + 48)
    static const uint16_t slab_share[129] __attribute__((unused)) = {SHARE(1), SHARES_64(1), SHARES_64(65)};
    """
    enum:
        SLAB            # bytes of a slab
        SLAB_MOST       # bytes of the largest piece
    # Bytes of a slab that go to a piece of up to 16, 16, 32, 48... bytes: a slab is divided by how many such pieces fit.
    const uint16_t slab_share[129]


cdef void* slab_alloc(size_t n) noexcept nogil
cdef void slab_free(void* piece) noexcept nogil
cdef bint slab_sparse(void* piece) noexcept nogil
