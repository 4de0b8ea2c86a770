"""Messages of etcd's Watch service (watch.proto): requests are decoded, events and responses encoded.

A `Change` is one record of table 'r'. Its event is encoded at most twice, with the previous pair and without it, and all
watchers share these bytes. A response is a small header in front of events.
"""

from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize, PyBytes_GET_SIZE
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from metastore import errors
from metastore._core.kv_messages cimport (KV_OK, WIRE_BYTES, WIRE_VARINT, Field, Header, Kv, Slice, Wire, header_size,
                                          header_write, kv_size, kv_write, wire_next, wire_of)
from metastore._core.mvcc cimport Store
from metastore._core.mvcc_keys cimport IndexView, rev_read, rev_record_read
from metastore._core.record cimport Record, rec_key, rec_ref, rec_release
from metastore._core.varint cimport varint_read, varint_size, varint_write

cdef enum:
    TAG_EVENT = 0x5A         # field 11 of WatchResponse
    TAG_PAIR = 0x12          # field 2 of Event
    TAG_PREV = 0x1A          # field 3 of Event
    NO_PUT = 0               # WatchCreateRequest.FilterType
    NO_DELETE = 1
    MARKS_SIZE = 64          # bytes that the fields between header and events take at most, without the reason


cdef class WatchRequest:
    """One decoded WatchRequest; the attributes are the fields of its create, cancel or progress request."""

    def __cinit__(self):
        self.key = self.range_end = b""

    cdef int filter(self, uint64_t which) except -1:
        if which == NO_PUT:
            self.no_put = True
        elif which == NO_DELETE:
            self.no_delete = True
        return 0

    cdef int filters(self, const Slice* packed) except -1:
        cdef const uint8_t* p = packed.p
        cdef uint64_t which
        while p < packed.p + packed.n:
            p = varint_read(p, packed.p + packed.n, &which)
            if p == NULL:
                raise malformed()
            self.filter(which)
        return 0

    cdef int create(self, const Slice* body) except -1:
        cdef Wire wire = wire_of(body.p, body.n)
        cdef Field field
        while wire_next(&wire, &field):
            if field.number == 5 and field.type == WIRE_BYTES:
                self.filters(&field.bytes)
            elif 1 <= field.number <= 2:
                if field.type != WIRE_BYTES:
                    raise malformed()
                found = PyBytes_FromStringAndSize(<const char*>field.bytes.p, field.bytes.n)
                if field.number == 1:
                    self.key = found
                else:
                    self.range_end = found
            elif 3 <= field.number <= 8:
                if field.type != WIRE_VARINT:
                    raise malformed()
                self.number(field.number, field.value)
        return check_whole(&wire)

    cdef int number(self, uint32_t field, uint64_t value) except -1:
        if field == 3:
            self.start_revision = <int64_t>value
        elif field == 4:
            self.progress_notify = value != 0
        elif field == 5:
            self.filter(value)
        elif field == 6:
            self.prev_kv = value != 0
        elif field == 7:
            self.watch_id = <int64_t>value
        else:
            self.fragment = value != 0
        return 0

    cdef int cancel(self, const Slice* body) except -1:
        cdef Wire wire = wire_of(body.p, body.n)
        cdef Field field
        while wire_next(&wire, &field):
            if field.number == 1:
                if field.type != WIRE_VARINT:
                    raise malformed()
                self.watch_id = <int64_t>field.value
        return check_whole(&wire)


cdef int check_whole(const Wire* wire) except -1:
    """Raise MalformedRequest if the message ended with a field that cannot be read."""
    if wire.code != KV_OK:
        raise malformed()
    return 0


cdef object malformed():
    return errors.MalformedRequest("grpc: error unmarshalling request: WatchRequest")


def decode_request(bytes body not None) -> WatchRequest:
    """WatchRequest. The last of several requests in one message counts, as protobuf has it for a oneof. Raises
    MalformedRequest."""
    cdef WatchRequest made = WatchRequest.__new__(WatchRequest)
    cdef Wire wire = wire_of(<const uint8_t*>PyBytes_AS_STRING(body), PyBytes_GET_SIZE(body))
    cdef Field field
    while wire_next(&wire, &field):
        if field.number > 3:
            continue
        if field.type != WIRE_BYTES:
            raise malformed()
        if made.kind != <int>field.number:
            made = WatchRequest.__new__(WatchRequest)
            made.kind = <int>field.number
        if field.number == WATCH_CREATE:
            made.create(&field.bytes)
        elif field.number == WATCH_CANCEL:
            made.cancel(&field.bytes)
    check_whole(&wire)
    return made


cdef class Change:
    """One change of one key, with its encoded event."""

    def __dealloc__(self):
        self.drop()

    cdef void drop(self) noexcept:
        if self.record != NULL:
            rec_release(self.record)
            self.record = NULL

    cdef int take(self, Store store, Record* record) except -1:
        """Stand for `record` of table 'r' from now on. Raises DamagedData."""
        rec_ref(record)
        self.drop()
        self.record = record
        self.store = store
        self.plain = self.with_prev = None
        rev_record_read(record, &self.view)
        rev_read(rec_key(record) + 1, &self.main, &self.sub)
        self.key = PyBytes_FromStringAndSize(<const char*>self.view.key, self.view.klen)
        return 0

    cdef bytes event(self, bint prev):
        """Field 11 of a WatchResponse, tag and length included."""
        if prev:
            if self.with_prev is None:
                self.with_prev = self.encode(True)
            return self.with_prev
        if self.plain is None:
            self.plain = self.encode(False)
        return self.plain

    cdef bytes encode(self, bint prev):
        cdef IndexView known
        cdef Slice key
        cdef Kv kv, old
        cdef size_t size, kv_bytes, old_bytes = 0
        cdef bint has_old = False
        cdef bytes made
        cdef uint8_t* p
        memset(&kv, 0, sizeof(kv))
        key.p, key.n = self.view.key, self.view.klen
        kv.key = key
        kv.mod = self.main
        if not self.view.tombstone:
            if not self.store.version_at(&key, self.main, &known) or known.main != self.main:
                raise errors.DamagedData(f"engine: the index has no record of revision {self.main}/{self.sub}")
            kv.create, kv.version, kv.lease = known.create, known.version, known.lease
            kv.value.p, kv.value.n = self.view.value, self.view.vlen
        # The previous pair is gone where its revision was compacted, even if its record is still there (etcd's rule).
        if prev and self.main - 1 >= self.store.compacted:
            has_old = self.store.version_at(&key, self.main - 1, &known) and not known.tombstone
            if has_old:
                self.store.load(&known, &old)
        try:
            kv_bytes = kv_size(&kv)
            size = (2 if self.view.tombstone else 0) + 1 + varint_size(kv_bytes) + kv_bytes
            if has_old:
                old_bytes = kv_size(&old)
                size += 1 + varint_size(old_bytes) + old_bytes
            made = PyBytes_FromStringAndSize(NULL, 1 + varint_size(size) + size)
            p = <uint8_t*>PyBytes_AS_STRING(made)
            p[0] = TAG_EVENT
            p = varint_write(p + 1, size)
            if self.view.tombstone:
                p[0], p[1] = 0x08, 1
                p += 2
            p[0] = TAG_PAIR
            p = kv_write(varint_write(p + 1, kv_bytes), &kv)
            if has_old:
                p[0] = TAG_PREV
                kv_write(varint_write(p + 1, old_bytes), &old)
            return made
        finally:
            if has_old:
                rec_release(<Record*>old.hold)


cdef inline uint8_t* mark(uint8_t* p, uint8_t tag, uint64_t value) noexcept:
    if value == 0:
        return p
    p[0] = tag
    return varint_write(p + 1, value)


cdef bytes begin_response(const Header* header, const Marks* marks, bytes reason, list events, size_t first,
                          size_t last, size_t* at):
    """A WatchResponse with room for `events[first:last]` from byte `at` on."""
    cdef uint8_t[MARKS_SIZE + 48] head
    cdef uint8_t* p = header_write(head, header, header_size(header))
    cdef size_t size, i, n = 0 if reason is None else <size_t>PyBytes_GET_SIZE(reason)
    cdef bytes made
    p = mark(p, 0x10, <uint64_t>marks.watch_id)
    p = mark(p, 0x18, marks.created)
    p = mark(p, 0x20, marks.canceled)
    p = mark(p, 0x28, <uint64_t>marks.compact_revision)
    size = p - head
    if n:
        size += 1 + varint_size(n) + n
    if marks.fragment:
        size += 2
    for i in range(first, last):
        size += <size_t>PyBytes_GET_SIZE(<bytes>events[i])
    made = PyBytes_FromStringAndSize(NULL, size)
    memcpy(PyBytes_AS_STRING(made), head, p - head)
    p = <uint8_t*>PyBytes_AS_STRING(made) + (p - head)
    if n:
        p[0] = 0x32
        p = varint_write(p + 1, n)
        memcpy(p, PyBytes_AS_STRING(reason), n)
        p += n
    if marks.fragment:
        p[0], p[1] = 0x38, 1
        p += 2
    at[0] = p - <uint8_t*>PyBytes_AS_STRING(made)
    return made


cdef bytes encode_response(const Header* header, const Marks* marks, bytes reason, list events, size_t first,
                           size_t last):
    """WatchResponse with `events[first:last]`, each as `Change.event` returned it. `reason` may be None."""
    cdef size_t i, at = 0
    cdef bytes event, made = begin_response(header, marks, reason, events, first, last, &at)
    for i in range(first, last):
        event = <bytes>events[i]
        memcpy(PyBytes_AS_STRING(made) + at, PyBytes_AS_STRING(event), PyBytes_GET_SIZE(event))
        at += PyBytes_GET_SIZE(event)
    return made


cdef class Draft:

    cdef size_t go_on(self, size_t budget) except? 0:
        """Copy some more, about `budget` KiB of it. Returns the cost; all is in `messages` when `events` is None."""
        cdef size_t spent = 0
        cdef bytes event
        while True:
            if self.message is None:
                self.begin()
            while self.next < self.last:
                if spent and spent >= budget:
                    return spent
                event = <bytes>self.events[self.next]
                memcpy(PyBytes_AS_STRING(self.message) + self.at, PyBytes_AS_STRING(event), PyBytes_GET_SIZE(event))
                self.at += PyBytes_GET_SIZE(event)
                spent += 1 + (PyBytes_GET_SIZE(event) >> 10)
                self.next += 1
            self.messages.append(self.message)
            self.message = None
            if self.last == <size_t>len(self.events):
                self.events = None
                return spent

    cdef int begin(self) except -1:
        """Begin the next message. All fragments but the last are marked."""
        cdef size_t size = 0, count = <size_t>len(self.events)
        if not self.fragment_size:
            self.last = count
        while self.last < count and (self.last == self.next or size < self.fragment_size):
            size += <size_t>PyBytes_GET_SIZE(<bytes>self.events[self.last])
            self.last += 1
        self.marks.fragment = self.last < count
        self.message = begin_response(&self.header, &self.marks, None, self.events, self.next, self.last, &self.at)
        return 0
