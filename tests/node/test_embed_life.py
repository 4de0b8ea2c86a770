"""The life of an embedded node: start, stop, what interrupts them, and what a node that died says."""

from __future__ import annotations

import contextlib
import gc
import os
import signal
import socket
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.embedded import make
from support.processes import wait_until

from metastore import Node, errors

pytestmark = pytest.mark.node_only

#: A member of a cluster whose others are not there: it waits for them.
ALONE_OF_THREE = {
    "cluster": {"initial": {"n1": "127.0.0.1:1", "n2": "127.0.0.1:2", "n3": "127.0.0.1:3"}},
    "listen": {"peer": "127.0.0.1:0"},
}


def held() -> tuple[int, set[str]]:
    """What this process holds: descriptors and threads."""
    return len(os.listdir("/proc/self/fd")), {thread.name for thread in threading.enumerate()}


@contextlib.contextmanager
def nothing_left() -> Iterator[None]:
    gc.collect()
    descriptors, threads = held()
    yield
    # The thread that watches for slow disks is told to end, and not waited for. One of the test before may have been
    # there when this one began: what was held then may have become less.
    wait_until(lambda: held()[0] <= descriptors and held()[1] <= threads, what="all is closed")


def waits(folder: Path) -> bool:
    """Whether the node with its data in `folder` is open as far as it gets."""
    return (folder / "LOCK").exists() and any((folder / "wal").glob("*.wal"))


def test_a_node_that_was_stopped_before_does_not_start(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    node = make(tmp_path / "data", listen={"client": f"127.0.0.1:{port}"})
    with nothing_left():
        node.stop()
        with pytest.raises(errors.Stopped):
            node.start()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port))
        with pytest.raises(errors.Stopped):
            node.get("k")
        assert node.wait(0) and not (tmp_path / "data").exists()


def test_a_stop_while_it_starts_ends_the_start(tmp_path: Path) -> None:
    node, outcome = make(tmp_path, **ALONE_OF_THREE), []

    def start() -> None:
        try:
            node.start()
        except errors.Stopped as error:
            outcome.append(error)

    with nothing_left():
        thread = threading.Thread(target=start)
        thread.start()
        wait_until(lambda: waits(tmp_path))
        with pytest.raises(errors.Stopped, match="does not serve yet"):
            node.get("k")
        node.stop()
        thread.join(30)
        assert not thread.is_alive() and len(outcome) == 1
        assert node.wait(0), "a stop that was asked for is no failure"


def test_a_start_has_a_timeout_and_leaves_nothing(tmp_path: Path) -> None:
    with nothing_left():
        node = make(tmp_path, **ALONE_OF_THREE)
        with pytest.raises(errors.Timeout, match=r"did not serve within 0\.2 s"):
            node.start(timeout=0.2)
        again = make(tmp_path, **ALONE_OF_THREE)
        with pytest.raises(errors.Timeout):
            again.start(timeout=0.2)
    with make(tmp_path / "alone") as node:
        assert node.put("k", "v").revision == 2
    node = make(tmp_path / "alone")
    node.start(timeout=30)
    node.stop()


def test_an_interrupted_start_leaves_nothing(tmp_path: Path) -> None:
    """Ctrl-C while it waits for a quorum; the data directory can be used at once."""

    def interrupt(node: Node) -> None:
        wait_until(lambda: node._life is not None and waits(tmp_path))
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    # A shell has its background jobs ignore this signal.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with nothing_left():
            for _ in range(2):
                node = make(tmp_path, **ALONE_OF_THREE)
                thread = threading.Thread(target=interrupt, args=(node,))
                thread.start()
                with pytest.raises(KeyboardInterrupt), node:
                    pytest.fail("it started")
                thread.join()
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_start_returns_when_the_node_has_all_that_its_log_held(tmp_path: Path) -> None:
    """The same address again: then the members' list says nothing new, for which the node would wait otherwise."""
    node = make(tmp_path)
    with node:
        address = node.client_addresses[0]
        node.put_many([(f"k{n}", "v" * 10_000) for n in range(200)])
    with make(tmp_path, listen={"client": address}) as again:
        assert again.revision == 201


def fail(node: Node) -> None:
    """The disk fails."""
    node.failpoints.set("wal.before_sync", "error")
    with pytest.raises(errors.ApiError):
        node.put("k", "v")


def test_a_node_that_died_says_why(tmp_path: Path) -> None:
    with nothing_left():
        with pytest.raises(errors.DiskFailed), make(tmp_path, wal={"sync": "always"}) as node:
            fail(node)
        raised: list[BaseException] = []
        for _ in range(20):
            with pytest.raises(errors.DiskFailed) as caught:
                node.wait()
            raised.append(caught.value)
        depths = [len(traceback.extract_tb(error.__traceback__)) for error in raised]
        assert len(set(map(id, raised))) == 20 and depths[-1] == depths[0], "the same object is raised again and again"
        assert {str(error) for error in raised} == {str(raised[0])} and raised[0].__cause__ is not None
        calls = [lambda: node.get("k"), lambda: node.futures.put("k", "v"), lambda: node.revision, node.stats]
        for call in calls:
            with pytest.raises(errors.Stopped) as refused:
                call()
            assert isinstance(refused.value.__cause__, errors.DiskFailed)


def test_the_programs_own_exception_is_not_covered(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), make(tmp_path, wal={"sync": "always"}) as node:
        fail(node)
        raise ZeroDivisionError


def test_a_failed_start_leaves_nothing_and_says_why_again(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("a file")
    with nothing_left():
        node = make(tmp_path / "data")
        with pytest.raises(errors.ConfigError, match="is a file"), node:
            pytest.fail("it started")
        with pytest.raises(errors.ConfigError, match="is a file"):
            node.wait()
        with pytest.raises(errors.Stopped) as refused:
            node.get("k")
        assert isinstance(refused.value.__cause__, errors.ConfigError)
        with pytest.raises(errors.ConfigError, match="started before"):
            node.start()


def test_nobody_waits_for_a_node_that_could_not_be_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The start fails before there is a thread, so nothing would ever end such a wait."""
    node = make(tmp_path)
    with monkeypatch.context() as patch:
        patch.delattr("select.epoll")
        with pytest.raises(errors.MetaStoreError):
            node.start()
    assert node.wait(60)
    with pytest.raises(errors.Stopped):
        node.start()


def test_a_second_node_on_the_same_data_is_told_who_has_it(tmp_path: Path) -> None:
    with make(tmp_path) as node:
        with nothing_left(), pytest.raises(errors.DataDirInUse, match=f"process {os.getpid()}, which is this one"):
            make(tmp_path).start()
        assert node.put("k", "v").revision == 2


def test_a_failure_that_is_no_error_of_ours_is_raised_too(tmp_path: Path) -> None:
    def bug() -> None:
        raise OddError(1, two=2)

    node: Any = make(tmp_path)
    with pytest.raises(RuntimeError, match="odd") as caught, node:
        node._running().loop.call_soon_threadsafe(bug)
        assert node._life.down.wait(30)
    assert isinstance(caught.value.__cause__, OddError)


class OddError(Exception):
    """Cannot be copied."""

    def __init__(self, one: int, *, two: int) -> None:
        super().__init__("odd")


def test_a_handler_of_a_signal_may_stop_the_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also when the main thread is about to wake the loop, and the loop wakes itself at the end."""
    node, write, asked = make(tmp_path), os.eventfd_write, []

    def interrupted(descriptor: int, value: int) -> None:
        write(descriptor, value)
        if threading.current_thread() is threading.main_thread() and not asked:
            asked.append(descriptor)
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: node.stop())
    try:
        with nothing_left():
            node.start()
            monkeypatch.setattr(os, "eventfd_write", interrupted)
            future = node.futures.put("k", "v")
            assert asked and node.wait(0) and not node.gave_up
            assert future.done()
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_a_signal_ends_a_wait(tmp_path: Path) -> None:
    node, waits = make(tmp_path), threading.Event()

    def stop() -> None:
        assert waits.wait(30)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, lambda *_: node.stop())
    thread = threading.Thread(target=stop)
    thread.start()
    try:
        node.start()
        waits.set()
        assert node.wait(30) and not node.gave_up
    finally:
        thread.join()
        signal.signal(signal.SIGUSR1, before)
