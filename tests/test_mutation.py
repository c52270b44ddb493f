"The script of mutation testing: what it mutates exists, and it finds the tests that reach a line."

import ast

import house
import mutation
import pytest
from mutation import Mutant, block_of, by_block, first, functions, interval, notebook_of, text_of


@pytest.mark.parametrize("module", mutation.PARTS)
def test_what_is_mutated_exists(module):
    assert notebook_of(module).exists() and mutation.wanted(module)
    names = {getattr(n, "name", None) for n in ast.parse(text_of(module)).body}
    assert set(mutation.PARTS[module]) <= names
    assert all((house.ROOT / t).exists() for t in mutation.TESTS)


def test_a_line_belongs_to_the_smallest_block_around_it():
    text = text_of("routing.clock").splitlines()
    line = text.index("        if back or now > self.now_s:") + 1
    inside = block_of(Mutant("routing.clock", "any", 0, line + 1))
    around = block_of(Mutant("routing.clock", "any", 0, line))
    assert inside == f"routing.clock:{line + 1}"
    assert around != inside and int(around.partition(":")[2]) < line
    constant = (
        text.index("    SLACK_S = 5.0  # clocks that differ by no more than this agree, s") + 1
    )
    assert block_of(Mutant("routing.clock", "any", 0, constant)) == "routing.clock"


def test_the_quickest_tests_that_reach_a_block_come_first():
    reach = {"slow": [3.0, ["a:1", "b:2"]], "quick": [1.0, ["a:1"]], "other": [2.0, ["a:9"]]}
    tests = by_block(reach)
    assert tests["a:1"] == [(1.0, "quick"), (3.0, "slow")]
    assert [name for _, name in tests["a"]] == ["quick", "other", "slow"]
    assert first(tests["a"], 3.0) == ["quick", "other"] and first(tests["c:1"], 9.0) == []


def test_functions_of_a_module_and_of_its_classes_are_found_in_order():
    nested = "def f():\n    return lambda: 1\n"
    text = nested + "class A:\n    def g(self):\n        return [x for x in 'a']\n"
    assert [f.co_name for f in functions(compile(text, "x", "exec"))] == ["f", "g"]


def test_annotations_and_what_only_shows_are_not_mutated():
    text, spans = text_of("routing.records").splitlines(), mutation.untold("routing.records")
    shown = next(k for k, line in enumerate(text, 1) if "def __repr__" in line)
    assert any(a[0] <= shown < b[0] for a, b in spans)


def test_an_interval_of_a_share_is_wilsons():
    assert interval(85, 100) == pytest.approx((0.767, 0.907), abs=1e-3)
    assert interval(0, 10)[0] == pytest.approx(0.0) and interval(10, 10)[1] == pytest.approx(1.0)
