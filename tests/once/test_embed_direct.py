"""`Node.get` reads in the caller's thread where the member is alone and its loop waits, else through the queue."""

from __future__ import annotations

import itertools
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support import messages as m
from support.client import Client
from support.embedded import make, standing
from support.processes import wait_until

from metastore import Node, errors
from metastore._core.kv_direct import MISSED
from metastore.storage.engines.rocksdb import RocksEngine

pytestmark = pytest.mark.node_only

#: So many gets take at least 0.3 s.
MANY = 300_000
#: The second RocksDB keeps no index records in memory, so each get walks.
ENGINES: dict[str, dict[str, Any]] = {
    "memory": {"engine": "memory"},
    "rocksdb": {"engine": "rocksdb"},
    "rocksdb, nothing kept": {"engine": "rocksdb", "rocksdb": {"recent_keys_size": 0}},
}
of_each = pytest.mark.parametrize("storage", ENGINES.values(), ids=ENGINES)


def direct(node: Node) -> Any:
    assert node._direct is not None
    return node._direct


def resting(node: Node) -> None:
    """Wait until the loop waits."""
    wait_until(lambda: direct(node).open, what="the loop waits")


@of_each
def test_it_finds_what_the_queue_finds(tmp_path: Path, storage: dict[str, Any]) -> None:
    with make(tmp_path, storage=storage) as node:
        lease = node.grant(600).id
        node.put_many({"a": "1", "b": b"\0" * 3, "empty": "", "\0zero\0": "2", "ä": "3"})
        node.put("a", "11", lease=lease)
        node.put("gone", "x")
        node.delete("gone")
        for key in ("a", b"a", "b", "empty", b"\0zero\0", "ä", "gone", "absent", b"a\0", bytearray(b"b")):
            for serializable, keys_only in itertools.product((False, True), repeat=2):
                resting(node)
                found = node.get(key, serializable=serializable, keys_only=keys_only)  # type: ignore[arg-type]
                queued = node.range(key, serializable=serializable, keys_only=keys_only).kvs  # type: ignore[arg-type]
                assert found == (queued[0] if queued else None), (key, serializable, keys_only)
        found = node.get("a")
        assert found is not None and (found.lease, found.version, found.value) == (lease, 2, b"11")
        assert type(found.key) is bytes and direct(node).served >= 30
        with pytest.raises(errors.EmptyKey):
            node.get("")
        with pytest.raises(TypeError, match="keys_only must be"):
            node.get("a", keys_only=1)  # type: ignore[arg-type]
        with pytest.raises(TypeError, match="key must be"):
            node.get(5)  # type: ignore[arg-type]
        with pytest.raises(errors.FutureRevision):
            node.get("a", revision=1 << 40)


@of_each
def test_a_reader_in_a_loop_gives_way(tmp_path: Path, storage: dict[str, Any]) -> None:
    """The interpreter itself never asks for the GIL here. A put waited for 5 ms at each turn of the loop, and up to
    0.6 s where the reader let go of the GIL by itself now and then."""
    with make(tmp_path, storage=storage) as node:
        node.put("a", "1")
        resting(node)
        interval = sys.getswitchinterval()
        sys.setswitchinterval(1000.0)
        try:
            for number in range(20):
                served = direct(node).served
                answer = node.futures.put("b", str(number))
                while not answer.done() and direct(node).served < served + MANY:
                    node.get("a")
                assert answer.done(), f"put {number}"
        finally:
            sys.setswitchinterval(interval)


@of_each
def test_other_threads_have_their_turn_beside_a_reader(tmp_path: Path, storage: dict[str, Any]) -> None:
    """They cannot say that they want the GIL, and the interpreter does not ask for it here either."""
    with make(tmp_path, storage=storage) as node:
        node.put("a", "1")
        resting(node)
        steps: list[None] = []
        interval, over = sys.getswitchinterval(), threading.Event()

        def step() -> None:
            while not over.is_set():
                steps.append(None)
                time.sleep(0.0)

        with ThreadPoolExecutor(1) as pool:
            sys.setswitchinterval(1000.0)
            try:
                other, served = pool.submit(step), direct(node).served
                while len(steps) < 20 and direct(node).served < served + MANY:
                    node.get("a")
                assert len(steps) >= 20
            finally:
                sys.setswitchinterval(interval)
                over.set()
            other.result(30)


def test_an_older_version_comes_out_of_the_queue(tmp_path: Path) -> None:
    with make(tmp_path) as node:
        first = node.put("a", "1").revision
        node.put("a", "2")
        resting(node)
        served = direct(node).served
        found = node.get("a", revision=first)
        assert found is not None and found.value == b"1" and direct(node).served == served


def test_it_waits_while_the_loop_works(tmp_path: Path) -> None:
    """Applying lets go of the GIL where an engine or a codec is in Python."""
    with make(tmp_path) as node, ThreadPoolExecutor() as pool:
        node.put("key", "value")
        resting(node)
        with standing(node):
            served = direct(node).served
            found = pool.submit(node.get, "key")
            wait_until(lambda: node._life is not None and len(node._life.inbox._hasty) == 1, what="it is in line")
            assert not direct(node).open and not found.done()
        got = found.result(30)
        assert got is not None and got.value == b"value" and direct(node).served == served


@of_each
def test_a_read_sees_all_that_was_answered_before(tmp_path: Path, storage: dict[str, Any]) -> None:
    """Some threads write numbers that rise, others read them. The history behind them is compacted away."""
    with make(tmp_path, storage=storage) as node:
        answered, stop, wrong = [0, 0], threading.Event(), []

        def write(place: int) -> None:
            for number in range(1, 400):
                revision = node.put(f"k{place}", str(number)).revision
                answered[place] = number
                if number % 50 == 0 and place == 0:
                    node.compact(revision - 10, physical=number % 100 == 0)
            if place == 0:
                node.put_many((f"bulk{n}", str(n)) for n in range(3000))
            stop.set()

        def read(place: int) -> None:
            last = 0
            while not stop.is_set():
                before = answered[place]
                found = node.get(f"k{place}", serializable=bool(last % 2))
                now = 0 if found is None else int(found.value)
                if now < before or now < last or (found is not None and found.version != now):
                    wrong.append((place, before, last, found))
                last = now

        with ThreadPoolExecutor(6) as pool:
            for task in [pool.submit(write, n) for n in (0, 1)] + [pool.submit(read, n % 2) for n in range(4)]:
                task.result(120)
        assert not wrong and direct(node).served > 0


def test_a_leader_that_needs_others_asks_them(tmp_path: Path) -> None:
    """A voter was added that never comes: there is no quorum, so nothing is linearizable any more."""
    listen = {"client": "127.0.0.1:0", "peer": "127.0.0.1:0"}
    with make(tmp_path, listen=listen, limits={"request_timeout": 0.5}) as node:
        node.put("key", "value")
        resting(node)
        with Client(node.client_addresses[0]) as client:
            client.call(m.MemberAddRequest(peerURLs=["http://127.0.0.1:9"]))
        served = direct(node).served
        with pytest.raises((errors.Timeout, errors.NoLeader)):
            node.get("key")
        for _ in range(50):  # between them the loop waits again and again
            assert node.get("key", serializable=True) is not None
        assert not direct(node).open and direct(node).served == served


def test_a_member_that_refuses_or_has_no_leader_is_not_read(tmp_path: Path) -> None:
    with make(tmp_path) as node:
        node.put("key", "value")
        resting(node)
        kv = node._running().kv
        kv.refuse(errors.Corrupt())
        with pytest.raises(errors.Corrupt):
            node.get("key")
        kv.refuse(None)
        kv.holding = True
        assert direct(node).get(b"key") is MISSED
        served = direct(node).served
        assert node.get("key") is not None and direct(node).served == served
        kv.holding = False
        reads = direct(node)
    assert not reads.open and not reads.able
    with pytest.raises(errors.Stopped):
        node.get("key")


class Held:
    """A walk that waits before it tells what it has found, as long as `hold` says."""

    def __init__(self, walk: Any) -> None:
        self._seek, self.value, self._key = walk.seek_for_prev, walk.value, walk.key
        self.hold: Any = lambda: None
        self.busy = self.shared = False

    def seek_for_prev(self, key: bytes) -> None:
        self.shared |= self.busy
        self.busy = True
        self._seek(key)

    def key(self) -> Any:
        self.hold()
        self.busy = False
        return self._key()


class Walks:
    """All walks of readers, in the order of their beginnings."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.made: list[Held] = []
        self.hold: Any = lambda: None
        reader = RocksEngine.reader
        patch.setattr(RocksEngine, "reader", lambda engine: self.held(*reader(engine)))

    def held(self, walk: Any, fetch: Any) -> tuple[Held, Any]:
        self.made.append(Held(walk))
        self.made[-1].hold = self.hold
        return self.made[-1], fetch


@pytest.mark.parametrize("there", [True, False])
def test_a_walk_that_a_write_has_overtaken_is_thrown_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    walks, in_it, go_on = Walks(monkeypatch), threading.Event(), threading.Event()

    def hold() -> None:
        in_it.set()
        assert go_on.wait(60)

    storage = ENGINES["rocksdb, nothing kept"]
    with make(tmp_path, storage=storage) as node, ThreadPoolExecutor() as pool:
        node.put("key" if there else "earlier", "old")
        for _ in range(10):  # so there is a walk for the next getter
            resting(node)
            node.get("key")
        walks.made[-1].hold = walks.hold = hold
        slow = pool.submit(node.get, "key")
        assert in_it.wait(60)
        walks.made[-1].hold = walks.hold = lambda: None
        before = node.get("key")
        assert (before is not None) == there
        node.put("key", "new")
        resting(node)
        # Another thread does not wait for the first one, and does not take its walk.
        found = node.get("key")
        assert found is not None and found.value == b"new"
        served = direct(node).served
        assert len(walks.made) > 1 and not any(walk.shared for walk in walks.made)
        go_on.set()
        found = slow.result(60)
        assert found is not None and found.value == b"new" and direct(node).served == served
        for _ in range(20):
            resting(node)
            found = node.get("key")
            assert found is not None and found.value == b"new"
        assert direct(node).served > served


def test_a_walk_that_fails_or_gives_up_leaves_it_to_the_queue(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Failing:
        def seek_for_prev(self, _key: bytes) -> None:
            raise RuntimeError("Result incomplete: Too many internal keys skipped")

    class Ended:
        def seek_for_prev(self, _key: bytes) -> None:
            """Ends there."""

        def key(self) -> None:
            return None

    for walk in (Failing(), Ended()):
        monkeypatch.setattr(RocksEngine, "reader", lambda engine, walk=walk: (walk, engine.get))
        with make(tmp_path, storage=ENGINES["rocksdb, nothing kept"]) as node:
            node.put("key", "value")
            resting(node)
            found = node.get("key")
            assert found is not None and found.value == b"value"
            assert direct(node).served == 0 and direct(node).inside == 0


def test_threads_that_get_keep_no_folder_locked(tmp_path: Path) -> None:
    """The node stops and starts again in the same process while they go on, and its files are rewritten."""
    storage, stop, wrong = ENGINES["rocksdb, nothing kept"], threading.Event(), []
    often = {"snapshot_count": 20, "snapshot_min_size": 0}
    nodes: list[Node] = []

    def read() -> None:
        while not stop.is_set():
            try:
                for number in range(50):
                    found = nodes[-1].get(f"k{number}")
                    if found is None or found.value != b"%d" % number:
                        wrong.append((number, found))
            except (errors.Stopped, errors.NoLeader, errors.Timeout):
                stop.wait(0.01)

    with ThreadPoolExecutor(2) as pool:
        tasks = []
        try:
            for _ in range(3):
                with make(tmp_path, storage=storage, maintenance=often) as node:
                    node.put_many((f"k{n}", str(n)) for n in range(50))
                    nodes.append(node)
                    tasks = tasks or [pool.submit(read) for _ in range(2)]
                    wait_until(lambda node=node: direct(node).served > 200, what="gets")
                    with Client(node.client_addresses[0]) as client:
                        client.defragment()
                        node.compact(node.put("k0", "0").revision, physical=True)
        finally:
            stop.set()
        for task in tasks:
            task.result(60)
    assert not wrong


def test_an_engine_without_a_reader_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(RocksEngine, "reader")
    with make(tmp_path, storage={"engine": "rocksdb"}) as node:
        node.put("key", "value")
        found = node.get("key")
        assert found is not None and found.value == b"value"
        assert not direct(node).able and direct(node).served == 0


def test_importing_turns_the_gil_on() -> None:
    """Readers and the loop's thread exclude each other by it."""
    assert getattr(sys, "_is_gil_enabled", lambda: True)()
