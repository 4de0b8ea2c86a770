cdef extern from *:
    """
    #ifndef MS_QUIET
    #define MS_QUIET
    /* For the loop's thread, without the GIL: it is about to wait for the GIL. With the GIL: it has it. */
    #define ms_want(p) __atomic_store_n((p), 1, __ATOMIC_SEQ_CST)
    #define ms_have(p) __atomic_store_n((p), 0, __ATOMIC_SEQ_CST)
    #define ms_wanted(p) __atomic_load_n((p), __ATOMIC_SEQ_CST)
    #endif
    """
    void ms_want(int*) noexcept nogil
    void ms_have(int*) noexcept nogil
    bint ms_wanted(int*) noexcept nogil

cdef class Quiet:
    cdef bint opened    # the loop's thread waits, and nothing is half done
    cdef int asking     # the loop's thread waits for the GIL; only by the functions above

    cdef int shut(self) except -1
