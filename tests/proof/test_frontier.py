"""The frontier: files that must be refused, splits that must not leak, numbers against plain
references, and the real answers.
"""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from arcpoint_ce.proof.frontier import (
    _hashed,
    _Prices,
    _prompt_folds,
    _route,
    _synthetic_quality,
    frontier,
    load_quality,
    predict_quality,
    tier_table,
)

HEAD = "subject,prompt_sha1,prompt_chars,cheap_correct,dear_correct\n"
ROW = "law,0a1b,120,1,0\n"


def write(tmp_path, text):
    p = tmp_path / "q.csv"
    p.write_bytes(text if isinstance(text, bytes) else text.encode())
    return p


@pytest.fixture(scope="module")
def said():
    return predict_quality(_synthetic_quality(3000, subjects=12, seed=1))


def test_a_good_file_is_read(tmp_path):
    t = load_quality(write(tmp_path, HEAD + ROW + ROW))
    assert t.to_dict("list") == dict(
        subject=["law"] * 2, prompt=["0a1b"] * 2, chars=[120] * 2, small=[1, 1], large=[0, 0]
    )
    assert t.attrs == dict(small="cheap", large="dear")
    swapped = load_quality(write(tmp_path, HEAD + ROW), small="dear_correct", large="cheap_correct")
    assert swapped.small[0] == 0 and swapped.large[0] == 1


@pytest.mark.parametrize(
    "text, words",
    [
        ("", "not a readable CSV"),
        (HEAD, "no rows"),
        (b"\xff\xfe\x00\x01,\n", "not a readable CSV"),
        (HEAD + ROW + "law,0a1b,9,1,0,7,8\n", "not a readable CSV"),
        (HEAD.replace("subject", "topic") + ROW, "no column 'subject'; there are topic"),
        (HEAD.replace("dear_correct", "dear") + ROW, "name the small and the large"),
        (
            HEAD.replace("\n", ",third_correct\n") + "law,0a1b,120,1,0,1\n",
            "name the small and the large",
        ),
        (HEAD + ROW + "law,0a1b,120,1,2\n", "row 3, column 'dear_correct': '2'"),
        (HEAD + "law,0a1b,120,,1\n", "row 2, column 'cheap_correct': ''"),
        (HEAD + "law,0a1b,0,1,1\n", "column 'prompt_chars': '0'"),
        (HEAD + "law,0a1b,nan,1,1\n", "column 'prompt_chars': 'nan'"),
        (HEAD + "law,0a1b,1.5,1,1\n", "'1.5' is not a whole number"),
        (HEAD + "law, ,12,1,1\n", "column 'prompt_sha1'"),
        (HEAD + ",a,12,1,1\n", "column 'subject'"),
    ],
)
def test_a_broken_file_is_refused_with_its_place(tmp_path, text, words):
    with pytest.raises(ValueError, match="q.csv") as e:
        load_quality(write(tmp_path, text))
    assert words in str(e.value)


def test_an_absent_file_and_an_absent_column_say_so(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_quality(tmp_path / "none.csv")
    with pytest.raises(FileNotFoundError, match="no such file"):
        load_quality(tmp_path)
    with pytest.raises(ValueError, match="no column 'x'"):
        load_quality(write(tmp_path, HEAD + ROW), small="x", large="dear_correct")


def test_equal_prompts_never_stand_on_both_sides_and_nobody_moves(said):
    t = _synthetic_quality(2000)
    twice = pd.concat([t, t.sample(500, random_state=0)], ignore_index=True)
    side = _hashed(twice.prompt, "split") >= 0.6
    assert (
        pd.Series(side).groupby(twice.prompt).nunique().max() == 1 and 0.55 < 1 - side.mean() < 0.65
    )
    assert (_hashed(twice.prompt, "split")[:2000] == _hashed(t.prompt, "split")).all()
    for a, b in _prompt_folds(twice.prompt):
        assert not set(twice.prompt.iloc[a]) & set(twice.prompt.iloc[b])
    for frac in (0.2, 0.8):
        assert abs((_hashed(said.prompt, "split") < frac).mean() - frac) < 0.05


@pytest.mark.slow
def test_predictions_never_see_their_own_answers(said):
    t = _synthetic_quality(3000, subjects=12, seed=1)
    flipped = t.assign(
        small=np.where(said.test, 1 - t.small, t.small),
        large=np.where(said.test, 1 - t.large, t.large),
    )
    # test verdicts change no prediction
    assert np.allclose(predict_quality(flipped).p_small, said.p_small)
    one = int(np.flatnonzero(~said.test)[0])
    other = t.assign(small=t.small.where(t.index != one, 1 - t.small))
    moved = abs(predict_quality(other).p_small - said.p_small)
    assert moved[one] < 0.005  # nor a training verdict its own, but through the calibration


def test_predictions_are_calibrated_and_near_the_truth(said):
    new = said[said.test]
    for m in ("small", "large"):
        assert abs(new[f"p_{m}"].mean() - new[m].mean()) < 0.04
        assert (new[f"p_{m}"] - new[f"true_{m}"]).abs().mean() < 0.05
        assert new[f"p_{m}"].between(0, 1).all()


def test_too_little_to_learn_from_is_refused():
    t = _synthetic_quality(300)
    for bad, words in (
        (t.assign(large=0), "large model"),
        (t[:1], "no training or no test"),
        (t.assign(prompt="same"), "no training or no test"),
    ):
        with pytest.raises(ValueError, match=words):
            predict_quality(bad)
    with pytest.raises(ValueError, match="train_share"):
        predict_quality(t, 1.0)


@settings(max_examples=200, deadline=None)
@given(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1))
def test_the_rule_by_hand(p_small, p_large, floor):
    large = bool(_route(np.array([p_small]), np.array([p_large]), floor)[0])
    if p_small >= floor:
        assert not large
    elif p_large >= floor:
        assert large
    else:
        assert large == (p_large > p_small)


def test_points_of_the_frontier_by_hand(said):
    new = said[said.test]
    prices = _Prices(1.0, 10.0, 4.0, 50.0)
    f = frontier(said, prices, floors=[0.7], worths=[0.01], n_boot=50).set_index("rule")
    big = _route(new.p_small.to_numpy(), new.p_large.to_numpy(), 0.7)
    tokens = new.chars / 4 + 50
    assert f.accuracy["floor"] == pytest.approx(np.where(big, new.large, new.small).mean())
    assert f.usd_per_1000["floor"] == pytest.approx(
        1000 * (tokens * np.where(big, 10.0, 1.0) / 1e6).mean()
    )
    worth = (new.p_large - new.p_small) * 0.01 > tokens * 9 / 1e6
    assert f.accuracy["worth"] == pytest.approx(
        np.where(worth, new.large, new.small).mean()
    ) and f.large_share["worth"] == pytest.approx(worth.mean())
    assert f.accuracy["oracle"] == pytest.approx(new[["small", "large"]].max(axis=1).mean())
    assert f.over_mix["always_small"] == pytest.approx(0, abs=1e-12) and f.over_mix[
        "always_large"
    ] == pytest.approx(0, abs=1e-12)


def test_intervals_cover_and_repeat(said):
    a, b = frontier(said, n_boot=100, seed=3), frontier(said, n_boot=100, seed=3)
    pd.testing.assert_frame_equal(a, b)
    p, n = a.accuracy[0], a.n[0]
    # a proportion's, where prompts are unique
    assert a.hi[0] - a.lo[0] == pytest.approx(2 * 1.96 * (p * (1 - p) / n) ** 0.5, rel=0.35)
    doubled = frontier(pd.concat([said, said], ignore_index=True), n_boot=100, seed=3)
    # the same prompts twice know no more
    assert doubled.hi[0] - doubled.lo[0] == pytest.approx(a.hi[0] - a.lo[0], rel=0.01)


def test_tiers_add_up_and_lies_are_found(said):
    t = tier_table(said, {"gold": 0.9, "any": 0.0}, n_boot=100)
    parts = t[t.served.isin(["small", "large", "none_reaches"])].groupby("tier")
    assert parts.n.sum().to_dict() == t[t.served == "all"].set_index(
        "tier"
    ).n.to_dict() and parts.share.sum().tolist() == pytest.approx([1.0, 1.0])
    assert t[
        (t.tier == "any") & (t.served == "all")
    ].verdict.item() == "kept" and "none_reaches" not in set(t[t.tier == "any"].served)
    none = t[(t.tier == "gold") & (t.served == "none_reaches")]
    assert (
        none.n.item() == (said[said.test][["p_small", "p_large"]].max(axis=1) < 0.9).sum() > 0
        and none.predicted.item() < 0.9
    )
    lies = tier_table(said.assign(p_small=0.95), {"gold": 0.9}, n_boot=100)
    assert lies[lies.served == "small"].verdict.item() == "broken"
    near = t[t.served == "near_floor"]
    assert near.predicted.between(near.floor, near.floor + 0.05).all() and "gold" in set(near.tier)
    careful = tier_table(said, {"gold": 0.8}, margin=0.05, n_boot=100).set_index("served")
    plain = tier_table(said, {"gold": 0.8}, n_boot=100).set_index("served")
    assert (
        careful.predicted["small"] > plain.predicted["small"]
        and careful.cost_share["all"] > plain.cost_share["all"]
    )


@pytest.mark.parametrize(
    "bad",
    [
        dict(small=5.0, large=1.0),
        dict(small=-1.0),
        dict(large=np.inf),
        dict(chars_per_tok=0.0),
        dict(answer_tok=-1.0),
        dict(small=np.nan),
    ],
)
def test_impossible_prices_are_refused(bad):
    with pytest.raises(ValueError):
        _Prices(**bad)


def test_wrong_tables_and_floors_are_refused(said):
    with pytest.raises(ValueError, match="predict_quality first"):
        frontier(_synthetic_quality(10))
    with pytest.raises(ValueError, match="no test rows"):
        tier_table(said[~said.test])
    with pytest.raises(ValueError, match="floor of tier 'gold'"):
        tier_table(said, {"gold": 90})


@pytest.mark.slow
@pytest.mark.skipif(
    not os.environ.get("ARCPOINT_DATA"),
    reason="ARCPOINT_DATA is not set: the judged answers are not at hand",
)
def test_real_answers():
    path = Path(os.environ["ARCPOINT_DATA"]) / "quality" / "routellm_mmlu_gsm8k.csv"
    if not path.is_file():
        pytest.skip("ARCPOINT_DATA holds no quality/routellm_mmlu_gsm8k.csv")
    p = predict_quality(load_quality(path))
    f = frontier(p, n_boot=300)
    ends = f.set_index("rule")
    assert f[f.rule == "worth"].over_lo.max() > 0.03  # predictions beat drawing lots
    # and per USD the worth rule beats floors
    assert f[f.rule == "worth"].over_lo.max() > f[f.rule == "floor"].over_hi.max()
    assert ends.accuracy["oracle"] > ends.accuracy["always_large"] > ends.accuracy["always_small"]
    t = tier_table(p, n_boot=300)
    # who was predicted to reach the floor reaches it
    assert (t[t.served.isin(["small", "large"])].verdict != "broken").all()
    assert (t[t.served == "none_reaches"].realised < t[t.served == "none_reaches"].floor).all()
