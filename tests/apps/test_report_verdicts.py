"Verdicts: over a grid of metrics, no sentence contradicts the figures beside it."

import ast
import json
import re
from itertools import product
from pathlib import Path

import nbformat
import pytest

from arcpoint_ce.apps.report import templates
from arcpoint_ce.apps.verdict import _ANSWERS, _JUDGES, _side, _verdict_of, _wilson

ABOVE, HOLDS, BELOW = (1.1, 1.4), (0.8, 1.2), (0.5, 0.9)
SAVES, UNSURE, RUINS = (50.0, 90.0), (-20.0, 60.0), (-90.0, -5.0)


def routing_cases():
    for base, low, high, more_low, more_high in product(
        (0, 19, 20, 3000), *[(SAVES, UNSURE, RUINS, None)] * 2, *[(SAVES, UNSURE, RUINS, None)] * 2
    ):
        yield (
            "routing",
            dict(
                breaches=base,
                breaches_avoided_low=40.0,
                breaches_avoided_high=70.0,
                reactive_avoided_low=30.0,
                evidence=dict(
                    predictive=dict(avoided_low_interval=low, avoided_high_interval=high)
                ),
                more_than_reactive_low=more_low,
                more_than_reactive_high=more_high,
                onsets=31,
                onsets_foreseen=12,
            ),
        )


def forecast_cases():
    for n, span, mine, naive, there, recall in product(
        (0, 199, 200),
        (ABOVE, HOLDS, BELOW, (None, None)),
        (0.7, 1.0, 1.2),
        (0.5, 1.1, None),
        (0.4, 0.9, None),  # ours where the rule speaks; None: it speaks everywhere
        (0.3, None),
    ):
        yield (
            "forecast",
            dict(
                n=n,
                mae_ratio_geomean=mine,
                mae_ratio_geomean_low=span[0],
                mae_ratio_geomean_high=span[1],
                ratios=dict(ours=mine, persistence=1.0, seasonal=naive),
                intervals=dict(seasonal=[0.4, 0.6]),
                ours_on_its_rows=dict(ours=mine, persistence=mine, seasonal=there or mine),
                onsets=35,
                onset_recall=recall,
            ),
        )


def policies_cases():
    for worlds, *spans in product((1, 2, 12), *[(ABOVE, HOLDS, BELOW, (None, None))] * 3):
        names = ["a", "b", "c"]
        of = {
            f: dict(
                ratio_lo=s[0],
                ratio_hi=s[1],
                missed=dict(ours=5),
                missed_best_rival=7 if worlds > 1 else None,  # it is chosen on other worlds
                requests=dict(ours=100),
            )
            for f, s in zip(names, spans)
        }
        yield "policies", dict(families=names, seeds=list(range(worlds))) | of


def chaos_cases():
    for seeds, quick, lost, passes, losses in product(
        (1, 3), (True, False), (0, 4), (True, False), (0, 2)
    ):
        cell = [dict(policy="ours", retries=r, n=1000) for r in (2, 0)]
        yield (
            "chaos",
            dict(
                matrix=cell,
                lost_with_retries_n=lost,
                lost_without_retries_n=9,
                losses=losses,
                scenarios=12,
                seeds=seeds,
                quick=quick,
                ours_passes=passes,
            ),
        )


def anomaly_cases():
    spans = ((10.0, 20.0), (40.0, 70.0), (61.0, 90.0))
    for windows, span, lead in product((0, 19, 24), spans, (ABOVE, HOLDS, BELOW)):
        yield (
            "anomaly",
            dict(
                interval=dict(standard=span),
                lead_interval=dict(standard=[x - 1.0 for x in lead]),  # points; 0 is no lead
                best_simple="median",
                beside=dict(median=dict(standard=60.0)),
                nab_standard=sum(span) / 2,
                windows=windows,
                windows_found=windows // 2,
            ),
        )


def drift_cases():
    for streams, weekly, loop, took in product(
        (1, 10), (ABOVE, HOLDS, BELOW), (ABOVE, HOLDS, BELOW), (85, 140, None)
    ):
        yield (
            "drift",
            dict(
                weekly_interval=weekly,
                slo_ratio_interval=loop,
                adaptation_samples=took,
                adaptation_over_100=0,
                streams=streams,
                weekly_false_alarms=sum(weekly) / 2,
                slo_ratio_loop_on_off=sum(loop) / 2,
            ),
        )


def causes_cases():
    for n, top, prior, loud, calm in product(
        (0, 19, 26), (0, 15, 19), (0, 10, 19), (0, 9), (0, 118)
    ):
        yield (
            "causes",
            dict(
                n=n,
                top1=min(top, n),
                prior_top3=min(prior, n),
                false_alarms=min(loud, calm),
                normal_windows=calm,
            ),
        )


def retrain_cases():
    for decision, before, judged, gain in product(
        ("promote", "keep"), (None, "v1"), (None, 20, 500), (None, 0.1)
    ):
        yield (
            "retrain",
            dict(
                decision=decision,
                live_before=before,
                judged=judged,
                gain=gain,
                gain_low=None,
                gain_high=None,
                skill=gain,
                why="no gain",
            ),
        )


def rollout_cases():
    for seeds, wrong in product((100, 1000), (0.0, 0.05, 0.2)):
        yield "rollout", dict(seeds=seeds, aa_false_positive=wrong, aa_t_test=0.4, ab_power=1.0)


def agent_cases():
    for mode, n, agent, rule in product(("recorded", "live"), (8, 45), (0.2, 0.9), (0.2, 0.88)):
        yield (
            "agent",
            dict(
                scenarios=n,
                pass_at_1=agent,
                agent_pass=agent,
                router_pass=rule,
                grounded=0.7,
                mode=mode,
                gate_found=0.9,
                gate_conflicts=850,
            ),
        )


def claims_cases():
    for ours, odd in product((0, 5, 6), (0, 1)):
        yield (
            "claims",
            dict(
                ours=dict(holds=ours, n=6),
                exercise=dict(holds=1, n=7),
                hash_differs=odd,
                run_again=8,
                stored=5,
            ),
        )


def live_cases():
    for n, errors, cost, gap, idle in product(
        (54, 900), (0, 3), (150.0, 800.0), (1.5, 9.0), (0.1, 0.5)
    ):
        yield (
            "live",
            dict(
                ours_n=n,
                errors_with_retries=errors,
                overhead_p50_us=cost,
                overhead_n=500,
                sim_gap_points=gap,
                sim_gap_n=210,
                idle_share=idle,
            ),
        )


GRIDS = (
    live_cases,
    routing_cases,
    forecast_cases,
    policies_cases,
    chaos_cases,
    anomaly_cases,
    drift_cases,
    causes_cases,
    retrain_cases,
    rollout_cases,
    agent_cases,
    claims_cases,
)
CASES = [case for grid in GRIDS for case in grid()]
FEW = dict(routing=("breaches", 20), forecast=("n", 200), anomaly=("windows", 20))
FEW |= dict(drift=("streams", 10), causes=("n", 20), rollout=("seeds", 200), live=("ours_n", 200))


def test_every_report_has_a_verdict_and_a_grid():
    assert set(templates()) == set(_JUDGES) == {report for report, _ in CASES}


@pytest.mark.parametrize("report", sorted(_JUDGES))
def test_a_verdict_is_whole(report):
    for name, m in CASES:
        if name != report:
            continue
        v = _verdict_of(name, m)
        assert v.answer in _ANSWERS and len(v.figures) == 3 and v.next_step.strip(), m
        word = "Too few" if v.answer == "too few to tell" else v.answer.capitalize()
        assert v.sentence.startswith(word) and v.sentence.endswith("."), v
        page = v._repr_html_()
        assert v.question.endswith("?") and "nan" not in page and "None" not in page, v
        assert all(f.interval for f in v.figures), v


@pytest.mark.parametrize("report", sorted(FEW))
def test_no_verdict_below_the_minimum(report):
    what, least = FEW[report]
    for name, m in CASES:
        if name == report:
            few = _verdict_of(name, m).answer == "too few to tell"
            assert few == (m[what] < least), m


def test_routing_says_yes_only_where_both_ends_do():
    for name, m in CASES:
        if name != "routing" or m["breaches"] < 20:
            continue
        v, own = _verdict_of(name, m), m["evidence"]["predictive"].values()
        ends = {_side(e, 0.0) for e in own}
        more = {_side(m[k], 0.0) for k in ("more_than_reactive_low", "more_than_reactive_high")}
        assert (v.answer in ("yes", "partly")) == (ends == {1}), m
        assert (v.answer == "no") == (ends == {-1}), m
        if ends == {1}:
            assert (v.answer == "yes") == (more == {1})
            assert ("avoids more of them" in v.sentence) == (more == {-1})


def test_forecast_names_the_rule_that_beats_it():
    for name, m in CASES:
        if name != "forecast" or m["n"] < 200:
            continue
        v, beside = _verdict_of(name, m), m["ours_on_its_rows"]
        said = {k: x / beside[k] for k, x in m["ratios"].items() if k != "ours" and x is not None}
        best = min(said, key=said.get)  # compared on the rows where each rule speaks
        better = said[best] < 1.0
        side = _side((m["mae_ratio_geomean_low"], m["mae_ratio_geomean_high"]), 1.0)
        assert (v.answer == "yes") == (side < 0 and not better), m
        assert (v.answer == "no") == (side > 0)
        if m["ratios"]["seasonal"] is not None:
            assert ("simple rule does better" in v.sentence) == better, (v.sentence, m)
            seasonal = best == "seasonal"
            assert ("(seasonal naive)" in v.sentence) == (better and seasonal), "the rule is named"
            assert ("seasonal" in v.figures[1].name) == seasonal


def test_policies_count_what_they_say():
    for name, m in CASES:
        if name != "policies" or len(m["seeds"]) < 12:
            continue
        v = _verdict_of(name, m)
        sides = [_side((m[f]["ratio_lo"], m[f]["ratio_hi"]), 1.0) for f in m["families"]]
        assert v.figures[0].value == f"{sides.count(-1)}, {sides.count(1)}, {sides.count(0)}"
        assert ("wins some" in v.sentence) == (sides.count(-1) > 0)
        assert (v.answer == "yes") == (sides.count(-1) > 0 and sides.count(1) == 0)
        assert (v.answer == "cannot tell") == (set(sides) == {0})


def test_the_others_follow_their_figures():
    for name, m in CASES:
        v = _verdict_of(name, m)
        if v.answer == "too few to tell":
            continue
        if name == "chaos":
            clean = m["ours_passes"] and not m["lost_with_retries_n"]
            assert (v.answer == "no") == (not clean) and (v.answer == "yes") == (
                clean and not m["losses"]
            )
        elif name == "drift" and v.answer == "yes":
            assert m["adaptation_samples"] <= 100 and m["slo_ratio_interval"][1] < 1
            assert m["weekly_interval"][0] <= 1
        elif name == "anomaly":
            low, high = m["lead_interval"]["standard"]
            assert (v.answer == "yes") == (low > 0) and (v.answer == "no") == (high < 0)
        elif name == "causes" and v.answer == "yes":
            assert _wilson(m["top1"], m["n"])[0] > m["prior_top3"] / m["n"]
        elif name == "agent":
            assert m["mode"] == "live" or v.answer == "cannot tell"
        elif name == "retrain":
            assert (v.answer == "yes") == (m["decision"] == "promote")
        elif name == "claims":
            assert (v.answer == "cannot tell") == bool(m["hash_differs"])


def test_live_says_yes_only_where_every_goal_is_reached():
    cases = [(_verdict_of(name, m), m) for name, m in CASES if name == "live" and m["ours_n"] > 199]
    for v, m in cases:
        assert (v.answer == "no") == (m["errors_with_retries"] > 0)
        assert v.answer in ("no", "cannot tell") or m["idle_share"] >= 0.3
        assert v.answer != "yes" or m["overhead_p50_us"] <= 300 and m["sim_gap_points"] <= 5


def test_wilson_as_published():
    "Newcombe (1998), table I: 81 of 263, 15 of 148, 0 of 20, 1 of 29."
    for k, n, low, high in (
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ):
        assert _wilson(k, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("name", sorted(templates()))
def test_a_template_opens_with_its_box_and_ends_with_its_verdict(name):
    nb = nbformat.read(templates()[name], 4)
    code = [c.source for c in nb.cells if c.cell_type == "code"]
    given = re.findall(r'conclude\(\s*out_dir,\s*"(\w+)",', code[-1])
    assert given == [name], "the last cell gives the verdict"
    opened = next(i for i, c in enumerate(nb.cells) if "open_report()" in c.source)
    said = [c for c in nb.cells[:opened] if c.cell_type == "markdown"]
    assert [re.match(r"# \S", c.source) is not None for c in said] == [True], "only the title above"


STORED = {
    "forecast_sample": "forecast",
    "routing_sample": "routing",
    "experiment_streams": "policies",
}
STORED |= {name: name for name in ("anomaly", "drift", "agent", "rollout")}


@pytest.mark.parametrize("name", sorted(STORED))
def test_a_verdict_on_published_metrics(name):
    stored = Path(__file__).parents[2] / "data" / "results" / f"{name}.json"
    v = _verdict_of(STORED[name], json.loads(stored.read_text()))
    assert v.answer != "too few to tell"


@pytest.mark.parametrize("name", sorted(templates()))
def test_charts_share_one_style(name):
    "Legends stand outside, colours are told apart by everybody, and the style is not set again."
    nb = nbformat.read(templates()[name], 4)
    for code in (c.source for c in nb.cells if c.cell_type == "code"):
        for call in re.findall(r"(?<!_)\blegend\(((?:[^()]|\([^()]*\))*)\)", code):
            assert "bbox_to_anchor=" in call or "outside" in call, call
        assert not re.search(r"tab:|RdYlGn|\bjet\b|rcParams|set_theme|tight_layout", code), code
        if re.search(r"subplots\(|plt\.figure\(", code):
            labelled = re.search(r"xlabel|set\(\s*xlabel|set_xticks\(\[\]\)|heatmap", code)
            assert labelled, f"an axis without its unit: {code[:200]}"


@pytest.mark.parametrize("name", sorted(templates()))
def test_no_cell_of_a_chart_ends_with_an_object(name):
    "Else `Text(0.5, 0, 'time')` stands above the picture."
    nb = nbformat.read(templates()[name], 4)
    for code in (c.source for c in nb.cells if c.cell_type == "code"):
        last = ast.parse(code).body[-1:]
        if re.search(r"subplots\(|plt\.figure\(", code) and isinstance(last[0], ast.Expr):
            said = ast.unparse(last[0])
            assert not re.match(r"(ax|a|b|axes|fig|other|plt)\b(?!\.show)", said), said
