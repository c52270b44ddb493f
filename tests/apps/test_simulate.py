"`arcpoint simulate`: what it prints, what it refuses, and that it is the same run twice."

import os
import re
import signal
import sqlite3
import subprocess
import sys
import time
from math import inf

import pytest

from arcpoint_ce.apps import cli
from arcpoint_ce.apps import simulate as S
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.lab.faults import SCENARIOS
from arcpoint_ce.routing.records import Forecast, Forecaster, ForecastTable

FLEET = """[tiers.fast]
slo_ms = 200
[tiers.slow]
slo_ms = 800
[[backend]]
name = "one"
capacity = 16
[[backend]]
name = "two"
capacity = 24
[[backend]]
name = "three"
capacity = 12
"""
FAULTS = """name = "night"
[[faults]]
kind = "fast_errors"
target = "two"
start_s = 40
duration_s = 30
"""


@pytest.fixture
def here(tmp_path):
    (tmp_path / "fleet.toml").write_text(FLEET)
    (tmp_path / "night.toml").write_text(FAULTS)
    return tmp_path


def said(capsys, *args) -> tuple[int, str, str]:
    code = cli.run(["simulate", *map(str, args)])
    out = capsys.readouterr()
    return code, out.out, out.err


def shell(*args, cwd) -> subprocess.CompletedProcess:
    code = "from arcpoint_ce.apps.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "simulate", *map(str, args)],
        capture_output=True,
        text=True,
        cwd=cwd,
        env=dict(os.environ),
    )


@pytest.mark.slow
def test_a_run_from_the_shell(here):
    done = shell(
        *("--fleet", "fleet.toml", "--scenario", "backend_down"),
        *("--requests", 1500, "--every-s", 3),
        cwd=here,
    )
    assert done.returncode == 0 and done.stderr == "", done.stderr
    out = done.stdout
    assert "3 backends of fleet.toml, 1500 requests" in out and "simulated" in out
    rows = re.findall(r"^ *(\d+)s +[\d.]+ +[\d.]+% +\d+ ", out, re.M)
    assert len(rows) > 8 and [int(x) for x in rows[:4]] == [3, 6, 9, 12]
    news = [line for line in out.splitlines() if "s   * " in line]
    begins, opens, ends = (
        next(i for i, line in enumerate(news) if x in line)
        for x in (
            "fault begins: backend_down on one",
            "one: closed to open",
            "fault is over: backend_down on one",
        )
    )
    assert begins < ends and opens < ends
    assert (
        re.search(r"^\s+\d+s .*OPEN", out, re.M)
        and "ours (own_pace, forecaster auto)" in out
        and "adaptive least, sharp" in out
        and "p2c (two choices)" in out
    )


def test_a_fault_file_hits_whom_it_names(capsys, here):
    code, out, err = said(
        capsys, "--fleet", here / "fleet.toml", "--faults", here / "night.toml", "--requests", 1200
    )
    assert (
        code == 0
        and out.startswith("night:")
        and "40s   * fault begins: fast_errors on two, for 30 s" in out
        and "70s   * fault is over" in out
    )
    assert "two: closed to open" in out and "one: closed to open" not in out


def test_the_same_words_tell_the_same_story(capsys, here):
    args = ("--fleet", here / "fleet.toml", "--scenario", "flapping", "--requests", 800)
    first = said(capsys, *args)
    assert first == said(capsys, *args) and first[1] != said(capsys, *args, "--seed", 1)[1]


def test_without_a_fleet_the_shipped_one(capsys):
    code, out, _ = said(capsys, "--scenario", "latency_spike", "--requests", 500)
    assert code == 0 and "atlas-large" in out and "5 backends" in out


@pytest.mark.slow
def test_a_family_brings_its_own_fleet(capsys, here):
    code, out, _ = said(capsys, "--scenario", "step_failure", "--requests", 400, "--every-s", 60)
    assert code == 0 and "family's own" in out and "* fault begins: backend_down on b" in out
    code, _, err = said(capsys, "--scenario", "step_failure", "--fleet", here / "fleet.toml")
    assert code == 2 and "leave --fleet out" in err


def test_list_and_help(capsys):
    code, out, _ = said(capsys, "--list")
    assert code == 0 and all(n in out for n in SCENARIOS) and "scheduled_surge" in out
    code, out, _ = said(capsys, "--help")
    assert (
        code == 0
        and "arcpoint simulate --fleet data/fleet.toml --scenario backend_down" in out
        and 'kind = "latency_spike"' in out
    )


@pytest.mark.parametrize(
    "args, says",
    [
        ((), "--list"),
        (("--scenario", "backend_dwon"), "did you mean 'backend_down'"),
        (("--scenario", "doom"), "--list"),
        (("--scenario", "flapping", "--fleet", "none.toml"), "none.toml"),
        (("--faults", "none.toml"), "none.toml"),
        (("--scenario", "flapping", "--faults", "night.toml"), "not both"),
        (("--faults", "night.toml"), "no backend 'two'"),
        (("--scenario", "flapping", "--speed", "-1"), "--speed"),
        (("--scenario", "flapping", "--requests", "3"), "--requests"),
        (("--scenario", "flapping", "--load", "0"), "--load"),
        (("--scenario", "flapping", "--every-s", "0"), "--every-s"),
        (("--faults", "late.toml"), "raise --requests"),
        (("--faults", "far.toml"), "counted from 0"),
        (("--faults", "bad.toml"), "bad.toml: fault 1"),
    ],
)
def test_what_is_refused(capsys, here, monkeypatch, args, says):
    monkeypatch.chdir(here)
    (here / "late.toml").write_text(FAULTS.replace('"two"', '"*"').replace("= 40", "= 99999"))
    (here / "far.toml").write_text(FAULTS.replace('"two"', "7"))
    (here / "bad.toml").write_text(FAULTS.replace("fast_errors", "slow_errors"))
    code, out, err = said(capsys, *args)
    assert code == 2 and says in err and err.count("\n") == 1 and "Traceback" not in err + out, err


def test_speed_holds_it_back_and_changes_nothing():
    stage, slept, fast, paced = S.make_stage(None, "partition", None, requests=600), [], [], []
    S._Show(stage, 10.0, 0.0, fast.append, sleep=lambda s: pytest.fail("slept")).run()
    S._Show(stage, 10.0, 5.0, paced.append, clock=lambda: 0.0, sleep=slept.append).run()
    assert fast == paced and slept[:4] == pytest.approx([0.0, 0.2, 0.4, 0.6]) and len(slept) >= 5


def test_every_request_is_told_once(capsys, here):
    stage = S.make_stage(here / "fleet.toml", "rolling_restart", None, requests=700)
    lines = []
    record, _ = S._Show(stage, 10.0, 0.0, lines.append).run()
    rows = [line.split() for line in lines if re.match(r" *\d+s +[\d.]+ ", line)]
    assert len(record) == 700 and sum(float(r[1]) for r in rows) * 10 == pytest.approx(
        700, rel=0.05
    )
    assert sum(int(r[3]) for r in rows) == (~record.ok).sum()


def test_a_crowd_of_backends_stays_readable(here):
    many = "".join(f'[[backend]]\nname = "b{k}"\ncapacity = 8\n' for k in range(20))
    (here / "many.toml").write_text(many)
    lines = []
    S._Show(
        S.make_stage(here / "many.toml", "gray_failure", None, requests=500),
        20.0,
        0.0,
        lines.append,
    ).run()
    assert "(+12 more)" in lines[0] and max(map(len, lines)) < 200


class Announcer(Forecaster):
    """Says that the first backend will take three times as long, from 40 s to 60 s of the judged
    time.
    """

    name = "announcer"

    def start(self, router):
        self.first = router.backends[0].name

    def tick(self, now):
        request_ms = tuple(
            2000.0 * x * (3.0 if 40 <= now < 60 else 1.0)
            for x in (0.8, 0.9, 0.97, 1.0, 1.03, 1.1, 1.2)
        )
        forecast = Forecast(
            self.first, now, 30.0, request_ms, request_ms, now_ms=2000.0, throughout=True, trust=1.0
        )
        return ForecastTable(1, now, 60.0, {self.first: forecast}, self.name)


def told(stage, every_s=10.0):
    lines = []
    record, fleet = S._Show(stage, every_s, 0.0, lines.append).run()
    return lines, record, fleet


def test_shedding_is_told_when_it_begins_and_when_it_ends():
    stage = S.make_stage(
        None, "calm", None, requests=900, forecaster=Announcer(), streams=0.0
    )  # where streams tell, no forecast acts
    lines, record, fleet = told(stage)
    news = [line.strip() for line in lines if "   * " in line]
    first = stage.backends[0].name
    assert [re.sub(" +", " ", line) for line in news] == [
        f"40s * {first}: sheds before a breach, "
        "a request is foreseen to take 2.9 times as long as now",
        f"60s * {first}: sheds no longer",
    ]
    during = (record.born_s > 42) & (record.born_s < 60)
    after = (record.born_s > 65) & (record.born_s < 85)

    def share(when):
        return (record.first[when] == 0).mean()

    assert share(during) < 0.3 * share(after)  # and the traffic did go elsewhere


@pytest.mark.slow
@pytest.mark.parametrize("forecaster", ["none", "room", "latency", "auto"])
def test_being_written_down_changes_nothing(forecaster, tmp_path):
    stage = S.make_stage(None, "latency_spike", None, requests=3000, forecaster=forecaster)
    plain = stage.fleet([stage.router()]).run(stage.workload)
    gateway = S._live_gateway(stage, FeedbackStore(tmp_path / "run.sqlite"))
    fleet = stage.fleet([gateway])
    stored = fleet.run(stage.workload)
    gateway.engine.close(fleet.now)
    assert (
        plain.end_s.tolist() == stored.end_s.tolist()
        and plain.first.tolist() == stored.first.tolist()
    )
    store = FeedbackStore(tmp_path / "run.sqlite")
    assert (
        len(store.rows("decisions")) == 3000
        and len(store.rows("outcomes")) == stored.attempts.sum()
    )
    # nothing of the past that it has learned from
    assert min(r["at_s"] for r in store.rows("decisions")) >= 0
    assert (store.state("engine/lessons") is not None) == (forecaster != "none")


@pytest.mark.slow
def test_a_candidate_is_told_of_and_can_be_looked_up(tmp_path):
    store = FeedbackStore(tmp_path / "run.sqlite")
    stage = S.stored_stage(
        S.make_stage(None, "latency_spike", None, requests=4000, canary="random"), store
    )
    lines, record, fleet = told(stage, 60.0)
    kept = store.state("rollout/canary-random")
    # who is sent to the candidate is drawn anew in each store, so the verdict may still be open
    assert kept["state"] in ("canary", "rolled back") and kept["used"] >= 100
    assert lines[-1].startswith(f"canary-random: {kept['state']}; ")
    assert "canary random" in stage.ours


@pytest.mark.parametrize("how", [dict(shadow="p2c"), dict(ab="p2c"), dict(holdout=0.1)])
def test_what_runs_beside_ours_is_summed_up_in_the_last_line(how):
    lines, record, fleet = told(S.make_stage(None, "calm", None, requests=600, **how), 60.0)
    ((kind, _),) = how.items()
    assert (
        lines[-1].startswith(kind)
        and fleet.gateways[0].engine.rollout.ends == record.attempts.sum()
    )


def test_a_shadow_that_has_seen_nothing_has_a_status():
    engine = (
        S.make_stage(None, "calm", None, requests=300, shadow="p2c")
        .router()
        .make(S.load_fleet(S.shipped_fleet()), 0)
    )
    assert "nothing can be said yet" in engine.status(0.0)["rollout"]["why"]


def test_without_streams_the_engine_hears_of_no_progress():
    runs = {}
    for streams in (0.0, 1.0):
        _, record, fleet = told(
            S.make_stage(None, "latency_spike", None, requests=1500, streams=streams), 60.0
        )
        lanes = fleet.gateways[0].router._lanes.values()
        runs[streams] = record.first.tolist(), max(lane.nowcast.streamed_s for lane in lanes)
    assert runs[0.0][1] == -inf < 0 < runs[1.0][1] and runs[0.0][0] != runs[1.0][0]


def test_the_same_requests_are_given_to_the_rules_beside_ours():
    stage = S.make_stage(None, "partition", None, requests=600)
    _, record, _ = told(stage, 60.0)
    rows = S.compare(stage, record)
    assert [r[0] for r in rows] == [
        "ours (own_pace, forecaster auto)",
        "adaptive least, sharp",
        "p2c (two choices)",
    ]
    assert rows[0] == S._summary(rows[0][0], record) and len({r[1:] for r in rows}) == 3


def decided(store) -> bool:
    "Whether a decision has been written down."
    try:
        with sqlite3.connect(f"file:{store}?mode=ro", uri=True) as db:
            return bool(db.execute("SELECT 1 FROM decisions LIMIT 1").fetchall())
    except sqlite3.Error:
        return False


@pytest.mark.slow
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_is_ended_leaves_no_control_file(tmp_path, how):
    store = tmp_path / "run.sqlite"
    code = (
        "import signal, sys\nsignal.signal(signal.SIGHUP, signal.SIG_DFL)\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from arcpoint_ce.apps.cli import main; main()"
    )
    words = "simulate --scenario calm --speed 20 --requests 100000 --inject --store".split()
    run = subprocess.Popen(
        [sys.executable, "-c", code, *words, str(store)], stdout=subprocess.DEVNULL
    )
    control = tmp_path / "run.sqlite.control"
    try:
        end = time.monotonic() + 240
        while not control.exists():
            assert run.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        while not decided(store):
            assert run.poll() is None and time.monotonic() < end
            time.sleep(0.1)
        run.send_signal(how)
        assert run.wait(60) != 0
    finally:
        run.kill()
    assert not control.exists() and decided(store)
