"""The leader's clock for leases (`metastore/_core/lessor`)."""

from __future__ import annotations

import random

from metastore._core.lessor import CLEARING, ENDING, UNKNOWN, Lessor

EXTEND = 1.0


class Applied:
    """The applied state: leases by id, with TTL and checkpoint. What changes it tells the clock, as in a member."""

    def __init__(self) -> None:
        self.leases: dict[int, list[int]] = {}
        self.lessor = Lessor(self)

    def ttl(self, ident: int) -> int:
        return self.leases.get(ident, [0])[0]

    def remaining(self, ident: int) -> int:
        return self.leases.get(ident, [0, 0])[1]

    part_count = 2

    def part(self, number: int) -> list[int]:
        return [ident for ident in self.leases if ident % 2 == number]

    def grant(self, ident: int, ttl: int) -> None:
        self.leases[ident] = [ttl, 0]
        self.lessor.granted(ident, ttl)

    def revoke(self, ident: int) -> None:
        if self.leases.pop(ident, None):
            self.lessor.revoked(ident)

    def checkpoint(self, ident: int, remaining: int) -> None:
        if ident in self.leases:
            self.leases[ident][1] = remaining
            self.lessor.checkpointed(ident, remaining)


def led(*granted: tuple[int, int], now: float = 0.0) -> tuple[Applied, Lessor]:
    """A member that leads since `now` and has granted these leases (id, TTL) then."""
    applied = Applied()
    applied.lessor.lead(now, EXTEND)
    for ident, ttl in granted:
        applied.grant(ident, ttl)
    applied.lessor.step(now, 100)
    return applied, applied.lessor


def test_a_lease_ends_when_its_time_is_over_and_not_before() -> None:
    applied, lessor = led((7, 10), (8, 20))
    assert lessor.next_due() == 10
    assert lessor.due(9.9, 100) == []
    assert lessor.due(10, 100) == [7]
    assert lessor.ending == 1
    assert lessor.due(10, 100) == [], "it is handed out once"
    applied.revoke(7)
    assert lessor.ending == 0 and lessor.next_due() == 20
    assert lessor.expired_total == 1


def test_a_renewal_puts_the_end_off() -> None:
    _, lessor = led((7, 10))
    assert lessor.renew([7, 9], 5) == [10, UNKNOWN]
    assert lessor.due(10, 100) == []
    assert lessor.next_due() == 15
    assert lessor.due(15, 100) == [7]


def test_what_is_left_is_told_in_whole_seconds() -> None:
    applied, lessor = led((7, 10))
    assert lessor.remaining(7, 0) == 10
    assert lessor.remaining(7, 0.1) == 9
    assert lessor.remaining(7, 11) == 0, "it is still there"
    applied.revoke(7)
    assert lessor.remaining(7, 12) == -1


def test_a_lease_whose_time_is_over_is_not_renewed_but_answered_when_it_is_gone() -> None:
    applied, lessor = led((7, 10), (8, 10))
    assert lessor.renew([7], 10) == [ENDING], "although nobody has taken it for revocation yet"
    assert lessor.due(10, 1) == [7]
    assert lessor.renew([7], 10.5) == [ENDING]
    assert lessor.take_news() == []
    applied.revoke(7)
    applied.revoke(8)
    assert lessor.take_news() == [7], "nobody waits for the other one"
    assert lessor.renew([7], 11) == [UNKNOWN]


def test_who_begins_to_lead_gives_every_lease_its_time_and_more() -> None:
    applied, lessor = led((7, 10), (8, 1000))
    applied.checkpoint(8, 400)
    lessor.follow()
    assert lessor.due(1e6, 100) == [] and lessor.next_due() is None and len(lessor) == 0
    lessor.lead(100, EXTEND)
    assert lessor.remaining(8, 100) == 401, "a lease that is asked for is looked at first"
    assert lessor.step(100, 1), "there is one more"
    assert not lessor.step(100, 100)
    assert lessor.due(110.9, 9) == []
    assert lessor.due(111, 9) == [7]
    applied.revoke(7)
    assert lessor.due(500, 9) == []
    assert lessor.due(501, 9) == [8]


def test_a_lease_that_is_granted_while_others_are_looked_at_has_its_own_time() -> None:
    applied = Applied()
    for ident in range(1, 6):
        applied.grant(ident, 10)
    lessor = applied.lessor
    lessor.lead(0, EXTEND)
    applied.revoke(5)
    applied.grant(5, 20)
    applied.revoke(1)
    while lessor.step(50, 1):
        pass
    assert lessor.remaining(5, 50) == 20
    assert sorted(lessor.due(60, 9)) == [2, 3, 4]


def test_an_id_that_is_granted_again_has_nothing_of_the_lease_before() -> None:
    applied, lessor = led((7, 10), (8, 10))
    assert lessor.due(10, 1) in ([7], [8])
    for ident in (7, 8):
        applied.revoke(ident)
        applied.grant(ident, 50)
    assert lessor.due(11, 9) == []
    assert lessor.ending == 0
    assert lessor.renew([7, 8], 12) == [50, 50]


def test_what_the_log_did_not_take_comes_first_the_next_time() -> None:
    _, lessor = led((1, 10), (2, 11), (3, 12))
    first = lessor.due(20, 2)
    assert len(first) == 2
    lessor.put_back(first)
    assert lessor.ending == 2
    assert lessor.next_due() == 0, "at once"
    assert lessor.due(20, 9) == [*first, 3]


def test_leases_whose_time_is_over_are_handed_out_by_their_ids() -> None:
    applied, lessor = led((9, 10), (3, 12), (5, 11), (1, 30), (4, 12))
    assert lessor.due(15, 1) == [3]
    assert lessor.late(15) == 5, "the oldest of those that come next ended at 10"
    applied.revoke(4)
    lessor.put_back([3])
    assert lessor.due(40, 3) == [3, 5, 9], "those of one look come before what is over since then"
    assert lessor.due(40, 3) == [1]
    assert lessor.late(40) == 0 and lessor.ending == 4


def test_a_lease_that_stays_is_handed_out_again() -> None:
    _, lessor = led((1, 10))
    assert lessor.due(10, 9) == [1]
    assert lessor.due(19.9, 9) == []
    assert lessor.due(20, 9) == [1]
    assert lessor.ending == lessor.expired_total == 1


def test_long_leases_have_their_remaining_time_put_into_the_log() -> None:
    applied, lessor = led((1, 300), (2, 1000))
    assert lessor.checkpoints(299, 9) == []
    assert lessor.next_due() == 300
    assert lessor.due(300, 9) == [1]
    assert lessor.checkpoints(300, 9) == [(2, 700)]
    applied.checkpoint(2, 700)
    assert lessor.checkpoints(599, 9) == []
    assert lessor.checkpoints(600, 9) == [(2, 400)]
    assert lessor.checkpoints(900, 9) == [(2, 100)]
    assert lessor.checkpoints(999, 9) == [], "the next one would come after the end"


def test_a_renewed_lease_is_not_marked_before_its_time() -> None:
    _, lessor = led((2, 1000))
    lessor.renew([2], 200)
    assert lessor.checkpoints(300, 9) == []
    assert lessor.checkpoints(500, 9) == [(2, 700)]


def test_a_renewal_waits_until_the_log_has_forgotten_the_checkpoint() -> None:
    applied, lessor = led((2, 1000))
    lessor.checkpoints(300, 9)
    applied.checkpoint(2, 700)
    assert lessor.renew([2], 301) == [CLEARING]
    assert lessor.renew([2], 302) == [CLEARING]
    assert lessor.checkpoints(302, 9) == [(2, 0)], "one for both"
    assert lessor.take_news() == []
    applied.checkpoint(2, 0)
    assert lessor.take_news() == [2]
    assert lessor.renew([2], 303) == [1000]
    assert lessor.checkpoints(303, 9) == []


def test_a_renewal_waits_also_for_a_checkpoint_that_is_still_on_its_way() -> None:
    applied, lessor = led((2, 1000))
    assert lessor.checkpoints(300, 9) == [(2, 700)]
    assert lessor.renew([2], 301) == [CLEARING], "the log may have it before this renewal"
    assert lessor.checkpoints(301, 9) == [(2, 0)]
    applied.checkpoint(2, 700)
    assert lessor.take_news() == []
    applied.checkpoint(2, 0)
    assert lessor.take_news() == [2]


def test_checkpoints_that_the_log_did_not_take_come_again() -> None:
    applied, lessor = led((2, 1000), (3, 1000))
    pairs = lessor.checkpoints(300, 9)
    lessor.unlogged(pairs)
    assert sorted(lessor.checkpoints(301, 9)) == [(2, 699), (3, 699)]
    applied.checkpoint(2, 699)
    assert lessor.renew([2], 302) == [CLEARING]
    cleared = lessor.checkpoints(302, 9)
    lessor.unlogged(cleared)
    assert lessor.checkpoints(303, 9) == [(2, 0)]


def test_a_revoked_lease_answers_those_who_wait_for_its_checkpoint() -> None:
    applied, lessor = led((2, 1000))
    lessor.checkpoints(300, 9)
    lessor.renew([2], 301)
    applied.revoke(2)
    assert lessor.take_news() == [2]
    assert lessor.checkpoints(302, 9) == []


def test_another_state_replaces_all_clocks() -> None:
    applied, lessor = led((1, 10))
    applied.leases = {2: [20, 0]}
    lessor.reloaded()
    lessor.step(0, 9)
    assert lessor.remaining(1, 0) == -1 and lessor.remaining(2, 0) == 21


def test_a_member_that_follows_keeps_nothing() -> None:
    applied = Applied()
    applied.grant(1, 10)
    applied.lessor.checkpointed(1, 5)
    applied.lessor.reloaded()
    applied.revoke(1)
    assert len(applied.lessor) == 0 and applied.lessor.renew([1], 0) == [UNKNOWN]


def test_random_leases_against_a_plain_model() -> None:
    for seed in range(20):
        _walk(random.Random(seed))


def _walk(chance: random.Random) -> None:
    """Random grants, renewals and revocations; the leases that end are those of a dict of deadlines."""
    applied, lessor = led()
    ends: dict[int, float] = {}
    now = 0.0
    for _ in range(400):
        now += chance.random()
        ident = chance.randrange(1, 40)
        choice = chance.random()
        if choice < 0.4 and ident not in ends:
            ttl = chance.randrange(1, 30)
            applied.grant(ident, ttl)
            assert lessor.remaining(ident, now) == ttl
            ends[ident] = now + ttl
        elif choice < 0.8:
            alive = ident in ends and ends[ident] > now
            found = lessor.renew([ident], now)[0]
            assert (found > 0) == alive
            if alive:
                ends[ident] = now + found
        elif choice < 0.9 and ident in ends:
            applied.revoke(ident)
            del ends[ident]
        else:
            most = chance.choice([1, 2, 100])
            due = lessor.due(now, most)
            over = {one for one, end in ends.items() if end <= now}
            assert len(due) == min(most, len(over)) and over.issuperset(due)
            for one in due:
                applied.revoke(one)
                del ends[one]
        assert lessor.ending == 0 and len(lessor) == len(ends)
