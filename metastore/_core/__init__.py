"""Compiled hot paths."""

from __future__ import annotations


def build_info() -> dict[str, str]:
    """What the compiled modules are.

    Keys: `flavour` ("release" or "debug": bounds checks and line tracing), `compiler`, `cython` (the version that
    made the C code), `nghttp2` (the library loaded now) and `nghttp2_headers` (the one compiled against).

    Raises ImportError when the modules were not built.
    """
    from metastore._core import build

    return build.build_info()
