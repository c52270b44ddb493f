"The rules that came later choose as their texts say: small situations, worked out by hand."

import re
from math import exp
from pathlib import Path

import numpy as np
import pytest

import arcpoint_ce.lab.rivals as rivals
from arcpoint_ce.lab.contest import CONTENDERS, contenders
from arcpoint_ce.lab.fleet import Call, Fleet, Gauge, Job, ServiceCurve, SimBackend
from arcpoint_ce.lab.health_rules import Pacing, StreamBreaker
from arcpoint_ce.lab.rivals import GRIDS, PEERS, _StepForest, _StreamPaces, _WorkLeft, make_peer
from arcpoint_ce.lab.workloads import Lengths, Tokens, poisson
from arcpoint_ce.lab.worlds import Setting, World
from arcpoint_ce.routing.records import Backend

PACED = sorted(name for name, points in GRIDS.items() if any(p.get("paced") for p in points))


def started(name, capacity=(8, 8), rpm=(None, None), gateways=1, **params):
    peer = make_peer(name, gateways=gateways, **params)
    backends = [Backend(f"b{i}", capacity=c, rpm=r) for i, (c, r) in enumerate(zip(capacity, rpm))]
    peer.start(tuple(backends), 0)
    return peer


def a_call(now=0.0, tokens_in=0.0, tokens_out=100.0, slo_s=5.0):
    return Call(0, tokens_in, tokens_out, "standard", slo_s, now, 0)


def put(peer, place, now=0.0, **of_the_call):
    "An attempt that the rule sends to this place, because it is told of no other."
    call = a_call(now, **of_the_call)
    assert peer.choose(call, now, [place]) == place
    call.tried.append(place)
    return Job(call, 0, place, now)


def job_at(place, start_s=0.0, **of_the_call):
    return Job(a_call(start_s, **of_the_call), 0, place, start_s)


def curve(tpot_ms):
    times_ms = tuple(factor * tpot_ms for factor in (1.0, 1.1, 1.5, 3.0))
    return ServiceCurve(batch=(1, 8, 16, 32), tpot_ms=times_ms)


# ---- reading one's own streams


def test_the_rivals_stand_on_no_code_of_the_router_under_test():
    source = Path(rivals.__file__).read_text()
    imported = re.findall(r"^from (\S+) import", source, re.M)
    ours = re.compile(r"router|nowcast|polic|engine|breaker")
    assert not [name for name in imported if ours.search(name)]


def test_the_pace_is_seconds_over_tokens_and_both_fade_to_1_over_e_every_second():
    paces, job = _StreamPaces(1), job_at(0)
    for second, tokens in enumerate((10, 30, 50, 55), start=1):  # the first only sets the mark
        paces.report(job, tokens, float(second))
    seconds, tokens = 1 + exp(-1) + exp(-2), 5 + 20 * exp(-1) + 20 * exp(-2)
    assert paces.pace_s[0] == pytest.approx(seconds / tokens)


def test_two_streams_of_one_backend_are_pooled():
    paces, jobs = _StreamPaces(2), [job_at(0), job_at(0)]
    for second in (1.0, 2.0):
        for job, rate in zip(jobs, (10, 40)):
            paces.report(job, int(rate * second), second)
    assert paces.pace_s[0] == pytest.approx(2 / 50) and paces.pace_s[1] is None


def test_a_stream_without_a_token_adds_seconds_from_its_fifth_on():
    paces, flowing, silent = _StreamPaces(1), job_at(0), job_at(0)
    seen = []
    for second in range(1, 7):
        paces.report(flowing, 20 * second, float(second))
        paces.report(silent, 0, float(second))
        seen.append(paces.pace_s[0])
    assert seen[3] == pytest.approx(1 / 20)  # until 4 s it says nothing
    full = sum(exp(-k) for k in range(5))
    assert seen[5] == pytest.approx((full + 1 + exp(-1)) / (20 * full))


def test_a_stream_that_stalls_after_its_first_token_makes_the_pace_slow():
    paces, job = _StreamPaces(1), job_at(0)
    for second, tokens in enumerate((20, 40, 40, 40), start=1):
        paces.report(job, tokens, float(second))
    assert paces.pace_s[0] == pytest.approx((1 + exp(-1) + exp(-2)) / (20 * exp(-2)))


def test_where_nothing_streams_the_pace_drifts_to_the_median_after_two_seconds():
    paces, jobs = _StreamPaces(3), [job_at(p) for p in range(3)]
    for second in (1.0, 2.0):
        for job, rate in zip(jobs, (10, 20, 100)):
            paces.report(job, int(rate * second), second)
    assert paces.pace_s == pytest.approx([0.1, 0.05, 0.01])
    paces.drifted_s = 2.0
    paces.drift(4.0)
    assert paces.pace_s == pytest.approx([0.1, 0.05, 0.01])  # 2 s are not over
    paces.drift(64.0)
    part = 1 - exp(-1)
    assert paces.pace_s == pytest.approx([0.1 - part * 0.05, 0.05, 0.01 + part * 0.04])


def test_whole_answers_count_where_nothing_streams_as_in_the_gamma_rule():
    peer, gamma = started("stream_least"), started("adaptive_least_sharp")
    answers = ((2.0, None), (8.0, None), (0.01, "error"), (9.0, "timeout"), (3.0, "timeout"))
    for took_s, error in answers:
        for rule in (peer, gamma):
            rule.end(put(rule, 0, tokens_in=400), took_s, error is None, error)
    assert peer.paces.pace_s[0] == pytest.approx(gamma.late[0])  # the newest counts .3
    for second in range(1, 300):
        peer.tick(float(second), (None, None))
    assert peer.paces.pace_s[0] == pytest.approx(gamma.late[0])  # never seen streaming: no drift
    streaming = started("stream_least")
    job = put(streaming, 0)
    for second in (1.0, 2.0):
        streaming.progress(job, int(20 * second), second)
    streaming.end(put(streaming, 0), 3.9, True, None)
    assert streaming.paces.pace_s[0] == pytest.approx(0.05)  # a stream was heard 1.9 s ago
    streaming.end(put(streaming, 0), 4.1, True, None)
    assert streaming.paces.pace_s[0] == pytest.approx(0.05 + 0.3 * (0.041 - 0.05))


def test_load_is_what_is_left_of_a_mean_answer_and_at_least_a_tenth():
    left, job = _WorkLeft(1), job_at(0)
    left.sent(0)
    left.seen(job, 50)
    assert left.load == [1.0]  # no answer yet: how long they are is unknown
    for tokens in (100.0, 300.0):
        left.answered(tokens)
    assert left.mean_tok == 200.0
    for tokens, load in ((50, 0.75), (179, 0.105), (199, 0.1), (900, 0.1)):
        left.seen(job, tokens)
        assert left.load[0] == pytest.approx(load)
    left.gone(job)
    assert left.load[0] == pytest.approx(0.0)


def test_stream_least_takes_the_least_load_by_capacity_times_pace_to_the_sixth():
    peer = started("stream_least", (8, 16))
    peer.paces.pace_s[:] = [0.05, 0.06]
    peer.left.load[:] = [1.0, 3.0]
    assert peer.scores(a_call(), [0, 1]) == pytest.approx([2 / 8 * 0.05**6, 4 / 16 * 0.06**6])
    assert peer.send(a_call(), 0.0) == 0
    peer.left.load[0] = 8.0  # 9/8 · .05⁶ is more than 4/16 · .06⁶: 4.5 against 2.99
    assert peer.send(a_call(), 0.0) == 1


def test_errors_count_once_for_a_first_attempt_and_twentyfold_for_a_retry():
    peer = started("stream_least", (8, 8, 8), (None, None, None))
    peer.end(put(peer, 0), 0.01, False, "error")
    assert peer.error == pytest.approx([0.3, 0.0, 0.0])
    # (.056/.05)⁶ = 1.97 lies between 1 + .3 and 1 + 20 · .3
    peer.paces.pace_s[:] = [0.05, 0.056, 1.0]
    again = a_call()
    again.tried.append(2)
    assert peer.scores(a_call(), [0])[0] == pytest.approx(0.05**6 / 8 * 1.3)
    assert peer.scores(again, [0])[0] == pytest.approx(0.05**6 / 8 * 7)
    assert peer.pick(a_call(), 0.0, [0, 1]) == 0 and peer.pick(again, 0.0, [0, 1]) == 1


def test_its_breaker_waits_for_lasting_failure_and_does_not_double_while_some_is_served():
    def after(outcomes, took_s):
        rule = StreamBreaker()
        rule.start(2, None)
        for t, ok in outcomes:
            rule.ended(job_at(0, t - took_s), t, ok, None if ok else "error")
        return rule

    assert not after([(10.0 + k, False) for k in range(4)], 0.6).out  # four slow ones
    assert after([(10.0 + k, False) for k in range(5)], 0.6).out == {0: 19.0}
    broken = [(10.0 + k, k == 3) for k in range(8)]
    assert not after(broken, 0.6).out  # a success in between
    assert not after([(10.0 + k, False) for k in range(19)], 0.4).out  # 19 quick ones
    assert after([(10.0 + k, False) for k in range(20)], 0.4).out == {0: 34.0}
    assert not after([(10.0 + k / 20, False) for k in range(40)], 0.01).out  # 40 within 1.95 s
    assert after([(10.0 + k / 20, False) for k in range(41)], 0.01).out == {0: 17.0}

    rule = after([(10.0 + k, False) for k in range(5)], 0.6)
    waits = []
    for served in (False, False, True, False):
        now = rule.out[0]
        assert rule.viable([0, 1], now - 0.1) == [1] and rule.viable([0, 1], now) == [0, 1]
        if served:
            rule.ended(job_at(0, now), now + 1, True, None)
        for _ in range(5):
            rule.ended(job_at(0, now), now + 1, False, "timeout")
        waits.append(rule.out[0] - now - 1)
    assert waits == [10.0, 20.0, 5.0, 10.0]


def test_stream_least_hears_of_a_slow_down_before_any_answer_comes():
    "A backend becomes ten times slower. Who reads streams leaves it at once, who waits does not."
    sims = [SimBackend(Backend(n, capacity=16), curve(25.0)) for n in "ab"]

    def sent_there(name):
        fleet = Fleet(sims, [make_peer(name)], seed=1, timeout_s=200.0)
        fleet.at(60.0, lambda f, now: f.set("a", speed=0.1))
        work = poisson(0.7, 150, seed=4, tokens=Tokens(Lengths(100.0, 0.1), Lengths(1200.0, 0.1)))
        record = fleet.run(work.with_slo(2.5, 30.0))
        soon = (record.born_s > 64.0) & (record.born_s < 90.0)
        return (record.first[soon] == 0).sum(), soon.sum()

    streams, n = sent_there("stream_least")
    answers, _ = sent_there("adaptive_least_sharp")
    assert n >= 15 and streams == 0 and answers >= 3


# ---- LMetric, least work left


def test_lmetric_takes_the_least_product_of_new_prefill_tokens_and_batch_size():
    peer = started("lmetric", (8, 8, 8), (None, None, None))
    jobs = [put(peer, place, tokens_in=n) for place, n in ((0, 1000.0), (1, 100.0), (1, 100.0))]
    call = a_call(tokens_in=200.0)
    assert [peer.score(call, p) for p in range(3)] == [1200 * 2, 400 * 3, 200 * 1]
    shown = ((1.0, 0), (2.0, 0), (9.0, 2))  # running, waiting
    gauges = [Gauge(1.0, running, waiting, 25.0) for running, waiting in shown]
    peer.tick(1.0, tuple(gauges))  # they count our own requests, which must not be counted twice
    assert [peer.score(call, p) for p in range(3)] == [1200 * 2, 400 * 3, 200 * 12]
    assert peer.send(call, 1.0) == 1
    peer.progress(jobs[0], 0, 2.0)
    assert peer.score(call, 0) == 1200 * 2  # no token yet
    peer.progress(jobs[0], 3, 3.0)
    assert peer.score(call, 0) == 200 * 2  # its prompt is done
    by_capacity = started("lmetric", (8, 16), by_capacity=True)
    assert [by_capacity.score(call, p) for p in range(2)] == [200 / 8, 200 / 16]


def test_least_work_left_sees_how_far_its_own_requests_have_come():
    peer = started("least_work_left", (8, 8))
    peer.left.answered(100.0)
    jobs = [put(peer, 0), put(peer, 0), put(peer, 1)]
    for job in jobs[:2]:
        peer.progress(job, 70, 5.0)
    assert peer.left.load == pytest.approx([0.6, 1.0])
    assert peer.send(a_call(), 5.0) == 0 and peer.send(a_call(), 5.0) == 1
    fast = started("least_work_left", (8, 8), tpot_ms=dict(b0=30.0, b1=10.0))
    # (load + 1)/speed at the second: 1/3, 2/3, 3/3, which is level with 1/1 at the first
    assert [fast.send(a_call(), 0.0) for _ in range(4)] == [1, 1, 0, 1]
    with pytest.raises(ValueError, match="tpot_ms lacks b1"):
        started("least_work_left", tpot_ms=dict(b0=20.0))


# ---- the exercise's rule


def test_the_forest_sees_load_rolling_mean_and_slope_and_learns_the_step_five_ahead():
    forest = _StepForest()
    rng = np.random.default_rng(0)
    loads, latencies = rng.uniform(50, 150, 60), rng.uniform(40, 400, 60)
    for k in range(60):
        forest.step(loads[k], latencies[k])
        assert (forest.forecast is None) == (k < 24)  # 20 pairs, each with its step five later
    last = latencies[-5:]
    assert forest.rows[-1] == pytest.approx([loads[-1], last.mean(), (last[-1] - last[0]) / 4])
    from sklearn.ensemble import RandomForestRegressor

    pairs = forest.fitted
    plain = RandomForestRegressor(10, min_samples_leaf=2, random_state=0)
    plain.fit(np.array(forest.rows[:pairs]), latencies[5 : pairs + 5])
    assert forest.forecast == pytest.approx(plain.predict([forest.rows[-1]])[0])


def test_a_step_without_answers_keeps_the_last_latency_and_none_is_invented():
    forest = _StepForest()
    for latency in (None, 100.0, None, 40.0):
        forest.step(1.0, latency)
    assert forest.latencies == [100.0, 100.0, 40.0]


def test_the_rule_leaves_only_what_exceeds_the_limit_for_the_best_forecast():
    peer = started("exercise_rule", (8, 8, 8), (None, None, None))

    def chosen(own, forecasts):
        peer.own[:] = own
        for forest, value in zip(peer.forests, forecasts):
            forest.forecast = value
        return peer.send(a_call(), 0.0)

    assert chosen([0, 1, 2], (1.01, 0.9, 0.2)) == 2
    assert chosen([0, 1, 2], (0.99, 0.9, 0.2)) == 0
    assert chosen([0, 1, 2], (1.5, None, 1.2)) == 2
    assert chosen([0, 1, 2], (None, 0.1, 0.1)) == 0
    assert chosen([0, 1, 2], (1.1, 1.2, 1.3)) == 0  # never for a worse one


def test_as_stated_it_measures_in_milliseconds_and_minutes_scaled_in_limits():
    stated = started("exercise_rule", limit_ms=300.0, step_s=60.0)
    scaled = started("exercise_rule")
    for peer in (stated, scaled):
        peer.end(put(peer, 0, slo_s=10.0), 4.0, True, None)
        peer.end(put(peer, 0, slo_s=10.0), 0.01, False, "error")  # an instant error is no latency
    assert (stated.took[0], scaled.took[0]) == ([4000.0], [pytest.approx(0.4)])
    assert (stated.every_s, scaled.every_s) == (60.0, 6.0)
    scaled.tick(6.0, (None, None))
    assert scaled.forests[0].latencies == [pytest.approx(0.4)] and scaled.forests[0].loads == [2]
    assert scaled.sent == [0, 0] and scaled.took == [[], []]


# ---- pacing, and equal means


def test_paced_spends_no_more_than_has_come_due():
    pacing = Pacing()
    pacing.start((Backend("a", rpm=30.0), Backend("b")))
    for now, due in ((0.0, 1), (1.9, 1), (2.0, 2), (10.0, 6), (58.0, 30), (59.9, 30), (60.0, 1)):
        while 0 in pacing.viable([0, 1], now):
            pacing.sent(0, now)
        assert pacing.used[0] == due, now


@pytest.mark.parametrize("name", PACED)
def test_every_tuned_rival_can_be_paced_and_then_keeps_a_told_limit(name):
    def first_ten_seconds(**params):
        peer = started(name, (8, 8, 8), (30.0, None, None), **params)
        n = 0
        for k in range(200):
            call = a_call(k / 20)
            place = peer.send(call, k / 20)
            call.tried.append(place)
            n += place == 0
            peer.end(Job(call, 0, place, k / 20), k / 20 + 0.5, True, None)
        return n

    assert first_ten_seconds(paced=True) <= 5 < first_ten_seconds()
    assert first_ten_seconds(paced=True, gateways=3) <= 2


def test_a_paced_gamma_rule_stands_beside_the_frozen_one():
    frozen = make_peer("adaptive_least_sharp")
    paced = make_peer("adaptive_least_sharp_paced", gateways=2)
    assert (frozen.alpha, frozen.gamma, frozen.pacing) == (0.3, 6.0, None)
    assert (paced.alpha, paced.gamma, paced.pacing.gateways) == (0.3, 6.0, 2)
    world = World(Setting("rate_limit", 900_000, n=600, gateways=3, load=0.5))
    assert {g.pacing.gateways for g in contenders("stream_least", world, {}, {})} == {3}


def test_pacing_saves_refusals_in_a_fleet_that_tells_its_limits():
    world = World(Setting("rate_limit", 900_001, n=1500, load=0.4))

    def refused(name):
        record = world.fleet(contenders(name, world, {}, {})).run(world.workload)
        return record.attempts.sum() - 1500

    assert refused("adaptive_least_sharp") > 50 > 5 * refused("adaptive_least_sharp_paced")


def test_gauges_count_the_load_of_others_once():
    def chosen(others, fresh):
        peer = started("adaptive_gauges", gamma=2.0, others=others, fresh=fresh)
        peer.own[:] = [1, 2]
        peer.tick(1.0, (Gauge(1.0, 9.0, 0, 30.0), Gauge(1.0, 2.0, 0, 25.0)))
        scores = [(peer.own[p] + peer.share * peer.others[p] + 1) * peer.factor[p] for p in (0, 1)]
        return scores, peer.send(a_call(), 1.0)

    assert (make_peer("adaptive_gauges").share, make_peer("adaptive_gauges").fresh) == (0.0, True)
    scores, place = chosen(0.0, True)  # own load and the pace of now
    assert scores == pytest.approx([2 / 8 * 0.03**2, 3 / 8 * 0.025**2]) and place == 0
    scores, place = chosen(1.0, True)
    assert scores == pytest.approx([10 / 8 * 0.03**2, 3 / 8 * 0.025**2]) and place == 1
    scores, place = chosen(0.0, False)  # no answer yet: lateness unknown
    assert scores == pytest.approx([2 / 8, 3 / 8]) and place == 0


def test_every_peer_is_a_contender():
    assert set(PEERS) - {"clairvoyant"} <= set(CONTENDERS)
    assert {"stream_least", "lmetric", "exercise_rule", "least_work_left"} <= set(CONTENDERS)
    assert "adaptive_least_sharp_paced" in CONTENDERS
