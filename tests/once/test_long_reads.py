"""No request of a client makes a turn of the loop long, however many keys it is about."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from support import kvmessages as pb
from support.caller import Caller
from support.kvservice import ops, server, whole
from support.turns import SOMEWHAT

from metastore._core.kv_server import KVServer


def longest_turn(kv: KVServer, call: Callable[[], Any]) -> float:
    """Return the seconds of this thread's processor time that the longest turn took. `call` begins the work."""
    worst, busy = 0.0, True
    while busy:
        began = time.thread_time()
        call()
        call = int
        busy = kv.serve_late()
        worst = max(worst, time.thread_time() - began)
    return worst


KEYS = 200_000


@pytest.fixture(scope="module")
def large() -> KVServer:
    return server(KEYS)


@pytest.mark.parametrize(
    "name",
    ["counts", "sorted", "sorted by value", "filtered", "list", "last keys", "counts in counts", "compares"],
)
def test_no_read_holds_a_turn(large: KVServer, name: str) -> None:
    """Each of these once took between 0.1 and 15 s in one turn, with that many keys."""
    kv = large
    count = ops(*[whole(count_only=True)] * 120)
    nested = pb.TxnRequest(success=[pb.RequestOp(request_txn=pb.TxnRequest(success=count[:12]))] * 10)
    compare = pb.Compare(key=b"k", range_end=b"l", target=1, result=1, create_revision=0)
    requests = {
        "counts": pb.TxnRequest(success=count),
        "sorted": whole(sort_target=3, sort_order=2),
        "sorted by value": whole(sort_target=4, sort_order=1, limit=3),
        "filtered": whole(min_mod_revision=KEYS - 5),
        "list": whole(),
        "last keys": whole(sort_order=2, limit=5),
        "counts in counts": nested,
        "compares": pb.TxnRequest(compare=[compare] * 20, success=ops(pb.RangeRequest(key=b"a", serializable=True))),
    }
    request, caller = requests[name], Caller()
    method = "Txn" if isinstance(request, pb.TxnRequest) else "Range"
    worst = longest_turn(kv, lambda: kv.call(method, request.SerializeToString(), caller, 0.0))
    if kv.reads:
        # A request that is not serializable waits for a round.
        reads = kv.take_reads()
        worst = longest_turn(kv, lambda: kv.serve_reads(reads))
    assert caller.error is None
    reply = (pb.TxnResponse if method == "Txn" else pb.RangeResponse).FromString(caller.reply)
    if name == "counts":
        assert [one.response_range.count for one in reply.responses] == [KEYS] * 120
    elif name == "compares":
        assert reply.succeeded
    elif name == "sorted by value":
        assert [kv.value for kv in reply.kvs] == [b"%07d" % number for number in range(3)] and reply.more
    elif name == "filtered":
        assert [kv.mod_revision for kv in reply.kvs] == list(range(KEYS - 5, KEYS + 2))
    elif name == "sorted":
        assert [kv.mod_revision for kv in reply.kvs] == list(range(KEYS + 1, 1, -1))
    assert not kv.queue.held and not kv.queue.begun and not kv.late
    assert worst < SOMEWHAT, f"{worst * 1000:.1f} ms"


def test_counting_holds_no_turn_and_nobody_waits_for_it(large: KVServer) -> None:
    """While a change waits for its write, the keys that a transaction looks at are walked over to be counted."""
    kv = large
    kv.store.put(pb.PutRequest(key=b"waits").SerializeToString())
    compare = pb.Compare(key=b"k", range_end=b"l", target=1, result=1, create_revision=0)
    put = pb.RequestOp(request_put=pb.PutRequest(key=b"x"))
    request = pb.TxnRequest(compare=[compare] * 100, success=[put])
    before, refused = kv.proposer.queued, kv.refused
    long = Caller()

    def begin() -> None:
        kv.call("Txn", request.SerializeToString(), long, 0.0)
        assert kv.late == 1
        other = Caller()
        kv.call("Put", pb.PutRequest(key=b"y").SerializeToString(), other, 0.0)
        assert kv.proposer.queued == before + 1 and other.error is None

    worst = longest_turn(kv, begin)
    assert long.error is None and kv.proposer.queued == before + 2 and kv.refused == refused
    assert worst < SOMEWHAT, f"{worst * 1000:.1f} ms"
