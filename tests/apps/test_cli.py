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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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
        (["decide", "sample", "--slo-ttft-ms", "0"], "--slo-ttft-ms"),
        (["replay", "sample", "--slo-ttft-ms", "nan"], "--slo-ttft-ms"),
        (["simulate", "--scenario", "calm", "--slo-ttft-ms", "-1"], "--slo-ttft-ms"),
        (["simulate", "--scenario", "calm", "--slo-ms", "0"], "--slo-ms"),
        (["simulate", "--scenario", "calm", "--slo-tok-ms", "20"], "give both"),
        (["serve", "--store", "s.sqlite", "--slo-ttft-ms", "inf"], "--slo-ttft-ms"),
        (["ask", "How is it?", "--store", "s.sqlite", "--slo-ms", "0"], "--slo-ms"),
        (["ask", "How is it?", "--store", "s.sqlite", "--slo-ttft-ms", "0"], "--slo-ttft-ms"),
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
        (["train", "exercise", "--horizon-min", "2.5"], "not a multiple of the step"),
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
@pytest.mark.parametrize("forecaster", ["auto", "none", "room", "latency", "both"])
def test_decide_with_each_forecaster(log, capsys, forecaster):
    code, out, err = said(capsys, "decide", log, "--forecaster", forecaster, "--slo-ms", "300")
    assert code == 0 and out.split("-> ")[1].split()[0] == "a", err
    assert (f"forecaster {forecaster}: " in err) == (forecaster != "none")
    assert forecaster != "none" or "(reactive)" in out


@pytest.mark.slow
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
    from arcpoint_ce.context import guard
    from arcpoint_ce.engine.engine import ContextEngine
    from arcpoint_ce.engine.store import FeedbackStore
    from arcpoint_ce.routing.records import Backend

    monkeypatch.setattr(guard, "run_server", lambda *how, **more: None)
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


def answers(path, usual_ms: float, n: int = 3000, **columns):
    """A healthy log of three backends over two hours, as answers of a language model come."""
    rng = np.random.default_rng(1)
    rows = dict(
        ts=1_770_000_000 + np.sort(rng.uniform(0, 7200, n)),
        backend=rng.choice(["b0", "b1", "b2"], n),
        latency_ms=usual_ms * rng.lognormal(0, 0.3, n),
    )
    frame = pd.DataFrame(rows | columns)
    frame.to_csv(path, index=False)
    return frame


def breakers(out: str) -> dict[str, str]:
    "What `decide` says of each backend's breaker."
    lines = out.splitlines()
    head = next(k for k, line in enumerate(lines) if line.startswith("backend "))
    at = lines[head].index("breaker")
    rows = [line for line in lines[head + 2 :] if line.strip()]
    return {line.split()[0]: line[at:].split()[0] for line in rows}


P2C = ("--policy", "p2c")  # a rule whose breaker hears of late answers
CLOSED = dict(b0="closed", b1="closed", b2="closed")
CHAT = "[tiers.chat]\nslo_ms = 30000\n" + "".join(
    f'[[backend]]\nname = "b{k}"\ncapacity = 8\n' for k in range(3)
)


@pytest.mark.parametrize("usual_ms", [40.0, 3000.0, 45_000.0])
def test_where_nobody_names_a_limit_the_log_does_and_it_is_said(tmp_path, capsys, usual_ms):
    answers(tmp_path / "llm.csv", usual_ms)
    code, out, err = said(capsys, "decide", tmp_path / "llm.csv", "--forecaster", "none", *P2C)
    (line,) = [x for x in err.splitlines() if "--slo-ms" in x]
    limit_ms = float(line.split(": ")[1].split()[0])
    assert code == 0 and 2.7 * usual_ms < limit_ms < 3.3 * usual_ms and "usual" in line
    assert breakers(out) == CLOSED and "(panic)" not in out


@pytest.mark.slow
@pytest.mark.parametrize("how", [["--slo-ms", "30000"], ["--tier", "chat"], []])
@pytest.mark.parametrize("rule", [("--forecaster", "none", *P2C), ()])
def test_slow_answers_within_their_limit_are_no_trouble(tmp_path, capsys, how, rule):
    answers(tmp_path / "llm.csv", 3000.0)
    (tmp_path / "chat.toml").write_text(CHAT)
    fleet = ["--fleet", tmp_path / "chat.toml"] if "--tier" in how else []
    code, out, err = said(capsys, "decide", tmp_path / "llm.csv", *how, *fleet, *rule)
    assert code == 0 and breakers(out) == CLOSED and "(panic)" not in out
    assert ("no --slo-ms is given" in err) == ("--slo-ms" not in how)


@pytest.mark.slow
def test_a_limit_that_is_asked_for_counts(tmp_path, capsys):
    answers(tmp_path / "llm.csv", 3000.0)
    args = ("decide", tmp_path / "llm.csv", "--forecaster", "none", "--slo-ms", "300", *P2C)
    code, out, err = said(capsys, *args)
    assert code == 0 and breakers(out) != CLOSED and "no --slo-ms" not in err
    # the same answers with a limit that grows with them
    answers(tmp_path / "llm.csv", 3000.0, tokens_in=100, tokens_out=300)
    code, out, _ = said(capsys, *args, "--slo-tok-ms", "40")
    assert code == 0 and breakers(out) == CLOSED


@pytest.mark.slow
def test_no_limit_is_inferred_where_the_fleet_has_them_all(tmp_path, capsys):
    answers(tmp_path / "llm.csv", 3000.0)
    text = CHAT.replace("capacity = 8", "capacity = 8\nslo_ms = 20000")
    (tmp_path / "own.toml").write_text(text)
    fleet = ("--fleet", tmp_path / "own.toml", "--forecaster", "none", *P2C)
    code, out, err = said(capsys, "decide", tmp_path / "llm.csv", *fleet)
    assert code == 0 and breakers(out) == CLOSED and "no --slo-ms" not in err
    answers(tmp_path / "llm.csv", 3000.0, tier="chat")
    (tmp_path / "chat.toml").write_text(CHAT)
    fleet = ("--fleet", tmp_path / "chat.toml", "--forecaster", "none", *P2C)
    code, out, err = said(capsys, "decide", tmp_path / "llm.csv", *fleet)
    assert code == 0 and breakers(out) == CLOSED and "no --slo-ms" not in err


def test_too_few_answers_for_a_limit_are_said(tmp_path, capsys):
    answers(tmp_path / "few.csv", 100.0, n=20)
    code, out, err = said(capsys, "decide", tmp_path / "few.csv", "--forecaster", "none")
    assert code == 0 and "300 ms are taken: 20 answers" in err and "-> b" in out


@pytest.mark.slow
def test_mistakes_of_callers_at_the_end_shut_nobody(tmp_path, capsys):
    frame = answers(tmp_path / "log.csv", 150.0, ok=True, error="")
    last = frame[frame.backend == "b0"].index[-8:]
    frame.loc[last, "ok"] = False
    frame.loc[last, "error"] = 4 * ["BadRequestError", "client_closed_request"]
    frame.to_csv(tmp_path / "log.csv", index=False)
    code, out, err = said(capsys, "decide", tmp_path / "log.csv", "--slo-ms", "300", *P2C)
    assert code == 0 and breakers(out) == CLOSED, err


@pytest.mark.slow
def test_mistakes_of_callers_told_by_status_alone_shut_nobody(tmp_path, capsys):
    frame = answers(tmp_path / "log.csv", 150.0, status=200)
    last = frame[frame.backend == "b0"].index[-8:]
    frame.loc[last, "status"] = [400, 401, 413, 422, 499, 499, 404, 403]
    frame.to_csv(tmp_path / "log.csv", index=False)
    args = ("decide", tmp_path / "log.csv", "--slo-ms", "300", "--columns", "status:status", *P2C)
    code, out, err = said(capsys, *args)
    assert code == 0 and breakers(out) == CLOSED, err


def test_a_series_of_slow_answers_is_no_trouble(tmp_path, capsys):
    t = np.arange(200) * 60 + 1_770_000_000
    rows = [dict(ts=t, backend=b, requests=30, latency_ms=3000.0 + t % 7) for b in ("a", "b")]
    pd.concat([pd.DataFrame(r) for r in rows]).to_csv(tmp_path / "series.csv", index=False)
    code, out, err = said(capsys, "decide", tmp_path / "series.csv", "--forecaster", "none", *P2C)
    assert code == 0 and "no --slo-ms is given: 9000 ms" in err
    assert breakers(out) == dict(a="closed", b="closed")


@pytest.mark.slow
def test_a_late_first_token_is_late(tmp_path, capsys):
    """In the last hour every stream begins late, and ends as soon as before."""
    frame = answers(tmp_path / "log.csv", 2000.0, backend="b0", tokens_in=100, tokens_out=100)
    slow = frame.ts > frame.ts.max() - 3600
    frame["ttft_ms"] = np.where(slow, 0.9, 0.1) * frame.latency_ms
    frame.to_csv(tmp_path / "log.csv", index=False)
    base = ("decide", tmp_path / "log.csv", "--slo-ms", "20000", "--forecaster", "none")
    base = (*base, "--policy", "p2c")  # its breaker hears of late answers
    code, out, _ = said(capsys, *base)
    assert code == 0 and breakers(out) == dict(b0="closed")
    code, out, _ = said(capsys, *base, "--slo-ttft-ms", "800")
    assert code == 0 and breakers(out)["b0"] != "closed"


@pytest.mark.slow
def test_replay_names_its_limit(tmp_path, capsys):
    answers(tmp_path / "llm.csv", 3000.0)
    args = ("replay", tmp_path / "llm.csv", "--forecaster", "none")
    code, out, err = said(capsys, *args)
    assert (
        code == 0
        and "no --slo-ms is given: 9" in err
        and ["refused", "0"] in [x.split() for x in out.splitlines()]
    )
    code, _, err = said(capsys, *args, "--slo-ms", "30000", "--slo-ttft-ms", "900")
    assert code == 0 and "no --slo-ms" not in err


def test_simulate_judges_by_the_limit_that_is_asked_for(capsys):
    base = ("simulate", "--scenario", "calm", "--requests", "400", "--forecaster", "none")

    def in_slo(*more):
        code, out, err = said(capsys, *base, *more)
        assert code == 0, err
        (row,) = [line for line in out.splitlines() if line.startswith("ours (")]
        return float(row.partition(")")[2].split()[0].rstrip("%"))

    assert in_slo("--slo-ms", "1") == 0.0
    assert in_slo("--slo-ms", "1", "--slo-tok-ms", "10000", "--slo-ttft-ms", "90000") == 100.0


def test_ask_judges_by_the_limit_that_is_asked_for(tmp_path, capsys):
    from arcpoint_ce import Backend, ContextEngine, Outcome, Request

    engine = ContextEngine([Backend("a"), Backend("b")], tmp_path / "s.sqlite", forecaster="none")
    for k in range(200):
        d = engine.decide(Request(), 1000.0 + k)
        engine.observe(Outcome(d.backend, 1000.0 + k, 500.0, True, None, d.id))
        engine.step(1000.0 + k)
    engine.close(1200.0)
    base = ("ask", "Which backend should serve a request?", "--store", tmp_path / "s.sqlite")
    code, out, _ = said(capsys, *base)
    assert code == 0 and "within 300 ms" in out
    code, out, _ = said(capsys, *base, "--slo-ms", "800", "--slo-ttft-ms", "100")
    assert code == 0 and "within 800 ms" in out
    code, out, _ = said(capsys, *base, "--slo-ms", "800", "--slo-tok-ms", "1")
    assert code == 0 and "within 1000 ms" in out  # an answer of 200 tokens is supposed


def test_limits_can_be_named_wherever_requests_are_judged(capsys):
    for command in ("decide", "replay", "simulate", "ask", "serve"):
        code, out, _ = said(capsys, command, "--help")
        text = " ".join(out.split())
        assert code == 0 and "time to first token" in text and "longer is late" in text, command
        for option in ("--slo-ms", "--slo-tok-ms", "--slo-ttft-ms"):
            assert option in out, (command, option)


def test_decide_refuses_a_model_of_other_steps(model, tmp_path, capsys):
    t = np.arange(200) * 300 + 1_770_000_000
    pd.DataFrame(dict(ts=t, backend="a", requests=30, latency_ms=80.0 + t % 7)).to_csv(
        tmp_path / "series.csv", index=False
    )
    code, _, err = said(capsys, "decide", tmp_path / "series.csv", "--model-dir", model[0])
    assert code == 2 and "steps of 60 s" in err and "300 s" in err


names = st.from_regex(r"[a-z_][a-z0-9_]*", fullmatch=True)
texts = st.text(min_size=1).filter(lambda v: not v.startswith("--") and v != "-p")


@pytest.mark.slow
@given(st.lists(st.tuples(names, texts), max_size=4))
def test_pairs_come_back_as_they_were_given(pairs):
    words = cli._join_pairs(["routing", *(w for n, v in pairs for w in ("-p", n, v)), "--out", "x"])
    assert words[0] == "routing" and words[-2:] == ["--out", "x"]
    assert [cli._split_pair(w) for w in words[2:-2:2]] == pairs
    assert cli._join_pairs(words) == words
