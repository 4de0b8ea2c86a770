"""Sends snapshots to other members and receives theirs. Tags and order: FORMATS.md, "Sending a snapshot".

Each transfer has a thread of its own for its file, so the loop never waits for the disk. The loop's thread moves bytes
between the file and the stream. It sends up to WINDOW chunks more than the other side has confirmed, and a transfer
needs the memory of that many chunks.
"""

from __future__ import annotations

import logging
import math
import queue
import struct
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from .._core.snap_chunk import check_chunk
from ..errors import DamagedData, FormatError, MetaStoreError
from ..net.loop import shared_time
from ..threads import begin
from .files import Cancelled, Info, Part, SnapshotStore, Source
from .format import TRAILER_SIZE, Header

if TYPE_CHECKING:
    from .._core.raft_types import Message
    from ..net.loop import Loop
    from ..peers.accepted import AcceptedStream
    from ..peers.dialled import SnapshotSender
    from ..peers.transport import PeerTransport
    from .catalogue import Catalogue

log = logging.getLogger("metastore.snapshot")

BEGIN, PART, CHUNK, TRAILER = 1, 2, 3, 4
WANT, DONE, ALIVE, NO = 16, 17, 18, 19
WINDOW = 2
#: Bytes of one blob. A heartbeat on a neighbouring connection waits for no more than this.
PIECE = 256 * 1024
#: One transfer repeats a chunk at most so many times at the peer's request.
MAX_AGAIN = 8
#: Seconds between two signs of life while a complete file is checked.
ALIVE_EVERY = 0.5

_WANT = struct.Struct("<QB")


class Worker:
    """A thread that runs jobs one after the other. It posts the answer of each job to the loop."""

    def __init__(self, loop: Loop, name: str, failed: Callable[[BaseException], object]) -> None:
        self.loop = loop
        self.waiting = 0  # jobs not answered yet; of the loop's thread
        self.stopping = False
        self._failed = failed
        self._jobs: queue.SimpleQueue[tuple[Callable[[], Any], Callable[[Any], object]] | None] = queue.SimpleQueue()
        self._last: Callable[[], object] = lambda: None
        self._thread = begin(name, self._run)

    def ask(self, job: Callable[[], Any], answer: Callable[[Any], object]) -> None:
        """Runs `job()` in the thread, then `answer(result)` in the loop's thread."""
        self.waiting += 1
        self._jobs.put((job, answer))

    def _run(self) -> None:
        while (work := self._jobs.get()) is not None:
            job, answer = work
            try:
                result = job()
            except Exception as error:
                if not isinstance(error, (MetaStoreError, OSError, MemoryError, Cancelled)):
                    # Our code has a bug. The caller must not wait for ever, and the files must be closed.
                    log.exception("%s", threading.current_thread().name)
                self._post(self._failed, error)
                continue
            self._post(answer, result)
        self._last()

    def _post(self, call: Callable[[Any], object], result: Any) -> None:
        def answered() -> None:
            self.waiting -= 1
            if not self.stopping:
                call(result)

        self.loop.call_soon_threadsafe(answered)

    def stop(self, last: Callable[[], object]) -> None:
        """Ends the thread after its present job and calls `last` in it. No answers come after this call."""
        if not self.stopping:
            self.stopping = True
            self._last = last
            self._jobs.put(None)

    def join(self) -> None:
        """Waits until a stopped thread has ended."""
        self._thread.join()


class Outgoing:
    """One snapshot that is being sent to a peer. `over(ok)` is called once, in the loop's thread."""

    def __init__(
        self, loop: Loop, stream: SnapshotSender, message: Message, source: Source, over: Callable[[bool], object],
        rate: int = 0,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.stream = stream
        self.message = message
        self.source = source
        self.progress = loop.now()
        self.sent_bytes = 0
        self._over: Callable[[bool], object] | None = over
        self._rate = rate
        self._free_at = 0.0
        self._peer_at = self._next = 0
        self._run = 0  # number of the sequence of chunks: a chunk that is requested again begins a new one
        self._agains = 0
        self._finished = False
        self._pending: deque[tuple[int, memoryview]] = deque()
        self.damaged = False  # the file itself is damaged
        self._worker = Worker(loop, "snapshot-send", self._unreadable)
        stream.on_open = self._begin
        stream.on_blob = self._answer
        stream.on_drain = self._drain
        stream.on_end = self._ended

    def _begin(self) -> None:
        self.progress = self.loop.now()
        self.stream.send(BEGIN, self.source.info.header.encode())

    def _answer(self, tag: int, data: bytes) -> None:
        self.progress = self.loop.now()
        if tag == WANT and len(data) == _WANT.size:
            number, again = _WANT.unpack(data)
            if number > self.source.info.trailer.chunks:
                raise FormatError(f"snapshot: chunk {number} is wanted, there are {self.source.info.trailer.chunks}")
            self._want(number, bool(again))
        elif tag == DONE:
            self._done()
        elif tag == NO:
            self.fail(f"the peer cannot take it: {data[:300].decode(errors='replace')}")
        elif tag != ALIVE:
            raise FormatError(f"snapshot: unknown answer {tag}")

    def _want(self, number: int, again: bool) -> None:
        if again:
            self._agains += 1
            if self._agains > MAX_AGAIN:
                self.fail(f"chunk {number} was refused too often")
                return
            log.warning("%r: chunk %d came damaged or not at all and is sent again", self.stream, number)
        if again or number > self._next:
            self._next = number
            self._run += 1
            self._pending.clear()
        self._peer_at = number
        self._read()

    def _read(self) -> None:
        """Reads more chunks, as far as the window allows."""
        total = self.source.info.trailer.chunks
        if self._finished or self._over is None:
            return
        while self._next < total and self._next - self._peer_at < WINDOW:
            self._worker.ask(partial(self.source.chunk, self._next), partial(self._loaded, self._run))
            self._next += 1
        if self._peer_at == total:
            self._finished = True
            self._queue(TRAILER, self.source.info.trailer.encode())

    def _loaded(self, run: int, image: bytes) -> None:
        if run != self._run or self._over is None:
            return
        wait = self._free_at - self.loop.now()
        if self._rate:
            self._free_at = max(self._free_at, self.loop.now()) + len(image) / self._rate
        if self._rate and wait > 0:
            self.loop.call_later(wait, lambda: self._queue_chunk(run, image))
        else:
            self._queue_chunk(run, image)

    def _queue_chunk(self, run: int, image: bytes) -> None:
        if run != self._run or self._over is None:
            return
        view = memoryview(image)
        for at in range(0, len(view) - PIECE, PIECE):
            self._pending.append((PART, view[at : at + PIECE]))
        self._queue(CHUNK, view[(len(view) - 1) // PIECE * PIECE :])

    def _queue(self, tag: int, data: Any) -> None:
        self._pending.append((tag, memoryview(data)))
        self._drain()

    def _unreadable(self, error: BaseException) -> None:
        self.damaged = isinstance(error, FormatError)
        self.fail(f"{type(error).__name__}: {error}")

    def _drain(self) -> None:
        """Gives the stream as many bytes as it takes."""
        while self._pending:
            tag, data = self._pending[0]
            if not self.stream.send(tag, data):  # type: ignore[arg-type]
                return
            self.sent_bytes += len(data)
            self._pending.popleft()

    def _done(self) -> None:
        """The peer has the whole file. Its Raft node now gets the MsgSnap."""
        if not self.stream.send_message(self.message):
            self.fail("no room for the message")
            return
        # The stream is closed in a later turn, when the message has left.
        self.stream.on_drain = lambda: self.loop.call_later(0, lambda: self._end(True))

    def _ended(self, reason: str) -> None:
        self._end(False, reason)

    def fail(self, reason: str) -> None:
        """Gives up the transfer."""
        self._end(False, reason)

    def _end(self, ok: bool, reason: str = "") -> None:
        over, self._over = self._over, None
        if over is None:
            return
        self._pending.clear()
        self._worker.stop(self.source.close)
        self.stream.close()
        if not ok:
            log.warning("%r: the snapshot did not get through: %s", self.stream, reason)
        over(ok)

    def join(self) -> None:
        """Waits for the thread of a transfer that has ended."""
        self._worker.join()


class Incoming:
    """One snapshot that is being received on a stream.

    `received(info)` is called when the file is complete, and `over(self)` when the transfer ends.
    """

    def __init__(
        self, loop: Loop, stream: AcceptedStream, store: SnapshotStore, cluster_id: int, *,
        received: Callable[[Info], object], over: Callable[[Incoming], object],
    ) -> None:  # fmt: skip
        self.loop = loop
        self.stream = stream
        self.store = store
        self.cluster_id = cluster_id
        self.progress = loop.now()
        self.received = received
        self.over = over
        self._closed = False
        self._part: Part | None = None
        self._parts: list[bytes] = []
        self._size = 0
        self._limit = 0
        self._told_alive = 0.0
        self._worker = Worker(loop, "snapshot-receive", self._refuse)
        stream.on_blob = self._take
        stream.on_end = self._ended

    def _take(self, tag: int, data: bytes) -> None:
        """Handles a blob. FormatError ends the connection."""
        if self._closed:
            return
        if self._worker.waiting > WINDOW + 1:
            raise FormatError("snapshot: more chunks than were asked for")
        if tag == BEGIN and self._limit == 0:
            self._limit = 1
            self._worker.ask(lambda: self._open(bytes(data)), self._opened)
        elif tag in (PART, CHUNK) and self._part is not None:
            self._size += len(data)
            if self._size > self._limit:
                raise FormatError("snapshot: a chunk that is too long")
            self._parts.append(data)
            if tag == CHUNK:
                image = b"".join(self._parts)
                self._parts, self._size = [], 0
                self._worker.ask(lambda: self._add(image), self._added)
        elif tag == TRAILER and self._part is not None and len(data) == TRAILER_SIZE:
            part = self._part
            self._worker.ask(lambda: part.finish(bytes(data), self._between), self._complete)
        else:
            raise FormatError(f"snapshot: blob {tag} is out of place")

    # ---- in the thread

    def _open(self, head: bytes) -> Part | Info:
        # This check comes before any file is opened, or removed to make room.
        if Header.decode(head).cluster_id != self.cluster_id:
            raise FormatError("it is of another cluster")
        result = self.store.receive(head, self._between)
        if isinstance(result, Part):
            self._part = result
        return result

    def _add(self, image: bytes) -> bool:
        """Writes a chunk. Returns whether the peer must send it again."""
        assert self._part is not None, "opened"
        try:
            if self._part.add(image):
                return False
            # A chunk that is already there is skipped. If a chunk comes too early, the ones before it are missing.
            return check_chunk(image, self._part.header.chunk_size).number > self._part.chunks
        except FormatError as error:
            log.warning("%r: %s", self.stream, error.text)
            return True

    def _between(self) -> None:
        if self._worker.stopping:
            raise Cancelled
        now = time.monotonic()
        if now - self._told_alive >= ALIVE_EVERY:
            self._told_alive = now
            self.loop.call_soon_threadsafe(lambda: self._reply(ALIVE))

    # ---- in the loop's thread

    def _opened(self, result: Part | Info) -> None:
        if isinstance(result, Info):
            self._complete(result)
            return
        # An image is never longer than the chunk and its header; see FORMATS.
        self._limit = result.header.chunk_size + 64
        if result.chunks:
            log.info("%r: goes on at chunk %d", self.stream, result.chunks)
        self._reply(WANT, _WANT.pack(result.chunks, 0))

    def _added(self, again: bool) -> None:
        assert self._part is not None, "opened"
        self._reply(WANT, _WANT.pack(self._part.chunks, again))

    def _complete(self, info: Info) -> None:
        self._part = None
        self.received(info)
        self._reply(DONE)

    def _reply(self, tag: int, data: bytes = b"") -> None:
        self.progress = self.loop.now()
        if not self._closed and not self.stream.reply(tag, data):
            self.stream.fail("it does not read its answers")

    def _refuse(self, error: BaseException) -> None:
        text = error.text if isinstance(error, (FormatError, DamagedData)) else str(error)
        log.error("%r: the snapshot cannot be received: %s", self.stream, text)
        self.stream.reply(NO, text.encode()[:1000])
        self.loop.call_later(0, lambda: self.fail("refused"))

    def _ended(self, _reason: str) -> None:
        if self._closed:
            return
        self._closed = True
        self._parts.clear()
        self._worker.stop(self._close_part)
        self.over(self)

    def _close_part(self) -> None:
        if self._part is not None:
            self._part.close()

    def fail(self, reason: str) -> None:
        """Gives up the transfer. The part that was received stays for a while."""
        if not self._closed:
            self.stream.fail(reason)

    def join(self) -> None:
        """Waits for the thread of a transfer that has ended."""
        self._worker.join()


class Transfers:
    """All snapshots that this member sends and receives: at most one to each peer, and at most one from all peers
    together.

    catalogue knows which files there are, and is told which are being sent and which have come. report(peer, ok) tells
    the Raft core how a transfer ended. bad(info) is called for a file that can no longer be read. rate bounds each
    outgoing transfer, in bytes a second (0: no limit).
    """

    def __init__(
        self, loop: Loop, store: SnapshotStore, catalogue: Catalogue, cluster_id: int, timeout: float, *,
        report: Callable[[int, bool], object], bad: Callable[[Info], object], rate: int = 0,
    ) -> None:  # fmt: skip
        self.loop = loop
        self.store = store
        self.cluster_id = cluster_id
        self.timeout = timeout
        self.catalogue = catalogue
        self.report = report
        self.bad = bad
        self.rate = rate
        self.outgoing: dict[int, Outgoing] = {}
        self.incoming: Incoming | None = None
        self._before: Incoming | None = None
        self.sent = self.sent_bytes = self.failed = 0
        self._parts_since = loop.now()
        self._closed = False
        self._look()

    def send(self, transport: PeerTransport, message: Message) -> None:
        """Begins to send the snapshot that a MsgSnap names. `report` tells how the transfer ended."""
        peer = message.to
        if peer in self.outgoing:
            return
        assert message.snapshot is not None, "a MsgSnap has one"
        info = self.catalogue.find(message.snapshot.index, message.snapshot.term)
        stream = transport.open_snapshot(peer) if info is not None else None
        if info is None or stream is None:
            self.loop.call_later(0, lambda: self.report(peer, False))
            return
        try:
            source = Source(info)
        except OSError as error:
            log.error("%s cannot be sent: %s", info.path, error)
            stream.close()
            self.loop.call_later(0, lambda: self.report(peer, False))
            return
        log.info("%r: sending snapshot index=%d bytes=%d", stream, info.header.index, info.trailer.size)
        began = self.loop.now()
        self.catalogue.sending[peer] = info
        self.outgoing[peer] = Outgoing(
            self.loop, stream, message, source, lambda ok: self._sent(peer, ok, began), self.rate
        )

    def _sent(self, peer: int, ok: bool, began: float) -> None:
        one = self.outgoing.pop(peer)
        del self.catalogue.sending[peer]
        self.sent += ok
        self.failed += not ok
        self.sent_bytes += one.sent_bytes
        if one.damaged:
            self.bad(one.source.info)
        if ok:
            took = self.loop.now() - began
            log.info("%r: snapshot sent bytes=%d after=%.3fs", one.stream, one.sent_bytes, took)
        if not self._closed:
            self.report(peer, ok)

    def accept(self, stream: AcceptedStream) -> None:
        """A member begins to send a snapshot. A transfer that was coming in before is given up."""
        if self.incoming is not None:
            self.incoming.fail("another one begins")
        if self._before is not None:
            # Two threads must not write one file. This waits at most for the rest of one chunk.
            self._before.join()
        self.incoming = self._before = Incoming(
            self.loop, stream, self.store, self.cluster_id, received=self.catalogue.arrived, over=self._incoming_over
        )

    def _incoming_over(self, one: Incoming) -> None:
        self._parts_since = self.loop.now()
        if self.incoming is one:
            self.incoming = None

    def _look(self) -> None:
        """Runs now and then: gives up transfers without progress, and removes parts that no member
        continues to send.
        """
        if self._closed:
            return
        late = self.loop.now() - self.timeout
        for one in list(self.outgoing.values()):
            if one.progress < late:
                one.fail(f"no progress for {self.timeout:g} s")
        if self.incoming is not None:
            if self.incoming.progress < late:
                self.incoming.fail(f"no progress for {self.timeout:g} s")
        elif self._parts_since < late:
            for path in self.store.parts():
                log.warning("%s was not completed in time and is removed", path)
                path.unlink(missing_ok=True)
            self._parts_since = math.inf  # there are none until one comes in
        self.loop.call_at(shared_time(self.loop.now(), min(1.0, self.timeout / 4)), self._look)

    def close(self) -> None:
        """Ends all transfers and their threads."""
        self._closed = True
        ending: list[Outgoing | Incoming] = list(self.outgoing.values())
        for one in list(self.outgoing.values()):
            one.fail("this member stops")
        if self.incoming is not None:
            ending.append(self.incoming)
            self.incoming.fail("this member stops")
        for ended in ending:
            ended.join()
        if self._before is not None:
            self._before.join()
