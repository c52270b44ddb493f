"Engine physics: each effect, on and off, makes the difference that the notebook claims."

from math import inf

import numpy as np
import pytest

from arcpoint_ce.lab.fleet import FirstToken, FixedChoice, Fleet, ServiceCurve, SimBackend
from arcpoint_ce.lab.physics import Contexts, Engine, EngineStation, TalkStation, _NoisyClock
from arcpoint_ce.lab.workloads import Lengths, Tokens, Workload, poisson
from arcpoint_ce.routing.records import Backend

# .1 ms per prompt token; a full batch is as fast as one
FLAT = ServiceCurve((1.0, 64.0), (20.0, 20.0), (100.0, 100.0), 1000.0)
QUIET = dict(pace_cv=0.0, request_cv=0.0)
SHORT = Tokens(Lengths(500.0, 0.5), Lengths(100.0, 0.5))


def requests(at_s, tokens_in, tokens_out, slo_s=60.0, **more):
    n = len(at_s)
    fill = np.broadcast_to
    return Workload(
        at_s,
        fill(tokens_in, n).astype(float),
        fill(tokens_out, n).astype(float),
        np.full(n, slo_s),
        np.zeros(n, int),
        **more,
    )


class Heard(FixedChoice):
    "One place, or the place that each request is told; remembers what its streams brought."

    def __init__(self, places=None):
        self.places, self.tokens, self.pace, self.every_s = places, {}, [], 1.0

    def send(self, call, now):
        return self.places[call.k] if self.places else 0

    def progress(self, job, tokens, now):
        self.tokens.setdefault(job.call.k, []).append((now, tokens))

    def tick(self, now, gauges):
        self.pace.append(gauges[0].tpot_ms)


def fleet_of(
    engine,
    gateway=None,
    curve=FLAT,
    n=1,
    seed=0,
    first_token=None,
    streams=1.0,
    contexts=None,
    **limits,
):
    sims = [SimBackend(Backend(f"b{i}"), curve, **limits) for i in range(n)]
    return Fleet(
        sims,
        [gateway or Heard()],
        timeout_s=1e4,
        streams=streams,
        first_token=first_token,
        stations=lambda sim, place: EngineStation(sim, place, engine, seed, contexts, 20.0),
    )


def run(work, engine=Engine(**QUIET), **how):
    return fleet_of(engine, **how).run(work)


# ---- batch and queue


@pytest.mark.parametrize("queue, served", [(3, 7), (0, 4), (None, 20)])
def test_a_full_queue_refuses(queue, served):
    r = run(requests(np.zeros(20), 100.0, 50.0), slots=4, queue=queue)
    assert r.ok.sum() == served and set(r.error[~r.ok]) <= {"queue_full"} and r.ok[:served].all()


# ---- memory


def test_a_full_memory_puts_back_the_youngest_and_no_work_is_lost():
    work = requests([0.0, 0.5, 1.0], 1000.0, [400.0, 500.0, 300.0])
    heard = Heard()
    fleet = fleet_of(Engine(kv_tok=3400.0, spare=0.0, **QUIET), heard)
    r = fleet.run(work)
    free = run(work)
    assert fleet.stations[0].preempted == 1 and r.ok.all()
    assert (
        np.allclose(r.end_s[0], free.end_s[0])
        and r.end_s[2] > free.end_s[2] + 1.0
        and np.allclose(r.ttft_s, free.ttft_s)
    )
    seen = [t for _, t in heard.tokens[2]]
    assert seen == sorted(seen) and 0 < seen[0] and 299 >= seen[-1] > 200
    waits = [t for t in seen if seen.count(t) > 2]
    assert waits and waits[0] > 50  # it stood still with tokens in hand and went on from there


def test_computing_it_again_takes_as_long_as_its_prompt_and_answer_so_far():
    work = requests([0.0, 0.5], 1000.0, [400.0, 300.0])
    fleet = fleet_of(Engine(kv_tok=2300.0, spare=0.0, **QUIET))
    r = fleet.run(work)
    free = run(work)
    back_tok = (2300 - 2000 - 20) / 2  # the elder is 20 tokens ahead
    stood_s = r.end_s[0] - free.end_s[0]  # the elder did not stand still
    assert fleet.stations[0].preempted == 1 and abs(stood_s) < 1e-6
    assert r.end_s[1] - r.end_s[0] == pytest.approx(
        (300 - back_tok) * 0.020 + (1000 + back_tok) * 1e-4, abs=0.03
    )


def test_a_request_too_long_for_the_memory_is_served_alone():
    fleet = fleet_of(Engine(kv_tok=500.0, **QUIET))
    r = fleet.run(requests([0.0, 0.0, 0.0], 1000.0, 100.0))
    assert (
        r.ok.all()
        and np.allclose(np.diff(r.end_s), np.diff(r.end_s)[0])
        and fleet.stations[0].preempted == 0
    )


def test_the_memory_is_never_overdrawn_for_longer_than_an_instant():
    fleet = fleet_of(
        Engine(kv_tok=6000.0), curve=ServiceCurve((1.0, 16.0), (20.0, 40.0), (50.0, 60.0), 500.0)
    )
    room = []

    def look(f, now):
        s = f.stations[0]
        s.advance(now)
        if s.n > 1:
            room.append(s.batch.memory.room_tok(s.batch.v))
        f.at(now + 0.37, look)

    fleet.at(0.0, look)
    r = fleet.run(poisson(5.0, 800, 1, SHORT))
    assert (
        len(r) == 800 and min(room) > -1e-3 and min(room) < 300 and fleet.stations[0].preempted > 5
    )
    memory = fleet.stations[0].batch.memory
    assert abs(memory.still_tok) < 1e-4 and memory.growing == 0 and not fleet.stations[0].put_back


def test_other_tenants_hold_memory_and_send_prompts():
    long = requests([0.0], 1000.0, 500.0)
    alone, beside = (fleet_of(Engine(kv_tok=10_000.0, **QUIET)) for _ in range(2))
    beside.set(0, others=8.0)
    # the curve is flat: only prompts can do that
    assert beside.run(long).end_s[0] > 1.02 * alone.run(long).end_s[0]
    limits = [f.stations[0].batch.memory.limit_tok for f in (alone, beside)]
    assert limits[0] - limits[1] == pytest.approx(8 * 762.0)


# ---- prompts


@pytest.mark.parametrize("chunk_tok", [500.0, 2048.0, None])
def test_a_prompt_delays_who_decodes_and_an_ideal_one_does_not(chunk_tok):
    work = requests([0.0, 2.0], [100.0, 8000.0], [400.0, 10.0])
    engine = Engine(chunk_tok=chunk_tok, **QUIET)
    delay = run(work, engine).end_s[0] - run(work[:1], engine).end_s[0]
    ideal = [
        Fleet([SimBackend(Backend("a"), FLAT)], [FixedChoice()]).run(w).end_s[0]
        for w in (work, work[:1])
    ]
    assert delay == pytest.approx(0.8, abs=0.03) and ideal[0] == pytest.approx(ideal[1])


def test_chunks_let_others_go_on_meanwhile_and_whole_prompts_do_not():
    work, brought = requests([0.0, 1.5], [100.0, 20_000.0], [400.0, 10.0]), {}
    for chunk_tok in (200.0, None):
        heard = Heard()
        r = fleet_of(Engine(chunk_tok=chunk_tok, **QUIET), heard).run(work)
        seen = dict(heard.tokens[0])
        brought[chunk_tok] = seen[3.5] - seen[2.5], r.ttft_s[1]
    assert (
        brought[None][0] == 0 < 20 < brought[200.0][0]
        and brought[None][1] == pytest.approx(2.0)
        and brought[200.0][1] > 2.5
    )


def test_a_shared_beginning_is_read_once_per_backend_while_it_is_remembered():
    engine = Engine(prefix_share=0.5, prefix_s=60.0, **QUIET)

    def firsts(at_s, places, prefix):
        return (
            run(requests(at_s, 1000.0, 20.0, prefix=prefix), engine, gateway=Heard(places), n=2)
            .ttft_s.round(6)
            .tolist()
        )

    full, half = 0.12, 0.07
    assert firsts([0.0, 5.0, 10.0, 15.0], [0, 0, 0, 0], [1, 1, 2, -1]) == [full, half, full, full]
    assert firsts([0.0, 5.0, 10.0, 15.0], [0, 1, 0, 1], [1, 1, 1, 1]) == [full, full, half, half]
    assert firsts([0.0, 61.0, 100.0, 170.0], [0, 0, 0, 0], [1] * 4) == [full, full, half, full]
    assert firsts([0.0, 5.0, 10.0, 15.0], [0] * 4, [-1] * 4) == [full] * 4


# ---- the first token


def test_the_first_token_has_a_limit_of_its_own_and_only_streams_have_one():
    work = requests(np.arange(20.0) * 3.0, [100.0, 9000.0] * 10, 20.0)
    limit = FirstToken(0.5)
    missed = {s: run(work, first_token=limit, streams=s) for s in (0.0, 1.0)}
    assert (
        missed[1.0].ok.all()
        and missed[1.0].violated.tolist() == [False, True] * 10
        and not missed[0.0].violated.any()
    )
    assert (
        not run(work).violated.any()
        and not run(work, first_token=FirstToken(0.5, 0.1)).violated.any()
    )  # more for a longer prompt
    half = run(work, first_token=limit, streams=0.5)
    assert 0 < half.first_late.sum() < 10 and (half.violated == half.first_late).all()


def test_the_first_token_counts_from_the_birth_of_the_request():
    class Second(Heard):
        def again(self, call, now):
            return 1

    fleet = fleet_of(Engine(**QUIET), Second(), n=2, first_token=FirstToken(0.4))
    fleet.callers.retries, fleet.callers.backoff_s = 1, 0.45
    fleet.set(0, down="refuse")
    r = fleet.run(requests([0.0], 100.0, 20.0))
    assert r.ok.all() and r.ttft_s[0] < 0.1 and r.violated.all()


# ---- noise


@pytest.mark.parametrize("cv", [0.1, 0.3])
def test_the_pace_varies_from_second_to_second_as_stated(cv):
    heard = Heard()
    fleet_of(Engine(pace_cv=cv, request_cv=0.0), heard).run(requests([0.0], 100.0, 200_000.0))
    pace = 1000 / np.array(heard.pace[10:3500])
    assert pace.mean() == pytest.approx(
        50.0, rel=0.02
    ) and pace.std() / pace.mean() == pytest.approx(cv, rel=0.08)
    assert abs(np.corrcoef(pace[1:], pace[:-1])[0, 1]) < 0.06


def test_requests_differ_as_stated_and_without_noise_not_at_all():
    work = requests(np.arange(1500.0) * 5.0, 100.0, 100.0)
    took = {cv: run(work, Engine(pace_cv=0.0, request_cv=cv)).latency_s - 0.03 for cv in (0.0, 0.2)}
    assert (
        np.ptp(took[0.0]) < 1e-9
        and took[0.2].std() / took[0.2].mean() == pytest.approx(0.2, rel=0.08)
        and took[0.2].mean() == pytest.approx(took[0.0].mean(), rel=0.02)
    )


def test_noise_does_not_depend_on_what_a_policy_does():
    work = requests(np.arange(200.0) * 3.0, 500.0, 60.0)
    alone = run(work[::2], Engine(request_cv=0.0), gateway=Heard([0] * 100), n=2)
    beside = run(work, Engine(request_cv=0.0), gateway=Heard([0, 1] * 100), n=2)
    assert np.allclose(alone.latency_s, beside.latency_s[::2]) and alone.latency_s.std() > 0.01
    other = run(work[::2], Engine(request_cv=0.0), gateway=Heard([0] * 100), n=2, seed=1)
    assert not np.allclose(alone.latency_s, other.latency_s)


def test_a_noisy_clock_can_be_read_both_ways():
    clock = _NoisyClock(0.5, (3, 1))
    for t in np.random.default_rng(0).uniform(0, 20_000, 500):
        assert clock.true(clock.felt(t)) == pytest.approx(t, abs=1e-9)
    assert _NoisyClock(0.0, (3, 1)).true(inf) == inf


# ---- conversations


def test_moving_a_conversation_costs_the_prefill_of_its_context():
    work = requests(np.arange(4) * 60.0, 1000.0, 100.0, session=[7] * 4)
    stay, move = (
        run(
            work,
            Engine(chunk_tok=None, **QUIET),
            contexts=Contexts(200.0),
            gateway=Heard(places),
            n=2,
        ).latency_s
        for places in ([0, 0, 0, 0], [0, 1, 1, 0])
    )
    assert (move - stay).round(3).tolist() == [0.0, 4.0, 0.0, 4.0]
    other = run(
        requests([0.0, 2.0], [100.0, 1000.0], [400.0, 10.0], session=[-1, 7]),
        contexts=Contexts(200.0),
    ).end_s[0]
    assert other < 8.3  # the first turn of a conversation has no context to bring


def test_in_an_ideal_fleet_only_the_moved_request_waits():
    def play(places):
        contexts = Contexts(200.0)
        fleet = Fleet(
            [SimBackend(Backend(n), FLAT) for n in "ab"],
            [Heard(places)],
            stations=lambda sim, place: TalkStation(sim, place, contexts),
        )
        return fleet.run(
            requests(
                [0.0, 59.0, 60.0, 120.0],
                1000.0,
                [100.0, 400.0, 100.0, 100.0],
                session=[7, -1, 7, 7],
            )
        ).latency_s, contexts.moves

    stay, move = play([0, 1, 0, 0]), play([0, 1, 1, 1])
    assert np.allclose(move[0] - stay[0], [0.0, 0.0, 4.0, 0.0]) and (stay[1], move[1]) == (0, 1)
