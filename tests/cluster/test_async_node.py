"""`wal.sync = "async"` on real processes: what a kill and a power cut take, what a user sees of the window, and
clusters whose members lost acknowledged entries.

Bytes bound the window here, with an interval that never ends, so no test depends on time.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import urllib.request
from collections.abc import Callable
from pathlib import Path

import pytest
from support import powercut
from support.client import Failure
from support.cluster import Cluster, Member, clients_of
from support.load import History, Load, goes_on, write_until_end
from support.processes import Node, Server, wait_until

WINDOW = 16384
ASYNC = {
    "wal.sync": '"async"', "wal.sync_interval": '"1m"', "wal.async_max_bytes": str(WINDOW),
    "wal.segment_size": '"64KiB"',
}  # fmt: skip

Make = Callable[..., Server]


def page(server: Server, path: str) -> str:
    with urllib.request.urlopen(f"http://{server.address}{path}", timeout=10) as reply:
        return str(reply.read().decode())


def unsynced_record(server: Server) -> dict[str, object]:
    """Return the contents of the file `unsynced`; empty if it is not there."""
    path = server.data_dir / "unsynced"
    return dict(json.loads(path.read_text())) if path.exists() else {}


def other_boot(server: Server) -> None:
    """Let the file say that the machine was started since."""
    path = server.data_dir / "unsynced"
    record = {**unsynced_record(server), "boot_id": "another boot"}
    del record["sum"]
    path.write_text(json.dumps(record))


@pytest.mark.node_only
def test_a_kill_takes_nothing_that_was_acknowledged(fresh: Make) -> None:
    rng = random.Random(5)
    server = fresh(settings=ASYNC)
    history = History()
    for _ in range(4):
        server.start()
        with server.client() as client:
            history.check(client)
            load = Load(client, history).start()
            load.wait_acks(rng.choice([1, 5, 50, 300]))
            server.kill()
            load.join()
    server.start()
    with server.client() as client:
        history.check(client)
    assert "may lack entries" not in server.running().log


@pytest.mark.node_only
def test_the_window_is_told_and_empties(fresh: Make) -> None:
    node = fresh(settings={**ASYNC, "wal.sync_interval": '"30s"'}).start()
    assert 'wal.sync = "async"' in node.running().log and f"30000 ms and {WINDOW} bytes" in node.running().log
    with node.client() as client:
        client.put(b"k", b"v" * 1000)
        assert "metastore_wal_sync_interval_seconds 30.0" in page(node, "/metrics")
        assert "metastore_wal_unsynced_seconds" in page(node, "/metrics")
        assert json.loads(page(node, "/status"))["log"]["unsynced_bytes"] >= 0
        # No client writes any more. What is there is synced and proven long before the interval is over.
        wait_until(lambda: "metastore_wal_unsynced_bytes 0.0" in page(node, "/metrics"), what="an empty window")
    assert unsynced_record(node)["boot_id"] and unsynced_record(node)["doubt"] == 0
    assert node.stop() == 0
    assert unsynced_record(node) == {}, "all is synced"


@pytest.mark.node_only
def test_a_power_cut_takes_the_window_at_most(fresh: Make, tmp_path: Path) -> None:
    """Only what was synced survives. One client puts one key after the other, so a beginning of these keys is left."""
    lives = powercut.Lives(tmp_path, ASYNC)
    rng, done, lost = random.Random(3), 0, 0
    for _ in range(3):
        with lives.life() as node, node.client() as client:
            for _ in range(rng.choice([30, 70, 100])):
                done += 1
                client.put(b"%06d" % done, b"x" * rng.choice([100, 1000]))
            node.kill()
        with Node(lives.data_dir, ASYNC) as node, node.client() as client:
            pairs = client.prefix(b"")
            assert sorted(pairs) == [b"%06d" % n for n in range(1, len(pairs) + 1)], "there is a hole"
            missing = done - len(pairs)
            assert missing * 100 <= WINDOW, f"{missing} of {done} are gone"
            lost, done = lost + missing, len(pairs)
            assert node.stop() == 0
    assert lost, "nothing was ever at risk"


@pytest.mark.node_only
def test_a_failed_sync_stops_the_node(fresh: Make) -> None:
    node = fresh(settings=ASYNC, env={"METASTORE_FAILPOINTS": "wal.before_sync=error(EIO)@9"}).start()
    history = History()
    write_until_end(node, history, 6, writers=2)
    assert "sync failed" in node.running().log
    node.kill()
    assert unsynced_record(node)["boot_id"] == "failed sync", "the page cache may have dropped what it could not write"
    node.env = {}
    node.start()
    assert "may lack entries" in node.running().log
    with node.client() as client:
        history.check(client)


@pytest.mark.node_only
def test_switched_on_and_off_on_the_same_data(fresh: Make) -> None:
    node = fresh()
    assert isinstance(node, Node)
    history = History()
    always = {"wal.segment_size": '"64KiB"'}
    lone, often = {**ASYNC, "wal.group_commit": "false"}, {**ASYNC, "wal.sync_interval": '"1ms"'}
    for settings in (ASYNC, always, lone, often, always):
        node.settings = dict(settings)
        node.start()
        with node.client() as client:
            goes_on(client, history)
        node.kill()
    assert unsynced_record(node) == {}


@pytest.mark.node_only
def test_a_file_that_cannot_be_understood_stops_the_start(fresh: Make) -> None:
    node = fresh(settings=ASYNC).start()
    node.stop()
    (node.data_dir / "unsynced").write_text('{"version": 2}')
    with pytest.raises(AssertionError, match="unsynced: cannot be read: version 2"):
        try:
            node.start()
        except Exception as error:
            raise AssertionError(str(error)) from error


def put_all(cluster: Cluster, pairs: dict[bytes, bytes], count: int, among: list[Member] | None = None) -> None:
    """Put more keys, and remember those that are acknowledged."""
    with cluster.leader(among).client() as client:
        for _ in range(count):
            key = b"%06d" % len(pairs)
            client.put(key, b"x" * 200)
            pairs[key] = b"x" * 200


def cut_power(member: Member, copy: Path, target: Path) -> None:
    """Cut the power of the member's machine. `member` can then be started on what is left of its data."""
    member.kill()
    target.parent.mkdir()
    powercut.rebuild(member.data_dir, copy, target)
    member.data_dir = target
    member.env = {}
    other_boot(member)


def test_a_follower_that_lost_acknowledged_entries_is_brought_up_and_nothing_is_lost(
    cluster_of: Callable[..., Cluster], tmp_path: Path
) -> None:
    cluster = cluster_of(settings={**ASYNC, "wal.async_max_bytes": '"1MiB"', "wal.segment_size": '"4MiB"'})
    library = powercut.build(tmp_path)
    for member in cluster.members:
        member.data_dir = cluster.folder / f"{member.name}-0" / "data"
        member.data_dir.parent.mkdir(parents=True)
        copy = tmp_path / f"copy-{member.name}"
        member.env = dict(powercut.environment(library, member.data_dir.parent, copy))
    cluster.start()
    pairs: dict[bytes, bytes] = {}
    victim, other = cluster.followers()
    leader = cluster.leader()
    # The third member knows nothing of what the leader and the victim have acknowledged.
    other.running().send_signal(signal.SIGSTOP)
    put_all(cluster, pairs, 50, [leader, victim])
    cut_power(victim, tmp_path / f"copy-{victim.name}", cluster.folder / f"{victim.name}-1" / "data")
    leader.running().send_signal(signal.SIGSTOP)
    other.running().send_signal(signal.SIGCONT)
    victim.launch()
    wait_until(lambda: "may lack entries" in victim.logs, 30, "the doubt in the log")
    with pytest.raises(Failure), other.client(timeout=3) as client:
        client.put(b"stray", b"two without the leader must not go on")
    leader.running().send_signal(signal.SIGCONT)
    victim.await_ready()
    with cluster.leader().client() as client:
        assert client.prefix(b"0") == pairs
    cluster.same_everywhere()
    wait_until(lambda: unsynced_record(victim)["doubt"] == 0, what="the end of the doubt")


def test_a_cluster_that_lost_power_comes_up_again(cluster_of: Callable[..., Cluster]) -> None:
    cluster = cluster_of(settings=ASYNC).start()
    pairs: dict[bytes, bytes] = {}
    put_all(cluster, pairs, 20)
    for member in cluster.members:
        member.kill()
        other_boot(member)
    cluster.start()
    put_all(cluster, pairs, 5)
    with clients_of(cluster.members) as clients:
        assert all(client.prefix(b"0") == pairs for client in clients)
    for member in cluster.members:
        wait_until(lambda member=member: unsynced_record(member)["doubt"] == 0, what="the end of the doubt")
        assert "may lack entries" in member.logs


def test_without_one_of_them_it_must_be_told_to_accept_the_loss(cluster_of: Callable[..., Cluster]) -> None:
    cluster = cluster_of(settings=ASYNC).start()
    pairs: dict[bytes, bytes] = {}
    put_all(cluster, pairs, 5)
    for member in cluster.members:
        member.kill()
        other_boot(member)
    absent, *others = cluster.members
    for member in others:
        member.launch()
    with pytest.raises(Failure), others[0].client(timeout=4) as client:
        wait_until(lambda: "may lack entries" in others[0].logs and "may lack entries" in others[1].logs, 30)
        client.put(b"stray", b"")
    for member in others:
        member.kill()
        member.settings["wal.accept_loss"] = "true"
        member.launch()
    for member in others:
        member.await_ready()
    put_all(cluster, pairs, 5, others)
    with others[0].client() as client:
        assert client.prefix(b"0") == pairs
    absent.launch().await_ready()
    cluster.same_everywhere()


@pytest.mark.node_only
def test_an_engine_that_is_ahead_of_its_log_keeps_what_it_has(fresh: Make, tmp_path: Path) -> None:
    """The engine's files may be synced when the log's end is not. A power cut leaves a state that the log does not
    reach."""
    node = fresh(settings={**ASYNC, "storage.engine": '"rocksdb"'}).start()
    with node.client() as client:
        client.put(b"1", b"in the log")
    node.stop()
    shutil.copytree(node.data_dir / "wal", tmp_path / "wal")
    node.start()
    with node.client() as client:
        for number in range(2, 9):
            client.put(b"%d" % number, b"in the engine alone")
        revision = client.revision()
    node.stop()
    shutil.rmtree(node.data_dir / "wal")
    shutil.copytree(tmp_path / "wal", node.data_dir / "wal")
    for _ in range(2):
        node.start()
        with node.client() as client:
            assert len(client.prefix(b"")) >= 8 and client.revision() >= revision
            client.put(b"later", b"")
        node.kill()
