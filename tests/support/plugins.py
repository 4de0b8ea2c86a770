"""Plug-ins written by a test."""

from __future__ import annotations

from pathlib import Path

IN_MEMORY = """
import struct

from metastore._core.engine import APPLIED_KEY, Engine
from metastore._core.ordered_map import OrderedMap


class Volatile(Engine):
    persistent = False

    def __init__(self, path, data=None, at=(0, 0)):
        self.data, self.at = OrderedMap() if data is None else data, at

    def get(self, key):
        return self.data.get(key)

    def scan(self, start, end, reverse, limit):
        return self.data.scan(start, end, reverse, limit)

    def applied(self):
        return self.at

    def view(self):
        return Volatile("", self.data.view(), self.at)

    def size(self):
        return self.data.nbytes

    def write(self, batch, index, term):
        for key, value in [*batch.items(), (APPLIED_KEY, struct.pack("<QQ", index, term))]:
            if value is None:
                self.data.delete(key)
            else:
                self.data.set(key, value)
        self.at = (index, term)

    def restore(self, stream):
        self.data = OrderedMap()
        for key, value in stream:
            self.data.set(key, value)
        self.at = struct.unpack("<QQ", self.data.get(APPLIED_KEY))


class Undeclared(Volatile):
    persistent = None
"""


def install_in_memory(folder: Path) -> dict[str, str]:
    """Return the environment with an engine in memory that was written by the documentation."""
    info = folder / "site" / "volatile-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: volatile\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[metastore.storage]\nvolatile = volatile:Volatile\nundeclared = volatile:Undeclared\n"
    )
    (folder / "site" / "volatile.py").write_text(IN_MEMORY)
    return {"PYTHONPATH": str(folder / "site")}
