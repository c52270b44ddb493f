"""Request logs and telemetry: every kind of bad row, a fuzz over the loader, and SQL steps against
a plain fold.
"""

import gzip
import json
import os
import random
import tempfile
import warnings
from collections import defaultdict
from pathlib import Path

import duckdb
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from arcpoint_ce.routing.records import Step, _to_us
from arcpoint_ce.telemetry.intake import _BadRows
from arcpoint_ce.telemetry.requests import load_requests

HEAD = "ts,backend,latency_ms,ok,error,request_id,tokens_in,cost_usd,quality"
GOOD = ["1714564800", "a", "12.5", "true", "", "r0", "10", "0.01", "0.5"]


def save(tmp_path, text, name="log.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def line(**changes):
    return ",".join(changes.get(c, v) for c, v in zip(HEAD.split(","), GOOD))


BAD_VALUES = [
    ("ts", "", "is missing"),
    ("ts", "soon", "is not a time"),
    ("ts", "2024-13-01T00:00:00Z", "is not a time"),
    ("ts", "nan", "is not a time"),
    ("ts", "-5", "before 1970"),
    ("ts", "9000000000", "after 2200"),
    ("ts", "1714564900", "lies in the future"),
    ("backend", "", "is missing"),
    ("backend", "  ", "is missing"),
    ("latency_ms", "-1", "is negative"),
    ("latency_ms", "NaN", "is NaN"),
    ("latency_ms", "inf", "is infinite"),
    ("latency_ms", "-Infinity", "is infinite"),
    ("latency_ms", "fast", "is not a number"),
    ("latency_ms", "1e9", "is above"),
    ("latency_ms", "", "is missing though the request succeeded"),
    ("ok", "perhaps", "is not true or false"),
]


@pytest.mark.parametrize("column,raw,reason", BAD_VALUES)
def test_bad_value(tmp_path, column, raw, reason):
    path = save(
        tmp_path,
        "\n".join([HEAD, line(), line(**{"request_id": "r1", column: raw}), line(request_id="r2")])
        + "\n",
    )
    with load_requests(path, now=1714564850.0, max_bad=1.0, quarantine=tmp_path / "q.csv") as log:
        assert (log.rows_in, log.rows, log.quarantined) == (3, 2, 1)
    q = pd.read_csv(log.quarantine_path, dtype=str, keep_default_na=False)
    assert q.to_dict("records") == [
        {"file": str(path), "line": "3", "column": column, "reason": q.reason[0], "raw": raw}
    ]
    assert reason in q.reason[0]


LOST_VALUES = [
    ("tokens_in", "1.5"),
    ("tokens_in", "-3"),
    ("tokens_in", "x"),
    ("cost_usd", "inf"),
    ("cost_usd", "-0.1"),
    ("quality", "inf"),
]


@pytest.mark.parametrize("column,raw", LOST_VALUES)
def test_a_bad_optional_value_costs_the_value_and_not_the_row(tmp_path, column, raw):
    path = save(
        tmp_path, "\n".join([HEAD, line(), line(**{"request_id": "r1", column: raw})]) + "\n"
    )
    with pytest.warns(UserWarning, match=f"left out: 1 of {column}"):
        log = load_requests(path)
    assert (log.rows_in, log.rows, log.lost) == (2, 2, {column: 1})
    assert log.df()[column].isna().to_list() in ([False, True], [True, False])
    log.close()


BAD_LINES = [
    (b"1714564800,a,12.5", "has 3 columns instead of 9"),
    (line().encode() + b",more", "has 10 columns instead of 9"),
    (line(error='"open').encode(), "has broken quotes"),
    (line(error="\r").encode(), "holds control characters"),
    (line(error="\0").encode(), "holds control characters"),
    (line().encode().replace(b"a", b"\xff"), "is not UTF-8"),
]


@pytest.mark.parametrize("raw,reason", BAD_LINES)
def test_bad_line(tmp_path, raw, reason):
    """Neighbours of a damaged line survive it."""
    path = save(
        tmp_path,
        b"\n".join([HEAD.encode(), line().encode(), b"", raw, line(request_id="r2").encode()]),
    )
    with load_requests(path, max_bad=1.0, quarantine=tmp_path / "q.csv") as log:
        assert (log.rows_in, log.rows, log.quarantined) == (3, 2, 1)
    q = pd.read_csv(log.quarantine_path)
    assert (q.line[0], q.column[0]) == (4, "line") and reason in q.reason[0]


@pytest.mark.parametrize("raw", ["{", "12", "[]", '{"ts": 1', "null", '"x"'])
def test_bad_json_line(tmp_path, raw):
    good = '{"ts": 1714564800, "backend": "a", "latency_ms": 5}'
    path = save(tmp_path, f"{good}\n{raw}\n{good}\n", "log.jsonl")
    with load_requests(path, max_bad=1.0, quarantine=tmp_path / "q.csv") as log:
        assert (log.rows_in, log.rows) == (3, 2)
    q = pd.read_csv(log.quarantine_path, dtype=str, keep_default_na=False)
    assert (q.line[0], q.raw[0]) == ("2", raw)


def test_repeats_keep_one_row_whatever_the_order(tmp_path):
    """A row repeats another if id, backend and time are the same; a later attempt is none."""
    rows = [
        line(ts="1714564801", latency_ms="3"),
        line(ts="1714564801", latency_ms="2"),
        line(request_id=""),
        line(request_id=""),
    ]
    for order in (rows, rows[::-1]):
        path = save(tmp_path, "\n".join([HEAD, *order, order[0]]) + "\n")
        with load_requests(path, max_bad=1.0, quarantine=tmp_path / "q.csv") as log:
            df = log.df()
            assert log.rows_in == 5 == log.rows + log.quarantined
        assert df[df.request_id == "r0"].latency_ms.to_list() == [2.0]
        q = pd.read_csv(log.quarantine_path)
        assert (
            q.reason.str.contains("repeats an earlier row").all()
            and q.line.is_unique
            and q.line.notna().all()
        )


def test_attempts_elsewhere_or_later_are_no_repeats(tmp_path):
    rows = [line(), line(ts="1714564801"), line(backend="b")]
    with load_requests(save(tmp_path, "\n".join([HEAD, *rows]) + "\n")) as log:
        assert (log.rows, log.quarantined) == (3, 0)


def test_equal_rows_without_ids_are_kept(tmp_path):
    with load_requests(save(tmp_path, "ts,backend,latency_ms\n1,a,5\n1,a,5\n")) as log:
        assert log.rows == 2


def test_mixed_zones_and_order(tmp_path):
    times = [
        "2024-05-01T14:00:03+02:00",
        "2024-05-01T12:00:02Z",
        "2024-05-01 12:00:01",
        "1714564800",
        "1714564800500",
    ]
    with load_requests(
        save(tmp_path, "ts,backend,latency_ms\n" + "".join(f"{t},a,5\n" for t in times))
    ) as log:
        ts = log.df().ts
    assert [t.value // 10**6 - 1714564800_000 for t in ts] == [0, 500, 1000, 2000, 3000]


def test_too_many_bad_rows_show_five_and_the_remedy(tmp_path):
    path = save(tmp_path, "ts,backend,latency_ms\n" + "1,a,-5\n" * 7 + "1,a,5\n" * 3)
    with pytest.raises(_BadRows) as e:
        load_requests(path, quarantine=tmp_path / "q.csv")
    text = str(e.value)
    assert (
        text.count("is negative") == 5
        and "7 of 10" in text
        and "max_bad" in text
        and str(tmp_path / "q.csv") in text
    )
    assert isinstance(e.value, ValueError) and len(pd.read_csv(e.value.quarantine_path)) == 7


@pytest.mark.parametrize(
    "text,words",
    [
        ("", "empty"),
        ("ts,backend,latency_ms\n", "empty"),
        ("ts,backend,ms\n1,a,5\n", "Map it with columns={'latency_ms'"),
        ("ts,ts,backend,latency_ms\n1,1,a,5\n", "stands twice"),
    ],
)
def test_unusable_files(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        load_requests(save(tmp_path, text))


def test_unknown_names_raise(tmp_path):
    path = save(tmp_path, "ts,backend,latency_ms\n1,a,5\n")
    with pytest.raises(ValueError, match="unknown canonical name 'lat'; known: ts, backend"):
        load_requests(path, columns={"lat": "latency_ms"})
    with pytest.raises(ValueError, match="known: litellm, bedrock"):
        load_requests(path, preset="other")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_requests(tmp_path / "absent*.csv")
    with pytest.raises(TypeError):
        load_requests(path, colums={})


@pytest.mark.slow
def test_formats_agree(tmp_path):
    """CSV, gzip, JSON lines, Parquet and a glob over two halves give the same rows and steps."""
    rng = random.Random(1)
    rows = [
        (1714564800 + i / 8, rng.choice("ab"), round(rng.uniform(0, 9e4), 3), i) for i in range(400)
    ]
    text = "t,backend,latency_ms,tokens_in\n" + "".join(f"{t},{b},{x},{n}\n" for t, b, x, n in rows)
    objects = "".join(
        json.dumps({"t": t, "backend": b, "latency_ms": x, "tokens_in": n}) + "\n"
        for t, b, x, n in rows
    )
    head, *body = text.splitlines(keepends=True)
    (
        save(tmp_path, head + "".join(body[:150]), "half_1.csv"),
        save(tmp_path, head + "".join(body[150:]), "half_2.csv"),
    )
    duckdb.connect().execute(
        f"COPY (SELECT * FROM read_csv('{save(tmp_path, text)}')) TO '{tmp_path}/log.parquet'"
    )
    paths = [
        tmp_path / "log.csv",
        save(tmp_path, gzip.compress(text.encode()), "log.csv.gz"),
        save(tmp_path, objects, "log.jsonl"),
        tmp_path / "log.parquet",
        str(tmp_path / "half_*.csv"),
        [tmp_path / "half_1.csv", tmp_path / "half_2.csv"],
        save(tmp_path, "\ufeff" + text.replace(",", ";").replace("\n", "\r\n"), "semi.csv"),
    ]
    seen = []
    for p in paths:
        with load_requests(p, columns={"ts": "t"}) as log:
            seen.append((log.df(), log.steps(30)))
    for df, steps in seen[1:]:
        pd.testing.assert_frame_equal(df, seen[0][0])
        pd.testing.assert_frame_equal(steps, seen[0][1])


def test_parquet_bad_rows_are_found(tmp_path):
    duckdb.connect().execute(f"""COPY (SELECT
        TIMESTAMPTZ '2024-05-01 12:00:00+00' AS ts, 'a' AS backend,
        unnest([1.0, 'nan'::DOUBLE, -2.0, 4.0]) AS latency_ms) TO '{tmp_path}/log.parquet'""")
    with load_requests(tmp_path / "log.parquet", max_bad=1.0, quarantine=tmp_path / "q.csv") as log:
        assert log.rows == 2
    assert pd.read_csv(tmp_path / "q.csv").line.to_list() == [2, 3]  # rows, counted from 1


def test_spans_tell_which_version_answered(tmp_path):
    spans = [
        {
            "traceId": "t",
            "spanId": str(k),
            "startTimeUnixNano": str(1_767_225_600_000_000_000 + k * 10**9),
            "endTimeUnixNano": str(1_767_225_600_500_000_000 + k * 10**9),
            "attributes": {
                "gen_ai.operation.name": "chat",
                "gen_ai.provider.name": "p",
                "gen_ai.request.model": "m",
                **({"gen_ai.response.model": "m-0613"} if k else {}),
            },
        }
        for k in range(2)
    ]
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(s) + "\n" for s in spans))
    got = load_requests(tmp_path / "s.jsonl", preset="otel").df()
    assert (
        list(got.model) == ["m", "m"]
        and got.version.iloc[1] == "m-0613"
        and pd.isna(got.version.iloc[0])
        and list(got.latency_ms) == [500.0, 500.0]
    )


# ---- fuzz: 25 files in one load; ARCPOINT_FUZZ_FILES asks for another number

FILES = int(os.environ.get("ARCPOINT_FUZZ_FILES", 500))
COLUMNS = ("ts", "backend", "latency_ms", "ok", "request_id", "tokens_out")
SPOILT = [
    ("ts", ""),
    ("ts", "later"),
    ("ts", "-1"),
    ("backend", ""),
    ("latency_ms", "-1"),
    ("latency_ms", "nan"),
    ("latency_ms", "inf"),
    ("latency_ms", ""),
    ("latency_ms", "1,5"),
    ("ok", "7"),
]
LOST = ["0.5", "-2", "many"]  # tokens that are no count: the value is lost, not the row
NAMES = ["a", "b c", 'q"uote', "com,ma", "ünï", "=x", "a'b", "{}", "0"]


def good_row(r, i):
    us = r.randrange(10**13, 4 * 10**15)
    text = r.choice(
        [
            lambda: str(us // 10**6),
            lambda: f"{us // 10**6}.{us % 10**6:06d}",
            lambda: pd.Timestamp(us, unit="us").isoformat() + r.choice(["", "Z", "+00:00"]),
        ]
    )()
    ts = us // 10**6 * 10**6 if text == str(us // 10**6) else us
    latency = round(r.choice([r.uniform(0, 5), r.uniform(0, 1e6), 0.0]), r.randrange(0, 7))
    row = {
        "ts": text,
        "backend": r.choice(NAMES),
        "latency_ms": repr(latency),
        "ok": r.choice(["true", "1", "True"]),
        "request_id": f"r{i}",
        "tokens_out": str(r.randrange(0, 10**6)),
    }
    return row, (ts, row["backend"], latency, True, row["request_id"], int(row["tokens_out"]))


def as_line(r, row, is_json):
    if is_json:
        return json.dumps(row, ensure_ascii=r.random() < 0.5)

    def cell(v):
        return '"' + v.replace('"', '""') + '"' if set(v) & set(',"') or r.random() < 0.1 else v

    return ",".join(cell(row[c]) for c in COLUMNS)


def damage(r, raw):
    """A line that is damaged for certain, whatever it was."""
    return r.choice(
        [
            b"\xff" + raw,
            raw + b"\0",
            raw[:1] + b"\r" + raw[1:],
            raw + b',"',
            b"1,2",
            b'"' + raw[1:].replace(b'"', b""),
            b"{]",
        ]
    )


def make_file(r, path, number):
    """A file, the rows that must come out, the number of rows in it; None for the rows where bytes
    were flipped at random.
    """
    is_json = path.suffix == ".jsonl"
    lines, rows, n = [], [], 0
    for i in range(r.randrange(1, 9)):
        # no few flipped bytes make it the id of another file
        row, value = good_row(r, f"{number}_{i}_{number}_{number}")
        what = r.random()
        n += 1
        if what < 0.15:
            column, raw = r.choice(SPOILT)
            lines.append(as_line(r, row | {column: raw}, is_json).encode())
        elif what < 0.2:
            lines.append(as_line(r, row | {"tokens_out": r.choice(LOST)}, is_json).encode())
            rows.append((*value[:-1], None))
        elif what < 0.25:
            lines.append(damage(r, as_line(r, row, is_json).encode()))
        else:
            lines.append(as_line(r, row, is_json).encode())
            rows.append(value)
        if r.random() < 0.05:
            lines.append(r.choice([b"", b" ", b"\t "]))
    if r.random() < 0.2:
        rows = None
        i = r.randrange(len(lines))
        b = bytearray(lines[i] or b"x")
        for _ in range(r.randrange(1, 4)):
            b[r.randrange(len(b))] = r.choice(b'",\n\r{}\\\0\xe4 1a\x01\x1f')
        lines[i] = bytes(b)
    ends = r.choice([[b"\n"], [b"\r\n"], [b"\n", b"\r\n"]])
    data = b"".join(s + r.choice(ends) for s in lines)
    without = data.rstrip(b"\r\n")
    if r.random() < 0.3 and b"\n" in without:  # else a carriage return would end lines
        data = without
    n = sum(1 for s in data.split(b"\n") if s.strip())
    if not is_json:
        data = ",".join(COLUMNS).encode() + r.choice(ends) + data
    path.write_bytes(data)
    return rows, n


# the same files in every run, unless somebody asks for more of them
FUZZ = dict(
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
    derandomize="ARCPOINT_FUZZ_FILES" not in os.environ,
)


@pytest.mark.slow
@settings(max_examples=max(FILES // 25, 1), **FUZZ)
@given(st.integers(0, 2**62))
def test_fuzz_nothing_is_lost(seed):
    nothing_is_lost(seed)


def nothing_is_lost(seed):
    "Load damaged files: what is good comes out as it was written, and what is bad is counted."
    r = random.Random(seed)
    with tempfile.TemporaryDirectory() as tmp:
        paths = [Path(tmp) / f"{i}.{r.choice(['csv', 'jsonl'])}" for i in range(25)]
        made = [make_file(r, p, i) for i, p in enumerate(paths)]
        with (
            warnings.catch_warnings(action="ignore"),
            load_requests(paths, max_bad=1.0, quarantine=Path(tmp) / "q.csv") as log,
        ):
            lines, flipped = sum(n for _, n in made), sum(rows is None for rows, _ in made)
            # a flipped byte may put a line end inside of quotes, or be a line end of its own
            assert lines - 3 * flipped <= log.rows_in <= lines + flipped
            assert log.rows_in == log.rows + log.quarantined
            got = {
                x[4]: x
                for x in log.con.execute(
                    "SELECT ts, backend, latency_ms, ok, request_id, tokens_out FROM log"
                ).fetchall()
            }
            q = pd.read_csv(Path(tmp) / "q.csv", dtype=str) if log.quarantined else []
            assert len(q) == log.quarantined
            if log.rows:
                steps = log.steps(86_400 * 30)
                assert steps.n.sum() == log.rows
        for path, (rows, n) in zip(paths, made):
            if rows is None:
                continue
            for value in rows:
                assert got.get(value[4]) == value
            assert (q.file == str(path)).sum() == n - len(rows) if len(q) else n == len(rows)


# ---- steps: SQL against a plain fold


def fold(rows, step_s):
    """What live folding gives: one outcome at a time, then the state at each step's end."""
    steps, us = defaultdict(dict), step_s * 10**6
    by = defaultdict(list)
    for b, ts, ms, ok, error, tin, tout in rows:
        lat = None if ms is None else _to_us(ms)
        end = ts + (lat or 0)
        by[b].append((ts, end, lat, ok, error, tin, tout))
    for b, events in by.items():
        for k in range(min(e[0] for e in events) // us, max(e[1] for e in events) // us + 1):
            steps[b][k] = Step(k * step_s)
        for ts, end, lat, ok, error, tin, tout in events:
            steps[b][end // us].add(lat if ok or error == "timeout" else None, ok, tin, tout)
        for k, s in steps[b].items():
            T = (k + 1) * us
            running = [ts for ts, end, *_ in events if ts < T <= end]
            s.in_flight = len(running)
            s.oldest_ms = (T - min(running)) / 1000 if running else None
    return {(b, s.start_s): s for b, m in steps.items() for s in m.values()}


times = st.one_of(st.integers(0, 600_000_000), st.integers(0, 10).map(lambda k: k * 60_000_000))
latencies = st.one_of(
    st.none(),
    st.floats(0, 400_000),
    st.integers(0, 6).map(lambda k: k * 60_000.0),
    st.sampled_from([0.0, 0.0004, 0.0005, 0.016, 1e-9]),
)
rows_st = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        times,
        latencies,
        st.booleans(),
        st.sampled_from([None, "timeout", "refused"]),
        st.integers(0, 1000),
        st.integers(0, 1000),
    ),
    min_size=1,
    max_size=40,
)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(rows_st, st.sampled_from([1, 7, 60, 300]))
def test_sql_steps_equal_a_plain_fold(rows, step_s):
    rows = [(b, ts, ms, ok and ms is not None, error, i, o) for b, ts, ms, ok, error, i, o in rows]
    with tempfile.TemporaryDirectory() as tmp:
        path = Path(tmp) / "log.jsonl"
        path.write_text(
            "".join(
                json.dumps(
                    {
                        "ts": f"{ts // 10**6}.{ts % 10**6:06d}",
                        "backend": b,
                        "latency_ms": ms,
                        "ok": ok,
                        "error": e,
                        "tokens_in": i,
                        "tokens_out": o,
                    }
                )
                + "\n"
                for b, ts, ms, ok, e, i, o in rows
            )
        )
        with warnings.catch_warnings(action="ignore"), load_requests(path) as log:
            got = log.steps(step_s)
    want = fold(rows, step_s)
    assert got[["start_s", "backend"]].apply(tuple, axis=1).to_list() == sorted(
        (s, b) for b, s in want
    )
    for g in got.itertuples():
        s = want[g.backend, g.start_s]
        assert (
            g.n,
            g.n_err,
            g.n_lat,
            g.latency_us,
            g.tokens_in,
            g.tokens_out,
            g.in_flight,
            g.oldest_ms,
            g.hist,
        ) == (
            s.n,
            s.n_err,
            s.n_lat,
            s.latency_us,
            s.tokens_in,
            s.tokens_out,
            s.in_flight,
            s.oldest_ms,
            s.hist,
        )


def test_a_grid_of_decades_is_refused(tmp_path):
    with load_requests(save(tmp_path, "ts,backend,latency_ms\n0,a,5\n1714564800,a,5\n")) as log:
        with pytest.raises(ValueError, match="longer steps"):
            log.steps(1)
