"""Locks and elections: the queue for each name is in its keys.

Whoever wants a lock or a leadership puts the key `name/lease` with its lease, in hexadecimal digits. The key that was
created first has it, and each other one waits until the last key before its own is deleted. A lease that ends deletes
its key, so nobody waits for one who is gone; and whoever waits with such a lease is told at once. (etcd tells him when
his turn comes.) These are the keys and the order of etcd's client library, so clients of both kinds wait in one queue.

The member is a client of its own KV, Watch and Lease services here. Belongs to the loop's thread.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import TYPE_CHECKING, Any, Final

from .. import errors
from ..api import pb
from .leaderless import Leaderless, needs_leader
from .tasks import Ask, KeyWatch, Steps, Task, Tasks, Wanted

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .._core.kv_server import KVServer
    from .._core.waiter import Waiter
    from ..api.ports import Leases

#: Seconds of the lease that is granted to a caller without one. Nobody renews it.
TTL: Final = 60
#: Bytes that an observer may leave unread; then it is sent what is in the history when it goes on.
UNREAD: Final = 64 << 10

#: A part of a call: yields what it waits for, and returns a message.
Part = Generator[Wanted, Any, Any]
OWN: Final = 1  # id of the watcher of one's own key


class Locks:
    """The `api.ports.Locks` and `api.ports.Elections` of a member."""

    def __init__(self, kv: KVServer, leases: Leases, tasks: Tasks, leaderless: Leaderless) -> None:
        self._kv = kv
        self._leases = leases
        self._tasks = tasks
        self._leaderless = leaderless
        self._demanding: dict[Task, None] = {}  # observers whose clients demand a leader

    # ---- locks

    def lock(self, call: Waiter, name: bytes, lease: int) -> Task:
        """Wait for a lock; the reply is a LockResponse."""
        return self._begin(call, self._lock(name, lease))

    def unlock(self, call: Waiter, key: bytes) -> Task:
        """Delete a key, whoever's it is; the reply is an UnlockResponse."""
        return self._begin(call, self._unlock(key))

    def _lock(self, name: bytes, lease: int) -> Steps:
        place = yield from self._enter(name, lease, b"")
        header = yield from self._wait(place, errors.SessionExpired)
        return pb.LockResponse(header=header, key=place.key).SerializeToString()

    def _unlock(self, key: bytes) -> Steps:
        found = yield from self._ask("DeleteRange", pb.DeleteRangeRequest(key=key), pb.DeleteRangeResponse)
        return pb.UnlockResponse(header=found.header).SerializeToString()

    # ---- elections

    def campaign(self, call: Waiter, name: bytes, lease: int, value: bytes) -> Task:
        """Wait to lead; the reply is a CampaignResponse."""
        return self._begin(call, self._campaign(name, lease, value))

    def proclaim(self, call: Waiter, leader: Any, value: bytes) -> Task:
        """Change the value of the one who leads by this LeaderKey; the reply is a ProclaimResponse."""
        return self._begin(call, self._proclaim(leader, value))

    def leader(self, call: Waiter, name: bytes) -> Task:
        """Tell who leads; the reply is a LeaderResponse."""
        return self._begin(call, self._leader(name))

    def resign(self, call: Waiter, leader: Any) -> Task:
        """Lead no more, or wait no more to lead; the reply is a ResignResponse."""
        return self._begin(call, self._resign(leader))

    def observe(self, request: Request, name: bytes) -> Task:
        """Send the leader, and each one that follows, as LeaderResponses until the call is cancelled."""
        task = self._begin(request, self._observe(request, name))
        if needs_leader(request):
            self._demanding[task] = None
        return task

    def _campaign(self, name: bytes, lease: int, value: bytes) -> Steps:
        place = yield from self._enter(name, lease, value)
        leader = pb.LeaderKey(name=name, key=place.key, rev=place.revision, lease=place.lease)
        if place.value != value:
            yield from self._proclaim(leader, value)
        yield from self._wait(place, errors.ElectionNotLeader)
        return pb.CampaignResponse(header=place.header, leader=leader).SerializeToString()

    def _proclaim(self, leader: Any, value: bytes) -> Steps:
        lease = leader.lease or (yield from self._grant())
        put = pb.PutRequest(key=leader.key, value=value, lease=lease)
        done = yield from self._if_created(leader.key, leader.rev, pb.RequestOp(request_put=put))
        if not done.succeeded:
            raise errors.ElectionNotLeader()
        return pb.ProclaimResponse(header=done.header).SerializeToString()

    def _leader(self, name: bytes) -> Steps:
        found = yield from self._ask("Range", _first(_prefix(name)), pb.RangeResponse)
        if not found.kvs:
            raise errors.ElectionNoLeader()
        return pb.LeaderResponse(header=found.header, kv=found.kvs[0]).SerializeToString()

    def _resign(self, leader: Any) -> Steps:
        done = yield from self._if_created(leader.key, leader.rev, _deletion(leader.key))
        return pb.ResignResponse(header=done.header).SerializeToString()

    def _observe(self, request: Request, name: bytes) -> Steps:
        prefix = _prefix(name)

        def full() -> bool:
            return request.queued_bytes >= UNREAD

        while True:
            found = yield from self._ask("Range", _first(prefix), pb.RangeResponse)
            header, kv = found.header, found.kvs[0] if found.kvs else None
            if kv is None:
                header, kv = yield from self._first_put(prefix, header)
            if kv is None:
                continue
            request.send(pb.LeaderResponse(header=header, kv=kv).SerializeToString())
            watch = KeyWatch(self._tasks, [_watching(kv.key, header.revision + 1)], full)
            try:
                yield from self._pass_on(request, watch)
            finally:
                watch.close()

    def _first_put(self, prefix: bytes, header: Any) -> Part:
        """The first key that is put below a prefix where there is none, with its header; None if history is gone."""
        request = _watching(
            prefix, header.revision + 1, range_end=_end(prefix), filters=[pb.WatchCreateRequest.NODELETE]
        )
        watch = KeyWatch(self._tasks, [request])
        try:
            responses = yield watch
        finally:
            watch.close()
        for response in responses:
            _check(response)
            for event in response.events:
                response.header.revision = event.kv.mod_revision
                return response.header, event.kv
        return header, None

    def _pass_on(self, request: Request, watch: KeyWatch) -> Part:
        """Send each new value of a leader's key until it is deleted, or the history is gone."""
        while True:
            for response in (yield watch):
                for event in response.events:
                    if event.type == pb.Event.DELETE:
                        return
                    request.send(pb.LeaderResponse(header=response.header, kv=event.kv).SerializeToString())
                if response.canceled:
                    _check(response)
                    return

    # ---- parts of both

    def _begin(self, call: Waiter, steps: Steps) -> Task:
        return self._tasks.begin(call, _plainly(steps))

    def _enter(self, name: bytes, lease: int, value: bytes) -> Part:
        """Put one's key into the queue, or find it there. Returns a _Place. A lease of 0 is replaced by a new one."""
        granted = lease == 0
        if granted:
            lease = yield from self._grant()
        prefix = _prefix(name)
        key = prefix + b"%x" % lease if lease >= 0 else prefix + b"-%x" % -lease
        put = pb.PutRequest(key=key, value=value, lease=lease)
        owner = pb.RequestOp(request_range=_first(prefix))
        request = pb.TxnRequest(
            compare=[_created(key, 0)],
            success=[pb.RequestOp(request_put=put), owner],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=key)), owner],
        )
        done = yield from self._ask("Txn", request, pb.TxnResponse)
        revision = done.header.revision
        if not done.succeeded:
            [own] = done.responses[0].response_range.kvs
            revision, value = own.create_revision, own.value
        [first] = done.responses[1].response_range.kvs
        return _Place(
            prefix, key, lease, revision, value, done.header, first.create_revision == revision, done.succeeded, granted
        )

    def _wait(self, place: _Place, lost: type[errors.ApiError]) -> Part:
        """Wait until no key before this one is left. Returns the header of the reply that showed it. Raises `lost` if
        the key is gone. If it cannot wait any longer, the key goes with it, unless an earlier call has made it."""
        before = pb.RangeRequest(
            key=place.prefix, range_end=_end(place.prefix), limit=1, max_create_revision=place.revision - 1,
            sort_order=pb.RangeRequest.DESCEND, sort_target=pb.RangeRequest.CREATE,
        )  # fmt: skip
        own = pb.RangeRequest(key=place.key, keys_only=True, max_create_revision=place.revision)
        request = pb.TxnRequest(success=[pb.RequestOp(request_range=one) for one in (before, own)])
        try:
            if place.first:
                yield None
                return place.header
            while True:
                found = yield from self._ask("Txn", request, pb.TxnResponse)
                last, mine = (one.response_range.kvs for one in found.responses)
                if not mine or mine[0].create_revision != place.revision:
                    raise lost()
                if not last:
                    return found.header
                yield from self._deleted(last[0].key, place.key, found.header.revision + 1)
        except errors.ApiError:
            yield from self._leave(place)
            raise

    def _deleted(self, key: bytes, own: bytes, revision: int) -> Part:
        """Wait until one of two keys is deleted at `revision` or later, or their history is gone."""
        only = [pb.WatchCreateRequest.NOPUT]
        wanted = [_watching(key, revision, filters=only), _watching(own, revision, filters=only, watch_id=OWN)]
        watch = KeyWatch(self._tasks, wanted)
        try:
            for response in (yield watch):
                _check(response)
        finally:
            watch.close()

    def _leave(self, place: _Place) -> Part:
        """Take one's key out of the queue, as far as this call has put it there."""
        if place.granted:
            # Nobody else knows this lease, and the key goes with it.
            yield from _tolerantly(lambda step: self._leases.revoke(step, place.lease))
        elif place.new:
            request = pb.TxnRequest(compare=[_created(place.key, place.revision)], success=[_deletion(place.key)])
            yield from _tolerantly(lambda step: self._call("Txn", request, step))

    def _grant(self) -> Part:
        reply = yield lambda step: self._leases.grant(step, 0, TTL)
        return int(pb.LeaseGrantResponse.FromString(reply).ID)

    def _if_created(self, key: bytes, revision: int, operation: Any) -> Part:
        """An operation on a key that was created at `revision`."""
        request = pb.TxnRequest(compare=[_created(key, revision)], success=[operation])
        return (yield from self._ask("Txn", request, pb.TxnResponse))

    def _ask(self, method: str, request: Any, kind: Any) -> Part:
        """Make one call of KV. Returns the reply, a message of class `kind`."""
        return kind.FromString((yield lambda step: self._call(method, request, step)))

    def _call(self, method: str, request: Any, step: Waiter) -> None:
        self._kv.call(method, request.SerializeToString(), step, self._tasks.now())

    # ---- for the member

    def tick(self, now: float) -> None:
        """End streams that demand a leader when there has been none for long; `now` in seconds."""
        self._demanding = {task: None for task in self._demanding if task in self._tasks.running}
        if self._leaderless.too_long(now):
            for task in self._demanding:
                task.cancel(errors.NoLeader())

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {"lock_calls": len(self._tasks.running)}


class _Place:
    """A key in a queue.

    revision: at which it was created. first: whether no key was before it. new: whether this call has put it. granted:
    whether its lease is known to this call alone. header: of the reply.
    """

    __slots__ = ("first", "granted", "header", "key", "lease", "new", "prefix", "revision", "value")

    def __init__(
        self, prefix: bytes, key: bytes, lease: int, revision: int, value: bytes, header: Any, first: bool, new: bool,
        granted: bool,
    ) -> None:  # fmt: skip
        self.prefix = prefix
        self.key = key
        self.lease = lease
        self.revision = revision
        self.value = value
        self.header = header
        self.first = first
        self.new = new
        self.granted = granted


def _plainly(steps: Steps) -> Steps:
    """A call whose wrong requests get the code UNKNOWN, as in etcd, where these services pass on a client's errors."""
    try:
        return (yield from steps)
    except errors.ApiError as error:
        if error.code in (errors.INVALID_ARGUMENT, errors.NOT_FOUND, errors.FAILED_PRECONDITION):
            raise errors.ApiError(error.text) from error
        raise


def _tolerantly(ask: Ask) -> Part:
    """An operation that cleans up; if it fails, the lease's end does it later."""
    try:
        yield ask
    except errors.ApiError:
        return


def _check(response: Any) -> None:
    """Raise the error of a watcher that could not be made. One whose history was compacted is no error here."""
    if response.canceled and not response.compact_revision:
        raise errors.TooManyRequests()


def _prefix(name: bytes) -> bytes:
    return name + b"/"


def _end(prefix: bytes) -> bytes:
    """The end of the range of all keys that begin with `prefix`, which ends in a slash."""
    return prefix[:-1] + b"0"


def _first(prefix: bytes) -> Any:
    """A range of the key below a prefix that was created first."""
    return pb.RangeRequest(
        key=prefix, range_end=_end(prefix), limit=1, sort_order=pb.RangeRequest.ASCEND,
        sort_target=pb.RangeRequest.CREATE,
    )  # fmt: skip


def _created(key: bytes, revision: int) -> Any:
    return pb.Compare(key=key, target=pb.Compare.CREATE, result=pb.Compare.EQUAL, create_revision=revision)


def _deletion(key: bytes) -> Any:
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))


def _watching(key: bytes, revision: int, **more: Any) -> bytes:
    create = pb.WatchCreateRequest(key=key, start_revision=revision, **more)
    return bytes(pb.WatchRequest(create_request=create).SerializeToString())
