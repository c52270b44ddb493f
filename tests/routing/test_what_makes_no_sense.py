"Numbers that are none, texts where names are meant, words that say next to nothing."

import copy
import pickle
from datetime import UTC, datetime
from decimal import Decimal
from email.utils import format_datetime
from math import inf, nan

import numpy as np
import pytest

from arcpoint_ce import Backend, NoBackend, Outcome, Request, Router, RouterConfig, Tier
from arcpoint_ce.routing.outcomes import classify

NOW = 1_900_000_000.0  # s since 1970, as real clocks have it


@pytest.mark.parametrize(
    "bad, error",
    [
        (dict(tokens_out=nan), ValueError),
        (dict(tokens_out=inf), ValueError),
        (dict(tokens_out=10**400), ValueError),
        (dict(tokens_in=-1), ValueError),
        (dict(tokens_out=None), TypeError),
        (dict(tokens_in="12"), TypeError),
        (dict(cost_usd=nan), ValueError),
        (dict(cost_usd=-1.0), ValueError),
        (dict(cost_usd="0.01"), TypeError),
        (dict(ts_s=nan), ValueError),
        (dict(ts_s=None), TypeError),
        (dict(ok="false"), TypeError),
        (dict(latency_ms="30"), TypeError),
        (dict(status="503"), TypeError),
        (dict(error={"code": 503}), TypeError),
        (dict(decision="7"), TypeError),
    ],
    ids=str,
)
def test_an_outcome_names_what_it_does_not_take(bad, error):
    with pytest.raises(error, match=next(iter(bad))):
        Outcome("a", **dict(ts_s=0.0, latency_ms=30.0) | bad)


def test_an_outcome_takes_what_other_libraries_count_with():
    o = Outcome("a", 0.0, np.float32(30.0), np.True_, tokens_out=np.int64(5), cost_usd=Decimal("1"))
    assert (o.ok, o.tokens_out, o.cost_usd) == (True, 5, 1.0) and type(o.cost_usd) is float
    failed = Outcome("a", 0.0, 30.0, error=TimeoutError("read timed out"))
    assert (failed.error, failed.verdict.timed_out) == ("TimeoutError: read timed out", True)


REQUESTS = [
    (dict(tokens_in=nan), ValueError),
    (dict(tokens_out=nan), ValueError),
    (dict(tokens_in=-5, tokens_out=5), ValueError),
    (dict(tokens_out=inf), ValueError),
    (dict(max_cost_usd=nan), ValueError),
    (dict(min_quality=nan), ValueError),
    (dict(slo_ms=-1.0), ValueError),
    (dict(slo_ms=nan), ValueError),
    (dict(regions="eu-west"), TypeError),
    (dict(tags="vision"), TypeError),
    (dict(tags=["vision"]), TypeError),
]


@pytest.mark.parametrize("ask", ["decide", "rank", "claim"])
@pytest.mark.parametrize("bad, error", REQUESTS, ids=str)
def test_a_request_that_makes_no_sense_is_refused_and_holds_nothing(ask, bad, error):
    router = Router([Backend("a", tpm=1000.0, rpd=50.0, most_at_once=1, region="eu")])
    router.decide(Request(tokens_in=5), 0.0)  # views of usual requests are kept
    how = ("a", 62.0) if ask == "claim" else (62.0,)
    before = router.in_flight()
    with pytest.raises(error, match=f"Request.{next(iter(bad))}"):
        getattr(router, ask)(Request(**bad), *how)
    assert router.in_flight() == before


def test_what_is_no_request_is_named():
    with pytest.raises(TypeError, match="a Request is needed, got dict"):
        Router([Backend("a")]).decide({"model": "m"}, 0.0)


@pytest.mark.parametrize("name", ["models", "tasks", "tiers", "tags"])
def test_names_are_not_given_as_one_text(name):
    with pytest.raises(TypeError, match=rf"{name} holds names: write \('gpt-4o',\)"):
        Backend("a", **{name: "gpt-4o"})
    router = Router([Backend("east"), Backend("west")])
    with pytest.raises(TypeError, match="without"):
        router.retry(router.decide(Request(), 0.0), 0.1, without="west")


@pytest.mark.parametrize(
    "bad",
    [dict(slow_start_s=nan), dict(slow_start_s=-5.0), dict(act_s=inf), dict(lease_s=nan)],
    ids=str,
)
def test_settings_that_make_no_sense_are_named(bad):
    with pytest.raises(ValueError, match=next(iter(bad))):
        RouterConfig(**bad)
    with pytest.raises(ValueError, match="two tiers are called 'gold'"):
        Router([Backend("a")], tiers=[Tier("gold"), Tier("gold", 50.0)])
    for wrong, why in (
        (dict(policy="p2c"), "policy must have"),
        (dict(tiers=["gold"]), "of the class Tier"),
        (dict(config=dict(slo_ms=3.0)), "must be a RouterConfig"),
    ):
        with pytest.raises(TypeError, match=why):
            Router([Backend("a")], **wrong)
    for wrong, why in ((dict(last_resort="no"), "last_resort"), (dict(callers_retry=1), "callers")):
        with pytest.raises(TypeError, match=why):
            RouterConfig(**wrong)
    with pytest.raises(TypeError, match="a Backend is needed, got 'east'"):
        Router(["east"])


MASKED = dict(
    caller=(
        "openai.APIError: context_length_exceeded",
        "APIError: This model's maximum context length is 8192 tokens",
        "stream error: content_filter",
        "upstream returned invalid_request_error",
        "OpenAI API Error: model_not_found",
        "InvokeModelWithResponseStream: Input is too long for requested model.",
        "The input token count (40000) exceeds the maximum number of tokens allowed",
        "Request payload size exceeds the limit: 20971520 bytes.",
        "Please reduce the length of the messages or completion.",
        "BLOCKLIST",
        "SPII",
        "Your organization has been disabled",
        '{"code": "DataInspectionFailed", "message": "may contain inappropriate content."}',
        "user and assistant roles should be alternating",
        "registry.ollama.ai/library/x does not support tools",
        "We could not parse the JSON body of your request.",
        "The provided model identifier is invalid.",
        "系统检测到输入或生成内容可能包含不安全或敏感内容",
    ),
    cancelled=(
        "connection closed by client",
        "stream aborted by the user",
        "connection reset: client disconnected",
        "upstream request cancelled: client disconnected",
        "client prematurely closed connection",
        "Request was aborted.",
    ),
    backend=(
        "APIResponseValidationError",
        "dial tcp: lookup api.vendor.example: no such host",
        "InvalidStatusCode: server rejected WebSocket connection: HTTP 502",
        "InvalidChunkLength",
        "invalid chunked encoding from upstream",
        "Internal server error: model not found",
        "The operation was aborted due to timeout",
        "net/http: request canceled (Client.Timeout exceeded while awaiting headers)",
        "TaskCanceledException: canceled due to the configured HttpClient.Timeout of 100 seconds",
        "Request aborted: server shutting down",
        "downstream inference server returned 500",
        "upstream sent too big header while reading response header from upstream",
        "FileNotFoundError: [Errno 2] No such file or directory: /models/x/config.json",
        "Authentication service timed out",
        "safety checker failed with CUDA out of memory",
        "the user quota service is unavailable",
    ),
    throttled=(
        "ThrottlingException: Too many tokens, please wait before trying again.",
        "Your credit balance is too low to access the API",
        "You are using a Trial key, which is limited to 10 API calls / minute",
        "max organization concurrency: 1, please try again after 1 seconds",
        "您当前使用该API的并发数过高",
        "用户额度不足",
        "error code: 1015",
    ),
)


@pytest.mark.parametrize("kind", MASKED)
def test_the_word_that_says_most_decides_wherever_it_stands(kind):
    assert {text: classify(error=text).kind for text in MASKED[kind]} == dict.fromkeys(
        MASKED[kind], kind
    )


def test_an_error_beside_status_0_says_whose_fault_it_was():
    assert classify(0).kind == classify(0, "DC").kind == "cancelled"
    assert classify(0, "connect: connection refused").kind == "backend"
    assert classify(0, "context deadline exceeded").timed_out
    assert classify(498).kind == "backend"  # Groq: its flexible tier is full
    for text in ("stream timeout", "SocketTimeoutException", "upstream connect error: deadline"):
        assert classify(error=text).timed_out


def held_s(headers):
    "How long a backend is held back by headers, s; 0: not at all."
    router = Router([Backend("a"), Backend("b")])
    router.hear_limits("a", headers, NOW)
    told = next(x for x in router.status(NOW) if x["backend"] == "a")
    return told.get("held_s") or 0.0


@pytest.mark.parametrize(
    "headers, wait_s",
    [
        ({"Retry-After": "40"}, 40.0),
        ({"retry-after": format_datetime(datetime.fromtimestamp(NOW + 40, UTC), True)}, 40.0),
        ({"retry-after": str(int(NOW) + 40)}, 40.0),
        ({"retry-after": str(int(NOW * 1000) + 40_000)}, 40.0),
        ({"retry-after": str(int(NOW) - 40)}, 0.0),
        ({"retry-after": "259200"}, 86_400.0),
        ({"x-ms-retry-after-ms": "30000"}, 30.0),
        ({b"retry-after": b"40"}, 40.0),
        ({"x-ratelimit-remaining-requests": "0", "x-ratelimit-reset-requests": "1m20s"}, 80.0),
        ({"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "250ms"}, 0.25),
        ({"x-ratelimit-remaining-requests": "3", "x-ratelimit-reset-requests": "1m20s"}, 0.0),
        (
            {
                "anthropic-ratelimit-requests-remaining": "0",
                "anthropic-ratelimit-requests-reset": datetime.fromtimestamp(
                    NOW + 90, UTC
                ).isoformat(),
            },
            90.0,
        ),
        ({"x-ratelimit-remaining-req-minute": "0"}, 60.0 - NOW % 60.0),
        ({"x-ratelimit-remaining": "0"}, 0.0),  # of a second, a minute or a day: nobody says
    ],
    ids=str,
)
def test_a_backend_is_left_alone_for_as_long_as_headers_say_in_any_form(headers, wait_s):
    assert held_s(headers) == pytest.approx(wait_s, abs=0.01)


def test_a_claim_that_is_refused_says_when_to_come_back_as_a_decision_does():
    router = Router([Backend("a", rpm=1.0), Backend("b")])
    router.claim(Request(), "a", 1.0)
    with pytest.raises(NoBackend) as refused:
        router.claim(Request(), "a", 1.0)
    assert refused.value.retry_after_s == pytest.approx(59.0)
    router.hear_limits("b", {"retry-after": "30"}, 2.0)
    with pytest.raises(NoBackend) as refused:
        router.claim(Request(), "b", 2.0)
    assert refused.value.retry_after_s == pytest.approx(30.0)


def test_a_moment_of_another_clock_holds_nobody_for_years():
    router = Router([Backend("a")], config=RouterConfig(last_resort=False))
    router.observe(Outcome("a", 100.0, 30.0, status=429, retry_after_s=NOW))
    with pytest.raises(NoBackend) as refused:
        router.decide(Request(), 101.0)
    assert refused.value.retry_after_s <= 60.0


@pytest.mark.parametrize(
    "how",
    [
        lambda: (Router([Backend("a", most_at_once=4)]), Request(slo_ms=1_800_000.0)),
        lambda: (Router([Backend("a", most_at_once=4, slo_ms=1_800_000.0)]), Request()),
        lambda: (
            Router([Backend("a", most_at_once=4)], tiers=[Tier("batch", 1_800_000.0)]),
            Request(tier="batch"),
        ),
    ],
    ids=["request", "backend", "tier"],
)
def test_a_reservation_lasts_as_long_as_the_limit_of_its_request(how):
    router, request = how()
    for k in range(4):
        router.decide(request, float(k))
    with pytest.raises(NoBackend):
        router.decide(request, 900.0)  # all four still run, within their limit


def test_a_refusal_can_be_sent_to_another_process():
    refusal = NoBackend((("a", "is down"),), 12.0)
    for again in (pickle.loads(pickle.dumps(refusal)), copy.deepcopy(refusal)):
        assert str(again) == str(refusal)
        assert (again.excluded, again.retry_after_s) == (refusal.excluded, 12.0)
