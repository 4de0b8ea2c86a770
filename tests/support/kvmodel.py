"""A model of the revisioned store on plain dicts, written for clarity. The tests compare the real store with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

from metastore import errors

from . import kvmessages as pb


class Version(NamedTuple):
    """One version of a key. The value None is a tombstone."""

    key: bytes
    mod: int
    create: int
    version: int
    value: bytes | None
    lease: int = 0


class Model:
    """Keeps every version for ever; a compaction only moves `compacted`."""

    def __init__(self) -> None:
        self.revision = 1
        self.compacted = -1
        self.versions: dict[bytes, list[Version]] = {}
        self.changed = False
        self.leases: dict[int, tuple[int, int]] = {}  # id -> TTL, remaining

    # -- state --

    def now(self) -> int:
        return self.revision + self.changed

    def at(self, revision: int) -> dict[bytes, Version]:
        """Return the live versions at a revision, in key order."""
        state = {}
        for key in sorted(self.versions):
            versions = [version for version in self.versions[key] if version.mod <= revision]
            if versions and versions[-1].value is not None:
                state[key] = versions[-1]
        return state

    def inside(self, key: bytes, end: bytes, revision: int) -> list[Version]:
        state = self.at(revision)
        if not end:
            return [state[key]] if key in state else []
        return [v for k, v in state.items() if k >= key and (end == b"\0" or k < end)]

    def keys(self, lease: int) -> list[bytes]:
        return [key for key, version in self.at(self.now()).items() if version.lease == lease]

    def change(self, key: bytes, value: bytes | None, lease: int = 0) -> None:
        old = self.at(self.now()).get(key)
        self.changed = True
        mod = self.revision + 1
        create, version = (old.create, old.version + 1) if old else (mod, 1)
        self.versions.setdefault(key, []).append(Version(key, mod, create, version, value, lease))

    @staticmethod
    def pair(version: Version) -> Any:
        return pb.KeyValue(
            key=version.key,
            value=version.value or b"",
            create_revision=version.create,
            mod_revision=version.mod,
            version=version.version,
            lease=version.lease,
        )

    # -- operations --

    def put(self, req: Any) -> Any:
        if req.lease and req.lease not in self.leases:
            raise errors.LeaseNotFound
        old = self.at(self.now()).get(req.key)
        if old is None and (req.ignore_value or req.ignore_lease):
            raise errors.KeyNotFound
        lease = old.lease if old and req.ignore_lease else req.lease
        self.change(req.key, old.value if old and req.ignore_value else req.value, lease)
        reply = pb.PutResponse(header=pb.ResponseHeader(revision=self.now()))
        if req.prev_kv and old:
            reply.prev_kv.CopyFrom(self.pair(old))
        return reply

    def delete_range(self, req: Any) -> Any:
        victims = self.inside(req.key, req.range_end, self.now())
        for version in victims:
            self.change(version.key, None)
        reply = pb.DeleteRangeResponse(header=pb.ResponseHeader(revision=self.now()), deleted=len(victims))
        if req.prev_kv:
            reply.prev_kvs.extend(self.pair(version) for version in victims)
        return reply

    def range(self, req: Any) -> Any:
        if req.revision > self.now():
            raise errors.FutureRevision
        at = req.revision if req.revision > 0 else self.now()
        if at < self.compacted:
            raise errors.Compacted
        matches = self.inside(req.key, req.range_end, at)
        reply = pb.RangeResponse(header=pb.ResponseHeader(revision=self.now()), count=len(matches))
        if req.count_only:
            return reply
        bounds = (req.min_mod_revision, req.max_mod_revision, req.min_create_revision, req.max_create_revision)
        if req.limit > 0 and req.sort_order == 0 and not any(bounds):
            matches = matches[: req.limit + 1]
        matches = [v for v in matches if self.within(v.mod, *bounds[:2]) and self.within(v.create, *bounds[2:])]
        column = [lambda v: v.key, lambda v: v.version, lambda v: v.create, lambda v: v.mod, lambda v: v.value]
        if req.sort_order or req.sort_target:
            matches.sort(key=column[req.sort_target], reverse=req.sort_order == 2)
        if req.limit > 0 and len(matches) > req.limit:
            reply.more = True
            matches = matches[: req.limit]
        for version in matches:
            reply.kvs.append(self.pair(version))
            if req.keys_only:
                reply.kvs[-1].value = b""
        return reply

    @staticmethod
    def within(number: int, low: int, high: int) -> bool:
        return (low == 0 or number >= low) and (high == 0 or number <= high)

    def compact(self, req: Any) -> Any:
        if req.revision <= self.compacted:
            raise errors.Compacted
        if req.revision > self.revision:
            raise errors.FutureRevision
        self.compacted = req.revision
        return pb.CompactionResponse(header=pb.ResponseHeader(revision=self.revision))

    # -- leases; requests are the fields of the operation --

    def grant(self, req: tuple[int, int]) -> None:
        if req[0] in self.leases:
            raise errors.LeaseExist
        self.leases[req[0]] = (req[1], 0)

    def revoke(self, req: tuple[int, bool]) -> None:
        if req[0] not in self.leases:
            if req[1]:
                return
            raise errors.LeaseNotFound
        for key in self.keys(req[0]):
            self.change(key, None)
        del self.leases[req[0]]

    def checkpoint(self, req: list[tuple[int, int]]) -> None:
        for lease, remaining in req:
            if lease in self.leases:
                self.leases[lease] = (self.leases[lease][0], remaining)

    # -- transactions --

    def holds(self, compare: Any) -> bool:
        matches = self.inside(compare.key, compare.range_end, self.revision)
        if not matches:
            return compare.target != 3 and self.compare(compare, Version(b"", 0, 0, 0, b""))
        return all(self.compare(compare, version) for version in matches)

    @staticmethod
    def compare(compare: Any, version: Version) -> bool:
        mine = [version.version, version.create, version.mod, version.value, version.lease][compare.target]
        name = ["version", "create_revision", "mod_revision", "value", "lease"][compare.target]
        operand = getattr(compare, name)
        return [mine == operand, mine > operand, mine < operand, mine != operand][compare.result]

    def plan(self, req: Any) -> dict[str, Any]:
        """Return which branch runs, and the plans of the transactions in it."""
        succeeded = all(self.holds(compare) for compare in req.compare)
        ops = list(req.success if succeeded else req.failure)
        nested = [self.plan(op.request_txn) if op.WhichOneof("union") == "request_txn" else None for op in ops]
        return {"succeeded": succeeded, "ops": ops, "nested": nested}

    def check(self, plan: dict[str, Any]) -> None:
        """Check puts first, then ranges, both in the order in which they will run."""
        for put in self.chosen(plan, "request_put"):
            if (put.ignore_value or put.ignore_lease) and put.key not in self.at(self.revision):
                raise errors.KeyNotFound
            if put.lease and put.lease not in self.leases:
                raise errors.LeaseNotFound
        for request in self.chosen(plan, "request_range"):
            if request.revision > self.revision:
                raise errors.FutureRevision
            if request.revision and request.revision < self.compacted:
                raise errors.Compacted

    def chosen(self, plan: dict[str, Any], kind: str) -> Iterator[Any]:
        """Yield the operations of a kind that will run, nested ones in their place."""
        for op, nested in zip(plan["ops"], plan["nested"], strict=True):
            if nested is not None:
                yield from self.chosen(nested, kind)
            elif op.WhichOneof("union") == kind:
                yield getattr(op, kind)

    def run(self, plan: dict[str, Any]) -> Any:
        reply = pb.TxnResponse(header=pb.ResponseHeader(), succeeded=plan["succeeded"])
        for op, nested in zip(plan["ops"], plan["nested"], strict=True):
            kind = op.WhichOneof("union")
            answer = reply.responses.add()
            if kind == "request_range":
                answer.response_range.CopyFrom(self.range(op.request_range))
            elif kind == "request_put":
                answer.response_put.CopyFrom(self.put(op.request_put))
            elif kind == "request_delete_range":
                answer.response_delete_range.CopyFrom(self.delete_range(op.request_delete_range))
            elif kind == "request_txn":
                answer.response_txn.CopyFrom(self.run(nested))
        return reply

    def txn(self, req: Any) -> Any:
        plan = self.plan(req)
        self.check(plan)
        reply = self.run(plan)
        reply.header.revision = self.now()
        return reply

    # -- entry points --

    def execute(self, name: str, req: Any) -> Any:
        """Run a request by the name of its method. After an error nothing has changed."""
        before = {key: list(versions) for key, versions in self.versions.items()}
        try:
            reply = getattr(self, name)(req)
        except errors.ApiError:
            self.versions = before
            self.changed = False
            raise
        self.revision = self.now()
        self.changed = False
        return reply
