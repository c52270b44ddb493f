"""Series per backend and step: what monitoring exports is read right, or refused with a reason."""

import math
import os
from pathlib import Path

import pandas as pd
import pytest

from arcpoint_ce.telemetry.series import load_telemetry


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
    assert (t.rows_in, t.rows, t.quarantined, t.step_s) == (8, 3, 5, 60)
    assert sorted(pd.read_csv(tmp_path / "q.csv").line) == [5, 6, 7, 8, 9]
    s = t.steps()
    assert (
        s.n.to_list() == [10, 0, 7]
        and s.n_err.to_list() == [1, 0, 0]
        and s.n_lat.to_list() == [1 * 10, 0, 7]
    )
    assert (
        s.latency_us.to_list() == [50_000, 0, 37_336]
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
