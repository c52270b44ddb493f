"""Budgets in dollars and tokens: reserved by estimate, settled by what was billed, kept over a
restart, and told in words.
"""

import json
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.engine.engine import ContextEngine
from arcpoint_ce.routing.breaker import OPEN
from arcpoint_ce.routing.policies import PredictedCost
from arcpoint_ce.routing.records import Backend, Outcome, Request, Tier
from arcpoint_ce.routing.router import NoBackend, Router, RouterConfig
from arcpoint_ce.routing.spending import Spending, SpendLimit
from arcpoint_ce.telemetry.fleet_file import load_fleet

DAY_S = 86_400.0
DEAR = Backend("dear", capacity=50.0, price_in=10.0, price_out=1_000.0, price_in_cached=1.0)
OWN = Backend("own", capacity=0.1)


def router(*limits: SpendLimit, fleet=(DEAR, OWN), **how) -> Router:
    return Router(fleet, config=RouterConfig(budgets=limits, **how))


def left(r: Router, now: float, name: str = "usd_left_this_hour") -> float:
    return r.spending(now)[0][name]


def billed(r: Router, d, now: float, cost_usd=None, **how):
    r.observe(Outcome(d.backend, d.at_s, 100.0, decision=d.id, cost_usd=cost_usd, **how), now)


ASKED = Request(tenant="acme", tier="gold", tokens_out=100)  # 0.10 USD


@pytest.mark.parametrize("limit", [dict(tenant="acme"), dict(tier="gold"), dict()])
def test_a_budget_is_reserved_settled_and_refunded(limit):
    r = router(SpendLimit(usd_per_hour=1.0, **limit))
    first, second, third = (r.decide(ASKED, float(k)) for k in range(3))
    assert left(r, 3.0) == pytest.approx(0.7)
    billed(r, first, 4.0, cost_usd=0.25)  # the bill counts
    assert left(r, 4.0) == pytest.approx(0.55)
    billed(r, second, 5.0, tokens_out=50)  # no bill: what its tokens cost
    assert left(r, 5.0) == pytest.approx(0.6)
    r.cancel(third, 6.0)
    assert left(r, 6.0) == pytest.approx(0.7)
    assert r._reservations.bills.owed == {}


def test_others_are_not_charged():
    r = router(SpendLimit(tenant="acme", usd_per_hour=1.0), SpendLimit(tier="gold", tok_per_day=90))
    for asked in (ASKED._replace(tenant=None, tier=None), ASKED._replace(tenant="b", tier="x")):
        r.decide(asked, 0.0)
    told = r.spending(1.0)
    assert [told[0]["usd_left_this_hour"], told[1]["tok_left_this_day"]] == [1.0, 90.0]


@pytest.mark.parametrize(
    "o, costs",
    [
        (dict(ok=False, error="503"), 0.0),
        (dict(error="429"), 0.0),
        (dict(error="cancelled"), 0.0),
        (dict(error="503", tokens_in=0, tokens_out=30), 0.03),
        (dict(error="BadRequestError", cost_usd=0.02), 0.02),
        (dict(), 0.1),  # served, and nobody said what it took: the estimate stands
        (dict(cost_usd=0.0), 0.0),
    ],
    ids=["failed", "throttled", "cancelled", "broke_off", "billed_mistake", "unknown", "free"],
)
def test_what_an_outcome_says_it_cost(o, costs):
    r = router(SpendLimit(usd_per_hour=1.0))
    billed(r, r.decide(ASKED, 0.0), 1.0, **o)
    assert left(r, 1.0) == pytest.approx(1.0 - costs)


def test_a_used_up_budget_leaves_what_is_free_and_says_why():
    r = router(SpendLimit(tenant="acme", usd_per_hour=0.25))
    sent = [r.decide(ASKED, float(k)).backend for k in range(5)]
    assert sent == ["dear", "dear", "own", "own", "own"]
    refused = {c.backend: c.reason for c in r.rank(ASKED, 6.0)}
    assert refused["dear"] == "budget of tenant acme for the hour is used up but for 0.05 USD"
    assert r.decide(ASKED._replace(tenant="b"), 7.0).backend == "dear"
    assert r.decide(ASKED._replace(tokens_out=40), 8.0).backend == "dear"  # a small one fits


@pytest.mark.parametrize(
    "limit, back_s",
    [
        (dict(usd_per_hour=0.1), 3_600.0 - 10.0),
        (dict(usd_per_day=0.1), DAY_S - 10.0),
        (dict(usd_per_month=0.1), 31 * DAY_S - 10.0),
        (dict(usd_per_hour=0.1, usd_per_day=0.1), DAY_S - 10.0),
        (dict(tok_per_hour=100), 3_600.0 - 10.0),
        (dict(usd_per_hour=0.05), inf),  # no hour has so much
    ],
)
def test_where_nothing_free_is_left_the_refusal_says_when_to_come_back(limit, back_s):
    r = router(SpendLimit(tier="gold", **limit), fleet=(DEAR,))
    if back_s < inf:
        r.decide(ASKED, 5.0)
    with pytest.raises(NoBackend, match="budget of tier gold for the .* is used up") as refused:
        r.decide(ASKED, 10.0)
    assert refused.value.retry_after_s == pytest.approx(back_s)
    if back_s < inf:
        assert r.decide(ASKED, 10.0 + back_s + 0.01).backend == "dear"


def test_a_budget_is_no_matter_of_last_resort_and_holds_for_retries():
    r = router(SpendLimit(usd_per_hour=0.15), fleet=(DEAR, Backend("other", price_out=1_000.0)))
    d = r.decide(ASKED, 0.0)
    assert r.retry(d, 1.0) is None  # a further attempt would cost as much again
    for name in ("dear", "other"):
        for k in range(6):
            r.observe(Outcome(name, 1.0 + k, None, False, "connect"))
    with pytest.raises(NoBackend, match="budget of all requests"):
        r.decide(ASKED, 8.0)


def test_a_retry_is_charged_too_and_each_attempt_is_settled_by_itself():
    r = router(SpendLimit(usd_per_hour=1.0), fleet=(DEAR, Backend("other", price_out=1_000.0)))
    d = r.decide(ASKED, 0.0)
    assert r.retry(d, 1.0) and left(r, 1.0) == pytest.approx(0.8)
    for k, cost_usd in ((1, 0.3), (0, 0.05)):
        name = d.lanes[k].backend.name
        r.observe(Outcome(name, 1.0, 50.0, decision=d.id, attempt=k, cost_usd=cost_usd), 2.0)
    assert left(r, 2.0) == pytest.approx(0.65)


def test_an_answer_after_its_hour_corrects_the_past_alone():
    r = router(SpendLimit(usd_per_hour=1.0, usd_per_day=2.0))
    late = r.decide(ASKED, 3_599.0)
    r.decide(ASKED, 3_601.0)
    billed(r, late, 3_602.0, cost_usd=0.9)
    assert left(r, 3_602.0) == pytest.approx(0.9)
    assert left(r, 3_602.0, "usd_left_this_day") == pytest.approx(1.0)


def test_a_clock_that_ran_ahead_forgets_nothing():
    r = router(SpendLimit(usd_per_hour=1.0))
    r.decide(ASKED, 10.0)
    r.decide(ASKED, DAY_S)
    assert left(r, DAY_S) == pytest.approx(0.9)
    r.decide(ASKED, 20.0)
    assert left(r, 20.0) == pytest.approx(0.7)


def test_a_restart_keeps_what_was_spent_and_the_requests_of_the_day():
    limit = SpendLimit(tenant="acme", usd_per_hour=1.0, tok_per_month=5_000)
    daily = Backend("daily", capacity=50.0, rpd=3, price_out=1_000.0)
    old = router(limit, fleet=(daily,))
    for k in range(2):
        old.decide(ASKED, 100.0 * k)
    memo = json.loads(json.dumps(old.memo()))
    new = router(limit, fleet=(daily,))
    assert new.restore(memo) == []
    assert new.spending(200.0) == old.spending(200.0)
    new.decide(ASKED, 300.0)
    with pytest.raises(NoBackend):
        new.decide(ASKED, 400.0)
    memo["spending"][0]["spent"]["USD/hour"] = [0.0, "much"]
    assert "what budgets have spent starts fresh" in router(limit).restore(memo)[0]


def test_cached_input_is_cheaper_where_the_cache_is():
    r = router(SpendLimit(usd_per_hour=1.0), fleet=(DEAR,))
    asked = Request(session="s", tokens_in=10_000, tokens_out=100)
    first = r.decide(asked, 0.0)
    assert left(r, 0.0) == pytest.approx(1.0 - 0.2)
    assert r.rank(asked, 1.0)[0].cost_usd == pytest.approx(0.11)
    second = r.decide(asked, 1.0)
    assert left(r, 1.0) == pytest.approx(1.0 - 0.2 - 0.11)
    billed(r, second, 2.0, tokens_in=10_000, tokens_out=200)
    assert left(r, 2.0) == pytest.approx(1.0 - 0.2 - 0.21)
    assert first.candidates[0].cost_usd == pytest.approx(0.2)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.integers(0, 400), st.floats(0.0, 900.0), st.sampled_from("dcob")),
        min_size=5,
        max_size=60,
    )
)
def test_no_budget_is_overdrawn_by_what_was_estimated(asks):
    "Whatever comes in whatever order: views that are kept never let through more than is left."
    r = router(SpendLimit(tenant="acme", usd_per_hour=1.0, tok_per_day=4_000))
    now, open_ = 0.0, []
    for tokens_out, gap_s, what in asks:
        now += gap_s
        if what == "c" and open_:
            r.cancel(open_.pop(), now)
        elif what == "o" and open_:
            d = open_.pop(0)
            billed(r, d, now, tokens_out=d.request.tokens_out)
        else:
            asked = Request(tenant="acme" if what == "d" else "b", tokens_out=tokens_out + 1)
            try:
                open_.append(r.decide(asked, now))
            except NoBackend as e:
                assert "own budget of tenant acme for the day" in str(e)
        assert left(r, now) > -1e-9 and left(r, now, "tok_left_this_day") >= 0


def test_views_are_kept_while_the_budget_is_far_from_its_end():
    made = []

    class Counting(PredictedCost):
        def plan(self, scene, s):
            made.append(1)
            return super().plan(scene, s)

    config = RouterConfig(budgets=(SpendLimit(tenant="acme", usd_per_hour=1_000.0),))
    r = Router([DEAR, OWN], Counting(), config=config)
    for k in range(500):
        r.cancel(r.decide(ASKED, k / 1_000), k / 1_000)
        r.cancel(r.decide(ASKED._replace(tenant=f"t{k}"), k / 1_000), k / 1_000)
    assert len(made) <= 6


def test_the_fleet_file_reaches_the_engine_and_the_engine_tells(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text(
        "[limits]\nslo_ms = 900\nttft_limit_ms = 400\n[tiers.gold]\nslo_ms = 200\n"
        "ttft_limit_ms = 100\n[[budget]]\ntier = 'gold'\nusd_per_day = 5\n"
        "[[backend]]\nname = 'a'\ncapacity = 4\nprice_out = 100.0\nprice_in_cached = 0.1\n"
    )
    fleet = load_fleet(path)
    with ContextEngine(fleet) as e:
        config = e.router.config
        assert (config.slo_ms, config.ttft_limit_ms) == (900.0, 400.0)
        e.decide(Request(tier="gold", tokens_out=1_000), 0.0)
        (told,) = e.status(1.0)["spending"]
        assert (told["tier"], told["usd_left_this_day"]) == ("gold", 4.9)
        e.store.flush(1.0)
        assert e.store.state("fleet")["budgets"][0]["usd_per_day"] == 5.0
    with ContextEngine(fleet, slo_ms=50.0, router=RouterConfig(ttft_limit_ms=70.0)) as e:
        assert (e.router.config.slo_ms, e.router.config.ttft_limit_ms) == (50.0, 70.0)


@pytest.mark.parametrize(
    "asked, first_ms, slow",
    [
        (Request(), 600.0, True),
        (Request(), 400.0, False),
        (Request(ttft_limit_ms=700.0), 600.0, False),
        (Request(tier="gold"), 400.0, True),
        (Request(tier="gold", ttft_limit_ms=500.0), 400.0, False),
    ],
)
def test_the_first_token_limit_of_request_tier_and_settings(asked, first_ms, slow):
    r = Router(
        [Backend("a", capacity=50.0)],
        PredictedCost(),
        tiers=[Tier("gold", slo_ms=9_000.0, ttft_limit_ms=300.0)],
        config=RouterConfig(slo_ms=9_000.0, ttft_limit_ms=500.0),
    )
    d = r.decide(asked, 0.0)
    r.observe(Outcome("a", 0.0, 2_000.0, decision=d.id, ttft_ms=first_ms))
    assert r.status(3.0)[0]["window"]["slow"] == slow


@pytest.mark.parametrize(
    "limit, said",
    [
        (dict(), "limits nothing"),
        (dict(usd_per_hour=-1.0), "usd_per_hour must be 0 or more"),
        (dict(tok_per_day=inf), "tok_per_day must be 0 or more"),
        (dict(usd_per_month=float("nan")), "usd_per_month must be 0 or more"),
    ],
)
def test_a_budget_that_is_none_raises(limit, said):
    with pytest.raises(ValueError, match=said):
        SpendLimit(tenant="acme", **limit)


def test_two_budgets_of_the_same_requests_raise():
    with pytest.raises(ValueError, match="tenant a: there are two budgets"):
        Spending([SpendLimit(tenant="a", usd_per_day=1.0), SpendLimit(tenant="a", tok_per_day=9)])


def test_a_person_holds_a_breaker_open_whatever_the_budget():
    r = router(SpendLimit(usd_per_hour=0.0))
    assert r.decide(ASKED, 0.0).backend == "own"
    r.force("own", OPEN, 1.0, "maintenance")
    with pytest.raises(NoBackend, match="dear budget of all requests for the hour is used up"):
        r.decide(ASKED, 2.0)


@pytest.mark.parametrize("bad", ["5", [5.0], True])
def test_an_amount_that_is_no_number_is_named(bad):
    with pytest.raises(TypeError, match="budget of tenant x: usd_per_day"):
        SpendLimit(tenant="x", usd_per_day=bad)


def test_a_config_says_which_of_its_budgets_is_none():
    with pytest.raises(TypeError, match="RouterConfig.budgets holds SpendLimit values, got 'x'"):
        RouterConfig(budgets=("x",))
