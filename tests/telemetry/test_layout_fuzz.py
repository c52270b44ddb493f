"""Files of every known layout, made at random from calls that are known: what comes in is what was
made. Nothing is lost, set apart or set aside that should not be, and nothing is misread.

ARCPOINT_FUZZ_FILES asks for another number of files.
"""

import csv
import io
import json
import os
import random
import tempfile
import warnings
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import pytest

from arcpoint_ce.telemetry.requests import load_requests

FILES = int(os.environ.get("ARCPOINT_FUZZ_FILES", 500))
IN_ONE_LOAD = 10
T0_MS = 1_772_409_600_000  # 2026-03-02 00:00:00 UTC
KINDS = ["success"] * 6 + ["backend", "throttled", "caller", "cancelled"]
CODES = {
    "success": (200, 201),
    "backend": (500, 502, 503, 504),
    "throttled": (429,),
    "caller": (400, 401, 404, 413, 422),
    "cancelled": (499,),
}


class Call(NamedTuple):
    "What really happened."

    id: str
    at_ms: int  # since the epoch
    took_ms: int
    kind: str
    code: int
    where: int  # which of the file's backends, 0..2
    tokens_in: int
    tokens_out: int


def call_of(r, name, i):
    kind = r.choice(KINDS)
    return Call(
        f"{name}-{i}",
        T0_MS + r.randrange(10**9),
        r.randrange(1, 60_000),
        kind,
        r.choice(CODES[kind]),
        r.randrange(3),
        r.randrange(5000),
        r.randrange(5000),
    )


def iso(ms, r, digits=3, sep="T"):
    "A moment as some writer has it: with Z, with another offset, or without one."
    zone = r.choice(["Z", "+00:00", "+05:30", "-0800"])
    shift = {"+05:30": 19_800_000, "-0800": -28_800_000}.get(zone, 0)
    at = pd.Timestamp((ms + shift) * 10**6)
    return at.isoformat(timespec="nanoseconds")[: 20 + digits].replace("T", sep) + zone


# ---- a record of each layout; (record, its backend's name, has it tokens), by (call, file, chance)


def litellm(c, file, r):
    host = f"h{c.where}.{file}.example"
    failed = c.kind != "success"
    told = {"status": "failure" if failed else "success"}
    if failed:
        told["error_information"] = {"error_code": str(c.code), "error_class": "SomeError"}
    row = {
        "request_id": c.id,
        "call_type": r.choice(["acompletion", "aresponses", "anthropic_messages"]),
        "spend": 0.001,
        "prompt_tokens": c.tokens_in,
        "completion_tokens": c.tokens_out,
        "startTime": iso(c.at_ms, r),
        "endTime": iso(c.at_ms + c.took_ms, r),
        "model": "m",
        "model_id": f"d{c.where}",
        "custom_llm_provider": "openai",
        "api_base": f"https://{host}/v1/",
        "metadata": json.dumps(told) if r.random() < 0.3 else told,
        "cache_hit": r.choice(["None", "False", ""]),
    }
    if r.random() < 0.7:
        row["status"] = told["status"]
    return row, f"{host}/m", True


def litellm_apart(r, row):
    changed = r.choice(
        [
            {"cache_hit": "True"},
            {"call_type": "call_mcp_tool"},
            {"api_key": "litellm-internal-health-check"},
            {"call_type": "aretrieve_batch"},
        ]
    )
    return row | changed


def broken_off(c, r):
    "Status and flags in Envoy's log; an answer that breaks off has sent its 200 already."
    if c.kind == "cancelled" and r.random() < 0.7:
        return r.choice([(0, "DC"), (200, "DC")])
    if c.kind == "backend" and r.random() < 0.5:
        return 200, r.choice(["UC", "UR", "LR", "UPE", "UT", "SI", "DT", "UMSDR", "UC,URX"])
    return c.code, "-"


def envoy(c, file, r):
    host = f"10.0.{c.where}.1:{8000 + c.where}"
    code, flags = broken_off(c, r)
    row = {
        "start_time": iso(c.at_ms, r),
        "method": "POST",
        "path": "/v1/chat/completions",
        "response_code": r.choice([code, str(code)]),
        "response_flags": flags,
        "duration": r.choice([c.took_ms, str(c.took_ms)]),
        "upstream_host": host,
        "request_id": c.id,
    }
    return row, host, False


def nginx(c, file, r):
    host = f"10.1.{c.where}.1:80"
    tried = r.choice(["", "10.9.9.9:80, "])
    row = {
        "time_iso8601": iso(c.at_ms + c.took_ms, r),  # written when the request has ended
        "request": "POST /v1 HTTP/1.1",
        "status": str(c.code),
        "request_time": f"{c.took_ms / 1000:.3f}",
        "upstream_addr": tried + host,
        "body_bytes_sent": "612",
        "request_id": c.id,
    }
    return row, host, False


def kong(c, file, r):
    row = {
        "started_at": c.at_ms,
        "request": {"id": c.id, "method": "POST"},
        "response": {"status": c.code, "size": 9},
        "latencies": {"kong": 1, "proxy": c.took_ms, "request": c.took_ms},
        "tries": [{"ip": "192.0.2.9", "port": 1}] * r.randrange(2)
        + [{"ip": f"192.0.2.{c.where}", "port": 443}],
        "service": {"name": "llm"},
    }
    return row, f"192.0.2.{c.where}:443", False


def traefik(c, file, r):
    host = f"10.2.{c.where}.1:80"
    row = {
        "StartUTC": iso(c.at_ms, r, 9),
        "Duration": c.took_ms * 10**6,
        "DownstreamStatus": c.code,
        "OriginStatus": c.code,
        "ServiceAddr": host,
        "ServiceName": "llm@docker",
        "request_X-Request-Id": c.id,
    }
    return row, host, False


def bedrock(c, file, r):
    names = {
        "backend": "InternalServerException",
        "throttled": "ThrottlingException",
        "caller": "ValidationException",
        "cancelled": "ClientClosedRequest",
    }
    row = {
        "schemaType": "ModelInvocationLog",
        "timestamp": iso(c.at_ms, r),
        "requestId": c.id,
        "operation": "Converse",
        "modelId": f"acme.{file}.m{c.where}",
        "input": {"inputTokenCount": c.tokens_in},
    }
    if c.kind == "success":
        body = {"metrics": {"latencyMs": c.took_ms}, "usage": {}}
        if r.random() < 0.5:
            last = {"invocationLatency": c.took_ms, "firstByteLatency": 1}
            body = [{"type": "x"}, {"amazon-bedrock-invocationMetrics": last}]
        row["output"] = {"outputBodyJson": body, "outputTokenCount": c.tokens_out}
    else:
        row["errorCode"] = names[c.kind]
    return row, row["modelId"], c.kind == "success"


def apim(c, file, r):
    host = f"h{c.where}.{file}.example"
    row = {
        "time": iso(c.at_ms, r, 7),
        "category": "GatewayLogs",
        "durationMs": c.took_ms,
        "correlationId": c.id,
        "properties": {
            "responseCode": c.code,
            "backendUrl": f"https://{host}/openai/x",
            "apiId": "llm",
        },
    }
    return row, host, False


def langfuse(c, file, r):
    names = {"backend": "boom", "throttled": "RateLimitError: x", "caller": "BadRequestError"}
    row = {
        "id": c.id,
        "traceId": "t",
        "type": "GENERATION",
        "startTime": iso(c.at_ms, r),
        "endTime": iso(c.at_ms + c.took_ms, r),
        "model": f"m{c.where}.{file}",
        "level": "DEFAULT" if c.kind == "success" else "ERROR",
        "statusMessage": names.get(c.kind, "client_closed_request" if c.kind != "success" else ""),
        "latency": c.took_ms / 1000,
        "usageDetails": {"input": c.tokens_in, "output": c.tokens_out},
    }
    if r.random() < 0.3:
        row["endTime"] = None
    return row, row["model"], True


def langfuse_apart(r, row):
    return row | {"type": r.choice(["SPAN", "EVENT"])}


def helicone(c, file, r):
    status = {"cancelled": -3}.get(c.kind, c.code)
    row = {
        "request_id": c.id,
        "request_created_at": iso(c.at_ms, r),
        "delay_ms": c.took_ms,
        "response_status": status,
        "provider": f"P{c.where}",
        "request_model": file,
        "prompt_tokens": c.tokens_in,
        "completion_tokens": c.tokens_out,
    }
    return row, f"P{c.where}/{file}", True


def span(c, file, r):
    value = {str: "stringValue", int: "intValue"}
    model = f"m{c.where}.{file}"
    told = {
        "gen_ai.operation.name": "chat",
        r.choice(["gen_ai.system", "gen_ai.provider.name"]): "acme",
        "gen_ai.request.model": model,
        r.choice(["gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"]): c.tokens_in,
        r.choice(["gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"]): c.tokens_out,
    }
    if c.kind != "success":
        told |= {"http.response.status_code": c.code}
    pairs = [
        {"key": k, "value": {value[type(v)]: r.choice([str(v), v]) if type(v) is int else v}}
        for k, v in told.items()
    ]
    pairs += [{"key": "empty", "value": {}}, {"key": "none"}][: r.randrange(3)]
    r.shuffle(pairs)
    start = c.at_ms * 10**6
    end = start + c.took_ms * 10**6
    row = {
        "traceId": c.id,
        "spanId": c.id,
        "name": "chat",
        "startTimeUnixNano": r.choice([start, str(start)]),
        "endTimeUnixNano": r.choice([end, str(end)]),
        "attributes": pairs,
        "status": {"code": 2} if c.kind != "success" else r.choice([{}, {"code": 1}]),
    }
    return row, f"acme/{model}", True


def span_apart(r, row):
    return row | {"spanId": row["spanId"] + "x", "attributes": [], "name": "tool"}


def batch(row):
    return {"resourceSpans": [{"resource": {}, "scopeSpans": [{"scope": {}, "spans": [row]}]}]}


def aiperf(c, file, r):
    start, error = c.at_ms * 10**6, None
    if c.kind != "success":
        error = {"code": c.code, "type": "x", "message": "y"}
    unit, scale = r.choice([("ms", 1), ("s", 1000), ("ns", 1e-6)])
    row = {
        "metadata": {
            "x_request_id": c.id,
            "request_start_ns": start,
            "request_end_ns": start + c.took_ms * 10**6,
            "model": f"m{c.where}.{file}",
            "was_cancelled": c.kind == "cancelled",
        },
        "metrics": {
            "request_latency": {"value": c.took_ms / scale, "unit": unit},
            "input_sequence_length": {"value": c.tokens_in, "unit": "tokens"},
            "output_sequence_length": {"value": c.tokens_out, "unit": "tokens"},
        },
        "error": error,
    }
    return row, row["metadata"]["model"], True


def plain(c, file, r):
    row = {
        "ts": r.choice([c.at_ms, c.at_ms / 1000, iso(c.at_ms, r)]),
        "backend": f"b{c.where}.{file}",
        "latency_ms": r.choice([c.took_ms, f"{c.took_ms}ms", f"{c.took_ms / 1000:.3f}s"]),
        "status": r.choice([c.code, str(c.code), float(c.code)]),
        "request_id": c.id,
        "tokens_in": c.tokens_in,
        "tokens_out": c.tokens_out,
    }
    return row, row["backend"], True


def envoy_text(c, file, r):
    host = f"10.3.{c.where}.1:80"
    code, flags = broken_off(c, r)
    return (
        f'[{iso(c.at_ms, r)}] "POST /v1 HTTP/2" {code} {flags} 154 20 {c.took_ms} 100 "-" "py" '
        f'"{c.id}" "llm" "{host}"',
        host,
        False,
    )


def nginx_text(c, file, r):
    host, at = f"10.4.{c.where}.1:80", pd.Timestamp((c.at_ms + c.took_ms) // 1000 * 10**9)
    s = f"{c.took_ms / 1000:.3f}"
    tail = r.choice([f'rt={s} urt="{s}" ua="{host}"', f'"-" {s} {s} {host}', f"{s} {host}"])
    return (
        f'192.0.2.7 - - [{at:%d/%b/%Y:%H:%M:%S} +0000] "POST /v1 HTTP/1.1" {c.code} 6 "-" "py" '
        + tail,
        host,
        False,
    )


class Maker(NamedTuple):
    record: object  # function of a call, a file's name and chance
    arranged: str  # letters of the ways in which its files may be arranged
    apart: object = None  # a record that is set apart, from one that is not
    wrap: object = None  # around each record
    exact: bool = True  # are times exact to the ms, and not to the second in which a call ended


MAKERS = {
    "litellm": Maker(litellm, "laepc", litellm_apart),
    "envoy": Maker(envoy, "lapds", lambda r, row: row | {"upstream_host": r.choice(["-", None])}),
    "nginx": Maker(nginx, "lapd"),
    "kong": Maker(kong, "lap", lambda r, row: row | {"tries": []}),
    "traefik": Maker(traefik, "laps"),
    "bedrock": Maker(bedrock, "laep"),
    "azure_apim": Maker(apim, "lae"),
    "langfuse": Maker(langfuse, "laepc", langfuse_apart),
    "helicone": Maker(helicone, "laepc", lambda r, row: row | {"response_status": -2}),
    "otel": Maker(span, "lap", span_apart, batch),
    "aiperf": Maker(aiperf, "la"),
    "columns": Maker(plain, "laepcd"),
    "envoy_text": Maker(envoy_text, "t"),
    "nginx_text": Maker(nginx_text, "t", exact=False),
}


def as_csv(rows):
    out = io.StringIO()
    names = list(dict.fromkeys(k for row in rows for k in row))
    table = csv.writer(out, lineterminator="\n")
    table.writerow(names)
    for row in rows:
        cells = (row.get(n) for n in names)
        table.writerow(json.dumps(v) if isinstance(v, dict) else v for v in cells)
    return out.getvalue()


ARRANGED = {  # letter -> (text of the records, endings of a name)
    "l": (lambda rows: "\n".join(map(json.dumps, rows)), ["jsonl", "log", "json", "txt"]),
    "a": (json.dumps, ["json", "log"]),
    "p": (lambda rows: json.dumps(rows, indent=2), ["json", "txt"]),
    "e": (lambda rows: json.dumps({"data": rows, "total": 9}, indent=None), ["json"]),
    "c": (as_csv, ["csv", "txt"]),
    "d": (lambda rows: "\n".join(json.dumps(r, indent=1) for r in rows), ["json", "log"]),
    "s": (lambda rows: "\n".join(json.dumps({"log": json.dumps(r) + "\n"}) for r in rows), ["log"]),
    "t": (lambda rows: "\n".join(rows), ["log", "txt"]),
}
GARBAGE = ["{]", "upstream timed out (110)", '{"a": ', "\x00", "}", '"']


class Made(NamedTuple):
    text: str
    ending: str
    truth: list  # of the rows that stay
    apart: int
    bad: int


def make_file(r, layout, name):
    "A file of a layout, and what is right about it."
    maker, truth, records, apart = MAKERS[layout], [], [], 0
    for i in range(r.randrange(2, 9)):
        call = call_of(r, name, i)
        record, backend, has_tokens = maker.record(call, name, r)
        at_ms = call.at_ms
        if not maker.exact:
            at_ms = (call.at_ms + call.took_ms) // 1000 * 1000 - call.took_ms
        tokens = (call.tokens_in, call.tokens_out) if has_tokens else None
        took = call.took_ms if call.kind == "success" else None
        truth.append((call.kind, at_ms, backend, took, tokens if took else None))
        records.append(record)
        if maker.apart and r.random() < 0.15:
            again, *_ = maker.record(call_of(r, name, f"a{i}"), name, r)
            records.append(maker.apart(r, again))
            apart += 1
    records = [maker.wrap(row) if maker.wrap else row for row in records]
    letter = r.choice(maker.arranged)
    make, endings = ARRANGED[letter]
    text, bad = make(records), 0
    if letter in "lst" and r.random() < 0.3:
        lines = text.split("\n")
        for _ in range(r.randrange(1, 1 + max(len(lines) // 3, 1))):
            lines.insert(r.randrange(len(lines) + 1), r.choice(GARBAGE))
            bad += 1
        text = "\n".join(lines)
    if r.random() < 0.2 and letter not in "c":
        text = text.replace("\n", "\r\n")
    return Made(text + r.choice(["", "\n"]), r.choice(endings), truth, apart, bad)


def read_and_compare(seed):
    "A load of several files; what was made must come out of it."
    r = random.Random(seed)
    with tempfile.TemporaryDirectory() as tmp:
        made, paths = [], []
        for i in range(IN_ONE_LOAD):
            made.append(make_file(r, r.choice(list(MAKERS)), f"f{i}"))
            paths.append(Path(tmp) / f"f{i}.{made[-1].ending}")
            paths[-1].write_text(made[-1].text, newline="")
        with warnings.catch_warnings(action="ignore"):
            with load_requests(paths, max_bad=1.0, quarantine=Path(tmp) / "q.csv") as log:
                rows = log.con.execute(
                    "SELECT kind, ts, backend, latency_ms, tokens_in, tokens_out FROM log"
                ).fetchall()
                rows_in, quarantined, skipped = log.rows_in, log.quarantined, log.skipped
    got = Counter()
    for kind, ts, backend, ms, tokens_in, tokens_out in rows:
        good = kind == "success"
        tokens = None if tokens_in is None or not good else (int(tokens_in), int(tokens_out))
        got[kind, ts // 1000, backend, round(ms, 3) if good else None, tokens] += 1
    want = Counter(row for file in made for row in file.truth)
    assert not want - got and not got - want, (seed, list(want - got)[:3], list(got - want)[:3])
    n_bad = sum(file.bad for file in made)
    apart = sum(file.apart for file in made)
    assert (rows_in, skipped) == (len(rows) + quarantined, apart), seed
    assert bool(n_bad) <= quarantined <= n_bad, seed  # damage on both sides of a row may be one


@pytest.mark.slow  # hundreds of files
def test_files_of_every_layout_give_what_was_put_into_them():
    first = random.SystemRandom().randrange(2**40) if "ARCPOINT_FUZZ_FILES" in os.environ else 0
    for seed in range(first, first + max(FILES // IN_ONE_LOAD, 1)):
        read_and_compare(seed)


@pytest.mark.parametrize("layout", MAKERS)
def test_a_file_of_each_layout_gives_what_was_put_into_it(tmp_path, layout):
    made = make_file(random.Random(7), layout, "x")
    path = tmp_path / f"x.{made.ending}"
    path.write_text(made.text, newline="")
    with warnings.catch_warnings(action="ignore"):
        with load_requests(path, max_bad=1.0, quarantine=tmp_path / "q.csv") as log:
            assert log.layout == layout
            assert (log.rows, log.quarantined, log.skipped) == (
                len(made.truth),
                made.bad,
                made.apart,
            )
