"""One contract for every shelf and the store on top of it; faults of the disk and of the server;
migration; fates.
"""

import json
import shutil
import sqlite3
import subprocess
import sys
import time
from math import inf

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.engine import storage as shelves
from arcpoint_ce.engine import store as feedback
from arcpoint_ce.engine.engine import ContextEngine, EngineConfig
from arcpoint_ce.engine.storage import (
    SCHEMA,
    TABLES,
    MemoryShelf,
    SqliteShelf,
    _RedisShelf,
    open_shelf,
)
from arcpoint_ce.engine.store import (
    _DUPLICATE,
    _FOREIGN,
    _JOINED,
    _LATE,
    _MISSING,
    _ORPHAN,
    FeedbackStore,
)
from arcpoint_ce.routing.records import Backend, Forecast, ForecastTable, Outcome, Request, Step
from arcpoint_ce.routing.router import Router, RouterConfig


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    "A Redis server of our own on a unix socket."
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    folder = tmp_path_factory.mktemp("redis")
    socket = folder / "r.sock"

    def start():
        process = subprocess.Popen(
            [
                binary,
                "--port",
                "0",
                "--unixsocket",
                str(socket),
                "--unixsocketperm",
                "700",
                "--appendonly",
                "yes",
                "--appendfsync",  # else a kill may lose what was written in the last second
                "always",
                "--dir",
                str(folder),
            ],
            stdout=subprocess.DEVNULL,
        )
        from redis import Redis

        for _ in range(200):
            try:
                Redis(unix_socket_path=str(socket)).ping()
                return process
            except Exception:
                time.sleep(0.02)
        raise RuntimeError("redis-server did not start")

    state = dict(process=start(), start=start, url=f"unix://{socket}")
    yield state
    state["process"].terminate()
    state["process"].wait()


@pytest.fixture(params=["memory", "sqlite", "redis"])
def where(request, tmp_path):
    "Opens the same shelf again and again."
    if request.param == "memory":
        one = MemoryShelf()
        return lambda: one
    if request.param == "sqlite":
        return lambda: open_shelf(tmp_path / "store.db")
    url = request.getfixturevalue("server")["url"]
    prefix = str(tmp_path)
    return lambda: _RedisShelf(url, prefix)


def filled(shelf):
    "Two decisions with a retry, an outcome each, and one record of every other table."
    store, router = (
        FeedbackStore(shelf),
        Router([Backend("east"), Backend("west")], config=RouterConfig(lease_s=60.0)),
    )
    router.swap(
        ForecastTable(
            3,
            0.0,
            60.0,
            {
                "east": Forecast(
                    "east",
                    0.0,
                    300.0,
                    (80.0, 90.0, 95.0, 100.0, 110.0, 120.0, 130.0),
                    (80.0, 90.0, 95.0, 100.0, 110.0, 120.0, 130.0),
                )
            },
            "test",
        ),
        1.0,
    )
    a, b = (
        router.decide(Request("a", tier="gold", task="chat"), 5.0),
        router.decide(Request("b"), 6.0),
    )
    for d in (a, b):
        store.decided(d, {"load_rps": 1.5})
    again = router.retry(b, 7.0)
    store.again(b, again, 7.0)
    for o in (
        Outcome(a.backend, 5.0, 100.0, True, None, a.id),
        Outcome(b.backend, 6.0, 1000.0, False, "timeout", b.id),
        Outcome(again, 7.0, 50.0, True, None, b.id, 1),
    ):
        store.ended(o)
    step = Step(0, n=2, n_lat=2, latency_us=150_000, hist={123: 2})
    store.stepped("east", step)
    store.forecast(router.table)
    store.put(
        "transitions",
        at_s=8.0,
        backend="east",
        old="closed",
        new="open",
        reason="5 failed",
        evidence={"failed": 5},
    )
    store.put(
        "incidents",
        start_s=8.0,
        backend="east",
        severity="high",
        score=9.5,
        says="latency rose",
        detail={"latency": 3.0},
    )
    store.put("events", at_s=9.0, backend="east", what="drift", why="error doubled")
    store.put("traces", at_s=9.0, id="t1", detail=[1, "x", None])
    store.put("rejected", at_s=9.0, kind="row", why="by hand")
    store.put_state("engine", {"turn": 2})
    return store, a, b


def test_what_was_flushed_is_found_again_by_another_opening(where):
    store, a, b = filled(where())
    assert store.acknowledged == 0 and store.flush() == 13
    other = FeedbackStore(where())
    assert other.state("engine") == {"turn": 2} and other.state("nobody") is None
    assert {t: len(other.rows(t)) for t in TABLES} == dict(
        decisions=2,
        attempts=1,
        outcomes=3,
        forecasts=1,
        steps=1,
        transitions=1,
        incidents=1,
        events=1,
        traces=1,
        rejected=1,
    )
    joined = {d["request"]: d for d in other.joined()}
    assert [o["fate"] for o in joined["a"]["outcomes"]] == [_JOINED]
    assert sorted((o["attempt"], o["censored"]) for o in joined["b"]["outcomes"]) == [
        (0, 1),
        (1, 0),
    ]
    assert (
        joined["a"]["features"] == {"load_rps": 1.5}
        and abs(joined["a"]["propensity"] - a.probability) < 1e-12
    )
    assert other.rows("traces")[0]["detail"] == [1, "x", None] and other.rows("steps")[0][
        "hist"
    ] == {123: 2}


def test_queries_by_time_backend_tier_and_version(where):
    store, a, b = filled(where())
    store.flush()
    assert [d["request"] for d in store.rows("decisions", tier="gold")] == ["a"] and len(
        store.rows("decisions", since_s=5.5)
    ) == 1
    assert (
        len(store.rows("decisions", until_s=6.0)) == 1
        and len(store.rows("decisions", limit=1)) == 1
        and store.rows("decisions", backend="nobody") == []
    )
    versions = {d["version"] for d in store.rows("decisions")}
    assert versions <= {3, None} and all(
        d["version"] == 3 for d in store.rows("decisions", version=3)
    )
    for wrong in (
        lambda: store.rows("decisions", colour=1),
        lambda: store.rows("dreams"),
        lambda: store.put("events", colour=1),
        lambda: store.put("dreams"),
    ):
        with pytest.raises(KeyError):
            wrong()


def test_a_failed_write_leaves_nothing_behind(where):
    shelf = where()
    shelf.write({"events": [(1.0, "a", "x", "y", None)]}, {})
    with pytest.raises(Exception):
        shelf.write({"events": [(2.0, "a", "x", "y", None)], "dreams": [(1.0,)]}, {"engine": "{}"})
    assert len(shelf.read("events", -inf, inf, {}, -1)) == 1 and shelf.state("engine") is None


def test_retention_and_export(where, tmp_path):
    import duckdb

    store, *_ = filled(where())
    store.flush()
    files = store.export(tmp_path)
    assert {f.stem for f in files} == set(TABLES)
    assert duckdb.connect().execute(
        "SELECT count(*) FROM read_parquet(?)", [f"{tmp_path}/outcomes.parquet"]
    ).fetchone() == (3,)
    gone = store.retain(6.5)
    assert gone > 0 and all(r[TABLES[t][0]] >= 6.5 for t in TABLES for r in store.rows(t))
    with pytest.raises(FileNotFoundError):
        store.export(tmp_path / "nowhere")


def test_fates_across_a_restart(where):
    store, a, b = filled(where())
    store.flush()
    after = FeedbackStore(where())
    after.ended(Outcome(a.backend, 5.0, 100.0, True, None, a.id))
    after.ended(Outcome("east", 5.0, 1.0, True, None, 10**9))
    after.ended(Outcome("east", 5.0, 1.0))
    after.flush()
    assert [after.fates[f] for f in (_DUPLICATE, _ORPHAN, _FOREIGN)] == [1, 1, 1]
    assert len(after.joined()[0]["outcomes"]) == 1  # a duplicate is kept, but never counted


def test_an_outcome_that_does_not_come_is_missing_and_then_late():
    store, router = FeedbackStore(), Router([Backend("east")], config=RouterConfig(lease_s=10.0))
    d = router.decide(Request(), 0.0)
    store.decided(d)
    store.flush(5.0)
    assert store.fates[_MISSING] == 0
    store.flush(10.1)
    assert store.fates[_MISSING] == 1 and store.rows("outcomes")[0]["censored"] == 1
    store.ended(Outcome("east", 0.0, 20_000.0, True, None, d.id))
    store.flush(21.0)
    assert store.fates[_LATE] == 1


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(0, 3),
            st.sampled_from(["decide", "end", "flush", "again"]),
            st.integers(0, 1),
            st.floats(0, 30),
        ),
        max_size=40,
    )
)
def test_every_outcome_has_exactly_one_fate_whatever_the_order(events):
    store, router, made, told, now = (
        FeedbackStore(),
        Router([Backend("east"), Backend("west")], config=RouterConfig(lease_s=20.0)),
        {},
        0,
        0.0,
    )
    for who, what, attempt, dt in events:
        now += dt / 10
        if what == "decide":
            made[who] = router.decide(Request(), now)
            store.decided(made[who])
        elif what == "again" and who in made and (b := router.retry(made[who], now)):
            store.again(made[who], b, now)
        elif what == "end" and who in made:
            store.ended(Outcome("east", now, 10.0, True, None, made[who].id, attempt))
            told += 1
        elif what == "flush":
            store.flush()
    store.flush()
    assert sum(store.fates.values()) == told == len(store.rows("outcomes"))
    seen = [
        (o["decision"], o["attempt"])
        for o in store.rows("outcomes")
        if o["fate"] in (_JOINED, _LATE)
    ]
    assert len(seen) == len(set(seen)) and store.fates[_ORPHAN] == store.fates[_FOREIGN] == 0


def test_the_fast_path_never_blocks_or_raises_and_counts_what_overflows():
    class Broken(MemoryShelf):
        def write(self, rows, states):
            raise OSError("no space left on device")

    store = FeedbackStore(Broken(), queue=5)
    taken = [store.ended(Outcome("east", 0.0, 1.0)) for _ in range(8)]
    assert taken == [True] * 5 + [False] * 3 and store.flush() == 0
    s = store.status()
    assert (s["overflowed"], s["acknowledged"], s["unwritten"], s["errors"]) == (
        3,
        0,
        5,
        1,
    ) and "no space" in s["error"]


def test_a_late_outcome_is_looked_up_by_its_decision_and_not_searched_for(monkeypatch):
    looked = []
    real = shelves.matches
    for m in (shelves, feedback):
        monkeypatch.setattr(m, "matches", lambda *a: looked.append(a) or real(*a))
    store, router = FeedbackStore(), Router([Backend("east", capacity=9.0)])
    made = [router.decide(Request(), 0.01 * k) for k in range(400)]
    for d in made:
        store.decided(d)
    store.flush(1e6)  # every lease is over
    for d in made:
        store.ended(Outcome("east", d.at_s, 5.0, decision=d.id))
    store.flush()
    assert store.fates["late"] == 400 and len(looked) < 20 * 400
    for d in made:
        store.ended(Outcome("east", d.at_s, 5.0, decision=d.id))
    for d in made:
        store.ended(Outcome("east", d.at_s, 6.0, decision=d.id))  # not written yet either
    store.flush()
    assert store.fates["duplicate"] == 800 and len(looked) < 60 * 400
    assert store.retain(1e9) and store._find("outcomes", dict(decision=made[0].id)) == []


# ---- SQLite


def test_an_older_file_is_brought_up_to_date_and_a_newer_one_refused(tmp_path):
    path = tmp_path / "old.db"
    db = sqlite3.connect(path)
    newer = {"age_s", "ttft_ms", "gateway", "limit_ms"}  # columns that version 1 did not have
    for t, columns in TABLES.items():
        gone = newer | {"version", "quality"} if t == "outcomes" else newer
        old = [c for c in columns if c not in gone]
        db.execute(f"CREATE TABLE {t} ({', '.join(old)})")
    db.execute("INSERT INTO decisions (at_s, id, backend) VALUES (1., 7, 'east')")
    db.execute("PRAGMA user_version = 1")
    db.commit()
    db.close()
    store = FeedbackStore(path)
    assert store.rows("decisions")[0]["id"] == 7 and store.rows("decisions")[0]["age_s"] is None
    store.shelf.db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    store.close()
    with pytest.raises(ValueError, match="update arcpoint_ce"):
        FeedbackStore(path)


def test_a_full_disk_costs_nothing_that_was_acknowledged(tmp_path):
    store, *_ = filled(open_shelf(tmp_path / "s.db"))
    done = store.flush()
    db = store.shelf.db
    db.execute(f"PRAGMA max_page_count = {db.execute('PRAGMA page_count').fetchone()[0]}")
    for k in range(3000):
        store.put("events", at_s=float(k), backend="east", what="x" * 200)
    assert store.flush() == done and "full" in store.error and store.status()["unwritten"] == 3000
    db.execute("PRAGMA max_page_count = 1000000")
    assert store.flush() == done + 3000 and len(store.rows("events")) == 3001 and store.lost == 0


def test_a_read_only_file_and_a_locked_one(tmp_path):
    path = tmp_path / "s.db"
    store, *_ = filled(open_shelf(path))
    done = store.flush()
    store.shelf.db.execute("PRAGMA query_only = ON")
    store.put("events", at_s=1.0)
    assert store.flush() == done and "readonly" in store.error.replace("-", "")
    store.shelf.db.execute("PRAGMA query_only = OFF")
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    assert store.flush() == done and "locked" in store.error
    other.execute("COMMIT")
    assert store.flush() == done + 1 and store.error is None


@pytest.mark.parametrize(
    "damage",
    [
        lambda b: b"\0" * len(b),
        lambda b: b[:100] + b"\xff" * 400 + b[500:],
        lambda b: b[:4096] + b"\xff" * 4096 + b[8192:],
        lambda b: b[:16] + b"hello",
    ],
)
def test_a_corrupted_file_is_set_aside_and_routing_goes_on(tmp_path, damage):
    path = tmp_path / "s.db"
    store, *_ = filled(open_shelf(path))
    store.flush()
    store.close()
    path.write_bytes(damage(path.read_bytes()))
    store = FeedbackStore(path)
    aside = store.status()["set_aside"]
    store.put("events", at_s=1.0, what="on we go")
    before = store.acknowledged
    assert store.flush() == before + 1 and len(aside) == 1 and (tmp_path / "s.db.broken1").exists()


def test_text_from_telemetry_stays_a_value(tmp_path):
    store = FeedbackStore(tmp_path / "s.db")
    evil = "x'); DROP TABLE decisions; --"
    store.put("events", at_s=1.0, backend=evil, what="n")
    store.flush()
    assert (
        store.rows("events", backend=evil)[0]["backend"] == evil and store.rows("decisions") == []
    )
    assert oct((tmp_path / "s.db").stat().st_mode & 0o777) == "0o600"


# ---- Redis


def test_redis_gone_and_back(server, tmp_path):
    store = FeedbackStore(_RedisShelf(server["url"], str(tmp_path)))
    store.put("events", at_s=1.0, what="before")
    assert store.flush() == 1
    server["process"].kill()
    server["process"].wait()
    store.put("events", at_s=2.0, what="meanwhile")
    assert store.flush() == 1 and store.error
    server["process"] = server["start"]()
    for _ in range(50):
        if store.flush() == 2:
            break
        time.sleep(0.1)
    assert (
        store.acknowledged == 2
        and store.error is None
        and [e["what"] for e in store.rows("events")] == ["before", "meanwhile"]
    )


def test_a_write_whose_answer_was_lost_is_not_doubled(server, tmp_path):
    shelf = _RedisShelf(server["url"], str(tmp_path))
    store = FeedbackStore(shelf)
    write = shelf.write

    def lossy(rows, states):
        done = dict(shelf.done)
        write(rows, states)
        shelf.done.clear()
        shelf.done.update(done)
        raise TimeoutError("no answer")

    shelf.write = lossy
    store.put("events", at_s=1.0, what="once")
    assert store.flush() == 0
    shelf.write = write
    store.put("events", at_s=2.0, what="then")
    assert store.flush() == 2 and [e["what"] for e in store.rows("events")] == ["once", "then"]


def test_a_duplicate_in_the_same_batch_is_one():
    store, router = FeedbackStore(), Router([Backend("east")])
    d = router.decide(Request(), 0.0)
    store.decided(d)
    for _ in range(3):
        store.ended(Outcome("east", 0.0, 10.0, True, None, d.id))
    store.flush()
    assert [store.fates[f] for f in (_JOINED, _DUPLICATE, _ORPHAN)] == [1, 2, 0]


def test_gateways_on_one_redis_share_what_their_breakers_learned(server, tmp_path):
    engines = [
        ContextEngine(
            [Backend(n) for n in ("east", "west", "north")],
            FeedbackStore(_RedisShelf(server["url"], str(tmp_path))),
            policy="p2c",
            config=EngineConfig(gateway=k, tick_s=1.0),
        )
        for k in range(4)
    ]
    for k in range(60):
        for e in engines[:2]:
            d = e.decide(Request(), 0.2 * k)
            ok = d.backend != "west"
            e.observe(Outcome(d.backend, 0.2 * k, 9.0, ok, None if ok else "error", d.id))
        for e in engines:
            e.step(0.2 * k)
    seen = [next(b for b in e.router.status(12.0) if b["backend"] == "west") for e in engines]
    assert (
        seen[2]["state"] == seen[3]["state"] == "open"
        and seen[2]["evidence"]["elsewhere"] == [0, 1]
        and seen[2]["window"]["calls"] == 0
    )
    ids = [d["id"] for d in engines[3].store.rows("decisions")]
    assert (
        len(ids) == len(set(ids)) == 120
        and engines[3].store.state("engine:2")
        and not any(e.failures for e in engines)
    )
    alone = ContextEngine(
        [Backend("west")],
        FeedbackStore(_RedisShelf(server["url"], str(tmp_path))),
        config=EngineConfig(gateway=9, tick_s=1.0),
    )
    alone.step(12.0)
    assert alone.router.health("west", 12.0)[0] == "closed"  # nobody's word empties a fleet
    for e in (*engines, alone):
        e.store.close()


@pytest.mark.slow
def test_a_redis_store_is_asked_by_its_address(server):
    engine = ContextEngine(
        [Backend("east"), Backend("west")],
        server["url"],
        policy="p2c",
        config=EngineConfig(tick_s=1.0),
    )
    for k in range(60):
        d = engine.decide(Request(), 0.2 * k)
        engine.observe(Outcome(d.backend, 0.2 * k, 9.0, decision=d.id))
        engine.step(0.2 * k)
    engine.close(12.0)
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from arcpoint_ce.apps.cli import main; main()",
            "ask",
            "How is the fleet?",
            "--store",
            server["url"],
        ],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0 and "2 of 2 backends" in done.stdout, done.stderr


def filled_redis(url, prefix, n):
    "Decisions every five seconds with their outcomes, and the newest of them."
    store = FeedbackStore(_RedisShelf(url, prefix, timeout_s=30.0))
    router = Router([Backend("east", 8.0), Backend("west", 8.0)])
    plain = dict(backends=[dict(name=b) for b in ("east", "west")], tiers=[])
    store.put_state("fleet", plain | dict(slo_ms=300.0, slo_tok_ms=0.0, step_s=60))
    made = []
    for k in range(n):
        d = router.decide(Request(), 5.0 * k)
        store.decided(d)
        made.append(Outcome(d.backend, d.at_s, 100.0, True, None, d.id))
        router.observe(made[-1])
        store.ended(made[-1])
    store.flush(5.0 * n)
    return made


def fetched_by(shelf, what):
    "How many rows the server sends for something."
    ask, sent = shelf.redis.hmget, []
    shelf.redis.hmget = lambda key, names: sent.extend(names) or ask(key, names)
    what()
    shelf.redis.hmget = ask
    return len(sent)


@pytest.mark.slow
def test_what_redis_sends_does_not_grow_with_its_history(server, tmp_path):
    from arcpoint_ce.context.ask import ask
    from arcpoint_ce.context.questions import Context
    from arcpoint_ce.context.state import Facts

    asked = []
    for n in (2_000, 6_000):
        prefix = f"{tmp_path}/{n}"
        made = filled_redis(server["url"], prefix, n)
        shelf = _RedisShelf(server["url"], prefix)
        store = FeedbackStore(shelf)
        for o in (made[0], made[n // 2], Outcome("east", 5.0, 1.0, True, None, 10**12)):
            store.ended(o)
            assert fetched_by(shelf, store.flush) <= 2
        assert [store.fates[f] for f in (_DUPLICATE, _ORPHAN)] == [2, 1]
        asked.append(fetched_by(shelf, lambda: ask(Context(Facts(store)), "How is the fleet?")))
    assert 0 < asked[1] <= 1.05 * asked[0]


def test_rows_that_an_older_version_left_in_redis_are_found_by_key(server, tmp_path):
    made = filled_redis(server["url"], str(tmp_path), 50)
    shelf = _RedisShelf(server["url"], str(tmp_path))
    for table in ("decisions", "outcomes", "attempts"):
        shelf.redis.delete(shelf.key(table, "key"))  # as they were written before
    shelf.redis.delete(shelf.key("schema"))
    store = FeedbackStore(shelf)
    store.ended(made[7])
    store.flush(300.0)
    assert store.fates[_DUPLICATE] == 1
    assert store.retain(1e9) > 100 and not shelf.redis.zcard(shelf.key("decisions", "key"))
    shelf.redis.set(shelf.key("schema"), SCHEMA + 1)
    newer = FeedbackStore(_RedisShelf(server["url"], str(tmp_path)))
    with pytest.raises(ValueError, match="update arcpoint_ce"):
        newer._find("outcomes", dict(decision=7))


def test_poisons_and_sweeps_in_redis(server, tmp_path):
    store = FeedbackStore(_RedisShelf(server["url"], str(tmp_path)))
    for k in range(100):
        store.put("events", at_s=float(k), what="x")
    store.put("events", at_s=5.0, what="\ud800")
    store.put("events", at_s=[5.0])
    store.put("events", at_s=1e9)
    assert store.flush(100.0) == 101 and store.rejected == 2 and len(store.rows("rejected")) == 2
    assert store.sweep(500.0) == 0 and store.spared == 0
    assert store.sweep(20.0) == 0 and store.spared > 70
    assert store.sweep(20.0, share=1.0) > 70 and len(store.rows("events")) < 30
    assert store.shelf.epoch(None) != store.shelf.epoch(None) < 2**53


def test_two_gateways_share_one_redis(server, tmp_path):
    a, b = (FeedbackStore(_RedisShelf(server["url"], str(tmp_path))) for _ in range(2))
    for s, n in ((a, 3), (b, 4)):
        for k in range(n):
            s.put("events", at_s=float(k), what=f"{n}")
    a.flush()
    b.flush()
    a.put_state("breakers", {"east": "open"})
    a.flush()
    assert len(a.rows("events")) == len(b.rows("events")) == 7 and b.state("breakers") == {
        "east": "open"
    }


def test_sqlite_shelf_keeps_json(tmp_path):
    store = FeedbackStore(SqliteShelf(tmp_path / "s.db", full=True))
    store.put("events", at_s=1.0, detail={"x": float("inf"), "y": 2})
    store.flush()
    assert store.rows("events")[0]["detail"] == {"x": None, "y": 2} and json.dumps(store.status())


def test_numbers_of_numpy_come_back_as_numbers(where):
    import numpy as np

    store = FeedbackStore(where())
    assert store.stepped(
        "a", Step(np.int64(60), np.int64(3), np.int32(1), 2, np.int64(5000), tokens_in=np.int64(7))
    )
    assert store.ended(
        Outcome(
            "a",
            np.float64(61.0),
            np.float32(2.5),
            np.bool_(True),
            None,
            None,
            0,
            np.int64(4),
            np.uint8(9),
        )
    )
    store.flush(100.0)
    assert store.status()["lost"] == 0
    store.close()
    again = FeedbackStore(where())
    step, outcome = again.rows("steps")[0], again.rows("outcomes")[0]
    again.close()
    assert [step[k] for k in ("start_s", "n", "n_err", "latency_us", "tokens_in")] == [
        60,
        3,
        1,
        5000,
        7,
    ] and type(step["n"]) is int
    assert [outcome[k] for k in ("latency_ms", "ok", "tokens_in", "tokens_out")] == [2.5, 1, 4, 9]
