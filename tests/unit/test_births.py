"""Counts at other revisions than the engine's: of older ones, inside an entry, and while the engine is busy. Each is
that of a plain set of keys, and nothing is walked over as far as the list of births and deaths reaches."""

from __future__ import annotations

import contextlib
import random
from typing import Any

import pytest
from support import kvmessages as pb
from support.caller import Caller

from metastore import errors
from metastore._core.batch import frame
from metastore._core.codec import PayloadCodec
from metastore._core.entry import Entry, encode_entry
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.mvcc_births import CHANGES, KEY_BYTES, PAGE_COUNTS
from metastore._core.mvcc_range import known_count, sliced_reply
from metastore._core.mvcc_stream import chunks
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.mvcc_txn_work import execute_txn
from metastore._core.op import COMPACT, DELETE_RANGE, PUT, TXN, encode_op
from metastore._core.ordered_map_check import check_counts
from metastore.storage.engines.memory import MemoryEngine

KEYS = [b"a", b"b", b"a\0", b"\0", b"\0\0", b"ab", b"a\xff", b"\xff", b"a\0b", *(b"k%02d" % n for n in range(20))]
EDGES = [*KEYS, b"\xff\xff", b"l", b"k1"]
CODEC = PayloadCodec(None, 1024, 1 << 20)


class Engine(MemoryEngine):
    """Refuses a write now and then, and does not always tell what it knows."""

    busy = 0.0
    mute = False

    def write(self, batch: Any, index: int, term: int) -> None:
        if self.busy and random.random() < self.busy:
            raise errors.EngineBusy("not now")
        MemoryEngine.write(self, batch, index, term)

    def count(self, start: bytes, end: bytes | None) -> int | None:
        return None if self.mute else MemoryEngine.count(self, start, end)


def inside(keys: set[bytes], key: bytes, end: bytes) -> int:
    return sum(key <= one and (end == b"\0" or one < end) for one in keys)


class World:
    """A store that changes at random, and beside it the keys of each of its revisions."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        random.seed(seed)
        self.engine = Engine()
        self.store = Store(self.engine, 1, 2)
        self.applier = Applier(self.store, CODEC, {})
        self.index = 0
        self.history: list[set[bytes]] = [set(), set()]  # the keys of each revision
        self.known = 0

    # -- what is expected

    def look(self, inner: set[bytes] | None = None) -> None:
        """Ask for a count at some revision."""
        store, rng = self.store, self.rng
        revision = rng.randint(max(1, store.compact_revision), store.revision)
        key, end = rng.choice(EDGES), rng.choice([*EDGES, b"\0"])
        body = pb.RangeRequest(key=key, range_end=end, revision=revision, count_only=True).SerializeToString()
        expected = inside(self.history[revision], key, end)
        assert pb.RangeResponse.FromString(sliced_reply(store, body, 10**6)).count == expected
        known = known_count(store, body)
        assert known in (None, expected)
        if revision >= store.births.since and not (store.stale or store.births.lost or self.engine.mute):
            assert known is not None, "the list reaches back so far"
        self.known += known is not None

    # -- what happens

    def simple(self, keys: set[bytes], written: set[bytes]) -> tuple[int, bytes, bool]:
        """Return a put or a deletion, and whether it changes anything. Carry it out on `keys`. No key is put twice."""
        rng = self.rng
        if rng.random() < 0.7:
            key = rng.choice([key for key in KEYS if key not in written])
            keys.add(key)
            written.add(key)
            return PUT, pb.PutRequest(key=key, value=b"v").SerializeToString(), True
        key, end = rng.choice(EDGES), rng.choice([b"", rng.choice(EDGES), b"b", b"\0"])
        gone = {one for one in keys if (inside({one}, key, end) if end else one == key)}
        keys -= gone
        return DELETE_RANGE, pb.DeleteRangeRequest(key=key, range_end=end).SerializeToString(), bool(gone)

    def operation(self) -> tuple[int, bytes, set[bytes] | None, list[int]]:
        """Return an operation, the keys after it (None: it changes nothing), and what its ranges count."""
        rng, keys = self.rng, set(self.history[-1])
        if rng.random() < 0.4:
            kind, body, changed = self.simple(keys, set())
            return kind, body, keys if changed else None, []
        counts, requests, written, changes = [], [], set[bytes](), False
        for _ in range(rng.randint(1, 6)):
            if rng.random() < 0.4:
                key, end = rng.choice(EDGES), rng.choice([*EDGES, b"\0"])
                few = pb.RangeRequest(key=key, range_end=end, limit=rng.choice([0, 1, 3]))
                requests.append(pb.RequestOp(request_range=few))
                counts.append(inside(keys, key, end))
                continue
            kind, body, changed = self.simple(keys, written)
            changes = changes or changed
            if kind == PUT:
                requests.append(pb.RequestOp(request_put=pb.PutRequest.FromString(body)))
            else:
                requests.append(pb.RequestOp(request_delete_range=pb.DeleteRangeRequest.FromString(body)))
        return TXN, pb.TxnRequest(success=requests).SerializeToString(), keys if changes else None, counts

    def image(self, *ops: tuple[int, bytes]) -> bytes:
        """Return the image of the entry at `index`. The ids of its operations are their numbers from 1 on."""
        encoded = [encode_op(kind, n + 1, body) for n, (kind, body) in enumerate(ops)]
        return encode_entry(Entry(1, self.index, 0, CODEC.encode(frame(encoded))))

    def entry(self) -> None:
        """Apply an entry in pieces, and write it. The engine is busy now and then."""
        ops, expected = [], list[tuple[Caller, list[int]]]()
        for number in range(self.rng.randint(1, 3)):
            kind, body, keys, counts = self.operation()
            ops.append((kind, body))
            if kind == TXN:
                self.applier.waiters[number + 1] = caller = Caller()
                expected.append((caller, counts))
            if keys is not None:
                self.history.append(keys)
        self.index += 1
        self.engine.busy = self.rng.choice([0.0, 0.5])
        self.apply(self.image(*ops))
        self.commit()
        self.applier.release()
        for caller, counts in expected:
            responses = pb.TxnResponse.FromString(caller.result).responses
            ranges = [one.response_range for one in responses if one.HasField("response_range")]
            assert [one.count for one in ranges] == counts
        assert self.store.revision == len(self.history) - 1

    def apply(self, image: bytes) -> None:
        while True:
            self.applier.spill_at = self.rng.randint(1, 12)
            self.applier.apply_images(image, 0, self.rng.randint(1, 200))
            if not self.applier.halted:
                return
            self.look()
            with contextlib.suppress(errors.EngineBusy):
                self.applier.relieve()
            self.look()

    def commit(self) -> None:
        while True:
            try:
                return self.applier.commit()
            except errors.EngineBusy:
                self.look()

    def undone(self) -> None:
        """Begin an operation, of which the engine may have a part, and take it back."""
        kind, body, keys, _ = self.operation()
        self.index += 1
        self.engine.busy = 0.0
        image = self.image((kind, body))
        self.applier.apply_images(image, 0, self.rng.randint(11, 80))
        if self.applier.inside and self.rng.random() < 0.5:
            self.applier.spill_at = 1
            self.applier.relieve()
            self.applier.apply_images(image, 0, self.rng.randint(1, 60))
        if not self.applier.inside:
            # It was a short one, and has ended.
            self.apply(image)
            self.history += [] if keys is None else [keys]
            return self.commit()
        self.index -= 1
        self.store.undo()
        self.look()
        self.applier = Applier(self.store, CODEC, {})
        while self.store.stale:
            self.applier.relieve()
            self.look()
        return None

    def compact(self) -> None:
        revision = self.rng.randint(1, self.store.revision)
        if revision <= self.store.compact_revision:
            return
        self.index += 1
        self.engine.busy = 0.0
        body = pb.CompactionRequest(revision=revision).SerializeToString()
        self.applier.apply_images(self.image((COMPACT, body)))
        self.commit()
        while self.rng.random() < 0.9 and sweep_slice(self.store, 3):
            self.look()

    def install(self) -> None:
        """Another state takes the place of this one. Revisions of the same numbers have other keys in it."""
        other = World(self.rng.randrange(1 << 30))
        while other.store.revision < min(self.store.revision, 20) or not other.index:
            other.entry()
        self.engine.restore(other.engine.scan(b"", None, False, 0))
        self.store.reload()
        self.applier.reload()
        self.history, self.index = other.history, other.index


@pytest.mark.parametrize("seed", range(40))
def test_a_count_is_that_of_a_plain_set(seed: int) -> None:
    world = World(seed)
    for _ in range(50):
        world.engine.mute = world.rng.random() < 0.2
        world.rng.choice([world.entry] * 6 + [world.undone] * 3 + [world.compact, world.install])()
        check_counts(world.engine)
        for _ in range(5):
            world.look()
    assert world.known > 50


# --- the bounds of the list


def filled(keys: int, engine: Engine | None = None) -> Store:
    store = Store(engine or Engine())
    for number in range(keys):
        store.put(pb.PutRequest(key=b"k%06d" % number, value=b"v").SerializeToString())
    store.commit(1, 1)
    return store


def count(store: Store, revision: int, key: bytes = b"k", end: bytes = b"l") -> tuple[int | None, int]:
    """Return what the store knows without a walk, and what it replies."""
    body = pb.RangeRequest(key=key, range_end=end, revision=revision, count_only=True).SerializeToString()
    return known_count(store, body), pb.RangeResponse.FromString(sliced_reply(store, body, 10**6)).count


def test_a_list_that_is_full_forgets_its_oldest_part_and_says_so() -> None:
    store = filled(CHANGES)
    assert (store.births.since, len(store.births)) == (1, CHANGES)
    assert count(store, 1) == (0, 0) and count(store, 5) == (4, 4)
    store.put(pb.PutRequest(key=b"k", value=b"v").SerializeToString())
    since = store.births.since
    assert 1 < since < CHANGES // 4 and len(store.births) < CHANGES
    assert count(store, since) == (since - 1, since - 1) and count(store, since - 1) == (None, since - 2)
    assert count(store, store.revision) == (CHANGES + 1, CHANGES + 1)


def test_a_key_that_is_longer_than_the_list_ends_it() -> None:
    store = filled(3)
    store.put(pb.PutRequest(key=b"k" * (KEY_BYTES + 1), value=b"v").SerializeToString())
    assert store.births.lost and len(store.births) == 0
    assert count(store, store.revision) == (None, 4) and count(store, 3) == (None, 2)
    store.commit(2, 1)
    assert count(store, store.revision) == (4, 4) and count(store, 3) == (None, 2)


def test_long_keys_are_bounded_by_their_bytes() -> None:
    store = Store(Engine())
    for number in range(100):
        store.put(pb.PutRequest(key=b"k%05d" % number + bytes(60_000)).SerializeToString())
        store.commit(number + 1, 1)
    assert 8 < len(store.births) < 40
    since = store.births.since
    assert count(store, since) == (since - 1, since - 1) and count(store, since - 1) == (None, since - 2)


def test_a_deletion_that_is_larger_than_the_list_and_a_count_in_the_same_transaction() -> None:
    """The engine is busy all the while, and what the list lost is in the overlay alone. Undone, it is whole again."""
    keys = CHANGES + 5000
    store = filled(keys)
    delete = pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"k", range_end=b"l"))
    ask = pb.RequestOp(request_range=pb.RangeRequest(key=b"k", range_end=b"l", count_only=True))
    made = pb.RequestOp(request_put=pb.PutRequest(key=b"k1", value=b"v"))
    body = pb.TxnRequest(success=[ask, delete, ask, made, ask]).SerializeToString()
    reply = pb.TxnResponse.FromString(execute_txn(store, body))
    assert [one.response_range.count for one in reply.responses][::2] == [keys, 0, 1]
    assert store.births.lost
    assert count(store, store.revision) == (None, 1) and count(store, store.revision - 1) == (None, keys)
    store.commit(2, 1)
    assert count(store, store.revision) == (1, 1) and count(store, store.revision - 1) == (None, keys)
    store.put(pb.PutRequest(key=b"k2", value=b"v").SerializeToString())
    assert count(store, store.revision) == (2, 2) and count(store, store.revision - 1) == (1, 1)


def test_a_compaction_shortens_the_list() -> None:
    store = filled(CHANGES)
    store.compact(pb.CompactionRequest(revision=CHANGES - 10).SerializeToString())
    assert len(store.births) < CHANGES // 4
    assert count(store, CHANGES - 10) == (CHANGES - 11, CHANGES - 11)


# --- pages


def page(store: Store, key: bytes, revision: int, limit: int = 10, **more: Any) -> Any:
    body = pb.RangeRequest(key=key, range_end=b"l", revision=revision, limit=limit, **more).SerializeToString()
    reply = pb.RangeResponse.FromString(sliced_reply(store, body, 50))
    assert reply == pb.RangeResponse.FromString(store.range_reply(body))
    return reply


def muted(keys: int) -> Store:
    engine = Engine()
    engine.mute = True
    return filled(keys, engine)


def test_the_next_page_knows_its_count_from_the_last_one() -> None:
    """Neither the engine nor the list tells. Only the first page is walked over."""
    store, revision = muted(100), 0
    key, left = b"k", 100
    while True:
        body = pb.RangeRequest(key=key, range_end=b"l", revision=revision, limit=30).SerializeToString()
        assert known_count(store, body) == (None if left == 100 else left)
        reply = page(store, key, revision, 30)
        assert reply.count == left
        revision, key, left = revision or reply.header.revision, reply.kvs[-1].key + b"\0", left - 30
        store.put(pb.PutRequest(key=b"k5", value=b"v").SerializeToString())
        store.delete_range(pb.DeleteRangeRequest(key=b"k000050").SerializeToString())
        store.commit(2, 1)
        if not reply.more:
            break
    assert left < 0


def test_no_page_is_noted_whose_count_is_not_that_of_all_keys_behind_it() -> None:
    store = muted(100)
    for more in (
        {"sort_order": 2},
        {"sort_target": 2, "sort_order": 1},
        {"max_mod_revision": 50},
        {"count_only": True},
    ):
        page(store, b"k", store.revision, **more)
    page(store, b"k", store.revision, 100)
    assert len(store.pages) == 0
    page(store, b"k", store.revision, 99, keys_only=True)
    assert len(store.pages) == 1


def test_the_pages_that_are_remembered_are_bounded() -> None:
    store = muted(3)
    for number in range(3 * PAGE_COUNTS):
        store.put(pb.PutRequest(key=b"k", value=b"v").SerializeToString())
        page(store, b"k", store.revision, 1 + number % 2)
    assert PAGE_COUNTS <= len(store.pages) <= 2 * PAGE_COUNTS
    assert known_count(
        store, pb.RangeRequest(key=b"k\0", range_end=b"l", revision=store.revision - 1).SerializeToString()
    )


@pytest.mark.parametrize("budget", range(20, 400, 40))
def test_a_page_of_a_transaction_that_is_undone_is_not_remembered(budget: int) -> None:
    """The next operation has the same revision, and other keys in it."""
    world = World(0)
    world.engine.mute = True
    puts = [pb.RequestOp(request_put=pb.PutRequest(key=b"k%03d" % number, value=b"v")) for number in range(30)]
    ask = pb.RequestOp(request_range=pb.RangeRequest(key=b"k", range_end=b"l", limit=1))
    body = pb.TxnRequest(success=[*puts[:5], ask, *puts[5:]]).SerializeToString()
    world.index = 1
    world.applier.waiters[1] = Caller()
    world.applier.apply_images(world.image((TXN, body)), 0, budget)
    assert world.applier.inside
    world.store.undo()
    for key in (b"k002", b"x"):
        world.store.put(pb.PutRequest(key=key, value=b"v").SerializeToString())
        world.store.commit(1, 1)
    follows = pb.RangeRequest(key=b"k000\0", range_end=b"l", revision=2).SerializeToString()
    assert known_count(world.store, follows) is None


def test_an_installed_state_has_its_own_pages() -> None:
    """Its revisions have other keys. A page that was begun before it notes nothing for it."""
    store = muted(100)
    other = filled(110)
    page(store, b"k", 60)
    follows = pb.RangeRequest(key=b"k000009\0", range_end=b"l", revision=60).SerializeToString()
    assert known_count(store, follows) == 49
    other.delete_range(pb.DeleteRangeRequest(key=b"k000020", range_end=b"k000040").SerializeToString())
    for number in range(50):
        other.put(pb.PutRequest(key=b"k000001", value=b"%d" % number).SerializeToString())
    other.commit(2, 1)
    installed: list[int] = []

    def install() -> None:
        if not installed:
            installed.append(1)
            store.engine.restore(other.engine.scan(b"", None, False, 0))
            store.reload()

    body = pb.RangeRequest(key=b"k", range_end=b"l", revision=90, limit=10).SerializeToString()
    assert pb.RangeResponse.FromString(sliced_reply(store, body, 20, install)).count == 89
    assert len(store.pages) == 0 and known_count(store, follows) is None
    store.engine.mute = False
    assert count(store, 162) == (90, 90) and count(store, 112) == (None, 90) and count(store, 60) == (None, 59)


def test_a_stream_counts_without_a_walk_what_it_does_not_send() -> None:
    engines = {"told": Engine(), "walked": Engine()}
    engines["walked"].mute = True
    steps = {}
    for name, engine in engines.items():
        store = filled(2000, engine)
        pieces: list[int] = []
        body = pb.RangeRequest(key=b"k", range_end=b"l", limit=5).SerializeToString()
        found = chunks(store, body, 1 << 20, 20, lambda pieces=pieces: pieces.append(1))
        assert pb.RangeStreamResponse.FromString(found[-1]).range_response.count == 2000
        steps[name] = len(pieces)
    assert steps["told"] < 10 < 50 < steps["walked"]
