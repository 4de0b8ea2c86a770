from metastore._core.engine cimport Engine
from metastore._core.kv_messages cimport Kv
from metastore._core.mvcc_pairs cimport KvList
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport Record


cdef int take_value(Kv* kv, Record* rec) except -1
cdef bint load_values(Engine engine, OrderedMap overlay, KvList* out, size_t first) except -1
