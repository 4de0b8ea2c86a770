"""This module opens listening sockets and accepts connections on them, for clients and for peers alike."""

from __future__ import annotations

import contextlib
import errno
import logging
import socket
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, Final

from metastore import errors
from metastore.addresses import split_address
from metastore.net.loop import ACCEPT_LATER, READ, Loop, Timer

log = logging.getLogger("metastore.accept")

#: Seconds without accepting after the process ran out of descriptors or memory.
PAUSE: Final = 0.1
#: Seconds between two log lines about such a pause.
SAY_AGAIN: Final = 10.0
#: The first bytes of IPv6 addresses that stand for IPv4 addresses.
MAPPED: Final = bytes(10) + b"\xff\xff"


class Acceptor:
    """An acceptor listens on its addresses and passes each new connection to `take(socket, address of the client)`.

    In one turn of the loop it accepts at most `per_turn` connections from each listening socket.

    `addresses` is one "host:port" or several. IPv6 is written "[::1]:2379"; port 0 lets the system choose a port; an
    empty host means all interfaces. `bound` holds the addresses that were really bound. `whom` is a word for the
    messages: "" or "for peers ". The constructor raises errors.AddressInUse or errors.ConfigError, and leaves no socket
    open when it does.
    """

    def __init__(
        self, loop: Loop, addresses: str | Iterable[str], take: Callable[[socket.socket, str], object], *,
        backlog: int, per_turn: int, whom: str = "",
    ) -> None:  # fmt: skip
        self.bound: list[str] = []
        self._loop = loop
        self._take = take
        self._per_turn = per_turn
        self._sockets: list[socket.socket] = []
        self._accepting = False
        self._whom = whom
        self._pauses = 0
        self._said = -SAY_AGAIN
        self._resume: Timer | None = None
        try:
            for address in [addresses] if isinstance(addresses, str) else addresses:
                sock, where = listening(address, whom, backlog)
                self._sockets.append(sock)
                self.bound.append(where)
        except BaseException:
            self.close()
            raise
        self._on()

    def _on(self) -> None:
        self._resume = None
        self._accepting = True
        for sock in self._sockets:
            self._loop.add(sock.fileno(), READ, partial(self._accept, sock))

    def _off(self) -> None:
        if self._accepting:
            self._accepting = False
            for sock in self._sockets:
                self._loop.remove(sock.fileno())

    def _accept(self, listener: socket.socket, _events: int) -> None:
        for _ in range(self._per_turn):
            try:
                sock, where = listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in ACCEPT_LATER:
                    self._pauses += 1
                    if self._loop.now() - self._said >= SAY_AGAIN:
                        self._said = self._loop.now()
                        log.warning(
                            "accept: %s; no connection %sis taken for %s s (%d times since the start; see ulimit -n)",
                            error.strerror,
                            self._whom,
                            PAUSE,
                            self._pauses,
                        )
                    self._off()
                    self._resume = self._loop.call_later(PAUSE, self._on)
                    return
                # The client went away before its connection was accepted. This concerns no other connection.
                continue
            self._take(sock, place(where))

    def close(self) -> None:
        """Accepts nothing more. Idempotent."""
        self._off()
        if self._resume is not None:
            self._resume.cancel()
            self._resume = None
        for sock in self._sockets:
            # To close it is not enough where a fork of this process has a copy: that would keep the port.
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()
        self._sockets.clear()


def host_and_port(address: str) -> tuple[str, int]:
    """Splits an address like `split_address`, but raises errors.ConfigError."""
    try:
        return split_address(address)
    except ValueError as error:
        raise errors.ConfigError(str(error)) from error


def listening(address: str, whom: str, backlog: int) -> tuple[socket.socket, str]:
    """Returns a listening socket at `address`, and the place that it is bound to; see Acceptor."""
    host, port = host_and_port(address)
    try:
        places = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        raise errors.ConfigError(f"cannot listen {whom}on {address!r}: {error.strerror or error}") from error
    family, kind, proto, _, where = places[0]
    sock = socket.socket(family, kind | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC, proto)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        if error.errno in (errno.EADDRINUSE, errno.EACCES, errno.EADDRNOTAVAIL):
            raise errors.AddressInUse(f"cannot listen {whom}on {address}: {error.strerror}") from error
        raise
    return sock, place(sock.getsockname())


def real_address(address: str) -> str:
    """Returns the address at which others can dial a listen address.

    "0.0.0.0:2379" and "[::]:2379" listen on all interfaces. They become the address of this machine that its default
    route uses, or the loopback address if there is no route.
    """
    host, port = host_and_port(address)
    family = {"0.0.0.0": socket.AF_INET, "::": socket.AF_INET6, "": socket.AF_INET}.get(host)
    if family is None:
        return address
    # These are addresses for documentation (RFC 5737, 3849). Connecting a datagram socket sends nothing.
    far = "192.0.2.1" if family == socket.AF_INET else "2001:db8::1"
    own = "127.0.0.1" if family == socket.AF_INET else "::1"
    with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.connect((far, 9))
        own = sock.getsockname()[0]
    return place((own, port))


def origin(where: str) -> str:
    """The part of a place ("host:port") that is the same wherever one client dials from.

    This is an IPv4 address, or the 64 bits of an IPv6 address that name a network. The hosts of that network choose the
    other bits as they like.
    """
    host = where.rpartition(":")[0]
    if not host.startswith("["):
        return host
    packed = socket.inet_pton(socket.AF_INET6, host[1:-1].partition("%")[0])
    if packed[:12] == MAPPED:
        return socket.inet_ntop(socket.AF_INET, packed[12:])
    return socket.inet_ntop(socket.AF_INET6, packed[:8] + bytes(8)) + "/64"


def place(where: tuple[Any, ...]) -> str:
    """Formats a socket's address as text."""
    return f"[{where[0]}]:{where[1]}" if ":" in where[0] else f"{where[0]}:{where[1]}"
