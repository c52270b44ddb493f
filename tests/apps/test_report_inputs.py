"What is wrong with a call is said at once: before a folder is made or a kernel started."

import time

import pytest

from arcpoint_ce.apps import cli
from arcpoint_ce.apps import report as R
from arcpoint_ce.apps.report import ReportUsageError, run_report

ROWS = "started,host,took,status\n" + "".join(
    f"2026-01-01T00:{k // 60:02d}:{k % 60:02d}Z,{'ab'[k % 2]},{100 + k % 7},200\n"
    for k in range(3000)
)
MAPPING = '-p columns "ts:started,backend:host,latency_ms:took"'


@pytest.fixture(autouse=True)
def no_kernel(monkeypatch, tmp_path):
    "A kernel must not be started, and nothing may be left behind."
    (tmp_path / "fine.csv").write_text("ts,backend,latency_ms\n2026-01-01T00:00:00Z,a,1\n")
    R._check_log(dict(data=str(tmp_path / "fine.csv"), columns="", preset=""))  # its imports
    R.list_reports()  # and papermill's

    def never(*a):
        raise AssertionError("a kernel was started")

    monkeypatch.setattr(R, "_execute", never)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "log.csv").write_text(ROWS)
    (tmp_path / "shop").mkdir()


def refused(tmp_path, name, **params) -> str:
    before, began = sorted(tmp_path.iterdir()), time.thread_time()
    with pytest.raises(ReportUsageError) as e:
        run_report(name, progress=False, **params)
    assert time.thread_time() - began < 1.0
    assert sorted(tmp_path.iterdir()) == before
    return str(e.value)


@pytest.mark.parametrize(
    "name, columns, lacks",
    [
        ("routing", "", "'ts'"),
        ("forecast", "ts:startd,backend:host,latency_ms:took", "'startd'"),
        ("retrain", "ts:started,backend:host", "'latency_ms'"),
        ("routing", "ts:started,latency_ms:tok", ""),
    ],
    ids=["none", "misspelt", "one-missing", "two-wrong"],
)
def test_a_wrong_column_gets_the_whole_mapping(tmp_path, name, columns, lacks):
    said = refused(tmp_path, name, data="log.csv", columns=columns)
    assert lacks in said and MAPPING in said and said.startswith("log.csv: "), said


def test_what_cannot_be_guessed_is_a_gap(tmp_path):
    (tmp_path / "odd.csv").write_text("a,b,c\n1,2,3\n")
    said = refused(tmp_path, "routing", data="odd.csv")
    assert "ts:<your ts>,backend:<your backend>,latency_ms:<your latency_ms>" in said


def test_json_lines_get_a_mapping_too(tmp_path):
    (tmp_path / "log.jsonl").write_text('{"created_at": "2026-01-01", "host": "a", "took": 3}\n')
    said = refused(tmp_path, "routing", data="log.jsonl", columns="ts:when,backend:host")
    assert '-p columns "ts:created_at,backend:host,latency_ms:took"' in said


@pytest.mark.parametrize(
    "name, params, says",
    [
        ("routing", dict(data="no.csv"), "no.csv: no such file"),
        ("routing", dict(data="log.csv", preset="litelm"), "unknown preset 'litelm'"),
        ("routing", dict(data="log.csv", columns="latency:took"), "latency"),
        ("routing", dict(train_share=66.7), "'train_share' must be a share between 0 and 1"),
        ("routing", dict(slo_ms=-1.0), "'slo_ms' must be above 0"),
        ("routing", dict(horizon_min=0.0), "'horizon_min' must be above 0"),
        ("routing", dict(fleet="no.toml"), "'fleet': no.toml: no such file"),
        ("forecast", dict(trees=0), "'trees' must be 1 or more"),
        ("forecast", dict(min_coverage=90.0), "'min_coverage'"),
        ("causes", dict(data="log.csv"), "no such folder"),
        ("causes", dict(data="shop"), "lacks graph.csv, noissue/metrics.csv"),
        ("anomaly", dict(data="nowhere"), "no such folder"),
        ("chaos", dict(load=40.0), "'load' must be a share"),
        ("chaos", dict(curves="no.csv"), "'curves': no.csv"),
        ("policies", dict(seeds=0), "'seeds' must be 1 or more"),
    ],
    ids=lambda x: x if isinstance(x, str) and x.isalpha() else "",
)
def test_a_wrong_value_is_named(tmp_path, name, params, says):
    assert says in refused(tmp_path, name, **params)


def test_the_command_line_says_the_same(tmp_path, capsys):
    assert cli.run(["report", "routing", "-p", "data", "log.csv"]) == 2
    assert MAPPING in capsys.readouterr().err


def test_a_log_that_can_be_read_goes_on(tmp_path):
    columns = "ts:started,backend:host,latency_ms:took"
    with pytest.raises(AssertionError, match="a kernel was started"):
        run_report("routing", progress=False, out="out", data="log.csv", columns=columns)


def test_every_number_of_a_report_has_a_range():
    known = R._SHARES | R._COUNTS | R._POSITIVE | R._AT_LEAST_ZERO | {"seed"}
    for report in R.list_reports():
        for p in report.parameters.values():
            assert p.type not in ("int", "float") or p.name in known, (report.name, p.name)
