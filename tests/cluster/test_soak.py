"""Two minutes of the soak: a cluster under a steady load, with compactions and restarts, grows in nothing."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

from metastore._core import build_info

pytestmark = pytest.mark.node_only


@pytest.mark.skipif(build_info()["flavour"] != "release", reason="the figures of a debug build mean nothing")
def test_a_steady_load_lets_nothing_grow(tmp_path: Path) -> None:
    out = tmp_path / "soak.json"
    command = [sys.executable, str(ROOT / "bench" / "soak.py"), "--minutes", "2", "--rate", "1500", "--turn", "4"]
    done = subprocess.run(
        [*command, "--dir", str(tmp_path), "--out", str(out)], capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    series = json.loads(out.read_text())["series"]
    assert len(series["memory_mib"]) == len(series["seconds"]) >= 6
