"`arcpoint experiment` and `arcpoint tune`: files with the agreed names, own data, going on after a kill, and what is refused."
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from arcpoint_ce.apps import cli
from arcpoint_ce.apps import experiment as E
from arcpoint_ce.lab.experiment import read_results
from arcpoint_ce.lab.families import FAMILIES

NAMES = {"ratio", "ratio_lo", "ratio_hi", "median_ratio", "clairvoyant_ratio", "gap_closed", "forecast_on_off", "cost_ratio", "best_reactive", "violations_reactive", "lead_s_median"}
SMALL = ("--requests", 600, "--seeds", 2, "--jobs", 1, "--no-progress")


def said(capsys, *args) -> tuple[int, str, str]:
    code = cli.run(list(map(str, args)))
    out = capsys.readouterr()
    return code, out.out, out.err


def numbers(folder) -> dict: return json.loads((Path(folder)/"metrics.json").read_text(), parse_constant=lambda x: pytest.fail(f"{x} is no JSON"))


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "Two families, one foreseeable, as the shell runs them."
    folder = tmp_path_factory.mktemp("done")/"out"
    assert cli.run(["experiment", "--family", "scheduled_surge,step_failure", "--out", str(folder), *map(str, SMALL)]) == 0
    return folder


def test_names_that_outside_checks_rely_on(done):
    m = numbers(done)
    assert {"worst_ratio", "worst_ratio_hi", "n_seeds"} <= set(m) and m["n_seeds"] == 2
    for f in ("scheduled_surge", "step_failure"): assert NAMES <= set(m[f])
    assert m["families"] == ["scheduled_surge", "step_failure"] and m["seeds"] == [0, 1] and m["n"] == 600 and m["settings"] == {} and m["simulated"] is True
    assert m["version"].startswith("0.") and any("simulated" in x for x in m["notes"])


def test_rows_are_tidy_paired_and_behind_the_numbers(done):
    t, m = read_results(done/"results.parquet"), numbers(done)
    assert not t.duplicated(["family", "policy", "seed"]).any() and (t.requests == 600).all()
    assert {"ours", "ours_none", "adaptive_least", "p2c", "clairvoyant_1"} <= set(t.policy)
    assert set(t.groupby(["family", "policy"]).seed.nunique()) == {2}
    for f in m["families"]:
        pooled = t[t.family == f].groupby("policy").violations.sum(); rival = pooled[m[f]["best_reactive"]]
        assert m[f]["ratio"] == (pytest.approx(pooled["ours"]/rival) if rival else None)
        assert m[f]["violations_reactive"] == pytest.approx(rival/1200)


def test_again_in_the_same_folder_runs_nothing_and_says_the_same(done, capsys):
    before, was = (done/"rows"/"rows.jsonl").read_bytes(), numbers(done)
    code, out, _ = said(capsys, "experiment", "--family", "scheduled_surge,step_failure", "--out", done, *SMALL)
    assert code == 0 and (done/"rows"/"rows.jsonl").read_bytes() == before and numbers(done) == was
    assert "scheduled_surge" in out and "ours / reactive" in out and "best reactive" in out and "simulated" in out


def test_more_seeds_cost_only_themselves(done, tmp_path):
    import shutil
    shutil.copytree(done, tmp_path/"more"); lines = (tmp_path/"more"/"rows"/"rows.jsonl").read_text().splitlines()
    run = E.run_experiment(["step_failure"], 3, n=600, out=tmp_path/"more", n_jobs=1, progress=False)
    now = (tmp_path/"more"/"rows"/"rows.jsonl").read_text().splitlines()
    assert now[:len(lines)] == lines and len(now) - len(lines) == run.results.policy.nunique() and run.metrics["n_seeds"] == 3
    assert "step_failure" in repr(run) and "<td>step_failure</td>" in run._repr_html_()


def test_a_killed_run_goes_on(tmp_path):
    "Killed by SIGKILL after its first rows; the second call keeps them, and ends as an undisturbed run does."
    rows = tmp_path/"x"/"rows"/"rows.jsonl"
    args = [sys.executable, "-c", "from arcpoint_ce.apps.cli import main; main()", "experiment", "--family", "step_failure", *map(str, SMALL), "--out"]
    run = subprocess.Popen([*args, str(tmp_path/"x")], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (rows.exists() and rows.read_bytes().count(b"\n") >= 2) and run.poll() is None and time.monotonic() < until: time.sleep(.01)
    os.killpg(run.pid, signal.SIGKILL); run.wait()
    kept = rows.read_bytes()[:rows.read_bytes().rfind(b"\n") + 1]
    assert kept.count(b"\n") >= 2 and not (tmp_path/"x"/"metrics.json").exists()
    for name in ("x", "y"): assert subprocess.run([*args, str(tmp_path/name)], capture_output=True).returncode == 0
    assert rows.read_bytes().startswith(kept)
    pd.testing.assert_frame_equal(*(read_results(tmp_path/n/"results.parquet") for n in ("x", "y")), check_exact=True)
    assert numbers(tmp_path/"x") == numbers(tmp_path/"y")


def azure(path: Path) -> Path:
    "Arrivals in waves, in the layout of the Azure traces."
    at, rows = 0., []
    for k in range(900):
        at += .08 + .06*math.sin(k/40); m, s = divmod(at, 60)
        rows.append(f"2024-05-10 07:{int(m):02d}:{s:09.6f},{200 + 7*(k % 90)},{30 + 3*(k % 60)}")
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    return path


def splitwise(path: Path) -> Path:
    "A server as in Splitwise's table of measurements."
    head = "model,hardware,tensor_parallel,prompt_size,batch_size,token_size,prompt_time,token_time"
    rows = [f"toy,a100,2,{p},{b},{t},{8 + .06*p*b},{18 + .5*b}" for p in (128, 512) for b in (1, 2, 4, 8, 16, 32) for t in (128, 256)]
    path.write_text(head + "\n" + "\n".join(rows) + "\n")
    return path


def test_own_arrivals_and_curves(tmp_path, capsys):
    a, c = azure(tmp_path/"mine.csv"), splitwise(tmp_path/"server.csv")
    code, _, err = said(capsys, "experiment", "--family", "scheduled_surge", "--arrivals", a, "--curves", c, "--out", tmp_path/"out", *SMALL)
    assert code == 0, err
    m, t = numbers(tmp_path/"out"), read_results(tmp_path/"out"/"results.parquet")
    assert set(m["data_sha256"]) == {"arrivals", "curves"} and m["curves"] == "measured" and NAMES <= set(m["scheduled_surge"])
    assert (t.arrivals == str(a)).all() and (t.curves == str(c)).all() and any("chosen anew" in x for x in m["notes"])
    a.write_text(a.read_text().replace(",200,", ",201,"))
    code, _, err = said(capsys, "experiment", "--family", "scheduled_surge", "--arrivals", a, "--curves", c, "--out", tmp_path/"out", *SMALL)
    assert code == 2 and "another question" in err and "hashes" in err


@pytest.mark.parametrize("forecast", ["off", "inverted"])
def test_forecast_switched_off_or_wrong(tmp_path, capsys, forecast):
    code, _, err = said(capsys, "experiment", "--family", "step_failure", "--forecast", forecast, "--out", tmp_path/"o", *SMALL)
    assert code == 0, err
    m, t = numbers(tmp_path/"o"), read_results(tmp_path/"o"/"results.parquet")
    assert {"off": "ours_none"}.get(forecast, f"ours_{forecast}") in set(t.policy) and "ours" not in set(t.policy) and m["forecast"] == forecast
    assert forecast != "off" or m["step_failure"]["forecast_on_off"] in (1., None)


def test_quick_is_small_and_more_policies_run(tmp_path):
    run = E.run_experiment(["ramp"], 12, True, n=300, policies=["round_robin"], out=tmp_path/"q", n_jobs=1, progress=False)
    assert run.metrics["n_seeds"] == 4 and run.metrics["quick"] and "round_robin" in set(run.results.policy) and any("quick" in x for x in run.metrics["notes"])


@pytest.mark.parametrize("args, says", [
    (("--family", "scheduled_surge,surge"), "scheduled_surge, slow_degradation"), (("--family", "diurnall"), "did you mean 'diurnal'"),
    (("--forecast", "wrong"), "on, off, shuffled, frozen, inverted, missing"), (("--policies", "p3c"), "adaptive_least"),
    (("--arrivals", "none.csv"), "none.csv: no such file"), (("--curves", "none.csv"), "none.csv: no such file"),
    (("--arrivals", "bad.csv"), "bad.csv"), (("--curves", "bad.csv"), "bad.csv"), (("--seeds", "0"), "seeds must be"), (("--seeds", "1000000"), "899999"),
    (("--request-s", "-8"), "request_s must be positive"), (("--gateways", "0"), "gateways must be positive"), (("--staleness-s", "-1"), "staleness_s"), (("--requests", "0"), "Setting.n must be positive")])
def test_what_is_refused(tmp_path, monkeypatch, capsys, args, says):
    monkeypatch.chdir(tmp_path); (tmp_path/"bad.csv").write_text("a,b\n1,2\n")
    code, out, err = said(capsys, "experiment", "--out", "x", *args)
    assert code == 2 and says in err and err.count("\n") == 1 and "Traceback" not in err, err
    assert not (tmp_path/"x").exists()


def test_all_families_by_name(): assert cli.families_of("all", []) == list(FAMILIES) and cli.families_of(" ramp , diurnal", []) == ["ramp", "diurnal"] and cli.families_of("", ["x"]) == ["x"]


def test_tune_keeps_what_it_has(tmp_path, capsys, monkeypatch):
    from arcpoint_ce.lab import tuning
    monkeypatch.setattr(tuning, "tune_family", lambda family, plan, **_: dict(load=.5, rate=.004, best="p2c", peers={}))
    for family in ("ramp", "ramp,diurnal"):
        code, out, err = said(capsys, "tune", "--out", tmp_path/"t.json", "--family", family, "--no-progress")
        assert code == 0, err
    assert list(json.loads((tmp_path/"t.json").read_text())["families"]) == ["diurnal", "ramp"] and "best reactive" in out
    assert said(capsys, "tune", "--out", tmp_path/"t.json", "--family", "surge")[0] == 2 and said(capsys, "tune", "--out", tmp_path/"no"/"t.json")[0] == 2
