"""Sends the same calls to two servers and says where they differ; shrinks what differs."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from .client import Client, Failure
from .generator import Generator
from .processes import Server

SHRINK_SECONDS = 20.0
UNAVAILABLE = 14

# An outcome is what a client sees: a reply message with what may differ taken out, or (code, text).
Outcome = Any


@dataclass
class Difference:
    """The calls up to and with the first one that was answered differently, and both answers."""

    calls: list[Any]
    expected: Outcome
    actual: Outcome

    def report(self) -> str:
        """What a person needs to see it again."""
        lines = [f"--- {len(self.calls)} calls reproduce it on fresh servers; the last one differs"]
        lines += [f"{i}: {type(call).__name__} {shorten(call)}" for i, call in enumerate(self.calls)]
        lines += ["--- etcd answers", shorten(self.expected), "--- the other answers", shorten(self.actual)]
        return "\n".join(lines)


def shorten(value: Any) -> str:
    """One line of at most a few thousand characters, long byte strings cut."""
    text = re.sub(r'"((?:[^"\\]|\\.){48})(?:[^"\\]|\\.)*"', r'"\1..."', " ".join(str(value).split()))
    return text if len(text) <= 4000 else f"{text[:4000]}... ({len(text)} characters)"


def normalised(reply: Any) -> Any:
    """The reply with the ids and the term of its header replaced by whether they are set at all."""
    for field in ("cluster_id", "member_id", "raft_term"):
        setattr(reply.header, field, 1 if getattr(reply.header, field) else 0)
    return reply


def outcome(client: Client, call: Any) -> Outcome:
    """What `call` gives: a normalised reply or (code, text)."""
    try:
        return normalised(client.call(call))
    except Failure as failure:
        return (failure.code, failure.text)


def compare(first: Client, second: Client, calls: Iterable[Any]) -> Difference | None:
    """Sends `calls` to both until an answer differs."""
    done = []
    for call in calls:
        done.append(call)
        expected, actual = outcome(first, call), outcome(second, call)
        assert not (isinstance(expected, tuple) and expected[0] == UNAVAILABLE), f"etcd is gone: {expected}\n{call}"
        if expected != actual:
            return Difference(done, expected, actual)
    return None


def episode(generator: Generator, count: int, first: Client, second: Client) -> Difference | None:
    """`count` random calls, each made with what the answers so far told about the revisions."""

    def calls() -> Iterable[Any]:
        for _ in range(count):
            request = generator.request()
            yield request
            observe(generator, first, request)

    return compare(first, second, calls())


def observe(generator: Generator, client: Client, request: Any) -> None:
    """Tells the generator where the store is, after a request that may have moved it."""
    kind = type(request).__name__
    if kind == "RangeRequest":
        return
    if kind == "CompactionRequest" and 0 < request.revision <= generator.revision:
        generator.compacted = max(generator.compacted, request.revision)
    generator.revision = client.revision()


def shrink(found: Difference, start: Callable[[], tuple[Server, Server]]) -> Difference:
    """Leaves out calls, in halves, quarters and so on, as long as the servers from `start` still differ."""
    deadline = time.monotonic() + SHRINK_SECONDS
    best = found
    size = max(1, len(best.calls) // 2)
    while time.monotonic() < deadline:
        position = 0
        while position < len(best.calls) and time.monotonic() < deadline:
            shorter = best.calls[:position] + best.calls[position + size :]
            smaller = _replay(shorter, start)
            if smaller is not None:
                best = smaller
            else:
                position += size
        if size == 1:
            break
        size = max(1, size // 2)
    return best


def _replay(calls: list[Any], start: Callable[[], tuple[Server, Server]]) -> Difference | None:
    first, second = start()
    try:
        with first.client() as a, second.client() as b:
            return compare(a, b, calls)
    finally:
        first.discard()
        second.discard()
