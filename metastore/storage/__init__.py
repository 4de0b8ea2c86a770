"""Storage on disk: the write-ahead log, the data directory, and the storage engines.

An engine is a factory `make(path: str) -> Engine` in the entry-point group `metastore.storage`. The configuration names
the engine. Where the configuration has a table [storage.<name>], the factory gets this table as its second argument.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from .. import errors
from .._core.engine import Engine, GuardedEngine, MemoryEngine

if TYPE_CHECKING:
    from ..settings import StorageTable

GROUP = "metastore.storage"


def open_engine(table: StorageTable, path: str) -> Engine:
    """Open the configured engine in the folder `path`. Raises ConfigError, EngineFailed, and the errors of `errors.py`
    that the engine raises."""
    make = load(table.engine)
    options = getattr(table, table.engine, None) if table.engine != "engine" else None
    try:
        engine = make(path) if options is None else make(path, options)
    except (errors.MetaStoreError, MemoryError):
        raise
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        raise errors.EngineFailed(f"storage engine {table.engine!r}: cannot be opened: {reason}") from error
    try:
        check_declared(engine, table.engine)
    except errors.ConfigError:
        engine.close()
        raise
    return guarded(engine, table.engine)


def guarded(engine: Engine, name: str) -> Engine:
    """Return the engine called `name`, guarded: its failures cannot be mistaken for those of requests. Our engine in
    memory needs no guard."""
    return engine if type(engine) is MemoryEngine else GuardedEngine(engine, name)


def check_declared(engine: Engine, name: str) -> None:
    """Raise ConfigError unless the engine called `name` declares whether it is persistent, and a persistent one has
    `durable_applied`. The log is cut behind that position, so no default is safe."""
    lasts: object = getattr(engine, "persistent", None)
    if not isinstance(lasts, bool):
        raise errors.ConfigError(
            f"storage.engine: {name!r} does not declare `persistent`: its class must set it to True when a start finds "
            "again what the engine holds, to False when nothing is left of it"
        )
    if lasts and type(engine).durable_applied is Engine.durable_applied:
        raise errors.ConfigError(
            f"storage.engine: {name!r} declares `persistent = True` and has no durable_applied(): up to where what it "
            "holds survives a crash, only the engine can say"
        )


def load(name: str) -> Callable[..., Engine]:
    """Load the engine called `name`. Raises ConfigError with the names that exist if there is none or it cannot be
    loaded."""
    engines = {point.name: point for point in entry_points(group=GROUP)}
    if name not in engines:
        names = ", ".join(sorted(engines)) or "none: is the package installed?"
        raise errors.ConfigError(f"storage.engine: there is no engine {name!r}; found: {names}")
    try:
        return cast("Callable[..., Engine]", engines[name].load())
    except (ImportError, AttributeError) as error:
        raise errors.ConfigError(
            f"storage.engine: {name!r} ({engines[name].value}) cannot be loaded: {error}"
        ) from error
