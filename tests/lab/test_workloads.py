"""Workloads: rates and bursts come out as asked, replays keep every request, a seed names one
workload, bad files say why.
"""

import json
import os
import tracemalloc
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.lab import workloads as wl
from arcpoint_ce.lab.workloads import (
    Lengths,
    Tokens,
    Workload,
    _concat,
    _merge,
    _Observed,
    _poisson_stream,
    load_workload,
    poisson,
)
from arcpoint_ce.telemetry import traces as tr

DATA = os.environ.get("ARCPOINT_DATA")
SHORT = Tokens(Lengths(10.0, 0.0), Lengths(5.0, 0.0))


def real(name):
    "Path of a public file, or a skip that says why."
    if not DATA:
        pytest.skip("ARCPOINT_DATA is not set: the public traces are not here")
    path = Path(DATA) / tr.REGISTRY[name]["local"]
    if not path.is_file():
        pytest.skip(f"{path} is missing (see fetch({name!r}))")
    return path


def plain(at_s, tokens_in=None, tiers=("standard",), tier=None):
    "A workload with given times, everything else constant."
    n = len(at_s)
    return Workload(
        at_s,
        np.arange(n) if tokens_in is None else tokens_in,
        np.ones(n),
        np.full(n, 9.0),
        np.zeros(n, int) if tier is None else tier,
        tiers,
    )


# -- the value -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "change,words",
    [
        (dict(at_s=[0.0, np.nan]), r"at_s\[1\] is nan"),
        (dict(at_s=[-1.0, 0.0]), r"at_s\[0\] is -1.0"),
        (dict(at_s=[1.0, 0.5]), r"at_s\[1\] = 0.5 comes after 1.0"),
        (dict(tokens_out=[1.0, np.inf]), r"tokens_out\[1\]"),
        (dict(slo_s=[0.0, 1.0]), r"slo_s\[0\] is 0.0"),
        (dict(slo_s=[1.0, np.nan]), r"slo_s\[1\] is nan"),
        (dict(tier=[0, 1]), r"tier\[1\] is 1: it must be an index"),
        (dict(tier=[0, -1]), r"tier\[1\]"),
        (dict(tier=[0.0, 1.0]), "whole numbers"),
        (dict(tokens_in=[1.0]), "one length"),
        (dict(tokens_in=["a", "b"]), "must hold numbers"),
        (dict(tokens_in=[[1, 2]]), "one-dimensional"),
        (dict(tiers=()), "distinct names"),
        (dict(tiers=("a", "a")), "distinct names"),
    ],
)
def test_a_workload_that_makes_no_sense_is_refused(change, words):
    with pytest.raises(ValueError, match=words):
        replace(plain([0.0, 1.0]), **change)


def test_a_workload_cannot_be_changed_and_leaves_its_source_alone():
    at_s = np.array([0.0, 1.0])
    w = plain(at_s)
    with pytest.raises(FrozenInstanceError):
        w.at_s = at_s
    with pytest.raises(ValueError, match="read-only"):
        w.at_s[0] = 5.0
    at_s[1] = 2.0  # the caller's own array stays its own
    assert (
        w.at_s[1] == 1.0
        and replace(w) == w
        and w[1:].at_s.base is not None
        and w.tier.dtype == np.int64
        and w.at_s.dtype == np.float64
    )
    with pytest.raises(TypeError):
        hash(w)


def test_slices_masks_chunks_and_the_empty_workload():
    w = poisson(5.0, 1000, 1)
    short = w.tokens_out < 100
    assert (
        w[short].tokens_out.max() < 100
        and len(w[short]) == short.sum()
        and w[10:20] == w.head(20)[10:]
    )
    assert _concat(w.chunks(77)) == w and len(list(w.chunks(77))) == 13
    none = w.head(0)
    assert (
        len(none) == 0
        and none.span_s == 0
        and np.isnan(none.rate_rps)
        and "requests 0" in repr(none)
        and _concat(none, w) == w
    )
    with pytest.raises(ValueError, match="at_s"):
        w[np.array([5, 3])]


def test_the_summary_tells_number_span_rate_tokens_and_tiers():
    w = poisson(4.0, 10_000, 3, SHORT, {"gold <b>": 0.25, "free": 0.75}).with_slo(2.5, 40.0)
    for text in (repr(w), w._repr_html_()):
        for word in (
            "10,000",
            "rps",
            "gap CV",
            "10 ± 0 tok",
            "5 ± 0 tok",
            "0.5 s",
            "free",
            "Poisson 4 rps",
        ):
            assert word in text
    assert "gold &lt;b&gt;" in w._repr_html_() and "<b>" not in w._repr_html_().replace("</b>", "")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 10**9).map(lambda ms: ms / 1000), min_size=2, max_size=40)
    .map(sorted)
    .filter(lambda x: x[-1] > x[0]),
    st.floats(1e-3, 1e4),
)
def test_scaling_gives_the_rate_and_keeps_proportions(at_s, rate):
    w = plain(at_s)
    s = w.scaled(rate)
    assert s.rate_rps == pytest.approx(rate, rel=1e-9) and (s.tokens_in == w.tokens_in).all()
    assert np.allclose(s.at_s * w.span_s, w.at_s * s.span_s, rtol=1e-9, atol=0)


times = st.lists(st.integers(0, 20).map(float), max_size=15).map(sorted)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(
        st.tuples(times, st.sampled_from([("a",), ("b", "a"), ("c", "b")])), min_size=1, max_size=4
    ),
    st.randoms(use_true_random=False),
)
def test_merging_loses_nothing_and_is_stable(specs, dice):
    "Compared with a stable sort of the rows as plain tuples."
    parts, k = [], 0
    for at_s, tiers in specs:
        n = len(at_s)
        parts.append(
            plain(
                at_s,
                np.arange(k, k + n),
                tiers,
                np.array([dice.randrange(len(tiers)) for _ in range(n)], int),
            )
        )
        k += n
    m = _merge(*parts)
    rows = sorted(
        ((t, i, p.tiers[c]) for p in parts for t, i, c in zip(p.at_s, p.tokens_in, p.tier)),
        key=lambda r: r[0],
    )
    assert [(t, i, m.tiers[c]) for t, i, c in zip(m.at_s, m.tokens_in, m.tier)] == rows


def test_joining_nothing_and_joining_backwards_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        _merge()
    with pytest.raises(ValueError, match="or `merge`"):
        _concat(plain([5.0]), plain([1.0]))


def test_the_rule_of_limits():
    w = poisson(5.0, 500, 1, tiers={"a": 0.5, "b": 0.5}).with_slo({"a": 2.0, "b": 10.0}, 40.0, 0.5)
    by_hand = [
        (2.0, 10.0)[t] * (o * 40.0 + 0.5 * i) / 1000
        for t, o, i in zip(w.tier, w.tokens_out, w.tokens_in)
    ]
    assert np.allclose(w.slo_s, by_hand) and wl.with_slo(w, 3.0, 10.0).slo_s == pytest.approx(
        3.0 * w.tokens_out * 0.01
    )
    assert (wl.with_slo(replace(w, tokens_out=np.zeros(500))).slo_s > 0).all()
    for bad in (
        dict(slack=0.0),
        dict(slack={"a": 1.0}),
        dict(ref_tpot_ms=-1.0),
        dict(ref_prefill_ms_per_tok=np.nan),
    ):
        with pytest.raises(ValueError):
            w.with_slo(**bad)


# -- laws ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("law", ["lognormal", "gamma"])
@pytest.mark.parametrize("mean,cv", [(200.0, 0.5), (1000.0, 2.0), (30.0, 1.0)])
def test_lengths_have_the_mean_and_cv_asked_for(law, mean, cv):
    x = Lengths(mean, cv, law, whole=False).draw(400_000, np.random.default_rng(5))
    assert (
        x.mean() == pytest.approx(mean, rel=0.015)
        and x.std() / x.mean() == pytest.approx(cv, rel=0.04)
        and x.min() >= 0
    )


def test_a_gamma_law_of_cv_one_is_the_exponential():
    x = Lengths(10.0, 1.0, "gamma", whole=False).draw(100_000, np.random.default_rng(1))
    for q in (0.1, 0.5, 0.9, 0.99):
        assert np.quantile(x, q) == pytest.approx(-10 * np.log(1 - q), rel=0.03)


def test_observed_pairs_stay_pairs():
    base = replace(plain([0.0, 1.0, 2.0]), tokens_in=[1, 2, 3], tokens_out=[10, 20, 30])
    w = poisson(1.0, 9000, 4, _Observed(base))
    assert (w.tokens_out == 10 * w.tokens_in).all() and np.allclose(
        np.bincount(w.tokens_in.astype(int))[1:] / 9000, 1 / 3, atol=0.02
    )


def test_tiers_are_drawn_by_their_shares():
    w = poisson(1.0, 50_000, 8, SHORT, {"a": 1, "b": 0, "c": 3})
    assert np.allclose(
        np.bincount(w.tier, minlength=3) / len(w), [0.25, 0.0, 0.75], atol=0.01
    ) and w.tiers == ("a", "b", "c")
    for bad in ({}, {"a": -1.0, "b": 2.0}, {"a": 0.0}, {"a": np.nan}):
        with pytest.raises(ValueError, match="tiers must map"):
            poisson(1.0, 5, tiers=bad)


# -- processes -------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 600), st.integers(1, 700), st.integers(0, 2**40), st.floats(0.01, 1e4))
def test_a_stream_is_the_same_whatever_the_chunk(n, chunk, seed, rate):
    parts = list(_poisson_stream(rate, n, seed, chunk, tiers={"a": 0.5, "b": 0.5}))
    assert _concat(parts) == poisson(rate, n, seed, tiers={"a": 0.5, "b": 0.5}) and {
        len(p) for p in parts[:-1]
    } <= {chunk}


def test_a_long_stream_needs_no_more_memory_than_a_short_one():
    def peak(n):
        tracemalloc.start()
        for _ in _poisson_stream(100.0, n, chunk=1000):
            pass
        out = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return out

    peak(2000)
    assert peak(200_000) < 1.3 * peak(5_000)


def test_poisson_is_poisson():
    "Rate, exponential gaps (Kolmogorov-Smirnov), counts whose variance is their mean."
    w = poisson(20.0, 200_000, 6, SHORT)
    gaps = np.sort(np.diff(w.at_s))
    n = len(gaps)
    assert w.rate_rps == pytest.approx(20.0, rel=0.01) and w.gap_cv == pytest.approx(1.0, abs=0.01)
    assert np.abs(1 - np.exp(-20 * gaps) - (np.arange(n) + 0.5) / n).max() < 1.63 / n**0.5
    counts = np.histogram(w.at_s, np.arange(0, w.at_s[-1], 5.0))[0]
    assert counts.var() / counts.mean() == pytest.approx(1.0, abs=0.1)


def test_a_seed_names_one_workload_and_its_parts_are_independent():
    makers = [
        lambda s, t: poisson(3.0, 400, s, t),
        lambda s, t: wl.from_profile([1.0, 9.0], 400, s, 10.0, tokens=t),
        lambda s, t: wl._bursty(3.0, 4.0, 400, s, tokens=t),
        lambda s, t: wl._from_exercise(3.0, 400, s, True, 5.0, tokens=t),
    ]
    for make in makers:
        a, b, c = make(7, Tokens()), make(7, Tokens()), make(8, Tokens())
        assert (
            a == b != c
            and not np.array_equal(a.at_s, c.at_s)
            and not np.array_equal(a.tokens_out, c.tokens_out)
        )
        assert np.array_equal(make(7, SHORT).at_s, a.at_s) and np.array_equal(
            make(7, Tokens(Lengths(9.0), Lengths(200.0, 0.8))).tokens_out, a.tokens_out
        )
    for bad in (-1, 1.5, True, None):
        with pytest.raises(ValueError, match="seed must be"):
            poisson(1.0, 5, bad)


def test_gaps_prompts_answers_and_tiers_do_not_depend_on_each_other():
    law = Lengths(100.0, 1.0, "gamma", whole=False)
    w = poisson(1.0, 40_000, 9, Tokens(law, law), {"a": 0.5, "b": 0.5})
    corr = np.corrcoef([np.diff(w.at_s, prepend=0.0), w.tokens_in, w.tokens_out, w.tier])
    assert np.abs(corr - np.eye(4)).max() < 0.02


def test_a_shorter_workload_is_the_head_of_a_longer_one():
    for make in (
        lambda n: poisson(3.0, n, 1),
        lambda n: wl._bursty([1.0, 5.0], 2.0, n, 1, step_s=7.0),
    ):
        assert make(900).head(100) == make(100)


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5, 6.0])
def test_bursts_have_the_cv_and_the_rate_asked_for(cv):
    runs = [wl._bursty(50.0, cv, 100_000, s, tokens=SHORT) for s in range(4)]
    assert np.mean([w.gap_cv for w in runs]) == pytest.approx(cv, rel=0.05) and np.mean(
        [w.rate_rps for w in runs]
    ) == pytest.approx(50.0, rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("cv", [0.5, 1.0, 4.0])
def test_a_renewal_process_does_not_start_with_a_rush(cv):
    """Expected counts are right from the first second on (an ordinary gamma process of CV 4 would
    have 7.5 too many).
    """
    first = np.mean(
        [len(wl.from_profile([20.0], None, s, 0.25, cv=cv, tokens=SHORT)) for s in range(6000)]
    )
    assert first == pytest.approx(5.0, abs=0.1 * max(cv, 1) ** 1.5)


def test_a_profile_is_followed_step_by_step():
    rates = np.array([5.0, 0.0, 20.0, 1.0, 40.0])
    w = wl.from_profile(rates, 300_000, 2, 30.0, tokens=SHORT)
    phase = w.at_s[w.at_s < 150 * int(w.at_s[-1] // 150)] % 150
    per = np.histogram(phase, np.arange(6) * 30.0)[0]
    assert per[1] == 0 and per / per.sum() == pytest.approx(
        rates / rates.sum(), rel=0.03, abs=1e-12
    )
    one = wl.from_profile(rates * 50, None, 2, 30.0, tokens=SHORT)
    assert one.at_s[-1] < 150 and len(one) == pytest.approx(
        66 * 30 * 50, abs=5 * (66 * 30 * 50) ** 0.5
    )


def test_a_function_is_a_profile_too():
    def wave(t):
        return 30.0 + 25.0 * np.sin(2 * np.pi * t / 400)

    w = wl.from_profile(wave, 200_000, 3, 2.0, span_s=400.0, rate_rps=12.0, tokens=SHORT)
    assert w.rate_rps == pytest.approx(12.0, rel=0.02)
    per = np.histogram(w.at_s % 400, np.arange(0, 401, 50.0))[0]
    due = wave(np.arange(0, 400, 0.5)).reshape(8, -1).mean(1)
    assert per / per.mean() == pytest.approx(due / due.mean(), rel=0.04)


@pytest.mark.parametrize(
    "call,words",
    [
        (lambda: wl.from_profile([1.0, np.nan]), "step 1"),
        (lambda: wl.from_profile([0.0, 0.0]), "nothing would ever arrive"),
        (lambda: wl.from_profile([]), "one rate per step"),
        (lambda: wl.from_profile(np.sin, 5), "needs span_s"),
        (lambda: wl.from_profile([1.0], 5, step_s=0.0), "step_s"),
        (lambda: wl.from_profile([1.0, 2.0], 5, span_s=9.0), "do not fill"),
        (lambda: wl._bursty(1.0, 0.0, 5), "cv must be"),
        (lambda: wl._bursty(1.0, 2.0, 0), "n must be"),
        (lambda: poisson(-1.0, 5), "rate_rps"),
        (lambda: poisson(1.0, 5.5), "n must be"),
        (lambda: _poisson_stream(1.0, 5, chunk=0), "chunk must be"),
        (lambda: wl._from_exercise(0.0, 5), "rate_rps"),
        (lambda: Lengths(0.0), "mean_tok"),
        (lambda: Lengths(1.0, -1.0), "cv must be"),
        (lambda: Lengths(1.0, 1.0, most_tok=0.0), "most_tok"),
        (lambda: plain([1.0, 1.0]).scaled(2.0), "no rate to scale"),
        (lambda: plain([1.0, 2.0]).scaled(np.inf), "rate_rps"),
    ],
)
def test_parameters_that_make_no_sense_are_named(call, words):
    with pytest.raises(ValueError, match=words):
        call()


@pytest.mark.parametrize("memoryless", [False, True])
def test_the_exercise_as_a_source_follows_its_load(memoryless):
    w = wl._from_exercise(200.0, 200_000, 5, memoryless, 2.0, tokens=SHORT)
    load = tr.exercise(1100, 5, memoryless=memoryless).load.to_numpy()[:490]
    per = np.histogram(w.at_s, np.arange(491) * 2.0)[0]
    assert np.corrcoef(per, load)[0, 1] > 0.98 and w.rate_rps == pytest.approx(200.0, rel=0.01)


# -- replays ---------------------------------------------------------------------------------------


def test_azure_replay_keeps_every_request():
    path = real("azure_conv_2023")
    w = load_workload(path)
    lines = path.read_text().strip().split("\n")[1:]
    assert (
        len(w) == len(lines) == 19_366
        and list(w.tokens_in) == [int(x.split(",")[1]) for x in lines]
        and list(w.tokens_out) == [int(x.split(",")[2]) for x in lines]
    )
    stamps = pd.to_datetime([x.split(",")[0] for x in lines])
    by_hand = (stamps - stamps[0]) / pd.Timedelta(seconds=1)
    assert (
        np.allclose(w.at_s, by_hand, atol=2e-6)
        and w.at_s[0] == 0
        and w.gap_cv == pytest.approx(1.094, abs=0.001)
    )
    fast = wl.replay(path, rate_rps=50.0)
    assert (
        fast.rate_rps == pytest.approx(50.0)
        and fast.gap_cv == pytest.approx(w.gap_cv)
        and fast.tokens_in.sum() == w.tokens_in.sum()
    )
    assert wl.replay("azure_conv_2023") == w


def test_mooncake_replay_keeps_every_request_and_its_batches():
    path = real("mooncake_conversation")
    w = load_workload(path)
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    assert (
        len(w) == len(rows) == 12_031
        and w.tokens_in.sum() == sum(r["input_length"] for r in rows)
        and w.tokens_out.sum() == sum(r["output_length"] for r in rows)
    )
    assert (np.diff(w.at_s) == 0).sum() == sum(
        a["timestamp"] == b["timestamp"] for a, b in zip(rows, rows[1:])
    )


@pytest.mark.slow
@pytest.mark.parametrize("start", [0, 700])
def test_a_replay_repeats_whole_passes(start):
    path = real("mooncake_conversation")
    m = 12_031
    once = wl.replay(path)
    more = wl.replay(path, 2 * m + 5, start=start)
    assert (
        len(more) == 2 * m + 5
        and (np.bincount(np.concatenate([np.arange(start, start + 2 * m + 5) % m])) >= 2).all()
    )
    assert np.array_equal(more.tokens_in[m : 2 * m], more.tokens_in[:m]) and np.array_equal(
        np.sort(more.tokens_in[:m]), np.sort(once.tokens_in)
    )
    assert (
        np.allclose(more.at_s[m : 2 * m] - more.at_s[:m], once.span_s * m / (m - 1))
        and more.at_s[0] == 0
    )
    assert (
        f"repeated: {2 * m + 5} asked, {m} in the file" in more.about
        and "repeated" not in once.about
    )
    assert more.rate_rps == pytest.approx(once.rate_rps, rel=0.01)


def test_seeds_meet_different_parts_of_a_trace():
    path = real("azure_conv_2023")
    runs = [load_workload(path, 2000, 15.0, s) for s in range(6)]
    assert (
        len({w.tokens_in.sum() for w in runs}) == 6
        and all(w.rate_rps == pytest.approx(15.0) for w in runs)
        and runs[3] == load_workload(path, 2000, 15.0, 3)
    )


# -- measured rates --------------------------------------------------------------------------------


def table(path, rows, head="start_s,total_rate_rps,active_clients,clientA_rps,clientA_cv"):
    path.write_text(head + "\n" + "\n".join(",".join(map(str, r)) for r in rows) + "\n")
    return path


def test_servegen_rates_come_out_as_measured():
    """Recorded rates, no scaling: each of the first windows within five sigma, and exactly n
    requests.
    """
    path = real("servegen_m_large_10min")
    d = tr.load_rates(path)
    n = int(d.rate_rps[:4].sum() * 600)
    w = wl._from_servegen(path, n, 1, tokens=SHORT)
    per = np.histogram(w.at_s, np.arange(5) * 600.0)[0]
    due = d.rate_rps[:4].to_numpy() * 600
    assert len(w) == n and 2399 < w.at_s[-1] <= 2400 and (np.abs(per - due) < 5 * due**0.5).all()


def test_servegen_scaled_days_keep_their_shape():
    "Fourteen days run through in 20,000 requests: counts per half day as in the file."
    path = real("servegen_m_large_10min")
    d = tr.load_rates(path)
    w = wl._from_servegen(path, 20_000, 2, rate_rps=10.0, speed=14 * 86400 / 2000, tokens=SHORT)
    per = np.histogram(w.at_s, np.linspace(0, 2000, 29))[0]
    due = d.rate_rps.to_numpy().reshape(28, 72).sum(1)
    assert (
        len(w) == 20_000
        and w.rate_rps == pytest.approx(10.0, rel=0.005)
        and (np.abs(per - due / due.sum() * 20_000) < 5 * per**0.5).all()
    )


@pytest.mark.parametrize("cv", [0.4, 1.0, 2.1, 5.0])
def test_a_client_alone_has_its_measured_cv(tmp_path, cv):
    path = table(tmp_path / "r.csv", [(600 * i, 50.0, 9, 50.0, cv) for i in range(4)])
    assert np.mean(
        [wl._from_servegen(path, 120_000, s, tokens=SHORT).gap_cv for s in range(3)]
    ) == pytest.approx(cv, rel=0.06)


def test_the_real_file_is_burstier_than_poisson_where_its_clients_are():
    path = real("servegen_m_large_10min")
    d = tr.load_rates(path)
    clients = [c for c in d if c.endswith("_cv")]
    calm = d.assign(**{c: 1.0 for c in clients})
    i = int((d.client61_rps / d.rate_rps * (d.client61_cv > 2)).argmax())
    start = float(d.start_s[i])
    rough, smooth = (
        wl._from_servegen(x, 60_000, 4, start_s=start, tokens=SHORT) for x in (d, calm)
    )
    assert smooth.gap_cv == pytest.approx(1.0, abs=0.03) and rough.gap_cv > 1.2


def test_parts_of_windows_repeats_and_starts(tmp_path):
    path = table(
        tmp_path / "r.csv", [(100, 1, 1, 0, 0), (400, 4, 1, 4, 0), (700, 0, 1, 0, 0)]
    )  # edges 0, 300, 600, 900
    # 3000 s of it
    w = wl._from_servegen(path, 30_000, 1, rate_rps=10.0, start_s=450.0, tokens=SHORT)
    per = np.histogram((w.at_s + 450) % 900, [0, 300, 600, 900])[0]
    assert per[2] == 0 and per[0] / per[1] == pytest.approx(
        3 * 300 * 1 / ((150 + 3 * 300) * 4), rel=0.05
    )  # up to 3450 = 3 x 900 + 750
    assert "repeated 4 times" in w.about
    assert (
        "repeated 5 times"
        in wl._from_servegen(path, 300, 1, rate_rps=0.1, start_s=800.0, tokens=SHORT).about
    )  # 3800 of 900
    # recorded rates, mean 5/3 rps
    fast = wl._from_servegen(path, 20_000, 1, speed=30.0, tokens=SHORT)
    assert fast.rate_rps == pytest.approx(5 / 3, rel=0.01)
    starts = [load_workload(path, 50, 1.0, s) for s in range(30)]
    assert len({w.about for w in starts}) == 30 and all(len(w) == 50 for w in starts)


@pytest.mark.parametrize(
    "rows,words",
    [
        ([(0, 1, 1, 0, 0)], "two or more"),
        ([(0, 1, 1, 0, 0), (0, 1, 1, 0, 0)], "line 3, column start_s"),
        ([(0, 1, 1, 0, 0), (5, 1, 1, 3, 1)], "line 3, column total_rate_rps"),
        ([(0, 0, 1, 0, 0), (5, 0, 1, 0, 0)], "all rates are 0"),
        ([(0, 1, 1, 0, 0), (5, -2, 1, 0, 0)], "line 3, column total_rate_rps"),
        ([(0, 1, 1, 0, 0), (5, "x", 1, 0, 0)], "line 3, column total_rate_rps"),
    ],
)
def test_bad_tables_of_rates_name_line_and_column(tmp_path, rows, words):
    path = table(tmp_path / "r.csv", rows)
    with pytest.raises(ValueError, match=words) as e:
        load_workload(path, 10, 1.0)
    assert "r.csv" in str(e.value)


def test_starts_outside_the_file_are_refused(tmp_path):
    path = table(tmp_path / "r.csv", [(0, 1, 1, 0, 0), (5, 0, 1, 0, 0)])
    for bad in (-1.0, 10.0, np.nan):
        with pytest.raises(ValueError, match="start_s must be"):
            wl._from_servegen(path, 5, start_s=bad)
    with pytest.raises(ValueError, match="choose another start"):
        wl._from_servegen(path, 2, rate_rps=1.0, start_s=6.0)


# -- any file --------------------------------------------------------------------------------------

GOOD = {
    "a.csv": "TIMESTAMP,ContextTokens,GeneratedTokens\n"
    "2024-05-10 00:00:01.5+00:00,1,2\n"
    "2024-05-10 02:00:00+02:00,5,6\n",
    "m.txt": '{"timestamp": 27482, "input_length": 9, "output_length": 2, "hash_ids": [0]}\n'
    '{"timestamp": 30535, "input_length": 3, "output_length": 4, "hash_ids": []}\n',
    "b.csv": "Timestamp,Session ID,Elapsed time,Model,Request tokens,"
    "Response tokens,Total tokens,Log Type\n"
    "5,7,1.5,ChatGPT,9,0,9,Conversation log\n"
    "7.5,,0.5,GPT-4,1,2,3,API log\n",
    "s.csv": "start_s,total_rate_rps,active_clients,client3_rps,client3_cv,client9_rps,client9_cv\n"
    "0,2,5,1,3,0.5,1\n"
    "60,4,5,1,2,0,0\n"
    "120,3,2,0,0,3,0\n",
}


@pytest.mark.parametrize("name", sorted(GOOD))
def test_every_layout_loads_whatever_the_file_is_called(tmp_path, name):
    path = tmp_path / name
    path.write_text(GOOD[name])
    w = load_workload(path, 5000, 7.0, 3, SHORT, {"x": 0.5, "y": 0.5})
    assert (
        len(w) == 5000
        and w.rate_rps == pytest.approx(7.0, rel=0.02)
        and w.tiers == ("x", "y")
        and w == load_workload(path, 5000, 7.0, 3, SHORT, {"x": 0.5, "y": 0.5})
    )
    assert (w.with_slo().slo_s > 0).all() and name in w.about
    if name != "s.csv":
        assert len(load_workload(path)) == 2 and load_workload(path).at_s[0] == 0


@pytest.mark.parametrize(
    "text,words",
    [
        (b"", "line 1 fits no known trace format"),
        (b"a,b\n1,2\n", "'a,b'"),
        (b"\x89PNG\r\n\xff\xfe", "no known trace format"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n", "no requests"),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\nsoon,1,2\n", "line 2, column TIMESTAMP"),
        (
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01,1,2\n2024-01-01,1\n",
            "line 3, column GeneratedTokens",
        ),
        (
            b"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01,1,2\n2024-01-01,1,\xff\n",
            "not a whole number of tokens",
        ),
        (
            b'{"timestamp": 0, "input_length": 1, "output_length": 2}\n{"timestamp": 1, "inp\n',
            "line 2, column timestamp",
        ),
        (
            b"Timestamp,Model,Request tokens,Response tokens\n5,x,1,nan\n",
            "line 2, column Response tokens",
        ),
        (b"TIMESTAMP,ContextTokens,GeneratedTokens\n2024-01-01,1,2\n", "no rate to scale"),
    ],
)
def test_bad_files_say_why(tmp_path, text, words):
    path = tmp_path / "x.csv"
    path.write_bytes(text)
    with pytest.raises(ValueError, match=words):
        load_workload(path, 10, 1.0)


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "gone.csv", tmp_path):
        with pytest.raises(
            FileNotFoundError, match="give an arrival file or one of azure_conv_2023"
        ):
            load_workload(path, 10)


def test_replay_sets_bad_rows_aside_only_when_told(tmp_path):
    path = tmp_path / "b.csv"
    path.write_text(GOOD["b.csv"] + "9,,1,GPT-4,-1,2,3,API log\n")
    with pytest.raises(ValueError, match="line 4, column Request tokens"):
        wl.replay(path)
    assert len(wl.replay(path, max_bad=0.5)) == 2
