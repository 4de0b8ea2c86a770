"""Counts the starts of a data directory. Other members use the number to tell two processes of one member apart.

Layout: FORMATS.md, "Starts".
"""

from __future__ import annotations

import json
import os
import zlib
from pathlib import Path

from ..errors import DamagedData, DiskFailed
from .segments import sync_folder, write_all

NAME = "starts"
MAX_STARTS = (1 << 63) - 1


def next_start(folder: Path) -> int:
    """Return the number of this start, 1 for the first. The number is on disk when this returns.

    Raises DamagedData if the file cannot be understood, and DiskFailed if it cannot be read or written.
    """
    path = folder / NAME
    try:
        number = _read(path) + 1
        temporary = path.with_suffix(".tmp")
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            record = {"version": 1, "starts": number}
            write_all(fd, json.dumps({**record, "sum": _sum(record)}).encode() + b"\n", 0)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, path)
        sync_folder(folder)
    except OSError as error:
        raise DiskFailed(f"{path}: {error.strerror or error}") from error
    return number


def _sum(record: dict[str, int]) -> int:
    return zlib.crc32(json.dumps(record).encode())


def _read(path: Path) -> int:
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0
    try:
        record = json.loads(data.decode())
        if record["version"] != 1:
            raise ValueError(f"version {record['version']!r}, known is 1")
        stated = record.pop("sum")
        if set(record) != {"version", "starts"} or stated != _sum(record):
            raise ValueError("its sum does not fit it")
        number = record["starts"]
        if type(number) is not int or not 0 < number < MAX_STARTS:
            raise ValueError(f"{number!r} is no number of starts")
    except (KeyError, TypeError, ValueError) as error:
        raise DamagedData(f"{path}: cannot be read: {error}") from error
    return number
