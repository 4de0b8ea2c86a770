"""Storage engines: an ordered bytes -> bytes map that takes one atomic write for each applied batch."""

from metastore.plugin import APPLIED_KEY as APPLIED_KEY
from metastore.plugin import Engine as Engine  # its methods are described there, for plug-ins and for us

class MemoryEngine(Engine):
    """Everything in memory. After a crash, the snapshot and the log after it are left."""

    def __init__(self, path: str | None = None) -> None: ...
