"""Leases for the clients of this member: the calls of the service, and the streams that keep leases alive.

What clients ask of the leader's clock in one turn goes to `replica/lease_rounds.py` together. Belongs to the loop's
thread.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Final

from .. import errors
from .._core.lease_wire import (
    RENEW,
    TIME_TO_LIVE,
    decode_keepalives,
    keepalive_replies,
    leases_part,
    reply_head,
    time_to_live_reply,
)
from .._core.leases import encode_grant, encode_revoke
from .._core.member_turn import LeasingFields
from .._core.op import LEASE_GRANT, LEASE_REVOKE
from ..replica.lease_rounds import Question, portions
from .leaderless import Leaderless, needs_leader

if TYPE_CHECKING:
    from .._core.h2_request import Request
    from .._core.waiter import Waiter
    from .assembly import Replica

#: etcd's bound on TTLs, in seconds.
MAX_TTL: Final = 9_000_000_000
#: Renewals of all streams that are taken in one turn: about 8 ms with their answers.
RENEWALS_PER_TURN: Final = 4000
#: Renewals of one stream that may be without an answer; more are not read from its client.
MOST_UNANSWERED: Final = 4000
#: Renewals that may wait on all streams together: 10 MB.
MOST_WAITING: Final = 250_000
#: Keys of a lease, or leases, that are gathered for answers in one turn: about 3 ms.
GATHERED_PER_TURN: Final = 5000
#: Calls that may gather at once.
MOST_GATHERING: Final = 100
#: Bytes of keys in one answer.
MOST_BYTES: Final = 512 << 20


class Stream:
    """One call of the method LeaseKeepAlive."""

    __slots__ = ("asked", "choked", "half_closed", "leasing", "needs_leader", "request", "unanswered", "waiting")

    def __init__(self, leasing: Leasing, request: Request) -> None:
        self.leasing = leasing
        self.request = request
        self.needs_leader = needs_leader(request)
        self.waiting: list[int] = []  # the leases whose renewals are not taken yet
        self.asked: deque[Portion] = deque()  # what is to be answered, in this order
        self.unanswered = 0
        self.choked = False
        self.half_closed = False

    def on_messages(self, messages: list[bytes]) -> None:
        """Some LeaseKeepAliveRequests came."""
        self.leasing.take(self, messages)

    def on_end(self) -> None:
        """The client sends no more."""
        self.half_closed = True
        self.leasing.end_if_done(self)

    def on_close(self) -> None:
        """The stream is gone."""
        self.leasing.forget(self)


class Portion:
    """The renewals of one stream in one question: places `at` to `until`. `head`: the header of their answers."""

    __slots__ = ("at", "head", "question", "until")

    def __init__(self, question: Question, at: int, until: int, head: bytes) -> None:
        self.question = question
        self.at = at
        self.until = until
        self.head = head


class Gathering:
    """An answer with a list that may be long, put together in pieces.

    more(limit): the next part of the list, at most `limit` items, encoded as they stand in the answer, with the number
    of items; none are left if there are fewer. A list of more than one part may miss what changes meanwhile.
    """

    __slots__ = ("call", "more", "parts", "size")

    def __init__(self, call: Waiter, first: bytes, more: Callable[[int], tuple[bytes, int]]) -> None:
        self.call = call
        self.parts = [first]
        self.size = 0
        self.more = more


class Leasing(LeasingFields):
    """The `api.ports.Leases` of a member.

    election_timeout: seconds. most: renewals and other questions that may be without an answer. chance(n): n random
    bits.
    """

    def __init__(
        self, replica: Replica, now: Callable[[], float], chance: Callable[[int], int], *, election_timeout: float,
        most: int,
    ) -> None:  # fmt: skip
        self._kv = replica.kv
        self._store = replica.store
        self._rounds = replica.leases
        self._now = now
        self._chance = chance
        self._most = most
        # etcd's lower bound: a lease must outlive an election.
        self.min_ttl = max(1, math.ceil(1.5 * election_timeout - 1e-9))
        self._leaderless = Leaderless(replica.driver, election_timeout)
        self._streams: dict[Stream, None] = {}
        #: Streams with requests that wait and may be taken. With these or `lifetimes`, `gather` has something to do.
        self.ready = {}
        self._waiting = 0  # renewals of all streams that are not taken yet
        self._unanswered = 0  # by the streams and by `lifetimes`
        self.lifetimes = []  # calls of LeaseTimeToLive of this turn
        #: Long answers. Only with some has `turn` anything to do.
        self.gathering = deque()
        self._stopped = False
        self._granted = self._revoked = 0

    # ---- the service

    def grant(self, call: Waiter, ident: int, ttl: int) -> None:
        """Grant a lease for at least the shortest time that there is. Raises LeaseTTLTooLarge."""
        if ttl > MAX_TTL:
            raise errors.LeaseTTLTooLarge()
        while ident == 0:
            ident = self._chance(63)
        self._granted += 1
        self._kv.propose(LEASE_GRANT, encode_grant(ident, max(ttl, self.min_ttl)), call, self._now())

    def revoke(self, call: Waiter, ident: int) -> None:
        """End a lease. Raises LeaseNotFound."""
        if ident == 0:
            raise errors.LeaseNotFound()
        self._revoked += 1
        self._kv.propose(LEASE_REVOKE, encode_revoke(ident), call, self._now())

    def time_to_live(self, call: Waiter, ident: int, keys: bool) -> None:
        """Ask the leader at the end of this turn. Raises TooManyRequests, Stopped."""
        if self._stopped:
            raise errors.Stopped()
        if self._unanswered >= self._most:
            raise errors.TooManyRequests()
        self._unanswered += 1
        self.lifetimes.append((call, ident, keys))

    def list_all(self, call: Waiter) -> None:
        """Answer with the leases of the state that this member has applied, as in etcd. Few are in order."""
        leases = self._store.leases
        left = leases.part_count if leases.count > GATHERED_PER_TURN else 0
        idents = [] if left else leases.ids()

        def more(limit: int) -> tuple[bytes, int]:
            nonlocal left, idents
            while left and len(idents) < limit:
                left -= 1
                idents = idents + leases.part(left)
            some, idents = idents[:limit], idents[limit:]
            return leases_part(some, 0, len(some)), len(some)

        self._gather(Gathering(call, reply_head(self._store), more))

    def open(self, request: Request) -> None:
        """Serve a stream. Raises Stopped."""
        if self._stopped:
            raise errors.Stopped()
        stream = Stream(self, request)
        self._streams[stream] = None
        request.start(on_messages=stream.on_messages, on_end=stream.on_end, on_close=stream.on_close)

    # ---- streams

    def take(self, stream: Stream, messages: list[bytes]) -> None:
        """Keep requests for the end of this turn."""
        if stream not in self._streams:
            return
        if self._waiting >= MOST_WAITING:
            self._end(stream, errors.TooManyRequests())
            return
        try:
            stream.waiting += decode_keepalives(messages)
        except errors.ApiError as error:
            self._end(stream, error)
            return
        self._waiting += len(messages)
        self._look(stream)

    def forget(self, stream: Stream) -> None:
        """It is gone."""
        if stream not in self._streams:
            return
        del self._streams[stream]
        self.ready.pop(stream, None)
        self._waiting -= len(stream.waiting)
        self._unanswered -= stream.unanswered
        stream.waiting.clear()
        stream.asked.clear()
        if stream.choked:
            stream.request.choke(False)

    def end_if_done(self, stream: Stream) -> None:
        """A stream ends when its client has sent all and has all answers."""
        if stream.half_closed and not stream.waiting and not stream.unanswered and stream in self._streams:
            stream.request.finish()
            self.forget(stream)

    def _end(self, stream: Stream, error: errors.MetaStoreError) -> None:
        stream.request.finish(error.code, error.text)
        self.forget(stream)

    def _look(self, stream: Stream) -> None:
        """See whether requests of this stream may be taken, and whether its client may send more."""
        if stream.waiting and stream.unanswered < MOST_UNANSWERED:
            self.ready[stream] = None
        if stream.choked != bool(stream.waiting):
            stream.choked = not stream.choked
            stream.request.choke(stream.choked)

    # ---- a turn: `gather` comes before that of the replica, `turn` behind it

    def gather(self, now: float) -> bool:
        """Ask what clients want to know; `now` in seconds. Whether there is more to ask at once."""
        if self.ready and self._unanswered < self._most:
            self._take_renewals(now)
        if self.lifetimes:
            self._ask_lifetimes(now)
        return bool(self.ready) and self._unanswered < self._most

    def turn(self) -> bool:
        """Go on with long answers. Whether there is more to do at once."""
        left = GATHERED_PER_TURN
        while self.gathering and left > 0 and self._store.settled:
            one = self.gathering.popleft()
            if getattr(one.call, "closed", False):
                continue
            left -= self._go_on(one, left)
        return bool(self.gathering) and self._store.settled

    def _take_renewals(self, now: float) -> None:
        """Take some requests of each stream, in turn, so that a flood on one does not hold up the others."""
        head, idents, portions_ = reply_head(self._store), list[int](), list[tuple[Stream, int]]()
        left = RENEWALS_PER_TURN
        while left > 0 and self.ready:
            stream = next(iter(self.ready))
            del self.ready[stream]
            count = min(max(1, left // (len(self.ready) + 1)), len(stream.waiting), MOST_UNANSWERED - stream.unanswered)
            idents += stream.waiting[:count]
            del stream.waiting[:count]
            self._waiting -= count
            left -= count
            stream.unanswered += count
            self._unanswered += count
            portions_.append((stream, count))
            self._look(stream)
        if idents:
            self._ask_renewals(head, idents, portions_, now)

    def _ask_renewals(self, head: bytes, idents: list[int], taken: list[tuple[Stream, int]], now: float) -> None:
        streams = [stream for stream, _ in taken]
        question = Question(RENEW, idents, lambda _question: self._answer_streams(streams))
        at = 0
        for stream, count in taken:
            stream.asked.append(Portion(question, at, at + count, head))
            at += count
        self._rounds.ask(question, now)

    def _answer_streams(self, streams: list[Stream]) -> None:
        for stream in streams:
            if stream in self._streams:
                self._answer(stream)

    def _answer(self, stream: Stream) -> None:
        """Send the answers that are there, up to the first that is not."""
        while stream.asked:
            portion = stream.asked[0]
            question, at = portion.question, portion.at
            ttls, until = question.ttls, portion.until
            if question.left:
                until = next((place for place in range(at, until) if ttls[place] is None), until)
            if until > at:
                stream.request.send(keepalive_replies(portion.head, question.idents, ttls, at, until), True)
            stream.unanswered -= until - at
            self._unanswered -= until - at
            portion.at = until
            if until < portion.until:
                if question.error is not None:
                    self._end(stream, question.error)
                    return
                break
            stream.asked.popleft()
        self._look(stream)
        self.end_if_done(stream)

    # ---- how long a lease lives

    def _ask_lifetimes(self, now: float) -> None:
        calls, self.lifetimes = self.lifetimes, []
        for idents in portions([ident for _, ident, _ in calls]):
            these, calls = calls[: len(idents)], calls[len(idents) :]
            self._rounds.ask(Question(TIME_TO_LIVE, idents, partial(self._tell, these)), now)

    def _tell(self, calls: list[tuple[Waiter, int, bool]], question: Question) -> None:
        """Answer these calls; the question is about the lease of each."""
        if question.error is None and question.left:
            return  # the leader answers all at once
        self._unanswered -= len(calls)
        head = reply_head(self._store)
        for (call, ident, keys), ttl, granted in zip(calls, question.ttls, question.granted, strict=True):
            if ttl is None:
                call.fail(question.error or errors.Timeout())
                continue
            if ttl >= 0 and not self._store.leases.ttl(ident):
                # This member has already applied the end of the lease, which the leader had not.
                ttl, granted = -1, 0
            reply = time_to_live_reply(head, ident, ttl, granted, [])
            if keys and ttl >= 0:
                self._gather(Gathering(call, reply, self._keys_of(ident)))
            else:
                call.complete(reply)

    def _keys_of(self, ident: int) -> Callable[[int], tuple[bytes, int]]:
        last = b""

        def more(limit: int) -> tuple[bytes, int]:
            nonlocal last
            keys = self._store.leases.keys(ident, last, limit)
            last = keys[-1] if keys else last
            return time_to_live_reply(b"", 0, 0, 0, keys), len(keys)

        return more

    # ---- long answers

    def _gather(self, one: Gathering) -> None:
        if len(self.gathering) >= MOST_GATHERING:
            one.call.fail(errors.TooManyRequests())
            return
        self.gathering.append(one)

    def _go_on(self, one: Gathering, left: int) -> int:
        """Gather at most `left` more items for an answer. How many came."""
        part, count = one.more(left)
        one.parts.append(part)
        one.size += len(part)
        if one.size > MOST_BYTES:
            one.call.fail(errors.ReplyTooLarge())
        elif count < left:
            one.call.complete(b"".join(one.parts))
        else:
            self.gathering.append(one)
        return max(1, count)

    # ---- for the member

    def tick(self, now: float) -> None:
        """End streams that demand a leader when there has been none for long; `now` in seconds."""
        if self._leaderless.too_long(now):
            for stream in [stream for stream in self._streams if stream.needs_leader]:
                self._end(stream, errors.NoLeader())

    def stop(self) -> None:
        """End all streams; their clients go on at another member."""
        self._stopped = True
        for stream in list(self._streams):
            self._end(stream, errors.Stopped())

    def abandon(self, error: Callable[[], errors.MetaStoreError]) -> None:
        """Answer with `error()` all who still wait, because the member ends."""
        self._rounds.stop(error)
        calls = [call for call, _, _ in self.lifetimes] + [one.call for one in self.gathering]
        self.lifetimes.clear()
        self.gathering.clear()
        for call in calls:
            call.fail(error())

    def stats(self) -> dict[str, float]:
        """Numbers for /metrics."""
        return {
            **self._rounds.stats(),
            "lease_streams": len(self._streams),
            "lease_granted_total": self._granted,
            "lease_revoked_total": self._revoked,
            "lease_unanswered": self._unanswered,
        }
