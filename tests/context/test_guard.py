"""Who may reach the service and for how long a stranger may hold it; and that nothing stays
reserved for a caller who was never told.
"""

import asyncio
import http.client
import json
import resource
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import uvicorn
from fastapi.testclient import TestClient
from test_service import ENV, FLEET, call, free_port, start
from waiting import until

from arcpoint_ce.context.service import GuardedApp, Guards, make_app, make_service
from arcpoint_ce.routing.records import Backend

FLEET_OF_TWO = [Backend("east", 8.0), Backend("west", 8.0)]
JSON = {"content-type": "application/json", "accept": "application/json, text/event-stream"}


class Serving:
    "An ASGI application on a real socket."

    def __init__(self, app, **options):
        config = uvicorn.Config(app, port=0, log_level="critical", lifespan="on", **options)
        self.server = uvicorn.Server(config)

    def __enter__(self):
        self.socket = socket.socket()
        self.socket.bind(("127.0.0.1", 0))
        self.port = self.socket.getsockname()[1]
        self.thread = threading.Thread(
            target=self.server.run, kwargs=dict(sockets=[self.socket]), daemon=True
        )
        self.thread.start()
        until(lambda: self.server.started, "the server is up")
        return self

    def __exit__(self, *_):
        self.server.should_exit = True
        self.thread.join(20)


def service_of(tmp_path):
    service = make_service(tmp_path / "s.sqlite", FLEET_OF_TWO, clock=time.time)
    service.engine.start = lambda clock: service.engine  # commits come from callers alone
    return service


def held(service) -> int:
    return sum(service.engine.router.in_flight().values())


def fail_to_write(service, monkeypatch):
    def full(*a):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(service.engine.store.shelf, "write", full)


# ---- nothing is reserved for a caller who was never told


def test_a_decision_that_could_not_be_written_is_taken_back(tmp_path, monkeypatch):
    service = service_of(tmp_path)
    with TestClient(make_app(service), base_url="http://127.0.0.1") as http:
        with monkeypatch.context() as patch:
            fail_to_write(service, patch)
            answers = [http.post("/decide", json={}) for _ in range(5)]
            assert [a.status_code for a in answers] == [503] * 5 and held(service) == 0
        good = http.post("/decide", json={})
        assert good.status_code == 200 and held(service) == 1
        joined = service.engine.store.joined()
        ends = [[o["error"] for o in row["outcomes"]] for row in joined]
        assert ends == [["cancelled"]] * 5 + [[]]


def test_a_decision_that_a_full_queue_refused_is_taken_back(tmp_path):
    service = service_of(tmp_path)
    with TestClient(make_app(service), base_url="http://127.0.0.1") as http:
        service.engine.store.bound = 0
        refused = http.post("/decide", json={})
        assert refused.status_code == 503 and held(service) == 0
        assert "queue" in refused.json()["detail"]


def test_a_commit_that_takes_too_long_is_told_and_the_decision_taken_back(tmp_path, monkeypatch):
    service = service_of(tmp_path)
    flush, go_on = service.engine.store.flush, threading.Event()

    def slow(*a):
        go_on.wait(20)
        return flush(*a)

    with TestClient(make_app(service, Guards(seconds=0.3)), base_url="http://127.0.0.1") as http:
        monkeypatch.setattr(service.engine.store, "flush", slow)
        try:
            assert http.post("/decide", json={}).status_code == 504 and held(service) == 0
        finally:
            go_on.set()


def test_a_caller_who_hangs_up_before_the_commit_holds_nothing(tmp_path, monkeypatch):
    service = service_of(tmp_path)
    flush, asked, go_on = service.engine.store.flush, threading.Event(), threading.Event()

    def slow(*a):
        asked.set()
        go_on.wait(20)
        return flush(*a)

    with Serving(make_app(service)) as server:
        monkeypatch.setattr(service.engine.store, "flush", slow)
        with socket.create_connection(("127.0.0.1", server.port)) as s:
            s.sendall(
                b"POST /decide HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-type: application/json\r\n"
                b"content-length: 2\r\n\r\n{}"
            )
            assert asked.wait(20) and held(service) == 1
        time.sleep(0.2)
        go_on.set()
        until(lambda: held(service) == 0, "the decision is taken back", 20)


def test_a_request_may_be_given_up_twice_and_nobody_elses(tmp_path):
    service = service_of(tmp_path)
    with TestClient(make_app(service), base_url="http://127.0.0.1") as http:

        def cancel(id):
            answer = http.post("/cancel", json=dict(decision=id))
            return answer.status_code, answer.json().get("released")

        first, second = (http.post("/decide", json={}).json() for _ in range(2))
        assert [cancel(first["decision"]) for _ in range(3)] == [
            (200, True),
            (200, False),
            (200, False),
        ]
        assert held(service) == 1 and cancel(12345)[0] == 404
        told = dict(decision=second["decision"], backend=second["backend"], latency_ms=9.0)
        assert http.post("/observe", json=told).json() == dict(taken=True)
        assert cancel(second["decision"]) == (200, False) and held(service) == 0
        late = dict(decision=first["decision"], backend=first["backend"], latency_ms=9.0)
        assert http.post("/observe", json=late).json() == dict(taken=False)
        ends = [[o["error"] for o in row["outcomes"]] for row in service.engine.store.joined()]
        assert ends == [["cancelled"], [None]]


def test_what_the_service_remembers_of_decisions_is_bounded(tmp_path):
    service = service_of(tmp_path)
    clock = iter(range(1_700_000_000, 1_800_000_000, 300))
    service.clock = lambda: float(next(clock))
    with TestClient(make_app(service), base_url="http://127.0.0.1") as http:
        for _ in range(50):  # nobody says how they ended; a lease lasts 600 s
            assert http.post("/decide", json={}).status_code == 200
    assert len(service.open) <= 4


def test_a_token_that_only_reads_may_not_cancel(tmp_path):
    app = make_app(service_of(tmp_path), Guards(token="w", read_token="r"))
    with TestClient(app) as http:
        head = {"authorization": "Bearer r"}
        assert http.post("/cancel", json=dict(decision=1), headers=head).status_code == 403


# ---- bodies


def chunked(port: int, path: str, size: int) -> int:
    c = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        parts = iter([b'{"task": "' + b"x" * 1000] + [b"x" * 1000] * (size // 1000))
        c.request("POST", path, body=parts, headers=JSON, encode_chunked=True)
        return c.getresponse().status
    finally:
        c.close()


@pytest.mark.parametrize("path", ["/decide", "/which", "/why", "/simulate", "/mcp", "/nowhere"])
def test_a_chunked_body_above_the_limit_is_413(tmp_path, path):
    with Serving(make_app(service_of(tmp_path))) as server:
        assert chunked(server.port, path, 100_000) == 413


@pytest.mark.parametrize("path", ["/decide", "/which", "/mcp"])
def test_a_body_that_never_ends_is_ended(tmp_path, path):
    app = make_app(service_of(tmp_path), Guards(seconds=0.5))
    with Serving(app) as server, socket.create_connection(("127.0.0.1", server.port), 10) as s:
        head = "".join(f"{k}: {v}\r\n" for k, v in JSON.items())
        s.sendall(f"POST {path} HTTP/1.1\r\nhost: 127.0.0.1\r\n{head}".encode())
        s.sendall(b"content-length: 1000\r\n\r\n{")
        began = time.monotonic()
        assert s.recv(100).startswith(b"HTTP/1.1 504") and time.monotonic() - began < 5


def test_an_application_gets_the_whole_body_and_the_end_of_the_connection():
    told = []

    async def app(scope, receive, send):
        told.append(await receive())
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"ok"})

    client = TestClient(GuardedApp(app, Guards()), base_url="http://127.0.0.1")
    parts = iter([b"12", b"34"])
    assert client.post("/x", content=parts, headers=JSON).text == "ok"
    assert told == [{"type": "http.request", "body": b"1234", "more_body": False}]


# ---- names


def raw(port: int, *head: str) -> int:
    with socket.create_connection(("127.0.0.1", port), 10) as s:
        s.sendall("\r\n".join(["GET /status HTTP/1.1", *head, "", ""]).encode())
        return int(s.recv(100).split()[1])


@pytest.mark.parametrize(
    "head,status",
    [
        (["Host: [::1]"], 200),
        (["Host: [::1]:8400"], 200),
        (["Host: 127.0.0.1"], 200),
        (["Host: LocalHost:8400"], 200),
        (["Host: localhost.:8400"], 200),
        (["Host: localhost:8400", "Origin: http://localhost:8400"], 200),
        (["Host: localhost:8400", "Origin: http://evil.example"], 403),
        (["Host: localhost:8400", "Origin: null"], 403),
        (["Host: evil.example"], 403),
        (["Host: [::1].evil.example"], 403),
        (["Host: [::1"], 403),
        (["Host: "], 403),
    ],
)
def test_names_of_this_machine_in_every_spelling(tmp_path, head, status):
    with Serving(make_app(service_of(tmp_path))) as server:
        assert raw(server.port, *head) == status


# ---- heads


def limited(files: int):
    def limit():
        resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

    return limit


@pytest.mark.slow
def test_half_open_heads_do_not_shut_out_others(tmp_path):
    port = free_port()
    code = "import sys; from arcpoint_ce.apps.cli import run; sys.exit(run(sys.argv[1:]))"
    words = ["serve", "--port", port, "--store", tmp_path / "s.sqlite", "--fleet", FLEET]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *map(str, words)],
        env=ENV | {"ARCPOINT_TOKEN": "secret"},
        preexec_fn=limited(150),
        stderr=subprocess.DEVNULL,
    )

    def healthy():
        try:
            return call(f"http://127.0.0.1:{port}", "/healthz")[0] == 200
        except OSError:
            return False

    holders = []
    try:
        until(healthy, "the service is up")
        for _ in range(150):
            s = socket.create_connection(("127.0.0.1", port), 5)
            s.setblocking(False)
            s.send(b"GET /state HTTP/1.1\r\nhost: 127.0.0.1\r\nx: ")
            holders.append(s)
        began = time.monotonic()
        until(healthy, "others are answered", 20)
        assert time.monotonic() - began < 10

        def ended(s):
            try:
                return s.recv(1) == b""
            except BlockingIOError:
                return False
            except OSError:
                return True

        until(lambda: all(map(ended, holders)), "those who wait are sent away", 20)
    finally:
        for s in holders:
            s.close()
        process.terminate()
        process.wait(20)


@pytest.mark.slow
@pytest.mark.parametrize("first", [b"", b"GET /healthz HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n"])
def test_a_head_that_drips_is_ended_also_on_a_connection_that_is_kept(tmp_path, first):
    port = free_port()
    process = start(tmp_path / "s.sqlite", port)
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as s:
            if first:
                s.sendall(first)
                assert s.recv(1000).startswith(b"HTTP/1.1 200")
            end, ended = time.monotonic() + 15, False
            s.sendall(b"GET /healthz HTTP/1.1\r\nx: ")
            while not ended and time.monotonic() < end:
                try:
                    s.sendall(b"y")
                    time.sleep(0.2)
                except OSError:
                    ended = True
            assert ended
    finally:
        process.terminate()
        process.wait(20)


def test_who_has_no_token_is_not_kept(tmp_path):
    with Serving(make_app(service_of(tmp_path), Guards(token="secret"))) as server:
        with socket.create_connection(("127.0.0.1", server.port), 10) as s:
            s.sendall(b"GET /state HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n")
            began, text = time.monotonic(), b""
            while got := s.recv(1000):
                text += got
            assert text.startswith(b"HTTP/1.1 401") and time.monotonic() - began < 2


def test_a_store_that_cannot_be_read_is_no_bug(tmp_path, monkeypatch):
    import sqlite3

    service = service_of(tmp_path)

    def broken(*a, **k):
        raise sqlite3.DatabaseError("database disk image is malformed")

    with TestClient(make_app(service), base_url="http://127.0.0.1") as http:
        http.post("/decide", json={})
        monkeypatch.setattr(service.context, "ask", broken)
        answer = http.get("/state")
    assert (answer.status_code, answer.json()["title"]) == (503, "the store cannot be read")


@pytest.mark.slow
def test_the_folder_of_a_new_store_must_be_there(tmp_path):
    code = "import sys; from arcpoint_ce.apps.cli import run; sys.exit(run(sys.argv[1:]))"
    words = ["serve", "--port", "0", "--store", str(tmp_path / "none" / "s.sqlite")]
    done = subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=60, env=ENV
    )
    assert done.returncode == 2 and "no such folder for the store; make it first" in done.stderr
    assert not Path(tmp_path / "none").exists() and "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_new_store_is_announced(tmp_path, capfd):
    port = free_port()
    process = start(tmp_path / "s.sqlite", port)
    process.terminate()
    _, said = process.communicate(timeout=20)
    assert b"s.sqlite is new" in said and (tmp_path / "s.sqlite").exists()


def test_the_answer_of_an_act_needs_no_server(tmp_path):
    "So that a fault in the fast path shows without HTTP around it."
    from arcpoint_ce.context.service import _Acts, _Committer

    async def two():
        service = service_of(tmp_path)
        committer = _Committer(service.engine.store.flush, lambda: service.engine.store.error)
        task = asyncio.create_task(committer.run())
        acts = _Acts(service, committer)

        async def gone():
            return True

        heard = await acts.answer("/decide", b"{}")
        unheard = await acts.answer("/decide", b"{}", gone)
        task.cancel()
        return json.loads(heard.body)["decision"], unheard.status_code, held(service)

    id, status, running = asyncio.run(two())
    assert id and status == 200 and running == 1


def test_a_status_of_0_is_one_where_none_came(tmp_path):
    "Envoy and nginx write 0 where no answer came, or the caller had left."
    service = service_of(tmp_path)
    with TestClient(make_app(service), base_url="http://127.0.0.1") as http:
        told = http.post("/decide", json={}).json()
        ended = dict(decision=told["decision"], backend=told["backend"], latency_ms=5, ok=False)
        answer = http.post("/observe", json=ended | dict(status=0, error="DC"))
        assert (answer.status_code, answer.json()) == (200, dict(taken=True))
        assert held(service) == 0
        wrong = http.post("/observe", json=ended | dict(status=99))
        assert wrong.status_code == 422 and "status" in wrong.text
