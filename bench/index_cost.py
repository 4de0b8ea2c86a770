#!/usr/bin/env python3
"""What RocksDB's index of living keys costs a put, in instructions of the store and its engine.

    python bench/index_cost.py                        a few minutes
    python bench/index_cost.py --tree ../before       the same of another checkout, with its .venv

New keys come in any order or in ascending order, and old keys are those of the first kind again; 50 puts are one
write, and nobody rests. valgrind (Debian: valgrind) counts the instructions of the thread that writes, once with the
index and once with one that does nothing. --keys puts come before those that are counted, so that stretches are as
long as they are later on. Processor time differs by more from run to run than what is looked for here.
"""

from __future__ import annotations

import random
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
KINDS = {"any": "new keys in any order", "ascending": "new keys in ascending order", "old": "old keys"}
VALUE = 200
GOAL = 0.97


class NoIndex:
    """In place of the index."""

    border, keys, faults, due = b"k", 0, 0, 0

    def changes(self, batch: Any, engine: Any) -> list[Any]:
        return []


def work(folder: str, kind: str, index: str, keys: int, counted: int) -> None:
    """Fill an engine, and put so many keys more."""
    from embedded_puts import in_store

    from metastore.storage.engines.rocksdb import RocksEngine

    draw = random.Random(1)
    names = [b"index/%012d" % n for n in range(2 * keys)]
    if kind != "ascending":
        draw.shuffle(names)
    if kind == "old":
        names[keys:] = names[:keys]
    engine: Any = RocksEngine(folder)
    while engine.reclaim():
        pass
    if index == "without":
        engine.stretches = NoIndex()
    in_store(engine, [[(name, draw.randbytes(VALUE)) for name in names][: keys + counted]])


def instructions(tree: Path, kind: str, index: str, keys: int, counted: int) -> int:
    """Return how many instructions `work` takes in its thread."""
    python = sys.executable if tree == HERE.parent else str(tree / ".venv/bin/python")
    with tempfile.TemporaryDirectory(prefix="metastore-bench-") as name:
        out = f"{name}/out"
        command = ["valgrind", "--tool=callgrind", "--separate-threads=yes", f"--callgrind-out-file={out}"]
        command += [python, str(HERE / "index_cost.py"), "work", f"{name}/engine", kind, index, str(keys), str(counted)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
        if done.returncode:
            raise SystemExit(done.stderr)
        found = re.search(r"^totals: (\d+)", Path(f"{out}-01").read_text(), re.MULTILINE)
        assert found is not None, "valgrind wrote no totals"
        return int(found[1])


def main() -> None:
    from options import make_parser

    from bench import check_build

    parser = make_parser(__doc__, rounds=1, requests=0, value_size=VALUE, seed=1)
    parser.add_argument("--keys", type=int, default=20_000, help="puts that are counted (default: %(default)s)")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--tree", type=Path, default=HERE.parent, help="the checkout that is measured")
    options = parser.parse_args()
    check_build()
    runs = [(kind, index, n) for kind in options.kinds for index in ("with", "without") for n in (0, options.keys)]
    with ThreadPoolExecutor(2) as pool:
        totals = list(pool.map(lambda run: instructions(options.tree.resolve(), *run[:2], options.keys, run[2]), runs))
    print("| puts of | instructions | of these for the index | without it / with it |\n|---|---|---|---|")
    for at, kind in enumerate(options.kinds):
        none, all_, bare, plain = totals[4 * at : 4 * at + 4]
        used, least = (all_ - none) / options.keys, (plain - bare) / options.keys
        print(f"| {KINDS[kind]} | {used:,.0f} | {used - least:,.0f} | {least / used:.3f} (goal {GOAL}) |")


if __name__ == "__main__":
    if sys.argv[1:2] == ["work"]:
        work(*sys.argv[2:5], *map(int, sys.argv[5:7]))
    else:
        main()
