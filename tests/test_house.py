"The walls of style: no slices, readable lines, small doors, an example below every export."

import ast

import house
import pytest

NOTEBOOKS = [nb for nb in house.notebooks() if any(cell.exported for cell in nb.cells)]


def module(text: str, name: str = "room.part") -> house.Module:
    return house.Module(name, text, ast.parse(text))


def notebook(tmp_path, *sources: str) -> house.Notebook:
    "Cells that begin with a letter code (m: markdown, c: code)."
    kinds = {"m": "markdown", "c": "code"}
    return house.Notebook(tmp_path / "x.ipynb", [house.Cell(kinds[s[0]], s[2:]) for s in sources])


def test_no_class_is_only_a_slice_of_another():
    assert not house.slices(house.classes())


def test_a_slice_is_seen():
    table = {"A": ("m", []), "B": ("m", ["A"]), "C": ("m", ["B"]), "P": ("m", ["Protocol"])}
    assert house.slices(table) == ["m: A", "m: B"]
    assert house.slices(table | {"D": ("m", ["A"])}) == ["m: B"]
    assert not house.slices({"P": ("m", ["Protocol"]), "Q": ("m", ["P"])})


def test_inheritance_is_at_most_three_deep():
    levels, name = house.depth(house.classes())
    assert levels <= 3, name
    assert house.depth({"A": ("m", []), "B": ("m", ["A"])}) == (2, "B")


@pytest.mark.parametrize("nb", NOTEBOOKS, ids=lambda nb: nb.name)
def test_lines_are_short_and_hold_one_statement(nb):
    assert not house.long_lines(nb) and not house.joined(nb)


def test_long_and_joined_lines_are_seen(tmp_path):
    nb = notebook(tmp_path, "c a = 1; b = 2", "c x = '" + "x" * 100 + "'", "c text = 'a; b'")
    assert len(house.joined(nb)) == 1 and len(house.long_lines(nb)) == 1


@pytest.mark.slow
def test_function_bodies_are_not_dense():
    nodes, lines = house.density(house.modules())
    assert nodes / lines <= 9
    nodes, lines = house.density([m for m in house.modules() if m.name.startswith("context.")])
    assert nodes / lines <= 10


def test_density_counts_bodies_without_docstrings():
    text = 'def f():\n    "Says what."\n\n    x = 1\n\n    return x\n'
    assert house.density([module(text)]) == (5, 2)


@pytest.mark.slow
@pytest.mark.parametrize("part", house.modules(), ids=lambda m: m.name)
def test_no_function_is_complicated(part):
    assert not house.complicated(part)


def test_a_complicated_function_is_seen():
    body = "".join(f"    if x == {k}:\n        return {k}\n" for k in range(10))
    assert house.complicated(module("def f(x):\n" + body)) == ["room.part: f 11"]


@pytest.mark.slow
def test_nine_in_ten_exports_are_followed_by_an_example():
    assert house.share([house.without_example(nb) for nb in NOTEBOOKS]) >= 0.9


def test_a_missing_example_is_seen(tmp_path):
    shown = notebook(tmp_path, "m Why.", "c #| export\ndef f(): pass", "m Like this:", "c f()")
    assert house.without_example(shown) == ([], 1)
    late = notebook(tmp_path, "c #| export\ndef f(): pass", "m One.", "m Two.", "c f()")
    assert house.without_example(late) == (["f"], 1)


def test_nine_in_ten_exported_cells_have_a_paragraph_above():
    assert house.share([house.without_reason(nb) for nb in NOTEBOOKS]) >= 0.9


def test_a_missing_paragraph_is_seen(tmp_path):
    export = "c #| export\ndef f(): pass"
    assert house.without_reason(notebook(tmp_path, "m Why it exists.", export)) == ([], 1)
    assert house.without_reason(notebook(tmp_path, "m ## Only a title", export)) == (["f"], 1)
    assert house.without_reason(notebook(tmp_path, "m Why.", "c f = 1", export)) == (["f"], 1)


def test_doors_are_small():
    names = {m.name: house.exported(m) for m in house.modules()}
    assert sum(map(len, names.values())) <= 700
    assert {m: len(n) for m, n in names.items() if len(n) > 20} == {}


@pytest.mark.parametrize("part", house.modules(), ids=lambda m: m.name)
def test_what_is_exported_is_used_elsewhere(part):
    assert not house.unused(part)


def test_nothing_is_attached_to_a_class_from_outside():
    assert not [f for m in house.modules() for f in house.attached(m)]


def test_what_is_attached_is_seen():
    text = "class C: pass\ndef f(self): pass\nC.f = f\n@patch\ndef g(x): pass\nc = C()\nc.x = 1"
    assert house.attached(module(text)) == [
        "room.part: f takes self",
        "room.part: C.f is set from outside",
        "room.part: g is patched in",
    ]
