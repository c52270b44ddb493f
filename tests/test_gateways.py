"The real router in the fleet: books that balance over many gateways, boards, journals, hedges only where room is short."
from math import inf

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from arcpoint_ce.lab.fleet import Fleet, ServiceCurve, SimBackend
from arcpoint_ce.lab.gateways import Board, RoomGateway
from arcpoint_ce.lab.workloads import Lengths, Tokens, poisson, with_slo
from arcpoint_ce.learning.headroom import Journal, Rooms, untaught
from arcpoint_ce.routing.core import Backend
from arcpoint_ce.routing.policies import HeadRoom, TwoChoices
from arcpoint_ce.routing.router import RouterConfig

CURVE = ServiceCurve((1., 16., 32.), (20., 24., 40.))
CONFIG = RouterConfig(slo_ms=100., slo_tok_ms=60.)
WORK = with_slo(poisson(12., 800, 1, tokens=Tokens(Lengths(500., .5), Lengths(100., .5))), 2.5, 24.)


def rooms(backends): return Rooms(backends, untaught(backends, 20.), tpot_ms=60., ahead_s=5.)
def fleet_of(gateways, **kw): return Fleet([SimBackend(Backend(n, capacity=32., price_out=1.), CURVE, slots=32, queue=16) for n in "abc"], gateways, **(dict(seed=1, timeout_s=20.) | kw))


def balanced(g, now):
    "Nothing is in flight any more, for the gateway, its router, or the features; no lease is left."
    g.router.roll(now + 1e4)
    assert g.own == [0]*3 and sum(g.router.in_flight().values()) == 0 and not g.router._leases
    assert all(not f.running for f in g.router.feature_map().values()) and g.router.counts["expired"] == g.router.counts["ignored"] == 0


@settings(max_examples=25, deadline=None)
@given(n=st.integers(1, 4), seed=st.integers(0, 50), retries=st.integers(0, 2), hedge_s=st.sampled_from((inf, 2.)), share=st.sampled_from((0., 1.1)),
       told=st.booleans(), policy=st.sampled_from((TwoChoices, HeadRoom)))
def test_the_books_of_many_gateways_balance_in_trouble(n, seed, retries, hedge_s, share, told, policy):
    board = Board(2.)
    gateways = [RoomGateway(policy, rooms=rooms if told else None, config=CONFIG, hedge_share=share, board=board) for _ in range(n)]
    fleet = fleet_of(gateways, seed=seed, retries=retries, hedge_s=hedge_s)
    fleet.at(10., lambda f, t: f.set("a", down="hang")); fleet.at(15., lambda f, t: f.set("b", error_rate=.3)); fleet.at(20., lambda f, t: f.kill("b"))
    fleet.at(30., lambda f, t: f.set("a", down=None)); fleet.at(35., lambda f, t: f.set("c", others=40., delay_ms=400.))
    r = fleet.run(WORK.head(400))
    assert len(r) == 400
    for g in gateways: balanced(g, fleet.now)
    counts = [g.router.counts for g in gateways]
    assert sum(c["decided"] for c in counts) <= 400 and (retries or hedge_s < inf or sum(c["observed"] for c in counts) == r.attempts.sum())
    assert sum(c["observed"] for c in counts) <= r.attempts.sum()


def test_every_attempt_is_decided_and_observed():
    g = RoomGateway(TwoChoices, config=CONFIG); r = fleet_of([g]).run(WORK)
    assert g.router.counts["decided"] == g.router.counts["observed"] == r.attempts.sum() == 800 and g.every_s == inf
    assert abs(g.length - WORK.tokens_out.mean()) < 40                  # the length told to the router is learned


def test_several_gateways_share_the_arrivals_and_not_their_counts():
    gateways = [RoomGateway(TwoChoices, config=CONFIG) for _ in range(3)]; r = fleet_of(gateways).run(WORK)
    each = np.bincount(r.gateway, minlength=3); assert each.min() > .25*800 and [g.router.counts["decided"] for g in gateways] == each.tolist()
    assert len({id(g.router) for g in gateways}) == 3


def test_the_same_gateway_may_run_twice_and_does_the_same():
    board = Board(1.); gateways = [RoomGateway(HeadRoom, rooms=rooms, config=CONFIG, board=board) for _ in range(2)]
    first, second = (fleet_of(gateways).run(WORK) for _ in range(2))
    assert first.end_s.tolist() == second.end_s.tolist() and first.place.tolist() == second.place.tolist()


def test_a_board_shows_the_others_as_they_were():
    board = Board(staleness_s=3.)
    for t in range(8): board.post("x", float(t), [t, 1]); board.post("y", float(t), [10, 0])
    assert board.others("x", 7., 2) == [10, 0] and board.others("y", 7., 2) == [4, 1] and board.others("z", 7., 2) == [14, 1]
    assert Board(3.).others("x", 0., 2) == [0, 0] and all(len(q) <= 5 for q in board.posts.values())
    young = Board(3.); young.post("x", 5., [1, 1]); assert young.others("y", 7., 2) == [0, 0] and young.others("y", 8., 2) == [1, 1]


def test_a_journal_holds_every_tick_and_every_answer_in_order():
    journal = Journal(); g = RoomGateway(TwoChoices, config=CONFIG, journal=journal, every_s=2.); r = fleet_of([g], staleness_s=4.).run(WORK)
    assert len(journal.answers) == r.ok.sum() == 800 and (np.diff([e for _, _, e, _ in journal.answers]) >= 0).all()
    times = [t for t, *_ in journal.ticks]; assert np.allclose(np.diff(times), 2.) and times[-1] <= r.end_s.max() < times[-1] + 2.
    for t, gauges, own in journal.ticks:
        now = (r.born_s < t) & (r.end_s >= t); assert sum(own) == now.sum()
        assert all(x is None or x.at_s <= t - 4. + 1e-6 for x in gauges)


def test_nowhere_to_go_is_a_refusal_and_retries_start_anew():
    g = RoomGateway(TwoChoices, config=CONFIG); fleet = fleet_of([g], retries=2, backoff_s=1.)
    for n in "abc": g.router.force(n, "open", 0., "maintenance")
    fleet.at(WORK.at_s[0] + 2., lambda f, t: [g.router.force(n, "closed", t, "over") for n in "abc"])
    r = fleet.run(WORK.head(1))
    assert r.ok[0] and r.attempts[0] == 1 and r.born_s[0] + 3. < r.end_s[0] and g.router.counts["decided"] == 1


@pytest.mark.parametrize("share, hedged", [(0., False), (1.1, True)])
def test_hedges_go_out_only_where_room_is_short(share, hedged):
    g = RoomGateway(HeadRoom, rooms=rooms, config=CONFIG, hedge_share=share); fleet = fleet_of([g], hedge_s=2.)
    r = fleet.run(WORK)
    assert bool((r.attempts > 1).any()) == hedged and g.router.counts["expired"] == 0 and len(r) == 800
    balanced(g, fleet.now)
