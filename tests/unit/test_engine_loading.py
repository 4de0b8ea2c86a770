"""Engines of plug-ins are found, checked, given their options and a folder of their own; what is wrong with one is one
line that names it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from support.plugins import IN_MEMORY, PICKLING, install

from metastore import storage
from metastore._core.engine import Engine, MemoryEngine
from metastore._core.ordered_map import OrderedMap
from metastore.config import Config
from metastore.errors import ConfigError, DamagedData, DiskFailed, MetaStoreError
from metastore.storage import folders

BROKEN = (
    IN_MEMORY
    + """
from metastore.errors import ConfigError, DamagedData
from metastore.plugin import Engine as Base


class Fresh(Base):
    CONTRACT = 1
    persistent = False
    def __init__(self, path): pass

for name in ("get", "scan", "write", "applied", "view", "size", "restore"):
    def method(self, *arguments): return None
    setattr(Fresh, name, method)

class NoView(Base):
    CONTRACT, persistent = 1, False
    def __init__(self, path): pass
    get = scan = write = applied = size = restore = Fresh.get

class Later(Fresh):
    CONTRACT = 2
    def __init__(self, path): raise AssertionError("made")

class Silent(Fresh):
    CONTRACT = None

class HalfDurable(Fresh):
    persistent = True

class HalfStaged(Fresh):
    def stage(self): return None

class LongKeys(Fresh):
    max_key = 511

class ShortValues(Fresh):
    max_key, max_value = 4096, 100_000

class Odd(Fresh):
    max_key = "511"

class Text(Fresh):
    FORMAT = "1"

class Raises(Fresh):
    def __init__(self, path): raise KeyError("two\\nlines")

class Exits(Fresh):
    def __init__(self, path): raise ConfigError("storage.engine: not here")

class Damaged(Fresh):
    def __init__(self, path): raise DamagedData("block 7")

class Leaves(Fresh):
    def __init__(self, path): raise SystemExit(0)

class Declares(Fresh):
    @property
    def max_key(self): raise GeneratorExit("late")
    def close(self): raise KeyError("close")

class Closes(Fresh):
    persistent = None
    def close(self): raise SystemExit(0)

def function(path): return Fresh(path)
def nothing(path): return None
def later(path):
    engine = Fresh(path)
    engine.CONTRACT = 3
    return engine
number = 5
"""
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder in which packages are installed by the test."""
    monkeypatch.setattr(sys, "path", [str(tmp_path / "site"), *sys.path])
    for name in ("broken", "pickling", "twin"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return tmp_path


def opened(name: str, root: Path, **tables: Any) -> Engine:
    """Open the engine called `name` below `root`."""
    storage_table = {"engine": name, **tables.pop("storage", {})}
    return storage.open_engine(Config(storage=storage_table, **tables), root)


@pytest.mark.parametrize(
    ("target", "why"),
    [
        ("broken:Gone", "cannot be loaded: AttributeError: module 'broken' has no attribute 'Gone'"),
        ("no_such:Engine", "cannot be loaded: ModuleNotFoundError: No module named 'no_such'"),
        ("broken:number", "cannot be loaded: it is no class and no function"),
        ("broken:Raises", "cannot be opened: KeyError: 'two\\nlines'"),
        ("broken:Exits", ": not here"),
        ("leaving:Engine", "cannot be loaded: SystemExit: 0"),
        ("broken:Leaves", "cannot be opened: SystemExit: 0"),
        ("broken:Declares", "cannot be used: GeneratorExit: late"),
        ("broken:Closes", "does not declare `persistent`"),
        ("broken:nothing", ": its factory returned NoneType, which is no metastore.plugin.Engine"),
        ("broken:NoView", "has no view(), which every engine must have"),
        ("broken:Later", "keeps contract 2, and this MetaStore needs contract 1"),
        ("broken:later", "keeps contract 3, and this MetaStore needs contract 1"),
        ("broken:Silent", "does not declare which contract it keeps: it needs CONTRACT = 1"),
        ("broken:Undeclared", "does not declare `persistent`"),
        ("broken:HalfDurable", "declares `persistent = True` and has no durable_applied()"),
        ("broken:HalfStaged", "has stage() and no adopt(): it needs both or neither"),
        ("broken:Odd", "declares max_key = '511': it must be a number of bytes, or None"),
        ("broken:Text", "declares FORMAT = '1': it must be a number"),
    ],
)
def test_an_engine_that_cannot_be_used_is_named(target: str, why: str, site: Path) -> None:
    install(site, "broken", BROKEN, f"mine = {target}")
    (site / "site" / "leaving.py").write_text("raise SystemExit(0)")
    with pytest.raises(ConfigError) as failure:
        opened("mine", site / "engine")
    text = failure.value.text
    assert text.startswith(f"storage.engine: 'mine' ({target} of broken 1.0)") and why in text, text
    assert "\n" not in text and failure.value.exit_code == 2
    assert not (site / "engine" / "mine").exists()


def test_a_function_can_be_a_factory(site: Path) -> None:
    install(site, "broken", BROKEN, "mine = broken:function", "damaged = broken:Damaged")
    opened("mine", site / "engine").close()
    with pytest.raises(DamagedData, match=r"^storage.engine: 'damaged' \(broken:Damaged of broken 1.0\): block 7$"):
        opened("damaged", site / "engine")


def test_two_packages_with_one_name_are_refused(site: Path) -> None:
    install(site, "broken", BROKEN, "mine = broken:function")
    install(site, "twin", "", "mine = twin:Engine", version="2")
    with pytest.raises(ConfigError) as failure:
        opened("mine", site / "engine")
    assert failure.value.text == (
        "storage.engine: 'mine' is installed 2 times: broken:function of broken 1.0, twin:Engine of twin 2"
    )


def test_limits_that_the_engine_has_no_room_for_are_refused(site: Path) -> None:
    install(site, "broken", BROKEN, "keys = broken:LongKeys", "values = broken:ShortValues")
    advice = "takes keys of 511 bytes: set limits.max_key_bytes to at most 496, on all members alike"
    for limits in ({}, {"max_key_bytes": 497}):
        with pytest.raises(ConfigError, match=advice):
            opened("keys", site / "engine", limits=limits)
    opened("keys", site / "engine", limits={"max_key_bytes": 496}).close()
    with pytest.raises(
        ConfigError, match=r"takes values of 100000 bytes, and limits\.max_request_bytes = 1572864 needs"
    ):
        opened("values", site / "engine", limits={"max_key_bytes": 100})


def test_options_reach_the_factory(site: Path) -> None:
    install(site, "pickling", PICKLING, "pickling = pickling:Pickling")
    text = '[storage]\nengine = "pickling"\n[storage.pickling]\nmode = "1KiB"\n'
    env = {"METASTORE_STORAGE__PICKLING__LABEL": "0x10"}
    config = Config.load(text, env=env)
    assert Config.from_dict(config.to_dict()) == config
    assert config.to_dict()["storage"]["pickling"] == {"mode": "1KiB", "label": 16}
    engine: Any = storage.open_engine(config, site / "engine")
    assert engine.inner.options == {"mode": 1024, "label": "0x10"}
    engine.close()
    plain: Any = opened("pickling", site / "engine")
    assert plain.inner.options == {"mode": 420, "label": "none"}
    plain.close()
    for line, why in (
        (
            "storage.pickling.mod=1",
            "--set storage.pickling.mod=1: storage.pickling.mod: unknown key; did you mean 'mode'",
        ),
        ("storage.pickling.mode=x", "--set storage.pickling.mode=x: storage.pickling.mode: 'x' is no size"),
        ("storage.pickled.mode=1", "storage.pickled: unknown key; did you mean 'pickling'"),
        ("storage.memory.mode=1", "storage.memory.mode: unknown key: 'memory' takes no options"),
    ):
        engine_of = '[storage]\nengine = "memory"\n' if "memory" in line else text
        with pytest.raises(ConfigError) as failure:
            storage.open_engine(Config.load(engine_of, overrides=[line]), site / "engine")
        assert why in failure.value.text


def wrote(engine: Engine, value: bytes) -> None:
    """Write a pair and close the engine."""
    batch = OrderedMap()
    batch.set(b"a", value)
    engine.write(batch, 5, 1)
    engine.flush()
    engine.close()


def test_each_engine_has_a_marked_folder_of_its_own(site: Path) -> None:
    install(site, "pickling", PICKLING, "pickling = pickling:Pickling", "other = pickling:Pickling")
    root = site / "engine"
    for name in ("pickling", "rocksdb", "other"):
        wrote(opened(name, root), name.encode())
    opened("memory", root).close()
    assert folders.marked(root) == sorted(path.name for path in root.iterdir()) == ["other", "pickling", "rocksdb"]
    assert folders.read_marker(root / "pickling") == folders.Marker("pickling", 3)
    found = {}
    for name, engine in storage.left_behind(Config(storage={"engine": "pickling"}), root):
        found[name] = (engine.applied(), engine.get(b"a"))
    assert found == {"other": ((5, 1), b"other"), "rocksdb": ((5, 1), b"rocksdb")}


def test_a_folder_of_another_format_is_refused(site: Path) -> None:
    source = PICKLING.replace("CONTRACT, FORMAT = 1, 3", "CONTRACT, FORMAT = 1, 4")
    source = source.replace(
        "        self.path, self", "        raise AssertionError('it was made')\n        self.path, self"
    )
    install(site, "pickling", source, "pickling = pickling:Pickling")
    root = site / "engine"
    folders.write_marker(root / "pickling", folders.Marker("pickling", 3))
    with pytest.raises(ConfigError, match=r"has format 3 of the engine 'pickling', and the one .* reads format 4"):
        opened("pickling", root)
    assert [path.name for path in (root / "pickling").iterdir()] == [folders.MARKER]
    folders.write_marker(root / "pickling", folders.Marker("lmdb", 4))
    with pytest.raises(ConfigError, match="belongs to the engine 'lmdb', not to 'pickling'"):
        opened("pickling", root)
    for text in ("{", "[]", '{"version": 2, "engine": "pickling", "format": 4}', '{"version": 1}',
                 '{"version": 1, "engine": 5, "format": 4}'):  # fmt: skip
        (root / "pickling" / folders.MARKER).write_text(text)
        with pytest.raises(DamagedData, match=folders.MARKER):
            opened("pickling", root)


@pytest.mark.parametrize("steps", [0, 1, 2])
@pytest.mark.parametrize("owner", ["rocksdb", "pickling"])
def test_the_files_of_an_older_version_move(
    owner: str, steps: int, site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They lay in `engine/` itself. A move that was killed after some of its steps goes on at the next start."""
    install(site, "pickling", PICKLING, "pickling = pickling:Pickling")
    root = site / "engine"
    wrote(opened(owner, root), b"old")
    (root / owner / folders.MARKER).unlink()
    (root / owner).rename(site / "before")
    root.rmdir()
    (site / "before").rename(root)
    if steps:
        synced: list[Path] = []

        def dies(path: Path) -> None:
            synced.append(path)
            if len(synced) == steps:
                raise OSError(5, "killed")

        with monkeypatch.context() as patch:
            patch.setattr(folders, "sync_folder", dies)
            with pytest.raises(DiskFailed, match="killed"):
                folders.move_old(root, owner)
    engine = opened(owner, root)
    assert engine.get(b"a") == b"old" and engine.applied() == (5, 1)
    engine.close()
    assert [path.name for path in root.iterdir()] == [owner] and not (site / folders.ASIDE).exists()
    assert folders.marked(root) == [owner]


def test_files_whose_owner_is_unknown_stay_where_they_are(site: Path) -> None:
    root = site / "engine"
    root.mkdir()
    (root / "state.db").touch()
    opened("memory", root).close()
    wrote(opened("rocksdb", root), b"new")
    assert sorted(path.name for path in root.iterdir()) == ["rocksdb", "state.db"]


def test_an_engine_that_cannot_be_opened_is_no_obstacle(site: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is only asked for its data where nothing else has them."""
    root = site / "engine"
    folders.write_marker(root / "uninstalled", folders.Marker("uninstalled", 1))
    assert list(storage.left_behind(Config(), root)) == []
    assert "the data of the engine 'uninstalled'" in caplog.text and "there is no engine 'uninstalled'" in caplog.text
    assert isinstance(opened("memory", root), MemoryEngine)
    assert issubclass(ConfigError, MetaStoreError)
