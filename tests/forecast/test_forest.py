"Compiled forests against scikit-learn: equal to the last bit, and safe whatever the file says."

import io
import json
import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.ensemble import ExtraTreesRegressor, IsolationForest, RandomForestRegressor

import arcpoint_ce
from arcpoint_ce.forecast import forest as module
from arcpoint_ce.forecast.forest import (
    FOREST_SCHEMA,
    ArtefactError,
    CompiledForest,
    _float32_below,
    bench_forest,
    data_sha256,
    load_artefact,
    save_artefact,
)


def rows(seed, n=200, columns=5, missing=0.1):
    rng = np.random.default_rng(seed)
    # rounded: values meet thresholds
    X = rng.normal(size=(n, columns)).round(int(rng.integers(1, 4)))
    X[rng.random(X.shape) < missing] = np.nan
    return X, np.nan_to_num(X).sum(1) + rng.normal(size=n)


def same(a, b):
    return np.array_equal(np.asarray(a).view(np.int64), np.asarray(b).view(np.int64))  # bit by bit


@pytest.fixture(scope="module")
def fitted():
    X, y = rows(7)
    return RandomForestRegressor(25, max_depth=6, random_state=0).fit(X, y), X, y


forests = st.builds(
    dict,
    kind=st.sampled_from([RandomForestRegressor, ExtraTreesRegressor]),
    n_estimators=st.integers(1, 45),
    max_depth=st.sampled_from([1, 3, 8, None]),
    min_samples_leaf=st.integers(1, 5),
    max_leaf_nodes=st.sampled_from([None, 7, 40]),
    max_features=st.sampled_from([0.3, 1.0]),
    bootstrap=st.booleans(),
    random_state=st.integers(0, 2**31),
)


@pytest.mark.slow
@settings(max_examples=80, deadline=None)
@given(
    forests, st.integers(0, 2**31), st.sampled_from([0.0, 0.02, 0.3]), st.sampled_from([0.0, 0.3])
)
def test_bit_identical_to_scikit_learn(options, seed, missing, missing_later):
    kind = options.pop("kind")
    X, y = rows(seed, missing=missing)
    forest = kind(**options).fit(X, y)
    compiled, asked = (
        CompiledForest.from_sklearn(forest),
        rows(seed + 1, 60, missing=missing_later)[0],
    )
    for Q in (X, asked, asked.astype(np.float32), asked * 1e30):
        assert same(compiled.predict(Q), forest.predict(Q))
        assert np.array_equal(compiled.apply(Q), forest.apply(Q))
    assert compiled.predict_one(asked[0]) == forest.predict(asked[:1])[0]


def test_rows_exactly_on_the_thresholds_and_beside_them(fitted):
    forest, X, y = fitted
    compiled = CompiledForest.from_sklearn(forest)
    inner = np.concatenate([e.tree_.threshold[e.tree_.feature >= 0] for e in forest.estimators_])
    edge = inner[np.isfinite(inner)].astype(np.float32)
    for t in (
        edge,
        np.nextafter(edge, np.float32(np.inf)),
        np.nextafter(edge, np.float32(-np.inf)),
    ):
        Q = np.repeat(t[:, None], X.shape[1], 1)
        assert np.array_equal(compiled.apply(Q), forest.apply(Q))


@pytest.mark.slow
@given(st.floats(allow_nan=False), st.floats(width=32, allow_nan=False))
def test_narrow_thresholds_decide_alike(threshold, x):
    narrow = _float32_below(np.array([threshold]))
    with np.errstate(over="ignore"):
        above = np.nextafter(narrow[0], np.float32(np.inf))
    near = np.array([x, narrow[0], above], np.float32)
    assert ((near <= narrow) == (near.astype(np.float64) <= threshold)).all()


def test_single_node_trees_and_a_single_tree():
    X, _ = rows(1)
    for forest in (
        RandomForestRegressor(21, random_state=0).fit(X, np.full(len(X), 3.5)),
        RandomForestRegressor(1, max_depth=2, random_state=0).fit(X, X[:, 0] > 0),
    ):
        compiled = CompiledForest.from_sklearn(forest)
        assert same(compiled.predict(X), forest.predict(X)) and np.array_equal(
            compiled.apply(X), forest.apply(X)
        )
    assert compiled.predict(np.empty((0, 5))).shape == (0,)


def test_a_split_on_missingness_alone():
    "Such a split has an infinite threshold; missing rows may go either way."
    X = np.array([[1.0], [np.nan]] * 50)
    present = np.isnan(X[:, 0])
    for y in (present * 5.0, ~present * 5.0):
        forest = RandomForestRegressor(30, random_state=0).fit(X, y)
        assert any(np.isposinf(e.tree_.threshold).any() for e in forest.estimators_)
        assert same(CompiledForest.from_sklearn(forest).predict(X), forest.predict(X))


@pytest.mark.parametrize("value", [np.inf, -np.inf, 1e39, -1e39])
def test_infinite_values_are_refused_as_by_scikit_learn(fitted, value):
    forest, X, _ = fitted
    compiled, Q = CompiledForest.from_sklearn(forest), X[:3].copy()
    Q[1, 4] = value
    with np.errstate(over="ignore"), pytest.raises(ValueError):
        forest.predict(Q)
    for ask in (compiled.predict, compiled.apply, lambda q: compiled.predict_into(q, np.empty(3))):
        with pytest.raises(ValueError, match="row 1, feature 4"):
            ask(Q)


def test_the_largest_finite_values_are_taken(fitted):
    forest, X, _ = fitted
    Q = X[:2].copy()
    Q[0] = 3.4028235e38
    Q[1] = -3.4028235e38
    assert same(CompiledForest.from_sklearn(forest).predict(Q), forest.predict(Q))


def test_dataframes_keep_the_columns_of_the_training():
    X, y = rows(3, missing=0.0)
    frame = pd.DataFrame(X, columns=list("abcde"))
    forest = RandomForestRegressor(5, random_state=0).fit(frame, y)
    compiled = CompiledForest.from_sklearn(forest)
    assert compiled.feature_names == list("abcde") and same(
        compiled.predict(frame), forest.predict(frame)
    )
    with pytest.raises(ValueError, match="differ from the training columns"):
        compiled.predict(frame[list("bacde")])


def test_read_only_and_strided_arrays(fitted):
    forest, X, _ = fitted
    compiled, wide = CompiledForest.from_sklearn(forest), np.repeat(X, 2, 1)
    frozen = X.copy()
    frozen.flags.writeable = False
    for Q in (frozen, wide[:, ::2], np.asfortranarray(X), X.tolist()):
        assert same(compiled.predict(Q), forest.predict(X))


def test_out_is_checked_and_nothing_else_is_written(fitted):
    forest, X, _ = fitted
    compiled, room = CompiledForest.from_sklearn(forest), np.full(len(X) + 2, 77.0)
    assert (
        same(compiled.predict_into(X, room[1:-1]), forest.predict(X))
        and room[0] == room[-1] == 77.0
    )
    frozen = np.empty(len(X))
    frozen.flags.writeable = False
    for out in (
        np.empty(len(X) - 1),
        np.empty(len(X), np.float32),
        np.empty((len(X), 1)),
        frozen,
        np.empty(2 * len(X))[::2],
        [0.0] * len(X),
    ):
        with pytest.raises(ValueError, match="out must be"):
            compiled.predict_into(X, out)


@pytest.mark.parametrize("in_bag", [False, True])
@pytest.mark.parametrize("bootstrap", [False, True])
def test_medians_against_a_plain_reference(in_bag, bootstrap):
    X, y = rows(5)
    forest = RandomForestRegressor(12, min_samples_leaf=4, bootstrap=bootstrap, random_state=0).fit(
        X, y
    )
    samples = forest.estimators_samples_ if in_bag else [np.arange(len(X))] * 12
    compiled = CompiledForest.from_sklearn(forest, "median", X, y, samples if in_bag else None)
    leaves, asked = forest.apply(X), rows(6, 50)[0]
    for row, found in zip(asked, forest.apply(asked)):
        total = 0.0
        for k in range(12):
            total += np.median([y[i] for i in samples[k] if leaves[i, k] == found[k]])
        assert compiled.predict_one(row) == total / 12
    assert np.array_equal(compiled.apply(asked), forest.apply(asked))


def test_in_bag_medians_are_those_of_the_absolute_error():
    "One split by hand: trees grown on the absolute error hold their in-bag medians already."
    X, y = rows(8)
    forest = RandomForestRegressor(5, criterion="absolute_error", max_depth=3, random_state=0).fit(
        X, y
    )
    compiled = CompiledForest.from_sklearn(forest, "median", X, y, forest.estimators_samples_)
    assert np.allclose(compiled.predict(X), forest.predict(X), rtol=0, atol=1e-12)


def test_medians_refuse_rows_that_do_not_fit(fitted):
    forest, X, y = fitted
    for args, why in (
        ((X, y[:-1]), "one per row"),
        ((X, np.where(y > 1, np.nan, y)), "finite"),
        ((X[:9], y[:9]), "hold none"),
        ((X[:, :3], y), "must have shape"),
        ((X, y, [[0]]), "each of the 25 trees"),
    ):
        with pytest.raises(ValueError, match=why):
            CompiledForest.from_sklearn(forest, "median", *args)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"max_features": 0.4},
        {"max_features": 1},
        {"max_samples": 2},
        {"max_samples": 1},
        {"bootstrap": True, "n_estimators": 7},
    ],
)
def test_isolation_forest_scores(options):
    X, _ = rows(2, 300)
    forest = IsolationForest(**{"n_estimators": 50, "random_state": 1} | options).fit(X)
    compiled, asked = (
        CompiledForest.from_sklearn(forest),
        np.vstack([rows(4, 100)[0], np.full(5, np.inf), np.full(5, -np.inf), np.full(5, 1e39)]),
    )
    assert same(compiled.score_samples(X), forest.score_samples(X))
    with np.errstate(over="ignore"):
        assert same(compiled.score_samples(asked), forest.score_samples(asked))
    with pytest.raises(ValueError, match="no leaf='median'"):
        CompiledForest.from_sklearn(forest, "median", X, X[:, 0])


@pytest.mark.parametrize("leaf", ["mean", "median", "path"])
def test_saved_and_loaded_it_answers_the_same(tmp_path, fitted, leaf):
    forest, X, y = fitted
    made = (
        CompiledForest.from_sklearn(IsolationForest(n_estimators=20, random_state=0).fit(X))
        if leaf == "path"
        else CompiledForest.from_sklearn(forest, leaf, X, y)
    )
    made.save(tmp_path / "deep" / "forest-1.2", data_sha256(X, y))
    again = CompiledForest.load(tmp_path / "deep" / "forest-1.2")
    assert (
        same(again.predict(X), made.predict(X))
        and again.facts() == made.facts()
        and again.leaf == leaf
    )
    if leaf == "path":
        assert same(again.score_samples(X), made.score_samples(X))
    manifest = json.loads((tmp_path / "deep" / "forest-1.2.json").read_text())
    assert (
        manifest["data_sha256"] == data_sha256(X, y)
        and manifest["package"] == arcpoint_ce.__version__
    )
    assert manifest["scikit_learn"] and manifest["version"] == FOREST_SCHEMA["version"]
    assert (
        manifest["npz_sha256"]
        == sha256((tmp_path / "deep" / "forest-1.2.npz").read_bytes()).hexdigest()
    )
    assert sorted(p.name for p in (tmp_path / "deep").iterdir()) == [
        "forest-1.2.json",
        "forest-1.2.npz",
    ]


def test_the_same_forest_is_stored_as_the_same_bytes(tmp_path, fitted):
    forest, X, _ = fitted
    for name in "ab":
        CompiledForest.from_sklearn(forest).save(tmp_path / name)
    assert (tmp_path / "a.npz").read_bytes() == (tmp_path / "b.npz").read_bytes()


@pytest.fixture
def stored(tmp_path, fitted):
    made = CompiledForest.from_sklearn(fitted[0])
    made.save(tmp_path / "f")
    return made, tmp_path / "f"


def refused(path, why):
    with pytest.raises(ArtefactError, match=why) as e:
        CompiledForest.load(path)
    assert str(path) in str(e.value)


def test_accidents_to_the_files_are_refused(stored):
    made, path = stored
    npz, manifest = Path(f"{path}.npz"), Path(f"{path}.json")
    blob, text = npz.read_bytes(), manifest.read_bytes()
    for k in range(0, len(blob), len(blob) // 20):
        npz.write_bytes(blob[:k] + bytes([blob[k] ^ 1]) + blob[k + 1 :])
        refused(path, "not the one")
    npz.write_bytes(blob[:-40])
    refused(path, "not the one")
    npz.unlink()
    refused(path, "missing")
    npz.write_bytes(blob)
    for bad, why in (
        (text[:-9], "f"),
        (b"[]", "not a JSON object"),
        (text.replace(b'"mean"', b'"path"'), "was changed"),
        (b"\xff", "f"),
    ):
        manifest.write_bytes(bad)
        refused(path, why)
    manifest.unlink()
    refused(path, "missing")
    manifest.write_bytes(text)
    assert CompiledForest.load(path).n_trees == 25


def forged(made, path, arrays=None, **facts):
    "Somebody changes the content and recomputes every hash."
    head = {"format": FOREST_SCHEMA["format"], "version": FOREST_SCHEMA["version"]}
    save_artefact(path, made.arrays() | (arrays or {}), head | made.facts() | facts)


def change(a, where, to):
    a = a.copy()
    a[where] = to
    return a


def test_forged_arrays_never_reach_the_kernel(stored):
    made, path = stored
    a = made.arrays()
    n = a["left"].size
    leaf = int(np.flatnonzero(a["left"] == np.arange(n))[0])
    inner = np.flatnonzero(a["left"] != np.arange(n))
    second = int(a["root"][1])
    cases = [
        ("left", 0, n, "exactly one"),
        ("left", 0, 2**32 - 1, "exactly one"),
        ("left", inner[3], 0, "before its parent"),
        ("left", inner[3], inner[3], "exactly one"),
        ("left", inner[0], a["left"][inner[1]], "exactly one"),
        ("left", leaf, leaf + 1, "exactly one"),
        ("feature", 0, 10, "beyond the 5"),
        ("feature", leaf, 0, "can leave"),
        ("threshold", leaf, 1.0, "can leave"),
        ("threshold", 0, np.nan, "NaN"),
        ("value", leaf, np.inf, "NaN"),
        ("root", 0, 1, "roots"),
        ("root", -1, n + 1, "roots"),
        ("root", 1, 0, "roots"),
        ("root", 1, second + 1, "exactly one"),
    ]
    for name, where, to, why in cases:
        forged(made, path, {name: change(a[name], where, to)})
        refused(path, why)
    forged(made, path)
    assert CompiledForest.load(path).n_trees == 25


def test_a_child_in_another_tree_is_refused(stored):
    """A leaf of the first tree takes the children of the second root, which becomes a leaf: one
    parent each, no cycle.
    """
    made, path = stored
    a = made.arrays()
    root = a["root"][1]
    leaf = int(np.flatnonzero(a["left"][:root] == np.arange(root))[0])
    forged(
        made,
        path,
        {
            "left": change(change(a["left"], leaf, a["left"][root]), root, root),
            "threshold": change(a["threshold"], root, np.inf),
            "feature": change(a["feature"], root, 1),
        },
    )
    refused(path, "another tree")


def test_forged_shapes_types_and_facts_are_refused(stored):
    made, path = stored
    a = made.arrays()
    for arrays, why in (
        ({"left": a["left"].astype(np.int32)}, "int32"),
        ({"left": a["left"][:, None]}, "2 dim"),
        ({"value": a["value"][:-1]}, "length"),
        ({"root": a["root"][:1]}, "roots"),
        ({k: v[: k == "root"] for k, v in a.items()}, "roots"),
        ({"extra": a["left"]}, "extra"),
        ({"value": a["value"].astype(">f8")}, "f8"),
    ):
        forged(made, path, arrays)
        refused(path, why)
    for facts, why in (
        ({"n_features": 3}, "beyond the 3"),
        ({"n_features": "5"}, "an int"),
        ({"n_features": True}, "an int"),
        ({"leaf": "mode"}, "mode"),
        ({"feature_names": ["a"]}, "1 names"),
        ({"feature_names": 5}, "f"),
        ({"norm": "x"}, "f"),
        ({"norm": None}, "f"),
        ({"format": "other"}, "format"),
        ({"version": 2}, "version"),
    ):
        forged(made, path, **facts)
        refused(path, why)


def test_no_pickle_and_no_bomb(tmp_path):
    schema = {"format": "t", "version": 1, "arrays": {"a": ("float64", 1)}}
    save_artefact(tmp_path / "t", {"a": np.zeros(4)}, {"format": "t", "version": 1})

    def swap(blob):
        "Another npz under a manifest that names it."
        (tmp_path / "t.npz").write_bytes(blob)
        manifest = json.loads((tmp_path / "t.json").read_text()) | {
            "npz_sha256": sha256(blob).hexdigest()
        }
        (tmp_path / "t.json").write_text(
            json.dumps(manifest | {"manifest_sha256": module._digest(manifest)})
        )

    for write, a, why in (
        (np.savez, np.array([{}, 1], object), "allow_pickle=False"),
        (np.savez_compressed, np.zeros(10**6), "decompresses"),
    ):
        buffer = io.BytesIO()
        write(buffer, a=a)
        swap(buffer.getvalue())
        with pytest.raises(ArtefactError, match=why):
            load_artefact(tmp_path / "t", schema)
    swap(b"not a zip")
    with pytest.raises(ArtefactError, match="zip"):
        load_artefact(tmp_path / "t", schema)


def test_saving_refuses_what_could_not_be_read_back(tmp_path):
    head = {"format": "t", "version": 1}
    with pytest.raises(ArtefactError, match="objects"):
        save_artefact(tmp_path / "t", {"a": np.array([None])}, head)
    with pytest.raises(ArtefactError, match="'version'"):
        save_artefact(tmp_path / "t", {"a": np.zeros(1)}, {"format": "t"})
    with pytest.raises(ValueError):
        save_artefact(tmp_path / "t", {"a": np.zeros(1)}, head | {"x": float("nan")})
    assert not list(tmp_path.iterdir())


def test_threads_share_a_forest(fitted):
    forest, X, _ = fitted
    compiled = CompiledForest.from_sklearn(forest)
    blocks = [X[k : k + 9] for k in range(0, 190, 3)] * 20
    with ThreadPoolExecutor(8) as pool:
        got = list(pool.map(compiled.predict, blocks))
    for b, p in zip(blocks[:64], got):
        assert same(p, forest.predict(b))
    for b, p in zip(blocks, got):
        assert same(p, compiled.predict(b))
    for kernel in (module._sum_leaves, module._find_leaves):
        assert kernel.targetoptions["nogil"]


def test_later_changes_outside_do_not_reach_the_forest(fitted):
    forest, X, _ = fitted
    compiled = CompiledForest.from_sklearn(forest)
    before = compiled.predict(X)
    for a in compiled.arrays().values():
        a[:] = 0
    assert same(compiled.predict(X), before)
    given = compiled.arrays()
    again = CompiledForest(given, **compiled.facts())
    for a in given.values():
        a[:] = 0
    assert same(again.predict(X), before)


SCRIPT = """
import numpy as np
from arcpoint_ce.forecast import forest as m
a = {
    "root": np.array([0, 3], np.uint32),
    "threshold": np.array([.5, np.inf, np.inf], np.float32),
    "feature": np.array([0, 1, 1], np.uint32),
    "left": np.array([1, 1, 2], np.uint32),
    "node_id": np.arange(3, dtype=np.uint32),
    "value": np.array([0., 10., 20.]),
}
predicted = m.CompiledForest(a, 1).predict([[0.], [1.], [np.nan]]).tolist()
print(m.__file__, predicted, m._sum_leaves.stats.cache_path)
"""


def copied(tmp_path):
    "The package's sources elsewhere, and the environment of a process that sees only those."
    shutil.copytree(
        Path(arcpoint_ce.__file__).parent,
        tmp_path / "arcpoint_ce",
        ignore=shutil.ignore_patterns("__pycache__"),
    )
    env = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA_", "XDG_", "COVERAGE"))}
    return env | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}


def run(env, cwd):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env=env,
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert str(cwd) in done.stdout and "[10.0, 20.0, 20.0]" in done.stdout
    return done.stdout


@pytest.mark.slow
def test_works_where_no_cache_folder_can_be_written(tmp_path):
    """Files stand where numba would make its folders: that stops even a process that may write
    everywhere.
    """
    env = copied(tmp_path)
    (tmp_path / "arcpoint_ce" / "forecast" / "__pycache__").write_text("")
    (tmp_path / "home").write_text("")
    out = run(
        env
        | {
            "HOME": str(tmp_path / "home"),
            "XDG_CACHE_HOME": str(tmp_path / "home"),
            "LOCALAPPDATA": str(tmp_path / "home"),
        },
        tmp_path,
    )
    assert out.strip().endswith("None") and not list(tmp_path.rglob("*.nbi"))


@pytest.mark.slow
def test_the_compiled_kernel_is_cached(tmp_path):
    (tmp_path / "cache").mkdir()
    run(copied(tmp_path) | {"NUMBA_CACHE_DIR": str(tmp_path / "cache")}, tmp_path)
    assert list((tmp_path / "cache").rglob("forest._sum_leaves-*.nbi"))


def test_bench_measures_both_sides_and_finds_no_difference():
    out = bench_forest(sizes=(1, 3), repeats=4, n_trees=5, n_rows=100)
    assert out.pop("forest_max_abs_diff") == 0.0 and sorted(out) == [
        f"forest_{c}speedup_{n}" for c in ("cold_", "") for n in (1, 3)
    ]
    assert all(np.isfinite(v) and v > 0 for v in out.values())
