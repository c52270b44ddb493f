"""Logs of many tools and hands: what is read wrong in silence, or refused without a way to go.

Every case is a few lines, as the tool that is named beside it writes them.
"""

import json
import warnings

import pandas as pd
import pytest

from arcpoint_ce.telemetry.requests import load_requests

T0 = 1772409600  # 2026-03-02 00:00:00 UTC


def saved(tmp_path, text, name="log.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def table(head, *rows):
    "A CSV file of rows whose first two cells, a time and a backend, are given."
    made = [f"{T0 + i},{'ab'[i % 2]},{row}" for i, row in enumerate(rows)]
    return "\n".join([f"ts,backend,{head}", *made]) + "\n"


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


def read(path, **options):
    "Rows in order of time, and everything that was said about them."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with load_requests(path, **options) as log:
            return log.df(), " | ".join(str(w.message) for w in said)


# ---- words for nothing

NOTHING = {
    "R": ("NA", "NA"),
    "pandas": ("<NA>", "NaT"),
    "Excel": ("#N/A", "#n/a"),
    "kubectl": ("<none>", "<NONE>"),
    "database browsers": ("<null>", "[NULL]"),
    "pivot tables": ("(blank)", "(none)"),
    "people": ("No Error", "no errors"),
    "enumerations": ("NO_ERROR", "None."),
    "statuses": ("200 OK", "200"),
}


@pytest.mark.parametrize("who", NOTHING)
def test_an_error_that_says_nothing_is_no_failure(tmp_path, who):
    words = NOTHING[who]
    rows, _ = read(saved(tmp_path, table("latency_ms,error", f"5,{words[0]}", f"5,{words[1]}")))
    assert rows.kind.to_list() == ["success"] * 2


@pytest.mark.parametrize(
    "error,kind",
    [
        ({"code": None, "message": None}, "success"),
        ({"code": 0, "message": "OK"}, "success"),
        ({"type": "", "details": []}, "success"),
        ({"code": 0, "message": "connection reset"}, "backend"),
        ({"code": "rate_limit_exceeded", "message": None}, "throttled"),
        ({"code": 503}, "backend"),
    ],
)
def test_an_error_object_fails_a_request_only_where_it_holds_something(tmp_path, error, kind):
    row = {"ts": T0, "backend": "a", "latency_ms": 5, "error": error}
    path = saved(tmp_path, lines([row, row | {"ts": T0 + 1}]), "log.jsonl")
    assert read(path)[0].kind.to_list() == [kind] * 2


@pytest.mark.parametrize("word", ["NA", "<NA>", "#N/A", "NaT", "(blank)"])
def test_a_number_that_is_a_word_for_nothing_is_missing(tmp_path, word):
    text = table("latency_ms,tokens_in,status", f"900,{word},200", f"{word},7,503")
    rows, said = read(saved(tmp_path, text))
    assert rows.latency_ms.isna().to_list() == [False, True] and "left out" not in said


def test_a_backend_may_be_called_NA(tmp_path):
    rows, _ = read(saved(tmp_path, f"ts,backend,latency_ms\n{T0},NA,5\n{T0},EU,5\n"))
    assert sorted(rows.backend) == ["EU", "NA"]


@pytest.mark.parametrize("word", ["eos_token", "function_call", "pause_turn"])
def test_the_reason_why_an_answer_ended_is_a_success(tmp_path, word):
    rows, _ = read(saved(tmp_path, table("latency_ms,status", f"5,{word}", "5,stop")))
    assert rows.ok.all()


# ---- times

SAME = "2026-03-02 12:00:01"
ZONED = [
    "2026-03-02\u00a012:00:01",
    "3/14/2026, 12:00:01\u202fPM",  # browsers since 2023
    "March 2, 2026, 12:00:01 PM",
    "March 2, 2026 at 12:00:01 PM",
    "2026-03-02 17:30:01 +0530 IST",
    "2026-03-02 07:00:01 EST",
]


@pytest.mark.parametrize("text", ZONED)
def test_a_time_is_read(tmp_path, text):
    rows, _ = read(saved(tmp_path, f'ts,backend,latency_ms\n"{text}",a,5\n"{text}",b,5\n'))
    day = 14 if "14" in text else 2
    assert rows.ts[0] == pd.Timestamp(SAME.replace("02 ", f"{day:02d} "), tz="UTC")


@pytest.mark.parametrize("zone", ["BST", "CST", "IST", "AST"])
def test_a_zone_that_may_be_another_is_refused(tmp_path, zone):
    text = f"ts,backend,latency_ms\n2026-07-02 12:00:01 {zone},a,5\n2026-07-02 12:00 {zone},b,5\n"
    with pytest.raises(ValueError, match=f"{zone} is the name of several zones: write an offset"):
        read(saved(tmp_path, text))


def test_a_year_of_two_digits_is_refused_with_the_way_to_write_it(tmp_path):
    text = "ts,backend,latency_ms\n3/2/26 0:00,a,5\n3/2/26 0:01,b,5\n"
    with pytest.raises(ValueError, match="write the year in four digits"):
        read(saved(tmp_path, text))


@pytest.mark.parametrize("value", ["1,250", "1250,5", "1.250,50", "900,000,000"])
def test_a_comma_in_a_number_is_named(tmp_path, value):
    text = f"ts;backend;latency_ms\n{T0};a;{value}\n{T0};b;5\n"
    with pytest.raises(ValueError, match="is not a number .write it without commas"):
        read(saved(tmp_path, text))


# ---- units that cannot be meant


def durations(*values, name="latency_ms", more=""):
    head = f"{name}{',tokens_out' if more else ''}"
    return table(head, *(f"{v}{more}" for v in values))


SECONDS, MICROS = "holds seconds.*latency_ms.s.", "holds µs or ns.*latency_ms.us."
LONG = (31.5, 45.25, 28.75)  # seconds
DOUBTED = {
    "more tokens than a model writes": (durations(*LONG, more=",1500"), None, SECONDS),
    "a name without a unit": (durations(*LONG, name="duration"), "duration", SECONDS),
    "microseconds": (durations(1_250_000, 980_000), None, MICROS),
    "nanoseconds": (durations(400_000_000 / 1e3), None, MICROS),
}


@pytest.mark.parametrize("name", DOUBTED)
def test_a_latency_that_no_model_has_is_doubted(tmp_path, name):
    text, column, words = DOUBTED[name]
    columns = {"latency_ms": column} if column else None
    with pytest.warns(UserWarning, match=words):
        load_requests(saved(tmp_path, text), columns=columns).close()


UNDOUBTED = {
    "a fast answer": (durations(*LONG), None),
    "few tokens": (durations(1250, 980, more=",90"), None),
    "a name with a unit": (durations(*LONG, name="took_ms"), "took_ms"),
    "a minute": (durations(61_000, 70_000), None),
}


@pytest.mark.parametrize("name", UNDOUBTED)
def test_a_latency_that_a_model_may_have_is_not_doubted(tmp_path, name):
    text, column = UNDOUBTED[name]
    columns = {"latency_ms": column} if column else None
    assert "If the column holds" not in read(saved(tmp_path, text), columns=columns)[1]


@pytest.mark.parametrize("name", ["total_seconds_spent", "secs_taken", "Seconds (all)"])
def test_a_unit_within_a_name_counts(tmp_path, name):
    path = saved(tmp_path, durations(2.5, name=name))
    rows, said = read(path, columns={"latency_ms": name})
    assert rows.latency_ms.to_list() == [2500.0] and f"'{name}[ms]'" in said


# ---- times and outcomes that cannot be meant


@pytest.mark.parametrize(
    "times,words",
    [
        (["639080064000000000", "639080064010000000"], "1990.*count from 1970"),  # .NET
        (["134168832000000000", "134168832010000000"], "1974.*count from 1970"),  # Windows
        (["794102400", "794102401"], "1995.*count from 1970"),  # since 2001
        (["1.77241E+12"] * 3, "rows are of the same moment"),
        (["2026-03-02"] * 3, "rows are of the same moment"),
        (["2026-03-02", "2026-03-03", "2026-03-04"], "every time is midnight"),
    ],
)
def test_times_that_cannot_be_meant_are_doubted(tmp_path, times, words):
    text = "ts,backend,latency_ms\n" + "".join(f"{t},a,500\n" for t in times)
    with pytest.warns(UserWarning, match=words):
        load_requests(saved(tmp_path, text)).close()


def test_a_log_in_which_no_request_counts_says_so(tmp_path):
    path = saved(tmp_path, table("latency_ms,grpc_code", "5,0", "5,0"))
    rows, said = read(path, columns={"status": "grpc_code"})
    assert rows.ok.isna().all() and "codes of gRPC are no HTTP statuses" in said


def test_a_column_called_code_is_named_where_nothing_says_who_failed(tmp_path):
    said = read(saved(tmp_path, table("latency_ms,code", "5,200", "5,500")))[1]
    assert "columns={'status': 'code'}" in said


# ---- health checks and caches among the calls


def web_line(i, request, seconds, agent="py"):
    at = pd.Timestamp(T0 + i, unit="s").strftime("%d/%b/%Y:%H:%M:%S +0000")
    return f'10.0.0.7 - - [{at}] "{request} HTTP/1.1" 200 9 "-" "{agent}" {seconds} 10.0.0.1:80\n'


def envoy(i, path, agent="py"):
    at = pd.Timestamp(T0 + i, unit="s").isoformat() + "Z"
    row = {"start_time": at, "response_code": 200, "duration": 900, "upstream_host": "10.0.0.1:80"}
    return row | {"path": path, "user_agent": agent, "method": "POST", "request_id": f"r{i}"}


def traefik(i, path):
    at = pd.Timestamp(T0 + i, unit="s").isoformat() + "Z"
    row = {"StartUTC": at, "Duration": 900_000_000, "DownstreamStatus": 200}
    return row | {"ServiceAddr": "10.0.0.1:80", "RequestPath": path}


PROBED = {
    "nginx": "".join(
        [
            web_line(1, "POST /v1/chat", "0.900"),
            web_line(2, "GET /healthz", "0.001"),
            web_line(3, "GET /v1/models", "0.001", "kube-probe/1.29"),
            web_line(4, "GET /metrics?x=1", "0.001"),
            web_line(5, "POST /v1/health-advice", "0.900"),
        ]
    ),
    "envoy": lines(
        [
            envoy(0, "/v1/chat"),
            envoy(1, "/livez"),
            envoy(2, "/", "ELB-HealthChecker/2.0"),
            envoy(3, "/gw/ping/"),
            envoy(4, "/v1/pingpong"),
        ]
    ),
    "traefik": lines(
        traefik(i, p)
        for i, p in enumerate(["/v1/chat", "/ping", "/health", "/ready/x/ping", "/v1"])
    ),
}


@pytest.mark.parametrize("name", PROBED)
def test_health_checks_in_access_logs_are_set_apart(tmp_path, name):
    rows, said = read(saved(tmp_path, PROBED[name]))
    assert rows.latency_ms.to_list() == [900.0] * 2 and "3 a health check" in said


def test_the_longest_of_several_bare_seconds_is_the_request(tmp_path):
    line = web_line(1, "POST /v1/chat", "0.100 1.500").replace(" 1.500", ' "-" 1.500')
    assert read(saved(tmp_path, line * 2))[0].latency_ms.to_list() == [1500.0] * 2


MARKED = {
    "cached": ("false", "true", "answered from a cache"),
    "Cache-Status": ("MISS", "SEMANTIC HIT", "answered from a cache"),
    "path": ("/v1/chat", "/healthz", "of a health check"),
    "user_agent": ("py", "kube-probe/1.29", "of a health check"),
}


@pytest.mark.parametrize("name", MARKED)
def test_rows_that_a_column_marks_as_no_answers_are_said(tmp_path, name):
    real, other, words = MARKED[name]
    path = saved(tmp_path, table(f"latency_ms,{name}", f"900,{real}", f"5,{other}", f"900,{real}"))
    assert f"1 rows seem to be {words} (column '{name}')" in read(path)[1]
    path = saved(tmp_path, table(f"latency_ms,{name}", f"900,{real}", f"900,{real}"))
    assert "seem to be" not in read(path)[1]


def test_the_advice_for_an_access_log_without_times_works(tmp_path):
    line = '10.0.0.7 - - [02/Mar/2026:00:00:00 +0000] "POST /v1 HTTP/1.1" 200 9 "-" "py" 700000\n'
    with pytest.raises(ValueError, match="Apache's with %D, as CSV"):
        read(saved(tmp_path, line * 3))


def spans_of(tmp_path, *told: dict):
    "A log of model calls as OTLP JSON; each given as its attributes, with `status` beside them."
    spans = []
    for k, given in enumerate(told):
        named = {"gen_ai.operation.name": "chat", "gen_ai.request.model": "m", **given}
        status = named.pop("status", {})
        attributes = [
            dict(key=key, value={"intValue" if isinstance(value, int) else "stringValue": value})
            for key, value in named.items()
        ]
        began_ns = (1_770_000_000 + k) * 10**9
        spans.append(
            dict(
                traceId=f"{k:032x}",
                spanId=f"{k:016x}",
                name="chat m",
                startTimeUnixNano=str(began_ns),
                endTimeUnixNano=str(began_ns + 10**9),
                attributes=attributes,
                status=status,
            )
        )
    path = tmp_path / "spans.json"
    path.write_text(json.dumps(dict(resourceSpans=[dict(scopeSpans=[dict(spans=spans)])])))
    return load_requests(path).df()


def test_a_span_that_failed_says_so_in_its_status_a_tag_or_its_http_code(tmp_path):
    rows = spans_of(
        tmp_path,
        {},
        {"http.response.status_code": 200},
        {"otel.status_code": "OK"},
        {"otel.status_code": "ERROR", "otel.status_description": "upstream reset"},
        {"http.response.status_code": 503},
        {"http.status_code": 429},
        {"http.response.status_code": 400},
    )
    assert list(rows.kind) == [*["success"] * 3, "backend", "backend", "throttled", "caller"]
