"""Forks of a process with embedded nodes: they belong to the process that started them, and to no copy of it."""

from __future__ import annotations

import concurrent.futures
import ctypes
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.embedded import make, standing

from metastore import Node, errors
from metastore.storage.engines import rocksdb_forks

pytestmark = [
    pytest.mark.node_only,
    pytest.mark.filterwarnings("ignore:.*use of fork.*:DeprecationWarning"),
]


class Child:
    """A fork of this process that does something and ends, or lives on until it is told to end."""

    def __init__(self, call: Callable[[], object], fork: Callable[[], int] = os.fork) -> None:
        self._result, write = os.pipe()
        read, self._end = os.pipe()
        self.pid = fork()
        if self.pid == 0:
            os.close(self._end)
            try:
                try:
                    outcome: object = call()
                except BaseException as error:  # noqa: BLE001 - carried to the parent, whatever it is
                    outcome = error
                data = pickle.dumps(outcome)
                os.write(write, len(data).to_bytes(4, "big") + data)
                os.read(read, 1)
            finally:
                os._exit(0)
        os.close(write)
        os.close(read)

    def result(self) -> Any:
        """What it came to."""
        data = b""
        while len(data) < 4 or len(data) < 4 + int.from_bytes(data[:4], "big"):
            if not select.select([self._result], [], [], 60)[0]:
                os.kill(self.pid, signal.SIGKILL)
                raise AssertionError("the child hangs")
            data += os.read(self._result, 1 << 16)
        return pickle.loads(data[4:])

    def end(self) -> None:
        os.close(self._end)
        os.close(self._result)
        os.waitpid(self.pid, 0)


def in_child(call: Callable[[], object]) -> Any:
    child = Child(call)
    try:
        return child.result()
    finally:
        child.end()


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    with make(tmp_path / "data") as node:
        node.put("k", "v")
        yield node


def outcomes(calls: dict[str, Callable[[], object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, call in calls.items():
        try:
            found[name] = call()
        except (errors.MetaStoreError, RuntimeError) as error:
            found[name] = error
    return found


def unwrapped(call: Callable[[], object]) -> object:
    """A `put_many`, which tells why it ended early."""
    try:
        return call()
    except errors.PutManyFailed as error:
        raise error.reason from error


def test_every_call_in_a_fork_says_whose_the_node_is(node: Node) -> None:
    calls: dict[str, Callable[[], object]] = {
        "get": lambda: node.get("k"),
        "put": lambda: node.put("k", "v"),
        "put_many": lambda: unwrapped(lambda: node.put_many([("k", "v")])),
        "futures": lambda: node.futures.put("k", "v"),
        "many futures": lambda: node.futures.put_many([("k", "v")]),
        "revision": lambda: node.revision,
        "addresses": lambda: node.client_addresses,
        "stats": node.stats,
        "wait": lambda: node.wait(0),
        "watch": lambda: node.watch("k"),
    }
    with standing(node):
        pending = node.futures.put("pending", "v")
        watch = node.watch("k", start_revision=2)
        calls |= {"result": pending.result, "exception": pending.exception, "events": watch.next}
        found = in_child(lambda: (outcomes(calls), watch.close(), node.stop(), node.stop()))[0]
    assert {name: type(error) for name, error in found.items()} == dict.fromkeys(calls, errors.Forked)
    assert all(f"belongs to process {os.getpid()}; this is process " in str(error) for error in found.values())
    pending.result(30)
    assert watch.next(30).revision == 2, "the new process has not closed it"
    assert node.put("after", "it").revision == 4, "the node itself goes on"


def test_the_end_of_with_in_a_fork_does_nothing(tmp_path: Path) -> None:
    with make(tmp_path) as node:

        def leave() -> str:
            node.__exit__(None, None, None)
            return "left"

        assert in_child(leave) == "left"
        assert node.put("k", "v").revision == 2


def test_a_node_of_its_own_runs_in_a_fork(node: Node, tmp_path: Path) -> None:
    ready = make(tmp_path / "own")

    def own() -> tuple[int, int]:
        with ready as mine, make(tmp_path / "another") as other:
            return mine.put("k", "v").revision, other.put("k", "v").revision

    assert in_child(own) == (2, 2)
    with ready:
        assert ready.get("k") is not None


def without_hooks() -> int:
    """A fork by some C code, which Python does not hear of.

    The child may stand still: it waits for a thread that it does not have, if one wanted the interpreter's lock.
    """
    return int(ctypes.PyDLL(None).fork())


@pytest.mark.parametrize("fork", [os.fork, without_hooks])
def test_a_fork_that_outlives_a_stop_keeps_nothing(tmp_path: Path, fork: Callable[[], int]) -> None:
    node = make(tmp_path / "data", wal={"segment_size": "1MiB"})
    node.start()
    node.put_many([(f"k{n}", "x" * 10_000) for n in range(200)])  # several segments, each with its lock
    address = node.client_addresses[0]
    child = Child(lambda: "lives", fork)
    try:
        if fork is os.fork:
            assert child.result() == "lives"
        node.stop()
        host, _, port = address.rpartition(":")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((host, int(port)), timeout=10)
        with make(tmp_path / "data", listen={"client": address}) as again:
            assert again.revision == 201
        assert os.waitpid(child.pid, os.WNOHANG) == (0, 0), "the child lives"
    finally:
        os.kill(child.pid, signal.SIGKILL)
        child.end()


def test_clients_see_the_end_of_their_connections_in_spite_of_a_fork(node: Node) -> None:
    host, _, port = node.client_addresses[0].rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as client:
        client.sendall(b"GET /version HTTP/1.1\r\nHost: x\r\n\r\n")
        assert client.recv(4).startswith(b"HTTP")
        child = Child(lambda: "lives")
        try:
            assert child.result() == "lives"
            node.stop()
            while client.recv(1 << 16):
                pass
        finally:
            child.end()


def test_a_killed_process_leaves_nothing_to_its_forks(tmp_path: Path) -> None:
    """The locks of a process that is gone are not held by what it has forked."""

    def serve() -> int:
        node = make(tmp_path / "data")
        node.start()
        pid = os.fork()
        while not pid:
            signal.pause()
        return pid

    owner = Child(serve)
    fork = owner.result()
    os.kill(owner.pid, signal.SIGKILL)
    owner.end()
    try:
        with make(tmp_path / "data") as node:
            assert node.put("k", "v").revision == 2
    finally:
        os.kill(fork, signal.SIGKILL)


def test_a_callback_may_fork(node: Node) -> None:
    """The child has no loop to return to, so it ends where the callback does."""
    pids: dict[str, int] = {}

    def returns(_future: Any) -> None:
        pids["returns"] = os.fork()

    def exits(_future: Any) -> None:
        pids["exits"] = os.fork()
        if not pids["exits"]:
            sys.exit(7)

    def raises(_future: Any) -> None:
        pids["raises"] = os.fork()
        if not pids["raises"]:
            raise ValueError

    with standing(node):
        futures = [node.futures.put("k", "v") for _ in range(3)]
        for future, callback in zip(futures, (returns, exits, raises), strict=True):
            future.add_done_callback(callback)
    concurrent.futures.wait(futures, 30)
    node.put("k", "v")
    codes = {name: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for name, pid in pids.items()}
    assert codes == {"returns": 0, "exits": 7, "raises": 1}
    assert node.put("k", "v").revision == 7


# ---- RocksDB, whose threads a fork lacks


ROCKSDB = {"storage": {"engine": "rocksdb"}}


def stored(folder: Path, **tables: Any) -> int:
    with make(folder, **tables) as node:
        return node.put_many([("k", "v"), ("l", "v")]).last_revision


def test_rocksdb_works_in_a_fork_of_a_process_where_it_is_closed(tmp_path: Path) -> None:
    assert stored(tmp_path / "data", **ROCKSDB) == 3
    assert in_child(lambda: stored(tmp_path / "data", **ROCKSDB)) == 5
    assert in_child(lambda: in_child(lambda: stored(tmp_path / "data", **ROCKSDB))) == 7, "a fork of a fork"
    assert stored(tmp_path / "data", **ROCKSDB) == 9


def test_rocksdb_is_refused_in_a_fork_of_a_process_where_it_is_open(tmp_path: Path) -> None:
    with make(tmp_path / "data", **ROCKSDB) as node:
        threads = rocksdb_forks._threads()
        error = in_child(lambda: stored(tmp_path / "other", **ROCKSDB))
        assert isinstance(error, errors.Forked) and f"RocksDB was used in process {os.getpid()}" in str(error)
        assert in_child(lambda: stored(tmp_path / "memory")) == 3, "other engines are none of its business"
        assert rocksdb_forks._threads() == threads and any(threads.values()), "they are back"
        assert node.put("k", "v").revision == 2


ENDS_BY_ITSELF = """
import os, sys, threading
from metastore import Config, Node
node = Node(Config(node={"data_dir": sys.argv[1]}, listen={"client": "127.0.0.1:0"}, storage={"engine": sys.argv[2]}))
node.start()
node.put("k", "v")
pid = os.fork()
if pid:
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 5
    node.put("k", "v")
    node.stop()
else:
    for thread in [threading.Thread(target=print) for _ in range(6)]:
        thread.start()
        thread.join()
    sys.exit(5)
"""


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_a_fork_that_ends_as_usual_does_not_hang(tmp_path: Path, engine: str) -> None:
    """At the end of an interpreter everything is freed, copies of a node too, and RocksDB joins its threads: where the
    fork had threads of its own then, that ended it with SIGABRT."""
    subprocess.run([sys.executable, "-c", ENDS_BY_ITSELF, str(tmp_path / "data"), engine], check=True, timeout=60)
