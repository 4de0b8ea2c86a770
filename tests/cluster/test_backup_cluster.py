"""A backup of one cluster becomes another cluster of three members."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from support import messages as m
from support.cluster import Cluster

from metastore.cli import main as cli
from metastore.snapshots.backup_file import verify

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]


def test_three_nodes_out_of_one_file(cluster_of: MakeCluster, tmp_path: Path) -> None:
    old = cluster_of().start()
    with old.leader().client() as client:
        for number in range(200):
            client.put(b"k%05d" % number, b"%d" % number)
    with old.followers()[0].client() as client:
        # Reads are linearizable through any member.
        data = client.backup()
        before = client.range(b"\0", b"\0")
    old.discard()
    backup = tmp_path / "backup"
    backup.write_bytes(data)
    new = cluster_of()
    initial = ",".join(f"{member.name}={member.advertised}" for member in new.members)
    for member in new.members:
        arguments = ["snapshot", "restore", str(backup), "--name", member.name, "--data-dir", str(member.data_dir)]
        assert cli.main([*arguments, "--initial", initial]) == 0
    new.start()
    with new.leader().client() as client:
        after = client.range(b"\0", b"\0")
        assert list(after.kvs) == list(before.kvs) and after.header.revision == before.header.revision
        assert {member.name for member in client.call(m.MemberListRequest()).members} == {"n1", "n2", "n3"}
    with new.followers()[0].client() as client:
        assert client.put(b"more").header.revision == before.header.revision + 1
    new.same_everywhere()
    # A member that joins later learns the members from the log or a snapshot, as in any cluster.
    with new.leader().client() as client:
        newcomer = new.new_member()
        newcomer.existing = True
        newcomer.initial = {member.name: member.advertised for member in new.members}
        client.call(m.MemberAddRequest(peerURLs=[f"http://{newcomer.advertised}"], isLearner=True))
        last = client.put(b"last").header.revision
    newcomer.launch().await_ready()
    # A learner gives backups, as etcd's learners do, and they lack nothing.
    with newcomer.client() as client:
        backup.write_bytes(client.backup())
    assert verify(backup).header.revision >= last
