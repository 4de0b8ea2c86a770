"""The bench script runs and checks itself. Its figures are no test; with sizes this small they mean nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from metastore._core import build_info

PROGRAM = Path(__file__).resolve().parent.parent / "bench" / "bench.py"

pytestmark = pytest.mark.node_only


def test_every_measurement_runs(tmp_path: Path) -> None:
    """In a debug build it must refuse instead."""
    sizes = ["--requests", "300", "--rounds", "1", "--keys", "500", "--dir", str(tmp_path)]
    command = [sys.executable, str(PROGRAM), "all", *sizes]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    if build_info()["flavour"] != "release":
        assert result.returncode != 0
        assert "debug build" in result.stderr
        return
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("metastore / etcd: req/s x") == 4
    assert "baseline / etcd: req/s x" in result.stdout
    assert "500 keys of 256 bytes" in result.stdout
    assert not list(tmp_path.iterdir()), "data was left behind"
