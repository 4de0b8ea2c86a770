"""The KV wire codec against the protobuf library, on good and on damaged bytes."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from sim.varint import varint
from support import kvmessages as pb

from metastore import errors
from metastore._core import kv_messages, mvcc_txn
from metastore._core.mvcc import Store
from metastore._core.mvcc_keys import decode_index_key, encode_index_key
from metastore._core.mvcc_txn_work import execute_txn
from metastore.storage.engines.memory import MemoryEngine

INT64 = st.one_of(st.integers(-(2**63), 2**63 - 1), st.integers(-2, 300))
DATA = st.binary(max_size=40)
READERS = {
    "PutRequest": kv_messages.read_put,
    "RangeRequest": kv_messages.read_range,
    "DeleteRangeRequest": kv_messages.read_delete_range,
    "CompactionRequest": kv_messages.read_compact,
}


def messages(name: str) -> st.SearchStrategy[Any]:
    """Draw random messages of a request type without nested messages."""
    cls = getattr(pb, name)
    kinds = {
        "TYPE_BYTES": DATA,
        "TYPE_INT64": INT64,
        "TYPE_INT32": st.integers(-(2**31), 2**31 - 1),
        "TYPE_BOOL": st.booleans(),
    }
    types = {getattr(pb.PutRequest.DESCRIPTOR.fields[0].__class__, kind): strategy for kind, strategy in kinds.items()}
    return st.builds(cls, **{field.name: types[field.type] for field in cls.DESCRIPTOR.fields})


def fields_of(message: Any) -> dict[str, Any]:
    return {field.name: getattr(message, field.name) for field in message.DESCRIPTOR.fields}


@pytest.mark.parametrize("name", READERS)
def test_decodes_what_protobuf_encodes(name: str) -> None:
    @settings(max_examples=150, deadline=None)
    @given(messages(name), messages(name))
    def run(first: Any, second: Any) -> None:
        assert READERS[name](first.SerializeToString()) == fields_of(first)
        # If a field occurs twice, its last value is used.
        both = first.SerializeToString() + second.SerializeToString()
        assert READERS[name](both) == fields_of(getattr(pb, name).FromString(both))

    run()


UNKNOWN = st.builds(
    lambda number, value: tag(number, 0) + varint(value), st.integers(100, 2**29 - 1), st.integers(0, 2**64 - 1)
)


def tag(number: int, kind: int) -> bytes:
    return varint(number << 3 | kind)


@pytest.mark.parametrize("name", READERS)
def test_skips_unknown_fields(name: str) -> None:
    @settings(max_examples=60, deadline=None)
    @given(messages(name), st.lists(UNKNOWN, max_size=3), DATA)
    def run(message: Any, unknown: list[bytes], data: bytes) -> None:
        more = b"".join(unknown) + tag(99, 2) + varint(len(data)) + data + tag(98, 1) + b"8" * 8 + tag(97, 5) + b"4" * 4
        assert READERS[name](more + message.SerializeToString() + more) == fields_of(message)

    run()


def strictly_parsed(name: str, body: bytes) -> Any:
    """Return what protobuf decodes from the bytes, or None if it refuses them."""
    try:
        return getattr(pb, name).FromString(body)
    except DecodeError:
        return None


@pytest.mark.parametrize("name", READERS)
def test_damaged_bytes_give_protobufs_answer_or_an_error(name: str) -> None:
    """What protobuf refuses is refused here. What it accepts has the same fields, or is refused because ours is
    stricter."""

    @settings(max_examples=300, deadline=None)
    @given(messages(name), st.data())
    def run(message: Any, data: st.DataObject) -> None:
        body = bytearray(message.SerializeToString() + data.draw(st.binary(max_size=6)))
        for _ in range(data.draw(st.integers(0, 3))):
            if body:
                body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
        del body[data.draw(st.integers(0, len(body))) :]
        expected = strictly_parsed(name, bytes(body))
        try:
            fields = READERS[name](bytes(body))
        except errors.MalformedRequest:
            return
        # Like etcd's decoder, ours drops the bits of a ten-byte varint beyond 64, which protobuf's C library refuses.
        assert expected is not None or overlong(bytes(body)), bytes(body)
        if expected is not None:
            assert fields == fields_of(expected)

    run()


def overlong(body: bytes) -> bool:
    return any(all(byte >= 128 for byte in body[at : at + 9]) for at in range(len(body) - 9))


@pytest.mark.parametrize(
    "body",
    [
        b"\x0a",  # no length
        b"\x0a\x02a",  # too short
        b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01a",  # a length beyond everything
        b"\x0b\x0c",  # a group
        b"\x0c",  # the end of a group
        b"\x08\x01",  # the key as a number
        b"\x18",  # no number
        b"\x1a\x01a",  # lease as bytes
        b"\x18" + b"\xff" * 10 + b"\x01",  # eleven bytes of number
        b"\x00\x01",  # field 0
        b"\x06",  # wire type 6 of field 0
        b"\xf9\x06\x01",  # fixed 64, too short
    ],
)
def test_malformed_put(body: bytes) -> None:
    with pytest.raises(errors.MalformedRequest, match="PutRequest"):
        kv_messages.check_put(body)


def test_every_length_cut() -> None:
    body = pb.PutRequest(key=b"key", value=b"v" * 200, lease=-1, prev_kv=True).SerializeToString()
    good = set()
    for n in range(len(body)):
        try:
            kv_messages.check_put(body[:n])
            good.add(n)
        except (errors.MalformedRequest, errors.EmptyKey):
            continue
    # Only at the end of a field: after the key, the value, the lease.
    assert good == {5, 5 + 203, 5 + 203 + 11}


def test_admission() -> None:
    for body, expected in [
        (pb.PutRequest(), errors.EmptyKey),
        (pb.PutRequest(key=b"a", value=b"1", ignore_value=True, ignore_lease=True, lease=1), errors.ValueProvided),
        (pb.PutRequest(key=b"a", ignore_value=True, ignore_lease=True, lease=1), errors.LeaseProvided),
    ]:
        with pytest.raises(expected):
            kv_messages.check_put(body.SerializeToString())
    kv_messages.check_put(pb.PutRequest(key=b"a", lease=5, ignore_value=True).SerializeToString())
    for order, target in [(3, 0), (-1, 0), (0, 5), (0, -1)]:
        with pytest.raises(errors.InvalidSortOption):
            kv_messages.check_range(pb.RangeRequest(key=b"a", sort_order=order, sort_target=target).SerializeToString())
    with pytest.raises(errors.EmptyKey):
        kv_messages.check_range(pb.RangeRequest(sort_order=9).SerializeToString())
    with pytest.raises(errors.EmptyKey):
        kv_messages.check_delete_range(pb.DeleteRangeRequest(range_end=b"a").SerializeToString())
    kv_messages.check_compact(b"")
    assert kv_messages.range_is_serializable(pb.RangeRequest(serializable=True).SerializeToString())
    assert not kv_messages.range_is_serializable(b"")


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=60), st.data())
def test_random_transactions_do_no_harm(junk: bytes, data: st.DataObject) -> None:
    """Damaged TxnRequests are refused or run. In both cases the store stays usable."""
    req = pb.TxnRequest(
        compare=[pb.Compare(key=b"a", range_end=b"b", target=3, value=junk)],
        success=[
            pb.RequestOp(request_put=pb.PutRequest(key=b"a", value=junk)),
            pb.RequestOp(request_txn=pb.TxnRequest(failure=[pb.RequestOp(request_range=pb.RangeRequest(key=b"x"))])),
        ],
        failure=[pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=b"a", range_end=b"\0"))],
    )
    body = bytearray(req.SerializeToString())
    for _ in range(data.draw(st.integers(1, 6))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    store = Store(MemoryEngine())
    store.put(pb.PutRequest(key=b"a", value=b"1").SerializeToString())
    try:
        mvcc_txn.check_txn(bytes(body))
    except errors.ApiError:
        pass
    try:
        pb.TxnResponse.FromString(execute_txn(store, bytes(body)))
    except errors.ApiError:
        assert store.revision == 2
    assert store.revision in (2, 3)
    assert pb.PutResponse.FromString(store.put(b"\x0a\x01a")).header.revision == store.revision


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(st.text("\0\1ab\xff", max_size=5), st.integers(0, 2**63 - 1), st.integers(0, 2**32 - 1))))
def test_index_keys_keep_the_order(triples: list[tuple[str, int, int]]) -> None:
    plain = [(key.encode("latin-1"), main, sub) for key, main, sub in triples]
    coded = {encode_index_key(*triple): triple for triple in plain}
    assert [coded[key] for key in sorted(coded)] == sorted(set(plain))
    for key, triple in coded.items():
        assert decode_index_key(key) == triple


@pytest.mark.parametrize(
    "damage", [b"", b"k", b"k\0\1", b"r" + bytes(14), b"ka\0\0" + bytes(12), b"k\0\2\0\1" + bytes(12)]
)
def test_damaged_index_keys(damage: bytes) -> None:
    with pytest.raises(errors.FormatError):
        decode_index_key(damage)
