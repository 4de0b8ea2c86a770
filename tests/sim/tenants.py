"""Clients with leases, and what each may rely on.

A `Tenant` grants a lease through some member, attaches keys, renews it through any members for a while, and then
revokes it or leaves it alone. What it is told makes a promise: the lease lives for its whole TTL from the moment on
when the member heard the request, by any clock that is within the drift. The checker holds every end by expiry against
the promises, at the moment the first member applies it. An answer that there is no such lease is wrong if there was one
all the time. In the end all leases are gone.

The tenants have a source of chance of their own, so that simulations without them stay what they are.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

from metastore._core.lease_wire import RENEW, TIME_TO_LIVE
from metastore._core.leases import decode_checkpoint, decode_revoke, encode_grant, encode_revoke
from metastore._core.op import LEASE_CHECKPOINT, LEASE_GRANT, LEASE_REVOKE, Operation
from metastore._core.waiter import Waiter
from metastore.errors import MetaStoreError
from metastore.replica.lease_rounds import Question

from . import wire
from .model import Call

if TYPE_CHECKING:
    from .checker import Checker
    from .node import Cluster, Member

KEYS = 5  # that all tenants share
PATIENCE = 3.0  # seconds until a tenant gives up


class Promises:
    """What clients were told of leases, held against what the log does with them."""

    def __init__(self, checker: Checker, cluster: Cluster) -> None:
        self.checker = checker
        self.cluster = cluster
        self.until: dict[int, float] = {}  # lease -> when it may end
        self.ended: dict[int, float] = {}  # lease -> when the first member applied its end by expiry
        self.revoked: set[int] = set()

    def promise(self, ident: int, since: float, ttl: int) -> None:
        """A client may rely on this lease."""
        until = since + ttl / (1 + self.cluster.settings.drift)
        self.until[ident] = max(self.until.get(ident, 0.0), until)
        ended = self.ended.get(ident)
        if ended is not None and ended < until - 1e-6:
            self.checker.fail(f"lease {ident} ended at {ended:.3f} s, its client was promised {until:.3f} s")

    def log(self, operation: Operation, now: float) -> bool:
        """An operation on leases is applied for the first time. Whether it is one that nobody asked for."""
        model = self.checker.model
        if operation.kind == LEASE_CHECKPOINT:
            self.checker.count("lease checkpoints", len(decode_checkpoint(operation.request)))
            return True
        if operation.kind != LEASE_REVOKE or not decode_revoke(operation.request)[1]:
            return False
        ident = decode_revoke(operation.request)[0]
        if ident not in model.leases:
            return True
        if now < self.until.get(ident, 0.0) - 1e-6:
            self.checker.fail(f"lease {ident} ends at {now:.3f} s, its client was promised {self.until[ident]:.3f} s")
        self.ended[ident] = now
        model.revoke(ident)
        self.checker.count("leases ended")
        return True


class Told(Waiter):
    """Waits for the outcome of a tenant's write."""

    def __init__(self, tenant: Tenant, call: Call) -> None:
        self.tenant = tenant
        self.call = call

    def complete(self, reply: bytes) -> None:
        """It is done."""
        self.tenant.wrote(self.call, reply)

    def fail(self, error: MetaStoreError) -> None:
        """It is not, or nobody knows."""
        self.tenant.failed(self.call, type(error).__name__)


class Tenant:
    """See above. It does one thing at a time."""

    def __init__(self, number: int, tenants: Tenants) -> None:
        self.number = number
        self.tenants = tenants
        self.cluster, self.checker, self.chance = tenants.cluster, tenants.cluster.checker, tenants.chance
        self.made = 0
        self.ident = self.ttl = self.renewals = 0
        self.step = 0  # a number for what it does now; late answers belong to an earlier one
        self.pause(self.chance.random())

    def pause(self, seconds: float) -> None:
        """Do the next thing later."""
        self.step += 1
        self.cluster.clock.after(seconds, self.begin, self.step)

    def begin(self, step: int) -> None:
        """Do the next thing."""
        serving = self.cluster.serving()
        if step != self.step or self.tenants.stopped:
            return
        if not serving:
            self.pause(0.1)
            return
        member = self.cluster.members[self.chance.choice(serving)]
        self.cluster.clock.after(PATIENCE, self.give_up, self.step)
        member.act(self.act, member, self.step)

    def give_up(self, step: int) -> None:
        """Nobody has answered."""
        if step == self.step:
            self.pause(0.05)

    def act(self, member: Member, step: int) -> None:
        """The member hears it."""
        if step != self.step:
            return
        if not self.ident:
            self.grant(member)
        elif self.renewals <= 0:
            ident, self.ident = self.ident, 0
            if self.chance.random() < 0.5:
                self.checker.count("leases left")
                self.pause(self.chance.random())
                return
            self.write(member, Call("revoke", (), lease=ident, body=encode_revoke(ident)), LEASE_REVOKE)
        elif self.chance.random() < 0.3:
            key = b"t%d" % self.chance.randrange(KEYS)
            lease = self.ident if self.chance.random() < 0.8 else 0
            self.made += 1
            value = b"t%d.%d" % (self.number, self.made)
            body = wire.text(1, key) + wire.text(2, value) + (wire.number(3, lease) if lease else b"")
            self.write(member, Call("attach", (key,), value, lease=lease, body=body, method="Put"), 0)
        else:
            self.ask(member)

    def grant(self, member: Member) -> None:
        self.made += 1
        self.ident = 1 + self.number * 1_000_000 + self.made
        self.ttl, self.renewals = self.chance.choice((2, 3, 5)), self.chance.randrange(12)
        call = Call("grant", (), lease=self.ident, revision=self.ttl, body=encode_grant(self.ident, self.ttl))
        self.write(member, call, LEASE_GRANT)

    # ---- writes

    def write(self, member: Member, call: Call, kind: int) -> None:
        """Hand an operation to the member; kind 0: by the KV service."""
        call.began, call.member = self.cluster.clock.now, self.step
        waiter = Told(self, call)
        if not kind:
            member.serve(call, waiter)
            return
        self.checker.begin(call)
        ident = member.kv.next_id
        member.kv.propose(kind, call.body, waiter, member.now())
        if member.kv.next_id != ident:
            call.ident = ident
            self.checker.admitted(call)

    def wrote(self, call: Call, reply: bytes) -> None:
        """It is done."""
        header = next(bytes(value) for field, value in wire.fields(reply) if field == 1 and not isinstance(value, int))
        self.cluster.clock.note(reply)
        self.checker.wrote(call, wire.revision_of(header), False, [])
        self.checker.count("lease calls")
        if call.kind == "grant":
            self.tenants.promises.promise(call.lease, call.began, call.revision)
        self.go_on(call.member)

    def failed(self, call: Call, error: str) -> None:
        """It is not, or nobody knows."""
        self.cluster.clock.note(error.encode())
        self.checker.errored(call, error)
        if call.lease == self.ident and error == "LeaseNotFound":
            self.ident = 0
        self.go_on(call.member)

    def go_on(self, step: int) -> None:
        if step == self.step:
            self.pause(self.chance.random() * 0.5)

    # ---- questions

    def ask(self, member: Member) -> None:
        """Renew the lease, or ask how long it lives."""
        kind = RENEW if self.chance.random() < 0.8 else TIME_TO_LIVE
        others = [tenant.ident for tenant in self.tenants.all if tenant.ident and self.chance.random() < 0.2]
        idents = [self.ident, *others]
        since, step, told = self.cluster.clock.now, self.step, set[int]()

        def news(question: Question) -> None:
            for place, ttl in enumerate(question.ttls):
                if ttl is not None and place not in told:
                    told.add(place)
                    self.told(kind, idents[place], ttl, since)
            if 0 in told or question.error is not None:
                self.go_on(step)

        self.renewals -= 1
        member.replica.leases.ask(Question(kind, idents, news), member.now())

    def told(self, kind: int, ident: int, ttl: int, since: float) -> None:
        """A client is told this of a lease; the member heard it at `since`."""
        model, promises = self.checker.model, self.tenants.promises
        self.cluster.clock.note(b"lease %d %d %d" % (kind, ident, ttl))
        gone = ttl < 0 if kind == TIME_TO_LIVE else ttl == 0
        if gone:
            if ident in model.leases and model.lease_came[ident] < since:
                self.checker.fail(f"lease {ident} is said to be gone, and is there")
            if ident == self.ident:
                self.ident = 0
            self.checker.count("leases gone")
            return
        if model.lease_gone.get(ident, since) < since:
            self.checker.fail(f"lease {ident} is said to live, and was gone when that was asked")
        if kind == RENEW:
            self.checker.count("leases renewed")
            promises.promise(ident, since, ttl)


class Tenants:
    """All tenants of a simulation."""

    def __init__(self, cluster: Cluster, seed: int, count: int) -> None:
        self.cluster = cluster
        self.chance = random.Random(seed)
        self.promises = cluster.checker.promises = Promises(cluster.checker, cluster)
        self.stopped = False
        self.all: list[Tenant] = []
        self.all += [Tenant(number, self) for number in range(count)]

    def missing(self) -> str:
        """What is still to come when all has healed."""
        self.stopped = True
        found = self.cluster.checker.model.leases
        return f"leases do not end: {sorted(found)[:5]}" if found else ""
