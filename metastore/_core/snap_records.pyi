"""The records of an engine as a byte stream; layout: FORMATS.md, "Snapshot file"."""

from collections.abc import Callable, Iterable, Iterator

from metastore._core.engine import Engine

class Walker:
    """Reads the records of a view as a byte stream."""

    @property
    def records(self) -> int: ...  # begun so far
    @property
    def nbytes(self) -> int: ...  # bytes taken so far
    @property
    def done(self) -> bool: ...
    def __init__(self, view: Engine, pause: Callable[[], object] | None = None) -> None: ...
    def take(self, limit: int) -> bytes: ...  # the next bytes, `limit` at most; fewer only at the end
    def close(self) -> None: ...

class RecordReader:
    """Iterates over the (key, value) pairs of a stream. Raises FormatError."""

    @property
    def records(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    def __init__(self, pieces: Iterable[bytes]) -> None: ...
    def __iter__(self) -> Iterator[tuple[bytes, bytes]]: ...
    def __next__(self) -> tuple[bytes, bytes]: ...

def count_records(reader: RecordReader) -> int: ...  # raises FormatError
def restore(engine: Engine, reader: RecordReader, pause: Callable[[], object] | None = None) -> None:
    """Replace the engine's contents by the pairs of `reader`. Raises FormatError and what the engine raises."""
