"""A site under fire: who must fail does, what is compared is the same, and the exercise's suite
says what it is known to say.
"""

from dataclasses import replace
from math import inf

import numpy as np
import pytest

from arcpoint_ce.lab import chaos as C
from arcpoint_ce.lab.faults import Fault, Scenario
from arcpoint_ce.lab.resilience import Score, suite_passes
from arcpoint_ce.routing.records import Backend, Tier
from arcpoint_ce.telemetry.fleet_file import Fleet as FleetFile

FIVE = tuple(
    Backend(n, capacity=c)
    for n, c in (("a", 24.0), ("b", 12.0), ("c", 16.0), ("d", 20.0), ("e", 8.0))
)
SUITE = ("backend_down", "fast_errors", "partition", "stale_metrics", "latency_spike")


@pytest.fixture(scope="module")
def site():
    return C.site_of(FIVE, n=3600)


def scores(site, policy):
    fields = list(Score.__dataclass_fields__)[:-1]
    return {
        r["scenario"]: Score(*[r[f] for f in fields], tuple(filter(None, r["reasons"].split("; "))))
        for r in C.rows_of(site, policy, SUITE)
    }


@pytest.mark.parametrize("policy", ["never", "always", "restless"])
def test_straw_routers_fail_the_suite(site, policy):
    assert not suite_passes(scores(site, policy))


@pytest.mark.slow
def test_the_real_router_passes_it(site):
    assert suite_passes(scores(site, "ours"))


def test_everybody_meets_the_same_requests(site):
    runs = [C.play(site, p)[0] for p in ("ours", "p2c", "never")]
    for r in runs:
        assert len(r) == site.n and (np.diff(r.k) == 1).all()
    for what in ("born_s", "slo_s", "tokens_out"):
        assert all(np.array_equal(getattr(runs[0], what), getattr(r, what)) for r in runs)


@pytest.mark.slow
def test_a_run_can_be_repeated(site):
    s = site.scenario("perfect_storm")
    a, b = (C.play(site, "ours", s)[0] for _ in range(2))
    assert np.array_equal(a.end_s, b.end_s) and np.array_equal(a.first, b.first)
    assert not np.array_equal(a.first, C.play(replace(site, seed=1), "ours", s)[0].first)


def test_the_past_holds_none_of_the_judged_requests(site):
    past = C.Site(site.backends, site.n, 987_654_321, site.load)
    assert not np.isin(past.workload.at_s, site.workload.at_s).any()


def test_the_clairvoyant_loses_only_what_was_running(site):
    once = replace(site, retries=0)
    for name in ("backend_down", "fast_errors", "partition"):
        (row,) = C.rows_of(once, "clairvoyant", [name])
        assert row["lost"] == row["killed"] and (row["killed"] > 0) == (name == "backend_down")


@pytest.mark.slow
def test_retries_save_what_a_dead_backend_loses(site):
    (row,) = C.rows_of(site, "ours", ["backend_down"])
    (alone,) = C.rows_of(replace(site, retries=0), "ours", ["backend_down"])
    assert row["lost"] == 0 < alone["lost"] and alone["killed"] <= alone["lost"] <= alone["failed"]


def test_tiers_keep_their_proportions():
    site = C.site_of(
        FleetFile(FIVE, {"fast": Tier("fast", 200.0), "slow": Tier("slow", 800.0)}), n=500
    )
    w = site.workload
    work = w.tokens_out * 25.0 + w.tokens_in * 0.24
    times = {
        t: np.unique((1000 * w.slo_s / work)[w.tier == i].round(6)) for i, t in enumerate(w.tiers)
    }
    assert times["fast"].tolist() == [2.5] and times["slow"].tolist() == [10.0]


def test_whoever_meets_the_limit_per_token_is_not_timed_out(site):
    assert (
        site.workload.tokens_out * site.limit_tpot_ms / 1000 <= 0.8 * site.timeout_s + 0.1
    ).all()


@pytest.mark.parametrize(
    "wrong, why",
    [
        (dict(load=0.0), "load"),
        (dict(n=0), "Site.n"),
        (dict(retries=-1), "retries"),
        (dict(timeout_s=inf), "timeout_s"),
        (dict(tiers={"x": 0.5}), "multiple of 1"),
    ],
)
def test_amounts_that_are_none(wrong, why):
    with pytest.raises(ValueError, match=why):
        C.site_of(FIVE, **wrong)


def test_the_ledger_knows_the_victims_of_a_cascade():
    site = C.site_of(FIVE, n=1500, load=1.0)
    s = Scenario("fall", (Fault("cascading_failure", "a", 30.0, 60.0, 2.0),))
    assert len(C.play(site, "never", s)[1].ledger.faults) > 1


def test_who_only_stands_beside_a_cascade_is_well():
    """Losing requests while healthy backends have room counts, whether the one that is down began a
    cascade or not.
    """
    site, lost = C.site_of(FIVE, n=1500, load=0.3, retries=0), []
    for kind in ("backend_down", "cascading_failure"):
        s = Scenario("down", (Fault(kind, "a", 30.0, 60.0),))
        record, fleet = C.play(site, "p2c", s)
        assert len(fleet.ledger.faults) == 1  # nobody else fell
        lost.append(int(C.lost(record, site.backends, fleet.ledger.faults).sum()))
    assert lost[0] == lost[1] > 50


def test_the_exercises_suite_praises_flight_and_not_its_own_router():
    passed = C.own_suite(1).groupby("router").passed.mean()
    assert passed["always"] == 1.0 and passed["never"] == 0.0 and passed["exercise"] <= 0.5


def test_the_exercise_rule_takes_out_who_is_slow():
    rule = C._Exercise(2.0)
    rule.start(FIVE, 0)

    class J:
        pass

    for k in range(10):
        for place, took in ((0, 2.0), (1, 7.0)):
            j = J()
            j.place, j.start_s = place, k - took
            rule.learn(j, float(k), True, None)
    assert rule.out(10.0) == {1}
