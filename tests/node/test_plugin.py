"""The engine in examples/, installed as its user would, and a node that runs on it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support import ROOT
from support.plugins import install_in_memory
from support.processes import Server, StartError

pytestmark = pytest.mark.node_only

SOURCE = ROOT / "examples" / "sqlite_engine"
Make = Callable[..., Server]


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Return the environment in which the plug-in is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(SOURCE, folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "-q", "--no-deps", "--no-index"]
    where = ["--no-build-isolation", "--target", str(folder / "site"), str(folder / "source")]
    done = subprocess.run([*pip, *where], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {"PYTHONPATH": str(folder / "site")}


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
    assert (node.data_dir / "engine" / "sqlite" / "state.db").exists()


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
