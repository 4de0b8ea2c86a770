"""Backups of a running node: the stream, the clients that get it, and the effect on others; then status, verify,
restore."""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest
from support import etcdctl
from support import messages as m
from support.backupfiles import backup_file, everything, fill, restored, works
from support.client import Failure
from support.processes import Node, Server, wait_until
from support.snapshotfiles import make_codec, records

from metastore.cli import main as cli
from metastore.errors import ConfigError, DamagedData, DataDirInUse, MetaStoreError
from metastore.replica.roster import Identity
from metastore.snapshots.backup_file import BackupReader, summarize, verify
from metastore.snapshots.backup_stream import BLOB, MAX_BACKUPS
from metastore.snapshots.restore import Restore, number_record, rewrite
from metastore.storage.datadir import RESTORING, DataDir

pytestmark = pytest.mark.node_only

Make = Callable[..., Server]
Response = m.TYPES["SnapshotResponse"]


def damaged(path: Path, at: int) -> Path:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)
    return path


# ---- the stream


def test_the_stream_is_a_file_zeros_and_its_sum(fresh: Make, tmp_path: Path) -> None:
    node = fresh(settings={"maintenance.enable_snapshot_compression": "false"}).start()
    fill(node, 0, 3, os.urandom(300_000))
    with node.client() as client:
        parts = [Response.FromString(data) for data in client.snapshot()]
        assert parts[0].header.revision == client.revision() == 4
        assert parts[0].header.cluster_id and parts[0].header.member_id and parts[0].header.raft_term
    data = b"".join(part.blob for part in parts)
    assert max(len(part.blob) for part in parts) == BLOB
    assert [part.remaining_bytes for part in parts[-2:]] == [0, 0] and len(parts[-1].blob) == 32
    assert parts[0].remaining_bytes == len(data) - 32 - len(parts[0].blob)
    assert data[-32:] == hashlib.sha256(data[:-32]).digest() and len(data) % 512 == 32
    path = tmp_path / "backup"
    path.write_bytes(data)
    summary = verify(path)
    assert (summary.header.revision, summary.digest) == (4, data[-32:])
    inner = tmp_path / "inner"
    inner.write_bytes(data[: summary.trailer.size])
    assert verify(inner).digest is None, "without the end it is a snapshot file"


def test_it_holds_all_that_was_acknowledged_before(fresh: Make, tmp_path: Path) -> None:
    node = fresh().start()
    done, acked = threading.Event(), [0]

    def write() -> None:
        with node.client() as client:
            while not done.is_set():
                client.put(b"w", b"%d" % (acked[0] + 1))
                acked[0] += 1

    writer = threading.Thread(target=write)
    writer.start()
    path = tmp_path / "backup"
    try:
        with node.client() as client:
            for _ in range(5):
                before = acked[0]
                path.write_bytes(client.backup())
                assert verify(path).header.revision - 1 >= before
    finally:
        done.set()
        writer.join()


def test_one_that_is_under_way_is_too_old(fresh: Make, tmp_path: Path) -> None:
    gate, path = tmp_path / "gate", tmp_path / "backup"
    gate.touch()
    node = fresh(env={"METASTORE_FAILPOINTS": f"snapshot.sync=block({gate})"}).start()
    with node.client() as client:
        client.put(b"a")
        early = client.snapshot(60)
        wait_until(lambda: list(node.data_dir.glob("snap/*.tmp")), what="a snapshot under way")
        client.put(b"b")
        late = client.snapshot(60)
        client.revision()
        gate.unlink()
        for call, revision in ((early, 2), (late, 3)):
            path.write_bytes(b"".join(Response.FromString(data).blob for data in call))
            assert verify(path).header.revision == revision


def test_nothing_written_since_means_the_same_file_again(fresh: Make) -> None:
    node = fresh().start()
    fill(node, 0, 10)
    with node.client() as client:
        first = client.backup()
        assert client.backup() == first
        client.put(b"more")
        assert client.backup() != first
    assert len(list(node.data_dir.glob("snap/*.snap"))) == 2


def test_many_backups_do_not_put_off_the_snapshots_that_are_due(fresh: Make) -> None:
    node = fresh(
        settings={
            "maintenance.snapshot_count": "20",
            "maintenance.snapshot_min_size": '"1KiB"',
            "maintenance.enable_snapshot_compression": "false",
        }
    ).start()
    fill(node, 0, 100, b"x" * 1000)
    with node.client() as client:
        for _ in range(20):
            client.put(b"one more")
            client.backup()
    before = node.running().log.count("snapshot index=")
    fill(node, 100, 300, b"x" * 1000)
    wait_until(lambda: node.running().log.count("snapshot index=") > before, what="a snapshot that is due")


def test_a_client_that_goes_away_leaves_its_place(fresh: Make) -> None:
    node = fresh().start()
    fill(node, 0, 3, os.urandom(1 << 20))
    for _ in range(2 * MAX_BACKUPS):
        with node.client() as client:
            next(client.snapshot(60))
    with node.client() as client:
        wait_until(lambda: works(client), what="a backup")


def test_a_node_that_stops_ends_its_backups(fresh: Make) -> None:
    node = fresh(settings={"maintenance.snapshot_chunk_size": '"256KiB"'}).start()
    fill(node, 0, 12, os.urandom(1 << 20))
    with node.client() as client:
        call = client.snapshot(60)
        next(call)
        assert node.stop() == 0
        with pytest.raises(grpc.RpcError) as failure:
            list(call)
        assert failure.value.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED)


def test_a_file_that_went_bad_is_not_sent_on(fresh: Make, tmp_path: Path) -> None:
    node = fresh().start()
    fill(node, 0, 10)
    with node.client() as client:
        client.backup()
        (path,) = node.data_dir.glob("snap/*.snap")
        damaged(path, path.stat().st_size // 2)
        with pytest.raises(Failure) as failure:
            client.backup()
        assert failure.value.code == grpc.StatusCode.DATA_LOSS.value[0] and "damaged" in failure.value.text
        wait_until(lambda: works(client), what="another snapshot")
        (tmp_path / "good").write_bytes(client.backup())
    verify(tmp_path / "good")


def test_a_full_disk_is_told(fresh: Make) -> None:
    node = fresh(env={"METASTORE_FAILPOINTS": "snapshot.write=error(ENOSPC)"}).start()
    with node.client() as client, pytest.raises(Failure, match="could not be taken"):
        client.backup()


# ---- etcdctl, and the way back


def test_etcdctl_saves_and_the_way_back(fresh: Make, etcdctl_program: str, tmp_path: Path) -> None:
    node = fresh().start()
    fill(node, 0, 20)
    with node.client() as client:
        client.put(b"k00001", b"again")
        client.delete(b"k00002")
        client.txn(success=[])
        client.compact(10)
        before = everything(client)
        cluster = client.status().header.cluster_id
    backup = tmp_path / "backup.db"
    done = etcdctl.run(etcdctl_program, node.address, "snapshot", "save", str(backup))
    assert done.returncode == 0 and backup.exists(), done.stderr
    assert cli.main(["snapshot", "status", str(backup)]) == cli.main(["snapshot", "verify", str(backup)]) == 0
    other = restored(fresh, backup).start()
    with other.client() as client:
        assert everything(client) == before
        members = client.call(m.MemberListRequest()).members
        assert [member.name for member in members] == ["r1"]
        assert client.status().header.cluster_id not in (0, cluster)
        assert client.put(b"new").header.revision == max(before) + 1
    other.kill()
    other.start()
    with other.client() as client:
        assert client.revision() == max(before) + 1
        assert len(client.backup()) % 512 == 32


def test_a_bumped_revision_and_what_it_compacts(fresh: Make, tmp_path: Path) -> None:
    node = fresh().start()
    fill(node, 0, 5)
    fill(node, 0, 2, b"newer")
    backup = tmp_path / "backup"
    with node.client() as client:
        backup.write_bytes(client.backup())
        before = client.range(b"\0", b"\0")
    other = restored(fresh, backup, "--bump-revision", "1000000", "--mark-compacted").start()
    with other.client() as client:
        after = client.range(b"\0", b"\0")
        assert after.header.revision == before.header.revision + 1_000_000 == 1_000_008
        assert list(after.kvs) == list(before.kvs), "the keys' own numbers stay"
        for revision in (2, 8, 9, 1_000_007):
            with pytest.raises(Failure, match="required revision has been compacted"):
                client.range(b"k00001", revision=revision)
        assert client.range(b"k00001", revision=1_000_008).kvs[0].value == b"newer"
        with pytest.raises(Failure, match="required revision has been compacted"):
            client.compact(1_000_008)
        assert client.put(b"k00009").header.revision == 1_000_009
        (tmp_path / "again").write_bytes(client.backup())
    keys = [key for key, _ in BackupReader(tmp_path / "again").records() if key.startswith(b"k")]
    assert len(keys) == 6, "versions that nobody can read are removed"


# ---- files


def make_restore(source: Path, target: Path, **options: object) -> Restore:
    identity = Identity.create("n1", "t", {"n1": "a:1", "n2": "b:1", "n3": "c:1"}, "00")
    return Restore(source, target, identity, chunk_size=4096, make_codec=make_codec, **options)  # type: ignore[arg-type]


def test_status_and_verify_tell_the_facts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = backup_file(tmp_path / "b")
    assert cli.main(["snapshot", "status", str(path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["index"], facts["term"], facts["revision"], facts["cluster_id"]) == (1000, 7, 55, f"{99:016x}")
    assert (facts["records"], facts["codec"], facts["kind"]) == (505, "zstd", "backup")
    assert facts["sha256"] == path.read_bytes()[-32:].hex() and facts["bytes"] == path.stat().st_size
    assert cli.main(["snapshot", "verify", str(path)]) == 0
    out, err = capsys.readouterr()
    assert "good: " in out and "SHA-256" in out and err == ""
    (inner,) = (tmp_path / "snap").iterdir()
    assert cli.main(["snapshot", "verify", str(inner)]) == 0
    assert "snapshot file" in capsys.readouterr().out


def test_every_damage_is_found_and_changes_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = backup_file(tmp_path / "b")
    good = path.read_bytes()
    size = summarize(path).trailer.size
    target = tmp_path / "target"
    flips = [*range(0, 80, 7), *range(80, size, 97), *range(size - 64, len(good), 5)]
    for at in flips:
        damaged(path, at)
        with pytest.raises(DamagedData, match=r"/b: (before )?offset \d+: "):
            verify(path)
        path.write_bytes(good)
    for end in (0, 1, 15, 100, size // 2, size - 1, size + 1, len(good) - 32, len(good) - 1):
        path.write_bytes(good[:end])
        for command in ("status", "verify"):
            assert cli.main(["snapshot", command, str(path)]) == 4, (command, end)
        assert cli.main(["snapshot", "restore", str(path), "--data-dir", str(target)]) == 4
        assert f"{path}: offset " in capsys.readouterr().err and not target.exists()
    path.write_bytes(good + b"x")
    assert cli.main(["snapshot", "verify", str(path)]) == 4
    path.write_bytes(good[:-32] + bytes(32))
    with pytest.raises(DamagedData, match="SHA-256 is not that"):
        make_restore(path, target).check()
    assert make_restore(path, target, check_digest=False).check().header.index == 1000


def test_a_snapshot_of_etcd_is_told_as_such(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """This is a page of bbolt with the header: number 0, kind 4."""
    path = tmp_path / "etcd.db"
    path.write_bytes(bytes(8) + b"\x04" + bytes(7) + b"\xed\xda\x0c\xed" + bytes(4076))
    for command in (["status"], ["verify"], ["restore", "--data-dir", str(tmp_path / "target")]):
        assert cli.main(["snapshot", command[0], str(path), *command[1:]]) == 4
        assert f"{path}: offset 0: snapshot: is a database of etcd's own" in capsys.readouterr().err
    assert not (tmp_path / "target").exists()


def test_what_a_restored_state_holds(tmp_path: Path) -> None:
    path = backup_file(tmp_path / "b", {b"mcompact": number_record(3), b"mother": b"kept"})
    work = make_restore(path, tmp_path / "target", bump=100, mark_compacted=True)
    info = work.run(work.check())
    assert info.header.conf_state.voters == tuple(sorted(member.id for member in work.identity.members))
    assert info.header.cluster_id == work.identity.cluster_id != 99
    state = dict(BackupReader(info.path).records())
    assert {key: value for key, value in state.items() if key.startswith(b"k")} == records()
    assert state[b"mrevision"] == state[b"mcompact"] == number_record(155) and state[b"mother"] == b"kept"
    assert not state.keys() & {b"mmembers", b"mconf_state", b"malarms"}
    assert info.header.revision == 155 and not (tmp_path / "target" / RESTORING).exists()


def test_rewriting_keeps_the_order() -> None:
    old = [(b"ka", b"1"), (b"mb", b"2"), (b"mmembers", b"3"), (b"r1", b"4")]
    new = {b"ma": b"5", b"mb": b"6", b"mz": b"7", b"z": b"8"}
    expected = [(b"ka", b"1"), (b"ma", b"5"), (b"mb", b"6"), (b"mz", b"7"), (b"r1", b"4"), (b"z", b"8")]
    assert list(rewrite(old, new)) == expected


def test_a_restore_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = backup_file(tmp_path / "b")
    used = tmp_path / "used"
    used.mkdir()
    (used / "file").touch()
    base = ["snapshot", "restore", str(path)]
    cases = {
        "not empty (file)": [*base, "--data-dir", str(used)],
        "--data-dir or --conf": base,
        "go together": [*base, "--data-dir", "x", "--bump-revision", "5"],
        "go together ": [*base, "--data-dir", "x", "--mark-compacted"],
        "no revision any more": [*base, "--data-dir", "x", "--mark-compacted", "--bump-revision", str((1 << 63) - 50)],
        "not NAME=HOST:PORT": [*base, "--data-dir", "x", "--initial", "n1"],
        "does not name this member": [*base, "--data-dir", "x", "--initial", "n2=a:1"],
        "named twice": [*base, "--data-dir", "x", "--initial", "n1=a:1,n1=b:1"],
        "cannot be read": ["snapshot", "restore", str(tmp_path / "none"), "--data-dir", "x"],
    }
    for text, arguments in cases.items():
        assert cli.main(arguments) == 2, arguments
        assert text.strip() in capsys.readouterr().err
    folder = tmp_path / "held"
    lock = DataDir(str(folder))
    with pytest.raises(DataDirInUse):
        work = make_restore(path, folder)
        work.run(work.check())
    lock.close()
    assert [entry.name for entry in folder.iterdir()] == ["LOCK"]


def test_a_failing_disk_is_no_success(tmp_path: Path) -> None:
    from metastore.failpoints import Failpoints

    path = backup_file(tmp_path / "b")
    for step in ("snapshot.write=error(ENOSPC)", "snapshot.sync=error", "wal.segment=error(ENOSPC)"):
        work = make_restore(path, tmp_path / "target", failpoints=Failpoints(step))
        with pytest.raises(MetaStoreError) as failure:
            work.run(work.check())
        assert failure.value.exit_code == 6, failure.value
    work = make_restore(path, tmp_path / "target")
    work.run(work.check())


def test_a_configuration_file_names_the_member(fresh: Make, tmp_path: Path) -> None:
    conf = tmp_path / "n.toml"
    conf.write_text(f'[node]\nname = "x"\ndata_dir = "{tmp_path}/made"\n[cluster]\ninitial = {{ x = "127.0.0.1:1" }}\n')
    path = backup_file(tmp_path / "b")
    assert cli.main(["snapshot", "restore", str(path), "--conf", str(conf)]) == 0
    assert isinstance(Node(tmp_path / "made"), Node) and list((tmp_path / "made").glob("wal/*.wal"))
    with pytest.raises(ConfigError):
        make_restore(path, tmp_path / "made").check()
