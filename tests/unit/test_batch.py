"""Batch framing, which is reversible for every input, and the collector against a plain model of its rules."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from metastore._core.batch import REASONS, SEPARATOR, BatchProposer, frame, request_ids, unframe
from metastore._core.codec import PayloadCodec
from metastore._core.driver_accounts import Accounts
from metastore._core.op import PUT, encode_op
from metastore.codecs import Snappy
from metastore.errors import FormatError, RequestTooLarge, TooManyRequests

SEP = b"|BATCH_SEP|"
MARK = b"|BATCH_SEP"
# All proper beginnings and ends of the separator, the escape, and strings that look like both.
PIECES = sorted(
    {SEP[:n] for n in range(len(SEP) + 1)}
    | {SEP[n:] for n in range(len(SEP))}
    | {b"~", b"~~", b"|~", b"~|", MARK + b"~", MARK + b"~|", MARK + b"~~", b"||", b"x", b"\0", b"SEP", b"_", b"P|"}
)
PIECE = st.sampled_from(PIECES)
OP = st.lists(PIECE, max_size=5).map(b"".join) | st.binary(max_size=40)
OPS = st.lists(OP, min_size=1, max_size=6)


def model_frame(ops: list[bytes]) -> bytes:
    """Frame operations as the format describes it."""
    return SEP.join(op.replace(MARK, MARK + b"~") for op in ops)


def plain_proposer(**changes: object) -> BatchProposer:
    settings: dict[str, object] = {
        "max_count": 4,
        "max_bytes": 200,
        "max_delay": 0.5,
        "limit_count": 1000,
        "limit_bytes": 100_000,
    }
    return BatchProposer(**{**settings, **changes})  # type: ignore[arg-type]


# Framing.


@given(OPS)
def test_framing_is_reversible(ops: list[bytes]) -> None:
    framed = frame(ops)
    assert framed == model_frame(ops)
    assert unframe(framed) == ops


@given(OPS)
def test_plain_join_where_nothing_needs_an_escape(ops: list[bytes]) -> None:
    if not any(MARK in op for op in ops):
        assert frame(ops) == SEP.join(ops)


def test_every_pair_and_triple_of_pieces() -> None:
    """The operations end in a beginning of the separator, begin with an end of it, or are empty."""
    for ops in itertools.product(PIECES, repeat=2):
        assert unframe(frame(list(ops))) == list(ops)
        joined = b"".join(ops)
        assert unframe(frame([joined])) == [joined]
        assert unframe(frame([joined, joined])) == [joined, joined]
    short = [piece for piece in PIECES if len(piece) in (0, 1, 10, 11)]
    for ops in itertools.product(short, repeat=3):
        assert unframe(frame(list(ops))) == list(ops)


def test_a_hundred_thousand_adversarial_batches() -> None:
    rng = random.Random(20_240_607)
    frames: dict[bytes, list[bytes]] = {}
    for number in range(120_000):
        ops = [b"".join(rng.choices(PIECES, k=rng.randrange(4))) for _ in range(rng.randrange(1, 5))]
        framed = frame(ops)
        if number % 8 == 0:
            assert framed == model_frame(ops), ops
            # Two different batches never have the same bytes.
            assert frames.setdefault(framed, ops) == ops
        assert unframe(framed) == ops, ops


def test_known_bytes() -> None:
    assert frame([b"a", b"b"]) == b"a|BATCH_SEP|b"
    assert frame([b""]) == b"" and unframe(b"") == [b""]
    assert frame([b"", b""]) == SEP and unframe(SEP) == [b"", b""]
    assert frame([b"x|BATCH_SEP|y"]) == b"x|BATCH_SEP~|y"
    assert frame([MARK, b"~"]) == b"|BATCH_SEP~|BATCH_SEP|~"
    assert frame([b"x|", b"BATCH_SEP|y"]) == b"x||BATCH_SEP|BATCH_SEP|y"
    assert frame([MARK * 3]) == (MARK + b"~") * 3
    assert frame(op for op in (b"a", b"b")) == b"a|BATCH_SEP|b"
    assert SEPARATOR == SEP


def test_an_empty_batch_is_an_error() -> None:
    with pytest.raises(FormatError, match="no operations"):
        frame([])


@pytest.mark.parametrize(
    "wrong", [MARK, b"a" + MARK, MARK + b"x", b"a|BATCH_SEP|b|BATCH_SEP", MARK + b"~" + MARK + b"!"]
)
def test_bytes_that_framing_never_makes_are_refused(wrong: bytes) -> None:
    with pytest.raises(FormatError, match="mark"):
        unframe(wrong)


@given(st.lists(PIECE, max_size=8).map(b"".join))
def test_what_can_be_read_is_what_would_be_written(framed: bytes) -> None:
    """Any bytes are either refused or the one framing of the operations that they decode to."""
    try:
        ops = unframe(framed)
    except FormatError:
        return
    assert frame(ops) == framed


def test_many_bars_and_large_operations() -> None:
    ops = [b"|" * 100_000, b"|BATCH_SE" * 5000, MARK * 3000, b"", bytes(1_500_000) + SEP, b"|" * 40 + SEP + b"|" * 40]
    framed = frame(ops)
    assert framed == model_frame(ops)
    assert unframe(bytearray(framed)) == ops


def test_request_ids_of_a_framed_batch() -> None:
    # The bytes of this id end in a bar, before a body that goes on with the separator.
    straddling = int.from_bytes(b"1234567|", "little")
    ops = [
        encode_op(PUT, straddling, b"BATCH_SEP|rest"),
        encode_op(PUT, 7, b"", user=b"u"),
        encode_op(PUT, 2**64 - 1, SEP),
    ]
    assert unframe(frame(ops)) == ops
    assert request_ids(frame(ops)) == [straddling, 7, 2**64 - 1]
    with pytest.raises(FormatError, match="cut short"):
        request_ids(frame([ops[0], ops[1][:11]]))


# The collector: one rule for each test, then all rules against a model.


def test_idle_disk_takes_a_lone_operation_at_once() -> None:
    proposer = plain_proposer()
    assert proposer.take(0.0, True, True) is None and proposer.next_deadline() is None
    proposer.add(b"op", 10.0)
    assert proposer.next_deadline() == 10.5
    assert proposer.take(10.0, False, False) is None
    assert proposer.take(10.0, True, False) == b"op"
    assert proposer.next_deadline() is None
    assert proposer.stats()["disk_idle"] == 1


def test_flush_at_the_count() -> None:
    proposer = plain_proposer()
    for number in range(9):
        proposer.add(b"%d" % number, 1.0)
    assert proposer.next_deadline() == 1.0
    assert proposer.take(1.0, False, False) == frame([b"0", b"1", b"2", b"3"])
    assert (proposer.taken_count, proposer.taken_bytes) == (4, len(frame([b"0", b"1", b"2", b"3"])))
    assert proposer.take(1.0, False, False) == frame([b"4", b"5", b"6", b"7"])
    assert proposer.take(1.0, False, False) is None
    assert proposer.take(1.0, False, True) == b"8"
    assert proposer.stats() == {
        "batches": 3, "ops": 9, "bytes": 2 * 37 + 1, "refused": 0,
        "full_count": 2, "full_bytes": 0, "delay": 0, "disk_idle": 0, "flush": 1, "single": 0,
    }  # fmt: skip


def test_flush_at_the_bytes() -> None:
    proposer = plain_proposer(max_bytes=40, max_count=100)
    proposer.add(bytes(15), 0.0)
    assert proposer.take(0.0, False, False) is None
    proposer.add(bytes(14), 0.0)  # 15 + 11 + 14 = 40
    assert proposer.take(0.0, False, False) == frame([bytes(15), bytes(14)])
    proposer.add(bytes(15), 0.0)
    proposer.add(bytes(15), 0.0)  # would be 41
    assert proposer.take(0.0, False, False) == bytes(15)
    assert proposer.take(0.0, False, False) is None
    assert proposer.stats()["full_bytes"] == 2


def test_flush_at_the_delay_of_the_first_operation() -> None:
    proposer = plain_proposer()
    proposer.add(b"a", 100.1)
    proposer.add(b"b", 100.4)
    deadline = proposer.next_deadline()
    assert deadline == 100.6
    assert proposer.take(100.59, False, False) is None
    assert proposer.take(deadline, False, False) == frame([b"a", b"b"])
    assert proposer.stats()["delay"] == 1


@given(st.floats(0, 1e6), st.floats(0, 10))
def test_a_batch_is_due_at_its_deadline_whatever_the_rounding(first: float, delay: float) -> None:
    proposer = plain_proposer(max_delay=delay)
    proposer.add(b"a", first)
    deadline = proposer.next_deadline()
    assert deadline is not None
    assert proposer.take(deadline, False, False) == b"a"


def test_switched_off_each_operation_is_a_batch_at_once() -> None:
    proposer = plain_proposer(enabled=False)
    proposer.add(b"a", 1.0)
    proposer.add(SEP, 1.0)
    assert proposer.next_deadline() == 1.0
    assert [proposer.take(1.0, False, False) for _ in range(3)] == [b"a", b"|BATCH_SEP~|", None]
    assert proposer.stats()["single"] == 2


def test_limits_push_back_until_operations_were_answered() -> None:
    proposer = plain_proposer(limit_count=4)
    for _ in range(4):
        proposer.add(b"x", 0.0)
    for _ in range(2):
        with pytest.raises(TooManyRequests):
            proposer.add(b"x", 0.0)
        proposer.take(0.0, True, False)  # in flight counts too
    proposer.release(1, 1)
    proposer.add(b"x", 0.0)
    with pytest.raises(TooManyRequests):
        proposer.add(b"x", 0.0)
    assert (proposer.queued, proposer.inflight, proposer.stats()["refused"]) == (1, 3, 3)


def test_limit_of_bytes() -> None:
    proposer = plain_proposer(limit_bytes=250)
    proposer.add(bytes(200), 0.0)
    with pytest.raises(TooManyRequests):
        proposer.add(bytes(51), 0.0)
    proposer.take(0.0, True, False)
    with pytest.raises(TooManyRequests):
        proposer.add(MARK * 5, 0.0)  # 50 bytes, 55 with their escapes
    proposer.add(bytes(50), 0.0)
    proposer.release(1, 200)
    proposer.add(bytes(200 - 61), 0.0)
    assert proposer.queued_bytes == 200


def test_an_operation_larger_than_a_batch() -> None:
    proposer = plain_proposer(max_bytes=30)
    proposer.add(bytes(30), 0.0)
    for large in (bytes(31), MARK * 3):
        with pytest.raises(RequestTooLarge):
            proposer.add(large, 0.0)
    assert proposer.take(0.0, False, True) == bytes(30)
    assert proposer.take(0.0, False, True) is None


def test_release_of_more_than_is_in_flight_is_a_mistake() -> None:
    proposer = plain_proposer()
    proposer.add(b"ab", 0.0)
    with pytest.raises(ValueError, match="in flight are 0"):
        proposer.release(1, 2)
    proposer.take(0.0, True, False)
    with pytest.raises(ValueError, match="in flight are 1"):
        proposer.release(1, 3)
    proposer.release(1, 2)
    assert (proposer.inflight, proposer.inflight_bytes) == (0, 0)


def test_a_batch_that_could_not_be_proposed_goes_back_first_in_line() -> None:
    proposer = plain_proposer()
    for number in range(6):
        proposer.add(b"%d" % number, 1.0)
    before = proposer.stats(), proposer.queued, proposer.queued_bytes
    first = proposer.take(1.0, False, False)
    proposer.untake()
    assert (proposer.stats(), proposer.queued, proposer.queued_bytes) == before
    assert (proposer.inflight, proposer.inflight_bytes) == (0, 0)
    assert proposer.take(1.0, False, False) == first
    # An open batch can still be filled after it came back.
    assert proposer.take(1.0, True, False) == frame([b"4", b"5"])
    proposer.untake()
    proposer.add(b"6", 2.0)
    assert proposer.next_deadline() == 1.5
    assert proposer.take(2.0, False, False) == frame([b"4", b"5", b"6"])
    proposer.add(b"7", 2.0)
    with pytest.raises(ValueError, match="not there any more"):
        proposer.untake()
    proposer.take(2.0, True, False)
    proposer.release(1, 1)
    with pytest.raises(ValueError, match="not there any more"):
        proposer.untake()


@pytest.mark.parametrize(
    "wrong", [{"max_count": 0}, {"max_bytes": 0}, {"max_delay": -1.0}, {"limit_count": 3}, {"limit_bytes": 199}]
)
def test_impossible_limits(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=r"batch"):
        plain_proposer(**wrong)


def test_a_batch_taken_through_a_codec_is_its_payload() -> None:
    codec = PayloadCodec(Snappy(), 64, 10_000)
    proposer = plain_proposer()
    proposer.add(b"short", 0.0)
    assert proposer.take(0.0, True, False, codec) == b"\x00short"
    assert proposer.taken_bytes == 5
    for _ in range(4):
        proposer.add(b"s" * 40, 0.0)
    payload = proposer.take(0.0, True, False, codec)
    assert payload is not None and payload[0] == 1
    assert unframe(codec.decode(payload)) == [b"s" * 40] * 4


def test_the_buffer_grows_moves_and_shrinks_without_losing_a_byte() -> None:
    rng = random.Random(5)
    proposer = plain_proposer(max_count=7, max_bytes=60_000, limit_count=5000, limit_bytes=20_000_000)
    waiting: list[bytes] = []

    def take_one() -> None:
        framed = proposer.take(0.0, True, False)
        assert framed is not None
        ops = unframe(framed)
        assert ops == waiting[: len(ops)]
        del waiting[: len(ops)]
        proposer.release(proposer.taken_count, proposer.taken_bytes)

    for phase in (0.7, 0.3, 0.55, 0.9, 0.2):
        for _ in range(600):
            if rng.random() < phase:
                op = rng.randbytes(rng.randrange(9000)) + SEP * rng.randrange(3)
                proposer.add(op, 0.0)
                waiting.append(op)
            elif waiting:
                take_one()
    while waiting:
        take_one()
    assert proposer.take(0.0, True, True) is None
    assert (proposer.queued, proposer.queued_bytes, proposer.inflight, proposer.inflight_bytes) == (0, 0, 0, 0)


@pytest.mark.parametrize("lead", range(1, 60_000, 2999))
def test_an_escape_that_just_does_not_fit_any_more(lead: int) -> None:
    """The buffer has room for the operation, but not for its escapes. It moves with the operation inside."""
    proposer = plain_proposer(max_count=1, max_bytes=100_000, limit_bytes=1_000_000)
    proposer.add(bytes(lead // 2), 0.0)
    proposer.add(b"l" * (lead // 2), 0.0)
    proposer.take(0.0, True, False)
    op = MARK * ((65536 - 2 * (lead // 2) - 33) // 10)
    proposer.add(op, 0.0)
    assert proposer.take(0.0, True, False) == b"l" * (lead // 2)
    assert proposer.take(0.0, True, False) == model_frame([op])


class Collector(RuleBasedStateMachine):
    """The collector beside lists that follow the same rules in the plainest way."""

    def __init__(self) -> None:
        super().__init__()
        self.proposer = BatchProposer(3, 60, 1.0, 20, 300)
        self.batches: list[list[bytes]] = []
        self.first: list[float] = []
        self.flying: list[tuple[int, int]] = []
        self.now = 0.0

    def full(self, batch: list[bytes]) -> bool:
        """Whether the batch is due by itself: full, or no longer the last."""
        return len(batch) >= 3 or len(model_frame(batch)) >= 60 or batch is not self.batches[-1]

    @rule(op=OP)
    def add(self, op: bytes) -> None:
        size = len(model_frame([op]))
        count = sum(map(len, self.batches)) + sum(one for one, _ in self.flying)
        used = sum(len(model_frame(batch)) for batch in self.batches) + sum(one for _, one in self.flying)
        if size > 60:
            with pytest.raises(RequestTooLarge):
                self.proposer.add(op, self.now)
        elif count >= 20 or used + size > 300:
            with pytest.raises(TooManyRequests):
                self.proposer.add(op, self.now)
        else:
            self.proposer.add(op, self.now)
            last = self.batches[-1] if self.batches else None
            if last is None or self.full(last) or len(model_frame([*last, op])) > 60:
                self.batches.append([op])
                self.first.append(self.now)
            else:
                last.append(op)

    @rule(step=st.sampled_from([0.1, 0.5, 1.0]))
    def wait(self, step: float) -> None:
        self.now += step

    @rule(idle=st.booleans(), flush=st.booleans(), again=st.booleans())
    def take(self, idle: bool, flush: bool, again: bool) -> None:
        framed = self.proposer.take(self.now, idle, flush)
        if again and framed is not None:
            self.proposer.untake()
            assert self.proposer.take(self.now, idle, flush) == framed
        due = bool(self.batches) and (idle or flush or self.full(self.batches[0]) or self.now >= self.first[0] + 1.0)
        if not due:
            assert framed is None
            return
        assert framed == model_frame(self.batches.pop(0))
        self.first.pop(0)
        self.flying.append((self.proposer.taken_count, self.proposer.taken_bytes))
        assert self.flying[-1] == (len(unframe(framed)), len(framed))

    @precondition(lambda self: self.flying)
    @rule()
    def release(self) -> None:
        self.proposer.release(*self.flying.pop(0))

    @invariant()
    def figures_agree(self) -> None:
        assert self.proposer.queued == sum(map(len, self.batches))
        assert self.proposer.queued_bytes == sum(len(model_frame(batch)) for batch in self.batches)
        assert self.proposer.inflight == sum(count for count, _ in self.flying)
        assert self.proposer.inflight_bytes == sum(size for _, size in self.flying)
        if not self.batches:
            assert self.proposer.next_deadline() is None
        elif not self.full(self.batches[0]):
            assert self.proposer.next_deadline() == self.first[0] + 1.0
        stats = self.proposer.stats()
        assert stats["batches"] == sum(stats[reason] for reason in REASONS)


TestCollector = Collector.TestCase


# ---- operations that expired


def test_dropped_operations_are_not_handed_out() -> None:
    proposer = BatchProposer(4, 1 << 20, 0.0, 1000, 1 << 20)
    waiters: dict[int, object] = {ident: object() for ident in range(10)}
    for ident in range(10):
        proposer.add(encode_op(PUT, ident, b"|BATCH_SEP" + b"x" * ident), 0.0)
    proposer.drop([1, 2, 5, 6, 7, 4, 99], waiters)
    batches = []
    while (batch := proposer.take(0.0, True, True)) is not None:
        batches.append(request_ids(batch))
        assert proposer.taken_count == len(batches[-1]) and proposer.taken_bytes == len(batch)
        proposer.release(proposer.taken_count, proposer.taken_bytes)
    assert batches == [[0, 3], [8, 9]]
    assert sorted(waiters) == [0, 3, 8, 9]
    assert (proposer.queued, proposer.queued_bytes, proposer.inflight_bytes) == (0, 0, 0)
    assert not proposer.removed, "they are operations of this member"
    # Ids that were handed out before are forgotten: nothing is searched for them any more.
    proposer.add(encode_op(PUT, 99, b"later"), 0.0)
    assert proposer.take(0.0, True, True) is not None and proposer.untake() is None
    assert request_ids(proposer.take(0.0, True, True)) == [99]


def test_operations_that_other_members_dropped_are_told() -> None:
    proposer = BatchProposer(4, 1 << 20, 0.0, 1000, 1 << 20)
    for ident in range(8):
        proposer.add(encode_op(PUT, ident, b"x"), 0.0)
    proposer.drop([1, 6], {}, 22)
    proposer.drop([2, 6], {}, 33)
    proposer.drop([3], {})
    assert not proposer.removed, "they are not looked for before their batch is taken"
    assert request_ids(proposer.take(0.0, True, True)) == [0]
    assert proposer.removed == [(22, 1), (33, 2)]
    assert request_ids(proposer.take(0.0, True, True)) == [4, 5, 7]
    assert proposer.removed == [(22, 1), (33, 2), (22, 6)]


def test_dropping_the_only_operation_leaves_nothing() -> None:
    proposer = BatchProposer(4, 1 << 20, 10.0, 1000, 1 << 20)
    proposer.add(encode_op(PUT, 7, b"x"), 0.0)
    proposer.drop([7], {})
    assert proposer.take(0.0, True, True) is None and proposer.next_deadline() is None
    proposer.add(encode_op(PUT, 8, b"y"), 0.0)
    assert request_ids(proposer.take(0.0, True, True)) == [8]


def drop_pairs(proposer: BatchProposer, most: int) -> list[int]:
    """Let batches of two operations come and go, and drop an id that is in none of them each time. Return the dropped
    ids."""
    sizes = []
    for ident in range(0, 2 * most, 2):
        proposer.add(encode_op(PUT, ident, b"x"), 0.0)
        proposer.add(encode_op(PUT, ident + 1, b"x"), 0.0)
        proposer.drop([10_000 + ident, ident + 1], {})
        if ident >= 6:  # three batches always wait, so the queue never becomes empty
            assert request_ids(proposer.take(0.0, True, False)) == [ident - 6]
            proposer.release(proposer.taken_count, proposer.taken_bytes)
        sizes.append(proposer.dropped)
    return sizes


def test_ids_that_are_not_queued_are_forgotten_with_the_batches_of_their_time() -> None:
    sizes = drop_pairs(BatchProposer(2, 1 << 20, 0.0, 1000, 1 << 20), 100)
    assert max(sizes) <= 10 and sizes[-1] == sizes[10], sizes


def test_ids_that_others_name_take_bounded_memory() -> None:
    proposer = BatchProposer(4, 1 << 20, 10.0, 50, 1 << 20)
    proposer.add(encode_op(PUT, 1, b"x"), 0.0)
    for first in range(1000, 9000, 1000):
        proposer.drop(range(first, first + 1000), {})
    assert proposer.dropped == 100


def test_accounts_release_what_has_come_to_its_limit() -> None:
    """More batches than the accounts have room for at first, and releases that leave some of them."""
    proposer, sizes, left = plain_proposer(enabled=False, limit_count=1000, limit_bytes=100_000), [], 0
    accounts = Accounts(proposer)
    for number in range(300):
        proposer.add(encode_op(PUT, number, b"x" * (number % 50)), 0.0)
        sizes.append(len(proposer.take(0.0, True, True)))
        accounts.add(number // 2)
        if number % 3 == 2:
            accounts.release(number // 4)
            left = 2 * (number // 4 + 1)
        assert accounts.count == proposer.inflight == number + 1 - left
        assert proposer.inflight_bytes == sum(sizes[left:])
    accounts.release(1000)
    assert accounts.count == proposer.inflight == proposer.inflight_bytes == 0
