"""A cluster whose members may use little memory, and are full."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from support.cluster import Cluster, MetaStoreMember
from support.limitedmemory import backups, fill, way_out
from support.memlimits import MIB, Group
from support.processes import wait_until

pytestmark = pytest.mark.node_only


class LimitedMember(MetaStoreMember):
    """A member in a group of its own."""

    group: Group

    def argv(self) -> list[str]:
        return self.group.wrap(super().argv())


def level(cluster: Cluster) -> None:
    """Wait until all have the same history. A range over everything would be too large a reply here."""

    def positions() -> set[tuple[int, int]]:
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(member.client()) for member in cluster.running()]
            revision = clients[0].revision()
            answers = [client.hash_kv(revision) for client in clients if client.revision()]
        return {(answer.hash, answer.compact_revision) for answer in answers}

    wait_until(lambda: len(positions()) == 1, 60, "the same history everywhere")


def test_a_full_leader_feeds_a_follower(tmp_path: Path) -> None:
    """A follower comes back when the leader is full and takes backups. It gets a snapshot and the later entries. Then
    come the way out through a follower, and a start of all members."""
    eager = {
        "maintenance.snapshot_count": "50", "maintenance.snapshot_min_size": '"1MiB"', "wal.segment_size": '"1MiB"',
    }  # fmt: skip
    cluster = Cluster(tmp_path, kind=LimitedMember, settings=eager)
    groups = []
    for member in cluster.members:
        assert isinstance(member, LimitedMember)
        member.group = Group(160 * MIB)
        groups.append(member.group)
    try:
        cluster.start()
        leader, away = cluster.leader(), cluster.followers()[0]
        with leader.client(60) as client:
            client.put(b"first")
            away.kill()
            count = fill(client, 3000)
            with backups(leader.address):
                away.launch().await_ready(60)
                level(cluster)
                assert fill(client, 3000, first=count) < count + 200
            with away.client(60) as other:
                way_out(other, count + 300)
            fill(client, 3000, first=count + 300)
            level(cluster)
        for member in cluster.members:
            member.kill()
        cluster.start()
        with cluster.leader().client(60) as client:
            way_out(client, 2 * count + 1000)
        for member in cluster.members:
            assert member.stop() == 0
        assert [group.kills() for group in groups] == [0, 0, 0]
    finally:
        cluster.discard()
        for group in groups:
            group.close()
