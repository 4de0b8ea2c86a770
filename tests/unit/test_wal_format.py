"""The log's bytes: what is written is read back, over segments, overwrites, snapshots, restarts and crashes."""

from __future__ import annotations

import random
import struct
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.waldisk import Log, Picture, image, recovered, reopened

from metastore._core.crc import checksum
from metastore._core.entry import Entry, HardState, encode_entry
from metastore._core.wal_read import Stretch
from metastore._core.wal_records import LogState, make_generation, records
from metastore.errors import DamagedData, FormatError

MARK, ENTRY, START, HARD, SNAP = "MARKER", "ENTRY", "START", "HARD_STATE", "SNAPSHOT"


def kinds(log: Log) -> list[list[str]]:
    return [[kind for _, kind, *_ in records(log.files[g], g)] for g in sorted(log.files)]


def test_a_new_log_is_a_start_record_and_a_marker_that_proves_it() -> None:
    log = Log()
    assert kinds(log) == [[START, MARK]]
    picture, *_ = reopened(log.files)
    assert picture == Picture()


def test_bytes_of_header_and_record_are_those_of_the_format() -> None:
    log = Log(4096)
    log.append([image(1)], (7, 8, 0))
    log.flush()
    ((generation, data),) = log.files.items()
    assert data[:8] == b"MSWAL\r\n\x1a"
    assert struct.unpack("<IIQQ", data[8:32]) == (1, 0, generation, 4096)
    assert struct.unpack("<I", data[60:64])[0] == checksum(bytes(data[:60]))
    offset, kind, group, synced, size = records(data, generation)[-1]
    assert (kind, group, synced, size) == (ENTRY, 3, 2, 48 + 56)
    before = records(data, generation)[-2][0]
    crc, length, chain, kind_byte, zero, gen = struct.unpack("<IIIB3sQ", data[offset : offset + 24])
    assert (length, kind_byte, zero, gen) == (52, 2, bytes(3), generation)
    assert chain == struct.unpack("<I", data[before : before + 4])[0]
    assert crc == checksum(bytes(data[offset + 4 : offset + 52]))
    assert data[offset + 48 : offset + 100] == image(1)
    assert struct.unpack("<I", data[offset + 40 : offset + 44])[0] * 8 == before


def test_hard_state_stands_before_the_entries_of_its_append() -> None:
    log = Log()
    log.append([image(1), image(2)], (1, 1, 0))
    log.flush()
    assert kinds(log) == [[START, MARK, HARD, ENTRY, ENTRY]]


def test_what_waits_becomes_one_group_and_without_group_commit_many() -> None:
    for together, count in ((True, 1), (False, 3)):
        log = Log(group_commit=together)
        for index in (1, 2, 3):
            log.append([image(index)])
        assert len(log.flush()) == count
        assert reopened(log.files)[0] == log.live


def test_an_append_that_needs_no_sync_rides_with_the_next_one() -> None:
    log = Log()
    assert log.append([], (1, 1, 0), sync=False) == 1
    assert log.flush() == []
    assert log.writer.next_before() == 1, "nothing that must be synced waits"
    log.append([image(1)])
    log.append([], (1, 1, 1), sync=False)
    assert log.writer.next_before() == 1
    (group,) = log.flush()
    assert (group.before, group.number) == (1, 2)
    assert log.writer.next_before() == 3
    assert reopened(log.files)[0] == log.live


def test_an_append_of_nothing_makes_no_group() -> None:
    log = Log()
    log.append([])
    assert log.flush() == []
    assert log.writer.next_before() == 1


def test_segments_are_chained_and_each_begins_with_the_state_before_it() -> None:
    log = Log(1024)
    for index in range(1, 30):
        log.append([image(index, 1, 100)], (1, 1, index - 1))
        log.flush()
    assert len(log.files) > 3
    assert reopened(log.files)[0] == log.live
    oldest, second = sorted(log.files)[:2]
    end = sum(records(log.files[oldest], oldest)[-1][i] for i in (0, 4))
    start = log.files[second][64 + 48 :]
    assert struct.unpack("<QQ", start[:16]) == (1, end)
    assert struct.unpack("<I", log.files[second][64 + 8 : 64 + 12]) == struct.unpack(
        "<I", log.files[oldest][records(log.files[oldest], oldest)[-1][0] :][:4]
    )


def test_an_append_larger_than_a_segment_is_spread_and_one_large_entry_makes_it_grow() -> None:
    log = Log(1024)
    log.append([image(index, 1, 200) for index in range(1, 12)])
    log.append([image(12, 1, 5000)])
    log.append([image(13)])
    log.flush()
    assert len(log.files) > 4
    assert reopened(log.files)[0] == log.live


def test_an_entry_at_or_below_the_last_one_overwrites_the_suffix() -> None:
    log = Log(1024)
    log.append([image(index, 1) for index in range(1, 9)], (1, 1, 2))
    log.append([image(4, 2), image(5, 2)], (2, 0, 2))
    log.flush()
    log.append([image(3, 3, 700)], (3, 3, 2))
    log.flush()
    picture = reopened(log.files)[0]
    assert picture == log.live
    assert picture.entries == [image(1), image(2), image(3, 3, 700)]


def test_a_gap_or_a_falling_term_is_refused() -> None:
    log = Log()
    log.append([image(1, 5)])
    with pytest.raises(FormatError, match="entry 3 does not follow"):
        log.writer.append(9, image(3, 5), None)
    with pytest.raises(FormatError, match="entry 2 has term 4"):
        log.writer.append(9, image(2, 4), None)
    with pytest.raises(ValueError, match="append 8 after append 9"):
        log.writer.append(9, None, None)
        log.writer.append(8, None, None)
    with pytest.raises(FormatError):
        log.writer.append(10, b"x" * 40, None)


def test_snapshot_position_drops_what_is_before_it_and_survives() -> None:
    log = Log(1024)
    log.append([image(index, 1, 60) for index in range(1, 20)], (1, 1, 15))
    log.snapshot(10, 1, b"conf")
    log.append([image(20)])
    log.flush()
    picture, *_ = reopened(log.files)
    assert picture == log.live
    assert picture.snapshot == (10, 1, b"conf")
    assert picture.entries[0] == image(11, 1, 60)


@pytest.mark.parametrize(("index", "term"), [(50, 3), (5, 2)])
def test_an_installed_snapshot_replaces_a_log_that_does_not_hold_its_entry(index: int, term: int) -> None:
    log = Log()
    log.append([image(i) for i in range(1, 9)], (1, 1, 0))
    log.snapshot(index, term, b"c")
    log.append([image(index + 1, 3)], (3, 0, index))
    log.flush()
    picture, *_ = reopened(log.files)
    assert picture == log.live
    assert picture.entries == [image(index + 1, 3)]


def test_released_segments_are_not_missed() -> None:
    log = Log(1024)
    for index in range(1, 40):
        log.append([image(index, 1, 100)], (1, 1, index - 1))
    log.snapshot(30, 1, b"conf")
    log.flush()
    needed = log.writer.state.where(31)[0]
    files = {g: data for g, data in log.files.items() if g >> 32 >= needed}
    assert len(files) < len(log.files)
    assert reopened(files)[0] == log.live
    only_last = {g: data for g, data in files.items() if g >> 32 > needed}
    with pytest.raises(DamagedData, match="the segment before this one is missing, with entries up to"):
        recovered(only_last)


def test_many_restarts_leave_one_short_segment_and_never_lose_anything() -> None:
    log = Log()
    log.append([image(1), image(2)], (4, 2, 1))
    log.flush()
    files = log.files
    for seed in range(5):
        picture, files, _, recovered = reopened(files, seed=seed)
        assert picture == log.live
        assert recovered.report == []
        assert recovered.superseded
        assert len(files) == 1


def test_a_long_last_segment_is_kept_and_only_its_unproven_tail_is_written_again() -> None:
    log = Log(8192)
    for index in range(1, 11):
        log.append([image(index, 1, 100)])
        log.flush()
    picture, files, writer, recovered = reopened(log.files, size=8192, rewrite=0)
    assert picture == log.live
    assert not recovered.superseded
    assert len(files) == 2
    assert writer.state.where(9)[0] == 1
    assert writer.state.where(10)[0] == 2, "the last group is not proven by any other"
    assert reopened(files, size=8192, rewrite=0)[0] == log.live
    assert reopened(files, size=8192)[0] == log.live


def test_after_a_marker_nothing_is_carried_over() -> None:
    log = Log(8192)
    log.append([image(1)], (1, 1, 0))
    log.flush()
    log.writer.mark()
    log.flush()
    _, files, writer, _ = reopened(log.files, size=8192, rewrite=0)
    assert writer.state.where(1)[0] == 1
    assert [kind for _, kind, *_ in records(files[max(files)], max(files))] == [START, MARK]


def test_a_marker_forces_out_what_waits_without_need() -> None:
    log = Log()
    log.append([], (1, 1, 0), sync=False)
    log.writer.mark()
    (group,) = log.flush()
    assert not group.content
    assert kinds(log) == [[START, MARK, HARD]]
    log.writer.mark()
    assert [group.content for group in log.flush()] == [False]


def test_stale_bytes_of_a_recycled_segment_are_not_read() -> None:
    log = Log(1024, stale=True)
    for index in range(1, 40):
        log.append([image(index, 1, 80)], (1, 1, index - 1))
        log.flush()
    assert len(log.files) > 4
    picture, _, _, recovered = reopened(log.files)
    assert picture == log.live
    assert recovered.cuts == []


def test_generations_carry_number_and_nonce() -> None:
    assert make_generation(3, 5) == (3 << 32) + 5
    for bad in (0, 1 << 32):
        with pytest.raises(ValueError, match="out of range"):
            make_generation(bad, 0)


def test_reads_are_planned_by_size_and_checked() -> None:
    log = Log(2048)
    log.append([image(index, 1, 100) for index in range(1, 31)])
    log.flush()
    state = log.writer.state
    assert sum(run[4] - run[3] for run in Stretch(state, 1, 31, 10**6).runs()) == 30
    assert [run[3:] for run in Stretch(state, 1, 31, 1).runs()] == [(1, 2)], "at least one"
    assert [run[3:] for run in Stretch(state, 1, 31, 2 * 132).runs()] == [(1, 3)]
    stretch = Stretch(state, 5, 7, 10**6)
    assert (stretch.first, stretch.end, stretch.term, stretch.nbytes) == (5, 7, 1, 2 * 132)
    ((number, offset, length, first, end),) = stretch.runs()
    data = next(bytes(d) for g, d in log.files.items() if g >> 32 == number)[offset : offset + length]
    assert stretch.pick(data, offset, first, end) == image(5, 1, 100) + image(6, 1, 100)
    with pytest.raises(FormatError, match="entry 6 is damaged"):
        stretch.pick(data[:-1] + b"?", offset, first, end)
    with pytest.raises(FormatError, match="entry 6 is cut off"):
        stretch.pick(data[:-1], offset, first, end)
    with pytest.raises(FormatError, match="entry 5 is cut off"):
        stretch.pick(b"", offset, first, end)
    for ask in (lambda: stretch.pick(data, offset, 4, 6), lambda: stretch.pick(data, offset, 6, 8)):
        with pytest.raises(IndexError):
            ask()
    for low, high in ((30, 32), (0, 2), (31, 32)):
        with pytest.raises(IndexError):
            Stretch(state, low, high, 1)


def test_a_stretch_knows_its_pieces_and_outlives_the_log() -> None:
    log = Log(2048)
    log.append([image(index, 1, 100) for index in range(1, 31)])
    log.flush()
    stretch = Stretch(log.writer.state, 10, 20, 10**6)
    log.append([image(12, 2, 7)])
    log.flush()
    assert (stretch.end, stretch.term, stretch.nbytes) == (20, 1, 1320)
    assert stretch.span(10, 20, 10**6) == (0, 1320)
    assert stretch.span(12, 99, 264) == (264, 528)
    assert stretch.span(12, 14, 10**6) == (264, 528)
    assert stretch.span(19, 20, 1) == (1188, 1320), "at least one"
    for low, high in ((9, 20), (20, 21), (12, 12)):
        with pytest.raises(IndexError):
            stretch.span(low, high, 1)


def test_the_log_knows_its_membership_changes() -> None:
    log = Log(2048)
    log.append([encode_entry(Entry(1, index, 2 if index == 7 else 0, b"x")) for index in range(1, 11)])
    log.flush()
    for state in (log.writer.state, reopened(log.files)[2].state):
        assert [state.has_conf_change(*ask) for ask in ((1, 7), (1, 8), (7, 8), (8, 11), (0, 99))] == [
            False, True, True, False, True,
        ]  # fmt: skip
    log.append([image(7, 2, 1)])
    assert not log.writer.state.has_conf_change(0, 99)


def test_the_log_says_where_its_end_is() -> None:
    log = Log(2048)
    log.append([image(index, 1, 100) for index in range(1, 31)])
    log.flush()
    state = log.writer.state
    with pytest.raises(IndexError):
        state.where(31)


def test_the_table_survives_growth_overwriting_and_compaction() -> None:
    log = Log(1 << 20)
    for index in range(1, 2001):
        log.append([image(index, 1, 4)])
    log.snapshot(1500, 1, b"")
    for index in range(1800, 4000):
        log.append([image(index, 2, 4)])
    log.flush()
    state: LogState = log.writer.state
    assert (state.first_index, state.last_index, state.term(1500), state.term(1799), state.term(1800)) == (
        1501,
        3999,
        1,
        1,
        2,
    )
    assert reopened(log.files, size=1 << 20)[0] == log.live


def allowed(log: Log, acked_group: int) -> list[Picture]:
    """Return the pictures that a crash may leave: after any record behind the last acknowledged group, or exactly after
    it."""
    done = [picture for group, picture in log.steps if group <= acked_group]
    later = [picture for group, picture in log.steps if group > acked_group]
    return [picture.clamped() for picture in [done[-1], *later]]


@pytest.mark.parametrize("stale", [False, True])
def test_every_subset_of_blocks_of_the_unsynced_group_gives_a_prefix(stale: bool) -> None:
    """The crash comes while the last group is written. Whichever of its blocks reached the disk, nothing acknowledged
    is lost, and a beginning of the group is left."""
    log = Log(8192, stale=stale)
    for index in range(1, 6):
        log.append([image(index, 1, 90)], (1, 1, index - 1))
        log.flush()
    acked = log.writer.group
    log.append([image(index, 2, 300) for index in range(4, 8)], (2, 1, 3))
    group = log.writer.take()
    assert group is not None
    blocks = log.blocks(group, 512)
    assert 4 <= len(blocks) <= 6
    seen = set()
    for count in range(len(blocks) + 1):
        for some in combinations(blocks, count):
            picture, *_ = reopened(log.torn(group, some, 512), size=8192)
            assert picture in allowed(log, acked), some
            seen.add(len(picture.entries))
    assert len(seen) > 2


def test_a_crash_in_the_first_group_of_a_segment_gives_a_prefix() -> None:
    log = Log(2048)
    index = 0
    while log.writer.position + 1100 < log.writer.capacity or len(log.files) < 2:
        index += 1
        log.append([image(index, 1, 90)], (1, 1, index - 1))
        log.flush()
    log.append([image(index + 1, 2, 1100)])
    log.append([image(index + 2, 2, 300)])
    second = log.writer.take()
    assert second is not None
    assert second.offset == 64, "it begins a segment"
    acked = second.group - 1
    for count in range(len(log.blocks(second, 512)) + 1):
        for some in combinations(log.blocks(second, 512), count):
            picture, *_ = reopened(log.torn(second, some, 512))
            assert picture in allowed(log, acked), some


steps = st.lists(
    st.one_of(
        st.tuples(st.just("append"), st.integers(0, 4), st.integers(1, 400), st.booleans()),
        st.tuples(st.just("overwrite"), st.integers(1, 6), st.integers(1, 3), st.booleans()),
        st.tuples(st.just("snapshot"), st.integers(0, 5), st.integers(0, 1), st.booleans()),
        st.tuples(st.just("flush"), st.just(0), st.just(0), st.just(False)),
        st.tuples(st.just("mark"), st.just(0), st.just(0), st.just(False)),
    ),
    max_size=40,
)


def play(log: Log, step: tuple[str, int, int, bool], term: list[int]) -> None:
    what, first, second, flag = step
    live = log.live
    if what == "append":
        images = [image(live.last + 1 + i, term[0], second) for i in range(first)]
        log.append(images, (term[0], 1, min(live.last, live.hard[2] + 1)) if flag else None, sync=bool(images))
    elif what == "overwrite":
        begin = max(live.last - first + 1, live.snapshot[0] + 1, live.hard[2] + 1)
        term[0] += 1
        images = [image(begin + i, term[0], 50) for i in range(second)]
        log.append(images, (term[0], 2, live.hard[2]))
    elif what == "snapshot" and live.hard[2] > live.snapshot[0]:
        index = max(live.snapshot[0], live.hard[2] - first)
        log.snapshot(index, int(log.writer.state.term(index)), b"conf" * second)
    elif what == "flush":
        log.flush()
    elif what == "mark":
        log.writer.mark()


@settings(max_examples=150, deadline=None)
@given(steps, st.integers(0, 2**32), st.sampled_from([512, 4096]), st.booleans())
def test_random_histories_survive_a_crash_at_a_random_place(
    history: list[tuple[str, int, int, bool]], seed: int, block: int, stale: bool
) -> None:
    log = Log(2048, stale=stale, seed=seed)
    rng = random.Random(seed)
    term = [1]
    for step in history:
        play(log, step, term)
    files = log.files
    groups = []
    while (group := log.writer.take()) is not None:
        groups.append(group)
    # Records that went along unsynced were never written.
    acked = log.written
    if groups:
        stop = rng.randrange(len(groups))
        for group in groups[:stop]:
            log.write(group)
        acked = groups[stop].group - 1
        blocks = [b for b in log.blocks(groups[stop], block) if rng.random() < 0.5]
        files = log.torn(groups[stop], blocks, block)
    picture, after, *_ = reopened(files, seed=seed, rewrite=rng.choice([0, 1 << 20]))
    assert picture in allowed(log, acked)
    assert reopened(after, seed=seed + 1)[0] == picture


def test_commit_above_a_torn_tail_is_lowered_and_said() -> None:
    log = Log(8192)
    log.append([image(1)], (1, 1, 0))
    log.flush()
    log.append([], (1, 1, 2), sync=False)
    log.append([image(2, 1, 900)])
    group = log.writer.take()
    assert group is not None
    picture, _, _, recovered = reopened(log.torn(group, [0], 512), size=8192)
    assert picture == Picture(hard=(1, 1, 1), entries=[image(1)])
    assert any("commit index lowered from 2 to 1" in line for line in recovered.report)


@pytest.mark.parametrize("segment", [True, False])
def test_commit_of_entries_that_went_to_the_next_group_is_no_damage_before_them(segment: bool) -> None:
    """The simulator found this: the end of a segment or group cuts an append between its hard state and its entries.
    The first part is synced, and the second is lost."""
    log = Log(1024, max_group=1024 if segment else 1)
    log.append([image(1)], (1, 1, 0))
    log.flush()
    if segment:
        log.append([image(2, 1, log.writer.capacity - log.writer.position - 72 - 3 * 80)])
        log.flush()
    first = log.live.last + 1
    log.append([image(first, 1, 300), image(first + 1)], (1, 1, first + 1))
    lost = 0
    while (group := log.writer.take()) is not None:
        blocks = log.blocks(group, 512)
        for count in range(len(blocks) + 1):
            picture = reopened(log.torn(group, blocks[:count], 512))[0]
            assert picture.hard[:2] == (1, 1) and picture.hard[2] <= picture.last
        lost += 1
        log.write(group)
    assert lost > 1, "all went into one group"
    assert reopened(log.files)[0] == log.live


def test_commit_above_the_end_in_proven_bytes_is_damage() -> None:
    log = Log()
    log.append([image(1)], (1, 1, 5))
    log.flush()
    log.append([image(2)])
    log.flush()
    with pytest.raises(DamagedData, match="entry 5 was committed, but the log ends with entry 2"):
        recovered(log.files)


def test_hard_state_of_any_kind_is_taken() -> None:
    log = Log()
    log.writer.append(1, None, HardState(1, 2, 0))
    log.flush()
    assert reopened(log.files)[0].hard == (1, 2, 0)
