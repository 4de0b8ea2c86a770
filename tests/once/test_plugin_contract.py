"""The contract of engines on the engine in examples/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.node_only


SOURCE = ROOT / "examples" / "sqlite_engine"


def test_it_keeps_the_contract(tmp_path: Path) -> None:
    """The user's own test does the same; test_plugin.py installs the package."""
    shutil.copy(SOURCE / "test_sqlite_engine.py", tmp_path)
    argv = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_sqlite_engine.py"]
    done = subprocess.run(
        argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "failed" not in done.stdout
