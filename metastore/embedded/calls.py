"""The store as a Python object: what a `Node` offers inside its own process.

Every call builds the same request message a remote client would send and goes the same way: admission, batch, log,
apply. All of it is thread-safe: any number of threads may call, the node's loop thread does the work. Three forms:

* blocking: `node.put(key, value)` returns the result or raises the error a remote client would get;
* `node.futures.put(key, value)` returns a `concurrent.futures.Future` at once;
* `node.put_many(pairs)` puts any number of pairs, in their order, and waits for all; it waits for room where there is
  none, never gets `errors.TooManyRequests`, and has no more than WINDOW puts, or about WINDOW_BYTES, under way.

A Future's callbacks run in the loop thread: keep them short. A blocking call in one raises RuntimeError.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, wait
from typing import Any

from .. import errors
from .._core.waiter import Waiter
from .answers import Answer, may_block
from .requests import (
    Key,
    SortOrder,
    SortTarget,
    as_bytes,
    delete_request,
    delete_result,
    messages,
    prefix_range,
    put_request,
    put_result,
    range_request,
    range_result,
    txn_result,
)
from .results import CompactResult, DeleteResult, KeyValue, PutResult, RangeResult, TxnResult
from .transactions import Compare, Op, txn_of

#: Method, request, and who waits for the answer.
Call = tuple[str, bytes, Waiter]

#: What `put_many` hands over at a time, and how much of it may be under way.
SLICE, SLICE_BYTES = 500, 1 << 20
WINDOW, WINDOW_BYTES = 8 * SLICE, 8 * SLICE_BYTES


class FutureCall(Waiter):
    """A waiter that resolves a Future with the decoded reply."""

    def __init__(self, decode: Callable[[bytes], Any]) -> None:
        self.future = Answer()
        self.decode = decode

    def complete(self, reply: bytes) -> None:
        """Decode `reply` and resolve."""
        try:
            result = self.decode(reply)
        except BaseException as error:  # noqa: BLE001 whatever a decoder raises belongs to the caller, not to the loop
            self.future.give(None, error)
        else:
            self.future.give(result)

    def fail(self, error: errors.MetaStoreError) -> None:
        """Resolve with the error."""
        self.future.give(None, error)


class Futures:
    """The calls of the store, each giving a `concurrent.futures.Future` at once: `node.futures`.

    Arguments, results and errors are those of the calls of the same names of `Node`. The Future has the error; a call
    itself raises only what is wrong with its arguments (TypeError, ValueError), and `errors.Stopped` where the node
    does not run. A Future cannot be cancelled: what was handed over is done.
    """

    def __init__(
        self, submit: Callable[[Sequence[Call]], None], submit_patient: Callable[[Sequence[Call]], None]
    ) -> None:
        """`submit` hands calls to the loop thread, `submit_patient` those that wait for room instead of being refused
        when too many are in flight."""
        self._submit = submit
        self._submit_patient = submit_patient

    def _prepare(self, method: str, request: Any, decode: Callable[[Any], Any]) -> tuple[str, bytes, FutureCall]:
        reply = getattr(messages(), f"{method}Response")
        return method, request.SerializeToString(), FutureCall(lambda data: decode(reply.FromString(data)))

    def _call(self, method: str, request: Any, decode: Callable[[Any], Any]) -> Future[Any]:
        call = self._prepare(method, request, decode)
        self._submit([call])
        return call[2].future

    def put(
        self,
        key: Key,
        value: Key,
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
    ) -> Future[PutResult]:
        """As `Node.put`."""
        request = put_request(
            key, value, lease=lease, prev_kv=prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease
        )
        return self._call("Put", request, put_result)

    def put_many(self, pairs: Iterable[tuple[Key, Key]]) -> list[Future[PutResult]]:
        """One put for each (key, value), in order, with one wake-up; each is an operation of its own.

        They wait, in this order, for room among what is in flight, and other calls may overtake them then. All of them
        are held in memory until they are done: for many pairs there is `Node.put_many`, which is bounded."""
        calls = [self._prepare("Put", put_request(key, value), put_result) for key, value in pairs]
        self._submit_patient(calls)
        return [call[2].future for call in calls]

    def range(
        self,
        key: Key,
        range_end: Key | None = None,
        *,
        limit: int = 0,
        revision: int = 0,
        sort_order: SortOrder = SortOrder.NONE,
        sort_target: SortTarget = SortTarget.KEY,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
    ) -> Future[RangeResult]:
        """As `Node.range`."""
        request = range_request(
            key,
            range_end,
            limit=limit,
            revision=revision,
            sort_order=sort_order,
            sort_target=sort_target,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        return self._call("Range", request, range_result)

    def delete(self, key: Key, range_end: Key | None = None, *, prev_kv: bool = False) -> Future[DeleteResult]:
        """As `Node.delete`."""
        return self._call("DeleteRange", delete_request(key, range_end, prev_kv), delete_result)

    def delete_prefix(self, prefix: Key, *, prev_kv: bool = False) -> Future[DeleteResult]:
        """As `Node.delete_prefix`."""
        return self.delete(*prefix_range(prefix), prev_kv=prev_kv)

    def txn(
        self, compare: Sequence[Compare] = (), success: Sequence[Op] = (), failure: Sequence[Op] = ()
    ) -> Future[TxnResult]:
        """As `Node.txn`."""
        return self._call("Txn", txn_of(compare, success, failure), txn_result)

    def compact(self, revision: int, *, physical: bool = False) -> Future[CompactResult]:
        """As `Node.compact`."""
        request = messages().CompactionRequest(revision=revision, physical=physical)
        return self._call("Compaction", request, lambda message: CompactResult(message.header.revision))


def _parts(pairs: Iterable[tuple[Key, Key]]) -> Iterator[tuple[list[tuple[Key, Key]], int]]:
    """The pairs in slices, each with its bytes. Raises TypeError."""
    part: list[tuple[Key, Key]] = []
    size = 0
    for key, value in pairs:
        raw = as_bytes(key, "key"), as_bytes(value, "value")
        part.append(raw)
        size += len(raw[0]) + len(raw[1])
        if len(part) == SLICE or size >= SLICE_BYTES:
            yield part, size
            part, size = [], 0
    if part:
        yield part, size


class EmbeddedKV:
    """Blocking calls on top of `Futures`.

    Keys and values are bytes, or str, which is encoded as UTF-8; results have bytes. Every call takes a `timeout` in
    seconds. When it is over the call raises TimeoutError, and a write may be done all the same. Without one the node's
    own `limits.request_timeout` ends the wait with `errors.Timeout`.

    All calls raise subclasses of `errors.ApiError`, with the codes and texts that a remote client gets. Any of them:

    * `Stopped`: the node does not run, or stopped before it answered;
    * `Timeout`, `NoLeader`, `LeaderChanged`: no answer in time, or none from a leader; a write may be done anyway;
    * `TooManyRequests`: too much is in flight, see `limits.max_inflight_requests` and `limits.max_inflight_bytes`;
    * `EmptyKey`: the key is empty.

    Writes may get `RequestTooLarge` (`limits.max_request_bytes`) and `NoSpace`, reads `Compacted` and `FutureRevision`
    where they name a revision, and `ReplyTooLarge`. Arguments of the wrong type raise TypeError, numbers that do not
    fit into 64 bits ValueError. In the loop's thread, where callbacks of Futures run, all of them raise RuntimeError.
    """

    futures: Futures

    @property
    def _waiting(self) -> Futures:
        """The calls, for one that waits for the answer. Raises RuntimeError in a loop's thread."""
        may_block()
        return self.futures

    def put(
        self,
        key: Key,
        value: Key,
        *,
        lease: int = 0,
        prev_kv: bool = False,
        ignore_value: bool = False,
        ignore_lease: bool = False,
        timeout: float | None = None,
    ) -> PutResult:
        """Store `value` under `key`.

        `lease` is the id of a lease to attach, 0 for none; raises LeaseNotFound where there is none. `prev_kv` asks for
        the key as it was before. `ignore_value` keeps the value and wants an empty `value`, `ignore_lease` keeps the
        lease; both raise KeyNotFound where the key is missing, and ValueProvided or LeaseProvided where one is given.
        """
        future = self._waiting.put(
            key, value, lease=lease, prev_kv=prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease
        )
        return future.result(timeout)

    def put_many(self, pairs: Iterable[tuple[Key, Key]], *, timeout: float | None = None) -> list[PutResult]:
        """Put all (key, value) `pairs`, in their order, and wait for all of them; one result for each.

        Their number may be any, and `pairs` an iterator. Each is an operation of its own: this is no transaction.
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
                window.append((self._waiting.put_many(part), nbytes))
                count, size = count + len(part), size + nbytes
            for futures, _ in window:
                results += [future.result(timeout) for future in futures]
        except errors.MetaStoreError:
            wait([future for futures, _ in window for future in futures], timeout)
            raise
        return results

    def range(
        self,
        key: Key,
        range_end: Key | None = None,
        *,
        limit: int = 0,
        revision: int = 0,
        sort_order: SortOrder = SortOrder.NONE,
        sort_target: SortTarget = SortTarget.KEY,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        min_mod_revision: int = 0,
        max_mod_revision: int = 0,
        min_create_revision: int = 0,
        max_create_revision: int = 0,
        timeout: float | None = None,
    ) -> RangeResult:
        """The one key, or all keys in [key, range_end); a `range_end` of "\\0" means all keys from `key` on.

        At most `limit` keys come, 0 for all of them, as of `revision`, 0 for now. They are sorted by `sort_target`
        where a `sort_order` is given, else by key. `keys_only` leaves the values out, `count_only` gives the number
        alone. The four bounds leave out keys whose revisions lie outside, 0 for no bound; `count` counts those too.

        A read is linearizable: it sees every write that was answered before it began, by whichever member. With
        `serializable` it sees the state of this member, which may be behind, and asks nobody else.
        """
        future = self._waiting.range(
            key,
            range_end,
            limit=limit,
            revision=revision,
            sort_order=sort_order,
            sort_target=sort_target,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            min_mod_revision=min_mod_revision,
            max_mod_revision=max_mod_revision,
            min_create_revision=min_create_revision,
            max_create_revision=max_create_revision,
        )
        return future.result(timeout)

    def get(
        self,
        key: Key,
        *,
        revision: int = 0,
        serializable: bool = False,
        keys_only: bool = False,
        timeout: float | None = None,
    ) -> KeyValue | None:
        """The one key, or None where it is missing; `revision`, `serializable`, `keys_only` as in `range`."""
        found = self.range(key, revision=revision, serializable=serializable, keys_only=keys_only, timeout=timeout).kvs
        return found[0] if found else None

    def get_prefix(
        self,
        prefix: Key,
        *,
        limit: int = 0,
        revision: int = 0,
        sort_order: SortOrder = SortOrder.NONE,
        sort_target: SortTarget = SortTarget.KEY,
        serializable: bool = False,
        keys_only: bool = False,
        count_only: bool = False,
        timeout: float | None = None,
    ) -> RangeResult:
        """All keys that begin with `prefix`, all keys where it is empty; the rest as in `range`."""
        return self.range(
            *prefix_range(prefix),
            limit=limit,
            revision=revision,
            sort_order=sort_order,
            sort_target=sort_target,
            serializable=serializable,
            keys_only=keys_only,
            count_only=count_only,
            timeout=timeout,
        )

    def delete(
        self, key: Key, range_end: Key | None = None, *, prev_kv: bool = False, timeout: float | None = None
    ) -> DeleteResult:
        """Delete the one key, or all in [key, range_end); `prev_kv` asks for them as they were.

        A key that is missing is no error: `deleted` is 0 then, and the revision stays."""
        return self._waiting.delete(key, range_end, prev_kv=prev_kv).result(timeout)

    def delete_prefix(self, prefix: Key, *, prev_kv: bool = False, timeout: float | None = None) -> DeleteResult:
        """Delete all keys that begin with `prefix`, all keys where it is empty; the rest as in `delete`."""
        return self._waiting.delete_prefix(prefix, prev_kv=prev_kv).result(timeout)

    def txn(
        self,
        compare: Sequence[Compare] = (),
        success: Sequence[Op] = (),
        failure: Sequence[Op] = (),
        *,
        timeout: float | None = None,
    ) -> TxnResult:
        """If all conditions of `compare` hold, do the operations of `success`, else those of `failure`, as one step.

        Nobody sees a part of it. All that it changes has one revision. Raises TooManyOps (`limits.max_txn_ops`) and
        DuplicateKey where a branch would put the same key twice; then nothing is changed.
        """
        return self._waiting.txn(compare, success, failure).result(timeout)

    def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> CompactResult:
        """Drop the history before `revision`: reads of earlier revisions raise `Compacted` from then on.

        With `physical` this returns when the space is given back. Raises Compacted where that was done before,
        FutureRevision where the store is not there yet."""
        return self._waiting.compact(revision, physical=physical).result(timeout)
