"""The data directory of an embedded node stays where it is when the program changes its working directory."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from metastore import Config, Node, errors

pytestmark = pytest.mark.node_only


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The working directory is one folder; this is another one."""
    (tmp_path / "here").mkdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    yield tmp_path / "elsewhere"


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
@pytest.mark.parametrize("relative", ["data", "../here/data", None])
def test_a_relative_folder_is_resolved_at_the_start(elsewhere: Path, relative: str | None, engine: str) -> None:
    config = Config(
        node={} if relative is None else {"data_dir": relative}, listen={"client": "127.0.0.1:0"},
        storage={"engine": engine}, wal={"segment_size": "64KiB", "sync": "async"},
        maintenance={"snapshot_count": 50, "snapshot_min_size": "64KiB"},
    )  # fmt: skip
    given = config.node.data_dir
    node = Node(config)
    with node:
        os.chdir(elsewhere)
        # New segments of the log, snapshots, and old segments that go: each makes and removes files.
        node.put_many([(f"k{n % 10}", "x" * 10_000) for n in range(300)])
        node.compact(node.revision, physical=True)
        node.put_many([(f"k{n % 10}", "x" * 10_000) for n in range(300)])
        assert node.get("k1") is not None
    assert not list(elsewhere.iterdir()), "files where the program went"
    os.chdir(elsewhere.parent / "here")
    with Node(config) as again:
        assert again.revision == 601
    assert config.node.data_dir == given and {path.name for path in Path().iterdir()} == {"data"}


def test_a_working_directory_that_is_gone_is_named(elsewhere: Path) -> None:
    os.chdir(elsewhere)
    shutil.rmtree(elsewhere)
    with pytest.raises(errors.ConfigError, match=r"node\.data_dir data: the working directory is gone"):
        Node(Config(node={"data_dir": "data"}, listen={"client": "127.0.0.1:0"})).start()
