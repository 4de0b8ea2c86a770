"""A full disk: new writes are refused before they enter the log, reads go on, and writes resume when there is room.

As root the tests use a real, small file system. They always use a failpoint, too, which refuses new log segments.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support import messages as m
from support.client import Client, Failure
from support.processes import Node, StartError, wait_until
from support.waldisk import METADATA

from metastore.config import Config
from metastore.embedded.node import Node as EmbeddedNode
from metastore.errors import DiskFailed, StateBehind
from metastore.failpoints import Failpoints
from metastore.snapshots import coordinator
from metastore.storage.segments import Folder
from metastore.storage.wal import Wal

KIB = 1 << 10
MIB = 1 << 20
NO_SPACE = (8, "etcdserver: mvcc: database space exceeded")
DISK = 12 * MIB
BALLAST = 5 * MIB
LIMITS = {"wal.segment_size": '"256KiB"'}

pytestmark = pytest.mark.node_only


def fill(client: Client, start: int = 0, most: int = 4000) -> tuple[dict[bytes, bytes], int]:
    """Put 8 KiB values until one is refused for lack of space. Return what was acknowledged, and how many were sent."""
    acked: dict[bytes, bytes] = {}
    for number in range(start, start + most):
        key, value = b"fill/%05d" % number, os.urandom(8 * KIB)
        try:
            client.put(key, value)
        except Failure as failure:
            assert (failure.code, failure.text) == NO_SPACE
            return acked, number + 1
        acked[key] = value
    if most < 4000:
        return acked, start + most
    pytest.fail(f"{most} puts of 8 KiB were taken by a disk of {DISK} bytes")


def contents(client: Client) -> dict[bytes, bytes]:
    """Return what `fill` has written, read a few MiB at a time."""
    pairs: dict[bytes, bytes] = {}
    start = b"fill/"
    while True:
        page = client.range(start, b"fill0", limit=300)
        pairs |= {kv.key: kv.value for kv in page.kvs}
        if not page.more:
            return pairs
        start = page.kvs[-1].key + b"\0"


def can_write(client: Client) -> bool:
    try:
        client.put(b"again", b"1")
    except Failure as failure:
        assert (failure.code, failure.text) == NO_SPACE
        return False
    return True


def check_full(client: Client, acked: dict[bytes, bytes]) -> None:
    """Check that every kind of write is refused and changes nothing, and that every kind of read is answered."""
    before = client.revision()
    assert contents(client) == acked
    assert client.range(b"fill/00000", serializable=True).count == 1
    for _ in range(3):
        with pytest.raises(Failure) as failure:
            client.put(b"refused", os.urandom(8 * KIB))
        assert (failure.value.code, failure.value.text) == NO_SPACE
    assert client.get(b"refused") is None
    assert client.revision() == before
    assert client.status().header.revision == before


@contextlib.contextmanager
def disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a file system of `size` bytes."""
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size},mode=700", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a file system of a few MiB. A file `ballast` takes a part of it."""
    with disk(tmp_path / "disk", DISK) as folder:
        (folder / "ballast").write_bytes(b"b" * BALLAST)
        yield folder


def may_mount() -> bool:
    """Whether this process can make a small file system: as root, in a container that allows it."""
    if os.geteuid() != 0:
        return False
    probe = "mount -t tmpfs tmpfs /mnt"
    return subprocess.run(["unshare", "--mount", "sh", "-c", probe], capture_output=True, check=False).returncode == 0


if may_mount():

    def test_full_disk(small_disk: Path) -> None:
        with Node(small_disk / "data", LIMITS) as node, node.client() as client:
            acked, sent = fill(client)
            assert len(acked) > 100
            check_full(client, acked)
            (small_disk / "ballast").unlink()
            wait_until(lambda: can_write(client), 20, "writes resume")
            more, _ = fill(client, sent)
            assert more, "no write was taken after there was room again"
            assert contents(client) == acked | more
            node.kill()
            node.start()
            with node.client() as again:
                assert again.prefix(b"fill/") == acked | more
                assert again.get(b"refused") is None

    def test_snapshots_on_a_full_disk(small_disk: Path) -> None:
        """A snapshot fills the disk. It is given up and its file removed; the log and all readers go on."""
        settings = {
            **LIMITS, "maintenance.snapshot_count": "20", "maintenance.snapshot_min_size": '"64KiB"',
            "maintenance.enable_snapshot_compression": "false",
        }  # fmt: skip
        with Node(small_disk / "data", settings) as node:
            acked: dict[bytes, bytes] = {}
            sent = 0
            with node.client() as client:
                while "could not be taken" not in node.running().log:
                    more, sent = fill(client, sent, 50)
                    acked |= more
                    assert sent < 4000
                assert "No space left" in node.running().log or "NoSpace" in node.running().log
                wait_until(lambda: not list((small_disk / "data").glob("snap/*.tmp")), what="no rest of it")
                assert contents(client) == acked
            node.kill()
            node.start()
            with node.client() as client:
                assert contents(client) == acked
                (small_disk / "ballast").unlink()
                wait_until(lambda: can_write(client), 20, "writes resume")
                assert contents(client) == acked

    def test_start_on_a_full_disk(small_disk: Path) -> None:
        """The node is killed when full, and started when still full. It comes up, serves reads, and refuses writes."""
        with Node(small_disk / "data", LIMITS) as node:
            with node.client() as client:
                acked, sent = fill(client)
            node.kill()
            room = os.statvfs(small_disk)
            (small_disk / "more-ballast").write_bytes(b"b" * max(0, room.f_bavail * room.f_frsize - 1 * MIB))
            node.start()
            with node.client() as client:
                more, _ = fill(client, sent)  # what the segment takes that was begun at the start
                check_full(client, acked | more)
                (small_disk / "more-ballast").unlink()
                (small_disk / "ballast").unlink()
                wait_until(lambda: can_write(client), 20, "writes resume")

    def test_the_way_out_of_a_full_disk(tmp_path: Path) -> None:
        """With the default settings nearly all of a small disk is used. Delete, compact and disarm are accepted when
        puts are not. After them there is room again without further help, also if the node was killed meanwhile."""
        with disk(tmp_path / "disk", 80 * MIB) as folder, Node(folder / "data") as node:
            with node.client() as client:
                acked, _ = fill(client, 0, 12_000)
                assert len(acked) * 8 * KIB > 55 * MIB
                node.running().wait_line(r"no room for the log: .*bytes are (set aside|needed)")
                check_full(client, acked)
            node.kill()
            node.start()
            with node.client() as client:
                assert contents(client) == acked
                deleted = client.delete(b"fill/", b"fill0")
                assert deleted.deleted == len(acked)
                assert client.call(m.AlarmRequest(action=2, memberID=0, alarm=1)) is not None
                client.call(m.CompactionRequest(revision=deleted.header.revision, physical=True))
                more: dict[bytes, bytes] = {}
                while len(more) * 8 * KIB < 40 * MIB:
                    wait_until(lambda: can_write(client), 30, "writes resume")
                    more |= fill(client, len(more), 3900)[0]
            node.kill()
            node.start()
            with node.client() as client:
                assert contents(client) == more

    def test_a_compaction_is_followed_by_a_snapshot(
        small_disk: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        """The snapshot that was tried on the full disk failed, and others would come only after a thousand seconds."""
        monkeypatch.setattr(coordinator, "RETRY", 1000.0)
        config = Config(
            node={"data_dir": str(small_disk / "data")},
            listen={"client": "127.0.0.1:0", "peer": "127.0.0.1:0"},
            wal={"segment_size": "256KiB"},
        )
        with EmbeddedNode(config) as node, Client(node.client_addresses[0]) as client:
            acked, _ = fill(client)
            wait_until(lambda: "a snapshot could not be taken" in caplog.text, 30, "an attempt that failed")
            deleted = client.delete(b"fill/", b"fill0")
            assert deleted.deleted == len(acked)
            client.call(m.CompactionRequest(revision=deleted.header.revision, physical=True))
            wait_until(lambda: can_write(client), 60, "writes resume")

    def test_disks_that_hold_next_to_nothing(tmp_path: Path) -> None:
        """8 MiB suffice for a small store. A disk without room for a first segment is reported with the numbers."""
        with disk(tmp_path / "small", 8 * MIB) as folder, Node(folder / "data") as node, node.client() as client:
            acked, _ = fill(client)
            assert len(acked) * 8 * KIB > 3 * MIB
            assert client.delete(b"fill/", b"fill0").deleted == len(acked)
        with disk(tmp_path / "tiny", 2 * MIB) as folder, pytest.raises(StartError) as failure:
            Node(folder / "data").start()
        assert failure.value.returncode == 6
        numbers = r"4\d+ bytes are needed on the disk, \d+ are free"
        assert re.search(rf"{tmp_path}/tiny/data/wal.*{numbers}", str(failure.value))

    def test_segments_made_beforehand_take_a_part_of_what_is_free(tmp_path: Path) -> None:
        """On a disk that others use, too, a segment takes at most a quarter, except what it must have, and it takes
        nothing of the bytes that must stay free."""
        with disk(tmp_path / "disk", 64 * MIB) as folder:
            log = Folder(folder, 64 * MIB, Failpoints())
            log.hold()
            (folder / "ballast").write_bytes(b"b" * 20 * MIB)
            sizes = []
            with pytest.raises(OSError, match="bytes are needed on the disk") as failure:
                for number in range(1, 100):
                    segment = log.make(log.new_generation(number), 64 * MIB, lambda: True, 1 * MIB, 4 * MIB)
                    segment.close()
                    sizes.append(segment.size // MIB)
            assert failure.value.errno == errno.ENOSPC
            log.measure()
            assert 4 * MIB <= log.free < 5 * MIB + 64 * KIB
            assert sizes[:4] == [8, 8, 4, 4] and sizes == sorted(sizes, reverse=True) and sizes[-1] == 1
            log.release()

    def test_what_is_set_aside_is_there_however_little_is_free(tmp_path: Path) -> None:
        """A snapshot took more than what was left for it. Otherwise the operations that make room would be refused, and
        so would what a start has to publish: it never became ready."""
        with disk(tmp_path / "disk", 64 * MIB) as folder:
            wal = Wal.open(folder / "wal", segment_size=4 * MIB, metadata=METADATA)
            try:
                wait_until(lambda: wal.poll() == 0 and not wal.preparing, what="the next segment")
                room = os.statvfs(folder)
                (folder / "ballast").write_bytes(b"b" * (room.f_bavail * room.f_frsize))
                wal.measure()
                wait_until(lambda: wal.free == 0, what="the disk looked at")
                nbytes = wal.room(1 << 30)
                assert nbytes is not None and 7 * MIB - 64 * KIB < nbytes + wal.reserve <= 8 * MIB
            finally:
                wal.close()

    ROCKS = {
        "storage.engine": '"rocksdb"', "storage.rocksdb.write_buffer_size": '"4MiB"', "limits.request_timeout": '"2s"',
        "maintenance.snapshot_min_size": '"8MiB"', "maintenance.snapshot_count": "1000",
    }  # fmt: skip

    def test_rocksdb_on_a_full_disk(tmp_path: Path) -> None:
        """The node refuses puts before it runs out of room. When a third of the disk is free it goes on by itself."""
        with disk(tmp_path / "disk", 80 * MIB) as folder, Node(folder / "data", ROCKS) as node:
            (folder / "ballast").write_bytes(b"b" * 20 * MIB)
            with node.client() as client:
                acked: dict[bytes, bytes] = {}
                sent = 0
                for _ in range(3):  # puts work again by themselves when the log is cut or files are rewritten
                    more, sent = fill(client, sent, 4001)
                    acked |= more
                assert len(acked) * 8 * KIB > 8 * MIB
                assert contents(client) == acked
                leave_a_third(folder)
                wait_until(lambda: can_write(client), 30, "writes resume")
            node.kill()
            node.start()
            with node.client() as client:
                assert contents(client) == acked

    @pytest.mark.parametrize("killed", [False, True])
    def test_rocksdb_on_a_disk_that_others_fill(killed: bool, tmp_path: Path) -> None:
        """RocksDB itself finds no room. The node refuses writes and serves reads. It goes on when there is room again,
        in the same process, or in another one after a kill, with everything that was acknowledged."""
        with disk(tmp_path / "disk", 80 * MIB) as folder, Node(folder / "data", ROCKS) as node:
            with node.client() as client:
                acked, sent = fill(client, 0, 200)  # half of what RocksDB keeps in memory
                room = os.statvfs(folder)
                (folder / "ballast").write_bytes(b"b" * (room.f_bavail * room.f_frsize))
                # They come all at once, so some are logged and not applied when RocksDB finds no room.
                puts = {}
                for number in range(sent, sent + 1000):
                    key, value = b"fill/%05d" % number, os.urandom(8 * KIB)
                    puts[key] = (value, client.future(m.PutRequest(key=key, value=value), 10))
                unknown = settle(puts, acked)
                node.running().wait_line("engine: .*No space left on device")
                check_readable(client, acked, unknown)
                with pytest.raises(Failure) as failure:
                    client.put(b"refused", b"1")
                assert (failure.value.code, failure.value.text) == NO_SPACE
                pid = node.running().pid
                if killed:
                    node.kill()
                (folder / "ballast").unlink()
                if killed:
                    node.start()
            with node.client() as client:
                wait_until(lambda: can_write(client), 60, "writes resume")
                pairs = contents(client)
                assert {key: value for key, value in pairs.items() if key not in unknown} == acked
                assert killed or node.running().pid == pid
                more, _ = fill(client, sent + 1000, 300)
            node.kill()
            node.start()
            with node.client() as client:
                assert contents(client) == pairs | more


def settle(puts: dict[bytes, tuple[bytes, Any]], acked: dict[bytes, bytes]) -> set[bytes]:
    """Wait for the answer to each put. Acknowledged pairs go to `acked`. Return the keys whose outcome is open."""
    unknown = set()
    for key, (value, future) in puts.items():
        try:
            future.result()
        except grpc.RpcError as error:
            if error.code() != grpc.StatusCode.RESOURCE_EXHAUSTED:
                unknown.add(key)
        else:
            acked[key] = value
    return unknown


def check_readable(client: Client, acked: dict[bytes, bytes], unknown: set[bytes]) -> None:
    """Check that serializable reads are served, and that linearizable ones are too, or are refused at once while the
    state is behind the log."""
    reply = client.range(b"fill/", b"fill0", serializable=True, keys_only=True)
    assert acked.keys() <= {kv.key for kv in reply.kvs} <= acked.keys() | unknown
    try:
        client.get(b"fill/00000")
    except Failure as failure:
        assert (failure.code, failure.text) == (StateBehind.code, StateBehind.default)


def leave_a_third(folder: Path) -> None:
    """Shrink the ballast until a third of the disk is free."""
    room = os.statvfs(folder)
    missing = room.f_blocks * room.f_frsize // 3 - room.f_bavail * room.f_frsize
    os.truncate(folder / "ballast", (folder / "ballast").stat().st_size - max(0, missing))


def resumes(client: Client) -> bool:
    """Whether a write is accepted. A write that was under way may have an open outcome."""
    with contextlib.suppress(Failure):
        client.put(b"again", b"1")
        return True
    return False


# errno of the preparing thread -> the effect
KINDS = {
    "ENOSPC": NO_SPACE,
    "EDQUOT": NO_SPACE,
    "EMFILE": (8, "metastore: out of file descriptors: the log's next file cannot be opened"),
}


@pytest.mark.parametrize("kind", ["ENOSPC", "EDQUOT", "EMFILE", "EINVAL", "EROFS"])
def test_each_error_is_what_it_is(kind: str, tmp_path: Path) -> None:
    """Only two errors mean that the disk is full, and two that descriptors have run out. The others stop the node."""
    failpoints = Failpoints()
    config = Config(
        node={"data_dir": str(tmp_path / "data")},
        listen={"client": "127.0.0.1:0", "peer": "127.0.0.1:0"},
        wal={"segment_size": "256KiB"},
    )
    # The end of the block raises, like `wait`, what stopped the node.
    ends = contextlib.nullcontext() if kind in KINDS else pytest.raises(DiskFailed)
    with ends, EmbeddedNode(config, failpoints=failpoints) as node, Client(node.client_addresses[0]) as client:
        wal = node._running().disk.wal
        wait_until(lambda: not wal.preparing, what="the segment made beforehand")
        failpoints.set("wal.segment", f"error({kind})")
        with pytest.raises(Failure) as failure:
            for number in range(200):
                client.put(b"k%d" % number, os.urandom(8 * KIB))
        if kind in KINDS:
            assert (failure.value.code, failure.value.text) == KINDS[kind]
            assert client.delete(b"k0").deleted == 1
            raised = [alarm.alarm for alarm in client.call(m.AlarmRequest()).alarms]
            assert raised == ([1] if kind in ("ENOSPC", "EDQUOT") else [])
            failpoints.clear()
            wait_until(lambda: resumes(client), 20, "writes resume")
            return
        with pytest.raises(DiskFailed, match=rf"{tmp_path}.*the next segment cannot be made") as stopped:
            node.wait(20)
        assert os.strerror(getattr(errno, kind)) in stopped.value.text


def test_the_folder_is_removed(tmp_path: Path) -> None:
    config = Config(
        node={"data_dir": str(tmp_path / "data")},
        listen={"client": "127.0.0.1:0", "peer": "127.0.0.1:0"},
        wal={"segment_size": "256KiB"},
    )
    with (
        pytest.raises(DiskFailed),
        EmbeddedNode(config) as node,
        Client(node.client_addresses[0]) as client,
    ):
        client.put(b"k", b"1")
        shutil.rmtree(tmp_path / "data" / "wal")
        with pytest.raises(Failure):
            for number in range(200):
                client.put(b"k%d" % number, os.urandom(8 * KIB))
        with pytest.raises(DiskFailed, match=rf"{tmp_path}/data/wal: the folder of the log was moved or removed"):
            node.wait(20)


def test_segments_refused(tmp_path: Path) -> None:
    """A failpoint does the same in a node inside this process: no new segment can be made for a while."""
    failpoints = Failpoints()
    config = Config(
        node={"data_dir": str(tmp_path / "data")},
        listen={"client": "127.0.0.1:0", "peer": "127.0.0.1:0"},
        wal={"segment_size": "256KiB"},
    )
    with EmbeddedNode(config, failpoints=failpoints) as node, Client(node.client_addresses[0]) as client:
        client.put(b"fill/before", b"1")
        failpoints.set("wal.segment", "error(ENOSPC)")
        acked, sent = fill(client)
        check_full(client, acked | {b"fill/before": b"1"} | {b"fill/00000": acked[b"fill/00000"]})
        failpoints.clear()
        wait_until(lambda: can_write(client), 20, "writes resume")
        client.put(b"fill/%05d" % sent, b"2")
    with EmbeddedNode(config) as node:
        pairs = {kv.key: kv.value for kv in node.get_prefix(b"fill/").kvs}
        assert pairs == acked | {b"fill/before": b"1", b"fill/%05d" % sent: b"2"}
        assert node.get(b"refused") is None
