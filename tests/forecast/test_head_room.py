"The belief about head-room: its bounds, whatever gauges, answers and clocks say."

from dataclasses import replace
from math import isfinite

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.forecast.head_room import (
    Foresight,
    Journal,
    Response,
    RoomModel,
    Rooms,
    _clocks,
    _fit_response,
    learn_rooms,
    untaught,
)
from arcpoint_ce.forecast.trust import Gate
from arcpoint_ce.routing.policies import HeadRoom
from arcpoint_ce.routing.records import Backend, Request
from arcpoint_ce.routing.router import Router, RouterConfig

RESPONSE = Response((4.0, 16.0, 32.0), (20.0, 24.0, 40.0))
FLEET = tuple(Backend(n, capacity=32.0) for n in "abc")


@given(st.floats(0.1, 500.0))
def test_response_and_its_inverse_agree(n):
    if n >= 4.0:
        assert RESPONSE.most(RESPONSE.tpot(n)) == pytest.approx(n)
    assert RESPONSE.most(RESPONSE.tpot(n)) <= RESPONSE.most(RESPONSE.tpot(n) + 1.0)


gauges = st.one_of(st.none(), st.tuples(st.floats(0, 300), st.integers(0, 50), st.floats(1.0, 1e4)))


@settings(deadline=None, max_examples=60)
@given(
    st.lists(
        st.tuples(
            st.lists(gauges, min_size=3, max_size=3),
            st.lists(st.integers(0, 60), min_size=3, max_size=3),
            st.lists(
                st.tuples(st.integers(0, 2), st.floats(0.01, 60.0), st.integers(0, 2000)),
                max_size=4,
            ),
        ),
        min_size=1,
        max_size=25,
    ),
    st.booleans(),
)
def test_belief_is_always_usable(story, judged):
    """Whatever is seen, every forecast is finite and positive, and room for others is never
    negative.
    """
    wild = tuple(
        Foresight(10.0, ((0.0, 50.0, -50.0, 200.0),), ((0.0, 3.0, -3.0, 0.0),)) for _ in FLEET
    )
    rooms = Rooms(
        FLEET,
        RoomModel((RESPONSE,) * 3, (4.0,) * 3, wild),
        50.0,
        20.0,
        gate=Gate() if judged else None,
    )
    router, now = Router(FLEET, HeadRoom(), config=RouterConfig(slo_ms=1e5)), 100.0
    for said, own, answers in story:
        now += 2.0
        for place, took, tokens in answers:
            rooms.answer(place, now - took, now, tokens)
        table = rooms.tick(now, [g and (now - 0.5, *g) for g in said], own)
        for f in table.values():
            assert f.ok() and f.occupied >= 0 and f.most > 0 and isfinite(f.occupied + f.most)
        router.swap(table, now)
        d = router.decide(Request(), now)
        assert router.cancel(d, now)


def test_forecasts_never_take_more_than_half_of_the_room():
    surge = Foresight(10.0, ((0.0, 0.0, 500.0, 500.0),))
    rooms = Rooms(
        FLEET, RoomModel((RESPONSE,) * 3, (0.0,) * 3, (surge,) * 3), 40.0, 20.0, trusted=9.0
    )
    table = rooms.tick(5.0, [(5.0, 0.0, 0, 20.0)] * 3, [0] * 3)
    plain, said = 3 * RESPONSE.most(40.0), sum(f.most - f.occupied for f in table.values())
    assert said == pytest.approx(0.5 * plain)


def test_silent_gauges_are_replaced_by_own_answers():
    s = Rooms(FLEET[:1], RoomModel((RESPONSE,), (2.0,), (None,)), 50.0, 10.0)
    for t in range(0, 100, 2):
        # the batch is 40, 8 of them ours
        s.answer(0, t - 10.0, float(t), 10_000 / RESPONSE.tpot(40.0))
        f = s.tick(float(t), [(5.0, 6.0, 0, 20.0)], [8])["a"]  # the gauge stands still at t = 5
    assert f.occupied == pytest.approx(32.0, abs=4.0)


def test_lying_gauges_are_doubted():
    honest = Rooms(FLEET[:1], RoomModel((RESPONSE,), (2.0,), (None,)), 50.0, 10.0)
    liar = Rooms(FLEET[:1], RoomModel((RESPONSE,), (2.0,), (None,)), 50.0, 10.0)
    for t in range(0, 60, 2):
        for s, tpot in ((honest, 24.0), (liar, 24.0 * 6)):
            s.answer(0, t - 12.0, float(t), 12_000 / tpot)
            f = s.tick(float(t), [(float(t), 16.0, 0, 24.0)], [8])["a"]
            if s is liar:
                said = f
            else:
                plain = f
    assert said.most - said.occupied < 0.3 * (plain.most - plain.occupied)


def test_learning_is_the_same_whatever_the_names_and_finds_the_clock():
    journal, rng = Journal(), np.random.default_rng(1)
    for k in range(1800):
        t = 2.0 * k
        others = 20.0 if t % 600 < 120 else 4.0
        journal.ticks.append(
            (t, ((t, others + 6 + rng.normal(0, 0.5), 0, RESPONSE.tpot(others + 6)), None), (6, 6))
        )
        if k % 4 == 0:
            journal.answers.append(
                (1, t - 10.0, t, 10_000 / RESPONSE.tpot(others + 6) * rng.uniform(0.9, 1.1))
            )
    one, two = (
        learn_rooms(journal, [Backend(n, capacity=32.0) for n in names]) for names in ("ab", "yx")
    )
    assert one == two
    assert [len(p) for p in one.foresight[0].occupied] == [60] and one.foresight[0].worst(
        500.0, 590.0, 20.0
    )[0] > 12
    # opaque: from the pace of our own answers
    assert [len(p) for p in one.foresight[1].occupied] == [60]


def test_noise_has_no_clock():
    rng = np.random.default_rng(3)
    assert sum(bool(_clocks(rng.normal(0, 1, 360), 3)) for _ in range(40)) <= 2


def test_nothing_to_learn_from():
    with pytest.raises(ValueError, match="fit_response"):
        _fit_response(np.array([]), np.array([]))
    assert untaught(FLEET).foresight == (None,) * 3


def test_a_backend_without_gauges_can_be_seen_full():
    "A crowd that the response curve has never seen: its slowness still says that nothing is left."
    backends = [Backend("a", capacity=20.0)]
    rooms = Rooms(backends, untaught(backends), tpot_ms=59.0, ahead_s=8.0)
    for t in range(0, 120, 2):
        rooms.answer(0, t - 60.0, float(t), 100)  # 600 ms per token: many times the limit
        table = rooms.tick(float(t), [None], [4])
    assert table["a"].occupied >= table["a"].most


def test_silence_ends_belief_and_a_sign_of_life_brings_it_back():
    backends = [Backend("a", capacity=20.0)]
    rooms = Rooms(backends, untaught(backends), tpot_ms=59.0, ahead_s=8.0)
    for t in range(0, 40):
        table = rooms.tick(float(t), [(float(t), 4.0, 0, 27.0)], [2])
    assert table["a"].most - table["a"].occupied > 10
    for t in range(40, 60):
        table = rooms.tick(float(t), [(39.0, 4.0, 0, 27.0)], [2])
    assert table["a"].most < 1.0
    rooms.answer(0, 55.0, 60.0, 100)
    assert rooms.tick(60.0, [(39.0, 4.0, 0, 27.0)], [2])["a"].most > 10


def test_thin_news_judges_nobody():
    "Without gauges and with hardly an answer there is no truth to hold a forecast to."
    backends = [Backend("a", capacity=20.0)]
    wave = Foresight(10.0, occupied=((0.0, 0.0, 10.0, 10.0, 0.0, 0.0),))
    model = replace(untaught(backends), foresight=(wave,))

    def settled(gap_s):
        rooms = Rooms(backends, model, tpot_ms=59.0, ahead_s=16.0, gate=Gate())
        for t in range(0, 600, 2):
            if t % gap_s == 0:
                rooms.answer(0, t - 8.0, float(t), 300)
            rooms.tick(float(t), [None], [1])
        return rooms.gate.books.settled

    assert settled(40) == 0 < settled(2)
