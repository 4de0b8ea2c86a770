"""The house rules: packages, sizes, stubs, entry points, and the shipped files."""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.metadata
import re
import subprocess
import sys
import tarfile
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from support import ROOT

import metastore
from metastore import ports
from metastore._core import build_info

PACKAGE = ROOT / "metastore"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())

# The order of imports: a package imports from itself and from those before it in ORDER. The modules directly in
# `metastore/` belong to the first rank, except the two entrances of the package. ARCHITECTURE shows the same order.
WORDS = "metastore"
ORDER = (
    WORDS, "_core", "proto", "replica", "api", "storage", "net", "peers", "snapshots", "member", "embedded", "cli",
    "testing",
)  # fmt: skip
# Modules that belong to another package than their place says, each with its reason.
DOORS = {
    "__main__": "cli",  # starts the command line
    "plugin": "testing",  # plug-ins are written with it
}
# No socket, file, thread, clock or randomness: a replica's decisions follow from its inputs.
PURE_PACKAGES = {WORDS, "_core", "replica", "api"}
PURE_TOO = {
    "snapshots.format", "snapshots.policy", "peers.acquaintances", "peers.founding", "peers.handshake", "peers.packing",
    "storage.readahead", "storage.reading", "member.assembly", "member.membership_client", "member.memory_plan",
    "member.waiters",
}  # fmt: skip
IMPURE = {
    "__main__": "a program",
    "_source": "looks for files before anything else is loaded",
    "_core.idle_poll": "threads that keep processors awake",
    "_core.brief_wait": "waits for a descriptor",
    "_core.loop_turn": "looks at the clock",
    "_core.h2_channel": "reads and writes the sockets of clients",
    "_core.peer_path": "reads and writes the sockets of the streams between members",
    "_core.wal_thread": "the thread that writes the log",
    "failpoints": "stops and kills the process where a test wants it to",
    "logs": "sets up the logging of a program",
    "proto.generate": "a tool of developers",
    "threads": "starts the threads of a node",
}
FORBIDDEN = {
    "asyncio", "concurrent", "fcntl", "io", "mmap", "multiprocessing", "os", "pathlib", "posix", "random", "secrets",
    "select", "selectors", "shutil", "signal", "socket", "ssl", "subprocess", "tempfile", "threading", "time",
    "libc.stdio", "libc.time", "cpython.time", "openmp",
}  # fmt: skip
# (module, import) pairs allowed against the rules, each with its reason.
ALLOWED = {
    ("_source", "os"),  # looks for an installed package before anything else is loaded
    ("metastore", "os"),  # the same
    ("metastore", "_source"),  # the same
    ("api.pb", "pathlib"),  # reads the message descriptors that lie in the package
    ("storage.contract", "testing.engine_contract"),  # the old place of the suite, for one release
    ("_core.mvcc_apply", "replica.alarms"),  # the alarms are part of the state that entries change
    # Whether a KeyboardInterrupt out of a plug-in is the plug-in's or the user's depends on the thread.
    ("_core.codec", "threads"),
    ("_core.engine_guard", "threads"),
    ("codecs", "threads"),
    ("entrypoints", "threads"),
}
# Tools for people who work on the project. The running program does not import them.
DEVELOPERS_ONLY = {"proto.generate"}
LINES = 800
SHIPPED = {".py", ".pyx", ".pxd", ".pyi", ".h", ".proto", ".binpb", ".typed"}
FUNCTION_LINES = 70


def sources() -> Iterator[tuple[str, Path]]:
    """Yield (dotted name below the package, path) of all .py, .pyx and .pxd files."""
    for path in sorted(PACKAGE.rglob("*.p[yx]*")):
        if path.suffix in (".py", ".pyx", ".pxd"):
            parts = path.relative_to(PACKAGE).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts) or "metastore", path


def package_of(name: str) -> str:
    """Return the package of a module, as ORDER has it."""
    if name in DOORS:
        return DOORS[name]
    first, dot, _ = name.partition(".")
    return first if dot or (PACKAGE / first).is_dir() else WORDS


def is_pure(name: str) -> bool:
    """Whether the module must not touch the outside world."""
    return name in PURE_TOO or (package_of(name) in PURE_PACKAGES and name not in IMPURE)


@functools.cache
def imports(name: str, path: Path, typing_too: bool = False) -> tuple[tuple[int, str], ...]:
    """Return (line, absolute dotted name) of each import and cimport. Imports for type checkers only are left out,
    unless `typing_too`."""
    return tuple(_imports(name, path, typing_too))


def _imports(name: str, path: Path, typing_too: bool) -> Iterator[tuple[int, str]]:
    package = ["metastore", *name.split(".")] if name != "metastore" else ["metastore"]
    if path.name != "__init__.py":
        package = package[:-1]
    if path.suffix in (".py", ".pyi"):
        yield from _python_imports(path, package, typing_too)
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


@functools.cache
def tree_of(path: Path) -> ast.Module:
    """Return the syntax tree of one of our files."""
    return ast.parse(path.read_text())


def _python_imports(path: Path, package: list[str], typing_too: bool) -> Iterator[tuple[int, str]]:
    tree = tree_of(path)
    typing_only = (
        set()
        if typing_too
        else {
            inner
            for node in ast.walk(tree)
            if isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
            for child in node.body
            for inner in ast.walk(child)
        }
    )
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
    """Return our module that an import means, which is the longest known prefix, or None for foreign modules."""
    parts = target.split(".")
    if parts[0] != "metastore":
        return None
    for end in range(len(parts), 1, -1):
        if ".".join(parts[1:end]) in names:
            return ".".join(parts[1:end])
    return "metastore"


def test_packages_import_only_from_those_before_them() -> None:
    names = {name for name, _ in sources()}
    assert {package_of(name) for name in names} == set(ORDER)
    wrong = []
    for name, path in sources():
        for line, target in imports(name, path):
            module = own_module(target, names)
            if not module or (name, module) in ALLOWED:
                continue
            mine, theirs = package_of(name), package_of(module)
            if ORDER.index(theirs) > ORDER.index(mine):
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {mine} imports {module}, of {theirs}")
    assert not wrong, "\n".join(wrong)


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Return the groups of modules that reach each other. Without circles of imports there are none."""
    reached: dict[str, set[str]] = {}
    for name in graph:
        seen, waiting = set[str](), [name]
        while waiting:
            for target in graph.get(waiting.pop(), set()) - seen:
                seen.add(target)
                waiting.append(target)
        reached[name] = seen
    groups = {frozenset(one for one in reached[name] if name in reached.get(one, ())) for name in graph}
    return sorted(sorted(group) for group in groups if len(group) > 1)


def test_no_circle_of_imports() -> None:
    """The rule covers imports that only type checkers follow: a reader of a module need not have read its users."""
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b", "d"}, "d": {"d"}}) == [["b", "c"]]
    names = {name for name, _ in sources()}
    # The stub of the package itself names its exports, and none of our modules may use these; the next test checks
    # that.
    paths = set(PACKAGE.rglob("*.pyi")) - {PACKAGE / "__init__.pyi"}
    stubs = [(".".join(path.relative_to(PACKAGE).with_suffix("").parts), path) for path in sorted(paths)]
    graph: dict[str, set[str]] = {name: set() for name in names}
    for name, path in [*sources(), *stubs]:
        targets = {own_module(target, names) for _, target in imports(name, path, typing_too=True)}
        graph[name] |= {target for target in targets if target and target != name}
    # The stub of `metastore.plugin` is the contract of plug-ins, and our stub of Engine points there.
    graph["_core.engine"].discard("plugin")
    groups = circles(graph)
    assert not groups, "\n".join(" <-> ".join(group) for group in groups)


def test_nothing_inside_uses_what_the_package_offers() -> None:
    """`from metastore import Node` is for users. Inside it would be a circle, at the first use or for type checkers."""
    offered = {f"metastore.{name}" for name in metastore.__all__} - {"metastore.errors", "metastore.__version__"}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {target}"
        for name, path in sources()
        for line, target in imports(name, path, typing_too=True)
        if target in offered
    ]
    assert not wrong, "import it from its module:\n" + "\n".join(wrong)


def test_the_core_asks_of_its_log_what_the_port_says() -> None:
    """ports.LogStore has exactly the calls that the modules of Raft make."""
    calls = {
        call
        for path in (PACKAGE / "_core").glob("raft*.pyx")
        for call in re.findall(r"\bstorage\.(\w+)\(|getattr\([\w.]*storage, \"(\w+)", path.read_text())
    }
    assert {first or second for first, second in calls} == {
        name for name, value in vars(ports.LogStore).items() if callable(value) and not name.startswith("_")
    }


# Facts that may be written down only in certain files: their pattern, and these files of the package.
SINGLE_SOURCES = {
    "names of alarms": (r"[\"'](NOSPACE|CORRUPT)[\"']", {"replica/alarms.py"}),
    "numbers of alarms": (r"(NOSPACE|CORRUPT)\w* *=[ ,\d]*\d", {"replica/alarms.py"}),
    "ids of KV methods": (r"(METHOD|KV)_(PUT|RANGE|TXN)\w* *(: *Final)? *= *\d", {"_core/kv_server.pxd"}),
    "keys of meta records": (
        r"b[\"']m?(conf_state|members|alarms|revision|compact|swept|applied)[\"']",
        {"replica/alarms.py", "replica/roster.py", "_core/engine.pyx", "_core/mvcc_keys.pyx"},
    ),
    "the parts of an address": (r"def split_address\b|\.rpartition\(\":\"\)$", {"addresses.py"}),
    "whom to tell how it ended": (r"Callable\[\[(errors\.)?MetaStoreError \| None\], object\]", {"ports.py"}),
    # A callback waits in one class. The others are a future, a part of a bulk put, and what `_core` itself waits with.
    "waiters": (
        r"^(cdef )?class \w+\(Waiter\)",
        {"member/waiters.py", "embedded/outcome.py", "_core/h2_request.pyx", "_core/h2_request.pxd",
         "_core/kv_server.pyx", "_core/waiter.pyx", "_core/waiter.pxd"},
    ),
    "the end of a turn": (r"\.(serve_late|next_deadline)\(", {"_core/replica_turn.pyx"}),
    "varints": (r">>= *7", {"_core/varint.pxd"}),
    "numbers as the machine has them": (
        r"memcpy\(&\w+, [^)]*[248]\)|memcpy\([^&)]*, &\w+, [248]\)", {"_core/le.pxd"}
    ),
}  # fmt: skip


# The same beside the package.
SINGLE_SOURCES_BESIDE = {
    "argument parsers of the benches": (r"ArgumentParser\(", {"bench/options.py", "tests/sim/__main__.py"}),
    "writing until a server ends": (r"def \w*write_until\w*\(", {"tests/support/load.py"}),
    "varints of the tests": (r">>= *7", {"tests/sim/varint.py"}),
}


def lines_with(pattern: str, paths: Iterable[Path], folder: Path) -> set[str]:
    """Where it stands: "file:line: text", the file by its path in `folder`."""
    return {
        f"{path.relative_to(folder)}:{number}: {line.strip()}"
        for path in paths
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if re.search(pattern, line)
    }


@pytest.mark.parametrize("what", [*SINGLE_SOURCES, *SINGLE_SOURCES_BESIDE])
def test_what_has_one_source(what: str) -> None:
    if what in SINGLE_SOURCES:
        pattern, homes = SINGLE_SOURCES[what]
        lines = lines_with(pattern, (path for _, path in sources()), PACKAGE)
    else:
        pattern, homes = SINGLE_SOURCES_BESIDE[what]
        lines = lines_with(pattern, (path for name in ("bench", "tests") for path in (ROOT / name).rglob("*.py")), ROOT)
        lines = {line for line in lines if not line.startswith(f"{Path(__file__).relative_to(ROOT)}:")}
    assert {line for line in lines if line.partition(":")[0] not in homes} == set()
    assert {line.partition(":")[0] for line in lines} == homes, "nothing is there any more: mend the pattern"


def test_the_page_shows_the_order_of_the_packages() -> None:
    """ARCHITECTURE's table has the packages of ORDER in its order, and says which are pure."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    rows = re.findall(r"^\| `metastore/(\w*)/?` \| (pure|)", text, re.MULTILINE)
    table = [(name or WORDS, kind == "pure") for name, kind in rows]
    assert table == [(name, name in PURE_PACKAGES) for name in ORDER]


def test_the_core_is_pure() -> None:
    wrong = []
    for name, path in sources():
        if not is_pure(name):
            continue
        for line, target in imports(name, path):
            parts = target.strip("<>").split(".")
            bad = [prefix for end in range(1, len(parts) + 1) if (prefix := ".".join(parts[:end])) in FORBIDDEN]
            # sys/mman.h gives memory, as malloc does.
            unclean = r"(sys/(?!mman)|unistd|fcntl|time\.h|stdio\.h|pthread|poll)"
            header = target.startswith("<") and re.match(unclean, parts[0])
            if (bad and (name, bad[0]) not in ALLOWED) or header or parts[0] == "posix":
                wrong.append(f"{path.relative_to(ROOT)}:{line}: {target}")
    assert not wrong, "clocks, files, sockets, threads and chance come in as arguments:\n" + "\n".join(wrong)


def test_what_is_pure_needs_only_what_is_pure() -> None:
    """Otherwise the outside world could come in through another module."""
    names = {name for name, _ in sources()}
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {module} is not pure"
        for name, path in sources()
        if is_pure(name)
        for line, target in imports(name, path)
        if (module := own_module(target, names)) and not is_pure(module) and (name, module) not in ALLOWED
    ]
    assert not wrong, "\n".join(wrong)


def test_the_import_scan_sees_all_forms(tmp_path: Path) -> None:
    text = (
        "from libc.time cimport time\nfrom .raft_log cimport (A,\n    B)\ncimport numpy as np\nimport os, random\n"
        "def f():\n    from metastore.embedded.node import Node\ncdef extern from \"unistd.h\" nogil:\n    pass\n"
    )  # fmt: skip
    path = tmp_path / "x.pyx"
    path.write_text(text)
    targets = {target for _, target in imports("_core.x", path)}
    assert targets == {
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
    """Yield (name, lines) of each function. Functions of .pyx are found by indentation, because ast knows no Cython."""
    lines = path.read_text().splitlines()
    if path.suffix == ".py":
        for node in ast.walk(tree_of(path)):
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
            thing = getattr(module, node.name)
            for item in node.body:
                if isinstance(item, ast.FunctionDef):
                    assert hasattr(thing, item.name), f"{node.name}.{item.name}"


def test_compiled_modules_match_the_sources() -> None:
    """A module that was compiled from a deleted file would hide a forgotten import."""
    installed = Path(metastore.__file__).parent / "_core"
    modules = {path.name.partition(".")[0] for path in installed.glob("*.so")}
    assert modules == {path.stem for path in (PACKAGE / "_core").glob("*.pyx")}, (
        "delete metastore/_core/*.so and build/"
    )


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
        points = {item.name: item for item in importlib.metadata.entry_points(group=group)}
        assert names <= set(points)
        assert all(callable(item.load()) for item in points.values())
    (script,) = importlib.metadata.entry_points(group="console_scripts", name="metastore")
    from metastore.cli.main import main

    assert script.load() is main


def loaded_by(code: str, names: set[str]) -> set[str]:
    """Return which of these modules a fresh interpreter has loaded after `code`."""
    code += f"; import sys; print(*sorted(set(sys.modules) & {names!r}))"
    return set(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split())


def test_importing_the_package_is_light() -> None:
    ours = {"metastore.embedded.node", "metastore.config"}
    heavy = {"numpy", "prometheus_client", "google.protobuf", "rich", "ssl", *ours}
    assert loaded_by("import metastore", heavy) == set()
    assert loaded_by("from metastore import Compare, KeyValue, Op, SortOrder, errors", heavy) == set()
    assert "metastore.embedded.node" in loaded_by("from metastore import Node", heavy)


def test_lazy_exports() -> None:
    assert set(metastore.__all__) <= set(dir(metastore))
    for name in metastore.__all__:
        value = getattr(metastore, name)
        assert isinstance(value, str) or (value.__doc__ and value.__name__.rpartition(".")[2] == name), name
    assert metastore.Config is importlib.import_module("metastore.config").Config
    assert metastore.errors is importlib.import_module("metastore.errors")
    with pytest.raises(AttributeError, match="has no attribute 'Nodes'"):
        metastore.Nodes  # noqa: B018


def test_type_checkers_find_the_lazy_exports_where_they_are() -> None:
    """`__init__.pyi` names what `__init__.py` loads, from the same modules."""
    exports = {"__version__": ""}
    for node in ast.parse((PACKAGE / "__init__.pyi").read_text()).body:
        if isinstance(node, ast.ImportFrom):
            for item in node.names:
                assert item.asname == item.name, "that is how a stub gives a name on"
                exports[item.name] = ".".join(["metastore", *([node.module] if node.module else [])])
    assert set(exports) == set(metastore.__all__)
    for name, module in exports.items():
        if module:
            assert getattr(importlib.import_module(module), name) is getattr(metastore, name), name


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
    with tarfile.open(archive) as sources:
        names = {name.partition("/")[2] for name in sources.getnames()}
    needed = {str(path.relative_to(ROOT)) for path in PACKAGE.rglob("*") if path.suffix in SHIPPED}
    needed |= {"setup.py", "pyproject.toml", "README.md", "dev", "tox.ini", ".ci/run", "conf/metastore.toml"}
    assert not needed - names
    assert not [name for name in names if name.endswith(".so") or re.match(r"metastore/_core/.*\.c$", name)]
