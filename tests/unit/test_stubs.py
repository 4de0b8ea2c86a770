"""The stubs of the compiled modules have the signatures of their sources: the names of the parameters, in their order,
and which parameters have a default."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import ROOT

CORE = ROOT / "metastore" / "_core"
#: (name, whether it has a default) of each parameter.
Signature = list[tuple[str, bool]]

DEFINITION = re.compile(r"^(?:cdef )?class (\w+)|^( {4})?(?:def|cpdef) [^(=\n]*?\b(\w+)\(", re.MULTILINE)


def split(text: str) -> Iterator[str]:
    """Yield the parts of `text` between commas that stand in no bracket."""
    depth, part = 0, ""
    for char in text:
        depth += (char in "([{") - (char in ")]}")
        if char == "," and not depth:
            yield part
            part = ""
        else:
            part += char
    if part.strip():
        yield part


def parameter(text: str) -> tuple[str, bool]:
    """Return one parameter of Cython, as in `Store store not None` or `size_t budget=0`."""
    declared, default, _ = text.partition("=")
    words = re.findall(r"\*{0,2}\w+|\*", re.sub(r"\[[^]]*\]|\bnot None\b|:.*", "", declared))
    return words[-1], bool(default)


def in_order(found: Signature) -> Signature:
    """Return a signature with those parameters sorted that are given by name only, whose order has no meaning."""
    stars = [at for at, (name, _) in enumerate(found) if name.startswith("*")]
    return found if not stars else found[: stars[0] + 1] + sorted(found[stars[0] + 1 :])


def signatures_of_source(text: str) -> dict[str, Signature]:
    """Return the signatures of the functions and methods in a .pyx that Python can call."""
    text = re.sub(r'"""(?:.|\n)*?"""', '""', text)
    found: dict[str, Signature] = {}
    scope = ""
    for match in DEFINITION.finditer(text):
        if match[1]:
            scope = f"{match[1]}."
            continue
        depth, end = 1, match.end()
        while depth:
            depth += (text[end] == "(") - (text[end] == ")")
            end += 1
        inside = re.sub(r"#.*", "", text[match.end() : end - 1])
        found[f"{scope if match[2] else ''}{match[3]}"] = in_order([parameter(part) for part in split(inside)])
    return found


def signature(function: ast.FunctionDef) -> Signature:
    """Return the signature of a function in a stub."""
    arguments = function.args
    found = [(one.arg, False) for one in (*arguments.posonlyargs, *arguments.args)]
    for at in range(1, len(arguments.defaults) + 1):
        found[-at] = (found[-at][0], True)
    if arguments.vararg is not None:
        found.append((f"*{arguments.vararg.arg}", False))
    elif arguments.kwonlyargs:
        found.append(("*", False))
    named = zip(arguments.kwonlyargs, arguments.kw_defaults, strict=True)
    found += [(one.arg, value is not None) for one, value in named]
    if arguments.kwarg is not None:
        found.append((f"**{arguments.kwarg.arg}", False))
    return in_order(found)


def signatures_of_stub(text: str) -> dict[str, list[Signature]]:
    """Return the signatures of each function and method; there are several if it is overloaded."""
    found: dict[str, list[Signature]] = {}
    for node in ast.parse(text).body:
        scope, items = (f"{node.name}.", node.body) if isinstance(node, ast.ClassDef) else ("", [node])
        for item in items:
            if isinstance(item, ast.FunctionDef):
                found.setdefault(scope + item.name, []).append(signature(item))
    return found


def differences(source: str, stub: str) -> list[str]:
    """Return where a stub and its source differ. One of several overloads names all parameters; their defaults may
    differ."""
    real, wrong = signatures_of_source(source), []
    for name, shown in signatures_of_stub(stub).items():
        want = real.get(name)
        if want is None or want in shown:
            continue
        if len(shown) == 1 or [one for one, _ in want] not in [[one for one, _ in each] for each in shown]:
            wrong.append(f"{name}: the source has {want}, the stub {shown}")
    return wrong


@pytest.mark.parametrize("path", sorted(CORE.glob("*.pyi")), ids=lambda path: path.stem)
def test_a_stub_has_the_signatures_of_its_source(path: Path) -> None:
    found = differences(path.with_suffix(".pyx").read_text(), path.read_text())
    assert not found, "\n".join(found)


SOURCE = """
cdef class Log(Base):
    def __init__(self, Store store not None, size_t size=0, *, on_end=None, pause=0, **more):
        pass

    cpdef object read(self, object images, (int, int) at=(0, 1)) except -1:
        pass

cpdef Py_ssize_t size(const uint8_t[::1] data, list parts):  # of bytes
    pass
"""


@pytest.mark.parametrize(
    ("stub", "wrong"),
    [
        ("class Log:\n def __init__(self, store, size=..., *, on_end=..., pause=..., **more): ...", 0),
        ("class Log:\n def __init__(self, store, size=..., *, pause=..., on_end=..., **more): ...", 0),
        ("class Log:\n def __init__(self, store, size=..., *, on_end, pause=..., **more): ...", 1),
        ("class Log:\n def __init__(self, store, size=..., *, on_end=..., **more): ...", 1),
        ("class Log:\n def __init__(self, size, store=..., *, on_end=..., pause=..., **more): ...", 1),
        ("class Log:\n def read(self, images, at=...): ...\ndef size(data, parts): ...", 0),
        ("class Log:\n def read(self, images): ...\ndef size(data, parts, more): ...", 2),
        ("class Log:\n def read(self, images): ...\n def read(self, images, at): ...", 0),
    ],
)
def test_a_stub_that_drifts_is_seen(stub: str, wrong: int) -> None:
    assert len(differences(SOURCE, stub)) == wrong
