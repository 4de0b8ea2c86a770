"""Random requests to the store as hypothesis strategies, and the code that encodes them."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

from . import kvmessages as pb

KEYS = st.sampled_from([b"a", b"b", b"a\0", b"\0", b"\0\0", b"ab", b"a\xff", b"\xff", b"a\0b"])
ENDS = st.one_of(st.just(b""), st.just(b"\0"), KEYS)
VALUES = st.sampled_from([b"", b"1", b"2", b"long" * 30])
BACK = st.integers(-2, 9)
FLAG = st.integers(0, 4).map(lambda n: n == 0)
SOME = st.one_of(st.just(0), st.just(0), st.integers(1, 30))
PUTS = st.builds(
    dict,
    key=KEYS,
    value=VALUES,
    prev_kv=FLAG,
    ignore_value=FLAG,
    ignore_lease=FLAG,
    lease=st.sampled_from([0] * 8 + [7, 8]),
)
LEASES = st.sampled_from([7, 8, -1])
# The fields of operations of leases, as leases.encode_... have them.
GRANTS = st.tuples(LEASES, st.integers(1, 600))
REVOKES = st.tuples(LEASES, st.booleans())
CHECKPOINTS = st.lists(st.tuples(LEASES, st.integers(0, 600)), max_size=3)
RANGES = st.builds(
    dict,
    key=KEYS,
    range_end=ENDS,
    limit=st.sampled_from([0, 0, 1, 2, 3, -1, 2**63 - 1]),
    revision=st.one_of(st.just(None), st.just(None), BACK),
    sort_order=st.sampled_from([0, 0, 1, 2]),
    sort_target=st.sampled_from([0, 0, 1, 2, 3, 4]),
    keys_only=FLAG,
    count_only=FLAG,
    min_mod_revision=SOME,
    max_mod_revision=SOME,
    min_create_revision=SOME,
    max_create_revision=SOME,
)
DELETES = st.builds(dict, key=KEYS, range_end=ENDS, prev_kv=FLAG)
COMPARES = st.builds(
    dict,
    key=KEYS,
    range_end=ENDS,
    result=st.integers(0, 3),
    target=st.integers(0, 4),
    operand=st.integers(0, 12),
    value=VALUES,
)


def ops_of(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Draw a transaction whose nested transactions come from `inner`."""
    op = st.one_of(
        st.tuples(st.just("request_put"), PUTS),
        st.tuples(st.just("request_range"), RANGES),
        st.tuples(st.just("request_delete_range"), DELETES),
        st.tuples(st.just("request_txn"), inner),
    )
    return st.builds(
        dict,
        compare=st.lists(COMPARES, max_size=2),
        success=st.lists(op, max_size=4),
        failure=st.lists(op, max_size=3),
    )


EMPTY = st.builds(dict, compare=st.just([]), success=st.just([]), failure=st.just([]))
TXNS = st.recursive(EMPTY, ops_of, max_leaves=6)


def build(kind: str, fields: Any, revision: int) -> Any:
    """Make the request message. Revisions are drawn as distances back from the present one."""
    if kind == "range":
        fields = {k: v for k, v in fields.items() if k != "revision"} | {
            "revision": 0 if fields["revision"] is None else revision - fields["revision"]
        }
        return pb.RangeRequest(**fields)
    if kind == "put":
        fields = dict(fields)
        if fields["ignore_value"]:
            fields["value"] = b""
        if fields["ignore_lease"]:
            fields["lease"] = 0
        return pb.PutRequest(**fields)
    if kind == "delete_range":
        return pb.DeleteRangeRequest(**fields)
    if kind == "compact":
        return pb.CompactionRequest(revision=revision - fields)
    req = pb.TxnRequest()
    for fields_of in fields["compare"]:
        compare = req.compare.add(**{k: fields_of[k] for k in ("key", "range_end", "result", "target")})
        name = ["version", "create_revision", "mod_revision", "value", "lease"][compare.target]
        setattr(compare, name, fields_of["value"] if name == "value" else fields_of["operand"])
    for branch in ("success", "failure"):
        for name, inner in fields[branch]:
            message = build(name.removeprefix("request_"), inner, revision)
            getattr(req, branch).add(**{name: message})
    return req
