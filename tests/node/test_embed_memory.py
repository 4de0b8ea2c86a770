"""A node without files: it does what others do, leaves nothing behind, and refuses what it cannot do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support import messages
from support.client import Client, Failure

from metastore import Compare, Config, Node, Op, errors

pytestmark = pytest.mark.node_only


def files_open() -> list[str]:
    """What the descriptors of this process lead to."""
    found = []
    for name in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{name}"))
        except OSError:  # the one of the listing itself
            continue
    return found


def test_it_stores_and_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    before = set(files_open())
    for _ in range(2):
        with Node.in_memory() as node:
            assert node.revision == 1 and node.get("k") is None
            node.put("k", "v")
            assert node.txn([Compare.exists("k")], [Op.put("l", "w")]).succeeded
            node.delete("k")
            node.compact(node.revision, physical=True)
            with Client(node.client_addresses[0]) as client:
                client.put(b"over", b"the wire")
                assert client.prefix(b"") == {b"l": b"w", b"over": b"the wire"}
            opened = set(files_open()) - before
            assert any(path.startswith("/memfd:metastore-wal") for path in opened), opened
            assert not [path for path in opened if str(tmp_path) in path]
    assert not list(tmp_path.iterdir())
    assert not [path for path in files_open() if "metastore-wal" in path]


def test_its_log_is_cut_and_its_memory_given_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundred times what a segment holds."""
    monkeypatch.chdir(tmp_path)
    config = Config(
        listen={"client": "127.0.0.1:0"}, wal={"segment_size": "256KiB"}, performance={"enable_compression": False}
    )  # fmt: skip
    with Node.in_memory(config) as node:
        most = 0.0
        for n in range(120):
            node.put_many((f"k{n % 7}", os.urandom(1000)) for n in range(n, n + 250))
            most = max(most, node.stats()["wal_segments"])
        assert node.stats()["wal_bytes_total"] > 120 * 250_000 and node.stats()["wal_first_index"] > 100
        assert most <= 15 and len([path for path in files_open() if "metastore-wal" in path]) <= 2 * most
        assert node.put("large", bytes(1_000_000)).revision == node.revision
        found = node.get("large")
        assert found is not None and len(found.value) == 1_000_000
    assert not list(tmp_path.iterdir())


def test_it_refuses_what_it_cannot_do() -> None:
    listen = {"client": "127.0.0.1:0", "peer": "127.0.0.1:0"}
    others = {"n1": "127.0.0.1:1", "n2": "127.0.0.1:2"}
    for config, text in (
        (Config(listen=listen, cluster={"initial": others}), "must be alone"),
        (Config(listen=listen, cluster={"initial": others, "state": "existing"}), "must be alone"),
        (Config(storage={"engine": "rocksdb"}), 'needs storage.engine = "memory"'),
    ):
        with pytest.raises(errors.ConfigError, match=text):
            Node.in_memory(config).start(timeout=20)
    with Node.in_memory() as node, Client(node.client_addresses[0]) as client:
        with pytest.raises(Failure, match="gives no backup"):
            client.backup()
        with pytest.raises(Failure, match="must be alone"):
            client.call(messages.MemberAddRequest(peerURLs=["http://127.0.0.1:5"]))
        node.put("it", "goes on")


def test_the_program_warns_and_leaves_nothing(tmp_path: Path) -> None:
    program = "from metastore import Node\nwith Node.in_memory() as node: print(node.put('k', 'v').revision)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout == "2\n" and "all is lost when it stops" in done.stderr
    assert not list(tmp_path.iterdir())


def test_the_command_line_knows_it(tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "metastore"]
    run = [*argv, "--set", "node.data_dir=:memory:", "--set", "listen.client=127.0.0.1:0"]
    with subprocess.Popen(run, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        assert process.stderr is not None
        said = [process.stderr.readline()]
        while "ready to serve" not in said[-1]:
            said.append(process.stderr.readline())
            assert said[-1], said
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert "data_dir=:memory: " in said[0] and any("all is lost when it stops" in line for line in said)
    restore = [*argv, "snapshot", "restore", "backup.db", "--data-dir", ":memory:"]
    done = subprocess.run(restore, capture_output=True, text=True, cwd=tmp_path, timeout=60, check=False)
    assert done.returncode == 2 and "there is nothing to restore into" in done.stderr
    assert not list(tmp_path.iterdir())
