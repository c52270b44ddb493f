"""Series per backend and step: what monitoring exports is read right, or refused with a reason."""

import gzip
import json
import math
import os
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from arcpoint_ce.telemetry.files import _open_database, find_files, read_text
from arcpoint_ce.telemetry.series import load_telemetry, looks_like_series
from arcpoint_ce.telemetry.source import load_steps


def save(tmp_path, text, name="log.csv"):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_telemetry_rules(tmp_path):
    head = "ts,backend,requests,latency_ms,p90_ms,error_rate\n"
    rows = [
        "0,a,10,5,9,0.1",
        "60,a,0,,,",
        "120,a,7,5.3337,,0",
        "180,a,-1,5,,",
        "240,a,1,5,,1.5",
        "120,a,7,6,,0",
        "300,a,1,nan,,",
        "360,a,,5,,",
    ]
    t = load_telemetry(
        save(tmp_path, head + "\n".join(rows) + "\n"), max_bad=1.0, quarantine=tmp_path / "q.csv"
    )
    assert (t.rows_in, t.rows, t.quarantined, t.step_s) == (8, 4, 4, 60)
    assert sorted(pd.read_csv(tmp_path / "q.csv").line) == [5, 6, 7, 9]
    s = t.steps()
    assert (
        s.n.to_list() == [10, 0, 7, 0, 0, 1]
        and s.n_err.to_list() == [1, 0, 0, 0, 0, 0]
        and s.n_lat.to_list() == [1 * 10, 0, 7, 0, 0, 0]
    )
    assert (
        s.latency_us.to_list() == [50_000, 0, 37_336, 0, 0, 0]
        and s.mean_ms[2] == 5.3337
        and s.p90_ms[0] == 9
    )


def test_petshop_damaged_lines(tmp_path):
    head = [
        "microservice,x,x,y,y",
        "metric,latency,requests,latency,requests",
        "statistic,Average,Sum,Average,Sum",
        "unix_timestamp,,,,",
    ]
    t = load_telemetry(
        save(
            tmp_path,
            "\n".join(
                head
                + [
                    "300,0.1,5,,",
                    "600,0.1,5",
                    "900,0.2,4,-1,3",
                    "soon,0.2,4,0.1,3",
                    '1200,"0.1,5,,',
                    "1500,0.1,1,0.2,2",
                ]
            )
            + "\n",
        ),
        "petshop",
        max_bad=1.0,
        quarantine=tmp_path / "q.csv",
    )
    assert (t.rows_in, t.rows, t.quarantined) == (9, 4, 5)
    assert pd.read_csv(tmp_path / "q.csv").line.to_list() == [6, 7, 8, 8, 9]


def test_petshop_real_file():
    root = os.environ.get("ARCPOINT_DATA")
    path = Path(root or "") / "telemetry/petshop_low_traffic"
    if not root or not (path / "noissue/metrics.csv").exists():
        pytest.skip("ARCPOINT_DATA is not set, or holds no telemetry/petshop_low_traffic")
    t = load_telemetry(path / "noissue/metrics.csv", "petshop", graph=path / "graph.csv")
    wide = pd.read_csv(path / "noissue/metrics.csv", header=[0, 1, 2], index_col=0)
    assert (
        t.step_s == 300
        and t.quarantined == 0
        and t.rows == int(wide.xs(("requests", "Sum"), axis=1, level=(1, 2)).notna().sum().sum())
    )
    assert len(t.edges) > 10 and len({a for e in t.edges for a in e} & set(t.backends)) > 10
    s = t.steps().set_index(["backend", "start_s"])
    for b in t.backends[:5]:
        mean = wide[b]["latency"]["Average"].dropna() * 1e3
        got = s.loc[b].mean_ms.reindex(mean.index.astype(int))
        assert all(math.isclose(x, y, rel_tol=1e-12) for x, y in zip(mean, got))


# ---- what monitoring exports

MINUTES = 40


def rows_of(sep=",", quote="", unit="", ts="2026-03-02 00:{:02d}:00"):
    "Forty minutes of two backends: 30 requests each, 120 to 126 ms."
    for k in range(MINUTES):
        for b in ("a", "b"):
            cells = (ts.format(k), b, "30", f"{120 + k % 7}{unit}")
            yield sep.join(f"{quote}{c}{quote}" for c in cells)


def series(head="ts,backend,requests,latency_ms", **how):
    return "\n".join([head, *rows_of(**how)]) + "\n"


def check(t, n=2 * MINUTES, requests=30 * 2 * MINUTES):
    assert (t.rows, t.quarantined, t.backends, t.frame.requests.sum()) == (
        n,
        0,
        ["a", "b"],
        requests,
    )
    assert t.frame.latency_ms.min() == 120 and t.frame.latency_ms.max() == 126
    assert t.frame.ts.min() == pd.Timestamp("2026-03-02", tz="UTC") and t.step_s == 60


GRAFANA = {
    "sep line": "sep=,\n" + series('"Time","backend","requests","latency_ms"', quote='"'),
    "quoted sep line": '"sep=;"\n' + series("Time;backend;requests;latency_ms", sep=";"),
    "milliseconds": series("Time,backend,requests,latency_ms", unit=" ms"),
    "tabs": series("Time\tbackend\trequests\tlatency_ms", sep="\t"),
    "seconds": "\n".join(
        ["Time,backend,requests,latency_ms"]
        + [
            f"2026-03-02 00:{k:02d}:00,{b},30 req,0.{120 + k % 7} s"
            for k in range(MINUTES)
            for b in "ab"
        ]
    ),
    "zone": series(ts="2026-03-02T01:{:02d}:00+01:00"),
    "slashes": series(ts="2026/03/02 00:{:02d}:00"),
    "brackets": series(ts="[2026-03-02T00:{:02d}:00Z]"),
    "decimal comma": series(ts='"2026-03-02 00:{:02d}:00,000"'),
}


@pytest.mark.parametrize("text", GRAFANA.values(), ids=GRAFANA)
def test_tables_of_a_dashboard(tmp_path, text):
    check(load_telemetry(save(tmp_path, text)))


@pytest.mark.parametrize(
    "encode",
    [
        lambda s: s.encode("utf-16"),
        lambda s: s.encode("utf-16-le"),
        lambda s: s.encode("utf-8-sig"),
        lambda s: s.replace("\n", "\r").encode(),
        lambda s: s.replace("\n", "\r\n").encode(),
        lambda s: gzip.compress(s.encode()),
    ],
    ids=["utf-16", "utf-16 without a mark", "bom", "old line ends", "dos line ends", "gzip"],
)
def test_however_a_series_is_written(tmp_path, encode):
    path = tmp_path / "s.log"  # what a file holds counts, not its ending
    path.write_bytes(encode(series()))
    check(load_telemetry(path))
    assert looks_like_series(path)


def test_a_series_in_a_zip_archive(tmp_path):
    with zipfile.ZipFile(tmp_path / "s.zip", "w") as archive:
        archive.writestr("s.csv", series())
    check(load_telemetry(tmp_path / "s.zip"))
    with zipfile.ZipFile(tmp_path / "s.zip", "a") as archive:
        archive.writestr("t.csv", series())
    with pytest.raises(ValueError, match="zip archive of 2 files"):
        load_telemetry(tmp_path / "s.zip")


def records(**more):
    for k in range(MINUTES):
        for b in ("a", "b"):
            yield {"ts": f"2026-03-02T00:{k:02d}:00Z", "backend": b, "requests": 30} | {
                name: f(k) for name, f in more.items()
            }


@pytest.mark.parametrize("write", ["lines", "array", "object", "parquet"])
def test_records(tmp_path, write):
    made = list(records(latency_ms=lambda k: 120 + k % 7))
    if write == "parquet":
        frame = pd.DataFrame(made).assign(ts=lambda x: pd.to_datetime(x.ts))
        with _open_database(scratch=tmp_path) as con:
            con.register("made", frame)
            con.execute(f"COPY made TO '{tmp_path}/s.parquet'")
        return check(load_telemetry(tmp_path / "s.parquet"))
    text = {
        "lines": "\n".join(map(json.dumps, made)),
        "array": json.dumps(made, indent=2),
        "object": json.dumps({"status": "ok", "rows": made}),
    }[write]
    check(load_telemetry(save(tmp_path, text, "s.json")))


def test_nested_records_and_units_in_brackets(tmp_path):
    made = records(latency=lambda k: {"mean": (120 + k % 7) * 1000, "p90": "0.2 s"})
    path = save(tmp_path, "\n".join(map(json.dumps, made)), "s.jsonl")
    columns = {"latency_ms": "latency.mean[us]", "p90_ms": "latency.p90"}
    t = load_telemetry(path, columns=columns)
    check(t)
    assert set(t.frame.p90_ms) == {200.0}


@pytest.mark.parametrize(
    "unit, factor", [("s", 1e-3), ("ms", 1), ("us", 1e3), ("ns", 1e6)], ids=lambda x: str(x)
)
def test_units_of_times_and_latencies(tmp_path, unit, factor):
    head = (
        f"when,backend,requests,took,took[{unit}]\n"
        if unit == "ns"
        else "when,backend,requests,took\n"
    )
    seconds = {"s": 1, "ms": 1e3, "us": 1e6, "ns": 1e9}[unit]
    more = f",{0.12 * 1e3}" if unit == "ns" else ""  # a column that really has the name goes first
    rows = [
        f"{1772409600 * seconds + 60 * k * seconds:.0f},a,5,{120 * factor:g}{more}"
        for k in range(9)
    ]
    t = load_telemetry(
        save(tmp_path, head + "\n".join(rows)),
        columns={"ts": f"when[{unit}]", "latency_ms": f"took[{unit}]"},
    )
    assert t.frame.latency_ms.tolist() == pytest.approx([120.0] * 9)
    assert t.frame.ts.min() == pd.Timestamp("2026-03-02", tz="UTC") and t.step_s == 60


def test_an_unknown_unit_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no unit \[furlong\]; known: ns, us, ms, s"):
        load_telemetry(save(tmp_path, series()), columns={"latency_ms": "latency_ms[furlong]"})


def wide(names, sep=","):
    quoted = ['"' + n.replace('"', '""') + '"' for n in names]
    rows = [
        sep.join(
            [f"2026-03-02 00:{k:02d}:00", "30", f"{120 + k % 7} ms", "30", f"{120 + k % 7} ms"]
        )
        for k in range(MINUTES)
    ]
    return "\n".join([sep.join(["Time", *quoted]), *rows]) + "\n"


WIDE = {
    "labels": ['requests{backend="a"}', 'latency_ms{backend="a"}']
    + ['requests {backend="b"}', 'latency_ms {backend="b"}'],
    "names in labels": ['{__name__="requests", pod="a"}', '{__name__="latency_ms", pod="a"}']
    + ['{pod="b", __name__="requests"}', '{pod="b", __name__="latency_ms"}'],
    "words": ["a requests", "a latency_ms", "b requests", "b latency_ms"],
    "colons": ["requests: a", "latency_ms: a", "requests: b", "latency_ms: b"],
}


@pytest.mark.parametrize("names", WIDE.values(), ids=WIDE)
def test_series_side_by_side(tmp_path, names):
    path = save(tmp_path, "sep=,\n" + wide(names))
    check(load_telemetry(path))
    assert looks_like_series(path)


def test_series_side_by_side_under_their_own_names(tmp_path):
    names = ['hits{pod="a",zone="x"}', 'took{pod="a"}', 'hits{pod="b",zone="x"}', 'took{pod="b"}']
    columns = {"ts": "Time", "backend": "pod", "requests": "hits", "latency_ms": "took"}
    check(load_telemetry(save(tmp_path, wide(names)), columns=columns))
    with pytest.raises(ValueError, match="backend"):
        load_telemetry(save(tmp_path, wide(names)))


def test_series_of_different_lengths_leave_no_bad_rows(tmp_path):
    text = 'Time,"requests{backend=""a""}","latency_ms{backend=""a""}",b requests,b latency_ms\n'
    text += "60,5,100,,\n120,5,100,7,50\n180,,,7,50\n"
    t = load_telemetry(save(tmp_path, text))
    assert (t.rows, t.skipped, t.quarantined, t.frame.requests.sum()) == (4, 2, 0, 24)


@pytest.mark.parametrize("head", ["Series;Time;Value", "Metric;Time;Value"])
def test_series_one_below_the_other(tmp_path, head):
    rows = []
    for b in ("a", "b"):
        for name, value in (
            ("requests", lambda k: "30"),
            ("latency_ms", lambda k: f"{120 + k % 7} ms"),
        ):
            labels = f'{name}{{backend=""{b}""}}'
            rows += [f'"{labels}";2026-03-02 00:{k:02d}:00;{value(k)}' for k in range(MINUTES)]
    path = save(tmp_path, "\n".join([head, *rows]) + "\n")
    check(load_telemetry(path))
    assert looks_like_series(path)


# ---- missing values


@pytest.mark.parametrize(
    "word", ["", "None", "NULL", "-", r"\N", "NaN", "nan", "nil", "undefined", "null", "N/A"]
)
def test_words_for_no_value(tmp_path, word):
    rows = [f"{60 * k},a,{0 if k % 2 else 30},{word if k % 2 else 120},{word}" for k in range(20)]
    text = "ts,backend,requests,latency_ms,error_rate\n" + "\n".join(rows)
    t = load_telemetry(save(tmp_path, text))
    assert (t.rows, t.quarantined, t.frame.requests.sum()) == (20, 0, 300)
    assert t.frame.latency_ms.isna().sum() == 10 and t.frame.error_rate.isna().all()
    assert t.steps().n_lat.sum() == 300


def test_a_missing_backend_is_no_backend(tmp_path):
    text = "ts,backend,requests,latency_ms\n60,-,5,90\n60,a,5,90\n"
    t = load_telemetry(save(tmp_path, text), max_bad=0.5, quarantine=tmp_path / "q.csv")
    assert t.backends == ["a"] and "is missing" in (tmp_path / "q.csv").read_text()


@pytest.mark.parametrize("value", ["3 req/s", "1,5", "1.234,5 ms", "12:30", "0x1f", "fast"])
def test_what_is_no_number_is_not_guessed(tmp_path, value):
    text = f'ts,backend,requests,latency_ms\n60,a,5,"{value}"\n'
    with pytest.raises(ValueError, match="latency_ms is not a number"):
        load_telemetry(save(tmp_path, text))


def test_two_days_of_the_year_are_not_guessed(tmp_path):
    text = "ts,backend,requests,latency_ms\n03/02/2026 00:00:00,a,5,90\n"
    with pytest.raises(ValueError, match="ts is not a time"):
        load_telemetry(save(tmp_path, text))


def test_times_without_a_zone_are_utc_and_said_to_be(tmp_path):
    assert "UTC" in repr(load_telemetry(save(tmp_path, series())))
    assert "UTC" not in repr(load_telemetry(save(tmp_path, series(ts="2026-03-02T00:{:02d}:00Z"))))


def test_seconds_in_a_column_of_milliseconds_are_warned_of(tmp_path):
    text = "ts,backend,requests,latency_ms\n" + "".join(f"{60 * k},a,5,1.{k}\n" for k in range(9))
    with pytest.warns(UserWarning, match=r"latency_ms has a median of 1.4 ms.*latency_ms\[s\]"):
        load_telemetry(save(tmp_path, text))


@pytest.mark.parametrize("gone", ["requests", "latency_ms", "ts", "backend"])
def test_four_columns_are_needed(tmp_path, gone):
    text = series().replace(gone, "other", 1)
    with pytest.raises(ValueError, match=f"{gone} needs column.*ts, backend, requests, latency_ms"):
        load_telemetry(save(tmp_path, text))


def test_a_counter_is_no_count(tmp_path):
    rows = [f"{60 * k},a,{100 + 7 * k},90" for k in range(30)]
    path = save(tmp_path, "ts,backend,http_requests_total,latency_ms\n" + "\n".join(rows))
    with pytest.raises(ValueError, match="only grows, so it is a counter"):
        load_telemetry(path, columns={"requests": "http_requests_total"})


# ---- what is no series


def matrix(*series, kind="matrix"):
    result = []
    for labels, value in series:
        values = [[1772409600 + 60 * k, value(k)] for k in range(MINUTES)]
        result.append({"metric": labels, "values": values})
    return json.dumps({"status": "success", "data": {"resultType": kind, "result": result}})


def test_a_query_answer_is_refused(tmp_path):
    path = save(tmp_path, matrix(({"pod": "a"}, lambda k: "120.5")), "m.json")
    match = r"query answer \(resultType matrix\) and no table.*ts, backend, requests, latency_ms"
    for columns in (None, {"backend": "pod", "latency_ms": "took"}):
        with pytest.raises(ValueError, match=match):
            load_telemetry(path, columns=columns)
    with pytest.raises(ValueError, match="resultType matrix"):
        load_steps(path)


def test_a_query_answer_with_requests_and_latency_is_read(tmp_path):
    text = matrix(
        *(({"__name__": "hits", "pod": b, "zone": "x"}, lambda k: "30") for b in "ab"),
        *(
            ({"__name__": "took", "pod": b, "zone": "x"}, lambda k: f"0.{120 + k % 7}")
            for b in "ab"
        ),
    )
    columns = {"backend": "pod", "requests": "hits", "latency_ms": "took[s]"}
    check(load_telemetry(save(tmp_path, text, "m.json"), columns=columns))
    parts = [
        save(tmp_path, matrix(*(({"__name__": n, "pod": b}, f) for b in "ab")), f"{n}.json")
        for n, f in (("hits", lambda k: "30"), ("took", lambda k: f"0.{120 + k % 7}"))
    ]
    check(load_telemetry(parts, columns=columns))


PAGES = {
    "vllm": '# HELP vllm:x n\n# TYPE vllm:x gauge\nvllm:x{model_name="m"} 3.0\nvllm:y{a="b"} 0.4\n',
    "no comments": 'up{job="a"} 1\nhttp_requests_total{code="200",path="/a b"} 1027 13950663\n',
    "open metrics": "# TYPE a counter\na_total 17.0 1520879607.789\n# EOF\n",
    "not a number": "go_gc 1.5e-05\nx NaN\ny +Inf\n",
}


@pytest.mark.parametrize("text", PAGES.values(), ids=PAGES)
def test_a_page_of_metrics_is_refused(tmp_path, text):
    match = "metrics at one moment and no series.*ts, backend, requests, latency_ms"
    with pytest.raises(ValueError, match=match):
        load_telemetry(save(tmp_path, text, "metrics.txt"))


def test_a_vector_and_a_web_page_are_refused(tmp_path):
    text = matrix(({"pod": "a"}, lambda k: "1"), kind="vector")
    with pytest.raises(ValueError, match="resultType vector"):
        load_telemetry(save(tmp_path, text, "v.json"))
    with pytest.raises(ValueError, match="web page"):
        load_telemetry(save(tmp_path, "<!DOCTYPE html><html>", "p.csv"))


@pytest.mark.parametrize(
    "data, match",
    [
        (gzip.compress(np.random.default_rng(0).bytes(5000))[:900], "damaged or cut off"),
        (",".join("abc" for _ in range(100_000)).encode() + b"\n1\n", "header of 100,000 columns"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b"", "empty"),
        (b"ts,backend,requests,latency_ms\n", "empty"),
        (b'"ts,backend\n', "header has broken quotes"),
    ],
    ids=["cut off", "columns", "array", "object", "nothing", "header", "quotes"],
)
def test_an_error_says_why(tmp_path, data, match):
    path = tmp_path / "~x.csv"
    path.write_bytes(data)
    with pytest.raises(ValueError, match=match):
        load_telemetry(path)


def test_a_file_whose_name_begins_with_a_tilde(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("~x.csv").write_text(series())
    check(load_telemetry("~x.csv"))


# ---- never as single requests

BROKEN = {
    "too many columns": b"1772409600,a,30,120,7",
    "not utf-8": b"1772409600,\xe4,30,120",
    "broken quotes": b'1772409600,"a,30,120',
    "a stray null": b"1772409600,a,30,12\x000",
}


@pytest.mark.parametrize("line", BROKEN.values(), ids=BROKEN)
@pytest.mark.parametrize("name", ["s.csv", "s.log"])
def test_a_broken_series_is_still_a_series(tmp_path, line, name):
    path = tmp_path / name
    rows = [f"{1772409600 + 60 * k},a,500,120".encode() for k in range(1000)]
    for place in (0, 500, 1000):
        path.write_bytes(
            b"\n".join([b"ts,backend,requests,latency_ms", *rows[:place], line, *rows[place:]])
        )
        x = load_steps(path)
        assert (x.kind, x.quarantined, x.steps.n.sum()) == ("telemetry", 1, 500_000)
        with pytest.raises(ValueError, match="1 of 1001 rows are bad"):
            load_steps(path, max_bad=0)


@pytest.mark.slow
def test_eight_threads_load_at_once(tmp_path):
    def load(k):
        path = save(tmp_path, "ts,backend,requests,latency_ms\n60,a,5,90\n" * 1, f"{k}.csv")
        path.write_text(path.read_text() + "".join(f"{60 * i},a,{k},90\n" for i in range(2, 300)))
        return load_steps(path)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(load, range(40)))
    assert [(x.kind, int(x.steps.n.sum())) for x in found] == [
        ("telemetry", 5 + 298 * k) for k in range(40)
    ]


# ---- files


def test_a_file_counts_once(tmp_path, monkeypatch):
    (tmp_path / "deep/er").mkdir(parents=True)
    path = save(tmp_path / "deep/er", series())
    (tmp_path / "deep/er/loop").symlink_to(tmp_path)
    (tmp_path / "deep/loop2").symlink_to(tmp_path / "deep")
    (tmp_path / "link.csv").symlink_to(path)
    os.link(path, tmp_path / "hard.csv")
    monkeypatch.chdir(path.parent)
    for name in (
        f"{tmp_path}/**/*.csv",
        [path.name, f"./{path.name}", path],
        [f"{tmp_path}/*.csv", path],
        f"{tmp_path}/**",
        "**/*.csv",
    ):
        assert len(find_files(name)) == 1
        check(load_telemetry(name))


def test_text_is_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr("arcpoint_ce.telemetry.files._MOST", 1000)
    monkeypatch.setattr(read_text, "__defaults__", (1000,))
    path = tmp_path / "s.csv.gz"
    path.write_bytes(gzip.compress(b"x" * 2000))
    with pytest.raises(ValueError, match="split it into several"):
        read_text(path)


@pytest.mark.parametrize("ending", ["xlsx", "avro", "sqlite", "delta"])
def test_the_database_asks_nobody_for_extensions(tmp_path, ending):
    with _open_database([tmp_path / "a.csv"]) as con:
        for setting in ("autoinstall_known_extensions", "autoload_known_extensions"):
            assert con.execute(f"SELECT current_setting('{setting}')").fetchone() == (False,)
        with pytest.raises(Exception, match="(?i)does not exist|disabled|denied|cannot access"):
            con.execute(f"FROM '{tmp_path}/x.{ending}'")
    path = save(tmp_path, series(), f"s.{ending}")
    check(load_telemetry(path))


# ---- shared case files

CASES = Path(os.environ.get("ARCPOINT_CASES") or Path(__file__).parents[3] / "shared" / "cases")
TRUTH = {
    "11_telemetry_nan_idle.csv": (None, 480, ["a", "b"], 12_600, 123.0),
    "20_grafana_export.csv": ({"ts": "Time"}, 60, ["a"], 1_800, 122.9),
    "40_prometheus_matrix.json": "query answer \\(resultType matrix\\) and no table",
    "40_vllm_metrics.txt": "metrics at one moment and no series",
}


@pytest.mark.parametrize("name", TRUTH)
def test_case_files(name):
    if not (CASES / name).is_file():
        pytest.skip("set ARCPOINT_CASES to a folder of example files; without it, not tested")
    truth = TRUTH[name]
    if isinstance(truth, str):
        with pytest.raises(ValueError, match=truth + ".*ts, backend, requests, latency_ms"):
            load_telemetry(CASES / name)
        return
    columns, rows, backends, requests, mean = truth
    t = load_telemetry(CASES / name, columns=columns)
    assert (t.rows, t.quarantined, t.backends) == (rows, 0, backends)
    assert t.frame.requests.sum() == requests and t.steps().n_err.sum() == 0
    s = t.steps()
    assert s.latency_us.sum() / s.n_lat.sum() / 1000 == pytest.approx(mean, abs=0.05)


# ---- log or series


LOG = "ts,backend,latency_ms\n" + "".join(f"{7 * k},a,{100 + k}\n" for k in range(400))


def test_the_content_decides(tmp_path):
    log, kept = save(tmp_path, LOG), save(tmp_path, series(), "series.csv")
    assert [load_steps(p).kind for p in (log, kept)] == ["requests", "telemetry"]
    assert "requests" in load_steps(log).title and "telemetry" in load_steps(kept).title
    assert "UTC" in load_steps(kept).notes[0]
    with pytest.raises(ValueError, match="is a series and .* a request log"):
        load_steps([log, kept])
    both = save(
        tmp_path, series("ts,backend,requests,latency_ms").replace("ts,", "ts,ok,", 1), "b.csv"
    )
    with pytest.raises(ValueError, match="say which it is with preset='telemetry' or preset='req"):
        load_steps(both)
    without = "ts,backend,latency_ms,p90_ms\n" + "".join(f"{60 * k},a,100,200\n" for k in range(40))
    with pytest.raises(ValueError, match="requests needs column"):
        load_steps(save(tmp_path, without, "w.csv"))


@pytest.mark.parametrize("kind", ["requests", "telemetry"])
def test_steps_of_any_length(tmp_path, kind):
    path = save(tmp_path, LOG if kind == "requests" else series())
    short, long = load_steps(path), load_steps(path, step_s=600)
    assert (short.kind, short.step_s, long.step_s) == (kind, 60, 600)
    assert short.steps.n.sum() == long.steps.n.sum()
    assert set(long.steps.start_s % 600) == {0} and len(long.steps) < len(short.steps)


@pytest.mark.parametrize("step_s", [30, 90, 0.5, -60])
def test_steps_that_a_series_does_not_have(tmp_path, step_s):
    with pytest.raises(ValueError, match="a multiple of it|a whole number of seconds"):
        load_steps(save(tmp_path, series()), step_s=step_s)


def test_columns_as_text(tmp_path):
    text = series("Time,k8s:pod,requests,lat.mean").replace(",30,12", ",30,0.12")
    columns = "ts:Time,backend:k8s:pod,latency_ms:lat.mean[s]"
    x = load_steps(save(tmp_path, text), columns=columns)
    assert x.kind == "telemetry" and x.loaded.frame.latency_ms.max() == pytest.approx(126)
    named = json.dumps({"ts": "Time", "backend": "k8s:pod", "latency_ms": "lat.mean[s]"})
    assert load_steps(save(tmp_path, text), columns=named).sha256 == x.sha256


def test_columns_and_steps_on_the_command_line(tmp_path, capsys):
    from arcpoint_ce.apps.cli import run

    text = series("Time,k8s:pod,requests,lat.mean").replace(",30,12", ",30,0.12")
    columns = "ts:Time,backend:k8s:pod,latency_ms:lat.mean[s]"
    assert run(["decide", str(save(tmp_path, text)), "--columns", columns]) == 0
    assert "->" in capsys.readouterr().out
