"Charts of the reports: nothing overlaps, is cut off or empty; legends outside; axes with units."

import json
import re
from pathlib import Path
from types import SimpleNamespace

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib import pyplot as plt
from report_charts import Drawn, chart_faults

from arcpoint_ce.apps.report import templates
from arcpoint_ce.lab.chaos import CAST
from arcpoint_ce.lab.faults import SCENARIOS
from arcpoint_ce.proof.skill import ONSET_MEANING

RESULTS = Path(__file__).parents[2] / "data" / "results"
LONG = "a-backend-with-quite-a-long-name"


@pytest.fixture(scope="module")
def log(tmp_path_factory) -> str:
    "Surges by the hour; one backend is hardly used, and another has no answered request."
    rng, rows = np.random.default_rng(0), []
    for name, base_ms in ((LONG, 120), ("west", 200), ("north", 90)):
        for minute in range(900):
            slow = (minute + 20 * (name == "west")) % 60 < 10 and name != "north"
            if name == "north" and minute % 3:
                continue
            for second in (0, 20, 40):
                took = base_ms * (3.2 if slow else 1.0) * rng.lognormal(0, 0.15)
                rows.append((60 * minute + second, name, took))
    table = pd.DataFrame(rows, columns=["ts", "backend", "latency_ms"]).sort_values("ts")
    at = pd.to_datetime(table.ts, unit="s", origin="2026-03-01")
    path = tmp_path_factory.mktemp("log") / "log.csv"
    table.assign(ts=at.dt.strftime("%Y-%m-%dT%H:%M:%SZ")).to_csv(path, index=False)
    return str(path)


@pytest.fixture(scope="module")
def forecast(log):
    return Drawn("forecast", data=log, trees=8, quick=True, jobs=1)


@pytest.fixture(scope="module")
def routing(log):
    return Drawn("routing", data=log, trees=8, quick=True)


def test_charts_of_the_forecast_report(forecast):
    assert forecast.figures == 5 and not forecast.faults


def test_charts_of_the_routing_report(routing):
    assert routing.figures == 3 and not routing.faults


def test_what_an_onset_is_stands_in_both_reports(forecast, routing):
    assert ONSET_MEANING in forecast.said and ONSET_MEANING in routing.said


def test_the_best_simple_rule_is_named(forecast):
    table = forecast.names["skill"].set_index("rule")
    skill, there = table.ratio_geomean, table.ours_on_its_rows
    best = (skill / there).drop(["ours", "best_naive"]).idxmin()
    named = re.search(
        r"In hindsight the best simple rule[^*]*\*\*(.+?)\*\* with ([\d.]+)", forecast.said
    )
    assert named[1] == forecast.names["LABEL"].get(best, best)
    assert float(named[2]) == pytest.approx(skill[best], abs=5e-4)
    assert ("**better than ours**" in forecast.said) == (skill[best] < there[best])


def test_who_is_left_out_is_named_with_what_brings_him_in(forecast):
    told = re.search(r"Left out, .*?</p>", forecast.said)[0]
    assert "north (33.3%)" in told and LONG not in told
    least = float(re.search(r"min_coverage ([\d.]+)", told)[1])
    evaluate, steps = (forecast.names[name] for name in ("evaluate", "steps"))
    forest = forecast.names["LatencyForest"](300, trees=5)
    again = evaluate(steps, forest, min_coverage=least, draws=0, forest_rule=False, progress=False)
    assert not again.left_out and "north" in set(again.series.backend)


def policies():
    m = json.loads((RESULTS / "experiment_streams.json").read_text())
    load = pd.DataFrame(
        [
            dict(load=x, contender=p, missed=int(900 * x**4), requests=1000)
            for x in (0.3, 0.6, 0.9, 1.2)
            for p in ("ours", "ours_none", "adaptive_least_sharp", "adaptive_least", "p2c")
        ]
    )
    costs = pd.DataFrame(
        [("fixed mix", f"mix {k}", 0.40 + 0.01 * k, 0.9 + 0.01 * k) for k in range(10)]
        + [("policy", p, 0.45 + 0.02 * k, 0.97) for k, p in enumerate(("ours", "p2c"))],
        columns=["kind", "name", "usd_per_1000", "attainment"],
    )
    return dict(
        only=(
            "def colour(policy)",
            'm[f]["ratio"] is not None',
            "def points(",
            "costs = cost_table",
        ),
        m=m,
        families=",".join(m["families"]),
        s=SimpleNamespace(loads=load, corners=load, punctuality=load, mixes=costs),
        sweep_counts=lambda rows: rows,
        point_table=lambda rows, by: rows.assign(
            failed=0, attempts=1000, cost_usd=1.0, ratio=1.0, ratio_lo=0.9, ratio_hi=1.1
        ).assign(changed_share=0.1),
        cost_table=lambda rows: rows,
    )


def chaos():
    names, everybody = list(SCENARIOS), [*CAST, "clairvoyant"]
    index = pd.MultiIndex.from_product(
        [(0, 2), names, everybody], names=["retries", "scenario", "policy"]
    )
    rng = np.random.default_rng(1)
    kept = pd.Series(rng.uniform(0.2, 1.0, len(index)), index)
    gap = kept[2].unstack()["ours"] - kept[2].unstack()["p2c"]
    fleet = SimpleNamespace(names=[f"backend-number-{k}" for k in range(9)])
    record = SimpleNamespace(
        born_s=np.linspace(0, 320, 4000),
        violated=rng.random(4000) < 0.1,
        first=rng.integers(0, 9, 4000),
    )
    return dict(
        only=("def spoken(", "heat(", "gap0 =", "pair = {"),
        kept=kept,
        rows=kept.rename("errors").reset_index(),
        names=names,
        peers=["p2c", "envoy"],
        gap=gap,
        worst=names[0],
        rival="adaptive_least_sharp",
        play=lambda *_: (record, fleet),
        site=SimpleNamespace(
            span_s=320.0,
            scenario=lambda _: SimpleNamespace(faults=[SimpleNamespace(start_s=95, end_s=230)]),
        ),
    )


def anomaly():
    def series(k):
        at = np.arange(0, 14 * 86_400, 900)
        value = 10.0 ** (2 * k) * np.random.default_rng(k).random(len(at))
        name = f"ec2_disk_write_bytes_{k}.csv"
        return SimpleNamespace(
            time_s=at, value=value, judged=[(400, 500)], probation=200, name=name
        )

    return dict(
        only=("def alarms_of(",),
        series=[series(k) for k in range(5)],
        judges={
            "ours": SimpleNamespace(scores={f"ec2_disk_write_bytes_{k}.csv": [0] for k in range(5)})
        },
        ours=SimpleNamespace(
            choices={
                f"ec2_disk_write_bytes_{k}.csv": SimpleNamespace(
                    setting=0, thresholds={"standard": 1}
                )
                for k in range(5)
            }
        ),
        nab=SimpleNamespace(
            alarms=lambda scores, some, _: pd.DataFrame(
                dict(series=some[0].name, time=pd.to_datetime([400_000], unit="s"), value=[0.5])
            )
        ),
    )


def drift():
    rng = np.random.default_rng(2)
    return dict(
        only=("delay_curve((", "zip(shown, ("),
        runs=20,
        usual=15.0,
        delay_curve=lambda settings, _: [
            dict(setting=x, false_per_10k=8 / x - 0.3, median_delay=4 * x) for x in settings
        ],
        shown=rng.gamma(2.0, 30.0, (3, 600)),
    )


def causes(least=0.5, most=900):
    known = [
        SimpleNamespace(name=f"incident_{k:02d}_of_the_productpage", metric="latency", root="a")
        for k in range(68)
    ]
    ranks = [
        SimpleNamespace(nodes=["a"], explains=[1.0], ratios=[x], claimed=True)
        for x in np.geomspace(least, most, 68)
    ]
    kinds = ["gray_failure", "regional_outage"]
    return dict(
        only=("order = table.sort_values", "if len(by_kind)"),
        incidents=SimpleNamespace(incidents=known),
        ranked=lambda _: ranks,
        by_kind=pd.DataFrame(dict(changed=[4, 9], right=[3, 9]), index=kinds),
    )


def retrain():
    at = 60 * np.arange(3000)
    errors = np.random.default_rng(3).gamma(2.0, 9.0, (3000, 3))
    table = pd.DataFrame(errors, columns=["live", "candidate", "persistence"]).assign(at=at)
    return dict(only=('groupby("at")',), r=SimpleNamespace(errors=table.set_index("at")))


def live():
    rules = ["auto", "least_busy", "latency_based_routing", "simple_shuffle"]
    kinds = [f"fault number {k}" for k in range(8)]
    missed = pd.DataFrame(np.arange(32).reshape(8, 4), index=kinds, columns=rules)
    return dict(only=("100 * missed / n_each",), missed=missed, n_each=200)


def agent():
    kinds = {f"{a} or {b}": 0.5 for a in ("affinity", "quality") for b in ("cost", "limit")}
    return dict(
        only=("conflict_trial(",),
        conflict_trial=lambda *_, **__: dict(
            conflicts=9,
            n=99,
            found=0.5,
            found_if_known=0.9,
            asked=0.1,
            in_vain=0.0,
            by_kind=[dict(kind=k, found=x) for k, x in kinds.items()],
        ),
    )


def claims():
    long = "names the true cause of an incident, and keeps silent where nothing has happened at all"
    rows = [
        (who, long, "988 to 1,870 of 3,045", "95 %: 234 to 3,093", who == "ours")
        for who in ("ours", "exercise")
    ]
    table = pd.DataFrame(rows * 9, columns=["whose", "claim", "value", "interval", "holds"])
    return dict(only=("claim_table(",), claim_table=lambda _: (table, {}))


def rollout():
    return dict(quick=True)


CHARTS = {
    f.__name__: f
    for f in (policies, chaos, anomaly, drift, causes, retrain, live, agent, claims, rollout)
}


@pytest.mark.parametrize("name", sorted(CHARTS))
def test_charts_of(name):
    drawn = Drawn(name, **CHARTS[name]())
    nb = nbformat.read(templates()[name], 4)
    assert drawn.figures >= 1 and not drawn.faults
    assert nb.cells


@pytest.mark.parametrize("most", [3.0, 20.0, 80.0, 5e4])
def test_a_logarithmic_axis_has_plain_numbers_however_long_it_is(most):
    assert not Drawn("causes", **causes(2.0, most)).faults


def test_every_report_is_looked_at():
    assert {*CHARTS, "forecast", "routing"} == set(templates())


def bad(how):
    figure, ax = plt.subplots(figsize=(3, 2))
    ax.plot([0, 1], [0, 1], label="line")
    ax.set(xlabel="time, s", ylabel="latency, ms")
    how(figure, ax)
    try:
        return chart_faults(figure)
    finally:
        plt.close(figure)


@pytest.mark.parametrize(
    "how, says",
    [
        (lambda f, ax: ax.set_xticks([0, 0.02], ["a long label", "another one"]), "stands on"),
        (lambda f, ax: ax.set_title("much too long a title " * 4), "cut off"),
        (lambda f, ax: ax.set_ylabel(""), "without saying of what"),
        (lambda f, ax: ax.legend(loc="center"), "legend stands on the data"),
        (lambda f, ax: f.add_axes((0.9, 0.9, 0.05, 0.05)), "is empty"),
        (lambda f, ax: ax.plot([1, 0], [0, 1], color="white"), "pale"),
        (lambda f, ax: ax.set_title(r"$\mathdefault{10^{0}}$", parse_math=False), "markup"),
    ],
    ids=["ticks", "title", "unit", "legend", "empty", "pale", "markup"],
)
def test_a_bad_chart_is_seen(how, says):
    assert any(says in fault for fault in bad(how))


def test_a_good_chart_is_left_alone():
    def outside(figure, ax):
        figure.set_layout_engine("constrained")
        ax.legend(loc="upper left", bbox_to_anchor=(1.01, 1))

    assert bad(outside) == []
