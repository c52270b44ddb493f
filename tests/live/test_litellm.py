"LiteLLM's own router and its real proxy, with the engine as their callback."

import asyncio
import os
import subprocess
import sys
import time
from datetime import datetime
from importlib.util import find_spec

import pytest
from stub_provider import StubProvider, free_port
from waiting import until

from arcpoint_ce.live.litellm import ArcpointLogger
from arcpoint_ce.routing.records import Backend

os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")  # no look at the internet
pytestmark = [
    pytest.mark.skipif(
        find_spec("litellm") is None,
        reason="litellm is not installed: pip install 'arcpoint_ce[litellm]'",
    ),
    pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning"),
    pytest.mark.xdist_group("litellm"),  # its import takes seconds: one worker pays
]
HELLO = [{"role": "user", "content": "hello"}]


RUNNER = asyncio.Runner()  # LiteLLM's log belongs to one event loop


def made(fleet, **how):
    "A logger that is patient with a busy machine."
    return ArcpointLogger(fleet, **dict(dict(budget_ms=2000.0), **how))


def offered(*names):
    return [{"model_name": "m", "model_info": {"id": name}} for name in names]


def filtered(logger, names=("a", "b"), metadata=None, messages=None):
    asked = {"metadata": {"model_group": "m"} if metadata is None else metadata}
    left = logger.async_filter_deployments("m", offered(*names), messages, asked)
    return [d["model_info"]["id"] for d in RUNNER.run(left)]


@pytest.fixture
def logger():
    with_two = made([Backend("a"), Backend("b")])
    yield with_two
    with_two.close()


async def asyncio_until(true, limit_s=30.0):
    end_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < end_s, "waited in vain"
        await asyncio.sleep(0.01)


# ---- the filter itself


def test_it_is_a_custom_logger_that_overrides_the_hooks_itself(logger):
    from litellm.integrations.custom_logger import CustomLogger

    assert isinstance(logger, CustomLogger) and isinstance(logger, ArcpointLogger)
    # LiteLLM's proxy looks at the class itself, not at what it inherits
    for hook in (
        "async_post_call_streaming_iterator_hook",
        "async_post_call_response_headers_hook",
    ):
        assert hook in type(logger).__dict__


def test_a_list_is_narrowed_to_one_and_an_open_breaker_is_avoided(logger):
    assert len(filtered(logger)) == 1
    logger.engine.router.force("a", "open", logger.clock(), "tested")
    assert {filtered(logger)[0] for _ in range(20)} == {"b"}


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_the_wanted_length_counts_by_either_name(logger, name):
    asked = {"metadata": {"model_group": "m"}, name: 700}
    RUNNER.run(logger.async_filter_deployments("m", offered("a", "b"), None, asked))
    (decision,) = logger.engine.router._reservations.open.values()
    assert decision.request.tokens_out == 700


def test_only_what_is_offered_is_chosen(logger):
    assert {filtered(logger, ("a",))[0] for _ in range(5)} == {"a"}
    assert {filtered(logger, ("b", "new"))[0] for _ in range(60)} == {"b", "new"}
    assert "new" in {b.name for b in logger.engine.router.backends}


def test_in_shadow_mode_the_list_is_unchanged():
    logger = made([Backend("a"), Backend("b")], shadow=True)
    assert filtered(logger) == ["a", "b"]
    assert logger.counts["unchanged"] == 1 and not any(logger.engine.router.in_flight().values())
    logger.close()


@pytest.mark.parametrize("how", ["raises", "slow", "stale"])
def test_it_fails_open(how):
    now = [1000.0]
    clock = dict(clock=lambda: now[0], stale_s=60.0, budget_ms=400.0)
    logger = made([Backend("a"), Backend("b")], **clock)
    decide = logger.engine.decide

    def broken(request, at_s):
        if how == "raises":
            raise RuntimeError("broken")
        time.sleep(0.5)
        return decide(request, at_s)

    if how == "stale":
        assert len(filtered(logger)) == 1
        logger.engine.stop()
        now[0] += 61.0
        assert filtered(logger) == ["a", "b"] and logger.counts["stale"] == 1
    else:
        logger.engine.decide = broken
        assert filtered(logger) == ["a", "b"]
        assert logger.counts["raised" if how == "raises" else "over_budget"] == 1
        logger.engine.decide = decide
        assert len(filtered(logger)) == (2 if how == "slow" else 1)  # slow: left alone a while
        now[0] += 11.0
        assert len(filtered(logger)) == 1
    logger.close()


def test_a_decision_over_the_budget_reserves_nothing(logger):
    decide = logger.engine.decide
    logger._doubts.budget_ms = 1.0
    logger.engine.decide = lambda *a: (time.sleep(0.02), decide(*a))[1]
    metadata = {"model_group": "m"}
    filtered(logger, metadata=metadata)
    assert metadata == {"model_group": "m"}
    assert not any(logger.engine.router.in_flight().values())


def test_a_retry_that_was_taken_back_teaches_by_the_mark_in_an_older_copy(logger):
    metadata = {"model_group": "m"}
    [first] = filtered(logger, metadata=metadata)
    older = dict(metadata)
    failed = dict(metadata=metadata, model_info=dict(id=first))
    RUNNER.run(logger.async_post_call_failure_deployment_hook(failed, OSError("broken"), None))
    logger._doubts.budget_ms = 0.0
    assert filtered(logger, metadata=metadata) == ["a", "b"]
    began = datetime.now()
    log = dict(litellm_params=dict(metadata=older, model_info=dict(id="b")))
    for _ in range(2):  # told again, it teaches nothing more
        RUNNER.run(logger.async_log_success_event(log, None, began, began))
    assert told(logger) == 2 and not any(logger.engine.router.in_flight().values())


@pytest.mark.parametrize("engine", ["well", "stale"])
def test_a_rule_about_places_holds_even_when_the_engine_is_silent(engine):
    fleet = [Backend("a", region="eu"), Backend("b", region="us"), Backend("c")]
    now = [0.0]
    logger = made(fleet, clock=lambda: now[0])
    filtered(logger, "abc")
    if engine == "stale":
        logger.engine.stop()
        now[0] = 1e6
    for region, left in (("eu", ["a"]), ("us", ["b"]), ("mars", [])):
        asked = {"model_group": "m", "arcpoint": {"regions": [region]}}
        assert filtered(logger, "abc", asked) == left
    logger.close()


def test_a_caller_cannot_name_the_decision_of_another(logger):
    first = {"model_group": "m"}
    filtered(logger, metadata=first)
    [name] = filtered(logger, metadata={"model_group": "m", "arcpoint_decision": 1})
    served = {
        "metadata": {"model_group": "m", "arcpoint_decision": "1"},
        "model_info": {"id": name},
    }
    RUNNER.run(logger.async_post_call_success_deployment_hook(served, None, None))
    assert sum(logger.engine.router.in_flight().values()) == 2
    assert len(first["arcpoint_decision"]) > 16


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # threads and forks: what is tested
def test_the_child_of_a_fork_gets_a_worker_of_its_own(logger):
    filtered(logger)
    pid = os.fork()
    if pid == 0:
        before = logger.engine.status(0.0)["worker"]["runs"]
        filtered(logger)
        os._exit(10 * before + logger.engine.status(0.0)["worker"]["runs"])
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1


def test_a_wish_that_there_is_not_raises(logger):
    with pytest.raises(ValueError, match="regoins"):
        filtered(logger, metadata={"arcpoint": {"regoins": ["eu"]}})


def test_unknown_settings_raise():
    with pytest.raises(TypeError, match="shade"):
        ArcpointLogger([Backend("a")], shade=True)


def test_without_litellm_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "litellm.integrations.custom_logger", None)

    class Fresh(ArcpointLogger):
        "One whose class LiteLLM has not seen."

    with pytest.raises(ModuleNotFoundError, match=r"pip install 'arcpoint_ce\[litellm\]'"):
        Fresh([])


# ---- LiteLLM's router


def routed(logger, stubs, work, **how):
    "Run `work(router)` on LiteLLM's router with one deployment per stub."
    import litellm

    async def main():
        router = litellm.Router(
            model_list=[stub.deployment(name) for name, stub in stubs.items()], **how
        )
        return await work(router)

    litellm.logging_callback_manager._reset_all_callbacks()  # it keeps one of each class
    litellm.callbacks = [logger]
    return RUNNER.run(main())


def outcomes(logger):
    logger.engine.store.flush(logger.clock())
    return logger.engine.store.rows("outcomes")


def told(logger):
    "Outcomes that the engine has heard."
    return logger.engine.router.counts["observed"]


@pytest.mark.parametrize("strategy", ["simple-shuffle", "latency-based-routing"])
def test_calls_go_where_the_engine_says_and_their_outcomes_come_back(logger, strategy):
    async def work(router):
        for _ in range(6):
            await router.acompletion(model="m", messages=HELLO)

    with StubProvider() as a, StubProvider() as b:
        logger.engine.router.force("a", "open", logger.clock(), "tested")
        routed(logger, dict(a=a, b=b), work, routing_strategy=strategy)
        assert (a.hits, b.hits) == (0, 6)
    assert told(logger) == 6 and not any(logger.engine.router.in_flight().values())
    assert outcomes(logger)[-1]["tokens_out"] == 7


def test_a_failed_attempt_is_told_and_the_retry_is_of_the_same_decision(logger):
    async def work(router):
        for _ in range(4):
            await router.acompletion(model="m", messages=HELLO)
        await asyncio.sleep(0.3)  # LiteLLM's log comes later, and must not count twice

    with StubProvider(500) as a, StubProvider() as b:
        routed(logger, dict(a=a, b=b), work, num_retries=2, retry_after=0)
        assert b.hits == 4 and a.hits >= 1
        assert told(logger) == a.hits + 4
    rows = outcomes(logger)
    failed = [r for r in rows if r["backend"] == "a"]
    assert {r["error"] for r in failed} == {"InternalServerError"}
    again = {r["decision"] for r in rows if r["attempt"] == 1}
    assert again == {r["decision"] for r in failed if r["attempt"] == 0}


def test_the_last_attempt_failing_leaves_nothing_reserved(logger):
    async def work(router):
        with pytest.raises(Exception, match="busy"):
            await router.acompletion(model="m", messages=HELLO)
        await asyncio.sleep(0.3)

    with StubProvider(503) as a, StubProvider(503) as b:
        routed(logger, dict(a=a, b=b), work, num_retries=2, retry_after=0)
        assert told(logger) == a.hits + b.hits
    assert not any(logger.engine.router.in_flight().values())


def test_a_pause_that_a_provider_asks_for_is_kept():
    logger = made([Backend("a", rpm=600), Backend("b", rpm=600)])

    async def work(router):
        for _ in range(12):
            await router.acompletion(model="m", messages=HELLO)

    with StubProvider(429, retry_after="30") as a, StubProvider() as b:
        # LiteLLM's own cooldown is off: what keeps calls away is ours
        routed(logger, dict(a=a, b=b), work, num_retries=2, retry_after=0, disable_cooldowns=True)
        assert a.hits <= 1 and b.hits == 12
    logger.close()


def test_what_a_provider_says_is_left_of_a_limit_counts():
    logger = made([Backend("a", rpm=1000)])

    async def work(router):
        await router.acompletion(model="m", messages=HELLO)

    with StubProvider(x_ratelimit_remaining_requests="3") as a:
        routed(logger, dict(a=a), work)
    [row] = [b for b in logger.engine.router.status(logger.clock()) if b["backend"] == "a"]
    assert row["limits"]["requests_left"] == 3 if "limits" in row else "requests_left" in str(row)
    logger.close()


@pytest.mark.parametrize("watched", [False, True])
def test_a_stream_reports_its_progress_and_its_end(logger, watched):
    seen = []
    progress = logger.engine.progress
    logger.engine.progress = lambda d, tokens, now: (seen.append(tokens), progress(d, tokens, now))

    async def work(router):
        stream = await router.acompletion(model="m", messages=HELLO, stream=True)
        chunks = [c async for c in (logger.watch(stream) if watched else stream)]
        await asyncio_until(lambda: told(logger) == 1)
        return chunks

    with StubProvider() as a:
        a.delay_s = 0.1
        chunks = routed(logger, dict(a=a), work)
    assert len(chunks) >= 5 and seen[:1] == [1] * watched
    [row] = outcomes(logger)
    assert row["ok"] and 100 <= row["ttft_ms"] < row["latency_ms"]
    assert logger.engine.router.in_flight()["a"] == 0


def test_a_stream_that_dies_is_a_failure(logger):
    async def work(router):
        stream = await router.acompletion(model="m", messages=HELLO, stream=True)
        try:
            async for _ in stream:
                pass
        except Exception as e:
            assert type(e).__name__ != "AssertionError"
        await asyncio_until(lambda: told(logger) >= 1)

    with StubProvider() as a:
        a.breaks_at = 2
        routed(logger, dict(a=a), work, num_retries=0)
    assert not outcomes(logger)[0]["ok"]


def test_a_caller_who_leaves_in_mid_stream_gives_the_place_back(logger):
    async def work(router):
        stream = logger.watch(await router.acompletion(model="m", messages=HELLO, stream=True))
        async for _ in stream:
            break
        await stream.aclose()

    with StubProvider() as a:
        routed(logger, dict(a=a), work)
    assert not any(logger.engine.router.in_flight().values())
    assert logger.engine.router.counts["cancelled"] == 1


def test_a_caller_whose_task_is_cancelled_gives_the_place_back(logger):
    async def silent():
        yield None
        await asyncio.sleep(600)

    async def read():
        metadata = {"model_group": "m"}
        await logger.async_filter_deployments("m", offered("a"), None, {"metadata": metadata})
        started = asyncio.Event()

        async def reader():
            data = {"metadata": metadata}
            async for _ in logger.async_post_call_streaming_iterator_hook(None, silent(), data):
                started.set()

        task = asyncio.ensure_future(reader())
        await started.wait()
        before = logger.engine.router.in_flight()["a"]
        await asyncio.sleep(0)  # it waits for the next chunk
        task.cancel()
        await asyncio.wait([task])
        return before

    assert RUNNER.run(read()) == 1
    assert logger.engine.router.in_flight()["a"] == 0


def test_in_shadow_mode_the_engine_reserves_where_litellm_went():
    logger = made([Backend("a"), Backend("b")], shadow=True)
    logger.engine.router.force("a", "open", logger.clock(), "tested")

    async def work(router):
        for _ in range(12):
            await router.acompletion(model="m", messages=HELLO)

    with StubProvider() as a, StubProvider() as b:
        routed(logger, dict(a=a, b=b), work)
        assert a.hits + b.hits == 12 and a.hits > 0  # LiteLLM picks, whatever we think
        assert logger.counts["shadow_differed"] == a.hits
    assert logger.counts["shadow_agreed"] == b.hits
    assert {meant for _, _, meant, _ in logger.shadowed} == {"b"}
    assert not any(logger.engine.router.in_flight().values())
    logger.close()


def test_calls_made_while_it_stands_aside_teach_all_the_same(logger):
    async def work(router):
        await router.acompletion(model="m", messages=HELLO)
        await asyncio.sleep(0.5)  # LiteLLM may still tell of calls of another router
        before = told(logger)
        for _ in range(3):
            await router.acompletion(model="m", messages=HELLO)
        await asyncio_until(lambda: told(logger) >= before + 3)
        await asyncio.sleep(0.2)  # none of them is told twice
        assert told(logger) == before + 3

    logger._doubts.aside_s = 600.0  # longer than the slowest start
    logger._doubts.aside_until_s = logger.clock() + 599.0
    with StubProvider() as a, StubProvider() as b:
        routed(logger, dict(a=a, b=b), work)
    assert logger.counts["aside"] == 4


# ---- the real proxy

CONFIG = """
model_list:
{models}
litellm_settings:
  callbacks: arcpoint_callback.arcpoint
  num_retries: 2
router_settings: {{retry_after: 0}}
general_settings: {{dangerously_permit_weak_or_unset_master_key: true}}
"""
MODEL = """  - model_name: m
    litellm_params: {{model: openai/x, api_base: "{base}", api_key: none}}
    model_info: {{id: {name}}}
"""
CALLBACK = """from arcpoint_ce.live.litellm import ArcpointLogger
from arcpoint_ce.routing.records import Backend
arcpoint = ArcpointLogger([Backend("a"), Backend("b")], store="run.sqlite", budget_ms=2000.0)
"""
NEEDED = ("orjson", "backoff", "apscheduler", "semver", "expression", "soundfile")


# What signs people in to the proxy's pages is no part of the test, and would double its needs.
SIGN_IN = """from pydantic import BaseModel
class OpenID(BaseModel): pass
class DiscoveryDocument(dict): pass
class SSOBase: pass
class SSOLoginError(Exception): pass
class ReusedOauthClientWarning(Warning): pass
class MicrosoftSSO(SSOBase): pass
class GoogleSSO(SSOBase): pass
def create_provider(*_, **__): raise NotImplementedError
"""


def without_sign_in(folder):
    (folder / "fastapi_sso" / "sso").mkdir(parents=True)
    for part in ("base", "microsoft", "google", "generic"):
        (folder / "fastapi_sso" / "sso" / f"{part}.py").write_text(SIGN_IN)


@pytest.mark.slow  # the proxy takes some ten seconds to start
@pytest.mark.skipif(
    any(find_spec(name) is None for name in NEEDED),
    reason="LiteLLM's proxy is not installed: pip install 'arcpoint_ce[dev]'",
)
def test_the_real_proxy_takes_the_callback_from_its_yaml(tmp_path):
    import httpx

    from arcpoint_ce.engine.store import FeedbackStore

    port = free_port()
    with StubProvider(500) as a, StubProvider() as b:
        models = "".join(MODEL.format(base=s.base, name=n) for n, s in (("a", a), ("b", b)))
        (tmp_path / "config.yaml").write_text(CONFIG.format(models=models))
        (tmp_path / "arcpoint_callback.py").write_text(CALLBACK)
        without_sign_in(tmp_path)
        command = [sys.executable, "-c", "from litellm_cli.main import proxy_server as f; f()"]
        command += ["--config", "config.yaml", "--host", "127.0.0.1", "--port", str(port)]
        log = open(tmp_path / "log", "w")
        proxy = subprocess.Popen(
            command, cwd=tmp_path, stdout=log, stderr=log, env=dict(os.environ)
        )
        try:
            with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60.0) as client:

                def up():
                    assert proxy.poll() is None, (tmp_path / "log").read_text()[-2000:]
                    try:
                        return client.get("/health/liveliness").status_code == 200
                    except httpx.TransportError:
                        return False

                until(up, "the proxy answers", 240.0)
                body = dict(model="m", messages=HELLO)
                answers = [client.post("/v1/chat/completions", json=body) for _ in range(6)]
                streamed = client.post("/v1/chat/completions", json=body | {"stream": True})
                refused = client.post(
                    "/v1/chat/completions",
                    json=body | {"metadata": {"arcpoint": {"regions": ["mars"]}}},
                )

                def told():  # LiteLLM's log tells the end of a stream some time after it
                    kept = FeedbackStore(tmp_path / "run.sqlite")
                    n = sum(r["ok"] for r in kept.rows("outcomes"))
                    kept.close()
                    return n == 7

                until(told, "every outcome is told", 60.0)
        finally:
            proxy.terminate()
            proxy.wait(30)
            log.close()
        assert [r.status_code for r in answers] == [200] * 6, answers[0].text
        assert {r.headers["x-arcpoint-backend"] for r in answers} == {"b"}
        assert all(r.headers["x-arcpoint-reason"].startswith("b: ") for r in answers)
        assert len({r.headers["x-arcpoint-decision-id"] for r in answers}) == 6
        assert "t4 " in streamed.text and "[DONE]" in streamed.text
        assert refused.status_code >= 400
        assert b.hits == 7 and a.hits >= 1
    store = FeedbackStore(tmp_path / "run.sqlite")
    rows = store.rows("outcomes")
    assert sum(r["ok"] for r in rows) == 7 and {r["backend"] for r in rows} == {"a", "b"}
    store.close()
