#!/usr/bin/env python3
"""What puts cost in one process, and a key in memory, beside another checkout.

    python bench/before.py ../before                       a minute
    python bench/before.py ../before --keys 1000000

The other checkout is built, with its .venv. Both put new keys in any order and then these keys again, in turn (A B A B
...): in the store with its engine alone, 50 puts a write, and in an embedded node by `put_many`. CPU is that of the
calling thread for the store, and of all threads for the node. A key's memory is what the memory engine says it takes
for both versions. `bench/lists.py puts puts-rocksdb --tree ../before` does the same over the wire.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

from options import make_parser  # noqa: E402

from bench import check_build, print_machine  # noqa: E402

ENGINES = ("memory", "rocksdb")
ROWS = ("store, new key", "store, old key", "put_many, new key", "put_many, old key", "bytes a key")


def measured(tree: Path, engine: str, folder: Path, keys: int, value_size: int) -> list[float]:
    """Return the figures of ROWS of one checkout."""
    folder.mkdir()
    python = sys.executable if tree == HERE.parent else str(tree / ".venv/bin/python")
    command = [python, str(HERE / "embedded_puts.py"), engine, str(folder), str(keys), str(value_size)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3600, check=False)
    if done.returncode:
        raise SystemExit(f"{tree}: {done.stderr}")
    found = json.loads(done.stdout.splitlines()[-1])
    return [*found["store"], *found["process"], found["taken"]]


def main() -> None:
    parser = make_parser(__doc__, rounds=5, requests=0, value_size=200, seed=1)
    parser.add_argument("tree", type=Path, help="another checkout, with its .venv")
    parser.add_argument("--keys", type=int, default=100_000, help="keys (default: %(default)s)")
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    options = parser.parse_args()
    check_build()
    trees = {"other tree": options.tree.resolve(), "this tree": HERE.parent}
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name:
        print_machine(options, Path(name))
        for engine in options.engines:
            runs: dict[str, list[list[float]]] = {kind: [] for kind in trees}
            for number in range(options.rounds):
                for kind, tree in trees.items():
                    folder = Path(name) / f"{engine}-{kind}-{number}"
                    runs[kind].append(measured(tree, engine, folder, options.keys, options.value_size))
            print(f"\n{engine}, CPU us a put: medians of the other tree and this one, and other / this")
            for at, row in enumerate(ROWS):
                other, own = ([run[at] for run in runs[kind]] for kind in trees)
                if any(own):
                    ratio = statistics.median(a / b for a, b in zip(other, own, strict=True))
                    middle = statistics.median(other), statistics.median(own), min(other) / min(own)
                    print(
                        f"  {row:<20} {middle[0]:>10.2f} {middle[1]:>10.2f} {ratio:>8.3f}x {middle[2]:>8.3f}x (least)"
                    )


if __name__ == "__main__":
    main()
