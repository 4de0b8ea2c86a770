"""Which ends of groups of the log wake a member: those that somebody waits for. The next turn takes in the others."""

from __future__ import annotations

import errno
import logging
import os
import select
from pathlib import Path
from typing import Any

import pytest
from sim.node import Member
from sim.runner import Simulation
from support.lone_member import Lone
from support.processes import wait_until
from support.raft_harness import Network
from support.waldisk import image
from support.waldriving import SEGMENT, durable, opened, wait

from metastore._core.entry import HardState
from metastore._core.raft_types import ConfChange, ConfChangeV2, Message, MessageType
from metastore.errors import DiskFailed
from metastore.failpoints import Failpoints
from metastore.storage.unsynced import Lag
from metastore.storage.wal import Wal

# ---- the log and its thread


def quiet(folder: Path, points: Failpoints | None = None, lag: Lag | None = None) -> Wal:
    """Return an open log that has one entry and nothing to tell, and that nobody waits for."""
    wal = Wal.open(folder, segment_size=SEGMENT, metadata=b"meta", failpoints=points, lag=lag)
    wait(wal, lambda: not wal.preparing)
    unheard(wal, 1)
    assert wal.settle() == 1
    wal.poll()
    return wal


def unheard(wal: Wal, index: int) -> None:
    """Write an entry, and let its group end while nobody waits for that. What the thread had to tell before is told."""
    assert not wal.listen(False)
    wal.append(index, image(index), None)
    wal.submit()
    wait_until(wal.has_ended, what="the end of the group")


def told(wal: Wal) -> bool:
    poller = select.poll()
    poller.register(wal.fileno(), select.POLLIN)
    return bool(poller.poll(0))


def test_an_end_that_nobody_waits_for_is_not_reported(folder: Path, points: Failpoints) -> None:
    wal = quiet(folder, points)
    for index in range(2, 7):
        unheard(wal, index)
        assert wal.settle() == index and not wal.has_ended() and wal.idle
    assert not wal.listen(True)
    wal.append(7, image(7), None)
    wal.submit()
    wait_until(lambda: told(wal), what="a report")
    assert os.eventfd_read(wal.fileno()) == 1, "the thread reports the ends in their order, so no other comes any more"
    durable(wal, 7)
    wal.close()


def test_who_begins_to_wait_learns_of_an_end_that_was_before(folder: Path, points: Failpoints) -> None:
    wal = quiet(folder, points)
    unheard(wal, 2)
    assert wal.listen(True) and wal.settle() == 2
    points.set("wal.before_sync", "block")
    wal.append(3, image(3), None)
    wal.submit()
    assert not wal.listen(False) and not wal.listen(True) and not wal.has_ended()
    points.clear()
    wait_until(lambda: told(wal), what="a report")
    durable(wal, 3)
    wal.close()


def test_a_failure_is_always_reported(folder: Path, points: Failpoints) -> None:
    wal = quiet(folder, points)
    points.set("wal.before_sync", f"error({errno.EIO})")
    wal.append(2, image(2), None)
    wal.submit()
    wait_until(lambda: told(wal), what="a report")
    assert not wal.has_ended()
    with pytest.raises(DiskFailed):
        wal.poll()
    wal.close()


def test_the_log_itself_waits_where_something_follows(folder: Path, points: Failpoints) -> None:
    """The next group, a snapshot position, a commit index, or somebody else who has said so."""
    wal = quiet(folder, points)

    def next_group() -> None:
        wal.append(3, image(3), None)

    def snapshot() -> None:
        wal.save_snapshot_position(1, 1, b"")

    def commit() -> None:
        wal.save_commit(HardState(1, 1, 1))

    def others() -> None:
        wal.tells_all = True

    points.set("wal.before_sync", "block")
    wal.append(2, image(2), None)
    wal.submit()
    for number, cause in enumerate((next_group, snapshot, commit, others)):
        assert not wal.listen(False)
        cause()
        wal.listen(False)
        points.clear()
        wait_until(lambda: told(wal), what=f"a report because of {cause.__name__}")
        wal.tells_all = False
        wait(wal, lambda: wal.idle)
        points.set("wal.before_sync", "block")
        wal.append(4 + number, image(4 + number), None)
        wal.submit()
    points.clear()
    wait(wal, lambda: wal.idle)
    wal.close()


def test_a_stop_does_not_wait_for_an_end_that_was_before(
    folder: Path, points: Failpoints, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    wal = quiet(folder, points)
    unheard(wal, 2)
    wal.close(1.0)
    assert "without waiting" not in caplog.text
    again = opened(folder)
    assert again.last_index() == 2 and again.report == []
    again.close()


def test_a_sync_that_failed_within_a_group_is_not_tried_again(folder: Path, points: Failpoints) -> None:
    """The system tells of a lost write only once, so a second sync may go well."""
    wal = quiet(folder, points, Lag(interval=60.0, max_bytes=1))
    disk: Any = wal._disk
    points.set("wal.before_sync", "error(EIO)")
    synced = disk.syncs
    wal.append(2, image(2), None)
    wal.submit()
    wait_until(lambda: told(wal) and disk.has_failed(), what="the failure")
    os.eventfd_read(wal.fileno())
    points.clear()
    disk.sync_now()
    wait_until(lambda: told(wal), what="an answer to the request")
    assert disk.syncs == synced
    with pytest.raises(DiskFailed):
        wal.poll()
    wal.close()


def test_a_later_sync_is_reported_if_it_was_requested(folder: Path) -> None:
    wal = quiet(folder, lag=Lag(0.001, 1 << 20))
    for index in range(2, 7):
        unheard(wal, index)
        assert wal.settle() == index
        wait_until(lambda: not wal.unsynced[0], what="a sync")
    wal._disk.sync_now()
    wait_until(lambda: told(wal), what="a report")
    assert os.eventfd_read(wal.fileno()) == 1
    assert wal.mark(), "the log asks how far it is synced"
    wait(wal, lambda: wal.idle)
    wal.close()


# ---- the core


def leading(voters: int, hold: bool = True) -> Network:
    """Return a cluster in which member 1 leads; everything is durable there."""
    network = Network(range(1, voters + 1))
    network.campaign(1)
    network.nodes[1].hold_disk = hold
    return network


def test_a_leader_waits_for_its_disk_when_its_own_copy_makes_a_quorum() -> None:
    network = leading(5)
    leader = network[1]
    assert not leader.awaits_disk()
    leader.propose(b"\0x")
    network.collect()
    for follower, waits in ((None, False), (2, False), (3, True)):
        if follower is not None:
            answer = MessageType.MsgAppResp
            leader.step(Message(answer, to=1, from_=follower, term=leader.term, index=leader.last_index))
        assert leader.awaits_disk() is waits, follower
    network.nodes[1].flush()
    assert leader.commit == leader.last_index and not leader.awaits_disk()


def test_a_leader_waits_for_its_disk_when_a_quorum_did_not() -> None:
    """What is committed without its own copy is applied when it has one."""
    network = leading(3)
    network[1].propose(b"\0x")
    network.settle()
    assert network[1].commit == network[1].last_index > network[1].persisted
    assert network[1].awaits_disk()


def test_a_leader_waits_for_its_disk_in_both_halves_of_a_joint_membership() -> None:
    network = leading(3, hold=False)
    change = ConfChangeV2(changes=[ConfChange(0, 4), ConfChange(0, 5), ConfChange(1, 2), ConfChange(1, 3)])
    network[1].propose_conf_change(change)
    network.settle()
    assert network[1].conf_state.voters_outgoing == (1, 2, 3)
    network.nodes[1].hold_disk = True
    network[1].propose(b"\0x")
    network.settle()
    assert network[1].persisted < network[1].last_index
    assert not network[1].awaits_disk(), "neither 4 nor 5 has answered"


@pytest.mark.parametrize("voters", [1, 3])
def test_whoever_is_alone_or_no_leader_waits_for_its_disk(voters: int) -> None:
    network = leading(voters)
    assert all(node.raw.awaits_disk() for ident, node in network.nodes.items() if ident != 1 or voters == 1)


# ---- the driver, in a simulated cluster


class Three:
    """A leader with two followers, and a count of the turns that its disk has brought."""

    def __init__(self, sync: float, delay: float) -> None:
        self.lone = Lone(members=3, segment=1 << 20)  # there is always room for the next group
        self.simulation: Simulation = self.lone.simulation
        self.clock = self.lone.clock
        for ident in (2, 3):
            self.simulation.cluster.members[ident].start()
        weather = self.simulation.scene.weather
        weather.loss = weather.spike = weather.double = 0.0
        weather.delay = delay
        leader = self.simulation.led()
        self.leader: Member = leader
        self.clock.run(self.clock.now + 2.0)
        self.lone.member = leader
        leader.speed.sync, leader.speed.stall = sync, 0.0
        self.woken = 0
        on_disk = leader._on_disk

        def count() -> None:
            self.woken += leader.wal.has_ended()  # and not a new segment
            on_disk()

        leader._on_disk = count  # type: ignore[method-assign]

    def put(self) -> None:
        """Let one put come in, and be applied."""
        revision = self.leader.store.revision
        self.leader.act(self.lone.put)
        end = self.clock.now + 5.0
        while self.leader.store.revision == revision:
            assert self.clock.now < end
            self.clock.run(self.clock.now + 0.0001)


def test_a_disk_that_is_quicker_than_the_followers_brings_no_turn() -> None:
    three = Three(sync=0.0001, delay=0.02)
    groups = three.leader.wal.groups
    for _ in range(10):
        three.put()
    assert three.leader.wal.groups >= groups + 10 and three.woken == 0


def test_a_disk_that_is_slower_than_the_followers_brings_the_turn_that_commits() -> None:
    three = Three(sync=0.03, delay=0.0001)
    for _ in range(10):
        three.put()
    assert three.woken == 10


def test_a_tick_takes_in_what_nobody_waited_for() -> None:
    three = Three(sync=0.001, delay=0.0001)
    leader = three.leader
    three.simulation.cluster.network.separate([leader.id], [ident for ident in (1, 2, 3) if ident != leader.id])
    leader.act(three.lone.put)
    three.clock.run(three.clock.now + 3 * three.simulation.scene.settings.tick)
    assert leader.raw.is_leader and leader.raw.persisted == leader.raw.last_index > leader.raw.commit
    assert leader.driver.marked and leader.wal.idle


def test_what_comes_in_behind_the_pump_goes_with_the_next_group() -> None:
    """It waits for the disk and not for the end of its batch, which is half a second away."""
    three = Three(sync=0.02, delay=0.05)
    leader = three.leader
    leader.act(three.lone.put)
    three.clock.run(three.clock.now + 0.001)
    assert not leader.wal.idle
    three.lone.put()
    leader._turn_at(leader.replica.next_turn(leader.now()), leader.now())
    assert leader.proposer.queued
    three.clock.run(three.clock.now + 0.045)
    assert not leader.proposer.queued and three.woken == 1
