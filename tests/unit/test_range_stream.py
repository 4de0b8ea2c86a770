"""RangeStream: the chunks together are the reply of Range at the first revision, and a stream that waits for its client
costs one chunk."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import http2 as h
from support import kvmessages as pb
from support.kvrequests import RANGES, build
from support.kvservice import server
from support.longranges import Writer, outcome

from metastore import errors
from metastore._core.engine_guard import GuardedEngine
from metastore._core.grpc import Limits, MethodTable
from metastore._core.h2 import Session
from metastore._core.kv_server import METHODS, KVServer
from metastore._core.mvcc import Store
from metastore._core.mvcc_stream import FIRST, chunks
from metastore._core.mvcc_sweep import sweep_slice
from metastore.storage.engines.memory import MemoryEngine

KIB = 1 << 10


def merged(parts: list[bytes]) -> bytes:
    """Check which chunk holds what. Return the reply that the chunks are together."""
    whole = pb.RangeResponse()
    replies = [pb.RangeStreamResponse.FromString(part).range_response for part in parts]
    for reply in replies[:-1]:
        assert reply.kvs and not reply.HasField("header") and not reply.count and not reply.more
    assert replies[-1].HasField("header")
    for reply in replies:
        whole.MergeFrom(reply)
    return whole.SerializeToString()


@settings(max_examples=150, deadline=None)
@given(
    st.integers(0, 2**32), st.integers(1, 30), st.lists(RANGES, min_size=1, max_size=6), st.integers(1, 9),
    st.sampled_from([1, 50, 300, 1 << 20]),
)  # fmt: skip
def test_the_chunks_together_are_the_range(seed: int, changes: int, ranges: list[dict], budget: int, most: int) -> None:
    """Writes and compactions go on meanwhile, for the sweep waits."""
    writer = Writer(seed, sweeps=False)
    for _ in range(changes):
        writer.change()
    for fields in ranges:
        plain = {name: value for name, value in fields.items() if "_revision" not in name and "sort_" not in name}
        body = build("range", plain, writer.store.revision).SerializeToString()
        expected = outcome(lambda body=body: writer.store.range_reply(body))

        def stream(body: bytes = body) -> bytes:
            parts = chunks(writer.store, body, most, budget, writer.change_much)
            for part in parts:
                found = pb.RangeStreamResponse.FromString(part).range_response.kvs
                assert len(found) < 2 or sum(map(len, (pair.SerializeToString() for pair in found))) <= most
            return merged(parts)

        assert outcome(stream) == expected


@pytest.mark.parametrize("field", ["sort_order", "sort_target", "min_mod_revision", "max_create_revision"])
def test_what_a_stream_does_not_have(field: str) -> None:
    store = Store(MemoryEngine())
    body = pb.RangeRequest(key=b"a", range_end=b"b", **{field: 2}).SerializeToString()
    with pytest.raises(errors.Unimplemented, match="RangeStream"):
        chunks(store, body, 1000, 100)
    assert len(chunks(store, pb.RangeRequest(key=b"a", sort_order=1).SerializeToString(), 1000, 100)) == 1


def sizes(value: int, keys: int, most: int, seconds: float = 0) -> list[int]:
    """Return the bytes of the chunks with `keys` values of a size."""
    store = Store(MemoryEngine())
    for number in range(keys):
        store.put(pb.PutRequest(key=b"k%06d" % number, value=bytes(value)).SerializeToString())
    body = pb.RangeRequest(key=b"k", range_end=b"l").SerializeToString()
    return [len(part) for part in chunks(store, body, most, 1000, seconds=seconds)]


def test_chunks_grow_to_the_request_limit_and_shrink_for_a_slow_client() -> None:
    grown = sizes(100, 20_000, 1 << 19)
    assert [round(size / FIRST) for size in grown[:5]] == [1, 2, 4, 8, 8]
    assert max(grown) <= (1 << 19) + 100
    assert max(sizes(100, 20_000, 1 << 19, seconds=1)[:-1]) < FIRST + KIB, "neither quick nor slow"
    assert max(sizes(100, 20_000, 1 << 19, seconds=9)[:-1]) < FIRST + KIB, "no chunk is smaller than the first"


class Noting(MemoryEngine):
    """Notes what it is told about reads."""

    def __init__(self) -> None:
        super().__init__()
        self.notes: list[bool] = []

    def read_once(self, once: bool) -> None:
        self.notes.append(once)


@pytest.mark.parametrize(("mib", "least"), [(7, 0), (14, 4)])
def test_what_comes_behind_8_mib_does_not_fill_a_cache(mib: int, least: int) -> None:
    engine = Noting()
    store = Store(GuardedEngine(engine, "noting"))
    for number in range(mib):
        store.put(pb.PutRequest(key=b"k%02d" % number, value=bytes(1 << 20)).SerializeToString())
    body = pb.RangeRequest(key=b"k", range_end=b"l").SerializeToString()
    assert len(chunks(store, body, 1 << 20, 1000)) >= mib
    told = len(engine.notes) // 2
    assert engine.notes == [True, False] * told and (told >= least if least else not told)
    large = sizes(100_000, 9, 250_000)
    assert max(large) < 250_000 and len(large) == 5, "a pair that does not fit begins the next chunk"


# ---- streams on a connection


class Peer:
    """A client on an HTTP/2 session without a socket. It takes output only when it is told to."""

    def __init__(self, kv: KVServer, limits: Limits | None = None, window: int = 1 << 24) -> None:
        self.kv = kv
        self.session = Session(MethodTable({b"/t/RangeStream": METHODS["RangeStream"]}), limits or Limits(), [])
        self.reader = h.Reader()
        self._streams = itertools.count(1, 2)
        self.feed(h.hello(window) if window else h.SHUT)

    def feed(self, data: bytes, now: float = 0.0) -> None:
        for request in self.session.feed(data, len(data), now):
            assert self.kv.handle([request], now) == []

    def open_window(self, size: int = 1 << 24) -> None:
        """Begin to take replies."""
        self.feed(h.frame(h.SETTINGS, 0, 0, b"\x00\x04" + size.to_bytes(4, "big")))
        self.feed(h.frame(h.WINDOW_UPDATE, 0, 0, size.to_bytes(4, "big")))

    def ask(self, now: float = 0.0, **fields: Any) -> int:
        """Begin a stream over all keys. Return its number."""
        number = next(self._streams)
        request = pb.RangeRequest(**{"key": b"k", "range_end": b"l", "serializable": True, **fields})
        self.feed(h.call(number, request.SerializeToString(), b"/t/RangeStream"), now)
        return number

    def take(self) -> None:
        """Take what the server has to send."""
        while data := self.session.take_output():
            self.reader.feed(data)

    def run(self, number: int) -> list[bytes]:
        """Let the server work and take its output until a stream ends. Return the messages."""
        while not self.reader.stream(number).ended:
            while self.kv.serve_late():
                pass
            before = len(self.reader.stream(number).data)
            self.take()
            assert self.kv.resumed or self.reader.stream(number).ended, "nobody would make the next turn"
            assert len(self.reader.stream(number).data) > before
        return self.reader.stream(number).messages


def unary(kv: KVServer, **fields: Any) -> bytes:
    return bytes(kv.store.range_reply(pb.RangeRequest(key=b"k", range_end=b"l", **fields).SerializeToString()))


def test_a_stream_goes_on_as_its_client_takes_it() -> None:
    kv = server(30_000)
    peer = Peer(kv)
    expected = unary(kv)
    number = peer.ask()
    assert len(kv.streams) == 1
    parts = peer.run(number)
    assert merged(parts) == expected and len(parts) > 3
    assert peer.reader.stream(number).status == 0
    assert not kv.streams and not kv.late and peer.session.pending_output == 0
    assert kv.call_counts["RangeStream"] == 1


def test_a_client_that_reads_nothing_costs_one_small_chunk() -> None:
    kv = server(30_000)
    peer = Peer(kv, window=0)
    number = peer.ask()
    for _ in range(20):
        kv.serve_late()
        peer.take()
    assert FIRST <= peer.session.pending_output <= FIRST + KIB
    assert not kv.late and not kv.resumed, "the stream takes no turns meanwhile"
    # The store changes, and then the client reads at last.
    expected = unary(kv)
    kv.store.delete_range(pb.DeleteRangeRequest(key=b"k0001", range_end=b"l").SerializeToString())
    peer.open_window()
    peer.take()
    assert merged(peer.run(number)) == expected


def test_a_cancelled_stream_is_forgotten() -> None:
    kv = server(30_000)
    peer = Peer(kv, window=0)
    parked, queued = peer.ask(), peer.ask()
    kv.serve_late()
    peer.take()
    assert len(kv.streams) == 2
    for number in (parked, queued):
        peer.feed(h.frame(h.RST_STREAM, 0, number, (8).to_bytes(4, "big")))
    assert not kv.streams and peer.session.pending_output == 0
    kv.serve_late()
    assert not kv.late
    peer.ask()
    peer.session.close()
    assert not kv.streams


def test_streams_are_bounded_and_answered_at_a_stop() -> None:
    kv = server(30_000)
    peer = Peer(kv, window=0)
    numbers = [peer.ask() for _ in range(1001)]
    kv.serve_late()
    peer.take()
    assert len(kv.streams) == 1000
    assert peer.reader.stream(numbers[-1]).status == errors.RESOURCE_EXHAUSTED
    [request, *_] = kv.streams
    assert request in kv.unanswered()
    kv.abandon_late(errors.Stopped)
    assert request.answered


def sweep(kv: KVServer, now: float) -> bool:
    """Sweep if that may be done now. Return whether it may."""
    if kv.holds_history(now):
        return False
    while sweep_slice(kv.store, 10_000):
        pass
    return True


def test_a_compaction_does_not_break_a_stream_but_waits_only_so_long() -> None:
    kv = server(30_000)
    expected = unary(kv)
    quick, lazy = Peer(kv), Peer(kv, window=0)
    number, stuck = quick.ask(), lazy.ask()
    kv.serve_late()
    lazy.take()
    kv.store.delete_range(pb.DeleteRangeRequest(key=b"k", range_end=b"l").SerializeToString())
    kv.store.put(pb.PutRequest(key=b"k0", value=b"new").SerializeToString())
    kv.store.commit(2, 1)
    assert sweep(kv, 0.0), "nothing is compacted yet"
    kv.store.compact(pb.CompactionRequest(revision=kv.store.revision).SerializeToString())
    kv.store.commit(3, 1)
    assert not sweep(kv, 1.0)
    assert merged(quick.run(number)) == expected
    assert not sweep(kv, 30.0)
    assert sweep(kv, 31.0)
    lazy.open_window()
    lazy.take()
    assert lazy.reader.stream(stuck).status == errors.OUT_OF_RANGE
    assert "compacted" in lazy.reader.stream(stuck).text
    later = Peer(kv)
    assert merged(later.run(later.ask())) == unary(kv)


def test_the_lazy_give_way_when_others_need_the_room() -> None:
    """Many clients that read nothing fill three quarters of the room for replies. The first of them goes first."""
    kv = server(30_000)
    limits = Limits(max_total_output=10 * FIRST)
    lazy = [Peer(kv, limits, window=0) for _ in range(9)]
    numbers = [peer.ask() for peer in lazy]
    while kv.serve_late():
        pass
    assert 7.5 * FIRST <= limits.total_output < 9 * FIRST
    quick = Peer(kv, limits)
    number = quick.ask(1.0)

    def turn() -> list[int | None]:
        """Make a turn of the loop. Return what the lazy clients were told."""
        kv.serve_late()
        for peer in [*lazy, quick]:
            peer.take()
        kv.serve_deferred()
        return [peer.reader.stream(one).reset for peer, one in zip(lazy, numbers, strict=True)]

    assert set(turn()) == {None} and not quick.reader.stream(number).data, "nobody has let his chunk lie for long"
    kv.expire(11.0, 50.0)
    turn()
    assert turn()[:2] == [11, None]
    for _ in range(40):
        turn()
    assert merged(quick.run(number)) == unary(kv)
