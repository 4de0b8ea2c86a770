"""One voter alone: the path of a proposal, restart, reads, limits."""

from __future__ import annotations

import pytest
from support.raft_harness import MemoryStorage, Network, Node

from metastore._core.entry import Entry, HardState, decode_entries
from metastore._core.raft import RawNode
from metastore._core.raft_types import ConfChange, ConfState, ProposalDropped, RaftConfig, StateType
from metastore.errors import ConfigError, DamagedData, NoLeader


def alone(storage: MemoryStorage | None = None, **config: object) -> RawNode:
    return RawNode(RaftConfig(1, **config), storage or MemoryStorage(ConfState([1])))


def elect(raw: RawNode) -> None:
    """Make the sole voter lead, its first entry durable and applied."""
    raw.campaign()
    while raw.has_ready():
        raw.advance(raw.ready())
    assert raw.is_leader


def test_a_sole_voter_leads_only_after_its_vote_is_durable() -> None:
    raw = alone()
    raw.campaign()
    ready = raw.ready()
    assert (ready.hard_state.term, ready.hard_state.vote) == (1, 1)
    assert ready.must_sync
    assert not raw.is_leader
    raw.on_persisted(ready.number)
    assert raw.is_leader
    ready = raw.ready()
    assert [(e.term, e.index, e.type, e.data) for e in ready.entries] == [(1, 1, 0, b"")]
    assert ready.soft_state.lead == 1
    assert ready.soft_state.raft_state == StateType.StateLeader
    assert not ready.committed_entries
    raw.on_persisted(ready.number)
    ready = raw.ready()
    assert ready.hard_state == HardState(1, 1, 1)
    assert not ready.must_sync
    assert [e.index for e in ready.committed_entries] == [1]


def test_proposals_between_two_readies_share_one() -> None:
    raw = alone()
    elect(raw)
    assert [raw.propose(b"\0a"), raw.propose(b"\0b"), raw.propose(memoryview(b"\0c"))] == [2, 3, 4]
    ready = raw.ready()
    assert (ready.first_index, ready.last_index) == (2, 4)
    assert [e.data for e in ready.entries] == [b"\0a", b"\0b", b"\0c"]
    assert decode_entries(ready.entry_images) == ready.entries
    assert ready.committed_last == 0
    assert not ready.messages
    assert not raw.has_ready()
    raw.on_persisted(ready.number)
    ready = raw.ready()
    assert (ready.committed_first, ready.committed_last) == (2, 4)
    assert [e.data for e in ready.committed_entries] == [b"\0a", b"\0b", b"\0c"]
    raw.on_applied(4)
    assert raw.applied == 4
    assert not raw.has_ready()


def test_persistence_is_asynchronous_and_cumulative() -> None:
    raw = alone()
    elect(raw)
    readies = []
    for n in range(5):
        raw.propose(b"\0%d" % n)
        readies.append(raw.ready())
    assert [r.number for r in readies] == list(range(readies[0].number, readies[0].number + 5))
    assert raw.commit == 1
    raw.on_persisted(readies[2].number)
    assert raw.commit == 4
    assert [e.data for e in raw.ready().committed_entries] == [b"\x000", b"\x001", b"\x002"]
    raw.on_persisted(readies[0].number)
    assert raw.commit == 4
    raw.on_persisted(readies[4].number)
    assert raw.commit == 6


def test_images_stay_as_they_are_while_the_log_grows_and_is_trimmed() -> None:
    raw = alone(max_tail_bytes=1)
    elect(raw)
    copies = []
    for n in range(200):
        raw.propose(bytes([n]) * 20_000)
        ready = raw.ready()
        copies.append((n, ready.entry_images))
        raw.on_persisted(ready.number)
        ready = raw.ready()
        raw.on_applied(ready.committed_last)
    for n, images in copies:
        assert [e.data for e in decode_entries(images)] == [bytes([n]) * 20_000]
    assert raw.log.tail_first > 100


def test_entries_larger_than_a_chunk_and_runs_over_chunks() -> None:
    raw = alone()
    elect(raw)
    payloads = [b"a" * 700_000, b"b" * 700_000, b"c" * 3_000_000, b"d"]
    for payload in payloads:
        raw.propose(payload)
    ready = raw.ready()
    assert [e.data for e in ready.entries] == payloads
    raw.on_persisted(ready.number)
    applied = []
    while raw.has_ready():
        ready = raw.ready()
        applied += ready.committed_entries
        if ready.committed_last:
            raw.on_applied(ready.committed_last)
    assert [e.data for e in applied] == payloads


def test_committed_size_of_a_ready_is_bounded() -> None:
    raw = alone(max_committed_size_per_ready=300)
    elect(raw)
    for _ in range(10):
        raw.propose(bytes(100))
    raw.on_persisted(raw.ready().number)
    counts = []
    while raw.has_ready():
        ready = raw.ready()
        counts.append(len(ready.committed_entries))
        raw.on_applied(ready.committed_last)
    assert counts == [2, 2, 2, 2, 2]


def test_uncommitted_bytes_are_bounded() -> None:
    raw = alone(max_uncommitted_bytes=1000)
    elect(raw)
    for _ in range(7):
        raw.propose(bytes(100))
    with pytest.raises(ProposalDropped):
        raw.propose(bytes(100))
    assert raw.uncommitted_bytes == 7 * 132
    raw.on_persisted(raw.ready().number)
    raw.propose(bytes(100))
    assert raw.uncommitted_bytes == 132


def test_one_proposal_over_the_limit_is_taken_when_nothing_waits() -> None:
    raw = alone(max_uncommitted_bytes=1000)
    elect(raw)
    raw.propose(bytes(5000))
    with pytest.raises(ProposalDropped):
        raw.propose(b"x")


def test_restart_finds_log_term_and_vote() -> None:
    node = Node(RaftConfig(1), MemoryStorage(ConfState([1])))
    node.raw.campaign()
    node.take()
    for n in range(5):
        node.raw.propose(b"\0%d" % n)
    node.take()
    node = Node(RaftConfig(1, applied=3), node.storage)
    assert (node.raw.term, node.raw.vote, node.raw.commit, node.raw.applied) == (1, 1, 6, 3)
    node.take()
    assert [e.index for e in node.applied] == [4, 5, 6]
    node.raw.campaign()
    node.take()
    assert node.raw.is_leader
    assert (node.raw.term, node.raw.commit) == (2, 7)


def test_restart_pages_through_a_long_log() -> None:
    storage = MemoryStorage(ConfState([1]))
    storage.store([Entry(1, n, 0, b"%05d" % n) for n in range(1, 1001)], HardState(1, 1, 1000))
    node = Node(RaftConfig(1, max_committed_size_per_ready=2000, read_ahead_bytes=8000), storage)
    node.take()
    assert [e.index for e in node.applied] == list(range(1, 1001))
    assert len(storage.reads) < 12


def test_a_storage_that_is_not_ready_pauses_applying() -> None:
    storage = MemoryStorage(ConfState([1]))
    storage.store([Entry(1, n, 0, b"x") for n in range(1, 4)], HardState(1, 1, 3))
    storage.loaded = False
    raw = alone(storage)
    assert raw.has_ready()
    assert not raw.ready().committed_entries
    assert not raw.has_ready()
    raw.campaign()
    assert raw.raft_state == StateType.StateCandidate, "whether a change of the membership is to come is known at once"
    storage.loaded = True
    raw.entries_loaded()
    assert [e.index for e in raw.ready().committed_entries] == [1, 2, 3]


def test_a_campaign_waits_until_membership_changes_are_applied() -> None:
    storage = MemoryStorage(ConfState([1, 2]))
    change = ConfChange(1, 2)
    storage.store([Entry(1, 1, 0, b""), Entry(1, 2, 1, change.encode())], HardState(1, 1, 2))
    raw = alone(storage)
    raw.campaign()
    assert raw.raft_state == StateType.StateFollower
    ready = raw.ready()
    assert ready.committed_last == 2
    raw.on_applied(1)
    assert raw.raft_state == StateType.StateFollower
    raw.apply_conf_change(change)
    raw.on_applied(2)
    assert raw.raft_state == StateType.StateCandidate
    raw.on_persisted(raw.ready().number)
    assert raw.is_leader


def test_entries_of_a_storage_are_applied() -> None:
    storage = MemoryStorage(ConfState([1]))
    storage.store([Entry(1, n, 0, b"x%d" % n) for n in range(1, 4)], HardState(1, 1, 3))
    assert [e.data for e in alone(storage).ready().committed_entries] == [b"x1", b"x2", b"x3"]


def test_read_index_waits_for_an_entry_of_the_own_term() -> None:
    raw = alone()
    with pytest.raises(NoLeader):
        raw.read_index(b"early")
    raw.campaign()
    raw.on_persisted(raw.ready().number)
    assert raw.is_leader
    raw.read_index(b"r1")
    ready = raw.ready()
    assert not ready.read_states
    raw.on_persisted(ready.number)
    raw.read_index(b"r2")
    assert [(s.index, s.request_ctx) for s in raw.ready().read_states] == [(1, b"r1"), (1, b"r2")]


def test_proposing_without_leader() -> None:
    raw = alone()
    with pytest.raises(NoLeader):
        raw.propose(b"x")
    assert raw.last_index == 0


def test_tick_elects_a_sole_voter() -> None:
    net = Network([1])
    net.tick(count=11)
    assert net[1].is_leader


def test_reports_of_what_was_not_handed_out() -> None:
    raw = alone()
    with pytest.raises(ValueError, match="not handed out"):
        raw.on_persisted(1)
    elect(raw)
    raw.propose(b"x")
    with pytest.raises(ValueError, match="not handed out"):
        raw.on_applied(2)


def test_contradicting_state_is_refused() -> None:
    with pytest.raises(DamagedData, match="beyond the end"):
        alone(MemoryStorage(ConfState([1]), HardState(1, 1, 9)))
    with pytest.raises(DamagedData, match="applied"):
        alone(applied=4)


def test_entries_without_their_hard_state_raise_the_term() -> None:
    storage = MemoryStorage(ConfState([1]))
    storage.store([Entry(2, 1, 0, b"x")], HardState(1, 1, 0))
    raw = alone(storage)
    assert (raw.term, raw.vote) == (2, 0)
    assert raw.ready().hard_state == HardState(2, 0, 0)


def test_settings_that_do_not_fit_are_refused() -> None:
    for settings in (
        {"election_ticks": 1},
        {"heartbeat_ticks": 0},
        {"read_only_option": "lease"},
        {"read_only_option": "lease", "lease_seconds": 1.0, "check_quorum": False},
        {"max_inflight": 0},
        {"read_only_option": "sometimes"},
    ):
        with pytest.raises(ConfigError):
            RaftConfig(1, **settings)
    with pytest.raises(ConfigError):
        RaftConfig(0)


def test_the_same_seed_draws_the_same_timeouts() -> None:
    def draws(**config: object) -> list[int]:
        raw = alone(MemoryStorage(ConfState([1, 2])), **config)
        out = []
        for _ in range(50):
            raw.campaign()
            out.append(raw.election_timeout_ticks)
        return out

    assert draws(seed=3) == draws(seed=3) != draws(seed=4)
    assert set(draws(seed=3)) <= set(range(10, 20))
    assert len(set(draws(seed=3))) > 5
    assert set(draws(random=lambda n: n - 1)) == {19}
