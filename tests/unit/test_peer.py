"""The peer transport over real sockets: members in one loop, and raw sockets that behave badly."""

from __future__ import annotations

import socket
import struct
import sys
import zlib
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest
from support.peernet import CODECS, FAST, Handler, Net, T, accepted, append, connected, framed, heartbeat, hello

from metastore import errors
from metastore._core.lease_wire import decode_question
from metastore._core.raft_types import ConfState, Message, Snapshot
from metastore._core.raft_wire import MAX_FRAME, REFUSALS, WITHDRAWN, FrameReader, Outbox
from metastore.failpoints import Failpoints
from metastore.peers import handshake as hs
from metastore.peers.stream import SMALL_FRAME
from metastore.peers.transport import PeerIdentity, PeerLimits


class SnapshotHandler(Handler):
    """Takes snapshot streams too, and answers each blob."""

    def __init__(self) -> None:
        super().__init__()
        self.requests: list[Message] = []
        self.blobs: list[tuple[int, bytes]] = []
        self.ends: list[str] = []
        self.streams: list[Any] = []

    def on_snapshot(self, message: Message) -> None:
        self.requests.append(message)

    def on_snapshot_stream(self, stream: Any) -> None:
        def on_blob(tag: int, data: bytes) -> None:
            self.blobs.append((tag, data))
            assert stream.reply(tag + 1, str(len(data)).encode())

        self.streams.append(stream)
        stream.on_blob, stream.on_end = on_blob, self.ends.append


# ---- its purpose


def test_messages_forwards_and_refusals_arrive(net: Net) -> None:
    one, two = net.pair()
    messages = [heartbeat(commit=n) for n in range(50)]
    appends = [append(100), append(500_000), append(3000)]
    one.send([*messages, *appends])
    assert one.forward(2, b"operations")
    assert two.refuse(1, 3, [8, 9])
    net.until(lambda: len(two.handler.messages) == 53 and two.handler.forwards and one.handler.refusals)
    assert [m for m in two.handler.messages if m.type == T.MsgHeartbeat] == messages
    assert [m for m in two.handler.messages if m.type == T.MsgApp] == appends
    assert two.handler.forwards == [(1, b"operations")]
    assert one.handler.refusals == [(2, 3, [8, 9])] and issubclass(REFUSALS[3], errors.RequestTooLarge)
    assert one.handler.unreachable == two.handler.unreachable == []


def test_a_withdrawal_arrives_behind_what_it_withdraws(net: Net) -> None:
    one, two = net.pair()
    events: list[object] = []
    two.handler.on_forward = lambda _from, frame: events.append(frame)
    two.handler.on_refusal = lambda _from, code, ids: events.append((code, ids))
    assert one.forward(2, bytes(3_000_000)) and one.withdraw(2, [8, 9]) and one.forward(2, b"later")
    net.until(lambda: len(events) == 3)
    assert events == [bytes(3_000_000), (WITHDRAWN, [8, 9]), b"later"]
    assert not one.withdraw(9, [1])


def test_questions_about_leases_go_to_members_that_know_leases(net: Net) -> None:
    one, two = net.pair(level=2)
    assert one.lease(2, True, b"who lives?") and two.lease(1, False, b"all of them")
    net.until(lambda: two.handler.leases and one.handler.leases)
    assert two.handler.leases == [(1, True, b"who lives?")]
    assert one.handler.leases == [(2, False, b"all of them")]
    assert not one.lease(9, True, b"nobody"), "there is no such member"
    old, older = net.pair(level=1)
    assert not old.lease(2, True, b"who lives?")
    assert old.connected(2) and older.connected(1)


def test_a_question_about_leases_that_cannot_be_read_ends_its_connection(net: Net) -> None:
    one, two = net.pair(level=2)

    def refuse(_from: int, _asks: bool, data: bytes) -> None:
        decode_question(data)

    two.handler.on_lease = refuse
    opened = one.stats()[2]["connects"]
    assert one.lease(2, True, b"nonsense")
    net.until(lambda: one.stats()[2]["connects"] > opened)


def test_what_each_side_knows_of_the_other(net: Net) -> None:
    one, two = net.pair()
    one.send([heartbeat()])
    net.until(lambda: two.handler.messages)
    assert one.identity_of(2) == PeerIdentity(77, 0, 2, "dir-2", CODECS, start=1, life=2)
    assert two.identity_of(1).codecs == CODECS and two.identity_of(9) is None
    assert one.connected(2) and not one.connected(9)
    stats, theirs = one.stats()[2], two.stats()[1]
    assert stats["sent_bytes"] == 104 and stats["queued_bytes"] == 0 and stats["connects"] == 2
    assert stats["address"] == two.bound[0] and stats["dropped"] == 0 and 0 < stats["rtt"] < 5
    assert theirs["received_frames"] == 1 and theirs["received_bytes"] > 104
    assert list(one.stats()) == [2], "a member does not dial itself"


def test_messages_of_a_turn_leave_in_one_write(net: Net) -> None:
    failpoints = Failpoints("peer.send=error@3")  # the third write fails
    one, _ = net.pair(failpoints=failpoints)
    one.send([heartbeat() for _ in range(100)] + [append(10, index) for index in range(100)])
    assert one.forward(2, b"x") and one.forward(2, b"y") and one.refuse(2, 0, [1])
    net.during(0.05)
    assert one.handler.unreachable == []
    one.send([heartbeat()])
    net.until(lambda: one.handler.unreachable)


def test_more_pieces_than_one_write_takes(net: Net) -> None:
    """Each image of this size is a piece of its own, between two heads."""
    one, two = net.pair()
    appends = [append(3000, index) for index in range(200)]
    one.send(appends)
    net.until(lambda: len(two.handler.messages) == 200)
    assert two.handler.messages == appends


def test_messages_and_forwards_pass_no_function_of_the_interpreter(net: Net) -> None:
    one, two = net.pair(limits=replace(FAST, sweep=60))
    one.send([heartbeat(), append(10)])
    two.send([heartbeat(1, 2)])
    net.until(lambda: len(two.handler.messages) == 2 and one.handler.messages)  # the first frames are more work
    called: list[str] = []

    def note(frame: FrameType, event: str, _argument: object) -> None:
        if event == "call" and "/metastore/peers/" in frame.f_code.co_filename:
            called.append(frame.f_code.co_name)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        for n in range(3):
            one.send([heartbeat(commit=n), append(100, n), append(9000, n)])
            two.send([heartbeat(1, 2)])
            assert one.forward(2, b"operations")
            net.until(lambda n=n: len(two.handler.messages) == 5 + 3 * n and len(one.handler.messages) == n + 2)
    finally:
        sys.setprofile(before)
    assert two.handler.forwards == [(1, b"operations")] * 3
    assert called == []


def test_nothing_is_known_of_strangers(net: Net) -> None:
    one, _ = net.pair()
    one.send([heartbeat(to=9)])
    assert not one.forward(9, b"x") and not one.refuse(9, 0, [1])
    assert one.strays == 3
    net.during(0.03)
    assert one.handler.unreachable == []


# ---- admission


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"token": 6, "cluster_id": 78}, "the acceptor's cluster.token is another than the dialler's"),
        ({"cluster_id": 78}, "cluster id is 000000000000004d here"),
    ],
)
def test_strangers_are_refused_and_both_sides_say_why(
    net: Net, caplog: pytest.LogCaptureFixture, fields: dict[str, Any], reason: str
) -> None:
    one, other = net.add(1), net.add(2, **fields)
    one.set_peers({2: "127.0.0.1:1"})
    other.set_peers({1: one.bound[0]})
    net.until(lambda: caplog.text.count(reason) >= 2)
    lines = [record.getMessage() for record in caplog.records if reason in record.getMessage()]
    assert any(line.startswith("new stream from") for line in lines), "the acceptor says so"
    assert any(line.startswith("member 0000000000000001 at ") for line in lines), "the dialler says so"
    net.during(0.1)
    other.send([heartbeat(to=1, from_=other.me.member_id)])
    net.during(0.1)
    assert one.handler.messages == [] and not other.connected(1) and 1 in other.handler.unreachable
    assert caplog.text.count(reason) <= 4, "not at every attempt"


def test_another_member_at_the_address(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    one, two, three = net.add(1), net.add(2), net.add(3)
    two.set_peers({1: one.bound[0], 3: three.bound[0]})
    one.set_peers({2: two.bound[0], 3: two.bound[0]})
    net.until(lambda: caplog.text.count("this is member 0000000000000002, the dialler wants 0000000000000003") >= 2)
    net.until(lambda: connected(one, 2))
    assert not one.connected(3)


def test_a_wiped_directory_is_refused_by_those_it_dials(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    one, two = net.add(1), net.add(2, incarnation="wiped")
    one.expect(2, "dir-2")
    one.set_peers({2: "127.0.0.1:1"})
    two.set_peers({1: one.bound[0]})
    net.until(lambda: two.handler.verdicts and "data directory 'wiped', but its own is 'dir-2'" in caplog.text)
    assert two.handler.verdicts[0][0] == hs.OTHER_INCARNATION and not two.connected(1)


def test_a_wiped_directory_is_not_dialled_with_success(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    one, two = net.add(1), net.add(2, incarnation="wiped")
    one.expect(2, "dir-2")
    one.set_peers({2: two.bound[0]})
    two.set_peers({1: "127.0.0.1:1"})
    net.until(lambda: "data directory 'wiped'" in caplog.text)
    net.during(0.05)
    assert not one.connected(2)


def test_a_directory_found_to_be_wrong_later_is_cut_off(net: Net) -> None:
    one, two = net.pair()
    one.expect(2, "dir-2")
    net.during(0.05)
    assert connected(one, 2) and connected(two, 1)
    one.expect(2, "another")
    net.until(lambda: not one.connected(2) and not two.connected(1))
    net.during(0.1)
    assert not one.connected(2) and not two.connected(1)
    assert [status for status, _ in two.handler.verdicts] == [hs.OTHER_INCARNATION] and not one.handler.verdicts


def test_a_removed_member_is_told_once(net: Net) -> None:
    one, two = net.pair()
    one.set_removed({2})
    one.set_peers({})
    net.until(lambda: two.handler.verdicts)
    net.during(0.1)
    text = "member 0000000000000001 says: member 0000000000000002 was removed from cluster 000000000000004d"
    assert two.handler.verdicts == [(hs.REMOVED, text)]
    assert one.handler.verdicts == [] and one.stats() == {}


def test_the_removed_may_close_at_once(net: Net) -> None:
    one, two = net.pair()
    two.handler.on_verdict = lambda _status, _text: two.close()
    one.set_removed({2})
    one.set_peers({})
    net.until(lambda: two.stats() == {})
    net.during(0.05)


def test_another_version_is_answered(net: Net) -> None:
    one = net.add(1)
    data = bytearray(hello(2, 1))
    data[8] = 9
    data[16:20] = struct.pack("<I", zlib.crc32(data[8:16] + data[20:]))
    sock = net.dial(one, bytes(data))
    answer = hs.decode_answer(net.receive(sock))
    assert answer.status == hs.OTHER_VERSION
    assert answer.text.startswith("peer protocol version 9, this program speaks 2 only")
    assert net.receive(sock) == b""


@pytest.mark.parametrize("data", [b"GET / HTTP/1.1\r\n\r\n", b"\0", hello(2, 1)[:40], b""])
def test_others_than_peers_are_dropped(net: Net, data: bytes) -> None:
    one, _ = net.pair()
    sock = net.dial(one, data)
    assert net.receive(sock) == b""
    assert connected(one, 2)


def test_those_who_say_nothing_make_room(net: Net) -> None:
    limits = PeerLimits(handshake_timeout=30, max_accepted=4, sweep=0.02, backoff_min=0.01, backoff_max=0.05)
    one, two = net.pair(limits=limits)
    silent = [net.dial(one, b"") for _ in range(8)]
    net.during(0.1)
    two.set_peers({})
    two.set_peers({1: one.bound[0]})
    net.until(lambda: connected(two, 1))
    assert net.receive(silent[0]) == b""


# ---- connections end and come back


def test_a_member_that_restarts_is_dialled_again(net: Net) -> None:
    one, two = net.pair()
    where = two.bound[0]
    two.close()
    net.until(lambda: not one.connected(2))
    one.send([heartbeat(commit=1), append(10)])
    assert not one.forward(2, b"x")
    net.until(lambda: one.handler.unreachable)
    again = net.add(2, address=where)
    again.set_peers({1: one.bound[0]})
    net.until(lambda: connected(one, 2) and connected(again, 1))
    one.send([heartbeat(commit=2)])
    net.until(lambda: again.handler.messages)
    assert again.handler.messages[-1] == heartbeat(commit=2)
    assert one.stats()[2]["connects"] >= 4


def test_a_member_that_comes_up_is_dialled_back_at_once(net: Net) -> None:
    patient = PeerLimits(backoff_min=60, backoff_max=60)
    one = net.add(1, limits=patient)
    with socket.create_server(("127.0.0.1", 0)) as sock:
        where = f"127.0.0.1:{sock.getsockname()[1]}"
    one.set_peers({2: where})
    net.until(lambda: one.handler.unreachable)
    two = net.add(2, address=where)
    two.set_peers({1: one.bound[0]})
    net.until(lambda: connected(one, 2) and connected(two, 1), seconds=5)


def resolves(name: str) -> bool:
    try:
        return bool(socket.getaddrinfo(name, None))
    except OSError:
        return False


def test_a_member_that_moves(net: Net) -> None:
    one, two = net.pair()
    two.close()
    again = net.add(2)
    again.set_peers({1: "127.0.0.1:1"})
    host, port = again.bound[0].split(":")
    assert host == "127.0.0.1"
    # A bare chroot has no /etc/hosts.
    name = "localhost" if resolves("localhost") else host
    one.set_peers({2: f"http://{name}:{port}"})
    net.until(lambda: connected(one, 2))


def test_a_member_that_leaves(net: Net) -> None:
    one, two = net.pair()
    one.set_removed({2})
    one.set_peers({})
    net.until(lambda: not two.connected(1))
    net.during(0.1)
    assert not two.connected(1) and one.stats() == {}


@pytest.mark.parametrize("address", ["nonsense", "127.0.0.1:1", "[::1]:1", "..:80", "x" * 300 + ":80"])
def test_addresses_that_lead_nowhere(net: Net, address: str) -> None:
    one = net.add(1)
    one.set_peers({2: address})
    net.until(lambda: len(one.handler.unreachable) >= 3)


def test_what_was_queued_is_sent_at_the_end(net: Net) -> None:
    one, two = net.pair()
    one.send([Message(T.MsgTimeoutNow, 2, 1, 5)])
    one.close()
    net.until(lambda: two.handler.messages)
    assert two.handler.messages == [Message(T.MsgTimeoutNow, 2, 1, 5)]
    one.close()


def test_messages_wait_for_a_connection_that_is_being_made(net: Net) -> None:
    one, two = net.add(1), net.add(2)
    two.set_peers({1: one.bound[0]})
    one.set_peers({2: two.bound[0]})
    one.send([heartbeat()])
    net.until(lambda: two.handler.messages)
    assert one.handler.unreachable == []


def test_a_failing_send_ends_the_connection_only(net: Net) -> None:
    failpoints = Failpoints()
    one, two = net.pair(failpoints=failpoints)
    failpoints.set("peer.send", "error")
    one.send([heartbeat(commit=1)])
    net.until(lambda: one.handler.unreachable == [2])
    failpoints.clear()
    net.until(lambda: connected(one, 2))
    one.send([heartbeat(commit=2)])
    net.until(lambda: two.handler.messages)
    assert two.handler.messages == [heartbeat(commit=2)], "nothing is sent twice, or late"


# ---- bad streams


@pytest.mark.parametrize(
    "data",
    [
        framed(heartbeat(1, 2))[:-1] + b"x",
        framed(heartbeat(1, 3)),
        framed(heartbeat(3, 2)),
        struct.pack("<IIIII", 1, 2, 3, 4, 5),
    ],
)
def test_a_bad_frame_ends_its_connection_only(net: Net, data: bytes) -> None:
    one = net.add(1)
    one.set_peers({2: "127.0.0.1:1"})
    sock = net.greet(one, 2, hs.BULK)
    sock.send(framed(heartbeat(1, 2, 3)))
    net.until(lambda: one.handler.messages)
    sock.send(data)
    assert net.receive(sock) == b""
    assert one.handler.messages == [heartbeat(1, 2, 3)]


def test_a_message_that_the_node_finds_bad_ends_the_connection(net: Net) -> None:
    one, two = net.pair()
    two.handler.refuse = "nonsense"
    one.send([heartbeat()])
    net.until(lambda: one.handler.unreachable)
    two.handler.refuse = ""
    net.until(lambda: connected(one, 2))


def test_a_node_that_stops_gets_no_more_messages(net: Net) -> None:
    one, two = net.pair()
    messages = []

    def stop(message: Message) -> None:
        messages.append(message)
        two.close()

    two.handler.on_message = stop
    one.send([heartbeat(commit=n) for n in range(3)])
    net.until(lambda: messages)
    net.during(0.05)
    assert messages == [heartbeat()]


def announced(size: int) -> bytes:
    """The header of a frame with so many bytes, of which none is summed."""
    start = struct.pack("<IIIB3x", 0, size, 84, 1)
    return start + struct.pack("<I", zlib.crc32(start))


@pytest.mark.parametrize(
    ("kind", "most"), [(hs.CONTROL, SMALL_FRAME), (hs.SNAPSHOT, SMALL_FRAME), (hs.BULK, MAX_FRAME)]
)
def test_what_one_stream_may_announce(net: Net, kind: int, most: int) -> None:
    """Memory is set aside for an unfinished frame. Only one stream of each member may have large ones."""
    one = net.add(1, handler=SnapshotHandler())
    one.set_peers({2: "127.0.0.1:1"})
    fits = net.greet(one, 2, kind)
    fits.send(announced(most))
    net.during(0.1)
    assert len(one._accepted) == 1, "it waits for the rest"
    fits.close()
    net.until(lambda: not one._accepted)
    sock = net.greet(one, 2, kind)
    sock.send(announced(most + 1))
    assert net.receive(sock) == b""


def test_blobs_are_for_snapshot_streams(net: Net) -> None:
    one = net.add(1)
    one.set_peers({2: "127.0.0.1:1"})
    sock = net.greet(one, 2, hs.BULK)
    outbox = Outbox()
    assert outbox.add_blob(1, b"x")
    sock.send(b"".join(outbox.pieces()))
    assert net.receive(sock) == b""


def test_an_acceptor_that_sends_frames(net: Net) -> None:
    one, listener = net.add(1), net.listen()
    one.set_peers({2: f"127.0.0.1:{listener.getsockname()[1]}"})
    sock, _ = net.accept(listener, accepted(2))
    sock.send(framed(heartbeat(1, 2)))
    assert net.receive(sock) == b""
    assert one.handler.messages == []


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", hs.encode_answer(accepted(2))[:30]])
def test_an_acceptor_that_gives_no_answer(net: Net, answer: bytes) -> None:
    one, listener = net.add(1), net.listen()
    one.set_peers({2: f"127.0.0.1:{listener.getsockname()[1]}"})
    sock, _ = net.accept(listener, None)
    sock.send(answer)
    assert net.receive(sock) == b""
    net.accept(listener, None)


def test_a_newer_stream_takes_the_place_of_the_old_one(net: Net) -> None:
    one = net.add(1)
    one.set_peers({2: "127.0.0.1:1"})
    old, bulk = net.greet(one, 2), net.greet(one, 2, hs.BULK)
    new = net.greet(one, 2)
    assert net.receive(old) == b""
    for sock in (bulk, new):
        sock.send(framed(heartbeat(1, 2)))
    net.until(lambda: len(one.handler.messages) == 2)


@pytest.mark.parametrize(
    ("timeouts", "reason"),
    [
        ({"stall_timeout": 1.0, "dead_timeout": 60}, "took nothing for 1 s"),
        ({"stall_timeout": 60, "dead_timeout": 3}, "Connection timed out"),
    ],
)
def test_a_peer_that_stops_reading_costs_bounded_memory_and_no_heartbeat(
    net: Net, caplog: pytest.LogCaptureFixture, timeouts: dict[str, float], reason: str
) -> None:
    limits = PeerLimits(max_bulk=2_000_000, backoff_min=0.01, backoff_max=0.05, sweep=0.02, **timeouts)
    one, listener = net.add(1, limits=limits), net.listen()
    one.set_peers({2: f"127.0.0.1:{listener.getsockname()[1]}"})
    streams = {}
    for _ in range(2):
        sock, hello = net.accept(listener, accepted(2))
        streams[hello.kind] = sock
    net.until(lambda: connected(one, 2))
    control, reader, messages = streams[hs.CONTROL], FrameReader(), []
    while not one.stats()[2]["dropped"]:
        one.send([append(500_000)])
        net.turn(0)
        assert one.stats()[2]["queued_bytes"] <= 2_000_000
    before = one.stats()[2]["queued_bytes"]
    net.during(0.02)
    assert one.handler.unreachable
    one.send([heartbeat(commit=n) for n in range(10)])
    while len(messages) < 10:
        data = net.receive(control)
        messages += reader.feed(data, len(data))
    assert messages == [heartbeat(commit=n) for n in range(10)]
    assert one.stats()[2]["queued_bytes"] == before > 1_000_000
    # The peer takes nothing for too long: the stream is given up, and the peer is dialled again.
    net.until(lambda: not connected(one, 2))
    assert f"member 0000000000000002 at {one.stats()[2]['address']}: connection lost: {reason}" in caplog.text
    assert one.stats()[2]["queued_bytes"] == 0 and one.connected(2)
    assert net.accept(listener, accepted(2))[1].kind == hs.BULK


def test_a_slow_reader_gets_everything(net: Net) -> None:
    one, listener = net.add(1), net.listen()
    one.set_peers({2: f"127.0.0.1:{listener.getsockname()[1]}"})
    streams = {hello.kind: sock for sock, hello in (net.accept(listener, accepted(2)) for _ in range(2))}
    net.until(lambda: connected(one, 2))
    appends = [append(700_000, index) for index in range(30)]
    one.send(appends)
    net.during(0.02)
    assert one.stats()[2]["queued_bytes"] > 0
    reader, messages = FrameReader(), []
    while len(messages) < len(appends):
        data = net.receive(streams[hs.BULK])
        messages += reader.feed(data, len(data))
    assert messages == appends and one.stats()[2]["queued_bytes"] == 0 and one.handler.unreachable == []


# ---- snapshot streams


def snap() -> Message:
    return Message(T.MsgSnap, 2, 1, 5, snapshot=Snapshot(9, 4, ConfState((1, 2))))


def test_a_snapshot_has_a_stream_of_its_own(net: Net) -> None:
    one, two = net.add(1, handler=SnapshotHandler()), net.add(2, handler=SnapshotHandler())
    one.set_peers({2: two.bound[0]})
    two.set_peers({1: one.bound[0]})
    one.send([snap()])
    assert one.handler.requests == [snap()]
    stream, events = one.open_snapshot(2), []
    stream.on_open = lambda: events.append("open")
    stream.on_blob = lambda tag, data: events.append((tag, data))
    stream.on_drain = lambda: events.append("drain")
    net.until(lambda: "open" in events)
    assert stream.send_message(snap()) and stream.send(1, b"chunk") and stream.send(3, bytes(1_000_000))
    net.until(lambda: (4, b"1000000") in events)
    assert events[0] == "open" and events.count("drain") >= 1 and (2, b"5") in events
    assert two.handler.messages == [snap()] and two.handler.blobs == [(1, b"chunk"), (3, bytes(1_000_000))]
    stream.close()
    net.until(lambda: two.handler.ends)
    assert not stream.send(1, b"late")
    assert [one.open_snapshot(2) is not None for _ in range(3)] == [True, True, False]
    assert one.open_snapshot(9) is None


def test_a_snapshot_stream_ends_with_its_first_failure(net: Net) -> None:
    one, two = net.add(1), net.add(2, handler=SnapshotHandler())
    one.set_peers({2: two.bound[0]})
    two.set_peers({1: one.bound[0]})
    stream, ends = one.open_snapshot(2), []
    stream.on_end = ends.append
    net.until(lambda: two.handler.streams)
    two.close()
    net.until(lambda: ends)
    net.during(0.05)
    assert len(ends) == 1 and not stream.send(1, b"late")
    closed_stream = one.open_snapshot(2)
    closed_stream.on_end = ends.append
    one.set_peers({})
    assert len(ends) == 2 and "no member" in ends[1]


def test_snapshot_streams_beyond_the_limit_are_refused(net: Net) -> None:
    one, two = net.add(1), net.add(2, handler=SnapshotHandler(), limits=replace(FAST, max_snapshots=1))
    one.set_peers({2: two.bound[0]})
    two.set_peers({1: one.bound[0]})
    ends: list[str] = []
    for _ in range(2):
        one.open_snapshot(2).on_end = ends.append
    net.until(lambda: ends and two.handler.streams)
    assert len(two.handler.streams) == 1 and "no more snapshots at the moment" in ends[0]


def test_a_full_snapshot_stream_says_so(net: Net) -> None:
    limits = PeerLimits(max_snapshot=100_000)
    one, two = net.add(1, limits=limits), net.add(2, handler=SnapshotHandler())
    one.set_peers({2: two.bound[0]})
    two.set_peers({1: one.bound[0]})
    stream, drained = one.open_snapshot(2), []
    stream.on_drain = lambda: drained.append(1)
    net.until(lambda: two.handler.streams)
    sent = 0
    while sent < 20:
        if stream.send(1, bytes(60_000)):
            sent += 1
        else:
            drained.clear()
            net.until(lambda: drained)
    net.until(lambda: len(two.handler.blobs) == 20)


# ---- opening


def test_an_address_in_use(net: Net) -> None:
    one = net.add(1)
    with pytest.raises(errors.AddressInUse, match="cannot listen for peers on"):
        net.add(2, address=one.bound[0])
    with pytest.raises(errors.ConfigError):
        net.add(2, address="nonsense")
