"""Listeners and client connections: sockets on one side, HTTP/2 sessions and HTTP/1.1 parsers on the other.

One client port speaks both protocols. A connection that begins with the preface of HTTP/2 ("PRI") becomes a `Session`;
any other connection is treated as HTTP/1.1. Each client meets back pressure: when its socket has left more than
`max_unsent` bytes of output, the server stops reading from it. A client that has replies to take and takes less than
`min_rate` for `grace` seconds is dropped.

A client that takes nothing of a small reply is left alone until others need what it holds: the place of its
connection, or the room of its requests. Then it is the first that goes.

No client holds up the others. Sending, HTTP pages and the unpacking of compressed messages each have a budget per turn
of the loop, and the work that is left waits for the next turn. When all places are taken, an existing connection may
have to make room for a new one; `places.py` chooses it. `sweeper.py` closes the connections whose time is over, and
`endings.py` gives back what they held.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Final, Protocol

from metastore._core.grpc import Limits, MethodTable
from metastore._core.h2 import Session
from metastore._core.h2_channel import Channel, Flusher, flush_all
from metastore._core.h2_expiry import expire
from metastore._core.h2_request import Request, unpack
from metastore.api.answers import Answer, Later
from metastore.net.accept import Acceptor, origin
from metastore.net.endings import Endings
from metastore.net.http1 import HttpSession
from metastore.net.loop import GONE, HANGUP, READ, WRITE, Loop
from metastore.net.places import Places
from metastore.net.sweeper import Sweeper

log = logging.getLogger("metastore.conn")

#: Bytes that are read of a connection in one turn. The smallest frames are 12 bytes. A frame that begins a stream takes
#: 3 us, one that is refused 0.7 us, and twice that on a busy machine. With 4,096 streams this makes 14 ms; four times
#: as many bytes took 28 ms. With half as many, puts of many clients cost 5 % more.
RECV_SIZE: Final = 64 * 1024
ACCEPTS_PER_TURN: Final = 64
BACKLOG: Final = 1024
#: How many connections are looked at before a newcomer is refused, because each had a request waiting.
LOOKS: Final = 8
TOLD_PER_TURN: Final = 200  # connections that are told of a stop in one turn; this takes 5 ms
#: Bytes of HTTP/1.1 that are parsed at a time: some hundred requests at most, a few milliseconds.
HTTP_SIZE: Final = 4096
#: Bytes of messages that are unpacked in one turn, plus at most the largest message; this takes about 10 ms.
UNPACK_SIZE: Final = 1024 * 1024
#: Bytes that one connection may send in one turn. To make the frames of a MiB, and to hand them to the system, takes 1
#: to 5 ms.
SEND_SIZE: Final = 512 * 1024
#: Seconds of one turn for sending, and for pages.
SEND_TIME: Final = 0.004
PAGE_TIME: Final = 0.002
#: A client may leave this many reply bytes unread for as long as nobody needs the room. A debugger may hold it, or its
#: program may take its time with the events of a watch; it would only come back if it was sent away.
PATIENT_SIZE: Final = 64 * 1024
#: How much of what its client asked for waits on a connection: nothing; little, which may stay; much, which may not.
NOTHING, LITTLE, MUCH = range(3)
#: Seconds between two searches for calls that are past their grpc-timeout.
EXPIRE: Final = 0.1
#: Seconds between two log lines about the same event, if strangers can cause it.
SAY_AGAIN: Final = 10.0


class RequestHandler(Protocol):
    """The connections pass complete requests to an object with these methods."""

    method_table: MethodTable
    limits: Limits

    def handle(self, requests: list[Request]) -> None:
        """Take requests that are ready; answers may come at once or in a later turn."""

    def expired(self, requests: list[Request]) -> None:
        """These requests were answered with DEADLINE_EXCEEDED. Those of their operations that are not in
        the log must not get there.
        """

    def http(self, method: str, path: str, headers: dict[str, str], body: bytes) -> Answer | Later:
        """Answer one HTTP/1.1 request, now or later. `path` has its query; names are lower case."""


class ConnLimits:
    """These limits bound the connections of one listener. Sizes are in bytes, times in seconds, `min_rate` in bytes a
    second.

    `why_max` is the text by which the log explains where `max_connections` comes from.
    """

    def __init__(
        self,
        *,
        max_connections: int = 10_000,
        why_max: str = "limits.max_connections",
        max_unsent: int = 4 * 1024 * 1024,
        grace: float = 30.0,
        min_rate: float = 8 * 1024,
        handshake: float = 10.0,
        http_idle: float = 75.0,
        max_http_header: int = 32 * 1024,
        max_http_body: int = 64 * 1024,
        sweep: float = 1.0,
    ) -> None:
        self.max_connections = max_connections
        self.why_max = why_max
        self.max_unsent = max_unsent
        self.grace = grace
        self.min_rate = min_rate
        self.handshake = handshake
        self.http_idle = http_idle
        self.max_http_header = max_http_header
        self.max_http_body = max_http_body
        self.sweep = sweep


class ClientConn(Channel):
    """One client's connection. What nearly every event of it needs is in `Channel`."""

    __slots__ = (
        "_first",
        "_listener",
        "_progress",
        "_sock",
        "_stuck_at",
        "_waited",
        "at",
        "deadline",
        "http",
        "origin",
        "since",
        "stalled",
    )

    def __init__(self, listener: Listener, sock: socket.socket, where: str) -> None:
        super().__init__(sock.fileno(), listener.loop, listener.room, listener.server.handle, READ, SEND_SIZE)
        self._listener = listener
        self._sock = sock
        self.http: HttpSession | None = None
        self._first = b""
        self._stuck_at = 0.0  # when the deadline for taking replies was set
        self._progress = (0, 0)  # what the client had taken then
        self._waited = 0  # bytes that waited for it then
        self.stalled = False  # little waits, and the client has not taken that for `grace` seconds
        self.deadline: float | None = None
        self.since = self._loop.now()
        self.origin = where  # see `places.Guest`
        self.at = 0
        self._loop.add(self.fd, READ, self.on_event)
        self.set_deadline(listener.conn_limits.handshake)

    # ---- what its compiled half calls

    def other_event(self, events: int) -> None:
        """The socket is ready for something else than to be read."""
        if events & WRITE:
            self._blocked = False
            self.flush()
        if events & READ:
            self.on_readable()
        elif events & (HANGUP | GONE) and self.opened:
            self.close()

    def read_first(self) -> None:
        """Read before it is known what protocol the client speaks, or where that is HTTP/1.1."""
        if not self.opened or (self.http is not None and self.http.waiting):
            return
        try:
            data = self._sock.recv(HTTP_SIZE)
        except BlockingIOError:
            return
        except OSError:
            self.close()
            return
        if not data:
            self.close()
        elif self.http is not None:
            self._feed_http(data)
        else:
            self._sniff(data)

    def handle_first(self, requests: list[Request]) -> None:
        """The handler gets requests of a connection that may be entitled to its place now."""
        if not self.settled and self.has_asked:
            self._listener.places.settle(self)
        self._listener.server.handle(requests)

    def take_page(self) -> bytes:
        """Return output of HTTP/1.1."""
        return self.http.take_output() if self.http is not None else b""

    def flush_later(self) -> None:
        """Go on with sending in the next turn."""
        self._listener.flush_later(self)

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
                self.handle_first(requests)
        else:
            limits = listener.conn_limits
            self.http = HttpSession(
                listener.server.http,
                listener.server.limits,
                self.flush,
                max_header=limits.max_http_header,
                max_body=limits.max_http_body,
            )
            self._feed_http(data)

    # ---- HTTP/1.1

    def _feed_http(self, data: bytes | memoryview) -> None:
        http = self.http
        assert http is not None
        was_idle = http.idle
        http.feed(data)
        if http.idle or was_idle:
            # A request must be complete within `handshake` seconds of its first byte.
            self.set_deadline(
                self._listener.conn_limits.http_idle if http.idle else self._listener.conn_limits.handshake
            )
        if http.ready:
            self._listener.answer_later(self)
        self.flush()

    def answer(self) -> bool:
        """Answer the next request of HTTP/1.1; whether there are more. None is read meanwhile."""
        http = self.http
        if http is None or not http.ready or self.unsent:
            return False  # when the client has taken what it was given, `flush` comes back to it
        http.answer_next()
        if http.idle:
            self.set_deadline(self._listener.conn_limits.http_idle)
        self.flush()
        return self.http is not None and http.ready

    # ---- output

    def after_flush(self) -> None:
        """Something is left, or was left before: look at all that may follow from it."""
        session, http, unsent = self.session, self.http, self.unsent
        if unsent != self._owed:
            self._listener.server.limits.total_output += unsent - self._owed
            self._owed = unsent
        if not unsent and (session.closed if session is not None else http is not None and http.closed):
            self.close()
            return
        over = self._blocked
        if session is not None:
            pending = session.pending_output + unsent
            # A client may leave the events of its watchers unread, for no more are sent then. What the socket does not
            # take may be such events.
            firm = session.pending_output - session.patient_output + (0 if session.patient_streams else unsent)
            much = firm > PATIENT_SIZE or (unsent > 0 and not session.patient_streams)
            stuck = MUCH if much else LITTLE if pending else NOTHING
            if stuck != self._stuck:
                self._watch_progress(stuck)
            # The socket is not full, so the client's window is. Only further reading can open the window again.
            over = (over and pending > self._listener.conn_limits.max_unsent) or session.choked > 0
            if session.parked_count:
                requests = session.unpark()
                if requests:
                    self._listener.server.handle(requests)
        elif http is not None and http.waiting:
            over = True
            if not unsent and http.ready:
                self._listener.answer_later(self)
        if over != self._hold or self._blocked != bool(self._mask & WRITE):
            self._hold = over
            self.update()

    @property
    def taken(self) -> tuple[int, int]:
        """Bytes that the socket took, and bytes of replies among them."""
        session = self.session
        return (-self._owed, -self._owed) if session is None else (session.taken - self._owed, session.replied)

    def took(self, before: tuple[int, int]) -> int:
        """Bytes that the client has taken since `taken` was `before`.

        All bytes count while the socket is full. Otherwise only replies count: a client that never opens its window
        still takes the answers to its PINGs.
        """
        which = 0 if self.unsent else 1
        return self.taken[which] - before[which]

    @property
    def owes(self) -> int:
        """Reply bytes that the client has not taken."""
        return self._owed + (self.session.pending_output if self.session is not None else 0)

    @property
    def asks(self) -> int:
        """Bytes of requests that are not answered, or whose answers the client has not taken."""
        return self.session.buffered if self.session is not None else 0

    def _watch_progress(self, stuck: int) -> None:
        """Begin to watch whether the client takes what it asked for, or end that."""
        self._stuck = stuck
        if stuck:
            self._watch_again()
        else:
            assert self.session is not None
            self.stalled = False
            self.set_deadline(None if self.session.asked else max(0.0, self._first_by() - self._loop.now()))

    def _watch_again(self) -> None:
        """From now on the client has `grace` seconds to take what it should."""
        self._progress = self.taken
        self._waited = self.owes
        self._stuck_at = self._loop.now()
        self.set_deadline(self._listener.conn_limits.grace)

    def _first_by(self) -> float:
        """The time by which the first request must be complete.

        A request that is under way may take longer, like any request. A large one could otherwise never get through
        over a slow link, because its client would start again from the beginning with each connection.
        """
        by = self.since + self._listener.conn_limits.handshake
        if self.session is not None and self.session.open_streams:
            limits = self.session.limits
            by += min(self.session.received, limits.max_message) / limits.receive_rate
        return by

    def overdue(self) -> bool:
        """Handles a deadline that has passed. Returns whether the connection was closed.

        The client may meanwhile have done what it owed, or enough of it to get the same time again.
        """
        limits = self._listener.conn_limits
        if self.session is not None:
            if self._stuck:
                taken = self.took(self._progress)
                if self._stuck == MUCH and taken < limits.min_rate * limits.grace:
                    self.dismiss()
                    return True
                self.stalled = self._stuck == LITTLE and taken < self._waited
                if self.stalled:
                    self.set_deadline(limits.grace)
                else:
                    self._watch_again()
                return False
            if self.session.asked:
                self.set_deadline(None)
                return False
            if (left := self._first_by() - self._loop.now()) > 0:
                self.set_deadline(left)
                return False
        self.dismiss()
        return True

    # ---- what its place is worth, see `places.Guest`

    @property
    def has_asked(self) -> bool:
        """Whether a whole request has come. An HTTP/1.1 request gives no right to a place beyond its answer."""
        return self.session is not None and self.session.asked

    @property
    def asked_at(self) -> float:
        """The time when the last whole request came, or since when the client has taken nothing."""
        if self.stalled:
            return self._stuck_at
        return self.session.asked_at if self.session is not None else self.since

    @property
    def busy(self) -> bool:
        """Whether a whole request or a reply is under way. What its client does not take does not count."""
        if self.http is not None:
            return self.http.waiting and not self.unsent
        if self.stalled:
            return False
        return self.has_asked and self.session is not None and bool(self.session.open_streams or self._owed)

    def update(self) -> None:
        """Tell the loop what to watch for."""
        # A connection on hold is not read because of its own backlog. If its client goes away, the wait is over.
        mask = (GONE if self._hold else 0 if self._listener.paused else READ) | (WRITE if self._blocked else 0)
        if mask != self._mask and self.opened:
            self._mask = mask
            self._loop.modify(self.fd, mask)

    # ---- life

    def set_deadline(self, delay: float | None) -> None:
        """Checks this connection in `delay` seconds (None: never), unless another deadline replaces this one."""
        if delay is None:
            self.deadline = None
            self._listener.suspects.discard(self)
        else:
            self.deadline = self._loop.now() + delay
            self._listener.suspects.add(self)

    def retire(self) -> None:
        """Asks the client to reconnect elsewhere. Requests that it sends before it has read this are still answered."""
        if self.session is not None:
            self.session.retire()
        elif self.http is None:
            # Nothing has come: the client does not count on this connection yet.
            self.close()
        else:
            self.http.retire()
            self.flush()

    def shutdown(self) -> None:
        """Lets running calls finish and accepts no new ones."""
        if self.session is not None:
            self.session.shutdown()
        elif self.http is None or self.http.quiet:
            self.close()

    def dismiss(self) -> None:
        """Drops the connection, after a GOAWAY if one can still be sent. The client reconnects when it needs to."""
        if self.session is not None and not self.unsent:
            self.session.shutdown()
            self.flush()
        self.close()

    def close(self) -> None:
        """Drops the connection; idempotent. The answers to its unfinished requests are discarded."""
        if not self.opened:
            return
        self.set_deadline(None)
        self._listener.places.leave(self)
        self._loop.remove(self.fd)
        self.shut()
        self._sock.close()
        self._listener.server.limits.total_output -= self._owed
        self._owed = 0
        if self.session is not None:
            self.session.owner = None
            self._listener.end_later(self.session)
        if self.http is not None:
            self.http.close()
        self.http = None


class Listener(Flusher):
    """A listener owns the listening sockets of one server and the connections that were accepted on them.

    `addresses` is one "host:port" or several. IPv6 is written "[::1]:2379"; port 0 lets the system choose a port; an
    empty host means all interfaces. `bound` holds the addresses that were really bound. The constructor raises
    errors.AddressInUse or errors.ConfigError.
    """

    def __init__(
        self, loop: Loop, addresses: str | Iterable[str], server: RequestHandler, *, limits: ConnLimits | None = None
    ) -> None:
        super().__init__(loop, server.limits, SEND_TIME)
        self.server = server
        self.conn_limits = limits if limits is not None else ConnLimits()
        self.places: Places[ClientConn] = Places(self.conn_limits.max_connections)
        self.conns = self.places.taken
        self.suspects: set[ClientConn] = set()
        self.room: bytearray = bytearray(RECV_SIZE)
        self.paused = False
        self.refused = 0
        self.evicted = 0
        self._said: dict[str, float] = {}
        self._unflushed: dict[ClientConn, None] = {}
        self._unanswered: dict[ClientConn, None] = {}
        self._posted = False
        self._acceptor = Acceptor(loop, addresses, self._take_in, backlog=BACKLOG, per_turn=ACCEPTS_PER_TURN)
        self.bound = self._acceptor.bound
        self._endings = Endings(loop, self._another_turn)
        self.sweeper: Sweeper[ClientConn] = Sweeper(
            loop,
            self.conns,
            self.suspects,
            server.limits,
            interval=self.conn_limits.sweep,
            min_rate=self.conn_limits.min_rate,
            tells=self._tells,
        )

    def _take_in(self, client: socket.socket, where: str) -> None:
        whence, most = origin(where), self.conn_limits.max_connections
        if len(self.conns) >= most and not self._make_room(whence):
            self.refused += 1
            client.close()
            self._tell_full()
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
        conn = ClientConn(self, client, whence)
        self.places.take(conn)
        if self.paused:
            conn.update()
        elif len(self.conns) > most - ACCEPTS_PER_TURN:
            # Read the first bytes now, before another new connection of this turn can take this one's place.
            conn.on_readable()

    def _make_room(self, whence: str) -> bool:
        """Close a connection for a newcomer; False where none gives way."""
        for _ in range(LOOKS):
            conn = self.places.who_gives_way(whence, self.loop.now())
            if conn is None:
                return False
            if conn.has_asked or self.paused:
                break
            # Its first request may have come, and wait to be read later in this turn.
            conn.on_readable()
            if conn not in self.conns:
                return True
            if not conn.has_asked:
                break
        else:
            return False
        self.evicted += 1
        self._tell_full()
        conn.dismiss()
        return True

    def _tell_full(self) -> None:
        limits = self.conn_limits
        if self._tells("full"):
            whence, most = self.places.crowd()
            log.warning(
                "all %d connections (%s) are taken, %d of them from %s: %d were closed for newcomers, "
                "%d newcomers were refused since the start",
                limits.max_connections,
                limits.why_max,
                most,
                whence,
                self.evicted,
                self.refused,
            )

    def _tells(self, what: str) -> bool:
        """Whether something may be logged that strangers can make happen as often as they like."""
        now = self.loop.now()
        if now - self._said.get(what, -SAY_AGAIN) < SAY_AGAIN:
            return False
        self._said[what] = now
        return True

    # ---- work that is spread over turns

    def flush_later(self, conn: ClientConn) -> None:
        """Continues to send for this connection in the next turn."""
        self._unflushed[conn] = None
        self._another_turn()

    def answer_later(self, conn: ClientConn) -> None:
        """Answer the next request of HTTP/1.1 at the end of this turn, or of a later one."""
        self._unanswered[conn] = None
        self._another_turn()

    def end_later(self, session: Session) -> None:
        """End the session of a connection that is gone. What it holds is given back now or in later turns."""
        self._endings.end(session)

    def _another_turn(self) -> None:
        if not self._posted:
            self._posted = True
            self.loop.call_later(0, self._go_on)

    def _go_on(self) -> None:
        self._posted = False
        self._endings.go_on()
        self._answer_pages()
        unflushed, self._unflushed = self._unflushed, {}
        for conn in flush_all(list(unflushed), self.loop.now, SEND_TIME):
            conn.flush_later()

    def _answer_pages(self) -> None:
        """Answers one page for each connection that waits, within PAGE_TIME, because pages run in the interpreter."""
        until = self.loop.now() + PAGE_TIME
        for _ in range(len(self._unanswered)):
            conn = next(iter(self._unanswered))
            del self._unanswered[conn]
            if conn.answer():
                self._unanswered[conn] = None
            if self.loop.now() >= until:
                break
        if self._unanswered:
            self._another_turn()

    def _unpack(self) -> None:
        requests = unpack(self.server.limits, UNPACK_SIZE)
        if requests:
            self.server.handle(requests)
        self._another_turn()

    # ---- what the node calls

    def pause_all(self) -> None:
        """Stops reading from all clients until `resume_all`, because the node cannot take more work."""
        if not self.paused:
            self.paused = True
            for conn in self.conns:
                conn.update()

    def resume_all(self) -> None:
        """Reads from the clients again."""
        if self.paused:
            self.paused = False
            for conn in self.conns:
                conn.update()

    def retire(self) -> None:
        """Accepts no more connections and asks all clients to reconnect elsewhere.

        A connection closes by itself when its client has read the request and its calls are finished; `conns` becomes
        empty. `shutdown` is for the connections that remain.
        """
        self._acceptor.close()
        self._each(list(self.conns), ClientConn.retire)

    def shutdown(self) -> None:
        """Accepts no more connections and no more calls. A connection closes when its calls have finished."""
        self._acceptor.close()
        self._each(list(self.conns), ClientConn.shutdown)

    def _each(self, conns: list[ClientConn], call: Callable[[ClientConn], object]) -> None:
        """Handles some of `conns` now and the others in the following turns: 10,000 at once would hold the
        loop for 0.2 s.
        """
        for conn in conns[-TOLD_PER_TURN:]:
            call(conn)
        del conns[-TOLD_PER_TURN:]
        self.flush_dirty()
        if conns:
            self.loop.call_later(0, partial(self._each, conns, call))

    def close(self) -> None:
        """Drop everything; idempotent."""
        self._acceptor.close()
        self.sweeper.close()
        if self._expirer is not None:
            self._expirer.cancel()
        for conn in list(self.conns):
            conn.close()
        self._endings.close()

    # ---- deadlines

    def _expire_later(self) -> None:
        self._expirer = self.loop.call_later(EXPIRE, self._expire)

    def _expire(self) -> None:
        self._expirer = None
        late = expire(self.server.limits, self.loop.now())
        if late:
            self.server.expired(late)

    @property
    def stalled(self) -> int:
        """How many clients take nothing of small replies."""
        return sum(conn.stalled for conn in self.suspects)
