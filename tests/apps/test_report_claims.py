"Claims: each has a row, what is stored is believed only with its hash, and losses are rows."

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from arcpoint_ce.apps import claims as C

RESULTS = Path(__file__).parents[2] / "data" / "results"


@pytest.mark.parametrize("name", sorted(C._STORED))
def test_a_published_result_has_its_hash(name):
    "Whoever publishes new results publishes their hashes here as well."
    claim = C._stored_claim(name, RESULTS)
    assert claim.source == f"stored: data/results/{name}.json"
    assert claim.value and claim.interval and claim.n and claim.command.startswith("arcpoint ")


def test_a_changed_result_is_not_believed(tmp_path):
    path = tmp_path / "rollout.json"
    shutil.copy(RESULTS / "rollout.json", path)
    assert C._stored_claim("rollout", tmp_path).holds
    path.write_text(json.dumps(json.loads(path.read_text()) | dict(seeds=1001)))
    changed = C._stored_claim("rollout", tmp_path)
    assert not changed.holds and "ANOTHER hash" in changed.source


def test_what_is_not_at_hand_gives_no_row(tmp_path):
    assert C._stored_claim("rollout", tmp_path) is None


def test_the_interval_is_students():
    "Student (1908), the extra hours of sleep: mean 1.58, s.d. 1.230 of ten (optical isomers)."
    sleep = [1.2, 2.4, 1.3, 1.3, 0.0, 1.0, 1.8, 0.8, 4.6, 1.4]
    assert C._interval(sleep) == pytest.approx((0.700, 2.460), abs=1e-3)
    assert C._interval([1.0]) == (-np.inf, np.inf) and not C._near([1.0, 1.1], 5.0)
