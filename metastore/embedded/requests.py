"""Request messages out of plain arguments, and results out of reply messages. Requests are made here and nowhere else.

An argument of the wrong type raises TypeError, one that cannot be meant ValueError; both name it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from enum import IntEnum
from typing import Any

from .. import errors
from .arguments import Key, as_bytes, choice, flag, number
from .results import (
    CompactResult,
    DeleteResult,
    EventKind,
    GrantResult,
    KeyValue,
    LeaseInfo,
    PutResult,
    RangeResult,
    TxnResult,
    WatchEvent,
)

#: Bytes of a reply that are decoded at one go: about a millisecond's worth, in which no other thread runs.
PIECE = 64 << 10


class SortOrder(IntEnum):
    """In which order a range gives its keys; the numbers are etcd's. NONE is by key, ascending, where it matters."""

    NONE = 0
    ASCEND = 1
    DESCEND = 2


class SortTarget(IntEnum):
    """What a range is sorted by; the numbers are etcd's. CREATE and MOD are the revisions."""

    KEY = 0
    VERSION = 1
    CREATE = 2
    MOD = 3
    VALUE = 4


def messages() -> Any:
    """The message classes; imported late, for protobuf takes a while and many embedders only start a node."""
    from ..api import pb

    return pb


def end_bytes(range_end: Key | None) -> bytes:
    """The end of a range; none is empty on the wire."""
    return b"" if range_end is None else as_bytes(range_end, "range_end")


def prefix_range(prefix: Key) -> tuple[bytes, bytes]:
    """(key, range_end) of all keys that begin with `prefix`; an empty prefix means all keys."""
    raw = as_bytes(prefix, "prefix")
    return raw or b"\0", prefix_end(raw)


def prefix_end(prefix: bytes) -> bytes:
    """The `range_end` that makes a range of all keys with `prefix` (etcd API: prefix plus one bit; b"\\0" is all)."""
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else b"\0"


#: How each field is checked that is not a number.
_FLAGS = {"prev_kv", "ignore_value", "ignore_lease", "serializable", "keys_only", "count_only", "physical"}
_CHOICES: dict[str, type[IntEnum]] = {"sort_order": SortOrder, "sort_target": SortTarget}


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields that are not at their default, which is 0 for all of them. Raises TypeError, ValueError."""
    given: dict[str, int | bool] = {}
    for name, value in fields.items():
        if name in _FLAGS:
            if value is not False:
                given[name] = flag(value, name)
        elif name in _CHOICES:
            given[name] = choice(value, _CHOICES[name], name)
        elif type(value) is not int or value:
            given[name] = number(value, name)
    return given


def put_request(key: Key, value: Key, **fields: int | bool) -> Any:
    """PutRequest; `fields` are its other fields, by their names."""
    return messages().PutRequest(key=as_bytes(key, "key"), value=as_bytes(value, "value"), **_checked(fields))


def range_request(key: Key, range_end: Key | None, **fields: int | bool) -> Any:
    """RangeRequest; `fields` are its other fields, by their names."""
    return messages().RangeRequest(key=as_bytes(key, "key"), range_end=end_bytes(range_end), **_checked(fields))


def delete_request(key: Key, range_end: Key | None, prev_kv: bool) -> Any:
    """DeleteRangeRequest."""
    made = messages().DeleteRangeRequest
    return made(key=as_bytes(key, "key"), range_end=end_bytes(range_end), **_checked({"prev_kv": prev_kv}))


def txn_request(compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any]) -> Any:
    """TxnRequest out of messages."""
    return messages().TxnRequest(compare=compare, success=success, failure=failure)


def compact_request(revision: int, physical: bool) -> Any:
    """CompactionRequest. A revision of 0 is left to the store, which refuses it."""
    return messages().CompactionRequest(revision=number(revision, "revision"), physical=flag(physical, "physical"))


def watch_request(
    key: Key, range_end: Key | None, start_revision: int, prev_kv: bool, puts: bool, deletes: bool
) -> bytes:
    """An encoded WatchRequest. Raises EmptyKey."""
    first, end = as_bytes(key, "key"), end_bytes(range_end)
    if not first:
        raise errors.EmptyKey()
    if end not in (b"", b"\0") and end <= first:
        raise ValueError("range_end must be above key; None is the one key, and a zero byte all keys from it on")
    if number(start_revision, "start_revision") < 0:
        raise ValueError(f"start_revision must be 0 or above, not {start_revision}")
    filters = [*([] if flag(puts, "puts") else [0]), *([] if flag(deletes, "deletes") else [1])]
    if len(filters) > 1:
        raise ValueError("puts and deletes must not both be False: nothing would be watched")
    made = messages().WatchCreateRequest(
        key=first, range_end=end, start_revision=start_revision, prev_kv=flag(prev_kv, "prev_kv"), filters=filters
    )
    return bytes(messages().WatchRequest(create_request=made).SerializeToString())


def lease_request(method: str, **fields: int | bool) -> Any:
    """The request of a method of Lease; `fields` are those of its message, by their names."""
    for name, value in fields.items():
        if name == "keys":
            flag(value, name)  # type: ignore[arg-type]
        else:
            number(value, "ttl" if name == "TTL" else "id")
    return getattr(messages(), f"{method}Request")(**fields)


def grant_result(message: Any) -> GrantResult:
    """Out of a LeaseGrantResponse."""
    return GrantResult(message.ID, message.TTL)


def lease_info(message: Any) -> LeaseInfo | None:
    """Out of a LeaseTimeToLiveResponse."""
    return LeaseInfo(message.ID, message.TTL, message.grantedTTL, tuple(message.keys)) if message.TTL >= 0 else None


def renewed_ttl(message: Any) -> int:
    """Out of a LeaseKeepAliveResponse."""
    return int(message.TTL)


def lease_ids(message: Any) -> tuple[int, ...]:
    """Out of a LeaseLeasesResponse."""
    return tuple(one.ID for one in message.leases)


def watch_event(message: Any) -> WatchEvent:
    """Out of an Event."""
    prev = _kv(message.prev_kv) if message.HasField("prev_kv") else None
    return WatchEvent(EventKind.DELETE if message.type else EventKind.PUT, _kv(message.kv), prev)


def _kv(message: Any) -> KeyValue:
    return KeyValue(
        message.key, message.value, message.create_revision, message.mod_revision, message.version, message.lease
    )


def put_result(message: Any, revision: int = 0) -> PutResult:
    """Out of a PutResponse; `revision` is that of the transaction around it, whose parts have no headers."""
    prev = _kv(message.prev_kv) if message.HasField("prev_kv") else None
    return PutResult(message.header.revision or revision, prev)


def range_result(message: Any, revision: int = 0) -> RangeResult:
    """Out of a RangeResponse."""
    kvs = tuple(_kv(kv) for kv in message.kvs)
    return RangeResult(message.header.revision or revision, kvs, message.count, message.more)


def delete_result(message: Any, revision: int = 0) -> DeleteResult:
    """Out of a DeleteRangeResponse."""
    return DeleteResult(message.header.revision or revision, message.deleted, tuple(_kv(kv) for kv in message.prev_kvs))


def compact_result(message: Any) -> CompactResult:
    """Out of a CompactionResponse."""
    return CompactResult(message.header.revision)


def txn_result(message: Any, revision: int = 0) -> TxnResult:
    """Out of a TxnResponse."""
    revision = message.header.revision or revision
    results = tuple(
        _RESULTS[op.WhichOneof("response")](getattr(op, op.WhichOneof("response")), revision)
        for op in message.responses
    )
    return TxnResult(revision, message.succeeded, results)


_RESULTS: dict[str, Callable[[Any, int], PutResult | RangeResult | DeleteResult | TxnResult]] = {
    "response_put": put_result,
    "response_range": range_result,
    "response_delete_range": delete_result,
    "response_txn": txn_result,
}


def decoder(method: str, result: Callable[[Any], Any]) -> Callable[[bytes], Iterator[Any]]:
    """What decodes the reply of a call of `method`: an iterator that ends with the result and yields None before, now
    and then, where others may run."""
    kind = getattr(messages(), f"{method}Response")

    def whole(reply: bytes) -> Iterator[Any]:
        yield result(kind.FromString(reply))

    def in_pieces(reply: bytes) -> Iterator[Any]:
        if len(reply) <= PIECE:
            yield result(kind.FromString(reply))
            return
        revision, kvs, count, more = 0, [], 0, False
        for piece in split(reply, PIECE):
            part = kind.FromString(piece)
            kvs += [_kv(kv) for kv in part.kvs]
            revision, count, more = part.header.revision or revision, part.count or count, part.more or more
            yield None
        yield RangeResult(revision, tuple(kvs), count, more)

    return in_pieces if method == "Range" else whole


def split(message: bytes, size: int) -> Iterator[bytes]:
    """An encoded message in pieces of about `size` bytes, each of them whole fields, so that each is a message too and
    all of them together say what the whole does. A field that is larger is a piece of its own."""
    begun = at = 0
    end = len(message)
    while at < end:
        kind = message[at] & 7  # the fields that are met here have numbers below 16, and so tags of one byte
        length, shift, at = 0, 0, at + 1
        while True:
            byte = message[at]
            at += 1
            length |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                break
        if kind == 2:
            at += length
        if at - begun >= size:
            yield message[begun:at]
            begun = at
    if begun < end:
        yield message[begun:]
