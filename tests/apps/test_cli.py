"The command line: what it prints, what it refuses, and its exit codes."

import json
import os
import subprocess
import sys
import types

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from report_helpers import leaving, template

from arcpoint_ce.apps import cli


def said(capsys, *args: str) -> tuple[int, str, str]:
    "Exit code, stdout, stderr of one command line in this process."
    code = cli.run([str(a) for a in args])
    out = capsys.readouterr()
    return code, out.out, out.err


def shell(*args: str, cwd=None, **env: str) -> subprocess.CompletedProcess:
    "One command line in a process of its own, through the console entry point."
    code = "from arcpoint_ce.apps.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=os.environ | env,
    )


@pytest.fixture(scope="module")
def log(tmp_path_factory):
    "A small request log of three backends over eight hours; b is slow at the end."
    rng, rows = np.random.default_rng(0), []
    for name, base in (("a", 80.0), ("b", 90.0), ("c", 150.0)):
        ts = np.sort(rng.uniform(0, 8 * 3600 - 10, 2400))
        slow = np.where((name == "b") & (ts > 7.5 * 3600), 8.0, 1.0)
        rows.append(
            pd.DataFrame(
                dict(
                    ts=1_770_000_000 + ts,
                    backend=name,
                    latency_ms=base * slow * rng.lognormal(0, 0.2, len(ts)),
                )
            )
        )
    path = tmp_path_factory.mktemp("log") / "requests.csv"
    pd.concat(rows).sample(frac=1, random_state=0).to_csv(path, index=False)
    return path


def test_help_teaches(capsys):
    code, out, _ = said(capsys, "--help")
    assert code == 0
    for word in (
        "report",
        "bench",
        "fetch",
        "train",
        "decide",
        "arcpoint report routing -p data requests.csv -p slo_ms 300 --out",
    ):
        assert word in out
    for command in ("report", "bench", "fetch", "train", "decide"):
        code, out, _ = said(capsys, command, "--help")
        assert code == 0 and f"arcpoint {command}" in out.split("Options:")[0].partition("\n")[2], (
            command
        )


def test_help_loads_nothing_heavy():
    code = (
        "import sys; from arcpoint_ce.apps.cli import run; run(['--help']); "
        "print([m for m in ('numpy', 'pandas', 'sklearn', 'duckdb', 'papermill', "
        "'nbconvert', 'numba', 'matplotlib') if m in sys.modules])"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True
        ).stdout.splitlines()[-1]
        == "[]"
    )


def test_version_and_no_arguments(capsys):
    from arcpoint_ce import __version__

    assert said(capsys, "--version")[:2] == (0, f"arcpoint_ce {__version__}\n")
    code, out, err = said(capsys)
    assert code == 2 and "arcpoint report routing" in out + err


def test_a_report_from_the_shell(tmp_path):
    path = template(tmp_path / "small.ipynb")
    done = shell(
        "report",
        path,
        "-p",
        "n",
        "5",
        "-p",
        "scale",
        "2",
        "-p",
        "quick",
        "true",
        "-p",
        "word",
        "two words",
        "--out",
        "result",
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    params = json.loads((tmp_path / "result" / "params.json").read_text())["parameters"]
    assert params | {"out_dir": ""} == dict(
        n=5, scale=2.0, quick=True, word="two words", out_dir=""
    )
    page = done.stdout.strip().splitlines()[-1].removeprefix("page: ")
    assert (
        page == str(tmp_path / "result" / "report.html")
        and leaving(tmp_path / "result" / "report.html") == []
    )
    assert done.stdout.splitlines()[2].split() == ["total", "10"] and "100%" in done.stderr
    # what a kernel may say of its own socket while it ends
    closing = done.stderr.count("zmq.error.ZMQError: Socket operation on non-socket")
    assert "Traceback" not in done.stdout and done.stderr.count("Traceback") == closing, done.stderr
    again = shell("report", path, "--out", "result", cwd=tmp_path)
    assert again.returncode == 2 and again.stderr.count("\n") == 1 and "not empty" in again.stderr


def test_a_failed_report(tmp_path, capsys):
    code, out, err = said(
        capsys,
        "report",
        template(tmp_path / "x.ipynb", "1/0"),
        "--out",
        tmp_path / "out",
        "--no-progress",
    )
    assert code == 1 and "report x: failed" in out and str(tmp_path / "out" / "report.ipynb") in out
    assert "ZeroDivisionError: division by zero (cell 4: 1/0)" in err


def test_a_report_that_takes_too_long(tmp_path, capsys):
    path = template(tmp_path / "x.ipynb", "import time\ntime.sleep(99)")
    code, _, err = said(
        capsys, "report", path, "--out", tmp_path / "out", "--no-progress", "--timeout", "2"
    )
    assert code == 1 and "longer than 2 s" in err


@pytest.mark.parametrize(
    "args, says",
    [
        (["-p", "m", "1"], "unknown parameter 'm'"),
        (["-p", "skale", "1"], "did you mean 'scale'"),
        (["-p", "n", "three"], "'n' must be int, got 'three'"),
        (["-p", "quick", "maybe"], "'quick' must be bool"),
        (["-p", "n"], "a name and a value"),
        (["-p", "n", "--out", "x"], "a name and a value"),
        (["-p", "3", "4"], "a name and a value"),
        (["-p"], "requires an argument"),
        (["--timeout", "soon"], "--timeout"),
        (["--timeout", "-1"], "timeout_s"),
        (["--outt", "x"], "--out"),
        (["-p", "out_dir", "x"], "--out"),
    ],
)
def test_wrong_report_calls(tmp_path, monkeypatch, capsys, args, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, "report", template(tmp_path / "small.ipynb"), *args)
    assert (
        code == 2
        and says in err
        and "Traceback" not in err
        and [p.name for p in tmp_path.iterdir()] == ["small.ipynb"]
    )


@pytest.mark.parametrize(
    "args, says",
    [
        (["report"], "--list"),
        (["report", "routign"], "did you mean 'routing'"),
        (["report", "no/such.ipynb"], "no such template"),
        (["fetch", "azure_conv_2032"], "did you mean 'azure_conv_2023'"),
        (["decide", "none.csv"], "none.csv"),
        (["decide", "sample", "--policy", "p2"], "did you mean 'p2c'"),
        (["decide", "sample", "--slo-ms", "0"], "--slo-ms"),
        (["decide", "sample", "--slo-ms", "nan"], "--slo-ms"),
        (["decide", "sample", "--tokens-in", "-5"], "--tokens-in"),
        (["decide", "sample", "--tier", "premum"], "did you mean 'premium'"),
        (["decide", "sample", "--fleet", "none.toml"], "none.toml: no such file"),
        (["decide", "sample", "--model-dir", "none"], "missing"),
        (["decide", "sample", "--forecaster", "rooms"], "did you mean 'room'"),
        (["decide", "sample", "--slo-tok-ms", "-1"], "--slo-tok-ms"),
        (
            ["decide", "sample", "--model-dir", "none", "--forecaster", "room"],
            "leave --forecaster room out",
        ),
        (["replay", "sample", "--policy", "p2"], "did you mean 'p2c'"),
        (["replay", "sample", "--shadow", "p2"], "did you mean 'p2c'"),
        (["replay", "sample", "--shadow", "p2c", "--ab", "random"], "could not be told apart"),
        (["simulate", "--scenario", "calm", "--holdout", "1"], "--holdout"),
        (["serve", "--store", "s.sqlite", "--canary", "p2"], "did you mean 'p2c'"),
        (["serve", "--store", "s.sqlite", "--slo-ms", "-3"], "--slo-ms"),
        (["train", "none.csv"], "none.csv"),
        (["train", "sample", "--preset", "petshopp"], "unknown preset"),
        (["train", "exercise", "--horizon-min", "2.5"], "no multiple of the step"),
        (["bench", "--json", "none/x.json"], "no such folder"),
        (["dance"], "dance"),
    ],
)
def test_wrong_calls(tmp_path, monkeypatch, capsys, args, says):
    monkeypatch.chdir(tmp_path)
    code, out, err = said(capsys, *args)
    assert code == 2 and says in err and "Traceback" not in err and list(tmp_path.iterdir()) == []


def test_bad_rows_and_bad_fleets_are_named(tmp_path, capsys):
    (tmp_path / "bad.csv").write_text("ts,backend,latency_ms\n1770000000,a,-1\n1770000001,a,nan\n")
    code, _, err = said(capsys, "decide", tmp_path / "bad.csv")
    assert code == 2 and "2 of 2 rows are bad" in err and "bad.csv:2" in err
    (tmp_path / "fleet.toml").write_text('[[backend]]\nname = "a"\ncapacity = 0\n')
    code, _, err = said(capsys, "decide", "sample", "--fleet", tmp_path / "fleet.toml")
    assert code == 2 and "fleet.toml:3" in err and "capacity" in err


def test_debug_shows_the_traceback():
    plain, debug = shell("decide", "none.csv"), shell("decide", "none.csv", ARCPOINT_DEBUG="1")
    assert plain.returncode == 2 and plain.stderr.count("\n") == 1
    assert "Traceback" in debug.stderr and debug.returncode != 0


def test_list(capsys):
    code, out, _ = said(capsys, "report", "--list")
    assert (
        code == 0
        and "routing" in out
        and "slo_ms" in out
        and "300.0" in out
        and "out_dir" not in out
    )


def test_fetch_lists_and_reads_local_files(tmp_path, monkeypatch, capsys):
    from arcpoint_ce.telemetry import traces

    code, out, _ = said(capsys, "fetch")
    assert code == 0 and all(n in out for n in traces.REGISTRY)
    (tmp_path / "x.csv").write_text("hello\n")
    entry = dict(
        url=None,
        source="nowhere",
        licence="CC0-1.0",
        local="x.csv",
        sha256="5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03",
    )
    monkeypatch.setitem(traces.REGISTRY, "mine", entry)
    monkeypatch.setenv("ARCPOINT_DATA", str(tmp_path))
    assert said(capsys, "fetch", "mine")[:2] == (0, f"{tmp_path / 'x.csv'}\n")
    (tmp_path / "x.csv").unlink()
    code, _, err = said(capsys, "fetch", "mine")
    assert code == 2 and "not offered for download" in err


def test_bench_prints_its_figures(tmp_path, monkeypatch, capsys):
    asked = {}

    def run_bench(**how):
        asked.update(how)
        return {"import_ms": np.float64(31.25), "forest_max_abs_diff": 0.0, "detail": {"n": 3}}

    fake = types.ModuleType("arcpoint_ce.apps.bench")
    fake.run_bench = run_bench
    monkeypatch.setitem(sys.modules, "arcpoint_ce.apps.bench", fake)
    words = ("--json", tmp_path / "b.json", "--only", "tick", "--only", "import")
    code, out, _ = said(capsys, "bench", *words)
    assert code == 0 and "import_ms" in out and "31.25" in out and "detail" not in out
    assert asked == {"only": ["tick", "import"], "out": tmp_path / "b.json"}
    assert said(capsys, "bench")[0] == 0 and asked == {"only": (), "out": None}


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "papermill", None)
    code, _, err = said(capsys, "report", template(tmp_path / "x.ipynb"))
    assert (
        code == 1
        and "'papermill'" in err
        and "pip install 'arcpoint_ce'" in err
        and err.count("\n") == 1
    )


@pytest.fixture(scope="module")
def model(log, tmp_path_factory):
    "A model that the command line trained."
    folder = tmp_path_factory.mktemp("model") / "m"
    done = shell("train", log, "--out", folder)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


def test_train_saves_what_it_learned(model):
    from arcpoint_ce.forecast.latency import load

    folder, out = model
    assert set(load(folder).models_) == {"a", "b", "c"}
    assert (
        all(line.split()[0] in ("a", "b", "c") for line in out.splitlines()[2:5])
        and "7200 rows in, 0 quarantined" in out
    )
    assert not [p for p in folder.iterdir() if p.suffix not in (".npz", ".json")]


def test_train_spares_folders_that_are_no_models(log, tmp_path, capsys):
    (tmp_path / "mine.txt").write_text("mine")
    code, _, err = said(capsys, "train", log, "--out", tmp_path)
    assert code == 2 and "no model" in err and [p.name for p in tmp_path.iterdir()] == ["mine.txt"]


def test_decide_gives_reasons_and_repeats(model, log, capsys):
    folder, _ = model
    args = ("decide", log, "--model-dir", folder, "--slo-ms", "300", "--seed", "3")
    one, two = (said(capsys, *args) for _ in range(2))
    assert one == two and one[0] == 0
    out = one[1]
    assert "2026-02-02 10:40:00 UTC" in out and "inferred" in out and "(predictive)" in out
    rows = {line.split()[0]: line for line in out.splitlines() if line[:2] in ("a ", "b ", "c ")}
    assert set(rows) == {"a", "b", "c"} and out.split("-> ")[1].split()[0] == "a"
    p_slow = {name: float(row.split()[3]) for name, row in rows.items()}
    pace_ms = {
        name: float(row.split(" ms per token now")[0].split()[-1]) for name, row in rows.items()
    }
    # b has been slow for half an hour
    assert p_slow["a"] < 0.2 < 0.8 < p_slow["b"] and pace_ms["b"] > 5 * pace_ms["a"]


def test_decide_is_the_answer_of_the_engine_that_replays_the_log(model, log, capsys):
    "Another way to the same engine: every request of the last two hours by hand, then its rank."
    from arcpoint_ce import ContextEngine, RouterConfig
    from arcpoint_ce.engine.replay import Replay, logged, warm
    from arcpoint_ce.forecast.latency import load
    from arcpoint_ce.routing.records import Request
    from arcpoint_ce.telemetry.source import load_steps

    folder, _ = model
    code, out, _ = said(capsys, "decide", log, "--model-dir", folder, "--slo-ms", "300")
    source = load_steps(str(log))
    now = float(source.steps["start_s"].max() + 60)
    engine = ContextEngine(
        cli._fleet_of(source, None),
        forecaster=load(folder),
        slo_ms=300.0,
        router=RouterConfig(step_s=60),
    )
    begin = now - 120 * 60
    warm(engine, source.steps[(source.steps["start_s"] < begin)])
    play = Replay(engine)
    for r in logged(source.loaded.df()):
        if r.at_s >= begin:
            play.until(r.at_s)
            play.arrive(r)
    play.until(now)
    engine.tick(now)
    ranking = engine.rank(Request(slo_ms=300.0), now)
    printed = [line.split()[:2] for line in out.splitlines() if line[:2] in ("a ", "b ", "c ")]
    assert code == 0 and [c.backend for c in ranking] == [name for name, _ in printed]
    assert all(abs(c.score / float(score) - 1) < 1e-3 for c, (_, score) in zip(ranking, printed))


@pytest.mark.parametrize("forecaster", ["auto", "none", "room", "latency", "both"])
def test_decide_with_each_forecaster(log, capsys, forecaster):
    code, out, err = said(capsys, "decide", log, "--forecaster", forecaster, "--slo-ms", "300")
    assert code == 0 and out.split("-> ")[1].split()[0] == "a", err
    assert (f"forecaster {forecaster}: " in err) == (forecaster != "none")
    assert forecaster != "none" or "(reactive)" in out


def test_decide_respects_the_fleet_file(model, log, tmp_path, capsys):
    (tmp_path / "fleet.toml").write_text(
        "\n".join(
            f'[[backend]]\nname = "{n}"\ncapacity = 4\nmodels = ["{m}"]\n'
            for n, m in (("a", "large"), ("c", "small"))
        )
    )
    code, out, _ = said(
        capsys,
        "decide",
        log,
        "--model-dir",
        model[0],
        "--fleet",
        tmp_path / "fleet.toml",
        "--model",
        "small",
    )
    assert code == 0 and "-> c " in out and "not a: does not serve model small" in out
    code, _, err = said(
        capsys,
        "decide",
        log,
        "--model-dir",
        model[0],
        "--fleet",
        tmp_path / "fleet.toml",
        "--model",
        "smal",
    )
    assert code == 2 and "did you mean 'small'" in err
    code, _, err = said(
        capsys,
        "decide",
        log,
        "--model-dir",
        model[0],
        "--fleet",
        tmp_path / "fleet.toml",
        "--model",
        "small",
        "--policy",
        "random",
        "--seed",
        "1",
    )
    assert code == 0


def test_a_series_without_single_requests_is_enough(tmp_path, capsys):
    t = np.arange(400) * 60 + 1_770_000_000
    rng = np.random.default_rng(0)
    series = [
        pd.DataFrame(
            dict(ts=t, backend=b, requests=30, latency_ms=ms * rng.lognormal(0, 0.05, len(t)))
        )
        for b, ms in (("a", 80.0), ("b", 400.0))
    ]
    pd.concat(series).to_csv(tmp_path / "series.csv", index=False)
    code, out, err = said(
        capsys, "decide", tmp_path / "series.csv", "--forecaster", "latency", "--slo-ms", "200"
    )
    assert code == 0 and "(predictive)" in out and "a forest of" in err, err
    p_slow = {
        line.split()[0]: float(line.split()[3])
        for line in out.splitlines()
        if line[:2] in ("a ", "b ")
    }
    assert p_slow["a"] < 0.1 < 0.9 < p_slow["b"]


def test_serve_forgets_what_is_older_than_asked(tmp_path, monkeypatch, capsys):
    import uvicorn

    from arcpoint_ce.engine.engine import ContextEngine
    from arcpoint_ce.engine.store import FeedbackStore
    from arcpoint_ce.routing.records import Backend

    monkeypatch.setattr(uvicorn, "run", lambda *how, **more: None)
    path = tmp_path / "s.sqlite"

    def held(*options):
        store = ContextEngine([Backend("a")], path).store
        for k in range(100):
            store.put("events", at_s=1.7e9 + 3_600.0 * k, what="note")
        store.flush()
        store.close()
        code, out, err = said(capsys, "serve", "--store", path, *options)
        store = FeedbackStore(path)
        n = len(store.rows("events", what="note"))
        store.retain(1e12)
        store.close()
        return code, n, err

    assert held()[:2] == (0, 100)  # nothing is forgotten that nobody asked for
    for options, least in ((("--keep", "12h"), 12), (("--keep", "2d"), 48), (("--keep", "1"), 24)):
        code, n, err = held(*options)
        assert code == 0 and least <= n <= least + 7 and "were forgotten" in err
    for wrong in ("soon", "-3d", "0", "inf", "nan", "", "7x"):
        code, _, err = said(capsys, "serve", "--store", path, f"--keep={wrong}")
        assert code == 2 and "--keep must be a span of time" in err
    assert "--keep" in said(capsys, "serve", "--help")[1]


def test_decide_refuses_a_model_of_other_steps(model, tmp_path, capsys):
    t = np.arange(200) * 300 + 1_770_000_000
    pd.DataFrame(dict(ts=t, backend="a", requests=30, latency_ms=80.0 + t % 7)).to_csv(
        tmp_path / "series.csv", index=False
    )
    code, _, err = said(capsys, "decide", tmp_path / "series.csv", "--model-dir", model[0])
    assert code == 2 and "steps of 60 s" in err and "300 s" in err


names = st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True)
texts = st.text(min_size=1).filter(lambda v: not v.startswith("--") and v != "-p")


@given(st.lists(st.tuples(names, texts), max_size=4))
def test_pairs_come_back_as_they_were_given(pairs):
    words = cli._join_pairs(["routing", *(w for n, v in pairs for w in ("-p", n, v)), "--out", "x"])
    assert words[0] == "routing" and words[-2:] == ["--out", "x"]
    assert [cli._split_pair(w) for w in words[2:-2:2]] == pairs
    assert cli._join_pairs(words) == words
