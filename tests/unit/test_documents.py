"""The documents name files, classes and functions of the tree. All of these exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

PAGES = [page for page in [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")] if page.name != "CHANGELOG.md"]
#: `net/loop.py`, `net/loop.py:Loop`, `net/loop.py:Loop.run`, with or without `metastore/` in front.
SOURCE = re.compile(r"`((?:[\w.]+/)*\w+\.(?:pyx?|pxd))(?::(\w+)(?:\.(\w+))?)?`")
#: `_core/raft`: a compiled module, without its ending.
MODULE = re.compile(r"`(?:metastore/)?_core/(\w+)`")


def places(page: Path) -> Iterator[tuple[str, str, str]]:
    """Return (path, class or function, method) of each mention on a page."""
    yield from SOURCE.findall(page.read_text())


def file_of(path: str) -> Path | None:
    """Return the file that a page means by `path`, which may begin in the package or at the root."""
    return next((place for place in (ROOT / "metastore" / path, ROOT / path) if place.is_file()), None)


def body_of(text: str, name: str) -> str | None:
    """Return the source of a class or function at the top of a module, up to the next line that begins at the
    margin."""
    pattern = rf"^(?:cdef )?(?:class|def|cpdef|cdef)\b[^\n]*?\b{name}\b.*?(?=^\S|\Z)"
    match = re.search(pattern, text, re.MULTILINE | re.DOTALL)
    return match[0] if match else None


def lacks(path: str, name: str, method: str) -> str:
    """Return what a mention lacks; empty if everything exists."""
    file = file_of(path)
    if file is None:
        return f"there is no file {path}"
    body = body_of(file.read_text(), name) if name else ""
    if body is None:
        return f"{path} has no {name}"
    if method and not re.search(rf"^\s+(?:async )?(?:def|cpdef|cdef)\b[^\n=]*?\b{method}\(", body, re.MULTILINE):
        return f"{path}: {name} has no {method}"
    return ""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_a_page_names_is_there(page: Path) -> None:
    wrong = [why for place in sorted(set(places(page))) if (why := lacks(*place))]
    core = ROOT / "metastore" / "_core"
    for name in sorted(set(MODULE.findall(page.read_text()))):
        if not ((core / f"{name}.pyx").exists() or (core / f"{name}.pxd").exists()):
            wrong.append(f"there is no compiled module {name}")
    assert not wrong, "\n".join(wrong)


def test_what_is_not_there_is_noticed() -> None:
    assert lacks("net/loop.py", "Loop", "run") == ""
    assert lacks("net/loop.py", "Loop", "jog") == "net/loop.py: Loop has no jog"
    assert lacks("net/loop.py", "Noose", "") == "net/loop.py has no Noose"
    assert lacks("net/lop.py", "", "") == "there is no file net/lop.py"


def test_the_lives_name_their_functions() -> None:
    """Each step of a life in ARCHITECTURE names a place in the code."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    lives = re.findall(r"^## (The (?:life|start|stop).*?)\n(.*?)(?=^## )", text, re.MULTILINE | re.DOTALL)
    assert len(lives) == 9
    for title, body in lives:
        steps = re.split(r"^\d+\. ", body, flags=re.MULTILINE)[1:]
        assert len(steps) >= 3, title
        assert sum(bool(SOURCE.search(step)) for step in steps) * 2 > len(steps), title
