"""Random KV, Txn and Compact requests. They are seeded, and aimed at the corners where two stores could disagree."""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

from . import messages as m
from .client import op, prefix_end

SEPARATOR = b"|BATCH_SEP|"

KEYS = [
    b"a", b"b", b"c", b"d", b"ab", b"abc", b"b\0", b"b\0\0", b"a\xff", b"\0", b"\0\0", b"\xff", b"\xff\xff",
    b"c\xff\xff", b"k" * 300, SEPARATOR, b"x" + SEPARATOR[:-1], SEPARATOR[1:] + b"~",
]  # fmt: skip
MAX_DEPTH = 3
UNKNOWN_LEASES = [7, -1, 1 << 62]


def operations(txn: Any) -> Iterator[Any]:
    """Yield the KV requests in all branches of a transaction, also nested ones."""
    for operation in (*txn.success, *txn.failure):
        kind = operation.WhichOneof("request")
        if kind == "request_txn":
            yield from operations(operation.request_txn)
        elif kind:
            yield getattr(operation, kind)


def kills_etcd(request: Any) -> bool:
    """Whether a request kills etcd 3.5.1 (and again at each start, because it is in its log by then).

    There are two kinds. One is a sort target outside the enum. The other is a transaction that deletes from a key on
    and then puts with ignore_value or ignore_lease: etcd does not see that the delete touches the put's key, and the
    put finds no key when it is applied.
    """
    kind = type(request).__name__
    if kind == "RangeRequest":
        return not 0 <= request.sort_target <= m.VALUE
    if kind != "TxnRequest":
        return False
    parts = list(operations(request))
    from_key = any(type(p).__name__ == "DeleteRangeRequest" and p.range_end == b"\0" for p in parts)
    keeping = any(type(p).__name__ == "PutRequest" and (p.ignore_value or p.ignore_lease) for p in parts)
    return (from_key and keeping) or any(kills_etcd(part) for part in parts)


class Generator:
    """Makes requests. `revision` and `compacted` are what the caller has learnt from the answers so far."""

    def __init__(self, seed: int | str) -> None:
        self.rng = random.Random(seed)
        self.revision = 1
        self.compacted = 0

    def request(self) -> Any:
        """Return the next request."""
        kinds = (
            (self.put, 34),
            (self.range, 26),
            (self.txn, 24),
            (self.delete, 12),
            (self.compact, 4),
        )
        make = self.rng.choices([k for k, _ in kinds], [w for _, w in kinds])[0]
        request = make()
        while kills_etcd(request):
            request = make()
        return request

    def chance(self, percent: float) -> bool:
        return self.rng.random() * 100 < percent

    def key(self) -> bytes:
        if self.chance(0.7):
            return b""
        if self.chance(8):
            return self.rng.randbytes(self.rng.randint(1, 3))
        return self.rng.choice(KEYS)

    def end(self, key: bytes, single: float) -> bytes:
        """Return a range end; with `single` percent none."""
        if self.chance(single):
            return b""
        return self.rng.choice([b"\0", prefix_end(key or b"a"), self.rng.choice(KEYS), key + b"\0", key])

    def value(self) -> bytes:
        rng = self.rng
        size = rng.choices([0, 1, 20, 1500, 70_000], [15, 40, 30, 14, 1])[0]
        if size == 0 or self.chance(8):
            return rng.choice([b"", SEPARATOR, SEPARATOR + b"~", SEPARATOR * 2, SEPARATOR[:-1]])
        if size == 1:
            return rng.choice([b"1", b"2", b"3"])
        return rng.randbytes(size) if self.chance(50) else rng.randbytes(4) * (size // 4)

    def some_revision(self) -> int:
        """Return a revision to read at: mostly 0, else one around every border there is."""
        if self.chance(60):
            return 0
        return self.rng.choice(
            [
                self.revision,
                self.revision + 1,
                self.revision + self.rng.randint(2, 100),
                self.revision - 1,
                self.compacted,
                self.compacted - 1,
                self.compacted + 1,
                self.rng.randint(min(self.compacted, self.revision), self.revision),
                self.rng.randint(1, self.revision),
                -self.rng.randint(1, 5),
            ]
        )

    def filter_revision(self) -> int:
        return 0 if self.chance(88) else self.rng.randint(-1, self.revision + 1)

    def put(self) -> Any:
        request = m.PutRequest(key=self.key(), value=self.value(), prev_kv=self.chance(30))
        if self.chance(8):
            request.ignore_value = True
            if self.chance(85):
                request.value = b""
        if self.chance(6):
            request.ignore_lease = True
        if self.chance(3):
            request.lease = self.rng.choice(UNKNOWN_LEASES)
        return request

    def range(self) -> Any:
        key = self.key()
        return m.RangeRequest(
            key=key,
            range_end=self.end(key, 35),
            limit=self.rng.choice([0, 0, 0, 0, 1, 2, 5, 100, -1]),
            revision=self.some_revision(),
            sort_order=self.rng.choice([m.NONE, m.NONE, m.ASCEND, m.DESCEND]),
            sort_target=self.rng.choice([m.KEY, m.KEY, m.VERSION, m.CREATE, m.MOD, m.VALUE]),
            serializable=self.chance(20),
            keys_only=self.chance(15),
            count_only=self.chance(15),
            min_mod_revision=self.filter_revision(),
            max_mod_revision=self.filter_revision(),
            min_create_revision=self.filter_revision(),
            max_create_revision=self.filter_revision(),
        )

    def delete(self) -> Any:
        key = self.key()
        return m.DeleteRangeRequest(key=key, range_end=self.end(key, 60), prev_kv=self.chance(40))

    def compact(self) -> Any:
        choices = [self.revision, self.revision + 1, self.revision + 50, self.compacted, self.compacted - 1, 0, -1]
        choices += [self.rng.randint(min(self.compacted, self.revision), self.revision) for _ in range(7)]
        return m.CompactionRequest(revision=self.rng.choice(choices), physical=self.chance(50))

    def compare(self) -> Any:
        rng = self.rng
        key = self.key()
        target = rng.choice([m.CMP_VERSION, m.CMP_CREATE, m.CMP_MOD, m.CMP_VALUE, m.CMP_LEASE])
        compare = m.Compare(key=key, range_end=self.end(key, 70), target=target)
        compare.result = rng.choice([m.EQUAL, m.GREATER, m.LESS, m.NOT_EQUAL])
        if self.chance(2):
            compare.target = rng.choice([9, -1])
        if self.chance(2):
            compare.result = rng.choice([9, -1])
        set_target = target if self.chance(96) else rng.randint(0, 5)
        if set_target == m.CMP_VERSION:
            compare.version = rng.randint(0, 4)
        elif set_target == m.CMP_CREATE:
            compare.create_revision = rng.choice([0, self.revision, rng.randint(-1, self.revision + 1)])
        elif set_target == m.CMP_MOD:
            compare.mod_revision = rng.choice([0, self.revision, rng.randint(-1, self.revision + 1)])
        elif set_target == m.CMP_VALUE:
            compare.value = self.value()
        elif set_target == m.CMP_LEASE:
            compare.lease = rng.choice([0, 0, 7])
        return compare

    def txn(self, depth: int = 0, keys: list[bytes] | None = None) -> Any:
        """Return a transaction. `keys` are those not yet written in it, so most transactions are free of duplicate
        keys."""
        if keys is None:
            keys = list(KEYS)
            self.rng.shuffle(keys)
        if depth == 0 and self.chance(2):
            return self.long_txn()
        request = m.TxnRequest(compare=[self.compare() for _ in range(self.rng.choice([0, 1, 1, 2, 3]))])
        for branch in (request.success, request.failure):
            for _ in range(self.rng.choice([0, 1, 2, 2, 3, 5])):
                branch.append(self.operation(depth, keys))
        return request

    def operation(self, depth: int, keys: list[bytes]) -> Any:
        kinds = [self.put, self.range, self.delete, self.txn]
        kind = self.rng.choices(kinds, [40, 30, 10, 20 if depth < MAX_DEPTH else 0])[0]
        if kind == self.txn:
            return op(self.txn(depth + 1, keys))
        if self.chance(0.5):
            return m.RequestOp()
        request = kind()
        if kind in (self.put, self.delete) and keys and self.chance(93):
            request.key = keys.pop()
            if kind == self.delete and self.chance(85):
                request.range_end = b""
        return op(request)

    def long_txn(self) -> Any:
        """Return a transaction around the limit of 128 operations, in one of the three lists or in a nested
        transaction."""
        count = self.rng.choice([127, 128, 129, 130])
        request = m.TxnRequest()
        place = self.rng.randint(0, 3)
        if place == 0:
            request.compare.extend(m.Compare(key=b"a", target=m.CMP_VERSION, result=m.GREATER) for _ in range(count))
        elif place == 3:
            inner = m.TxnRequest(success=[op(m.RangeRequest(key=b"a", count_only=True)) for _ in range(count)])
            request.success.append(op(inner))
        else:
            branch = request.success if place == 1 else request.failure
            branch.extend(op(m.PutRequest(key=b"n%d" % i, value=b"v")) for i in range(count))
        return request
