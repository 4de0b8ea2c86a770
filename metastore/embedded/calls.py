"""The store as a Python object: what a `Node` offers inside its own process.

Every call builds the same request message a remote client would send and goes the same way: admission, batch, log,
apply. All of it is thread-safe: any number of threads may call, the node's loop thread does the work. Three forms:

* blocking: `node.put(key, value)` returns the result or raises the error a remote client would get;
* `node.futures.put(key, value)` returns a `concurrent.futures.Future` at once;
* `node.put_many(pairs)` puts any number of pairs, in their order, and waits for all; it waits for room where there is
  none, never gets `errors.TooManyRequests`, and holds a bounded part of the pairs (`bulk.py`).

A reply is decoded by the thread that asks a Future for its result. A Future's callbacks run in the loop thread: keep
them short. A blocking call in one raises RuntimeError.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from .. import errors
from .._core.kv_answers import FuturePut, encode_put
from .._core.kv_direct import MISSED, DirectReads
from .._core.kv_pieces import Piece
from ..threads import LOOK_UP
from .answers import may_block
from .arguments import Key, Pairs, as_bytes, seconds
from .bulk import Bulk, Call, checked, pairs_of, source_of
from .outcome import FutureCall, Outcome, overdue
from .queued import Post, Queued
from .requests import (
    SortOrder,
    SortTarget,
    compact_request,
    compact_result,
    decoder,
    delete_request,
    delete_result,
    grant_result,
    lease_ids,
    lease_info,
    lease_request,
    prefix_range,
    put_request,
    put_result,
    range_request,
    range_result,
    renewed_ttl,
    txn_result,
)
from .results import (
    CompactResult,
    DeleteResult,
    GrantResult,
    KeyValue,
    LeaseInfo,
    PutManyResult,
    PutResult,
    RangeResult,
    TxnResult,
)
from .transactions import Compare, Op, txn_of


class Futures:
    """The calls of the store, each giving a `concurrent.futures.Future` at once: `node.futures`.

    Arguments, results and errors are those of the calls of the same names of `Node`. The Future has the error; a call
    itself raises only what is wrong with its arguments (TypeError, ValueError), and `errors.Stopped` where the node
    does not run. A Future cannot be cancelled: what was handed over is done.
    """

    def __init__(
        self, submit: Callable[[Sequence[Call]], None], submit_patient: Callable[[Sequence[Call | Piece]], None]
    ) -> None:
        """`submit` hands calls to the loop thread, `submit_patient` those that wait for room instead of being refused
        when too many are in flight."""
        self._submit = submit
        self._submit_patient = submit_patient

    def _call(self, method: str, request: Any, result: Callable[[Any], Any]) -> Future[Any]:
        call = FutureCall(decoder(method, result))
        self._submit([(method, request.SerializeToString(), call)])
        return call.future

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
        if type(lease) is int and lease == 0 and prev_kv is False and ignore_value is False and ignore_lease is False:
            future = Outcome()
            body = encode_put(as_bytes(key, "key"), as_bytes(value, "value"))
            self._submit([("Put", body, FuturePut(future, PutResult))])
            return future
        request = put_request(
            key, value, lease=lease, prev_kv=prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease
        )
        return self._call("Put", request, put_result)

    def put_many(self, pairs: Pairs) -> list[Future[PutResult]]:
        """One put for each (key, value), in order, with one wake-up; each is an operation of its own.

        They wait, in this order, for room among what is in flight, and other calls may overtake them then. All of them
        are held in memory until they are done: for many pairs there is `Node.put_many`, which is bounded."""
        bodies = [encode_put(*checked(pair, place)) for place, pair in enumerate(pairs_of(pairs))]
        futures: list[Future[PutResult]] = [Outcome() for _ in bodies]
        calls = (FuturePut(future, PutResult) for future in futures)
        self._submit_patient([("Put", body, call) for body, call in zip(bodies, calls, strict=True)])
        return futures

    def bulk(self) -> Bulk:
        """The account of a `put_many` that waits for what is under way. Raises Stopped where the node does not run."""
        self._submit_patient([])
        return Bulk(self._submit_patient)

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
        return self._call("Compaction", compact_request(revision, physical), compact_result)

    def grant(self, ttl: int, *, id: int = 0) -> Future[GrantResult]:
        """As `Node.grant`."""
        return self._call("LeaseGrant", lease_request("LeaseGrant", TTL=ttl, ID=id), grant_result)

    def revoke(self, id: int) -> Future[None]:
        """As `Node.revoke`."""
        return self._call("LeaseRevoke", lease_request("LeaseRevoke", ID=id), lambda _: None)

    def keep_alive(self, id: int) -> Future[int]:
        """As `Node.keep_alive`."""
        return self._call("LeaseKeepAlive", lease_request("LeaseKeepAlive", ID=id), renewed_ttl)

    def time_to_live(self, id: int, *, keys: bool = False) -> Future[LeaseInfo | None]:
        """As `Node.time_to_live`."""
        return self._call("LeaseTimeToLive", lease_request("LeaseTimeToLive", ID=id, keys=keys), lease_info)

    def leases(self) -> Future[tuple[int, ...]]:
        """As `Node.leases`."""
        return self._call("LeaseLeases", lease_request("LeaseLeases"), lease_ids)

    def queued(self, method: str, request: Any, post: Post) -> Queued:
        """A call of Lock or Election; the result is the reply's message. `post` has the loop's thread do something."""
        call = Queued(decoder(method, lambda message: message), post)
        self._submit([(method, request.SerializeToString(), call)])
        return call


class Waiting:
    """The thread that waits in `put_many`, for `timeout` seconds in all."""

    def __init__(self, timeout: float | None) -> None:
        self._timeout = timeout
        self._until = None if timeout is None else time.monotonic() + timeout
        # No Event, whose own lock this thread might hold when the handler of a signal stops the node in it.
        self._news = threading.Lock()
        self._news.acquire()

    def hand_over(self, bulk: Bulk) -> None:
        """Hand over what was gathered, as soon as there is room for it. Raises the error that was met meanwhile, and
        Timeout."""
        while bulk.crowded():
            self.settle(bulk)
        error = bulk.error
        if error is not None:
            raise error
        if self._until is not None and time.monotonic() >= self._until:
            raise overdue(self._timeout)
        bulk.hand_over(self._tell)

    def settle(self, bulk: Bulk) -> None:
        """Wait for the oldest piece. Raises the error that was met meanwhile, Timeout."""
        if not self._wait(bulk.settled):
            raise overdue(self._timeout)
        error = bulk.error
        if error is not None:
            raise error
        bulk.settle()

    def see_the_end(self, bulk: Bulk) -> None:
        """Wait until all that was handed over has an outcome, or the time is over."""
        self._wait(bulk.ended)

    def _tell(self) -> None:
        """There is news; from any thread."""
        with contextlib.suppress(RuntimeError):  # it was told already
            self._news.release()

    def _wait(self, condition: Callable[[], bool]) -> bool:
        """Wait for a condition that comes with news; whether it came in time."""
        while not condition():
            left = LOOK_UP if self._until is None else self._until - time.monotonic()
            if left <= 0:
                return False
            self._news.acquire(timeout=min(left, LOOK_UP))
        return True


class EmbeddedKV:
    """Blocking calls on top of `Futures`.

    Keys and values are bytes, or str, which is encoded as UTF-8; results have bytes. Every call takes a `timeout` in
    seconds. When it is over the call raises `errors.Timeout`, which is a TimeoutError, and a write may be done all the
    same. Without one the node's own `limits.request_timeout` ends the wait with the same error.

    All calls raise subclasses of `errors.ApiError`, with the codes and texts that a remote client gets. Any of them:

    * `Stopped`: the node does not run, or stopped before it answered; `NotStarted`, a kind of it, where it never ran;
    * `Timeout`, `NoLeader`, `LeaderChanged`: no answer in time, or none from a leader; a write may be done anyway;
    * `TooManyRequests`: too much is in flight, see `limits.max_inflight_requests` and `limits.max_inflight_bytes`;
    * `EmptyKey`: the key is empty.

    Writes may get `RequestTooLarge` (`limits.max_request_bytes`) and `NoSpace`, reads `Compacted` and `FutureRevision`
    where they name a revision, and `ReplyTooLarge`. An argument of the wrong type raises TypeError, one that cannot be
    meant ValueError; both name the argument, and nothing was done. In the loop's thread, where callbacks of Futures
    run, all of them raise RuntimeError.
    """

    futures: Futures
    #: Reads without the loop's thread; None before the node serves.
    _direct: DirectReads | None = None

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
        bound = seconds(timeout)
        future = self._waiting.put(
            key, value, lease=lease, prev_kv=prev_kv, ignore_value=ignore_value, ignore_lease=ignore_lease
        )
        return future.result(bound)

    def put_many(self, pairs: Pairs, *, timeout: float | None = None) -> PutManyResult:
        """Put all (key, value) `pairs`, in their order, and wait for all of them.

        Their number may be any, and `pairs` an iterator, a mapping, or two arrays (`Columns`). Each is an operation of
        its own: this is no transaction. No more than 4,000 puts, or about 8 MiB, are under way at a time, and no more
        is held.

        `timeout` is for all of them together. Raises PutManyFailed, from what ended it, when all that was handed over
        has an outcome or the time is over: PutManyTimeout where that is the reason, WrongPair for a pair that is none.
        It says which pairs are stored, which are not, and of which nobody knows."""
        waiting, given, bulk = Waiting(seconds(timeout)), source_of(pairs), self._waiting.bulk()
        try:
            while bulk.fill(given):
                waiting.hand_over(bulk)
            if bulk.gathered:
                waiting.hand_over(bulk)
            while bulk.window:
                waiting.settle(bulk)
        except Exception as reason:
            if isinstance(reason, errors.Timeout):
                bulk.withdraw()
            waiting.see_the_end(bulk)
            raise bulk.failure(reason) from reason
        except BaseException:
            bulk.withdraw()
            raise
        return bulk.result()

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
        bound = seconds(timeout)
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
        return future.result(bound)

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
        direct = self._direct
        if (
            direct is not None
            and timeout is None
            and type(revision) is int
            and revision == 0
            and type(serializable) is bool
            and type(keys_only) is bool
        ):
            # Where the member is alone this thread reads by itself. All errors come from the queue.
            got: KeyValue | None = direct.get(key, keys_only)
            if got is not MISSED:
                return got
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
        bound = seconds(timeout)
        return self._waiting.delete(key, range_end, prev_kv=prev_kv).result(bound)

    def delete_prefix(self, prefix: Key, *, prev_kv: bool = False, timeout: float | None = None) -> DeleteResult:
        """Delete all keys that begin with `prefix`, all keys where it is empty; the rest as in `delete`."""
        bound = seconds(timeout)
        return self._waiting.delete_prefix(prefix, prev_kv=prev_kv).result(bound)

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
        bound = seconds(timeout)
        return self._waiting.txn(compare, success, failure).result(bound)

    def compact(self, revision: int, *, physical: bool = False, timeout: float | None = None) -> CompactResult:
        """Drop the history before `revision`: reads of earlier revisions raise `Compacted` from then on.

        With `physical` this returns when the space is given back. Raises Compacted where that was done before,
        FutureRevision where the store is not there yet."""
        bound = seconds(timeout)
        return self._waiting.compact(revision, physical=physical).result(bound)
