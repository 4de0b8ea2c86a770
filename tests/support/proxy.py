"""TCP proxies between the members of a cluster, whose links can be cut, one way or both.

Each member tells the others a proxy's address in place of its own. A connection's greeting says which member dials
which; a link is (sender, receiver), by member id. Bytes on a link that is held arrive late, as after a real network's
retransmissions. A broken link ends its connections and refuses new ones.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterable, Iterator
from typing import Self

from metastore.peers import handshake

Link = tuple[int, int]
CHUNK = 1 << 16


class Network:
    """All proxies of one cluster. `via` is what `Cluster` wants."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._held: set[Link] = set()
        self._broken: set[Link] = set()
        self._open: dict[socket.socket, Link] = {}
        self._listeners: list[socket.socket] = []
        self._closed = False
        self.carried = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def via(self, target: str) -> str:
        """Return the address of a new proxy in front of `target` (host:port)."""
        listener = socket.create_server(("127.0.0.1", 0))
        self._listeners.append(listener)
        threading.Thread(target=self._accept, args=(listener, target), daemon=True).start()
        return f"127.0.0.1:{listener.getsockname()[1]}"

    # ---- faults

    def hold(self, links: Iterable[Link]) -> None:
        """Let nothing pass on these links until `heal`."""
        with self._changed:
            self._held |= set(links)

    def sever(self, links: Iterable[Link]) -> None:
        """End connections with these links, also new ones, until `heal`."""
        broken = set(links)
        with self._changed:
            self._broken |= broken
            sockets = [sock for sock, (one, other) in self._open.items() if broken & {(one, other), (other, one)}]
            self._changed.notify_all()
        for sock in sockets:
            _end(sock)

    def heal(self) -> None:
        """Let all links work."""
        with self._changed:
            self._held.clear()
            self._broken.clear()
            self._changed.notify_all()

    def close(self) -> None:
        """End everything."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
            socks = [*self._listeners, *self._open]
        for sock in socks:
            _end(sock)

    # ---- carrying

    def _accept(self, listener: socket.socket, target: str) -> None:
        with contextlib.suppress(OSError):
            while True:
                sock, _ = listener.accept()
                threading.Thread(target=self._serve, args=(sock, target), daemon=True).start()

    def _serve(self, dialler: socket.socket, target: str) -> None:
        host, _, port = target.rpartition(":")
        with dialler, contextlib.suppress(OSError, handshake.FormatError):
            greeting = _greeting(dialler)
            hello = handshake.decode_hello(greeting)
            link = (hello.sender.member_id, hello.target)
            with self._registered(dialler, link), socket.create_connection((host, int(port)), 5) as acceptor:
                acceptor.settimeout(None)
                for sock in (dialler, acceptor):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                with self._registered(acceptor, link):
                    back = threading.Thread(target=self._carry, args=(acceptor, dialler, link[::-1], b""), daemon=True)
                    back.start()
                    self._carry(dialler, acceptor, link, greeting)
                    back.join()

    @contextlib.contextmanager
    def _registered(self, sock: socket.socket, link: Link) -> Iterator[None]:
        with self._changed:
            if self._closed or {link, link[::-1]} & self._broken:
                return_now = True
            else:
                return_now = False
                self._open[sock] = link
        if return_now:
            raise ConnectionResetError("this link is broken")
        try:
            yield
        finally:
            with self._changed:
                self._open.pop(sock, None)

    def _carry(self, source: socket.socket, sink: socket.socket, link: Link, data: bytes) -> None:
        """Carry the bytes of one direction until its end; then end both sockets."""
        with contextlib.suppress(OSError):
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: link not in self._held or link in self._broken or self._closed)
                    self.carried += len(data)
                sink.sendall(data)
                data = source.recv(CHUNK)
                if not data:
                    break
        _end(source)
        _end(sink)


def _end(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


def _greeting(sock: socket.socket) -> bytes:
    """Return the first bytes of a connection, as many as its greeting has."""
    data = b""
    while (size := handshake.greeting_size(data)) is None or len(data) < size:
        more = sock.recv(handshake.HEADER - len(data) if size is None else size - len(data))
        if not more:
            raise ConnectionResetError("closed before its greeting was complete")
        data += more
    return data
