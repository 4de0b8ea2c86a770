"""One turn of a replica: the parts that have something to do are called, in their order."""

import threading
from collections.abc import Callable
from typing import Any

from metastore._core.driver_budgets import Budgets
from metastore._core.kv_server import KVServer
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.raft import RawNode
from metastore._core.watch import WatchHub

BATCH_RETRY: float

class RoundsFields:
    """Fields of `LeaseRounds`."""

    rests_in: tuple[int, int] | None

class KeeperFields:
    """Fields of whoever keeps the snapshots of a replica. A fresh keeper is asked in each turn."""

    _pressed: bool
    _releasing: bool
    _sweeping: bool
    _waiting: list[tuple[int, Callable[[Any], object]]]
    _thread: threading.Thread | None
    _look_at: int
    _not_before: float
    _flushed_to: int

    def idle(self, now: float, pressed: bool, applied: int) -> bool:
        """Whether `turn` would have nothing to do; `applied` is the last applied entry."""

class ReplicaTurn:
    """The base of `member.assembly.Replica`, which makes its fields."""

    store: Store
    applier: Applier
    kv: KVServer
    raw: RawNode
    driver: Any
    watches: WatchHub
    leases: Any
    snapshots: Any
    send: Callable[[], object]
    _lessor: Any
    _budgets: Budgets

    def turn(self, now: float, disk_full: bool = False) -> None:
        """Go on with everything that came in, at `now` (seconds, monotonic).

        `disk_full` says that the log has no room left on the disk.
        """

    def next_turn(self, now: float) -> float | None:
        """When the next turn must come although nothing comes in (seconds, `now` for at once); None if it need not."""
