"""Ranges in pieces. Every reply is byte for byte that of the range in one go, whatever happens meanwhile."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support import kvmessages as pb
from support.kvrequests import RANGES, build
from support.longranges import Writer, outcome

from metastore._core.mvcc import Store
from metastore._core.mvcc_range import sliced_reply
from metastore.storage.engines.memory import MemoryEngine


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 30), st.lists(RANGES, min_size=1, max_size=6), st.integers(1, 9))
def test_pieces_make_the_same_reply(seed: int, changes: int, ranges: list[dict], budget: int) -> None:
    writer = Writer(seed)
    for _ in range(changes):
        writer.change()
    for fields in ranges:
        body = build("range", fields, writer.store.revision).SerializeToString()
        expected = outcome(lambda body=body: writer.store.range_reply(body))
        assert outcome(lambda body=body: sliced_reply(writer.store, body, budget, writer.change_much)) == expected


@pytest.mark.parametrize("limit", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("only", ["", "count_only", "keys_only"])
@pytest.mark.parametrize("order", [0, 1, 2])
def test_limits(limit: int, only: str, order: int) -> None:
    store = Store(MemoryEngine())
    for key in (b"a", b"b", b"c", b"d"):
        store.put(pb.PutRequest(key=key, value=b"v").SerializeToString())
    more = {only: True} if only else {}
    for target in (0, 2):
        fields = {"key": b"a", "range_end": b"\0", "limit": limit, "sort_order": order, "sort_target": target, **more}
        body = pb.RangeRequest(**fields).SerializeToString()
        for budget in (1, 5, 100):
            assert sliced_reply(store, body, budget) == store.range_reply(body), fields
