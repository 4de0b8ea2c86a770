# Nodes of an ordered map, and the search in one node. The functions are inline because every look-up comes through here.
# What nodes and weights mean is in ordered_map.pyx.

from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp

from metastore._core.record cimport Record, key_cmp, rec_key

cdef extern from *:
    int ones "__builtin_popcountll"(uint64_t) noexcept nogil

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
    uint64_t alive       # leaf of a map that weighs: a bit for each slot whose record is the living version of a key
    uint8_t prefix[NODE_PREFIX]
    uint32_t hint[NODE_CAP]  # the four bytes after the common ones: a search seldom reads the keys
    void* slot[NODE_CAP]     # leaf: Record*, else Node*


cdef struct Inner:
    Node base
    Record* sep[NODE_CAP]    # sep[i]: no key below slot[i] is smaller; sep[0] is unused (NULL)
    uint32_t below[NODE_CAP] # alive records below slot[i]


cdef inline Record** seps(Node* node) noexcept nogil:
    return (<Inner*>node).sep


cdef inline uint32_t* weights(Node* node) noexcept nogil:
    return (<Inner*>node).below


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


cdef inline uint64_t first_bits(int n) noexcept nogil:
    """Return a mask of the first n of 64 slots."""
    return ~<uint64_t>0 if n >= NODE_CAP else (<uint64_t>1 << n) - 1


cdef inline uint32_t node_weight(Node* node) noexcept nogil:
    """Return how many records below a node are alive."""
    cdef uint32_t total = 0
    cdef int i
    if node.leaf:
        return <uint32_t>ones(node.alive)
    for i in range(node.count):
        total += weights(node)[i]
    return total


cdef inline int narrow_above(Node* node, uint32_t hint, int low, int* high) noexcept nogil:
    """There are many ties, so find their end by halving."""
    cdef int mid
    while low < high[0]:
        mid = (low + high[0]) >> 1
        if node.hint[mid] <= hint:
            low = mid + 1
        else:
            high[0] = mid
    return 0


cdef inline int hint_range(Node* node, int first, const uint8_t* key, size_t n, int* low, int* high) noexcept nogil:
    """Narrow a search by prefix and hints. Slots before `low` are below the key, slots from `high` on are above it."""
    cdef int top = node.count, mid, order
    cdef uint32_t hint
    low[0] = first
    high[0] = top
    if node.skip:
        order = memcmp(key, node.prefix, node.skip if node.skip < n else n)
        if order == 0 and n < node.skip:
            order = -1
        if order < 0:
            high[0] = first
            return 0
        if order > 0:
            low[0] = top
            return 0
    hint = hint_of(key, n, node.skip)
    while low[0] < top:
        mid = (low[0] + top) >> 1
        if node.hint[mid] < hint:
            low[0] = mid + 1
        else:
            top = mid
    top = low[0]
    # There are few ties, so walk over them.
    while top < high[0] and node.hint[top] == hint:
        top += 1
        if top - low[0] > 4:
            return narrow_above(node, hint, top, high)
    high[0] = top
    return 0


cdef inline int leaf_find(Node* node, const uint8_t* key, size_t n, bint* equal) noexcept nogil:
    """Return the position of the first record whose key is not below `key`."""
    cdef int low, high, mid, order
    cdef Record* rec
    equal[0] = False
    hint_range(node, 0, key, n, &low, &high)
    while low < high:
        mid = (low + high) >> 1
        rec = <Record*>node.slot[mid]
        order = key_cmp(rec_key(rec), rec.klen, key, n)
        if order < 0:
            low = mid + 1
        else:
            if order == 0:
                equal[0] = True
                return mid
            high = mid
    return low


cdef inline int inner_find(Node* node, const uint8_t* key, size_t n) noexcept nogil:
    """Return the child that `key` belongs to: the last whose separator is not above it."""
    cdef int low, high, mid
    cdef Record** sep = seps(node)
    hint_range(node, 1, key, n, &low, &high)
    while low < high:
        mid = (low + high) >> 1
        if key_cmp(rec_key(sep[mid]), sep[mid].klen, key, n) <= 0:
            low = mid + 1
        else:
            high = mid
    return low - 1
