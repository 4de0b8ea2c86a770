"""Frames and greetings between members: round trips, cuts, wrong bytes, limits, and messages that no member sends."""

from __future__ import annotations

import struct
import zlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastore._core.batch import frame, unframe
from metastore._core.entry import Entry, encode_entry
from metastore._core.raft_types import ConfState, Message, MessageType, Snapshot
from metastore._core.raft_wire import HEADER, REFUSALS, Blob, Forward, FrameReader, Outbox, Refusal
from metastore.addresses import MAX_ADDRESS
from metastore.errors import FormatError
from metastore.peers import handshake as hs
from metastore.settings import MAX_BATCH_OPS, MAX_NAME

T = MessageType
LOCAL = {T.MsgHup, T.MsgBeat, T.MsgProp, T.MsgUnreachable, T.MsgSnapStatus, T.MsgCheckQuorum}
REMOTE = sorted(set(T) - LOCAL)


def entries(first: int, sizes: list[int], term: int = 5) -> bytes:
    return b"".join(encode_entry(Entry(term, first + i, 0, bytes(size))) for i, size in enumerate(sizes))


def append(sizes: list[int], index: int = 7) -> Message:
    return Message(T.MsgApp, 2, 1, 5, 5, index, commit=6, images=entries(index + 1, sizes))


def drain(outbox: Outbox) -> bytes:
    """Return all bytes of an outbox, taken out."""
    out = b""
    while outbox.size:
        piece = b"".join(outbox.pieces())
        outbox.sent(len(piece))
        out += piece
    return out


def wire(*messages: Message) -> bytes:
    outbox = Outbox(1 << 30)
    assert all(outbox.add(message) for message in messages)
    return drain(outbox)


def sealed(kind: int, body: bytes, *, head: int | None = None, n: int | None = None, reserved: int = 0) -> bytes:
    """Return a frame with right sums, whatever its content."""
    head = len(body) if head is None else head
    start = struct.pack("<IIIB", zlib.crc32(body[:head]), len(body) if n is None else n, head, kind)
    start += reserved.to_bytes(3, "little")
    return start + struct.pack("<I", zlib.crc32(start)) + body


def read(data: bytes, **options: Any) -> list[Any]:
    return FrameReader(**options).feed(data, len(data))


def plain(item: Any) -> Any:
    """Return items as values that can be compared."""
    if isinstance(item, Forward):
        return ("forward", item.frame)
    if isinstance(item, Refusal):
        return ("refusal", item.code, item.ids)
    return ("blob", item.tag, item.data) if isinstance(item, Blob) else item


def mixed() -> tuple[bytes, list[Any]]:
    """Return a stream with one item of each kind, and these items."""
    snapshot = Snapshot(9, 4, ConfState((1, 2, 3), (4,), (1, 2), (), True))
    messages = [
        Message(T.MsgHeartbeat, 2, 1, 5, commit=6, context=b"\0\1" * 9),
        append([0, 10, 100]),
        append([5000, 1]),
        Message(T.MsgAppResp, 2, 1, 5, 3, 7, reject=True, reject_hint=4, vote=2),
        Message(T.MsgSnap, 2, 1, 5, snapshot=snapshot),
    ]
    outbox = Outbox()
    for message in messages:
        assert outbox.add(message)
    assert outbox.add_forward(b"operations") and outbox.add_refusal(2, [1, 2**64 - 1])
    assert outbox.add_blob(7, b"\0chunk")
    expected = [*messages, ("forward", b"operations"), ("refusal", 2, [1, 2**64 - 1]), ("blob", 7, b"\0chunk")]
    return drain(outbox), expected


# ---- round trips


@pytest.mark.parametrize("kind", REMOTE, ids=lambda kind: kind.name)
def test_a_message_is_framed_as_it_encodes_itself(kind: MessageType) -> None:
    message = Message(kind, 2**64 - 1, 1, 2, 3, 4, None, 5, 6, None, True, 7, b"context")
    data = wire(message)
    assert data[HEADER:] == message.encode()
    assert read(data) == [message] == [Message.decode(data[HEADER:])]


def test_everything_in_one_piece_and_byte_by_byte() -> None:
    data, expected = mixed()
    assert [plain(item) for item in read(data, from_=1, to=2)] == expected
    reader, items = FrameReader(from_=1, to=2), []
    for at in range(len(data)):
        items += reader.feed(data[at : at + 1], 1)
    assert [plain(item) for item in items] == expected
    assert reader.frames == len(expected) and reader.waiting == 0


@given(cuts=st.lists(st.integers(1, 4000), max_size=12), takes=st.lists(st.integers(1, 3000), max_size=12))
@settings(max_examples=60, deadline=None)
def test_any_partial_write_and_any_partial_read(cuts: list[int], takes: list[int]) -> None:
    _, expected = mixed()
    outbox = Outbox()
    for message in expected[:5]:
        assert outbox.add(message)
    data = b""
    for take in takes:
        now = b"".join(outbox.pieces())[:take]
        outbox.sent(len(now))
        data += now
    data += drain(outbox)
    assert data == wire(*expected[:5])
    reader, items = FrameReader(), []
    for cut in cuts:
        items += reader.feed(data, min(cut, len(data)))
        data = data[cut:]
    items += reader.feed(data, len(data))
    assert items == expected[:5]


@pytest.mark.parametrize("images", [100, 5000])
def test_what_is_written_without_asking_for_pieces(images: int) -> None:
    """A short output is written from the outbox's own memory."""
    messages = [HEARTBEAT, append([images]), HEARTBEAT]
    whole = wire(*messages)
    for n in (0, 1, 300, len(whole) - 1, len(whole)):
        outbox = Outbox()
        assert all(outbox.add(message) for message in messages)
        outbox.sent(n)
        assert (outbox.size, outbox.sent_bytes) == (len(whole) - n, n)
        assert outbox.add(HEARTBEAT) and drain(outbox) == whole[n:] + wire(HEARTBEAT)


def test_messages_own_their_bytes() -> None:
    data = wire(append([100]), Message(T.MsgHeartbeat, 2, 1, 5, context=b"context"))
    buffer = bytearray(data)
    items = FrameReader().feed(buffer, len(buffer))
    buffer[:] = bytes(len(buffer))
    assert items == [append([100]), Message(T.MsgHeartbeat, 2, 1, 5, context=b"context")]


def test_large_images_go_out_as_the_object_they_are() -> None:
    images = memoryview(entries(8, [300_000, 100_000]))
    outbox = Outbox()
    assert outbox.add(Message(T.MsgApp, 2, 1, 5, 5, 7, images=images))
    assert any(piece is images for piece in outbox.pieces())


def test_a_forward_is_a_batch() -> None:
    operations = [b"one", b"|BATCH_SEP|", b""]
    outbox = Outbox()
    assert outbox.add_forward(frame(operations))
    (item,) = read(drain(outbox))
    assert unframe(item.frame) == operations


# ---- damage


def test_every_wrong_byte_ends_the_stream() -> None:
    data, expected = mixed()
    for at in range(len(data)):
        for wrong in (data[at] ^ 0xFF, data[at] ^ 0x01):
            reader, items = FrameReader(from_=1, to=2), []
            with pytest.raises(FormatError):
                for end in range(0, len(data), 512):
                    piece = bytearray(data[end : end + 512])
                    if end <= at < end + 512:
                        piece[at - end] = wrong
                    items += reader.feed(piece, len(piece))
            assert [plain(item) for item in items] == expected[: len(items)], f"byte {at}"
            with pytest.raises(FormatError, match="after an error"):
                reader.feed(b"\0", 1)


def test_a_cut_stream_gives_what_is_whole() -> None:
    data, expected = mixed()
    for end in range(len(data)):
        items = read(data[:end])
        assert [plain(item) for item in items] == expected[: len(items)]
    assert len(read(data[:-1])) == len(expected) - 1


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (sealed(1, b"x", n=0), "frame of 0 bytes"),
        (sealed(2, b"x", n=2049), "at most 2048"),
        (sealed(2, b"xy", head=1), "summed whole"),
        (sealed(2, b"x", reserved=1), "reserved"),
        (sealed(0, b"x"), "unknown type of frame 0"),
        (sealed(5, b"x"), "unknown type of frame 5"),
        (sealed(1, b"x" * 83), "cut short"),
        (sealed(3, struct.pack("<HHQ", len(REFUSALS), 0, 1)), "malformed refusal"),
        (sealed(3, struct.pack("<HHQ", 0, 1, 1)), "malformed refusal"),
        (sealed(3, struct.pack("<HH", 0, 0)), "malformed refusal"),
        (sealed(3, struct.pack("<HHQB", 0, 0, 1, 1)), "malformed refusal"),
    ],
)
def test_frames_that_nobody_sends(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        read(data, max_frame=2048)


def body(message: Message, **changes: int) -> bytes:
    """Return the bytes of a message with single bytes changed: b12=255 sets byte 12."""
    data = bytearray(message.encode())
    for name, value in changes.items():
        data[int(name[1:])] = value
    return bytes(data)


HEARTBEAT = Message(T.MsgHeartbeat, 2, 1, 5, context=b"context")
SNAP = Message(T.MsgSnap, 2, 1, 5, snapshot=Snapshot(9, 4, ConfState((1,))))


@pytest.mark.parametrize(
    "data",
    [
        body(HEARTBEAT, b0=2),
        body(HEARTBEAT, b1=19),
        *[body(HEARTBEAT, b1=kind) for kind in LOCAL],
        body(HEARTBEAT, b2=4),
        body(HEARTBEAT, b2=2),
        body(HEARTBEAT, b3=1),
        body(HEARTBEAT, b4=8),
        body(HEARTBEAT, b7=255, b11=255),
        body(HEARTBEAT, b12=1),
        body(SNAP, b2=0),
        body(SNAP, b8=1),
        SNAP.encode()[:-1],
        body(SNAP, b100=9),
    ],
)
def test_messages_that_nobody_sends(data: bytes) -> None:
    with pytest.raises(FormatError):
        read(sealed(1, data))


@pytest.mark.parametrize("options", [{"from_": 3}, {"to": 3}])
def test_messages_under_another_name(options: dict[str, int]) -> None:
    with pytest.raises(FormatError, match="on the stream from"):
        read(wire(HEARTBEAT), **options)


@pytest.mark.parametrize(
    ("images", "reason"),
    [
        (entries(9, [1]), "out of order"),
        (entries(8, [1]) + entries(10, [1]), "out of order"),
        (entries(8, [1], term=6), "out of order"),
        (entries(8, [1], term=0), "out of order"),
        (entries(8, [1], term=4) + entries(9, [1], term=3), "out of order"),
        (entries(8, [1])[:-1], "cut short"),
        (entries(8, [1])[:-1] + b"x", "wrong checksum"),
        (entries(8, [1]) + b"\0", "cut short"),
    ],
)
def test_images_that_the_log_would_refuse(images: bytes, reason: str) -> None:
    data = wire(Message(T.MsgApp, 2, 1, 5, 5, 7, images=images))
    with pytest.raises(FormatError, match=reason):
        read(data)


def test_entries_in_a_message_that_has_none() -> None:
    data = Message(T.MsgHeartbeat, 2, 1, 5, index=7, images=entries(8, [1])).encode()
    with pytest.raises(FormatError, match="entries in a message"):
        read(sealed(1, data, head=84))


# ---- limits


def test_an_outbox_is_bounded() -> None:
    outbox = Outbox(max_bytes=300)
    assert outbox.add(HEARTBEAT) and outbox.add(HEARTBEAT)
    size, data = outbox.size, b"".join(outbox.pieces())
    assert not outbox.add(HEARTBEAT) and not outbox.add_forward(bytes(100)) and not outbox.add_blob(1, bytes(100))
    assert (outbox.size, outbox.frames, outbox.dropped) == (size, 2, 3) and b"".join(outbox.pieces()) == data
    outbox.sent(len(data))
    assert outbox.add(HEARTBEAT) and outbox.sent_bytes == size


def test_a_lone_frame_may_be_as_large_as_a_frame_may_be() -> None:
    outbox = Outbox(max_bytes=100, max_frame=2000)
    assert not outbox.add(append([2000])) and outbox.size == 0
    assert outbox.add(append([1800])) and not outbox.add(HEARTBEAT)
    assert read(drain(outbox), max_frame=2000) == [append([1800])]


def test_a_false_length_costs_no_more_than_a_frame() -> None:
    reader = FrameReader(max_frame=4096)
    assert reader.feed(sealed(2, b"x", head=1, n=4096), HEADER + 1) == []
    assert reader.waiting == 4096


@pytest.mark.parametrize("kind", sorted(LOCAL), ids=lambda kind: kind.name)
def test_local_messages_are_not_sent(kind: MessageType) -> None:
    outbox = Outbox()
    assert not outbox.add(Message(kind, 2, 1)) and outbox.size == 0 and outbox.dropped == 1


def test_entries_go_with_appends_only() -> None:
    outbox = Outbox()
    assert not outbox.add(Message(T.MsgAppResp, 2, 1, 5, images=entries(1, [1]))) and outbox.size == 0


def test_wrong_calls() -> None:
    outbox = Outbox()
    for code, ids in ((-1, [1]), (len(REFUSALS), [1]), (0, [])):
        with pytest.raises(ValueError, match="refusal"):
            outbox.add_refusal(code, ids)
    with pytest.raises(ValueError, match="tag"):
        outbox.add_blob(256, b"")
    with pytest.raises(ValueError, match="more was sent"):
        outbox.sent(1)
    with pytest.raises(ValueError, match="shorter"):
        FrameReader().feed(b"x", 2)
    assert not outbox.add_forward(b"")
    assert outbox.size == 0


def test_clear_forgets_all() -> None:
    outbox = Outbox()
    assert outbox.add(HEARTBEAT) and outbox.add(append([5000])) and outbox.add(HEARTBEAT)
    outbox.pieces()
    outbox.sent(7)
    outbox.clear()
    assert outbox.size == 0 and outbox.pieces() == []
    assert outbox.add(HEARTBEAT) and drain(outbox) == wire(HEARTBEAT)


# ---- greetings

ME = hs.PeerIdentity(
    77, 5, 1, "inc-1", ((1, "snappy"), (1, "zstd")), "0.1", "n1", ("a:1", "b:2"), 3, 1 << 63, 1, 5, 496
)
OTHER = hs.PeerIdentity(77, 5, 2, "inc-2", (), "0.2")


def hello(sender: hs.PeerIdentity = OTHER, target: int = 1, kind: int = hs.BULK) -> hs.Hello:
    return hs.Hello(kind, sender, target)


def answer(status: int = hs.OK, text: str = "") -> hs.Answer:
    return hs.Answer(status, text, hs.PeerIdentity(77, 0, 2, "inc-2", ((1, "zstd"),), "0.2"))


def changed(me: hs.PeerIdentity, **fields: Any) -> hs.PeerIdentity:
    return hs.PeerIdentity(**{name: fields.get(name, getattr(me, name)) for name in me.__slots__})


def test_greetings_survive() -> None:
    for kind in hs.KINDS:
        data = hs.encode_hello(hello(ME, 2, kind))
        assert hs.greeting_size(data) == len(data) == hs.greeting_size(data + b"more")
        assert hs.decode_hello(data) == hello(ME, 2, kind)
    for status in range(hs.UNREADABLE + 1):
        assert hs.decode_answer(hs.encode_answer(answer(status, "ä"))) == answer(status, "ä")
    assert hs.decode_hello(hs.encode_hello(hs.Hello(hs.ROSTER, hs.NOBODY, 0))).sender == hs.NOBODY


@pytest.mark.parametrize("which", ["hello", "answer"])
def test_every_wrong_byte_of_a_greeting_is_told(which: str) -> None:
    data = hs.encode_hello(hello(ME)) if which == "hello" else hs.encode_answer(answer(hs.WAIT, "text"))
    decode = hs.decode_hello if which == "hello" else hs.decode_answer
    for at in range(len(data)):
        assert hs.greeting_size(data[:at]) in ((None,) if at < hs.HEADER else (len(data),))
        for wrong in (data[at] ^ 0xFF, data[at] ^ 0x01):
            bad = data[:at] + bytes([wrong]) + data[at + 1 :]
            with pytest.raises(FormatError):
                size = hs.greeting_size(bad)
                decode(bad[:size])


def regreet(data: bytes, *, version: int = hs.VERSION, mark: int | None = None, body: bytes | None = None) -> bytes:
    """Return a changed greeting with the right sum."""
    body = data[hs.HEADER :] if body is None else body
    head = struct.pack("<BBHI", version, data[9] if mark is None else mark, 0, len(body))
    return data[:8] + head + struct.pack("<I", zlib.crc32(head + body)) + body


def test_greetings_that_nobody_sends() -> None:
    data = hs.encode_hello(hello(ME))
    body = data[hs.HEADER :]
    bodies = [body[:cut] for cut in range(len(body))]
    bodies += [body + b"\0", b"\0" + body[1:], b"\5" + body[1:], body[:1] + b"\x08" + body[2:]]
    bodies += [body[:4] + bytes(8) + body[12:], body.replace(b"inc-1", b"inc-\xff")]
    for wrong in [regreet(data, body=one) for one in bodies] + [regreet(data, mark=0)]:
        with pytest.raises(FormatError):
            hs.decode_hello(wrong)
    data = hs.encode_answer(answer())
    for cut in range(len(data) - hs.HEADER):
        with pytest.raises(FormatError):
            hs.decode_answer(regreet(data, body=data[hs.HEADER : hs.HEADER + cut]))
    with pytest.raises(FormatError):
        hs.decode_answer(regreet(data, mark=hs.UNREADABLE + 1))


LARGEST = changed(
    ME, name="n" * MAX_NAME, incarnation="i" * hs.MAX_WORD, software="s" * hs.MAX_WORD,
    places=("p" * MAX_ADDRESS,) * hs.MAX_PLACES, codecs=((16, "c" * hs.MAX_WORD),) * (hs.MAX_CODECS - 1),
)  # fmt: skip


def test_the_largest_greetings_fit() -> None:
    assert hs.decode_hello(hs.encode_hello(hello(LARGEST))).sender == LARGEST
    copy = hs.decode_answer(hs.encode_answer(hs.Answer(hs.BUSY, "\U0001f4a5" * 100_000, LARGEST)))
    assert copy.sender == changed(LARGEST, token=0) and len(copy.text.encode()) == hs.MAX_REASON
    assert hs.decode_answer(hs.encode_answer(answer(1, "one\nline\x1b[31m\ud800"))).text == "one?line?[31m?"


def test_the_longest_key_stands_among_the_codecs() -> None:
    """So a member of an earlier version reads the greeting, and is read by this one."""
    data = hs.encode_hello(hello(ME))
    assert b"\0\x0b\0max_key=496" in data and hs.decode_hello(data).sender.codecs == ME.codecs
    for fact, expected in ((b"future=12345", 0), (b"max_key=0012", 12), (b"max_key=4294", 4294)):
        body = data[hs.HEADER :].replace(b"\x0b\0max_key=496", b"\x0c\0" + fact)
        assert hs.decode_hello(regreet(data, body=body)).sender == changed(ME, max_key=expected)
    for fact in (b"max_key=", b"max_key=-1", b"max_key=1e3", b"max_key=12345678901", "max_key=\u0663".encode()):
        body = data[hs.HEADER :].replace(b"\x0b\0max_key=496", struct.pack("<H", len(fact)) + fact)
        with pytest.raises(FormatError, match="without a number"):
            hs.decode_hello(regreet(data, body=body))
    plain = hs.encode_hello(hello(changed(ME, max_key=0)))
    assert b"max_key" not in plain and hs.decode_hello(plain).sender.max_key == 0


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", "n" * (MAX_NAME + 1)),
        ("incarnation", "i" * (hs.MAX_WORD + 1)),
        ("software", "s" * 70_000),
        ("places", ("p" * (MAX_ADDRESS + 1),)),
        ("places", ("p",) * (hs.MAX_PLACES + 1)),
        ("codecs", ((16, "c" * (hs.MAX_WORD + 1)),)),
        ("codecs", ((16, "c"),) * (hs.MAX_CODECS + 1)),
    ],
)
def test_greetings_are_bounded(field: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sender and receiver both check the bounds. A sender without bounds is told the first field that is too long."""
    with pytest.raises(ValueError):
        hs.encode_hello(hello(changed(ME, **{field: value})))
    with monkeypatch.context() as lax:
        for limit in ("MAX_NAME", "MAX_WORD", "MAX_PLACES", "MAX_CODECS", "MAX_ADDRESS", "MAX_BODY"):
            lax.setattr(hs, limit, 60_000 if limit != "MAX_BODY" else 1 << 20)
        if len(value) > 60_000:
            return
        data = hs.encode_hello(hello(changed(ME, **{field: value})))
    with pytest.raises(FormatError, match="at most"):
        hs.decode_hello(data)


def test_what_is_no_greeting() -> None:
    with pytest.raises(FormatError, match="at most"):
        hs.greeting_size(hs.MAGIC + struct.pack("<BBHII", 1, 0x80, 0, hs.MAX_BODY + 1, 0))
    for text in (b"GET / HTTP/1.1", b"PRI * HTTP/2.0", b"X"):
        with pytest.raises(FormatError, match="not a MetaStore peer"):
            hs.greeting_size(text)


def test_another_version_is_told_from_nonsense() -> None:
    for other in (1, 3):
        with pytest.raises(hs.UnknownVersion, match=f"version {other}, this program speaks 2 only"):
            hs.decode_hello(regreet(hs.encode_hello(hello()), version=other, body=b"whatever"))
    text = hs.encode_answer(answer(hs.OTHER_VERSION, "I speak 3"))[hs.HEADER :]
    later = regreet(hs.encode_answer(answer()), version=3, body=text[:11] + b"new things")
    assert hs.decode_answer(later).status == hs.OTHER_VERSION and hs.decode_answer(later).text == "I speak 3"
    silent = regreet(hs.encode_answer(answer()), version=1, body=b"\0\0")
    assert "version 1" in hs.decode_answer(silent).text


@pytest.mark.parametrize(
    ("sender", "target", "status", "text"),
    [
        ({}, 1, hs.OK, ""),
        ({"token": 6, "cluster_id": 5}, 1, hs.OTHER_TOKEN, "cluster.token is another"),
        # A joined member did not have to know the token. The cluster's id must agree.
        ({"token": 6}, 1, hs.OK, ""),
        ({"cluster_id": 5}, 1, hs.OTHER_CLUSTER, "0000000000000005"),
        ({}, 9, hs.OTHER_TARGET, "wants 0000000000000009"),
        ({"member_id": 1, "incarnation": "inc-1"}, 1, hs.OTHER_TARGET, "which is this one"),
        # The roster may not know the member yet.
        ({"member_id": 4}, 1, hs.OK, ""),
        ({"member_id": 3}, 1, hs.REMOVED, "was removed"),
        ({"member_id": 3}, 9, hs.REMOVED, "was removed"),
        ({"incarnation": "wiped"}, 1, hs.OTHER_INCARNATION, "must join as a new member"),
        ({"member_id": 4, "codecs": ((16, "y"),)}, 1, hs.OK, ""),
    ],
)
def test_what_the_acceptor_makes_of_a_hello(sender: dict[str, Any], target: int, status: int, text: str) -> None:
    known = hs.Known({3}, {2: "inc-2"})
    judged = hs.judge_hello(hello(changed(OTHER, **sender), target), ME, known)
    assert judged[0] == status and text in judged[1] and bool(judged[1]) == (status != hs.OK)


def test_a_member_that_cannot_read_the_log_is_named() -> None:
    known = hs.Known(must_read={(16, "lzma")})
    status, text = hs.judge_hello(hello(OTHER), ME, known)
    assert status == hs.UNREADABLE and "'lzma' (flag 16)" in text and "0000000000000002" in text
    reads = changed(OTHER, codecs=((16, "lzma"),))
    assert hs.judge_hello(hello(reads), ME, known)[0] == hs.OK


@pytest.mark.parametrize(
    ("mine", "known", "status"),
    [
        (0, None, hs.WAIT),
        (0, "inc-2", hs.OK),
        (0, "other", hs.OTHER_INCARNATION),
        (hs.LEADER, None, hs.OK),
        (hs.NEW, None, hs.OK),
        (hs.NEW | hs.FORMING, None, hs.OK),
    ],
)
def test_who_may_begin_a_cluster_is_for_those_with_a_leader_to_say(mine: int, known: str | None, status: int) -> None:
    incarnations = {} if known is None else {2: known}
    forming = changed(OTHER, flags=hs.NEW | hs.FORMING)
    assert hs.judge_hello(hello(forming), changed(ME, flags=mine), hs.Known(incarnations=incarnations))[0] == status


def test_who_asks_for_the_roster() -> None:
    """A joining process knows no ids; otherwise the asking process must be a member."""
    assert hs.judge_hello(hs.Hello(hs.ROSTER, hs.NOBODY, 0), ME, hs.Known())[0] == hs.TOLD
    assert hs.judge_hello(hello(OTHER, 1, hs.ROSTER), ME, hs.Known())[0] == hs.TOLD
    assert hs.judge_hello(hello(OTHER, 1, hs.ROSTER), ME, hs.Known({2}))[0] == hs.REMOVED
    assert hs.judge_hello(hello(changed(OTHER, cluster_id=5), 1, hs.ROSTER), ME, hs.Known())[0] == hs.OTHER_CLUSTER


@pytest.mark.parametrize(
    ("status", "sender", "known", "judged"),
    [
        (hs.OK, {}, "inc-2", hs.OK),
        (hs.OK, {}, None, hs.OK),
        (hs.OK, {"cluster_id": 5}, None, hs.OTHER_CLUSTER),
        (hs.OK, {"member_id": 3}, None, hs.OTHER_TARGET),
        (hs.OK, {"member_id": 1}, None, hs.OTHER_TARGET),
        # The acceptor was wiped. That is no verdict about us.
        (hs.OK, {}, "inc-0", hs.OTHER_TARGET),
        (hs.BUSY, {}, None, hs.BUSY),
        (hs.WAIT, {}, None, hs.WAIT),
        *((status, {}, None, status) for status in hs.FATAL),
        # Only a member of our own cluster can end us.
        *((status, {"cluster_id": 5}, None, hs.OTHER_CLUSTER) for status in hs.FATAL),
    ],
)
def test_what_the_dialler_makes_of_an_answer(
    status: int, sender: dict[str, Any], known: str | None, judged: int
) -> None:
    answer = hs.Answer(status, "why", changed(OTHER, token=0, **sender))
    assert hs.judge_answer(answer, ME, 2, known)[0] == judged


def test_what_a_member_holds_is_bounded() -> None:
    """A context is kept until a round of reads is over, and a refusal is looked up id by id."""
    kinds = (MessageType.MsgReadIndex, MessageType.MsgHeartbeat)
    for kind in kinds:
        for size, good in ((1024, True), (1025, False)):
            outbox = Outbox()
            assert outbox.add(Message(kind, 1, 2, 3, context=bytes(size)))
            data = b"".join(bytes(piece) for piece in outbox.pieces())
            if good:
                assert FrameReader().feed(data, len(data))[0].context == bytes(size)
            else:
                with pytest.raises(FormatError, match="a context of 1025 bytes; at most 1024"):
                    FrameReader().feed(data, len(data))
    outbox = Outbox()
    assert outbox.add_refusal(0, list(range(MAX_BATCH_OPS + 1)))
    data = b"".join(bytes(piece) for piece in outbox.pieces())
    with pytest.raises(FormatError, match="more than 5000 operations"):
        FrameReader().feed(data, len(data))
    assert len(unframe(frame([b"x"] * 5000), 5000)) == 5000
    with pytest.raises(FormatError, match="more than 5000 operations"):
        unframe(frame([b"x"] * 5001), 5000)
