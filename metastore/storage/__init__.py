"""Storage on disk: the write-ahead log, the data directory, and the storage engines.

An engine is made by a factory, which an entry point in the group `metastore.storage` names. `metastore/plugin.pyi` is
the contract between both sides. The configuration names the engine.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, cast

from .. import entrypoints, errors
from .._core.engine import Engine, MemoryEngine
from .._core.engine_guard import GuardedEngine
from ..settings import NESTED, did_you_mean
from ..threads import is_no_fault
from . import folders

if TYPE_CHECKING:
    from pathlib import Path

    from ..config import Config
    from ..settings import LimitsTable

log = logging.getLogger("metastore.engine")

GROUP = "metastore.storage"
#: What an engine has no default for.
METHODS = ("get", "scan", "write", "applied", "view", "size", "restore")
#: Bytes that the records of the store add to a key, and to a value besides its key (FORMATS.md, "Engine records").
KEY_HEAD, VALUE_HEAD = 15, 64
#: Bytes of the longest value that is no client's: the record of the members.
LONGEST_RECORD = 1 << 20
#: Failures of an engine that is being opened that have exit codes of their own.
OF_OPENING = (errors.DataDirInUse, errors.DamagedData, errors.DiskFailed, errors.OutOfMemory, errors.Forked)


def open_engine(config: Config, root: Path) -> Engine:
    """Open the configured engine in its folder below `root`. Raises ConfigError, and what an engine may raise then:
    DataDirInUse, DamagedData, DiskFailed, Forked, MemoryError."""
    check_tables(config)
    name = config.storage.engine
    folders.move_old(root, name)
    engine = _open(config, root, name)
    try:
        check_limits(engine, name, config.limits)
    except errors.ConfigError:
        _dismiss(engine)
        raise
    return guarded(engine, name)


def _dismiss(engine: Engine) -> None:
    """Close an engine that cannot be used. Why it cannot is told already, so what `close` raises is not."""
    try:
        engine.close()
    except BaseException as error:
        if is_no_fault(error):
            raise


def _open(config: Config, root: Path, name: str) -> Engine:
    """Open an engine, and mark its folder as its own."""
    factory, folder = load(name), root / name
    version = getattr(factory, "FORMAT", None)
    if version is not None:
        folders.check_marker(folder, name, version)
    engine = make(factory, config, folder, name)
    try:
        check_declared(engine, name)
        folders.check_marker(folder, name, engine.FORMAT)
        if folders.read_marker(folder) is None and (engine.persistent or folder.is_dir()):
            folders.write_marker(folder, folders.Marker(name, engine.FORMAT))
    except errors.MetaStoreError:
        _dismiss(engine)
        raise
    return engine


def make(factory: Callable[..., Engine], config: Config, folder: Path, name: str) -> Engine:
    """Call the factory of the engine called `name`."""
    what = f"storage.engine: {name!r}"
    if f"storage.{name}" in NESTED:
        options: tuple[object, ...] = (getattr(config.storage, name),)
    else:
        options = entrypoints.arguments(factory, f"storage.{name}", config.plugins("storage").get(name, {}))
    if factory is not MemoryEngine:
        folder.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    try:
        engine = factory(str(folder), *options)
    except OF_OPENING as error:
        for kind in (errors.DamagedData, errors.DataDirInUse, errors.DiskFailed):
            if isinstance(error, kind) and f"storage.{name}" not in NESTED:
                raise kind(f"{what}{_from(name)}: {error.text}") from error
        raise
    except errors.ConfigError as error:
        raise errors.ConfigError(f"{what}{_from(name)}: {error.text.removeprefix('storage.engine: ')}") from error
    except BaseException as error:
        if is_no_fault(error):
            raise
        raise errors.ConfigError(f"{what}{_from(name)} cannot be opened: {errors.one_line(error)}") from error
    if not isinstance(engine, Engine):
        kind = type(engine).__name__
        raise errors.ConfigError(
            f"{what}{_from(name)}: its factory returned {kind}, which is no metastore.plugin.Engine"
        )
    return engine


def _from(name: str) -> str:
    """Where the engine called `name` comes from, in brackets."""
    points = entrypoints.installed(GROUP).get(name, [])
    return f" ({entrypoints.origin(points[0])})" if points else ""


def guarded(engine: Engine, name: str) -> Engine:
    """Return the engine called `name`, guarded: its failures cannot be mistaken for those of requests. Our engine in
    memory needs no guard."""
    return engine if type(engine) is MemoryEngine else GuardedEngine(engine, name)


def check_declared(engine: Engine, name: str) -> None:
    """Raise ConfigError unless the engine called `name` declares what it must, and has the methods that it must have.
    The log is cut behind `durable_applied`, so no default of that, or of `persistent`, is safe."""
    try:
        _check_declared(engine)
    except errors.ConfigError as error:
        raise errors.ConfigError(f"storage.engine: {name!r}{_from(name)} {error.text}") from None
    except BaseException as error:
        if is_no_fault(error):
            raise
        why = errors.one_line(error)
        raise errors.ConfigError(f"storage.engine: {name!r}{_from(name)} cannot be used: {why}") from error


def _check_declared(engine: Engine) -> None:
    kind = type(engine)
    entrypoints.check_contract(engine)

    def has(method: str) -> bool:
        return getattr(kind, method, None) is not getattr(Engine, method)

    missing = [method for method in METHODS if not has(method)]
    if missing:
        raise errors.ConfigError(f"has no {missing[0]}(), which every engine must have")
    lasts: object = getattr(engine, "persistent", None)
    if not isinstance(lasts, bool):
        raise errors.ConfigError(
            "does not declare `persistent`: its class must set it to True when a start finds "
            "again what the engine holds, to False when nothing is left of it"
        )
    if lasts and not has("durable_applied"):
        raise errors.ConfigError(
            "declares `persistent = True` and has no durable_applied(): up to where what it "
            "holds survives a crash, only the engine can say"
        )
    if has("stage") != has("adopt"):
        one, other = ("stage", "adopt") if has("stage") else ("adopt", "stage")
        raise errors.ConfigError(f"has {one}() and no {other}(): it needs both or neither")
    for attribute in ("max_key", "max_value"):
        most: object = getattr(engine, attribute)
        if most is not None and (type(most) is not int or most < 1):
            raise errors.ConfigError(f"declares {attribute} = {most!r}: it must be a number of bytes, or None")
    if type(engine.FORMAT) is not int:
        raise errors.ConfigError(f"declares FORMAT = {engine.FORMAT!r}: it must be a number")


def check_limits(engine: Engine, name: str, limits: LimitsTable) -> None:
    """Raise ConfigError if the limits let requests in that the engine called `name` has no room for. What stands in the
    log must be applied, so it is too late for a refusal then."""
    if engine.max_key is not None:
        most = engine.max_key - KEY_HEAD
        if most < 1:
            raise errors.ConfigError(f"storage.engine: {name!r} takes keys of {engine.max_key} bytes, which is too few")
        if not 0 < limits.max_key_bytes <= most:
            raise errors.ConfigError(
                f"storage.engine: {name!r} takes keys of {engine.max_key} bytes: set limits.max_key_bytes to at most "
                f"{most}, on all members alike"
            )
    if engine.max_value is not None:
        least = max(limits.max_request_bytes, LONGEST_RECORD) + VALUE_HEAD
        if engine.max_value < least:
            raise errors.ConfigError(
                f"storage.engine: {name!r} takes values of {engine.max_value} bytes, and limits.max_request_bytes = "
                f"{limits.max_request_bytes} needs {least}"
            )


def check_tables(config: Config) -> None:
    """Raise ConfigError for a table of options [storage.<name>] that is no engine's."""
    for name, options in config.plugins("storage").items():
        known = entrypoints.installed(GROUP)
        if name not in known:
            where = next(iter(options.values())).where
            raise errors.ConfigError(f"{where}: storage.{name}: unknown key{did_you_mean(name, known)}")


def load(name: str) -> Callable[..., Engine]:
    """Load the factory of the engine called `name`. Raises ConfigError with the names that exist if there is none, or
    if it cannot be loaded."""
    engines = entrypoints.installed(GROUP)
    if name not in engines:
        names = ", ".join(sorted(engines)) or "none: is the package installed?"
        raise errors.ConfigError(f"storage.engine: there is no engine {name!r}; found: {names}")
    what = f"storage.engine: {name!r}"
    return cast("Callable[..., Engine]", entrypoints.load(entrypoints.sole(engines[name], what), what))


def left_behind(config: Config, root: Path) -> Iterator[tuple[str, Engine]]:
    """Yield the names of the other engines that have data below `root`, and the engines themselves, each of which is
    closed when the next one is asked for. One that cannot be opened is left out, with a warning."""
    for name in folders.marked(root):
        if name == config.storage.engine:
            continue
        try:
            engine = guarded(_open(config, root, name), name)
        except errors.MetaStoreError as error:
            log.warning("the data of the engine %r in %s is not looked at: %s", name, root / name, error.text)
            continue
        try:
            yield name, engine
        finally:
            engine.close()
