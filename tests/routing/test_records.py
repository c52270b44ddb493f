"What travels between the parts, by hand: what is refused, what things cost, quantiles and tails."

from math import exp, inf, log, nan

import pytest

from arcpoint_ce.routing.records import (
    LEVELS,
    Backend,
    Forecast,
    ForecastTable,
    Outcome,
    Request,
    Step,
    Tier,
    _at_level,
    _between,
    _to_us,
    bucket_edges_us,
    bucket_of,
    exceedance,
    foreseen_change,
    quantile_ms,
    serves,
)

AMOUNTS = ("capacity", "slo_ms", "context_tok", "rpm", "tpm", "tpm_in", "rpd", "most_at_once")
PRICES = ("price_in", "price_out", "price_in_cached")


@pytest.mark.parametrize("name", AMOUNTS)
def test_an_amount_of_a_backend_is_positive(name):
    for value in (0, -1, inf, nan):
        with pytest.raises(ValueError, match=f"'a': {name} must be positive, got"):
            Backend("a", **{name: value})
    if name in ("rpm", "rpd", "most_at_once"):  # half a request cannot be kept to
        with pytest.raises(ValueError, match=name):
            Backend("a", **{name: 0.5})
    else:
        assert getattr(Backend("a", **{name: 0.5}), name) == 0.5
    with pytest.raises(TypeError, match=f"'a': {name} must be a number, got '4'"):
        Backend("a", **{name: "4"})


@pytest.mark.parametrize("name", PRICES)
def test_a_price_may_be_zero_and_no_less(name):
    for value in (-0.01, inf, nan):
        with pytest.raises(ValueError, match=f"'a': {name} must be 0 or more, got"):
            Backend("a", **{name: value})
    for value in (0, 0.5):
        assert getattr(Backend("a", **{name: value}), name) == value


def test_a_quality_is_a_share_and_a_name_is_not_empty():
    for value in (-0.01, 1.01, nan):
        with pytest.raises(ValueError, match="quality must be within 0..1"):
            Backend("a", quality=value)
    assert [Backend("a", quality=q).quality for q in (0, 1, None)] == [0, 1, None]
    with pytest.raises(ValueError, match="name must not be empty"):
        Backend("")


def test_a_tier_has_a_limit_and_a_probability_below_one():
    for bad in (
        dict(slo_ms=0.0),
        dict(slo_ms=inf),
        dict(ttft_limit_ms=0.0),
        dict(ttft_limit_ms=inf),
        dict(confidence=0.0),
        dict(confidence=1.0),
    ):
        with pytest.raises(ValueError, match=f"Tier 'gold': {next(iter(bad))} must be"):
            Tier("gold", **bad)
    assert (Tier("gold").slo_ms, Tier("gold").confidence) == (300.0, 0.9)
    assert Tier("gold", 0.5, 0.01, ttft_limit_ms=0.5).ttft_limit_ms == 0.5


def test_what_a_request_costs_with_and_without_a_cache():
    asked = Request(tokens_in=3_000_000, tokens_out=500_000)
    cached = Backend("a", price_in=2.0, price_out=8.0, price_in_cached=0.5)
    assert asked.cost_usd(cached) == 10.0 and asked.cost_usd(cached, cached=True) == 5.5
    assert asked.cost_usd(Backend("a", price_in=2.0), cached=True) == 6.0


@pytest.mark.parametrize(
    "backend, request_, why",
    [
        (dict(models=("m",)), dict(model="n"), "does not serve model n"),
        (dict(models=("m/*",)), dict(model="m/x"), None),
        (dict(models=("m/x",)), dict(model="M/X"), "does not serve model M/X"),
        (dict(models=("m",)), dict(), None),
        (dict(tasks=("chat",)), dict(task="embed"), "does not serve task embed"),
        (dict(tiers=("gold",)), dict(tier="free"), "does not serve tier free"),
        (dict(context_tok=10), dict(tokens_in=11), "input of 11 tok exceeds its 10"),
        (dict(context_tok=10), dict(tokens_in=10), None),
        (dict(region="eu"), dict(regions=("us", "uk")), "is in region eu, not in us or uk"),
        (dict(region="eu"), dict(regions=("us", "eu")), None),
        (dict(tags=("json",)), dict(tags=("json", "vision", "x")), "lacks vision, x"),
        (dict(tags=("json",)), dict(tags=("json",)), None),
        (dict(quality=0.7), dict(min_quality=0.8), "quality 0.70, under the floor of 0.80"),
        (dict(quality=0.8), dict(min_quality=0.8), None),
        (dict(), dict(min_quality=0.1), "quality unknown, under the floor of 0.10"),
        (dict(), dict(min_quality=0.0), None),
        (
            dict(price_out=1.0),
            dict(tokens_out=2_000_000, max_cost_usd=1.5),
            "costs 2.0000 USD, over the limit of 1.5000",
        ),
        (dict(price_out=1.0), dict(tokens_out=2_000_000, max_cost_usd=2.0), None),
    ],
    ids=str,
)
def test_what_a_backend_may_not_serve(backend, request_, why):
    assert serves(Backend("a", **backend), Request(**request_)) == why


def test_an_outcome_is_refused_where_it_would_poison_a_statistic():
    for bad, why in (
        (dict(latency_ms=None), "a successful outcome needs latency_ms"),
        (dict(latency_ms=-1.0), "latency_ms must be finite"),
        (dict(latency_ms=inf), "latency_ms must be finite"),
        (dict(latency_ms=nan), "latency_ms must be finite"),
        (dict(latency_ms=1.0, quality=inf), "quality must be finite"),
        (dict(latency_ms=1.0, quality=-inf), "quality must be finite"),
        (dict(latency_ms=1.0, quality=nan), "quality must be finite"),
        (dict(latency_ms=1.0, retry_after_s=-1.0), "retry_after_s must be finite"),
        (dict(latency_ms=1.0, retry_after_s=inf), "retry_after_s must be finite"),
    ):
        with pytest.raises(ValueError, match=why):
            Outcome("a", 0.0, **bad)
    assert Outcome("a", 0.0, 0.0, quality=-2.0, retry_after_s=0.0).ok
    assert not Outcome("a", 0.0, None, ok=False).ok


@pytest.mark.parametrize(
    "said, ok, kind",
    [
        (dict(), True, "success"),
        (dict(ok=False), False, "backend"),
        (dict(status=200), True, "success"),
        (dict(status=200, ok=False), False, "backend"),
        (dict(status=503), False, "backend"),
        (dict(error="429"), False, "throttled"),
        (dict(status=400), False, "caller"),
        (dict(error="cancelled"), False, "cancelled"),
    ],
    ids=str,
)
def test_whose_fault_an_outcome_was(said, ok, kind):
    o = Outcome("a", 0.0, 5.0, **said)
    assert (o.ok, o.kind) == (ok, kind)


# ---- steps and their quantiles


def test_buckets_leave_no_gap_and_are_a_sixteenth_wide_at_most():
    assert [_to_us(ms) for ms in (0.0, 0.0004, 0.0005, 1.0, 1.2344, 1.2346)] == [
        0,
        0,
        1,
        1000,
        1234,
        1235,
    ]
    assert [bucket_of(us) for us in (0, 15, 16, 17, 31, 32, 33, 34)] == [
        64,
        64,
        64,
        65,
        79,
        80,
        80,
        81,
    ]
    assert bucket_edges_us(64) == (16, 17) and bucket_edges_us(81) == (34, 36)
    end_us = 16
    for bucket in range(64, 500):
        low_us, high_us = bucket_edges_us(bucket)
        assert low_us == end_us and bucket_of(low_us) == bucket_of(high_us - 1) == bucket
        assert (high_us - low_us) / low_us <= 1 / 16
        end_us = high_us


def test_a_step_counts_what_ended_in_it():
    step = Step(60)
    step.add(20_000, True, 5, 7)
    step.add(None, False, 1, 0)
    step.add(40_000, False, 1, 2)
    assert (step.n, step.n_err, step.n_lat, step.latency_us) == (3, 2, 2, 60_000)
    assert (step.tokens_in, step.tokens_out, step.mean_ms) == (7, 9, 30.0)
    assert step.hist == {bucket_of(20_000): 1, bucket_of(40_000): 1}
    step.add(20_001, True)
    assert step.hist[bucket_of(20_000)] == 2 and Step(0).mean_ms is None


def test_quantiles_of_a_step_are_linear_inside_a_bucket():
    step = Step(0)
    for us in (1024, 1030, 1060, 2048):  # buckets from 1024 and 2048 µs on
        step.add(us, True)
    assert bucket_edges_us(bucket_of(1024)) == (1024, 1088)
    assert bucket_edges_us(bucket_of(2048)) == (2048, 2176)
    assert quantile_ms(step, 0.0) == 1.024
    assert quantile_ms(step, 0.375) == pytest.approx((1024 + 64 * 0.5) / 1000)
    assert quantile_ms(step, 0.75) == 1.088
    assert quantile_ms(step, 0.875) == pytest.approx((2048 + 128 * 0.5) / 1000)
    assert quantile_ms(step, 1.0) == 2.176


def test_a_source_s_own_quantiles_stand_in_for_a_histogram():
    step = Step(0, p50_ms=1.0, p90_ms=2.0, p99_ms=3.0)
    assert [quantile_ms(step, q) for q in (0.5, 0.9, 0.99, 0.7)] == [1.0, 2.0, 3.0, None]


# ---- forecasts

RISING = (50.0, 60.0, 80.0, 100.0, 130.0, 200.0, 260.0)


def test_the_tail_beyond_a_limit_is_read_off_the_quantiles():
    for level, value in zip(LEVELS[1:], RISING[1:]):
        assert exceedance(RISING, value) == pytest.approx(1 - level)
    between = exp((log(100.0) + log(130.0)) / 2)
    assert exceedance(RISING, between) == pytest.approx(1 - (0.5 + 0.125))


def test_beyond_the_last_quantiles_the_tail_falls_with_the_distance_in_half_widths():
    width = log(260.0) - log(100.0)
    assert exceedance(RISING, 260.0 * 2.6) == pytest.approx(0.05 * exp(-3.0 * log(2.6) / width))
    width = log(100.0) - log(50.0)
    assert exceedance(RISING, 50.0 / 2.0) == pytest.approx(1 - 0.05 * exp(-3.0 * log(2.0) / width))
    assert exceedance(RISING, 50.0) == pytest.approx(0.95)


def test_quantiles_that_are_all_the_same_are_a_step():
    flat = (100.0,) * 7
    assert exceedance(flat, 101.0) == pytest.approx(0.0, abs=1e-9)
    assert exceedance(flat, 99.0) == pytest.approx(1.0)
    assert _between(3.0, 3.0, 3.0) == 1.0 and _between(3.0, 2.0, 6.0) == 0.25


@pytest.mark.parametrize("bad", [0.0, -1.0, inf, nan])
def test_broken_quantiles_mean_a_sure_breach(bad):
    for place in (0, 3, 6):
        broken = [*RISING]
        broken[place] = bad
        assert exceedance(tuple(broken), 1000.0) == 1.0


def test_a_level_between_two_is_linear_in_log_latency():
    assert [_at_level(RISING, level) for level in LEVELS] == pytest.approx(RISING)
    by_hand = exp(log(130.0) + (log(200.0) - log(130.0)) * (0.8 - 0.75) / 0.15)
    assert _at_level(RISING, 0.8) == pytest.approx(by_hand)
    for level in (0.04, 0.96):
        with pytest.raises(ValueError, match="level must be between 0.05 and 0.95"):
            _at_level(RISING, level)


def forecast(**how) -> Forecast:
    doubled = tuple(2 * x for x in RISING)
    return Forecast(
        **(dict(backend="a", made_s=10.0, horizon_s=60.0, step_ms=RISING, request_ms=doubled) | how)
    )


def test_a_forecast_speaks_of_the_step_and_of_one_request():
    f = forecast()
    assert (f.p50_ms, f.p90_ms, f.interval_ms) == (100.0, 200.0, (60.0, 200.0))
    assert f.p80_ms == _at_level(RISING, 0.8)
    assert f.p_breach(130.0) == pytest.approx(0.25) and f.p_slow(260.0) == pytest.approx(0.25)
    assert f.ok()
    for bad in (0.0, nan, inf):
        assert not forecast(step_ms=(bad,) * 7).ok() and not forecast(request_ms=(bad,) * 7).ok()


@pytest.mark.parametrize(
    "now_ms, how, change",
    [
        (100.0, {}, 2.0 * 0.8),  # the lower quartile of twice as slow
        (1000.0, {}, 0.2 * 1.3),  # the upper quartile of five times as fast
        (200.0, {}, 1.0),  # the middle half holds no change
        (100.0, dict(trust=0.5), 1.6**0.5),
        (100.0, dict(trust=0.0), 1.0),
        (100.0, dict(sure=(0.9, 1.1)), 1.8),
        (400.0, dict(sure=(0.9, 1.1)), 0.55),
        (1.0, {}, 16.0),
        (1e6, {}, 0.25),
        (None, {}, 1.0),
        (0.0, {}, 1.0),
        (inf, {}, 1.0),
        (100.0, dict(step_ms=(nan,) * 7), 1.0),
    ],
    ids=str,
)
def test_how_much_slower_one_request_becomes(now_ms, how, change):
    assert foreseen_change(forecast(**how), now_ms) == pytest.approx(change)


def test_a_table_hands_out_only_what_is_fresh_and_sound():
    f = forecast()
    table = ForecastTable(1, 100.0, 60.0, {"a": f, "b": forecast(step_ms=(nan,) * 7)})
    assert table.usable("a", 160.0) is f and table.usable("a", 160.1) is None
    assert table.usable("b", 100.0) is table.usable("c", 100.0) is None
    assert (table.age_s(90.0), table.age_s(130.0)) == (0.0, 30.0)
    assert ForecastTable().age_s(0.0) == inf and len(table) == 2 and list(table) == ["a", "b"]
