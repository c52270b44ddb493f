"The real Envoy asks our endpoint picker for every request."

import asyncio
import json
import threading
import time

import pytest
from real_envoy import ENVOY, post, running_envoy
from stub_provider import StubProvider
from waiting import until

from arcpoint_ce import Backend, ContextEngine
from arcpoint_ce.live.endpoint_picker import EndpointPicker, _asked_of

WITHOUT = "grpcio or Envoy's messages are not installed: pip install 'arcpoint_ce[envoy]'"
FILTERS = """
- name: envoy.filters.http.ext_proc
  typed_config:
    "@type": TYPES.filters.http.ext_proc.v3.ExternalProcessor
    grpc_service: {envoy_grpc: {cluster_name: picker}, timeout: 20s}
    failure_mode_allow: true
    message_timeout: 20s
    processing_mode:
      request_header_mode: SEND
      response_header_mode: SEND
      request_body_mode: REQUEST_MODE
      response_body_mode: RESPONSE_MODE
      request_trailer_mode: TRAILERS
      response_trailer_mode: TRAILERS
    metadata_options: {forwarding_namespaces: {untyped: [envoy.lb, envoy.lb.subset_hint]}}
"""
CLUSTERS = """
- name: picker
  type: STATIC
  connect_timeout: 1s
  typed_extension_protocol_options:
    envoy.extensions.upstreams.http.v3.HttpProtocolOptions:
      "@type": TYPES.upstreams.http.v3.HttpProtocolOptions
      explicit_http_config: {http2_protocol_options: {}}
  load_assignment:
    cluster_name: picker
    endpoints:
    - lb_endpoints:
      - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: PICKER}}}
"""
BALANCING = """
- typed_extension_config:
    name: envoy.load_balancing_policies.override_host
    typed_config:
      "@type": TYPES.load_balancing_policies.override_host.v3.OverrideHost
      override_host_sources: [{header: x-gateway-destination-endpoint}]
      fallback_policy:
        policies:
        - typed_extension_config:
            name: envoy.load_balancing_policies.round_robin
            typed_config: {"@type": TYPES.load_balancing_policies.round_robin.v3.RoundRobin}
"""


class Serving:
    "A picker in a thread with a loop of its own."

    def __init__(self, picker):
        self.picker, self.port, self.over = picker, None, threading.Event()

    def __enter__(self):
        async def run():
            self.port = await self.picker.start()
            await asyncio.to_thread(self.over.wait)
            await self.picker.stop(0.0)

        self.thread = threading.Thread(target=lambda: asyncio.run(run()), daemon=True)
        self.thread.start()
        until(lambda: self.port or not self.thread.is_alive())
        return self

    def __exit__(self, *_):
        self.over.set()
        self.thread.join(20)


@pytest.fixture
def engine():
    made = ContextEngine([Backend("a", 8), Backend("b", 8, models=("m",))], forecaster="none")
    made.start(time.time)
    yield made
    made.close()


@pytest.fixture
def pair():
    with StubProvider() as a, StubProvider() as b:
        yield a, b


def address(stub):
    return stub.base.removeprefix("http://").partition("/")[0]


@pytest.fixture
def envoy(request, engine, pair, tmp_path):
    "The door of an Envoy that asks a picker, and shows it what `request.param` says."
    pytest.importorskip("grpc", reason=WITHOUT)
    pytest.importorskip("grpc_health", reason=WITHOUT)
    pytest.importorskip("envoy.service.ext_proc.v3.external_processor_pb2", reason=WITHOUT)
    if not ENVOY.exists():
        pytest.skip("Envoy is not installed: pip install 'arcpoint_ce[envoy]'")
    picker = EndpointPicker(engine, dict(zip("ab", map(address, pair))), time.time)
    with Serving(picker) as serving:
        asks, answers, trailers = request.param
        filters = FILTERS.replace("REQUEST_MODE", asks).replace("RESPONSE_MODE", answers)
        filters = filters.replace("TRAILERS", trailers)
        clusters = CLUSTERS.replace("PICKER", str(serving.port))
        ports = [address(stub).rpartition(":")[2] for stub in pair]
        with running_envoy(tmp_path, ports, BALANCING, filters, clusters) as door:
            yield door


MODES = {
    "heads": ("NONE", "NONE", "SKIP"),
    "bodies": ("BUFFERED", "STREAMED", "SKIP"),
    "duplex": ("FULL_DUPLEX_STREAMED", "FULL_DUPLEX_STREAMED", "SEND"),
}
ALL = pytest.mark.parametrize("envoy", MODES.values(), ids=list(MODES), indirect=True)
BODIES = pytest.mark.parametrize("envoy", [MODES["duplex"]], ids=["duplex"], indirect=True)


@ALL
def test_the_real_envoy_goes_where_the_picker_says(envoy, engine, pair):
    a, b = pair
    for name, other in (("a", b), ("b", a)):
        engine.router.force(name, "open", time.time(), "a test")
        before = other.hits
        for _ in range(5):
            got, text = post(envoy)
            assert got.status == 200 and '"completion_tokens": 7' in text
        assert other.hits == before + 5
        engine.router.force(name, None, time.time(), "a test")
        engine.router.force(name, "closed", time.time(), "a test")
    until(lambda: engine.router.counts["observed"] == 10)
    assert not any(engine.router.in_flight().values())


@ALL
def test_a_stream_passes_whole_and_failures_are_heard(envoy, engine, pair):
    a, b = pair
    got, events = post(envoy, {"model": "m", "stream": True, "messages": ["x" * 100_000]})
    assert got.status == 200 and events.rstrip().endswith("[DONE]")
    a.status = b.status = 503
    assert [post(envoy)[0].status for _ in range(4)] == [503] * 4
    until(lambda: engine.router.counts["observed"] == 5)
    assert not any(engine.router.in_flight().values())


@BODIES
def test_the_body_names_the_model_and_nobody_is_told_where_nothing_serves(envoy, engine, pair):
    a, b = pair
    engine.router.force("a", "open", time.time(), "a test")
    engine.router.force("b", "open", time.time(), "a test")
    got, text = post(envoy)
    assert got.status in (429, 503) and "no backend may serve" in text
    assert a.hits == b.hits == 0
    engine.router.force("a", None, time.time(), "a test")
    engine.router.force("a", "closed", time.time(), "a test")
    got, _ = post(envoy, {"model": "other"})
    assert got.status == 200 and (a.hits, b.hits) == (1, 0)


def test_a_picker_in_use_names_its_port():
    pytest.importorskip("grpc", reason=WITHOUT)
    pytest.importorskip("grpc_health", reason=WITHOUT)
    pytest.importorskip("envoy.service.ext_proc.v3.external_processor_pb2", reason=WITHOUT)
    import grpc
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    engine = ContextEngine([Backend("a")])
    with Serving(EndpointPicker(engine, {"a": "127.0.0.1:1"}, time.time)) as serving:
        with grpc.insecure_channel(f"127.0.0.1:{serving.port}") as line:
            asked = health_pb2.HealthCheckRequest()
            said = health_pb2_grpc.HealthStub(line).Check(asked, timeout=20)
        assert said.status == health_pb2.HealthCheckResponse.SERVING
    engine.close()


BODIES_OF_NO_USE = {
    "list": b"[]",
    "half": b"{",
    "bytes": b"\xff",
    "types": b'{"model": 5, "max_tokens": "x"}',
}


@pytest.mark.parametrize("body", BODIES_OF_NO_USE.values(), ids=list(BODIES_OF_NO_USE))
def test_a_body_that_says_nothing_is_only_long(body):
    asked = _asked_of({"content-length": "x"}, body)
    assert (asked.model, asked.tokens_out) == ("", 0)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_wanted_length_counts_by_either_name(name):
    body = json.dumps({"model": "m", name: 700}).encode()
    assert _asked_of({}, body).tokens_out == 700
