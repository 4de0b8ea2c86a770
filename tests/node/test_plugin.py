"""The engines in examples/, installed as their users would, and nodes that run on them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT
from support.client import Failure
from support.examples import EXAMPLES
from support.plugins import install, install_in_memory
from support.processes import Server, StartError

pytestmark = pytest.mark.node_only

Make = Callable[..., Server]


@pytest.fixture(scope="module")
def plugins(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment in which the plug-ins are installed."""
    folder = tmp_path_factory.mktemp("plugins")
    sources = [folder / name for name in ("sqlite_engine", "lmdb_engine")]
    for source in sources:
        shutil.copytree(ROOT / "examples" / source.name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-index"]
    where = ["--no-build-isolation", "--target", str(folder / "site"), *map(str, sources)]
    done = subprocess.run([*pip, *where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"PYTHONPATH": str(folder / "site")}


@pytest.mark.parametrize(("engine", "file"), [("sqlite", "state.db"), ("lmdb", "db-0/data.mdb")])
def test_a_node_runs_on_it(engine: str, file: str, plugins: dict[str, str], fresh: Make) -> None:
    node = fresh(settings=EXAMPLES[engine], env=plugins).start()
    with node.client() as client:
        for number in range(50):
            client.put(b"k%02d" % number, b"value %d" % number)
        assert client.delete(b"k07").deleted == 1
        revision = client.revision()
        hashed = client.hash_kv(revision).hash
    node.kill()
    node.start()
    with node.client() as client:
        assert client.revision() == revision
        assert client.prefix(b"k") == {b"k%02d" % n: b"value %d" % n for n in range(50) if n != 7}
        assert client.hash_kv(revision).hash == hashed
        client.compact(revision - 5)
        client.put(b"k07", b"again")
    assert node.stop() == 0
    assert (node.data_dir / "engine" / engine / file).exists()


def test_options_and_limits_of_an_example(plugins: dict[str, str], fresh: Make) -> None:
    """An unknown option, and limits that would let a key in which LMDB cannot hold, end the start with a line."""
    for settings, why in (
        ({"storage.lmdb.map_sise": '"1GiB"'}, "map_sise"), ({"storage.lmdb.map_size": '"much"'}, "map_size"),
        ({"limits.max_key_bytes": '"0B"'}, "'lmdb' takes keys of 511 bytes: set limits.max_key_bytes to at most 496"),
    ):  # fmt: skip
        with pytest.raises(StartError, match=why) as failure:
            fresh(settings={**EXAMPLES["lmdb"], **settings}, env=plugins).start()
        assert failure.value.returncode == 2 and "Traceback" not in str(failure.value)


def test_the_longest_key_of_an_example(plugins: dict[str, str], fresh: Make) -> None:
    """Keys of the greatest length that is let in are stored and found. A longer one is refused, and no node stops."""
    node = fresh(settings=EXAMPLES["lmdb"], env=plugins).start()
    with node.client() as client:
        for key in (b"k" * 496, b"\0" * 248, b"\xff" * 496):
            client.put(key, b"fits")
            assert client.get(key) == b"fits"
        for key in (b"k" * 497, b"\0" * 249):
            with pytest.raises(Failure):
                client.put(key, b"does not")
        client.put(b"k", b"goes on")
    node.kill()
    node.start()
    with node.client() as client:
        assert client.get(b"k") == b"goes on" and client.get(b"k" * 496) == b"fits"
    assert node.stop() == 0


def test_a_damaged_example_stops_its_node(plugins: dict[str, str], fresh: Make) -> None:
    """It neither goes on nor calls the damage a fault of a request."""
    node = fresh(settings=EXAMPLES["sqlite"], env=plugins).start()
    with node.client() as client:
        for number in range(300):
            client.put(b"k%03d" % number, bytes(500))
    assert node.stop() == 0
    path = node.data_dir / "engine" / "sqlite" / "state.db"
    size = path.stat().st_size
    assert size > 20 * 4096
    with open(path, "r+b") as file:
        file.seek(4096)
        file.write(os.urandom(size - 4096))
    with pytest.raises(StartError, match="malformed") as failure:
        node.start()
    assert failure.value.returncode == 4 and "Traceback" not in str(failure.value)


def test_without_it_the_name_is_refused(fresh: Make) -> None:
    with pytest.raises(StartError) as failure:
        fresh(settings={"storage.engine": '"sqlite"'}).start()
    assert failure.value.returncode == 2
    assert "there is no engine 'sqlite'; found: memory, rocksdb" in str(failure.value)


def test_an_engine_that_does_not_say_whether_it_lasts_is_refused(tmp_path: Path, fresh: Make) -> None:
    with pytest.raises(
        StartError, match=r"'undeclared' \(volatile:Undeclared of volatile 1\) does not declare `persistent`"
    ) as failure:
        fresh(settings={"storage.engine": '"undeclared"'}, env=install_in_memory(tmp_path)).start()
    assert failure.value.returncode == 2


LEAVING = """
import os

from metastore.plugin import DamagedData
from volatile import Volatile

if os.environ["LEAVES"] == "import":
    raise SystemExit(0)


class Leaving(Volatile):
    def __init__(self, path, data=None, at=(0, 0)):
        if os.environ["LEAVES"] == "factory":
            raise SystemExit(0)
        super().__init__(path, data, at)

    def seek_le(self, key):
        if b"fatal" in key:
            raise {"read": SystemExit(0), "damage": DamagedData("page 7")}[os.environ["LEAVES"]]
        return super().seek_le(key)
"""


@pytest.mark.parametrize(
    ("place", "code", "line"),
    [
        ("import", 2, r"'leaving' \(leaving:Leaving of leaving 1\.0\) cannot be loaded: SystemExit: 0"),
        ("factory", 2, r"'leaving' \(leaving:Leaving of leaving 1\.0\) cannot be opened: SystemExit: 0"),
        ("read", 13, r"storage engine 'leaving': seek_le\(\) failed: SystemExit: 0"),
        ("damage", 4, r"storage engine 'leaving': seek_le\(\) failed: page 7"),
    ],
)
def test_how_a_process_ends_when_its_engine_fails(
    place: str, code: int, line: str, tmp_path: Path, fresh: Make
) -> None:
    """An engine that leaves by sys.exit() does not end the process as if that had been asked for."""
    env = {**install_in_memory(tmp_path), "LEAVES": place}
    install(tmp_path, "leaving", LEAVING, "leaving = leaving:Leaving")
    node = fresh(settings={"storage.engine": '"leaving"'}, env=env)
    if code == 2:
        with pytest.raises(StartError, match=line) as failure:
            node.start()
        assert failure.value.returncode == code and "Traceback" not in str(failure.value)
        return
    node.start()
    with node.client() as client:
        client.put(b"a", b"1")
        with pytest.raises(Failure):
            client.put(b"fatal", b"2")
    assert node.running().wait() == code
    log = node.running().log
    assert re.search(line, log) and "Traceback" not in log
