"The books of a budget by hand: periods, promises to views, what is left and who is short."

from math import inf, nan

import pytest

from arcpoint_ce.routing.records import Request
from arcpoint_ce.routing.spending import Spending, SpendLimit, _begin_s, _Book, _end_s, _Purse

DAY_S = 86_400.0
AMOUNTS = [f"{unit}_per_{period}" for unit in ("usd", "tok") for period in ("hour", "day", "month")]


@pytest.mark.parametrize("name", AMOUNTS)
def test_an_amount_of_a_budget_is_finite_and_not_negative(name):
    for value in (-0.1, inf, nan):
        with pytest.raises(ValueError, match=f"budget of tenant a: {name} must be 0 or more"):
            SpendLimit(tenant="a", **{name: value})
    assert getattr(SpendLimit(**{name: 0.0}), name) == 0.0


def test_a_budget_says_whose_it_is_and_limits_something():
    with pytest.raises(ValueError, match="budget of tenant a in tier b limits nothing; give one"):
        SpendLimit("a", "b")
    who = [SpendLimit(*x, usd_per_hour=1.0).whose for x in (("a",), (None, "b"), ())]
    assert who == ["tenant a", "tier b", "all requests"]
    both = SpendLimit("a", "b", 1.0)
    asked = [Request(tenant=x, tier=y) for x in "ab" for y in "ab"]
    assert [both.concerns(r) for r in asked] == [False, True, False, False]
    assert [SpendLimit("a", None, 1.0).concerns(r) for r in asked] == [True, True, False, False]
    with pytest.raises(ValueError, match="tenant a: there are two budgets"):
        Spending([SpendLimit("a", None, 1.0), SpendLimit("a", usd_per_day=1.0)])


@pytest.mark.parametrize(
    "period, now, begin_s, end_s",
    [
        ("hour", 7_300.0, 7_200.0, 10_800.0),
        ("day", 2.5 * DAY_S, 2 * DAY_S, 3 * DAY_S),
        ("month", 30.9 * DAY_S, 0.0, 31 * DAY_S),
        ("month", 31.0 * DAY_S, 31 * DAY_S, 59 * DAY_S),
        ("month", 800.5 * DAY_S, 790 * DAY_S, 821 * DAY_S),  # March 1972, after a leap day
    ],
)
def test_when_a_period_begins_and_ends(period, now, begin_s, end_s):
    assert (_begin_s(period, now), _end_s(period, begin_s)) == (begin_s, end_s)


def test_an_hour_begins_afresh_and_the_one_before_is_still_known():
    book = _Book("USD", dict(hour=10.0, day=20.0))
    assert book.spend(4.0, 3_000.0) is True  # fresh: whoever made a view must make it anew
    assert book.spend(3.0, 3_500.0) is False and book.left(3_500.0) == 3.0
    book.spend(5.0, 3_700.0)
    hour, day = book.periods
    assert (book.left_of(hour, 3_700.0), book.left_of(day, 3_700.0)) == (5.0, 8.0)
    assert book.left_of(hour, 3_500.0) == -2.0  # of the hour before, with all that came since
    assert book.left_of(hour, 7_300.0) == 10.0 and book.left(7_300.0) == 8.0
    assert (book.since_s, book.until_s) == (3_600.0, 7_200.0)
    book.settle(3_500.0, -2.0)  # it took less, in the hour before
    assert (book.left_of(hour, 3_700.0), book.left_of(day, 3_700.0)) == (5.0, 10.0)
    book.settle(3_600.0, 1.0)
    assert (book.left_of(hour, 3_700.0), book.left_of(day, 3_700.0)) == (4.0, 9.0)
    book.spend(1.0, 3_400.0)  # the clock was set back
    assert (hour.begin_s, book.left_of(hour, 3_400.0)) == (0.0, -2.0)
    assert _Book("USD", {}).left(0.0) == inf


def test_a_view_is_void_once_less_is_left_than_it_promised():
    book = _Book("tok", dict(hour=100.0))
    book.spend(10.0, 0.0)
    book.promise(50.0)
    book.promise(30.0)
    assert book.promised == 50.0
    assert book.spend(40.0, 1.0) is False  # exactly 50 left
    assert book.spend(1.0, 2.0) is True and book.promised == 0.0
    assert book.spend(1.0, 3.0) is False


def test_who_is_short_of_what_and_until_when():
    purse = _Purse(SpendLimit("a", usd_per_hour=2.0, usd_per_day=3.0, tok_per_hour=1_000))
    assert purse.short(2.0, 1_000, 100.0) is None
    assert purse.short(2.5, 0, 100.0) == (
        inf,
        "budget of tenant a for the hour is used up but for 2 USD",
    )
    assert purse.spend(1.5, 400, 100.0) is True
    assert purse.short(0.5, 600, 100.0) is None and purse.short(0.0, 0, 100.0) is None
    assert purse.short(0.6, 0, 100.0) == (
        3_600.0,
        "budget of tenant a for the hour is used up but for 0.5 USD",
    )
    assert purse.short(0.0, 601, 100.0)[1].endswith("but for 600 tok")
    purse.settle(100.0, 1.5, 0)
    late = purse.short(0.1, 0, 100.0)
    assert late == (DAY_S, "budget of tenant a for the hour is used up")
    both = Spending([SpendLimit("a", usd_per_hour=1.0), SpendLimit(usd_per_day=1.0)])
    purses = both.of(Request(tenant="a"))
    assert len(purses) == 2 and both.kind(Request(tenant="b")) is None
    for p in purses:
        p.spend(1.0, 0, 100.0)
    assert both.short(purses, 0.5, 0, 100.0) == (
        DAY_S,
        "budget of all requests for the day is used up",
    )
    assert both.short((), 0.5, 0, 100.0) is None


def test_half_of_what_is_left_may_pass_unasked():
    purse = _Purse(SpendLimit(usd_per_hour=2.0, tok_per_hour=1_000))
    assert purse.spare_tok(0.0, 0.01) == 100.0  # 1 USD at a cent each
    assert purse.spare_tok(0.0, 0.001) == 500.0 and purse.spare_tok(0.0, 0.0) == 500.0
    purse.promise(100.0, 0.01)
    assert (purse.tok.promised, purse.usd.promised) == (100.0, 1.0)
    purse.spend(5.0, 2_000, 0.0)
    assert purse.spare_tok(0.0, 0.01) == 0.0


def test_what_was_spent_is_told_and_survives_a_restart():
    spending = Spending([SpendLimit("a", usd_per_hour=2.0, tok_per_day=1_000)])
    (purse,) = spending.purses
    assert spending.memo() == [dict(tenant="a", tier=None, spent={})]
    purse.spend(1.25, 300, 4_000.0)
    told = spending.status(4_000.0)[0]
    assert (told["usd_left_this_hour"], told["tok_left_this_day"]) == (0.75, 700.0)
    memo = spending.memo()
    assert memo[0]["spent"] == {"USD/hour": [3_600.0, 1.25], "tok/day": [0.0, 300.0]}
    then = Spending([SpendLimit("a", usd_per_hour=2.0, tok_per_day=1_000)])
    then.restore([*memo, dict(tenant="gone", tier=None, spent={})])
    assert then.memo() == memo and then.status(4_000.0) == spending.status(4_000.0)
    then.purses[0].spend(0.25, 0, 4_100.0)
    assert then.status(4_100.0)[0]["usd_left_this_hour"] == 0.5
    for bad in ([nan, 1.0], [0.0, inf], ["x", 1.0]):
        with pytest.raises(ValueError):
            then.restore([dict(tenant="a", tier=None, spent={"USD/hour": bad})])
