"""The contract of engines: RocksDB and a small engine keep it, and it finds each of many broken engines."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.journal import POSITION, JournalEngine, JournalView, Pairs, StagedJournal

from metastore._core.engine import APPLIED_KEY, Engine
from metastore._core.ordered_map import OrderedMap
from metastore.storage.engines.memory import MemoryEngine
from metastore.storage.engines.rocksdb import RocksEngine
from metastore.testing.engine_base import TookTooLong
from metastore.testing.engine_contract import EngineContract

pytestmark = pytest.mark.node_only


class TestRocksEngine(EngineContract):
    def open_engine(self, folder: str) -> Engine:
        return RocksEngine(folder)


class TestJournalEngine(EngineContract):
    def open_engine(self, folder: str) -> Engine:
        return JournalEngine(folder)


# ---- what is written and read


class LosesTheLastOfMany(JournalEngine):
    def take(self, pairs: Iterable[tuple[bytes, bytes | None]]) -> None:
        pairs = list(pairs)
        super().take(pairs if len(pairs) <= 5000 else pairs[:-2] + pairs[-1:])


class KeepsTheLastOfMany(JournalEngine):
    """Forgets the last deletion of a large batch."""

    def take(self, pairs: Iterable[tuple[bytes, bytes | None]]) -> None:
        pairs = list(pairs)
        super().take(p for p in pairs if p[1] is not None or len(pairs) < 5000 or p is not pairs[-2])


class CutsValues(JournalEngine):
    def take(self, pairs: Iterable[tuple[bytes, bytes | None]]) -> None:
        super().take((key, value and value[:100_000]) for key, value in pairs)


class CutsKeys(JournalEngine):
    def take(self, pairs: Iterable[tuple[bytes, bytes | None]]) -> None:
        super().take((key[:511], value) for key, value in pairs)

    def get(self, key: bytes) -> bytes | None:
        return super().get(key[:511])


class LeavesOutEveryHundredth(JournalEngine):
    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        return (pair for number, pair in enumerate(self.scan(start, None, False, 0), 1) if number % 100)


class SortsAsText(JournalEngine):
    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        pairs = super().scan(start, end, False, 0)
        pairs.sort(key=lambda pair: pair[0].hex().upper().replace("00", "zz"), reverse=reverse)
        return pairs[: limit or None]


class CountsTheEnd(JournalEngine):
    def count(self, start: bytes, end: bytes | None) -> int | None:
        return len(super().scan(start, None if end is None else end + b"\0", False, 0))


class FindsUnique(JournalEngine):
    def find_many(self, keys: Any) -> list[bytes | None]:
        return [self.get(key) for key in dict.fromkeys(keys)]


class RemovesTheEnd(JournalEngine):
    def remove_ranges(self, ranges: list[tuple[bytes, bytes]]) -> bool:
        batch = OrderedMap()
        for start, end in ranges:
            for key, _ in self.scan(start, end + b"\0", False, 0):
                batch.set_deleted(key)
        if ranges:
            self.write(batch, *self.applied())
        return True


class ChangesTheBatch(JournalEngine):
    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        super().write(batch, index, term)
        batch.set(APPLIED_KEY, POSITION.pack(index, term))


class HasAConstantSize(JournalEngine):
    def size(self) -> int:
        return 1 << 30


class UsesMoreThanItsSize(JournalEngine):
    def size_in_use(self) -> int:
        return self.size() + 1


class ReclaimsForEver(JournalEngine):
    def reclaim(self) -> bool:
        return True


class DefragmentsForEver(JournalEngine):
    def defragment(self) -> float | None:
        return 0.0


class NeverReturns(JournalEngine):
    def defragment(self) -> float | None:
        while True:
            time.sleep(0.01)


class ForgetsDeletes(JournalEngine):
    def append(self, path: Path, batches: list[Pairs]) -> None:
        super().append(path, [[pair for pair in pairs if pair[1] is not None] for pairs in batches])


class NeverDurable(JournalEngine):
    def durable_applied(self) -> int:
        return 0


class Undeclared(JournalEngine):
    persistent = None  # type: ignore[assignment]


class Unversioned(JournalEngine):
    CONTRACT = None


class TinyKeys(JournalEngine):
    max_key = 40


# ---- views


class SeeingView(JournalView):
    """A view that sees later writes where `sees` says so."""

    sees = ""

    def get(self, key: bytes) -> bytes | None:
        return self.engine.get(key) if self.sees == "get" else super().get(key)

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        return (self.engine if self.sees == "scan" else super()).scan(start, end, reverse, limit)

    def iterate(self, start: bytes) -> Iterator[tuple[bytes, bytes]]:
        return self.engine.iterate(start) if self.sees == "iterate" else super().iterate(start)

    def seek_ge(self, key: bytes) -> tuple[bytes, bytes] | None:
        return self.engine.seek_ge(key) if self.sees == "seek_ge" else super().seek_ge(key)

    def seek_le(self, key: bytes) -> tuple[bytes, bytes] | None:
        return self.engine.seek_le(key) if self.sees == "seek_le" else super().seek_le(key)

    def applied(self) -> tuple[int, int]:
        return self.engine.applied() if self.sees == "applied" else super().applied()


def seeing(call: str) -> type[JournalEngine]:
    """An engine with views that see later writes in one call."""
    view = type(f"View{call}", (SeeingView,), {"sees": call})
    return type(f"Sees_{call}", (JournalEngine,), {"view": lambda self: view(self)})


class BoundView(JournalView):
    """A view that only its own thread may use. `allows` names the calls that others may make."""

    def __init__(self, engine: JournalEngine) -> None:
        super().__init__(engine)
        self.owner = threading.get_ident()

    def check(self) -> None:
        if threading.get_ident() != self.owner:
            raise sqlite3.ProgrammingError("objects created in a thread can only be used in that same thread")

    def scan(self, start: bytes, end: bytes | None, reverse: bool, limit: int) -> list[tuple[bytes, bytes]]:
        self.check()
        return super().scan(start, end, reverse, limit)


class ClosesInItsThread(JournalView):
    def __init__(self, engine: JournalEngine) -> None:
        super().__init__(engine)
        self.owner = threading.get_ident()

    def close(self) -> None:
        if threading.get_ident() != self.owner:
            raise sqlite3.ProgrammingError("objects created in a thread can only be used in that same thread")


class ViewsBoundToTheirThread(JournalEngine):
    def view(self) -> Engine:
        return BoundView(self)


class ViewsClosedInTheirThread(JournalEngine):
    def view(self) -> Engine:
        return ClosesInItsThread(self)


class OnlyView(JournalView):
    def close(self) -> None:
        self.engine.open_views -= 1


class OneViewAtATime(JournalEngine):
    def view(self) -> Engine:
        if self.open_views:
            raise RuntimeError("there is a view already")
        self.open_views += 1
        return OnlyView(self)


class NewestViewCounts(JournalEngine):
    """A second view takes the first one's place."""

    shared: JournalView | None = None

    def view(self) -> Engine:
        if self.shared is None:
            self.shared = JournalView(self)
        else:
            self.shared.data = self.data.view()
        return self.shared


class ClosingView(JournalView):
    def close(self) -> None:
        self.engine.data = OrderedMap()


class ViewsCloseTheEngine(JournalEngine):
    def view(self) -> Engine:
        return ClosingView(self)


# ---- restore, stage, seal, adopt


class RestoresInPlace(JournalEngine):
    """Changes the contents while it reads the stream."""

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        self.data.clear()
        for key, value in stream:
            self.data.set(key, value)


class RestoresPiecemeal(JournalEngine):
    """Its file has a part of the new contents if the process dies."""

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        path = self.folder / self.name
        pairs: Pairs = []
        for pair in stream:
            pairs.append(pair)
            if len(pairs) % 500 == 0:
                self.append(path, [[(APPLIED_KEY, POSITION.pack(20, 4)), *pairs[-500:]]])
        super().restore(iter(pairs))  # type: ignore[arg-type]


class RestoresOnTop(JournalEngine):
    def fill(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        old = list(self.data.items())
        super().fill(stream)
        for key, value in old:
            if self.data.get(key) is None and value is not None:
                self.data.set(key, value)


class SwallowsTheStream(JournalEngine):
    """Takes a stream that breaks off for one that ended. Whether it then finds a log position is chance."""

    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        def safe() -> Iterator[tuple[bytes, bytes]]:
            try:
                yield from stream
            except Exception:  # noqa: BLE001
                return

        super().restore(safe())


class RestoreKeepsDurable(JournalEngine):
    def seal(self) -> None:
        before = self.durable
        super().seal()
        self.durable = before or 9

    def stage(self) -> Engine | None:
        return None


class AdoptsNothing(JournalEngine):
    def adopt(self, staged: Engine) -> None:
        pass


class AdoptsInMemory(JournalEngine):
    """Goes on to write to the old file."""

    def adopt(self, staged: Engine) -> None:
        self.data = staged.data  # type: ignore[attr-defined]
        self.unwritten = []


class Unsealed(StagedJournal):
    def seal(self) -> None:
        pass


class SealsNothing(JournalEngine):
    def stage(self) -> Engine | None:
        return Unsealed(str(self.folder), "journal-s")


class EagerStage(StagedJournal):
    def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
        super().restore(stream)
        super().seal()


class SealsTooEarly(JournalEngine):
    def stage(self) -> Engine | None:
        return EagerStage(str(self.folder), "journal-s")


class StageIsItself(JournalEngine):
    def stage(self) -> Engine | None:
        return self


class StageIsFull(JournalEngine):
    def stage(self) -> Engine | None:
        staged = super().stage()
        staged.take(self.data.items())  # type: ignore[union-attr]
        return staged


class StageSharesItsContents(JournalEngine):
    def stage(self) -> Engine | None:
        engine = self

        class Sharing(StagedJournal):
            def fill(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
                super().fill(stream)
                engine.data.clear()
                engine.take(self.data.items())

        return Sharing(str(self.folder), "journal-s")


class AdoptEndsViews(JournalEngine):
    view_made: JournalView | None = None

    def view(self) -> Engine:
        self.view_made = JournalView(self)
        return self.view_made

    def adopt(self, staged: Engine) -> None:
        super().adopt(staged)
        if self.view_made is not None:
            self.view_made.data = self.data.view()


class StageBoundToItsThread(JournalEngine):
    def stage(self) -> Engine | None:
        owner = threading.get_ident()

        class Bound(StagedJournal):
            def restore(self, stream: Iterable[tuple[bytes, bytes]]) -> None:
                if threading.get_ident() != owner:
                    raise sqlite3.ProgrammingError("objects created in a thread can only be used in that same thread")
                super().restore(stream)

        return Bound(str(self.folder), "journal-s")


# ---- kills


class DurableTooEarly(JournalEngine):
    def durable_applied(self) -> int:
        return self.applied()[0]


class WritesInTwo(JournalEngine):
    """Half of a write reaches the file with the new position, then the rest."""

    def write(self, batch: OrderedMap, index: int, term: int) -> None:
        path = self.folder / self.name
        self.append(path, [[(APPLIED_KEY, POSITION.pack(index, term))]])
        for pair in batch.items():
            self.append(path, [[pair]])
        self.take([*batch.items(), (APPLIED_KEY, POSITION.pack(index, term))])


class Liar(MemoryEngine):
    """Is in memory, and declares that it is persistent."""

    persistent = True

    def durable_applied(self) -> int:
        return self.applied()[0]


class Damageable(JournalEngine):
    """Does not translate what its library raises."""

    def read(self, path: Path) -> None:
        try:
            super().read(path)
        except Exception as error:
            raise ValueError("library: bad file") from error


# ---- own exceptions


class OwnError(Exception):
    """What a library raises."""


def raising(call: str) -> type[JournalEngine]:
    """An engine that raises its own exception from one call."""

    def fail(self: Any, *_: Any) -> Any:
        raise OwnError(call)

    view = type("RaisingView", (JournalView,), {call: fail})
    staged = type("RaisingStage", (StagedJournal,), {call: fail})
    members: dict[str, Any] = {call: fail}
    if call == "full":
        members = {"full": property(fail)}
    elif call == "headroom":
        members = {"headroom": property(fail)}
    elif call.startswith("view_"):
        view = type("RaisingView", (JournalView,), {call.removeprefix("view_"): fail})
        members = {"view": lambda self: view(self)}
    elif call.startswith("stage_"):
        staged = type("RaisingStage", (StagedJournal,), {call.removeprefix("stage_"): fail})
        members = {"stage": lambda self: staged(str(self.folder), "journal-s")}
    return type(f"Raises_{call}", (JournalEngine,), members)


CALLS = (
    "get", "scan", "iterate", "seek_ge", "seek_le", "find_many", "count", "write", "remove_ranges", "applied", "view",
    "size", "size_in_use", "data_size", "restore", "reclaim", "defragment", "durable_applied", "flush", "begin_flush",
    "close", "drop", "stage", "adopt", "full", "headroom", "view_get", "view_scan", "view_iterate", "view_seek_ge",
    "view_seek_le", "view_applied", "view_close", "view_data_size", "stage_restore", "stage_seal", "stage_close",
)  # fmt: skip

# Each broken engine, the test that finds it, and what that says.
BROKEN: list[tuple[type[Engine], str, str]] = [
    (LosesTheLastOfMany, "test_a_large_batch_is_stored_to_its_last_pair", "pairs of a batch of 5003"),
    (KeepsTheLastOfMany, "test_a_large_batch_is_stored_to_its_last_pair", "deletions of a batch of 5003"),
    (CutsValues, "test_long_keys_and_values_are_whole", "a value of 100001 bytes"),
    (CutsKeys, "test_long_keys_and_values_are_whole", ""),
    (LeavesOutEveryHundredth, "test_iterate_gives_what_scan_gives", "iterate"),
    (SortsAsText, "test_order_and_scans", ""),
    (CountsTheEnd, "test_the_optional_reads_agree_with_the_others", "count"),
    (FindsUnique, "test_the_optional_reads_agree_with_the_others", "find_many"),
    (FindsUnique, "test_many_look_ups_of_revisions", "find_many"),
    (RemovesTheEnd, "test_removed_ranges_are_gone", "without"),
    (ChangesTheBatch, "test_batch_is_left_as_it_was", ""),
    (HasAConstantSize, "test_sizes_follow_the_contents", "size.. ignores"),
    (UsesMoreThanItsSize, "test_sizes_follow_the_contents", "size_in_use.. is"),
    (ReclaimsForEver, "test_reclaim_and_flush_end", "reclaim.. never ends"),
    (DefragmentsForEver, "test_defragment_ends", "defragment.. never ends"),
    (NeverReturns, "test_defragment_ends", "a call of the engine never returns"),
    (ForgetsDeletes, "test_opened_again", "what was deleted is there again"),
    (NeverDurable, "test_opened_again", "flush.. does not move durable_applied"),
    (Undeclared, "test_it_says_whether_it_lasts", "does not declare `persistent`"),
    (Unversioned, "test_it_says_what_it_is", "CONTRACT = 1 says"),
    (TinyKeys, "test_it_says_what_it_is", "keys of up to 64 bytes"),
    *((seeing(call), "test_no_read_of_a_view_sees_a_later_write", "") for call in (
        "get", "scan", "iterate", "seek_ge", "seek_le", "applied",
    )),
    (ViewsBoundToTheirThread, "test_a_view_is_walked_and_closed_in_another_thread", "fails in another thread"),
    (ViewsBoundToTheirThread, "test_a_view_is_walked_while_the_engine_is_written", "cannot be walked"),
    (ViewsClosedInTheirThread, "test_a_view_is_walked_and_closed_in_another_thread", "close.. fails in another"),
    (OneViewAtATime, "test_many_views_live_at_once", "there is a view already"),
    (NewestViewCounts, "test_many_views_live_at_once", "view 3 of 6"),
    (ViewsCloseTheEngine, "test_view_is_not_disturbed", "closing a view must not close the engine"),
    (RestoresInPlace, "test_a_restore_that_breaks_off", "after a restore that broke off"),
    (RestoresInPlace, "test_a_stream_without_a_log_position_is_refused", ""),
    (RestoresPiecemeal, "test_a_restore_that_is_killed", "a part of a restore is there"),
    (RestoresOnTop, "test_restore_replaces_everything", ""),
    (SwallowsTheStream, "test_a_restore_that_breaks_off", "the stream has no log position"),
    (RestoreKeepsDurable, "test_what_was_restored_is_found_again", "that of the old contents"),
    (AdoptsNothing, "test_a_staged_engine_is_adopted", "adopt.. does not take over"),
    (AdoptsInMemory, "test_a_staged_engine_is_adopted", "what follows adopt.. is not found again"),
    (SealsNothing, "test_a_sealed_engine_is_what_a_start_finds", "seal.. has no effect"),
    (SealsNothing, "test_a_restore_that_is_killed", "stage, sealed: durable up to 20, found up to 9"),
    (SealsTooEarly, "test_a_restore_that_is_killed", "not sealed replaces the old one"),
    (StageIsItself, "test_a_staged_engine_is_adopted", "the engine itself"),
    (StageIsFull, "test_a_staged_engine_is_adopted", "not empty"),
    (StageSharesItsContents, "test_a_staged_engine_is_adopted", "changes the engine"),
    (AdoptEndsViews, "test_a_staged_engine_is_adopted", "adopt.. changes a view"),
    (StageBoundToItsThread, "test_a_staged_engine_is_adopted", "cannot be filled in a thread"),
    (DurableTooEarly, "test_what_was_durable_survives_a_kill", "durable up to 60, found up to 40"),
    (Liar, "test_what_was_durable_survives_a_kill", "durable up to 60, found up to 0"),
    (WritesInTwo, "test_a_write_is_done_wholly_or_not_at_all", "only a part of a write is there"),
    (Damageable, "test_damaged_files_give_errors_of_metastore", "the constructor raises builtins.ValueError"),
]  # fmt: skip


WAYS: dict[type[Engine], tuple[str, ...]] = {
    RestoresPiecemeal: ("restore, halfway",), SealsNothing: ("stage, sealed",), SealsTooEarly: ("stage, before seal",),
    DurableTooEarly: ("after a flush",), Liar: ("after a flush",), WritesInTwo: ("while a batch is walked",),
}  # fmt: skip


def contract_of(kind: type[Engine]) -> type[EngineContract]:
    """The contract on a broken engine. The processes that it kills find the class in this module, too."""
    name = f"Of{kind.__name__}"

    def open_engine(self: EngineContract, folder: str) -> Engine:
        return kind(folder)

    members: dict[str, Any] = {
        "open_engine": open_engine,
        "__module__": __name__,
        "__qualname__": name,
        "patience": 20.0,
    }
    # Each of these is found in one of the ways to die, so they need not die in all.
    members["ways"] = {way: EngineContract.ways[way] for way in WAYS.get(kind, ())}
    return type(name, (EngineContract,), members)


CONTRACTS = {kind: contract_of(kind) for kind, _, _ in BROKEN}
globals().update({contract.__name__: contract for contract in CONTRACTS.values()})


def run(contract: EngineContract, test: str) -> None:
    """Run one test of a contract as pytest does."""
    contract.setup_method()
    try:
        getattr(contract, test)()
    finally:
        contract.teardown_method()


@pytest.mark.parametrize(("kind", "test", "says"), BROKEN, ids=lambda value: getattr(value, "__name__", None))
def test_the_contract_finds(kind: type[Engine], test: str, says: str) -> None:
    contract = CONTRACTS[kind]()
    if kind in (NeverReturns, DefragmentsForEver):
        contract.patience = 0.5
    with pytest.raises(BaseException, match=says or None) as failure:
        run(contract, test)
    assert isinstance(failure.value, Exception | TookTooLong)


IN_PROCESS = [
    name for name in dir(EngineContract)
    if name.startswith("test_") and not any(word in name for word in ("kill", "wholly", "damaged", "replies", "large"))
]  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_the_contract_finds_an_own_exception_of_each_call(call: str) -> None:
    """Some test makes the call, and so fails."""
    contract = contract_of(raising(call))
    failed: list[str] = []
    for test in IN_PROCESS:
        try:
            run(contract(), test)
        except BaseException as error:  # noqa: BLE001
            if call.rpartition("_")[2] in repr(error) or isinstance(error.__cause__, OwnError):
                failed.append(test)
                break
    assert failed, f"no test of the contract fails when {call}() raises an exception of its own"
