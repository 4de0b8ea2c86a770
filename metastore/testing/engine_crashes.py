"""The part of the engine contract about the end of a process: it is killed, and its engine is opened again.

A process of its own imports the test's module and forks once for each way to die. So the engine is never opened in a
process that forks, which some libraries do not bear.
"""

from __future__ import annotations

import atexit
import functools
import json
import os
import random
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

from metastore._core.ordered_map import OrderedMap

from .engine_base import ContractBase, batch_of, contents
from .engine_replacing import OLD, stream_of

if TYPE_CHECKING:
    from metastore._core.engine import Engine

__all__ = ["Crashes"]

# The killed processes run this: the test's module again, in a process of its own.
PROGRAM = """
import importlib, operator, sys
sys.path[:] = sys.argv[5:]
found = operator.attrgetter(sys.argv[2])(importlib.import_module(sys.argv[1]))
found().die(sys.argv[3], sys.argv[4].split())
"""
FLUSHED, WRITTEN = 40, 60  # writes of a killed process: before its flush, and in all
BURST = 300  # pairs of each write that a kill interrupts
LONGEST_BURST = 0.04  # seconds after which such a kill comes at the latest
NEW = {b"k%04d" % n: b"new" * 100 for n in range(1500)}


def written_by(index: int) -> dict[bytes, bytes]:
    """Return what `Crashes.write` has stored after that many writes."""
    pairs: dict[bytes, bytes] = {}
    for number in range(1, index + 1):
        pairs |= {b"key%d" % (number % 7): b"%d" % number, b"only%d" % number: b""}
        pairs.pop(b"only%d" % (number - 3), None)
    return pairs


def burst(index: int) -> dict[bytes, bytes | None]:
    """Return the changes of write `index` of those that a kill interrupts."""
    pairs: dict[bytes, bytes | None] = {b"k%04d" % n: b"%d " % index * 50 for n in range(BURST)}
    return {**pairs, b"a%d" % (index - 1): None, b"z%d" % (index - 1): None, b"a%d" % index: b"", b"z%d" % index: b""}


def after_burst(index: int) -> dict[bytes, bytes]:
    """Return the contents after write `index`."""
    return {key: value for key, value in burst(index).items() if value is not None} if index else {}


def die() -> NoReturn:
    """End this process as a kill does."""
    while True:
        os.kill(os.getpid(), signal.SIGKILL)


class Deadly(OrderedMap):
    """A batch that kills the process while it is walked over."""

    def items(self, *arguments: Any, **named: Any) -> Iterator[tuple[bytes, bytes | None]]:
        for number, pair in enumerate(super().items(*arguments, **named)):
            if number == BURST // 2:
                die()
            yield pair


def deadly(pairs: list[tuple[bytes, bytes]]) -> Iterator[tuple[bytes, bytes]]:
    """Yield some pairs, then kill the process."""
    yield from pairs
    die()


class Crashes(ContractBase):
    """What is left when the process is killed. Of an engine that is not persistent this is nothing."""

    #: The ways to die: the name of a method, and what it is called with.
    ways: ClassVar[dict[str, tuple[str, int]]] = {
        "after a flush": ("write", FLUSHED),
        "before a flush": ("write", 0),
        "while a batch is walked": ("write_deadly", 0),
        **{f"in a write, {number}": ("write_bursts", number) for number in range(3)},
        "restore, halfway": ("restore_deadly", 800),
        "restore, at its end": ("restore_deadly", len(NEW) + 1),
        "restored": ("restore_deadly", -1),
        "stage, halfway": ("stage_deadly", 800),
        "stage, before seal": ("stage_deadly", -1),
        "stage, sealed": ("stage_deadly", -2),
    }

    #: The folder with what they left, and what each said: numbers, and the signal that ended it.
    _killed_in: ClassVar[tuple[str, dict[str, list[int]]]]

    # ---- in the processes that are killed

    def die(self, folder: str, names: list[str]) -> None:
        """Die in each way, in a fork of this process each time. Print what was said before. Runs in the process that
        forks; `names` are the numbers of the ways."""
        ways = list(self.ways)
        said = {}
        for name in (ways[int(number)] for number in names):
            reading, writing = os.pipe()
            child = os.fork()
            if child == 0:
                try:
                    method, argument = self.ways[name]
                    say = functools.partial(os.write, writing)
                    getattr(self, method)(os.path.join(folder, str(ways.index(name))), argument, say)
                    print(f"{name}: the process was to be killed, and was not", file=sys.stderr, flush=True)
                except BaseException:  # noqa: BLE001
                    traceback.print_exc()
                os._exit(1)
            os.close(writing)
            said[name] = self._watched(child, reading, random.Random(name).uniform(0, LONGEST_BURST))
        print(json.dumps(said))

    def _watched(self, child: int, reading: int, wait: float) -> list[int]:
        """Kill a child `wait` seconds after it asked for that, by a 0. Return the numbers that it said, and its signal
        as the last one."""
        data, killed_at = b"", 0.0
        while True:
            left = max(0.0, killed_at - time.monotonic()) if killed_at else self.patience
            if not select.select([reading], [], [], left)[0]:
                os.kill(child, signal.SIGKILL)
                killed_at = time.monotonic() + self.patience
                continue
            part = os.read(reading, 1 << 16)
            if not part:
                break
            data += part
            if not killed_at and b"\n0\n" in b"\n" + data:
                killed_at = time.monotonic() + wait
        os.close(reading)
        status = os.waitpid(child, 0)[1]
        return [*(int(line) for line in data.rpartition(b"\n")[0].split()), -os.waitstatus_to_exitcode(status)]

    def write(self, folder: str, flushed: int, say: Any) -> None:
        """Write, flush once if at all, say what is durable, die."""
        engine = self.open_engine(folder)
        for index in range(1, WRITTEN + 1):
            changes: dict[bytes, bytes | None] = {b"key%d" % (index % 7): b"%d" % index, b"only%d" % index: b""}
            engine.write(batch_of({**changes, b"only%d" % (index - 3): None}), index, 1)
            if index == flushed:
                engine.flush()
        say(b"%d\n" % engine.durable_applied())
        die()

    def write_deadly(self, folder: str, _: int, say: Any) -> None:
        """Die while the engine walks over a batch, or after that write."""
        engine = self.open_engine(folder)
        engine.write(batch_of(burst(1)), 1, 1)
        engine.flush()
        say(b"%d\n" % engine.durable_applied())
        batch = Deadly()
        for key, value in burst(2).items():
            if value is None:
                batch.set_deleted(key)
            else:
                batch.set(key, value)
        engine.write(batch, 2, 1)
        die()

    def write_bursts(self, folder: str, _: int, say: Any) -> None:
        """Write until the kill comes."""
        engine = self.open_engine(folder)
        index = 0
        while True:
            index += 1
            engine.write(batch_of(burst(index)), index, 1)
            if index % 3 == 0:
                engine.begin_flush()
            if index == 2:
                say(b"0\n")
            say(b"%d\n" % engine.durable_applied())

    def restore_deadly(self, folder: str, after: int, say: Any) -> None:
        """Die during a restore of the engine itself, or after it (-1)."""
        engine = self._with_old(folder)
        stream = stream_of(NEW, 20, 4)
        engine.restore(iter(stream) if after == -1 else deadly(stream[:after]))
        say(b"%d\n" % engine.durable_applied())
        die()

    def stage_deadly(self, folder: str, after: int, say: Any) -> None:
        """Die while a staged engine is filled, before it is sealed (-1), or after that (-2)."""
        engine = self._with_old(folder)
        staged = engine.stage()
        if staged is None:
            die()
        stream = stream_of(NEW, 20, 4)
        staged.restore(iter(stream) if after < 0 else deadly(stream[:after]))
        if after == -2:
            staged.seal()
            say(b"20\n")
        die()

    def _with_old(self, folder: str) -> Engine:
        engine = self.open_engine(folder)
        engine.write(batch_of(dict(OLD)), 9, 1)
        engine.flush()
        return engine

    # ---- in the test's process

    def _killed(self, *names: str) -> Iterator[tuple[str, int, Engine]]:
        """Yield (way to die, highest number that the process said, engine as it was found) for each way. The engine is
        closed afterwards."""
        engine = self.make_engine()
        persistent = engine.persistent
        engine.close()
        if not persistent:
            return
        kind, ways = type(self), list(self.ways)
        if "_killed_in" not in kind.__dict__:
            self._kill_all(kind)
        folder, said = kind._killed_in
        for name in names:
            *numbers, killed_by = said[name]
            assert killed_by == signal.SIGKILL, f"{name}: the process was to be killed, and was not"
            found = self.open_engine(os.path.join(folder, str(ways.index(name))))
            assert found.durable_applied() <= found.applied()[0]
            yield name, max(numbers, default=0), found
            found.close()

    def _kill_all(self, kind: type[Crashes]) -> None:
        """Die in all ways, once for all tests of a class: a process that imports the test's module takes a while."""
        folder = tempfile.mkdtemp(prefix="engine-contract-")
        atexit.register(shutil.rmtree, folder, True)
        numbers = " ".join(map(str, range(len(self.ways))))
        argv = [sys.executable, "-c", PROGRAM, kind.__module__, kind.__qualname__, folder, numbers, *sys.path]
        done = subprocess.run(argv, capture_output=True, text=True, timeout=self.patience, check=False)
        assert done.returncode == 0, done.stderr
        said = json.loads(done.stdout.splitlines()[-1])
        assert all(numbers[-1] == signal.SIGKILL for numbers in said.values()), done.stderr
        kind._killed_in = folder, said

    def test_what_was_durable_survives_a_kill(self) -> None:
        """At least what `durable_applied` returned is there, and it is the state of one moment."""
        ways = [name for name, (method, _) in self.ways.items() if method == "write"]
        for name, promised, found in self._killed(*ways):
            least = FLUSHED if name == "after a flush" else 0
            assert least <= promised <= WRITTEN, f"{name}: flush() does not bring durable_applied() on, or too far"
            index = found.applied()[0]
            assert promised <= index <= WRITTEN, f"{name}: durable up to {promised}, found up to {index}"
            assert contents(found) == written_by(index), f"{name}: the contents are not those of entry {index}"

    def test_a_write_is_done_wholly_or_not_at_all(self) -> None:
        """The process is killed in the middle of writes."""
        ways = [name for name, (method, _) in self.ways.items() if method in ("write_deadly", "write_bursts")]
        for name, promised, found in self._killed(*ways):
            index = found.applied()[0]
            assert promised <= index, f"{name}: durable up to {promised}, found up to {index}"
            assert contents(found) == after_burst(index), f"{name}: only a part of a write is there"

    def test_a_restore_that_is_killed(self) -> None:
        """A start finds the old contents or the new ones, each with its log position, or it finds the position (0, 0),
        and then the node restores again."""
        ways = [name for name, (method, _) in self.ways.items() if method in ("restore_deadly", "stage_deadly")]
        for name, promised, found in self._killed(*ways):
            position = found.applied()
            assert promised <= position[0], f"{name}: durable up to {promised}, found up to {position[0]}"
            assert position in ((0, 0), (9, 1), (20, 4)), f"{name}: found at {position}"
            if name.startswith("stage") and promised != 20:
                assert position == (9, 1), f"{name}: a staged engine that was not sealed replaces the old one"
            if position != (0, 0):
                assert contents(found) == (OLD if position == (9, 1) else NEW), f"{name}: a part of a restore is there"
            found.restore(stream_of(NEW, 20, 4))
            assert contents(found) == NEW and found.applied() == (20, 4), f"{name}: it cannot be restored again"
