"""`arcpoint check`: what a log holds, and whether the engine would have helped; no, where it would
not.
"""

import json
from heapq import heappop, heappush

import numpy as np
import pandas as pd
import pytest

from arcpoint_ce.apps.check import check_log, check_page
from arcpoint_ce.apps.cli import run
from arcpoint_ce.engine.engine import ContextEngine
from arcpoint_ce.engine.store import NullStore
from arcpoint_ce.routing.records import Backend, Outcome, Request
from arcpoint_ce.routing.router import RouterConfig
from arcpoint_ce.telemetry.limits import infer_limit_ms

N = 5000


def made(seed=0, ill_ms=2000.0, usual_ms=120.0, share=0.25):
    "Three backends; one of them is ill for a share of every hour."
    rng = np.random.default_rng(seed)
    out = pd.DataFrame(dict(ts=1.7e9 + np.arange(N) * 2.0, backend=rng.choice(["a", "b", "c"], N)))
    ill = (out.backend == "a") & (out.ts % 3600 < 3600 * share)
    return out.assign(latency_ms=np.where(ill, ill_ms, usual_ms) * rng.lognormal(0, 0.2, N))


def saved(tmp_path, frame, name="log.csv"):
    frame.sort_values("ts").to_csv(tmp_path / name, index=False)
    return tmp_path / name


def shuffled(frame, seed):
    return frame.assign(ts=np.random.default_rng(seed).permutation(frame.ts))


@pytest.mark.slow
def test_spells_can_be_avoided_and_what_is_at_random_cannot(tmp_path):
    found = check_log(saved(tmp_path, made()))["help"]
    assert found["answer"] == "yes" and 0.4 < found["low"][0] <= found["high"][0] <= 1
    assert found["low"][1] > 0.2 and list(found["by_backend"]) == ["a"]
    assert sum(n["late"] for n in found["by_hour"].values()) == found["late"]
    zero = check_log(saved(tmp_path, shuffled(made(), 1)))["help"]
    assert zero["answer"] == "no" and "at random" in zero["reason"]


@pytest.mark.slow
def test_shuffled_times_are_a_no_in_nineteen_of_twenty(tmp_path):
    answers = []
    for seed in range(20):
        frame = shuffled(made(seed, share=0.1 + 0.03 * (seed % 10)).head(2000), seed)
        answers.append(check_log(saved(tmp_path, frame), seed=seed)["help"]["answer"])
    assert answers.count("no") >= 19


@pytest.mark.parametrize(
    "frame, reason",
    [
        (made()[lambda x: x.backend == "b"], "one backend"),
        (made(ill_ms=120.0), "nothing was ever late|hardly anything was late"),
        (made().head(150), "too sparse"),
        (made().assign(model=lambda x: "model-" + x.backend), "every model has one backend"),
        (
            made().assign(latency_ms=lambda x: np.where(x.ts % 3600 < 900, 2000, 120)),
            "at once|last",
        ),
    ],
    ids=["one backend", "never late", "sparse", "one backend a model", "all at once"],
)
def test_no_has_a_reason(tmp_path, frame, reason):
    found = check_log(saved(tmp_path, frame))["help"]
    assert found["answer"] == "no" and pd.Series([found["reason"]]).str.contains(reason).all()


LIMIT_MS = 360.0


def spells(backend, at_s, rng):
    "Is it ill? One backend is, for a quarter of every 20 minutes."
    return backend == "a" and at_s % 1200 < 300


def at_random_on_one(backend, at_s, rng):
    "One backend is, with a quarter of its answers, whenever."
    return backend == "a" and rng.random() < 0.25


def at_random_everywhere(backend, at_s, rng):
    "All are alike: one answer in ten."
    return rng.random() < 0.1


def everywhere_at_once(backend, at_s, rng):
    "All are, together."
    return at_s % 1200 < 300


def took_ms(world, backend, at_s, rng):
    "How long a request takes; only the ill miss the limit."
    return (2000.0 if world(backend, at_s, rng) else 120.0) * rng.lognormal(0, 0.2)


def drawn(world, seed=0, n=1500):
    "A log of that world: every request went to one of three at random."
    rng = np.random.default_rng(seed)
    log = pd.DataFrame(dict(ts=1.7e9 + np.arange(n) * 2.0, backend=rng.choice(["a", "b", "c"], n)))
    return log.assign(latency_ms=[took_ms(world, *row, rng) for row in zip(log.backend, log.ts)])


def benefit(world, log):
    "What share of the late requests of a log the engine avoids when it lives in that world."
    rng, ends, late = np.random.default_rng(9), [], 0
    config = RouterConfig(slo_ms=LIMIT_MS)
    engine = ContextEngine([Backend(name) for name in "abc"], NullStore(), router=config)
    for i, now in enumerate(log.ts):
        while ends and ends[0][0] <= now:
            engine.observe(heappop(ends)[2])
        if i % 3 == 0:
            engine.tick(now)
        decision = engine.decide(Request(), now)
        ms = took_ms(world, decision.backend, now, rng)
        late += ms > LIMIT_MS
        outcome = Outcome(decision.backend, now, ms, True, None, decision.id)
        heappush(ends, (now + ms / 1000, i, outcome))
    return 1 - late / (log.latency_ms > LIMIT_MS).sum()


@pytest.mark.parametrize(
    "world, lowest, highest",
    [
        (spells, 0.8, 1.0),
        (at_random_on_one, 0.5, 1.0),
        (at_random_everywhere, -0.6, 1.0),
        (everywhere_at_once, -0.2, 0.2),
    ],
    ids=["spells", "at random on one", "at random everywhere", "everywhere at once"],
)
def test_the_interval_of_the_whole_engine_holds_a_known_benefit(tmp_path, world, lowest, highest):
    log = drawn(world)
    low, high = check_log(saved(tmp_path, log), slo_ms=LIMIT_MS)["help"]["whole"]
    assert lowest <= low <= benefit(world, log) <= high <= highest


def test_a_healthy_log_gives_no_promise(tmp_path):
    never = check_log(saved(tmp_path, drawn(lambda *at: False)))
    assert never["help"]["whole"] is None and "would have avoided" not in check_page(never)
    alike = [
        check_log(saved(tmp_path, drawn(at_random_everywhere, seed=seed)), slo_ms=LIMIT_MS)
        for seed in range(6)
    ]
    assert {found["help"]["answer"] for found in alike} == {"no"}
    lows = [found["help"]["whole"][0] for found in alike]
    assert max(lows) <= 0.1 and sum(low <= 0 for low in lows) >= 4, lows
    assert "below 0: more would be late" in check_page(alike[0])


def test_answers_that_stream_tell_their_pace(tmp_path, monkeypatch):
    told = {}
    heard = ContextEngine.progress

    def progress(engine, decision, tokens, now):
        told.setdefault(decision.id, []).append(tokens)
        return heard(engine, decision, tokens, now)

    monkeypatch.setattr(ContextEngine, "progress", progress)
    log = drawn(spells, n=400).assign(tokens_out=100)
    log["latency_ms"] *= 20
    check_log(saved(tmp_path, log), slo_ms=20 * LIMIT_MS)
    assert not told  # nothing shows that its answers stream
    check_log(saved(tmp_path, log.assign(ttft_ms=50.0)), slo_ms=20 * LIMIT_MS)
    assert len(told) > 300 and max(map(len, told.values())) > 1  # once a second
    assert all(0 < counts[0] and counts[-1] <= 100 for counts in told.values())
    assert all(counts == sorted(counts) for counts in told.values())


def test_the_limits_of_the_fleet_file_count(tmp_path):
    text = "[limits]\nslo_ms = 100\nslo_tok_ms = 2\n"
    text += "".join(f'[[backend]]\nname = "{name}"\ncapacity = 1\n' for name in "abc")
    (tmp_path / "fleet.toml").write_text(text)
    log, fleet = drawn(spells), tmp_path / "fleet.toml"
    bare = check_log(saved(tmp_path, log), fleet=fleet)  # without tokens no limit per token
    assert bare["limit"]["said"].startswith("3 times the usual")
    path = saved(tmp_path, log.assign(tokens_out=100))
    told = check_log(path, fleet=fleet)
    assert (told["limit"]["ms"], told["limit"]["tok_ms"]) == (100, 2)
    assert told["help"]["late"] == (log.latency_ms > 300).sum()
    assert check_log(path, fleet=fleet, slo_ms=5000.0)["help"]["late"] == 0


@pytest.mark.slow
def test_a_slow_fleet_is_not_in_panic(tmp_path):
    frame = made(usual_ms=3000.0, ill_ms=3000.0)
    found = check_log(saved(tmp_path, frame))
    assert found["limit"]["ms"] > 8000 and found["help"]["answer"] == "no"
    given = check_log(saved(tmp_path, frame), slo_ms=300.0)
    assert given["limit"]["ms"] == 300 and given["help"]["late"] > 0.9 * N


def test_a_limit_follows_the_tokens_and_ignores_the_ill():
    rng = np.random.default_rng(0)
    tokens = rng.integers(10, 500, N)
    frame = made(usual_ms=1.0, ill_ms=30.0).assign(ok=True, tokens_out=tokens)
    frame["latency_ms"] *= 200 + 10 * tokens
    limit = infer_limit_ms(frame)
    assert limit.tok_ms == pytest.approx(30, rel=0.1) and limit.ms == pytest.approx(600, rel=0.4)
    assert "times the usual" in limit.said
    late = frame.latency_ms > limit.of(frame)
    assert 0.04 < late.mean() <= 1 / 12 + 0.01
    with pytest.raises(ValueError, match="too few to tell what is usual"):
        infer_limit_ms(frame.assign(ok=False))


def test_the_page_and_the_file(tmp_path, capsys):
    path, out = saved(tmp_path, made()), tmp_path / "check.json"
    assert run(["check", str(path), "--json", str(out)]) == 0
    page = capsys.readouterr().out
    for words in ("requests, columns", "5,000 read", "backends       3", "UTC", "limit", "no tier"):
        assert words in page
    assert "does it help?  yes" in page and len(page.splitlines()) < 45
    assert "the default engine at the door would have avoided" in page
    found = json.loads(out.read_text())
    assert found["help"]["answer"] == "yes" and found["rows"] == N and found["limit"]["said"]
    assert 0.8 < found["help"]["whole"][0] <= found["help"]["whole"][1] <= 1
    assert run(["check", str(path), "--slo-ms", "-1"]) == 2


@pytest.mark.slow
def test_a_series_can_be_checked(tmp_path, capsys):
    rows = []
    for k in range(200):
        for b in "abc":
            rows.append((60 * k, b, 30, 2000 if b == "a" and k % 60 < 15 else 120))
    frame = pd.DataFrame(rows, columns=["ts", "backend", "requests", "latency_ms"])
    assert run(["check", str(saved(tmp_path, frame))]) == 0
    page = capsys.readouterr().out
    assert "telemetry" in page.splitlines()[0]
    assert "timing alone" in page and "at the door" not in page  # single requests are needed


@pytest.mark.slow
def test_a_large_log_is_sampled_and_said_to_be(tmp_path):
    frame = pd.concat([made(k).assign(ts=lambda x, k=k: x.ts + 10_000 * k) for k in range(8)])
    found = check_log(saved(tmp_path, frame))
    assert found["judged"] < sum(found["backends"].values()) == 8 * N
    assert found["help"]["answer"] == "yes"


def test_it_proposes_the_capacity_of_every_backend(tmp_path):
    "Bursts of six: `small` slows down at the fourth, `large` never does."
    rows = [
        (1.7e9 + 60 * k + 0.1 * n, name, 4000 if name == "small" and n >= 3 else 1000)
        for k in range(40)
        for name in ("small", "large")
        for n in range(6)
    ]
    log = saved(tmp_path, pd.DataFrame(rows, columns=["ts", "backend", "latency_ms"]))
    found = check_log(log, slo_ms=2000.0)
    assert found["capacity"] == {"large": 6, "small": 3}
    assert "capacity       large 6, small 3 requests at once kept it" in check_page(found)
    json.dumps(found)


def test_mistakes_of_callers_and_hang_ups_are_counted_and_not_decided_again(tmp_path):
    log = drawn(spells, n=900).assign(status=200)
    log.loc[::30, "status"], log.loc[7::90, "status"] = 400, 499
    found = check_log(saved(tmp_path, log), slo_ms=LIMIT_MS)
    assert found["rows"] == 900 and found["requests"] == found["judged"] == 900 - 30 - 10
    assert found["outcomes"] == {"ok": 860, "caller": 30, "cancelled": 10}
    assert "caller 30, cancelled 10" in check_page(found)
