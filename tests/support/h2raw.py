"""A connection that shows the server's frames as they are, without decoding them (RFC 9113). What is sent is made by
`http2`."""

from __future__ import annotations

import contextlib
import socket
import struct
from dataclasses import dataclass
from typing import Self

from .http2 import (
    ACK,
    DATA,
    END_HEADERS,
    END_STREAM,
    GOAWAY,
    HEADERS,
    PREFACE,
    RST_STREAM,
    SETTINGS,
    WINDOW_UPDATE,
    frame,
    head,
)

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


def settings(values: dict[int, int]) -> bytes:
    return frame(SETTINGS, 0, 0, b"".join(struct.pack(">HI", k, v) for k, v in values.items()))


def window_update(stream: int, increment: int) -> bytes:
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", increment))


def call(stream: int, path: str, data: bytes, end: bool = True) -> bytes:
    """Return a whole call, HEADERS and DATA frames, with any bytes in place of messages."""
    out = frame(HEADERS, END_HEADERS, stream, head(path.encode()))
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
