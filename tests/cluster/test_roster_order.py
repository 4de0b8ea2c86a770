"""The roster on real processes: the same after a restart, there after a crash, and repaired where it differs."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import pytest
from support import messages as m
from support.client import Failure
from support.cluster import Cluster, Member
from support.processes import wait_until

from metastore._core.raft_types import ConfState
from metastore.storage.engines.rocksdb import RocksEngine
from metastore.testing.engine_contract import batch_of

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]
CONF_STATE, MEMBERS = b"mconf_state", b"mmembers"


def call(member: Member, request: Any) -> Any:
    """Make a call when the cluster is healthy enough for it; in the first seconds after a start it may not be."""
    replies: list[Any] = []

    def done() -> bool:
        with member.client() as client:
            try:
                replies.append(client.call(request))
            except Failure as error:
                assert "unhealthy" in error.text or "no leader" in error.text, error
                return False
        return True

    wait_until(done, 20, f"{type(request).__name__} goes through")
    return replies[0]


def roster(member: Member) -> list[str]:
    """Return the members that one member, asked by itself, has in its roster."""
    with member.client() as client:
        known = client.call(m.MemberListRequest(linearizable=False)).members
    return sorted(str(one) for one in known)


def whole_state(member: Member) -> int:
    """Return the hash over everything that its engine holds."""
    with member.client() as client:
        return int(client.call(m.TYPES["HashRequest"]()).hash)


def same_rosters(members: list[Member]) -> None:
    wait_until(lambda: len({tuple(roster(member)) for member in members}) == 1, 20, "one roster everywhere")
    wait_until(lambda: len({whole_state(member) for member in members}) == 1, 20, "one state everywhere")


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_a_restart_changes_no_roster(cluster_of: MakeCluster, engine: str) -> None:
    """A restarted member replays at once what came to it bit by bit: a learner that joined and published itself, and
    addresses that were given away and taken back behind an addition that needed one of them."""
    cluster = cluster_of(settings={"storage.engine": f'"{engine}"'}).start()
    leader = cluster.leader()
    other, restarted = cluster.followers()
    learner = cluster.new_member()
    call(leader, m.MemberAddRequest(peerURLs=[f"http://{learner.advertised}"], isLearner=True))
    learner.existing, learner.initial = True, {**leader.initial, learner.name: learner.advertised}
    learner.launch().await_ready()
    first, second, own = "http://127.0.0.1:9", "http://127.0.0.1:10", f"http://{learner.advertised}"
    ident = call(leader, m.MemberAddRequest(peerURLs=[first])).member.ID
    moved = cluster.member_id(learner)
    for member, url in ((ident, second), (moved, first), (moved, own)):
        call(leader, m.MemberUpdateRequest(ID=member, peerURLs=[url]))
    same_rosters([leader, other, restarted])
    before = roster(leader)
    restarted.kill()
    restarted.launch().await_ready()
    same_rosters([leader, other, restarted])
    assert roster(restarted) == before
    assert "differs from the leader's" not in "".join(member.logs for member in cluster.members)


def test_the_last_of_two_members_survives_its_crash(cluster_of: MakeCluster) -> None:
    """It is killed at the moment when the other one's removal has taken effect. The other one is gone."""
    cluster = cluster_of(size=2)
    for member in cluster.members:
        member.env = {"METASTORE_FAILPOINTS": "apply.member=panic"}
    leader = cluster.start().leader()
    other = cluster.followers()[0]
    with leader.client() as client:
        client.put(b"a", b"1")
        with pytest.raises(Failure):
            client.call(m.MemberRemoveRequest(ID=cluster.member_id(other)))
    assert leader.running().wait(20) == -signal.SIGKILL
    for member in cluster.members:
        member.kill()
        member.env = {}
    leader.launch().await_ready()
    with leader.client() as client:
        assert client.get(b"a") == b"1"
        client.put(b"a", b"2")
    assert len(roster(leader)) == 1


def test_rosters_that_differ_are_mended(cluster_of: MakeCluster) -> None:
    """One member has two voters where there are three, and does not know the name of one of those."""
    cluster = cluster_of(settings={"storage.engine": '"rocksdb"'}).start()
    wrong, other = cluster.followers()
    missing, nameless = cluster.member_id(other), cluster.member_id(cluster.leader())
    wrong.stop()
    engine = RocksEngine(str(wrong.data_dir / "engine" / "rocksdb"))
    record = json.loads(engine.get(MEMBERS) or b"")
    record["members"] = [member for member in record["members"] if member["id"] != missing]
    for member in record["members"]:
        member["name"] = "" if member["id"] == nameless else member["name"]
    conf_state = ConfState(voters=sorted(member["id"] for member in record["members"]))
    index, term = engine.applied()
    changes: dict[bytes, bytes | None] = {MEMBERS: json.dumps(record).encode(), CONF_STATE: conf_state.encode()}
    engine.write(batch_of(changes), index, term)
    engine.close()
    wrong.launch().await_ready()
    same_rosters(cluster.members)
    assert len(roster(wrong)) == 3 and not any('name: ""' in one for one in roster(wrong))
    assert "differs from the leader's" in wrong.logs
    # It works with all three again. Without one of them it finds a quorum in the two others.
    cluster.lead(wrong)
    other.kill()
    with wrong.client() as client:
        client.put(b"a", b"1")
