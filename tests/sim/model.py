"""What the clients' operations mean, on plain dicts: independent of the store, and only as much as workload.py uses.

A write's place in the log is its place in time, so the model sees each operation once, when the first member applies
it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple


class Version(NamedTuple):
    """One version of a key; value None says that it was deleted."""

    mod: int
    create: int
    version: int
    value: bytes | None


class Change(NamedTuple):
    """One change of one key, as a watcher is told of it; `before`: the version that it took the place of, if any."""

    key: bytes
    version: Version
    before: Version | None


class Pair(NamedTuple):
    """A key as a reply shows it."""

    key: bytes
    mod: int
    create: int
    version: int
    value: bytes


@dataclass
class Call:
    """One operation of a client.

    kind: "put", "pair" (two keys in one transaction), "swap" (compare and put, or read), "delete", "compact", "read",
    "clear" (all keys from the first up to the second), "renew" (one transaction: if all keys "k..." are there, delete
    all "p...", read all "k..." and put one), "late" (delete all from "k" on, and then fail). Of tenants: "grant" (for
    `revision` seconds), "revoke", "attach" (a put with a lease, 0 for none).
    expect: value that a swap compares with (None: the key must not exist). floor: the highest revision that a completed
    linearizable operation had shown when this one began. heard: by the member.
    """

    kind: str
    keys: tuple[bytes, ...]
    value: bytes = b""
    expect: bytes | None = None
    revision: int = 0
    serializable: bool = False
    body: bytes = b""
    method: str = ""
    ident: int = 0
    floor: int = 0
    member: int = 0
    began: float = 0.0
    heard: tuple[float, int] | None = None  # when, and in which of the member's lives
    lease: int = 0
    # What the log made of it.
    applied: int = 0
    result_revision: int = 0
    changed: bool = False
    swapped: bool = False
    found: list[Pair] = field(default_factory=list)
    failed: str = ""


class Model:
    """All versions of all keys, for ever, and all changes in their order."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = 0
        self.versions: dict[bytes, list[Version]] = {}
        self.changes: list[Change] = []
        self.leases: dict[int, set[bytes]] = {}  # with their keys
        self.lease_came: dict[int, float] = {}  # when they were granted
        self.lease_gone: dict[int, float] = {}  # when they went
        self.lease_of: dict[bytes, int] = {}
        self.now: Callable[[], float] = lambda: 0.0

    def _add(self, key: bytes, version: Version) -> None:
        known = self.versions.setdefault(key, [])
        before = known[-1] if known and known[-1].value is not None else None
        known.append(version)
        self.changes.append(Change(key, version, before))

    def value(self, key: bytes) -> bytes | None:
        """The value of a key now."""
        known = self.versions.get(key)
        return known[-1].value if known else None

    def at(self, key: bytes, revision: int) -> Pair | None:
        """A key as of a revision."""
        for version in reversed(self.versions.get(key, ())):
            if version.mod <= revision:
                if version.value is None:
                    return None
                return Pair(key, version.mod, version.create, version.version, version.value)
        return None

    def all_at(self, revision: int) -> list[Pair]:
        """Everything as of a revision, in key order."""
        found = (self.at(key, revision) for key in sorted(self.versions))
        return [pair for pair in found if pair is not None]

    def apply(self, call: Call) -> None:
        """Carry out one operation and note what it came to."""
        before = self.revision
        if call.kind in ("grant", "revoke", "attach"):
            self._lease(call)
        if call.kind in ("put", "pair"):
            self._put(call.keys, call.value)
        elif call.kind == "swap":
            key = call.keys[0]
            if self.value(key) == call.expect:
                call.swapped = True
                self._put(call.keys, call.value)
            else:
                pair = self.at(key, self.revision)
                call.found = [pair] if pair is not None else []
        elif call.kind == "delete":
            if self.value(call.keys[0]) is not None:
                self.revision += 1
                self._add(call.keys[0], Version(self.revision, 0, 0, None))
        elif call.kind == "clear":
            self._clear(*call.keys)
        elif call.kind == "renew":
            call.found = [pair for pair in self.all_at(self.revision) if pair.key[:1] == b"k"]
            call.swapped = bool(call.found)
            if call.swapped:
                self._clear(b"p", b"q")
            self._put(call.keys, call.value, again=self.revision > before)
        elif call.kind == "late":
            call.failed = "KeyNotFound"
        elif call.kind == "compact":
            if call.revision <= self.compacted:
                call.failed = "Compacted"
            elif call.revision > self.revision:
                call.failed = "FutureRevision"
            else:
                self.compacted = call.revision
        call.changed = self.revision > before
        call.result_revision = self.revision

    def _lease(self, call: Call) -> None:
        if call.kind == "grant":
            self.leases[call.lease] = set()
            self.lease_came[call.lease] = self.now()
        elif call.lease and call.lease not in self.leases:
            call.failed = "LeaseNotFound"
        elif call.kind == "revoke":
            self.revoke(call.lease)
        else:
            key = call.keys[0]
            self._detach(key)
            self._put(call.keys, call.value)
            if call.lease:
                self.lease_of[key] = call.lease
                self.leases[call.lease].add(key)

    def _detach(self, key: bytes) -> None:
        self.leases.get(self.lease_of.pop(key, 0), set()).discard(key)

    def revoke(self, ident: int) -> None:
        """A lease goes, and its keys with it."""
        self.lease_gone[ident] = self.now()
        keys = sorted(self.leases.pop(ident))
        self.revision += bool(keys)
        for key in keys:
            self.lease_of.pop(key, None)
            self._add(key, Version(self.revision, 0, 0, None))

    def _clear(self, first: bytes, end: bytes) -> None:
        alive = [pair.key for pair in self.all_at(self.revision) if first <= pair.key < end]
        self.revision += bool(alive)
        for key in alive:
            self._add(key, Version(self.revision, 0, 0, None))

    def _put(self, keys: tuple[bytes, ...], value: bytes, again: bool = False) -> None:
        """`again`: the operation has changed something before, so that it has its revision."""
        self.revision += not again
        for key in keys:
            last = self.versions[key][-1] if key in self.versions else None
            if last is not None and last.value is not None:
                self._add(key, Version(self.revision, last.create, last.version + 1, value))
            else:
                self._add(key, Version(self.revision, self.revision, 1, value))
