"""Which backend? One answer in the whole house: the engine's, the service's, and that of whoever
has only the store.
"""

import json
from math import isclose
from random import Random

import pytest
from fastapi.testclient import TestClient

from arcpoint_ce.context.questions import Context
from arcpoint_ce.context.service import make_app, make_service
from arcpoint_ce.context.state import Facts
from arcpoint_ce.context.which import restored_router
from arcpoint_ce.routing.policies import WeightedPlan
from arcpoint_ce.routing.records import Backend, Outcome, Request, Tier
from arcpoint_ce.routing.router import Router
from arcpoint_ce.telemetry.fleet_file import Fleet

FLEET = Fleet(
    [
        Backend("east", 8.0, price_out=4.0),
        Backend("west", 8.0),
        Backend("north", 8.0, rpm=60.0),
        Backend("south", 8.0, tiers=("batch",)),
        Backend("down", 8.0),
    ],
    {"gold": Tier("gold", 2000.0, 0.95), "batch": Tier("batch", 9000.0)},
)
ASKED = dict(tier="gold", tokens_in=500, tokens_out=80)


def lived(path, **engine):
    """A service on a file, after five minutes: `west` streams slowly, `down` is open, `north` has
    spent its minute, some requests are running.
    """
    clock = [0.0]
    service = make_service(
        path, FLEET, clock=lambda: clock[0], slo_ms=3000.0, slo_tok_ms=2.0, **engine
    )
    e, rng, running = service.engine, Random(0), []
    for k in range(289):
        now = clock[0] = float(k)
        for d, since in running:
            e.progress(d, int((now - since) * (4 if d.backend == "west" else 40)), now)
        for j in range(2):
            d = e.decide(Request(f"{k}-{j}", tier="gold", tokens_in=500, tokens_out=80), now)
            running.append((d, now))
        for d, since in [x for x in running if x[1] <= now - 2]:
            tokens = 8 if d.backend == "west" else 80
            e.observe(
                Outcome(
                    d.backend,
                    since,
                    2000.0 + rng.random(),
                    decision=d.id,
                    tokens_in=500,
                    tokens_out=tokens,
                )
            )
            running.remove((d, since))
        e.step(now + 0.5)
    for _ in range(8):  # and `down` fails, again and again
        d = e.claim(Request(tier="gold"), "down", 288.0, anyway=True)
        e.observe(Outcome("down", 288.0, 900.0, False, "error", d.id))
    for _ in range(70):  # north's minute is spent
        d = e.claim(Request(tier="gold"), "north", 289.6, anyway=True)
        e.observe(Outcome("north", 289.6, 1.0, decision=d.id))
    clock[0] = 290.0
    e.keeper.memo_due = -1.0
    e.tick(290.0)
    e.store.flush()
    return service


def plain(ranking):
    return [
        (c.backend, c.score, c.probability, c.in_flight, round(c.error_rate, 9), c.reason)
        for c in ranking
    ]


def same(a, b):
    if isinstance(a, float) and isinstance(b, float):
        return a == b or isclose(a, b, rel_tol=1e-6)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


@pytest.mark.parametrize("policy", ["auto", "predicted_cost", "p2c", "head_room"])
def test_engine_service_and_store_say_the_same(tmp_path, policy):
    service = lived(tmp_path / "s.sqlite", policy=policy)
    engine, request = service.engine, Request("", tier="gold", tokens_in=500, tokens_out=80)
    # paces are renewed once a second: now at 290, as in a restored router
    engine.rank(request, 292.0)
    mine = engine.rank(request, 290.0)
    states = {b["backend"]: b["state"] for b in engine.status(290.0)["backends"]}
    assert states["down"] == "open" and len(mine) == 5 and max(c.in_flight for c in mine) > 0
    why = {c.backend: c.reason for c in mine}
    assert "rate limit is spent" in why["north"] and "does not serve tier gold" in why["south"]

    there = restored_router(Facts(tmp_path / "s.sqlite"))
    assert there.notes == () and there.router.policy.name == engine.router.policy.name
    assert same(plain(there.router.rank(request, 290.0)), plain(mine))

    known = service.context.which(**ASKED)
    alone = Context(tmp_path / "s.sqlite").which(**ASKED)
    with TestClient(make_app(service), base_url="http://127.0.0.1") as http:
        told = http.post("/which", json=ASKED).json()
    assert known.policy == alone.policy == told["policy"] == engine.router.policy.name
    for options in (
        [(o.backend, o.score, o.probability) for o in w.options] for w in (known, alone)
    ):
        assert same(options, [(c.backend, c.score, c.probability) for c in mine])
    assert [o["backend"] for o in told["options"]] == [c.backend for c in mine]
    assert known.backend == alone.backend == told["options"][0]["backend"] == mine[0].backend
    assert same(json.loads(json.dumps(alone.json(), default=str))["options"], told["options"])


def test_where_the_engine_is_at_hand_it_is_asked_itself(tmp_path):
    "What it has decided this moment counts, written down or not."
    service = lived(tmp_path / "s.sqlite")
    first = service.context.which(**ASKED).options[0]
    for _ in range(3):
        service.engine.claim(Request(tier="gold"), first.backend, 290.0)
    mine = service.engine.rank(
        Request("", tier="gold", tokens_in=500, tokens_out=80), service.context.records.now()
    )
    score = {c.backend: c.score for c in mine}[first.backend]
    now = {o.backend: o.score for o in service.context.which(**ASKED).options}[first.backend]
    assert same(now, score) and now > 1.2 * first.score


def test_a_slow_stream_is_known_to_whoever_has_only_the_store(tmp_path):
    "Paces come from `progress`, which no table holds."
    lived(tmp_path / "s.sqlite").engine.close(290.0)
    paces = restored_router(Facts(tmp_path / "s.sqlite")).router.paces(290.0)
    assert paces["west"][0] > 3 * paces["east"][0] > 0


def test_a_policy_of_ones_own_is_not_passed_off_as_another(tmp_path):
    class Mine:
        name, peak = "mine", False

        def plan(self, scene, s):
            return WeightedPlan([1.0] * len(scene.backends))

    lived(tmp_path / "s.sqlite", policy=Mine()).engine.close(290.0)
    said = Context(tmp_path / "s.sqlite").which(**ASKED).says
    assert "'mine' is not known here" in said and "own_pace stands in" in said


def test_what_a_router_measured_outlives_it():
    a = Router([Backend("east", 8.0, rpm=60.0), Backend("west", 8.0)])
    for k in range(40):
        d = a.claim(Request(tokens_out=100), "east" if k % 2 else "west", float(k), anyway=True)
        a.observe(
            Outcome(
                d.backend,
                float(k),
                3000.0 if d.backend == "east" else 900.0,
                k % 5 > 0,
                decision=d.id,
                tokens_out=100,
            )
        )
    memo = json.loads(json.dumps(a.memo(), allow_nan=False))
    b = Router(a.backends)
    assert b.restore(memo) == [] and same(
        plain(b.rank(Request(), 41.0)), plain(a.rank(Request(), 41.0))
    )
    assert b.paces(41.0) == a.paces(41.0) and b.latencies() == a.latencies()


@pytest.mark.parametrize(
    "bad",
    [
        dict(error=2.0),
        dict(pace_s=-1.0),
        dict(error="x"),
        dict(minute=[1]),
        dict(latency_ms=float("nan")),
    ],
)
def test_measurements_that_do_not_fit_start_fresh(bad):
    a = Router([Backend("east"), Backend("west")])
    d = a.decide(Request(), 1.0)
    a.observe(Outcome(d.backend, 1.0, 50.0, decision=d.id))
    memo = a.memo()
    memo["measured"]["east"] |= bad
    if "minute" in bad:
        memo["measured"]["east"].pop("heard_s")
    b = Router(a.backends)
    lost = b.restore(memo)
    assert len(lost) == 1 and "'east' start fresh" in lost[0]
    assert b.paces(1.0)["east"][0] == 0.0 and b.paces(1.0)["west"] == a.paces(1.0)["west"]
