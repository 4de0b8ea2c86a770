"""Storage engines: an ordered bytes -> bytes map that takes one atomic write for each applied batch."""

from collections.abc import Iterable, Iterator

from metastore._core.ordered_map import OrderedMap

APPLIED_KEY: bytes  # key of the engine's own record: its position in the log

class Engine:
    """Base of all engines. Keys are in memcmp order. One thread at a time uses an engine. A plug-in overrides get,
    scan, write, applied, view, size and restore, and durable_applied too if it is persistent; the rest has
    defaults. The comments give the errors that a caller must expect besides those of the engine itself, which stop
    the node."""

    persistent: bool  # each class of engines declares it, this one does not: whether a start finds the contents again
    full: bool  # whether it takes no writes at present, because it found no room on its disk
    @property
    def headroom(self) -> int | None:
        """Bytes that must be free on its disk, or it may find no room; None for an engine without files of its own."""

    def get(self, key: bytes) -> bytes | None: ...
    def seek_ge(self, key: bytes) -> tuple[bytes, bytes] | None: ...  # first pair not below `key`
    def seek_le(self, key: bytes) -> tuple[bytes, bytes] | None: ...  # last pair not above `key`
    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        """Return the pairs with start <= key < end (None: no bound), at most `limit` pairs (0: all)."""

    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        """Atomically store every pair of `batch` (value None: delete the key) and the applied log position. Raises
        EngineBusy if it cannot do so without waiting: nothing is stored then, and the same call comes again. Raises
        DiskFailed, OSError (the node stops), DamagedData."""

    def applied(self) -> tuple[int, int]: ...  # (index, term) of the last write; (0, 0) for a new engine
    def view(self) -> Engine: ...  # read-only, with the present contents
    def size(self) -> int: ...  # bytes that it takes, of memory or of files
    def reclaim(self) -> bool: ...  # at most a millisecond of freeing; True while there is more
    def defragment(self) -> float | None: ...  # None: done; else the seconds after which to call again
    def durable_applied(self) -> int: ...  # applied index up to which everything survives a crash of the machine
    def flush(self) -> None: ...  # move durable_applied() on
    def close(self) -> None: ...  # it is not used afterwards
    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        """Replace the contents by these pairs, with the log position (APPLIED_KEY) among them. Exceptions of the
        stream pass through."""

    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]: ...  # pairs from `start` on, in order
    def size_in_use(self) -> int: ...  # bytes of size() that do not wait to be reclaimed
    def data_size(self) -> int: ...  # bytes of keys and values
    def begin_flush(self) -> None: ...  # as `flush`, in the background if the engine can
    def drop(self) -> None: ...  # drop the contents if that gives back memory; `restore` is called next
    def stage(self) -> Engine | None: ...  # a new, empty engine to be filled in another thread; None: not possible
    def seal(self) -> None: ...  # make this staged engine the one that a restart finds
    def adopt(self, staged: Engine) -> None: ...  # take over its contents at once

class MemoryEngine(Engine):
    """Everything in memory. After a crash, the snapshot and the log after it are left."""

    def __init__(self, path: str | None = None) -> None: ...

class GuardedEngine(Engine):
    """Another engine, whose failures become EngineFailed or EngineDamaged, except EngineBusy of a write,
    MemoryError, and what the stream of a `restore` raises."""

    def __init__(self, inner: Engine, name: str) -> None: ...
    @property
    def inner(self) -> Engine: ...
    @property
    def name(self) -> str: ...
