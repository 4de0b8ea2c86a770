"""Attacks on the peer port of live members."""

from __future__ import annotations

import os
import time

from metastore._core.driver_path import MAX_TERM
from metastore.errors import EXIT_CODES
from metastore.peers.acquaintances import MAX_STRANGERS
from metastore.peers.stream import PeerLimits

from . import messages as m
from .client import Failure
from .cluster import Cluster, Member
from .forger import Forger
from .processes import wait_until

LIMITS = PeerLimits()
QUICK = {"raft.tick_interval": '"30ms"', "wal.segment_size": '"1MiB"'}
ROUND = 1.0  # seconds of attack between two probes
#: A write has this many seconds: an attack in a member's name may cost an election, or a few.
PATIENCE = 30.0
#: Bytes by which a member's memory may grow: less than two of the frames that are longer than they may be.
GROWTH = 96 << 20
#: Further descriptors: the member's log, its streams to strangers, and the clients that look at it.
SPARE_FILES = 60


def alive(cluster: Cluster, seed: int) -> None:
    for member in cluster.members:
        code = member.running().popen.poll()
        assert code is None, f"seed {seed}: {member.name} ended: {code} ({EXIT_CODES.get(code)})\n{member.logs[-3000:]}"


def probe(cluster: Cluster, number: int, seed: int) -> None:
    """Check that every member takes a write and then knows it."""
    for member in cluster.members:
        key = b"%s/%d" % (member.name.encode(), number)

        def served(at: Member = member, key: bytes = key) -> bool:
            alive(cluster, seed)
            try:
                with at.client(timeout=5) as client:
                    client.put(key, b"%d" % number)
                    return client.get(key) == b"%d" % number
            except (Failure, OSError):
                return False

        try:
            wait_until(served, PATIENCE, f"seed {seed}: a write through {member.name}")
        except AssertionError as failed:
            logs = "\n".join(f"{one.name}: {one.logs[-1500:]}" for one in cluster.members)
            raise AssertionError(f"{failed}\n{logs}") from None


def descriptors(member: Member) -> int:
    """Return the number of file descriptors of a member."""
    return len(os.listdir(f"/proc/{member.running().popen.pid}/fd"))


def bounded(cluster: Cluster, before: dict[str, tuple[int, int]], seconds: float, seed: int) -> None:
    """Check what an attack of so many seconds may take of each member: see PeerLimits."""
    # Strangers that have become silent are forgotten, and others may come.
    strangers = MAX_STRANGERS * (2 + int(seconds / LIMITS.stranger_timeout))
    for member in cluster.members:
        memory, files = before[member.name]
        grown, more = member.running().peak_rss() - memory, descriptors(member) - files
        assert grown < GROWTH, f"seed {seed}: {member.name} has grown by {grown >> 20} MiB"
        assert more <= LIMITS.max_accepted + SPARE_FILES, f"seed {seed}: {member.name} has {more} more descriptors"
        taken_in = member.logs.count("is not known here yet")
        assert taken_in <= strangers, f"seed {seed}: {member.name} has taken in {taken_in} strangers"
        term = int(member.status().raftTerm)
        assert term < MAX_TERM, f"seed {seed}: {member.name} has come to term {term}"


def attack(cluster: Cluster, seed: int, seconds: float) -> None:
    """Attack for `seconds`, probe in between, and check everything at the end."""
    cluster.start()
    probe(cluster, 0, seed)
    with cluster.members[0].client() as client:
        listed = client.call(m.MemberListRequest())
    before = {member.name: (member.running().rss(), descriptors(member)) for member in cluster.members}
    ids = {member.advertised: cluster.member_id(member) for member in cluster.members}
    forger = Forger(list(ids), listed.header.cluster_id, seed)
    forger.learn(ids)
    began, number = time.monotonic(), 0
    try:
        while time.monotonic() < began + seconds:
            number += 1
            forger.term = max(int(member.status().raftTerm) for member in cluster.members)
            forger.run(ROUND)
            probe(cluster, number, seed)
            bounded(cluster, before, time.monotonic() - began, seed)
        # A connection that has said nothing for so long is closed, whether others need its place or not.
        wait_until(lambda: not forger.crowd_left, 6 * LIMITS.handshake_timeout, f"seed {seed}: the end of a crowd")
    finally:
        forger.close()
    assert forger.greeted > 10 * number and forger.sent > 30 * number, (forger.sent, forger.greeted)
    cluster.same_history()
    with cluster.members[0].client() as client:
        assert len(client.call(m.MemberListRequest()).members) == 3
        for member in cluster.members:
            for one in range(number + 1):
                assert client.get(b"%s/%d" % (member.name.encode(), one)) == b"%d" % one
    cluster.check_logs()
