"""The benchmark's score against a plain reading of its rules, and settings that never see what they
are judged on.
"""

import json
import os
from math import exp
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.proof import labelled_series as nab
from arcpoint_ce.proof.detectors import (
    Detector,
    _series_scores,
    our_detector,
    plain_forest,
    simple_detectors,
)
from arcpoint_ce.proof.left_out import Judge, choose, kinds, leave_out

GIVEN = (
    Path(os.environ.get("ARCPOINT_DATA", Path(__file__).parents[3] / "shared" / "data"))
    / "telemetry"
    / "nab"
)
needs_given = pytest.mark.skipif(
    not GIVEN.is_dir(), reason="the labelled series are not here: set ARCPOINT_DATA"
)


def sigma(y):
    return 2 / (1 + exp(5 * y)) - 1


def plain_score(series, scores, threshold, profile):
    "Rule by rule, one row at a time."
    hit, miss, false = nab.PROFILES[profile]
    total = count = 0
    for s, x in zip(series, scores):
        p = min(int(0.15 * len(x)), 750)
        wins = [w for w in s.windows if w[1] >= p]
        count += len(wins)
        best = {}
        for i in range(p, len(x)):
            if x[i] < threshold:
                continue
            inside = [k for k, (a, b) in enumerate(wins) if a <= i <= b]
            if inside:
                a, b = wins[inside[0]]
                worth = sigma(-(b - i + 1) / (b - a + 1)) / sigma(-1)
                best[inside[0]] = max(best.get(inside[0], -9), worth)
                continue
            before = [w for w in wins if w[1] < i]
            if not before:
                total -= false
                continue
            a, b = before[-1]
            y = (i - b) / (b - a)
            total += false * (sigma(y) if y <= 3 else -1)
        total += sum(hit * best[k] if k in best else -miss for k in range(len(wins)))
    return 100 * (total + miss * count) / ((hit + miss) * count)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_score_is_that_of_the_rules(data):
    rng = np.random.default_rng(data.draw(st.integers(0, 9999)))
    series, scores = [], []
    for k in range(data.draw(st.integers(1, 3))):
        n = data.draw(st.integers(60, 300))
        a = int(rng.integers(n // 5, n - 40))
        wins = [(2, 5), (a, a + int(rng.integers(1, 15)))]
        if a + 30 < n:
            wins.append((a + 20, a + 29))
        series.append(nab.Series(f"s{k}", np.arange(n) * 300, np.zeros(n), tuple(wins)))
        scores.append(rng.integers(0, 5, n).astype(float))
    named = {s.name: x for s, x in zip(series, scores)}
    for profile in nab.PROFILES:
        every = {t: plain_score(series, scores, t, profile) for t in (0.0, 1.0, 2.0, 3.0, 4.0, 5.0)}
        for t, expected in every.items():
            assert nab.score_at(named, series, profile, t) == pytest.approx(expected)
        best = nab.score_at(named, series, profile, nab._best_threshold(named, series, profile))
        assert best == pytest.approx(max(every.values()))


def test_the_published_rule_in_numbers():
    """Figures that the benchmark's authors give with the rule (the scaled sigmoid), its null and
    its perfect detector.
    """
    assert float(-nab._sigmoid(1.0)) == pytest.approx(0.98661, abs=1e-5)
    assert float(nab._sigmoid(-0.5)) == pytest.approx(0.84828, abs=1e-5)
    assert float(nab._sigmoid(0.0)) == 0
    assert nab.PROFILES == dict(
        standard=(1.0, 1.0, 0.11), low_fp=(1.0, 1.0, 0.22), low_fn=(1.0, 2.0, 0.11)
    )
    assert nab.probation(4032) == 604 and nab.probation(22_695) == 750
    s = nab.Series("one", np.arange(1000) * 300, np.zeros(1000), ((300, 399), (700, 799)))
    perfect, null = np.zeros(1000), np.zeros(1000)
    perfect[[300, 700]] = 1.0
    for profile in nab.PROFILES:
        assert nab.score_at({"one": null}, [s], profile, 0.5) == 0
        assert nab.score_at({"one": perfect}, [s], profile, 0.5) == pytest.approx(100)


@pytest.mark.slow
def test_the_future_changes_nothing(tmp_path):
    s = nab.load_nab(nab.write_synthetic(tmp_path, 1, 7000))[0]
    part = s._replace(time_s=s.time_s[:5500], value=s.value[:5500])
    np.testing.assert_allclose(_series_scores(part, 1), _series_scores(s, 1)[:5500], atol=1e-6)


@pytest.mark.parametrize("name", [d.name for d in simple_detectors() if d.name != "random"])
def test_simple_detectors_do_not_see_the_future(tmp_path, name):
    detector = next(d for d in simple_detectors(quick=True) if d.name == name)
    # probation is 750 rows, with or without the end
    s = nab.load_nab(nab.write_synthetic(tmp_path, 1, 5400))[0]
    part = s._replace(time_s=s.time_s[:5000], value=s.value[:5000])
    whole = detector.scores(s)
    for setting, x in detector.scores(part).items():
        np.testing.assert_allclose(x, whole[setting][:5000], atol=1e-6, err_msg=str(setting))


@pytest.fixture(scope="module")
def easy(tmp_path_factory):
    return nab.load_nab(nab.write_synthetic(tmp_path_factory.mktemp("easy"), 4, 1500))


class Spy:
    "A detector that notes which series it is shown."

    def __init__(self, detector):
        self.shown = []
        self.inner = detector
        self.detector = Detector(detector.name, detector.settings, self.scores)

    def scores(self, s):
        self.shown.append(s.name)
        return self.inner.scores(s)


def test_choosing_is_not_shown_the_series_that_is_judged(easy):
    spy = Spy(our_detector(1, most=1))
    choose(Judge(spy.detector), easy[1:])
    assert set(spy.shown) == {s.name for s in easy[1:]}


@pytest.mark.slow
@pytest.mark.parametrize("group", [False, True])
def test_a_poisoned_series_does_not_change_what_is_chosen_for_it(easy, group):
    """Other values, other labels: what is chosen without a series is the same, and what is chosen
    with it is not.
    """
    groups = ["a", "a", "b", "c"] if group else None
    detector = our_detector(1, most=1)
    clean = leave_out(Judge(detector), easy, groups)
    rng = np.random.default_rng(0)
    poisoned = [
        s._replace(value=rng.permutation(s.value), windows=((1000, 1400),)) for s in easy[:1]
    ] + easy[1:]
    after = leave_out(Judge(detector), poisoned, groups)
    for s in easy[: 2 if group else 1]:
        assert (after.choices[s.name] == clean.choices[s.name]) is (s is easy[0] or group)
    # it counts where it is not left out
    assert after.choices[easy[3].name] != clean.choices[easy[3].name]


def test_what_was_fitted_to_its_own_series_is_worth_nothing_left_out(easy):
    """Each setting knows one series by heart: perfect where it was chosen, worthless where it is
    judged.
    """

    def by_heart(s):
        starts = np.isin(np.arange(len(s.value)), [a for a, _ in s.judged]) * 1.0
        return {x.name: starts * (x.name == s.name) for x in easy}

    cheat = Judge(Detector("by heart", tuple(s.name for s in easy), by_heart))
    for profile in nab.PROFILES:
        assert choose(cheat, easy[:1]).fitted[profile] == pytest.approx(100)
        assert leave_out(cheat, easy).score(profile) == pytest.approx(0)


@pytest.mark.slow
def test_many_chances_do_not_help_chance(easy):
    """The best of two hundred random settings looks good where it was chosen, and is not good left
    out.
    """

    def tries(s):
        rng = np.random.default_rng([7, len(s.name), int(s.value.sum() * 1000) % 2**31])
        return {k: rng.random(len(s.value)) for k in range(200)}

    judge = Judge(Detector("tries", tuple(range(200)), tries))
    assert choose(judge, easy).fitted["standard"] > 50
    assert leave_out(judge, easy).score("standard") < choose(judge, easy).fitted["standard"] - 25


def test_a_perfect_and_a_null_detector_are_100_and_0_left_out(easy):
    def perfect(s):
        return {"only": np.isin(np.arange(len(s.value)), [a for a, _ in s.judged]) * 1.0}

    def null(s):
        return {"only": np.zeros(len(s.value))}

    for profile in nab.PROFILES:
        for scores, expected in ((perfect, 100), (null, 0)):
            got = leave_out(Judge(Detector("d", ("only",), scores)), easy)
            assert got.score(profile) == pytest.approx(expected)
            assert got.interval(profile) == pytest.approx((expected, expected))


@pytest.mark.slow
def test_the_same_series_give_the_same_figures(easy):
    a, b = (leave_out(Judge(our_detector(1, most=2)), easy) for _ in range(2))
    assert a.choices == b.choices
    for profile in nab.PROFILES:
        assert a.totals[profile].tolist() == b.totals[profile].tolist()
        assert a.interval(profile) == b.interval(profile)


def test_layout_of_the_publisher(tmp_path):
    folder = tmp_path / "data" / "realThings"
    nab.write_synthetic(folder, 2, 1000)
    spans = json.loads((folder / "windows.json").read_text())
    (folder / "windows.json").unlink()
    (tmp_path / "labels").mkdir()
    named = {f"realThings/{k}": v for k, v in spans.items()}
    (tmp_path / "labels" / "combined_windows.json").write_text(json.dumps(named))
    series = nab.load_nab(tmp_path)
    assert [s.name for s in series] == ["realThings/series_0.csv", "realThings/series_1.csv"]
    assert kinds([*series, series[0]._replace(name="other/x.csv")]) == [
        "realThings",
        "realThings",
        "other",
    ]


@pytest.mark.slow
@needs_given
def test_given_series():
    series = nab.load_nab(GIVEN)
    oracle = {
        s.name: np.isin(np.arange(len(s.value)), [max(a, s.probation) for a, _ in s.judged]) * 1.0
        for s in series
    }
    assert nab.score_at(oracle, series, "standard", 1.0) > 99
    draws = [
        {s.name: np.random.default_rng([k, i]).random(len(s.value)) for i, s in enumerate(series)}
        for k in range(20)
    ]
    at = [
        np.mean([nab.score_at(x, series, p, nab._best_threshold(x, series, p)) for x in draws])
        for p in nab.PROFILES
    ]
    assert abs(at[0] - 13) < 4 and abs(at[1] - 4) < 3 and abs(at[2] - 27) < 4
    plain = {s.name: plain_forest(s) for s in series}
    assert (
        nab.score_at(plain, series, "standard", nab._best_threshold(plain, series, "standard")) == 0
    )


@pytest.mark.slow
@needs_given
def test_left_out_score_of_the_given_series():
    "One forest instead of three, so that it is quick; the report's figures come from three."
    series = nab.load_nab(GIVEN)
    ours = leave_out(Judge(our_detector(1)), series)
    assert (
        ours.score("standard") >= 66 and ours.score("low_fp") >= 58 and ours.score("low_fn") >= 70
    )
    simple = {
        d.name: leave_out(Judge(d), series)
        for d in simple_detectors(quick=True)
        if "window" in d.name.lower()
    }
    assert len(simple) == 2
    assert all(ours.score(p) > x.score(p) for x in simple.values() for p in nab.PROFILES)
