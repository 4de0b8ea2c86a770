"""A data directory has one process: whatever is deleted, linked or renamed in it, a second process is kept out by
name."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.processes import Node, StartError, wait_until

from metastore.cli import main as cli
from metastore.errors import ConfigError, DataDirInUse, DiskFailed
from metastore.storage.datadir import DataDir
from metastore.storage.wal import Wal

pytestmark = pytest.mark.node_only


def tree(folder: Path) -> dict[str, bytes]:
    """Return all files below `folder` except the lock's."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "LOCK"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(files)}


def test_lock_file_deleted(tmp_path: Path) -> None:
    directory = DataDir(str(tmp_path / "data"))
    for _ in range(2):
        with pytest.raises(DataDirInUse, match="is in use by"):
            DataDir(str(tmp_path / "data"))
        (tmp_path / "data" / "LOCK").unlink(missing_ok=True)
    directory.close()
    DataDir(str(tmp_path / "data")).close()


def test_an_older_version_runs(tmp_path: Path) -> None:
    """An older version holds the lock file alone."""
    (tmp_path / "LOCK").write_text("4711\n")
    with (tmp_path / "LOCK").open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(DataDirInUse, match="in use by process 4711"):
            DataDir(str(tmp_path))
    directory = DataDir(str(tmp_path))
    with (tmp_path / "LOCK").open("r+") as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    directory.close()


def test_a_log_reached_by_two_names(tmp_path: Path) -> None:
    """The log's folder has a symbolic link; then its newest segment alone has a second name."""
    wal = Wal.open(tmp_path / "wal", segment_size=64 << 10, metadata=b"m")
    wait_until(lambda: wal.poll() == 0 and not wal.preparing, what="the next segment")
    (tmp_path / "link").symlink_to(tmp_path / "wal")
    before = tree(tmp_path / "wal")
    with pytest.raises(DataDirInUse, match="another process writes this log"):
        Wal.open(tmp_path / "link", segment_size=64 << 10)
    (tmp_path / "other").mkdir()
    newest = max((tmp_path / "wal").glob("*.wal"))
    os.link(newest, tmp_path / "other" / newest.name)
    with pytest.raises(DataDirInUse, match=f"{newest.name}: another process writes this segment"):
        Wal.open(tmp_path / "other", segment_size=64 << 10)
    assert tree(tmp_path / "wal").items() >= before.items()
    wal.close()
    Wal.open(tmp_path / "link", segment_size=64 << 10).close()


def test_what_cannot_be_a_data_directory(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(ConfigError, match="is a file, and must be a directory"):
        DataDir(str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="file/below: Not a directory"):
        DataDir(str(tmp_path / "file" / "below"))
    (tmp_path / "data" / "LOCK").mkdir(parents=True)
    with pytest.raises(ConfigError, match="LOCK: Is a directory"):
        DataDir(str(tmp_path / "data"))


def test_a_second_process_beside_a_node(tmp_path: Path) -> None:
    """Without LOCK, another node and a restore are kept out. A command that reads the log may run, and changes
    nothing."""
    data = tmp_path / "data"
    with Node(data) as node, node.client() as client:
        client.put(b"k", b"v")
        backup = tmp_path / "backup"
        backup.write_bytes(client.backup())
        (data / "LOCK").unlink()
        with pytest.raises(StartError) as failure:
            Node(data).start()
        assert failure.value.returncode == 3 and "is in use by" in str(failure.value)
        restore = ["snapshot", "restore", str(backup), "--data-dir", str(data)]
        command = [sys.executable, "-m", "metastore", *restore]
        assert subprocess.run(command, capture_output=True, check=False, timeout=60).returncode in (2, 3)
        before = {name: len(content) for name, content in tree(data).items()}
        assert cli.main(["wal", "verify", str(data)]) == cli.main(["wal", "dump", str(data)]) == 0
        assert {name: len(content) for name, content in tree(data).items()} == before
        client.put(b"k", b"w")
        assert client.get(b"k") is not None


def test_the_folder_is_replaced_beneath_a_log(tmp_path: Path) -> None:
    """No segment is made in a folder that took the place of the log's folder."""
    wal = Wal.open(tmp_path / "wal", segment_size=64 << 10, metadata=b"m")
    wal._folder.check_place()
    shutil.move(tmp_path / "wal", tmp_path / "moved")
    with pytest.raises(DiskFailed, match="was moved or removed"):
        wal._folder.check_place()
    (tmp_path / "wal").mkdir()
    with pytest.raises(DiskFailed, match="in the place of"):
        wal._folder.check_place()
    wal.close()
