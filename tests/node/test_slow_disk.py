"""A disk that stands still: the log says since when, the member is not ready, and a stop does not wait for it."""

from __future__ import annotations

import logging
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support import TESTS
from support import messages as m
from support.processes import Node, wait_until
from support.waldisk import METADATA, image

from metastore.failpoints import Failpoints
from metastore.storage.slow_disk import SlowDisk
from metastore.storage.wal import Lag, Wal

pytestmark = pytest.mark.node_only


def watched(moments: list[tuple[float, float | None, float]]) -> list[str]:
    """The lines about (now, pending since, longest that ended), one after the other."""
    lines: list[str] = []

    class Log:
        def warning(self, text: str, *values: object) -> None:
            lines.append(text % values)

    present: list[tuple[float | None, float]] = [(None, 0.0)]
    watch = SlowDisk("wal", lambda: present[-1][0], lambda: present[-1][1], Log())
    watch.stop()
    watch._thread.join()
    lines.clear()
    for now, since, longest in moments:
        present.append((since, longest))
        watch.look(now)
    return lines


def test_lines_about_a_slow_disk() -> None:
    assert watched([(10.0, None, 0.9), (10.5, 10.0, 0.3), (10.9, 10.0, 0.0)]) == []
    waiting = [(10.0 + tick / 2, 10.0, 0.0) for tick in range(30)]
    told = ["1.0", "2.0", "4.0", "8.0"]
    assert watched(waiting) == [f"wal: the disk has not finished a sync for {took} s" for took in told]
    assert watched([*waiting, (25.0, 24.9, 14.8)])[-1] == "wal: the disk took 14.8 s for a sync"
    # Each second one of 1.2 s: one line in ten seconds.
    assert watched([(float(now), None, 1.2) for now in range(25)]) == ["wal: the disk took 1.2 s for a sync"] * 3


@pytest.mark.parametrize("point", ["wal.before_write", "wal.before_sync"])
@pytest.mark.parametrize("lag", [None, Lag(0.001, 1 << 20)])
def test_a_log_says_since_when_it_waits(tmp_path: Path, point: str, lag: Lag | None) -> None:
    failpoints = Failpoints()
    wal = Wal.open(tmp_path / "wal", segment_size=64 << 10, metadata=METADATA, failpoints=failpoints, lag=lag)
    assert wal.sync_pending_since is None
    failpoints.set(point, "block")
    before = time.monotonic()
    wal.append(1, image(1), None)
    wal.submit()
    wait_until(lambda: wal.sync_pending_since is not None, what="the disk at work")
    since = wal.sync_pending_since
    assert since is not None and before <= since <= time.monotonic()
    failpoints.clear()
    wait_until(lambda: wal.poll() == 1 and wal.sync_pending_since is None, what="the disk done")
    assert wal._disk.take_longest() >= 0 and wal._disk.take_longest() == 0
    wal.close()


def test_a_log_waits_for_a_segment(tmp_path: Path) -> None:
    """What stands still is the making of the next segment: that is the disk, too; and closing gives up on it."""
    failpoints = Failpoints()
    wal = Wal.open(tmp_path / "wal", segment_size=64 << 10, metadata=METADATA, failpoints=failpoints)
    wait_until(lambda: wal.poll() == 0 and not wal.preparing, what="the next segment")
    failpoints.set("wal.segment", "block")
    for number in range(1, 5):
        wal.append(number, image(number, size=50_000), None)
        wal.submit()
        wait_until(lambda: wal.poll() >= 0 and (wal.idle or wal.sync_pending_since is not None), what="written or not")
    assert wal.durable < 4 and wal.sync_pending_since is not None
    began = time.monotonic()
    wal.close(timeout=0.2)
    assert time.monotonic() - began < 5
    failpoints.clear()


def test_closing_a_log_gives_up_on_the_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failpoints = Failpoints()
    wal = Wal.open(tmp_path / "wal", segment_size=64 << 10, metadata=METADATA, failpoints=failpoints)
    failpoints.set("wal.before_sync", "block")
    wal.append(1, image(1), None)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        wal.close(timeout=0.2)
    assert time.monotonic() - began < 5
    assert "without waiting any longer for the disk" in caplog.text
    failpoints.clear()


def readyz(node: Node) -> str:
    """The page, or why there is none."""
    try:
        with urllib.request.urlopen(f"http://{node.address}/readyz?verbose", timeout=5) as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is preloaded to have a disk stand still."""
    made = tmp_path_factory.mktemp("hungdisk") / "hungdisk.so"
    source = TESTS / "support" / "hungdisk.c"
    command = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(made), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return made


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_a_lone_write_in_the_loops_own_thread(library: Path, engine: str, tmp_path: Path) -> None:
    """The loop stands still with the disk. The log says so all the same, and a stop gives up on it."""
    hung = tmp_path / "hung"
    node = Node(tmp_path / "data", {"storage.engine": f'"{engine}"'})
    node.env = {"LD_PRELOAD": str(library), "HUNG_DISK": str(hung)}
    with node, node.client() as client:
        client.put(b"a", b"1")
        hung.touch()
        open_write = client.future(m.PutRequest(key=b"b", value=b"2"), 30)
        node.running().wait_line("the disk has not finished a sync for [12]")
        process = node.running()
        began = time.monotonic()
        assert node.stop() == 0
        took = time.monotonic() - began
        assert 1.5 < took < 6, f"a stop took {took} s"  # two, and what a busy machine takes
        assert "stopping without waiting any longer for the disk" in process.log
        assert not open_write.done() or open_write.exception() is not None
        hung.unlink()
        node.start()
        with node.client() as again:
            assert again.get(b"a") == b"1"


def test_a_storage_engine_that_cannot_be_closed(library: Path, tmp_path: Path) -> None:
    """Nobody writes, so the log waits for nothing; RocksDB flushes when it is closed. A stop gives up on that too, for
    the log has it all."""
    hung = tmp_path / "hung"
    node = Node(tmp_path / "data", {"storage.engine": '"rocksdb"'})
    node.env = {"LD_PRELOAD": str(library), "HUNG_DISK": str(hung), "HUNG_PART": "/engine/db-"}
    with node, node.client() as client:
        client.put(b"a", b"1")
        hung.touch()
        process = node.running()
        began = time.monotonic()
        assert node.stop() == 0
        took = time.monotonic() - began
        assert 1.5 < took < 6, f"a stop took {took} s"  # two, and what a busy machine takes
        assert "stopping without waiting any longer for the disk: closing the storage engine has taken" in process.log
        hung.unlink()
        node.start()
        with node.client() as again:
            assert again.get(b"a") == b"1"


def test_a_node_on_a_disk_that_stands_still(tmp_path: Path) -> None:
    """Not ready, a line in the log, and a stop within its two seconds; the next start has what was acknowledged."""
    hung = tmp_path / "hung"
    node = Node(tmp_path / "data", {"limits.request_timeout": '"2s"'})
    node.env = {"METASTORE_FAILPOINTS": f"wal.before_sync=block({hung})"}
    with node, node.client() as client:
        client.put(b"a", b"1")
        assert "[+]disk ok" in readyz(node)
        hung.touch()
        # Two at once: a lone one would be synced in the loop's own thread.
        open_writes = [client.future(m.PutRequest(key=b"b", value=b"%d" % number), 5) for number in range(2)]
        node.running().wait_line("the disk has not finished a sync for [12]")
        assert "503" in readyz(node) and "[-]disk failed: a sync of the log has been under way for" in readyz(node)
        began = time.monotonic()
        assert node.stop() == 0
        took = time.monotonic() - began
        assert took < 6, f"a stop took {took} s"  # two, and what a busy machine takes
        assert len(open_writes) == 2
        hung.unlink()
        node.start()
        with node.client() as again:
            found = again.get(b"a")
            assert found == b"1"
