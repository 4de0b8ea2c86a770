"""Bugs that the simulator must find: switches in the Raft core, and drivers that do one thing wrong.

For each: the profile whose mishaps favour it, and within how many seeds it must be found.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from metastore._core import raft
from metastore._core.chunk import HEADER as CHUNK_HEADER
from metastore.driver import Driver
from metastore.snapformat import Header, Trailer
from metastore.storage.snapshot import Info

from .runner import Scene
from .snapshots import Path, SimSnapshots
from .transfers import SimPart, cut_up


class EarlyReport(Driver):
    """Says that a Ready is durable when it has only been handed to the disk."""

    def _persist(self, ready: Any, now: float) -> None:
        super()._persist(ready, now)
        self._durable(ready.number)


class SecondForward(Driver):
    """Sends what it has forwarded once more when the leader changes."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.copies: list[bytes] = []
        forward = self.transport.forward

        def remember(to: int, batch: bytes) -> bool:
            self.copies.append(batch)
            return bool(forward(to, batch))

        self.transport.forward = remember  # type: ignore[method-assign]

    def _lead_changed(self, lead: int, now: float) -> None:
        changed = lead and lead != self.leader_id
        super()._lead_changed(lead, now)
        if changed and not self.is_leader:
            copies, self.copies = self.copies[-3:], []
            for batch in copies:
                self.transport.forward(lead, batch)


class ImpatientRead(Driver):
    """Serves a read when its index is known, without waiting until it is applied."""

    def _round_confirmed(self, state: Any) -> None:
        reads, self._round = self._round, []
        self.kv.serve_reads(reads)


class AnyRound(Driver):
    """Takes the answer to any round of reads for one to the round under way."""

    def _round_confirmed(self, state: Any) -> None:
        self._round_first = 0
        super()._round_confirmed(state)


class SkipBusy(Driver):
    """Takes what a busy engine refused for written."""

    def _commit(self, now: float) -> None:
        super()._commit(now)
        if self.retry_at is not None:
            self.applier.store.overlay.clear()


class EarlyReply(Driver):
    """Answers writes when they are proposed, before they are committed."""

    def _propose(self, now: float) -> None:
        super()._propose(now)
        if self.is_leader and self._proposed:
            revision = self.applier.store.revision + 1
            for ident in list(self.kv.waiters)[:1]:
                self.kv.waiters.pop(ident).complete(b"\x0a\x03\x18" + bytes(((revision & 0x7F) | 0x80, revision >> 7)))


class Unsynced(SimSnapshots):
    """Counts on a snapshot that it has written and named, and has not synced."""

    def _write(self, name: str, data: bytes, then: Callable[[Path], object]) -> None:
        disk = self.member.disk
        temporary = f"{name[:-5]}.tmp"
        disk.make(temporary).write(0, data)
        self._steps(lambda: disk.rename(temporary, name), lambda: then(Path(disk, name)))


class AtTheNewest(SimSnapshots):
    """Lets the log begin at the newest snapshot: when that is damaged, the one before it is of no use."""

    def _compact(self) -> None:
        newest = self.good[-1].header
        if newest.index > self.wal.snapshot_index:
            self._move(newest.index, newest.term, newest.conf_state)


class AnyPart(SimPart):
    """Takes what comes in for the next chunk, without a look at its sum."""

    def _take(self, image: bytes) -> bool:
        if len(image) <= CHUNK_HEADER:
            return False
        self.chunks += 1
        self._end += len(image)
        return True


class Unverified(SimSnapshots):
    """Looks neither at chunks that come in nor at the whole file."""

    part_type = AnyPart

    def verified(self, name: str) -> Info | None:
        path: Any = Path(self.member.disk, name)
        head, images, trailer = cut_up(path.data())
        return Info(Header.decode(head), Trailer(0, len(images), 0, 0, len(trailer)), path)


class Plant(NamedTuple):
    """A bug, where it is found, and within how many seeds. `inside`: whether the checker may look into disks and
    messages, or must find it by what clients and logs show; `outside`: whether it is found that way too. `doubts`:
    whether members know that they lost what they acknowledged."""

    name: str
    profile: str
    seeds: int
    core: int = 0
    driver: type[Driver] = Driver
    taker: type[SimSnapshots] = SimSnapshots
    inside: bool = True
    outside: bool = True
    doubts: bool = True

    def change(self) -> Callable[[Scene], None]:
        """Puts it into a scene."""

        def plant(scene: Scene) -> None:
            scene.settings.planted = self.core
            scene.settings.driver = self.driver
            scene.settings.doubts = self.doubts
            scene.settings.taker = self.taker
            scene.inside = self.inside

        return plant


PLANTS = [
    Plant("vote not persisted", "forgotten_votes", 4, raft.PLANT_VOTE_NOT_PERSISTED),
    Plant("ack before sync", "usual", 4, raft.PLANT_ACK_BEFORE_SYNC),
    Plant("commit of an old term", "old_terms", 4, raft.PLANT_COMMIT_OLD_TERM),
    Plant("read without a round", "deposed_leaders", 4, raft.PLANT_READ_WITHOUT_ROUND),
    Plant("lease kept", "lease", 6, raft.PLANT_LEASE_KEPT),
    Plant("half of a joint quorum", "cut_halves", 4, raft.PLANT_JOINT_HALF),
    Plant("ABA ignored", "rewritten", 8, raft.PLANT_ABA, outside=False),
    Plant("reported before the disk finished", "usual", 4, driver=EarlyReport),
    Plant("forwarded twice", "usual", 10, driver=SecondForward),
    Plant("read before apply", "usual", 10, driver=ImpatientRead),
    Plant("answer to an older round", "reads", 20, driver=AnyRound),
    Plant("power cut taken for a kill", "forgotten_entries", 4, doubts=False),
    Plant("write skipped that was refused", "busy", 4, driver=SkipBusy),
    Plant("reply before commit", "usual", 2, driver=EarlyReply),
    Plant("snapshot not synced", "transfers", 4, taker=Unsynced),
    Plant("log cut at the newest snapshot", "transfers", 4, taker=AtTheNewest),
    Plant("received and not verified", "transfers", 4, taker=Unverified),
]
