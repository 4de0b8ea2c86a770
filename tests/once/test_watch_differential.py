"""Random writes, compactions and watchers on a real etcd and on a node. Every watcher gets the same events from
both."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import pytest
from support.client import Client
from support.differ import outcome
from support.generator import Generator
from support.processes import Server, wait_until
from support.watching import WatchStream

Make = Callable[..., Server]

CALLS = 500
STREAMS = 3
MOST = 40  # watchers


class Side:
    """One server with its streams."""

    def __init__(self, server: Server) -> None:
        self.client: Client = server.start().client()
        self.streams = [WatchStream(self.client) for _ in range(STREAMS)]

    def close(self) -> None:
        for stream in self.streams:
            stream.close()
        self.client.close()

    def told(self) -> list[dict[int, list[Any]]]:
        """Return what each watcher of each stream got: events, then a compact revision if it was cancelled for that."""
        told: list[dict[int, list[Any]]] = []
        for stream in self.streams:
            told.append({})
            for response in list(stream.responses):
                own = told[-1].setdefault(response.watch_id, [])
                own += response.events
                if response.compact_revision:
                    own.append(response.compact_revision)
        return told


def watcher(chance: random.Random, make: Generator) -> dict[str, Any]:
    """Return a random create request. Its end and revision may make no sense."""
    fields: dict[str, Any] = {"key": make.key(), "prev_kv": chance.random() < 0.4, "fragment": chance.random() < 0.3}
    fields["range_end"] = chance.choice([b"", b"\0", make.key(), fields["key"] + b"\xff"])
    if chance.random() < 0.5:
        fields["start_revision"] = max(1, make.revision + chance.randint(-30, 10))
    if chance.random() < 0.3:
        fields["filters"] = chance.choice([[0], [1], [0, 1]])
    if chance.random() < 0.1:
        fields["watch_id"] = chance.randint(1, 12)
    return fields


def same(a: Any, b: Any) -> bool:
    return (a.watch_id, a.canceled, a.cancel_reason, a.header.revision) == (
        b.watch_id, b.canceled, b.cancel_reason, b.header.revision,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_random_watchers(seed: int, fresh: Make, fresh_etcd: Make) -> None:
    """Only history that no watcher has still to read is compacted. Otherwise chance would decide what a watcher gets,
    because etcd looks at watchers that are behind only every 100 ms."""
    chance, make = random.Random(seed), Generator(f"watch {seed}")
    engine = {"storage.engine": '"rocksdb"'} if seed % 2 else {}
    reference, node = Side(fresh_etcd()), Side(fresh(settings=engine))
    live: list[tuple[int, int, int]] = []  # stream, id, first revision
    try:
        for _ in range(CALLS):
            if chance.random() < 0.12 and len(live) < MOST:
                which, fields = chance.randrange(STREAMS), watcher(chance, make)
                answers = [side.streams[which].create(**fields) for side in (reference, node)]
                assert same(*answers), (fields, answers)
                if not answers[0].canceled:
                    live.append((which, answers[0].watch_id, fields.get("start_revision", 1 << 62)))
            elif live and chance.random() < 0.04:
                settle(reference, node)
                which, ident, _ = live.pop(chance.randrange(len(live)))
                for side in (reference, node):
                    side.streams[which].cancel(ident)
            else:
                request = make.request()
                if type(request).__name__ == "CompactionRequest":
                    settle(reference, node)
                    if request.revision > min((first for *_, first in live), default=0):
                        continue
                answers = [outcome(side.client, request) for side in (reference, node)]
                assert type(answers[0]) is type(answers[1])
                if not isinstance(answers[0], tuple):
                    make.revision = answers[0].header.revision
        for side in (reference, node):
            side.client.put(b"the end", b"of all")
        settle(reference, node)
        assert sum(len(events) for stream in node.told() for events in stream.values()) > 500
    finally:
        for side in (reference, node):
            side.close()


def settle(reference: Side, node: Side) -> None:
    """Wait until both servers have sent the same."""
    try:
        wait_until(lambda: reference.told() == node.told(), timeout=20, what="the same events")
    except AssertionError:
        for at, (a, b) in enumerate(zip(reference.told(), node.told(), strict=True)):
            for ident in sorted(a.keys() | b.keys()):
                assert b.get(ident) == a.get(ident), f"stream {at}, watcher {ident}"
        raise
