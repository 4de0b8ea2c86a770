"""An engine fails in any of its calls with any exception. The node stops, and no client is told that its request was at
fault; otherwise the member would go on with another state than the others."""

from __future__ import annotations

import http.client
import json
import queue
import random
import sqlite3
import struct
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import messages as m
from support.applying import entry, put, waiting
from support.caller import Caller
from support.processes import wait_until

from metastore import errors, storage
from metastore._core.batch import BatchProposer
from metastore._core.codec import PayloadCodec
from metastore._core.engine import APPLIED_KEY, Engine, MemoryEngine
from metastore._core.kv_server import KVServer
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.mvcc_hash import Hasher
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.op import ALARM, COMPACT, DELETE_RANGE, PUT, TXN, encode_op
from metastore._core.ordered_map import OrderedMap
from metastore._core.raft_types import ConfState, Snapshot
from metastore._core.snap_records import Walker
from metastore.config import Config
from metastore.embedded.node import Node
from metastore.failpoints import Failpoints
from metastore.member import busy_engine, space
from metastore.replica.alarms import ACTIVATE, CORRUPT, DEACTIVATE, NOSPACE, encode_change
from metastore.settings import LimitsTable
from metastore.snapshots.catalogue import Catalogue
from metastore.snapshots.coordinator import Snapshots
from metastore.snapshots.files import SnapshotStore
from metastore.snapshots.format import Header
from metastore.storage import guarded
from metastore.threads import begin

pytestmark = pytest.mark.node_only

CALLS = (
    "get", "scan", "iterate", "seek_le", "write", "applied", "view", "size", "size_in_use", "data_size", "reclaim",
    "defragment", "remove_ranges",
    "durable_applied", "begin_flush", "stage", "restore", "seal", "adopt", "close",
)  # fmt: skip
# Exceptions that an engine may raise: its library's, Python's own, and some that look like an error of a request.
# SystemExit and its like would end a thread of the node without a word.
EXCEPTIONS: list[Callable[[], BaseException]] = [
    lambda: sqlite3.OperationalError("disk I/O error"), lambda: KeyError("k"), lambda: OSError(5, "Input/output error"),
    lambda: errors.KeyNotFound(), lambda: errors.FormatError("of its own"), lambda: errors.EngineBusy("reading"),
    lambda: SystemExit(0), lambda: GeneratorExit("g"), lambda: StopIteration("s"), lambda: errors.EngineFailed("mine"),
]  # fmt: skip


class Flaky(Engine):
    """An engine that has files, as far as its callers can tell, and calls `trouble` in each call."""

    CONTRACT = 1
    persistent = True

    def __init__(self, trouble: Callable[[str], None], inner: MemoryEngine | None = None) -> None:
        self.trouble = trouble
        self.memory = inner if inner is not None else MemoryEngine()

    def get(self, key: bytes) -> bytes | None:
        self.trouble("get")
        return self.memory.get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        self.trouble("scan")
        return self.memory.scan(start, end, reverse, limit)

    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        self.trouble("iterate")
        for pair in self.memory.iterate(start):
            yield pair
            self.trouble("iterate")

    def seek_le(self, key: bytes) -> tuple[bytes, bytes] | None:
        self.trouble("seek_le")
        return self.memory.seek_le(key)

    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        self.trouble("write")
        self.memory.write(batch, index, term)

    def remove_ranges(self, ranges: list[tuple[bytes, bytes]]) -> bool:
        self.trouble("remove_ranges")
        return self.memory.remove_ranges(ranges)

    def applied(self) -> tuple[int, int]:
        self.trouble("applied")
        return self.memory.applied()

    def view(self) -> Engine:
        self.trouble("view")
        return Flaky(self.trouble, self.memory.view())  # type: ignore[arg-type]

    def size(self) -> int:
        self.trouble("size")
        return self.memory.size()

    def data_size(self) -> int:
        self.trouble("data_size")
        return self.memory.data_size()

    def size_in_use(self) -> int:
        self.trouble("size_in_use")
        return self.memory.size_in_use()

    def reclaim(self) -> bool:
        self.trouble("reclaim")
        return False

    def defragment(self) -> float | None:
        self.trouble("defragment")
        return None

    def durable_applied(self) -> int:
        self.trouble("durable_applied")
        return 0

    def begin_flush(self) -> None:
        self.trouble("begin_flush")

    def stage(self) -> Engine:
        self.trouble("stage")
        return Flaky(self.trouble)

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        self.trouble("restore")
        self.memory.restore(stream)

    def seal(self) -> None:
        self.trouble("seal")

    def adopt(self, staged: Engine) -> None:
        self.trouble("adopt")
        assert isinstance(staged, Flaky)
        self.memory = staged.memory

    def close(self) -> None:
        self.trouble("close")


def armed(call: str, make: Callable[[], BaseException]) -> Callable[[str], None]:
    """Return a function that raises in `call`."""

    def trouble(now: str) -> None:
        if now == call:
            raise make()

    return trouble


def use(engine: Engine, call: str) -> object:
    """Make one call, as this program makes it."""
    if call == "write":
        return engine.write(OrderedMap(), 2, 1)
    if call == "iterate":
        return list(engine.iterate(b""))
    if call == "restore":
        return engine.restore([(b"mapplied", bytes(16))])
    if call == "adopt":
        return engine.adopt(engine.stage())  # type: ignore[arg-type]
    arguments: dict[str, tuple[Any, ...]] = {
        "get": (b"k",),
        "seek_le": (b"k",),
        "scan": (b"", None, False, 0),
        "find_many": ([b"k"],),
        "count": (b"", None),
        "remove_ranges": ([],),
    }
    return getattr(engine, call)(*arguments.get(call, ()))


@pytest.mark.parametrize("make", EXCEPTIONS)
@pytest.mark.parametrize("call", CALLS)
def test_each_call_has_its_sentence(call: str, make: Callable[[], BaseException]) -> None:
    error = make()
    engine = guarded(Flaky(armed(call, make)), "flaky")
    if call in ("write", "remove_ranges") and isinstance(error, errors.EngineBusy):
        with pytest.raises(errors.EngineBusy):
            use(engine, call)
        return
    if call == "restore" and isinstance(error, errors.FormatError):
        with pytest.raises(errors.FormatError):  # an engine says by this that something is missing in the stream
            use(engine, call)
        return
    with pytest.raises(errors.EngineFailed, match=rf"^storage engine 'flaky': {call}\(\) failed: ") as failure:
        use(engine, call)
    assert (error.text if isinstance(error, errors.MetaStoreError) else str(error)) in failure.value.text
    assert failure.value.exit_code == 13
    # A generator turns its own StopIteration into a RuntimeError, before we see it.
    assert type(failure.value.__cause__) in (type(error), RuntimeError if isinstance(error, StopIteration) else None)
    # The same holds for the objects that the engine returns.
    if call in ("get", "scan", "iterate", "seek_le", "close"):
        quiet = Flaky(lambda _call: None)
        view, staged = guarded(quiet, "flaky").view(), guarded(quiet, "flaky").stage()
        for part in (view, staged):
            assert part is not None
            part.inner.trouble = armed(call, make)  # type: ignore[attr-defined]
            with pytest.raises(errors.EngineFailed):
                use(part, call)


def test_a_request_to_stop_is_the_users_in_the_main_thread_only() -> None:
    """No signal raises KeyboardInterrupt in a thread of the node."""
    engine = guarded(Flaky(armed("get", lambda: KeyboardInterrupt("c"))), "flaky")
    with pytest.raises(KeyboardInterrupt):
        engine.get(b"k")
    with ThreadPoolExecutor() as pool:
        failure = pool.submit(engine.get, b"k").exception(30)
    assert isinstance(failure, errors.EngineFailed) and "get() failed: KeyboardInterrupt: c" in failure.text


def test_an_exception_without_a_text_has_its_sentence() -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise ValueError("no")

    with pytest.raises(errors.EngineFailed, match=r"get\(\) failed: Mute: its text cannot be made"):
        guarded(Flaky(armed("get", Mute)), "flaky").get(b"k")


@pytest.mark.parametrize(
    ("call", "wrong"),
    [("get", "text"), ("iterate", None), ("iterate", (b"k", None)), ("iterate", (bytearray(b"k"), b"v")),
     ("scan", ()), ("seek_le", b"kv"), ("applied", (1, "1")), ("applied", None), ("view", None), ("size", None),
     ("size_in_use", 1.5), ("data_size", "1"), ("durable_applied", None), ("stage", "engine"),
     ("find_many", []), ("find_many", ["1"]), ("find_many", None), ("count", "1")],
)  # fmt: skip
def test_what_an_engine_returns_has_the_type_that_it_owes(call: str, wrong: object) -> None:
    """Else the exception would rise where it is used, and name no engine."""

    class Wrong(Flaky):
        pass

    setattr(Wrong, call, lambda *_: iter([wrong]) if call == "iterate" else wrong)
    engine = guarded(Wrong(lambda _call: None), "flaky")
    with pytest.raises(errors.EngineFailed, match=rf"^storage engine 'flaky': {call}\(\) failed: "):
        if call == "seek_le":  # as the store calls it
            Store(engine, 3, 4).put(put(b"k"))
        else:
            use(engine, call)


def test_the_room_that_an_engine_needs_is_asked_for_by_way_of_the_guard() -> None:
    class Files(Flaky):
        @property
        def headroom(self) -> int:
            self.trouble("headroom")
            return 7

    within = Files(lambda _call: None)
    engine = guarded(within, "flaky")
    assert (engine.full, engine.headroom) == (False, 7)
    within.full = True
    assert engine.full
    assert guarded(Flaky(lambda _call: None), "flaky").headroom is None
    within.trouble = armed("headroom", lambda: KeyError("files"))
    with pytest.raises(errors.EngineFailed, match=r"^storage engine 'flaky': headroom\(\) failed: KeyError: 'files'"):
        _ = engine.headroom


def test_what_a_persistent_engine_stages_has_a_seal() -> None:
    """Without it a start after a kill would find the old contents, and the log would begin behind the new ones."""

    class Unsealed(Flaky):
        seal = Engine.seal  # type: ignore[assignment]

        def stage(self) -> Engine:
            return Unsealed(self.trouble)

    with pytest.raises(
        errors.EngineFailed, match=r"'flaky': stage\(\) failed: TypeError: it returned Unsealed, which has"
    ):
        guarded(Unsealed(lambda _call: None), "flaky").stage()


def test_what_is_not_the_engines_fault_passes() -> None:
    def stream() -> Iterator[tuple[bytes, bytes]]:
        yield (b"a", b"1")
        raise ValueError("the stream's own")

    quiet = guarded(Flaky(lambda _call: None), "flaky")
    with pytest.raises(ValueError, match="the stream's own"):
        quiet.restore(stream())
    with pytest.raises(errors.EngineDamaged, match=r"storage engine 'flaky': get\(\) failed: block 7") as failure:
        guarded(Flaky(armed("get", lambda: errors.DamagedData("block 7"))), "flaky").get(b"k")
    assert failure.value.exit_code == 4
    with pytest.raises(MemoryError):
        guarded(Flaky(armed("get", MemoryError)), "flaky").get(b"k")


def operation(chance: random.Random, number: int, revision: int) -> bytes:
    """Return an operation of any kind; some are at fault themselves."""
    key = bytes([chance.choice(b"abcd")])
    kind = chance.random()
    if kind < 0.4:
        return encode_op(PUT, number, put(key, b"%d" % number, ignore_value=chance.random() < 0.1))
    if kind < 0.6:
        body = m.DeleteRangeRequest(key=key, range_end=chance.choice([b"", b"\0"]), prev_kv=chance.random() < 0.5)
        return encode_op(DELETE_RANGE, number, body.SerializeToString())
    if kind < 0.7:
        body = m.CompactionRequest(revision=max(1, revision - chance.randrange(6)))
        return encode_op(COMPACT, number, body.SerializeToString())
    if kind < 0.8:
        return encode_op(
            ALARM, number, encode_change(chance.choice([ACTIVATE, DEACTIVATE]), 1, chance.choice([NOSPACE, CORRUPT]))
        )
    compare = m.Compare(key=key, target=m.CMP_VERSION, result=m.GREATER, version=chance.randrange(3))
    puts = m.RequestOp(request_put=m.PutRequest(key=key, value=b"%d" % number))
    asks = m.RequestOp(request_range=m.RangeRequest(key=b"a", range_end=b"\0"))
    body = m.TxnRequest(compare=[compare], success=[asks, puts], failure=[puts, asks])
    return encode_op(TXN, number, body.SerializeToString())


def test_a_member_on_a_flaky_engine_has_the_state_of_the_others() -> None:
    """The member stops at each failure, is started again from the engine's contents, and applies the rest of the
    log."""
    stops, chance = 0, random.Random(6)
    for _ in range(25):
        healthy = Applier(Store(MemoryEngine(), 3, 4), PayloadCodec(None, 1024, 1 << 20), {})
        log = []
        for index in range(1, 80):
            log.append(
                entry(
                    healthy,
                    index,
                    *(operation(chance, index * 10 + n, healthy.store.revision) for n in range(chance.randrange(1, 3))),
                )
            )
            healthy.apply_images(log[-1])
            healthy.commit()

        rates = [0.0]

        def trouble(_call: str, rates: list[float] = rates) -> None:
            if chance.random() < rates[-1]:
                raise chance.choice(EXCEPTIONS)()

        memory = MemoryEngine()
        while memory.applied()[0] < len(log):
            rates.append(0.0)
            flaky = Applier(
                Store(guarded(Flaky(trouble, memory), "flaky"), 3, 4), PayloadCodec(None, 1024, 1 << 20), {}
            )
            rates.append(0.02)
            try:
                for image in log[memory.applied()[0] :]:
                    flaky.apply_images(image)
                    flaky.commit()
                    while sweep_slice(flaky.store, 3):
                        pass
            except errors.EngineFailed:
                stops += 1
            except errors.EngineBusy:
                pass  # in a write nothing is stored then
        while sweep_slice(healthy.store, 100):
            pass
        while sweep_slice((swept := Store(memory, 3, 4)), 100):
            pass
        swept.commit(len(log), 2)
        assert hashed(memory) == hashed(healthy.store.engine)
        assert flaky.store.revision == healthy.store.revision
    assert stops > 100


def hashed(engine: Engine) -> int:
    hasher = Hasher(engine.view())
    while hasher.step(1000):
        pass
    return hasher.hash


def test_reads_stop_the_node_too() -> None:
    for call, body in (
        ("seek_le", m.RangeRequest(key=b"a", serializable=True)),
        ("iterate", m.RangeRequest(key=b"a", range_end=b"\0", serializable=True)),
    ):
        engine = Flaky(lambda _call: None)
        applier = Applier(Store(guarded(engine, "flaky"), 3, 4), PayloadCodec(None, 1024, 1 << 20), {})
        waiting(applier, 7)
        applier.apply_images(entry(applier, 1, encode_op(PUT, 7, put(b"a"))))
        applier.commit()
        proposer = BatchProposer(50, 1 << 20, 0.002, 100, 1 << 20, True)
        kv = KVServer(applier.store, proposer, {}, 1, LimitsTable())
        caller = Caller()
        engine.trouble = armed(call, lambda: errors.KeyNotFound())
        with pytest.raises(errors.EngineFailed, match=call):
            kv.call("Range", body.SerializeToString(), caller, 0.0)
        assert isinstance(caller.error, errors.Stopped), "the client was told that its request was at fault"


def test_an_engine_that_stays_busy_is_no_secret(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Writes wait. After a few seconds the log and a metric say so, and the member is not healthy, until it is over."""
    failing: set[str] = set()

    def trouble(now: str) -> None:
        if now in failing:
            raise errors.EngineBusy("compacting")

    monkeypatch.setattr(storage, "load", lambda _name: lambda _path: Flaky(trouble))
    monkeypatch.setattr(busy_engine, "PATIENCE", 0.5)
    config = Config(
        node={"data_dir": str(tmp_path / "data")}, listen={"client": "127.0.0.1:0"}, storage={"engine": "flaky"}
    )
    with Node(config) as node:
        node.put(b"a", b"1")
        running = node._running()
        assert health(running) == (True, "")
        failing.add("write")
        late = node.futures.put(b"a", b"2")
        wait_until(lambda: health(running) == (False, "NOT SERVING"), what="a member that is not healthy")
        assert node.stats()["engine_busy_seconds"] >= 0.5
        assert "storage engine 'flaky' has taken no writes for " in caplog.text
        failing.clear()
        assert late.result(30).revision == 3
        wait_until(lambda: health(running) == (True, ""), what="a member that is healthy again")
        assert node.stats()["engine_busy_seconds"] == 0
        assert "storage engine 'flaky' takes writes again, after " in caplog.text


def health(running: Any) -> tuple[bool, str]:
    """Return what /status and /health say."""
    pages = []
    for page in ("/status", "/health"):
        connection = http.client.HTTPConnection(running.front.listener.bound[0], timeout=30)
        connection.request("GET", page)
        pages.append(json.loads(connection.getresponse().read()))
        connection.close()
    return pages[0]["healthy"], pages[1]["reason"]


def test_an_engine_that_stays_full_is_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Reads go on, and writes are refused. When the disk has room again the node ends, to be started again."""
    engine = Flaky(lambda _call: None)
    monkeypatch.setattr(storage, "load", lambda _name: lambda _path: engine)
    monkeypatch.setattr(space, "PATIENCE", 3.0)
    config = Config(
        node={"data_dir": str(tmp_path / "data")},
        listen={"client": "127.0.0.1:0", "peer": "127.0.0.1:0"},
        storage={"engine": "flaky"},
    )
    node = Node(config)
    node.start()
    node.put(b"a", b"1")
    engine.full = True
    with pytest.raises(errors.NoSpace):
        for _ in range(10_000):
            node.put(b"a", b"2")
    with pytest.raises(errors.NoSpace):
        node.delete(b"a")
    value = node.get(b"a", serializable=True)
    assert value is not None and value.value == b"2"
    with pytest.raises(errors.DiskFailed, match=r"there is room for the storage engine again .* after a restart"):
        node.wait(30)


@pytest.mark.parametrize(
    "failing", [("restore", "close"), ("seal",), ("seal", "close"), ("iterate", "close"), ("close",)]
)
def test_a_failure_in_a_thread_of_its_own_reaches_the_loop(failing: tuple[str, ...], tmp_path: Path) -> None:
    """An exception that ended the thread would leave the node waiting for a snapshot for ever."""

    def trouble(now: str) -> None:
        if now in failing:
            raise SystemExit(now)

    store = SnapshotStore(tmp_path, chunk_size=65536, make_codec=lambda: PayloadCodec(None, 64, 1 << 20))
    header = Header(9, 1, ConfState((1,)), 5, 1, 99, 65536)
    source = MemoryEngine()
    source.restore([(b"k", b"v"), (APPLIED_KEY, struct.pack("<QQ", 9, 1))])
    info = store.save(header, Walker(source.view()))
    posted: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
    snapshots = Snapshots.__new__(Snapshots)
    snapshots.store, snapshots.failpoints, snapshots._install = store, Failpoints(), None
    snapshots.catalogue, snapshots._stopping = Catalogue(info), False
    snapshots.memory = SimpleNamespace(fits=lambda *_: True)  # type: ignore[assignment]
    snapshots.loop = SimpleNamespace(call_soon_threadsafe=posted.put)  # type: ignore[assignment]
    engine = guarded(Flaky(lambda _call: None, source), "flaky")
    with pytest.raises(errors.EngineFailed, match=rf"{failing[0]}\(\) failed: SystemExit: {failing[0]}"):
        if failing[0] in ("restore", "seal"):
            engine.inner.trouble = lambda now: None if now == "stage" else trouble(now)  # type: ignore[attr-defined]
            snapshots.engine = engine
            snapshots.install(Snapshot(9, 1, ConfState((1,))), lambda: None)
        else:
            view = engine.view()
            view.inner.trouble = trouble  # type: ignore[attr-defined]
            begin("snapshot", snapshots._work, header, Walker(view), [], 0, 0)
        while True:
            posted.get(timeout=30)()


@pytest.mark.parametrize(
    "call", ["seek_le", "iterate", "write", "view", "size", "begin_flush", "durable_applied", "reclaim", "close"]
)
def test_a_node_stops_with_the_engines_sentence(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing: set[str] = set()

    def trouble(now: str) -> None:
        if now in failing:
            raise sqlite3.DatabaseError("database disk image is malformed")

    monkeypatch.setattr(storage, "load", lambda _name: lambda _path: Flaky(trouble))
    config = Config(
        node={"data_dir": str(tmp_path / "data")},
        listen={"client": "127.0.0.1:0", "peer": "127.0.0.1:0"},
        storage={"engine": "flaky"},
        maintenance={"snapshot_count": 10, "snapshot_min_size": "1KiB"},
    )
    node = Node(config)
    node.start()
    node.put(b"a", b"1")
    failing.add(call)
    try:
        for number in range(40):
            node.put(b"k%d" % number, b"v" * 100)
            node.get_prefix(b"")
        if call in ("view", "reclaim"):
            running = node._running()
            running.loop.call_soon_threadsafe(
                lambda: running.upkeep.sums.hash_kv(0, False, lambda: False, lambda *_: None)
            )
        if call == "close":
            node.stop()
    except (errors.Stopped, errors.Timeout):
        pass
    with pytest.raises(errors.EngineFailed) as failure:
        node.wait(20)
    assert failure.value.text == (
        f"storage engine 'flaky': {call}() failed: DatabaseError: database disk image is malformed"
    )
