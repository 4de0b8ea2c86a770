"""kill -9 at any moment, under load. What was acknowledged is there, and nothing that no client sent.

The kill comes after a random number of acknowledgements, so no test waits for time to pass.
"""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from support import messages as m
from support import powercut
from support.client import Failure
from support.kills import SMALL_SEGMENTS, kill_in_a_loop
from support.load import History, Load, goes_on, write_until_end
from support.processes import Node, Process, Server, StartError

from metastore._core import build_info

Make = Callable[..., Server]

ROUNDS = 15


def test_killed_under_load(fresh: Make) -> None:
    seed = 1
    history = kill_in_a_loop(fresh(settings=SMALL_SEGMENTS), ROUNDS, random.Random(seed))
    assert history.acks > 100


POINTS = [
    "wal.before_write",
    "wal.after_write",
    "wal.before_sync",
    "wal.after_sync",
    "wal.segment",
    "apply.before",
    "apply.after",
]


@pytest.mark.node_only
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_a_failpoint(point: str, fresh: Make) -> None:
    """The process kills itself at a chosen place of the write path, twice; then it runs through."""
    node = fresh(settings=SMALL_SEGMENTS)
    history = History()
    for hit in (3, 40) if point != "wal.segment" else (2, 3):
        node.env = {"METASTORE_FAILPOINTS": f"{point}=panic@{hit}"}
        try:
            node.start()
        except StartError as died:
            assert died.returncode == -signal.SIGKILL, died
            continue
        write_until_end(node, history)
        node.kill()
    node.env = {}
    node.start()
    with node.client() as client:
        goes_on(client, history, 50)


@pytest.mark.node_only
def test_power_cut_at_random_moments(fresh: Make, tmp_path: Path) -> None:
    """Only what was synced survives here, both file bytes and directory entries. A missing sync would lose
    something."""
    lives = powercut.Lives(tmp_path, SMALL_SEGMENTS)
    rng = random.Random(3)
    history = History()
    for _ in range(6):
        with lives.life() as node, node.client() as client:
            history.check(client)
            load = Load(client, history).start()
            load.wait_acks(rng.choice([1, 20, 200, 400]))
            node.kill()
            load.join()
    with Node(lives.data_dir, SMALL_SEGMENTS) as node, node.client() as client:
        history.check(client)
    assert history.acks > 0


@pytest.mark.node_only
def test_no_reply_while_the_sync_is_blocked(fresh: Make, tmp_path: Path) -> None:
    """A put whose sync does not return is not answered. A copy without its bytes has everything that was
    acknowledged."""
    gate = tmp_path / "gate"
    node = fresh(settings=SMALL_SEGMENTS, env={"METASTORE_FAILPOINTS": f"wal.before_sync=block({gate})"})
    node.start()
    with node.client() as client:
        for number in range(20):
            client.put(b"k%d" % number, b"acknowledged")
        gate.touch()
        shutil.copytree(node.data_dir, tmp_path / "synced" / "data")
        pending = [client.future(m.PutRequest(key=b"late%d" % n, value=b"unsynced"), timeout=60) for n in range(10)]
        with pytest.raises(grpc.FutureTimeoutError):
            pending[0].result(timeout=1.0)
        assert not any(future.done() for future in pending)
        # Serializable reads go on meanwhile, and do not show what is not durable yet.
        assert not client.range(b"late0", serializable=True).kvs
        shutil.copytree(node.data_dir, tmp_path / "written" / "data")
        gate.unlink()
        for future in pending:
            m.PutResponse.FromString(future.result(timeout=30))
        assert client.get(b"late9") == b"unsynced"
    with Node(tmp_path / "synced" / "data") as copy, copy.client() as client:
        assert client.prefix(b"") == {b"k%d" % n: b"acknowledged" for n in range(20)}
    with Node(tmp_path / "written" / "data") as copy, copy.client() as client:
        pairs = client.prefix(b"")
        assert {key for key in pairs if key.startswith(b"k")} == {b"k%d" % n for n in range(20)}
        assert set(pairs.values()) <= {b"acknowledged", b"unsynced"}


def contents(folder: Path) -> dict[str, bytes]:
    """Return all files under `folder` except the lock, by relative name."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != "LOCK"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def segments(node: Server) -> list[Path]:
    """Return the log's segment files, oldest first."""
    files = sorted(node.data_dir.rglob("*.wal"))
    assert files, f"no segment under {node.data_dir}"
    return files


def used_length(path: Path) -> int:
    """Return up to where a segment holds bytes other than zero."""
    return len(path.read_bytes().rstrip(b"\0"))


def newest_used(node: Server) -> Path:
    """Return the newest segment that holds more than its header."""
    return [path for path in segments(node) if used_length(path) > 64][-1]


def flip(path: Path, offset: int) -> None:
    """Invert one byte of a file."""
    data = bytearray(path.read_bytes())
    data[offset] ^= 0xFF
    path.write_bytes(data)


def fill(node: Server, count: int = 100) -> dict[bytes, bytes]:
    """Put `count` keys into a running node, and stop it. Return the keys."""
    pairs = {b"k%03d" % n: b"value %d" % n for n in range(count)}
    with node.client() as client:
        for key, value in pairs.items():
            client.put(key, value)
    assert node.stop() == 0
    return pairs


def start_error(node: Server) -> StartError:
    with pytest.raises(StartError) as failure:
        node.start()
    return failure.value


@pytest.mark.node_only
def test_damage_in_what_was_synced_stops_the_start(fresh: Make) -> None:
    node = fresh().start()
    pairs = fill(node)
    path = newest_used(node)
    offset = path.read_bytes().index(b"value 50")
    flip(path, offset)
    before = contents(node.data_dir)
    error = start_error(node)
    assert error.returncode == 4, error
    assert path.name in str(error)
    assert contents(node.data_dir) == before, "a refused start changed the disk"
    flip(path, offset)
    node.start()
    with node.client() as client:
        assert client.prefix(b"k") == pairs


@pytest.mark.node_only
def test_damage_in_the_unproven_end_is_cut_and_reported(fresh: Make) -> None:
    node = fresh().start()
    pairs = fill(node)
    path = newest_used(node)
    flip(path, used_length(path) - 1)
    node.start()
    with node.client() as client:
        assert client.prefix(b"k") == pairs
        client.put(b"after", b"1")
    assert "cut" in node.running().log
    node.kill()
    node.start()
    with node.client() as client:
        assert client.prefix(b"k") == pairs
        assert client.get(b"after") == b"1"


@pytest.mark.node_only
def test_second_process_on_the_same_data_is_refused(fresh: Make) -> None:
    node = fresh().start()
    with node.client() as client:
        client.put(b"mine", b"1")
        second = Process(node.argv())
        assert second.wait(30) == 3, second.log
        assert str(node.data_dir) in second.log
        client.put(b"mine", b"2")
        assert client.get(b"mine") == b"2"


@pytest.mark.node_only
def test_address_in_use_is_refused(fresh: Make) -> None:
    node = fresh("one").start()
    other = fresh("two", settings={"listen.client": f'"{node.address}"'})
    error = start_error(other)
    assert error.returncode == 5, error
    assert node.address in str(error)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("loaded", [False, True])
def test_signals_stop_within_two_seconds(number: signal.Signals, loaded: bool, fresh: Make) -> None:
    """The best of a few stops counts, because other processes share the machine."""
    server = fresh().start()
    history = History()
    times: list[float] = []
    while not times or (min(times) >= 2.0 and len(times) < 4):
        with server.client() as client:
            load = Load(client, history)
            if loaded:
                load.start().wait_acks(100)
            process = server.running()
            process.send_signal(number)
            began = time.monotonic()
            try:
                code = process.wait(30)
            except subprocess.TimeoutExpired:
                pytest.fail(f"still there after 30 s:\n{process.log}")
            times.append(time.monotonic() - began)
            if loaded:
                load.join()
        assert code == 0 or server.kind != "metastore", process.log
        server.kill()
        server.start()
        with server.client() as client:
            history.check(client)
        if server.kind != "metastore":
            return
    assert min(times) < 2.0, f"took {times}:\n{process.log}"


@pytest.mark.node_only
def test_start_to_ready_within_a_second(fresh: Make) -> None:
    """The best of a few starts counts, because other processes share the machine."""
    times = []
    for number in range(5):
        node = fresh(f"data-{number}")
        began = time.monotonic()
        node.start()
        times.append(time.monotonic() - began)
        node.kill()
    assert min(times) < (1.0 if build_info()["flavour"] == "release" else 5.0), times


@pytest.mark.node_only
def test_failed_sync_stops_the_node(fresh: Make) -> None:
    """After a failed sync the page cache lies. There is no retry, but a clear message and an exit code of its own, and
    nothing is lost."""
    node = fresh(env={"METASTORE_FAILPOINTS": "wal.before_sync=error(EIO)@30"}).start()
    history = History()
    write_until_end(node, history, 6, writers=2)
    text = f"write-ahead log {node.data_dir}/wal: sync failed: Input/output error; what the page cache holds can no"
    assert node.running().log.count("Input/output error") == 1, "it is told once, and by one line"
    assert text in node.running().log
    node.kill()
    node.env = {}
    node.start()
    with node.client() as client:
        history.check(client)


SWITCHES = [
    {"performance.compression_codec": '"zstd"', "performance.compression_min_size": "64"},
    {"performance.enable_compression": "false"},
    {"raft.enable_batch_proposal": "false", "wal.group_commit": "false"},
    {"performance.compression_codec": '"snappy"', "performance.compression_min_size": "64"},
    {"wal.segment_size": '"64KiB"', "raft.batch_max_size": "3"},
    {},
]


@pytest.mark.node_only
def test_settings_switched_between_runs_on_the_same_data(fresh: Make) -> None:
    node = fresh()
    assert isinstance(node, Node)
    history = History()
    for settings in SWITCHES:
        node.settings = dict(settings)
        node.start()
        with node.client() as client:
            goes_on(client, history)
        node.kill()
    node.start()
    with node.client() as client:
        history.check(client)


def test_everything_survives_a_restart(fresh: Make) -> None:
    """Revisions, versions, history and the compact revision are the same after a clean stop and after a kill."""
    server = fresh().start()
    with server.client() as client:
        for number in range(50):
            client.put(b"k%d" % (number % 7), b"%d" % number)
        client.delete(b"k3")
        client.compact(20)
        expected = look(server)
    for end in (server.stop, server.kill):
        end()
        server.start()
        assert look(server) == expected


def look(server: Server) -> list[object]:
    """Return what can be read of a store: now, at old revisions, and below the compact revision."""
    answers: list[object] = []
    with server.client() as client:
        for revision in (0, 21, 25, 40, 19):
            try:
                reply = client.range(b"\0", b"\0", revision=revision)
            except Failure as failure:
                answers.append((failure.code, failure.text))
            else:
                answers.append((reply.header.revision, [kv.SerializeToString() for kv in reply.kvs]))
    return answers
