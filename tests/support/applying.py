"""Entries for the applier, and callers that keep their results."""

from __future__ import annotations

from typing import Any

from metastore._core.batch import frame
from metastore._core.entry import Entry, encode_entry
from metastore._core.mvcc_apply import Applier

from . import kvmessages as pb
from .caller import Caller


def entry(applier: Applier, index: int, *ops: bytes, term: int = 2) -> bytes:
    return encode_entry(Entry(term, index, 0, applier.codec.encode(frame(list(ops)))))


def put(key: bytes, value: bytes = b"v", **more: Any) -> bytes:
    return pb.PutRequest(key=key, value=value, **more).SerializeToString()


def waiting(applier: Applier, *ids: int) -> list[Caller]:
    callers = [Caller() for _ in ids]
    applier.waiters.update(zip(ids, callers, strict=True))
    return callers
