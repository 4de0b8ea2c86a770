"""Ports for members that keep theirs over restarts. No two tests are given the same one.

A port that nobody has at this moment is not enough: another member, of this test or of one in another process, may be
given it too before the first one listens, or while the first one is down.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import random
import socket
import tempfile
from pathlib import Path

#: Below those that `metastore cluster` takes, and above 2379, where a node listens by default.
PORTS = range(3_000, 10_000)


@functools.cache
def _left() -> list[int]:
    """The ports that this process has not tried yet."""
    return random.sample(PORTS, len(PORTS))


@functools.cache
def _taken() -> int:
    """The descriptor of a file in which each process locks the byte of each port that it has been given. The system
    drops the locks when the process ends."""
    path = Path(tempfile.gettempdir()) / f"metastore-test-ports-{os.getuid()}"
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)


def free_ports(count: int) -> list[int]:
    """Return ports that nobody has, and that no other test is given as long as this process lives."""
    ports: list[int] = []
    taken = _taken()
    while len(ports) < count:
        port = _left().pop()
        with contextlib.suppress(OSError), socket.socket() as sock:
            fcntl.lockf(taken, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            sock.bind(("127.0.0.1", port))
            ports.append(port)
    return ports
