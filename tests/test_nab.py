"The benchmark's score against a plain reading of its rules, and the detector on series that must not know the future."
import json
import os
from math import exp
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arcpoint_ce.learning import nab

GIVEN = Path(os.environ.get("ARCPOINT_DATA", Path(__file__).parents[2]/"shared"/"data"))/"telemetry"/"nab"


def plain_score(series, scores, threshold, profile):
    "Rule by rule, one row at a time."
    hit, miss, false = nab.PROFILES[profile]
    sigma = lambda y: 2/(1 + exp(5*y)) - 1
    total = count = 0
    for s, x in zip(series, scores):
        p = min(int(.15*len(x)), 750)
        wins = [w for w in s.windows if w[1] >= p]; count += len(wins); best = {}
        for i in range(p, len(x)):
            if x[i] < threshold: continue
            inside = [k for k, (a, b) in enumerate(wins) if a <= i <= b]
            if inside:
                a, b = wins[inside[0]]
                best[inside[0]] = max(best.get(inside[0], -9), sigma(-(b - i + 1)/(b - a + 1))/sigma(-1))
                continue
            before = [w for w in wins if w[1] < i]
            if not before: total -= false; continue
            a, b = before[-1]; y = (i - b)/(b - a)
            total += false*(sigma(y) if y <= 3 else -1)
        total += sum(hit*best[k] if k in best else -miss for k in range(len(wins)))
    return 100*(total + miss*count)/((hit + miss)*count)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_score_is_that_of_the_rules(data):
    rng, series, scores = np.random.default_rng(data.draw(st.integers(0, 9999))), [], []
    for k in range(data.draw(st.integers(1, 3))):
        n = data.draw(st.integers(60, 300)); a = int(rng.integers(n//5, n - 40)); wins = [(2, 5), (a, a + int(rng.integers(1, 15)))]
        if a + 30 < n: wins.append((a + 20, a + 29))
        series.append(nab.Series(f"s{k}", np.arange(n)*300, np.zeros(n), tuple(wins))); scores.append(rng.integers(0, 5, n).astype(float))
    named = {s.name: x for s, x in zip(series, scores)}
    for profile in nab.PROFILES:
        every = {t: plain_score(series, scores, t, profile) for t in (0., 1., 2., 3., 4., 5.)}
        for t, expected in every.items(): assert nab.score_at(named, series, profile, t) == pytest.approx(expected)
        assert nab.score_at(named, series, profile, nab.best_threshold(named, series, profile)) == pytest.approx(max(every.values()))


def test_the_future_changes_nothing(tmp_path):
    s = nab.load_nab(nab.write_synthetic(tmp_path, 1, 7000))[0]
    part = s._replace(time_s=s.time_s[:5500], value=s.value[:5500])
    np.testing.assert_allclose(nab.nab_scores(part, 1), nab.nab_scores(s, 1)[:5500], atol=1e-6)


def test_layout_of_the_publisher(tmp_path):
    nab.write_synthetic(tmp_path/"data"/"realThings", 2, 1000)
    spans = json.loads((tmp_path/"data"/"realThings"/"windows.json").read_text()); (tmp_path/"data"/"realThings"/"windows.json").unlink()
    (tmp_path/"labels").mkdir(); (tmp_path/"labels"/"combined_windows.json").write_text(json.dumps({f"realThings/{k}": v for k, v in spans.items()}))
    assert [s.name for s in nab.load_nab(tmp_path)] == ["realThings/series_0.csv", "realThings/series_1.csv"]


@pytest.mark.skipif(not GIVEN.is_dir(), reason="the labelled series are not here: set ARCPOINT_DATA")
def test_given_series():
    series = nab.load_nab(GIVEN)
    oracle = {s.name: np.isin(np.arange(len(s.value)), [max(a, s.probation) for a, _ in s.judged])*1. for s in series}
    assert nab.score_at(oracle, series, "standard", 1.) > 99
    dice = [{s.name: np.random.default_rng([k, i]).random(len(s.value)) for i, s in enumerate(series)} for k in range(20)]
    at = [np.mean([nab.score_at(x, series, p, nab.best_threshold(x, series, p)) for x in dice]) for p in nab.PROFILES]
    assert abs(at[0] - 13) < 4 and abs(at[1] - 4) < 3 and abs(at[2] - 27) < 4
    plain = {s.name: nab.plain_forest(s) for s in series}
    assert nab.score_at(plain, series, "standard", nab.best_threshold(plain, series, "standard")) == 0
