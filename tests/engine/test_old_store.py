"""A store and a registry that version 0.1 wrote (see data/make_store_0_1.py) open in today's
engine, which resumes from them.
"""

import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from arcpoint_ce.context.state import Facts
from arcpoint_ce.engine.engine import ContextEngine, EngineConfig
from arcpoint_ce.engine.registry import Registry
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.forecast.latency import load, save
from arcpoint_ce.routing.records import Backend, Outcome, Request

DATA = Path(__file__).parents[1] / "data"
FLEET = [Backend(name, capacity=4.0) for name in ("east", "west", "south")]
FORECASTERS = ("auto", "none", "room", "latency", "both", "forest")


@pytest.fixture
def path(tmp_path):
    "A copy of the old store."
    return Path(shutil.copy(DATA / "store_0_1.sqlite", tmp_path / "store.sqlite"))


def written(path) -> dict:
    "What the old engine wrote down for its successor, read without our code."
    with sqlite3.connect(path) as db:
        return json.loads(
            db.execute("SELECT value FROM states WHERE name = 'engine'").fetchone()[0]
        )


def forecaster(name):
    "A name, or the forest of the old registry."
    return load(Registry(DATA / "registry_0_1").path_of("v1")) if name == "forest" else name


def state_of(engine, backend: str, now: float) -> tuple[str, float | None]:
    row = next(b for b in engine.router.status(now) if b["backend"] == backend)
    return row["state"], row["until_s"]


@pytest.mark.parametrize("name", FORECASTERS)
def test_an_engine_resumes_from_it_twice(path, name):
    memo = written(path)
    now, old = memo["at_s"], memo["router"]["breakers"]
    assert old["west"]["state"] == "open" and old["west"]["until_s"] > now + 1.0, (
        "the fixture shows nothing"
    )
    ids = set()
    for opening in range(2):
        engine = ContextEngine(FLEET, path, forecaster=forecaster(name))
        assert engine.resumed is True
        assert not [e for e in engine.store.rows("events") if e["what"] == "not resumed"]
        assert state_of(engine, "west", now) == ("open", old["west"]["until_s"])
        assert state_of(engine, "east", now)[0] == old["east"]["state"] == "closed"
        engine.tick(now)
        decisions = [engine.decide(Request(f"n{k}", tokens_in=10), now) for k in range(20)]
        assert all(d.backend != "west" for d in decisions)
        fresh = {d.id for d in decisions}
        assert min(fresh) > max({memo["router"]["turn"], *ids})
        ids |= fresh
        for d in decisions:
            engine.observe(Outcome(d.backend, now, 100.0, True, None, d.id))
        engine.close(now)
    rows = FeedbackStore(path).rows("decisions")
    assert ids <= {r["id"] for r in rows} and len({r["id"] for r in rows}) == len(rows) == 150 + 40


def test_its_rows_stay_readable(path):
    with sqlite3.connect(path) as db:
        tables = ("decisions", "outcomes", "steps", "forecasts", "transitions")
        counts = {t: db.execute(f"SELECT count(*) FROM {t}").fetchone()[0] for t in tables}
    engine = ContextEngine(FLEET, path)
    assert {t: len(engine.store.rows(t)) for t in counts} == counts and min(counts.values()) > 0
    joined = engine.store.joined()
    assert len(joined) == counts["decisions"] and all(len(d["outcomes"]) == 1 for d in joined)
    assert all(d["candidates"][d["backend"]][0] > 0 for d in joined)
    steps, outcomes = engine.trainer.past(written(path)["at_s"])
    assert len(steps) == counts["steps"] and len(outcomes) == counts["outcomes"]
    assert engine.retrain(written(path)["at_s"]), engine.store.rows("events")


def test_the_old_forecast_acts_only_for_whoever_made_it(path):
    """Version 0.1 trusted every forecast.

    Today's engine waits for its own forecaster: `auto` has let nobody act yet.
    """
    now = written(path)["at_s"]
    engine = ContextEngine(FLEET, path)
    d = engine.decide(Request("first", tokens_in=10), now + 1.0)
    assert d.mode == "reactive" and engine.foreseen_change("east") == 1.0


@pytest.mark.parametrize(
    "spoil, says",
    [
        (
            lambda memo: memo["router"]["breakers"]["west"].update(state="ajar"),
            "breaker 'west' starts fresh",
        ),
        (
            lambda memo: memo["router"]["breakers"]["west"].pop("ring"),
            "breaker 'west' starts fresh",
        ),
        (
            lambda memo: memo.update(forecaster=dict(name="latency", memo=dict(earned=3))),
            "'latency' had learned does not fit",
        ),
    ],
)
def test_what_does_not_fit_is_told_and_the_rest_resumes(path, spoil, says):
    memo = written(path)
    spoil(memo)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE states SET value = ? WHERE name = 'engine'", (json.dumps(memo),))
    engine = ContextEngine(FLEET, path, forecaster="latency", config=EngineConfig(memo_s=1.0))
    engine.store.flush()
    told = [e["why"] for e in engine.store.rows("events") if e["what"] == "not resumed"]
    assert engine.resumed and len(told) == 1 and says in told[0]
    assert engine.decide(Request("first", tokens_in=10), memo["at_s"]).id > memo["router"]["turn"]


def test_a_store_of_a_newer_version_is_refused_with_a_remedy(path):
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    with pytest.raises(ValueError, match="update arcpoint_ce"):
        ContextEngine(FLEET, path)


def test_a_store_of_the_schema_before_is_asked_without_being_changed(tmp_path):
    path = tmp_path / "four.sqlite"
    store = FeedbackStore(path)
    store.put("events", at_s=5.0, what="x")
    store.put("steps", start_s=60, backend="east", n=1)
    store.flush()
    store.close()
    with sqlite3.connect(path) as db:
        db.execute("DROP TABLE rejected")
        db.execute("PRAGMA user_version = 4")
        db.execute("PRAGMA application_id = 0")
    assert Facts(path).newest_s() == 60.0 and len(Facts(path).span("events", 0.0, 9.0)) == 1
    with sqlite3.connect(path) as db:
        assert db.execute("PRAGMA user_version").fetchone() == (4,)
    store = FeedbackStore(path)
    assert store.rows("rejected") == [] and len(store.rows("events")) == 1


def test_its_registry_goes_on(tmp_path):
    folder = Path(shutil.copytree(DATA / "registry_0_1", tmp_path / "registry"))
    registry = Registry(folder)
    assert registry.live().name == "v1" and registry.live().metrics == dict(skill=0.2)
    forest = load(registry.path_of("v1"))
    assert set(forest.models_) == {"east", "west", "south"}
    save(forest, tmp_path / "new")
    registry.add(tmp_path / "new", "data1", dict(skill=0.3), 1.0, "v1")
    registry.move("v2", "live", 2.0, "better")
    assert registry.rollback(3.0, "it was not").name == "v1" == Registry(folder).live().name
