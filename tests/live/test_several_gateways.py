"Four gateways on one Redis: its death costs no request, and nothing that was learned."

import asyncio
import shutil
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress

import httpx
import pytest
from waiting import until

from arcpoint_ce.engine.engine import ContextEngine, EngineConfig
from arcpoint_ce.engine.storage import MemoryShelf, _RedisShelf
from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.live import many_gateways, trials
from arcpoint_ce.live.testbed import Testbed
from arcpoint_ce.routing.decisions import NoBackend
from arcpoint_ce.routing.records import Backend, Outcome, Request


class Server:
    "A redis-server on a unix socket, with what can go wrong with it."

    def __init__(self, binary, folder):
        self.socket = folder / "r.sock"
        self.url = f"unix://{self.socket}"
        words = ["--port", "0", "--unixsocket", str(self.socket), "--dir", str(folder)]
        self.command = [binary, *words, "--appendonly", "yes", "--appendfsync", "always"]

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        until(self.answers, "redis answers")

    def client(self, **how):
        from redis import Redis

        return Redis(unix_socket_path=str(self.socket), **how)

    def answers(self):
        from redis import RedisError

        try:
            return self.client().ping()
        except RedisError:
            return False

    def kill(self):
        self.process.kill()
        self.process.wait()

    def lock(self):
        "Another password from now on, for those who are connected too."
        self.client().config_set("requirepass", "another")
        self.client(password="another").execute_command("CLIENT KILL TYPE normal")

    def unlock(self):
        self.client(password="another").config_set("requirepass", "")

    def hurt(self, trouble):
        TROUBLES[trouble][0](self)

    def heal(self, trouble):
        TROUBLES[trouble][1](self)


TROUBLES = {  # what brings each about, and what ends it
    "slow": (
        lambda server: server.process.send_signal(signal.SIGSTOP),
        lambda server: server.process.send_signal(signal.SIGCONT),
    ),
    "full": (
        lambda server: server.client().config_set("maxmemory", 1),
        lambda server: server.client().config_set("maxmemory", 0),
    ),
    "password": (Server.lock, Server.unlock),
    "killed": (Server.kill, Server.start),
}


@pytest.fixture
def redis(tmp_path):
    "A Redis of our own, which can be killed and started again."
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    server = Server(binary, tmp_path)
    server.start()
    yield server
    server.kill()


async def traffic(urls, work, server):
    "The same load on every gateway, while Redis dies and comes back."
    offers = [asyncio.ensure_future(trials._offer(url, work)) for url in urls]
    await asyncio.sleep(2.0)
    server.kill()
    await asyncio.sleep(4.0)
    await asyncio.to_thread(server.start)
    return [row for rows in await asyncio.gather(*offers) for row in rows]


def stores(urls):
    return [httpx.get(f"{url}/status", timeout=30).json()["store"] for url in urls]


@pytest.mark.slow  # four gateways to start, and ten seconds of traffic
def test_redis_dies_and_comes_back_under_load(redis):
    work = trials._work(1.0, 9.0, 0)
    with Testbed(trials._sims(3)) as bed:
        how = dict(store=redis.url, gateways=4, forecaster="none", slo_ms=5000.0)
        urls = [trials._gate(bed, number=k, **how)[0] for k in range(4)]
        rows = asyncio.run(traffic(urls, work, redis))
        assert len(rows) == 4 * len(work)
        assert [row for row in rows if not row["ok"]] == []

        def written():
            told = stores(urls)
            return all(not s["queued"] and not s["unwritten"] and not s["error"] for s in told)

        until(written, "all gateways have written down what they owe")
        assert all(s["lost"] == s["overflowed"] == 0 for s in stores(urls))
        store = FeedbackStore(redis.url)
        began = time.monotonic()
        assert len(list(store.rows("outcomes"))) == len(rows)
        assert len({row["id"] for row in store.rows("decisions")}) == len(rows)
        assert time.monotonic() - began < 30
        store.close()


def engine(store, number, **backend):
    fleet = [Backend("east", **backend), Backend("west")]
    config = EngineConfig(gateway=number, flush_s=0.05, share_s=0.1, tick_s=0.5, memo_s=0.5)
    return ContextEngine(fleet, store, forecaster="none", gateways=2, config=config)


def serve(engines, seconds):
    "Decide and observe for a while: how many requests, and how long each decision took, s."
    took, end_s = [], time.monotonic() + seconds
    while time.monotonic() < end_s:
        for one in engines:
            now = time.monotonic()
            d = one.decide(Request(), now)
            took.append(time.monotonic() - now)
            one.observe(Outcome(d.backend, now, 20.0, True, None, d.id), now + 0.02)
        time.sleep(0.02)
    return took


@pytest.mark.parametrize("trouble", TROUBLES)
def test_no_decision_waits_for_a_redis_in_trouble_and_nothing_is_lost(redis, trouble):
    patient = [_RedisShelf(redis.url, timeout_s=3.0) for _ in range(2)]
    pair = [engine(shelf, k).start(time.monotonic) for k, shelf in enumerate(patient)]
    took = serve(pair, 0.3)
    redis.hurt(trouble)
    try:
        took += serve(pair, 1.5)
        until(lambda: all(e.store.error for e in pair), "they have noticed")
    finally:
        redis.heal(trouble)
    took += serve(pair, 0.3)

    def written():
        told = [e.store.status() for e in pair]
        return all(not s["queued"] and not s["unwritten"] and not s["error"] for s in told)

    until(written, "everything is written down")
    assert max(took) < 2.5  # whoever waited for the slow Redis waited for three seconds
    store = FeedbackStore(redis.url)
    assert len(store.rows("outcomes", fate="joined")) == len(took)
    assert all(e.store.lost == e.store.overflowed == e.failures == 0 for e in pair)
    for one in (*pair, store):
        one.close()


@pytest.mark.parametrize("trouble", TROUBLES)
def test_a_gateway_starts_without_its_redis_and_keeps_what_it_cannot_read(redis, trouble):
    first = engine(redis.url, 1)
    first.router.force("east", "open", 5.0, "a person said so")
    first.step(5.0)
    first.close(6.0)
    redis.hurt(trouble)
    try:
        second = engine(redis.url, 1)
        assert second.decide(Request(), 7.0).backend in ("east", "west")
        second.step(7.0)
        assert second.failures == 0
    finally:
        redis.heal(trouble)
    if trouble == "full":  # it could be read all the time
        assert second.resumed and second.router.health("east", 8.0)[0] == "open"
    else:
        assert not second.resumed

        def aside():
            second.step(time.monotonic())
            return not second.store.error and second.store.state("engine:1/aside")

        assert "a person said so" in until(aside, "the old memo is kept aside")["text"]
    second.close()


def test_a_limit_and_a_pause_hold_across_gateways_within_a_second(redis):
    ahead_s = 45.0 - time.monotonic() % 60.0  # most of a minute is over, and little of it spent

    def clock():
        return time.monotonic() + ahead_s

    pair = [engine(redis.url, k, rpm=30).start(clock) for k in range(2)]
    until(lambda: all(len(e.slow.quorum.limits.told) == 1 for e in pair), "they know each other")
    pair[0].router.hear_limits("west", {"retry-after": "30"}, clock())
    began_s = time.monotonic()

    def held():
        return "held" in pair[1].router.claims(clock()).get("west", {})

    until(held, "the other holds it back as well")
    assert time.monotonic() - began_s < 15.0  # a second, were the machine idle
    sent, end_s = [], time.monotonic() + 2.0
    while time.monotonic() < end_s:
        for one in pair:
            now = clock()
            with suppress(NoBackend):
                sent.append((one.decide(Request(), now).backend, now // 60))
        time.sleep(0.01)
    for one in pair:
        one.close()
    assert {backend for backend, _ in sent} == {"east"}
    assert 10 <= max(Counter(minute for _, minute in sent).values()) <= 30 * 1.05


class Troubled(MemoryShelf):
    "A store of which reads, writes or both fail for a while."

    failing: tuple[str, ...] = ()

    def check(self, what):
        if what in self.failing:
            raise ConnectionError("does not serve")

    def state(self, name):
        self.check("reads")
        return super().state(name)

    def read(self, *asked):
        self.check("reads")
        return super().read(*asked)

    def write(self, *rows):
        self.check("writes")
        super().write(*rows)


@pytest.mark.parametrize(
    "failing", [(), ("reads", "writes"), ("writes",)], ids=["well", "away", "full"]
)
def test_a_limit_holds_across_four_gateways_whatever_the_store_does(failing):
    shelf = Troubled()
    fleet = [Backend("rationed", 16, rpm=120), Backend("other", 16)]
    how = dict(forecaster="none", gateways=4, slo_ms=5000.0)
    four = [
        ContextEngine(
            fleet, FeedbackStore(shelf), config=EngineConfig(gateway=k, tick_s=1.0), **how
        )
        for k in range(4)
    ]
    sent, step_s = Counter(), 0.025
    for k in range(round(70.0 / step_s)):
        now = 590.3 + k * step_s  # a minute begins after ten seconds
        shelf.failing = failing if now % 15.0 < 8.0 else ()
        for number, one in enumerate(four):
            if (k + 3 * number) % 10 == 0:
                one.step(now)
        if k % 2 == 0:
            one = four[k // 2 % 4]
            d = one.decide(Request(tokens_in=50, tokens_out=20), now)
            one.observe(Outcome(d.backend, now, 100.0, True, None, d.id), now + 0.1)
            sent[d.backend, now // 60.0] += 1
    assert 90 <= sent["rationed", 10.0] <= 126  # of 120
    assert not any(one.failures for one in four)


@pytest.mark.slow  # four gateways in processes of their own
def test_a_trial_tells_what_callers_saw_while_the_redis_was_in_trouble():
    if shutil.which("redis-server") is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    told = many_gateways.redis_trial(8.0, 6.0, gateways=2)
    assert told["n"] == 48 and told["redis_failed"] == told["lost"] == 0 and told["written"]
    assert told["budget_overspend"] is None and 0 < told["budget_used"] <= 1
