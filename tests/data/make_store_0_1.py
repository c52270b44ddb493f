"""Makes store_0_1.sqlite and registry_0_1/ beside this file, as version 0.1 (commit 4e935c8) wrote
them.

Run it with the code of that commit, not with today's:  PYTHONPATH=<a checkout of 4e935c8> python
tests/data/make_store_0_1.py
Three backends get 150 requests in 25 minutes; a small forest forecasts; "west" fails at the end, so
that its breaker is open.
"""

import shutil
import tempfile
from pathlib import Path
from random import Random

import pandas as pd
from arcpoint_ce.learning.engine import ContextEngine
from arcpoint_ce.learning.forecast import Forecaster, save
from arcpoint_ce.learning.registry import Registry
from arcpoint_ce.routing.core import Backend, Outcome, Request

from arcpoint_ce.telemetry.traces import exercise_steps

HERE = Path(__file__).parent
NAMES = ("east", "west", "south")
BEGIN_S, REQUESTS, EVERY_S = 1_770_000_000.0, 150, 10.0


def past(minutes: int = 240) -> pd.DataFrame:
    "Steps of the three backends before the engine begins."
    parts = []
    for k, name in enumerate(NAMES):
        steps = exercise_steps(minutes, seed=k).assign(backend=name)
        first = steps["start_s"].iloc[0]
        parts.append(steps.assign(start_s=steps["start_s"] - first + int(BEGIN_S) - 60 * minutes))
    return pd.concat(parts).sort_values(["start_s", "backend"], ignore_index=True)


def run(engine: ContextEngine):
    "All requests; those of the last minutes find that west has failed."
    random, ends = Random(0), []
    for k in range(REQUESTS):
        now = BEGIN_S + k * EVERY_S
        while ends and ends[0][0] <= now:
            engine.observe(ends.pop(0)[1])
        decision = engine.decide(Request(f"r{k}", tokens_in=100, tokens_out=50), now)
        ok = decision.backend != "west" or k < REQUESTS - 60
        took_ms = random.lognormvariate(5.0, 0.3)
        outcome = Outcome(
            decision.backend,
            now,
            took_ms,
            ok,
            None if ok else "error",
            decision.id,
            0,
            100,
            50 if ok else 0,
        )
        ends.append((now + took_ms / 1000.0, outcome))
        engine.step(now)
    for _, outcome in ends:
        engine.observe(outcome)


def main():
    store, registry = HERE / "store_0_1.sqlite", HERE / "registry_0_1"
    store.unlink(missing_ok=True)
    shutil.rmtree(registry, ignore_errors=True)
    forest = Forecaster(trees=2, n_jobs=1).fit(past())
    engine = ContextEngine([Backend(n, capacity=4.0) for n in NAMES], store, forecaster=forest)
    run(engine)
    engine.close(BEGIN_S + REQUESTS * EVERY_S - 5.0)
    kept = Registry(registry)
    with tempfile.TemporaryDirectory() as folder:
        save(forest, folder)
        kept.add(folder, "data0", dict(skill=0.2), BEGIN_S)
    kept.move("v1", "live", BEGIN_S, "as a test wants it")
    (registry / ".lock").unlink()


if __name__ == "__main__":
    main()
