"""Features one way: the same rows through the log (SQL steps, replay) and live (outcome by outcome)
give the same numbers.
"""

from random import Random

import duckdb
import pandas as pd
import pytest

from arcpoint_ce.routing.breaker import BreakerConfig
from arcpoint_ce.routing.policies import RandomChoice
from arcpoint_ce.routing.records import Backend, Outcome, Request, _to_us
from arcpoint_ce.routing.router import Router, RouterConfig
from arcpoint_ce.routing.steps import FEATURES, BackendFeatures
from arcpoint_ce.telemetry.frames import _feature_frame, to_steps
from arcpoint_ce.telemetry.requests import load_requests

US = 1_000_000
START_US = 1_714_564_800 * US  # a whole minute, s since the epoch


def random_rows(seed, step_s, n=900, backends=("a", "b", "c")):
    """Requests of every kind: short, hanging over several steps, on step boundaries, failed, timed
    out, in bursts and silences.
    """
    rng, rows = Random(seed), []
    ts = START_US + rng.randrange(step_s * US)
    for k in range(n):
        ts += int(rng.expovariate(1 / 3) * US) + (
            rng.randrange(4 * step_s) * US if rng.random() < 0.01 else 0
        )
        start = ts // (step_s * US) * step_s * US if rng.random() < 0.05 else ts
        took = rng.choice(
            [
                rng.lognormvariate(5, 1),
                rng.uniform(0, 0.02),
                rng.uniform(0, 4_000) * step_s,
                1000.0 * rng.randrange(3),
            ]
        )
        if rng.random() < 0.1:
            took = (-start % (step_s * US)) / 1000.0  # ends exactly on a boundary
        kind = rng.choices(["ok", "refused", "timeout", "lost"], [80, 8, 8, 4])[0]
        rows.append(
            dict(
                ts_us=start,
                backend=rng.choice(backends),
                latency_ms=None if kind == "lost" else took,
                ok=kind == "ok",
                error=None if kind == "ok" else kind,
                tokens_in=rng.randrange(3_000),
                tokens_out=rng.randrange(500),
            )
        )
    return rows


def through_the_log(rows, folder, step_s, form="parquet"):
    "Write a log file, load it, fold it in SQL, replay its steps."
    frame = pd.DataFrame(rows)
    frame["ts"] = pd.to_datetime(frame.pop("ts_us"), unit="us", utc=True)
    path = folder / f"log.{form}"
    if form == "parquet":
        duckdb.from_df(frame.sample(frac=1.0, random_state=0)).write_parquet(str(path))  # any order
    else:
        frame.assign(ts=frame.ts.dt.strftime("%Y-%m-%dT%H:%M:%S.%fZ")).to_csv(path, index=False)
    with load_requests(path) as log:
        assert (log.rows, log.quarantined) == (len(rows), 0)
        table = log.steps(step_s)
    return table, {
        (r["backend"], int(r["start_s"])): {k: known(r[k]) for k in FEATURES}
        for r in _feature_frame(table, step_s).to_dict("records")
    }


def known(x):
    return None if x is None or x != x else x


def events(rows):
    """Begin and end of every row in the order of time; of equal times the begins of a row come
    first.
    """
    out = []
    for key, r in enumerate(rows):
        end = r["ts_us"] + (0 if r["latency_ms"] is None else _to_us(r["latency_ms"]))
        out += [(r["ts_us"], 0, key, r), (end, 1, key, r)]
    return sorted(out, key=lambda e: (e[0], e[2], e[1]))


def live(rows, step_s, reading=True):
    """The same rows as they would come in, read at the end of every step (or never: outcomes alone
    close steps); and the steps.
    """
    first, read, steps = {}, {}, []
    us, lives = step_s * US, {b: BackendFeatures(b, step_s) for b in {r["backend"] for r in rows}}
    for b, f in lives.items():
        f.listeners.append(lambda s, b=b: steps.append((b, s)))
    last = {}
    for at, kind, key, r in events(rows):
        first.setdefault(r["backend"], at // us)
        last[r["backend"]] = at // us
    todo = events(rows)
    for k in range(min(first.values()) + 1, max(last.values()) + 2):
        while todo and todo[0][0] < k * us:
            feed(lives, todo.pop(0))
        for b, f in lives.items():
            if not reading and todo:
                continue
            if first[b] < k <= last[b] + 1:
                read[b, (k - 1) * step_s] = f.read(float(k * step_s))
    return read, steps


def feed(lives, event):
    at, kind, key, r = event
    if not kind:
        return lives[r["backend"]].begin(key, at)
    counts = r["latency_ms"] is not None and (r["ok"] or r["error"] == "timeout")
    lives[r["backend"]].observe(
        key,
        at,
        _to_us(r["latency_ms"]) if counts else None,
        r["ok"],
        r["tokens_in"],
        r["tokens_out"],
    )


def check_same(want, got):
    assert want.keys() == got.keys()
    for at in want:
        assert {k: known(v) for k, v in got[at].items()} == want[at], at


@pytest.mark.parametrize("step_s", [60, 10])
@pytest.mark.parametrize("seed", range(4))
def test_log_and_live_are_one(tmp_path, seed, step_s):
    rows = random_rows(seed, step_s)
    table, want = through_the_log(rows, tmp_path, step_s, "parquet" if seed % 2 else "csv")
    got, steps = live(rows, step_s)
    check_same(want, got)

    def names(s):
        return {n: getattr(s, n) for n in s.__slots__}

    said = {(b, s.start_s): names(s) for b, s in to_steps(table)}
    assert said == {(b, s.start_s): names(s) for b, s in steps}
    unread = {(b, s.start_s): names(s) for b, s in live(rows, step_s, reading=False)[1]}
    assert unread == {k: v for k, v in said.items() if k in unread} and len(unread) > 0.9 * len(
        said
    )
    flat = [f for f in got.values()]
    for k in FEATURES:  # the phase needs a clock, which nobody detects here
        assert k == "cycle_phase" or any(f[k] is not None for f in flat), (
            f"{k} was never known: the test is too short"
        )
    assert max(f["in_flight"] for f in flat) > 1 and any(
        f["oldest_ms"] and f["oldest_ms"] > 1000 * step_s for f in flat
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_routers_own_features_are_those_of_its_log(tmp_path, seed):
    """Decisions, retries and outcomes through a router; its own log, written as it went, says the
    same afterwards.
    """
    rng, step_s, rows, waiting, read = Random(seed), 10, [], [], {}
    router = Router(
        [Backend(b) for b in "abc"],
        RandomChoice(),
        breaker=BreakerConfig(consecutive=10**6, failure_rate=1.0, slow_rate=1.0, min_calls=50),
        config=RouterConfig(step_s=step_s, lease_s=1e6, seed=seed),
    )
    now = START_US + 3 * US
    first, last, boundary = {}, {}, START_US // US + step_s

    def reserve(d, k):
        kind = rng.choices(["ok", "refused", "timeout"], [85, 5, 10])[0]
        r = dict(
            ts_us=now,
            backend=d.lanes[k].backend.name,
            latency_ms=rng.choice(
                [rng.lognormvariate(6, 1), rng.uniform(0, 25_000), (-now % (step_s * US)) / 1000.0]
            ),
            ok=kind == "ok",
            error=None if kind == "ok" else kind,
            tokens_in=rng.randrange(900),
            tokens_out=rng.randrange(300),
        )
        waiting.append((now + _to_us(r["latency_ms"]), len(rows), d.id, k, r))
        rows.append(r)
        waiting.sort(key=lambda w: w[:2])
        first.setdefault(r["backend"], now // (step_s * US))
        end = waiting and (now + _to_us(r["latency_ms"])) // (step_s * US)
        last[r["backend"]] = max(last.get(r["backend"], 0), end)

    def settle(until):
        nonlocal boundary
        while True:
            at = min(waiting[0][0] if waiting else 1 << 62, until)
            while boundary * US <= at:
                for b, f in router.feature_map().items():
                    read[b, boundary - step_s] = f.read(float(boundary))
                boundary += step_s
            if not waiting or waiting[0][0] > until:
                return
            end, _, id, k, r = waiting.pop(0)
            assert router.observe(
                Outcome(
                    r["backend"],
                    r["ts_us"] / 1e6,
                    r["latency_ms"],
                    r["ok"],
                    r["error"],
                    id,
                    k,
                    r["tokens_in"],
                    r["tokens_out"],
                )
            )

    for _ in range(700):
        settle(now)
        d = router.decide(Request(), now / 1e6)
        reserve(d, 0)
        if rng.random() < 0.1 and router.retry(d, now / 1e6):
            reserve(d, 1)
        now += int(rng.expovariate(1.0) * US)
    settle(now + 60 * US)
    assert not waiting
    _, want = through_the_log(rows, tmp_path, step_s)
    got = {(b, t): v for (b, t), v in read.items() if first[b] <= t // step_s <= last[b]}
    check_same(want, got)
    assert sum(router._signals.in_flight) == 0
