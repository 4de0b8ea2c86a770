"""Reading the write-ahead log back: which records are there, which damage, and what may be cut. Rules: FORMATS.md,
"WAL".

This module is pure. `recover` reads the segments and finds what is there and what must be cut. `reopen` encodes a
fresh segment that takes over the unproven tail, and returns a `Writer` that goes on behind it. `create` does the same
for a new log.
"""

from libc.stdint cimport uint8_t, uint32_t, uint64_t

from metastore._core.entry cimport hard_state_make
from metastore._core.le cimport get32, get64
from metastore._core.wal_records cimport (READ_OK, REC_ENTRY, REC_HARD_STATE, REC_MARKER, REC_SNAPSHOT, REC_START,
                                  RECORD_HEADER, SEGMENT_HEADER, Group, LogState, RecordView, Writer, align8,
                                  record_read)

from metastore._core.wal_records import check_header, encode_header
from metastore.errors import DamagedData, FormatError

# A last segment with fewer bytes is rewritten at open; otherwise each restart would leave one more small segment.
DEFAULT_REWRITE = 1 << 20


cdef class Cut:
    """Part that a repair cuts off: bytes [offset, end) of a segment are copied aside. `reason` is text for people."""
    cdef readonly uint64_t generation
    cdef readonly uint64_t offset
    cdef readonly uint64_t end
    cdef readonly str name
    cdef readonly str reason

    def __init__(self, generation, name, offset, end, reason):
        self.generation, self.name, self.offset, self.end, self.reason = generation, name, offset, end, reason


cdef class Scan:
    """One pass over the records of a segment from its start: where the valid ones end, and what stands behind them."""
    cdef readonly size_t end        # offset behind the last valid record
    cdef readonly size_t proven     # bytes before this offset are proven synced by a record of this segment
    cdef readonly uint64_t group
    cdef readonly uint32_t chain
    cdef readonly size_t claimed    # end of the last bytes behind `end` that have this generation; 0 if there are none
    cdef readonly size_t behind     # highest `proven` of the valid records behind `end`


cdef Scan scan(const uint8_t* buf, size_t size, size_t limit, uint64_t generation):
    """Read records up to `limit` or to the first bad one. In the second case also examine what stands behind it."""
    cdef Scan out = Scan.__new__(Scan)
    cdef RecordView rec
    cdef size_t pos = SEGMENT_HEADER, probe
    cdef bint first = True
    cdef int answer
    out.end = pos
    while pos < limit:
        if record_read(buf, pos, limit, generation, &rec) != READ_OK:
            break
        if first != (rec.type == REC_START):
            break
        if not first and (rec.prev != out.chain or rec.group < out.group or rec.group > out.group + 1):
            break
        first = False
        out.chain = rec.crc
        out.group = rec.group
        out.proven = max(out.proven, rec.proven)
        pos += rec.size
        out.end = pos
    if pos >= limit and limit < size:
        return out
    probe = out.end
    with nogil:
        while probe + 24 <= size:
            if get64(buf + probe + 16) != generation:
                probe += 8
                continue
            answer = record_read(buf, probe, size, generation, &rec)
            # If the CRC of a record is wrong, its length may be wrong too. Keeping too much is better than too little.
            out.claimed = max(out.claimed, min(size, probe + align8(RECORD_HEADER + <size_t>get32(buf + probe + 4))))
            if answer == READ_OK:
                out.behind = max(out.behind, rec.proven)
                probe += rec.size
            else:
                probe += 8
    return out


cdef class Segment:
    """A segment as `recover` reads it."""
    cdef readonly str name
    cdef readonly uint64_t generation
    cdef object view
    cdef const uint8_t* data
    cdef const uint8_t[::1] keep
    cdef readonly size_t size
    cdef readonly uint64_t previous, previous_end
    cdef uint32_t prev_chain
    cdef readonly bint started
    cdef readonly uint64_t made_size

    def __init__(self, name, generation, buffer):
        self.name = name
        self.generation = generation
        self.keep = buffer
        self.size = <size_t>self.keep.shape[0]
        self.data = &self.keep[0] if self.size else NULL

    def refuse(self, offset, reason):
        """Return a DamagedData with file, offset and reason."""
        return DamagedData(f"{self.name}: offset {offset}: {reason}")

    cdef int check_size(self) except -1:
        if self.size < self.made_size:
            raise self.refuse(self.size, f"file is cut off; it was made with {self.made_size} bytes")
        return 0

    cdef int open(self) except -1:
        """Check the header and read the START record if it is there."""
        cdef RecordView rec
        wrong = check_header(self.keep, self.generation)
        if wrong is not None:
            raise self.refuse(0, wrong)
        self.made_size = get64(self.data + 24)
        if record_read(self.data, SEGMENT_HEADER, self.size, self.generation, &rec) == READ_OK and rec.type == REC_START:
            self.started = True
            self.previous = get64(rec.payload)
            self.previous_end = get64(rec.payload + 8)
            self.prev_chain = rec.prev
        return 0


cdef class Recovered:
    """Result of `recover`, which changes nothing on disk.

    state: the log up to the beginning of the tail, without the tail. report: sentences for the operator. cuts: list of
    Cut, the parts to copy aside. used: generations that make up the log, oldest first. superseded: whether the fresh
    segment replaces the last of these. last_end: offset at which the records of the last one end. proven: offset up to
    which they are proven synced. spare: prepared generations that are not used yet. stale: generations to remove.
    """
    cdef readonly LogState state
    cdef readonly list report, cuts, used, spare, stale
    cdef readonly bint superseded
    cdef readonly uint64_t last_end
    cdef readonly uint64_t max_number
    cdef Segment last
    cdef size_t tail_from
    cdef readonly size_t proven
    cdef uint64_t group
    cdef uint32_t chain
    cdef uint64_t start_number, start_end
    cdef uint32_t start_chain

    @property
    def last_generation(self):
        """The generation of the last segment."""
        return self.last.generation

    @property
    def cut_at(self):
        """Offset at which the last segment ends for its successor. If it is not superseded, the tail behind this offset
        moves to the successor."""
        return self.tail_from


cdef int replay(Segment seg, LogState state, size_t pos, size_t end) except -1:
    cdef RecordView rec
    while pos < end:
        if record_read(seg.data, pos, end, seg.generation, &rec) != READ_OK:
            raise seg.refuse(pos, "record changed while it was read")
        try:
            state.apply(&rec, <uint32_t>(seg.generation >> 32), pos)
        except FormatError as error:
            raise seg.refuse(pos, error.text) from None
        pos += rec.size
    return 0


def recover(segments, *, size_t rewrite=DEFAULT_REWRITE):
    """Read a log. `segments` is a list of (name for people, generation, buffer) in any order.

    Returns a Recovered, or None if there is no segment. Raises DamagedData (name, offset and reason) if proven bytes
    are wrong. rewrite: a last segment with fewer bytes than this is rewritten as a whole."""
    cdef Segment seg, after, last
    cdef Recovered out
    cdef list found = sorted([Segment(*item) for item in segments], key=_by_generation)
    if not found:
        return None
    for seg in found:
        seg.open()
    out = Recovered.__new__(Recovered)
    out.report, out.cuts, out.used, out.spare, out.stale = [], [], [], [], []
    out.max_number = (<Segment>found[len(found) - 1]).generation >> 32
    last = _find_last(found, out)
    chain = _find_chain(found, last, out)
    _scan_last(last, out, rewrite)
    state = LogState()
    state.begin((<Segment>chain[0]).data + SEGMENT_HEADER + RECORD_HEADER)
    for seg, after in zip(chain, chain[1:]):
        _scan_inner(seg, after)
        replay(seg, state, SEGMENT_HEADER, after.previous_end)
    replay(last, state, SEGMENT_HEADER, out.tail_from)
    out.state = state
    _check_whole(chain[0], out)
    return out


def _by_generation(Segment seg):
    return seg.generation


cdef Segment _find_last(list found, Recovered out):
    """The newest segment with a START. Later segments are prepared and unused, or were cut off in their first group."""
    cdef Segment seg, last = None
    cdef Scan seen
    for seg in reversed(found):
        if seg.started:
            last = seg
            break
        seg.check_size()
        seen = scan(seg.data, seg.size, seg.size, seg.generation)
        if seen.behind > SEGMENT_HEADER:
            raise seg.refuse(SEGMENT_HEADER, "first record is damaged; later records prove that it was synced")
        if seen.claimed:
            out.cuts.append(Cut(seg.generation, seg.name, SEGMENT_HEADER, seen.claimed,
                                "first group of the segment was not finished"))
            out.stale.append(seg.generation)
        else:
            out.spare.append(seg.generation)
    if last is None:
        # Every log begins with a START record that was synced before the file got its name.
        seg = found[0]
        raise seg.refuse(SEGMENT_HEADER, "first record of the log is damaged")
    # Segments are created in order, so a segment between the last used one and a prepared one must have been used.
    number = last.generation >> 32
    for seg in found:
        if seg.generation > last.generation:
            number += 1
            if seg.generation >> 32 != number:
                raise seg.refuse(0, f"segment number {number} before this one is missing")
    return last


cdef list _find_chain(list found, Segment last, Recovered out):
    """The segments that make up the log, oldest first. Each START record names its predecessor."""
    cdef Segment seg
    by_number = {(<Segment>s).generation >> 32: s for s in found}
    if len(by_number) != len(found):
        raise last.refuse(0, "two segments have the same number; one of them is not of this log")
    chain = [last]
    seg = last
    while seg.previous and seg.previous in by_number:
        before = by_number[seg.previous]
        if not (<Segment>before).started:
            raise (<Segment>before).refuse(SEGMENT_HEADER, f"first record is damaged; {seg.name} proves it was synced")
        if (<Segment>before).generation >= seg.generation:
            raise seg.refuse(SEGMENT_HEADER, "names a later segment as the one before it")
        seg = before
        chain.append(seg)
    chain.reverse()
    out.used = [(<Segment>s).generation for s in chain]
    listed = set(out.used) | set(out.spare) | set(out.stale)
    out.stale.extend([(<Segment>s).generation for s in found if (<Segment>s).generation not in listed])
    return chain


cdef int _scan_inner(Segment seg, Segment after) except -1:
    """Scan a segment that has a successor. All of it up to the end that the successor states is proven."""
    cdef Scan seen
    if after.previous_end > seg.size:
        raise seg.refuse(seg.size, f"file is cut off; {after.name} states {after.previous_end} bytes")
    seen = scan(seg.data, seg.size, after.previous_end, seg.generation)
    if seen.end != after.previous_end:
        raise seg.refuse(seen.end, f"record is damaged; {after.name} proves that it was synced")
    if seen.chain != after.prev_chain:
        raise seg.refuse(seen.end, f"last record is not the one that {after.name} follows on")
    return 0


cdef int _scan_last(Segment seg, Recovered out, size_t rewrite) except -1:
    cdef Scan seen
    cdef RecordView rec
    seg.check_size()
    seen = scan(seg.data, seg.size, seg.size, seg.generation)
    if seen.behind > seen.end:
        raise seg.refuse(seen.end, "record is damaged; later records prove that it was synced")
    if seen.claimed:
        out.cuts.append(Cut(seg.generation, seg.name, seen.end, seen.claimed,
                            "last group was not finished or is damaged, and nothing proves that it was synced"))
    out.last = seg
    out.group = seen.group
    out.proven = max(seen.proven, <size_t>SEGMENT_HEADER)
    out.tail_from = out.proven
    record_read(seg.data, SEGMENT_HEADER, seg.size, seg.generation, &rec)
    # The START record is not copied, because the fresh segment gets one of its own.
    if seen.end <= rewrite or out.tail_from < SEGMENT_HEADER + rec.size:
        out.tail_from = SEGMENT_HEADER + rec.size
        out.superseded = True
        out.start_number, out.start_end, out.start_chain = seg.previous, seg.previous_end, seg.prev_chain
        out.last_end = seen.end
    else:
        out.start_number, out.start_end = seg.generation >> 32, out.tail_from
        out.start_chain = chain_at(seg, out.tail_from)
        out.last_end = seen.end
    return 0


cdef uint32_t chain_at(Segment seg, size_t end) except? 0:
    cdef RecordView rec
    cdef size_t pos = SEGMENT_HEADER
    while pos < end:
        if record_read(seg.data, pos, seg.size, seg.generation, &rec) != READ_OK:
            raise seg.refuse(pos, "record changed while it was read")
        pos += rec.size
    if pos != end:
        raise seg.refuse(end, "a record states a proven end that is not the end of a record")
    return rec.crc


cdef int _check_whole(Segment first, Recovered out) except -1:
    """Check, after the tail was read, that every entry after the snapshot position is there and that the commit index
    is possible."""
    cdef LogState state = out.state
    cdef Segment last = out.last
    cdef uint64_t commit = state.hard_commit
    cdef RecordView rec
    cdef size_t pos = out.tail_from
    cdef uint64_t missing = state.missing, snapshot = state.snapshot_index, tip = state.last()
    # The tail is short. Its effect on these three values can be found without a copy of the table.
    while pos < out.last_end:
        if record_read(last.data, pos, out.last_end, last.generation, &rec) != READ_OK:
            raise last.refuse(pos, "record changed while it was read")
        if rec.type == REC_ENTRY:
            tip = get64(rec.payload + 16)
            missing = min(missing, tip - 1)
        elif rec.type == REC_SNAPSHOT:
            snapshot = get64(rec.payload)
            tip = max(tip, snapshot)
        elif rec.type == REC_HARD_STATE and pos < out.proven:
            commit = get64(rec.payload + 16)
        pos += rec.size
    if missing > snapshot:
        raise first.refuse(SEGMENT_HEADER, f"the segment before this one is missing, with entries up to {missing}; "
                                           f"the log must begin after {snapshot}")
    if commit > tip:
        raise last.refuse(out.last_end, f"entry {commit} was committed, but the log ends with entry {tip}")
    return 0


def walk(const uint8_t[::1] buf not None, uint64_t generation, size_t pos=SEGMENT_HEADER, size_t end=<size_t>-1):
    """Yield the valid records of a segment from `pos` up to `end` or to the first bad one, for tools, as (offset, type,
    group, synced, proven, payload)."""
    cdef RecordView rec
    end = min(end, <size_t>buf.shape[0])
    while pos < end and record_read(&buf[0], pos, end, generation, &rec) == READ_OK:
        yield pos, rec.type, rec.group, rec.synced, rec.proven, (<const char*>rec.payload)[:rec.length]
        pos += rec.size


def create(uint64_t generation, uint64_t capacity, metadata, plan, **options):
    """Create a new log and return (bytes of its first segment, Writer behind them). The metadata is kept for ever."""
    state = LogState(bytes(metadata))
    return _fresh(state, generation, capacity, plan, options, None)


def reopen(Recovered found not None, uint64_t generation, uint64_t capacity, plan, **options):
    """Encode the fresh segment after `found` and return (its bytes, Writer behind them). The Writer takes over the
    state in `found`.

    The marker at the end of the segment proves its groups, if its bytes are synced before the file gets its name."""
    return _fresh(found.state, generation, capacity, plan, options, found)


cdef tuple _fresh(LogState state, uint64_t generation, uint64_t capacity, plan, dict options, Recovered found):
    cdef Writer writer = Writer(state, plan, group_commit=True, max_group=<size_t>-1)
    cdef RecordView rec
    cdef Group group
    cdef size_t pos
    cdef bytes out
    writer.generation = generation
    writer.position = SEGMENT_HEADER
    # The copied tail may be larger than the planned segment. It goes into one file in any case.
    writer.capacity = <uint64_t>-1
    if found is not None:
        writer.group = found.group
        writer.chain = found.start_chain
        writer.start_number, writer.start_end = found.start_number, found.start_end
    writer.write_start()
    pos = found.tail_from if found is not None else 0
    while found is not None and pos < found.last_end:
        if record_read(found.last.data, pos, found.last_end, found.last.generation, &rec) != READ_OK:
            raise found.last.refuse(pos, "record changed while it was read")
        if rec.type != REC_MARKER:
            try:
                state.apply(&rec, <uint32_t>(generation >> 32), writer.position)
            except FormatError as error:
                raise found.last.refuse(pos, error.text) from None
            writer.put(rec.type, rec.payload, rec.length)
        pos += rec.size
    if state.hard_commit > state.last():
        found.report.append(f"{found.last.name}: commit index lowered from {state.hard_commit} to {state.last()}: "
                            "the last group was not finished")
        writer.append(0, None, hard_state_make(state.hard_term, state.hard_vote, state.last()))
    group = writer.open
    writer.open = None
    writer.put(REC_MARKER, NULL, 0)
    out = encode_header(generation, max(capacity, writer.position)) + group.tobytes() + (<Group>writer.open).tobytes()
    writer.pending.clear()
    writer.pending_bytes = 0
    writer.pending_sync = 0
    writer.open = None
    writer.number = 0
    writer.capacity = max(capacity, writer.position)
    writer.group_commit = options.get("group_commit", True)
    writer.max_group = options.get("max_group", 16 << 20)
    writer.lagging = options.get("lagging", False)
    writer.known_group, writer.known_end = writer.group, writer.position
    return out, writer
