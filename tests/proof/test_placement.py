"""Placement: room over a life, no herding, clocks as wide as they are punctual; and the session
rules by hand.
"""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.proof.placement import _LEAST, Placer, _Occupancy, learn_occupancy
from arcpoint_ce.proof.sessions import (
    _FULL,
    _Foresighted,
    _present_bound,
    _present_moves,
    _run_sessions,
    _SessionSetting,
    _SessionsNow,
    _SessionWorld,
    _slowdown,
    sessions_summary,
    sessions_table,
)

CLOCK = _Occupancy(((2.0,) * 6 + (30.0,) * 6, (8.0,)), ((2.0,) * 6 + (30.0,) * 6, (8.0,)), 10.0)


def test_room_is_that_of_the_worst_moment_of_a_life():
    placer = Placer((20.0, 20.0), CLOCK)
    assert placer.room(0.0, 60.0).tolist() == [18.0, 12.0]
    assert placer.room(0.0, 70.0).tolist() == [_LEAST * 20, 12.0]
    assert placer.room(120.0, 60.0).tolist() == [18.0, 12.0]


def test_where_no_place_has_room_throughout_the_mean_decides():
    placer = Placer((20.0, 7.0), CLOCK)
    assert placer.room(0.0, 120.0).tolist() == [9.0, _LEAST * 7]


def test_what_is_bound_takes_room_until_it_ends():
    placer = Placer((20.0, 20.0), CLOCK)
    assert placer.bind("a", 0.0, 30.0, 5.0, (0.0, 0.0)) == 0
    assert placer.room(0.0, 60.0).tolist() == [13.0, 12.0]
    assert placer.room(30.0, 30.0).tolist() == [18.0, 12.0]
    placer.release("a")
    placer.release("a")
    assert placer.room(0.0, 60.0).tolist() == [18.0, 12.0]


def test_bound_anew_it_leaves_its_old_place():
    placer = Placer((20.0, 20.0), CLOCK)
    placer.bind("a", 0.0, 30.0, 5.0, (0.0, 0.0))
    placer.bind("a", 0.0, 30.0, 5.0, (0.99, 0.99))
    assert placer.committed(0.0, 2).tolist() == [[0, 0], [5, 5]]


@given(st.lists(st.floats(0.1, 50), min_size=2, max_size=8), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_a_draw_is_one_of_two_candidates_and_the_roomier_one(room, u, v):
    room = np.array(room)
    placer = Placer(room, CLOCK)
    one, two, both = (placer.choose(room, d) for d in ((u, u), (v, v), (u, v)))
    assert both in (one, two) and room[both] == max(room[one], room[two])


def test_the_shift_is_a_median_so_that_an_early_surge_is_none():
    placer = Placer((20.0, 20.0), CLOCK, memory_s=100.0)
    for t in range(0, 60, 10):
        placer.heard(float(t), np.array([3.0, 9.0]))
    placer.heard(55.0, np.array([30.0, 9.0]))
    assert placer.shift().tolist() == [1.0, 1.0]
    placer.heard(1000.0, np.array([2.0, 20.0]))
    assert len(placer.recent) == 1


@pytest.mark.parametrize("jitter", [0.0, 2.0, 4.0])
def test_the_profile_is_as_wide_as_the_clock_is_unpunctual(jitter):
    rng = np.random.default_rng(5)
    taken = 5 + rng.normal(0, 0.3, (12 * 120, 1))
    for c in range(12):
        a = 120 * c + 40 + round(rng.normal(0, jitter))
        taken[a : a + 30, 0] += 20
    high = np.array(learn_occupancy(taken, 10.0).high[0])
    assert abs(len(high) - 120) <= 1
    assert 0 <= (high > 15).sum() - 30 - jitter < 6 + jitter


def test_bad_samples_are_named():
    for bad in (np.zeros(9), np.full((9, 2), np.nan)):
        with pytest.raises(ValueError, match="learn_occupancy"):
            learn_occupancy(bad, 10.0)
    with pytest.raises(ValueError, match="load"):
        _SessionSetting(load=1.5)


def seen(others, bound=(0,) * 6, running=(0,) * 6):
    capacity = np.full(6, 40.0)
    return _SessionsNow(0.0, capacity, *(np.array(x, float) for x in (others, running, bound)), 0.2)


def test_present_rules_by_hand():
    assert _present_bound(seen((9, 8, 3, 9, 9, 9)), 0, None) == 2
    assert _present_bound(seen((9, 8, 3, 9, 9, 9), bound=(0, 0, 60, 0, 0, 0)), 0, None) == 1
    assert _present_bound(seen((60, 8, 3, 9, 9, 9)), 0, 0) == 0
    rule = _present_moves(2.0)
    assert rule(seen((60, 8, 3, 9, 9, 9)), 0, 0) == 2
    assert rule(seen((20, 8, 3, 9, 9, 9)), 0, 0) == 0
    assert rule(seen((60, 60, 60, 60, 60, 60)), 0, 0) == 0


def test_a_backend_is_full_where_a_request_takes_its_limit():
    assert _slowdown(0.0) == 1.0 and _slowdown(_FULL) == pytest.approx(2.5, abs=0.05)


@pytest.fixture(scope="module")
def world():
    return _SessionWorld(_SessionSetting(seed=2, cycles=1))


def test_runs_count_every_judged_request_once_and_are_repeatable(world):
    a, b = (_run_sessions(world, _present_moves(1.8)) for _ in range(2))
    assert a == b and a["requests"] == int((world.at_s >= world.start_s).sum())
    assert _run_sessions(world, _present_bound)["moved"] == 0


def test_a_clock_beats_the_present_where_sessions_are_bound(world):
    bound = _run_sessions(world, _present_bound)["missed"]
    placed = _run_sessions(world, _Foresighted(world))["missed"]
    assert bound > 100 and placed < 0.5 * bound


@pytest.mark.slow
def test_summaries_add_up():
    table = sessions_table(
        [3], loads=(0.2,), jitters_s=(20.0,), rules=("present_moves", "present_bound")
    )
    out = sessions_summary(table)
    missed = table.set_index("rule").missed
    assert out.ratio.iloc[1] == pytest.approx(missed["present_bound"] / missed["present_moves"])
