"""The end of a member's turn: everything that came in goes on, and every answer is sent."""

from collections import deque
from typing import Any

from metastore._core.batch import BatchProposer
from metastore._core.h2_request import Request
from metastore._core.kv_server import KVServer
from metastore._core.wal_tail import LogTail

class WatchingFields:
    """Fields of `Watching`."""

    ready: dict[Any, None]

class LeasingFields:
    """Fields of `Leasing`."""

    ready: dict[Any, None]
    lifetimes: list[Any]
    gathering: deque[Any]

class TasksFields:
    """Fields of `Tasks`."""

    ready: deque[Any]

class MembershipFields:
    """Fields of `MembershipClient`."""

    learner: bool
    removed: bool
    settled: bool

class AlarmsFields:
    """Fields of `Alarms`."""

    logged: frozenset[Any]

class TicksFields:
    """Fields of `Ticks`."""

    rests: bool

class GatheringFields:
    """Fields of `Gathering`."""

    flying: bool

class SpaceTurn:
    """The base of `Space`. `_tell(left)` tells the KV server how much room there is."""

    full: bool
    _limited: bool
    _tight: str
    _wal: Any
    _most_in_flight: int

    def __init__(self, wal: LogTail, most_in_flight: int) -> None: ...
    def turn(self) -> None:
        """Tell the KV server how much clients may write until the next turn."""

class FrontTurn:
    """The base of `Front`. It takes requests, and bounds what is in flight."""

    _kv: KVServer
    _proposer: BatchProposer
    _driver: Any
    _membership: Any
    _loop: Any
    _services: Any
    listener: Any
    most_requests: int
    most_bytes: int

    def handle(self, requests: list[Request]) -> None:
        """Take the requests that came in on one connection."""

    def crowded(self) -> bool:
        """Whether at least half of the requests or bytes that may be in flight are in flight."""

    def balance(self) -> None:
        """Stop reading from all clients while more than three quarters of what may be in flight is in flight."""

class MemberTurn:
    """The base of `member.running.RunningMember`, which makes its fields."""

    loop: Any
    ready: bool
    drain: Any
    ended_by: Any
    _stopping: Any
    replica: Any
    driver: Any
    kv: KVServer
    front: Any
    space: Any
    watching: Any
    leasing: Any
    tasks: Any
    membership: Any
    ticks: Any
    gathering: Any
    alarms: Any
    upkeep: Any
    backups: Any
    peering: Any
    direct: Any
    _alone: tuple[int, ...]
    _logged_leader: int

    def _on_disk(self, events: int) -> None:
        """The log's disk has news."""

    def _turn(self) -> None:
        """End a turn of the loop."""
