"""`node.watch`: what a program is told, in which order, how a watch ends, and what one costs that nobody takes from."""

from __future__ import annotations

import dataclasses
import gc
import itertools
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from support.embedded import standing
from support.processes import wait_until

from metastore import Config, EventKind, KeyValue, Node, Op, Watch, WatchBatch, WatchEvent, errors
from metastore.embedded import forks, mailbox

pytestmark = pytest.mark.node_only


@pytest.fixture
def node() -> Iterator[Node]:
    with Node.in_memory() as node:
        yield node


def waits(watch: Watch) -> bool:
    """Whether a thread waits for an event."""
    return bool(watch._mailbox.bell.waiters)


def watchers(node: Node) -> float:
    return node.stats()["watchers"]


def taken(watch: Watch, count: int) -> list[WatchEvent]:
    return [watch.next(30) for _ in range(count)]


def test_events_say_what_was_done(node: Node) -> None:
    with node.watch("/a/", prefix=True, prev_kv=True) as watch:
        node.put("/a/1", "x")
        node.put("/b", "not watched")
        node.put("/a/1", b"y")
        node.txn(success=[Op.put("/a/2", "p"), Op.put("/a/3", "q"), Op.delete("/a/1")])
        first, second = taken(watch, 2)
        assert first == WatchEvent(EventKind.PUT, KeyValue(b"/a/1", b"x", 2, 2, 1, 0), None)
        assert (second.kind, second.key, second.kv.value, second.revision) == (EventKind.PUT, b"/a/1", b"y", 4)
        assert second.prev_kv == first.kv and watch.revision == 4
        batch = watch.next_batch(30)
        assert batch.revision == watch.revision == node.revision == 5
        assert [(event.kind.value, event.key, event.revision) for event in batch.events] == [
            ("put", b"/a/2", 5),
            ("put", b"/a/3", 5),
            ("delete", b"/a/1", 5),
        ]
        gone = batch.events[2]
        assert gone.kv == KeyValue(b"/a/1", b"", 0, 5, 0, 0) and gone.prev_kv == second.kv
        with pytest.raises(dataclasses.FrozenInstanceError):
            gone.kind = EventKind.PUT  # type: ignore[misc]
        assert pickle.loads(pickle.dumps(batch)) == batch


def test_a_part_of_a_batch_that_was_begun(node: Node) -> None:
    with node.watch("k", "l") as watch:
        node.txn(success=[Op.put(f"k{n}", "v") for n in range(3)])
        assert (watch.next(30).key, watch.revision) == (b"k0", 1), "not all of revision 2 is taken"
        rest = watch.next_batch(30)
        assert rest.revision == watch.revision == 2 and [event.key for event in rest.events] == [b"k1", b"k2"]


def test_what_is_watched_and_from_where_on(node: Node) -> None:
    for n in range(2, 6):
        node.put(f"k{n % 2}", str(n))
    node.delete("k0")  # revision 6

    def revisions(count: int, *arguments: Any, **options: Any) -> list[int]:
        with node.watch(*arguments, **options) as watch:
            found = [event.revision for event in taken(watch, count)]
            assert watch._taker.waits(), "there is more"
            return found

    assert revisions(3, "k0", start_revision=2) == [2, 4, 6]
    assert revisions(5, "k0", "k2", start_revision=1) == [2, 3, 4, 5, 6]
    assert revisions(2, "k1", b"\0", start_revision=3) == [3, 5]
    assert revisions(3, "", prefix=True, start_revision=4) == [4, 5, 6]
    assert revisions(2, "k0", start_revision=2, deletes=False) == [2, 4]
    assert revisions(1, "k0", start_revision=2, puts=False) == [6]
    with node.watch("later", start_revision=9) as watch:
        assert watch.revision == 8
        for _ in range(3):
            last = node.put("later", "v").revision
        assert watch.next(30).revision == last == 9


@pytest.mark.parametrize(
    ("arguments", "options", "kind", "text"),
    [
        ((7,), {}, TypeError, "key must be bytes or str, not int"),
        (("",), {}, errors.EmptyKey, "key is not provided"),
        (("b", "a"), {}, ValueError, "range_end must be above key"),
        (("a", "b"), {"prefix": True}, ValueError, "range_end must be None"),
        (("a",), {"prefix": 1}, TypeError, "prefix must be True or False"),
        (("a",), {"start_revision": -1}, ValueError, "start_revision must be 0 or above"),
        (("a",), {"start_revision": "1"}, TypeError, "start_revision must be an int"),
        (("a",), {"puts": False, "deletes": False}, ValueError, "puts and deletes must not both be False"),
        (("a",), {"prev_kv": None}, TypeError, "prev_kv must be True or False"),
    ],
)
def test_a_wrong_argument_is_refused(
    node: Node, arguments: Any, options: Any, kind: type[Exception], text: str
) -> None:
    for calls in (node, node.aio):
        with pytest.raises(kind, match=text):
            calls.watch(*arguments, **options)  # type: ignore[attr-defined]
    assert watchers(node) == 0


def test_a_history_that_is_compacted(node: Node) -> None:
    for n in range(10):
        node.put("k", str(n))
    node.compact(8)
    with node.watch("k", start_revision=3) as watch, pytest.raises(errors.WatchCompacted) as raised:
        watch.next(30)
    assert raised.value.compact_revision == 8 and isinstance(raised.value, errors.Compacted)
    again = pickle.loads(pickle.dumps(raised.value))
    assert again.compact_revision == 8 and again.text == raised.value.text and "is 8" in again.text
    with node.watch("k", start_revision=raised.value.compact_revision) as watch:
        assert [event.revision for event in taken(watch, 4)] == [8, 9, 10, 11]
    with node.watch("k", start_revision=3) as watch:
        for _ in range(2):  # said again and again
            with pytest.raises(errors.WatchCompacted):
                list(watch)


def test_a_limit_that_refuses(tmp_path: Any) -> None:
    config = Config(listen={"client": "127.0.0.1:0"}, limits={"max_watches_per_node": 2})
    with Node.in_memory(config) as node, node.watch("a"), node.watch("b"):
        with pytest.raises(errors.WatchCanceled, match=r"limits\.max_watches_per_node is 2"):
            node.watch("c").next(30)


# ---- waiting and closing


def test_a_wait_has_a_timeout_and_the_watch_goes_on(node: Node) -> None:
    with node.watch("k") as watch:
        for call in (watch.next, watch.next_batch):
            with pytest.raises(errors.Timeout, match=r"no event within 0\.01 s") as raised:
                call(0.01)
            assert isinstance(raised.value, TimeoutError) and not waits(watch)
        with pytest.raises(errors.Timeout):
            watch.next(0)
        with pytest.raises(ValueError, match="timeout"):
            watch.next(-1)
        node.put("k", "v")
        assert watch.next(30).revision == 2


@pytest.mark.parametrize("form", [list, lambda watch: list(watch.batches()), lambda watch: watch.next()])
def test_close_from_another_thread_ends_a_wait(node: Node, form: Callable[[Watch], Any]) -> None:
    watch = node.watch("k")
    with ThreadPoolExecutor() as pool:
        waiting = pool.submit(form, watch)
        wait_until(lambda: waits(watch))
        watch.close()
        if form is list:
            assert waiting.result(30) == []
        else:
            assert isinstance(waiting.exception(30), errors.Canceled) or waiting.result() == []
    watch.close()
    assert list(watch) == []
    with pytest.raises(errors.Canceled, match="closed"):
        watch.next_batch()
    wait_until(lambda: watchers(node) == 0)


def test_a_watch_that_is_forgotten_is_closed(node: Node) -> None:
    node.put("k", "v")
    for event in node.watch("k", start_revision=2):
        assert event.revision == 2
        break
    gc.collect()
    wait_until(lambda: watchers(node) == 0)


def test_many_threads_take_from_one_watch(node: Node) -> None:
    watch = node.watch("k")
    with ThreadPoolExecutor() as pool:
        parts = [pool.submit(lambda: [event.revision for event in watch]) for _ in range(4)]
        last = node.put_many(("k", str(n)) for n in range(2000)).last_revision
        wait_until(lambda: watch.revision == last)
        watch.close()
        found = [part.result(30) for part in parts]
    assert all(part == sorted(part) for part in found)
    assert sorted(itertools.chain(*found)) == list(range(2, 2002))


def test_a_signal_may_close_a_watch(node: Node) -> None:
    watch = node.watch("k")
    previous = signal.signal(signal.SIGUSR1, lambda *_: watch.close())
    main = threading.get_ident()

    def send() -> None:
        wait_until(lambda: waits(watch))
        signal.pthread_kill(main, signal.SIGUSR1)

    timer = threading.Thread(target=send)
    timer.start()
    try:
        assert list(watch) == []
    finally:
        timer.join()
        signal.signal(signal.SIGUSR1, previous)


def test_the_loops_thread_does_not_wait(node: Node) -> None:
    watch, other = node.watch("k"), node.watch("other")
    outcomes: list[Any] = []

    def callback(_: object) -> None:
        outcomes.append(watch.next(0).revision)  # it is there
        try:
            watch.next()
        except RuntimeError as error:
            outcomes.append(error)
        outcomes.append(node.watch("new"))
        other.close()
        outcomes.append(True)

    node.put("k", "v")
    wait_until(lambda: bool(watch._mailbox.messages) and watch._taker.decode() and not watch._mailbox.messages)
    with standing(node):
        node.futures.put("l", "v").add_done_callback(callback)
    wait_until(lambda: len(outcomes) == 4)
    assert outcomes[0] == 2 and "blocking call in the loop's thread" in str(outcomes[1])
    node.put("new", "v")
    assert outcomes[2].next(30).key == b"new" and list(other) == []


def test_a_fork_may_not_take(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in `test_embed_forks.py`, which has the real fork."""
    node.put("k", "v")
    with node.watch("k", start_revision=2) as watch:
        taken(watch, 1)
        monkeypatch.setattr(forks, "process", -1)
        for call in (watch.next, watch.next_batch, lambda: list(watch)):
            with pytest.raises(errors.Forked, match="belongs to process"):
                call()
        monkeypatch.undo()
        assert watchers(node) == 1


# ---- the end of the node


def test_a_stop_ends_all_watches(node: Node) -> None:
    node.put("k", "v")
    waiting, reading = node.watch("x"), node.watch("k", start_revision=2)
    with ThreadPoolExecutor() as pool:
        blocked = pool.submit(list, waiting)
        wait_until(lambda: waits(waiting) and bool(reading._mailbox.messages))
        node.stop()
        assert isinstance(blocked.exception(30), errors.Stopped)
    assert reading.next(30).revision == 2, "what was sent before the end is not lost"
    for _ in range(2):
        with pytest.raises(errors.Stopped) as raised:
            next(reading)
        assert raised.value.__cause__ is None
    with pytest.raises(errors.Stopped):
        node.watch("k")
    with pytest.raises(errors.NotStarted):
        Node().watch("k")


def test_a_failure_is_the_cause() -> None:
    node = Node.in_memory()
    node.start()
    watch = node.watch("k")

    def bug() -> None:
        raise ZeroDivisionError("a bug")

    node._running().loop.call_soon_threadsafe(bug)
    with pytest.raises(errors.Stopped) as raised:
        watch.next(30)
    assert isinstance(raised.value.__cause__, ZeroDivisionError)
    with pytest.raises(ZeroDivisionError):
        node.wait(30)


# ---- slow consumers


def bulky(count: int) -> Iterator[tuple[str, str]]:
    return ((f"k{n % 7}", "x" * 4096) for n in range(count))


def test_a_consumer_that_takes_nothing_costs_little_and_holds_up_nobody(node: Node) -> None:
    with node.watch("k", prefix=True) as slow, node.watch("k", prefix=True) as quick:
        other = threading.Thread(target=lambda: [quick.next(60) for _ in range(2000)])
        other.start()
        last = node.put_many(bulky(2000)).last_revision  # 8 MB
        other.join(60)
        assert quick.revision == last, "the other one was held up"
        box = slow._mailbox
        assert mailbox.UNREAD <= box.unread <= mailbox.UNREAD + (512 << 10)
        assert sum(map(len, box.messages)) == box.unread
        assert [event.revision for event in taken(slow, 2000)] == list(range(2, 2002)), "lost or doubled"
        node.put("k", "v")
        assert slow.next(30).revision == quick.next(30).revision == last + 1
        with standing(node):
            box._watches.account.settle()
        assert box._watches.account.unread == box.unread == 0


def test_all_watches_together_are_bounded(node: Node) -> None:
    with standing(node):
        account = node._served()[0].watches.account
        account.most = 100 << 10
    watches = [node.watch("k", prefix=True) for _ in range(8)]
    for pair in bulky(100):  # one by one, so a response has few of them
        last = node.put(*pair).revision
    wait_until(lambda: node._running().replica.watches.seen == last)
    assert account.unread <= (100 << 10) + 8 * (64 << 10)
    assert max(watch._mailbox.unread for watch in watches) < mailbox.UNREAD
    for watch in watches:
        assert [event.revision for event in taken(watch, 100)] == list(range(2, 102))
    for watch in watches:
        watch.close()
    wait_until(lambda: watchers(node) == 0 and account.unread == 0)


def test_a_slow_consumer_whose_history_is_gone(node: Node) -> None:
    with node.watch("k", prefix=True) as slow:
        last = node.put_many(bulky(1000)).last_revision
        wait_until(lambda: node._running().replica.watches.seen == last)
        node.compact(last - 10, physical=True)
        found: list[int] = []
        with pytest.raises(errors.WatchCompacted) as raised:
            for event in slow:
                found.append(event.revision)
        assert raised.value.compact_revision == last - 10
        assert found == list(range(2, slow.revision + 1)) and slow.revision < last - 10


def test_one_revision_stays_whole_however_large(node: Node) -> None:
    parts = [Op.put(f"k{n:03}", "x" * 10_000) for n in range(100)]  # a response of 1 MB, decoded in pieces
    with node.watch("k", prefix=True) as one, node.watch("k", prefix=True) as other:
        for _ in range(3):
            node.txn(success=parts)
        for batch, revision in zip(one.batches(), (2, 3, 4), strict=False):
            assert isinstance(batch, WatchBatch) and (batch.revision, len(batch.events)) == (revision, 100)
            assert {event.revision for event in batch.events} == {revision}
            if revision == 4:
                break
        assert [event.revision for event in taken(other, 300)] == [2] * 100 + [3] * 100 + [4] * 100


def test_an_interrupted_take_loses_and_doubles_nothing(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    from metastore.embedded import taking

    real, left = taking.watch_event, itertools.count(1)

    def interrupted(message: Any) -> WatchEvent:
        if next(left) % 50 == 0:
            raise KeyboardInterrupt
        return real(message)

    monkeypatch.setattr(taking, "watch_event", interrupted)
    last = node.put_many(("k", "x" * 3000) for _ in range(400)).last_revision
    found: list[int] = []
    with node.watch("k", start_revision=2) as watch:
        while watch.revision < last:
            try:
                found.append(watch.next(30).revision)
            except KeyboardInterrupt:
                continue
    assert found == list(range(2, 402))


def test_many_watches(node: Node) -> None:
    watches = [node.watch(f"k{n % 100}") for n in range(2000)]
    node.put_many((f"k{n}", "v") for n in range(100))
    assert {watch.next(30).key for watch in watches} == {b"k%d" % n for n in range(100)}
    assert node.stats()["watch_streams"] == watchers(node) == 2000
    del watches
    gc.collect()
    wait_until(lambda: watchers(node) == 0 and node.stats()["watch_streams"] == 0)


# ---- callbacks


def test_a_callback_gets_the_events_in_a_thread_of_its_own(node: Node, caplog: pytest.LogCaptureFixture) -> None:
    seen: list[WatchEvent] = []
    names: set[str] = set()

    def callback(event: WatchEvent) -> None:
        seen.append(event)
        names.add(threading.current_thread().name)
        if event.kv.value == b"bad":
            raise SystemExit("thrown by the program")
        if event.kv.value == b"nested":
            node.put("l", "from the callback")

    watch = node.watch("k").call(callback)
    for value in ("good", "bad", "nested", "good"):
        node.put("k", value)
    wait_until(lambda: len(seen) == 4)
    assert [event.kv.value for event in seen] == [b"good", b"bad", b"nested", b"good"]
    wait_until(lambda: node.get("l") is not None)
    assert names == {f"metastore-{node.config.node.name}/watch"}
    assert sum("a callback of a watch raised" in record.getMessage() for record in caplog.records) == 1
    watch.close()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name in names])


def test_a_callback_goes_on_without_its_watch_and_ends_with_the_node(
    node: Node, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[WatchEvent] = []
    node.watch("k").call(seen.append)
    gc.collect()
    node.put("k", "v")
    wait_until(lambda: len(seen) == 1)
    node.compact(2)
    node.watch("k", start_revision=1).call(seen.append)
    wait_until(lambda: any("watch with a callback has ended" in one.getMessage() for one in caplog.records))
    node.stop()
    wait_until(lambda: not [thread for thread in threading.enumerate() if thread.name.endswith("/watch")])
    assert len(seen) == 1
