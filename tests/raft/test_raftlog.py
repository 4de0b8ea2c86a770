"""The Raft log through a follower's RawNode: tail, truncation, trimming, reading behind the tail, compared with a
list."""

from __future__ import annotations

import random

import pytest
from support.raft_harness import MemoryStorage, Node

from metastore._core.entry import Entry, HardState, decode_entries, encode_entry
from metastore._core.raft import RawNode
from metastore._core.raft_types import ConfState, Message, MessageType, RaftConfig, Snapshot
from metastore.errors import FormatError


def append(
    raw: RawNode, term: int, previous: tuple[int, int], entries: list[Entry], commit: int = 0, leader: int = 1
) -> None:
    raw.step(
        Message(
            MessageType.MsgApp,
            to=3,
            from_=leader,
            term=term,
            log_term=previous[0],
            index=previous[1],
            entries=entries,
            commit=commit,
        )
    )


def follower(storage: MemoryStorage | None = None, **config: object) -> Node:
    settings: dict = {"pre_vote": False, "check_quorum": False, **config}
    return Node(RaftConfig(3, **settings), storage or MemoryStorage(ConfState([1, 2, 3])))


@pytest.mark.parametrize("seed", range(25))
def test_against_a_list(seed: int) -> None:
    """Random leaders append at random, with a slow disk and crashes. The durable part and the log stay right."""
    rnd = random.Random(seed)
    node = follower(max_tail_bytes=rnd.choice([1, 600, 1 << 20]), read_ahead_bytes=rnd.choice([1, 500]))
    node.hold_disk = True
    model: list[Entry] = []
    term, commit = 1, 0
    for step in range(150):
        if rnd.random() < 0.3:
            term += 1
        keep = rnd.randint(commit, len(model))
        new = [Entry(term, keep + n + 1, 0, bytes(rnd.randint(0, 90))) for n in range(rnd.randint(0, 5))]
        if keep < len(model) and (not new or model[keep].term == term):
            continue  # a leader never conflicts with itself, and an empty append cuts nothing
        model = model[:keep] + new
        previous = (model[keep - 1].term if keep else 0, keep)
        append(node.raw, term, previous, new, rnd.randint(commit, len(model)), leader=term % 2 + 1)
        commit = node.raw.commit
        node.take()
        if node.writing and rnd.random() < 0.6:
            node.flush(rnd.randint(1, len(node.writing)))
            node.take()
        assert node.raw.last_index == len(model)
        assert [node.raw.term_of(e.index) for e in model] == [e.term for e in model]
        assert node.storage.log[: node.raw.persisted] == model[: node.raw.persisted]
        assert node.applied == model[: len(node.applied)]
        if step % 50 == 49:
            node.flush()
            node.take()
            assert node.raw.persisted == len(model)
            assert node.applied == model[:commit]
            assert node.storage.log == model
            applied = rnd.randint(0, commit)
            node = follower(node.storage, applied=applied)
            node.hold_disk = True
            node.applied = model[:applied]


def test_views_survive_truncation_and_trimming() -> None:
    node = follower(max_tail_bytes=1)
    append(node.raw, 1, (0, 0), [Entry(1, n, 0, b"old%d" % n) for n in range(1, 6)])
    ready = node.raw.ready()
    images = ready.entry_images
    before = bytes(images)
    append(node.raw, 2, (1, 2), [Entry(2, n, 0, b"new%d" % n) for n in range(3, 9)], leader=2)
    later = node.raw.ready()
    assert bytes(images) == before
    assert [e.data for e in decode_entries(images)] == [b"old%d" % n for n in range(1, 6)]
    assert (later.first_index, later.last_index) == (3, 8)
    assert [e.data for e in later.entries] == [b"new%d" % n for n in range(3, 9)]


def test_the_same_entries_again_are_not_written_again() -> None:
    node = follower()
    entries = [Entry(1, n, 0, b"x") for n in range(1, 4)]
    append(node.raw, 1, (0, 0), entries)
    node.take()
    append(node.raw, 1, (0, 0), entries[:2])
    assert node.raw.last_index == 3
    ready = node.raw.ready()
    assert ready.last_index == 0
    assert [(m.type, m.index) for m in ready.messages] == [(MessageType.MsgAppResp, 2)]


def test_every_damaged_append_is_refused() -> None:
    first = encode_entry(Entry(1, 1, 0, b"ab"))
    images = first + encode_entry(Entry(1, 2, 0, b"c"))
    damaged = [images[:cut] for cut in range(1, len(images)) if cut != len(first)]
    for at in range(len(images)):
        flipped = bytearray(images)
        flipped[at] ^= 1 << at % 8
        damaged.append(bytes(flipped))
    for data in damaged:
        node = follower()
        with pytest.raises(FormatError):
            node.raw.step(Message(MessageType.MsgApp, 3, 1, 1, images=data))
        assert node.raw.last_index == 0


def test_a_storage_that_gives_wrong_entries_is_noticed() -> None:
    class Wrong(MemoryStorage):
        def images(self, low: int, high: int, max_size: int) -> bytes:
            return super().images(low + 1, high, max_size)

    storage = Wrong(ConfState([3]))
    storage.store([Entry(1, n, 0, b"x") for n in range(1, 4)], HardState(1, 0, 2))
    raw = RawNode(RaftConfig(3), storage)
    with pytest.raises(FormatError, match="in place of"):
        raw.ready()


def test_snapshot_replaces_log_and_membership() -> None:
    node = follower()
    append(node.raw, 1, (0, 0), [Entry(1, n, 0, b"x") for n in range(1, 4)], commit=2)
    node.take()
    snapshot = Snapshot(9, 2, ConfState([1, 3, 4]), b"name")
    node.raw.step(Message(MessageType.MsgSnap, 3, 1, 2, snapshot=snapshot))
    ready = node.raw.ready()
    assert ready.snapshot == snapshot
    assert ready.must_sync
    assert not ready.messages
    append(node.raw, 2, (2, 9), [Entry(2, 10, 0, b"y")], commit=10)
    second = node.raw.ready()
    assert not second.committed_last
    node.raw.on_persisted(ready.number)
    assert [m.index for m in node.raw.ready().messages] == [9]
    assert node.raw.applied == 9
    node.raw.on_persisted(second.number)
    third = node.raw.ready()
    assert (third.committed_first, third.committed_last) == (10, 10)
    assert [m.index for m in third.messages] == [10]
    assert node.raw.conf_state == ConfState([1, 3, 4])
    # An older snapshot is answered with the present position.
    node.raw.step(Message(MessageType.MsgSnap, 3, 1, 2, snapshot=Snapshot(4, 1, ConfState([1]))))
    assert [(m.index, m.reject) for m in node.raw.ready().messages] == [(10, False)]


def test_snapshot_of_what_the_log_holds_moves_the_commit_index_only() -> None:
    node = follower()
    append(node.raw, 1, (0, 0), [Entry(1, n, 0, b"x") for n in range(1, 4)])
    node.take()
    node.raw.step(Message(MessageType.MsgSnap, 3, 1, 1, snapshot=Snapshot(2, 1, ConfState([1, 2, 3]))))
    assert node.raw.ready().snapshot is None
    assert node.raw.commit == 2
    assert node.raw.last_index == 3


def test_read_ahead_serves_a_lagging_peer_from_few_reads() -> None:
    storage = MemoryStorage(ConfState([1, 2]))
    storage.store([Entry(1, n, 0, bytes(50)) for n in range(1, 501)], HardState(1, 0, 500))
    config = RaftConfig(
        1, applied=500, pre_vote=False, check_quorum=False, max_size_per_msg=300, read_ahead_bytes=10_000
    )
    raw = RawNode(config, storage)
    raw.campaign()
    raw.advance(raw.ready())
    raw.step(Message(MessageType.MsgVoteResp, 1, 2, raw.term))
    raw.advance(raw.ready())
    raw.step(Message(MessageType.MsgAppResp, 1, 2, raw.term, index=500, reject=True, reject_hint=0))
    sent = 0
    for _ in range(300):
        for m in raw.ready().messages:
            if m.type == MessageType.MsgApp and m.entries:
                sent = m.entries[-1].index
                assert len(m.images) <= 300
                raw.step(Message(MessageType.MsgAppResp, 1, 2, raw.term, index=sent))
    assert sent == 501
    assert len(storage.reads) <= 8


def test_an_engine_that_lags_does_not_keep_the_log_in_memory() -> None:
    """Entries that are committed and not applied are on disk, and are read back in order when the engine goes on."""
    limit, size, count = 64 << 10, 3000, 200
    node = follower(max_tail_bytes=limit, read_ahead_bytes=10_000, max_committed_size_per_ready=20_000)
    node.raw.apply_held = True
    entries = [Entry(1, n, 0, n.to_bytes(4, "big") * (size // 4)) for n in range(1, count + 1)]
    for number, entry in enumerate(entries):
        append(node.raw, 1, (1 if number else 0, number), [entry], commit=number)
        node.take()
        assert node.raw.log.settled_bytes <= limit
    # Entries that are committed late are given back too, without another entry.
    more = [Entry(1, count + n, 0, bytes(size)) for n in range(1, 101)]
    append(node.raw, 1, (1, count), more, commit=count)
    node.take()
    node.raw.step(Message(MessageType.MsgHeartbeat, 3, 1, 1, commit=count + 100))
    assert node.raw.log.settled_bytes <= limit and node.raw.persisted == node.raw.commit == count + 100
    assert not node.applied
    node.raw.apply_held = False
    node.storage.loaded = False
    node.take()
    assert node.raw.apply_waiting and not node.applied
    node.storage.loaded = True
    node.raw.entries_loaded()
    node.take()
    assert node.applied == [*entries, *more]
