"""The testbed with real processes and sockets: servers queue and batch as their curves say, faults
happen, and nothing survives its parent.
"""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from heapq import heappop

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from waiting import until

from arcpoint_ce.lab.faults import KINDS, Fault, Scenario
from arcpoint_ce.lab.fleet import FixedChoice, Fleet, Gauge, ServiceCurve, SimBackend
from arcpoint_ce.live.testbed import Testbed, _Stage, _told_of
from arcpoint_ce.routing.records import Backend

CURVE = ServiceCurve((1.0, 8.0), (4.0, 8.0), (20.0, 40.0), 100.0)
SIMS = [
    SimBackend(Backend("east", capacity=8.0), CURVE),
    SimBackend(Backend("west", capacity=2.0, models=("small",)), CURVE, slots=2, queue=1),
    SimBackend(Backend("rationed", capacity=8.0, rpm=3.0, tpm=9000.0), CURVE),
]


def lives(pid: int) -> bool:
    "Whether a process is there; one that has ended and is not yet waited for is not."
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def chat(tokens: int, stream: bool = False, text: str = "Hello!") -> dict:
    messages = [{"role": "user", "content": text}]
    return dict(model="small", messages=messages, max_tokens=tokens, stream=stream)


@pytest.fixture(scope="module")
def bed():
    with Testbed(SIMS) as bed:
        yield bed


@pytest.fixture
def east(bed):
    "The address of a server without limits; whatever a test does to it is undone."
    yield bed.urls["east"] + "/v1/chat/completions"
    bed.disturb("east", None)
    bed.set("east", speed=1.0, error_rate=0.0, stuck_rate=0.0, frozen=False, lie=(1.0, 1.0, 1.0))


def test_an_answer_whole_and_as_a_stream(east):
    whole = httpx.post(east, json=chat(5)).json()
    assert whole["usage"]["completion_tokens"] == 5 and whole["model"] == "small"
    body = chat(5, stream=True) | {"stream_options": {"include_usage": True}}
    with httpx.stream("POST", east, json=body) as answer:
        assert answer.headers["content-type"] == "text/event-stream"
        events = [line[6:] for line in answer.iter_lines() if line]
    assert events.pop() == "[DONE]"
    told = [json.loads(event) for event in events]
    assert told[-1]["usage"] == whole["usage"]
    assert "".join(c["delta"].get("content", "") for x in told for c in x["choices"]) == "tok " * 5


@pytest.mark.parametrize(
    "body", [{}, [], {"messages": "x"}, {"messages": [], "max_tokens": 0.2}], ids=str
)
def test_what_is_no_request_is_refused(east, body):
    assert httpx.post(east, json=body).status_code == 400


def timed(url: str, n: int, tokens: int):
    "Mean time of requests that are all sent at once, s."

    async def one(client):
        began = time.monotonic()
        answer = await client.post(url, json=chat(tokens))
        assert answer.status_code == 200
        return time.monotonic() - began

    async def all_of_them():
        async with httpx.AsyncClient(timeout=30) as client:
            return await asyncio.gather(*(one(client) for _ in range(n)))

    return asyncio.run(all_of_them())


@pytest.mark.slow
def test_it_takes_as_long_as_the_curve_says_alone_and_in_a_batch(east):
    timed(east, 1, 1)
    # a busy machine makes a request slower, never quicker: the quickest of three tells
    alone, crowded = (min(min(timed(east, n, 100)) for _ in range(3)) for n in (1, 8))
    assert 0.9 * 0.4 < alone < 0.9 * 0.8 < crowded < 5 * 0.8


def test_two_seats_one_waits_and_the_rest_are_turned_away(bed):
    url = bed.urls["west"] + "/v1/chat/completions"

    async def crowd():
        async with httpx.AsyncClient(timeout=30) as client:
            answers = [asyncio.ensure_future(client.post(url, json=chat(60))) for _ in range(6)]
            await asyncio.sleep(0.15)
            metrics = (await client.get(bed.urls["west"] + "/metrics")).text
            return [(await answer).status_code for answer in answers], metrics

    statuses, metrics = asyncio.run(crowd())
    assert sorted(statuses) == [200, 200, 200, 503, 503, 503]
    families = {f.name: f for f in text_string_to_metric_families(metrics)}
    said = {name: f.samples[0].value for name, f in families.items() if f.samples}
    assert said["vllm:num_requests_running"] == 2 and said["vllm:num_requests_waiting"] == 1
    assert 0 < said["vllm:kv_cache_usage_perc"] < 1
    assert families["vllm:num_requests_running"].samples[0].labels == {"model_name": "small"}
    assert {"vllm:time_to_first_token_seconds", "vllm:request_time_per_output_token_seconds"} <= (
        set(families)
    )


def test_a_provider_says_what_is_left_and_when_to_come_again(bed):
    url = bed.urls["rationed"] + "/v1/chat/completions"
    answers = [httpx.post(url, json=chat(1)) for _ in range(5)]
    refused = next(a for a in answers if a.status_code == 429)
    good = [a for a in answers if a.status_code == 200]
    assert [a.headers["x-ratelimit-remaining-requests"] for a in good[:1]] == ["2"]
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    assert refused.json()["error"]["type"] == "rate_limit_exceeded"


def test_the_load_report_comes_to_who_asks_for_it(bed, east):
    assert "endpoint-load-metrics" not in httpx.post(east, json=chat(1)).headers
    told = httpx.post(east, json=chat(1), headers={"endpoint-load-metrics-format": "JSON"})
    load = json.loads(told.headers["endpoint-load-metrics"].removeprefix("JSON "))
    assert load["named_metrics"]["num_requests_running"] == 1


def test_a_caller_who_hangs_up_frees_the_seat(bed, east):
    with httpx.stream("POST", east, json=chat(5000, stream=True)) as answer:
        parts = answer.iter_bytes()
        next(parts)
        assert bed.state("east")["running"] == 1
    until(lambda: bed.state("east")["running"] == 0, "the seat is free")


@pytest.mark.slow
def test_memory_for_keys_and_values_is_a_limit_too():
    with Testbed(SIMS[:1], kv_tok=150) as bed:
        url, seen = bed.urls["east"] + "/v1/chat/completions", []

        async def three():
            async with httpx.AsyncClient(timeout=60) as client:
                posts = [asyncio.ensure_future(client.post(url, json=chat(100))) for _ in range(3)]
                while not all(post.done() for post in posts):
                    seen.append(await asyncio.to_thread(bed.state, "east"))
                return [post.result().status_code for post in posts]

        assert asyncio.run(three()) == [200] * 3
    # 101 tokens each: one at a time, though the batch has room for many
    told = [state for state in seen if state]
    assert max(state["running"] for state in told) == 1
    assert max(state["waiting"] for state in told) >= 1


# ---- faults of the line


def outcome(url: str, timeout_s: float = 0.4, tokens: int = 20) -> str:
    "What a caller of a stream sees: how it ended, or what was wrong."
    try:
        with httpx.stream("POST", url, json=chat(tokens, stream=True), timeout=timeout_s) as answer:
            text = answer.read().decode()
        if answer.status_code != 200:
            return str(answer.status_code)
        return "whole" if text.endswith("[DONE]\n\n") else "cut"
    except httpx.HTTPError as e:
        return type(e).__name__


SEEN = {
    "slow_line": {"ReadTimeout", "whole"},
    "slow_drip": {"ReadTimeout", "whole"},
    "midstream_stall": {"ReadTimeout"},
    "midstream_reset": {"ReadError", "RemoteProtocolError"},
    "truncated_stream": {"RemoteProtocolError", "cut"},
    "proxy_errors": {"503", "whole"},
    "black_hole": {"ReadTimeout"},
}


@pytest.mark.slow
@pytest.mark.parametrize("fault", Testbed.LINE_FAULTS)
def test_a_fault_of_the_line_is_seen_and_passes(bed, east, fault):
    assert outcome(east) == "whole"
    bed.disturb("east", fault)
    assert outcome(east, tokens=5) in SEEN[fault]
    bed.disturb("east", None)
    until(lambda: outcome(east) == "whole", "all is well again")


def test_a_connection_that_is_open_hears_of_the_fault_too(bed, east):
    with httpx.stream("POST", east, json=chat(2000, stream=True), timeout=2) as answer:
        parts = answer.iter_bytes()
        next(parts)
        bed.wire("east", down="refuse")
        with pytest.raises(httpx.HTTPError):
            for _ in parts:
                pass
    assert outcome(east) in ("ReadError", "RemoteProtocolError", "ConnectError")


# ---- faults of a process


def test_a_killed_server_comes_back_under_the_same_address(bed, east):
    bed.set("east", error_rate=1.0)
    before = bed.pids["east"]
    bed.kill("east")
    assert not bed.is_alive("east") and bed.state("east") is None
    assert outcome(east) in ("ReadError", "RemoteProtocolError", "ConnectError")
    bed.restart("east")
    assert bed.pids["east"] != before and outcome(east) == "500"  # conditions outlive it
    bed.set("east", error_rate=0.0)
    until(lambda: outcome(east) == "whole", "the server serves")


def test_a_paused_server_says_nothing_and_goes_on(bed, east):
    bed.pause("east")
    try:
        assert outcome(east) == "ReadTimeout"
        assert bed.is_alive("east") and bed.state("east", 0.2) is None
    finally:
        bed.resume("east")
    until(lambda: outcome(east) == "whole", "it goes on")


# ---- the laboratory's faults


class Told:
    "Stands in for a testbed: notes what its processes would be told."

    names, sims = ("east", "west", "rationed"), SIMS

    def __init__(self):
        self.conditions = {}

    def set(self, name, **new):
        self.conditions.setdefault(name, {}).update(new)

    def wire(self, name, **new):
        self.set(name, **new)

    def kill(self, name):
        pass

    def is_alive(self, name):
        return True

    def state(self, name, timeout_s=0.0):
        return dict(running=1, waiting=0, taken=30)


def advance(fleet, later, moment):
    "Let happen what is due."
    while later and later[0][0] <= moment:
        fleet.now, _, do = heappop(later)
        do(fleet, fleet.now)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_real_server_gets_the_conditions_that_a_simulated_one_has(kind):
    start_s = 12.0 if kind == "rate_limit_exhaustion" else 1.0
    fault = Fault(kind, "*" if kind == "traffic_surge" else "east", start_s, 30.0)
    simulated, stage = Fleet(SIMS, [FixedChoice()]), _Stage(Told())
    fault.install(simulated)
    fault.install(stage)
    for moment in (start_s + 0.5, start_s + 11.0, start_s + 31.0):
        advance(simulated, simulated.agenda.later, moment)
        advance(stage, stage.later, moment)
        one, other = simulated.stations[0].now_is, stage.stations[0].now_is
        for name in ("speed", "error_rate", "error_ms", "stuck_rate", "down", "delay_ms"):
            assert getattr(one, name) == getattr(other, name), name
        assert stage.pace == simulated.pace
    told = stage.bed.conditions.get("east", {})
    assert told or kind == "traffic_surge"
    json.dumps(told)  # all of it can travel to another process


def test_a_lie_travels_as_factors():
    assert _told_of(None) == dict(frozen=False, lie=(1.0, 1.0, 1.0))
    assert _told_of("frozen") == dict(frozen=True)
    lie = KINDS["lying_metrics"].effect(1.0)["gauge"]
    factors = _told_of(lie)["lie"]
    gauge = Gauge(5.0, 30.0, 4, 12.0)
    assert lie(gauge) == Gauge(5.0, 30.0 * factors[0], 4 * factors[1], 12.0 * factors[2])


def test_gauges_stand_still_and_lie(bed, east):
    def running():
        text = httpx.get(bed.urls["east"] + "/metrics").text
        return float(text.split('vllm:num_requests_running{model_name="east"} ')[1].split()[0])

    with httpx.stream("POST", east, json=chat(3000, stream=True)) as answer:
        parts = answer.iter_bytes()
        next(parts)
        assert running() == 1.0
        bed.set("east", lie=(0.5, 0.0, 1.0))
        until(lambda: running() == 0.5, "it lies")
        bed.set("east", lie=(1.0, 1.0, 1.0))
        until(lambda: running() == 1.0, "it tells the truth")
        bed.set("east", frozen=True)
    until(lambda: bed.state("east")["running"] == 0, "the seat is free")
    assert running() == 1.0  # as it was
    bed.set("east", frozen=False)
    until(lambda: running() == 0.0, "it says what is")


@pytest.mark.slow
def test_a_scenario_kills_a_real_process_and_brings_it_back():
    trouble = Scenario("t", (Fault("backend_down", "east", 0.0, 0.5),))
    with Testbed(SIMS[:1]) as bed:
        before = bed.pids["east"]
        play = bed.play(trouble)
        until(lambda: not bed.is_alive("east") or bed.pids["east"] != before, "it died")
        play.join(60)
        assert bed.pids["east"] != before
        assert outcome(bed.urls["east"] + "/v1/chat/completions", 5.0) == "whole"


# ---- nothing is left behind

HOLDER = """
import sys, time
from arcpoint_ce.lab.fleet import ServiceCurve, SimBackend
from arcpoint_ce.live.testbed import Testbed
from arcpoint_ce.routing.records import Backend
curve = ServiceCurve((1.0, 8.0), (4.0, 8.0))
bed = Testbed([SimBackend(Backend(name), curve) for name in ("east", "west")]).start()
bed.pause("west")
print(*bed.pids.values(), bed._proxy.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.slow
@pytest.mark.parametrize("how", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_no_process_survives_its_killed_parent(how):
    parent = subprocess.Popen(
        [sys.executable, "-c", HOLDER], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    pids = [int(pid) for pid in parent.stdout.readline().split()]
    assert len(pids) == 3 and all(map(lives, pids))
    os.kill(parent.pid, getattr(signal, how))
    parent.wait(60)
    parent.stdout.close()
    until(lambda: not any(map(lives, pids)), "all have ended, the paused one too")


def test_a_testbed_that_cannot_start_leaves_nothing_behind(monkeypatch):
    bed = Testbed(SIMS[:1])
    monkeypatch.setattr("arcpoint_ce.live.testbed._START_LIMIT_S", 0.0)
    with pytest.raises(RuntimeError, match="not ready"):
        bed.__enter__()
    assert not bed.is_alive("east") and not bed._proxy.alive


def test_a_testbed_takes_backends_or_simulated_ones():
    with pytest.raises(ValueError, match="not both"):
        Testbed([SIMS[0], Backend("x")])
    with pytest.raises(ValueError, match="at least one"):
        Testbed([])
    assert [sim.backend.name for sim in Testbed([Backend("x", 4.0)]).sims] == ["x"]
