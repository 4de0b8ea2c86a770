"""The part of the engine contract about views, which other threads walk while the engine is written."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from .engine_base import ContractBase, batch_of, contents, walked

if TYPE_CHECKING:
    from metastore._core.engine import Engine

__all__ = ["Views"]

AT_ONCE = 6  # views that live at once: of a snapshot, of hashes and of long reads


def state(number: int) -> dict[bytes, bytes]:
    """The contents after `number` writes of `Views`."""
    return {b"k%04d" % n: b"%d" % number for n in range(300)} | {b"only%d" % number: b"x"}


def step(number: int) -> dict[bytes, bytes | None]:
    """The batch that makes the contents `state(number)` of those before it."""
    return {**state(number), b"only%d" % (number - 1): None}


class Views(ContractBase):
    """What a view sees, and in which threads."""

    def test_view_is_not_disturbed(self) -> None:
        engine = self.make_engine()
        engine.write(batch_of({b"k%04d" % n: b"old" for n in range(500)}), 7, 1)
        view = engine.view()
        before = contents(view)
        engine.write(batch_of({b"k%04d" % n: None if n % 2 else b"new" for n in range(500)}), 8, 1)
        assert contents(view) == before and view.applied() == (7, 1)
        assert view.get(b"k0001") == b"old" and engine.get(b"k0001") is None
        assert engine.applied() == (8, 1) and len(contents(engine)) == 250
        view.close()
        assert engine.get(b"k0002") == b"new", "closing a view must not close the engine"
        engine.close()

    def test_no_read_of_a_view_sees_a_later_write(self) -> None:
        """A view that was not read yet, and one whose walk has begun."""
        engine = self.make_engine()
        engine.write(batch_of({b"k%04d" % n: b"old" for n in range(0, 500, 2)}), 1, 1)
        untouched, begun = engine.view(), engine.view()
        walk = begun.iterate(b"k")
        first = next(iter(walk))
        engine.write(batch_of({b"k%04d" % n: None if n % 4 == 0 else b"new" for n in range(500)}), 2, 1)
        engine.flush()
        expected = [(b"k%04d" % n, b"old") for n in range(0, 500, 2)]
        assert [first, *((key, value) for key, value in walk if key[:1] == b"k")] == expected, "a begun iterate()"
        for view in (untouched, begun):
            assert walked(view, b"k") == expected, "iterate() of a view sees a later write"
            assert view.seek_ge(b"k0001") == (b"k0002", b"old"), "seek_ge() of a view sees a later write"
            assert view.seek_le(b"k0001") == (b"k0000", b"old"), "seek_le() of a view sees a later write"
            assert view.seek_le(b"k0499") == (b"k0498", b"old")
            assert view.get(b"k0001") is None and view.get(b"k0004") == b"old", "get() of a view sees a later write"
            assert view.scan(b"k", b"l", True, 2) == expected[:-3:-1], "scan() of a view sees a later write"
            assert view.applied() == (1, 1), "applied() of a view sees a later write"
            view.close()
        engine.close()

    def test_walks_over_one_view_by_turns(self) -> None:
        """Walks that begin at different keys, and look-ups between their steps, do not disturb each other."""
        engine = self.make_engine()
        engine.write(batch_of({b"k%04d" % n: b"%d" % n for n in range(200)}), 1, 1)
        view = engine.view()
        walks = [(number, iter(view.iterate(b"k%04d" % number))) for number in (0, 50, 3)]
        for step_ in range(140):
            for first, walk in walks:
                number = first + step_
                assert next(walk) == (b"k%04d" % number, b"%d" % number), f"step {step_} of a walk from key {first}"
            assert view.get(b"k0190") == b"190"
        view.close()
        engine.close()

    def test_many_views_live_at_once(self) -> None:
        engine = self.make_engine()
        views: list[Engine] = []
        for number in range(1, AT_ONCE + 1):
            engine.write(batch_of(step(number)), number, 1)
            views.append(engine.view())
        for number in (3, 1, 6, 2, 5, 4):
            view = views[number - 1]
            assert contents(view) == state(number) and view.applied() == (number, 1), f"view {number} of {AT_ONCE}"
            view.close()
        again = engine.view()
        assert contents(again) == state(AT_ONCE)
        again.close()
        engine.close()

    def test_a_view_is_walked_and_closed_in_another_thread(self) -> None:
        """Snapshots and backups are written so. Meanwhile the engine is read and written in its own thread."""
        engine = self.make_engine()
        engine.write(batch_of(step(1)), 1, 1)
        view = engine.view()
        walk = iter(view.iterate(b""))
        for number in range(2, 8):
            self.in_thread("a view's iterate()", lambda: next(walk))
            engine.write(batch_of(step(number)), number, 1)
            assert engine.get(b"k0001") == b"%d" % number
        assert self.in_thread("a view's scan()", lambda: contents(view)) == state(1)
        assert self.in_thread("a view's get()", lambda: view.get(b"k0001")) == b"1"
        assert self.in_thread("a view's iterate()", lambda: walked(view)) == sorted(state(1).items())
        assert self.in_thread("a view's seek_ge()", lambda: view.seek_ge(b"k0002")) == (b"k0002", b"1")
        assert self.in_thread("a view's seek_le()", lambda: view.seek_le(b"k0002")) == (b"k0002", b"1")
        self.in_thread("a view's applied() and data_size()", lambda: (view.applied(), view.data_size()))
        self.in_thread("a view's close()", view.close)
        assert contents(engine) == state(7)
        engine.close()

    def test_a_view_is_walked_while_the_engine_is_written(self) -> None:
        engine = self.make_engine()
        engine.write(batch_of(step(1)), 1, 1)
        view, number = engine.view(), 1
        failures: list[BaseException] = []

        def walks() -> None:
            try:
                for _ in range(20):
                    assert walked(view) == sorted(state(1).items()), "a view sees a later write"
                view.close()
            except BaseException as error:  # noqa: BLE001
                failures.append(error)

        thread = threading.Thread(target=walks, daemon=True)
        thread.start()
        while thread.is_alive() and number < 2000:
            number += 1
            engine.write(batch_of(step(number)), number, 1)
        thread.join(self.patience)
        assert not thread.is_alive() and not failures, (
            f"a view cannot be walked in another thread while the engine is written: {failures}"
        )
        assert contents(engine) == state(number)
        engine.close()
