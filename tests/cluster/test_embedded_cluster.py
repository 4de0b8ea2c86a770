"""A cluster of nodes inside one program: what members forward to each other is answered, whatever ends one of them."""

from __future__ import annotations

import concurrent.futures
import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.embedded import leads, members_of, standing
from support.processes import wait_until

from metastore import Node, Op, errors

pytestmark = pytest.mark.node_only


@pytest.fixture
def members(tmp_path: Path) -> Iterator[list[Node]]:
    """Three members that serve: the leader first."""
    with members_of(tmp_path, limits={"request_timeout": "2s"}) as nodes:
        yield nodes


def die(node: Node) -> None:
    """Its loop meets a bug."""

    def bug() -> None:
        raise ZeroDivisionError

    node._running().loop.call_soon_threadsafe(bug)


def calls(node: Node) -> list[concurrent.futures.Future[Any]]:
    """Writes that the leader is asked for, and reads that it confirms; each has a callback that raises."""

    def leave(_future: Any) -> None:
        raise SystemExit

    futures: list[Any] = node.futures.put_many([(f"m{n}", "v") for n in range(200)])
    futures += [node.futures.range("k", "l"), node.futures.delete("k"), node.futures.compact(1)]
    futures.append(node.futures.txn(success=[Op.put("t", "v")]))
    for future in futures:
        future.add_done_callback(leave)
    return futures


def test_what_is_forwarded_is_answered(members: list[Node]) -> None:
    leader, one, other = members
    with standing(leader):
        mine = calls(one)
        wait_until(lambda: one._running().replica.proposer.inflight >= 200, what="all is forwarded")
        die(one)
        assert not concurrent.futures.wait(mine, 60).not_done
    failed = {type(future.exception()) for future in mine}
    assert failed and failed <= {errors.Timeout, errors.Stopped}
    assert {type(future.exception().__cause__) for future in mine} == {ZeroDivisionError}  # type: ignore[union-attr]
    with contextlib.suppress(ZeroDivisionError):
        one.wait(60)
    with standing(other):
        more = calls(leader)
        die(leader)
    assert not concurrent.futures.wait(more, 60).not_done
    # One of three is left: it answers too, when its patience is over.
    with pytest.raises((errors.Timeout, errors.NoLeader, errors.LeaderChanged)):
        other.put("k", "v", timeout=60)


def test_watches_and_locks_go_on_over_a_time_without_a_leader(members: list[Node]) -> None:
    """The leader goes, and the rest is no quorum for a while. A watch on a follower loses and doubles nothing, and a
    lock that is held there is kept."""
    leader, one, other = members
    with one.lock("l", ttl=60) as lock, one.watch("k", prefix=True) as watch:
        for number in range(50):
            last = other.put(f"k{number}", "v").revision
        with standing(other):
            leader.stop()
            wait_until(lambda: not one._running().driver.leader_id, what="nobody leads")
            with pytest.raises(errors.Timeout):
                watch_all = [watch.next(30).revision for _ in range(50)]
                watch.next(0.01)
        wait_until(lambda: any(leads(node) for node in (one, other)), 60)
        for number in range(50):
            written = False
            while not written:
                with contextlib.suppress(errors.Timeout, errors.NoLeader, errors.LeaderChanged):
                    last = other.put(f"k{number}", "again").revision
                    written = True
        while watch.revision < last:
            watch_all.append(watch.next(30).revision)
        with one.watch("k", prefix=True, start_revision=watch_all[0]) as again:
            assert watch_all == [again.next(30).revision for _ in watch_all] and len(watch_all) >= 100
        lock.check()
        found = other.get(lock.key)
        assert found is not None and found.create_revision == lock.revision


def test_each_member_takes_a_bulk_and_asks_before_it_reads(members: list[Node]) -> None:
    """A follower forwards the puts one by one, and no member of a cluster reads in the caller's thread."""
    for place, node in enumerate(members):
        stored = node.put_many((f"b{place}/{n}", str(n)) for n in range(2500))
        assert (stored.count, stored.last_revision - stored.first_revision) == (2500, 2499)
        found = members[place - 1].get(f"b{place}/2499")
        assert found is not None and (found.value, found.mod_revision) == (b"2499", stored.last_revision)
    assert [node._direct.served for node in members if node._direct is not None] == [0, 0, 0]


def test_a_bulk_tells_what_became_of_it_where_the_leader_dies(members: list[Node]) -> None:
    leader, one, other = members

    def pairs() -> Iterator[tuple[str, str]]:
        for n in range(20_000):
            if n == 6000:
                die(leader)
            yield f"k{n}", str(n)

    written, unknown, taken = {*range(20_000)}, set[int](), 20_000
    try:
        one.put_many(pairs())
    except errors.PutManyFailed as failure:
        written, unknown = ({n for span in spans for n in span} for spans in (failure.written, failure.open))
        taken = failure.taken
        refused = {n for span in failure.not_written for n in span}
        assert len(written) + len(unknown) + len(refused) == taken, "each position is in one of the three"
    wait_until(lambda: leads(one) or leads(other), what="another leads")
    there = {int(item.key[1:]) for item in one.get_prefix("k", timeout=30).kvs}
    assert written <= there <= written | unknown
    with contextlib.suppress(ZeroDivisionError):
        leader.stop()
        leader.wait()
