"""What a replay may claim: outcomes that the log holds, and estimates with the requests they rest
on.
"""

import numpy as np
import pandas as pd
import pytest

from arcpoint_ce.proof.counterfactual import (
    _judge_moves,
    exercise_trio,
    make_stage,
    study,
    study_metrics,
)
from arcpoint_ce.proof.evidence import _moves_table, effective, evidence, said
from arcpoint_ce.routing.records import Backend

FLEET = [Backend("a", capacity=8), Backend("b", capacity=8), Backend("c", capacity=8)]
CHANCE = np.array([0.1, 0.3, 0.2])  # of being late, by backend


def world(seed, hours=24, rate=120):
    "A log that a coin routed, and what every request would have met at every backend."
    rng = np.random.default_rng(seed)
    n = hours * rate
    ts_s = np.sort(rng.uniform(0, 3600 * hours, n))
    trouble = 0.5 * (rng.random((hours, 3)) < 0.1)  # an hour of trouble at a backend
    chance = CHANCE + trouble[(ts_s // 3600).astype(int)]
    late = rng.random((n, 3)) < chance
    home = rng.integers(3, size=n)
    took = np.where(late, 900.0, 100.0)
    rows = pd.DataFrame(dict(ts_s=ts_s, ok=True, latency_ms=took[np.arange(n), home]))
    rows["backend"] = np.array(list("abc"))[home]
    return make_stage(rows, FLEET, slo_ms=300.0, step_s=1800), late


def test_a_rule_that_agrees_with_the_log_has_known_outcomes_alone():
    stage, _ = world(0)
    found = evidence(stage, stage.home)
    assert found.stayed == len(stage.home) and found.effective == 0
    assert found.same_step == found.near_step == found.blind == 0
    assert found.interval("low") == found.interval("high") == (0.0, 0.0)


def test_the_estimate_is_the_importance_weighted_mean_of_logged_outcomes():
    """Written again, request by request: each logged request counts as often as a moved one leans
    on it.
    """
    stage, _ = world(1)
    to = np.where(stage.home == 1, 0, stage.home)
    weights = np.zeros(len(stage.home))
    for b, k in {(b, k) for b, k in zip(to[to != stage.home], stage.step[to != stage.home])}:
        there = (stage.home == b) & (stage.step == k)
        weights[there] += ((to == b) & (stage.home != b) & (stage.step == k)).sum() / there.sum()
    moved = to != stage.home
    expected = stage.late[moved].sum() - (weights * stage.late).sum()
    found = evidence(stage, to)
    assert found.same_step == moved.sum() and found.near_step == found.blind == 0
    assert found.hours[:, 1].sum() == pytest.approx(expected)
    assert found.effective == pytest.approx(weights.sum() ** 2 / (weights**2).sum())
    verdict = _judge_moves("rule", stage, to)
    assert found.hours.sum(0) == pytest.approx([verdict.avoided_low, verdict.avoided_high])


def test_few_requests_behind_many_moves_are_few():
    rows = pd.DataFrame(dict(ts_s=np.arange(1000) * 0.5, ok=True, latency_ms=100.0, backend="a"))
    rows.loc[[10, 500], "backend"] = "b"
    stage = make_stage(rows, FLEET[:2], slo_ms=300.0, step_s=600)
    found = evidence(stage, np.ones(1000, int))
    assert found.same_step == 998 and found.effective == pytest.approx(2)
    assert effective([5.0] * 7) == pytest.approx(7)


def test_where_the_target_served_nobody_nothing_is_known():
    rows = pd.DataFrame(dict(ts_s=np.arange(1000) * 10.0, ok=True, latency_ms=100.0, backend="a"))
    stage = make_stage(rows, FLEET[:2], slo_ms=300.0, step_s=60)
    found = evidence(stage, np.ones(1000, int))
    assert found.blind == 1000 and found.effective == 0
    assert found.hours.sum() == -2000  # all of them count as late, under both bounds


@pytest.mark.slow
def test_the_interval_holds_the_truth():
    """The truth is known in a simulated log: how many of the moved requests would have been late
    there.
    """
    held = 0
    for seed in range(100, 180):
        stage, late = world(seed)
        to = np.where(stage.home == 1, 0, stage.home)
        moved = np.flatnonzero(to != stage.home)
        expected = (CHANCE[1] - CHANCE[0]) * len(moved)  # over all logs of this kind
        low, high = evidence(stage, to).interval("high")
        held += low <= expected <= high
    assert held >= 0.87 * 80, held


@pytest.mark.slow
def test_two_rules_that_are_alike_are_rarely_told_apart():
    "Both send a coin's half of one backend's requests to the same place."
    claims = 0
    for seed in range(60):
        stage, _ = world(seed)
        coin = np.random.default_rng([seed, 1]).random(len(stage.home)) < 0.5
        one, two = (np.where((stage.home == 1) & x, 0, stage.home) for x in (coin, ~coin))
        claims += said(evidence(stage, one), evidence(stage, two)) != "cannot tell"
    assert claims <= 7, claims


def test_a_short_log_supports_no_verdict():
    stage, _ = world(3, hours=5)
    to = np.where(stage.home == 1, 0, stage.home)
    assert evidence(stage, to).interval("low") is None
    assert said(evidence(stage, to), evidence(stage, stage.home)) == "cannot tell"


def test_no_moves_make_an_empty_table():
    stage, _ = world(4, hours=2)
    assert _moves_table(stage, stage.home).empty


@pytest.mark.slow
def test_the_same_log_gives_the_same_figures():
    first, second = (study(*exercise_trio(500), trees=20) for _ in range(2))
    assert study_metrics(first) == study_metrics(second)
    for a, b in zip(first.served, second.served, strict=True):
        assert a.tolist() == b.tolist()
        found = [evidence(x.stage, to) for x, to in ((first, a), (second, b))]
        assert found[0].effective == found[1].effective
        assert found[0].interval("low") == found[1].interval("low")
