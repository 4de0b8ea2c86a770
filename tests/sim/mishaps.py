"""What goes wrong, and when: a source of mishaps that draws from the simulation's one source of chance."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from metastore import errors
from metastore._core.raft_types import ConfChange, ConfChangeError, ConfChangeV2, ProposalDropped
from metastore.replica.roster import ADD, ADD_LEARNER, PROMOTE, PUBLISH, REMOVE, UPDATE, Change
from metastore.replica.roster import Member as Record

if TYPE_CHECKING:
    from .node import Cluster, Member

MAX_MEMBERS = 6
MAX_JOINED = 12

# How often each mishap is drawn, relative to the others.
USUAL = {
    "cut": 10,
    "isolate": 6,
    "isolate_leader": 6,
    "one_way": 6,
    "heal": 14,
    "kill": 6,
    "power": 8,
    "kill_leader": 4,
    "power_leader": 4,
    "crash_at_disk": 8,
    "power_all": 1,
    "pause": 5,
    "pause_leader": 3,
    "transfer": 6,
    "slow_disk": 4,
    "drift": 3,
    "weather": 4,
    "disk_fails": 1,
}
MEMBERSHIP = {
    "add": 5, "add_learner": 3, "promote": 5, "remove": 5, "remove_leader": 2, "update": 4, "publish": 3, "burst": 4,
    "crash_at_change": 4,
}  # fmt: skip


@dataclass
class Plan:
    """pause: mean seconds between two mishaps. mishaps: weights by name. down: mean seconds until a crashed member is
    started again. fewest: voters of which none is removed."""

    pause: float = 0.7
    mishaps: dict[str, float] = field(default_factory=lambda: dict(USUAL))
    down: float = 1.0
    stopped: float = 1.0
    fewest: int = 2


class Mishaps:
    """Draws one mishap after the other until `stop`."""

    def __init__(self, cluster: Cluster, plan: Plan) -> None:
        self.cluster = cluster
        self.plan = plan
        self.clock = cluster.clock
        self.chance = cluster.clock.random
        self.names = list(plan.mishaps)
        self.weights = list(plan.mishaps.values())
        self.stopped = False
        self.leaving: set[int] = set()
        self.counts: dict[str, int] = {}
        self.moving: tuple[int, str] | None = None  # a member, and the place of which the roster is to be told
        self.striking = False  # somebody is killed as the next addition is answered
        if self.names:
            self.clock.after(self._pause(), self._next)

    def _pause(self) -> float:
        return self.chance.expovariate(1 / self.plan.pause)

    def _count(self, what: str) -> None:
        self.counts[what] = self.counts.get(what, 0) + 1

    def _next(self) -> None:
        if self.stopped:
            return
        name = self.chance.choices(self.names, self.weights)[0]
        self.clock.note(name.encode())
        self._count(name)
        getattr(self, name)()
        self._leave()
        self.clock.after(self._pause(), self._next)

    # ---- whom it hits

    def alive(self) -> list[Member]:
        """Members that run."""
        return [member for member in self.cluster.members.values() if member.alive]

    def _some(self) -> Member | None:
        alive = self.alive()
        return self.chance.choice(alive) if alive else None

    # ---- links

    def cut(self) -> None:
        """Two groups that do not hear each other."""
        ids = list(self.cluster.members)
        self.chance.shuffle(ids)
        half = self.chance.randint(1, max(1, len(ids) - 1))
        if self.chance.random() < 0.6:
            self.cluster.network.heal()
        self.cluster.network.separate(ids[:half], ids[half:])

    def isolate(self, member: Member | None = None) -> None:
        """One member without the others."""
        member = member or self._some()
        if member is not None:
            self.cluster.network.separate([member.id], [ident for ident in self.cluster.members if ident != member.id])

    def isolate_leader(self) -> None:
        """The same with the leader."""
        self.isolate(self.cluster.leader())

    def one_way(self) -> None:
        """Somebody is not heard, or does not hear, or one link has one direction."""
        member = self._some()
        if member is None:
            return
        others = [ident for ident in self.cluster.members if ident != member.id]
        if others and self.chance.random() < 0.5:
            others = [self.chance.choice(others)]
        pair = ([member.id], others) if self.chance.random() < 0.5 else (others, [member.id])
        self.cluster.network.silence(*pair)

    def heal(self) -> None:
        """All links work again."""
        self.cluster.network.heal()

    def weather(self) -> None:
        """The network gets better or worse."""
        weather = self.cluster.network.weather
        weather.delay = self.chance.choice((0.0005, 0.002, 0.01, 0.05))
        weather.spread = self.chance.choice((0.2, 1.0, 5.0))
        weather.spike = self.chance.choice((0.0, 0.01, 0.1))
        weather.loss = self.chance.choice((0.0, 0.01, 0.1, 0.3))
        weather.double = self.chance.choice((0.0, 0.02, 0.2))

    # ---- members

    def _again(self, member: Member) -> None:
        self.clock.after(self.chance.expovariate(1 / self.plan.down), self.start, member)

    def start(self, member: Member) -> None:
        """Start a member that is down, unless it left the cluster."""
        if not member.alive and member.id not in self.leaving:
            member.start()

    def _crash(self, member: Member | None, power: bool) -> None:
        if member is not None:
            member.crash(power)
            self._again(member)

    def kill(self) -> None:
        """kill -9."""
        self._crash(self._some(), False)

    def power(self) -> None:
        """The plug."""
        self._crash(self._some(), True)

    def kill_leader(self) -> None:
        """kill -9 of the leader."""
        self._crash(self.cluster.leader(), False)

    def power_leader(self) -> None:
        """The leader's plug."""
        self._crash(self.cluster.leader(), True)

    def power_all(self) -> None:
        """All plugs at once."""
        for member in self.alive():
            self._crash(member, True)

    def crash_at_disk(self) -> None:
        """A crash in the middle of the next write or sync, or right after it."""
        member = self.cluster.leader() if self.chance.random() < 0.4 else self._some()
        if member is not None:
            phase = self.chance.choice(("write", "sync", "after"))
            member.crash_in(phase, self.chance.random() < 0.7, self._again)

    def strike_transfer(self) -> None:
        """One end of the next snapshot that is under way is killed, or loses its power, when some chunks are over. Half
        of the times somebody is left behind before that, so that there is one."""
        if self.chance.random() < 0.5:
            self.isolate()
            self.clock.after(1.5, self.cluster.network.heal)

        def look(patience: int) -> None:
            for member in self.alive():
                one = member.snapshots.coming
                if one is not None and not one.finishing and one.part.chunks:
                    hit = member if self.chance.random() < 0.6 else self.cluster.members.get(one.sender)
                    self._crash(hit, self.chance.random() < 0.7)
                    self._count("struck")
                    return
            if patience and not self.stopped:
                self.clock.after(0.02 * self.chance.random(), look, patience - 1)

        look(300)

    def pause(self, member: Member | None = None) -> None:
        """SIGSTOP, and SIGCONT later."""
        member = member or self._some()
        if member is not None and not member.paused:
            member.pause()
            self.clock.after(self.chance.expovariate(1 / self.plan.stopped), member.resume)

    def pause_leader(self) -> None:
        """The same with the leader."""
        self.pause(self.cluster.leader())

    def transfer(self) -> None:
        """Somebody wants another leader."""
        member = self._some()
        if member is not None and not member.paused:
            to = self.chance.choice(list(self.cluster.members))
            member.act(member.raw.transfer_leader, to)

    def slow_disk(self) -> None:
        """A disk gets slow or quick."""
        member = self._some()
        if member is not None:
            member.speed.sync = self.chance.choice((0.0005, 0.002, 0.02, 0.2))
            member.speed.stall = self.chance.choice((0.0, 0.01, 0.1))

    def disk_fails(self) -> None:
        """The next sync fails; the member stops, and is started again on the same disk."""
        member = self._some()
        if member is not None:
            member.speed.fail = 1.0
            self.clock.after(0.5, setattr, member.speed, "fail", 0.0)
            self.clock.after(1.0 + self.chance.random(), self.start, member)

    def transfer_deaf(self) -> None:
        """The leader hands over, and from about then on hears nobody: it cannot know that it leads no more."""
        leader = self.cluster.leader()
        if leader is None or leader.paused:
            return
        others = [ident for ident in self.cluster.members if ident != leader.id]
        leader.act(leader.raw.transfer_leader, self.chance.choice(others))
        wait = self.chance.choice((0.0, 0.002, 0.005))
        self.clock.after(wait, self.cluster.network.silence, others, [leader.id])
        self.clock.after(wait + 0.5 + self.chance.random(), self.cluster.network.heal)

    def drift(self) -> None:
        """A clock changes its speed."""
        member, drift = self._some(), self.cluster.settings.drift
        if member is not None:
            member.set_rate(self.chance.uniform(1 - drift, 1 + drift))

    # ---- membership

    def _change(self, action: str, ident: int, urls: tuple[str, ...] = (), name: str = "") -> None:
        member = self.cluster.leader() if self.chance.random() < 0.7 else self._some()
        if member is None or member.paused:
            return
        record = self.cluster.record(ident, action == ADD_LEARNER)
        change = Change(action, replace(record, peer_urls=urls or record.peer_urls, name=name))

        def done(error: errors.MetaStoreError | None) -> None:
            self.clock.note(b"%s %d %s" % (action.encode(), ident, repr(error).encode()))
            unknown = isinstance(error, errors.Timeout | errors.LeaderChanged)
            if action in (ADD, ADD_LEARNER) and (error is None or unknown) and ident not in self.cluster.members:
                if self.striking and error is None:
                    self._strike(ident)
                self.cluster.join(ident).start()

        member.act(lambda: member.membership.change(change, done, member.now()))

    def _roster(self) -> dict[int, bool]:
        """id -> whether it is a learner, as the member that has applied most knows it."""
        newest = max(self.alive(), key=lambda member: member.applied, default=None)
        return {} if newest is None else {ident: record.is_learner for ident, record in newest.roster.members.items()}

    def add(self) -> None:
        """A new voter."""
        if len(self._roster()) < MAX_MEMBERS and len(self.cluster.members) < MAX_JOINED:
            self._change(ADD, next(self.cluster.ids))

    def add_learner(self) -> None:
        """A new learner."""
        if len(self._roster()) < MAX_MEMBERS and len(self.cluster.members) < MAX_JOINED:
            self._change(ADD_LEARNER, next(self.cluster.ids))

    def promote(self) -> None:
        """A learner becomes a voter."""
        learners = [ident for ident, learner in self._roster().items() if learner]
        if learners:
            self._change(PROMOTE, self.chance.choice(learners))

    def remove(self, ident: int = 0) -> None:
        """Somebody goes."""
        roster = self._roster()
        voters = [ident for ident, learner in roster.items() if not learner]
        ident = ident or (self.chance.choice(list(roster)) if roster else 0)
        if self._wiped() or self.moving is not None:
            return  # the others must be enough without it
        if ident and (len(voters) > self.plan.fewest or roster.get(ident, False)):
            self._change(REMOVE, ident)

    def remove_leader(self) -> None:
        """The leader goes."""
        leader = self.cluster.leader()
        if leader is not None:
            self.remove(leader.id)

    def update(self) -> None:
        """Somebody gets another address, perhaps one that another member has, had, or is about to get. Where members
        are dialled by their addresses it must be one of the member's own."""
        if self.cluster.settings.greetings:
            self.move()
            return
        roster = self._roster()
        if roster:
            self._change(UPDATE, self.chance.choice(list(roster)), (f"http://n{self.chance.randrange(1, 9)}:2",))

    def add_struck(self) -> None:
        """A new voter, and somebody who has not applied that yet is killed as it is answered."""
        self.striking = True
        self.add()

    def _strike(self, fresh: int) -> None:
        self.striking = False
        behind = [member for member in self.alive() if fresh not in member.roster.members]
        if behind:
            self._count("struck at add")
            self._crash(self.chance.choice(behind), False)

    def move(self) -> None:
        """Somebody gets another place, and the roster is told after that, or before. After that only where the others
        can have it told without the one that moved: of two, neither may know any more where the other one is."""
        member = self._some()
        if self.moving is not None or member is None or member.id not in self._roster():
            return
        self.moving = (member.id, self.cluster.new_place(member))
        if len(member.raw.conf_state.voters) > 2 and self.chance.random() < 0.5:
            self._moved(member, self.moving[1])
            self.clock.after(1.0, self._tell_move)
        else:
            self._tell_move()
            self.clock.after(1.0, self._move_told, member)

    def _move_told(self, member: Member) -> None:
        """When the roster is told, the member goes where it says."""
        if self.moving is not None and not self.stopped:
            self.clock.after(1.0, self._move_told, member)
            return
        urls = next((one.peer_urls for one in self._records(member.id)), ())
        if urls:
            self._moved(member, urls[0].removeprefix("http://"))

    def _records(self, ident: int) -> list[Record]:
        """What those that live have in their rosters of a member, the newest first."""
        alive = sorted(self.alive(), key=lambda member: -member.applied)
        return [member.roster.members[ident] for member in alive if ident in member.roster.members]

    def _moved(self, member: Member, place: str) -> None:
        self._count("moved")
        member.crash(False)
        member.place = place
        self._again(member)

    def _tell_move(self) -> None:
        """Until somebody has it applied, or the member is gone."""
        if self.moving is None:
            return
        ident, place = self.moving
        urls = (f"http://{place}",)
        known = self._records(ident)
        if known[0].peer_urls == urls if known else self.alive():
            self.moving = None
            return
        self._change(UPDATE, ident, urls)
        self.clock.after(1.0, self._tell_move)

    def wipe(self) -> None:
        """Somebody who is known to all that may talk to it comes back with an empty directory. An operator gives the
        old one back some time later, or removes the member."""
        known = [member for member in self.alive() if member.fresh.founder and self._is_known(member)]
        if self._wiped() or not known:
            return
        member = self.chance.choice(known)
        self._count("wiped")
        member.crash(self.chance.random() < 0.5)
        member.wipe()
        self._again(member)
        self.clock.after(1.0 + 5.0 * self.chance.random(), self._mend, member, self.chance.random() < 0.5)

    def _is_known(self, member: Member) -> bool:
        """Whether all others would tell its directory from an empty one, and can do without it."""
        own = member.identity.incarnation
        others = [one for one in self.cluster.started() if one.alive or one.id not in self.leaving]
        records = [one.roster.members.get(member.id) for one in others]
        return len(member.raw.conf_state.voters) > 2 and all(
            record is not None and record.incarnation == own for record in records
        )

    def _wiped(self) -> list[Member]:
        return [one for one in self.cluster.members.values() if one.kept is not None and one.id not in self.leaving]

    def _mend(self, member: Member, by_removal: bool) -> None:
        if member not in self._wiped():
            return
        if not by_removal or self.stopped:
            member.crash(False)
            member.mount()
            self._again(member)
        elif self._roster():
            self._change(REMOVE, member.id)
            self.clock.after(2.0, self._mend, member, member.id in self._roster() and self.chance.random() < 0.9)

    def publish(self) -> None:
        """Somebody gets another name."""
        roster = self._roster()
        if roster:
            self._change(PUBLISH, self.chance.choice(list(roster)), name=f"name {self.chance.randrange(100)}")

    def burst(self) -> None:
        """Several operations on the roster at once: whether a later one is possible depends on the earlier ones."""
        names = ("add", "add_learner", "promote", "remove", "update", "update", "publish")
        for name in self.chance.choices(names, k=self.chance.randint(2, 5)):
            getattr(self, name)()

    def crash_at_change(self) -> None:
        """Somebody is killed, or loses its power, when it has just begun to work with another membership."""
        member, power = self._some(), self.chance.random() < 0.5
        if member is not None:
            member.at_change = lambda: self.clock.after(self.chance.random() * 0.002, self._crash, member, power)

    def crash_at_half(self) -> None:
        """Somebody whose engine has files is killed when these have just got a part of an entry."""
        member = self._some()
        if member is not None:
            member.at_half = lambda: self.clock.after(self.chance.random() * 0.002, self._crash, member, False)

    def down_to_one(self) -> None:
        """Of two voters one is removed and told so at once; the one that is left dies with the news."""
        leader = self.cluster.leader()
        voters = [ident for ident, learner in self._roster().items() if not learner]
        if leader is None or len(voters) != 2 or leader.id not in voters:
            return
        other = self.cluster.members.get(next(ident for ident in voters if ident != leader.id))
        if other is None:
            return

        def changed() -> None:
            if other.id in leader.roster.removed:
                self.leaving.add(other.id)
                self.clock.after(0, other.crash, False)
                self.clock.after(self.chance.random() * 0.001, self._crash, leader, False)

        leader.at_change = changed
        self.remove(other.id)

    def joint(self) -> None:
        """Several voters change places with others in one step, by way of a joint configuration."""
        leader = self.cluster.leader()
        if leader is None or leader.paused:
            return
        conf = leader.raw.conf_state
        known = list(self.cluster.members)
        voters = set(conf.voters)
        wanted = set(self.chance.sample(known, min(len(known), self.chance.choice((2, 3, 3, 4)))))
        changes = [ConfChange(0, ident) for ident in sorted(wanted - voters)]
        changes += [ConfChange(3, ident) for ident in sorted(voters - wanted)]
        if not changes:
            return

        def propose() -> None:
            try:
                leader.raw.propose_conf_change(ConfChangeV2(self.chance.choice((0, 1)), changes))
            except (ConfChangeError, ProposalDropped, errors.NotLeader, errors.NoLeader):
                self.clock.note(b"no joint change now")

        leader.act(propose)

    def joint_cut(self) -> None:
        """A joint change to voters of whom only the leader was one, and a cut between old and new ones as soon as
        the leader works with it."""
        leader = self.cluster.leader()
        if leader is None or leader.paused or leader.raw.conf_state.voters_outgoing:
            return
        old = set(leader.raw.conf_state.voters)
        fresh = sorted(set(self.cluster.members) - old)[:2]
        if len(fresh) < 2:
            return
        changes = [ConfChange(0, ident) for ident in fresh]
        changes += [ConfChange(3, ident) for ident in sorted(old - {leader.id})]

        def propose() -> None:
            try:
                leader.raw.propose_conf_change(ConfChangeV2(1, changes))
            except (ConfChangeError, ProposalDropped, errors.NotLeader, errors.NoLeader):
                return
            self.clock.after(0.0005, cut, 400)

        def cut(patience: int) -> None:
            if leader.alive and leader.raw.conf_state.voters_outgoing:
                self.cluster.network.separate([leader.id, *fresh], sorted(old - {leader.id}))
            elif patience:
                self.clock.after(0.0005, cut, patience - 1)

        self.cluster.network.heal()
        leader.act(propose)

    def _leave(self) -> None:
        """Members that were removed hear of it sooner or later and stop; until then they go on talking."""
        removed: frozenset[int] = frozenset()
        for member in self.alive():
            # Not when it alone knows: the others may need its vote to learn of it. A real one tells them first.
            removed |= member.roster.removed - {member.id}
        for ident in sorted(removed - self.leaving):
            self.leaving.add(ident)
            if ident in self.cluster.members:
                self.clock.after(self.chance.random() * 3, self.cluster.members[ident].crash, False)

    def stop(self) -> None:
        """No more mishaps; all works from now on."""
        self.stopped = True
        self._leave()
        self.cluster.network.heal()
        weather = self.cluster.network.weather
        weather.delay, weather.spread, weather.spike, weather.loss, weather.double = 0.002, 1.0, 0.0, 0.0, 0.0
        for member in list(self.cluster.members.values()):
            member.speed.sync, member.speed.stall, member.speed.fail = 0.001, 0.0, 0.0
            member.resume()
        for member in self._wiped():
            self._mend(member, False)
        self.tend()

    def tend(self) -> None:
        """Nobody who belongs to the cluster stays down, nobody who was removed stays up; and a mishap that was under
        way when all was healed does not outlast that."""
        self._leave()
        self.cluster.network.heal()
        # Who was added by somebody who died over it has no machine yet; where members are in doubt it is waited for.
        for ident in self._roster():
            if ident not in self.cluster.members:
                self.cluster.join(ident)
        for member in list(self.cluster.members.values()):
            if member.id in self.leaving:
                member.crash(False)
            else:
                self.start(member)
