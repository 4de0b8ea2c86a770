from metastore._core.raft_types import RaftConfig

class Round:
    """Reads that share one round of heartbeats."""

    @property
    def number(self) -> int: ...
    @property
    def index(self) -> int: ...  # commit index with which the reads are answered
    @property
    def reads(self) -> list[tuple[int, bytes]]: ...  # (id of the asking node, context)

class Reads:
    """The rounds of reads of a leader; only compiled code uses it."""

    def __init__(self, config: RaftConfig) -> None: ...
