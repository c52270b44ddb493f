"The belief about head-room: its bounds, whatever gauges, answers and clocks say."
from dataclasses import replace
from math import inf, isfinite

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arcpoint_ce.learning.gate import Gate
from arcpoint_ce.learning.headroom import Foresight, Journal, Response, RoomModel, Rooms, Sensor, clocks, fit_response, foresee, learn_rooms, untaught
from arcpoint_ce.routing.core import Backend
from arcpoint_ce.routing.policies import HeadRoom
from arcpoint_ce.routing.router import Router, RouterConfig
from arcpoint_ce.routing.core import Request

RESPONSE = Response((4., 16., 32.), (20., 24., 40.))
FLEET = tuple(Backend(n, capacity=32.) for n in "abc")


@given(st.floats(.1, 500.))
def test_response_and_its_inverse_agree(n):
    if n >= 4.: assert RESPONSE.most(RESPONSE.tpot(n)) == pytest.approx(n)
    assert RESPONSE.most(RESPONSE.tpot(n)) <= RESPONSE.most(RESPONSE.tpot(n) + 1.)


gauges = st.one_of(st.none(), st.tuples(st.floats(0, 300), st.integers(0, 50), st.floats(1., 1e4)))


@settings(deadline=None, max_examples=60)
@given(st.lists(st.tuples(st.lists(gauges, min_size=3, max_size=3), st.lists(st.integers(0, 60), min_size=3, max_size=3),
                          st.lists(st.tuples(st.integers(0, 2), st.floats(.01, 60.), st.integers(0, 2000)), max_size=4)), min_size=1, max_size=25), st.booleans())
def test_belief_is_always_usable(story, judged):
    "Whatever is seen, every forecast is finite and positive, and room for others is never negative."
    wild = tuple(Foresight(10., ((0., 50., -50., 200.),), ((0., 3., -3., 0.),)) for _ in FLEET)
    rooms = Rooms(FLEET, RoomModel((RESPONSE,)*3, (4.,)*3, wild), 50., 20., gate=Gate() if judged else None)
    router, now = Router(FLEET, HeadRoom(), config=RouterConfig(slo_ms=1e5)), 100.
    for said, own, answers in story:
        now += 2.
        for place, took, tokens in answers: rooms.answer(place, now - took, now, tokens)
        table = rooms.tick(now, [g and (now - .5, *g) for g in said], own)
        for f in table.values():
            assert f.ok() and f.occupied >= 0 and f.most > 0 and isfinite(f.occupied + f.most)
        router.swap(table, now)
        d = router.decide(Request(), now); assert router.cancel(d, now)


def test_forecasts_never_take_more_than_half_of_the_room():
    surge = Foresight(10., ((0., 0., 500., 500.),))
    rooms = Rooms(FLEET, RoomModel((RESPONSE,)*3, (0.,)*3, (surge,)*3), 40., 20., trusted=9.)
    table = rooms.tick(5., [(5., 0., 0, 20.)]*3, [0]*3)
    plain, said = 3*RESPONSE.most(40.), sum(f.most - f.occupied for f in table.values())
    assert said == pytest.approx(.5*plain)


def test_silent_gauges_are_replaced_by_own_answers():
    s = Rooms(FLEET[:1], RoomModel((RESPONSE,), (2.,), (None,)), 50., 10.)
    for t in range(0, 100, 2):
        s.answer(0, t - 10., float(t), 10_000/RESPONSE.tpot(40.))          # the batch is 40, 8 of them ours
        f = s.tick(float(t), [(5., 6., 0, 20.)], [8])["a"]                # the gauge stands still at t = 5
    assert f.occupied == pytest.approx(32., abs=4.)


def test_lying_gauges_are_doubted():
    honest = Rooms(FLEET[:1], RoomModel((RESPONSE,), (2.,), (None,)), 50., 10.); liar = Rooms(FLEET[:1], RoomModel((RESPONSE,), (2.,), (None,)), 50., 10.)
    for t in range(0, 60, 2):
        for s, tpot in ((honest, 24.), (liar, 24.*6)):
            s.answer(0, t - 12., float(t), 12_000/tpot)
            f = s.tick(float(t), [(float(t), 16., 0, 24.)], [8])["a"]
            if s is liar: said = f
            else: plain = f
    assert said.most - said.occupied < .3*(plain.most - plain.occupied)


def test_learning_is_the_same_whatever_the_names_and_finds_the_clock():
    journal, rng = Journal(), np.random.default_rng(1)
    for k in range(1800):
        t = 2.*k; others = 20. if t % 600 < 120 else 4.
        journal.ticks.append((t, ((t, others + 6 + rng.normal(0, .5), 0, RESPONSE.tpot(others + 6)), None), (6, 6)))
        if k % 4 == 0: journal.answers.append((1, t - 10., t, 10_000/RESPONSE.tpot(others + 6)*rng.uniform(.9, 1.1)))
    one, two = (learn_rooms(journal, [Backend(n, capacity=32.) for n in names]) for names in ("ab", "yx"))
    assert one == two
    assert [len(p) for p in one.foresight[0].occupied] == [60] and one.foresight[0].worst(500., 590., 20.)[0] > 12
    assert [len(p) for p in one.foresight[1].occupied] == [60]           # opaque: from the pace of our own answers


def test_noise_has_no_clock():
    rng = np.random.default_rng(3)
    assert sum(bool(clocks(rng.normal(0, 1, 360), 3)) for _ in range(40)) <= 2


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match="fit_response"): fit_response(np.array([]), np.array([]))
    assert untaught(FLEET).foresight == (None,)*3


def test_a_backend_without_gauges_can_be_seen_full():
    "A crowd that the response curve has never seen: its slowness still says that nothing is left."
    backends = [Backend("a", capacity=20.)]; rooms = Rooms(backends, untaught(backends), tpot_ms=59., ahead_s=8.)
    for t in range(0, 120, 2):
        rooms.answer(0, t - 60., float(t), 100)                            # 600 ms per token: many times the limit
        table = rooms.tick(float(t), [None], [4])
    assert table["a"].occupied >= table["a"].most


def test_silence_ends_belief_and_a_sign_of_life_brings_it_back():
    backends = [Backend("a", capacity=20.)]; rooms = Rooms(backends, untaught(backends), tpot_ms=59., ahead_s=8.)
    for t in range(0, 40): table = rooms.tick(float(t), [(float(t), 4., 0, 27.)], [2])
    assert table["a"].most - table["a"].occupied > 10
    for t in range(40, 60): table = rooms.tick(float(t), [(39., 4., 0, 27.)], [2])
    assert table["a"].most < 1.
    rooms.answer(0, 55., 60., 100)
    assert rooms.tick(60., [(39., 4., 0, 27.)], [2])["a"].most > 10


def test_thin_news_judges_nobody():
    "Without gauges and with hardly an answer there is no truth to hold a forecast to."
    backends = [Backend("a", capacity=20.)]
    wave = Foresight(10., occupied=((0., 0., 10., 10., 0., 0.),)); model = replace(untaught(backends), foresight=(wave,))
    def settled(gap_s):
        rooms = Rooms(backends, model, tpot_ms=59., ahead_s=16., gate=Gate())
        for t in range(0, 600, 2):
            if t % gap_s == 0: rooms.answer(0, t - 8., float(t), 300)
            rooms.tick(float(t), [None], [1])
        return rooms.gate.settled
    assert settled(40) == 0 < settled(2)
