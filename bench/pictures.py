#!/usr/bin/env python3
"""Tables and pictures of the files that bench/matrix.py and bench/soak.py wrote.

    python bench/pictures.py build/bench/*.json                      prints the tables
    python bench/pictures.py build/bench/*.json --into docs/performance.md

With --into, the tables go between the lines `<!-- figures -->` and `<!-- end -->` of a page, and the pictures into the
folder `pictures` beside it. A run of the same name that is there already is replaced, others stay. Pictures need
matplotlib (`pip install metastore[bench]`).
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE.parent / "tests")]

import results  # noqa: E402
from options import make_parser  # noqa: E402
from results import Cell  # noqa: E402

BEGIN, END = "<!-- figures -->", "<!-- end -->"
FIRST = "baseline"


def sentence(content: dict[str, Any]) -> str:
    """Return what a reader must know about a run to judge its figures."""
    machine, versions, options = content["machine"], content["versions"], content["options"]
    rounds = options.get("rounds", 1)
    size = f"{rounds} round{'s' if rounds > 1 else ''}, {options.get('requests', '-')} requests"
    return (
        f"Run of {content['began']}: {machine['processors']} x {machine['model']}, "
        f"{machine['memory_bytes'] / 1e9:.0f} GB, Linux {machine['kernel']}; an append of 4 KiB and its fdatasync took "
        f"{machine['sync_us']} us; load {machine['load']} at its beginning. Python {versions['python']}, "
        f"etcd {versions['etcd']}, {versions['h2load']}. {size}, values of {options.get('value_size', '-')} bytes, "
        f"seed {options.get('seed', '-')}. Load generator and servers share the processors."
    )


def figure(value: float) -> str:
    """Return a number with three digits that mean something."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if value < 10 else f"{value:.1f}"


def row(*columns: object) -> str:
    return "| " + " | ".join(str(column) for column in columns) + " |"


def group(cells: Iterable[Cell]) -> Iterator[tuple[str, list[Cell]]]:
    """Yield a title and the cells of each table: one workload, number of nodes, delay and rate."""
    tables: dict[str, list[Cell]] = {}
    for cell in cells:
        one = cell.sample
        title = f"{one.workload}, {one.nodes} node{'s' if one.nodes > 1 else ''}"
        title += f", at {one.asked:,} a second" if one.asked else ""
        title += f", each sync {one.delay_ms:g} ms slower" if one.delay_ms else ""
        title += ", over the number of keys" if one.keys else ""
        tables.setdefault(title, []).append(cell)
    yield from tables.items()


def table(cells: list[Cell]) -> Iterator[str]:
    """Yield the lines of one table. The ratio is to the baseline on the same engine, and to etcd."""
    more = sorted({name for cell in cells for name in cell.sample.more})
    keys = cells[0].sample.keys != 0
    heads = (
        "step",
        "engine",
        *(["keys"] if keys else []),
        "a second",
        "noise",
        "/ baseline",
        "/ etcd",
        "p50 ms",
        "p90 ms",
        "p99 ms",
        "CPU us",
        *more,
    )
    yield row(*heads)
    yield row(*["---"] * len(heads))
    rates = {(cell.sample.step, cell.sample.engine, cell.sample.keys): cell.sample.rate for cell in cells}
    for cell in cells:
        one = cell.sample
        # An older file has an etcd beside each engine.
        etcd = rates.get(("etcd", results.OWN, one.keys), rates.get(("etcd", one.engine, one.keys), 0.0))
        ratios = [rates.get((FIRST, one.engine, one.keys), 0.0), etcd]
        yield row(
            one.step,
            one.engine,
            *([f"{one.keys:,}"] if keys else []),
            figure(one.rate),
            f"{cell.spread:.0f} %",
            *(f"{one.rate / ratio:.1f}x" if ratio and not one.asked else "-" for ratio in ratios),
            *(figure(value) if value else "-" for value in (one.p50_ms, one.p90_ms, one.p99_ms)),
            figure(one.cpu_us),
            *(figure(one.more[name]) if name in one.more else "-" for name in more),
        )


def tables(content: dict[str, Any], cells: list[Cell]) -> Iterator[str]:
    """Yield the Markdown of one run."""
    yield sentence(content)
    for title, some in group(cells):
        yield ""
        yield f"**{title[0].upper()}{title[1:]}**"
        yield ""
        yield from table(some)


# ---- pictures


def draw(folder: Path, name: str, title: str, fill: Callable[[Any], None]) -> str:
    """Draw one picture, and return the Markdown that shows it."""
    import matplotlib
    from matplotlib.figure import Figure

    folder.mkdir(parents=True, exist_ok=True)
    # The same run must give the same bytes, or every commit would change every picture.
    matplotlib.rcParams["svg.hashsalt"] = name
    picture = Figure(figsize=(8, 4.5), layout="constrained")
    axes = picture.subplots()
    fill(axes)
    axes.set_title(title)
    axes.grid(alpha=0.3)
    picture.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return f"![{title}](pictures/{name}.svg)"


def ladder(cells: list[Cell]) -> Callable[[Any], None]:
    """Bars of the rates of all steps, one colour for each engine; the scale is logarithmic."""

    def fill(axes: Any) -> None:
        engines = list(dict.fromkeys(cell.sample.engine for cell in cells))
        steps = list(dict.fromkeys(cell.sample.step for cell in cells))
        for at, engine in enumerate(engines):
            rates = {cell.sample.step: cell.sample.rate for cell in cells if cell.sample.engine == engine}
            wide = 0.8 / len(engines)
            places = [n + (at - (len(engines) - 1) / 2) * wide for n, step in enumerate(steps) if step in rates]
            bars = axes.bar(places, [rates[step] for step in steps if step in rates], 0.95 * wide, label=engine)
            axes.bar_label(bars, fmt="{:,.0f}", fontsize=7)
        axes.set_xticks(range(len(steps)), steps)
        axes.set_yscale("log")
        axes.set_ylabel("operations a second")
        axes.legend()

    return fill


def name_of(sample: results.Sample) -> str:
    """Return what a line of a picture is called."""
    return sample.step if sample.engine == results.OWN else f"{sample.step}, {sample.engine}"


def lines(
    cells: list[Cell], x: tuple[str, str], y: str, curves: Sequence[tuple[str, str, str]]
) -> Callable[[Any], None]:
    """Lines of some figures over another one, one colour for each step and engine. `x` is a field and its label, `y` a
    label; a curve is a field, its style, and what is put behind the name."""

    def fill(axes: Any) -> None:
        names = list(dict.fromkeys(name_of(cell.sample) for cell in cells))
        for at, name in enumerate(names):
            some = [cell.sample for cell in cells if name_of(cell.sample) == name]
            for field, style, text in curves:
                points = sorted((getattr(one, x[0]), getattr(one, field)) for one in some if getattr(one, field))
                if points:
                    axes.plot(*zip(*points, strict=True), style, color=f"C{at % 10}", label=f"{name}{text}")
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel(x[1])
        axes.set_ylabel(y)
        axes.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))

    return fill


LATENCIES = (("p50_ms", "o-", ", p50"), ("p90_ms", "s--", ", p90"), ("p99_ms", "^:", ", p99"))
COST = (("cpu_us", "o-", ""),)


def pictures(folder: Path, stem: str, cells: list[Cell]) -> Iterator[str]:
    """Draw the pictures of one run of the matrix, and yield the Markdown that shows them."""
    for title, some in group(cell for cell in cells if not cell.sample.asked and not cell.sample.keys):
        if len({cell.sample.step for cell in some}) > 1:
            name = f"{stem}-{re.sub(r'[^a-z0-9]+', '-', title.lower())}"
            yield draw(folder, name, title, ladder(some))
    several: dict[tuple[str, int, float, bool], list[Cell]] = {}
    for cell in cells:
        one = cell.sample
        several.setdefault((one.workload, one.nodes, one.delay_ms, one.keys > 0), []).append(cell)
    for (workload, nodes, delay, keys), some in several.items():
        name = f"{stem}-{workload}-{nodes}-{delay:g}".replace(".", "_")
        title = f"{workload}, {nodes} node{'s' if nodes > 1 else ''}"
        title += f", each sync {delay:g} ms slower" if delay else ""
        if keys:
            fill = lines(some, ("keys", "keys"), "CPU us an operation", COST)
            yield draw(folder, f"{name}-keys", f"{title}: cost over the number of keys", fill)
        # Steps that were measured at one rate only would be points.
        steady = {name_of(cell.sample) for cell in some if cell.sample.asked}
        some = [cell for cell in some if name_of(cell.sample) in steady]
        if some:
            x = ("rate", "operations a second")
            yield draw(folder, f"{name}-latency", f"{title}: latency over throughput", lines(some, x, "ms", LATENCIES))
            fill = lines(some, x, "CPU us an operation", COST)
            yield draw(folder, f"{name}-cpu_us", f"{title}: cost over throughput", fill)


def soak_pictures(folder: Path, stem: str, series: dict[str, list[float]]) -> Iterator[str]:
    """Draw each series of a soak over its time, and yield the Markdown that shows them."""
    minutes = [second / 60 for second in series["seconds"]]
    for name, values in series.items():
        if name != "seconds":

            def fill(axes: Any, name: str = name, values: list[float] = values) -> None:
                axes.plot(minutes, values)
                axes.set_xlabel("minutes")
                axes.set_ylabel(name)
                axes.set_ylim(bottom=0)

            yield draw(folder, f"{stem}-{name}", f"{stem}: {name}", fill)


def put_into(page: Path, runs: dict[str, str]) -> None:
    """Put the texts of runs between the two marks of a page, each under its name, and keep what is there of other runs.
    Raises SystemExit if the page has no marks."""
    before, found, rest = page.read_text().partition(BEGIN)
    middle, ended, after = rest.partition(END)
    if not found or not ended:
        raise SystemExit(f"{page}: the lines {BEGIN} and {END} are missing")
    there = re.findall(r"^### (\S+)\n(.*?)(?=^### |\Z)", middle, re.MULTILINE | re.DOTALL)
    sections = {**{name: text.strip() for name, text in there}, **runs}
    text = "\n\n".join(f"### {name}\n\n{text}" for name, text in sections.items())
    page.write_text(f"{before}{BEGIN}\n\n{text}\n\n{END}{after}")


def main() -> None:
    parser = make_parser(__doc__)
    parser.add_argument("files", nargs="+", type=Path, help="files of runs")
    parser.add_argument("--into", type=Path, help="a page with the two marks")
    options = parser.parse_args()
    runs: dict[str, str] = {}
    if options.into is not None:
        # Pictures that an earlier run had and this one has not would stay for ever.
        for path in options.files:
            for old in (options.into.parent / "pictures").glob(f"{path.stem}-*.svg"):
                old.unlink()
    for path in options.files:
        content, samples = results.read(path)
        cells = list(results.cells(samples))
        out = [*tables(content, cells)]
        if options.into is not None:
            folder = options.into.parent / "pictures"
            out += ["", *pictures(folder, path.stem, cells)]
            if "series" in content:
                out += ["", *soak_pictures(folder, path.stem, content["series"])]
        runs[path.stem] = "\n".join(out)
    if options.into is None:
        print("\n\n".join(f"### {name}\n\n{text}" for name, text in runs.items()))
    else:
        put_into(options.into, runs)


if __name__ == "__main__":
    main()
