"""Watchers without a node. Each gets what it asked for, once, in order, whatever the steps and the readers do."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest
from support import messages as m
from support.hubs import (
    NO_DELETE,
    NO_PUT,
    History,
    TestSink,
    WatchRequest,
    create,
    event_of,
    holds,
    settle,
    some_key,
    watch,
)

from metastore import errors
from metastore._core.mvcc_sweep import sweep_slice
from metastore._core.ordered_map import OrderedMap
from metastore._core.watch import WatchHub
from metastore._core.watch_index import Stream
from metastore._core.watch_wire import decode_request


class Observer:
    """One watcher of the random test, and what it got."""

    def __init__(self, sink: TestSink, ident: int, fields: dict[str, Any], created: int) -> None:
        self.sink = sink
        self.ident = ident
        self.fields = fields
        self.start = fields.get("start_revision") or created + 1
        self.events: list[Any] = []
        self.compacted = 0
        self.part: list[Any] = []

    def take(self, response: Any) -> None:
        """Take a response with this watcher's id. Events of one revision come together."""
        assert not self.compacted, "something follows the cancellation"
        if response.compact_revision:
            assert response.canceled and response.header.revision == 0
            self.compacted = response.compact_revision
        self.part += response.events
        if response.fragment:
            assert self.fields.get("fragment")
            return
        if self.part and self.events:
            assert self.part[0].kv.mod_revision > self.events[-1].kv.mod_revision, "a revision came in two responses"
        assert not self.part or response.header.revision >= self.part[-1].kv.mod_revision
        self.events += self.part
        self.part = []

    def wanted(self, history: History) -> list[Any]:
        """Return what it must have got by now, without previous pairs."""
        fields = self.fields
        filters = fields.get("filters", [])
        return [
            event_of(change, False, 0)
            for change in history.changes
            if change.revision >= self.start
            and holds(fields["key"], fields.get("range_end", b""), change.key)
            and (NO_DELETE if change.value is None else NO_PUT) not in filters
        ]

    def check(self, history: History, whole: bool) -> None:
        wanted = self.wanted(history)
        for event in self.events:
            prev = event.prev_kv if event.HasField("prev_kv") else None
            if prev is not None:
                assert self.fields.get("prev_kv")
                change = next(
                    c for c in history.changes if (c.revision, c.key) == (event.kv.mod_revision, event.kv.key)
                )
                assert change.prev == (prev.value, prev.mod_revision) and prev.key == event.kv.key
                event.ClearField("prev_kv")
        if whole and not self.compacted:
            assert self.events == wanted
        else:
            assert self.events == wanted[: len(self.events)]


def a_watcher(chance: random.Random, revision: int) -> dict[str, Any]:
    """Return the fields of a random create request."""
    key = some_key(chance)
    end = chance.choice([b"", b"", b"\0", key + b"\xff", b"z"])
    fields: dict[str, Any] = {"key": key, "range_end": end if end in (b"", b"\0") or end > key else b""}
    if chance.random() < 0.6:
        fields["start_revision"] = chance.randrange(1, revision + 6)
    if chance.random() < 0.3:
        fields["filters"] = [chance.choice([NO_PUT, NO_DELETE])]
    for flag in ("prev_kv", "fragment"):
        fields[flag] = chance.random() < 0.3
    return fields


def scribble(history: History, chance: random.Random) -> None:
    """Make a few writes, then their commit."""
    for _ in range(chance.randrange(1, 6)):
        if chance.random() < 0.75:
            history.put(some_key(chance), b"%d" % chance.randrange(100))
        else:
            key = some_key(chance)
            history.delete(key, chance.choice([b"", key + b"\xff", b"\0"]))
    if chance.random() < 0.15:
        history.commit()
        back = history.store.revision - chance.randrange(1, 25)
        if back > max(0, history.store.compact_revision):
            history.compact(back)
    if chance.random() < 0.9:
        history.commit()


def distribute(observers: list[Observer], sinks: list[TestSink]) -> None:
    """Give each observer what its sink got."""
    for sink in sinks:
        for response in sink.take():
            if response.created:
                continue
            for observer in observers:
                if observer.sink is sink and observer.ident == response.watch_id:
                    observer.take(response)


@pytest.mark.parametrize("seed", range(25))
def test_every_watcher_is_sent_its_events(seed: int) -> None:
    """Writes, compactions, sweeps, watchers, slow readers and sizes of steps are random."""
    chance = random.Random(seed)
    history = History.fresh()
    bounds = {"batch": chance.choice([1, 200, 1 << 17]), "max_held": chance.choice([300, 4 << 20])}
    hub = WatchHub(history.store, fragment_size=chance.choice([60, 1 << 20]), **bounds)
    hub.pressed = lambda: chance.random() < 0.5
    sinks = [TestSink() for _ in range(4)]
    streams = [Stream(sink) for sink in sinks]
    observers: list[Observer] = []
    for _ in range(150):
        scribble(history, chance)
        if chance.random() < 0.25:
            which = chance.randrange(len(streams))
            fields = a_watcher(chance, history.store.revision)
            sinks[which].room = 1 << 30
            answer = watch(hub, streams[which], **fields)
            assert answer.created and not answer.canceled and answer.header.revision == history.store.revision
            observers.append(Observer(sinks[which], answer.watch_id, fields, answer.header.revision))
        for sink in sinks:
            sink.room = chance.choice([0, 1, 3, 1 << 30])
        for _ in range(chance.randrange(4)):
            hub.step(chance.choice([1, 2, 5, 1000]), chance.random() < 0.8)
        if not hub.holds_history:
            sweep_slice(history.store, chance.choice([3, 1000]))
        if chance.random() < 0.5:
            distribute(observers, sinks)
            for observer in observers:
                observer.check(history, False)
    history.commit()
    for _ in range(1000):
        for sink in sinks:
            sink.room = 1 << 30
        settle(hub)
        distribute(observers, sinks)
        if not hub.stuck:
            break
    for observer in observers:
        observer.check(history, True)
    assert len([one for one in observers if one.events]) > 3
    for stream in streams:
        hub.close(stream)
    settle(hub)
    assert hub.idle and hub.units == 0


# ---- ids, answers


def a_stream(history: History, **options: Any) -> tuple[WatchHub, Stream, TestSink]:
    sink = TestSink()
    return WatchHub(history.store, **options), Stream(sink), sink


def a_watched_key() -> tuple[History, WatchHub, Stream, TestSink]:
    """Return an empty store, and a stream with one watcher of key a."""
    history = History.fresh()
    hub, stream, sink = a_stream(history)
    watch(hub, stream, key=b"a")
    return history, hub, stream, sink


def test_ids_are_chosen_and_checked_as_etcd_does() -> None:
    hub, stream, sink = a_stream(History.fresh())
    assert watch(hub, stream, key=b"a").watch_id == 0
    assert watch(hub, stream, key=b"a", watch_id=1).watch_id == 1
    assert watch(hub, stream, key=b"a").watch_id == 2
    again = watch(hub, stream, key=b"a", watch_id=1)
    assert (again.created, again.canceled, again.watch_id) == (True, True, -1)
    assert again.cancel_reason == "mvcc: duplicate watch ID provided on the WatchStream"
    assert watch(hub, stream, key=b"a", watch_id=-1).cancel_reason == again.cancel_reason
    for ident in (1, 7):
        hub.handle(stream, decode_request(WatchRequest(cancel_request={"watch_id": ident}).SerializeToString()), 0)
    assert [(one.watch_id, one.canceled, one.created) for one in sink.take()[-1:]] == [(1, True, False)]
    assert watch(hub, stream, key=b"a", watch_id=1).watch_id == 1
    assert watch(hub, stream, key=b"a").watch_id == 3


def test_a_negative_start_is_refused() -> None:
    hub, stream, _ = a_stream(History.fresh())
    answer = watch(hub, stream, key=b"a", start_revision=-1)
    assert (answer.created, answer.canceled, answer.watch_id, answer.compact_revision) == (True, True, -1, 0)
    assert answer.cancel_reason == "mvcc: the start revision of a watcher is negative"


@pytest.mark.parametrize(("key", "end", "empty"), [(b"b", b"a", True), (b"b", b"b", True), (b"b", b"\0", False)])
def test_an_end_must_be_above_the_key(key: bytes, end: bytes, empty: bool) -> None:
    hub, stream, _ = a_stream(History.fresh())
    answer = watch(hub, stream, key=key, range_end=end)
    assert answer.canceled is empty and answer.created
    assert answer.cancel_reason == ("mvcc: watcher range is empty" if empty else "")


def test_an_empty_key_with_a_zero_end_watches_everything() -> None:
    history = History.fresh()
    hub, stream, sink = a_stream(history)
    watch(hub, stream, range_end=b"\0")
    history.put(b"\0")
    history.put(b"zz")
    history.commit()
    sink.take()
    settle(hub)
    (response,) = sink.take()
    assert [event.kv.key for event in response.events] == [b"\0", b"zz"]


def test_a_compacted_start_is_created_and_cancelled() -> None:
    history = History.fresh()
    for n in range(10):
        history.put(b"a", b"%d" % n)
    history.delete(b"a")
    history.compact(12)
    history.commit()
    while sweep_slice(history.store, 100):
        pass
    hub, stream, sink = a_stream(history)
    for start in (11, 12):
        watch(hub, stream, key=b"a", start_revision=start)
    settle(hub)
    first, second, cancelled, event = sink.take()
    assert first.created and second.created
    assert (cancelled.watch_id, cancelled.canceled, cancelled.compact_revision) == (0, True, 12)
    assert cancelled.header.revision == 0
    assert (event.watch_id, event.events[0].type, event.events[0].kv.mod_revision) == (1, 1, 12)
    assert list(stream.watchers) == [1]


def test_watchers_are_bounded() -> None:
    history = History.fresh()
    hub, stream, _ = a_stream(history, max_per_stream=3, max_per_node=5)
    other = Stream(TestSink())
    for _ in range(3):
        assert not watch(hub, stream, key=b"a").canceled
    full = watch(hub, stream, key=b"a")
    assert (full.watch_id, full.canceled) == (-1, True) and "max_watches_per_stream is 3" in full.cancel_reason
    assert not watch(hub, other, key=b"x" * 600).canceled
    full = watch(hub, other, key=b"a")
    assert (full.watch_id, full.canceled) == (-1, True) and "max_watches_per_node is 5" in full.cancel_reason
    hub.close(other)
    settle(hub)
    assert (hub.count, hub.units) == (3, 3)


def test_what_is_cancelled_leaves_nothing_behind() -> None:
    """A flood of watchers of the future is cancelled one by one at once. The number of waiting items stays bounded."""
    hub, stream, sink = a_stream(History.fresh())
    for _ in range(20_000):
        sink.take()
        ident = watch(hub, stream, key=b"a", start_revision=1 << 40, progress_notify=True).watch_id
        hub.cancel(stream, ident)
    assert hub.waiting <= 2 * 2 * 1001


# ---- slow readers, large revisions, snapshots


def test_a_reader_that_stopped_goes_on_where_it_was() -> None:
    history = History.fresh()
    hub, stream, sink = a_stream(history)
    quick = TestSink()
    watch(hub, stream, key=b"a")
    watch(hub, Stream(quick), key=b"a")
    sink.room = 3
    for n in range(50):
        history.put(b"a", b"%d" % n)
        history.commit()
        settle(hub)
    assert len(sink.sent) == 3 and hub.stuck and len(quick.sent) == 51
    sink.room = 1 << 30
    settle(hub)
    events = [event for response in sink.take() for event in response.events]
    assert [event.kv.value for event in events] == [b"%d" % n for n in range(50)]
    assert not hub.stuck


def test_a_reader_whose_history_was_compacted_is_told() -> None:
    history, hub, _stream, sink = a_watched_key()
    sink.room = 0
    for n in range(9):
        history.put(b"a", b"%d" % n)
    history.commit()
    settle(hub)
    history.compact(5)
    history.commit()
    sink.room = 1 << 30
    settle(hub)
    assert (sink.sent[-1].canceled, sink.sent[-1].compact_revision) == (True, 5)


def test_a_compaction_does_not_overtake_a_live_watcher() -> None:
    """The events of a batch in which they are compacted are still sent, in however many steps."""
    history, hub, _stream, sink = a_watched_key()
    for n in range(20):
        history.put(b"a", b"%d" % n)
    history.compact(21)
    history.commit()
    hub.step(1)
    assert hub.holds_history
    settle(hub, 2)
    assert not hub.holds_history
    events = [event.kv.mod_revision for response in sink.take() for event in response.events]
    assert events == list(range(2, 22))


def test_one_revision_of_many_events_is_held_for_few_watchers() -> None:
    """Deleting 2,000 keys concerns 300 watchers of distinct ranges. Their events are not all held at the same time."""
    history = History.fresh()
    hub, stream, sink = a_stream(history, max_per_stream=1000)
    for n in range(2000):
        history.put(b"k%05d" % n + b"x" * 200)
    history.commit()
    for n in range(300):
        watch(hub, stream, key=b"k", range_end=b"l%d" % n)
    sink.take()
    history.delete(b"k", b"l")
    history.commit()
    most = 0
    while hub.step(5000):
        most = max(most, hub.held)
    assert most < 40 << 20
    responses = sink.take()
    assert len(responses) == 300 and all(len(one.events) == 2000 for one in responses)
    assert len({one.watch_id for one in responses}) == 300


def test_a_revision_that_no_response_can_hold_cancels() -> None:
    """The deletion of all keys with their previous values would be one message of any length."""
    history = History.fresh()
    hub, stream, sink = a_stream(history, max_response=20_000)
    for n in range(100):
        history.put(b"k%05d" % n, b"v" * 500)
    history.commit()
    watch(hub, stream, key=b"k", range_end=b"l", prev_kv=True)
    watch(hub, stream, key=b"k", range_end=b"l")
    sink.take()
    history.delete(b"k", b"l")
    history.commit()
    settle(hub)
    cancelled, whole = sorted(sink.take(), key=lambda response: response.watch_id)
    assert cancelled.canceled and not cancelled.events
    assert cancelled.cancel_reason == "metastore: the events of revision 102 take more than 20000 bytes"
    assert len(whole.events) == 100 and list(stream.watchers) == [1]


def test_fragments_are_marked_and_complete() -> None:
    history = History.fresh()
    hub, stream, sink = a_stream(history, fragment_size=300)
    for n in range(50):
        history.put(b"k%05d" % n, b"v")
    history.commit()
    watch(hub, stream, key=b"k", range_end=b"l", fragment=True)
    watch(hub, stream, key=b"k", range_end=b"l")
    sink.take()
    history.delete(b"k", b"l")
    history.commit()
    settle(hub)
    responses = sink.take()
    parts = [one for one in responses if one.watch_id == 0]
    assert len(parts) > 1 and [one.fragment for one in parts] == [True] * (len(parts) - 1) + [False]
    assert [e.kv.key for one in parts for e in one.events] == [b"k%05d" % n for n in range(50)]
    (whole,) = [one for one in responses if one.watch_id == 1]
    assert len(whole.events) == 50 and not whole.fragment
    at = responses.index(parts[0])
    assert responses[at : at + len(parts)] == parts


def deleted(history: History, count: int) -> None:
    """Delete `count` keys in one revision. Their events take some 250 bytes each."""
    for n in range(count):
        history.put(b"k%05d" % n + b"x" * 230)
    history.commit()


def test_long_responses_to_many_are_made_one_after_the_other() -> None:
    """40 streams watch one range under ids of their own, so none can have the response of another. Once, one step made
    all 40."""
    history = History.fresh()
    hub = WatchHub(history.store)
    sinks = [TestSink() for _ in range(40)]
    streams = [Stream(sink) for sink in sinks]
    deleted(history, 1000)
    for ident, stream in enumerate(streams, 1):
        watch(hub, stream, key=b"k", range_end=b"l", watch_id=ident)
    history.delete(b"k", b"l")
    history.commit()
    most, before = 0, hub.responses_sent
    while hub.step(200):
        most, before = max(most, hub.responses_sent - before), hub.responses_sent
    assert most == 1
    for ident, sink in enumerate(sinks, 1):
        assert [(one.watch_id, len(one.events)) for one in sink.take()] == [(ident, 0), (ident, 1000)]


@pytest.mark.parametrize("fragment", [False, True])
def test_a_long_response_is_made_in_many_steps(fragment: bool) -> None:
    """Meanwhile its stream gets answers to other requests, which do not come between fragments. Who cancels gets no
    event any more, and a stream that ends ends its response."""
    history = History.fresh()
    hub = WatchHub(history.store, fragment_size=100_000)
    sinks = [TestSink() for _ in range(3)]
    streams = [Stream(sink) for sink in sinks]
    deleted(history, 4000)
    for ident, stream in enumerate(streams, 1):
        watch(hub, stream, key=b"k", range_end=b"l", watch_id=ident, fragment=fragment)
    history.delete(b"k", b"l")
    history.commit()
    steps = 0
    while hub.step(50):
        steps += 1
        if steps == 10_000:
            break
        if not sinks[0].take()[1:] and steps % 10 == 0:
            watch(hub, streams[1], key=b"z")
        if hub.events_sent == 4000:
            hub.cancel(streams[1], 2)
            hub.close(streams[2])
    assert steps > 200, "a step copies 50 KiB"
    assert hub.events_sent == 4000
    late = sinks[1].take()
    assert not any(one.events for one in late) and late[-1].canceled and late[-1].watch_id == 2
    assert not any(one.events for one in sinks[2].take())


def test_nothing_comes_between_fragments_that_are_made_in_many_steps() -> None:
    history = History.fresh()
    hub, stream, sink = a_stream(history, fragment_size=100_000)
    deleted(history, 4000)
    watch(hub, stream, key=b"k", range_end=b"l", fragment=True)
    history.delete(b"k", b"l")
    history.commit()
    while hub.step(50):
        watch(hub, stream, key=b"z")
    sent = sink.take()
    parts = [at for at, one in enumerate(sent) if one.events]
    assert parts == list(range(parts[0], parts[0] + len(parts))) and len(parts) > 5
    assert parts[0] > 100 and sum(len(one.events) for one in sent) == 4000
    assert [sent[at].fragment for at in parts] == [True] * (len(parts) - 1) + [False]


@pytest.mark.parametrize("pressed", [False, True])
def test_history_waits_for_those_who_wait_for_the_next_turn(pressed: bool) -> None:
    """A put took four times as long while a watcher was sent a million revisions."""
    history = History.fresh()
    hub, stream, sink = a_stream(history)
    hub.pressed = lambda: pressed
    for n in range(2000):
        history.put(b"k%d" % n)
    history.commit()
    watch(hub, stream, key=b"k", range_end=b"l", start_revision=2)
    steps = 1
    while hub.step(100_000):
        steps += 1
    assert steps >= 15 if pressed else steps == 1
    for n in range(2000):
        history.put(b"k%d" % n)
    history.commit()
    assert not hub.step(100_000), "what is new does not wait"
    assert [event.kv.mod_revision for one in sink.take() for event in one.events] == list(range(2, 4002))


def test_a_snapshot_leaves_no_gap() -> None:
    """The store is filled from a snapshot of a later state. The events in between are sent, or their loss is
    reported."""
    ahead = History.fresh()
    for n in range(30):
        ahead.put(b"a", b"%d" % n)
    for compacted, told in ((8, True), (20, False)):
        behind = History.fresh()
        hub, stream, sink = a_stream(behind)
        for n in range(10):
            behind.put(b"a", b"%d" % n)
        behind.commit()
        watch(hub, stream, key=b"a")
        settle(hub)
        sink.take()
        if compacted > ahead.store.compact_revision:
            ahead.compact(compacted)
        ahead.commit()
        behind.store.engine.adopt(copy_of(ahead))
        behind.store.reload()
        settle(hub)
        events = [event.kv.mod_revision for response in sink.sent for event in response.events]
        assert events == (list(range(12, 32)) if told else [])
        assert told or (sink.sent[-1].canceled and sink.sent[-1].compact_revision == compacted)


def test_a_mark_does_not_pass_over_what_a_snapshot_took_away() -> None:
    """Where many watchers have lost their history, ending them takes several steps; none is told of progress before."""
    ahead = History.fresh()
    for n in range(30):
        ahead.put(b"a", b"%d" % n)
    ahead.compact(20)
    ahead.commit()
    behind = History.fresh()
    hub, stream, sink = a_stream(behind)
    behind.put(b"a", b"0")
    behind.commit()
    for _ in range(5):
        watch(hub, stream, key=b"a", progress_notify=True)
    settle(hub)
    behind.store.engine.adopt(copy_of(ahead))
    behind.store.reload()
    sink.take()
    ask_progress(hub, stream)
    while hub.step(1):
        hub.tick(10_000.0)
    assert [(one.watch_id, one.canceled, one.compact_revision) for one in sink.take()] == [
        (ident, True, 20) for ident in range(5)
    ]


def test_the_last_watcher_that_goes_in_the_middle_of_a_pass_holds_up_no_sweep() -> None:
    history, hub, stream, sink = a_watched_key()
    for n in range(20):
        history.put(b"a", b"%d" % n)
    history.commit()
    assert hub.step(5) and hub.held
    hub.cancel(stream, 0)
    if not hub.idle:  # else nobody calls step
        settle(hub)
    history.compact(20)
    history.commit()
    assert hub.idle and not hub.holds_history and not hub.held
    sink.take()
    watch(hub, stream, key=b"a")
    history.put(b"a", b"new")
    history.commit()
    settle(hub)
    assert [event.kv.mod_revision for response in sink.take() for event in response.events] == [22]


def copy_of(history: History) -> Any:
    """Return a staged engine with the same contents."""
    engine = history.store.engine
    made, batch = engine.stage(), OrderedMap()
    for key, value in engine.scan(b"", b"\xff", False, 1 << 30):
        batch.set(key, value)
    made.write(batch, *engine.applied())
    return made


# ---- progress


def ask_progress(hub: WatchHub, stream: Stream) -> None:
    hub.handle(stream, decode_request(WatchRequest(progress_request={}).SerializeToString()), 0)


def test_progress_is_answered_when_all_watchers_are_up_to_date() -> None:
    history = History.fresh()
    hub, stream, sink = a_stream(history)
    ask_progress(hub, stream)
    settle(hub)
    assert sink.take() == []  # a stream without watchers gets no answer
    for n in range(40):
        history.put(b"a", b"%d" % n)
    history.commit()
    watch(hub, stream, key=b"a", start_revision=1)
    sink.take()
    ask_progress(hub, stream)
    ask_progress(hub, stream)
    while hub.step(2):
        pass
    *events, progress = sink.take()
    assert sum(len(one.events) for one in events) == 40
    assert (progress.watch_id, progress.header.revision, len(progress.events)) == (-1, 41, 0)
    sink.room = 0
    history.put(b"a")
    history.commit()
    ask_progress(hub, stream)
    settle(hub)
    assert sink.take() == []
    sink.room = 1 << 30
    settle(hub)
    assert [(one.watch_id, one.header.revision) for one in sink.take()] == [(0, 42), (-1, 42)]


def test_a_watcher_of_the_future_holds_progress_back() -> None:
    """A mark before its start would lead its client backwards (etcd)."""
    history = History.fresh()
    hub, stream, sink = a_stream(history)
    watch(hub, stream, key=b"a", start_revision=4)
    sink.take()
    for revision in (2, 3):
        ask_progress(hub, stream)
        history.put(b"b")
        history.commit()
        settle(hub)
        assert history.store.revision == revision
        assert [one.header.revision for one in sink.take()] == ([3] if revision == 3 else [])
    later = watch(hub, stream, key=b"a", start_revision=50).watch_id
    sink.take()
    ask_progress(hub, stream)
    settle(hub)
    assert sink.take() == []
    hub.cancel(stream, later)
    settle(hub)
    assert [one.watch_id for one in sink.take()] == [later, -1]


def test_notifications_come_to_those_who_heard_nothing() -> None:
    history = History.fresh()
    hub, stream, sink = a_stream(history, interval=10.0, jitter=lambda: 0.5)
    assert hub.next_alarm == math.inf
    watch(hub, stream, key=b"a", progress_notify=True)
    watch(hub, stream, key=b"b", progress_notify=True)
    watch(hub, stream, key=b"a")
    assert hub.next_alarm == 10.5
    sink.take()
    history.put(b"a")
    history.commit()
    settle(hub)
    sink.take()
    hub.tick(10.4)
    assert sink.take() == []
    hub.tick(10.6)
    assert [(one.watch_id, one.header.revision, len(one.events)) for one in sink.take()] == [(1, 2, 0)]
    hub.tick(21.2)
    assert [one.watch_id for one in sink.take()] == [0, 1]


# ---- requests


@pytest.mark.parametrize("body", [b"\xff", b"\x0a\x05abc", b"\x08\x01", b"\x0a\x02\x08\x01", b"\x12\x02\x0a\x00"])
def test_damaged_requests_are_refused(body: bytes) -> None:
    with pytest.raises(errors.MalformedRequest):
        decode_request(body)


def test_requests_are_decoded() -> None:
    wanted = {"key": b"k", "range_end": b"l", "start_revision": -3, "progress_notify": True, "prev_kv": True,
              "watch_id": 9, "fragment": True, "filters": [0, 1]}  # fmt: skip
    found = create(**wanted)
    assert found.kind == 1 and found.no_put and found.no_delete
    for name, value in wanted.items():
        assert name == "filters" or getattr(found, name) == value
    assert decode_request(b"").kind == 0
    assert decode_request(bytes([0x2A, 0])).kind == 0  # a field that nobody knows
    assert create(filters=[1]).no_delete and not create(filters=[1]).no_put
    unpacked = m.TYPES["WatchCreateRequest"]().SerializeToString() + bytes([0x28, 1])
    assert decode_request(bytes([0x0A, len(unpacked)]) + unpacked).no_delete
