"The usual drift detector: how often it is wrong, how late it is, and that it says the same twice."

import numpy as np

from arcpoint_ce.forecast.drift import DETECTORS, DriftConfig, _heavy_errors, _Stream, delay_curve
from arcpoint_ce.forecast.online import adaptation


def test_false_alarms_and_delay_of_the_usual_setting():
    got = delay_curve((DETECTORS["page_hinkley"],), seeds=25, n=10_000)[0]
    assert got["false_per_10k"] <= 0.3, got
    assert got["median_delay"] <= 50 and got["missed"] <= 1, got


def test_a_detector_that_is_more_nervous_is_wrong_more_often():
    nervous, usual = delay_curve((8.0, DETECTORS["page_hinkley"]), seeds=6, n=5000)
    assert nervous["false_per_10k"] > 10 * max(usual["false_per_10k"], 0.1)


def test_the_same_errors_raise_the_same_alarms():
    errors = _heavy_errors(np.random.default_rng(5), 4000)
    errors[2000:] *= 3

    def alarms():
        stream = _Stream(DriftConfig())
        return [(k, hit) for k, x in enumerate(errors.tolist()) if (hit := stream.update(x))]

    assert alarms() == alarms() and 2000 < alarms()[0][0] < 2100


def test_adaptation_counts_until_errors_are_as_good_as_the_twins_and_stay_so():
    twin = np.ones(600)
    assert adaptation(np.r_[np.full(80, 30.0), np.ones(520)], twin) == 80
    assert adaptation(np.full(600, 30.0), twin) is None
    relapse = np.r_[np.full(80, 30.0), np.ones(60), np.full(100, 30.0), np.ones(360)]
    assert adaptation(relapse, twin) == 240  # one good stretch is not enough
