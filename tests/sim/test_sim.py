"""The simulator: seeds in which all must hold, planted bugs that it must find, and that a seed is all it takes to see
the same again. `python -m tests.sim --hours N` runs it for long; METASTORE_SIM_SCALE multiplies the seeds run here."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from support import ROOT

from metastore._core.ordered_map import OrderedMap
from metastore._core.raft_types import ConfState, Message, MsgReadIndex
from sim import wire
from sim.disk import Disk
from sim.engines import contents
from sim.greetings import QUIET
from sim.model import Call
from sim.node import Member
from sim.plants import PLANTS, Plant
from sim.runner import PROFILES, Scene, Simulation, SimulationFailed, simulate
from sim.workload import Client

SCALE = float(os.environ.get("METASTORE_SIM_SCALE", "1"))
# Directed schedules do much the same in every seed, and take longer. Each profile runs at least the seeds within which
# plants.py says that its bugs are found: without the bug, they must pass.
SEEDS = {
    "usual": 20, "members": 18, "snapshots": 14, "transfers": 8, "reads": 20, "lease": 8, "joint": 5, "rewritten": 11,
}  # fmt: skip
SEEDS |= {"pieces": 20, "lagging": 10, "filed": 6, "overtaken_logs": 8, "lease_promises": 2, "flaky": 6}
SEEDS |= {"watched": 12, "caught_up": 6, "leased": 10}


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """See sim.greetings."""
    logs = [logging.getLogger(name) for name in QUIET]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.CRITICAL)
    yield
    for log, level in zip(logs, levels, strict=True):
        log.setLevel(level)


@pytest.mark.parametrize("profile", sorted(PROFILES))
def test_nothing_is_lost_stale_or_stuck(profile: str) -> None:
    for seed in range(max(1, int(SEEDS.get(profile, 4) * SCALE))):
        simulate(seed, profile)


@pytest.mark.parametrize("plant", PLANTS, ids=lambda plant: plant.name)
def test_planted_bug_is_found(plant: Plant) -> None:
    for seed in range(plant.seeds):
        try:
            simulate(seed, plant.profile, plant.change())
        except SimulationFailed as error:
            assert f"--seed {seed}" in str(error)
            return
    pytest.fail(f"not found within {plant.seeds} seeds of profile {plant.profile}")


@pytest.mark.parametrize("plant", [plant for plant in PLANTS if plant.outside], ids=lambda plant: plant.name)
def test_planted_bug_is_found_without_looking_into_disks_and_messages(plant: Plant) -> None:
    for seed in range(plant.seeds * 3):
        try:
            simulate(seed, plant.profile, plant._replace(inside=False).change())
        except SimulationFailed:
            return
    pytest.fail(f"not found within {plant.seeds * 3} seeds of profile {plant.profile}")


@pytest.mark.parametrize("profile", ["usual", "members", "rewritten", "watched"])
def test_a_seed_replays_to_the_bit(profile: str) -> None:
    first, second = simulate(5, profile), simulate(5, profile)
    assert first == second
    assert first.trace != simulate(6, profile).trace


def test_the_command_replays_in_another_process() -> None:
    """Nothing may hang on the order of hashes, on addresses or on what ran before."""
    lines = set()
    for hashes in ("0", "12345"):
        arguments = "--profile snapshots --seed 9 --count 1 --verbose".split()
        command = [sys.executable, "-m", "tests.sim", *arguments]
        done = subprocess.run(
            command, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": hashes}, text=True,
            capture_output=True, check=True,
        )  # fmt: skip
        lines.add(done.stdout.splitlines()[0])
    lines.add(f"snapshots 9: trace {simulate(9, 'snapshots').trace:08x}, {lines.copy().pop().split(', ', 1)[1]}")
    assert len(lines) == 1


def test_a_failure_replays_to_the_bit() -> None:
    plant = next(plant for plant in PLANTS if plant.name == "forwarded twice")
    texts = []
    for _ in range(2):
        with pytest.raises(SimulationFailed) as caught:
            for seed in range(plant.seeds):
                simulate(seed, plant.profile, plant.change())
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "trace" in texts[0] and "python -m tests.sim" in texts[0]


@pytest.mark.parametrize(("profile", "seed"), [("transfers", 315), ("snapshots", 133)])
def test_seeds_that_found_a_bug(profile: str, seed: int) -> None:
    """A second snapshot arrived before the first one was installed, and the member stopped."""
    simulate(seed, profile)


def test_the_seeds_that_find_bugs_are_run_without_them() -> None:
    assert all(plant.seeds <= SEEDS.get(plant.profile, 4) for plant in PLANTS)


def test_the_simulation_is_not_idle() -> None:
    """Checks that never have anything to check find nothing."""
    counts: dict[str, int] = {}
    seeds = {"usual": 3, "members": 3, "transfers": 8}
    for profile, seed in [(profile, seed) for profile, count in seeds.items() for seed in range(count)]:
        for name, count in simulate(seed, profile).counts.items():
            counts[name] = counts.get(name, 0) + count
    assert counts["acked"] > 1000 and counts["reads"] > 300 and counts["digests"] > 100
    assert counts["hashes"] > 2 * counts["entries"], "the whole state of each member at each index"
    assert counts["ends in silence"] > 500
    assert counts["terms"] > 16 and counts["open"] > 20
    assert counts["torn chunks"] and counts["resumed"] and counts["rotten"] and counts["struck"]
    assert counts["power"] and counts["crash_at_disk"] and counts["cut"] and counts["add"] and counts["remove"]


def test_members_do_come_back_late_and_with_empty_directories() -> None:
    counts: dict[str, int] = {}
    seeds = {"absences": 2, "lost_directories": 2, "strays": 12, "beginnings": 2, "pieces": 4}
    for profile, seed in [(profile, seed) for profile, count in seeds.items() for seed in range(count)]:
        for name, count in simulate(seed, profile).counts.items():
            counts[name] = counts.get(name, 0) + count
    assert counts["absences"] >= 4 and counts["wiped"] >= 8 and counts["sent away"] >= 8
    assert counts["begun"] >= 20 and counts["removed"] and counts["struck at add"] and counts["moved"] >= 4
    assert counts["failed late"] >= 4


def test_a_member_whose_data_differs_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the comparison alone: the simulator's own checks look at a member only when it applies something."""
    for spoilt in (1, 2, 3):
        named: list[int] = []

        def change(scene: Scene) -> None:
            scene.settings.members, scene.settings.compare = 3, 1.0
            # Without the third sum nobody could tell which of two is wrong, and the leader's would count.
            scene.weather.loss = scene.weather.spike = 0.0

        simulation = Simulation(spoilt, "usual", change)
        simulation.cluster.accused = lambda _leader, accused, named=named: named.append(accused)  # type: ignore[method-assign, misc]
        simulation.led()
        client = Client(0, simulation.cluster, simulation.scene.habits)
        simulation.clock.run(16.0)
        client.stopped = True
        simulation.clock.run(20.0)
        assert not named and simulation.checker.counts["compared"]
        engine = contents(simulation.cluster.members[spoilt].engine)
        ((key, value),) = engine.scan(b"r", b"s", True, 1)
        batch = OrderedMap()
        batch.set(key, value[:-1] + b"?")
        engine.write(batch, *engine.applied())
        simulation.clock.run(25.0)
        assert set(named) == {spoilt}


def test_the_watchers_are_not_idle() -> None:
    """They are told much, in all the ways that there are."""
    counts: dict[str, int] = {}
    for seed in range(3):
        for profile in ("watched", "caught_up"):
            for name, count in simulate(seed, profile).counts.items():
                counts[name] = counts.get(name, 0) + count
    assert counts["watch events"] > 1000 and counts["watchers"] > 400 and counts["watch streams"] > 100
    assert counts["watch progress"] > 300 and counts["watch notifications"] > 100
    assert counts["watch streams full"] > 400 and counts["watch fragments"]
    assert counts["watchers compacted"] > 40 and counts["installed"]


def test_the_tenants_are_not_idle() -> None:
    """Their leases are renewed, end in all the ways that there are, and have their remaining times logged."""
    counts: dict[str, int] = {}
    for seed in range(5):
        for name, count in simulate(seed, "leased").counts.items():
            counts[name] = counts.get(name, 0) + count
    assert counts["lease calls"] > 40 and counts["leases renewed"] > 60 and counts["leases ended"] > 15
    assert counts["lease checkpoints"] > 40 and counts["leases gone"] > 8


def test_a_power_cut_keeps_what_was_synced_and_may_lose_the_rest() -> None:
    outcomes = set()
    for seed in range(60):
        disk = Disk()
        file = disk.make("a")
        file.write(0, b"x" * 1024)
        file.sync()
        disk.sync_names()
        file.write(0, b"y" * 1024)
        disk.make("b").write(0, b"unsynced")
        disk.power_cut(random.Random(seed))
        data = bytes(disk.files["a"].data)
        assert len(data) == 1024 and set(data) <= set(b"xy")
        outcomes.add((data[:512] == b"y" * 512, data[512:] == b"y" * 512, "b" in disk.files))
        assert data[:512] in (b"x" * 512, b"y" * 512), "a block is torn"
    assert len(outcomes) == 8, "every outcome is possible"


def test_rounds_of_reads_are_told_apart_over_restarts() -> None:
    """Found by the simulator (stale reads, profile "reads"): a follower was restarted, and the leader's late answer to
    a round of its first life was taken for the answer to one of its second."""
    simulation = Simulation(3, "deposed_leaders")
    cluster, clock = simulation.cluster, simulation.clock
    leader = simulation.led()
    follower = next(member for member in cluster.members.values() if member is not leader)
    seen: list[int] = []
    send = cluster.network.send

    def listen(sender: int, to: int, kind: str, data: Any, check: int) -> bool:
        message = Message.decode(data) if kind == "raft" else None
        if message is not None and message.type == MsgReadIndex:
            seen.append(int.from_bytes(message.context, "little"))
        return send(sender, to, kind, data, check)

    cluster.network.send = listen  # type: ignore[method-assign]
    client = Client(0, cluster, simulation.scene.habits)
    client.stopped, client.member = True, follower.id
    for _ in range(2):
        for _ in range(3):
            call = Call("read", (b"k",))
            wire.encode(call)
            client.issue(call)
            clock.run(clock.now + 1.0)
        follower.crash(False)
        follower.start()
        clock.run(clock.now + 1.0)
    assert len(seen) >= 6 and seen == sorted(set(seen))


def test_what_is_forwarded_to_a_member_that_leads_no_more_goes_on() -> None:
    """It would be refused else, and its client see an error, in each planned change of the leader."""
    simulation = Simulation(3, "usual")
    cluster, clock = simulation.cluster, simulation.clock
    old = simulation.led()
    follower, successor = (member for member in cluster.members.values() if member is not old)
    old.driver.raw.transfer_leader(successor.id)
    clock.run(clock.now + 2.0)
    assert cluster.leader() is successor and old.driver.leader_id == successor.id
    client = Client(0, cluster, simulation.scene.habits)
    client.stopped, client.member = True, follower.id
    call = Call("put", (b"k",), b"v")
    wire.encode(call)
    # The follower has not heard yet.
    follower.driver.leader_id = old.id
    client.issue(call)
    clock.run(clock.now + 0.05)
    assert not call.failed and old.driver.quiet
    follower.driver.leader_id = successor.id
    clock.run(clock.now + 2.0)
    assert call.applied and not call.failed


def test_no_progress_is_a_failure() -> None:
    """A network that never heals, whatever the simulation says, must be noticed."""

    def broken(scene: Scene) -> None:
        scene.seconds = 1.0
        scene.settings.tick = 1e6

    with pytest.raises(SimulationFailed, match="no progress"):
        simulate(1, "usual", broken)


def tampered(member: Member, without: int) -> None:
    """A roster that no log makes: a voter is missing, and another one has lost its name."""
    roster = member.roster
    del roster.members[without]
    kept = next(iter(set(roster.members) - {member.id}))
    roster.members[kept] = replace(roster.members[kept], name="")
    roster.set_conf_state(ConfState(voters=sorted(roster.members)))
    member.raw.enter_conf(roster.conf_state)


@pytest.mark.parametrize("leading", [False, True])
def test_rosters_that_differ_are_mended(leading: bool) -> None:
    """By what the leader says when somebody starts. Where the leader's own is the wrong one, the others are told so by
    it, and publish themselves again."""
    simulation = Simulation(3, "usual", lambda scene: setattr(scene.settings, "members", 3))
    cluster, clock, checker = simulation.cluster, simulation.clock, simulation.checker
    leader = simulation.led()
    before = {member.roster.state for member in cluster.members.values()}
    assert len(before) == 1 and all(record.name for record in next(iter(before)).members)
    mended: list[int] = []
    checker.is_at = lambda member, index: None  # type: ignore[method-assign]
    checker.mended = lambda member, before, told: mended.append(member.id)  # type: ignore[method-assign]
    wrong = leader if leading else next(member for member in cluster.members.values() if member is not leader)
    other = next(member for member in cluster.members.values() if member not in (leader, wrong))
    if leading:
        roster = leader.roster
        roster.members[other.id] = replace(roster.members[other.id], name="")
        roster.set_conf_state(roster.conf_state)
    else:
        tampered(wrong, other.id)
    other.crash(False)
    other.start()
    clock.run(clock.now + 12.0)
    assert {member.roster.state for member in cluster.members.values()} == before
    assert {member.raw.conf_state for member in cluster.members.values()} == {wrong.roster.conf_state}
    assert wrong.id not in mended if leading else set(mended) == {wrong.id}
