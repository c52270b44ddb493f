"What the context may know: nothing later than the asked time, nothing written, nothing lost, and no stranger's text as markup."
import hashlib
import json
from math import fsum
from random import Random

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings, strategies as st

from arcpoint_ce.context.ask import ask
from arcpoint_ce.context.causes import contributions
from arcpoint_ce.context.questions import TOOLS, Context
from arcpoint_ce.context.state import Facts, StoreError
from arcpoint_ce.learning.engine import ContextEngine
from arcpoint_ce.learning.feedback import FeedbackStore
from arcpoint_ce.learning.shelves import TABLES
from arcpoint_ce.routing.core import Backend, Outcome, Request, Tier
from arcpoint_ce.telemetry.fleet import Fleet


def run(path, minutes=40, seed=0):
    fleet, rng = Fleet([Backend("east", 8., price_in=1.), Backend("<b>west</b>", 8., price_in=2.)], {"gold": Tier("gold", 200., .95)}), Random(seed)
    e = ContextEngine(fleet, path)
    for k in range(30*minutes):
        now = 2.*k; d = e.decide(Request(tier="gold", task="<script>x</script>", tokens_in=400, tokens_out=60), now); bad = k > 20*minutes and d.backend == "east"
        e.observe(Outcome(d.backend, now, rng.lognormvariate(4.6, .2)*(3 if bad else 1), not (bad and k % 3 == 0), "error" if bad and k % 3 == 0 else None, d.id, tokens_in=400, tokens_out=60)); e.step(now)
    e.close(now)
    return path


@pytest.fixture(scope="module")
def store(tmp_path_factory): return run(tmp_path_factory.mktemp("context")/"s.sqlite")


def everything(c, at):
    return {n: c.ask(n, at=at).json() for n in ("state", "which", "risk")} | dict(why=c.why(metric="latency", since_s=at - 600, until_s=at).json())


@pytest.mark.parametrize("at", [700., 1650., 2000.])
def test_a_past_window_knows_nothing_that_came_later(store, tmp_path, at):
    import shutil, sqlite3
    cut = tmp_path/"cut.sqlite"; shutil.copy(store, cut); db = sqlite3.connect(cut)
    for t, columns in TABLES.items(): db.execute(f"DELETE FROM {t} WHERE {columns[0]} > ?", (at,))
    db.commit(); db.close()
    assert everything(Context(store), at) == everything(Context(cut), at)


def test_asking_writes_nothing(store):
    before = hashlib.sha256(store.read_bytes()).hexdigest(); c = Context(store)
    for n in TOOLS: c.ask(n, **(dict(backend="east") if n == "simulate" else {}))
    ask(c, "How is the fleet?"); ask(c, "Why was it slow in the last 10 minutes?")
    assert hashlib.sha256(store.read_bytes()).hexdigest() == before


def test_file_and_memory_say_the_same(store):
    memory = FeedbackStore(); source = FeedbackStore(store)
    memory.shelf.write({t: source.shelf.read(t, -1e18, 1e18, {}, -1) for t in TABLES}, {"fleet": source.shelf.state("fleet")}); source.close()
    a, b = Context(store), Context(memory)
    assert everything(a, 2000.) == everything(b, 2000.)


def test_text_of_strangers_is_escaped_where_it_is_shown(store):
    c = Context(store); shown = c.state()._repr_html_() + c.which(tier="gold")._repr_html_() + c.risk()._repr_html_() + c.why(metric="latency", since_s=1700.)._repr_html_()
    assert "<b>west" not in shown and "&lt;b&gt;west" in shown and "<script>" not in shown


def test_every_evidence_can_be_looked_up(store):
    c = Context(store); ids = [e.id for a in (c.state(), c.risk(), c.incidents()) for e in a.evidence]
    assert ids and all(c.evidence(i) for i in ids)


def test_what_is_asked_before_anything_happened_is_said(tmp_path):
    path = tmp_path/"new.sqlite"; ContextEngine([Backend("a")], path).close()
    with pytest.raises(StoreError, match="no decision, outcome or step"): Context(path).state()
    with pytest.raises(StoreError, match="arcpoint replay"): Context(tmp_path/"none.sqlite")


rows = st.lists(st.tuples(st.sampled_from("abcd"), st.floats(0, 1e6)), min_size=1, max_size=60)

@settings(max_examples=200, deadline=None)
@given(rows, rows)
def test_contributions_add_up(before, after):
    s0, s1 = (pd.Series([x[0] for x in r]) for r in (before, after)); h0, h1 = (np.array([x[1] for x in r]) for r in (before, after))
    t = contributions(s0, h0, s1, h1); change = fsum(h1)/len(h1) - fsum(h0)/len(h0)
    assert abs(fsum([*t["mix"], *t["within"]]) - change) <= 1e-9*max(1., abs(h0).max(), abs(h1).max())


def test_answers_are_plain_json(store):
    c = Context(store)
    for n in TOOLS: json.dumps(c.ask(n, **(dict(backend="east") if n == "simulate" else {})).json(), allow_nan=False)
