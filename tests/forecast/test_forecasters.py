"""One contract for every forecaster: what an engine does with one, it does with each, the toys of
this file included.
"""

import ast
import inspect
import json
from collections import Counter
from math import isfinite, pi, sin
from random import Random

import pytest

from arcpoint_ce.engine.engine import ContextEngine, EngineConfig
from arcpoint_ce.engine.registry import Registry, _keep_lessons, _RegistryError, _take_lessons
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.forecast.forecasters import (
    _AutoForecaster,
    _PaceJudge,
    _step_table,
    make_forecaster,
)
from arcpoint_ce.forecast.latency import LatencyForest
from arcpoint_ce.routing.records import (
    LEVELS,
    Backend,
    Forecast,
    Forecaster,
    ForecastTable,
    Outcome,
    Request,
    check_forecaster,
)
from arcpoint_ce.routing.router import NoBackend, RouterConfig

NAMES = ("east", "west", "south")
SPREAD = (0.7, 0.75, 0.9, 1.0, 1.1, 1.3, 1.4)
STEP_S = 10
ROUTER = RouterConfig(step_s=STEP_S, slo_ms=4000.0)
CONFIG = EngineConfig(tick_s=5.0, memo_s=5.0, learn="never")


class Toy:  # fulfils the protocol without inheriting from it
    name, lesson, lesson_due, evidence = "toy", 0, None, 0.0

    def __init__(self):
        self.last_ms, self.heard, self.version = {}, Counter(), 0

    def start(self, router):
        self.heard["start"] += 1

    def outcome(self, outcome):
        self.heard["outcome"] += 1

    def gauges(self, now, said):
        self.heard["gauges"] += len(said)

    def news(self):
        return []

    def memo(self):
        return {}

    def lessons(self):
        return dict(self.last_ms)

    def restore(self, lessons, memo):
        self.last_ms.update(lessons)

    def status(self):
        return dict(evidence=0.0, backends={})

    def step(self, backend, step):
        self.last_ms[backend] = step.mean_ms or self.last_ms.get(backend, 100.0)

    def tick(self, now):
        self.version += 1
        forecasts = {
            b: Forecast(b, now, 50.0, *[tuple(ms * k for k in SPREAD)] * 2)
            for b, ms in self.last_ms.items()
        }
        return ForecastTable(self.version, now, 60.0, forecasts, self.name)

    def learn(self, steps, outcomes, now):
        self.lesson += 1
        return f"the newest latency of {len(dict(steps))} backends"


class Heir(Forecaster):
    "Says only what it must: every backend will take a second."

    name = "heir"

    def start(self, router):
        self.router, self.version = router, 0

    def tick(self, now):
        self.version += 1
        second = tuple(1000.0 * k for k in SPREAD)
        forecasts = {
            b.name: Forecast(b.name, now, 50.0, second, second) for b in self.router.backends
        }
        return ForecastTable(self.version, now, 60.0, forecasts, self.name)


def latency_ms(backend: str, at_s: float) -> float:
    "A wave of ten minutes, at another time on each backend."
    return 2000.0 * (1 + 0.5 * sin(2 * pi * (at_s / 600.0 + NAMES.index(backend) / 3)))


def ended(decision, at_s: float, took_ms: float) -> Outcome:
    return Outcome(
        decision.backend, at_s - took_ms / 1000, took_ms, True, None, decision.id, 0, 20, 100
    )


def live(
    engine,
    begin_s: float,
    seconds: float,
    seed: int = 0,
    slower=lambda backend, at_s: 1.0,
    gauges=None,
) -> float:
    "Two requests a second, told of while they stream; the time when it ends, s."
    rng, due = Random(seed), []
    engine.gauges = gauges or engine.gauges
    for k in range(int(seconds * 2)):
        now = begin_s + k / 2
        while due and due[0][0] <= now:
            at_s, decision, tokens, took_ms = due.pop(0)
            if tokens < 100:
                engine.progress(decision, tokens, at_s)
            else:
                engine.observe(ended(decision, at_s, took_ms))
        d = engine.decide(Request(f"r{now}", tokens_in=20, tokens_out=100), now)
        took_ms = latency_ms(d.backend, now) * slower(d.backend, now) * rng.lognormvariate(0, 0.05)
        due += [
            (now + took_ms * part / 1000, d, int(100 * part), took_ms)
            for part in (0.25, 0.5, 0.75, 1.0)
        ]
        due.sort(key=lambda x: x[0])
        engine.step(now)
    for at_s, decision, tokens, took_ms in due:
        if tokens == 100:
            engine.observe(ended(decision, at_s, took_ms))
    return begin_s + seconds


@pytest.fixture(scope="module")
def past():
    "Steps and outcomes of an engine that has run for an hour, and the time then."
    engine = engine_of("none", None, policy="random")
    now = live(engine, 0.0, 3600.0)
    engine.tick(now)
    engine.store.flush()
    return *engine.trainer.past(now), now


@pytest.fixture(scope="module")
def forest(past):
    return LatencyForest(5 * STEP_S, trees=20, n_jobs=1).fit(_step_table(past[0]))


KINDS = ("auto", "none", "room", "latency", "both", "forest", "toy", "heir")
LEARNERS = ("auto", "room", "latency", "both", "forest", "toy")
FORESTS = ("latency", "forest", "both")


def make(kind, forest):
    return dict(forest=lambda: forest, toy=Toy, heir=Heir).get(kind, lambda: kind)()


def engine_of(kind, forest, store=None, names=NAMES, **how):
    fleet = [Backend(n, 8.0) for n in names]
    return ContextEngine(
        fleet, store, forecaster=make(kind, forest), router=ROUTER, config=CONFIG, **how
    )


def taught(kind, forest, past, store=None):
    "An engine whose forecaster has learned from the past, where it can."
    engine = engine_of(kind, forest, store)
    steps, outcomes, now = past
    if kind in LEARNERS:
        assert len(engine.forecaster.learn(steps, outcomes, now)) > 10
    return engine


def check(table, engine, now):
    "A table as the engine hands it on: every forecast whole."
    assert isinstance(table, ForecastTable) and table.made_s == now and table.max_age_s > 0
    for name, f in table.items():
        assert (
            f.backend == name in {b.name for b in engine.router.backends}
            and f.made_s <= now
            and f.horizon_s > 0
        )
        for quantiles in (f.step_ms, f.request_ms):
            assert len(quantiles) == len(LEVELS) and list(quantiles) == sorted(quantiles)
            assert 0 < quantiles[0] < quantiles[-1] < 1e7
        assert (
            f.most > 0 and f.occupied >= 0 and isfinite(f.most + f.occupied) and 0 <= f.trust <= 1
        )


def plain(x):
    """As it comes back from JSON.

    It may hold no NaN, and no number of numpy, which JSON would keep as text.
    """
    return json.loads(json.dumps(x, allow_nan=False))


def test_a_toy_is_small_and_whatever_lacks_a_method_is_refused():
    statements = [n for n in ast.walk(ast.parse(inspect.getsource(Toy))) if isinstance(n, ast.stmt)]
    assert len(statements) < 30
    assert check_forecaster(Toy()) and check_forecaster(Heir())
    lame = type(
        "Lame",
        (),
        {k: v for k, v in vars(Toy).items() if k not in ("news", "lesson_due") and k[:2] != "__"},
    )
    with pytest.raises(
        TypeError, match="it lacks news, lesson_due.*inherit from arcpoint_ce.Forecaster"
    ):
        ContextEngine([Backend("east")], forecaster=lame())
    with pytest.raises(ValueError, match="unknown forecaster 'rooms'; known: auto"):
        make_forecaster("rooms")


@pytest.mark.parametrize("kind", KINDS)
def test_hears_and_forecasts(kind, forest, past):
    engine = taught(kind, forest, past)
    now = past[2]

    def gauges(t):
        return {n: (t, 2.0, 0.0, 20.0) for n in NAMES}

    end = live(engine, now, 120.0, gauges=gauges)
    before = engine.router.table.version
    table = engine.tick(end + 5.0)
    check(table, engine, end + 5.0)
    assert set(table) == (set() if kind == "none" else set(NAMES)), "somebody is missing"
    assert table.version > before or kind == "none"
    assert all(f.now_ms > 0 for f in table.values())
    assert engine.failures == 0
    status = plain(engine.status(end + 5.0))
    assert status["forecaster"]["name"] == engine.forecaster.name and set(
        status["forecast"]["backends"]
    ) >= set(table)
    assert engine.rank(Request(), end + 5.0)
    if kind == "toy":
        assert engine.forecaster.heard["outcome"] > 200 and engine.forecaster.heard["gauges"] > 60


def settle(engine, begin_s: float, seconds: float = 120.0) -> ForecastTable:
    "The same answers from every backend: what was measured before counts no more."
    for k in range(int(seconds)):
        for name in NAMES:
            engine.observe(
                Outcome(
                    name, begin_s + k, latency_ms(name, begin_s + k), True, None, None, 0, 20, 100
                )
            )
        if k % 5 == 4:
            table = engine.tick(begin_s + k + 1.0)
    return table


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_what_was_learned_comes_back(kind, forest, past):
    """The same past heard, the same lessons, the same answers since: the same forecasts (sensors
    begin anew, and come close).
    """
    steps, outcomes, now = past
    first, second = taught(kind, forest, past), engine_of(kind, forest)
    first.tick(now)
    lessons, memo = plain(first.forecaster.lessons()), plain(first.forecaster.memo())
    assert bool(lessons) == (kind in LEARNERS and kind != "toy") and (
        first.forecaster.lesson > 0
    ) == (kind in LEARNERS)
    for name, step in steps:
        second.forecaster.step(name, step)
    second.forecaster.restore(lessons, memo)
    said, again = settle(first, now), settle(second, now)
    assert set(said) == set(again)
    for name, f in said.items():
        assert again[name].request_ms == pytest.approx(f.request_ms, rel=0.05), name
        assert again[name].trust == pytest.approx(f.trust, abs=1e-6)


@pytest.mark.parametrize("kind", LEARNERS)
def test_a_lesson_makes_every_backend_known(kind, forest, past):
    "All steps of a moment count, not only the first backend's."
    steps, outcomes, now = past
    engine = taught(kind, forest, past)
    engine.tick(now)
    known = engine.tick(now + 5.0)
    assert set(known) == (set() if kind == "toy" else set(NAMES))  # the toy hears steps only


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_the_whole_loop_and_a_restart(kind, forest, past, tmp_path):
    path, now = tmp_path / "engine.db", past[2]
    engine = taught(kind, forest, past, path)
    assert not engine.resumed
    end = live(engine, now, 400.0)
    lesson = engine.forecaster.lesson
    assert engine.retrain(end) == (kind in LEARNERS)
    engine.tick(end + 5.0)
    engine.store.flush()
    whats = Counter(e["what"] for e in engine.store.rows("events"))
    assert whats["retrained" if kind in LEARNERS else "retraining failed"] == 1
    assert (engine.forecaster.lesson > lesson) == (kind in LEARNERS)
    evidence, table = engine.forecaster.evidence, engine.tick(end + 10.0)
    lessons = plain(engine.forecaster.lessons())
    last = engine.decide(Request("last"), end + 10.0).id
    engine.close(end + 11.0)
    with engine_of(kind, forest, path) as again:
        assert again.resumed and not [
            e for e in again.store.rows("events") if e["what"] == "not resumed"
        ]
        assert again.forecaster.evidence == pytest.approx(evidence, abs=0.02)
        assert kind == "toy" or set(plain(again.forecaster.lessons())) == set(lessons)
        assert set(again.router.table) == set(table)
        assert again.decide(Request("next"), end + 12.0).id > last
        check(again.tick(end + 15.0), again, end + 15.0)
        live(again, end + 15.0, 60.0)
        assert again.failures == 0


@pytest.mark.slow
@pytest.mark.parametrize("kind", FORESTS)
def test_a_shift_is_drift_and_costs_trust(kind, forest, past):
    """From one moment on everything takes four times as long, as nobody could foresee, and goes up
    and down without a rule.
    """
    engine, now = taught(kind, forest, past), past[2]
    calm = live(engine, now, 300.0)
    engine.store.flush()
    part = engine.forecaster if kind != "both" else engine.forecaster.parts[1]
    before, events = part.evidence, Counter(e["what"] for e in engine.store.rows("events"))
    live(
        engine,
        calm,
        1200.0,
        slower=lambda b, t: 4.0 if Random(int(t // 60)).random() < 0.5 else 1.0,
    )
    engine.store.flush()
    after = Counter(e["what"] for e in engine.store.rows("events"))
    assert after["drift"] > events["drift"] and part.evidence < before - 0.2
    why = next(e["why"] for e in engine.store.rows("events") if e["what"] == "drift")
    assert why.startswith("latency: ") == (kind == "both")
    assert sum(engine.status(calm + 1200.0)["drift"]["events"].values()) > 0


class Claims(Forecaster):
    "Claims to know the wave `latency_ms`; `sign` -1 foresees the opposite of what comes."

    AHEAD_S = 120.0

    def __init__(self, name: str, sign: float, prior: float = 0.0):
        self.name, self.sign, self.prior = name, sign, prior

    def start(self, router):
        self.router, self.judge, self.version = router, _PaceJudge(router, STEP_S, self.prior), 0

    @property
    def evidence(self):
        return self.judge.earned.fleet / self.judge.earned.enough

    def tick(self, now):
        self.version += 1
        self.judge.settle(now)
        forecasts = {}
        for b in self.router.backends:
            now_ms = latency_ms(b.name, now)
            then_ms = now_ms * (latency_ms(b.name, now + self.AHEAD_S) / now_ms) ** self.sign
            quantiles = tuple(then_ms * (1 + 0.01 * (k - 3)) for k in range(7))
            trust = self.judge.earned.trust(b.name)
            forecasts[b.name] = Forecast(
                b.name, now, self.AHEAD_S, quantiles, quantiles, now_ms=now_ms, trust=trust
            )
        table = ForecastTable(self.version, now, 60.0, forecasts, self.name)
        self.judge.foresaw(table, now)
        return table


@pytest.mark.slow
def test_trust_is_earned_and_lost():
    right = engine_of(Claims("right", 1.0), None)
    wrong = engine_of(Claims("wrong", -1.0, prior=3.0), None)
    assert right.tick(0.0)["east"].trust == 0.0 and wrong.tick(0.0)["east"].trust == 1.0
    assert right.foreseen_change("east") == 1.0 != wrong.foreseen_change("east")
    for engine in (right, wrong):
        live(engine, 0.0, 1500.0)
    assert right.forecaster.evidence > 0.9 and wrong.forecaster.evidence < -0.5
    changes = {
        engine.forecaster.name: [engine.foreseen_change(n) for n in NAMES]
        for engine in (right, wrong)
    }
    assert changes["wrong"] == [1.0] * 3 and max(changes["right"]) > 1.2
    wrong.tick(1505.0)
    wrong.tick(1520.0)  # the streams have been silent for a while: the present cannot tell
    # what it says now would move everything
    change = {name: 16.0 if name == "east" else 0.25 for name in NAMES}
    earned = wrong.forecaster.judge.earned
    wrong.forecaster.tick = lambda now: ForecastTable(
        99, now, 60.0, {n: foresees(n, now, change[n], earned.trust(n)) for n in NAMES}
    )
    reactive = [(c.backend, c.score) for c in wrong.rank(Request(), 1520.0)]
    wrong.tick(1520.0)
    assert [(c.backend, c.score) for c in wrong.rank(Request(), 1520.0)] == reactive
    earned.restore(dict(fleet=3.0, own={}, changes=0, right=0))
    wrong.tick(1520.0)
    moved = [(c.backend, c.score) for c in wrong.rank(Request(), 1520.0)]
    assert moved != reactive, "with trust it would have changed the decision"


def foresees(name: str, now: float, change: float, trust: float) -> Forecast:
    quantiles = tuple(1000.0 * change * (1 + 0.01 * (k - 3)) for k in range(7))
    return Forecast(name, now, 60.0, quantiles, quantiles, now_ms=1000.0, trust=trust)


@pytest.mark.slow
def test_auto_lets_the_right_one_act_and_takes_it_out_when_the_world_turns():
    candidates = [Claims("wrong", -1.0), Claims("right", 1.0)]
    auto = _AutoForecaster(candidates)
    engine = ContextEngine(
        [Backend(n, 8.0) for n in NAMES], forecaster=auto, router=ROUTER, config=CONFIG
    )
    assert (
        engine.tick(0.0).model == "auto: none, right watches"
        and engine.foreseen_change("east") == 1.0
    )
    live(engine, 0.0, 1500.0)
    assert auto.acting == "right" and engine.router.table.model == "auto: right"
    assert max(engine.foreseen_change(n) for n in NAMES) > 1.2
    candidates[1].sign = -1.0  # from now on it is wrong, too
    live(engine, 1500.0, 3000.0)
    assert auto.acting == "none" and {f.trust for f in engine.router.table.values()} == {0.0}
    engine.store.flush()
    switches = [e["why"] for e in engine.store.rows("events") if e["what"] == "switched"]
    assert len(switches) == 2
    assert (
        "right acts in place of none" in switches[0]
        and "none acts in place of right" in switches[1]
    )
    assert engine.status(4500.0)["forecaster"]["acting"] == "none"


@pytest.mark.parametrize("kind", KINDS)
def test_members_come_and_go(kind, forest, past):
    engine, now = taught(kind, forest, past), past[2]
    end = live(engine, now, 60.0)
    engine.router.remove("west")
    engine.router.add(Backend("north", 4.0), end)
    for k in range(60):
        at_s = end + k * 5.0
        for name in ("east", "south", "north"):
            engine.observe(Outcome(name, at_s, 900.0, True, None, None, 0, 20, 100))
        engine.step(at_s + 1.0)
    table = engine.tick(end + 301.0)
    check(table, engine, end + 301.0)
    assert "west" not in table and engine.failures == 0
    if kind != "none":
        # what has become slower may be demoted
        assert {"south", "north"} <= set(table) <= {"east", "south", "north"}
    plain(engine.status(end + 301.0))
    for name in ("east", "south", "north"):
        engine.router.remove(name)
    assert len(engine.tick(end + 306.0)) == 0 or kind == "toy"
    engine.step(end + 320.0)
    assert engine.failures == 0


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_fleet(kind, forest):
    engine = engine_of(kind, forest, names=())
    assert len(engine.tick(0.0)) == 0
    with pytest.raises(NoBackend, match="the fleet is empty"):
        engine.decide(Request(), 1.0)
    plain(engine.status(1.0))
    engine.router.add(Backend("east", 8.0), 2.0)
    d = engine.decide(Request(), 3.0)
    engine.observe(Outcome("east", 3.0, 100.0, True, None, d.id))
    engine.step(10.0)
    assert d.backend == "east" and engine.failures == 0


def bad_gauges(now):
    nan = float("nan")
    return dict(
        east=(now, nan, 0.0, 20.0), west=("soon", 1, 2, 3), south=None, nobody=(now, 1.0, 0.0, 20.0)
    )


def broken_gauges(now):
    raise OSError("no answer")


def wild_gauges(now):
    return dict(east=(now + 1e9, 1.0, 0.0, 20.0), west=(now, -1.0, 0.0, 0.0), south=(1,))


@pytest.mark.parametrize("kind", KINDS)
def test_bad_gauges_change_nothing(kind, forest, past):
    engine, now = taught(kind, forest, past), past[2]
    for source in (bad_gauges, broken_gauges, wild_gauges, lambda now: None):
        now = live(engine, now, 20.0, gauges=source)
        check(engine.tick(now), engine, now)
        assert engine.failures == 0


@pytest.mark.parametrize(
    "where", ["tick", "step", "outcome", "gauges", "news", "status", "memo", "lessons"]
)
def test_a_forecaster_that_raises_is_counted_and_the_engine_goes_on(where):
    class Bad(Heir):
        lesson = 1

    def fails(self, *args):
        raise ZeroDivisionError("by design")

    setattr(Bad, where, fails)
    fleet = [Backend(n, 8.0) for n in NAMES]
    engine = ContextEngine(
        fleet, forecaster=Bad(), router=ROUTER, config=CONFIG, gauges=lambda now: {}
    )
    live(engine, 0.0, 60.0)
    assert engine.failures > 0
    engine.store.flush()
    assert (
        len(engine.store.rows("outcomes")) == 120
        and engine.decide(Request(), 61.0).backend in NAMES
    )
    assert sum(engine.router.in_flight().values()) == 1


@pytest.mark.slow
@pytest.mark.parametrize("kind", LEARNERS)
def test_the_registry_holds_versions_of_its_lessons(kind, forest, past, tmp_path):
    steps, outcomes, now = past
    engine, registry = engine_of(kind, forest), Registry(tmp_path / "registry")
    if kind not in ("forest", "toy"):
        with pytest.raises(_RegistryError, match="learned nothing"):
            _keep_lessons(registry, engine.forecaster, now)
    lessons = []
    for k, share in enumerate((0.6, 1.0)):
        until_s = now * share
        for name, step in steps:
            if kind == "toy" and step.start_s < until_s:
                engine.forecaster.step(name, step)
        until = (
            [x for x in steps if x[1].start_s < until_s],
            [o for o in outcomes if o.ts_s < until_s],
        )
        engine.forecaster.learn(*until, until_s)
        engine.tick(until_s)
        lessons.append(plain(engine.forecaster.lessons()))
        kept = _keep_lessons(
            registry, engine.forecaster, until_s, dict(share=share), parent="v1" if k else None
        )
        registry.move(kept.name, "live", until_s, "a test")
    assert lessons[0] != lessons[1]
    number = engine.forecaster.lesson
    _take_lessons(registry, registry.rollback(now + 1.0, "worse").name, engine.forecaster)
    check(engine.tick(now + 5.0), engine, now + 5.0)
    assert plain(engine.forecaster.lessons()) == lessons[0]
    assert kind == "toy" or engine.forecaster.lesson > number, (
        "the store would keep the lessons that were rolled back"
    )
    with pytest.raises(_RegistryError, match="this forecaster is 'heir'"):
        _take_lessons(registry, "v1", engine_of("heir", None).forecaster)


@pytest.mark.slow
def test_a_store_keeps_what_was_rolled_back_to(forest, past, tmp_path):
    steps, outcomes, now = past
    engine, registry = (
        taught("latency", forest, past, tmp_path / "e.db"),
        Registry(tmp_path / "registry"),
    )
    engine.tick(now)
    _keep_lessons(registry, engine.forecaster, now)
    first = plain(engine.forecaster.lessons())
    engine.forecaster.learn([x for x in steps if x[1].start_s > now / 2], outcomes, now)
    engine.tick(now + 5.0)
    _take_lessons(registry, "v1", engine.forecaster)
    engine.tick(now + 10.0)
    engine.close(now + 10.0)
    assert FeedbackStore(tmp_path / "e.db").state("engine/lessons")["lessons"] == first
