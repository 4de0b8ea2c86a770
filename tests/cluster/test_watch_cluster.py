"""Watchers of real clusters: what they are told is what was acknowledged, whatever happens to the members."""

from __future__ import annotations

import contextlib
import itertools
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from support import messages as m
from support.client import Client, Failure
from support.cluster import EAGER, Cluster, Member, clients_of, installed, time_to_write
from support.processes import metric, wait_until
from support.watching import WatchStream

from metastore.errors import NotSupportedForLearner

pytestmark = pytest.mark.node_only

MakeCluster = Callable[..., Cluster]
NO_LEADER = (14, "etcdserver: no leader")
REQUIRE_LEADER = (("hasleader", "true"),)
# Entries that may be in the buffers of the connection to a member that stands still: the leader sends 256 messages.
ON_THE_WAY = 2000
ROCKS = {"storage.engine": '"rocksdb"'}


class Writer:
    """Puts the keys w/0, w/1, ... one after the other, through whichever member answers, until it is stopped."""

    def __init__(self, members: list[Member]) -> None:
        self.acked: dict[int, tuple[bytes, bytes]] = {}  # revision -> key and value
        self.sent: dict[bytes, bytes] = {}  # value -> key
        self._clients = [member.client(timeout=2.0) for member in members]
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._write, daemon=True)
        self._thread.start()

    def _write(self) -> None:
        clients = itertools.cycle(self._clients)
        client = next(clients)
        for number in itertools.count():
            key, value = b"w/%d" % (number % 50), b"%d " % number * 40
            self.sent[value] = key
            while not self._stopped.is_set():
                try:
                    revision = client.put(key, value).header.revision
                except Failure:
                    # Whether it was done is open; done twice it is two events.
                    client = next(clients)
                    continue
                self.acked[revision] = (key, value)
                break
            if self._stopped.is_set():
                return

    def wait(self, count: int) -> int:
        """Wait for so many more acknowledgements. Return the last revision that was acknowledged."""
        wanted = len(self.acked) + count
        wait_until(lambda: len(self.acked) >= wanted, 60, f"{count} acknowledged writes")
        return max(list(self.acked))

    def stop(self) -> int:
        """Stop. Return the last revision that was acknowledged."""
        self._stopped.set()
        self._thread.join(30)
        for client in self._clients:
            client.close()
        return max(self.acked)


@contextmanager
def writing(members: list[Member]) -> Iterator[Writer]:
    """A writer, which is stopped at the end."""
    writer = Writer(members)
    try:
        yield writer
    finally:
        writer.stop()


class Follower:
    """A client that watches all keys of the writer from its first moment on. It goes on at another member, behind the
    last revision that it knows of, when its stream ends or when it is told to."""

    def __init__(self, home: Member) -> None:
        self.events: list[Any] = []
        self.next = 0  # the revision to go on at; 0: from now on
        self.first = 0  # the first revision that it must be told of
        self.moves = -1
        self.client: Client | None = None
        self.move(home)

    def move(self, to: Member) -> None:
        """Go on there."""
        self.take()
        self.close()
        self.client = to.client()
        self.stream = WatchStream(self.client)
        created = self.stream.create(b"w/", b"w0", start_revision=self.next)
        assert not created.canceled
        self.seen = 0
        self.next = self.next or created.header.revision + 1
        self.first = self.first or self.next
        self.moves += 1

    def close(self) -> None:
        """End the stream."""
        if self.client is not None:
            self.stream.close()
            self.client.close()
            self.client = None

    def take(self) -> None:
        """Look at what has come."""
        if self.client is None:
            return
        responses = self.stream.responses[self.seen :]
        self.seen += len(responses)
        for response in responses:
            assert not response.canceled, response
            if response.events:
                revisions = [event.kv.mod_revision for event in response.events]
                assert revisions == sorted(revisions) and revisions[0] >= self.next, (self.next, revisions)
                assert response.header.revision >= revisions[-1]
                self.events += response.events
                self.next = revisions[-1] + 1

    def wait(self, revision: int, others: list[Member]) -> None:
        """Until everything up to `revision` has come. Where the stream ends, another member takes over."""
        spare = itertools.cycle(others)

        def came() -> bool:
            self.take()
            if self.next <= revision and self.stream.ended:
                with contextlib.suppress(Failure):
                    self.move(next(spare))
            return self.next > revision

        wait_until(came, 60, f"events up to {revision}, there are those before {self.next}")

    def check(self, writer: Writer) -> None:
        """All that was acknowledged has come, in its order, and nothing that was not sent."""
        told = {event.kv.mod_revision: (event.kv.key, event.kv.value) for event in self.events}
        assert len(told) == len(self.events), "a revision came twice"
        missing = {rev: put for rev, put in writer.acked.items() if rev >= self.first and told.get(rev) != put}
        assert not missing, f"{len(missing)} acknowledged writes did not come: {sorted(missing)[:5]}"
        assert all(writer.sent.get(value) == key for key, value in told.values()), "nobody wrote that"


def stand_still(member: Member) -> None:
    """SIGSTOP."""
    member.running().send_signal(signal.SIGSTOP)


def go_on(member: Member) -> None:
    """SIGCONT."""
    member.running().send_signal(signal.SIGCONT)


@contextmanager
def following(cluster: Cluster) -> Iterator[dict[Member, Follower]]:
    """A watching client at each member."""
    followers = {member: Follower(member) for member in cluster.members}
    try:
        yield followers
    finally:
        for follower in followers.values():
            follower.close()


def brought_up_by_a_snapshot(member: Member, leader: Member, writer: Writer) -> None:
    """The member stands still until the leader's log begins behind its end, and goes on."""
    with member.client() as client:
        last = client.status().raftIndex
    before = len(installed(member))
    stand_still(member)
    try:
        wait_until(lambda: metric(leader, "metastore_wal_first_index") > last + ON_THE_WAY, 120, "a cut log")
    finally:
        go_on(member)
    wait_until(lambda: len(installed(member)) > before, 60, "an installed snapshot")
    writer.wait(20)


@pytest.mark.parametrize("engine", [{}, ROCKS], ids=["memory", "rocksdb"])
def test_watchers_are_told_what_was_acknowledged(engine: dict[str, str], cluster_of: MakeCluster) -> None:
    """Over kill -9 of the leader, another leader, a compaction, a member that stands still, and one that gets a
    snapshot while it is watched."""
    cluster = cluster_of(settings={**EAGER, **engine}).start()
    with writing(cluster.members) as writer, following(cluster) as followers:
        writer.wait(50)
        killed = cluster.leader()
        killed.kill()
        last = writer.wait(100)
        others = cluster.running()
        for follower in followers.values():
            follower.wait(last, others)
        assert [followers[member].moves > 0 for member in cluster.members] == [
            member is killed for member in cluster.members
        ]
        killed.start()
        cluster.lead(killed)
        with killed.client() as client:
            client.compact(last)
        still = cluster.followers()[0]
        followers[killed].move(still)
        writer.wait(50)
        stand_still(still)
        last = writer.wait(50)
        followers[killed].move(killed)
        followers[killed].wait(last, [killed])
        go_on(still)
        followers[still].wait(last, [still])
        brought_up_by_a_snapshot(still, cluster.leader(), writer)
        moves = followers[still].moves
        last = writer.stop()
        for member, follower in followers.items():
            follower.wait(last, [member])
            follower.check(writer)
        assert followers[still].moves == moves == 0, "its stream went on over the snapshot"
        begin = max(one.first for one in followers.values())
        told = [[e for e in one.events if begin <= e.kv.mod_revision <= last] for one in followers.values()]
        assert all(events == told[0] for events in told)


def test_a_watcher_is_told_that_a_snapshot_took_its_history(cluster_of: MakeCluster) -> None:
    """What the snapshot's maker had compacted is gone. The client goes on at the revision that it is told."""
    cluster = cluster_of(settings=EAGER).start()
    leader, still = cluster.leader(), cluster.followers()[0]
    with still.client() as client, leader.client() as other, WatchStream(client) as stream:
        last = client.status().raftIndex
        created = stream.create(b"w/", b"w0")
        compacted: list[int] = []
        stand_still(still)

        def cut() -> bool:
            for number in range(50):
                revision = other.put(b"w/%d" % number, b"x" * 700).header.revision
            other.compact(revision)
            compacted.append(revision)
            return metric(leader, "metastore_wal_first_index") > last + ON_THE_WAY

        try:
            wait_until(cut, 60, "a log that begins later")
        finally:
            go_on(still)
        end = stream.wait_for(lambda response: response.canceled)
        assert (end.watch_id, end.header.revision) == (created.watch_id, 0)
        # What was on the way to it when it stood still comes first.
        first = created.header.revision + 1
        early = [event.kv.mod_revision for event in stream.events()]
        assert early == list(range(first, first + len(early))) and end.compact_revision > first + len(early)
        # The log behind the snapshot has more compactions.
        cluster.same_everywhere()
        again = stream.create(b"w/", b"w0", start_revision=compacted[-1])
        assert not again.canceled and end.compact_revision in compacted
        revision = other.put(b"w/end", b"1").header.revision
        stream.wait_for(lambda response: any(event.kv.key == b"w/end" for event in response.events))
        revisions = [event.kv.mod_revision for event in stream.events(again.watch_id)]
        assert revisions == list(range(compacted[-1], revision + 1))


def test_a_watcher_begins_at_the_revision_of_a_response(cluster_of: MakeCluster) -> None:
    """On every member, whether it has that revision already or not."""
    cluster = cluster_of().start()
    leader, (one, other) = cluster.leader(), cluster.followers()
    with leader.client() as client, clients_of([one, other, leader]) as clients:
        streams = [WatchStream(each) for each in clients]
        firsts: list[dict[int, int]] = [{} for _ in streams]
        for number in range(30):
            revision = client.put(b"k", b"%d" % number).header.revision
            for first, stream in zip(firsts, streams, strict=True):
                first[stream.create(b"k", start_revision=revision).watch_id] = revision
        last = client.put(b"k", b"last").header.revision
        for first, stream in zip(firsts, streams, strict=True):
            for ident, begin in first.items():
                events = stream.wait_events(last + 1 - begin, ident)
                assert [event.kv.mod_revision for event in events] == list(range(begin, last + 1))
            stream.close()


def test_streams_that_demand_a_leader_end_without_one(cluster_of: MakeCluster) -> None:
    """After three election timeouts. New ones are refused at once, and other streams go on."""
    cluster = cluster_of().start()
    left, *gone = cluster.followers()[0], cluster.leader(), cluster.followers()[1]
    with left.client() as client:
        revision = client.put(b"k", b"1").header.revision
        demanding, patient = WatchStream(client, REQUIRE_LEADER), WatchStream(client)
        for stream in (demanding, patient):
            stream.create(b"k", start_revision=revision)
            stream.wait_events(1)
        for member in gone:
            member.kill()
        failure = demanding.wait_end()
        assert failure is not None and (failure.code, failure.text) == NO_LEADER
        refused = WatchStream(client, REQUIRE_LEADER).wait_end()
        assert refused is not None and (refused.code, refused.text) == NO_LEADER
        again = patient.create(b"k", start_revision=revision).watch_id
        assert [event.kv.value for event in patient.wait_events(1, again)] == [b"1"]
        for member in gone:
            member.launch()
        time_to_write(client, b"k")
        with WatchStream(client, REQUIRE_LEADER) as stream:
            stream.create(b"k", start_revision=revision)
            stream.wait_events(2)
        assert len(patient.wait_events(2, again)) >= 2
        patient.close()
        for member in gone:
            member.await_ready()


def test_a_learner_serves_no_watch(cluster_of: MakeCluster) -> None:
    cluster = cluster_of(1).start()
    leader = cluster.leader()
    learner = cluster.new_member()
    with leader.client() as client:
        client.call(m.MemberAddRequest(peerURLs=[f"http://{learner.advertised}"], isLearner=True))
    learner.existing, learner.initial = True, {**leader.initial, learner.name: learner.advertised}
    learner.start()
    with learner.client() as client:
        stream = WatchStream(client)
        stream.send(create_request={"key": b"k"})
        failure = stream.wait_end()
        assert failure is not None
        assert (failure.code, failure.text) == (NotSupportedForLearner.code, NotSupportedForLearner().text)
        assert stream.responses == []
