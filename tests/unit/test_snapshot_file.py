"""Snapshot files: format, records of a view and back, writing, verifying, damage, resuming."""

from __future__ import annotations

import struct
import threading
import tracemalloc
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.snapshotfiles import CONF, bomb, engine_of, images, make_codec, make_raw, records, save

from metastore._core.codec import PayloadCodec
from metastore._core.engine import APPLIED_KEY, Engine, MemoryEngine
from metastore._core.ordered_map import OrderedMap
from metastore._core.raft_types import ConfState
from metastore._core.snap_records import RecordReader, Walker, count_records, restore
from metastore.errors import DamagedData, FormatError, NoSpace
from metastore.failpoints import Failpoints
from metastore.snapshots.files import Cancelled, Info, Part, SnapshotStore, Source
from metastore.snapshots.format import MAX_HEADER, TRAILER_SIZE, Header, Trailer, header_size, parse_name

HEADER = Header(1000, 7, CONF, 55, 0xABCDEF, 99, 4096, "zstd")


RAW = make_raw()  # looking for plug-ins takes a few milliseconds each time


def contents(engine: Engine) -> list[tuple[bytes, bytes]]:
    return engine.scan(b"", None, False, 0)


class PlainEngine(Engine):
    """An engine in Python, whose views go through scan()."""

    def __init__(self, data: dict[bytes, bytes]) -> None:
        self.data = dict(data)
        self.closed = False

    def close(self) -> None:
        self.closed = True

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        keys = sorted((k for k in self.data if k >= start and (end is None or k < end)), reverse=reverse)
        return [(key, self.data[key]) for key in keys[: limit or None]]

    def applied(self) -> tuple[int, int]:
        index, term = struct.unpack("<QQ", self.data[APPLIED_KEY])
        return (index, term)

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        self.data = dict(stream)


@pytest.fixture
def store(tmp_path: Path) -> SnapshotStore:
    return SnapshotStore(tmp_path / "snap", chunk_size=4096, make_codec=make_codec)


# ---- header, trailer, names


def test_header_and_trailer_round_trip() -> None:
    data = HEADER.encode()
    copy = Header.decode(data)
    assert copy == HEADER and copy.conf_state.encode() == CONF.encode()
    assert header_size(data[:16]) == len(data)
    trailer = Trailer(1, 2, 3, 4, 5)
    assert Trailer.decode(trailer.encode()) == trailer and len(trailer.encode()) == TRAILER_SIZE


def test_the_bytes_stay_what_formats_says() -> None:
    data = Header(1, 2, ConfState((5,)), 3, 4, 6, 4096, "zstd").encode()
    conf = ConfState((5,)).encode()
    assert data[:16] == b"MSSNAP\r\n" + struct.pack("<II", 1, len(data))
    assert data[16:72] == struct.pack("<QQqQQIIII", 1, 2, 3, 4, 6, 4096, len(conf), 4, 0)
    assert data[72:-4] == conf + b"zstd"
    assert Trailer(1, 2, 3, 4, 5).encode()[:60] == b"MSSEND\r\n" + struct.pack("<QQQQQ", 1, 2, 3, 4, 5) + bytes(12)


@pytest.mark.parametrize("make", [HEADER.encode, Trailer(1, 2, 3, 4, 5).encode])
def test_every_changed_or_missing_byte_is_found(make: Callable[[], bytes]) -> None:
    data, decode = make(), Header.decode if make == HEADER.encode else Trailer.decode
    for at in range(len(data)):
        for changed in (data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :], data[:at]):
            with pytest.raises(FormatError):
                decode(changed)
    with pytest.raises(FormatError):
        decode(data + b"\0")


def test_a_header_has_a_limit() -> None:
    with pytest.raises(FormatError):
        Header(1, 1, CONF, 1, 1, 1, 4096, "x" * MAX_HEADER).encode()


def test_names() -> None:
    assert parse_name(HEADER.name()) == (1000, 7, 0xABCDEF)
    assert parse_name(HEADER.name("part"), "part") == (1000, 7, 0xABCDEF)
    assert parse_name(HEADER.name("part")) is None and parse_name(HEADER.name("tmp")) is None


# ---- records


KEYS = st.binary(max_size=12)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(KEYS, st.binary(max_size=60), max_size=40), st.integers(1, 70), st.integers(1, 70))
def test_any_records_come_back_through_pieces_of_any_size(data: dict[bytes, bytes], cut: int, other: int) -> None:
    engine = engine_of({b"x" + key: value for key, value in data.items()}, 3, 2)
    walker = Walker(engine.view())
    pieces = []
    while not walker.done:
        pieces.append(walker.take(cut))
    assert all(len(piece) == cut for piece in pieces[:-1])
    stream = b"".join(pieces)
    assert walker.nbytes == len(stream) and walker.records == len(data) + 1
    again = [stream[at : at + other] for at in range(0, len(stream), other)]
    assert list(RecordReader(again)) == contents(engine)
    assert count_records(RecordReader(again)) == len(data) + 1
    fresh = MemoryEngine()
    restore(fresh, RecordReader(again))
    assert contents(fresh) == contents(engine) and fresh.applied() == (3, 2)


def test_a_python_engine_gives_and_takes_the_same_bytes() -> None:
    memory = engine_of(records())
    plain = PlainEngine(dict(contents(memory)))
    assert Walker(plain).take(1 << 20) == Walker(memory.view()).take(1 << 20)
    target = PlainEngine({})
    restore(target, RecordReader([Walker(memory.view()).take(1 << 20)]))
    assert contents(target) == contents(memory)


def test_a_walker_closes_its_view() -> None:
    view = PlainEngine({b"a": b"1"})
    walker = Walker(view)
    walker.close()
    walker.close()
    assert view.closed and walker.done and walker.take(10) == b""
    memory = engine_of(records(10))
    walker = Walker(memory.view())
    walker.close()
    assert walker.take(10) == b"" and memory.get(b"k000001") is not None


def test_a_view_is_walked_while_the_engine_changes() -> None:
    engine = engine_of(records(20000))
    expected = contents(engine)
    walker = Walker(engine.view())
    pieces: list[bytes] = []

    def walk() -> None:
        while not walker.done:
            pieces.append(walker.take(10_000))

    thread = threading.Thread(target=walk)
    thread.start()
    for round_ in range(40):
        batch = OrderedMap()
        for n in range(0, 20000, 7):
            if (n + round_) % 3:
                batch.set(b"k%06d" % n, b"changed %d" % round_)
            else:
                batch.set_deleted(b"k%06d" % n)
        engine.write(batch, 1001 + round_, 7)
    thread.join()
    assert list(RecordReader(pieces)) == expected


def record(key: bytes, value: bytes) -> bytes:
    return struct.pack("<II", len(key), len(value)) + key + value


@pytest.mark.parametrize(
    "stream",
    [
        record(b"b", b"") + record(b"a", b""),
        record(b"a", b"") + record(b"a", b""),
        record(b"a", b"")[:-1],
        record(b"a", b"xyz")[:5],
        struct.pack("<II", 1 << 31, 0) + b"a",
        struct.pack("<II", 1, 0xFFFFFFFF) + b"a",
    ],
)
def test_wrong_streams_are_refused(stream: bytes) -> None:
    for cut in (1, 3, 1000):
        pieces = [stream[at : at + cut] for at in range(0, len(stream), cut)]
        with pytest.raises(FormatError):
            count_records(RecordReader(pieces))
        with pytest.raises(FormatError):
            list(RecordReader(pieces))
        engine = engine_of({b"old": b"1"})
        with pytest.raises(FormatError):
            restore(engine, RecordReader(pieces))
        assert engine.get(b"old") == b"1"


def test_a_stream_without_a_log_position_is_refused() -> None:
    engine = engine_of({b"old": b"1"})
    with pytest.raises(FormatError):
        restore(engine, RecordReader([record(b"a", b"b")]))
    assert engine.get(b"old") == b"1"


def test_restoring_pauses_and_adopting_takes_over() -> None:
    source, target = engine_of(records(5000)), engine_of({b"old": b"1"}, 3, 1)
    fresh, pauses = MemoryEngine(), []
    restore(fresh, RecordReader([Walker(source.view()).take(1 << 24)]), lambda: pauses.append(1))
    assert len(pauses) >= 4
    view = target.view()
    target.adopt(fresh)
    assert contents(target) == contents(source) and target.applied() == (1000, 7)
    assert view.get(b"old") == b"1"


# ---- files


@pytest.mark.parametrize("codec", [make_codec, make_raw])
def test_saved_verified_restored(tmp_path: Path, codec: Callable[[], PayloadCodec]) -> None:
    store = SnapshotStore(tmp_path / "snap", chunk_size=4096, make_codec=codec)
    engine = engine_of(records())
    info = save(store, engine)
    assert info.trailer.size == info.path.stat().st_size and info.trailer.chunks > 3
    assert store.names() == [info.path] and [p.name for p in store.path.iterdir()] == [info.path.name]
    assert store.verify(info.path).trailer == info.trailer
    fresh = MemoryEngine()
    assert store.restore(info.path, fresh).header == info.header
    assert contents(fresh) == contents(engine) and fresh.applied() == engine.applied()


def test_a_codec_changed_between_two_files(tmp_path: Path) -> None:
    engine = engine_of(records())
    first = save(SnapshotStore(tmp_path / "snap", chunk_size=4096, make_codec=make_raw), engine)
    store = SnapshotStore(tmp_path / "snap", chunk_size=4096, make_codec=make_codec)
    second = save(store, engine, stream=2)
    assert second.trailer.size < first.trailer.size
    for info in (first, second):
        fresh = MemoryEngine()
        store.restore(info.path, fresh)
        assert contents(fresh) == contents(engine)


def test_every_wrong_byte_of_a_file_is_found(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snap", chunk_size=256, make_codec=lambda: RAW)
    path = save(store, engine_of(records(20))).path
    data = path.read_bytes()
    for at in range(len(data)):
        path.write_bytes(data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])
        with pytest.raises(FormatError):
            store.verify(path)
        fresh = engine_of({b"old": b"1"})
        with pytest.raises(FormatError):
            store.restore(path, fresh)
        assert fresh.get(b"old") == b"1", "a damaged file reached the engine"


def test_every_length_but_the_right_one_is_found(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snap", chunk_size=256, make_codec=lambda: RAW)
    path = save(store, engine_of(records(20))).path
    data = path.read_bytes()
    for size in [*range(len(data)), len(data) + 1]:
        path.write_bytes((data + b"\0")[:size])
        with pytest.raises(FormatError):
            store.verify(path)


def test_missing_swapped_doubled_and_foreign_chunks_are_found(store: SnapshotStore) -> None:
    path = save(store).path
    head, chunks, tail = images(path)
    other = save(store, engine_of(records(499)), stream=2).path
    foreign = images(other)[1]
    for wrong in (
        chunks[:1] + chunks[2:],
        [chunks[1], chunks[0], *chunks[2:]],
        [chunks[0], *chunks],
        [*chunks, chunks[-1]],
        [foreign[0], *chunks[1:]],
        chunks[:-1],
        [],
    ):
        path.write_bytes(head + b"".join(wrong) + tail)
        with pytest.raises(FormatError):
            store.verify(path)
    path.write_bytes(head + b"".join(chunks) + images(other)[2])
    with pytest.raises(FormatError):
        store.verify(path)


@pytest.mark.parametrize("inside", [4097, 1 << 20, 60 << 20])
def test_a_chunk_that_unfolds_to_too_much_is_refused_unpacked_or_not(store: SnapshotStore, inside: int) -> None:
    """The declared size reveals it, or the limit does: a chunk's size, beyond which nothing is unpacked."""
    info = save(store)
    head, chunks, tail = images(info.path)
    info.path.write_bytes(head + bomb(info.path, inside) + b"".join(chunks[1:]) + tail)
    engine = engine_of({b"old": b"1"})
    tracemalloc.start()
    try:
        with pytest.raises(FormatError, match="at most 4096"):
            store.verify(info.path)
        with pytest.raises(FormatError, match="at most 4096"):
            store.restore(info.path, engine)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 20 and engine.get(b"old") == b"1"


def test_a_bomb_that_is_received_never_counts(store: SnapshotStore, tmp_path: Path) -> None:
    """Chunks are not unpacked when they come in. The whole file is unpacked before it gets its place."""
    info = save(store)
    other = SnapshotStore(tmp_path / "other", chunk_size=4096, make_codec=make_codec)
    part = receive(other, info)
    for image in (bomb(info.path, 60 << 20), *images(info.path)[1][1:]):
        assert part.add(image)
    with pytest.raises(DamagedData, match="at most 4096"):
        part.finish(info.trailer.encode())
    assert not other.names() and not other.parts()


@pytest.mark.parametrize("field", ["stream", "chunks", "nbytes", "records", "size"])
def test_a_trailer_that_says_something_else_is_refused(store: SnapshotStore, field: str) -> None:
    info = save(store)
    data = info.path.read_bytes()
    wrong = replace(info.trailer, **{field: getattr(info.trailer, field) + 1})
    info.path.write_bytes(data[:-TRAILER_SIZE] + wrong.encode())
    with pytest.raises(FormatError):
        store.verify(info.path)
    engine = engine_of({b"old": b"1"})
    with pytest.raises(FormatError):
        store.restore(info.path, engine)
    assert engine.get(b"old") == b"1"


def test_a_file_under_another_name_is_refused(store: SnapshotStore) -> None:
    info = save(store)
    moved = info.path.with_name(Header(2000, 7, CONF, 55, 1, 99, 4096).name())
    info.path.rename(moved)
    with pytest.raises(FormatError, match="name"):
        store.verify(moved)


def test_an_attempt_that_fails_leaves_nothing(tmp_path: Path) -> None:
    points = Failpoints()
    store = SnapshotStore(tmp_path / "snap", chunk_size=4096, make_codec=make_codec, failpoints=points)
    for point in ("snapshot.write", "snapshot.sync", "snapshot.rename", "snapshot.verify"):
        points.set(point, "error(EIO)")
        with pytest.raises(OSError):
            save(store)
        points.set(point, "error(ENOSPC)")
        with pytest.raises(NoSpace):
            save(store)
        points.set(point, "off")
        assert not list(store.path.iterdir())

    def stop() -> None:
        raise Cancelled

    with pytest.raises(Cancelled):
        store.save(HEADER, Walker(engine_of(records()).view()), stop)
    assert not list(store.path.iterdir())


def test_what_does_not_read_back_never_counts(store: SnapshotStore, monkeypatch: pytest.MonkeyPatch) -> None:
    written = store.append

    def wrong(fd: int, data: bytes, offset: int) -> int:
        return written(fd, data[:-1] + bytes([data[-1] ^ 1]) if len(data) > 2000 else data, offset)

    monkeypatch.setattr(store, "append", wrong)
    store.make_codec = make_raw
    with pytest.raises(DamagedData):
        save(store)
    assert not store.names()


def test_retention_keeps_two_at_least_and_what_is_in_use(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snap", chunk_size=4096, make_codec=make_codec, retention=1)
    infos = [save(store, engine_of(records(5), index)) for index in (5, 300, 20, 4000)]
    store.prune(keep=[infos[0].path])
    assert [path.name for path in store.names()] == [infos[3].path.name, infos[1].path.name, infos[0].path.name]


def test_unfinished_files_are_removed_at_the_start(tmp_path: Path) -> None:
    store = SnapshotStore(tmp_path / "snap", chunk_size=4096, make_codec=make_codec)
    (store.path / HEADER.name("tmp")).write_bytes(b"half")
    (store.path / HEADER.name("part")).write_bytes(b"half")
    (store.path / "notes.txt").write_bytes(b"not ours")
    SnapshotStore(tmp_path / "snap", chunk_size=4096, make_codec=make_codec)
    assert sorted(p.name for p in store.path.iterdir()) == sorted([HEADER.name("part"), "notes.txt"])


# ---- receiving


def receive(store: SnapshotStore, info: Info) -> Part:
    part = store.receive(info.header.encode())
    assert isinstance(part, Part)
    return part


def test_a_received_file_is_the_file(store: SnapshotStore, tmp_path: Path) -> None:
    info = save(store)
    other = SnapshotStore(tmp_path / "other", chunk_size=1 << 20, make_codec=make_codec)
    source, part = Source(info), receive(other, info)
    for number in range(info.trailer.chunks):
        assert part.add(source.chunk(number))
        # A chunk in the wrong order, or a second time, is no error. It is just not the next one.
        assert not part.add(source.chunk(number))
        if number + 2 < info.trailer.chunks:
            assert not part.add(source.chunk(number + 2))
    info_there = part.finish(info.trailer.encode())
    assert info_there.path.read_bytes() == info.path.read_bytes() and other.names() == [info_there.path]
    answer = other.receive(info.header.encode())
    assert isinstance(answer, Info) and answer.trailer == info.trailer
    source.close()


@pytest.mark.parametrize("cut", [0, 1, 30, 100, 1000])
def test_receiving_goes_on_after_the_last_whole_chunk(store: SnapshotStore, tmp_path: Path, cut: int) -> None:
    info = save(store)
    other = SnapshotStore(tmp_path / "other", chunk_size=4096, make_codec=make_codec)
    source, part = Source(info), receive(other, info)
    for number in range(3):
        part.add(source.chunk(number))
    part.close()
    path = next(iter(other.parts()))
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.truncate(size - cut)
        file.seek(0, 2)
        file.write(b"garbage" * 10_000 if cut == 30 else b"")
    part = receive(other, info)
    assert part.chunks == (3 if cut == 0 else len(images_of_part(path)))
    assert part.chunks >= 1 or cut == 1000
    for number in range(part.chunks, info.trailer.chunks):
        assert part.add(source.chunk(number))
    assert part.finish(info.trailer.encode()).trailer == info.trailer
    source.close()


def test_any_damage_of_what_was_received_costs_only_what_follows_it(tmp_path: Path) -> None:
    """Each byte is flipped and each length cut in a file that was received in part, including the trailer."""
    store = SnapshotStore(tmp_path / "snap", chunk_size=256, make_codec=lambda: RAW)
    info = save(store, engine_of(records(20)))
    whole, source = info.path.read_bytes(), Source(info)
    head = len(info.header.encode())
    ends = [head]
    for number in range(info.trailer.chunks):
        ends.append(ends[-1] + len(source.chunk(number)))
    source.close()
    other = SnapshotStore(tmp_path / "other", chunk_size=256, make_codec=lambda: RAW)
    path = other.path / info.header.name("part")
    flips = [(at, whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :]) for at in range(len(whole))]
    for at, data in [*flips, *((end, whole[:end]) for end in range(len(whole)))]:
        path.write_bytes(data)
        part = receive(other, info)
        assert part.chunks == (0 if at < head else sum(end <= at for end in ends[1:])), at
        part.close()
        assert path.read_bytes() == whole[: ends[part.chunks]]


def images_of_part(path: Path) -> list[int]:
    """Return the offsets of the whole chunks in a file that was received in part."""
    data = path.read_bytes()
    at, offsets = header_size(data[:16]), []
    while at + 40 <= len(data):
        size = 40 + struct.unpack_from("<I", data, at + 4)[0]
        if at + size > len(data):
            break
        offsets.append(at)
        at += size
    return offsets


def test_a_damaged_chunk_is_refused_and_nothing_has_changed(store: SnapshotStore, tmp_path: Path) -> None:
    info = save(store)
    other = SnapshotStore(tmp_path / "other", chunk_size=4096, make_codec=make_codec)
    source, part = Source(info), receive(other, info)
    good = source.chunk(0)
    with pytest.raises(FormatError):
        part.add(good[:50] + bytes([good[50] ^ 1]) + good[51:])
    assert part.chunks == 0 and part.add(good)
    part.close()
    source.close()


def test_chunks_of_another_snapshot_are_not_taken(tmp_path: Path) -> None:
    """They are accepted neither from the wire nor from a partly received file, however well number and offset fit."""
    store = SnapshotStore(tmp_path / "snap", chunk_size=256, make_codec=lambda: RAW)
    info, foreign = save(store, engine_of(records(20))), save(store, engine_of(records(20)), stream=2)
    other = SnapshotStore(tmp_path / "other", chunk_size=256, make_codec=lambda: RAW)
    source, wrong, part = Source(info), Source(foreign), receive(other, info)
    assert not part.add(wrong.chunk(0)) and part.add(source.chunk(0)) and not part.add(wrong.chunk(1))
    part.close()
    (path,) = other.parts()
    good = path.read_bytes()
    path.write_bytes(good + wrong.chunk(1))
    part = receive(other, info)
    assert part.chunks == 1 and path.read_bytes() == good
    part.close()
    for opened in (source, wrong):
        opened.close()


def test_another_snapshot_takes_the_place_of_an_unfinished_one(store: SnapshotStore, tmp_path: Path) -> None:
    first, second = save(store), save(store, engine_of(records(50), 2000), stream=2)
    other = SnapshotStore(tmp_path / "other", chunk_size=4096, make_codec=make_codec)
    receive(other, first).close()
    receive(other, second).close()
    assert [path.name for path in other.parts()] == [second.header.name("part")]


def test_a_source_that_rots_is_found_before_it_is_sent(store: SnapshotStore) -> None:
    info = save(store)
    data = bytearray(info.path.read_bytes())
    data[len(data) // 2] ^= 1
    info.path.write_bytes(data)
    source = Source(info)
    with pytest.raises(FormatError):
        for number in range(info.trailer.chunks):
            source.chunk(number)
    source.close()
