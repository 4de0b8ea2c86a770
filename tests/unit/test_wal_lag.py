"""The log that reports entries before they are synced: its bounds, its order, and what a power cut leaves of it.

The power cuts here keep any of the blocks that were written since the last sync: several groups, in the segment in use
and never beyond it, because a segment is begun only when the one before is synced.
"""

from __future__ import annotations

import random
import select
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support.waldisk import METADATA, Files, Log, Picture, image, name, reopened
from support.waldriving import wait

from metastore._core.entry import Entry, HardState, encode_entry
from metastore._core.wal_records import Group, records
from metastore._core.wal_scan import create
from metastore.errors import DamagedData, DiskFailed
from metastore.failpoints import Failpoints
from metastore.storage.wal import Lag, Wal

SEGMENT = 65536


class Lagging(Log):
    """A log on bytes in memory whose groups are written one by one and synced now and then. `platter` holds the synced
    bytes."""

    def __init__(self, size: int = 4096, *, seed: int = 0, stale: bool = False, max_group: int = 1 << 20) -> None:
        super().__init__(size, seed=seed, stale=stale)
        self.files.clear()
        self.steps.clear()
        generation = self.generation(1)
        data, self.writer = create(generation, size, METADATA, self.plan, lagging=True, max_group=max_group)
        self.files[generation] = self.blank(generation, data)
        self.platter: Files = {}
        self.last: Group | None = None
        self.synced = self.writer.group
        self.written_end = (generation, self.writer.position)
        self.note()
        self.sync()

    def plan(self, need: int) -> tuple[int, int]:
        generation, size = super().plan(need)
        if hasattr(self, "platter"):
            self.platter[generation] = bytearray(self.files[generation])
        return generation, size

    def write(self, group: Group, files: Files | None = None) -> None:
        if files is None and group.generation != self.written_end[0]:
            self.sync()
        super().write(group, files)
        if files is None:
            self.written_end = (group.generation, group.end)

    def sync(self) -> None:
        """Let everything that is written reach the platter."""
        self.platter = {generation: bytearray(data) for generation, data in self.files.items()}
        self.synced = self.written
        self.writer.synced(self.written_end[0], self.synced, self.written_end[1])

    def cut(self, keep: Callable[[int, int], bool], block: int = 512) -> Files:
        """Return the disk after a power cut. Of the blocks written since the last sync it has those for which
        `keep(generation, offset)` is true."""
        after = {generation: bytearray(data) for generation, data in self.platter.items()}
        for generation, data in self.files.items():
            for offset in range(0, len(data), block):
                if data[offset : offset + block] != after[generation][offset : offset + block]:
                    if keep(generation, offset):
                        after[generation][offset : offset + block] = data[offset : offset + block]
        return after

    def unsynced_blocks(self, block: int = 512) -> list[tuple[int, int]]:
        """Return (generation, offset) of the blocks that a power cut may take."""
        blocks: list[tuple[int, int]] = []
        self.cut(lambda generation, offset: bool(blocks.append((generation, offset))), block)
        return blocks

    def allowed(self) -> list[Picture]:
        """Return what a power cut may leave: everything that is synced, and a beginning of what is written."""
        done = [picture for group, picture in self.steps if group <= self.synced]
        later = [picture for group, picture in self.steps if self.synced < group <= self.written]
        return [picture.clamped() for picture in [done[-1], *later]]


def window(groups: int, size: int = 8192) -> Lagging:
    """Return a log with some synced groups and `groups` that are written and not synced."""
    log = Lagging(size)
    for index in range(1, 5):
        log.append([image(index, 1, 90)], (1, 1, index - 1))
        log.flush()
    log.sync()
    for index in range(5, 5 + groups):
        log.append([image(index, 1, 100 + 37 * (index % 5))], (1, 1, index - 1))
        log.flush()
    return log


def test_records_prove_only_what_was_synced() -> None:
    log = window(5)
    ((generation, data),) = log.files.items()
    groups = [(group, synced) for _, _, group, synced, _ in records(data, generation)]
    # Two groups of the new log, four that were synced at once, five that were not.
    assert dict(groups) == {
        1: 0, 2: 1, 3: 2, 4: 2, 5: 2, 6: 2, 7: 6, 8: 6, 9: 6, 10: 6, 11: 6,
    }  # fmt: skip


@pytest.mark.parametrize("block", [64, 512])
def test_any_missing_block_of_any_unsynced_group_cuts_there(block: int) -> None:
    log = window(8)
    blocks = log.unsynced_blocks(block)
    assert len(blocks) > 4
    lengths = []
    for lost in blocks:
        picture, after, *_ = reopened(log.cut(lambda g, o, lost=lost: (g, o) != lost, block), size=8192)
        assert picture in log.allowed(), lost
        assert reopened(after, size=8192, seed=2)[0] == picture
        lengths.append(len(picture.entries))
    assert lengths == sorted(lengths) and lengths[0] == 4 and lengths[-1] > 8
    for count in range(len(blocks) + 1):
        first = set(blocks[:count])
        assert reopened(log.cut(lambda g, o, first=first: (g, o) in first, block), size=8192)[0] in log.allowed()


def test_every_byte_of_the_unsynced_groups_flipped() -> None:
    """Damage there looks like an unfinished write; before it the start is refused."""
    log = window(4)
    generation = max(log.files)
    begin = log.writer.position - len(log.unsynced_blocks(8)) * 8
    offsets = [offset for offset, *_ in records(log.files[generation], generation)]
    for offset in range(64, log.writer.position):
        files = {g: bytearray(d) for g, d in log.files.items()}
        files[generation][offset] ^= 0x10
        bad = max(at for at in offsets if at <= offset)
        if bad >= begin:
            picture, _, _, recovered = reopened(files, size=8192)
            assert picture in log.allowed() and picture != log.live.clamped()
            assert [cut.offset for cut in recovered.cuts] in ([bad], [])
        else:
            # Bytes that a later record proves: all except the end of the last synced group, which has none behind it.
            with pytest.raises(DamagedData, match=name(generation)):
                reopened(files, size=8192)


@pytest.mark.parametrize("stale", [False, True])
def test_a_window_that_begins_with_a_new_segment(stale: bool) -> None:
    """Its START is not synced either. Without it, the segment before, which is synced, is the end of the log."""
    log = Lagging(1536, stale=stale)
    index = 0
    while len(log.files) < 2 or log.written_end[0] == min(log.files):
        index += 1
        log.append([image(index, 1, 90)], (1, 1, index - 1))
        log.flush()
    assert log.synced == log.written - 1, "the segment before was synced when this one was begun"
    for more in range(1, 4):
        log.append([image(index + more, 1, 90)], (1, 1, index + more - 1))
        log.flush()
    chance = random.Random(4)
    seen = set()
    for _ in range(400):
        share = chance.random()
        picture, after, *_ = reopened(log.cut(lambda *_, share=share: chance.random() < share, 64), size=1536)
        assert picture in log.allowed()
        assert reopened(after, size=1536, seed=3)[0] == picture
        seen.add(len(picture.entries))
    assert len(seen) == 5


def test_random_histories_survive_a_power_cut_at_a_random_place() -> None:
    for seed in range(300):
        chance = random.Random(seed)
        log = Lagging(2048, seed=seed, stale=chance.random() < 0.5, max_group=chance.choice((256, 1 << 20)))
        term, last, commit = 1, 0, 0
        for _ in range(chance.randint(1, 30)):
            what = chance.random()
            if what < 0.2 and last > commit:
                term += 1
                last = chance.randint(commit + 1, last)  # entries from here on are overwritten
                log.append([image(last, term, chance.randint(20, 300))], (term, 0, commit))
            elif what < 0.3 and commit > log.live.snapshot[0]:
                index = chance.randint(log.live.snapshot[0] + 1, commit)
                log.snapshot(index, log.writer.state.term(index), b"conf")
                assert [group.firm for group in log.flush()][-1]
                log.sync()
                continue
            else:
                some = range(last + 1, last + 1 + chance.randint(1, 3))
                commit = chance.randint(commit, last)
                last = some[-1]
                log.append([image(i, term, chance.randint(20, 300)) for i in some], (term, 0, commit))
            firm = [group.firm for group in log.flush()]
            if any(firm) or chance.random() < 0.2:
                log.sync()
        share = chance.random()
        files = log.cut(lambda *_, chance=chance, share=share: chance.random() < share, chance.choice((64, 512)))
        picture, after, *_ = reopened(files, size=2048, seed=seed, rewrite=chance.choice((0, 1 << 20)))
        assert picture in log.allowed(), seed
        assert reopened(after, size=2048, seed=seed + 1)[0] == picture


def test_what_is_more_than_entries_and_a_commit_index_is_firm() -> None:
    log = Lagging()

    def firm() -> list[bool]:
        return [group.firm for group in log.flush()]

    log.append([image(1)], (1, 0, 0))
    assert firm() == [True], "a new term"
    log.append([image(2)], (1, 0, 1))
    assert firm() == [False]
    log.append([], (1, 2, 1))
    assert firm() == [True], "a vote"
    log.append([image(3), bytes(encode_entry(Entry(1, 4, 1, b"change")))])
    assert firm() == [True], "a membership change"
    log.append([image(5)], (1, 2, 4))
    assert firm() == [False]
    log.snapshot(2, 1, b"")
    assert firm() == [True], "a snapshot position"
    log.sync()
    log.writer.mark()
    assert firm() == [True]
    log = Lagging(max_group=1)
    log.append([image(1), image(2), image(3)], (1, 0, 0))
    groups = log.flush()
    assert len(groups) > 1 and groups[-1].firm, "it is the last group of an append that stands for it"


# ---- on a real disk


def put(wal: Wal, first: int, count: int, size: int = 100) -> None:
    """Append `count` entries, one append each, and wait until they are reported; the number is the index."""
    for index in range(first, first + count):
        wal.append(index, image(index, 1, size), HardState(1, 1, index - 1))
        wal.submit()
        wait(wal, lambda index=index: wal.durable >= index)


def opened(folder: Path, points: Failpoints | None = None, interval: float = 60.0, max_bytes: int = 1 << 20) -> Wal:
    return Wal.open(
        folder, segment_size=SEGMENT, metadata=b"meta", failpoints=points, lag=Lag(interval, max_bytes)
    )  # fmt: skip


def test_entries_are_reported_when_written_and_synced_by_the_clock(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 1)
    syncs = wal.stats()["syncs"]
    assert syncs == 1 and wal.unsynced == (0, 0.0), "the first one brought a new term"
    put(wal, 2, 3)
    assert wal.stats()["syncs"] == syncs and wal.unsynced[0] > 300
    assert wal.images(2, 5, 10**6) == b"".join(image(i, 1, 100) for i in (2, 3, 4)), "they can be read"
    wal.close()
    wal = opened(folder, interval=0.05)
    syncs = wal.stats()["syncs"]
    put(wal, 5, 1)
    wait(wal, lambda: wal.unsynced[0] == 0)
    assert wal.stats()["syncs"] == syncs + 1
    wal.close()


def test_a_kill_takes_nothing_that_was_reported(folder: Path, tmp_path: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 20)
    assert wal.unsynced[0]
    wait(wal, lambda: not wal.preparing)
    shutil.copytree(folder, tmp_path / "copy")
    again = Wal.open(tmp_path / "copy", segment_size=SEGMENT)
    assert (again.last_index(), again.report) == (20, [])
    again.close()
    wal.close()


def test_a_full_window_pushes_back(folder: Path, points: Failpoints) -> None:
    wal = opened(folder, points, max_bytes=4096)
    put(wal, 1, 1)
    points.set("wal.before_sync", "block")
    index = 1
    while wal.unsynced[0] + 700 < 4096:
        index += 1
        put(wal, index, 1, size=400)
    wal.append(index + 1, image(index + 1, 1, 1000), None)
    wal.submit()
    poller = select.poll()
    poller.register(wal.fileno(), select.POLLIN)
    while poller.poll(100):
        wal.poll()
    assert wal.durable == index and not wal.idle
    assert wal.unsynced[0] - 1100 <= 4096
    points.clear()
    wait(wal, lambda: wal.durable > index)
    assert wal.unsynced == (0, 0.0)
    wal.close()


def test_a_vote_waits_for_its_sync_and_takes_all_before_it_along(folder: Path, points: Failpoints) -> None:
    wal = opened(folder, points)
    put(wal, 1, 3)
    points.set("wal.before_sync", "block")
    wal.append(4, None, HardState(2, 3, 3))
    wal.submit()
    poller = select.poll()
    poller.register(wal.fileno(), select.POLLIN)
    while poller.poll(100):
        wal.poll()
    assert wal.durable == 3
    points.clear()
    wait(wal, lambda: wal.durable == 4)
    assert wal.unsynced == (0, 0.0)
    wal.close()


def test_a_commit_index_that_is_asked_for_waits_for_its_sync(folder: Path, points: Failpoints) -> None:
    """Its number is not a new one, so it is not reported with the appends, and earlier reported appends are synced with
    it."""
    wal = opened(folder, points)
    put(wal, 1, 3)
    assert wal.durable_commit == 0 and wal.unsynced[0]
    points.set("wal.before_sync", "block")
    wal.save_commit(HardState(1, 1, 3))
    wal.submit()
    poller = select.poll()
    poller.register(wal.fileno(), select.POLLIN)
    while poller.poll(100):
        wal.poll()
    assert (wal.durable, wal.durable_commit) == (3, 0)
    points.clear()
    wait(wal, lambda: wal.durable_commit == 3)
    assert wal.durable == 3 and wal.unsynced == (0, 0.0)
    wal.close()
    again = opened(folder)
    assert (again.durable_commit, again.hard_state.commit) == (3, 3), "what a start finds is durable"
    again.close()


def test_a_sync_that_nobody_waits_for_and_fails_is_a_failed_disk(folder: Path, points: Failpoints) -> None:
    wal = opened(folder, points, interval=0.01)
    put(wal, 1, 1)
    points.set("wal.before_sync", "error(EIO)")
    put_one = wal.append
    put_one(2, image(2, 1, 100), None)
    with pytest.raises(DiskFailed, match="sync failed"):
        wal.submit()
        wait(wal, lambda: False)
    with pytest.raises(DiskFailed):
        wal.append(3, image(3, 1, 100), None)
    with pytest.raises(DiskFailed):
        wal.submit()
    wal.close()


def test_segments_change_only_when_the_one_before_is_synced(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 1)
    syncs, segments = wal.stats()["syncs"], 1
    for index in range(2, 120):
        put(wal, index, 1, size=4000)
        used = sum(1 for path in folder.glob("*.wal") if any(path.read_bytes()[64:]))
        if used > segments:
            segments, syncs = used, syncs + 1
            assert wal.stats()["syncs"] >= syncs
            assert wal.unsynced[0] < 8000, "only the new one's bytes"
    assert segments > 4
    wal.close()
    again = opened(folder)
    assert again.last_index() == 119 and again.report == []
    again.close()


def test_closing_syncs_and_proves_all(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 5)
    wal.close()
    assert wal.unsynced == (0, 0.0)
    newest = max(path for path in folder.glob("*.wal") if any(path.read_bytes()[64:]))
    kinds = records(newest.read_bytes(), int(newest.stem, 16))
    assert kinds[-1][1] == "MARKER" and kinds[-1][3] == kinds[-2][2]


def test_an_idle_log_is_synced_and_marked_at_once(folder: Path) -> None:
    wal = opened(folder)
    put(wal, 1, 5)
    assert not wal.mark(), "first the sync"
    wait(wal, lambda: wal.idle and wal.unsynced == (0, 0.0) and wal.stats()["syncs"] == 3)
    assert not wal.mark(), "done"
    wal.close()


def test_a_caller_that_is_alone_writes_itself_and_the_thread_syncs(folder: Path) -> None:
    wal = opened(folder, interval=0.05)
    put(wal, 1, 1)
    for index in range(2, 6):
        wal.append(index, image(index, 1, 100), None)
        if wal.submit(True):
            wal.settle()
        wait(wal, lambda index=index: wal.durable >= index)
    wait(wal, lambda: wal.unsynced[0] == 0)
    wal.close()


def test_the_switch_may_change_on_the_same_data(folder: Path) -> None:
    last = 0
    for lag in (None, Lag(60.0, 1 << 20), None, Lag(0.001, 4096), Lag(60.0, 4096)):
        wal = Wal.open(folder, segment_size=SEGMENT, metadata=b"meta", lag=lag)
        assert (wal.last_index(), wal.report) == (last, [])
        wal.append(1, None, HardState(1, 1, last))
        for index in range(last + 1, last + 8):
            wal.append(index, image(index, 1, 3000), None)
            wal.submit()
            wait(wal, lambda wal=wal, index=index: wal.durable >= index)
        last += 7
        wal.close()
