"""The frames of a bulk stream as one compressed stream, for members that pay for the bytes between them.

The payload of an entry may be compressed already, by itself. Small puts that come one after the other are in entries of
a few hundred bytes, which repeat what the entries before had: names of fields, separators, heads of frames. A `Packer`
remembers what it has sent on the connection, and an `Unpacker` what came. This module is pure; FORMATS.md, "Packed
frames", has the bytes.
"""

from __future__ import annotations

from typing import Final

import zstandard

from .._core.raft_wire import Outbox
from ..errors import FormatError

#: Bytes of frames that one packed frame holds at most. It takes 1 ms to pack so many.
MAX_PLAIN: Final = 256 * 1024
#: The stream refers to this many bytes behind it at most, as a power of two, and so both sides keep so many.
WINDOW_LOG: Final = 17
#: Bytes that are unpacked before their sum is looked at. So few can become 8 MiB, which is 64 blocks of 128 KiB.
STEP: Final = 256
LEVEL: Final = 1


class Packer:
    """Packs the frames of one connection."""

    def __init__(self) -> None:
        parameters = zstandard.ZstdCompressionParameters.from_level(
            LEVEL, window_log=WINDOW_LOG, write_content_size=False, write_checksum=False, write_dict_id=False
        )
        self._stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()

    def pack(self, pieces: list[bytes | memoryview]) -> tuple[bytes, int]:
        """Packs the first MAX_PLAIN bytes of `pieces`. Returns the body of a packed frame, and how many bytes it has
        of `pieces`.
        """
        parts, left = [], MAX_PLAIN
        for piece in pieces:
            parts.append(self._stream.compress(piece[:left]))
            left -= min(left, len(piece))
        parts.append(self._stream.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK))
        return b"".join(parts), MAX_PLAIN - left


class Unpacker:
    """Unpacks the frames of one connection."""

    def __init__(self) -> None:
        self._stream = zstandard.ZstdDecompressor(max_window_size=1 << WINDOW_LOG).decompressobj()

    def unpack(self, body: bytes) -> bytes:
        """Returns the bytes of the frames in one packed frame. Raises FormatError, after which the stream is over."""
        parts, size = [], 0
        try:
            for at in range(0, len(body), STEP):
                parts.append(self._stream.decompress(body[at : at + STEP]))
                size += len(parts[-1])
                if size > MAX_PLAIN:
                    raise FormatError(f"peer stream: a packed frame has more than {MAX_PLAIN} bytes")
        except zstandard.ZstdError as error:
            raise FormatError(f"peer stream: a packed frame cannot be unpacked: {error}") from error
        return b"".join(parts)


class PackedOutbox:
    """The bytes of a stream that are packed and wait for the socket. It takes them from the stream's outbox when the
    socket has taken what was packed before, so at most MAX_PLAIN bytes wait here.
    """

    def __init__(self, plain: Outbox, tag: int) -> None:
        self.out = Outbox(2 * MAX_PLAIN, 2 * MAX_PLAIN)
        self.taken = 0  # bytes of the outbox that were packed
        self._plain = plain
        self._tag = tag
        self._packer = Packer()

    def fill(self) -> None:
        """Packs some of what waits, if everything that was packed is sent."""
        if not self.out.size and self._plain.size:
            body, taken = self._packer.pack(self._plain.pieces(MAX_PLAIN))
            self.out.add_blob(self._tag, body)
            self._plain.sent(taken)
            self.taken += taken

    def begin(self) -> None:
        """A new connection: nothing of the one before is known to the other side."""
        self.out.clear()
        self._packer = Packer()
