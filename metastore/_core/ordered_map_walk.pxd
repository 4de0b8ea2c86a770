from libc.stdint cimport uint8_t

from metastore._core.ordered_map_node cimport MAX_DEPTH, Node
from metastore._core.record cimport Record


cdef struct Cursor:
    int depth            # levels in use; 0 = not on a record
    Node* node[MAX_DEPTH]
    int at[MAX_DEPTH]


cdef Record* tree_get(Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* tree_le(Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef size_t tree_weight(Node* root) noexcept nogil
cdef size_t tree_rank(Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* cursor_ge(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* cursor_le(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* cursor_alive(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* cursor_alive_below(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* cursor_below(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil
cdef Record* cursor_first(Cursor* cur, Node* root) noexcept nogil
cdef Record* cursor_last(Cursor* cur, Node* root) noexcept nogil
cdef Record* cursor_next(Cursor* cur) noexcept nogil
cdef Record* cursor_prev(Cursor* cur) noexcept nogil
