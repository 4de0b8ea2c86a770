"""The few protobuf messages that the simulated clients speak, written by hand: independent of the store's decoder."""

from __future__ import annotations

import dataclasses

from .model import Call, Pair
from .varint import read_varint, varint

EVERYTHING = b"\x0a\x01\x00\x12\x01\x00"  # RangeRequest{key: "\0", range_end: "\0"}


def text(field: int, data: bytes) -> bytes:
    """A field of bytes."""
    return varint(field << 3 | 2) + varint(len(data)) + data


def number(field: int, value: int) -> bytes:
    """A field that is a number."""
    return varint(field << 3) + varint(value)


def fields(data: bytes) -> list[tuple[int, int | bytes]]:
    """(number, value) of all fields of a message."""
    found: list[tuple[int, int | bytes]] = []
    at = 0
    while at < len(data):
        tag, at = read_varint(data, at)
        value, at = read_varint(data, at)
        if tag & 7 == 0:
            found.append((tag >> 3, value))
        elif tag & 7 == 2:
            found.append((tag >> 3, data[at : at + value]))
            at += value
        else:
            raise ValueError(f"wire type {tag & 7}")
    return found


def count_at(revision: int) -> bytes:
    """RangeRequest{key: "\\0", range_end: "\\0", revision: revision, count_only: true}."""
    return EVERYTHING + number(4, revision) + number(9, 1)


def encode(call: Call) -> None:
    """Set method and body of a call."""
    if call.kind == "put":
        call.method, call.body = "Put", text(1, call.keys[0]) + text(2, call.value)
    elif call.kind == "delete":
        call.method, call.body = "DeleteRange", text(1, call.keys[0])
    elif call.kind == "clear":
        call.method, call.body = "DeleteRange", text(1, call.keys[0]) + text(2, call.keys[1])
    elif call.kind == "compact":
        call.method, call.body = "Compaction", number(1, call.revision)
    elif call.kind == "read":
        body = text(1, call.keys[0]) if len(call.keys) == 1 else EVERYTHING
        body += number(4, call.revision) if call.revision else b""
        call.method, call.body = "Range", body + (number(7, 1) if call.serializable else b"")
    else:
        call.method, call.body = "Txn", _transaction(call)


def _transaction(call: Call) -> bytes:
    body = b""
    if call.kind == "swap":
        # Compare{result: EQUAL, target: VALUE or VERSION (0 says that there is no such key)}
        if call.expect is None:
            compare = text(3, call.keys[0]) + number(4, 0)
        else:
            compare = number(2, 3) + text(3, call.keys[0]) + text(7, call.expect)
        body += text(1, compare)
    if call.kind == "renew":
        # Compare{result: NOT_EQUAL, target: VERSION, key: "k", version: 0, range_end: "l"}
        body += text(1, number(1, 3) + text(3, b"k") + number(4, 0) + text(64, b"l"))
        body += text(2, text(3, text(1, b"p") + text(2, b"q")))
        body += text(2, text(1, text(1, b"k") + text(2, b"l")))
        body += text(3, text(2, text(1, call.keys[0]) + text(2, call.value)))
    if call.kind == "late":
        # The deletion of all keys from "k" on, and a put that keeps the value (field 5) of one that is gone by then.
        body += text(2, text(3, text(1, b"k") + text(2, b"\0")))
        return body + text(2, text(2, text(1, call.keys[0]) + number(5, 1)))
    for key in call.keys:
        body += text(2, text(2, text(1, key) + text(2, call.value)))
    if call.kind == "swap":
        body += text(3, text(1, text(1, call.keys[0])))
    return body


def revision_of(header: bytes) -> int:
    """The revision in a ResponseHeader."""
    return next((int(value) for field, value in fields(header) if field == 3), 0)


def parse_range(reply: bytes) -> tuple[int, list[Pair]]:
    """(revision, pairs) of a RangeResponse."""
    revision, found = 0, []
    for field, value in fields(reply):
        if field == 1:
            revision = revision_of(bytes(value))
        elif field == 2:
            found.append(_pair(bytes(value)))
    return revision, found


def _pair(data: bytes) -> Pair:
    known = dict(fields(data))
    return Pair(
        bytes(known.get(1, b"")),
        int(known.get(3, 0)),
        int(known.get(2, 0)),
        int(known.get(4, 0)),
        bytes(known.get(5, b"")),
    )


@dataclasses.dataclass
class Event:
    """One change as a watcher is told of it. A deletion has a key and a revision only."""

    deleted: bool
    pair: Pair
    before: Pair | None


@dataclasses.dataclass
class Told:
    """A WatchResponse."""

    revision: int = 0
    watch_id: int = 0
    created: bool = False
    canceled: bool = False
    compacted: int = 0
    reason: bytes = b""
    fragment: bool = False
    events: list[Event] = dataclasses.field(default_factory=list)


def parse_watch(reply: bytes) -> Told:
    """A WatchResponse."""
    known = dict(fields(reply))
    ident = int(known.get(2, 0))
    return Told(
        revision_of(bytes(known.get(1, b""))),
        ident - (ident >> 63 << 64),
        bool(known.get(3)),
        bool(known.get(4)),
        int(known.get(5, 0)),
        bytes(known.get(6, b"")),
        bool(known.get(7)),
        [_event(bytes(value)) for kind, value in fields(reply) if kind == 11],
    )


def _event(data: bytes) -> Event:
    known = dict(fields(data))
    before = known.get(3)
    return Event(known.get(1) == 1, _pair(bytes(known[2])), None if before is None else _pair(bytes(before)))


def create_watch(key: bytes, end: bytes, start: int, filters: bytes, flags: dict[int, bool], ident: int) -> bytes:
    """WatchRequest with a create request; `flags` by their field numbers."""
    body = text(1, key) + text(2, end) + number(3, start) + text(5, filters)
    body += b"".join(number(flag, 1) for flag, wanted in flags.items() if wanted) + number(7, ident)
    return text(1, body)


def cancel_watch(ident: int) -> bytes:
    """WatchRequest with a cancel request."""
    return text(2, number(1, ident))


def some_events(reply: bytes, first: int, last: int) -> bytes:
    """A WatchResponse with the events `first` to `last - 1` of this one, and all else that it has."""
    found = fields(reply)
    events = [bytes(value) for kind, value in found if kind == 11 and not isinstance(value, int)]
    rest = [number(kind, v) if isinstance(v, int) else text(kind, v) for kind, v in found if kind != 11]
    return b"".join(rest) + b"".join(text(11, event) for event in events[first:last])


def progress_mark(revision: int) -> bytes:
    """A WatchResponse as the answer to a request for progress."""
    return text(1, number(3, revision)) + number(2, (1 << 64) - 1)


ASK_PROGRESS = text(3, b"")  # WatchRequest with a progress request


def parse_write(call: Call, reply: bytes) -> tuple[int, bool, list[Pair]]:
    """(revision, whether a swap took place, what a failed one read) of a write's reply."""
    revision, swapped, found = 0, False, []
    for field, value in fields(reply):
        if field == 1:
            revision = revision_of(bytes(value))
        elif field == 2 and call.method == "Txn":
            swapped = bool(value) and call.kind in ("swap", "renew")
        elif field == 3 and call.method == "Txn":
            for kind, answer in fields(bytes(value)):
                if kind == 1:
                    found = parse_range(bytes(answer))[1]
    return revision, swapped, found
