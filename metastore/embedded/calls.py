"""The store as a Python object: what a `Node` offers inside its own process.

Every call builds the same request message a remote client would send and goes the same way: admission, batch, log,
apply. All of it is thread-safe: any number of threads may call, the node's loop thread does the work. Three forms:

* blocking: `node.put(key, value)` returns the result or raises the error a remote client would get;
* `node.futures.put(key, value)` returns a `concurrent.futures.Future` at once;
* `node.put_many(pairs)` puts any number of pairs, in their order, and waits for all; it waits for room where there is
  none, never gets `errors.TooManyRequests`, and has no more than WINDOW puts, or about WINDOW_BYTES, under way.

A Future's callbacks run in the loop thread: keep them short, and never block on the node inside one.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from dataclasses import dataclass
from typing import Any

from .. import errors
from .._core.waiter import Waiter

Key = bytes | str
#: Method, request, and who waits for the answer.
Call = tuple[str, bytes, Waiter]

#: What `put_many` hands over at a time, and how much of it may be under way.
SLICE, SLICE_BYTES = 500, 1 << 20
WINDOW, WINDOW_BYTES = 8 * SLICE, 8 * SLICE_BYTES


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key at one revision (mvccpb.KeyValue)."""

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True, slots=True)
class PutResult:
    """`revision` of the store after the put; `prev` only where it was asked for and there was one."""

    revision: int
    prev: KeyValue | None


@dataclass(frozen=True, slots=True)
class RangeResult:
    """`kvs` found, `count` of all keys in the range (whatever the limit), `more` beyond the limit."""

    revision: int
    kvs: tuple[KeyValue, ...]
    count: int
    more: bool


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """`deleted` keys; `prevs` only where they were asked for."""

    revision: int
    deleted: int
    prevs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`succeeded` tells which branch ran; one result for each of its operations."""

    revision: int
    succeeded: bool
    results: tuple[PutResult | RangeResult | DeleteResult | TxnResult, ...]


@dataclass(frozen=True, slots=True)
class CompactResult:
    """`revision` of the store when it was compacted."""

    revision: int


class FutureCall(Waiter):
    """A waiter that resolves a Future with the decoded reply."""

    def __init__(self, decode: Callable[[bytes], Any]) -> None:
        self.future: Future[Any] = Future()
        self.future.set_running_or_notify_cancel()
        self.decode = decode

    def complete(self, reply: bytes) -> None:
        """Decode `reply` and resolve."""
        try:
            self.future.set_result(self.decode(reply))
        except Exception as error:  # noqa: BLE001 whatever a decoder raises belongs to the caller, not to the loop thread
            self.future.set_exception(error)

    def fail(self, error: errors.MetaStoreError) -> None:
        """Resolve with the error."""
        self.future.set_exception(error)


def prefix_end(prefix: bytes) -> bytes:
    """The `range_end` that makes a range of all keys with `prefix` (etcd API: prefix plus one bit; b"\\0" is all)."""
    cut = prefix.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else b"\0"


def _bytes(value: Key, name: str) -> bytes:
    if isinstance(value, str):
        return value.encode()
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value)
    raise TypeError(f"{name} must be bytes or str, not {type(value).__name__}")


class Op:
    """Builders of the parts of a transaction.

    `Op.put`, `Op.range` and `Op.delete` take the arguments of the calls of the same name; `Op.txn` nests. The compare
    builders (`value`, `version`, `create_revision`, `mod_revision`, `lease`) take a relation of "=", "!=", ">", "<".
    """

    RELATIONS = {"=": 0, ">": 1, "<": 2, "!=": 3}

    @staticmethod
    def put(key: Key, value: Key, **options: Any) -> Any:
        """A put inside a transaction."""
        return _messages().RequestOp(request_put=put_request(key, value, **options))

    @staticmethod
    def range(key: Key, range_end: Key | None = None, **options: Any) -> Any:
        """A range inside a transaction."""
        return _messages().RequestOp(request_range=range_request(key, range_end, **options))

    @staticmethod
    def delete(key: Key, range_end: Key | None = None, **options: Any) -> Any:
        """A delete inside a transaction."""
        return _messages().RequestOp(request_delete_range=delete_request(key, range_end, **options))

    @staticmethod
    def txn(compare: Sequence[Any] = (), success: Sequence[Any] = (), failure: Sequence[Any] = ()) -> Any:
        """A transaction inside a transaction."""
        return _messages().RequestOp(request_txn=txn_request(compare, success, failure))

    @staticmethod
    def value(key: Key, relation: str, value: Key) -> Any:
        """Compare the value of `key`; false where the key is missing."""
        return _compare(key, relation, 3, value=_bytes(value, "value"))

    @staticmethod
    def version(key: Key, relation: str, version: int) -> Any:
        """Compare the version of `key`; 0 where it is missing."""
        return _compare(key, relation, 0, version=version)

    @staticmethod
    def create_revision(key: Key, relation: str, revision: int) -> Any:
        """Compare the create revision of `key`; 0 where it is missing."""
        return _compare(key, relation, 1, create_revision=revision)

    @staticmethod
    def mod_revision(key: Key, relation: str, revision: int) -> Any:
        """Compare the modification revision of `key`; 0 where it is missing."""
        return _compare(key, relation, 2, mod_revision=revision)

    @staticmethod
    def lease(key: Key, relation: str, lease: int) -> Any:
        """Compare the lease of `key`; 0 where it has none."""
        return _compare(key, relation, 4, lease=lease)


def _compare(key: Key, relation: str, target: int, **operand: Any) -> Any:
    if relation not in Op.RELATIONS:
        raise ValueError(f"relation {relation!r} is none of {', '.join(Op.RELATIONS)}")
    return _messages().Compare(result=Op.RELATIONS[relation], target=target, key=_bytes(key, "key"), **operand)


def _messages() -> Any:
    """The message classes; imported late, for protobuf takes a while and many embedders only start a node."""
    from ..api import pb

    return pb


def put_request(key: Key, value: Key, **options: Any) -> Any:
    """PutRequest; options are its other fields (lease, prev_kv, ignore_value, ignore_lease)."""
    return _messages().PutRequest(key=_bytes(key, "key"), value=_bytes(value, "value"), **options)


def range_request(key: Key, range_end: Key | None = None, **options: Any) -> Any:
    """RangeRequest; options are its other fields (limit, revision, sort_order, sort_target, serializable, ...)."""
    end = b"" if range_end is None else _bytes(range_end, "range_end")
    return _messages().RangeRequest(key=_bytes(key, "key"), range_end=end, **options)


def delete_request(key: Key, range_end: Key | None = None, **options: Any) -> Any:
    """DeleteRangeRequest; the option is prev_kv."""
    end = b"" if range_end is None else _bytes(range_end, "range_end")
    return _messages().DeleteRangeRequest(key=_bytes(key, "key"), range_end=end, **options)


def txn_request(compare: Sequence[Any] = (), success: Sequence[Any] = (), failure: Sequence[Any] = ()) -> Any:
    """TxnRequest from the parts that `Op` builds."""
    return _messages().TxnRequest(compare=list(compare), success=list(success), failure=list(failure))


def _kv(message: Any) -> KeyValue:
    return KeyValue(
        message.key, message.value, message.create_revision, message.mod_revision, message.version, message.lease
    )


def _put_result(message: Any, revision: int = 0) -> PutResult:
    prev = _kv(message.prev_kv) if message.HasField("prev_kv") else None
    return PutResult(message.header.revision or revision, prev)


def _range_result(message: Any, revision: int = 0) -> RangeResult:
    kvs = tuple(_kv(kv) for kv in message.kvs)
    return RangeResult(message.header.revision or revision, kvs, message.count, message.more)


def _delete_result(message: Any, revision: int = 0) -> DeleteResult:
    return DeleteResult(message.header.revision or revision, message.deleted, tuple(_kv(kv) for kv in message.prev_kvs))


def _txn_result(message: Any, revision: int = 0) -> TxnResult:
    revision = message.header.revision or revision
    results = tuple(
        _DECODERS[op.WhichOneof("response")](getattr(op, op.WhichOneof("response")), revision)
        for op in message.responses
    )
    return TxnResult(revision, message.succeeded, results)


_DECODERS: dict[str, Callable[[Any, int], Any]] = {
    "response_put": _put_result,
    "response_range": _range_result,
    "response_delete_range": _delete_result,
    "response_txn": _txn_result,
}


class Futures:
    """The calls of the store, each giving a Future. `submit(calls)` hands some to the loop thread, `submit_patient`
    those that wait for room instead of being refused when too many are in flight."""

    def __init__(
        self, submit: Callable[[Sequence[Call]], None], submit_patient: Callable[[Sequence[Call]], None]
    ) -> None:
        self._submit = submit
        self._submit_patient = submit_patient

    def _prepare(self, method: str, request: Any, decode: Callable[[Any], Any]) -> tuple[str, bytes, FutureCall]:
        reply = getattr(_messages(), f"{method}Response")
        return method, request.SerializeToString(), FutureCall(lambda data: decode(reply.FromString(data)))

    def _call(self, method: str, request: Any, decode: Callable[[Any], Any]) -> Future[Any]:
        call = self._prepare(method, request, decode)
        self._submit([call])
        return call[2].future

    def put(self, key: Key, value: Key, **options: Any) -> Future[PutResult]:
        """Store `value` under `key`. Options: lease, prev_kv, ignore_value, ignore_lease."""
        return self._call("Put", put_request(key, value, **options), _put_result)

    def put_many(self, pairs: Iterable[tuple[Key, Key]]) -> list[Future[PutResult]]:
        """One put for each pair, in order, with one wake-up; each is an operation of its own.

        They wait, in this order, for room among what is in flight, and other calls may overtake them then. All of them
        are held in memory until they are done: for many pairs there is `Node.put_many`, which is bounded."""
        calls = [self._prepare("Put", put_request(key, value), _put_result) for key, value in pairs]
        self._submit_patient(calls)
        return [call[2].future for call in calls]

    def range(self, key: Key, range_end: Key | None = None, **options: Any) -> Future[RangeResult]:
        """Keys in [key, range_end), or the one key. Options: limit, revision, sort_order, sort_target, serializable,
        keys_only, count_only, min_mod_revision, max_mod_revision, min_create_revision, max_create_revision."""
        return self._call("Range", range_request(key, range_end, **options), _range_result)

    def delete(self, key: Key, range_end: Key | None = None, **options: Any) -> Future[DeleteResult]:
        """Delete the key, or all in [key, range_end). Option: prev_kv."""
        return self._call("DeleteRange", delete_request(key, range_end, **options), _delete_result)

    def txn(
        self, compare: Sequence[Any] = (), success: Sequence[Any] = (), failure: Sequence[Any] = ()
    ) -> Future[TxnResult]:
        """If all of `compare` hold, `success`, else `failure`, as one step. Parts: see `Op`."""
        return self._call("Txn", txn_request(compare, success, failure), _txn_result)

    def compact(self, revision: int, physical: bool = False) -> Future[CompactResult]:
        """Drop history before `revision`; with `physical` the Future waits until the space is given back."""
        request = _messages().CompactionRequest(revision=revision, physical=physical)
        return self._call("Compaction", request, lambda message: CompactResult(message.header.revision))


def _parts(pairs: Iterable[tuple[Key, Key]]) -> Iterator[tuple[list[tuple[bytes, bytes]], int]]:
    """The pairs in slices, each with its bytes. Raises TypeError."""
    part: list[tuple[bytes, bytes]] = []
    size = 0
    for key, value in pairs:
        part.append((_bytes(key, "key"), _bytes(value, "value")))
        size += len(part[-1][0]) + len(part[-1][1])
        if len(part) == SLICE or size >= SLICE_BYTES:
            yield part, size
            part, size = [], 0
    if part:
        yield part, size


class EmbeddedKV:
    """Blocking calls on top of `Futures`. `timeout` is in seconds; without one the node's own request timeout ends
    the wait with `errors.Timeout`. All raise `errors.ApiError` subclasses, as a remote client would see them."""

    futures: Futures

    def put(self, key: Key, value: Key, *, timeout: float | None = None, **options: Any) -> PutResult:
        """Store `value` under `key`; options as in `Futures.put`."""
        return self.futures.put(key, value, **options).result(timeout)

    def put_many(self, pairs: Iterable[tuple[Key, Key]], *, timeout: float | None = None) -> list[PutResult]:
        """Put all pairs, in their order, and wait for all of them; their number may be any, and `pairs` an iterator.

        `timeout` is for each of them, from when it is first in line. After an error nothing more is handed over; the
        error is raised when all that was handed over has an outcome, and those before it may be there or not."""
        results: list[PutResult] = []
        window: deque[tuple[list[Future[PutResult]], int]] = deque()
        count = size = 0
        try:
            for part, nbytes in _parts(pairs):
                while window and (count + len(part) > WINDOW or size + nbytes > WINDOW_BYTES):
                    futures, done = window[0]
                    results += [future.result(timeout) for future in futures]
                    window.popleft()
                    count, size = count - len(futures), size - done
                window.append((self.futures.put_many(part), nbytes))
                count, size = count + len(part), size + nbytes
            for futures, _ in window:
                results += [future.result(timeout) for future in futures]
        except errors.MetaStoreError:
            wait([future for futures, _ in window for future in futures], timeout)
            raise
        return results

    def range(
        self, key: Key, range_end: Key | None = None, *, timeout: float | None = None, **options: Any
    ) -> RangeResult:
        """Keys in [key, range_end); options as in `Futures.range`."""
        return self.futures.range(key, range_end, **options).result(timeout)

    def get(self, key: Key, *, timeout: float | None = None, **options: Any) -> KeyValue | None:
        """The one key, or None."""
        found = self.range(key, timeout=timeout, **options).kvs
        return found[0] if found else None

    def get_prefix(self, prefix: Key, *, timeout: float | None = None, **options: Any) -> RangeResult:
        """All keys that begin with `prefix`."""
        raw = _bytes(prefix, "prefix")
        return self.range(raw or b"\0", prefix_end(raw), timeout=timeout, **options)

    def delete(
        self, key: Key, range_end: Key | None = None, *, timeout: float | None = None, **options: Any
    ) -> DeleteResult:
        """Delete the key, or all in [key, range_end)."""
        return self.futures.delete(key, range_end, **options).result(timeout)

    def txn(
        self,
        compare: Sequence[Any] = (),
        success: Sequence[Any] = (),
        failure: Sequence[Any] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """One transaction from the parts that `Op` builds."""
        return self.futures.txn(compare, success, failure).result(timeout)

    def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> CompactResult:
        """Drop history before `revision`."""
        return self.futures.compact(revision, physical).result(timeout)
