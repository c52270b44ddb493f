"""Quotas: the planner never overspends, keeps what is to come for those who save most; every rule
by hand; the ledger adds up.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.proof.budgets import (
    _BUDGETS,
    _CHEAP,
    _DEAR_USD,
    RULES,
    _Budget,
    _budget_demand,
    _even,
    _flat,
    _kept_within,
    _open_grid,
    _planned,
    _reserve,
    _truth,
    budgets_summary,
    budgets_table,
    greedy,
    spend,
    threshold,
)
from arcpoint_ce.proof.quota import QuotaPlanner, _Arrivals, _Level, learn_arrivals

DAY_S = 86_400.0
SMALL = _Budget(period_s=4.0, step_s=1.0, per_day=10 * DAY_S, covered=0.25)  # a quota of 10 per 4 s
MORNING = _Arrivals(((6.0, 0.0), (2.0, 0.0), (0.0, 1.0), (0.0, 3.0)), 1.0)  # dear ones come late


def of(*counts):
    return np.array(counts, float)


def test_a_quota_is_kept_for_dearer_requests_that_are_known_to_come():
    planner = QuotaPlanner(MORNING, (1.0, 9.0), 6, 4.0, reserve=0.0)
    assert planner.shares(0.0).tolist() == [2 / 8, 1.0]
    assert planner.shares(0.0, left=4).tolist() == [0.0, 1.0]
    assert planner.shares(0.0, left=2).tolist() == [0.0, 0.5]
    assert planner.shares(3.999, left=2).tolist()[0] == 1.0


def test_the_reserve_is_set_aside_beyond_what_is_expected():
    planner = QuotaPlanner(MORNING, (1.0, 9.0), 6, 4.0, reserve=0.25)
    assert planner.shares(0.0).tolist() == [1 / 8, 1.0]


@given(st.lists(st.tuples(st.floats(0, 3.9), st.integers(0, 1)), max_size=60), st.integers(0, 12))
@settings(max_examples=60, deadline=None)
def test_no_more_than_the_quota_is_ever_spent(requests, quota):
    planner = QuotaPlanner(MORNING, (1.0, 9.0), quota, 4.0)
    allowed = sum(planner.allow(t, k) for t, k in sorted(requests))
    assert allowed <= quota and planner.left == quota - allowed


def test_a_share_of_a_third_is_every_third_request_and_a_new_period_a_new_quota():
    planner = QuotaPlanner(_Arrivals(((30.0, 0.0),), 10.0), (1.0, 9.0), 10, 10.0, reserve=0.0)
    said = [planner.allow(0.0, 0) for _ in range(9)]
    assert sum(said) in (2, 3) and planner.left == 10 - sum(said)
    planner.allow(10.5, 0)
    assert planner.left >= 9


def test_the_level_follows_busy_days_within_its_limits():
    level = _Level(_Arrivals(((2.0, 2.0),), 10.0, memory=2))
    assert level.value() == 1.0
    for step in range(4):
        level.heard(10.0 * step + 1, 12.0)
    level.close(41.0)
    assert level.value() == 3.0
    level.close(1e6)
    assert level.value() == 0.25


@pytest.mark.parametrize(
    "bad",
    [
        dict(counts=[[1.0, np.nan]] * 9),
        dict(counts=[1.0] * 9),
        dict(period_s=0.5),
        dict(period_s=100.0),
    ],
)
def test_bad_input_is_named(bad):
    with pytest.raises(ValueError, match="learn_arrivals"):
        learn_arrivals(**dict(counts=np.ones((9, 2)), step_s=1.0, period_s=4.0) | bad)


@pytest.mark.parametrize(
    "bad", [dict(saves=(9.0, 1.0)), dict(saves=(1.0,)), dict(quota=-1), dict(period_s=0.0)]
)
def test_a_planner_refuses_what_is_none(bad):
    with pytest.raises(ValueError, match="QuotaPlanner"):
        QuotaPlanner(**dict(arrivals=MORNING, saves=(1.0, 9.0), quota=5, period_s=4.0) | bad)


def test_rules_by_hand():
    past = np.tile(of(4, 2, 2, 1, 1), (8, 1))
    row = of(4, 2, 2, 1, 1)
    assert greedy(SMALL, past)(0.0, 10.0, row).tolist() == row.tolist()
    # 2.5 of 10 in the first quarter
    assert _even(SMALL, past, 0.0)(0.0, 10.0, row).tolist() == [0, 0, 0, 1, 1]
    assert threshold(SMALL, past, 2.5, 0.1)(0.0, 10.0, row).tolist() == [0, 0, 1, 1, 1]
    assert threshold(SMALL, past, 2.5, 0.5)(3.0, 10.0, row).tolist() == row.tolist()
    # half is left: 12, 8, 4, 2 and 0 are set aside
    kept = _reserve(SMALL, past, 1.0, 1.0)(1.0, 10.0, row)
    assert kept.tolist() == [0, 0, 2, 1, 1]
    assert _reserve(SMALL, past, 1.0, 1.0)(3.0, 10.0, row).tolist() == row.tolist()


def test_the_truth_ends_the_period_with_nothing_left_and_no_dear_request_outside():
    came = np.array([of(9, 0, 0, 0, 0), of(3, 2, 0, 0, 0), of(0, 0, 2, 1, 0), of(0, 0, 0, 1, 2)])
    bill = spend(SMALL, came, _truth(SMALL, came, 0.0))
    best = of(2, 2, 2, 2, 2) @ np.array(_DEAR_USD)
    assert bill["cheap"] >= 9 and bill["cost_usd"] <= came.sum(0) @ np.array(_DEAR_USD) - (
        1 - _CHEAP
    ) * (best - 0.001)


@given(
    st.lists(st.floats(0, 9), min_size=5, max_size=5),
    st.lists(st.integers(0, 9), min_size=5, max_size=5),
    st.integers(0, 30),
)
@settings(max_examples=80, deadline=None)
def test_wishes_are_kept_to_what_there_is(wanted, counts, left):
    got = _kept_within(np.array(wanted), np.array(counts), left)
    assert (got <= counts).all() and (got <= np.array(wanted) + 1e-6).all() and got.sum() <= left
    dearer_denied = [k for k in range(5) if got[k] < min(int(wanted[k]), counts[k])]
    assert not dearer_denied or got.sum() == left and not got[: max(dearer_denied)].any()


def test_every_rule_spends_no_more_than_the_quota_and_pays_at_least_what_the_truth_pays():
    b = _BUDGETS["month"]
    past, came = _budget_demand("month", 1)
    bills = {
        n: spend(b, came, f(b, past, **{k: v[0] for k, v in g.items()}))
        for n, (f, g) in RULES.items()
    }
    known = spend(b, came, _truth(b, came, b.past_s), b.past_s)
    assert all(x["cheap"] <= 2 * b.quota and 0 <= x["unused"] <= 1 for x in bills.values())
    assert all(known["cost_usd"] <= x["cost_usd"] + 1e-9 for x in bills.values())


def test_a_clock_is_learned_where_there_is_one_and_none_within_a_minute():
    b = _BUDGETS["day"]
    past, came = _budget_demand("day", 3)
    part = came[: 7 * 288]
    costs = [spend(b, part, f(b, past, 0.1), b.past_s)["cost_usd"] for f in (_planned, _flat)]
    assert costs[0] < 0.97 * costs[1]
    past, came = _budget_demand("minute", 3)
    b = _BUDGETS["minute"]
    costs = [
        spend(b, came[:1200], f(b, past, 0.0), b.past_s)["cost_usd"] for f in (_planned, _flat)
    ]
    assert abs(costs[0] / costs[1] - 1) < 0.03


def test_tables_name_the_best_simple_rule():
    table = budgets_table([4], budgets=["month"], rules=["greedy", "even", "planned"])
    out = budgets_summary(table)
    assert out.loc[("month", "planned"), "best_simple"] == "even"
    want = table.set_index("rule").cost_usd
    assert out.loc[("month", "planned"), "over_best_simple"] == pytest.approx(
        want["planned"] / want["even"]
    )


def test_grids_grow_towards_the_optimum():
    assert (
        _open_grid(lambda x, y: (x - 20) ** 2 + (y - 0.01) ** 2, dict(x=(1.0, 2.0), y=(0.5, 1.0)))[
            "x"
        ]
        > 12
    )
