"""A guard around an engine: what it raises or returns wrongly stops the node with the engine's name (`engine.pyx`)."""

from cpython.bytes cimport PyBytes_CheckExact, PyBytes_FromStringAndSize
from libc.stdint cimport uint8_t, uint64_t

from metastore import errors
from metastore._core.engine import downwards
from metastore.threads import is_no_fault
from metastore._core.engine cimport Engine, EngineCursor
from metastore._core.file_reads cimport WalkCursor
from metastore._core.kv_messages cimport Kv
from metastore._core.ordered_map cimport OrderedMap
from metastore._core.record cimport Record

cdef object END = object()       # behind the last pair of a walk


cdef inline bytes bytes_of(const uint8_t* p, size_t n):
    return PyBytes_FromStringAndSize(<const char*>p, n)


cdef bytes value_of(object value):
    """Return what an engine gave for a key or a value. Raises TypeError unless it is a bytes."""
    if not PyBytes_CheckExact(value):
        raise TypeError(f"it returned {type(value).__name__}, not bytes")
    return <bytes>value


cdef list values_of(list values, size_t n):
    """Return what an engine gave for `n` keys. Raises TypeError unless that is so many bytes or None."""
    if <size_t>len(values) != n:
        raise TypeError(f"it returned {len(values)} values for {n} keys")
    for value in values:
        if value is not None:
            value_of(value)
    return values


cdef object number_of(object value):
    """Return what an engine gave for a number. Raises TypeError unless it is an int."""
    if not isinstance(value, int):
        raise TypeError(f"it returned {type(value).__name__}, not int")
    return value


cdef class GuardedCursor(EngineCursor):
    """Walks a guarded engine."""

    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL:
        cdef GuardedEngine guard = <GuardedEngine>self.engine
        try:
            self.pairs = guard.inner.iterate(bytes_of(key, n))
            return EngineCursor.next(self)
        except BaseException as error:
            guard.fail("iterate", error)
        return NULL

    cdef Record* next(self) except? NULL:
        try:
            return EngineCursor.next(self)
        except BaseException as error:
            (<GuardedEngine>self.engine).fail("iterate", error)
        return NULL

    cdef Record* seek_below(self, const uint8_t* key, size_t n) except? NULL:
        self.pairs = downwards((<GuardedEngine>self.engine).inner, bytes_of(key, n))
        return self.prev()

    cdef Record* prev(self) except? NULL:
        try:
            return EngineCursor.next(self)
        except Exception as error:
            (<GuardedEngine>self.engine).fail("scan", error)
        return NULL


cdef class GuardedWalk(GuardedCursor):
    """Walks upwards by the cursor of the engine's own."""

    cdef Record* seek(self, const uint8_t* key, size_t n) except? NULL:
        try:
            return self.inner.seek(key, n)
        except BaseException as error:
            (<GuardedEngine>self.engine).fail("iterate", error)
        return NULL

    cdef Record* next(self) except? NULL:
        try:
            return self.inner.next()
        except BaseException as error:
            (<GuardedEngine>self.engine).fail("iterate", error)
        return NULL


def watched(stream, list failures):
    """Yield the items of an iterable, and add its exception, if any, to `caught`."""
    try:
        yield from stream
    except BaseException as error:
        failures.append(error)
        raise


cdef class GuardedEngine(Engine):
    """Another engine, whose failures get a sentence of their own and a class that stops the node.

    An exception of the engine is no fault of the request that is being carried out. The other members carry it out
    well, and a member that reported it as failed would then differ from them. So all exceptions of the engine called
    `name` become EngineFailed, or EngineDamaged for DamagedData. The exceptions to this are EngineBusy of a write, lack
    of memory, what the stream of a `restore` raises, and Ctrl-C. A number or a value of a wrong type is an exception of
    the engine as well, at the call that returned it.
    """

    def __init__(self, Engine inner not None, str name not None):
        self.inner, self.detours = inner, inner.detours
        self.name = name

    cdef int fail(self, str call, object error) except -1:
        """Raise the error that stands for `error`."""
        if is_no_fault(error):
            raise error
        text = error.text if isinstance(error, errors.MetaStoreError) else errors.one_line(error)
        kind = errors.EngineDamaged if isinstance(error, errors.DamagedData) else errors.EngineFailed
        raise kind(f"storage engine {self.name!r}: {call}() failed: {text}") from error

    @property
    def persistent(self):
        """See Engine."""
        return self.inner.persistent

    @property
    def max_key(self):
        """See Engine."""
        return self.inner.max_key

    @property
    def max_value(self):
        """See Engine."""
        return self.inner.max_value

    @property
    def full(self):
        """See Engine."""
        try:
            return self.inner.full
        except BaseException as error:
            self.fail("full", error)

    @property
    def headroom(self):
        """See Engine."""
        try:
            return self.inner.headroom
        except BaseException as error:
            self.fail("headroom", error)

    @property
    def index_state(self):
        """See Engine."""
        return self.inner.index_state

    cdef size_t pace(self) noexcept:
        return self.inner.pace()

    cdef Record* find(self, const uint8_t* key, size_t n) except? NULL:
        try:
            return self.inner.find(key, n)
        except BaseException as error:
            self.fail("get", error)
        return NULL

    cdef Record* find_le(self, const uint8_t* key, size_t n) except? NULL:
        try:
            return self.inner.find_le(key, n)
        except BaseException as error:
            self.fail("seek_le", error)
        return NULL

    cdef EngineCursor cursor(self):
        cdef EngineCursor walk = GuardedCursor(), own = self.inner.cursor()
        cdef GuardedWalk guarded
        if isinstance(own, WalkCursor):
            walk = guarded = GuardedWalk()
            guarded.inner = own
        walk.engine = self
        return walk

    cpdef object get(self, bytes key):
        """See Engine."""
        try:
            value = self.inner.get(key)
            return None if value is None else value_of(value)
        except BaseException as error:
            self.fail("get", error)

    cpdef list scan(self, bytes start, bytes end, bint reverse, Py_ssize_t limit):
        """See Engine."""
        try:
            return self.inner.scan(start, end, reverse, limit)
        except BaseException as error:
            self.fail("scan", error)

    def iterate(self, bytes start not None):
        """See Engine."""
        try:
            pairs = iter(self.inner.iterate(start))
        except BaseException as error:
            self.fail("iterate", error)
        while True:
            # The `yield` stands outside, for what comes out of that (GeneratorExit) is not the engine's.
            try:
                pair = next(pairs, END)
                if pair is not END:
                    key, value = pair
                    value_of(key)
                    value_of(value)
            except BaseException as error:
                self.fail("iterate", error)
            if pair is END:
                return
            yield pair

    cpdef object seek_ge(self, bytes key):
        """See Engine."""
        try:
            return self.inner.seek_ge(key)
        except BaseException as error:
            self.fail("seek_ge", error)

    cpdef object seek_le(self, bytes key):
        """See Engine."""
        try:
            return self.inner.seek_le(key)
        except BaseException as error:
            self.fail("seek_le", error)

    cpdef list find_many(self, object keys):
        """See Engine."""
        try:
            return values_of(self.inner.find_many(keys), len(keys))
        except BaseException as error:
            self.fail("find_many", error)

    cdef list find_revisions(self, const Kv* pairs, size_t n):
        try:
            return values_of(self.inner.find_revisions(pairs, n), n)
        except BaseException as error:
            self.fail("find_many", error)

    cpdef object count(self, bytes start, bytes end):
        """See Engine."""
        try:
            known = self.inner.count(start, end)
            return None if known is None else number_of(known)
        except BaseException as error:
            self.fail("count", error)

    cpdef object write(self, OrderedMap batch, uint64_t index, uint64_t term):
        """See Engine. It may be busy."""
        try:
            self.inner.write(batch, index, term)
        except errors.EngineBusy:
            raise
        except BaseException as error:
            self.fail("write", error)

    cpdef bint remove_ranges(self, list ranges):
        """See Engine. It may be busy, as `write` may."""
        try:
            return self.inner.remove_ranges(ranges)
        except errors.EngineBusy:
            raise
        except BaseException as error:
            self.fail("remove_ranges", error)
        return False

    cpdef tuple applied(self):
        """See Engine."""
        try:
            index, term = self.inner.applied()
            return (number_of(index), number_of(term))
        except BaseException as error:
            self.fail("applied", error)

    cpdef Engine view(self):
        """See Engine. The view is guarded, too."""
        try:
            return GuardedEngine(self.inner.view(), self.name)
        except BaseException as error:
            self.fail("view", error)

    cpdef object size(self):
        """See Engine."""
        try:
            return number_of(self.inner.size())
        except BaseException as error:
            self.fail("size", error)

    cpdef object data_size(self):
        """See Engine."""
        try:
            return number_of(self.inner.data_size())
        except BaseException as error:
            self.fail("data_size", error)

    cpdef object drop(self):
        """See Engine."""
        try:
            self.inner.drop()
        except BaseException as error:
            self.fail("drop", error)

    cpdef object size_in_use(self):
        """See Engine."""
        try:
            return number_of(self.inner.size_in_use())
        except BaseException as error:
            self.fail("size_in_use", error)

    cpdef object restore(self, object stream):
        """See Engine. Exceptions of the stream pass through, and so does FormatError, by which an engine says that it
        lacks something."""
        cdef list failures = []
        try:
            self.inner.restore(watched(stream, failures))
        except errors.FormatError:
            raise
        except BaseException as error:
            if failures and (
                    failures[0] is error or failures[0] is error.__cause__ or failures[0] is error.__context__):
                raise
            self.fail("restore", error)

    cpdef bint reclaim(self):
        """See Engine."""
        try:
            return self.inner.reclaim()
        except BaseException as error:
            self.fail("reclaim", error)
        return False

    cpdef object defragment(self):
        """See Engine."""
        try:
            return self.inner.defragment()
        except BaseException as error:
            self.fail("defragment", error)

    cpdef object durable_applied(self):
        """See Engine."""
        try:
            return number_of(self.inner.durable_applied())
        except BaseException as error:
            self.fail("durable_applied", error)

    cpdef object flush(self):
        """See Engine."""
        try:
            self.inner.flush()
        except BaseException as error:
            self.fail("flush", error)

    cpdef object begin_flush(self):
        """See Engine."""
        try:
            self.inner.begin_flush()
        except BaseException as error:
            self.fail("begin_flush", error)

    cpdef Engine stage(self):
        """See Engine. The staged engine is guarded, too."""
        cdef Engine engine
        try:
            engine = self.inner.stage()
            if engine is not None and self.inner.persistent and type(engine).seal is getattr(Engine, "seal"):
                raise TypeError(f"it returned {type(engine).__name__}, which has no seal()")
            return None if engine is None else GuardedEngine(engine, self.name)
        except BaseException as error:
            self.fail("stage", error)

    cpdef object seal(self):
        """See Engine."""
        try:
            self.inner.seal()
        except BaseException as error:
            self.fail("seal", error)

    cpdef object adopt(self, Engine staged):
        """See Engine."""
        try:
            self.inner.adopt((<GuardedEngine?>staged).inner)
        except BaseException as error:
            self.fail("adopt", error)

    cpdef object close(self):
        """See Engine."""
        try:
            self.inner.close()
        except BaseException as error:
            self.fail("close", error)
