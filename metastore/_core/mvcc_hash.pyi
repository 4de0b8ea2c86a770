from metastore._core.engine import Engine

OWN_META: tuple[bytes, ...]

class Hasher:
    revision: int
    current: int
    compact_revision: int
    hash: int
    done: bool
    def __init__(self, view: Engine, revision: int = 0, whole: bool = False) -> None: ...
    def step(self, budget: int) -> bool: ...
    def close(self) -> None: ...
