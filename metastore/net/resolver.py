"""Name resolution in a thread of its own, because a name server may take long and the loop's thread must not wait."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from ..addresses import split_address
from ..errors import OutOfResources
from ..threads import begin
from .loop import Loop

#: The number of threads that ask. They do not end, because a peer with a wrong name is looked up every two seconds.
MAX_THREADS: Final = 4
#: The number of names that may wait or be asked for. One more name gets an error at once.
MAX_NAMES: Final = 256

#: Address families and socket addresses, as getaddrinfo returns them.
Places = list[tuple[Any, ...]]
Resolved = Callable[[Places | str], object]


class Resolver:
    """A resolver turns host names into addresses. It belongs to the loop's thread.

    It has at most one question under way for each name; all callers that ask for the same name share the answer.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop = loop
        self._waiting: dict[tuple[str, int], list[Resolved]] = {}
        self._questions: queue.SimpleQueue[tuple[str, int] | None] = queue.SimpleQueue()
        self.threads: list[threading.Thread] = []
        self._closed = False

    def resolve(self, address: str, done: Resolved) -> None:
        """Calls `done` with the places of "host:port" (a scheme before it is allowed), or with the reason why there are
        none.

        A numeric host and a malformed address are answered at once, other names in a later turn. After `close` no call
        comes.
        """
        if self._closed:
            return
        try:
            host, port = split_address(address.rpartition("://")[2].rstrip("/"))
        except ValueError as error:
            done(str(error))
            return
        try:
            done(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST))
            return
        except (OSError, UnicodeError):
            self._ask((host, port), done)  # the host is a name

    def _ask(self, name: tuple[str, int], done: Resolved) -> None:
        waiting = self._waiting.get(name)
        if waiting is not None:
            waiting.append(done)
            return
        if len(self._waiting) >= MAX_NAMES:
            done(f"{name[0]}: {MAX_NAMES} other names are being looked up")
            return
        self._waiting[name] = [done]
        if len(self.threads) < min(MAX_THREADS, len(self._waiting)):
            try:
                self.threads.append(begin("resolve", self._run))
            except OutOfResources as error:
                if not self.threads:
                    del self._waiting[name]
                    done(f"{name[0]}: {error.text}")
                    return
        self._questions.put(name)

    def _run(self) -> None:
        while (name := self._questions.get()) is not None:
            try:
                answer: Places | str = socket.getaddrinfo(*name, type=socket.SOCK_STREAM)
            except (OSError, UnicodeError) as error:
                answer = f"{name[0]}: {error}"
            # If the loop was closed meanwhile, no caller waits any more.
            with contextlib.suppress(OSError):
                self._loop.call_soon_threadsafe(partial(self._answered, name, answer))

    def _answered(self, name: tuple[str, int], answer: Places | str) -> None:
        for done in self._waiting.pop(name, ()):
            done(answer)

    def close(self) -> None:
        """Answers no more calls; the threads end after their present question. Idempotent."""
        if not self._closed:
            self._closed = True
            self._waiting.clear()
            for _ in self.threads:
                self._questions.put(None)
