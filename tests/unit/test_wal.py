"""The log on a real disk: groups, durability, failures, space, segments, restarts and sudden death."""

from __future__ import annotations

import errno
import os
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import TESTS, powercut
from support.waldisk import image
from support.waldriving import SEGMENT, durable, opened, put, wait

from metastore._core.entry import Entry, HardState
from metastore._core.raft_types import LogCompacted, LogUnavailable
from metastore._core.wal_records import records
from metastore.errors import DamagedData, DiskFailed, NoSpace
from metastore.failpoints import Failpoints
from metastore.storage.wal import Wal


def test_a_block_that_the_medium_does_not_give_is_damage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error has file and offset, there is no SIGBUS from a mapped page, and nothing on disk changes."""
    wal = opened(folder)
    put(wal, 1, 300)
    wal.close()
    before = {path: path.read_bytes() for path in folder.iterdir()}
    broken = sorted(folder.glob("*.wal"))[0]
    pread = os.pread

    def failing(fd: int, length: int, offset: int) -> bytes:
        if os.readlink(f"/proc/self/fd/{fd}") == str(broken) and offset <= 12300 < offset + length:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(fd, length, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", failing)
        with pytest.raises(DamagedData, match=f"{broken}: the medium does not give the bytes at offset 12288: "):
            opened(folder)
    assert {path: path.read_bytes() for path in folder.iterdir()} == before
    wal = opened(folder)
    assert wal.last_index() == 300
    wal.close()


def test_what_is_durable_is_there_after_a_restart(folder: Path) -> None:
    wal = opened(folder)
    assert (wal.metadata, wal.hard_state, wal.conf_state, wal.report) == (b"meta", HardState(), b"", [])
    assert (wal.first_index(), wal.last_index(), wal.term(0), wal.snapshot()) == (1, 0, 0, None)
    put(wal, 1, 5)
    assert wal.idle
    assert wal.queued_bytes == 0
    wal.close()
    wal = Wal.open(folder, segment_size=SEGMENT, metadata=b"other")
    assert wal.metadata == b"meta"
    assert wal.initial_state() == (HardState(1, 1, 4), b"")
    assert wal.images(1, 6, 10**6) == b"".join(image(i, 1, 100) for i in range(1, 6))
    assert wal.entries(2, 4, 10**6)[0] == Entry(1, 2, 0, image(2, 1, 100)[32:])
    assert wal.images(2, 6, 1) == image(2, 1, 100)
    wal.close()


def test_opening_is_quick_and_a_new_log_is_small(folder: Path) -> None:
    begin = time.monotonic()
    wal = Wal.open(folder, metadata=b"meta")
    assert time.monotonic() - begin < 5
    assert min(path.stat().st_size for path in folder.glob("*.wal")) == 4 << 20
    wal.close()


def test_a_missing_log_is_refused_unless_it_is_to_be_made(folder: Path) -> None:
    with pytest.raises(DamagedData, match="no write-ahead log"):
        Wal.open(folder)
    folder.mkdir(parents=True)
    with pytest.raises(DamagedData, match="has no segments"):
        Wal.open(folder)
    (folder / "cut-0000000100000001-64.bin").touch()
    with pytest.raises(DamagedData, match="has no segments"):
        opened(folder)
    for size in (4096, 65537, 1 << 40):
        with pytest.raises(ValueError, match="segment size"):
            Wal.open(folder, segment_size=size, metadata=b"")


def test_a_folder_that_cannot_be_made_is_a_failed_disk(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DiskFailed, match=r"write-ahead log .*file"):
        Wal.open(tmp_path / "file" / "wal", metadata=b"")


def test_nothing_is_durable_while_the_sync_is_blocked(folder: Path, tmp_path: Path, points: Failpoints) -> None:
    """A restart from a copy that holds only synced bytes has everything that was reported."""
    wal = opened(folder, points)
    put(wal, 1, 3)
    synced = tmp_path / "synced"
    wait(wal, lambda: not wal.preparing)
    shutil.copytree(folder, synced)
    points.set("wal.before_sync", "block")
    wal.append(4, image(4, 1, 100), HardState(1, 1, 3))
    wal.submit()
    poller = select.poll()
    poller.register(wal.fileno(), select.POLLIN)
    while poller.poll(100):
        assert wal.poll() == 3
    assert wal.poll() == 3
    assert not wal.idle
    with pytest.raises(LogUnavailable, match="entry 4 is not durable"):
        wal.images(4, 5, 1000)
    assert wal.images(3, 5, 1000) == image(3, 1, 100)
    written = tmp_path / "written"
    shutil.copytree(folder, written)
    points.clear()
    durable(wal, 4)
    assert wal.idle
    wal.close()
    for copy, last in ((synced, 3), (written, 4), (folder, 4)):
        again = opened(copy)
        assert (again.last_index(), again.hard_state.commit) == (last, last - 1)
        again.close()


def test_all_that_waits_goes_with_one_sync(folder: Path, points: Failpoints) -> None:
    wal = opened(folder, points)
    points.set("wal.before_sync", "block")
    wal.append(1, image(1), None)
    wal.submit()
    for index in range(2, 50):
        wal.append(index, image(index), None)
        wal.submit()
    assert wal.queued_bytes > 0
    points.clear()
    durable(wal, 49)
    assert wal.stats()["syncs"] == 2
    wal.close()


def test_without_group_commit_each_append_has_a_sync_of_its_own(folder: Path, points: Failpoints) -> None:
    wal = opened(folder, points, group_commit=False)
    points.set("wal.before_sync", "sleep(1)")
    seen = []
    for index in range(1, 11):
        wal.append(index, image(index), HardState(1, 1, 0))
        wal.submit()
    wait(wal, lambda: seen.append(wal.durable) or wal.durable == 10)  # type: ignore[func-returns-value]
    assert sorted(seen) == seen
    stats = wal.stats()
    assert (stats["syncs"], stats["groups"]) == (10, 10)
    assert stats["sync_seconds"] >= 0.01
    wal.close()


def test_without_group_commit_each_entry_of_an_append_has_a_sync_of_its_own(folder: Path, points: Failpoints) -> None:
    wal = opened(folder, points, group_commit=False)
    seen = []
    wal.append(1, b"".join(image(index) for index in range(1, 11)), HardState(1, 1, 0))
    wal.submit()
    wait(wal, lambda: seen.append(wal.durable) or wal.durable == 1)  # type: ignore[func-returns-value]
    assert wal.stats()["syncs"] == 10
    wal.close()
    again = opened(folder, points)
    assert again.last_index() == 10
    again.close()


def test_what_needs_no_sync_waits_for_the_next_group_or_the_end(folder: Path) -> None:
    wal = opened(folder)
    wal.append(1, None, HardState(3, 1, 0), must_sync=False)
    wal.submit()
    assert wal.idle
    assert wal.poll() == 0
    wal.append(2, image(1, 3), None)
    wal.append(3, None, HardState(3, 1, 1), must_sync=False)
    wal.submit()
    durable(wal, 3)
    wal.append(4, None, HardState(4, 1, 1), must_sync=False)
    wal.close()
    wal = opened(folder)
    assert wal.hard_state == HardState(4, 1, 1)
    wal.close()


def test_an_idle_log_is_marked_once(folder: Path) -> None:
    wal = opened(folder)
    assert not wal.mark(), "opening proved everything"
    put(wal, 1, 2)
    assert wal.mark()
    assert not wal.idle
    wait(wal, lambda: wal.idle)
    assert wal.durable == 2
    assert not wal.mark()
    wal.close()
    segment = min(folder.glob("*.wal"))
    kinds = [kind for _, kind, *_ in records(segment.read_bytes(), int(segment.stem, 16))]
    assert kinds[-1] == "MARKER"
    assert kinds.count("MARKER") == 2


@pytest.mark.parametrize("point", ["wal.before_write", "wal.after_write", "wal.before_sync", "wal.after_sync"])
@pytest.mark.parametrize("code", ["EIO", "ENOSPC"])
def test_a_failed_write_or_sync_is_for_ever(folder: Path, points: Failpoints, point: str, code: str) -> None:
    wal = opened(folder, points)
    put(wal, 1, 3)
    points.set(point, f"error({code})")
    wal.append(4, image(4), None)
    wal.submit()
    with pytest.raises(DiskFailed, match=os.strerror(getattr(errno, code))):
        wait(wal, lambda: False)
    points.clear()
    what = "sync" if "sync" in point else "write"
    for again in (wal.poll, wal.submit, wal.mark, lambda: wal.append(5, image(5), None)):
        with pytest.raises(DiskFailed, match=f"{what} failed"):
            again()
    assert wal.durable == 3
    wal.close()
    wal = opened(folder)
    assert wal.last_index() in (3, 4)
    put(wal, wal.last_index() + 1, 1)
    wal.close()


def test_closing_twice_and_using_a_closed_log(folder: Path) -> None:
    wal = opened(folder)
    wal.append(1, image(1), None)
    wal.close()
    wal.close()
    with pytest.raises(DiskFailed, match="closed"):
        wal.append(2, image(2), None)
    wal = opened(folder)
    assert wal.last_index() == 1, "closing writes what is queued"
    wal.close()


def test_a_close_does_not_wait_for_ever_for_a_stuck_disk(folder: Path, points: Failpoints) -> None:
    wal = opened(folder, points)
    points.set("wal.before_sync", "block")
    wal.append(1, image(1), None)
    begin = time.monotonic()
    wal.close(timeout=0.1)
    assert time.monotonic() - begin < 5


def test_an_overwritten_suffix_is_gone_after_a_restart(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 9)
    wal.append(10, image(4, 2) + image(5, 2), HardState(2, 2, 3))
    wal.submit()
    durable(wal, 10)
    for _ in range(2):
        assert (wal.last_index(), wal.term(3), wal.term(4), wal.term(5)) == (5, 1, 2, 2)
        assert wal.images(3, 6, 10**6) == image(3, 1, 100) + image(4, 2) + image(5, 2)
        wal.close()
        wal = opened(folder)
    wal.close()


def test_the_log_goes_on_over_many_segments(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 300, size=2000)
    assert wal.stats()["segments"] > 8
    everything = b"".join(image(i, 1, 2000) for i in range(1, 301))
    for _ in range(2):
        images, low = [], 1
        while low <= 300:
            some = wal.images(low, 301, 50_000)
            assert 0 < len(some) <= 50_000
            images.append(some)
            low += len(some) // 2032
        assert b"".join(images) == everything
        wal.close()
        wal = opened(folder)
    wal.close()


def test_an_entry_larger_than_a_segment_is_taken(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 1)
    put(wal, 2, 1, size=3 * SEGMENT)
    put(wal, 3, 1)
    wal.close()
    wal = opened(folder)
    assert wal.images(2, 3, 1) == image(2, 1, 3 * SEGMENT)
    assert wal.last_index() == 3
    wal.close()


def test_questions_outside_the_log(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 9)
    wal.save_snapshot_position(5, 1, b"conf")
    assert (wal.first_index(), wal.snapshot_index, wal.snapshot_term, wal.conf_state) == (6, 5, 1, b"conf")
    assert (wal.term(5), wal.term(6)) == (1, 1)
    for ask in (lambda: wal.term(4), lambda: wal.images(5, 7, 100), lambda: wal.entries(0, 1, 100)):
        with pytest.raises(LogCompacted):
            ask()
    for ask in (lambda: wal.term(10), lambda: wal.images(10, 11, 100), lambda: wal.images(7, 7, 100)):
        with pytest.raises(LogUnavailable):
            ask()
    wal.close()


def test_bytes_that_change_under_an_open_log_are_damage(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 3)
    segment = min(folder.glob("*.wal"))
    data = bytearray(segment.read_bytes())
    data[data.index(image(2, 1, 100)) + 50] ^= 1
    segment.write_bytes(data)
    with pytest.raises(DamagedData, match=f"{segment.name}: entry 2 is damaged"):
        wal.images(1, 4, 10**6)
    assert wal.images(1, 2, 10**6) == image(1, 1, 100)
    wal.close()


def test_released_segments_are_used_again(folder: Path) -> None:
    wal = opened(folder)
    index = 1
    for _ in range(6):
        put(wal, index, 100, size=2000)
        index += 100
        with pytest.raises(ValueError, match="snapshot position"):
            wal.release(index)
        wal.save_snapshot_position(index - 10, 1, b"c%d" % index)
        assert wal.release(index - 10) == 0, "the position is not durable yet"
        put(wal, index, 1)
        index += 1
        assert wal.release(index - 11) > 0
        assert wal.images(index - 10, index, 10**7)
    wal.close()
    files = list(folder.iterdir())
    assert sum(path.stat().st_size for path in files) < 12 * SEGMENT
    wal = opened(folder)
    assert (wal.snapshot_index, wal.last_index(), wal.conf_state) == (index - 11, index - 1, b"c%d" % (index - 1))
    assert wal.images(index - 10, index, 10**7).endswith(image(index - 1, 1, 100))
    put(wal, index, 100, size=2000)
    wal.close()


def test_an_installed_snapshot_replaces_the_log(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 9)
    wal.save_snapshot_position(500, 7, b"from the leader")
    assert (wal.first_index(), wal.last_index(), wal.term(500)) == (501, 500, 7)
    wal.append(501, image(501, 7), HardState(7, 0, 500))
    wal.submit()
    durable(wal, 501)
    wal.close()
    wal = opened(folder)
    assert (wal.first_index(), wal.last_index(), wal.conf_state) == (501, 501, b"from the leader")
    wal.close()


@pytest.mark.parametrize(
    ("point", "kind", "text"),
    [
        ("wal.before_write", "ENOSPC", "write failed: No space left on device; the node must stop"),
        ("wal.before_write", "EROFS", "write failed: Read-only file system; the node must stop"),
        ("wal.before_sync", "ENOSPC", "sync failed: No space left on device; the node must stop"),
        ("wal.before_sync", "EIO", "sync failed: Input/output error; what the page cache holds can no longer be "
         "believed; the node must stop"),
    ],
)  # fmt: skip
def test_what_failed_is_named(folder: Path, points: Failpoints, point: str, kind: str, text: str) -> None:
    wal = opened(folder, points)
    points.set(point, f"error({kind})")
    wal.append(1, image(1), None)
    wal.submit()
    with pytest.raises(DiskFailed) as failure:
        wait(wal, lambda: False)
    assert failure.value.text == f"write-ahead log {folder}: {text}"
    wal.close()


def test_no_space_for_the_next_segment_is_said_before_and_healed(folder: Path, points: Failpoints) -> None:
    """Room is refused while the reserve is left. What was accepted is neither dropped nor failed. Then it heals."""
    wal = opened(folder, points)
    assert wal.room(1000) is None
    wait(wal, lambda: not wal.preparing)
    points.set("wal.segment", "error(ENOSPC)")
    index = 0
    while wal.room(2000) is None:
        index += 1
        put(wal, index, 1, size=2000)
        wait(wal, lambda: not wal.preparing)
        assert index < 200
    assert index > 10, "the segment made beforehand was used"
    assert not wal.retry_room()
    assert wal.lack == f"{folder}: No space left on device" and wal.refusal is NoSpace
    # Votes and membership may use the reserve.
    put(wal, index + 1, 5)
    index += 5
    assert wal.room(2000) is not None
    for more in range(40):
        wal.append(index + more + 1, image(index + more + 1, 1, 2000), None)
    wal.submit()
    wait(wal, lambda: not wal.idle and wal.stats()["groups"] > 0)
    stuck = wal.durable
    assert stuck < index + 40
    assert not wal.retry_room()
    points.clear()
    # Now and then, as the node does: the attempt before may still be under way, and fail.
    wait(wal, lambda: wal.retry_room() and wal.durable >= index + 40)
    assert wal.room(2000) is None and wal.lack == ""
    wal.close()
    wal = opened(folder)
    assert wal.last_index() == index + 40
    wal.close()


def test_leftovers_of_an_interrupted_preparation_are_removed(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 1)
    wal.close()
    (folder / "0000000900000001.tmp").write_bytes(b"half")
    (folder / "0000000a00000001.old").write_bytes(b"short")
    (folder / "notes.txt").write_text("not ours")
    wal = opened(folder)
    assert wal.last_index() == 1
    wal.close()
    assert sorted(path.suffix for path in folder.iterdir()) == [".txt", ".wal", ".wal"]


def test_many_restarts_do_not_pile_up_files(folder: Path) -> None:
    for index in range(1, 15):
        wal = opened(folder)
        assert wal.last_index() == index - 1
        put(wal, index, 1)
        wal.close()
    assert len(list(folder.iterdir())) <= 3


CHILD = """
import pathlib, select, sys
sys.path.insert(0, sys.argv[3])
from support import powercut
from support.waldisk import image
from metastore._core.entry import HardState
from metastore.failpoints import Failpoints
from metastore.storage.wal import Wal
folder = pathlib.Path(sys.argv[1])
wal = Wal.open(folder, segment_size=65536, metadata=b"meta", failpoints=Failpoints.from_environment())
poller = select.poll()
poller.register(wal.fileno(), select.POLLIN)
index, acked = wal.last_index(), 0
base = index
while True:
    for _ in range(3):
        index += 1
        wal.append(index - base, image(index, 1, 700), HardState(1, 1, max(0, index - 3)))
    wal.submit()
    poller.poll(1000)
    if wal.poll() > acked:
        acked = wal.durable
        print(base + acked, flush=True)
    if index % 60 == 0:
        wal.save_snapshot_position(index - 20, 1, b"conf")
    wal.release(wal.snapshot_index)
"""


def check_life(folder: Path, copy: Path, known: int) -> None:
    """Open a copy of what a life left behind: everything that was reported is there, and nothing that was not
    written."""
    shutil.copytree(folder, copy)
    wal = Wal.open(copy, segment_size=SEGMENT, metadata=b"meta")
    last, first = wal.last_index(), wal.first_index()
    assert last >= known
    assert wal.hard_state.commit <= last
    images = b"".join(wal.images(i, i + 1, 1) for i in range(first, last + 1))
    assert images == b"".join(image(i, 1, 700) for i in range(first, last + 1))
    wal.close()
    shutil.rmtree(copy)


def live(folder: Path, points: str, known: int, more: dict[str, str]) -> int:
    """Let a process append to the log until it dies at a failpoint. Return the highest index that it reported."""
    done = subprocess.run(
        [sys.executable, "-c", CHILD, str(folder), "", str(TESTS)],
        env={**os.environ, **more, "METASTORE_FAILPOINTS": points},
        stdout=subprocess.PIPE,
        timeout=60,
        check=False,
    )
    assert done.returncode == -9
    return max([known, *(int(line) for line in done.stdout.split())])


DEATHS = [
    "wal.before_write=panic@7",
    "wal.after_write=panic@130",
    "wal.before_sync=panic@50",
    "wal.after_sync=panic@140",
    "wal.segment=panic@9",
    "wal.segment=panic@2",
    "wal.segment=panic@1",
]


@pytest.mark.parametrize("points", DEATHS)
def test_sudden_death_loses_nothing_reported_and_invents_nothing(folder: Path, points: str) -> None:
    """SIGKILL comes at every step of a group and of a segment change, three lives in a row."""
    folder.parent.mkdir(parents=True)
    known = 0
    for _ in range(3):
        known = live(folder, points, known, {})
        check_life(folder, folder.with_name("copy"), known)


@pytest.mark.parametrize("points", DEATHS[1:5])
def test_a_power_cut_loses_nothing_reported(folder: Path, tmp_path: Path, points: str) -> None:
    """The same, but only synced bytes and synced names are left for the next life."""
    library = powercut.build(tmp_path)
    folder.parent.mkdir(parents=True)
    known = 0
    for turn in range(2):
        copy = tmp_path / f"synced{turn}"
        more = dict(powercut.environment(library, folder.parent, copy))
        known = live(folder, points, known, more)
        after = folder.parent / f"after{turn}"
        powercut.rebuild(folder, copy, after)
        check_life(after, tmp_path / "check", known)
        shutil.rmtree(folder)
        shutil.copytree(after, folder)
