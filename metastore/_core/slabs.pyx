"""Memory for pieces of up to SLAB_MOST (2,048) bytes: the records and nodes of all ordered maps.

glibc's malloc joins freed neighbours and sorts them by size, which took more than half of a compaction. Here a piece that
is freed goes to a list of its slab, and the next piece of that size is taken from there. mimalloc is as fast, but its
sizes are a quarter apart: records would take 20 % more memory.

- A **region** is REGION (4 MiB) of addresses from mmap, aligned to as much. Its first page describes its 32 slabs, so a
  piece finds its slab by its address.
- A **slab** is 128 KiB of a region and has pieces of one size. There are 117 sizes: 16 bytes apart up to 1,504, above
  that as large as the number of pieces in a slab allows (`slab_share`).

The caller holds the GIL, because there is no lock. A debug build checks that. Its line tracing would let go of the GIL in
the middle of these functions, because coverage's tracer runs Python: with two threads a free list was torn apart. So they
are not traced. Pieces are aligned to 8 bytes.

**Limits.** A piece takes at most 15 bytes more than it was asked for, 26 above 512 and 38 above 1,440 bytes (malloc takes
8 to 23). Besides, the last slab of each size may not be full; of that only those pages are resident that were ever used.

What is freed serves pieces of the same size only, until a whole slab is empty. If a part of the records stays while the
others come back in another size, the slabs of the old size stay as well: after 90 % of values of 1,000 bytes have grown by
a tenth, the maps take 1.8 times what they hold, and 2.4 times after five such changes. With malloc it was 1.24 times.
A defragmentation (`ordered_map_pack`) makes 1.02 times of that.

Slabs that are empty serve all sizes. KEPT of them (1 MiB) remain resident; the pages of others are given back at once, and
so is a region if it is empty and others have KEPT empty slabs. When everything is freed, one region remains, of which 1 MiB
and 4 KiB may be resident. Giving back a slab takes 12 us, and using its pages anew 50 us, for 122 pieces of 1 KB.
"""

cimport cython
from libc.stdint cimport uint8_t, uint32_t

cdef extern from "<sys/mman.h>" nogil:
    enum:
        PROT_READ
        PROT_WRITE
        MAP_PRIVATE
        MAP_ANONYMOUS
        MADV_DONTNEED
    void* MAP_FAILED
    void* mmap(void* at, size_t n, int prot, int flags, int fd, long offset) noexcept
    int munmap(void* at, size_t n) noexcept
    int madvise(void* at, size_t n, int advice) noexcept

cdef extern from *:
    """
    #if METASTORE_DEBUG_BUILD
    static void slab_check(void) { if (!PyGILState_Check()) Py_FatalError("a record is used without the GIL"); }
    #else
    #define slab_check()
    #endif
    """
    void slab_check() noexcept nogil
    int lowest_bit "__builtin_ctz"(uint32_t) noexcept nogil
    int ones "__builtin_popcount"(uint32_t) noexcept nogil

cdef enum:
    REGION = 4194304
    SLABS = 32               # of a region
    HEADER = 4096            # the bytes at the start of its first slab that describe it
    KEPT = 8                 # empty slabs whose pages are kept

cdef uint32_t ALL = 0xFFFFFFFFUL


cdef struct Slab:
    Slab* next               # in the list of slabs with room for pieces of this size
    Slab** link              # what points here in it; NULL if this slab is full or empty
    void* freed              # pieces that were freed, each points to the next
    uint8_t* fresh           # from here on no piece was ever used
    uint8_t* end
    uint32_t size            # of a piece
    uint32_t used            # pieces in use


cdef struct Region:
    Region* next             # in the list of regions, those with an empty slab in front
    Region* before
    uint32_t empty           # a bit for each slab that is empty,
    uint32_t kept            # and for each of these whose pages are kept
    Slab slabs[SLABS]


cdef Slab* rooms[129]       # by size / 16: slabs with room, the last one that was full in front
cdef Region* first = NULL
cdef Region* last = NULL
cdef size_t regions = 0, empties = 0, kept = 0


@cython.linetrace(False)
cdef inline uint8_t* slab_begin(Region* region, int i) noexcept nogil:
    return <uint8_t*>region + (i * <size_t>SLAB if i else HEADER)


@cython.linetrace(False)
cdef inline uint8_t* slab_end(Region* region, int i) noexcept nogil:
    return <uint8_t*>region + (i + 1) * <size_t>SLAB


@cython.linetrace(False)
cdef inline Region* region_of(void* at) noexcept nogil:
    return <Region*>(<size_t>at & ~<size_t>(REGION - 1))


# --- regions ---------------------------------------------------------------------------------------------

@cython.linetrace(False)
cdef void region_link(Region* region, bint in_front) noexcept nogil:
    global first, last
    region.before = NULL if in_front else last
    region.next = first if in_front else NULL
    if region.before != NULL:
        region.before.next = region
    else:
        first = region
    if region.next != NULL:
        region.next.before = region
    else:
        last = region


@cython.linetrace(False)
cdef void region_unlink(Region* region) noexcept nogil:
    global first, last
    if region.before != NULL:
        region.before.next = region.next
    else:
        first = region.next
    if region.next != NULL:
        region.next.before = region.before
    else:
        last = region.before


@cython.linetrace(False)
cdef void* map_pages(size_t n) noexcept nogil:
    return mmap(NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)


@cython.linetrace(False)
cdef Region* region_new() noexcept nogil:
    """Map a region whose slabs are all empty. Return NULL without memory."""
    global regions, empties
    cdef uint8_t* at = <uint8_t*>map_pages(REGION)
    cdef uint8_t* begin
    cdef Region* region
    if <void*>at == MAP_FAILED:
        return NULL
    # The kernel puts one mapping below the other, so nearly always only the first one is not aligned.
    region = region_of(at)
    if <uint8_t*>region != at:
        munmap(at, REGION)
        at = <uint8_t*>map_pages(2 * <size_t>REGION)
        if <void*>at == MAP_FAILED:
            return NULL
        begin = <uint8_t*>region_of(at + REGION - 1)
        region = <Region*>begin
        if begin > at:
            munmap(at, begin - at)
        if begin < at + REGION:
            munmap(begin + REGION, at + REGION - begin)
    region.empty = ALL
    regions += 1
    empties += SLABS
    region_link(region, True)
    return region


@cython.linetrace(False)
cdef void region_free(Region* region) noexcept nogil:
    global regions, empties, kept
    regions -= 1
    empties -= SLABS
    kept -= ones(region.kept)
    region_unlink(region)
    munmap(region, REGION)


# --- slabs -----------------------------------------------------------------------------------------------

@cython.linetrace(False)
cdef void slab_link(Slab* slab) noexcept nogil:
    cdef Slab** head = &rooms[slab.size >> 4]
    slab.next = head[0]
    slab.link = head
    if slab.next != NULL:
        slab.next.link = &slab.next
    head[0] = slab


@cython.linetrace(False)
cdef void slab_unlink(Slab* slab) noexcept nogil:
    slab.link[0] = slab.next
    if slab.next != NULL:
        slab.next.link = slab.link
    slab.link = NULL


@cython.linetrace(False)
cdef Slab* slab_new(uint32_t share) noexcept nogil:
    """Take an empty slab for pieces of this size. Return NULL without memory."""
    global empties, kept
    cdef Region* region = first
    cdef Slab* slab
    cdef uint32_t bit
    cdef int i
    if region == NULL or region.empty == 0:
        region = region_new()
        if region == NULL:
            return NULL
    i = lowest_bit(region.kept if region.kept else region.empty)
    bit = <uint32_t>1 << i
    empties -= 1
    kept -= region.kept >> i & 1
    region.empty &= ~bit
    region.kept &= ~bit
    if region.empty == 0:
        region_unlink(region)
        region_link(region, False)
    slab = &region.slabs[i]
    slab.size = share & ~<uint32_t>7
    slab.freed = NULL
    slab.fresh = slab_begin(region, i)
    slab.end = slab.fresh + (slab_end(region, i) - slab.fresh) // slab.size * slab.size
    slab_link(slab)
    return slab


@cython.linetrace(False)
cdef void slab_drop(Slab* slab) noexcept nogil:
    """Give back a slab whose last piece was freed."""
    global empties, kept
    cdef Region* region = region_of(slab)
    cdef int i = slab - region.slabs
    slab_unlink(slab)
    if region.empty == 0:
        region_unlink(region)
        region_link(region, True)
    empties += 1
    region.empty |= <uint32_t>1 << i
    if region.empty == ALL and empties >= SLABS + KEPT:
        region_free(region)
    elif kept < KEPT:
        kept += 1
        region.kept |= <uint32_t>1 << i
    else:
        madvise(slab_begin(region, i), slab_end(region, i) - slab_begin(region, i), MADV_DONTNEED)


# --- pieces ----------------------------------------------------------------------------------------------

@cython.linetrace(False)
cdef void* slab_alloc(size_t n) noexcept nogil:
    """Return a piece of n bytes, SLAB_MOST at most, or NULL without memory."""
    cdef uint32_t share = slab_share[(n + 15) >> 4]
    cdef Slab* slab = rooms[share >> 4]
    cdef void* piece
    slab_check()
    if slab == NULL:
        slab = slab_new(share)
        if slab == NULL:
            return NULL
    piece = slab.freed
    if piece != NULL:
        slab.freed = (<void**>piece)[0]
    else:
        piece = slab.fresh
        slab.fresh += slab.size
    slab.used += 1
    if slab.freed == NULL and slab.fresh == slab.end:
        slab_unlink(slab)
    return piece


@cython.linetrace(False)
cdef void slab_free(void* piece) noexcept nogil:
    """Give back a piece."""
    cdef Slab* slab = &region_of(piece).slabs[<size_t>piece // SLAB % SLABS]
    slab_check()
    if slab.link == NULL:
        slab_link(slab)
    (<void**>piece)[0] = slab.freed
    slab.freed = piece
    slab.used -= 1
    if slab.used == 0:
        slab_drop(slab)


@cython.linetrace(False)
cdef bint slab_sparse(void* piece) noexcept nogil:
    """Whether less than half of a piece's slab is in use, and the next piece of this size would come from another one."""
    cdef Slab* slab = &region_of(piece).slabs[<size_t>piece // SLAB % SLABS]
    return 2 * <size_t>slab.used * slab.size < SLAB and rooms[slab.size >> 4] != slab


def slabs_now() -> tuple:
    """Return the bytes of addresses that all slabs take, how many of them were used, so that they may be resident, and how
    many are pieces in use."""
    cdef Region* region = first
    cdef Slab* slab
    cdef size_t reached = 0, used = 0
    cdef int i
    while region != NULL:
        reached += HEADER
        for i in range(SLABS):
            slab = &region.slabs[i]
            if not (region.empty & ~region.kept) >> i & 1:
                reached += (slab_end(region, i) if slab.fresh == slab.end else slab.fresh) - slab_begin(region, i)
            used += <size_t>slab.used * slab.size
        region = region.next
    return regions * <size_t>REGION, reached, used
