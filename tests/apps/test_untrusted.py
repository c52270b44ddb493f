"""Text from telemetry is untrusted: backend names must not become markup, links or formulas in a
report.
"""

import numpy as np
import pandas as pd
import pytest
from report_helpers import leaving

from arcpoint_ce.apps.report import run_report

NAMES = [
    "<img src=http://evil.example/x onerror=alert(1)>",
    "[click](http://evil.example)",
    "https://evil.example/a$b$c",
]


@pytest.fixture(scope="module")
def hostile_log(tmp_path_factory):
    "Six hours of three backends with hostile names, one bad row among them."
    rng, n = np.random.default_rng(0), 6000
    ts, who = np.sort(rng.uniform(0, 6 * 3600, n)), rng.integers(0, 3, n)
    slow = (ts % 1800 < 300) & (who == 0)
    log = pd.DataFrame(
        dict(
            ts=1.75e9 + ts,
            backend=[NAMES[i] for i in who],
            latency_ms=100 * np.where(slow, 6, 1) * rng.lognormal(0, 0.2, n),
        )
    )
    log.loc[5, "latency_ms"] = -1
    path = tmp_path_factory.mktemp("hostile") / "log.csv"
    log.to_csv(path, index=False)
    return path


@pytest.mark.slow
@pytest.mark.parametrize("name", ["routing", "forecast"])
def test_names_stay_text(name, hostile_log, tmp_path):
    run = run_report(name, out=tmp_path / "out", progress=False, data=str(hostile_log), quick=True)
    page = run.html.read_text(encoding="utf-8")
    assert run.metrics["rows_quarantined"] == 1 and leaving(run.html) == []
    assert "<img src=http" not in page and "evil.example" in page
