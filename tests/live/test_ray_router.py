"Ray Serve asks our router which of two replicas should serve, and the slow one gets less."

import time
from collections import Counter

import pytest
from waiting import until


@pytest.fixture
def ray(monkeypatch):
    "A Ray of our own on loopback."
    ray = pytest.importorskip("ray", reason="needs the extra [ray]: pip install 'arcpoint_ce[ray]'")
    serve = pytest.importorskip("ray.serve", reason="needs the extra [ray]: ray[serve]")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    how = dict(include_dashboard=False, log_to_driver=False, configure_logging=False)
    ray.init(num_cpus=4, _node_ip_address="127.0.0.1", **how)
    yield ray
    serve.shutdown()
    ray.shutdown()


@pytest.mark.slow  # Ray takes long to start
def test_the_slow_replica_gets_less_and_the_failing_one_next_to_nothing(ray, tmp_path):
    from ray import serve
    from ray.serve.config import RequestRouterConfig

    router = "arcpoint_ce.live.ray_router.ArcpointRequestRouter"

    @serve.deployment(
        num_replicas=2,
        max_ongoing_requests=8,
        ray_actor_options=dict(num_cpus=0.1),
        request_router_config=RequestRouterConfig(
            request_router_class=router, request_router_kwargs=dict(slo_ms=5000)
        ),
    )
    class Model:
        def __init__(self, folder):
            try:
                open(f"{folder}/first", "x").close()
                self.name, self.takes_s = "slow", 0.3
            except FileExistsError:
                self.name, self.takes_s = "quick", 0.02
            self.folder = folder

        async def __call__(self, k):
            import asyncio
            import os

            await asyncio.sleep(self.takes_s)
            if self.name == "quick" and os.path.exists(f"{self.folder}/broken"):
                raise RuntimeError("no answer")
            return self.name

    handle = serve.run(Model.bind(str(tmp_path)), route_prefix=None)
    began = time.monotonic()
    seen = Counter(handle.remote(k).result(timeout_s=60) for k in range(10))
    until(lambda: len(seen) == 2 or seen.update([handle.remote(0).result()]), "both have served")
    seen = Counter(handle.remote(k).result(timeout_s=60) for k in range(60))
    assert seen["slow"] <= 20, (seen, time.monotonic() - began)
    (tmp_path / "broken").touch()
    ends = []
    for k in range(60):
        try:
            ends.append(handle.remote(k).result(timeout_s=60))
        except RuntimeError:
            ends.append("failed")
    assert ends[-20:].count("failed") <= 5, ends
