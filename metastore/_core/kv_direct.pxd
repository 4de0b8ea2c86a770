from libc.stdint cimport uint8_t, uint64_t

from metastore._core.engine cimport Engine
from metastore._core.kv_messages cimport Slice
from metastore._core.kv_server cimport KVServer
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_keys cimport IndexView
from metastore._core.quiet cimport Quiet


cdef class DirectReads(Quiet):
    cdef uint64_t epoch                   # how often that was cleared
    cdef bint outside                     # the engine has a `reader`
    cdef object reader                    # one of this epoch that no thread uses now
    cdef readonly int inside              # threads that use one
    cdef readonly bint able               # the engine can be read so
    cdef readonly uint64_t served         # reads that did not miss
    cdef KVServer server
    cdef Store store
    cdef Engine engine                    # that of the store, without its guard
    cdef object made

    cdef object look_up(self, const Slice* name, bint keys_only, IndexView* view)
    cdef bint walk_to(self, tuple reader, bytes wanted, const uint8_t* p, size_t n, IndexView* view) except -1
    cdef bytes value_of(self, tuple reader, Store store, const IndexView* view, uint64_t epoch)
    cdef object result(self, bytes key, bytes value, const IndexView* view)
    cdef object step_back(self, object found)
