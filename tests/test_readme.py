"""What README says is true: its examples run, its tables are complete, its commands are the two."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.processes import Server

from metastore import errors
from metastore.config import _NESTED, _TABLES, _fields

README = (Path(__file__).resolve().parent.parent / "README.md").read_text()
BLOCKS = re.findall(r"<!-- run: (\w+) -->\n```\w+\n(.*?)```", README, re.DOTALL)


def run_block(kind: str, text: str, address: str, cwd: Path) -> str:
    """Output of one code block, with the address of the node under test in place of the default one."""
    host, port = address.rsplit(":", 1)
    text = text.replace("127.0.0.1:2379", address).replace('host="127.0.0.1", port=2379', f'host="{host}", port={port}')
    text = text.replace(".venv/bin/", f"{Path(sys.executable).parent}/")
    argv = ["sh", "-eu", "-c", text] if kind == "sh" else [sys.executable, "-c", text]
    # Whatever etcdctl of a machine comes first in PATH will do; an outer ETCDCTL_ variable must not.
    env = {key: value for key, value in os.environ.items() if not key.startswith("ETCDCTL_")}
    run = subprocess.run(argv, capture_output=True, text=True, timeout=60, cwd=cwd, env=env, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_there_are_five_examples() -> None:
    assert [kind for kind, _ in BLOCKS] == ["sh", "python", "sh", "sh", "python"]


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


def test_the_start_is_two_commands() -> None:
    start = README.split("## Start\n")[1].split("\n## ")[0]
    assert re.findall(r"```sh\n(.*?)```", start, re.DOTALL) == ["./dev run\n", "./dev test\n"]


def test_exit_codes_are_those_of_the_program() -> None:
    section = README.split("## Exit codes\n")[1].split("\n## ")[0]
    assert {int(code): text for code, text in re.findall(r"^\| (\d+) \| (.*?) \|$", section, re.MULTILINE)} == (
        errors.EXIT_CODES
    )


@pytest.mark.parametrize("table", [*_TABLES, *_NESTED])
def test_every_key_is_in_the_table_with_its_default(table: str) -> None:
    rows = dict(re.findall(r"^\| `(\S+?)` \| (.*?) \|", README, re.MULTILINE))
    for key, item in _fields(table).items():
        default = item.metadata["default"]
        shown = {True: "true", False: "false"}.get(default, default) if isinstance(default, bool) else default
        expected = f'`"{shown}"`' if isinstance(shown, str) and not isinstance(default, bool) else f"`{shown}`"
        assert f"{table}.{key}" in rows, f"{table}.{key} is not in README"
        if default not in ((), "", {}):
            assert rows[f"{table}.{key}"] == expected
