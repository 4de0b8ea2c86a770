"""What a start begins with, and that `metastore wal verify` says the same; which part of the log stays, and for
whom."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.snapshotfiles import CONF, engine_of, make_codec, records, save
from support.waldriving import durable, opened, put

from metastore._core.codec import PayloadCodec
from metastore._core.engine import MemoryEngine
from metastore._core.entry import HardState
from metastore.cli import snapshot_check
from metastore.config import Config
from metastore.errors import CodecFailed, CodecMissing, DamagedData
from metastore.failpoints import Failpoints
from metastore.member.memory_guard import Memory
from metastore.net.loop import Loop
from metastore.snapshots import startup
from metastore.snapshots.catalogue import Catalogue
from metastore.snapshots.coordinator import Snapshots
from metastore.snapshots.files import Info, SnapshotStore
from metastore.snapshots.policy import Policy
from metastore.storage.wal import Wal

CLUSTER = 99  # cluster id of the files that `save` makes
LAST = 300
MEMORY = Memory(Config(), None)


class Disk:
    """A log of 300 entries that begins after entry 100, and snapshots at 100, 200 and 300."""

    def __init__(self, folder: Path) -> None:
        self.wal: Wal = opened(folder / "wal")
        put(self.wal, 1, LAST)
        self.store = SnapshotStore(folder / "snap", chunk_size=4096, make_codec=make_codec)
        self.infos = [self.take(index) for index in (100, 200, 300)]
        self.wal.save_snapshot_position(100, 1, CONF.encode())
        self.go_on()

    def take(self, index: int, term: int = 1) -> Info:
        return save(self.store, engine_of({b"at": b"%d" % index, **records(50)}, index, term), stream=index)

    def go_on(self) -> None:
        """Wait until the log has written its queue."""
        number = self.wal.durable + 1
        self.wal.append(number, None, HardState(1, 1, LAST))
        self.wal.submit()
        durable(self.wal, number)

    def start(self) -> tuple[int, MemoryEngine]:
        """Return (index of the snapshot that a start begins with, the engine); 0 for none. Raises DamagedData."""
        engine = MemoryEngine()
        info = startup.begin(self.store, engine, self.wal, CLUSTER, MEMORY)
        return info.header.index if info is not None else 0, engine

    def verdict(self) -> str:
        """Return what `wal verify` says of the snapshots; empty if a start finds one."""
        begins = self.wal.snapshot_index, self.wal.snapshot_term
        checked = snapshot_check.look(self.store.path, begins[0], CLUSTER, lambda *_: None)
        damage = snapshot_check.missing(self.store.path, begins, CLUSTER, checked)
        return damage.text if damage is not None else ""

    def refused(self) -> str:
        """Return why a start is refused; `wal verify` must say so too."""
        with pytest.raises(DamagedData) as failure:
            self.start()
        assert self.verdict(), failure.value.text
        return failure.value.text


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    one = Disk(tmp_path)
    yield one
    with contextlib.suppress(Exception):
        one.wal.close()


def spoil(info: Info) -> None:
    data = bytearray(info.path.read_bytes())
    data[len(data) // 2] ^= 1
    info.path.write_bytes(data)


def foreign(info: Info) -> None:
    """Rewrite the file as one of another cluster."""
    data, head = info.path.read_bytes(), info.header.encode()
    info.path.write_bytes(replace(info.header, cluster_id=7).encode() + data[len(head) :])


def test_the_newest_that_can_be_read(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    for index, info in ((300, disk.infos[2]), (200, disk.infos[1]), (100, disk.infos[0])):
        begun, engine = disk.start()
        assert (begun, engine.applied(), engine.get(b"at")) == (index, (index, 1), b"%d" % index)
        assert disk.verdict() == ""
        assert caplog.text.count("is damaged, the one before it is tried") == {300: 0, 200: 1, 100: 3}[index]
        spoil(info)
    text = disk.refused()
    assert all(str(info.path) in text for info in disk.infos) and "begins after entry 100" in text


def test_what_is_older_than_the_log_is_not_looked_at(disk: Disk) -> None:
    old = disk.take(50)
    for info in disk.infos:
        spoil(info)
    text = disk.refused()
    assert "has no snapshot of it or later that can be read" in text and str(old.path) not in text


@pytest.mark.parametrize("behind", [False, True])
def test_a_snapshot_of_another_cluster(behind: bool, disk: Disk) -> None:
    """The newest file that can be read decides. Behind a good file it is not looked at."""
    foreign(disk.infos[1])
    if behind:
        assert disk.start()[0] == 300 and disk.verdict() == ""
        return
    spoil(disk.infos[2])
    assert "of cluster 0000000000000007" in disk.refused()
    assert disk.verdict() == disk.refused()


def test_a_state_that_is_not_of_this_log(disk: Disk) -> None:
    """If the log begins there, its own record has the term of that entry."""
    for info in disk.infos:
        info.path.unlink()
    disk.take(100, term=2)
    assert disk.refused() == disk.verdict() == "the state at entry 100 of term 2 does not belong to the log"


def test_a_log_that_ends_before_the_snapshot_begins_again(disk: Disk) -> None:
    disk.take(400, term=2)
    assert disk.start()[0] == 400 and disk.verdict() == ""
    assert (disk.wal.snapshot_index, disk.wal.snapshot_term, disk.wal.last_index()) == (400, 2, 400)


def test_without_snapshots(disk: Disk) -> None:
    for info in disk.infos:
        info.path.unlink()
    assert "begins after entry 100" in disk.refused()


class Reversing:
    """A codec plug-in."""

    name, flag = "reversing", 42

    def __init__(self, fails: bool = False) -> None:
        self.fails = fails

    def compress(self, data: bytes) -> bytes:
        return zlib.compress(data)[::-1]

    def decompress(self, data: bytes, max_size: int) -> bytes:
        if self.fails:
            raise KeyError("of its own")
        return zlib.decompress(data[::-1])


def test_a_snapshot_that_needs_a_missing_codec_says_so(disk: Disk, caplog: pytest.LogCaptureFixture) -> None:
    """It is not damaged, and so no older snapshot is tried in its place."""
    disk.store.make_codec = lambda: PayloadCodec(Reversing(), 0, 1 << 20)
    path = disk.take(310).path
    assert disk.start()[0] == 310
    disk.store.make_codec = make_codec
    with pytest.raises(CodecMissing) as missing:
        disk.start()
    assert missing.value.text == f"{path} needs the codec with flag 42 (not installed)"
    assert (missing.value.flag, missing.value.exit_code) == (42, 14)
    disk.store.make_codec = lambda: PayloadCodec(None, 0, 1 << 20, [Reversing(fails=True)])
    with pytest.raises(CodecFailed) as failed:
        disk.start()
    assert failed.value.text == f"{path}: codec 'reversing' (flag 42): decompress() raised KeyError: 'of its own'"
    assert "is damaged" not in caplog.text


def test_a_changed_engine_is_filled_from_the_one_before(disk: Disk) -> None:
    """The log of an engine that lasts begins behind what that engine holds, and there is no snapshot of it."""
    for info in disk.infos:
        info.path.unlink()
    early, late = engine_of({b"a": b"early"}, 99, 1), engine_of({b"a": b"late", **records(3000)}, 250, 1)
    with pytest.raises(DamagedData, match="begins after entry 100"):
        startup.begin(disk.store, MemoryEngine(), disk.wal, CLUSTER, MEMORY, lambda: [("early", early)])
    for engine in (MemoryEngine(), Lasting()):
        engine.restore(engine_of({b"gone": b""}, 7, 1).scan(b"", None, False, 0))
        others = [("early", early), ("late", late)]
        assert startup.begin(disk.store, engine, disk.wal, CLUSTER, MEMORY, lambda given=others: given) is None
        assert engine.scan(b"", None, False, 0) == late.scan(b"", None, False, 0)
        assert engine.applied() == (250, 1)


def test_a_log_from_the_first_entry_on_needs_none(tmp_path: Path) -> None:
    disk = Disk.__new__(Disk)
    disk.wal = opened(tmp_path / "wal")
    put(disk.wal, 1, 10)
    disk.store = SnapshotStore(tmp_path / "snap", chunk_size=4096, make_codec=make_codec)
    assert disk.start()[0] == 0 and disk.verdict() == ""
    spoil(disk.take(5))
    assert disk.start()[0] == 0 and disk.verdict() == "", "all of it is in the log"
    disk.wal.close()


class Lasting(MemoryEngine):
    """An engine whose folder is its memory."""

    persistent = True


@pytest.mark.parametrize("applied", [99, 100, 250])
def test_an_engine_that_lasts_goes_on_from_its_own(applied: int, disk: Disk) -> None:
    engine = Lasting()
    engine.restore(engine_of({}, applied, 1).scan(b"", None, False, 0))
    info = startup.begin(disk.store, engine, disk.wal, CLUSTER, MEMORY)
    assert (info is None) is (applied >= 100)
    assert engine.applied() == ((applied, 1) if applied >= 100 else (300, 1))


@pytest.fixture
def keeper(disk: Disk) -> Iterator[Callable[..., Snapshots]]:
    loop = Loop()

    def make(begun: Info | None = None) -> Snapshots:
        driver: Any = SimpleNamespace(is_leader=False)
        return Snapshots(
            disk.store, Catalogue(begun), MemoryEngine(), disk.wal, driver, loop, Policy(10, 0),
            cluster_id=CLUSTER, failpoints=Failpoints(), memory=MEMORY,
        )  # fmt: skip

    yield make
    loop.close()


def test_the_log_stays_for_who_is_sent_a_snapshot(disk: Disk, keeper: Callable[..., Snapshots]) -> None:
    """The follower goes on behind that snapshot."""
    snapshots = keeper()
    snapshots.catalogue.good = [*disk.infos, disk.take(301)]
    snapshots.catalogue.sending |= {2: disk.infos[1], 3: disk.infos[2]}
    snapshots._compact()
    assert disk.wal.snapshot_index == 200
    del snapshots.catalogue.sending[2]
    snapshots._compact()
    assert disk.wal.snapshot_index == 300, "the one before the newest, as without anybody"


def test_what_a_start_began_with_is_there_for_others(disk: Disk, keeper: Callable[..., Snapshots]) -> None:
    """It can be sent to a follower, and the next snapshot is due as many entries behind it."""
    snapshots = keeper(disk.infos[2])
    assert snapshots.newest().index == 300 and snapshots.catalogue.find(300, 1) is disk.infos[2]
    assert snapshots.policy.index == 300 and not snapshots.policy.due(309, 1 << 20, 0)
    assert snapshots.policy.due(310, 1 << 20, 0)
