"The pace of a backend now, by hand: fading streams, hope after silence, whole answers."

from math import exp, inf

import pytest

from arcpoint_ce.routing.nowcast import Nowcast, work_of


def heard(pace_s: float = 0.05, now: float = 10.0) -> Nowcast:
    "A stream has told this pace at this time."
    n = Nowcast()
    n.stream(40 * pace_s, 40.0)
    n.fold(now, 0.0)
    return n


def test_two_hundred_tokens_of_input_are_as_much_work_as_one_of_output():
    assert [work_of(*t) for t in ((0, 0), (400, 0), (400, 3), (0, 3))] == [1.0, 2.0, 5.0, 3.0]


def test_what_streams_said_fades_within_seconds():
    n = heard(0.05, 10.0)
    assert (n.pace_s, n.heard_s, n.streamed_s) == (0.05, 10.0, 10.0)
    n.stream(1.0, 10.0)
    n.fold(11.0, 0.0)
    assert n.pace_s == pytest.approx((2.0 * exp(-1) + 1.0) / (40.0 * exp(-1) + 10.0))
    n.fold(12.0, 0.0)  # in silence the pace stays, and what it rests on fades
    assert n.seconds == pytest.approx((2.0 * exp(-1) + 1.0) * exp(-1)) and n.heard_s == 11.0
    assert (n.new_s, n.new_tok, n.folded_s) == (0.0, 0.0, 12.0)


def test_a_stream_without_tokens_is_slow_and_one_report_speaks_of_ten_minutes_at_most():
    n = Nowcast()
    n.stream(5_000.0, 0.0)
    assert n.new_s == 600.0
    n.fold(10.0, 0.0)
    assert n.pace_s == pytest.approx(600.0 / 1e-3)
    n.stream(599.0, 2.0)
    assert (n.new_s, n.new_tok) == (599.0, 2.0)


def test_a_clock_that_goes_back_fades_nothing():
    n = heard(0.05, 100.0)
    n.fold(40.0, 0.0)
    assert (n.seconds, n.tokens) == pytest.approx((2.0, 40.0))
    assert (n.heard_s, n.streamed_s, n.folded_s) == (40.0, 40.0, 40.0)


@pytest.mark.parametrize(
    "pace_s, ratio",
    [(0.1, 2.0), (0.025, 0.5), (10.0, 16.0), (0.001, 1 / 16)],
    ids=["slower", "faster", "far slower", "far faster"],
)
def test_in_a_silence_hope_approaches_the_usual_pace(pace_s, ratio):
    n = heard(pace_s, 10.0)
    n.fold(12.0, 0.05)  # two seconds of silence are nothing yet
    assert n.hope_s == 0.0
    n.fold(12.0 + 60.0, 0.05)
    assert n.hope_s == pytest.approx(0.05 * ratio ** exp(-1))
    n.stream(1.0, 10.0)
    n.fold(73.0, 0.05)
    assert n.hope_s == 0.0
    n.fold(200.0, 0.0)  # nobody knows what is usual
    assert n.hope_s == 0.0


def test_where_only_whole_answers_tell_silence_lasts_half_an_hour():
    n = Nowcast()
    n.fold(5_000.0, 0.05)
    assert n.hope_s == 0.0  # nothing is known of it at all
    n.answer(0.1, True, 100.0)
    n.fold(1_900.0, 0.05)
    assert (n.hope_s, n.heard_s) == (0.0, 100.0)
    n.fold(1_960.0, 0.05)
    assert n.hope_s == pytest.approx(0.05 * 2.0 ** exp(-1))
    n.answer(0.4, True, 1_961.0)
    assert (n.pace_s, n.hope_s, n.heard_s) == (0.4, 0.0, 1_961.0)


def test_whole_answers_move_the_pace_by_three_tenths():
    n = Nowcast()
    n.answer(0.1, True, 50.0)
    n.answer(0.2, True, 40.0)
    assert n.pace_s == pytest.approx(0.13) and n.heard_s == 50.0
    n.answer(0.05, True, 60.0)
    assert n.pace_s == pytest.approx(0.13 + 0.3 * (0.05 - 0.13)) and n.heard_s == 60.0


def test_a_time_out_counts_where_it_says_more_and_for_twice_the_known_pace_at_most():
    n = Nowcast()
    n.answer(0.1, False, 0.0)
    assert n.pace_s == 0.1
    n.answer(0.05, False, 1.0)
    assert n.pace_s == 0.1
    n.answer(0.15, False, 2.0)
    assert n.pace_s == pytest.approx(0.115)
    n.answer(9.0, False, 3.0)
    assert n.pace_s == pytest.approx(0.115 * 1.3)
    n.hope_s = 0.05
    n.answer(0.01, False, 4.0)  # a failure ends hope and does not make it faster
    assert n.pace_s == pytest.approx(0.115 * 1.3) and n.hope_s == 0.0


def test_while_streams_tell_whole_answers_are_old_news():
    n = heard(0.05, 10.0)
    n.answer(0.5, True, 12.0)
    assert n.pace_s == 0.05 and n.heard_s == 10.0
    n.answer(0.5, True, 12.1)
    assert n.pace_s == pytest.approx(0.05 + 0.3 * 0.45)
    assert Nowcast().streamed_s == -inf
