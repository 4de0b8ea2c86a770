"""Which watchers a changed key concerns. Pure.

Watchers that want the same are one `Group`: the events for them are collected once, and so is the response where their
ids are equal, as they are on streams that carry one watcher each. A group takes up to GROUP_MOST watchers, which bounds
what delivering to one group costs. Groups of single keys are in a table; groups of ranges are in a treap (a binary search
tree whose nodes have random priorities: Seidel and Aragon, 1996) by their start, where each node knows the highest end
below it (an interval tree, CLRS 14.3), so a key finds its k ranges of n in O(log n + k).
"""

cimport cython
from cpython.bytes cimport PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum:
    GROUP_MOST = 1000        # sends to a group's watchers: about 1 ms
    UNIT_BYTES = 512         # of keys; a watcher with short keys takes about 400 bytes

#: The end of a range that has none ("from key on"), as etcd writes it.
NO_END = b"\0"


cdef class Sink:
    """Where the responses of one stream go."""

    cpdef bint full(self):
        """Whether nothing more is to be sent at the moment."""
        raise NotImplementedError

    cpdef send(self, bytes message):
        """Send one encoded WatchResponse."""
        raise NotImplementedError


cdef class Stream:
    """One Watch stream: its watchers by id, and where their responses go."""

    def __init__(self, Sink sink not None):
        self.sink = sink
        self.watchers = {}


@cython.final
@cython.no_gc
cdef class Watcher:
    """One watcher. `key` and `end` as in WatchCreateRequest, with an empty key made b"\\0".

    The garbage collector does not track watchers and groups. It would look at all in one go: 25 ms for 50,000. Their
    cycles end when a watcher leaves, and with the hub.
    """

    def __init__(self, Stream stream not None, int64_t id, bytes key not None, bytes end not None, int64_t next_rev,
                 bint prev_kv=False, bint no_put=False, bint no_delete=False, bint fragment=False, bint progress=False,
                 uint64_t serial=0):
        self.stream = stream
        self.id = id
        self.key, self.end = key, end
        self.next_rev = next_rev
        self.prev_kv, self.no_put, self.no_delete = prev_kv, no_put, no_delete
        self.fragment, self.progress = fragment, progress
        self.serial = serial
        self.units = units_of(key, end)


cpdef size_t units_of(bytes key, bytes end):
    """How many watchers one with these keys counts as: one for each 512 bytes of them."""
    return 1 + <size_t>(len(key) + len(end)) // UNIT_BYTES


@cython.final
@cython.no_gc
cdef class Group:
    """Watchers of one index that want the same, and the events for them that are not delivered yet."""

    cdef void clear(self) noexcept:
        self.events = None
        self.pieces = self.loose = self.number = self.size = 0
        self.touched = False

    cdef int append(self, bytes event, size_t piece) except -1:
        """Add an event. Those behind the pieces become one piece when they have so many bytes: a million of single events
        took 100 ms to free."""
        self.events.append(event)
        self.number += 1
        self.loose += <size_t>PyBytes_GET_SIZE(event)
        if self.loose >= piece:
            if <size_t>len(self.events) - self.pieces > 1:
                self.events[self.pieces:] = [b"".join(self.events[self.pieces:])]
            self.pieces += 1
            self.loose = 0
        return 0


# --- the treap of ranges ---------------------------------------------------------------------------------

cdef inline bint before(Group a, Group b):
    if a.key == b.key:
        return a.serial < b.serial
    return a.key < b.key


cdef int widen(Group node, Group child) except -1:
    if child is None or node.endless:
        return 0
    if child.endless:
        node.endless = True
    elif child.top > node.top:
        node.top = child.top
    return 0


cdef Group settle(Group node):
    """Compute again what `node` knows of its subtree."""
    node.endless = node.end == NO_END
    node.top = node.end
    widen(node, node.left)
    widen(node, node.right)
    return node


cdef Group insert(Group node, Group group):
    cdef Group child
    if node is None:
        return settle(group)
    if before(group, node):
        child = node.left = insert(node.left, group)
        if child.priority > node.priority:
            node.left = child.right
            child.right = settle(node)
            return settle(child)
    else:
        child = node.right = insert(node.right, group)
        if child.priority > node.priority:
            node.right = child.left
            child.left = settle(node)
            return settle(child)
    return settle(node)


cdef Group merge(Group a, Group b):
    """One tree of two, whose groups all stand in this order."""
    if a is None:
        return b
    if b is None:
        return a
    if a.priority > b.priority:
        a.right = merge(a.right, b)
        return settle(a)
    b.left = merge(a, b.left)
    return settle(b)


cdef Group delete(Group node, Group group):
    if node is group:
        return merge(node.left, node.right)
    if before(group, node):
        node.left = delete(node.left, group)
    else:
        node.right = delete(node.right, group)
    return settle(node)


cdef int stab(Group node, bytes key, list out) except -1:
    """Collect the groups whose range holds `key`, in the order of their starts."""
    while node is not None and (node.endless or node.top > key):
        stab(node.left, key, out)
        if node.key > key:
            return 0
        if node.end == NO_END or node.end > key:
            out.append(node)
        node = node.right
    return 0


cdef inline uint32_t scatter(uint64_t n) noexcept:
    """A priority that looks random, from a serial number (the finalizer of splitmix64)."""
    n += <uint64_t>0x9E3779B97F4A7C15ULL
    n = (n ^ (n >> 30)) * <uint64_t>0xBF58476D1CE4E5B9ULL
    n = (n ^ (n >> 27)) * <uint64_t>0x94D049BB133111EBULL
    return <uint32_t>(n >> 32)


@cython.no_gc_clear              # the hub's __dealloc__ needs it whole
cdef class Index:
    """The groups of some watchers, by key."""

    def __cinit__(self):
        self.single = {}
        self.open = {}
        self.groups = {}

    cdef int add(self, Watcher watcher, int64_t since) except -1:
        """Take a watcher in; changes before revision `since` are not for it."""
        cdef object name = (watcher.key, watcher.end, watcher.prev_kv, watcher.no_put, watcher.no_delete, since)
        cdef Group group = self.open.get(name)
        if group is None or len(group.watchers) >= GROUP_MOST:
            self.serial += 1
            group = Group.__new__(Group)
            group.key, group.end = watcher.key, watcher.end
            group.prev_kv, group.no_put, group.no_delete = watcher.prev_kv, watcher.no_put, watcher.no_delete
            group.since = since
            group.name = name
            group.serial = self.serial
            group.priority = scatter(self.serial)
            group.watchers = {}
            group.clear()
            self.open[name] = group
            self.groups[group] = None
            if group.end:
                self.root = insert(self.root, group)
            else:
                self.single.setdefault(group.key, []).append(group)
        group.watchers[watcher] = None
        watcher.group = group
        watcher.home = self
        self.count += 1
        return 0

    cdef int remove(self, Watcher watcher) except -1:
        """Let go of a watcher that is in this index."""
        cdef Group group = watcher.group
        watcher.group = watcher.home = None
        del group.watchers[watcher]
        self.count -= 1
        if not group.watchers:
            self.drop(group)
        return 0

    cdef int drop(self, Group group) except -1:
        cdef list others
        group.clear()
        del self.groups[group]
        if self.open.get(group.name) is group:
            del self.open[group.name]
        if group.end:
            self.root = delete(self.root, group)
            group.left = group.right = None
            return 0
        others = self.single[group.key]
        others.remove(group)
        if not others:
            del self.single[group.key]
        return 0

    cdef int find(self, bytes key, list out) except -1:
        """Append the groups that `key` concerns."""
        cdef object groups = self.single.get(key) if self.single else None
        if groups is not None:
            out.extend(groups)
        if self.root is not None:
            stab(self.root, key, out)
        return 0
