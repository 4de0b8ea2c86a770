"""The engine in examples/, installed as its user would: the contract suite on it, and a node that runs on it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT
from support import messages as m
from support.processes import Server, StartError, metric, wait_until

pytestmark = pytest.mark.node_only

SOURCE = ROOT / "examples" / "sqlite_engine"
Make = Callable[..., Server]

IN_MEMORY = """
import struct

from metastore._core.engine import APPLIED_KEY, Engine
from metastore._core.ordered_map import OrderedMap


class Volatile(Engine):
    persistent = False

    def __init__(self, path, data=None, at=(0, 0)):
        self.data, self.at = OrderedMap() if data is None else data, at

    def get(self, key):
        return self.data.get(key)

    def scan(self, start, end, reverse, limit):
        return self.data.scan(start, end, reverse, limit)

    def applied(self):
        return self.at

    def view(self):
        return Volatile("", self.data.view(), self.at)

    def size(self):
        return self.data.nbytes

    def write(self, batch, index, term):
        for key, value in [*batch.items(), (APPLIED_KEY, struct.pack("<QQ", index, term))]:
            if value is None:
                self.data.delete(key)
            else:
                self.data.set(key, value)
        self.at = (index, term)

    def restore(self, stream):
        self.data = OrderedMap()
        for key, value in stream:
            self.data.set(key, value)
        self.at = struct.unpack("<QQ", self.data.get(APPLIED_KEY))


class Undeclared(Volatile):
    persistent = None
"""
# Snapshots all the time, and a log that is cut behind them.
EAGER = {
    "maintenance.snapshot_count": "20",
    "maintenance.snapshot_min_size": '"1KiB"',
    "wal.segment_size": '"64KiB"',
    "raft.max_tail_bytes": '"64KiB"',
}


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment in which the plug-in is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(SOURCE, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-index"]
    where = ["--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run([*pip, *where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"PYTHONPATH": str(folder / "site")}


def test_it_keeps_the_contract(plugin: dict[str, str], tmp_path: Path) -> None:
    shutil.copy(SOURCE / "test_sqlite_engine.py", tmp_path)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_sqlite_engine.py"]
    done = subprocess.run(argv, cwd=tmp_path, env={**os.environ, **plugin}, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "failed" not in done.stdout


def test_a_node_runs_on_it(plugin: dict[str, str], fresh: Make) -> None:
    node = fresh(settings={"storage.engine": '"sqlite"'}, env=plugin).start()
    with node.client() as client:
        for number in range(50):
            client.put(b"k%02d" % number, b"value %d" % number)
        assert client.delete(b"k07").deleted == 1
        revision = client.revision()
    node.kill()
    node.start()
    with node.client() as client:
        assert client.revision() == revision
        assert client.prefix(b"k") == {b"k%02d" % n: b"value %d" % n for n in range(50) if n != 7}
    assert node.stop() == 0
    assert (node.data_dir / "engine" / "state.db").exists()


def test_without_it_the_name_is_refused(fresh: Make) -> None:
    with pytest.raises(StartError) as caught:
        fresh(settings={"storage.engine": '"sqlite"'}).start()
    assert caught.value.returncode == 2
    assert "there is no engine 'sqlite'; found: memory, rocksdb" in str(caught.value)


@pytest.fixture
def in_memory(tmp_path: Path) -> dict[str, str]:
    """The environment with an engine in memory, written after the documents."""
    info = tmp_path / "site" / "volatile-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: volatile\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[metastore.storage]\nvolatile = volatile:Volatile\nundeclared = volatile:Undeclared\n"
    )
    (tmp_path / "site" / "volatile.py").write_text(IN_MEMORY)
    return {"PYTHONPATH": str(tmp_path / "site")}


@pytest.mark.once
def test_an_engine_in_memory_is_filled_again_after_a_kill(in_memory: dict[str, str], fresh: Make) -> None:
    node = fresh(settings={"storage.engine": '"volatile"', **EAGER}, env=in_memory).start()
    with node.client(timeout=60) as client:
        for first in range(0, 5000, 500):
            wanted = [m.PutRequest(key=b"k%05d" % n, value=b"v" * 64) for n in range(first, first + 500)]
            puts = [client.future(put, 60) for put in wanted]
            for put in puts:
                put.result()
    wait_until(lambda: metric(node, "metastore_wal_first_index") > 1, what="a log that was cut")
    node.kill()
    node.start()
    with node.client() as client:
        assert client.prefix(b"k") == {b"k%05d" % n: b"v" * 64 for n in range(5000)}
    assert node.stop() == 0


def test_an_engine_that_does_not_say_whether_it_lasts_is_refused(in_memory: dict[str, str], fresh: Make) -> None:
    with pytest.raises(StartError, match="'undeclared' does not declare `persistent`") as caught:
        fresh(settings={"storage.engine": '"undeclared"'}, env=in_memory).start()
    assert caught.value.returncode == 2
