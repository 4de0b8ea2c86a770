"""Sends the same calls to two servers, reports where they differ, and shrinks the difference."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from . import messages as m
from .client import Client, Failure
from .generator import Generator
from .processes import Server

SHRINK_SECONDS = 20.0
UNAVAILABLE = 14

# An outcome is what a client sees: a reply message without the parts that may differ, or (code, text).
Outcome = Any


@dataclass
class Difference:
    """The calls up to the first one that was answered differently, that one included, and both answers."""

    calls: list[Any]
    expected: Outcome
    actual: Outcome

    def report(self) -> str:
        """Return the text that a person needs to repeat it."""
        lines = [f"--- {len(self.calls)} calls reproduce it on fresh servers; the last one differs"]
        lines += [f"{i}: {type(call).__name__} {shorten(call)}" for i, call in enumerate(self.calls)]
        lines += ["--- etcd answers", shorten(self.expected), "--- the other answers", shorten(self.actual)]
        return "\n".join(lines)


def shorten(value: Any) -> str:
    """Return one line of at most a few thousand characters, with long byte strings cut."""
    text = " ".join(str(value).split())
    text = re.sub(r'"(?:[^"\\]|\\.)*"', lambda match: match[0] if len(match[0]) < 60 else match[0][:40] + '..."', text)
    return text if len(text) <= 4000 else f"{text[:4000]}... ({len(text)} characters)"


SORTED_BY = {m.VERSION: "version", m.CREATE: "create_revision", m.MOD: "mod_revision", m.VALUE: "value"}


def untie(request: Any, reply: Any) -> None:
    """Put keys that are equal in the sort target of a range into the order of the keys.

    etcd leaves their order to Go's sort, which is not stable; here it is that of the keys. If a limit cuts, it is also
    open which of the last equal keys are in the reply; only their sort value is then left to compare.
    """
    field = SORTED_BY.get(request.sort_target)
    if field is None:
        return
    hidden = field == "value" and request.keys_only
    groups: list[list[Any]] = []
    for kv in reply.kvs:
        if groups and (hidden or getattr(groups[-1][0], field) == getattr(kv, field)):
            groups[-1].append(kv)
        else:
            groups.append([kv])
    ordered = [kv for group in groups for kv in sorted(group, key=lambda kv: kv.key)]
    if reply.more and groups:
        cut = len(groups[-1])
        ordered[-cut:] = [m.KeyValue(**{} if hidden else {field: getattr(kv, field)}) for kv in groups[-1]]
    copies = [m.KeyValue.FromString(kv.SerializeToString()) for kv in ordered]
    del reply.kvs[:]
    reply.kvs.extend(copies)


def untie_all(request: Any, reply: Any) -> None:
    """Call `untie` for a range and for those inside a transaction, also nested ones."""
    kind = type(request).__name__
    if kind == "RangeRequest":
        untie(request, reply)
    elif kind == "TxnRequest":
        branch = request.success if reply.succeeded else request.failure
        for operation, answer in zip(branch, reply.responses, strict=True):
            which = operation.WhichOneof("request")
            if which in ("request_range", "request_txn"):
                untie_all(getattr(operation, which), getattr(answer, which.replace("request", "response")))


def normalised(reply: Any) -> Any:
    """Return the reply with the ids and the term of its header replaced by whether they are set at all."""
    for field in ("cluster_id", "member_id", "raft_term"):
        setattr(reply.header, field, 1 if getattr(reply.header, field) else 0)
    return reply


def outcome(client: Client, call: Any) -> Outcome:
    """Return the outcome of `call`: a normalised reply or (code, text)."""
    try:
        reply = client.call(call)
    except Failure as failure:
        return (failure.code, failure.text)
    untie_all(call, reply)
    return normalised(reply)


def compare(first: Client, second: Client, calls: Iterable[Any]) -> Difference | None:
    """Send `calls` to both servers until an answer differs."""
    done = []
    for call in calls:
        done.append(call)
        expected, actual = outcome(first, call), outcome(second, call)
        assert not (isinstance(expected, tuple) and expected[0] == UNAVAILABLE), f"etcd is gone: {expected}\n{call}"
        if expected != actual:
            return Difference(done, expected, actual)
    return None


def episode(generator: Generator, count: int, first: Client, second: Client) -> Difference | None:
    """Send `count` random calls. Each is made with the revisions that the answers so far have shown."""

    def calls() -> Iterable[Any]:
        for _ in range(count):
            request = generator.request()
            yield request
            observe(generator, first, request)

    return compare(first, second, calls())


def observe(generator: Generator, client: Client, request: Any) -> None:
    """Tell the generator the store's revisions after a request that may have changed them."""
    kind = type(request).__name__
    if kind == "RangeRequest":
        return
    if kind == "CompactionRequest" and 0 < request.revision <= generator.revision:
        generator.compacted = max(generator.compacted, request.revision)
    generator.revision = client.revision()


def shrink(difference: Difference, start: Callable[[], tuple[Server, Server]]) -> Difference:
    """Leave out calls, in halves, quarters and so on, as long as the servers from `start` still differ."""
    deadline = time.monotonic() + SHRINK_SECONDS
    best = difference
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
