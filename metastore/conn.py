"""Listeners and client connections: sockets on one side, HTTP/2 sessions and HTTP/1.1 parsers on the other.

One client port speaks both: a connection that begins with HTTP/2's preface ("PRI") becomes a `Session`, anything
else is HTTP/1.1. Back pressure on one client: over `max_unsent` bytes that its socket does not take, it is not
read any more; when that lasts longer than `grace` seconds without progress, it is dropped.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol

import httptools

from metastore._core.grpc import Limits, MethodTable
from metastore._core.h2 import Session
from metastore._core.h2request import Request
from metastore.accept import Acceptor
from metastore.api.answers import Answer, Later
from metastore.loop import HANGUP, READ, WRITE, Loop, Timer

log = logging.getLogger("metastore.conn")

RECV_SIZE: Final = 256 * 1024
ACCEPTS_PER_TURN: Final = 64
BACKLOG: Final = 1024
MAX_WAITING: Final = 64  # requests of one HTTP/1.1 connection whose answers come later

REASONS: Final = {
    200: "OK", 400: "Bad Request", 401: "Unauthorized", 403: "Forbidden", 404: "Not Found",
    405: "Method Not Allowed", 408: "Request Timeout", 409: "Conflict", 412: "Precondition Failed",
    413: "Content Too Large", 429: "Too Many Requests", 431: "Request Header Fields Too Large",
    500: "Internal Server Error", 501: "Not Implemented", 503: "Service Unavailable", 504: "Gateway Timeout",
}


class Server(Protocol):
    """What the connections need from whoever answers."""

    method_table: MethodTable
    limits: Limits

    def handle(self, requests: list[Request]) -> None:
        """Take requests that are ready; answers may come at once or in a later turn."""

    def http(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | Later:
        """Answer one HTTP/1.1 request, now or later. `path` has its query; names are lower case."""


class ConnLimits:
    """Bounds of the connections of one listener; sizes in bytes, times in seconds."""

    def __init__(
        self,
        *,
        max_connections: int = 10_000,
        max_unsent: int = 4 * 1024 * 1024,
        grace: float = 30.0,
        handshake: float = 10.0,
        http_idle: float = 75.0,
        max_http_header: int = 32 * 1024,
        max_http_body: int = 2 * 1024 * 1024,
        sweep: float = 1.0,
    ) -> None:
        self.max_connections = max_connections
        self.max_unsent = max_unsent
        self.grace = grace
        self.handshake = handshake
        self.http_idle = http_idle
        self.max_http_header = max_http_header
        self.max_http_body = max_http_body
        self.sweep = sweep


class HttpError(Exception):
    """An HTTP/1.1 request that gets an error and the end of its connection."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Place:
    """A request's place in the order of answers."""

    __slots__ = ("answer", "head", "keep")

    def __init__(self, keep: bool, head: bool) -> None:
        self.keep = keep
        self.head = head
        self.answer: Answer | None = None


class HttpSession:
    """HTTP/1.1 on one connection (RFC 9112), by httptools: requests in order, one answer each. `wake` is called when an
    answer has come that was not there when its request was fed."""

    def __init__(self, server: Server, limits: ConnLimits, wake: Callable[[], object]) -> None:
        self._server = server
        self._wake = wake
        self._feeding = False
        self._places: deque[Place] = deque()  # of the requests that are not answered
        self._limits = limits
        self._parser = httptools.HttpRequestParser(self)
        self._output: list[bytes] = []
        self._path = b""
        self._headers: dict[str, str] = {}
        self._body: list[bytes] = []
        self._size = 0              # header bytes as RFC 9113 6.5.2 counts them
        self._body_size = 0
        self._raw = 0               # bytes of this request as they came
        self._in_body = False
        self._queued = 0
        self._expects = False
        self._retired = False
        #: True between requests, when nothing of the next one has come.
        self.idle = True
        self.closed = False

    def feed(self, data: bytes | memoryview) -> None:
        """Take bytes from the client; never raises for what they are."""
        if self.closed:
            return
        self._feeding = True
        try:
            self._parser.feed_data(data)
            if not self.idle:
                self._count_raw(len(data))
        except httptools.HttpParserUpgrade:
            # RFC 9110 7.8: an upgrade may be ignored. The request was answered; what follows is for nobody.
            self.closed = True
        except HttpError as error:
            self._refuse(error)
        except httptools.HttpParserCallbackError as error:
            cause = error.__context__
            if not isinstance(cause, HttpError):
                raise
            self._refuse(cause)
        except httptools.HttpParserError as error:
            self._refuse(HttpError(400, f"malformed HTTP request: {error}"))
        finally:
            self._feeding = False

    def take_output(self) -> bytes:
        """Bytes to send; empty when there are none."""
        output = b"".join(self._output)
        self._output.clear()
        self._queued = 0
        return output

    def _refuse(self, error: HttpError) -> None:
        place = Place(keep=False, head=False)
        self._places.append(place)
        self._answered(place, (error.status, "text/plain; charset=utf-8", f"{error.text}\n".encode()))

    def _count(self, size: int) -> None:
        self._size += size
        if self._size > self._limits.max_http_header:
            raise HttpError(431, "request header too large")

    def _count_raw(self, size: int) -> None:
        # The parser keeps a header, or a trailer, to itself until its line is complete.
        self._raw += size
        if not self._in_body and self._raw > self._limits.max_http_header:
            raise HttpError(431, "request header too large")
        if self._raw > self._limits.max_http_header + 2 * self._limits.max_http_body:
            raise HttpError(413, "request too large")

    def on_message_begin(self) -> None:
        self.idle = self._in_body = False
        self._raw = 0
        self._path = b""
        self._headers = {}
        self._body = []
        self._size = self._body_size = 0
        self._expects = False

    def on_url(self, url: bytes) -> None:
        self._path += url
        self._count(len(url))

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value) + 32)
        key = name.decode("latin-1").lower()
        self._headers[key] = value.decode("latin-1")
        if key == "expect" and value.lower() == b"100-continue":
            self._expects = True

    def on_headers_complete(self) -> None:
        self._in_body = True
        if self._expects and self._parser.get_http_version() == "1.1":
            self._output.append(b"HTTP/1.1 100 Continue\r\n\r\n")

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        if self._body_size > self._limits.max_http_body:
            raise HttpError(413, "request body too large")
        self._body.append(body)

    def on_message_complete(self) -> None:
        self.idle = True
        if self.closed:
            return
        if self._queued > self._limits.max_unsent or len(self._places) >= MAX_WAITING:
            raise HttpError(429, "too many requests at once")
        method = self._parser.get_method().decode("latin-1")
        path = self._path.decode("latin-1")
        place = Place(self._keeps(), method == "HEAD")
        self._places.append(place)
        answer = self._server.http(method, path, self._headers, b"".join(self._body))
        self._body = []
        if isinstance(answer, Later):
            answer.on_answer = partial(self._answered, place)
        else:
            self._answered(place, answer)

    def _answered(self, place: Place, answer: Answer) -> None:
        place.answer = answer
        while self._places and not self.closed and (first := self._places[0].answer) is not None:
            done = self._places.popleft()
            self._answer(*first, keep=done.keep and not (self._retired and not self._places), head=done.head)
        if not self._feeding:
            self._wake()

    def _keeps(self) -> bool:
        return bool(self._parser.should_keep_alive()) and not self._parser.should_upgrade()

    @property
    def quiet(self) -> bool:
        """Whether no request is under way, neither on its way to us nor without an answer."""
        return self.idle and not self._places

    def retire(self) -> None:
        """Take no request after the one that has begun."""
        self._retired = True
        if self.quiet:
            self.closed = True

    def _answer(self, status: int, kind: str, body: bytes, *, keep: bool, head: bool = False) -> None:
        lines = [f"HTTP/1.1 {status} {REASONS.get(status, 'Status')}", f"Content-Type: {kind}",
                 f"Content-Length: {len(body)}"]
        if not keep:
            lines.append("Connection: close")
            self.closed = True
        self._output.append("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
        if not head:
            self._output.append(body)
        self._queued += 200 + len(body)


class ClientConn:
    """One client's connection."""

    __slots__ = ("_blocked", "_first", "_hold", "_listener", "_loop", "_mask", "_progress", "_sock", "_unsent",
                 "deadline", "fd", "http", "reading", "session")

    def __init__(self, listener: Listener, sock: socket.socket) -> None:
        self._listener = listener
        self._loop = listener.loop
        self._sock = sock
        self.fd = sock.fileno()
        self.session: Session | None = None
        self.http: HttpSession | None = None
        self._first = b""
        self._unsent: memoryview | None = None
        self._blocked = False           # the socket takes no more at the moment
        self._hold = False              # not read: output over the limit, or all reading is paused
        self._mask = READ
        self._progress = 0              # bytes the session had given out when the deadline was set
        self.reading = True
        self.deadline: float | None = None
        self._loop.add(self.fd, READ, self.on_event)
        self.set_deadline(listener.conn_limits.handshake)

    # ---- what the loop calls

    def on_event(self, events: int) -> None:
        """The socket is ready for something."""
        if events & WRITE:
            self._blocked = False
            self.flush()
        if events & READ:
            self.on_readable()
        elif events & HANGUP and self._sock.fileno() >= 0:
            self.close()

    def on_readable(self) -> None:
        """Read once: what does not fit comes in the next turn, after the other connections."""
        buffer = self._listener.buffer
        try:
            n = self._sock.recv_into(buffer)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if n == 0:
            self.close()
        elif self.session is not None:
            requests = self.session.feed(buffer, n, self._loop.now())
            if requests:
                self._listener.server.handle(requests)
        elif self.http is not None:
            self._feed_http(buffer[:n])
        else:
            self._sniff(bytes(buffer[:n]))

    def _sniff(self, data: bytes) -> None:
        """Decide by the first three bytes: no HTTP/1.1 method begins with "PRI"."""
        data = self._first + data
        listener = self._listener
        if b"PRI".startswith(data[:3]) and len(data) < 3:
            self._first = data
            return
        self._first = b""
        if data.startswith(b"PRI"):
            self.session = Session(listener.server.method_table, listener.server.limits, listener.dirty)
            self.session.owner = self
            requests = self.session.feed(data, len(data), self._loop.now())
            if requests:
                listener.server.handle(requests)
        else:
            self.http = HttpSession(listener.server, listener.conn_limits, self.flush)
            self._feed_http(data)

    def _feed_http(self, data: bytes | memoryview) -> None:
        http = self.http
        assert http is not None
        was_idle = http.idle
        http.feed(data)
        if http.idle or was_idle:
            # A request must be complete within `handshake` seconds of its first byte.
            self.set_deadline(self._listener.conn_limits.http_idle if http.idle
                              else self._listener.conn_limits.handshake)
        self.flush()

    # ---- output

    def flush(self) -> None:
        """Send what the session has, until it has no more or the socket takes no more."""
        while not self._blocked and self._sock.fileno() >= 0:
            if self._unsent is None:
                data = self._take()
                if not data:
                    break
                self._unsent = memoryview(data)
            try:
                sent = self._sock.send(self._unsent)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.close()
                return
            if sent == len(self._unsent):
                self._unsent = None
            else:
                self._unsent = self._unsent[sent:]
                self._blocked = sent == 0
        if self._sock.fileno() >= 0:
            self._after_flush()

    def _take(self) -> bytes:
        if self.session is not None:
            return self.session.take_output()
        return self.http.take_output() if self.http is not None else b""

    def _after_flush(self) -> None:
        session = self.session
        over = self._blocked
        if self._unsent is None and (session.closed if session is not None else
                                     self.http is not None and self.http.closed):
            self.close()
            return
        if session is not None:
            limits = self._listener.conn_limits
            pending = session.pending_output + (len(self._unsent) if self._unsent is not None else 0)
            over = pending > limits.max_unsent
            self._watch_progress(over or self._unsent is not None)
            # Without a socket that is full, the client's window is: only reading on can open it again.
            over = over and self._blocked
            if session.parked_count:
                requests = session.unpark()
                if requests:
                    self._listener.server.handle(requests)
        if over != self._hold or self._blocked != bool(self._mask & WRITE):
            self._hold = over
            self.update()

    def _watch_progress(self, stuck: bool) -> None:
        """A client that takes nothing for `grace` seconds while it owes is dropped; any progress starts anew."""
        assert self.session is not None
        if not stuck:
            if self.deadline is not None and self.session.greeted:
                self.set_deadline(None)
            return
        done = self.session.taken - (len(self._unsent) if self._unsent is not None else 0)
        if self.deadline is None or done != self._progress:
            self._progress = done
            self.set_deadline(self._listener.conn_limits.grace)

    def update(self) -> None:
        """Tell the loop what to watch for."""
        mask = (0 if self._hold or self._listener.paused else READ) | (WRITE if self._blocked else 0)
        if mask != self._mask and self._sock.fileno() >= 0:
            self._mask = mask
            self._loop.modify(self.fd, mask)

    # ---- life

    def set_deadline(self, delay: float | None) -> None:
        """Drop this connection `delay` seconds from now unless another deadline is set (None: never)."""
        if delay is None:
            self.deadline = None
            self._listener.suspects.discard(self)
        else:
            self.deadline = self._loop.now() + delay
            self._listener.suspects.add(self)

    def retire(self) -> None:
        """Ask the client to go elsewhere; what it sends before it has heard is still answered."""
        if self.session is not None:
            self.session.retire()
        elif self.http is None:
            # Nothing has come: the client does not count on this connection yet.
            self.close()
        else:
            self.http.retire()
            self.flush()

    def shutdown(self) -> None:
        """Let running calls finish, take no new ones."""
        if self.session is not None:
            self.session.shutdown()
        elif self.http is None or self.http.quiet:
            self.close()

    def close(self) -> None:
        """Drop the connection; idempotent. Requests of it that are still in work are answered into the void."""
        if self._sock.fileno() < 0:
            return
        self.set_deadline(None)
        self._listener.conns.discard(self)
        self._loop.remove(self.fd)
        self._sock.close()
        self._unsent = None
        if self.session is not None:
            session = self.session
            session.owner = None
            session.close()
        self.http = None


class Listener:
    """Listening sockets of one server, and their connections.

    `addresses` is one "host:port" or several ("[::1]:2379" for IPv6; port 0 lets the system choose; an empty host
    means all). `bound` holds what came of them. Raises errors.AddressInUse, errors.ConfigError.
    """

    def __init__(self, loop: Loop, addresses: str | Iterable[str], server: Server, *,
                 limits: ConnLimits | None = None) -> None:
        self.loop = loop
        self.server = server
        self.conn_limits = limits if limits is not None else ConnLimits()
        self.conns: set[ClientConn] = set()
        self.suspects: set[ClientConn] = set()
        self.dirty: list[Session] = []
        self.buffer = memoryview(bytearray(RECV_SIZE))
        self.paused = False
        self.refused = 0
        self._timer: Timer | None = None
        self._acceptor = Acceptor(loop, addresses, self._take_in, backlog=BACKLOG, per_turn=ACCEPTS_PER_TURN)
        self.bound = self._acceptor.bound
        self._sweep_later()

    def _take_in(self, client: socket.socket, _where: str) -> None:
        if len(self.conns) >= self.conn_limits.max_connections:
            self.refused += 1
            client.close()
            return
        try:
            client.setblocking(False)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, 30)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, 10)
            client.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)
        except OSError:
            client.close()
            return
        conn = ClientConn(self, client)
        self.conns.add(conn)
        if self.paused:
            conn.update()

    # ---- what the node calls

    def flush_dirty(self) -> None:
        """Send the output of all connections that have any; at the end of a turn."""
        dirty = self.dirty
        while dirty:
            # Flushing may make other sessions dirty (a parked request that is answered at once).
            batch = dirty[:]
            dirty.clear()
            for session in batch:
                conn = session.owner
                if conn is not None:
                    conn.flush()

    def pause_all(self) -> None:
        """Read from no client until `resume_all`: the node cannot take more work."""
        if not self.paused:
            self.paused = True
            for conn in self.conns:
                conn.update()

    def resume_all(self) -> None:
        """Read again."""
        if self.paused:
            self.paused = False
            for conn in self.conns:
                conn.update()

    def retire(self) -> None:
        """Accept no more connections and ask all clients to go elsewhere. Connections close by themselves when their
        clients have heard and their calls are finished (`conns` gets empty); `shutdown` is for the others."""
        self._acceptor.close()
        for conn in list(self.conns):
            conn.retire()
        self.flush_dirty()

    def shutdown(self) -> None:
        """Accept no more connections, take no more calls; connections close as their calls finish."""
        self._acceptor.close()
        for conn in list(self.conns):
            conn.shutdown()
        self.flush_dirty()

    def close(self) -> None:
        """Drop everything; idempotent."""
        self._acceptor.close()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for conn in list(self.conns):
            conn.close()

    # ---- deadlines

    def _sweep_later(self) -> None:
        self._timer = self.loop.call_later(self.conn_limits.sweep, self._sweep)

    def _sweep(self) -> None:
        now = self.loop.now()
        for conn in [conn for conn in self.suspects if conn.deadline is not None and conn.deadline <= now]:
            log.info("dropping a client that made no progress (fd %d)", conn.fd)
            conn.close()
        self._sweep_later()
