"""Many calls from the node's own process: they wait for room, keep their order, and let the loop go on."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from metastore import Config, Node, PutManyResult, SortTarget, errors
from metastore.embedded import bulk
from metastore.embedded.node import INBOX_SLICE

pytestmark = pytest.mark.node_only

NARROW = {"max_inflight_requests": 100, "max_request_bytes": "64KiB", "max_inflight_bytes": "256KiB"}


def make(folder: Path, **limits: Any) -> Node:
    # Pipelined calls need no quick disk.
    return Node(Config(
        node={"data_dir": str(folder)}, listen={"client": "127.0.0.1:0"}, limits=limits,
        wal={"sync": "async"}, raft={"batch_max_size": 50, "batch_max_bytes": "128KiB"},
    ))  # fmt: skip


def test_many_more_pairs_than_may_be_in_flight(tmp_path: Path) -> None:
    given, peak = 0, 0
    with make(tmp_path, **NARROW) as node:
        running: Any = node._running()
        done: list[int] = []

        def pairs() -> Iterator[tuple[str, str]]:
            nonlocal given, peak
            for given in range(1, 12_001):
                peak = max(peak, given - node.revision)
                done.append(running.replica.proposer.queued + running.replica.proposer.inflight)
                yield f"k{given % 7}", str(given)

        assert node.put_many(pairs()) == PutManyResult(12_000, 2, 12_001)
        assert [item.mod_revision for item in node.get_prefix("k", sort_target=SortTarget.MOD).kvs] == [
            *range(11_995, 12_002)
        ], "out of order"
        assert {item.value for item in node.get_prefix("k").kvs} == {str(n).encode() for n in range(11_994, 12_001)}
        assert peak <= bulk.WINDOW + bulk.SLICE, "more is held than is under way"
        assert max(done) <= NARROW["max_inflight_requests"]


def test_large_values_are_bounded_by_their_bytes(tmp_path: Path) -> None:
    with make(tmp_path, **NARROW) as node:
        stored = node.put_many((f"k{n}", b"x" * 60_000) for n in range(400))
        assert stored.count == 400 and node.get_prefix("k", count_only=True).count == 400


def test_futures_wait_for_room_too(tmp_path: Path) -> None:
    with make(tmp_path, **NARROW) as node:
        futures = node.futures.put_many([(f"k{n}", "v") for n in range(3000)])
        assert [future.result(60).revision for future in futures] == list(range(2, 3002))


def test_the_loop_gets_its_turn_between_slices(tmp_path: Path) -> None:
    """A single turn does not take in a thousand waiting calls."""
    with make(tmp_path, max_request_bytes="64KiB") as node:
        running: Any = node._running()
        hold, held, seen = threading.Event(), threading.Event(), []

        def stand() -> None:
            held.set()
            hold.wait(30)

        running.loop.call_soon_threadsafe(stand)
        assert held.wait(30)
        calls: list[Any] = [node.futures.put(f"a{n}", "v") for n in range(2000)]
        calls += node.futures.put_many([(f"b{n}", "v") for n in range(2000)])
        taken = running.kv.call_counts["Put"]

        def look() -> None:
            seen.append(running.kv.call_counts["Put"] - taken)
            if seen[-1] < 4000:
                running.loop.call_later(0, look)

        running.loop.call_soon_threadsafe(look)
        hold.set()
        for call in calls:
            call.result(60)
        steps = [after - before for before, after in itertools.pairwise(seen)]
        assert max(steps) <= INBOX_SLICE, steps


def test_who_waits_for_room_is_told_of_the_end(tmp_path: Path) -> None:
    node = make(tmp_path, **NARROW)
    node.start()
    futures = node.futures.put_many([(f"k{n}", "v") for n in range(20_000)])
    node.stop()
    assert all(future.done() for future in futures)
    assert isinstance(futures[-1].exception(), errors.Stopped)
