"""Request logs as people have them: every layout and spelling gives the rows that it means.

The files that this module writes are small and made up. Where a folder of recorded cases is at
hand (the environment variable ARCPOINT_CASES, or `../shared/cases` beside the project), its files
are read as well and compared with the table that came with them.
"""

import os
import warnings
from pathlib import Path
from typing import NamedTuple

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
