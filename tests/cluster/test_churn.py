"""Clusters that are stopped and started in all orders, in the middle of writes, elections and other starts.

The test looks for a signal that no thread hears, a member that waits for one that is gone, and a stop that takes longer
than it may. The system may give a signal to any thread that does not block it, so here chance decides which thread gets
it. The members reach each other by names, as in real life, so looking these up is part of the test.
"""

from __future__ import annotations

import itertools
import random
import signal
import socket
import time
from collections.abc import Callable

import pytest
from support import messages as m
from support.cluster import Cluster, Member
from support.load import History, Load
from support.processes import signal_thread, takers

pytestmark = pytest.mark.node_only

SEED = 20261129
#: The promise is two seconds. A shared machine is slower, and a lost signal takes for ever.
STOP_SECONDS = 6.0


def by_name(address: str) -> str:
    """Return the same address with a name that has to be looked up, if there is one (a bare chroot has no
    /etc/hosts)."""
    host, port = address.rsplit(":", 1)
    try:
        addresses = socket.getaddrinfo("localhost", port, type=socket.SOCK_STREAM)
    except OSError:
        return address
    return f"localhost:{port}" if any(place[4][0] == host for place in addresses) else address


def ask(member: Member, rng: random.Random) -> float:
    """Send SIGTERM. Return when that was."""
    pid = member.running().pid
    signal_thread(pid, rng.choice(takers(pid, signal.SIGTERM)), signal.SIGTERM)
    return time.monotonic()


def ended(member: Member, began: float, limit: float = STOP_SECONDS) -> None:
    """Check that the member ends by itself, in time and without an error."""
    code, log = member.wait()
    took = time.monotonic() - began
    assert code == 0, log
    assert took < limit, f"{member.name} took {took:.1f} s to stop:\n{log}"


def stop_all(members: list[Member], rng: random.Random) -> None:
    """Send SIGTERM in this order. Some members end before the next one gets it."""
    began = {}
    for member in members:
        began[member] = ask(member, rng)
        if rng.random() < 0.3:
            ended(member, began.pop(member))
    for member, when in began.items():
        ended(member, when)


def start_all(members: list[Member], rng: random.Random) -> None:
    """Start in this order. Some members are stopped again while they wait for the others, or vote."""
    for member in members:
        member.launch()
        if rng.random() < 0.3:
            member.running().wait_line("listening for peers")
            ended(member, ask(member, rng))
            member.launch()
    for member in members:
        member.await_ready()


def test_stopped_and_started_in_all_orders(cluster_of: Callable[..., Cluster]) -> None:
    rng = random.Random(SEED)
    cluster = cluster_of(via=by_name, settings={"raft.tick_interval": '"50ms"'}).start()  # elections take half as long
    history = History()
    for order in itertools.permutations(cluster.members):
        with order[rng.randrange(3)].client() as client:
            load = Load(client, history, writers=3).start()
            load.wait_acks(20)
            stop_all(list(order), rng)
            load.join()
        start_all(rng.sample(cluster.members, 3), rng)
        with rng.choice(cluster.members).client() as client:
            history.check(client)
    cluster.same_history()


def test_one_that_waits_for_the_others_stops_at_once(cluster_of: Callable[..., Cluster]) -> None:
    """This holds for a member alone, where there is no leader, and for the last one, whose leader is gone."""
    rng = random.Random(SEED)
    cluster = cluster_of(via=by_name)
    alone = cluster.members[0].launch()
    alone.running().wait_line("listening for peers")
    ended(alone, ask(alone, rng))
    cluster.start()
    last = cluster.followers()[0]
    for member in cluster.members:
        if member is not last:
            member.kill()
    with last.client() as client:
        waiting = client.future(m.PutRequest(key=b"k", value=b"v"), timeout=20)
        ended(last, ask(last, rng))
        assert waiting.exception(20) is not None, "nobody can have acknowledged it"


def test_one_that_joins_stops_at_once(cluster_of: Callable[..., Cluster]) -> None:
    """The member that it asks may not answer. That it goes on asking for ten seconds is no reason to wait."""
    rng = random.Random(SEED)
    newcomer = cluster_of(2).members[1]
    with socket.create_server(("127.0.0.1", 0)) as silent:
        newcomer.existing = True
        newcomer.initial["n1"] = f"127.0.0.1:{silent.getsockname()[1]}"
        newcomer.launch()
        silent.settimeout(20)
        with silent.accept()[0]:
            ended(newcomer, ask(newcomer, rng), 3.0)
