"""Runs measurements on a real etcd and on a MetaStore node, in turn, and prints medians and ratios."""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from options import chosen
from support.processes import Etcd, Node, Server

import bench

#: (server, options, value) -> the figures of one run
Work = Callable[[Server, argparse.Namespace, bytes], tuple[float, ...]]


@dataclass(frozen=True)
class Measurement:
    """One measurement: what it does, a title, the heads of its columns, and settings of the node for it. Without
    `beside`, another checkout is not measured beside this one, because the work itself compares with it."""

    work: Work
    title: str
    columns: tuple[str, ...]
    settings: Mapping[str, str] | None = None
    beside: bool = True


OTHER = "other tree"
#: The default of 2 GiB would end a long run. etcd has as much.
QUOTA = '"8GiB"'


class OtherTree(Node):
    """A node that runs the code of another checkout, which has been built."""

    def __init__(self, tree: Path, data_dir: Path, settings: Mapping[str, str] | None = None) -> None:
        super().__init__(data_dir, settings)
        self.tree = tree.resolve()

    def argv(self) -> list[str]:
        return [str(self.tree / ".venv/bin/python"), *super().argv()[1:]]


def make(kind: str, where: Path, settings: Mapping[str, str] | None = None, tree: Path | None = None) -> Server:
    """Return a server that is not started. `kind` is etcd, metastore, or OTHER, which is the code in `tree`."""
    if kind == "etcd":
        return Etcd(where, extra=["--quota-backend-bytes", str(8 << 30)])
    settings = {"limits.quota_bytes": QUOTA, **(settings or {})}
    if kind == OTHER:
        assert tree is not None
        return OtherTree(tree, where, settings)
    return Node(where, settings)


def show(title: str, columns: tuple[str, ...], samples: dict[str, list[tuple[float, ...]]]) -> None:
    """Print medians of each server, their spread in percent, and medians of the paired ratios to the first server."""
    print(f"\n{title}\n  {'':<12}" + "".join(f" {name:>18}" for name in columns))
    first = next(iter(samples))
    for kind, runs in samples.items():
        print(f"  {kind:<12}" + "".join(f" {_figure(column):>18}" for column in zip(*runs, strict=True)))
        if kind != first:
            pairs = zip(samples[first], runs, strict=True)
            ratios = zip(*[[b / a if a else 0.0 for a, b in zip(x, y, strict=True)] for x, y in pairs], strict=True)
            print(f"  {'  / ' + first:<12}" + "".join(f" {statistics.median(column):>17.3f}x" for column in ratios))


def _figure(column: tuple[float, ...]) -> str:
    middle = statistics.median(column)
    spread = (max(column) - min(column)) / 2 / middle * 100 if middle else 0.0
    return f"{middle:.2f} +-{spread:.0f} %"


def run(
    options: argparse.Namespace, measurements: Mapping[str, Measurement], kinds: Sequence[str] = ("etcd", "metastore")
) -> None:
    """Do the measurements that `options.what` names, each `options.rounds` times on all servers in turn. The ratios are
    to the first of them."""
    value = random.Random(options.seed).randbytes(options.value_size)
    with tempfile.TemporaryDirectory(prefix="metastore-bench-", dir=options.dir) as name:
        folder = Path(name)
        bench.print_machine(options, folder)
        for what in chosen(options, list(measurements)):
            one = measurements[what]
            here = [kind for kind in kinds if kind != OTHER or one.beside]
            samples: dict[str, list[tuple[float, ...]]] = {kind: [] for kind in here}
            for number in range(options.rounds):
                for kind, runs in samples.items():
                    with make(
                        kind, folder / f"{kind}-{number}", one.settings, getattr(options, "tree", None)
                    ) as server:
                        runs.append(one.work(server, options, value))
                    server.discard()
            show(one.title, one.columns, samples)
