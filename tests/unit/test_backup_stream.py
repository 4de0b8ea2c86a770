"""Which clients keep their places while they take backups. Files, sessions and threads are real; the clock is the
test's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import http2 as h
from support.processes import wait_until
from support.snapshotfiles import engine_of, make_raw, save
from support.talk import BIDI_PATH, Talk

from metastore import errors
from metastore.api import pb
from metastore.net.loop import Loop
from metastore.snapshots.backup_stream import CROWDED_RATE, MAX_BACKUPS, MIN_RATE, WINDOW, Backups, Sending
from metastore.snapshots.files import SnapshotStore

TIMEOUT = 4.0
SIZE = 12 << 20
CHUNK = 256 << 10


class Reader:
    """A client that takes as many bytes of its backup as the test says."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk
        self.talk = Talk(window=0)
        [request] = self.talk.feed(h.frame(h.HEADERS, h.END_HEADERS, 1, h.head(BIDI_PATH)))
        desk.backups.begin(request)
        self.sending = desk.backups.running[-1]
        self.gulp(65_535, grant=False)  # as many bytes as a server may send before the client says anything

    @property
    def taken(self) -> int:
        return len(self.talk.reader.stream(1).data)

    @property
    def ended(self) -> bool:
        self.talk.flush()
        return self.talk.reader.stream(1).reset is not None

    def gulp(self, size: int, grant: bool = True) -> None:
        """Take so many bytes at once."""
        if grant:
            more = size.to_bytes(4, "big")
            self.talk.feed(h.frame(h.WINDOW_UPDATE, 0, 0, more) + h.frame(h.WINDOW_UPDATE, 0, 1, more))
        target = self.taken + size
        for _ in range(3):
            # Take what is there before anything more comes from the disk.
            self.talk.flush()
            self.desk.backups.turn(self.desk.time)

        def done() -> bool:
            self.desk.turn()
            self.talk.flush()
            return self.taken >= target or self.ended

        wait_until(done, what="a gulp")


class Desk:
    """The backups of a member without the member."""

    def __init__(self, folder: Path) -> None:
        values = {b"k%04d" % number: os.urandom(1 << 16) for number in range(SIZE >> 16)}
        store = SnapshotStore(folder, chunk_size=CHUNK, make_codec=make_raw)
        self.info = save(store, engine_of(values))
        self.loop = Loop()
        self.time = 100.0
        self.loop.now = lambda: self.time
        self.backups = Backups(
            self.loop, fresh=lambda take: take(self.info), bad=print, header=pb.ResponseHeader, timeout=TIMEOUT
        )

    def turn(self) -> None:
        self.loop.run_once(0)
        self.backups.turn(self.time)

    def filled(self) -> None:
        """Let the bytes that are being read from the disk come."""

        def ready() -> bool:
            self.turn()
            return all(one.worker and not one.worker.waiting for one in self.backups.running)

        wait_until(ready, what="the next chunks")

    def passes(self, seconds: float) -> None:
        self.filled()
        self.time += seconds
        self.turn()

    @property
    def running(self) -> list[Sending]:
        return self.backups.running


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    one = Desk(tmp_path)
    yield one
    one.backups.stop()
    one.loop.close()


def test_four_that_take_next_to_nothing_are_ended_after_their_timeout(desk: Desk) -> None:
    readers = [Reader(desk) for _ in range(MAX_BACKUPS)]
    with pytest.raises(errors.TooManyRequests):
        Reader(desk)
    for number in range(25):
        # In their first timeout they take what a server may send before they say anything.
        assert len(desk.running) == MAX_BACKUPS or number > 10
        desk.passes(TIMEOUT / 10)
        for reader in readers:
            reader.gulp(512)
    assert not desk.running and all(reader.ended for reader in readers)
    Reader(desk)


def test_the_slowest_gives_way(desk: Desk) -> None:
    """All take enough to stay while no further client comes. When further ones come, one after the other has to go."""
    rates = [3 * MIN_RATE, 2 * MIN_RATE, 5 * MIN_RATE, 4 * MIN_RATE]
    readers = [Reader(desk) for _ in rates]
    for _ in range(11):
        desk.passes(TIMEOUT / 10)
        for reader, rate in zip(readers, rates, strict=True):
            reader.gulp(int(rate * TIMEOUT / 10))
    assert not any(reader.ended for reader in readers)
    newcomers = []
    for expected in (1, 0, 3, 2):
        newcomers.append(Reader(desk))
        assert readers[expected].ended
    assert len(desk.running) == MAX_BACKUPS and not any(one.ended for one in newcomers)
    # None of these is known to be slow yet.
    with pytest.raises(errors.TooManyRequests):
        Reader(desk)


def test_gulps_now_and_then_are_slow_as_well(desk: Desk) -> None:
    """A client takes all that is there, and more, shortly before each timeout. So it never owes for a whole timeout."""
    reader = Reader(desk)
    for _ in range(3):
        desk.passes(TIMEOUT * 0.9)
        reader.gulp(WINDOW + 2 * CHUNK)
    assert reader.sending.pace < CROWDED_RATE
    for _ in range(MAX_BACKUPS):
        Reader(desk)
    assert reader.ended


def test_those_that_take_much_keep_their_places(desk: Desk) -> None:
    """They keep their places even if they never take all that there is, and if they wait for the disk."""
    readers = [Reader(desk) for _ in range(MAX_BACKUPS)]
    for _ in range(12):
        desk.passes(TIMEOUT / 10)
        for reader in readers:
            reader.gulp(int(1.5 * CROWDED_RATE * TIMEOUT / 10))
    with pytest.raises(errors.TooManyRequests):
        Reader(desk)
    assert [one.pace > CROWDED_RATE for one in desk.running] == [True] * MAX_BACKUPS
