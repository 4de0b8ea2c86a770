"""Writes docs/configuration.md: its text stands here, its tables come from `metastore/settings.py`.

    .venv/bin/python docs/make_configuration.py

A test compares the page with what this makes.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from metastore.config import fields
from metastore.settings import NESTED, TABLES

PAGE = Path(__file__).with_name("configuration.md")

INTRODUCTION = """# Configuration

`.venv/bin/metastore --conf conf/metastore.toml` reads a TOML file. [conf/metastore.toml](../conf/metastore.toml) has
every key with its default. Environment variables `METASTORE_<TABLE>__<KEY>` override the file, and `--set
table.key=value` overrides both:

```sh
METASTORE_LOG__LEVEL=debug .venv/bin/metastore --conf conf/metastore.toml --set raft.batch_max_time=5ms
```

Durations are written like `"100ms"`, `"2s"`, `"1m30s"`. Sizes are written like `"64MiB"`, `"1.5MiB"`, or as a number of
bytes. Addresses are `"host:port"`, with IPv6 in brackets; port 0 asks for a free port. Unknown keys, wrong types and
impossible combinations are refused at the start, with file, line, key and reason.

[operations.md](operations.md) explains what stands behind the keys: leases of the leader, acknowledging before syncing,
memory, a full store, clients that misbehave, storage engines.
"""


def default_of(item: dataclasses.Field[object]) -> str:
    """The default of a setting as one writes it; empty when it follows from another setting."""
    default = item.metadata["default"]
    if default in ((), "", {}):
        return ""
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f'`"{default}"`' if isinstance(default, str) else f"`{default}`"


def table_of(name: str) -> str:
    """One table of the file as a Markdown section."""
    summary = (NESTED.get(name) or TABLES[name]).__doc__ or ""
    lines = [f"## `[{name}]`", "", sentence(summary)]
    if fields(name):
        lines += ["", "| key | default | allowed | meaning |", "|---|---|---|---|"]
    for key, item in fields(name).items():
        cells = (f"`{name}.{key}`", default_of(item), item.metadata["allowed"], item.metadata["meaning"])
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def sentence(summary: str) -> str:
    """The part of a docstring behind its `[table]:`, as a sentence."""
    text = " ".join(summary.partition(":")[2].split())
    return text[:1].upper() + text[1:]


def page() -> str:
    """The whole page."""
    places = [place for table in TABLES for place in (table, *(inner for inner in NESTED if inner.startswith(table)))]
    return "\n".join([INTRODUCTION, *map(table_of, places)])


if __name__ == "__main__":
    PAGE.write_text(page())
