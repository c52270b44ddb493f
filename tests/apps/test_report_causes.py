"The causes report on a folder of the reader's own: that folder is judged, and nothing else."

import pytest

from arcpoint_ce.apps.report import list_reports, run_report
from arcpoint_ce.context.callgraph import write_synthetic


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("causes")
    shop = write_synthetic(folder / "shop")
    return run_report("causes", out=folder / "out", progress=False, data=str(shop))


def test_only_the_folder_is_judged(judged):
    m = judged.metrics
    assert m["n"] > 0 and m["normal_windows"] > 0 and m["synthetic"] is False
    assert m["lab"] is False and m["lab_schedules"] == m["shifts"] == m["version_questions"] == 0
    assert m["lab_top1"] is m["routed_vs_prompts"] is m["risk"] is m["top1_left_out"] is None


def test_what_did_not_run_has_no_heading(judged):
    text = judged.html.read_text(encoding="utf-8")
    assert "<h2>The simulated fleet" not in text and "<h2>Another model version" not in text
    assert "-p lab true" in text


def test_the_laboratory_is_asked_for_by_name():
    parameters = next(r for r in list_reports() if r.name == "causes").parameters
    assert parameters["lab"].default is False and parameters["settings"].default is False
