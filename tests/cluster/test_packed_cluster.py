"""A cluster in which some members pack what they send to others."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.cluster import Cluster, fill, time_to_write
from support.processes import metric

pytestmark = pytest.mark.node_only


def test_members_that_pack_and_one_that_does_not(tmp_path: Path) -> None:
    with Cluster(tmp_path, 3, settings={"performance.pack_peers": "true"}) as cluster:
        plain = cluster.followers()[0]
        plain.stop()
        plain.settings["performance.pack_peers"] = "false"
        plain.launch().await_ready()
        sent = []
        packing = next(member for member in cluster.members if member is not plain)
        for leader in (plain, packing):
            cluster.lead(leader)
            cluster.same_everywhere()
            before = metric(leader, "metastore_peer_sent_bytes_total")
            fill(leader, 0, 100)
            cluster.same_everywhere()
            sent.append(metric(leader, "metastore_peer_sent_bytes_total") - before)
        assert sent[0] > 1.5 * sent[1]
        packing.kill()
        with plain.client() as client:
            time_to_write(client, b"after the kill")
        packing.launch().await_ready()
        cluster.same_everywhere()
        cluster.check_logs()
