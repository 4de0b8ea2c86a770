"""A small server for the tests of sessions and connections: an echoing KV.Put and a few streams, no store."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from typing import Any

from metastore import errors
from metastore._core.grpc import Limits, MethodTable
from metastore._core.h2_request import Request
from metastore.net.client_conn import ConnLimits, Listener
from metastore.net.loop import Loop

PUT = 0
HOLD = 1
FAIL = 2
BIDI = 3
BIG = 4
BIDI_PATH = b"/test.Test/Bidi"
TABLE = MethodTable(
    {
        b"/etcdserverpb.KV/Put": PUT,
        b"/test.Test/Hold": HOLD,
        b"/test.Test/Fail": FAIL,
        BIDI_PATH: BIDI,
        b"/test.Test/Big": BIG,
    },
    streaming=[BIDI_PATH],
)


class EchoServer:
    """Put echoes its request; Hold is answered by `release`; Bidi echoes messages; Big answers n bytes."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.method_table = TABLE
        self.limits = limits if limits is not None else Limits()
        self.held: list[Request] = []
        self.count = 0
        self.big = 0
        self.pages = 0
        self.closed_streams = 0

    def handle(self, requests: list[Request]) -> None:
        for request in requests:
            self.count += 1
            method = request.method
            if method == PUT:
                request.complete(request.body)
            elif method == HOLD:
                self.held.append(request)
            elif method == FAIL:
                request.fail(errors.Compacted())
            elif method == BIG:
                self.big += 1
                request.complete(b"x" * int(request.body))
            else:
                self._bidi(request)

    def _bidi(self, request: Request) -> None:
        def closed() -> None:
            self.closed_streams += 1

        request.start(on_message=request.send, on_end=request.finish, on_close=closed)

    def expired(self, requests: list[Request]) -> None:
        self.held = [request for request in self.held if request not in requests]

    def release(self, reply: bytes = b"done") -> None:
        held, self.held = self.held, []
        for request in held:
            request.complete(reply)

    def http(self, method: str, path: str, headers: dict[str, str], body: bytes) -> tuple[int, str, bytes]:
        self.pages += 1
        if path == "/fail":
            raise RuntimeError("a mistake")
        if path == "/version":
            return 200, "application/json", b'{"etcdserver":"3.5.17"}'
        if path == "/echo":
            return 200, "text/plain", body
        return 404, "text/plain", b"404 page not found\n"


class Running:
    """A server (an EchoServer by default) on a port of its own, with its loop in a thread; a context manager."""

    def __init__(self, limits: Limits | None = None, conn_limits: ConnLimits | None = None, server: Any = None) -> None:
        self.loop = Loop()
        self.server = EchoServer(limits) if server is None else server
        self.listener = Listener(self.loop, "127.0.0.1:0", self.server, limits=conn_limits)
        #: It is called at the end of each turn. A test may put a function of its own around it.
        self.turn: Callable[[], object] = self.listener.flush_dirty
        self.address = self.listener.bound[0]
        self.host, _, port = self.address.rpartition(":")
        self.port = int(port)
        self._thread = threading.Thread(target=self.loop.run, args=(lambda: self.turn(),), daemon=True)

    def __enter__(self) -> Running:
        self._thread.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.loop.stop()
        self._thread.join(10)
        assert not self._thread.is_alive()
        self.listener.close()
        self.loop.close()

    def call(self, work: Callable[[], object], timeout: float = 10) -> object:
        """Run `work` in the loop's thread and return its result."""
        done = threading.Event()
        result: list[object] = []

        def run() -> None:
            result.append(work())
            done.set()

        self.loop.call_soon_threadsafe(run)
        assert done.wait(timeout)
        return result[0]


class Turns:
    """What each turn of a loop does. The loop's clock goes on by `cost` seconds with everything that is done."""

    def __init__(self, running: Running, cost: float) -> None:
        self.cost, self.time, self.done = cost, running.loop.now(), 0
        self.most = 0
        flush = running.turn

        def turn() -> None:
            flush()
            self.most, self.done = max(self.most, self.done), 0

        running.loop.now = lambda: self.time
        running.turn = turn

    def add(self) -> None:
        self.done += 1
        self.time += self.cost


def main() -> None:
    """Serve until killed. Prints the address."""
    loop = Loop()
    listener = Listener(loop, sys.argv[1] if len(sys.argv) > 1 else "127.0.0.1:0", EchoServer())
    sys.stdout.write(listener.bound[0] + "\n")
    sys.stdout.flush()
    loop.run(listener.flush_dirty)


if __name__ == "__main__":
    main()
