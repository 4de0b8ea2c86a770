"""Snapshots of a running node: kill -9 at every step, damaged and missing files, the log behind them, a full disk."""

from __future__ import annotations

import re
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from support.load import History, Load
from support.processes import Node, Server, StartError, wait_until

pytestmark = pytest.mark.node_only

Make = Callable[..., Server]
EAGER = {
    "maintenance.snapshot_count": "20",
    "maintenance.snapshot_min_size": '"1KiB"',
    "maintenance.snapshot_chunk_size": '"4KiB"',
    "wal.segment_size": '"64KiB"',
}


def snapshots(node: Server) -> list[Path]:
    """Complete files, the oldest first."""
    return sorted(node.data_dir.glob("snap/*.snap"))


def fill(node: Server, first: int, last: int) -> None:
    with node.client() as client:
        for number in range(first, last):
            client.put(b"k%05d" % number, b"value of %d " % number * 8)


def check(node: Server, count: int) -> None:
    with node.client() as client:
        found = client.prefix(b"k")
    assert found == {b"k%05d" % number: b"value of %d " % number * 8 for number in range(count)}


def filled(fresh: Make, count: int = 300) -> Server:
    """A node that holds `count` keys, took several snapshots, and was stopped."""
    node = fresh(settings=EAGER).start()
    fill(node, 0, count)
    wait_until(lambda: len(snapshots(node)) == 3, what="three snapshots")
    assert node.stop() == 0
    return node


def restored(node: Server) -> int:
    """Index of the snapshot that the running node began with; 0 if with none."""
    found = re.search(r"restored snapshot index=(\d+)", node.running().log)
    return int(found[1]) if found else 0


def index_of(path: Path) -> int:
    return int(path.name.partition("-")[0], 16)


def test_the_log_is_compacted_and_a_start_goes_on_from_the_newest(fresh: Make) -> None:
    node = filled(fresh, 1500)
    newest = snapshots(node)[-1]
    segments = sorted(node.data_dir.glob("wal/*.wal"))
    assert sum(path.stat().st_size for path in segments) < 400 * 1024, "the log was not released"
    assert int(segments[0].name[:8], 16) > 2, "the log still begins with its first segments"
    node.start()
    assert restored(node) == index_of(newest)
    check(node, 1500)
    with node.client() as client:
        # History, versions and revisions are in it too.
        assert client.range(b"k00000").kvs[0].mod_revision == 2
        assert client.range(b"k00000", revision=3).header.revision == 1501
    fill(node, 1500, 1600)
    node.kill()
    node.start()
    check(node, 1600)


def test_a_log_that_is_gone_is_damage(fresh: Make) -> None:
    """Beginning anew beside the snapshots of an old life would be a loss that nobody notices."""
    node = filled(fresh, 100)
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


POINTS = ["snapshot.write", "snapshot.sync", "snapshot.rename", "snapshot.release"]


@pytest.mark.parametrize("hit", [1, 3])
@pytest.mark.parametrize("point", POINTS)
def test_killed_at_every_step(point: str, hit: int, fresh: Make) -> None:
    node = fresh(settings=EAGER, env={"METASTORE_FAILPOINTS": f"{point}=panic@{hit}"})
    history = History()
    node.start()
    with node.client() as client:
        load = Load(client, history).start()
        assert node.running().wait(60) == -signal.SIGKILL
        load.join()
    node.kill()
    node.env = {}
    for _ in range(2):
        left = list(node.data_dir.glob("snap/*.tmp"))
        node.start()
        assert not any(path.exists() for path in left)
        with node.client() as client:
            history.check(client)
            load = Load(client, history, expect_end=False).start()
            load.wait_acks(60)
            load.stop()
            history.check(client)
        node.kill()


def test_killed_in_the_middle_of_a_restore(fresh: Make) -> None:
    node = filled(fresh)
    wal, snap = (sorted(node.data_dir.glob(what)) for what in ("wal/*.wal", "snap/*"))
    node.env = {"METASTORE_FAILPOINTS": "wal.segment=panic"}
    with pytest.raises(StartError) as caught:
        node.start()
    assert caught.value.returncode == -signal.SIGKILL
    node.env = {}
    assert wal and sorted(node.data_dir.glob("snap/*")) == snap
    node.start()
    check(node, 300)


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "flipped in a chunk": lambda path: flip(path, path.stat().st_size // 2),
    "flipped in the header": lambda path: flip(path, 20),
    "flipped in the trailer": lambda path: flip(path, path.stat().st_size - 30),
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "empty": lambda path: path.write_bytes(b""),
    "missing": lambda path: path.unlink(),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_newest_is_reported_and_skipped(damage: str, fresh: Make) -> None:
    node = filled(fresh)
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


def test_no_snapshot_that_fits_the_log_refuses_the_start(fresh: Make) -> None:
    node = filled(fresh)
    kept = {path: path.read_bytes() for path in snapshots(node)}
    for path in kept:
        flip(path, path.stat().st_size // 2)
    for _ in range(2):
        with pytest.raises(StartError) as caught:
            node.start()
        assert caught.value.returncode == 4, caught.value
        assert "log begins after entry" in str(caught.value) and "snap" in str(caught.value)
    for path, data in kept.items():
        path.write_bytes(data)
    node.start()
    check(node, 300)


def test_a_snapshot_of_another_cluster_refuses_the_start(fresh: Make) -> None:
    node = filled(fresh)
    other = fresh("other", settings={**EAGER, "cluster.token": '"other"'}).start()
    fill(other, 0, 100)
    wait_until(lambda: snapshots(other), what="a snapshot")
    assert other.stop() == 0
    foreign = snapshots(other)[-1]
    name = f"{index_of(snapshots(node)[-1]) + 1:016x}{foreign.name[16:]}"
    # Even under a name that makes it the newest: the name is checked against the contents.
    (node.data_dir / "snap" / name).write_bytes(foreign.read_bytes())
    node.start()
    check(node, 300)
    assert node.stop() == 0
    for path in snapshots(node):
        path.unlink()
    (node.data_dir / "snap" / foreign.name).write_bytes(foreign.read_bytes())
    with pytest.raises(StartError) as caught:
        node.start()
    assert caught.value.returncode == 4, caught.value


def test_retention(fresh: Make) -> None:
    node = filled(fresh)
    assert isinstance(node, Node) and len(snapshots(node)) == 3
    node.settings = {**EAGER, "maintenance.snapshot_retention": "5"}
    node.start()
    fill(node, 300, 600)
    wait_until(lambda: len(snapshots(node)) == 5, what="five snapshots")
    node.stop()
    assert len(snapshots(node)) == 5


@pytest.mark.parametrize("point", ["snapshot.write", "snapshot.sync", "snapshot.rename"])
def test_a_full_disk_stops_no_client(point: str, fresh: Make) -> None:
    """The log just grows, and the next start has no snapshot to begin with."""
    node = fresh(settings=EAGER, env={"METASTORE_FAILPOINTS": f"{point}=error(ENOSPC)"}).start()
    fill(node, 0, 300)
    wait_until(lambda: "could not be taken" in node.running().log, what="a report")
    assert not list(node.data_dir.glob("snap/*"))
    node.kill()
    node.env = {}
    node.start()
    assert restored(node) == 0
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
    """A state that grows: were one taken every 20 entries, most bytes would go into snapshots."""
    node = fresh(settings={**EAGER, "maintenance.enable_snapshot_compression": "false"}).start()
    fill(node, 0, 1500)
    files = [int(size) for size in re.findall(r"snapshot index=\d+ records=\d+ bytes=(\d+)", node.running().log)]
    written = 1500 * (6 + 8 * len(b"value of 1000 "))
    assert 2 <= len(files) < 1500 / 20 / 2
    assert sum(files) <= 2 * written, (sum(files), written)
