"""Leases in the applied state: forms, checks, revokes in pieces, engines, snapshots, damage. The random interleavings
with all other operations are in test_mvcc.py and test_pieces.py."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from support import kvmessages as pb
from support import messages as m
from support.applying import entry, put, waiting
from support.hubs import TestSink, create
from support.kvservice import server
from support.leases import Heard, attached, change, lease_op, state
from support.snapshotfiles import make_codec, save

from metastore import errors
from metastore._core.batch import unframe
from metastore._core.codec import PayloadCodec
from metastore._core.engine import Engine
from metastore._core.leases import (
    MAX_CHECKPOINTS,
    decode_checkpoint,
    decode_grant,
    decode_revoke,
    encode_checkpoint,
    encode_grant,
    encode_revoke,
)  # fmt: skip
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.mvcc_hash import Hasher
from metastore._core.mvcc_lease import execute_revoke
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.mvcc_txn_work import execute_txn
from metastore._core.op import (
    ALARM,
    DELETE_RANGE,
    LEASE_CHECKPOINT,
    LEASE_GRANT,
    LEASE_REVOKE,
    LEVEL,
    PUT,
    decode_op,
    encode_op,
    level_of,
)  # fmt: skip
from metastore._core.ordered_map import OrderedMap
from metastore._core.watch import WatchHub
from metastore._core.watch_index import Stream
from metastore.cli.wal import operation_fields
from metastore.replica.alarms import ACTIVATE, CORRUPT, NOSPACE, encode_change
from metastore.replica.roster import Identity
from metastore.settings import RocksdbTable
from metastore.snapshots.backup_file import BackupReader
from metastore.snapshots.files import SnapshotStore
from metastore.snapshots.restore import Restore
from metastore.storage.engines.memory import MemoryEngine
from metastore.storage.engines.rocksdb import RocksEngine

ALL = pb.RangeRequest(key=b"\0", range_end=b"\0").SerializeToString()
COUNT = pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True).SerializeToString()
SMALL = RocksdbTable(cache_size=1 << 20, write_buffer_size=64 << 10, recent_keys_size=64 << 10)


class Bench:
    """An applier, and entries for it."""

    def __init__(self, engine: Engine | None = None) -> None:
        self.applier = Applier(Store(engine or MemoryEngine(), 3, 4), PayloadCodec(None, 1024, 1 << 20), {})
        self.store, self.leases = self.applier.store, self.applier.store.leases
        self.ident = 0

    def image(self, *ops: bytes) -> bytes:
        return entry(self.applier, self.applier.applied_index + 1, *ops)

    def do(self, *ops: bytes) -> list[Any]:
        """Apply an entry with these operations. Return their replies, or the classes of their errors."""
        numbered = []
        for op in map(decode_op, ops):
            self.ident += 1
            numbered.append(encode_op(op.kind, self.ident, op.request))
        callers = waiting(self.applier, *range(self.ident - len(ops) + 1, self.ident + 1))
        self.applier.apply_images(self.image(*numbered))
        self.applier.commit()
        self.applier.release()
        return [caller.result for caller in callers]

    def put(self, key: bytes, value: bytes = b"v", **more: Any) -> Any:
        return self.do(encode_op(PUT, 0, put(key, value, **more)))[0]

    def keys(self) -> list[bytes]:
        return [kv.key for kv in pb.RangeResponse.FromString(self.store.range_reply(ALL)).kvs]


def records(store: Store) -> dict[bytes, bytes]:
    return dict(store.engine.scan(b"", None, False, 0))


# ---- forms


def test_requests_and_records_have_their_forms() -> None:
    assert encode_grant(-2, 60) == struct.pack("<B7xqq", 1, -2, 60)
    assert encode_revoke(7, True) == struct.pack("<BB6xq", 1, 1, 7)
    assert encode_checkpoint([(7, 5), (-1, 0)]) == struct.pack("<B3xIqqqq", 1, 2, 7, 5, -1, 0)
    assert decode_grant(encode_grant(-(2**63), 2**63 - 1)) == (-(2**63), 2**63 - 1)
    assert [decode_revoke(encode_revoke(7, flag)) for flag in (False, True)] == [(7, False), (7, True)]
    assert decode_checkpoint(encode_checkpoint([(7, 5), (-1, 0)])) == [(7, 5), (-1, 0)]
    bench = Bench()
    bench.do(lease_op("grant", -2, 60), lease_op("checkpoint", [(-2, 5)]))
    bench.put(b"a\0b", lease=-2)
    found = records(bench.store)
    assert found[b"l" + struct.pack(">q", -2)] == struct.pack("<Bqq", 1, 60, 5)
    assert found[b"a" + struct.pack(">q", -2) + b"a\0b"] == b"\1"
    for kind in (LEASE_GRANT, LEASE_REVOKE, LEASE_CHECKPOINT):
        assert level_of(encode_op(kind, 1, b"")) == LEVEL == 2
    assert level_of(encode_op(ALARM, 1, b"")) == level_of(encode_op(PUT, 1, b"")) == 1


GRANT, REVOKE, CHECKPOINT = encode_grant(7, 60), encode_revoke(7), encode_checkpoint([(7, 5)])
BAD = [
    (LEASE_GRANT, [
        b"", GRANT[:-1], GRANT + b"\0", b"\2" + GRANT[1:], b"\1\1" + GRANT[2:], GRANT[:8] + bytes(8) + GRANT[16:],
        GRANT[:16] + bytes(8), GRANT[:16] + b"\xff" * 8,
    ]),
    (LEASE_REVOKE, [
        b"", REVOKE[:-1], REVOKE + b"\0", b"\2" + REVOKE[1:], b"\1\2" + REVOKE[2:], b"\1\0\1" + REVOKE[3:],
        REVOKE[:8] + bytes(8),
    ]),
    (LEASE_CHECKPOINT, [
        b"", CHECKPOINT[:7], CHECKPOINT[:-1], CHECKPOINT + b"\0", b"\2" + CHECKPOINT[1:], b"\1\0\1" + CHECKPOINT[3:],
        CHECKPOINT[:8] + bytes(8) + CHECKPOINT[16:], CHECKPOINT[:16] + b"\xff" * 8,
        struct.pack("<B3xI", 1, MAX_CHECKPOINTS + 1) + CHECKPOINT[8:] * (MAX_CHECKPOINTS + 1),
    ]),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "bodies"), BAD)
def test_what_is_no_request_changes_nothing(kind: int, bodies: list[bytes]) -> None:
    bench = Bench()
    bench.do(lease_op("grant", 7, 60))
    bench.put(b"a", lease=7)
    before = state(bench.store)
    for body in bodies:
        assert bench.do(encode_op(kind, 0, body)) == [errors.FormatError], body
    assert state(bench.store) == before and bench.store.revision == 2
    kv = server(0)
    for body in bodies:
        with pytest.raises(errors.FormatError):
            kv.propose(kind, body, waiting(bench.applier, 0)[0], 0.0)
    with pytest.raises(errors.FormatError, match="no operation of leases"):
        kv.propose(PUT, put(b"a"), waiting(bench.applier, 0)[0], 0.0)
    assert kv.proposer.queued == 0


def test_nobody_encodes_what_cannot_be_read() -> None:
    for make in (lambda: encode_grant(0, 1), lambda: encode_grant(1, 0), lambda: encode_revoke(0),
                 lambda: encode_checkpoint([(0, 1)]), lambda: encode_checkpoint([(1, -1)]),
                 lambda: encode_checkpoint([(1, 1)] * (MAX_CHECKPOINTS + 1))):  # fmt: skip
        with pytest.raises(ValueError):
            make()


def test_the_log_can_be_read() -> None:
    shown = [operation_fields(decode_op(lease_op(*op, ident=1)))
             for op in [("grant", -1, 60), ("revoke", 31, True), ("checkpoint", [(31, 5), (-1, 0)])]]  # fmt: skip
    ident = {"id": "0000000000000001"}
    assert shown == [
        {"op": "grant", **ident, "lease": "ffffffffffffffff", "ttl": 60},
        {"op": "revoke", **ident, "lease": "1f", "expired": True},
        {"op": "checkpoint", **ident, "remaining": "1f:5,ffffffffffffffff:0"},
    ]


# ---- what operations do


def test_a_lease_from_grant_to_revoke() -> None:
    bench = Bench()
    bench.store.raft_term = 6
    (reply,) = bench.do(lease_op("grant", 7, 60))
    granted = m.TYPES["LeaseGrantResponse"].FromString(reply)
    assert (granted.ID, granted.TTL, granted.header.revision, granted.header.raft_term) == (7, 60, 1, 6)
    assert bench.do(lease_op("grant", 7, 99), lease_op("grant", -1, 5))[0] is errors.LeaseExist
    for key in (b"c", b"a", b"b\0", b"b"):
        bench.put(key, lease=7)
    bench.put(b"other", lease=-1)
    bench.put(b"free")
    assert state(bench.store) == {-1: (5, 0, [b"other"]), 7: (60, 0, [b"a", b"b", b"b\0", b"c"])}
    assert bench.leases.keys(7, after=b"a", limit=2) == [b"b", b"b\0"] and bench.leases.keys(7, after=b"c") == []
    assert [bench.leases.count_keys(7, most) for most in (0, 3, 4, 5)] == [1, 4, 4, 4]
    (reply,) = bench.do(lease_op("revoke", 7))
    assert pb.CompactionResponse.FromString(reply).header.revision == 8 == bench.store.revision
    assert state(bench.store) == {-1: (5, 0, [b"other"])} and bench.keys() == [b"free", b"other"]
    assert bench.do(lease_op("revoke", 7)) == [errors.LeaseNotFound]
    assert isinstance(bench.do(lease_op("revoke", 7, True))[0], bytes), "an expired lease may be gone already"
    assert bench.store.revision == 8
    assert bench.do(lease_op("grant", 7, 5), lease_op("revoke", 7)) and bench.store.revision == 8
    assert (bench.leases.ttl(7), bench.leases.remaining(7), bench.leases.ttl(0), bench.leases.count) == (0, 0, 0, 1)


def test_who_has_a_key() -> None:
    """The newest put decides. A put without a lease takes it away, unless it keeps the lease that there is."""
    bench = Bench()
    bench.do(lease_op("grant", 1, 60), lease_op("grant", 2, 60))
    bench.put(b"a", lease=1)
    bench.put(b"a", lease=2)
    assert (bench.leases.keys(1), bench.leases.keys(2)) == ([], [b"a"])
    bench.put(b"a", ignore_lease=True)
    bench.put(b"a", b"", ignore_value=True, lease=2)
    assert bench.leases.keys(2) == [b"a"]
    bench.put(b"a")
    assert bench.leases.keys(2) == []
    bench.put(b"a", lease=1)
    for end in (b"", b"b"):
        bench.put(b"a", lease=1)
        bench.do(encode_op(DELETE_RANGE, 0, pb.DeleteRangeRequest(key=b"a", range_end=end).SerializeToString()))
        assert attached(records(bench.store).items()) == []
    bench.put(b"a", lease=1)
    bench.do(lease_op("revoke", 2))
    assert bench.keys() == [b"a"] and bench.put(b"b", lease=2) is errors.LeaseNotFound


def test_a_transaction_is_checked_on_the_branch_that_runs_before_it_changes_anything() -> None:
    store = Store(MemoryEngine())
    change(store, "grant", 1, 60)
    known, unknown = (pb.RequestOp(request_put=pb.PutRequest(key=b"k", lease=lease)) for lease in (1, 9))
    first = pb.RequestOp(request_put=pb.PutRequest(key=b"a"))
    nested = pb.RequestOp(request_txn=pb.TxnRequest(success=[unknown], failure=[known]))
    never = pb.Compare(key=b"x", target=0, result=1, version=5)
    with pytest.raises(errors.LeaseNotFound):
        execute_txn(store, pb.TxnRequest(success=[first, nested]).SerializeToString())
    assert store.revision == 1
    assert pb.RangeResponse.FromString(store.range_reply(ALL)).count == 0 and store.leases.keys(1) == []
    execute_txn(store, pb.TxnRequest(compare=[never], success=[unknown], failure=[first, known]).SerializeToString())
    assert store.leases.keys(1) == [b"k"] and store.revision == 2
    compare = pb.Compare(key=b"k", target=4, result=0, lease=1)
    reply = execute_txn(store, pb.TxnRequest(compare=[compare], failure=[first]).SerializeToString())
    assert pb.TxnResponse.FromString(reply).succeeded


@pytest.mark.parametrize(
    ("alarm", "refused"), [(NOSPACE, {LEASE_GRANT}), (CORRUPT, {LEASE_GRANT, LEASE_REVOKE})], ids=["nospace", "corrupt"]
)
def test_alarms(alarm: int, refused: set[int]) -> None:
    bench = Bench()
    error = errors.NoSpace if alarm == NOSPACE else errors.Corrupt
    bench.do(lease_op("grant", 1, 60), encode_op(ALARM, 0, encode_change(ACTIVATE, 5, alarm)))
    ops = {LEASE_GRANT: encode_grant(2, 60), LEASE_CHECKPOINT: encode_checkpoint([(1, 4)]),
           LEASE_REVOKE: encode_revoke(1)}  # fmt: skip
    kv = server(0)
    kv.barred = bench.applier.barred
    for kind, body in ops.items():
        (result,) = bench.do(encode_op(kind, 0, body))
        assert (result is error) == (kind in refused), kind
        (caller,) = waiting(bench.applier, 0)
        bench.applier.waiters.clear()
        assert (kv.propose(kind, body, caller, 0.0) == 0) == (kind in refused)
        assert isinstance(caller.error, error) == (kind in refused)


# ---- admission


def test_what_is_proposed_comes_back_with_its_answer() -> None:
    kv, (caller, other) = server(3), waiting(Bench().applier, 1, 2)
    applier = Applier(kv.store, PayloadCodec(None, 1024, 1 << 20), kv.waiters)
    assert kv.propose(LEASE_GRANT, encode_grant(7, 60), caller, 0.0) == 1
    assert kv.propose(LEASE_REVOKE, encode_revoke(8), other, 0.0) == 2
    batch = kv.proposer.take(1.0, True, False)
    assert [decode_op(op).kind for op in unframe(batch)] == [LEASE_GRANT, LEASE_REVOKE]
    applier.apply_images(entry(applier, 2, *unframe(batch)))
    applier.commit()
    applier.release()
    assert m.TYPES["LeaseGrantResponse"].FromString(caller.reply).ID == 7
    assert isinstance(other.error, errors.LeaseNotFound)


def test_what_admission_refuses() -> None:
    kv = server(3)

    def refusal(kind: int, body: bytes) -> Any:
        (caller,) = waiting(Bench().applier, 1)
        if kv.propose(kind, body, caller, 0.0):
            return None
        return type(caller.error)

    kv.cluster_level = 1
    assert refusal(LEASE_GRANT, GRANT) is refusal(LEASE_REVOKE, REVOKE) is errors.NotCapable
    kv.cluster_level = LEVEL
    kv.limit_log(0, 1 << 20)
    assert refusal(LEASE_GRANT, GRANT) is errors.NoSpace and refusal(LEASE_REVOKE, REVOKE) is None
    with pytest.raises(errors.NoSpace):
        kv.check_forwarded(LEASE_GRANT, GRANT)
    kv.check_forwarded(LEASE_CHECKPOINT, CHECKPOINT)
    kv.limit_log(None, None)
    kv.short = True
    assert refusal(LEASE_REVOKE, REVOKE) is errors.TooManyRequests and refusal(LEASE_CHECKPOINT, CHECKPOINT) is None
    kv.short = False
    kv.refuse(errors.Stopped())
    assert refusal(LEASE_GRANT, GRANT) is errors.Stopped
    kv.refuse(None)
    assert kv.refused == 5


# ---- who hears of it


def test_the_listener_hears_what_the_engine_has_before_callers_are_answered() -> None:
    bench, heard = Bench(), Heard()
    bench.leases.listener = heard
    ops = (lease_op("grant", 1, 60, ident=1), lease_op("checkpoint", [(1, 9), (2, 9)]), lease_op("grant", 2, 5),
           lease_op("grant", 1, 5), lease_op("revoke", 1), lease_op("revoke", 1, True))  # fmt: skip
    (caller,) = waiting(bench.applier, 1)
    bench.applier.apply_images(bench.image(*ops))
    assert heard.take() == [] and bench.leases.ids() == [2]
    bench.applier.commit()
    assert not caller.told
    assert heard.take() == [("granted", 1, 60), ("checkpointed", 1, 9), ("granted", 2, 5), ("revoked", 1, 0)]
    bench.put(b"a", lease=2)
    assert heard.take() == []
    bench.store.reload()
    assert heard.take() == [("reloaded",)] and bench.leases.ids() == [2]


def test_watchers_are_told_of_a_revoke_in_one_revision_and_in_order() -> None:
    bench, sink = Bench(), TestSink()
    bench.do(lease_op("grant", 1, 60))
    for key in (b"k3", b"k1", b"k2"):
        bench.put(key, lease=1)
    hub = WatchHub(bench.store)
    hub.create(Stream(sink), create(key=b"k", range_end=b"l"), 0.0)
    sink.take()
    bench.do(lease_op("revoke", 1))
    while hub.step(100):
        pass
    (response,) = sink.take()
    assert [(event.type, event.kv.key, event.kv.mod_revision) for event in response.events] == [
        (1, b"k1", 5), (1, b"k2", 5), (1, b"k3", 5),
    ]  # fmt: skip


# ---- many


def with_keys(count: int, engine: Engine | None = None) -> Bench:
    bench = Bench(engine)
    bench.do(lease_op("grant", 1, 60), lease_op("grant", 2, 60))
    for at in range(0, count, 1000):
        bench.do(*[encode_op(PUT, 0, put(b"k%06d" % n, lease=1)) for n in range(at, min(count, at + 1000))])
    bench.put(b"z", lease=2)
    return bench


def test_a_revoke_of_many_keys_is_done_in_pieces() -> None:
    """Readers see the state before it until it ends, and so does a start after a crash in the middle."""
    count, budget = 6000, 3000
    bench = with_keys(count)
    before, revision = records(bench.store), bench.store.revision
    image = bench.image(lease_op("revoke", 1))
    pieces = 0
    while bench.applier.apply_images(image, 0, budget) == 0 and bench.applier.halted:
        assert bench.applier.cost < budget + 500, "a piece costs what it may"
        pieces += 1
        shown = pb.RangeResponse.FromString(bench.store.range_reply(COUNT))
        assert (shown.count, shown.header.revision) == (count + 1, revision)
        assert not bench.store.settled and bench.leases.ttl(1) == 60
        bench.applier.relieve()
        if pieces == 40:
            crashed = MemoryEngine()
            crashed.restore(bench.store.engine.scan(b"", None, False, 0))
    assert pieces > 40 and bench.store.settled
    bench.applier.commit()
    assert bench.keys() == [b"z"] and bench.leases.ids() == [2] and bench.store.revision == revision + 1
    assert attached(records(bench.store).items()) == [(2, b"z")]
    other = Bench(crashed)
    assert other.store.stale and len(attached(crashed.scan(b"", None, False, 0))) < count
    while other.store.stale:
        other.applier.relieve()
    assert records(other.store) == before and state(other.store)[1] == (60, 0, [b"k%06d" % n for n in range(count)])
    other.applier.apply_images(image)
    other.applier.commit()
    assert records(other.store) == records(bench.store)


def test_a_revoke_is_the_same_in_pieces_of_any_size() -> None:
    outcomes = []
    for budget in (1, 30, 1000, 1 << 30):
        bench = with_keys(300)
        execute_revoke(bench.store, encode_revoke(1), True, budget)
        bench.store.commit(9, 1)
        outcomes.append(records(bench.store))
    assert all(one == outcomes[0] for one in outcomes)


def test_many_leases_come_and_go() -> None:
    """The table in memory grows and shrinks. It has what a dict has."""
    store, chance, model = Store(MemoryEngine()), random.Random(1), {}
    for step in range(30_000):
        lease = chance.choice((1, -1)) * chance.randint(1, 500 if step % 9000 > 6000 else 9000)
        if lease in model and (chance.random() < 0.5 or step > 20_000):
            change(store, "revoke", lease)
            del model[lease]
        elif lease not in model and step <= 20_000:
            change(store, "grant", lease, abs(lease))
            model[lease] = abs(lease)
    assert {lease: store.leases.ttl(lease) for lease in store.leases.ids()} == model
    assert store.leases.ids() == sorted(model) and 0 < store.leases.nbytes <= 200 * len(model) + 256 * 8 * 24
    store.commit(1, 1)
    again = Store(store.engine)
    assert again.leases.ids() == sorted(model)


def test_a_large_table_is_loaded_in_slices() -> None:
    """A received snapshot may bring any number of leases. Entries wait until all are there; whoever asks does not."""
    bench = Bench()
    for at in range(0, 24_000, 4000):
        bench.do(*[lease_op("grant", n + 1, 60) for n in range(at, at + 4000)])
    heard = Heard()
    bench.leases.listener = heard
    bench.store.reload()
    bench.applier.reload()
    assert not bench.leases.loaded and bench.applier.halfway and heard.take() == []
    image = bench.image(encode_op(PUT, 0, put(b"a", lease=24_000)), lease_op("grant", 1, 5))
    slices = 0
    while bench.applier.apply_images(image, 0, 100) == 0:
        assert bench.applier.halted
        bench.applier.relieve()
        slices += 1
    assert slices >= 2 and bench.leases.loaded and heard.take() == [("reloaded",)]
    bench.applier.commit()
    assert bench.leases.keys(24_000) == [b"a"] and bench.applier.rejected == 1
    bench.store.reload()
    assert not bench.leases.loaded and bench.leases.count == 24_000 and bench.leases.loaded


def test_the_leases_before_are_freed_in_slices() -> None:
    store = Store(MemoryEngine())
    for ident in range(1, 9001):
        change(store, "grant", ident, 60)
        store.put(put(b"%d" % ident, lease=ident))
    store.commit(1, 1)
    store.reload()
    assert not store.leases.loaded and store.leases.nbytes == 0, "nothing is loaded before all is freed"
    store.reload()
    assert store.leases.nbytes > 0
    assert store.leases.count == 9000 and store.leases.keys(9000) == [b"9000"]


# ---- engines, snapshots, compaction


def script(seed: int, store: Store, commits: Any) -> None:
    """Carry out random operations over few keys and leases."""
    chance, index = random.Random(seed), store.engine.applied()[0]
    for _ in range(150):
        key, lease = chance.choice([b"a", b"a\0", b"b", b"\xff"]), chance.choice([1, 2, -3])
        what = chance.random()
        try:
            if what < 0.5:
                store.put(put(key, lease=chance.choice([0, lease])))
            elif what < 0.6:
                end = chance.choice([b"", b"b", b"\0"])
                store.delete_range(pb.DeleteRangeRequest(key=key, range_end=end).SerializeToString())
            elif what < 0.8:
                change(store, "grant", lease, chance.randint(1, 99))
            elif what < 0.9:
                change(store, "revoke", lease)
            else:
                change(store, "checkpoint", [(lease, chance.randint(0, 99))])
        except errors.ApiError:
            pass
        if commits.random() < 0.3:
            index += 1
            store.commit(index, 1)
    store.commit(index + 1, 1)


def hash_of(engine: Engine, whole: bool) -> int:
    hasher = Hasher(engine.view(), 0, whole)
    while hasher.step(50):
        pass
    hasher.close()
    return hasher.hash


@pytest.mark.parametrize("seed", range(3))
def test_all_engines_hold_the_same(seed: int, tmp_path: Path) -> None:
    memory = Store(MemoryEngine())
    script(seed, memory, random.Random(seed))
    engine = RocksEngine(str(tmp_path / "engine"), SMALL)
    rocks = Store(engine)
    script(seed, rocks, random.Random(seed + 100))
    assert state(rocks) == state(memory)
    for whole in (False, True):
        assert hash_of(engine, whole) == hash_of(memory.engine, whole)
    engine.close()
    again = RocksEngine(str(tmp_path / "engine"), SMALL)
    assert state(Store(again)) == state(memory)
    again.close()


class Forgetful(Store):
    """Loads its leases anew after each commit, so it has to look for their keys."""

    def commit(self, index: int, term: int) -> None:
        super().commit(index, term)
        self.reload()


@pytest.mark.parametrize("seed", range(20))
def test_a_lease_with_a_known_key_ends_as_one_whose_keys_are_looked_for(seed: int) -> None:
    knows, looks = Store(MemoryEngine()), Forgetful(MemoryEngine())
    script(seed, knows, random.Random(seed))
    script(seed, looks, SimpleNamespace(random=lambda: 0.0))  # after each operation
    assert state(knows) == state(looks)
    assert hash_of(knows.engine, True) == hash_of(looks.engine, True)


def test_the_whole_hash_tells_leases_apart_and_the_other_one_does_not() -> None:
    hashes = []
    for more in ([], [("grant", 2, 60)], [("checkpoint", [(1, 5)])]):
        bench = Bench()
        bench.do(lease_op("grant", 1, 60))
        bench.put(b"a", lease=1)
        for one in more:
            bench.do(lease_op(*one))
        hashes.append([hash_of(bench.store.engine, whole) for whole in (False, True)])
    assert len({plain for plain, _ in hashes}) == 1 and len({whole for _, whole in hashes}) == 3


def test_a_compaction_leaves_leases_alone() -> None:
    bench = with_keys(20)
    for n in range(20):
        bench.put(b"k%06d" % n, b"newer", ignore_lease=True)
    before = state(bench.store)
    bench.store.compact(pb.CompactionRequest(revision=bench.store.revision).SerializeToString())
    bench.store.commit(99, 1)
    while sweep_slice(bench.store, 10):
        pass
    assert state(bench.store) == state(Store(bench.store.engine)) == before and len(before[1][2]) == 20


def test_snapshots_and_restores_carry_leases(tmp_path: Path) -> None:
    bench = with_keys(5)
    bench.do(lease_op("checkpoint", [(1, 9)]))
    folder = SnapshotStore(tmp_path / "snap", chunk_size=4096, make_codec=make_codec)
    info = save(folder, bench.store.engine)
    received = MemoryEngine()
    received.restore(BackupReader(info.path).records())
    assert state(Store(received)) == state(bench.store) and state(bench.store)[1][1] == 9
    identity = Identity.create("n1", "t", {"n1": "a:1"}, "00")
    found = dict(BackupReader(info.path).records())
    revision = struct.pack("<Bq", 1, 55)
    other = MemoryEngine()
    other.restore(sorted({**found, b"mrevision": revision}.items()))
    backup = save(SnapshotStore(tmp_path / "other", chunk_size=4096, make_codec=make_codec), other).path
    restore = Restore(backup, tmp_path / "target", identity, check_digest=False, chunk_size=4096, make_codec=make_codec)
    restored = MemoryEngine()
    restored.restore(BackupReader(restore.run(restore.check()).path).records())
    expected = state(bench.store)
    expected[1] = (60, 0, expected[1][2])
    assert state(Store(restored)) == expected, "its whole time again"


# ---- damage


def damaged(key: bytes, value: bytes | None) -> Engine:
    """Return an engine with a lease and its key, one record of which was replaced."""
    bench = Bench()
    bench.do(lease_op("grant", 1, 60))
    bench.put(b"a", lease=1)
    batch = OrderedMap()
    batch.set(key, value) if value is not None else batch.set_deleted(key)
    bench.store.engine.write(batch, 9, 1)
    return bench.store.engine


LEASE, ATTACHED = b"l" + struct.pack(">q", 1), b"a" + struct.pack(">q", 1)


def test_damaged_records_of_leases_are_told() -> None:
    good = damaged(b"m", b"").get(LEASE)
    assert good == struct.pack("<Bqq", 1, 60, 0)
    for bad in [good[:n] for n in range(17)] + [
        good + b"\0", b"\2" + good[1:], struct.pack("<Bqq", 1, 0, 0), struct.pack("<Bqq", 1, 60, -1),
    ]:  # fmt: skip
        with pytest.raises(errors.DamagedData, match="lease"):
            Store(damaged(LEASE, bad))
    for key in (b"l", LEASE[:-1], LEASE + b"\0", b"l" + bytes(8)):
        with pytest.raises(errors.DamagedData, match="lease"):
            Store(damaged(key, good))


def test_damaged_records_of_their_keys_are_told() -> None:
    for key, bad in [(ATTACHED + b"a", b""), (ATTACHED + b"a", b"\2"), (ATTACHED + b"a", b"\1\0"), (ATTACHED, b"\1")]:
        store = Store(damaged(key, bad))
        with pytest.raises(errors.DamagedData, match="lease"):
            store.leases.keys(1)
        with pytest.raises(errors.DamagedData, match="lease"):
            change(store, "revoke", 1)
        assert store.revision == 2 and store.leases.ttl(1) == 60


def test_operations_of_leases_count_for_the_bounds_of_the_queue() -> None:
    kv, (caller, last) = server(0), waiting(Bench().applier, 1, 2)
    while kv.propose(LEASE_GRANT, GRANT, caller, 0.0):
        assert kv.next_id <= 1001
    assert isinstance(caller.error, errors.TooManyRequests) and len(kv.waiters) == 1000
    assert kv.propose(LEASE_REVOKE, REVOKE, last, 0.0) == 0 and isinstance(last.error, errors.TooManyRequests)
