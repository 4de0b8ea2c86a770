"""Attacks on the peer port of live members."""

from __future__ import annotations

import os
import time
from pathlib import Path

from metastore.errors import EXIT_CODES

from . import messages as m
from .client import Failure
from .cluster import Cluster, Member
from .forger import Forger
from .processes import wait_until

QUICK = {"raft.tick_interval": '"30ms"', "wal.segment_size": '"1MiB"'}
ROUND = 1.0  # seconds of attack between two probes
#: A write has this many seconds: an attack in a member's name may cost an election, or a few.
PATIENCE = 30.0
#: Bytes by which a member's memory may grow: two unfinished frames of the largest size, and what the interpreter keeps.
GROWTH = 256 << 20


def resident(member: Member) -> int:
    """Return the bytes of memory of a member's process."""
    pages = Path(f"/proc/{member.running().popen.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


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


def attack(cluster: Cluster, seed: int, seconds: float) -> None:
    """Attack for `seconds`, probe in between, and check everything at the end."""
    cluster.start()
    probe(cluster, 0, seed)
    with cluster.members[0].client() as client:
        listed = client.call(m.MemberListRequest())
    before = {member.name: resident(member) for member in cluster.members}
    ids = {member.advertised: cluster.member_id(member) for member in cluster.members}
    forger = Forger(list(ids), listed.header.cluster_id, seed)
    forger.learn(ids)
    until, number = time.monotonic() + seconds, 0
    try:
        while time.monotonic() < until:
            number += 1
            forger.term = max(int(member.status().raftTerm) for member in cluster.members)
            forger.run(ROUND)
            probe(cluster, number, seed)
        for member in cluster.members:
            grown = resident(member) - before[member.name]
            assert grown < GROWTH, f"seed {seed}: {member.name} has grown by {grown >> 20} MiB"
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
