"""The service as others meet it: a real server, real clients, kill -9, a fuzzer, MCP, the command
line.
"""

import asyncio
import json
import os
import random
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
FLEET = ROOT / "data" / "fleet.toml"
ENV = os.environ | {"PYTHONPATH": str(ROOT)}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def start(store, port, env=ENV, host="127.0.0.1", fleet=FLEET):
    code = "import sys; from arcpoint_ce.apps.cli import run; sys.exit(run(sys.argv[1:]))"
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            code,
            "serve",
            "--host",
            host,
            "--port",
            str(port),
            "--store",
            str(store),
            "--fleet",
            str(fleet),
        ],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    for _ in range(600):
        if process.poll() is not None:
            raise RuntimeError(process.stderr.read().decode())
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=1)
            return process
        except OSError:
            time.sleep(0.05)
    process.kill()
    raise RuntimeError("the service did not come up")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    port, store = free_port(), tmp_path_factory.mktemp("serve") / "s.sqlite"
    process = start(store, port)
    yield dict(url=f"http://127.0.0.1:{port}", port=port, store=store)
    process.terminate()
    assert process.wait(20) in (0, -signal.SIGTERM)


def call(url, path, body=None, **headers):
    data = (
        None if body is None else json.dumps(body).encode() if not isinstance(body, bytes) else body
    )
    request = urllib.request.Request(
        url + path, data, {"content-type": "application/json"} | headers
    )
    try:
        with urllib.request.urlopen(request, timeout=30) as r:
            return r.status, r.headers["content-type"], r.read()
    except urllib.error.HTTPError as e:
        return e.code, e.headers["content-type"], e.read()


def test_decide_observe_and_ask(served):
    url = served["url"]
    for _ in range(40):
        status, _, text = call(
            url, "/decide", dict(tier="premium", tokens_in=500, tokens_out=100, explain=True)
        )
        d = json.loads(text)
        assert status == 200 and d["backend"] and d["reasons"]
        assert json.loads(
            call(url, "/progress", dict(decision=d["decision"], tokens=40))[2]
        ) == dict(taken=True)
        assert (
            call(
                url,
                "/observe",
                dict(
                    decision=d["decision"],
                    backend=d["backend"],
                    latency_ms=120.0,
                    tokens_in=500,
                    tokens_out=100,
                ),
            )[0]
            == 200
        )
    for path, body in (
        ("/state", None),
        ("/risk", None),
        ("/incidents", None),
        ("/status", None),
        ("/which", dict(tier="premium")),
        ("/simulate", dict(backend="atlas-large")),
    ):
        status, kind, text = call(url, path, body)
        assert status == 200 and kind == "application/json" and json.loads(text), path
    # too little to explain: said, not guessed
    assert call(url, "/why", dict(metric="latency"))[0] == 422
    assert b'arcpoint_decisions_total{backend="' in call(url, "/metrics")[2]
    assert json.loads(call(url, "/openapi.json")[2])["paths"].keys() >= {
        "/state",
        "/risk",
        "/which",
        "/why",
        "/decide",
        "/progress",
        "/observe",
        "/metrics",
        "/healthz",
    }


@pytest.mark.parametrize(
    "path,body,status",
    [
        ("/decide", b"{", 422),
        ("/decide", b"[]", 422),
        ("/decide", dict(colour="red"), 422),
        ("/decide", dict(tokens_in=-1), 422),
        ("/decide", dict(slo_ms=1e400), 422),
        ("/decide", dict(task="song\n"), 422),
        ("/observe", dict(backend="mars", latency_ms=1.0), 422),
        ("/observe", dict(backend="atlas-large"), 422),
        ("/observe", dict(backend="atlas-large", latency_ms=1.0, decision=2**70), 422),
        ("/observe", dict(backend="atlas-large", latency_ms=1.0, headers=[]), 422),
        ("/observe", dict(backend="atlas-large", latency_ms=1.0, headers=dict(a=[1])), 422),
        ("/observe", dict(backend="mars", latency_ms=1.0, headers=dict(a="1")), 422),
        ("/decide", dict(regions="eu"), 422),
        ("/decide", dict(tags=["a\n"]), 422),
        ("/decide", dict(ttft_limit_ms=0), 422),
        ("/decide", dict(priority=1.5), 422),
        ("/decide", dict(tags=["no such ability"]), 503),
        ("/which", dict(regions="eu"), 422),
        ("/progress", {}, 422),
        ("/progress", dict(decision=1), 422),
        ("/progress", dict(decision=1, tokens=-1), 422),
        ("/progress", dict(decision=1, tokens=1.5), 422),
        ("/progress", dict(decision=1, tokens=1e400), 422),
        ("/progress", dict(decision=2**70, tokens=1), 422),
        ("/progress", dict(decisions=[]), 422),
        ("/progress", dict(decisions=[dict(decision=1, tokens=1)] * 1001), 422),
        ("/progress", dict(decision=1, tokens=1, colour="red"), 422),
        ("/progress", b'{"decisions": [' + b" " * 100_000 + b"]}", 413),
        ("/which", dict(top=0), 422),
        ("/why", dict(metric="joy"), 422),
        ("/simulate", dict(backend="mars"), 404),
        ("/nowhere", None, 404),
        ("/state?at=blue", None, 422),
        ("/state?window_s=-1", None, 422),
        ("/state?window_s=5e-324", None, 422),
        ("/state?at=%C2%B2", None, 422),  # a digit that is no number
        ("/state?at=%D9%A3", None, 422),
        ("/state?at=" + "9" * 400, None, 422),
        ("/state?at=%FF%00", None, 422),
        ("/risk?at=%E2%91%A0", None, 422),
        ("/cancel", {}, 422),
        ("/cancel", dict(decision=2**61), 404),
        ("/cancel", dict(decision=2**70), 422),
        ("/decide", b'{"task": "' + b"x" * 100_000 + b'"}', 413),
    ],
)
def test_what_is_wrong_is_a_problem_document(served, path, body, status):
    got, kind, text = call(served["url"], path, body)
    assert (
        got == status
        and kind == "application/problem+json"
        and json.loads(text)["status"] == status
        and b"Traceback" not in text
    )


MIXED = """[[backend]]
name = "east"
capacity = 8
region = "us-east"
tags = ["vision", "json"]
rpm = 6000

[[backend]]
name = "west"
capacity = 8
region = "eu-west"
tags = ["json"]
rpm = 6000
"""


@pytest.fixture
def mixed(tmp_path):
    """A service with two backends, unlike in region and abilities, both with a rate limit."""
    fleet = tmp_path / "mixed.toml"
    fleet.write_text(MIXED)
    port = free_port()
    process = start(tmp_path / "mixed.sqlite", port, fleet=fleet)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(20)


def answered(url, path, body):
    "Status, document and `Retry-After` of one call."
    data = json.dumps(body).encode()
    request = urllib.request.Request(url + path, data, {"content-type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as r:
            return r.status, json.loads(r.read()), r.headers["retry-after"]
    except urllib.error.HTTPError as e:
        return e.code, json.loads(e.read()), e.headers["retry-after"]


def test_regions_tags_and_whom_nobody_may_serve(mixed):
    wanted = dict(
        regions=["eu-west", "eu-central"],
        tags=["json"],
        session="s1",
        prefix="p1",
        ttft_limit_ms=300,
        tenant="t1",
        priority=3,
    )
    for _ in range(10):
        status, d, _ = answered(mixed, "/decide", wanted)
        assert (status, d["backend"], d["last_resort"]) == (200, "west", False)
        answered(mixed, "/cancel", dict(decision=d["decision"]))
    status, told, _ = answered(mixed, "/which", dict(wanted, top=2))
    assert (status, told["options"][0]["backend"], told["last_resort"]) == (200, "west", False)
    assert "is in region us-east" in told["options"][1]["reason"]
    # time changes nothing about an ability that a backend has not
    status, why, again_s = answered(mixed, "/decide", dict(regions=["eu-west"], tags=["vision"]))
    assert (status, again_s) == (503, None)
    assert why["backends"].keys() == {"east", "west"}
    assert "region" in why["backends"]["east"] and why["backends"]["west"] == "lacks vision"


@pytest.mark.parametrize(
    "told",
    [
        dict(status=429, headers={"Retry-After": "40"}),
        dict(status=429, headers={"retry-after-ms": 40_000}),
        dict(status=429, error="RateLimitError", retry_after_s=40),
        dict(status=200, headers={"retry-after": "40"}),
    ],
)
def test_a_spent_rate_limit_is_a_503_that_says_when_to_come_again(mixed, told):
    for name in ("east", "west"):
        body = dict(told, backend=name, latency_ms=30.0)
        assert answered(mixed, "/observe", body)[0] == 200
    status, why, again_s = answered(mixed, "/decide", {})
    assert status == 503 and 35 <= int(again_s) <= 40
    assert all("rate limit is spent" in x for x in why["backends"].values())


def test_what_the_provider_says_is_left_counts(mixed):
    """Others spend the same limit: no answer was refused, and nothing is left of this minute."""
    left = {"x-ratelimit-remaining-requests": "0", "X-Other": "kept out"}
    for name in ("east", "west"):
        body = dict(backend=name, latency_ms=80.0, status=200, headers=left)
        assert answered(mixed, "/observe", body)[0] == 200
    status, why, again_s = answered(mixed, "/decide", {})
    if status == 200:  # the minute was over meanwhile
        pytest.skip("the minute of the rate limit ended between two calls")
    assert status == 503 and 1 <= int(again_s) <= 60


def test_a_last_resort_is_called_one(mixed):
    """Both backends fail until their breakers open: the least bad is tried, and said to be that."""
    begin_s = time.time() - 6.0
    for k in range(60):
        failed = dict(latency_ms=20.0, status=500, ts_s=begin_s + 0.1 * k)
        for name in ("east", "west"):
            answered(mixed, "/observe", dict(failed, backend=name))
    status, d, _ = answered(mixed, "/decide", dict(explain=True))
    assert (status, d["last_resort"]) == (200, True)
    assert any("last resort" in why for why in d["reasons"])
    _, told, _ = answered(mixed, "/which", {})
    names = [o["backend"] for o in told["options"]]
    assert told["last_resort"] and sorted(names) == ["east", "west"]
    assert "last resort" in told["options"][0]["reason"]


def test_a_first_token_limit_holds_for_whoever_names_none():
    from fastapi.testclient import TestClient

    from arcpoint_ce import Backend
    from arcpoint_ce.context.service import make_app, make_service

    service = make_service(None, [Backend("a")], clock=time.time, slo_ttft_ms=400.0)
    with TestClient(make_app(service), base_url="http://127.0.0.1") as http:
        bodies = ({}, dict(ttft_limit_ms=90))
        made = [http.post("/decide", json=body).json()["decision"] for body in bodies]
        assert [service.open[d].request.ttft_limit_ms for d in made] == [400.0, 90.0]


def test_only_json_and_only_loopback_names(served):
    assert call(served["url"], "/decide", b"tier=gold", **{"content-type": "text/plain"})[0] == 415
    assert call(served["url"], "/state", host="evil.example")[0] == 403
    assert call(served["url"], "/healthz", host="evil.example")[0] == 200


@pytest.mark.slow
def test_open_to_others_only_with_a_token(tmp_path):
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "import sys; from arcpoint_ce.apps.cli import run; sys.exit(run(sys.argv[1:]))",
            "serve",
            "--host",
            "0.0.0.0",
            "--store",
            str(tmp_path / "s.sqlite"),
        ],
        env={k: v for k, v in ENV.items() if not k.startswith("ARCPOINT_TOKEN")},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 2 and "set ARCPOINT_TOKEN" in done.stderr


@pytest.mark.slow
def test_tokens_and_scopes(tmp_path):
    port = free_port()
    process = start(
        tmp_path / "s.sqlite",
        port,
        ENV | {"ARCPOINT_TOKEN": "write-me", "ARCPOINT_READ_TOKEN": "look"},
    )
    try:
        url = f"http://127.0.0.1:{port}"

        def as_(t):
            return {"authorization": f"Bearer {t}"}

        assert [
            call(url, "/state")[0],
            call(url, "/state", **as_("no"))[0],
            call(url, "/state", **as_("look"))[0],
            call(url, "/decide", {}, **as_("look"))[0],
            call(url, "/progress", dict(decision=1, tokens=1), **as_("look"))[0],
            call(url, "/decide", {}, **as_("write-me"))[0],
        ] == [401, 401, 200, 403, 403, 200]
    finally:
        process.terminate()
        out, err = process.communicate(timeout=20)
    assert b"write-me" not in out + err


def test_streams_tell_how_far_they_have_come(served):
    url, tell = served["url"], lambda **body: json.loads(call(served["url"], "/progress", body)[2])
    a, b = (
        json.loads(call(url, "/decide", dict(tokens_in=100, tokens_out=200))[2]) for _ in range(2)
    )
    assert tell(decision=a["decision"], tokens=10) == dict(taken=True)
    assert tell(decision=a["decision"], tokens=5) == dict(taken=False)  # fewer than before
    assert tell(
        decisions=[
            dict(decision=a["decision"], tokens=20),
            dict(decision=7, tokens=1),
            dict(decision=b["decision"], tokens=0),
        ]
    ) == dict(taken=False, each=[True, False, True])
    status = json.loads(call(url, "/status")[2])
    left = sum(x["work_left"] for x in status["backends"])
    running = sum(x["in_flight"] for x in status["backends"])
    assert status["counts"]["progress_ignored"] >= 2 and left < running - 0.05
    for d in (a, b):
        assert (
            call(
                url,
                "/observe",
                dict(
                    decision=d["decision"], backend=d["backend"], latency_ms=900.0, tokens_out=200
                ),
            )[0]
            == 200
        )
    assert tell(decision=a["decision"], tokens=30) == dict(taken=False)  # it has ended
    assert b"arcpoint_progress_ignored_total" in call(url, "/metrics")[2]


def test_the_worker_ticks_and_forecasts_by_default(served):
    call(served["url"], "/decide", {})
    end = time.monotonic() + 60
    while not (status := json.loads(call(served["url"], "/status")[2]))["worker"]["ticked_s"]:
        assert time.monotonic() < end, "the worker has not ticked"
        time.sleep(0.1)
    assert (
        status["forecaster"]["name"] == "auto"
        and status["policy"] == "own_pace"
        and status["worker"]["runs"]
        and status["worker"]["failures"] == 0
    )


def test_fifty_clients_at_once(served):
    async def client(n):
        r, w = await asyncio.open_connection("127.0.0.1", served["port"])
        got = []

        async def post(path, body):
            b = json.dumps(body).encode()
            w.write(
                f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: "
                f"application/json\r\ncontent-length: {len(b)}\r\n\r\n".encode()
                + b
            )
            head = (await r.readuntil(b"\r\n\r\n")).lower()
            return int(head[9:12]), json.loads(
                await r.readexactly(int(head.split(b"content-length: ")[1].split(b"\r\n")[0]))
            )

        for _ in range(n):
            status, d = await post("/decide", dict(tokens_in=100))
            got.append(status)
            got.append(
                (
                    await post(
                        "/observe",
                        dict(decision=d["decision"], backend=d["backend"], latency_ms=80.0),
                    )
                )[0]
            )
        w.close()
        return got

    async def all_of_them():
        return await asyncio.gather(*(client(20) for _ in range(50)))

    answers = [x for got in asyncio.run(all_of_them()) for x in got]
    assert len(answers) == 2000 and set(answers) == {200}


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path):
    store, rng, told, port = tmp_path / "s.sqlite", random.Random(0), [], free_port()
    for trial in range(3):
        process = start(store, port)
        began = time.monotonic()
        until = began + rng.uniform(0.3, 1.0)
        while time.monotonic() < until:
            try:
                status, _, text = call(
                    f"http://127.0.0.1:{port}", "/decide", dict(id=f"{trial}-{len(told)}")
                )
                if status == 200:
                    told.append(json.loads(text)["decision"])
            except OSError:
                break
            if time.monotonic() - began > 0.25 and rng.random() < 0.02:
                break
        process.send_signal(signal.SIGKILL)
        process.wait()
    kept = {r[0] for r in sqlite3.connect(store).execute("SELECT id FROM decisions")}
    assert len(told) > 50 and len(set(told)) == len(told) and set(told) <= kept


@pytest.mark.slow
def test_the_fuzzer_finds_no_server_error(served, tmp_path):
    """A request that no backend may serve is a 503 by design; nothing else above 499 is."""
    pytest.importorskip("schemathesis")
    expected = 'expected-statuses = ["2xx", "3xx", "4xx", "503"]'
    (tmp_path / "schemathesis.toml").write_text(f"[checks.not_a_server_error]\n{expected}\n")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "schemathesis.cli",
            "run",
            f"{served['url']}/openapi.json",
            "--checks",
            "not_a_server_error,content_type_conformance",
            "--max-examples",
            "25",
            "--seed",
            "1",
            "--phases",
            "examples,coverage,fuzzing",
            "--generation-database",
            "none",
            "--exclude-path",
            "/status",
        ],
        capture_output=True,
        text=True,
        timeout=600,
        env=ENV,
        cwd=tmp_path,
    )
    if done.returncode and "No module named" in done.stderr:
        done = subprocess.run(
            [str(Path(sys.executable).with_name("schemathesis")), *done.args[3:]],
            capture_output=True,
            text=True,
            timeout=600,
            env=ENV,
            cwd=tmp_path,
        )
    assert done.returncode == 0, (done.stdout + done.stderr)[-4000:]


@pytest.mark.slow
def test_mcp_over_stdio(served, tmp_path):
    from mcp import ClientSession, StdioServerParameters
    from mcp.client.stdio import stdio_client

    code = "import sys; from arcpoint_ce.apps.cli import run; sys.exit(run(sys.argv[1:]))"

    async def talk():
        async with stdio_client(
            StdioServerParameters(
                command=sys.executable,
                args=["-c", code, "mcp", "--store", str(served["store"])],
                env=dict(ENV),
            ),
            errlog=open(tmp_path / "errors", "w"),
        ) as (read, write):
            async with ClientSession(read, write) as session:
                await session.initialize()
                tools = await session.list_tools()
                good, bad, none = [
                    await session.call_tool(n, a)
                    for n, a in (("state", {}), ("state", dict(colour="red")), ("decide", {}))
                ]
                return [t.name for t in tools.tools], json.loads(good.content[0].text), bad, none

    call(served["url"], "/decide", {})
    names, state, bad, none = asyncio.run(asyncio.wait_for(talk(), 60))
    assert (
        names == ["state", "which", "why", "risk", "incidents", "simulate"]
        and state["backends"]
        and bad.is_error
        and none.is_error
        and "unknown function" in none.content[0].text
    )


@pytest.mark.slow
def test_ask_needs_no_key(served):
    call(served["url"], "/decide", {})
    env = {k: v for k, v in ENV.items() if k != "ANTHROPIC_API_KEY"}
    code = "import sys; from arcpoint_ce.apps.cli import run; sys.exit(run(sys.argv[1:]))"
    done = subprocess.run(
        [sys.executable, "-c", code, "ask", "How is the fleet?", "--store", str(served["store"])],
        capture_output=True,
        text=True,
        env=env,
        timeout=60,
    )
    assert (
        done.returncode == 0 and "no model was asked" in done.stdout and "backends" in done.stdout
    )
