"""Snapshots on their way between simulated members: the real order of things (`metastore/snapshots/transfer.py`), chunk
by chunk, over the simulated network and onto simulated disks.

Real transfers have a connection of their own. Here chunks and answers are lost, doubled, torn (a byte of them changes)
and overtake each other; whoever hears nothing for PATIENCE takes the connection for cut. What came stays on the disk as
it is written there, unsynced for a while, and the next attempt goes on behind what of it is whole.
"""

from __future__ import annotations

import contextlib
import zlib
from typing import TYPE_CHECKING

from metastore._core.raft_types import Message
from metastore._core.snap_chunk import HEADER as CHUNK_HEADER
from metastore._core.snap_chunk import check_chunk, image_size
from metastore.errors import FormatError
from metastore.snapshots.files import Info, Part
from metastore.snapshots.format import TRAILER_SIZE, Header, header_size, parse_name
from metastore.snapshots.transfer import MAX_AGAIN, WINDOW

from .disk import Disk

if TYPE_CHECKING:
    from .snapshots import SimSnapshots

PATIENCE = 0.7  # seconds without a word
TORN = 0.03  # share of chunks
BEGIN, CHUNK, TRAILER, WANT, DONE = "begin", "chunk", "trailer", "want", "done"


def cut_up(data: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Header, images and trailer of a file."""
    at = header_size(data[:16])
    head, images, end = data[:at], [], len(data) - TRAILER_SIZE
    limit = Header.decode(head).chunk_size
    while at < end:
        size = image_size(data[at : at + CHUNK_HEADER], limit)
        images.append(data[at : at + size])
        at += size
    return head, images, data[end:]


class SimPart(Part):
    """What was received of a file, on a simulated disk. What counts as the next chunk is Part's own decision."""

    def __init__(self, disk: Disk, header: Header) -> None:
        self.disk = disk
        self.header = header
        self.name = header.name("part")
        self.chunks = self._offset = 0
        found = self.name in disk.files
        self.file = disk.files[self.name] if found else disk.make(self.name)
        self._resume()

    @staticmethod
    def tidy(disk: Disk, header: Header) -> None:
        """What was begun of other files goes."""
        for other in [other for other in disk.files if parse_name(other, "part")]:
            if other != header.name("part"):
                disk.remove(other)

    def _resume(self) -> None:
        head, data = self.header.encode(), bytes(self.file.data)
        self._end = len(head)
        if data[: len(head)] != head:
            self.file.cut(0)
            self.file.write(0, head)
            return
        with contextlib.suppress(FormatError):
            while True:
                at = self._end
                size = image_size(data[at : at + CHUNK_HEADER], self.header.chunk_size)
                if at + size > len(data) or not self._take(data[at : at + size]):
                    break
        self.file.cut(self._end)

    def add(self, image: bytes) -> bool:
        """As the real one."""
        at = self._end
        if not self._take(image):
            return False
        self.file.write(at, image)
        return True

    def end(self, trailer: bytes) -> None:
        """The last bytes."""
        self.file.write(self._end, trailer)


class SimOutgoing:
    """One attempt to send a file to a peer."""

    def __init__(self, snapshots: SimSnapshots, number: int, info: Info, message: Message) -> None:
        self.snapshots = snapshots
        self.number = number
        self.message = message
        self.head, self.images, self.trailer = cut_up(info.path.data())  # type: ignore[attr-defined]
        self.next = 0
        self.heard = 0
        self.agains = 0

    def begin(self) -> None:
        """Once it is known that this is the attempt."""
        self.send(BEGIN, self.head)
        self.snapshots.member.later(PATIENCE, self.watch, 0)

    def send(self, kind: str, data: bytes) -> None:
        """Something for the receiver; a chunk may come torn."""
        chance, cluster = self.snapshots.chance, self.snapshots.member.cluster
        if kind == CHUNK and chance.random() < TORN:
            at = chance.randrange(len(data))
            data = data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
            cluster.checker.counts["torn chunks"] += 1
        parts = (self.number, kind, data)
        self.snapshots.member.post(self.message.to, "snap", parts, zlib.crc32(data))

    def watch(self, heard: int) -> None:
        """Give up when nothing was heard since."""
        if self.snapshots.outgoing.get(self.message.to) is not self:
            return
        if heard == self.heard:
            self.over(False)
        else:
            self.snapshots.member.later(PATIENCE, self.watch, self.heard)

    def answer(self, kind: str, number: int, again: bool) -> None:
        """What the receiver says."""
        self.heard += 1
        if kind == DONE:
            snapshots, data = self.snapshots, self.message.encode()
            snapshots.member.post(self.message.to, "raft", data, zlib.crc32(data))
            self.over(True)
            return
        if again:
            self.agains += 1
            if self.agains > MAX_AGAIN:
                self.over(False)
                return
        if again or number > self.next:
            self.next = number
        while self.next < len(self.images) and self.next - number < WINDOW:
            self.send(CHUNK, self.images[self.next])
            self.next += 1
        if number == len(self.images):
            self.send(TRAILER, self.trailer)

    def over(self, ok: bool) -> None:
        """The end of this attempt."""
        if self.snapshots.outgoing.get(self.message.to) is self:
            del self.snapshots.outgoing[self.message.to]
            del self.snapshots.catalogue.sending[self.message.to]
            self.snapshots.member.raw.report_snapshot(self.message.to, ok)


class SimIncoming:
    """One attempt of a leader's to send us a file."""

    def __init__(self, snapshots: SimSnapshots, sender: int, number: int, head: bytes) -> None:
        self.snapshots = snapshots
        self.sender = sender
        self.number = number
        self.header = Header.decode(head)
        self.finishing = False
        disk, name = snapshots.member.disk, self.header.name()
        counts = snapshots.member.cluster.checker.counts
        if name in disk.files:
            self.finishing = True
            snapshots._steps(lambda: self.check(name))
            return
        snapshots.part_type.tidy(disk, self.header)
        self.part = snapshots.part_type(disk, self.header)
        counts["resumed"] += self.part.chunks > 0
        self.reply(WANT, self.part.chunks)

    def reply(self, kind: str, number: int = 0, again: bool = False) -> None:
        """Something for the sender."""
        member = self.snapshots.member
        member.cluster.network.send(member.id, self.sender, "snapped", (self.number, kind, number, again), number)

    def take(self, kind: str, data: bytes) -> None:
        """A chunk, or the trailer."""
        if self.finishing:
            return
        part, disk = self.part, self.snapshots.member.disk
        if kind == TRAILER:
            self.finishing = True
            name = self.header.name()
            part.end(data)
            self.snapshots._steps(
                part.file.sync, lambda: disk.rename(part.name, name), disk.sync_names, lambda: self.check(name)
            )
            return
        again = False
        try:
            if not part.add(data):
                again = check_chunk(data, self.header.chunk_size).number > part.chunks
        except FormatError:
            again = True
        if self.snapshots.chance.random() < 0.1:
            part.file.sync()
        self.snapshots.member.cluster.checker.counts["asked again"] += again
        self.reply(WANT, part.chunks, again)

    def check(self, name: str) -> None:
        """The file has its name: does it read back?"""
        info = self.snapshots.verified(name)
        if info is not None:
            self.snapshots.catalogue.arrived(info)
            self.reply(DONE)
        if self.snapshots.coming is self:
            self.snapshots.coming = None
