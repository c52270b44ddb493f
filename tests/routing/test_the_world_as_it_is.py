"""What outcomes mean, whose clock counts, and what limits allow: behaviours that public bug reports
of gateways, breakers and balancers describe.
"""

import heapq
from math import inf

import pytest

from arcpoint_ce.routing.breaker import CLOSED, OPEN, BreakerConfig
from arcpoint_ce.routing.outcomes import KINDS, classify
from arcpoint_ce.routing.policies import OwnPace, PredictedCost
from arcpoint_ce.routing.records import Backend, Outcome, Request, Tier
from arcpoint_ce.routing.router import NoBackend, Router, RouterConfig

CALLERS = ("BadRequestError", "400", "401", "404", "context_length_exceeded", "content_filter")
LEFT = ("cancelled", "client_closed_request", "499")
THROTTLED = ("rate_limited", "RateLimitError", "429", "ThrottlingException", "insufficient_quota")


def two(policy=None, config=RouterConfig(), **backend) -> Router:
    backend = dict(capacity=50.0) | backend
    return Router([Backend(name, **backend) for name in "ab"], policy, config=config)


def state(router: Router, name: str, now: float) -> dict:
    return next(x for x in router.status(now) if x["backend"] == name)


def share(router: Router, now: float, n: int = 300, every_s: float = 0.2) -> float:
    "What `a` gets of the next requests, all of them well served."
    got = 0
    for k in range(n):
        at_s = now + every_s * k
        d = router.decide(Request(tokens_out=50), at_s)
        got += d.backend == "a"
        router.observe(Outcome(d.backend, at_s, 100.0, decision=d.id, tokens_out=50))
    return got / n


@pytest.mark.parametrize("policy", [OwnPace, PredictedCost])
@pytest.mark.parametrize("error", CALLERS + LEFT)
def test_what_callers_do_counts_for_nobody_and_against_nobody(policy, error):
    router = two(policy())
    for k in range(100):
        d = router.decide(Request(tenant="only one"), 0.2 * k)
        router.observe(Outcome(d.backend, 0.2 * k, 30.0, False, error, d.id))
    assert sum(router.in_flight().values()) == 0
    for name in "ab":
        told = state(router, name, 20.0)
        assert (told["state"], told["error_rate"], told["window"]["calls"]) == (CLOSED, 0.0, 0)
        step = router.feature_map()[name].open
        assert step is None or step.n == 0


@pytest.mark.parametrize("error", THROTTLED)
def test_who_throttles_is_left_alone_and_stays_closed(error):
    router = two(PredictedCost())
    for k in range(20):
        router.observe(Outcome("a", 10.0 + k / 100, 30.0, error=error, retry_after_s=20.0))
    assert {router.decide(Request(), 11.0 + k / 10).backend for k in range(100)} == {"b"}
    told = state(router, "a", 11.0)
    assert told["state"] == CLOSED and told["held_s"] == pytest.approx(19.2, abs=0.1)
    assert router.feature_map()["a"].open.n_err == 20  # the callers got nothing
    assert "a" in {router.decide(Request(), 31.0 + k / 10).backend for k in range(100)}


def test_a_status_or_a_text_says_whose_fault_it_was_and_unknown_texts_are_counted():
    assert {classify(status).kind for status in (200, 503, 429, 400, 499)} == set(KINDS)
    router = two()
    router.roll(0.0)
    router.observe(Outcome("a", 0.0, 30.0, error="flux capacitor misaligned"))
    router.observe(Outcome("a", 0.0, 30.0, error="Internal Server Error"))
    assert router.counts["unclassified"] == 1
    assert not Outcome("a", 0.0, 30.0, status=503).ok


def test_a_key_that_several_callers_are_refused_with_is_tried_once_a_minute():
    router = two()
    router.roll(0.0)

    def ask(now, ok_on_a, tenant):
        d = router.claim(Request(tenant=tenant), "a", now)
        router.observe(Outcome("a", now, 30.0, ok_on_a, None if ok_on_a else "401", d.id))

    for k in range(5):
        ask(k / 10, False, "xy"[k % 2])
    told = state(router, "a", 1.0)
    assert told["state"] == CLOSED and "key was refused 5 times" in told["held_why"]
    assert {router.decide(Request(), 1.0 + k).backend for k in range(50)} == {"b"}
    sent = [router.decide(Request(), 61.0 + k / 10) for k in range(100)]
    probes = [d for d in sent if d.backend == "a"]
    assert len(probes) == 1
    router.observe(Outcome("a", 62.0, 30.0, True, None, probes[0].id))
    assert state(router, "a", 72.0)["held_s"] is None


@pytest.mark.parametrize("tenants, dead", [(["x"] * 30, False), ([None] * 9, False)])
def test_one_caller_with_a_wrong_key_harms_nobody(tenants, dead):
    router = two()
    for k, tenant in enumerate(tenants):
        d = router.claim(Request(tenant=tenant), "a", k / 10)
        router.observe(Outcome("a", k / 10, 30.0, False, "403", d.id))
    assert (state(router, "a", 10.0)["held_s"] is not None) is dead


@pytest.mark.parametrize("how", ["request", "tier", "backend", "fleet"])
def test_slow_is_what_misses_the_limit_that_applied(how):
    limit = dict(slo_ms=30_000.0)
    router = Router(
        [Backend(name, capacity=50.0, **(limit if how == "backend" else {})) for name in "ab"],
        PredictedCost(),
        tiers=[Tier("slow", **limit)] if how == "tier" else (),
        config=RouterConfig(**(limit if how == "fleet" else {})),
    )
    asked = Request(tier="slow" if how == "tier" else None, **(limit if how == "request" else {}))
    for k in range(60):
        d = router.decide(asked, k / 2)
        router.observe(Outcome(d.backend, k / 2, 2_000.0, decision=d.id))
    assert {state(router, name, 30.0)["state"] for name in "ab"} == {CLOSED}
    assert {state(router, name, 30.0)["window"]["slow"] for name in "ab"} == {0}


def test_a_late_first_token_is_slow():
    router = Router([Backend("a", capacity=50.0)], PredictedCost())
    for k in range(10):
        d = router.decide(Request(slo_ms=9_000.0, ttft_limit_ms=500.0), float(k))
        router.observe(Outcome("a", float(k), 2_000.0, decision=d.id, ttft_ms=900.0))
    assert state(router, "a", 10.0)["window"]["slow"] == 10 or router.health("a", 10.0)[0] == OPEN


@pytest.mark.parametrize("policy", [OwnPace, PredictedCost])
@pytest.mark.parametrize("took_s", [20.0, 45.0])
@pytest.mark.parametrize("trips", ["a", "ab"])
def test_a_trial_waits_for_answers_that_take_long(policy, took_s, trips):
    router = two(policy(), RouterConfig(slo_ms=180_000.0), capacity=400.0)
    running, refused = [], 0
    for k in range(1, 1201):
        now = k / 2
        while running and running[0][0] <= now:
            router.observe(heapq.heappop(running)[2])
        if now == 100.0:
            for name in trips * 6:
                router.observe(Outcome(name, now, 20.0, False, "503"))
        try:
            d = router.decide(Request(), now)
        except NoBackend:
            refused += 1
            continue
        answer = Outcome(d.backend, now, took_s * 1000, decision=d.id)
        heapq.heappush(running, (now + took_s, d.id, answer))
    assert refused == 0 and state(router, "a", 600.0)["state"] == CLOSED


@pytest.mark.parametrize("policy", [OwnPace, PredictedCost])
def test_where_all_are_shut_the_least_bad_is_tried(policy):
    router, marked = two(policy()), 0
    for k in range(1, 801):
        now = k / 20
        d = router.decide(Request(), now)
        marked += d.last_resort
        ok = not 10 < now < 16
        router.observe(Outcome(d.backend, now, 50.0, ok, None if ok else "connect", d.id))
        if d.last_resort:
            assert any("last resort" in sentence for sentence in d.reasons)
            assert {c.backend for c in d.candidates} == {"a", "b"}
    assert 0 < marked < 300 and {state(router, x, 40.0)["state"] for x in "ab"} == {CLOSED}


def test_who_wants_no_last_resort_is_told_when_to_come_back():
    router = two(config=RouterConfig(last_resort=False))
    router.roll(0.0)
    for name in "ab" * 5:
        router.observe(Outcome(name, 0.5, None, False, "connect"))
    with pytest.raises(NoBackend, match="try again in") as refused:
        router.decide(Request(), 1.0)
    assert 0 < refused.value.retry_after_s <= 10.0
    router.decide(Request(), 1.0 + refused.value.retry_after_s + 0.01)


def test_a_person_and_a_named_wait_go_before_the_last_resort():
    router = two()
    router.force("a", OPEN, 0.0, "maintenance")
    router.observe(Outcome("b", 0.0, 30.0, status=429, retry_after_s=40.0), now=0.1)
    with pytest.raises(NoBackend) as refused:
        router.decide(Request(), 1.0)
    assert refused.value.retry_after_s == pytest.approx(39.03, abs=0.1)


POISONS = dict(
    a_day_ahead=dict(ts_s=86_400.0 + 1_000.0, latency_ms=100.0),
    an_hour_ahead_failed=dict(ts_s=4_600.0, latency_ms=100.0, error="503"),
    a_day_ahead_limited=dict(ts_s=87_400.0, latency_ms=100.0, error="rate_limited"),
    milliseconds_for_seconds=dict(ts_s=1_000_000.0, latency_ms=100.0),
    long_ago=dict(ts_s=1.0, latency_ms=100.0),
    eleven_days_of_latency=dict(ts_s=1_000.0, latency_ms=1e9),
    callers_mistake=dict(ts_s=1_000.0, latency_ms=100.0, error="BadRequestError"),
    cancelled=dict(ts_s=1_000.0, latency_ms=100.0, error="cancelled"),
)


@pytest.mark.parametrize("received", [False, True], ids=["undated", "dated"])
@pytest.mark.parametrize("ours", [False, True], ids=["from_elsewhere", "decided"])
@pytest.mark.parametrize("poison", POISONS)
def test_one_poisoned_outcome_costs_its_backend_next_to_nothing(poison, ours, received):
    def after(poisoned: bool) -> float:
        "Its share a minute later, beside the same outcome with the right date and duration."
        router = two()
        share(router, 940.0)
        d = router.claim(Request(), "a", 1_000.0) if ours else None
        right = dict(ts_s=1_000.0, latency_ms=100.0)
        said = POISONS[poison] if poisoned else POISONS[poison] | right
        o = Outcome("a", decision=d.id if d else None, **said)
        router.observe(o, 1_000.5 if received else None)
        return share(router, 1_060.0)

    assert after(True) >= 0.9 * after(False)


@pytest.mark.parametrize("off_s", [75.0, -75.0, 86_400.0, -86_400.0])
def test_hosts_whose_clocks_differ_starve_nobody_and_steps_keep_closing(off_s):
    router, got = two(), 0
    for k in range(3_000):
        now = 1_000_000.0 + k * 0.2
        d = router.decide(Request(), now)
        got += d.backend == "a"
        said_s = now + (off_s if k % 2 else 0.0)
        router.observe(Outcome(d.backend, said_s, 100.0, decision=d.id))
    assert got > 1_000 and router.counts["corrected"] == 1_500
    fold = router.feature_map()["a"]
    assert fold.history.seen >= 9 and fold.late == 0


def test_a_host_clock_that_jumps_a_day_and_back_holds_nothing_back():
    router = two(PredictedCost())
    share(router, 1_000.0)
    ahead = 87_400.0
    held = [router.decide(Request(), ahead) for _ in range(4)]
    for name in "a" * 6:
        router.observe(Outcome(name, ahead, None, False, "connect"), ahead)
    router.observe(Outcome("b", ahead, 10.0, error="429"), ahead)
    assert router.health("a", ahead)[0] == OPEN
    before = router.feature_map()["b"].history.seen
    assert 0.2 < share(router, 1_100.0) < 0.8
    router.roll(1_800.0)
    assert router.feature_map()["b"].history.seen >= before + 10
    assert sum(router.in_flight().values()) == 0 and len(held) == 4


def test_tokens_are_reserved_settled_and_given_back():
    def sent(tpm, promised, used, cancel=False):
        router = Router([Backend("a", capacity=50.0, tpm=tpm)], config=RouterConfig(slo_ms=1e5))
        count = tokens = 0
        for k in range(1, 237):
            try:
                d = router.decide(Request(tokens_in=10, tokens_out=promised), k / 4)
            except NoBackend as e:
                assert e.retry_after_s < 60
                continue
            count += 1
            if cancel:
                router.cancel(d, k / 4)
                continue
            tokens += 10 + used
            router.observe(Outcome("a", k / 4, 200.0, decision=d.id, tokens_in=10, tokens_out=used))
        return count, tokens

    assert sent(1_000.0, 0, 500)[1] <= 1_510
    assert sent(60_000.0, 4_000, 50)[0] == 236
    assert sent(60_000.0, 4_000, 0, cancel=True)[0] == 236


def test_what_the_provider_says_is_left_counts():
    router = Router([Backend("a", rpm=60.0, tpm=10_000.0), Backend("b")])
    headers = {"x-ratelimit-remaining-requests": "0"}
    router.hear_limits("a", headers, 30.0)
    assert {router.decide(Request(), 31.0 + k / 10).backend for k in range(50)} == {"b"}
    assert state(router, "a", 31.0)["limits"]["requests_left"] == 0
    router.hear_limits("b", {"retry-after": "12"}, 70.0)
    assert state(router, "b", 70.0)["held_s"] == 12.0
    with pytest.raises(KeyError):
        router.hear_limits("c", {}, 0.0)


def test_a_hard_bound_of_requests_at_once_holds():
    router = Router([Backend("a", capacity=9.0, most_at_once=2), Backend("b", capacity=0.1)])
    running = []
    for k in range(20):
        d = router.decide(Request(), k / 10)
        running.append(d)
        assert router.in_flight()["a"] <= 2
    first = next(d for d in running if d.backend == "a")
    router.observe(Outcome("a", first.at_s, 50.0, decision=first.id))
    assert router.decide(Request(), 2.1).backend == "a" and router.in_flight()["a"] == 2


def test_a_day_has_so_many_requests():
    router = Router([Backend("a", capacity=50.0, rpd=5), Backend("b")])
    sent = [router.decide(Request(), 100.0 + 61.0 * k).backend for k in range(40)]
    assert sent.count("a") == 5
    assert "a" in {router.decide(Request(), 86_400.0 + k).backend for k in range(5)}


def test_who_recovers_starts_slowly():
    router = Router(
        [Backend("a", capacity=50.0), Backend("b", capacity=50.0)],
        PredictedCost(),
        breaker=BreakerConfig(open_s=5.0, jitter=0.0),
    )
    router.roll(0.0)
    for _ in range(5):
        router.observe(Outcome("a", 0.5, None, False, "connect"))
    now = 6.0
    while router.health("a", now)[0] != CLOSED:
        now += 0.1
        d = router.decide(Request(), now)
        router.observe(Outcome(d.backend, now, 20.0, decision=d.id))
    weight = router.rank(Request(), now + 1.0)
    assert next(c for c in weight if c.backend == "a").probability < 0.3
    assert share(router, now + 40.0, every_s=0.01) > 0.35


def test_rules_about_places_and_abilities_hold_everywhere():
    router = Router(
        [
            Backend("eu", region="eu", tags=("vision",), models=("openai/*",)),
            Backend("us", region="us", tags=("vision", "json")),
        ]
    )
    asked = Request(model="openai/gpt", regions=("eu",), tags=("vision",))
    assert [c.backend for c in router.rank(asked, 0.0) if c.score < inf] == ["eu"]
    assert {router.decide(asked, k / 10).backend for k in range(20)} == {"eu"}
    with pytest.raises(NoBackend, match="eu lacks json; us is in region us"):
        router.decide(Request(regions=("eu",), tags=("json",)), 3.0)


def test_a_conversation_stays_where_its_cache_is_while_there_is_room():
    router = Router([Backend(name, capacity=8.0) for name in "abc"])
    first = router.decide(Request(session="s", tokens_out=50), 0.0)
    home = first.backend
    router.observe(Outcome(home, 0.0, 100.0, decision=first.id, tokens_out=50))
    for k in range(1, 30):  # elsewhere it is as good, and sometimes better
        d = router.decide(Request(session="s", tokens_out=50), float(k))
        assert d.backend == home and "cache of its session" in d.reasons[0]
        assert d.probability == 1.0 and d.candidates[0].backend == home
        other = router.decide(Request(tokens_out=50), k + 0.1)
        for x in (d, other):
            router.observe(Outcome(x.backend, x.at_s, 100.0, decision=x.id, tokens_out=50))
    assert router.rank(Request(session="s"), 30.0)[0].backend == home
    busy = [router.claim(Request(), home, 31.0) for _ in range(8)]
    assert router.decide(Request(session="s"), 31.5).backend != home and len(busy) == 8


def test_a_prefix_is_kept_like_a_session_and_never_past_a_breaker():
    router = Router([Backend(name, capacity=8.0) for name in "ab"])
    home = router.decide(Request(prefix="system prompt 7"), 0.0).backend
    assert router.decide(Request(session="new", prefix="system prompt 7"), 1.0).backend == home
    router.force(home, OPEN, 2.0, "maintenance")
    assert router.decide(Request(prefix="system prompt 7"), 3.0).backend != home


def test_reserved_capacity_is_used_up_first_in_its_order():
    fleet = [
        Backend("on_demand", capacity=50.0),
        Backend("second", capacity=2.0, spill_order=2),
        Backend("first", capacity=3.0, spill_order=1),
    ]
    router = Router(fleet)
    sent = [router.decide(Request(), 0.1 * k).backend for k in range(8)]
    assert sent == ["first"] * 3 + ["second"] * 2 + ["on_demand"] * 3
