"What an engine or a gateway still knows after a restart."

import json

import pytest

from arcpoint_ce import Backend, ContextEngine, NoBackend, Outcome, Request, Router

FLEET = (Backend("a", capacity=50.0), Backend("b", capacity=50.0))


def restarted(router: Router, fleet=FLEET) -> Router:
    "Another router that takes up what this one wrote down."
    other = Router(fleet)
    assert other.restore(json.loads(json.dumps(router.memo()))) == []
    return other


def told(router: Router, name: str, now: float) -> dict:
    return next(x for x in router.status(now) if x["backend"] == name)


def test_a_dead_key_stays_dead_and_is_tried_once_a_minute():
    router = Router(FLEET)
    router.roll(0.0)
    for k in range(12):
        router.observe(Outcome("a", 1.0 + k / 10, 20.0, status=401))
    other = restarted(router)
    assert set(other.dead_keys()) == {"a"}
    assert "key was refused 12 times" in told(other, "a", 3.0)["held_why"]
    assert {other.decide(Request(), 3.0 + k).backend for k in range(50)} == {"b"}
    sent = [other.decide(Request(), 63.0 + k / 10) for k in range(100)]
    probes = [d for d in sent if d.backend == "a"]
    assert len(probes) == 1
    other.observe(Outcome("a", 64.0, 30.0, True, None, probes[0].id))
    assert not other.dead_keys() and told(other, "a", 74.0)["held_s"] is None


def test_refusals_of_two_tenants_before_and_after_a_restart_count_together():
    router = Router(FLEET)
    for k in range(3):
        d = router.claim(Request(tenant="x"), "a", 1.0 + k)
        router.observe(Outcome("a", 1.0 + k, 20.0, status=403, decision=d.id))
    other = restarted(router)
    for k in range(2):
        d = other.claim(Request(tenant="y"), "a", 11.0 + k)
        other.observe(Outcome("a", 11.0 + k, 20.0, status=403, decision=d.id))
    assert set(other.dead_keys()) == {"a"}


def test_a_pause_that_the_backend_named_is_kept_where_nobody_else_is_left():
    alone = FLEET[:1]
    router = Router(alone)
    router.observe(Outcome("a", 10.0, 20.0, status=429, retry_after_s=90.0), 10.0)
    for asked in (router, restarted(router, alone)):
        with pytest.raises(NoBackend, match="rate limit is spent") as refused:
            asked.decide(Request(), 20.0)
        assert refused.value.retry_after_s == pytest.approx(80.0, abs=0.1)


def test_an_older_memo_says_only_until_when():
    router = Router(FLEET)
    router.observe(Outcome("a", 10.0, 20.0, status=429, retry_after_s=90.0), 10.0)
    memo = json.loads(json.dumps(router.memo()))
    del memo["measured"]["a"]["hold"]
    other = Router(FLEET)
    assert other.restore(memo) == [] and told(other, "a", 20.0)["held_s"] > 79.0
    for damage in ({"since_s": None}, "soon", dict(memo["measured"]["a"], refusals="many")):
        memo["measured"]["a"]["hold"] = damage
        fresh = Router(FLEET)
        assert len(fresh.restore(memo)) == 1 and told(fresh, "a", 20.0)["held_s"] is None


def test_an_engine_hands_it_on_through_its_store(tmp_path):
    now = 1_800_000_000.0
    engine = ContextEngine(FLEET, tmp_path / "s.sqlite")
    for k in range(12):
        engine.observe(Outcome("a", now + k / 10, 20.0, status=401), now + k / 10 + 0.1)
    engine.tick(now + 6.0)
    engine.close(now + 7.0)
    with_store = ContextEngine(FLEET, tmp_path / "s.sqlite")
    try:
        assert set(with_store.router.dead_keys()) == {"a"}
    finally:
        with_store.close(now + 9.0)
