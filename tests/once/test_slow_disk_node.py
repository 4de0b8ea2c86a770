"""A node whose disk stands still reports it and is not ready, and a stop does not wait for the disk."""

from __future__ import annotations

import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from support import TESTS
from support import messages as m
from support.processes import Node, metric, wait_until

pytestmark = pytest.mark.node_only


def readyz(node: Node) -> str:
    """Return the page, or why there is none."""
    try:
        with urllib.request.urlopen(f"http://{node.address}/readyz?verbose", timeout=5) as reply:
            return str(reply.read().decode())
    except urllib.error.HTTPError as error:
        return f"{error.code} {error.read().decode()}"


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the library that is preloaded to make a disk stand still."""
    path = tmp_path_factory.mktemp("hungdisk") / "hungdisk.so"
    source = TESTS / "support" / "hungdisk.c"
    command = ["gcc", "-O1", "-Wall", "-Werror", "-shared", "-fPIC", "-o", str(path), str(source), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return path


FAILED = "[-]disk failed: a sync of the log has been under way for"


@pytest.mark.parametrize("sync", ["always", "async"])
def test_the_loop_goes_on_while_a_lone_write_waits_for_the_disk(library: Path, sync: str, tmp_path: Path) -> None:
    """The loop itself waits for a write that is alone, but only for a moment."""
    hung = tmp_path / "hung"
    node = Node(tmp_path / "data", {"wal.sync": f'"{sync}"', "limits.request_timeout": '"60s"'})
    node.env = {"LD_PRELOAD": str(library), "HUNG_DISK": str(hung)}
    with node, node.client(60) as client, node.client(60) as other:
        client.put(b"a", b"1")
        hung.touch()
        first = client.future(m.PutRequest(key=b"b", value=b"2"), 60)
        if sync == "async":
            # The write is answered before it is synced, unless the sync of the one before has begun. Writes behind the
            # sync that hangs have to wait.
            wait_until(lambda: metric(node, "metastore_wal_sync_pending_seconds") > 1, what="a sync that hangs")
            first = client.future(m.PutRequest(key=b"b", value=b"2"), 60)
        wait_until(lambda: FAILED in readyz(node), what="a node that is not ready")
        assert "503" in readyz(node)
        assert other.range(b"a", serializable=True).kvs[0].value == b"1" == other.get(b"a")
        second = other.future(m.PutRequest(key=b"c", value=b"3"), 60)
        assert other.range(b"c", serializable=True).count == 0
        assert not first.done() and not second.done()
        hung.unlink()
        first.result()
        second.result()
        assert "[+]disk ok" in readyz(node) and client.get(b"c") == b"3"


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_a_stop_while_a_lone_write_waits_for_the_disk(library: Path, engine: str, tmp_path: Path) -> None:
    """The log reports that the disk stands still, and a stop does not wait for it."""
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
        assert 1.5 < took < 15, f"a stop took {took} s"  # two, and what a busy machine takes
        assert "stopping without waiting any longer for the disk" in process.log
        assert not open_write.done() or open_write.exception() is not None
        hung.unlink()
        node.start()
        with node.client() as again:
            assert again.get(b"a") == b"1"


def test_a_storage_engine_that_cannot_be_closed(library: Path, tmp_path: Path) -> None:
    """No client writes, so the log waits for nothing. RocksDB flushes when it is closed. A stop does not wait for that
    either, because the log has everything."""
    hung = tmp_path / "hung"
    node = Node(tmp_path / "data", {"storage.engine": '"rocksdb"'})
    node.env = {"LD_PRELOAD": str(library), "HUNG_DISK": str(hung), "HUNG_PART": "/engine/rocksdb/db-"}
    with node, node.client() as client:
        client.put(b"a", b"1")
        hung.touch()
        process = node.running()
        began = time.monotonic()
        assert node.stop() == 0
        took = time.monotonic() - began
        assert 1.5 < took < 15, f"a stop took {took} s"  # two, and what a busy machine takes
        assert "stopping without waiting any longer for the disk: closing the storage engine has taken" in process.log
        hung.unlink()
        node.start()
        with node.client() as again:
            assert again.get(b"a") == b"1"


def test_a_node_on_a_disk_that_stands_still(tmp_path: Path) -> None:
    """The node is not ready, logs a line, and stops within two seconds. The next start has what was acknowledged."""
    hung = tmp_path / "hung"
    node = Node(tmp_path / "data", {"limits.request_timeout": '"2s"'})
    node.env = {"METASTORE_FAILPOINTS": f"wal.before_sync=block({hung})"}
    with node, node.client() as client:
        client.put(b"a", b"1")
        assert "[+]disk ok" in readyz(node)
        hung.touch()
        open_writes = [client.future(m.PutRequest(key=b"b", value=b"%d" % number), 5) for number in range(2)]
        node.running().wait_line("the disk has not finished a sync for [12]")
        assert "503" in readyz(node) and FAILED in readyz(node)
        began = time.monotonic()
        assert node.stop() == 0
        took = time.monotonic() - began
        assert took < 15, f"a stop took {took} s"  # two, and what a busy machine takes
        assert len(open_writes) == 2
        hung.unlink()
        node.start()
        with node.client() as again:
            pair = again.get(b"a")
            assert pair == b"1"
