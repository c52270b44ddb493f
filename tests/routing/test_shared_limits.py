"Rate limits that several gateways share, by hand: claims, what is left, what a restart keeps."

import pytest

from arcpoint_ce.routing.limits import Budget, _LimitsLeft, _OwnPart
from arcpoint_ce.routing.records import Backend

DAY_S = 86_400.0


def budget(**limits) -> Budget:
    return Budget(Backend("a", **limits))


def taken(b: Budget) -> tuple:
    "What the books hold: requests, tokens and input tokens of the minute, requests of the day."
    return b.used, b.used_tok, b.used_in_tok, b.used_day


def test_a_part_never_falls_below_nothing():
    part = _OwnPart()
    part.took(1, 50, 20)
    part.took(-1, -60, -30)
    assert (part.sent, part.tok, part.in_tok, part.today) == (0, 0, 0, 0)
    part.took(2, 10, 5)
    part.begin(same_day=True)
    assert (part.sent, part.tok, part.in_tok, part.today) == (0, 0, 0, 2)
    part.outside = (1.0, 2.0, 3.0)
    part.begin(same_day=False)
    assert (part.today, part.outside) == (0, (0.0, 0.0, 0.0))


def test_a_fresh_book_is_empty():
    b = budget(rpm=60, tpm=600, tpm_in=300, rpd=1000)
    assert taken(b) == (0, 0, 0, 0) and b.memo()[1:4] == [0, 0, 0]
    assert b.status(0.0) == dict(
        requests_left=60, tokens_left=600, tokens_in_left=300, requests_left_today=1000
    )


def test_claims_are_what_was_taken_and_half_of_what_may_be_spent_by_now():
    b = budget(rpm=60, tpm=600)
    b.share([], 2, True, 120.0)
    b.spend(100, 120.0, tokens_in=40)  # two gateways: counted twice until the other has told
    assert taken(b) == (2, 200, 80, 2)
    # at 148 s half of the minute and its lead may be spent: 30 requests, 300 tokens
    minute_s, requests, tok, in_tok, day_s, today, *own = b.claims(148.0)
    assert (minute_s, day_s, today, own) == (120.0, 0.0, 1, [1, 100, 40])
    assert requests == 1 + (30 - 2) / 2 and tok == 100 + (300 - 200) / 2
    assert in_tok == 40  # no limit on input: nothing is claimed beyond what was taken


def test_a_gateway_that_shares_nothing_claims_what_it_took():
    b = budget(rpm=60, tpm=600, tpm_in=60)
    b.spend(100, 178.0, tokens_in=10)
    assert b.claims(178.0) == [120.0, 60.0, 600.0, 60.0, 0.0, 1, 1, 100, 10]


def test_what_others_claim_is_left_to_them():
    b = budget(rpm=60, tpm=600, tpm_in=300, rpd=100)
    b.spend(100, 120.0, tokens_in=40)
    today, yesterday = 0.0, -DAY_S
    others = [
        [120.0, 5.0, 70.0, 30.0, today, 9, 4, 60, 20],
        [120.0, 2.0, 10.0, 0.0, yesterday, 50, 2, 10, 0],  # its day is over
        [60.0, 30.0, 300.0, 200.0, today, 4, 30, 300, 200],  # its minute is over
    ]
    b.share(others, 4, False, 130.0)
    assert taken(b) == (1 + 5 + 2, 100 + 70 + 10, 40 + 30, 1 + 9 + 4)
    assert (b.part.count, b.part.turn) == (4, False)
    b.spend(20, 131.0, tokens_in=5)  # each of the four may send one before all know
    assert taken(b) == (8 + 4, 180 + 4 * 20, 70 + 4 * 5, 14 + 4)
    b.share(others, 4, False, 132.0)  # now they do
    assert taken(b) == (2 + 7, 120 + 80, 45 + 30, 2 + 13)


@pytest.mark.parametrize("turn, fits", [(True, True), (False, False)])
def test_what_is_too_little_to_be_divided_goes_to_whose_turn_it_is(turn, fits):
    b = budget(rpm=10)
    b.share([[120.0, 8.0, 0.0, 0.0, 0.0, 8, 8, 0, 0]], 3, turn, 178.0)
    assert (b.ready_s(178.0) == 178.0) is fits


def test_the_provider_tells_what_came_from_elsewhere():
    b = budget(rpm=60, tpm=600, tpm_in=300)
    b.share([], 2, True, 120.0)
    b.spend(100, 120.0, tokens_in=40)
    b.told(_LimitsLeft(requests=50, tokens=400, tokens_in=None), 121.0)
    assert b.part.outside == (60 - 50 - 1, 600 - 400 - 100, 0.0)
    b.told(_LimitsLeft(requests=55), 122.0)  # an older answer: what was more stays
    assert b.part.outside[0] == 9
    b.share([[120.0, 4.0, 20.0, 7.0, 0.0, 4, 4, 20, 7]], 2, True, 123.0)
    # more than the others claim came from outside; of the input nobody knows
    assert taken(b)[:3] == (1 + 9, 100 + 100, 40 + 7)


def test_a_gateway_that_was_started_again_adopts_what_it_took_before():
    b = budget(rpm=60, tpm=600, tpm_in=300, rpd=100)
    claims = [120.0, 9.0, 90.0, 50.0, 0.0, 12, 7, 70, 30]
    b.adopt(claims, 125.0)
    part = b.part
    assert (part.sent, part.tok, part.in_tok, part.today) == (7, 70, 30, 12)
    b.adopt([120.0, 1.0, 1.0, 1.0, 0.0, 1, 1, 1, 1], 126.0)  # less than it knows: nothing changes
    assert (part.sent, part.tok, part.in_tok, part.today) == (7, 70, 30, 12)


def test_of_a_minute_or_a_day_that_is_over_nothing_is_adopted():
    b = budget(rpm=60, tpm=600)
    b.adopt([60.0, 9.0, 90.0, 50.0, 0.0, 12, 7, 70, 30], 125.0)
    assert (b.part.sent, b.part.tok, b.part.in_tok, b.part.today) == (0, 0, 0, 12)
    b = budget(rpm=60, tpm=600)
    b.adopt([60.0, 9.0, 90.0, 50.0, -DAY_S, 12, 7, 70, 30], 125.0)
    assert b.part.today == 0


def test_a_memo_of_shared_limits_holds_what_was_sent_from_here():
    b = budget(rpm=60, tpm=600, tpm_in=300, rpd=100)
    b.share([[120.0, 5.0, 70.0, 30.0, 0.0, 9, 4, 60, 20]], 2, True, 120.0)
    b.spend(100, 121.0, tokens_in=40)
    b.part.today = 6
    assert b.memo() == [120.0, 1, 100, 40, 0.0, 5]
    again = budget(rpm=60, tpm=600, tpm_in=300, rpd=100)
    again.restore(b.memo())
    assert taken(again) == (1, 100, 40, 6) and again.part is None


def test_a_request_that_was_none_goes_back_to_its_day():
    b = budget(rpm=60, rpd=100)
    b.share([], 2, True, 60.0)
    b.spend(10, 61.0)
    b.spend(10, 121.0)
    assert b.part.today == 2
    b.settle(61.0, 0, requests=-1)  # of the minute before
    assert (b.part.today, b.used_day) == (1, 3)
    b.settle(121.0, -4, requests=-1)
    assert (b.part.sent, b.part.tok, b.part.today) == (0, 6, 0)


def test_nothing_is_in_danger_up_to_every_count_alone():
    "Views are made again when any of requests, tokens or input tokens comes near its end."
    for usual, odd in ((5, 60), (60, 5)):
        b = budget(rpm=100_000, tpm=6_000, tpm_in=600)
        b.spend(1, 120.0)
        quiet = [b.spend(usual, 125.0, tokens_in=odd) for _ in range(40)]
        assert True in quiet[1:], (usual, odd)
