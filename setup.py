"""Build one extension module for each .pyx under metastore/_core/.

Switches, all through the environment:

METASTORE_DEBUG=1   bounds checks, line tracing (coverage), own build folder, always rebuilt.
METASTORE_EXT=a,b   build only the named modules (for work on a single part).
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
CORE = ROOT / "metastore" / "_core"
DEBUG = os.environ.get("METASTORE_DEBUG", "") not in ("", "0")
ONLY = {name for name in os.environ.get("METASTORE_EXT", "").split(",") if name}
FLAVOUR = "debug" if DEBUG else "release"
NEEDS_NGHTTP2 = {"h2"}


def nghttp2_flags() -> tuple[list[str], list[str]]:
    """Compile and link flags of libnghttp2 from pkg-config; one clear sentence when it is missing."""
    missing = (
        "metastore needs the HTTP/2 library libnghttp2 to build: "
        "install the Debian packages libnghttp2-dev and pkg-config."
    )
    if shutil.which("pkg-config") is None:
        sys.exit(missing)
    found = [
        subprocess.run(["pkg-config", flag, "libnghttp2"], capture_output=True, text=True, check=False)
        for flag in ("--cflags", "--libs")
    ]
    if any(run.returncode != 0 for run in found):
        sys.exit(missing)
    return found[0].stdout.split(), found[1].stdout.split()


def extensions() -> list[Extension]:
    """One Extension per .pyx, sorted by name."""
    macros: list[tuple[str, str | None]] = [("METASTORE_DEBUG_BUILD", "1" if DEBUG else "0")]
    compile_args = ["-O3", "-g1", "-fno-strict-aliasing", "-Wno-unused-function"]
    if DEBUG:
        macros += [("CYTHON_TRACE", "1"), ("CYTHON_TRACE_NOGIL", "1"), ("CYTHON_USE_SYS_MONITORING", "0")]
        compile_args = ["-O1", "-g", "-fno-strict-aliasing", "-Wno-unused-function"]
    made = []
    for path in sorted(CORE.glob("*.pyx")):
        if ONLY and path.stem not in ONLY:
            continue
        extra, libs = (nghttp2_flags() if path.stem in NEEDS_NGHTTP2 else ([], []))
        made.append(
            Extension(
                f"metastore._core.{path.stem}",
                [str(path.relative_to(ROOT))],
                include_dirs=["metastore/_core"],
                define_macros=macros,
                extra_compile_args=compile_args + extra,
                extra_link_args=libs,
                depends=[str(p.relative_to(ROOT)) for p in sorted(CORE.glob("*.pxd")) + sorted(CORE.glob("*.h"))],
            )
        )
    return made


class BuildExt(build_ext):
    """build_ext that runs Cython into a folder of its own per flavour."""

    def initialize_options(self) -> None:
        super().initialize_options()
        self.build_temp = f"build/{FLAVOUR}/temp"
        self.force = DEBUG or flavour_changed()

    def finalize_options(self) -> None:
        from Cython.Build import cythonize

        self.distribution.ext_modules = cythonize(
            self.distribution.ext_modules,
            build_dir=f"build/{FLAVOUR}/cython",
            force=bool(self.force),
            annotate=False,
            compiler_directives={
                "language_level": 3,
                "embedsignature": True,
                "binding": True,
                "boundscheck": DEBUG,
                "wraparound": False,
                "initializedcheck": DEBUG,
                "cdivision": True,
                "linetrace": DEBUG,
                "profile": False,
            },
        )
        super().finalize_options()

    def run(self) -> None:
        super().run()
        stamp = ROOT / "build" / "flavour"
        stamp.parent.mkdir(exist_ok=True)
        stamp.write_text(FLAVOUR)


def flavour_changed() -> bool:
    """Whether the modules in the tree were last built with the other flavour."""
    stamp = ROOT / "build" / "flavour"
    return not stamp.exists() or stamp.read_text() != FLAVOUR


setup(ext_modules=extensions(), cmdclass={"build_ext": BuildExt})
