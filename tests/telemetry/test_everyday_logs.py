"""Logs as people write them by hand or export them: names, units, blanks and headers that mislead.

Every case is a few lines of text, and what must be read from them or said about them.
"""

import json
import lzma
import warnings

import pandas as pd
import pytest

from arcpoint_ce.apps.cli import run
from arcpoint_ce.telemetry.requests import load_requests

T0 = 1772409600  # 2026-03-02 00:00:00 UTC


def saved(tmp_path, text, name="log.csv"):
    (tmp_path / name).write_text(text)
    return tmp_path / name


def table(head, *rows):
    "A CSV file of rows whose first two cells, a time and a backend, are given."
    return (
        "\n".join([head, *(f"{T0 + i},{'ab'[i % 2]},{row}" for i, row in enumerate(rows))]) + "\n"
    )


def objects(*rows):
    "JSON lines whose times and backends are given."
    made = (dict(ts=T0 + i, backend="ab"[i % 2]) | row for i, row in enumerate(rows))
    return "".join(json.dumps(row) + "\n" for row in made)


def read(path, **options):
    "Rows, and everything that was said about them."
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        with load_requests(path, **options) as log:
            return log.df(), " | ".join(str(w.message) for w in said)


# ---- columns that say who failed, and that nobody reads

SILENT = {
    "three names": (
        table("ts,backend,latency_ms,status_code,success,error_type", "5,200,1,", "6,500,0,x"),
        {},
        "every request counts as a success; status_code, success and error_type were not read: "
        "map them, for example columns={'status': 'status_code'}",
    ),
    "mapped by the caller": (
        table("when,who,took_ms,HTTP Status", "5,200", "6,500"),
        {"columns": {"ts": "when", "backend": "who", "latency_ms": "took_ms"}},
        "HTTP Status was not read: map it, for example columns={'status': 'HTTP Status'}",
    ),
    "only a word": (
        table("ts,backend,latency_ms,failed", "5,true", "6,false"),
        {},
        "columns={'error': 'failed'}",
    ),
    "capital letters": (
        table("ts,backend,latency_ms,Status", "5,200", "6,500"),
        {},
        "columns={'status': 'Status'}",
    ),
    "JSON": (
        objects(*({"latency_ms": 5, "answer": {"statusCode": s}} for s in (200, 500))),
        {},
        "columns={'status': 'answer.statusCode'}",
    ),
}


@pytest.mark.parametrize("name", SILENT)
def test_a_column_that_says_who_failed_and_is_not_read_is_named(tmp_path, name):
    text, options, words = SILENT[name]
    rows, said = read(saved(tmp_path, text), **options)
    assert rows.ok.all() and words in said


TOLD = {
    "a status that is read": (table("ts,backend,latency_ms,status,success", "5,200,1"), {}),
    "the caller wants none": (
        table("ts,backend,latency_ms,status_code", "5,200"),
        {"columns": {"status": None}},
    ),
    "no such column": (table("ts,backend,latency_ms,colour", "5,200"), {}),
}


@pytest.mark.parametrize("name", TOLD)
def test_nothing_is_said_of_outcomes_where_they_are_known_or_not_wanted(tmp_path, name):
    text, options = TOLD[name]
    assert "who failed" not in read(saved(tmp_path, text), **options)[1]


def test_the_check_of_a_log_shows_what_was_not_read(tmp_path, capsys):
    rows = [f"{120 + i % 7},{500 if i % 9 == 0 else 200}" for i in range(200)]
    path = saved(tmp_path, table("ts,backend,latency_ms,status_code", *rows))
    with warnings.catch_warnings(action="ignore"):
        assert run(["check", str(path)]) == 0
    assert "columns={'status': 'status_code'}" in capsys.readouterr().out


# ---- units in the names of columns

UNITS = [
    ("latency_s", "25.5", 25500.0),
    ("Latency (s)", "25.5", 25500.0),
    ("latencySeconds", "25.5", 25500.0),
    ("latency_sec", "25.5", 25500.0),
    ("took-micros", "25500000", 25500.0),
    ("latency_us", "25500000", 25500.0),
    ("elapsedNanos", "25500000000", 25500.0),
    ("took_ns", "25500000000", 25500.0),
    ("latency_s", "25.5 s", 25500.0),
    ("latency_s[ms]", "25.5", 25.5),
    ("durationMs", "25.5", 25.5),
    ("took_ms", "25.5", 25.5),
    ("request", "25.5", 25.5),
]


@pytest.mark.parametrize("name,value,ms", UNITS)
def test_the_unit_in_the_name_of_a_mapped_column_counts(tmp_path, name, value, ms):
    path = saved(tmp_path, table(f"ts,backend,{name.partition('[')[0]}", value))
    rows, said = read(path, columns={"latency_ms": name})
    assert rows.latency_ms.to_list() == [ms]
    noted = f"columns={{'latency_ms': '{name}[ms]'}}" in said
    assert noted == (ms > 1000), said


def test_the_unit_in_the_name_counts_for_the_first_token_and_in_json(tmp_path):
    path = saved(tmp_path, objects({"latency_ms": 900, "times": {"first_s": 0.25}}))
    rows, said = read(path, columns={"ttft_ms": "times.first_s"})
    assert rows.ttft_ms.to_list() == [250.0] and "'times.first_s[ms]'" in said


# ---- blanks around names, and numbers that mean nothing


def test_blanks_around_names_are_no_part_of_them(tmp_path):
    text = "ts,backend,latency_ms,model,tier,tenant\n" + "".join(
        f"{T0 + i},{b},5,{b},{b},{b}\n" for i, b in enumerate([" g0", "g0 ", "g0", "\tg0\u00a0"])
    )
    rows, _ = read(saved(tmp_path, text))
    assert all(rows[c].to_list() == ["g0"] * 4 for c in ("backend", "model", "tier", "tenant"))


def test_minus_one_is_no_latency(tmp_path):
    text = table("ts,backend,latency_ms,ttft_ms,ok", "900,-1,1", "-1,-1,0", "-1.0,,0")
    rows, said = read(saved(tmp_path, text))
    assert rows.latency_ms.isna().to_list() == [False, True, True] and "left out" not in said
    assert rows.get("ttft_ms", pd.Series(dtype=float)).isna().all()
    seconds = read(saved(tmp_path, text), columns={"latency_ms": "latency_ms[s]"})[0]
    assert seconds.latency_ms.dropna().to_list() == [900_000.0]
    with pytest.raises(ValueError, match="is negative: is missing though the request succeeded"):
        read(saved(tmp_path, table("ts,backend,latency_ms,ok", "900,1", "-1,1")))


# ---- the time between two columns

START, END = "2026-03-02T00:00:01.000Z", "2026-03-02 00:00:02.750+00:00"
BETWEEN = {
    "ISO": ("start_time", "end_time", START, END),
    "numbers": ("begin", "finish", T0 * 1000, T0 * 1000 + 1750),
    "a web server's": ("a", "b", "02/Mar/2026:00:00:01 +0000", END),
    "day or month first": ("a", "b", "03/25/2026 00:00:01", "03/25/2026 00:00:02.750"),
    "nested names": ("span.start", "span.end", START, END),
    "a name with a dash": ("start - UTC", "end", START, END),
}


@pytest.mark.parametrize("name", BETWEEN)
def test_a_latency_is_the_time_between_two_columns(tmp_path, name):
    start, end, began, ended = BETWEEN[name]
    columns = {"ts": start, "latency_ms": f"{end} - {start}", "backend": "model"}
    if name != "a name with a dash":
        text = f"model,{start},{end}\nm,{began},{ended}\n"
        assert read(saved(tmp_path, text), columns=columns)[0].latency_ms.to_list() == [1750.0]
    row = json.dumps({"model": "m", start: began, end: ended})
    path = saved(tmp_path, f"{row}\n{row}\n", "x.jsonl")
    assert read(path, columns=columns)[0].latency_ms.to_list() == [1750.0] * 2


def test_the_time_between_two_columns_can_be_asked_for_on_the_command_line(tmp_path, capsys):
    rows = [f"m{i % 2},{T0 + i},{T0 + i + 0.12 + i % 7 / 100}" for i in range(200)]
    path = saved(tmp_path, "\n".join(["model,start,end", *rows]) + "\n")
    mapping = "ts:start,backend:model,latency_ms:end - start"
    with warnings.catch_warnings(action="ignore"):
        assert run(["check", str(path), "--columns", mapping]) == 0
    assert "200 read" in capsys.readouterr().out


def test_a_start_and_an_end_are_named_where_the_latency_is_missing(tmp_path):
    path = saved(tmp_path, f"ts,backend,startTime,endTime,cost\n{T0},a,{START},{END},1\n")
    with pytest.raises(ValueError, match=r"columns=\{'latency_ms': 'endTime - startTime'\}"):
        read(path)
    with pytest.raises(ValueError, match="latency_ms needs column 'end', which is not there"):
        read(path, columns={"latency_ms": "end - startTime"})


def test_what_ends_before_it_starts_is_bad(tmp_path):
    path = saved(tmp_path, f"ts,backend,a,b\n{T0},m,{START},{END}\n")
    with pytest.raises(ValueError, match="latency_ms is negative: '-1750.0'"):
        read(path, columns={"latency_ms": "a - b"})


# ---- dots between thousands


@pytest.mark.parametrize(
    "sep,values,doubtful",
    [
        (";", ["980", "1.250", "760"], True),
        (",", ["980", "1.250", "760"], False),
        (";", ["980.5", "1.250", "760"], False),
        (";", ["3.980", "1.250", "5.760"], False),
        (";", ["980", "1250", ""], False),
    ],
)
def test_dots_that_may_stand_between_thousands_are_doubted(tmp_path, sep, values, doubtful):
    text = table("ts,backend,latency_ms,status", *(f"{v},{200 if v else 503}" for v in values))
    _, said = read(saved(tmp_path, text.replace(",", sep)))
    assert ("1 values such as '1.250' were read as decimals" in said) == doubtful
    assert ("write the column without them" in said) == doubtful


# ---- what is no log that can be read, and how to get one

K6_CSV = (
    "metric_name,timestamp,metric_value,error,name,status,url\n"
    f"http_reqs,{T0},1.0,,n,200,http://a/v1\nhttp_req_duration,{T0},900.5,,n,200,http://a/v1\n"
    f"vus,{T0},1.0,,,,\nhttp_req_duration,{T0 + 1},800.5,,n,503,http://b/v1\n"
)
K6_JSON = "".join(
    json.dumps({"metric": metric, "type": kind, "data": data}) + "\n"
    for metric, kind, data in [
        ("http_reqs", "Metric", {"name": "http_reqs"}),
        ("http_req_duration", "Metric", {"name": "http_req_duration"}),
        *(
            (
                metric,
                "Point",
                {"time": START, "value": 900.5, "tags": {"status": "200", "url": "http://a/v1"}},
            )
            for metric in ("http_reqs", "http_req_duration", "http_req_duration")
        ),
    ]
)
ROWS = [[T0, "a", 5], [T0 + 1, "b", 6]]
NAMES = ["ts", "backend", "latency_ms"]
REFUSED = {
    "no header": (f"{START},a,5,200\n{START},b,6,200\n", "first line holds values, not names"),
    "no header, semicolons": (f"{T0};a;5\n{T0};b;6\n", "such as ts;backend;latency_ms;"),
    "k6 as CSV": (K6_CSV, "samples of k6.*http_req_duration.*grep"),
    "k6 as JSON": (K6_JSON, "samples of k6.*http_req_duration.*jq"),
    "logfmt": (f"time={START} msg=done backend=a latency=1.2s\n" * 3, "access logs of envoy, trae"),
    "HAProxy": (
        "Mar  2 09:00:00 lb haproxy[1]: 10.0.1.2:33 [02/Mar/2026:09:00:00.6] in llm/g0 1/0/3/6/9\n",
        "text of a form that is not known.*as CSV with a line of names, or as JSON lines",
    ),
    "a load balancer": (f"https {START} app/llm/5 10.0.0.1:2 10.0.0.2:8000 0.0 1.9\n", "not known"),
    "uvicorn": ('INFO:     172.18.0.1:51012 - "POST /v1 HTTP/1.1" 200 OK\n', "not known"),
    "a container's lines": (f'{START} stdout F {{"ts": {T0}, "backend": "a"}}\n', "not known"),
    "a server's own log": (
        "INFO 03-02 09:00:00 [loggers.py:87] Prompt throughput: 1.0 tokens/s, Running: 1 reqs\n",
        "not known",
    ),
    "pandas, split": (
        json.dumps({"columns": NAMES, "index": [0, 1], "data": ROWS}),
        "orient='split'.*orient='records'",
    ),
    "pandas, columns": (
        json.dumps({n: {"0": r, "1": r} for n, r in zip(NAMES, ROWS[0])}),
        "one object a column .ts, backend, latency_ms.*orient='records'",
    ),
    "lists": (
        json.dumps({n: [r, r] for n, r in zip(NAMES, ROWS[0])}, indent=1),
        "one list a column",
    ),
    "ClickHouse": (
        json.dumps({"meta": [{"name": n, "type": "String"} for n in NAMES], "data": ROWS}),
        "JSONCompact.*FORMAT JSONEachRow",
    ),
    "rows by their keys": (
        json.dumps({f"r{i}": dict(zip(NAMES, row)) for i, row in enumerate(ROWS)}, indent=2),
        "rows by their keys .r0, r1",
    ),
    "all that is missing": (
        "when,who,took\n1,a,5\n",
        "ts needs column 'ts', which is not there. Missing as well: backend, latency_ms..*"
        "Map them with columns=.'ts': '<its name>', 'backend': '<its name>', 'latency_ms'",
    ),
    "nanoseconds": (f"ts,backend,latency_ms\n{T0},a,5000000000\n", r"is above .*name\[ns\]"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_refusal_says_what_the_file_is_and_what_to_do(tmp_path, name):
    text, words = REFUSED[name]
    with pytest.raises(ValueError, match=words) as e:
        read(saved(tmp_path, text))
    assert "log.csv" in str(e.value)


def test_a_header_is_missed_even_where_columns_are_mapped(tmp_path):
    text = f"{T0},a,5,200\n{T0 + 1},b,6,200\n"
    columns = {"ts": str(T0), "backend": "a", "latency_ms": "5"}
    with pytest.raises(ValueError, match="holds values, not names"):
        read(saved(tmp_path, text), columns=columns)
    counted = {"ts": "0", "backend": "1", "latency_ms": "2"}  # as pandas numbers its columns
    assert len(read(saved(tmp_path, "0,1,2,3\n" + text), columns=counted)[0]) == 2


def test_the_advice_for_k6_works(tmp_path):
    mapped = {"backend": "url", "latency_ms": "metric_value", "ts": "timestamp", "status": "status"}
    with pytest.raises(ValueError, match="keep those of http_req_duration"):
        read(saved(tmp_path, K6_CSV), columns=mapped)
    kept = [s for s in K6_CSV.splitlines() if s.startswith(("metric_name,", "http_req_duration,"))]
    rows, _ = read(saved(tmp_path, "\n".join(kept) + "\n"), columns=mapped)
    assert (rows.latency_ms.to_list(), rows.ok.to_list()) == ([900.5, 800.5], [True, False])
    told = {"ts": "data.time", "latency_ms": "data.value", "status": "data.tags.status"}
    told["backend"] = "data.tags.url"
    points = [s for s in K6_JSON.splitlines() if '"http_req_duration", "type": "Point"' in s]
    rows, _ = read(saved(tmp_path, "\n".join(points) + "\n", "x.jsonl"), columns=told)
    assert (rows.latency_ms.to_list(), rows.backend[0]) == ([900.5] * 2, "http://a/v1")


@pytest.mark.parametrize(
    "above", ["# monthly export, all teams\n", "# one\n# two\n", "#\n", "sep=,\n# ts\n"]
)
@pytest.mark.parametrize("damaged", [False, True])
def test_comments_above_a_header_are_no_header(tmp_path, above, damaged):
    text = above + table("ts,backend,latency_ms", "5", "6") + damaged * '1,"\n'
    rows, _ = read(saved(tmp_path, text), max_bad=0.5, quarantine=tmp_path / "q.csv")
    assert rows.latency_ms.to_list() == [5.0, 6.0]
    if damaged:
        line = text.split("\n").index('1,"') + 1
        assert pd.read_csv(tmp_path / "q.csv").line.to_list() == [line]


def test_a_header_may_be_a_comment_itself(tmp_path):
    rows, _ = read(saved(tmp_path, table("# ts,backend,latency_ms", "5", "6")))
    assert rows.latency_ms.to_list() == [5.0, 6.0]


@pytest.mark.parametrize(
    "pack", [lambda t: t.encode("utf-16"), lambda t: lzma.compress(t.encode())]
)
@pytest.mark.parametrize(
    "text",
    [
        "when,backend\n1,a\n",
        "ts;ts\n1;2\n",
        K6_CSV,
        "ts,backend,latency_ms\n03/04/2026 10:00,a,5\n",
    ],
)
def test_messages_name_the_file_and_not_its_copy(tmp_path, pack, text):
    (tmp_path / "mine.csv").write_bytes(pack(text))
    with pytest.raises(ValueError) as e:
        read(tmp_path / "mine.csv")
    assert str(e.value).startswith(f"{tmp_path / 'mine.csv'}: ") and "plain_" not in str(e.value)


def test_a_folder_is_called_a_folder(tmp_path):
    saved(tmp_path, table("ts,backend,latency_ms", "5"))
    with pytest.raises(FileNotFoundError, match=r"a folder, not a file; .*/\*\.csv"):
        load_requests(tmp_path)
    assert len(read(f"{tmp_path}/*.csv")[0]) == 1
