"""Verifies the rules that an ordered map keeps inside (see ordered_map.pyx). For tests."""

from cpython.bytes cimport PyBytes_FromStringAndSize

from metastore._core.engine cimport MemoryEngine
from metastore._core.mvcc_keys cimport REV_SIZE
from metastore._core.ordered_map cimport OrderedMap, key_bytes, pair
from metastore._core.ordered_map_node cimport NODE_CAP, Inner, Node, hint_of, key_at, seps, weights
from metastore._core.ordered_map_walk cimport Cursor, cursor_last, tree_weight
from metastore._core.record cimport Record, chunk_of, rec_chunk, rec_key


def check(OrderedMap tree not None) -> None:
    """Verify the tree's own rules. Raises AssertionError."""
    cdef size_t records = 0, size = 0, taken = 0
    cdef list keys = []
    cdef list alive = []
    cdef Cursor cur
    if tree.root != NULL:
        taken = check_node(tree.root, keys, alive)
    for key, value in keys:
        records += 1
        size += len(key) + (0 if value is None else len(value))
    assert [key for key, _ in keys] == sorted({key for key, _ in keys}), "keys out of order"
    assert records == tree.count, "count is wrong"
    assert size == tree.nbytes, "bytes are wrong"
    assert taken == tree.taken, f"{tree.taken} bytes of memory are told, {taken} found"
    assert alive == (living(keys) if tree.weighs else []), "bits of living records are wrong"
    assert tree_weight(tree.root) == len(alive), "weight of the root is wrong"
    assert tree.top == NULL or tree.top == cursor_last(&cur, tree.root), "greatest key is wrong"


cdef list living(list pairs):
    """Return the keys of the records that are alive, found by looking at all of them."""
    newest = {key[:-REV_SIZE]: (key, value) for key, value in pairs if key[:1] == b"k" and len(key) > REV_SIZE}
    return [key for key, value in newest.values() if len(value or b"") < 2 or not value[1] & 1]


cdef size_t check_node(Node* node, list keys, list alive) except? 0:
    """Append the records below `node` to `keys`, and the keys of those whose bit is set to `alive`. Check counts and
    separators. Return the memory that node and records take."""
    cdef int i
    cdef size_t taken = chunk_of(sizeof(Node) if node.leaf else sizeof(Inner))
    assert node.refs >= 1 and 1 <= node.count <= NODE_CAP, "node out of bounds"
    for i in range(node.count):
        if node.leaf or i > 0:
            assert key_bytes(key_at(node, i))[:node.skip] == (<char*>node.prefix)[:node.skip], "wrong prefix"
            assert node.hint[i] == hint_of(rec_key(key_at(node, i)), key_at(node, i).klen, node.skip), "wrong hint"
        if node.leaf:
            assert (<Record*>node.slot[i]).refs >= 1, "freed record"
            keys.append(pair(<Record*>node.slot[i]))
            if node.alive >> i & 1:
                alive.append(key_bytes(<Record*>node.slot[i]))
            taken += rec_chunk(<Record*>node.slot[i])
            continue
        if i > 0:
            taken += rec_chunk(seps(node)[i])
            assert keys[len(keys) - 1][0] < key_bytes(seps(node)[i]), "separator not above its left side"
        before = len(keys)
        living_before = len(alive)
        taken += check_node(<Node*>node.slot[i], keys, alive)
        assert weights(node)[i] == len(alive) - living_before, "weight of a child is wrong"
        if i > 0:
            assert key_bytes(seps(node)[i]) <= keys[before][0], "separator above its right side"
    return taken


def check_counts(MemoryEngine engine not None) -> None:
    """Verify the tree of an engine in memory, its counts of living keys included. Raises AssertionError."""
    check(engine.tree)
