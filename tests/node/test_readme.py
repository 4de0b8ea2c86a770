"""README and the pages in docs/ tell the truth: examples run, tables match the code, links lead somewhere."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support import ROOT
from support.processes import Server

from metastore import errors

README = (ROOT / "README.md").read_text()
PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
BLOCKS = re.findall(r"<!-- run: (\w+) -->\n```\w+\n(.*?)```", README, re.DOTALL)


def run_block(kind: str, text: str, address: str, cwd: Path) -> str:
    """Return the output of one code block, with the address of the node under test in place of the default one."""
    host, port = address.rsplit(":", 1)
    text = text.replace("127.0.0.1:2379", address).replace('host="127.0.0.1", port=2379', f'host="{host}", port={port}')
    text = text.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    argv = ["sh", "-eu", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
    # Any etcdctl that comes first in PATH will do. An ETCDCTL_ variable of the caller must not be inherited.
    env = {key: value for key, value in os.environ.items() if not key.startswith("ETCDCTL_")}
    run = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=cwd, env=env, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_there_are_six_examples() -> None:
    assert [kind for kind, _ in BLOCKS] == ["sh", "python", "sh", "sh", "python", "python"]


def test_etcdctl_example(server: Server, tmp_path: Path) -> None:
    output = run_block(*BLOCKS[0], server.address, tmp_path)
    assert output.startswith("OK\n/motd\nhello\n") and "ENDPOINT" in output and server.address in output


def test_aetcd_example(server: Server, tmp_path: Path) -> None:
    assert run_block(*BLOCKS[1], server.address, tmp_path) == "b'hello again'\n"


@pytest.mark.node_only
def test_backup_and_restore_examples(server: Server, tmp_path: Path) -> None:
    output = run_block(*BLOCKS[2], server.address, tmp_path)
    assert "Snapshot saved at backup.db" in output and "not verified" in output and "good: " in output
    assert "good" in run_block(*BLOCKS[3], server.address, tmp_path)
    assert (tmp_path / "data" / "restored" / "snap").is_dir()


def test_embedding_example() -> None:
    with tempfile.TemporaryDirectory() as cwd:
        output = run_block(*BLOCKS[4], "127.0.0.1:0", Path(cwd))
        assert output == "b'waiting'\n[b'/jobs/1', b'/jobs/2', b'/jobs/3']\n1\n"
        assert not list(Path(cwd).iterdir())


def test_transaction_example(tmp_path: Path) -> None:
    assert run_block(*BLOCKS[5], "127.0.0.1:0", tmp_path) == "ann has it\nbob was too late\n2\n"


def test_the_start_is_two_commands() -> None:
    start = README.split("## Start\n")[1].split("\n## ")[0]
    assert re.findall(r"```sh\n(.*?)```", start, re.DOTALL) == ["./dev run\n", "./dev test\n"]


def test_exit_codes_are_those_of_the_program() -> None:
    section = (ROOT / "docs" / "operations.md").read_text().split("## Signals and exit codes\n")[1].split("\n## ")[0]
    assert {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.*?) \|$", section, re.MULTILINE)} == (
        errors.EXIT_CODES
    )


def test_the_page_of_settings_is_made_of_the_settings() -> None:
    spec = importlib.util.spec_from_file_location("make_configuration", ROOT / "docs" / "make_configuration.py")
    assert spec is not None and spec.loader is not None
    maker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(maker)
    assert maker.PAGE.read_text() == maker.page(), "run .venv/bin/python docs/make_configuration.py"
    assert '| `limits.request_timeout` | `"7s"` | 1ms to 1d |' in maker.page()


def anchors(page: Path) -> set[str]:
    """Return what a link may name behind its #: the headings of a page, as the usual renderers spell them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).strip().lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = (page.parent / file).resolve() if file else page
        assert other.exists(), f"{page.name}: there is no {target}"
        if anchor:
            assert anchor in anchors(other), f"{page.name}: {file} has no heading {anchor}"
