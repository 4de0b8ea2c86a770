"""Ordered map bytes -> bytes: a copy-on-write B+tree in C memory.

A key takes no Python object and nothing of the garbage collector: a record is one piece of memory, and a node is an
array of pointers to records. `view()` shares the root and takes O(1). A node or record with more than one owner is
never changed: a writer first copies the nodes on its path, so a view keeps the contents that it was made with.

Reference counts are plain integers, because everything here runs with the GIL held, or on a tree that only one thread
can reach. Records and nodes that a tree drops go to a list, which is freed in slices (`free_garbage`), some with every
later write. So dropping a map of millions of keys does not stop the process.

**Weights.** A map that weighs knows how many keys of clients are alive between two of its own keys. Only records of the
index weigh (FORMATS.md, "Engine records", table `k`). A record is alive if no later record of its key stands in the map
and it is no tombstone. A leaf has a bit for each of its records, and an inner node a number for each child, so a count
is two descents. The versions of a key come in ascending order, and a record that is replaced by another of the same key
and revision is alive as before. If the newest version is removed, as those of an entry that is taken back, the one before it
is the newest again. The version before a new one nearly always stands in the same leaf, where it costs nothing to find.
`ordered_map_check.check` verifies bits and numbers.
"""

cimport cython
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memmove

from metastore._core.mvcc_keys cimport REV_SIZE, index_tombstone, same_prefix
from metastore._core.ordered_map_node cimport (NODE_CAP, NODE_LOW, NODE_MERGED, NODE_PREFIX, MAX_DEPTH, Inner, Node,
                                               first_bits, hint_of, inner_find, key_at, leaf_find, node_weight, seps,
                                               weights)
from metastore._core.ordered_map_walk cimport (Cursor, cursor_first, cursor_ge, cursor_last, cursor_le, cursor_next,
                                               cursor_prev, tree_get, tree_le, tree_rank, tree_weight)
from metastore._core.record cimport (Record, chunk_of, held_alloc, held_free, key_cmp, rec_bytes, rec_chunk,
                                     rec_deleted, rec_key, rec_new, rec_new_deleted, rec_release, rec_value)

cdef Node* garbage = NULL

cdef enum:
    FREE_ON_WRITE = 64       # records freed along with a write while garbage is left
    FREE_ON_CLEAR = 4096     # records freed when a map is emptied


# --- nodes -----------------------------------------------------------------------------------------------

cdef inline size_t node_size(bint leaf) noexcept nogil:
    return sizeof(Node) if leaf else sizeof(Inner)


cdef inline void node_free(Node* node) noexcept nogil:
    """Give back a node's own memory."""
    held_free(node, node_size(node.leaf))


cdef Node* node_new(bint leaf) noexcept nogil:
    cdef Node* node = <Node*>held_alloc(node_size(leaf))
    if node != NULL:
        node.refs = 1
        node.count = 0
        node.leaf = leaf
        node.skip = 0
        node.link = NULL
        node.alive = 0
        if not leaf:
            seps(node)[0] = NULL
    return node


cdef void node_hint(Node* node) noexcept nogil:
    """Compute the common prefix and all hints. The keys must be in place."""
    cdef int first = 0 if node.leaf else 1
    cdef int i
    cdef size_t n = 0, top
    cdef Record* low
    cdef Record* high
    node.skip = 0
    if node.count <= first:
        return
    low = key_at(node, first)
    high = key_at(node, node.count - 1)
    top = low.klen if low.klen < high.klen else high.klen
    if top > NODE_PREFIX:
        top = NODE_PREFIX
    while n < top and rec_key(low)[n] == rec_key(high)[n]:
        n += 1
    node.skip = <uint8_t>n
    memcpy(node.prefix, rec_key(low), n)
    for i in range(first, node.count):
        low = key_at(node, i)
        node.hint[i] = hint_of(rec_key(low), low.klen, n)


cdef void node_hint_one(Node* node, int index) noexcept nogil:
    """Set the hint of a key just put at `index`. If it does not share the prefix, compute the prefix and all hints
    again."""
    cdef Record* rec = key_at(node, index)
    if rec.klen < node.skip or memcmp(rec_key(rec), node.prefix, node.skip) != 0:
        node_hint(node)
    else:
        node.hint[index] = hint_of(rec_key(rec), rec.klen, node.skip)


@cython.linetrace(False)  # the list of garbage belongs to all threads, see slabs.pyx
cdef void node_release(Node* node) noexcept nogil:
    """Give up one reference. The last one puts the node on the list of garbage."""
    global garbage
    node.refs -= 1
    if node.refs == 0:
        node.link = garbage
        garbage = node


@cython.linetrace(False)
cdef size_t free_garbage(size_t budget) noexcept nogil:
    """Free about `budget` records' worth of dropped nodes. Return how many records were released."""
    global garbage
    cdef size_t done = 0
    cdef Node* node
    cdef int i
    while garbage != NULL and done < budget:
        node = garbage
        garbage = node.link
        for i in range(node.count):
            if node.leaf:
                rec_release(<Record*>node.slot[i])
            else:
                node_release(<Node*>node.slot[i])
                if i > 0:
                    rec_release(seps(node)[i])
        done += node.count + 1
        node_free(node)
    return done


cdef bint garbage_left() noexcept nogil:
    return garbage != NULL


def reclaim(size_t budget=4096) -> bool:
    """Free about `budget` dropped records. Return True while some are left."""
    free_garbage(budget)
    return garbage != NULL


cdef Node* node_copy(Node* node) noexcept nogil:
    """Return an equal node that the caller owns, and give up the caller's reference to the old one."""
    cdef Node* copy = node_new(node.leaf)
    cdef int i
    if copy == NULL:
        return NULL
    copy.count = node.count
    copy.skip = node.skip
    copy.alive = node.alive
    memcpy(copy.prefix, node.prefix, node.skip)
    memcpy(copy.hint, node.hint, node.count * sizeof(uint32_t))
    memcpy(copy.slot, node.slot, node.count * sizeof(void*))
    if node.leaf:
        for i in range(node.count):
            (<Record*>node.slot[i]).refs += 1
    else:
        memcpy(seps(copy), seps(node), node.count * sizeof(void*))
        memcpy(weights(copy), weights(node), node.count * sizeof(uint32_t))
        for i in range(node.count):
            (<Node*>node.slot[i]).refs += 1
            if i > 0:
                seps(node)[i].refs += 1
    node_release(node)
    return copy


cdef Record* separator(Record* left, Record* right) noexcept nogil:
    """Return the shortest prefix of `right`'s key that is above `left`'s key."""
    cdef size_t n = 0
    cdef uint8_t* a = rec_key(left)
    cdef uint8_t* b = rec_key(right)
    while n < left.klen and n < right.klen and a[n] == b[n]:
        n += 1
    return rec_new(b, n + 1 if n < right.klen else right.klen, 0)


cdef int split_child(Node* parent, int index, bint at_right_edge, size_t* taken) noexcept nogil:
    """Split the full child `index` of `parent` (both owned) in two. Return -1 without memory, with nothing changed. The
    memory that this takes is added to `taken`.

    At the right edge nearly all slots stay on the left, so keys that arrive in order leave full nodes behind.
    """
    cdef Node* left = <Node*>parent.slot[index]
    cdef Node* right = node_new(left.leaf)
    cdef int keep = left.count - 1 if at_right_edge else left.count >> 1
    cdef int moved = left.count - keep
    cdef Record* sep
    if right == NULL:
        return -1
    if left.leaf:
        sep = separator(<Record*>left.slot[keep - 1], <Record*>left.slot[keep])
        if sep == NULL:
            node_free(right)
            return -1
        taken[0] += rec_chunk(sep)
        right.alive = left.alive >> keep
        left.alive = left.alive & first_bits(keep)
    else:
        sep = seps(left)[keep]
        memcpy(seps(right), &seps(left)[keep], moved * sizeof(void*))
        memcpy(weights(right), &weights(left)[keep], moved * sizeof(uint32_t))
        seps(right)[0] = NULL
    taken[0] += chunk_of(node_size(left.leaf))
    memcpy(right.slot, &left.slot[keep], moved * sizeof(void*))
    right.count = moved
    left.count = keep
    node_hint(left)
    node_hint(right)
    memmove(&parent.hint[index + 2], &parent.hint[index + 1], (parent.count - index - 1) * sizeof(uint32_t))
    memmove(&parent.slot[index + 2], &parent.slot[index + 1], (parent.count - index - 1) * sizeof(void*))
    memmove(&seps(parent)[index + 2], &seps(parent)[index + 1], (parent.count - index - 1) * sizeof(void*))
    memmove(&weights(parent)[index + 2], &weights(parent)[index + 1], (parent.count - index - 1) * sizeof(uint32_t))
    parent.slot[index + 1] = right
    weights(parent)[index + 1] = node_weight(right)
    weights(parent)[index] -= weights(parent)[index + 1]
    seps(parent)[index + 1] = sep
    parent.count += 1
    node_hint_one(parent, index + 1)
    return 0


cdef Node* own_child(Node* parent, int index) noexcept nogil:
    """Return the child, copied first if it is shared, or NULL without memory."""
    cdef Node* child = <Node*>parent.slot[index]
    if child.refs > 1:
        child = node_copy(child)
        if child != NULL:
            parent.slot[index] = child
    return child


cdef void drop_slot(Node* node, int index, size_t* taken) noexcept nogil:
    """Close the gap at `index` of an inner node whose child is already gone. The memory released is subtracted from
    `taken`."""
    cdef int at
    if node.count > 1:
        taken[0] -= rec_chunk(seps(node)[index if index > 0 else 1])
        rec_release(seps(node)[index if index > 0 else 1])
    at = index if index > 0 else 1
    if at < node.count:
        memmove(&seps(node)[at], &seps(node)[at + 1], (node.count - at - 1) * sizeof(void*))
        memmove(&node.hint[at], &node.hint[at + 1], (node.count - at - 1) * sizeof(uint32_t))
    memmove(&node.slot[index], &node.slot[index + 1], (node.count - index - 1) * sizeof(void*))
    memmove(&weights(node)[index], &weights(node)[index + 1], (node.count - index - 1) * sizeof(uint32_t))
    node.count -= 1


cdef void merge_children(Node* parent, int index, size_t* taken) noexcept nogil:
    """Join child `index + 1` into child `index` if both are ours and small. `taken`: as above."""
    cdef Node* left = <Node*>parent.slot[index]
    cdef Node* right = <Node*>parent.slot[index + 1]
    if left.refs > 1 or right.refs > 1 or left.count + right.count > NODE_MERGED:
        return
    memcpy(&left.slot[left.count], right.slot, right.count * sizeof(void*))
    weights(parent)[index] += weights(parent)[index + 1]
    if left.leaf:
        left.alive |= right.alive << left.count
    else:
        memcpy(&weights(left)[left.count], weights(right), right.count * sizeof(uint32_t))
        memcpy(&seps(left)[left.count], seps(right), right.count * sizeof(void*))
        seps(left)[left.count] = seps(parent)[index + 1]
        seps(parent)[index + 1].refs += 1
        taken[0] += rec_chunk(seps(parent)[index + 1])
    left.count += right.count
    node_hint(left)
    taken[0] -= chunk_of(node_size(right.leaf))
    node_free(right)
    drop_slot(parent, index + 1, taken)


cdef inline bint is_index(Record* rec) noexcept nogil:
    return rec.klen > REV_SIZE and rec_key(rec)[0] == c'k'


# --- the map ---------------------------------------------------------------------------------------------

cdef bytes key_bytes(Record* rec):
    return PyBytes_FromStringAndSize(<char*>rec_key(rec), rec.klen)


cdef bytes value_bytes(Record* rec):
    return PyBytes_FromStringAndSize(<char*>rec_value(rec), rec.vlen)


cdef object pair(Record* rec):
    if rec == NULL:
        return None
    return (key_bytes(rec), None if rec_deleted(rec) else value_bytes(rec))


cdef class OrderedMap:
    """Ordered map of bytes to bytes in memcmp order.

    Keys and values have up to 2^32 - 2 bytes. A view is read-only; writing to it raises TypeError. One thread at a time
    uses a map.

    `count` is the number of keys, `nbytes` the bytes of keys and values, and `taken` the bytes of memory that this map
    would give back if nothing else shared its records and nodes, as `chunk_of` rounds them. `weighs`: see above.
    """

    def __cinit__(self, bint weighs=False):
        self.weighs = weighs
        self.root = NULL
        self.top = NULL
        self.frozen = False
        self.count = 0
        self.nbytes = 0
        self.taken = 0

    def __dealloc__(self):
        if self.root != NULL:
            node_release(self.root)
            self.root = NULL

    # -- writing --

    cdef int make_room(self, bint at_right_edge) except -1:
        """Make sure that the root is owned and not full; a full root makes the tree grow by a level."""
        cdef Node* root
        if self.root == NULL:
            self.root = node_new(True)
            if self.root == NULL:
                raise MemoryError
            self.taken += chunk_of(sizeof(Node))
            return 0
        if self.root.refs > 1:
            root = node_copy(self.root)
            if root == NULL:
                raise MemoryError
            self.root = root
        if self.root.count < NODE_CAP:
            return 0
        root = node_new(False)
        if root == NULL:
            raise MemoryError
        root.slot[0] = self.root
        weights(root)[0] = node_weight(self.root)
        root.count = 1
        if split_child(root, 0, at_right_edge, &self.taken) < 0:
            node_free(root)
            raise MemoryError
        self.taken += chunk_of(sizeof(Inner))
        self.root = root
        return 0

    cdef int put_record(self, Record* rec) except -1:
        """Insert or replace. Takes over the caller's reference, also when it raises (MemoryError, TypeError)."""
        cdef Node* path[MAX_DEPTH]
        cdef int ways[MAX_DEPTH]
        cdef Node* node
        cdef Node* child
        cdef Record* old
        cdef int at, level = 0, change
        cdef bint equal = False
        cdef uint8_t* key = rec_key(rec)
        cdef bint append = self.top != NULL and key_cmp(rec_key(self.top), self.top.klen, key, rec.klen) < 0
        if self.frozen:
            rec_release(rec)
            raise TypeError("a view is read-only")
        try:
            self.make_room(append)
        except MemoryError:
            rec_release(rec)
            raise
        node = self.root
        while not node.leaf:
            at = node.count - 1 if append else inner_find(node, key, rec.klen)
            child = own_child(node, at)
            if child != NULL and child.count == NODE_CAP:
                if split_child(node, at, append, &self.taken) < 0:
                    child = NULL
                elif append or key_cmp(rec_key(seps(node)[at + 1]), seps(node)[at + 1].klen, key, rec.klen) <= 0:
                    at += 1
                    child = <Node*>node.slot[at]
            if child == NULL:
                rec_release(rec)
                raise MemoryError
            path[level] = node
            ways[level] = at
            level += 1
            node = child
        at = node.count if append else leaf_find(node, key, rec.klen, &equal)
        self.nbytes += rec_bytes(rec)
        self.taken += rec_chunk(rec)
        if equal:
            old = <Record*>node.slot[at]
            self.nbytes -= rec_bytes(old)
            self.taken -= rec_chunk(old)
            node.slot[at] = rec
            if old == self.top:
                self.top = rec
            rec_release(old)
        else:
            memmove(&node.slot[at + 1], &node.slot[at], (node.count - at) * sizeof(void*))
            memmove(&node.hint[at + 1], &node.hint[at], (node.count - at) * sizeof(uint32_t))
            node.slot[at] = rec
            node.count += 1
            node_hint_one(node, at)
            self.count += 1
            if append or self.count == 1:
                self.top = rec
            if self.weighs:
                change = self.weigh(node, at)
                while change and level > 0:
                    level -= 1
                    weights(path[level])[ways[level]] += change
                if at == 0 and is_index(rec):
                    self.supersede(rec)
        if garbage != NULL:
            free_garbage(FREE_ON_WRITE)
        return 0

    cdef int weigh(self, Node* leaf, int at) noexcept:
        """Set the bits of a leaf into whose slot `at` a record was put. Return by how much its weight has changed."""
        cdef Record* rec = <Record*>leaf.slot[at]
        cdef uint64_t bit = <uint64_t>1 << at, low = leaf.alive & (bit - 1)
        cdef size_t n
        cdef int change = 0
        leaf.alive = low | (leaf.alive ^ low) << 1
        if not is_index(rec):
            return 0
        n = rec.klen - REV_SIZE
        # Where the four bytes of the hints belong to the client's key, they tell most neighbours apart, and the record
        # before this one need not be brought into the cache.
        if (at > 0 and leaf.alive & bit >> 1 and (leaf.hint[at - 1] == leaf.hint[at] or leaf.skip + 4 > n)
                and same_prefix(<Record*>leaf.slot[at - 1], rec_key(rec), n)):
            leaf.alive ^= bit >> 1
            change = -1
        if not index_tombstone(rec):
            leaf.alive |= bit
            change += 1
        return change

    cdef int supersede(self, Record* rec) except -1:
        """Clear the bit of the version before a new one, which begins a leaf."""
        cdef Cursor cur
        cdef Record* before
        cursor_ge(&cur, self.root, rec_key(rec), rec.klen)
        before = cursor_prev(&cur)
        if before != NULL and same_prefix(before, rec_key(rec), rec.klen - REV_SIZE):
            self.mark(before, False)
        return 0

    cdef Record* heir(self, Node* leaf, int at) noexcept:
        """Return the version that will be alive when the one in slot `at` of a leaf is removed, or NULL."""
        cdef Cursor cur
        cdef Record* rec = <Record*>leaf.slot[at]
        cdef Record* other
        if not is_index(rec):
            return NULL
        if at + 1 < leaf.count:
            other = <Record*>leaf.slot[at + 1]
        else:
            cursor_ge(&cur, self.root, rec_key(rec), rec.klen)
            other = cursor_next(&cur)
        if other != NULL and same_prefix(other, rec_key(rec), rec.klen - REV_SIZE):
            return NULL
        if at > 0:
            other = <Record*>leaf.slot[at - 1]
        else:
            cursor_ge(&cur, self.root, rec_key(rec), rec.klen)
            other = cursor_prev(&cur)
        if other == NULL or index_tombstone(other) or not same_prefix(other, rec_key(rec), rec.klen - REV_SIZE):
            return NULL
        return other

    cdef int mark(self, Record* rec, bint alive) except -1:
        """Say whether a record is alive. Raises MemoryError."""
        cdef Node* path[MAX_DEPTH]
        cdef int ways[MAX_DEPTH]
        cdef int level = 0
        cdef bint equal
        cdef Node* leaf = self.own_path(rec_key(rec), rec.klen, path, ways, &level)
        cdef uint64_t bit = <uint64_t>1 << leaf_find(leaf, rec_key(rec), rec.klen, &equal)
        if (leaf.alive & bit != 0) == alive:
            return 0
        leaf.alive ^= bit
        while level > 0:
            level -= 1
            weights(path[level])[ways[level]] += 1 if alive else -1
        return 0

    cdef Node* own_path(self, const uint8_t* key, size_t n, Node** path, int* ways, int* level) except NULL:
        """Return the leaf of a key, after the nodes above it were made ours. Needs a root. Raises MemoryError."""
        cdef Node* node = self.root
        if node.refs > 1:
            node = node_copy(node)
            if node == NULL:
                raise MemoryError
            self.root = node
        while not node.leaf:
            path[level[0]] = node
            ways[level[0]] = inner_find(node, key, n)
            node = own_child(node, ways[level[0]])
            if node == NULL:
                raise MemoryError
            level[0] += 1
        return node

    cdef size_t between(self, const uint8_t* low, size_t low_n, const uint8_t* high, size_t high_n) noexcept:
        """Return how many records from `low` on and below `high` are alive."""
        cdef size_t first = tree_rank(self.root, low, low_n), last = tree_rank(self.root, high, high_n)
        return last - first if last > first else 0

    cdef int put_raw(self, const uint8_t* key, size_t kn, const uint8_t* value, size_t vn) except -1:
        """Insert or replace with copies of the given bytes."""
        cdef Record* rec = rec_new(key, kn, vn)
        if rec == NULL:
            raise MemoryError
        memcpy(rec_value(rec), value, vn)
        return self.put_record(rec)

    cdef bint remove(self, const uint8_t* key, size_t n) except -1:
        """Remove a key. Return whether it was there."""
        cdef Node* path[MAX_DEPTH]
        cdef int at[MAX_DEPTH]
        cdef int level = 0
        cdef Node* node
        cdef Record* old
        cdef Record* heir
        cdef Cursor cur
        cdef bint equal
        cdef uint64_t bit
        cdef int i
        if self.frozen:
            raise TypeError("a view is read-only")
        if tree_get(self.root, key, n) == NULL:
            return False
        node = self.own_path(key, n, path, at, &level)
        at[level] = leaf_find(node, key, n, &equal)
        old = <Record*>node.slot[at[level]]
        heir = self.heir(node, at[level]) if self.weighs else NULL
        self.nbytes -= rec_bytes(old)
        self.taken -= rec_chunk(old)
        self.count -= 1
        memmove(&node.slot[at[level]], &node.slot[at[level] + 1], (node.count - at[level] - 1) * sizeof(void*))
        memmove(&node.hint[at[level]], &node.hint[at[level] + 1], (node.count - at[level] - 1) * sizeof(uint32_t))
        node.count -= 1
        path[level] = node
        bit = <uint64_t>1 << at[level]
        for i in range(level if node.alive & bit else 0):
            weights(path[i])[at[i]] -= 1
        node.alive = node.alive & (bit - 1) | (node.alive >> 1 & ~(bit - 1))
        while level > 0 and path[level].count < NODE_LOW:
            level -= 1
            self.shrink(path[level], at[level])
        self.lower_root()
        if old == self.top:
            self.top = cursor_last(&cur, self.root)
        rec_release(old)
        if heir != NULL:
            self.mark(heir, True)
        if garbage != NULL:
            free_garbage(FREE_ON_WRITE)
        return True

    cdef void shrink(self, Node* parent, int index) noexcept:
        """Child `index` has become small: drop it if it is empty, else join it with a neighbour."""
        cdef Node* child = <Node*>parent.slot[index]
        if child.count == 0:
            self.taken -= chunk_of(node_size(child.leaf))
            node_free(child)
            drop_slot(parent, index, &self.taken)
            return
        if index + 1 < parent.count:
            merge_children(parent, index, &self.taken)
        if index > 0 and (<Node*>parent.slot[index]).count < NODE_LOW:
            merge_children(parent, index - 1, &self.taken)

    cdef void lower_root(self) noexcept:
        cdef Node* node = self.root
        while not node.leaf and node.count == 1:
            self.root = <Node*>node.slot[0]
            self.taken -= chunk_of(sizeof(Inner))
            node_free(node)
            node = self.root
        if node.count == 0:
            self.taken -= chunk_of(node_size(node.leaf))
            node_free(node)
            self.root = NULL

    cpdef clear(self):
        """Remove everything. The work done at once is bounded; later writes free the rest."""
        if self.frozen:
            raise TypeError("a view is read-only")
        if self.root != NULL:
            node_release(self.root)
            free_garbage(FREE_ON_CLEAR)
        self.root = NULL
        self.top = NULL
        self.count = 0
        self.nbytes = 0
        self.taken = 0

    cpdef OrderedMap view(self):
        """Return a read-only map with the present contents, in O(1). Later writes to this map do not show in it."""
        cdef OrderedMap other = OrderedMap(self.weighs)
        other.root = self.root
        other.count = self.count
        other.nbytes = self.nbytes
        other.taken = self.taken
        other.frozen = True
        if self.root != NULL:
            self.root.refs += 1
        return other

    # -- Python --

    def __len__(self):
        return self.count

    def __contains__(self, bytes key not None):
        cdef Record* rec = tree_get(self.root, <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        return rec != NULL and not rec_deleted(rec)

    def get(self, bytes key not None, default=None):
        """Return the value of `key`, or `default` if it is missing or marked as deleted."""
        cdef Record* rec = tree_get(self.root, <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        return default if rec == NULL or rec_deleted(rec) else value_bytes(rec)

    def set(self, bytes key not None, bytes value not None):
        """Insert or replace. Raises MemoryError, TypeError (view)."""
        self.put_raw(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key),
                     <const uint8_t*>PyBytes_AS_STRING(value), PyBytes_GET_SIZE(value))

    def set_deleted(self, bytes key not None):
        """Mark a key as deleted, as overlays hold pending deletions. The iterators show the value None."""
        cdef Record* rec = rec_new_deleted(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))
        if rec == NULL:
            raise MemoryError
        self.put_record(rec)

    def delete(self, bytes key not None) -> bool:
        """Remove `key`. Return whether it was there."""
        return self.remove(<const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key))

    def alive(self, bytes start=b"", bytes end=None) -> int:
        """Return how many records with start <= key < end (None: to the last) are alive. 0 in a map that does not
        weigh."""
        if end is None:
            return tree_weight(self.root) - tree_rank(self.root, <const uint8_t*>PyBytes_AS_STRING(start),
                                                      PyBytes_GET_SIZE(start))
        return self.between(<const uint8_t*>PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start),
                            <const uint8_t*>PyBytes_AS_STRING(end), PyBytes_GET_SIZE(end))

    def seek_ge(self, bytes key not None):
        """Return (key, value) of the first key not below `key`, or None."""
        cdef Cursor cur
        return pair(cursor_ge(&cur, self.root, <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)))

    def seek_le(self, bytes key not None):
        """Return (key, value) of the last key not above `key`, or None."""
        return pair(tree_le(self.root, <const uint8_t*>PyBytes_AS_STRING(key), PyBytes_GET_SIZE(key)))

    def scan(self, bytes start=b"", bytes end=None, bint reverse=False, Py_ssize_t limit=0) -> list:
        """Return the (key, value) pairs with start <= key < end (None: to the last), at most `limit` pairs (0: all)."""
        cdef Cursor cur
        cdef Record* rec
        cdef list pairs = []
        cdef const uint8_t* edge = NULL
        cdef size_t n = 0
        if end is not None:
            edge = <const uint8_t*>PyBytes_AS_STRING(end)
            n = PyBytes_GET_SIZE(end)
        if not reverse:
            rec = cursor_ge(&cur, self.root, <const uint8_t*>PyBytes_AS_STRING(start), PyBytes_GET_SIZE(start))
            while rec != NULL and (edge == NULL or key_cmp(rec_key(rec), rec.klen, edge, n) < 0):
                pairs.append(pair(rec))
                if len(pairs) == limit:
                    break
                rec = cursor_next(&cur)
            return pairs
        rec = cursor_last(&cur, self.root) if edge == NULL else cursor_le(&cur, self.root, edge, n)
        if rec != NULL and edge != NULL and key_cmp(rec_key(rec), rec.klen, edge, n) == 0:
            rec = cursor_prev(&cur)
        edge = <const uint8_t*>PyBytes_AS_STRING(start)
        n = PyBytes_GET_SIZE(start)
        while rec != NULL and key_cmp(rec_key(rec), rec.klen, edge, n) >= 0:
            pairs.append(pair(rec))
            if len(pairs) == limit:
                break
            rec = cursor_prev(&cur)
        return pairs

    def items(self, bytes start=b"", bytes end=None, size_t chunk=256):
        """Iterate over (key, value) in order over the contents at the time of the call, `chunk` pairs at a time."""
        cdef OrderedMap view = self.view()
        cdef bytes at = start
        while True:
            pairs = view.scan(at, end, False, chunk)
            yield from pairs
            if len(pairs) < chunk:
                return
            at = pairs[len(pairs) - 1][0] + b"\0"
