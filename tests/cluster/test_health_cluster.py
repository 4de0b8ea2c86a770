"""The health pages of members whose cluster has lost its majority, and of a learner."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable

import pytest
from support import messages as m
from support.cluster import Cluster, Member
from support.processes import wait_until

pytestmark = pytest.mark.node_only


def page(member: Member, path: str) -> tuple[int, str]:
    """Return (status, body) of a page. No answer within 20 s is an error."""
    try:
        with urllib.request.urlopen(f"http://{member.address}{path}", timeout=20) as reply:
            return reply.status, reply.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.parametrize("survivor", ["leader", "follower"])
def test_without_a_majority(cluster_of: Callable[..., Cluster], survivor: str) -> None:
    """The pages answer at once, while the member still takes the old leader (perhaps itself) for one, and when it knows
    better."""
    cluster = cluster_of(settings={"limits.request_timeout": '"2s"'}).start()
    leader = cluster.leader()
    last = leader if survivor == "leader" else cluster.followers()[0]
    assert page(last, "/health")[0] == page(last, "/readyz")[0] == 200
    for member in cluster.members:
        if member is not last:
            member.kill()
    for _ in range(2):
        status, body = page(last, "/readyz?verbose")
        assert status == 503 and "[-]linearizable_read failed: etcdserver: " in body and "[+]serializable_read" in body
        for query in ("", "?serializable=false"):
            status, body = page(last, f"/health{query}")
            assert (status, json.loads(body)["health"]) == (503, "false"), body
        assert page(last, "/health?serializable=true") == (200, '{"health":"true","reason":""}')
        assert page(last, "/livez")[0] == page(last, "/readyz/serializable_read")[0] == 200
        wait_until(lambda: "RAFT NO LEADER" in page(last, "/health")[1], what="a member that knows of no leader")


def test_learners_and_peers(cluster_of: Callable[..., Cluster]) -> None:
    cluster = cluster_of(2).start()
    learner = cluster.new_member()
    with cluster.leader().client() as client:
        client.call(m.MemberAddRequest(peerURLs=[f"http://{learner.advertised}"], isLearner=True))
    learner.existing = True
    learner.initial = {**cluster.members[0].initial, learner.name: learner.advertised}
    learner.start()
    status, body = page(learner, "/readyz")
    assert status == 503 and "[-]non_learner failed: not supported for learner\n" in body
    assert page(learner, "/readyz?exclude=non_learner") == (200, "ok\n")
    about = json.loads(page(cluster.members[0], "/status")[1])
    assert about["engine"] == "memory" and about["uptime_seconds"] > 0 and not about["is_learner"]
    assert {peer["name"]: peer["is_learner"] for peer in about["peers"]} == {"n2": False, "n3": True}
    assert all(peer["connected"] for peer in about["peers"])
    learner.kill()

    def unconnected() -> list[str]:
        peers = json.loads(page(cluster.members[0], "/status")[1])["peers"]
        return [peer["name"] for peer in peers if not peer["connected"]]

    wait_until(lambda: unconnected() == ["n3"], what="a peer that is gone")
