"The gate: who is believed, who is not, and that it survives whatever it is told."

from math import inf, isfinite, nan
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.forecast.trust import _TRIAL, _TRUSTED, DEMOTED, Gate, GateConfig, worth

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
