"""HTTP/2 from the client's side for tests. Frames are made by hand, so wrong ones can be made. HPACK is decoded by
libnghttp2 through ctypes, so the server's answers can be read."""

from __future__ import annotations

import ctypes
import ctypes.util
from dataclasses import dataclass, field

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
DATA, HEADERS, PRIORITY, RST_STREAM, SETTINGS, PUSH_PROMISE, PING, GOAWAY, WINDOW_UPDATE, CONTINUATION = range(10)
END_STREAM, ACK, END_HEADERS, PADDED = 1, 1, 4, 8
PUT_PATH = b"/etcdserverpb.KV/Put"

_lib = ctypes.CDLL(ctypes.util.find_library("nghttp2") or "libnghttp2.so.14")
_lib.nghttp2_hd_inflate_hd2.restype = ctypes.c_ssize_t


class _Nv(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.POINTER(ctypes.c_uint8)),
        ("value", ctypes.POINTER(ctypes.c_uint8)),
        ("namelen", ctypes.c_size_t),
        ("valuelen", ctypes.c_size_t),
        ("flags", ctypes.c_uint8),
    )


def frame(kind: int, flags: int, stream: int, payload: bytes = b"") -> bytes:
    """Return one frame, whether it makes sense or not."""
    return len(payload).to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + payload


def literal(name: bytes, value: bytes) -> bytes:
    """Encode a header as an HPACK literal without indexing, which needs no state on our side. Lengths up to 2^14."""
    return b"\x00" + _length(len(name)) + name + _length(len(value)) + value


def _length(n: int) -> bytes:
    if n < 127:
        return bytes([n])
    n -= 127
    out = b"\x7f"
    while n >= 128:
        out += bytes([n % 128 + 128])
        n //= 128
    return out + bytes([n])


def head(
    path: bytes = PUT_PATH,
    *extra: tuple[bytes, bytes],
    method: bytes = b"POST",
    content_type: bytes | None = b"application/grpc",
) -> bytes:
    """Return the header block of a gRPC request."""
    fields = [(b":method", method), (b":scheme", b"http"), (b":path", path), (b":authority", b"test")]
    if content_type is not None:
        fields.append((b"content-type", content_type))
    return b"".join(literal(*pair) for pair in [*fields, (b"te", b"trailers"), *extra])


def message(body: bytes, compressed: int = 0, length: int | None = None) -> bytes:
    """Return a gRPC message with its prefix. `length` is what the prefix claims; None: what is true."""
    return bytes([compressed]) + (len(body) if length is None else length).to_bytes(4, "big") + body


def call(stream: int, body: bytes, path: bytes = PUT_PATH, *extra: tuple[bytes, bytes]) -> bytes:
    """Return the frames of a whole unary call."""
    return frame(HEADERS, END_HEADERS, stream, head(path, *extra)) + frame(DATA, END_STREAM, stream, message(body))


def hello(window: int = 0) -> bytes:
    """Return preface and SETTINGS. `window` sets the initial window of streams, and opens the connection's by as
    much."""
    if not window:
        return PREFACE + frame(SETTINGS, 0, 0)
    return (
        PREFACE
        + frame(SETTINGS, 0, 0, b"\x00\x04" + window.to_bytes(4, "big"))
        + frame(WINDOW_UPDATE, 0, 0, window.to_bytes(4, "big"))
    )


#: Preface and SETTINGS of a client that takes no reply: the windows of its streams are 0 until it opens them.
SHUT = PREFACE + frame(SETTINGS, 0, 0, b"\x00\x04" + bytes(4))


@dataclass
class Stream:
    """What came back on one stream."""

    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    data: bytes = b""
    ended: bool = False
    reset: int | None = None

    def get(self, name: bytes) -> bytes | None:
        """Return the last value of a header or trailer."""
        values = [value for key, value in self.headers if key == name]
        return values[-1] if values else None

    @property
    def status(self) -> int | None:
        """The grpc-status."""
        value = self.get(b"grpc-status")
        return None if value is None else int(value)

    @property
    def text(self) -> str:
        """The grpc-message as it came (percent-encoded)."""
        return (self.get(b"grpc-message") or b"").decode()

    @property
    def messages(self) -> list[bytes]:
        """The complete gRPC messages of `data`."""
        bodies, at = [], 0
        while at + 5 <= len(self.data):
            end = at + 5 + int.from_bytes(self.data[at + 1 : at + 5], "big")
            if end > len(self.data):
                break
            bodies.append(self.data[at + 5 : end])
            at = end
        return bodies


class Reader:
    """Takes the server's bytes and keeps what they said."""

    def __init__(self) -> None:
        self.streams: dict[int, Stream] = {}
        self.goaway: tuple[int, int] | None = None  # (last stream, error code)
        self.goaway_text = b""  # of the first GOAWAY
        self.pings: list[bytes] = []
        self.settings: dict[int, int] = {}
        self.settings_acks = 0
        self.frames: list[tuple[int, int, int]] = []  # (type, flags, stream)
        self._rest = b""
        self._inflater = ctypes.c_void_p()
        assert _lib.nghttp2_hd_inflate_new(ctypes.byref(self._inflater)) == 0

    def __del__(self) -> None:
        _lib.nghttp2_hd_inflate_del(self._inflater)

    def stream(self, number: int) -> Stream:
        """Return the stream; it is empty if nothing came on it."""
        return self.streams.setdefault(number, Stream())

    def feed(self, data: bytes) -> None:
        """Take the server's next bytes."""
        self._rest += data
        while len(self._rest) >= 9:
            size = int.from_bytes(self._rest[:3], "big")
            if len(self._rest) < 9 + size:
                return
            kind, flags = self._rest[3], self._rest[4]
            number = int.from_bytes(self._rest[5:9], "big")
            payload = self._rest[9 : 9 + size]
            self._rest = self._rest[9 + size :]
            self.frames.append((kind, flags, number))
            self._frame(kind, flags, number, payload)

    def _frame(self, kind: int, flags: int, number: int, payload: bytes) -> None:
        if kind == HEADERS:
            self.stream(number).headers += self._inflate(payload)
            self.stream(number).ended |= bool(flags & END_STREAM)
        elif kind == DATA:
            self.stream(number).data += payload
            self.stream(number).ended |= bool(flags & END_STREAM)
        elif kind == RST_STREAM:
            self.stream(number).reset = int.from_bytes(payload, "big")
        elif kind == GOAWAY:
            self.goaway = (int.from_bytes(payload[:4], "big"), int.from_bytes(payload[4:8], "big"))
            self.goaway_text = self.goaway_text or payload[8:]
        elif kind == PING and flags & ACK:
            self.pings.append(payload)
        elif kind == SETTINGS and flags & ACK:
            self.settings_acks += 1
        elif kind == SETTINGS:
            for at in range(0, len(payload), 6):
                self.settings[int.from_bytes(payload[at : at + 2], "big")] = int.from_bytes(
                    payload[at + 2 : at + 6], "big"
                )

    def _inflate(self, block: bytes) -> list[tuple[bytes, bytes]]:
        fields = []
        buffer = ctypes.create_string_buffer(block, len(block))
        at = 0
        while True:
            nv, flags = _Nv(), ctypes.c_int(0)
            used = _lib.nghttp2_hd_inflate_hd2(
                self._inflater,
                ctypes.byref(nv),
                ctypes.byref(flags),
                ctypes.c_void_p(ctypes.addressof(buffer) + at),
                ctypes.c_size_t(len(block) - at),
                1,
            )
            assert used >= 0
            at += used
            if flags.value & 2:
                fields.append((ctypes.string_at(nv.name, nv.namelen), ctypes.string_at(nv.value, nv.valuelen)))
            if flags.value & 1:
                _lib.nghttp2_hd_inflate_end_headers(self._inflater)
                return fields
            assert used or flags.value & 2
