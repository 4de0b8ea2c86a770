from libc.stdint cimport uint8_t, uint16_t, uint32_t

from metastore._core.record cimport Record, rec_key

cdef enum:
    NODE_CAP = 64        # slots of a node
    NODE_LOW = 16        # below this many slots a node looks for a neighbour to merge with
    NODE_MERGED = 48     # and merges if both together hold at most this many
    NODE_PREFIX = 40     # longest common prefix that a node keeps apart
    MAX_DEPTH = 24


cdef struct Node:
    uint32_t refs        # trees and nodes that point here; shared nodes (> 1) are never changed
    uint16_t count
    uint8_t leaf
    uint8_t skip         # bytes that all keys of this node have in common, as far as they stand in `prefix`
    Node* link           # next in the list of nodes that wait to be freed
    uint8_t prefix[NODE_PREFIX]
    uint32_t hint[NODE_CAP]  # the four bytes after the common ones: a search seldom reads the keys
    void* slot[NODE_CAP]     # leaf: Record*, else Node*


cdef struct Inner:
    Node base
    Record* sep[NODE_CAP]    # sep[i]: no key below slot[i] is smaller; sep[0] is unused (NULL)


cdef struct Cursor:
    int depth            # levels in use; 0 = not on a record
    Node* node[MAX_DEPTH]
    int at[MAX_DEPTH]


cdef inline Record** seps(Node* node) noexcept nogil:
    return (<Inner*>node).sep


cdef inline uint32_t hint_of(const uint8_t* key, size_t n, size_t skip) noexcept nogil:
    """Four bytes of a key from `skip` on, big-endian, with zeros behind its end. They are ordered as the keys, except
    for ties."""
    cdef size_t left = n - skip if n > skip else 0
    key += skip
    if left >= 4:
        return <uint32_t>key[0] << 24 | <uint32_t>key[1] << 16 | <uint32_t>key[2] << 8 | key[3]
    if left == 0:
        return 0
    return (<uint32_t>key[0] << 24 | (<uint32_t>key[1] << 16 if left > 1 else <uint32_t>0)
            | (<uint32_t>key[2] << 8 if left > 2 else <uint32_t>0))


cdef inline Record* key_at(Node* node, int index) noexcept nogil:
    """The record by which `index` is searched: a leaf's record, or an inner node's separator (from 1 on)."""
    return <Record*>node.slot[index] if node.leaf else seps(node)[index]


cdef Record* tree_get(Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* tree_le(Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* cursor_ge(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* cursor_le(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* cursor_first(Cursor* cur, Node* root) noexcept nogil
cdef Record* cursor_last(Cursor* cur, Node* root) noexcept nogil
cdef Record* cursor_next(Cursor* cur) noexcept nogil
cdef Record* cursor_prev(Cursor* cur) noexcept nogil

cdef void node_release(Node* node) noexcept nogil
cdef size_t free_garbage(size_t budget) noexcept nogil
cdef bint garbage_left() noexcept nogil


cdef bytes key_bytes(Record* rec)
cdef object pair(Record* rec)


cdef class OrderedMap:
    cdef Node* root
    cdef Record* top              # greatest known record (borrowed), NULL when not known
    cdef bint frozen
    cdef readonly size_t count
    cdef readonly size_t nbytes
    cdef readonly size_t taken

    cdef int make_room(self, bint at_right_edge) except -1
    cdef void shrink(self, Node* parent, int index) noexcept
    cdef void lower_root(self) noexcept
    cdef int put_record(self, Record* rec) except -1
    cdef int put_raw(self, const uint8_t* key, size_t kn, const uint8_t* value, size_t vn) except -1
    cdef bint remove(self, const uint8_t* key, size_t n) except -1
    cpdef clear(self)
    cpdef OrderedMap view(self)
