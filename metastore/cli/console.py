"""Output of the command-line tools: tables for people, JSON for programs, and progress on a terminal."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

Progress = Callable[[str, int, int], object]


def size(nbytes: int) -> str:
    """A number of bytes: the exact number, followed by a rounded form for people."""
    value, unit = float(nbytes), ""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            break
        value /= 1024
    return f"{nbytes} ({value:.1f} {unit})" if unit != "B" else str(nbytes)


def facts(title: str, rows: Mapping[str, Any], as_json: bool = False) -> None:
    """Print names and values: a table on a terminal, plain lines elsewhere."""
    if as_json:
        print(json.dumps(rows))
    elif sys.stdout.isatty():
        _rich([str(name) for name in ("", title)], [[name, str(value)] for name, value in rows.items()])
    else:
        width = max(map(len, rows), default=0)
        for name, value in rows.items():
            print(f"{name:<{width}}  {value}".rstrip())


def table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Print rows under heads."""
    cells = [[str(cell) for cell in row] for row in rows]
    (_rich if sys.stdout.isatty() else _plain)(heads, cells)


def _plain(heads: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    widths = [max(map(len, column)) for column in zip(heads, *cells, strict=True)]
    for line in (heads, *cells):
        print("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip())


def _rich(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print a table on a terminal. If the terminal is too narrow, print plain lines: a cell that is broken cannot be
    copied."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for head in heads:
        table.add_column(head, overflow="fold")
    for row in rows:
        # The text is no markup, because keys may hold brackets.
        table.add_row(*map(Text, row))
    console = Console()
    # The table has a frame, and a space on both sides of each cell.
    if sum(max(map(len, column)) + 3 for column in zip(heads, *rows, strict=True)) >= console.width:
        _plain(heads, rows)
    else:
        console.print(table)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Yield a function to call with (what, bytes done, bytes in all). It shows progress if standard error is a
    terminal."""
    if not sys.stderr.isatty():
        yield lambda _what, _done, _total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        tasks: dict[str, Any] = {}

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done)

        yield tell
