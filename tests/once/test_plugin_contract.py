"""The contract of engines on the engines in examples/."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.node_only


@pytest.mark.parametrize("name", ["sqlite_engine", "lmdb_engine"])
def test_it_keeps_the_contract(name: str, tmp_path: Path) -> None:
    """The user's own test does the same; test_plugin.py installs the packages."""
    source = ROOT / "examples" / name
    shutil.copy(source / f"test_{name}.py", tmp_path)
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-c",
        os.devnull,
        "--rootdir",
        str(tmp_path),
    ]
    done = subprocess.run(
        [*argv, str(tmp_path / f"test_{name}.py")], cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(source)},
        capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout and "failed" not in done.stdout
