"""Disk: the log, the data directory, and the storage engines behind the entry-point group `metastore.storage`.

An engine is a factory `make(path: str) -> Engine`, looked up by the name that the configuration gives. Where the
configuration has a table [storage.<name>], the factory is called with that as second argument.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, cast

from .. import errors

if TYPE_CHECKING:
    from .._core.engine import Engine
    from ..config import StorageTable

GROUP = "metastore.storage"


def open_engine(wanted: StorageTable, path: str) -> Engine:
    """The configured engine on the folder `path`. Raises ConfigError, and what the engine raises."""
    make = load(wanted.engine)
    options = getattr(wanted, wanted.engine, None) if wanted.engine != "engine" else None
    return make(path) if options is None else make(path, options)


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
