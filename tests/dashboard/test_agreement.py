"The dashboard, the state and the simulator count alike, and pages show what they say."

import asyncio
from dataclasses import replace

import pandas as pd
import pytest

from arcpoint_ce.apps.simulate import _live_gateway, compare, make_stage, simulate
from arcpoint_ce.context.questions import capacity_risk
from arcpoint_ce.context.state import Facts, fleet_state
from arcpoint_ce.dashboard import app, pages
from arcpoint_ce.dashboard.charts import forecast_chart, lines
from arcpoint_ce.dashboard.views import Look, met_over_time, newest_decisions
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.lab.faults import Fault


def told(tmp_path, **how):
    "A simulated run with a fault and retries: what its callers saw, and the store."
    stage = make_stage(None, "backend_down", None, 0, 900, 0.4, **how)
    path = tmp_path / "s.sqlite"
    store = FeedbackStore(path)
    staged = replace(stage, router=lambda: _live_gateway(stage, store))
    record, fleet = simulate(staged, 1e6, 0.0, lambda line: None)
    fleet.gateways[0].engine.close(fleet.now)
    return stage, record, Facts(path)


@pytest.mark.parametrize("slo_ms", [None, 9000.0, 5000.0], ids=["own", "nine", "five"])
def test_limits_met_are_the_same_everywhere(tmp_path, slo_ms):
    _, record, facts = told(tmp_path, **(dict(slo_ms=slo_ms) if slo_ms else {}))
    want = int((~record.violated).sum())
    assert record.attempts.sum() > len(record.ok), "some were retried"
    tiers = fleet_state(facts).tiers
    assert facts.now() < 3600, "the last hour holds the whole run"
    assert sum(t.requests for t in tiers) == len(record.ok)
    assert round(sum(t.requests * t.attainment for t in tiers)) == want
    look = Look(0.0, facts.now(), 30.0)
    t, one_in = met_over_time(facts, look)
    assert one_in == 1 and t.n.sum() == len(record.ok) and round((t.n * t.met).sum()) == want
    ends = newest_decisions(facts, Look(0.0, facts.now() + 1, 30.0), limit=10_000).outcome
    assert (ends == "met").sum() == want and len(ends) == len(record.ok)


def test_contenders_meet_the_fault_that_was_ordered(tmp_path):
    stage = make_stage(None, "calm", None, 0, 900, 0.4)
    record = simulate(stage, 1e6, 0.0, lambda line: None)[0]
    calm, hit = (
        compare(stage, record, ordered)
        for ordered in ((), (Fault("backend_down", "*", 30.0, 60.0),))
    )
    assert calm[0] == hit[0] and [r[2] for r in calm[1:]] == [0, 0]
    assert all(r[2] > 0 for r in hit[1:]), "an outage of all is felt by every rival"


def test_sorting_by_trouble_puts_trouble_first(tmp_path):
    _, _, facts = told(tmp_path)
    b = fleet_state(facts).backends[0]
    well = replace(b, availability="available", breaker="closed", incidents=(), p_breach=0.0)
    order = [
        replace(well, backend="e", availability="down"),
        replace(well, backend="d", availability="degraded", breaker="open"),
        replace(well, backend="c", availability="degraded"),
        replace(well, backend="b", p_breach=0.6),
        replace(well, backend="a"),
    ]
    assert sorted(order[::-1], key=pages._ORDER["trouble"]) == order


def test_one_probability_of_a_breach(tmp_path):
    "The fleet page says the figure of the risk page, and the table does not repeat the chart."
    _, _, facts = told(tmp_path)
    risk, said = capacity_risk(facts), []

    class Column:
        def metric(self, label, value, **how):
            said.append((label, value))

    with pytest.MonkeyPatch.context() as m:
        m.setattr(
            pages.st, "columns", lambda n, **how: [Column()] * (n if isinstance(n, int) else 9)
        )
        pages._headline(fleet_state(facts), risk)
        pages._risk_tiles(risk)
    chances = {value for label, value in said if label.startswith("P(some backend")}
    assert len(chances) == 1 and pages._risk_columns()["p_breach"] is None


def test_the_future_is_drawn_beyond_now():
    at = [60.0 * k for k in range(10)]
    made = pd.DataFrame(dict(about_s=[x + 300 for x in at], p10=1.0, p50=2.0, p90=3.0))
    came = pd.DataFrame(dict(at_s=at, latency_ms=2.0))
    drawn = forecast_chart(made, came, 300.0, at[-1]).to_dict()
    assert '"now"' in str(drawn).replace("'", '"') and made.about_s.max() > at[-1]
    kept = pages._thinned(pd.DataFrame(dict(about_s=range(1003))), 400)
    assert kept.about_s.max() == 1002 and kept.about_s.is_monotonic_increasing


def test_a_fault_leaves_a_mark_on_the_curves():
    t = pd.DataFrame(dict(at_s=[0.0, 100.0], rps=[1.0, 2.0], backend="a"))
    fault = dict(kind="backend_down", target="a", start_s=40.0, end_s=70.0)
    late = dict(fault, start_s=400.0, end_s=500.0)
    drawn = lines(t, "rps", "rps", marks=[fault, late]).to_dict()
    assert [x["mark"]["type"] for x in drawn["layer"]] == ["rect", "line"]
    assert str(drawn).count("backend_down on a") == 1
    assert "layer" not in lines(t, "rps", "rps", marks=[late]).to_dict()


@pytest.mark.parametrize(
    "path, home",
    [
        ("/", False),
        ("/risk", False),
        ("/rsik", True),
        ("/fleet/old", True),
        ("/static/js/x.js", False),
        ("/_stcore/health", False),
    ],
    ids=["home", "page", "typo", "deeper", "file", "stream"],
)
def test_unknown_addresses_lead_home(path, home):
    sent, through = [], []

    async def inner(scope, receive, send):
        through.append(scope["path"])

    async def send(message):
        sent.append(message)

    scope = dict(type="http", method="GET", path=path, headers=[(b"accept", b"text/html,*/*")])
    asyncio.run(app._Home(inner)(scope, None, send))
    assert (through == []) == home
    if home:
        assert sent[0]["status"] == 307 and (b"location", b"/") in sent[0]["headers"]
