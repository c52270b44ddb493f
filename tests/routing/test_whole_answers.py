"""Servers that take a few requests at once and let the others wait, and a router that hears of
whole answers only: it must not chase its own tail.
"""

from collections import deque
from heapq import heappop, heappush
from itertools import count
from random import Random

import pytest

from arcpoint_ce.routing.nowcast import Crowding
from arcpoint_ce.routing.policies import make_policy
from arcpoint_ce.routing.records import Backend, Outcome, Request
from arcpoint_ce.routing.router import Router, RouterConfig

SEATS = 8  # of every server
SPEEDS = (1.0, 1.0, 1.0, 1.3)  # s that a request of usual length takes there


class Server:
    "Requests in the order in which they came, a few at once."

    def __init__(self, name: str, takes_s: float):
        self.name, self.takes_s = name, takes_s
        self.busy, self.waiting = 0, deque()


def queued(policy: str, load: float, unevenness: float, tokens: bool, n=2000, seed=1) -> float:
    "Share of the requests that took more than three times what one usually takes."
    names = [f"b{k}" for k in range(len(SPEEDS))]
    fleet = [Backend(name, capacity=float(SEATS)) for name in names]
    router = Router(fleet, policy=make_policy(policy), config=RouterConfig(slo_ms=3000.0))
    servers = {name: Server(name, s) for name, s in zip(names, SPEEDS)}
    gap_s = 1.0 / (load * sum(SEATS / s for s in SPEEDS))
    random, number, late = Random(seed), count(), 0
    events: list[tuple] = [(0.0, next(number), None, None)]

    def seat(server, job, now):
        server.busy += 1
        heappush(events, (now + job[1] * server.takes_s, next(number), server, job))

    arrived = 0
    while events:
        now, _, server, job = heappop(events)
        if server is None:
            arrived += 1
            if arrived < n:
                heappush(events, (now + random.expovariate(1 / gap_s), next(number), None, None))
            d = router.decide(Request(), now)
            job = (d, random.lognormvariate(-unevenness * unevenness / 2, unevenness))
            server = servers[d.backend]
            if server.busy < SEATS:
                seat(server, job, now)
            else:
                server.waiting.append(job)
            continue
        d, length = job
        server.busy -= 1
        took_s = now - d.at_s
        late += took_s > 3.0
        told = max(1, round(200 * length)) if tokens else 0
        o = Outcome(d.backend, d.at_s, 1000 * took_s, decision=d.id, tokens_out=told)
        router.observe(o, now)
        if server.waiting:
            seat(server, server.waiting.popleft(), now)
    return late / n


@pytest.mark.parametrize("load", [0.45, 0.65, 0.8])
@pytest.mark.parametrize("unevenness", [0.2, 0.6])
def test_own_requests_that_wait_do_not_make_the_fleet_swing(load, unevenness):
    "As good as counting own requests, where lengths are known: without the guard half are late."
    plain = queued("least_in_flight", load, unevenness, tokens=True)
    assert queued("own_pace", load, unevenness, tokens=True) <= 1.3 * plain + 0.03


@pytest.mark.parametrize("load", [0.45, 0.65, 0.8])
def test_answers_of_unknown_length_count_for_less(load):
    plain = queued("least_in_flight", load, 0.6, tokens=False)
    assert queued("own_pace", load, 0.6, tokens=False) <= plain + 0.12


def one_by_one(**takes_s: float) -> list[str]:
    "Where 40 requests went, one at a time, to backends whose answers always take as long."
    router = Router([Backend(name, capacity=8.0) for name in takes_s])
    went, now = [], 0.0
    for _ in range(40):
        d = router.decide(Request(), now)
        now += takes_s[d.backend]
        router.observe(Outcome(d.backend, d.at_s, 1000 * takes_s[d.backend], decision=d.id), now)
        went.append(d.backend)
        now += 0.5
    return went


def test_the_first_backend_does_not_keep_all_requests_because_nobody_else_was_tried():
    assert one_by_one(a=1.6, b=0.1)[1:] == ["b"] * 39
    assert "a" not in one_by_one(a=1.6, b=0.1, c=0.1)[1:]
    assert set(one_by_one(a=0.1, b=0.1, c=0.1)) == {"a", "b", "c"}
    assert one_by_one(a=0.05, b=0.1, c=0.1).count("a") >= 37  # the others were tried once


def test_what_own_requests_do_is_learned():
    random, queue, others = Random(0), Crowding(), Crowding()
    for _ in range(300):
        fuller = random.lognormvariate(0.0, 0.5)
        noise = random.lognormvariate(0.0, 0.2)
        queue.learn(fuller * noise, fuller, 2.0)
        others.learn(noise, fuller, 1.1)
    assert queue.elasticity > 0.9 and others.elasticity < 0.15
    assert (queue.share, others.share) == (1.0, 0.0)
    assert queue.weight < others.weight
