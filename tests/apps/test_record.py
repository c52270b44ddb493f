"The record: run once, in parts, resumable after a kill, and never by two versions under one name."

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from arcpoint_ce.apps import cli
from arcpoint_ce.apps import record as R
from arcpoint_ce.lab.experiment import read_rows

MISSED = dict(
    ours=5,
    ours_none=6,
    adaptive_least_sharp=7,
    prequal=9,
    c3=12,
    p2c=40,
    litellm=80,
    clairvoyant_1=1,
)


@pytest.fixture
def development(tmp_path):
    rows = [
        dict(
            family=f,
            seed=s,
            contender=p,
            requests=1000,
            missed=m,
            failed=0,
            attempts=1000,
            cost_usd=1.0,
        )
        for f in ("ramp", "step_failure")
        for s in (100, 101)
        for p, m in MISSED.items()
    ]
    # ran in one world only: it cannot be the best
    rows += [dict(rows[0], contender="envoy", missed=0)]
    pd.DataFrame(rows).to_csv(tmp_path / "development.csv", index=False)
    return tmp_path / "development.csv"


SCRIPT = """
import sys, time
from arcpoint_ce.apps import record as R
def slow(task):
    with open(sys.argv[3], "a") as f:
        f.write(task.key + "\\n")
    time.sleep(0.1)
    missed = 20 + task.seed % 7 + 10 * (not task.policy.startswith("ours"))
    counts = dict(violations=missed, requests=1000, failed=1, attempts=1010)
    return counts | dict(cost_usd=2.0, changed_share=None)
few = R._RecordPlan(seeds=tuple(range(900_500, 900_510)), requests=50)
R.run_record(sys.argv[1], ["ramp"], sys.argv[2], n_jobs=2, progress=False, what=few, run=slow)
"""


def start(out, development, log):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(out), str(development), str(log)], start_new_session=True
    )


@pytest.mark.slow
def test_a_killed_record_goes_on_where_it_stopped(tmp_path, development):
    rows = tmp_path / "out" / "ramp" / "rows" / "rows.jsonl"
    first = start(tmp_path / "out", development, tmp_path / "first")
    give_up = time.monotonic() + 120
    while not (rows.exists() and rows.read_bytes().count(b"\n") >= 6):
        assert first.poll() is None and time.monotonic() < give_up, (
            "the record ended or hung before it could be killed"
        )
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = set(read_rows(rows)[0])
    assert 6 <= len(done) < 70 and not (tmp_path / "out" / "record.json").exists()
    assert start(tmp_path / "out", development, tmp_path / "second").wait() == 0
    again = (tmp_path / "second").read_text().splitlines()
    assert len(again) == 70 - len(done) and not done & set(again)
    runs = pd.read_csv(tmp_path / "out" / "runs.csv")
    found = json.loads((tmp_path / "out" / "record.json").read_text())["ramp"]
    assert found["missed"] == runs.groupby("contender").missed.sum().to_dict() and len(runs) == 70
    assert set(runs.contender) == {
        "ours",
        "ours_none",
        "adaptive_least_sharp",
        "prequal",
        "c3",
        "p2c",
    } | set(R._FIXED)


def toy(task):
    return dict(
        violations=task.seed % 5 + 1,
        requests=100,
        failed=0,
        attempts=100,
        cost_usd=1.0,
        changed_share=None,
    )


def test_another_version_is_refused_and_an_open_second_attempt_keeps_the_first(
    tmp_path, development, monkeypatch
):
    how = dict(families=["ramp"], development=development, n_jobs=1, progress=False, run=toy)
    how |= dict(what=R._RecordPlan(seeds=(900_500, 900_501), requests=50))
    R.run_record(tmp_path / "out", **how)
    was = json.loads((tmp_path / "out" / "ramp" / "part.json").read_text())
    before = (tmp_path / "out" / "ramp" / "runs.csv").read_bytes()
    monkeypatch.setattr(R, "code_version", lambda *a: "9.9.9+changed")
    with pytest.raises(ValueError, match="run once.*--again"):
        R.run_record(tmp_path / "out", **how)
    assert (tmp_path / "out" / "ramp" / "runs.csv").read_bytes() == before
    R.run_record(tmp_path / "out", again=True, **how)
    now = json.loads((tmp_path / "out" / "ramp" / "part.json").read_text())
    assert now["version"] == "9.9.9+changed" and now["earlier_versions"] == [was["version"]]
    assert (tmp_path / "out" / "ramp.attempt1" / "runs.csv").read_bytes() == before
    whole = json.loads((tmp_path / "out" / "record.json").read_text())
    # the page that quotes it can tell
    assert whole["parts"]["ramp"]["earlier_versions"] == [was["version"]]


def test_the_shell_says_what_would_be_run_and_runs_nothing(
    tmp_path, development, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    assert cli.run(["record", "--dry-run", "--development", str(development)]) == 0
    out = capsys.readouterr().out
    assert (
        "step_failure" in out
        and "prequal" in out
        and "minutes left" in out
        and not (tmp_path / "record").exists()
    )
    assert (
        cli.run(["record", "--part", "rampp", "--dry-run", "--development", str(development)]) == 2
    )
    assert "did you mean 'ramp'" in capsys.readouterr().err
    assert cli.run(["record", "--development", "none.csv"]) == 2
    assert "--seed-from 100" in capsys.readouterr().err


def test_the_seeds_of_the_record_are_its_own():
    what = R._RecordPlan()
    assert what.seeds == tuple(range(1000, 1100)) and what.requests == 20_000
    with pytest.raises(AttributeError):
        what.seeds = (0,)


def test_the_development_results_that_ship_say_who_runs():
    development = R._read_development()
    families = development["family"].unique()
    assert len(families) >= 8
    for family in families:
        names = R._record_contenders(development, family)
        assert set(R._FIXED) < set(names) and len(names) == len(R._FIXED) + 3


def test_the_published_record_follows_from_its_counts():
    "Whole families alone, every world of the plan, and sums that anybody can add up."
    results = Path(__file__).parents[2] / "data" / "results"
    record = json.loads((results / "record.json").read_text())
    runs = pd.read_csv(results / "record.csv")
    assert list(dict.fromkeys(runs.family)) == sorted(record["families"])
    assert not set(record["families"]) & set(record["not_run"])
    for family, of_family in runs.groupby("family"):
        assert set(of_family.groupby("contender").seed.nunique()) == {len(R._RecordPlan().seeds)}
        assert set(of_family.requests) == {R._RecordPlan().requests}
        missed = of_family.groupby("contender").missed.sum().to_dict()
        assert missed == record[family]["missed"]
        assert not record["parts"][family]["earlier_versions"], "the record is run once"
