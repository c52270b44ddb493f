"""Experiments: the same table whichever backend runs them, kill -9 in the middle, and intervals
that hold what they promise.
"""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from itertools import product
from pathlib import Path

import joblib
import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from joblib.externals.loky.process_executor import TerminatedWorkerError

from arcpoint_ce.lab.experiment import (
    Experiment,
    Task,
    _per_family,
    _policy_seed,
    _TaskError,
    _world_seed,
    compare,
    enough,
    paired,
    ratio_interval,
    read_results,
    read_rows,
    run_tasks,
    write_results,
)
from arcpoint_ce.lab.study import SOURCES

SKILL = {"ours": 0.5, "reactive": 1.0, "clairvoyant": 0.25}


def toy(task, marks=None):
    "A world's hardness times the policy's skill; leaves the worker's process id in `marks`."
    if marks:
        (Path(marks) / str(os.getpid())).touch()
    hard = 100 * np.random.default_rng(_world_seed(task)).lognormal(0, 0.7)
    return {
        "violations": int(
            np.random.default_rng(_policy_seed(task)).poisson(SKILL[task.policy] * hard)
        ),
        "hardness": hard,
        "p99_ms": float("nan") if task.seed == 1 else hard**0.5,
        "where": f"{task.family} {task.seed}",
        "ok": task.seed > 2,
    }


def trial(marks=None, seeds=5, version="1"):
    return Experiment(
        partial(toy, marks=marks),
        list(SKILL),
        ["ramp", "diurnal"],
        seeds,
        [{"request_s": 1}, {"request_s": 8}],
        version,
    )


def same(a, b):
    pd.testing.assert_frame_equal(a, b, check_exact=True)


def pids(folder):
    return {int(p.name) for p in folder.iterdir()}


@pytest.fixture(scope="module")
def alone():
    "The table from one process."
    return trial().run(n_jobs=1, progress=False)


# ---- tasks

values = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**60), 2**60),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
)
names = st.text("abcdxyz_", min_size=1, max_size=6).filter(
    lambda n: n not in ("family", "policy", "seed")
)


@settings(max_examples=60, deadline=None)
@given(
    st.text(max_size=8),
    st.text(max_size=8),
    st.integers(0, 2**40),
    st.dictionaries(names, values, max_size=4),
)
def test_a_task_survives_json_and_does_not_depend_on_the_order_of_options(
    family, policy, seed, options
):
    task = Task(family, policy, seed, options)
    again = Task(
        **json.loads(
            json.dumps(
                {
                    "family": family,
                    "policy": policy,
                    "seed": seed,
                    "options": [list(p) for p in reversed(task.options)],
                }
            )
        )
    )
    assert again == task and again.key == task.key and hash(again) == hash(task)
    assert _world_seed(task) == _world_seed(
        Task(family, policy + "!", seed, options, {"p_a_r_a_m": 1})
    )
    assert (
        len(
            {
                _world_seed(task),
                _policy_seed(task),
                _world_seed(Task(family, policy, seed + 1, options)),
                _world_seed(Task(family + "!", policy, seed, options)),
            }
        )
        == 4
    )


@pytest.mark.slow
def test_seeds_are_the_same_in_another_process_whatever_its_hash_seed():
    script = """
from arcpoint_ce.lab.experiment import Task, _policy_seed, _world_seed
t = Task('ramp', 'ours', 3, {'b': 1.5, 'a': 'x'})
print(t.key, _world_seed(t), _policy_seed(t))
"""
    outs = {
        subprocess.run(
            [sys.executable, "-c", script],
            env=os.environ | {"PYTHONHASHSEED": h},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for h in ("1", "2")
    }
    task = Task("ramp", "ours", 3, {"b": 1.5, "a": "x"})
    assert outs == {f"{task.key} {_world_seed(task)} {_policy_seed(task)}\n"}


def test_every_policy_meets_the_same_world(alone):
    assert (alone.groupby(["family", "request_s", "seed"])["hardness"].nunique() == 1).all()
    assert alone["hardness"].nunique() == 2 * 2 * 5


# ---- the same table whoever runs it


@pytest.mark.slow
def test_processes_give_the_sequential_table(alone, tmp_path):
    same(trial(tmp_path).run(n_jobs=2, progress=False), alone)
    assert os.getpid() not in pids(tmp_path)


@pytest.mark.slow
def test_a_backend_that_cannot_stream_gives_it_too(alone, tmp_path):
    (marks := tmp_path / "marks").mkdir()
    with joblib.parallel_config("multiprocessing"):
        same(trial(marks).run(tmp_path / "out", progress=False), alone)
    assert os.getpid() not in pids(marks)


@pytest.mark.slow
def test_a_dask_cluster_gives_it_too(alone, tmp_path):
    distributed = pytest.importorskip(
        "distributed", reason="needs the extra [dask]: pip install 'arcpoint_ce[dask]'"
    )
    (marks := tmp_path / "marks").mkdir()
    with (
        distributed.LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address=None,
            worker_dashboard_address=None,
            local_directory=str(tmp_path),
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        assert all("//127.0.0.1:" in w for w in client.scheduler_info()["workers"])
        with joblib.parallel_config("dask"):
            same(trial(marks).run(tmp_path / "out", progress=False), alone)
        assert pids(marks) == set(client.run(os.getpid).values()) and os.getpid() not in pids(marks)
    # and the folder it filled is as good
    same(trial().run(tmp_path / "out", n_jobs=1, progress=False), alone)


@pytest.mark.slow
def test_a_ray_cluster_gives_it_too(alone, tmp_path, monkeypatch):
    ray = pytest.importorskip("ray", reason="needs the extra [ray]: pip install 'arcpoint_ce[ray]'")
    from ray.util.joblib import register_ray

    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (marks := tmp_path / "marks").mkdir()
    how = dict(include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.init(num_cpus=2, _node_ip_address="127.0.0.1", **how)
    try:
        register_ray()
        with joblib.parallel_config("ray", n_jobs=2):
            same(trial(marks).run(tmp_path / "out", progress=False), alone)
        assert pids(marks) and os.getpid() not in pids(marks)
    finally:
        ray.shutdown()
    same(trial().run(tmp_path / "out", n_jobs=1, progress=False), alone)


# ---- killed, torn, mixed, failed

SWEEP = """
import os, sys, time
import numpy as np
from arcpoint_ce.lab.experiment import Experiment, _world_seed
def quick(task):
    return {"violations": float(np.random.default_rng(_world_seed(task)).random())}
def slow(task):
    with open(sys.argv[2], "a") as f:
        f.write(task.key + "\\n")
    time.sleep(.1)
    return quick(task)
many = Experiment(slow, ["a", "b"], ["ramp"], 14, version="1")
table = many.run(sys.argv[1], n_jobs=2, progress=False)
alone = Experiment(quick, ["a", "b"], ["ramp"], 14).run(n_jobs=1, progress=False)
assert table.equals(alone) and len(table) == 28
"""


@pytest.mark.slow
def test_a_killed_sweep_redoes_only_what_is_missing(tmp_path):
    rows = tmp_path / "out" / "rows.jsonl"

    def start(log):
        return subprocess.Popen(
            [sys.executable, "-c", SWEEP, str(tmp_path / "out"), str(tmp_path / log)],
            start_new_session=True,
        )

    first = start("first")
    give_up = time.monotonic() + 120
    while not (rows.exists() and rows.read_bytes().count(b"\n") >= 6):
        assert first.poll() is None and time.monotonic() < give_up, (
            "the sweep ended or hung before it could be killed"
        )
        time.sleep(0.01)
    os.killpg(first.pid, signal.SIGKILL)
    first.wait()
    done = set(read_rows(rows)[0])
    # rows were there while others had not begun
    assert 6 <= len(done) < 28 and len((tmp_path / "first").read_text().splitlines()) < 28
    with rows.open("ab") as f:
        f.write(b'{"task": {"family": "ramp", "pol')  # it died while writing
    assert start("second").wait() == 0
    again = (tmp_path / "second").read_text().splitlines()
    assert len(again) == len(set(again)) == 28 - len(done) and not done & set(again)
    assert len(read_rows(rows)[0]) == rows.read_bytes().count(b"\n") == 28


@pytest.mark.parametrize("cut", [1, 7, 40, -1])
def test_a_file_cut_anywhere_in_its_last_line_is_continued(alone, tmp_path, cut):
    trial().run(tmp_path, n_jobs=1, progress=False)
    rows = tmp_path / "rows.jsonl"
    data = rows.read_bytes()
    last = data.rindex(b"\n", 0, -1) + 1
    rows.write_bytes(data[: last + cut] if cut > 0 else data[:cut])
    assert len(read_rows(rows)[0]) == len(alone) - 1
    same(trial().run(tmp_path, n_jobs=1, progress=False), alone)
    assert rows.read_bytes() == data


def test_more_seeds_cost_only_themselves(tmp_path):
    trial(seeds=3).run(tmp_path / "out", n_jobs=1, progress=False)
    before = (tmp_path / "out" / "rows.jsonl").read_bytes()
    same(
        trial(seeds=5).run(tmp_path / "out", n_jobs=1, progress=False),
        trial(seeds=5).run(n_jobs=1, progress=False),
    )
    after = (tmp_path / "out" / "rows.jsonl").read_bytes()
    assert after.startswith(before) and after.count(b"\n") == 60
    same(
        trial(seeds=3).run(tmp_path / "out", n_jobs=1, progress=False),
        trial(seeds=3).run(n_jobs=1, progress=False),
    )  # the others stay out
    assert (tmp_path / "out" / "rows.jsonl").read_bytes() == after


def test_two_versions_do_not_meet_in_a_folder(tmp_path):
    trial(seeds=1).run(tmp_path, n_jobs=1, progress=False)
    with pytest.raises(ValueError, match="another folder, or delete"):
        trial(seeds=1, version="2").run(tmp_path, progress=False)
    identity = tmp_path / "identity.json"
    identity.write_text(json.dumps(json.loads(identity.read_text()) | {"schema": 0}))
    with pytest.raises(ValueError, match="must not be mixed"):
        trial(seeds=1).run(tmp_path, progress=False)
    identity.unlink()
    with pytest.raises(ValueError, match="no identity.json"):
        trial(seeds=1).run(tmp_path, progress=False)


def fragile(task, broken):
    if (task.policy, task.seed) in broken:
        raise ZeroDivisionError(f"no capacity at seed {task.seed}")
    return toy(task)


@pytest.mark.slow
@pytest.mark.parametrize("n_jobs", [1, 2])
def test_a_failed_task_is_named_and_costs_no_other(tmp_path, n_jobs):
    def make(*broken):
        return Experiment(
            partial(fragile, broken=broken), ["ours", "reactive"], ["ramp"], 4, version="1"
        )

    whole = make().run(n_jobs=1, progress=False)
    with pytest.raises(
        _TaskError,
        match=r'1 of 8 tasks failed, the first: \["ramp", \{\}, 2, "ours", \{\}\]: '
        "ZeroDivisionError: no capacity at seed 2",
    ) as e:
        make(("ours", 2)).run(tmp_path, n_jobs=n_jobs, progress=False)
    same(e.value.table, whole[(whole.policy != "ours") | (whole.seed != 2)].reset_index(drop=True))
    kept = read_rows(tmp_path / "rows.jsonl")[0][Task("ramp", "ours", 2).key]
    assert "row" not in kept and "in fragile" in kept["trace"]
    same(
        make(*[(p, s) for p in SKILL for s in range(4) if (p, s) != ("ours", 2)]).run(
            tmp_path, n_jobs=n_jobs, progress=False
        ),
        whole,
    )


def dies(task):
    if task.seed == 5:
        os._exit(1)
    return toy(task)


def test_a_worker_that_dies_leaves_the_finished_rows(tmp_path):
    tasks = [Task("ramp", "ours", s) for s in range(6)]
    with pytest.raises(TerminatedWorkerError):
        run_tasks(dies, tasks, tmp_path, "1", n_jobs=2, progress=False)
    left = len(read_rows(tmp_path / "rows.jsonl")[0])
    assert left < 6
    same(
        run_tasks(toy, tasks, tmp_path, "1", n_jobs=1, progress=False),
        run_tasks(toy, tasks, n_jobs=1, progress=False),
    )


@pytest.mark.parametrize(
    "row", [[1], {"violations": [1]}, {"violations": float("inf")}, {"policy": "x"}]
)
def test_rows_must_be_flat_and_finite(row):
    with pytest.raises(_TaskError, match="run_one|column 'violations'"):
        run_tasks(lambda t: row, [Task("ramp", "ours", 0)], n_jobs=1, progress=False)


# ---- files


def test_results_come_back_from_parquet_as_they_were(alone, tmp_path):
    table = alone.assign(
        forecast=[None, "off"] * (len(alone) // 2), gap=np.nan, n=np.arange(len(alone)) + 2**53
    )
    back = read_results(write_results(table, tmp_path / "deep" / "results.parquet"))
    same(back, table)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["results.parquet"] and back[
        "p99_ms"
    ].isna().sum() == 12
    write_results(table.head(3), tmp_path / "deep" / "results.parquet")
    same(read_results(tmp_path / "deep" / "results.parquet"), table.head(3))


# ---- statistics


def worlds(rng, n, sigma, truth):
    "Violations of ours and of the reactive policy, and of a clairvoyant, in n log-normal worlds."
    hard = 200 * rng.lognormal(0, sigma, n)
    own = rng.lognormal(-0.045, 0.3, n)
    return rng.poisson(truth * hard * own), rng.poisson(hard), rng.poisson(0.5 * truth * hard)


@pytest.mark.parametrize("n, sigma", [(12, 0.3), (12, 1.0), (20, 1.0), (40, 0.5), (100, 1.0)])
def test_intervals_hold_the_truth_about_as_often_as_promised(n, sigma):
    rng, truth, comparisons = np.random.default_rng(n), 0.5, 600
    found = [paired(*worlds(rng, n, sigma, truth)[:2]) for _ in range(comparisons)]
    held = np.mean([f["ratio_lo"] <= truth <= f["ratio_hi"] for f in found])
    assert 0.91 <= held <= 0.98  # 600 comparisons: a standard error of 0.009
    assert abs(np.mean([f["ratio"] for f in found]) - truth) < 0.03


def test_signs_are_flipped_about_the_ratio_in_question_and_not_about_one():
    "A ratio of a tenth with little doubt must be found, and 1 must be rejected."
    rng = np.random.default_rng(3)
    hard = 1000 * rng.lognormal(0, 1, 20)
    lo, hi = ratio_interval(rng.poisson(0.1 * hard), rng.poisson(hard))
    assert 0.09 < lo < hi < 0.11


def test_the_interval_is_that_of_every_sign_pattern_where_they_can_be_counted():
    "Eight worlds, 256 patterns: an end is where one pattern in twenty is as far out."
    rng = np.random.default_rng(5)
    a, b = rng.poisson(80, 8) + rng.poisson(30, 8), rng.poisson(100, 8)
    lo, hi = ratio_interval(a, b)
    signs = np.array(list(product((-1, 1), repeat=8)))

    def p_value(ratio):
        left = a - ratio * b
        return np.mean(np.abs(signs @ left) >= abs(left.sum()) - 1e-9)

    inside, outside = (lo * (1 + 1e-7), hi * (1 - 1e-7)), (lo * (1 - 1e-7), hi * (1 + 1e-7))
    assert min(map(p_value, inside)) > 0.05 >= max(map(p_value, outside))


def test_no_ratio_below_two_hundred_misses_on_either_side():
    few, many = [20] * 9 + [19], [40] * 10
    for a, b in ((few, many), (many, few)):
        p = paired(a, b)
        assert {p[k] for k in ("ratio", "ratio_lo", "ratio_hi", "half_width", "median_ratio")} == {
            None
        }
        assert (p["sum_ours"], p["sum_reactive"]) == (sum(a), sum(b))
    assert paired([20] * 10, many)["ratio"] == pytest.approx(0.5)


def test_pairing_is_what_makes_it_sharp():
    rng = np.random.default_rng(0)
    a, b, _ = worlds(rng, 30, 1.0, 0.5)
    assert paired(a, b)["half_width"] < 0.4 * paired(a, rng.permutation(b))["half_width"]


@settings(max_examples=50, deadline=None)
@given(st.lists(st.tuples(*[st.integers(0, 1000)] * 3), min_size=1, max_size=15))
def test_no_number_is_ever_infinite_or_invented(seeds):
    a, b, c = (np.array(x) for x in zip(*seeds))
    p = paired(a, b, c)
    assert all(v is None or np.isfinite(v) for v in p.values())
    assert (p["ratio"] is None) == (min(a.sum(), b.sum()) < 200)
    assert p["gap_closed"] is None or b.sum() > c.sum()
    if p["ratio"] is not None:
        assert p["ratio"] == pytest.approx(a.sum() / b.sum())
        assert p["ratio_lo"] is None or p["ratio_lo"] <= p["ratio"] + 1e-9
        assert p["ratio_hi"] is None or p["ratio"] <= p["ratio_hi"] + 1e-9
    assert p["n_zero_zero"] + p["n_x_zero"] == (b == 0).sum()
    if len(a) < 6:
        assert p["ratio_lo"] is None and p["half_width"] is None
    twin = paired(b, b, least=1)
    if b.sum():
        assert twin["ratio"] == 1.0 and (
            twin["ratio_hi"] is None or twin["ratio_hi"] == pytest.approx(1.0)
        )


def test_each_family_has_its_own_reactive_policy(alone):
    table = alone[alone.request_s == 1]
    one = _per_family(
        compare(table, "ours", {"ramp": "reactive", "diurnal": "clairvoyant"}, least=1)
    )
    assert one["ramp"]["ratio"] < 1 < one["diurnal"]["ratio"] and "gap_closed" not in one["ramp"]
    with pytest.raises(ValueError, match="ramp, ours: several rows for one seed"):
        compare(alone, "ours", "reactive")
    both = compare(alone, "ours", "reactive", by=["family", "request_s"])
    assert both[["family", "request_s"]].values.tolist() == [
        ["ramp", 1],
        ["ramp", 8],
        ["diurnal", 1],
        ["diurnal", 8],
    ]
    assert enough(both).columns.tolist() == [
        "family",
        "request_s",
        "half_width",
        "n_seeds",
        "reached",
        "more",
    ]
    with pytest.raises(ValueError, match=r"diurnal, reactive: 'p99_ms' is missing at seeds \[1\]"):
        compare(table[table.family == "diurnal"], "reactive", "ours", value="p99_ms")
    with pytest.raises(ValueError, match="no column nothing"):
        compare(table, "ours", "reactive", value="nothing")


def test_the_sequential_rule_ends_where_it_should():
    rng, n = np.random.default_rng(3), 12
    a, b, _ = worlds(rng, 100, 0.5, 0.9)
    while True:
        table = pd.DataFrame(
            {
                "family": "ramp",
                "policy": ["ours"] * n + ["reactive"] * n,
                "seed": [*range(n)] * 2,
                "violations": [*a[:n], *b[:n]],
            }
        )
        step = enough(compare(table, "ours", "reactive")).iloc[0]
        if not step.more:
            break
        assert step.half_width > 0.05 and step.more <= n
        n += step.more
    assert n <= 100 and (step.reached or n == 100)


def test_rows_name_the_code_of_every_room_that_they_depend_on():
    "Else a kept row of older code would be taken for one of today's."
    code = "import sys, arcpoint_ce.lab.study; print(*[m for m in sys.modules if '.' in m])"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    rooms = {m.split(".")[1] for m in loaded.stdout.split() if m.startswith("arcpoint_ce.")}
    assert {path.parent.name for path in SOURCES} >= rooms >= {"lab", "forecast", "engine"}
