"Whose fault a failure was, in the words of providers, client libraries and proxies."

import pytest

from arcpoint_ce import Backend, Outcome, Request, Router
from arcpoint_ce.routing.outcomes import classify

WORDS = dict(
    backend=(
        "ClientPayloadError: Response payload is not completed: <TransferEncodingError: 400, "
        "message='Not enough data for satisfy transfer length header.'>",
        "aiohttp.http_exceptions.BadStatusLine: 400, message: Bad status line 'invalid HTTP'",
        "ContentLengthError: 400, message='Not enough data for satisfy content length header.'",
        "invalid character '<' looking for beginning of value",
        "No deployments available for selected model, Try again in 60 seconds.",
        "MemoryError",
        "OSError: [Errno 24] Too many open files",
        "getaddrinfo EAI_AGAIN api.vendor.example",
        "ray.exceptions.RayActorError: The actor died unexpectedly before finishing this task.",
        "BackPressureError: Request dropped due to backpressure",
        "model requires more system memory (8.4 GiB) than is available (5.2 GiB)",
        "CallNotPermittedException: CircuitBreaker 'x' is OPEN",
        "TooManyRedirects: Exceeded maximum allowed redirects.",
        "NCCL error: unhandled system error",
        "write EPIPE",
        "curl: (52) Empty reply from server",
        "LocalProtocolError: Can't send data when our state is ERROR",
    ),
    caller=(
        "ResourceExhausted: grpc: received message larger than max (5242880 vs. 4194304)",
        "No tool call found for function call output with call_id call_7.",
        "must be followed by tool messages responding to each 'tool_call_id'",
        "httpx.LocalProtocolError: Illegal header value b'Bearer '",
        "Failed to download image from https://vendor.example/y.png.",
        "response.incomplete: max_output_tokens",
        "Expected last role User or Tool for serving but got assistant",
        "guided decoding: Invalid grammar specification",
        "`truncate` must be strictly positive and less than 1024",
        "At most 1 image(s) may be provided in one request.",
        "No allowed providers are available for the selected model.",
        "Your account does not have an agreement to this model.",
        "UnicodeEncodeError: 'utf-8' codec can't encode character: surrogates not allowed",
    ),
    cancelled=("KeyboardInterrupt", "java.lang.InterruptedException"),
    throttled=("BulkheadFullException: Bulkhead 'x' is full and does not permit further calls",),
)


@pytest.mark.parametrize("kind", WORDS)
def test_what_providers_and_client_libraries_say_is_known(kind):
    told = {text: classify(error=text) for text in WORDS[kind]}
    assert {text: v.kind for text, v in told.items()} == dict.fromkeys(WORDS[kind], kind)
    assert [text for text, v in told.items() if not v.known] == []


def test_a_connection_that_timed_out_is_a_lower_bound():
    for text in ("connect ETIMEDOUT 10.0.0.1:443", "ESOCKETTIMEDOUT", "read timedout"):
        assert classify(error=text).timed_out, text


@pytest.mark.parametrize(
    "status, error",
    [
        (400, "API key not valid. Please pass a valid API key. INVALID_ARGUMENT API_KEY_INVALID"),
        (400, "API Key not found. Please pass a valid API key."),
        (412, "Your account is suspended"),
        (None, "botocore.exceptions.NoCredentialsError: Unable to locate credentials"),
        (None, "CredentialsProviderError: Could not load credentials from any providers"),
        (None, "NoCredentialProviders: no valid providers in chain"),
        (None, "google.auth.exceptions.RefreshError: ('invalid_grant: Bad Request')"),
        (None, "OAuth token has expired. Please obtain a new token."),
        (None, "AADSTS7000222: The provided client secret keys for app are expired."),
        (None, "No auth credentials found"),
    ],
    ids=str,
)
def test_a_key_that_everybody_is_refused_with_is_dead_whatever_the_status(status, error):
    router = Router([Backend("a", capacity=50), Backend("b", capacity=50)])
    router.roll(0.0)
    for k in range(12):
        o = Outcome("a", 1 + k / 10, 20.0, False, error, status=status)
        assert o.kind == "caller"
        router.observe(o)
    assert set(router.dead_keys()) == {"a"}
    assert {router.decide(Request(), 3 + k / 10).backend for k in range(50)} == {"b"}


def test_a_caller_whose_content_is_refused_says_nothing_of_the_key():
    for text in ("content_filter", "blocked by moderation: unauthorized content"):
        assert not classify(400, text).key_refused
