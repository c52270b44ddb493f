"""What the gate finds, where the truth is known by construction."""

import pytest

from arcpoint_ce.proof.gating import conflict_trial


@pytest.fixture(scope="module")
def trial():
    return conflict_trial(seeds=[21, 22], n=6000)


def test_the_gate_finds_the_conflicts_and_seldom_asks_in_vain(trial):
    assert trial["n"] == 12_000 and trial["conflicts"] > 80
    assert trial["found"] >= 0.95 and trial["found_if_known"] == 1.0
    assert trial["in_vain"] <= 0.01 and trial["asked"] <= 0.05


def test_every_kind_of_conflict_was_tried(trial):
    kinds = {row["kind"] for row in trial["by_kind"]}
    assert {"cost or quality", "cost or limit", "quality or limit", "price or risk"} <= kinds
    assert any(kind.startswith("affinity") for kind in kinds)
    assert sum(row["conflicts"] for row in trial["by_kind"]) == trial["conflicts"]


def test_where_nothing_conflicts_only_a_wrong_forecast_asks():
    calm = conflict_trial(seeds=[23], n=2000, error=0.0, torn=1e-9)
    assert calm["conflicts"] == 0 and calm["asked"] == 0.0
    erring = conflict_trial(seeds=[23], n=2000, error=0.1, torn=1e-9)
    assert 0.0 < erring["asked"] == erring["in_vain"] <= 0.01


@pytest.mark.slow
def test_however_many_conflicts_there_are_the_share_is_kept():
    stormy = conflict_trial(seeds=[24], n=6000, torn=0.5)
    assert stormy["conflicts"] > 600 and stormy["asked"] <= 0.05


def test_the_same_seed_gives_the_same_trial():
    one, two = (conflict_trial(seeds=[25], n=800) for _ in range(2))
    assert one == two
