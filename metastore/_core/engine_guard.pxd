from metastore._core.engine cimport Engine, EngineCursor


cdef class GuardedEngine(Engine):
    cdef readonly Engine inner
    cdef readonly str name
    cdef int fail(self, str call, object error) except -1


cdef class GuardedCursor(EngineCursor):
    pass


cdef class GuardedWalk(GuardedCursor):
    cdef EngineCursor inner
