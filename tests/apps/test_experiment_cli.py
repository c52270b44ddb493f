"""`arcpoint experiment` and `arcpoint tune`: files with the agreed names, own data, going on after
a kill, and what is refused.
"""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcpoint_ce.apps import cli
from arcpoint_ce.apps import experiment as E
from arcpoint_ce.lab.contest import run_one
from arcpoint_ce.lab.experiment import Task, read_results
from arcpoint_ce.lab.study import judged
from arcpoint_ce.lab.worlds import FAMILIES

NAMES = {
    *(
        "missed",
        "failed",
        "requests",
        "attempts",
        "cost_usd",
        "best_rival",
        "load",
        "load_rule_kept",
        "changed_share",
    ),
    *(f"{name}{end}" for name in ("ratio", "ratio_sharp", "on_off") for end in ("", "_lo", "_hi")),
    *("median_ratio", "median_ratio_sharp", "cost_ratio", "lead_s_median"),
}
pytestmark = pytest.mark.xdist_group("experiment")  # one worker makes the run that most look at
SMALL = ("--requests", 600, "--seeds", 2, "--jobs", 1, "--no-progress")


def said(capsys, *args) -> tuple[int, str, str]:
    code = cli.run(list(map(str, args)))
    out = capsys.readouterr()
    return code, out.out, out.err


def numbers(folder) -> dict:
    return json.loads(
        (Path(folder) / "metrics.json").read_text(),
        parse_constant=lambda x: pytest.fail(f"{x} is no JSON"),
    )


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "Two families, one foreseeable, as the shell runs them."
    folder = tmp_path_factory.mktemp("done") / "out"
    assert (
        cli.run(
            [
                "experiment",
                "--family",
                "scheduled_surge,step_failure",
                "--out",
                str(folder),
                *map(str, SMALL),
            ]
        )
        == 0
    )
    return folder


def test_names_that_outside_checks_rely_on(done):
    m = numbers(done)
    assert {"worst_ratio", "worst_ratio_hi", "n_seeds"} <= set(m) and m["n_seeds"] == 2
    for f in ("scheduled_surge", "step_failure"):
        assert NAMES <= set(m[f])
        missed = m[f]["missed"]
        assert missed["clairvoyant"] == min(missed[f"clairvoyant_{x}"] for x in (1, 2, "draw"))
    assert (
        m["families"] == ["scheduled_surge", "step_failure"]
        and m["seeds"] == [0, 1]
        and m["n"] == 600
        and m["settings"] == {}
        and m["simulated"] is True
    )
    assert m["version"].startswith("0.") and any("simulated" in x for x in m["notes"])


def cross_judged(runs):
    "Misses of the best rival by hand: chosen on one half of the seeds, counted on the other."
    rivals = runs[~runs.contender.str.startswith(("ours", "clairvoyant"))]
    names, rows = [], []
    for half in (0, 1):
        total = rivals[rivals.seed % 2 == half].groupby("contender")[["missed", "cost_usd"]].sum()
        names.append(min(total.index, key=lambda p: (total.missed[p], total.cost_usd[p])))
        rows.append(rivals[(rivals.contender == names[-1]) & (rivals.seed % 2 != half)])
    return " / ".join(dict.fromkeys(names)), pd.concat(rows)


def same_ratio(found, top, bottom):
    "The ratio where either side has 200 misses, else nothing."
    assert found == (pytest.approx(top / bottom) if min(top, bottom) >= 200 else None)


def recomputed(m, runs, changed=None):
    "Every cell of a family's metrics that is a count or a ratio, from runs.csv."
    total = runs.groupby("contender")[
        ["missed", "failed", "requests", "attempts", "cost_usd"]
    ].sum()
    for column in total:
        counted = {who: n for who, n in m[column].items() if who != "clairvoyant"}
        assert counted == pytest.approx(total[column].to_dict())
    name, judged = cross_judged(runs)
    assert m["best_rival"] == name and m["missed_best_rival"] == judged.missed.sum()
    same_ratio(m["ratio"], total.missed["ours"], judged.missed.sum())
    same_ratio(m["ratio_sharp"], total.missed["ours"], total.missed["adaptive_least_sharp"])
    same_ratio(m["on_off"], total.missed["ours"], total.missed["ours_none"])
    assert m["load_rule_kept"] == (0.001 <= judged.missed.sum() / judged.requests.sum() <= 0.01)
    assert m["cost_ratio"] == pytest.approx(total.cost_usd["ours"] / judged.cost_usd.sum())
    if m["ratio_sharp"] is not None:
        by = runs.pivot(index="seed", columns="contender", values="missed").astype(float)
        each = (by["ours"] / by["adaptive_least_sharp"])[
            by["adaptive_least_sharp"] + by["ours"] > 0
        ]
        assert m["median_ratio_sharp"] == (
            pytest.approx(each.median()) if np.isfinite(each.median()) else None
        )


def test_every_number_follows_from_the_counts(done):
    t, m, runs = (
        read_results(done / "results.parquet"),
        numbers(done),
        pd.read_csv(done / "runs.csv"),
    )
    assert (
        runs.columns.tolist()
        == "family seed contender requests missed failed attempts cost_usd".split()
    )
    assert (
        not runs.duplicated(["family", "contender", "seed"]).any() and (runs.requests == 600).all()
    )
    assert {"ours", "ours_none", "adaptive_least", "adaptive_least_sharp", "clairvoyant_1"} <= set(
        runs.contender
    )
    assert set(runs.groupby(["family", "contender"]).seed.nunique()) == {2}
    for f in m["families"]:
        recomputed(m[f], runs[runs.family == f])
        own = t[(t.family == f) & (t.policy == "ours")]
        assert (
            m[f]["changed_share"] == pytest.approx(own.changed_share.mean())
            and 0 <= m[f]["changed_share"] <= 1
        )


def test_ratios_follow_from_the_counts_where_misses_are_enough():
    """Twenty worlds with counts as they come, judged, written as runs.csv holds them, and worked
    out again.
    """
    rng = np.random.default_rng(7)
    hard = 40 * rng.lognormal(0, 1, 20)
    share = dict(
        ours=0.5, ours_none=0.7, adaptive_least_sharp=1.0, p2c=1.4, prequal=1.1, clairvoyant_1=0.2
    )
    table = pd.DataFrame(
        dict(
            family="ramp",
            policy=p,
            seed=s,
            violations=rng.poisson(x * hard[s]),
            requests=9000,
            failed=3,
        )
        | dict(attempts=9100, cost_usd=rng.uniform(1, 2), changed_share=0.5)
        for s in range(20)
        for p, x in share.items()
    )
    found = judged(table, {"ramp": 0.7})["ramp"]
    assert None not in (
        found["ratio"],
        found["ratio_sharp_hi"],
        found["on_off_lo"],
        found["median_ratio_sharp"],
    )
    recomputed(found, E.runs_of(table))


def test_a_rival_that_is_best_by_luck_on_even_seeds_is_judged_on_odd_ones():
    counts = dict(ours=(30, 30), lucky=(2, 300), steady=(40, 40), clairvoyant_1=(0, 0))
    table = pd.DataFrame(
        dict(
            family="ramp",
            policy=p,
            seed=s,
            violations=v[s % 2],
            requests=9000,
            failed=0,
            attempts=9000,
            cost_usd=1.0,
        )
        for p, v in counts.items()
        for s in range(20)
    )
    found = judged(table, {"ramp": 0.7})["ramp"]
    assert (
        found["best_rival"] == "lucky / steady" and found["missed_best_rival"] == 10 * 300 + 10 * 40
    )
    assert found["ratio"] == pytest.approx(600 / 3400)
    assert judged(table[table.seed % 2 == 0], {"ramp": 0.7})["ramp"]["best_rival"] is None


def test_again_in_the_same_folder_runs_nothing_and_says_the_same(done, capsys):
    before, was = (done / "rows" / "rows.jsonl").read_bytes(), numbers(done)
    code, out, _ = said(
        capsys, "experiment", "--family", "scheduled_surge,step_failure", "--out", done, *SMALL
    )
    assert (
        code == 0 and (done / "rows" / "rows.jsonl").read_bytes() == before and numbers(done) == was
    )
    assert (
        "ours / best rival" in out
        and "attempts" in out
        and "cost_usd" in out
        and "simulated" in out
    )


@pytest.mark.slow
def test_more_seeds_cost_only_themselves(done, tmp_path):
    import shutil

    shutil.copytree(done, tmp_path / "more")
    lines = (tmp_path / "more" / "rows" / "rows.jsonl").read_text().splitlines()
    run = E.run_experiment(
        ["step_failure"], 3, n=600, out=tmp_path / "more", n_jobs=1, progress=False
    )
    now = (tmp_path / "more" / "rows" / "rows.jsonl").read_text().splitlines()
    assert (
        now[: len(lines)] == lines
        and len(now) - len(lines) == run.results.policy.nunique()
        and run.metrics["n_seeds"] == 3
    )
    assert "step_failure" in repr(run) and "<td>step_failure</td>" in run._repr_html_()


@pytest.mark.slow
def test_a_killed_run_goes_on(tmp_path):
    """Killed by SIGKILL after its first rows; the second call keeps them, and ends as an
    undisturbed run does.
    """
    rows = tmp_path / "x" / "rows" / "rows.jsonl"
    args = [
        sys.executable,
        "-c",
        "from arcpoint_ce.apps.cli import main; main()",
        "experiment",
        "--family",
        "step_failure",
        *map(str, SMALL),
        "--out",
    ]
    run = subprocess.Popen(
        [*args, str(tmp_path / "x")],
        start_new_session=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 120
    while (
        not (rows.exists() and rows.read_bytes().count(b"\n") >= 2)
        and run.poll() is None
        and time.monotonic() < until
    ):
        time.sleep(0.01)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    kept = rows.read_bytes()[: rows.read_bytes().rfind(b"\n") + 1]
    assert kept.count(b"\n") >= 2 and not (tmp_path / "x" / "metrics.json").exists()
    for name in ("x", "y"):
        assert subprocess.run([*args, str(tmp_path / name)], capture_output=True).returncode == 0
    assert rows.read_bytes().startswith(kept)
    pd.testing.assert_frame_equal(
        *(read_results(tmp_path / n / "results.parquet") for n in ("x", "y")), check_exact=True
    )
    assert numbers(tmp_path / "x") == numbers(tmp_path / "y")


def azure(path: Path) -> Path:
    "Arrivals in waves, in the layout of the Azure traces."
    at, rows = 0.0, []
    for k in range(900):
        at += 0.08 + 0.06 * math.sin(k / 40)
        m, s = divmod(at, 60)
        rows.append(
            f"2024-05-10 07:{int(m):02d}:{s:09.6f},{200 + 7 * (k % 90)},{30 + 3 * (k % 60)}"
        )
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n" + "\n".join(rows) + "\n")
    return path


def splitwise(path: Path) -> Path:
    "A server as in Splitwise's table of measurements."
    head = "model,hardware,tensor_parallel,prompt_size,batch_size,token_size,prompt_time,token_time"
    rows = [
        f"toy,a100,2,{p},{b},{t},{8 + 0.06 * p * b},{18 + 0.5 * b}"
        for p in (128, 512)
        for b in (1, 2, 4, 8, 16, 32)
        for t in (128, 256)
    ]
    path.write_text(head + "\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.slow
def test_own_arrivals_and_curves(tmp_path, capsys):
    a, c = azure(tmp_path / "mine.csv"), splitwise(tmp_path / "server.csv")
    code, _, err = said(
        capsys,
        "experiment",
        "--family",
        "scheduled_surge",
        "--arrivals",
        a,
        "--curves",
        c,
        "--out",
        tmp_path / "out",
        *SMALL,
    )
    assert code == 0, err
    m, t = numbers(tmp_path / "out"), read_results(tmp_path / "out" / "results.parquet")
    assert (
        set(m["data_sha256"]) == {"arrivals", "curves"}
        and m["curves"] == "measured"
        and NAMES <= set(m["scheduled_surge"])
    )
    assert (
        (t.arrivals == str(a)).all()
        and (t.curves == str(c)).all()
        and any("chosen anew" in x for x in m["notes"])
    )
    a.write_text(a.read_text().replace(",200,", ",201,"))
    code, _, err = said(
        capsys,
        "experiment",
        "--family",
        "scheduled_surge",
        "--arrivals",
        a,
        "--curves",
        c,
        "--out",
        tmp_path / "out",
        *SMALL,
    )
    assert code == 2 and "another question" in err and "hashes" in err


@pytest.mark.slow
@pytest.mark.parametrize("forecast", ["off", "inverted"])
def test_forecast_switched_off_or_wrong(tmp_path, capsys, forecast):
    code, _, err = said(
        capsys,
        "experiment",
        "--family",
        "step_failure",
        "--forecast",
        forecast,
        "--out",
        tmp_path / "o",
        *SMALL,
    )
    assert code == 0, err
    m, t = numbers(tmp_path / "o"), read_results(tmp_path / "o" / "results.parquet")
    assert (
        {"off": "ours_none"}.get(forecast, f"ours_{forecast}") in set(t.policy)
        and "ours" not in set(t.policy)
        and m["forecast"] == forecast
    )
    assert forecast != "off" or m["step_failure"]["on_off"] in (1.0, None)


@pytest.mark.slow
def test_quick_is_small_and_more_policies_run(tmp_path):
    run = E.run_experiment(
        ["ramp"],
        12,
        True,
        n=300,
        policies=["round_robin", "clairvoyant"],
        out=tmp_path / "q",
        n_jobs=1,
        progress=False,
    )
    assert (
        run.metrics["n_seeds"] == 4
        and run.metrics["quick"]
        and "round_robin" in set(run.results.policy)
        and any("quick" in x for x in run.metrics["notes"])
    )


@pytest.mark.parametrize(
    "args, says",
    [
        (("--family", "scheduled_surge,surge"), "scheduled_surge, slow_degradation"),
        (("--family", "diurnall"), "did you mean 'diurnal'"),
        (("--forecast", "wrong"), "on, off, shuffled, frozen, inverted, missing"),
        (("--policies", "p3c"), "adaptive_least"),
        (("--arrivals", "none.csv"), "none.csv: no such file"),
        (("--curves", "none.csv"), "none.csv: no such file"),
        (("--arrivals", "bad.csv"), "bad.csv"),
        (("--curves", "bad.csv"), "bad.csv"),
        (("--seeds", "0"), "seeds must be"),
        (("--seeds", "1000000"), "899999"),
        (("--request-s", "-8"), "request_s must be positive"),
        (("--gateways", "0"), "gateways must be positive"),
        (("--staleness-s", "-1"), "staleness_s"),
        (("--requests", "0"), "Setting.n must be positive"),
        (("--retries", "-1"), "Setting.retries must be a whole number, 0 or more"),
        (("--streams", "1.5"), "share from 0 to 1"),
        (("--load", "0"), "load must be positive"),
        (("--scaler", "crone"), "reactive"),
        (("--forecasters", "rooms"), "room"),
    ],
)
def test_what_is_refused(tmp_path, monkeypatch, capsys, args, says):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.csv").write_text("a,b\n1,2\n")
    code, out, err = said(capsys, "experiment", "--out", "x", *args)
    assert code == 2 and says in err and err.count("\n") == 1 and "Traceback" not in err, err
    assert not (tmp_path / "x").exists()


def test_callers_that_never_try_again_lose_what_fails():
    def attempts(**more):
        options = dict(n=600, load=0.7, **more)
        return run_one(Task("fast_errors", "adaptive_least", 3, options))

    lost, tried_again = attempts(retries=0), attempts()
    assert lost["attempts"] == 600 < tried_again["attempts"]
    assert lost["failed"] > tried_again["failed"]


def test_all_families_by_name():
    assert (
        cli._families_of("all", []) == list(FAMILIES)
        and cli._families_of(" ramp , diurnal", []) == ["ramp", "diurnal"]
        and cli._families_of("", ["x"]) == ["x"]
    )


def test_tune_keeps_what_it_has(tmp_path, capsys, monkeypatch):
    from arcpoint_ce.lab import tuning

    monkeypatch.setattr(
        tuning,
        "_tune_family",
        lambda family, plan, **_: dict(load=0.5, rate=0.004, best="p2c", peers={}),
    )
    for family in ("ramp", "ramp,diurnal"):
        code, out, err = said(
            capsys, "tune", "--out", tmp_path / "t.json", "--family", family, "--no-progress"
        )
        assert code == 0, err
    assert (
        list(json.loads((tmp_path / "t.json").read_text())["families"]) == ["diurnal", "ramp"]
        and "best reactive" in out
    )
    assert (
        said(capsys, "tune", "--out", tmp_path / "t.json", "--family", "surge")[0] == 2
        and said(capsys, "tune", "--out", tmp_path / "no" / "t.json")[0] == 2
    )


@pytest.mark.slow
def test_the_load_the_share_of_streams_and_the_scaler_that_were_asked_for_are_run(tmp_path, capsys):
    "All contenders of one world get the same scaler, and nothing is chosen by the rule."
    args = (
        "experiment",
        "--family",
        "cold_capacity",
        "--load",
        ".5",
        "--streams",
        ".5",
        "--scaler",
        "reactive",
        *SMALL,
    )
    code, _, err = said(capsys, *args, "--out", tmp_path / "cold")
    assert code == 0, err
    t, m = read_results(tmp_path / "cold" / "results.parquet"), numbers(tmp_path / "cold")
    assert (t.load == 0.5).all() and (t.streams == 0.5).all() and (t.scaler == "reactive").all()
    assert m["cold_capacity"]["load"] == m["load"] == 0.5 and m["settings"] == dict(
        streams=0.5, scaler="reactive"
    )
    hours = m["cold_capacity"]["replica_hours"]
    assert hours["ours"] == hours["ours_none"] == hours["adaptive_least"]
    code, _, err = said(capsys, *args[:3], "--load", ".6", *args[5:], "--out", tmp_path / "cold")
    assert code == 2 and "another question" in err and "load" in err


@pytest.mark.parametrize(
    "words, share",
    [
        (("--no-streams",), 0.0),
        (("--streams",), None),
        (("--streams", "0"), 0.0),
        (("--streams", "0.25"), 0.25),
    ],
)
def test_old_and_new_spellings_of_streams(monkeypatch, tmp_path, words, share):
    seen = {}
    monkeypatch.setattr(E, "run_experiment", lambda *a, **how: seen.update(how) or "")
    assert cli.run(["experiment", *words, "--out", str(tmp_path / "x")]) == 0
    assert seen["streams"] == (1.0 if share is None else share)
