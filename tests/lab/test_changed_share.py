"The share of decisions that a forecast changed: measured on the side, without touching the run."

import numpy as np
import pytest

from arcpoint_ce.lab import gateway as G
from arcpoint_ce.lab.contest import ran
from arcpoint_ce.lab.worlds import Setting, World
from arcpoint_ce.routing.records import Backend, Forecast, ForecastTable, Request


def judged_run(streams, every, monkeypatch, name="ours_room"):
    monkeypatch.setattr(G, "_SAMPLED_EVERY", every)
    record, hold = ran(
        World(Setting("scheduled_surge", 1, n=800, load=0.45, streams=streams)), name, {}
    )
    return record, hold["fleet"].gateways[0]


@pytest.mark.slow
def test_looking_changes_no_decision(monkeypatch):
    "Every decision looked at, and none: the same places, the same ends."
    (a, often), (b, never) = (judged_run(0.0, k, monkeypatch) for k in (1, 10**9))
    np.testing.assert_array_equal(a.place, b.place)
    np.testing.assert_array_equal(a.end_s, b.end_s)
    assert len(often.effects) == often.asked >= 800 and len(never.effects) == 1
    assert 0.05 < often.changed_share < 1  # whole answers: there is something to change


def test_no_forecast_changes_nothing(monkeypatch):
    assert judged_run(0.0, 20, monkeypatch, "ours_none")[1].changed_share == 0.0


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["shuffled", "frozen", "inverted"])
def test_a_forecast_that_is_wrong_on_purpose_acts(monkeypatch, wrong):
    "A stuck one did not fit into the store: every tick failed, and no forecast was judged at all."
    _, ours = judged_run(0.0, 20, monkeypatch, f"ours_{wrong}")
    assert ours.engine.failures == 0 and ours.engine.resumed
    assert ours.changed_share > 0
    assert all(ours.engine.forecaster.belief.rooms.model.foresight)


@pytest.mark.parametrize("slower, other", [(1.0, False), (1.1, False), (2.0, True), (10.0, True)])
def test_the_share_grows_with_what_is_foreseen(slower, other):
    "A larger backend is left once it will be slow enough, and looking leaves the router as it was."
    backends = [Backend("a", capacity=64.0), Backend("b", capacity=32.0)]
    engine = G.lab_engine(backends, slo_ms=100.0, slo_tok_ms=60.0, forecaster="none")
    f = Forecast(
        "a", 0.0, 60.0, (4e3 * slower,) * 7, (4e3 * slower,) * 7, now_ms=4e3, throughout=True
    )
    engine.router.swap(ForecastTable(1, 0.0, forecasts={"a": f}), 0.0)
    before = [(c.backend, c.probability) for c in engine.router.rank(Request(), 1.0)]
    moved, another = G._forecast_effect(engine.router, Request(), 1.0)
    assert another == other and (moved > 0.9 if other else moved < 0.4)
    assert [(c.backend, c.probability) for c in engine.router.rank(Request(), 1.0)] == before
