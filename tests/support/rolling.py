"""A rolling restart under writers that reach all members, as etcd's clients do. One member after the other is stopped
and started, and the writers choose among those that are there."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from .client import Client, Failure
from .cluster import Cluster, Member


@dataclass
class Outcome:
    """What the writers met. `longest` is the longest time, in seconds, between two acknowledged puts of one writer."""

    acked: int = 0
    longest: float = 0.0
    errors: list[tuple[float, Failure]] = field(default_factory=list)


class Writers:
    """Threads that put without a pause through a channel that balances over all endpoints, from `with` to its end.

    A put that fails is noted and not repeated. Only the application can decide to repeat what may have been done, and
    etcd's own clients do not do it either.
    """

    def __init__(self, cluster: Cluster, count: int = 6) -> None:
        self.outcome = Outcome()
        self._began = time.monotonic()
        self._stopping = threading.Event()
        self._changed = threading.Condition()
        target = "ipv4:" + cluster.endpoints
        self._clients = [Client(target, policy="round_robin") for _ in range(count)]
        self._threads = [
            threading.Thread(target=self._run, args=(client, b"rolling/%d" % number), daemon=True)
            for number, client in enumerate(self._clients)
        ]

    def _run(self, client: Client, key: bytes) -> None:
        last, number = time.monotonic(), 0
        while not self._stopping.is_set():
            number += 1
            try:
                client.put(key, b"%d" % number)
            except Failure as failure:
                with self._changed:
                    self.outcome.errors.append((time.monotonic() - self._began, failure))
                self._stopping.wait(0.01)
                continue
            now = time.monotonic()
            with self._changed:
                self.outcome.acked += 1
                self.outcome.longest = max(self.outcome.longest, now - last)
                self._changed.notify_all()
            last = now

    def wait_acks(self, more: int, timeout: float = 60.0) -> None:
        """Return once `more` further puts were acknowledged."""
        with self._changed:
            target = self.outcome.acked + more
            assert self._changed.wait_for(lambda: self.outcome.acked >= target, timeout), self.outcome

    def __enter__(self) -> Writers:
        for thread in self._threads:
            thread.start()
        self.wait_acks(len(self._threads))
        # The measurement begins here, so the time of the first connections is no gap.
        with self._changed:
            self.outcome = Outcome()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a writer hangs"
        for client in self._clients:
            client.close()


def stop_cleanly(member: Member) -> None:
    """Stop a member with SIGTERM and wait for its end. etcd ends by the signal itself."""
    code = member.stop()
    assert code == (-signal.SIGTERM if member.kind == "etcd" else 0), code


def restart_all(
    cluster: Cluster, writers: Writers, stop: Callable[[Member], None] = stop_cleanly, leader_last: bool = True
) -> None:
    """Restart every member once, the first leader last or first, while the writers go on."""
    leader = cluster.leader()
    order = sorted(cluster.members, key=lambda member: (member is leader) == leader_last)
    for member in order:
        stop(member)
        writers.wait_acks(200)
        member.launch().await_ready()
        writers.wait_acks(200)
