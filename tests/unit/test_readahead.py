"""The read-ahead cache over a real log: its answers, its contents, and what it reads ahead and forgets. Reads are done
by hand, in any order, or by its thread."""

from __future__ import annotations

import queue
import random
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.waldisk import image
from support.waldriving import durable, opened, put

from metastore._core.entry import HardState, decode_entries
from metastore._core.raft_types import LogCompacted, LogUnavailable, NotYetLoaded
from metastore.errors import DamagedData, DiskFailed, MetaStoreError
from metastore.failpoints import Failpoints
from metastore.storage.read_thread import ReadThread
from metastore.storage.readahead import MAX_READS, ReadAhead
from metastore.storage.reading import Reading
from metastore.storage.wal import Wal

SIZE = 132  # bytes of an entry that `put` makes
COST = SIZE + 24  # with its place in the table


class Bench:
    """A log, its cache, and reads that wait to be done."""

    def __init__(self, wal: Wal, capacity: int) -> None:
        self.wal = wal
        self.waiting: list[Reading] = []
        self.cache = ReadAhead(wal, capacity, self.waiting.append)

    def arrive(self, which: int = 0) -> None:
        """Do one read and let its result arrive."""
        reading = self.waiting.pop(which)
        outcome: bytes | Exception
        try:
            outcome = reading.read()
        except MetaStoreError as error:
            outcome = error
        self.cache.loaded(reading, outcome)

    def get(self, low: int, high: int, max_size: int = 1 << 20) -> bytes | None:
        """Return what the cache answers at once, or None if it must read first."""
        try:
            return bytes(self.cache.images(low, high, max_size))
        except NotYetLoaded:
            return None

    def wait(self, low: int, high: int, max_size: int = 1 << 20) -> bytes:
        """Return the answer after as many reads as it takes."""
        while (images := self.get(low, high, max_size)) is None:
            self.arrive()
        return images

    @property
    def ahead(self) -> list[tuple[int, int]]:
        """Return the entries that are being read."""
        return [(reading.first, reading.end) for reading in self.waiting]


@pytest.fixture
def wal(tmp_path: Path) -> Iterator[Wal]:
    points = Failpoints()
    log = opened(tmp_path / "wal", points)
    log.points = points  # type: ignore[attr-defined]
    yield log
    points.clear()
    try:
        log.close()
    except DiskFailed:
        pass


@pytest.fixture
def bench(wal: Wal) -> Bench:
    """A log of 400 entries, and room for 80 entries in blocks of 11."""
    put(wal, 1, 400)
    return Bench(wal, 80 * COST)


def compact(wal: Wal, index: int) -> None:
    """Let the log begin after `index`, durably, and release what is not needed."""
    wal.save_snapshot_position(index, wal.term(index), b"conf")
    number = wal._writer.number + 1
    wal.append(number, None, HardState(1, 1, index))
    wal.submit()
    durable(wal, number)
    wal.release(index)


def test_a_sequential_reader_waits_once(bench: Bench) -> None:
    low, images, waited = 1, [], 0
    while low < 401:
        piece = bench.get(low, 401)
        if piece is None:
            waited += 1
        else:
            images.append(piece)
            low += len(piece) // SIZE
        while bench.waiting:
            bench.arrive()
    assert b"".join(images) == bench.wal.images(1, 401, 1 << 20)
    assert waited == bench.cache.misses == 1
    assert bench.cache.hits == len(images) - 1
    assert bench.cache.read_bytes == 400 * SIZE
    assert bench.cache.stats()["cached_bytes"] == bench.cache.cached_bytes <= bench.cache.capacity


def test_what_it_reads_ahead_ends_where_memory_begins(bench: Bench) -> None:
    assert bench.get(1, 20) is None
    assert bench.ahead == [(1, 12)]
    bench.arrive()
    assert len(bench.get(1, 20) or b"") == 11 * SIZE
    assert bench.ahead == [(12, 20)]


def test_answers_keep_to_range_and_size(bench: Bench) -> None:
    images = bench.wal.images(1, 401, 1 << 20)
    bench.wait(1, 401)
    assert bench.get(3, 6) == images[2 * SIZE : 5 * SIZE]
    assert bench.get(3, 400, 2 * SIZE) == images[2 * SIZE : 4 * SIZE]
    assert bench.get(5, 400, 1) == images[4 * SIZE : 5 * SIZE], "at least one"
    with pytest.raises(LogUnavailable):
        bench.get(401, 402)
    with pytest.raises(LogUnavailable):
        bench.get(7, 7)
    with pytest.raises(LogCompacted):
        bench.get(0, 7)


def test_a_wish_is_counted_and_read_once(bench: Bench) -> None:
    for _ in range(3):
        assert bench.get(5, 401) is None
        assert bench.get(7, 401) is None
    assert bench.ahead == [(5, 16)] and bench.cache.misses == 1
    bench.arrive()
    assert bench.get(5, 401) and bench.cache.hits == 0, "who had to wait is no hit"
    assert bench.get(7, 401) and bench.cache.hits == 1
    assert bench.ahead == [(16, 27), (27, 38)]
    assert bench.get(16, 401) is None and bench.cache.misses == 2, "it was on its way, but too late"


def test_room_is_bounded_and_the_oldest_goes_first(bench: Bench) -> None:
    for low in (1, 101, 201, 301):
        bench.wait(low, low + 11)
    bench.wait(1, 12)
    for low in (51, 151, 251, 351):
        bench.wait(low, low + 11)
    assert bench.cache.cached_bytes <= bench.cache.capacity
    hits = bench.cache.hits
    assert bench.get(1, 12) is not None and bench.cache.hits == hits + 1, "it was used lately"
    assert bench.get(101, 112) is None


def test_reading_ahead_drops_nothing_that_nobody_had_yet(bench: Bench) -> None:
    bench.wait(1, 401)
    bench.arrive()
    bench.arrive()
    assert not bench.waiting
    before = set(bench.cache._blocks)
    assert before == {1, 12, 23}
    for low in (101, 201, 301):
        bench.wait(low, 401)
        while bench.waiting:
            bench.arrive()
    # Seven blocks fit. What the first reader has not received yet is still there, and the last reader got less ahead.
    assert {12, 23} <= set(bench.cache._blocks)
    assert bench.cache.cached_bytes <= bench.cache.capacity


def test_many_readers_take_turns(bench: Bench) -> None:
    """More reads are needed at a time than are done at a time, in a cache too small for them. Every reader makes
    progress."""
    images = bench.wal.images(1, 401, 1 << 20)
    at = {reader: 1 + 37 * reader for reader in range(9)}
    for _ in range(400):
        for reader, low in at.items():
            if low < 401 and (piece := bench.get(low, 401)) is not None:
                assert piece == images[(low - 1) * SIZE : (low - 1) * SIZE + len(piece)]
                at[reader] += len(piece) // SIZE
        assert len(bench.waiting) <= MAX_READS
        assert bench.cache._cached + bench.cache._underway <= bench.cache.capacity
        if bench.waiting:
            bench.arrive()
    assert set(at.values()) == {401}


def test_entries_larger_than_the_cache_pass_one_by_one(wal: Wal) -> None:
    for index in range(1, 6):
        wal.append(index, image(index, 1, 5000), None)
    wal.submit()
    durable(wal, 5)
    bench = Bench(wal, 1000)
    for index in range(1, 6):
        assert bench.wait(index, 6) == image(index, 1, 5000)
        assert len(bench.cache._blocks) == 1


def test_two_who_wait_with_room_for_one_both_get_on(wal: Wal) -> None:
    """This holds even if both blocks arrive before either reader is told, in the worse order."""
    put(wal, 1, 40)
    bench = Bench(wal, 1)
    at = {1: 1, 20: 20}
    for _ in range(60):
        for who, index in at.items():
            if index < who + 10 and bench.get(index, who + 10) is not None:
                at[who] += 1
        while bench.waiting:
            bench.arrive()
    assert at == {1: 11, 20: 30}


def test_an_overwritten_suffix_is_forgotten(bench: Bench) -> None:
    wal = bench.wal
    bench.wait(380, 401)
    bench.wait(392, 401)
    assert bench.get(370, 380) is None and bench.get(395, 401) is not None
    wal.append(401, image(390, 2, 100), None)
    assert bench.wait(380, 390) == b"".join(image(index, 1, 100) for index in range(380, 390))
    with pytest.raises(LogUnavailable, match="not durable"):
        bench.get(390, 391)
    wal.submit()
    durable(wal, 401)
    assert bench.wait(388, 391) == image(388, 1, 100) + image(389, 1, 100), "as far as that was read before"
    assert bench.wait(390, 391) == image(390, 2, 100)
    with pytest.raises(LogUnavailable):
        bench.get(391, 392)


def test_what_was_on_its_way_when_it_was_overwritten_is_dropped(bench: Bench) -> None:
    wal = bench.wal
    assert bench.get(388, 401) is None
    for index in range(390, 403):
        wal.append(index + 100, image(index, 2, 90), None)
    wal.submit()
    durable(wal, 502)
    assert bench.get(388, 403) is None
    assert len(bench.waiting) == 1
    bench.arrive()
    assert bench.cache.dropped == 1 and bench.get(388, 403) is None
    images = bench.wait(388, 403)
    assert images.startswith(image(388, 1, 100) + image(389, 1, 100) + image(390, 2, 90))


def test_a_released_segment_is_no_damage(bench: Bench) -> None:
    wal = bench.wal
    put(wal, 401, 600)
    bench.wait(50, 1001)
    assert bench.get(1, 1001) is None
    files = set(wal._folder.path.glob("*.wal"))
    compact(wal, 900)
    bench_files = wal._paths.values()
    for path in files - set(bench_files):
        path.unlink(missing_ok=True)
    while bench.waiting:
        bench.arrive()
    assert bench.cache.dropped == 3
    for low in (1, 50, 900):
        with pytest.raises(LogCompacted):
            bench.get(low, 1001)
    assert bench.wait(901, 902) == image(901, 1, 100)
    assert not [first for first in bench.cache._blocks if first < 901]


def flip(wal: Wal, index: int) -> str:
    """Damage entry `index` on the disk. Return the name of its segment."""
    number, offset, _ = wal._state.where(index)
    path = wal._paths[number]
    with path.open("r+b") as file:
        file.seek(offset + 100)
        byte = file.read(1)
        file.seek(offset + 100)
        file.write(bytes([byte[0] ^ 1]))
    return path.name


def test_damage_is_told_to_those_who_need_the_entry(bench: Bench) -> None:
    name = flip(bench.wal, 30)
    bench.wait(1, 401)
    while bench.waiting:
        bench.arrive()
    assert bench.cache.dropped == 1, "nobody needs it yet"
    bench.wait(12, 401)
    with pytest.raises(DamagedData, match=rf"{name}: entry 30 is damaged at offset \d+"):
        bench.wait(23, 401)


def test_a_read_that_fails(bench: Bench) -> None:
    bench.wal.points.set("wal.read", "error")  # type: ignore[attr-defined]
    with pytest.raises(DiskFailed, match=r"reading .*\.wal failed: .*Input/output error"):
        bench.wait(23, 401)
    assert not bench.cache._reads and bench.cache._underway == 0


@pytest.mark.parametrize("seed", range(8))
def test_never_anything_but_what_the_log_holds(seed: int, wal: Wal) -> None:
    """Readers, arrivals in any order, new leaders and compactions come at random."""
    chance = random.Random(seed)
    bench = Bench(wal, chance.choice((1, 2000, 20_000)))
    put(wal, 1, 60)
    term, right, at = 1, 0, [1, 1, 30]
    for _ in range(1500):
        roll = chance.random()
        first, last = wal.first_index(), wal.last_index()
        if roll < 0.03:
            term += 1
            low = chance.randint(max(first, last - 30), last + 1)
            count = chance.randint(1, 30)
            for index in range(low, low + count):
                number = wal._writer.number + 1
                wal.append(number, image(index, term, chance.randrange(200)), None)
            wal.submit()
            durable(wal, number)
        elif roll < 0.035 and last - first > 60:
            compact(wal, chance.randint(first, last - 50))
        elif roll < 0.4 and bench.waiting:
            bench.arrive(chance.randrange(len(bench.waiting)))
        else:
            reader = chance.randrange(3)
            low = max(first, min(at[reader], last))
            if chance.random() < 0.05 or low == last:
                low = chance.randint(first, last)
            high, size = chance.randint(low + 1, last + 1), chance.choice((1, 500, 5000))
            piece = bench.get(low, high, size)
            at[reader] = low
            if piece is not None:
                right += 1
                assert piece and wal.images(low, high, size).startswith(piece)
                at[reader] = low + len(decode_entries(piece))
        assert len(bench.waiting) <= MAX_READS and len(bench.waiting) == len(bench.cache._reads)
        held = sum(block.reading.cost for block in bench.cache._blocks.values())
        assert held == bench.cache.cached_bytes
        assert bench.waiting or not bench.cache._requests, "a wish that nobody will see to"
    assert right > 30


class Owner:
    """A cache whose reads a thread does. It replaces the loop: it runs what the thread posts."""

    def __init__(self, wal: Wal) -> None:
        self.posted: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.loaded = 0
        self.thread = ReadThread(self.posted.put)
        self.cache = ReadAhead(wal, 1 << 20, lambda reading: self.thread.read(reading, self.done))

    def turn(self) -> None:
        self.posted.get(timeout=30)()

    def done(self, reading: Reading, outcome: bytes | Exception) -> None:
        self.cache.loaded(reading, outcome)
        self.loaded += 1


def test_the_thread_reads_and_says_so(wal: Wal) -> None:
    put(wal, 1, 100)
    owner = Owner(wal)
    with pytest.raises(NotYetLoaded):
        owner.cache.images(1, 101, 1 << 20)
    assert owner.loaded == 0
    owner.turn()
    assert owner.loaded == 1
    assert bytes(owner.cache.images(1, 101, 1 << 20)) == wal.images(1, 101, 1 << 20)
    owner.thread.close()
    owner.thread.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "wal-read"]


def test_closing_waits_not_for_ever(
    wal: Wal, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, read = threading.Event(), Reading.read

    def reads(reading: Reading) -> bytes:
        begun.set()
        return read(reading)

    monkeypatch.setattr(Reading, "read", reads)
    put(wal, 1, 10)
    hold = tmp_path / "hold"
    hold.touch()
    wal.points.set("wal.read", f"block({hold})")  # type: ignore[attr-defined]
    owner = Owner(wal)
    with pytest.raises(NotYetLoaded):
        owner.cache.images(1, 11, 1 << 20)
    assert begun.wait(30)
    owner.thread.close(timeout=0.01)
    assert "without waiting any longer" in caplog.text
    hold.unlink()
    owner.turn()
    assert owner.loaded == 0, "nobody is there any more"


def test_an_error_of_the_thread_comes_out_in_the_loop(wal: Wal) -> None:
    put(wal, 1, 10)
    wal.points.set("wal.read", "error(ENOMEM)")  # type: ignore[attr-defined]
    owner = Owner(wal)
    with pytest.raises(NotYetLoaded):
        owner.cache.images(1, 11, 1 << 20)
    with pytest.raises(DiskFailed, match="Cannot allocate memory"):
        owner.turn()
    owner.thread.close()
