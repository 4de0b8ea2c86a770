"""What an embedded node takes of its process: threads and descriptors, what if there are none, and who returns them."""

from __future__ import annotations

import gc
import select
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import TESTS
from support.embedded import make
from support.processes import wait_until

from metastore import Node, errors

pytestmark = pytest.mark.node_only

# A start whose n-th thread cannot be started, for each n: no address space has room for such a stack.
FEW_THREADS = """
import os, sys, threading
from pathlib import Path
from support.embedded import make
from support.processes import wait_until
from metastore import errors
HUGE, left = 1 << 47, -1

real = threading.Thread.start

def start(thread):
    global left
    if left >= 0:
        threading.stack_size(HUGE if left == 0 else 0)
        left -= 1
    real(thread)

threading.Thread.start = start
held = lambda: (len(os.listdir("/proc/self/fd")), [thread.name for thread in threading.enumerate()])
with make(Path(sys.argv[1])) as node:
    node.put("k", "v")
wait_until(lambda: threading.active_count() == 1)
before, failed = held(), 0
while True:
    node = make(Path(sys.argv[1]), storage={"engine": sys.argv[2]}, wal={"sync": "always"})
    left = failed
    try:
        node.start()
    except errors.OutOfResources as error:
        assert "cannot be started" in str(error), error
        left, failed = -1, failed + 1
        threading.stack_size(0)
        node.stop()
        wait_until(lambda: held() == before, 20, str(held()))
        continue
    left = -1
    threading.stack_size(0)
    assert node.put("k", "v").revision > 1
    node.stop()
    break
print(failed)
"""

# A start with less and less descriptors, down to none: it serves, or says that they do not suffice.
FEW_DESCRIPTORS = """
import os, resource, sys, threading
from pathlib import Path
from support.embedded import make
from support.processes import wait_until
from metastore import errors
with make(Path(sys.argv[1]), storage={"engine": sys.argv[2]}) as node:
    node.put("k", "v")
held = lambda: len(os.listdir("/proc/self/fd"))
before, served, failed = held(), 0, 0
# All that is open now has lower numbers.
for limit in range(before + 40, before - 1, -1):
    resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
    node = make(Path(sys.argv[1]), storage={"engine": sys.argv[2]}, wal={"segment_size": "64KiB"})
    try:
        node.start()
    except errors.OutOfResources as error:
        assert "ulimit -n" in str(error), error
        failed += 1
    else:
        node.put_many([(f"k{n}", "x" * 10_000) for n in range(20)])
        served += 1
    node.stop()
    if limit > before + 1:
        wait_until(lambda: held() == before, 20)
print(served, failed)
"""


def run(script: str, *arguments: str) -> list[int]:
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], env={"PYTHONPATH": str(TESTS)}, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return [int(word) for word in done.stdout.split()]


def test_a_thread_that_cannot_be_started(tmp_path: Path) -> None:
    assert run(FEW_THREADS, str(tmp_path), "memory")[0] >= 4


@pytest.mark.parametrize("engine", ["memory", "rocksdb"])
def test_few_descriptors(tmp_path: Path, engine: str) -> None:
    served, failed = run(FEW_DESCRIPTORS, str(tmp_path), engine)
    assert served >= 5 and failed >= 5


def test_threads_have_the_name_of_their_node(tmp_path: Path) -> None:
    with make(tmp_path / "1", node={"name": "left"}) as one, make(tmp_path / "2", node={"name": "right"}) as two:
        for node in (one, two):
            node.put("k", "v")
        names = [thread.name for thread in threading.enumerate()]
        for name in ("left", "right"):
            mine = {found.partition("/")[2] for found in names if found.startswith(f"metastore-{name}/")}
            assert mine >= {"loop", "wal-disk", "wal-segments", "wal-slow-disk"}


def test_without_epoll_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(select, "epoll")
    node = make(tmp_path)
    with pytest.raises(errors.UnsupportedPlatform, match=r"needs select\.epoll and real threads, which this program"):
        node.start()
    monkeypatch.undo()
    with make(tmp_path) as node:
        assert node.put("k", "v").revision == 2


def test_a_patch_before_the_import_gives_the_same_sentence(tmp_path: Path) -> None:
    script = """
import select, sys
for name in [name for name in dir(select) if "poll" in name.lower()]:
    delattr(select, name)
from metastore import Config, Node, errors
try:
    Node(Config(node={"data_dir": sys.argv[1]}, listen={"client": "127.0.0.1:0"})).start()
except errors.UnsupportedPlatform:
    print(1)
"""
    assert run(script, str(tmp_path)) == [1]


# ---- a Node that nobody has any more


@pytest.fixture
def by_hand() -> Iterator[None]:
    """Nothing is collected but when the test asks for it."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def forget(folder: Path) -> tuple[weakref.ref[Node], object]:
    """Start a node and forget it; what is left of it, and a Future that it has to answer."""
    node = make(folder)
    node.start()
    return weakref.ref(node), node.futures.put("k", "v")


def ended(folder: Path) -> bool:
    try:
        with make(folder) as node:
            return bool(node.revision)
    except errors.DataDirInUse:
        return False


@pytest.mark.usefixtures("by_hand")
def test_a_forgotten_node_is_stopped_and_says_so(tmp_path: Path) -> None:
    left, future = forget(tmp_path)
    with pytest.warns(ResourceWarning, match="a running node was forgotten, and is stopped: n1"):
        gc.collect()
    assert left() is None
    assert future.result(30).revision == 2  # type: ignore[attr-defined]
    wait_until(lambda: ended(tmp_path), what="the node has stopped")


@pytest.mark.filterwarnings("ignore:a running node was forgotten:ResourceWarning")
@pytest.mark.usefixtures("by_hand")
def test_the_loops_own_thread_may_collect_the_node(tmp_path: Path) -> None:
    """It then asks itself to stop."""
    node = make(tmp_path)
    node.start()
    loop = node._running().loop
    left, seen = weakref.ref(node), threading.Event()

    def collect() -> None:
        gc.collect()
        seen.set()

    del node
    loop.call_soon_threadsafe(collect)
    assert seen.wait(30) and left() is None
    wait_until(lambda: ended(tmp_path), what="the node has stopped")


@pytest.mark.usefixtures("by_hand")
def test_a_forgotten_node_is_stopped_where_warnings_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    raised: list[object] = []
    monkeypatch.setattr(sys, "unraisablehook", lambda what: raised.append(what.exc_type))
    with warnings.catch_warnings():
        warnings.simplefilter("error", ResourceWarning)
        forget(tmp_path)
        gc.collect()
    assert raised == [ResourceWarning]
    wait_until(lambda: ended(tmp_path), what="the node has stopped")


def test_a_stopped_node_is_no_matter(tmp_path: Path, recwarn: pytest.WarningsRecorder) -> None:
    with make(tmp_path):
        pass
    never = make(tmp_path / "never")
    del never
    gc.collect()
    assert not [warning for warning in recwarn if issubclass(warning.category, ResourceWarning)]


def test_an_interpreter_ends_with_nodes_that_run(tmp_path: Path) -> None:
    script = """
import sys
from pathlib import Path
from support.embedded import make
nodes = [make(Path(sys.argv[1]) / str(n)) for n in range(3)]
for node in nodes:
    node.start()
    node.futures.put_many([(f"k{n}", "v") for n in range(2000)])
print(len(nodes))
"""
    assert run(script, str(tmp_path)) == [3]


def test_a_program_that_uses_its_node_at_the_end_of_the_interpreter(tmp_path: Path) -> None:
    """The node's threads stand still there, so that whoever waited for one of them waited for ever."""
    script = """
import sys
from pathlib import Path
from support.embedded import make
from metastore import Node, errors

class Owner:
    def __init__(self):
        self.me, self.other, self.node = self, Node.in_memory(), make(Path(sys.argv[1]))
        self.node.start()
        self.future = self.node.futures.put("a", "b")
        self.watch = self.node.watch("k")
        self.node.put("k", "v")
        self.watch.next()

    def __del__(self, final=sys.is_finalizing, error=errors.Stopped, out=print):
        refused = 0
        node = self.node
        for call in (lambda: node.put("c", "d"), lambda: node.put_many([("c", "d")]), self.watch.next, self.other.start,
                     lambda: node.range("a"), lambda: node.lease(5), node.wait):
            try:
                call()
            except error:
                refused += 1
        self.future.result()
        node.stop()
        out(1 if final() else 0, refused)

owner = Owner()
owner.future.result()
"""
    assert run(script, str(tmp_path)) == [1, 7]
