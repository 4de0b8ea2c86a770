"""A hash of the logical records of a store at one revision. It is equal on every member that has the same records."""

from metastore._core.engine import Engine

OWN_META: tuple[bytes, ...]  # meta records that may differ between members whose state is the same

class Hasher:
    """Hashes a view slice by slice. The hasher owns the view and closes it. `revision` is the last revision that
    counts; 0 stands for the current one. `whole` adds the replicated meta records. Raises Compacted,
    FutureRevision, DamagedData."""

    def __init__(self, view: Engine, revision: int = 0, whole: bool = False) -> None: ...
    @property
    def revision(self) -> int: ...
    @property
    def current(self) -> int: ...  # the view's revision
    @property
    def compact_revision(self) -> int: ...  # -1: never compacted
    @property
    def hash(self) -> int: ...  # CRC-32C of the records so far
    @property
    def done(self) -> bool: ...
    def step(self, budget: int) -> bool: ...  # about `budget` records; True while there is more; raises DamagedData
    def close(self) -> None: ...  # closes the view; idempotent
