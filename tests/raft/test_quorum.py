"""Quorum functions, membership changer, in-flight window, and the core's messages on the wire."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from metastore._core import raft_quorum
from metastore._core.entry import Entry
from metastore._core.raft_quorum import MAX_INDEX, Inflights, VoteResult
from metastore._core.raft_types import (
    MAX_MEMBERS,
    ConfChange,
    ConfChangeError,
    ConfChangeV2,
    ConfState,
    Message,
    MessageType,
    Snapshot,
    decode_conf_change,
)
from metastore.errors import FormatError

IDS = st.integers(1, 9)
VOTERS = st.sets(IDS, max_size=7)
ACKED = st.dictionaries(IDS, st.integers(0, 20))


@pytest.mark.parametrize(
    ("voters", "acked", "index"),
    [
        ([], {}, MAX_INDEX),
        ([1], {}, 0),
        ([1], {1: 12}, 12),
        ([1, 2], {1: 12}, 0),
        ([1, 2], {1: 12, 2: 5}, 5),
        ([1, 2, 3], {1: 12, 2: 5}, 5),
        ([1, 2, 3], {1: 12, 2: 5, 3: 6}, 6),
        ([1, 2, 3, 4], {1: 12, 2: 5, 3: 6, 4: 7}, 6),
        ([1, 2, 3, 4, 5], {1: 5, 2: 4, 3: 3, 4: 2, 5: 1}, 3),
        ([1, 2, 3], {4: 100, 5: 100, 1: 1}, 0),
    ],
)
def test_committed(voters: list[int], acked: dict[int, int], index: int) -> None:
    assert raft_quorum.committed(voters, acked) == index


@given(VOTERS, ACKED)
@settings(max_examples=200)
def test_committed_is_what_a_majority_has_and_no_more(voters: set[int], acked: dict[int, int]) -> None:
    index = raft_quorum.committed(voters, acked)
    if not voters:
        assert index == MAX_INDEX
        return
    needed = len(voters) // 2 + 1
    assert sum(acked.get(v, 0) >= index for v in voters) >= needed
    assert sum(acked.get(v, 0) >= index + 1 for v in voters) < needed


@given(VOTERS, VOTERS, ACKED)
@settings(max_examples=200)
def test_joint_committed_needs_both_halves(one: set[int], two: set[int], acked: dict[int, int]) -> None:
    index = raft_quorum.joint_committed(one, two, acked)
    assert index == min(raft_quorum.committed(one, acked), raft_quorum.committed(two, acked))
    assert raft_quorum.joint_committed(one, (), acked) == raft_quorum.committed(one, acked)


def test_vote_by_all_outcomes_of_three() -> None:
    for votes in itertools.product([True, False, None], repeat=3):
        cast = {n + 1: v for n, v in enumerate(votes) if v is not None}
        want = VoteResult.VotePending
        if votes.count(True) >= 2:
            want = VoteResult.VoteWon
        elif votes.count(False) >= 2:
            want = VoteResult.VoteLost
        assert raft_quorum.vote([1, 2, 3], cast) == want
    assert raft_quorum.vote([], {}) == VoteResult.VoteWon
    assert raft_quorum.vote([1, 2], {1: False}) == VoteResult.VoteLost
    assert raft_quorum.vote([1, 2], {1: True, 3: True}) == VoteResult.VotePending


@given(VOTERS, VOTERS, st.dictionaries(IDS, st.booleans()))
@settings(max_examples=200)
def test_joint_vote(one: set[int], two: set[int], votes: dict[int, bool]) -> None:
    result = raft_quorum.joint_vote(one, two, votes)
    halves = raft_quorum.vote(one, votes), raft_quorum.vote(two, votes)
    assert (result == VoteResult.VoteWon) == (halves == (VoteResult.VoteWon, VoteResult.VoteWon))
    assert (result == VoteResult.VoteLost) == (VoteResult.VoteLost in halves)


# -- membership changer


def test_simple_changes() -> None:
    state = ConfState([1])
    state = raft_quorum.simple(state, [ConfChange(0, 2)])
    assert state == ConfState([1, 2])
    state = raft_quorum.simple(state, [ConfChange(3, 3), ConfChange(3, 4)])
    assert state == ConfState([1, 2], [3, 4])
    state = raft_quorum.simple(state, [ConfChange(0, 3)])
    assert state == ConfState([1, 2, 3], [4])
    state = raft_quorum.simple(state, [ConfChange(3, 2)])
    assert state == ConfState([1, 3], [2, 4])
    assert raft_quorum.simple(state, [ConfChange(1, 4), ConfChange(1, 3)]) == ConfState([1], [2])
    assert raft_quorum.simple(state, [ConfChange(2, 3)]) == state
    assert raft_quorum.simple(state, [ConfChange(0, 0)]) == state
    assert raft_quorum.simple(state, [ConfChange(1, 77)]) == state


def test_simple_changes_that_are_refused() -> None:
    with pytest.raises(ConfChangeError, match="more than one"):
        raft_quorum.simple(ConfState([1]), [ConfChange(0, 2), ConfChange(0, 3)])
    with pytest.raises(ConfChangeError, match="all voters"):
        raft_quorum.simple(ConfState([1]), [ConfChange(1, 1)])
    with pytest.raises(ConfChangeError, match="joint"):
        raft_quorum.simple(ConfState([1], voters_outgoing=[1, 2]), [ConfChange(0, 3)])
    with pytest.raises(ConfChangeError, match="unknown"):
        raft_quorum.simple(ConfState([1]), [ConfChange(9, 2)])


def test_joint_changes() -> None:
    changes = [ConfChange(0, 4), ConfChange(1, 1), ConfChange(3, 2)]
    joint = raft_quorum.enter_joint(ConfState([1, 2, 3], [9]), True, changes)
    assert joint == ConfState([3, 4], [9], [1, 2, 3], [2], True)
    assert raft_quorum.leave_joint(joint) == ConfState([3, 4], [2, 9])
    with pytest.raises(ConfChangeError, match="already"):
        raft_quorum.enter_joint(joint, True, [ConfChange(0, 5)])
    with pytest.raises(ConfChangeError, match="not joint"):
        raft_quorum.leave_joint(ConfState([1]))
    with pytest.raises(ConfChangeError, match="without voters"):
        raft_quorum.enter_joint(ConfState(), False, [ConfChange(0, 1)])
    # The member is a voter again before the joint configuration is left.
    changes = [ConfChange(3, 2), ConfChange(0, 2)]
    assert raft_quorum.enter_joint(ConfState([1, 2]), False, changes) == ConfState([1, 2], (), [1, 2])


@given(
    VOTERS.filter(bool),
    st.lists(st.builds(ConfChange, st.sampled_from([0, 1, 2, 3]), IDS), min_size=1, max_size=6),
)
@settings(max_examples=300)
def test_joint_change_ends_where_the_changes_lead(voters: set[int], changes: list[ConfChange]) -> None:
    """The result is compared with the plainest model: two sets."""
    want_voters, want_learners = set(voters), set()
    for change in changes:
        if change.type != 2:
            want_voters.discard(change.node_id)
            want_learners.discard(change.node_id)
        if change.type == 0:
            want_voters.add(change.node_id)
        elif change.type == 3:
            want_learners.add(change.node_id)
    start = ConfState(voters)
    if not want_voters:
        with pytest.raises(ConfChangeError):
            raft_quorum.enter_joint(start, True, changes)
        return
    joint = raft_quorum.enter_joint(start, True, changes)
    assert set(joint.voters_outgoing) == voters
    assert not set(joint.learners) & ({*joint.voters, *joint.voters_outgoing})
    assert raft_quorum.leave_joint(joint) == ConfState(want_voters, want_learners)
    if len(want_voters ^ voters) <= 1:
        assert raft_quorum.simple(start, changes) == ConfState(want_voters, want_learners)
    else:
        with pytest.raises(ConfChangeError):
            raft_quorum.simple(start, changes)


def test_which_way_a_change_goes() -> None:
    one, two = ConfChange(0, 2), ConfChange(0, 3)
    assert not ConfChangeV2(0, [one]).enters_joint
    assert ConfChangeV2(0, [one, two]).enters_joint
    assert ConfChangeV2(1, [one]).enters_joint
    assert ConfChangeV2(1, [one]).auto_leave
    assert not ConfChangeV2(2, [one]).auto_leave
    assert ConfChangeV2().leaves_joint


# -- in-flight window


@given(st.lists(st.one_of(st.just("add"), st.integers(0, 60)), max_size=60), st.integers(1, 9))
@settings(max_examples=200)
def test_inflights_against_a_list(steps: list, capacity: int) -> None:
    window, index = Inflights(capacity, 500), 0
    model: list[int] = []
    for step in steps:
        if step == "add":
            index += 3
            if len(model) == capacity:
                with pytest.raises(OverflowError):
                    window.add(index, 100)
            else:
                window.add(index, 100)
                model.append(index)
        else:
            window.free_le(step)
            model = [number for number in model if number > step]
        assert (window.count, window.bytes) == (len(model), 100 * len(model))
        assert window.is_full == (len(model) == capacity or len(model) >= 5)


# -- on the wire

STATES = [
    ConfState(),
    ConfState([1, 2, 3]),
    ConfState([3, 1], [5, 4], [1, 2], [2], True),
    ConfState([2**64 - 1]),
]
MESSAGES = [
    Message(MessageType.MsgHeartbeat, 2, 1, 7, commit=3, context=b"12345678"),
    Message(MessageType.MsgApp, 2, 1, 7, 6, 10, [Entry(7, 11, 0, b"\0x"), Entry(7, 12, 2, b"")], 9),
    Message(MessageType.MsgAppResp, 1, 2, 7, 3, 4, reject=True, reject_hint=2**63),
    Message(MessageType.MsgSnap, 2, 1, 7, snapshot=Snapshot(5, 3, STATES[2])),
    Message(MessageType.MsgVote, 2, 1, 2**64 - 1, 1, 1, context=b"CampaignTransfer"),
]
NAMES = [MessageType(message.type).name for message in MESSAGES]


@pytest.mark.parametrize("state", STATES)
def test_membership_round_trip_and_damage(state: ConfState) -> None:
    data = state.encode()
    assert ConfState.decode(data) == state
    for cut in range(len(data)):
        with pytest.raises(FormatError):
            ConfState.decode(data[:cut])
    with pytest.raises(FormatError):
        ConfState.decode(data + b"\0")
    with pytest.raises(FormatError):
        ConfState.decode(b"\2" + data[1:])


def test_membership_is_bounded() -> None:
    with pytest.raises(ConfChangeError):
        ConfState(range(MAX_MEMBERS + 1))


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_message_round_trip_and_damage(message: Message) -> None:
    data = message.encode()
    back = Message.decode(data)
    assert back == message
    assert back.entries == message.entries
    head, images = message.encode_parts()
    assert head + bytes(images) == data
    for cut in range(len(data)):
        with pytest.raises(FormatError):
            Message.decode(data[:cut])
    for at in (0, 1, 2):
        with pytest.raises(FormatError):
            Message.decode(data[:at] + b"\xff" + data[at + 1 :])


@pytest.mark.parametrize("message", MESSAGES, ids=NAMES)
def test_every_flipped_bit_is_an_error_or_another_message(message: Message) -> None:
    """The frame around a message has the sum. Here it matters that nothing but FormatError is raised."""
    data = message.encode()
    for at in range(len(data)):
        for bit in range(8):
            flipped = bytearray(data)
            flipped[at] ^= 1 << bit
            try:
                other = Message.decode(flipped)
            except FormatError:
                continue
            assert other.encode() != data or at == 3  # byte 3 is padding


@pytest.mark.parametrize(
    "change",
    [
        ConfChange(0, 5),
        ConfChange(3, 2**64 - 1, b"member"),
        ConfChangeV2(),
        ConfChangeV2(2, [ConfChange(0, 4), ConfChange(1, 2)], b"ctx"),
    ],
)
def test_changes_on_the_wire(change: ConfChange | ConfChangeV2) -> None:
    kind = 1 if isinstance(change, ConfChange) else 2
    data = change.encode()
    assert decode_conf_change(kind, data) == change
    for cut in range(1, len(data) - len(change.context)):
        with pytest.raises(FormatError):
            decode_conf_change(kind, data[:cut])
    with pytest.raises(FormatError):
        decode_conf_change(kind, b"\7" + data[1:])
    with pytest.raises(FormatError):
        decode_conf_change(0, data)


def test_an_empty_change_leaves_the_joint_configuration() -> None:
    assert decode_conf_change(2, b"") == ConfChangeV2()
    with pytest.raises(FormatError):
        decode_conf_change(1, b"")
