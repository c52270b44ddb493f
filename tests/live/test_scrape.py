"Gauges of real servers reach an engine: read live, across a restart, and never from a dead one."

import asyncio
import json
import time

import httpx
import pytest
from test_live_gateway import CURVE, NAMES, gateway
from waiting import until

from arcpoint_ce.lab.fleet import SimBackend
from arcpoint_ce.live.scrape import Scraper, _read
from arcpoint_ce.live.testbed import Testbed
from arcpoint_ce.routing.records import Backend

SIMS = [SimBackend(Backend(name, capacity=8.0), CURVE) for name in NAMES]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\x00\xff",
        "vllm:num_requests_running",
        "vllm:num_requests_running{a=",
        "x 1e999\n",
        "# x",
    ],
    ids=["empty", "binary", "no-value", "half", "infinite", "comment"],
)
def test_what_is_no_scrape_says_nothing(text):
    assert _read(text).running is None


@pytest.mark.parametrize(
    "text, running, waiting, kv",
    [
        ("vllm:num_requests_running 3\nvllm:kv_cache_usage_perc 0.25\n", 3, None, 0.25),
        ("vllm:num_requests_running 3\nvllm:gpu_cache_usage_perc 0.5\n", 3, None, 0.5),
        ("sglang:num_running_reqs 2\nsglang:num_queue_reqs 7\nsglang:token_usage 0.1\n", 2, 7, 0.1),
        (
            "trtllm_num_requests_running 4\ntrtllm_num_requests_waiting 1\n"
            "trtllm_kv_cache_utilization 0.9\n",
            *(4, 1, 0.9),
        ),
    ],
    ids=["vllm", "older-vllm", "sglang", "trtllm"],
)
def test_old_and_new_names_of_every_engine(text, running, waiting, kv):
    told = _read(text)
    assert (told.running, told.waiting, told.kv) == (running, waiting, kv)


@pytest.mark.slow
def test_gauges_of_real_servers_reach_the_engine():
    with Testbed(SIMS) as bed, gateway(bed.fleet(), scrape_s=0.1) as (url, gate):
        body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 30}
        for name in NAMES:
            httpx.post(f"{bed.urls[name]}/v1/chat/completions", json=body, timeout=30)
        until(lambda: set(gate.scraper.gauges) == set(NAMES), "both have told a pace")
        seen = gate.engine.gauges(time.time())
        for when, running, waiting, pace_ms in seen.values():
            assert time.time() - when < 30 and running == waiting == 0
            assert 3.5 < pace_ms < 200  # 4 ms per token by the curve, in chunks; no seconds
        bed.kill("east")
        failed = gate.scraper.failed["east"]
        until(lambda: gate.scraper.failed["east"] > failed, "the dead one is noticed")
        before = gate.engine.gauges(time.time())["east"]
        bed.restart("east")
        httpx.post(f"{bed.urls['east']}/v1/chat/completions", json=body, timeout=30)
        until(lambda: gate.engine.gauges(time.time())["east"][0] > before[0] + 0.2, "it is back")
        assert 3.5 < gate.engine.gauges(time.time())["east"][3] < 200


@pytest.mark.slow
def test_a_silent_server_does_not_hold_up_the_others():
    with Testbed(SIMS) as bed:
        scraper = Scraper(bed.urls, timeout_s=0.3)
        bed.wire("east", down="hang")

        async def look():
            async with httpx.AsyncClient() as client:
                body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 5}
                await client.post(bed.urls["west"] + "/v1/chat/completions", json=body)
                began = time.monotonic()
                await scraper.look(client, 5.0)
                return time.monotonic() - began

        assert asyncio.run(look()) < 5
        assert set(scraper.gauges) == {"west"} and scraper.failed == {"east": 1, "west": 0}
        assert json.dumps(scraper.gauges)
