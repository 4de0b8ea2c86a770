"""The part of the engine contract about snapshots: `restore`, and `stage`, `seal` and `adopt`."""

from __future__ import annotations

import contextlib
import struct
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING

from metastore._core.engine import APPLIED_KEY
from metastore.errors import FormatError

from .engine_base import ContractBase, batch_of, contents, raises, walked

if TYPE_CHECKING:
    from metastore._core.engine import Engine

__all__ = ["OLD", "Replacing", "stream_of"]

OLD = {b"k%04d" % n: b"old" for n in range(0, 400, 2)} | {b"only old": b"x" * 1000}
NEW = {b"k%04d" % n: b"new" for n in range(1000)} | {b"m": b"", b"n" * 60: b"y" * 5000}


def stream_of(pairs: dict[bytes, bytes], index: int, term: int) -> list[tuple[bytes, bytes]]:
    """The stream of a snapshot: these pairs, with the log position among them, in the order of the keys."""
    return sorted({**pairs, APPLIED_KEY: struct.pack("<QQ", index, term)}.items())


class Interrupted(Exception):
    """What a stream raises that breaks off."""


def broken_off(stream: list[tuple[bytes, bytes]], after: int) -> Iterator[tuple[bytes, bytes]]:
    """Yield the first `after` pairs of a stream, then raise."""
    yield from stream[:after]
    raise Interrupted


class Replacing(ContractBase):
    """The contents are replaced by those of a snapshot."""

    def test_restore_replaces_everything(self) -> None:
        source, target = self.make_engine(), self.make_engine()
        source.write(batch_of({b"a": b"1", b"b": b"2", b"\xff" * 60: b"long"}), 9, 3)
        target.write(batch_of({b"b": b"other", b"gone": b"x"}), 2, 1)
        view = source.view()
        target.restore(view.scan(b"", None, False, 0))
        view.close()
        assert contents(target) == contents(source) == {b"a": b"1", b"b": b"2", b"\xff" * 60: b"long"}
        assert target.applied() == (9, 3)
        assert target.get(b"gone") is None and target.get(b"b") == b"2"
        target.write(batch_of({b"c": b"3"}), 10, 3)
        assert target.get(b"c") == b"3" and source.get(b"c") is None
        target.drop()
        target.restore(iter(stream_of(NEW, 20, 4)))
        assert contents(target) == NEW and walked(target) == sorted(NEW.items()) and target.applied() == (20, 4)
        source.close()
        target.close()

    def test_what_was_restored_is_found_again(self) -> None:
        folder = self.new_folder()
        engine = self.open_engine(folder)
        engine.write(batch_of(dict(OLD)), 9, 1)
        engine.restore(stream_of(NEW, 20, 4))
        assert engine.durable_applied() in (0, 20), "durable_applied() is that of the old contents"
        engine.flush()
        engine.close()
        again = self.open_engine(folder)
        if again.persistent:
            assert contents(again) == NEW and again.applied() == (20, 4)
        else:
            assert contents(again) == {} and again.applied() == (0, 0)
        again.close()

    def test_a_restore_that_breaks_off(self) -> None:
        """The stream's own exception passes through, and the contents are the old ones, now and at the next start."""
        for after in (0, 1, 700, 1003):
            self._break_off(after)

    def _break_off(self, after: int) -> None:
        folder = self.new_folder()
        engine = self.open_engine(folder)
        engine.write(batch_of(dict(OLD)), 9, 1)
        engine.flush()
        with raises(Interrupted, f"restore() of a stream that breaks off after {after} pairs"):
            engine.restore(broken_off(stream_of(NEW, 20, 4), after))
        assert engine.applied() == (9, 1), "applied() after a restore that broke off"
        assert contents(engine) == OLD, "contents after a restore that broke off"
        engine.close()
        again = self.open_engine(folder)
        if again.persistent:
            assert again.applied() == (9, 1) and contents(again) == OLD, "after a start"
        again.restore(stream_of(NEW, 20, 4))
        assert contents(again) == NEW and again.applied() == (20, 4)
        again.close()

    def test_a_stream_without_a_log_position_is_refused(self) -> None:
        engine = self.make_engine()
        engine.write(batch_of(dict(OLD)), 9, 1)
        with raises(FormatError, "restore() of a stream without a log position"):
            engine.restore(sorted(NEW.items()))
        assert contents(engine) == OLD and engine.applied() == (9, 1)
        engine.close()

    @staticmethod
    def _check_empty(staged: Engine) -> None:
        assert staged.applied() == (0, 0), "stage() returned an engine that is not empty"
        # Nobody reads a staged engine, so it may lack the methods for that.
        with contextlib.suppress(NotImplementedError):
            assert contents(staged) == {}, "stage() returned an engine that is not empty"

    def _staged(self, engine: Engine) -> Engine | None:
        """Return a filled and sealed engine for `engine`, or None if that one cannot have any. It is filled in another
        thread, while the old one is read and written."""
        staged = engine.stage()
        if staged is None:
            return None
        assert staged is not engine, "stage() returned the engine itself"
        self._check_empty(staged)
        begun = threading.Event()

        def stream() -> Iterator[tuple[bytes, bytes]]:
            for number, pair in enumerate(stream_of(NEW, 20, 4)):
                yield pair
                if number == 500:
                    begun.set()

        def fill() -> None:
            staged.restore(stream())
            staged.seal()

        def use() -> None:
            begun.wait(self.patience)
            assert contents(engine) == OLD, "filling a staged engine changes the engine"
            engine.write(batch_of({b"late": b"x"}), 10, 1)

        failures: list[BaseException] = []

        def run() -> None:
            try:
                fill()
            except BaseException as error:  # noqa: BLE001
                failures.append(error)
            finally:
                begun.set()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        use()
        thread.join(self.patience)
        assert not thread.is_alive() and not failures, f"a staged engine cannot be filled in a thread: {failures}"
        assert contents(engine) == {**OLD, b"late": b"x"}, "seal() changes the engine itself"
        return staged

    def test_a_staged_engine_is_adopted(self) -> None:
        folder = self.new_folder()
        engine = self.open_engine(folder)
        engine.write(batch_of(dict(OLD)), 9, 1)
        view = engine.view()
        if (staged := self._staged(engine)) is None:
            engine.close()
            return
        engine.adopt(staged)
        assert engine.applied() == (20, 4) and contents(engine) == NEW, "adopt() does not take over the new contents"
        assert engine.get(b"late") is None and engine.get(b"k0001") == b"new"
        engine.write(batch_of({b"k0001": b"newer", b"k0003": None}), 21, 4)
        assert contents(view) == OLD and view.applied() == (9, 1), "adopt() changes a view of the old contents"
        assert walked(view) == sorted(OLD.items())
        self.in_thread("close() of a view from before adopt()", view.close)
        engine.flush()
        later = engine.view()
        expected = {**NEW, b"k0001": b"newer"}
        del expected[b"k0003"]
        assert contents(later) == contents(engine) == expected and later.applied() == (21, 4)
        later.close()
        engine.close()
        again = self.open_engine(folder)
        if again.persistent:
            assert again.applied() == (21, 4) and contents(again) == expected, "what follows adopt() is not found again"
        again.close()

    def test_a_sealed_engine_is_what_a_start_finds(self) -> None:
        """Whether or not it was adopted before the process ended."""
        folder = self.new_folder()
        engine = self.open_engine(folder)
        engine.write(batch_of(dict(OLD)), 9, 1)
        engine.flush()
        staged = self._staged(engine)
        if staged is not None:
            staged.close()
        engine.close()
        again = self.open_engine(folder)
        if again.persistent and staged is not None:
            assert again.applied() == (20, 4) and contents(again) == NEW, "seal() has no effect on the next start"
        again.close()

    def test_a_staged_engine_that_is_given_up_leaves_nothing(self) -> None:
        folder = self.new_folder()
        engine = self.open_engine(folder)
        engine.write(batch_of(dict(OLD)), 9, 1)
        engine.flush()
        staged = engine.stage()
        if staged is not None:
            with raises(Interrupted, "restore() of a stream that breaks off"):
                staged.restore(broken_off(stream_of(NEW, 20, 4), 600))
            staged.close()
            assert contents(engine) == OLD
            second = self._staged(engine)
            assert second is not None
            engine.adopt(second)
            assert contents(engine) == NEW
            again = engine.stage()
            assert again is not None
            self._check_empty(again)
            again.close()
        engine.close()
        found = self.open_engine(folder)
        if found.persistent:
            assert contents(found) == (OLD if staged is None else NEW)
        found.close()
