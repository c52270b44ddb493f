"The wheel: what is in it, and that it runs every report in an environment without the checkout."

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from report_helpers import leaving, warnings_in

from arcpoint_ce.apps.report import list_reports

ROOT = Path(__file__).parents[1]
SITE = sysconfig.get_paths()["purelib"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel, built from a copy (so that nothing stale is packed) in which a report has run."
    src = tmp_path_factory.mktemp("src")
    for name in ("arcpoint_ce", "reports", "data", "nbs", "tests"):
        shutil.copytree(
            ROOT / name,
            src / name,
            ignore=shutil.ignore_patterns("__pycache__", "out", ".ipynb_checkpoints"),
        )
    for name in ("settings.ini", "setup.py", "README.md"):
        shutil.copy(ROOT / name, src)
    run = src / "reports" / "out" / "routing" / "x"
    run.mkdir(parents=True)
    for f in ("report.ipynb", "metrics.json", "report.html"):
        (run / f).write_text("{}")
    (src / "data" / "mine.csv.quarantine.csv").write_text("x\n")
    made = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            str(src),
            "--no-deps",
            "--no-build-isolation",
            "-q",
            "-w",
            str(src / "dist"),
        ],
        capture_output=True,
        text=True,
    )
    assert made.returncode == 0, made.stderr
    return next((src / "dist").glob("*.whl"))


@pytest.fixture(scope="module")
def home(wheel, tmp_path_factory):
    """An environment with the wheel; dependencies are borrowed through a .pth file, which does not
    run the checkout's own.
    """
    home = tmp_path_factory.mktemp("env") / "venv"
    venv.create(home, with_pip=False)
    python = home / "bin" / "python"
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pip",
            "--python",
            str(python),
            "install",
            "-q",
            "--no-deps",
            "--no-index",
            str(wheel),
        ],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    next(home.glob("lib/python*/site-packages")).joinpath("borrowed.pth").write_text(SITE + "\n")
    return home


def environment() -> dict[str, str]:
    "Nothing that leads back to the checkout; nbconvert's page templates come from the lender."
    keep = {
        k: v
        for k, v in os.environ.items()
        if k not in ("PYTHONPATH", "VIRTUAL_ENV", "ARCPOINT_DATA", "ARCPOINT_DEBUG")
    }
    return keep | {"JUPYTER_PATH": str(Path(sys.prefix) / "share" / "jupyter")}


def run(home: Path, *args: str, cwd: Path) -> subprocess.CompletedProcess:
    return subprocess.run(
        [home / "bin" / args[0], *args[1:]],
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
    )


def test_contents(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for p in ROOT.glob("reports/*.ipynb"):
        assert f"arcpoint_ce/templates/{p.name}" in names
    for p in ("sample.parquet", "sample_truth.json", "fleet.toml"):
        assert f"arcpoint_ce/sample/{p}" in names
    for p in ROOT.glob("arcpoint_ce/**/*.py"):
        assert str(p.relative_to(ROOT)) in names
    assert "arcpoint_ce/py.typed" in names  # type checkers believe the annotations
    strays = [
        n
        for n in names
        if "/out/" in n
        or "quarantine" in n
        or not n.startswith(("arcpoint_ce/", "arcpoint_ce-"))
        or "tests/" in n
        or "/test_" in n
        or "__pycache__" in n
    ]
    assert strays == []
    assert {n.split("/")[1] for n in names if n.endswith(".ipynb")} == {"templates"}


@pytest.mark.slow
def test_installed_apart_from_the_checkout(home, tmp_path):
    code = (
        "import arcpoint_ce, numpy; from arcpoint_ce.apps.report import templates; "
        "print(arcpoint_ce.__file__, *templates().values(), sep='\\n')"
    )
    seen = run(home, "python", "-c", code, cwd=tmp_path).stdout.split()
    assert (
        len(seen) > 1
        and all(str(home) in s for s in seen)
        and not any(str(ROOT) in s for s in seen)
    )
    told = run(home, "arcpoint", "report", "--list", cwd=tmp_path)
    assert told.returncode == 0 and all(r.name in told.stdout for r in list_reports())


RELIED_ON = {
    "chaos": (
        "lost_with_retries",
        "lost_without_retries",
        "always_reroute_passes",
        "never_reroute_passes",
        "scenarios",
    ),
    "policies": ("scheduled_surge", "worst_ratio", "worst_ratio_hi", "n_seeds"),
}  # names that other programs read
SMALL = {
    "agent": ("-p", "per_kind", "2"),
    "policies": (
        *("-p", "families", "scheduled_surge", "-p", "seeds", "1"),
        *("-p", "n", "500", "-p", "sweep_n", "300"),
    ),
    "chaos": ("-p", "requests", "1500"),
    "forecast": ("-p", "trees", "60"),
}  # that a report runs is seen here; its own tests look at what it says


@pytest.mark.slow
@pytest.mark.parametrize("name", [r.name for r in list_reports()])
def test_every_report_runs(home, tmp_path, name):
    "On the shipped sample, from a folder that has nothing to do with the project."
    quick = (
        ["-p", "quick", "true"]
        if any("quick" in r.parameters for r in list_reports() if r.name == name)
        else []
    )
    few = SMALL.get(name, ())
    done = run(home, "arcpoint", "report", name, *quick, *few, "--no-progress", cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = (tmp_path / "reports" / "out" / name / "latest").resolve()
    params = json.loads((folder / "params.json").read_text())
    assert params["status"] == "ok" and params["git_sha"] is None and params["data_sha256"]
    metrics = json.loads((folder / "metrics.json").read_text())
    assert len(metrics) > 3 and not set(RELIED_ON.get(name, ())) - metrics.keys()
    assert leaving(folder / "report.html") == []
    assert warnings_in(folder / "report.ipynb") == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["reports"]


@pytest.mark.slow
@pytest.mark.parametrize("name", [r.name for r in list_reports() if "data" in r.parameters])
def test_every_template_with_data_runs_under_plain_papermill(home, tmp_path, name):
    "On a file of the caller's (labelled series are a folder), given by a relative path."
    found = next(r for r in list_reports() if r.name == name)
    write = (
        "import pandas as pd; from arcpoint_ce.telemetry.traces import _exercise_telemetry as e; "
        "pd.concat([e(700, s).assign(backend=f'b{s}') for s in (1, 2)]).to_csv('mine.csv', "
        "index=False)"
    )
    mine = "labelled" if name in ("anomaly", "causes") else "mine.csv"
    if name == "anomaly":
        write = (
            "from arcpoint_ce.proof.labelled_series import write_synthetic\n"
            f"write_synthetic('{mine}', 2, 2000)"
        )
    if name == "causes":
        write = f"from arcpoint_ce.context.callgraph import write_synthetic as w; w('{mine}')"
    assert run(home, "python", "-c", write, cwd=tmp_path).returncode == 0
    source = next(home.glob(f"lib/python*/site-packages/arcpoint_ce/templates/{name}.ipynb"))
    quick = ["-p", "quick", "True"] if "quick" in found.parameters else []
    done = subprocess.run(
        [
            home / "bin" / "python",
            "-m",
            "papermill",
            source,
            "o.ipynb",
            "-p",
            "data",
            mine,
            *quick,
            "-k",
            "python3",
            "--no-progress-bar",
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env=environment() | {"PATH": f"{home / 'bin'}:{os.environ['PATH']}"},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([mine, "o.ipynb"])
