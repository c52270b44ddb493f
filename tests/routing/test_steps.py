"Features of steps, by hand, and how attempts fold into steps."

import pytest

from arcpoint_ce.routing.records import Step
from arcpoint_ce.routing.steps import (
    FEATURES,
    BackendFeatures,
    History,
    features,
    middle,
    middle_sorted,
    slope,
)

S = 1_000_000  # µs


def history(*mean_ms: float | None, n: int = 6, n_err: int = 0) -> History:
    "Steps of a minute with these mean latencies; None: nothing ended."
    h = History(60)
    for k, ms in enumerate(mean_ms):
        if ms is None:
            h.push(Step(60 * k))
        else:
            h.push(Step(60 * k, n, n_err, n, int(ms * 1000) * n, tokens_out=120))
    return h


def told(h: History, *names: str, now_s: float = 0.0, **how) -> list:
    got = features(h, now_s, **how)
    assert tuple(got) == FEATURES
    return [got[name] for name in names]


def test_nothing_is_known_before_there_are_enough_steps():
    short = ("load_rps_5", "latency_ms_5", "latency_slope_ms", "latency_median_ms")
    assert told(history(*[10.0] * 4), *short) == [None] * 4
    assert told(history(*[10.0] * 5), *short) == [0.1, 10.0, 0.0, 10.0]
    long = ("load_rps_30", "latency_ms_30", "spike_ratio")
    assert told(history(*[10.0] * 29), *long) == [None] * 3
    assert told(history(*[10.0] * 30), *long) == pytest.approx([0.1, 10.0, 1.0])
    assert set(told(History(), *FEATURES)) == {None}


def test_levels_direction_and_spread_of_the_last_steps():
    h = history(90.0, 10.0, 20.0, 30.0, 40.0, 60.0)
    assert told(h, "latency_ms", "latency_ms_5", "latency_slope_ms") == pytest.approx(
        [60.0, 32.0, 12.0]
    )
    assert told(h, "latency_median_ms", "latency_spread_ms") == pytest.approx([35.0, 55.0 - 22.5])
    assert told(h, "load_rps", "latency_per_load") == pytest.approx([0.1, 600.0])
    rising = history(*[10.0] * 25, *[40.0] * 5)
    assert told(rising, "latency_ms_30", "spike_ratio") == pytest.approx([15.0, 40.0 / 15.0])


def test_an_empty_step_has_a_load_of_zero_and_no_latency():
    h = history(10.0, None)
    names = ("load_rps", "latency_ms", "latency_per_load", "tokens_rps", "p50_ms")
    assert told(h, *names) == [0.0, 10.0, None, 0.0, None]
    assert h.seen == 2 and len(h.latency_ms) == 1
    assert told(history(*[0.0] * 30), "spike_ratio", "latency_per_load") == [None, None]


def test_what_the_newest_step_and_the_last_five_tell():
    h = history(*[10.0] * 3, n=5, n_err=5)
    for k in range(3, 8):
        h.push(
            Step(60 * k, 4, k - 3, 4, 40_000, tokens_out=120, p50_ms=1.0, p90_ms=2.0, p99_ms=3.0)
        )
    names = ("error_rate", "tokens_rps", "p50_ms", "p90_ms", "p99_ms")
    assert told(h, *names) == pytest.approx([10 / 20, 2.0, 1.0, 2.0, 3.0])
    assert told(h, "age_s", "cycle_phase", now_s=500.0) == [500.0 - 480.0, None]
    h.period_steps = 8
    assert told(h, "cycle_phase", now_s=60.0 * 10) == [0.25]
    assert told(h, "in_flight", "oldest_ms", in_flight=3, oldest_ms=4.5) == [3, 4.5]


def test_quantiles_and_the_slope_of_a_few_numbers():
    assert slope([1.0, 2.0]) == pytest.approx(1.0) and slope([3.0, 1.0, 5.0]) == pytest.approx(1.0)
    assert slope([4.0, 4.0, 1.0, 1.0]) == pytest.approx(-1.2)
    assert [middle_sorted([1.0, 3.0, 9.0], q) for q in (0.0, 0.25, 0.5, 0.75, 1.0)] == [
        1.0,
        2.0,
        3.0,
        6.0,
        9.0,
    ]
    assert middle([9.0, 1.0, 3.0]) == 3.0 and middle([7.0], 0.9) == 7.0


def folding(step_s: int = 60) -> tuple[BackendFeatures, list[Step]]:
    closed: list[Step] = []
    fold = BackendFeatures("a", step_s)
    fold.listeners.append(closed.append)
    return fold, closed


def test_an_attempt_enters_the_step_in_which_it_ends():
    fold, closed = folding()
    fold.begin(1, 59 * S)
    assert (fold.open.start_s, fold.end_us) == (0, 60 * S)
    fold.observe(1, 60 * S, S, True, 5, 7)
    assert [(c.start_s, c.n, c.in_flight, c.oldest_ms) for c in closed] == [(0, 0, 1, 1_000.0)]
    assert (fold.open.start_s, fold.open.n, fold.open.n_err, fold.running) == (60, 1, 0, {})
    assert (fold.open.latency_us, fold.open.tokens_in, fold.open.tokens_out) == (S, 5, 7)
    fold.begin(2, 120 * S)
    assert len(closed) == 2 and fold.open.start_s == 120 and fold.running == {2: 120 * S}
    fold.drop(2)
    fold.drop(3)
    assert fold.running == {}


def test_an_attempt_of_a_closed_step_is_late_and_of_the_open_one_is_not():
    fold, _ = folding()
    fold.roll(10**12)  # nothing is open yet
    assert fold.open is None
    fold.observe(-1, 130 * S, None, False)
    assert fold.open.start_s == 120 and fold.open.n_err == 1
    fold.observe(-1, 120 * S, S, True)
    fold.observe(-1, 120 * S - 1, S, True)
    assert (fold.open.n, fold.late) == (2, 1)


def test_what_began_after_a_step_was_not_running_in_it():
    fold, closed = folding()
    fold.begin(1, 10 * S)
    fold.begin(2, 30 * S)
    fold.running[3] = 60 * S  # begins with the next step
    fold.roll(60 * S)
    assert [(c.in_flight, c.oldest_ms) for c in closed] == [(2, 50_000.0)]
    fold.running.clear()
    fold.roll(120 * S - 1)
    assert len(closed) == 1
    fold.roll(120 * S)
    assert (closed[1].in_flight, closed[1].oldest_ms) == (0, None)


def test_a_long_silence_closes_the_last_hundred_steps_only():
    fold, closed = folding(1)
    fold.observe(-1, 0, S, True)
    fold.roll(1_000 * S)
    assert [c.n for c in closed] == [1] + [0] * 100
    assert closed[1].start_s == 900 and closed[-1].start_s == 999 and fold.open.start_s == 1_000
    short, closed = folding(1)
    short.begin(1, 0)
    short.drop(1)
    short.roll(101 * S)
    assert len(closed) == 101


def test_a_clock_that_ran_ahead_is_set_back():
    fold, closed = folding()
    fold.begin(1, 500 * S)
    fold.set_back(490 * S)  # the same step: it stays open
    assert (closed, fold.open.start_s, fold.running) == ([], 480, {1: 490 * S})
    fold.observe(-1, 501 * S, S, True)
    fold.set_back(480 * S)
    assert closed == [] and fold.open.start_s == 480
    fold.set_back(100 * S)
    assert [c.start_s for c in closed] == [480]
    assert (fold.open.start_s, fold.running) == (60, {1: 100 * S})
    fold.set_back(10 * S)  # nothing ended in it: it is not worth closing
    assert len(closed) == 1 and fold.open.start_s == 0


def test_reading_closes_what_has_ended_and_looks_at_what_runs():
    fold, closed = folding()
    fold.observe(-1, 10 * S, 2 * S, True)
    fold.begin(1, 30 * S)
    fold.begin(2, 40 * S)
    got = fold.read(60.0)
    assert len(closed) == 1
    assert (got["in_flight"], got["oldest_ms"], got["latency_ms"]) == (2, 30_000.0, 2_000.0)
    assert got["age_s"] == 0.0 and BackendFeatures("b").read(0.0)["oldest_ms"] is None
