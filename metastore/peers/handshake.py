"""The handshake of a peer stream: it tells each side who the other is, and refuses a stream with a reason.

This module is pure; the byte layout is in FORMATS.md, "Peer streams". The acceptor judges the hello (`judge_hello`),
and the dialler judges the answer (`judge_answer`). Both sides can therefore tell apart a stranger, a member of another
cluster, a removed member, a wiped directory under an old id, and a second process of one member. Every field is
bounded, and text from the other side is clipped before it is quoted. The worst that a bad greeting can cause is its
own refusal.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Set
from dataclasses import dataclass, field, replace
from typing import Final

from .. import __version__
from .._core.crc import checksum
from ..addresses import MAX_ADDRESS
from ..errors import FormatError
from ..settings import MAX_NAME

MAGIC: Final = b"MSPEER\r\n"
VERSION: Final = 2
HEADER: Final = 20
MAX_BODY: Final = 16 * 1024
HELLO_MARK: Final = 0x80

#: Limits of a greeting: the bytes of its texts and the counts of its lists. A greeting at all limits fits in MAX_BODY.
MAX_REASON: Final = 1000
MAX_WORD: Final = 64  # incarnation, version of the program, name of a codec
MAX_PLACES: Final = 8
MAX_CODECS: Final = 64

#: The flag byte of what stands among the codecs and is none. An earlier version takes it for one more codec, which
#: harms nothing.
FACT: Final = 0
MAX_KEY: Final = "max_key="
UNPACKS: Final = "unpacks=1"

CONTROL, BULK, SNAPSHOT, ROSTER = 1, 2, 3, 4
KINDS: Final = {CONTROL: "control", BULK: "bulk", SNAPSHOT: "snapshot", ROSTER: "roster"}

OK, OTHER_VERSION, OTHER_TOKEN, OTHER_CLUSTER, OTHER_TARGET = range(5)
REMOVED, OTHER_INCARNATION, MALFORMED, BUSY = range(6, 10)  # 5 was for members that version 1 did not know
TOLD, WAIT, TWIN, UNREADABLE = range(10, 14)
#: The dialler's process ends after these verdicts, because going on could harm the cluster or could never succeed.
FATAL: Final = frozenset({REMOVED, OTHER_INCARNATION, TWIN, UNREADABLE})
#: Verdicts for a dialler that has not shown that it belongs to the cluster; such answers do not say who answers.
STRANGE: Final = frozenset({OTHER_VERSION, OTHER_TOKEN, OTHER_CLUSTER, MALFORMED})

# Flags by which a member describes its state.
NEW = 1  # it was made to begin the cluster, and its log is empty
FORMING = 2  # it does not know yet whether it may begin the cluster, and takes part in nothing until it does
LEADER = 4  # it knows a leader


@dataclass(frozen=True, slots=True)
class PeerIdentity:
    """A member describes itself by these fields. Ids have 64 bits and are never 0.

    `codecs` lists (flag byte, name) for each codec that the member can read. `token` is a number that stands for the
    cluster's token (membership.token_number). `start` rises with every start of the data directory; each process draws
    its own random `life`. `places` are the host:port addresses at which others dial the member. `level` is the
    operation level (FORMATS.md), and `flags` are NEW, FORMING and LEADER. `max_key`
    is the longest key of a client that the member takes, in bytes, or 0 where it sets no limit. `unpacks` is whether it
    can read packed frames.
    """

    cluster_id: int
    token: int
    member_id: int
    incarnation: str
    codecs: tuple[tuple[int, str], ...] = ()
    software: str = __version__
    name: str = ""
    places: tuple[str, ...] = ()
    start: int = 0
    life: int = 0
    level: int = 0
    flags: int = 0
    max_key: int = 0
    unpacks: bool = False

    @property
    def process(self) -> tuple[int, int]:
        """The pair that identifies one process of a data directory."""
        return self.start, self.life


NOBODY: Final = PeerIdentity(0, 0, 0, "", software="")


@dataclass(frozen=True, slots=True)
class Hello:
    """The dialler's greeting: its own identity, the kind of the stream (one of KINDS), and the member it wants to
    reach.
    """

    kind: int
    sender: PeerIdentity
    target: int


@dataclass(frozen=True, slots=True)
class Answer:
    """The acceptor's greeting. `text` gives the reason when `status` is not OK. `sender.token` is always 0."""

    status: int
    text: str
    sender: PeerIdentity


class UnknownVersion(FormatError):
    """The greeting has another version of the protocol. Nothing else can be read from such a hello."""


def clip(text: str, limit: int = 300) -> str:
    """Makes text of the other side safe to quote in a log line or an answer: short, and with printable
    characters only.
    """
    return "".join(char if char.isprintable() else "?" for char in text[:limit])


def encode_hello(hello: Hello) -> bytes:
    """Encodes a hello. Raises ValueError for texts that are too long."""
    me = hello.sender
    body = struct.pack("<BB", hello.kind, me.flags) + _identity(me) + struct.pack("<QQ", hello.target, me.token)
    return _greeting(HELLO_MARK, body)


def encode_answer(answer: Answer) -> bytes:
    """Encodes an answer and clips its text. Raises ValueError for texts of an identity that are too long."""
    reason = clip(answer.text, MAX_REASON).encode("utf-8", "replace")[:MAX_REASON].decode(errors="ignore")
    body = _text(reason, MAX_REASON) + struct.pack("<BB", answer.sender.flags, 0) + _identity(answer.sender)
    return _greeting(answer.status, body)


def _greeting(mark: int, body: bytes) -> bytes:
    if len(body) > MAX_BODY:
        raise ValueError(f"greeting of {len(body)} bytes; at most {MAX_BODY}")
    head = struct.pack("<BBHI", VERSION, mark, 0, len(body))
    return MAGIC + head + struct.pack("<I", checksum(body, checksum(head))) + body


def _identity(me: PeerIdentity) -> bytes:
    body = struct.pack("<HQQQQ", me.level, me.cluster_id, me.member_id, me.start, me.life)
    body += _text(me.name, MAX_NAME) + _text(me.incarnation, MAX_WORD) + _text(me.software, MAX_WORD)
    facts = [f"{MAX_KEY}{me.max_key}"] if me.max_key else []
    facts += [UNPACKS] if me.unpacks else []
    listed = (*me.codecs, *((FACT, fact) for fact in facts))
    if len(me.places) > MAX_PLACES or len(listed) > MAX_CODECS:
        raise ValueError(f"a greeting with {len(me.places)} addresses and {len(listed)} codecs")
    body += bytes([len(me.places)]) + b"".join(_text(place, MAX_ADDRESS) for place in me.places)
    return body + bytes([len(listed)]) + b"".join(bytes([flag]) + _text(name, MAX_WORD) for flag, name in listed)


def _text(text: str, limit: int) -> bytes:
    data = text.encode()
    if len(data) > limit:
        raise ValueError(f"a text of {len(data)} bytes in a greeting; at most {limit}")
    return struct.pack("<H", len(data)) + data


def _number(fact: str) -> int:
    """The number behind `=`. Raises FormatError."""
    digits = fact.partition("=")[2]
    if not digits.isascii() or not digits.isdecimal() or len(digits) > 10:
        raise FormatError("peer greeting: a fact without a number")
    return int(digits)


class _Body:
    """This reader takes the parts of a body one by one. It raises FormatError where a part is missing or wrong."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, layout: str) -> tuple[int, ...]:
        size = struct.calcsize(layout)
        if self._at + size > len(self._data):
            raise FormatError("peer greeting: cut short")
        self._at += size
        return struct.unpack_from(layout, self._data, self._at - size)

    def text(self, limit: int) -> str:
        (size,) = self.take("<H")
        if size > limit:
            raise FormatError(f"peer greeting: a text of {size} bytes; at most {limit}")
        data = self._data[self._at : self._at + size]
        self._at += size
        try:
            if len(data) < size:
                raise FormatError("peer greeting: cut short")
            return data.decode()
        except UnicodeDecodeError:
            raise FormatError("peer greeting: a text that is no UTF-8") from None

    def identity(self, flags: int) -> PeerIdentity:
        level, cluster_id, member_id, start, life = self.take("<HQQQQ")
        name, incarnation, software = self.text(MAX_NAME), self.text(MAX_WORD), self.text(MAX_WORD)
        places = tuple(self.text(MAX_ADDRESS) for _ in range(self.count(MAX_PLACES, "addresses")))
        listed = [(self.take("<B")[0], self.text(MAX_WORD)) for _ in range(self.count(MAX_CODECS, "codecs"))]
        codecs = tuple(one for one in listed if one[0] != FACT)
        max_key = next((_number(text) for flag, text in listed if flag == FACT and text.startswith(MAX_KEY)), 0)
        unpacks = (FACT, UNPACKS) in listed
        what = (cluster_id, 0, member_id, incarnation, codecs, software, name, places, start, life, level, flags)
        return PeerIdentity(*what, max_key, unpacks)

    def count(self, limit: int, what: str) -> int:
        (count,) = self.take("<B")
        if count > limit:
            raise FormatError(f"peer greeting: {count} {what}; at most {limit}")
        return count

    def end(self) -> None:
        if self._at != len(self._data):
            raise FormatError("peer greeting: bytes behind it")


def greeting_size(data: bytes) -> int | None:
    """The size in bytes of the greeting that begins with `data`; None while there are too few bytes to tell.

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


def _other_version(version: int) -> str:
    return (
        f"peer protocol version {version}, this program speaks {VERSION} only: all members must run versions of "
        "MetaStore that speak the same"
    )


def decode_hello(data: bytes) -> Hello:
    """Decodes a hello from its bytes (greeting_size of them). Raises FormatError or its subclass UnknownVersion."""
    version, mark, body = _open(data)
    if version != VERSION:
        raise UnknownVersion(_other_version(version))
    kind, flags = body.take("<BB")
    sender = body.identity(flags)
    target, token = body.take("<QQ")
    body.end()
    known = kind == ROSTER or (sender.cluster_id and sender.member_id)
    if mark != HELLO_MARK or kind not in KINDS or not known or flags > NEW | FORMING | LEADER:
        raise FormatError("peer greeting: not a hello that makes sense")
    return Hello(kind, replace(sender, token=token), target)


def decode_answer(data: bytes) -> Answer:
    """Decodes an answer from its bytes (greeting_size of them). Raises FormatError.

    Only the status and the text of another version are read. The status is then never OK.
    """
    version, mark, body = _open(data)
    if version != VERSION:
        return Answer(OTHER_VERSION, body.text(MAX_BODY) or _other_version(version), NOBODY)
    text = body.text(MAX_REASON)
    flags, zero = body.take("<BB")
    sender = body.identity(flags)
    body.end()
    if mark > UNREADABLE or zero or flags > NEW | FORMING | LEADER:
        raise FormatError(f"peer greeting: unknown status {mark} or flags {flags}")
    return Answer(mark, text, sender)


@dataclass(slots=True)
class Known:
    """A member judges greetings by these facts.

    `incarnations` identify the data directories of the members. `must_read` lists (flag byte, name) for each codec that
    a member must be able to read, because the log uses it.
    """

    removed: Set[int] = frozenset()
    incarnations: Mapping[int, str] = field(default_factory=dict)
    must_read: Set[tuple[int, str]] = frozenset()


def judge_hello(hello: Hello, me: PeerIdentity, known: Known) -> tuple[int, str]:
    """Judges a hello as far as the hello alone allows. Returns (status, reason); (OK, "") if it is accepted.

    The reason is a sentence for both logs. It never contains our token, and of the dialler's token only a number.
    """
    peer = hello.sender
    if hello.kind == ROSTER and not peer.cluster_id:
        return TOLD, ""
    if peer.cluster_id != me.cluster_id:
        if peer.token != me.token and hello.kind != ROSTER:
            return OTHER_TOKEN, "the acceptor's cluster.token is another than the dialler's"
        return OTHER_CLUSTER, f"cluster id is {me.cluster_id:016x} here, the dialler says {peer.cluster_id:016x}"
    if peer.member_id in known.removed:
        return REMOVED, f"member {peer.member_id:016x} was removed from cluster {me.cluster_id:016x}"
    if peer.member_id == me.member_id:
        return OTHER_TARGET, f"the dialler says that it is member {me.member_id:016x}, which is this one"
    if hello.target != me.member_id:
        return OTHER_TARGET, f"this is member {me.member_id:016x}, the dialler wants {hello.target:016x}"
    incarnation = known.incarnations.get(peer.member_id)
    if incarnation is not None and incarnation != peer.incarnation:
        return OTHER_INCARNATION, _wiped(peer, incarnation)
    if hello.kind == ROSTER:
        return TOLD, ""
    if peer.flags & FORMING and not me.flags & (NEW | LEADER) and incarnation is None:
        # The dialler may be a member that lost its directory. Only members that have a leader can know this.
        return WAIT, "this member is no new one, and has no leader that could tell whether the dialler may be new"
    for flag, name in sorted(known.must_read - set(peer.codecs)):
        return UNREADABLE, (
            f"the log holds entries compressed by the codec {name!r} (flag {flag}), which member "
            f"{peer.member_id:016x} cannot read: its plug-in is not installed there"
        )
    return OK, ""


def judge_answer(answer: Answer, me: PeerIdentity, target: int, incarnation: str | None) -> tuple[int, str]:
    """Judges an answer for the dialler. Returns (status, reason); (OK, "") if the dialler may send.

    `incarnation` is the known data directory of the target, or None. A FATAL status is returned only if another member
    of this cluster gave this verdict about us. What we find wrong about the acceptor is the acceptor's own affair, and
    is returned as OTHER_TARGET.
    """
    peer, text = answer.sender, clip(answer.text, MAX_REASON)
    if answer.status not in FATAL and answer.status != OK:
        return answer.status, text
    if peer.cluster_id != me.cluster_id:
        return OTHER_CLUSTER, f"cluster id is {me.cluster_id:016x} here, the acceptor says {peer.cluster_id:016x}"
    if peer.member_id == me.member_id:
        return OTHER_TARGET, "this member has reached itself"
    if answer.status != OK:
        return answer.status, text
    if peer.member_id != target:
        return OTHER_TARGET, f"reached member {peer.member_id:016x} in place of {target:016x}"
    if incarnation is not None and incarnation != peer.incarnation:
        return OTHER_TARGET, _wiped(peer, incarnation)
    return OK, ""


def _wiped(peer: PeerIdentity, known: str) -> str:
    return (
        f"member {peer.member_id:016x} comes with the data directory {clip(peer.incarnation)!r}, but its own is "
        f"{known!r}: a wiped directory must join as a new member (member remove, then member add)"
    )
