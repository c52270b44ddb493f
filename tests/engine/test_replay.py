"Replay, simulate --store and the retraining job, as a user runs them."

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest

from arcpoint_ce.apps.report import run_report
from arcpoint_ce.engine.engine import ContextEngine
from arcpoint_ce.engine.registry import Registry
from arcpoint_ce.engine.replay import Replay, logged
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.routing.records import Backend
from arcpoint_ce.routing.router import RouterConfig
from arcpoint_ce.routing.spending import SpendLimit
from arcpoint_ce.telemetry.requests import load_requests


def arcpoint(*args, cwd):
    return subprocess.run(
        [sys.executable, "-c", "from arcpoint_ce.apps.cli import main; main()", *args],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    "Four hours, two backends."
    rng, n = np.random.default_rng(0), 6000
    at = np.sort(rng.uniform(0, 4 * 3600, n))
    ms = 200 * np.exp(0.2 * rng.normal(size=n)) + 80 * (np.sin(at / 600) > 0)
    path = tmp_path_factory.mktemp("log") / "log.csv"
    pd.DataFrame(
        dict(
            ts=pd.to_datetime(1.77e9 + at, unit="s", utc=True).strftime("%Y-%m-%dT%H:%M:%S.%fZ"),
            backend=rng.choice(["east", "west"], n),
            latency_ms=ms.round(3),
            ok=True,
        )
    ).to_csv(path, index=False)
    return path


@pytest.mark.slow
def test_replay_writes_what_it_says(log, tmp_path):
    ran = arcpoint("replay", log.name, "--store", str(tmp_path / "r.sqlite"), cwd=log.parent)
    assert ran.returncode == 0, ran.stderr
    counts = {w[0]: int(w[1]) for w in (line.split() for line in ran.stdout.splitlines()[2:7])}
    assert counts["joined"] + counts["moved"] + counts["refused"] == counts["requests"] > 2500
    store = FeedbackStore(tmp_path / "r.sqlite")
    assert len(store.rows("decisions")) == counts["requests"] - counts["refused"]
    fates = pd.Series([r["fate"] for r in store.rows("outcomes")]).value_counts()
    assert fates["foreign"] == counts["moved"] and store.rows("steps") and store.rows("forecasts")
    store.close()
    again = arcpoint("replay", log.name, "--store", str(tmp_path / "r.sqlite"), cwd=log.parent)
    assert again.returncode != 0 and "is there already" in again.stderr


@pytest.fixture(scope="module")
def streams(tmp_path_factory):
    "An hour of streams on two backends: east brings a token in 20 ms, west in 60."
    rng, n = np.random.default_rng(1), 2400
    at, backend = np.sort(rng.uniform(0, 3600, n)), rng.choice(["east", "west"], n)
    tokens = rng.integers(20, 80, n)
    ttft = rng.uniform(80, 120, n)
    ms = ttft + tokens * np.where(backend == "east", 20.0, 60.0)
    path = tmp_path_factory.mktemp("streams") / "streams.csv"
    when = pd.to_datetime(1.77e9 + at, unit="s", utc=True).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
    pd.DataFrame(
        dict(
            ts=when,
            backend=backend,
            latency_ms=ms.round(3),
            ttft_ms=ttft.round(3),
            tokens_in=100,
            tokens_out=tokens,
            ok=True,
        )
    ).to_csv(path, index=False)
    return path


def figures(ran) -> dict:
    "The counts that a replay prints."
    assert ran.returncode == 0, ran.stderr
    return {w[0]: int(w[1]) for w in (line.split() for line in ran.stdout.splitlines()[2:8])}


@pytest.mark.slow
def test_replay_tells_the_engine_how_far_streams_have_come(streams, log, tmp_path):
    counts = figures(
        arcpoint(
            "replay",
            streams.name,
            "--store",
            str(tmp_path / "s.sqlite"),
            "--forecaster",
            "none",
            cwd=streams.parent,
        )
    )
    assert (
        counts["streamed"] == counts["joined"] > 500
        and counts["joined"] + counts["moved"] == counts["requests"]
    )
    store = FeedbackStore(tmp_path / "s.sqlite")
    status = store.state("engine/status")
    store.close()
    pace = {b["backend"]: b["pace_ms"] for b in status["backends"]}
    assert (
        status["counts"]["progress_ignored"] == 0
        and 18 < pace["east"] < 23
        and 50 < pace["west"] < 66
    ), pace
    assert (
        figures(
            arcpoint("replay", log.name, "--forecaster", "none", "--learn", ".9", cwd=log.parent)
        )["streamed"]
        == 0
    )


@pytest.mark.slow
def test_replay_with_a_candidate_beside_the_live_policy(streams, tmp_path):
    ran = arcpoint(
        "replay",
        streams.name,
        "--store",
        str(tmp_path / "c.sqlite"),
        "--forecaster",
        "room",
        "--shadow",
        "random",
        "--holdout",
        ".1",
        cwd=streams.parent,
    )
    figures(ran)
    assert "forecaster room: response curves of 2 backends" in ran.stderr
    assert (
        "policy: own_pace; forecaster: room" in ran.stdout
        and "rollout shadow-random: shadow; it would have taken" in ran.stdout
    )
    store = FeedbackStore(tmp_path / "c.sqlite")
    told = store.state("rollout/shadow-random")
    modes = {r["backend"] for r in store.rows("decisions")}
    store.close()
    assert told["state"] == "shadow" and told["calls"]["live"] > 20 and modes == {"east", "west"}


@pytest.mark.parametrize(
    "args, says", [(["--learn", "1"], "--learn"), (["--speed", "-1"], "--speed")]
)
def test_replay_refuses(log, args, says):
    ran = arcpoint("replay", log.name, *args, cwd=log.parent)
    assert ran.returncode != 0 and says in ran.stderr and "Traceback" not in ran.stderr


@pytest.mark.slow
def test_simulate_into_a_store(tmp_path):
    ran = arcpoint(
        "simulate",
        "--scenario",
        "backend_down",
        "--requests",
        "800",
        "--store",
        "s.sqlite",
        cwd=tmp_path,
    )
    assert ran.returncode == 0, ran.stderr
    store = FeedbackStore(tmp_path / "s.sqlite")
    assert len(store.rows("decisions")) >= 700 and store.rows("transitions")
    store.close()


@pytest.mark.slow
def test_a_logs_tenants_spend_their_budgets(tmp_path):
    rows = dict(ts=range(1_772_409_600, 1_772_409_640), backend="east", latency_ms=100.0)
    rows |= dict(team=["acme", "beta"] * 20, tokens_in=0, tokens_out=100, cost_usd=0.1)
    pd.DataFrame(rows).to_csv(tmp_path / "log.csv", index=False)
    table = load_requests(tmp_path / "log.csv", columns={"tenant": "team"}).df()
    fleet = [Backend("east", capacity=16.0, price_out=1000.0)]
    budget = SpendLimit(tenant="acme", usd_per_day=5.0)
    engine = ContextEngine(fleet, router=RouterConfig(budgets=(budget,)))
    counts = Replay(engine).run(logged(table))
    (told,) = engine.router.spending(float(table.ts.iloc[-1].timestamp()) + 1.0)
    assert counts["joined"] == 40
    assert told["usd_left_this_day"] == pytest.approx(5.0 - 20 * 0.1)


@pytest.mark.slow
def test_retraining_promotes_once_and_then_keeps(tmp_path):
    given = dict(data="exercise", registry=str(tmp_path / "registry"), quick=True)
    first, second = (
        run_report("retrain", out=tmp_path / f"run{s}", progress=False, seed=s, **given).metrics
        for s in (0, 1)
    )
    assert first["decision"] == "promote" and first["live_after"] == "v1" and first["skill"] > 0
    # the same data again: nothing to gain
    assert second["decision"] == "keep" and second["live_after"] == "v1"
    registry = Registry(tmp_path / "registry")
    assert [v.state for v in registry.versions().values()] == ["live", "retired"]


@pytest.mark.slow
def test_retraining_from_an_engines_store(log, tmp_path):
    assert (
        arcpoint(
            "replay",
            log.name,
            "--store",
            str(tmp_path / "r.sqlite"),
            "--learn",
            ".3",
            cwd=log.parent,
        ).returncode
        == 0
    )
    run = run_report(
        "retrain",
        out=tmp_path / "run",
        progress=False,
        store=str(tmp_path / "r.sqlite"),
        registry=str(tmp_path / "registry"),
        quick=True,
    )
    assert run.metrics["decision"] in ("promote", "keep")
