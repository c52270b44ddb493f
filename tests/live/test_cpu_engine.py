"A server that computes: its answers come as tokens, its batch is shared, its faults are real."

import asyncio
import time

import httpx
import numpy as np
import pytest
from test_testbed import SIMS, chat
from waiting import until

from arcpoint_ce.lab.fleet import ServiceCurve, SimBackend
from arcpoint_ce.live.cpu_engine import _Transformer
from arcpoint_ce.live.testbed import Testbed
from arcpoint_ce.routing.records import Backend

CURVE = ServiceCurve((1.0, 4.0), (8.0, 12.0), (40.0, 60.0), 100.0)


def reference(model, tokens):
    "The newest token after a text that is read at once, with no cache: what the seat must say."
    fresh = _Transformer(1, layers=2, width=48, context_tok=128, seed=3)
    fresh.prefill(0, np.array(tokens))
    return int(fresh.last[0])


def test_a_cache_shared_by_a_batch_says_what_a_fresh_reading_says():
    model = _Transformer(3, layers=2, width=48, context_tok=128, seed=3)
    texts = {0: [3, 1, 4, 1, 5], 2: [9, 2, 6]}
    for seat, text in texts.items():
        model.prefill(seat, np.array(text))
    for step in range(12):
        if step == 4:  # another one joins between two steps
            texts[1] = [5, 3, 5, 8, 9, 7]
            model.prefill(1, np.array(texts[1]))
        if step == 8:  # and one leaves; its seat is taken anew
            model.leave(2)
            texts[2] = [1, 2]
            model.prefill(2, np.array(texts[2]))
        for seat, text in texts.items():
            assert model.last[seat] == reference(model, text), (step, seat)
            text.append(int(model.last[seat]))
        model.decode(sorted(texts))


@pytest.fixture(scope="module")
def bed():
    backend = Backend("cpu", capacity=4.0, models=("small",))
    with Testbed([SimBackend(backend, CURVE, slots=4, queue=2), SIMS[0]], engines=["cpu"]) as bed:
        yield bed


def test_a_stream_comes_token_by_token(bed):
    url = bed.urls["cpu"] + "/v1/chat/completions"
    with httpx.stream("POST", url, json=chat(12, stream=True), timeout=60) as answer:
        text = "".join(answer.iter_text())
    assert text.count("tok ") == 12 and text.endswith("[DONE]\n\n")


def test_a_batch_is_shared_a_queue_is_bounded_and_its_seats_come_back(bed):
    url = bed.urls["cpu"] + "/v1/chat/completions"

    async def crowd():
        async with httpx.AsyncClient(timeout=120) as client:
            asked = [client.post(url, json=chat(40, text="x" * 400)) for _ in range(9)]
            answers = [asyncio.ensure_future(one) for one in asked]
            await asyncio.sleep(0.2)
            state = await asyncio.to_thread(bed.state, "cpu", 20.0)
            metrics = (await client.get(bed.direct["cpu"] + "/metrics")).text
            return [(await answer).status_code for answer in answers], state, metrics

    statuses, state, metrics = asyncio.run(crowd())
    assert 6 <= statuses.count(200) < 9 and set(statuses) == {200, 503}
    assert state["running"] <= 4 and "vllm:num_requests_running" in metrics
    until(lambda: bed.state("cpu")["running"] == 0, "the seats are free")


def test_a_caller_who_leaves_and_a_slow_engine(bed):
    url = bed.urls["cpu"] + "/v1/chat/completions"

    def took(tokens):
        began = time.monotonic()
        assert httpx.post(url, json=chat(tokens), timeout=120).status_code == 200
        return time.monotonic() - began

    with httpx.stream("POST", url, json=chat(400, stream=True), timeout=60) as answer:
        next(answer.iter_bytes())
    until(lambda: bed.state("cpu")["running"] == 0, "the seat is free")
    well = min(took(20) for _ in range(3))
    bed.set("cpu", speed=0.1)
    slow = took(20)
    bed.set("cpu", speed=1.0)
    assert slow > 2 * well
    with pytest.raises(ValueError, match="no backend 'other'"):
        Testbed(SIMS, engines=["other"])
