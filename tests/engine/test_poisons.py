"""What one bad record, clock, file or neighbour must not do: block a store, empty it, take over a
file, give an id twice, or stop a start.
"""

import json
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import threading
import time
from math import inf, nan
from pathlib import Path

import numpy as np
import pytest

from arcpoint_ce.context.state import Facts
from arcpoint_ce.engine.engine import ContextEngine, EngineConfig
from arcpoint_ce.engine.storage import SCHEMA, TABLES, MemoryShelf, SqliteShelf, open_shelf
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.forecast.forecasters import RoomForecaster
from arcpoint_ce.routing.breaker import BreakerConfig
from arcpoint_ce.routing.policies import POLICIES, OwnPace, make_policy
from arcpoint_ce.routing.records import Backend, Outcome, Request, Step
from arcpoint_ce.routing.router import Router, RouterConfig

DAY = 86_400.0
FLEET = [Backend("east", 8.0), Backend("west", 8.0)]
FORKS = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")


@pytest.fixture(params=["memory", "sqlite"])
def shelf(request, tmp_path):
    return MemoryShelf() if request.param == "memory" else open_shelf(tmp_path / "s.db")


def lived(path=None, n=200, start=0.0, **how):
    "An engine that has decided and heard `n` times, one a second; everything is written."
    how = dict(policy="p2c", forecaster="none") | how
    engine = ContextEngine(FLEET, path, **how)
    for k in range(n):
        answer(engine, start + k)
    engine.store.flush(start + n)
    return engine


def answer(engine, now, **how):
    d = engine.decide(Request(**how), now)
    engine.observe(Outcome(d.backend, now, 50.0, True, None, d.id))
    engine.step(now)
    return d


# ---- 1: one record that a store cannot hold

POISONS = dict(
    surrogate=dict(at_s=5.0, backend="\ud800"),
    surrogate_in_why=dict(at_s=5.0, why="a\udfffb"),
    huge=dict(at_s=2**63),
    tiny=dict(at_s=-(2**63) - 1),
    enormous=dict(at_s=10**5000),
    list_for_time=dict(at_s=[5.0]),
    text_for_time=dict(at_s="noon"),
    no_time=dict(),
    nan=dict(at_s=nan),
    never=dict(at_s=inf),
    mapping=dict(at_s=5.0, what=dict(a=1)),
    array=dict(at_s=5.0, what=np.arange(3)),
    bytes=dict(at_s=5.0, what=b"x"),
    object=dict(at_s=5.0, backend=object()),
)


@pytest.mark.parametrize("poison", POISONS.values(), ids=POISONS)
def test_one_bad_record_costs_none_of_the_others(shelf, poison):
    store = FeedbackStore(shelf)
    for k in range(10):
        store.put("events", at_s=float(k), what=f"before {k}")
    store.put("events", **poison)
    for k in range(10, 20):
        store.put("events", at_s=float(k), what=f"after {k}")
    store.put_state("engine", {"x": 1})
    assert store.flush(100.0) == 21
    assert [e["at_s"] for e in store.rows("events")] == [float(k) for k in range(20)]
    assert store.state("engine") == {"x": 1}
    store.put("events", at_s=30.0)
    assert store.flush(101.0) == 22
    s = store.status()
    assert (s["rejected"], s["lost"], s["unwritten"]) == (1, 1, 0) and s["rejection"]
    kept = store.rows("rejected")
    assert [(r["kind"], r["at_s"]) for r in kept] == [("row", 100.0)] and kept[0]["why"]
    assert json.dumps(s)


@pytest.mark.parametrize(
    "request_",
    [dict(tier="\ud800"), dict(tokens_in=1, id="\udc00"), dict(task=["a"])],
    ids=["tier", "id", "task"],
)
def test_a_decision_that_cannot_be_kept_leaves_its_neighbours_joined(shelf, request_):
    store, router = FeedbackStore(shelf), Router(FLEET)
    store.limit = router.limit_ms
    made = [router.decide(Request(f"r{k}"), float(k)) for k in range(6)]
    if "task" in request_:
        object.__setattr__(made[3], "request", Request("x")._replace(**request_))
    else:
        made[3] = router.decide(Request(**request_), 3.0)
    for d in made:
        store.decided(d)
        store.ended(Outcome(d.backend, d.at_s, 10.0, True, None, d.id))
    store.flush(10.0)
    assert len(store.joined()) == 5 and all(len(d["outcomes"]) == 1 for d in store.joined())
    assert store.status()["rejected"] == 1 and store.fates["joined"] == 6


BAD_OUTCOMES = dict(
    error=dict(error="bad \ud800 text"),
    tokens=dict(tokens_out=2**63),
    time=dict(ts_s=nan),
    listed=dict(latency_ms=50.0, ttft_ms=[3.0]),
    cost=dict(cost_usd="free"),
)


@pytest.mark.parametrize("bad", BAD_OUTCOMES.values(), ids=BAD_OUTCOMES)
def test_an_outcome_that_cannot_be_kept_is_lost_alone_and_may_be_told_again(shelf, bad):
    store, router = FeedbackStore(shelf), Router(FLEET)
    made = [router.decide(Request(), float(k)) for k in range(4)]
    for d in made:
        store.decided(d)
    outcome = Outcome(made[1].backend, 1.0, 50.0, decision=made[1].id)
    for name, value in bad.items():
        setattr(outcome, name, value)  # an outcome itself takes no such value
    store.ended(outcome)
    for d in made:
        store.ended(Outcome(d.backend, d.at_s, 50.0, True, None, d.id))
    store.flush(10.0)
    assert len(store.rows("outcomes")) == 4 == store.fates["joined"]
    assert store.status()["rejected"] == 1 and len(store.rows("rejected")) == 1


def test_a_step_and_a_forecast_that_cannot_be_kept(shelf):
    store = FeedbackStore(shelf)
    store.stepped("east", Step(60, n=2**70))
    store.stepped("east", Step(120, n=1))
    store.stepped("\ud800", Step(120, n=1))
    store.flush(200.0)
    assert [s["start_s"] for s in store.rows("steps")] == [120] and store.rejected == 2


@pytest.mark.parametrize("value", [{(1, 2): 3}, "\ud800", object(), {"a": b"x"}])
def test_nested_values_that_json_cannot_hold_are_told_as_text(shelf, value):
    store = FeedbackStore(shelf)
    store.put("events", at_s=1.0, detail=value)
    loop = []
    loop.append(loop)
    store.put("events", at_s=2.0, detail=loop)
    store.flush(3.0)
    assert len(store.rows("events")) == 2 and store.rejected == 0


def test_a_shelf_that_refuses_one_row_gets_all_others():
    class Picky(MemoryShelf):
        def write(self, rows, states):
            if any("sour" in row for new in rows.values() for row in new):
                raise ValueError("too sour")
            super().write(rows, states)

    store = FeedbackStore(Picky())
    for k in range(50):
        store.put("events", at_s=float(k), what="sour" if k in (7, 31) else "sweet")
    store.put_state("engine", {"x": 1})
    assert store.flush(60.0) == 49 and len(store.rows("events")) == 48
    assert store.status()["rejected"] == 2 and store.error is None and store.state("engine")
    store.put("events", at_s=70.0, what="sweet")
    assert store.flush(71.0) == 50


def test_a_shelf_that_refuses_everything_costs_nothing():
    class Shut(MemoryShelf):
        shut = True

        def write(self, rows, states):
            if self.shut and rows:
                raise ValueError("shut")
            super().write(rows, states)

    store = FeedbackStore(Shut())
    for k in range(9):
        store.put("events", at_s=float(k))
    assert store.flush(10.0) == 0 and store.rejected == 0 and "shut" in store.error
    store.shelf.shut = False
    assert store.flush(11.0) == 9 and store.lost == 0


def test_what_is_rejected_is_bounded_and_goes_on_being_counted(shelf):
    store = FeedbackStore(shelf)
    store.MOST_REJECTED = 5
    for k in range(20):
        store.put("events", at_s=[k])
    store.flush(1.0)
    assert store.rejected == 20 and len(store.rows("rejected")) == 5


def test_an_engine_says_what_was_rejected(tmp_path):
    engine = lived(tmp_path / "e.db", n=20)
    answer(engine, 21.0, tier="\ud800")
    answer(engine, 26.0)
    engine.store.flush(27.0)
    s = engine.status(27.0)["store"]
    assert s["rejected"] == 1 and s["error"] is None and len(engine.store.rows("decisions")) == 21
    assert engine.failures == 0


# ---- 2 and 3: clocks


@pytest.mark.parametrize("ahead_s", [30 * DAY, 365 * DAY])
def test_a_clock_ahead_empties_no_store(tmp_path, ahead_s):
    engine = lived(tmp_path / "e.db", n=300)
    before = {t: len(engine.store.rows(t)) for t in TABLES}
    for k in range(4):  # and an hour later it still stands there
        engine.tick(ahead_s + 3_700.0 * k)
        engine.store.flush(ahead_s + 3_700.0 * k)
    after = {t: len(engine.store.rows(t)) for t in TABLES}
    assert all(after[t] >= before[t] for t in TABLES) and before["decisions"] == 300


def test_a_store_whose_newest_record_is_300_days_old_keeps_it(tmp_path):
    lived(tmp_path / "e.db", n=300).close(300.0)
    now = 300 * DAY
    engine = ContextEngine(FLEET, tmp_path / "e.db", policy="p2c", forecaster="none")
    for k in range(10):
        answer(engine, now + k)
    for k in range(3):
        engine.step(now + 10 + 3_700.0 * k)
    assert len(engine.store.rows("decisions", until_s=DAY)) == 300
    assert len(engine.store.rows("outcomes", until_s=DAY)) == 300


def test_one_record_of_the_far_future_is_not_the_newest(shelf):
    store = FeedbackStore(shelf)
    for k in range(1000):
        store.put("events", at_s=float(k))
    store.put("events", at_s=1e9)
    store.flush()
    assert store.sweep(2_000.0) == 0 and store.spared == 0
    assert store.sweep(800.0) > 0 and len(store.rows("events")) > 800


def test_a_sweep_that_would_forget_most_forgets_nothing_unless_asked(tmp_path):
    config = EngineConfig(keep_s=50.0, sweep_s=1_000.0, tick_s=1.0)
    engine = lived(tmp_path / "e.db", n=300, config=config)
    engine.tick(1_500.0)
    engine.store.flush(1_500.0)
    s = engine.status(1_500.0)["store"]
    assert len(engine.store.rows("decisions")) == 300 and s["spared"] > 300 and not s["forgotten"]
    told = engine.store.rows("events", what="sweep")
    assert told and "none was forgotten" in told[-1]["why"]
    assert engine.store.sweep(50.0, share=1.0) > 300 and engine.store.spared == 0
    assert engine.status(1_500.0)["store"]["forgotten"] > 300
    assert min(d["at_s"] for d in engine.store.rows("decisions")) > 200.0


def test_a_store_that_grows_is_swept_as_it_goes(tmp_path):
    config = EngineConfig(keep_s=100.0, sweep_s=10.0, tick_s=1.0)
    engine = lived(tmp_path / "e.db", n=1_000, config=config)
    oldest = min(d["at_s"] for d in engine.store.rows("decisions"))
    assert 850.0 < oldest < 901.0 and engine.status(1_000.0)["store"]["forgotten"] > 1_000


def test_a_clock_that_jumps_ahead_and_back_stops_nothing():
    config = EngineConfig(tick_s=5.0, memo_s=5.0, sweep_s=60.0)
    engine = lived(n=100, config=config)
    engine.step(100.0 + DAY)
    assert engine.slow.ticked_s == 100.0 + DAY
    swept = []
    engine.store.sweep = lambda *how: swept.append(how) or 0
    for now in (105.0, 110.0, 115.0, 180.0):
        engine.step(now)
        assert engine.slow.ticked_s == now
        engine.store.flush(now)
        assert engine.store.state("engine")["at_s"] == now
    assert len(swept) == 2  # on the way back, and a minute later


def test_forecasts_are_judged_and_stored_again_after_a_clock_was_ahead():
    engine = lived(n=1)
    score = engine.score
    quantiles_ms = (100.0,) * 7
    from arcpoint_ce.routing.records import Forecast, ForecastTable

    def said(now):
        f = Forecast("east", now, 60.0, quantiles_ms, quantiles_ms)
        return ForecastTable(1, now, 60.0, {"east": f})

    score.last_ms["east"] = 100.0
    for now in (60.0, 60.0 + DAY, 120.0, 180.0):
        score.foresaw(said(now))
        engine.slow._store_fresh(said(now))
    assert [about_s for about_s, *_ in score.said["east"]] == [180.0, 240.0]
    engine.store.flush(200.0)
    assert len(engine.store.rows("forecasts")) == 4


def test_a_breaker_made_quicker_by_a_clock_ahead_is_quick_no_longer_than_usual():
    engine = lived(n=1)
    engine.slow.watch.tight = {"east": 10.0 + DAY}
    engine.slow.watch.tighten(10.0, {})
    assert engine.slow.watch.tight == {"east": 310.0}


@pytest.mark.parametrize(
    "how", [dict(ts_s=1.7e12), dict(ts_s=3_600.0), dict(latency_ms=1e9), dict(ts_s=DAY)]
)
def test_an_outcome_dated_ahead_is_filed_when_it_was_heard(shelf, how):
    engine = lived(FeedbackStore(shelf), n=100)
    d = engine.decide(Request(), 100.0)
    told = Outcome(d.backend, **(dict(ts_s=100.0, latency_ms=50.0, decision=d.id) | how))
    engine.store.ended(told)
    engine.store.flush(101.0)
    row = engine.store.rows("outcomes", decision=d.id)[0]
    assert row["end_s"] == 101.0 and engine.store.status()["ahead"] == 1
    assert (row["ts_s"], row["latency_ms"], row["fate"]) == (told.ts_s, told.latency_ms, "joined")
    assert max(o["end_s"] for o in engine.store.rows("outcomes")) <= 101.0


def test_an_outcome_of_the_present_keeps_its_time(shelf):
    store = FeedbackStore(shelf)
    store.ended(Outcome("east", 100.0, 30_000.0))
    store.flush(101.0)
    assert store.rows("outcomes")[0]["end_s"] == 130.0 and store.ahead == 0


# ---- 5: migration


def old_file(path, version=1, rows=1):
    "A store as version 0.1 of the schema had it."
    newer = {"age_s", "ttft_ms", "gateway", "limit_ms"}
    with sqlite3.connect(path) as db:
        for t, columns in TABLES.items():
            if t != "rejected":
                gone = newer | {"version", "quality"} if t == "outcomes" else newer
                db.execute(f"CREATE TABLE {t} ({', '.join(c for c in columns if c not in gone)})")
        insert = "INSERT INTO decisions (at_s, id, backend) VALUES (?, ?, 'east')"
        db.executemany(insert, [(float(k), k) for k in range(rows)])
        db.execute(f"PRAGMA user_version = {version}")
    return path


class Dies(sqlite3.Connection):
    "A connection whose process dies after so many statements that change the schema."

    left = 0

    def execute(self, sql, *values):
        if sql.startswith(("ALTER", "CREATE", "PRAGMA user_version =")):
            if Dies.left == 0:
                raise KeyboardInterrupt("killed")
            Dies.left -= 1
        return super().execute(sql, *values)


@pytest.mark.parametrize("new", [False, True])
def test_a_death_between_any_two_statements_leaves_a_file_that_opens(tmp_path, monkeypatch, new):
    real = sqlite3.connect
    for n in range(60):
        path = tmp_path / f"{n}.db"
        if not new:
            old_file(path)
        Dies.left = n
        monkeypatch.setattr(sqlite3, "connect", lambda *a, **k: real(*a, **k, factory=Dies))
        try:
            SqliteShelf(path).close()
            died = False
        except KeyboardInterrupt:
            died = True
        monkeypatch.setattr(sqlite3, "connect", real)
        store = FeedbackStore(path)
        assert len(store.rows("decisions")) == (0 if new else 1) and not store.shelf.aside
        store.close()
        if not died:
            break
    assert n > 10 and not died


def test_a_file_that_an_older_version_left_half_upgraded_opens(tmp_path):
    path = old_file(tmp_path / "old.db")
    with sqlite3.connect(path) as db:
        db.execute("ALTER TABLE decisions ADD COLUMN age_s")
    store = FeedbackStore(path)
    assert store.rows("decisions")[0]["age_s"] is None
    store.close()
    with sqlite3.connect(tmp_path / "begun.db") as db:
        db.execute("CREATE TABLE decisions (at_s, id, request)")
    FeedbackStore(tmp_path / "begun.db").close()


UPGRADER = """
import sys
from arcpoint_ce.engine.storage import SqliteShelf
print("up", flush=True)
sys.stdin.readline()
shelf = SqliteShelf(sys.argv[1])
print(len(shelf.read("decisions", -1e99, 1e99, {}, -1)), flush=True)
"""


@pytest.mark.parametrize("new", [False, True])
def test_processes_that_upgrade_at_once_all_succeed(tmp_path, new):
    for turn in range(3):
        path = tmp_path / f"{turn}.db"
        if not new:
            old_file(path, rows=20_000)
        command = [sys.executable, "-c", UPGRADER, str(path)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        both = [subprocess.Popen(command, text=True, **pipes) for _ in range(3)]
        for p in both:
            assert p.stdout.readline() == "up\n"
        for p in both:
            p.stdin.write("\n")
            p.stdin.flush()
        said = [p.communicate(timeout=120) for p in both]
        assert [out.strip() for out, _ in said] == ["0" if new else "20000"] * 3, said


@pytest.mark.parametrize("version, mark", [(0, 0), (3, 0), (SCHEMA, 0), (0, 77), (2, 77)])
def test_somebody_elses_sqlite_file_is_never_taken_over(tmp_path, version, mark):
    path = tmp_path / "books.db"
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE invoices (number, sum)")
        db.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, title)")
        db.execute("INSERT INTO invoices VALUES (1, 2.5)")
        db.execute(f"PRAGMA user_version = {version}")
        db.execute(f"PRAGMA application_id = {mark}")
    before = path.read_bytes()
    for way in (SqliteShelf, FeedbackStore, lambda path: ContextEngine(FLEET, path)):
        with pytest.raises(ValueError, match="of another program.*another path"):
            way(path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["books.db"]


# ---- 6: state that no longer fits


def memo_of(path):
    store = FeedbackStore(path)
    memo = store.state("engine")
    store.close()
    return memo


@pytest.fixture
def path(tmp_path):
    path = tmp_path / "e.db"
    lived(path, n=100, config=EngineConfig(memo_s=1.0)).close(100.0)
    return path


BROKEN = dict(
    empty_text="",
    no_json="{",
    null="null",
    empty="{}",
    listed="[]",
    number="5",
    text='"x"',
    no_router=dict(router=None),
    router_is_empty=dict(router={}),
    router_is_a_list=dict(router=[1]),
    turn_is_text=dict(router=dict(turn="many", breakers={})),
    turn_is_none=dict(router=dict(turn=None, breakers={})),
    turn_is_huge=dict(router=dict(turn=1 << 60, breakers={})),
    breakers_are_a_list=dict(router=dict(turn=5, breakers=[1])),
    breaker_is_none=dict(router=dict(turn=5, breakers=dict(east=None))),
    measured_is_none=dict(router=dict(turn=5, breakers={}, measured=None)),
    usual_is_none=dict(router=dict(turn=5, breakers={}, usual=None)),
    at_is_none=dict(at_s=None),
    at_is_text=dict(at_s="noon"),
    table_is_none=dict(table=None),
    table_is_empty=dict(table={}),
    forecasts_are_short=dict(
        table=dict(version=1, made_s=5.0, max_age_s=9.0, model="x", forecasts=dict(east=[1.0]))
    ),
    tight_is_none=dict(tight=None),
    tight_is_text=dict(tight=dict(east="soon")),
    forecaster_is_none=dict(forecaster=None),
    forecaster_is_empty=dict(forecaster={}),
    forecaster_is_a_list=dict(forecaster=[]),
)


@pytest.mark.parametrize("spoil", BROKEN.values(), ids=BROKEN)
def test_a_broken_memo_does_not_stop_the_start(path, spoil):
    text = spoil if isinstance(spoil, str) else json.dumps(memo_of(path) | spoil)
    with sqlite3.connect(path) as db:
        db.execute("UPDATE states SET value = ? WHERE name = 'engine'", (text,))
    engine = ContextEngine(FLEET, path, policy="p2c", forecaster="none")
    first = engine.decide(Request(), 101.0)
    assert first.id < 2**53 and first.id not in {d["id"] for d in engine.store.rows("decisions")}
    engine.step(101.0)
    engine.step(110.0)
    assert engine.failures == 0
    told = [e for e in engine.store.rows("events") if e["what"] == "not resumed"]
    aside = engine.store.state("engine/aside")
    assert bool(told) == bool(aside)
    if told:
        assert aside["text"] == text and aside["why"] == [e["why"] for e in told]
    engine.close(111.0)
    assert ContextEngine(FLEET, path, policy="p2c", forecaster="none").resumed


def test_most_broken_memos_are_told(path):
    silent = ("turn_is_none", "turn_is_text", "turn_is_huge", "forecaster_is_empty")
    silent += ("null", "table_is_none", "table_is_empty", "forecasts_are_short")
    silent += ("forecaster_is_none", "forecaster_is_a_list")
    memo, said = memo_of(path), {}
    for name, spoil in BROKEN.items():
        text = spoil if isinstance(spoil, str) else json.dumps(memo | spoil)
        with sqlite3.connect(path) as db:
            db.execute("DELETE FROM events")
            db.execute("UPDATE states SET value = ? WHERE name = 'engine'", (text,))
        engine = ContextEngine(FLEET, path, policy="p2c", forecaster="none")
        engine.store.flush()
        said[name] = bool(engine.store.rows("events", what="not resumed"))
        engine.store.close()
    assert not [name for name, told in said.items() if not told and name not in silent]


def test_broken_lessons_and_steps_do_not_stop_the_start(path):
    with sqlite3.connect(path) as db:
        db.execute("INSERT OR REPLACE INTO states VALUES ('engine/lessons', '{')")
        db.execute("INSERT INTO steps (start_s, backend, n, hist) VALUES (60, 'east', 3, '{')")
    engine = ContextEngine(FLEET, path, policy="p2c", forecaster="none")
    engine.store.flush()
    told = " ".join(e["why"] for e in engine.store.rows("events", what="not resumed"))
    assert engine.resumed and "lessons" in told and "step" in told


@pytest.mark.parametrize("window", [10, 200])
def test_another_breaker_window_resumes(path, window):
    config = BreakerConfig(window=window, min_calls=5)
    engine = ContextEngine(FLEET, path, policy="p2c", forecaster="none", breaker=config)
    assert engine.resumed
    for k in range(30):
        answer(engine, 101.0 + k)
    assert engine.failures == 0
    other = ContextEngine(FLEET, path, forecaster=RoomForecaster(), router=RouterConfig(step_s=7))
    answer(other, 140.0)
    assert other.resumed


# ---- 7: ids


def ids_of(engine, n=50, start=0.0):
    return [engine.decide(Request(), start + 0.01 * k).id for k in range(n)]


@pytest.mark.parametrize("kind", ["file", "memory"])
def test_two_engines_on_one_new_store_never_give_an_id_twice(tmp_path, kind):
    shelf = MemoryShelf()

    def store():
        return tmp_path / "new.db" if kind == "file" else FeedbackStore(shelf)

    engines = [
        ContextEngine(FLEET, store(), policy="p2c", forecaster="none", holdout=0.0)
        for _ in range(3)
    ]
    ids = [i for e in engines for i in ids_of(e)]
    assert len(set(ids)) == 150 and max(ids) < 2**53
    for e in engines:
        now, d = 5.0, e.decide(Request(), 5.0)
        e.observe(Outcome(d.backend, now, 10.0, True, None, d.id))
        e.step(now + 1.0)
    rows = engines[0].store.joined()
    assert len(rows) == 153
    assert sum(len(d["outcomes"]) == 1 and d["at_s"] == 5.0 for d in rows) == 3
    for d in rows:
        assert all(o["backend"] == d["backend"] for o in d["outcomes"])


def test_ids_are_not_reused_by_a_restart_before_the_first_tick(tmp_path):
    ids = []
    for _ in range(5):
        engine = ContextEngine(FLEET, tmp_path / "e.db", policy="p2c", forecaster="none")
        ids += ids_of(engine, 20)
        engine.store.flush(1.0)
        engine.store.close()  # as a crash leaves it: no tick, no memo
    assert len(set(ids)) == 100
    assert {d["id"] for d in FeedbackStore(tmp_path / "e.db").rows("decisions")} == set(ids)


def test_ids_go_on_above_those_before(tmp_path):
    last = 0
    for turn in range(5):
        engine = ContextEngine(FLEET, tmp_path / "e.db", policy="p2c", forecaster="none")
        ids = ids_of(engine, 20, 10.0 * turn)
        assert min(ids) > last
        last = max(ids)
        assert engine.status(1.0)["counts"]["decided"] == 20
        engine.tick(10.0 * turn + 1.0)
        engine.close(10.0 * turn + 2.0)
    assert last < 2**53


def test_engines_that_share_a_store_say_so(tmp_path):
    first = lived(tmp_path / "e.db", n=10)
    first.tick(20.0)
    first.store.flush(20.0)
    second = ContextEngine(FLEET, tmp_path / "e.db", policy="p2c", forecaster="none")
    second.store.flush(21.0)
    told = second.store.rows("events", what="store is shared")
    assert len(told) == 1 and "gateway" in told[0]["why"]
    second.close(22.0)
    first.close(23.0)
    third = ContextEngine(FLEET, tmp_path / "e.db", policy="p2c", forecaster="none")
    third.store.flush(24.0)
    assert len(third.store.rows("events", what="store is shared")) == 1  # nobody is there any more


def in_child(what):
    "Fork, and what the child had to say; AssertionError where it does not end."
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.write(write, json.dumps(what()).encode())
        except BaseException as e:
            os.write(write, json.dumps(f"{type(e).__name__}: {e}").encode())
        finally:
            os._exit(0)
    os.close(write)
    deadline = time.monotonic() + 60.0
    while os.waitpid(pid, os.WNOHANG) == (0, 0):
        if time.monotonic() > deadline:
            os.kill(pid, 9)
            os.waitpid(pid, 0)
            raise AssertionError("the child hangs")
        time.sleep(0.01)
    with open(read) as pipe:
        return json.loads(pipe.read())


@FORKS
@pytest.mark.parametrize("kind", ["file", "memory"])
def test_after_a_fork_both_sides_give_their_own_ids(tmp_path, kind):
    path = tmp_path / "e.db" if kind == "file" else None
    engine = ContextEngine(FLEET, path, policy="p2c", forecaster="none")
    before = ids_of(engine, 20)

    def child():
        ids = ids_of(engine, 20, 1.0)
        engine.store.flush(2.0)
        return ids, engine.status(2.0)["counts"]["decided"], len(engine.store.rows("decisions"))

    children = [in_child(child) for _ in range(3)]
    after = ids_of(engine, 20, 1.0)
    engine.store.flush(2.0)
    everything = [before, after, *(ids for ids, _, _ in children)]
    assert len({i for ids in everything for i in ids}) == 100
    assert [n for _, n, _ in children] == [20, 20, 20]
    if kind == "file":
        rows = engine.store.rows("decisions")
        assert len(rows) == 100 == len({d["id"] for d in rows})  # each was written once


@FORKS
def test_the_child_of_a_fork_has_no_worker_and_can_start_one(tmp_path):
    config = EngineConfig(tick_s=0.05, flush_s=0.01)
    engine = ContextEngine(FLEET, tmp_path / "e.db", config=config)
    engine.start(time.monotonic)

    def child():
        ran = engine.status(time.monotonic())["worker"]["runs"]
        engine.start(time.monotonic)
        d = engine.decide(Request(), time.monotonic())
        engine.observe(Outcome(d.backend, d.at_s, 1.0, True, None, d.id))
        deadline = time.monotonic() + 30.0
        while not engine.store.fates["joined"] and time.monotonic() < deadline:
            time.sleep(0.01)
        runs = engine.status(time.monotonic())["worker"]["runs"]
        engine.stop()
        return ran, runs, engine.store.fates["joined"]

    assert in_child(child) == [False, True, 1]
    assert engine.status(time.monotonic())["worker"]["runs"]
    engine.close()


@pytest.mark.slow
@FORKS
def test_a_child_that_forked_under_another_threads_locks_does_not_hang(tmp_path):
    engine = ContextEngine(FLEET, tmp_path / "e.db", policy="p2c", forecaster="none")
    stop, n = threading.Event(), [0]

    def busy():
        while not stop.is_set():
            n[0] += 1
            answer(engine, 0.001 * n[0])

    threads = [threading.Thread(target=busy, daemon=True) for _ in range(2)]
    for t in threads:
        t.start()

    def child():
        now = 1e6
        d = answer(engine, now)
        engine.tick(now + 10.0)
        return d.id

    ids = [in_child(child) for _ in range(15)]
    stop.set()
    for t in threads:
        t.join()
    assert all(isinstance(i, int) for i in ids) and len(set(ids)) == 15
    assert engine.failures == 0 and engine.store.error is None


def test_a_worker_that_died_is_not_reported_as_running():
    engine = ContextEngine(FLEET)
    engine._thread = threading.Thread(target=print)
    assert not engine.status(0.0)["worker"]["runs"]


def spawned(path):
    engine = ContextEngine(FLEET, path, policy="p2c", forecaster="none")
    ids = ids_of(engine, 20)
    engine.store.flush(1.0)
    engine.store.close()
    return ids


@pytest.mark.slow
def test_processes_on_one_file_give_ids_of_their_own(tmp_path):
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        ids = [i for part in pool.map(spawned, [tmp_path / "e.db"] * 4) for i in part]
    assert len(set(ids)) == 80 == len(FeedbackStore(tmp_path / "e.db").rows("decisions"))


# ---- 8: the path

NO_STORES = dict(
    text=b"buy milk\n",
    csv=b"ts,backend,latency_ms\n1,a,2\n",
    json=b'{"a": 1}',
    gz=b"\x1f\x8b\x08\x00" + bytes(40),
    parquet=b"PAR1" + b"x" * 99 + b"PAR1",
    almost=b"SQLite format 4\0" + b"x" * 99,
    short=b"S",
)


@pytest.mark.parametrize("content", NO_STORES.values(), ids=NO_STORES)
def test_a_file_that_is_no_store_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "notes.txt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"notes\.txt is no store.*another path"):
        ContextEngine(FLEET, path)
    assert path.read_bytes() == content and [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(ValueError, match="is a folder"):
        FeedbackStore(tmp_path)


@pytest.mark.parametrize(
    "name", ["a#b.db", "a?b.db", "a%20b.db", "a?mode=rw#c.db", "a b.db", "ä.db"]
)
def test_names_that_mean_something_in_an_address(tmp_path, name):
    path = tmp_path / name
    lived(path, n=50).close(50.0)
    assert [p.name for p in tmp_path.iterdir()] == [name]
    facts = Facts(path)
    assert len(facts.span("decisions", -1.0, 1e9)) == 50
    facts.reader.connection(0.0, 0.0).close()
    assert all(p.name.startswith(name) for p in tmp_path.iterdir())
    content = path.read_bytes()
    path.write_bytes(content[:100] + b"\xff" * 300 + content[400:])  # broken: rescued by address
    store = FeedbackStore(path)
    store.put("events", at_s=1.0)
    store.flush()
    store.close()
    here = {p.name for p in tmp_path.iterdir()}
    assert all(n.startswith(name) for n in here) and {name, f"{name}.broken1"} <= here


@pytest.mark.parametrize("gone", [("",), ("", "-wal", "-shm"), ("-wal", "-shm"), ("-wal",)])
def test_a_file_deleted_under_a_running_engine_is_noticed(tmp_path, gone):
    path = tmp_path / "e.db"
    engine = lived(path, n=100)
    for tail in gone:
        Path(f"{path}{tail}").unlink()
    for k in range(20):
        answer(engine, 101.0 + k)
    engine.store.flush(130.0)
    s = engine.store.status()
    assert s["error"] is None and len(s["replaced"]) == 1 and "was gone" in s["replaced"][0]
    other = FeedbackStore(path)
    assert len(other.rows("decisions")) == 120 == len(other.rows("outcomes"))
    assert other.state("fleet")
    other.close()
    engine.close(131.0)
    assert len(FeedbackStore(path).rows("decisions")) == 120


def test_a_second_store_in_the_same_process_ends_no_locks(tmp_path):
    """POSIX drops a file's locks when the process closes any descriptor of it: another process
    that opens and closes the store would then delete the log under us.
    """
    path = tmp_path / "e.db"
    engine = lived(path, n=50)
    for _ in range(2):
        FeedbackStore(path)
    code = (
        "import sys; from arcpoint_ce.engine.storage import SqliteShelf; "
        "SqliteShelf(sys.argv[1]).close()"
    )
    subprocess.run([sys.executable, "-c", code, str(path)], check=True)
    assert Path(f"{path}-wal").exists()
    answer(engine, 60.0)
    engine.store.flush(61.0)
    assert not engine.store.status()["replaced"]
    assert len(FeedbackStore(path).rows("decisions")) == 51


def test_a_file_that_was_replaced_is_used_from_then_on(tmp_path):
    path = tmp_path / "e.db"
    engine = lived(path, n=100)
    lived(tmp_path / "other.db", n=7).close(7.0)
    for tail in ("-wal", "-shm"):
        Path(f"{path}{tail}").unlink()
    os.replace(tmp_path / "other.db", path)
    answer(engine, 101.0)
    engine.store.flush(102.0)
    assert "replaced" in engine.store.status()["replaced"][0]
    assert len(FeedbackStore(path).rows("decisions")) == 8


def test_a_folder_that_is_gone_is_said_and_costs_nothing_that_waits(tmp_path):
    folder = tmp_path / "f"
    folder.mkdir()
    engine = lived(folder / "e.db", n=10)
    moved = folder.rename(tmp_path / "g")
    done = engine.store.acknowledged
    answer(engine, 11.0)
    engine.store.flush(12.0)
    assert engine.store.acknowledged == done and engine.store.error
    moved.rename(folder)
    engine.store.flush(13.0)
    assert engine.store.acknowledged > done and engine.store.error is None
    assert len(FeedbackStore(folder / "e.db").rows("decisions")) == 11


# ---- 10: what a decision costs in a large fleet


def flush_us(n, policy="auto", m=300):
    "Median time of a flush per decision, us, and bytes per decision."
    engine = ContextEngine(
        [Backend(f"b{k}", 8.0) for k in range(n)], None, policy=policy, forecaster="none"
    )
    took = []
    for turn in range(5):
        for k in range(m):
            now = 100.0 + turn + 0.001 * k
            d = engine.decide(Request(tokens_in=100, tokens_out=50), now)
            engine.observe(Outcome(d.backend, now, 100.0, True, None, d.id, 0, 100, 50))
        began = time.process_time()
        engine.store.flush(now)
        took.append(1e6 * (time.process_time() - began) / m)
    rows = engine.store.shelf.tables["decisions"]
    size = sum(len(x) for row in rows for x in row if isinstance(x, str)) / len(rows)
    return sorted(took)[2], size


def test_a_flush_costs_the_same_in_a_fleet_of_a_thousand():
    ratios = []
    for _ in range(3):
        (few_us, few_b), (many_us, many_b) = flush_us(8), flush_us(1_000)
        ratios.append(many_us / few_us)
        if ratios[-1] <= 2.0:
            break
    assert min(ratios) <= 2.0 and many_b <= 2.0 * few_b


@pytest.mark.parametrize("n", [3, 16, 17, 60])
@pytest.mark.parametrize("name", [*POLICIES, "own_pace of 3"])
def test_the_chance_of_what_was_chosen_is_exact_in_every_fleet(name, n):
    policy = OwnPace(gateways=3) if name.endswith("3") else make_policy(name)
    backends = [Backend(f"b{k}", 2.0 + k % 4, price_in=0.1 * (k % 3)) for k in range(n)]
    router = Router(backends, policy, config=RouterConfig(explore=0.05, probe_share=0.2))
    store = FeedbackStore()
    for k in range(150):
        d = router.decide(Request(tokens_in=10, tokens_out=20), 0.1 * k)
        store.decided(d)
        if k % 3:
            ok = d.backend != "b1"
            router.observe(
                Outcome(d.backend, 0.1 * k, 50.0 + k % 7, ok, None if ok else "error", d.id)
            )
    for d, row in zip(_decisions(store), _flushed(store)):
        assert abs(row["propensity"] - d.probability) < 1e-12
        kept = row["candidates"]
        assert d.backend in kept
        if n <= 16:
            chances = {c.backend: c.probability for c in d.candidates if c.probability}
            assert all(abs(kept[b][0] - p) < 1e-4 for b, p in chances.items())


def _decisions(store):
    return [record[1] for record in store._queue]


def _flushed(store):
    store.flush()
    return store.rows("decisions")


# ---- 13: features, and backends that have left


def test_a_decision_is_stored_with_what_was_known_of_its_backend():
    engine = lived(n=300, policy="p2c")
    rows = engine.store.rows("decisions", since_s=150.0)
    assert rows and all(row["features"] for row in rows)
    assert rows[-1]["features"]["latency_ms"] == 50.0 and rows[-1]["features"]["load_rps"] > 0


def test_nothing_of_a_backend_that_left_stays():
    engine = lived(n=300, policy="p2c", forecaster="room")
    engine.slow.watch.tight["west"] = 1e9
    engine.router.remove("west")
    engine.tick(305.0)
    engine.tick(310.0)
    slow = engine.slow
    kept = [slow.feed.histories, slow.feed.hooked, slow.known, slow.made_s, slow.watch.tight]
    kept += [slow.score.last_ms, slow.score.said, slow.score.rows, slow.journal.shedding]
    assert not [x for x in kept if "west" in x]


def test_a_decision_dated_ahead_is_not_the_present(tmp_path):
    "A store read from outside takes its newest record for the present; this one is none."
    engine = lived(tmp_path / "e.db", n=50)
    last = Facts(engine.store).newest_s()
    engine.decide(Request(), last + 5.0)
    engine.store.flush(last + 5.0)
    assert Facts(engine.store).newest_s() == last + 5.0  # its outcome is still to come
    engine.decide(Request(), last + DAY)
    engine.store.flush(last + 6.0)
    assert Facts(engine.store).newest_s() == last
    alone = ContextEngine([Backend("a")])
    alone.decide(Request(), 7.0)
    alone.store.flush(7.0)
    assert Facts(alone.store).newest_s() == 7.0  # nothing else is known
