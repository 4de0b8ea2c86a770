"""Transcripts are scenarios as text, with commands and the answers to them.

A line that begins with "> " is a command; the lines up to the next one are the answer. Lines with # are comments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from metastore._core.raft_types import Message, MessageType

POSITIONED = {
    MessageType.MsgApp, MessageType.MsgVote, MessageType.MsgPreVote, MessageType.MsgAppResp,
    MessageType.MsgReadIndexResp,
}  # fmt: skip


def replay(text: str, run: Callable[[str], list[str]]) -> str:
    """Return the transcript's text with the answers of today. `run` carries out a command and returns its lines."""
    out: list[str] = []
    for line in text.splitlines():
        if line.startswith("> "):
            out += [line, *run(line[2:])]
        elif not line or line.startswith("#"):
            out.append(line)
    return "\n".join(out) + "\n"


def rewrite(folder: Path, replayed: Callable[[str], str], arguments: list[str]) -> None:
    """Write the answers of all transcripts in `folder`, or of the named ones, again."""
    if not arguments or arguments[0] != "--rewrite":
        sys.exit(f"usage: {Path(sys.argv[0]).name} --rewrite [name ...]")
    for path in sorted(folder.glob("*.txt")):
        if len(arguments) == 1 or path.stem in arguments[1:]:
            path.write_text(replayed(path.read_text()))


def keyword(words: list[str]) -> tuple[list[str], dict[str, Any]]:
    """Split key=value words off."""
    plain = [word for word in words if "=" not in word]
    options: dict[str, Any] = {}
    for word in words:
        if "=" in word:
            key, value = word.split("=", 1)
            options[key] = value
            for kind in (int, float):
                try:
                    options[key] = kind(value)
                    break
                except ValueError:
                    continue
            if value in ("true", "false"):
                options[key] = value == "true"
    return plain, options


def message_text(m: Message, entry_text: Callable[[Any], str]) -> str:
    """Show a Raft message to people; `entry_text` shows an entry."""
    out = f"{m.from_}->{m.to} {MessageType(m.type).name}"
    if m.term:
        out += f" term:{m.term}"
    if m.type in POSITIONED:
        out += f" {m.log_term}/{m.index}" if m.type != MessageType.MsgAppResp else f" index:{m.index}"
    if m.reject:
        out += " REJECT"
        if m.type == MessageType.MsgAppResp:
            out += f" hint:{m.log_term}/{m.reject_hint}"
    if m.commit:
        out += f" commit:{m.commit}"
    if m.context:
        text = m.context.decode("latin-1")
        out += f" round:{int.from_bytes(m.context, 'little')}" if len(m.context) == 8 else f" ctx:{text}"
    if m.snapshot is not None:
        out += f" snapshot {m.snapshot.term}/{m.snapshot.index} {m.snapshot.conf_state!r}"
    if m.entries:
        out += " [" + " ".join(entry_text(entry) for entry in m.entries) + "]"
    return out
