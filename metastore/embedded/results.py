"""What the calls of the embedded store give back. All of it is frozen; bytes are bytes, revisions and counts are int.

Revisions count the changes of the whole store: it begins at 1, and each put, deletion or transaction that changes
something adds 1. A key has the revisions at which it was created (`create_revision`) and last changed (`mod_revision`).
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key at one revision (mvccpb.KeyValue).

    `version` is 1 where the key was created, and 1 more with every put since. `lease` is the id of the key's lease, 0
    for none. `value` is empty where only keys were asked for.
    """

    key: bytes
    value: bytes
    create_revision: int
    mod_revision: int
    version: int
    lease: int


@dataclass(frozen=True, slots=True)
class PutResult:
    """`revision` of the store after the put. `prev` is what the key was before, where `prev_kv` asked for it and the
    key existed; else None."""

    revision: int
    prev: KeyValue | None


@dataclass(frozen=True, slots=True)
class PutManyResult:
    """All pairs are stored, `count` of them, in their order: the first one at `first_revision`, the last one at
    `last_revision`. Both are 0 where there was no pair. Others may have written between."""

    count: int
    first_revision: int
    last_revision: int


@dataclass(frozen=True, slots=True)
class RangeResult:
    """What a range found, as of `revision` of the store.

    `kvs` are the keys found, in the order asked for. `count` is the number of all keys in the range, whatever the
    limit. `more` tells whether there are keys beyond the limit.
    """

    revision: int
    kvs: tuple[KeyValue, ...]
    count: int
    more: bool


@dataclass(frozen=True, slots=True)
class DeleteResult:
    """`revision` of the store after the deletion, and how many keys it `deleted`. `prevs` are those keys as they were,
    where `prev_kv` asked for them; else it is empty."""

    revision: int
    deleted: int
    prevs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class TxnResult:
    """`revision` of the store after the transaction.

    `succeeded` tells which branch ran: `success` where it is true, else `failure`. `results` has one result for each
    operation of that branch, in their order, each of the operation's kind.
    """

    revision: int
    succeeded: bool
    results: tuple[PutResult | RangeResult | DeleteResult | TxnResult, ...]


@dataclass(frozen=True, slots=True)
class CompactResult:
    """`revision` of the store when it was compacted."""

    revision: int


class EventKind(Enum):
    """What happened to a key."""

    PUT = "put"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change of one key.

    `kv` is the key as it was put. Of a key that was deleted it has only `key` and `mod_revision`. `prev_kv` is the key
    as it was before, where the watch asks for it, the key existed, and its history is not compacted; else None.
    """

    kind: EventKind
    kv: KeyValue
    prev_kv: KeyValue | None

    @property
    def revision(self) -> int:
        """Of the store: all that one transaction changed has the same."""
        return self.kv.mod_revision

    @property
    def key(self) -> bytes:
        """The key that changed."""
        return self.kv.key


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """All that happened at one `revision` to the keys that are watched, in the order in which it was done."""

    revision: int
    events: tuple[WatchEvent, ...]


@dataclass(frozen=True, slots=True)
class GrantResult:
    """A lease was granted: its `id`, and its `ttl` in seconds, which may be longer than what was asked for."""

    id: int
    ttl: int


@dataclass(frozen=True, slots=True)
class LeaseInfo:
    """A lease: its `ttl` in seconds that is left, the one that was granted, and the keys that have the lease, where
    these were asked for."""

    id: int
    ttl: int
    granted_ttl: int
    keys: tuple[bytes, ...]
