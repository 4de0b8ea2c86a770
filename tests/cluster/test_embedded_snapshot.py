"""Watches in the program of a member that gets a snapshot: nothing is left out or told twice, or the watch is told that
its history is gone."""

from __future__ import annotations

import contextlib
import logging
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.embedded import members_of, standing
from support.processes import wait_until

from metastore import Node, Watch, errors

pytestmark = pytest.mark.node_only

# Entries that may be in the buffers of the connection to a member that stands still: the leader sends 256 messages, and
# each put is alone in an entry here.
ON_THE_WAY = 400
VALUE = random.Random(14).randbytes(700)  # no codec makes it shorter


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[Node]]:
    """Three members that serve: the leader first. Their logs are short, so that a late member gets a snapshot."""
    eager = {
        "maintenance": {"snapshot_count": 20, "snapshot_min_size": "1KiB", "snapshot_chunk_size": "4KiB"},
        "raft": {"max_tail_bytes": "64KiB"},
        "wal": {"sync": "async", "segment_size": "64KiB"},
    }
    with members_of(tmp_path, **eager) as nodes:
        yield nodes


@contextlib.contextmanager
def late(member: Node, leader: Node, caplog: pytest.LogCaptureFixture, *, compact: bool = False) -> Iterator[list[int]]:
    """Let a member stand still while the leader writes, until the leader's log begins behind that member's end. The
    body has the revisions that were written. The member has installed a snapshot when it begins."""
    written: list[int] = []
    last = member._running().driver.raw.last_index

    def cut() -> bool:
        for number in range(20):
            written.append(leader.put(f"k{number}", VALUE).revision)
        if compact:
            leader.compact(written[-1])
        return leader.stats()["wal_first_index"] > last + ON_THE_WAY

    with caplog.at_level(logging.INFO, logger="metastore"):
        with standing(member):
            wait_until(cut, what="a log that begins later")
        wait_until(lambda: "installed snapshot index=" in caplog.text, what="an installed snapshot")
    yield written


def taken(watch: Watch, until: int) -> list[int]:
    """The revisions that a watch tells up to `until`."""
    found = []
    while watch.revision < until:
        found.append(watch.next(30).revision)
    return found


def test_a_watch_goes_on_over_a_snapshot(members: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    """One watch has had everything, and its events of all the time fit into its mailbox; those of another one do not.
    One is far behind, one belongs to the future, and one begins afterwards."""
    leader, one, _ = members
    before = [leader.put(f"k{number}", VALUE).revision for number in range(40)]
    wait_until(lambda: one.revision == before[-1])
    with (
        one.watch("k", prefix=True) as live,
        one.watch("k7") as few,
        one.watch("k", prefix=True, start_revision=before[0]) as behind,
        one.watch("k", prefix=True, start_revision=before[-1] + 50) as waiting,
    ):
        assert behind.next(30).revision == before[0]
        with late(one, leader, caplog) as written:
            sevens = [*written[7::20], leader.put("k7", "v").revision]
            last = leader.put("k-last", "v").revision
            written += [sevens[-1], last]
            assert taken(few, sevens[-1]) == sevens
            assert taken(live, last) == written
            assert taken(behind, last) == [*before[1:], *written]
            assert taken(waiting, last) == written[49:]
            with one.watch("k", prefix=True, start_revision=before[0]) as again:
                assert taken(again, last) == before + written


def test_a_watch_is_told_that_a_snapshot_took_its_history(
    members: list[Node], caplog: pytest.LogCaptureFixture
) -> None:
    leader, one, _ = members
    first = leader.put("k", "v").revision
    wait_until(lambda: one.revision == first)
    with one.watch("k", prefix=True) as watch, one.watch("k", prefix=True, start_revision=10_000) as waiting:
        with late(one, leader, caplog, compact=True) as written, pytest.raises(errors.WatchCompacted) as raised:
            for event in watch:
                assert event.revision == written[0]  # it was on the way already
                del written[0]
        assert raised.value.compact_revision in written
        # The log behind the snapshot has more compactions, the last of them at the last revision.
        with one.watch("k", prefix=True, start_revision=written[-1]) as again:
            last = leader.put("k-last", "v").revision
            assert taken(again, last) == [written[-1], last]
        with pytest.raises(errors.Timeout):
            waiting.next(0.01)


def test_a_program_goes_on_after_its_member_was_down(members: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    """A program watches again from where it was when its member stopped."""
    leader, one, _ = members
    with one.watch("k", prefix=True) as watch:
        seen = leader.put("k", "v").revision
        assert watch.next(30).revision == seen
        one.stop()
        with pytest.raises(errors.Stopped):
            watch.next(30)
    written: list[int] = []

    def cut() -> bool:
        written.extend(leader.put(f"k{number}", VALUE).revision for number in range(20))
        return leader.stats()["wal_first_index"] > 60 + ON_THE_WAY

    wait_until(cut, what="a log that begins later")
    with caplog.at_level(logging.INFO, logger="metastore"):
        # A member that got a snapshot on its way to serving has its history all the same.
        with Node(one.config) as again, again.watch("k", prefix=True, start_revision=seen + 1) as watch:
            written.append(leader.put("k-last", "v").revision)
            assert taken(watch, written[-1]) == written
    assert "installed snapshot index=" in caplog.text
