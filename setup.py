"""Build one extension module for each .pyx under metastore/_core/.

Switches, all through the environment:

METASTORE_DEBUG=1   bounds checks and line tracing (coverage); in a build folder of its own.
METASTORE_ASAN=1    AddressSanitizer; in a build folder of its own. Only a Python that was started with libasan in
                    LD_PRELOAD can load such modules (.ci/asan).
METASTORE_QUICK=1   compile with -O1, which takes half the time: for tests on one more Python, not for measurements.
METASTORE_EXT=a,b   build only the named modules (for work on a single part).
METASTORE_PROGRESS=FILE  write there how far the build is; pip keeps our output to itself.

Each flavour keeps its generated C and its modules under build/<flavour>/. What lies beside the sources is always
replaced by what was just asked for, whatever the file times say: a release module built yesterday would else
lose against a debug module built an hour ago, and the switch would not switch.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import threading
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CORE = ROOT / "metastore" / "_core"
DEBUG = os.environ.get("METASTORE_DEBUG", "") not in ("", "0")
ASAN = os.environ.get("METASTORE_ASAN", "") not in ("", "0")
QUICK = os.environ.get("METASTORE_QUICK", "") not in ("", "0")
ONLY = {name for name in os.environ.get("METASTORE_EXT", "").split(",") if name}
FLAVOUR = "asan" if ASAN else "debug" if DEBUG else "release"
SANITIZE = ["-fsanitize=address", "-fno-omit-frame-pointer"] if ASAN else []
TAG = f"{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
CHUNK = 8  # modules that Cython is given at a time: the steps in which its progress is told
NEEDS_NGHTTP2 = {"build", "h2", "h2_channel", "h2_link", "h2_request"}
NO_NGHTTP2 = (
    "metastore needs the HTTP/2 library libnghttp2 to build: install the Debian packages libnghttp2-dev and pkg-config."
)
DIRECTIVES = {
    "language_level": 3,
    "embedsignature": True,
    "binding": True,
    "boundscheck": DEBUG,
    "wraparound": False,
    "initializedcheck": DEBUG,
    "cdivision": True,
    "linetrace": DEBUG,
    "profile": False,
}


def extensions() -> list[Extension]:
    """One Extension per .pyx, sorted by name."""
    macros: list[tuple[str, str | None]] = [("METASTORE_DEBUG_BUILD", "1" if DEBUG else "0")]
    compile_args = ["-O1" if QUICK else "-O3", "-g1", "-fno-strict-aliasing", "-Wno-unused-function"]
    if DEBUG:
        # Coverage's tracer knows nothing of the monitoring events that Cython would send from Python 3.13 on.
        macros += [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
        # -g1 has the lines for a stack, which is all that is looked at; -g takes a third more time.
        compile_args = ["-O1", "-g1", "-fno-strict-aliasing", "-Wno-unused-function"]
    if ASAN:
        compile_args = ["-O1", "-g", "-fno-strict-aliasing", "-Wno-unused-function", *SANITIZE]
    headers = [str(path.relative_to(ROOT)) for path in sorted(CORE.glob("*.h"))]
    found = {path.stem: str(path.relative_to(ROOT)) for path in sorted(CORE.glob("*.pyx"))}
    if ONLY - set(found):
        sys.exit(f"METASTORE_EXT names no module of metastore/_core: {', '.join(sorted(ONLY - set(found)))}")
    return [
        Extension(
            f"metastore._core.{name}",
            [path],
            include_dirs=["metastore/_core"],
            define_macros=macros,
            extra_compile_args=compile_args,
            extra_link_args=SANITIZE,
            depends=headers,
        )
        for name, path in found.items()
        if not ONLY or name in ONLY
    ]


def nghttp2_flags() -> tuple[list[str], list[str]]:
    """Compile and link flags of libnghttp2 from pkg-config; one clear sentence when it is missing."""
    if shutil.which("pkg-config") is None:
        sys.exit(NO_NGHTTP2)
    found = [
        subprocess.run(["pkg-config", flag, "libnghttp2"], capture_output=True, text=True, check=False)
        for flag in ("--cflags", "--libs")
    ]
    if any(run.returncode != 0 for run in found):
        sys.exit(NO_NGHTTP2)
    return found[0].stdout.split(), found[1].stdout.split()


class Progress:
    """Counts the modules that a step is through with, for people who wait for it."""

    def __init__(self, done: str, total: int) -> None:
        self.done, self.total, self.count = done, total, 0
        self.lock = threading.Lock()

    def add(self, number: int) -> None:
        """So many more: each on the same line of a terminal, elsewhere a line for every tenth."""
        with self.lock:
            before, self.count = self.count, self.count + number
            last = self.count == self.total
            line = f"{self.done} {self.count} of {self.total} modules"
            with contextlib.suppress(OSError), open(os.environ.get("METASTORE_PROGRESS") or os.devnull, "a") as output:
                if output.isatty():
                    output.write(f"\r{line}" + "\n" * last)
                elif last or before // 10 != self.count // 10:
                    output.write(f"{line}\n")


def sources_of(name: str) -> list[Path]:
    """The files that a module is made of: its own, and each .pxd and .h that one of them takes in."""
    taken = re.compile(r"^.*\bcimport\s*\([^)]*\)|^.*\bcimport\b.*$|^.*\bextern from\b.*$|^\s*#\s*include\b.*$", re.M)
    known = {path.stem: path for path in [*sorted(CORE.glob("*.pxd")), *sorted(CORE.glob("*.h"))]}
    found = [CORE / f"{name}.pyx", *([known.pop(name)] if name in known else [])]
    for path in found:
        words = set(re.findall(r"\w+", "\n".join(taken.findall(path.read_text()))))
        found += [known.pop(stem) for stem in sorted(words & set(known))]
    return found


def fingerprint(name: str, *circumstances: object) -> str:
    """A hash of a module's sources and of what else shapes the result.

    Contents and not file times decide what is built again: a fresh clone, a fresh install of Cython or a switch of
    the flavour change times and no contents, a change of flags the other way round.
    """
    made = hashlib.sha256(repr(circumstances).encode())
    for path in sources_of(name):
        made.update(hashlib.sha256(path.read_bytes()).digest())
    return made.hexdigest()


class BuildExt(build_ext):
    """build_ext that keeps the flavours apart, and runs Cython only when modules are really built."""

    def finalize_options(self) -> None:
        super().finalize_options()
        self.build_temp = f"build/{FLAVOUR}/temp.{TAG}"
        if self.editable_mode:
            # pip hands over a temporary folder, and would compile everything anew each time.
            self.build_lib = f"build/{FLAVOUR}/lib.{TAG}"
        if self.parallel is None:
            self.parallel = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1

    def run(self) -> None:
        there = text(self.flavour_stamp())
        if self.inplace and ONLY and there not in ("", FLAVOUR):
            sys.exit(f"the tree holds {there} modules: build all of them once without METASTORE_EXT first.")
        super().run()

    def build_extensions(self) -> None:
        compile_flags, link_flags = nghttp2_flags()
        for ext in self.extensions:
            # Its header comes in through other modules' .pxd files too; only the users of its functions link to it.
            ext.extra_compile_args = [*ext.extra_compile_args, *compile_flags]
            if ext.name.rpartition(".")[2] in NEEDS_NGHTTP2:
                ext.extra_link_args = [*ext.extra_link_args, *link_flags]
        self.generate()
        every, force = self.extensions, self.force
        flags = [
            (ext.define_macros, ext.extra_compile_args, ext.extra_link_args, os.environ.get("CFLAGS")) for ext in every
        ]
        names = [ext.name.rpartition(".")[2] for ext in every]
        self.wanted = {ext.name: fingerprint(name, *flag) for ext, name, flag in zip(every, names, flags, strict=True)}
        self.extensions = [ext for ext in every if force or self.outdated(ext)]
        self.progress = Progress("compiled", len(self.extensions))
        self.force = True
        try:
            super().build_extensions()
        finally:
            self.extensions, self.force = every, force

    def made(self, ext: Extension) -> Path:
        """The stamp of a built module: of what it was made."""
        return Path(self.build_temp, f"{ext.name}.made")

    def outdated(self, ext: Extension) -> bool:
        """Whether a module has to be compiled."""
        return not Path(self.get_ext_fullpath(ext.name)).exists() or text(self.made(ext)) != self.wanted[ext.name]

    def build_extension(self, ext: Extension) -> None:
        super().build_extension(ext)
        self.made(ext).write_text(self.wanted[ext.name])
        self.progress.add(1)

    def generate(self) -> None:
        """Run Cython over what changed; the C code is the same for every Python."""
        from Cython import __version__ as version
        from Cython.Build import cythonize

        folder = Path("build", FLAVOUR, "cython")
        stale = []
        for ext in self.extensions:
            name = ext.name.rpartition(".")[2]
            made, stamp = folder / "metastore" / "_core" / f"{name}.c", folder / f"{name}.made"
            wanted = fingerprint(name, DIRECTIVES, version)
            if self.force or not made.exists() or text(stamp) != wanted:
                stale.append((ext, stamp, wanted))
            else:
                ext.sources = [str(made)]
        if not stale:
            return
        workers = int(self.parallel or 0) if len(stale) > 1 else 0
        progress = Progress("translated to C:", len(stale))
        sources = {}
        for at in range(0, len(stale), CHUNK):
            part = [ext for ext, _, _ in stale[at : at + CHUNK]]
            # Cython counts the modules of each part; we count those of all.
            quiet = bool(os.environ.get("METASTORE_PROGRESS"))
            options = {"build_dir": str(folder), "force": True, "nthreads": workers, "quiet": quiet}
            for ext in cythonize(part, compiler_directives=DIRECTIVES, **options):
                sources[ext.name] = ext.sources
            progress.add(len(part))
        for ext, stamp, wanted in stale:
            ext.sources = sources[ext.name]
            stamp.write_text(wanted)

    @staticmethod
    def flavour_stamp() -> Path:
        """The file that says which flavour lies beside the sources, for this Python."""
        return ROOT / "build" / f"flavour.{TAG}"

    def copy_extensions_to_source(self) -> None:
        """Replace each module atomically: a running node has the old file mapped into memory."""
        build_py = self.get_finalized_command("build_py")
        stamp = self.flavour_stamp()
        stamp.parent.mkdir(parents=True, exist_ok=True)
        if not ONLY:
            stamp.unlink(missing_ok=True)
        for ext in self.extensions:
            target, built = self._get_inplace_equivalent(build_py, ext)
            if not same_bytes(Path(built), Path(target)):
                shutil.copyfile(built, f"{target}.new")
                shutil.copymode(built, f"{target}.new")
                os.replace(f"{target}.new", target)
            self.place_generated(ext, Path(target))
        stamp.write_text(FLAVOUR)

    @staticmethod
    def place_generated(ext: Extension, target: Path) -> None:
        """The coverage plugin of Cython reads the lines that can be run out of the C file beside a debug module."""
        name = ext.name.rpartition(".")[2]
        beside = target.with_name(f"{name}.c")
        if DEBUG:
            shutil.copyfile(f"build/{FLAVOUR}/cython/metastore/_core/{name}.c", beside)
        else:
            beside.unlink(missing_ok=True)


def text(path: Path) -> str:
    """What a stamp says; empty when there is none."""
    return path.read_text() if path.exists() else ""


def same_bytes(one: Path, other: Path) -> bool:
    """Whether both files exist and hold the same bytes."""
    return one.exists() and other.exists() and one.read_bytes() == other.read_bytes()


setup(
    ext_modules=extensions(),
    cmdclass={"build_ext": BuildExt},
    options={"build": {"build_base": f"build/{FLAVOUR}"}},
)
