"""What the context may know: nothing later than the asked time, nothing written, nothing lost, and
no stranger's text as markup.
"""

import hashlib
import json
from math import fsum
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from arcpoint_ce.apps.cli import _app
from arcpoint_ce.context.ask import ask
from arcpoint_ce.context.callgraph import _SHOP, _shop_rows, read_dependencies
from arcpoint_ce.context.causes import _contributions, explain_drop
from arcpoint_ce.context.questions import TOOLS, Context
from arcpoint_ce.context.state import Facts, StoreError
from arcpoint_ce.engine.engine import ContextEngine
from arcpoint_ce.engine.replay import Replay, logged
from arcpoint_ce.engine.storage import TABLES
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.routing.records import Backend, Outcome, Request, Tier
from arcpoint_ce.telemetry.fleet_file import Fleet
from arcpoint_ce.telemetry.requests import load_requests


def run(path, minutes=40, seed=0):
    fleet, rng = (
        Fleet(
            [Backend("east", 8.0, price_in=1.0), Backend("<b>west</b>", 8.0, price_in=2.0)],
            {"gold": Tier("gold", 200.0, 0.95)},
        ),
        Random(seed),
    )
    e = ContextEngine(fleet, path)
    for k in range(30 * minutes):
        now = 2.0 * k
        d = e.decide(
            Request(tier="gold", task="<script>x</script>", tokens_in=400, tokens_out=60), now
        )
        bad = k > 20 * minutes and d.backend == "east"
        e.observe(
            Outcome(
                d.backend,
                now,
                rng.lognormvariate(4.6, 0.2) * (3 if bad else 1),
                not (bad and k % 3 == 0),
                "error" if bad and k % 3 == 0 else None,
                d.id,
                tokens_in=400,
                tokens_out=60,
            )
        )
        e.step(now)
    e.close(now)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return run(tmp_path_factory.mktemp("context") / "s.sqlite")


def everything(c, at):
    return {n: c.ask(n, at=at).json() for n in ("state", "which", "risk")} | dict(
        why=c.why(metric="latency", since_s=at - 600, until_s=at).json()
    )


@pytest.mark.parametrize("at", [700.0, 1650.0, 2000.0])
def test_a_past_window_knows_nothing_that_came_later(store, tmp_path, at):
    import shutil
    import sqlite3

    cut = tmp_path / "cut.sqlite"
    shutil.copy(store, cut)
    db = sqlite3.connect(cut)
    for t, columns in TABLES.items():
        db.execute(f"DELETE FROM {t} WHERE {columns[0]} > ?", (at,))
    db.commit()
    db.close()
    assert everything(Context(store), at) == everything(Context(cut), at)


def test_asking_writes_nothing(store):
    before = hashlib.sha256(store.read_bytes()).hexdigest()
    c = Context(store)
    for n in TOOLS:
        c.ask(n, **(dict(backend="east") if n == "simulate" else {}))
    ask(c, "How is the fleet?")
    ask(c, "Why was it slow in the last 10 minutes?")
    assert hashlib.sha256(store.read_bytes()).hexdigest() == before


def test_file_and_memory_say_the_same(store):
    memory = FeedbackStore()
    source = FeedbackStore(store)
    memory.shelf.write(
        {t: source.shelf.read(t, -1e18, 1e18, {}, -1) for t in TABLES},
        {"fleet": source.shelf.state("fleet")},
    )
    source.close()
    a, b = Context(store), Context(memory)
    assert everything(a, 2000.0) == everything(b, 2000.0)


def test_text_of_strangers_is_escaped_where_it_is_shown(store):
    c = Context(store)
    shown = (
        c.state()._repr_html_()
        + c.which(tier="gold")._repr_html_()
        + c.risk()._repr_html_()
        + c.why(metric="latency", since_s=1700.0)._repr_html_()
    )
    assert "<b>west" not in shown and "&lt;b&gt;west" in shown and "<script>" not in shown


def test_every_evidence_can_be_looked_up(store):
    c = Context(store)
    ids = [e.id for a in (c.state(), c.risk(), c.incidents()) for e in a.evidence]
    assert ids and all(c.evidence(i) for i in ids)


def test_what_is_asked_before_anything_happened_is_said(tmp_path):
    path = tmp_path / "new.sqlite"
    ContextEngine([Backend("a")], path).close()
    with pytest.raises(StoreError, match="no decision, outcome or step"):
        Context(path).state()
    with pytest.raises(StoreError, match="arcpoint replay"):
        Context(tmp_path / "none.sqlite")


rows = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 1e6)), min_size=1, max_size=60)


@settings(max_examples=200, deadline=None)
@given(rows, rows)
def test_contributions_add_up(before, after):
    s0, s1 = (pd.Series([x[0] for x in r]) for r in (before, after))
    h0, h1 = (np.array([x[1] for x in r]) for r in (before, after))
    t = _contributions(s0, h0, s1, h1)
    change = fsum(h1) / len(h1) - fsum(h0) / len(h0)
    assert abs(fsum([*t["mix"], *t["within"]]) - change) <= 1e-9 * max(
        1.0, abs(h0).max(), abs(h1).max()
    )


def test_answers_are_plain_json(store):
    c = Context(store)
    for n in TOOLS:
        json.dumps(
            c.ask(n, **(dict(backend="east") if n == "simulate" else {})).json(), allow_nan=False
        )


def shop_folder(folder, slow, since=50):
    """Telemetry of five services, of which `front` is a backend; `slow` becomes slow at step
    `since`.
    """
    graph = pd.DataFrame(
        [[float(b in _SHOP[a]) for b in _SHOP] for a in _SHOP], list(_SHOP), list(_SHOP)
    )
    graph.to_csv(folder / "graph.csv")
    _shop_rows(np.random.default_rng(1), 60, slow, since).to_csv(folder / "metrics.csv")
    return folder


@pytest.mark.parametrize(
    "slow, kind, name",
    [("db", "upstream", "db"), ("payment", "upstream", "payment"), ("front", "backend", "front")],
)
def test_blame_moves_behind_a_backend_where_the_call_graph_says_so(tmp_path, slow, kind, name):
    calls, store, rng = read_dependencies(shop_folder(tmp_path, slow)), FeedbackStore(), Random(0)
    for k in range(1500):
        for b in ("front", "other"):
            store.ended(
                Outcome(
                    b,
                    12.0 * k,
                    rng.lognormvariate(4.6, 0.2)
                    * (2.5 if b == "front" and 12.0 * k > 15_000 else 1),
                    tokens_in=100,
                )
            )
    store.flush()
    records = Facts(store, [Backend("front"), Backend("other")])
    window = (15_000.0, 18_000.0)
    alone, joined = (explain_drop(records, "latency", window, calls=c) for c in (None, calls))
    assert (alone.cause.kind, alone.cause.name) == ("backend", "front") and (
        joined.cause.kind,
        joined.cause.name,
    ) == (kind, name)
    assert joined.cause.contribution == alone.cause.contribution and (slow in joined.says)
    assert (
        Context(records, calls=calls)
        .why(metric="latency", since_s=window[0], until_s=window[1])
        .cause
        == joined.cause
    )


def test_a_call_graph_is_given_on_the_command_line(tmp_path):
    shop_folder(tmp_path, "db", 58)
    store, rng = FeedbackStore(tmp_path / "s.sqlite"), Random(0)
    for k in range(1500):
        for b in ("front", "other"):
            store.ended(
                Outcome(
                    b,
                    12.0 * k,
                    rng.lognormvariate(4.6, 0.2) * (2.5 if b == "front" and k > 1450 else 1),
                    tokens_in=100,
                )
            )
    store.close()
    (tmp_path / "fleet.toml").write_text(
        "".join(f'[[backend]]\nname = "{b}"\ncapacity = 4\n' for b in ("front", "other"))
    )

    def said(*more):
        return CliRunner().invoke(
            _app,
            [
                "ask",
                "Why did latency rise in the last 9 minutes?",
                "--store",
                str(tmp_path / "s.sqlite"),
                "--fleet",
                str(tmp_path / "fleet.toml"),
                *more,
            ],
        )

    assert "front itself became worse" in said().output
    assert "a dependency (db) became worse behind front" in said("--calls", str(tmp_path)).output
    lost = said("--calls", str(tmp_path / "nowhere"))
    assert lost.exit_code and "graph.csv" in str(lost.exception) + lost.output


def test_a_longer_answer_of_a_new_version_is_not_a_longer_prompt():
    store, rng = FeedbackStore(), Random(0)
    for k in range(600):
        new = k >= 400
        for b in ("one", "two"):
            length = rng.randint(20, 60) * (3 if new and b == "one" else 1)
            store.ended(
                Outcome(
                    b,
                    float(k),
                    200.0 + 10 * length,
                    tokens_in=100,
                    tokens_out=length,
                    cost_usd=1e-5 * length,
                    version=f"{b}-{'b' if new else 'a'}",
                    quality=0.9 - 0.3 * (new and b == "one"),
                )
            )
    store.flush()
    records = Facts(store, [Backend("one"), Backend("two", quality=0.9)])
    for metric in ("latency", "cost", "quality"):
        got = explain_drop(records, metric, (400.0, 602.5), (0.0, 400.0))
        assert (got.cause.kind, got.cause.name) == ("version", "one"), metric
    assert {r["segment"] for r in got.segments["version"]} == {"one-a", "one-b", "two-a", "two-b"}
    assert got.before == pytest.approx(0.1) and got.after == pytest.approx(0.25, abs=0.01)


@pytest.mark.slow
def test_what_the_answers_of_a_log_were_worth_can_be_asked(tmp_path):
    n = 900
    rows = pd.DataFrame(
        dict(
            ts=pd.date_range("2026-01-01", periods=n, freq="2s", tz="UTC"),
            backend=["east", "west"] * (n // 2),
            latency_ms=[100.0] * 600 + [600.0] * 300,
            ttft_ms=20.0,
            cost_usd=0.001,
            model="large",
            task="chat",
            version=["v1"] * 600 + ["v2"] * 300,
            quality=[0.9] * 600 + [0.6] * 300,
        )
    )
    rows.to_csv(tmp_path / "log.csv", index=False)
    log = load_requests(tmp_path / "log.csv")
    engine = ContextEngine([Backend("east"), Backend("west")])
    Replay(engine).run(logged(log.df()))
    engine.store.flush()
    assert {r["task"] for r in engine.store.rows("decisions")} == {"chat"} and {
        r["ttft_ms"] for r in engine.store.rows("outcomes") if r["error"] != "cancelled"
    } == {20.0}
    end = rows.ts.iloc[-1].timestamp() + 1.0
    got = explain_drop(Facts(engine.store), "quality", (end - 600, end))
    assert got.after - got.before == pytest.approx(0.3, abs=0.01) and got.cause.kind == "version"
    for word, metric in (("quality", "quality"), ("it", "slo")):
        assert (
            ask(
                Context(engine.store), f"Why did {word} get worse in the last 10 minutes?"
            ).answer.metric
            == metric
        )
