from metastore._core.ordered_map cimport OrderedMap

cdef bytes pack_slice(OrderedMap tree, bytes at, size_t budget)
