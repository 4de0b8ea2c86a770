"""The HTTP/2 session, without sockets. Input is fed whole and byte by byte, and output is read back."""

from __future__ import annotations

import gc
import itertools
import tracemalloc
import urllib.parse

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import http2 as h
from support.talk import (
    BIDI,
    BIDI_PATH,
    CALL,
    CALM,
    NO_ERROR,
    OTHER,
    OTHER_PATH,
    PROTOCOL_ERROR,
    PUT,
    REFUSED_STREAM,
    TABLE,
    Talk,
    finished,
)

from metastore import errors
from metastore._core.grpc import Limits, MethodTable, percent_encode
from metastore._core.h2 import Session
from metastore._core.h2_request import Request


@pytest.mark.parametrize("way", ["feed", "bytewise"])
def test_unary_call(way: str) -> None:
    talk = Talk()
    requests = getattr(talk, way)(h.call(1, b"hello") + h.call(3, b"", OTHER_PATH))
    assert [(r.method, r.path, r.body, r.stream_id) for r in requests] == [
        (PUT, h.PUT_PATH, b"hello", 1),
        (OTHER, OTHER_PATH, b"", 3),
    ]
    requests[1].fail(errors.Compacted())
    requests[0].complete(b"answer")
    reader = talk.flush()
    first, second = reader.stream(1), reader.stream(3)
    assert (first.get(b":status"), first.get(b"content-type")) == (b"200", b"application/grpc")
    assert (first.messages, first.status, first.ended) == ([b"answer"], 0, True)
    assert (second.status, second.text, second.data, second.ended) == (
        errors.OUT_OF_RANGE,
        errors.Compacted.default,
        b"",
        True,
    )
    assert second.reset is None
    assert (talk.session.open_streams, talk.session.buffered, talk.session.pending_output) == (0, 0, 0)


def test_replies_of_a_turn_leave_in_one_piece() -> None:
    talk = Talk()
    talk.dirty.clear()
    requests = talk.feed(b"".join(h.call(1 + 2 * i, b"%d" % i) for i in range(100)))
    assert [r.body for r in requests] == [b"%d" % i for i in range(100)]
    for request in requests:
        request.complete(request.body)
    assert talk.dirty == [talk.session]
    talk.reader.feed(talk.session.take_output())
    assert talk.session.take_output() == b"" and not talk.session.want_write
    assert [talk.reader.stream(1 + 2 * i).messages for i in range(100)] == [[b"%d" % i] for i in range(100)]
    talk.feed(h.frame(h.PING, 0, 0, b"12345678"))
    assert talk.dirty == [talk.session, talk.session]


def test_settings_and_ping_are_answered() -> None:
    talk = Talk(max_concurrent_streams=77, max_header_list=5000)
    talk.feed(h.frame(h.PING, 0, 0, b"12345678"))
    reader = talk.flush()
    assert reader.pings == [b"12345678"]
    assert reader.settings_acks == 1
    assert (reader.settings[3], reader.settings[6]) == (77, 5000)


@pytest.mark.parametrize("way", ["feed", "bytewise"])
def test_message_over_several_frames(way: str) -> None:
    talk = Talk()
    body = bytes(range(256)) * 300
    wire = h.message(body)
    cuts = [0, 1, 4, 5, 6, 1000, 17000, 33000, 49000, 65000, len(wire)]
    data = h.frame(h.HEADERS, h.END_HEADERS, 1, h.head())
    for start, end in itertools.pairwise(cuts):
        data += h.frame(h.DATA, 0, 1, wire[start:end])
    data += h.frame(h.DATA, h.END_STREAM, 1)
    [request] = getattr(talk, way)(data)
    assert request.body == body
    assert talk.session.buffered == talk.limits.total_buffered == len(body) + CALL
    request.complete(b"")
    assert talk.session.buffered == talk.limits.total_buffered == CALL
    assert talk.flush().stream(1).messages == [b""]
    assert talk.session.buffered == talk.limits.total_buffered == 0


def test_padded_and_continued_frames() -> None:
    talk = Talk()
    block = h.head()
    data = h.frame(h.HEADERS, 0, 1, block[:10]) + h.frame(h.CONTINUATION, 0, 1, block[10:20])
    data += h.frame(h.CONTINUATION, h.END_HEADERS, 1, block[20:])
    data += h.frame(h.DATA, h.PADDED | h.END_STREAM, 1, bytes([7]) + h.message(b"padded") + bytes(7))
    [request] = talk.feed(data)
    assert request.body == b"padded"


def test_metadata_and_timeout() -> None:
    talk = Talk()
    [request] = talk.feed(
        h.call(
            1,
            b"",
            h.PUT_PATH,
            (b"token", b"abc.5"),
            (b"grpc-timeout", b"250m"),
            (b"user-agent", b"x"),
            (b"grpc-encoding", b"identity"),
        )
    )
    assert request.headers == [(b"token", b"abc.5")]
    assert request.timeout == 0.25
    [request] = talk.feed(h.call(3, b""))
    assert (request.headers, request.timeout) == ([], None)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (b"1H", 3600.0),
        (b"2M", 120.0),
        (b"3S", 3.0),
        (b"4m", 0.004),
        (b"5u", 5e-6),
        (b"6n", 6e-9),
        (b"99999999S", 99999999.0),
    ],
)
def test_timeout_units(text: bytes, seconds: float) -> None:
    [request] = Talk().feed(h.call(1, b"", h.PUT_PATH, (b"grpc-timeout", text)))
    assert request.timeout == pytest.approx(seconds)


@pytest.mark.parametrize("text", [b"1", b"S", b"", b"-1S", b"1.5S", b"1s", b"100000000S", b"1 S"])
def test_malformed_timeout(text: bytes) -> None:
    stream = Talk().answer(h.call(1, b"", h.PUT_PATH, (b"grpc-timeout", text)))
    assert (stream.status, stream.text) == (errors.INTERNAL, "grpc: malformed grpc-timeout")


def test_method_unknown() -> None:
    for path, text in [
        (b"/etcdserverpb.KV/Get", "unknown method Get for service etcdserverpb.KV"),
        (b"/etcdserverpb.Watch/Watch", "unknown service etcdserverpb.Watch"),
        (b"/nothing", 'malformed method name: "/nothing"'),
    ]:
        talk = Talk()
        # The answer does not wait for the end of the request, because a streaming client never ends it.
        stream = talk.answer(h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(path)))
        assert (stream.status, stream.text, stream.ended) == (errors.UNIMPLEMENTED, text, True)
        assert stream.reset == NO_ERROR
        assert [kind for kind, _flags, number in talk.reader.frames if number == 1] == [h.HEADERS, h.RST_STREAM]
        # Bytes that were on their way do no harm.
        assert talk.feed(h.frame(h.DATA, h.END_STREAM, 1, h.message(b"late"))) == []
        assert len(talk.feed(h.call(3, b"next"))) == 1


@pytest.mark.parametrize(
    ("block", "http", "code"),
    [
        (h.head(method=b"GET"), b"405", errors.INTERNAL),
        (h.head(content_type=b"application/json"), b"415", errors.INVALID_ARGUMENT),
        (h.head(content_type=b"application/grpc-web"), b"415", errors.INVALID_ARGUMENT),
        (h.head(content_type=None), b"415", errors.INVALID_ARGUMENT),
    ],
)
def test_not_grpc(block: bytes, http: bytes, code: int) -> None:
    stream = Talk().answer(h.frame(h.HEADERS, h.END_HEADERS, 1, block) + h.frame(h.DATA, h.END_STREAM, 1, b"x"))
    assert (stream.get(b":status"), stream.status, stream.ended) == (http, code, True)


@pytest.mark.parametrize("kind", [b"application/grpc", b"application/grpc+proto", b"application/grpc;charset=utf-8"])
def test_grpc_content_types(kind: bytes) -> None:
    data = h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(content_type=kind))
    assert len(Talk().feed(data + h.frame(h.DATA, h.END_STREAM, 1, h.message(b"")))) == 1


def test_unknown_compression() -> None:
    stream = Talk().answer(h.call(1, b"", h.PUT_PATH, (b"grpc-encoding", b"snappy" * 100)))
    assert stream.status == errors.UNIMPLEMENTED and 'grpc-encoding "snappy' in stream.text
    assert len(stream.text) < 300
    assert stream.get(b"grpc-accept-encoding") == b"identity,gzip"


HEAD = h.frame(h.HEADERS, h.END_HEADERS, 1, h.head())


@pytest.mark.parametrize(
    ("wire", "code", "text"),
    [
        (h.message(b"a") + h.message(b"b"), errors.UNIMPLEMENTED, "grpc: more than one message for a unary call"),
        (b"", errors.UNIMPLEMENTED, "grpc: no message for a unary call"),
        (h.message(b"abc")[:-1], errors.INTERNAL, "grpc: message cut short by the end of the stream"),
        (b"\0\0", errors.INTERNAL, "grpc: message cut short by the end of the stream"),
        (h.message(b"abc", compressed=1), errors.INTERNAL, "grpc: compressed flag set with identity or empty encoding"),
        (h.message(b"x" * 1001), errors.RESOURCE_EXHAUSTED, "grpc: received message larger than max (1001 vs. 1000)"),
        (
            b"\0\xff\xff\xff\xff",
            errors.RESOURCE_EXHAUSTED,
            "grpc: received message larger than max (4294967295 vs. 1000)",
        ),
    ],
)
def test_wrong_messages(wire: bytes, code: int, text: str) -> None:
    for data in ([wire], [wire[i : i + 1] for i in range(len(wire))]):
        talk = Talk(max_message=1000)
        frames = HEAD + b"".join(h.frame(h.DATA, 0, 1, piece) for piece in data) + h.frame(h.DATA, h.END_STREAM, 1)
        stream = talk.answer(frames)
        assert (stream.status, stream.text.replace("%25", "%"), stream.ended) == (code, text, True)
        assert (talk.session.buffered, talk.limits.total_buffered) == (0, 0)
        assert [r.body for r in talk.feed(h.call(3, b"next"))] == [b"next"]


def test_announced_length_allocates_nothing() -> None:
    talk = Talk(max_message=1 << 30)
    tracemalloc.start()
    for i in range(50):
        stream = 1 + 2 * i
        talk.feed(
            h.frame(h.HEADERS, h.END_HEADERS, stream, h.head())
            + h.frame(h.DATA, 0, stream, b"\0\x3f\xff\xff\xff" + b"x")
        )
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert talk.session.buffered == 50 * (1 + CALL)
    assert used < 10 << 20


def test_unanswered_bodies_are_bounded() -> None:
    talk = Talk(max_buffered=9000 + 4 * CALL)
    requests = talk.feed(b"".join(h.call(1 + 2 * i, b"x" * 3000) for i in range(4)))
    assert len(requests) == 3
    refused = talk.flush().stream(7)
    assert (refused.status, refused.text) == (errors.RESOURCE_EXHAUSTED, errors.TooManyRequests.default)
    requests[0].complete(b"")
    talk.flush()
    assert len(talk.feed(h.call(9, b"x" * 3000))) == 1


def test_all_sessions_share_a_bound() -> None:
    limits = Limits(max_total_buffered=10_000)
    one, two = Session(TABLE, limits), Session(TABLE, limits)
    [request] = one.feed(h.hello() + h.call(1, b"x" * 3000))
    assert two.feed(h.hello() + h.call(1, b"x" * 6000)) == []
    one.close()
    assert (request.closed, limits.total_buffered) == (True, CALL)
    while two.take_output():
        pass
    assert limits.total_buffered == 0
    assert len(two.feed(h.call(3, b"x" * 6000))) == 1


def test_who_holds_much_leaves_room_for_others() -> None:
    """However many sessions hold as much as they may, a session that holds nothing may still send a request."""
    limits = Limits(max_total_buffered=1 << 20)
    greedy = [Session(TABLE, limits) for _ in range(14)]
    part = h.message(bytes(1 << 20))[:8000]
    for number in range(100):
        for session in greedy:
            stream = 1 + 2 * number
            session.feed(
                (h.hello() if number == 0 else b"")
                + h.frame(h.HEADERS, h.END_HEADERS, stream, h.head())
                + h.frame(h.DATA, 0, stream, part)
            )
    assert limits.total_buffered > (1 << 20) * 0.8
    assert [r.body for r in Session(TABLE, limits).feed(h.hello() + h.call(1, b"x" * 12_000))] == [b"x" * 12_000]


# ---- streams and connections that end early


def test_request_outlives_its_stream() -> None:
    talk = Talk()
    [request] = talk.feed(h.call(1, b"put"))
    assert talk.feed(h.frame(h.RST_STREAM, 0, 1, (8).to_bytes(4, "big"))) == []
    assert (request.closed, request.session, request.body) == (True, None, b"put")
    request.complete(b"late")
    request.fail(errors.Timeout())
    assert talk.flush().stream(1) == h.Stream()
    assert len(talk.feed(h.call(3, b"next"))) == 1


def test_request_outlives_its_session() -> None:
    talk = Talk()
    requests = talk.feed(h.call(1, b"a") + h.call(3, b"b"))
    requests[1].complete(b"queued")
    talk.session.close()
    talk.session.close()
    assert talk.session.closed and talk.session.take_output() == b"" and talk.session.feed(b"x") == []
    for request in requests:
        request.complete(b"late")
        request.send(b"late")
        request.finish()
        request.reset()
    del talk
    gc.collect()
    assert [request.closed for request in requests] == [True, True]


def test_a_second_answer_is_ignored() -> None:
    talk = Talk()
    [request] = talk.feed(h.call(1, b""))
    request.complete(b"first")
    request.complete(b"second")
    request.fail(errors.Timeout())
    stream = talk.flush().stream(1)
    assert (stream.messages, stream.status) == ([b"first"], 0)


def test_reset_in_the_same_buffer_is_not_delivered() -> None:
    talk = Talk()
    data = h.call(1, b"") + h.frame(h.RST_STREAM, 0, 1, bytes(4)) + h.call(3, b"kept")
    assert [r.body for r in talk.feed(data)] == [b"kept"]


def test_answer_before_the_request_ended() -> None:
    talk = Talk()
    [request] = talk.feed(h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(BIDI_PATH)))
    request.start()
    request.send(b"only")
    request.finish(errors.UNAVAILABLE, "enough")
    stream = talk.flush().stream(1)
    assert (stream.messages, stream.status, stream.text, stream.reset) == (
        [b"only"],
        errors.UNAVAILABLE,
        "enough",
        NO_ERROR,
    )
    assert request.closed


# ---- streaming calls


def start_bidi(talk: Talk) -> tuple[Request, list[object]]:
    events: list[object] = []
    [request] = talk.feed(h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(BIDI_PATH)))
    request.start(events.append, lambda: events.append("end"), lambda: events.append("close"))
    return request, events


@pytest.mark.parametrize("way", ["feed", "bytewise"])
def test_streaming_call(way: str) -> None:
    talk = Talk()
    request, events = start_bidi(talk)
    assert talk.flush().stream(1).get(b":status") == b"200"  # before any message
    getattr(talk, way)(
        h.frame(h.DATA, 0, 1, h.message(b"a") + h.message(b"") + h.message(b"c")[:3])
        + h.frame(h.DATA, 0, 1, h.message(b"c")[3:])
    )
    assert events == [b"a", b"", b"c"]
    request.send(b"1")
    request.send(b"22")
    assert request.queued_bytes == 13
    assert talk.flush().stream(1).messages == [b"1", b"22"]
    assert request.queued_bytes == 0
    request.send(b"333")  # this wakes the provider up
    assert talk.flush().stream(1).messages == [b"1", b"22", b"333"]
    getattr(talk, way)(h.frame(h.DATA, h.END_STREAM, 1))
    assert events[3:] == ["end"]
    request.finish()
    stream = talk.flush().stream(1)
    assert (stream.status, stream.ended, stream.reset) == (0, True, None)
    assert events[4:] == ["close"] and request.closed


def test_streaming_messages_before_start_are_kept() -> None:
    talk = Talk()
    events: list[object] = []
    data = h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(BIDI_PATH))
    data += h.frame(h.DATA, h.END_STREAM, 1, h.message(b"early"))
    [request] = talk.feed(data)
    assert events == []
    request.start(events.append, lambda: events.append("end"))
    assert events == [b"early", "end"]
    assert talk.session.buffered == CALL


def test_streaming_close_is_told_on_reset_and_on_close() -> None:
    talk = Talk()
    _request, events = start_bidi(talk)
    talk.feed(h.frame(h.RST_STREAM, 0, 1, bytes(4)))
    assert events == ["close"]
    talk = Talk()
    request, events = start_bidi(talk)
    request.send(b"never taken")
    talk.session.close()
    assert events == ["close"]


def test_streaming_handler_may_refuse() -> None:
    talk = Talk()
    [request] = talk.feed(h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(BIDI_PATH)))

    def refuse(_message: bytes) -> None:
        raise errors.EmptyKey

    request.start(refuse)
    talk.feed(h.frame(h.DATA, 0, 1, h.message(b"x")))
    stream = talk.flush().stream(1)
    assert (stream.status, stream.text) == (errors.INVALID_ARGUMENT, errors.EmptyKey.default)


def test_finish_with_error_before_any_message_is_trailers_only() -> None:
    talk = Talk()
    [request] = talk.feed(h.call(1, b""))
    request.finish(errors.NOT_FOUND, "no such thing: 100 % gone\n\u00e4")
    stream = talk.flush().stream(1)
    assert (stream.status, stream.text) == (errors.NOT_FOUND, "no such thing: 100 %25 gone%0A%C3%A4")


@given(st.text())
def test_percent_encoding(text: str) -> None:
    encoded = percent_encode(text)
    assert all(0x20 <= byte <= 0x7E for byte in encoded)
    assert urllib.parse.unquote_to_bytes(encoded) == text.encode("utf-8", "replace")


# ---- flow control and clients that do not read


def test_reply_waits_for_the_window() -> None:
    talk = Talk(window=0)
    [request] = talk.feed(h.call(1, b""))
    request.complete(b"x" * 200_000)
    stream = talk.flush().stream(1)
    assert len(stream.data) == 65535 and not stream.ended
    assert talk.session.pending_output == 200_005 - 65535
    talk.feed(
        h.frame(h.WINDOW_UPDATE, 0, 0, (1 << 20).to_bytes(4, "big"))
        + h.frame(h.WINDOW_UPDATE, 0, 1, (1 << 20).to_bytes(4, "big"))
    )
    stream = talk.flush().stream(1)
    assert (len(stream.data), stream.status, talk.session.pending_output) == (200_005, 0, 0)


def test_requests_are_parked_while_replies_are_not_taken() -> None:
    talk = Talk(window=0, max_output=100_000)
    [big] = talk.feed(h.call(1, b"", OTHER_PATH))
    big.complete(b"x" * 200_000)
    talk.flush()
    assert talk.feed(h.call(3, b"a") + h.call(5, b"b")) == []
    assert talk.session.parked_count == 2
    assert talk.session.unpark() == []
    talk.feed(h.frame(h.RST_STREAM, 0, 3, bytes(4)))
    talk.feed(
        h.frame(h.WINDOW_UPDATE, 0, 0, (1 << 20).to_bytes(4, "big"))
        + h.frame(h.WINDOW_UPDATE, 0, 1, (1 << 20).to_bytes(4, "big"))
    )
    talk.flush()
    assert [r.body for r in talk.session.unpark()] == [b"b"]
    assert talk.session.parked_count == 0


def test_reset_gives_back_what_was_queued() -> None:
    talk = Talk(window=0)
    [request] = talk.feed(h.call(1, b""))
    request.complete(b"x" * 200_000)
    talk.flush()
    talk.feed(h.frame(h.RST_STREAM, 0, 1, bytes(4)))
    assert talk.session.pending_output == 0


def test_take_output_in_pieces() -> None:
    talk = Talk()
    for i, request in enumerate(talk.feed(b"".join(h.call(1 + 2 * i, b"") for i in range(50)))):
        request.complete(b"%d" % i * 1000)
    pieces = 0
    while data := talk.session.take_output(4096):
        assert len(data) < 4096 + 16 * 1024 + 9
        talk.reader.feed(data)
        pieces += 1
    assert pieces > 10
    assert [talk.reader.stream(1 + 2 * i).messages for i in range(50)] == [[b"%d" % i * 1000] for i in range(50)]


# ---- floods and nonsense


def test_rapid_reset() -> None:
    talk = Talk(reset_burst=50)
    for i in range(200):
        talk.feed(h.call(1 + 2 * i, b"x") + h.frame(h.RST_STREAM, 0, 1 + 2 * i, bytes(4)))
        if talk.session.closed or talk.session.error:
            break
    assert 50 <= i < 60
    finished(talk, CALM)


def test_resets_at_a_bearable_rate_go_on() -> None:
    talk = Talk(reset_burst=50, reset_rate=100)
    for i in range(500):
        talk.now += 0.02
        assert talk.feed(h.call(1 + 2 * i, b"x") + h.frame(h.RST_STREAM, 0, 1 + 2 * i, bytes(4))) == []
    assert not talk.session.closed and talk.session.error is None


@pytest.mark.parametrize(
    "flood",
    [h.frame(h.SETTINGS, 0, 0), h.frame(h.PRIORITY, 0, 1, bytes(5)), h.frame(h.DATA, 0, 1)],
    ids=["settings", "priority", "empty data"],
)
def test_control_flood(flood: bytes) -> None:
    talk = Talk(control_burst=100)
    talk.feed(h.frame(h.HEADERS, h.END_HEADERS, 1, h.head()))
    count = 0
    while not talk.session.closed and count < 300:
        talk.feed(flood)
        talk.flush()
        count += 1
    assert 95 <= count <= 105
    finished(talk, CALM)


def test_pings_beside_replies_are_no_flood() -> None:
    talk = Talk(control_burst=20)
    for i in range(100):
        [request] = talk.feed(h.call(1 + 2 * i, b"") + h.frame(h.PING, 0, 0, bytes(8)))
        request.complete(b"")
        talk.flush()
    assert not talk.session.closed and len(talk.reader.pings) == 100


def test_acks_not_taken_are_bounded() -> None:
    talk = Talk(control_burst=1e9)
    for _ in range(2000):
        talk.feed(h.frame(h.SETTINGS, 0, 0) * 10)
    assert talk.session.closed
    finished(talk, CALM)


def test_continuation_flood() -> None:
    talk = Talk()
    talk.feed(h.frame(h.HEADERS, 0, 1, h.literal(b":method", b"POST")))
    for i in range(2000):
        talk.feed(h.frame(h.CONTINUATION, 0, 1, h.literal(b"x-%d" % i, b"y" * 100)))
        talk.flush()
        if talk.session.closed:
            break
    # Either the library counts frames, or we count bytes and the stream is reset while its headers are still being
    # read.
    assert talk.session.closed or talk.reader.stream(1).reset is not None
    assert talk.session.pending_output == 0


def test_headers_over_the_limit() -> None:
    talk = Talk(max_header_list=2000)
    extra = [(b"x-%d" % i, b"y" * 100) for i in range(20)]
    assert talk.feed(h.call(1, b"", h.PUT_PATH, *extra)) == []
    assert talk.flush().stream(1).reset is not None
    assert [r.body for r in talk.feed(h.call(3, b"fine"))] == [b"fine"]


def test_too_many_streams() -> None:
    talk = Talk(max_concurrent_streams=5)
    requests = talk.feed(b"".join(h.call(1 + 2 * i, b"") for i in range(8)))
    assert len(requests) == 5
    reader = talk.flush()
    assert [reader.stream(number).reset for number in (11, 13, 15)] == [REFUSED_STREAM] * 3
    requests[0].complete(b"")
    talk.flush()
    assert len(talk.feed(h.call(17, b""))) == 1


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\r\n\r\n" + bytes(30),
        b"PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n" + bytes(30),
        h.PREFACE + h.frame(h.DATA, 0, 1, b"x"),
        h.hello() + h.frame(h.DATA, 0, 0, b"x"),
        h.hello() + h.frame(h.HEADERS, h.END_HEADERS, 2, h.head()),
        h.hello() + h.frame(h.HEADERS, h.END_HEADERS, 1, b"\xff\xff\xff\xff\xff\xff"),
        h.hello() + h.frame(h.PUSH_PROMISE, h.END_HEADERS, 1, bytes(4)),
        h.hello() + h.frame(h.SETTINGS, 0, 0, b"12345"),
        h.hello() + h.frame(h.PING, 0, 0, b"short"),
        h.hello() + h.frame(h.WINDOW_UPDATE, 0, 0, bytes(4)),
        h.hello() + h.frame(h.CONTINUATION, h.END_HEADERS, 1, h.head()),
        h.hello() + h.frame(h.DATA, 0, 1, bytes(16385)),
        h.hello() + h.frame(h.RST_STREAM, 0, 1, bytes(4)),
    ],
    ids=range(13),
)
def test_protocol_errors_end_the_connection(data: bytes) -> None:
    session = Session(TABLE, Limits())
    assert session.feed(data) == []
    reader = h.Reader()
    while output := session.take_output():
        reader.feed(output)
    assert session.closed
    assert session.failed or (reader.goaway is not None and reader.goaway[1] != NO_ERROR)
    assert session.feed(h.call(1, b"")) == []


@pytest.mark.parametrize(
    "block",
    [
        h.literal(b":method", b"POST") + h.literal(b":path", h.PUT_PATH),
        h.head() + h.literal(b":late", b"x"),
        h.head() + h.literal(b"Upper", b"x"),
        h.head() + h.literal(b"connection", b"close"),
        h.head() + h.literal(b"content-length", b"999"),
        h.head() + h.literal(b"x", b"a\nb"),
        h.head() + h.literal(b"content-length", b"4"),
        h.head() + h.literal(b"content-length", b"5") + h.literal(b"content-length", b"5"),
        h.head() + h.literal(b"content-length", b"five"),
        h.head() + h.literal(b"content-length", b""),
        h.head() + h.literal(b"te", b"gzip"),
        h.head() + h.literal(b"keep-alive", b"1"),
        h.head() + h.literal(b"upgrade", b"h2c"),
        h.head() + h.literal(b"proxy-connection", b"1"),
        h.head() + h.literal(b"transfer-encoding", b"chunked"),
        h.head() + h.literal(b"", b"no name"),
        h.literal(b":unknown", b"x") + h.head(),
        h.literal(b":method", b"POST") + h.head(),
        h.literal(b":method", b"POST") + h.literal(b":path", b"") + h.literal(b":scheme", b"http"),
    ],
    ids=range(19),
)
def test_malformed_headers_end_the_stream_only(block: bytes) -> None:
    talk = Talk()
    data = h.frame(h.HEADERS, h.END_HEADERS, 1, block) + h.frame(h.DATA, h.END_STREAM, 1, h.message(b""))
    requests = talk.feed(data)
    assert requests == []
    assert talk.flush().stream(1).reset == PROTOCOL_ERROR
    assert [r.body for r in talk.feed(h.call(3, b"fine"))] == [b"fine"]


@pytest.mark.parametrize(
    "trailer",
    [
        h.frame(h.HEADERS, h.END_HEADERS, 1, h.literal(b"x", b"1")),
        h.frame(h.HEADERS, h.END_HEADERS | h.END_STREAM, 1, h.literal(b":path", h.PUT_PATH)),
        h.frame(h.HEADERS, h.END_HEADERS | h.END_STREAM, 1, h.literal(b"X", b"1")),
    ],
    ids=range(3),
)
def test_malformed_trailers_end_the_stream_only(trailer: bytes) -> None:
    talk = Talk()
    head = h.frame(h.HEADERS, h.END_HEADERS, 1, h.head())
    assert talk.feed(head + h.frame(h.DATA, 0, 1, h.message(b"")) + trailer) == []
    assert talk.flush().stream(1).reset == PROTOCOL_ERROR
    assert [r.body for r in talk.feed(h.call(3, b"fine"))] == [b"fine"]


@pytest.mark.parametrize("authority", [b"http://127.0.0.1:2379", b"", b"etcd.example:2379", b"a b\xff"])
def test_any_authority_will_do(authority: bytes) -> None:
    """etcdctl 3.4 puts a whole URL there when it takes its endpoints from the member list."""
    talk = Talk()
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", h.PUT_PATH), (b":authority", authority)]
    fields += [(b"content-type", b"application/grpc"), (b"te", b"trailers"), (b"content-length", b"7")]
    head = h.frame(h.HEADERS, h.END_HEADERS, 1, b"".join(h.literal(*field) for field in fields))
    data = h.frame(h.DATA, 0, 1, h.message(b"ok"))
    trailer = h.frame(h.HEADERS, h.END_HEADERS | h.END_STREAM, 1, h.literal(b"x", b"1"))
    assert [request.body for request in talk.feed(head + data + trailer)] == [b"ok"]


CONVERSATION = (
    h.hello(1 << 20)
    + h.call(1, b"hello")
    + h.call(3, b"x" * 300, OTHER_PATH)
    + h.frame(h.HEADERS, h.END_HEADERS, 5, h.head(BIDI_PATH))
    + h.frame(h.DATA, 0, 5, h.message(b"m"))
    + h.frame(h.PING, 0, 0, bytes(8))
    + h.frame(h.RST_STREAM, 0, 3, bytes(4))
    + h.call(7, b"bye")
)


def serve_blindly(session: Session, data: bytes) -> None:
    """Answer all requests in `data`. The session must neither raise nor lose count."""
    for request in session.feed(data):
        if request.method == BIDI:
            request.start(request.send, request.finish)
        else:
            request.complete(request.body)
    while session.take_output():
        pass


def test_every_byte_wrong() -> None:
    for i in range(len(CONVERSATION)):
        for flip in (0x01, 0x80, 0xFF):
            limits = Limits()
            session = Session(TABLE, limits)
            serve_blindly(session, CONVERSATION[:i] + bytes([CONVERSATION[i] ^ flip]) + CONVERSATION[i + 1 :])
            session.close()
            assert (limits.total_buffered, session.pending_output, session.open_streams) == (0, 0, 0)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 10), st.integers(0, 255), st.integers(0, 7), st.binary(max_size=40)), max_size=20)
)
def test_random_frames(frames: list[tuple[int, int, int, bytes]]) -> None:
    limits = Limits()
    session = Session(TABLE, limits)
    serve_blindly(session, h.hello())
    for kind, flags, stream, payload in frames:
        serve_blindly(session, h.frame(kind, flags, stream, payload))
    session.close()
    assert (limits.total_buffered, session.pending_output, session.open_streams) == (0, 0, 0)


# ---- the end


def test_shutdown_lets_running_calls_finish() -> None:
    talk = Talk()
    [request] = talk.feed(h.call(1, b""))
    talk.session.shutdown()
    reader = talk.flush()
    assert reader.goaway == (1, NO_ERROR)
    assert not talk.session.closed
    assert talk.feed(h.call(3, b"too late")) == []
    request.complete(b"done")
    assert talk.flush().stream(1).messages == [b"done"]
    assert talk.session.closed


def test_a_client_is_told_twice_and_its_calls_between_are_taken() -> None:
    talk = Talk()
    talk.session.retire()
    talk.session.retire()
    reader = talk.flush()
    assert reader.goaway == (0x7FFFFFFF, NO_ERROR)
    assert [kind for kind, _, _ in reader.frames].count(h.GOAWAY) == 1
    [request] = talk.feed(h.call(1, b""))
    request.complete(b"done")
    assert talk.flush().stream(1).status == 0 and not talk.session.closed
    assert talk.feed(h.frame(h.PING, h.ACK, 0, bytes(8)) + h.call(3, b"behind the answer, in one piece")) == []
    reader = talk.flush()
    assert reader.goaway == (1, NO_ERROR) and reader.streams.get(3, h.Stream()).status is None
    assert talk.session.closed


def test_an_answer_to_no_ping_ends_nothing() -> None:
    talk = Talk()
    talk.feed(h.frame(h.PING, h.ACK, 0, bytes(8)))
    assert talk.flush().goaway is None and not talk.session.closed


def test_method_table_refuses_nonsense() -> None:
    for paths, streaming in [
        ({b"no-slash": 1}, []),
        ({b"/a/b/c": 1}, []),
        ({"/a/b": 1}, []),
        ({b"/a/b": 1}, [b"/a/c"]),
    ]:
        with pytest.raises(ValueError):
            MethodTable(paths, streaming)
