"""The gateway over real sockets: whatever happens behind it before the first token, the caller gets
one answer; after it, the truth. Nothing stays reserved, and no secret comes out.
"""

import asyncio
import json
import logging
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from test_testbed import chat
from waiting import until

from arcpoint_ce.context.guard import Guards
from arcpoint_ce.engine.engine import ContextEngine
from arcpoint_ce.lab.fleet import ServiceCurve, SimBackend
from arcpoint_ce.live.gateway import GatewayConfig, make_gateway
from arcpoint_ce.live.testbed import Testbed
from arcpoint_ce.routing.breaker import BreakerConfig
from arcpoint_ce.routing.records import Backend
from arcpoint_ce.telemetry.fleet_file import Fleet, Upstream

CURVE = ServiceCurve((1.0, 8.0), (4.0, 8.0), (10.0, 20.0), 100.0)
NAMES = ("east", "west")
SIMS = [SimBackend(Backend(name, capacity=8.0, models=("small",)), CURVE) for name in NAMES]
# no breaker may help: what is seen is what retries alone achieve
NO_BREAKER = BreakerConfig(consecutive=10**6, window=10**5, min_calls=10**5, slow_rate=2.0)


@pytest.fixture(scope="module")
def bed():
    with Testbed(SIMS) as bed:
        yield bed


@pytest.fixture(autouse=True)
def all_well(request):
    yield
    if "bed" in request.fixturenames:
        bed = request.getfixturevalue("bed")
        for name in bed.names:
            bed.disturb(name, None)
            bed.set(name, speed=1.0, error_rate=0.0, stuck_rate=0.0, slots=None, queue=None)


@contextmanager
def serving(app):
    "An ASGI application on a real socket; its address."
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs=dict(sockets=[listener]))
        thread.start()
        until(lambda: server.started or not thread.is_alive(), "the gateway serves")
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join(30)


@contextmanager
def gateway(fleet, guards=None, environ=None, **settings):
    "A gateway without breakers in front of a fleet: its address, and itself."
    engine = ContextEngine(fleet, forecaster="none", slo_ms=20_000.0, breaker=NO_BREAKER)
    how = {} if environ is None else dict(environ=environ)
    config = GatewayConfig(**settings)
    gate = make_gateway(fleet, engine, clock=time.time, guards=guards, config=config, **how)
    with serving(gate) as url:
        yield url, gate
    left = engine.router.in_flight()
    engine.close()
    assert not any(left.values()), f"still reserved: {left}"
    assert not engine.failures


def post(url, tokens=5, stream=True, headers=None, timeout=30):
    body = chat(tokens, stream)
    return httpx.post(f"{url}/v1/chat/completions", json=body, headers=headers, timeout=timeout)


def whole(answer) -> bool:
    return answer.status_code == 200 and answer.text.endswith("data: [DONE]\n\n")


def test_answers_come_through_as_they_are_and_say_who_gave_them(bed):
    with gateway(bed.fleet()) as (url, gate):
        stream, plain = post(url), post(url, stream=False)
        assert whole(stream) and stream.text.count('"content": "tok "') == 5
        assert plain.json()["usage"]["completion_tokens"] == 5
        for answer in (stream, plain):
            assert answer.headers["x-arcpoint-backend"] in NAMES
            assert answer.headers["x-arcpoint-reason"].startswith("reactive")
            id = answer.headers["x-arcpoint-decision-id"]
            told = httpx.get(f"{url}/decision/{id}").json()
            assert told["backend"] == answer.headers["x-arcpoint-backend"] and told["reasons"]
        assert httpx.get(f"{url}/decision/7").status_code == 404
        assert [m["id"] for m in httpx.get(f"{url}/v1/models").json()["data"]] == ["small"]
        assert "arcpoint_in_flight" in httpx.get(f"{url}/metrics").text
        status = httpx.get(f"{url}/status").json()
        assert status["gateway"]["requests"] == 2 and status["counts"]["observed"] == 2


def test_the_engine_hears_of_time_to_first_token_tokens_and_progress(bed):
    seen = []
    with gateway(bed.fleet(), progress_s=0.05) as (url, gate):
        observe, progress = gate.engine.observe, gate.engine.progress
        gate.engine.observe = lambda o, now=None: seen.append(o) or observe(o, now)
        told = []
        gate.engine.progress = lambda d, n, now: told.append(n) or progress(d, n, now)
        assert whole(post(url, 100))
    (outcome,) = seen
    assert outcome.ok and outcome.tokens_out == 100
    assert 5 <= outcome.ttft_ms < outcome.latency_ms and outcome.latency_ms > 380
    assert len(told) >= 3 and sorted(told) == told and told[-1] <= 100


# ---- before the first token nothing of the trouble is seen

TROUBLES = {
    "killed": lambda bed: bed.kill("east"),
    "refused": lambda bed: bed.wire("east", down="refuse"),
    "errors": lambda bed: bed.set("east", error_rate=1.0),
    "proxy_errors": lambda bed: bed.wire("east", error_share=1.0),
    "reset": lambda bed: bed.wire("east", cut="reset", cut_after=100),
    "truncated": lambda bed: bed.wire("east", cut="truncate", cut_after=100),
    "stalled": lambda bed: bed.wire("east", cut="stall", cut_after=100),
    "black_hole": lambda bed: bed.wire("east", down="hang"),
    "stuck": lambda bed: bed.set("east", stuck_rate=1.0),
    "paused": lambda bed: bed.pause("east"),
    "full": lambda bed: bed.set("east", slots=1, queue=0, speed=0.01),
}


@pytest.mark.parametrize("trouble", TROUBLES)
@pytest.mark.parametrize("stream", [True, False], ids=["stream", "whole"])
def test_no_error_reaches_the_caller_while_a_healthy_backend_exists(bed, trouble, stream):
    async def many(url):
        body = chat(5, stream)
        async with httpx.AsyncClient(timeout=30) as client:
            posts = [client.post(f"{url}/v1/chat/completions", json=body) for _ in range(12)]
            return await asyncio.gather(*posts)

    with gateway(bed.fleet(), first_token_s=0.3, answer_s=0.5) as (url, gate):
        TROUBLES[trouble](bed)
        try:
            answers = asyncio.run(many(url))
        finally:
            if trouble == "paused":
                bed.resume("east")
            if trouble == "killed":
                bed.restart("east")
        assert [a.status_code for a in answers] == [200] * 12
        assert all(map(whole, answers)) or not stream
        if trouble != "full":
            assert {a.headers["x-arcpoint-backend"] for a in answers} == {"west"}
        assert gate.dispatch.counts["retries"] > 0 and gate.dispatch.counts["broken"] == 0
        retried = [a for a in answers if "east" in a.headers["x-arcpoint-reason"]]
        assert len(retried) == gate.dispatch.counts["retries"]


def test_failures_are_heard_with_status_and_what_was_asked_for(bed):
    sims = [SimBackend(Backend(n, capacity=8.0), CURVE) for n in NAMES]
    seen = []
    with Testbed(sims) as own, gateway(own.fleet()) as (url, gate):
        observe = gate.engine.observe
        gate.engine.observe = lambda o, now=None: seen.append(o) or observe(o, now)
        own.set("east", rpm=0)
        until(lambda: whole(post(url)) and any(not o.ok for o in seen), "east was tried")
        refused = next(o for o in seen if not o.ok)
        assert refused.status == 429 and refused.kind == "throttled"
        assert 0 < refused.retry_after_s <= 60
        held = {b["backend"]: b["held_s"] for b in gate.engine.router.status(time.time())}
        assert held["east"] > 0 and not held["west"]


def test_what_is_the_callers_own_fault_is_told_as_the_backend_said_it(bed):
    with gateway(bed.fleet()) as (url, gate):
        body = {"messages": "x", "max_tokens": 3}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert answer.status_code == 400 and "not a chat completion" in answer.text
        assert gate.dispatch.counts["retries"] == 0
        odd = post(url, headers={"x-arcpoint-slo-ms": "fast"})
        assert odd.status_code == 400 and "x-arcpoint-slo-ms" in odd.text
        for body in (b"{", b"[]", b'{"max_tokens": "x"}'):
            assert httpx.post(f"{url}/v1/chat/completions", content=body).status_code == 400


def test_when_all_have_failed_the_caller_gets_one_error_with_the_story(bed):
    for name in NAMES:
        bed.set(name, error_rate=1.0)
    with gateway(bed.fleet(), rounds=2) as (url, gate):
        answer = post(url)
        assert answer.status_code == 502 and gate.dispatch.counts["refused"] == 1
        said = answer.json()["error"]["message"]
        assert said.count("east: http 500") == 2 and said.count("west: http 500") == 2


def test_the_deadline_holds(bed):
    for name in NAMES:
        bed.wire(name, down="hang")
    with gateway(bed.fleet(), first_token_s=0.2) as (url, gate):
        began = time.monotonic()
        answer = post(url, headers={"x-arcpoint-deadline-ms": "600"})
        assert answer.status_code == 504 and 0.5 < time.monotonic() - began < 5
        assert "first token timeout" in answer.text


# ---- after the first token: the truth


def test_a_stream_that_breaks_ends_with_an_error_event(bed):
    bed.wire("east", cut="reset", cut_after=2000)
    bed.wire("west", cut="truncate", cut_after=2000)
    with gateway(bed.fleet()) as (url, gate):
        answers = [post(url, 60) for _ in range(3)]
        for answer in answers:
            events = [x for x in answer.text.split("\n\n") if x]
            assert answer.status_code == 200 and 1 < len(events) < 60
            last = json.loads(events[-1].removeprefix("data: "))
            assert last["error"]["code"] == "stream_broken"
            assert all(json.loads(x.removeprefix("data: ")) for x in events)  # no half event
        assert gate.dispatch.counts["broken"] == 3 and gate.dispatch.counts["retries"] == 0


def test_a_stream_that_falls_silent_ends_too(bed):
    for name in NAMES:
        bed.wire(name, cut="stall", cut_after=2000)
    with gateway(bed.fleet(), stall_s=0.3) as (url, gate):
        answer = post(url, 60)
        assert "silent for 0.3 s" in answer.text and gate.dispatch.counts["broken"] == 1


def test_a_broken_stream_goes_on_elsewhere_where_that_is_wanted(bed):
    bed.wire("east", cut="reset", cut_after=3000)
    with gateway(bed.fleet(), midstream="continue") as (url, gate):
        answers = []
        until(
            lambda: answers.append(post(url, 60)) or gate.dispatch.counts["continued"], "east broke"
        )
        assert all(map(whole, answers)) and gate.dispatch.counts["broken"] >= 1
        assert [a.text.count('"content": "tok "') for a in answers] == [60] * len(answers)


# ---- hedging, queueing, hanging up


@pytest.mark.slow
def test_a_silent_attempt_is_hedged_within_the_budget(bed):
    bed.wire("east", down="hang")
    with gateway(bed.fleet(), hedge_s=0.1, hedge_share=1.0, first_token_s=20) as (url, gate):
        answers = [post(url) for _ in range(6)]
        assert all(map(whole, answers)) and 0 < gate.dispatch.counts["hedges"] <= 6
        assert {a.headers["x-arcpoint-backend"] for a in answers} == {"west"}
    with gateway(bed.fleet(), hedge_s=0.1, hedge_share=0.0, first_token_s=0.4) as (url, gate):
        assert whole(post(url)) and gate.dispatch.counts["hedges"] == 0


@pytest.mark.slow
def test_what_finds_no_room_waits_and_the_urgent_goes_first():
    backend = Backend("only", capacity=1.0, most_at_once=1)
    done = []

    async def one(client, url, name, priority):
        head = {"x-arcpoint-priority": str(priority)}
        answer = await client.post(f"{url}/v1/chat/completions", json=chat(40, True), headers=head)
        done.append((name, answer.status_code))

    async def rush(url, gate):
        async with httpx.AsyncClient(timeout=30) as client:
            asked = [asyncio.ensure_future(one(client, url, "first", 0))]
            while not gate.dispatch.decisions:
                await asyncio.sleep(0.01)
            for name, priority in (("batch", -5), ("usual", 0), ("urgent", 9)):
                asked.append(asyncio.ensure_future(one(client, url, name, priority)))
                while len(gate.dispatch.line) < len(asked) - 1:
                    await asyncio.sleep(0.005)
            await asyncio.gather(*asked)

    with Testbed([SimBackend(backend, CURVE)]) as own, gateway(own.fleet()) as (url, gate):
        asyncio.run(rush(url, gate))
        assert done == [(name, 200) for name in ("first", "urgent", "usual", "batch")]
        assert gate.dispatch.counts["queued"] == 3 and not len(gate.dispatch.line)


def test_full_servers_are_waited_for(bed):
    for name in NAMES:
        bed.set(name, slots=1, queue=0)

    async def rush(url):
        async with httpx.AsyncClient(timeout=30) as client:
            path = f"{url}/v1/chat/completions"
            return await asyncio.gather(*(client.post(path, json=chat(30, True)) for _ in range(8)))

    with gateway(bed.fleet()) as (url, gate):
        answers = asyncio.run(rush(url))
        assert all(map(whole, answers))


def test_what_nobody_can_ever_serve_does_not_wait(bed):
    with gateway(bed.fleet()) as (url, gate):
        body = chat(3) | {"model": "huge"}
        answer = httpx.post(f"{url}/v1/chat/completions", json=body)
        assert answer.status_code == 503 and "does not serve model huge" in answer.text
        assert gate.dispatch.counts["queued"] == 0


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_caller_who_hangs_up_leaves_nothing_reserved(bed, when):
    if when == "before":
        for name in NAMES:
            bed.set(name, stuck_rate=1.0)
    with gateway(bed.fleet()) as (url, gate):
        request = httpx.Timeout(0.3) if when == "before" else httpx.Timeout(20)
        with httpx.Client(timeout=request) as client:
            try:
                with client.stream(
                    "POST", f"{url}/v1/chat/completions", json=chat(5000, True)
                ) as answer:
                    parts = answer.iter_bytes()
                    next(parts)
            except httpx.ReadTimeout:
                assert when == "before"
        router = gate.engine.router
        until(lambda: not any(router.in_flight().values()), "nothing is reserved")
        until(lambda: not any(bed.state(name)["running"] for name in NAMES), "the servers are free")
        errors = [b["error_rate"] for b in router.status(time.time())]
        assert errors == [0.0, 0.0]  # a caller who leaves teaches nothing


# ---- who may come in, and what comes out


def test_without_a_token_only_this_machine_and_its_own_pages(bed):
    with gateway(bed.fleet()) as (url, gate):
        assert post(url, headers={"host": "evil.example"}).status_code == 403
        assert post(url, headers={"origin": "http://evil.example"}).status_code == 403
        assert httpx.get(f"{url}/health", headers={"host": "lb"}).json() == {"status": "ok"}


def test_with_a_token_callers_show_it(bed):
    guards = Guards("write-secret", "read-secret")
    with gateway(bed.fleet(), guards=guards) as (url, gate):
        assert post(url).status_code == 401
        assert post(url, headers={"authorization": "Bearer read-secret"}).status_code == 401
        assert whole(post(url, headers={"authorization": "Bearer write-secret"}))
        assert httpx.get(f"{url}/status").status_code == 401
        read = httpx.get(f"{url}/status", headers={"authorization": "Bearer read-secret"})
        assert read.status_code == 200
        assert httpx.get(f"{url}/health").status_code == 200


async def echo(scope, receive, send):
    "An upstream that notes the headers it gets, and repeats them in its refusal."
    body = json.dumps({k.decode(): v.decode() for k, v in scope["headers"]}).encode()
    head = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 401, "headers": head})
    await send({"type": "http.response.body", "body": body})


def test_a_key_goes_to_its_upstream_and_nowhere_else(caplog):
    caplog.set_level(logging.DEBUG)
    heard = []

    async def noted(scope, receive, send):
        if scope["type"] == "http":
            heard.append(dict(scope["headers"]))
            await echo(scope, receive, send)

    server = uvicorn.Config(noted, log_level="error", lifespan="off")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
        running = uvicorn.Server(server)
        thread = threading.Thread(target=running.run, kwargs=dict(sockets=[listener]))
        thread.start()
        upstream = Upstream(f"http://127.0.0.1:{port}", "MY_KEY", "theirs")
        fleet = Fleet([Backend("a")], upstreams={"a": upstream})
        with gateway(fleet, Guards("callers"), {"MY_KEY": "sk-very-secret"}) as (url, gate):
            head = {"authorization": "Bearer callers"}
            answer = post(url, headers=head)
            status = httpx.get(f"{url}/status", headers=head).text
            texts = [answer.text, str(answer.headers), status, repr(gate.upstreams), caplog.text]
        running.should_exit = True
        thread.join()
    assert heard[0][b"authorization"] == b"Bearer sk-very-secret"
    assert answer.status_code == 502
    assert not any("sk-very-secret" in text or "callers" in text for text in texts)


def test_a_key_that_is_not_set_is_an_error_at_once():
    fleet = Fleet([Backend("a")], upstreams={"a": Upstream("http://127.0.0.1:1", "MY_KEY")})
    engine = ContextEngine(fleet)
    with pytest.raises(ValueError, match="'a' wants a key: set the environment variable MY_KEY"):
        make_gateway(fleet, engine, clock=time.time, environ={})
    with pytest.raises(ValueError, match="engine and fleet differ in a, b"):
        make_gateway(fleet, ContextEngine([Backend("b")]), clock=time.time, environ={})


def test_a_body_that_is_too_long_is_not_read(bed):
    with gateway(bed.fleet(), body_bytes=1000) as (url, gate):
        body = chat(3) | {"x": "y" * 2000}
        assert httpx.post(f"{url}/v1/chat/completions", json=body).status_code == 413


def test_a_body_that_never_ends_is_given_up(bed):
    with gateway(bed.fleet(), body_s=0.3) as (url, gate):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), 20) as s:
            head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: {host}:{port}\r\n"
            s.sendall(f"{head}content-length: 100\r\n\r\nhalf".encode())
            assert b" 408 " in s.recv(200)


def test_a_span_says_who_answered_how_much_and_what_went_wrong(bed):
    ended = []

    class Span(dict):
        def set_attribute(self, name, value):
            self[name] = value

        def end(self):
            ended.append(self)

    class Tracer:
        def start_span(self, name, attributes):
            return Span(attributes, name=name)

    with gateway(bed.fleet(), rounds=1) as (url, gate):
        gate.spans.tracer = Tracer()
        answer = post(url, 7)
        for name in NAMES:
            bed.set(name, error_rate=1.0)
        assert post(url).status_code == 502
        until(lambda: len(ended) == 2, "both spans have ended")
    good, bad = ended
    assert good["name"] == "chat small" and good["gen_ai.request.model"] == "small"
    assert good["gen_ai.provider.name"] == answer.headers["x-arcpoint-backend"]
    assert good["gen_ai.usage.output_tokens"] == 7 and "error.type" not in good
    assert good["arcpoint.decision.id"] == answer.headers["x-arcpoint-decision-id"]
    assert 0 < good["gen_ai.response.time_to_first_chunk"] < 30
    assert bad["error.type"] == "http 500" and "gen_ai.provider.name" not in bad


# ---- the command


@pytest.mark.slow
def test_the_command_serves_until_it_is_told_to_end(bed, tmp_path):
    tables = [f'[[backend]]\nname = "{n}"\ncapacity = 8\nmodels = ["small"]\n' for n in NAMES]
    file = tmp_path / "fleet.toml"
    file.write_text(bed.addressed("\n".join(tables)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    code = "import sys; from arcpoint_ce.apps.cli import run; sys.exit(run(sys.argv[1:]))"
    words = ["gateway", "--fleet", str(file), "--port", str(port), "--store"]
    words += [str(tmp_path / "s.sqlite"), "--forecaster", "none"]
    process = subprocess.Popen([sys.executable, "-c", code, *words])

    def up():
        try:
            return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
        except httpx.ConnectError:
            return False

    try:
        until(up, "the command serves")
        assert whole(post(f"http://127.0.0.1:{port}"))
    finally:
        process.terminate()
        process.wait(60)
    assert process.returncode in (0, -15)
    with ContextEngine(bed.fleet(), tmp_path / "s.sqlite") as engine:
        assert engine.router.memo()["turn"] > 0 and engine.store.status()
