"""Look-ups in an ordered map's tree, walks over it, and counts of its living records. They change nothing.

The records that they return are borrowed: they are good until the tree changes, or as long as a view keeps its root.
"""

from libc.stdint cimport uint8_t, uint64_t

from metastore._core.ordered_map_node cimport Node, first_bits, inner_find, leaf_find, node_weight, ones, weights
from metastore._core.record cimport Record

cdef extern from *:
    void prefetch "__builtin_prefetch"(const void*) noexcept nogil
    int zeros "__builtin_ctzll"(uint64_t) noexcept nogil  # before the lowest bit that is set


cdef Record* tree_get(Node* root, const uint8_t* key, size_t n) noexcept nogil:
    """Return the record of `key` (borrowed) or NULL."""
    cdef Node* node = root
    cdef bint equal
    cdef int at
    if node == NULL:
        return NULL
    while not node.leaf:
        node = <Node*>node.slot[inner_find(node, key, n)]
    at = leaf_find(node, key, n, &equal)
    return <Record*>node.slot[at] if equal else NULL


cdef Record* tree_le(Node* root, const uint8_t* key, size_t n) noexcept nogil:
    """Return the record with the greatest key not above `key` (borrowed) or NULL."""
    cdef Node* node = root
    cdef Node* before = NULL
    cdef bint equal
    cdef int at
    if node == NULL:
        return NULL
    while not node.leaf:
        at = inner_find(node, key, n)
        if at > 0:
            before = <Node*>node.slot[at - 1]
        node = <Node*>node.slot[at]
    at = leaf_find(node, key, n, &equal)
    if equal:
        return <Record*>node.slot[at]
    if at > 0:
        return <Record*>node.slot[at - 1]
    if before == NULL:
        return NULL
    while not before.leaf:
        before = <Node*>before.slot[before.count - 1]
    return <Record*>before.slot[before.count - 1]


cdef size_t tree_weight(Node* root) noexcept nogil:
    """Return how many records are alive."""
    return 0 if root == NULL else node_weight(root)


cdef size_t tree_rank(Node* root, const uint8_t* key, size_t n) noexcept nogil:
    """Return how many records below `key` are alive."""
    cdef Node* node = root
    cdef size_t total = 0
    cdef bint equal
    cdef int at, i
    if node == NULL:
        return 0
    while not node.leaf:
        at = inner_find(node, key, n)
        for i in range(at):
            total += weights(node)[i]
        node = <Node*>node.slot[at]
    return total + ones(node.alive & first_bits(leaf_find(node, key, n, &equal)))


cdef Record* cursor_here(Cursor* cur) noexcept nogil:
    return <Record*>cur.node[cur.depth - 1].slot[cur.at[cur.depth - 1]]


cdef Record* cursor_next(Cursor* cur) noexcept nogil:
    """Move to the next record. Return NULL at the end, where the cursor is on no record."""
    cdef int level = cur.depth - 1
    cdef Node* node
    while level >= 0:
        cur.at[level] += 1
        node = cur.node[level]
        if cur.at[level] < node.count:
            while not node.leaf:
                node = <Node*>node.slot[cur.at[level]]
                level += 1
                cur.node[level] = node
                cur.at[level] = 0
            if cur.at[level] + 6 < node.count:
                # The records of a leaf lie anywhere in memory, so prefetch one that will be needed soon.
                prefetch(node.slot[cur.at[level] + 6])
            return <Record*>node.slot[cur.at[level]]
        level -= 1
    cur.depth = 0
    return NULL


cdef Record* cursor_prev(Cursor* cur) noexcept nogil:
    """Move back to the record before. Return NULL at the beginning, where the cursor is on no record."""
    cdef int level = cur.depth - 1
    cdef Node* node
    while level >= 0:
        cur.at[level] -= 1
        node = cur.node[level]
        if cur.at[level] >= 0:
            while not node.leaf:
                node = <Node*>node.slot[cur.at[level]]
                level += 1
                cur.node[level] = node
                cur.at[level] = node.count - 1
            return <Record*>node.slot[cur.at[level]]
        level -= 1
    cur.depth = 0
    return NULL


cdef bint cursor_seek(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil:
    """Go to the place where `key` is or would be inserted. Return whether the key is there. Needs a root."""
    cdef Node* node = root
    cdef int level = 0
    cdef bint equal
    while True:
        cur.node[level] = node
        if node.leaf:
            break
        cur.at[level] = inner_find(node, key, n)
        node = <Node*>node.slot[cur.at[level]]
        level += 1
    cur.depth = level + 1
    cur.at[level] = leaf_find(node, key, n, &equal)
    return equal


cdef Record* cursor_ge(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil:
    """Go to the first record not below `key`. Return NULL if there is none."""
    cur.depth = 0
    if root == NULL:
        return NULL
    cursor_seek(cur, root, key, n)
    if cur.at[cur.depth - 1] < cur.node[cur.depth - 1].count:
        return cursor_here(cur)
    cur.at[cur.depth - 1] -= 1
    return cursor_next(cur)


cdef Record* cursor_alive(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil:
    """Go to the first living record not below `key`. Return NULL if there is none. Subtrees without one are skipped."""
    return cursor_living(cur, root, tree_rank(root, key, n))


cdef Record* cursor_alive_below(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil:
    """Go to the last living record below `key`. Return NULL if there is none."""
    cdef size_t rank = tree_rank(root, key, n)
    cur.depth = 0
    return cursor_living(cur, root, rank - 1) if rank else NULL


cdef Record* cursor_living(Cursor* cur, Node* root, size_t left) noexcept nogil:
    """Go to the living record that has `left` others before it. Return NULL if there are not so many."""
    cdef Node* node = root
    cdef uint64_t bits
    cdef int level = 0, at
    cur.depth = 0
    if left >= tree_weight(root):
        return NULL
    while not node.leaf:
        at = 0
        while left >= weights(node)[at]:
            left -= weights(node)[at]
            at += 1
        cur.node[level] = node
        cur.at[level] = at
        node = <Node*>node.slot[at]
        level += 1
    bits = node.alive
    while left:
        bits &= bits - 1
        left -= 1
    cur.node[level] = node
    cur.at[level] = zeros(bits)
    cur.depth = level + 1
    return cursor_here(cur)


cdef Record* cursor_le(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil:
    """Go to the last record not above `key`. Return NULL if there is none."""
    cur.depth = 0
    if root == NULL:
        return NULL
    if cursor_seek(cur, root, key, n):
        return cursor_here(cur)
    return cursor_prev(cur)


cdef Record* cursor_below(Cursor* cur, Node* root, const uint8_t* key, size_t n) noexcept nogil:
    """Go to the last record below `key`. Return NULL if there is none."""
    cur.depth = 0
    if root == NULL:
        return NULL
    cursor_seek(cur, root, key, n)
    return cursor_prev(cur)


cdef Record* cursor_first(Cursor* cur, Node* root) noexcept nogil:
    """Go to the smallest record. Return NULL in an empty tree."""
    return cursor_ge(cur, root, <const uint8_t*>"", 0)


cdef Record* cursor_last(Cursor* cur, Node* root) noexcept nogil:
    """Go to the greatest record. Return NULL in an empty tree."""
    cdef Node* node = root
    cdef int level = 0
    cur.depth = 0
    if root == NULL:
        return NULL
    while True:
        cur.node[level] = node
        cur.at[level] = node.count - 1
        if node.leaf:
            break
        node = <Node*>node.slot[node.count - 1]
        level += 1
    cur.depth = level + 1
    return cursor_here(cur)
