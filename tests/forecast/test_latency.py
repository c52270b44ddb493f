"""The forecaster and its scores: no leak from the future, live equals log, and metrics that a
constant cannot win.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcpoint_ce.forecast import latency as fc
from arcpoint_ce.forecast.clocks import fit_demand, replay_load
from arcpoint_ce.forecast.latency import (
    ArtefactError,
    LatencyForest,
    Pulse,
    Ticker,
    _Conformal,
    _from_grid,
    _joined,
    _request_quantiles,
    _step_quantiles,
    predict,
)
from arcpoint_ce.proof.skill import (
    _exercise_part,
    _Fold,
    _fold_forecasts,
    _naive_rules,
    _onset_scores,
    _onset_table,
    _rule_scores,
    _split_folds,
    evaluate,
    onset_steps,
)
from arcpoint_ce.routing.records import Backend, Outcome, Step
from arcpoint_ce.routing.router import Router
from arcpoint_ce.telemetry.frames import to_steps
from arcpoint_ce.telemetry.requests import load_requests
from arcpoint_ce.telemetry.traces import exercise_steps

QUANTILES = ["p05_ms", "p10_ms", "p25_ms", "p50_ms", "p75_ms", "p90_ms", "p95_ms"]


def fleet(n=420, seed=0, names=("a", "b", "c")):
    "Three backends that share troubles; one of them has holes."
    rng, rows = np.random.default_rng(seed), []
    shared = np.convolve(rng.normal(0, 1, n + 40), np.ones(20) / 4, "same")[20 : n + 20]
    for j, b in enumerate(names):
        count = rng.poisson(20 + 5 * j, n)
        ms = (80 + 60 * j) * np.exp(0.15 * np.roll(shared, j) + rng.normal(0, 0.08, n))
        hole = (rng.random(n) < 0.1) if b == "c" else np.zeros(n, bool)
        for t in range(n):
            k = 0 if hole[t] else int(count[t])
            rows.append((b, 60 * t, k, 0, k, int(k * 1000 * ms[t]), 0, 0))
    t = pd.DataFrame(
        rows,
        columns=[
            "backend",
            "start_s",
            "n",
            "n_err",
            "n_lat",
            "latency_us",
            "tokens_in",
            "tokens_out",
        ],
    )
    return t.sort_values(["start_s", "backend"], ignore_index=True)


def small(**kw):
    return LatencyForest(**(dict(trees=20, n_jobs=1) | kw))


@pytest.fixture(scope="module")
def table():
    return fleet()


@pytest.fixture(scope="module")
def fitted(table):
    return small().fit(table[table.start_s < 60 * 300])


def scrambled(t, since):
    "The same table with everything from `since` on replaced by nonsense."
    t = t.copy()
    late = t.start_s >= since
    t.loc[late, ["n", "n_lat"]] = 3
    t.loc[late, "latency_us"] = 3 * 5_000_000
    return t


def test_forecasts_do_not_know_the_future(table, fitted):
    a, b = predict(fitted, table, 60 * 300), predict(fitted, scrambled(table, 60 * 360), 60 * 300)

    def before(x):
        return x[x.start_s < 60 * 360].drop(columns="actual_ms").reset_index(drop=True)

    pd.testing.assert_frame_equal(before(a), before(b), check_exact=True)
    assert not a[QUANTILES].equals(b[QUANTILES])  # later ones must differ, or nothing was tested


@pytest.mark.slow
def test_rules_and_folds_do_not_know_the_future(table):
    fold = _Fold(60 * 300, 60 * 305, 60 * 400)
    a, b = (_fold_forecasts(small(), t, fold) for t in (table, scrambled(table, 60 * 350)))
    known = [c for c in a if c not in ("actual_ms",)]

    def cut(x):
        return x.loc[x.start_s < 60 * 350, known].reset_index(drop=True)

    pd.testing.assert_frame_equal(cut(a), cut(b), check_exact=True)


def test_a_fit_depends_on_its_rows_alone(table, fitted):
    again = small().fit(scrambled(table, 60 * 300)[lambda t: t.start_s < 60 * 300])
    assert again.data_sha256_ == fitted.data_sha256_ and again.models_ == fitted.models_
    assert all(
        np.array_equal(x, again.forest_.arrays()[k], equal_nan=True)
        for k, x in fitted.forest_.arrays().items()
    )


def test_gap_and_order_of_folds():
    times = 60 * np.arange(600)
    for f in _split_folds(times, 5, 0.5, 3):
        assert f.test_from_s - f.train_end_s >= 300 and f.test_from_s <= f.test_to_s
    with pytest.raises(ValueError, match="folds must be 1"):
        _split_folds(times, 5, 0.5, 3, gap=False)


def test_live_equals_log_for_a_pulse(table, fitted):
    said = predict(fitted, table, since_s=60 * 300)
    pulse, live = Pulse(fitted), []
    for start, rows in table.groupby("start_s", sort=True):
        for name, step in to_steps(rows):
            pulse.push(name, step)
        if start >= 60 * 300:
            live += [(n, start, *x.step_ms) for n, x in pulse.forecast(promise=True).items()]
    live = pd.DataFrame(live, columns=["backend", "start_s", *QUANTILES]).sort_values(
        ["start_s", "backend"]
    )
    want = said.sort_values(["start_s", "backend"])
    assert (
        np.array_equal(live[QUANTILES].to_numpy(), want[QUANTILES].to_numpy()) and len(live) > 300
    )


def outcomes(minutes=70, seed=0):
    rng, out = np.random.default_rng(seed), []
    for b, ms in (("a", 120.0), ("b", 300.0)):
        for t in range(minutes):
            for at in np.sort(rng.uniform(60 * t, 60 * t + 55, 1 + int(rng.poisson(6)))):
                out.append(
                    Outcome(
                        b,
                        float(np.round(at, 6)),
                        float(np.round(ms * np.exp(rng.normal(0, 0.3)), 3)),
                    )
                )
    return sorted(out, key=lambda o: o.ts_s + o.latency_ms / 1000)


def test_live_router_equals_request_log(tmp_path):
    """The same outcomes through the router and the ticker, and through a log file, SQL and
    `predict`.
    """
    rows = outcomes()
    path = tmp_path / "log.csv"
    pd.DataFrame(
        [dict(ts=f"{o.ts_s:.6f}", backend=o.backend, latency_ms=o.latency_ms) for o in rows]
    ).to_csv(path, index=False)
    with load_requests(path) as log:
        steps = log.steps()
    f = small().fit(steps[steps.start_s < 60 * 50])
    router = Router([Backend("a"), Backend("b")])
    ticker, waiting, live = Ticker(f, router), list(rows), {}
    ticker.hook()
    for minute in range(1, 65):
        while waiting and waiting[0].ts_s + waiting[0].latency_ms / 1000 < 60 * minute:
            router.observe(waiting.pop(0))
        for name, x in ticker.tick(60.0 * minute).items():
            live[name, 60 * (minute - 1)] = x.step_ms
    want = {
        (r.backend, r.start_s): tuple(getattr(r, q) for q in QUANTILES)
        for r in predict(f, steps, since_s=0).itertuples()
    }
    both = sorted(set(live) & set(want))
    assert len(both) > 100 and all(live[k] == want[k] for k in both)


def test_holes_and_missing_steps(table):
    holed = table[~((table.backend == "b") & table.start_s.between(60 * 100, 60 * 130))]
    f = small().fit(holed[holed.start_s < 60 * 300])
    said = predict(f, holed, 60 * 300)
    assert np.isfinite(said[QUANTILES].to_numpy()).all() and (
        said[QUANTILES].diff(axis=1).iloc[:, 1:] >= 0
    ).all(axis=None)
    assert {"a", "b", "c"} == set(said.backend)
    with pytest.raises(ValueError, match="no backend has enough"):
        small().fit(table.assign(n_lat=0))
    with pytest.raises(ValueError, match="not a multiple"):
        small(horizon_s=90).fit(table)


def test_a_new_backend_gets_the_fleets_prior_and_a_wide_interval(fitted):
    pulse = Pulse(fitted)
    for k in range(30):
        for n in ("a", "new"):
            pulse.push(n, Step(60 * k, n=20, n_lat=20, latency_us=20 * 90_000))
    x = pulse.forecast()

    def width(f):
        return np.log(f.interval_ms[1] / f.interval_ms[0])

    assert 60 < x["new"].p50_ms < 140 and width(x["new"]) > 1.2 * width(x["a"])
    pulse.push("cold", Step(60 * 30))
    assert "cold" not in pulse.forecast()


def test_a_tampered_model_is_refused(fitted, tmp_path, table):
    fc.save(fitted, tmp_path)
    again = fc.load(tmp_path)
    pd.testing.assert_frame_equal(
        predict(again, table, 60 * 350), predict(fitted, table, 60 * 350), check_exact=True
    )
    for name in sorted(p.name for p in tmp_path.iterdir()):
        whole = (tmp_path / name).read_bytes()
        for bad in (
            whole[:-20],
            whole[: len(whole) // 2]
            + bytes([whole[len(whole) // 2] ^ 1])
            + whole[len(whole) // 2 + 1 :],
        ):
            (tmp_path / name).write_bytes(bad)
            with pytest.raises(ArtefactError):
                fc.load(tmp_path)
        (tmp_path / name).write_bytes(whole)
    other = tmp_path / "other"
    fc.save(small(seed=1).fit(table[table.start_s < 60 * 200]), other)
    (tmp_path / "scatter.json").write_bytes((other / "scatter.json").read_bytes())
    (tmp_path / "scatter.npz").write_bytes((other / "scatter.npz").read_bytes())
    with pytest.raises(ArtefactError, match="scatter"):
        fc.load(tmp_path)


def test_what_if_is_monotone():
    data = exercise_steps(700, seed=1)
    pulse = Pulse(small().fit(data[data.start_s < data.start_s.iloc[600]]))
    for name, step in to_steps(data):
        pulse.push(name, step)
    curve = [
        pulse.forecast({"exercise": float(n)}, promise=False)["exercise"] for n in range(0, 600, 15)
    ]
    for q in range(7):
        assert [c.step_ms[q] for c in curve] == sorted(c.step_ms[q] for c in curve)
    assert curve[-1].p50_ms > 2 * curve[0].p50_ms


def test_only_matured_truth_moves_an_interval():
    c = _Conformal([0.0] * 50, ahead=5)
    c.promise(10, 0.0, 1.0)
    before = (c.low, c.high, list(c.errors))
    for k in range(11, 15):
        c.mature(k, 9.0)
    assert (c.low, c.high, list(c.errors)) == before
    c.mature(15, 9.0)
    assert c.high < before[1] and c.errors[-1] == 9.0 and c.ordered == sorted(c.errors)


def test_onsets_by_hand():
    flat = np.full(40, 100.0)
    came = flat.copy()
    came[20:25] = 400.0

    def scores(said):
        rows = pd.DataFrame(
            dict(backend="a", about_s=60 * np.arange(40), actual_ms=came, ours=said)
        )
        return _onset_scores(rows, "ours", 300.0, 300, 60)

    exact, late2 = came.copy(), flat.copy()
    late2[22:25] = 400.0
    assert scores(exact)["onset_recall"] == 1 and scores(exact)["lead_min"] == 5
    assert scores(late2)["onset_recall"] == 0 and scores(late2)["onset_precision"] == 0
    always = np.full(40, 400.0)
    assert scores(always)["onset_recall"] == 0 and scores(always)["warnings"] == 0
    unknown = exact.copy()
    unknown[18] = np.nan
    assert scores(unknown)["onsets"] == 0  # not judged, not a hit
    twice = came.copy()
    twice[26:30] = 400.0  # no calm before: no second onset
    assert len(_onset_table(twice, twice, 300.0, 5, 60)) == 2


def test_a_minute_of_noise_is_no_onset():
    came = np.full(60, 100.0)
    came[15] = 900.0  # a minute of noise, high as it is
    came[30:36] = 310.0  # long enough, but a tenth over the limit it never is
    came[48:52] = 400.0  # trouble
    came[44] = 350.0  # noise shortly before it does not hide it
    rows = pd.DataFrame(
        dict(backend="a", about_s=60 * np.arange(60), actual_ms=came, ours=came.copy())
    )
    scores = _onset_scores(rows, "ours", 300.0, 300, 60)
    assert scores["onsets"] == 1
    assert scores["warnings"] == 3, "a warning is one however short it is"
    came[49:51] = 200.0  # a pause does not end trouble
    assert onset_steps(came, 300.0, 5, 60).tolist() == [48]


def test_routing_and_forecast_count_the_same_onsets():
    from inspect import getsource

    from arcpoint_ce.proof import counterfactual, skill

    assert counterfactual.onset_steps is skill.onset_steps
    assert "onset_steps(" in getsource(counterfactual._onset_table)
    assert "onset_steps(" in getsource(skill._onset_table)


def test_a_constant_and_an_always_alarm_lose():
    data = exercise_steps(900, seed=0)
    e = evaluate(data, small(), train_share=0.6, forest_rule=False, draws=0, progress=False)
    rows = e.forecasts.assign(
        constant=e.forecasts.actual_ms.median(), mean=e.forecasts.actual_ms.mean(), alarm=1e4
    )
    for rule in ("constant", "mean", "alarm"):
        s, o = _rule_scores(rows, rule), _onset_scores(rows, rule, 300.0, 300, 60)
        assert s["r2"] <= 1e-9 and o["onset_recall"] == 0
    assert (
        _rule_scores(rows, "alarm")["skill"] < 0 and _rule_scores(rows, "persistence")["skill"] == 0
    )
    assert _onset_scores(rows, "persistence", 300.0, 300, 60)["onset_recall"] == 0
    walk = rows.assign(actual_ms=100 + np.random.default_rng(0).normal(0, 1, len(rows)).cumsum())
    walk = walk.assign(persistence=walk.actual_ms.shift(5), constant=walk.actual_ms.median())
    assert _rule_scores(walk, "constant")["skill"] <= 0


def test_naive_rules_see_the_past_only():
    x = np.random.default_rng(0).lognormal(4, 1, 200)
    y = x.copy()
    y[150:] = 1.0
    pd.testing.assert_frame_equal(
        _naive_rules(x, 5, 24)[:150], _naive_rules(y, 5, 24)[:150], check_exact=True
    )
    for horizon, period in ((5, 24), (30, 24)):  # the seasonal rule of a perfect cycle is perfect
        wave = 100 + 10 * np.sin(2 * np.pi * np.arange(200) / 24)
        s = _naive_rules(wave, horizon, period).seasonal[60 : 200 - horizon]
        assert np.allclose(s, wave[60 + horizon :])


def test_honest_path_has_not_seen_its_cycle():
    load = exercise_steps(1200, seed=0).n.to_numpy(float)
    load[340:360] += 500.0  # one cycle unlike the others
    d, honest = fit_demand(load, 0, 5)
    plain = replay_load(d, load, 0)
    assert len(d.season.profiles) >= 1

    def err(p):
        return np.abs(p[100:-5] - load[105:]).mean()

    assert err(honest) >= err(plain)


def test_exercise_is_foreseen():
    "A small run of the published protocol; the full figures are in the forecast report."
    m, rows = _exercise_part("published", seed=7, trees=40, forest_rule=False)
    assert m["mae_ms"] < 10 < 40 < m["persistence_mae_ms"] and m["oracle_mae_ms"] < m["mae_ms"]
    assert len(rows.dropna(subset=["actual_ms"])) == 199


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("ARCPOINT_DATA"),
    reason="ARCPOINT_DATA is not set: the petshop series are not at hand",
)
def test_petshop_beats_persistence_and_naive_rules():
    path = Path(os.environ["ARCPOINT_DATA"]) / "telemetry/petshop_low_traffic/noissue/metrics.csv"
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    from arcpoint_ce.telemetry.source import load_steps

    e = evaluate(
        load_steps(path, "petshop").steps,
        small(trees=40),
        forest_rule=False,
        draws=100,
        progress=False,
    )
    m = e.metrics
    assert (
        m["mae_ratio_geomean"] < 0.82
        and m["vs_best_naive_geomean"] < 1
        and 0.77 < m["coverage_80"] < 0.83
    )
    assert m["mae_ratio_geomean_high"] < 1 and m["interval_score"] <= m["interval_score_split"]


# ---- intervals by hand


@pytest.mark.parametrize("level, value", [(0.0, 0.0), (0.5, 15.0), (0.9, 34.0), (1.0, 40.0)])
def test_between_points_of_a_grid_a_quantile_is_linear(level, value):
    assert _from_grid((0.0, 10.0, 20.0, 40.0), level) == pytest.approx(value)


NINE = [3.0, 1.0, 2.0, 9.0, 5.0, 4.0, 8.0, 7.0, 6.0]


@pytest.mark.parametrize(
    "level, value",
    [
        (0.02, 1.0),
        (0.1, 1.0),
        (0.25, 2.0),
        (0.45, 4.0),
        (0.5, 5.0),
        (0.55, 6.0),
        (0.75, 8.0),
        (0.9, 9.0),
        (0.99, 9.0),
    ],
)
def test_a_quantile_of_past_errors_is_an_order_statistic_rounded_outwards(level, value):
    assert _Conformal(NINE, ahead=1).quantile(level) == value


def test_a_band_without_errors_is_wide_and_one_with_few_leans_on_the_fleets():
    assert [_Conformal([], 1).quantile(level) for level in (0.1, 0.49, 0.5, 0.9)] == [-3, -3, 3, 3]
    band = _Conformal(NINE, 1, fleet=(-10.0, 10.0))
    assert band.quantile(0.9) == pytest.approx((9 * 9.0 + 100 * 8.0) / 109)
    assert band.quantile(0.1) == pytest.approx((9 * 1.0 - 100 * 8.0) / 109)
    assert band.ends() == (band.quantile(0.1), band.quantile(0.9))


def test_a_miss_moves_its_tail_outwards_and_a_hit_moves_it_inwards_within_bounds():
    band = _Conformal(NINE, 1, rate=0.01)
    assert band.moved(0.1, missed=False) == pytest.approx(0.101)
    assert band.moved(0.1, missed=True) == pytest.approx(0.091)
    assert (band.moved(0.02, True), band.moved(0.25, False)) == (0.02, 0.25)
    band.low, band.high = 0.1, 0.2
    assert band.ends() == (1.0, 8.0)


def test_a_forecast_becomes_an_error_when_its_step_has_closed():
    band = _Conformal(NINE, ahead=2, rate=0.01)
    band.promise(10, centre=5.0, size=2.0)  # about step 12: from 5 + 2 * 1 to 5 + 2 * 9
    band.mature(11, 100.0)
    assert len(band.due) == 1 and len(band.errors) == 9
    band.mature(12, 6.0)  # half a unit: below the lower end
    assert band.errors[-1] == 0.5 and band.ordered[0] == 0.5 and not band.due
    assert (band.low, band.high) == pytest.approx((0.091, 0.101))
    band.promise(12, 5.0, 2.0)
    band.mature(14, 5.0 + 2.0 * 9.5)
    assert (band.low, band.high) == pytest.approx((0.092, 0.092)) and band.errors[-1] == 9.5
    band.promise(13, 5.0, 2.0)
    band.mature(15, None)  # nothing was measured
    band.promise(14, 5.0, 2.0)
    band.mature(17, 6.0)  # too late for step 16
    assert not band.due and len(band.errors) == 11


def test_a_band_keeps_the_newest_errors_in_order_of_size():
    band = _Conformal([5.0] + [1.0] * 999, ahead=1)
    band.remember(0.5)
    assert (band.ordered[0], band.ordered[-1], len(band.ordered)) == (0.5, 1.0, 1000)
    assert len(band.errors) == 1000 and band.errors[-1] == 0.5


def test_a_steps_quantiles_keep_their_proportion_to_the_adaptive_tails():
    band = _Conformal([k / 100 for k in range(-49, 50)], ahead=1)  # rank = 100 * level
    centre, size = 3.0, 2.0
    levels = (0.05, 0.1, 0.25, None, 0.75, 0.9, 0.95)
    by_hand = [centre + size * band.quantile(v) if v else centre for v in levels]
    assert _step_quantiles(band, centre, size) == pytest.approx(by_hand)
    band.low, band.high = 0.2, 0.04
    levels = (0.1, 0.2, 0.45, None, 0.9, 0.96, 0.98)
    by_hand = [centre + size * band.quantile(v) if v else centre for v in levels]
    assert _step_quantiles(band, centre, size) == pytest.approx(by_hand)
    band.low, band.high = 0.04, 0.2
    levels = (0.02, 0.04, 0.1, None, 0.55, 0.8, 0.9)
    by_hand = [centre + size * band.quantile(v) if v else centre for v in levels]
    assert _step_quantiles(band, centre, size) == pytest.approx(by_hand)


@pytest.mark.parametrize("error", [0.0, 1.0, -1.0])
def test_a_steps_quantiles_always_rise(error):
    q = _step_quantiles(_Conformal([error] * 50, ahead=1), 3.0, 2.0)
    assert q[3] == 3.0 and all(b - a > 0.9e-9 for a, b in zip(q, q[1:]))
    assert q[0] > 0.9 and q[-1] < 5.1


def test_independent_distances_join_as_the_root_of_squares():
    assert [_joined(*x) for x in ((3, 4), (-3, -4), (3, -4), (4, -3), (2, -2))] == [
        *(5.0, -5.0, -5.0, 5.0),
        pytest.approx(8**0.5),
    ]
    step, spread = [1.0, 2, 3, 4, 5, 6, 8], (-4.0, -3, -2, 0.5, 1.5, 2.5, 3.5)
    middle = 4.5
    assert _request_quantiles(step, spread) == pytest.approx(
        [middle + _joined(a - 4, b - 0.5) for a, b in zip(step, spread)]
    )
    assert _request_quantiles(step, spread)[6] == pytest.approx(middle + 5.0)


@pytest.mark.parametrize("seed", range(5))
def test_no_surge_of_the_exercise_is_noise(seed):
    "Its stored figures were counted before noise was told apart; they stay as they are."
    for memoryless in (False, True):
        steps = exercise_steps(5000, seed, memoryless=memoryless)
        latency_ms = (steps.latency_us / steps.n_lat / 1000).to_numpy(float)
        every = onset_steps(latency_ms, 300.0, 5, 60, depth=1.0, length_s=0.0)
        assert len(every) > 30 and list(every) == list(onset_steps(latency_ms, 300.0, 5, 60))
