"""Families: jitter, usual settings, moments of the newer ones, files with long tails, and the same
chance for every policy.
"""

from math import inf

import numpy as np
import pandas as pd
import pytest

from arcpoint_ce.lab.fleet import FixedChoice
from arcpoint_ce.lab.peers import make_peer
from arcpoint_ce.lab.worlds import _MOVE_S, FAMILIES, GRID_S, USUAL, Setting, World, _fair_load

OLD = (
    "scheduled_surge",
    "slow_degradation",
    "rate_limit",
    "diurnal",
    "ramp",
    "cold_capacity",
    "step_failure",
    "gray_failure",
    "fast_errors",
    "flapping",
    "cascading",
    "partition",
    "retry_storm",
    "memoryless_surge",
)
NEW = ("batch_surge", "long_requests", "sessions", "bursty")


def run(world, name="p2c"):
    return world.fleet([make_peer(name)]).run(world.workload)


def worlds(name, seeds=4, **how):
    return [World(Setting(name, seed, **how)) for seed in range(seeds)]


# ---- settings


def test_all_families_are_there():
    assert set(FAMILIES) == {*OLD, *NEW} and set(USUAL) <= set(NEW)


@pytest.mark.parametrize(
    "bad, words",
    [
        (dict(physics="real"), "physics must be one of ideal, engine"),
        (dict(jitter=0.2), "jitter must be within 0..0.1"),
        (dict(jitter=-0.01), "jitter"),
        (dict(jitter=float("nan")), "jitter must be a number"),
        (dict(streams=1.5), "streams must be within 0..1"),
        (dict(streams="all"), "streams must be a number"),
        (dict(request_s=0), "request_s must be positive"),
        (dict(load=inf), "load must be a number"),
        (dict(observable=2), "observable must be within 0..1"),
        (dict(n=0), "n must be positive"),
        (dict(n=10.5), "n must be a whole number"),
        (dict(gateways=1.5), "gateways must be a whole number"),
        (dict(seed=-1), "seed must be a whole number"),
        (dict(retries=-1), "retries"),
        (dict(staleness_s=-1), "staleness_s must be 0 or more"),
        (dict(past=2), "past must be 3 or more"),
        (dict(backends=1), "backends must be 2 or more"),
        (dict(slack=True), "slack must be a number"),
    ],
)
def test_wrong_settings_are_refused_by_name(bad, words):
    with pytest.raises(ValueError, match=words):
        Setting("ramp", **bad)


def test_a_family_has_usual_settings_and_an_explicit_one_wins():
    assert [
        Setting("batch_surge").streams,
        Setting("batch_surge").observable,
        Setting("long_requests").request_s,
        Setting("sessions").load,
    ] == [0.0, 1.0, 120.0, 0.2]
    s = Setting("ramp")
    assert (s.load, s.request_s, s.observable, s.streams) == (0.6, 8.0, 0.5, 1.0)
    s = Setting("batch_surge", streams=1, observable=0.5)
    assert (s.streams, s.observable) == (1.0, 0.5)
    assert Setting("long_requests", request_s=8).request_s == 8.0 and Setting(
        "long_requests"
    ) == Setting("long_requests", request_s=120)
    assert all(x.observable for x in World(Setting("batch_surge", 1, n=100)).sims)


def test_a_fair_load():
    assert [_fair_load(x) for x in (0.0009, 0.001, 0.01, 0.0101)] == [False, True, True, False]


# ---- jitter


def surge_starts(world):
    "First steep rise of the tenants in every cycle, by backend that surges punctually."
    out, steps = {}, int(30 / GRID_S)
    for i, others in enumerate(world.others):
        rise = others[steps:] - others[:-steps]
        at = (
            np.flatnonzero(
                (rise[1:] > 0.4 * world.capacity[i]) & (rise[:-1] <= 0.4 * world.capacity[i])
            )
            * GRID_S
        )
        keep = at[np.r_[True, np.diff(at) > 0.5 * world.setting.cycle_s]] if len(at) else at
        if len(keep) >= 6:
            out[i] = keep
    return out


@pytest.mark.parametrize("family", ["scheduled_surge", "batch_surge", "sessions", "long_requests"])
@pytest.mark.parametrize("jitter", [0.01, 0.03])
def test_surges_start_as_late_as_the_jitter_says(family, jitter):
    late = []
    for plain, shaken in zip(*(worlds(family, 5, n=6000, jitter=j) for j in (0.0, jitter))):
        a, b = surge_starts(plain), surge_starts(shaken)
        for i in set(a) & set(b):
            late += [t - a[i][np.abs(a[i] - t).argmin()] for t in b[i]]
    cycle_s = plain.setting.cycle_s
    late = np.array(late) / cycle_s
    assert (
        len(late) > 80
        and np.ptp(np.quantile(late, (0.16, 0.84))) / 2 == pytest.approx(jitter, rel=0.3, abs=0.003)
        and abs(np.median(late)) < jitter / 2
    )


@pytest.mark.parametrize("family", ["cold_capacity", "ramp", "diurnal"])
def test_own_traffic_keeps_its_shape_and_rate_and_starts_late(family):
    late = []
    for plain, shaken in zip(*(worlds(family, 6, n=4000, jitter=j) for j in (0.0, 0.05))):
        t = np.arange(0.0, plain.end_s)
        cycle_s = plain.setting.cycle_s
        assert np.allclose(plain.rate(t), plain.traffic.pattern(t % cycle_s) * plain.rate_rps)
        if family == "diurnal":
            continue

        def jump(w):
            return (
                np.flatnonzero(np.diff(w.rate(t)) > 0.5 * w.rate_rps)
                if family == "cold_capacity"
                else np.flatnonzero(np.diff(w.rate(t)) < -0.5 * w.rate_rps)
            )

        a, b = jump(plain), jump(shaken)
        late += [x - a[np.abs(a - x).argmin()] for x in b]
        assert shaken.rate(t).mean() == pytest.approx(plain.rate(t).mean(), rel=0.1)
        got = np.histogram(
            shaken.workload.at_s, np.arange(shaken.start_s, shaken.workload.at_s[-1] - 30.0, 30.0)
        )[0]
        want = (
            shaken.rate(
                np.arange(shaken.start_s, shaken.workload.at_s[-1] - 30.0, 30.0)[:-1] + 15.0
            )
            * 30.0
        )
        assert np.corrcoef(got, want)[0, 1] > 0.8
    if late:
        assert np.std(late) == pytest.approx(0.05 * cycle_s, rel=0.35)


@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_without_jitter_and_engine_nothing_changes(family):
    a, b = (
        World(Setting(family, 1, n=400)),
        World(Setting(family, 1, n=400, jitter=0, physics="ideal")),
    )
    assert (
        (a.others == b.others).all()
        and (a.speed == b.speed).all()
        and a.workload == b.workload
        and a.faults == b.faults
    )
    assert run(a).end_s.tolist() == run(b).end_s.tolist()
    shaken = World(Setting(family, 1, n=400, jitter=0.05))
    clocked = family in (
        "scheduled_surge",
        "batch_surge",
        "long_requests",
        "sessions",
        "diurnal",
        "ramp",
        "cold_capacity",
    )
    assert (shaken.workload == a.workload and (shaken.others == a.others).all()) is not clocked


# ---- the same chance for every policy


@pytest.mark.parametrize("physics", ["ideal", "engine"])
@pytest.mark.parametrize("family", ["sessions", "gray_failure", "diurnal"])
def test_what_policies_meet_does_not_depend_on_how_they_are_looked_at(family, physics):
    a = World(Setting(family, 1, n=500, physics=physics, jitter=0.02))
    b = World(
        Setting(
            family,
            1,
            n=500,
            physics=physics,
            jitter=0.02,
            staleness_s=5.0,
            gateways=4,
            streams=0.5,
            observable=0.2,
        )
    )
    assert a.workload == b.workload and (a.others == b.others).all() and a.faults == b.faults
    assert [x.slots for x in a.sims] == [
        x.slots for x in b.sims
    ] and a.hardware.engines == b.hardware.engines
    c = World(
        Setting(family, 1, n=500, physics="engine" if physics == "ideal" else "ideal", jitter=0.02)
    )
    assert (
        (a.others == c.others).all()
        and (a.workload.at_s == c.workload.at_s).all()
        and (a.workload.tokens_out == c.workload.tokens_out).all()
    )


@pytest.mark.parametrize("family", NEW)
def test_a_longer_run_has_the_same_past(family):
    a, b = (World(Setting(family, 3, n=n, physics="engine", jitter=0.03)) for n in (100, 3000))
    k = len(a.grid)
    assert (
        (a.others == b.others[:, :k]).all()
        and a.history() == b.history()
        and a.hardware.engines == b.hardware.engines
    )


@pytest.mark.parametrize("physics", ["ideal", "engine"])
@pytest.mark.parametrize("family", sorted(FAMILIES))
def test_every_family_runs_to_its_end_and_again_the_same(family, physics):
    a, b = (run(World(Setting(family, 2, n=600, physics=physics))) for _ in range(2))
    assert (
        len(a) == 600
        and a.k.tolist() == list(range(600))
        and a.end_s.tolist() == b.end_s.tolist()
        and (a.end_s >= a.born_s).all()
    )
    assert physics == "engine" or not a.first_late.any()


def test_an_overloaded_engine_meets_each_of_its_limits():
    world = World(Setting("scheduled_surge", 1, n=4000, load=1.2, physics="engine", retries=0))
    fleet = world.fleet([make_peer("random")])
    r = fleet.run(world.workload)
    assert (
        (r.error == "queue_full").any()
        and r.first_late.any()
        and sum(s.preempted for s in fleet.stations) > 20
    )
    assert (r.first_late & r.ok & (r.latency_s <= r.slo_s)).any() and r.violated[r.first_late].all()


# ---- partly streaming traffic


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_share_of_the_traffic_streams(share):
    class Listening(FixedChoice):
        def __init__(self):
            super().__init__()
            self.calls, self.heard = {}, set()

        def send(self, call, now):
            self.calls[call.k] = call.streams
            return call.k % 5

        def progress(self, job, tokens, now):
            self.heard.add(job.call.k)

    world = World(Setting("ramp", 1, n=2000, streams=share))
    gateways = [Listening() for _ in range(3)]
    world.fleet(gateways).run(world.workload)
    for g in gateways:
        streaming = [k for k, streams in g.calls.items() if streams]
        assert len(streaming) / len(g.calls) == pytest.approx(share, abs=0.05) and g.heard <= set(
            streaming
        )
        assert not streaming or len(g.heard) > 0.8 * len(streaming)


# ---- the newer families


def test_bursty_is_bursty_and_long_tailed_and_lives_as_long_as_asked():
    w = World(Setting("bursty", 1, n=100_000)).workload
    out = w.tokens_out
    assert (
        w.gap_cv > 2.5
        and out.std() / out.mean() > 2.0
        and out.mean() * 0.025 == pytest.approx(8.0, rel=0.05)
        and out.max() <= 25 * 320
    )
    calm = World(Setting("ramp", 1, n=100_000)).workload
    assert calm.gap_cv < 1.5 and calm.tokens_out.std() / calm.tokens_out.mean() < 1.0
    world = World(Setting("bursty", 1, n=500))
    assert world.timeout_s == pytest.approx(500.0)
    assert World(Setting("ramp", 1, n=500)).timeout_s == 160.0


def test_long_requests_take_two_minutes():
    w = World(Setting("long_requests", 1, n=20_000))
    assert (
        w.workload.tokens_out.mean() * 0.025 == pytest.approx(120.0, rel=0.03)
        and w.setting.cycle_s == 4800.0
    )


def test_nothing_streams_in_batch_surge():
    world = World(Setting("batch_surge", 1, n=300))
    assert world.fleet([FixedChoice()]).rounds.streams == 0.0


def test_conversations_have_twenty_turns_in_twenty_minutes_and_moving_them_costs():
    world = World(Setting("sessions", 1, n=12_000))
    w = world.workload
    turn = pd.DataFrame(dict(session=w.session, at_s=w.at_s)).groupby("session").at_s
    whole = (turn.min() > world.start_s + 600) & (turn.max() < w.at_s[-1] - 900)
    assert turn.size()[whole].mean() == pytest.approx(
        20, rel=0.1
    ) and turn.diff().mean() == pytest.approx(60.0, rel=0.05)
    assert (turn.max() - turn.min())[whole].mean() / 60 == pytest.approx(19.0, rel=0.1) and (
        w.session >= 0
    ).all()

    class Bound(FixedChoice):
        "A conversation stays, or goes from place to place."

        def __init__(self, stays):
            self.stays = stays

        def start(self, backends, seed):
            self.n, self.seen = len(backends), {}

        def send(self, call, now):
            self.seen[call.session] = self.seen.get(call.session, call.session - 1) + (
                not self.stays
            )
            return self.seen[call.session] % self.n

    took = {}
    for stays in (True, False):
        fleet = world.fleet([Bound(stays)])
        r = fleet.run(w[:2000])
        took[stays] = np.median(r.latency_s)
        moves = fleet.stations[0].contexts.moves
        assert moves == 0 if stays else moves > 1000
    assert took[False] > took[True] + 0.8 * _MOVE_S


# ---- arrival files


@pytest.fixture
def long_tailed(tmp_path):
    rng = np.random.default_rng(5)
    n = 4000
    at_s = np.cumsum(rng.gamma(0.1, 10.0, n))
    out = np.maximum(rng.lognormal(3.0, 1.6, n).round(), 1)
    at = pd.Timestamp("2023-11-16") + pd.to_timedelta(at_s, unit="s")
    path = tmp_path / "tail.csv"
    pd.DataFrame(
        dict(
            TIMESTAMP=at.strftime("%Y-%m-%d %H:%M:%S.%f"),
            ContextTokens=rng.integers(50, 3000, n),
            GeneratedTokens=out.astype(int),
        )
    ).to_csv(path, index=False)
    return str(path), out


@pytest.mark.parametrize("jitter", [0.0, 0.05])
def test_a_file_keeps_its_tail_at_the_asked_mean_life(long_tailed, jitter):
    path, out = long_tailed
    world = World(Setting("cold_capacity", 1, n=4000, arrivals=path, jitter=jitter))
    w = world.workload
    assert w.tokens_out.mean() * 0.025 == pytest.approx(8.0, rel=0.01) and (
        w.tokens_out.std() / w.tokens_out.mean()
    ) == pytest.approx(out.std() / out.mean(), rel=0.02)
    assert (
        w.tokens_out.max() / w.tokens_out.mean() == pytest.approx(out.max() / out.mean(), rel=0.02)
        and w.gap_cv > 2.0
    )
    # nobody who could still meet a limit is given up
    assert world.timeout_s >= w.slo_s.max() > 160.0
    assert w.rate_rps == pytest.approx(world.rate_rps, rel=0.25)


def test_a_file_decides_how_large_an_engine_must_be(long_tailed):
    path, _ = long_tailed
    filed, drawn = (
        World(Setting("ramp", 1, n=300, physics="engine", **how))
        for how in (dict(arrivals=path), {})
    )
    assert (
        filed.hardware.engines[0].tenant_in_tok > 1000 > drawn.hardware.engines[0].tenant_in_tok
        and filed.hardware.engines[0].kv_tok > 2 * drawn.hardware.engines[0].kv_tok
    )
    assert (
        filed.hardware.memory_room(0) == pytest.approx(drawn.hardware.memory_room(0))
        and len(run(filed)) == 300
    )
