"""The log driven by hand: written to, and waited for."""

from __future__ import annotations

import select
import time
from collections.abc import Callable
from pathlib import Path

from metastore._core.entry import HardState
from metastore.failpoints import Failpoints
from metastore.storage.wal import Wal

from .waldisk import image

SEGMENT = 65536
PATIENCE = 30.0


def wait(wal: Wal, done: Callable[[], bool]) -> None:
    """Drive the log until `done()`."""
    poller = select.poll()
    poller.register(wal.fileno(), select.POLLIN)
    end = time.monotonic() + PATIENCE
    wal.poll()
    while not done():
        assert time.monotonic() < end, "waited too long"
        poller.poll(50)
        wal.poll()


def durable(wal: Wal, number: int) -> None:
    wait(wal, lambda: wal.durable >= number)


def put(wal: Wal, first: int, count: int, size: int = 100, term: int = 1) -> None:
    """Append and make durable `count` entries, one append each; the number is the index."""
    for index in range(first, first + count):
        wal.append(index, image(index, term, size), HardState(term, 1, index - 1))
        wal.submit()
    durable(wal, first + count - 1)


def opened(folder: Path, points: Failpoints | None = None, **options: bool) -> Wal:
    return Wal.open(folder, segment_size=SEGMENT, metadata=b"meta", failpoints=points, **options)
