"Public functions have a docstring, name the errors that they raise, and give units."

import ast

import documented
import house
import pytest

EVERY = tuple(house.modules())
# A command tells its errors to people, on the terminal; its docstring is its help text.
COMMANDS = {"apps.cli"}
# Raised for arguments that these never give to what they call.
NEVER = {
    "apps.report: run_report TypeError",  # the record of a run holds plain values
    "apps.report: run_report ValueError",
    "engine.storage: SqliteShelf.__init__ KeyError",  # what is rescued are its own tables
    "forecast.demotion: LiveModel.catch_up RuntimeError",  # it promotes only who watches
    "forecast.demotion: LiveModel.settle RuntimeError",
    "forecast.demotion: LiveModel.table RuntimeError",
    "forecast.forest: CompiledForest.save ArtefactError",  # its arrays hold numbers
    "forecast.head_room: learn_rooms ValueError",  # it fits curves only to pairs that are there
    "forecast.online: bench_online KeyError",  # it names a learner that is known
    "lab.chaos: own_suite KeyError",  # and kinds of faults that are known
    "lab.curves: synthetic_curves ValueError",  # its figures are fixed
    "routing.records: Forecast.p80_ms ValueError",  # its level is fixed
}


def module(text: str, name: str = "room.part") -> house.Module:
    "A made-up module that exports all that does not begin with `_`."
    tree = ast.parse(text)
    names = [n.name for n in tree.body if isinstance(n, house.DEFINITIONS) and n.name[0] != "_"]
    text = f"{text}\n__all__ = {names}\n"
    return house.Module(name, text, ast.parse(text))


def found(look, text: str) -> list[str]:
    "Findings in a made-up module, without its name."
    made = module(text)
    return [x.removeprefix("room.part: ") for x in look(made, (made,))]


def test_what_others_call_has_a_docstring():
    assert not [x for m in EVERY for x in documented.undocumented(m, EVERY)]


def test_the_errors_that_come_out_are_named():
    others = [m for m in EVERY if m.name not in COMMANDS]
    assert {x for m in others for x in documented.untold_errors(m, EVERY)} == NEVER


def test_the_errors_that_are_named_exist():
    assert not [x for m in EVERY for x in documented.unknown_errors(m, EVERY)]


def test_floats_tell_what_they_measure():
    assert not [x for m in EVERY for x in documented.without_unit(m, EVERY)]


def test_enough_is_looked_at():
    names = [d.name for m in EVERY for d in documented.doors(m, EVERY)]
    assert len(names) == len(set(names)) > 1000
    assert {"routing.router: Router", "routing.router: Router.decide"} <= set(names)


# ---- the looks themselves, on small made-up modules


def test_a_missing_docstring_is_seen():
    text = """
def f(): pass
def g(): "Says what."
def _h(): pass
class C:
    def __init__(self): pass
    def method(self): pass
    def told(self): "Says what."
    def _own(self): pass
class D:
    "Says what; also what its constructor takes."
    def __init__(self): pass
"""
    assert found(documented.undocumented, text) == ["f", "C", "C.__init__", "C.method"]


def test_a_base_speaks_for_a_method():
    text = """
class _Base:
    def told(self): "Says what."
    def silent(self): pass
class Heir(_Base):
    "Says what."
    def told(self): pass
    def silent(self): pass
class Second(Heir):
    "Says what."
    def told(self): pass
"""
    assert found(documented.undocumented, text) == ["Heir.silent"]


def test_a_protocol_speaks_for_what_fulfils_it_whole():
    text = """
class _Kept(Protocol[T]):
    def read(self): "Says what."
    def close(self): "Says what."
class Whole:
    "Says what."
    def read(self): pass
    def close(self): pass
class Half:
    "Says what."
    def read(self): pass
"""
    assert found(documented.undocumented, text) == ["Half.read"]


def test_the_class_of_the_same_module_is_the_base():
    one = module('class Base:\n    "X."\n    def f(self): "X."', "room.one")
    two = 'class Base:\n "X."\n def f(self): pass\nclass C(Base):\n "X."\n def f(self): pass'
    two = module(two, "room.two")
    names = ["room.two: Base.f", "room.two: C.f"]
    assert documented.undocumented(two, (one, two)) == names
    assert documented.undocumented(two, (two, one)) == names


def test_overloads_and_setters_are_told_with_the_method():
    text = """
class C:
    "Says what."
    @overload
    def f(self, x: float): ...
    def f(self, x): "Says what."
    @property
    def now(self): "Says what."
    @now.setter
    def now(self, t): pass
"""
    assert not found(documented.undocumented, text) + found(documented.without_unit, text)


ERRORS = {
    "own": 'def f():\n "X."\n raise ValueError("no")',
    "without-call": 'def f():\n "X."\n raise ValueError',
    "dotted": 'def f():\n "X."\n raise a.b.ValueError(1)',
    "helper": 'def f():\n "X."\n _g()\ndef _g():\n raise ValueError',
    "public-helper": 'def f():\n "X."\n g()\ndef g():\n "ValueError"\n raise ValueError',
    "helper-of-helper": (
        'def f():\n "X."\n _g()\ndef _g():\n _h()\ndef _h():\n _g()\n raise ValueError'
    ),
    "made-by-helper": (
        'def f():\n "X."\n raise _g(1)\ndef _g(x) -> ValueError:\n return ValueError(x)'
    ),
    "private-error": (
        'class _E(ValueError): pass\ndef f():\n "X. _E where it does not go."\n raise _E(1)'
    ),
    "other-is-caught": ('def f():\n "X."\n try:\n  raise ValueError\n except KeyError:\n  pass'),
    "raised-again": ('def f():\n "X."\n try:\n  raise ValueError\n except ValueError:\n  raise'),
    "in-the-handler": ('def f():\n "X."\n try:\n  g()\n except KeyError:\n  raise ValueError'),
    "anew-in-the-handler": (
        'def f():\n "X."\n try:\n  g()\n except ValueError:\n  raise ValueError'
    ),
}


@pytest.mark.parametrize("name", ERRORS)
def test_an_untold_error_is_seen(name):
    text = ERRORS[name]
    assert found(documented.untold_errors, text) == ["f ValueError"]
    told = text.replace('"X', '"X. ValueError where it does not go')
    assert not found(documented.untold_errors, told)


@pytest.mark.parametrize(
    "text",
    [
        'def f():\n "X."\n def g(): raise ValueError\n return g',
        'def f():\n "X."\n try:\n  _g()\n except ValueError:\n  pass\ndef _g(): raise ValueError',
        'def f():\n "X."\n try:\n  raise FileNotFoundError\n except OSError:\n  pass',
        'def f():\n "X."\n try:\n  raise ValueError\n except:\n  pass',
        'def f(error):\n "X."\n raise error',
    ],
    ids=["nested", "caught-helper", "caught-by-base", "caught-all", "variable"],
)
def test_an_error_that_does_not_come_out_needs_no_word(text):
    assert not found(documented.untold_errors, text)


def test_an_error_of_ours_goes_by_its_own_name():
    text = (
        'class OurError(ValueError): "X."\ndef f():\n "ValueError where it fails."\n raise OurError'
    )
    assert found(documented.untold_errors, text) == ["f OurError"]
    assert not found(documented.untold_errors, text.replace('"ValueError', '"OurError'))


def test_an_error_of_a_method_may_stand_with_the_class():
    text = """
class C:
    "X."
    def __init__(self): self._check()
    def _check(self): raise ValueError("no")
    def f(self):
        "X."
        raise KeyError
"""
    names = ["C.__init__ ValueError", "C.f KeyError"]
    assert found(documented.untold_errors, text) == names
    told = text.replace('"X."', '"ValueError and KeyError."', 1)
    assert not found(documented.untold_errors, told)


def test_a_named_error_that_is_not_there_is_seen():
    text = """
class OurError(ValueError): "X."
def f(): "OurError, KeyError, sqlite3.DatabaseError, or TheirError. An Error is no name."
"""
    assert found(documented.unknown_errors, text) == ["f TheirError"]


def test_a_parameter_without_unit_is_seen():
    text = """
def f(
    x: float,
    y: float | None,  # kg
    # m
    z: Sequence[float],
    w_s: float,
    share: dict[str, float],
    v: float,
    n: int,
    o: Annotated[float, option(help="kg")],
    *,
    u: float = 1.0,
):
    "X, with `v` kg and u."
"""
    assert found(documented.without_unit, text) == ["f x", "f u"]


def test_a_comment_behind_several_parameters_is_about_the_result():
    assert found(
        documented.without_unit, 'def f(x: float, y: float) -> float:  # kg\n    "X."'
    ) == ["f x", "f y"]


def test_a_field_without_unit_is_seen():
    text = (
        'class C(NamedTuple):\n    "X; `b` in kg."\n    a: float\n    b: float\n    _c: float = 1.0'
    )
    assert found(documented.without_unit, text) == ["C a"]


def test_a_result_without_unit_is_seen():
    text = """
def f() -> float: "The worst of all."
def f_ms() -> float: "The worst of all."
def g() -> float:  # kg
    "The worst of all."
def h() -> float: "The worst of all, s."
def i() -> dict[str, float]: "The worst of all, by backend."
def j() -> float: "Share of the worst."
"""
    assert found(documented.without_unit, text) == ["f -> float", "i -> dict[str, float]"]


def test_a_base_tells_the_unit_of_a_method():
    text = """
class _Base:
    def f(
        self,
        x: float,  # kg
    ) -> float:  # m
        "X."
class C(_Base):
    "X."
    def f(self, x: float) -> float: pass
    def g(self, x: float) -> float: "X."
"""
    assert found(documented.without_unit, text) == ["C.g x", "C.g -> float"]
