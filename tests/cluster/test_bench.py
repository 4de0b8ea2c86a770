"""The bench script runs and checks itself. Its figures are not tested; with sizes this small they mean nothing."""

from __future__ import annotations

import importlib
import itertools
import json
import re
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from support import ROOT

from metastore._core import build_info

BENCH = ROOT / "bench"

pytestmark = pytest.mark.node_only


def run_bench(program: str, folder: Path, *sizes: str, what: tuple[str, ...] = ("all",)) -> str:
    """Return the output of a script with these measurements. In a debug build it must refuse, and nothing is
    returned."""
    command = [sys.executable, str(BENCH / program), *what, "--rounds", "1", "--dir", str(folder), *sizes]
    result = subprocess.run(command, capture_output=True, text=True, timeout=240, check=False)
    assert not list(folder.iterdir()), "data was left behind"
    if build_info()["flavour"] != "release":
        assert result.returncode != 0
        assert "debug build" in result.stderr
        return ""
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_every_measurement_runs(tmp_path: Path) -> None:
    output = run_bench("bench.py", tmp_path, "--requests", "300", "--keys", "500")
    if output:
        assert output.count("metastore / etcd: req/s x") == 6
        assert "baseline / etcd: req/s x" in output
        assert "500 keys of 256 bytes" in output


def test_every_measurement_of_clusters_runs(tmp_path: Path) -> None:
    output = run_bench("cluster.py", tmp_path, "--requests", "300", "--kills", "1")
    if output:
        assert output.count("metastore / etcd: req/s x") == 6
        assert output.count("CPU of a follower, us/req: etcd") == 2
        assert "kill -9 of the leader" in output


def test_a_rolling_restart_is_measured(tmp_path: Path) -> None:
    output = run_bench("rolling.py", tmp_path, "--kinds", "metastore", what=())
    if output:
        assert output.count(" errors, longest gaps ") == 2 and "kill -9 of the leader" in output


def test_watchers_are_measured(tmp_path: Path) -> None:
    output = run_bench("watch.py", tmp_path, "--puts", "20", what=("latency",))
    if output:
        assert "1,000 watchers of the key" in output and output.count("/ etcd") == 1


def test_lists_are_measured(tmp_path: Path) -> None:
    output = run_bench("lists.py", tmp_path, "--keys", "2000", "--seconds", "0.1", what=("page", "ten", "whole"))
    if output:
        assert output.count("/ etcd") == 3


def other_tree(folder: Path) -> Path:
    """Return what looks like another checkout, and has the code of this one."""
    python = folder / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


def test_what_takes_more_than_a_load_is_measured_of_lists(tmp_path: Path) -> None:
    """On RocksDB, beside another checkout and without etcd."""
    data = tmp_path / "data"
    data.mkdir()
    some = ("waits", "compact", "puts", "start")
    sizes = ("--keys", "2000", "--seconds", "0.02", "--probes", "10", "--versions", "4", "--alone")
    tree = ("--tree", str(other_tree(tmp_path / "tree")))
    output = run_bench("lists.py", data, *sizes, *tree, what=tuple(f"{one}-rocksdb" for one in some))
    if output:
        # A start itself compares with the other checkout.
        assert output.count("metastore  ") == output.count("/ other tree") + 1 == len(some)


def test_puts_in_a_process_are_measured_beside_another_checkout(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    output = run_bench("before.py", data, "--keys", "2000", what=(str(other_tree(tmp_path / "tree")),))
    if output:
        ratios = [float(one) for one in re.findall(r" ([\d.]+)x \(", output)]
        assert len(ratios) == 9 and all(ratios)
        assert "bytes a key" in output and ratios[4] == 1


@pytest.mark.parametrize("index", ["with", "without"])
def test_what_is_counted_of_the_index_runs(index: str, tmp_path: Path) -> None:
    """valgrind takes too long for a test."""
    work = [sys.executable, str(BENCH / "index_cost.py"), "work", str(tmp_path / index), "any", index, "100", "50"]
    result = subprocess.run(work, capture_output=True, text=True, timeout=240, check=False)
    assert result.returncode == 0, result.stderr


def test_long_ranges_are_measured(tmp_path: Path) -> None:
    output = run_bench("ranges.py", tmp_path, "--keys", "2000", what=("unary-rocksdb",))
    if output:
        assert output.count("/ etcd") == 1


def test_snapshots_and_transfers_are_measured(tmp_path: Path) -> None:
    status = tmp_path / "packages" / "status"
    status.parent.mkdir()
    status.write_text("\n\n".join(f"Package: p{n}\nVersion: 1.{n}\nDescription: a\n more" for n in range(40)))
    folder = tmp_path / "data"
    folder.mkdir()
    sizes = ("--scale", "0.002", "--rate", "200", "--packages", str(status))
    output = run_bench("storage.py", folder, *sizes, what=("snapshot", "transfer"))
    if output:
        assert "% less" in output and "p99.9 meanwhile" in output
        assert "cut at" in output and "BEGAN ANEW" not in output


def test_the_matrix_is_measured_and_shown(tmp_path: Path) -> None:
    out, page = tmp_path / "out" / "tiny.json", tmp_path / "out" / "page.md"
    folder = tmp_path / "data"
    folder.mkdir()
    sizes = ("--requests", "1000", "--seconds", "0.4", "--rates", "0", "500", "--nodes", "1", "--delays", "0", "0.5")
    some = ("--steps", "baseline", "all", "--engines", "memory", "--workloads", "parallel", "compression")
    output = run_bench("matrix.py", folder, *sizes, *some, "--others", "etcd", "--out", str(out), what=())
    if not output:
        return
    # Two delays; etcd without the second; two workloads, each also at a steady rate.
    assert "20 samples in" in output
    page.write_text("# A page\n\n<!-- figures -->\nold\n<!-- end -->\nthe rest\n")
    command = [sys.executable, str(BENCH / "pictures.py"), str(out), "--into", str(page)]
    subprocess.run(command, check=True, timeout=120)
    text = page.read_text()
    assert "old" not in text and text.endswith("the rest\n") and "**Parallel, 1 node, each sync 0.5 ms slower**" in text
    pictures = re.findall(r"\((pictures/[\w.-]+)\)", text)
    assert len(pictures) >= 6 and all((page.parent / name).read_text().startswith("<?xml") for name in pictures)
    before = {name: (page.parent / name).read_bytes() for name in pictures}
    subprocess.run(command, check=True, timeout=120)
    assert page.read_text() == text and before == {name: (page.parent / name).read_bytes() for name in pictures}
    bad = subprocess.run([*command[:2], str(page)], capture_output=True, text=True, timeout=120, check=False)
    assert bad.returncode == 1 and "page.md: not a file of" in bad.stderr


def test_an_operation_is_measured_at_steady_rates(tmp_path: Path) -> None:
    out, folder = tmp_path / "out" / "rates.json", tmp_path / "data"
    folder.mkdir()
    sizes = ("--requests", "2000", "--seconds", "0.2", "--rates", "0", "1000", "--nodes", "1", "--steps", "default")
    output = run_bench("rates.py", folder, *sizes, "--floor", "--out", str(out), what=())
    if output:
        steps = ("etcd", "default", "floor", "gathered floor")
        assert [output.count(f"\n  {step} ") for step in steps] == [2, 2, 2, 1]
        assert output.count("x floor ") == 4 and output.count("x gathered floor ") == 2
        assert "\nput, nodes 1, 1,000 a second\n" in output and "\nput, nodes 1, one at a time\n" in output
        command = [sys.executable, str(BENCH / "pictures.py"), str(out)]
        shown = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout
        assert "**Put, 1 node, at 1,000 a second**" in shown and "| x floor | x gathered floor |" in shown


def test_the_floor_is_measured(tmp_path: Path) -> None:
    """One member and three, each without and with gathering: a client alone, and three kinds of arrivals."""
    sizes = ("--requests", "2000", "--seconds", "0.1", "--rates", "0", "2000", "--rounds", "1")
    command = [sys.executable, str(BENCH / "floor.py"), *sizes, "--arrivals", "even", "poisson", "h2load"]
    done = subprocess.run([*command, "--dir", str(tmp_path)], capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    rows = re.findall(
        r"^ +([13]) +(\d+) (\w+) +(\d+) +([\d,]+) +([\d.]+) +[\d.]+ +([\d.]+) ", done.stdout, re.MULTILINE
    )
    assert len(rows) == 2 * 2 * 4 and all(float(figure) for row in rows for figure in row[5:])
    assert not list(tmp_path.iterdir())


def test_calls_of_distant_members_are_measured(tmp_path: Path) -> None:
    output = run_bench("distance.py", tmp_path, "--requests", "200", "--clients", "10", "--round-trip", "4", what=())
    if output:
        assert "10 clients; latencies in units of 4 ms" in output
        for work, place in itertools.product(("range", "put"), ("leader", "follower")):
            assert re.search(rf"{work} +this tree +{place} +\d", output)


def imported(name: str) -> ModuleType:
    """Return a module of bench/."""
    sys.path.insert(0, str(BENCH))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(BENCH))


def test_a_steady_rate_is_measured_without_the_ramps() -> None:
    """50 connections that begin 3 ms after each other, and send 500 requests a second each."""
    h2load = imported("h2load")
    load = h2load.Load(50_000, 50, 10, 500, spread=True)
    starts = [3000 * connection + 2000 * number for connection in range(50) for number in range(1000)]
    first, last = h2load.window_of(starts, load.ramp)
    latencies = [5 if first <= start < last else 900 for start in starts]
    outcome = h2load.Outcome(0.0, 0.0, latencies, 0, starts, (first, last))
    found = outcome.during(first, last)
    assert set(found) == {5}
    assert len(found) / (last - first) * 1e6 == pytest.approx(25_000, rel=0.001)
    assert h2load.window_of([10, 20], load.ramp) == (10, 20)


def test_replies_of_other_stores_are_counted() -> None:
    peers = imported("peers")
    assert peers.redis_split(b"+OK\r\n+OK\r\n+O") == (2, 10)
    with pytest.raises(RuntimeError, match="MISCONF"):
        peers.redis_split(b"+OK\r\n-MISCONF no disk\r\n")
    good = struct.pack(">iiqi", 16, 1, 7, 0)
    assert peers.zookeeper_split(good + good + good[:9]) == (2, 40)
    with pytest.raises(RuntimeError, match="error -101"):
        peers.zookeeper_split(good + struct.pack(">iiqi", 16, 2, 7, -101))


def test_other_stores_are_measured_or_named(tmp_path: Path) -> None:
    """What is not installed is left out."""
    folder, out = tmp_path / "data", tmp_path / "out.json"
    folder.mkdir()
    peers = imported("peers")
    sizes = ("--requests", "1000", "--rates", "0", "--nodes", "1", "--delays", "0", "--engines", "memory")
    some = ("--steps", "all", "--workloads", "put", "--others", *peers.NODES, "--out", str(out))
    if run_bench("matrix.py", folder, *sizes, *some, what=()):
        steps = [sample["step"] for sample in json.loads(out.read_text())["samples"]]
        assert steps == [*(kind for kind in peers.NODES if not peers.missing(kind)), "all"]


def test_the_cost_over_the_number_of_keys_is_measured_and_shown(tmp_path: Path) -> None:
    out, page, folder = tmp_path / "out" / "keys.json", tmp_path / "out" / "page.md", tmp_path / "data"
    folder.mkdir()
    sizes = ("--keys", "100", "1000", "--most-etcd", "100", "--requests", "500", "--kinds", "memory", "etcd")
    works = ("--workloads", "overwrite", "read", "page", "count", "single", "--seconds", "0.02")
    if run_bench("keys.py", folder, *sizes, *works, "--out", str(out), what=()):
        page.write_text("<!-- figures -->\n\n### soak\n\nkept\n\n### keys\n\nreplaced\n\n<!-- end -->\n")
        command = [sys.executable, str(BENCH / "pictures.py"), str(out), "--into", str(page)]
        subprocess.run(command, check=True, timeout=120)
        text = page.read_text()
        keys = re.findall(r"^\| (?:all|etcd) \|.*?\| ([\d,]+) \|", text, re.MULTILINE)
        assert keys == ["100", "100", "1,000"] * 5
        for name in ("overwrite", "read", "page", "count", "single"):
            assert f"(pictures/keys-{name}-1-0-keys.svg)" in text
        # A run of another name stays.
        assert text.startswith("<!-- figures -->\n\n### soak\n\nkept\n\n### keys\n\nRun of ") and "replaced" not in text


def test_what_goes_to_a_follower_is_shown_byte_for_byte(tmp_path: Path) -> None:
    some = ("--settings", "zstd", "--values", "metadata", "--rate", "2000", "--seconds", "0.5")
    output = run_bench("bandwidth.py", tmp_path, *some, what=())
    if output:
        figures = {name: float(figure) for name, figure in re.findall(r"^  (\w.*?) +(-?[\d.]+)$", output, re.MULTILINE)}
        rows = list(figures.values())
        assert rows[:3] == [23, 4, 12] and sum(rows[:7]) == pytest.approx(figures["bytes a put"], abs=0.05)


def test_stores_in_process_are_measured(tmp_path: Path) -> None:
    output = run_bench("inprocess.py", tmp_path, "--requests", "300")
    if output:
        kinds = ("bare sync", "sqlite", "lmdb", "rocksdict", "metastore memory", "metastore rocksdb", "the same, cold")
        assert [output.count(f"\n  {kind} ") for kind in kinds] == [1, 4, 4, 4, 7, 7, 7]


def perf_works(folder: Path) -> bool:
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-o", str(folder / "probe"), "true"]
    try:
        return subprocess.run(command, capture_output=True, timeout=60, check=False).returncode == 0
    except OSError:
        return False


def test_the_stages_of_a_put_are_shown(tmp_path: Path) -> None:
    """Where perf does not work, the program says so and which package it is in."""
    folder = tmp_path / "data"
    folder.mkdir()
    if perf_works(tmp_path) or build_info()["flavour"] != "release":
        output = run_bench("breakdown.py", folder, "--requests", "20000", "--nodes", "1", what=("put",))
        if output:
            stages = dict(re.findall(r"^  (.+?) +([\d.]+) us", output, re.MULTILINE))
            assert {"HTTP/2 and replies", "socket", "apply", "interpreter"} < set(stages)
            assert sum(map(float, stages.values())) == pytest.approx(2 * float(stages["all"]), abs=0.2)
            assert float(stages.get("other", 0)) < float(stages["all"]) / 20
    else:
        command = [sys.executable, str(BENCH / "breakdown.py"), "put", "--dir", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
        assert done.returncode == 1 and "perf" in done.stderr
