"""Backups: Maintenance.Snapshot streams a verified snapshot file to a client. Format: FORMATS.md, "Backup".

One backup needs memory for one chunk and WINDOW bytes, however slowly its client reads. A separate thread reads the
next chunk after the chunk before it has gone into the connection's queue; the queue holds up to WINDOW bytes. The file
stays open while it is sent, so its name may be deleted meanwhile.
"""

from __future__ import annotations

import hashlib
import logging
from collections import deque
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from .. import errors
from ..api import pb
from .files import Info, Source
from .format import backup_padding
from .transfer import Worker

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from ..net.loop import Loop

log = logging.getLogger("metastore.backup")

#: So many backups are made or sent at a time; more are refused.
MAX_BACKUPS = 4
#: A client must take this many bytes a second, or its backup ends. The second rate applies while another client waits.
MIN_RATE = 8 << 10
CROWDED_RATE = 1 << 20
#: Bytes that wait in a connection's queue.
WINDOW = 1 << 20
#: Bytes in one message; clients with limits of their own take 4 MiB at most.
BLOB = 256 << 10

Result = Info | errors.MetaStoreError


def messages(source: Source, header: Any) -> Iterator[list[bytes]]:
    """Yields the encoded replies of one backup, some at a time. Raises OSError, and FormatError if the file
    is damaged.
    """
    info = source.info
    digest = hashlib.sha256()
    tail = info.trailer.encode() + bytes(backup_padding(info.trailer.size))
    remaining = info.trailer.size + backup_padding(info.trailer.size)

    def cut(data: bytes) -> list[bytes]:
        nonlocal remaining
        digest.update(data)
        replies = []
        for at in range(0, len(data), BLOB):
            piece = data[at : at + BLOB]
            remaining -= len(piece)
            replies.append(
                pb.SnapshotResponse(header=header, remaining_bytes=remaining, blob=piece).SerializeToString()
            )
        return replies

    yield cut(info.header.encode())
    for number in range(info.trailer.chunks):
        yield cut(source.chunk(number))
    last = cut(tail)
    # The SHA-256 has a message of its own and does not count as remaining bytes, as in etcd.
    yield [*last, pb.SnapshotResponse(header=header, blob=digest.digest()).SerializeToString()]


class Sending:
    """One call of a client: it waits for its snapshot, then sends it."""

    def __init__(self, backups: Backups, request: Request) -> None:
        self.backups = backups
        self.request = request
        self.worker: Worker | None = None
        self._pieces: deque[bytes] = deque()
        self._source: Source | None = None
        self._all: Iterator[list[bytes]] = iter(())
        self._read = False  # whether the file was read to its end
        self.pace = float("inf")  # bytes a second that the client took during the last timeout in which it owed
        self._bytes = 0  # bytes that went into the connection's queue
        self._owed = 0.0  # seconds for which the client has owed, since its pace was last looked at
        self._since: float | None = None  # when it was last seen to owe; None: it did not owe
        self._before = 0  # bytes that it had taken when its pace was last looked at
        request.start(on_close=self.close)

    def ready(self, result: Result) -> None:
        """The snapshot is there, or making it failed."""
        if self not in self.backups.running:
            return
        if isinstance(result, errors.MetaStoreError):
            self.fail(result)
            return
        try:
            self._source = Source(result)
        except OSError as error:
            self.fail(errors.MetaStoreError(f"metastore: the snapshot cannot be read: {error.strerror}"))
            return
        log.info("sending backup index=%d bytes=%d", result.header.index, result.trailer.size)
        self._all = messages(self._source, self.backups.header())
        self.worker = Worker(self.backups.loop, "backup", self._unreadable)
        self._ask()

    def _ask(self) -> None:
        assert self.worker is not None
        self.worker.ask(lambda: next(self._all, None), self._loaded)

    def _loaded(self, pieces: list[bytes] | None) -> None:
        if pieces is None:
            self._read = True
        else:
            self._pieces.extend(pieces)

    def _unreadable(self, error: BaseException) -> None:
        if self._source is not None and isinstance(error, errors.FormatError):
            self.backups.bad(self._source.info)
        log.error("a backup could not be read: %s", error)
        self.fail(errors.Corrupt(f"metastore: the snapshot on disk is damaged: {error}"))

    def push(self, now: float) -> bool:
        """Fills the connection's queue. Returns whether it added any bytes."""
        if self.worker is None:
            return False
        request, pushed = self.request, False
        if self._since is not None:
            self._owed += now - self._since
        while self._pieces and request.queued_bytes < WINDOW:
            self._bytes += len(self._pieces[0])
            request.send(self._pieces.popleft())
            pushed = True
        if not self._pieces and self._read:
            request.finish()
            self.close()
            return True
        if not self._pieces and not self.worker.waiting:
            self._ask()
            # While the client waits for us, its time stands still. The time does not start again from zero: otherwise a
        # client could keep its place by taking a few bytes now and then.
        self._since = now if self._pieces or request.queued_bytes else None
        if self._owed > self.backups.timeout:
            self.pace = (self.taken - self._before) / self._owed
            self._owed, self._before = 0.0, self.taken
            if self.pace < MIN_RATE:
                log.warning("a client took under %d bytes a second of its backup: ended", MIN_RATE)
                self.end()
        return pushed

    @property
    def taken(self) -> int:
        """The bytes that left the connection's queue."""
        return self._bytes - min(self._bytes, self.request.queued_bytes)

    def end(self) -> None:
        """Drops the call."""
        self.request.reset()
        self.close()

    def fail(self, error: errors.MetaStoreError) -> None:
        """Answers the call with an error."""
        self.request.fail(error)
        self.close()

    def close(self) -> None:
        """Closes the file and releases everything else; idempotent."""
        if self not in self.backups.running:
            return
        self.backups.running.remove(self)
        self._pieces.clear()
        if self.worker is not None:
            self.worker.stop(self._source.close if self._source is not None else lambda: None)


class Backups:
    """The backups of one member. This object belongs to the loop's thread.

    fresh: calls back with a snapshot that holds everything acknowledged so far. bad: is called with a file that turned
    out to be damaged. header: makes the ResponseHeader. timeout: a client that takes next to nothing for this many
    seconds is dropped.
    """

    def __init__(
        self, loop: Loop, *, fresh: Callable[[Callable[[Result], object]], object], bad: Callable[[Info], object],
        header: Callable[[], Any], timeout: float,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.fresh = fresh
        self.bad = bad
        self.header = header
        self.timeout = timeout
        self.running: list[Sending] = []

    def begin(self, request: Request) -> None:
        """Answers a call of Maintenance.Snapshot. If all places are taken, the slowest backup is given up.

        Raises TooManyRequests.
        """
        if len(self.running) >= MAX_BACKUPS:
            slowest = min(self.running, key=lambda one: one.pace)
            if slowest.pace >= CROWDED_RATE:
                raise errors.TooManyRequests()
            log.warning("the slowest of %d backups gives way to another client", MAX_BACKUPS)
            slowest.end()
        sending = Sending(self, request)
        if not request.closed:
            self.running.append(sending)
            self.fresh(sending.ready)

    def turn(self, now: float) -> bool:
        """Runs at the end of a turn of the loop. Returns whether there is output to flush; more may follow
        after the flush.
        """
        pushed = False
        for sending in self.running[:]:
            pushed = sending.push(now) or pushed
        return pushed

    def stop(self) -> None:
        """Ends all backups."""
        for sending in self.running[:]:
            sending.fail(errors.Stopped())
