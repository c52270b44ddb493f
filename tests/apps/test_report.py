"Reports: what is kept, what is refused, and how failures look."

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from math import isfinite
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from report_helpers import METRICS, PARAMETERS, leaving, template

from arcpoint_ce.apps import report as R
from arcpoint_ce.apps.report import ReportError, ReportUsageError, run_report

FILES = ["metrics.json", "params.json", "report.html", "report.ipynb"]


def FIXED():
    return datetime(2026, 3, 4, 5, 6, 7, tzinfo=UTC)


FIGURE = (
    "import matplotlib.pyplot as plt, pandas as pd\n"
    "plt.plot([1, 2]); plt.show()\n"
    "pd.DataFrame({'a': [1, 2]})"
)


def record(folder: Path) -> dict:
    return json.loads((folder / "params.json").read_text(encoding="utf-8"))


def gone(pid: int) -> bool:
    "Whether a process has ended (or is a zombie)."
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except FileNotFoundError:
        return True


def wait_for(what, seconds: float = 20.0):
    until = time.monotonic() + seconds
    while not what() and time.monotonic() < until:
        time.sleep(0.1)
    assert what()


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    "One run that everything can be read from."
    folder = tmp_path_factory.mktemp("done")
    path = template(
        folder / "small.ipynb",
        FIGURE,
        "import sys\nexe = sys.executable",
        METRICS.replace("'word': word", "'word': word, 'exe': exe, 'bad': float('inf')"),
    )
    return run_report(path, out=folder / "a {b} run", progress=False, n=4, scale=2)


def test_files_and_metrics(done):
    assert sorted(p.name for p in done.folder.iterdir()) == FILES
    assert (done.status, done.failure) == ("ok", None)
    m = json.loads((done.folder / "metrics.json").read_text())
    assert m == done.metrics and m["total"] == 8.0 and m["schema_version"] == 1
    assert m["bad"] is None and m["not_finite"] == {"bad": "inf"}
    assert "total" in done._repr_html_()


def test_record(done):
    r = record(done.folder)
    assert r["parameters"] == dict(
        n=4, scale=2.0, word="none", quick=False, out_dir=str(done.folder)
    )
    assert r["status"] == "ok" and r["failure"] is None and r["data_sha256"] == "ab" * 32
    assert r["started_utc"] <= r["ended_utc"] and r["started_utc"].endswith("+00:00")
    head = subprocess.run(
        ["git", "-C", str(Path(R.__file__).parents[1]), "rev-parse", "HEAD"],
        capture_output=True,
        text=True,
    )
    assert r["git_sha"] == (head.stdout.strip() or None)
    from arcpoint_ce import __version__

    assert r["package_version"] == __version__


def test_runs_on_this_interpreter(done):
    assert done.metrics["exe"] == sys.executable


def test_page_is_self_contained(done):
    text = done.html.read_text(encoding="utf-8")
    assert leaving(done.html) == []
    assert "<title>Small numbers &lt;&amp;&gt;</title>" in text
    assert "data:image/png;base64" in text and "<td>2</td>" in text
    assert text.count('<details class="code">') == 2
    told, code = (text.index(f"<summary>{word}</summary>") for word in ("Raw metrics", "Code"))
    assert text.index("<td>2</td>") < told < code, "folded, at the end"
    assert "write_metrics" in text[code:] and "write_metrics" not in text[:told]


def test_reader_of_pages_sees_links(tmp_path):
    page = tmp_path / "p.html"
    page.write_text(
        "<a href='#x'></a><a href='http://x'></a><script "
        "src=''></script><style>a{b:url(http://y)}</style><script>import('http://z')</script>"
    )
    assert [v for _, _, v in leaving(page)] == ["http://x", "", "http://y", "import('http://z')"]


@pytest.mark.parametrize(
    "params, says",
    [
        (dict(m=1), "unknown parameter 'm'"),
        (dict(scales=1.0), "did you mean 'scale"),
        (dict(n="4"), "'n' must be int"),
        (dict(n=True), "'n' must be int"),
        (dict(scale="2"), "'scale' must be float"),
        (dict(quick=1), "'quick' must be bool"),
        (dict(word=5), "'word' must be str"),
        (dict(out_dir="x"), "out="),
        (dict(timeout_s=-1), "timeout_s"),
        (dict(timeout_s=float("nan")), "timeout_s"),
    ],
)
def test_wrong_parameters_are_refused_before_anything_happens(tmp_path, monkeypatch, params, says):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReportUsageError) as e:
        run_report(template(tmp_path / "small.ipynb"), progress=False, **params)
    assert says in str(e.value) and [p.name for p in tmp_path.iterdir()] == ["small.ipynb"]


def test_templates_that_cannot_be_told_anything(tmp_path):
    with pytest.raises(ReportUsageError, match="tagged `parameters`"):
        run_report(template(tmp_path / "a.ipynb", tag=False))
    with pytest.raises(ReportUsageError, match="cannot read parameter b"):
        run_report(
            template(tmp_path / "b.ipynb", parameters="a: int = 1\nb: float = 2.  # 0 = off")
        )
    with pytest.raises(ReportUsageError, match="cannot read parameter c"):
        run_report(template(tmp_path / "c.ipynb", parameters="c: float | None = 2."))
    with pytest.raises(ReportUsageError, match="no such template"):
        run_report(tmp_path / "none.ipynb")
    with pytest.raises(ReportUsageError, match="unknown report"):
        run_report("rooting")


@pytest.mark.slow
def test_out_must_be_empty_or_new(tmp_path):
    path, full = template(tmp_path / "small.ipynb"), tmp_path / "full"
    full.mkdir()
    (full / "mine.txt").write_text("mine")
    for out in (full, full / "mine.txt"):
        with pytest.raises(ReportUsageError, match="not empty"):
            run_report(path, out=out, progress=False)
    assert [p.name for p in full.iterdir()] == ["mine.txt"] and (
        full / "mine.txt"
    ).read_text() == "mine"
    empty = tmp_path / "empty"
    empty.mkdir()
    assert run_report(path, out=empty, progress=False).folder == empty


@pytest.mark.slow
def test_never_overwritten_and_latest(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = template(tmp_path / "small.ipynb")
    runs = [run_report(path, progress=False, clock=FIXED, n=n) for n in (1, 1, 2)]
    names = [r.folder.name for r in runs]
    assert (
        len(set(names)) == 3
        and names[1] == names[0] + "_2"
        and all(n.startswith("20260304T050607Z_") for n in names)
    )
    assert names[2].split("_")[1] != names[0].split("_")[1]
    assert [json.loads((r.folder / "metrics.json").read_text())["total"] for r in runs] == [
        1.0,
        1.0,
        2.0,
    ]
    home = tmp_path / "reports" / "out" / "small"
    assert (home / "latest").is_symlink() and (home / "latest").resolve() == runs[2].folder
    assert sorted(p.name for p in home.iterdir()) == sorted([*names, "latest"])


def test_latest_is_a_text_file_where_links_fail(tmp_path, monkeypatch):
    def no_links(*a, **k):
        raise OSError("no links here")

    monkeypatch.setattr(Path, "symlink_to", no_links)
    for n in ("a", "b"):
        (tmp_path / n).mkdir()
        R._point_latest(tmp_path / n)
    assert (tmp_path / "latest").read_text() == "b\n"


@pytest.fixture(scope="module")
def broken(tmp_path_factory):
    folder = tmp_path_factory.mktemp("broken")
    path = template(folder / "broken.ipynb", "ratio = n/0", "open('never', 'w')")
    with pytest.raises(ReportError) as e:
        run_report(path, out=folder / "out", progress=False)
    return e.value


def test_a_failed_cell_is_a_failed_run(broken):
    run, failure = broken.run, record(broken.run.folder)["failure"]
    assert run.status == record(run.folder)["status"] == "failed" and not Path("never").exists()
    assert (
        failure["cell"] == 4
        and failure["source"] == "ratio = n/0"
        and failure["error"] == "ZeroDivisionError: division by zero"
    )
    assert "ZeroDivisionError" in failure["lines"][-1] and "\x1b" not in "".join(failure["lines"])
    assert "ratio = n/0" in str(broken) and str(run.notebook) in str(broken)
    assert run.metrics == {} and not (run.folder / "metrics.json").exists()


def test_a_failed_run_keeps_notebook_and_page(broken):
    nb = nbformat.read(broken.run.notebook, 4)
    assert any(
        o.output_type == "error" for c in nb.cells if c.cell_type == "code" for o in c.outputs
    )
    assert (
        "ZeroDivisionError" in broken.run.html.read_text(encoding="utf-8")
        and leaving(broken.run.html) == []
    )


@pytest.mark.slow
def test_numbers_written_before_a_failure_stay(tmp_path):
    run = run_report(
        template(tmp_path / "x.ipynb", METRICS, "raise SystemExit(3)"),
        out=tmp_path / "out",
        progress=False,
        check=False,
    )
    assert run.status == "failed" and run.metrics["total"] == 3.0


@pytest.fixture(scope="module")
def late(tmp_path_factory):
    folder = tmp_path_factory.mktemp("late")
    path = template(
        folder / "late.ipynb",
        "import os, time\nopen(out_dir + '/pid', 'w').write(str(os.getpid()))",
        "time.sleep(600)",
        "print('never')",
    )
    return run_report(path, out=folder / "out", progress=False, check=False, timeout_s=3)


def test_a_time_out_is_a_failed_run(late):
    failure = record(late.folder)["failure"]
    assert (
        late.status == "failed"
        and failure["source"] == "time.sleep(600)"
        and "longer than 3 s" in failure["error"]
    )


def test_a_time_out_shows_in_the_notebook(late):
    states = {
        c.source: c.metadata["papermill"]["status"] for c in nbformat.read(late.notebook, 4).cells
    }
    assert states["time.sleep(600)"] == "failed" and states["print('never')"] == "pending"
    assert "CellTimeoutError" in late.html.read_text(encoding="utf-8")


def test_a_time_out_ends_the_kernel(late):
    wait_for(lambda: gone(int((late.folder / "pid").read_text())))


@pytest.mark.slow
def test_a_kernel_that_dies_is_a_failed_run(tmp_path):
    run = run_report(
        template(tmp_path / "dies.ipynb", "import os\nos._exit(3)"),
        out=tmp_path / "out",
        progress=False,
        check=False,
    )
    assert (
        run.status == "failed"
        and record(run.folder)["failure"]["cell"] == 4
        and run.failure.startswith("DeadKernelError")
    )


@pytest.mark.slow
def test_the_time_limit_is_one_for_the_whole_run(tmp_path):
    path = template(tmp_path / "slow.ipynb", *["import time\ntime.sleep(1.2)"] * 5)
    assert (
        run_report(path, out=tmp_path / "out", progress=False, check=False, timeout_s=2).status
        == "failed"
    )


def test_an_interrupt_is_recorded_and_passed_on(tmp_path, monkeypatch):
    def interrupt(*a):
        raise KeyboardInterrupt

    monkeypatch.setattr(R, "_execute", interrupt)
    with pytest.raises(KeyboardInterrupt):
        run_report(template(tmp_path / "x.ipynb"), out=tmp_path / "out", progress=False)
    assert (
        record(tmp_path / "out")["status"] == "failed"
        and record(tmp_path / "out")["failure"]["error"] == "interrupted"
    )


@pytest.mark.slow
def test_a_killed_run_does_not_look_finished(tmp_path):
    path = template(
        tmp_path / "x.ipynb",
        "import os, time\nopen(out_dir + '/pid', 'w').write(str(os.getpid()))\ntime.sleep(60)",
    )
    folder = str(tmp_path / "out")
    code = (
        "from arcpoint_ce import run_report\n"
        f"run_report({str(path)!r}, out={folder!r}, progress=False)"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(
            lambda: (tmp_path / "out" / "pid").exists() and (tmp_path / "out" / "pid").read_text()
        )
    finally:
        child.kill()
        child.wait()
    assert record(tmp_path / "out")["status"] == "running"
    pid = int((tmp_path / "out" / "pid").read_text())
    try:
        wait_for(lambda: gone(pid))
    except AssertionError:
        os.kill(pid, signal.SIGKILL)
        raise


@pytest.mark.slow
def test_a_broken_kernelspec_does_no_harm(tmp_path):
    spec = tmp_path / "jupyter" / "kernels" / "python3"
    spec.mkdir(parents=True)
    (spec / "kernel.json").write_text(
        json.dumps({"argv": ["/no/such/python"], "display_name": "broken", "language": "python"})
    )
    path, env = (
        template(tmp_path / "x.ipynb"),
        os.environ | {"JUPYTER_PATH": str(tmp_path / "jupyter")},
    )
    plain = subprocess.run(
        [sys.executable, "-m", "papermill", str(path), str(tmp_path / "o.ipynb")],
        env=env,
        capture_output=True,
        text=True,
    )
    assert plain.returncode != 0 and "/no/such/python" in plain.stderr
    folder = str(tmp_path / "out")
    code = (
        "from arcpoint_ce import run_report\n"
        f"print(run_report({str(path)!r}, out={folder!r}, progress=False).status)"
    )
    ours = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert ours.stdout.strip() == "ok", ours.stderr


def test_plain_papermill_runs_a_template(tmp_path):
    from papermill import execute_notebook

    nb = execute_notebook(
        str(template(tmp_path / "x.ipynb")),
        str(tmp_path / "o.ipynb"),
        dict(n=5),
        progress_bar=False,
        kernel_manager_class=R._own_kernel(),
    )
    assert '"total": 5.0' in nb.cells[-1].outputs[0].text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["o.ipynb", "x.ipynb"]


def test_progress_is_on_stderr(tmp_path, capfd):
    run_report(template(tmp_path / "x.ipynb"), out=tmp_path / "out")
    seen = capfd.readouterr()
    assert "report x" in seen.err and "100%" in seen.err and seen.out == ""


def test_shipped_templates_can_be_told_what_they_say():
    found = R.list_reports()
    assert {r.name for r in found} == set(R.templates()) and found
    for r in found:
        assert "out_dir" in R._read_parameters(R.templates()[r.name]), (
            f"{r.name} has no parameter out_dir"
        )
        for p in r.parameters.values():
            assert p.type in R._TYPES and type(p.default) is R._TYPES[p.type] and p.help, (
                r.name,
                p,
            )
    assert all(r.name in found._repr_html_() for r in found)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda x: st.lists(x, max_size=4) | st.dictionaries(st.text(max_size=5), x, max_size=4),
    max_leaves=15,
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(
    st.dictionaries(
        st.text(max_size=8).filter(lambda k: k not in ("schema_version", "not_finite")),
        values,
        max_size=5,
    )
)
def test_metrics_are_always_json(metrics):
    out = R.as_metrics(metrics)
    assert json.loads(json.dumps(out, allow_nan=False)) == out

    def count(x):
        if isinstance(x, dict):
            return sum(map(count, x.values()))
        if isinstance(x, list):
            return sum(map(count, x))
        return isinstance(x, float) and not isfinite(x)

    assert bool(count(metrics)) == ("not_finite" in out) and count(out) == 0


def test_metrics_take_numpy_and_refuse_objects():
    import numpy as np
    import pandas as pd

    out = R.as_metrics(
        dict(
            a=np.float32(0.5),
            b=np.int64(3),
            c=np.array([[1.0, np.nan]]),
            d=pd.Series([1, 2]),
            e=np.bool_(True),
            f=(1, 2),
        )
    )
    assert out == dict(
        schema_version=1,
        a=0.5,
        b=3,
        c=[[1.0, None]],
        d=[1, 2],
        e=True,
        f=[1, 2],
        not_finite={"c[0][1]": "nan"},
    )
    for bad in (object(), {1, 2}, b"x"):
        with pytest.raises(TypeError, match="metric 'a'"):
            R.as_metrics({"a": bad})
    with pytest.raises(ValueError, match="schema_version"):
        R.as_metrics({"schema_version": 2})


def test_parameters_helper_and_tests_agree():
    import ast

    assert R._assigned(PARAMETERS) == [t.target.id for t in ast.parse(PARAMETERS).body]


SLEEPS = """import os, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
open(out_dir + "/pids.part", "w").write(f"{os.getpid()} {child.pid}")
os.rename(out_dir + "/pids.part", out_dir + "/pids")
time.sleep(600)"""


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGHUP])
def test_a_run_that_is_ended_says_so_and_ends_what_it_began(tmp_path, how):
    path, folder = template(tmp_path / "x.ipynb", SLEEPS), tmp_path / "out"
    code = (
        "import signal\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "from arcpoint_ce import run_report\n"
        f"run_report({str(path)!r}, out={str(folder)!r}, progress=False)"
    )
    child = subprocess.Popen([sys.executable, "-c", code])
    pids = []
    try:
        wait_for((folder / "pids").exists, 90)
        pids = [int(pid) for pid in (folder / "pids").read_text().split()]
        child.send_signal(how)
        assert child.wait(60) == 128 + how
        assert record(folder)["status"] == "failed"
        assert record(folder)["failure"]["error"] == "interrupted" and record(folder)["ended_utc"]
        wait_for(lambda: all(map(gone, pids)))
    finally:
        child.kill()
        for pid in pids:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.parametrize("ends", ["a time-out", "an error", "its end"])
def test_what_a_kernel_began_ends_with_it(tmp_path, ends):
    begins = SLEEPS.rpartition("\n")[0]
    source = {"a time-out": SLEEPS, "an error": begins + "\n1 / 0", "its end": begins}[ends]
    path, folder = template(tmp_path / "x.ipynb", source), tmp_path / "out"
    run = run_report(path, out=folder, progress=False, check=False, timeout_s=15)
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    assert run.status == ("ok" if ends == "its end" else "failed")
    try:
        wait_for(lambda: all(map(gone, pids)))
    finally:
        for pid in pids:
            if not gone(pid):
                os.kill(pid, signal.SIGKILL)
