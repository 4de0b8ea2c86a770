"""The contracts of engines and codecs on the engines in examples/, and on what docs/plugins.md shows."""

from __future__ import annotations

import os
import re
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


def test_the_engine_and_the_codec_of_the_page_keep_the_contracts(tmp_path: Path) -> None:
    """With the page's own lines for that."""
    page = (ROOT / "docs" / "plugins.md").read_text()
    programs = re.findall(r"<!-- run: python -->\n```python\n(.*?)```", page, re.DOTALL)
    (lines,) = re.findall(r"^```python\n(from metastore\.testing.*?)```", page, re.DOTALL | re.MULTILINE)
    text = "\n".join([*programs, lines])
    text = text.replace("MyEngine(folder)", "Volatile(folder)").replace("MyCodec()", "ZlibCodec()")
    (tmp_path / "test_page.py").write_text(text)
    argv = [sys.executable, "-m", "pytest", "-q", "-c", os.devnull, "--rootdir", ".", "-p", "no:cacheprovider", "."]
    done = subprocess.run(argv, capture_output=True, text=True, timeout=300, cwd=tmp_path, check=False)
    assert done.returncode == 0 and "failed" not in done.stdout, done.stdout
