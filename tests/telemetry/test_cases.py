"""Request logs as people have them: every layout and spelling gives the rows that it means.

The files that this module writes are small and made up. Where a folder of recorded cases is at
hand (the environment variable ARCPOINT_CASES, or `../shared/cases` beside the project), its files
are read as well and compared with the table that came with them.
"""

import gzip
import io
import json
import os
import warnings
import zipfile
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from arcpoint_ce.telemetry.requests import load_requests

CASES = Path(os.environ.get("ARCPOINT_CASES", Path(__file__).parents[2].parent / "shared/cases"))


class Case(NamedTuple):
    "What is right about one file."

    file: str
    rows: int
    backends: int
    failures: int
    mean_ms: float  # of the successes
    tokens: int | None = None  # in and out; None: the file has none
    columns: dict | None = None


ENVOY = dict(
    ts="start_time", backend="upstream_host", latency_ms="duration", status="response_code"
)
BEDROCK = dict(
    ts="timestamp",
    backend="modelId",
    latency_ms="output.outputBodyJson.metrics.latencyMs",
    tokens_in="input.inputTokenCount",
    tokens_out="output.outputTokenCount",
    error="errorCode",
)
LANGFUSE = dict(
    ts="startTime",
    backend="model",
    latency_ms="latency[s]",
    ttft_ms="timeToFirstToken[s]",
    ok="level",
    tokens_in="inputUsage",
)
TABLE = [
    Case("04_envoy_access.jsonl", 120, 3, 30, 222.86, None, ENVOY),
    Case("05_litellm_failures_blank.jsonl", 60, 1, 20, 800, 1200),
    Case("07a_spend_logs_array.json", 50, 1, 0, 800, 1500),
    Case("08_litellm_request_id_None.jsonl", 60, 1, 0, 800, 1800),
    Case("10_multiline_prompt.csv", 200, 2, 0, 512.31),
    Case("12a_otlp_old_usage_names.jsonl", 24, 1, 0, 700, 1104),
    Case("12d_otlp_nested_double_instrumented.jsonl", 24, 1, 0, 700, 288),
    Case("12e_otel_console_exporter.jsonl", 40, 1, 10, 700, 1840),
    Case("13_nginx_seconds.csv", 300, 2, 60, 2248.27, None, {"latency_ms": "latency_ms[s]"}),
    Case("14_time_clf.csv", 40, 1, 0, 100),
    Case("14_time_comma.csv", 40, 1, 0, 100),
    Case("14_time_slash.csv", 40, 1, 0, 100),
    Case("14_time_bracket.csv", 40, 1, 0, 100),
    Case("16_retries_share_id.csv", 220, 2, 20, 200),
    Case("17_powershell_utf16.csv", 50, 1, 0, 100),
    Case("19_bedrock_invocations.jsonl", 40, 1, 8, 900, 6000, BEDROCK),
    Case("19_bedrock_invocations.jsonl", 40, 1, 8, 900, 6000),
    Case("21_ok_SUCCESS.csv", 60, 1, 15, 100),
    Case("21_ok_200.csv", 60, 1, 15, 100),
    Case("22_otlp_attr_empty_object.jsonl", 20, 1, 0, 700, 920),
    Case("23_tokens_NULL.csv", 40, 1, 0, 100, 540),
    Case("23_tokens_dash.csv", 40, 1, 0, 100, 540),
    Case("23_tokens_minus1.csv", 40, 1, 0, 100, 540),
    Case("24_python_json_NaN.jsonl", 40, 1, 0, 100),
    Case("27_envoy_dash_host.jsonl", 90, 1, 0, 200, None, ENVOY),
    Case("28_log.csv.zip", 50, 1, 0, 100),
    Case("28_log.log", 50, 1, 0, 100),
    Case("29_latency_s.csv", 30, 1, 0, 1250),
    Case("29_latency_ms.csv", 30, 1, 0, 1250),
    Case("31_langfuse_observations.csv", 100, 1, 10, 2400, 10_000),
    Case("31_langfuse_observations.csv", 100, 1, 10, 2400, 10_000, LANGFUSE),
    Case("32_error_None.csv", 40, 1, 0, 100),
    Case("32_error_dash.csv", 40, 1, 0, 100),
    Case("32_error_json_false.jsonl", 40, 1, 0, 100),
    Case("33a_openinference.jsonl", 24, 1, 0, 700, 1104),
    Case("33b_openllmetry.jsonl", 24, 1, 0, 700, 1104),
    Case("34_litellm_health_and_mcp.jsonl", 54, 1, 0, 800, 1620),
    Case("35_litellm_two_deployments_one_host.jsonl", 100, 2, 50, 800, 3000),
    Case("37_constant_latency.csv.gz", 17_280, 2, 0, 100),
    Case("41_bad_requests_at_end.csv", 800, 3, 0, 158.69, 320_990),
    Case("42_llm_log_2s.csv", 800, 3, 1, 3189.62, 320_990),
]


def loaded(path, columns=None, **more):
    "A log read without regard to warnings."
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_requests(path, columns=columns, **more)


def summary(log):
    "Rows, backends, failures of the backends, mean latency of the successes, tokens."
    df = log.df()
    good = df.kind == "success"
    bad = df.kind.isin(["backend", "throttled"])
    mean = round(float(df.latency_ms[good].mean()), 2)
    counts = [c for c in ("tokens_in", "tokens_out") if c in df]
    tokens = sum(int(df[c].sum()) for c in counts) if counts else None
    return len(df), len(log.backends), int(bad.sum()), mean, tokens


def case_file(name):
    if not (CASES / name).exists():
        pytest.skip(
            "the recorded cases are not at hand: point the environment variable "
            f"ARCPOINT_CASES to their folder (looked in {CASES})"
        )
    return CASES / name


@pytest.mark.parametrize("case", TABLE, ids=lambda c: c.file + ("*" if c.columns else ""))
def test_recorded_case(case):
    with loaded(case_file(case.file), case.columns) as log:
        assert summary(log) == case[1:6]
        df, steps = log.df(), log.steps(60)
        assert int(steps.n_err.sum()) == case.failures == int((df.ok == False).sum())  # noqa: E712
        assert steps.n.sum() == int(df.ok.notna().sum())
        assert log.rows_in == log.rows + log.quarantined


@pytest.mark.parametrize(
    "name,words",
    [
        ("40_prometheus_matrix.json", ["resultType matrix", "table", "backend", "latency_ms"]),
        ("40_vllm_metrics.txt", ["at one moment", "series", "backend", "latency_ms"]),
    ],
)
def test_recorded_case_is_refused(name, words):
    with pytest.raises(ValueError) as e:
        loaded(case_file(name))
    assert all(word in str(e.value) for word in words)


# ---- small files of every kind

T0 = 1772409600  # 2026-03-02 00:00:00 UTC


def saved(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(column, values, **more):
    "A CSV with one row for each value of a column, and what every log needs."
    names = ["ts", "backend", "latency_ms", column, *more]
    names = list(dict.fromkeys(names))
    rows = [",".join(names)]
    for i, value in enumerate(values):
        row = {"ts": str(T0 + i), "backend": "a", "latency_ms": "100", **more, column: f'"{value}"'}
        rows.append(",".join(row[n] for n in names))
    return "\n".join(rows) + "\n"


TIMES = [
    "2026-03-02T00:00:10Z",
    "[2026-03-02T00:00:10.000Z]",
    "2026-03-02 00:00:10,000",
    "2026/03/02 00:00:10",
    "02/Mar/2026:01:00:10 +0100",
    "Mon, 02 Mar 2026 00:00:10 +0000",
    "2026-03-02 00:00:10.000000001 +0000 UTC m=+0.5",
    "20260302T000010Z",
    "1772409610",
    "1772409610000",
    "1772409610000000000",
    "Mar 2, 2026 @ 00:00:10.000",
    "2026-03-02T01:00:10.000+01:00[Europe/Berlin]",
    "2026-03-02 00:00:10.000 +00:00 UTC",
    "2026-03-02 00:00:10 (UTC)",
    "/Date(1772409610000)/",
    "2026.03.02 00:00:10",
    "2026-Mar-02 00:00:10",
    "2026-061T00:00:10Z",
    "Mon 02 Mar 2026 12:00:10 AM UTC",
    "'2026-03-02T00:00:10Z'",
]


@pytest.mark.parametrize("text", TIMES)
def test_a_time_is_read_as_it_is_written(tmp_path, text):
    with loaded(saved(tmp_path, "x.csv", table("ts", [text] * 3))) as log:
        assert log.rows == 3 and set(log.df().ts) == {pd.Timestamp(T0 + 10, unit="s", tz="UTC")}


def test_american_dates_are_read_where_the_file_tells_and_refused_where_not(tmp_path):
    us = saved(tmp_path, "us.csv", table("ts", ["3/2/2026 0:00:10", "3/25/2026 1:00:00 PM"]))
    with loaded(us) as log:
        assert [t.strftime("%m-%d %H") for t in log.df().ts] == ["03-02 00", "03-25 13"]
    with pytest.raises(ValueError, match="day or the month"):
        loaded(saved(tmp_path, "doubt.csv", table("ts", ["3/2/2026 0:00:10", "3/4/2026 0:00:10"])))


@pytest.mark.parametrize("word", ["None", "NULL", "-", r"\N", "NaN", "nil", "undefined", "", "-1"])
def test_a_word_for_nothing_is_no_value(tmp_path, word):
    with loaded(saved(tmp_path, "x.csv", table("tokens_in", ["7", word, "8"]))) as log:
        assert (log.rows, int(log.df().tokens_in.sum()), log.lost) == (3, 15, {})


@pytest.mark.parametrize("word", ["None", "NULL", "-", "", "false", "{}", "[]", "0", "nil"])
def test_a_word_for_nothing_is_no_error(tmp_path, word):
    with loaded(saved(tmp_path, "x.csv", table("error", [word] * 3))) as log:
        assert summary(log)[:3] == (3, 1, 0)


OUTCOMES = [
    ("ok", ["SUCCESS", "FAILURE"], ["success", "backend"]),
    ("ok", ["yes", "no"], ["success", "backend"]),
    (
        "ok",
        ["200", "503", "429", "400", "499"],
        "success backend throttled caller cancelled".split(),
    ),
    ("status", ["204", "502", "408", "422"], ["success", "backend", "backend", "caller"]),
    ("status", ["OK", "ERROR"], ["success", "backend"]),
    ("status", ["HTTP/1.1 200 OK", "HTTP/2 429"], ["success", "throttled"]),
    ("status", ["OK (200)", "[503]", "status: 404"], ["success", "backend", "caller"]),
    ("status", ["stop", "length", "content_filter"], ["success", "success", "caller"]),
    ("error", ["", "BadRequestError"], ["success", "caller"]),
    ("error", ["ThrottlingException", "client_closed_request"], ["throttled", "cancelled"]),
    ("error", ["Error code: 401 - no key", "boom"], ["caller", "backend"]),
]


@pytest.mark.parametrize("column,values,kinds", OUTCOMES)
def test_whose_failure_it_was(tmp_path, column, values, kinds):
    with loaded(saved(tmp_path, "x.csv", table(column, values))) as log:
        assert log.df().kind.to_list() == kinds
        counted = [k for k in kinds if k not in ("caller", "cancelled")]
        assert log.steps(60).n.sum() == len(counted)
        assert log.steps(60).n_err.sum() == len(counted) - kinds.count("success")


ROW = {"ts": T0, "backend": "a", "latency_ms": 100, "prompt": "two\nlines"}
ROWS = [ROW | {"ts": T0 + i} for i in range(5)]
LINES = "".join(json.dumps(r) + "\n" for r in ROWS)
CSV = "ts,backend,latency_ms\n" + "".join(f"{T0 + i},a,100\n" for i in range(5))


def zipped(text):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as z:
        z.writestr("log.csv", text)
    return out.getvalue()


CONTAINERS = {
    "lines.log": LINES,
    "lines.txt": LINES,
    "array.json": json.dumps(ROWS),
    "pretty.json": json.dumps(ROWS, indent=2),
    "envelope.json": json.dumps({"data": ROWS, "total": 5}),
    "pretty_envelope.json": json.dumps({"data": ROWS}, indent=1),
    "spread.json": "\n".join(json.dumps(r, indent=1) for r in ROWS),
    "pages.jsonl": json.dumps({"data": ROWS[:2]}) + "\n" + json.dumps({"data": ROWS[2:]}) + "\n",
    "utf16.csv": CSV.encode("utf-16"),
    "utf16.json": json.dumps(ROWS).encode("utf-16"),
    "mark.csv": b"\xef\xbb\xbf" + CSV.encode(),
    "sep.csv": "sep=;\n" + CSV.replace(",", ";"),
    "old_mac.csv": CSV.replace("\n", "\r"),
    "windows.csv": CSV.replace("\n", "\r\n"),
    "log.csv.zip": zipped(CSV),
    "log.dat": gzip.compress(CSV.encode()),
    "~x.csv": CSV,
}


@pytest.mark.parametrize("name", CONTAINERS)
def test_a_container_is_opened(tmp_path, name):
    with loaded(saved(tmp_path, name, CONTAINERS[name])) as log:
        assert summary(log)[:4] == (5, 1, 0, 100.0)


def test_line_numbers_are_those_of_the_file(tmp_path):
    text = 'ts,backend,latency_ms,prompt\n1,a,5,"x\ny"\n2,a,-5,z\n3,a,5,"p\n\nq"\n4,a,-6,r\n'
    with loaded(saved(tmp_path, "x.csv", text), max_bad=1.0, quarantine=tmp_path / "q.csv") as log:
        assert (log.rows, log.quarantined) == (2, 2)
    assert pd.read_csv(tmp_path / "q.csv").line.to_list() == [4, 8]


@pytest.mark.parametrize(
    "name,data,words",
    [
        ("cut.csv.gz", gzip.compress(CSV.encode() * 9)[:-12], "breaks off"),
        ("wide.csv", ",".join(f"c{i}" for i in range(100_000)) + "\n1\n", "100000 columns"),
        ("deep.json", '[{"a":' + "[" * 100_000 + "]" * 100_000 + "}]", "nested too deeply"),
        ("excel.csv", CSV.replace(str(T0)[:7], "46083.0"), "day numbers of a spreadsheet"),
        ("two.zip", b"PK\x05\x06" + bytes(18), "needs column|empty|zip"),
    ],
    ids=["cut off", "columns", "nested", "spreadsheet", "empty zip"],
)
def test_a_file_that_cannot_be_meant_is_refused(tmp_path, name, data, words):
    with pytest.raises(ValueError, match=words):
        loaded(saved(tmp_path, name, data))


def test_doubtful_units_are_said_aloud(tmp_path):
    path = saved(tmp_path, "x.csv", table("latency_ms", ["1.5", "2.5", "3"]))
    with pytest.warns(UserWarning, match=r"latency_ms: the median is 2.5 ms.*latency_ms\[s\]"):
        load_requests(path).close()
    with loaded(path, {"latency_ms": "latency_ms[s]"}) as log:
        assert log.df().latency_ms.to_list() == [1500.0, 2500.0, 3000.0]


def test_dotted_names_reach_inside_and_real_names_go_first(tmp_path):
    rows = [{"t": {"at": T0}, "b": "a", "took.ms": 100, "took": {"ms": 7}}] * 3
    path = saved(tmp_path, "x.jsonl", "".join(json.dumps(r) + "\n" for r in rows))
    with loaded(path, dict(ts="t.at", backend="b", latency_ms="took.ms")) as log:
        assert log.df().latency_ms.to_list() == [100.0] * 3
