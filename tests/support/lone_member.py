"""A simulated member that leads, with its clients' requests in the hands of the test."""

from __future__ import annotations

from sim import wire
from sim.model import Call
from sim.node import Member
from sim.runner import Scene, Simulation
from sim.workload import Client


class Lone:
    """One simulated member that leads, and a client's requests between two turns."""

    def __init__(self, members: int = 1, busy: float = 0.0, segment: int = 16384) -> None:
        def set_up(scene: Scene) -> None:
            scene.settings.segment_size = segment
            scene.settings.members = members
            scene.settings.busy = busy
            scene.settings.batching, scene.settings.batch_count, scene.settings.batch_delay = True, 100, 0.5
            scene.settings.max_waiting = 100

        self.simulation = Simulation(3, "deposed_leaders", set_up)
        self.clock = self.simulation.clock
        self.member: Member = self.simulation.cluster.members[1]
        self.member.start()
        self.clock.run(5.0)

    def put(self, key: bytes = b"k") -> None:
        """Let a client's put come in. The turn has still to end."""
        self.ask(Call("put", (key,), b"v"))

    def ask(self, call: Call) -> None:
        """Let a client's call come in."""
        client = Client(0, self.simulation.cluster, self.simulation.scene.habits)
        client.stopped = True
        call.member = self.member.id
        wire.encode(call)
        client.arrive(self.member, call)

    def next_turn(self) -> float | None:
        """Return the seconds until the next turn."""
        now = self.member.now()
        due = self.member.replica.next_turn(now)
        return None if due is None else due - now
