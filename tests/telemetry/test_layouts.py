"""Layouts as gateways and tools document them: names and nesting are theirs, values are made up.

Beside each stands the public page or source file that shows the layout.
"""

import json
import warnings
from typing import NamedTuple

import pandas as pd
import pytest

from arcpoint_ce.telemetry.requests import load_requests
from arcpoint_ce.telemetry.traces import load_arrivals

T0 = 1772409600  # 2026-03-02 00:00:00 UTC


def iso(i, digits=3):
    "A moment of the log, `i` seconds after its start."
    text = pd.Timestamp(T0 + i, unit="s").isoformat(timespec="nanoseconds")
    return text[: 20 + digits].rstrip(".") + "Z"


def clf(i):
    "The same, as web servers write it."
    return pd.Timestamp(T0 + i, unit="s").strftime("%d/%b/%Y:%H:%M:%S +0000")


def lines(rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


class Right(NamedTuple):
    "What is right about a file."

    layout: str
    backends: list[str]
    kinds: str  # of the rows in order of time, one letter each: s b t c x
    mean_ms: float  # of the successes
    tokens: int | None = None
    apart: int = 0  # rows that are no calls
    ttft_ms: float | None = None  # mean, where there are any


class Layout(NamedTuple):
    "A file."

    text: str
    right: Right


LETTERS = {"success": "s", "backend": "b", "throttled": "t", "caller": "c", "cancelled": "x"}
LAYOUTS: dict[str, Layout] = {}

# Istio's JSON access log: istio.io, "Envoy Access Logs"; unreached upstreams are null there
ISTIO = [
    {
        "authority": "llm:8000",
        "bytes_received": 10,
        "bytes_sent": 135,
        "connection_termination_details": None,
        "downstream_local_address": "10.44.1.27:80",
        "downstream_remote_address": "10.44.1.23:37652",
        "duration": 1000 + 100 * i,
        "method": "POST",
        "path": "/v1/chat/completions",
        "protocol": "HTTP/1.1",
        "request_id": f"id-{i}",
        "requested_server_name": None,
        "response_code": code,
        "response_code_details": "via_upstream",
        "response_flags": flags,
        "route_name": "default",
        "start_time": iso(i),
        "upstream_cluster": "outbound|8000||llm.ns.svc.cluster.local",
        "upstream_host": host,
        "upstream_service_time": "4",
        "upstream_transport_failure_reason": None,
        "user_agent": "curl",
        "x_forwarded_for": None,
    }
    for i, (code, flags, host) in enumerate(
        [
            (200, "-", "10.0.0.1:8000"),
            (200, "-", "10.0.0.2:8000"),
            (503, "UF", "10.0.0.1:8000"),
            (0, "DC", "10.0.0.1:8000"),
            (429, "-", "10.0.0.2:8000"),
            (503, "NR", None),
            (200, "UC", "10.0.0.1:8000"),
            (200, "DC", "10.0.0.2:8000"),
            (200, "SI", "10.0.0.2:8000"),
        ]
    )
]
LAYOUTS["envoy_istio.log"] = Layout(
    lines(ISTIO), Right("envoy", ["10.0.0.1:8000", "10.0.0.2:8000"], "ssbxtbxb", 1050.0, None, 1)
)

# Envoy AI Gateway's access log (envoyproxy/ai-gateway, cmd/aigw/README.md): genai_ fields
LAYOUTS["envoy_ai.jsonl"] = Layout(
    lines(
        {
            "start_time": iso(i),
            "bytes_received": 159,
            "bytes_sent": 334,
            "connection_termination_details": None,
            "duration": 108,
            "genai_backend_name": "default/ollama/route/aigw-run/rule/0/ref/0",
            "genai_model_name": "m-small",
            "genai_tokens_input": 44,
            "genai_tokens_output": 12,
            "method": "POST",
            "response_code": 200,
            "upstream_cluster": "httproute/default/aigw-run/rule/0",
            "upstream_host": "192.168.5.2:11434",
            "x-request-id": f"r{i}",
        }
        for i in range(4)
    ),
    Right("envoy", ["default/ollama/route/aigw-run/rule/0/ref/0"], "ssss", 108.0, 224),
)

# Envoy's default format string: envoyproxy.io, "Access logging", "Default Format String";
# Istio's longer one: istio.io, "Envoy Access Logs"
LAYOUTS["envoy_default.log"] = Layout(
    "".join(
        f'[{iso(i)}] "POST /v1/chat HTTP/2" {code} {flags} 154 20 {2000 + i} 100 "10.0.35.28" '
        f'"py" "id-{i}" "llm" "{host}"\n'
        for i, (code, flags, host) in enumerate(
            [
                (200, "-", "10.0.2.1:80"),
                (504, "UT", "tcp://10.0.2.1:80"),
                (0, "DC", "10.0.2.2:80"),
                (200, "UR", "10.0.2.2:80"),
                (200, "DC", "10.0.2.2:80"),
            ]
        )
    ),
    Right("envoy_text", ["10.0.2.1:80", "10.0.2.2:80"], "sbxbx", 2000.0),
)
LAYOUTS["envoy_istio_text.log"] = Layout(
    "".join(
        f'[{iso(i)}] "POST /v1/chat HTTP/1.1" {code} {flags} via_upstream - "-" 0 135 {400 + i} 4 '
        f'"-" "curl/7.73.0-DEV" "id-{i}" "llm:8000" "{host}" inbound|8000|| 127.0.0.1:41854 '
        "10.44.1.27:80 10.44.1.23:37652 outbound_.8000_._.llm default\n"
        for i, (code, flags, host) in enumerate(
            [(200, "-", "127.0.0.1:80"), (503, "UC", "127.0.0.1:80"), (404, "NR", "-")]
        )
    ),
    Right("envoy_text", ["127.0.0.1:80"], "sb", 400.0, None, 1),
)

# nginx writes a line, and its time, when a request has ended, so the first to end began third;
# "combined" with $request_time and $upstream_response_time behind it: nginx.org,
# ngx_http_log_module; the two forms that tutorials give most often
NGINX = [
    (200, "1.500", "10.0.0.1:80"),
    (502, "0.020", "10.0.0.2:80"),
    (499, "3.000", "10.0.0.1:80"),
]
LAYOUTS["nginx_pairs.log"] = Layout(
    "".join(
        f'192.0.2.7 - - [{clf(i)}] "POST /v1/chat HTTP/1.1" {code} 612 "-" "py" rt={s} '
        f'uct="0.000" uht="0.100" urt="{s}" ua="{host}"\n'
        for i, (code, s, host) in enumerate(NGINX)
    ),
    Right("nginx_text", ["10.0.0.1:80", "10.0.0.2:80"], "sxb", 1500.0),
)
LAYOUTS["nginx_bare.log"] = Layout(
    "".join(
        f'192.0.2.7 - - [{clf(i)}] "POST /v1 HTTP/1.1" {code} 612 "-" "py" "-" {s} {s} {host}\n'
        for i, (code, s, host) in enumerate(NGINX)
    ),
    Right("nginx_text", ["10.0.0.1:80", "10.0.0.2:80"], "sxb", 1500.0),
)
# ingress-nginx's log-format-upstream: kubernetes.github.io/ingress-nginx, "Log format"; a retried
# request names every upstream that was tried
LAYOUTS["nginx_ingress.log"] = Layout(
    "".join(
        f'192.0.2.7 - - [{clf(i)}] "POST /v1/chat HTTP/1.1" {code} 612 "-" "py" 700 {s} '
        f"[default-llm-80] [] {host} 612 {s} {code} 0f3a{i}\n"
        for i, (code, s, host) in enumerate([*NGINX, (200, "0.500", "10.0.0.3:80, 10.0.0.2:80")])
    ),
    Right("nginx_text", ["10.0.0.1:80", "10.0.0.2:80"], "sxbs", 1000.0),
)
# the same server, only one upstream, which its log does not name
LAYOUTS["nginx_time_only.log"] = Layout(
    "".join(
        f'192.0.2.7 - - [{clf(i)}] "POST /v1/chat HTTP/1.1" {code} 612 "-" "py" {s}\n'
        for i, (code, s, _) in enumerate(NGINX)
    ),
    Right("nginx_text", ["nginx"], "sxb", 1500.0),
)
# nginx with escape=json: developer.konghq.com, "Configuring Kong Gateway to output logs as JSON"
LAYOUTS["nginx_json.log"] = Layout(
    lines(
        {
            "time_local": clf(i),
            "remote_addr": "192.0.2.7",
            "request": "POST /v1/chat HTTP/1.1",
            "status": str(code),
            "body_bytes_sent": "612",
            "request_time": s,
            "upstream_addr": host,
            "upstream_response_time": s,
            "http_referrer": "",
        }
        for i, (code, s, host) in enumerate([*NGINX, (200, "0.500", "10.0.0.3:80, 10.0.0.2:80")])
    ),
    Right("nginx", ["10.0.0.1:80", "10.0.0.2:80"], "sxbs", 1000.0),
)
LAYOUTS["nginx_json_one.log"] = Layout(
    lines(
        {
            "time_local": clf(i),
            "remote_addr": "192.0.2.7",
            "request": "POST /v1/chat HTTP/1.1",
            "status": str(code),
            "body_bytes_sent": "612",
            "request_time": s,
            "http_referrer": "",
        }
        for i, (code, s, _) in enumerate(NGINX)
    ),
    Right("nginx", ["nginx"], "sxb", 1500.0),
)


# Kong: developer.konghq.com/plugins/http-log, "Log format"; arrays where requests are batched
def kong(i, status, **more):
    row = {
        "response": {"size": 9982, "headers": {"via": "1.1 kong/3.8.0.0"}, "status": status},
        "route": {"id": "r", "name": "llm", "service": {"id": "s1"}},
        "service": {"host": "llm.example", "id": "s1", "name": "llm-a", "port": 80},
        "request": {"id": f"id-{i}", "method": "POST", "uri": "/v1", "headers": {}},
        "tries": [
            {
                "balancer_latency": 0,
                "port": 443,
                "balancer_start": T0 * 1000 + 1000 * i,
                "ip": "192.0.2.1",
            }
        ],
        "client_ip": "192.0.2.7",
        "workspace": "w",
        "upstream_status": str(status),
        "upstream_uri": "/v1",
        "latencies": {"kong": 1, "proxy": 171, "request": 172, "receive": 50},
        "started_at": T0 * 1000 + 1000 * i,
        "source": "upstream",
    }
    return row | more


LAYOUTS["kong.log"] = Layout(
    lines(kong(i, s) for i, s in enumerate([200, 500, 429, 401])),
    Right("kong", ["192.0.2.1:443"], "sbtc", 172.0),
)
LAYOUTS["kong_batches.log"] = Layout(
    lines([kong(2 * i, 200), kong(2 * i + 1, 503)] for i in range(2)),
    Right("kong", ["192.0.2.1:443"], "sbsb", 172.0),
)
# refused by a plugin, so that nothing was tried: no backend was reached
LAYOUTS["kong_refused.log"] = Layout(
    lines([kong(0, 200), kong(1, 401, tries=[], source="exit", service=None)]),
    Right("kong", ["192.0.2.1:443"], "s", 172.0, None, 1),
)
# with its AI plugin: developer.konghq.com, "AI Gateway audit log reference"
LAYOUTS["kong_ai.log"] = Layout(
    lines(
        kong(
            i,
            200,
            ai={
                "proxy": {
                    "usage": {
                        "prompt_tokens": 89,
                        "completion_tokens": 11,
                        "total_tokens": 100,
                        "time_per_token": 30,
                        "time_to_first_token": 546,
                        "cost": 0.0003,
                    },
                    "meta": {
                        "request_model": "m-large",
                        "response_model": "m-large-0613",
                        "provider_name": "acme",
                        "llm_latency": 170,
                        "plugin_id": "p",
                    },
                }
            },
            tries=[{"port": 443, "ip": f"192.0.2.{i}", "balancer_start": 1}],
            latencies={"kong": 1, "proxy": 899, "request": 900, "receive": 50},
        )
        for i in range(3)
    ),
    Right("kong", ["acme/m-large"], "sss", 900.0, 300, 0, 546.0),
)

# Traefik: traefik/traefik, docs/content/reference/…/logs-and-accesslogs.md; the URL of a service
# is an object in versions 1 and 2; a request without a route has no service
TRAEFIK = {
    "ClientAddr": "172.19.0.1:56732",
    "ClientUsername": "-",
    "DownstreamContentSize": 10,
    "OriginContentSize": 10,
    "OriginDuration": 700_000_000,
    "Overhead": 677542,
    "RequestAddr": "llm.example",
    "RequestCount": 122,
    "RequestMethod": "POST",
    "RequestPath": "/v1",
    "RequestPort": "-",
    "RetryAttempts": 0,
    "entryPointName": "web",
    "level": "info",
    "msg": "",
}
SERVED = {
    "RouterName": "llm@docker",
    "ServiceAddr": "10.0.1.15:3000",
    "ServiceName": "llm@docker",
    "ServiceURL": {"Scheme": "http", "Opaque": "", "User": None, "Host": "10.0.1.15:3000"},
}


def traefik(i, code, ns=750_000_000, **more):
    times = {"StartUTC": iso(i, 9), "StartLocal": iso(i, 9), "time": iso(i + 1, 0)}
    return TRAEFIK | times | {"DownstreamStatus": code, "OriginStatus": code, "Duration": ns} | more


LAYOUTS["traefik.json"] = Layout(
    lines([traefik(0, 200, **SERVED), traefik(1, 502, **SERVED), traefik(2, 404, 66095)]),
    Right("traefik", ["10.0.1.15:3000"], "sb", 750.0, None, 1),
)
# without its address: a deployment that keeps only some fields
LAYOUTS["traefik_named.json"] = Layout(
    lines(traefik(i, 200, ServiceName=f"llm-{i}@docker") for i in range(2)),
    Right("traefik", ["llm-0@docker", "llm-1@docker"], "ss", 750.0),
)
# version 1 (docs/configuration/logs.md): a backend where later versions have a service
LAYOUTS["traefik_1.json"] = Layout(
    lines(
        traefik(i, 200, BackendAddr="10.0.1.15:3000", BackendName="llm", FrontendName="f")
        for i in range(2)
    ),
    Right("traefik", ["10.0.1.15:3000"], "ss", 750.0),
)
# the common log format with Traefik's own fields: docs/content/observability/access-logs.md
LAYOUTS["traefik.log"] = Layout(
    "".join(
        f'192.0.2.7 - - [{clf(i)}] "POST /v1 HTTP/1.1" {code} 19 "-" "-" {i} "{router}" "{url}" '
        f"{800 + i}ms\n"
        for i, (code, router, url) in enumerate(
            [(200, "llm@docker", "http://10.0.1.15:3000"), (404, "-", "-")]
        )
    ),
    Right("traefik_text", ["10.0.1.15:3000"], "s", 800.0, None, 1),
)


# Bedrock: docs.aws.amazon.com/bedrock, "Monitor model invocation using CloudWatch Logs and Amazon
# S3"; an answer that streamed is an array of chunks whose last holds the metrics
def bedrock(i, operation, output, **more):
    row = {
        "schemaType": "ModelInvocationLog",
        "schemaVersion": "1.0",
        "timestamp": iso(i, 0),
        "accountId": "123456789012",
        "identity": {"arn": "arn:aws:sts::123456789012:assumed-role/r/s"},
        "region": "us-east-1",
        "requestId": f"id-{i}",
        "operation": operation,
        "modelId": "acme.m-large-v1:0",
        "input": {"inputContentType": "application/json", "inputTokenCount": 10},
    }
    if output is not None:
        body = {"outputContentType": "application/json", "outputBodyJson": output}
        row["output"] = body | {"outputTokenCount": 20}
    return row | more


CONVERSED = {
    "output": {"message": {"role": "assistant", "content": [{"text": "…"}]}},
    "stopReason": "end_turn",
    "metrics": {"latencyMs": 900},
    "usage": {"inputTokens": 10, "outputTokens": 20, "totalTokens": 30},
}
CHUNKS = [
    {"type": "message_start", "message": {"usage": {"input_tokens": 10}}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": "…"}},
    {
        "type": "message_stop",
        "amazon-bedrock-invocationMetrics": {
            "inputTokenCount": 10,
            "outputTokenCount": 20,
            "invocationLatency": 1100,
            "firstByteLatency": 300,
        },
    },
]
LAYOUTS["bedrock.jsonl"] = Layout(
    lines(
        [
            bedrock(0, "Converse", CONVERSED),
            bedrock(1, "InvokeModelWithResponseStream", CHUNKS),
            bedrock(2, "Converse", None, errorCode="ThrottlingException"),
            bedrock(3, "Converse", None, errorCode="ValidationException"),
        ]
    ),
    Right("bedrock", ["acme.m-large-v1:0"], "sstc", 1000.0, None, 0, 300.0),
)
# what `aws logs filter-log-events` answers
LAYOUTS["bedrock_events.json"] = Layout(
    json.dumps(
        {
            "events": [
                {
                    "logStreamName": "aws/bedrock/modelinvocations",
                    "timestamp": 1000 * (T0 + i),
                    "message": json.dumps(bedrock(i, "Converse", CONVERSED)),
                    "ingestionTime": 1000 * (T0 + i) + 90,
                    "eventId": str(i),
                }
                for i in range(3)
            ],
            "searchedLogStreams": [],
        },
        indent=4,
    ),
    Right("bedrock", ["acme.m-large-v1:0"], "sss", 900.0, 90),
)

# Azure API Management: learn.microsoft.com, "Tutorial: Monitor published APIs", sample entry; a
# request that the gateway refused has no backend
APIM = [
    {
        "Level": 4,
        "isRequestSuccess": code < 400,
        "time": iso(i, 7),
        "operationName": "Microsoft.ApiManagement/GatewayLogs",
        "category": "GatewayLogs",
        "durationMs": 152 + i,
        "callerIpAddress": "192.0.2.7",
        "correlationId": f"id-{i}",
        "location": "East US",
        "properties": {
            "method": "POST",
            "url": "https://apim.example/openai/deployments/m/chat/completions",
            "responseCode": code,
            "responseSize": 41583,
            "cache": "none",
            "requestSize": 526,
            "apiId": "llm-api",
            "operationId": "Chat",
            "apimSubscriptionId": "master",
            "clientTime": 65,
        }
        | (
            {
                "backendTime": 87,
                "backendResponseCode": code,
                "backendMethod": "POST",
                "backendUrl": f"https://{host}/openai/deployments/m/chat/completions",
            }
            if host
            else {}
        ),
        "resourceId": "/SUBSCRIPTIONS/0/RESOURCEGROUPS/G/PROVIDERS/MICROSOFT.APIMANAGEMENT/S/A",
    }
    for i, (code, host) in enumerate(
        [(200, "a.openai.example"), (429, "a.openai.example"), (200, "b.openai.example"), (401, "")]
    )
]
APIM_RIGHT = Right("azure_apim", ["a.openai.example", "b.openai.example"], "sts", 153.0, None, 1)
LAYOUTS["apim.json"] = Layout(lines(APIM), APIM_RIGHT)
LAYOUTS["apim_records.json"] = Layout(json.dumps({"records": APIM}), APIM_RIGHT)
# several deployments behind one host: the path of the address tells them apart
LAYOUTS["apim_deployments.json"] = Layout(
    lines(
        row
        | {
            "properties": row["properties"]
            | {"backendUrl": f"https://{host}.openai.example/openai/deployments/{name}/chat?v=1"}
        }
        for row, host, name in zip(APIM, "aaab", ("large", "mini", "large", "large"))
    ),
    Right(
        "azure_apim",
        ["a.openai.example/large", "a.openai.example/mini", "b.openai.example"],
        "stsc",
        153.0,
    ),
)
# the same as a table of Log Analytics (learn.microsoft.com, ApiManagementGatewayLogs), exported
LAYOUTS["apim_export.csv"] = Layout(
    '"TimeGenerated [UTC]",OperationName,CorrelationId,ApiId,BackendUrl,BackendTime,TotalTime,'
    "ResponseCode,BackendResponseCode,IsRequestSuccess,LastErrorReason\n"
    + "".join(
        f'"{d}",Chat,id-{i},llm-api,{url},87,{150 + i},{code},{code},{code < 400},{why}\n'
        for i, (d, url, code, why) in enumerate(
            [
                ("3/2/2026, 12:00:10.234 AM", "https://a.example/openai/x", 200, ""),
                ("3/14/2026, 1:00:10.234 PM", "https://a.example/openai/x", 500, "BackendFailure"),
                ("3/15/2026, 1:00:10.234 PM", "", 401, "TokenNotPresent"),
            ]
        )
    ),
    Right("azure_apim", ["a.example"], "sb", 150.0, None, 1),
)

# an older table puts the type behind each name: learn.microsoft.com, AzureDiagnostics
LAYOUTS["apim_typed.csv"] = Layout(
    "TimeGenerated [UTC],Category,DurationMs,CorrelationId,isRequestSuccess_b,responseCode_d,"
    "backendUrl_s,backendTime_d,apiId_s,lastError_reason_s\n"
    + "".join(
        f"{iso(i)},GatewayLogs,{150 + i},id-{i},{code < 400},{code},https://a.example/x,87,a,\n"
        for i, code in enumerate([200, 429, 500])
    ),
    Right("azure_apim", ["a.example"], "stb", 150.0),
)
# Azure OpenAI's own records keep their properties as text: learn.microsoft.com, "Monitor Azure
# OpenAI", RequestResponse
LAYOUTS["azure_openai.json"] = Layout(
    lines(
        {
            "time": iso(i, 7),
            "operationName": "ChatCompletions_Create",
            "category": "RequestResponse",
            "durationMs": 700,
            "resultSignature": str(code),
            "correlationId": f"id-{i}",
            "properties": json.dumps({"modelDeploymentName": "dep", "modelName": "m-large"}),
        }
        for i, code in enumerate([200, 429, 500])
    ),
    Right("azure_apim", ["dep"], "stb", 700.0),
)
# two accounts may give their deployments the same name; the resource names the account
LAYOUTS["azure_openai_accounts.json"] = Layout(
    lines(
        json.loads(line)
        | {"resourceId": f"/SUBSCRIPTIONS/0/PROVIDERS/MICROSOFT.COGNITIVESERVICES/ACCOUNTS/{name}"}
        for line, name in zip(
            LAYOUTS["azure_openai.json"].text.splitlines(), ("LLM-EU", "LLM-US", "LLM-EU")
        )
    ),
    Right("azure_apim", ["llm-eu/dep", "llm-us/dep"], "stb", 700.0),
)


# Langfuse: langfuse.com, "Blob Storage Export Field Reference", and its public API, where an answer
# has `data` and `meta`; a model without a name is an internal id there
def langfuse(i, **more):
    row = {
        "id": f"o{i}",
        "traceId": f"t{i}",
        "type": "GENERATION",
        "name": "chat",
        "startTime": iso(i),
        "endTime": iso(i + 2.5),
        "completionStartTime": iso(i + 0.5),
        "model": "m-large",
        "modelParameters": {"temperature": 1},
        "input": None,
        "version": None,
        "metadata": {},
        "output": None,
        "usage": {"input": 10, "output": 20, "total": 30, "unit": "TOKENS"},
        "level": "DEFAULT",
        "statusMessage": None,
        "parentObservationId": None,
        "promptId": None,
        "usageDetails": {"input": 10, "output": 20, "total": 30},
        "costDetails": {"total": 0.001},
        "modelId": None,
        "latency": 2.5,
        "timeToFirstToken": 0.5,
    }
    return row | more


LAYOUTS["langfuse_api.json"] = Layout(
    json.dumps(
        {
            "data": [
                langfuse(0),
                langfuse(1, level="ERROR", statusMessage="RateLimitError: slow down"),
                langfuse(2, type="SPAN", model=None, usage=None, usageDetails={}),
                langfuse(3, latency=None, timeToFirstToken=None),
            ],
            "meta": {"page": 1, "limit": 50, "totalItems": 4, "totalPages": 1},
        }
    ),
    Right("langfuse", ["m-large"], "sts", 2500.0, 90, 1, 500.0),
)
# an export whose durations are ms: start and end say so
LAYOUTS["langfuse_ms.jsonl"] = Layout(
    lines(langfuse(i, latency=2500, timeToFirstToken=500) for i in range(3)),
    Right("langfuse", ["m-large"], "sss", 2500.0, 90, 0, 500.0),
)
LAYOUTS["langfuse_blob.jsonl"] = Layout(
    lines(
        {
            "id": f"o{i}",
            "trace_id": "t",
            "project_id": "p",
            "environment": "default",
            "type": "GENERATION",
            "start_time": iso(i).replace("T", " ").removesuffix("Z") + "000",
            "end_time": iso(i + 2.5).replace("T", " ").removesuffix("Z") + "000",
            "completion_start_time": iso(i + 0.5).replace("T", " ").removesuffix("Z") + "000",
            "name": "chat",
            "level": level,
            "status_message": "boom" if level == "ERROR" else "",
            "provided_model_name": "m-large",
            "usage_details": {"input": 10, "output": 20, "total": 30},
            "cost_details": {"total": 0.001},
            "total_cost": 0.001,
            "latency": 2.5,
            "time_to_first_token": 0.5,
        }
        for i, level in enumerate(["DEFAULT", "WARNING", "ERROR"])
    ),
    Right("langfuse", ["m-large"], "ssb", 2500.0, 90, 0, 500.0),
)


# Helicone: Helicone/helicone, `HeliconeRequest` in lib/stores/request/request.ts, as its API and
# its export tool give it
def helicone(i, status=200, **more):
    row = {
        "response_id": f"s{i}",
        "response_created_at": iso(i + 1),
        "response_status": status,
        "response_model": "m-large-0613",
        "request_id": f"r{i}",
        "request_model": "m-large",
        "model_override": None,
        "request_created_at": iso(i),
        "request_path": "https://api.acme.example/v1/chat/completions",
        "request_user_id": None,
        "request_properties": {},
        "helicone_user": None,
        "delay_ms": 1000,
        "time_to_first_token": 250,
        "total_tokens": 30,
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "provider": "ACME",
        "country_code": None,
        "cost": 0.001,
    }
    return row | more


HELICONE = [helicone(0), helicone(1, 500), helicone(2, 429), helicone(3, -3, delay_ms=None)]
LAYOUTS["helicone.jsonl"] = Layout(
    lines(HELICONE), Right("helicone", ["ACME/m-large"], "sbtx", 1000.0, 120, 0, 250.0)
)
LAYOUTS["helicone_api.json"] = Layout(
    json.dumps({"data": HELICONE, "error": None}), LAYOUTS["helicone.jsonl"].right
)
LAYOUTS["helicone.csv"] = Layout(
    ",".join(HELICONE[0])
    + "\n"
    + "".join(
        ",".join("" if v is None else "{}" if v == {} else str(v) for v in r.values()) + "\n"
        for r in HELICONE
    ),
    LAYOUTS["helicone.jsonl"].right,
)

# an answer from its cache names the request that was answered first: docs.helicone.ai, "Caching"
LAYOUTS["helicone_cached.jsonl"] = Layout(
    lines(
        helicone(i, cache_reference_id=ref)
        for i, ref in enumerate(
            ["00000000-0000-0000-0000-000000000000", "2f1b0c1e-5a55-4b52-9d3f-0d1ffb6f0a11", None]
        )
    ),
    LAYOUTS["helicone.jsonl"].right._replace(kinds="ss", tokens=60, apart=1),
)

# OpenRouter: the CSV of its activity page (columns as in readers of it on GitHub), and
# openrouter.ai/docs, "Get request & usage metadata for a generation"
LAYOUTS["openrouter.csv"] = Layout(
    "generation_id,created_at,cost_total,cost_web_search,cost_cache,cost_file_processing,"
    "byok_usage_inference,tokens_prompt,tokens_completion,tokens_reasoning,tokens_cached,"
    "model_permaslug,provider_name,variant,cancelled,streamed,user,finish_reason_raw,"
    "finish_reason_normalized,generation_time_ms,time_to_first_token_ms,app_name,api_key_name\n"
    + "".join(
        f"gen-{i},2026-03-02 00:00:0{i}.713,0.0123,0,0,0,0,10,20,0,0,acme/m-large,{who},standard,"
        f"{gone},true,,stop,{end},2000,400,app,key\n"
        for i, (who, gone, end) in enumerate(
            [("Acme", "false", "stop"), ("Zen", "true", "stop"), ("Acme", "false", "error")]
        )
    ),
    Right("openrouter", ["Acme/acme/m-large", "Zen/acme/m-large"], "sxb", 2000.0, 90, 0, 400.0),
)
LAYOUTS["openrouter_api.jsonl"] = Layout(
    lines(
        {
            "data": {
                "id": f"gen-{i}",
                "upstream_id": None,
                "total_cost": 0.0015,
                "created_at": f"2026-03-02T00:00:0{i}.433273+00:00",
                "model": "acme/m-large",
                "streamed": True,
                "cancelled": False,
                "provider_name": "Acme",
                "latency": 500,
                "moderation_latency": 50,
                "generation_time": 1200,
                "finish_reason": "stop",
                "tokens_prompt": 10,
                "tokens_completion": 25,
                "native_tokens_prompt": 10,
                "native_tokens_completion": 25,
                "usage": 0.0015,
            }
        }
        for i in range(3)
    ),
    Right("openrouter", ["Acme/acme/m-large"], "sss", 1200.0, 105, 0, 500.0),
)


# AIPerf: ai-dynamo/aiperf, docs/tutorials/working-with-profile-exports.md
def aiperf(i, error=None, **meta):
    metrics = {"error_isl": {"value": 550, "unit": "tokens"}}
    if error is None:
        metrics = {
            "input_sequence_length": {"value": 550, "unit": "tokens"},
            "output_sequence_length": {"value": 100, "unit": "tokens"},
            "request_latency": {"value": 2500.0, "unit": "ms"},
            "time_to_first_token": {"value": 250.0, "unit": "ms"},
            "inter_chunk_latency": {"value": [4.8, 5.2], "unit": "ms"},
        }
    metadata = {
        "session_num": i,
        "x_request_id": f"x{i}",
        "x_correlation_id": f"c{i}",
        "conversation_id": "session_1",
        "turn_index": 0,
        "request_start_ns": (T0 + i) * 10**9,
        "request_ack_ns": (T0 + i) * 10**9 + 5,
        "request_end_ns": (T0 + i) * 10**9 + 2_500_000_000,
        "worker_id": "worker_1",
        "record_processor_id": "p",
        "benchmark_phase": "profiling",
        "was_cancelled": False,
        "cancellation_time_ns": None,
    }
    return {"metadata": metadata | meta, "metrics": metrics, "error": error}


LAYOUTS["aiperf.jsonl"] = Layout(
    lines(
        [
            aiperf(0),
            aiperf(
                1,
                {"code": 499, "type": "RequestCancellationError", "message": "cancelled"},
                was_cancelled=True,
            ),
            aiperf(2, {"code": 503, "type": "Service Unavailable", "message": "busy"}),
            aiperf(3, {"code": None, "type": "TimeoutError", "message": "timed out"}),
        ]
    ),
    Right("aiperf", ["endpoint"], "sxbb", 2500.0, 650, 0, 250.0),
)

# GenAI-Perf: triton-inference-server/perf_analyzer, genai-perf/tests/test_llm_profile_data_parser
LAYOUTS["genai_perf.json"] = Layout(
    json.dumps(
        {
            "service_kind": "openai",
            "endpoint": "v1/chat/completions",
            "experiments": [
                {
                    "experiment": {"mode": "concurrency", "value": 10},
                    "requests": [
                        {
                            "timestamp": (T0 + i) * 10**9,
                            "request_inputs": {
                                "payload": '{"model":"m-small","messages":[],"stream":true}'
                            },
                            "response_timestamps": [
                                (T0 + i) * 10**9 + ms * 10**6 for ms in (100, 200, 900)
                            ],
                            "response_outputs": [{"response": "data: {}"}] * 3,
                        }
                        for i in range(4)
                    ],
                    "window_boundaries": [1, 2],
                }
            ],
            "version": "2.60.0",
        }
    ),
    Right("genai_perf", ["m-small"], "ssss", 900.0, None, 0, 100.0),
)

# GuideLLM: vllm-project/guidellm, src/guidellm/schemas, benchmarks.json before and since 0.4
GUIDE_OLD = {
    "type_": "generative_text_response",
    "request_id": "r",
    "request_type": "text_completions",
    "prompt": "…",
    "output": "…",
    "prompt_tokens": 10,
    "output_tokens": 20,
    "request_latency": 2.0,
    "time_to_first_token_ms": 300.0,
}


def guide_old(i):
    times = {"start_time": T0 + i, "end_time": T0 + i + 2.0, "first_token_time": T0 + i + 0.3}
    return GUIDE_OLD | times | {"request_id": f"r{i}"}


def guide_new(i, status, error=None):
    timings = {
        "request_start": T0 + i,
        "request_end": T0 + i + 2.0,
        "first_iteration": T0 + i + 0.3,
    }
    info = {"request_id": f"r{i}", "status": status, "error": error, "timings": timings}
    return {
        "type_": "generative_request_stats",
        "request_id": f"r{i}",
        "info": info,
        "input_metrics": {"text_tokens": 10},
        "output_metrics": {"text_tokens": 20},
    }


LAYOUTS["guidellm.json"] = Layout(
    json.dumps(
        {
            "benchmarks": [
                {
                    "type_": "generative_benchmark",
                    "run_id": "u",
                    "requests": {
                        "successful": [guide_old(0), guide_old(1)],
                        "incomplete": [guide_old(2)],
                        "errored": [guide_old(3) | {"error": "503 Service Unavailable"}],
                        "total": None,
                    },
                }
            ]
        }
    ),
    Right("guidellm", ["endpoint"], "ssxb", 2000.0, 120, 0, 300.0),
)
LAYOUTS["guidellm_04.json"] = Layout(
    json.dumps(
        {
            "metadata": {"version": 1},
            "args": {"target": "http://localhost:8000", "model": "m-small"},
            "benchmarks": [
                {
                    "type_": "generative_benchmark",
                    "requests": {
                        "successful": [guide_new(0, "completed"), guide_new(1, "completed")],
                        "incomplete": [guide_new(2, "cancelled")],
                        "errored": [guide_new(3, "errored", "TimeoutError()")],
                        "total": None,
                    },
                }
            ],
        }
    ),
    Right("guidellm", ["m-small"], "ssxb", 2000.0, 120, 0, 300.0),
)

# inference-perf: kubernetes-sigs/inference-perf, per_request_lifecycle_metrics.json; its clock
# begins with the machine, so only differences of its times count
PERF = [
    {
        "start_time": 1393.25 + i,
        "end_time": 1395.25 + i,
        "request": '{"model": "m-small", "max_tokens": 247}',
        "response": "…",
        "info": {
            "input_tokens": 10,
            "output_tokens": 20,
            "output_token_times": [1393.5 + i, 1395.25 + i],
        },
        "error": error,
    }
    for i, error in enumerate([None, None, {"error_type": "TimeoutError", "error_msg": ""}])
]
LAYOUTS["inference_perf.json"] = Layout(
    json.dumps(PERF), Right("inference_perf", ["m-small"], "ssb", 2000.0, 90, 0, 250.0)
)
PERF_NEW = [
    row
    | {
        "info": {
            "request_metrics": {"text": {"input_tokens": 10}},
            "response_metrics": {
                "output_tokens": 20,
                "output_token_times": row["info"]["output_token_times"],
            },
        }
    }
    for row in PERF
]
LAYOUTS["inference_perf_new.json"] = Layout(
    json.dumps(PERF_NEW, indent=2), LAYOUTS["inference_perf.json"].right
)

# vLLM: vllm-project/vllm, vllm/benchmarks/serve.py with --save-detailed; its clock, too, begins
# with the machine
VLLM = {
    "date": "20260302-000000",
    "endpoint_type": "openai",
    "backend": "openai",
    "label": None,
    "model_id": "m-small",
    "tokenizer_id": "m-small",
    "num_prompts": 3,
    "request_rate": "inf",
    "duration": 5.0,
    "completed": 2,
    "failed": 1,
    "total_input_tokens": 30,
    "request_throughput": 0.6,
    "mean_ttft_ms": 100.0,
    "input_lens": [10, 10, 10],
    "output_lens": [20, 20, 0],
    "ttfts": [0.5, 0.5, 0.0],
    "itls": [[0.5, 1.0], [0.5, 1.0], []],
    "generated_texts": ["…", "…", ""],
    "errors": ["", "", "Traceback (most recent call last): TimeoutError"],
    "start_times": [8000.0, 8001.0, 8002.0],
}
LAYOUTS["vllm.json"] = Layout(
    json.dumps(VLLM), Right("vllm_bench", ["m-small"], "ssb", 2000.0, 70, 0, 500.0)
)
LAYOUTS["vllm_appended.jsonl"] = Layout(
    lines([VLLM, VLLM | {"start_times": [9000.0, 9001.0, 9002.0]}]),
    Right("vllm_bench", ["m-small"], "ssbssb", 2000.0, 140, 0, 500.0),
)


# OTLP as the collector's file exporter writes it, spans of OpenLLMetry, OpenInference, Vercel's
# AI SDK: opentelemetry.io "gen-ai spans", traceloop/openllmetry, Arize-ai/openinference spec,
# ai-sdk.dev "Telemetry"
def attribute(key, value):
    kind = {str: "stringValue", int: "intValue", float: "doubleValue"}[type(value)]
    return {"key": key, "value": {kind: str(value) if kind == "intValue" else value}}


def span(i, attributes, name="chat", parent="", took_s=0.7, **more):
    row = {
        "traceId": f"{1 + i // 10:032x}",
        "spanId": f"{1 + i:016x}",
        "parentSpanId": parent,
        "name": name,
        "kind": 3,
        "startTimeUnixNano": str((T0 + i) * 10**9),
        "endTimeUnixNano": str((T0 + i) * 10**9 + int(took_s * 1e9)),
        "attributes": [attribute(k, v) for k, v in attributes.items()],
        "status": {},
    }
    return row | more


def otlp(spans, scope="scopeSpans", top="resourceSpans"):
    resource = {"attributes": [attribute("service.name", "app")]}
    return {top: [{"resource": resource, scope: [{"scope": {"name": "x"}, "spans": spans}]}]}


AI_SDK = {
    "operation.name": "ai.generateText.doGenerate",
    "ai.operationId": "ai.generateText.doGenerate",
    "ai.model.id": "m-large",
    "ai.model.provider": "acme.chat",
    "ai.settings.maxRetries": 2,
    "ai.response.finishReason": "stop",
    "ai.response.model": "m-large-0613",
    "ai.usage.promptTokens": 10,
    "ai.usage.completionTokens": 20,
    "gen_ai.system": "acme.chat",
    "gen_ai.request.model": "m-large",
    "gen_ai.usage.input_tokens": 10,
    "gen_ai.usage.output_tokens": 20,
}
LAYOUTS["vercel.json"] = Layout(
    json.dumps(
        otlp(
            [
                span(0, AI_SDK | {"ai.operationId": "ai.generateText"}, "ai.generateText"),
                span(1, AI_SDK, "ai.generateText.doGenerate", f"{1:016x}"),
                span(2, {"ai.toolCall.name": "f"}, "ai.toolCall", f"{1:016x}"),
                span(
                    3,
                    AI_SDK,
                    "ai.generateText.doGenerate",
                    f"{1:016x}",
                    status={"code": 2, "message": "x"},
                ),
            ]
        ),
        indent=2,
    ),
    Right("otel", ["acme.chat/m-large"], "sb", 700.0, 60, 2),
)
# Zipkin: zipkin.io/zipkin-api, v2 spans; times in µs, and any text under `error` is a failure
LAYOUTS["zipkin.json"] = Layout(
    json.dumps(
        [
            {
                "traceId": f"{i:032x}",
                "id": f"{i + 1:016x}",
                "name": "chat m-large",
                "kind": "CLIENT",
                "timestamp": (T0 + i) * 10**6,
                "duration": 700_000,
                "localEndpoint": {"serviceName": "app"},
                "tags": {"gen_ai.system": "acme", "gen_ai.request.model": "m-large"} | error,
            }
            for i, error in enumerate([{}, {"error": "429 Too Many Requests"}])
        ]
    ),
    Right("otel", ["acme/m-large"], "st", 700.0),
)
# a retrieval calls no model: opentelemetry.io, "gen-ai spans"
LAYOUTS["otlp_retrieval.jsonl"] = Layout(
    lines([otlp([span(0, AI_SDK), span(1, {"gen_ai.operation.name": "retrieval"})])]),
    Right("otel", ["acme.chat/m-large"], "s", 700.0, 30, 1),
)
# a status says in its message what went wrong: opentelemetry-python's record_exception
LAYOUTS["otlp_message.jsonl"] = Layout(
    lines(
        otlp([span(i, AI_SDK, status={"code": 2, "message": message})])
        for i, message in enumerate(
            ["Error code: 429 - slow down", "Error code: 400 - bad", "busy"]
        )
    ),
    Right("otel", ["acme.chat/m-large"], "tcb", float("nan"), 90),
)
INFERENCE = {
    "openinference.span.kind": "LLM",
    "llm.model_name": "m-large",
    "llm.provider": "acme",
    "llm.system": "acme",
    "llm.token_count.prompt": 10,
    "llm.token_count.completion": 20,
    "llm.token_count.total": 30,
}
CHAIN = {"openinference.span.kind": "CHAIN", "input.value": "…"}
LAYOUTS["openinference_tempo.json"] = Layout(
    json.dumps(otlp([span(0, CHAIN), span(1, INFERENCE, parent=f"{1:016x}")], top="batches")),
    Right("otel", ["acme/m-large"], "s", 700.0, 30, 1),
)
LAYOUTS["tempo_2.json"] = Layout(
    json.dumps({"trace": otlp([span(i, INFERENCE) for i in range(2)])}),
    Right("otel", ["acme/m-large"], "ss", 700.0, 60),
)
# a span of vLLM itself: vllm/tracing (gen_ai.latency.*, s)
LAYOUTS["vllm_spans.jsonl"] = Layout(
    lines(
        otlp(
            [
                span(
                    i,
                    {
                        "gen_ai.response.model": "m-small",
                        "gen_ai.request.id": f"cmpl-{i}",
                        "gen_ai.usage.prompt_tokens": 10,
                        "gen_ai.usage.completion_tokens": 20,
                        "gen_ai.latency.time_in_queue": 0.01,
                        "gen_ai.latency.time_to_first_token": 0.25,
                        "gen_ai.latency.e2e": 0.7,
                    },
                    "llm_request",
                )
            ]
        )
        for i in range(3)
    ),
    Right("otel", ["m-small"], "sss", 700.0, 90, 0, 250.0),
)
# spans as the console exporters print them: opentelemetry-python (indented objects one after the
# other) and Go's stdouttrace (capital names; envoyproxy/ai-gateway, cmd/aigw/README.md)
LAYOUTS["console_python.txt"] = Layout(
    "".join(
        json.dumps(
            {
                "name": "chat m-large",
                "context": {
                    "trace_id": f"0x{i:032x}",
                    "span_id": f"0x{i:016x}",
                    "trace_state": "[]",
                },
                "kind": "SpanKind.CLIENT",
                "parent_id": None,
                "start_time": iso(i, 6),
                "end_time": iso(i + 0.7, 6),
                "status": {"status_code": status},
                "attributes": {
                    "gen_ai.operation.name": "chat",
                    "gen_ai.system": "acme",
                    "gen_ai.request.model": "m-large",
                    "gen_ai.usage.input_tokens": 10,
                    "gen_ai.usage.output_tokens": 20,
                },
                "events": [],
                "links": [],
                "resource": {"attributes": {"service.name": "app"}, "schema_url": ""},
            },
            indent=4,
        )
        + "\n"
        for i, status in enumerate(["UNSET", "OK", "ERROR"])
    ),
    Right("otel", ["acme/m-large"], "ssb", 700.0, 90),
)
LAYOUTS["console_go.jsonl"] = Layout(
    lines(
        {
            "Name": "ChatCompletion",
            "SpanContext": {"TraceID": f"{i:032x}", "SpanID": f"{i:016x}", "TraceFlags": "01"},
            "Parent": {"TraceID": "0" * 32, "SpanID": "0" * 16},
            "SpanKind": 3,
            "StartTime": iso(i, 9),
            "EndTime": iso(i + 0.7, 9),
            "Attributes": [
                {"Key": "llm.system", "Value": {"Type": "STRING", "Value": "acme"}},
                {"Key": "llm.model_name", "Value": {"Type": "STRING", "Value": "m-large"}},
                {"Key": "openinference.span.kind", "Value": {"Type": "STRING", "Value": "LLM"}},
                {"Key": "llm.token_count.prompt", "Value": {"Type": "INT64", "Value": 10}},
                {"Key": "llm.token_count.completion", "Value": {"Type": "INT64", "Value": 20}},
            ],
            "Events": None,
            "Links": None,
            "Status": {"Code": status, "Description": ""},
            "Resource": [{"Key": "service.name", "Value": {"Type": "STRING", "Value": "gw"}}],
        }
        for i, status in enumerate(["Unset", "Ok", "Error"])
    ),
    Right("otel", ["acme/m-large"], "ssb", 700.0, 90),
)
# Jaeger: jaegertracing.io, the JSON of its interface; times in µs
LAYOUTS["jaeger.json"] = Layout(
    json.dumps(
        {
            "data": [
                {
                    "traceID": "t",
                    "spans": [
                        {
                            "traceID": "t",
                            "spanID": f"s{i}",
                            "operationName": "chat",
                            "references": [
                                {"refType": "CHILD_OF", "traceID": "t", "spanID": f"s{i - 1}"}
                            ]
                            * min(i, 1),
                            "startTime": (T0 + i) * 10**6,
                            "duration": 700_000,
                            "tags": [
                                {"key": "gen_ai.operation.name", "type": "string", "value": op},
                                {"key": "gen_ai.system", "type": "string", "value": "acme"},
                                {"key": "gen_ai.request.model", "type": "string", "value": "m"},
                                {"key": "error", "type": "bool", "value": i == 2},
                            ],
                            "logs": [],
                            "processID": "p1",
                        }
                        for i, op in enumerate(["invoke_agent", "chat", "chat"])
                    ],
                    "processes": {"p1": {"serviceName": "app", "tags": []}},
                }
            ],
            "total": 0,
            "errors": None,
        }
    ),
    Right("otel", ["acme/m"], "b", float("nan"), None, 2),
)


# LiteLLM: BerriAI/litellm, schema.prisma (LiteLLM_SpendLogs); metadata is text in a dump
def litellm(i, **more):
    row = {
        "request_id": f"chatcmpl-{i}",
        "call_type": "acompletion",
        "api_key": "88dc28d0f030c55e",
        "spend": 0.0001,
        "total_tokens": 30,
        "prompt_tokens": 10,
        "completion_tokens": 20,
        "startTime": iso(i),
        "endTime": iso(i + 2),
        "completionStartTime": iso(i + 0.5),
        "model": "m-large",
        "model_id": "d1",
        "model_group": "chat",
        "custom_llm_provider": "openai",
        "api_base": "https://a.example/v1/",
        "user": "default_user_id",
        "metadata": json.dumps({"status": "success", "error_information": None}),
        "cache_hit": "None",
        "cache_key": "Cache OFF",
        "request_tags": "[]",
        "end_user": "",
        "requester_ip_address": "",
        "messages": {},
        "response": {},
        "session_id": f"s{i}",
        "status": "success",
    }
    return row | more


FAILED = {
    "status": "failure",
    "error_information": {"error_code": "429", "error_class": "RateLimitError"},
}
LITELLM = [
    litellm(0),
    litellm(1, status="failure", metadata=json.dumps(FAILED), api_base="", model_id=""),
    litellm(2, api_base="https://b.example/v1", model_id="d2"),
    litellm(3, cache_hit="True"),
    litellm(4, call_type="aretrieve_batch"),
]
LITELLM_RIGHT = Right(
    "litellm", ["a.example/m-large", "b.example/m-large"], "ss", 2000.0, 60, 3, 500.0
)
LAYOUTS["litellm_ui.json"] = Layout(
    json.dumps({"data": LITELLM, "total": 5, "page": 1, "page_size": 50, "total_pages": 1}),
    LITELLM_RIGHT,
)
LAYOUTS["litellm_dump.csv"] = Layout(
    ",".join(LITELLM[0])
    + "\n"
    + "".join(
        ",".join('"' + str(v).replace('"', '""') + '"' for v in row.values()) + "\n"
        for row in LITELLM
    ),
    LITELLM_RIGHT,
)
# the same call as LiteLLM's callbacks write it to S3 and elsewhere: docs.litellm.ai, "Standard
# Logging Payload"; times are seconds, and the status stands beside the metadata
PAYLOAD = {
    "id": "c0",
    "trace_id": "t",
    "call_type": "acompletion",
    "cache_hit": None,
    "stream": True,
    "status": "success",
    "custom_llm_provider": "openai",
    "startTime": T0 + 0.25,
    "endTime": T0 + 2.25,
    "completionStartTime": T0 + 0.75,
    "response_time": 2.0,
    "model": "m-large",
    "model_id": "d1",
    "model_group": "chat",
    "api_base": "https://a.example/v1/",
    "metadata": {"user_api_key_hash": "x"},
    "response_cost": 0.01,
    "total_tokens": 30,
    "prompt_tokens": 10,
    "completion_tokens": 20,
    "error_information": None,
}
LAYOUTS["litellm_payload.jsonl"] = Layout(
    lines(
        [
            PAYLOAD,
            PAYLOAD
            | {"id": "c1", "status": "failure", "startTime": T0 + 1, "endTime": T0 + 1.1}
            | {"error_information": FAILED["error_information"]},
        ]
    ),
    Right("litellm", ["a.example/m-large"], "st", 2000.0, 60, 0, 500.0),
)
# a dump in which the metadata are text, and the status stands only there
LAYOUTS["litellm_text.jsonl"] = Layout(
    lines(
        litellm(i, metadata=json.dumps(told), status=None)
        for i, told in enumerate([{"status": "success"}, FAILED])
    ),
    Right("litellm", ["a.example/m-large"], "st", 2000.0, 60),
)
# lines as Docker and Kubernetes keep what a container prints, and as log shippers do
LAYOUTS["docker.log"] = Layout(
    lines(
        {"log": json.dumps(row) + "\n", "stream": "stdout", "time": iso(99, 9)}
        for row in ISTIO
        if row["upstream_host"]
    ),
    LAYOUTS["envoy_istio.log"].right._replace(apart=0),
)
LAYOUTS["shipped.jsonl"] = Layout(
    lines(
        {"container_name": "gw", "level": "info", "message": json.dumps(row), "stream": "stdout"}
        for row in ISTIO
        if row["upstream_host"]
    ),
    LAYOUTS["envoy_istio.log"].right._replace(apart=0),
)
# the console of a log store exports lines as a table: docs.aws.amazon.com/AmazonCloudWatch, "Export
# query results"
LAYOUTS["insights.csv"] = Layout(
    "@timestamp,@message\n"
    + "".join(
        f'{iso(i)},"{json.dumps(bedrock(i, "Converse", CONVERSED))}"\n'.replace('"', '""')
        .replace(',""{', ',"{')
        .replace('}""\n', '}"\n')
        for i in range(3)
    ),
    Right("bedrock", ["acme.m-large-v1:0"], "sss", 900.0, 90),
)


def loaded(path, **more):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_requests(path, **more)


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_layout_is_read_as_it_is_documented(tmp_path, name):
    text, right = LAYOUTS[name]
    path = tmp_path / name
    path.write_text(text)
    with loaded(path) as log:
        df = log.df()
        assert log.layout == right.layout
        assert (log.rows, log.quarantined, log.skipped) == (len(right.kinds), 0, right.apart)
        assert log.backends == right.backends
        assert "".join(LETTERS[k] for k in df.sort_values("ts", kind="stable").kind) == right.kinds
        mean = df.latency_ms[df.kind == "success"].mean()
        assert mean == pytest.approx(right.mean_ms, nan_ok=True)
        if right.tokens is not None:
            assert int(df.tokens_in.sum() + df.tokens_out.sum()) == right.tokens
        if right.ttft_ms is not None:
            assert df.ttft_ms[df.kind == "success"].mean() == pytest.approx(right.ttft_ms)


ENDED = iso(10, 0)
NGINX_TIMES = {  # the same end, as each of nginx's variables writes it; it took a second and a half
    "text": f'192.0.2.7 - - [{clf(10)}] "POST /v1 HTTP/1.1" 200 612 "-" "py" rt=1.500\n' * 2,
    "time_local": lines([{"time_local": clf(10), "status": "200", "request_time": "1.500"}] * 2),
    "time_iso8601": lines([{"time_iso8601": ENDED, "status": 200, "request_time": 1.5}] * 2),
    "msec": lines([{"msec": f"{T0 + 10}.000", "status": "200", "request_time": "1.500"}] * 2),
}


@pytest.mark.parametrize("name", NGINX_TIMES)
def test_a_request_begins_before_nginx_writes_it_down(tmp_path, name):
    text = NGINX_TIMES[name].replace('"status"', '"remote_addr": "192.0.2.7", "status"')
    (tmp_path / "x.log").write_text(text)
    with pytest.warns(UserWarning, match="nginx writes the time at which a request ended") as said:
        log = load_requests(tmp_path / "x.log")
    assert sum("nginx writes" in str(w.message) for w in said) == 1
    with log:
        assert (log.start_s, log.end_s) == (T0 + 8.5, T0 + 10)


def test_a_time_that_the_caller_names_is_left_as_it_is(tmp_path):
    text = NGINX_TIMES["time_iso8601"].replace('"status"', '"remote_addr": "192.0.2.7", "status"')
    (tmp_path / "x.log").write_text(text)
    with loaded(tmp_path / "x.log", columns={"ts": "time_iso8601"}) as log:
        assert log.start_s == T0 + 10 and not any("nginx writes" in note for note in log.notes)


# ---- files that look like a log and are none


TRACE_V2 = (  # inference-sim/inference-sim, sim/workload: TraceV2
    "request_id,client_id,tenant_id,slo_class,session_id,round_index,prefix_group,streaming,"
    "input_tokens,output_tokens,text_tokens,image_tokens,audio_tokens,video_tokens,reason_ratio,"
    "model,deadline_us,server_input_tokens,arrival_time_us,send_time_us,first_chunk_time_us,"
    "last_chunk_time_us,num_chunks,status,error_message\n"
    "0,c1,t1,standard,s1,0,,true,10,5,10,0,0,0,0.0,,0,10,0,1000,5000,10000,5,ok,\n"
    "1,c1,t1,standard,s1,0,,true,10,5,10,0,0,0,0.0,,0,10,2500000,0,0,0,5,ok,\n"
)
REFUSED = {
    "trace_v2.csv": (TRACE_V2, "arrivals.*load_arrivals"),
    "mooncake.jsonl": (
        lines({"timestamp": 1000 * i, "input_length": 5, "output_length": 5} for i in range(3)),
        "arrivals.*load_arrivals",
    ),
    "azure.csv": (
        "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:15:46.6805900,374,44\n",
        "arrivals.*load_arrivals",
    ),
    "series.csv": (
        "ts,backend,requests,latency_ms,error_rate\n" + f"{T0},a,10,5,0\n{T0 + 60},a,10,5,0\n",
        "series.*load_telemetry",
    ),
    "series.jsonl": (
        lines(dict(ts=T0 + i, backend="a", requests=3, latency_ms=5) for i in range(3)),
        "series.*load_telemetry",
    ),
    "aiperf_summary.json": (
        json.dumps(
            {"request_throughput": {"avg": 1}, "request_latency": {"avg": 50, "unit": "ms"}},
            indent=1,
        ),
        "totals of a whole run",
    ),
    "vllm_summary.json": (
        json.dumps({k: v for k, v in VLLM.items() if not isinstance(v, list)}),
        "totals of a whole run.*save-detailed",
    ),
    "summary.csv": ("Metric,avg,min,max\nRequest Latency (ms),10,1,20\n", "totals of a whole run"),
    "metrics.json": (json.dumps({"resourceMetrics": []}), "OTLP metrics.*resourceSpans"),
    "records.json": (json.dumps({"resourceLogs": [{}]}), "OTLP log records.*resourceSpans"),
    "combined.log": (
        "".join(
            f'192.0.2.7 - - [{clf(i)}] "GET / HTTP/1.1" 200 612 "-" "curl"\n' for i in range(3)
        ),
        r"\$request_time",
    ),
    "bedrock_plain.jsonl": (
        lines(bedrock(i, "InvokeModel", {"text": "…"}) for i in range(3)),
        "3 a call whose row holds no latency",
    ),
    "hours.csv": ("ts,backend,latency_ms\n492336,a,5\n492337,a,5\n", "hours since 1970"),
    "dates_1970.csv": (
        "ts,backend,latency_ms\n1970-01-01 00:00:10,a,5\n1970-01-01 00:00:11,a,5\n",
        "every date lies in 1970",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_log_of_requests_is_refused_with_the_way_to_go(tmp_path, name):
    text, words = REFUSED[name]
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words) as e:
        loaded(tmp_path / name)
    assert name in str(e.value)


def test_arrivals_of_a_later_trace_are_read_by_their_own_loader(tmp_path):
    (tmp_path / "v2.csv").write_text(TRACE_V2)
    got = load_arrivals(tmp_path / "v2.csv")
    assert got.tokens_in.to_list() == [10, 10] and got.ts_s.to_list() == [0.0, 2.5]


def test_rows_whose_clock_was_not_set_are_bad(tmp_path):
    rows = [f"{t},a,5" for t in (T0, 0, T0 + 1, T0 + 2)]
    (tmp_path / "x.csv").write_text("\n".join(["ts,backend,latency_ms", *rows]) + "\n")
    with loaded(tmp_path / "x.csv", max_bad=0.5, quarantine=tmp_path / "q.csv") as log:
        assert (log.rows, log.quarantined, log.span_s < 10) == (3, 1, True)
    bad = pd.read_csv(tmp_path / "q.csv")
    assert (bad.line[0], bad.column[0], str(bad.raw[0])) == (3, "ts", "0")


@pytest.mark.parametrize(
    "rows,words",
    [
        ([(T0 + i, "a") for i in range(3)], "all rows are of one backend .a."),
        ([(i, "ab"[i % 2]) for i in range(4)], "seconds since some start"),
    ],
    ids=["one backend", "a clock of its own"],
)
def test_what_a_log_cannot_answer_is_said(tmp_path, rows, words):
    text = "".join(f"{t},{b},500\n" for t, b in rows)
    (tmp_path / "x.csv").write_text("ts,backend,latency_ms\n" + text)
    with pytest.warns(UserWarning, match=words):
        load_requests(tmp_path / "x.csv").close()


def test_each_row_of_an_indented_answer_has_its_own_line(tmp_path):
    rows = [
        dict(ts=T0 + i, backend="a", latency_ms=5 if i else -5, nested={"x": i}) for i in range(3)
    ]
    (tmp_path / "x.json").write_text(json.dumps({"total": 3, "data": rows[::-1]}, indent=2))
    with loaded(tmp_path / "x.json", max_bad=0.5, quarantine=tmp_path / "q.csv") as log:
        assert (log.rows, log.quarantined) == (2, 1)
    line = (tmp_path / "x.json").read_text().split("\n").index('      "latency_ms": -5,')
    assert pd.read_csv(tmp_path / "q.csv").line.to_list() == [line + 1 - 3]


@pytest.mark.parametrize("end", [0, T0 - 5, T0 + 40 * 86_400], ids=["never", "before", "years"])
def test_what_ends_before_it_begins_is_bad(tmp_path, end):
    rows = [litellm(0), litellm(1), litellm(2, endTime=iso(end - T0))]
    (tmp_path / "x.jsonl").write_text(lines(rows))
    with loaded(tmp_path / "x.jsonl", max_bad=0.5, quarantine=tmp_path / "q.csv") as log:
        assert (log.rows, log.quarantined, log.df().latency_ms.max()) == (2, 1, 2000.0)
    assert pd.read_csv(tmp_path / "q.csv").column.to_list() == ["latency_ms"]


def test_a_first_token_far_behind_the_end_is_no_value(tmp_path):
    text = "ts,backend,latency_ms,ttft_ms\n" + "".join(
        f"{T0 + i},a,900,{v}\n" for i, v in enumerate([400, 400_000])
    )
    (tmp_path / "x.csv").write_text(text)
    with loaded(tmp_path / "x.csv") as log:
        assert (log.rows, log.lost, log.df().ttft_ms.sum()) == (2, {"ttft_ms": 1}, 400.0)


@pytest.mark.parametrize(
    "header,asked",
    [("took", "took[s]"), ("took", "took [sec]"), ("took [s]", "took [s]"), ("took[s]", "took[s]")],
)
def test_a_unit_counts_whether_asked_for_or_part_of_the_name(tmp_path, header, asked):
    (tmp_path / "x.csv").write_text(f"ts,backend,{header}\n{T0},a,1.5\n")
    with loaded(tmp_path / "x.csv", columns={"latency_ms": asked}) as log:
        assert log.df().latency_ms.to_list() == [1500.0]
