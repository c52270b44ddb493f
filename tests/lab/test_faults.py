"""Faults in the real fleet: they compose, undo themselves, and hit what they name; and the score
catches flight and stubbornness.
"""

import json
from math import inf
from random import Random

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from arcpoint_ce.lab.faults import (
    _FLAP_S,
    KINDS,
    SCENARIOS,
    Fault,
    Scenario,
    _save_scenario,
    load_scenario,
    make_scenario,
)
from arcpoint_ce.lab.fleet import FixedChoice, Fleet, ServiceCurve, SimBackend
from arcpoint_ce.lab.resilience import (
    Limits,
    _changed_s,
    _Probe,
    _sick,
    _SteadyState,
    _to_chaostoolkit,
    lost,
    resilience_score,
    suite_passes,
)
from arcpoint_ce.routing.records import Backend

CAPACITY = {"a": 24, "b": 16, "c": 12}
SIMS = [
    SimBackend(
        Backend(n, capacity=c),
        ServiceCurve((1.0, float(c)), (50.0, 100.0)),
        slots=2 * c,
        queue=4 * c,
    )
    for n, c in CAPACITY.items()
]
BACKENDS = [s.backend for s in SIMS]


class Load:
    "Poisson arrivals; the SLO is two and a half times the work."

    tiers = ("standard",)

    def __init__(self, rate_rps, until_s, seed=0, tokens=10.0):
        rng = np.random.default_rng(seed)
        n = int(rate_rps * until_s)
        one = np.ones(n)
        self.at_s = np.cumsum(rng.exponential(1 / rate_rps, n))
        self.tokens_in, self.tokens_out, self.tier = (
            one,
            rng.exponential(tokens, n) + 2,
            np.zeros(n, int),
        )
        self.slo_s = 2.5 * self.tokens_out * 0.08

    def __len__(self):
        return len(self.at_s)

    def __iter__(self):
        yield self


class Choice(FixedChoice):
    """Two choices by capacity over all places that are not known to be bad: the least that a router
    has to do.
    """

    def start(self, backends, seed):
        n = len(backends)
        self.cap, self.rng = [b.capacity for b in backends], Random(seed)
        self.busy, self.bad, self.until, self.pause, self.took = (
            [0] * n,
            [0] * n,
            [0.0] * n,
            [5.0] * n,
            [1.0] * n,
        )

    def allowed(self, now):
        return [
            k
            for k in range(len(self.cap))
            if now >= self.until[k] and not (self.bad[k] >= 3 and self.busy[k])
        ]

    def pick(self, now, no=()):
        able = [k for k in self.allowed(now) if k not in no] or [
            k for k in range(len(self.cap)) if k not in no
        ]
        if not able:
            return -1
        best = min(
            self.rng.choices(able, [self.cap[k] for k in able], k=2),
            key=lambda k: (self.busy[k] + 1) / self.cap[k] * self.took[k],
        )
        self.busy[best] += 1
        return best

    def send(self, call, now):
        return self.pick(now)

    def again(self, call, now):
        return self.pick(now, call.tried)

    def end(self, job, now, ok, error):
        k = job.place
        self.busy[k] -= 1
        if ok:
            self.bad[k], self.pause[k] = 0, 5.0
            self.took[k] += 0.1 * (now - job.start_s - self.took[k])
        else:
            self.bad[k] += 1
            if self.bad[k] >= 3 and now >= self.until[k]:
                self.until[k] = now + self.pause[k]
                self.pause[k] = min(2 * self.pause[k], 20.0)

    def cancel(self, job, now):
        self.busy[job.place] -= 1


class Weights(Choice):
    "Never reroutes: fixed weights."

    def pick(self, now, no=()):
        able = [k for k in range(len(self.cap)) if k not in no]
        return self.rng.choices(able, [self.cap[k] for k in able])[0] if able else -1

    def end(self, job, now, ok, error):
        pass

    def cancel(self, job, now):
        pass


class Place(Weights):
    "Never reroutes: one place."

    def pick(self, now, no=()):
        return min(set(range(len(self.cap))) - set(no), default=-1)


class Flight(Choice):
    "Always reroutes: nothing for the main backend, ever."

    def pick(self, now, no=()):
        return super().pick(now, {0, *no})


class Mover(Choice):
    """Always reroutes: every request is at once tried elsewhere too (with `hedge_s` next to
    nothing).
    """


class Restless(Choice):
    "Turns its back on another backend every half minute."

    def pick(self, now, no=()):
        return super().pick(now, {int(now / 30) % 3, *no})


def play(make, scenario=None, *, rate_rps=20.0, until_s=480.0, seed=0, sims=SIMS, **kw):
    fleet = Fleet(sims, [make()], seed=seed, **{"retries": 2, "timeout_s": 20.0} | kw)
    if scenario:
        scenario.install(fleet)
    record = fleet.run(Load(rate_rps, until_s, seed))
    record.faults = fleet.ledger.faults if scenario else []
    return record


def judge(make, names, **kw):
    twin, out = play(make, **kw), {}
    for name in names:
        scenario = make_scenario(name, list(CAPACITY), 120.0, 180.0)
        record = play(make, scenario, **kw)
        out[name] = resilience_score(record, twin, scenario, BACKENDS, faults=record.faults)
    return out


def state(station):
    return {k: getattr(station.now_is, k) for k in station.now_is.__slots__}


# ---- faults compose and undo themselves


@st.composite
def faults(draw):
    kind = draw(st.sampled_from(sorted(KINDS)))
    graded = KINDS[kind].graded
    long_s = draw(st.integers(1, 40))
    return Fault(
        kind,
        "*" if kind == "traffic_surge" else draw(st.sampled_from(["a", 1, "c", "b", "*"])),
        draw(st.integers(10, 60)),
        long_s,
        draw(st.sampled_from([0.5, 1.0, 1.5])) if graded else 1.0,
        draw(st.integers(0, long_s)) if graded and kind != "cascading_failure" else 0.0,
    )


@settings(max_examples=60, deadline=None)
@given(
    st.lists(faults(), min_size=1, max_size=7),
    st.integers(5, 105).map(lambda s: s + 0.137),
    st.booleans(),
)
def test_overlapping_faults_compose_and_leave_nothing_behind(chosen, look_s, limited):
    sims = [
        SimBackend(
            Backend(s.backend.name, s.backend.capacity, rpm=4000.0 if limited else None),
            s.curve,
            s.slots,
            s.queue,
        )
        for s in SIMS
    ]
    fleet = Fleet(sims, [Weights()], seed=1, timeout_s=5.0)
    fleet.set("b", speed=1.7, others=3.0, error_rate=0.05, delay_ms=20.0)
    fleet.surge(1.5)
    before = [state(s) for s in fleet.stations]
    seen = {}
    fleet.at(
        look_s,
        lambda fleet, now: seen.update(states=[state(s) for s in fleet.stations], pace=fleet.pace),
    )
    for f in chosen:
        f.install(fleet)
    record = fleet.run(Load(2.0, 240.0))
    # surges upon surges use up the arrivals before the faults end
    assume(record.born_s.max() > 105.0)
    assert [state(s) for s in fleet.stations] == before and fleet.pace == 1.5
    # every request ended once, whatever happened
    assert len(record) == 480 and len(set(record.k)) == 480
    if any(f.kind == "rate_limit_exhaustion" for f in chosen):
        return  # counting starts before the fault
    really = fleet.ledger.faults
    edges = [t for f in really for t in f.edges() if t <= look_s]
    at = max(edges, default=0.0)  # levels change at edges only
    for place, name in enumerate(fleet.names):
        got, was = seen["states"][place], before[place]
        effects = [f.effect(at) for f in really if f.target in (name, place, "*")]

        def every(k, empty):
            return [e[k] for e in effects if k in e] or [empty]

        assert got["speed"] == pytest.approx(was["speed"] * np.prod(every("speed", 1.0)))
        for k in ("error_rate", "stuck_rate"):
            assert got[k] == pytest.approx(min(was[k] + sum(every(k, 0.0)), 1.0))
        assert got["down"] == max(every("down", None), key=[None, "refuse", "hang"].index) and got[
            "error_ms"
        ] == min(every("error_ms", was["error_ms"]))
        stories = every("gauge", None)
        assert (
            got["gauge"] == "frozen"
            if "frozen" in stories
            else callable(got["gauge"]) is any(map(callable, stories))
        )
        assert all(got[k] == was[k] for k in ("others", "delay_ms", "rpm", "tpm", "slots", "queue"))
    assert seen["pace"] == pytest.approx(
        1.5 * np.prod([f.effect(at).get("surge", 1.0) for f in really])
    )


@pytest.mark.parametrize(
    "first, second",
    [
        ((70.0, 55.0), (130.0, 10.0)),
        ((70.0, 20.0), (130.0, 10.0)),
        ((30.0, 60.0), (70.0, 40.0)),
        ((70.0, 20.0), (70.0, 40.0)),
    ],
)
@pytest.mark.parametrize("rpm", [None, 4000.0])
def test_rate_limits_that_meet_leave_the_old_limit(first, second, rpm):
    sims = [
        SimBackend(Backend(s.backend.name, s.backend.capacity, rpm=rpm), s.curve, s.slots, s.queue)
        for s in SIMS
    ]
    fleet = Fleet(sims, [Weights()], seed=1, timeout_s=5.0)
    seen = []
    for start_s, long_s in (first, second):
        Fault("rate_limit_exhaustion", "a", start_s, long_s).install(fleet)
        fleet.at(start_s + 1.0, lambda fleet, now: seen.append(fleet.stations[0].now_is.rpm))
    record = fleet.run(Load(10.0, 240.0))
    assert fleet.stations[0].now_is.rpm == rpm
    # a fifth of its share of 600 requests a minute
    assert seen[0] == pytest.approx(10 * 60 * 24 / 52 / 5, rel=0.3)
    assert (
        all(1 / 5 <= x <= seen[0] * 1.3 for x in seen)
        and (record.error == "rate_limited").sum() > 20
    )


@settings(max_examples=20, deadline=None)
@given(
    st.lists(faults().filter(lambda f: f.kind != "cascading_failure"), min_size=2, max_size=5),
    st.randoms(),
)
def test_the_order_of_installing_does_not_matter(chosen, rng):
    def run(chosen):
        fleet = Fleet(SIMS, [Weights()], seed=3, timeout_s=5.0)
        log = []
        for t in range(5, 110, 7):
            fleet.at(
                t + 0.5,
                lambda fleet, now: log.append(
                    [{k: v for k, v in state(s).items() if k != "gauge"} for s in fleet.stations]
                ),
            )
        for f in chosen:
            f.install(fleet)
        fleet.run(Load(1.0, 150.0))
        return log

    shuffled = list(chosen)
    rng.shuffle(shuffled)
    for a, b in zip(run(chosen), run(shuffled)):
        for x, y in zip(a, b):
            assert x == pytest.approx(y)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_scenario_twice_is_the_same_run(name):
    scenario = make_scenario(name, list(CAPACITY), 70.0, 60.0)
    one, two = (play(Choice, scenario, until_s=160.0, rate_rps=8.0) for _ in range(2))
    assert (
        (one.end_s == two.end_s).all()
        and (one.place == two.place).all()
        and len(one) == 1280 == len(set(one.k))
    )


@pytest.mark.parametrize("kind", sorted(set(KINDS) - {"stale_metrics", "lying_metrics"}))
def test_every_kind_is_felt_and_only_where_it_was_sent(kind):
    target = "*" if kind == "traffic_surge" else "b"
    scenario = Scenario("one", [Fault(kind, target, 70.0, 60.0)])
    record, twin = (
        play(Weights, s, until_s=200.0, retries=0, rate_rps=12.0) for s in (scenario, None)
    )
    n = min(len(record), len(twin))
    before, there = record.born_s < 65.0, record.first == 1
    assert (record.latency_s[before & record.ok] > 0).all() and record.ok[before].mean() == 1.0
    during = (record.born_s >= 70.0) & (record.born_s < 130.0)
    if kind == "traffic_surge":
        assert during.sum() > 1.6 * ((twin.born_s >= 70.0) & (twin.born_s < 130.0)).sum()
    else:
        assert (
            record.violated[during & there].mean()
            > 0.03 + twin.violated[:n][twin.first[:n] == 1].mean()
        )
    if kind not in ("traffic_surge", "retry_storm"):
        assert record.ok[~there].all()
    assert record.ok[record.born_s > 131.0].all()


@pytest.mark.parametrize("kind", ["stale_metrics", "lying_metrics"])
def test_lies_change_what_is_said_and_nothing_else(kind):
    heard = []

    class Listening(Weights):
        every_s = 1.0

        def tick(self, now, gauges):
            heard.append((now, gauges[0], gauges[1]))

    record = play(Listening, Scenario("lie", [Fault(kind, "b", 70.0, 60.0)]), until_s=200.0)
    told, heard = heard, []
    twin = play(Listening, until_s=200.0)
    assert (record.end_s == twin.end_s).all() and (record.place == twin.place).all()
    wrong = {round(now) for (now, a, b), (_, c, d) in zip(told, heard) if b != d}
    assert (
        wrong
        and min(wrong) >= 70
        and max(wrong) <= 132
        and all(a == c for (_, a, _), (_, c, _) in zip(told, heard))
    )
    if kind == "stale_metrics":
        assert len({b for now, a, b in told if 72 < now < 130}) == 1
    else:
        assert all(
            b.running == pytest.approx(d.running / 10)
            for (now, _, b), (_, _, d) in zip(told, heard)
            if 72 < now < 130
        )


def test_down_and_kill_happen_in_this_order_and_at_this_moment():
    record = play(
        Weights,
        Scenario("down", [Fault("backend_down", "a", 100.0, 50.0)]),
        retries=0,
        until_s=200.0,
    )
    mine = record.first == 0
    assert (record.error[mine & (record.born_s < 100.0) & (record.end_s >= 100.0)] == "lost").all()
    assert set(record.error[mine & (record.born_s >= 100.0) & (record.born_s < 150.0)]) == {
        "refused"
    }
    assert (
        not (record.ok & mine & (record.end_s > 100.0) & (record.born_s < 150.0)).any()
        and record.ok[record.born_s >= 150.0].all()
    )
    retried = play(
        Weights,
        Scenario("down", [Fault("backend_down", "a", 100.0, 50.0)]),
        retries=2,
        until_s=200.0,
    )
    assert retried.ok.all()  # the lost ones find the door closed and go elsewhere


def test_flapping_flaps():
    record = play(
        Weights, Scenario("flap", [Fault("flapping", "a", 100.0, 60.0)]), retries=0, until_s=200.0
    )
    mine = (record.first == 0) & (record.born_s >= 100.0) & (record.born_s < 160.0)
    away = (record.born_s - 100.0) % _FLAP_S < _FLAP_S / 2
    assert (
        not record.ok[mine & away].any()
        and record.ok[mine & ~away].all()
        and (mine & away).any()
        and (mine & ~away).any()
    )


def test_a_cascade_takes_the_overloaded_and_spares_the_last():
    scenario = Scenario("cascade", [Fault("cascading_failure", "a", 60.0, 120.0)])
    calm, busy = (play(Choice, scenario, rate_rps=r, until_s=240.0, retries=0) for r in (6.0, 60.0))
    assert len(calm.faults) == 1 and len(busy.faults) == 2
    first, victim = busy.faults
    assert (
        first.target == "a"
        and victim.kind == "backend_down"
        and 60.0 < victim.start_s < 75.0
        and victim.end_s == 180.0
    )
    assert busy.ok[(busy.first == 0) & (busy.born_s > 240.0)].all()


# ---- schedules drawn at random


@pytest.mark.parametrize("seed", range(40))
def test_a_random_schedule_never_takes_everything_down(seed):
    fleet = Fleet(SIMS, [Choice()], timeout_s=5.0)
    scenario = Scenario.random(seed, fleet.names, 200.0)
    scenario.install(fleet)
    up = []

    def look(fleet, now):
        up.append(
            sum(
                s.now_is.down is None and s.now_is.error_rate + s.now_is.stuck_rate < 1
                for s in fleet.stations
            )
        )
        if now < 200:
            fleet.at(now + 0.5, look)

    fleet.at(0.25, look)
    fleet.run(Load(6.0, 600.0))
    assert min(up) >= 1 and len(up) > 300
    assert (
        {f.target for f in scenario.faults} <= {"*", *fleet.names}
        and scenario.start_s >= 40.0
        and scenario.end_s <= 160.0
    )


def test_all_down_only_when_asked():
    hits = [
        any(
            _sick(
                [
                    f
                    for f in Scenario.random(k, "a", all_down=asked).faults
                    if f.kind in ("backend_down", "partition")
                ],
                ["a"],
                np.arange(0.0, 600.0, 5.0),
            ).any(1)
        )
        for asked in (False, True)
        for k in range(40)
    ]
    assert not any(hits[:40]) and any(hits[40:])


# ---- files


@settings(max_examples=30, deadline=None)
@given(
    st.lists(faults(), min_size=1, max_size=5),
    st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1),
    st.text(st.characters(exclude_categories=("Cs", "Cc"))),
    st.sampled_from(["toml", "json"]),
)
def test_files_keep_everything(tmp_path_factory, chosen, name, text, ending):
    scenario = Scenario(name, chosen, text)
    assert (
        load_scenario(_save_scenario(scenario, tmp_path_factory.mktemp("faults") / f"x.{ending}"))
        == scenario
    )


@settings(max_examples=60, deadline=None)
@given(
    st.recursive(
        st.none()
        | st.booleans()
        | st.integers()
        | st.floats(allow_nan=False)
        | st.text(max_size=5),
        lambda x: (
            st.lists(x, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["name", "faults", "kind", "target", "start_s", "duration_s", "intensity"]
                )
                | st.text(max_size=4),
                x,
                max_size=6,
            )
        ),
        max_leaves=12,
    )
)
def test_any_file_is_read_or_refused_with_its_name(tmp_path_factory, data):
    path = tmp_path_factory.mktemp("faults") / "x.json"
    path.write_text(json.dumps({"faults": [data]} if not isinstance(data, dict) else data))
    try:
        load_scenario(path)
    except ValueError as e:
        assert "x.json" in str(e)


# ---- steady state and Chaos Toolkit


def test_probes_measure_their_own_stretch():
    scenario = make_scenario("backend_down", list(CAPACITY), 120.0, 60.0)
    record = play(Weights, scenario, retries=0)
    found = (
        _SteadyState(probes=(_Probe("error_rate", 0.0, 0.01),), settle_s=30.0)
        .phases(record, scenario)
        .set_index("phase")
    )
    expected = [
        (~record.ok[rows]).mean()
        for rows in (
            record.born_s < 120.0,
            (record.born_s >= 120.0) & (record.born_s < 210.0),
            record.born_s >= 210.0,
        )
    ]
    assert list(found.value) == pytest.approx(expected) and list(found.met) == [True, False, True]
    assert _SteadyState(probes=(_Probe("error_rate", 0.0, 0.01),)).met(record, scenario)
    assert not _SteadyState(probes=(_Probe("error_rate", 0.0, 0.01),)).met(
        record, scenario, ("before", "during", "after")
    )


def test_chaos_toolkit_takes_the_export():
    experiment = pytest.importorskip(
        "chaoslib.experiment",
        reason="chaostoolkit-lib is not installed; "
        "`pip install chaostoolkit-lib` to check the export with it",
    )
    for name in SCENARIOS:
        experiment.ensure_experiment_is_valid(
            _to_chaostoolkit(make_scenario(name, "abcd"), _SteadyState())
        )


@pytest.mark.parametrize("seed", range(10))
def test_the_export_starts_and_stops_every_fault_in_time(seed):
    scenario = Scenario.random(seed, "abc")
    made = _to_chaostoolkit(scenario, _SteadyState(), speed=2.0)
    clock, on, spans = 0.0, {}, {}
    for action in made["method"]:
        clock += action["pauses"]["before"] * 2
        k = action["provider"]["url"].rsplit("/", 1)[1]
        assert action["type"] == "action" and action["provider"]["type"] == "http"
        if action["provider"]["method"] == "POST":
            on[k] = clock
            assert Fault(**action["provider"]["arguments"]) == scenario.faults[int(k) - 1]
        else:
            spans[k] = (on[k], clock)
    for k, (a, b) in spans.items():
        f = scenario.faults[int(k) - 1]
        assert (a, b) == (pytest.approx(f.start_s, abs=0.1), pytest.approx(f.end_s, abs=0.1))
    assert len(spans) == len(scenario.faults) == len(made["rollbacks"])
    for probe in made["steady-state-hypothesis"]["probes"]:
        assert probe["type"] == "probe" and len(probe["tolerance"]["range"]) == 2


# ---- the score

SUITE = ("backend_down", "partition", "traffic_surge", "stale_metrics", "bad_rollout")


@pytest.mark.slow
@pytest.mark.parametrize(
    "make, passes",
    [
        (Choice, True),
        (Weights, False),
        (Place, False),
        (Flight, False),
        (Mover, False),
        (Restless, False),
    ],
    ids=lambda x: getattr(x, "__name__", x),
)
@pytest.mark.parametrize("seed", [1, 2])
def test_a_decent_router_passes_and_neither_flight_nor_stubbornness_does(make, passes, seed):
    kw = {"hedge_s": 0.001} if make is Mover else {}
    scores = judge(make, SUITE, seed=seed, **kw)
    assert suite_passes(scores) is passes, {k: s.reasons for k, s in scores.items()}
    if make in (Weights, Place):
        assert (
            scores["backend_down"].detect_s == inf
            and "never left an outage" in scores["backend_down"].reasons
        )
    if make in (Flight, Mover, Restless):
        assert all(s.false_reroutes > 0.2 and not s.passed for s in scores.values())
    if passes:
        assert (
            scores["backend_down"].detect_s < 5
            and scores["backend_down"].recover_s < 60
            and max(s.false_reroutes for s in scores.values()) < 0.02
        )


def test_leaving_for_good_is_seen():
    class Sulking(Choice):
        def end(self, job, now, ok, error):
            super().end(job, now, ok, error)
            if not ok:
                self.until[job.place] = inf

    score = judge(Sulking, ["fast_errors"])["fast_errors"]
    assert score.detect_s < 2 and score.recover_s == inf and "never came back" in score.reasons


def test_a_late_router_is_late():
    class Late(Choice):
        def pick(self, now, no=()):
            if now > 160.0:
                return super().pick(now, no)
            k = Weights.pick(self, now, no)
            if k >= 0:
                self.busy[k] += 1
            return k

    score = judge(Late, ["partition"])["partition"]
    assert 38 < score.detect_s < 45 and not score.passed


def test_lost_means_that_there_was_room():
    scenario = Scenario("all", [Fault("backend_down", "*", 100.0, 50.0)])
    record = play(Weights, scenario, retries=0, until_s=200.0)
    gone = lost(record, BACKENDS, scenario.faults)
    assert (~record.ok).sum() > 700 and not gone[
        (record.born_s > 100.0) & (record.end_s < 150.0)
    ].any()
    one = Scenario("one", [Fault("backend_down", "a", 100.0, 50.0)])
    record = play(Weights, one, retries=0, until_s=200.0)
    assert lost(record, BACKENDS, one.faults).sum() == (~record.ok).sum() > 300
    # the same run; nobody would have had capacity
    full = [Backend(n, capacity=1.0) for n in CAPACITY]
    assert lost(record, full, one.faults).sum() < 0.2 * (~record.ok).sum()


def test_chance_is_not_taken_for_a_decision():
    rng = np.random.default_rng(0)
    at = np.arange(3000.0)
    for usual in (0.05, 0.2, 0.5, 0.9):
        assert (
            sum(
                _changed_s(at, rng.random(3000) < usual, usual, usual / 4) < inf for _ in range(100)
            )
            <= 1
        )
        dated = [
            _changed_s(at, rng.random(3000) < np.where(at < 1000, usual, 0.0), usual, usual / 4)
            for _ in range(50)
        ]
        # never late, and typically early by a few dispatches
        assert max(dated) <= 1000 and np.median(dated) > 1000 - 2 / usual


def test_due_lets_a_cheap_first_policy_off():
    twin = play(Flight)
    scenario = make_scenario("latency_spike", list(CAPACITY), 120.0, 60.0)
    record = play(Flight, scenario)
    assert resilience_score(record, twin, scenario, BACKENDS).false_reroutes > 0.4
    assert (
        resilience_score(record, twin, scenario, BACKENDS, due=[0.0, 16.0, 12.0]).false_reroutes
        < 0.02
    )
    with pytest.raises(ValueError, match="each of the 3"):
        resilience_score(record, twin, scenario, BACKENDS, due=[1.0, 2.0])


def test_limits_decide():
    scenario = make_scenario("latency_spike", list(CAPACITY), 120.0, 60.0)
    record, twin = play(Weights, scenario), play(Weights)
    mild, strict = (
        resilience_score(record, twin, scenario, BACKENDS, limits=Limits(slo_share=x))
        for x in (0.5, 0.99)
    )
    assert mild.passed and mild.slo == strict.slo < 0.9 and "asked: 99%" in strict.reasons[0]
