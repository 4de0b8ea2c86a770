"""A client that reads a list page by page and costs next to nothing, so that what is measured is the server.

It knows the keys beforehand, so all requests are made before the first is sent. Each page is still asked for only when
the page before it has ended, as a client must that learns the next start from it. Replies are counted, not decoded.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from pump import Link, Prepared, close, play  # noqa: E402


@dataclass(frozen=True)
class Pages:
    """What reading them took, and the bytes of each reply message. `client_cpu` is what this client itself took."""

    seconds: float
    client_cpu: float
    sizes: Sequence[int]


def read(address: str, path: bytes, requests: Sequence[bytes]) -> Pages:
    """Make these unary calls on one connection, one after the other. A call that fails has no bytes. Raises
    RuntimeError if the connection ends or a stream is reset."""
    calls = [Prepared(path, request).on(2 * number + 1) for number, request in enumerate(requests)]
    link, sizes = Link(address), []
    seen = 0

    def ended(link: Link, _stream: int) -> None:
        nonlocal seen
        sizes.append(link.data - seen)
        seen = link.data
        if len(sizes) < len(calls):
            link.out += calls[len(sizes)]
        else:
            link.done = True

    link.ended = ended
    link.out += calls[0]
    began, cpu = time.monotonic(), time.thread_time()
    play([link])
    took, cpu = time.monotonic() - began, time.thread_time() - cpu
    close([link])
    return Pages(took, cpu, sizes)
