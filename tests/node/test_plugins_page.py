"""The blocks of docs/plugins.md are right. .ci/wheel.py runs the one that installs packages."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from support import ROOT

pytestmark = pytest.mark.node_only

PAGE = (ROOT / "docs" / "plugins.md").read_text()
BLOCKS = re.findall(r"<!-- run: python -->\n```python\n(.*?)```\n\n```text\n(.*?)```", PAGE, re.DOTALL)


def test_every_block_of_the_page_is_run() -> None:
    assert len(BLOCKS) == PAGE.count("<!-- run: python -->") == 2
    assert PAGE.count("```sh\n") == PAGE.count("<!-- run: sh -->") == 1


@pytest.mark.parametrize(("program", "output"), BLOCKS, ids=["engine", "codec"])
def test_a_block_prints_what_the_page_says(program: str, output: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == output


def test_the_configuration_of_the_page_is_one(tmp_path: Path) -> None:
    (table,) = re.findall(r"```toml\n(.*?)```", PAGE, re.DOTALL)
    assert tomllib.loads(table)["storage"] == {"engine": "lmdb", "lmdb": {"map_size": "16GiB"}}


def test_the_page_has_its_sections() -> None:
    headings = set(re.findall(r"^## (.*)$", PAGE, re.MULTILINE))
    assert {
        "A storage engine", "An engine's life", "Threads", "Views", "How long a call may take", "What a call may raise",
        "What lasts", "Size, quota and NOSPACE", "Snapshots", "Options and limits", "Codecs", "Contract suites",
        "Installing", "An existing distributed store",
    } == headings  # fmt: skip
