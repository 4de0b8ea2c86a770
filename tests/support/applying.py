"""Entries for the applier, and callers that keep what they are told."""

from __future__ import annotations

from typing import Any

from metastore import errors
from metastore._core.batch import frame
from metastore._core.entry import Entry, encode_entry
from metastore._core.mvcc_apply import Applier
from metastore._core.waiter import Waiter

from . import kvmessages as pb


class Caller(Waiter):
    """Keeps what it is told; being told twice is an error."""

    def __init__(self) -> None:
        self.result: Any = None

    def complete(self, reply: bytes) -> None:
        assert self.result is None
        self.result = reply

    def fail(self, error: errors.MetaStoreError) -> None:
        assert self.result is None
        self.result = error


def entry(made: Applier, index: int, *ops: bytes, term: int = 2) -> bytes:
    return encode_entry(Entry(term, index, 0, made.codec.encode(frame(list(ops)))))


def put(key: bytes, value: bytes = b"v", **more: Any) -> bytes:
    return pb.PutRequest(key=key, value=value, **more).SerializeToString()


def waiting(made: Applier, *ids: int) -> list[Caller]:
    callers = [Caller() for _ in ids]
    made.waiters.update(zip(ids, callers, strict=True))
    return callers
