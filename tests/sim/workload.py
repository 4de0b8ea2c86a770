"""Clients. Each has one call under way, at a member of its choice, and gives up when it takes too long.

Values are unique, so that a value tells which call wrote it. What a client is told goes to the checker at the moment
the member tells it, and what it asks counts from the moment the member hears it: the strictest view of real time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from metastore._core.waiter import Waiter
from metastore.errors import MetaStoreError

from . import wire
from .model import Call

if TYPE_CHECKING:
    from .node import Cluster, Member

_WEIGHTS = (("put", 40), ("swap", 20), ("pair", 5), ("delete", 5), ("read", 25), ("serializable", 4), ("compact", 1))


@dataclass
class Habits:
    """think: mean seconds between two calls. patience: seconds until a client gives up. keys: how many there are.
    wide: the share of operations on many keys. reads, compactions: what their shares are multiplied with. stay: chance
    to stay with the same member. size: of values."""

    clients: int = 5
    think: float = 0.05
    patience: float = 2.0
    keys: int = 6
    wide: float = 0.0
    reads: float = 1.0
    compactions: float = 1.0
    stay: float = 0.8
    size: int = 24


class Answer(Waiter):
    """Waits for a reply on behalf of a client."""

    def __init__(self, client: Client, call: Call) -> None:
        self.client = client
        self.call = call

    def complete(self, reply: bytes) -> None:
        """It is done."""
        self.client.answered(self.call, bytes(reply))

    def fail(self, error: MetaStoreError) -> None:
        """It is not, or nobody knows."""
        self.client.failed(self.call, type(error).__name__)


class Client:
    """See above."""

    def __init__(self, number: int, cluster: Cluster, habits: Habits) -> None:
        self.number = number
        self.cluster = cluster
        self.habits = habits
        self.call: Call | None = None
        self.made = 0
        self.member = 0
        self.stopped = False
        more = {"read": habits.reads, "compact": habits.compactions}
        weights = [(kind, weight * more.get(kind, 1)) for kind, weight in _WEIGHTS]
        weights += [("clear", habits.wide), ("renew", habits.wide), ("late", habits.wide / 2)]
        self.kinds = [kind for kind, _ in weights]
        self.weights = [weight for _, weight in weights]
        self.pause()

    def pause(self) -> None:
        """Think, then call."""
        if not self.stopped:
            clock = self.cluster.clock
            clock.after(clock.random.expovariate(1 / self.habits.think), self.begin)

    def begin(self) -> None:
        """Make a call."""
        if self.stopped:
            return
        chance = self.cluster.clock.random
        serving = self.cluster.serving()
        if not serving:
            self.pause()
            return
        if self.member not in serving or chance.random() > self.habits.stay:
            self.member = chance.choice(serving)
        self.issue(self.choose())

    def choose(self) -> Call:
        """What to do next."""
        chance, model = self.cluster.clock.random, self.cluster.checker.model
        self.made += 1
        kind = chance.choices(self.kinds, self.weights)[0]
        key = b"k%d" % chance.randrange(self.habits.keys)
        value = b"c%d.%d" % (self.number, self.made)
        value = value.ljust(self.habits.size, b".")
        if kind in ("read", "serializable"):
            everything = chance.random() < 0.2
            call = Call("read", (key, key) if everything else (key,), serializable=kind == "serializable")
            if chance.random() < 0.1 and model.revision > model.compacted + 1:
                call.revision = chance.randint(model.compacted + 1, model.revision)
        elif kind == "swap":
            right = chance.random() < 0.7
            call = Call("swap", (key,), value, model.value(key) if right else b"nobody wrote this")
        elif kind == "pair":
            call = Call("pair", (key, b"p%d" % chance.randrange(self.habits.keys)), value)
        elif kind == "clear":
            call = Call("clear", chance.choice(((b"k", b"l"), (b"p", b"q"), (key, b"l"))))
        elif kind == "compact":
            call = Call("compact", (), revision=max(1, model.revision - chance.randrange(-2, 20)))
        else:
            call = Call(kind, (key,), value if kind in ("put", "renew") else b"")
        wire.encode(call)
        return call

    def issue(self, call: Call) -> None:
        """Send a call to the member of our choice."""
        clock = self.cluster.clock
        self.call = call
        call.member = self.member
        call.began = clock.now
        clock.after(self.habits.patience, self.give_up, call)
        self.cluster.members[self.member].from_client(self.arrive, call)

    def arrive(self, member: Member, call: Call) -> None:
        """The member hears it."""
        call.heard = (self.cluster.clock.now, member.life)
        member.serve(call, Answer(self, call))

    def refused(self, call: Call) -> None:
        """Nobody listens there."""
        self.over(call)

    def give_up(self, call: Call) -> None:
        """It has taken too long; what becomes of it is open."""
        if self.call is call and call.heard is not None:
            self.cluster.checker.unanswered(self.cluster.members[call.member], call)
        self.over(call)

    def over(self, call: Call) -> None:
        """This call is no longer waited for."""
        if self.call is call:
            self.call = None
            self.pause()

    def answered(self, call: Call, reply: bytes) -> None:
        """A member answers."""
        checker = self.cluster.checker
        self.cluster.clock.note(reply)
        if call.kind == "read":
            checker.read(call, *wire.parse_range(reply))
        else:
            checker.wrote(call, *wire.parse_write(call, reply))
        self.cluster.last_answer = self.cluster.clock.now
        self.over(call)

    def failed(self, call: Call, error: str) -> None:
        """A member answers with an error."""
        self.cluster.clock.note(error.encode())
        self.cluster.checker.errored(call, error)
        self.over(call)


class Probe(Client):
    """A client that writes and reads at one member only, and notes as (member, kind) what it was answered, until it has
    been answered both."""

    def __init__(self, home: int, cluster: Cluster, habits: Habits, served: set[tuple[int, str]]) -> None:
        self.home = home
        self.served = served
        super().__init__(1000 + home, cluster, replace(habits, stay=1.0))

    def begin(self) -> None:
        """Make a call, if the member is up."""
        self.member = self.home
        if self.home in self.cluster.serving():
            super().begin()
        else:
            self.pause()

    def choose(self) -> Call:
        """A put, or a read that asks the leader."""
        call = super().choose()
        while call.kind not in ("put", "read") or call.serializable or call.revision:
            call = super().choose()
        return call

    def answered(self, call: Call, reply: bytes) -> None:
        """A member answers."""
        self.served.add((call.member, call.kind))
        self.stopped = self.stopped or {(self.home, "put"), (self.home, "read")} <= self.served
        super().answered(call, reply)
