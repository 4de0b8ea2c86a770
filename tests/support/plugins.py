"""Plug-ins written by a test."""

from __future__ import annotations

from pathlib import Path

IN_MEMORY = """
import struct

from metastore._core.engine import APPLIED_KEY, Engine
from metastore._core.ordered_map import OrderedMap


class Volatile(Engine):
    CONTRACT = 1
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


#: An engine with files that is as slow and as simple as can be: all pairs are pickled at each write.
PICKLING = """
import os
import pickle
import struct

from metastore.plugin import APPLIED_KEY, Batch, Engine


class Pickling(Engine):
    CONTRACT, FORMAT = 1, 3
    OPTIONS = {"mode": 420, "label": "none"}
    persistent = True

    def __init__(self, path, options, data=None):
        self.path, self.options, self.data = path, options, Batch()
        if data is not None:
            self.data = data
            return
        os.makedirs(path, exist_ok=True)
        try:
            with open(os.path.join(path, "all"), "rb") as file:
                for key, value in pickle.load(file):
                    self.data.set(key, value)
        except FileNotFoundError:
            pass

    def get(self, key):
        return self.data.get(key)

    def scan(self, start, end, reverse, limit):
        return self.data.scan(start, end, reverse, limit)

    def applied(self):
        return struct.unpack("<QQ", self.data.get(APPLIED_KEY) or bytes(16))

    def durable_applied(self):
        return self.applied()[0]

    def view(self):
        return Pickling(self.path, self.options, self.data.view())

    def size(self):
        return self.data.nbytes

    def keep(self):
        with open(os.path.join(self.path, "new"), "wb") as file:
            pickle.dump(list(self.data.items()), file)
            file.flush()
            os.fsync(file.fileno())
        os.rename(os.path.join(self.path, "new"), os.path.join(self.path, "all"))

    def write(self, batch, index, term):
        for key, value in [*batch.items(), (APPLIED_KEY, struct.pack("<QQ", index, term))]:
            if value is None:
                self.data.delete(key)
            else:
                self.data.set(key, value)
        self.keep()

    def restore(self, stream):
        fresh = Batch()
        for key, value in stream:
            fresh.set(key, value)
        self.data = fresh
        self.keep()
"""


def install(folder: Path, name: str, source: str, *entries: str, version: str = "1.0", group: str = "storage") -> Path:
    """Install a package `name` with one module as an installer would leave it. `entries` are lines such as "engine =
    module:Class". Return the folder that has to be in the module search path."""
    info = folder / "site" / f"{name}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[metastore.{group}]\n" + "".join(f"{entry}\n" for entry in entries))
    (folder / "site" / f"{name}.py").write_text(source)
    return folder / "site"


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
