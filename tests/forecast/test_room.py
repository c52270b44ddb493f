"""The room forecaster in an engine, as a program uses it: what it has learned pays, and what goes
wrong harms nobody.
"""

import pytest
from helpers import Program

from arcpoint_ce import Backend, ContextEngine, Outcome, Request, RouterConfig
from arcpoint_ce.forecast.room import RoomForecaster
from arcpoint_ce.lab.contest import contenders, counted, ours
from arcpoint_ce.lab.worlds import Setting, World

EPOCH_S = 1.7e9  # a program's clock does not begin at 0
T = EPOCH_S


class Lasting(Program):
    "A program whose engine lives on from the past into the judged time."

    def start(self, backends, seed):
        if not hasattr(self, "engine"):
            super().start(backends, seed)


@pytest.fixture(scope="module")
def missed():
    "By contender: limits missed in a world whose surges keep a clock, without streams."
    world = World(Setting("scheduled_surge", 2, n=2500, load=0.49, streams=0.0))

    def judged(gateway):
        return counted(world, world.fleet([gateway]).run(world.workload))["violations"]

    program = Lasting(world, "room", EPOCH_S, policy="head_room")
    past = world.fleet([program], past=True)
    past.run(world.history())
    program.engine.forecaster.learn([], [], past.now + EPOCH_S)
    return dict(
        program=judged(program),
        untaught=judged(Program(world, "room", EPOCH_S, policy="head_room")),
        ours=judged(ours(world, "room", policy="head_room")),
        adaptive_least=judged(contenders("adaptive_least", world, {}, {})[0]),
    )


@pytest.mark.slow
def test_a_program_gets_what_was_measured(missed):
    assert missed["adaptive_least"] > 30
    assert missed["program"] <= missed["ours"] + 25, missed


@pytest.mark.slow
def test_what_was_learned_is_what_pays(missed):
    assert missed["program"] < 0.4 * missed["untaught"], missed


# ---- what goes wrong in a program


def running(gauges=None, names="ab", holdout=0.0, **how):
    return ContextEngine(
        [Backend(n, capacity=8) for n in names],
        forecaster=RoomForecaster(**how),
        gauges=gauges,
        holdout=holdout,
        router=RouterConfig(slo_ms=3000.0, slo_tok_ms=60.0),
    )


def serve(engine, now, took_s=4.0, **outcome):
    d = engine.decide(Request(f"r{now}", tokens_in=500, tokens_out=100), now)
    engine.observe(
        Outcome(d.backend, now, took_s * 1000.0, decision=d.id, tokens_out=100, **outcome)
    )
    return d


@pytest.mark.slow
def test_a_backend_that_is_idle_for_hours_costs_nobody_the_forecast():
    e = running()
    for k in range(20):
        serve(e, T + k)
    e.tick(T + 20)
    e.router.force("b", "open", T + 20, "drain")
    for k in range(5, 3 * 3600, 5):
        serve(e, T + 20 + k)
        e.step(T + 20 + k)
    said = e.status(T + 20 + k)["forecast"]
    assert e.failures == 0 and not said["stale"] and set(said["backends"]) == {"a", "b"}


BAD = [
    (T, 1.0, 0.0, 0.0),
    (T, None, 0.0, 20.0),
    (T, 1.0, 0.0, float("nan")),
    (T, 1.0, 0.0, float("inf")),
    (T * 1000, 1.0, 0.0, 20.0),
    "x",
    1 / 3,
]


@pytest.mark.parametrize("bad", BAD)
def test_one_bad_gauge_is_counted_and_harms_nobody(bad):
    e = running(
        lambda t: {"a": bad if 50 < t - T < 60 else (t, 2.0, 0.0, 25.0), "b": (t, 3.0, 0.0, 25.0)},
        learn_s=300.0,
    )
    lessons = 0
    for k in range(0, 1000, 5):
        serve(e, T + k)
        e.step(T + k)
        if e.forecaster.lesson_due:
            lessons += e.retrain(T + k)
    assert (
        e.failures == 0
        and e.forecaster.heard.bad in (1, 2)
        and e.router.table.forecasts["a"].most > 1
    )
    assert (
        lessons >= 2
        and e.forecaster.learned_s >= T + 600
        and e.status(T + 1000)["forecaster"]["bad_gauges"] in (1, 2)
    )


def test_a_source_of_gauges_that_fails_leaves_our_own_answers(caplog):
    e = running(lambda t: 1 / 0)
    with caplog.at_level("WARNING", "arcpoint_ce"):
        for k in range(0, 300, 5):
            serve(e, T + k)
            e.step(T + k)
    assert (
        e.failures == 0
        and e.router.table.version == 60
        and e.forecaster.belief.rooms.sensors[0].known > 0
    )
    assert sum(r.message == "gauges failed" for r in caplog.records) == 60


def test_who_stays_keeps_what_was_learned_while_others_come_and_go():
    e = running(learn_s=600.0)
    for k in range(0, 1800, 5):
        if k % 300 == 150:
            e.router.add(Backend(f"n{k}", capacity=4), T + k)
        if k % 300 == 250:
            e.router.remove(f"n{k - 100}")
        serve(e, T + k)
        e.step(T + k)
        if e.forecaster.lesson_due:
            e.retrain(T + k)
    e.tick(T + 1800)
    f = e.forecaster
    assert e.failures == 0 and len(f.log.journal.ticks) == 361 and f.lesson >= 2
    curve = f.belief.rooms.model.responses[f.belief.places["b"]]
    e.router.remove("a")
    e.retrain(T + 1801)  # a lesson before the next tick
    e.tick(T + 1802)
    assert list(f.belief.places) == ["b"]
    e.router.remove("b")
    e.router.add(Backend("b", capacity=80), T + 1803)
    e.tick(T + 1804)
    assert f.belief.rooms.model.responses[0] != curve and f.belief.rooms.backends[0].capacity == 80


def test_versions_and_lessons_go_on_after_a_restart(tmp_path):
    def begun():
        return ContextEngine([Backend("a"), Backend("b")], tmp_path / "s.sqlite", forecaster="room")

    e = begun()
    for k in range(400):
        serve(e, T + k)
        e.step(T + k)
    assert e.retrain(T + 400)
    e.tick(T + 400)
    was, curves = e.router.table.version, e.forecaster.belief.rooms.model.responses
    e.close(T + 401)
    e = begun()
    e.tick(T + 430)
    assert e.resumed and e.router.table.version == was + 1
    assert e.forecaster.belief.rooms.model.responses == curves and e.forecaster.lesson == 1
    e.close(T + 431)


def test_an_empty_fleet_waits_for_members():
    e = running(names="")
    e.tick(T)
    e.router.add(Backend("a"), T + 1)
    serve(e, T + 2)
    e.tick(T + 5)
    assert list(e.router.table.forecasts) == ["a"] and e.failures == 0


def test_held_out_requests_are_written_down_and_pass_open_breakers_but_no_persons():
    e = running(holdout=0.99)
    placed = []
    for k in range(200):
        d = e.decide(Request(f"r{k}"), T + k)
        e.observe(Outcome(d.backend, T + k, 4000.0, decision=d.id, tokens_out=100))
        placed.append(d.backend)
    e.store.flush(T + 200)
    assert e.store.status()["fates"]["joined"] == 200 and 0.3 < placed.count("a") / 200 < 0.7
    held = e.rollout.holdout.test.live.n
    assert held > 180 and held + e.rollout.holdout.test.new.n == 200
    e.router.force("b", "open", T + 200, "drain")
    assert {e.decide(Request(f"s{k}"), T + 201).backend for k in range(50)} == {"a"}
    with pytest.raises(ValueError, match="share from 0"):
        running(holdout=float("nan"))


def test_held_out_requests_go_where_a_breaker_that_opened_by_itself_would_not_let_them():
    e = running(holdout=0.5)
    for k in range(60):
        d = e.decide(Request(f"r{k}"), T + 0.05 * k)
        ok = d.backend == "a"
        e.observe(
            Outcome(d.backend, T + 0.05 * k, 900.0, ok, None if ok else "error", decision=d.id)
        )
    now = T + 4
    assert e.router.health("b", now)[0] == "open"
    arms = {
        d.backend: e.rollout.holdout.held(d.request)
        for d in (e.decide(Request(f"s{k}"), now) for k in range(100))
    }
    assert arms["b"] is True and set(arms) == {"a", "b"}


def test_clocks_keep_their_time_over_a_restart():
    from dataclasses import replace

    from arcpoint_ce.forecast.head_room import Foresight

    def begun():
        e = running(names="a", ahead_s=10.0)
        e.tick(T)
        return e

    profile = tuple(float(k) for k in range(6))  # one minute: 0 to 5 requests of others
    e = begun()
    f = e.forecaster
    f.belief.believe(
        replace(f.belief.rooms.model, foresight=(Foresight(10.0, (profile,)),)), f.belief.fleet, {}
    )
    f.lesson = 1

    def at(forecaster, now):
        return forecaster.belief.rooms.model.foresight[0].at(
            forecaster.belief.rooms.model.foresight[0].occupied, now - forecaster.log.from_s
        )

    told = f.lessons(), f.memo()
    for late_s in (0.0, 7.0, 25.0, 90.0, 3605.0):
        again = RoomForecaster(ahead_s=10.0)
        again.start(e.router)
        again.restore(*told)
        again.tick(T + late_s)
        for k in (1.0, 17.0, 44.0):
            assert at(again, T + late_s + k) == pytest.approx(at(f, T + late_s + k)), late_s
        assert again.lessons()["from_s"] <= T + late_s


def test_lessons_that_do_not_fit_are_told_and_harm_no_tick():
    "They were half taken up: every tick after them failed, and nothing was foreseen any more."
    e = running(names="a")
    e.tick(T)
    plain = e.forecaster.belief.plain()
    plain["backends"]["a"]["foresight"] = dict(said=[1.0, 0.0])  # no clock
    fresh = RoomForecaster()
    fresh.start(e.router)
    with pytest.raises(KeyError, match="occupied"):
        fresh.restore(plain, {})
    assert fresh.lesson == 0 and list(fresh.tick(T + 5.0).forecasts) == ["a"]


@pytest.mark.slow
def test_the_interval_holds_what_it_promises_in_a_calm_fleet():
    """Four of five step means, in a fleet whose answers are of all lengths; what only the pace is
    uncertain by holds far fewer.
    """
    from arcpoint_ce.apps.simulate import make_stage

    stage = make_stage(None, "calm", None, requests=6000, forecaster="room")
    gateway = stage.router()
    stage.fleet([gateway]).run(stage.workload)
    rows = [gateway.engine.score.row(b.name) for b in stage.backends]
    matured = sum(r["matured"] for r in rows)
    assert matured > 200 and 0.7 < sum(r["coverage"] * r["matured"] for r in rows) / matured < 0.9
    low, high = gateway.router.table[stage.backends[0].name].sure
    assert 0.85 < low < 1 < high < 1.15
