"""Watching keys through the port of a real node; where etcd defines what is right, a real etcd is compared."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from support import etcdctl
from support import messages as m
from support.client import Client, op
from support.processes import Server, metric, wait_until
from support.watching import WatchStream

Make = Callable[..., Server]
PUT, DELETE = 0, 1


def plain(response: Any) -> Any:
    """Return a response without the fields that name the cluster."""
    response.header.ClearField("cluster_id")
    response.header.ClearField("member_id")
    response.header.ClearField("raft_term")
    return response


def told(events: list[Any]) -> list[tuple[int, bytes, bytes, int]]:
    return [(event.type, event.kv.key, event.kv.value, event.kv.mod_revision) for event in events]


# ---- a node answers as etcd does


def script(client: Client) -> list[Any]:
    """Use one stream as a client would. Return all responses in order. Each step waits for its answer."""
    with WatchStream(client) as stream:
        stream.create(b"a", prev_kv=True)
        client.put(b"a", b"1")
        client.put(b"a", b"2", lease=0)
        client.put(b"b", b"x")
        client.delete(b"a")
        stream.wait_events(3)
        stream.create(b"a", b"c", start_revision=2, filters=[1])
        stream.wait_events(3, 1)
        stream.create(b"", b"\0", watch_id=77, filters=[0])
        client.txn(success=[op(m.PutRequest(key=b"a1", value=b"t")), op(m.PutRequest(key=b"a2", value=b"t"))])
        client.delete(b"a", b"b")
        stream.wait_events(2, 77)
        stream.wait_events(5, 1)
        stream.create(b"a", watch_id=77)
        stream.create(b"b", b"a")
        stream.create(b"b", b"b")
        stream.create(b"a", start_revision=100)
        stream.send(cancel_request={"watch_id": 1})
        stream.wait_for(lambda response: response.canceled and response.watch_id == 1)
        stream.send(cancel_request={"watch_id": 1})
        stream.create(b"z")
        client.compact(4)
        count = len(stream.responses)
        stream.create(b"a", start_revision=2)
        stream.wait_for(lambda response: response.compact_revision, count)
        count = len(stream.responses)
        stream.create(b"b", start_revision=4)
        stream.wait_for(lambda response: response.events, count)
        stream.half_close()
        count = len(stream.responses)
        client.put(b"z", b"after the half close")
        stream.wait_for(lambda response: response.events, count)
        return [plain(response) for response in stream.responses]


def test_a_stream_reads_as_with_etcd(fresh: Make, fresh_etcd: Make) -> None:
    """The script covers ids, texts, revisions of headers, previous pairs, compaction, half-closing, and cancelling a
    watcher that does not exist.

    Two differences are left out: 3.5.1 takes -1 as an id, which means none everywhere else, and a negative revision as
    a compacted one. A node refuses both, as 3.7 does.
    """
    with fresh_etcd().start().client() as reference, fresh().start().client() as client:
        assert script(client) == script(reference)


@pytest.mark.node_only
def test_a_deletion_at_the_compacted_revision_is_told(fresh: Make) -> None:
    """etcd reports it since 3.6; 3.5.1 removes it with what lies before."""
    with fresh().start().client() as client, WatchStream(client) as stream:
        client.put(b"a", b"1")
        revision = client.delete(b"a").header.revision
        client.compact(revision, physical=True)
        stream.create(b"a", start_revision=revision)
        assert told(stream.wait_events(1)) == [(DELETE, b"a", b"", revision)]


def test_progress_is_answered_for_the_stream(client: Client, prefix: str) -> None:
    key = prefix.encode()
    with WatchStream(client) as stream:
        stream.send(progress_request={})  # no watcher yet: no answer
        stream.create(key)
        revision = client.put(key, b"1").header.revision
        stream.wait_events(1)
        stream.send(progress_request={})
        progress = stream.wait_for(lambda response: response.watch_id == -1)
        assert progress.header.revision >= revision and not progress.events
        assert sum(response.watch_id == -1 for response in stream.responses) == 1


@pytest.mark.node_only
def test_notifications_come_at_the_interval(fresh: Make) -> None:
    server = fresh(settings={"watch.progress_notify_interval": '"100ms"'}).start()
    with server.client() as client, WatchStream(client) as stream:
        stream.create(b"a", progress_notify=True)
        revision = client.put(b"b").header.revision
        stream.wait_for(lambda response: not response.created and response.header.revision == revision)
        assert not stream.events()


# ---- history and restarts


def test_history_is_read_back(client: Client, prefix: str) -> None:
    """A watcher starts far in the past while writes go on, and then again from any event."""
    key = prefix.encode()
    first = client.put(key + b"0", b"0").header.revision
    for number in range(1, 400):
        client.put(key + b"%d" % (number % 7), b"%d" % number)
    with WatchStream(client) as stream:
        stream.create(key, key + b"\xff", start_revision=first)
        for number in range(400, 500):
            client.put(key + b"%d" % (number % 7), b"%d" % number)
        events = stream.wait_events(500)
        assert [event.kv.value for event in events] == [b"%d" % number for number in range(500)]
    with WatchStream(client) as stream:
        stream.create(key, key + b"\xff", start_revision=events[321].kv.mod_revision)
        assert stream.wait_events(179) == events[321:]


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
@pytest.mark.node_only
def test_history_outlives_a_kill(fresh: Make, engine: str) -> None:
    server = fresh(settings={"storage.engine": f'"{engine}"'}).start()
    with server.client() as client, WatchStream(client) as stream:
        stream.create(b"k", b"l")
        for number in range(100):
            client.put(b"k%d" % (number % 9), b"%d" % number)
        client.delete(b"k", b"l")
        before = stream.wait_events(109)
    server.kill()
    server.start()
    with server.client() as client, WatchStream(client) as stream:
        stream.create(b"k", b"l", start_revision=2)
        assert stream.wait_events(109) == before
        client.put(b"k1", b"new")
        assert told(stream.wait_events(110)[109:]) == [(PUT, b"k1", b"new", before[-1].kv.mod_revision + 1)]


def test_a_revision_comes_whole(client: Client, prefix: str) -> None:
    """The deletion of 3,000 keys is one response. With fragments it is several, and only the last of these is
    unmarked."""
    key = prefix.encode()
    ops = [m.PutRequest(key=key + b"%05d" % number, value=b"x" * 600) for number in range(3000)]
    for at in range(0, 3000, 100):
        client.txn(success=[op(one) for one in ops[at : at + 100]])
    with WatchStream(client) as stream:
        stream.create(key, key + b"\xff", prev_kv=True)
        stream.create(key, key + b"\xff", prev_kv=True, fragment=True)
        revision = client.delete(key, key + b"\xff").header.revision
        stream.wait_events(6000)
        whole = [response for response in stream.responses if response.events and response.watch_id == 0]
        parts = [response for response in stream.responses if response.events and response.watch_id == 1]
    assert len(whole) == 1 and len(whole[0].events) == 3000
    assert len(parts) > 1 and [part.fragment for part in parts] == [True] * (len(parts) - 1) + [False]
    events = [event for part in parts for event in part.events]
    assert events == list(whole[0].events)
    assert {event.kv.mod_revision for event in events} == {revision}
    assert events[7].prev_kv.value == b"x" * 600


# ---- life of a stream


@pytest.mark.node_only
def test_a_stop_ends_streams(fresh: Make) -> None:
    server = fresh().start()
    with server.client() as client, WatchStream(client) as stream:
        stream.create(b"a")
        assert server.stop() == 0
        failure = stream.wait_end()
        assert failure is not None and (failure.code, failure.text) == (14, "etcdserver: server stopped")


@pytest.mark.node_only
def test_watchers_leave_with_their_stream(fresh: Make) -> None:
    server = fresh().start()
    with server.client() as client:
        with WatchStream(client) as stream:
            for number in range(500):
                stream.send(create_request={"key": b"%d" % number})
            stream.wait(lambda: len(stream.responses) >= 500)
            assert [response.watch_id for response in stream.responses] == list(range(500))
            assert metric(server, "metastore_watchers") == 500
        wait_until(lambda: metric(server, "metastore_watchers") == 0, what="watchers leave with their stream")
        wait_until(lambda: metric(server, "metastore_watch_streams") == 0, what="the stream is gone")


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05abc"])
def test_a_damaged_request_ends_its_stream_alone(client: Client, body: bytes) -> None:
    with WatchStream(client) as stream, WatchStream(client) as other:
        other.create(b"a")
        stream.create(b"a")
        stream.send_bytes(body)
        failure = stream.wait_end()
        assert failure is not None and failure.code == 13
        assert other.create(b"b").created


# ---- etcdctl


def test_etcdctl_prints_what_it_prints_for_etcd(fresh: Make, fresh_etcd: Make, etcdctl_program: str) -> None:
    outputs = []
    for server in (fresh_etcd(), fresh()):
        with server.start().client() as client:
            client.put(b"k1", b"one")
            client.put(b"k2", b"two")
            client.delete(b"k1")
            command = [etcdctl_program, "--endpoints", server.address, "watch", "k", "--prefix", "--rev=1", "--prev-kv"]
            with subprocess.Popen(command, env=etcdctl.environment(), stdout=subprocess.PIPE, text=True) as process:
                assert process.stdout is not None
                outputs.append([process.stdout.readline() for _ in range(10)])
                process.kill()
    assert outputs[1] == outputs[0]
    assert outputs[1][:3] == ["PUT\n", "k1\n", "one\n"]
    assert json.dumps(outputs[1]).count("DELETE") == 1


@pytest.mark.node_only
def test_too_many_watchers_are_refused_by_name(fresh: Make) -> None:
    server = fresh(settings={"limits.max_watches_per_stream": "10"}).start()
    with server.client() as client, WatchStream(client) as stream:
        for _ in range(10):
            assert not stream.create(b"a").canceled
        refused = stream.create(b"a")
        assert (refused.watch_id, refused.canceled) == (-1, True)
        assert "limits.max_watches_per_stream is 10" in refused.cancel_reason
        client.put(b"a")
        assert len(stream.wait_events(10)) == 10
