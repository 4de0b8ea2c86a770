"""Quota and alarms of a node, compared with a real etcd where both have them."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest
from support import etcdctl
from support import messages as m
from support.client import Client, Failure, op
from support.differ import outcome
from support.processes import Server, metric, wait_until

from metastore.replica.alarms import NOSPACE

MIB = 1 << 20
NO_SPACE = (8, "etcdserver: mvcc: database space exceeded")
QUOTA = {"limits.quota_bytes": '"2MiB"'}
Make = Callable[..., Server]


def alarm(action: int = 0, member: int = 0, kind: int = 0) -> Any:
    return m.AlarmRequest(action=action, memberID=member, alarm=kind)


CALLS = [
    m.PutRequest(key=b"a", value=b"1"),
    m.RangeRequest(key=b"a"),
    m.RangeRequest(key=b"a", serializable=True),
    m.TxnRequest(success=[op(m.PutRequest(key=b"t"))]),
    m.TxnRequest(failure=[op(m.PutRequest(key=b"t"))]),
    m.TxnRequest(success=[op(m.DeleteRangeRequest(key=b"t"))]),
    m.TxnRequest(success=[op(m.RangeRequest(key=b"t"))]),
    m.DeleteRangeRequest(key=b"a"),
    m.PutRequest(key=b""),
    m.CompactionRequest(revision=1000),
]
STEPS = [
    alarm(), alarm(1, 5), alarm(1, 5, 1), alarm(1, 5, 1), alarm(1, 2**63, 1), alarm(0, 0, 1), alarm(0, 0, 2),
    alarm(0, 5), alarm(2, 99, 1), alarm(2, 5), *CALLS, alarm(2, 2**63, 1), *CALLS, alarm(2, 5, 1), *CALLS,
    alarm(1, 0, 2), *CALLS, alarm(2, 5, 1), *CALLS, alarm(2, 0, 2), alarm(), *CALLS,
]  # fmt: skip


def health(server: Server, query: str = "") -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(f"http://{server.address}/health{query}", timeout=10) as reply:
            return reply.status, json.loads(reply.read())
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def ordered(answer: Any) -> Any:
    if hasattr(answer, "alarms"):
        alarms = sorted(answer.alarms, key=lambda one: (one.memberID, one.alarm))
        del answer.alarms[:]
        answer.alarms.extend(alarms)
    return answer


def test_same_answers_as_etcd(fresh: Make, fresh_etcd: Make) -> None:
    """etcd does not get alarms and actions outside the enums, because 3.5.1 dies of them. When both alarms are raised,
    etcd lets everything pass once either is cleared; here the other one still counts."""
    real, node = fresh_etcd().start(), fresh().start()
    with real.client() as a, node.client() as b:
        for number, request in enumerate(STEPS):
            expected, actual = (ordered(outcome(client, request)) for client in (a, b))
            assert actual == expected, f"{number}: {type(request).__name__} {request}"
            if isinstance(request, m.AlarmRequest):
                status = [sorted(client.status().errors) for client in (a, b)]
                assert status[1] == ([f"memberID:0 {text}" if text.startswith("alarm") else text for text in status[0]])
                # Of several alarms etcd names any, and 3.5.1 leaves out only the first one of the kind that it is told
                # to.
                assert health(node)[0] == health(real)[0]
                for query in ("", "?exclude=CORRUPT", "?exclude=NOSPACE") if len(status[0]) < 2 else ():
                    assert health(node, query) == health(real, query)


def fill(client: Client, value: bytes, most: int = 10_000) -> int:
    """Overwrite one key until that is refused. Return how often it worked."""
    for number in range(most):
        try:
            client.put(b"big", value)
        except Failure as failure:
            assert (failure.code, failure.text) == NO_SPACE
            return number
    pytest.fail("the quota was never used up")


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_quota_and_the_way_out(engine: str, fresh: Make) -> None:
    """The node is over its quota: all clients learn it at once, history is compacted, the alarm is disarmed, and the
    node is written to again, without a restart."""
    node = fresh(settings={**QUOTA, "storage.engine": engine}).start()
    with node.client() as client:
        member = client.status().header.member_id
        client.put(b"other", b"1")
        assert fill(client, b"x" * 20_000) in (range(90, 110) if engine == "memory" else range(10, 110))
        assert client.alarm() == [(member, NOSPACE)]
        assert client.status().errors == [f"memberID:{member} alarm:NOSPACE "]
        assert client.status().dbSize <= (2 if engine == "memory" else 4) * MIB
        assert health(node) == (503, {"health": "false", "reason": "ALARM NOSPACE"})
        names = ("quota_bytes", "alarms_nospace", "alarms_corrupt", "disk_full")
        assert [metric(node, f"metastore_{name}") for name in names] == [2 * MIB, 1, 0, 0]
        assert metric(node, "metastore_quota_refused_total") >= 1
        assert metric(node, "etcd_server_quota_backend_bytes") == 2 * MIB
        revision = client.revision()
        for request in (m.PutRequest(key=b"a"), m.TxnRequest(failure=[op(m.PutRequest(key=b"a"))])):
            assert outcome(client, request) == NO_SPACE
        assert client.revision() == revision
        assert client.delete(b"other").deleted == 1
        assert client.txn(success=[op(m.DeleteRangeRequest(key=b"none"))]).succeeded
        # Without a compaction there is no room, and the alarm comes back: at the next tick, or with the next put.
        assert client.alarm(2, member, NOSPACE) == [(member, NOSPACE)]
        assert fill(client, b"x" * 20_000) == 0
        assert client.alarm() == [(member, NOSPACE)]
        client.compact(client.revision())
        client.defragment()
        assert client.status().dbSize < MIB
        with pytest.raises(Failure, match="space exceeded"):
            client.put(b"a", b"1")
        assert client.alarm(2, member, NOSPACE) == [(member, NOSPACE)]
        client.put(b"a", b"1")
        assert client.alarm() == [] and client.status().errors == []
        assert health(node)[0] == 200


def test_an_alarm_outlives_a_kill_and_a_snapshot(fresh: Make) -> None:
    settings = {**QUOTA, "maintenance.snapshot_count": "50", "maintenance.snapshot_min_size": '"0"'}
    node = fresh(settings=settings).start()
    with node.client() as client:
        member = client.status().header.member_id
        fill(client, b"x" * 20_000)
        for _ in range(200):
            client.delete(b"nothing")
        wait_until(lambda: metric(node, "metastore_snapshot_taken_total") >= 1, what="a snapshot")
    node.kill()
    node.settings.pop("limits.quota_bytes")
    node.start()
    with node.client() as client:
        assert client.alarm() == [(member, NOSPACE)]
        assert outcome(client, m.PutRequest(key=b"a")) == NO_SPACE
        client.alarm(2, member, NOSPACE)
        client.put(b"a", b"1")


@pytest.mark.parametrize("quota, limit", [("0", 2 << 30), ("-1", 0), ('"3MiB"', 3 * MIB)])
def test_what_the_quota_says(quota: str, limit: int, fresh: Make) -> None:
    node = fresh(settings={"limits.quota_bytes": quota}).start()
    with node.client() as client:
        client.put(b"a", b"x" * MIB)
        client.put(b"a", b"x" * MIB)
    assert metric(node, "metastore_quota_bytes") == limit


def test_etcdctl_finds_the_way_out(etcdctl_program: str, fresh: Make) -> None:
    node = fresh(settings=QUOTA).start()

    def ctl(*args: str) -> str:
        result = etcdctl.run(etcdctl_program, node.address, *args)
        assert result.returncode == 0, result.stderr
        return result.stdout

    with node.client() as client:
        fill(client, b"x" * 100_000)
        member = client.status().header.member_id
        assert ctl("alarm", "list").strip() == f"memberID:{member} alarm:NOSPACE"
        if etcdctl_program != etcdctl.binaries()["debian"]:
            (status,) = json.loads(ctl("endpoint", "status", "-w", "json"))
            assert status["Status"]["errors"] == [f"memberID:{member} alarm:NOSPACE "]
        ctl("compact", str(client.revision()))
        for flag in ([], ["--cluster"]):
            assert "Finished defragmenting etcd member" in ctl("defrag", *flag)
        assert ctl("alarm", "disarm").strip() == f"memberID:{member} alarm:NOSPACE"
        assert ctl("put", "a", "1").strip() == "OK"
        assert ctl("alarm", "list") == ""
        hashes = json.loads(ctl("endpoint", "hashkv", "-w", "json"))
        assert hashes[0]["HashKV"]["hash"] == client.hash_kv().hash
        assert f", {client.hash_kv().hash}" in ctl("endpoint", "hashkv", "--cluster")
