"""The rules of the folder `tests`: the place of a test, what follows from it, and the place of the helpers."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from support import ROOT, TESTS, runs

from metastore._core import build_info

FILES = sorted(TESTS.rglob("test_*.py"))
SOURCES = sorted(TESTS.rglob("*.py"))
#: The fixtures of tests/conftest.py that start a server.
SERVERS = {"server", "client", "fresh", "fresh_etcd", "reference", "cluster_of", "etcdctl_program"}
OTHER_TEST = re.compile(r"^\s*(?:from|import) (?:\w+\.)?(?:test_\w+|conftest)\b", re.MULTILINE)


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_every_test_lies_in_a_folder_of_a_run() -> None:
    wrong = []
    for path in FILES:
        folders = path.relative_to(TESTS).parts[:-1]
        known = len(folders) == 1 and folders[0] in runs.FOLDERS
        if not known and not (len(folders) == 2 and folders[0] in runs.LONG_IN and folders[1] == runs.LONG):
            wrong.append(name_of(path))
    assert not wrong, f"move these into one of {sorted(runs.FOLDERS)}: {wrong}"
    here = {path.name for path in TESTS.iterdir() if path.is_dir() and not path.name.startswith((".", "__"))}
    assert here == {*runs.FOLDERS, "support"}


def test_the_marks_follow_from_the_folder() -> None:
    assert runs.marks_of(TESTS / "unit" / "test_x.py") == [] == runs.marks_of(Path("/else/where/once/test_x.py"))
    assert runs.marks_of(TESTS / "sim" / "test_x.py") == ["cluster"]
    assert runs.marks_of(TESTS / "hostile" / "long" / "test_x.py") == ["once", "long"]
    pattern = re.compile(r"mark\.(once|cluster|long)\b")
    wrong = [name_of(path) for path in FILES if pattern.search(path.read_text()) and path != Path(__file__)]
    assert not wrong, f"the folder gives these marks: {wrong}"


def test_a_skip_is_named_and_happens_only_where_it_must() -> None:
    assert "does not name it" in runs.wrongly_skipped("test_x")
    named = {name for path in FILES for name in re.findall(r"^def (test_\w+)", path.read_text(), re.MULTILINE)}
    assert set(runs.MAY_SKIP) <= named
    if build_info()["flavour"] == "release":
        assert "where it can run" in runs.wrongly_skipped("test_stalls_of_rocksdb_itself")


def test_this_test_has_the_marks_of_its_folder(request: pytest.FixtureRequest) -> None:
    assert {mark.name for mark in request.node.iter_markers()} == set()


def test_no_test_imports_from_another_one() -> None:
    wrong = [f"{name_of(path)}: {one[0].strip()}" for path in SOURCES for one in OTHER_TEST.finditer(path.read_text())]
    assert not wrong, f"what tests share goes into tests/support: {wrong}"


@pytest.mark.parametrize(
    "line", ["from test_wal import wait", "import test_wal", "    from conftest import x", "from unit.test_a import b"]
)
def test_the_import_of_a_test_is_seen(line: str) -> None:
    assert OTHER_TEST.search(line)


def test_no_two_tests_have_the_same_name() -> None:
    """pytest imports tests by their file names, whatever the folder."""
    names = Counter(path.name for path in FILES)
    assert not [name for name, count in names.items() if count > 1]


def test_tests_of_units_start_no_server() -> None:
    wrong = []
    for path in FILES:
        if path.parent.name not in ("unit", "raft"):
            continue
        tree = ast.parse(path.read_text())
        own = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (used := {one.arg for one in node.args.args} & (SERVERS - own)):
                wrong.append(f"{name_of(path)}: {node.name} uses {', '.join(sorted(used))}")
    assert not wrong, wrong


def test_files_that_are_named_elsewhere_are_there() -> None:
    """These are names in tox.ini, scripts and pages, which ruff and mypy do not check."""
    pages = [ROOT / name for name in ("tox.ini", "dev", "pyproject.toml", "README.md", "ARCHITECTURE.md", "FORMATS.md")]
    pages += sorted((ROOT / ".ci").iterdir()) + sorted((ROOT / "docs").glob("*.md")) + SOURCES
    wrong = []
    for page in pages:
        for match in re.finditer(r"(?<![\w/.])tests/[\w./]*\w", page.read_text()):
            if not (ROOT / match[0]).exists():
                wrong.append(f"{name_of(page)}: {match[0]}")
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("took", "long"),
    [
        (runs.Seconds(9.9, 9.9, 0.0), False),
        (runs.Seconds(10.1, 0.1, 0.0), True),  # it waits
        (runs.Seconds(30.0, 1.0, 25.0), False),  # the machine was busy with others
        (runs.Seconds(30.0, 10.1, 30.0), True),  # so it was, but this is the test's own work
        (runs.Seconds(8.0, 15.0, 0.0), True),  # it works on two processors
    ],
)
def test_how_long_a_test_may_take(took: runs.Seconds, long: bool) -> None:
    assert bool(runs.too_long(took, "release")) is long
    assert not runs.too_long(took, "debug")


WORKS_TOO_LONG = """
import time
from support import runs
runs.MOST_SECONDS = 0.05

def test_that_works() -> None:
    until = time.process_time() + 0.2
    while time.process_time() < until:
        pass

def test_that_does_not() -> None:
    pass
"""


def test_a_test_that_takes_too_long_fails(tmp_path: Path) -> None:
    path = tmp_path / "test_planted.py"
    path.write_text(WORKS_TOO_LONG)
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "conftest",
        "-p",
        "no:cacheprovider",
        "--rootdir",
        str(tmp_path),
        path,
    ]
    done = subprocess.run(
        argv, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(TESTS)}, capture_output=True, text=True, check=False
    )
    if build_info()["flavour"] == "release":
        assert "1 failed, 1 passed" in done.stdout and "of processors, and" in done.stdout, done.stdout
    else:
        assert "2 passed" in done.stdout, done.stdout
