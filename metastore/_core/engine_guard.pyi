"""A guard around an engine: what it raises or returns wrongly stops the node with the engine's name."""

from metastore._core.engine import Engine

class GuardedEngine(Engine):
    """Another engine, whose failures become EngineFailed or EngineDamaged, except EngineBusy of a write,
    MemoryError, and what the stream of a `restore` raises."""

    def __init__(self, inner: Engine, name: str) -> None: ...
    @property
    def inner(self) -> Engine: ...
    @property
    def name(self) -> str: ...
