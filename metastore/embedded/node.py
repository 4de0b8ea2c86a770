"""A node: the parts wired together, started, stopped, and offered to the process they live in."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Sequence

from .. import errors
from ..config import Config
from ..failpoints import Failpoints
from ..member.drain import CLOSING
from ..member.running import RunningMember
from ..member.server import Server
from ..member.signals import kept_away
from .answers import enter_loop, leave_loop, may_block
from .calls import Call, EmbeddedKV, Futures

log = logging.getLogger("metastore.node")


#: Calls of this process that one turn of the loop takes in: some two milliseconds of work.
INBOX_SLICE = 300
#: Seconds until patient calls are looked at again for which there was no room.
ROOM_RETRY = 0.001


class Node(EmbeddedKV):
    """One member. `with Node(Config(...)) as node:` starts and stops it; no signal handler is taken.

    `start` returns when the node serves; `wait` blocks until it stopped and raises what stopped it; `stop` drains for
    at most `limits.drain_timeout` seconds and may be called from any thread, any number of times. A stopped node cannot
    be started again: make another. The calls of the store (`put`, `range`, `txn`, ...) are thread-safe; they raise
    `errors.Stopped` when the node does not run. `futures` has the same calls, each giving a Future.
    """

    def __init__(self, config: Config | None = None, *, failpoints: Failpoints | None = None) -> None:
        """A node with these settings, the defaults without any; nothing is opened yet. `failpoints` are for tests."""
        if config is not None and not isinstance(config, Config):
            raise TypeError(f"config must be a Config, not {type(config).__name__}; Config.from_dict takes a dict")
        self.config = config if config is not None else Config()
        self.failpoints = failpoints if failpoints is not None else Failpoints.from_environment()
        self.futures = Futures(self._submit, self._submit_patient)
        self._lock = threading.Lock()
        self._inbox: deque[Call] = deque()
        self._patient: deque[Call] = deque()
        self._posted = False
        self._server: Server | None = None
        self._member: RunningMember | None = None  # from when it serves on
        self._thread: threading.Thread | None = None
        #: Whether the failure that stopped the node is in the log already.
        self.told = False
        #: Whether `stop` left the node waiting for its disk.
        self.gave_up = False
        self._up = threading.Event()
        self._down = threading.Event()
        self._failure: BaseException | None = None

    def start(self) -> None:
        """Open the data directory, recover, bind the addresses and serve.

        A member that joins a cluster returns when it is in. Raises a MetaStoreError, after which everything is closed
        again: ConfigError, DataDirInUse, AddressInUse, DamagedData, DiskFailed, OutOfMemory, and where the cluster
        refuses this member RemovedFromCluster, MustJoinAnew or AnotherProcess. Raises Stopped when `stop` was called
        before, or meanwhile.
        """
        with self._lock:
            if self._thread is not None:
                raise errors.ConfigError("this node was started before; make another one")
            if self._down.is_set():
                raise errors.Stopped()
            self._server = Server(self.config, self.failpoints, on_ready=self._serves)
            self._thread = threading.Thread(target=self._run, name="metastore-loop", daemon=True)
            # The signals are the affair of whoever this process belongs to, and of its own threads.
            with kept_away():
                self._thread.start()
        self._up.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def _serves(self, member: RunningMember) -> None:
        self._member = member
        self._up.set()

    def _run(self) -> None:
        server = self._server
        assert server is not None
        enter_loop()
        try:
            server.run()
        except BaseException as failure:  # carried to the thread that waits, whatever it is
            self._failure = failure
            ours = isinstance(failure, errors.MetaStoreError)
            if self._up.is_set() or not ours:  # else start() raises it, and whoever called start() tells
                log.critical("the node stops: %s", errors.reason(failure), exc_info=not ours)
                self.told = True
                if isinstance(failure, errors.MetaStoreError):
                    failure.told = True
        finally:
            self._down.set()
            self._refuse_inbox()
            leave_loop()
            self._up.set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until the node has stopped, at most `timeout` seconds, without one for ever; whether it has.

        Raises what made it stop, unless that was `stop`: a MetaStoreError, or whatever else went wrong inside. In the
        loop's thread it raises RuntimeError."""
        may_block()
        stopped = self._down.wait(timeout)
        if stopped and self._failure is not None:
            raise self._failure
        return stopped

    def stop(self) -> None:
        """Answer what is under way, mark the log's end, close. Returns when that is done; never raises.

        A disk that stands still is not waited for: after `limits.drain_timeout` and a second this returns, and what
        waits for the disk ends with the process (`gave_up`). All that was acknowledged is on disk by then."""
        with self._lock:
            server, thread = self._server, self._thread
        if server is None or thread is None:
            self._down.set()
            return
        server.stop_soon()
        if thread is threading.current_thread():
            return
        deadline = time.monotonic() + self.config.limits.drain_timeout + CLOSING
        while not self.gave_up:
            thread.join(max(0.05, deadline - time.monotonic()))
            if not thread.is_alive():
                return
            self._give_up(server)

    def _give_up(self, server: Server) -> None:
        """Time is up: where it is the disk that is waited for, wait no more."""
        waits = server.disk_waits()
        if waits:
            log.warning("stopping without waiting any longer for the disk: %s", waits)
            self.gave_up = True
            self._down.set()
            self._refuse_inbox()

    def __enter__(self) -> Node:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

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
        if self._down.is_set():
            raise errors.Stopped()
        if self._member is None:
            raise errors.NotStarted()
        return self._member

    def _submit(self, calls: Sequence[Call]) -> None:
        """Hand calls to the loop thread, with one wake-up however many there are."""
        self._hand_over(self._inbox, calls)

    def _submit_patient(self, calls: Sequence[Call]) -> None:
        """The same for calls that wait, in their order, until there is room for them."""
        self._hand_over(self._patient, calls)

    def _hand_over(self, inbox: deque[Call], calls: Sequence[Call]) -> None:
        member = self._running()
        inbox.extend(calls)
        if not self._posted:
            self._posted = True
            member.loop.call_soon_threadsafe(self._take_inbox)
        if self._down.is_set():
            # The node stopped between the check and the hand-over: nobody else would answer these.
            self._refuse_inbox()

    def _take_inbox(self) -> None:
        """A slice of what came in; the rest in the next turn, for others want the loop too."""
        member = self._member
        assert member is not None
        self._posted = False
        left = INBOX_SLICE
        for inbox, patient in ((self._inbox, False), (self._patient, True)):
            while inbox and left and not (patient and member.crowded()):
                member.call(*inbox.popleft())
                left -= 1
        if (self._inbox or self._patient) and not self._posted:
            self._posted = True
            member.loop.call_later(0 if self._inbox or not left else ROOM_RETRY, self._take_inbox)

    def _refuse_inbox(self) -> None:
        for inbox in (self._inbox, self._patient):
            with contextlib.suppress(IndexError):
                while True:
                    inbox.popleft()[2].fail(errors.Stopped())
