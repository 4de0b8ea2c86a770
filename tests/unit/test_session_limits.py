"""What a session does with clients that cost too much, without sockets: bounds, timeouts, and texts."""

from __future__ import annotations

import gzip
import tracemalloc
import zlib

import pytest
from support import http2 as h
from support.talk import BIDI_PATH, CALL, CALM, PROTOCOL_ERROR, TABLE, Talk, finished

from metastore import errors
from metastore._core.grpc import Limits
from metastore._core.h2 import Session
from metastore._core.h2_expiry import expire
from metastore._core.h2_request import unpack

STREAM_CLOSED = 5
GZIP = (b"grpc-encoding", b"gzip")


def headers(stream: int, block: bytes = h.head(), flags: int = h.END_HEADERS) -> bytes:
    return h.frame(h.HEADERS, flags, stream, block)


def reset(stream: int) -> bytes:
    return h.frame(h.RST_STREAM, 0, stream, (8).to_bytes(4, "big"))


# ---- memory


def test_refused_streams_end_the_connection_that_takes_nothing() -> None:
    """nghttp2 refuses streams over the limit by itself, and keeps each refusal until the client takes it."""
    limits = Limits(max_concurrent_streams=100, reset_burst=1e9)
    session = Session(TABLE, limits)
    session.feed(h.PREFACE + h.frame(h.SETTINGS, 0, 0))
    most = 0
    for number in range(100):
        session.feed(b"".join(headers(2 * (number * 100 + at) + 1, b"\x83\x86\x84") for at in range(100)))
        most = max(most, limits.total_queued)
        if session.closed:
            break
    assert session.failed and "frames wait" in str(session.error)
    assert most <= 3 * 100 + 1000 + 200
    session.close()
    assert limits.total_queued == 0


def test_the_bytes_of_an_answered_call_are_given_back_before_its_client_reads_the_answer() -> None:
    """They do not count any more, and a stream lives until its client has read the answer."""
    session = Session(TABLE, Limits(max_buffered=1 << 30, max_total_buffered=1 << 30))
    session.feed(h.SHUT)
    size, calls = 10_000, 50
    tracemalloc.start()
    try:
        for number in range(calls):
            [request] = session.feed(h.call(2 * number + 1, bytes(size), h.PUT_PATH, (b"token", b"t" * 8000)))
            [request.complete, request.fail][number % 2]([b"short", errors.Compacted()][number % 2])
            session.take_output()
        held = tracemalloc.get_traced_memory()[0]
    finally:
        tracemalloc.stop()
    assert session.open_streams == calls // 2 and request.body is None and request.headers == []
    assert held < calls * size // 10, held


def test_refused_streams_are_counted_like_resets() -> None:
    talk = Talk(max_concurrent_streams=10, reset_burst=50)
    for number in range(200):
        talk.feed(headers(2 * number + 1))
        talk.flush()
        if talk.session.closed:
            break
    assert 55 <= number <= 70
    finished(talk, CALM)


def test_fields_that_nobody_reads_are_not_kept() -> None:
    """One byte can stand for a field of 4 KiB that the client sent once."""
    talk = Talk(max_header_list=64 * 1024)
    indexed = b"\x40" + b"\x02xa" + b"\x02yb" + b"\xbe" * 1700
    tracemalloc.start()
    for at in range(400):
        talk.feed(headers(2 * at + 1, h.head() + (indexed if at == 0 else b"\xbe" * 1700)))
    used = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert talk.session.open_streams == 400
    assert used < 400 * 2000


def test_fields_that_are_kept_are_on_the_account() -> None:
    token = (b"token", b"t" * 3000)
    talk = Talk(max_buffered=20_000)
    requests = talk.feed(b"".join(h.call(2 * at + 1, b"", h.PUT_PATH, token) for at in range(10)))
    assert 3 < len(requests) < 7
    assert [request.headers for request in requests] == [[token]] * len(requests)
    assert talk.flush().stream(19).status == errors.RESOURCE_EXHAUSTED


def test_long_unknown_paths_are_told_short() -> None:
    talk = Talk(max_header_list=64 * 1024)
    stream = talk.answer(headers(1, h.head(b"/" + b"x" * 8000 + b"/y")))
    assert stream.status == errors.UNIMPLEMENTED and len(stream.text) < 400


# ---- patience


def test_a_call_past_its_timeout_is_answered() -> None:
    talk = Talk()
    short, long = talk.feed(
        h.call(1, b"a", h.PUT_PATH, (b"grpc-timeout", b"100m")) + h.call(3, b"b", h.PUT_PATH, (b"grpc-timeout", b"10S"))
    )
    [stream] = talk.feed(headers(5, h.head(BIDI_PATH, (b"grpc-timeout", b"50m"))))
    stream.start()
    [endless] = talk.feed(h.call(7, b"c"))
    assert expire(talk.limits, 0.04) == []
    assert expire(talk.limits, 0.05) == [stream]
    assert expire(talk.limits, 0.1) == [short]
    assert expire(talk.limits, 5.0) == []
    reader = talk.flush()
    for number in (1, 5):
        assert (reader.stream(number).status, reader.stream(number).text) == (
            errors.DEADLINE_EXCEEDED,
            errors.DeadlineExceeded.default,
        )
    long.complete(b"")
    short.complete(b"too late")
    assert expire(talk.limits, 100.0) == []
    assert not endless.closed
    reader = talk.flush()
    assert (reader.stream(3).messages, reader.stream(1).messages) == ([b""], [])


def test_an_unfinished_call_has_so_long_and_longer_where_bytes_come() -> None:
    talk = Talk(receive_timeout=10, receive_rate=1000)
    talk.feed(headers(1))  # no message
    talk.feed(headers(3) + h.frame(h.DATA, 0, 3, h.message(bytes(9000))[:4000]))  # half of one
    talk.feed(headers(5) + h.frame(h.DATA, 0, 5, h.message(b"whole")))  # no end
    [watch] = talk.feed(headers(7, h.head(BIDI_PATH)))
    watch.start()
    [idle] = talk.feed(headers(9, h.head(BIDI_PATH)) + h.frame(h.DATA, 0, 9, h.message(b"first")))
    idle.start(lambda _message: None)
    for now, ended in [(9.9, set()), (10.1, {1, 5, 7}), (13.9, {1, 5, 7}), (14.1, {1, 3, 5, 7})]:
        expire(talk.limits, now)
        reader = talk.flush()
        assert {number for number in (1, 3, 5, 7, 9) if reader.stream(number).status is not None} == ended
    # A stream whose first message came may be silent for ever.
    expire(talk.limits, 1e6)
    assert talk.flush().stream(9).status is None
    assert "not complete after 10 seconds" in reader.stream(1).text
    idle.finish()
    talk.flush()
    assert talk.limits.total_buffered == 0


def test_calls_that_share_a_slow_link_wait_for_each_other() -> None:
    """Ten large calls shared a connection. Those without bytes for ten seconds were once ended while the others
    came."""
    talk = Talk(receive_timeout=10, receive_rate=1000)
    talk.feed(headers(1) + headers(3))
    whole = h.message(bytes(40_000))
    for second in range(40):
        talk.now = float(second)
        talk.feed(h.frame(h.DATA, 0, 1, whole[second * 1000 : second * 1000 + 1000]))
        expire(talk.limits, talk.now)
    assert talk.flush().stream(3).status is None
    # Silence ends both, and so do fewer bytes: bytes that came early count for `receive_timeout` at most.
    talk.now = 60.0
    expire(talk.limits, talk.now)
    reader = talk.flush()
    assert (reader.stream(1).status, reader.stream(3).status) == (errors.DEADLINE_EXCEEDED, errors.DEADLINE_EXCEEDED)


def test_what_came_at_once_buys_no_more_patience_than_one_timeout() -> None:
    """The first call gets a thousand seconds' worth of bytes, then silence. Others on that connection wait no longer
    for it."""
    talk = Talk(receive_timeout=10, receive_rate=1000)
    talk.feed(headers(1) + headers(3))
    whole = h.message(bytes(1_000_000))
    talk.feed(b"".join(h.frame(h.DATA, 0, 1, whole[at : at + 16_000]) for at in range(0, 990_000, 16_000)))
    talk.flush()
    assert expire(talk.limits, 9.9) == [] and talk.flush().stream(3).status is None
    expire(talk.limits, 10.1)
    assert talk.flush().stream(3).status == errors.DEADLINE_EXCEEDED


# ---- resets


def test_all_calls_may_be_given_up_at_once_and_again_after_as_much_work() -> None:
    talk = Talk(max_concurrent_streams=1500, reset_burst=1500)
    at = 1
    for _round in range(3):
        talk.feed(b"".join(h.call(at + 2 * i, b"") for i in range(1500)))
        talk.feed(b"".join(reset(at + 2 * i) for i in range(1500)))
        at += 3000
        assert talk.session.error is None
        for request in talk.feed(b"".join(h.call(at + 2 * i, b"") for i in range(1500))):
            request.complete(b"")
        talk.flush()
        at += 3000
    talk.feed(b"".join(h.call(at + 2 * i, b"") + reset(at + 2 * i) for i in range(1600)))
    finished(talk, CALM)


@pytest.mark.parametrize(
    "broken",
    [
        lambda at: headers(at, h.head(h.PUT_PATH, (b"BAD", b"x"))),
        lambda at: headers(at) + h.frame(h.WINDOW_UPDATE, 0, at, b"\x7f\xff\xff\xff"),
    ],
    ids=["malformed header", "window overflow"],
)
def test_what_makes_us_reset_counts_as_a_reset(broken: object) -> None:
    talk = Talk(reset_burst=50)
    for number in range(200):
        talk.feed(broken(2 * number + 1))  # type: ignore[operator]
        talk.flush()
        if talk.session.closed:
            break
    assert 45 <= number <= 60
    finished(talk, CALM)


# ---- frames for streams that are over (RFC 9113 5.1, h2spec 5.1 and 5.1.1)


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (headers(1) + reset(1) + h.frame(h.DATA, 0, 1, b"x"), STREAM_CLOSED),
        (headers(1) + reset(1) + headers(1), STREAM_CLOSED),
        (
            headers(1) + reset(1) + headers(1, h.head()[:5], 0) + h.frame(h.CONTINUATION, 4, 1, h.head()[5:]),
            STREAM_CLOSED,
        ),
        (h.frame(h.DATA, 0, 1, b"x"), STREAM_CLOSED),
        (headers(1), STREAM_CLOSED),
        (headers(5) + headers(3), PROTOCOL_ERROR),
    ],
    ids=["5.1/8", "5.1/9", "5.1/10", "5.1/11", "5.1/12", "5.1.1/2"],
)
def test_frames_on_closed_or_lower_streams(data: bytes, code: int) -> None:
    talk = Talk()
    if not data.startswith(headers(5)) and headers(1) + reset(1) not in data:
        [request] = talk.feed(h.call(1, b""))
        request.complete(b"")
        talk.flush()
    talk.feed(data)
    finished(talk, code)


def test_what_was_on_its_way_when_we_ended_a_stream_is_forgiven() -> None:
    """An answer came before the request's end, or a stream was over the limit. The client could not know."""
    talk = Talk(max_concurrent_streams=2, max_message=1000)
    assert talk.answer(headers(1) + h.frame(h.DATA, 0, 1, b"\0\0\xff\xff\xff")).reset == 0
    talk.feed(h.frame(h.DATA, 0, 1, b"rest") + h.frame(h.DATA, h.END_STREAM, 1, b"rest"))
    talk.feed(headers(3) + headers(5) + headers(7))
    talk.flush()
    talk.feed(h.frame(h.DATA, h.END_STREAM, 7, h.message(b"refused")))
    assert talk.session.error is None and not talk.session.closed


def test_what_comes_for_a_refused_call_is_not_kept() -> None:
    talk = Talk(max_message=1000)
    talk.feed(headers(1) + h.frame(h.DATA, 0, 1, b"\0\0\xff\xff\xff") + h.frame(h.DATA, 0, 1, h.message(bytes(900))))
    assert talk.limits.total_buffered <= CALL


# ---- PING


def ping(talk: Talk, wait: float, times: int) -> int:
    for number in range(times):
        talk.now += wait
        talk.feed(h.frame(h.PING, 0, 0, bytes(8)))
        talk.flush()
        if talk.session.closed:
            return number
    return times


def test_pings_without_calls_end_the_connection() -> None:
    talk = Talk()
    assert ping(talk, 0.1, 12) == 3  # the first is free, then three come too soon
    assert talk.reader.goaway_text == b"too_many_pings"
    finished(talk, CALM)


def test_pings_every_five_seconds_are_fine() -> None:
    assert ping(Talk(), 5.0, 100) == 100


def test_pings_while_replies_flow_are_fine() -> None:
    talk = Talk()
    for number in range(50):
        [request] = talk.feed(h.call(2 * number + 1, b""))
        request.complete(b"")
        talk.flush()
        assert ping(talk, 0.001, 1) == 1


def test_pings_while_a_stream_brings_messages_are_fine() -> None:
    talk = Talk()
    [watch] = talk.feed(headers(1, h.head(BIDI_PATH)))
    watch.start()
    for _ in range(50):
        watch.send(b"news")
        talk.flush()
        assert ping(talk, 0.001, 1) == 1
    assert ping(talk, 0.001, 12) < 12


def test_pings_within_a_long_reply_are_fine() -> None:
    """A gRPC client measures the round trip with a PING for each stretch of a reply that it reads."""
    talk = Talk(window=65_535)
    [request] = talk.feed(h.call(1, b""))
    request.complete(bytes(4_000_000))
    talk.flush()
    more = (65_535).to_bytes(4, "big")
    for _ in range(50):
        assert ping(talk, 0.001, 1) == 1
        talk.feed(h.frame(h.WINDOW_UPDATE, 0, 0, more) + h.frame(h.WINDOW_UPDATE, 0, 1, more))
        talk.flush()


def test_pings_while_a_large_reply_is_taken_are_fine() -> None:
    """gRPC's C core measures with a PING each 100 ms while it reads. A list of 50 MB once ended its connection."""
    talk = Talk()
    talk.now += 1
    [request] = talk.feed(h.call(1, b""))
    request.complete(bytes(300_000))
    talk.feed(h.frame(h.PING, 0, 0, bytes(8)))
    talk.flush()
    assert ping(talk, 0.1, 40) == 40, "what has left us may still be in the system's buffers"
    talk.now += 5
    assert ping(talk, 0.1, 12) < 12


# ---- compression


def test_gzip_is_taken() -> None:
    talk = Talk()
    body = b"compressible " * 1000
    packed = gzip.compress(body)
    assert talk.feed(headers(1, h.head(h.PUT_PATH, GZIP)) + h.frame(h.DATA, 1, 1, h.message(packed, 1))) == []
    assert talk.session.asked
    [request] = unpack(talk.limits, 1 << 20)
    assert request.body == body and unpack(talk.limits, 1 << 20) == []
    assert talk.session.buffered == len(body) + 1024
    request.complete(b"plain")
    stream = talk.flush().stream(1)
    assert (stream.messages, stream.get(b"grpc-accept-encoding")) == ([b"plain"], b"identity,gzip")
    # With that encoding a message may still be plain, and needs no second look.
    [request] = talk.feed(headers(3, h.head(h.PUT_PATH, GZIP)) + h.frame(h.DATA, 1, 3, h.message(b"plain")))
    assert request.body == b"plain"


def test_gzip_messages_of_a_stream_keep_their_order() -> None:
    talk = Talk()
    seen: list[object] = []
    [request] = talk.feed(headers(1, h.head(BIDI_PATH, GZIP)))
    request.start(seen.append, lambda: seen.append("end"))
    talk.feed(h.frame(h.DATA, 0, 1, h.message(b"one")))
    talk.feed(h.frame(h.DATA, 0, 1, h.message(gzip.compress(b"two"), 1) + h.message(b"three")))
    talk.feed(h.frame(h.DATA, h.END_STREAM, 1, h.message(gzip.compress(b"four"), 1)))
    assert seen == [b"one"]
    assert unpack(talk.limits, 1) == [] and seen == [b"one", b"two"]
    assert unpack(talk.limits, 1 << 20) == [] and seen == [b"one", b"two", b"three", b"four", "end"]


@pytest.mark.parametrize(
    ("packed", "code", "text"),
    [
        (
            gzip.compress(bytes(100_001)),
            errors.RESOURCE_EXHAUSTED,
            "grpc: received message after decompression larger than max 100000",
        ),
        (b"nonsense", errors.INTERNAL, "failed to decompress"),
        (gzip.compress(b"x" * 100)[:-3], errors.INTERNAL, "not one gzip member"),
        (gzip.compress(b"x") * 2, errors.INTERNAL, "not one gzip member"),
        (zlib.compress(b"x"), errors.INTERNAL, "failed to decompress"),
    ],
    ids=["bomb", "nonsense", "cut", "two members", "zlib"],
)
def test_gzip_gone_wrong(packed: bytes, code: int, text: str) -> None:
    talk = Talk(max_message=100_000)
    talk.feed(headers(1, h.head(h.PUT_PATH, GZIP)) + h.frame(h.DATA, 1, 1, h.message(packed, 1)))
    assert unpack(talk.limits, 1 << 20) == []
    stream = talk.flush().stream(1)
    assert stream.status == code and text in stream.text
    assert talk.limits.total_buffered == 0


def test_a_bomb_is_unpacked_as_far_as_its_limit_and_no_farther() -> None:
    talk = Talk(max_message=100_000)
    bomb = gzip.compress(bytes(50_000_000))
    talk.feed(
        headers(1, h.head(h.PUT_PATH, GZIP))
        + b"".join(
            h.frame(h.DATA, at + 16_000 >= len(bomb) + 5, 1, h.message(bomb, 1)[at : at + 16_000])
            for at in range(0, len(bomb) + 5, 16_000)
        )
    )
    tracemalloc.start()
    assert unpack(talk.limits, 1 << 20) == []
    used = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert used < 1_000_000 and talk.flush().stream(1).status == errors.RESOURCE_EXHAUSTED


def test_unpacking_has_a_budget() -> None:
    talk = Talk(max_message=1 << 20)
    bomb = h.message(gzip.compress(bytes(1 << 20)), 1)
    talk.feed(
        b"".join(
            headers(2 * at + 1, h.head(h.PUT_PATH, GZIP)) + h.frame(h.DATA, 1, 2 * at + 1, bomb) for at in range(30)
        )
    )
    assert len(unpack(talk.limits, 4 << 20)) == 4
    assert len(unpack(talk.limits, 4 << 20)) == 4
    talk.session.close()
    assert unpack(talk.limits, 4 << 20) == [] and talk.limits.total_buffered == 0
