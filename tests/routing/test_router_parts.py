"""The parts of the router by hand: limits, room, paces, averages, memos, views and plans around
them.
"""

from math import exp, inf, nan

import pytest

from arcpoint_ce.routing.affinity import AtHome, Homes, ReservedFirst, Seat, _Newest
from arcpoint_ce.routing.breaker import HALF_OPEN, OPEN, BreakerConfig
from arcpoint_ce.routing.clock import Clock
from arcpoint_ce.routing.decisions import NoBackend, _Coming, _free_share, _tried_first
from arcpoint_ce.routing.nowcast import others_pace_s, usual_pace_s
from arcpoint_ce.routing.policies import (
    OwnPace,
    PredictedCost,
    RandomChoice,
    Signals,
    WeightedPlan,
    make_policy,
)
from arcpoint_ce.routing.records import Backend, Forecast, ForecastTable, Outcome, Request, Tier
from arcpoint_ce.routing.router import Router, RouterConfig, _strict

POSITIVE = ("slo_ms", "ttft_limit_ms", "lease_s", "refresh_s", "forget_s", "step_s")
SHARES = ("probe_share", "panic_share", "room_share", "smoothing", "explore")


@pytest.mark.parametrize("name", POSITIVE)
def test_a_time_in_the_settings_is_positive(name):
    for value in (0, -1, nan):
        with pytest.raises(ValueError, match=f"RouterConfig.{name} must be positive"):
            RouterConfig(**{name: value})
    assert getattr(RouterConfig(**{name: 0.5}), name) == 0.5


@pytest.mark.parametrize("name", SHARES)
def test_a_share_in_the_settings_lies_between_zero_and_one(name):
    for value in (-0.01, 1.01, nan):
        with pytest.raises(ValueError, match=f"RouterConfig.{name} must be between 0 and 1"):
            RouterConfig(**{name: value})
    assert [getattr(RouterConfig(**{name: x}), name) for x in (0, 1)] == [0, 1]


def test_other_settings():
    for bad in (dict(slo_tok_ms=-0.1), dict(slo_tok_ms=inf), dict(gateways=0.9)):
        with pytest.raises(ValueError, match=f"RouterConfig.{next(iter(bad))} must be"):
            RouterConfig(**bad)
    assert RouterConfig(gateways=1, slo_tok_ms=0.0).ttft_limit_ms is None


def test_the_routers_settings_that_the_documents_name_are_the_default():
    c = RouterConfig()
    assert (c.slo_ms, c.slo_tok_ms, c.lease_s, c.act_s) == (300.0, 0.0, 600.0, 120.0)
    assert (c.probe_share, c.panic_share, c.room_share, c.smoothing) == (0.1, 0.5, 0.3, 0.1)
    assert (c.slow_start_s, c.refresh_s, c.forget_s, c.step_s) == (30.0, 1.0, 60.0, 60)
    assert (c.explore, c.callers_retry, c.last_resort, c.gateways) == (None, False, True, 1)
    assert Router([], RandomChoice()).explore == 0.01 and Router().explore == 0.0
    assert Router([], config=RouterConfig(explore=0.2)).explore == 0.2


def fleet(n: int = 2, policy=None, **how) -> Router:
    config = how.pop("config", RouterConfig(explore=0.0, slow_start_s=0.0))
    backend = how.pop("backend", {})
    backends = [Backend(f"b{k}", **(dict(capacity=4.0) | backend)) for k in range(n)]
    return Router(backends, policy or PredictedCost(), config=config, **how)


# ---- limits


def test_whose_latency_limit_applies():
    r = fleet(1, tiers=[Tier("gold", 50.0)], config=RouterConfig(slo_ms=400.0, slo_tok_ms=2.0))
    own, plain = Backend("x", slo_ms=70.0), Backend("y")
    for request, of_own, of_plain in (
        (Request(), 70.0, 400.0),
        (Request(tier="gold"), 50.0, 50.0),
        (Request(tier="other"), 70.0, 400.0),
        (Request(tier="gold", slo_ms=30.0), 30.0, 30.0),
        (Request(tokens_out=10), 90.0, 420.0),
    ):
        assert (r.limit_ms(own, request), r.limit_ms(plain, request)) == (of_own, of_plain)


def slow(o: dict, request: Request = Request(), took_ms: float = 100.0, **config) -> bool:
    "Did this answer count as slower than its limit?"
    gold = Tier("gold", 80.0, ttft_limit_ms=20.0)
    r = fleet(1, tiers=[gold], config=RouterConfig(explore=0.0, **config))
    d = r.decide(request, 0.0)
    r.observe(Outcome(d.backend, 0.0, took_ms, decision=d.id, **o))
    return r._lanes["b0"].breaker.window.slow == 1


def test_which_answers_count_as_slow():
    assert not slow({}, slo_ms=100.0) and slow({}, slo_ms=99.0)
    assert slow({}, Request(slo_ms=99.0)) and not slow({}, Request(slo_ms=100.0), slo_ms=50.0)
    assert slow({}, Request(tier="gold")) and not slow({}, Request(tier="gold"), took_ms=80.0)
    assert not slow(dict(tokens_out=10), slo_ms=90.0, slo_tok_ms=1.0)
    assert slow(dict(tokens_out=9), slo_ms=90.0, slo_tok_ms=1.0)
    first = dict(ttft_ms=21.0)
    assert slow(first, Request(tier="gold"), took_ms=50.0)
    assert not slow(dict(ttft_ms=20.0), Request(tier="gold"), took_ms=50.0)
    assert not slow(first, Request(tier="gold", ttft_limit_ms=30.0), took_ms=50.0)
    assert slow(first, took_ms=50.0, ttft_limit_ms=20.5) and not slow(first, took_ms=50.0)


# ---- room, paces, averages


def lanes_with(*believed):
    r = fleet(len(believed))
    beliefs = []
    for x in believed:
        room = dict(zip(("occupied", "most"), x)) if x else {}
        beliefs.append(Forecast("b", 0.0, 60.0, (1.0,) * 7, (1.0,) * 7, **room))
    return r._lanes.values(), beliefs


def test_how_much_of_the_room_is_free():
    lanes, beliefs = lanes_with((3.0, 10.0), None, (None, 6.0))
    assert _free_share(lanes, beliefs, [1, 1, 0]) == pytest.approx((6.0 + 3.0 + 6.0) / 20.0)
    assert _free_share(lanes, beliefs, [1, 3, 0], gateways=2) == pytest.approx((5 + 0 + 6) / 20)
    lanes, beliefs = lanes_with(None, None)
    assert _free_share(lanes, beliefs, [0, 0]) is None
    assert _free_share([], [], []) is None
    lanes, beliefs = lanes_with((0.0, 0.0))
    assert _free_share(lanes, beliefs, [0]) is None


def test_first_attempts_go_where_it_fails_at_once_only_when_others_are_full():
    assert [_tried_first(free, 0.3) for free in (None, 0.6, 0.3, 0.0)] == [0.0, 0.0, 0.95, 0.95]
    assert _tried_first(0.45, 0.3) == pytest.approx(0.5)


def test_the_usual_pace_is_the_upper_median_and_that_of_others_leaves_out_ones_own():
    assert [usual_pace_s(x) for x in ([], [0.0, 0.0], [0.3, 0.0, 0.1, 0.2, 0.4])] == [0, 0, 0.3]
    assert others_pace_s([0.1], 0.1) == 0.0
    known = [0.1, 0.2, 0.3, 0.4]
    assert [others_pace_s(known, p) for p in known] == [0.3, 0.3, 0.2, 0.2]
    assert [others_pace_s(known[:3], p) for p in known[:3]] == [0.3, 0.3, 0.2]


def test_averages_move_by_a_tenth_and_errors_fade():
    r = fleet(1, config=RouterConfig(explore=0.0, forget_s=100.0))
    s = r._signals
    r.roll(0.0)
    for k, (ok, ms) in enumerate(((True, 100.0), (True, 200.0), (False, None), (True, 110.0))):
        r.observe(Outcome("b0", 0.001 * k, ms, ok))
    assert s.latency[0] == pytest.approx(110.0) and s.error[0] == pytest.approx(0.1 * 0.9)
    r.decide(Request(), 1.0)
    r.decide(Request(), 51.0)
    assert s.error[0] == pytest.approx(0.09 * exp(-0.5))
    r.decide(Request(), 1_000.0)
    assert 0.0 < s.error[0] < 1e-3
    r.decide(Request(), 1_002.0)
    assert s.error[0] == 0.0


def test_a_peak_average_rises_at_once_and_decays_with_time():
    r = fleet(1, policy=make_policy("peak_ewma", decay_s=10.0))
    for at_s, ms, known in (
        (0.0, 100.0, 100.0),
        (1.0, 300.0, 300.0),
        (11.0, 100.0, 300.0 - 200.0 * (1 - exp(-(11.1 - 1.3) / 10.0))),
    ):
        r.observe(Outcome("b0", at_s, ms))
        assert r.latencies()["b0"] == pytest.approx(known)
    stamp = r._signals.stamp[0]
    r.observe(Outcome("b0", 2.0, 50.0))
    assert r._signals.stamp[0] == stamp == pytest.approx(11.1)


def test_the_usual_length_of_an_answer_follows_slowly():
    r = fleet(1)
    d = r.decide(Request(), 0.0)
    assert d.expect == 256.0 and d.reserved_tok == 256
    r.observe(Outcome("b0", 0.0, 5.0, decision=d.id, tokens_out=356))
    assert r.decide(Request(tokens_in=4), 1.0).expect == pytest.approx(257.0)
    r.observe(Outcome("b0", 1.0, 5.0))  # nobody said how long it was
    assert r.decide(Request(), 2.0).expect == pytest.approx(257.0)
    assert r.decide(Request(tokens_out=9), 2.0).expect == 9


def test_whole_answers_tell_a_pace_and_a_time_out_is_at_least_of_usual_length():
    r = fleet(2, policy=OwnPace(gamma=2.0))
    r.observe(Outcome("b0", 0.0, 10_000.0, tokens_out=100))
    assert r.paces(20.0)["b0"] == pytest.approx((0.1, 10.0)) and r.paces(20.0)["b1"][0] == 0.0
    # who is unknown counts as a little better than usual
    assert r._signals.slow == pytest.approx([0.01, 0.99**2 * 0.01])
    r.observe(Outcome("b0", 20.0, 20_000.0, tokens_out=100))
    assert r.paces(40.0)["b0"][0] == pytest.approx(0.13)
    assert r._signals.slow[0] == pytest.approx(0.13**2)
    r.observe(Outcome("b0", 40.0, 18_000.0, False, "timeout"))  # as if of 100 tokens
    assert r.paces(60.0)["b0"][0] == pytest.approx(0.13 + 0.3 * 0.05)
    r.observe(Outcome("b1", 40.0, 2_000.0, tokens_in=2_000, tokens_out=30))
    assert r.paces(60.0)["b1"][0] == pytest.approx(2.0 / 40.0)


def test_a_stricter_breaker_opens_on_half_as_much():
    tight = _strict(BreakerConfig(consecutive=7, min_calls=9, failure_rate=0.5, slow_rate=0.8))
    assert (tight.consecutive, tight.min_calls) == (3, 4)
    assert (tight.failure_rate, tight.slow_rate) == (0.25, 0.4)
    least = _strict(BreakerConfig(consecutive=3, min_calls=3, slow_rate=1.5))
    assert (least.consecutive, least.min_calls, least.slow_rate) == (2, 2, 1.5)
    assert _strict(BreakerConfig(slow_rate=1.0)).slow_rate == 0.5
    r = fleet(2)
    r.tighten(["b1"])
    assert [lane.breaker.config.consecutive for lane in r._lanes.values()] == [5, 2]
    r.tighten([])
    assert [lane.breaker.config.consecutive for lane in r._lanes.values()] == [5, 5]


# ---- members, memos


def test_a_place_in_the_signals_is_taken_over_once_its_last_request_has_ended():
    r = fleet(2)
    r.observe(Outcome("b0", 0.0, 50.0))
    d = r.claim(Request(), "b0", 0.0)
    r.remove("b0")
    r.add(Backend("c"), 0.0)
    assert r._lanes["c"].slot == 2 and len(r._signals.in_flight) == 3
    r.observe(Outcome("b0", 0.0, 5.0, decision=d.id))
    assert r._signals.in_flight[0] == 0
    r.add(Backend("d"), 0.0)
    s, slot = r._signals, r._lanes["d"].slot
    assert slot == 0 and r._members.retired == []
    told = s.error[slot], s.latency[slot], s.stamp[slot], s.load[slot], s.slow[slot]
    assert told == (0.0, 0.0, 0.0, 0.0, 1.0) and len(s.phase) == 3
    with pytest.raises(ValueError, match="backend 'd' is in the fleet already"):
        r.add(Backend("d"), 0.0)


def test_replicas_that_start_or_stop_change_the_share_that_is_ready():
    r = fleet(2, policy=RandomChoice())
    r.resize({"b0": 0.25})
    assert r.shares() == {"b0": 0.25, "b1": 1.0}
    odds = {c.backend: c.probability for c in r.rank(Request(), 0.0)}
    assert odds == pytest.approx({"b0": 0.2, "b1": 0.8})
    r.resize({"b0": 0.0, "b1": 3.0})
    assert r.shares() == {"b0": 0.01, "b1": 3.0}
    for bad in (-0.1, inf, nan):
        with pytest.raises(ValueError, match="the share of 'b0' must be 0 or more"):
            r.resize({"b0": bad})


def test_a_memo_takes_measurements_to_the_router_that_follows():
    first = fleet(2, backend=dict(rpm=60.0))
    d = first.decide(Request(), 100.0)
    first.observe(Outcome(d.backend, 100.0, 250.0, decision=d.id, tokens_out=356))
    first.observe(Outcome("b1", 100.0, None, False, "503"))
    first.decide(Request(), 101.0)
    memo = first.memo()
    then = fleet(2, backend=dict(rpm=60.0))
    assert then.restore(memo) == []
    after = then.memo()
    assert after["turn"] == memo["turn"] + 1_000_000
    for part in ("measured", "usual", "spending"):
        assert after[part] == memo[part]
    assert memo["usual"]["length_tok"] == pytest.approx(257.0)
    assert memo["measured"]["b1"]["error"] == pytest.approx(0.1 * exp(-1 / 60))


@pytest.mark.parametrize(
    "broken",
    [
        dict(error=-0.1),
        dict(error=1.1),
        dict(latency_ms=-1.0),
        dict(latency_ms=inf),
        dict(pace_s=-1.0),
        dict(pace_s=inf),
        dict(stamp_s=inf),
        dict(stamp_s=-inf),
        dict(minute=[0.0] * 4),
        dict(minute=["x"]),
        dict(error=None),
    ],
    ids=str,
)
def test_measurements_that_cannot_be_are_left_out_and_told(broken):
    r, memo = fleet(1, backend=dict(rpm=60.0)), fleet(1, backend=dict(rpm=60.0)).memo()
    before = r.memo()["measured"]
    memo["measured"]["b0"] |= dict(latency_ms=77.0) | broken
    lost = r.restore(memo)
    assert len(lost) == 1 and lost[0].startswith("measurements of 'b0' start fresh: ")
    assert r.memo()["measured"] == before
    fine = fleet(1).memo()
    fine["measured"]["b0"] |= dict(error=1.0, latency_ms=0.0, pace_s=0.5, held_s=9.0, minute=[])
    assert r.restore(fine) == [] and r.paces(1.0)["b0"][0] == 0.5
    assert r._lanes["b0"].hold.until_s == 9.0 and r._signals.error == [1.0]


@pytest.mark.parametrize(
    "broken", [dict(retried=1.1), dict(retried=-0.1), dict(habit=1.1), dict(length_tok=0)]
)
def test_what_cannot_be_usual_is_left_out_and_told(broken):
    r, memo = fleet(1), fleet(1).memo()
    memo["usual"] |= broken
    assert r.restore(memo)[0].startswith("what is usual starts fresh: that is not usual")
    fine = dict(retried=1.0, length_tok=10.0, faded_s=3.0)
    fine |= dict(habit=0.5, crowding=dict(noise=0.1, along=2.0, spread=3.0))
    memo["usual"] = fine
    assert r.restore(memo) == [] and r.memo()["usual"] == fine
    del memo["usual"]["habit"], memo["usual"]["crowding"]  # as an older version wrote it
    assert r.restore(memo) == [] and r.memo()["usual"]["habit"] == 1.0


@pytest.mark.parametrize("broken", [dict(noise=-1.0), dict(along=nan), dict(spread=-0.1)])
def test_what_no_answers_can_have_taught_is_left_out_and_told(broken):
    r, memo = fleet(1), fleet(1).memo()
    before = dict(memo["usual"]["crowding"])
    memo["usual"]["crowding"] = before | broken
    [lost] = r.restore(memo)
    assert "no answers can have taught this" in lost
    assert r.memo()["usual"]["crowding"] == before


# ---- the clock


def test_a_clock_is_set_back_only_by_more_than_its_slack():
    c = Clock()
    assert (c.tell(inf), c.tell(nan), c.now_s) == (False, False, -inf)
    assert (c.tell(100.0), c.now_s, c.latest_s) == (False, 100.0, 105.0)
    assert (c.tell(95.0), c.now_s) == (False, 100.0) and (c.tell(94.9), c.now_s) == (True, 94.9)
    assert not c.ahead(99.9) and c.ahead(99.91)


def test_when_an_attempt_started_and_how_long_it_took():
    c = Clock()
    assert c.started_s(7.0, -inf, None) == 7.0  # nobody knows better
    c.tell(100.0)
    assert [c.started_s(t, 90.0, None) for t in (80.0, 95.0, 105.0, 105.1)] == [90, 95, 105, 100]
    assert [c.started_s(t, 90.0, 98.0) for t in (80.0, 98.0, 98.1)] == [90.0, 98.0, 98.0]
    assert c.started_s(200.0, 110.0, None) == 110.0 and c.started_s(200.0, 110.0, 98.0) == 110.0
    assert c.took_ms(9_000.0, 90.0, 98.0) == 8_000.0 and c.took_ms(7_000.0, 90.0, 98.0) == 7_000.0
    assert c.took_ms(9_000.0, 99.0, 98.0) == 0.0
    assert c.took_ms(9_000.0, -inf, 98.0) == c.took_ms(9_000.0, 90.0, None) == 9_000.0


# ---- what is foreseen of a backend, and how it stands


def foretold(made_s: float, ms: float, horizon_s: float = 300.0, **how) -> Forecast:
    return Forecast("b0", made_s, horizon_s, (ms,) * 7, (ms,) * 7, **how)


def test_the_worst_forecast_about_the_near_future_is_believed():
    coming = _Coming()
    for f in (foretold(0.0, 5.0), foretold(60.0, 9.0), foretold(120.0, 7.0), foretold(180.0, 8.0)):
        coming.hear(f, f.made_s)
    # their steps end at 300, 360, 420 and 480 s
    for now, ms in ((100.0, 5.0), (119.9, 5.0), (120.0, 5.0), (180.0, 9.0), (299.0, 9.0)):
        assert coming.belief(now, 120.0, 60.0).step_ms[3] == ms
    assert coming.belief(360.0, 120.0, 60.0).step_ms[3] == 8.0
    assert coming.belief(480.0, 120.0, 60.0) is None
    coming.hear(foretold(180.0, 3.0), 300.0)  # the same moment again: it takes its place
    assert [f.step_ms[3] for f in coming.forecasts] == [9.0, 7.0, 3.0]
    coming.hear(foretold(310.0, 4.0, throughout=True, now_ms=2.0), 310.0)
    assert len(coming.forecasts) == 1 and coming.now_ms == 2.0
    coming.hear(foretold(320.0, 6.0), 320.0)
    assert [f.step_ms[3] for f in coming.forecasts] == [6.0]
    coming.hear(None, 330.0)
    assert coming.forecasts == [] and coming.now_ms is None


def test_a_newcomer_starts_with_a_tenth_and_grows_linearly():
    r = fleet(1)
    lane = r._lanes["b0"]
    assert lane.slow_start(0.0, 30.0) == 1.0  # it was there from the start
    lane.joined_s, lane.recovered_s = 100.0, 90.0
    assert [lane.slow_start(t, 30.0) for t in (100.0, 103.0, 115.0, 130.0, 200.0)] == pytest.approx(
        [0.1, 0.1, 0.5, 1.0, 1.0]
    )
    assert lane.slow_start(100.0, 0.0) == 1.0
    lane.recovered_s = 190.0
    assert lane.slow_start(205.0, 30.0) == pytest.approx(0.5)


def failing(*took_ms: float, ended_s: float = 100.0, answered_s: float = 99.0):
    lane = fleet(1)._lanes["b0"]
    for ms in took_ms:
        lane.failed(ms, ended_s)
    lane.answered_s = answered_s
    return lane


def test_an_attempt_costs_next_to_nothing_where_failures_are_quick_and_some_succeed():
    def fast(lane, limit_ms=1000.0, now=100.0, error=0.5):
        return lane.fails_fast(limit_ms, now, error)

    quick = failing(1.0, 2.0, 49.0)
    assert fast(quick) and not fast(quick, error=0.3) and not fast(quick, limit_ms=980.0)
    assert not fast(failing(1.0, 2.0)) and not fast(failing(60.0, 1.0, 1.0))
    assert fast(failing(60.0, 1.0, 1.0, 1.0))  # only the last three count
    assert fast(quick, now=109.0) and not fast(quick, now=109.1)  # answered within 10 s
    assert fast(quick, limit_ms=10_000.0, now=119.0)  # or within two limits
    assert not fast(quick, limit_ms=10_000.0, now=119.1)
    assert not fast(failing(1.0, 1.0, 1.0, ended_s=40.0))
    assert fast(failing(1.0, 1.0, 1.0, ended_s=40.1))
    open_ = failing(1.0, 1.0, 1.0)
    open_.breaker.follow("others said so", {}, 100.0)
    assert fast(open_, error=0.0)
    open_.breaker.force(OPEN, 100.0, "works")
    assert not fast(open_)
    late = failing(1.0, 1.0, 1.0, ended_s=100.0)
    late.failed(1.0, 90.0)
    assert late.failed_s == 100.0


def test_who_is_shut_off_for_slow_calls_alone():
    def lane(slow: int, failed: int, **force):
        x = fleet(1)._lanes["b0"]
        evidence = dict(calls=20, slow=slow, failed=failed)
        x.breaker.follow("why", evidence, 1.0)
        x.breaker.transitions[-1].evidence.update(evidence)
        return x

    assert lane(15, 2).only_slow and not lane(15, 3).only_slow and not lane(0, 0).only_slow
    assert not fleet(1)._lanes["b0"].only_slow
    held = lane(15, 0)
    held.breaker.force(OPEN, 2.0, "works")
    assert not held.only_slow


def test_when_a_request_may_test_a_backend():
    lane = fleet(1, breaker=BreakerConfig(jitter=0.0, patient_s=50.0, probes=2))._lanes["b0"]
    b = lane.breaker
    assert not lane.probe_due(0.0)
    b.follow("why", {}, 100.0)
    b.course.backoff.opens, b.course.backoff.base_s = 3, 10.0  # it may wait 40 s with patience
    assert [lane.probe_due(t) for t in (109.9, 110.0)] == [False, True]
    assert [lane.probe_due(t, roomy=True) for t in (139.9, 140.0)] == [False, True]
    b.poll(110.0)
    assert b.state == HALF_OPEN and lane.probe_due(110.0) and not lane.probe_due(110.0, roomy=True)
    b.acquire(111.0)
    assert lane.probe_due(111.0, roomy=True)  # a trial that has begun goes on
    b.acquire(111.0)
    assert not lane.probe_due(111.0)


def test_the_odds_of_a_view_hold_probes_and_exploration():
    config = RouterConfig(explore=0.2, probe_share=0.1, slow_start_s=0.0)
    r = fleet(3, config=config, breaker=BreakerConfig(jitter=0.0, open_s=1.0))
    r.follow("b2", "why", {}, 0.0)
    odds = {c.backend: c for c in r.rank(Request(), 5.0)}
    assert odds["b2"].probability == pytest.approx(0.1) and odds["b2"].score == inf
    assert odds["b0"].probability == pytest.approx(0.45)
    assert odds["b2"].reason == "half-open: may be given a probe"


def test_reasons_say_what_speaks_for_a_backend():
    r = fleet(2, policy=PredictedCost())
    f = Forecast("b0", 0.0, 60.0, (100.0,) * 7, (100.0,) * 7, occupied=1.5, most=8.0)
    r.swap(ForecastTable(3, 0.0, 600.0, {"b0": f}), 0.0)
    why = {c.backend: c.reason for c in r.rank(Request(), 10.0)}
    assert (
        why["b0"]
        == "1.5 requests of others where 8.0 in all meet the limit; P(latency > 300 ms) = 0.00"
    )
    assert why["b1"] == "no usable forecast, judged by own measurements"
    r._lanes["b1"].nowcast.pace_s = 0.0999
    r.resize({"b1": 0.5})
    why = {c.backend: c.reason for c in r.rank(Request(), 10.0)}
    assert why["b1"] == (
        "99.9 ms per token now; no usable forecast, judged by own measurements; "
        "weight 50% (shed before a breach, or starting slowly)"
    )
    d = r.decide(Request(), 10.0)
    assert d.reasons[0].startswith(f"{d.backend}: ") and "drawn with probability" in d.reasons[0]
    assert d.reasons[1] == "forecast 3, 10 s old" and d.reasons[2].startswith("runner-up ")
    assert (d.forecast_version, d.forecast_age_s, d.mode) == (3, 10.0, "predictive")
    assert d.fallbacks == [{"b0": "b1", "b1": "b0"}[d.backend]]


def test_a_refusal_says_why_for_each_and_when_to_ask_again():
    e = NoBackend((("a", "is closed"), ("b", "is full")), 12.4)
    assert str(e) == "no backend may serve this request: a is closed; b is full; try again in 12 s"
    assert str(NoBackend((), 0.4)) == "no backend may serve this request: the fleet is empty"
    assert "try again in 0 s" in str(NoBackend((), 0.5)) and "again" not in str(NoBackend((), inf))


def test_a_stream_that_is_silent_for_long_counts_as_standing_still():
    r = fleet(1)
    d = r.decide(Request(tokens_out=100), 0.0)
    n = r._lanes["b0"].nowcast
    assert r.progress(d, 0, 4.0) and n.new_s == 0.0
    assert r.progress(d, 0, 5.5) and n.new_s == 1.5
    assert r.progress(d, 0, 6.0) and n.new_s == 2.0
    assert r.progress(d, 10, 8.0) and (n.new_s, n.new_tok) == (2.0, 0.0)
    assert r.progress(d, 30, 9.0) and (n.new_s, n.new_tok) == (3.0, 20.0)


# ---- sessions and reserved places


def test_half_of_the_names_go_when_there_are_too_many():
    newest = _Newest(6)
    for name in "ab":
        newest.put(name, (name, "session"))
    assert len(newest.recent) == 2
    newest.put("c", ("c", "session"))
    assert (len(newest.recent), len(newest.older)) == (0, 3)
    assert newest.get("a") == ("a", "session") and "a" in newest.recent  # asked for lately
    assert newest.get("x") is None and newest.get(None) is None
    homes = Homes()
    homes.note(Request(), "a")
    assert homes.of(Request()) is None
    homes.note(Request(prefix="p"), "a")
    homes.note(Request(session="s"), "b")
    assert homes.of(Request(session="s", prefix="p")) == ("b", "session")
    assert homes.of(Request(session="t", prefix="p")) == ("a", "prefix")


class Scored(WeightedPlan):
    "Draws by weight; the scores are given."

    def __init__(self, weights, given):
        super().__init__(weights)
        self.given = given

    def scores(self, s, now):
        return self.given


@pytest.mark.parametrize(
    "scores, leaves",
    [
        ([3.0, 2.0, 1.0], [2]),
        ([2.0, 1.0, 1.0], []),
        ([2.1, 1.0, 1.0], [1, 2]),
        ([-1.0, -2.0, -3.0], [2]),
        ([1.0, 0.0, 4.0], [1]),
    ],
    ids=str,
)
def test_a_request_leaves_its_home_for_half_of_its_score(scores, leaves):
    home = AtHome(Scored([1.0, 2.0, 5.0], scores), Seat(0, 0, 4.0), "why")
    s = Signals([1, 0, 0])
    by_hand = [0.0, *(w / 8 if i in leaves else 0.0 for i, w in ((1, 2.0), (2, 5.0)))]
    by_hand[0] = 1.0 - sum(by_hand)
    assert home.probabilities(s, 0.0) == pytest.approx(by_hand)
    assert [home.chance(i, s, 0.0) for i in range(3)] == pytest.approx(by_hand)
    seen = [home.choose(lambda u=(k + 0.5) / 80: u, s, 0.0) for k in range(80)]
    assert [seen.count(i) / 80 for i in range(3)] == pytest.approx(by_hand)
    assert home.named(s, 0.0) == (0, "why")


def test_a_home_that_is_full_is_left_to_whoever_the_policy_draws():
    home = AtHome(Scored([1.0, 2.0, 5.0], [1.0, 1.0, 1.0]), Seat(0, 0, 4.0), "why")
    for running, odds in ((3, [1.0, 0.0, 0.0]), (4, [0.125, 0.25, 0.625])):
        s = Signals([running, 0, 0])
        assert home.probabilities(s, 0.0) == pytest.approx(odds)
        assert home.choose(lambda: 0.9, s, 0.0) == (0 if running == 3 else 2)
        assert home.named(s, 0.0)[0] == (0 if running == 3 else -1)


def test_reserved_places_are_used_up_in_order():
    plan = ReservedFirst(WeightedPlan([1.0, 1.0, 2.0]), [Seat(2, 2, 1.0), Seat(0, 0, 2.0)])
    for in_flight, odds, named in (
        ([0, 0, 0], [0.0, 0.0, 1.0], 2),
        ([1, 0, 1], [1.0, 0.0, 0.0], 0),
        ([2, 0, 1], [0.25, 0.25, 0.5], -1),
    ):
        s = Signals(in_flight)
        assert plan.probabilities(s, 0.0) == odds and plan.named(s, 0.0)[0] == named
        assert plan.choose(lambda: 0.3, s, 0.0) == (named if named >= 0 else 1)


def test_after_a_restart_whose_pace_is_unknown_counts_as_usual():
    first = fleet(3, policy=OwnPace(gamma=2.0))
    first.roll(0.0)
    for name, tokens in (("b0", 10), ("b1", 20)):
        first.observe(Outcome(name, 0.0, 2_000.0, tokens_out=tokens))
    then = fleet(3, policy=OwnPace(gamma=2.0))
    assert then.restore(first.memo()) == []
    assert then._signals.slow == pytest.approx([0.2**2, 0.1**2, 0.2**2])


def test_a_backend_whose_steps_or_breaker_run_ahead_of_the_clock_is_set_back():
    for ahead in ("steps", "breaker"):
        lane = fleet(1)._lanes["b0"]
        assert not lane.runs_ahead(100.0, 5.0)
        if ahead == "steps":
            lane.features.observe(-1, 120_000_000, 1_000, True)
        else:
            lane.breaker.poll(120.0)
        assert lane.runs_ahead(100.0, 5.0) and not lane.runs_ahead(115.0, 5.0)
        assert lane.runs_ahead(114.9, 5.0)
        lane.failed_s = lane.answered_s = lane.joined_s = lane.recovered_s = 130.0
        lane.nowcast.heard_s = lane.nowcast.streamed_s = 130.0
        lane.set_back(100.0)
        assert not lane.runs_ahead(100.0, 5.0)
        times = lane.failed_s, lane.answered_s, lane.joined_s, lane.recovered_s
        assert times == (100.0,) * 4
        assert (lane.nowcast.heard_s, lane.nowcast.streamed_s) == (100.0, 100.0)


def test_a_reason_tells_of_a_change_that_is_foreseen():
    r = fleet(2, policy=OwnPace())
    slower = tuple(1.3 * ms for ms in (98.0, 99.0, 99.5, 100.0, 100.5, 101.0, 102.0))
    f = Forecast("b0", 0.0, 60.0, slower, slower, now_ms=100.0)
    r.swap(ForecastTable(1, 0.0, 600.0, {"b0": f}), 0.0)
    why = {c.backend: c.reason for c in r.rank(Request(), 10.0)}
    assert why["b0"].startswith("1.29 times that foreseen; P(latency > 300 ms)")
    assert "foreseen" not in why["b1"]


def test_an_attempt_begins_at_a_whole_microsecond_the_nearest():
    r = fleet(1)
    for now, us in ((1.7, 1_700_000), (2.0000004, 2_000_000), (2.0000006, 2_000_001)):
        d = r.claim(Request(), "b0", now)
        assert r._lanes["b0"].features.running[d.id << 4] == us
    d = r.decide(Request(), 59.0)
    r.observe(Outcome("b0", 59.9999996, 0.0, decision=d.id))
    opened = r._lanes["b0"].features.open
    assert (opened.start_s, opened.n) == (60, 1)


def test_an_outcome_of_an_attempt_that_never_was_keeps_its_date():
    r = fleet(1)
    d = r.decide(Request(), 50.0)
    early = Outcome("b0", 40.0, 5.0, decision=d.id)
    assert r.dated(early, 60.0).ts_s == 50.0
    never = Outcome("b0", 40.0, 5.0, decision=d.id, attempt=1)
    assert r.dated(never, 60.0) is never


def test_views_are_made_anew_once_a_key_is_dead():
    r = fleet(1)
    r.roll(0.0)
    refused = [Outcome("b0", 0.0, 5.0, status=401) for _ in range(10)]
    stamps = []
    for o in refused:
        r.observe(o)
        stamps.append(r._views.stamp)
    assert stamps[0] == stamps[8] < stamps[9] and list(r.dead_keys()) == ["b0"]


def test_a_trial_waits_for_a_probe_three_times_what_answers_take_or_its_limit():
    for took_ms, patience_s in ((200.0, 0.6), (50.0, 0.3)):
        r = fleet(1, breaker=BreakerConfig(jitter=0.0, open_s=1.0))
        r.roll(0.0)
        r.observe(Outcome("b0", 0.0, took_ms))
        r.follow("b0", "why", {}, 1.0)
        assert r.decide(Request(), 5.0).is_probe
        assert r._lanes["b0"].breaker.trial.patience_s == pytest.approx(patience_s)
