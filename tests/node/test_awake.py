"""Polling during a lone writer's wait: when it is allowed, that it is used, and that it ends."""

from __future__ import annotations

import contextlib
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.processes import Server, wait_until
from support.runs import cannot_poll
from support.waldisk import image

from metastore._core.idle_poll import IdlePollers
from metastore.storage import idle_awake
from metastore.storage.wal import Wal

Make = Callable[..., Server]


def group(tmp_path: Path, lines: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Return a /proc/self/cgroup and the tree that it describes."""
    for name, text in files.items():
        path = tmp_path / "mount" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (tmp_path / "cgroup").write_text(lines)
    return tmp_path / "cgroup", tmp_path / "mount"


@pytest.mark.parametrize(
    ("lines", "files", "limited"),
    [
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "max 100000\n"}, False),
        ("0::/a/b\n", {"a/b/cpu.max": "50000 100000\n"}, True),
        ("0::/a/b\n", {"a/b/cpu.max": "max 100000\n", "a/cpu.max": "150000 100000\n"}, True),
        ("0::/a\n", {"other/cpu.max": "50000 100000\n"}, False),
        ("0::/../..\n", {"cpu.max": "50000 100000\n"}, True),
        ("4:cpu,cpuacct:/x\n1:memory:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "-1\n"}, False),
        ("4:cpu,cpuacct:/x\n", {"cpu,cpuacct/x/cpu.cfs_quota_us": "20000\n"}, True),
        ("4:memory:/x\n", {"memory/x/cpu.cfs_quota_us": "20000\n"}, False),
        ("", {}, False),
    ],
)
def test_quota(lines: str, files: dict[str, str], limited: bool, tmp_path: Path) -> None:
    assert idle_awake.has_quota(*group(tmp_path, lines, files)) is limited


def test_no_cgroups_no_quota(tmp_path: Path) -> None:
    assert not idle_awake.has_quota(tmp_path / "none", tmp_path)


def test_bad_arguments() -> None:
    with pytest.raises(ValueError, match="3 processors"):
        IdlePollers(0.1, (0, 1, 2))
    with pytest.raises(ValueError, match="no poller 1"):
        IdlePollers(0.1, ()).run(1)


@pytest.mark.parametrize("cpus", [(), tuple(sorted(os.sched_getaffinity(0)))[:2]])
def test_threads_end(cpus: tuple[int, ...]) -> None:
    if len(cpus) == 1:
        pytest.skip("one processor")
    pollers = IdlePollers(0.1, cpus)
    threads = [threading.Thread(target=pollers.run, args=(n,), daemon=True) for n in range(pollers.count)]
    for thread in threads:
        thread.start()
    pollers.stop()
    for thread in threads:
        thread.join(30)
        assert not thread.is_alive()


class Writer:
    """Writes to a log as a member without peers does, and waits for each write."""

    def __init__(self, folder: Path, linger: float) -> None:
        self.wal = Wal.open(folder, metadata=b"m", busy_poll=linger)
        self.wal.quick_sync = 10.0  # it waits for each write, also on a busy machine
        self.index = 0

    def write(self, client: int) -> None:
        self.index += 1
        self.wal.append(self.index, image(self.index, 1, 10), None)
        assert self.wal.submit(client) and self.wal.settle() == self.index

    def polled(self) -> float:
        """Return the seconds that the threads have polled."""
        return self.wal.stats()["idle_poll_seconds"]


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[Callable[[float], Writer]]:
    """Return a function that makes a writer with a log whose threads poll for so many seconds."""
    number = itertools.count()
    with contextlib.ExitStack() as stack:

        def make(linger: float) -> Writer:
            made = Writer(tmp_path / f"{next(number)}", linger)
            stack.callback(made.wal.close)
            return made

        yield make


@pytest.mark.skipif(cannot_poll(), reason="polling is off here")
def test_the_threads_poll_only_for_a_client_that_comes_back_in_time(
    writer: Callable[[float], Writer],
) -> None:
    spread, late, steady = writer(0.5), writer(1e-9), writer(0.5)
    for _ in range(40):
        for client in (7, 8):
            spread.write(client)
        late.write(7)

    def polled() -> bool:
        steady.write(7)
        return steady.polled() > 0

    wait_until(polled, what="processor time spent on polling")
    assert spread.polled() == late.polled() == 0


def idle_threads(node: Server) -> list[Path]:
    """Return the threads of the process that are of the scheduler's idle class (proc(5): field 41, 5)."""
    threads = []
    for task in Path(f"/proc/{node.running().pid}/task").iterdir():
        fields = (task / "stat").read_text().rpartition(")")[2].split()
        if fields[41 - 3] == "5":
            threads.append(task)
    return threads


def seconds(task: Path) -> float:
    fields = (task / "stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@pytest.mark.skipif(cannot_poll(), reason="polling is off here")
@pytest.mark.node_only
def test_a_lone_writer_is_waited_for_awake(fresh: Make) -> None:
    """The threads poll while one client writes, and sleep when it stops."""
    node = fresh(settings={"performance.busy_poll": '"10ms"'}).start()
    wait_until(lambda: idle_threads(node), what="threads of the idle class")
    with node.client() as client:

        def polled() -> bool:
            for n in range(20):
                client.put(b"a", b"%d" % n)
            return sum(map(seconds, idle_threads(node))) > 0.03

        wait_until(polled, what="processor time spent on polling")
    states: list[str] = []

    def asleep() -> bool:
        states[:] = [(task / "stat").read_text().rpartition(")")[2].split()[0] for task in idle_threads(node)]
        return set(states) == {"S"}

    wait_until(asleep, what=f"sleep: {states}")


@pytest.mark.node_only
def test_switched_off(fresh: Make) -> None:
    node = fresh(settings={"performance.busy_poll": '"0"'}).start()
    with node.client() as client:
        client.put(b"a", b"1")
        assert client.get(b"a") == b"1"
    assert idle_threads(node) == []
