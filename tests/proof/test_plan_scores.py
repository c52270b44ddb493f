"Plans, warnings and chances: scores by hand, and what they say with and without a clock."

import numpy as np
import pytest

from arcpoint_ce.proof.plan_scores import (
    _breach_trial,
    _chance_scores,
    _plan_scores,
    _starts,
    _surging,
    _warning_scores,
)


def flags(n, *on):
    out = np.zeros(n, bool)
    out[list(on)] = True
    return out


def test_spells_begin_where_they_begin():
    assert _starts(flags(8, 0, 1, 4, 7)).tolist() == [0, 4, 7]


def test_a_warning_in_time_early_late_and_false():
    breach = flags(40, 20, 21)
    assert _warning_scores(flags(40, 17), breach, 60.0)["lead_s"] == 180.0
    assert _warning_scores(flags(40, 20), breach, 60.0)["lead_s"] == 0.0
    assert _warning_scores(flags(40, 21), breach, 60.0)["recall"] == 0.0
    early = _warning_scores(flags(40, 5), breach, 60.0)
    assert (early["recall"], early["false_alarms"]) == (0.0, 1)


def test_whoever_always_warns_warns_of_every_calm_step():
    always = _warning_scores(np.ones(100, bool), flags(100, 50), 60.0, early_s=300.0)
    assert always["false_share"] == 1.0 and always["recall"] == 1.0
    silent = _warning_scores(np.zeros(100, bool), flags(100, 50), 60.0)
    assert (silent["recall"], silent["false_share"], silent["lead_s"]) == (0.0, 0.0, None)


def test_chances_by_hand():
    scores = _chance_scores([0.0, 0.0, 1.0, 1.0], [0, 0, 1, 1])
    assert (scores["ece"], scores["brier"], scores["brier_skill"]) == (0.0, 0.0, 1.0)
    mean = _chance_scores([0.5] * 4, [0, 0, 1, 1])
    assert (mean["ece"], mean["brier_skill"]) == (0.0, 0.0)
    wrong = _chance_scores([1.0, 1.0, 0.0, 0.0], [0, 0, 1, 1])
    assert (wrong["ece"], wrong["brier_skill"]) == (1.0, -3.0)
    for bad in ([], [1.2], [0.1, 0.2]):
        with pytest.raises(ValueError, match="chance_scores"):
            _chance_scores(bad, [1])


def test_a_plan_that_is_short_is_cheap_and_seen_to_be_short():
    came = np.array([4.0, 4.0])
    out = _plan_scores(came, dict(reactive=[4, 4], clairvoyant=[2, 2], none=[0, 2]), 2.0, 3600.0)
    assert out.replica_hours.tolist() == [8.0, 4.0, 2.0] and out.short.tolist() == [0.0, 0.0, 0.5]
    assert out.gap_closed.tolist() == [0.0, 1.0, 1.5]
    with pytest.raises(ValueError, match="none has"):
        _plan_scores(came, dict(none=[1]), 2.0, 60.0)


def test_surges_without_a_clock_are_as_many_and_as_long():
    clock, wild = (_surging(400, 3, c) > 120 for c in (True, False))
    assert abs(wild.mean() - clock.mean()) < 0.04 and not np.array_equal(clock, wild)


@pytest.mark.slow
def test_chances_are_sharp_with_a_clock_and_honest_about_nothing_without_one():
    known, wild = (_breach_trial(c, seeds=(2,), cycles=12) for c in (True, False))
    assert known.brier_skill["clock learned"] > 0.6 and known.lead_s["clock learned"] >= 120
    assert wild.brier_skill["clock learned"] < 0.35
