"""Damaged JSON costs the damaged row and no other, however the rows are arranged."""

import json
import warnings
from collections import defaultdict

import pandas as pd
import pytest

from arcpoint_ce.telemetry.intake import _BadRows
from arcpoint_ce.telemetry.requests import load_requests

T0 = 1772409600  # 2026-03-02 00:00:00 UTC
ENDINGS = ("jsonl", "log")  # what a name says, and what it leaves open
N = range(6)


def row(i, file="x"):
    tags = [{"ts": 1, "backend": "z", "latency_ms": 1}]
    return {"ts": T0 + i, "backend": "ab"[i % 2], "latency_ms": 100, "tags": tags, "task": file}


def lines(rows):
    return [json.dumps(r) for r in rows]


ARRANGED = {
    "lines": lambda rows: "\n".join(lines(rows)),
    "array": json.dumps,
    "array of lines": lambda rows: "[\n" + ",\n".join(lines(rows)) + "\n]",
    "pretty": lambda rows: json.dumps(rows, indent=2),
    "envelope": lambda rows: json.dumps({"data": rows, "total": 6}),
    "pretty envelope": lambda rows: json.dumps({"total": 6, "data": rows}, indent=2),
    "envelope of lines": lambda rows: '{"data": [\n' + ",\n".join(lines(rows)) + "\n]}",
    "spread": lambda rows: "\n".join(json.dumps(r, indent=1) for r in rows),
}


def load_all(tmp_path, texts):
    "One load of many files; for each the rows that stay, and (line, reason) of the others."
    for file, text in texts.items():
        (tmp_path / file).write_text(text)
    paths = [tmp_path / file for file in texts]
    with warnings.catch_warnings(action="ignore"):
        with load_requests(paths, max_bad=1.0, quarantine=tmp_path / "q.csv") as log:
            df = log.df()
            assert log.rows_in == log.rows + log.quarantined
            bad = pd.read_csv(tmp_path / "q.csv") if log.quarantined else None
    kept, faults = defaultdict(list), defaultdict(list)
    for file, ts in zip(df.task, df.ts.astype("datetime64[s, UTC]").astype("int64")):
        kept[file].append(ts - T0)
    for path, n, why in zip(bad.file, bad.line, bad.reason):
        faults[path.rsplit("/")[-1]].append((n, why))
    return [(file, kept[file], faults[file]) for file in texts]


@pytest.mark.parametrize("arranged", ARRANGED)
def test_whole_rows_before_a_cut_are_kept(tmp_path, arranged):
    texts = {}
    for ending in ENDINGS:
        text = ARRANGED[arranged]([row(i, f"x.{ending}") for i in N])
        texts[f"x.{ending}"] = text[: text.index(str(T0 + 4)) + 20]  # in the fifth row
    for file, kept, bad in load_all(tmp_path, texts):
        assert kept == [0, 1, 2, 3] and len(bad) == 1
        begun = texts[file][: texts[file].rindex('"ts": 17')].rindex("{")
        assert bad[0][0] == texts[file].count("\n", 0, begun) + 1


@pytest.mark.parametrize("arranged", ARRANGED)
def test_a_damaged_row_costs_no_other(tmp_path, arranged):
    texts = {}
    for nth in (0, 3):
        for ending in ENDINGS:
            text = ARRANGED[arranged]([row(i, f"{nth}.{ending}") for i in N])
            texts[f"{nth}.{ending}"] = text.replace(f"{T0 + nth},", f"{T0 + nth}", 1)
    for file, kept, bad in load_all(tmp_path, texts):
        if file[0] == "0" and arranged in ("array", "envelope"):
            # nothing tells its inside from the rows behind it, so these are lost with it
            assert kept == [] and "line 1" in bad[0][1]
        else:
            assert kept == [i for i in N if i != int(file[0])] and len(bad) == 1


@pytest.mark.parametrize("nth", [0, 5])
def test_a_line_end_inside_of_a_line_costs_that_line(tmp_path, nth):
    texts = {}
    for ending in ENDINGS:
        for at in (1, 6, 20, 30, -1):
            file = f"{at}.{ending}"
            whole = lines(row(i, file) for i in N)
            parts = [whole[nth][:at], whole[nth][at:]]
            texts[file] = "\n".join([*whole[:nth], *parts, *whole[nth + 1 :]])
    for _, kept, bad in load_all(tmp_path, texts):
        assert kept == [i for i in N if i != nth]
        assert [n for n, _ in bad] == [nth + 1, nth + 2]


def test_a_log_may_begin_in_the_middle_of_a_line(tmp_path):
    texts = {}
    for ending in ("jsonl", "json", "log"):
        for k, first in enumerate((lines([row(0)])[0][30:], "}", "Starting the gateway")):
            file = f"{k}.{ending}"
            texts[file] = "\n".join([first, *lines(row(i, file) for i in N)])
    for _, kept, bad in load_all(tmp_path, texts):
        assert kept == [*N] and [n for n, _ in bad] == [1]


@pytest.mark.parametrize("arranged", ARRANGED)
def test_what_was_cut_off_in_its_first_row_says_where(tmp_path, arranged):
    text = ARRANGED[arranged]([row(i) for i in N])
    path = tmp_path / "x.jsonl"
    path.write_text(text[: text.index(str(T0)) + 12])
    with pytest.raises(
        _BadRows, match=r"1 of 1 .*\n.*x.jsonl:\d line breaks off at line \d, col"
    ) as e:
        load_requests(path, quarantine=tmp_path / "q.csv")
    assert "write or fetch it again" in str(e.value)


def test_nothing_left_is_said_aloud(tmp_path):
    (tmp_path / "x.json").write_text(json.dumps(row(0))[:30])
    with pytest.warns(UserWarning, match="no row is left: all 1 are bad"):
        load_requests(tmp_path / "x.json", max_bad=1.0, quarantine=tmp_path / "q.csv").close()


def test_a_long_text_is_recovered_piece_by_piece(tmp_path):
    rows = [row(i, "x.json") | {"prompt": "x" * 300} for i in range(9000)]
    text = json.dumps(rows).replace(f"{T0 + 4000},", f"{T0 + 4000}", 1)
    _, kept, bad = load_all(tmp_path, {"x.json": text[:-700]})[0]
    assert kept == [i for i in range(8998) if i != 4000] and len(bad) == 2
    column = text.index(str(T0 + 4000)) + 12
    assert any(f"line 1, column {column}" in why for _, why in bad)
