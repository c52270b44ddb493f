"Grids go on beyond their edges, results are kept, and what is missing names its remedy."

import json
from math import log

import pytest

from arcpoint_ce.lab import tuning
from arcpoint_ce.lab.rivals import GRIDS, RANGES
from arcpoint_ce.lab.tuning import (
    Plan,
    _at_bounds,
    _best_of,
    _beyond,
    _key_of,
    _open_search,
    _tune_everywhere,
    _tune_family,
    tune,
)
from arcpoint_ce.lab.worlds import FAMILIES

SMALL = dict(
    adaptive_least=[dict(weight=w, gamma=g) for w in (0.1, 0.3) for g in (1.0, 2.0)],
    adaptive_least_sharp=[{}],
    stream_least=[{}],
    p2c=[{}, dict(paced=True)],
)


def world_with(gamma, weight, runs=None):
    "A stand-in for a family: misses grow with the load and the distance from one best setting."

    def run(task):
        options, params = dict(task.options), dict(task.params)
        if runs is not None:
            runs.append(task.key)
        worse = dict(adaptive_least=1.0, adaptive_least_sharp=8.0, stream_least=9.0, p2c=10.0)
        far = abs(log(params.get("gamma", gamma) / gamma))
        far += abs(log(params.get("weight", weight) / weight))
        missed = 40 * options["load"] ** 4 * worse[task.policy] * (1 + far)
        return dict(violations=missed, requests=options["n"])

    return run


BEST = [(12.0, 0.15), (0.3, 0.02), (2.0, 1.0), (1000.0, 0.1), (0.01, 0.1)]


@pytest.mark.parametrize("gamma, weight", BEST)
def test_an_optimum_on_the_edge_of_a_grid_extends_it_until_it_lies_inside(gamma, weight):
    def misses(points):
        return [abs(log(p["gamma"] / gamma)) + abs(log(p["weight"] / weight)) for _, p in points]

    points = [("adaptive_least", p) for p in SMALL["adaptive_least"]]
    seen = _open_search(points, misses)["adaptive_least"]
    best, settings = _best_of(seen), [json.loads(key) for key in seen]
    low, high = RANGES["gamma"]
    assert abs(log(best["gamma"] / min(max(gamma, low), high))) <= log(2) / 2 + 1e-9
    assert abs(log(best["weight"] / weight)) <= log(2)
    for name in ("gamma", "weight"):
        line = [p[name] for p in settings if p | {name: best[name]} == best]
        low, high = RANGES[name]
        assert min(line) < best[name] or best[name] == low, (name, best, "nothing was tried below")
        assert max(line) > best[name] or best[name] == high, (name, best, "nothing was tried above")
    assert _at_bounds(best) == [name for name in ("gamma", "weight") if best[name] in RANGES[name]]


def test_steps_are_geometric_whole_numbers_stay_whole_and_words_are_left_alone():
    point = dict(run=5, fresh=True, strategy="most", pooled=False)
    assert _beyond(point, [point]) == [point | dict(run=10), point | dict(run=2)]
    point = dict(quantile=0.6)
    assert _beyond(point, [point]) == [dict(quantile=0.99), dict(quantile=0.3)]
    assert _beyond(dict(weight=1.0), [dict(weight=1.0), dict(weight=0.5)]) == []
    assert _beyond(dict(buffer=0.0), [dict(buffer=0.0), dict(buffer=0.1)]) == []


def test_a_parameter_without_effect_does_not_run_away():
    seen = _open_search([("c3", dict(alpha=0.3))], lambda points: [0.0] * len(points))["c3"]
    assert len(seen) == 3 and _best_of(seen) == dict(alpha=0.3)


def test_a_family_is_tuned_past_the_grid_and_says_so():
    found = _tune_family("diurnal", grids=SMALL, n_jobs=1, run=world_with(12.0, 0.15))
    mine = found["peers"]["adaptive_least"]
    assert mine["params"]["gamma"] in (8.0, 16.0) and mine["params"]["weight"] in (0.1, 0.2)
    assert any(json.loads(key)["gamma"] > 8 for key in mine["beyond"]) and not mine["at_bounds"]
    assert set(mine["beyond"]) | {_key_of(p) for p in SMALL["adaptive_least"]} <= set(mine["tried"])
    assert mine["seeds"] == 8
    assert found["best"] == "adaptive_least" and 0.001 <= found["rate"] <= 0.01  # the load rule
    assert list(found["peers"]["p2c"]["tried"]) == ["{}"]  # no limit is told: pacing cannot matter


def test_the_second_round_may_go_further_still():
    "What two seeds prefer is not what eight prefer; the end of the grid is open then as well."

    def run(task):
        gamma = dict(task.params).get("gamma", 6.0)
        aim = 2.0 if task.seed < tuning.TUNING_SEED + 2 else 200.0
        missed = 10.0 * (1 + abs(log(gamma / aim))) * dict(task.options)["load"]
        return dict(violations=missed, requests=4000)

    gammas = [dict(gamma=g) for g in (1.0, 2.0, 4.0)]
    grids = dict(adaptive_least=gammas, stream_least=[{}], adaptive_least_sharp=[{}])
    found = _tune_family("diurnal", Plan(keep=3), grids, n_jobs=1, run=run)
    assert found["peers"]["adaptive_least"]["params"]["gamma"] >= 32.0


def test_paced_settings_run_where_a_limit_is_told():
    found = _tune_family("rate_limit", grids=SMALL, n_jobs=1, run=world_with(2.0, 0.3))
    assert set(found["peers"]["p2c"]["tried"]) == {"{}", '{"paced": true}'}


def test_one_setting_for_all_has_the_least_geometric_mean_and_zero_counts_as_half_a_miss():
    plan = Plan(seeds=1, n=1000, first=1)
    slow = _key_of(dict(slow_start_s=9.0))
    tried = {"diurnal": {"{}": 0.02, slow: 0.0}, "ramp": {"{}": 0.02, slow: 0.09}}
    families = {f: dict(tried_at=0.5, peers=dict(p2c=dict(tried=x))) for f, x in tried.items()}
    grids = dict(p2c=[{}, dict(slow_start_s=9.0)])
    found = _tune_everywhere(families, plan, grids, n_jobs=1, run=None)["p2c"]
    assert found["params"] == dict(slow_start_s=9.0)
    assert found["rate"] == pytest.approx((0.0005 * 0.09) ** 0.5)
    tried["ramp"][slow] = 0.9
    assert _tune_everywhere(families, plan, grids, n_jobs=1, run=None)["p2c"]["params"] == {}


def test_the_search_for_one_setting_is_open_too_and_runs_nothing_twice():
    families = {
        name: _tune_family(name, grids=SMALL, n_jobs=1, run=world_with(gamma, 0.3))
        for name, gamma in (("diurnal", 8.0), ("ramp", 32.0))
    }
    tried = {(f, key) for f in families for key in families[f]["peers"]["adaptive_least"]["tried"]}

    def everywhere(runs):
        run = world_with(16.0, 0.3, runs)
        return _tune_everywhere(families, Plan(), SMALL, n_jobs=1, run=run)["adaptive_least"]

    runs = []
    found = everywhere(runs)
    assert 8.0 <= found["params"]["gamma"] <= 32.0
    again = []
    assert everywhere(again) == found and not again
    repeated = [r for r in runs if (json.loads(r)[0], _key_of(json.loads(r)[4])) in tried]
    assert not repeated


def stand_in(monkeypatch):
    "Tuning that only writes down for which family it was asked."
    asked = []

    def tune_family(family, plan, also, **_):
        asked.append((family, also))
        one = dict(params={}, rate=0.01, seeds=8, tried={"{}": 0.01})
        peers = dict(p2c=one, stream_least=one)
        return dict(load=0.5, rate=0.004, best="p2c", peers=peers, tried_at=0.5)

    monkeypatch.setattr(tuning, "_tune_family", tune_family)
    monkeypatch.setattr(tuning, "GRIDS", dict(p2c=[{}], stream_least=[{}]))
    return asked


def test_naming_a_family_tunes_only_that_family(tmp_path, monkeypatch):
    asked, out = stand_in(monkeypatch), tmp_path / "t.json"
    tune(out, ["ramp", "diurnal"], progress=False, n_jobs=1)
    before = json.loads(out.read_text())
    tune(out, ["partition"], progress=False, n_jobs=1)
    after = json.loads(out.read_text())
    assert [family for family, _ in asked] == ["ramp", "diurnal", "partition"]
    assert {f: after["families"][f] for f in ("ramp", "diurnal")} == before["families"]
    assert set(after) == {"families", "plan", "everywhere"}
    assert set(after["everywhere"]) == {"p2c", "stream_least"}
    assert asked[-1][1] == {"p2c": {}, "stream_least": {}}  # what suits all is tried in a new one


def test_results_of_other_grids_are_tuned_again_and_plans_are_not_mixed(tmp_path, monkeypatch):
    asked, out = stand_in(monkeypatch), tmp_path / "t.json"
    tune(out, ["ramp"], progress=False, n_jobs=1)
    tune(out, ["ramp"], progress=False, n_jobs=1)
    assert len(asked) == 1
    monkeypatch.setattr(tuning, "RANGES", RANGES | dict(gamma=(1.0, 2.0)))
    tune(out, ["ramp"], progress=False, n_jobs=1)
    assert len(asked) == 2
    with pytest.raises(ValueError, match="with --seeds 8 --requests 4000: use the same, or"):
        tune(out, ["ramp"], Plan(2, 100), progress=False, n_jobs=1)


def test_a_rule_and_its_twin_count_as_one_rival(monkeypatch):
    rates = dict(stream_least=0.001, sharp=0.002, sharp_paced=0.002, c3=0.003, p2c=0.004)
    rates["adaptive_least"] = 0.009
    peers = {p: dict(params={}, rate=rate, seeds=8) for p, rate in rates.items()}
    peers["litellm"] = dict(params={}, rate=0.0001, seeds=2)  # only the first round saw it
    monkeypatch.setattr(tuning, "_kept", lambda: dict(families=dict(ramp=dict(peers=peers))))
    assert list(tuning._rivals_of("ramp", 3)) == ["stream_least", "sharp", "c3", "adaptive_least"]


def test_a_peer_that_came_later_leaves_no_half_entry():
    families = {"ramp": dict(tried_at=0.5, peers={})}
    found = _tune_everywhere(families, Plan(), dict(p2c=[{}]), n_jobs=1, run=world_with(2.0, 0.3))
    assert found["p2c"]["params"] == {} and families["ramp"]["peers"] == {}


def test_what_was_never_tuned_names_the_command(monkeypatch):
    monkeypatch.setattr(tuning, "_kept", lambda: dict(families={}, plan={}))
    with pytest.raises(KeyError, match="arcpoint tune --out data/tuning.json --family ramp"):
        tuning.tuned("ramp")
    with pytest.raises(KeyError, match="arcpoint tune --out data/tuning.json"):
        tuning._tuned_everywhere()


def test_the_file_that_is_shipped_has_no_optimum_on_an_open_edge():
    found = tuning._kept()
    assert set(found) >= {"families", "plan"} and set(FAMILIES) >= set(found["families"])
    fresh = {f: x for f, x in found["families"].items() if "mark" in x}
    assert fresh
    for family, x in fresh.items():
        for name, peer in x["peers"].items():
            if peer["seeds"] == found["plan"]["first"]:
                settings = [json.loads(key) for key in peer["tried"]]
                assert not _beyond(peer["params"], settings), (family, name, peer["params"])
        assert x["peers"][x["best"]]["seeds"] == found["plan"]["seeds"]


def test_one_setting_for_all_families_is_shipped_for_every_rival():
    everywhere = tuning._tuned_everywhere()
    assert set(everywhere) == set(GRIDS)
    assert everywhere["adaptive_least_sharp"] == everywhere["stream_least"] == {}
    for name, x in tuning._kept()["everywhere"].items():
        assert not _beyond(x["params"], [json.loads(key) for key in x["tried"]]), name
