"""The loop, closed: restart, real kill -9 of an engine, faults of the store, rollout statistics,
the registry under attack.
"""

import json
import multiprocessing
import random
import signal
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from arcpoint_ce.engine.anomalies import AnomalyDetector, healthy, tighten, windows_of
from arcpoint_ce.engine.engine import ContextEngine, EngineConfig
from arcpoint_ce.engine.registry import Registry, _RegistryError
from arcpoint_ce.engine.rollout import rollout_rates
from arcpoint_ce.engine.storage import MemoryShelf
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.forecast.drift import DETECTORS, DriftConfig, _Stream
from arcpoint_ce.routing.records import Backend, Outcome, Request

ROOT = Path(__file__).parents[2]
ENGINE = """
import sys
sys.path.insert(0, {root!r})
from arcpoint_ce.engine.engine import ContextEngine, EngineConfig
from arcpoint_ce.routing.records import Backend, Outcome, Request
config = EngineConfig(tick_s=1., memo_s=1.)
e = ContextEngine([Backend("east"), Backend("west")], {path!r}, policy="p2c", config=config)
now = {start}
print("up", e.resumed, flush=True)
while True:
    for _ in range(20):
        now += .1
        d = e.decide(Request(), now)
        ok = d.backend == "east"
        e.observe(Outcome(d.backend, now, 5., ok, None if ok else "error", d.id))
    e.step(now)
    print(now, e.router.health("west", now)[0], flush=True)
"""


@pytest.mark.slow
def test_an_engine_killed_at_any_moment_resumes_with_its_breakers(tmp_path):
    path, start, rng, resumed = tmp_path / "e.db", 0.0, random.Random(1), []
    for trial in range(3):
        child = subprocess.Popen(
            [sys.executable, "-c", ENGINE.format(root=str(ROOT), path=str(path), start=start)],
            stdout=subprocess.PIPE,
            text=True,
        )
        resumed.append(child.stdout.readline().split()[1])
        for _ in range(5):
            child.stdout.readline()
        time.sleep(rng.uniform(0, 0.05))
        child.send_signal(signal.SIGKILL)
        child.wait()
        store = FeedbackStore(path)
        start = store.state("engine")["at_s"] + 1.0
        store.close()
    assert resumed == ["False", "True", "True"]
    e = ContextEngine([Backend("east"), Backend("west")], path)
    state = FeedbackStore(path).state("engine")
    memo, now = state["router"]["breakers"]["west"], e.router.status(state["at_s"])[1]
    assert (
        now["state"] == memo["state"] in ("open", "half_open")
        and memo["opens"] > 0
        and e.store.rows("decisions")
    )
    assert len({d["id"] for d in e.store.rows("decisions")}) == len(e.store.rows("decisions"))


def test_routing_goes_on_when_the_store_is_broken():
    class Broken(MemoryShelf):
        def write(self, rows, states):
            raise OSError("disk full")

    e = ContextEngine(
        [Backend("east"), Backend("west")],
        FeedbackStore(Broken(), queue=100),
        config=EngineConfig(tick_s=1.0),
    )
    for k in range(1000):
        d = e.decide(Request(), k * 0.5)
        e.observe(Outcome(d.backend, k * 0.5, 50.0, True, None, d.id))
        e.step(k * 0.5)
    s = e.status(500.0)
    assert (
        s["counts"]["observed"] == 1000
        and e.failures == 0
        and s["store"]["lost"]
        + s["store"]["overflowed"]
        + s["store"]["unwritten"]
        + s["store"]["queued"]
        >= 2000
    )
    assert "disk full" in s["store"]["error"] and json.dumps(s)


def test_a_high_anomaly_tightens_one_breaker_and_never_the_fleet():
    rng = np.random.default_rng(0)
    e = ContextEngine(
        [Backend("east"), Backend("west")],
        anomalies=AnomalyDetector().fit(windows_of(*healthy(rng, 20_000))),
        config=EngineConfig(tick_s=60.0),
    )
    for minute in range(45):
        for b in ("east", "west"):
            for k in range(20):
                e.observe(
                    Outcome(
                        b,
                        60.0 * minute + k,
                        float(rng.normal(100, 2)) * (8 if minute >= 40 and b == "west" else 1),
                    )
                )
        e.tick(60.0 * (minute + 1))
    assert (
        list(e.slow.watch.tight) == ["west"]
        and e.router._lanes["west"].breaker.config.consecutive < e.router.breaker_config.consecutive
    )
    assert e.router._lanes["east"].breaker.config == e.router.breaker_config and e.status(2700.0)[
        "anomalies"
    ]["tightened"] == ["west"]


@given(
    st.dictionaries(st.sampled_from("abcdef"), st.floats(0.1, 10), min_size=1),
    st.sets(st.sampled_from("abcdefz")),
    st.floats(0.01, 0.99),
)
def test_tightening_stays_within_its_share(capacity, names, share):
    chosen = tighten({n: 1.0 for n in names}, capacity, share)
    assert (
        set(chosen) <= names & set(capacity)
        and sum(capacity[n] for n in chosen) <= share * sum(capacity.values()) + 1e-9
    )


@pytest.mark.parametrize("kind", DETECTORS)
def test_every_detector_finds_a_large_change_and_begins_again(kind):
    s, rng = _Stream(DriftConfig(kind=kind, warmup=100)), np.random.default_rng(0)
    hits = [k for k in range(1400) if s.update(float(rng.normal() * (1 if k < 700 else 4)))]
    assert hits and hits[0] >= 690 and s.n < 1400
    assert s.update(float("nan")) is None


def test_rollout_statistics_hold():
    r = rollout_rates(200, 10_000)
    assert (
        r["aa_false_positive"] <= 0.05 < r["aa_t_test"]
        and r["ab_power"] >= 0.8
        and r["rollback_rate"] >= 0.95
        and r["false_rollback_rate"] <= 0.05
    )


def adding(args):
    folder, k = args
    return Registry(folder).add(Path(folder) / "model", f"hash{k}", {}, float(k)).name


@pytest.mark.slow
def test_writers_of_a_registry_do_not_disturb_each_other(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "forest.npz").write_bytes(b"x")
    with ProcessPoolExecutor(4, multiprocessing.get_context("spawn")) as pool:
        names = list(pool.map(adding, [(str(tmp_path), k) for k in range(12)]))
    r = Registry(tmp_path)
    assert (
        sorted(names) == sorted(r.versions())
        and len(set(names)) == 12
        and all(r.path_of(n) for n in names)
    )


def test_a_link_or_a_stranger_among_the_files_is_refused(tmp_path):
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "forest.npz").write_bytes(b"x")
    r = Registry(tmp_path / "r")
    r.add(tmp_path / "model", "h", {}, 0.0)
    (tmp_path / "r" / "v1" / "more.npz").write_bytes(b"y")
    with pytest.raises(_RegistryError, match="not part"):
        r.move("v1", "live", 1.0, "try")
    (tmp_path / "model" / "link").symlink_to("/etc/hostname")
    with pytest.raises(_RegistryError, match="link"):
        r.add(tmp_path / "model", "h", {}, 0.0)


@pytest.mark.slow
def test_retraining_fits_the_anomaly_detector_anew_from_stored_steps():
    from arcpoint_ce.forecast.latency import LatencyForest
    from arcpoint_ce.telemetry.frames import to_steps
    from arcpoint_ce.telemetry.traces import exercise_steps

    data = exercise_steps(2600, 0)
    old = AnomalyDetector().fit(windows_of(*healthy(np.random.default_rng(0), 2000)))
    engine = ContextEngine(
        [Backend("exercise")], forecaster=LatencyForest(trees=20).fit(data[:1500]), anomalies=old
    )
    for name, step in to_steps(data):
        engine.store.stepped(name, step)
    engine.store.flush()
    now = float(data.start_s.max() + 60)
    assert engine.retrain(now) and engine.slow.watch.detector is not old
    assert not np.allclose(engine.slow.watch.detector.unit_, old.unit_)
    engine.slow.config = replace(engine.config, learn_s=300 * 60.0)
    newest = engine.slow.watch.detector
    engine.retrain(now)
    assert engine.slow.watch.detector is newest  # too few windows: the one there is stays


def test_the_store_holds_the_odds_of_requests_that_a_rule_has_placed():
    "Off-policy evaluation divides by them: a request that went home had not been drawn."
    fleet = [Backend("a", capacity=8.0), Backend("b", capacity=8.0), Backend("c", capacity=8.0)]
    with ContextEngine(fleet, policy="p2c", config=EngineConfig()) as e:
        made = []
        for k in range(6):
            made.append(e.decide(Request(session="s"), float(k)))
            e.observe(Outcome(made[-1].backend, float(k), 50.0, decision=made[-1].id))
        e.store.flush(6.0)
        kept = {row["id"]: row["propensity"] for row in e.store.rows("decisions")}
    assert kept == {d.id: pytest.approx(d.probability) for d in made}
    assert made[0].probability < 1.0 and {d.probability for d in made[1:]} == {1.0}


def test_a_key_that_nobody_may_use_is_an_incident_until_it_works_again():
    with ContextEngine([Backend("a", capacity=8.0), Backend("b", capacity=8.0)]) as e:
        e.tick(0.0)

        def ask(now, status, tenant):
            d = e.claim(Request(tenant=tenant), "a", now, anyway=True)
            e.observe(Outcome("a", now, 30.0, decision=d.id, status=status), now + 0.03)

        for k in range(4):
            ask(1.0 + k / 10, 401, "xy"[k % 2])
        e.tick(5.0)
        assert e.status(5.0)["anomalies"]["open"] == []  # four may be a coincidence
        ask(6.0, 403, "x")
        for now in (10.0, 15.0):
            e.tick(now)
        (told,) = e.status(15.0)["anomalies"]["open"]
        assert told["says"] == "a: its key was refused 5 times in a row, goes on"
        assert (told["start_s"], told["severity"]) == (10.0, "high")
        ask(80.0, 200, "x")
        e.tick(85.0)
        assert e.status(85.0)["anomalies"] == dict(incidents=dict(high=1), open=[], tightened=[])
        e.store.flush(85.0)
        (row,) = e.store.rows("incidents")
        assert (row["backend"], row["start_s"], row["end_s"]) == ("a", 10.0, 85.0)
        whats = [x["what"] for x in e.store.rows("events") if x["backend"] == "a"]
        assert whats == ["key refused", "key works again"]
        ask(90.0, 401, "x")
        for k in range(9):  # one caller alone condemns nobody's key
            ask(91.0 + k, 401, "x")
        e.tick(105.0)
        assert e.status(105.0)["anomalies"]["open"] == []


def test_a_backend_that_leaves_takes_its_incident_along():
    with ContextEngine([Backend("a", capacity=8.0), Backend("b", capacity=8.0)]) as e:
        e.tick(0.0)
        for k in range(10):
            e.observe(Outcome("a", 1.0 + k, 30.0, status=401), 2.0 + k)
        e.tick(15.0)
        assert len(e.status(15.0)["anomalies"]["open"]) == 1
        e.router.remove("a")
        e.tick(20.0)
        assert e.status(20.0)["anomalies"]["open"] == []
