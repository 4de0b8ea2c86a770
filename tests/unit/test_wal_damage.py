"""Damage to the log: every byte flipped, every length cut, segments missing or swapped. Each case states what it
expects.

The log in these tests has three segments. Segment 1 is full, with slack behind its end. Segment 2 has proven groups,
the unproven last group, and zeros. Segment 3 is prepared and not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
from support.waldisk import Files, Log, Picture, image, name, recovered, reopened

from metastore._core.crc import checksum
from metastore._core.entry import HardState
from metastore._core.wal_records import encode_header, make_generation, records
from metastore.errors import DamagedData
from metastore.storage.wal import Wal

SIZE = 1536


@dataclass
class Sample:
    """The log described above. `last_group` is the offset of the last group in segment 2; `ends` has the ends of
    records."""

    log: Log
    generations: list[int]
    ends: list[int]
    last_group: int
    before_last: Picture

    def copy(self) -> Files:
        return {generation: bytearray(data) for generation, data in self.log.files.items()}


def build(*, stale: bool = False) -> Sample:
    log = Log(SIZE, stale=stale)
    index = 0
    while len(log.files) < 2 or log.writer.position < 600:
        index += 1
        log.append([image(index, 1, 61)], (1, 1, index - 1))
        log.flush()
    before = log.live.copy()
    last_group = log.writer.position
    log.append([image(index + 1, 2, 33), image(index + 2, 2, 40)], (2, 1, index))
    log.flush()
    spare = log.generation(3)
    log.files[spare] = log.blank(spare)
    generations = sorted(log.files)
    ends = []
    for generation in generations[:2]:
        offset, *_, size = records(log.files[generation], generation)[-1]
        ends.append(offset + size)
    assert ends[0] < SIZE, "there is slack behind the first segment's end"
    return Sample(log, generations, ends, last_group, before)


def record_at(sample: Sample, which: int, offset: int) -> tuple[int, str]:
    """Return offset and kind of the record that holds this byte."""
    generation = sample.generations[which]
    return [(at, kind) for at, kind, *_ in records(sample.log.files[generation], generation) if at <= offset][-1]


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_byte_of_the_full_segment_flipped(flip: int, stale: bool) -> None:
    """Expected: refused with the file and the offset of the record; behind the stated end there is no effect."""
    sample = build(stale=stale)
    generation = sample.generations[0]
    for offset in range(SIZE):
        files = sample.copy()
        files[generation][offset] ^= flip
        if offset >= sample.ends[0]:
            assert reopened(files)[0] == sample.log.live, offset
            continue
        with pytest.raises(DamagedData) as failure:
            recovered(files)
        where = 0 if offset < 64 else record_at(sample, 0, offset)[0]
        assert failure.value.text.startswith(f"{name(generation)}: offset {where}: "), (offset, failure.value.text)


@pytest.mark.parametrize("stale", [False, True])
@pytest.mark.parametrize("flip", [0x01, 0x80, 0xFF])
def test_every_byte_of_the_last_segment_flipped(flip: int, stale: bool) -> None:
    """Expected: header and proven groups are refused; the last group is cut at the bad record; behind it there is no
    effect."""
    sample = build(stale=stale)
    generation = sample.generations[1]
    for offset in range(SIZE):
        files = sample.copy()
        files[generation][offset] ^= flip
        if offset >= sample.ends[1]:
            assert reopened(files)[0] == sample.log.live, offset
        elif offset < sample.last_group:
            with pytest.raises(DamagedData) as failure:
                recovered(files)
            where = 0 if offset < 64 else record_at(sample, 1, offset)[0]
            assert failure.value.text.startswith(f"{name(generation)}: offset {where}: "), (offset, failure.value.text)
        else:
            at, kind = record_at(sample, 1, offset)
            picture, _, _, result = reopened(files)
            if kind == "HARD_STATE":
                assert picture == sample.before_last
            else:
                first = at == max(at for at, k, *_ in records(sample.log.files[generation], generation) if k == "ENTRY")
                assert len(picture.entries) == len(sample.before_last.entries) + (1 if first else 0)
            # A last record whose generation changed proves nothing any more (FORMATS, "What cannot be told apart").
            last_record = offset >= sample.ends[1] - 48 - 72
            silent = last_record and 16 <= offset - at < 24
            assert [(cut.name, cut.offset) for cut in result.cuts] == ([] if silent else [(name(generation), at)])


def test_every_byte_of_the_prepared_segment_flipped() -> None:
    """Expected: a changed header is refused, because it was synced before the file had its name; the rest has no
    effect."""
    sample = build()
    generation = sample.generations[2]
    for offset in range(SIZE):
        files = sample.copy()
        files[generation][offset] ^= 0x40
        if offset < 64:
            with pytest.raises(DamagedData, match=f"{name(generation)}: offset 0: segment header"):
                recovered(files)
        else:
            assert reopened(files)[0] == sample.log.live, offset


def test_every_length_of_the_full_segment() -> None:
    """Expected: refused below the end that the next segment states; above it there is no effect."""
    sample = build()
    generation = sample.generations[0]
    for length in range(SIZE):
        files = sample.copy()
        del files[generation][length:]
        if length >= sample.ends[0]:
            assert reopened(files)[0] == sample.log.live, length
        else:
            with pytest.raises(DamagedData, match=name(generation)):
                recovered(files)


@pytest.mark.parametrize("which", [1, 2])
def test_every_length_of_the_last_and_the_prepared_segment(which: int) -> None:
    """Expected: refused, because a segment in use is never shorter than it was made."""
    sample = build()
    generation = sample.generations[which]
    for length in range(SIZE):
        files = sample.copy()
        del files[generation][length:]
        with pytest.raises(DamagedData, match=f"{name(generation)}: offset [0-9]+: .*cut off"):
            recovered(files)


def test_a_longer_last_segment_is_unaffected() -> None:
    sample = build()
    sample.log.files[sample.generations[1]].extend(bytes(100))
    assert reopened(sample.log.files)[0] == sample.log.live


def test_a_missing_segment_is_refused_and_named() -> None:
    sample = build()
    for lost in (0, 1):
        files = sample.copy()
        del files[sample.generations[lost]]
        if lost == 0:
            with pytest.raises(DamagedData, match=f"{name(sample.generations[1])}: offset 64: the segment before"):
                recovered(files)
        else:
            with pytest.raises(DamagedData, match=f"{name(sample.generations[2])}: .*segment number 2 .* is missing"):
                recovered(files)
            # Without a prepared one either, segment 1 looks like a log that was never written further (FORMATS).
            del files[sample.generations[2]]
            assert reopened(files)[0].last < sample.log.live.last
    only_spare = {sample.generations[2]: sample.log.files[sample.generations[2]]}
    with pytest.raises(DamagedData, match="first record of the log is damaged"):
        recovered(only_spare)


def test_a_missing_segment_in_the_middle_is_refused() -> None:
    log = Log(1024)
    for index in range(1, 40):
        log.append([image(index, 1, 80)])
        log.flush()
    generations = sorted(log.files)
    for lost in generations[:-1]:
        files = {g: d for g, d in log.files.items() if g != lost}
        with pytest.raises(DamagedData, match=name(generations[generations.index(lost) + 1])):
            recovered(files)


def test_swapped_and_foreign_segments_are_refused() -> None:
    sample = build()
    first, second, _ = sample.generations
    files = sample.copy()
    files[first], files[second] = files[second], files[first]
    with pytest.raises(DamagedData, match="segment header is of generation"):
        recovered(files)
    other = Log(SIZE, seed=99)
    other.append([image(1)])
    other.flush()
    foreign = max(other.files)
    assert foreign >> 32 == 1
    with pytest.raises(DamagedData, match="two segments have the same number"):
        recovered({**sample.copy(), foreign: other.files[foreign]})


def test_a_segment_of_another_log_with_a_later_number_does_not_hide_this_one() -> None:
    sample = build()
    other = Log(SIZE, seed=99)
    for index in range(1, 20):
        other.append([image(index, 1, 80)])
        other.flush()
    foreign = sorted(other.files)[1]
    files = {sample.generations[0]: sample.log.files[sample.generations[0]], foreign: other.files[foreign]}
    with pytest.raises(DamagedData, match=name(sample.generations[0])):
        recovered(files)


def test_a_lost_record_in_the_middle_breaks_the_chain() -> None:
    """A proven record is replaced by the bytes that follow it. Every CRC is right, and only the chain reveals it."""
    sample = build()
    generation = sample.generations[0]
    data = sample.log.files[generation]
    at, *_, size = records(data, generation)[4]
    files = sample.copy()
    files[generation][at:-size] = data[at + size :]
    with pytest.raises(DamagedData, match=f"{name(generation)}: offset {at}: record is damaged"):
        recovered(files)


def test_a_segment_whose_end_differs_from_what_the_next_one_follows_on_is_refused() -> None:
    """The two logs have the same generations and sizes, but other values. Every record is right in itself."""
    logs = []
    for term in (1, 2):
        log = Log(SIZE)
        for index in range(1, 20):
            log.append([image(index, term, 80)])
            log.flush()
        logs.append(log)
    first, second = sorted(logs[0].files)[:2]
    assert sorted(logs[1].files)[:2] == [first, second]
    files = {**logs[0].files, first: logs[1].files[first]}
    with pytest.raises(DamagedData, match=f"last record is not the one that {name(second)} follows on"):
        recovered(files)


def test_a_version_from_the_future_is_named() -> None:
    sample = build()
    generation = sample.generations[1]
    files = sample.copy()
    header = bytearray(encode_header(generation, SIZE))
    header[8] = 9
    header[60:64] = checksum(bytes(header[:60])).to_bytes(4, "little")
    files[generation][:64] = header
    with pytest.raises(DamagedData, match="version 9, known is 1"):
        recovered(files)


def test_a_record_inside_a_value_is_not_taken_for_one() -> None:
    """A client stores the log's own bytes. They carry another generation, so they prove nothing."""
    log = Log(8192)
    log.append([image(1)])
    log.flush()
    log.append([image(2, 1, 200)])
    (group,) = log.flush()
    other = Log(8192, seed=5)
    for index in range(1, 9):
        other.append([image(index)])
        other.flush()
    stolen = bytes(other.files[max(other.files)][64:900])
    files = {g: bytearray(d) for g, d in log.files.items()}
    generation = max(files)
    files[generation][group.end : group.end + len(stolen)] = stolen
    picture, _, _, recovered = reopened(files)
    assert picture == log.live
    assert recovered.cuts == []


def on_disk(folder: Path, files: Files) -> dict[str, bytes]:
    folder.mkdir()
    for generation, data in files.items():
        (folder / name(generation)).write_bytes(data)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_refused_start_changes_nothing_on_disk(tmp_path: Path) -> None:
    sample = build()
    sample.log.files[sample.generations[0]][200] ^= 1
    before = on_disk(tmp_path / "wal", sample.log.files)
    with pytest.raises(DamagedData, match=name(sample.generations[0])) as failure:
        Wal.open(tmp_path / "wal", segment_size=65536)
    assert str(tmp_path) in failure.value.text
    assert {path.name: path.read_bytes() for path in (tmp_path / "wal").iterdir()} == before


def test_what_is_cut_is_copied_aside_and_reported(tmp_path: Path) -> None:
    sample = build()
    generation = sample.generations[1]
    at = record_at(sample, 1, sample.ends[1] - 4)[0]
    sample.log.files[generation][sample.ends[1] - 4] ^= 1
    on_disk(tmp_path / "wal", sample.log.files)
    wal = Wal.open(tmp_path / "wal", segment_size=65536)
    (line,) = wal.report
    assert f"{name(generation)}: cut at offset {at}" in line
    copy = tmp_path / "wal" / f"cut-{generation:016x}-{at}.bin"
    assert str(copy) in line
    assert copy.read_bytes() == sample.log.files[generation][at : sample.ends[1]]
    assert wal.last_index() == sample.log.live.last - 1
    assert wal.hard_state == HardState(2, 1, sample.before_last.last)
    wal.close()
    again = Wal.open(tmp_path / "wal", segment_size=65536)
    assert again.report == []
    assert again.last_index() == sample.log.live.last - 1
    again.close()


def test_an_unfinished_first_group_of_a_segment_is_copied_aside(tmp_path: Path) -> None:
    sample = build()
    spare = sample.generations[2]
    torn = Log(SIZE, seed=1)
    generation = max(torn.files)
    assert make_generation(1, generation & 0xFFFFFFFF) == generation
    # A START record of this very segment with a wrong sum.
    sample.log.files[spare][64 : 64 + 48] = torn.files[generation][64 : 64 + 48]
    sample.log.files[spare][64 + 16 : 64 + 24] = spare.to_bytes(8, "little")
    on_disk(tmp_path / "wal", sample.log.files)
    wal = Wal.open(tmp_path / "wal", segment_size=65536)
    assert len(wal.report) == 1
    assert "first group of the segment was not finished" in wal.report[0]
    assert wal.last_index() == sample.log.live.last
    assert not (tmp_path / "wal" / name(spare)).exists()
    wal.close()
