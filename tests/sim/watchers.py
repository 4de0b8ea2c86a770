"""Watchers on the simulated members, and what each must be told.

A `Spectator` is a client with one Watch stream. It reads slowly at times, moves to another member, and goes on at some
member after its own has crashed. Its `Observer`s are watchers that outlive the stream: each goes on at the revision
after the last one that it knows of. What an observer is told is compared with the model at the moment the member says
it: all events of its keys from its first revision on, in their order, each once, those of one revision together. A
progress mark or a `created` of a watcher from now on says that nothing up to its revision is still to come, and the
observer relies on it. A watcher is cancelled only where its next revision was compacted.

The spectators have a source of chance of their own, so that simulations without them stay what they are.
"""

from __future__ import annotations

import bisect
import random
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, cast

from metastore._core.watch import WatchHub
from metastore._core.watch_index import Sink, Stream
from metastore._core.watch_wire import decode_request

from . import wire
from .model import Change, Model

if TYPE_CHECKING:
    from .checker import Checker
    from .node import Cluster, Member

LIVE = 2  # the state of a watcher that gets changes as they are applied (watch_index.pxd)
ASKS_PROGRESS = 3  # the kind of a request (watch_wire.pxd)
NO_PUT, NO_DELETE = 0, 1
MOST_OBSERVERS = 3  # of a spectator
ITEM = 48  # what an event takes in the hub beside its bytes
TOO_LARGE = b"metastore: the events of revision "  # a number follows
TOO_LARGE_AT = len(TOO_LARGE.split())
FEEDS = 5  # a hub has so many passes at a time
MOST_CHANGES = 64  # of one revision


class SimSink(Sink):
    """Where the responses of one stream go."""

    def __init__(self, spectator: Spectator) -> None:
        self.spectator = spectator

    def full(self) -> bool:
        """At times."""
        return self.spectator.is_full()

    def send(self, message: bytes) -> None:
        """To the client, unless it is gone."""
        self.spectator.hears(self, message)


class SimHub(WatchHub):
    """A hub for which there is no time now and then."""

    audience: Audience
    stands_until = 0.0
    leapt = False  # a snapshot was installed, and there was no time yet to look what its history lacks

    def step(self, budget: int, look: bool = True) -> bool:
        """As the real one."""
        audience = self.audience
        now, chance = audience.cluster.clock.now, audience.chance
        if chance.random() < audience.stalls:
            self.stands_until = now + chance.choice((0.02, 0.2, 1.0)) * chance.random()
        if now < self.stands_until and not audience.stopped:
            return True
        self.leapt = False
        return super().step(budget, look)


class Observer:
    """A watcher that outlives its stream. `next`: the revision that it goes on at; 0: from now on."""

    def __init__(self, chance: random.Random, model: Model, keys: int) -> None:
        key = b"%c%d" % (chance.choice(b"kkp"), chance.randrange(keys))
        ranges = ((key, b""), (key, b""), (b"k", b"l"), (b"p", b"q"), (b"", b"\0"), (key, b"\0"), (b"k", key + b"!"))
        self.key, self.end = chance.choice(ranges)
        self.filter = chance.choice((-1, -1, -1, NO_PUT, NO_DELETE))
        self.prev_kv, self.fragment, self.progress = (chance.random() < 0.3 for _ in range(3))
        self.next = 0 if chance.random() < 0.5 else max(1, model.revision + chance.randint(-30, 5))
        self.model = model
        self.go_on(self.next)
        self.ident = -1
        self.active = self.asked = False
        self.live = False  # it had everything at the last look
        self.jumped = False  # its member got a snapshot, and it has heard nothing since

    def go_on(self, revision: int) -> None:
        """Nothing before this revision is still to come. It may be one of the future."""
        self.first = self.next = revision
        self.at = bisect.bisect_left(self.model.changes, revision, key=lambda change: change.version.mod)

    def request(self, ident: int, from_now: bool = False) -> bytes:
        """The request that makes it."""
        filters = bytes([self.filter]) if self.filter >= 0 else b""
        flags = {4: self.progress, 6: self.prev_kv, 8: self.fragment}
        return wire.create_watch(self.key, self.end, 0 if from_now else self.next, filters, flags, ident)

    def wants(self, change: Change) -> bool:
        """Whether it is for this one."""
        key = change.key
        inside = key == self.key if not self.end else key >= self.key and (self.end == b"\0" or key < self.end)
        inside = inside and change.version.mod >= self.first
        return inside and self.filter != (NO_DELETE if change.version.value is None else NO_PUT)

    def due(self) -> Change | None:
        """The change that is to be told next, if there is one yet."""
        changes = self.model.changes
        while self.at < len(changes):
            if self.wants(changes[self.at]):
                return changes[self.at]
            self.at += 1
        return None

    def mistake(self, event: wire.Event, compacted: int) -> str:
        """What is wrong about the next event, told by a member that was compacted up to there; "" for nothing."""
        change = self.due()
        if change is None:
            return f"{event} never happened"
        version, before = change.version, change.before
        lost = version.mod - 1 < compacted
        wanted = (change.key, version.mod, version.create, version.version, version.value or b"")
        if event.pair != wanted or event.deleted != (version.value is None):
            return f"{event} instead of {change}"
        if event.before is None:
            return f"{event} without {before}" if self.prev_kv and before is not None and not lost else ""
        if not self.prev_kv or before is None:
            return f"{event} instead of {change}"
        told = (change.key, before.mod, before.create, before.version, before.value or b"")
        return "" if event.before == told else f"{event} instead of {change}"

    def overtaken(self, revision: int) -> Change | None:
        """A change up to this revision that is still to be told."""
        change = self.due()
        return change if change is not None and change.version.mod <= revision else None


class Spectator:
    """See above."""

    def __init__(self, number: int, cluster: Cluster, audience: Audience) -> None:
        self.number = number
        self.cluster = cluster
        self.clock = cluster.clock
        self.chance = audience.chance
        self.audience = audience
        self.checker: Checker = cluster.checker
        self.observers: list[Observer] = []
        self.by_id: dict[int, Observer] = {}
        self.member: Member | None = None
        self.life = 0
        self.stream: Stream | None = None
        self.full_until = 0.0
        self.room = 1 << 30
        self.asked = False  # for progress
        self.last_mark = 0
        self.creating: Observer | None = None
        self.canceling: int | None = None
        self.inside = -1  # the id of the watcher of whose fragments some are still to come
        self.pause()

    def __repr__(self) -> str:
        return f"spectator {self.number} at member {self.member.id if self.member is not None else 0}"

    def fail(self, text: str) -> None:
        """Something that must never happen."""
        self.checker.fail(f"{self}: {text}")

    def pause(self) -> None:
        """Look on for a while, then do something."""
        self.clock.after(self.chance.expovariate(1 / self.audience.think), self.next)

    # ---- what it does

    @property
    def connected(self) -> bool:
        """Whether its member still lives the life that it is connected with. In the end that must be one of those that
        belong to the cluster: who was never added to it hears nothing."""
        member, home = self.member, self.audience.home
        return (
            member is not None and member.alive and member.life == self.life and (home is None or member.id in home())
        )

    def next(self) -> None:
        """Do something."""
        if self.audience.over:
            return
        self.pause()
        if not self.connected:
            self.connect()
            return
        for observer in self.observers:
            if not observer.asked:
                self._create(observer)
        if self.audience.stopped:
            return
        does = {self.add: 4, self.cancel: 1, self.ask: 4, self.slow: 3, self.move: 1}
        self.chance.choices(list(does), list(does.values()))[0]()

    def connect(self) -> None:
        """Go on at some member."""
        home = self.audience.home
        serving = self.cluster.serving() if home is None else home()
        if not serving:
            return
        self.move()
        self.member = self.cluster.members[self.chance.choice(serving)]
        self.life = self.member.life
        self.stream = Stream(self.audience.sink(self))
        self.by_id = {}
        self.asked, self.inside, self.full_until, self.room = False, -1, 0.0, 1 << 30
        for observer in self.observers:
            observer.active = observer.live = False
            if observer.next:
                observer.go_on(observer.next)  # a revision of which it has some fragments comes again
            self._create(observer)
        self.checker.count("watch streams")

    def _at_the_member(self, call: Callable[..., None], *args: Any) -> None:
        assert self.member is not None
        self.clock.after(self.chance.random() * 0.001, self.member._enter, self.life, call, (self.stream, *args))

    def add(self) -> None:
        """One more watcher."""
        if len(self.observers) < MOST_OBSERVERS:
            self.observers.append(Observer(self.chance, self.checker.model, self.audience.keys))
            self._create(self.observers[-1])

    def _create(self, observer: Observer) -> None:
        observer.asked = True
        self._at_the_member(self._creates, observer)

    def _creates(self, stream: Stream, observer: Observer) -> None:
        if stream is not self.stream:
            return
        ident = self.chance.choice((0, 0, self.chance.randint(1, 1 << 60)))
        self.creating = observer
        self._handle(stream, observer.request(ident if ident not in self.by_id else 0))
        if not observer.active and observer.asked:
            self.fail(f"no answer to the creation of a watcher at {observer.next}")

    def _handle(self, stream: Stream, request: bytes) -> None:
        assert self.member is not None
        self.member.replica.watches.handle(stream, decode_request(request), self.member.now())

    def cancel(self) -> None:
        """One watcher less."""
        if len(self.by_id) > 1:
            self._at_the_member(self._cancels, self.chance.choice(list(self.by_id)))

    def _cancels(self, stream: Stream, ident: int) -> None:
        if stream is self.stream and ident in self.by_id:
            self.canceling = ident
            self._handle(stream, wire.cancel_watch(ident))
            self.canceling = None
            if ident in self.by_id:
                self.fail(f"no answer to the cancellation of {ident}")

    def ask(self) -> None:
        """Ask for a progress mark."""
        self._at_the_member(self._asks)

    def _asks(self, stream: Stream) -> None:
        if stream is self.stream and self.by_id:
            self.asked = True
            self._handle(stream, wire.ASK_PROGRESS)

    def move(self) -> None:
        """To another member; this one hears that the stream is gone."""
        if self.member is not None and self.member.alive and self.member.life == self.life:
            hub, delay = self.member.replica.watches, self.chance.random() * 0.001
            self.clock.after(delay, self.member._enter, self.life, hub.close, (self.stream,))
        self.member, self.stream = None, None

    def slow(self) -> None:
        """Take nothing for a while, now or after some responses."""
        self.room = self.chance.choice((0, 1, 3))
        self._look_at_room()

    def _look_at_room(self) -> None:
        if self.room == 0:
            self.room = 1 << 30
            self.full_until = self.clock.now + self.chance.choice((0.02, 0.3, 2.0)) * self.chance.random()
            if self.member is not None:
                self.clock.after(self.full_until - self.clock.now, self.member._enter, self.life, lambda: None, ())

    # ---- what it hears

    def is_full(self) -> bool:
        """Whether it takes nothing more at the moment."""
        full = not self.audience.stopped and self.clock.now < self.full_until
        if full:
            self.checker.count("watch streams full")
            for observer in self.observers:
                observer.live = False
        return full

    def hears(self, sink: Sink, message: bytes) -> None:
        """A response comes."""
        if self.stream is None or sink is not self.stream.sink:
            return
        self.clock.note(message)
        told = wire.parse_watch(message)
        if self.inside >= 0 and (told.watch_id != self.inside or not told.events):
            self.fail(f"{told} comes between fragments")
        if told.created:
            self._created(told)
        elif told.watch_id == -1:
            self._progress(told)
        elif told.watch_id not in self.by_id:
            self.fail(f"{told} is about a watcher that is gone")
        else:
            observer = self.by_id[told.watch_id]
            if told.canceled:
                self._canceled(observer, told)
            elif told.events:
                self._events(observer, told)
            elif not observer.progress:
                self.fail(f"{told} was not asked for")
            else:
                self._mark(observer, told.revision)
                self.checker.count("watch notifications")
        self.room -= 1
        self._look_at_room()

    def _created(self, told: wire.Told) -> None:
        observer, self.creating = self.creating, None
        assert observer is not None and self.member is not None
        if told.canceled or told.revision != self.member.store.revision or told.watch_id in self.by_id:
            self.fail(f"{told} is the answer to a creation at revision {self.member.store.revision}")
        self.by_id[told.watch_id] = observer
        hub = cast(SimHub, self.member.replica.watches)
        observer.ident, observer.active, observer.jumped = told.watch_id, True, hub.leapt
        if not observer.next:
            observer.go_on(told.revision + 1)
        self.checker.count("watchers")

    def _canceled(self, observer: Observer, told: wire.Told) -> None:
        assert self.member is not None
        del self.by_id[told.watch_id]
        if self.canceling == told.watch_id:
            self.observers.remove(observer)
            return
        was_live = observer.live
        observer.active = observer.asked = observer.live = False
        if told.reason:
            self._too_large(observer, told)
            return
        compacted = self.member.store.compact_revision
        if observer.next >= told.compacted or told.compacted != compacted or told.revision:
            self.fail(f"{told} ends a watcher at {observer.next}, compacted is {compacted}")
        if was_live and self.audience.ample:
            self.fail(f"{told} ends a watcher that was sent all changes as they were applied")
        # Its client reads the keys, and watches on from there.
        observer.go_on(told.compacted)
        if self.chance.random() < 0.5:
            observer.next = 0
        self.checker.count("watchers compacted")

    def _too_large(self, observer: Observer, told: wire.Told) -> None:
        """One revision has more events for it than a response may have; it goes on behind that."""
        revision = int(told.reason.split()[TOO_LARGE_AT]) if told.reason.startswith(TOO_LARGE) else 0
        found = [change for change in self.checker.model.changes if change.version.mod == revision]
        if observer.overtaken(revision) is None or sum(map(observer.wants, found)) < 2:
            self.fail(f"{told} ends a watcher at {observer.next}")
        observer.go_on(revision + 1)
        self.checker.count("watchers too large")

    def _events(self, observer: Observer, told: wire.Told) -> None:
        assert self.member is not None
        if told.fragment and not observer.fragment:
            self.fail(f"{told} is a fragment that nobody asked for")
        self.inside = told.watch_id if told.fragment else -1
        observer.jumped = False
        for event in told.events:
            mistake = observer.mistake(event, self.member.store.compact_revision)
            if mistake:
                self.fail(f"a watcher of {observer.key!r} to {observer.end!r} is told {mistake}")
            observer.at += 1
            observer.next = max(observer.next, event.pair.mod + (not told.fragment))
        if told.revision < told.events[-1].pair.mod:
            self.fail(f"{told} is of an older revision than its events")
        self.checker.count("watch events", len(told.events))
        self.checker.count("watch fragments", told.fragment)
        if not told.fragment:
            rest = observer.overtaken(told.events[-1].pair.mod)
            if rest is not None:
                self.fail(f"half of a revision, without {rest}: {told}")

    def _progress(self, told: wire.Told) -> None:
        if not self.asked:
            self.fail(f"{told} was not asked for")
        self.asked = False
        for observer in self.by_id.values():
            self._mark(observer, told.revision)
        self.last_mark = told.revision
        self.checker.count("watch progress")

    def _mark(self, observer: Observer, revision: int) -> None:
        overtaken = observer.overtaken(revision)
        if overtaken is not None or revision > self.checker.model.revision:
            self.fail(f"the mark of revision {revision} is ahead of {overtaken}")
        observer.jumped = False
        if revision >= observer.next:
            observer.go_on(revision + 1)


class Audience:
    """All spectators of a simulation. `keys`: how many of each letter the clients write."""

    def __init__(self, cluster: Cluster, seed: int, count: int, keys: int) -> None:
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.keys = keys
        self.sink = cluster.settings.sink
        self.stopped = self.over = False
        self.home: Callable[[], list[int]] | None = None  # ids of the members that all must be at in the end
        self.think = self.chance.choice((0.05, 0.2, 0.5))
        # Some hubs fall behind what is written: by how little they may do in a turn, and how often they do nothing.
        self.budget = self.chance.choice((1, 3, 10, 4000))
        self.stalls = cluster.settings.hub_stalls
        self.batch = self.chance.choice((1, 200, 2000))
        self.ample = self.chance.random() < 0.6  # whether one revision's events may always be held for all
        self.max_held = 1 << 20 if self.ample else 500
        # Room for the events of any revision, or for some of one and those of a batch before it.
        self.max_response = self.chance.choice((1 << 20, 1 << 20, self.batch + 400))
        self.largest, self.looked_at = 0, 0
        self.spectators = [Spectator(number, cluster, self) for number in range(count)]

    def hub(self, *parts: Any, **options: Any) -> SimHub:
        """A hub with small bounds."""
        options["fragment_size"] = self.chance.choice((60, 300, 1 << 16))
        options["interval"] = self.chance.choice((0.1, 0.5))
        options["max_held"] = self.max_held
        options["max_response"] = self.max_response
        made = self.cluster.settings.hub(*parts, **options, batch=self.batch)
        made.audience = self
        return made

    def before_turn(self, member: Member) -> None:
        """What the hub may do in the next turn."""
        member.budgets.watch = self.chance.randint(1, self.budget)

    def _largest(self) -> int:
        """Bytes of the events of one revision, at most."""
        changes = self.cluster.checker.model.changes
        sizes: dict[int, int] = {}
        for change in changes[max(0, self.looked_at - MOST_CHANGES) :]:
            mod = change.version.mod
            sizes[mod] = sizes.get(mod, 0) + ITEM + 2 * (len(change.version.value or b"") + len(change.key) + 40)
        self.looked_at = len(changes)
        self.largest = max([self.largest, *sizes.values()])
        return self.largest

    def of(self, member: Member) -> list[Spectator]:
        """Who is connected with a member."""
        return [one for one in self.spectators if one.member is member and one.connected]

    def after_turn(self, member: Member) -> None:
        """Look at what the hub keeps, and who is up to date."""
        hub = member.replica.watches
        if hub.held:
            most = self.batch + min(2 * self.max_held, hub.count * self._largest()) + self._largest()
            if hub.held > FEEDS * most:
                self.cluster.checker.fail(f"member {member.id} holds {hub.held} bytes of events for watchers")
        for spectator in self.of(member):
            for ident, observer in spectator.by_id.items():
                assert spectator.stream is not None
                observer.live = spectator.stream.watchers[ident].state == LIVE and not observer.jumped

    def installed(self, member: Member) -> None:
        """The history of this member may have a gap now. Some want to know at once how far they are."""
        cast(SimHub, member.replica.watches).leapt = True
        for spectator in self.of(member):
            if self.chance.random() < 0.5:
                spectator.ask()
            for observer in spectator.observers:
                observer.live, observer.jumped = False, True

    def due_later(self) -> float:
        """How long a hub waits with what it could do at once."""
        return 0.002 * self.chance.random()

    # ---- the end

    def missing(self) -> str:
        """Who has still to be told something; "" if nobody has."""
        for one in self.spectators:
            if not one.connected or not all(observer.active for observer in one.observers):
                return f"{one} is not served"
            for observer in one.observers:
                change = observer.due()
                if change is not None:
                    return f"{one}: a watcher of {observer.key!r} to {observer.end!r} is not told of {change}"
            if one.by_id and one.last_mark < self.cluster.checker.model.revision:
                one.ask()
                return f"{one} gets no progress mark of revision {self.cluster.checker.model.revision}"
        return ""

    def leave(self) -> None:
        """All streams end."""
        self.over = True
        for one in self.spectators:
            one.move()

    def left(self) -> str:
        """What hubs still keep; "" for nothing."""
        for member in self.cluster.members.values():
            if member.alive:
                hub = member.replica.watches
                if not hub.idle or hub.units or hub.held:
                    return f"the hub of member {member.id} keeps {hub.count} watchers and {hub.held} bytes"
        return ""
