"Trials: finished runs are kept, the commands work, and a short real run tells what callers saw."

import asyncio
import json
from pathlib import Path

import numpy as np
import pytest
from waiting import until

from arcpoint_ce.apps.cli import run
from arcpoint_ce.lab.fleet import ServiceCurve, SimBackend
from arcpoint_ce.live import predictor_trial, rival_gateways, trials
from arcpoint_ce.live.testbed import Testbed
from arcpoint_ce.routing.records import Backend

QUICK = ServiceCurve((1.0, 8.0), (2.0, 4.0), (10.0, 20.0), 100.0)


def test_a_finished_run_is_not_repeated(monkeypatch, tmp_path):
    asked = []

    def once(kind, policy, seconds, rate_rps, seed):
        asked.append((kind, policy, seed))
        if len(asked) == 3:
            raise KeyboardInterrupt
        return dict(n=10, missed=len(asked), failed=0, broken=0, idle_share=0.5)

    monkeypatch.setattr(trials, "_chaos_run", once)
    how = dict(seeds=2, kept=tmp_path / "runs.jsonl")
    with pytest.raises(KeyboardInterrupt):
        trials.chaos_runs(["a"], ["p", "q"], **how)
    rows = trials.chaos_runs(["a"], ["p", "q"], **how)
    assert asked == [("a", "p", 0), ("a", "q", 0), ("a", "p", 1), ("a", "p", 1), ("a", "q", 1)]
    assert [row["missed"] for row in rows] == [1, 2, 4, 5]
    assert [json.loads(line) for line in (tmp_path / "runs.jsonl").read_text().splitlines()] == rows
    trials.chaos_runs(["a"], ["p", "q"], 21.0, **how)  # another length is another run
    assert len(asked) == 9


@pytest.mark.slow
def test_the_proxy_with_a_fixed_target_asks_no_engine():
    quick = ServiceCurve((1.0, 8.0), (0.5, 0.5), (1.0, 1.0))
    sims = [SimBackend(Backend(name, capacity=8.0), quick) for name in ("east", "west")]

    async def some(url):
        httpx = trials.optional("httpx")
        async with httpx.AsyncClient(timeout=30) as client:
            return [await trials._ask(client, url, 5, 3) for _ in range(6)]

    with Testbed(sims) as bed:
        url, pid = trials._gate(bed, fixed="west")
        rows = trials._run(some(url))
        assert trials._used_us(pid) > 0
    assert all(row["ok"] for row in rows) and {row["backend"] for row in rows} == {"west"}
    until(lambda: not _lives(pid), "the gateway has ended with its testbed")


def _lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as f:
            return " Z " not in f.read()
    except FileNotFoundError:
        return False


@pytest.mark.slow  # LiteLLM takes seconds to import
@pytest.mark.parametrize("name", rival_gateways._RIVALS)
def test_the_real_rivals_serve_the_same_requests(name):
    if name not in rival_gateways._rivals_here():
        pytest.skip(f"{name.partition(':')[0]} is not installed")
    sims = [SimBackend(Backend(n, capacity=8.0), QUICK) for n in ("east", "west")]
    with Testbed(sims) as bed:
        url = rival_gateways._rival_gate(bed, name)
        work = trials._work(10.0, 1.0, 0)
        rows = asyncio.run(trials._offer(url, work))
        assert [row["status"] for row in rows] == [200] * 10 and all(row["ok"] for row in rows)
        bed.kill("west")
        rows = asyncio.run(trials._offer(url, work))
        # whether they try again elsewhere is their affair: what callers saw must be counted
        assert len(rows) == 10 and any(row["ok"] for row in rows), rows
        pids = [guest.pid for guest in bed._guests]
    until(lambda: not any(map(_lives, pids)), "the rival has ended with its testbed")


def test_a_run_against_a_rival_is_offered_to_the_rival(monkeypatch):
    asked = []

    def gate(bed, name):
        asked.append(name)
        return "http://127.0.0.1:9"

    monkeypatch.setattr(trials, "_rival_gate", gate)
    row = trials._chaos_run("fast_errors", "envoy:outlier", 0.5, 4.0, 0)
    assert asked == ["envoy:outlier"] and row["n"] == row["missed"] == row["failed"] == 2


def test_a_summary_counts_each_request_once():
    told = trials._summary(np.array([0.5, 2.0, np.inf, 1.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    assert told == dict(n=4, kept=2, late=1, failed=1)


def test_the_command_refuses_what_it_does_not_know(capsys):
    assert run(["testbed", "chaos", "--scenario", "rain"]) == 2
    assert "midstream_reset" in capsys.readouterr().err


@pytest.mark.slow
def test_chaos_from_the_command_line(tmp_path, capsys):
    fleet = tmp_path / "fleet.toml"
    fleet.write_text("".join(f'[[backend]]\nname = "{n}"\ncapacity = 8\n' for n in ("a", "b")))
    words = ["testbed", "chaos", "--scenario", "proxy_errors", "--fleet", str(fleet)]
    assert run([*words, "--seconds", "3", "--rate-rps", "4"]) == 0
    said = capsys.readouterr().out
    line = next(x for x in said.splitlines() if x.startswith("real"))
    assert line.split()[1] == "12" and line.split()[-1] == "0"  # none failed


@pytest.mark.slow  # half a minute of traffic
def test_a_scenario_ends_as_in_the_simulator():
    gap = trials.sim_gap(seconds=30.0)
    if gap["idle_share"] < 0.3:
        pytest.skip("the machine is too busy to be compared with a simulation")
    assert gap["sim_gap_points"] <= 8


@pytest.mark.slow
def test_rows_say_what_a_caller_saw():
    sims = [SimBackend(Backend("a", capacity=8.0), ServiceCurve((1.0, 8.0), (2.0, 2.0)))]
    work = trials._work(10.0, 1.0, 0)
    with Testbed(sims) as bed:
        url, _ = trials._gate(bed, forecaster="none", slo_ms=1000.0)
        bed.wire("a", cut="truncate", cut_after=1500)
        rows = asyncio.run(trials._offer(url, work))
    assert len(rows) == len(work) and all(row["broken"] for row in rows)
    assert all(row["first_s"] <= row["took_s"] and row["status"] == 200 for row in rows)


SECTION = """litellm_ratio_8 litellm_ratio_64 chaos_ratio_gradual chaos_ratio_sudden misses_ours
misses_rival
errors_with_retries streams_broken overhead_p50_us overhead_p99_us throughput_share predictor_p99_ms
predictor_error_ratio sim_gap_points budget_overspend redis_failed""".split()


def test_the_report_writes_every_name_that_others_rely_on():
    report = json.loads((Path(__file__).parents[2] / "reports/live.ipynb").read_text())
    last = "".join(report["cells"][-1]["source"])
    assert not [name for name in SECTION if f"{name}=" not in last]


def test_a_prediction_is_judged_by_the_best_constant():
    actual = [10.0, 20.0, 30.0, 50.0, 10.0, 90.0]
    assert predictor_trial._error_ratio(actual, actual) == 0
    assert predictor_trial._error_ratio([40.0] * 6, actual) == 1.0
    assert predictor_trial._error_ratio([], []) == np.inf
