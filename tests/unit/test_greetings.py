"""Members greet each other: members that the roster does not know yet, members that run twice, and the effects."""

from __future__ import annotations

import logging
import struct
import zlib
from typing import Any

import pytest
from support.peernet import FAST, Net, accepted, append, connected, framed, heartbeat, hello

from metastore import errors
from metastore._core.raft_types import RaftInvariantBroken
from metastore._core.raft_wire import Blob, FrameReader, Outbox
from metastore.peers import handshake as hs
from metastore.peers.acquaintances import MAX_HEARSAY, MAX_STRANGERS, Acquaintance, Acquaintances
from metastore.peers.founding import PROOF
from metastore.peers.stream import PING, PONG, ROSTER_RECORD, PeerLimits
from metastore.peers.transport import MAX_LINES, MAX_REPORTS

NOWHERE = "127.0.0.1:1"


def place(transport: Any) -> str:
    return str(transport.bound[0])


# ---- members that the roster does not know yet, or at another address


def test_an_unknown_member_is_heard_and_answered_where_it_says_it_is(net: Net) -> None:
    """A follower that was away, or was killed before it applied the change, must hear the present leader."""
    behind = net.add(1)
    newcomer = net.add(2, places=("127.0.0.1:2",), name="n2")
    newcomer.me = hs.replace(newcomer.me, places=(place(newcomer),))
    newcomer.set_peers({1: place(behind)})
    net.until(lambda: behind.connected(2) and connected(newcomer, 1))
    assert behind.handler.greetings[0] == (2, False) and not behind.stats()[2]["known"]
    newcomer.send([heartbeat(1, 2)])
    net.until(lambda: behind.handler.messages)
    behind.send([heartbeat(2, 1)])
    net.until(lambda: newcomer.handler.messages)
    # The log tells of it later, and nothing is dialled again.
    behind.set_peers({2: place(newcomer)}, {2: "n2"})
    net.during(0.05)
    stats = behind.stats()[2]
    assert stats["known"] and stats["connects"] == 2 and behind.label(2) == "n2 (0000000000000002)"


def test_a_member_that_moved_is_answered_at_its_new_address(net: Net) -> None:
    behind, moved = net.add(1), net.add(2)
    moved.me = hs.replace(moved.me, places=(place(moved),))
    behind.set_peers({2: NOWHERE})
    net.during(0.05)
    assert not behind.connected(2)
    moved.set_peers({1: place(behind)})
    net.until(lambda: connected(behind, 2))
    behind.send([append(10)])
    net.until(lambda: moved.handler.messages)
    # The address in the roster stays the first choice.
    assert behind.stats()[2]["address"] == place(moved)
    behind.set_peers({2: place(moved)})
    net.during(0.05)
    assert connected(behind, 2)


def test_an_old_roster_takes_nothing_of_what_a_member_says_itself() -> None:
    """Found by the simulator: a member moved twice, greeted, and lost its stream; a newcomer's roster of before both
    moves was asked for, and from then on the old address was dialled in the place of the one in the greeting."""
    known: Acquaintances[Acquaintance] = Acquaintances(
        1, lambda ident, address, known: Acquaintance(ident, address, known, 0.0)
    )
    known.set_peers({2: "moved:1"}, {2: "n2"})
    one = known.accepted(hs.replace(accepted(2).sender, places=("moved:2",)), 1.0)
    known.hear(2, "first:1")
    assert one.places == ["moved:1", "moved:2", "first:1"]
    # Of two rosters that differ both are right at times; they are bounded, and the newest count.
    for number in range(2 * MAX_HEARSAY):
        known.hear(2, f"told:{number}")
    assert one.places == ["moved:1", "moved:2", *(f"told:{7 - number}" for number in range(MAX_HEARSAY))]
    # Who is found needs no hearsay but that by which it was found.
    assert known.answered(one, "told:6", accepted(2), accepted(1).sender).status == hs.OK
    one.connected = True
    known.hear(2, "late:1")
    assert one.places == ["moved:1", "moved:2", "told:6"]


def test_unknown_members_are_bounded_and_forgotten(net: Net) -> None:
    one = net.add(1, limits=PeerLimits(stranger_timeout=0.2, sweep=0.02, backoff_min=0.01))
    socks = [net.greet(one, 100 + number) for number in range(MAX_STRANGERS)]
    refused = hs.decode_answer(net.receive(net.dial(one, hello(200, 1))))
    assert refused.status == hs.BUSY and len(one.stats()) == MAX_STRANGERS
    net.during(0.3)
    assert len(one.stats()) == MAX_STRANGERS, "they are connected"
    for sock in socks:
        sock.close()
    net.until(lambda: one.stats() == {})
    net.greet(one, 200)


def test_an_unknown_member_that_turns_out_to_be_removed(net: Net) -> None:
    one = net.add(1)
    sock = net.greet(one, 2)
    one.set_removed({2})
    assert one.stats() == {} and net.receive(sock) == b""
    assert hs.decode_answer(net.receive(net.dial(one, hello(2, 1)))).status == hs.REMOVED


def test_the_roster_is_asked_for_and_told(net: Net) -> None:
    one, two = net.pair()
    two.handler.record = b"x" * 300_000
    one.ask_roster(2)
    one.ask_roster(2)
    net.until(lambda: one.handler.rosters)
    net.during(0.05)
    assert one.handler.rosters == [(2, b"x" * 300_000)] and connected(one, 2)
    two.handler.record = b"x" * 2_000_000
    one.ask_roster(2)
    net.during(0.1)
    assert len(one.handler.rosters) == 1, "longer than a running member takes"


def test_the_roster_costs_bounded_memory(net: Net) -> None:
    limits = PeerLimits(max_rosters=2, handshake_timeout=1.0, sweep=0.02)
    one = net.add(1, limits=limits)
    one.handler.record = b"x" * 8_000_000  # more than the kernel's buffers
    asks = hs.encode_hello(hs.Hello(hs.ROSTER, hs.NOBODY, 0))
    sockets = [net.dial(one, asks) for _ in range(2)]
    for sock in sockets:
        assert net.receive(sock)
    assert hs.decode_answer(net.receive(net.dial(one, asks))).status == hs.BUSY
    # A client that does not read to the end is cut off.
    net.until(lambda: not one._accepted)
    data = b""
    sock = net.dial(one, asks)
    while len(data) < 8_000_000:
        data += net.receive(sock)
    size = hs.greeting_size(data)
    assert hs.decode_answer(data[:size]).status == hs.TOLD
    (record,) = FrameReader().feed(data[size:], len(data) - size)
    assert (record.tag, record.data) == (ROSTER_RECORD, one.handler.record)


def test_who_asks_for_the_roster_may_say_nothing_more(net: Net) -> None:
    one = net.add(1, limits=PeerLimits(handshake_timeout=60.0))
    sock = net.dial(one, hs.encode_hello(hs.Hello(hs.ROSTER, hs.NOBODY, 0)) + framed(heartbeat(1, 2)))
    while net.receive(sock):
        pass
    assert one.handler.messages == []


def test_who_asked_for_the_roster_may_not_stay(net: Net) -> None:
    """It would keep one of the few streams for the roster."""
    one = net.add(1)
    sock = net.dial(one, hs.encode_hello(hs.Hello(hs.ROSTER, hs.NOBODY, 0)))
    while net.receive(sock):
        pass


def test_hearsay_is_dialled_and_not_believed(net: Net) -> None:
    """A roster, and an address in a greeting, may come from anybody. They help to find members, and end nobody."""
    one, listener = net.add(1), net.listen()
    one.hear(2, f"127.0.0.1:{listener.getsockname()[1]}")
    verdict = hs.Answer(hs.REMOVED, "go away", accepted(2).sender)
    sock, hello = net.accept(listener, verdict)
    assert hello.target == 2 and net.receive(sock) == b""
    assert one.handler.verdicts == []
    one.set_peers({2: f"127.0.0.1:{listener.getsockname()[1]}"})
    net.until(lambda: one.stats()[2]["known"])
    while not one.handler.verdicts:
        net.accept(listener, verdict)
        net.during(0.02)
    assert one.handler.verdicts == [(hs.REMOVED, "member 0000000000000002 says: go away")]


def test_hearsay_does_not_count_as_a_member_s_word(net: Net) -> None:
    """A new member may begin when enough of the others have answered: at the addresses that it knows itself."""
    one, listener = net.add(1), net.listen()
    one.hear(2, f"127.0.0.1:{listener.getsockname()[1]}")
    while not connected(one, 2):
        net.accept(listener, accepted(2))
        net.during(0.02)
    assert one.handler.answers == []
    one.set_peers({2: f"127.0.0.1:{listener.getsockname()[1]}"})
    one.ask_again(2)
    net.accept(listener, accepted(2))
    net.until(lambda: one.handler.answers)


# ---- one member, several processes


def ping_of(net: Net, sock: Any) -> None:
    data = net.receive(sock)
    (item,) = FrameReader().feed(data, len(data))
    assert isinstance(item, Blob) and item.tag == PING


def test_a_second_process_of_a_member_is_sent_away(net: Net) -> None:
    """Both processes run on copies of one directory. The first one gives a sign of life."""
    one, two = net.pair()
    answers = []
    while not answers or answers[-1].status == hs.BUSY:
        answers.append(hs.decode_answer(net.receive(net.dial(one, hello(2, 1, start=2, life=99)))))
        net.during(0.02)
    assert answers[0].status == hs.BUSY and answers[-1].status == hs.TWIN
    assert "another process runs as member 0000000000000002" in answers[-1].text
    assert connected(two, 1) and connected(one, 2) and two.handler.verdicts == []


def test_the_second_process_hears_it_whatever_its_number(net: Net) -> None:
    one, two = net.pair()
    twin = net.add(2, life=99)
    twin.set_peers({1: place(one)})
    net.until(lambda: twin.handler.verdicts)
    assert twin.handler.verdicts[0][0] == hs.TWIN and connected(two, 1)


def test_a_process_that_gives_no_sign_of_life_is_replaced(net: Net) -> None:
    """Its machine is gone, or the process was stopped. A restart elsewhere must not wait for it."""
    one = net.add(1)
    one.set_peers({2: NOWHERE})
    old = net.greet(one, 2)
    again = hs.decode_answer(net.receive(net.dial(one, hello(2, 1, start=2, life=99))))
    assert again.status == hs.BUSY
    ping_of(net, old)
    net.during(PROOF + 0.05)
    assert hs.decode_answer(net.receive(net.dial(one, hello(2, 1, start=2, life=99)))).status == hs.OK
    assert net.receive(old) == b""
    # The process wakes up again. Now it is the second one.
    outbox = Outbox()
    assert outbox.add_blob(PONG, b"")
    late = net.dial(one, hello(2, 1))
    assert hs.decode_answer(net.receive(late)).status == hs.BUSY


def test_a_restart_waits_for_nothing(net: Net) -> None:
    one = net.add(1)
    one.set_peers({2: NOWHERE})
    old = net.greet(one, 2)
    old.close()
    net.during(0.02)
    assert hs.decode_answer(net.receive(net.dial(one, hello(2, 1, start=2, life=99)))).status == hs.OK


def test_an_older_copy_is_told_of(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    one = net.add(1)
    one.set_peers({2: NOWHERE})
    sock = net.dial(one, hello(2, 1, start=7))
    assert hs.decode_answer(net.receive(sock)).status == hs.OK
    sock.close()
    net.during(0.02)
    net.dial(one, hello(2, 1, start=3, life=99))
    net.until(lambda: "start 3 of its data directory after start 7" in caplog.text)


def test_a_directory_that_took_part_is_remembered_before_the_roster_has_it(net: Net) -> None:
    one = net.add(1)
    one.set_peers({2: NOWHERE})
    sock = net.greet(one, 2)
    sock.send(framed(heartbeat(1, 2)))
    net.until(lambda: one.handler.messages)
    sock.close()
    wiped = hs.decode_answer(net.receive(net.dial(one, hello(2, 1, incarnation="wiped", start=1, life=9))))
    assert wiped.status == hs.OTHER_INCARNATION


# ---- only the connection ends


@pytest.mark.parametrize(
    "error", [ValueError("a\nb"), KeyError(3), RaftInvariantBroken("two leaders"), RecursionError(), MemoryError()]
)
def test_whatever_bytes_of_a_peer_cause_ends_their_connection(
    net: Net, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    one, two = net.pair()

    def fail(*_: object) -> None:
        raise error

    two.handler.on_message = two.handler.on_forward = fail
    one.send([heartbeat()])
    net.until(lambda: one.handler.unreachable)
    assert f"what it sent could not be handled: {type(error).__name__} in fail" in caplog.text
    del two.handler.on_message, two.handler.on_forward
    net.until(lambda: connected(one, 2))
    one.send([heartbeat()])
    net.until(lambda: two.handler.messages)


@pytest.mark.parametrize("error", [errors.DiskFailed("gone"), errors.DamagedData("bad")])
def test_what_is_the_nodes_own_trouble_stops_it(net: Net, error: Exception) -> None:
    one, two = net.pair()

    def fail(*_: object) -> None:
        raise error

    two.handler.on_message = fail
    one.send([heartbeat()])
    with pytest.raises(type(error)):
        net.until(lambda: False)


def test_refusals_are_clipped_and_keep_our_token(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    one = net.add(1, token=0x1122334455667788)
    for data in (
        hello(2, 1, cluster_id=5, token=6, incarnation="i" * 64, name="\n" * 128),
        hello(2, 1, cluster_id=5, token=0x1122334455667788),
        hello(1, 1, incarnation="\x1b[31m" * 8),
    ):
        answer = net.receive(net.dial(one, data))
        assert bytes.fromhex("8877665544332211") not in answer
        if hs.decode_answer(answer).status in hs.STRANGE:
            assert hs.decode_answer(answer).sender == hs.NOBODY
    net.during(0.02)
    assert not any(char in record.getMessage() for record in caplog.records for char in "\n\x1b")


def test_strangers_cannot_flood_the_log(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    one = net.add(1)
    for number in range(MAX_LINES + 30):
        sock = net.dial(one, hello(2, 1, cluster_id=1000 + number))
        assert hs.decode_answer(net.receive(sock)).status == hs.OTHER_CLUSTER
    net.during(0.02)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("refused: cluster id" in line for line in lines) == MAX_LINES
    assert sum("the others are left out" in line for line in lines) == 1


def test_what_was_logged_last_of_strangers_takes_bounded_memory(net: Net) -> None:
    """A stranger chooses the reasons, and one that has many addresses chooses those."""
    one = net.add(1)
    for number in range(2 * MAX_REPORTS):
        one._report((f"10.0.{number // 250}.{number % 250}", "reason"), logging.INFO, "new stream", "reason")
    assert len(one._reports) <= MAX_REPORTS


def test_a_hello_of_version_1_is_refused_by_name(net: Net) -> None:
    """The token could be so long that the refusal, which quoted it, did not fit."""
    one, _ = net.pair()
    body = struct.pack("<BQQQ", 1, 77, 2, 1) + struct.pack("<H", 16300) + b"x" * 16300 + b"\0\0" * 2 + b"\0"
    head = struct.pack("<BBHI", 1, 0x80, 0, len(body))
    data = net.receive(net.dial(one, hs.MAGIC + head + struct.pack("<I", zlib.crc32(head + body)) + body))
    answer = hs.decode_answer(data)
    assert (answer.status, answer.sender) == (hs.OTHER_VERSION, hs.NOBODY) and len(data) < 300
    assert "version 1, this program speaks 2 only" in answer.text and connected(one, 2)


def test_one_line_a_peer(net: Net, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    one, two = net.add(1, limits=FAST), net.add(2, limits=FAST)
    one.set_peers({2: place(two)}, {2: "n2"})
    net.until(lambda: connected(one, 2))
    two.close()
    net.until(lambda: not one.connected(2))
    net.during(0.1)
    lines = [record.getMessage() for record in caplog.records if "n2 (0000000000000002)" in record.getMessage()]
    assert sum("connected" in line for line in lines) == 1
    assert sum("connection lost" in line for line in lines) == 1
    # Both streams end for the same reason.
    reasons = [line.rpartition(": ")[2] for line in lines if "connected" not in line]
    assert len(reasons) == len(set(reasons)), lines


def test_a_deadline_brings_the_next_sweep_soon(net: Net) -> None:
    """Sweeps are rare while no stream has a deadline."""
    one, _ = net.pair()
    often = one.limits.sweep
    net.until(lambda: one._seldom)
    assert one._timer is not None and one._timer.when - net.loop.now() > often
    net.dial(one, b"")
    net.until(lambda: any(stream.watched for stream in one._accepted))
    assert one._timer.when - net.loop.now() <= often
