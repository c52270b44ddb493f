"What a user brings takes part: policies, forecasters and faults, in the same worlds as the others."

import numpy as np
import pandas as pd
import pytest

import arcpoint_ce.lab as lab
from arcpoint_ce import Forecaster
from arcpoint_ce.lab import Candidate, Comparison, Fault, compare
from arcpoint_ce.lab.load_rules import LeastInFlight
from arcpoint_ce.routing.policies import TwoChoices

SMALL = dict(seeds=1, requests=150, load=0.4, n_jobs=1, past=3)


def fewest(request, candidates):
    return min(candidates, key=lambda c: (c.in_flight / c.capacity, c.name)).name


fewest.forecaster = "none"


class Learner:
    "Counts what it hears, and sends everything to whoever answered last."

    forecaster = "none"
    made = 0

    def __init__(self):
        Learner.made += 1
        self.last = None

    def choose(self, request, candidates):
        names = [c.name for c in candidates]
        return self.last if self.last in names else names[0]

    def observe(self, outcome):
        assert outcome.latency_ms > 0
        self.last = outcome.backend


def misses(found, policy):
    return int(found.rows.set_index("policy").loc[policy, "missed"])


def test_the_room_hands_on_what_users_call_and_no_module_hides_it():
    assert {"compare", "Comparison", "Candidate", "Fault"} <= set(dir(lab))
    assert callable(lab.compare) and not hasattr(lab.compare, "__path__")
    with pytest.raises(AttributeError, match="no attribute 'nobody'"):
        lab.nobody


def test_functions_classes_objects_and_policies_of_both_kinds_take_part():
    Learner.made = 0
    own = {"f": fewest, "class": Learner, "object": Learner(), "plan": TwoChoices()}
    TwoChoices.forecaster = "none"
    try:
        found = compare(own | {"gateway": LeastInFlight, "p2c": "p2c"}, **SMALL)
    finally:
        del TwoChoices.forecaster
    assert found.rows["policy"].tolist() == [*own, "gateway", "p2c"]
    assert (found.rows["requests"] == 150).all() and found.against == "p2c"
    assert Learner.made == 2  # the class once; the object is copied


def test_the_same_call_gives_the_same_rows():
    first, again = (compare([fewest, Learner, "p2c"], **SMALL).rows for _ in range(2))
    pd.testing.assert_frame_equal(first, again)


@pytest.mark.slow
def test_a_candidate_shows_what_the_gateway_knows():
    seen = []

    def reader(request, candidates):
        seen.extend(candidates)
        assert request.tokens_in > 0
        return fewest(request, candidates)

    compare({"reader": reader}, **SMALL)
    assert all(isinstance(c, Candidate) and c.price_usd > 0 and c.pace_ms > 0 for c in seen)
    assert max(c.in_flight for c in seen) > 0
    told = [c for c in seen if c.forecast_ms is not None]
    assert told and all(list(c.forecast_ms) == sorted(c.forecast_ms) for c in told)
    assert all(np.isfinite(c.room) and c.p90_ms == c.forecast_ms[5] for c in told)


def test_the_length_of_the_answer_is_not_told():
    asked = set()

    def spy(request, candidates):
        asked.add(request.tokens_out)
        return fewest(request, candidates)

    spy.forecaster = "none"
    compare(spy, **SMALL)
    assert 256 in asked and len(asked) < 40  # a slow average of earlier answers


class Calm(Forecaster):
    "Foresees nothing, and remembers how many steps it has heard."

    name = "calm"
    born: list = []

    def __init__(self):
        self.steps = 0
        Calm.born.append(self)

    def step(self, backend, step):
        self.steps += 1

    def memo(self):
        return dict(steps=self.steps)

    def restore(self, lessons, memo):
        self.steps = memo.get("steps", 0)


def test_a_forecaster_of_ones_own_remembers_the_past_that_it_lived_through():
    Calm.born = []
    found = compare("p2c", forecasters=[Calm, "none"], **SMALL)
    assert found.rows["policy"].tolist() == ["p2c", "ours with calm", "ours with none"]
    judged = Calm.born[-1]
    assert judged.steps > Calm.born[-2].steps > 0


def brownout(backend, since_s):
    return {"error_rate": 0.9} if since_s > 1 else {}


def test_faults_of_every_form_are_added_and_count_from_the_first_request():
    calm = compare(fewest, **SMALL).rows
    down = [Fault("backend_down", k, 1.0, 500.0) for k in range(5)]
    for faults in (down, brownout, [brownout]):
        hit = compare(fewest, faults=faults, **SMALL).rows
        assert hit["failed"].iloc[0] > calm["failed"].iloc[0], faults
    hit = compare(fewest, faults="bad_rollout", **SMALL).rows
    assert not hit.equals(calm)  # callers try again, so that none fails


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: compare("fastest"), "unknown policy 'fastest'; known: ours"),
        (lambda: compare(object()), r"object has no choose\(request, candidates\): give a"),
        (lambda: compare(lambda request: "a"), "must take two arguments"),
        (lambda: compare(type("Needs", (), {"__init__": lambda self, x: None})), "Needs needs x"),
        (lambda: compare([fewest, fewest]), "fewest: given twice"),
        (lambda: compare(fewest, families="quake"), "unknown family 'quake'; known: "),
        (lambda: compare(fewest, against="p2c"), "no contender is named 'p2c'; there are: fewest"),
        (lambda: compare(fewest, forecasters="oracle"), "unknown forecaster 'oracle'; known: auto"),
        (lambda: compare(fewest, forecasters=[object()]), "is no forecaster, it lacks"),
        (lambda: compare(fewest, forecasters=[fewest]), "fewest is a function"),
        (lambda: compare(fewest, faults="bad_luck"), "unknown scenario 'bad_luck'; known: "),
        (lambda: compare(fewest, faults=[3]), "3 is not a fault"),
        (lambda: compare(fewest, seeds=1, load=0.5, gatways=2), "gatways"),
        (lambda: compare(fewest, seeds=0), "seeds: at least one"),
        (lambda: compare(fewest, families=[]), "families: at least one"),
        (lambda: compare([]), "policies: at least one"),
    ],
    ids=lambda x: x if isinstance(x, str) else "call",
)
def test_what_is_missing_is_named(call, says):
    with pytest.raises((TypeError, ValueError), match=says):
        call()


def test_an_answer_that_is_no_candidate_names_those_there_are():
    def nowhere(request, candidates):
        return "nowhere"

    nowhere.forecaster = "none"
    with pytest.raises(ValueError, match="nowhere: choose returned 'nowhere'; return the name of"):
        compare(nowhere, **SMALL)

    def odd(backend, since_s):
        return {"sped": 0.5}

    with pytest.raises(ValueError, match="condition 'sped'; known: speed"):
        compare(fewest, faults=[odd], **SMALL)


def rows(**missed):
    lines = []
    for policy, counts in missed.items():
        for seed, n in enumerate(counts):
            lines.append(dict(family="<ramp>", policy=policy, seed=seed, requests=1000, missed=n))
    return pd.DataFrame(lines).assign(failed=0, cost_usd=1.0, p50_s=1.0, p99_s=2.0)


@pytest.mark.parametrize(
    "ours, theirs, says",
    [
        ([3, 4], [9, 9], "too few to tell"),
        ([100] * 12, [300] * 12, "fewer misses"),
        ([300] * 12, [100] * 12, "more misses"),
        ([100, 300] * 6, [300, 100] * 6, "no difference seen"),
    ],
    ids=["few", "fewer", "more", "alike"],
)
def test_the_table_says_what_the_interval_says(ours, theirs, says):
    found = Comparison(rows(mine=ours, theirs=theirs), "theirs")
    table = found.table().set_index("policy")
    assert table.loc["mine", "said"] == says and table.loc["theirs", "said"] == ""
    assert says in repr(found) and "<ramp>" not in found._repr_html_()


def test_the_picture_names_families_and_policies():
    ax = Comparison(rows(mine=[1], theirs=[2]), "theirs").plot()
    assert [t.get_text() for t in ax.get_legend().get_texts()] == ["mine", "theirs"]
    assert ax.get_xlabel().endswith("%") and ax.get_yticklabels()[0].get_text() == "<ramp>"
