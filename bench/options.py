"""The options that several benchmarks have, each with one meaning. The benchmarks set the defaults."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

MEANINGS = {
    "rounds": "paired runs of each",
    "requests": "requests a run",
    "value_size": "bytes of a value",
    "seed": "of the values",
}


def make_parser(doc: str | None, what: Sequence[str] = (), **defaults: int) -> argparse.ArgumentParser:
    """Return a parser with --dir and the options of MEANINGS that `defaults` names. `what` has the measurements to
    choose from. `doc` is the benchmark's own docstring, whose first line says what it is."""
    made = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    if what:
        made.add_argument("what", choices=[*what, "all"], nargs="+")
    for name, default in defaults.items():
        meaning = f"{MEANINGS[name]} (default: %(default)s)"
        made.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=meaning)
    made.add_argument("--dir", type=Path, default=Path.cwd(), help="on the disk to measure (default: here)")
    return made


def chosen(options: argparse.Namespace, what: Sequence[str]) -> Sequence[str]:
    """Return the measurements that were asked for."""
    return what if "all" in options.what else options.what
