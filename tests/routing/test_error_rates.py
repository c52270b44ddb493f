"What people are told of a backend's errors, however seldom it is asked."

import json

import pytest

from arcpoint_ce import Backend, Outcome, Request, Router

FLEET = (Backend("a", capacity=50.0), Backend("b", capacity=50.0))


def told(router: Router, now: float) -> float:
    "The error rate of `a` as its status has it."
    return next(x["error_rate"] for x in router.status(now) if x["backend"] == "a")


def seldom(gap_s: float, failed: list[bool]) -> tuple[Router, float]:
    "A router to which outcomes of `a` come at long intervals, and the time of the last."
    router, now = Router(FLEET), 0.0
    for bad in failed:
        now += gap_s
        o = Outcome("a", now, 200.0, not bad, "503" if bad else None)
        router.observe(o, now + 0.2)
    return router, now


@pytest.mark.parametrize("gap_s", [1.0, 30.0, 600.0])
def test_failures_alone_are_an_error_rate_of_one(gap_s):
    router, now = seldom(gap_s, [True] * 20)
    assert told(router, now + 1.0) == 1.0
    candidates = router.rank(Request(), now + 1.0)
    assert next(c.error_rate for c in candidates if c.backend == "a") == 1.0
    other = Router(FLEET)
    assert other.restore(json.loads(json.dumps(router.memo()))) == []
    assert told(other, now + 1.0) == 1.0


@pytest.mark.parametrize("gap_s", [1.0, 120.0])
def test_every_other_attempt_failed(gap_s):
    router, now = seldom(gap_s, [k % 2 == 0 for k in range(100)])
    assert told(router, now + 1.0) == pytest.approx(0.5, abs=0.06)


def test_one_failure_after_many_successes_is_a_tenth_and_then_forgotten():
    router, now = seldom(1.0, [False] * 50 + [True])
    assert told(router, now) == pytest.approx(0.1)
    router, now = seldom(1.0, [False] * 50 + [True] + [False] * 100)
    assert told(router, now) == 0.0


def test_a_newcomer_in_an_old_place_begins_without_errors():
    router, now = seldom(1.0, [True] * 20)
    router.remove("a")
    router.add(Backend("a", capacity=50.0), now + 1.0)
    assert told(router, now + 1.0) == 0.0
