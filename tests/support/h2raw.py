"""HTTP/2 by hand, to send what no well-behaved client sends. Frames go out unchanged and come in as they are (RFC
9113)."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Self

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
SET_INITIAL_WINDOW = 4
LARGEST_WINDOW = (1 << 31) - 1
CANCEL = 8
CHUNK = 16_384


@dataclass(frozen=True)
class Frame:
    """A frame as received."""

    kind: int
    flags: int
    stream: int
    payload: bytes


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    return struct.pack(">I", len(payload))[1:] + struct.pack(">BBI", kind, flags, stream) + payload


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", k, v) for k, v in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def _integer(value: int) -> bytes:
    """Encode an HPACK integer with a 7-bit prefix (RFC 7541, 5.1)."""
    if value < 127:
        return bytes([value])
    out, rest = [127], value - 127
    while rest >= 128:
        out.append(rest % 128 + 128)
        rest //= 128
    return bytes([*out, rest])


def header_block(fields: list[tuple[str, str]]) -> bytes:
    """Encode header fields as literals without indexing and without Huffman coding."""
    block = b""
    for name, value in fields:
        n, v = name.encode(), value.encode("latin-1")
        block += b"\0" + _integer(len(n)) + n + _integer(len(v)) + v
    return block


def grpc_headers(path: str, extra: list[tuple[str, str]] | None = None) -> bytes:
    """Return the header block of a gRPC call."""
    fields = [(":method", "POST"), (":scheme", "http"), (":path", path), (":authority", "test")]
    return header_block([*fields, ("content-type", "application/grpc"), ("te", "trailers"), *(extra or [])])


def message(body: bytes, length: int | None = None, compressed: int = 0) -> bytes:
    """Return a gRPC message. `length` is what the prefix claims."""
    return struct.pack(">BI", compressed, len(body) if length is None else length) + body


def call(stream: int, path: str, data: bytes, end: bool = True) -> bytes:
    """Return a whole call: HEADERS and DATA frames."""
    out = frame(HEADERS, END_HEADERS, stream, grpc_headers(path))
    chunks = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)] or [b""]
    for i, chunk in enumerate(chunks):
        out += frame(DATA, END_STREAM if end and i == len(chunks) - 1 else 0, stream, chunk)
    return out


class Connection:
    """A TCP connection that has sent the preface and SETTINGS. `window` is the initial window that it offers."""

    def __init__(self, address: str, window: int = LARGEST_WINDOW, receive_buffer: int | None = None) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(20)
        self.socket.connect((host, int(port)))
        self._pending = b""
        self.send(PREFACE + settings({SET_INITIAL_WINDOW: window}) + window_update(0, LARGEST_WINDOW - 65_535))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def receive(self) -> Frame | None:
        """Return the next frame, or None once the server has closed the connection."""
        while len(self._pending) < 9 or len(self._pending) < 9 + self._length():
            try:
                data = self.socket.recv(65_536)
            except (ConnectionResetError, BrokenPipeError):
                return None
            if not data:
                return None
            self._pending += data
        length = self._length()
        kind, flags, stream = struct.unpack(">BBI", self._pending[3:9])
        payload = self._pending[9 : 9 + length]
        self._pending = self._pending[9 + length :]
        if kind == SETTINGS and not flags & ACK:
            with contextlib.suppress(ConnectionError):
                self.send(frame(SETTINGS, ACK, 0))
        return Frame(kind, flags, stream & LARGEST_WINDOW, payload)

    def _length(self) -> int:
        return int.from_bytes(self._pending[:3], "big")

    def end(self) -> None:
        """Tell the server that nothing more comes, if it still listens."""
        with contextlib.suppress(OSError):
            self.socket.shutdown(socket.SHUT_WR)

    def finish(self, stream: int) -> list[Frame]:
        """Return the frames of `stream` until it or the connection ends."""
        frames = []
        while (received := self.receive()) is not None:
            if received.kind == GOAWAY:
                frames.append(received)
            if received.stream == stream:
                frames.append(received)
                if received.kind == RST_STREAM or (received.kind in (DATA, HEADERS) and received.flags & END_STREAM):
                    return frames
        return frames

    def drain(self) -> list[Frame]:
        """Return all frames until the server closes the connection."""
        frames = []
        while (received := self.receive()) is not None:
            frames.append(received)
        return frames
