"""Backups of a running node for clients that hardly read, between all engines, and over a kill of the restore."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from support import http2 as h
from support.attack import Raw
from support.backupfiles import everything, fill, restored, works
from support.client import Failure
from support.processes import Node, Server, StartError, metric, wait_until

from metastore.cli import main as cli
from metastore.errors import DamagedData
from metastore.snapshots.backup_stream import MAX_BACKUPS
from metastore.storage.datadir import DataDir

Make = Callable[..., Server]

pytestmark = pytest.mark.node_only


def test_a_client_that_does_not_read_is_ended_and_costs_little(fresh: Make) -> None:
    """There are 24 MB that do not compress, as many stuck clients as possible, and one that works meanwhile."""
    node = fresh(
        settings={
            # This is long enough for all of them to be stuck at the same time on a busy machine.
            "limits.output_timeout": '"4s"',
            "maintenance.snapshot_chunk_size": '"256KiB"',
            "wal.segment_size": '"16MiB"',
        }
    ).start()
    fill(node, 0, 24, os.urandom(1 << 20))
    with node.client() as client:
        assert len(client.backup()) > 24 << 20
        idle = node.running().rss()
        stuck = [node.client() for _ in range(MAX_BACKUPS)]
        calls = [each.snapshot(60) for each in stuck]
        for call in calls:
            next(call)
        with pytest.raises(Failure, match="too many requests"):
            client.backup()
        client.put(b"still", b"served")
        # Of 24 MB each client has at most a window, a chunk and what a socket takes.
        assert node.running().rss() - idle < MAX_BACKUPS * (4 << 20)
        for call in calls:
            with pytest.raises(grpc.RpcError):
                # this client, and the one that asks
                wait_until(lambda: metric(node, "metastore_client_connections") <= 2, 30, "the end of them all")
                for _ in call:
                    pass
        assert len(client.backup()) > 24 << 20
    for each in stuck:
        each.close()


def test_slow_readers_do_not_keep_others_out(fresh: Make) -> None:
    """They take enough to go on while no other client wants a backup; then the slowest one gives way."""
    node = fresh(settings={"limits.output_timeout": '"4s"', "maintenance.snapshot_chunk_size": '"256KiB"'}).start()
    fill(node, 0, 12, os.urandom(1 << 20))
    more = (16 << 10).to_bytes(4, "big")
    done = threading.Event()
    with contextlib.ExitStack() as stack, node.client() as client:
        slow = [stack.enter_context(Raw(node, window=0)) for _ in range(MAX_BACKUPS)]
        for raw in slow:
            raw.send(h.call(1, b"", b"/etcdserverpb.Maintenance/Snapshot"))

        def read() -> None:
            while not done.wait(0.1):  # this test is about their pace
                for raw in slow:
                    raw.send(h.frame(h.WINDOW_UPDATE, 0, 0, more) + h.frame(h.WINDOW_UPDATE, 0, 1, more))

        reader = threading.Thread(target=read)
        reader.start()
        try:
            wait_until(lambda: node.running().log.count("sending backup") == MAX_BACKUPS, what="four backups")
            wait_until(lambda: works(client), what="a fifth one")
        finally:
            done.set()
            reader.join()
    assert "the slowest of 4 backups gives way to another client" in node.running().log


@pytest.mark.parametrize(("before", "after"), [("memory", "rocksdb"), ("rocksdb", "memory"), ("rocksdb", "rocksdb")])
def test_any_engine_from_any_engine(before: str, after: str, fresh: Make, tmp_path: Path) -> None:
    node = fresh(settings={"storage.engine": f'"{before}"'}).start()
    fill(node, 0, 30)
    fill(node, 0, 5, b"newer")
    backup = tmp_path / "backup"
    with node.client() as client:
        backup.write_bytes(client.backup())
        assert client.backup() == backup.read_bytes()
        expected = everything(client)
    node.kill()
    other = restored(fresh, backup)
    assert isinstance(other, Node)
    other.settings["storage.engine"] = f'"{after}"'
    for _ in range(2):
        other.start()
        with other.client() as client:
            assert everything(client) == expected
        other.kill()


STEPS = ["snapshot.rename", "restore.log", "wal.segment", "restore.end"]


def test_killed_in_the_middle_of_a_restore(fresh: Make, tmp_path: Path) -> None:
    """The restore is killed at each step. No node starts from what is left, and another restore completes."""
    node = fresh().start()
    fill(node, 0, 50)
    backup = tmp_path / "backup"
    with node.client() as client:
        backup.write_bytes(client.backup())
    node.stop()
    target = fresh("restored", settings={"cluster.token": '"other"'})
    arguments = ["snapshot", "restore", str(backup), "--token", "other", "--data-dir", str(target.data_dir)]
    for step in STEPS:
        env = {**os.environ, "METASTORE_FAILPOINTS": f"{step}=panic"}
        killed = subprocess.run([sys.executable, "-m", "metastore", *arguments], env=env, capture_output=True)
        assert killed.returncode == -signal.SIGKILL, (step, killed.stderr)
        with pytest.raises(DamagedData, match="was not finished"):
            DataDir(str(target.data_dir))
    with pytest.raises(StartError) as failure:
        target.start()
    assert failure.value.returncode == 4 and "metastore snapshot restore" in str(failure.value)
    assert cli.main(arguments) == 0
    target.start()
    with target.client() as client:
        assert len(client.prefix(b"k")) == 50
