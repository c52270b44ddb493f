"""Sessions, prefixes and reserved capacity: odds that are true, books that agree, a price that is
small.
"""

from collections import Counter
from statistics import median
from time import perf_counter_ns

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.routing.affinity import Homes
from arcpoint_ce.routing.breaker import OPEN, BreakerConfig
from arcpoint_ce.routing.limits import Budget
from arcpoint_ce.routing.policies import HeadRoom, OwnPace, PredictedCost, RandomChoice, TwoChoices
from arcpoint_ce.routing.records import Backend, Outcome, Request
from arcpoint_ce.routing.router import Router, RouterConfig


def running(router: Router, **loads: int):
    "So many requests run at each."
    return [router.claim(Request(), name, 0.0) for name, n in loads.items() for _ in range(n)]


DRAWN = {
    "own_pace_of_three": lambda: OwnPace(gateways=3),
    "predicted_cost": PredictedCost,
    "head_room": HeadRoom,
    "random": RandomChoice,
    "p2c": TwoChoices,
}


@pytest.mark.parametrize("policy", DRAWN)
def test_the_odds_of_a_request_with_a_home_are_those_of_its_draws(policy):
    router = Router([Backend(f"b{k}", capacity=8.0 - k) for k in range(5)], DRAWN[policy]())
    router._homes.note(Request(session="s"), "b1")
    held = running(router, b0=1, b1=5, b3=2)
    said = {c.backend: c.probability for c in router.rank(Request(session="s"), 1.0)}
    assert sum(said.values()) == pytest.approx(1.0)
    got, n = Counter(), 3_000
    for _ in range(n):
        d = router.decide(Request(session="s"), 1.0)
        assert d.probability == pytest.approx(said[d.backend])
        got[d.backend] += 1
        router.cancel(d, 1.0)
        router._homes.note(Request(session="s"), "b1")
    assert len(held) == 8
    for name, p in said.items():
        assert abs(got[name] / n - p) < 4 * (p * (1 - p) / n) ** 0.5 + 1e-9


def test_only_the_home_and_the_choice_are_compared():
    seen = []

    class Watched(PredictedCost):
        def plan(self, scene, s):
            plan = super().plan(scene, s)
            scores = plan.scores
            plan.scores = lambda s, now: seen.append("all") or scores(s, now)
            plan.score = lambda k, s, now: seen.append(k) or scores(s, now)[k]
            return plan

    router = Router([Backend(f"b{k}", capacity=8.0) for k in range(40)], Watched())
    router._homes.note(Request(session="s"), "b7")
    for k in range(50):
        d = router.decide(Request(session="s"), k / 100)
        assert d.backend == "b7"
        router.cancel(d, k / 100)
    assert "all" not in seen and len(seen) <= 100


def test_a_session_is_known_though_a_prefix_led_to_its_home():
    router = Router([Backend(name, capacity=8.0) for name in "ab"])
    first = router.decide(Request(prefix="p"), 0.0)
    assert router.decide(Request(session="s", prefix="p"), 0.1).backend == first.backend
    router._homes.note(Request(prefix="p"), "ab".replace(first.backend, ""))
    assert router._homes.of(Request(session="s", prefix="p")) == (first.backend, "session")


def test_the_newest_sessions_are_remembered_however_many_come():
    homes = Homes(most=1_000)
    for k in range(10_000):
        homes.note(Request(session=f"s{k}", prefix="p"), "a")
        assert homes.of(Request(session="long ago")) is None
        homes.of(Request(session="s0"))  # it goes on all the time
    known = sum(homes.of(Request(session=f"s{k}")) is not None for k in range(9_500, 10_000))
    assert known >= 490 and homes.of(Request(session="s0")) == ("a", "session")
    assert len(homes._sessions.recent) + len(homes._sessions.older) <= 1_000


def test_a_conversation_does_not_move_for_a_probe():
    router = Router(
        [Backend(name, capacity=8.0) for name in "ab"],
        PredictedCost(),
        breaker=BreakerConfig(open_s=5.0, jitter=0.0, probes=2, probe_success=50),
        config=RouterConfig(probe_share=0.5, explore=0.0),
    )
    router._homes.note(Request(session="s"), "a")
    router.roll(0.0)
    for _ in range(5):
        router.observe(Outcome("b", 0.5, None, False, "connect"))
    probes = 0
    for k in range(100):
        d = router.decide(Request(session="s"), 20.0 + k / 100)
        probes += d.is_probe
        router.observe(Outcome(d.backend, d.at_s, 20.0, decision=d.id))
        assert router._homes.of(Request(session="s")) == ("a", "session")
    assert 0 < probes < 100


def test_reserved_capacity_goes_before_a_home_and_both_before_the_draw():
    router = Router(
        [Backend("own", capacity=8.0), Backend("paid", capacity=1.0, spill_order=0), Backend("c")]
    )
    router._homes.note(Request(session="s"), "own")
    paid = router.rank(Request(session="s"), 0.0)[0]
    assert (paid.backend, paid.probability) == ("paid", 1.0) and "reserved" in paid.reason
    held = running(router, paid=1)
    at_home = router.rank(Request(session="s"), 0.0)[0]
    assert (at_home.backend, at_home.probability, len(held)) == ("own", 1.0, 1)
    assert at_home.reason == "holds the cache of its session"


def test_a_retry_is_drawn_by_the_policy_alone():
    router = Router([Backend("a", capacity=8.0), Backend("b", 4.0, spill_order=0), Backend("c")])
    d = router.decide(Request(), 0.0)
    assert (d.backend, d.attempt_probability(0)) == ("b", 1.0)
    assert router.retry(d, 0.1) == "a"
    router.force("b", OPEN, 1.0, "maintenance")
    assert router.decide(Request(), 1.0).backend in "ac"


class Straight:
    "The books of one minute and one day, written down without any haste."

    def __init__(self, b: Backend):
        inf = float("inf")
        self.limits = [(x or inf) for x in (b.rpm, b.tpm, b.tpm_in, b.rpd)]
        self.sent: list[tuple[float, int, int]] = []

    def void(self, now: float, promised: float) -> bool:
        "Has the minute just begun, or do views rely on more than is left?"
        rpm, tpm, tpm_in, rpd = self.limits
        minute, day = now - now % 60.0, now - now % 86_400.0
        mine = [x for x in self.sent if x[0] >= minute]
        tok, in_tok = sum(x[1] for x in mine), sum(x[2] for x in mine)
        share = max(len(mine) / rpm, tok / tpm, in_tok / tpm_in)
        if len(mine) == 1 or tpm - tok < promised or minute + 60.0 * share - 2.0 > now:
            return True
        if tok > tpm or in_tok > tpm_in:
            return True
        return len(mine) + 1 > rpm or sum(x[0] >= day for x in self.sent) + 1 > rpd


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0.0, 9.0), st.integers(0, 300), st.integers(0, 200)), max_size=80),
    st.sampled_from([None, 20.0, 200.0]),
    st.sampled_from([None, 3_000.0, 90_000.0]),
    st.sampled_from([None, 900.0, 9_000.0]),
    st.sampled_from([None, 30.0]),
    st.sampled_from([0.0, 400.0]),
)
def test_quick_books_say_what_straight_ones_say(sent, rpm, tpm, tpm_in, rpd, promise):
    backend = Backend("a", rpm=rpm, tpm=tpm, tpm_in=tpm_in, rpd=rpd)
    quick, straight, now = Budget(backend), Straight(backend), 86_000.0
    promised = 0.0
    for gap_s, tokens_in, more in sent:
        now += gap_s
        straight.sent.append((now, tokens_in + more, tokens_in))
        void = straight.void(now, promised)
        assert quick.spend(tokens_in + more, now, tokens_in) is void
        if void:  # whoever made a view then promises anew
            promised = promise
            quick.promise(promise)
    day_s = now - now % 86_400.0
    if sent and rpd:
        assert quick.used_day == sum(x[0] >= day_s for x in straight.sent)


def took_us(books: bool) -> tuple[float, float]:
    "Median time of `decide` and of `observe`, µs."
    limits = dict(rpm=1e6, tpm=1e9, tpm_in=1e9, rpd=1e8, most_at_once=100) if books else {}
    router = Router([Backend(f"b{k}", capacity=16.0, **limits) for k in range(8)])
    decided, observed = [], []
    for k in range(1_500):
        named = dict(session=f"s{k % 50}", prefix="p", tenant="x") if books else {}
        request = Request(tokens_in=500, tokens_out=200, **named)
        began = perf_counter_ns()
        d = router.decide(request, k / 100)
        decided.append(perf_counter_ns() - began)
        o = Outcome(d.backend, k / 100, 120.0, decision=d.id, tokens_out=190, tokens_in=500)
        began = perf_counter_ns()
        router.observe(o)
        observed.append(perf_counter_ns() - began)
    return median(decided[300:]) / 1e3, median(observed[300:]) / 1e3


def test_limits_and_homes_cost_a_decision_little():
    ratios = []
    for _ in range(5):  # in turn, since others use the machine too
        plain, with_books = took_us(False), took_us(True)
        ratios.append([b / a for a, b in zip(plain, with_books)])
    assert min(r[0] for r in ratios) < 1.8 and min(r[1] for r in ratios) < 1.6


@pytest.mark.parametrize("capacities", [(8.0,), (8.0, 4.0, 2.0)], ids=["alike", "mixed"])
def test_the_chance_of_one_of_two_choices_is_that_among_all(capacities):
    size = len(capacities)
    fleet = [Backend(f"b{k}", capacity=capacities[k % size]) for k in range(12)]
    router = Router(fleet, TwoChoices(), config=RouterConfig(explore=0.0))
    held = running(router, b0=2, b1=1, b4=3, b5=1)
    d = router.decide(Request(), 1.0)
    plan, s = d.view.plan, d.signals
    one_by_one = [plan.chance(k, s, 1.0) for k in range(12)]
    assert one_by_one == pytest.approx(plan.probabilities(s, 1.0)) and len(held) == 7
