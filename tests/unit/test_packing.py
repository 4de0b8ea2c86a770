"""Packed frames: the frames of a bulk stream as one compressed stream."""

from __future__ import annotations

import random
import socket
from typing import Any

import pytest
import zstandard
from support.peernet import Net, append, connected, hello

from metastore._core.raft_wire import Outbox
from metastore.errors import FormatError
from metastore.peers import handshake as hs
from metastore.peers.packing import MAX_PLAIN, PackedOutbox, Packer, Unpacker
from metastore.peers.stream import PACKED


def pieces_of(seed: int, count: int) -> list[bytes]:
    chance = random.Random(seed)
    return [chance.choice((b"abc", b"x" * 3000, chance.randbytes(500), b"the same again " * 40)) for _ in range(count)]


def test_what_was_packed_comes_back() -> None:
    packer, unpacker = Packer(), Unpacker()
    for seed in range(50):
        pieces = pieces_of(seed, seed)
        body, taken = packer.pack(pieces)
        plain = b"".join(pieces)
        assert taken == len(plain)
        assert unpacker.unpack(body) == plain


def test_no_piece_is_longer_than_it_may_be() -> None:
    big = random.Random(1).randbytes(MAX_PLAIN + 5)
    body, taken = Packer().pack([b"12345", memoryview(big)])
    assert taken == MAX_PLAIN
    assert Unpacker().unpack(body) == b"12345" + big[: MAX_PLAIN - 5]


def test_what_repeats_takes_little() -> None:
    packer = Packer()
    first, again = (len(packer.pack([random.Random(2).randbytes(4000)])[0]) for _ in range(2))
    assert first > 4000 and again < 50


def test_bytes_that_unpack_to_too_much_are_refused() -> None:
    parameters = zstandard.ZstdCompressionParameters(window_log=17, write_content_size=False)
    bomb = zstandard.ZstdCompressor(compression_params=parameters).compressobj()
    body = bomb.compress(bytes(1 << 28)) + bomb.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    with pytest.raises(FormatError, match="more than 262144"):
        Unpacker().unpack(body)


@pytest.mark.parametrize("what", ["noise", "window", "behind the end"])
def test_other_bytes_are_refused(what: str) -> None:
    made = {
        "noise": b"no zstd at all",
        "window": zstandard.ZstdCompressor(
            compression_params=zstandard.ZstdCompressionParameters(window_log=18, write_content_size=False)
        ).compressobj().compress(bytes(1 << 20)),
        "behind the end": zstandard.ZstdCompressor().compress(b"one") + b"more of it",
    }  # fmt: skip
    body = made[what]
    unpacker = Unpacker()
    with pytest.raises(FormatError, match="cannot be unpacked"):
        unpacker.unpack(body)
        unpacker.unpack(b"more")


def test_an_outbox_is_packed_as_the_socket_takes_it() -> None:
    plain = Outbox(1 << 22)
    messages = [append(size) for size in (50, 400_000, 70)]
    packed = PackedOutbox(plain, PACKED)
    for message in messages:
        assert plain.add(message)
    whole, count = plain.size, 0
    while plain.size or packed.out.size:
        packed.fill()
        before = plain.size
        packed.fill()
        assert plain.size == before, "nothing more is packed while something waits"
        packed.out.sent(sum(map(len, packed.out.pieces())))
        count += 1
    assert packed.taken == whole and count == 2


# ---- between members


@pytest.fixture
def pair(net: Net) -> tuple[Any, Any]:
    return net.pair(pack=True, unpacks=True)


def sent_in_bulk(transport: Any, member: int) -> int:
    return int(transport._peers[member].bulk.sent_bytes)


def test_packed_messages_arrive(net: Net, pair: tuple[Any, Any]) -> None:
    one, two = pair
    appends = [append(100), append(600_000), *(append(300) for _ in range(40))]
    plain = Outbox(1 << 22)
    for message in appends:
        plain.add(message)
    before = sent_in_bulk(one, 2)
    one.send(appends)
    assert one.forward(2, b"operations")
    net.until(lambda: len(two.handler.messages) == len(appends) and two.handler.forwards)
    assert two.handler.messages == appends and two.handler.forwards == [(1, b"operations")]
    assert 0 < sent_in_bulk(one, 2) - before < plain.size


def test_a_new_connection_begins_anew(net: Net, pair: tuple[Any, Any]) -> None:
    one, two = pair
    one.send([append(100)])
    net.until(lambda: two.handler.messages)
    before = sent_in_bulk(one, 2)
    one._peers[2].bulk.fail("for a test")
    net.until(lambda: connected(one, 2) and one._peers[2].bulk.is_open)
    one.send([append(200)])
    net.until(lambda: len(two.handler.messages) == 2)
    assert two.handler.messages == [append(100), append(200)]
    assert sent_in_bulk(one, 2) > before


def test_a_member_that_cannot_unpack_gets_plain_frames(net: Net) -> None:
    one, two = net.pair(pack=True)
    one.send([append(100)])
    net.until(lambda: two.handler.messages)
    assert one._peers[2].bulk._packed is None


def test_a_bad_packed_frame_ends_the_stream(net: Net) -> None:
    one = net.add(1, unpacks=True)
    one.set_peers({1: one.bound[0], 2: "127.0.0.1:1"})
    inner = Outbox()
    inner.add_blob(PACKED, b"one in another")
    nested = Packer().pack(inner.pieces())[0]
    for body in (b"noise", nested):
        outer = Outbox()
        outer.add_blob(PACKED, body)
        host, _, port = one.bound[0].rpartition(":")
        with socket.create_connection((host, int(port))) as sock:
            sock.sendall(hello(2, 1, hs.BULK) + b"".join(outer.pieces()))
            sock.setblocking(False)
            net.until(lambda sock=sock: ended(sock))
    assert not one.handler.messages


def ended(sock: socket.socket) -> bool:
    try:
        while sock.recv(4096):
            pass
    except BlockingIOError:
        return False
    except ConnectionResetError:
        return True
    return True
