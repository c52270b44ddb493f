"Service curves: the published measurements, files nobody has seen, and broken ones."

import os
from math import inf
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.lab import curves as cv
from arcpoint_ce.lab.fleet import ServiceCurve

DATA = os.environ.get("ARCPOINT_DATA")
ASKED, GOT = "load_summary.requested_rate", "load_summary.achieved_rate"
LATENCY, TTFT = (
    "successes.latency.request_latency.mean",
    "successes.latency.time_to_first_token.mean",
)
OUT, IN = "successes.output_len.mean", "successes.prompt_len.mean"


def real(name):
    "Path of a published file, or a skip that says why."
    if not DATA:
        pytest.skip("ARCPOINT_DATA is not set: the published measurements are not here")
    path = Path(DATA) / "serving" / name
    if not path.is_file():
        pytest.skip(f"{path} is missing")
    return path


def stages(**over):
    """A load test of a server of 10 ms per token at any batch, made by hand: 100 tokens, a second
    each.
    """
    rates = np.array([1.0, 10.0, 20.0, 60.0])
    rows = {
        "config": "hand",
        ASKED: rates,
        GOT: np.minimum(rates, 40.0),
        LATENCY: [1.1, 1.1, 1.1, 4.0],
        TTFT: [0.1, 0.1, 0.1, 2.8],
        OUT: 100.0,
        IN: 500.0,
    }
    return pd.DataFrame(rows | over)


def profile():
    return pd.DataFrame(
        [("m", "g", 512, b, 128, 50.0 * b, 20 + b, 2) for b in (1, 2, 4)]
        + [("m", "g", 2048, 1, 128, 170.0, 21.0, 2)],
        columns=[
            "model",
            "hardware",
            "prompt_size",
            "batch_size",
            "token_size",
            "prompt_time",
            "token_time",
            "tensor_parallel",
        ],
    )


def put(path, frame):
    frame.to_csv(path, index=False)
    return path


# -- published measurements ------------------------------------------------------------------------


@pytest.mark.slow
def test_simulated_latency_is_the_measured_one():
    "Every stage up to the knee of every configuration: within 10 %; the closed form within 1 %."
    path = real("inference_perf_stages.csv")
    raw, table = pd.read_csv(path), cv._check_stages(path, n=30_000)
    kept = raw[raw[GOT] >= 0.95 * raw[ASKED]]
    assert len(table) == len(kept) and set(table.config) == set(raw.config)
    assert sorted(table.measured_s) == pytest.approx(sorted(kept[LATENCY]))
    assert table.error.abs().max() < 0.10, table.to_string()
    assert (table.expected_s / table.measured_s - 1).abs().max() < 0.01


def test_the_knee_is_where_the_server_fell_behind():
    raw, fits = (
        pd.read_csv(real("inference_perf_stages.csv")),
        cv._fit_stages(real("inference_perf_stages.csv")),
    )
    for name, fit in fits.items():
        mine = raw[raw.config == name]
        past = mine[mine[GOT] < 0.95 * mine[ASKED]]
        assert fit.knee_rps == mine[GOT][mine[GOT] >= 0.95 * mine[ASKED]].max()
        assert cv._capacity_rps(fit.curve, fit.tokens_in, fit.tokens_out) == pytest.approx(
            past[GOT].median(), rel=0.01
        )
        # the generator's 440 in flight are no batch
        assert fit.slots < 0.6 * (past[GOT] * past[LATENCY]).median()
        counted = 1000 * mine["successes.latency.time_per_output_token.mean"].iloc[0]
        # that column is about half the decode time
        assert 1.9 < fit.curve.tpot_ms[0] / counted < 2.2
        assert (
            cv._expected_latency_s(fit.curve, past[ASKED].max(), fit.tokens_in, fit.tokens_out)
            == inf
        )


def test_published_profiles():
    path = real("splitwise_perf_model.csv")
    raw, fits = pd.read_csv(path), cv._fit_splitwise(path)
    assert len(fits) == len(raw.groupby(["model", "hardware", "tensor_parallel"]))
    for (model, hardware, tp), fit in fits.items():
        mine = raw[
            (raw.model == model)
            & (raw.hardware == hardware)
            & (raw.tensor_parallel == tp)
            & (raw.prompt_size == fit.curve.prompt_tok)
        ]
        median = mine.groupby("batch_size")[["prompt_time", "token_time"]].median()
        assert fit.curve.prefill(16, fit.curve.prompt_tok) == pytest.approx(median.prompt_time[16])
        assert (
            fit.curve.tpot(32) == pytest.approx(median.token_time.loc[:32].max())
            and 0 < fit.curve.fixed < 1
        )
        whole = (median.prompt_time >= 0.9 * median.prompt_time.cummax()).all()
        assert (max(fit.curve.batch) == median.index.max()) == whole == (not fit.notes)


# -- files nobody has seen -------------------------------------------------------------------------


def test_a_hand_made_load_test(tmp_path):
    "10 ms per token at any batch; full at 40 per second; the 2.8 s of waiting do not enter."
    fit = cv._fit_stages(put(tmp_path / "a.csv", stages()))["hand"]
    assert (
        fit.curve.tpot(2) == pytest.approx(10.0, rel=0.01)
        and fit.knee_rps == 20.0
        and fit.tokens_in == 500.0
    )
    assert fit.curve.tpot_ms[-1] == pytest.approx(12.0) and fit.slots == round(
        40 * (0.1 + 100 * 0.012)
    )
    assert max(fit.curve.ttft_ms) == pytest.approx(100.0) and fit.notes == ()


def test_other_order_marks_and_line_ends(tmp_path):
    frame = stages(extra="x")[[OUT, "extra", TTFT, GOT, IN, LATENCY, ASKED, "config"]]
    text = "\ufeff" + frame.to_csv(index=False).replace("\n", "\r\n") + "\r\n\r\n"
    (tmp_path / "b.csv").write_bytes(text.encode())
    assert cv.load_curves(tmp_path / "b.csv") == cv.load_curves(put(tmp_path / "a.csv", stages()))


def test_fewer_columns(tmp_path):
    fit = cv.load_curves(put(tmp_path / "few.csv", stages()[[ASKED, GOT, LATENCY, OUT]])).fits[
        "few"
    ]
    assert (
        fit.curve.ttft_ms == ()
        and fit.curve.tpot(2) == pytest.approx(11.0, rel=0.02)
        and len(fit.notes) == 2
    )
    (name,) = cv.load_curves(
        put(tmp_path / "p.csv", profile().drop(columns=["tensor_parallel", "token_size"]))
    )
    assert name == "m/g" and list(cv.load_curves(put(tmp_path / "q.csv", profile()))) == ["m/g/tp2"]


def test_no_stage_past_the_knee_is_said(tmp_path):
    fit = cv._fit_stages(put(tmp_path / "a.csv", stages().iloc[:3]))["hand"]
    assert "extrapolated" in fit.notes[0] and fit.slots is None
    assert cv._capacity_rps(fit.curve, 500, 100) > 20
    assert np.isfinite(cv._expected_latency_s(fit.curve, 20.0, 500, 100))


def test_queue_growing_without_a_limit_of_the_generator(tmp_path):
    """All 1000 were sent as asked, within 17 s, yet answers came in at 40 per second: no steady
    state.
    """
    frame = stages(
        **{
            GOT: [1.0, 10.0, 20.0, 60.0],
            LATENCY: [1.1, 1.1, 1.1, 5.3],
            TTFT: [0.1, 0.1, 0.1, 4.1],
            "successes.count": 1000.0,
        }
    )
    frame["successes.throughput.requests_per_sec"] = 1 / (
        1 / np.array([1.0, 10.0, 20.0, 40.0]) + np.array([1.1, 1.1, 1.1, 0.1]) / 1000
    )
    assert cv._fit_stages(put(tmp_path / "a.csv", frame))["hand"].knee_rps == 20.0


@pytest.mark.slow
@settings(max_examples=15, deadline=None)
@given(
    tpot=st.floats(5, 60), knee=st.floats(8, 100), sharp=st.floats(1.5, 4), ttft=st.floats(1, 10)
)
def test_a_fit_finds_the_curve_again(tmp_path_factory, tpot, knee, sharp, ttft):
    """Load tests made by the closed form from known curves: capacity within 3 %, latency between
    the stages within 8 %.
    """
    true = cv._synthetic_curve(tpot, knee, sharp, ttft * tpot, 500.0, 0.0)
    full = cv._capacity_rps(true, 500, 100)
    rates = full * np.array([0.02, 0.2, 0.4, 0.6, 0.8, 0.9])
    latency = [cv._expected_latency_s(true, r, 500, 100) for r in rates]
    first = [true.prefill(1 + r * x, 500) / 1000 for r, x in zip(rates, latency)]
    waits, tail = 3 * 4 * knee / full, true.tpot(4 * knee) / 10
    frame = (
        stages()
        .iloc[[0] * 7]
        .assign(
            **{
                ASKED: [*rates, 1.5 * full],
                GOT: [*rates, full],
                LATENCY: [*latency, waits],
                TTFT: [*first, waits - tail],
            }
        )
    )
    fit = cv._fit_stages(put(tmp_path_factory.mktemp("fit") / "a.csv", frame))["hand"]
    assert cv._capacity_rps(fit.curve, 500, 100) == pytest.approx(full, rel=0.03)
    for part in (0.1, 0.5, 0.7):
        assert cv._expected_latency_s(fit.curve, part * full, 500, 100) == pytest.approx(
            cv._expected_latency_s(true, part * full, 500, 100), rel=0.08
        )


# -- broken files ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "frame, words",
    [
        (stages().drop(columns=OUT), ["line 1", OUT, "stages"]),
        (stages(**{LATENCY: [1.1, "soon", 1.1, 4.0]}), ["line 3", LATENCY, "'soon'", "mend"]),
        (stages(**{GOT: [1.0, 10.0, None, 40.0]}), ["line 4", GOT, "mend"]),
        (stages(**{GOT: [1.0, -10.0, 20.0, 40.0]}), ["line 3", GOT, "-10", "mend"]),
        (stages(**{OUT: [100.0, 100.0, 100.0, inf]}), ["line 5", OUT, "inf"]),
        (stages(**{TTFT: [0.1, 0.1, 1.1, 2.8]}), ["line 4", TTFT, "mend"]),
        (stages(config=["hand", "", "hand", "hand"]), ["line 3", "config", "empty"]),
        (stages().iloc[:0], ["no rows"]),
        (stages(**{GOT: 0.5}), ["config 'hand'", "rates below 1"]),
        (profile().drop(columns="token_time"), ["line 1", "token_time", "splitwise"]),
        (profile().assign(batch_size=[1, 2, 0.5, 1]), ["line 4", "batch_size", "below 1"]),
        (profile().assign(prompt_time=0), ["line 2", "prompt_time", "mend"]),
        (pd.DataFrame({"a": [1]}), ["line 1", "no column", "layout"]),
    ],
)
def test_broken_files_name_the_place(tmp_path, frame, words):
    path = put(tmp_path / "broken.csv", frame)
    with pytest.raises(ValueError) as e:
        cv.load_curves(path)
    for word in [str(path), *words]:
        assert word in str(e.value)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00\x01\x02", b'a,b\n1,2,3,4\n1,"2\n'])
def test_files_that_are_no_tables(tmp_path, content):
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(ValueError, match="x.csv"):
        cv.load_curves(tmp_path / "x.csv")


def test_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere"):
        cv.load_curves(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="no CSV table of the layouts"):
        cv.load_curves(tmp_path)
    put(tmp_path / "a.csv", stages())
    put(tmp_path / "b.csv", profile())
    put(tmp_path / "c.csv", pd.DataFrame({"other": [1]}))
    assert list(cv.load_curves(tmp_path)) == ["hand", "m/g/tp2"]
    put(tmp_path / "d.csv", stages())
    assert list(cv.load_curves(tmp_path)) == ["hand", "m/g/tp2", "d:hand"]
    put(tmp_path / "e.csv", stages().drop(columns=OUT))
    with pytest.raises(ValueError, match="e.csv, line 1"):
        cv.load_curves(tmp_path)


# -- without a path --------------------------------------------------------------------------------


def test_default_says_whether_it_was_measured(tmp_path, monkeypatch):
    monkeypatch.delenv("ARCPOINT_DATA", raising=False)
    made = cv.load_curves()
    assert (
        not made.measured
        and "synthetic" in made.source
        and all(n.startswith("synthetic") for n in made)
    )
    monkeypatch.setenv("ARCPOINT_DATA", str(tmp_path))
    assert not cv.load_curves().measured
    (tmp_path / "serving").mkdir()
    put(tmp_path / "serving" / "a.csv", stages())
    found = cv.load_curves()
    assert found.measured and "a.csv" in found.source and list(found) == ["hand"]
    assert isinstance(found["hand"], ServiceCurve) and found.fits["hand"].curve == found["hand"]


def test_curves_travel_to_other_processes():
    from joblib import Parallel, delayed

    made = cv.synthetic_curves()
    (back,) = Parallel(n_jobs=2)([delayed(dict)(made)])
    assert back == dict(made)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(tpot_ms=0),
        dict(knee=0.5),
        dict(sharp=-1),
        dict(ttft_ms=-1),
        dict(fixed=2),
        dict(prompt_tok=float("nan")),
    ],
)
def test_synthetic_parameters(wrong):
    with pytest.raises(ValueError, match="must be"):
        cv._synthetic_curve(**wrong)
