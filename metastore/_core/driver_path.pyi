"""The compiled path of an ordinary Ready through the driver: what every put passes, on a leader and on a follower."""

from typing import Final

from metastore._core.batch import BatchProposer
from metastore._core.codec import PayloadCodec
from metastore._core.driver_budgets import Budgets
from metastore._core.entry import HardState
from metastore._core.kv_server import KVServer
from metastore._core.mvcc_apply import Applier
from metastore._core.raft import RawNode
from metastore._core.raft_types import Message, ProposalDropped, Ready
from metastore.errors import NoLeader, NotLeader
from metastore.ports import DriverLog, Points

TELL_AFTER: Final[float]  # seconds for which a leader holds back a commit index that nobody waits for
MAX_LEAP: Final[int]  # how far a message's term may be ahead of ours
MAX_TERM: Final[int]  # no term may be beyond it
REFUSALS: Final[tuple[type[ProposalDropped], type[NotLeader], type[NoLeader]]]  # what the core answers a proposal

class DriverPath:
    """The base of `replica.driver.Driver`. That has the methods for what is rare, and makes the parts that lie on its
    own floor: `reads`, `changes`, `committed` and `pending`."""

    log: DriverLog
    leader_id: int  # 0: none is known
    stopping: bool  # all queued work is due at once
    watched: bool  # watchers wait here for what is applied
    tell_at: float | None  # when a leader sends the others a commit index that no append has carried (seconds)
    marked: bool  # a marker proves all that the log holds
    retry_at: float | None  # when `pump` tries a busy engine again (seconds); None: the engine is not busy
    busy_since: float | None  # since when the engine has been busy (seconds); None: it is not
    _installing: tuple[int, int] | None
    _late: HardState | None
    _images: memoryview | bytes | None
    _at: int
    _unwritten: int
    def __init__(
        self,
        raw: RawNode,
        log: DriverLog,
        applier: Applier,
        proposer: BatchProposer,
        codec: PayloadCodec,
        kv: KVServer,
        link: object,
        points: Points,
        budgets: Budgets,
    ) -> None: ...
    @property
    def raw(self) -> RawNode: ...
    @property
    def applier(self) -> Applier: ...
    @property
    def proposer(self) -> BatchProposer: ...
    @property
    def codec(self) -> PayloadCodec: ...
    @property
    def kv(self) -> KVServer: ...
    @property
    def points(self) -> Points: ...
    @property
    def term(self) -> int: ...
    @property
    def backlog(self) -> bool: ...  # `pump` left work that it can do without waiting: call it again soon
    @property
    def _budgets(self) -> Budgets: ...
    @property
    def _handed(self) -> int: ...  # the last Ready that was handed to the log
    @property
    def _reported(self) -> int: ...  # the last one that was reported to the core
    @property
    def _synced(self) -> int: ...  # the last one that the log has reported
    @property
    def _hard_state(self) -> HardState | None: ...  # the newest that a Ready had
    @property
    def _late_number(self) -> int: ...
    @property
    def _last_append(self) -> float: ...
    def pump(self, now: float) -> None: ...  # ends a turn: does everything that is possible at `now` without waiting
    def on_disk(self, now: float) -> None: ...  # the log finished a group; raises DiskFailed if that failed
    def receive(self, message: Message) -> None: ...  # of a peer; raises FormatError if it is damaged
    def _go_on(self, now: float) -> None: ...
    def _propose(self, now: float) -> None: ...
    def _persist(self, ready: Ready, now: float) -> bool: ...
    def _apply_on(self, now: float) -> None: ...
    def _commit(self, now: float) -> None: ...
    def _passed(self, last: int) -> None: ...
    def _durable(self, synced: int) -> None: ...
    def _written(self) -> None: ...
