"""Logs as people write them by hand or export them: names, units, blanks and headers that mislead.

Every case is a few lines of text, and what must be read from them or said about them.
"""

import json
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
