from metastore._core.raft_state import NodeState

class Replication(NodeState):
    def tell_commit(self) -> None: ...  # send the commit index to all members that do not know it
    def hasten(self, id: int) -> None: ...  # member `id` waits for entries: it learns of the commit index at once
    def ask_commit(self) -> None: ...  # follower: say now, and not with the next answer, that it is not patient
    def report_unreachable(self, id: int) -> None: ...
    def report_snapshot(self, id: int, ok: bool) -> None: ...
    def read_index(self, context: bytes, now: float = 0.0) -> None:
        """`now` is monotonic seconds. Raises NoLeader, TooManyRequests."""
    def lease_valid(self, now: float) -> bool: ...  # now: monotonic seconds
