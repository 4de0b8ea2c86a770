"""Snapshots of a running node: kill -9 at every step, damaged and missing files, the log behind them, a full disk."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.load import History, goes_on, write_until_end
from support.processes import Node, Server, StartError, make_server, wait_until
from support.snapshotfiles import bomb, images

pytestmark = pytest.mark.node_only

Make = Callable[..., Server]
EAGER = {
    "maintenance.snapshot_count": "20",
    "maintenance.snapshot_min_size": '"1KiB"',
    "maintenance.snapshot_chunk_size": '"4KiB"',
    "wal.segment_size": '"64KiB"',
}


def snapshots(node: Server) -> list[Path]:
    """Return the complete files, the oldest first."""
    return sorted(node.data_dir.glob("snap/*.snap"))


def fill(node: Server, first: int, last: int) -> None:
    with node.client() as client:
        for number in range(first, last):
            client.put(b"k%05d" % number, b"value of %d " % number * 8)


def check(node: Server, count: int) -> None:
    with node.client() as client:
        pairs = client.prefix(b"k")
    assert pairs == {b"k%05d" % number: b"value of %d " % number * 8 for number in range(count)}


def fill_until(node: Server, count: int, least: int) -> None:
    """Write the last of `count` keys again until there are so many snapshots. On a slow machine a snapshot may still be
    under way when the next would be due, so there are fewer than the number of entries suggests."""

    def enough() -> bool:
        fill(node, count - 1, count)
        return len(snapshots(node)) == least

    wait_until(enough, what=f"{least} snapshots")


def make_filled(node: Server, count: int) -> Server:
    """Let a new node hold `count` keys and take several snapshots, and stop it."""
    node.start()
    fill(node, 0, count)
    fill_until(node, count, 3)
    assert node.stop() == 0
    return node


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config) -> Path:
    """The data of a node that holds 300 keys, took several snapshots, and was stopped."""
    node = make_server(pytestconfig.getoption("--server"), tmp_path_factory.mktemp("filled") / "data", settings=EAGER)
    return make_filled(node, 300).data_dir


@pytest.fixture
def filled(fresh: Make, template: Path) -> Server:
    """A node of this test's own that begins with the template's data; it is not started."""
    node = fresh("filled", settings=EAGER)
    shutil.copytree(template, node.data_dir)
    return node


def restored(node: Server) -> int:
    """Return the index of the snapshot that the running node began with; 0 if it began with none."""
    match = re.search(r"restored snapshot index=(\d+)", node.running().log)
    return int(match[1]) if match else 0


def index_of(path: Path) -> int:
    return int(path.name.partition("-")[0], 16)


def test_the_log_is_compacted_and_a_start_goes_on_from_the_newest(fresh: Make) -> None:
    node = make_filled(fresh(settings=EAGER), 1500)
    newest = snapshots(node)[-1]
    segments = sorted(node.data_dir.glob("wal/*.wal"))
    assert sum(path.stat().st_size for path in segments) < 400 * 1024, "the log was not released"
    assert int(segments[0].name[:8], 16) > 2, "the log still begins with its first segments"
    node.start()
    assert restored(node) == index_of(newest)
    check(node, 1500)
    with node.client() as client:
        # The snapshot also has history, versions and revisions.
        assert client.range(b"k00000").kvs[0].mod_revision == 2
        assert client.range(b"k00000", revision=3).header.revision >= 1501
    fill(node, 1500, 1600)
    node.kill()
    node.start()
    check(node, 1600)


def test_a_log_that_is_gone_is_damage(fresh: Make) -> None:
    """A new log beside the snapshots of an old life would be a loss that nobody notices."""
    node = make_filled(fresh(settings=EAGER), 100)
    shutil.copytree(node.data_dir / "wal", node.data_dir / "kept")
    for path in (node.data_dir / "wal").iterdir():
        path.unlink()
    for _ in range(2):  # the second time without the folder
        with pytest.raises(StartError) as refused:
            node.start()
        assert refused.value.returncode == 4
        assert f"{node.data_dir / 'wal'}: the write-ahead log is gone, but {snapshots(node)[0]} is there" in str(
            refused.value
        )
        shutil.rmtree(node.data_dir / "wal", ignore_errors=True)
    shutil.copytree(node.data_dir / "kept", node.data_dir / "wal")
    node.start()
    check(node, 100)


def killed_under_load(node: Server, point: str) -> History:
    """Start a node that kills itself at a failpoint, and write until it does."""
    node.env, history = {"METASTORE_FAILPOINTS": point}, History()
    node.start()
    write_until_end(node, history)
    node.kill()
    node.env = {}
    return history


POINTS = [
    "snapshot.write", "snapshot.sync", "snapshot.rename", "snapshot.verify", "snapshot.prune", "snapshot.release",
    "wal.release",
]  # fmt: skip


@pytest.mark.parametrize("hit", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_step(point: str, hit: int, fresh: Make) -> None:
    node = fresh(settings=EAGER)
    history = killed_under_load(node, f"{point}=panic@{hit}")
    for _ in range(2):
        files = list(node.data_dir.glob("snap/*.tmp"))
        node.start()
        assert not any(path.exists() for path in files)
        with node.client() as client:
            goes_on(client, history)
        node.kill()


@pytest.mark.parametrize("hit", [9, 12])
def test_killed_when_a_used_segment_becomes_the_next_one(hit: int, fresh: Make) -> None:
    """The log's end is cut all the time here, and the next segment is made of a released one; if snapshots are slow,
    this takes some segments longer."""
    for more in range(0, 40, 10):
        node = fresh(f"data-{more}", settings=EAGER)
        history = killed_under_load(node, f"wal.segment=panic@{hit + more}")
        numbers = [int(path.name[:8], 16) for path in node.data_dir.glob("wal/*.wal")]
        if min(numbers) > 1:
            break
    assert min(numbers) > 1, "nothing was released before"
    node.start()
    with node.client() as client:
        history.check(client)


@pytest.mark.parametrize("point", ["snapshot.restore@1", "snapshot.restore@4", "wal.segment@1"])
def test_killed_in_the_middle_of_a_restore(point: str, filled: Server) -> None:
    """The kill comes while the engine is filled, or before that when the log is opened. The next start finds everything
    unchanged."""
    node = filled
    wal, snap = (sorted(node.data_dir.glob(what)) for what in ("wal/*.wal", "snap/*"))
    node.env = {"METASTORE_FAILPOINTS": point.replace("@", "=panic@")}
    with pytest.raises(StartError) as failure:
        node.start()
    assert failure.value.returncode == -signal.SIGKILL
    node.env = {}
    assert wal and sorted(node.data_dir.glob("snap/*")) == snap
    node.start()
    assert restored(node) == index_of(snap[-1])
    check(node, 300)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def cut_up(path: Path, order: Callable[[list[bytes]], list[bytes]]) -> None:
    """Put the chunks of a file in another order, or leave some out. Every byte is one of its own."""
    head, chunks, tail = images(path)
    assert len(chunks) > 2
    path.write_bytes(head + b"".join(order(chunks)) + tail)


def pack_a_bomb(path: Path) -> None:
    """Let some chunk unpack to far more than it may."""
    head, chunks, tail = images(path)
    path.write_bytes(head + bomb(path, 60 << 20) + b"".join(chunks[1:]) + tail)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped in a chunk": lambda path: flip(path, path.stat().st_size // 2),
    "flipped in the header": lambda path: flip(path, 20),
    "flipped in the trailer": lambda path: flip(path, path.stat().st_size - 30),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "a chunk missing": lambda path: cut_up(path, lambda chunks: chunks[:1] + chunks[2:]),
    "chunks swapped": lambda path: cut_up(path, lambda chunks: [chunks[1], chunks[0], *chunks[2:]]),
    "a chunk doubled": lambda path: cut_up(path, lambda chunks: [chunks[0], *chunks]),
    "a bomb": pack_a_bomb,
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_reported_and_skipped(damage: str, filled: Server) -> None:
    node = filled
    second, newest = snapshots(node)[-2:]
    DAMAGES[damage](newest)
    node.start()
    assert restored(node) == index_of(second)
    if damage != "missing":
        assert newest.name in node.running().log and "damaged" in node.running().log
        assert newest.exists(), "a damaged file is not deleted unseen"
    check(node, 300)
    fill(node, 300, 400)
    node.kill()
    node.start()
    check(node, 400)


def test_the_newest_good_one_stays_beside_damaged_ones(filled: Server) -> None:
    """The log begins with it until there are two good ones again, because the one taken after the damage may go bad as
    well."""
    node = filled
    assert isinstance(node, Node)
    second, newest = snapshots(node)[-2:]
    flip(newest, newest.stat().st_size // 2)
    node.settings = {**EAGER, "maintenance.snapshot_retention": "2", "maintenance.snapshot_count": "1000000"}
    node.start()
    with node.client() as client:
        client.backup()  # so there is exactly one new snapshot
    node.stop()
    assert second.exists() and newest.exists() and len(snapshots(node)) == 3
    flip(snapshots(node)[-1], 2000)
    node.start()
    assert restored(node) == index_of(second)
    check(node, 300)


def test_no_snapshot_that_fits_the_log_refuses_the_start(filled: Server) -> None:
    node = filled
    contents = {path: path.read_bytes() for path in snapshots(node)}
    for path in contents:
        flip(path, path.stat().st_size // 2)
    for _ in range(2):
        with pytest.raises(StartError) as failure:
            node.start()
        assert failure.value.returncode == 4, failure.value
        assert "log begins after entry" in str(failure.value) and "snap" in str(failure.value)
    for path, data in contents.items():
        path.write_bytes(data)
    node.start()
    check(node, 300)


def test_a_snapshot_of_another_cluster_refuses_the_start(filled: Server, fresh: Make) -> None:
    node = filled
    other = fresh("other", settings={**EAGER, "cluster.token": '"other"'}).start()
    fill(other, 0, 100)
    wait_until(lambda: snapshots(other), what="a snapshot")
    assert other.stop() == 0
    foreign = snapshots(other)[-1]
    name = f"{index_of(snapshots(node)[-1]) + 1:016x}{foreign.name[16:]}"
    # This holds even under a name that makes it the newest, because the name is checked against the contents.
    (node.data_dir / "snap" / name).write_bytes(foreign.read_bytes())
    node.start()
    check(node, 300)
    assert node.stop() == 0
    for path in snapshots(node):
        path.unlink()
    (node.data_dir / "snap" / foreign.name).write_bytes(foreign.read_bytes())
    with pytest.raises(StartError) as failure:
        node.start()
    assert failure.value.returncode == 4, failure.value


def test_retention(filled: Server) -> None:
    node = filled
    assert isinstance(node, Node) and len(snapshots(node)) == 3
    node.settings = {**EAGER, "maintenance.snapshot_retention": "5"}
    node.start()
    fill(node, 300, 600)
    fill_until(node, 600, 5)
    node.stop()
    assert len(snapshots(node)) == 5


@pytest.mark.parametrize("point", ["snapshot.write", "snapshot.write@3", "snapshot.sync", "snapshot.rename"])
def test_a_full_disk_stops_no_client(point: str, fresh: Make) -> None:
    """The log just grows, and the next start has no snapshot to begin with."""
    name, at, hit = point.partition("@")
    node = fresh(settings=EAGER, env={"METASTORE_FAILPOINTS": f"{name}=error(ENOSPC){at}{hit}"}).start()
    fill(node, 0, 300)
    wait_until(lambda: "could not be taken" in node.running().log, what="a report")
    assert re.search(f"the log is kept: {node.data_dir / 'snap'}: .*No space left on device", node.running().log)
    before = snapshots(node)
    # One is complete before the third chunk. The file of the failed one is gone.
    assert sorted(node.data_dir.glob("snap/*")) == before and len(before) == (1 if hit else 0)
    node.kill()
    node.env = {}
    node.start()
    assert restored(node) == (index_of(before[0]) if before else 0)
    check(node, 300)
    wait_until(lambda: snapshots(node), what="a snapshot of what was replayed")


def test_compression_switched_between_two_runs(fresh: Make) -> None:
    node = fresh()
    assert isinstance(node, Node)
    done = 0
    for change in (
        {"maintenance.enable_snapshot_compression": "false"},
        {"maintenance.snapshot_compression_codec": '"snappy"'},
        {"maintenance.snapshot_compression_codec": '"zstd"', "maintenance.snapshot_chunk_size": '"64KiB"'},
        {},
    ):
        node.settings = {**EAGER, **change}
        node.start()
        check(node, done)
        fill(node, done, done + 150)
        done += 150
        node.kill()
    node.start()
    check(node, done)


def test_snapshots_cost_at_most_twice_what_was_written(fresh: Make) -> None:
    """The state grows. If a snapshot were taken every 20 entries, most bytes would go into snapshots."""
    node = fresh(settings={**EAGER, "maintenance.enable_snapshot_compression": "false"}).start()
    fill(node, 0, 1500)
    files = [int(size) for size in re.findall(r"snapshot index=\d+ records=\d+ bytes=(\d+)", node.running().log)]
    nbytes = 1500 * (6 + 8 * len(b"value of 1000 "))
    assert 2 <= len(files) < 1500 / 20 / 2
    assert sum(files) <= 2 * nbytes, (sum(files), nbytes)
