"""The house rules: floors, sizes, stubs, entry points, what ships."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import metastore
from metastore._core import build_info

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "metastore"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# Which floor a module lives on. A module imports from its own floor and from those below; a folder stands for all
# that is in it. What is not listed here fails the test: a new module needs a floor.
FLOORS = {
    "metastore": 0,
    "errors": 0,
    "config": 0,
    "ports": 0,
    "_source": 0,
    "_core": 0,
    "_core.build": 0,
    "_core.waiter": 0,
    "_core.le": 1,
    "_core.crc": 1,
    "_core.entry": 1,
    "_core.op": 1,
    "_core.snap_chunk": 1,
    "_core.codec": 1,
    "_core.batch": 1,
    "codecs": 1,
    "_core.raft_types": 2,
    "_core.raft_quorum": 2,
    "_core.raft_log": 2,
    "_core.raft_promises": 2,
    "_core.raft_reads": 2,
    "_core.raft_state": 2,
    "_core.raft_replication": 2,
    "_core.raft_election": 2,
    "_core.raft": 2,
    "_core.raft_wire": 2,
    "_core.ordered_map": 3,
    "_core.ordered_map_check": 3,
    "_core.record": 3,
    "_core.engine": 3,
    "_core.recent_keys": 3,
    "_core.mvcc_keys": 3,
    "_core.kv_messages": 3,
    "_core.mvcc_txn": 3,
    "_core.mvcc_sweep": 3,
    "_core.mvcc_unfinished": 3,
    "_core.mvcc": 3,
    "_core.mvcc_range": 3,
    "_core.work": 3,
    "_core.mvcc_txn_work": 3,
    "_core.mvcc_apply": 3,
    "_core.snap_records": 3,
    "alarms": 3,
    "autocompact": 3,
    "_core.mvcc_hash": 3,
    "memplan": 3,
    "memlimit": 5,
    "memguard": 5,
    "upkeep": 7,
    "driver": 3,
    "changes": 3,
    "snapformat": 3,
    "snappolicy": 3,
    "membership": 3,
    "members": 7,
    "peering": 7,
    "_core.nghttp2": 4,
    "_core.grpc": 4,
    "_core.h2_link": 4,
    "_core.h2_request": 4,
    "_core.h2": 4,
    "_core.work_queue": 4,
    "_core.kv_server": 4,
    "handshake": 4,
    "founding": 4,
    "_core.wal_records": 4,
    "_core.wal_read": 4,
    "_core.wal_scan": 4,
    "api": 4,
    "proto": 4,
    "failpoints": 5,
    "_core.idle_poll": 5,
    "_core.wal_thread": 5,
    "storage": 5,
    "loop": 6,
    "accept": 6,
    "http1": 6,
    "descriptors": 6,
    "conn": 6,
    "peer": 6,
    "resolver": 6,
    "join": 6,
    "localcluster": 7,
    "console": 7,
    "snaptool": 7,
    "snapcheck": 7,
    "waltool": 7,
    "snaptransfer": 6,
    "peerstream": 6,
    "server": 7,
    "drain": 7,
    "space": 7,
    "view": 7,
    "snapshots": 7,
    "backups": 7,
    "embed": 7,
    "node": 7,
    "logs": 7,
    "signals": 7,
    "cli": 7,
    "__main__": 7,
}
PURE = 4
FORBIDDEN = {
    "asyncio", "concurrent", "fcntl", "io", "mmap", "multiprocessing", "os", "pathlib", "posix", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time",
    "libc.stdio", "libc.time", "cpython.time", "openmp",
}  # fmt: skip
# (module, import) pairs allowed against the rule, each with its reason.
ALLOWED = {
    ("_source", "os"),  # looks for an installed package before anything else is loaded
    ("metastore", "os"),  # the same
    ("api.pb", "pathlib"),  # reads the message descriptors that lie in the package
}
# Tools of those who work on the project; nothing that runs imports them.
DEVELOPERS_ONLY = {"proto.generate"}
LINES = 800
SHIPPED = {".py", ".pyx", ".pxd", ".pyi", ".h", ".proto", ".binpb", ".typed"}
FUNCTION_LINES = 70


def sources() -> Iterator[tuple[str, Path]]:
    """(dotted name below the package, path) of all .py, .pyx and .pxd files."""
    for path in sorted(PACKAGE.rglob("*.p[yx]*")):
        if path.suffix in (".py", ".pyx", ".pxd"):
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "metastore", path


def floor(name: str) -> int:
    """The floor of a module; KeyError when it has none."""
    if name in FLOORS:
        return FLOORS[name]
    return FLOORS[name.partition(".")[0]] if not name.startswith("_core.") else FLOORS[name]


def imports(name: str, path: Path) -> Iterator[tuple[int, str]]:
    """(line, absolute dotted name) of each import and cimport; those for type checkers only are left out."""
    package = ["metastore", *name.split(".")] if name != "metastore" else ["metastore"]
    if path.name != "__init__.py":
        package = package[:-1]
    if path.suffix == ".py":
        yield from _python_imports(path, package)
        return
    text = re.sub(r"\\\n", " ", path.read_text())
    words = r"^[ \t]*(?:from[ \t]+([.\w]+)[ \t]+)?(?:c?import)[ \t]+(\([^)]*\)|[^\n#]+)"
    headers = r"^cdef extern from [\"<]([^\">]+)"
    for match in re.finditer(f"{words}|{headers}", text, re.MULTILINE):
        line = text[: match.start()].count("\n") + 1
        if match[3]:
            yield line, f"<{match[3]}>"
            continue
        for item in match[2].strip("() ").split(","):
            word = item.split(" as ")[0].strip()
            if word:
                yield line, _absolute(package, match[1], word)


def _python_imports(path: Path, package: list[str]) -> Iterator[tuple[int, str]]:
    tree = ast.parse(path.read_text())
    typing_only = {
        inner
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in node.body
        for inner in ast.walk(child)
    }
    for node in ast.walk(tree):
        if node in typing_only:
            continue
        if isinstance(node, ast.Import):
            yield from ((node.lineno, item.name) for item in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            yield from ((node.lineno, _absolute(package, module, item.name)) for item in node.names)


def _absolute(package: list[str], module: str | None, word: str) -> str:
    if module is None:
        return word
    dots = len(module) - len(module.lstrip("."))
    if not dots:
        return f"{module}.{word}"
    base = package[: len(package) - dots + 1]
    return ".".join([*base, *([module[dots:]] if module[dots:] else []), word])


def own_module(target: str, names: set[str]) -> str | None:
    """The module of ours that an import means: the longest known prefix; None for foreign ones."""
    parts = target.split(".")
    if parts[0] != "metastore":
        return None
    for end in range(len(parts), 1, -1):
        if ".".join(parts[1:end]) in names:
            return ".".join(parts[1:end])
    return "metastore"


def test_every_module_has_a_floor() -> None:
    unknown = []
    for name, path in sources():
        try:
            floor(name)
        except KeyError:
            unknown.append(str(path.relative_to(ROOT)))
    assert not unknown, f"give these a floor in FLOORS: {unknown}"


def test_floors_import_only_from_below() -> None:
    names = {name for name, _ in sources()}
    wrong = []
    for name, path in sources():
        for line, target in imports(name, path):
            module = own_module(target, names)
            if module and floor(module) > floor(name):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: floor {floor(name)} imports {module} ({floor(module)})")
    assert not wrong, "\n".join(wrong)


def test_the_core_is_pure() -> None:
    wrong = []
    for name, path in sources():
        if floor(name) > PURE or name in DEVELOPERS_ONLY:
            continue
        for line, target in imports(name, path):
            parts = target.strip("<>").split(".")
            bad = [prefix for end in range(1, len(parts) + 1) if (prefix := ".".join(parts[:end])) in FORBIDDEN]
            header = target.startswith("<") and re.match(r"(sys/|unistd|fcntl|time\.h|stdio\.h|pthread|poll)", parts[0])
            if (bad and (name, bad[0]) not in ALLOWED) or header or parts[0] == "posix":
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {target}")
    assert not wrong, "clocks, files, sockets, threads and chance come in as arguments:\n" + "\n".join(wrong)


def test_the_import_scan_sees_all_forms(tmp_path: Path) -> None:
    text = (
        "from libc.time cimport time\nfrom .log cimport (A,\n    B)\ncimport numpy as np\nimport os, random\n"
        "def f():\n    from metastore.embedded.node import Node\ncdef extern from \"unistd.h\" nogil:\n    pass\n"
    )  # fmt: skip
    path = tmp_path / "x.pyx"
    path.write_text(text)
    found = {target for _, target in imports("_core.x", path)}
    assert found == {
        "libc.time.time", "metastore._core.raft_log.A", "metastore._core.raft_log.B", "numpy", "os", "random",
        "metastore.embedded.node.Node", "<unistd.h>",
    }  # fmt: skip


def test_files_are_short() -> None:
    wrong = []
    for folder in ("metastore", "tests", "bench", "examples"):
        for path in sorted((ROOT / folder).rglob("*.p[yx]*")):
            if path.suffix in (".py", ".pyx", ".pxd"):
                count = len(path.read_text().splitlines())
                if count > LINES:
                    wrong.append(f"{path.relative_to(ROOT)}: {count} lines")
    assert not wrong, "\n".join(wrong)


def functions(path: Path) -> Iterator[tuple[str, int]]:
    """(name, lines) of each function; those of .pyx by indentation, for ast knows no Cython."""
    lines = path.read_text().splitlines()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                yield node.name, (node.end_lineno or node.lineno) - node.lineno + 1
        return
    start = re.compile(r"^(\s*)(?:def|cpdef|cdef)\s(?!class\s)[^=]*?(\w+)\s*\(")
    for number, line in enumerate(lines):
        match = start.match(line)
        if not match:
            continue
        end = number
        for later in range(number + 1, len(lines)):
            text = lines[later]
            indent = len(text) - len(text.lstrip())
            if text.strip() and indent <= len(match[1]) and not text.lstrip().startswith((")", "#")):
                break
            if text.strip():
                end = later
        yield match[2], end - number + 1


def test_functions_are_short() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}: {name} has {count} lines"
        for _, path in sources()
        if path.suffix != ".pxd"
        for name, count in functions(path)
        if count >= FUNCTION_LINES
    ]
    assert not wrong, "\n".join(wrong)


def test_every_compiled_module_has_a_stub() -> None:
    missing = [path.name for path in sorted((PACKAGE / "_core").glob("*.pyx")) if not path.with_suffix(".pyi").exists()]
    assert not missing, f"without .pyi: {missing}"
    assert (PACKAGE / "py.typed").exists()


@pytest.mark.parametrize("path", sorted((PACKAGE / "_core").glob("*.pyi")), ids=lambda path: path.stem)
def test_stubs_name_what_the_module_has(path: Path) -> None:
    module = importlib.import_module(f"metastore._core.{path.stem}")
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef):
            assert callable(getattr(module, node.name)), node.name
        elif isinstance(node, ast.ClassDef) and not any("Protocol" in ast.unparse(base) for base in node.bases):
            made = getattr(module, node.name)
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    assert hasattr(made, item.name), f"{node.name}.{item.name}"


def test_compiled_modules_match_the_sources() -> None:
    installed = Path(metastore.__file__).parent / "_core"
    built = {path.name.partition(".")[0] for path in installed.glob("*.so")}
    assert {path.stem for path in (PACKAGE / "_core").glob("*.pyx")} <= built


def test_build_info() -> None:
    info = build_info()
    assert info["flavour"] in ("release", "debug")
    assert set(info) == {"flavour", "compiler", "cython", "nghttp2", "nghttp2_headers"}
    assert re.fullmatch(r"3\.\d+\.\d+", info["cython"]) and re.fullmatch(r"(gcc|clang) \d+.*", info["compiler"])
    assert re.fullmatch(r"\d+\.\d+\.\d+(-DEV)?", info["nghttp2"])


def test_version_is_the_same_everywhere() -> None:
    assert metastore.__version__ == PROJECT["project"]["version"] == importlib.metadata.version("metastore-kv")
    assert f"## {metastore.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_entry_points_are_declared_and_load() -> None:
    for group, names in (("metastore.storage", {"memory"}), ("metastore.codecs", {"snappy", "zstd"})):
        found = {item.name: item for item in importlib.metadata.entry_points(group=group)}
        assert names <= set(found)
        assert all(callable(item.load()) for item in found.values())
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="metastore")
    from metastore.cli.main import main

    assert script.load() is main


def test_importing_the_package_is_light() -> None:
    heavy = {"numpy", "prometheus_client", "google.protobuf", "metastore.embedded.node", "metastore.config", "rich", "ssl"}
    code = f"import sys, metastore; print(sorted(set(sys.modules) & {heavy!r}))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_lazy_exports() -> None:
    assert {"Config", "Node", "MetaStoreError", "errors"} <= set(dir(metastore))
    assert metastore.Config is importlib.import_module("metastore.config").Config
    assert metastore.errors is importlib.import_module("metastore.errors")
    assert metastore.Node is importlib.import_module("metastore.embedded.node").Node
    with pytest.raises(AttributeError, match="has no attribute 'Nodes'"):
        metastore.Nodes  # noqa: B018


def test_every_import_is_a_declared_dependency() -> None:
    homes = {
        "snappy": "python-snappy", "google": "protobuf", "prometheus_client": "prometheus-client", "metastore": "",
    }  # fmt: skip
    declared = {re.split(r"[<>=!~ ]", item)[0] for item in PROJECT["project"]["dependencies"]}
    used = set()
    for name, path in sources():
        if path.suffix == ".py" and name not in DEVELOPERS_ONLY:
            for _, target in imports(name, path):
                top = target.partition(".")[0]
                if top not in sys.stdlib_module_names and top:
                    used.add(homes.get(top, top))
    assert used - {""} <= declared


def test_a_source_distribution_can_be_built_from(tmp_path: Path) -> None:
    argv = [sys.executable, "setup.py", "-q", "sdist", "-d", str(tmp_path)]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        names = {name.partition("/")[2] for name in opened.getnames()}
    needed = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.suffix in SHIPPED}
    needed |= {"setup.py", "pyproject.toml", "README.md", "dev", "tox.ini", ".ci/run", "conf/metastore.toml"}
    assert not needed - names
    assert not [name for name in names if name.endswith(".so") or re.match(r"metastore/_core/.*\.c$", name)]
