"Requests in the shapes that llm-d's endpoint picker sends, against the real servers."

import json
from http.client import HTTPConnection
from math import exp
from random import Random

import pytest

from arcpoint_ce.live.predictor import predictor_process

# as the Go client writes them: every number there, `pod_type` left out where it is empty
ROW = {
    "kv_cache_percentage": 0.42,
    "input_token_length": 1024,
    "num_request_waiting": 1,
    "num_request_running": 6,
    "num_tokens_generated": 0,
    "prefix_cache_score": 0.25,
    "encoder_input_size": 0,
    "encoder_matched_size": 0,
    "prefill_tokens_in_flight": 512,
    "decode_tokens_in_flight": 2048,
}
STAMP = "2026-11-30T06:00:00.123456789Z"


def entry(rng, pod, ms_per_k, target="ttft"):
    "A training row; the time that it does not speak of is 0."
    tokens, running = rng.randrange(50, 8000), rng.randrange(40)
    noise = exp(rng.gauss(0.0, 0.15))
    ttft = (15.0 + ms_per_k * tokens / 1000) * noise if target == "ttft" else 0
    tpot = (5.0 + ms_per_k * running / 100) * noise if target == "tpot" else 0
    shape = dict(input_token_length=tokens, prefix_cache_score=0.0, num_request_running=running)
    row = ROW | shape | dict(actual_ttft_ms=ttft, actual_tpot_ms=tpot, timestamp=STAMP)
    return row | ({"pod_type": pod} if pod else {})


def entries(n, seed=0):
    rng = Random(seed)
    pods = (("h100", 40.0), ("l4", 300.0))
    return [entry(rng, *pods[k % 2], target=("ttft", "tpot")[k // 2 % 2]) for k in range(n)]


class Client:
    def __init__(self, port):
        self.port, self.line = port, HTTPConnection("127.0.0.1", port, timeout=60)

    def ask(self, method, path, body=None, **headers):
        text = body if isinstance(body, (str, bytes, type(None))) else json.dumps(body)
        self.line.request(method, path, text, headers)
        got = self.line.getresponse()
        raw = got.read()
        is_json = got.headers["content-type"] == "application/json"
        return got.status, json.loads(raw) if is_json else raw.decode()


@pytest.fixture(scope="module")
def fresh():
    with predictor_process() as port:
        yield Client(port)


@pytest.fixture(scope="module")
def taught():
    with predictor_process() as port:
        client = Client(port)
        assert client.ask("POST", "/add_training_data_bulk", {"entries": entries(1600)})[0] == 202
        yield client


def test_before_it_has_learned_it_says_so(fresh):
    assert fresh.ask("GET", "/healthz")[0] == 200
    assert fresh.ask("GET", "/readyz")[0] == 503
    status, told = fresh.ask("GET", "/status")
    assert status == 200 and told["is_ready"] is False and told["last_model_load"] is None
    assert fresh.ask("POST", "/predict/bulk/strict", {"requests": [ROW]})[0] == 503
    assert fresh.ask("POST", "/predict", ROW)[0] == 503
    assert fresh.ask("POST", "/add_training_data_bulk", {"entries": []})[0] == 202


def test_status_is_what_the_client_reads(taught):
    _, told = taught.ask("GET", "/status")
    assert told["is_ready"] is True and taught.ask("GET", "/readyz")[0] == 200
    assert told["model_type"] == "xgboost" and told["objective_type"] in ("mean", "quantile")
    assert isinstance(told["quantile"], float) and told["training_server_url"].startswith("http")
    assert told["last_model_load"].endswith("Z") and set(told["models_exist"]) == {"ttft", "tpot"}


@pytest.mark.parametrize("n", [1, 3, 100])
def test_a_strict_batch_has_order_and_length(taught, n):
    rows = [ROW | {"input_token_length": 100 * (k + 1), "pod_type": "l4"} for k in range(n)]
    status, told = taught.ask("POST", "/predict/bulk/strict", {"requests": rows})
    assert status == 200 and told["total_requests"] == told["successful_predictions"] == n
    assert told["failed_predictions"] == 0 and told["processing_time_ms"] > 0
    times = [p["ttft_ms"] for p in told["predictions"]]
    assert len(times) == n and times == sorted(times)
    for p in told["predictions"]:
        low, high = p["ttft_prediction_bounds"]
        assert 0 < low <= p["ttft_ms"] <= high and p["tpot_ms"] > 0
        assert {"predicted_at", "model_type", "objective_type", "quantile"} <= set(p)


BAD = {
    "missing": ({k: v for k, v in ROW.items() if k != "kv_cache_percentage"}, "kv_cache"),
    "negative": (ROW | {"num_request_waiting": -1}, "num_request_waiting"),
    "text": (ROW | {"input_token_length": "7"}, "input_token_length"),
    "true": (ROW | {"num_request_running": True}, "num_request_running"),
    "huge": (ROW | {"input_token_length": 1e300}, "input_token_length"),
    "null": (ROW | {"prefix_cache_score": None}, "prefix_cache_score"),
    "no object": (7, "object"),
    "label": (ROW | {"pod_type": 3}, "pod_type"),
    "optional text": (ROW | {"decode_tokens_in_flight": "x"}, "decode_tokens"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_row_fails_a_strict_batch_and_only_itself_in_a_plain_one(taught, kind):
    row, why = BAD[kind]
    body = {"requests": [ROW, row, ROW]}
    status, told = taught.ask("POST", "/predict/bulk/strict", body)
    assert status == 422 and "row 1" in told["detail"] and why in told["detail"]
    status, told = taught.ask("POST", "/predict/bulk", body)
    assert status == 200 and told["failed_predictions"] == 1
    assert told["predictions"][1] is None and None not in (
        told["predictions"][0],
        told["predictions"][2],
    )
    assert told["errors"][0]["index"] == 1 and why in told["errors"][0]["error"]
    before = taught.ask("GET", "/status")[1]["lines"]
    assert taught.ask("POST", "/add_training_data_bulk", {"entries": [row]})[0] == 422
    assert taught.ask("GET", "/status")[1]["lines"] == before


@pytest.mark.parametrize("body", ["", "{", "[]", '{"requests": 3}', '{"requests": [NaN]}', b"\xff"])
def test_bodies_that_are_none_are_refused(taught, body):
    assert taught.ask("POST", "/predict/bulk/strict", body)[0] == 422


def test_more_rows_than_a_batch_may_hold_are_refused(taught):
    assert taught.ask("POST", "/predict/bulk/strict", {"requests": [ROW] * 10_001})[0] == 422


def test_mixed_pools_are_told_apart_and_bounds_hold(taught):
    rng = Random(7)
    inside = wrong = constant = n = 0
    for pod, ms_per_k in (("h100", 40.0), ("l4", 300.0)):
        rows = [entry(rng, pod, ms_per_k) for _ in range(300)]
        _, told = taught.ask("POST", "/predict/bulk/strict", {"requests": rows})
        usual = sorted(r["actual_ttft_ms"] for r in rows)[len(rows) // 2]
        for row, p in zip(rows, told["predictions"]):
            low, high = p["ttft_prediction_bounds"]
            inside += low <= row["actual_ttft_ms"] <= high
            wrong += abs(p["ttft_ms"] - row["actual_ttft_ms"])
            constant += abs(usual - row["actual_ttft_ms"])
            n += 1
    assert 0.82 <= inside / n <= 0.97
    assert wrong <= 0.4 * constant


def test_the_prediction_is_kept_beside_the_actual_and_drift_is_seen(taught):
    rng = Random(3)
    slow = [entry(rng, "drifter", 40.0) for _ in range(200)]
    slow += [entry(rng, "drifter", 400.0) for _ in range(200)]
    for k in range(0, 400, 50):
        assert (
            taught.ask("POST", "/add_training_data_bulk", {"entries": slow[k : k + 50]})[0] == 202
        )
    lines = {(x["label"], x["target"]): x for x in taught.ask("GET", "/status")[1]["lines"]}
    drifter = lines["drifter", "ttft"]
    assert drifter["drifts"] >= 1 and drifter["rows"] == 400
    assert drifter["actual_ms"] == pytest.approx(slow[-1]["actual_ttft_ms"])
    status, text = taught.ask("GET", "/metrics")
    assert status == 200
    assert 'arcpoint_predictor_drifts{label="drifter",target="ttft"}' in text
    assert 'arcpoint_predictor_coverage{label="l4",target="tpot"}' in text


def test_labels_from_outside_are_bounded_and_escaped(taught):
    rng = Random(5)
    many = [entry(rng, f'x"{k}\n', 40.0) for k in range(600)]
    assert taught.ask("POST", "/add_training_data_bulk", {"entries": many})[0] == 202
    lines = taught.ask("GET", "/status")[1]["lines"]
    assert len(lines) <= 2 * 256 + 2
    assert all(" " in line or not line for line in taught.ask("GET", "/metrics")[1].split("\n"))


def test_web_pages_are_refused(taught):
    assert taught.ask("GET", "/status", Origin="http://evil.example")[0] == 403
    assert taught.ask("GET", "/status", Host="evil.example")[0] == 403
    assert taught.ask("GET", "/nothing")[0] == 404 and taught.ask("GET", "/predict")[0] == 405
