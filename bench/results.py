"""The file of one run of a benchmark: the machine, the versions, the options, and every raw sample.

The file is JSON with these fields:

    version   1
    began     the time of the run, ISO 8601, UTC
    machine   processors, model, memory_bytes, kernel, file_system, sync_us (an append of 4 KiB and its fdatasync), load
    versions  of the programs and libraries that took part
    options   what was asked for, seed and sizes included
    samples   a list of objects, see Sample
    series    of a soak only: "seconds", and the values of each figure at these times
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import statistics
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import h2load
from support.processes import etcd_binary

import bench

VERSION = 1
#: The engine of other stores.
OWN = "its own"


@dataclass(frozen=True)
class Sample:
    """One measured run.

    `step` is a step of the ladder, the name of another store, or a floor (bench/floor.py). `asked` is the rate that the
    load kept, in operations per second (0: as fast as the server answers), and `rate` the rate that was reached.
    Latencies are in milliseconds (0: not measured). `cpu_us` is the processor time of all members, in microseconds an
    operation. `more` has figures that only one workload has. `keys` is how many keys there were, where that is what is
    varied.
    """

    workload: str
    step: str
    engine: str
    nodes: int
    delay_ms: float
    asked: int
    round: int
    rate: float
    p50_ms: float = 0.0
    p90_ms: float = 0.0
    p99_ms: float = 0.0
    cpu_us: float = 0.0
    more: dict[str, float] = field(default_factory=dict)
    keys: int = 0
    mean_ms: float = 0.0

    @property
    def cell(self) -> tuple[str, str, str, int, float, int, int]:
        """What was measured: the samples of one cell are the rounds of one measurement."""
        return self.workload, self.step, self.engine, self.nodes, self.delay_ms, self.asked, self.keys


@cache
def machine(folder: Path) -> dict[str, Any]:
    """Return what the figures depend on. `folder` lies on the disk that is measured."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    disk = subprocess.run(["stat", "-f", "-c", "%T", str(folder)], capture_output=True, text=True, check=True)
    return {
        "processors": os.cpu_count(),
        "model": model[1] if model else platform.machine(),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "kernel": platform.release(),
        "file_system": disk.stdout.strip(),
        "sync_us": round(bench.sync_latency(folder)),
        "load": round(os.getloadavg()[0], 2),
    }


def printed(*command: str) -> str:
    """Return the first line that a program prints about its version; "" if there is no such program."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return ""
    return (done.stdout or done.stderr).partition("\n")[0]


@cache
def versions() -> dict[str, str]:
    """Return the versions of everything that takes part, or may."""
    jar = next(Path("/usr/share/java").glob("zookeeper-3*.jar"), None)
    redis = re.search(r"v=([\d.]+)", printed("redis-server", "--version"))
    others = {
        "redis": redis[1] if redis else "",
        "zookeeper": jar.stem.removeprefix("zookeeper-") if jar else "",
        **{name: _package(name) for name in ("pysyncobj", "kazoo")},
    }
    return {
        "metastore": bench.check_build(),
        "python": platform.python_version(),
        "etcd": printed(etcd_binary(), "--version").removeprefix("etcd Version: "),
        "h2load": h2load.version(),
        **{name: version for name, version in others.items() if version},
    }


def _package(name: str) -> str:
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return ""


def write(
    path: Path,
    folder: Path,
    options: dict[str, Any],
    samples: Iterable[Sample] = (),
    series: dict[str, list[float]] | None = None,
) -> None:
    """Write the file of one run. A reader never sees a part of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "version": VERSION,
        "began": options["began"],
        "machine": machine(folder),
        "versions": versions(),
        "options": {key: value for key, value in options.items() if key != "began"},
        "samples": [asdict(sample) for sample in samples],
        **({} if series is None else {"series": series}),
    }
    part = path.with_suffix(".part")
    part.write_text(json.dumps(content, indent=1) + "\n")
    part.replace(path)


def now() -> str:
    """Return the time in UTC, ISO 8601."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def read(path: Path) -> tuple[dict[str, Any], list[Sample]]:
    """Return a file's content and its samples. Raises SystemExit for a file that is no run of a benchmark."""
    try:
        content = json.loads(path.read_text())
        if content["version"] != VERSION:
            raise SystemExit(f"{path}: version {content['version']}, this program reads {VERSION}")
        return content, [Sample(**sample) for sample in content["samples"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SystemExit(f"{path}: not a file of bench/matrix.py or bench/soak.py: {error!r}") from error


@dataclass(frozen=True)
class Cell:
    """The median of each figure over the rounds of one measurement, and the spread of the rate in percent."""

    sample: Sample
    spread: float
    rounds: int


def cells(samples: Iterable[Sample]) -> Iterator[Cell]:
    """Put the rounds of each measurement together, in the order in which the measurements began."""
    groups: dict[tuple[str, str, str, int, float, int, int], list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.cell, []).append(sample)
    for group in groups.values():
        figures = {
            name: statistics.median(getattr(sample, name) for sample in group)
            for name in ("rate", "mean_ms", "p50_ms", "p90_ms", "p99_ms", "cpu_us")
        }
        more = {name: statistics.median(sample.more[name] for sample in group) for name in group[0].more}
        rates = [sample.rate for sample in group]
        spread = (max(rates) - min(rates)) / 2 / figures["rate"] * 100 if figures["rate"] else 0.0
        *what, keys = group[0].cell
        middle = Sample(*what, round=0, more=more, keys=keys, **figures)
        yield Cell(middle, spread, len(group))
