from libc.stdint cimport uint64_t

from metastore._core.kv_server cimport KVServer
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_keys cimport IndexView


cdef class DirectReads:
    cdef public bint open                 # the loop's thread sets it before it waits, and clears it after that
    cdef readonly bint able               # the engine can be read so
    cdef readonly uint64_t served         # reads that did not miss
    cdef KVServer server
    cdef Store store
    cdef object made

    cdef object result(self, bytes key, bytes value, const IndexView* view)
    cdef object step_back(self, object found)
