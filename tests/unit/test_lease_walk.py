"""The keys of a lease in an engine with files: read page by page, and nothing behind the lease's last key."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support import kvmessages as pb
from support.applying import entry

from metastore._core.codec import PayloadCodec
from metastore._core.driver_budgets import APPLY_BUDGET
from metastore._core.leases import encode_grant, encode_revoke
from metastore._core.mvcc import Store
from metastore._core.mvcc_apply import Applier
from metastore._core.mvcc_lease import execute_revoke
from metastore._core.op import LEASE_GRANT, LEASE_REVOKE, PUT, encode_op
from metastore.replica.lease_rounds import EXPIRY_BATCH

rocksdb = pytest.importorskip("metastore.storage.engines.rocksdb")

IDS = [1, 2, 2**63 - 1, -(2**63), -2, -1]  # in the order of the engine's keys, so each ends where the next one begins
KEYS = 600  # more than two pages


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    engine = rocksdb.RocksEngine(str(tmp_path / "engine"))
    yield Store(engine)
    engine.close()


def key(ident: int, number: int) -> bytes:
    return b"%d/%04d" % (ident, number)


def fill(store: Store, count: int, index: int) -> None:
    """Give each lease its first `count` keys."""
    for ident in IDS:
        if not store.leases.ttl(ident):
            store.execute(LEASE_GRANT, encode_grant(ident, 60))
        for number in range(count):
            store.execute(PUT, pb.PutRequest(key=key(ident, number), lease=ident).SerializeToString())
    store.commit(index, 1)


def test_a_lease_with_pages_of_keys_ends_as_a_whole_and_alone(store: Store) -> None:
    fill(store, KEYS, 1)
    for at, ident in enumerate(IDS):
        keys = [key(ident, number) for number in range(KEYS)]
        # One key of the first page goes, and one behind the last page comes, before the engine has either change.
        store.execute(PUT, pb.PutRequest(key=keys[7]).SerializeToString())
        store.execute(PUT, pb.PutRequest(key=key(ident, KEYS), lease=ident).SerializeToString())
        keys = [*keys[:7], *keys[8:], key(ident, KEYS)]
        assert store.leases.keys(ident) == keys
        assert store.leases.keys(ident, keys[300], 5) == keys[301:306]
        assert store.leases.count_keys(ident, 10**6) == KEYS
        execute_revoke(store, encode_revoke(ident), budget=1000)
        store.commit(2 + at, 1)
        assert store.leases.keys(ident) == []
        assert [len(store.leases.keys(other)) for other in IDS[at + 1 :]] == [KEYS] * (len(IDS) - at - 1)


def test_the_end_of_a_lease_reads_nothing_behind_its_keys(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A walk that knows no end is one of the engine's longer ones, with iterators of its own for each lease."""
    fill(store, 1, 1)
    store.reload()  # so the keys of these leases are not known
    engine = store.engine
    scanned, scan = [], engine.scan

    def noted(start: bytes, end: bytes | None, reverse: bool, limit: int) -> object:
        scanned.append((start[:1], end))
        return scan(start, end, reverse, limit)

    def no_walk(start: bytes) -> object:
        raise AssertionError(f"walks from {start!r} without an end")

    monkeypatch.setattr(engine, "scan", noted)
    monkeypatch.setattr(engine, "iterate", no_walk)
    for ident in reversed(IDS):
        execute_revoke(store, encode_revoke(ident))
    assert [start for start, _ in scanned] == [b"a"] * len(IDS) and None not in [end for _, end in scanned]


def test_the_end_of_a_lease_with_one_known_key_reads_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """100,000 leases of services end at once after a cut; looking for the key of each was a fifth of the work."""
    fill(store, 1, 1)

    def no_read(*_arguments: object) -> object:
        raise AssertionError("the engine is asked")

    for name in ("get", "scan", "iterate", "seek_ge", "seek_le", "find_many"):
        monkeypatch.setattr(store.engine, name, no_read)
    for ident in IDS:
        execute_revoke(store, encode_revoke(ident))
    monkeypatch.undo()
    store.commit(2, 1)
    assert [store.leases.keys(ident) for ident in IDS] == [[]] * len(IDS)
    request = pb.RangeRequest(key=b"\0", range_end=b"\0", count_only=True).SerializeToString()
    assert pb.RangeResponse.FromString(store.range_reply(request)).count == 0


def test_leases_that_end_in_one_entry_go_to_the_engine_in_one_write(store: Store) -> None:
    """Of an entry that is half applied at the end of a turn, the engine gets each part in a write of its own."""
    applier = Applier(store, PayloadCodec(None, 1024, 1 << 20), {})
    leases = range(1, EXPIRY_BATCH + 1)
    grants = [encode_op(LEASE_GRANT, 0, encode_grant(lease, 60)) for lease in leases]
    puts = [pb.PutRequest(key=key(lease, 0), lease=lease).SerializeToString() for lease in leases]
    applier.apply_images(entry(applier, 1, *grants, *[encode_op(PUT, 0, request) for request in puts]))
    applier.commit()
    ends = [encode_op(LEASE_REVOKE, 0, encode_revoke(lease, True)) for lease in leases]
    applier.apply_images(entry(applier, 2, *ends), 0, 3 * APPLY_BUDGET // 4)
    assert not applier.halted and applier.applied_index == 2 and store.leases.count == 0
    applier.commit()
