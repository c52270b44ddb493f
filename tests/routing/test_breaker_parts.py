"The parts of breaker and shedder by hand: bounds, counts, waits, trials, and who takes what."

from dataclasses import asdict, replace
from math import inf, nan

import pytest
from breakers import opened

from arcpoint_ce.routing.breaker import (
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
    _Backoff,
    _common_factor,
    _counts,
    _flows,
    _Hold,
    _Ledger,
    _room,
    _Trial,
    _wish,
    in_panic,
    trouble,
)

# ---- settings

LEAST = [
    *[("window", 10, 9.5), ("min_calls", 1, 0), ("consecutive", 1, 0), ("probe_success", 1, 0)],
    *[("probes", 0, -1), ("failure_rate", 0.01, 0.0), ("slow_rate", 0.01, 0.0)],
    *[("open_s", 0.1, 0.0), ("max_half_open_s", 0.1, 0.0), ("patient_s", 0.0, -0.1)],
    *[("quick_s", 0.0, -0.1), ("lasting_s", 0.0, -0.1), ("backoff", 1.0, 0.9)],
    *[("jitter", 0.0, -0.1), ("max_open_s", 10.0, 9.9)],
]


@pytest.mark.parametrize("name, good, bad", LEAST, ids=[x[0] for x in LEAST])
def test_a_setting_of_a_breaker_has_a_least_value(name, good, bad):
    assert getattr(BreakerConfig(**{name: good}), name) == good
    for value in (bad, inf, nan, True, "1"):
        with pytest.raises(ValueError, match=f"BreakerConfig: {name} "):
            BreakerConfig(**{name: value})


def test_shares_of_a_breaker_are_at_most_one_and_whole_numbers_are_whole():
    assert BreakerConfig(failure_rate=1, jitter=1).jitter == 1
    for bad in (dict(failure_rate=1.01), dict(jitter=1.01)):
        with pytest.raises(ValueError, match="and at most 1, got 1.01"):
            BreakerConfig(**bad)
    for name in ("window", "min_calls", "consecutive", "probe_success", "probes"):
        with pytest.raises(ValueError, match=f"{name} must be a whole number of at least"):
            BreakerConfig(**{name: 2.5})
    with pytest.raises(ValueError, match="min_calls 11 exceeds the window of 10; widen the window"):
        BreakerConfig(window=10, min_calls=11)
    assert BreakerConfig(window=10, min_calls=10, open_s=5.0, max_open_s=5.0).min_calls == 10


def test_the_settings_that_the_documents_name_are_the_default():
    assert asdict(BreakerConfig()) == dict(
        window=50,
        min_calls=10,
        failure_rate=0.5,
        slow_rate=0.8,
        consecutive=5,
        open_s=10.0,
        backoff=2.0,
        max_open_s=300.0,
        patient_s=0.0,
        jitter=0.2,
        probes=3,
        probe_success=3,
        max_half_open_s=30.0,
        quick_s=0.0,
        lasting_s=0.0,
        forgiving=False,
    )
    assert asdict(ShedConfig()) == dict(
        start=0.5, stop=0.25, dwell_s=60.0, floor=0.02, cap=0.5, margin=0.1, lift=1.0
    )


def test_settings_of_the_shedder_lie_within_their_bounds():
    for bad in (
        dict(start=0.0),
        dict(start=1.1),
        dict(stop=-0.1),
        dict(floor=0.0),
        dict(floor=1.1),
        dict(cap=0.0),
        dict(cap=1.1),
        dict(margin=0.0),
        dict(margin=0.51),
        dict(dwell_s=0.0),
        dict(lift=0.0),
        dict(stop=0.5),
    ):
        with pytest.raises(ValueError, match=f"ShedConfig: {next(iter(bad))} "):
            ShedConfig(**bad)
    assert ShedConfig(start=1.0, stop=0.0, floor=1.0, cap=1.0, margin=0.5).margin == 0.5


# ---- the window and its rules


def filled(*outcomes: str, size: int = 5) -> Window:
    "Outcomes: + well, s slow, - failed, x failed and slow, q failed at once."
    w = Window(size)
    for outcome in "".join(outcomes):
        w.push(outcome in "+s", outcome in "sx", quick=outcome == "q")
    return w


@pytest.mark.parametrize(
    "outcomes, calls, failed, slow, run",
    [
        ("", 0, 0, 0, 0),
        ("+s-x", 4, 2, 2, 2),
        ("--+", 3, 2, 0, 0),
        ("-q-", 3, 3, 0, 2),
        ("x++++", 5, 1, 1, 0),
        ("x+++++", 5, 0, 0, 0),
        ("xxxxxs", 5, 4, 5, 0),
        ("sssss-", 5, 1, 4, 1),
    ],
)
def test_a_window_counts_its_newest_outcomes(outcomes, calls, failed, slow, run):
    w = filled(outcomes)
    assert (w.n, w.failed, w.slow, w.run) == (calls, failed, slow, run)
    assert w.calm is (outcomes == "x+++++") and w.size == 5
    said = _counts(w)
    assert (said["calls"], said["failed"], said["slow"], said["consecutive"]) == (
        calls,
        failed,
        slow,
        run,
    )
    assert said["failure_rate"] == (round(failed / calls, 4) if calls else None)
    assert said["slow_rate"] == (round(slow / calls, 4) if calls else None)
    again = Window(5)
    again.restore(w.memo())
    assert _counts(again) == said and (again.at, again.calm) == (w.at, w.calm)
    assert bool(w.push(True, False)) is bool(w.failed or w.slow)
    other = Window(4)
    other.restore(w.memo())
    assert other.n == 0 and not other.calm


CONFIG = BreakerConfig(
    window=10, min_calls=4, consecutive=3, failure_rate=0.5, slow_rate=0.75, lasting_s=2.0
)


@pytest.mark.parametrize(
    "outcomes, since_s, why",
    [
        ("---", inf, "3 calls in a row failed (limit 3)"),
        ("-+-", inf, None),
        ("+--+", inf, "2 of 4 calls failed (limit 50%)"),
        ("+--+", 2.0, "2 of 4 calls failed (limit 50%)"),
        ("+--+", 1.9, None),
        ("+--++", inf, None),
        ("sss", inf, None),
        ("sss+", inf, "3 of 4 calls were slower than the SLO (limit 75%)"),
        ("ss++", inf, None),
        ("+qqq", inf, "3 of 4 calls failed (limit 50%)"),
        ("qqq", inf, None),
    ],
    ids=str,
)
def test_when_a_breaker_should_open(outcomes, since_s, why):
    assert trouble(filled(outcomes, size=10), CONFIG, since_s) == why


def test_panic_is_less_than_half_of_the_capacity():
    assert in_panic(4.9, 10.0) and not in_panic(5.0, 10.0) and not in_panic(0.0, 0.0)
    assert in_panic(2.0, 10.0, share=0.3) and not in_panic(3.0, 10.0, share=0.3)


# ---- waits


def test_each_wait_is_longer_until_the_longest_and_new_trouble_begins_anew():
    config = BreakerConfig(open_s=10.0, backoff=3.0, max_open_s=100.0, jitter=0.0, patient_s=500.0)
    b = _Backoff(0)
    assert b.patient_until_s(config) == 0.0
    waits, patient = [], []
    for k in range(5):
        waits.append(b.next_wait_s(config, 1000.0 * k, afresh=False))
        patient.append(b.patient_until_s(config) - 1000.0 * k)
    assert waits == [10.0, 30.0, 90.0, 100.0, 100.0]
    assert patient == [10.0, 30.0, 90.0, 270.0, 500.0] and b.opens == 5
    assert b.next_wait_s(config, 7000.0, afresh=True) == 10.0 and b.opens == 1
    assert (b.opened_s, b.base_s, b.wait_s) == (7000.0, 10.0, 10.0)
    again = _Backoff(1)
    again.restore(b.memo())
    assert again.memo() == b.memo() == dict(opens=1, opened_s=7000.0, wait_s=10.0, base_s=10.0)


def test_jitter_leaves_out_up_to_its_share_of_a_wait():
    config = BreakerConfig(open_s=10.0, backoff=1.0, jitter=0.2, patient_s=10.0)
    b = _Backoff(0)
    waits = [b.next_wait_s(config, 0.0, afresh=False) for _ in range(500)]
    assert 8.0 <= min(waits) < 8.1 and 9.9 < max(waits) <= 10.0
    assert b.patient_until_s(config) == pytest.approx(b.wait_s)  # it waits with the same jitter
    for _ in range(3000):
        b.next_wait_s(BreakerConfig(backoff=2.0, patient_s=1e9), 0.0, afresh=False)
    assert b.patient_until_s(BreakerConfig(patient_s=1e9)) <= 1e9


def test_a_clock_that_ran_ahead_is_set_back_and_waits_keep_their_length():
    ledger = _Ledger("a")
    ledger.tell(100.0)
    ledger.move(OPEN, "why", {}, 130.0)
    ledger.set_back(40.0)
    assert (ledger.since_s, ledger.until_s, ledger.now_s) == (40.0, 70.0, 40.0)
    ledger.set_back(50.0)
    assert (ledger.since_s, ledger.until_s, ledger.now_s) == (40.0, 70.0, 40.0)
    ledger.set_back(40.0, longest_s=20.0)
    assert ledger.until_s == 60.0
    assert [ledger.tell(t) for t in (30.0, inf, nan, 45.0)] == [40.0, 40.0, 40.0, 45.0]
    assert [ledger.would_show(t) for t in (44.0, 50.0, inf)] == [45.0, 50.0, 45.0]
    assert ledger.now_s == 45.0 and ledger.describe(50.0)["left_s"] == 10.0
    closed = _Ledger("a")
    closed.set_back(-5.0, 10.0)
    assert closed.until_s == inf and closed.describe(0.0)["left_s"] is None


# ---- a trial


def test_a_trial_has_so_many_slots_and_ends_with_enough_verdicts():
    config = BreakerConfig(probe_success=2, max_half_open_s=30.0)
    t = _Trial()
    assert t.ends_s(5.0, config) == 35.0  # nothing is out: it begins now
    assert [t.take(10.0, 2, 40.0), t.take(12.0, 2, 5.0), t.take(13.0, 2)] == [True, True, False]
    assert (t.out, t.busy_s, t.patience_s, t.ends_s(20.0, config)) == (2, 10.0, 40.0, 50.0)
    assert t.verdict(True, False, config) == (HALF_OPEN, "") and (t.good, t.out) == (1, 1)
    assert t.verdict(True, True, config) == (HALF_OPEN, "") and (t.slow, t.out) == (1, 0)
    t.give_back()
    assert t.out == 0
    t.take(60.0, 2, 5.0)
    assert (t.busy_s, t.patience_s) == (60.0, 5.0)
    t.take(61.0, 2, 7.0)
    assert t.patience_s == 7.0
    assert t.verdict(True, False, config) == (CLOSED, "2 probes succeeded")
    assert t.evidence(failed=True) == dict(good=2, slow=1, failed=1, probes_out=1)
    late = _Trial()
    assert late.verdict(True, True, config)[0] == HALF_OPEN
    assert late.verdict(True, True, config) == (OPEN, "slower than the SLO: 2 probes")
    assert _Trial().verdict(False, False, config) == (OPEN, "a probe failed")
    off = _Trial()
    assert off.verdict(True, True, BreakerConfig(slow_rate=1.1, probe_success=1)) == (
        CLOSED,
        "1 probe succeeded",
    )
    assert _Trial().verdict(True, True, BreakerConfig(slow_rate=1.0, probe_success=1))[0] == OPEN


STEADY = BreakerConfig(jitter=0.0)
UNTRIED = replace(STEADY, probes=0)


def test_a_breaker_says_why_it_moved_and_with_what_evidence():
    b = opened(STEADY)
    said = b.describe(104.0)
    told = [said[name] for name in ("state", "since_s", "until_s", "left_s")]
    assert told == [OPEN, 100.0, 110.0, 6.0]
    assert said["evidence"]["failed"] == 5 and said["evidence"]["wait_s"] == 10.0
    b.record(False, False, 105.0)
    b.record(True, False, 105.0)
    assert b.describe(105.0)["late"] == 2
    assert b.poll(110.0) and b.state == HALF_OPEN
    assert b.reason == "waited 10.0 s; at most 3 probes at a time may try it"
    last = b.transitions[-1].evidence
    assert (last["late"], last["late_failed"], last["opens"]) == (2, 1, 1)
    assert b.acquire(111.0) and b.describe(111.0)["probes_out"] == 1
    assert not b.poll(140.0) and b.poll(141.0) and b.state == OPEN
    assert b.reason == "1 probe out for 30 s without a verdict"
    assert b.until_s == 141.0 + 20.0


def test_without_probes_it_closes_when_the_wait_is_over():
    b = opened(UNTRIED)
    assert not b.poll(109.9) and b.poll(110.0) and b.state == CLOSED
    assert b.reason == "waited 10.0 s; failures alone can open it again" and b.slots == 1
    assert b.window.n == 0 and b.transitions[-1].evidence["opens"] == 1


def test_trouble_soon_after_it_closed_is_the_same_trouble_unless_it_forgives():
    for forgiving, ok, waits in ((False, True, 20.0), (True, True, 10.0), (True, False, 20.0)):
        b = opened(replace(UNTRIED, forgiving=forgiving))
        b.poll(110.0)
        if ok:
            b.record(True, False, 111.0)
        for _ in range(5):
            b.record(False, False, 112.0)
        assert b.until_s - 112.0 == waits
    b = opened(UNTRIED)
    b.poll(110.0)
    for _ in range(5):
        b.record(False, False, 120.0)  # it was calm for as long as the last wait
    assert b.until_s == 130.0


def test_failures_count_since_the_newest_success():
    b = Breaker("a")
    assert (b.good_s, b.bad_s) == (-inf, inf)
    for ok, now, good_s, bad_s in (
        (False, 5.0, -inf, 5.0),
        (False, 6.0, -inf, 5.0),
        (True, 7.0, 7.0, inf),
        (False, 8.0, 7.0, 8.0),
    ):
        b.record(ok, False, now)
        assert (b.good_s, b.bad_s) == (good_s, bad_s)
    b.set_back(3.0)
    assert (b.good_s, b.bad_s) == (3.0, 3.0)


def test_a_person_holds_a_breaker_and_hands_it_back():
    b = Breaker("a", BreakerConfig(jitter=0.0))
    assert b.force(None, 0.0, "nothing") is False
    assert b.force(OPEN, 1.0, "works") and (b.state, b.forced) == (OPEN, OPEN)
    assert b.reason == "forced open: works" and b.until_s == inf
    assert not b.poll(1e6) and b.force(None, 1e6, "done")
    assert (b.state, b.forced, b.reason) == (HALF_OPEN, None, "no longer forced open: done")
    assert b.force(CLOSED, 1e6, "trust me") and b.reason == "forced closed: trust me"
    for _ in range(9):
        assert not b.record(False, False, 1e6)
    assert b.force(None, 1e6, "enough") and b.state == CLOSED
    assert b.reason == "no longer forced closed: enough"
    assert b.force(HALF_OPEN, 1e6, "try") and b.forced is None
    assert b.reason == "on trial by hand: try"
    with pytest.raises(ValueError, match="state must be 'closed', 'open', 'half_open' or None"):
        b.force("ajar", 0.0, "")


def test_a_memo_of_no_breaker_changes_nothing():
    b = opened(STEADY)
    memo = b.memo()
    for bad in (memo | dict(state="ajar"), memo | dict(ring="zz"), {"state": OPEN}):
        with pytest.raises((ValueError, KeyError)):
            b.restore(bad)
    assert b.memo() == memo
    fresh = Breaker("a", BreakerConfig(jitter=0.0))
    fresh.restore(memo)
    assert fresh.memo() == memo and (fresh.state, fresh.until_s) == (OPEN, 110.0)
    assert fresh.transitions[-1].evidence == dict(restored=True)


# ---- shedding


def test_a_wish_grows_from_the_stop_to_certainty():
    config = ShedConfig(stop=0.2, floor=0.1)
    assert [_wish(p, config) for p in (0.1, 0.2, 0.6, 1.0)] == pytest.approx([0.0, 0.0, 0.45, 0.9])


def test_room_is_offered_by_the_clearly_better():
    config = ShedConfig(margin=0.1)
    p = dict(a=0.8, b=0.75, c=0.65, d=0.1, e=0.1)
    size = dict(a=4.0, b=4.0, c=4.0, d=4.0, e=0.0)
    assert _room("a", p, size, config) == pytest.approx(dict(c=2.0, d=4.0))
    assert _room("d", p, size, config) == {}


def test_flows_shrink_to_what_targets_take_and_the_fleet_allows():
    size = dict(a=4.0, b=4.0, c=8.0)
    p = dict(a=0.9, b=0.9, c=0.1)
    one = _flows(dict(a=0.5), p, size, ShedConfig())
    assert one == pytest.approx(dict(a=2.0))
    both = _flows(dict(a=1.0, b=1.0), p, size, ShedConfig(lift=0.5))
    assert both == pytest.approx(dict(a=2.0, b=2.0))  # c takes half of its 8
    capped = _flows(dict(a=1.0, b=1.0), p, size, ShedConfig(cap=0.125))
    assert capped == pytest.approx(dict(a=1.0, b=1.0))  # an eighth of 16
    alone = _flows(dict(a=1.0), dict(a=0.9, b=0.85), size, ShedConfig())
    assert alone == dict(a=0.0)  # nobody is clearly better
    assert _common_factor(dict(a=4.0, b=1.0, c=0.0), dict(a=2.0, b=4.0, c=0.0), 1.0) == 0.5
    assert _common_factor(dict(a=1.0), dict(a=2.0), 1.0) == 1.0


def test_what_a_hold_remembers_falls_from_one_to_zero_in_the_dwell_time():
    config, h = ShedConfig(start=0.5, stop=0.25, dwell_s=60.0), _Hold()
    assert [h.wants(p, 1.0, config) for p in (0.49, 0.5)] == [False, True] and h.held == 0.5
    h.state, h.held = SHEDDING, 0.9
    assert h.wants(0.1, 30.0, config) and h.held == pytest.approx(0.4)
    assert h.wants(0.7, 30.0, config) and h.held == 0.7
    assert not h.wants(0.25, 60.0, config) and h.held == 0.25


def test_a_backend_sheds_at_once_and_recovers_after_the_dwell_time():
    shedder = Shedder(ShedConfig(dwell_s=60.0))
    size = dict(a=4.0, b=8.0)
    shedder.update({}, size, 0.0)
    kept = shedder.update(dict(a=0.75, b=0.1), size, 100.0)
    # two thirds of the way from stop to certainty, and 2 % always stay
    assert kept == pytest.approx(dict(a=1 - 0.98 * 2 / 3, b=1.0))
    hold = shedder.holds["a"]
    assert (hold.state, hold.since_s, hold.until_s) == (SHEDDING, 100.0, 160.0)
    assert hold.reason.startswith("forecast to breach with probability 0.75 (start 0.5); 65% of")
    event = shedder.events[-1]
    assert (event.old, event.new, event.until_s) == (FULL, SHEDDING, 160.0)
    assert event.evidence == dict(
        p_breach=0.75, multiplier=round(kept["a"], 4), capacity=4.0, better=dict(b=0.1)
    )
    told = shedder.describe(130.0)
    assert [t["backend"] for t in told] == ["a"] and told[0]["left_s"] == 30.0
    assert told[0]["p_held"] == 0.75 and told[0]["multiplier"] == round(kept["a"], 4)
    still = shedder.update(dict(a=0.0, b=0.0), size, 159.0)
    assert still["a"] == 1.0 and shedder.holds["a"].state == SHEDDING
    shedder.update(dict(a=0.0, b=0.0), size, 160.0)
    assert shedder.holds["a"].state == FULL and shedder.describe(160.0) == []
    assert shedder.events[-1].reason == "probability of a breach down to 0.00 (stop 0.25)"
    again = shedder.update(dict(a=0.9, b=0.0), size, 161.0)
    assert again["a"] == 1.0  # the other state lasts as long
    assert shedder.update(dict(a=0.9, b=0.0), size, 220.0)["a"] < 0.2


def test_shedding_ends_where_no_opinion_or_no_capacity_is_left():
    for p, size, why in (
        (dict(b=0.1), dict(a=4.0, b=8.0), "no opinion about it any more"),
        (dict(a=nan, b=0.1), dict(a=4.0, b=8.0), "no opinion about it any more"),
        (dict(a=1.1, b=0.1), dict(a=4.0, b=8.0), "no opinion about it any more"),
        (dict(a=0.9, b=0.1), dict(a=0.0, b=8.0), "no capacity left to shed from"),
        (dict(b=0.1), dict(b=8.0), "left the fleet"),
    ):
        shedder = Shedder()
        shedder.update(dict(a=0.9, b=0.1), dict(a=4.0, b=8.0), 100.0)
        assert shedder.holds["a"].state == SHEDDING
        kept = shedder.update(p, size, 101.0)
        assert shedder.events[-1].reason == why and kept.get("a", 1.0) == 1.0
        assert ("a" in shedder.holds) is ("a" in size)


def test_a_shedders_clock_that_ran_ahead_is_set_back():
    shedder = Shedder()
    shedder.update(dict(a=0.9, b=0.1), dict(a=4.0, b=8.0), 100.0)
    shedder.set_back(30.0)
    hold = shedder.holds["a"]
    assert (hold.since_s, hold.until_s, shedder.log.now_s) == (30.0, 90.0, 30.0)
    assert shedder.holds["b"].until_s == 0.0
