"""A node: started, stopped, and offered to the process it lives in."""

from __future__ import annotations

import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, TypeVar

from .. import errors
from .._core.kv_pieces import Piece
from ..config import Config
from ..failpoints import Failpoints
from ..member.running import RunningMember
from ..settings import IN_MEMORY
from ..threads import Gate
from . import forks
from .answers import belongs_to, may_block
from .arguments import seconds
from .bulk import Call
from .calls import EmbeddedKV, Futures
from .inbox import INBOX_SLICE as INBOX_SLICE
from .leases import KeptAlive, Lease, LeaseCalls, unwanted
from .life import Life
from .locks import Election, Lock, QueueCalls
from .queues import Queues
from .results import GrantResult, LeaseInfo
from .uncopied import Uncopied
from .watch import Watch, Watchable

if TYPE_CHECKING:
    from .aio import AsyncKV
    from .keeping import Keeper
    from .mailbox import Mailbox

T = TypeVar("T")


class Calls(
    EmbeddedKV,
    Watchable[Watch],
    QueueCalls[Lock, Election],
    LeaseCalls[GrantResult, None, int, LeaseInfo | None, tuple[int, ...]],
):
    """All that a Node is called for while it runs."""


def _config(config: Config | None) -> Config | None:
    """What a program gives as a Config. Raises TypeError."""
    if config is not None and not isinstance(config, Config):
        raise TypeError(f"config must be a Config, not {type(config).__name__}; Config.from_dict takes a dict")
    return config


class Node(Uncopied, Calls):
    """One member. `with Node(Config(...)) as node:` starts and stops it; no signal handler is taken.

    `start` returns when the node serves; `wait` blocks until it stopped and raises what stopped it; `stop` drains for
    at most `limits.drain_timeout` seconds and may be called from any thread, any number of times. A stopped node cannot
    be started again: make another. The calls of the store (`put`, `range`, `txn`, ...) are thread-safe; they raise
    `errors.Stopped` when the node does not run, from what ended it if that was a failure. `futures` has the same calls,
    each giving a Future, and `aio` has them for `await`; `async with` works as `with` does. At the end of either such a
    failure is raised, unless an exception is on its way already. `watch` tells of changes.
    docs/embedding.md tells more.
    """

    def __init__(self, config: Config | None = None, *, failpoints: Failpoints | None = None) -> None:
        """A node with these settings, the defaults without any; nothing is opened yet. `failpoints` are for tests."""
        self.config = _config(config) or Config()
        self.failpoints = failpoints if failpoints is not None else Failpoints.from_environment()
        self.futures = Futures(self._submit, self._submit_patient)
        self._lock = threading.RLock()  # a handler of a signal may call `stop` while this thread is in `start`
        self._life: Life | None = None
        self._stopped = Gate()  # before it was started
        forks.watch(self)

    @classmethod
    def in_memory(cls, config: Config | None = None) -> Node:
        """A node without files, for tests: all that it was told is gone when it stops. It must be alone, has the memory
        engine, gives no backups, and listens at a free port of this machine unless `config` says otherwise."""
        # A start waits for a tick or two of the clock, which nobody else needs to be slow here.
        quick = Config(listen={"client": "127.0.0.1:0"}, raft={"tick_interval": 0.01})
        made = _config(config) or quick
        return cls(made.changed(node={"data_dir": IN_MEMORY}))

    def start(self, timeout: float | None = None) -> None:
        """Open the data directory, recover, bind the addresses and serve.

        A member that joins a cluster returns when it is in, and one of a new cluster when a quorum is there. Raises
        Timeout when that takes longer than `timeout` seconds, and a MetaStoreError when it cannot be: ConfigError,
        DataDirInUse, AddressInUse, DamagedData, DiskFailed, OutOfMemory, and where the cluster refuses this member
        RemovedFromCluster, MustJoinAnew or AnotherProcess. Raises Stopped when `stop` was called before, or meanwhile.
        After any exception, KeyboardInterrupt too, everything is closed again. In a loop's thread it raises
        RuntimeError, and nothing is done.
        """
        timeout = seconds(timeout)
        may_block()
        life: Life | None = None
        try:
            with self._lock:
                if self._life is not None:
                    raise errors.ConfigError("this node was started before; make another one")
                if self._stopped.is_open():
                    raise errors.Stopped()
                life = self._life = Life(self.config, self.failpoints)
            life.begin()
            if not life.up.wait(timeout):
                raise errors.Timeout(f"metastore: the node did not serve within {timeout:g} s")
        except BaseException:
            if life is not None:
                life.stop()
            elif self._life is None:
                self._stopped.open()  # no life began, and `wait` must not wait for one
            raise
        if life.failure is not None:
            life.stop()
            raise life.failure
        if life.member is None:
            raise errors.Stopped()
        self._direct = life.direct

    def left_behind(self) -> None:
        """For `forks`: this is a copy in another process, where no thread holds the lock."""
        self._lock = threading.RLock()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the node has stopped, at most `timeout` seconds, without one for ever; whether it has.

        Raises what made it stop, unless that was `stop`: a MetaStoreError, or whatever else went wrong inside. In the
        loop's thread it raises RuntimeError."""
        may_block()
        timeout = seconds(timeout)
        life = self._life
        if life is not None and life.elsewhere:
            raise belongs_to(life.elsewhere)
        stopped = (self._stopped if life is None else life.down).wait(timeout)
        failure = life.fresh_failure() if stopped and life is not None else None
        if failure is not None:
            raise failure
        return stopped

    def stop(self) -> None:
        """Answer what is under way, mark the log's end, close. Returns when that is done; never raises.

        A disk that stands still is not waited for: after `limits.drain_timeout` and a second this returns, and what
        waits for the disk ends with the process (`gave_up`). All that was acknowledged is on disk by then. In the
        thread of a loop, where callbacks of Futures run, it only begins to stop, and at the end of the interpreter,
        where the node's threads stand still, it does nothing."""
        if sys.is_finalizing():
            return
        with self._lock:
            life = self._life
            if life is None:
                self._stopped.open()
                return
        life.stop()

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.stop()
        failure = self._life.fresh_failure() if self._life is not None else None
        if kind is None and failure is not None:
            raise failure

    def __del__(
        self, _warn: Callable[..., object] = warnings.warn, _finalizing: Callable[[], bool] = sys.is_finalizing
    ) -> None:
        """A running node that nobody has any more is stopped, without waiting, and a ResourceWarning says so."""
        life: Life | None = getattr(self, "_life", None)
        if life is None or life.member is None:
            return
        try:
            _warn(
                f"a running node was forgotten, and is stopped: {self.config.node.name}", ResourceWarning, source=self
            )
        finally:  # the program may have warnings raise
            # At the end of the interpreter the node's threads stand still.
            if not _finalizing():
                life.forgotten()

    async def __aenter__(self) -> Node:
        from . import aio

        await aio.start(self)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        from . import aio

        await aio.stop(self)
        self.__exit__(kind, *rest)

    @property
    def aio(self) -> AsyncKV:
        """The calls of the store for asyncio: `await node.aio.put(key, value)`, in any event loop, without a thread."""
        from .aio import AsyncKV  # asyncio is not loaded in programs that do without it

        return AsyncKV(self.futures, self._mailbox, self._keeper, self._queues)

    @property
    def told(self) -> bool:
        """Whether the failure that stopped the node is in the log already."""
        return self._life is not None and self._life.told

    @property
    def gave_up(self) -> bool:
        """Whether `stop` left the node waiting for its disk."""
        return self._life is not None and self._life.gave_up

    @property
    def client_addresses(self) -> tuple[str, ...]:
        """The addresses the client port listens on, as "127.0.0.1:40123"; port 0 in the configuration is resolved.

        Raises Stopped when the node does not run."""
        return tuple(self._running().front.listener.bound)

    @property
    def revision(self) -> int:
        """The store's current revision, as this node has applied it: 1 when it is empty. Raises Stopped."""
        return self._running().replica.store.revision

    def stats(self) -> dict[str, float]:
        """The numbers behind /metrics, {name: value}, without the prefix "metastore_" of the page. Raises Stopped.

        The unit ends the name: `_seconds`, `_bytes`; `_total` counts since the start."""
        return self._running().front.metrics.stats()

    def _running(self) -> RunningMember:
        return self._served()[1]

    def _served(self) -> tuple[Life, RunningMember]:
        life = self._life
        member = life.member if life is not None else None
        if life is None or member is None:
            raise self._why_not(life)
        return life, member

    def _why_not(self, life: Life | None) -> errors.ApiError:
        """Why no call can be taken."""
        if life is not None and life.elsewhere:
            return belongs_to(life.elsewhere)
        if (life is None and not self._stopped.is_open()) or (life is not None and not life.up.is_open()):
            return errors.NotStarted()
        return errors.caused(errors.Stopped, life.failure if life is not None else None)()

    def lease(self, ttl: int, *, timeout: float | None = None) -> Lease:
        """Grant a lease of `ttl` seconds and keep it alive in the background: see `Lease`.

        `timeout` is for the grant."""
        bound, keeper = seconds(timeout), self._keeper()
        asked, future = time.monotonic(), self._waiting.grant(ttl)
        try:
            result = future.result(bound)
        except BaseException:
            unwanted(self.futures, future)
            raise
        return Lease(self.futures, keeper.keep(result, asked))

    def _outcome(self, call: Callable[[], Future[T]], timeout: float | None) -> T:
        bound = seconds(timeout)
        may_block()
        return call().result(bound)

    def _queues(self) -> Queues:
        return Queues(self.futures, self._keeper, self._post)

    def _post(self, call: Callable[[], object]) -> None:
        life = self._life
        if life is not None and not life.elsewhere:
            life.watches.post(call)

    def _lock_of(self, name: bytes, ttl: int, lease: KeptAlive | None, timeout: float | None) -> Lock:
        return Lock(self._queues(), name, ttl, lease, timeout)

    def _election_of(self, name: bytes) -> Election:
        return Election(self._queues(), name, self.watch)

    def _keeper(self) -> Keeper:
        return self._served()[0].keeper

    def _mailbox(self, request: bytes) -> Mailbox:
        """A watch begins."""
        return self._served()[0].watches.open(request)

    def _begun(self, request: bytes, start_revision: int) -> Watch:
        return Watch(self._mailbox(request), start_revision)

    def _submit(self, calls: Sequence[Call]) -> None:
        """Hand calls to the loop thread, with one wake-up however many there are."""
        self._served()[0].inbox.put(calls)

    def _submit_patient(self, calls: Sequence[Call | Piece]) -> None:
        """The same for calls that wait, in their order, until there is room for them."""
        self._served()[0].inbox.put_patient(calls)
