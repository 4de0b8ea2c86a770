"""The greeting of a peer stream: who dials whom, and why not. Pure; layout: FORMATS.md, "Peer streams".

The acceptor judges the hello (`judge_hello`), the dialler judges the answer (`judge_answer`), so that a stranger, a
member of another cluster, a removed member and a wiped directory under an old id are told apart on both sides.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Final

from . import __version__
from ._core.crc import checksum
from .errors import FormatError

MAGIC: Final = b"MSPEER\r\n"
VERSION: Final = 1
HEADER: Final = 20
MAX_BODY: Final = 16 * 1024
HELLO_MARK: Final = 0x80

CONTROL, BULK, SNAPSHOT, ROSTER = 1, 2, 3, 4
KINDS: Final = {CONTROL: "control", BULK: "bulk", SNAPSHOT: "snapshot", ROSTER: "roster"}

OK, OTHER_VERSION, OTHER_TOKEN, OTHER_CLUSTER, OTHER_TARGET = range(5)
UNKNOWN, REMOVED, OTHER_INCARNATION, MALFORMED, BUSY = range(5, 10)
TOLD = 10  # the answer to a roster hello; its text is the record, and the connection ends with it


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """What a member says of itself. Ids are 64 bits and not 0; `codecs` are (flag byte, name) of those it can read."""

    cluster_id: int
    token: str
    member_id: int
    incarnation: str
    codecs: tuple[tuple[int, str], ...] = ()
    software: str = __version__


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialler's greeting: itself, the kind of stream (KINDS) and the member it wants to reach."""

    kind: int
    sender: PeerIdentity
    target: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The acceptor's greeting; `text` says why when `status` is not OK. `sender.token` is always empty."""

    status: int
    text: str
    sender: PeerIdentity


class UnknownVersion(FormatError):
    """A greeting of another version of the protocol; nothing but that can be said of a hello."""


def encode_hello(hello: Hello) -> bytes:
    """Bytes of a hello. Raises ValueError for texts that are too long."""
    me = hello.sender
    body = struct.pack("<BQQQ", hello.kind, me.cluster_id, me.member_id, hello.target)
    body += _text(me.token) + _text(me.incarnation) + _text(me.software) + _codecs(me)
    return _greeting(HELLO_MARK, body)


def encode_answer(answer: Answer) -> bytes:
    """Bytes of an answer. Raises ValueError for texts that are too long."""
    me = answer.sender
    body = _text(answer.text) + struct.pack("<QQ", me.cluster_id, me.member_id)
    body += _text(me.incarnation) + _text(me.software) + _codecs(me)
    return _greeting(answer.status, body)


def _greeting(mark: int, body: bytes) -> bytes:
    if len(body) > MAX_BODY:
        raise ValueError(f"greeting of {len(body)} bytes; at most {MAX_BODY}")
    head = struct.pack("<BBHI", VERSION, mark, 0, len(body))
    return MAGIC + head + struct.pack("<I", checksum(body, checksum(head))) + body


def _text(text: str) -> bytes:
    data = text.encode()
    if len(data) > 0xFFFF:
        raise ValueError("text in a greeting is too long")
    return struct.pack("<H", len(data)) + data


def _codecs(me: PeerIdentity) -> bytes:
    return bytes([len(me.codecs)]) + b"".join(bytes([flag]) + _text(name) for flag, name in me.codecs)


class _Body:
    """Reads the parts of a body; every miss is a FormatError."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, layout: str) -> tuple[int, ...]:
        size = struct.calcsize(layout)
        if self._at + size > len(self._data):
            raise FormatError("peer greeting: cut short")
        self._at += size
        return struct.unpack_from(layout, self._data, self._at - size)

    def text(self) -> str:
        (size,) = self.take("<H")
        data = self._data[self._at : self._at + size]
        self._at += size
        try:
            if len(data) < size:
                raise FormatError("peer greeting: cut short")
            return data.decode()
        except UnicodeDecodeError as error:
            raise FormatError(f"peer greeting: {error}") from error

    def codecs(self) -> tuple[tuple[int, str], ...]:
        return tuple((self.take("<B")[0], self.text()) for _ in range(self.take("<B")[0]))

    def end(self) -> None:
        if self._at != len(self._data):
            raise FormatError("peer greeting: bytes behind it")


def greeting_size(data: bytes) -> int | None:
    """Bytes of the greeting that begins with `data`; None while too little is there to tell.

    Raises FormatError as soon as the bytes cannot become a greeting.
    """
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise FormatError("not a MetaStore peer: the magic bytes are wrong")
    if len(data) < HEADER:
        return None
    (size,) = struct.unpack_from("<I", data, 12)
    if size > MAX_BODY:
        raise FormatError(f"peer greeting of {size} bytes; at most {MAX_BODY}")
    return HEADER + int(size)


def _open(data: bytes) -> tuple[int, int, _Body]:
    """(version, mark, body) of a whole greeting."""
    version, mark, zero, size, crc = struct.unpack_from("<BBHII", data, 8)
    if HEADER + size != len(data) or checksum(data[HEADER:], checksum(data[8:16])) != crc:
        raise FormatError("peer greeting: wrong length or checksum")
    if zero and version == VERSION:
        raise FormatError("peer greeting: reserved bytes")
    return version, mark, _Body(data[HEADER:])


def decode_hello(data: bytes) -> Hello:
    """Hello from its bytes (greeting_size of them). Raises FormatError, of which UnknownVersion is one."""
    version, mark, body = _open(data)
    if version != VERSION:
        raise UnknownVersion(f"peer protocol version {version}, this program speaks {VERSION}")
    kind, cluster_id, member_id, target = body.take("<BQQQ")
    token, incarnation, software = body.text(), body.text(), body.text()
    sender = PeerIdentity(cluster_id, token, member_id, incarnation, body.codecs(), software)
    body.end()
    if mark != HELLO_MARK or kind not in KINDS or not (cluster_id and member_id):
        raise FormatError("peer greeting: not a hello that makes sense")
    return Hello(kind, sender, target)


def decode_answer(data: bytes) -> Answer:
    """Answer from its bytes (greeting_size of them). Raises FormatError.

    Of another version only the status and the text are read; the status is then never OK.
    """
    version, mark, body = _open(data)
    text = body.text()
    if version != VERSION:
        text = text or f"peer protocol version {version}, this program speaks {VERSION}"
        return Answer(OTHER_VERSION, text, PeerIdentity(0, "", 0, ""))
    cluster_id, member_id = body.take("<QQ")
    incarnation, software = body.text(), body.text()
    sender = PeerIdentity(cluster_id, "", member_id, incarnation, body.codecs(), software)
    body.end()
    if mark > TOLD:
        raise FormatError(f"peer greeting: unknown status {mark}")
    return Answer(mark, text, sender)


def judge_hello(
    hello: Hello,
    me: PeerIdentity,
    members: Set[int] | Mapping[int, object],
    removed: Set[int],
    incarnations: Mapping[int, str],
) -> tuple[int, str]:
    """(status, reason) of the answer that a hello deserves; (OK, "") if it is welcome.

    `members` are the other members' ids, `incarnations` what is known of their data directories. The reason is a
    sentence for both logs.
    """
    peer = hello.sender
    if peer.token != me.token:
        return OTHER_TOKEN, f"cluster token is {me.token!r} here, the dialler says {peer.token!r}"
    if hello.kind == ROSTER:
        return TOLD, ""
    if peer.cluster_id != me.cluster_id:
        return OTHER_CLUSTER, f"cluster id is {me.cluster_id:016x} here, the dialler says {peer.cluster_id:016x}"
    if peer.member_id in removed:
        return REMOVED, f"member {peer.member_id:016x} was removed from cluster {me.cluster_id:016x}"
    if hello.target != me.member_id:
        return OTHER_TARGET, f"this is member {me.member_id:016x}, the dialler wants {hello.target:016x}"
    if peer.member_id not in members:
        return UNKNOWN, f"{peer.member_id:016x} is no member of cluster {me.cluster_id:016x}"
    known = incarnations.get(peer.member_id)
    if known is not None and known != peer.incarnation:
        return OTHER_INCARNATION, _wiped(peer, known)
    return OK, ""


def judge_answer(answer: Answer, me: PeerIdentity, target: int, incarnation: str | None) -> tuple[int, str]:
    """(status, reason) of what the dialler makes of an answer; (OK, "") if it may send.

    `incarnation` is what is known of the target's data directory, None for nothing.
    """
    peer = answer.sender
    if answer.status not in (OK, REMOVED):
        return answer.status, answer.text
    if peer.cluster_id != me.cluster_id:
        return OTHER_CLUSTER, f"cluster id is {me.cluster_id:016x} here, the acceptor says {peer.cluster_id:016x}"
    if answer.status == REMOVED:
        return REMOVED, answer.text
    if peer.member_id != target:
        return OTHER_TARGET, f"reached member {peer.member_id:016x} in place of {target:016x}"
    if incarnation is not None and incarnation != peer.incarnation:
        return OTHER_INCARNATION, _wiped(peer, incarnation)
    return OK, ""


def _wiped(peer: PeerIdentity, known: str) -> str:
    return (
        f"member {peer.member_id:016x} comes with the data directory {peer.incarnation!r}, but its own is {known!r}: "
        "a wiped directory must join as a new member"
    )
