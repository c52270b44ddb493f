"The gate: who is believed, who is not, and that it survives whatever it is told."

from collections import deque
from dataclasses import asdict
from math import inf, isfinite, nan, sqrt
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.forecast.trust import (
    _TRIAL,
    _TRUSTED,
    DEMOTED,
    Gate,
    GateConfig,
    _Lane,
    _Ledger,
    _pooled,
    _trust_of,
    worth,
)

SIZE, AHEAD = 16.0, 20.0


def fleet(
    kind,
    seed,
    n=6,
    seconds=1500,
    tick=3.0,
    jitter=3.0,
    config=GateConfig(),
    names=None,
    right_from=inf,
    right=(),
):
    """Square waves at each backend's own phase, jittered edges, a noisy nowcast; the forecast is
    right, or spoiled in one way.
    """
    rng, names = Random(seed), names or [f"b{k}" for k in range(n)]
    phase = [300 / n * k + rng.uniform(0, 10) for k in rng.sample(range(n), n)]
    stuck = [rng.choice((-0.5, 0.5)) for _ in names]
    edges = [
        [(rng.gauss(0, jitter), rng.gauss(90, jitter)) for _ in range(seconds // 300 + 3)]
        for _ in names
    ]

    def profile(k, t):
        return 0.6 * ((t - phase[k]) % 300 < 90)

    def room(x):
        return SIZE * min(1.0, max(0.02, x))

    def actual(k, t):
        r = int((t - phase[k] + 150) // 300)
        a, b = edges[k][r]
        return 0.6 * (a <= t - phase[k] - 300 * r < b)

    gate = Gate(config)
    seen = []
    noise = [0.0] * n
    for j in range(int(seconds / tick)):
        t = j * tick
        for k, b in enumerate(names):
            noise[k] = 0.8 * noise[k] + rng.gauss(0, 0.03)
            now = 0.75 - actual(k, t) + noise[k]
            o = (k + 1) % n if kind == "shuffled" else k
            change = stuck[k] if kind == "frozen" else profile(o, t + AHEAD) - profile(o, t)
            if kind == "inverted" and t < right_from and k not in right:
                change = -change
            if kind != "missing":
                gate.promise(b, t, t + AHEAD, room(now - change), room(now), SIZE)
            gate.mature(b, t, room(now))
        seen.append([gate.trust(b) for b in names])
    return gate, seen


def mean_trust(seen, since=0):
    return sum(map(sum, seen[since:])) / sum(map(len, seen[since:]))


def test_correct_noisy_jittered_forecasts_stay_trusted():
    runs = [fleet("correct", s) for s in range(20)]
    demoted = sum(any(e.what == DEMOTED for e in g.events) for g, _ in runs)
    assert demoted <= 1 and all(mean_trust(seen) > 0.95 for _, seen in runs)


@pytest.mark.parametrize("kind, by_s", [("shuffled", 400), ("frozen", 200), ("inverted", 300)])
def test_wrong_forecasts_are_demoted_everywhere_and_visibly(kind, by_s):
    for s in range(6):
        gate, seen = fleet(kind, s)
        falls = [e for e in gate.events if e.what == DEMOTED]
        assert falls and falls[0].at_s < by_s and any(e.backend is None for e in falls)
        assert all("evidence" in e.why and "episodes" in e.why for e in falls)
        assert mean_trust(seen, len(seen) // 2) < 0.15


def test_one_wrong_backend_among_right_ones_is_found_and_the_others_are_not_punished():
    gate, seen = fleet("inverted", 3, seconds=3600, right=range(5))
    assert gate.state() == _TRUSTED and gate.state("b5") == DEMOTED
    assert all(gate.trust(f"b{k}") == 1.0 for k in range(5))


def test_a_recovered_forecast_is_tried_and_trusted_again():
    gate, seen = fleet("inverted", 1, seconds=3600, right_from=600.0)
    path = [e.what for e in gate.events if e.backend is None]
    assert path[:3] == [DEMOTED, _TRIAL, _TRUSTED] and mean_trust(seen, -100) > 0.9


def test_nothing_said_nothing_distrusted():
    gate, seen = fleet("missing", 0, seconds=600)
    assert mean_trust(seen) == 1.0 and not gate.events and gate.status()["promised"] == 0


def test_without_a_prior_it_starts_on_trial_and_earns_its_trust():
    gate, seen = fleet("correct", 0, config=GateConfig(prior=0.0))
    assert seen[0] == [0.5] * 6 and gate.state() == _TRUSTED and mean_trust(seen, -50) > 0.95


def test_ticking_faster_proves_no_more():
    def evidence(tick):
        gate = Gate(GateConfig(prior=0.0, slack_s=0.0))
        for j in range(int(29 / tick)):
            gate.promise("a", j * tick, j * tick + 20, 4.0, 12.0, SIZE)
            gate.mature("a", j * tick, 4.0)
        gate.mature("a", 28.0, 4.0)
        return gate.evidence("a")

    assert evidence(0.25) == pytest.approx(evidence(1.0), rel=0.15) and evidence(1.0) > 0.3


def test_time_alone_changes_no_state_but_fades_evidence():
    gate, _ = fleet("inverted", 0, seconds=900)
    assert gate.state() == DEMOTED
    for b in ("b0", "b1"):
        gate.mature(b, 1e7, 8.0)
    assert (
        gate.state() == gate.state("b0") == DEMOTED
        and abs(gate.evidence()) < 1e-6
        and gate.trust("b0") == 0.0
    )


def test_a_newcomer_is_judged_by_the_fleet():
    gate, _ = fleet("inverted", 0, seconds=900)
    assert gate.state("new") == DEMOTED and gate.trust("new") == 0.0
    gate.promise("new", 900.0, 920.0, 8.0, 8.0, SIZE)
    gate.mature("new", 905.0, 8.0)
    assert gate.state("new") == DEMOTED
    gate.forget("new")
    assert "new" not in gate.status()["backends"]


def test_promises_without_truth_are_dropped_and_memory_is_bounded():
    gate = Gate(GateConfig(pending=10, keep=3))
    for t in range(50):
        gate.promise("a", t, t + 20.0, 4.0, 12.0, SIZE)
    assert gate.status()["backends"]["a"]["waiting"] == 10 and gate.books.dropped == 40
    gate.mature("a", 500.0, 12.0)
    assert gate.books.dropped == 50 and gate.books.settled == 0 and gate.evidence("a") == 0.0
    for t in range(2000):
        gate.mature("a", 500.0 + t, 12.0)
    assert len(gate.books.lanes["a"].truths) < 30
    loud, _ = fleet("shuffled", 0, config=GateConfig(keep=3))
    assert len(loud.events) == 3


def test_the_nearest_truth_settles_a_promise():
    for truth_before, better in ((4.0, True), (12.0, False)):
        gate = Gate(GateConfig(slack_s=0.0))
        for about in (10.0, 20.0):
            gate.promise("a", 0.0, about, 4.0, 12.0, SIZE)
            gate.mature("a", about - 1, truth_before)
            gate.mature("a", about + 4, 16.0 - truth_before)
        assert (gate.evidence("a") > 0) is better


@pytest.mark.parametrize(
    "bad",
    [
        dict(share=-1),
        dict(false_shed=1.1),
        dict(half=0.0),
        dict(half_life_s=nan),
        dict(prior=5.0),
        dict(again=2.0, enough=1.0),
        dict(most=inf),
    ],
)
def test_impossible_settings_are_refused(bad):
    with pytest.raises(ValueError, match="GateConfig"):
        GateConfig(**bad)


def test_impossible_calls_are_refused():
    gate = Gate()
    for args in (
        (0.0, 1.0, 1.0, 1.0, 0.0),
        (0.0, 1.0, 1.0, 1.0, nan),
        (5.0, 1.0, 1.0, 1.0, 1.0),
        (nan, 1.0, 1.0, 1.0, 1.0),
        (0.0, inf, 1.0, 1.0, 1.0),
    ):
        with pytest.raises(ValueError, match="'a'"):
            gate.promise("a", *args)
    with pytest.raises(ValueError, match="at_s"):
        gate.mature("a", inf, 1.0)


def test_what_is_no_number_settles_nothing():
    gate = Gate(GateConfig(slack_s=0.0))
    for said, plain in ((nan, 4.0), (4.0, inf), (-inf, nan)):
        gate.promise("a", 0.0, 5.0, said, plain, SIZE)
    assert gate.books.dropped == 3 and gate.status()["backends"]["a"]["waiting"] == 0
    gate.promise("a", 0.0, 5.0, 4.0, 12.0, SIZE)
    for truth in (nan, inf, -inf):
        gate.mature("a", 5.0, truth)
    assert gate.books.settled == 0 and gate.status()["backends"]["a"]["waiting"] == 1
    gate.mature("a", 5.0, 4.0)
    assert gate.books.settled == gate.books.counted == 1


def test_numbers_beyond_all_measure_do_no_more_than_one_error():
    gate = Gate(GateConfig(slack_s=0.0, false_shed=0.0))
    for t in range(30):
        gate.promise("a", t, t, 1e308 * (-1) ** t, -1e308 * (-1) ** t, 1e-300)
        gate.mature("a", float(t), 1e308 * (-1) ** (t // 2))
    assert isfinite(gate.evidence("a")) and 0 <= gate.trust("a") <= 1 and gate.books.counted == 30
    for said, plain, truth in ((1e308, -1e308, 0.0), (-1e308, 1e308, 1e308), (0.0, 0.0, -1e308)):
        for false_shed in (0.0, 1.0):
            assert all(
                map(
                    isfinite,
                    worth(said, plain, truth, truth, 1e-300, GateConfig(false_shed=false_shed)),
                )
            )


numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.sampled_from([0.0, -1.0, 1e300, -1e300, 5e-324]),
    st.floats(-50, 50),
)
steps = st.lists(
    st.tuples(
        st.sampled_from("abc"),
        st.booleans(),
        st.integers(0, 40),
        numbers,
        numbers,
        st.floats(1e-300, 1e300),
    ),
    max_size=60,
)


@pytest.mark.slow
@settings(max_examples=300, deadline=None)
@given(steps, st.sampled_from([0.0, 1.25]))
def test_whatever_it_is_told_trust_is_a_share(told, prior):
    gate = Gate(GateConfig(prior=prior))
    for b, settle, t, x, y, size in told:
        if settle:
            gate.mature(b, float(t), x)
        else:
            gate.promise(b, t - 5.0, t, x, y, size)
        for who in "abcd":
            assert 0.0 <= gate.trust(who) <= 1.0 and isfinite(gate.evidence(who))
        assert gate.state() in (_TRUSTED, _TRIAL, DEMOTED)
    s = gate.status()
    assert (
        s["settled"] + s["dropped"] + sum(v["waiting"] for v in s["backends"].values())
        == s["promised"]
    )


@settings(max_examples=300, deadline=None)
@given(
    *[st.floats(-100, 100)] * 3,
    st.floats(0, 50),
    st.floats(0.1, 100),
    st.floats(0, 0.5),
    st.floats(0, 1),
)
def test_no_gain_exceeds_its_stake(said, plain, low, width, size, share, false_shed):
    gain, stake = worth(
        said, plain, low, low + width, size, GateConfig(share=share, false_shed=false_shed)
    )
    assert abs(gain) <= stake * (1 + 1e-9) + 1e-12


@settings(max_examples=8, deadline=None)
@given(
    st.integers(0, 1000),
    st.permutations([f"b{k}" for k in range(6)]),
    st.sampled_from(["correct", "shuffled", "inverted"]),
)
def test_names_mean_nothing(seed, names, kind):
    (g, seen), (h, other) = (
        fleet(kind, seed, seconds=600),
        fleet(kind, seed, seconds=600, names=names),
    )
    rename = {f"b{k}": b for k, b in enumerate(names)} | {None: None}
    assert seen == other and [(e.at_s, rename[e.backend], e.what, e.why) for e in g.events] == [
        tuple(e) for e in h.events
    ]


# ---- by hand

TEN = GateConfig(share=0.1, false_shed=0.5)


@pytest.mark.parametrize(
    "said, plain, came, config, gain, stake",
    [
        (4.0, 8.0, (3.0, 5.0), TEN, 0.225, 0.3),
        (2.0, 4.0, (5.0, 6.0), TEN, -0.05, 0.1),
        (8.0, 8.5, (5.0, 5.0), TEN, 0.05 * 0.25 / 0.35, 0.25),
        (8.5, 8.0, (5.0, 5.0), TEN, -0.05 * 0.2 / 0.3, 0.2),
        (0.0, 20.0, (0.0, 0.0), GateConfig(clip=0.5), 0.4, 0.4),
        (-20.0, 0.0, (0.0, 0.0), GateConfig(clip=0.5), -0.2, 0.4),
        (4.0, 5.0, (5.0, 5.0), TEN, 0.0, 0.0),
        (4.0, 8.0, (3.0, 5.0), GateConfig(share=0.0), 0.3, 0.4),
    ],
    ids=[
        "a fall foreseen",
        "a fall that never came",
        "a small change where much fell",
        "a small change the wrong way",
        "an error beyond the clip",
        "a false shed beyond the clip",
        "too small to count",
        "everything counts",
    ],
)
def test_what_one_promise_was_worth(said, plain, came, config, gain, stake):
    assert worth(said, plain, *came, 10.0, config) == pytest.approx((gain, stake))


def told(*what, config=GateConfig()) -> _Ledger:
    "A ledger that heard of backend, time, seconds and gain; half a size is at stake each time."
    ledger = _Ledger()
    for who, at_s, seconds, gain in what:
        ledger.add(who, at_s, seconds, gain, 0.5, config)
    return ledger


def test_an_episode_proves_its_gain_over_its_stake_and_the_half():
    config = GateConfig(half=2.0)
    assert told(("a", 0.0, 2.0, 0.5)).evidence(config) == pytest.approx(1.0 / 3.0)
    assert told(("a", 0.0, 2.0, -0.25)).evidence(config) == pytest.approx(-0.5 / 3.0)
    both = told(("a", 0.0, 2.0, 0.5), ("b", 1.0, 2.0, 0.5))
    assert both.evidence(config) == pytest.approx(sqrt(2) * 2.0 / (2.0 + 2 * 2.0))
    assert both.open.seconds == 4.0 and (both.open.from_s, both.open.to_s) == (0.0, 1.0)
    late = told(("a", 5.0, 1.0, 0.5), ("a", 3.0, 1.0, 0.5))
    assert (late.open.from_s, late.open.to_s) == (5.0, 5.0)


def test_a_silence_longer_than_the_gap_ends_an_episode_and_its_evidence_stays():
    config = GateConfig(gap_s=10.0, half=2.0, half_life_s=1e12)
    ledger = told(("a", 0.0, 2.0, 0.5), ("b", 0.0, 2.0, 0.5))
    proved = ledger.evidence(config)
    ledger.fade(10.0, config)
    assert ledger.open and ledger.counts() == dict(episodes=1, better=0)
    ledger.fade(10.5, config)
    assert ledger.open is None and ledger.counts() == dict(episodes=1, better=1)
    assert ledger.evidence(config) == pytest.approx(proved)
    assert ledger.count == pytest.approx(2.0 / (2.0 + 2 * 2.0))
    ledger.add("a", 20.0, 2.0, -0.5, 0.5, config)
    assert ledger.counts() == dict(episodes=2, better=1)
    assert ledger.evidence(config) == pytest.approx(proved - 1.0 / 3.0)
    ledger.fade(40.0, config)
    assert ledger.counts() == dict(episodes=2, better=1)
    assert ledger.count == pytest.approx(1.0 / 3.0 + 1.0 / 3.0)


def test_an_episode_of_no_gain_is_not_won():
    ledger = told(("a", 0.0, 2.0, 0.0))
    ledger.close(GateConfig())
    assert ledger.counts() == dict(episodes=1, better=0) and ledger.total == 0.0


def test_an_episode_beyond_its_longest_is_cut_in_two():
    config = GateConfig(gap_s=10.0, longest_s=30.0)
    ledger = told(*[("a", float(t), 10.0, 0.5) for t in (0, 10, 20, 30)], config=config)
    assert ledger.counts()["episodes"] == 1
    ledger.add("a", 31.0, 1.0, 0.5, 0.5, config)
    assert ledger.counts()["episodes"] == 2 and ledger.open.from_s == 31.0


def test_evidence_and_what_it_rests_on_halve_with_each_half_life():
    config = GateConfig(half_life_s=100.0)
    ledger = told(("a", 0.0, 2.0, 0.5), config=config)
    ledger.fade(50.0, config)
    total, count = ledger.total, ledger.count
    ledger.fade(40.0, config)  # an older time forgets nothing
    assert (ledger.total, ledger.count, ledger.at_s) == (total, count, 50.0)
    ledger.fade(150.0, config)
    assert (ledger.total, ledger.count) == pytest.approx((total / 2, count / 2))
    ledger.fade(350.0, config)
    assert (ledger.total, ledger.count) == pytest.approx((total / 8, count / 8))


@pytest.mark.parametrize("gain", [0.5, -0.5])
def test_neither_credit_nor_debt_is_hoarded(gain):
    config = GateConfig(most=2.0)
    ledger = told(*[("a", 100.0 * k, 20.0, gain) for k in range(9)], config=config)
    assert ledger.evidence(config) == 2.0 * (1 if gain > 0 else -1)
    ledger.fade(1000.0, config)
    assert abs(ledger.total) == pytest.approx(2.0, rel=0.01)


def test_the_fleets_evidence_counts_half_after_as_many_episodes_as_the_pool():
    config, own, fleet = GateConfig(pool=3.0), _Ledger(), _Ledger()
    own.total, fleet.total = 0.25, -1.0
    assert _pooled(None, fleet, config) == -1.0 and _pooled(own, fleet, config) == -0.75
    own.count = 3.0
    assert _pooled(own, fleet, config) == 0.25 - 0.5
    own.count = 9.0
    assert _pooled(own, fleet, config) == 0.25 - 0.25
    assert _pooled(own, fleet, GateConfig(pool=0.0)) == 0.25


@pytest.mark.parametrize(
    "state, evidence, trust",
    [
        (_TRUSTED, 3.0, 1.0),
        (_TRUSTED, 0.0, 1.0),
        (_TRUSTED, -0.5, 0.6),
        (_TRUSTED, -2.0, 0.0),
        (_TRIAL, 0.75, 0.75),
        (_TRIAL, 1.5, 1.0),
        (_TRIAL, 0.0, 0.5),
        (_TRIAL, -0.25, 0.25),
        (_TRIAL, -0.6, 0.0),
        (DEMOTED, 2.0, 0.0),
    ],
)
def test_trust_by_state_and_evidence(state, evidence, trust):
    config = GateConfig(prior=1.25, debt=0.5, enough=1.5, partial=0.5)
    assert _trust_of(state, evidence, config) == pytest.approx(trust)


def test_a_trusted_forecast_falls_at_its_prior_but_never_before_the_debt_of_a_trial():
    config = GateConfig(prior=0.25, debt=0.5)
    assert _trust_of(_TRUSTED, -0.25, config) == pytest.approx(0.5)


@pytest.mark.parametrize("name", GateConfig.__dataclass_fields__)
def test_no_setting_is_negative_and_zero_only_where_it_means_something(name):
    may_be_zero = {"slack_s", "share", "false_shed", "prior", "partial", "pool"}
    for value in (-0.5, inf, nan):
        with pytest.raises(ValueError, match=f"GateConfig.{name} must be"):
            GateConfig(**{name: value})
    if name in may_be_zero:
        assert getattr(GateConfig(**{name: 0.0}), name) == 0.0
    else:
        with pytest.raises(ValueError, match=f"{name} must be positive, got 0.0"):
            GateConfig(**{name: 0.0})


def test_settings_at_the_edge_of_the_possible():
    assert GateConfig(prior=2.0, debt=2.0, again=2.0, enough=2.0, most=2.0).most == 2.0
    assert GateConfig(false_shed=1.0, partial=1.0).partial == 1.0
    for bad in (dict(clip=0.1, share=0.1), dict(partial=1.01), dict(false_shed=1.01)):
        with pytest.raises(ValueError, match="GateConfig"):
            GateConfig(**bad)
    for name in ("prior", "debt", "again", "enough"):
        with pytest.raises(ValueError, match="most must be at least 2.5"):
            GateConfig(**{"enough": 2.0, name: 2.5})


def test_the_settings_that_the_notebook_calibrated_are_the_default():
    assert asdict(GateConfig()) == dict(
        slack_s=4.0,
        share=0.1,
        false_shed=0.5,
        clip=1.0,
        half=2.0,
        gap_s=10.0,
        longest_s=30.0,
        prior=1.25,
        debt=0.5,
        again=1.0,
        enough=1.5,
        partial=0.5,
        most=2.0,
        pool=2.0,
        half_life_s=4 * 3600.0,
        tolerance_s=10.0,
        pending=4096,
        keep=256,
    )


def test_truths_are_kept_as_long_as_a_promise_may_need_them():
    lane = _Lane("a", _TRUSTED)
    for t in (0.0, 5.0, 10.0, 10.0, 9.0, 18.0, 18.5):
        lane.measured(t, 100.0 + t, 18.0)
    assert lane.truths == deque([(5.0, 105.0), (10.0, 110.0), (18.0, 118.0), (18.5, 118.5)])
    config = GateConfig(slack_s=4.0, tolerance_s=10.0)
    assert list(lane.due(23.0, 1.0, config)) == []
    assert [t for t, _ in lane.truths] == [5.0, 10.0, 18.0, 18.5, 23.0]  # 2 * 4 + 10 s
    list(lane.due(23.5, 1.0, config))
    assert lane.truths[0][0] == 10.0


def test_a_promise_stands_for_the_time_since_the_one_before_and_no_longer_than_the_gap():
    lane = _Lane("a", _TRUSTED)
    assert [lane.seconds(t, 10.0) for t in (5.0, 8.0, 8.0, 7.0, 60.0)] == [0, 3.0, 0, 0, 10.0]


def test_a_promise_is_settled_once_all_truths_about_it_have_come():
    gate = Gate(GateConfig(slack_s=4.0))
    gate.promise("a", 0.0, 10.0, 4.0, 12.0, SIZE)
    gate.promise("a", 0.0, 10.0, nan, 12.0, SIZE)
    gate.mature("a", 13.9, 4.0)
    assert gate.status()["settled"] == 0
    gate.mature("a", 14.0, 4.0)
    gate.promise("a", 14.0, 20.0, 12.0, 12.0, SIZE)
    gate.mature("a", 24.0, 12.0)
    said = gate.status()
    assert [said[k] for k in ("promised", "settled", "counted", "dropped")] == [3, 2, 1, 1]
    assert said["backends"]["a"]["waiting"] == 0 and said["episodes"] == 1


def test_the_oldest_promise_makes_place_for_the_newest():
    gate = Gate(GateConfig(pending=2))
    for about in (30.0, 10.0, 20.0):
        gate.promise("a", 0.0, about, 4.0, 12.0, SIZE)
    assert sorted(p[0] for p in gate.books.lanes["a"].promises) == [20.0, 30.0]
    assert gate.books.dropped == 1


def test_what_has_been_proved_survives_a_restart_and_the_running_episode_does_not():
    gate, _ = fleet("inverted", 2, seconds=700)
    other = Gate()
    other.restore(gate.memo())
    assert other.memo() == gate.memo()
    ours, theirs = (g.books.fleet for g in (gate, other))
    assert (theirs.total, theirs.count, theirs.at_s) == (ours.total, ours.count, ours.at_s)
    assert (theirs.episodes, theirs.won, theirs.open) == (ours.episodes, ours.won, None)
    for name in gate.books.lanes:
        assert other.state(name) == gate.state(name)
    fresh = Gate()
    fresh.restore(Gate().memo())
    assert fresh.books.fleet.at_s == -inf and fresh.memo()["fleet"] == [
        _TRUSTED,
        0.0,
        0.0,
        None,
        0,
        0,
    ]
    for bad in (
        dict(fleet=["lost", 0.0, 0.0, None, 0, 0], backends={}),
        dict(gate.memo(), backends={"a": ["lost", 0.0, 0.0, None, 0, 0]}),
    ):
        with pytest.raises(ValueError, match="'lost' is not a state of a forecast"):
            Gate().restore(bad)


def test_an_event_says_which_evidence_reached_which_bar():
    gate = Gate(GateConfig(slack_s=0.0))
    for t in range(0, 200, 2):
        gate.promise("a", t, t + 20.0, 2.0, 12.0, SIZE)
        gate.mature("a", float(t), 12.0)
    first = gate.events[0]
    assert "reached -1.25 (the fleet's alone: -" in first.why and first.what == DEMOTED
    assert "better in 0 of" in first.why and "size-seconds at stake since" in first.why
    gate, _ = fleet("inverted", 1, seconds=3600, right_from=600.0)
    bars = {e.what: e.why for e in gate.events if e.backend is None}
    assert "reached +1.00" in bars[_TRIAL] and "reached +1.50" in bars[_TRUSTED]
