"""Leases through the port of a real node; where etcd defines what is right, a real etcd is compared."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from support import etcdctl
from support import messages as m
from support.client import Client, Failure, op
from support.leasing import KeepAliveStream, grant, keep_alive_once, leases, lifetime, revoke
from support.processes import Server, metric, wait_until
from support.watching import WatchStream

Make = Callable[..., Server]
MOST = 9_000_000_000  # seconds


def outcome(call: Callable[[], Any]) -> Any:
    """What a call answers, without what differs between servers, or its code and text."""
    try:
        reply = call()
    except Failure as failure:
        return failure.code, failure.text
    reply.ClearField("header")
    return reply


# ---- a node answers as etcd does


def script(client: Client) -> list[Any]:
    """What one client sees of grants, puts, revokes and lookups, with ids of its own."""
    told = []

    def ask(call: Callable[[], Any]) -> None:
        told.append(outcome(call))

    ask(lambda: grant(client, 100, 7))
    ask(lambda: grant(client, 100, 7))
    ask(lambda: grant(client, MOST + 1, 8))
    ask(lambda: grant(client, MOST, 8))
    ask(lambda: grant(client, 0, 9))
    ask(lambda: grant(client, -5, -9))
    for key in (b"b", b"a", b"c"):
        ask(lambda key=key: client.put(key, b"x", lease=7))  # type: ignore[misc]
    ask(lambda: client.put(b"d", b"x", lease=12345))
    ask(lambda: client.txn(success=[op(m.PutRequest(key=b"e")), op(m.PutRequest(key=b"f", lease=12345))]))
    ask(lambda: client.txn(success=[op(m.PutRequest(key=b"e"))], failure=[op(m.PutRequest(key=b"f", lease=12345))]))
    told.append(sorted(lifetime(client, 7, True).keys))
    ask(lambda: client.put(b"a", b"y"))
    ask(lambda: client.put(b"b", b"z", ignore_lease=True))
    ask(lambda: client.delete(b"c"))
    told.append(sorted(lifetime(client, 7, True).keys))
    told.append(lifetime(client, 7).grantedTTL)
    ask(lambda: lifetime(client, 12345, True))
    ask(lambda: lifetime(client, 0))
    told.append(sorted(leases(client)))
    ask(lambda: keep_alive_once(client, 7))
    ask(lambda: keep_alive_once(client, 12345))
    ask(lambda: keep_alive_once(client, 0))
    ask(lambda: revoke(client, 7))
    ask(lambda: revoke(client, 7))
    ask(lambda: revoke(client, 0))
    told.append([pair.key for pair in client.range(b"\0", b"\0").kvs])
    told.append(client.range(b"b").header.revision)
    told.append(sorted(leases(client)))
    return told


def test_the_calls_read_as_with_etcd(fresh: Make, fresh_etcd: Make) -> None:
    with fresh().start().client() as ours, fresh_etcd().start().client() as theirs:
        for mine, reference in zip(script(ours), script(theirs), strict=True):
            assert mine == reference


def test_a_lease_without_an_id_gets_one(client: Client) -> None:
    first, second = grant(client, 50), grant(client, 50)
    assert first.ID > 0 and second.ID > 0 and first.ID != second.ID
    assert first.TTL == 50 and first.header.raft_term > 0
    assert {first.ID, second.ID} <= set(leases(client))
    found = lifetime(client, first.ID)
    assert found.ID == first.ID and found.grantedTTL == 50 and 40 <= found.TTL <= 50


def test_a_lease_that_nobody_renews_ends_with_its_keys_in_one_revision(client: Client, server: Server) -> None:
    before = metric(server, "metastore_lease_expired_total")
    lease = grant(client, 1).ID
    with WatchStream(client) as watch:
        watch.create(b"end/", b"end0")
        for key in (b"end/2", b"end/1"):
            client.put(key, b"", lease=lease)
        events = watch.wait_events(4)[2:]
    assert [(event.type, event.kv.key) for event in events] == [(1, b"end/1"), (1, b"end/2")]
    assert events[0].kv.mod_revision == events[1].kv.mod_revision
    assert lifetime(client, lease).TTL == -1
    assert lease not in leases(client)
    assert keep_alive_once(client, lease).TTL == 0
    assert metric(server, "metastore_lease_expired_total") > before


def test_renewals_keep_a_lease(client: Client) -> None:
    kept, left = grant(client, 2).ID, grant(client, 2).ID
    with KeepAliveStream(client) as stream:
        count = 0

        def gone() -> bool:
            nonlocal count
            stream.send(kept)
            count += 1
            assert stream.answers(count)[-1].TTL == 2
            return lifetime(client, left).TTL < 0

        wait_until(gone, what="the end of the other lease")
        wait_until(lambda: gone() and count > 10, what="more renewals")
    assert lifetime(client, kept).TTL >= 0
    revoke(client, kept)


def test_answers_keep_the_order_of_the_requests(client: Client) -> None:
    idents = [grant(client, 100).ID for _ in range(5)]
    wanted = [*idents, 99, *reversed(idents), 0, idents[0]] * 50
    with KeepAliveStream(client) as stream, KeepAliveStream(client) as other:
        stream.send(*wanted)
        other.send(*idents)
        answers = stream.answers(len(wanted))
        assert [answer.ID for answer in other.answers(5)] == idents
        stream.send(idents[1])
        assert stream.answers(len(wanted) + 1)[-1].ID == idents[1]
    assert [answer.ID for answer in answers] == wanted
    assert [answer.TTL for answer in answers] == [100 if ident in idents else 0 for ident in wanted]
    assert all(answer.header.revision and answer.header.raft_term for answer in answers)
    for ident in idents:
        revoke(client, ident)


def test_a_half_closed_stream_ends_after_its_answers(client: Client) -> None:
    lease = grant(client, 100).ID
    with KeepAliveStream(client) as stream:
        stream.send(*[lease] * 100)
        stream.half_close()
        assert len(stream.answers(100)) == 100
        assert stream.wait_end() is None
    with KeepAliveStream(client) as stream:
        stream.half_close()
        assert stream.wait_end() is None
    revoke(client, lease)


def test_a_request_that_cannot_be_read_ends_the_stream(client: Client) -> None:
    with KeepAliveStream(client) as stream:
        stream.send_bytes(b"\x0a\x05abc")
        failure = stream.wait_end()
    assert failure is not None and failure.code == 13


def test_a_flood_of_renewals_is_answered_bounded(client: Client, server: Server) -> None:
    lease = grant(client, 100).ID
    before = metric(server, "metastore_lease_renewed_total")
    with KeepAliveStream(client) as stream:
        stream.send(*[lease] * 8_000)
        assert {answer.TTL for answer in stream.answers(8_000)} == {100}
    assert metric(server, "metastore_lease_renewed_total") >= before + 8_000
    wait_until(lambda: metric(server, "metastore_lease_streams") == 0, what="the end of the stream")
    assert metric(server, "metastore_lease_unanswered") == 0
    revoke(client, lease)


def test_a_lease_with_many_keys_tells_all_of_them(client: Client) -> None:
    lease, keys = grant(client, 100).ID, [b"many/%05d" % number for number in range(6_000)]
    for at in range(0, len(keys), 100):
        client.txn(success=[op(m.PutRequest(key=key, lease=lease)) for key in keys[at : at + 100]])
    assert list(lifetime(client, lease, True).keys) == keys
    assert list(lifetime(client, lease).keys) == []
    revoke(client, lease)
    assert client.range(b"many/", b"many0", count_only=True).count == 0


def test_leases_outlive_a_restart(fresh: Make) -> None:
    server = fresh().start()
    with server.client() as client:
        lease = grant(client, 1000).ID
        client.put(b"a", b"b", lease=lease)
        short = grant(client, 1).ID
        client.put(b"c", b"d", lease=short)
        wait_until(lambda: not client.range(b"c").kvs, what="the end of the short lease")
    server.kill()
    server.start()
    with server.client() as client:
        found = lifetime(client, lease, True)
        assert found.grantedTTL == 1000 and 990 <= found.TTL <= 1001 and list(found.keys) == [b"a"]
        assert client.range(b"a").kvs[0].lease == lease
        assert leases(client) == [lease]
        revoke(client, lease)
        assert not client.range(b"a").kvs


# ---- etcdctl


def test_etcdctl_handles_leases(etcdctl_program: str, fresh: Make) -> None:
    address = fresh().start().address

    def run(*args: str) -> str:
        done = etcdctl.run(etcdctl_program, address, *args)
        assert done.returncode == 0, done.stderr
        return done.stdout

    granted = run("lease", "grant", "60")
    lease = granted.split()[1]
    assert granted == f"lease {lease} granted with TTL(60s)\n"
    run("put", "--lease", lease, "a", "b")
    lines = run("lease", "timetolive", lease, "--keys").strip()
    assert lines.startswith(f"lease {lease} granted with TTL(60s), remaining(") and lines.endswith("attached keys([a])")
    assert run("lease", "keep-alive", "--once", lease) == f"lease {lease} keepalived with TTL(60)\n"
    assert run("lease", "list").split() == ["found", "1", "leases", lease]
    listed = json.loads(run("lease", "list", "-w", "json"))
    assert f"{listed['leases'][0]['id']:016x}" == lease
    assert run("lease", "revoke", lease) == f"lease {lease} revoked\n"
    assert run("get", "a") == ""
    assert run("lease", "timetolive", lease) == f"lease {lease} already expired\n"
    failed = etcdctl.run(etcdctl_program, address, "lease", "revoke", lease)
    assert failed.returncode != 0 and "etcdserver: requested lease not found" in failed.stderr


@pytest.mark.parametrize("ttl", [MOST + 1, 2**63 - 1])
def test_a_ttl_that_is_too_long_is_refused(client: Client, ttl: int) -> None:
    with pytest.raises(Failure) as failed:
        grant(client, ttl)
    assert (failed.value.code, failed.value.text) == (11, "etcdserver: too large lease TTL")
