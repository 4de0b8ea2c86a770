from metastore._core.mvcc cimport Store

cpdef bint sweep_slice(Store store, size_t budget)
