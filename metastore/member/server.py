"""The thread of a member opens the member step by step, lets it serve, and closes it."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable
from functools import partial

from .. import errors
from ..config import Config
from ..failpoints import Failpoints
from ..net.descriptors import check_free, lack_of, let_go, raise_limit
from ..net.loop import Loop
from ..net.resolver import Resolver
from ..settings import IN_MEMORY
from ..threads import Gate
from . import memory_guard
from .closing import Closing
from .disk import CLOSE_TIMEOUT, Disk, absolute
from .running import RunningMember

STUCK = 0.5  # seconds of a write or sync after which a stop takes the disk for one that stands still


class Server:
    """`run` opens a member, serves and closes it, in the thread that calls it. The other methods are for other threads.

    `on_ready` is called with the member, in the thread of `run`, when the member serves.
    """

    def __init__(
        self, config: Config, failpoints: Failpoints, on_ready: Callable[[RunningMember], object]
    ) -> None:  # fmt: skip
        self._descriptors = raise_limit()
        check_free()
        # Once and for all, for the program may change its working directory.
        self._memory = memory_guard.find(config.changed(node={"data_dir": absolute(config.node.data_dir)}))
        self._config = self._memory.config
        check_supported(self._config)
        self._failpoints = failpoints
        self._on_ready = on_ready
        self._started_at = time.monotonic()
        self._closing = Closing()
        self._loop = Loop(now=clock_of(self._config))
        self._closing.callback(self._loop.close)
        self._resolver = Resolver(self._loop)
        self._closing.callback(self._resolver.close)
        self._disk: Disk | None = None
        self._stopping = Gate()  # a stop was requested, perhaps before the loop runs
        self._stop_asked = math.inf  # the time of that request (time.monotonic())

    def run(self) -> None:
        """Opens everything, serves until the member is stopped, and closes everything.

        Raises MetaStoreError, and Stopped if the stop was requested before everything was open.
        """
        try:
            self._open_and_serve()
        except (OSError, errors.MetaStoreError) as error:
            lack = lack_of(error)
            if lack is None or lack is error:
                raise
            raise lack from error

    def _open_and_serve(self) -> None:
        with self._closing:
            self._go_on()
            self._disk = Disk(self._config, self._failpoints, self._loop.now, self._stopping, self._closing)
            self._go_on()
            member = RunningMember(
                self._config, self._disk, self._memory, self._loop, self._resolver, self._failpoints, self._closing,
                descriptors=self._descriptors, stopping=self._stopping, started_at=self._started_at,
                on_ready=self._on_ready,
            )  # fmt: skip
            member.serve()

    def close(self) -> None:
        """Give up a server that `run` was not called of."""
        self._closing.close()

    def left_behind(self) -> None:
        """This is a copy in a fork of the process that serves. Keep nothing open that it closes: its port, its locks,
        the connections of its clients."""
        let_go(self._loop.descriptors() + (self._disk.descriptors() if self._disk is not None else []))

    def _go_on(self) -> None:
        if self._stopping.is_open():
            raise errors.Stopped()

    def disk_waits(self) -> str:
        """Says what waits for a disk that does not answer; empty if nothing does."""
        if time.monotonic() - self._stop_asked >= CLOSE_TIMEOUT:
            return f"closing has taken {CLOSE_TIMEOUT:.0f} s"
        closing = self._closing.waits(STUCK)
        if closing:
            return closing
        took = self._disk.wal.sync_pending_seconds if self._disk is not None else 0.0
        return f"a sync of the log has been under way for {took:.1f} s" if took >= STUCK else ""

    def forgotten(self) -> None:
        """Begins to stop, as `stop_soon`. For the collector, which runs in any thread, at any moment: this takes no
        lock that the same thread may hold."""
        self._loop.call_soon_threadsafe(self.stop_soon)

    def stop_soon(self) -> None:
        """Begins to drain, or gives up opening. Idempotent."""
        self._stopping.open()
        self._stop_asked = min(self._stop_asked, time.monotonic())
        with contextlib.suppress(OSError, ValueError):
            self._loop.call_soon_threadsafe(_look)


def clock_of(config: Config) -> Callable[[], float]:
    """The clock of a member's loop, in seconds."""
    if config.raft.read_only == "lease":
        # A lease must not outlast a suspended machine. This clock goes on while the machine is suspended, and
        # time.monotonic does not.
        return partial(time.clock_gettime, time.CLOCK_BOOTTIME)
    return time.monotonic


def _look() -> None:
    """The turn that follows begins the stop."""


def check_supported(config: Config) -> None:
    """Refuses settings that contradict each other. Raises ConfigError."""
    raft, limits = config.raft, config.limits
    if config.node.data_dir == IN_MEMORY:
        _check_in_memory(config)
    if limits.max_inflight_requests < raft.batch_max_size:
        raise errors.ConfigError("limits.max_inflight_requests is less than raft.batch_max_size")
    if limits.max_inflight_bytes < raft.batch_max_bytes:
        raise errors.ConfigError("limits.max_inflight_bytes is less than raft.batch_max_bytes")
    # A value made of separators grows by a tenth when it is framed.
    if raft.batch_max_bytes < limits.max_request_bytes * 1.1 + 64:
        raise errors.ConfigError("raft.batch_max_bytes must exceed limits.max_request_bytes by a tenth")


def _check_in_memory(config: Config) -> None:
    """Refuse what a member without files cannot do. Raises ConfigError."""
    why = f'node.data_dir = "{IN_MEMORY}"'
    if config.cluster.state != "new" or len(config.cluster.initial) > 1:
        raise errors.ConfigError(f"{why}: a member without files must be alone, for it forgets what it has promised")
    if config.storage.engine != "memory":
        raise errors.ConfigError(f'{why} needs storage.engine = "memory", not "{config.storage.engine}"')
