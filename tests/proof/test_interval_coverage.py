"""The interval of a ratio keeps its word on counts such as the laboratory brings, and the published
table says so.
"""

from pathlib import Path

import pandas as pd
import pytest

from arcpoint_ce.proof.interval_coverage import _METHODS, _RECIPES, coverage_table

RESULT = Path(__file__).parents[2] / "data" / "results" / "coverage.csv"


@pytest.mark.slow
@pytest.mark.parametrize("n", [20, 100])
def test_the_chosen_method_holds_the_truth_and_its_predecessor_does_not(n):
    some = {k: _METHODS[k] for k in ("sign flips", "percentile")}
    held = coverage_table((n,), 150, methods=some, seed=1).groupby("method")["held"].mean()
    assert (
        0.925 < held["sign flips"] < 0.97 and held["percentile"] < held["sign flips"] - 0.01
    )  # 1,200 comparisons: 0.006


def test_the_published_table_is_whole_and_supports_the_choice():
    table = pd.read_csv(RESULT)
    assert set(table.method) == set(_METHODS) and set(table.recipe) == {r.name for r in _RECIPES}
    held = table.groupby(["n_worlds", "method"])["held"].mean().unstack()
    assert held.loc[[20, 100], "sign flips"].between(0.93, 0.97).all()
    within = held.loc[[20, 100]].apply(lambda x: x.between(0.93, 0.97).all())
    assert within[within].index.tolist() == ["sign flips"]


def test_the_published_table_can_be_made_again():
    "One cell of it, with the numbers of its command."
    table = pd.read_csv(RESULT)
    again = coverage_table(
        (20,), 400, recipes=_RECIPES[:1], methods={"sign flips": _METHODS["sign flips"]}
    ).iloc[0]
    there = table[
        (table.method == "sign flips") & (table.recipe == _RECIPES[0].name) & (table.n_worlds == 20)
    ].iloc[0]
    assert (
        there.held == pytest.approx(again.held, abs=1e-4)
        and there.comparisons == again.comparisons == 400
    )
