"""kill -9 at any moment: nothing that was acknowledged is lost, the store opens again by itself,
the engine resumes.
"""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from arcpoint_ce.engine.engine import ContextEngine, EngineConfig
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.forecast.forecasters import (
    RoomForecaster,
    _AutoForecaster,
    _LatencyForecaster,
    _NoForecaster,
    _Together,
)
from arcpoint_ce.forecast.trust import GateConfig
from arcpoint_ce.routing.records import Backend, Outcome, Request
from arcpoint_ce.routing.router import RouterConfig

ROOT = Path(__file__).parents[2]
TRIALS = 24
WRITER = """
import sys
sys.path.insert(0, {root!r})
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.routing.records import Backend, Outcome, Request
from arcpoint_ce.routing.router import Router
store, router = FeedbackStore({path!r}, queue=50_000), Router([Backend("east"), Backend("west")])
router.restore(store.state("router") or dict(turn=0, breakers={{}}))
now, last = {start}, None
print("up", flush=True)
while True:
    for _ in range(50):
        now += .01; d = router.decide(Request(tokens_in=100), now); store.decided(d)
        o = Outcome(d.backend, now, 5., now % 7 > .1, None, d.id); router.observe(o); store.ended(o)
        last = d.id
    store.put_state("router", router.memo())
    store.flush(now)
    print(last, flush=True)
"""


@pytest.mark.slow
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path, capsys):
    path, rng, start = tmp_path / "store.db", random.Random(0), 0.0
    acknowledged, reopen = [], []
    for trial in range(TRIALS):
        child = subprocess.Popen(
            [sys.executable, "-c", WRITER.format(root=str(ROOT), path=str(path), start=start)],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert child.stdout.readline() == "up\n"
        time.sleep(rng.uniform(0.02, 0.1))
        child.send_signal(signal.SIGKILL)
        lines = [x for x in child.stdout.read().split("\n")[:-1]]
        child.wait()  # whole lines only: half of one was never said
        acknowledged += [int(x) for x in lines]
        began = time.perf_counter()
        store = FeedbackStore(path)
        reopen.append(time.perf_counter() - began)
        ids = {d["id"] for d in store.rows("decisions")}
        lost = [x for x in acknowledged if x not in ids]
        assert not lost, f"trial {trial}: {len(lost)} acknowledged decisions are gone"
        assert len(ids) == len(store.rows("decisions")), "a decision id was given twice"
        assert {o["decision"] for o in store.rows("outcomes")} >= {x for x in acknowledged}
        if acknowledged:
            assert store.state("router")["turn"] >= max(acknowledged)
        start = max([d["at_s"] for d in store.rows("decisions")] or [0.0]) + 1.0
        store.close()
    with capsys.disabled():
        print(
            f"\nkilled {TRIALS}, acknowledged batches {len(acknowledged)} of 100 records, lost 0, "
            f"slowest reopening {max(reopen):.3f} s"
        )
    assert len(acknowledged) > TRIALS and max(reopen) < 5.0


# ---- a whole engine, with each forecaster

NAMES = ("east", "west", "south")
ROOM, LATENCY = (
    "RoomForecaster(gate=GateConfig(prior=0.))",
    "_LatencyForecaster(trees=10, prior=0.)",
)  # few trees: quick lessons
KINDS = dict(
    auto=f"_AutoForecaster([{ROOM}, {LATENCY}])",
    none="_NoForecaster()",
    room=ROOM,
    latency=LATENCY,
    both=f"_Together([{ROOM}, {LATENCY}])",
)
ENGINE = """
import sys
sys.path.insert(0, {root!r})
from arcpoint_ce.engine.engine import ContextEngine, EngineConfig
from arcpoint_ce.routing.records import Backend, Outcome, Request
from arcpoint_ce.routing.router import RouterConfig
from arcpoint_ce.forecast.forecasters import (
    GateConfig, RoomForecaster, _AutoForecaster, _LatencyForecaster, _NoForecaster, _Together,
)
e = ContextEngine(
    [Backend(n, 8.) for n in {names!r}], {path!r}, forecaster={kind},
    router=RouterConfig(step_s=10), config=EngineConfig(tick_s=1., memo_s=1., learn="never"),
)
now = e.store.state("engine")["at_s"] + 1.
print("up", e.resumed, flush=True)
while True:
    for _ in range(25):
        now += .04
        d = e.decide(Request(tokens_in=20, tokens_out=100), now)
        e.progress(d, 50, now)
        e.observe(Outcome(d.backend, now, 5., True, None, d.id, 0, 20, 100))
    e.step(now)
    if e.store.error is None:
        print(d.id, flush=True)
"""


def at(path, kind):
    makers = dict(
        _AutoForecaster=_AutoForecaster,
        GateConfig=GateConfig,
        _LatencyForecaster=_LatencyForecaster,
        _NoForecaster=_NoForecaster,
        RoomForecaster=RoomForecaster,
        _Together=_Together,
    )
    config = EngineConfig(tick_s=1.0, memo_s=1.0, learn="never")
    fleet, forecaster = [Backend(n, 8.0) for n in NAMES], eval(KINDS[kind], makers)
    return ContextEngine(
        fleet, path, forecaster=forecaster, router=RouterConfig(step_s=10), config=config
    )


@pytest.fixture(scope="module")
def lived(tmp_path_factory):
    "The store of an engine that has run for 25 minutes, and a person has shut west out."
    path, rng = tmp_path_factory.mktemp("lived") / "lived.db", random.Random(0)
    engine = at(path, "none")
    for k in range(1500):
        now = float(k)
        d = engine.decide(Request(tokens_in=20, tokens_out=100), now)
        engine.observe(
            Outcome(
                d.backend, now, 1000.0 * rng.lognormvariate(0, 0.1), True, None, d.id, 0, 20, 100
            )
        )
        engine.step(now)
    engine.router.force("west", "open", 1500.0, "a person said so")
    engine.tick(1501.0)
    engine.close(1501.0)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_kill_9_with_each_forecaster(kind, lived, tmp_path):
    path, rng = Path(shutil.copy(lived, tmp_path / "e.db")), random.Random(0)
    engine = at(path, kind)
    assert engine.retrain(1502.0) == (kind != "none")
    parts = getattr(
        getattr(engine.forecaster, "team", engine.forecaster), "parts", [engine.forecaster]
    )
    for part in parts:
        if part.name == "latency":
            part.earned.changes, part.earned.fleet = 7, 1.5  # trust that no new forecaster has
    engine.tick(1503.0)
    engine.close(1504.0)
    lessons = FeedbackStore(path).state("engine/lessons")
    assert (lessons is None) == (kind == "none")
    acknowledged = []
    for trial in range(2):
        code = ENGINE.format(root=str(ROOT), path=str(path), kind=KINDS[kind], names=NAMES)
        child = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
        assert child.stdout.readline() == "up True\n"
        # as slow as the machine may be: so much is through
        lines = [child.stdout.readline() for _ in range(3)]
        time.sleep(rng.uniform(0, 0.1))
        child.send_signal(signal.SIGKILL)
        lines += [x for x in child.stdout.read().split("\n")[:-1]]
        child.wait()
        acknowledged += [int(x) for x in lines]
        store = FeedbackStore(path)
        ids, outcomes = (
            [d["id"] for d in store.rows("decisions")],
            {o["decision"] for o in store.rows("outcomes")},
        )
        assert len(set(ids)) == len(ids), "a decision id was given twice"
        assert set(acknowledged) <= set(ids) and set(acknowledged) <= outcomes, (
            "an acknowledged record is gone"
        )
        assert store.state("engine/lessons") == lessons
        store.close()
    memo = FeedbackStore(path).state("engine")
    after = at(path, kind)
    after.store.flush()
    assert after.resumed and not [
        e for e in after.store.rows("events") if e["what"] == "not resumed"
    ]
    assert after.router.health("west", memo["at_s"])[0] == "open"
    assert json.loads(json.dumps(after.forecaster.memo())) == memo["forecaster"]["memo"]
    assert ('"changes": 7' in json.dumps(memo)) == (kind in ("auto", "latency", "both"))
    assert json.loads(json.dumps(after.forecaster.lessons())) == (
        lessons["lessons"] if lessons else {}
    )
    assert after.decide(Request(), memo["at_s"]).id > max(ids)
