"""A disk that stands still: the log reports since when, and closing the log does not wait."""

from __future__ import annotations

import collections
import logging
import select
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.processes import wait_until
from support.waldisk import METADATA, image

from metastore._core.wal_tail import QUICK_SYNC, SLOW_GROUPS
from metastore.errors import DataDirInUse
from metastore.failpoints import Failpoints
from metastore.storage import segments
from metastore.storage.slow_disk import SlowDisk
from metastore.storage.wal import Lag, Wal

pytestmark = pytest.mark.node_only


def watched(moments: list[tuple[float, float | None, float]]) -> list[str]:
    """Return the lines about (now, pending since, longest that ended), one after the other."""
    lines: list[str] = []

    class Log:
        def warning(self, text: str, *values: object) -> None:
            lines.append(text % values)

    present: list[tuple[float | None, float]] = [(None, 0.0)]
    watch = SlowDisk("wal", lambda: present[-1][0], lambda: present[-1][1], Log())
    watch.stop()
    watch._thread.join()
    lines.clear()
    for now, since, longest in moments:
        present.append((since, longest))
        watch.look(now)
    return lines


def test_lines_about_a_slow_disk() -> None:
    assert watched([(10.0, None, 0.9), (10.5, 10.0, 0.3), (10.9, 10.0, 0.0)]) == []
    waiting = [(10.0 + tick / 2, 10.0, 0.0) for tick in range(30)]
    seconds = ["1.0", "2.0", "4.0", "8.0"]
    assert watched(waiting) == [f"wal: the disk has not finished a sync for {took} s" for took in seconds]
    assert watched([*waiting, (25.0, 24.9, 14.8)])[-1] == "wal: the disk took 14.8 s for a sync"
    # Each second a sync takes 1.2 s. There is one line in ten seconds.
    assert watched([(float(now), None, 1.2) for now in range(25)]) == ["wal: the disk took 1.2 s for a sync"] * 3


def test_a_disk_that_does_nothing_is_looked_at_half_as_often() -> None:
    since: list[float | None] = [None]
    watch = SlowDisk("wal", lambda: since[0], lambda: 0.0, logging.getLogger())
    watch.stop()
    idle = watch.look(10.0)
    since[0] = 10.01
    # A sync that begins behind a look is told of as soon as with looks twice a second.
    assert idle == 1.0 and watch.look(11.0) == 0.5 and watch._next == 1.0
    assert watch.look(11.5) == 0.5 and watch._next == 2.0


@pytest.mark.parametrize("point", ["wal.before_write", "wal.before_sync"])
@pytest.mark.parametrize("lag", [None, Lag(0.001, 1 << 20)])
def test_a_log_says_since_when_it_waits(tmp_path: Path, point: str, lag: Lag | None) -> None:
    failpoints = Failpoints()
    wal = Wal.open(tmp_path / "wal", segment_size=64 << 10, metadata=METADATA, failpoints=failpoints, lag=lag)
    assert wal.sync_pending_since is None
    failpoints.set(point, "block")
    before = time.monotonic()
    wal.append(1, image(1), None)
    wal.submit()
    seen: list[float | None] = []
    # The write may be over a moment after this finds it under way, and the sync of a log that lags begins later.
    wait_until(lambda: seen.append(wal.sync_pending_since) or seen[-1] is not None, what="the disk at work")
    since = seen[-1]
    assert since is not None and before <= since <= time.monotonic()
    failpoints.clear()
    wait_until(lambda: wal.poll() == 1 and wal.sync_pending_since is None, what="the disk done")
    assert wal._disk.take_longest() >= 0 and wal._disk.take_longest() == 0
    wal.close()


def test_a_log_waits_for_a_segment(tmp_path: Path) -> None:
    """The making of the next segment stands still. That is the disk, too, and closing does not wait for it."""
    failpoints = Failpoints()
    wal = Wal.open(tmp_path / "wal", segment_size=64 << 10, metadata=METADATA, failpoints=failpoints)
    wait_until(lambda: wal.poll() == 0 and not wal.preparing, what="the next segment")
    failpoints.set("wal.segment", "block")
    for number in range(1, 5):
        wal.append(number, image(number, size=50_000), None)
        wal.submit()
        wait_until(lambda: wal.poll() >= 0 and (wal.idle or wal.sync_pending_since is not None), what="written or not")
    assert wal.durable < 4 and wal.sync_pending_since is not None
    began = time.monotonic()
    wal.close(timeout=0.2)
    assert time.monotonic() - began < 5
    failpoints.clear()


def test_a_log_that_was_closed_too_early_is_free_when_its_threads_have_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next node of the same process waits for them. It used to find the log locked until the process ended."""
    failpoints = Failpoints()
    wal = Wal.open(tmp_path / "wal", segment_size=64 << 10, metadata=METADATA, failpoints=failpoints)
    wal.append(1, image(1), None)
    wal.submit()
    wait_until(lambda: wal.poll() == 1 and not wal.preparing, what="the next segment")
    failpoints.set("wal.segment", "block")
    for number in range(2, 4):
        wal.append(number, image(number, size=50_000), None)
        wal.submit()
    wait_until(lambda: wal.poll() >= 2 and wal.preparing, what="a segment in the making")
    wal.close(timeout=0.05)
    with monkeypatch.context() as patch, pytest.raises(DataDirInUse):
        patch.setattr(segments, "PATIENCE", 0.01)
        Wal.open(tmp_path / "wal")
    with ThreadPoolExecutor() as pool:
        opening = pool.submit(Wal.open, tmp_path / "wal", segment_size=64 << 10)
        failpoints.clear()
        again = opening.result(60)
    assert again.last_index() >= 2 and not segments._ending
    again.close()


def test_a_caller_that_is_alone_waits_for_a_moment_only(tmp_path: Path) -> None:
    """It does not wait again at once, but only after some groups were written."""
    failpoints = Failpoints()
    wal = Wal.open(tmp_path / "wal", segment_size=64 << 10, metadata=METADATA, failpoints=failpoints)
    failpoints.set("wal.before_sync", "block")
    wal.append(1, image(1), None)
    assert not wal.submit(True) and wal.sync_pending_since is not None
    # A disk in memory would be done before the caller looks, without any wait.
    failpoints.set("wal.before_sync", "sleep(1)")
    wait_until(lambda: wal.poll() == 1, what="the disk done")
    # A busy machine may need longer for a sync than the caller waits.
    wal.quick_sync = 5.0
    waited = []
    for number in range(2, 4 * SLOW_GROUPS):
        wal.append(number, image(number), None)
        if wal.submit(True):
            assert wal.settle() == number
            waited.append(number)
        wait_until(lambda number=number: wal.poll() == number, what="durable")
    # A machine that stops the caller for so long lets the disk be done before it looks.
    assert len([number for number in waited if number < SLOW_GROUPS]) < SLOW_GROUPS // 2
    assert waited[-2 * SLOW_GROUPS :] == list(range(2 * SLOW_GROUPS, 4 * SLOW_GROUPS))
    wal.close()


@pytest.mark.parametrize("lag", [None, Lag(0.001, 1 << 20)])
def test_no_group_is_lost_between_waiting_and_the_event(tmp_path: Path, lag: Lag | None) -> None:
    """Syncs take about as long as the caller waits for them. A caller that gave up hears of them by the event."""
    failpoints = Failpoints()
    wal = Wal.open(tmp_path / "wal", metadata=METADATA, failpoints=failpoints, lag=lag, busy_poll=0.001)
    waiter = select.poll()
    waiter.register(wal.fileno(), select.POLLIN)
    ways = collections.Counter[bool]()
    for number in range(1, 300):
        # A little less than the wait without the sync itself, and a little more.
        failpoints.set("wal.before_sync", f"sleep({QUICK_SYNC * 1000 * (0.5 + number % 50 / 50):.3f})")
        wal._quick = True
        wal.append(number, image(number), None)
        finished = wal.submit(True)
        ways[finished] += 1
        if finished:
            assert wal.settle() == number
        while wal.durable < number:
            assert waiter.poll(30_000), "no event"
            wal.poll()
    assert lag or (ways[True] and ways[False])
    failpoints.clear()
    wal.close()


def test_closing_a_log_gives_up_on_the_disk(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    failpoints = Failpoints()
    wal = Wal.open(tmp_path / "wal", segment_size=64 << 10, metadata=METADATA, failpoints=failpoints)
    failpoints.set("wal.before_sync", "block")
    wal.append(1, image(1), None)
    began = time.monotonic()
    with caplog.at_level(logging.WARNING):
        wal.close(timeout=0.2)
    assert time.monotonic() - began < 5
    assert "without waiting any longer for the disk" in caplog.text
    failpoints.clear()
