"""A write-ahead log on bytes in memory: the real encoding and repair over a disk that a test can tear."""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass, field

from metastore._core.entry import Entry, HardState, decode_entries, encode_entry
from metastore._core.wal_read import Stretch
from metastore._core.wal_records import Group, Writer, encode_header, make_generation
from metastore._core.wal_scan import Recovered, create, recover, reopen

METADATA = b"member 1 of cluster 2"
Files = dict[int, bytearray]


def name(generation: int) -> str:
    """Return the name that a segment has in reports."""
    return f"{generation:016x}.wal"


def image(index: int, term: int = 1, size: int = 20) -> bytes:
    """Return an entry whose payload distinguishes it from other entries."""
    data = (f"{term}/{index}/".encode() * (size // 4 + 1))[:size]
    return bytes(encode_entry(Entry(term, index, 0, data)))


def recovered(files: Files, **options: int) -> Recovered:
    """Return what `recover` says about these files."""
    result = recover([(name(generation), generation, bytes(data)) for generation, data in files.items()], **options)
    assert result is not None
    return result


@dataclass
class Picture:
    """The contents of a log in a form that can be compared."""

    snapshot: tuple[int, int, bytes] = (0, 0, b"")
    hard: tuple[int, int, int] = (0, 0, 0)
    entries: list[bytes] = field(default_factory=list)

    @property
    def last(self) -> int:
        """Index of the last entry."""
        return self.snapshot[0] + len(self.entries)

    def copy(self) -> Picture:
        """Return a copy that does not change any more."""
        return Picture(self.snapshot, self.hard, list(self.entries))

    def clamped(self) -> Picture:
        """Return the picture with the commit index lowered to the last entry, as repair does."""
        return Picture(self.snapshot, (*self.hard[:2], min(self.hard[2], self.last)), list(self.entries))

    def put(self, index: int, one: bytes) -> None:
        """Append or overwrite."""
        del self.entries[index - self.snapshot[0] - 1 :]
        self.entries.append(one)

    def begin_after(self, index: int, term: int, conf: bytes) -> None:
        """Move the snapshot position."""
        first = self.snapshot[0]
        held = first < index <= self.last and decode_entries(self.entries[index - first - 1])[0].term == term
        held = held or (index, term) == self.snapshot[:2]
        self.entries = self.entries[index - first :] if held else []
        self.snapshot = (index, term, conf)


class Log:
    """A log whose groups wait in the writer until `write` puts them on the disk `files`.

    `steps` holds the picture after every record queued, with the number of its group. `stale` gives new segments the
    bytes of an old one, as recycled files have them.
    """

    def __init__(
        self, size: int = 4096, *, stale: bool = False, seed: int = 0, group_commit: bool = True,
        max_group: int = 1 << 20,
    ) -> None:  # fmt: skip
        self.size = size
        self.stale = stale
        self.random = random.Random(seed)
        self.files: Files = {}
        self.group_commit = group_commit
        self.number = 0
        self.live = Picture()
        self.steps: list[tuple[int, Picture]] = []
        generation = self.generation(1)
        data, self.writer = create(
            generation, size, METADATA, self.plan, group_commit=group_commit, max_group=max_group
        )
        self.files[generation] = self.blank(generation, data)
        self.written = self.writer.group
        self.note()

    def generation(self, number: int) -> int:
        """Return a fresh generation."""
        return int(make_generation(number, self.random.getrandbits(32)))

    def blank(self, generation: int, data: bytes = b"", size: int = 0) -> bytearray:
        """Return a prepared segment, which may be a recycled one, with `data` at its start."""
        size = max(size or self.size, len(data))
        body = bytearray(size)
        if self.stale and self.files:
            old = self.files[min(self.files)]
            body[: len(old)] = old[:size]
        begin = data or encode_header(generation, size)
        body[: len(begin)] = begin
        return body

    def plan(self, need: int) -> tuple[int, int]:
        """Return the writer's next segment. It is made at once, as the preparing thread would have done."""
        generation = self.generation((self.writer.generation >> 32) + 1)
        size = max(need, self.size)
        self.files[generation] = self.blank(generation, size=size)
        return generation, size

    def note(self) -> None:
        """Remember the picture after the record just queued."""
        self.steps.append((self.writer.group, self.live.copy()))

    def append(self, images: Iterable[bytes] = (), hard: tuple[int, int, int] | None = None, sync: bool = True) -> int:
        """Queue an append. Return its number."""
        self.number += 1
        images = list(images)
        if hard is not None:
            self.live.hard = hard
        self.writer.append(self.number, b"".join(images), HardState(*hard) if hard else None, sync)
        self.note()
        for one in images:
            self.live.put(decode_entries(one)[0].index, one)
            self.note()
        return self.number

    def snapshot(self, index: int, term: int, conf: bytes) -> None:
        """Queue a snapshot position."""
        self.number += 1
        self.live.begin_after(index, term, conf)
        self.writer.snapshot_position(self.number, index, term, conf)
        self.note()

    def write(self, group: Group, files: Files | None = None) -> None:
        """Put a whole group on the disk."""
        target = (self.files if files is None else files)[group.generation]
        target[group.offset : group.end] = group.tobytes()
        if files is None:
            self.written = group.group

    def flush(self) -> list[Group]:
        """Write all groups that must be synced, and return them."""
        done = []
        while (group := self.writer.take()) is not None:
            self.write(group)
            done.append(group)
        return done

    def torn(self, group: Group, blocks: Iterable[int], block: int) -> Files:
        """Return the disk after a crash while `group` was being written: only those blocks of the file reached it."""
        after = {generation: bytearray(data) for generation, data in self.files.items()}
        self.write(group, after)
        torn = {generation: bytearray(data) for generation, data in self.files.items()}
        target, source = torn[group.generation], after[group.generation]
        if len(target) < len(source):
            target.extend(bytes(len(source) - len(target)))
        for number in blocks:
            target[number * block : (number + 1) * block] = source[number * block : (number + 1) * block]
        return torn

    @staticmethod
    def blocks(group: Group, block: int) -> range:
        """Return the blocks of the file that a group touches."""
        return range(group.offset // block, (group.end + block - 1) // block)


def reopened(files: Files, size: int = 4096, seed: int = 1, **options: int) -> tuple[Picture, Files, Writer, Recovered]:
    """Open the log in these files and do what the disk side does then. Return (picture, files after it, writer,
    recovered)."""
    result = recovered(files, **options)
    generation = (result.max_number + 1) << 32 | random.Random(seed).getrandbits(32)

    def plan(need: int) -> tuple[int, int]:
        raise AssertionError(f"segment of {need} bytes asked for")

    data, writer = reopen(result, generation, size, plan)
    body = bytearray(max(size, len(data)))
    body[: len(data)] = data
    after = {generation: body}
    for used in result.used:
        if used != result.last_generation:
            after[used] = bytearray(files[used])
        elif not result.superseded:
            after[used] = bytearray(files[used][: result.cut_at])
    state = writer.state
    picture = Picture(
        (state.snapshot_index, state.snapshot_term, state.conf_state),
        (state.hard_term, state.hard_vote, state.hard_commit),
    )
    assert state.metadata == METADATA
    for index in range(state.first_index, state.last_index + 1):
        number, offset, _ = state.where(index)
        segment = next(g for g in after if g >> 32 == number)
        picture.entries.append(Stretch(state, index, index + 1, 0).pick(after[segment], 0, index, index + 1))
        assert offset % 8 == 0
    return picture, after, writer, result
