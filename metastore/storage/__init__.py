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


def open_engine(wanted: StorageTable, path: str) -> Engine:
    """The configured engine on the folder `path`. Raises ConfigError, EngineFailed, and what of
    `errors` the engine raises."""
    make = load(wanted.engine)
    options = getattr(wanted, wanted.engine, None) if wanted.engine != "engine" else None
    try:
        engine = make(path) if options is None else make(path, options)
    except (errors.MetaStoreError, MemoryError):
        raise
    except Exception as error:
        told = f"{type(error).__name__}: {error}"
        raise errors.EngineFailed(f"storage engine {wanted.engine!r}: cannot be opened: {told}") from error
    try:
        check_declared(engine, wanted.engine)
    except errors.ConfigError:
        engine.close()
        raise
    return guarded(engine, wanted.engine)


def guarded(engine: Engine, name: str) -> Engine:
    """The engine called `name` with its failures told apart from those of requests. Ours in memory has none."""
    return engine if type(engine) is MemoryEngine else GuardedEngine(engine, name)


def check_declared(engine: Engine, name: str) -> None:
    """Raise ConfigError unless the engine called `name` says whether it lasts, and a persistent one up to where: the
    log is cut behind that, so there is nothing that could be assumed."""
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
    """The engine called `name`. Raises ConfigError, naming those found, when there is none or it cannot be loaded."""
    found = {point.name: point for point in entry_points(group=GROUP)}
    if name not in found:
        known = ", ".join(sorted(found)) or "none: is the package installed?"
        raise errors.ConfigError(f"storage.engine: there is no engine {name!r}; found: {known}")
    try:
        return cast("Callable[..., Engine]", found[name].load())
    except (ImportError, AttributeError) as error:
        raise errors.ConfigError(f"storage.engine: {name!r} ({found[name].value}) cannot be loaded: {error}") from error
