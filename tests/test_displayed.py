"Every public object shows itself: a line for people, safe HTML for browsers, fresh ones included."

import importlib
import inspect
from enum import Enum
from html.parser import HTMLParser

import house
import numpy as np
import pandas as pd
import pytest

from arcpoint_ce import Backend, ContextEngine, Outcome, Request, Router, load_requests
from arcpoint_ce.forecast.latency import LatencyForest, predict
from arcpoint_ce.lab.experiment import Experiment, Task
from arcpoint_ce.lab.faults import make_scenario
from arcpoint_ce.lab.fleet import Call
from arcpoint_ce.lab.worlds import Setting, World
from arcpoint_ce.routing.outcomes import displayed
from arcpoint_ce.routing.records import Forecast, ForecastTable
from arcpoint_ce.telemetry.fleet_file import Fleet
from arcpoint_ce.telemetry.traces import exercise_steps

HOSTILE = "<script>alert(1)</script>"


def public_classes():
    for m in house.modules():
        module = importlib.import_module(f"arcpoint_ce.{m.name}")
        for name in house.exported(m):
            x = getattr(module, name)
            if inspect.isclass(x) and x.__module__ == module.__name__:
                plain = not issubclass(x, (Exception, Enum))
                if plain and not getattr(x, "_is_protocol", False):
                    yield x


CLASSES = sorted(public_classes(), key=lambda c: f"{c.__module__}.{c.__name__}")


class Tags(HTMLParser):
    def __init__(self):
        super().__init__()
        self.seen = set()

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)


def check(x):
    "Both forms say something, and what came from outside is escaped."
    text = repr(x)
    assert text and " object at 0x" not in text
    html = getattr(x, "_repr_html_", lambda: "")()
    tags = Tags()
    tags.feed(html or "")
    assert not tags.seen & {"script", "img", "iframe", "svg"}, html
    return text


@pytest.mark.parametrize("cls", CLASSES, ids=lambda c: f"{c.__module__[12:]}.{c.__name__}")
def test_every_public_class_has_both(cls):
    assert cls.__repr__ is not object.__repr__
    assert hasattr(cls, "_repr_html_") or hasattr(cls, "model_dump")  # pydantic has its own


def simple(cls):
    "An object of a class that needs no arguments; None: it needs some."
    if inspect.isabstract(cls):
        return None
    try:
        own = "__init__" in vars(cls)  # a class may also have a `__new__` that takes anything
        parameters = list(inspect.signature(cls.__init__ if own else cls).parameters.values())[own:]
    except ValueError:
        return None
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    if any(p.default is p.empty and p.kind not in variadic for p in parameters):
        return None
    try:
        return cls()
    except (ValueError, ModuleNotFoundError):  # it wants to be told something, or an extra
        return None


def test_objects_that_need_no_arguments_show_themselves_when_fresh():
    made = [x for x in map(simple, CLASSES) if x is not None]
    assert len(made) > 50
    for x in made:
        check(x)


def fresh_table():
    levels = (float("nan"),) * 7
    return ForecastTable(1, 0.0, 60.0, {HOSTILE: Forecast(HOSTILE, 0.0, 300.0, levels, levels)})


FRESH = {
    "engine": lambda: ContextEngine([Backend("east")]),
    "hostile engine": lambda: ContextEngine([Backend(HOSTILE)]),
    "router": lambda: Router([Backend(HOSTILE)]),
    "ranking": lambda: Router([Backend(HOSTILE)]).rank(Request(), now=0.0),
    "decision": lambda: Router([Backend(HOSTILE)]).decide(Request(HOSTILE), now=0.0),
    "forecast table": fresh_table,
    "empty forecast table": ForecastTable,
    "backend": lambda: Backend(HOSTILE),
    "outcome": lambda: Outcome(HOSTILE, 0.0, 1.0, False, HOSTILE),
    "fleet": lambda: Fleet((Backend(HOSTILE),), {}),
    "scenario": lambda: make_scenario("gray_failure", [HOSTILE]),
    "setting": lambda: Setting("ramp", n=10),
    "world": lambda: World(Setting("ramp", n=10, past=3)),
    "workload": lambda: World(Setting("ramp", n=10, past=3)).workload,
    "task": lambda: Task("ramp", HOSTILE, 0),
    "call": lambda: Call(0, 1.0, 1.0, HOSTILE, 1.0, 0.0, 0),
}


@pytest.mark.parametrize("make", FRESH.values(), ids=FRESH)
def test_a_fresh_object_shows_itself_and_is_escaped(make):
    check(make())


def test_a_log_and_an_experiment_show_themselves(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text(f"ts,backend,latency_ms\n2026-01-01T00:00:00Z,{HOSTILE},12\n")
    check(load_requests(path))
    check(Experiment(print, [HOSTILE], [HOSTILE], 2))


@displayed
class Odd:
    "Holds everything that is hard to show."

    def __init__(self):
        self.token, self.api_key = "hush", "hush"
        self.frame, self.array = pd.DataFrame({"a": [1]}), np.zeros((3, 2))
        self.text, self.nan, self.inf = HOSTILE * 99, float("nan"), -float("inf")
        self.bytes, self.lots = b"x" * 999, list(range(999))
        self.call, self._hidden = print, "hidden"


def test_values_are_named_in_a_few_words_and_secrets_never():
    text = check(Odd()) + Odd()._repr_html_()
    assert "hush" not in text and "hidden" not in text and len(repr(Odd())) < 300
    assert "token=set" in text and "frame=1 item" in text and "array=3 items" in text


def test_an_object_that_was_never_made_shows_itself():
    for cls in CLASSES:
        ours = getattr(cls.__repr__, "__module__", "") == "arcpoint_ce.routing.outcomes"
        if ours and not inspect.isabstract(cls):
            # a `__new__` of our own may want an extra
            plain = "__new__" in vars(cls) and not issubclass(cls, tuple)
            check(object.__new__(cls) if plain else cls.__new__(cls))


def test_a_forecaster_predicts_and_draws_itself():
    steps = exercise_steps(500, seed=0)
    forecaster = LatencyForest(300, trees=5).fit(steps[:400])
    since_s = int(steps.start_s.iloc[420])
    said = forecaster.predict(steps, since_s=since_s)
    assert said.equals(predict(forecaster, steps, since_s)) and len(said) == 80
    ax = forecaster.plot(steps, since_s=since_s)
    assert ax.get_ylabel() == "mean latency, ms" and ax.get_xlabel() == "time, UTC"
    assert list(ax.lines[0].get_ydata()) == list(said["p50_ms"])


def test_a_log_an_engine_and_an_experiment_draw_themselves(tmp_path):
    path = tmp_path / "log.csv"
    path.write_text("ts,backend,latency_ms\n2026-01-01T00:00:00Z,east,120\n")
    ax = load_requests(path).plot()
    assert ax.get_ylabel() == "mean latency, ms" and list(ax.lines[0].get_ydata()) == [120.0]

    engine = ContextEngine([Backend("east"), Backend("west")])
    ax = engine.plot()  # nothing is foreseen yet
    assert [t.get_text() for t in ax.get_yticklabels()][0] == "east (no forecast)"
    levels = (80.0, 90.0, 95.0, 100.0, 105.0, 110.0, 120.0)
    forecast = Forecast("east", 0.0, 300.0, levels, levels)
    engine.router.table = ForecastTable(1, 0.0, 60.0, {"east": forecast})
    ax = engine.plot()
    assert list(ax.lines[0].get_xdata()) == [90.0, 110.0]

    rows = pd.DataFrame([dict(family="ramp", policy=p, seed=0, violations=3) for p in "ab"])
    ax = Experiment(print, ["a", "b"], ["ramp"], 1).plot(rows)
    assert ax.get_xlabel() == "violations, sum over 1 seeds"
