"""The example program against a server, with a small status file whose keys are known, and with this machine's own
file."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT
from support.client import Client
from support.processes import Server

PROGRAM = ROOT / "examples" / "dpkg_packages.py"
MACHINE = Path("/var/lib/dpkg/status")

STATUS = """\
Package: alpha
Status: install ok installed
Section: libs
Installed-Size: 2048
Architecture: amd64
Multi-Arch: same
Version: 1.0-1
Description: first package
 with a second line
 .
 and a fourth: one

Package: beta
Section: net
Installed-Size: 10240
Architecture: all
Version: 2:3.4~rc1
"""


def run(server: Server, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(PROGRAM), "--endpoint", server.address, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def status(tmp_path: Path) -> Path:
    path = tmp_path / "status"
    path.write_text(STATUS)
    return path


def test_known_packages(status: Path, server: Server, client: Client, prefix: str) -> None:
    base = f"/{prefix.rstrip('/')}"
    client.put(f"{base}/left-over/version".encode(), b"from an earlier run")
    result = run(server, "--status", str(status), "--prefix", base)
    assert result.returncode == 0, result.stderr
    pairs = {
        key.decode().removeprefix(f"{base}/"): value.decode() for key, value in client.prefix(base.encode()).items()
    }
    assert pairs == {
        "alpha:amd64/package": "alpha",
        "alpha:amd64/status": "install ok installed",
        "alpha:amd64/section": "libs",
        "alpha:amd64/installed-size": "2048",
        "alpha:amd64/architecture": "amd64",
        "alpha:amd64/multi-arch": "same",
        "alpha:amd64/version": "1.0-1",
        "alpha:amd64/description": "first package\nwith a second line\n.\nand a fourth: one",
        "beta/package": "beta",
        "beta/section": "net",
        "beta/installed-size": "10240",
        "beta/architecture": "all",
        "beta/version": "2:3.4~rc1",
    }
    lines = result.stdout.splitlines()
    assert lines[0].startswith("stored 13 keys of 2 packages in ")
    assert lines[1].startswith("read 13 keys by 2 prefixes in ")
    assert lines[2:] == ["sections: libs 1, net 1", "largest:  beta 10 MiB, alpha:amd64 2 MiB"]


def test_progress_on_a_terminal_only(status: Path, server: Server, prefix: str) -> None:
    options = ["--status", str(status), "--prefix", f"/{prefix.rstrip('/')}"]
    assert "storing" not in run(server, *options).stdout
    try:
        master, slave = pty.openpty()
    except OSError as error:
        pytest.skip(f"no terminal to be had: {error}")  # a bare chroot
    try:
        command = [sys.executable, str(PROGRAM), "--endpoint", server.address, *options]
        env = {**os.environ, "TERM": "xterm", "COLUMNS": "100"}
        result = subprocess.run(command, stdout=slave, stderr=slave, timeout=120, env=env, check=False)
        os.close(slave)
        output = b""
        while chunk := read(master):
            output += chunk
    finally:
        os.close(master)
    assert result.returncode == 0
    assert b"storing" in output
    assert b"13/13" in output


def read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65_536)
    except OSError:  # EIO: the other side is closed
        return b""


def test_a_server_that_is_not_there(status: Path) -> None:
    command = [sys.executable, str(PROGRAM), "--endpoint", "127.0.0.1:1", "--status", str(status)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode != 0


if MACHINE.exists():

    def test_this_machines_packages(server: Server, client: Client, prefix: str) -> None:
        base = f"/{prefix.rstrip('/')}"
        result = run(server, "--prefix", base)
        assert result.returncode == 0, result.stderr + result.stdout
        installed = client.get(f"{base}/dpkg/version".encode())
        query = ["dpkg-query", "-W", "-f", "${Version}", "dpkg"]
        assert installed == subprocess.run(query, capture_output=True, check=True).stdout
