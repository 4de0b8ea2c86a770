#!/usr/bin/env python3
"""Loads this machine's Debian package database into a store that speaks the etcd v3 API, and asks it back.

    python examples/dpkg_packages.py --endpoint 127.0.0.1:2379

Each field of each package becomes a key, such as /dpkg/bash/version. Then the packages are asked back by prefix and
compared with the file, and a summary is printed. It talks through aetcd and runs against MetaStore or any other etcd.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import aetcd
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

STATUS = Path("/var/lib/dpkg/status")
PARALLEL = 64


def stanzas(text: str) -> Iterator[dict[str, str]]:
    """The packages in the text of a dpkg status file: field name (lower case) -> value, in the file's order."""
    for block in text.split("\n\n"):
        fields: dict[str, str] = {}
        name = ""
        for line in block.splitlines():
            if line[:1] in (" ", "\t"):
                fields[name] += f"\n{line.strip()}"
            else:
                name, _, value = line.partition(":")
                name = name.lower()
                fields[name] = value.strip()
        if "package" in fields:
            yield fields


def keys_of(packages: list[dict[str, str]], prefix: str) -> dict[bytes, bytes]:
    """One key for each field of each package. Packages of several architectures are kept apart."""
    wanted = {}
    for fields in packages:
        name = fields["package"]
        if fields.get("multi-arch") == "same":
            name = f"{name}:{fields.get('architecture', '')}"
        for field, value in fields.items():
            wanted[f"{prefix}/{name}/{field}".encode()] = value.encode()
    return wanted


async def store(client: aetcd.Client, wanted: dict[bytes, bytes], progress: Progress) -> None:
    """Puts all keys, with many requests under way at once so that they share the server's disk syncs."""
    bar = progress.add_task("storing", total=len(wanted))
    left = iter(wanted.items())

    async def work() -> None:
        for key, value in left:
            await client.put(key, value)
            progress.advance(bar)

    await asyncio.gather(*(work() for _ in range(PARALLEL)))


async def ask_back(client: aetcd.Client, packages: list[str], prefix: str, progress: Progress) -> dict[bytes, bytes]:
    """Asks for each package by its prefix; returns all that came."""
    bar = progress.add_task("reading", total=len(packages))
    found: dict[bytes, bytes] = {}
    left = iter(packages)

    async def work() -> None:
        for package in left:
            for item in await client.get_prefix(f"{prefix}/{package}/".encode()):
                found[item.key] = item.value
            progress.advance(bar)

    await asyncio.gather(*(work() for _ in range(PARALLEL)))
    return found


def summary(found: dict[bytes, bytes], console: Console) -> None:
    """Counts by section and the largest packages, all from what the store gave back."""
    by_field: dict[str, dict[str, str]] = {}
    for key, value in found.items():
        _, package, field = key.decode().rsplit("/", 2)
        by_field.setdefault(field, {})[package] = value.decode()
    sections: dict[str, int] = {}
    for section in by_field.get("section", {}).values():
        sections[section] = sections.get(section, 0) + 1
    common = sorted(sections.items(), key=lambda item: (-item[1], item[0]))[:5]
    sizes = by_field.get("installed-size", {})
    largest = sorted(sizes.items(), key=lambda item: (-int(item[1]), item[0]))[:5]
    console.print("sections: " + ", ".join(f"{name} {count}" for name, count in common), highlight=False)
    console.print("largest:  " + ", ".join(f"{name} {int(kib) // 1024} MiB" for name, kib in largest), highlight=False)


async def run(options: argparse.Namespace, console: Console) -> int:
    """The whole example; returns the exit code."""
    packages = list(stanzas(options.status.read_text(encoding="utf-8", errors="replace")))
    wanted = keys_of(packages, options.prefix)
    if not wanted:
        console.print(f"{options.status}: no packages in it")
        return 1
    names = sorted({key.decode().rsplit("/", 2)[1] for key in wanted})
    host, _, port = options.endpoint.rpartition(":")
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        async with aetcd.Client(host, int(port), timeout=30) as client:
            await client.delete_prefix(f"{options.prefix}/".encode())
            began = time.perf_counter()
            await store(client, wanted, progress)
            stored = time.perf_counter() - began
            began = time.perf_counter()
            found = await ask_back(client, names, options.prefix, progress)
            read = time.perf_counter() - began
    console.print(f"stored {len(wanted)} keys of {len(names)} packages in {stored:.2f} s", highlight=False)
    console.print(f"read {len(found)} keys by {len(names)} prefixes in {read:.2f} s", highlight=False)
    if found != wanted:
        console.print("what came back is not what was stored")
        return 1
    summary(found, console)
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--endpoint", default="127.0.0.1:2379", help="host:port of the store (default: %(default)s)")
    parser.add_argument("--status", type=Path, default=STATUS, help="a dpkg status file (default: %(default)s)")
    parser.add_argument("--prefix", default="/dpkg", help="where the keys go (default: %(default)s)")
    return asyncio.run(run(parser.parse_args(), Console()))


if __name__ == "__main__":
    sys.exit(main())
