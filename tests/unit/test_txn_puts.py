"""Transactions that are nothing but a few puts have a way of their own. All others go the usual way."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from support import kvmessages as pb
from support.longranges import outcome

from metastore._core.leases import encode_grant
from metastore._core.mvcc import Store
from metastore._core.mvcc_txn_puts import puts_reply
from metastore._core.mvcc_txn_work import execute, execute_txn
from metastore._core.op import LEASE_GRANT
from metastore.storage.engines.memory import MemoryEngine

STRANGE = ["lease", "prev_kv", "ignore_value", "compare", "failure", "range", "cut"]
PUTS = st.fixed_dictionaries(
    {"key": st.sampled_from([b"a", b"b\0", b"c"]), "value": st.binary(max_size=20), "lease": st.sampled_from([0, 7])}
)


def transaction(puts: list[dict], strange: str) -> bytes:
    """Encode a transaction of puts. `strange` says what else there is about it."""
    request = pb.TxnRequest(success=[pb.RequestOp(request_put=pb.PutRequest(**put)) for put in puts])
    if strange in ("lease", "prev_kv", "ignore_value") and puts:
        setattr(request.success[-1].request_put, strange, 8 if strange == "lease" else True)
    elif strange == "compare":
        request.compare.append(pb.Compare(key=b"a", target=0, version=0))
    elif strange in ("failure", "range"):
        branch = request.failure if strange == "failure" else request.success
        branch.append(pb.RequestOp(request_range=pb.RangeRequest(key=b"a")))
    return request.SerializeToString()[: -1 if strange == "cut" else None]


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.lists(PUTS, max_size=18), st.sampled_from(["", *STRANGE]), st.booleans()), max_size=4))
def test_a_few_puts_do_what_any_transaction_does(requests: list[tuple[list[dict], str, bool]]) -> None:
    usual, special = Store(MemoryEngine()), Store(MemoryEngine())
    for store in (usual, special):
        execute(store, LEASE_GRANT, encode_grant(7, 60))
    for puts, strange, want in requests:
        body = transaction(puts, strange)
        before = list(special.overlay.items())
        reply = puts_reply(special, body, want)
        assert (reply is not False) == (not strange and 0 < len(puts) <= 16) or not puts
        if reply is False:
            assert list(special.overlay.items()) == before, "it has changed something"
            reply = outcome(lambda body=body, want=want: execute_txn(special, body, want))
        assert reply == outcome(lambda body=body, want=want: execute_txn(usual, body, want))
        assert list(special.overlay.items()) == list(usual.overlay.items())
        assert special.revision == usual.revision
        assert special.leases.keys(7) == usual.leases.keys(7)
