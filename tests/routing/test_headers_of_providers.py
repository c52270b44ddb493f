"Rate-limit headers as providers and proxies write them."

from datetime import UTC, datetime

import pytest

from arcpoint_ce import Backend, Request, Router
from arcpoint_ce.routing.limits import read_limits

NOW = 1_809_864_007.0  # 2027-05-09 12:00:07 UTC


def held_s(headers):
    "How long a backend is held back by headers, s; 0: not at all."
    router = Router([Backend("a"), Backend("b")])
    router.hear_limits("a", headers, NOW)
    told = next(x for x in router.status(NOW) if x["backend"] == "a")
    return told["held_s"] or 0.0


def iso(after_s):
    return datetime.fromtimestamp(NOW + after_s, UTC).isoformat()


@pytest.mark.parametrize(
    "headers, wait_s",
    [
        (
            {
                "anthropic-ratelimit-output-tokens-remaining": "0",
                "anthropic-ratelimit-output-tokens-reset": iso(20),
            },
            20.0,
        ),
        ({"ratelimitbysize-remaining": "0", "ratelimitbysize-reset": "25"}, 25.0),
        (
            {
                "x-ratelimit-remaining-tokens-minute": "0",
                "x-ratelimit-reset-tokens-minute": "11.38",
            },
            11.38,
        ),
        (
            {"x-ratelimit-remaining-requests-day": "0", "x-ratelimit-reset-requests-day": "3600.5"},
            3600.5,
        ),
        ({"X-RateLimit-Remaining-Hour": "0", "RateLimit-Reset": "53"}, 53.0),
        ({"x-ratelimit-remaining-tokens": "-120", "x-ratelimit-reset-tokens": "6s"}, 6.0),
        ({"x-ratelimit-remaining-requests": "-1", "x-ratelimit-reset-requests": "6s"}, 0.0),
        ({"RateLimit": '"default";r=0;t=30'}, 30.0),
        ({"RateLimit": '"burst";r=5;t=1, "daily";r=0;t=7200'}, 7200.0),
        ({"RateLimit": "limit=100, remaining=0, reset=30"}, 30.0),
        ({"RateLimit": '"default";r=5;t=30'}, 0.0),
        ({"retry-after": "30, 30"}, 30.0),
        ({"retry-after": "30, soon"}, 0.0),
    ],
    ids=str,
)
def test_a_spent_limit_is_seen_in_the_words_of_each_provider(headers, wait_s):
    assert held_s(headers) == pytest.approx(wait_s, abs=0.01)


def test_only_limits_of_a_minute_are_entered_in_the_books_of_a_minute():
    left = read_limits(
        {
            "x-ratelimit-remaining-requests-minute": "7",
            "x-ratelimit-remaining-requests-day": "2",
            "x-ratelimit-remaining-tokens-minute": "900",
            "anthropic-ratelimit-input-tokens-remaining": "800",
            "anthropic-ratelimit-output-tokens-remaining": "3",
        }
    )
    assert (left.requests, left.tokens, left.tokens_in) == (7, 900, 800) and not left.spent


def test_of_two_limits_of_one_kind_the_smaller_rest_counts():
    router = Router([Backend("a", tpm=10_000.0), Backend("b", capacity=0.01)])
    headers = {
        "x-ratelimit-remaining-tokens": "5000",
        "x-ratelimit-remaining-project-tokens": "100",
    }
    router.hear_limits("a", headers, 30.0)
    sent = {router.decide(Request(tokens_in=500), 50.0 + k / 10).backend for k in range(20)}
    assert sent == {"b"}
