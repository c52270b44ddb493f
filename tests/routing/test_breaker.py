"""Breaker and shedder: state machines against plain models, pybreaker as an oracle, known faults of
peers.
"""

import json
from collections import deque
from datetime import UTC, datetime, timedelta
from math import inf, isfinite, nan
from unittest import mock

import pybreaker
import pytest
from breakers import SMALL, opened, tried
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from arcpoint_ce.routing.breaker import (
    _KEPT,
    CLOSED,
    FULL,
    HALF_OPEN,
    OPEN,
    SHEDDING,
    Breaker,
    BreakerConfig,
    ShedConfig,
    Shedder,
    Window,
    _flows,
    _wish,
    in_panic,
)
from arcpoint_ce.routing.policies import OwnPace
from arcpoint_ce.routing.records import Backend, Request
from arcpoint_ce.routing.router import Router

WEIRD = st.sampled_from([nan, inf, -inf])
configs = st.builds(
    BreakerConfig,
    window=st.integers(4, 12),
    min_calls=st.integers(1, 4),
    consecutive=st.integers(1, 6),
    failure_rate=st.sampled_from([0.25, 0.5, 1.0]),
    slow_rate=st.sampled_from([0.5, 0.8, 1.0, 2.0]),
    open_s=st.sampled_from([1.0, 10.0]),
    max_open_s=st.sampled_from([10.0, 40.0]),
    backoff=st.sampled_from([1.0, 2.0]),
    jitter=st.sampled_from([0.0, 0.2]),
    probes=st.integers(1, 4),
    probe_success=st.integers(1, 4),
    max_half_open_s=st.sampled_from([5.0, 30.0]),
    quick_s=st.sampled_from([0.0, 0.0, 0.5]),
    lasting_s=st.sampled_from([0.0, 0.0, 5.0]),
    forgiving=st.booleans(),
)


class BreakerMachine(RuleBasedStateMachine):
    "Any order of calls, clocks and people; a naive model beside it says what must happen."

    @initialize(config=configs, seed=st.integers(0, 3))
    def start(self, config, seed):
        self.config, self.seed, self.b, self.log = config, seed, Breaker("x", config, seed), []
        self.raw = self.latest = 1000.0  # what the caller's clock shows; the latest time told
        self.seen = deque(maxlen=config.window)  # the model's window
        # failures in a row; since when every call has failed; newest success; wait before jitter
        self.run, self.failing_s, self.good_s, self.base_s = 0, None, -inf, 0.0
        # eras of probes out; of earlier trials' probes
        self.probes, self.stale, self.busy_s = [], [], None
        self.do("poll", 1000.0)

    def do(self, name, *args, **kw):
        "One call, logged; then whatever holds for every call."
        old, era, until = self.b.state, self.b.era, self.b.until_s
        forced = self.b.forced
        self.log.append((name, args, kw))
        since, waited = self.b.since_s, self.b.course.backoff.wait_s
        got = getattr(self.b, name)(*args, **kw)
        now = (
            args[0]
            if name in ("poll", "acquire", "release")
            else args[2]
            if name == "record"
            else args[1]
        )
        if isfinite(now) and not (name == "acquire" and old == CLOSED):
            self.latest = max(self.latest, now)
        if name == "record":
            self.note(args[0])
        moved = self.b.era != era
        if moved and self.b.state == OPEN and name != "force":
            self.check_wait(old, since, waited)
        if name in ("record", "poll", "force"):
            assert got == moved
        else:
            assert not moved and self.b.state == old
        if moved:
            self.check_move(name, old, until, forced)
        return got

    def note(self, ok):
        "Since when every call has failed, and when the newest success was."
        if ok:
            self.failing_s, self.good_s = None, self.latest
        elif self.failing_s is None:
            self.failing_s = self.latest

    def check_wait(self, old, since, waited):
        """The first wait again after a calm time, or, where it forgives, after any success since it
        closed; else a longer one.
        """
        c = self.config
        fresh = (
            not self.base_s
            or old == CLOSED
            and (self.latest - since >= waited or c.forgiving and self.good_s > since)
        )
        self.base_s = c.open_s if fresh else min(self.base_s * c.backoff, c.max_open_s)
        assert (
            self.base_s * (1.0 - c.jitter) - 1e-9
            <= self.b.course.backoff.wait_s
            <= self.base_s + 1e-9
        )

    def check_move(self, name, old, until, forced):
        t = self.b.transitions[-1]
        assert (t.old, t.new, t.backend, t.at_s, t.until_s) == (
            old,
            self.b.state,
            "x",
            self.latest,
            self.b.until_s,
        )
        assert t.reason and t.evidence and t.until_s > t.at_s
        if name != "force":
            assert forced is None
            assert (old, t.new) in {
                (CLOSED, OPEN),
                (OPEN, HALF_OPEN),
                (HALF_OPEN, OPEN),
                (HALF_OPEN, CLOSED),
                (OPEN, CLOSED),
            }
            if old == OPEN and name != "record":
                assert self.latest >= until
            if t.new == OPEN:
                c = self.config
                assert c.open_s * (1 - c.jitter) - 1e-9 <= t.until_s - t.at_s <= c.max_open_s + 1e-9
        self.stale += self.probes
        self.probes, self.busy_s, self.run = [], None, 0
        self.seen.clear()

    @rule(dt=st.floats(0.0, 60.0))
    def time_passes(self, dt):
        self.raw += dt

    @rule(dt=st.floats(0.0, 500.0))
    def clock_jumps_back(self, dt):
        self.raw -= dt

    @rule()
    def clock_is_right_again(self):
        self.raw = max(self.raw, self.latest)

    @precondition(lambda self: self.b.state == CLOSED and not self.b.forced)
    @rule(took_s=st.sampled_from([inf, 0.0, 0.1]))
    def outage(self, took_s):
        for _ in range(self.config.consecutive):
            if self.b.state == CLOSED:
                self.call_ends(False, False, None, False, took_s)

    @precondition(lambda self: self.b.state == OPEN and not self.b.forced)
    @rule()
    def wait_is_over(self):
        self.raw = self.b.until_s
        assert self.do("poll", self.raw) and self.b.state == HALF_OPEN

    @rule(weird=st.none() | WEIRD)
    def poll(self, weird):
        self.do("poll", self.raw if weird is None else weird)
        if self.b.state == HALF_OPEN and self.busy_s is not None:
            # never stuck on probes that hang
            assert self.latest < self.busy_s + self.config.max_half_open_s
        if self.b.state == OPEN and self.b.forced is None:
            assert self.latest < self.b.until_s

    @rule(weird=st.none() | WEIRD)
    def acquire(self, weird):
        state, got = self.b.state, self.do("acquire", self.raw if weird is None else weird)
        if state == CLOSED:
            assert got
        elif state == OPEN:
            assert not got
        else:
            assert got == (len(self.probes) < self.config.probes)
            if got:
                if not self.probes:
                    self.busy_s = self.latest
                self.probes.append(self.b.era)

    @precondition(lambda self: self.probes)
    @rule(ok=st.booleans(), slow=st.booleans(), told=st.booleans())
    def probe_ends(self, ok, slow, told):
        era = self.probes.pop()
        if not self.probes:
            self.busy_s = None
        late = slow and self.config.slow_rate <= 1.0
        good, slows = self.b.good + (ok and not late), self.b.slow + (ok and late)
        n = self.config.probe_success
        self.do("record", ok, slow, self.raw, True, era if told else None)
        assert self.b.state == (
            OPEN if not ok else CLOSED if good >= n else OPEN if slows >= n else HALF_OPEN
        )

    @precondition(lambda self: self.b.state == HALF_OPEN and not self.probes)
    @rule(slow=st.booleans(), serves=st.booleans())
    def trial_runs_to_its_end(self, slow, serves):
        while self.b.state == HALF_OPEN:
            self.acquire(None)
            self.probe_ends(True, slow, True)
        if serves and self.b.state == CLOSED:
            self.raw += 1.0
            self.call_ends(True, False, None, True, inf)

    @precondition(lambda self: self.probes)
    @rule()
    def probe_cancelled(self):
        era = self.probes.pop()
        if not self.probes:
            self.busy_s = None
        self.do("release", self.raw, era)

    @precondition(lambda self: self.stale)
    @rule(ok=st.booleans(), verdict=st.booleans())
    def probe_of_an_earlier_trial_ends(self, ok, verdict):
        era, good = self.stale.pop(), self.b.good
        if verdict:
            assert not self.do("record", ok, False, self.raw, True, era)
        else:
            self.do("release", self.raw, era)
        assert self.b.good == good

    @rule(
        ok=st.booleans(),
        slow=st.booleans(),
        weird=st.none() | WEIRD,
        told=st.booleans(),
        took_s=st.sampled_from([inf, 0.0, 0.1, 0.5, 3.0]),
    )
    def call_ends(self, ok, slow, weird, told, took_s):
        state, forced, c, now = (
            self.b.state,
            self.b.forced,
            self.config,
            self.raw if weird is None else weird,
        )
        if state == CLOSED:
            self.seen.append((not ok, slow))
            self.run = 0 if ok else self.run + (took_s >= c.quick_s)
        n, fails, slows = len(self.seen), sum(f for f, _ in self.seen), sum(s for _, s in self.seen)
        latest = max(self.latest, now) if isfinite(now) else self.latest
        lasted = 0.0 if ok else latest - (latest if self.failing_s is None else self.failing_s)
        opens = self.run >= c.consecutive or (
            n >= c.min_calls
            and (fails >= c.failure_rate * n and lasted >= c.lasting_s or slows >= c.slow_rate * n)
        )
        opens = state == CLOSED and forced is None and opens
        # it went out after the breaker had opened, and was served: the backend lives
        lives = state == OPEN and forced is None and told and ok and not slow
        got = self.do("record", ok, slow, now, False, self.b.era if told else None, took_s)
        assert got == (opens or lives)
        if lives:
            assert self.b.state == (CLOSED if c.probe_success <= 1 or not c.probes else HALF_OPEN)
        elif not opens:
            assert self.b.state == state

    @precondition(lambda self: self.b.era)
    @rule(ok=st.booleans())
    def call_from_before_the_last_change_ends(self, ok):
        before = (self.b.window.n, self.b.window.run, self.b.ledger.late)
        assert not self.do("record", ok, True, self.raw, False, self.b.era - 1)
        assert (self.b.window.n, self.b.window.run, self.b.ledger.late) == (
            before[0],
            before[1],
            before[2] + 1,
        )

    @rule(state=st.sampled_from([None, None, CLOSED, OPEN, HALF_OPEN]))
    def people(self, state):
        was = self.b.forced
        self.do("force", state, self.raw, "test")
        assert self.b.forced == (state if state in (OPEN, CLOSED) else None)
        if state:
            assert self.b.state == state
        elif was == OPEN:
            assert self.b.state == HALF_OPEN

    @invariant()
    def told_plainly(self):
        if not hasattr(self, "b"):
            return
        assert self.b.until_s > self.latest or self.b.state != CLOSED
        if self.b.state == CLOSED or self.b.forced:
            assert self.b.until_s == inf
        if self.b.state == HALF_OPEN:
            assert self.b.out == len(self.probes) <= self.config.probes
        told = json.loads(json.dumps(self.b.describe(self.raw), allow_nan=False))
        assert told["state"] == self.b.state and told["reason"] == self.b.reason

    def teardown(self):
        if not hasattr(self, "b"):
            return
        history = list(self.b.transitions)
        for t, u in zip(history, history[1:]):
            assert t.new == u.old and t.at_s <= u.at_s
            if (u.old, u.new) == (OPEN, CLOSED):
                assert u.reason.startswith(("forced closed", "it answered"))
        again = Breaker("x", self.config, self.seed)
        for name, args, kw in self.log:
            getattr(again, name)(*args, **kw)
        assert list(again.transitions) == history and again.describe(self.raw) == self.b.describe(
            self.raw
        )


BreakerMachine.TestCase.settings = settings(max_examples=200, stateful_step_count=40, deadline=None)
TestBreakerMachine = BreakerMachine.TestCase

BACKENDS = "abcde"
p_values = st.floats(0.0, 1.0) | st.sampled_from(
    [None, nan, inf, -inf, -0.1, 1.1, 0.0, 0.25, 0.5, 1.0]
)
forecasts = st.dictionaries(st.sampled_from(BACKENDS + "z"), p_values)
fleets = st.dictionaries(
    st.sampled_from(BACKENDS),
    st.floats(0.1, 50.0) | st.sampled_from([0.0, 1.0, nan, inf]),
    max_size=5,
)
shed_configs = st.builds(
    ShedConfig,
    start=st.sampled_from([0.4, 0.5, 0.9]),
    stop=st.sampled_from([0.1, 0.25]),
    dwell_s=st.sampled_from([10.0, 60.0]),
    floor=st.sampled_from([0.02, 0.3]),
    cap=st.sampled_from([0.1, 0.5]),
    margin=st.sampled_from([0.05, 0.1, 0.3]),
    lift=st.sampled_from([0.5, 1.0, 5.0]),
)


class ShedderMachine(RuleBasedStateMachine):
    "Any forecasts for any fleet at any time: the bounds hold, the log tells all."

    @initialize(config=shed_configs)
    def start(self, config):
        self.config, self.s, self.now, self.log = config, Shedder(config), 1000.0, []

    def has(self, p):
        return p is not None and 0.0 <= p <= 1.0

    @rule(p=forecasts, fleet=fleets, dt=st.floats(0.0, 50.0) | st.sampled_from([-100.0, nan]))
    def tick(self, p, fleet, dt):
        now = nan if dt != dt else self.now + dt
        if now > self.now:
            self.now = now
        self.log.append((p, fleet, now))
        left, c = self.s.update(p, fleet, now), self.config
        real = {b: k for b, k in fleet.items() if 0.0 < k < inf}
        sure = {b: p.get(b) for b in real if self.has(p.get(b))}
        assert set(left) == set(fleet)
        assert all(c.floor <= m <= 1.0 for m in left.values())
        assert all(left[b] == 1.0 for b in fleet if b not in sure)
        gone = {b: (1.0 - left[b]) * real[b] for b in real}
        assert sum(gone.values()) <= c.cap * sum(real.values()) + 1e-9
        for b, k in gone.items():
            if not k:
                continue
            better = [t for t, q in sure.items() if q < sure[b] - c.margin]
            assert better and k <= c.lift * sum(real[t] for t in better) + 1e-9
            assert self.s.holds[b].state == SHEDDING
        targets = {t for b in gone if gone[b] for t, q in sure.items() if q < sure[b] - c.margin}
        assert sum(gone.values()) <= c.lift * sum(real[t] for t in targets) + 1e-9
        told = json.loads(json.dumps(self.s.describe(self.now), allow_nan=False))
        assert {d["backend"] for d in told} >= {b for b in gone if gone[b]} and all(
            d["reason"] for d in told
        )
        assert set(self.s.holds) == set(fleet)

    def teardown(self):
        if not hasattr(self, "s"):
            return
        last = {}
        for e in self.s.events:
            assert (
                e.reason
                and e.until_s == e.at_s + self.config.dwell_s
                and {e.old, e.new} == {FULL, SHEDDING}
            )
            before = last.get(e.backend)
            if before:
                assert before.new == e.old
                early = e.at_s < before.until_s
                if early and e.new == FULL:
                    assert e.reason.startswith(("no opinion", "no capacity", "left"))
                if early and e.new == SHEDDING:
                    assert any(e.backend not in f for _, f, _ in self.log)  # came anew
            if e.new == SHEDDING:
                assert e.evidence["p_breach"] >= self.config.start - 1e-4 and e.evidence["better"]
            last[e.backend] = e
        again = Shedder(self.config)
        for p, fleet, now in self.log:
            again.update(p, fleet, now)
        assert list(again.events) == list(self.s.events) and again.describe(
            self.now
        ) == self.s.describe(self.now)


ShedderMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=30, deadline=None)
TestShedderMachine = ShedderMachine.TestCase


class FakeTime:
    "Stands in for `datetime` inside pybreaker."

    def __init__(self):
        self.t = 0

    def now(self, tz):
        return datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=self.t)


@settings(max_examples=300, deadline=None)
@given(
    fail_max=st.integers(1, 5),
    reset=st.integers(1, 20),
    threshold=st.integers(1, 4),
    calls=st.lists(st.tuples(st.booleans(), st.integers(0, 12)), max_size=60),
)
def test_reactive_part_agrees_with_pybreaker(fail_max, reset, threshold, calls):
    ours = Breaker(
        "x",
        BreakerConfig(
            window=5,
            min_calls=5,
            failure_rate=1.0,
            consecutive=fail_max,
            open_s=reset,
            max_open_s=reset,
            backoff=1.0,
            jitter=0.0,
            probes=1,
            probe_success=threshold,
            max_half_open_s=1e9,
        ),
    )
    time, ran = FakeTime(), []

    def call(ok):
        ran.append(ok)
        if not ok:
            raise OSError

    with mock.patch.object(pybreaker, "datetime", time):
        theirs = pybreaker.CircuitBreaker(fail_max, reset, threshold, throw_new_error_on_trip=False)
        for ok, dt in calls:
            time.t += dt
            ran.clear()
            try:
                theirs.call(call, ok)
            except (OSError, pybreaker.CircuitBreakerError):
                pass
            ours.poll(time.t)
            if allowed := ours.acquire(time.t):
                ours.record(ok, False, time.t, probe=ours.state == HALF_OPEN)
            assert allowed == bool(ran)
            assert ours.state == theirs.current_state.replace("-", "_")


def test_probe_that_never_returns_does_not_leave_it_stuck():
    "resilience4j: permitted calls in half-open that never end keep it there for ever."
    b = tried()
    t = b.since_s
    assert b.acquire(t) and b.acquire(t + 1.0) and not b.acquire(t + 2.0)
    assert not b.poll(t + 14.9) and b.poll(t + 15.0) and b.state == OPEN
    assert "without a verdict" in b.reason and b.until_s < inf
    # and it gets its whole budget again
    assert b.poll(b.until_s) and b.acquire(b.until_s) and b.acquire(b.until_s)


def test_counts_equal_a_recount_of_the_window():
    w, seen = Window(7), deque(maxlen=7)
    for k in range(400):
        ok, slow = k * k % 11 > 3, k * k * k % 13 > 7
        w.push(ok, slow)
        seen.append((not ok, slow))
        assert (w.n, w.failed, w.slow) == (
            len(seen),
            sum(f for f, _ in seen),
            sum(s for _, s in seen),
        )


def test_slow_probes_reopen_and_slots_of_an_earlier_trial_do_not_count():
    b = tried()
    t, first = b.since_s, b.era
    assert b.acquire(t) and not b.record(True, True, t, probe=True) and b.acquire(t)
    assert (
        b.acquire(t)
        and b.record(True, True, t, probe=True)
        and b.state == OPEN
        and "slower" in b.reason
    )
    t = b.until_s
    b.poll(t)
    assert b.acquire(t) and b.acquire(t)
    b.release(t, era=first)
    assert not b.record(True, False, t, probe=True, era=first)
    assert b.out == 2 and b.good == 0 and not b.acquire(t)


def test_a_probe_sent_late_in_a_trial_gets_its_whole_time():
    b = tried()
    t = b.since_s
    assert not b.poll(t + 15.0) and b.acquire(t + 29.0)  # idle so far, then one goes out
    assert not b.poll(t + 43.9) and b.state == HALF_OPEN
    assert b.poll(t + 44.0) and b.state == OPEN


def test_one_hanging_probe_among_good_ones_does_not_hold_it_up():
    b = tried()
    t = b.since_s
    assert b.acquire(t)  # hangs
    for k in range(2):
        assert b.acquire(t + k) and b.record(True, False, t + k, probe=True) == (k == 1)
    assert b.state == CLOSED


def test_clock_that_jumps_back_shortens_no_wait_and_stops_nothing():
    b = opened(at=1000.0)
    until = b.until_s
    for t in (0.0, 999.0, nan, -inf, inf, until - 1e-3):
        assert not b.poll(t) and not b.acquire(t)
    assert b.poll(until)
    c = Breaker("x", SMALL)
    for t in (1000.0, nan, 5.0):
        c.record(False, False, t)
    assert c.state == OPEN and 1008.0 <= c.until_s <= 1010.0


def test_infinite_time_does_not_freeze_a_breaker():
    b = Breaker("x", SMALL)
    for _ in range(3):
        b.record(False, False, inf)
    assert b.state == OPEN and b.until_s <= 10.0 and b.poll(10.0)


def test_late_time_outs_do_not_reopen_after_recovery():
    b = tried()
    hung = 0
    for _ in range(2):
        b.acquire(200.0)
        b.record(True, False, 200.0, probe=True)
    assert b.state == CLOSED
    for _ in range(20):
        assert not b.record(False, True, 260.0, era=hung)
    assert b.state == CLOSED and b.window.n == 0 and b.ledger.late_failed == 20


def test_backoff_is_forgotten_only_after_a_calm_time():
    cfg = BreakerConfig(
        consecutive=1, open_s=10.0, max_open_s=300.0, jitter=0.0, probes=1, probe_success=1
    )
    b, waits = Breaker("x", cfg), []
    t = 0.0
    for _ in range(4):  # closes, fails again at once
        b.record(False, False, t)
        waits.append(b.course.backoff.wait_s)
        t = b.until_s
        b.poll(t)
        b.acquire(t)
        b.record(True, False, t, probe=True)
    assert waits == [10.0, 20.0, 40.0, 80.0] and b.state == CLOSED
    b.record(False, False, t + 79.9)
    assert b.course.backoff.wait_s == 160.0
    t = b.until_s
    b.poll(t)
    b.acquire(t)
    b.record(True, False, t, probe=True)
    b.record(False, False, t + 160.0)
    assert b.course.backoff.wait_s == 10.0


def last(b, *calls):
    "Whether the last of these calls, (ok, how long it took, when), opened a breaker."
    return [b.record(ok, False, now, took_s=took_s) for ok, took_s, now in calls][-1]


def test_quick_failures_are_none_in_a_row():
    cfg = BreakerConfig(quick_s=0.5)
    assert not last(Breaker("x", cfg), *[(False, 0.49, k / 10) for k in range(9)])
    for took_s in (0.5, 3.0, inf):
        assert last(Breaker("x", cfg), *[(False, took_s, k / 10) for k in range(5)])
    mixed = [
        (False, 1.0, 0.0),
        (False, 0.0, 0.1),
        (False, 1.0, 0.2),
        (False, 0.1, 0.3),
        (False, 1.0, 0.4),
        (False, 1.0, 0.5),
    ]  # they do not end the row either
    assert not last(Breaker("x", cfg), *mixed) and last(
        Breaker("x", cfg), *mixed, (False, 1.0, 0.6)
    )
    assert not last(Breaker("x", cfg), *mixed, (True, 1.0, 0.6), (False, 1.0, 0.7))
    # for the failure rate they count
    assert last(Breaker("x", cfg), *[(False, 0.1, k / 10) for k in range(10)])
    # 0: switched off, for failures at once as well
    assert last(Breaker("x", BreakerConfig()), *[(False, 0.0, k / 10) for k in range(5)])


def test_a_failure_rate_must_last():
    cfg = BreakerConfig(window=20, min_calls=20, failure_rate=1.0, consecutive=1000, lasting_s=2.0)
    burst = [(False, inf, 10.0 + k / 100) for k in range(60)]
    assert not last(Breaker("x", cfg), *burst)  # sixty within a moment
    assert not last(Breaker("x", cfg), *burst, (False, inf, 11.99)) and last(
        Breaker("x", cfg), *burst, (False, inf, 12.0)
    )
    # the time since the last success is not it, if nothing was tried
    assert not last(Breaker("x", cfg), (True, inf, 0.0), *burst)
    assert not last(
        Breaker("x", cfg),
        *burst,
        (True, inf, 11.0),
        *[(False, inf, 11.5 + k / 100) for k in range(40)],
        (False, inf, 13.4),
    )
    assert last(
        Breaker("x", cfg),
        *burst,
        (True, inf, 11.0),
        *[(False, inf, 11.5 + k / 100) for k in range(40)],
        (False, inf, 13.5),
    )
    assert last(
        Breaker("x", BreakerConfig(window=20, min_calls=20, failure_rate=1.0, consecutive=1000)),
        *burst[:20],
    )  # 0: at once
    # failures in a row need not last
    assert last(Breaker("x", BreakerConfig(consecutive=5, lasting_s=2.0)), *burst[:5])


@pytest.mark.parametrize("forgiving", [False, True])
def test_a_forgiving_breaker_starts_anew_once_it_has_served(forgiving):
    cfg = BreakerConfig(
        consecutive=1, open_s=10.0, jitter=0.0, probes=1, probe_success=1, forgiving=forgiving
    )

    def again(b, *served_s):
        """The wait after it has closed, served at these times from then on, and failed at the last
        of them.
        """
        b.poll(b.until_s)
        b.acquire(b.since_s)
        t = b.since_s
        b.record(True, False, t, probe=True)
        for x in served_s:
            b.record(True, False, t + x)
        b.record(False, False, t + max(served_s, default=0.0))
        return b.course.backoff.wait_s

    b = Breaker("x", cfg)
    b.record(False, False, 0.0)
    assert again(b) == 20.0 and again(b) == 40.0  # its probe is no service
    assert again(b, 1.0) == (10.0 if forgiving else 80.0) and again(b, 1.0, 2.0) == (
        10.0 if forgiving else 160.0
    )
    b.poll(b.until_s)
    b.acquire(b.since_s)
    b.record(False, False, b.since_s, probe=True)
    # a failed probe makes it longer, whoever forgives
    assert b.course.backoff.wait_s == (20.0 if forgiving else 300.0)


def test_the_breaker_that_goes_with_own_pace():
    "Slow calls do not open it, nor failures within a moment; long ones do, and a real outage."

    def new():
        return Breaker("x", OwnPace.breaker)

    b = new()
    assert not any(b.record(True, True, k / 10) for k in range(200))
    assert not last(new(), *[(False, 0.01, k / 100) for k in range(150)])
    assert last(new(), *[(False, 0.6, k / 100) for k in range(5)]) and not last(
        new(), *[(False, 0.6, k / 100) for k in range(4)]
    )
    assert last(new(), *[(False, 0.01, k / 10) for k in range(50)]) and not last(
        new(), *[(False, 0.01, k / 10) for k in range(49)]
    )
    assert not last(new(), *[(k % 49 == 0, 0.01, k / 10) for k in range(400)])  # one of 49 succeeds
    b = new()
    for k in range(5):
        b.record(False, False, 100.0, took_s=1.0)
    assert 4.0 <= b.until_s - 100.0 <= 5.0 and b.poll(b.until_s)
    assert b.state == CLOSED  # no trial: one answer in ten is worth having
    for k in range(5):
        b.record(False, False, 106.0, took_s=1.0)
    twice_s = b.course.backoff.wait_s
    b.poll(b.until_s)
    b.record(True, True, 117.0)
    for k in range(5):
        b.record(False, False, 118.0, took_s=1.0)
    assert b.course.backoff.wait_s <= 5.0 < 8.0 <= twice_s  # it served in between: no doubling


OLD_MEMO = dict(
    state="open",
    forced=None,
    since_s=1000.0,
    until_s=1018.5,
    era=3,
    opens=2,
    opened_s=1000.0,
    wait_s=18.5,
    base_s=20.0,
    clock=1003.0,
    ring="0100010101" + "00" * 45,
    at=10,
    n=10,
    run=3,
    reason="5 calls in a row failed (limit 5)",
)


@pytest.mark.parametrize(
    "config",
    [BreakerConfig(), BreakerConfig(quick_s=0.5, lasting_s=2.0, forgiving=True), OwnPace.breaker],
    ids=["as then", "new fields", "own pace"],
)
def test_a_memo_from_before_these_settings_still_works(config):
    b = Breaker("x", config)
    b.restore(json.loads(json.dumps(OLD_MEMO)))
    assert (b.state, b.until_s, b.reason, b.course.backoff.opens) == (
        OPEN,
        1018.5,
        OLD_MEMO["reason"],
        2,
    )
    assert b.window.n == (10 if config.window == 50 else 0) and b.window.failed == (
        4 if config.window == 50 else 0
    )
    assert not b.poll(1018.0) and b.poll(1018.5) and b.acquire(1019.0)
    for k in range(config.probe_success):
        b.record(True, False, 1020.0, probe=True)
        b.acquire(1020.0)
    assert b.state == CLOSED and b.record(True, False, 1021.0) is False
    for k in range(5):
        b.record(False, False, 1022.0, took_s=1.0)
    assert b.state == OPEN and b.course.backoff.wait_s <= (
        config.open_s if config.forgiving else 40.0
    )
    again = Breaker("x", config)
    again.restore(json.loads(json.dumps(b.memo(), allow_nan=False)))
    assert again.memo() == b.memo()


def test_a_closed_memo_from_before_judges_by_what_happens_now():
    """Nothing is known of when calls began to fail: that clock starts with the first failure after
    the restart.
    """
    old = OLD_MEMO | dict(
        state="closed", until_s=None, ring="01" * 20 + "00" * 30, at=20, n=20, run=0
    )
    b = Breaker("x", BreakerConfig(failure_rate=0.5, lasting_s=2.0, consecutive=1000))
    b.restore(old)
    assert [b.record(False, False, 2000.0 + k) for k in range(3)] == [False, False, True]


def test_a_router_takes_up_breakers_from_before():
    old = dict(
        turn=7,
        breakers={
            "a": OLD_MEMO,
            "b": {k: v for k, v in OLD_MEMO.items() if k != "at"},
            "gone": OLD_MEMO,
        },
    )
    r = Router([Backend("a"), Backend("b")])
    lost = r.restore(json.loads(json.dumps(old)))
    assert (
        len(lost) == 1
        and "'b' starts fresh" in lost[0]
        and r._lanes["b"].breaker.memo() == Router([Backend("b")]).memo()["breakers"]["b"]
    )
    assert r.health("a", 1010.0)[0] == OPEN and r.health("b", 1010.0)[0] == CLOSED
    assert r.decide(Request(), 1010.0).backend == "b"


def test_waits_stay_finite_and_the_history_bounded():
    b = opened()
    for _ in range(3000):
        b.poll(b.until_s)
        b.acquire(b.since_s)
        b.record(False, False, b.since_s, probe=True)
    assert (
        b.course.backoff.wait_s <= 40.0
        and len(b.transitions) == _KEPT
        and b.course.backoff.opens == 3001
    )


def test_breakers_with_different_seeds_do_not_probe_together():
    assert len({opened(seed=k).until_s for k in range(16)}) == 16


def test_a_breaker_that_is_forced_open_is_lifted_after_a_restart_as_before():
    "The memo goes through JSON, which makes another text object of the state."
    lived, back = Breaker("a", SMALL), Breaker("a", SMALL)
    lived.force(OPEN, 1.0, "maintenance")
    back.restore(json.loads(json.dumps(lived.memo())))
    for breaker in (lived, back):
        breaker.force(None, 5.0, "done")
    assert back.state == lived.state == HALF_OPEN


def test_forced_breakers_stay_whatever_happens():
    b = Breaker("x", SMALL)
    b.force(CLOSED, 0.0, "false alarm")
    for _ in range(50):
        assert not b.record(False, True, 1.0)
    assert (
        b.acquire(1.0) and b.force(None, 2.0, "checked") and b.state == CLOSED and b.window.n == 0
    )
    b.force(OPEN, 3.0, "maintenance")
    assert not b.poll(1e12) and not b.acquire(1e12) and not b.record(True, False, 1e12, probe=True)
    assert b.force(None, 1e12, "done") and b.state == HALF_OPEN


@pytest.mark.parametrize(
    "bad",
    [
        dict(window=0),
        dict(window=5),
        dict(min_calls=True),
        dict(failure_rate=0.0),
        dict(failure_rate=1.1),
        dict(slow_rate=nan),
        dict(open_s=inf),
        dict(open_s=-1.0),
        dict(open_s=400.0),
        dict(backoff=0.5),
        dict(jitter=1.5),
        dict(probes=-1),
        dict(probe_success="3"),
        dict(max_half_open_s=0.0),
        dict(quick_s=-0.1),
        dict(quick_s=nan),
        dict(lasting_s=-1.0),
        dict(lasting_s=inf),
    ],
)
def test_breaker_config_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad)) + r"|min_calls"):
        BreakerConfig(**bad)


@pytest.mark.parametrize(
    "bad",
    [
        dict(start=0.0),
        dict(stop=0.5),
        dict(stop=-0.1),
        dict(dwell_s=0.0),
        dict(floor=0.0),
        dict(cap=1.5),
        dict(margin=0.0),
        dict(margin=nan),
        dict(lift=0.0),
    ],
)
def test_shed_config_refuses(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        ShedConfig(**bad)


def test_unknown_parameters_raise():
    with pytest.raises(TypeError):
        BreakerConfig(timeout=3)
    with pytest.raises(TypeError):
        ShedConfig(treshold=0.5)
    with pytest.raises(ValueError, match="ajar"):
        Breaker("x").force("ajar", 0.0, "typo")


@given(st.sampled_from([0.0, 0.3, 0.5, 0.9, 1.0]), st.integers(2, 8))
def test_where_everyone_is_as_bad_nobody_sheds(p, n):
    fleet = {f"b{k}": 1.0 + k for k in range(n)}
    assert set(Shedder().update(dict.fromkeys(fleet, p), fleet, 0.0).values()) == {1.0}


@settings(deadline=None)
@given(
    p=st.lists(st.floats(0.3, 1.0), min_size=2, max_size=6), who=st.integers(0, 5), up=st.booleans()
)
def test_what_is_shed_follows_the_forecast_without_jumps(p, who, up):
    "No swap of whole weights when two backends of nearly equal risk change their order."
    cfg, names = ShedConfig(), "abcdef"[: len(p)]
    near = list(p)
    near[who % len(p)] += 1e-7 if up else -1e-7
    out = [
        _flows(
            {b: _wish(q, cfg) for b, q in zip(names, x)},
            dict(zip(names, x)),
            dict.fromkeys(names, 2.0),
            cfg,
        )
        for x in (p, near)
    ]
    assert all(abs(out[0][b] - out[1][b]) < 1e-4 for b in names)


def test_a_wavering_forecast_does_not_flap():
    s, fleet, left = Shedder(), dict(a=1.0, b=1.0), []
    for k in range(600):
        left.append(s.update(dict(a=0.9 if k % 2 else 0.2, b=0.05), fleet, float(k))["a"])
    assert len(s.events) == 1
    assert max(abs(x - y) for x, y in zip(left[2:], left[3:])) < 0.75 and min(left) < 0.2
    calm = Shedder()
    for k in range(600):
        calm.update(dict(a=0.9 if k // 50 % 2 else 0.0, b=0.05), fleet, float(k))
    gaps = [f.at_s - e.at_s for e, f in zip(calm.events, list(calm.events)[1:])]
    assert gaps and min(gaps) >= 60.0


def test_between_the_thresholds_it_stays_as_it_is():
    s, fleet = Shedder(), dict(a=1.0, b=9.0)
    assert s.update(dict(a=0.4, b=0.0), fleet, 0.0)["a"] == 1.0
    for k in range(1, 300):
        left = s.update(dict(a=0.6 if k == 1 else 0.4, b=0.0), fleet, float(k))
    assert left["a"] == pytest.approx(1.0 - 0.98 * 0.15 / 0.75) and len(s.events) == 1
    assert s.update(dict(a=0.25, b=0.0), fleet, 400.0)["a"] == 1.0 and s.events[-1].new == FULL


def test_weight_moves_to_a_target_only_as_it_is_clearly_better():
    cap, cfg = dict(a=1.0, b=1.0), ShedConfig(margin=0.1)
    sent = [
        _flows({"a": 0.5}, dict(a=0.9, b=0.9 - d), cap, cfg)["a"]
        for d in (0.05, 0.1, 0.1 + 1e-9, 0.12, 0.14, 0.2, 0.5)
    ]
    assert sent == pytest.approx([0.0, 0.0, 0.0, 0.2, 0.4, 0.5, 0.5], abs=1e-6)


def test_shedding_ends_at_once_when_the_opinion_is_lost():
    for lost, fleet in (
        (nan, dict(a=1.0, b=1.0)),
        (None, dict(a=1.0, b=1.0)),
        (0.9, dict(a=0.0, b=1.0)),
        (0.9, dict(a=nan, b=1.0)),
    ):
        s = Shedder()
        assert s.update(dict(a=0.9, b=0.0), dict(a=1.0, b=1.0), 0.0)["a"] < 1.0
        assert (
            s.update(dict(a=lost, b=0.0), fleet, 1.0) == dict(a=1.0, b=1.0)
            and s.events[-1].new == FULL
        )
        # dwell time
        assert s.update(dict(a=0.9, b=0.0), dict(a=1.0, b=1.0), 59.0) == dict(a=1.0, b=1.0)
        assert s.update(dict(a=0.9, b=0.0), dict(a=1.0, b=1.0), 61.0)["a"] < 1.0


def test_shedding_comes_back_gently():
    "Bad news at once, good news no faster than from one to zero in a dwell time."
    s, fleet = Shedder(), dict(a=1.0, b=9.0)
    left = [
        s.update(dict(a=1.0 if k < 10 else 0.3, b=0.0), fleet, float(k))["a"] for k in range(60)
    ]
    assert (
        _wish(1.0, ShedConfig()) == pytest.approx(0.98)
        and left[0] == pytest.approx(0.02)
        and max(y - x for x, y in zip(left, left[1:])) < 0.03
    )
    assert left[-1] > 0.9


def test_no_opinion_is_no_target_and_no_source():
    s = Shedder()
    for q in (None, nan, inf, -1.0, 2.0):
        assert s.update(dict(a=1.0, b=q), dict(a=1.0, b=1.0), 0.0) == dict(a=1.0, b=1.0)
    # b's breaker is open
    assert s.update(dict(a=1.0, b=0.0), dict(a=1.0, b=0.0), 0.0) == dict(a=1.0, b=1.0)
    assert s.update(dict(a=1.0), dict(a=1.0, b=1.0), 0.0) == dict(a=1.0, b=1.0) and not s.events


def test_a_forecast_alone_never_takes_more_than_the_cap():
    fleet = {f"b{k}": float(1 + k % 3) for k in range(20)}
    s = Shedder(ShedConfig(lift=100.0))
    left = s.update({b: 1.0 if k else 0.0 for k, b in enumerate(fleet)}, fleet, 0.0)
    assert sum((1 - left[b]) * fleet[b] for b in fleet) == pytest.approx(0.5 * sum(fleet.values()))


def test_panic_below_half_the_capacity():
    assert [in_panic(a, 8.0) for a in (8.0, 4.0, 3.9, 0.0)] == [False, False, True, True]
    assert in_panic(7.0, 8.0, share=0.9) and not in_panic(0.0, 0.0)
