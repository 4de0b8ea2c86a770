"""Operations of leases on a store, for tests that need leases and no service."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from metastore._core.leases import encode_checkpoint, encode_grant, encode_revoke
from metastore._core.mvcc import Store
from metastore._core.mvcc_txn_work import execute
from metastore._core.op import LEASE_CHECKPOINT, LEASE_GRANT, LEASE_REVOKE, encode_op

KINDS = {"grant": LEASE_GRANT, "revoke": LEASE_REVOKE, "checkpoint": LEASE_CHECKPOINT}
ENCODE: dict[str, Any] = {"grant": encode_grant, "revoke": encode_revoke, "checkpoint": encode_checkpoint}


def lease_op(name: str, *fields: Any, ident: int = 0) -> bytes:
    """Return an encoded operation: "grant" with id and TTL, "revoke" with id and whether it is by expiry,
    "checkpoint" with (id, remaining) pairs."""
    return encode_op(KINDS[name], ident, ENCODE[name](*fields))


def change(store: Store, name: str, *fields: Any) -> bytes:
    """Carry out an operation, and return the encoded response. Raises LeaseExist, LeaseNotFound."""
    return execute(store, KINDS[name], ENCODE[name](*fields))


def state(store: Store) -> dict[int, tuple[int, int, list[bytes]]]:
    """Return TTL, remaining time and keys of each lease."""
    leases = store.leases
    return {one: (leases.ttl(one), leases.remaining(one), leases.keys(one)) for one in leases.ids()}


def attached(records: Iterable[tuple[bytes, bytes]]) -> list[tuple[int, bytes]]:
    """Return (lease, key) of the records of table 'a' among an engine's records."""
    return [(int.from_bytes(key[1:9], "big", signed=True), key[9:]) for key, _ in records if key[:1] == b"a"]


class Heard:
    """A listener that keeps what it is told."""

    def __init__(self) -> None:
        self.news: list[tuple[Any, ...]] = []

    def changed(self, news: list[tuple[str, int, int]]) -> None:
        self.news += news

    def reloaded(self) -> None:
        self.news.append(("reloaded",))

    def take(self) -> list[tuple[Any, ...]]:
        """Return what came since the last call."""
        news, self.news = self.news, []
        return news
