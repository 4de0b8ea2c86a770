"""The leader's queue of operations on the roster. Each operation waits for those before it, of whatever kind."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest

from metastore import errors
from metastore._core.batch import unframe
from metastore._core.codec import PayloadCodec
from metastore._core.mvcc import Store
from metastore._core.op import MEMBER, decode_op, encode_op
from metastore._core.raft_types import ConfState, ProposalDropped, decode_conf_change
from metastore.replica.membership_changes import MAX_CHANGES, RESTATE_EVERY, Judge
from metastore.replica.roster import (
    ADD_LEARNER,
    PUBLISH,
    RESTATE,
    UPDATE,
    Change,
    Member,
    Roster,
    RosterState,
)
from metastore.storage.engines.memory import MemoryEngine

CODEC = PayloadCodec(None, 1 << 20, 1 << 24)


class Leader:
    """The parts of a leading Raft core that `Judge` looks at."""

    id = 1
    term = 5
    changing = False

    def __init__(self) -> None:
        self.last_index = self.applied = 10
        self.logged: list[Change] = []
        self.full = False

    def status(self) -> Any:
        peer = SimpleNamespace(heard=True, match=self.last_index)
        return SimpleNamespace(progress=dict.fromkeys((1, 2, 3), peer), last_index=self.last_index)

    def propose(self, payload: bytes) -> int:
        (operation,) = unframe(CODEC.decode(payload))
        return self._log(operation)

    def propose_conf_change(self, change: Any) -> int:
        return self._log(decode_conf_change(1, change.encode()).context)

    def _log(self, operation: bytes) -> int:
        if self.full:
            raise ProposalDropped()
        self.logged.append(Change.decode(decode_op(operation).request))
        self.last_index += 1
        return self.last_index

    def actions(self) -> list[str]:
        """Return the actions that were logged since the last call."""
        logged, self.logged = self.logged, []
        return [change.action for change in logged]


class Case:
    """A queue on a leader of three that has stated its roster."""

    def __init__(self) -> None:
        self.raw = Leader()
        self.roster = Roster(Store(MemoryEngine()), [member(ident) for ident in (1, 2, 3)])
        self.refused: list[tuple[int, int, str]] = []
        raw: Any = self.raw
        self.changes = Judge(raw, self.roster, CODEC, self.refuse)
        self.judge(1.0)
        assert self.raw.actions() == [RESTATE]
        self.apply()

    def refuse(self, sender: int, operation: bytes, error: errors.ApiError) -> None:
        self.refused.append((sender, decode_op(operation).request_id, type(error).__name__))

    def queue(self, action: str, subject: Member, ident: int = 7) -> None:
        self.changes.queue(2, encode_op(MEMBER, ident, Change(action, subject).encode()), 1e9)

    def judge(self, now: float = 2.0) -> None:
        self.changes.judge(now)

    def apply(self) -> None:
        self.raw.applied = self.raw.last_index
        self.judge()


def member(ident: int, url: str = "", name: str = "n") -> Member:
    return Member(ident, name, (url or f"http://n{ident}:2",), ())


def test_each_waits_until_the_one_before_is_applied() -> None:
    """An update waits for an addition, and an addition for an update, because one may need what the other gives up."""
    case = Case()
    case.queue(ADD_LEARNER, member(4, name=""))
    case.queue(UPDATE, member(2, "http://moved:2"))
    case.queue(ADD_LEARNER, member(5, name=""))
    case.judge()
    assert case.raw.actions() == [ADD_LEARNER]
    case.judge()
    assert case.raw.actions() == []
    case.apply()
    assert case.raw.actions() == [UPDATE]
    case.judge()
    assert case.raw.actions() == []
    case.apply()
    assert case.raw.actions() == [ADD_LEARNER]


def test_one_waits_for_all_that_the_log_held_as_it_came_in() -> None:
    """A new leader's log may hold operations of earlier leaders."""
    case = Case()
    case.raw.last_index += 3
    case.queue(UPDATE, member(2, "http://moved:2"))
    case.judge()
    assert case.raw.actions() == []
    case.apply()
    assert case.raw.actions() == [UPDATE]


def test_the_first_of_a_term_waits_for_all_that_the_log_holds() -> None:
    case = Case()
    case.raw.term += 1
    case.raw.last_index += 1
    case.judge()
    assert case.raw.actions() == []
    case.apply()
    assert case.raw.actions() == [RESTATE]


def test_the_roster_is_stated_after_a_publication_and_now_and_then() -> None:
    case = Case()
    case.queue(PUBLISH, member(2))
    case.judge()
    assert case.raw.actions() == [PUBLISH]
    case.apply()
    (action,) = case.raw.logged
    assert action.action == RESTATE and action.roster == case.roster.state and action.member.id == 1
    case.raw.actions()
    case.apply()
    assert case.raw.actions() == []
    case.judge(2.0 + RESTATE_EVERY)
    assert case.raw.actions() == [RESTATE]


def test_it_is_not_stated_while_a_membership_change_is_under_way() -> None:
    case = Case()
    case.raw.changing = True
    case.judge(2 * RESTATE_EVERY)
    assert case.raw.actions() == []
    case.raw.changing = False
    case.judge(2 * RESTATE_EVERY)
    assert case.raw.actions() == [RESTATE]


def test_a_lone_member_states_nothing() -> None:
    case = Case()
    case.roster.restate(RosterState((member(1),), frozenset(), ConfState(voters=(1,))))
    case.judge(2 * RESTATE_EVERY)
    assert case.raw.actions() == []


def test_what_the_core_does_not_take_stays_first_in_line() -> None:
    case = Case()
    case.queue(UPDATE, member(2, "http://moved:2"), 7)
    case.queue(UPDATE, member(2, "http://again:2"), 8)
    case.raw.full = True
    case.judge()
    assert case.raw.actions() == [] and case.refused == []
    case.raw.full = False
    case.judge()
    assert case.raw.logged[0].member.peer_urls == ("http://moved:2",)
    assert [decode_op(change.operation).request_id for change in case.changes.drop()] == [8]


def test_a_roster_that_the_core_does_not_take_is_stated_later() -> None:
    case = Case()
    case.raw.full = True
    case.judge(2 * RESTATE_EVERY)
    assert case.raw.actions() == []
    case.raw.full = False
    case.judge(2 * RESTATE_EVERY + 1)
    assert case.raw.actions() == [RESTATE]


def test_what_is_not_possible_is_refused() -> None:
    case = Case()
    case.queue(UPDATE, member(9), 7)
    case.queue(ADD_LEARNER, member(4, "http://n2:2"), 8)
    case.judge()
    assert case.refused == [(2, 7, "MemberNotFound"), (2, 8, "PeerURLExist")] and case.raw.actions() == []


def test_nobody_else_states_a_roster_and_the_queue_is_bounded() -> None:
    case = Case()
    change = Change(RESTATE, member(1), case.roster.state)
    with pytest.raises(errors.FormatError):
        case.changes.queue(2, encode_op(MEMBER, 1, change.encode()), 1e9)
    for ident in range(MAX_CHANGES):
        case.queue(UPDATE, member(2), ident)
    with pytest.raises(errors.TooManyRequests):
        case.queue(UPDATE, member(2))
    assert Change.decode(change.encode()) == change


@pytest.mark.parametrize("spoil", [
    {"roster": None}, {"roster": {}}, {"roster": {"members": [1], "removed": [], "conf_state": ""}},
    {"roster": {"members": [], "removed": [], "conf_state": "zz"}},
    {"roster": {"members": [], "removed": [], "conf_state": "ff"}},
    {"roster": {"members": [], "removed": ["x"], "conf_state": ConfState().encode().hex()}},
])  # fmt: skip
def test_a_statement_that_cannot_be_read(spoil: dict[str, Any]) -> None:
    record = json.loads(Change(RESTATE, member(1), RosterState((), frozenset(), ConfState())).encode())
    with pytest.raises(errors.FormatError):
        Change.decode(json.dumps({**record, **spoil}).encode())
