"""One simulation from a seed: mishaps, then healing, then the proof that the cluster goes on and agrees."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from metastore.storage.wal import Lag

from .absences import away, wiped
from .checker import Violation
from .clock import Clock
from .mishaps import MEMBERSHIP, USUAL, Mishaps, Plan
from .network import Weather
from .node import Cluster, Member, Settings
from .scripts import Player, Script, aba, deposed, figure8, forgotten, halves, overtaken, promised, unsynced
from .tenants import Tenants
from .watchers import Audience
from .workload import Client, Habits, Probe

# Virtual seconds within which a healed cluster must serve everywhere, at ten ticks an election timeout; longer ones
# give more. Where one log alone is new enough to win, without pre-vote, each attempt of another one puts it off.
HEALING = 60.0
ROUND = 120.0  # and a round of a script is at its end, where that is waited for
SETTLING = 30.0  # and within which all members must have applied the same


class SimulationFailed(AssertionError):
    """What was found, and the command that shows it again."""


@dataclass
class Report:
    """What a simulation came to. `trace` is the sum over everything that happened."""

    seed: int
    profile: str
    trace: int
    seconds: float
    events: int
    counts: dict[str, int] = field(default_factory=dict)


@dataclass
class Scene:
    """Everything that a profile may set before the time begins to run."""

    settings: Settings
    weather: Weather
    habits: Habits
    plan: Plan
    seconds: float = 20.0
    stagger: float = 0.0  # seconds within which the members are started for the first time
    script: Script | None = None
    whole_rounds: bool = False  # whether the last round of the script is played to its end
    inside: bool = True


Profile = Callable[[Scene, Any], None]


def usual(scene: Scene, chance: Any) -> None:
    """A bit of everything, with settings out of a hat."""
    settings, weather = scene.settings, scene.weather
    settings.members = chance.choice((3, 3, 3, 5))
    settings.election_ticks = chance.choice((5, 10))
    settings.pre_vote = chance.random() < 0.7
    settings.check_quorum = chance.random() < 0.8
    settings.max_size_per_msg = chance.choice((64, 1000, 1 << 20))
    settings.max_inflight = chance.choice((1, 4, 256))
    settings.max_tail_bytes = chance.choice((1, 4096, 1 << 20))
    settings.max_committed = chance.choice((1, 2000, 1 << 20))
    settings.batch_count = chance.choice((1, 10, 100))
    settings.batching = chance.random() < 0.8
    settings.group_commit = chance.random() < 0.8
    settings.max_group = chance.choice((256, 1 << 16))
    settings.segment_size = chance.choice((4096, 16384, 65536))
    settings.rewrite = chance.choice((0, 3000, 1 << 20))
    settings.compression = chance.choice((0, 0, 1, 2))
    settings.widen = chance.choice((0.0, 0.0, 0.1))
    read, settings.read_ahead = chance.choice(((0.0, 8000), (0.002, 1), (0.1, 40_000)))
    settings.speed = lambda speed: setattr(speed, "read", read)
    weather.delay = chance.choice((0.0005, 0.002, 0.02))
    weather.spike = chance.choice((0.0, 0.01, 0.1))
    weather.loss = chance.choice((0.0, 0.01, 0.1))
    weather.double = chance.choice((0.0, 0.02))
    scene.habits.think = chance.choice((0.02, 0.1))
    settings.max_waiting = chance.choice((3, 1000))
    scene.plan.pause = chance.choice((0.2, 0.7, 2.0))
    scene.plan.down = chance.choice((0.05, 1.0))


def members(scene: Scene, chance: Any) -> None:
    """The same, and members come and go; in some of these clusters they greet each other before they are heard."""
    usual(scene, chance)
    scene.settings.greetings = chance.random() < 0.4
    scene.plan.mishaps = {**{name: weight / 2 for name, weight in USUAL.items()}, **MEMBERSHIP}


def shrinking(scene: Scene, chance: Any) -> None:
    """Few members, down to one and up again, that die when they have just changed their membership."""
    members(scene, chance)
    scene.settings.members = chance.choice((2, 2, 3))
    scene.plan.fewest = 1
    # Newcomers get a long log again and again. Entry by entry, and in any order, that takes longer than the log grows.
    scene.settings.max_size_per_msg = 1 << 20
    scene.plan.mishaps = {
        "down_to_one": 20, "remove": 6, "remove_leader": 3, "add": 6, "add_learner": 4, "promote": 8, "heal": 4,
        "crash_at_change": 8, "kill": 2, "power": 2,
    }  # fmt: skip


def snapshots(scene: Scene, chance: Any) -> None:
    """Logs are cut short behind snapshots all the time, and members are brought up by them; members come and go."""
    members(scene, chance)
    scene.settings.snapshots = chance.choice((5, 20, 60))
    scene.habits.compactions = chance.choice((1, 40))
    scene.settings.max_tail_bytes = 1
    scene.settings.segment_size = 4096


def lagging(scene: Scene, chance: Any) -> None:
    """Disks whose syncs lag behind what is acknowledged, and power cuts that take it from one member at a time."""
    chance.choice((usual, usual, members, snapshots))(scene, chance)
    # Members whose disks have lost something may need the vote of one who may not vote before there is a leader.
    scene.settings.greetings = False
    scene.settings.lag = Lag(chance.choice((0.02, 0.3, 1.0)), chance.choice((500, 1 << 16, 1 << 16)))
    scene.plan.mishaps = {**scene.plan.mishaps, "power": 30, "power_leader": 10, "isolate_leader": 10, "power_all": 0}


def transfers(scene: Scene, chance: Any) -> None:
    """Members that are left behind again and again, and die while they get or send a snapshot; newest files that rot
    while their owner is down."""
    usual(scene, chance)
    scene.settings.members = 3
    scene.settings.snapshots = chance.choice((3, 6, 12))
    scene.settings.max_tail_bytes = 1
    scene.settings.segment_size = 4096
    scene.settings.rot = 0.3
    scene.habits.think = 0.02
    scene.plan.mishaps = {
        "strike_transfer": 10, "isolate": 6, "kill": 3, "power": 4, "power_leader": 2, "heal": 12, "weather": 2,
        "crash_at_disk": 3, "power_all": 1,
    }  # fmt: skip
    scene.plan.pause, scene.plan.down = 0.7, 1.5


def busy(scene: Scene, chance: Any) -> None:
    """Engines that refuse writes at times; now and then with logs that are cut short behind snapshots."""
    snapshots(scene, chance)
    scene.settings.snapshots = chance.choice((0, 5, 20))
    scene.settings.busy = chance.choice((0.02, 0.2, 0.5))


def flaky(scene: Scene, chance: Any) -> None:
    """Engines whose calls fail at times: their members stop and are started again."""
    snapshots(scene, chance)
    scene.settings.snapshots = chance.choice((0, 5, 20))
    scene.settings.flaky = chance.choice((0.002, 0.01))


def filed(scene: Scene, chance: Any) -> None:
    """Engines with files of their own, some of them or all, whose logs are cut behind what a flush has brought there;
    now and then with disks that lag, or with writes that are refused."""
    (lagging if chance.random() < 0.3 else transfers if chance.random() < 0.5 else snapshots)(scene, chance)
    scene.settings.snapshots = chance.choice((5, 12))
    scene.settings.filed = chance.choice((0.5, 1.0))
    scene.settings.busy = chance.choice((0.0, 0.0, 0.05))


def compared(scene: Scene, chance: Any) -> None:
    """The leader compares the data of all members all the time, while that is compacted, written in pieces, or replaced
    by snapshots."""
    chance.choice((snapshots, filed, flaky, pieces))(scene, chance)
    scene.habits.compactions = 20
    scene.settings.compare = chance.choice((0.2, 1.0))


def pieces(scene: Scene, chance: Any) -> None:
    """Deletions and transactions about many keys, applied in pieces; members die, are brought up and read meanwhile."""
    snapshots(scene, chance)
    scene.settings.snapshots = chance.choice((5, 12))
    scene.settings.filed, scene.settings.flushed = chance.choice((0.5, 1.0, 1.0)), 0.5
    scene.settings.busy = chance.choice((0.0, 0.0, 0.02))
    scene.settings.pieces = chance.choice((30, 100, 300))
    # How many keys a transaction that writes may look at, and all that are under way: some are refused, some wait.
    scene.settings.max_txn_walk = chance.choice((10**6, 10**6, 20, 200))
    scene.settings.members = 3
    scene.habits.wide, scene.habits.keys, scene.habits.reads = 8.0, 16, 2.0
    scene.plan.mishaps = {**scene.plan.mishaps, "crash_at_half": 80, "kill": 5, "power": 5}
    scene.plan.pause, scene.plan.down = 1.0, chance.choice((0.05, 0.5))


def reads(scene: Scene, chance: Any) -> None:
    """Leaders that are cut off, stopped and deposed while clients read."""
    usual(scene, chance)
    scene.habits.reads, scene.habits.think, scene.habits.clients = 4.0, 0.02, 8
    scene.habits.stay = 0.5
    scene.plan.mishaps = {
        "isolate_leader": 10,
        "one_way": 10,
        "pause_leader": 5,
        "pause": 3,
        "cut": 5,
        "heal": 10,
        "transfer": 3,
        "weather": 2,
        "kill": 5,
    }
    scene.plan.pause, scene.plan.down = 0.7, 0.05
    scene.settings.members = 3


def lease(scene: Scene, chance: Any) -> None:
    """Reads by lease, leaders that hand over without hearing of it, and members that are slow to apply that others
    come and go."""
    reads(scene, chance)
    scene.settings.busy = chance.choice((0.0, 0.05))
    scene.settings.lease_reads = scene.settings.check_quorum = True
    scene.settings.election_ticks = 10
    scene.plan.mishaps = {
        "transfer_deaf": 10,
        "transfer": 3,
        "pause_leader": 5,
        "isolate_leader": 5,
        "heal": 8,
        "drift": 3,
        "add_learner": 2,
        "promote": 1,
        "remove": 2,
        "one_way": 2,
    }
    scene.weather.delay, scene.weather.loss = 0.002, 0.0


def lagging_lease(scene: Scene, chance: Any) -> None:
    """Reads by lease over disks that lag: what a leader reads without asking, or tells a watcher, may be on no disk
    yet."""
    lease(scene, chance)
    scene.settings.watchers = 2
    scene.settings.lag = Lag(chance.choice((0.3, 1.0)), 1 << 16)
    scene.plan.mishaps = {
        "power": 12,
        "power_leader": 10,
        "transfer_deaf": 4,
        "transfer": 3,
        "pause_leader": 5,
        "isolate_leader": 8,
        "heal": 8,
        "drift": 3,
    }
    scene.plan.down = chance.choice((0.05, 1.0))


def joint(scene: Scene, chance: Any) -> None:
    """Voters change places by joint configurations, with cuts between old and new ones."""
    usual(scene, chance)
    scene.settings.members = 5
    scene.plan.mishaps = {"joint": 4, "joint_cut": 8, "heal": 3, "kill": 1, "power": 1, "isolate_leader": 1}
    scene.plan.pause = 2.5
    scene.weather.delay, scene.weather.loss, scene.weather.spike = 0.002, 0.0, 0.0


def old_terms(scene: Scene, chance: Any) -> None:
    """Figure 8 of the Raft paper, over and over."""
    directed(scene, chance)
    scene.settings.members, scene.script = 5, figure8
    scene.settings.max_size_per_msg = scene.settings.max_inflight = 1


def rewritten(scene: Scene, chance: Any) -> None:
    """Entries that are written, overwritten and written again while a disk is slow."""
    directed(scene, chance)
    scene.settings.members, scene.script = 7, aba
    scene.settings.widen = 0.7


def cut_halves(scene: Scene, chance: Any) -> None:
    """Joint configurations whose halves are cut apart."""
    directed(scene, chance)
    scene.settings.members, scene.script = 5, halves


def forgotten_votes(scene: Scene, chance: Any) -> None:
    """Members that are killed when they have just voted."""
    directed(scene, chance)
    scene.settings.members, scene.script = 3, forgotten


def deposed_leaders(scene: Scene, chance: Any) -> None:
    """Leaders that do not know yet that they lead no more, and are read from."""
    directed(scene, chance)
    scene.settings.members, scene.script = 3, deposed
    scene.habits.reads, scene.habits.think = 3.0, 0.02


def lease_promises(scene: Scene, chance: Any) -> None:
    """Followers that have answered a heartbeat, and then have a reason to help somebody else to lead."""
    directed(scene, chance)
    scene.settings.members, scene.script = 3, promised
    scene.settings.pre_vote = scene.settings.check_quorum = scene.settings.lease_reads = True
    scene.settings.election_ticks = 10
    scene.settings.busy = 1e-9  # only when the script says so
    scene.habits.clients, scene.habits.reads, scene.habits.think = 8, 3.0, 0.02


def forgotten_entries(scene: Scene, chance: Any) -> None:
    """A member that acknowledged entries loses them with its power."""
    directed(scene, chance)
    scene.settings.members, scene.script = 3, unsynced
    scene.settings.lag = Lag(1.0, 1 << 16)
    scene.habits.reads, scene.habits.think = 0.2, 0.02


def overtaken_logs(scene: Scene, chance: Any) -> None:
    """Logs whose end is overwritten when it has been read back from the disk, or gives way to a snapshot."""
    directed(scene, chance)
    scene.settings.members, scene.script = 5, overtaken
    scene.settings.snapshots = chance.choice((0, 3))
    scene.settings.max_tail_bytes, scene.settings.read_ahead, scene.settings.max_inflight = 1, 40_000, 4
    scene.settings.batch_count, scene.settings.max_waiting = 1, 1000
    scene.settings.election_ticks = 100
    scene.habits.clients, scene.habits.patience, scene.habits.think = 8, 0.1, 0.02
    scene.seconds = 12.0


def greeted(scene: Scene, chance: Any) -> None:
    """A usual cluster whose members greet each other, in a network that loses few messages."""
    usual(scene, chance)
    scene.settings.greetings = True
    scene.settings.election_ticks = chance.choice((5, 10))
    scene.settings.begin_wait = chance.choice((1.0, 3.0))
    scene.settings.speed = lambda speed: None
    scene.weather.delay, scene.weather.spike = chance.choice((0.0005, 0.01)), 0.0
    scene.weather.loss, scene.weather.double = 0.0, chance.choice((0.0, 0.1))


def beginnings(scene: Scene, chance: Any) -> None:
    """New clusters whose members are started one after the other, and die before they know whether they may begin."""
    usual(scene, chance)
    scene.settings.members = chance.choice((2, 3, 3, 5))
    scene.settings.greetings = True
    scene.settings.begin_wait = chance.choice((0.0, 1.0, 5.0))
    scene.settings.watchers = 2
    scene.stagger = chance.choice((0.01, 1.0, 8.0))
    scene.seconds = 10.0
    scene.plan.mishaps = {"kill": 10, "power": 10, "pause": 4, "cut": 4, "isolate": 4, "heal": 10, "crash_at_disk": 4}
    scene.plan.pause, scene.plan.down = chance.choice((0.3, 1.0)), chance.choice((0.05, 1.0))


def strays(scene: Scene, chance: Any) -> None:
    """Members that come, go, move, are killed as others come, and lose their directories; all greet each other."""
    members(scene, chance)
    scene.settings.greetings = True
    scene.settings.begin_wait = chance.choice((1.0, 3.0))
    scene.settings.max_size_per_msg = 1 << 20  # as in `shrinking`
    scene.settings.watchers = 2
    del scene.plan.mishaps["update"]
    scene.plan.mishaps |= {"move": 8, "add_struck": 6, "wipe": 12, "add": 3}


def absences(scene: Scene, chance: Any) -> None:
    """Members that are away while others move or join, and meet them with nobody else there."""
    greeted(scene, chance)
    scene.settings.members = chance.choice((2, 3, 3))
    scene.script, scene.whole_rounds, scene.plan.mishaps = away, True, {}
    scene.habits.clients, scene.habits.think = 2, 0.2
    scene.seconds = 20.0


def lost_directories(scene: Scene, chance: Any) -> None:
    """One member, or more than half of them, come back with empty directories, while others live."""
    greeted(scene, chance)
    scene.settings.members = chance.choice((3, 3, 5))
    scene.settings.begin_wait = chance.choice((3.0, 5.0))
    scene.script, scene.whole_rounds, scene.plan.mishaps = wiped, True, {}
    scene.habits.clients, scene.habits.think = 2, 0.2
    scene.seconds = 20.0


def watched(scene: Scene, chance: Any) -> None:
    """Any of the clusters with random mishaps, whose members have watchers; histories are compacted often."""
    kinds = (usual, members, snapshots, transfers, busy, flaky, filed, pieces, pieces, shrinking, reads, lagging)
    chance.choice(kinds)(scene, chance)
    scene.settings.watchers, scene.settings.hub_stalls = chance.choice((2, 4)), chance.choice((0.0, 0.002, 0.02))
    scene.habits.compactions = chance.choice((1, 10, 40))
    scene.habits.wide = max(scene.habits.wide, chance.choice((0.0, 8.0)))
    scene.seconds = 12.0


def leased(scene: Scene, chance: Any) -> None:
    """Any of the clusters with random mishaps, whose clients have leases; remaining times are logged every second."""
    kinds = (usual, members, snapshots, transfers, busy, filed, pieces, reads, reads, lease, lagging)
    chance.choice(kinds)(scene, chance)
    scene.settings.tenants = chance.choice((2, 5))
    scene.habits.think = max(scene.habits.think, 0.05)
    scene.seconds = 15.0


def caught_up(scene: Scene, chance: Any) -> None:
    """Members that stand still or are cut off while others write and compact, and then have much to tell their
    watchers, a little at a time."""
    usual(scene, chance)
    scene.settings.members = 3
    scene.settings.snapshots = chance.choice((0, 0, 10))
    scene.settings.watchers, scene.settings.hub_stalls = 4, 0.01
    scene.habits.clients, scene.habits.think, scene.habits.compactions = 8, 0.02, 10
    scene.plan.mishaps = {"pause": 10, "pause_leader": 1, "isolate": 5, "heal": 12}
    scene.plan.pause, scene.plan.stopped = 0.3, 0.5
    scene.weather.loss, scene.weather.spike = 0.0, 0.0
    scene.seconds = 8.0


def directed(scene: Scene, chance: Any) -> None:
    """No mishaps but those of a script."""
    usual(scene, chance)
    scene.settings.pre_vote = scene.settings.check_quorum = False
    scene.settings.election_ticks = 40
    scene.settings.widen, scene.settings.speed = 0.0, lambda speed: None
    scene.plan.mishaps = {}
    scene.habits.think = 0.1
    scene.weather = Weather(delay=0.002, spike=0.0, loss=0.0, double=0.0, late=0.0)
    scene.seconds = 30.0


PROFILES: dict[str, Profile] = {
    "usual": usual,
    "members": members,
    "reads": reads,
    "lease": lease,
    "joint": joint,
    "old_terms": old_terms,
    "snapshots": snapshots,
    "transfers": transfers,
    "rewritten": rewritten,
    "cut_halves": cut_halves,
    "deposed_leaders": deposed_leaders,
    "forgotten_votes": forgotten_votes,
    "lagging": lagging,
    "forgotten_entries": forgotten_entries,
    "busy": busy,
    "flaky": flaky,
    "filed": filed,
    "pieces": pieces,
    "compared": compared,
    "overtaken_logs": overtaken_logs,
    "lagging_lease": lagging_lease,
    "lease_promises": lease_promises,
    "shrinking": shrinking,
    "beginnings": beginnings,
    "strays": strays,
    "absences": absences,
    "lost_directories": lost_directories,
    "watched": watched,
    "caught_up": caught_up,
    "leased": leased,
}


class Simulation:
    """A cluster with its clients and mishaps. `change` may set what it likes before the time begins to run."""

    def __init__(self, seed: int, profile: str = "usual", change: Callable[[Scene], None] | None = None) -> None:
        self.seed = seed
        self.profile = profile
        self.clock = Clock(seed)
        self.scene = Scene(Settings(), Weather(), Habits(), Plan())
        PROFILES[profile](self.scene, self.clock.random)
        if change is not None:
            change(self.scene)
        scene = self.scene
        self.cluster = Cluster(self.clock, scene.settings, scene.weather)
        self.checker = self.cluster.checker
        self.checker.inside = scene.inside
        count = scene.settings.watchers
        if count:
            bits = self.clock.random.getrandbits(64)
            self.cluster.audience = Audience(self.cluster, bits, count, scene.habits.keys)
        self.checker.model.now = lambda: self.clock.now
        self.tenants: Tenants | None = None
        if scene.settings.tenants:
            self.tenants = Tenants(self.cluster, self.clock.random.getrandbits(64), scene.settings.tenants)
        self.mishaps: Mishaps | None = None
        self.clients: list[Client] = []

    def led(self) -> Member:
        """Start the members and let nothing happen to them. Return their leader."""
        for member in self.cluster.members.values():
            member.start()
        self.clock.run(12.0)
        leader = self.cluster.leader()
        assert leader is not None
        return leader

    def run(self) -> Report:
        """Run it all. Raises Violation."""
        scene, clock = self.scene, self.clock
        for member in self.cluster.members.values():
            member.set_rate(clock.random.uniform(1 - scene.settings.drift, 1 + scene.settings.drift))
            if scene.stagger:
                clock.after(clock.random.random() * scene.stagger, self._first_start, member)
            else:
                member.start()
        self.clients = [Client(number, self.cluster, scene.habits) for number in range(scene.habits.clients)]
        self.mishaps = Mishaps(self.cluster, scene.plan)
        player = None
        if scene.script is not None:
            self.cluster.network.at_once = True
            player = Player(self.cluster, scene.script)
        clock.run(scene.seconds)
        if player is not None:
            player.last_round = True
            if scene.whole_rounds:
                clock.run(clock.now + ROUND, lambda: player.stopped)
            player.stopped = True
            self.mishaps.counts |= {"rounds": player.rounds, "finished": player.finished}
        self.mishaps.stop()
        # A follower passes an append over that begins before its commit index, so this must end for progress.
        scene.settings.widen = 0.0
        scene.settings.busy = scene.settings.flaky = 0.0
        scene.settings.pieces = 0
        self._progress()
        self._settle()
        return Report(
            self.seed,
            self.profile,
            clock.trace,
            clock.now,
            clock.events,
            {**self.checker.counts, "entries": self.checker.top, "terms": len(self.checker.leaders)}
            | self.mishaps.counts,
        )

    @staticmethod
    def _first_start(member: Member) -> None:
        if not member.life:
            member.start()

    def _present(self) -> list[Member]:
        """Members that belong to the cluster, by what the newest of them has applied."""
        assert self.mishaps is not None
        self.mishaps._leave()
        # A mishap from before the healing may have hit the only one a moment ago.
        newest = max(self.mishaps.alive() or self.cluster.started(), key=lambda member: member.applied)
        return [self.cluster.members[ident] for ident in newest.roster.members if ident in self.cluster.members]

    def _progress(self) -> None:
        """A write and a linearizable read succeed at every member."""
        assert self.mishaps is not None
        served: set[tuple[int, str]] = set()

        probes: dict[int, Probe] = {}

        def done() -> bool:
            for member in self._present():
                if member.id not in probes:
                    probes[member.id] = Probe(member.id, self.cluster, self.scene.habits, served)
            return {(member.id, kind) for member in self._present() for kind in ("put", "read")} <= served

        patience = HEALING * max(1.0, self.scene.settings.election_ticks / 10)
        end = self.clock.now + patience
        while not done():
            if self.clock.now >= end:
                missing = [(m.id, k) for m in self._present() for k in ("put", "read") if (m.id, k) not in served]
                raise Violation(f"no progress within {patience} s after healing: {missing} ({self.describe()})")
            self.mishaps.tend()
            self.clock.run(self.clock.now + 0.25)
        for client in [*self.clients, *probes.values()]:
            client.stopped = True
        if self.cluster.audience is not None:
            self.cluster.audience.stopped = True

    def _settle(self) -> None:
        """All members come to the same state."""
        if self.tenants is not None:
            self._wait(self.tenants.missing)
        end = self.clock.now + SETTLING

        def settled() -> bool:
            return len({(member.applied, member.raw.last_index) for member in self._present()}) == 1 and (
                not any(client.call for client in self.clients)
            )

        while not settled():
            if self.clock.now >= end:
                raise Violation(f"the members do not come to one state within {SETTLING} s ({self.describe()})")
            self.clock.run(self.clock.now + 0.25)
        for member in self._present():
            self.checker.digest(member, member.applied)
        self.checker.histories(self._present())
        audience = self.cluster.audience
        if audience is not None:
            audience.home = lambda: [member.id for member in self._present() if member.alive]
            self._wait(audience.missing)
            audience.leave()
            self._wait(audience.left)

    def _wait(self, wrong: Callable[[], str]) -> None:
        """Until nothing is wrong."""
        end = self.clock.now + SETTLING
        while what := wrong():
            if self.clock.now >= end:
                raise Violation(f"{what}, for {SETTLING} s ({self.describe()})")
            self.clock.run(self.clock.now + 0.25)

    def describe(self) -> str:
        """Where everybody is."""
        return "; ".join(
            f"{member.id}: {'up' if member.alive else 'down'} term {member.raw.term} lead {member.raw.lead} commit "
            f"{member.raw.commit} applied {member.applied} last {member.raw.last_index} {member.raw.conf_state}"
            for member in self.cluster.started()
        )


def simulate(seed: int, profile: str = "usual", change: Callable[[Scene], None] | None = None) -> Report:
    """Run one seed. Raises SimulationFailed, which names what replays it."""
    simulation = Simulation(seed, profile, change)
    try:
        return simulation.run()
    except Violation as error:
        raise SimulationFailed(
            f"{error}\n  at {simulation.clock.now:.6f} s, event {simulation.clock.events}, trace "
            f"{simulation.clock.trace:08x}\n  replay: python -m tests.sim --profile {profile} --seed {seed} --count 1"
        ) from error
