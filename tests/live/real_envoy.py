"The real Envoy with one door, behind which stand two servers."

import http.client
import json
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from textwrap import indent

from stub_provider import free_port
from waiting import until

ENVOY = Path(sys.executable).parent / "envoy"
CONFIG = """
admin: {address: {socket_address: {address: 127.0.0.1, port_value: ADMIN}}}
static_resources:
  listeners:
  - address: {socket_address: {address: 127.0.0.1, port_value: DOOR}}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          "@type": TYPES.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: door
          route_config:
            virtual_hosts:
            - {name: all, domains: ["*"], routes: [{match: {prefix: "/"}, route: {cluster: fleet}}]}
          http_filters:
FILTERS
          - name: envoy.filters.http.router
            typed_config: {"@type": TYPES.filters.http.router.v3.Router}
  clusters:
CLUSTERS
  - name: fleet
    type: STATIC
    connect_timeout: 1s
    load_balancing_policy:
      policies:
BALANCING
    load_assignment:
      cluster_name: fleet
      endpoints:
      - lb_endpoints:
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: FIRST}}}
        - endpoint: {address: {socket_address: {address: 127.0.0.1, port_value: SECOND}}}
"""


@contextmanager
def running_envoy(
    folder: Path,  # for its settings and its log
    ports,  # of the two servers
    balancing: str,  # the policy that chooses among them, as YAML
    filters: str = "",  # what requests pass before that
    clusters: str = "",  # further ones
):
    "The port of its door."
    door, admin = free_port(), free_port()
    text = CONFIG.replace("FILTERS", indent(filters, 10 * " "))
    text = text.replace("CLUSTERS", indent(clusters, 2 * " "))
    text = text.replace("BALANCING", indent(balancing, 6 * " "))
    text = text.replace("TYPES", "type.googleapis.com/envoy.extensions")
    told = dict(DOOR=door, ADMIN=admin, FIRST=ports[0], SECOND=ports[1])
    for name, value in told.items():
        text = text.replace(name, str(value))
    (folder / "envoy.yaml").write_text(text)
    command = [ENVOY, "-c", folder / "envoy.yaml", "--concurrency", "1"]
    command += ["--use-dynamic-base-id", "--log-level", "error"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stderr=log)
    try:
        until(lambda: process.poll() is not None or _is_ready(admin), "Envoy is ready")
        assert process.poll() is None, (folder / "log").read_text()
        yield door
    finally:
        process.terminate()
        process.wait(20)


def _is_ready(admin: int) -> bool:
    try:
        line = http.client.HTTPConnection("127.0.0.1", admin, timeout=5)
        line.request("GET", "/ready")
        return line.getresponse().status == 200
    except OSError:
        return False


def post(port: int, body=None):
    "A chat through the door: the answer's head, and its text."
    line = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    line.request("POST", "/v1/chat/completions?x=1", json.dumps(body or {"model": "m"}))
    got = line.getresponse()
    text = got.read().decode()
    line.close()
    return got, text
