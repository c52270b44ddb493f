"What a rate limit still allows, by hand: pacing within the minute, days, providers' own numbers."

from math import inf

import pytest

from arcpoint_ce.routing.limits import Budget, Holdback, read_limits
from arcpoint_ce.routing.records import Backend

DAY_S = 86_400.0


def spent(*at_s: float, tokens: int = 0, tokens_in: int = 0, **limits) -> Budget:
    budget = Budget(Backend("a", **limits))
    for now in at_s:
        budget.spend(tokens, now, tokens_in)
    return budget


@pytest.mark.parametrize(
    "limits",
    [dict(rpm=10), dict(tpm=1000), dict(tpm_in=100), dict(rpm=10, tpm=1e6, tpm_in=1e6)],
    ids=str,
)
def test_spending_keeps_two_seconds_ahead_of_the_clock_at_most(limits):
    budget = spent(120.0, 121.0, 122.0, tokens=100, tokens_in=10, **limits)  # 3 of 10
    assert budget.ready_s(122.0) == 120.0 + 18.0 - 2.0
    assert budget.ready_s(136.0) == 136.0 and budget.ready_s(150.0) == 150.0


def test_counts_concern_their_minute_and_a_clock_that_was_set_back_by_less_than_one():
    budget = spent(130.0, rpm=10)
    assert [budget.counted(t) for t in (59.9, 60.0, 179.9, 180.0)] == [False, True, True, False]
    assert [budget.ready_s(t) for t in (59.9, 60.0, 100.0)] == [59.9, 120.0, 120.0]
    assert budget.ready_s(180.0) == 180.0


def test_a_minute_that_is_full_lasts_to_its_end():
    assert spent(120.0, 121.0, rpm=2).ready_s(179.5) == 180.0
    assert spent(120.0, rpm=1).ready_s(179.5) == 180.0
    assert spent(tokens=0, rpm=1).ready_s(130.0) == 130.0
    by_tokens = spent(120.0, tokens=60, tpm=100)
    assert (by_tokens.ready_s(150.0, 40), by_tokens.ready_s(150.0, 41)) == (154.0, 180.0)
    assert (by_tokens.ready_s(130.0, 100), by_tokens.ready_s(130.0, 101)) == (180.0, inf)
    by_input = spent(120.0, tokens_in=60, tpm_in=100)
    assert [by_input.ready_s(150.0, 0, n) for n in (40, 41, 101)] == [154.0, 180.0, inf]
    assert by_tokens.left_tok(130.0) == 40 and by_tokens.left_tok(200.0) == 100


def test_requests_of_the_day_count_until_midnight_utc():
    budget = spent(10.0, 100.0, rpd=2)
    assert budget.used_day == 2 and budget.ready_s(200.0) == DAY_S
    assert budget.ready_s(DAY_S) == DAY_S and budget.ready_s(DAY_S - 1.0) == DAY_S
    budget.spend(0, DAY_S + 5.0)
    assert budget.used_day == 1 and budget.ready_s(DAY_S + 100.0) == DAY_S + 100.0
    assert spent(10.0, rpd=1).ready_s(100.0) == DAY_S
    assert spent(10.0, rpd=2).ready_s(100.0) == 100.0


def test_the_books_are_corrected_in_their_minute_and_on_their_day():
    budget = spent(120.0, 125.0, tokens=100, tokens_in=50, rpm=10, tpm=1e4, tpm_in=1e4, rpd=10)
    budget.settle(120.0, 30, 20)
    assert (budget.used, budget.used_tok, budget.used_in_tok) == (2, 230, 120)
    budget.settle(179.0, -500, -500, -5)
    assert (budget.used, budget.used_tok, budget.used_in_tok) == (0, 0, 0)
    budget = spent(120.0, 125.0, 190.0, tokens=100, rpm=10, rpd=10)
    for at_s, used_day in ((180.0 - 1e-6, 2), (0.0, 1), (-1.0, 1), (250.0, 1), (1.0, 1)):
        budget.settle(at_s, -100, requests=-1)
        assert budget.used_day == used_day
    assert (budget.used, budget.used_tok) == (1, 100)
    budget.settle(190.0, -50)
    assert budget.used_tok == 50


def test_what_the_provider_says_is_left_counts_where_it_is_less():
    budget = spent(130.0, tokens=400, tokens_in=300, rpm=10, tpm=1000, tpm_in=500)
    said = {
        "x-ratelimit-remaining-requests": "7",
        "x-ratelimit-remaining-tokens": "900",
        "anthropic-ratelimit-input-tokens-remaining": "100",
    }
    budget.told(read_limits(said), 131.0)
    assert (budget.used, budget.used_tok, budget.used_in_tok) == (3, 400, 400)
    budget.told(read_limits({"x-ratelimit-remaining-tokens": "500"}), 131.0)
    assert (budget.used, budget.used_tok, budget.used_in_tok) == (3, 500, 400)
    budget.told(read_limits({"x-ratelimit-remaining-tokens": "990"}), 185.0)  # the next minute
    assert (budget.used, budget.used_tok, budget.minute_s) == (0, 10, 180.0)
    free = Budget(Backend("a", rpd=5))
    free.told(read_limits(said), 131.0)
    assert (free.used, free.used_tok, free.used_in_tok) == (0, 0, 0)


def test_what_is_left_is_told_where_there_is_a_limit_and_survives_a_restart():
    budget = spent(130.0, tokens=400, tokens_in=300, rpm=10, tpm=1000, tpm_in=500, rpd=20)
    names = ("requests_left", "tokens_left", "tokens_in_left", "requests_left_today")
    full, left = (10, 1000, 500, 20), (9, 600, 200, 19)
    assert budget.status(150.0) == dict(zip(names, left))
    assert budget.status(200.0) == dict(zip(names, (*full[:3], 19)))
    assert budget.status(DAY_S) == dict(zip(names, full))
    assert Budget(Backend("a")).status(0.0) == {}
    again = spent(rpm=10, tpm=1000, tpm_in=500, rpd=20)
    again.restore(budget.memo())
    assert again.memo() == budget.memo() == [120.0, 1, 400, 300, 0.0, 0]
    assert again.status(150.0) == budget.status(150.0)
    again.restore([])
    assert again.memo() == [-inf, 0, 0, 0, -inf, 0]


def test_a_view_that_relies_on_more_than_is_left_is_void():
    budget = spent(rpm=1e6, tpm=1000)
    assert budget.spend(10, 155.0) is True  # a fresh minute
    budget.promise(900.0)
    assert budget.spend(80, 155.5) is False
    assert budget.spend(20, 155.6) is True  # 890 left of the 900 that were promised
    assert budget.promised_tok == 0.0


@pytest.mark.parametrize(
    "headers, left",
    [
        ({"X-RateLimit-Remaining-Requests": "0"}, dict(requests=0.0)),
        ({"ratelimit-remaining": " 12 "}, dict(requests=12.0)),
        ({"x-ratelimit-remaining": 3, "ratelimit-remaining": "4"}, dict(requests=3.0)),
        ({"x-ratelimit-remaining": "none", "ratelimit-remaining": "4"}, dict(requests=4.0)),
        ({"anthropic-ratelimit-tokens-remaining": "1e3"}, dict(tokens=1000.0)),
        ({"x-ratelimit-remaining-tokens": "-1"}, {}),
        ({"x-ratelimit-remaining-tokens": "inf"}, {}),
        ({"x-ratelimit-remaining-tokens": "nan"}, {}),
        ({"retry-after-ms": "2500", "retry-after": "9"}, dict(wait_s=2.5)),
        ({"retry-after": "9"}, dict(wait_s=9.0)),
        ({"azure-openai-deployment-utilization": "99.9%"}, {}),
        ({"azure-openai-deployment-utilization": "100%"}, dict(wait_s=1.0)),
        ({"azure-openai-deployment-utilization": "120%"}, dict(wait_s=1.0)),
    ],
    ids=str,
)
def test_what_the_headers_of_an_answer_say(headers, left):
    told = read_limits(headers)
    nothing = dict.fromkeys(("requests", "tokens", "tokens_in", "wait_s"))
    assert {name: getattr(told, name) for name in nothing} == nothing | left


# ---- whoever wants to be left alone


def test_a_backend_that_has_had_enough_is_left_alone_as_long_as_it_says_or_for_the_minute():
    hold = Holdback()
    hold.throttle(70.0, None)
    assert (hold.since_s, hold.until_s, hold.named) == (70.0, 120.0, False)
    hold.throttle(75.0, 10.0)  # shorter than what is known already
    assert (hold.since_s, hold.until_s, hold.named) == (70.0, 120.0, False)
    hold.throttle(80.0, 40.0)
    assert (hold.since_s, hold.until_s, hold.named) == (80.0, 120.0, True)
    assert hold.why == "rate limit is spent"
    hold.set_back(85.0)
    assert hold.until_s == 120.0
    hold.set_back(30.0)
    assert (hold.since_s, hold.until_s) == (30.0, 70.0)


def refused(*tenants) -> Holdback:
    hold = Holdback()
    for k, tenant in enumerate(tenants):
        dead = hold.refuse(float(k), tenant)
    assert dead is hold.key_dead
    return hold


def test_a_key_is_dead_when_several_tenants_or_enough_nameless_callers_were_refused():
    assert not refused(*"aaaa").key_dead and not refused(*"aaaaaaaaaaaa").key_dead
    assert refused(*"aaaab").key_dead and not refused(*"abab").key_dead
    assert refused(*[None] * 10).key_dead and not refused(*[None] * 9).key_dead
    hold = refused(*"abcdefgh")
    assert (hold.until_s, hold.since_s, hold.refusals) == (67.0, 7.0, 8)
    assert hold.tenants == set("abcde") and hold.why == "its key was refused 8 times in a row"
    hold.named = True
    hold.try_later(100.0)
    assert (hold.since_s, hold.until_s, hold.named) == (100.0, 160.0, False)


def test_one_success_shows_that_the_key_works():
    hold = refused(*"ababa")
    hold.succeed()
    assert not hold.key_dead and hold.until_s == -inf and not hold.tenants and not hold.refusals
    throttled = Holdback()
    throttled.throttle(0.0, 30.0)
    throttled.succeed()
    assert throttled.until_s == 30.0  # the key was never in doubt
