"""A user's type checkers: a program that uses all public names passes `mypy --strict` and pyright in its strict mode,
and each mistake in another program is found where it is.

The checkers see the package as pip installs it, and as this environment has it; under ./dev that is an editable
install.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import venv
from pathlib import Path

import pytest

import metastore

RIGHT = """
from concurrent.futures import Future

from metastore import (
    ApiError, AsyncElection, AsyncKV, AsyncLeadership, AsyncLease, AsyncLock, AsyncObservation, AsyncWatch,
    Columns, CompactResult, Compare, Config, DeleteResult, Election, EventKind, Futures, GrantResult, KeyValue,
    Leadership, Lease, LeaseInfo, Lock, MetaStoreError, Node, Observation, Op, PutManyResult, PutResult, RangeResult,
    SortOrder, SortTarget, TxnResult, Watch, WatchBatch, WatchEvent, __version__, errors,
)


def value_of(node: Node, key: str) -> str:
    found: KeyValue | None = node.get(key, serializable=True, timeout=1.5)
    return "" if found is None else found.value.decode()


def take(node: Node, job: bytes, who: str) -> bool:
    done: TxnResult = node.txn(
        compare=[Compare.missing(job), Compare.mod_revision("/epoch", ">", 3)],
        success=[Op.put(job, who, lease=7), Op.txn(failure=[Op.delete_prefix(job, prev_kv=True)])],
        failure=[Op.range(job, limit=1, sort_order=SortOrder.DESCEND, sort_target=SortTarget.MOD)],
    )
    for one in done.results:
        if isinstance(one, RangeResult):
            return one.kvs[0].value == who.encode()
    return done.succeeded


def later(futures: Futures) -> list[int]:
    puts: list[Future[PutResult]] = futures.put_many([("a", b"1")])
    gone: Future[DeleteResult] = futures.delete_prefix("a")
    compacted: Future[CompactResult] = futures.compact(3, physical=True)
    return [*(put.result().revision for put in puts), gone.result().deleted, compacted.result().revision]


def room(error: errors.NoSpace | errors.TooManyRequests | errors.Timeout) -> bool:
    waits: type[errors.ApiError] = errors.TooManyRequests
    return isinstance(error, TimeoutError | waits)


def many(node: Node) -> int:
    try:
        stored: PutManyResult = node.put_many({"a": b"1"}, timeout=1.5)
    except errors.PutManyTimeout as late:
        raise TimeoutError from late
    except errors.PutManyFailed as failure:
        return failure.taken - sum(len(span) for span in failure.written)
    return stored.last_revision - stored.count


async def awaited(config: Config) -> bytes | None:
    async with Node(config) as node:
        kv: AsyncKV = node.aio
        stored = await kv.put_many([("a", "1")], timeout=2)
        stored = await kv.put_many(Columns(b"a", b"1", key_offsets=b"", value_offsets=None))
        found = await kv.get("a", revision=stored.last_revision)
        return None if found is None else found.value


def follow(node: Node) -> int:
    watch: Watch
    with node.watch("/job/", prefix=True, start_revision=2, prev_kv=True, deletes=False) as watch:
        event: WatchEvent
        for event in watch:
            before: KeyValue | None = event.prev_kv
            if event.kind is EventKind.PUT and before is None:
                break
        batch: WatchBatch = watch.next_batch(timeout=1.5)
        again: Watch = node.watch(b"/job/", b"/job0").call(lambda event: print(event.revision))
        again.close()
    try:
        return node.watch("k").next(2).revision + len(batch.events) + watch.revision
    except errors.WatchCompacted as lost:
        return lost.compact_revision


async def followed(node: Node) -> list[bytes]:
    watch: AsyncWatch
    async with node.aio.watch("/job/", prefix=True) as watch:
        found = [event.key async for event in watch]
        async for batch in watch.batches():
            found += [event.kv.value for event in batch.events]
        return [*found, (await watch.next(1)).key]


def leased(node: Node) -> int:
    granted: GrantResult = node.grant(10, id=7, timeout=2)
    found: LeaseInfo | None = node.time_to_live(granted.id, keys=True)
    lease: Lease
    with node.lease(5, timeout=1.5) as lease:
        node.put("k", "v", lease=lease.id)
        if lease.lost or lease.wait_lost(0.1):
            lease.check()
    node.revoke(granted.id)
    renewed: Future[int] = node.futures.keep_alive(7)
    return len(node.leases()) + node.keep_alive(granted.id) + (found.ttl if found else 0) + renewed.result()


async def leased_too(node: Node) -> int:
    lease: AsyncLease
    async with node.aio.lease(5) as lease:
        found = await node.aio.time_to_live(lease.id)
        return (await node.aio.grant(3)).ttl + (found.granted_ttl if found else (await node.aio.lease(3)).id)


def locked(node: Node, lease: Lease) -> int:
    lock: Lock
    with node.lock("jobs", ttl=5, timeout=1.5) as lock:
        fence = Compare.create_revision(lock.key, "=", lock.revision)
        node.txn([fence], [Op.put("k", "v")])
    election: Election = node.election(b"boss")
    leadership: Leadership = election.campaign("me", lease=lease, timeout=2)
    leadership.proclaim("still me")
    leadership.resign()
    observation: Observation
    with election.observe() as observation:
        leaders: list[KeyValue] = list(observation)
    leader: KeyValue | None = election.leader()
    return len(leaders) + (leader is None)


async def locked_too(node: Node) -> int:
    lock: AsyncLock = node.aio.lock("jobs")
    await lock.acquire(timeout=3)
    await lock.release()
    election: AsyncElection = node.aio.election("boss")
    leadership: AsyncLeadership
    async with await election.campaign("me") as leadership:
        observation: AsyncObservation = election.observe()
        return leadership.revision + (await observation.next(1)).version


def main() -> int:
    config = Config(node={"name": "n1", "data_dir": "data"}, listen={"client": "127.0.0.1:0"})
    try:
        with Node.in_memory(config.changed(wal={"sync": "async"})) as node:
            numbers: dict[str, float] = node.stats()
            print(value_of(node, "a"), take(node, b"/job", "me"), later(node.futures), numbers, __version__)
            print(many(node), node.client_addresses[0], node.revision, config.raft.batch_max_size + 1)
    except errors.NoSpace as full:
        return full.code
    except ApiError as refused:
        return len(refused.text)
    except MetaStoreError as error:
        return error.exit_code
    return 0
"""

# A line that must be refused names the error that mypy reports.
WRONG = """
from metastore import Compare, Config, KeyValue, Node, Nodes, Op, SortOrder, errors  # attr-defined

node = Node(Config(nod={}))  # call-arg
node.put(1, "v")  # arg-type
node.put("k", "v", leese=1)  # call-arg
node.put("k", "v", lease="7")  # arg-type
node.get("k").value  # union-attr
node.range("k", sort_order="descend")  # arg-type
node.txn([Op.put("k", "v")])  # list-item
node.txn(success=[Compare.exists("k")])  # list-item
Compare.version("k", "==", 1)  # arg-type
Compare.version("k", "=", "1")  # arg-type
found: KeyValue = node.get("k")  # assignment
found.value = b"x"  # misc
node.futures.put("k", "v", timeout=3)  # call-arg
full: errors.NoSpace = errors.EmptyKey()  # assignment
text: str = node.futures.delete_prefix("k").result().deleted  # assignment
node.put_many([("k", 1)])  # list-item
node.put_many({"k": 1})  # arg-type
node.put_many([("k", "v")])[0]  # index
async def awaited() -> int:
    return await node.aio.put("k", "v")  # return-value
Node(config=3)  # arg-type
node.watch("k", start=3)  # call-arg
node.lock("k", ttl="3")  # arg-type
node.lock("k", lease=7)  # arg-type
node.lock("k").revision = 7  # misc
node.election("k").campaign(1)  # arg-type
node.election("k").leader().value  # union-attr
node.grant("3")  # arg-type
node.time_to_live(3).ttl  # union-attr
number: str = node.keep_alive(3)  # assignment
node.lease(3).id = 4  # misc
node.watch("k", prefix="yes")  # arg-type
found = node.watch("k").next().prev_kv  # assignment
node.watch("k").next().revision = 3  # misc
node.watch("k").call(print).nex()  # attr-defined
"""


@pytest.fixture(scope="module", params=["installed", "this environment"])
def python(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python that has the package: as pip installs it and nothing else, or the one that runs the tests."""
    if request.param != "installed":
        return Path(sys.executable)
    folder = tmp_path_factory.mktemp("user")
    venv.create(folder, with_pip=False, symlinks=True)
    (site,) = folder.glob("lib/python3*/site-packages")
    (site / "metastore").symlink_to(Path(metastore.__file__).resolve().parent)
    return folder / "bin" / "python"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which mypy keeps its results."""
    return tmp_path_factory.mktemp("cache")


def said_of(program: str, python: Path, folder: Path, cache: Path) -> str:
    """Return mypy's output for a user's program."""
    path = folder / "program.py"
    path.write_text(program)
    argv = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(python), "--config-file", ""]
    options = ["--cache-dir", str(cache), "--no-error-summary", "--hide-error-context"]
    done = subprocess.run(
        [*argv, *options, path.name], cwd=folder, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode in (0, 1), done.stderr
    return done.stdout


def pyright_says(program: str, python: Path, folder: Path) -> dict[int, list[str]]:
    """Return the rules that a user's program breaks, by line, as pyright reports them."""
    (folder / "program.py").write_text(program)
    # At a terminal its output must not say more than in this test.
    (folder / "pyrightconfig.json").write_text(json.dumps({"typeCheckingMode": "strict", "include": ["program.py"]}))
    argv = [sys.executable, "-m", "basedpyright", "--outputjson", "--pythonpath", str(python)]
    done = subprocess.run(argv, cwd=folder, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found: dict[int, list[str]] = {}
    for one in json.loads(done.stdout)["generalDiagnostics"]:
        found.setdefault(one["range"]["start"]["line"] + 1, []).append(f"{one.get('rule')}: {one['message']}")
    return found


def planted() -> dict[int, str]:
    """Return the lines of WRONG with a mistake, each with mypy's name of the error."""
    return {at: line.split("# ")[1] for at, line in enumerate(WRONG.splitlines(), 1) if "# " in line}


def test_a_program_that_uses_everything_is_right(python: Path, tmp_path: Path, cache: Path) -> None:
    assert said_of(RIGHT, python, tmp_path, cache) == ""
    assert all(re.search(rf"\b{name}\b", RIGHT) for name in metastore.__all__), "the program uses all names"


def test_it_is_right_for_pyright(python: Path, tmp_path: Path) -> None:
    assert pyright_says(RIGHT, python, tmp_path) == {}


def test_each_mistake_is_found(python: Path, tmp_path: Path, cache: Path) -> None:
    said = said_of(WRONG, python, tmp_path, cache)
    found = {int(line): code for line, code in re.findall(r"^program\.py:(\d+): error: .*\[([\w-]+)\]$", said, re.M)}
    assert found == planted(), said


def test_each_mistake_is_found_by_pyright(python: Path, tmp_path: Path) -> None:
    found = pyright_says(WRONG, python, tmp_path)
    assert set(found) == set(planted()), found


def test_nothing_that_users_call_is_of_type_any(python: Path, tmp_path: Path, cache: Path) -> None:
    """mypy reports nothing about an expression of type Any, so it is asked for the types."""
    program = "from metastore import *\nimport metastore\nnode: metastore.Node\n"
    calls = ("get('k')", "range('k')", "put('k', 'v')", "txn()", "delete('k')", "delete_prefix('k')", "compact(1)")
    shown = [f"node.{call}" for call in calls] + [f"node.futures.{call}" for call in calls[1:]]
    shown += [f"metastore.{name}" for name in metastore.__all__ if name != "errors"]
    shown += [
        "metastore.Node.in_memory()",
        "node.put_many([])",
        "node.aio",
        "node.aio.put('k', 'v')",
        "node.aio.put_many([])",
        "node.aio.range('k')",
        "node.watch('k')",
        "node.grant(3)",
        "node.time_to_live(3)",
        "node.leases()",
        "node.aio.grant(3)",
        "node.aio.time_to_live(3)",
        "node.lease(3)",
        "node.lock('k')",
        "node.election('k').campaign('v')",
        "node.aio.election('k').leader()",
        "node.futures.leases()",
        "node.watch('k').next()",
        "next(node.watch('k').batches())",
        "node.aio.watch('k').next(1)",
        "node.stats()",
        "node.wait(1)",
        "node.revision",
        "node.client_addresses",
        "node.config",
    ]
    said = said_of(program + "".join(f"reveal_type({one})\n" for one in shown), python, tmp_path, cache)
    types = [
        kind.replace("typing.Coroutine[Any, Any, ", "")  # asyncio decides what a coroutine yields and takes
        for kind in re.findall(r'Revealed type is "(.*)"$', said, re.MULTILINE)
    ]
    assert len(types) == len(shown), said
    assert not [(one, kind) for one, kind in zip(shown, types, strict=True) if re.search(r"\bAny\b", kind)]
