"Traces of an agent in a store whose file somebody has edited."

import json
import logging
import sqlite3

import pytest

from arcpoint_ce.context.agent import Trace, _TraceChain, broken_traces
from arcpoint_ce.engine.store import FeedbackStore


@pytest.fixture
def path(tmp_path):
    store = FeedbackStore(tmp_path / "s.sqlite")
    chain = _TraceChain(store)
    for k in range(4):
        t = Trace(f"agent-{k}", lambda: 0.0)
        t.add("asked", request=dict(tier="gold", n=k))
        t.add("tool", name="state")
        t.add("verdict", backend="east", accepted=False)
        assert chain.write(t, 100.0 + k)
    store.close()
    return tmp_path / "s.sqlite"


def found(path) -> list[str]:
    store = FeedbackStore(path)
    try:
        return broken_traces(store.rows("traces"), store.state("traces/last"))
    finally:
        store.close()


def edited(path, *sql):
    with sqlite3.connect(path) as db:
        for text, *values in sql:
            assert db.execute(text, values).rowcount == 1
    db.close()


def changed(path, id: str, change) -> None:
    "Change the steps of a trace and compute every hash in its row anew."
    store = FeedbackStore(path)
    (row,) = store.rows("traces", id=id)
    store.close()
    steps, new = change(row["detail"]["steps"]), Trace(id, lambda: 0.0)
    for _, kind, _, data, _ in steps:
        new.add(kind, **data)
    old = row["detail"]
    detail = new.sealed(row["at_s"], old["writer"], old["n"], old["before"])
    edited(path, ("UPDATE traces SET detail = ? WHERE id = ?", json.dumps(detail), id))


def test_a_chain_that_nobody_touched_is_whole(path):
    assert found(path) == []


@pytest.mark.parametrize(
    "column,a,b", [("id", "agent-1", "agent-2"), ("at_s", 101.0, 102.0), ("at_s", 103.0, 999.0)]
)
def test_swapped_ids_and_times_are_noticed(path, column, a, b):
    swap = f"UPDATE traces SET {column} = ? WHERE {column} = ?"
    steps = [(swap, "x" if column == "id" else -1.0, a)]
    if b != 999.0:
        steps.append((swap, a, b))
    edited(path, *steps, (swap, b, steps[0][1]))
    assert any("was changed after it was written" in x for x in found(path))


@pytest.mark.parametrize("id", ["agent-0", "agent-2", "agent-3"])
def test_a_dropped_last_step_with_a_corrected_head_is_noticed(path, id):
    changed(path, id, lambda steps: steps[:-1])
    assert found(path)


@pytest.mark.parametrize("id", ["agent-0", "agent-3"])
def test_a_recomputed_chain_is_noticed(path, id):
    def other(steps):
        steps[-1][3]["backend"] = "west"
        return steps

    changed(path, id, other)
    assert found(path)


@pytest.mark.parametrize("id", ["agent-1", "agent-3"])
def test_a_trace_that_is_gone_is_noticed(path, id):
    edited(path, ("DELETE FROM traces WHERE id = ?", id))
    assert any("is gone" in x for x in found(path))


def test_a_trace_that_was_put_in_twice_is_noticed(path):
    edited(path, ("INSERT INTO traces SELECT * FROM traces WHERE id = ?", "agent-1"))
    assert any("stands where another one stands" in x for x in found(path))


def test_what_retention_forgets_is_no_fault(path):
    edited(path, ("DELETE FROM traces WHERE id = ?", "agent-0"))
    assert found(path) == []


def test_the_newest_seal_is_logged(caplog):
    with caplog.at_level(logging.INFO, "arcpoint_ce.agent"):
        chain = _TraceChain(FeedbackStore())
        t = Trace("x", lambda: 0.0)
        t.add("asked")
        chain.write(t, 1.0)
    assert caplog.records[-1].fields["seal"] == chain.seal


def test_a_full_queue_does_not_break_the_chain():
    store = FeedbackStore(queue=1)
    chain = _TraceChain(store)
    t = Trace("x", lambda: 0.0)
    t.add("asked")
    assert [chain.write(t, 1.0), chain.write(t, 2.0), chain.n] == [True, False, 1]


def test_a_trace_of_an_older_version_is_read():
    t = Trace("old", lambda: 0.0)
    t.add("asked")
    detail = dict(head=t.head, count=1, steps=[s.plain for s in t.steps])
    assert Trace.read(dict(id="old", at_s=1.0, detail=detail)).head == t.head
    assert broken_traces([dict(id="old", at_s=1.0, detail=detail)], None) == []
