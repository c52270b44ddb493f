"`arcpoint bench`: what an interrupted run keeps, which parts run, and that nothing outlives it."

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from arcpoint_ce.apps import bench as B
from arcpoint_ce.apps import cli

PATIENCE_S = 120.0


@pytest.fixture
def toys(monkeypatch):
    "Parts that take no time; the names of those that ran."
    ran = []

    def part(name, figures):
        def run():
            ran.append(name)
            return figures

        return run

    def stop():
        ran.append("stop")
        raise KeyboardInterrupt

    parts = {
        "import": part("import", {"import_ms": np.float64(31.25), "detail": {"n": 3}}),
        "tick": part("tick", {"tick_64_p50_ms": float("inf"), "schema_version": 1}),
        "stop": stop,
        "dashboard": part("dashboard", {"dashboard_refresh_s": 0.1}),
    }
    monkeypatch.setattr(B, "_full_parts", lambda: parts)
    return ran


def written(path) -> dict:
    return json.loads(Path(path).read_text())


def test_an_interrupted_run_keeps_what_it_has(toys, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        B.run_bench(progress=False, out=tmp_path / "b.json")
    assert toys == ["import", "tick", "stop"]
    got = written(tmp_path / "b.json")
    assert got["parts"] == ["import", "tick"] and got["import_ms"] == 31.25
    assert list(got["seconds_by_part"]) == got["parts"]
    assert got["schema_version"] == 1 and got["detail"] == {"n": 3}
    assert got["tick_64_p50_ms"] is None and "tick_64_p50_ms" in got["not_finite"]
    assert [p.name for p in tmp_path.iterdir()] == ["b.json"]


def test_the_file_is_written_after_every_part(toys, tmp_path, monkeypatch):
    seen, parts = [], B._full_parts()
    parts["stop"] = lambda: seen.append(written(tmp_path / "b.json")["parts"]) or {}
    B.run_bench(progress=False, out=tmp_path / "b.json")
    assert seen == [["import", "tick"]]
    assert written(tmp_path / "b.json")["parts"] == ["import", "tick", "stop"]


def test_the_dashboard_runs_only_when_it_is_named(toys):
    B._full_parts().pop("stop")
    assert B.run_bench(progress=False)["parts"] == ["import", "tick"]
    assert B.run_bench(progress=False, only=["dashboard"])["parts"] == ["dashboard"]
    assert toys == ["import", "tick", "dashboard"]
    assert "dashboard" in B._quick_parts()


def test_parts_run_in_their_own_order_and_a_wrong_name_lists_them(toys):
    assert B.run_bench(progress=False, only=["tick", "import"])["parts"] == ["import", "tick"]
    toys.clear()
    with pytest.raises(ValueError, match="unknown part 'tock'.*Known: import, tick, stop, dash"):
        B.run_bench(progress=False, only=["import", "tock"])
    assert toys == []


def test_a_part_from_the_shell(tmp_path, capsys):
    path = tmp_path / "b.json"
    assert cli.run(["bench", "--only", "import", "--json", str(path)]) == 0
    out = capsys.readouterr().out
    got = written(path)
    assert got["parts"] == ["import"] and got["import_ms"] > 0 and "import_ms" in out
    assert "decide_8_p50_us" not in got
    assert cli.run(["bench", "--only", "no such part", "--json", str(path)]) == 2
    assert "Known: import, log, decide with 8 backends, " in capsys.readouterr().err


@pytest.fixture
def short():
    "An empty folder with a short path: Chromium's sockets must fit into 108 characters."
    with tempfile.TemporaryDirectory(prefix="b") as folder:
        yield Path(folder)


def started(script: str, folder: Path) -> psutil.Process:
    "A bench in a process of its own, with temporary files in this folder."
    env = dict(os.environ, TMPDIR=str(folder))
    # a shell that starts the tests in the background has Ctrl-C ignored, and children inherit that
    heard = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    said = tempfile.TemporaryFile()  # a pipe that nobody reads would fill up
    # a session of its own: a signal reaches the bench alone, not its children
    bench = subprocess.Popen(
        [sys.executable, "-c", heard + script],
        env=env,
        stdout=subprocess.DEVNULL,
        stderr=said,
        start_new_session=True,
    )
    process = psutil.Process(bench.pid)
    process.bench, process.said = bench, said
    return process


def children_of(process: psutil.Process, word: str) -> list[psutil.Process]:
    "All that it has started, once the command line of one of them contains the word."
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        if process.bench.poll() is not None:
            process.said.seek(0)
            pytest.fail(f"the bench ended early: {process.said.read().decode()[-500:]}")
        found = process.children(recursive=True)
        for child in found:
            try:
                if any(word in x for x in child.cmdline()):
                    return found
            except psutil.Error:
                continue
        time.sleep(0.05)
    pytest.fail(f"no child with {word!r} within {PATIENCE_S:g} s")


def all_end(processes: list[psutil.Process]) -> bool:
    "Whether all end in time; the rest is killed."
    alive = psutil.wait_procs(processes, timeout=PATIENCE_S)[1]
    for process in alive:
        process.kill()
    return not alive


def bench_of(part: str, quick: bool = True) -> str:
    how = f"quick={quick}, progress=False, only=[{part!r}]"
    return f"from arcpoint_ce.apps.bench import run_bench; run_bench({how})"


LONG_SERVICE = """
from pathlib import Path
import tempfile
from arcpoint_ce.apps import bench
long = dict(records=2_000, calls=5, seconds=600.0, clients=2)
bench._quick_parts = lambda: {"service": lambda: bench._bench_served(**long)}
bench.run_bench(quick=True, progress=False)
"""


GROWTH = bench_of("memory of observe", quick=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    "script, word, number",
    [
        (GROWTH, "observe_growth", signal.SIGTERM),
        (LONG_SERVICE, "serve", signal.SIGTERM),
        (LONG_SERVICE, "serve", signal.SIGINT),
    ],
    ids=["script", "server", "server, Ctrl-C"],
)
def test_children_end_with_an_interrupted_bench(tmp_path, script, word, number):
    bench = started(script, tmp_path)
    children = children_of(bench, word)
    if word == "serve":
        time.sleep(3.0)  # some runs are hit while the server comes up, some while it answers
    bench.send_signal(number)
    assert all_end([bench, *children])
    assert bench.wait() in (143, -signal.SIGINT)
    assert list(tmp_path.iterdir()) == []  # stores and logs are gone as well


@pytest.mark.slow
def test_a_server_ends_when_the_bench_is_killed(tmp_path):
    bench = started(LONG_SERVICE, tmp_path)
    children = children_of(bench, "serve")
    bench.kill()
    assert all_end([bench, *children])


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="needs chromium")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_browser_and_dashboard_end_with_an_interrupted_bench(short, number):
    pytest.importorskip("playwright")
    bench = started(bench_of("dashboard"), short)
    children_of(bench, "--type=renderer")
    time.sleep(5.0)
    children = bench.children(recursive=True)
    assert any("dashboard" in x for c in children for x in c.cmdline())
    bench.send_signal(number)
    assert all_end([bench, *children])
    assert list(short.iterdir()) == []
