"""The part of the engine contract about damaged files: each call raises errors of MetaStore's tree."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

from metastore._core.engine import APPLIED_KEY
from metastore.errors import MetaStoreError

from .engine_base import ContractBase, batch_of
from .engine_replacing import stream_of

__all__ = ["Damage"]

# This runs in a process of its own, which a library may end.
PROGRAM = """
import importlib, operator, sys
sys.path[:] = sys.argv[4:]
found = operator.attrgetter(sys.argv[2])(importlib.import_module(sys.argv[1]))
for folder in sys.argv[3].split(":"):
    print("files", folder.rpartition("-")[2], flush=True)
    found().use_damaged(folder)
"""
PAIRS = {b"k%05d" % n: b"%d " % n * 20 for n in range(3000)}


def overwritten(data: bytearray) -> None:
    """Everything behind the first page is random."""
    data[4096:] = random.Random(1).randbytes(max(0, len(data) - 4096))


def cut(data: bytearray) -> None:
    """The second half is missing."""
    del data[len(data) // 2 :]


def beheaded(data: bytearray) -> None:
    """The first pages are random."""
    data[:8192] = random.Random(2).randbytes(min(8192, len(data)))


class Damage(ContractBase):
    """Calls on an engine whose files were changed from outside."""

    #: How files are damaged. A class whose library ends the process instead of raising an error leaves kinds out.
    damages: ClassVar[tuple[Callable[[bytearray], None], ...]] = (overwritten, cut, beheaded)

    def use_damaged(self, folder: str) -> None:
        """Make each call, and print the exceptions that are not MetaStore's. Runs in a process of its own."""
        calls: list[tuple[str, Callable[[], object]]] = []
        try:
            engine = self.open_engine(folder)
        except MetaStoreError:
            return
        except Exception as error:  # noqa: BLE001
            print(f"the constructor raises {type(error).__module__}.{type(error).__name__}: {error}")
            return
        calls += [
            ("get", lambda: [engine.get(key) for key in PAIRS]), ("scan", lambda: engine.scan(b"", None, False, 0)),
            ("scan", lambda: engine.scan(b"", None, True, 0)), ("iterate", lambda: list(engine.iterate(b""))),
            ("seek_ge", lambda: [engine.seek_ge(key + b"x") for key in PAIRS]),
            ("seek_le", lambda: [engine.seek_le(key + b"x") for key in PAIRS]), ("applied", engine.applied),
            ("size", engine.size), ("size_in_use", engine.size_in_use), ("data_size", engine.data_size),
            ("durable_applied", engine.durable_applied), ("reclaim", engine.reclaim),
            ("view", lambda: self._use_view(engine.view)),
            ("write", lambda: engine.write(batch_of(dict.fromkeys(PAIRS, b"new")), 2, 1)), ("flush", engine.flush),
            ("begin_flush", engine.begin_flush), ("restore", lambda: engine.restore(stream_of(PAIRS, 3, 1))),
            ("close", engine.close),
        ]  # fmt: skip
        for name, call in calls:
            try:
                call()
            except MetaStoreError:
                continue
            except Exception as error:  # noqa: BLE001
                print(f"{name}() raises {type(error).__module__}.{type(error).__name__}: {error}")

    @staticmethod
    def _use_view(view_of: Callable[[], object]) -> None:
        view = view_of()
        try:
            for name in ("scan", "iterate", "get", "seek_le"):
                arguments = {"scan": (b"", None, False, 0), "iterate": (b"",)}.get(name, (APPLIED_KEY,))
                found = getattr(view, name)(*arguments)
                if name == "iterate":
                    list(found)
        finally:
            view.close()  # type: ignore[attr-defined]

    def test_damaged_files_give_errors_of_metastore(self) -> None:
        """An exception of the engine's library stops a node too, but not with the exit code and the words for damaged
        data. What an engine does not notice is not asked for here: not every library has checksums."""
        folder = Path(self.new_folder())
        engine = self.open_engine(str(folder))
        persistent = engine.persistent
        engine.write(batch_of(dict(PAIRS)), 1, 1)
        engine.flush()
        engine.close()
        if not persistent or not folder.is_dir():
            return
        kind, damaged = type(self), [folder.with_name(f"{folder.name}-{damage.__name__}") for damage in self.damages]
        for damage, copy in zip(self.damages, damaged, strict=True):
            shutil.copytree(folder, copy)
            for path in (path for path in copy.rglob("*") if path.is_file() and path.stat().st_size > 4096):
                data = bytearray(path.read_bytes())
                damage(data)
                path.write_bytes(data)
        argv = [sys.executable, "-c", PROGRAM, kind.__module__, kind.__qualname__, os.pathsep.join(map(str, damaged))]
        done = subprocess.run(
            [*argv, *sys.path], capture_output=True, text=True, timeout=self.patience, check=False, env=dict(os.environ)
        )
        assert done.returncode == 0, f"exit code {done.returncode} with these files: {done.stdout}{done.stderr}"
        lines = [line for line in done.stdout.splitlines() if not line.startswith("files ")]
        assert not lines, done.stdout
