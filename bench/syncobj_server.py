#!/usr/bin/env python3
"""One process of PySyncObj with a dictionary, which clients reach by the SET of Redis. bench/peers.py runs it.

    python bench/syncobj_server.py CLIENT_PORT JOURNAL PEER_PORT OTHER_PEER_PORT...

PySyncObj is made for use inside a program, and has no protocol for clients. It does its work in this process's one
thread, together with the sockets. A put is answered when PySyncObj says that it is committed and applied.
"""

from __future__ import annotations

import selectors
import socket
import sys

from pysyncobj import FAIL_REASON, SyncObj, SyncObjConf
from pysyncobj.batteries import ReplDict

#: Seconds that one turn of PySyncObj may wait for its own sockets.
TICK = 0.0005


class Client:
    """A connection of a client. A request that begins like the first one is as long as that."""

    def __init__(self, sock: socket.socket, data: ReplDict) -> None:
        self.sock = sock
        self.data = data
        self.pending = b""
        self.answers = 0

    def receive(self) -> bool:
        """Read and begin what is there. Return whether the connection goes on."""
        try:
            got = self.sock.recv(1 << 18)
        except BlockingIOError:
            return True
        except OSError:
            return False
        self.pending += got
        while request := self._next():
            self.data.set(*request, callback=self._done)
        return bool(got)

    def _next(self) -> tuple[bytes, bytes] | None:
        parts, at = [], self.pending.find(b"\n") + 1
        for _ in range(3 if at else 0):
            end = self.pending.find(b"\n", at) + 1
            size = int(self.pending[at + 1 : end]) if end else 0
            if not end or len(self.pending) < end + size + 2:
                return None
            parts.append(self.pending[end : end + size])
            at = end + size + 2
        if not parts:
            return None
        self.pending = self.pending[at:]
        return parts[1], parts[2]

    def _done(self, _result: object, error: int) -> None:
        if error != FAIL_REASON.SUCCESS:
            raise SystemExit(f"PySyncObj failed a put: {error}")
        self.answers += 1

    def answer(self) -> None:
        """Send the answers of this turn: they are short, and always fit into the socket."""
        if self.answers:
            self.sock.sendall(b"+OK\r\n" * self.answers)
            self.answers = 0


def main() -> None:
    client_port, journal, *ports = sys.argv[1:]
    me, *others = (f"127.0.0.1:{port}" for port in ports)
    data = ReplDict()
    conf = SyncObjConf(autoTick=False, journalFile=journal, commandsQueueSize=1_000_000)
    cluster = SyncObj(me, others, conf=conf, consumers=[data])
    listener = socket.create_server(("127.0.0.1", int(client_port)), backlog=512)
    listener.setblocking(False)
    clients: set[Client] = set()
    said: object = None
    with selectors.DefaultSelector() as selector:
        selector.register(listener, selectors.EVENT_READ)
        while True:
            cluster.doTick(TICK)
            leader = cluster.getStatus()["leader"] if said is None else said
            if leader is not None and said is None and cluster.isReady():
                said = leader
                print("ready, and leads" if str(leader) == me else "ready", flush=True)
            for key, _ in selector.select(0):
                if key.data is None:
                    sock = listener.accept()[0]
                    sock.setblocking(False)
                    client = Client(sock, data)
                    clients.add(client)
                    selector.register(sock, selectors.EVENT_READ, client)
                elif not key.data.receive():
                    clients.discard(key.data)
                    selector.unregister(key.data.sock)
                    key.data.sock.close()
            for client in clients:
                client.answer()


if __name__ == "__main__":
    main()
