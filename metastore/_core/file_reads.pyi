"""How an engine in files reads many records: walks over pairs, and look-ups of many keys."""

from collections.abc import Callable, Iterator
from typing import Any

from metastore._core.engine import Engine
from metastore._core.gaps import GapWalk
from metastore._core.work import Detours

class SharedWalk:
    """A GapWalk, which several walks use by turns. `fault` makes our errors of those of rocksdict."""

    def __init__(self, walk: GapWalk, fault: Callable[[Exception], Exception]) -> None: ...
    def pairs(self, start: bytes) -> Iterator[tuple[bytes, bytes]]: ...

class WalkedEngine(Engine):
    """Base of engines in files, and of their views."""

    def walks(self) -> SharedWalk: ...  # over the present state
    def finder(self) -> Finder: ...  # of the present state
    def fault(self, error: Exception) -> Exception: ...  # our error for one of rocksdict

class ItemsWalk:
    """Iterates over pairs: those of `items`, which begins at `start`, up to that of the key `until` (None: all), and
    then those that `others(from)` has."""

    def __init__(
        self,
        items: Any,
        start: bytes,
        until: bytes | None,
        others: Callable[[bytes], Iterator[tuple[bytes, bytes]]],
        fault: Callable[[Exception], Exception],
    ) -> None: ...
    def __iter__(self) -> Iterator[tuple[bytes, bytes]]: ...
    def __next__(self) -> tuple[bytes, bytes]: ...

class Finder:
    """Looks up many keys of one state of an engine. `items(key)` returns an iterator of rocksdict's `items` over it, or
    None from when on that cannot be had any more. `get` looks up a single key; None: the walk does that, too."""

    nbytes: int  # of all values that it has found

    def __init__(
        self,
        walk: GapWalk,
        items: Callable[[bytes], Any] | None,
        get: Callable[[bytes], bytes | None] | None,
        detours: Detours,
        filling: GapWalk | None = None,
    ) -> None: ...
    def find(self, keys: list[bytes]) -> list[bytes | None]: ...  # in their order; raises what rocksdict raises
