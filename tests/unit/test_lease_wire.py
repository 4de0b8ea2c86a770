"""Messages about leases (`metastore/_core/lease_wire`): etcd's, and those between members."""

from __future__ import annotations

import random

import pytest
from support import messages as m

from metastore._core import lease_wire as wire
from metastore._core.engine import MemoryEngine
from metastore._core.mvcc import Store
from metastore.errors import FormatError, MalformedRequest

IDS = [1, -1, 2**63 - 1, -(2**63), 127, 128]


def head() -> bytes:
    store = Store(MemoryEngine(), 5, 6)
    store.raft_term = 7
    return wire.reply_head(store)


def unframed(data: bytes) -> list[bytes]:
    """The messages of a gRPC stream."""
    found = []
    while data:
        size = int.from_bytes(data[1:5], "big")
        assert data[0] == 0 and len(data) >= 5 + size, data
        found.append(data[5 : 5 + size])
        data = data[5 + size :]
    return found


def test_renewals_are_read_and_answered() -> None:
    request = m.TYPES["LeaseKeepAliveRequest"]
    idents = [0, *IDS]
    assert wire.decode_keepalives([request(ID=ident).SerializeToString() for ident in idents]) == idents
    framed = wire.keepalive_replies(head(), idents, [9_000_000_000] * len(idents), 1, len(idents))
    answers = [m.TYPES["LeaseKeepAliveResponse"].FromString(reply) for reply in unframed(framed)]
    assert [answer.ID for answer in answers] == IDS
    assert {answer.TTL for answer in answers} == {9_000_000_000}
    header = answers[0].header
    assert (header.cluster_id, header.member_id, header.revision, header.raft_term) == (5, 6, 1, 7)


@pytest.mark.parametrize("body", [b"\x0a\x01a", b"\x08", b"\x0f"])
def test_a_renewal_that_cannot_be_read_is_refused(body: bytes) -> None:
    with pytest.raises(MalformedRequest):
        wire.decode_keepalives([body])


def test_a_field_of_a_later_version_is_skipped() -> None:
    assert wire.decode_keepalives([b"\x08\x05\x10\x01\x1a\x01x"]) == [5]


def test_the_time_to_live_is_told_in_parts() -> None:
    keys = [b"a", b"", b"x" * 300]
    for ident, ttl in zip(IDS, [0, -1, 5, 6, 7, 8], strict=True):
        data = wire.time_to_live_reply(head(), ident, ttl, 10, []) + wire.time_to_live_reply(b"", 0, 0, 0, keys)
        told = m.TYPES["LeaseTimeToLiveResponse"].FromString(data)
        assert (told.ID, told.TTL, told.grantedTTL, list(told.keys)) == (ident, ttl, 10, keys)


def test_all_leases_are_told_in_parts() -> None:
    data = head() + wire.leases_part(IDS, 0, 2) + wire.leases_part(IDS, 2, len(IDS))
    assert [one.ID for one in m.TYPES["LeaseLeasesResponse"].FromString(data).leases] == IDS


def test_questions_and_answers_come_back_as_they_were() -> None:
    question = wire.encode_question(wire.RENEW, 2**64 - 1, IDS)
    assert len(question) == 16 + 8 * len(IDS)
    assert wire.decode_question(question) == (wire.RENEW, 2**64 - 1, IDS)
    found = [(0, 100, 0), (4999, -1, 9_000_000_000)]
    answer = wire.encode_answer(wire.TIME_TO_LIVE, 3, 4, found)
    assert len(answer) == 24 + 24 * 2
    assert wire.decode_answer(answer) == (wire.TIME_TO_LIVE, 3, 4, found)


def test_a_question_names_some_leases_but_not_too_many() -> None:
    for count in (0, wire.MOST_ASKED + 1):
        with pytest.raises(ValueError):
            wire.encode_question(wire.RENEW, 1, [1] * count)
    wire.decode_question(wire.encode_question(wire.RENEW, 1, [1] * wire.MOST_ASKED))


def test_damaged_questions_and_answers_are_refused() -> None:
    """Each changed byte of the head that means something is found, and each wrong length."""
    question = wire.encode_question(wire.RENEW, 1, [5, 6])
    answer = wire.encode_answer(wire.RENEW, 1, 2, [(0, 1, 0), (1, 1, 0)])
    for data, decode in ((question, wire.decode_question), (answer, wire.decode_answer)):
        for at in (0, 1, 2, 3, 4, 5, 6, 7):
            damaged = bytearray(data)
            damaged[at] ^= 0x44
            with pytest.raises(FormatError):
                decode(bytes(damaged))
        for cut in range(len(data)):
            with pytest.raises(FormatError):
                decode(data[:cut])
        with pytest.raises(FormatError):
            decode(data + b"x")
    with pytest.raises(FormatError):
        wire.decode_answer(answer[:28] + b"\1" + answer[29:])


def test_random_bytes_do_no_harm() -> None:
    chance = random.Random(5)
    for _ in range(3000):
        data = chance.choice([b"", b"\1\1\0\0"]) + chance.randbytes(chance.randrange(60))
        for decode in (wire.decode_question, wire.decode_answer):
            try:
                decode(data)
            except FormatError:
                continue
