"""The program's own log: one line for each record, as text or as JSON, on standard error.

Only the command line calls `setup`. An embedding program keeps its own logging; the package merely writes to the
logger "metastore" and its children. A record may carry facts beside its message: `log.info("text", extra={...})`.
They follow the text as key=value, or become members of the JSON object.
"""

from __future__ import annotations

import json
import logging
import os
import stat
import sys
from datetime import UTC, datetime
from typing import IO

ROOT = "metastore"
LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
_STANDARD = set(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def _facts(record: logging.LogRecord) -> dict[str, object]:
    return {key: value for key, value in vars(record).items() if key not in _STANDARD}


def _when(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%S.") + f"{int(record.msecs):03d}Z"


def _part(record: logging.LogRecord) -> str:
    return record.name.removeprefix(f"{ROOT}.")


def _one_line(text: str) -> str:
    """`text` in one line: characters that would end or forge a log line are made visible."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


class TextFormatter(logging.Formatter):
    """Formats `2026-01-31T12:00:00.000Z INFO node: message key=value`; a traceback follows on the same line."""

    def format(self, record: logging.LogRecord) -> str:
        facts = "".join(f" {key}={value!r}" for key, value in _facts(record).items())
        text = f"{_when(record)} {record.levelname} {_part(record)}: {record.getMessage()}{facts}"
        if record.exc_info:
            text += f" | {self.formatException(record.exc_info)}"
        return _one_line(text)


class JsonFormatter(logging.Formatter):
    """Formats one JSON object per line: time, level, part, message, error (a traceback), and the record's own facts."""

    def format(self, record: logging.LogRecord) -> str:
        made: dict[str, object] = {
            "time": _when(record),
            "level": record.levelname.lower(),
            "part": _part(record),
            "message": record.getMessage(),
        }
        if record.exc_info:
            made["error"] = self.formatException(record.exc_info)
        for key, value in _facts(record).items():
            made.setdefault(key, value)
        return json.dumps(made, default=str)


def setup(level: str = "info", as_json: bool = False, stream: IO[str] | None = None) -> logging.Logger:
    """Sends the package's log to `stream` (default: standard error) and replaces an earlier set-up. Returns the logger.

    `level` is a key of `LEVELS`.
    """
    logger = logging.getLogger(ROOT)
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonFormatter() if as_json else TextFormatter())
    logger.handlers[:] = [handler]
    logger.setLevel(LEVELS[level])
    logger.propagate = False
    return logger


class ErrorFile:
    """The file that standard error writes to, if it is a file. Log rotation renames this file while we write.

    `path` is its name at the time this object is made. It is empty for a terminal, a pipe or a socket.
    """

    def __init__(self) -> None:
        self.path = ""
        try:
            if stat.S_ISREG(os.fstat(2).st_mode):
                self.path = os.readlink("/proc/self/fd/2")
        except OSError:
            # Standard error is closed, or /proc is not there.
            self.path = ""

    def reopen(self) -> None:
        """Continues in a file of the same name, which is created if necessary. Raises OSError; then nothing
        has changed.
        """
        before = os.fstat(2)
        fresh = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            os.dup2(fresh, 2)
            output = os.fstat(1)
            if (output.st_dev, output.st_ino) == (before.st_dev, before.st_ino):
                os.dup2(fresh, 1)
        finally:
            os.close(fresh)
