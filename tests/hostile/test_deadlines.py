"""Requests whose time is over before they are logged: whatever their kind, they never are.

A disk that works on an earlier write holds the queues up; gRPC's own libraries end a call by themselves when its time
is over, so the calls here are made of frames.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import messages as m
from support.attack import Raw
from support.client import Client, op
from support.ports import free_ports
from support.processes import Server, metric, wait_until

pytestmark = pytest.mark.node_only

Make = Callable[..., Server]
OVER = (4, "context deadline exceeded")
ELSEWHERE = "http://127.0.0.1:1"
NOSPACE = 1

WRITES = {
    "put": m.PutRequest(key=b"late", value=b"1"),
    "delete": m.DeleteRangeRequest(key=b"late"),
    "txn": m.TxnRequest(success=[op(m.PutRequest(key=b"late"))]),
    "compact": m.CompactionRequest(revision=2),
    "physical": m.CompactionRequest(revision=2, physical=True),
    "raise alarm": m.AlarmRequest(action=1, memberID=7, alarm=NOSPACE),
    "clear alarm": m.AlarmRequest(action=2, memberID=7, alarm=NOSPACE),
}
CHANGES: dict[str, Callable[[int], Any]] = {
    "add": lambda _member: m.MemberAddRequest(peerURLs=[ELSEWHERE]),
    "add learner": lambda _member: m.MemberAddRequest(peerURLs=[ELSEWHERE], isLearner=True),
    "update": lambda member: m.MemberUpdateRequest(ID=member, peerURLs=[ELSEWHERE]),
    "remove": lambda member: m.MemberRemoveRequest(ID=member),
}


def gated(fresh: Make, gate: Path, **settings: str) -> Server:
    """A node whose disk works on and on while the file `gate` exists. What comes meanwhile waits for its end."""
    settings = {"raft.batch_max_time": '"10s"', **settings}
    return fresh(settings=settings, env={"METASTORE_FAILPOINTS": f"wal.before_sync=block({gate})"}).start()


def hold(node: Server, client: Client, gate: Path) -> Any:
    """From now on the disk works, on a put: its future."""
    gate.touch()
    held = client.future(m.PutRequest(key=b"held", value=b"1"), timeout=60)
    wait_until(lambda: metric(node, "metastore_inflight_requests") == 1, what="a write in the disk's work")
    return held


@pytest.mark.parametrize("kind", WRITES)
def test_a_write_that_expires_in_the_queue_is_never_logged(kind: str, fresh: Make, tmp_path: Path) -> None:
    gate = tmp_path / "gate"
    node = gated(fresh, gate)
    with node.client() as client, Raw(node) as raw:
        client.put(b"a", b"1")
        if kind == "clear alarm":
            client.alarm(1, 7, NOSPACE)
            client.alarm(2, 8, NOSPACE)
        alarms, before = client.alarm(), client.status()
        if kind == "clear alarm":
            gate.touch()
            held = client.future(m.DeleteRangeRequest(key=b"held"), timeout=60)
            wait_until(lambda: metric(node, "metastore_inflight_requests") == 1, what="a write in the disk's work")
        else:
            held = hold(node, client, gate)
        assert raw.ask(1, WRITES[kind]) == OVER
        assert not held.done()
        gate.unlink()
        assert held.result(timeout=30)
        client.delete(b"next")
        after = client.status()
        assert after.raftIndex == before.raftIndex + 2 and client.get(b"late") is None
        assert client.alarm() == alarms
        assert not client.range(b"a", revision=1).kvs, "and nothing is compacted"
    assert node.stop() == 0
    log = b"".join(path.read_bytes() for path in node.data_dir.glob("wal/*.wal"))
    assert b"held" in log and b"next" in log and b"late" not in log


@pytest.mark.parametrize("kind", CHANGES)
def test_a_change_that_expires_before_it_is_judged_is_never_logged(kind: str, fresh: Make, tmp_path: Path) -> None:
    """It waits for the entries in front of it to be applied, and they wait for the disk."""
    gate = tmp_path / "gate"
    node = gated(fresh, gate, **{"listen.peer": f'"127.0.0.1:{free_ports(1)[0]}"'})
    with node.client() as client, Raw(node) as raw:
        [about] = client.call(m.MemberListRequest()).members
        if not kind.startswith("add"):  # there is room for one learner
            about = client.call(m.MemberAddRequest(peerURLs=["http://127.0.0.1:2"], isLearner=True)).member
        before = client.call(m.MemberListRequest()).members
        held = hold(node, client, gate)
        assert raw.ask(1, CHANGES[kind](about.ID)) == OVER
        assert not held.done()
        gate.unlink()
        assert held.result(timeout=30)
        # What is asked for later is judged later.
        client.call(m.MemberUpdateRequest(ID=about.ID, peerURLs=["http://127.0.0.1:3"]))
        members = client.call(m.MemberListRequest()).members
        assert [member.ID for member in members] == [member.ID for member in before]
        assert ["http://127.0.0.1:3"] in [list(member.peerURLs) for member in members]
    assert node.stop() == 0
    log = b"".join(path.read_bytes() for path in node.data_dir.glob("wal/*.wal"))
    assert b"http://127.0.0.1:3" in log and ELSEWHERE.encode() + b'"' not in log


def test_what_is_over_when_it_arrives_is_not_done(fresh: Make) -> None:
    """No kind of request that changes anything is."""
    node = fresh(settings={"listen.peer": f'"127.0.0.1:{free_ports(1)[0]}"'}).start()
    requests = [*WRITES.values(), *(make(7) for make in CHANGES.values())]
    requests += [m.MemberPromoteRequest(ID=7), m.MoveLeaderRequest(targetID=7), m.TYPES["DefragmentRequest"]()]
    with node.client() as client, Raw(node) as raw:
        client.put(b"a", b"1")
        before = client.status()
        for number, request in enumerate(requests):
            assert raw.ask(2 * number + 1, request, (b"1n", b"0S")[number % 2]) == OVER, request
        assert raw.ask(2 * len(requests) + 1, m.PutRequest(key=b"in time"), b"10S") == (0, "")
        assert client.status().raftIndex == before.raftIndex + 1 and client.alarm() == []
