"""How many entries a leader sends that nobody waits for: little at a time, and more where the way is long."""

from __future__ import annotations

from support.raft_harness import Network

from metastore._core.raft_types import Message, MessageType

PACE = 1 << 20
PIECE = 256 << 10
SIZE = 16 << 10
FAR = 3


def behind(entries: int, **config: object) -> Network:
    """Return a leader, a member that is level, and one that lacks `entries` committed ones and has just been
    reached."""
    network = Network([1, 2, FAR], **config)
    network.campaign(1)
    network.isolate(FAR)
    for number in range(entries):
        network[1].propose(b"\0" + number.to_bytes(4, "big") + bytes(SIZE))
        if number % 50 == 0:
            network.settle()
    network.settle()
    assert network[1].commit == network[1].last_index
    network[1].report_unreachable(FAR)
    network.heal()
    return network


def bulk(network: Network) -> list[Message]:
    """Return the entries on their way to the member that is behind."""
    return [m for m in network.queue if m.to == FAR and m.type == MessageType.MsgApp and m.entries]


def test_committed_entries_go_in_small_pieces_and_few_at_a_time() -> None:
    network = behind(300)
    network[1].tick()
    network.collect()
    most = 0
    while network.queue:
        sizes = [len(m.images) for m in bulk(network)]
        assert all(size <= PIECE for size in sizes)
        most = max(most, sum(sizes))
        network.deliver()
    # One piece may begin below the pace.
    assert PACE <= most < PACE + PIECE
    assert network.data(FAR) == network.data(2)


def test_what_is_not_committed_waits_for_nothing() -> None:
    network = Network([1, 2, FAR])
    network.campaign(1)
    for _ in range(4 * PACE // SIZE):
        network[1].propose(b"\0" + bytes(SIZE))
    network.collect()
    sizes = [len(m.images) for m in bulk(network)]
    assert sum(sizes) >= 4 * PACE
    assert max(sizes) > PIECE
    network.settle()
    assert len(network.data(FAR)) == 4 * PACE // SIZE


def test_fresh_entries_reach_the_others_while_one_catches_up() -> None:
    network = behind(300)
    network[1].tick()
    network.collect()
    while not bulk(network):
        network.deliver()
    network[1].propose(b"\0fresh")
    for _ in range(3):
        network.collect()
        network.deliver()
    assert network.data(2)[-1] == b"\0fresh" == network.data(1)[-1]
    assert network.data(FAR)[-1:] != [b"\0fresh"]
    network.settle()
    assert network.data(FAR)[-1] == b"\0fresh"


def test_the_pace_doubles_with_each_heartbeat_where_answers_take_long() -> None:
    network = behind(1200)
    answers: list[Message] = []

    def slow(message: Message) -> bool:
        late = FAR in (message.from_, message.to) and message.type in (MessageType.MsgApp, MessageType.MsgAppResp)
        if late:
            answers.append(message)
        return late

    # The way there and back takes one heartbeat.
    underway = []
    network.drop = slow
    for _ in range(14):
        network[1].tick()
        network.settle()
        batch, answers[:] = answers[:], []
        underway.append(sum(len(m.images) for m in batch if m.to == FAR))
        for message in batch:
            network[message.to].step(message)
        network.settle()
    most = max(underway)
    assert most >= 4 * PACE, underway
    network.drop = lambda message: False
    for message in answers:
        network[message.to].step(message)
    network.tick(1, count=5)
    assert network.data(FAR) == network.data(2)


def test_the_pace_is_no_wider_than_the_window() -> None:
    network = behind(100, max_inflight_bytes=100_000)
    network[1].tick()
    network.collect()
    most = 0
    while network.queue:
        most = max(most, sum(len(m.images) for m in bulk(network)))
        network.deliver()
    assert 0 < most < 100_000 + PIECE
    assert network.data(FAR) == network.data(2)
