"""A member that lost acknowledged entries in a power cut (wal.sync = "async"): which candidates it may help, and how
the others learn what it still has."""

from __future__ import annotations

import pytest
from support.raft_harness import Network

from metastore._core.raft_quorum import VoteResult, doubting_vote

PENDING, LOST, WON = VoteResult.VotePending, VoteResult.VoteLost, VoteResult.VoteWon


@pytest.mark.parametrize(
    ("votes", "doubtful", "result"),
    [
        ({1: True, 2: True}, set(), WON),
        ({1: True, 2: True}, {2}, PENDING),
        ({1: True, 2: True, 3: True}, {2}, WON),
        ({1: True, 2: True, 3: True}, {1, 2, 3}, WON),
        ({1: True, 2: True, 3: False}, {2}, PENDING),
        ({1: True, 2: False, 3: False}, {1}, LOST),
    ],
)
def test_votes_in_doubt_count_only_when_all_agree(
    votes: dict[int, bool], doubtful: set[int], result: VoteResult
) -> None:
    assert doubting_vote((1, 2, 3), (), votes, doubtful) == result


def test_a_sole_voter_in_doubt_leads() -> None:
    assert doubting_vote((1,), (), {1: True}, {1}) == WON


def test_both_halves_of_a_joint_configuration_need_their_own_quorum() -> None:
    votes = {1: True, 2: True, 3: True, 4: True}
    assert doubting_vote((1, 2), (3, 4), votes, {4}) == WON
    assert doubting_vote((1, 2), (3, 4), {**votes, 4: False}, {3}) == LOST
    assert doubting_vote((1, 2, 5), (3, 4), votes, {2}) == PENDING


def written(net: Network, count: int, leader: int = 1) -> None:
    for number in range(count):
        net[leader].propose(b"%d" % number)
    net.settle()


def power_cut(net: Network, id: int, lost: int) -> None:
    """Let the member come back without its last `lost` entries, which it had acknowledged."""
    storage = net.nodes[id].storage
    del storage.log[len(storage.log) - lost :]
    last = storage.last_index()
    assert storage.hard is not None
    hard = type(storage.hard)(storage.hard.term, storage.hard.vote, min(storage.hard.commit, last))
    storage.hard = hard
    net.restart(id, doubt=hard.term)


def three(**config: object) -> Network:
    """Return a network in which member 1 leads, and 1 and 2 have committed entries that 3 has never heard of."""
    net = Network([1, 2, 3], **config)
    net.campaign(1)
    written(net, 3)
    net.isolate(3)
    written(net, 4)
    assert net[1].commit == net[2].last_index == net[3].last_index + 4
    return net


def test_without_the_doubt_a_committed_entry_would_be_lost() -> None:
    """This is the reason for the doubt: Raft does this with a follower that forgot what it acknowledged."""
    net = three()
    committed = net[1].commit
    power_cut(net, 2, 4)
    net.restart(2)
    net.heal()
    net.isolate(1)
    net.campaign(3)
    assert net.leader() == 3 and net[3].commit < committed


def test_a_follower_that_forgot_helps_nobody_who_may_lack_it_too() -> None:
    net = three()
    power_cut(net, 2, 4)
    net.heal()
    net.isolate(1)
    for candidate in (3, 2, 3):
        net.campaign(candidate)
        assert not net[2].is_leader and not net[3].is_leader
    net.heal()
    net.tick(count=300)
    assert net.leader() == 1, "only the one who has everything gets enough votes"
    assert {len(net.data(id)) for id in (1, 3)} == {7}
    assert net[2].last_index == net[1].last_index and net[2].doubt == 0
    written(net, 1)
    assert net.data(2)[-1] == b"0"


@pytest.mark.parametrize("options", [{}, {"check_quorum": True}, {"pre_vote": True, "check_quorum": True}])
def test_the_leader_learns_again_what_the_follower_has(options: dict[str, bool]) -> None:
    """The leader's match is too high: it would send later entries, and a commit index beyond the follower's log."""
    net = Network([1, 2, 3], **options)
    net.campaign(1)
    written(net, 5)
    term = net[1].term
    power_cut(net, 2, 5)
    assert net[2].doubt == term and net[2].term == term + 1
    net.tick(count=300)
    assert net.leader() in (1, 3) and net[net.leader()].term > term
    written(net, 1, net.leader())
    assert net[2].last_index == net[1].last_index == net[2].commit
    assert net[2].doubt == 0
    net.isolate(1 if net.leader() == 1 else 3)
    net.tick(count=300)
    assert net.leader(), "its vote counts again"


def test_a_loss_that_is_accepted_still_makes_the_leader_ask_again() -> None:
    net = three()
    power_cut(net, 2, 4)
    term = net[2].doubt
    net.restart(2, doubt=term, accept_loss=True)
    assert (net[2].doubt, net[2].term) == (0, term + 1)
    net.heal()
    net.isolate(1)
    net.campaign(3)
    assert net.leader() == 3, "its vote counts"


def test_a_leader_that_forgot_steps_back_and_is_brought_up() -> None:
    net = Network([1, 2, 3])
    net.campaign(1)
    written(net, 5)
    power_cut(net, 1, 5)
    net.campaign(1)
    assert not net[1].is_leader, "the others have more"
    net.campaign(2)
    assert net.leader() == 2 and net[1].last_index == net[2].last_index and net[1].doubt == 0


def test_all_lose_power_and_the_one_with_most_leads_when_all_are_there() -> None:
    net = Network([1, 2, 3])
    net.campaign(1)
    written(net, 6)
    for id, lost in ((1, 4), (2, 6), (3, 5)):
        power_cut(net, id, lost)
    net.isolate(1)
    net.campaign(3)
    net.campaign(2)
    assert net.leader() == 0, "the third may have more"
    net.heal()
    net.campaign(3)
    assert net.leader() == 0, "it has"
    net.tick(count=300)
    assert net.leader() == 1
    assert [net[id].last_index for id in (1, 2, 3)] == [net[1].last_index] * 3
    assert [net[id].doubt for id in (1, 2, 3)] == [0, 0, 0]


def test_the_doubt_outlives_a_restart_and_ends_with_a_later_term_in_the_log() -> None:
    net = three()
    power_cut(net, 2, 4)
    term = net[2].doubt
    net.collect()
    net.restart(2, doubt=term)
    assert net[2].doubt == term and net[2].term == term + 1
    net.heal()
    net.tick(count=300)
    assert net[2].doubt == 0
    net.restart(2, doubt=term)
    assert net[2].doubt == 0, "told by the log, though nobody took the old doubt back"
