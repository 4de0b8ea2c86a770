from metastore._core.raft_state import NodeState

class Replication(NodeState):
    def report_unreachable(self, id: int) -> None: ...
    def report_snapshot(self, id: int, ok: bool) -> None: ...
    def read_index(self, context: bytes, now: float = 0.0) -> None:
        """`now` is monotonic seconds. Raises NoLeader, TooManyRequests."""
    def lease_valid(self, now: float) -> bool: ...  # now: monotonic seconds
