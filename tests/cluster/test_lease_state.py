"""Leases on members with different engines: behind the log, killed, received in a snapshot, restored from a backup."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest
from support.backupfiles import restored
from support.client import Client
from support.cluster import EAGER, Cluster, Member, cut_behind, installed
from support.leases import attached
from support.leasing import grant, leases, lifetime, revoke
from support.newcomers import ROCKSDB
from support.processes import Server

from metastore.snapshots.backup_file import BackupReader

pytestmark = pytest.mark.node_only

TTL = 3000  # seconds: none of these leases ends in a test
Tables = tuple[list[tuple[bytes, bytes]], list[tuple[int, bytes]]]


def tables_of(member: Member, folder: Path) -> Tables:
    """Return a member's leases and their keys, as its own backup has them."""
    path = folder / "backup"
    with member.client() as client:
        path.write_bytes(client.backup())
    records = list(BackupReader(path).records())
    return [pair for pair in records if pair[0].startswith(b"l")], attached(records)


def check(cluster: Cluster, folder: Path, expected: dict[int, list[bytes]]) -> None:
    """All members hold these leases with these keys, and no others."""
    cluster.same_history()
    for member in cluster.members:
        held, keys = tables_of(member, folder)
        assert [int.from_bytes(key[1:], "big", signed=True) for key, _ in held] == sorted(expected), member.name
        assert keys == [(lease, key) for lease in sorted(expected) for key in expected[lease]], member.name
        with member.client() as client:
            assert sorted(leases(client)) == sorted(expected)
            for lease, names in expected.items():
                assert list(lifetime(client, lease, True).keys) == names


def move(client: Client) -> None:
    """Overwrite keys, so they go from lease to lease and end where they began. A leader keeps 64 KiB of entries in
    memory, compressed, so the values are long and random."""
    for lease in (3, 0, 1):
        for number in range(10):
            client.put(b"k%d" % number, random.Random(number).randbytes(3000), lease=lease)


def test_leases_are_the_same_on_all_engines(cluster_of: Callable[..., Cluster], tmp_path: Path) -> None:
    """A member gets them from the log, from a snapshot, and from its own engine after a kill."""
    cluster = cluster_of(3, settings=EAGER)
    memory, other, rocks = cluster.members
    rocks.settings.update(ROCKSDB)
    cluster.start()
    cluster.lead(memory)
    ten = [b"k%d" % number for number in range(10)]
    with other.client() as client:
        for lease in (1, 2, 3, 4):
            assert grant(client, TTL, lease).TTL == TTL
        for lease, key in ((2, b"b"), (2, b"a"), (4, b"d")):
            client.put(key, lease=lease)
        move(client)
    check(cluster, tmp_path, {1: ten, 2: [b"a", b"b"], 3: [], 4: [b"d"]})
    with memory.client() as client:
        cut_behind(memory, rocks, lambda: move(client))
        revoke(client, 2)
        client.put(b"k9")
    rocks.start()
    check(cluster, tmp_path, {1: ten[:9], 3: [], 4: [b"d"]})
    assert len(installed(rocks)) == 1, rocks.running().log
    cluster.lead(rocks)
    with rocks.client() as client:
        revoke(client, 1)
        client.put(b"x", lease=3)
        rocks.kill()
    rocks.start()
    check(cluster, tmp_path, {3: [b"x"], 4: [b"d"]})


def test_a_restored_backup_keeps_leases(fresh: Callable[..., Server], tmp_path: Path) -> None:
    node = fresh(settings={}).start()
    with node.client() as client:
        grant(client, TTL, 7)
        grant(client, TTL, 8)
        client.put(b"a", b"1", lease=7)
        (tmp_path / "backup").write_bytes(client.backup())

    # The new member has another engine, and a revision that old watchers do not know.
    again = restored(fresh, tmp_path / "backup", "--bump-revision", "1000", "--mark-compacted")
    again.settings.update(ROCKSDB)
    again.start()
    with again.client() as client:
        found = lifetime(client, 7, True)
        assert list(found.keys) == [b"a"] and TTL - 60 < found.TTL <= TTL + 2 and found.grantedTTL == TTL
        assert sorted(leases(client)) == [7, 8] and client.range(b"a").kvs[0].lease == 7
        revoke(client, 7)
        assert not client.range(b"a").kvs and leases(client) == [8]
