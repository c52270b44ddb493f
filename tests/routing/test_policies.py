"Policies by hand: scores from their formulas, odds from counting every draw."

from collections import Counter
from itertools import product
from math import exp, isclose

import pytest

from arcpoint_ce.routing.policies import (
    POLICIES,
    HeadRoom,
    OwnPace,
    PredictedCost,
    Scene,
    Signals,
    TwoChoices,
    WeightedPlan,
    _best_drawn_odds,
    _cheapest_first,
    _cheapest_mix,
    _draw_two,
    _drawn_odds,
    _filled_times,
    _head_room,
    _strain,
    _tempered,
    make_policy,
)
from arcpoint_ce.routing.records import Backend


def scene(*capacity: float, **how) -> Scene:
    "Backends of these capacities in the first places; nothing is forecast."
    n = len(capacity)
    plain = dict(
        backends=tuple(Backend(f"b{k}", capacity=c) for k, c in enumerate(capacity)),
        slots=tuple(range(n)),
        weight=(1.0,) * n,
        p50_ms=(None,) * n,
        p_slow=(None,) * n,
        step_ms=(None,) * n,
        cost_usd=(0.0,) * n,
        slo_ms=(300.0,) * n,
    )
    return Scene(**(plain | how))


def signals(*in_flight: int, **how) -> Signals:
    n = len(in_flight)
    plain = dict(error=[0.0] * n, latency=[0.0] * n, stamp=[0.0] * n)
    return Signals(list(in_flight), **(plain | how))


def grid(n: int) -> list[float]:
    "Numbers in the middle of n equal parts of 0..1."
    return [(k + 0.5) / n for k in range(n)]


def drawn(plan, s: Signals, parts: int, draws: int = 1, now: float = 0.0) -> list[float]:
    "How often each position is chosen over all draws of a grid."
    seen: Counter = Counter()
    for numbers in product(grid(parts), repeat=draws):
        at = iter(numbers)
        seen[plan.choose(lambda: next(at), s, now)] += 1
    n = sum(seen.values())
    return [seen[k] / n for k in range(len(plan.scores(s, now)))]


def test_two_are_drawn_by_weight_without_replacement():
    weights, cum = [1.0, 2.0, 3.0], [1.0, 3.0, 6.0]
    seen: Counter = Counter()
    for u, v in product(grid(60), repeat=2):
        at = iter((u, v))
        seen[_draw_two(lambda: next(at), weights, cum)] += 1
    for i, j in product(range(3), repeat=2):
        odds = weights[i] / 6.0 * weights[j] / (6.0 - weights[i]) if i != j else 0.0
        assert seen[i, j] / 3600 == pytest.approx(odds)
    assert _draw_two(lambda: 0.99, [2.0], [2.0]) == (0, 0)
    almost = 1.0 - 2.0**-53
    for weights in ([1.0, 1e-9], [1e-9, 1.0], [0.1, 0.2, 0.7]):
        cum = [sum(weights[: k + 1]) for k in range(len(weights))]
        for u, v in product((0.0, 0.5, almost), repeat=2):
            at = iter((u, v))
            i, j = _draw_two(lambda: next(at), weights, cum)
            assert i != j and 0 <= min(i, j) and max(i, j) < len(weights)


@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0, 5.0], [1.0, 1.0, 2.0, 2.0], [1.0] * 4])
def test_the_odds_of_the_better_of_two_are_those_of_all_pairs(scores):
    weights, total = [1.0, 2.0, 3.0, 4.0], 10.0
    by_hand = [0.0] * 4
    for i, j in product(range(4), repeat=2):
        if i != j:
            odds = weights[i] / total * weights[j] / (total - weights[i])
            by_hand[i if scores[i] <= scores[j] else j] += odds
    assert _best_drawn_odds(weights, scores) == pytest.approx(by_hand)
    assert _best_drawn_odds([3.0], [1.0]) == [1.0] and _best_drawn_odds([], []) == []


@pytest.mark.parametrize("scores", [[3.0, 1.0, 2.0], [1.0, 1.0, 2.0], [1.0] * 3])
@pytest.mark.parametrize("draws", [1, 2, 3])
def test_the_odds_of_the_best_of_several_are_those_of_all_draws(scores, draws):
    weights, total = [1.0, 2.0, 5.0], 8.0
    by_hand = [0.0] * 3
    for picks in product(range(3), repeat=draws):
        odds = 1.0
        for i in picks:
            odds *= weights[i] / total
        best = [i for i in set(range(3)) if scores[i] == min(scores[k] for k in picks)]
        for i in best:
            by_hand[i] += odds * weights[i] / sum(weights[k] for k in best)
    assert _drawn_odds(weights, scores, draws) == pytest.approx(by_hand)


def test_a_weighted_draw_is_in_proportion():
    plan, s = WeightedPlan([1.0, 0.0, 3.0]), signals(0, 0, 0)
    assert drawn(plan, s, 40) == plan.probabilities(s, 0.0) == [0.25, 0.0, 0.75]
    assert [plan.chance(k, s, 0.0) for k in range(3)] == [0.25, 0.0, 0.75]
    assert plan.scores(s, 0.0) == [-1.0, 0.0, -3.0]
    assert plan.choose(lambda: 1.0, s, 0.0) == 2


def test_each_in_turn():
    plan, s = make_policy("round_robin").plan(scene(1, 1, 1), signals(0, 0, 0)), signals(0, 0, 0)
    chosen = []
    for turn in range(5):
        s.turn = turn
        chosen.append(plan.choose(lambda: 0.0, s, 0.0))
    assert chosen == [0, 1, 2, 0, 1]
    assert plan.scores(s, 0.0) == [2.0, 0.0, 1.0] and plan.probabilities(s, 0.0) == [0, 1, 0]
    assert [plan.chance(k, s, 0.0) for k in range(3)] == [0.0, 1.0, 0.0]


def test_least_in_flight_breaks_ties_at_random():
    plan = make_policy("least_in_flight").plan(scene(4, 2, 2), signals(3, 1, 0))
    assert plan.scores(signals(3, 1, 0), 0.0) == [1.0, 1.0, 0.5]
    assert drawn(plan, signals(3, 1, 1), 30) == pytest.approx([1 / 3] * 3)
    assert plan.probabilities(signals(3, 1, 1), 0.0) == pytest.approx([1 / 3] * 3)
    assert plan.probabilities(signals(3, 1, 0), 0.0) == [0.0, 0.0, 1.0]


@pytest.mark.parametrize("capacity", [(2, 2, 2), (4, 2, 1)], ids=["alike", "mixed"])
@pytest.mark.parametrize("busy", [(0, 0, 0), (3, 1, 0), (1, 3, 1)], ids=str)
def test_of_two_at_random_the_emptier_wins(capacity, busy):
    plan, s = TwoChoices().plan(scene(*capacity), signals(*busy)), signals(*busy)
    assert plan.scores(s, 0.0) == [(n + 1) / c for n, c in zip(busy, capacity)]
    odds = drawn(plan, s, 6, draws=2)
    assert plan.probabilities(s, 0.0) == pytest.approx(odds)
    assert [plan.chance(k, s, 0.0) for k in range(3)] == pytest.approx(odds)
    alone = TwoChoices().plan(scene(2), signals(5))
    assert alone.choose(lambda: 0.9, signals(5), 0.0) == 0 and alone.chance(0, signals(5), 0.0) == 1


def test_peak_ewma_decays_and_what_never_answered_is_tried_once():
    plan = make_policy("peak_ewma").plan(scene(1, 1, 1, 1, weight=(1.0, 0.5, 1.0, 1.0)), signals())
    s = signals(2, 0, 0, 3, latency=[100.0, 100.0, 0.0, 0.0], stamp=[0.0, 20.0, 0.0, 0.0])
    assert plan.scores(s, 10.0) == pytest.approx([300.0 * exp(-1), 200.0, 0.0, 1e12 + 3])
    assert plan.weights == [1.0] * 4


def test_adaptive_least_weighs_load_lateness_and_errors():
    s = signals(1, 0, 3, 0, latency=[100.0, 0.0, 50.0, 200.0], error=[0.0, 0.0, 0.25, 0.0])
    plan = make_policy("adaptive_least").plan(scene(2, 4, 1, 1), s)
    assert plan.scores(s, 0.0) == [100.0, 25.0, 400.0, 200.0]
    sharp = make_policy("adaptive_least", gamma=2.0).plan(scene(2, 4, 1, 1), s)
    assert sharp.scores(s, 0.0) == [1e4, 2500.0, 4 * 2500 * 2.0, 4e4]
    new = make_policy("adaptive_least").plan(scene(2, 1), signals(0, 0))
    assert new.scores(signals(0, 0), 0.0) == [0.5, 1.0] and new.weights == [2.0, 1.0]


def test_the_threshold_avoids_the_worst_first_and_half_of_the_capacity_at_most():
    def weights(step_ms, capacity=(2, 2, 3, 1), **how):
        return make_policy("threshold").plan(scene(*capacity, step_ms=step_ms, **how), None).weights

    assert weights((None, 300.0, 299.0, None)) == [2.0, 2.0, 3.0, 1.0]
    assert weights((301.0, None, 600.0, None)) == [2.0, 2.0, 1e-12, 1.0]
    assert weights((900.0, None, 600.0, 301.0)) == [1e-12, 2.0, 3.0, 1e-12]
    assert weights((900.0, 800.0, None, None)) == [1e-12, 1e-12, 3.0, 1.0]  # exactly half
    shed = weights((301.0, 900.0, None, None), weight=(1.0, 1.0, 0.5, 1.0))
    assert shed == [2.0, 1e-12, 1.5, 1.0]  # what is shed already counts
    slow = weights(
        (301.0, 900.0, None, None), slo_ms=(100.0, 600.0, 1.0, 1.0), capacity=(4, 4, 1, 1)
    )
    assert slow == [1e-12, 4.0, 1.0, 1.0]  # worst by its own limit


def test_expected_times_where_a_forecast_is_missing():
    s = signals(0, 0, 0, latency=[0.0, 900.0, 10.0])
    assert _filled_times(scene(1, 1, 1, p50_ms=(None, None, None)), s) == [1.0, 900.0, 10.0]
    assert _filled_times(scene(1, 1, 1, p50_ms=(50.0, None, None)), s) == [50.0, 900.0, 50.0]
    s = signals(0, 0, 0, 0)
    assert _filled_times(scene(1, 1, 1, 1, p50_ms=(50.0, 80.0, 20.0, None)), s)[3] == 50.0


def test_head_room_is_what_will_meet_the_limit():
    assert _head_room(scene(4, 2)) == [4.0, 2.0]
    assert _head_room(scene(4, 2, 8, p_slow=(0.25, 1.0, None), weight=(1.0, 1.0, 0.5))) == [
        3.0,
        0.04,
        0.0 + 4.0 * 0.02,
    ]
    filled = _head_room(scene(1, 1, 1, 1, p_slow=(0.1, 0.3, 0.6, None)))
    assert filled == pytest.approx([0.9, 0.7, 0.4, 0.7])


def test_the_cheapest_that_meet_the_limit_and_hold_what_is_needed():
    four = scene(
        *(4, 4, 4, 4), p_slow=(0.1, 0.05, 0.2, 0.0), cost_usd=(1.0, 2.0, 0.5, 2.0), confidence=0.9
    )
    room = [3.0, 4.0, 5.0, 6.0]
    assert _cheapest_mix(four, room, 2.0) == [0, 1, 3]  # never one alone
    assert _cheapest_mix(four, room, 13.0) == [0, 1, 3]
    assert _cheapest_mix(four, room, 13.1) == [0, 1, 2, 3]
    two = scene(4, 4, 4, p_slow=(0.0, 0.0, 0.0), cost_usd=(1.0, 1.0, 2.0))
    assert _cheapest_mix(two, [1.0, 2.0, 9.0], 3.0) == [0, 1]
    assert _cheapest_mix(two, [1.0, 2.0, 9.0], 3.1) == [0, 1, 2]
    assert _cheapest_mix(scene(1, 1), [1.0, 1.0], 0.0) == [0, 1]  # nothing is forecast


def test_predicted_cost_stretches_the_expected_time_by_load_and_errors():
    seen = scene(4, 2, 1, p50_ms=(100.0, 50.0, 80.0), p_slow=(0.5, 0.0, 0.0))
    s = signals(1, 2, 0, error=[0.0, 0.25, 0.0])
    plan = PredictedCost(thrift=False).plan(seen, s)
    assert plan.scores(s, 0.0) == [150.0, 50.0 * 2 * 2, 80.0]
    assert plan.probabilities(s, 0.0) == pytest.approx(
        _best_drawn_odds([2.0, 2.0, 1.0], [150.0, 200.0, 80.0])
    )
    assert drawn(plan, s, 60, draws=2) == pytest.approx(plan.probabilities(s, 0.0), abs=0.01)


def test_predicted_cost_takes_price_into_account_while_there_is_room():
    seen = scene(4, 4, 4, p50_ms=(9.0,) * 3, p_slow=(0.0,) * 3, cost_usd=(1.0, 1.0, 2.0))
    for in_flight, kept in (((1, 1, 1), 2), ((2, 1, 1), 3)):  # twice (1 + those under way)
        s = signals(*in_flight)
        plan = PredictedCost().plan(seen, s)
        assert len(plan.mix) == kept and len(plan.probabilities(s, 0.0)) == 3
    assert PredictedCost(thrift=False).plan(seen, signals(0, 0, 0)).mix == [0, 1, 2]
    dear = PredictedCost().plan(seen, signals(0, 0, 0))
    assert dear.probabilities(signals(0, 0, 0), 0.0)[2] == 0.0
    assert {dear.choose(lambda u=u: u, signals(0, 0, 0), 0.0) for u in grid(9)} == {0, 1}


@pytest.mark.parametrize(
    "full, error, burst, score",
    [
        (0.5, 0.0, 5.0, 0.5),
        (0.5, 0.1, 5.0, 0.7),  # slower by its retries, or shunned as if 85 % full
        (0.5, 0.05, 5.0, 0.6),
        (0.2, 0.1, 5.0, 0.2 + 0.65 * 0.5),
        (0.5, 0.9, 5.0, 0.5 * 4.6),
        (0.1, 0.9, 5.0, 0.85),
        (1.0, 0.0, 5.0, 1.0),
        (2.0, 0.1, 5.0, 0.5 + 4.0),  # the fuller of the full first
        (5.0, 0.1, 5.0, 0.5 + 10.0),
        (6.0, 0.0, 5.0, 11.0),
        (2.0, 0.1, 1.0, 0.5 + 3.0),  # the less full first
    ],
)
def test_what_a_request_suffers_at_one_place(full, error, burst, score):
    assert _strain(full, error, 5.0, burst) == pytest.approx(score)


def test_the_cheapest_first_until_there_is_room():
    cost, free = (3.0, 1.0, 2.0, 1.0), [9.0, 1.0, -5.0, 2.0]
    assert _cheapest_first(cost, free, 0.0) == []
    assert _cheapest_first(cost, free, 0.5) == [1, 3]  # equal prices stay together
    assert _cheapest_first(cost, free, 3.0) == [1, 3]
    assert _cheapest_first(cost, free, 3.1) == [1, 3, 2, 0]
    assert _tempered([8.0, 8.0, 8.0], [0.0, 6.0, 9.0], 0.01) == pytest.approx([8.0, 4.0, 0.8])


def test_head_room_holds_ours_and_others_against_what_meets_the_limit():
    seen = scene(
        4, 4, 4, most=(10.0, None, 20.0), occupied=(4.0, None, None), weight=(1.0, 0.5, 0.5)
    )
    s = signals(1, 1, 4, error=[0.0, 0.0, 0.0])
    plan = HeadRoom().plan(seen, s)
    assert plan.all[1:] == (pytest.approx([10.0, 2.0, 10.0]), [4.0, 0.0, 0.0])
    assert plan.scores(s, 0.0) == pytest.approx([0.6, 1.0, 0.5])
    assert plan.room == pytest.approx([6.0, 2.0, 10.0])
    assert plan.probabilities(s, 0.0) == pytest.approx(
        _drawn_odds([6.0, 2.0, 10.0], [0.6, 1.0, 0.5], 3)
    )
    assert drawn(plan, s, 18, draws=3) == pytest.approx(plan.probabilities(s, 0.0))
    s.error[0] = 0.5
    shy = HeadRoom().plan(seen, s)
    assert shy.room == pytest.approx([6.0 / 16, 2.0, 10.0])
    assert shy.scores(s, 0.0)[0] == pytest.approx(0.6 * 3.0)
    s.error[0] = 1.0
    assert HeadRoom(floor=0.1).plan(seen, s).room[0] == pytest.approx(1.0)


def test_an_overload_that_is_measured_and_large_is_not_shared_evenly():
    def burst(busy, most=(10.0, 10.0)):
        s = signals(busy, 0)
        return HeadRoom().plan(scene(4, 4, most=most, occupied=(10.0, 10.0)), s).burst

    assert [burst(3), burst(4), burst(5)] == [1.0, 1.0, 5.0]
    assert HeadRoom().plan(scene(4, 4), signals(90, 0)).burst == 1.0
    s = signals(5, 0)
    plan = HeadRoom().plan(scene(4, 4, most=(10.0, 10.0), occupied=(10.0, 10.0)), s)
    assert plan.scores(s, 0.0) == pytest.approx([6.0 - 1.6, 6.0 - 1.1])
    assert drawn(plan, s, 10, draws=3) == pytest.approx(plan.probabilities(s, 0.0), abs=0.05)


def test_head_room_fills_the_cheapest_first_where_asked():
    seen = scene(10, 10, 10, cost_usd=(1.0, 2.0, 3.0))
    for busy, kept in ((0, [0]), (4, [0]), (5, [0, 1])):  # 4 spare: 8 of 10 each may be filled
        plan = HeadRoom(thrift=0.8).plan(seen, signals(busy, 0, 0))
        assert plan.mix == kept
    assert HeadRoom(thrift=0.8, gateways=2).plan(seen, signals(3, 0, 0)).per[2] > 1e4
    odds = HeadRoom(thrift=0.8).plan(seen, signals(0, 0, 0)).probabilities(signals(0, 0, 0), 0.0)
    assert odds == [1.0, 0.0, 0.0]


def test_with_several_gateways_each_takes_a_steady_share():
    seen = scene(4, 4, most=(16.0, 16.0), occupied=(0.0, 12.0))
    s = signals(3, 1, error=[0.0, 0.25])
    plan = HeadRoom(gateways=2).plan(seen, s)
    assert plan.scores(s, 0.0) == pytest.approx([4.0 / 16.0, 2.0 / 8.0 * 2.0])
    assert plan.choose(None, s, 0.0) == 0 and plan.probabilities(s, 0.0) == [1.0, 0.0]
    s.in_flight = [9, 0]
    assert plan.choose(None, s, 0.0) == 1 and plan.probabilities(s, 0.0) == [0.0, 1.0]
    s.phase = (0.0, 1.0)
    phased = HeadRoom(gateways=2).plan(seen, s)
    assert phased.scores(s, 0.0) == pytest.approx([9.8 / 16.0, 1.2 / 8.0 * 2.0])


def test_own_pace_weighs_work_left_pace_and_errors():
    seen, s = scene(2, 4), signals(3, 0, load=[1.5, 0.0], slow=[2.0, 3.0], error=[0.5, 0.25])
    s.retried = 0.5
    plan = OwnPace().plan(seen, s)  # errors count 20 + (1 - 20) / 2
    assert plan.scores(s, 0.0) == pytest.approx([2.5 * (1 + 10.5 * 0.5), 0.75 * (1 + 10.5 * 0.25)])
    assert [plan.score(k, s, 0.0) for k in range(2)] == pytest.approx(plan.scores(s, 0.0))
    assert plan.choose(None, s, 0.0) == 1 and plan.probabilities(s, 0.0) == [0.0, 1.0]
    assert [plan.chance(k, s, 0.0) for k in range(2)] == [0.0, 1.0]
    again = OwnPace().plan(scene(2, 4, again=True), s)
    assert again.scores(s, 0.0)[1] == pytest.approx(0.75 * (1 + 20 * 0.25))


def test_of_a_large_fleet_own_pace_compares_ten():
    n = 25
    s = signals(*[0] * n, slow=[1.0 + 7 * k % n for k in range(n)])
    plan = OwnPace().plan(scene(*[1.0] * n), s)
    odds = drawn(plan, s, n)
    assert plan.probabilities(s, 0.0) == pytest.approx(odds)
    assert [plan.chance(k, s, 0.0) for k in range(n)] == pytest.approx(odds)
    scores = plan.scores(s, 0.0)
    best = min(range(n), key=scores.__getitem__)
    assert odds[best] == pytest.approx(10 / n)  # whenever it is among the compared
    ten = OwnPace().plan(scene(*[1.0] * 10), signals(*[1] * 9, 0))
    assert ten.choose(None, signals(*[1] * 9, 0), 0.0) == 9


def test_where_something_is_foreseen_own_pace_draws_by_the_score():
    s = signals(0, 0, 0)
    plan = OwnPace(gamma=2.0, sharpness=3.0).plan(scene(1, 2, 1, change=(1.0, 1.0, 2.0)), s)
    assert plan.scores(s, 0.0) == [1.0, 0.5, 4.0]
    by_hand = [0.5**3, 1.0, 0.125**3]
    assert plan.probabilities(s, 0.0) == pytest.approx([x / sum(by_hand) for x in by_hand])
    assert plan.score(2, s, 0.0) == 4.0
    assert drawn(plan, s, 2_000) == pytest.approx(plan.probabilities(s, 0.0), abs=1e-3)
    assert plan.choose(lambda: 1.0, s, 0.0) == 2


def test_with_several_gateways_own_pace_draws_candidates():
    s = signals(1, 0, 0, slow=[1.0, 2.0, 1.0])
    plan = OwnPace(gateways=2, draws=2).plan(scene(4, 4, 2), s)
    assert plan.weights == [4.0, 2.0, 2.0]
    assert plan.scores(s, 0.0) == [0.5, 0.5, 0.5] and plan.score(1, s, 0.0) == 0.5
    s = signals(0, 0, 0, slow=[1.0, 2.0, 1.0])
    assert plan.probabilities(s, 0.0) == pytest.approx(
        _drawn_odds([4.0, 2.0, 2.0], [0.25, 0.5, 0.5], 2)
    )
    assert drawn(plan, s, 8, draws=2)[0] == pytest.approx(0.75)


def test_signals_that_say_nothing_of_work_left_count_each_request_whole():
    s = Signals([2, 0, 1])
    assert s.load == [2.0, 0.0, 1.0] and s.slow == [1.0] * 3 and s.retried == 0.5
    full = signals(1, 2, latency=[3.0, 4.0], stamp=[5.0, 6.0], load=[0.5, 0.25], slow=[2.0, 3.0])
    frozen = full.frozen()
    assert frozen == (
        (1, 2),
        (0.0, 0.0),
        (3.0, 4.0),
        (5.0, 6.0),
        0,
        (),
        (0.5, 0.25),
        (2.0, 3.0),
        0.5,
        0.5,
        0.0,
        (0.0, 0.0),  # failures among the newest outcomes
    )
    assert full.frozen(lean=True)[2:4] == ((), ())
    assert Signals(*frozen).frozen() == frozen


@pytest.mark.parametrize("name", POLICIES)
def test_the_odds_of_a_fleet_of_one_are_certain(name):
    s = signals(3, load=[2.5], slow=[4.0])
    plan = make_policy(name).plan(scene(2.0), s)
    assert plan.probabilities(s, 1.0) == [1.0] and plan.choose(lambda: 0.7, s, 1.0) == 0


def test_unknown_policies_and_parameters_are_refused():
    with pytest.raises(ValueError, match="unknown policy 'best'; known: random, round_robin"):
        make_policy("best")
    with pytest.raises(TypeError):
        make_policy("own_pace", gama=1.0)
    assert isclose(make_policy("own_pace", gamma=2.0).gamma, 2.0)
