"""A full disk: new writes are refused before they enter the log, reads go on, writes resume when there is room.

With root on a real file system that is small; always also by a failpoint that refuses new log segments.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.client import Client, Failure
from support.processes import Node, wait_until

from metastore.config import Config
from metastore.failpoints import Failpoints
from metastore.node import Node as EmbeddedNode

KIB = 1 << 10
MIB = 1 << 20
NO_SPACE = (8, "etcdserver: mvcc: database space exceeded")
DISK = 12 * MIB
BALLAST = 5 * MIB
LIMITS = {"wal.segment_size": '"256KiB"'}

pytestmark = pytest.mark.node_only


def fill(client: Client, start: int = 0, most: int = 4000) -> tuple[dict[bytes, bytes], int]:
    """Puts 8 KiB values until one is refused for lack of space; what was acknowledged, and how many were sent."""
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


def can_write(client: Client) -> bool:
    try:
        client.put(b"again", b"1")
    except Failure as failure:
        assert (failure.code, failure.text) == NO_SPACE
        return False
    return True


def check_full(client: Client, acked: dict[bytes, bytes]) -> None:
    """Every kind of write is refused, and changes nothing; every kind of read is answered."""
    before = client.revision()
    assert client.prefix(b"fill/") == acked
    assert client.range(b"fill/00000", serializable=True).count == 1
    for _ in range(3):
        with pytest.raises(Failure) as caught:
            client.put(b"refused", os.urandom(8 * KIB))
        assert (caught.value.code, caught.value.text) == NO_SPACE
    assert client.get(b"refused") is None
    assert client.revision() == before
    assert client.status().header.revision == before


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a few MiB, part of it taken by a file `ballast`."""
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK},mode=700", "tmpfs", str(folder)], check=True)
    try:
        (folder / "ballast").write_bytes(b"b" * BALLAST)
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def may_mount() -> bool:
    """Whether this process can make a small file system: root, in a container that allows it."""
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
            assert client.prefix(b"fill/") == acked | more
            node.kill()
            node.start()
            with node.client() as again:
                assert again.prefix(b"fill/") == acked | more
                assert again.get(b"refused") is None

    def test_snapshots_on_a_full_disk(small_disk: Path) -> None:
        """What fills the disk is a snapshot: it is given up and its file removed, the log and all readers go on."""
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
                assert client.prefix(b"fill/") == acked
            node.kill()
            node.start()
            with node.client() as client:
                assert client.prefix(b"fill/") == acked
                (small_disk / "ballast").unlink()
                wait_until(lambda: can_write(client), 20, "writes resume")
                assert client.prefix(b"fill/") == acked

    def test_start_on_a_full_disk(small_disk: Path) -> None:
        """Killed when full, started when still full: it comes up, serves reads, refuses writes."""
        with Node(small_disk / "data", LIMITS) as node:
            with node.client() as client:
                acked, sent = fill(client)
            node.kill()
            room = os.statvfs(small_disk)
            (small_disk / "more-ballast").write_bytes(b"b" * max(0, room.f_bavail * room.f_frsize - 1 * MIB))
            node.start()
            with node.client() as client:
                more, _ = fill(client, sent)  # what the segment begun at the start still takes
                check_full(client, acked | more)
                (small_disk / "more-ballast").unlink()
                (small_disk / "ballast").unlink()
                wait_until(lambda: can_write(client), 20, "writes resume")


def test_segments_refused(tmp_path: Path) -> None:
    """The same by a failpoint, in a node inside this process: no new segment can be made for a while."""
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
        found = {kv.key: kv.value for kv in node.get_prefix(b"fill/").kvs}
        assert found == acked | {b"fill/before": b"1", b"fill/%05d" % sent: b"2"}
        assert node.get(b"refused") is None
