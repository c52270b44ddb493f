"""The agent's deadline, with the real SDK against a server that never quite ends its answer; and
what one question may cost.
"""

import json
import socket
import subprocess
import sys
import textwrap
import threading
import time

import anthropic
import pytest

from arcpoint_ce.context.agent import Agent, AgentConfig, Meter, Stopped
from arcpoint_ce.context.ask import ask
from arcpoint_ce.context.hybrid import Gate, HybridRouter
from arcpoint_ce.context.questions import Context
from arcpoint_ce.engine.engine import ContextEngine
from arcpoint_ce.proof.scripted_model import Says, Stub
from arcpoint_ce.routing.records import Backend, Outcome, Request

STREAM = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
START = dict(
    id="m",
    type="message",
    role="assistant",
    model="x",
    content=[],
    stop_reason=None,
    stop_sequence=None,
    usage=dict(input_tokens=9, output_tokens=1),
)


def event(name: str, **data) -> bytes:
    return f"event: {name}\ndata: {json.dumps(dict(type=name, **data))}\n\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


BEGUN = chunk(event("message_start", message=START))
DRIPS = {  # what is sent at once, and then again and again
    "pings": (STREAM + BEGUN, chunk(event("ping"))),
    "comments": (STREAM + BEGUN, chunk(b": still here\n\n")),
    "comments from the start": (STREAM, chunk(b": still here\n\n")),
    "single bytes of an event": (STREAM + BEGUN, chunk(b"x")),
    "bytes of a chunk's length": (STREAM, b"0"),
    "a field of the head": (b"HTTP/1.1 200 OK\r\nx: ", b"y"),
    "fields of the head": (b"HTTP/1.1 200 OK\r\n", b"x: y\r\n"),
    "the status line": (b"", b"H"),
    "interim answers": (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
    "an error's body": (
        b"HTTP/1.1 500 Oops\r\ncontent-type: application/json\r\ncontent-length: 9999\r\n\r\n",
        b" ",
    ),
    "a refusal's body": (b"HTTP/1.1 429 No\r\ntransfer-encoding: chunked\r\n\r\n", chunk(b" ")),
    "text": (
        STREAM
        + BEGUN
        + chunk(event("content_block_start", index=0, content_block=dict(type="text", text=""))),
        chunk(event("content_block_delta", index=0, delta=dict(type="text_delta", text="a"))),
    ),
    "nothing": (b"", b""),
}


class Dripping:
    "A server that answers every request with a drip."

    def __init__(self, first: bytes, again: bytes, every_s: float = 0.05):
        self.first, self.again, self.every_s = first, again, every_s
        self.open = 0

    def __enter__(self):
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def accept(self):
        while True:
            try:
                s, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.drip, args=(s,), daemon=True).start()

    def drip(self, s: socket.socket):
        self.open += 1
        with s:
            try:
                s.recv(1_000_000)
                s.sendall(self.first)
                while True:
                    s.sendall(self.again)
                    s.settimeout(self.every_s)
                    try:
                        if s.recv(1_000_000) == b"":
                            break
                    except TimeoutError:
                        pass
                    s.settimeout(None)
            except OSError:
                pass
        self.open -= 1

    def __exit__(self, *_):
        self.listener.close()


@pytest.fixture(scope="module")
def engine():
    e = ContextEngine([Backend("east", 8.0), Backend("west", 8.0)])
    for k in range(200):
        d = e.decide(Request(tokens_in=500), 3.0 * k)
        e.observe(Outcome(d.backend, 3.0 * k, 90.0, decision=d.id))
        e.step(3.0 * k)
    e.store.flush()
    return e


def client_of(url: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(api_key="none", base_url=url)


def until(true, what: str, seconds: float = 20.0):
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, f"not within {seconds:g} s: {what}"
        time.sleep(0.02)


def at_work() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith("arcpoint-agent")]


@pytest.mark.slow
@pytest.mark.parametrize("how", DRIPS)
def test_the_deadline_holds_while_an_answer_drips(engine, how):
    with Dripping(*DRIPS[how]) as server:
        agent = Agent(Context(engine.store), AgentConfig(seconds=1.0), client_of(server.url))
        began = time.monotonic()
        v = agent.choose(Request(), ["east", "west"], "east", 600.0)
        took_s = time.monotonic() - began
        until(lambda: not at_work() and not server.open, "thread and connection end")
    assert (v.accepted, v.backend) == (False, "east") and v.trace.verify()
    assert took_s < 1.2, took_s
    assert v.usage["seconds"] < 1.2 and v.trace.steps[-1].kind == "verdict"


@pytest.mark.slow
@pytest.mark.parametrize("how", ["pings", "the status line", "an error's body"])
def test_a_phrased_answer_keeps_the_deadline_too(engine, how):
    with Dripping(*DRIPS[how]) as server:
        began = time.monotonic()
        told = ask(
            Context(engine.store),
            "How is the fleet?",
            client_of(server.url),
            AgentConfig(seconds=1.0),
        )
        assert time.monotonic() - began < 1.5 and told.by == "template"
        until(lambda: not at_work() and not server.open, "thread and connection end")


def test_the_callers_client_is_left_as_it_was(engine):
    with Dripping(*DRIPS["pings"]) as server:
        client = client_of(server.url)
        before = dict(vars(client))
        Agent(Context(engine.store), AgentConfig(seconds=0.3), client).choose(
            Request(), ["east"], "east"
        )
        assert vars(client) == before and not client.is_closed()


@pytest.mark.slow
def test_a_tool_that_hangs_keeps_the_deadline(engine, monkeypatch):
    context, go_on = Context(engine.store), threading.Event()
    monkeypatch.setattr(context, "ask", lambda *a, **k: go_on.wait(20) and 1 / 0)
    with Stub(lambda body: Says("", [("state", {})])) as stub:
        agent = Agent(context, AgentConfig(seconds=1.0), client_of(stub.url))
        began = time.monotonic()
        v = agent.choose(Request(), ["east"], "east")
        took_s = time.monotonic() - began
        steps = len(v.trace.steps)
        go_on.set()
        until(lambda: not at_work(), "the thread ends")
    assert took_s < 1.2 and not v.accepted and len(v.trace.steps) == steps and v.trace.verify()


def test_two_hanging_questions_do_not_occupy_the_router(engine):
    router = ContextEngine([Backend("east", 8.0), Backend("west", 8.0)])
    answers = dict(
        text="", calls=[("answer", dict(backend="west", confidence=1, reasoning="Well."))]
    )
    with Dripping(*DRIPS["a field of the head"]) as server, Stub(lambda b: Says(**answers)) as stub:
        agent = Agent(Context(engine.store), AgentConfig(seconds=0.5), client_of(server.url))
        h = HybridRouter(router, agent, AskAll(), deadline_s=0.1, keep_s=0.0)
        for k in range(4):
            h.decide(Request(tokens_in=10**k), float(k))
        until(lambda: not h.inquiries.running, "the hanging ones are over")
        agent.client, h.inquiries.deadline_s = client_of(stub.url), 10.0
        assert h.decide(Request(), 9.0).backend == "west" and h.counts["taken"] == 1


class AskAll(Gate):
    def __call__(self, conflict, worth=1.0):
        return True


def test_an_agent_that_never_returns_leaves_room_for_others():
    "Any object with `choose` may stand for the agent."

    class Hangs:
        store = None

        def choose(self, *a):
            threading.Event().wait(30)

    h = HybridRouter(
        ContextEngine([Backend("a"), Backend("b")]), Hangs(), AskAll(), deadline_s=0.01
    )
    for k in range(40):
        h.decide(Request(tokens_in=2**k), float(k))
    assert len(at_work()) <= 8 and h.counts["late"] == 40 and h.counts["failed"] == 0
    h.close()
    assert h.decide(Request(), 99.0).backend in "ab"


@pytest.mark.slow
@pytest.mark.parametrize("through", ["agent", "hybrid"])
def test_the_interpreter_ends_while_a_question_hangs(through):
    code = textwrap.dedent("""
        import sys, threading, time
        sys.path.insert(0, sys.argv[1])
        from test_deadline import *
        server = Dripping(*DRIPS["a field of the head"]).__enter__()
        router = ContextEngine([Backend("east", 8.0), Backend("west", 8.0)])
        agent = Agent(Context(router.store), AgentConfig(seconds=60.0), client_of(server.url))
        if sys.argv[2] == "hybrid":
            h = HybridRouter(router, agent, AskAll(), deadline_s=0.2)
            h.decide(Request(), 1.0), h.decide(Request(tokens_in=9999), 1.0)
        else:
            ask = lambda: agent.choose(Request(), ["east"], "east")
            threading.Thread(target=ask, daemon=True).start()
            time.sleep(1.0)
        print("end", time.time(), flush=True)
    """)
    folder = str(__file__).rpartition("/")[0]
    words = [sys.executable, "-c", code, folder, through]
    done = subprocess.run(words, capture_output=True, text=True, timeout=50)
    assert done.returncode == 0 and done.stdout.startswith("end"), done.stderr
    assert time.time() - float(done.stdout.split()[1]) < 5


# ---- what it may cost


def tried(engine, script, viable=("east", "west"), **config):
    with Stub(script) as stub:
        agent = Agent(Context(engine.store), AgentConfig(**config), client_of(stub.url))
        return agent.choose(Request(), list(viable), viable[0], 600.0), stub.seen


def test_a_question_of_a_million_tokens_is_not_sent(engine):
    crowd = [f"backend-{k:06d}" for k in range(200_000)]
    v, seen = tried(engine, lambda body: Says("", [("state", {})]), crowd)
    assert not seen and v.usage["usd"] == 0.0 and "could exceed" in v.why


@pytest.mark.parametrize("limit", [dict(tokens=9_000), dict(usd=0.03)])
def test_no_turn_is_sent_that_could_exceed_what_is_left(engine, limit):
    v, seen = tried(
        engine,
        lambda b: Says("", [("state", {})], tokens=(len(json.dumps(b)) // 3, 50)),
        steps=100,
        calls=100,
        tokens=limit.get("tokens", 10**6),
        usd=limit.get("usd", 9.0),
    )
    assert seen and v.usage["tokens"] <= limit.get("tokens", 10**6)
    assert v.usage["usd"] <= limit.get("usd", 9.0) and "exceed" in v.why


def test_an_answer_is_no_longer_than_what_is_left_pays_for(engine):
    v, seen = tried(engine, lambda body: Says("", [("state", {})]), usd=0.03, max_tokens=4000)
    assert 0 < seen[0]["max_tokens"] < 4000
    v, seen = tried(engine, lambda body: Says("", [("state", {})]), usd=5.0, max_tokens=4000)
    assert seen[0]["max_tokens"] == 4000


class Counting(Dripping):
    "Says how many pieces it could send."

    def drip(self, s):
        self.sent = 0
        s.recv(1_000_000)
        s.sendall(self.first)
        try:
            while self.sent < 3000:
                s.sendall(self.again)
                self.sent += 1
        except OSError:
            pass


def test_a_turn_that_says_it_cost_too_much_ends_at_once(engine):
    dear = chunk(event("message_start", message=START | dict(usage=dict(input_tokens=10**6))))
    with Dripping(STREAM + dear, chunk(event("ping"))) as server:
        agent = Agent(Context(engine.store), AgentConfig(seconds=20.0), client_of(server.url))
        v = agent.choose(Request(), ["east"], "east")
    assert v.usage["seconds"] < 5 and v.usage["usd"] == 3.0 and "more than 60000" in v.why


def test_an_endless_answer_ends_at_its_length(engine):
    block = chunk(event("content_block_start", index=0, content_block=dict(type="text", text="")))
    delta = dict(type="text_delta", text="words " * 2000)
    flood = chunk(event("content_block_delta", index=0, delta=delta))
    with Counting(STREAM + BEGUN + block, flood) as server:
        agent = Agent(Context(engine.store), AgentConfig(seconds=20.0), client_of(server.url))
        v = agent.choose(Request(), ["east"], "east")
    assert "longer than it may be" in v.why and server.sent < 3000


def test_a_turn_that_was_cut_is_paid_all_the_same(engine):
    with Dripping(*DRIPS["text"]) as server:
        agent = Agent(Context(engine.store), AgentConfig(seconds=0.5), client_of(server.url))
        v = agent.choose(Request(), ["east"], "east")
    assert v.usage["tokens"] == 10 and v.usage["usd"] > 0


def test_a_meter_refuses_before_it_is_spent():
    with pytest.raises(Stopped, match="could exceed"):
        Meter(AgentConfig(usd=1e-6), lambda: 0.0).afford(1000)
