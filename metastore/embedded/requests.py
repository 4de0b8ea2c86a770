"""Request messages out of plain arguments, and results out of reply messages. Requests are made here and nowhere else.

protobuf knows the range of each number: one that does not fit raises ValueError. A key or value that is neither bytes
nor str raises TypeError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import Any

from .results import DeleteResult, KeyValue, PutResult, RangeResult, TxnResult

#: A key or a value; str is encoded as UTF-8.
Key = bytes | str


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


def as_bytes(value: Key, name: str) -> bytes:
    """The bytes of a key or value; `name` is its name in the TypeError."""
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"{name} must be bytes or str, not {type(value).__name__}")


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


def put_request(key: Key, value: Key, **fields: int | bool) -> Any:
    """PutRequest; `fields` are its other fields, by their names."""
    return messages().PutRequest(key=as_bytes(key, "key"), value=as_bytes(value, "value"), **fields)


def range_request(key: Key, range_end: Key | None, **fields: int | bool) -> Any:
    """RangeRequest; `fields` are its other fields, by their names."""
    return messages().RangeRequest(key=as_bytes(key, "key"), range_end=end_bytes(range_end), **fields)


def delete_request(key: Key, range_end: Key | None, prev_kv: bool) -> Any:
    """DeleteRangeRequest."""
    return messages().DeleteRangeRequest(key=as_bytes(key, "key"), range_end=end_bytes(range_end), prev_kv=prev_kv)


def txn_request(compare: Sequence[Any], success: Sequence[Any], failure: Sequence[Any]) -> Any:
    """TxnRequest out of messages."""
    return messages().TxnRequest(compare=compare, success=success, failure=failure)


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
