"""`arcpoint check`: what a log holds, and whether the engine would have helped; no, where it would
not.
"""

import json

import numpy as np
import pandas as pd
import pytest

from arcpoint_ce.apps.check import check_log, check_page
from arcpoint_ce.apps.cli import run
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
    for words in (
        "requests, columns",
        "5,000 read",
        "backends       3",
        "UTC",
        "limit",
        "no tier",
    ):
        assert words in page
    assert "does it help?  yes" in page and len(page.splitlines()) < 45
    found = json.loads(out.read_text())
    assert found["help"]["answer"] == "yes" and found["rows"] == N and found["limit"]["said"]
    assert run(["check", str(path), "--slo-ms", "-1"]) == 2


@pytest.mark.slow
def test_a_series_can_be_checked(tmp_path, capsys):
    rows = []
    for k in range(200):
        for b in "abc":
            rows.append((60 * k, b, 30, 2000 if b == "a" and k % 60 < 15 else 120))
    frame = pd.DataFrame(rows, columns=["ts", "backend", "requests", "latency_ms"])
    assert run(["check", str(saved(tmp_path, frame))]) == 0
    assert "telemetry" in capsys.readouterr().out.splitlines()[0]


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
