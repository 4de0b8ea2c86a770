"""Snapshots from member to member over real sockets, both in one loop: resumed, requested again, given up, expired."""

from __future__ import annotations

import contextlib
import math
import os
import queue
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support.snapshotfiles import CONF, engine_of, make_codec, make_raw, records, save

from metastore._core.codec import PayloadCodec
from metastore._core.engine import MemoryEngine
from metastore._core.raft_types import Message, MessageType, Snapshot
from metastore._core.snap_chunk import check_chunk
from metastore.errors import FormatError
from metastore.failpoints import Failpoints
from metastore.net.loop import Loop
from metastore.peers.transport import PeerIdentity, PeerLimits, PeerTransport
from metastore.snapshots.catalogue import Catalogue
from metastore.snapshots.coordinator import Snapshots
from metastore.snapshots.files import Info, SnapshotStore, read_header, read_image
from metastore.snapshots.format import Header
from metastore.snapshots.transfer import BEGIN, CHUNK, DONE, NO, PART, TRAILER, WANT, WINDOW, Transfers, Worker

LIMITS = PeerLimits(backoff_min=0.01, backoff_max=0.05, sweep=0.02)
CLUSTER = 99


class Noting(Catalogue):
    """Keeps everything that has come."""

    def __init__(self) -> None:
        super().__init__(None)
        self.infos: list[Info] = []

    def arrived(self, info: Info) -> None:
        super().arrived(info)
        self.infos.append(info)


class Member:
    """A transport, a store and its transfers, and the handler of all three."""

    def __init__(
        self, net: Net, number: int, folder: Path, codec: Callable[[], PayloadCodec], limits: PeerLimits
    ) -> None:
        self.net = net
        self.points = Failpoints()
        self.store = SnapshotStore(folder / f"m{number}", chunk_size=4096, make_codec=codec, failpoints=self.points)
        self.catalogue = Noting()
        self.reports: list[tuple[int, bool]] = []
        self.messages: list[Message] = []
        self.bads: list[Info] = []
        self.transport = PeerTransport(
            net.loop,
            PeerIdentity(CLUSTER, 5, number, f"dir-{number}", ((1, "zstd"),)),
            "127.0.0.1:0",
            handler=self,
            random=random.Random(number).random,
            limits=limits,
        )
        self.transfers = self.make()

    def flags(self) -> int:
        return 0

    def must_read(self) -> set[tuple[int, str]]:
        return set()

    def on_answer(self, *_: object) -> None:
        pass

    on_greeting = on_answer

    def make(self, timeout: float = 30.0, rate: int = 0) -> Transfers:
        """Make a new set of transfers, as after a restart."""
        self.transfers = Transfers(
            self.net.loop,
            self.store,
            self.catalogue,
            CLUSTER,
            timeout,
            bad=self.bads.append,
            rate=rate,
            report=lambda peer, ok: self.reports.append((peer, ok)),
        )
        return self.transfers

    def on_message(self, message: Message) -> None:
        self.messages.append(message)

    def on_forward(self, from_: int, frame: bytes) -> None:
        raise AssertionError

    def on_refusal(self, from_: int, code: int, ids: list[int]) -> None:
        raise AssertionError

    def on_news(self, from_: int, tag: int, data: bytes) -> None:
        raise AssertionError

    def on_unreachable(self, member: int) -> None:
        """Streams come and go in these tests."""

    def on_removed(self, text: str) -> None:
        raise AssertionError

    def roster_record(self) -> str:
        return ""

    def on_snapshot(self, message: Message) -> None:
        self.transfers.send(self.transport, message)

    def on_snapshot_stream(self, stream: Any) -> None:
        self.transfers.accept(stream)

    def offer(self, info: Info, to: int = 2) -> Message:
        """Return the message with which the Raft core would have `info` sent."""
        self.catalogue.good.append(info)
        message = Message(MessageType.MsgSnap, to, 1, 8, snapshot=Snapshot(info.header.index, info.header.term, CONF))
        self.transport.send([message])
        return message


class Net:
    """Members in one loop."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loop = Loop()
        self.members: list[Member] = []

    def turn(self) -> None:
        self.loop.run_once(0.01, self._flush)

    def _flush(self) -> None:
        for member in self.members:
            member.transport.flush()

    def pair(
        self, codec: Callable[[], PayloadCodec] = make_codec, limits: PeerLimits = LIMITS
    ) -> tuple[Member, Member]:
        self.members = [Member(self, number, self.folder, codec, limits) for number in (1, 2)]
        where = {number + 1: member.transport.bound[0] for number, member in enumerate(self.members)}
        for member in self.members:
            member.transport.set_peers(where)
        one, two = self.members
        self.until(lambda: one.transport.connected(2) and two.transport.connected(1))
        return one, two

    def until(self, done: Callable[[], object], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not done():
            assert time.monotonic() < end, "it did not come to that"
            self.turn()


@pytest.fixture
def net(tmp_path: Path) -> Iterator[Net]:
    one = Net(tmp_path)
    yield one
    for member in one.members:
        # If a test failed, a thread may still be held up.
        member.points.set("snapshot.receive", "off")
        member.transfers.close()
        member.transport.close()
    one.loop.close()


def big(store: SnapshotStore, count: int = 4000) -> Info:
    return save(store, engine_of(records(count)))


def test_the_file_arrives_then_the_message(net: Net) -> None:
    one, two = net.pair()
    info = big(one.store)
    message = one.offer(info)
    net.until(lambda: one.catalogue.sending)
    assert one.catalogue.sending == {2: info}, "it stays"
    net.until(lambda: one.reports)
    assert not one.catalogue.sending
    assert one.reports == [(2, True)]
    net.until(lambda: two.messages)
    assert two.messages == [message] and len(two.catalogue.infos) == 1
    assert two.catalogue.infos[0].path.read_bytes() == info.path.read_bytes()
    engine = MemoryEngine()
    two.store.restore(two.catalogue.infos[0].path, engine)
    assert engine.get(b"k000123") == records()[b"k000123"]
    assert not two.store.parts() and not one.transfers.outgoing and one.transfers.sent == 1


def test_large_chunks_go_in_pieces(net: Net) -> None:
    one, two = net.pair(make_raw, PeerLimits(max_snapshot=400_000, sweep=0.02))
    one.store.chunk_size = 1_500_000
    info = save(one.store, engine_of(records(20000, 200)))
    assert info.header.chunk_size == 1_500_000 and info.trailer.chunks > 2
    one.offer(info)
    net.until(lambda: one.reports)
    assert one.reports == [(2, True)] and two.catalogue.infos[0].path.read_bytes() == info.path.read_bytes()


def test_a_second_request_gets_the_complete_file_at_once(net: Net) -> None:
    one, two = net.pair()
    info = big(one.store)
    one.offer(info)
    net.until(lambda: one.reports)
    sent = one.transfers.sent_bytes
    one.offer(info)
    net.until(lambda: len(one.reports) == 2 and len(two.messages) == 2)
    assert one.reports[1] == (2, True) and one.transfers.sent_bytes == sent


def part_chunks(path: Path) -> int:
    """Return how many whole chunks a file that was received in part has. Raises FormatError, OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        header, at = read_header(fd)
        count = 0
        with contextlib.suppress(FormatError):
            while True:
                image = read_image(fd, at, header.chunk_size)
                check_chunk(image, header.chunk_size)
                at += len(image)
                count += 1
        return count
    finally:
        os.close(fd)


def received(store: SnapshotStore) -> int:
    """Return how many chunks of a file are there; -1 if there is no file, or not even its header yet."""
    parts = store.parts()
    try:
        return part_chunks(parts[0]) if parts else -1
    except FormatError:
        return -1


def spy(member: Member) -> list[tuple[int, Any]]:
    """Note everything that a member's outgoing streams send from now on."""
    calls: list[tuple[int, Any]] = []
    opened = member.transport.open_snapshot

    def wrapped(to: int) -> Any:
        stream = opened(to)
        assert stream is not None
        send, open_it = stream.send, []

        def noted(tag: int, data: Any) -> bool:
            taken = send(tag, data)
            if taken:
                calls.append((tag, len(data)))
            return taken

        stream.send = noted  # type: ignore[method-assign]
        open_it.append(stream)
        return stream

    member.transport.open_snapshot = wrapped  # type: ignore[method-assign]
    return calls


def chunks_sent(calls: list[tuple[int, Any]]) -> int:
    return sum(tag == CHUNK for tag, _ in calls)


@pytest.mark.parametrize("end", ["sender", "receiver"])
def test_a_transfer_goes_on_where_it_was_cut(net: Net, end: str) -> None:
    one, two = net.pair()
    info = big(one.store)
    assert info.trailer.chunks > 40
    two.points.set("snapshot.receive", "block@20")
    one.offer(info)
    net.until(lambda: received(two.store) == 19)
    if end == "sender":
        one.transfers.outgoing[2].fail("cut")
    else:
        assert two.transfers.incoming is not None
        two.transfers.incoming.fail("cut")
    two.points.set("snapshot.receive", "off")
    net.until(lambda: one.reports)
    assert one.reports == [(2, False)]
    net.until(lambda: two.transfers.incoming is None)
    have = part_chunks(two.store.parts()[0])
    assert have >= 19
    calls = spy(one)
    one.offer(info)
    net.until(lambda: len(one.reports) == 2)
    assert one.reports[1] == (2, True)
    assert chunks_sent(calls) <= info.trailer.chunks - have
    assert two.catalogue.infos[0].path.read_bytes() == info.path.read_bytes()


def test_a_restarted_receiver_goes_on(net: Net) -> None:
    one, two = net.pair()
    info = big(one.store)
    two.points.set("snapshot.receive", "error(EIO)@20")
    one.offer(info)
    net.until(lambda: one.reports)
    assert one.reports == [(2, False)] and part_chunks(two.store.parts()[0]) == 19
    # A new process has a new store and new transfers over the files on the disk.
    two.transfers.close()
    two.points = Failpoints()
    two.store = SnapshotStore(two.store.path, chunk_size=1 << 20, make_codec=make_codec, failpoints=two.points)
    two.make()
    calls = spy(one)
    one.offer(info)
    net.until(lambda: len(one.reports) == 2)
    assert one.reports[1] == (2, True) and chunks_sent(calls) == info.trailer.chunks - 19


def test_a_bad_chunk_is_asked_for_again(net: Net) -> None:
    one, two = net.pair()
    info = big(one.store, 500)
    spoilt = [3]
    take = Transfers.accept

    def accept(stream: Any) -> None:
        take(two.transfers, stream)
        on_blob = stream.on_blob
        seen = [0]

        def spoil(tag: int, data: bytes) -> None:
            seen[0] += tag == CHUNK
            if tag == CHUNK and seen[0] in spoilt:
                spoilt.clear()
                data = data[:-1] + bytes([data[-1] ^ 1])
            on_blob(tag, data)

        stream.on_blob = spoil

    two.on_snapshot_stream = accept  # type: ignore[method-assign]
    one.offer(info)
    net.until(lambda: one.reports)
    assert one.reports == [(2, True)] and not spoilt
    assert two.catalogue.infos[0].path.read_bytes() == info.path.read_bytes()


MANGLES: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "missing": lambda images: images[1:],
    "swapped": lambda images: [images[1], images[0]],
    "doubled": lambda images: [images[0], images[0], images[1]],
    "truncated": lambda images: [images[0][:-7], images[1]],
    "emptied": lambda images: [b"", images[1]],
    "header alone": lambda images: [images[0][:40], images[1]],
    "longer": lambda images: [images[0] + b"x", images[1]],
    "flipped": lambda images: [images[0][:60] + bytes([images[0][60] ^ 4]) + images[0][61:], images[1]],
    "of another number": lambda images: [images[1], images[1]],
}


@pytest.mark.parametrize("mangle", MANGLES)
def test_chunks_that_come_mangled_are_asked_for_again(net: Net, mangle: str) -> None:
    """The 5th and 6th chunk reach the receiver changed. It ends with the same file, without a new attempt."""
    one, two = net.pair()
    info = big(one.store, 1000)
    assert info.trailer.chunks > 10
    seen: list[bytes] = []

    def accept(stream: Any) -> None:
        two.transfers.accept(stream)
        on_blob = stream.on_blob

        def spoil(tag: int, data: bytes) -> None:
            if tag != CHUNK or len(seen) >= 6:
                on_blob(tag, data)
                return
            seen.append(bytes(data))
            if len(seen) < 5:
                on_blob(tag, data)
            elif len(seen) == 6:
                for image in MANGLES[mangle](seen[4:]):
                    on_blob(CHUNK, image)

        stream.on_blob = spoil

    two.on_snapshot_stream = accept  # type: ignore[method-assign]
    one.offer(info)
    net.until(lambda: one.reports)
    assert one.reports == [(2, True)] and two.catalogue.infos[0].path.read_bytes() == info.path.read_bytes()


def test_both_ends_restarted_in_the_middle(net: Net) -> None:
    """Both sides get new stores and transfers over the files on their disks, twice. Only the missing chunks are
    sent."""
    one, two = net.pair()
    info = big(one.store)
    sent = 0
    for stop in (15, 16):
        begun = max(0, received(two.store))
        two.points.set("snapshot.receive", f"block@{stop}")
        calls = spy(one)
        one.offer(info)
        # The thread that was held up may have taken one more chunk before the restart.
        have = begun + stop - 1
        net.until(lambda have=have: received(two.store) == have)
        sent += chunks_sent(calls)
        two.points.set("snapshot.receive", "error(EIO)")
        for member in (one, two):
            member.transfers.close()
            member.points = Failpoints()
            member.store = SnapshotStore(
                member.store.path, chunk_size=4096, make_codec=make_codec, failpoints=member.points
            )
            member.make()
        one.catalogue.good = [one.store.verify(path) for path in one.store.names()]
        info = one.catalogue.good[0]
        one.reports.clear()
    calls = spy(one)
    one.offer(info)
    net.until(lambda: one.reports)
    assert one.reports == [(2, True)]
    assert sent + chunks_sent(calls) <= info.trailer.chunks + 2 * (WINDOW + 1)
    assert two.catalogue.infos[0].path.read_bytes() == info.path.read_bytes()


def test_what_always_comes_bad_is_given_up(net: Net) -> None:
    one, two = net.pair()
    info = big(one.store, 500)

    def accept(stream: Any) -> None:
        two.transfers.accept(stream)
        on_blob = stream.on_blob
        stream.on_blob = lambda tag, data: on_blob(tag, data if tag != CHUNK else data[:-1] + b"?")

    two.on_snapshot_stream = accept  # type: ignore[method-assign]
    one.offer(info)
    net.until(lambda: one.reports)
    assert one.reports == [(2, False)] and not two.catalogue.infos


def test_a_file_that_rotted_at_the_sender_is_not_sent(net: Net) -> None:
    one, two = net.pair()
    info = big(one.store)
    data = bytearray(info.path.read_bytes())
    data[len(data) // 2] ^= 1
    info.path.write_bytes(data)
    one.offer(info)
    net.until(lambda: one.reports)
    assert one.reports == [(2, False)] and one.bads == [info] and not two.catalogue.infos


def test_a_snapshot_of_another_cluster_is_refused(net: Net) -> None:
    one, two = net.pair()
    engine = engine_of(records())
    from metastore._core.snap_records import Walker

    info = one.store.save(Header(1000, 7, CONF, 55, 1, CLUSTER + 1, 4096), Walker(engine.view()))
    one.offer(info)
    net.until(lambda: one.reports)
    assert one.reports == [(2, False)] and not two.catalogue.infos


def test_a_full_disk_is_reported_to_the_sender(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    one, two = net.pair()
    two.points.set("snapshot.receive", "error(ENOSPC)@5")
    one.offer(big(one.store))
    net.until(lambda: one.reports)
    assert one.reports == [(2, False)] and "No space left" in caplog.text


def test_nothing_to_send_is_reported(net: Net) -> None:
    one, _ = net.pair()
    one.transport.send([Message(MessageType.MsgSnap, 2, 1, 8, snapshot=Snapshot(5, 5, CONF))])
    net.until(lambda: one.reports)
    assert one.reports == [(2, False)]


def test_a_stalled_transfer_is_given_up_and_what_came_expires(net: Net) -> None:
    one, two = net.pair()
    one.transfers.close()
    two.transfers.close()
    one.make(timeout=0.3)
    two.make(timeout=0.5)
    two.points.set("snapshot.receive", "block@20")
    one.offer(big(one.store))
    net.until(lambda: received(two.store) == 19)
    net.until(lambda: one.reports)
    assert one.reports == [(2, False)] and two.store.parts()
    two.points.set("snapshot.receive", "off")
    net.until(lambda: not two.store.parts())
    net.until(lambda: two.transfers._parts_since == math.inf)  # the folder is not read again until one comes in


def test_at_most_a_window_of_chunks_is_under_way(net: Net) -> None:
    one, two = net.pair()
    two.points.set("snapshot.receive", "block@10")
    calls = spy(one)
    one.offer(big(one.store))
    net.until(lambda: chunks_sent(calls) >= 9 + WINDOW)
    for _ in range(20):
        net.turn()
    assert chunks_sent(calls) == 9 + WINDOW
    two.points.set("snapshot.receive", "off")
    net.until(lambda: one.reports == [(2, True)])


def test_one_transfer_to_a_peer_at_a_time(net: Net) -> None:
    one, two = net.pair()
    info = big(one.store)
    for _ in range(3):
        one.offer(info)
    net.until(lambda: one.reports)
    assert one.reports == [(2, True)] and len(two.catalogue.infos) == 1


def test_the_rate_is_kept(net: Net) -> None:
    one, _ = net.pair(make_raw)
    one.transfers.close()
    one.make(rate=400_000)
    info = big(one.store, 2000)
    began = time.monotonic()
    one.offer(info)
    net.until(lambda: one.reports)
    assert one.reports == [(2, True)]
    assert time.monotonic() - began >= (info.trailer.size - 2 * 4096) / 400_000 * 0.9


def blobs(*sent: tuple[int, bytes]) -> Callable[[Any], None]:
    def play(stream: Any) -> None:
        for tag, data in sent:
            assert stream.send(tag, data)

    return play


@pytest.mark.parametrize(
    "play",
    [
        blobs((CHUNK, b"x")),
        blobs((TRAILER, bytes(64))),
        blobs((200, b"")),
        blobs((1, b"no header")),
        blobs((1, Header(5, 1, CONF, 1, 1, CLUSTER, 4096).encode()), (1, b"twice")),
    ],
)
def test_nonsense_ends_the_stream_and_nothing_else(net: Net, play: Callable[[Any], None]) -> None:
    one, two = net.pair()
    stream = one.transport.open_snapshot(2)
    assert stream is not None
    ends: list[str] = []
    stream.on_open = lambda: play(stream)
    stream.on_end = ends.append
    net.until(lambda: ends)
    net.until(lambda: two.transfers.incoming is None)
    one.offer(big(one.store))
    net.until(lambda: one.reports)
    assert one.reports == [(2, True)]


@pytest.mark.parametrize(
    ("sent", "reason"),
    [([(CHUNK, b"x")] * (WINDOW + 5), "more chunks than were asked for"), ([(PART, bytes(3000))] * 2, "too long")],
)
def test_a_sender_without_measure_is_cut_off(
    net: Net, caplog: pytest.LogCaptureFixture, sent: list[tuple[int, bytes]], reason: str
) -> None:
    """Chunks are kept until the thread has written them, and the parts of one until it is whole."""
    one, two = net.pair()
    two.points.set("snapshot.receive", "block")
    stream = one.transport.open_snapshot(2)
    assert stream is not None
    ends: list[str] = []
    stream.on_open = lambda: stream.send(BEGIN, Header(5, 1, CONF, 1, 1, CLUSTER, 4096).encode())
    stream.on_blob = lambda _tag, _data: blobs(*sent)(stream)
    stream.on_end = ends.append
    net.until(lambda: ends)
    assert reason in caplog.text and two.transfers.incoming is None
    two.points.set("snapshot.receive", "off")


@pytest.mark.parametrize("answer", [(WANT, b"short"), (WANT, b"\xff" * 8 + b"\0"), (77, b""), (NO, b"no"), (DONE, b"")])
def test_nonsense_from_a_receiver_ends_the_transfer(net: Net, answer: tuple[int, bytes]) -> None:
    one, two = net.pair()

    def accept(stream: Any) -> None:
        stream.on_blob = lambda _tag, _data: stream.reply(*answer)

    two.on_snapshot_stream = accept  # type: ignore[method-assign]
    one.offer(big(one.store))
    net.until(lambda: one.reports)
    # A peer that claims to have the file is believed. The Raft core finds out.
    assert one.reports == [(2, answer[0] == DONE)]


class Posts:
    """The calls that threads post to a loop, taken one by one."""

    def __init__(self) -> None:
        self.calls: queue.Queue[Callable[[], object]] = queue.Queue()

    def call_soon_threadsafe(self, call: Callable[[], object]) -> None:
        self.calls.put(call)


def fault() -> None:
    raise RuntimeError("a fault")


def test_a_fault_in_a_job_is_told_and_the_thread_goes_on() -> None:
    posts, failures, results, ended = Posts(), [], [], []
    worker = Worker(posts, "worker", failures.append)  # type: ignore[arg-type]
    worker.ask(fault, results.append)
    worker.ask(lambda: 7, results.append)
    for _ in range(2):
        posts.calls.get(timeout=20)()
    assert [str(error) for error in failures] == ["a fault"] and results == [7] and worker.waiting == 0
    worker.stop(lambda: ended.append(1))
    worker.join()
    assert ended == [1]


def test_a_fault_in_an_installation_ends_the_node() -> None:
    """Otherwise its thread alone would end, and the node would wait for the engine for ever."""
    posts = Posts()
    snapshots = Snapshots.__new__(Snapshots)
    snapshots.loop = posts  # type: ignore[assignment]
    snapshots.store = SimpleNamespace(restore=lambda *_arguments: fault())  # type: ignore[assignment]
    info = SimpleNamespace(path=Path("some.snap"))
    snapshots._read(info, MemoryEngine(), [], lambda: None)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match="a fault"):
        posts.calls.get(timeout=20)()
