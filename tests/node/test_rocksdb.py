"""The RocksDB engine: stalls, stages, damage. The contract: test_engine.py; a full disk: test_rocksdb_full_disk.py;
nodes on it: test_rocksdb_node.py; kills: test_rocksdb_crash.py."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import wait_until

from metastore import storage
from metastore._core.engine import APPLIED_KEY
from metastore._core.ordered_map import OrderedMap
from metastore._core.snap_records import RecordReader, Walker, restore
from metastore.config import Config
from metastore.embedded.node import Node as EmbeddedNode
from metastore.errors import ConfigError, DamagedData, DataDirInUse, EngineBusy, FormatError
from metastore.settings import RocksdbTable
from metastore.storage.engines.memory import MemoryEngine
from metastore.storage.engines.rocksdb import RocksEngine
from metastore.testing.engine_contract import EngineContract, batch_of

pytestmark = pytest.mark.node_only

SMALL = RocksdbTable(
    cache_size=1 << 20, write_buffer_size=64 << 10, max_write_buffers=2, recent_keys_size=64 << 10, level0_files=1,
    level0_stop=2,
)  # fmt: skip


# ---- the engine alone


def test_a_busy_engine_refuses_at_once_and_takes_the_batch_later(tmp_path: Path) -> None:
    engine = RocksEngine(str(tmp_path / "engine"), SMALL)
    contents: dict[bytes, bytes] = {}
    refused = 0
    for index in range(1, 301):
        pairs = {b"r%06d/%02d" % (index, n): random.Random(index).randbytes(1000) for n in range(10)}
        batch = batch_of(dict(pairs))
        while True:
            try:
                engine.write(batch, index, 1)
                break
            except EngineBusy:
                # Nothing of the batch is stored, and the batch itself is unchanged.
                refused += 1
                assert engine.applied() == (index - 1, 1 if index > 1 else 0)
                assert engine.get(b"r%06d/00" % index) is None and dict(batch.items()) == pairs
                time.sleep(0.001)
        contents |= pairs
    assert refused, "the engine never refused: the test is about nothing"
    assert {key: value for key, value in engine.iterate(b"") if key != APPLIED_KEY} == contents
    engine.close()


KILLED = """
import os, signal, sys
from metastore._core.ordered_map import OrderedMap
from metastore.storage.engines.rocksdb import RocksEngine
engine = RocksEngine(sys.argv[1])
batch = OrderedMap()
batch.set(b"a", b"1")
batch.set(b"b", b"1")
engine.write(batch, 5, 2)
engine.flush()
assert engine.durable_applied() == 5
batch.set_deleted(b"a")
batch.set(b"b", b"2")
batch.set(b"c", b"2")
engine.write(batch, 6, 2)
assert engine.durable_applied() == 5 and engine.applied() == (6, 2)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_not_flushed_is_gone_after_a_kill_and_nothing_else(tmp_path: Path) -> None:
    path = str(tmp_path / "engine")
    done = subprocess.run([sys.executable, "-c", KILLED, path], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL, done.stderr
    engine = RocksEngine(path)
    assert engine.applied() == (5, 2) and engine.durable_applied() == 5
    assert [pair for pair in engine.scan(b"", None, False, 0) if pair[0] != APPLIED_KEY] == [(b"a", b"1"), (b"b", b"1")]
    engine.close()


def test_a_flush_in_the_background_moves_the_durable_position(tmp_path: Path) -> None:
    engine = RocksEngine(str(tmp_path / "engine"))
    for index in range(1, 50):
        engine.write(batch_of({b"k%d" % index: b"x" * 5000}), index, 1)
        engine.begin_flush()
    wait_until(lambda: engine.durable_applied() == 49, what="the last flush")
    engine.close()


class Hasty(RocksEngine):
    """It is asked for another flush when the thread of the first has just seen that no further one is wanted."""

    asked: threading.Thread | None = None
    due = False

    @property
    def _flush_wanted(self) -> bool:
        wanted = self.due
        if not wanted and self.asked is None and threading.current_thread().name.endswith("engine-flush"):
            self.asked = threading.Thread(target=self.again)
            self.asked.start()
            self.asked.join(0.2)
        return wanted

    @_flush_wanted.setter
    def _flush_wanted(self, wanted: bool) -> None:
        self.due = wanted

    def again(self) -> None:
        self.write(batch_of({b"k": b"2"}), 2, 1)
        self.begin_flush()


def test_a_flush_asked_for_while_another_one_ends_is_not_forgotten(tmp_path: Path) -> None:
    engine = Hasty(str(tmp_path / "engine"))
    engine.write(batch_of({b"k": b"1"}), 1, 1)
    engine.begin_flush()
    wait_until(lambda: engine.durable_applied() == 2, what="the second flush")
    engine.close()


def test_what_was_sealed_and_overtaken_goes_with_the_old_database(tmp_path: Path) -> None:
    engine = RocksEngine(str(tmp_path / "engine"))
    source = MemoryEngine()
    for index in (5, 9):
        source.write(batch_of({b"a": b"%d" % index}), index, 1)
        fresh = engine.stage()
        assert fresh is not None
        fresh.restore(iter(source.scan(b"", None, False, 0)))
        fresh.seal()
        if index == 5:
            fresh.close()
    # A view that nobody closes, as of a failed reader, keeps nothing.
    engine.view()
    engine.adopt(fresh)
    wait_until(lambda: len(list((tmp_path / "engine").glob("db-*"))) == 1, what="the end of the other folders")
    assert engine.get(b"a") == b"9"
    engine.close()


def test_a_view_is_read_in_another_thread_and_in_turns(tmp_path: Path) -> None:
    engine = RocksEngine(str(tmp_path / "engine"), SMALL)
    pairs = {b"k%05d" % n: b"old" * 50 for n in range(2000)}
    engine.write(batch_of(dict(pairs)), 1, 1)
    view = engine.view()
    pieces: list[bytes] = []
    pauses: list[int] = []

    def walk() -> None:
        walker = Walker(view, lambda: pauses.append(1))
        while not walker.done:
            pieces.append(walker.take(60_000))
            # Another reader reads the same view in between.
            assert view.get(b"k00007") == b"old" * 50 and view.seek_le(b"k00009x") == (b"k00009", b"old" * 50)

    thread = threading.Thread(target=walk)
    thread.start()
    for index in range(2, 60):
        while True:
            try:
                engine.write(batch_of({b"k%05d" % n: b"new" * 50 if n % 2 else None for n in range(2000)}), index, 1)
                break
            except EngineBusy:
                time.sleep(0.001)
    thread.join()
    target = MemoryEngine()
    restore(target, RecordReader(pieces))
    assert {key: value for key, value in target.scan(b"", None, False, 0) if key != APPLIED_KEY} == pairs
    assert target.applied() == (1, 1) and len(pauses) > 5
    view.close()
    assert engine.get(b"k00002") is None
    engine.close()


@pytest.mark.parametrize("budget", [0, 400, 4096])
def test_replies_are_the_same_however_little_is_kept_of_the_newest_records(budget: int, tmp_path: Path) -> None:
    engines: list[RocksEngine] = []

    class Contract(EngineContract):
        def make_engine(self) -> RocksEngine:
            engines.append(RocksEngine(str(tmp_path / "engine"), RocksdbTable(recent_keys_size=budget)))
            return engines[0]

    Contract().test_store_gives_the_same_replies_as_on_the_memory_engine()
    assert engines[0].misses > 10 and (engines[0].hits > 10) == (budget > 0)
    engines[0].close()


def test_a_stage_takes_the_place_or_leaves_no_trace(tmp_path: Path) -> None:
    engine = RocksEngine(str(tmp_path / "engine"))
    engine.write(batch_of({b"old": b"1"}), 3, 1)
    view = engine.view()

    def broken() -> Iterator[tuple[bytes, bytes]]:
        yield b"a", b"b"
        raise FormatError("torn")

    with pytest.raises(FormatError):
        engine.restore(broken())
    with pytest.raises(FormatError, match="no log position"):
        engine.restore([(b"a", b"b")])
    assert engine.get(b"old") == b"1" and engine.get(b"a") is None and engine.applied() == (3, 1)
    source = MemoryEngine()
    source.write(batch_of({b"k%05d" % n: b"x" * 300 for n in range(3000)}), 9, 2)
    fresh = engine.stage()
    assert fresh is not None
    fresh.restore(iter(source.scan(b"", None, False, 0)))
    assert engine.get(b"old") == b"1", "nothing is replaced yet"
    fresh.seal()
    engine.adopt(fresh)
    assert engine.applied() == (9, 2) and engine.durable_applied() == 9 and engine.get(b"old") is None
    assert engine.scan(b"", None, False, 0) == source.scan(b"", None, False, 0)
    assert view.get(b"old") == b"1", "a view outlives the replacement"
    view.close()
    engine.close()
    again = RocksEngine(str(tmp_path / "engine"))
    assert again.applied() == (9, 2) and again.get(b"k00007") == b"x" * 300
    assert len(list((tmp_path / "engine").glob("db-*"))) == 1
    again.close()


def test_every_wrong_byte_and_every_missing_one_of_the_record_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    RocksEngine(str(folder)).close()
    record = folder / "engine.json"
    good, before = record.read_bytes(), sorted(folder.iterdir())
    wrong = [good[:at] + bytes([good[at] ^ (1 << bit)]) + good[at + 1 :] for at in range(len(good)) for bit in range(8)]
    for data in [*wrong, *(good[:end] for end in range(len(good.rstrip())))]:
        record.write_bytes(data)
        with pytest.raises((DamagedData, ConfigError), match=r"engine\.json"):
            RocksEngine(str(folder))
        assert sorted(folder.iterdir()) == before, "a start that is refused changes nothing"
    record.write_bytes(good)
    RocksEngine(str(folder)).close()


def test_closing_while_files_are_rewritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nothing is wrong then, so nothing is logged, and the contents of memory are in the files."""
    engine = RocksEngine(str(tmp_path / "engine"))
    for number in range(40):
        keys = (b"k%06d" % (n * 7919 % 99991) for n in range(number * 500, number * 500 + 500))
        engine.write(batch_of({key: os.urandom(300) for key in keys}), number, 1)
        if number % 8 == 0:
            engine.flush()
    assert engine.defragment() is not None
    engine.close()
    assert not caplog.records
    again = RocksEngine(str(tmp_path / "engine"))
    assert again.applied() == (39, 1)
    again.close()


def test_a_read_does_not_keep_the_files_that_were_rewritten(tmp_path: Path) -> None:
    """The last read before a pause in the writing left an iterator behind, and with it twice the room on the disk."""
    engine = RocksEngine(str(tmp_path / "engine"))
    for number in range(3):
        engine.write(batch_of({b"k%06d" % n: os.urandom(300) for n in range(5000)}), number + 1, 1)
        engine.flush()

    def held() -> int:
        return sum(path.stat().st_size for path in (tmp_path / "engine").glob("db-*/*.sst"))

    before = held()
    assert engine.seek_le(b"k000100") is not None
    wait_until(lambda: engine.defragment() is None, what="all files rewritten")
    assert held() > before, "nothing was kept: the test is about nothing"
    assert not engine.reclaim()
    wait_until(lambda: held() < before // 2, what="the old files gone")
    engine.close()


def test_wrong_folders_are_refused_by_name(tmp_path: Path) -> None:
    folder = tmp_path / "engine"
    engine = RocksEngine(str(folder))
    engine.write(batch_of({b"a": b"1"}), 5, 2)
    with pytest.raises(DataDirInUse):
        RocksEngine(str(folder))
    engine.close()
    record = folder / "engine.json"
    good = record.read_text()
    for text, error in (
        ("{", DamagedData), ("[]", DamagedData), (json.dumps({**json.loads(good), "version": 2}), DamagedData),
        (json.dumps({**json.loads(good), "db": "db-9"}), DamagedData),
        (json.dumps({**json.loads(good), "db": "../x"}), DamagedData),
        (json.dumps({**json.loads(good), "engine": "other"}), ConfigError),
    ):  # fmt: skip
        record.write_text(text)
        with pytest.raises(error, match=r"engine\.json") as failure:
            RocksEngine(str(folder))
        assert "Error" not in str(failure.value), "that is Python's, not a sentence"
    record.unlink()
    with pytest.raises(ConfigError, match=r"has no engine\.json and holds 'db-1'"):
        RocksEngine(str(folder))
    record.write_text(good)
    (folder / "db-1" / "CURRENT").rename(folder / "gone")
    with pytest.raises(DamagedData, match="CURRENT"):
        RocksEngine(str(folder))
    (folder / "gone").rename(folder / "db-1" / "CURRENT")
    again = RocksEngine(str(folder))
    assert again.get(b"a") == b"1"
    again.close()
    other = tmp_path / "other"
    other.mkdir()
    (other / "state.db").write_text("something")
    with pytest.raises(ConfigError, match=r"state\.db"):
        RocksEngine(str(other))


def test_a_damaged_block_is_damage_and_not_an_end(tmp_path: Path) -> None:
    engine = RocksEngine(str(tmp_path / "engine"), RocksdbTable(compression="none", cache_size=1 << 20))
    engine.write(batch_of({b"k%05d" % n: random.Random(n).randbytes(100) for n in range(20_000)}), 5, 2)
    engine.flush()
    engine.close()
    table = max((tmp_path / "engine" / "db-1").glob("*.sst"), key=lambda path: path.stat().st_size)
    data = bytearray(table.read_bytes())
    data[len(data) // 2] ^= 1
    table.write_bytes(data)
    engine = RocksEngine(str(tmp_path / "engine"))
    reads: list[Callable[[], object]] = [
        lambda: list(engine.iterate(b"")), lambda: engine.scan(b"", None, False, 0),
        lambda: engine.scan(b"", None, True, 0),
        lambda: list(engine.view().iterate(b"")), lambda: [engine.get(b"k%05d" % n) for n in range(20_000)],
    ]  # fmt: skip
    for read in reads:
        with pytest.raises(DamagedData, match=re.escape(str(tmp_path))):
            read()
    engine.close()


# ---- a node on it


class Stalling(RocksEngine):
    """Refuses writes while `stalled` is set."""

    stalled = threading.Event()
    refused = 0

    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        if self.stalled.is_set():
            Stalling.refused += 1
            raise EngineBusy("stalled by the test")
        super().write(batch, index, term)


def test_a_stall_stops_neither_the_loop_nor_reads_nor_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "load", lambda _name: Stalling)
    Stalling.stalled.clear()
    config = Config(
        node={"data_dir": str(tmp_path / "data")}, listen={"client": "127.0.0.1:0", "peer": "127.0.0.1:0"},
        storage={"engine": "rocksdb"}, wal={"segment_size": "4MiB"},
    )  # fmt: skip
    gaps: list[float] = []
    with EmbeddedNode(config) as node:
        server = node._running()
        last = [time.monotonic()]

        def beat() -> None:
            now = time.monotonic()
            gaps.append(now - last[0])
            last[0] = now
            server.loop.call_later(0.002, beat)

        node.put("before", "1")
        server.loop.call_soon_threadsafe(beat)
        began = time.monotonic()
        Stalling.stalled.set()
        late = node.futures.put("late", "2")
        wait_until(lambda: Stalling.refused > 3, what="the first refusals")
        # Linearizable reads of keys that the engine does not have are served too, and the log goes on.
        for key, value in (("before", b"1"), ("late", b"2")):
            pair = node.get(key)
            assert pair is not None and pair.value == value
        logged = server.driver.raw.last_index
        more = node.futures.put_many([(f"more/{n}", "3") for n in range(500)])
        wait_until(lambda: server.driver.raw.commit >= logged + 10, what="the log's growth")
        applied = server.status.applied_index
        wait_until(lambda: Stalling.refused > 250, timeout=60, what="a long stall")
        assert server.status.applied_index == applied, "applying went on over a refused write"
        # Applied operations are decided, and their deadlines must not pass while the engine is busy. So they are
        # answered.
        assert late.result(30).revision == 3
        assert not any(future.done() for future in more)
        took = time.monotonic() - began
        Stalling.stalled.clear()
        assert [future.result(30).revision for future in more] == list(range(4, 504))
        assert node.stats()["engine_busy_total"] == Stalling.refused
    # The stall took 1.25 s or more. A loop that waited for it would show that as one turn.
    assert max(gaps) < took / 2, f"the loop stood still for {max(gaps):.3f} s of {took:.3f}"
    with EmbeddedNode(config) as node:
        assert len(node.get_prefix("more/").kvs) == 500
