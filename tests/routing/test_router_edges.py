"The router where a rule just holds, or just does not: limits, clocks, memos, late and early news."

import pytest

from arcpoint_ce.routing.decisions import NoBackend
from arcpoint_ce.routing.policies import RandomChoice
from arcpoint_ce.routing.records import Backend, Outcome, Request
from arcpoint_ce.routing.router import Router, RouterConfig


def fleet(n: int = 2, policy=None, backends=None, **how) -> Router:
    backends = backends or [Backend(f"b{k}", capacity=8.0) for k in range(n)]
    return Router(backends, policy or RandomChoice(), config=RouterConfig(explore=0.0, **how))


def test_a_request_of_unknown_length_is_asked_for_at_its_usual_length():
    r = fleet(backends=[Backend("a", capacity=8.0, tpm=2_000), Backend("b", capacity=8.0)])
    left_tok = 2_000
    while left_tok >= 1_020:  # a view that is kept lets up to 1,000 pass unasked
        d = r.decide(Request(tokens_in=10, tokens_out=10), 58.0)
        if d.backend == "a":
            left_tok -= 20
    assert r.status(58.0)[0]["limits"]["tokens_left"] == left_tok
    for _ in range(30):  # 800 and the usual 256 are more than is left
        d = r.decide(Request(tokens_in=800), 58.0)
        assert d.backend == "b"
        r.cancel(d, 58.0)


def test_a_request_that_fills_a_minute_is_not_too_large_for_it():
    r = fleet(backends=[Backend("a", tpm=100)])
    r.decide(Request(tokens_in=10, tokens_out=10), 0.0)
    with pytest.raises(NoBackend, match="rate limit is spent until 60.0 s from now"):
        r.decide(Request(tokens_in=60, tokens_out=40), 0.0)
    with pytest.raises(NoBackend, match="request of 101 tok exceeds its 100 per minute"):
        r.decide(Request(tokens_in=60, tokens_out=41), 0.0)


def test_when_to_come_back_is_never_in_the_past():
    r = fleet(1, last_resort=False)
    r.force("b0", "open", 0.0, "maintenance")
    with pytest.raises(NoBackend) as refused:
        r.decide(Request(), 1e6)
    assert refused.value.retry_after_s is None or refused.value.retry_after_s >= 0.0


def test_reservations_keep_their_lease_when_the_clock_is_set_back():
    r = fleet(lease_s=30.0)
    d = r.decide(Request(), 1_000.0)
    r.decide(Request(), 100.0)  # the clock ran 900 s ahead
    r.roll(129.0)
    assert sum(r.in_flight().values()) == 2 and r.counts["expired"] == 0
    r.roll(131.0)
    assert sum(r.in_flight().values()) == 0 and r.counts["expired"] == 2
    assert d.id in r._reservations.lapsed


def outcome(r: Router, at_s: float, ok: bool = True) -> bool:
    "An outcome from elsewhere, without a time of arrival."
    return r.observe(Outcome("b0", at_s, 10.0, ok, None if ok else "503"))


def test_an_outcome_that_runs_ahead_of_the_clock_waits_for_it():
    r = fleet()
    r.decide(Request(), 0.0)
    assert outcome(r, 20.0, ok=False) and len(r._strays.early) == 1
    assert r._signals.error[0] == 0.0
    r.decide(Request(), 21.0)
    assert not r._strays.early and r._signals.error[0] > 0.0


def test_an_outcome_within_the_slack_of_the_clock_counts_at_once():
    r = fleet()
    r.decide(Request(), 0.0)
    outcome(r, 5.0, ok=False)
    assert not r._strays.early and r._signals.error[0] > 0.0


def test_outcomes_that_waited_are_learned_in_the_order_of_their_dates():
    def errors(*at_s: float) -> float:
        r = fleet()
        r.decide(Request(), 0.0)
        for s in at_s:
            outcome(r, s, ok=s == 90.0)
        r.decide(Request(), 100.0)
        return r._signals.error[0]

    assert errors(90.0, 10.0) == errors(10.0, 90.0) < errors(80.0, 85.0)


def test_only_so_many_outcomes_wait_and_the_others_count_at_once():
    r = fleet()
    r.decide(Request(), 0.0)
    for k in range(r._strays.MOST_EARLY + 1):
        outcome(r, 20.0 + k / 1e6, ok=False)
    assert len(r._strays.early) == r._strays.MOST_EARLY and r._signals.error[0] > 0.0


def test_a_refused_key_is_tried_a_minute_after_the_refusal_came():
    r = fleet(1)
    for k in range(5):
        d = r.decide(Request(tenant=f"t{k}"), 10.0)
        r.observe(Outcome("b0", 10.0, 2_000.0, False, "401", d.id, status=401), 12.0)
    assert r.dead_keys() and r._lanes["b0"].hold.until_s == pytest.approx(12.0 + 60.0)


def test_the_end_of_a_stream_tells_of_the_time_since_its_last_report():
    r = Router([Backend("b0")], config=RouterConfig(explore=0.0))
    d = r.decide(Request(tokens_out=100), 0.0)
    r.progress(d, 40, 3.0)
    r.observe(Outcome("b0", 0.0, 5_000.0, decision=d.id, tokens_out=60), 5.0)
    assert r._lanes["b0"].nowcast.pace_s == 2.0 / 20


def test_a_memo_holds_the_times_that_are_known_and_none_for_the_others():
    r = Router([Backend("b0"), Backend("b1")], config=RouterConfig(explore=0.0))
    d = r.decide(Request(tokens_out=100), 0.0)
    for second in (1.0, 2.0, 3.0):
        r.progress(d, int(20 * second), second)
        r.cancel(r.decide(Request(), second), second)
    measured = r.memo()["measured"]
    assert measured[d.backend]["streamed_s"] == 3.0 == measured[d.backend]["heard_s"]
    other = next(x for name, x in measured.items() if name != d.backend)
    assert other["streamed_s"] is None and other["heard_s"] is None


@pytest.mark.parametrize("stamp_s", [float("inf"), float("-inf"), float("nan")])
def test_a_date_that_is_none_is_no_measurement(stamp_s):
    r = fleet()
    memo = r.memo()
    memo["measured"]["b0"]["stamp_s"] = stamp_s
    assert "these are no measurements" in r.restore(memo)[0]


@pytest.mark.parametrize("count", [1, 2, 4, 5, 7])
def test_books_of_a_limit_hold_three_or_six_numbers(count):
    r = fleet(backends=[Backend("a", rpm=60)])
    memo = r.memo()
    memo["measured"]["a"]["minute"] = [0.0] * count
    assert "these are no books of a rate limit" in r.restore(memo)[0]


@pytest.mark.parametrize("count", [0, 3, 6])
def test_older_books_of_a_limit_are_shorter(count):
    r = fleet(backends=[Backend("a", rpm=60)])
    memo = r.memo()
    memo["measured"]["a"]["minute"] = [0.0] * count
    assert r.restore(memo) == []
