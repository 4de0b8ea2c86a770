"""Was that history linearizable? Two independent checks answer this.

`check_revisions` is exact and cheap. Every value is written once, and the store gives the revision of every change and
of every read, so the order is known. The check is whether this order fits the clocks of the clients and whether every
read shows what the order demands, over all keys at once (strict serialisability).

`check_key` trusts no revision. It searches for an order of one key's operations (Wing and Gong, "Testing and verifying
concurrent objects", 1993, with the memory of Lowe, "Testing for linearizability", 2017), within a budget of states.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

OK, FAILED, UNKNOWN = "ok", "failed", "unknown"

# What a read shows of a key: the value and the revision of its last change, or None.
Seen = tuple[bytes, int] | None


class Violation(AssertionError):
    """The history cannot have come from a linearizable store; the text says why."""


@dataclass
class Operation:
    """One call of a client: a read, a write, or a transaction.

    `expected` is what a transaction compared; it is only there if the comparison decided about `written`. `glimpsed` is
    what an earlier read showed that may be stale. A FAILED operation surely did nothing. Nobody knows whether an
    UNKNOWN one was done. Times are seconds of one clock.
    """

    client: int
    start: float
    end: float = math.inf
    status: str = UNKNOWN
    written: dict[bytes, bytes] = field(default_factory=dict)
    expected: dict[bytes, bytes | None] = field(default_factory=dict)
    seen: dict[bytes, Seen] = field(default_factory=dict)
    glimpsed: dict[bytes, Seen] = field(default_factory=dict)
    revision: int = 0

    def __str__(self) -> str:
        parts = [f"client {self.client} [{self.start:.4f}, {self.end:.4f}] {self.status}"]
        parts += [f"if {key!r} is {value!r}" for key, value in self.expected.items()]
        parts += [f"put {key!r} {value!r}" for key, value in self.written.items()]
        parts += [f"saw {key!r} {seen!r}" for key, seen in self.seen.items()]
        return f"{' '.join(parts)} at revision {self.revision}"


# ---- by revision


def check_revisions(history: Sequence[Operation]) -> None:
    """Raise Violation unless the revisions are a legal order of the whole history."""
    writers = _writers(history)
    _reveal(history, writers)
    changes = _changes(history)
    for op in history:
        if op.status == OK:
            _check_seen(op, changes)
    _check_clocks(history)


def _writers(history: Iterable[Operation]) -> dict[bytes, Operation]:
    writers: dict[bytes, Operation] = {}
    for op in history:
        for value in op.written.values():
            assert value not in writers, f"the test wrote {value!r} twice"
            writers[value] = op
    return writers


def _reveal(history: Iterable[Operation], writers: dict[bytes, Operation]) -> None:
    """Give operations of unknown outcome the revision at which a client saw what they wrote."""
    for op in history:
        for key, seen in (*op.seen.items(), *op.glimpsed.items()):
            if seen is None:
                continue
            value, revision = seen
            writer = writers.get(value)
            if writer is None or writer.written.get(key) != value:
                raise Violation(f"nobody wrote that value of {key!r}: {op}")
            if writer.status == FAILED:
                raise Violation(f"seen, though its client was told that it was not done:\n{writer}\n{op}")
            if writer.start > op.end:
                raise Violation(f"seen before it was sent:\n{writer}\n{op}")
            if writer.revision not in (0, revision):
                raise Violation(f"two revisions of one change:\n{writer}\n{op}")
            writer.revision = revision


def _changes(history: Iterable[Operation]) -> dict[bytes, tuple[list[int], list[Operation]]]:
    """Return the changes of each key in the order of their revisions."""
    at: dict[int, Operation] = {}
    for op in history:
        if not (op.written and op.revision):
            continue
        if op.revision in at:
            raise Violation(f"one revision for two changes:\n{at[op.revision]}\n{op}")
        at[op.revision] = op
    changes: dict[bytes, tuple[list[int], list[Operation]]] = {}
    for revision in sorted(at):
        for key in at[revision].written:
            revisions, ops = changes.setdefault(key, ([], []))
            revisions.append(revision)
            ops.append(at[revision])
    return changes


def _check_seen(op: Operation, changes: dict[bytes, tuple[list[int], list[Operation]]]) -> None:
    """Check that `op` saw and compared what the changes before it left behind."""
    demands: dict[bytes, bytes | None] = dict(op.expected)
    demands.update({key: None if seen is None else seen[0] for key, seen in op.seen.items()})
    for key, value in demands.items():
        revisions, ops = changes.get(key, ([], []))
        # A change sees what is before it; a read stands behind the change of its own revision.
        place = (bisect.bisect_left if op.written else bisect.bisect_right)(revisions, op.revision)
        last = ops[place - 1] if place else None
        if value != (last.written[key] if last else None):
            raise Violation(f"{key!r} must have been what this left:\n{last}\nbut was something else to\n{op}")


def _check_clocks(history: Iterable[Operation]) -> None:
    """Check that an operation that ended before another began stands before it."""

    def place(op: Operation) -> tuple[int, bool]:
        return op.revision, not op.written

    starts = sorted((op for op in history if op.revision), key=lambda op: op.start)
    ends = sorted((op for op in history if op.status == OK), key=lambda op: op.end)
    latest: Operation | None = None
    done = 0
    for op in starts:
        while done < len(ends) and ends[done].end < op.start:
            if latest is None or place(ends[done]) > place(latest):
                latest = ends[done]
            done += 1
        if latest is not None and place(op) < place(latest):
            raise Violation(f"the first ended before the second began, yet stands behind it:\n{latest}\n{op}")


# ---- by search


@dataclass(frozen=True)
class _Step:
    """An operation from the view of one key: it demands `before` (if `demands`) and leaves `after` (if `writes`)."""

    start: float
    end: float
    demands: bool
    before: bytes | None
    writes: bool
    after: bytes | None


def _steps(history: Iterable[Operation], key: bytes) -> tuple[list[_Step], list[_Step]]:
    """Return (completed steps by start, steps of unknown outcome whose value a client saw)."""
    completed, unknown = [], []
    observed = {seen[0] for op in history if (seen := op.seen.get(key)) is not None}
    observed |= {value for op in history if op.status == OK and (value := op.expected.get(key)) is not None}
    for op in history:
        writes = key in op.written
        if op.status == FAILED or not (writes or key in op.seen):
            continue
        demands = key in op.expected or key in op.seen
        seen = op.seen.get(key)
        before = op.expected.get(key) if seen is None else seen[0]
        step = _Step(op.start, op.end, demands, before, writes, op.written.get(key))
        if op.status == OK:
            completed.append(step)
        elif step.after in observed:
            unknown.append(step)
    return sorted(completed, key=lambda step: step.start), unknown


def check_key(history: Iterable[Operation], key: bytes, budget: int = 200_000) -> bool:
    """Return whether the search came to an end within `budget` states. Raises Violation if there is no order."""
    steps, unknown = _steps(list(history), key)
    count = len(steps)
    everything = steps + unknown
    # A state: which steps are done (a bit each), the value, and the first of `steps` that is not done.
    stack: list[tuple[int, bytes | None, int]] = [(0, None, 0)]
    visited: set[tuple[int, bytes | None]] = set()
    furthest = 0
    while stack:
        done, value, first = stack.pop()
        done, first = _take_reads(steps, done, value, first)
        if first == count:
            return True
        furthest = max(furthest, first)
        if (done, value) in visited:
            continue
        visited.add((done, value))
        if len(visited) > budget:
            return False
        for number in _candidates(everything, count, done, first):
            step = everything[number]
            if step.writes and (not step.demands or step.before == value):
                stack.append((done | 1 << number, step.after, first))
    raise Violation(f"no order of {count} operations on {key!r} is legal; the search got stuck at {steps[furthest]}")


def _bound(steps: list[_Step], done: int, first: int) -> float:
    """Return when the first step that is not done ended. A step that began later cannot come before it."""
    bound = math.inf
    for number in range(first, len(steps)):
        step = steps[number]
        if step.start > bound:
            break
        if not done >> number & 1:
            bound = min(bound, step.end)
    return bound


def _take_reads(steps: list[_Step], done: int, value: bytes | None, first: int) -> tuple[int, int]:
    """Order every read that fits now. That can never be wrong, because a read changes nothing."""
    again = True
    while again:
        again = False
        bound = _bound(steps, done, first)
        for number in range(first, len(steps)):
            step = steps[number]
            if step.start > bound:
                break
            if not done >> number & 1 and not step.writes and step.before == value:
                done |= 1 << number
                again = True
        while first < len(steps) and done >> first & 1:
            first += 1
    return done, first


def _candidates(everything: list[_Step], count: int, done: int, first: int) -> list[int]:
    """Return the steps that may come next; the one to try first is the last."""
    bound = _bound(everything[:count], done, first)
    candidates = [number for number in range(count, len(everything)) if everything[number].start <= bound]
    for number in range(first, count):
        if everything[number].start > bound:
            break
        candidates.append(number)
    return sorted((n for n in candidates if not done >> n & 1), key=lambda n: -everything[n].end)


def check_all(history: Sequence[Operation]) -> list[bytes]:
    """Make both checks over all keys. Return the keys whose search was given up. Raises Violation."""
    check_revisions(history)
    keys = sorted({key for op in history for key in (*op.written, *op.seen)})
    return [key for key in keys if not check_key(history, key)]
