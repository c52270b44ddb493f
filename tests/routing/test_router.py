"""Router and policies: contracts over every policy, a state machine over the books, replay,
threads, joins and leaves.
"""

import asyncio
import gc
import sys
import tracemalloc
from collections import Counter, defaultdict, deque
from heapq import heappop, heappush
from itertools import accumulate, count, product
from math import inf, isfinite, log, nan, prod
from random import Random
from threading import Thread
from types import BuiltinMethodType, FunctionType

import pytest
from breakers import SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from scipy.stats import chisquare

from arcpoint_ce.routing.breaker import CLOSED, HALF_OPEN, OPEN, BreakerConfig, ShedConfig
from arcpoint_ce.routing.decisions import Decision, _only_slow
from arcpoint_ce.routing.nowcast import Nowcast, others_pace_s, usual_pace_s
from arcpoint_ce.routing.policies import (
    POLICIES,
    OwnPace,
    PredictedCost,
    RandomChoice,
    Scene,
    Signals,
)
from arcpoint_ce.routing.records import Backend, Forecast, ForecastTable, Outcome, Request, Tier
from arcpoint_ce.routing.router import NoBackend, Router, RouterConfig

SPREAD = (0.6, 0.7, 0.85, 1.0, 1.2, 1.5, 1.8)
SIZES = (2, 8, 64, 200)


def table(now, medians, version=1, max_age_s=60.0, now_ms=None, trust=1.0):
    """Forecasts by backend; a median of None leaves the backend out. `now_ms`: what a request takes
    now, where that is said.
    """

    def q(m):
        return tuple(m * x for x in SPREAD)

    return ForecastTable(
        version,
        now,
        max_age_s,
        {
            n: Forecast(n, now, 300.0, q(m), q(m), now_ms=now_ms, trust=trust)
            for n, m in medians.items()
            if m is not None
        },
    )


def scene_of(n, seed=0, missing=0.2):
    """A mixed fleet: some forecasts missing, some backends shed, two prices, and own signals that
    differ.
    """
    rng = Random(seed)
    p50 = [None if rng.random() < missing else rng.uniform(50, 500) for _ in range(n)]
    sc = Scene(
        tuple(Backend(f"b{k}", capacity=rng.choice((4.0, 8.0, 16.0))) for k in range(n)),
        tuple(range(n)),
        tuple(rng.choice((1.0, 1.0, 0.3)) for _ in range(n)),
        tuple(p50),
        tuple(None if p is None else min(p / 600, 0.99) for p in p50),
        tuple(p50),
        tuple(rng.choice((0.001, 0.01)) for _ in range(n)),
        (300.0,) * n,
    )
    s = Signals(
        [rng.randrange(6) for _ in range(n)],
        [rng.random() * 0.2 for _ in range(n)],
        [rng.choice((0.0, rng.uniform(50, 300))) for _ in range(n)],
        [rng.uniform(0, 10) for _ in range(n)],
        turn=seed,
    )
    return sc, s


def same(x, y):
    return x == pytest.approx(y, abs=1e-9)


# ---- contracts over every policy


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("name", POLICIES)
def test_probabilities_sum_to_one_and_match_the_draws(name, n):
    sc, s = scene_of(n, seed=n)
    plan, rng, draws = POLICIES[name]().plan(sc, s), Random(5), 200 * n if n < 64 else 20_000
    p = plan.probabilities(s, 12.0)
    assert len(p) == len(plan.scores(s, 12.0)) == n and same(sum(p), 1.0) and min(p) >= 0.0
    seen = Counter(plan.choose(rng.random, s, 12.0) for _ in range(draws))
    assert all(p[k] > 0 for k in seen), "drawn though its probability is 0"
    big = [k for k in range(n) if p[k] * draws >= 5]
    got, want = [seen[k] for k in big], [p[k] * draws for k in big]
    got.append(draws - sum(got))
    want.append(draws - sum(want))
    if want[-1] < 5:
        got[-2:], want[-2:] = [sum(got[-2:])], [sum(want[-2:])]
    if len(got) == 1:
        assert got[0] == draws
    else:
        assert chisquare(got, [w * draws / sum(want) for w in want]).pvalue > 1e-4


@pytest.mark.parametrize("name", POLICIES)
def test_a_plan_of_nobody_and_of_one(name):
    sc, s = scene_of(1, missing=0.0)
    plan = POLICIES[name]().plan(sc, s)
    assert plan.choose(Random(0).random, s, 1.0) == 0 and plan.probabilities(s, 1.0) == [1.0]
    empty = POLICIES[name]().plan(Scene((), (), (), (), (), (), (), ()), Signals())
    assert empty.scores(Signals(), 0.0) == [] or name == "least_in_flight"


BROKEN = {"missing": None, "nan": nan, "infinite": inf, "negative": -5.0, "zero": 0.0}


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("n", (2, 8, 64))
@pytest.mark.parametrize("name", POLICIES)
def test_a_broken_forecast_never_looks_best(name, n, how):
    """Equals but for their forecasts: who has none gets no more than the best known one, nor than
    if it had a good one.
    """

    def ranked(median):
        r = Router(
            [Backend(f"b{k}", capacity=8.0) for k in range(n)],
            POLICIES[name](),
            config=RouterConfig(explore=0.0),
        )
        known = {f"b{k}": 80.0 + 500.0 * k / n for k in range(n - 1)}
        r.swap(table(0.0, {**known, f"b{n - 1}": median}, now_ms=80.0), 0.0)
        assert r.decide(Request(), 1.0).mode == "predictive"
        r = Router(
            [Backend(f"b{k}", capacity=8.0) for k in range(n)],
            POLICIES[name](),
            config=RouterConfig(explore=0.0),
        )
        r.swap(table(0.0, {**known, f"b{n - 1}": median}, now_ms=80.0), 0.0)
        return {c.backend: c for c in r.rank(Request(), 1.0)}

    got, good = ranked(BROKEN[how]), ranked(80.0)
    me, others = got[f"b{n - 1}"], [c for b, c in got.items() if b != f"b{n - 1}"]
    assert me.p_slow is None and me.p50_ms is None and "no usable forecast" in me.reason
    assert me.probability <= good[f"b{n - 1}"].probability + 1e-9
    if name != "round_robin":
        assert me.probability <= max(c.probability for c in others) + 1e-9
    if name == "predicted_cost":
        assert me.score >= min(c.score for c in others)


@pytest.mark.parametrize("name", POLICIES)
def test_a_stale_table_counts_for_nothing(name):
    "Neither its medians nor what it shed: odds are those of a router that never had it."

    def fleet():
        return Router([Backend(f"b{k}", capacity=8.0) for k in range(4)], POLICIES[name]())

    fresh, stale = fleet(), fleet()
    stale.swap(table(0.0, dict(b0=50.0, b1=900.0, b2=60.0, b3=None)), 0.0)
    now = 61.0
    odds = [
        {c.backend: (c.probability, c.score, c.p_slow) for c in r.rank(Request(), now)}
        for r in (fresh, stale)
    ]
    assert odds[0] == odds[1] and stale.decide(Request(), now).mode == "reactive"


@pytest.mark.slow
@pytest.mark.parametrize("n", (8, 64))
def test_ours_never_gives_everything_to_the_best_of_a_shared_score(n):
    """A forecast that favours one backend strongly, read by 1,000 gateways at once, must not
    trample it.
    """
    fleet = [Backend(f"b{k}", capacity=8.0) for k in range(n)]
    for medians in (
        {f"b{k}": 40.0 if k == 3 else 150.0 for k in range(n)},
        {f"b{k}": 100.0 for k in range(n)},
    ):
        seen = Counter()
        for seed in range(400):
            r = Router(fleet, PredictedCost(), config=RouterConfig(explore=0.0, seed=seed))
            r.swap(table(0.0, medians), 0.0)
            seen[r.decide(Request(), 1.0).backend] += 1
        assert max(seen.values()) < 400 * 3 / n and len(seen) >= n // 2
    r = Router(fleet, PredictedCost())
    r.swap(table(0.0, medians), 0.0)
    assert max(c.probability for c in r.rank(Request(), 1.0)) < 3 / n


# ---- purity


def state(x, seen=None):
    "Everything an object holds, random state included, as plain comparable data."
    seen = {} if seen is None else seen
    if x is None or isinstance(x, (bool, int, str, bytes, bytearray)):
        return x
    if isinstance(x, float):
        return x if x == x else "nan"
    if id(x) in seen:
        return ("again", seen[id(x)][0])
    seen[id(x)] = (len(seen), x)  # kept alive, so that no id is used twice
    if isinstance(x, Random):
        return x.getstate()
    if isinstance(x, BuiltinMethodType):
        return state(x.__self__, seen)
    if isinstance(x, FunctionType) or "lock" in type(x).__name__.lower():
        return type(x).__name__
    if isinstance(x, dict):
        return [(state(k, seen), state(v, seen)) for k, v in x.items()]
    if isinstance(x, (list, tuple, deque, set, frozenset)):
        return [state(v, seen) for v in x]
    names = [n for c in type(x).__mro__ for n in getattr(c, "__slots__", ())]
    return (
        type(x).__name__,
        [(n, state(getattr(x, n), seen)) for n in names if hasattr(x, n)],
        [(k, state(v, seen)) for k, v in getattr(x, "__dict__", {}).items()],
    )


@pytest.mark.parametrize("name", POLICIES)
def test_rank_is_pure(name):
    r = Router(
        [Backend(f"b{k}", capacity=4.0, rpm=60.0, tpm=9_000.0) for k in range(5)],
        POLICIES[name](),
        breaker=SMALL,
    )
    r.swap(table(0.0, dict(b0=50.0, b1=700.0, b2=80.0)), 0.0)
    for k in range(40):
        d = r.decide(Request(tokens_in=10), 1.0 + k)
        ok = d.backend != "b2"
        r.observe(Outcome(d.backend, d.at_s, 100.0, ok, None if ok else "refused", d.id))
    r.force("b3", OPEN, 41.0, "maintenance")
    before = state(r)
    for now in (41.0, 55.0, 200.0, 10.0):
        list(map(str, r.rank(Request(tokens_in=500, model="m"), now)))
        r.rank(Request(), now)
    d = next(iter(r._reservations.open.values()), None) or r.decide(Request(), 42.0)
    before = state(r) if d.at_s == 42.0 else before
    d.reasons, d.fallbacks, d.probability, d._repr_html_(), repr(d), d.candidates
    assert state(r) == before


# ---- the books

medians = st.sampled_from([None, nan, inf, 40.0, 100.0, 310.0, 900.0])
NAMES = [f"b{k}" for k in range(6)]


class RouterMachine(RuleBasedStateMachine):
    """Any order of decisions, outcomes, people, joins and clocks; what must hold, holds after every
    call.
    """

    @initialize(
        name=st.sampled_from(sorted(POLICIES)),
        n=st.integers(2, 5),
        rpm=st.sampled_from([None, 1.0, 4.0, 20.0]),
        tpm=st.sampled_from([None, 500.0, 3_000.0]),
        seed=st.integers(0, 3),
        explore=st.sampled_from([0.0, 0.2]),
    )
    def start(self, name, n, rpm, tpm, seed, explore):
        config = RouterConfig(
            lease_s=30.0, explore=explore, probe_share=0.5, slow_start_s=10.0, seed=seed
        )
        fleet = [
            Backend(
                NAMES[k],
                capacity=4.0 * (k + 1),
                rpm=rpm if k % 2 else None,
                tpm=None if k % 2 else tpm,
            )
            for k in range(n)
        ]
        self.make = lambda: Router(
            fleet, POLICIES[name](), config=config, breaker=SMALL, tiers=[Tier("gold", 200.0, 0.95)]
        )
        self.r, self.log, self.now, self.peak, self.epoch = self.make(), [], 1000.0, 1000.0, 0
        self.attempts, self.spent, self.decisions = {}, defaultdict(lambda: [0, 0]), {}

    def do(self, name, *args):
        "One call, recorded with its result; leases may end by time only."
        before = {d.id: d.until_s for d in self.r._reservations.open.values()}
        try:
            got = getattr(self.r, name)(
                *[self.decisions[a[0]] if type(a) is tuple else a for a in args]
            )
        except NoBackend as e:
            got = e
        self.log.append((name, args, said(got)))
        for id, until in before.items():
            if id in self.r._reservations.open:
                continue
            mine = [a for (i, _), a in self.attempts.items() if i == id]
            if (
                name == "cancel"
                or all(not a["open"] for a in mine)
                or (name == "observe" and args[0].decision == id)
            ):
                continue
            assert until <= self.now, "a lease ended before its time"
            for a in mine:
                a["held"] = False
        return got

    def reserve(self, d, k):
        "Note what attempt `k` of a decision holds, and what it must not have been allowed to."
        lane = d.lanes[k]
        b, probe = lane.breaker, bool(d.probes >> k & 1)
        view = d.again[k - 1][0] if k else d.view
        mode = view.mode
        assert (
            b.state == CLOSED
            or view.last_resort
            or (probe and b.state == HALF_OPEN)
            or (mode == "panic" and _only_slow(b))
        ), (b.state, mode)
        self.attempts[d.id, k] = dict(
            lane=lane,
            held=True,
            open=True,
            probe=probe,
            era=d.eras[k],
            left=1.0,
            seen=0,
            seen_s=self.now,
        )
        use = self.spent[lane.backend.name, id(lane), self.epoch, self.now // 60]
        use[0] += 1
        use[1] += d.request.tokens_in + d.request.tokens_out
        if lane.backend.rpm:
            assert use[0] <= lane.backend.rpm, "rate limit exceeded: requests"
        if lane.backend.tpm:
            assert use[1] <= lane.backend.tpm, "rate limit exceeded: tokens"

    @rule(
        tokens=st.sampled_from([0, 10, 120, 400]),
        tier=st.sampled_from([None, "gold"]),
        cost=st.sampled_from([inf, 1.0]),
    )
    def decide(self, tokens, tier, cost):
        d = self.do(
            "decide",
            Request(tokens_in=tokens, tokens_out=tokens // 2, tier=tier, max_cost_usd=cost),
            self.now,
        )
        if isinstance(d, NoBackend):
            return
        self.decisions[d.id] = d
        self.reserve(d, 0)
        assert (
            0 < d.probability <= 1 + 1e-9
            and same(sum(c.probability for c in d.candidates), 1.0)
            and d.reasons
        )

    def give_back(self, d, k):
        "A cancelled attempt leaves the budget of the minute in which it was sent."
        lane = d.lanes[k]
        use = self.spent[lane.backend.name, id(lane), self.epoch, d.started_s(k) // 60]
        use[0] -= 1
        use[1] -= d.request.tokens_in + d.request.tokens_out

    def pick(self, data, **want):
        keys = [k for k, a in self.attempts.items() if all(a[n] == v for n, v in want.items())]
        return data.draw(st.sampled_from(keys)) if keys else None

    @rule(
        data=st.data(),
        ok=st.sampled_from([True, True, False]),
        slow=st.booleans(),
        known=st.booleans(),
    )
    def observe(self, data, ok, slow, known):
        key = self.pick(data, open=True)
        if key is None:
            return
        a, d, lapsed = (
            self.attempts[key],
            self.decisions[key[0]],
            key[0] in self.r._reservations.lapsed,
        )
        took = 900.0 if slow else 50.0
        o = Outcome(
            a["lane"].backend.name,
            d.at_s,
            took if ok or slow else None,
            ok,
            None if ok else "timeout" if slow else "refused",
            *key,
        )
        forgotten = key[0] not in self.r._reservations.open and not lapsed
        late = self.r.counts["late"]
        assert self.do("observe", o) is not forgotten
        assert self.r.counts["late"] - late == (not forgotten and not a["held"])
        a["open"] = a["held"] = False

    @rule(data=st.data())
    def duplicate(self, data):
        key = self.pick(data, open=False)
        if key is None:
            return
        before, ignored = list(self.r._signals.in_flight), self.r.counts["ignored"]
        assert (
            self.do(
                "observe",
                Outcome(
                    self.attempts[key]["lane"].backend.name,
                    self.now,
                    10.0,
                    decision=key[0],
                    attempt=key[1],
                ),
            )
            is False
        )
        assert self.r._signals.in_flight == before and self.r.counts["ignored"] == ignored + 1

    @rule(data=st.data())
    def orphan(self, data):
        name = (
            data.draw(st.sampled_from([b.name for b in self.r.backends]))
            if self.r.backends
            else None
        )
        assert self.do("observe", Outcome("nobody", self.now, 10.0, decision=10**9)) is False
        if name:
            assert self.do("observe", Outcome(name, self.now, 10.0))

    @rule(data=st.data())
    def cancel(self, data):
        if not self.decisions:
            return
        id = data.draw(st.sampled_from(sorted(self.decisions)))
        if self.do("cancel", (id,), self.now):
            for (i, k), a in self.attempts.items():
                if i == id:
                    if a["open"]:
                        self.give_back(self.decisions[id], k)
                    a["held"] = a["open"] = False

    @rule(data=st.data())
    def retry(self, data):
        if not self.decisions:
            return
        d = self.decisions[data.draw(st.sampled_from(sorted(self.decisions)))]
        used = {lane.backend.name for lane in d.lanes}
        got = self.do("retry", (d.id,), self.now)
        if got is None:
            return
        assert got not in used and 0 < d.attempt_probability(d.attempts - 1) <= 1 + 1e-9
        self.reserve(d, d.attempts - 1)

    @rule(
        data=st.data(),
        tokens=st.sampled_from([0, 1, 7, 40, 40, 300, -1, nan, inf, 10**400]),
        dt=st.sampled_from([0.0, 0.0, 0.0, 5.0, -3.0, nan, inf]),
    )
    def progress(self, data, tokens, dt):
        "The newest attempt has come so far; everything else is counted and changes nothing."
        if not self.decisions:
            return
        ids = (
            sorted(self.r._reservations.open)
            if self.r._reservations.open and data.draw(st.booleans())
            else sorted(self.decisions)
        )
        id = data.draw(st.sampled_from(ids))
        d, now = self.decisions[id], self.now + dt
        a = self.attempts[id, d.attempts - 1]
        fits = (
            id in self.r._reservations.open
            and a["held"]
            and a["seen"] <= tokens < 1e9
            and min(a["seen_s"], d.seen_s) <= now < inf  # a clock that was wrong was set back
        )
        before, ignored = None if fits else state(self.r), self.r.counts["progress_ignored"]
        assert self.do("progress", (id,) if data.draw(st.booleans()) else id, tokens, now) is fits
        if fits:
            a["seen"], a["seen_s"], a["left"] = (
                tokens,
                now,
                max(1.0 - tokens / (d.request.tokens_out or d.expect), 0.1),
            )
        else:
            assert self.r.counts["progress_ignored"] == ignored + 1
            self.r.counts["progress_ignored"] = ignored
            assert state(self.r) == before
            self.r.counts["progress_ignored"] = ignored + 1

    @rule(
        data=st.data(),
        age=st.sampled_from([0.0, 10.0, 70.0]),
        now_ms=st.sampled_from([None, 100.0]),
        trust=st.sampled_from([0.0, 0.5, 1.0]),
    )
    def swap(self, data, age, now_ms, trust):
        said = {b.name: data.draw(medians) for b in self.r.backends}
        self.do(
            "swap", table(self.now - age, said, len(self.log), now_ms=now_ms, trust=trust), self.now
        )
        lanes = self.r._lanes.values()
        total = sum(lane.backend.capacity for lane in lanes)
        assert (
            sum((1 - lane.weight) * lane.backend.capacity for lane in lanes) <= 0.5 * total + 1e-9
        )

    @rule(data=st.data(), state=st.sampled_from([OPEN, CLOSED, HALF_OPEN, None]))
    def force(self, data, state):
        if self.r.backends:
            self.do(
                "force",
                data.draw(st.sampled_from([b.name for b in self.r.backends])),
                state,
                self.now,
                "by hand",
            )

    @rule(name=st.sampled_from(NAMES), rpm=st.sampled_from([None, 3.0]))
    def join_or_leave(self, name, rpm):
        if name in {b.name for b in self.r.backends}:
            self.do("remove", name)
        else:
            self.do("add", Backend(name, capacity=8.0, rpm=rpm), self.now)

    @rule(
        dt=st.sampled_from(
            [0.0, 0.001, 0.4, 2.0, 9.0, 16.0, 31.0, 61.0, 400.0, -0.5, -30.0, -59.0, -500.0]
        )
    )
    def clock(self, dt):
        self.now = max(self.now + dt, 0.0)
        if self.now < self.peak - 60.0:
            self.epoch += 1
            self.peak = self.now
        self.peak = max(self.peak, self.now)

    @rule()
    def look(self):
        "Reading in between changes nothing; the replay below leaves it out."
        try:
            assert same(sum(c.probability for c in self.r.rank(Request(), self.now)), 1.0)
        except NoBackend:
            pass

    @invariant()
    def books_balance(self):
        if not hasattr(self, "r"):
            return
        held = Counter()
        for a in self.attempts.values():
            held[a["lane"].slot] += a["held"]
        s, left = self.r._signals, defaultdict(list)
        for a in self.attempts.values():
            if a["held"]:
                left[a["lane"].slot].append(a["left"])
        assert s.in_flight == [held[k] for k in range(len(s.in_flight))]
        assert all(
            same(s.load[k], sum(left[k])) and s.load[k] >= 0.0 and (held[k] or s.load[k] == 0.0)
            for k in range(len(s.load))
        )
        assert 0.0 <= s.retried <= 1.0 and all(0.0 < x < inf for x in s.slow)
        for lane in self.r._lanes.values():
            assert 0 <= lane.breaker.out <= SMALL.probes
            out = sum(
                a["held"] and a["probe"] and a["lane"] is lane and a["era"] == lane.breaker.era
                for a in self.attempts.values()
            )
            if lane.breaker.state == HALF_OPEN:
                assert out == lane.breaker.out
            assert len(lane.features.running) == sum(
                a["held"] and a["lane"] is lane for a in self.attempts.values()
            )

    def teardown(self):
        if not hasattr(self, "r"):
            return
        again, decisions = self.make(), {}
        for name, args, want in self.log:
            try:
                got = getattr(again, name)(
                    *[decisions[a[0]] if type(a) is tuple else a for a in args]
                )
            except NoBackend as e:
                got = e
            if isinstance(got, Decision):
                decisions[got.id] = got
            assert said(got) == want
        assert state(again) == state(self.r)


def said(x):
    "What a call answered, comparable across routers."
    return (
        (x.id, x.backend, x.probability, x.mode, x.is_probe) if isinstance(x, Decision) else str(x)
    )


TestRouterMachine = RouterMachine.TestCase
TestRouterMachine.settings = settings(
    max_examples=120, stateful_step_count=50, deadline=None, suppress_health_check=list(HealthCheck)
)


# ---- what the machine found, or could find only by luck


def busy(n=3, policy=None, **kw):
    return Router([Backend(f"b{k}", capacity=4.0) for k in range(n)], policy, **kw)


def test_retry_after_the_lease_releases_once():
    """An attempt whose lease had expired must not be released a second time when a retry revives
    its decision.
    """
    r = busy(config=RouterConfig(lease_s=10.0))
    d = r.decide(Request(), 0.0)
    r.roll(11.0)
    assert sum(r._signals.in_flight) == 0 and r.retry(d, 12.0)
    assert (
        r.observe(Outcome(d.lanes[0].backend.name, 0.0, 11_500.0, decision=d.id))
        and sum(r._signals.in_flight) == 1
    )
    assert (
        r.cancel(d, 13.0)
        and r._signals.in_flight == [0, 0, 0]
        and not r._reservations.open
        and not r._reservations.lapsed
    )


def test_a_straggler_does_not_write_into_its_successors_place():
    r = busy(1, config=RouterConfig(lease_s=10.0))
    d = r.decide(Request(), 0.0)
    r.remove("b0")
    r.add(Backend("keeps", capacity=1.0), 5.0)
    assert len(r._signals.in_flight) == 2  # b0 still runs: its place is taken
    r.roll(11.0)
    r.add(Backend("new", capacity=1.0), 11.0)
    assert r._lanes["new"].slot == 0  # expired: a newcomer gets the place
    assert r.observe(Outcome("b0", 0.0, 11_500.0, False, "timeout", d.id))
    assert (r._signals.error[0], r._signals.latency[0], r._signals.in_flight[0]) == (0.0, 0.0, 0)


@pytest.mark.parametrize("bad", [nan, inf, -inf])
def test_a_time_that_is_none_changes_nothing(bad):
    r = busy()
    d = r.decide(Request(), 0.0)
    for call in (
        lambda: r.observe(Outcome(d.backend, bad, 5.0, decision=d.id)),
        lambda: r.decide(Request(), bad),
        lambda: r.retry(d, bad),
    ):
        with pytest.raises((ValueError, OverflowError)):
            call()
        assert (
            sum(r._signals.in_flight) == 1
            and list(r._reservations.open) == [d.id]
            and d.attempts == 1
            and r.counts["observed"] == 0
        )
    assert r.observe(Outcome(d.backend, 0.0, 5.0, decision=d.id))


@pytest.mark.parametrize(
    "policy, undisturbed",
    [(PredictedCost(), 0.5), (OwnPace(), 1.0)],
    ids=["predicted_cost", "own_pace"],
)
def test_a_dead_ticker_sheds_no_longer_than_its_table_lives(policy, undisturbed):
    "Nor does what it foresaw act any longer."
    r = busy(2, policy=policy, config=RouterConfig(explore=0.0))

    def share(now):
        return next(c.probability for c in r.rank(Request(), now) if c.backend == "b0")

    assert same(share(0.0), undisturbed)
    r.swap(table(0.0, dict(b0=900.0, b1=50.0), now_ms=50.0), 0.0)
    assert share(1.0) < 0.1 and share(60.0) < 0.1 and same(share(61.0), undisturbed)


def slow_down(r, name, now, n=10):
    for k in range(n):
        r.observe(Outcome(name, now + k / 10, 5_000.0, True))


def test_in_a_panic_slow_backends_serve_and_dead_ones_do_not():
    r = busy(3, breaker=SMALL)
    for n in ("b0", "b1"):
        slow_down(r, n, 0.0)
    for k in range(3):
        r.observe(Outcome("b2", 1.0, None, False, "refused"))
    assert {backend["state"] for backend in r.status(1.0)} == {OPEN}
    seen = [r.decide(Request(), 6.5) for _ in range(60)]
    assert (
        {d.backend for d in seen} == {"b0", "b1"}
        and {d.mode for d in seen} == {"panic"}
        and not any(d.is_probe for d in seen)
    )
    # waits are over: on trial they go on serving
    later = [r.decide(Request(), 30.0) for _ in range(60)]
    assert {d.backend for d in later} >= {"b0", "b1"} and sum(
        d.is_probe for d in later if d.backend == "b0"
    ) == SMALL.probes
    assert sum(d.backend == "b2" for d in later) <= SMALL.probes and all(
        d.is_probe for d in later if d.backend == "b2"
    )
    r.force("b0", OPEN, 31.0, "maintenance")
    r.force("b1", OPEN, 31.0, "maintenance")
    assert {(d.backend, d.last_resort) for d in (r.decide(Request(), 31.0) for _ in range(5))} == {
        ("b2", True)
    }
    r.force("b2", OPEN, 31.0, "maintenance")
    with pytest.raises(NoBackend, match="maintenance"):
        [r.decide(Request(), 31.0) for _ in range(5)]


def test_a_trial_gets_its_probes_and_no_call_more():
    r = busy(4, breaker=SMALL, config=RouterConfig(probe_share=0.5))
    for k in range(3):
        r.observe(Outcome("b0", 1.0, None, False, "refused"))
    seen = [
        d for d in (r.decide(Request(), 30.0 + k / 1e4) for k in range(200)) if d.backend == "b0"
    ]
    assert len(seen) == SMALL.probes == r._lanes["b0"].breaker.out and all(d.is_probe for d in seen)
    assert (
        r.cancel(seen[0], 30.1)
        and sum(r.decide(Request(), 30.1).backend == "b0" for _ in range(100)) == 1
    )


def test_a_panic_concerns_those_that_could_serve():
    """One slow model in a healthy fleet: its requests have nowhere else to go, everybody else's go
    on as usual.
    """
    r = Router(
        [
            Backend("big", models=("l",)),
            *(Backend(f"s{k}", models=("s",), capacity=9.0) for k in range(5)),
        ],
        breaker=SMALL,
    )
    slow_down(r, "big", 0.0)
    assert r.health("big", 1.0)[0] == OPEN
    assert (r.decide(Request(model="l"), 2.0).backend, r.decide(Request(model="l"), 2.0).mode) == (
        "big",
        "panic",
    )
    assert r.decide(Request(model="s"), 2.0).mode == "reactive"


def test_views_are_not_remade_for_every_request():
    "Also while a breaker is on trial and idle, in a panic, and beside a spent rate limit."
    made = []

    class Counting(RandomChoice):
        def plan(self, scene, s):
            made.append(1)
            return super().plan(scene, s)

    for what in ("trial", "panic", "limit", "tokens"):
        r = Router(
            [
                Backend(
                    f"b{k}",
                    rpm=60.0 if what == "limit" and not k else None,
                    tpm=60_000.0 if what == "tokens" else None,
                )
                for k in range(4)
            ],
            Counting(),
            breaker=SMALL,
        )
        if what == "panic":
            for k in range(3):
                slow_down(r, f"b{k}", 0.0)
        if what == "trial":
            for k in range(3):
                r.observe(Outcome("b0", 0.0, None, False, "refused"))
        made.clear()
        for k in range(300):
            d = r.decide(Request(tokens_in=20, tokens_out=5), 60.0 + k / 1000)
            r.cancel(d, 60.0 + k / 1000) if k > 20 else None
        # a request that is given back to a rate limit makes room for another one
        assert len(made) <= (100 if what == "limit" else 40), (what, len(made))


def test_a_clock_that_jumps_back_does_no_harm():
    r = Router([Backend("a", rpm=60.0), Backend("b", rpm=60.0)])
    with pytest.raises(NoBackend, match="rate limit"):
        [r.decide(Request(), 1e9 - 40) for _ in range(7)]
    assert r.decide(Request(), 1000.0).at_s == 1000.0  # the future was a mistake: no wait for it
    r = Router([Backend("a"), Backend("b")])
    r.decide(Request(), 1e9 - 40)
    r.add(Backend("c"), 1000.0)
    r.decide(Request(), 1000.0)
    first = r._views.kept[None, (None, None, None, None, 0.0, (), (), inf)]
    r.decide(Request(), 990.0)
    # a view from the future is not used
    assert r._views.kept[None, (None, None, None, None, 0.0, (), (), inf)] is not first


@settings(max_examples=150, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from([10, 100, 400, 900]), st.floats(0.0, 8.0)),
        min_size=5,
        max_size=80,
    ),
    st.sampled_from([1.0, 3.0, 30.0]),
    st.sampled_from([1_000.0, 5_000.0]),
)
def test_rate_limits_hold_in_every_minute(asks, rpm, tpm):
    r, used = (
        Router([Backend("a", rpm=rpm, tpm=tpm), Backend("b", tpm=tpm)]),
        defaultdict(lambda: [0, 0]),
    )
    now = 0.0
    for tokens, dt in asks:
        now += dt
        try:
            d = r.decide(Request(tokens_in=tokens), now)
        except NoBackend:
            continue
        use = used[d.backend, now // 60]
        use[0] += 1
        use[1] += tokens
        assert use[1] <= tpm and (d.backend == "b" or use[0] <= rpm)
    with pytest.raises(NoBackend, match="per minute"):
        r.decide(Request(tokens_in=6_000), now)


def test_rate_limits_let_the_whole_budget_through():
    r, served = Router([Backend("a", rpm=60.0, tpm=6_000.0)]), 0
    for k in range(600):
        try:
            r.decide(Request(tokens_in=60, tokens_out=40), 60.0 + k / 10)
            served += 1
        except NoBackend:
            pass
    assert served == 60


@pytest.mark.slow
@pytest.mark.parametrize(
    "policy, medians",
    [
        (PredictedCost(), (60, 80, 100, 120, 140, 160)),
        (OwnPace(draws=2), (100, 104, 124, 128, 132, 136)),
    ],
    ids=["predicted_cost", "own_pace"],
)
def test_retries_are_drawn_too_with_the_odds_they_claim(policy, medians):
    """An outage must not send every retry to one place; and the propensity of a retry is that of
    its own draw.
    """
    r = Router(
        [Backend(f"b{k}", capacity=8.0) for k in range(6)], policy, config=RouterConfig(explore=0.1)
    )
    r.swap(table(0.0, {f"b{k}": float(ms) for k, ms in enumerate(medians)}, now_ms=100.0), 0.0)
    seen, want = Counter(), Counter()
    for _ in range(6_000):
        d = r.decide(Request(), 1.0)
        second = r.retry(d, 1.0)
        view, place, known, at = d.again[0]
        signals = Signals(*known)
        for i, lane in enumerate(view.lanes):
            want[lane.backend.name] += (1 - view.explore) * view.plan.probabilities(signals, at)[
                i
            ] + view.explore / 5
        assert (
            view.lanes[place].backend.name == second != d.backend
            and 0 < d.attempt_probability(1) < 0.9
        )
        seen[second] += 1
        r.cancel(d, 1.0)
    assert (
        len(seen) == 6
        and chisquare([seen[k] for k in sorted(seen)], [want[k] for k in sorted(seen)]).pvalue
        > 1e-3
    )
    assert d.attempt_probability(0) == d.probability


@pytest.mark.slow
def test_a_decisions_probability_is_that_of_its_draw():
    "Probes, exploration and policy together, over many routers in the same state."

    def seeded(seed):
        r = Router(
            [Backend(f"b{k}", capacity=4.0 * (k + 1)) for k in range(4)],
            breaker=SMALL,
            config=RouterConfig(explore=0.1, probe_share=0.3, seed=seed),
        )
        r.swap(table(0.0, dict(b0=60.0, b1=90.0, b2=250.0, b3=None)), 0.0)
        for k in range(3):
            r.observe(Outcome("b0", 1.0, None, False, "refused"))
        return r

    odds = {c.backend: c.probability for c in seeded(0).rank(Request(), 30.0)}
    seen = Counter()
    for seed in range(3_000):
        d = seeded(seed).decide(Request(), 30.0)
        seen[d.backend] += 1
        assert same(d.probability, odds[d.backend])
    assert chisquare([seen[b] for b in odds], [3_000 * p for p in odds.values()]).pvalue > 1e-3


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.lists(medians, min_size=5, max_size=5), min_size=1, max_size=8),
    st.lists(st.sampled_from([1.0, 4.0, 20.0]), min_size=5, max_size=5),
    st.sampled_from(["threshold", "predicted_cost"]),
    st.sampled_from([0.3, 0.5]),
    st.sampled_from([1.0, 10.0]),
)
def test_a_forecast_alone_takes_no_more_than_the_cap(tables, capacity, name, cap, lift):
    r = Router(
        [Backend(f"b{k}", capacity=c) for k, c in enumerate(capacity)],
        POLICIES[name](),
        config=RouterConfig(explore=0.0),
        shed=ShedConfig(cap=cap, lift=lift),
    )
    for k, ms in enumerate(tables):
        r.swap(table(60.0 * k, {f"b{i}": m for i, m in enumerate(ms)}, k), 60.0 * k)
        lanes = r._lanes.values()
        assert (
            sum((1 - lane.weight) * lane.backend.capacity for lane in lanes)
            <= cap * sum(capacity) + 1e-9
        )
        assert all(lane.breaker.state == CLOSED for lane in lanes) and all(
            lane.weight >= 0.02 for lane in lanes
        )
        if name == "threshold":
            avoided = [c for c in r.rank(Request(), 60.0 * k + 1) if c.probability < 1e-9]
            gone = sum(
                (1 - r._lanes[c.backend].weight if c not in avoided else 1.0)
                * r._lanes[c.backend].backend.capacity
                for c in r.rank(Request(), 60.0 * k + 1)
            )
            assert gone <= 0.5 * sum(capacity) + 1e-6


def test_outcomes_late_double_and_orphaned():
    r = busy(config=RouterConfig(lease_s=10.0))
    d, twice, lost = (r.decide(Request(), 0.0) for _ in range(3))
    assert r.observe(Outcome(twice.backend, 0.0, 50.0, decision=twice.id)) and not r.observe(
        Outcome(twice.backend, 0.0, 50.0, decision=twice.id)
    )
    assert not r.observe(Outcome("b0", 0.0, 50.0, decision=999)) and not r.observe(
        Outcome(d.backend, 0.0, 50.0, decision=d.id, attempt=7)
    )
    with pytest.raises(ValueError, match="ran on"):
        r.observe(Outcome("zz", 0.0, 50.0, decision=d.id))
    with pytest.raises(ValueError, match="not in the fleet"):
        r.observe(Outcome("zz", 0.0, 50.0))
    r.roll(10.0)
    assert (r.counts["expired"], sum(r._signals.in_flight)) == (2, 0)
    assert r.observe(Outcome(d.backend, 0.0, 11_000.0, decision=d.id)) and not r.observe(
        Outcome(d.backend, 0.0, 11_000.0, decision=d.id)
    )
    assert not r.cancel(lost, 12.0)
    assert r.counts == dict(
        decided=3,
        observed=2,
        cancelled=0,
        expired=2,
        late=1,
        ignored=4,
        progress_ignored=0,
        corrected=0,
        unclassified=0,
    )


# ---- threads, tasks, members


def view_of(r):
    "What a router would draw from."
    return r._views.make(Request(), 1.0, r.table, r.policy)


def balanced(r):
    assert set(r._signals.in_flight) <= {0} and not r._reservations.open
    for lane in r._lanes.values():
        assert lane.breaker.out == 0 and not lane.features.running


def hammer(r, clock, seed, calls, tally):
    rng, open_ = Random(seed), []
    for _ in range(calls):
        now = next(clock) * 1e-3
        try:
            d = r.decide(Request(tokens_in=10), now)
        except NoBackend:
            tally["none"] += 1
            continue
        tally["decided"] += 1
        if rng.random() < 0.2:
            r.retry(d, now)
        open_.append(d)
        if rng.random() < 0.05:
            r.swap(table(now, {b.name: rng.uniform(50, 600) for b in r.backends}), now)
        if len(open_) > rng.randrange(8) or _ == calls - 1:
            for d in open_:
                if rng.random() < 0.1:
                    tally["cancelled"] += r.cancel(d, now)
                    continue
                for k, lane in enumerate(d.lanes):
                    ok = rng.random() > 0.05  # seldom enough that not all six are shut off at once
                    tally["observed"] += r.observe(
                        Outcome(
                            lane.backend.name,
                            d.at_s,
                            max(now - d.at_s, 0.0) * 1000,
                            ok,
                            None if ok else "refused",
                            d.id,
                            k,
                        )
                    )
            open_.clear()
    for d in open_:
        tally["cancelled"] += r.cancel(d, next(clock) * 1e-3)


def test_eight_threads_leave_the_books_balanced():
    r, clock, tallies, pause = (
        busy(6, breaker=SMALL),
        count(1),
        [Counter() for _ in range(8)],
        sys.getswitchinterval(),
    )
    sys.setswitchinterval(1e-5)
    try:
        threads = [Thread(target=hammer, args=(r, clock, k, 400, tallies[k])) for k in range(8)]
        for t in threads:
            t.start()
        for t in threads:
            t.join()
    finally:
        sys.setswitchinterval(pause)
    total = sum(tallies, Counter())
    balanced(r)
    assert total["decided"] > 1_000
    assert {k: r.counts[k] for k in ("decided", "observed", "cancelled")} == {
        k: total[k] for k in ("decided", "observed", "cancelled")
    }
    assert r.counts["expired"] == r.counts["ignored"] == 0


def test_asyncio_tasks_may_share_a_router():
    r, rng = busy(4), Random(0)

    async def call(k):
        d = r.decide(Request(), k * 1e-3)
        try:
            await asyncio.sleep(rng.random() * 0.01)
        except asyncio.CancelledError:
            r.cancel(d, 1.0)
            raise
        r.observe(Outcome(d.backend, d.at_s, 5.0, decision=d.id))

    async def main():
        tasks = [asyncio.create_task(call(k)) for k in range(300)]
        await asyncio.sleep(0.003)
        for t in tasks[::7]:
            t.cancel()
        return await asyncio.gather(*tasks, return_exceptions=True)

    ends = asyncio.run(main())
    balanced(r)
    gone = sum(isinstance(e, asyncio.CancelledError) for e in ends)
    assert gone > 0 and r.counts["observed"] == 300 - gone and r.counts["cancelled"] <= gone


@pytest.mark.slow
def test_hundreds_join_and_leave_and_memory_stays_flat():
    r, rng, now, ids = busy(4), Random(1), 0.0, count()

    def churn(rounds):
        nonlocal now
        for _ in range(rounds):
            names = [f"x{next(ids)}" for _ in range(10)]
            for n in names:
                r.add(Backend(n), now)
            open_ = []
            for _ in range(60):
                now += 0.5
                open_.append(r.decide(Request(model=rng.choice("abc")), now))
            for d in open_[:-5]:
                r.observe(Outcome(d.backend, d.at_s, 400.0, decision=d.id))
            for n in names:
                r.remove(n)
            for d in open_[-5:]:
                r.observe(Outcome(d.backend, d.at_s, 400.0, decision=d.id))
            r.swap(table(now, {b.name: 100.0 for b in r.backends}), now)
            r.roll(now)

    churn(70)  # windows are full after 30 steps
    tracemalloc.start()
    try:
        churn(5)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        churn(30)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert (
        grown < 60_000
        and len(r._signals.in_flight) <= 4 + 2 * 10
        and len(r._members.retired) <= 10
        and len(r.shedder.holds) == 4
    )
    balanced(r)


def test_two_hundred_backends():
    r = Router([Backend(f"b{k}", capacity=4.0) for k in range(200)])
    r.swap(table(0.0, {f"b{k}": 60.0 + k for k in range(200)}), 0.0)
    seen = Counter(r.decide(Request(), 1.0 + k / 1000).backend for k in range(3_000))
    assert len(seen) > 150 and max(seen.values()) < 60
    assert len(r.rank(Request(), 5.0)) == 200 and isfinite(r.decide(Request(), 5.0).probability)


def fail(r, name, now, error="error", sent=None):
    r.observe(
        Outcome(
            name,
            now if sent is None else sent,
            0.0 if sent is None else (now - sent) * 1000.0,
            False,
            error,
        )
    )


def test_who_says_that_its_limit_is_spent_gets_nothing_until_the_next_minute():
    r = busy(2)
    fail(r, "b0", 70.0, "rate_limited")
    assert {brief(r, 70.0 + k * 0.4).backend for k in range(120)} == {"b1"}
    assert "rate limit" in next(c.reason for c in r.rank(Request(), 100.0) if c.backend == "b0")
    assert {r.decide(Request(), 121.0 + k * 0.1).backend for k in range(40)} == {"b0", "b1"}


def test_errors_that_nothing_confirms_are_forgotten():
    r = busy(2, config=RouterConfig(forget_s=60.0))
    fail(r, "b0", 1.0)

    def rate(now):  # that rules go by; people are told the share of its newest outcomes
        return r.decide(Request(), now).signals.error[0]

    first = rate(1.0)
    for t in range(1, 123, 2):
        brief(r, float(t))
    assert first == pytest.approx(0.1)
    assert rate(121.0) == pytest.approx(0.1 * 2.718281828**-2, rel=0.1)


def test_a_trial_that_ends_well_ends_the_error_rate():
    r = busy(2, breaker=BreakerConfig(open_s=1.0, jitter=0.0, probes=1, probe_success=1))
    for k in range(5):
        fail(r, "b0", 1.0 + k / 10)
    assert r.status(2.0)[0]["state"] == OPEN and r.status(2.0)[0]["error_rate"] > 0.4
    for k in range(200):
        d = r.decide(Request(), 5.0 + k / 100)
        if d.is_probe:
            break
    r.observe(Outcome("b0", d.at_s, 10.0, decision=d.id))
    assert r.status(8.0)[0]["state"] == CLOSED and r.status(8.0)[0]["error_rate"] == 0.0


def brief(r, now):
    "A request that is over at once."
    d = r.decide(Request(), now)
    r.cancel(d, now)
    return d


def head_room(now, **rooms):
    return ForecastTable(
        1,
        now,
        1e9,
        {
            n: Forecast(n, now, 1e6, (1.0,) * 7, (1.0,) * 7, None, held, most)
            for n, (held, most) in rooms.items()
        },
    )


@pytest.mark.parametrize("held, waits", [(0.0, True), (9.0, False)])
def test_probes_wait_while_others_have_room(held, waits):
    r = busy(
        2,
        breaker=BreakerConfig(
            open_s=1.0, max_open_s=1.0, patient_s=50.0, backoff=100.0, jitter=0.0, probes=1
        ),
    )
    r.swap(head_room(0.0, b0=(0.0, 10.0), b1=(held, 10.0)), 0.0)
    for k in range(5):
        fail(r, "b0", 1.0 + k / 10)
    r.health("b0", 2.5)
    d = next(
        d
        for d in (r.decide(Request(), 2.5 + k / 1000) for k in range(500))
        if d.is_probe or not r.cancel(d, 2.6)
    )  # the first wait is short for all
    r.observe(Outcome("b0", d.at_s, 0.0, False, "error", decision=d.id))
    opened = d.at_s
    early = [brief(r, opened + 2.0 + k / 1000).is_probe for k in range(300)]
    assert any(early) is not waits
    assert any(brief(r, opened + 51.0 + k / 1000).is_probe for k in range(300))


def full(r, n=3, occupied=10.0, most=10.0):
    r.swap(
        ForecastTable(
            1,
            0.0,
            600.0,
            {
                f"b{k}": Forecast(
                    f"b{k}", 0.0, 600.0, (1.0,) * 7, (1.0,) * 7, None, occupied=occupied, most=most
                )
                for k in range(n)
            },
        ),
        0.0,
    )


BOTH = pytest.mark.parametrize(
    "policy", [PredictedCost, OwnPace], ids=["predicted_cost", "own_pace"]
)


def refusing(policy=PredictedCost, callers_retry=True, took_ms=5.0, served=True, **of_others):
    r = busy(
        policy=policy(), config=RouterConfig(explore=0.0, callers_retry=callers_retry, slo_ms=300.0)
    )
    full(r, **of_others)
    if served:
        r.observe(Outcome("b0", 0.0, 5.0, True))
    for k in range(5):
        r.observe(Outcome("b0", 0.1 * k, took_ms, False, "500"))
    return r


@BOTH
def test_what_fails_at_once_is_tried_where_others_are_full_and_as_often_as_said(policy):
    r, seen = refusing(policy), Counter()
    said = {c.backend: c.probability for c in r.rank(Request(), 1.0)}
    for _ in range(3000):
        d = r.decide(Request(), 1.0)
        seen[d.backend] += 1
        r.cancel(d, 1.0)
    assert said["b0"] == pytest.approx(0.95) and said["b1"] > 0 and same(sum(said.values()), 1.0)
    for n, p in said.items():
        assert abs(seen[n] / 3000 - p) < 0.04


@pytest.mark.parametrize("occupied, chance", [(10.0, 0.95), (3.0, 0.0)])
@BOTH
def test_what_fails_at_once_is_tried_first_before_its_breaker_opens_if_old_answers_come_in_between(
    policy, occupied, chance
):
    r = busy(
        policy=policy(),
        config=RouterConfig(explore=0.0, callers_retry=True, slo_ms=300.0),
        breaker=BreakerConfig(failure_rate=1.0),
    )
    full(r, occupied=occupied)
    for k in range(30):
        r.observe(Outcome("b0", 0.02 * k, 5.0, k % 3 == 0, None if k % 3 == 0 else "500"))
    said = {c.backend: c.probability for c in r.rank(Request(), 1.0)}
    assert r.health("b0", 1.0)[0] == "closed" and same(sum(said.values()), 1.0)
    assert said["b0"] == pytest.approx(chance)


@pytest.mark.parametrize(
    "how",
    [
        dict(callers_retry=False),
        dict(took_ms=5_000.0),
        dict(took_ms=None),
        dict(occupied=0.0),
        dict(served=False),
    ],
    ids=str,
)
def test_else_what_is_shut_off_gets_nothing(how):
    r = refusing(**how)
    assert (
        r.health("b0", 1.0)[0] == OPEN
        and {c.backend: c.probability for c in r.rank(Request(), 1.0)}["b0"] == 0.0
    )


@BOTH
def test_what_begins_to_hang_swallows_no_more_than_it_could_hold(policy):
    r = refusing(policy)
    for k in range(500):
        r.decide(Request(), 1.0 + k / 1000)
    assert r.in_flight()["b0"] == 4
    assert {c.backend: c.probability for c in r.rank(Request(), 1.6)}["b0"] == 0.0 and same(
        sum(c.probability for c in r.rank(Request(), 1.6)), 1.0
    )


@BOTH
def test_room_that_nobody_has_divides_nothing(policy):
    r = refusing(policy, occupied=0.0, most=0.0)
    assert same(sum(c.probability for c in r.rank(Request(), 1.0)), 1.0)
    with pytest.raises(ValueError, match="gateways"):
        RouterConfig(gateways=0)


# ---- progress


def untold(r):
    "Everything a router holds and says, but for the count of reports that it ignored."
    counts = {k: n for k, n in r.counts.items() if k != "progress_ignored"}
    return (
        counts,
        r.status(100.0),
        r._signals.frozen(),
        [(lane.nowcast.new_s, lane.nowcast.new_tok) for lane in r._lanes.values()],
    )


def ignored(r, decision, tokens, now):
    "A report that must be counted and change nothing."
    before, n = untold(r), r.counts["progress_ignored"]
    return (
        r.progress(decision, tokens, now) is False
        and untold(r) == before
        and r.counts["progress_ignored"] == n + 1
    )


def test_progress_is_the_whole_number_of_tokens_so_far():
    r = busy(1)
    d = r.decide(Request(tokens_out=100), 0.0)
    left = [
        r.progress(d, tokens, float(k + 1)) and r.status(9.0)[0]["work_left"]
        for k, tokens in enumerate((10, 50, 50, 85, 99, 300))
    ]
    # an answer that is longer than expected is nearly done, never done
    assert left == [0.9, 0.5, 0.5, 0.15, 0.1, 0.1]
    assert r.counts["progress_ignored"] == 0 and r._signals.load[0] == pytest.approx(0.1)
    lane = r._lanes["b0"]
    # the first report says when the stream began
    assert (lane.nowcast.new_s, lane.nowcast.new_tok) == (5.0, 290)
    r.observe(Outcome("b0", 0.0, 7_000.0, decision=d.id, tokens_out=301))
    # the end of the answer is the last report
    assert r._signals.load == [0.0] and lane.nowcast.pace_s == pytest.approx(6.0 / 291.0)


def test_progress_takes_a_decision_or_its_id():
    r = busy(1)
    d = r.decide(Request(tokens_out=100), 0.0)
    assert (
        r.progress(d, 20, 1.0)
        and r.progress(d.id, 40, 2.0)
        and r._signals.load[0] == pytest.approx(0.6)
    )


@pytest.mark.parametrize(
    "tokens, now",
    [
        (4, 3.0),
        (-1, 3.0),
        (nan, 3.0),
        (inf, 3.0),
        (-inf, 3.0),
        (10**400, 3.0),
        (1e300, 3.0),
        (9, 1.9),
        (9, -1.0),
        (9, nan),
        (9, inf),
        (9, -inf),
    ],
)
def test_a_report_that_makes_no_sense_changes_nothing(tokens, now):
    r = busy(2)
    d = r.decide(Request(tokens_out=10), 0.0)
    assert r.progress(d, 5, 2.0) and ignored(r, d, tokens, now)
    # the next good one counts, from the last good one on
    assert r.progress(d, 5, 2.0) and r.progress(d, 6, 3.0)
    assert r._signals.load[0] == pytest.approx(0.4) and r._lanes["b0"].nowcast.new_s == 1.0


def test_progress_of_what_does_not_run_changes_nothing():
    r = busy(2, config=RouterConfig(lease_s=10.0))
    done, gone, lapsed = (r.decide(Request(tokens_out=10), 0.0) for _ in range(3))
    r.observe(Outcome(done.backend, 0.0, 50.0, decision=done.id))
    r.cancel(gone, 1.0)
    r.roll(10.0)
    assert r.counts["expired"] == 1
    for d in (done, gone, lapsed):
        assert ignored(r, d, 5, 11.0) and ignored(r, d.id, 5, 11.0)
    assert ignored(r, 10**9, 5, 11.0) and ignored(r, 0, 5, 11.0) and ignored(r, -1, 5, 11.0)


def test_progress_concerns_the_newest_attempt():
    r = busy(2)
    d = r.decide(Request(tokens_out=10), 0.0)
    first = d.backend
    assert r.progress(d, 8, 1.0) and r.retry(d, 2.0) not in (None, first)
    second = d.lanes[1].backend.name
    load = {n: r._signals.load[lane.slot] for n, lane in r._lanes.items()}
    # a hedge begins anew; the first goes on beside it
    assert load == {first: pytest.approx(0.2), second: 1.0}
    assert r.progress(d, 3, 3.0) and r._signals.load[r._lanes[second].slot] == pytest.approx(0.7)
    assert r._signals.load[r._lanes[first].slot] == pytest.approx(0.2) and ignored(r, d, 5, 2.9)
    r.observe(Outcome(second, 2.0, 1_500.0, False, "error", d.id, 1))
    assert ignored(r, d, 9, 4.0)  # the newest has ended, whatever still runs
    assert r.observe(
        Outcome(first, 0.0, 5_000.0, decision=d.id, tokens_out=10)
    ) and r._signals.load == [0.0, 0.0]


@pytest.mark.parametrize(
    "decision, tokens",
    [
        (None, True),
        (None, False),
        (None, "12"),
        (None, None),
        (None, b"1"),
        (None, 1j),
        (None, [1]),
        (True, 1),
        ("1", 1),
        (1.0, 1),
        (object(), 1),
    ],
)
def test_progress_refuses_what_is_no_number_and_no_decision(decision, tokens):
    """A mistake in the caller's program is an error, not a strange report: a bool is no number of
    tokens.
    """
    r = busy(1)
    d = r.decide(Request(tokens_out=10), 0.0)
    before = untold(r)
    with pytest.raises(
        TypeError, match="tokens must be a number" if decision is None else "a decision or its id"
    ):
        r.progress(d if decision is None else decision, tokens, 1.0)
    assert untold(r) == before and r.counts["progress_ignored"] == 0 and r.progress(d, 1, 1.0)


OPS = st.tuples(
    st.sampled_from(
        ["decide", "retry", "progress", "progress", "progress", "observe", "cancel", "roll"]
    ),
    st.integers(0, 7),
    st.integers(0, 130),
    st.floats(0.0, 4.0),
)


def ended(d, tokens, now):
    "How one of a decision's attempts ends, by chance."
    k = tokens % d.attempts
    ok = tokens % 3 > 0
    return Outcome(
        d.lanes[k].backend.name,
        d.at_s,
        (now - d.at_s) * 1000.0,
        ok,
        None if ok else "error",
        d.id,
        k,
        tokens_out=tokens,
    )


def check_work_left(r):
    "The load of a backend is the sum of what its open attempts have left."
    left = defaultdict(float)
    for d in r._reservations.open.values():
        for k, lane in enumerate(d.lanes):
            left[lane.slot] += d.left[k] if d.held >> k & 1 else 0.0
    s = r._signals
    for k in range(3):
        assert s.load[k] == pytest.approx(left[k], abs=1e-9) and s.load[k] >= 0.0
        assert s.in_flight[k] or s.load[k] == 0.0
    assert 0.0 <= s.retried <= 1.0


@settings(max_examples=300, deadline=None)
@given(st.lists(OPS, max_size=60), st.sampled_from([None, 30.0, 97.0]))
def test_the_work_left_is_what_open_attempts_have_left(ops, tokens_out):
    """Whatever ends in whatever order: the load of a backend is the sum of what its open attempts
    have left, and 0 where nothing runs.
    """
    r, now, made = busy(3, config=RouterConfig(lease_s=12.0, explore=0.3)), 0.0, []
    calls = dict(
        retry=lambda d, tokens: r.retry(d, now),
        progress=lambda d, tokens: r.progress(d, tokens, now),
        cancel=lambda d, tokens: r.cancel(d, now),
        observe=lambda d, tokens: r.observe(ended(d, tokens, now)),
    )
    for what, who, tokens, dt in ops:
        now += dt
        if what == "roll":
            r.roll(now)
        elif what == "decide" or not made:
            made.append(r.decide(Request(tokens_out=int(tokens_out or 0)), now))
        else:
            calls[what](made[-1 - who % len(made)], tokens)
        check_work_left(r)
    for d in made:
        r.cancel(d, now)
    assert r._signals.load == [0.0] * 3


# ---- the nowcast at work


def two_streams(quicker):
    """One stream of 100 tokens on each of two backends. After two seconds the quicker one has
    brought 90 and gets all requests, the other one 40.
    """
    r = busy(2, config=RouterConfig(explore=0.0))
    streams = {}
    while len(streams) < 2:
        d = r.decide(Request(tokens_out=100), 0.0)
        streams[d.backend] = d
    for second in (1.0, 2.0):
        for name, d in streams.items():
            assert r.progress(d, int((45 if name == quicker else 20) * second), second)
        last = r.decide(Request(), second)
        r.cancel(last, second)
    assert last.backend == quicker
    return r, streams


def test_what_a_stream_tells_counts_for_the_very_next_request():
    r, streams = two_streams("b0")
    # within the second for which views are kept, b0 comes to a standstill
    assert r.progress(streams["b0"], 90, 2.9) and r.progress(streams["b1"], 58, 2.9)
    odds = {c.backend: c.probability for c in r.rank(Request(), 2.95)}
    assert odds == {"b0": 0.0, "b1": 1.0}
    assert r.decide(Request(), 2.95).backend == "b1"


def test_reports_that_come_in_one_batch_all_count():
    r, streams = two_streams("b1")
    r.progress(streams["b0"], 58, 2.9)
    r.cancel(r.decide(Request(), 2.9), 2.9)
    r.progress(streams["b1"], 90, 2.9)  # in the same moment, after somebody has decided
    assert r.decide(Request(), 2.93).backend == "b0"


def test_rank_tells_what_decide_would_do_and_leaves_reports_to_it():
    r, streams = two_streams("b0")
    r.progress(streams["b0"], 90, 2.9)
    before = state(r)
    r.rank(Request(), 2.95)
    assert state(r) == before
    before = r._signals.slow[0]
    r.decide(Request(), 2.95)
    assert r._signals.slow[0] > 1.1 * before


def test_a_late_word_of_a_backend_that_has_left_is_not_taken_for_that_of_a_newcomer():
    r, streams = two_streams("b0")
    slot = r._lanes["b0"].slot
    r.progress(streams["b0"], 90, 2.9)
    r.remove("b0")
    r.cancel(streams["b0"], 2.9)
    r.add(Backend("new", capacity=4.0), 2.9)
    assert r._lanes["new"].slot == slot
    r.decide(Request(), 2.95)
    assert r._lanes["new"].nowcast.pace_s == 0.0
    assert r._signals.slow[slot] == 1.0  # nobody knows it yet


def serve(
    r, pace, until, start=0.0, every=0.5, streams=lambda name: True, tokens=100, patience_s=25.0
):
    """Requests at a steady rate to backends that need `pace(name, now)` seconds per token (inf:
    they stand still): [(when, to whom)].
    """
    sent, running, due, now = [], [], start, start
    while now < until:
        for job in list(running):
            d, done, told_s = job
            job[1] = done = done + 0.25 / pace(d.backend, now)
            ended = done >= tokens
            if ended or now - d.at_s >= patience_s:
                running.remove(job)
                seen = tokens if ended else int(done) if streams(d.backend) else 0
                r.observe(
                    Outcome(
                        d.backend,
                        d.at_s,
                        (now - d.at_s) * 1000.0,
                        ended,
                        None if ended else "timeout",
                        d.id,
                        tokens_out=seen,
                    )
                )
            elif streams(d.backend) and now - told_s >= 1.0:
                r.progress(d, int(done), now)
                job[2] = now
        while due <= now:
            d = r.decide(Request(), now)
            running.append([d, 0.0, now])
            sent.append((now, d.backend))
            due += every
        now += 0.25
    return sent


def share(sent, name, since, until):
    there = [n == name for at, n in sent if since <= at < until]
    return sum(there) / len(there)


def pace_ms(r, name, now):
    return next(s["pace_ms"] for s in r.status(now) if s["backend"] == name)


def test_a_stream_that_stands_still_is_seen_within_seconds():
    r = busy(3)

    def stall(name, now):
        return inf if name == "b0" and now >= 30.0 else 0.02

    sent = serve(r, stall, 30.0)
    usual = pace_ms(r, "b0", 30.0)
    assert usual == pytest.approx(20.0, rel=0.05) and share(sent, "b0", 10.0, 30.0) > 0.2
    r = busy(3)
    sent = serve(r, stall, 33.0)
    assert pace_ms(r, "b0", 33.0) > 5 * usual and pace_ms(r, "b1", 33.0) == pytest.approx(
        usual, rel=0.05
    )
    # nothing has failed yet
    assert r.status(33.0)[0]["state"] == CLOSED and r.status(33.0)[0]["error_rate"] == 0.0
    r = busy(3)
    sent = serve(r, stall, 50.0)
    assert share(sent, "b0", 32.0, 50.0) == 0.0


WHO_STREAMS = {
    "all": lambda name: True,
    "nobody": lambda name: False,
    "the others": lambda name: name != "b0",
    "only the sick one": lambda name: name == "b0",
}


def sick_for_a_minute(factor):
    "Seconds per token: `b0` is `factor` times as slow from 30 to 90 s."
    return lambda name, now: 0.02 * (factor if name == "b0" and 30.0 <= now < 90.0 else 1.0)


@pytest.mark.parametrize("every", [0.5, 0.15])
@pytest.mark.parametrize("factor", [1.5, 3.0, 10.0, inf])
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("who", ["all", "only the sick one"])
def test_a_backend_that_recovers_is_used_again_within_five_minutes(who, n, factor, every):
    """Though nothing tells of it but a request that is sent there to see; and it is avoided while
    it is slow.
    """
    sent = serve(busy(n), sick_for_a_minute(factor), 420.0, every=every, streams=WHO_STREAMS[who])
    assert share(sent, "b0", 10.0, 30.0) > 0.2
    assert share(sent, "b0", 45.0, 90.0) < (0.15 if factor > 2.0 else 0.35)
    assert share(sent, "b0", 90.0, 390.0) > 0.0 and share(sent, "b0", 390.0, 420.0) > 0.1


@pytest.mark.parametrize("factor", [1.5, 10.0, inf])
@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("who", ["nobody", "the others"])
def test_without_streams_it_takes_half_an_hour_but_not_for_ever(who, n, factor):
    sent = serve(busy(n), sick_for_a_minute(factor), 2500.0, streams=WHO_STREAMS[who])
    assert share(sent, "b0", 10.0, 30.0) > 0.2
    assert share(sent, "b0", 45.0, 90.0) < (0.15 if factor > 2.0 else 0.35)
    assert share(sent, "b0", 2400.0, 2500.0) > 0.1


def test_whole_answers_and_streams_in_the_same_fleet():
    """Paces are told in the same unit; as fast is as good, and either one is avoided where it is
    slow.
    """
    for slow in (None, "b0", "b1"):
        r = busy(2)
        sent = serve(
            r,
            lambda name, now: 0.06 if name == slow else 0.02,
            60.0,
            streams=lambda name: name == "b0",
        )
        for name in ("b0", "b1"):
            assert pace_ms(r, name, 60.0) == pytest.approx(
                60.0 if name == slow else 20.0, rel=0.15
            ), (slow, name)
            if slow is None:
                assert 0.25 < share(sent, name, 20.0, 60.0) < 0.75
        if slow:
            assert share(sent, slow, 20.0, 60.0) < 0.1


@pytest.mark.parametrize("after_a_retry", [False, True])
def test_a_stream_without_its_first_token_is_slow_after_four_seconds(after_a_retry):
    r = busy(2)
    d = r.decide(Request(tokens_out=100), 0.0)
    start = 0.0
    if after_a_retry:
        r.observe(Outcome(d.backend, 0.0, 3_000.0, False, "error", d.id))
        r.retry(d, 3.0)
        start = 3.0
    name = d.lanes[-1].backend.name
    for t in (1.0, 2.0, 3.0, 4.0):
        assert r.progress(d, 0, start + t)
    r.roll(start + 4.0)
    assert pace_ms(r, name, 9.0) is None and r._signals.load[r._lanes[name].slot] == 1.0
    assert r.progress(d, 0, start + 5.0)
    r.roll(start + 5.0)
    assert pace_ms(r, name, 9.0) > 100_000.0
    assert {brief(r, start + 5.0).backend for _ in range(20)} == {"b0", "b1"} - {name}


def test_a_time_out_counts_as_the_work_of_a_usual_answer():
    """Nobody knows how long its answer would have been.

    It must not look as if one token had taken all the time.
    """
    r = busy(2)
    for k in range(40):
        r.observe(Outcome("b0", float(k), 2_000.0, tokens_in=400, tokens_out=98))
    r.observe(Outcome("b0", 50.0, 3_000.0, False, "timeout", tokens_in=400))
    assert pace_ms(r, "b0", 60.0) == pytest.approx(20.0 + 0.3 * 10.0)
    plain = busy(2)  # nobody counts tokens: an answer is one unit of work
    for k in range(40):
        plain.observe(Outcome("b0", float(k), 2_000.0))
    # perhaps only long: no more than twice as slow
    plain.observe(Outcome("b0", 50.0, 60_000.0, False, "timeout"))
    assert pace_ms(plain, "b0", 60.0) == pytest.approx(2_000.0 + 0.3 * 2_000.0)


def test_a_wrong_time_does_not_spoil_the_paces():
    "A time that is none, a clock that was in the future for a while, and an outcome from long ago."
    r = busy(3)
    d = r.decide(Request(tokens_out=100), 0.0)
    r.progress(d, 10, 1.0)
    r.progress(d, 20, 2.0)
    for bad in (nan, inf, -inf):
        with pytest.raises((ValueError, OverflowError)):
            r.decide(Request(), bad)
        with pytest.raises((ValueError, OverflowError)):
            r.roll(bad)
    r.roll(2.0)
    assert pace_ms(r, "b0", 2.0) == pytest.approx(100.0)
    r.progress(d, 30, 3.0)
    assert r.observe(Outcome("b1", -5_000.0, 2_000.0, tokens_out=100)) and isfinite(
        r._signals.slow[1]
    )  # the first that is known of b1
    r.roll(500.0)
    assert r.progress(d, 50, 4.0)
    r.roll(4.0)
    assert pace_ms(r, "b0", 4.0) == pytest.approx(50.0)  # and the present is heard again
    for k in range(30):
        r.observe(Outcome("b1", 10.0 + k, 1_000.0, tokens_out=100))
        r.roll(11.0 + k)
    assert pace_ms(r, "b1", 41.0) == pytest.approx(10.0, rel=0.01)


def test_a_report_from_a_clock_in_the_far_future_is_forgotten_within_seconds():
    n = Nowcast()
    n.stream(1e12, 5.0)
    n.fold(0.0, 0.02)
    assert n.pace_s > 100.0
    for second in range(1, 16):
        n.stream(1.0, 50.0)
        n.fold(float(second), 0.02)
    assert n.pace_s == pytest.approx(0.02, rel=0.05)


def test_a_new_stream_is_not_mixed_with_one_of_an_hour_ago():
    n = Nowcast()
    for second in range(20):
        n.stream(10.0, 1.0 if second > 10 else 400.0)
        n.fold(float(second), 0.02)
    assert n.pace_s > 1.0
    for second in range(20, 40):
        n.fold(float(second), 0.02)
    n.stream(1.0, 50.0)
    n.fold(40.0, 0.02)
    assert n.pace_s == pytest.approx(0.02)


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["stream", "answer", "fold"]),
            st.floats(0.0, 1e12) | st.sampled_from([0.0, 1e-300, 1e300]),
            st.sampled_from([0, 0, 1, 40, 10**9]),
            st.floats(-1e9, 1e9),
        ),
        max_size=40,
    ),
    st.sampled_from([0.0, 1e-6, 0.02, 1e6]),
)
def test_a_pace_is_always_a_number(ops, usual_s):
    n = Nowcast()
    for what, x, tokens, now in ops:
        if what == "stream":
            n.stream(x, tokens)
        if what == "answer":
            n.answer(x, tokens % 2 > 0, now)
        if what == "fold":
            n.fold(now, usual_s)
        assert 0.0 <= n.pace_s < inf and n.heard_s < inf


@given(st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=9))
def test_the_usual_pace_of_the_others(paces):
    known = sorted(paces)
    for i, own in enumerate(known):
        assert others_pace_s(known, own) == usual_pace_s(known[:i] + known[i + 1 :])


# ---- own pace


def paced(n, seed=0, change=False, again=False, gateways=1, draws=3):
    "A plan of own pace over a mixed fleet, its signals, and what it was made of."
    rng = Random(seed)
    sc, s = scene_of(n, seed)
    s.load, s.slow = (
        [rng.random() * 6 for _ in range(n)],
        [(0.02 * rng.uniform(0.8, 1.3)) ** 6 for _ in range(n)],
    )
    s.error, s.retried = [rng.choice((0.0, rng.random() * 0.2)) for _ in range(n)], rng.random()
    sc = Scene(
        sc.backends,
        sc.slots,
        sc.weight,
        sc.p50_ms,
        sc.p_slow,
        sc.step_ms,
        sc.cost_usd,
        sc.slo_ms,
        change=tuple(rng.uniform(0.9, 1.3) for _ in range(n)) if change else (),
        again=again,
    )
    return OwnPace(draws=draws, gateways=gateways).plan(sc, s), s, sc


PACED = {
    "alone": {},
    "a forecast": dict(change=True),
    "four gateways": dict(gateways=4),
    "both": dict(change=True, gateways=4),
    "both, of two": dict(change=True, gateways=4, draws=2),
}


@pytest.mark.slow
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("how", PACED)
def test_the_odds_of_own_pace_are_those_of_its_draws(how, n):
    plan, s, _ = paced(n, seed=n, **PACED[how])
    rng, draws = Random(7), 20_000
    p, seen = (
        plan.probabilities(s, 1.0),
        Counter(plan.choose(rng.random, s, 1.0) for _ in range(draws)),
    )
    assert same(sum(p), 1.0) and all(p[k] > 0.0 for k in seen)
    big = [k for k in range(n) if p[k] * draws >= 5.0]
    got, want = [seen[k] for k in big], [p[k] * draws for k in big]
    got.append(draws - sum(got))
    want.append(draws - sum(want))
    if want[-1] < 5.0:
        got[-2:], want[-2:] = [sum(got[-2:])], [sum(want[-2:])]
    if len(got) == 1:
        assert got[0] == draws
    else:
        assert chisquare(got, [w * draws / sum(want) for w in want]).pvalue > 1e-4


def every_draw(plan, s, parts, draws):
    """Chances by position: each draw falls into one of these parts of 0..1, and every combination
    is tried.
    """
    edges, want = [0.0, *accumulate(parts)], [0.0] * len(plan.scores(s, 1.0))
    middle = [(a + b) / 2 for a, b in zip(edges, edges[1:])]
    for drawn in product(range(len(parts)), repeat=draws):
        want[plan.choose(iter([middle[i] for i in drawn]).__next__, s, 1.0)] += prod(
            parts[i] for i in drawn
        )
    return want


@settings(max_examples=150, deadline=None)
@given(
    st.integers(2, 5) | st.sampled_from([10, 11, 40]),
    st.integers(0, 10**6),
    st.sampled_from(
        [{}, dict(change=True), dict(gateways=2), dict(change=True, gateways=2, draws=2)]
    ),
    st.booleans(),
)
def test_the_odds_of_own_pace_are_exact(n, seed, how, tied):
    "Every possible draw, one by one, with its own probability."
    if how.get("gateways"):
        n = min(n, 5)
    plan, s, _ = paced(n, seed, **how)
    if tied:
        s.load, s.slow, s.error = [1.0] * n, [1.0] * n, [0.0] * n
    said = plan.probabilities(s, 1.0)
    if how.get("gateways"):
        want = every_draw(plan, s, [w / plan.cum[-1] for w in plan.weights], plan.draws)
    elif how.get("change"):
        want = every_draw(plan, s, said, 1)  # one draw, by the very odds that it claims
    elif n > 10:
        want = every_draw(plan, s, [1 / n] * n, 1)
    else:
        scores = plan.scores(s, 1.0)
        want = [float(i == scores.index(min(scores))) for i in range(n)]
        assert want[plan.choose(None, s, 1.0)] == 1.0
    assert said == pytest.approx(want, abs=1e-9) and same(sum(said), 1.0)


def test_with_a_forecast_the_odds_fall_with_the_score():
    plan, s, _ = paced(8, seed=5, change=True)
    by_score = sorted(zip(plan.scores(s, 1.0), plan.probabilities(s, 1.0)))
    assert [p for _, p in by_score] == sorted((p for _, p in by_score), reverse=True)
    best, second = by_score[:2]
    assert log(best[1] / second[1]) == pytest.approx(OwnPace().sharpness * log(second[0] / best[0]))


def test_own_pace_draws_as_soon_as_others_may_see_the_same():
    """Alone and without a forecast it takes the least of its own loads; else candidates are drawn,
    and nobody gets everything.
    """
    rng = Random(4)
    for n in (2, 8, 64):
        even = [(None,) * n] * 3
        s = Signals(
            [0] * n,
            [0.0] * n,
            [0.0] * n,
            [0.0] * n,
            load=[rng.uniform(2.0, 2.5) for _ in range(n)],
            slow=[rng.uniform(0.995, 1.005) ** 6 for _ in range(n)],
        )

        def chances(gateways=1, change=()):
            return (
                OwnPace(gateways=gateways)
                .plan(
                    Scene(
                        tuple(Backend(f"b{k}", 8.0) for k in range(n)),
                        tuple(range(n)),
                        (1.0,) * n,
                        *even,
                        (0.0,) * n,
                        (300.0,) * n,
                        change=change,
                    ),
                    s,
                )
                .probabilities(s, 0.0)
            )

        if n <= 16:
            assert sorted(chances())[-2:] == [0.0, 1.0] and chances().index(1.0) == min(
                range(n), key=lambda i: (s.load[i] + 1.0) * s.slow[i]
            )
        foreseen = tuple(rng.uniform(1.0, 1.02) for _ in range(n))
        for p in (
            chances(change=foreseen),
            chances(gateways=2),
            chances(gateways=2, change=foreseen),
        ):
            assert max(p) < 0.97 and min(p) > 0.0


@pytest.mark.slow
@pytest.mark.parametrize("n", (8, 64))
def test_a_forecast_that_favours_one_backend_does_not_send_everybody_there(n):
    "Neither 400 idle gateways that read it at once, nor all the requests of a single one."
    fleet = [Backend(f"b{k}", capacity=8.0) for k in range(n)]

    def fresh(favoured, **config):
        r = Router(fleet, config=RouterConfig(**config))
        r.swap(
            table(0.0, {f"b{k}": favoured if k == 3 else 100.0 for k in range(n)}, now_ms=100.0),
            0.0,
        )
        return r

    for favoured, most in ((100.0, 3 / n), (75.0, 0.7)):
        seen = Counter(
            fresh(favoured, seed=seed, gateways=400).decide(Request(), 1.0).backend
            for seed in range(400)
        )
        assert max(seen.values()) < 400 * most and len(seen) >= n // 2
        r = fresh(favoured)
        seen = Counter(r.decide(Request(), 1.0).backend for _ in range(8 * n))
        assert max(seen.values()) < 8 * n * most and len(seen) == n


def test_a_router_of_several_gateways_tells_its_policy():
    assert (
        Router(config=RouterConfig(gateways=4)).policy.gateways == 4
        and Router().policy.gateways == 1
    )
    r = busy(3, config=RouterConfig(gateways=4))
    assert [c.probability for c in r.rank(Request(), 0.0)] == pytest.approx([1 / 3] * 3)
    assert (
        Router().explore == 0.0
        and Router(policy=PredictedCost()).explore == 0.01
        and Router(config=RouterConfig(explore=0.2)).explore == 0.2
    )
    assert (
        Router().breaker_config == OwnPace.breaker
        and Router(policy=PredictedCost()).breaker_config == BreakerConfig()
        and Router(breaker=SMALL).breaker_config == SMALL
    )


@settings(max_examples=60, deadline=None)
@given(
    st.floats(30.0, 900.0),
    st.lists(st.floats(0.0, 1.0), min_size=2, max_size=2).map(sorted),
    st.integers(0, 99),
)
def test_a_foreseen_slowdown_moves_traffic_away_in_proportion_to_trust(median, trusts, seed):
    """The logarithm of a backend's score rises by the trust times six times the logarithm of the
    change. Without trust nothing happens at all.
    """

    def fleet(trust):
        r = busy(3, config=RouterConfig(seed=seed))
        r.swap(table(0.0, dict(b0=median, b1=100.0, b2=100.0), now_ms=100.0, trust=trust), 0.0)
        return r

    bare, none = busy(3, config=RouterConfig(seed=seed)), fleet(0.0)
    assert [(c.backend, c.probability, c.score, c.reason) for c in none.rank(Request(), 1.0)] == [
        (c.backend, c.probability, c.score, c.reason) for c in bare.rank(Request(), 1.0)
    ]
    assert none.decide(Request(), 1.0).mode == "reactive" and none._lanes["b0"].weight == 1.0
    whole = view_of(fleet(1.0)).scene.change[0]
    assert whole >= 1.0 if median > 100.0 else whole <= 1.0
    odds = []
    for trust in trusts:
        if not trust:
            continue
        view = view_of(fleet(trust))
        assert log(view.scene.change[0]) == pytest.approx(
            trust * log(whole), abs=1e-9
        ) and view.scene.change[1:] == (1.0, 1.0)
        scores = view.plan.scores(Signals([0] * 3, [0.0] * 3, [0.0] * 3, [0.0] * 3), 1.0)
        assert (
            log(scores[0] / scores[1]) == pytest.approx(6.0 * trust * log(whole), abs=1e-6)
            and scores[1] == scores[2]
        )
        odds.append({c.backend: c.probability for c in fleet(trust).rank(Request(), 1.0)}["b0"])
    if len(odds) == 2 and whole != 1.0:
        assert odds[1] <= odds[0] + 1e-12 if whole > 1.0 else odds[1] >= odds[0] - 1e-12


def test_whether_callers_retry_is_learned():
    r = busy(3)
    start = r._signals.retried

    def failing(again):
        for _ in range(60):
            d = r.decide(Request(), 1.0)
            r.observe(Outcome(d.backend, 1.0, 5.0, False, "error", d.id))
            if again:
                r.retry(d, 1.0)
                r.observe(Outcome(d.lanes[1].backend.name, 1.0, 5.0, decision=d.id, attempt=1))
        return r._signals.retried

    assert start < 0.99 < failing(True) <= 1.0 and failing(False) < 0.01
    ended = r._signals.retried
    d = r.decide(Request(), 2.0)
    r.retry(d, 2.0)
    r.cancel(d, 3.0)
    assert r._signals.retried == ended  # a hedge says nothing
    for _ in range(60):
        d = r.decide(Request(), 4.0)
        r.cancel(d, 4.0)
        r.retry(d, 4.0)
        r.cancel(d, 4.0)
    assert r._signals.retried <= 1.0


def failing_quickly(callers_retry: bool, share: float, n=400, fleet=3, slower=4.0):
    """How many requests were lost, and how often the fastest backend was asked, after it had begun
    to fail a share of its requests at once.
    """
    r = Router([Backend(f"b{k}", capacity=8.0) for k in range(fleet)], config=RouterConfig())
    rng, now, lost, asked = Random(1), 0.0, 0, 0

    def end(name, start_s, took_s, ok, d, attempt=0):
        error = None if ok else "HTTP 500"
        o = Outcome(name, start_s, 1000.0 * took_s, ok, error, d.id, attempt)
        r.observe(o, start_s + took_s)

    for k in range(100 + n):
        now += 0.5
        d = r.decide(Request(), now)
        bad = d.backend == "b0" and k >= 100
        ok = not bad or rng.random() >= share
        took_s = 0.02 if not ok else 0.1 if d.backend == "b0" else 0.1 * slower
        end(d.backend, now, took_s, ok, d)
        asked += bad
        if not ok and callers_retry:
            other = r.retry(d, now + 0.05)
            ok = other != "b0"
            if other is not None:
                end(other, now + 0.05, 0.1 * slower, ok, d, 1)
        lost += not ok
    return lost, asked


@pytest.mark.parametrize(
    "share, slower, most", [(1.0, 1.0, 5), (1.0, 2.0, 40), (1.0, 10.0, 80), (0.5, 2.0, 40)]
)
def test_a_backend_that_fails_at_once_is_no_trap_where_nobody_tries_again(share, slower, most):
    assert failing_quickly(False, share, slower=slower)[0] <= most
    assert failing_quickly(True, share, slower=slower)[0] == 0


def hanging(fleet=4, quicker=3.0, gap_s=0.1, gives_up_s=30.0):
    "How many requests a backend that stops answering holds for good, of those that come meanwhile."
    r = Router([Backend(f"b{k}", capacity=8.0) for k in range(fleet)], config=RouterConfig())
    coming, lost, now = [], 0, 0.0
    for k in range(round(50 / gap_s)):
        now += gap_s
        while coming and coming[0][0] <= now:
            end_s, _, o = heappop(coming)
            r.observe(o, end_s)
        d = r.decide(Request(), now)
        hangs = d.backend == "b0" and now > 20.0
        took_s = gives_up_s if hangs else 0.1 if d.backend == "b0" else 0.1 * quicker
        o = Outcome(d.backend, now, 1000 * took_s, not hangs, "timeout" if hangs else None, d.id)
        heappush(coming, (now + took_s, k, o))
        lost += hangs
    return lost


@pytest.mark.parametrize("quicker", [1.0, 3.0, 10.0])
@pytest.mark.parametrize("gap_s", [0.02, 0.1, 0.5])
def test_a_backend_that_stops_answering_is_left_before_its_callers_give_up(quicker, gap_s):
    "Thirty seconds pass until the first bad news; the ages of what waits there tell before."
    assert hanging(quicker=quicker, gap_s=gap_s) <= max(0.12 * 30.0 / gap_s, 12)


def test_streams_that_all_stand_still_are_noticed_without_a_report():
    "A gateway that passes chunks on reports nothing while none come."
    r = Router([Backend(n, capacity=16.0) for n in "ab"])
    streams = []
    for k in range(40):
        now = 0.25 * k
        if k % 4 == 0:
            streams.append(r.decide(Request(), now))
        for d in streams:
            quicker = 5 if d.backend == "a" else 2
            r.progress(d, int(quicker * 4 * (now - d.at_s)), now)
    went = [r.decide(Request(), 10.0 + 0.01 * k) for k in range(4)]
    assert {d.backend for d in went} == {"a"}
    for k in range(40):  # of those at `b` one hears
        now = 10.0 + 0.25 * k
        for d in streams:
            if d.backend == "b":
                r.progress(d, int(8 * (now - d.at_s)), now)
    assert any(d.backend == "b" for d in streams)
    assert r.decide(Request(), 20.0).backend == "b"
    assert r.paces(20.0)["a"][0] < 1.0  # what it was, when it was heard of
    for d in streams:
        if d.backend == "a":
            r.progress(d, int(20 * (20.0 - d.at_s)), 20.25)
    assert r.decide(Request(), 20.5).backend == "a"


def test_open_requests_that_have_waited_are_said_in_the_reason():
    r = Router([Backend(n, capacity=8.0) for n in "ab"])
    for k in range(20):
        for name in "ab":
            r.observe(Outcome(name, float(k), 100.0), k + 0.1)
    stuck = [r.decide(Request(), 30.0) for _ in range(12)]
    assert {d.backend for d in stuck} == {"a", "b"}
    r.cancel(r.decide(Request(), 36.0), 36.0)
    why = {c.backend: c.reason for c in r.rank(Request(), 36.0)}
    assert all("at least" in reason for reason in why.values())
    for d in stuck:
        r.observe(Outcome(d.backend, 30.0, 6000.0, decision=d.id), 36.5)
    r.cancel(r.decide(Request(), 38.0), 38.0)
    assert not any("at least" in c.reason for c in r.rank(Request(), 38.0))


def test_what_callers_usually_do_outlives_a_burst_of_failures():
    r = busy(3)
    s = r._signals
    assert not s.fails_for_good
    for k in range(60):
        d = r.decide(Request(), float(k))
        r.observe(Outcome(d.backend, float(k), 5.0, False, "error", d.id), float(k))
        r.retry(d, k + 0.1)
        r.cancel(d, k + 0.2)
    habit = s.habit
    for k in range(30):  # second attempts that are still to come
        d = r.decide(Request(), 60.0)
        r.observe(Outcome(d.backend, 60.0, 5.0, False, "error", d.id), 60.0)
    assert s.retried < 0.1 and not s.fails_for_good and habit > 0.7
    twin = busy(3)
    twin.restore(r.memo())
    assert twin._signals.habit == s.habit
    for k in range(30):
        d = r.decide(Request(), 61.0)
        r.observe(Outcome(d.backend, 61.0, 5.0, False, "error", d.id), 61.0)
    assert s.fails_for_good


def test_errors_count_less_where_callers_retry_but_not_in_the_retry_itself():
    "A backend that fails every fifth attempt, and one that is as quick and twice as loaded."
    sc, s = scene_of(2, missing=0.0)
    sc = Scene(
        *[getattr(sc, f) for f in ("backends", "slots")],
        (1.0, 1.0),
        *[getattr(sc, f) for f in ("p50_ms", "p_slow", "step_ms", "cost_usd", "slo_ms")],
    )

    def ratio(again, retried):
        return (
            (lambda x: x[0] / x[1])(
                OwnPace()
                .plan(
                    Scene(
                        *[
                            getattr(sc, f)
                            for f in (
                                "backends",
                                "slots",
                                "weight",
                                "p50_ms",
                                "p_slow",
                                "step_ms",
                                "cost_usd",
                                "slo_ms",
                            )
                        ],
                        again=again,
                    ),
                    t := Signals([0, 0], [0.2, 0.0], [0.0, 0.0], [0.0, 0.0], retried=retried),
                )
                .scores(t, 0.0)
            )
            * sc.backends[0].capacity
            / sc.backends[1].capacity
        )

    assert [
        ratio(*x) for x in ((False, 1.0), (False, 0.0), (True, 1.0), (True, 0.0))
    ] == pytest.approx([1.2, 5.0, 5.0, 5.0])


def test_no_forecast_acts_on_single_requests_while_own_streams_tell():
    """Streams know the present; a foreseen slowdown acts again once they have been silent for a
    while.
    """
    r = Router([Backend(n, capacity=8.0) for n in "ab"])

    def foreseen(now):
        return r.swap(table(now, dict(a=100.0, b=400.0), now_ms=100.0), now)

    foreseen(0.0)
    assert (
        r.decide(Request(), 0.5).mode == "predictive" and r.rank(Request(), 0.5)[0].backend == "a"
    )
    for k in range(4):
        d = r.decide(Request(tokens_out=100), 1.0 + k)
        r.progress(d, 5, 1.5 + k)
        r.progress(d, 25, 2.0 + k)
    foreseen(5.0)
    told = {c.backend: c for c in r.rank(Request(), 6.0)}
    assert r.decide(Request(), 6.1).mode == "reactive" and "foreseen" not in told["b"].reason
    foreseen(30.0)
    assert (
        r.decide(Request(), 30.0).mode == "predictive"
        and "foreseen" in {c.backend: c for c in r.rank(Request(), 30.0)}["b"].reason
    )


# ---- hope after a long silence
def test_after_a_long_silence_one_request_at_a_time_finds_out():
    r = Router([Backend("quick", capacity=8.0), Backend("slow", capacity=8.0)])

    def sent(now: float, n: int) -> list:
        return [r.decide(Request(tokens_in=0, tokens_out=100), now) for _ in range(n)]

    def answered(decisions: list, took_ms: dict, at_s: float):
        for d in decisions:
            r.observe(Outcome(d.backend, at_s, took_ms[d.backend], True, None, d.id, 0, 0, 100))

    took_ms = dict(quick=2000.0, slow=20_000.0)
    answered(sent(0.0, 8), took_ms, 0.0)
    for now in (30.0, 900.0, 1700.0):
        batch = sent(now, 2)
        assert {d.backend for d in batch} == {"quick"}, "known to be slow"
        answered(batch, took_ms, now)
    tried = [d.backend for d in sent(2120.0, 1) + sent(2122.0, 4)]
    assert tried.count("slow") == 1, tried
    assert "slow" not in [d.backend for d in sent(2129.0, 4)], "it has not told anything yet"
