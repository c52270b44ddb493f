"""The fleet file: the shipped one, and errors that name line, key and remedy."""

import os
import re
from dataclasses import fields
from pathlib import Path

import pytest

from arcpoint_ce.routing.records import Backend, Tier
from arcpoint_ce.telemetry.fleet_file import infer_fleet, load_fleet
from arcpoint_ce.telemetry.requests import load_requests
from arcpoint_ce.telemetry.series import load_telemetry

SHIPPED = Path(__file__).parents[2] / "data" / "fleet.toml"


def test_shipped_file():
    fleet = load_fleet(SHIPPED)
    assert {b.name: b.capacity for b in fleet} == {
        "atlas-large": 24,
        "breeze-small": 12,
        "cedar-medium": 16,
        "delta-large": 20,
        "ember-spot": 8,
    }
    assert (
        all(b.price_out > b.price_in > 0 and b.region for b in fleet)
        and len({b.region for b in fleet}) > 1
    )
    assert (
        fleet.tiers["premium"].slo_ms
        <= fleet.tiers["standard"].slo_ms
        <= fleet.tiers["batch"].slo_ms
    )


FAULTS = [
    ("[[backend]]\nname = 'a'\ncapacity = -1\n", 3, "backend.0.capacity", "correct the value"),
    ("[[backend]]\nname = 'a'\ncapacity = 'many'\n", 3, "backend.0.capacity", "correct the value"),
    ("[[backend]]\nname = 'a'\ncapacity = nan\n", 3, "backend.0.capacity", "correct the value"),
    (
        "[[backend]]\nname = 'a'\ncapacity = 1\n\n[[backend]]\ncapacity = 2\n",
        5,
        "backend.1.name",
        "add it",
    ),
    (
        "[[backend]]\nname = 'a'\ncapacity = 1\nslo = 3\n",
        4,
        "backend.0.slo",
        "known here: name, capacity",
    ),
    (
        "fleet = 1\n[[backend]]\nname = 'a'\ncapacity = 1\n",
        1,
        "fleet",
        "known here: tiers, backend",
    ),
    (
        "[[backend]]\nname = 'a'\ncapacity = 1\n[tiers.gold]\nslo_ms = 0\n",
        5,
        "tiers.gold.slo_ms",
        "correct the value",
    ),
    ("[tiers.gold]\nslo_ms = 1\n", 1, "backend", "add it"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\ntiers = ['gold']\n", 4, "tiers", "add [tiers.gold]"),
    (
        "[[backend]]\nname = 'a'\ncapacity = 1\n[[backend]]\nname = 'a'\ncapacity = 1\n",
        5,
        "name",
        "rename one",
    ),
    ("[[backend]]\nname = 'a'\ncapacity = \n", 3, "not TOML", "see data/fleet.toml"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\nquality = 1.5\n", 4, "backend.0.quality", "correct"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\nquality = nan\n", 4, "backend.0.quality", "correct"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\nprice-in = 1\n", 4, "backend.0", "'price_in'?"),
    ("[[backend]]\nname = 'a'\nCapacity = 1\n", 3, "backend.0.Capacity", "mean 'capacity'?"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\nx = 1\n", 4, "backend.0.x", "remove it"),
    ("[tiers.t]\nslo = 5\n[[backend]]\nname = 'a'\ncapacity = 1\n", 2, "tiers.t.slo", "'slo_ms'?"),
    ("# no\na = " + "[" * 9000 + "]" * 9000, 2, "nested too deeply", "see data/fleet.toml"),
    ("# no\na = " + "{b=" * 9000, 2, "nested too deeply", "see data/fleet.toml"),
    (b"[[backend]]\nname = '\xe4'\ncapacity = 1\n", 2, "not UTF-8", "save the file"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\ntpm_in = 0\n", 4, "backend.0.tpm_in", "correct"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\nrpd = -5\n", 4, "backend.0.rpd", "correct"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\nrpd = inf\n", 4, "backend.0.rpd", "correct"),
    (
        "[[backend]]\nname = 'a'\ncapacity = 1\nmost_at_once = 2.5\n",
        4,
        "backend.0.most_at_once",
        "correct",
    ),
    (
        "[[backend]]\nname = 'a'\ncapacity = 1\nmost_at_once = true\n",
        4,
        "backend.0.most_at_once",
        "correct",
    ),
    ("[[backend]]\nname = 'a'\ncapacity = true\n", 3, "backend.0.capacity", "correct"),
    (
        "[[backend]]\nname = 'a'\ncapacity = 1\nspill_order = -1\n",
        4,
        "backend.0.spill_order",
        "correct",
    ),
    (
        "[[backend]]\nname = 'a'\ncapacity = 1\ntags = 'json'\n",
        4,
        "backend.0.tags",
        "write a list: ['json']",
    ),
    ("[[backend]]\nname = 'a'\ncapacity = 1\ntags = ['']\n", 4, "backend.0.tags.0", "correct"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\nmost-at-once = 4\n", 4, "backend.0", "most_at_once'?"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\nspillorder = 4\n", 4, "backend.0", "spill_order'?"),
    ("[[backend]]\nname = 'a'\ncapacity = 1\ntpm_input = 4\n", 4, "backend.0", "'tpm_in'?"),
]


@pytest.mark.parametrize("text,line,key,remedy", FAULTS)
def test_errors_name_line_key_and_remedy(tmp_path, text, line, key, remedy):
    path = tmp_path / "fleet.toml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=re.escape(f"{path}:{line}: {key}")) as e:
        load_fleet(path)
    assert remedy in str(e.value)


def test_inferred_from_a_log(tmp_path):
    """Ten at a time on one backend, one at a time on the other; prices 1 and 4 USD per million."""
    rows = [f"{t},busy,10000,100,50,{300e-6}" for t in range(0, 3000)] + [
        f"{t},calm,10000,100,50,{300e-6}" for t in range(0, 3000, 10)
    ]
    path = tmp_path / "log.csv"
    path.write_text(
        "ts,backend,latency_ms,tokens_in,tokens_out,cost_usd\n" + "\n".join(rows) + "\n"
    )
    with load_requests(path) as log:
        fleet = infer_fleet(log)
    assert (
        fleet.names == ("busy", "calm")
        and 9 <= fleet["busy"].capacity <= 11
        and 1 <= fleet["calm"].capacity <= 2
    )
    assert abs(100 * fleet["busy"].price_in + 50 * fleet["busy"].price_out - 300) < 0.01


def test_inferred_from_telemetry(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(
        "ts,backend,requests,latency_ms\n"
        + "".join(f"{t},a,600,500\n{t},b,60,500\n" for t in range(0, 3600, 60))
    )
    fleet = infer_fleet(load_telemetry(path))
    assert [b.capacity for b in fleet] == [10.0, 1.0]


WHOLE = """[tiers.chat]
slo_ms = 30000

[[backend]]
name = "ä"
capacity = 4
quality = 0.9
region = "eu"
tiers = ["chat"]
"""


@pytest.mark.parametrize(
    "encoding, ends", [("utf-8-sig", "\n"), ("utf-16", "\n"), ("utf-8", "\r\n"), ("utf-8", "\r")]
)
def test_whatever_an_editor_writes(tmp_path, encoding, ends):
    path = tmp_path / "fleet.toml"
    path.write_bytes(WHOLE.replace("\n", ends).encode(encoding))
    fleet = load_fleet(path)
    (backend,) = fleet
    assert (backend.name, backend.quality, backend.region) == ("ä", 0.9, "eu")
    assert (fleet.tiers["chat"].slo_ms, backend.tiers) == (30_000, ("chat",))
    path.write_bytes(WHOLE.replace("capacity", "capcity").replace("\n", ends).encode(encoding))
    with pytest.raises(ValueError, match=re.escape(f"{path}:6: backend.0.capcity")):
        load_fleet(path)


def test_quality_left_out_is_unknown_and_zero_is_zero(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text(
        "[[backend]]\nname='a'\ncapacity=1\n[[backend]]\nname='b'\ncapacity=1\nquality=0\n"
    )
    assert [b.quality for b in load_fleet(path)] == [None, 0.0]


LIMITED = """[[backend]]
name = "reserved"
capacity = 8
rpm = 60
tpm = 90000
tpm_in = 60000
rpd = 10000
most_at_once = 16
tags = ["vision", "json"]
spill_order = 0

[[backend]]
name = "on-demand"
capacity = 8
"""


def test_rate_limits_tags_and_spill_order(tmp_path):
    path = tmp_path / "fleet.toml"
    path.write_text(LIMITED)
    reserved, on_demand = load_fleet(path)
    assert reserved == Backend(
        "reserved",
        8,
        rpm=60,
        tpm=90_000,
        tpm_in=60_000,
        rpd=10_000,
        most_at_once=16,
        tags=("vision", "json"),
        spill_order=0,
    )
    assert on_demand == Backend("on-demand", 8)  # left out means unknown, not zero


def test_the_shipped_file_names_every_key():
    """Whoever copies the shipped file finds every key in its comments."""
    text = SHIPPED.read_text()
    keys = [f.name for f in fields(Backend)] + [f.name for f in fields(Tier) if f.name != "name"]
    assert [k for k in keys if not re.search(rf"^#.*\b{k}\b", text, re.M)] == []


CASES = Path(os.environ.get("ARCPOINT_CASES") or Path(__file__).parents[3] / "shared" / "cases")


@pytest.mark.parametrize(
    "name, backends, tiers",
    [
        ("25_fleet_quality.toml", [("a", 4, 0.9)], {}),
        ("26_fleet_slo.toml", [(f"b{k}", 8, None) for k in range(3)], {"chat": 30_000}),
    ],
)
def test_case_files(name, backends, tiers):
    if not (CASES / name).is_file():
        pytest.skip("set ARCPOINT_CASES to a folder of example files; without it, not tested")
    fleet = load_fleet(CASES / name)
    assert [(b.name, b.capacity, b.quality) for b in fleet] == backends
    assert {n: t.slo_ms for n, t in fleet.tiers.items()} == tiers
