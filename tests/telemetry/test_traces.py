"Traces and generators: real files, checksums, formulas, and the shipped sample."

import gzip
import hashlib
import json
import os
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import duckdb
import numpy as np
import pandas as pd
import pooch
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.telemetry import traces as tr
from arcpoint_ce.telemetry.requests import load_requests
from arcpoint_ce.telemetry.series import load_telemetry

DATA = os.environ.get("ARCPOINT_DATA")


def real(name):
    "Path of a public file, or a skip that says why."
    if not DATA:
        pytest.skip("ARCPOINT_DATA is not set: the public traces are not here")
    path = Path(DATA) / tr.REGISTRY[name]["local"]
    if not path.is_file():
        pytest.skip(f"{path} is missing (see fetch({name!r}))")
    return path


# -- public files ----------------------------------------------------------------------------------


def test_azure_file():
    "Counts and spans as the publisher states them; nothing lost, nothing moved."
    path = real("azure_conv_2023")
    d = tr.load_arrivals(path)
    lines = path.read_text().strip().split("\n")[1:]
    assert len(d) == len(lines) == 19_366 and d.attrs["bad"] == [] and d.attrs["format"] == "azure"
    assert d.tokens_in.sum() == sum(int(x.split(",")[1]) for x in lines)
    assert d.tokens_out.sum() == sum(int(x.split(",")[2]) for x in lines)
    assert (
        d.ts_s.iloc[0] == 0
        and d.ts_s.is_monotonic_increasing
        and 58 * 60 < d.ts_s.iloc[-1] < 59 * 60
    )
    assert abs(d.attrs["epoch_s"] - pd.Timestamp("2023-11-16T18:15:46.680590Z").timestamp()) < 1e-5


def test_mooncake_file():
    path = real("mooncake_conversation")
    d = tr.load_arrivals(path)
    rows = [json.loads(x) for x in path.read_text().splitlines()]
    assert len(d) == len(rows) == 12_031 and d.attrs["format"] == "mooncake"
    assert d.tokens_in.sum() == sum(r["input_length"] for r in rows)
    assert d.ts_s.iloc[-1] == max(r["timestamp"] for r in rows) / 1000
    assert sum(map(len, d.hash_ids)) == sum(len(r["hash_ids"]) for r in rows)


def test_servegen_file():
    path = real("servegen_m_large_10min")
    d = tr.load_rates(path)
    assert len(d) == 14 * 144 and (d.start_s.diff().dropna() == 600).all()
    assert d.rate_rps.iloc[0] == 212.78 and d.active_clients.iloc[0] == 43 and "client61_cv" in d
    with pytest.raises(ValueError, match="load_rates"):
        tr.load_arrivals(path)
    drawn = tr._draw_arrivals(d.iloc[:12], seed=0, scale=0.1)
    assert abs(len(drawn) / (d.rate_rps.iloc[:12].sum() * 60) - 1) < 0.03


@pytest.mark.parametrize("name", sorted(tr.REGISTRY))
def test_local_copies_are_the_registered_bytes(name):
    path = real(name)
    assert (
        tr.fetch(name) == path
        and pooch.file_hash(str(path), alg="sha256") == tr.REGISTRY[name]["sha256"]
    )


def test_a_name_loads_like_its_path():
    path = real("azure_conv_2023")
    assert tr.load_arrivals("azure_conv_2023").equals(tr.load_arrivals(path))


# -- formats in small ------------------------------------------------------------------------------

BURST = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def test_later_formats_of_the_publishers(tmp_path):
    """Azure 2024 writes zones; BurstGPT v2 adds a session and the elapsed time, and failures have
    no answer.
    """
    a, b = tmp_path / "a.csv", tmp_path / "b.csv"
    a.write_text(
        "TIMESTAMP,ContextTokens,GeneratedTokens\n"
        "2024-05-10 02:00:00+02:00,5,6\n"
        "2024-05-10 00:00:01.5+00:00,1,2\n"
    )
    assert list(tr.load_arrivals(a).ts_s) == [0.0, 1.5]
    b.write_text(
        "Timestamp,Session ID,Elapsed time,Model,"
        "Request tokens,Response tokens,Total tokens,Log Type\n"
        "5.25,7,1.5,ChatGPT,9,0,9,Conversation log\n9,,0.5,GPT-4,1,2,3,API log\n"
    )
    d = tr.load_arrivals(b)
    assert (
        list(d.elapsed_s) == [1.5, 0.5]
        and list(d.tokens_out) == [0, 2]
        and list(d.ts_s) == [5.25, 9.0]
    )


@pytest.mark.parametrize(
    "row,column,reason",
    [
        ("-1,GPT-4,1,1,2,API log", "Timestamp", "not a time"),
        ("nan,GPT-4,1,1,2,API log", "Timestamp", "not a time"),
        ("inf,GPT-4,1,1,2,API log", "Timestamp", "not a time"),
        ("7,GPT-4,1.5,1,2,API log", "Request tokens", "whole number"),
        ("7,GPT-4,1,-1,2,API log", "Response tokens", "whole number"),
        ("7,GPT-4,1,,2,API log", "Response tokens", "missing"),
        ("7,GPT-4,1,1e999,2,API log", "Response tokens", "whole number"),
        ("", "Timestamp", "missing"),
    ],
)
def test_bad_rows_name_file_line_column_and_reason(tmp_path, row, column, reason):
    path = tmp_path / "b.csv"
    path.write_text(f"{BURST}5,ChatGPT,1,1,2,API log\n{row}\n9,ChatGPT,1,1,2,API log\n")
    with pytest.raises(ValueError) as e:
        tr.load_arrivals(path)
    for word in (str(path), "line 3", column, reason, "max_bad"):
        assert word in str(e.value)
    kept = tr.load_arrivals(path, max_bad=0.5)
    assert list(kept.ts_s) == [5.0, 9.0] and {b["line"] for b in kept.attrs["bad"]} == {3}


def test_broken_json_and_missing_columns(tmp_path):
    j, c = tmp_path / "m.jsonl", tmp_path / "c.csv"
    j.write_text(
        '{"timestamp": 1, "input_length": 1, "output_length": 2, "hash_ids": []}\n'
        '{"timestamp": 2, "inp\n'
    )
    with pytest.raises(ValueError, match="line 2, column timestamp: the line is no JSON object"):
        tr.load_arrivals(j)
    c.write_text("TIMESTAMP,ContextTokens\n2023-11-16 18:15:46,1\n")
    with pytest.raises(ValueError, match="GeneratedTokens"):
        tr.load_arrivals(c, format="azure")
    with pytest.raises(ValueError, match="unknown"):
        tr.load_arrivals(c, format="azur")


# -- units of times --------------------------------------------------------------------------------


def moon(times, **more):
    "A trace in Mooncake's layout."
    rows = [dict(timestamp=t, input_length=100, output_length=20, **more) for t in times]
    return "\n".join(map(json.dumps, rows)) + "\n"


def blis(times):
    rows = "".join(f"r{k},s,standard,100,20,{t},ok\n" for k, t in enumerate(times))
    return (
        "request_id,session_id,slo_class,input_tokens,output_tokens,arrival_time_us,status\n" + rows
    )


def burst(times):
    return BURST + "".join(f"{t},ChatGPT,100,20,120,API log\n" for t in times)


IN_DOUBT = {
    "fractions of a second": (
        moon([0.2 * k for k in range(50)]),
        "mooncake has ms.*fractions",
        "s",
    ),
    "whole seconds": (moon([k // 5 for k in range(50)]), "requests a second would arrive", "s"),
    "with ids of chats": (moon([61.114, 62.5], chat_id=1, turn=1), "fractions", "s"),
    "one a second": (moon(range(50)), "1,000 requests a second", "s"),
    "seconds as epoch": (moon([1772409600 + k // 5 for k in range(50)]), "requests a second", "s"),
    "tracev2 in seconds": (blis([0.2 * k for k in range(50)]), "tracev2 has us.*fractions", "s"),
    "tracev2 in ms": (blis([200 * k for k in range(50)]), "5,000 requests a second", "ms"),
    "burstgpt in ms": (burst([200 * k for k in range(50)]), "one request in 200 s", "ms"),
}


@pytest.mark.parametrize("text, why, unit", IN_DOUBT.values(), ids=IN_DOUBT)
def test_a_unit_in_doubt_is_asked_for(tmp_path, text, why, unit):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"(?s)in doubt.*{why}.*unit='s' or unit='ms'"):
        tr.load_arrivals(path)
    d = tr.load_arrivals(path, unit=unit)
    assert len(d) / max(d.ts_s.max() - d.ts_s.min(), 0.2) <= 5.6


SURE = {
    "mooncake": moon([200 * k for k in range(50)]),
    "mooncake, dated": moon([1772409600000 + 200 * k for k in range(50)]),
    "tracev2": blis([200_000 * k for k in range(50)]),
    "burstgpt": burst([0.2 * k for k in range(50)]),
    "array": json.dumps(
        [json.loads(x) for x in moon([200 * k for k in range(50)]).split("\n") if x]
    ),
}


@pytest.mark.parametrize("pack", ["plain", "gz", "zip", "utf-16", "bom"])
@pytest.mark.parametrize("text", SURE.values(), ids=SURE)
def test_however_a_trace_is_packed(tmp_path, text, pack):
    path = tmp_path / "~t.jsonl"
    if pack == "zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("t.jsonl", text)
    else:
        encoded = text.encode({"utf-16": "utf-16", "bom": "utf-8-sig"}.get(pack, "utf-8"))
        path.write_bytes(gzip.compress(encoded) if pack == "gz" else encoded)
    d = tr.load_arrivals(path)
    assert len(d) == 50 and (d.tokens_in + d.tokens_out).sum() == 6_000
    assert d.ts_s.iloc[0] == 0 and d.ts_s.iloc[-1] == pytest.approx(9.8)


def test_errors_of_damaged_traces(tmp_path):
    path = tmp_path / "~t.csv"
    path.write_bytes(gzip.compress(os.urandom(2000))[:700])
    with pytest.raises(ValueError, match="damaged or cut off"):
        tr.load_arrivals(path)
    path.write_text("[" * 100_000 + '"timestamp"')
    with pytest.raises(ValueError, match="line 1 fits no known|not a JSON array"):
        tr.load_arrivals(path)
    path.write_text(",".join("abc" for _ in range(100_000)) + "\n")
    with pytest.raises(ValueError, match="line 1 fits no known trace format"):
        tr.load_arrivals(path)
    path.write_bytes(BURST.encode() + b"5,Chat\xe4,1,1,2,API log\n\xe4,a,1,1,2,API log\n")
    with pytest.raises(ValueError, match="line 3, column Timestamp: not a time"):
        tr.load_arrivals(path)
    path.write_text(BURST.replace("\n", "\r") + "5,ChatGPT,1,1,2,API log\r")
    assert len(tr.load_arrivals(path)) == 1
    with pytest.raises(ValueError, match="unit must be one of s, ms, us, ns"):
        tr.load_arrivals(path, unit="minutes")


CASES = Path(os.environ.get("ARCPOINT_CASES") or Path(__file__).parents[3] / "shared" / "cases")


def test_case_file_in_seconds():
    path = CASES / "36e_mooncake_seconds.jsonl"
    if not path.is_file():
        pytest.skip("set ARCPOINT_CASES to a folder of example files; without it, not tested")
    with pytest.raises(ValueError, match="in doubt"):
        tr.load_arrivals(path)
    d = tr.load_arrivals(path, unit="s")
    assert (len(d), d.ts_s.min(), d.ts_s.max()) == (50, 0.0, pytest.approx(9.8))
    assert (d.tokens_in + d.tokens_out).sum() == 6_000


field = st.one_of(
    st.integers(-5, 10**6).map(str),
    st.floats().map(str),
    st.sampled_from(["", "x", " 7", "1e3", "NaN", "１２", '"4"']),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(field, field, field), max_size=12))
def test_no_row_is_lost_silently(tmp_path_factory, rows):
    "Rows in = rows out + rows reported, whatever stands in the fields."
    path = tmp_path_factory.mktemp("fuzz") / "b.csv"
    path.write_text(
        BURST + "".join(f"{t},GPT-4,{i},{o},0,API log\n" for t, i, o in rows), encoding="utf-8"
    )
    d = tr.load_arrivals(path, max_bad=1.0)
    assert len(d) + len({b["line"] for b in d.attrs["bad"]}) == len(rows)
    assert d.ts_s.is_monotonic_increasing and (d.tokens_in >= 0).all() and np.isfinite(d.ts_s).all()


# -- fetch -----------------------------------------------------------------------------------------


@pytest.fixture
def publisher():
    "A publisher on loopback that serves eight bytes and counts how often."

    class Handler(BaseHTTPRequestHandler):
        hits = 0

        def do_GET(self):
            Handler.hits += 1
            self.send_response(200)
            self.send_header("Content-Length", "8")
            self.end_headers()
            self.wfile.write(b"a,b\n1,2\n")

        def log_message(self, *a):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/x.csv", Handler
    server.shutdown()
    server.server_close()


def registry(url, sha256):
    return {"x": dict(url=url, sha256=sha256, licence="none", local="arrivals/x.csv")}


def test_fetch_downloads_once_and_checks(tmp_path, publisher, monkeypatch):
    monkeypatch.delenv("ARCPOINT_DATA", raising=False)
    url, handler = publisher
    good = hashlib.sha256(b"a,b\n1,2\n").hexdigest()
    path = tr.fetch("x", tmp_path, registry(url, good))
    assert (
        path.read_bytes() == b"a,b\n1,2\n"
        and tr.fetch("x", tmp_path, registry(url, good)) == path
        and handler.hits == 1
    )
    path.write_bytes(b"tampered")
    with pytest.raises(tr._FetchError, match="Remove or replace"):
        tr.fetch("x", tmp_path, registry(url, good))


def test_fetch_refuses_a_wrong_download(tmp_path, publisher, monkeypatch):
    monkeypatch.delenv("ARCPOINT_DATA", raising=False)
    with pytest.raises(tr._FetchError, match="x.csv"):
        tr.fetch("x", tmp_path, registry(publisher[0], "0" * 64))
    assert not list(tmp_path.glob("*.csv"))


def test_fetch_reads_the_folder_first_and_checks_it(tmp_path, monkeypatch):
    (tmp_path / "arrivals").mkdir()
    (tmp_path / "arrivals" / "x.csv").write_bytes(b"mine")
    monkeypatch.setenv("ARCPOINT_DATA", str(tmp_path))
    good = registry("http://127.0.0.1:9/x.csv", hashlib.sha256(b"mine").hexdigest())
    assert tr.fetch("x", tmp_path / "cache", good) == tmp_path / "arrivals" / "x.csv"
    with pytest.raises(tr._FetchError, match="SHA-256 is"):
        tr.fetch("x", tmp_path / "cache", registry("http://127.0.0.1:9/x.csv", "0" * 64))


@pytest.mark.parametrize("url", ["http://127.0.0.1:9/x.csv", None])
def test_fetch_offline_says_what_to_put_where(tmp_path, monkeypatch, url):
    monkeypatch.delenv("ARCPOINT_DATA", raising=False)
    entry = registry(url, "0" * 64)
    entry["x"]["source"] = "https://example.org/source"
    with pytest.raises(tr._FetchError) as e:
        tr.fetch("x", tmp_path, entry)
    for word in ("arrivals/x.csv", "ARCPOINT_DATA", url or "https://example.org/source", "0" * 64):
        assert word in str(e.value)


# -- the exercise ----------------------------------------------------------------------------------


@pytest.mark.parametrize("memoryless", [False, True])
def test_exercise_is_the_formula_drawn_in_the_agreed_order(memoryless):
    """An independent restatement of ROUTING's formula: one generator; starts, load noise, latency
    noise.
    """
    n, seed, cycle = 3000, 7, 400
    rng, on = np.random.default_rng(seed), np.zeros(n)
    if memoryless:
        s = rng.exponential(80)
        while s < n:
            on[int(s) : int(s) + 20] = 1
            s += 20 + rng.exponential(80)
    else:
        for start in range(0, n, 100):
            on[start : start + 20] = 1
    t = np.arange(n)
    load = 100 + 50 * np.sin(2 * np.pi * t / cycle) + 200 * on + rng.normal(0, 5, n)
    latency = 30 + 0.5 * load + 4 * np.maximum(0, load - 180) + rng.normal(0, 5, n)
    d = tr.exercise(n, seed, cycle, memoryless)
    assert np.allclose(d.load, load, rtol=0, atol=1e-9) and np.allclose(
        d.latency_ms, latency, rtol=0, atol=1e-9
    )
    assert np.allclose(d.quality_score, np.clip(1 - latency / 1000, 0, 1)) and list(d.columns) == [
        "minute",
        "ts",
        "load",
        "latency_ms",
        "quality_score",
    ]
    assert str(d.ts.dt.tz) == "UTC" and (d.ts.diff().dropna() == pd.Timedelta(minutes=1)).all()


@pytest.mark.slow
def test_floor_against_known_figures_and_monte_carlo():
    assert (
        abs(tr.exercise_floor() - 7.2) < 0.1
        and abs(tr.exercise_floor(memoryless=True) - 35.1) < 0.5
    )
    for memoryless, tol in ((False, 0.05), (True, 1.0)):
        d = tr.exercise(400_000, 11, memoryless=memoryless)
        best = tr.exercise_oracle(d, 5, memoryless=memoryless).best_ms
        assert (
            abs(
                (best - d.latency_ms.shift(-5)).abs().mean()
                - tr.exercise_floor(memoryless=memoryless)
            )
            < tol
        )


def test_no_constant_shift_beats_the_oracle():
    d = tr.exercise(100_000, 5, memoryless=True)
    y = d.latency_ms.shift(-5)
    o = tr.exercise_oracle(d, 5, memoryless=True)
    best = (o.best_ms - y).abs().mean()
    assert all((o.best_ms + k - y).abs().mean() > best for k in (-3, 3))
    later = (
        (d.load > 100 + 50 * np.sin(2 * np.pi * d.minute / 500) + 100).shift(-5)[:-5].astype(float)
    )
    calm = o.p_surge[:-5] < 0.1
    assert (
        abs(o.p_surge[:-5].mean() - later.mean()) < 0.01
        and abs(o.p_surge[:-5][calm].mean() - later[calm].mean()) < 0.01
    )


def test_memoryless_surges_cannot_be_foreseen_but_last_twenty_minutes():
    d = tr.exercise(200_000, 1, memoryless=True)
    on = d.load > 100 + 50 * np.sin(2 * np.pi * d.minute / 500) + 100
    runs = on.groupby((on != on.shift()).cumsum()).agg(["first", "size"])
    assert (runs[runs["first"]]["size"][1:-1] % 20 == 0).all()
    gaps = runs[~runs["first"]]["size"]
    assert abs(gaps.mean() / 80 - 1) < 0.08 and abs(gaps.std() / 80 - 1) < 0.12


# -- the sample ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def shipped():
    return duckdb.connect().sql(f"SELECT * FROM '{tr.sample_path()}'").df()


def test_shipped_sample_is_what_the_generator_makes(shipped):
    rows, truth = tr._sample_fleet(days=3, seed=1)
    assert (
        tr.sample_path().stat().st_size < 2_000_000 and len(rows) == len(shipped) == truth["rows"]
    )
    assert json.loads(json.dumps(truth)) == tr.sample_truth()
    for c in ("request_id", "backend", "model", "task", "tier", "ok", "tokens_in", "tokens_out"):
        assert (rows[c].to_numpy() == shipped[c].to_numpy()).all(), c
    assert (rows.error.fillna("") == shipped.error.fillna("")).all()
    assert (rows.ts.dt.tz_convert("UTC") == shipped.ts.dt.tz_convert("UTC")).all()
    # one in the last digit
    for c, atol in (("latency_ms", 0.11), ("ttft_ms", 1.01), ("cost_usd", 1.01e-6)):
        assert np.allclose(rows[c], shipped[c], rtol=0, atol=atol, equal_nan=True), c


def test_sample_is_in_the_canonical_columns_and_clean(shipped):
    assert shipped.ts.is_monotonic_increasing and shipped.request_id.is_unique
    assert np.isfinite(shipped.latency_ms).all() and (shipped.latency_ms > 0).all()
    assert (shipped.error.isna() == shipped.ok).all() and (
        shipped.ttft_ms.isna() == ~shipped.ok
    ).all()
    assert (shipped.ttft_ms[shipped.ok] <= shipped.latency_ms[shipped.ok]).all()
    assert set(shipped.backend) == set(tr._SAMPLE_BACKENDS)


def around(log, event, pad_min=60):
    """Rows of the event's backend inside it, and in the hour before and after where nothing else
    happens.
    """
    ts, mine = log.ts, log.backend == event["backend"]
    start, end = pd.Timestamp(event["start"]), pd.Timestamp(event["end"])
    inside = mine & (ts >= start) & (ts < end)
    near = (
        mine
        & (ts >= start - pd.Timedelta(minutes=pad_min))
        & (ts < end + pd.Timedelta(minutes=pad_min))
    )
    for e in tr.sample_truth()["events"]:
        if e["backend"] == event["backend"]:
            near &= ~((ts >= e["start"]) & (ts < e["end"]))
    return log[inside], log[near]


@pytest.mark.slow
def test_every_true_cause_is_visible_in_the_data(shipped):
    truth = tr.sample_truth()
    seen = set()
    for e in truth["events"]:
        inside, outside = around(shipped, e)
        kind = e["kind"]
        seen.add(kind)
        minutes = e["end_min"] - e["start_min"]
        if kind in ("surge", "scheduled_surge"):
            calm = len(outside) / (120 if kind == "surge" or e["backend"] == "atlas-large" else 104)
            assert len(inside) / minutes > 1.3 * calm, e
            assert (
                inside.latency_ms[inside.ok].mean() > 1.08 * outside.latency_ms[outside.ok].mean()
            ), e
        elif kind == "outage":
            assert (~inside.ok).mean() > 0.85 > 0.05 > (~outside.ok).mean() and inside.latency_ms[
                inside.error == "503"
            ].max() < 10
        elif kind == "anomaly":
            assert (
                inside.tokens_out.mean() > 3 * outside.tokens_out.mean()
                and inside.latency_ms.median() > 1.4 * outside.latency_ms.median()
            )
        else:
            thirds = inside.groupby(pd.cut(inside.ts, 3, labels=False)).latency_ms.median()
            assert thirds.is_monotonic_increasing and thirds.iloc[2] > 1.4 * thirds.iloc[0]
    assert seen == {"surge", "scheduled_surge", "outage", "anomaly", "slow_degradation"}


def test_last_third_holds_breaches_of_both_kinds(shipped):
    late = shipped[shipped.ts >= pd.Timestamp(tr.sample_truth()["start"]) + pd.Timedelta(days=2)]
    slow = late[(late.latency_ms > 300) & late.ok]
    assert 0.02 < len(slow) / len(late) < 0.08
    for foreseeable in (True, False):
        mark = np.zeros(len(slow), bool)
        for e in tr.sample_truth()["events"]:
            if e["foreseeable"] is foreseeable:
                mark |= (
                    (slow.backend == e["backend"]) & (slow.ts >= e["start"]) & (slow.ts < e["end"])
                )
        assert mark.sum() > 100, foreseeable


def test_loaders_take_the_generated_data_whole(tmp_path, shipped):
    "The project's own loaders find nothing to complain about, and lose nothing."
    log = load_requests(tr.sample_path())
    assert (log.rows, log.quarantined) == (len(shipped), 0) and set(log.backends) == set(
        tr._SAMPLE_BACKENDS
    )
    path = tmp_path / "exercise.csv"
    tr._exercise_telemetry(500, seed=3).to_csv(path, index=False)
    t, mine = load_telemetry(path), tr.exercise_steps(500, seed=3)
    assert (t.rows, t.quarantined, t.step_s, t.backends) == (500, 0, 60, ["exercise"])
    steps = t.steps()
    assert (steps.start_s.to_numpy() == mine.start_s.to_numpy()).all()
    assert np.allclose(
        steps.latency_us / steps.n_lat, mine.latency_us / mine.n_lat, rtol=0, atol=1.0
    )


def test_other_seeds_and_lengths_work():
    a, truth = tr._sample_fleet(days=2, seed=5)
    b, _ = tr._sample_fleet(days=2, seed=6)
    assert (
        truth["days"] == 2
        and a.ts.max() < pd.Timestamp(truth["end"])
        and not a.latency_ms[:1000].equals(b.latency_ms[:1000])
    )
    with pytest.raises(ValueError, match="days"):
        tr._sample_fleet(days=1)


def test_sample_fits_its_closed_form(shipped):
    "Calm minutes of one backend: utilisation from the log's own rate predicts the mean latency."
    b = tr._SAMPLE_BACKENDS["atlas-large"]
    d = shipped[(shipped.backend == "atlas-large") & shipped.ok]
    hour = d.ts.dt.floor("h")
    d = d[(d.ts.dt.hour != 2)]
    by = d.groupby(hour).agg(n=("latency_ms", "size"), mean=("latency_ms", "mean"))
    u = by.n / 3600 * tr._SAMPLED_1_IN * b["service_ms"] / 1000 / b["capacity"]
    assert (by["mean"] / tr._fleet_latency_ms(u, b["service_ms"]) - 1).abs().max() < 0.1
