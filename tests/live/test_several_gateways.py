"Four gateways on one Redis: its death costs no request, and nothing that was learned."

import asyncio
import shutil
import subprocess
import time

import httpx
import pytest
from test_testbed import until

from arcpoint_ce.engine.store import FeedbackStore
from arcpoint_ce.live import trials
from arcpoint_ce.live.testbed import Testbed


@pytest.fixture
def redis(tmp_path):
    "A Redis of our own on a unix socket, which can be killed and started again."
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("redis-server is not installed: apt-get install redis-server")
    socket = tmp_path / "r.sock"
    words = ["--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path)]
    words += ["--appendonly", "yes", "--appendfsync", "always"]

    class Server:
        url = f"unix://{socket}"

        def start(self):
            self.process = subprocess.Popen([binary, *words], stdout=subprocess.DEVNULL)
            until(self.answers, "redis answers")

        def answers(self):
            from redis import Redis, RedisError

            try:
                return Redis(unix_socket_path=str(socket)).ping()
            except RedisError:
                return False

        def kill(self):
            self.process.kill()
            self.process.wait()

    server = Server()
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
