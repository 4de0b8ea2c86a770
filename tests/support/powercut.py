"""Runs a node and rebuilds what a power cut would leave: only synced bytes, only synced names."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from .processes import Node

SOURCE = Path(__file__).with_name("powercut.c")


def build(folder: Path) -> Path:
    """Compile the preloaded library into `folder`."""
    library = folder / "powercut.so"
    command = [
        "gcc",
        "-O1",
        "-Wall",
        "-Werror",
        "-shared",
        "-fPIC",
        "-o",
        str(library),
        str(SOURCE),
        "-ldl",
        "-lpthread",
    ]
    subprocess.run(command, check=True, timeout=60)
    return library


def environment(library: Path, root: Path, copy: Path) -> Mapping[str, str]:
    """Return the environment for the node. `root` is the parent of its data directory; what is under it counts as
    synced."""
    copy.mkdir()
    for path in root.rglob("*"):
        inode = path.stat().st_ino
        if path.is_dir():
            inner = "".join(f"{entry.stat().st_ino} {entry.name}\n" for entry in path.iterdir())
            (copy / f"{inode}.dir").write_text(inner)
        else:
            shutil.copyfile(path, copy / str(inode))
    return {"LD_PRELOAD": str(library), "POWERCUT_ROOT": str(root), "POWERCUT_COPY": str(copy)}


def rebuild(data_dir: Path, copy: Path, target: Path) -> list[str]:
    """Build `target`: `data_dir` as its last syncs left it. Return the names of the files in it.

    A name is there if its directory was synced after the name was made. A file holds what it held at its last sync, or
    nothing. The data directory itself counts as synced.
    """
    names = []
    target.mkdir(parents=True)
    listing = copy / f"{data_dir.stat().st_ino}.dir"
    entries = listing.read_text().splitlines() if listing.exists() else []
    for entry in entries:
        inode, _, name = entry.partition(" ")
        if (copy / f"{inode}.dir").exists() or (data_dir / name).is_dir():
            if (data_dir / name).is_dir():
                names += [f"{name}/{inner}" for inner in rebuild(data_dir / name, copy, target / name)]
            else:
                (target / name).mkdir()
        elif (copy / inode).exists():
            shutil.copyfile(copy / inode, target / name)
            names.append(name)
        else:
            (target / name).touch()
            names.append(name)
    return names


class Lives:
    """A node whose power is cut again and again. Each life begins with what the cut has left of the one before."""

    def __init__(self, folder: Path, settings: Mapping[str, str]) -> None:
        self._folder = folder
        self._settings = settings
        self._library = build(folder)
        self._number = 0
        self.data_dir = folder / "power-0" / "data"
        self.data_dir.parent.mkdir()

    @contextmanager
    def life(self) -> Iterator[Node]:
        """Run the node. At the end it is killed, and `data_dir` has what was synced."""
        copy = self._folder / f"copy-{self._number}"
        node = Node(self.data_dir, self._settings, env=environment(self._library, self.data_dir.parent, copy))
        try:
            yield node.start()
        finally:
            node.kill()
        self._number += 1
        after = self._folder / f"power-{self._number}" / "data"
        after.parent.mkdir()
        assert rebuild(self.data_dir, copy, after), "no file survived: the preloaded library does not work"
        self.data_dir = after
