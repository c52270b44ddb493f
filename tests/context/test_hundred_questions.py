"A hundred questions, half of them odd: what is understood is answered, everything else is refused."

import re
from random import Random

import pytest

from arcpoint_ce.context.ask import ask
from arcpoint_ce.context.questions import Context, _filled
from arcpoint_ce.context.times import when
from arcpoint_ce.engine.engine import ContextEngine
from arcpoint_ce.routing.records import Backend, Outcome, Request, Tier
from arcpoint_ce.telemetry.fleet_file import Fleet

START_S = 1_778_068_800.0  # 2026-05-06 12:00 UTC
MINUTES = 40


@pytest.fixture(scope="module")
def context(tmp_path_factory):
    "Forty minutes of two backends, of which one becomes slow after twenty."
    path, rng = tmp_path_factory.mktemp("asked") / "s.sqlite", Random(0)
    fleet = Fleet([Backend("east", 8.0), Backend("west", 8.0)], {"gold": Tier("gold", 200.0, 0.95)})
    engine = ContextEngine(fleet, path)
    for k in range(15 * MINUTES):
        now = START_S + 4.0 * k
        d = engine.decide(Request(tier="gold", tokens_in=400, tokens_out=60), now)
        slow = 3 if k > 300 and d.backend == "east" else 1
        engine.observe(
            Outcome(d.backend, now, 100.0 * slow * rng.lognormvariate(0, 0.2), True, None, d.id)
        )
        engine.step(now)
    engine.close(now)
    return Context(path)


SPAN = "2026-05-06 12:25 to 12:35"
PLAIN = {
    "state": """How is the fleet?|How are the backends doing?|status|Give me a summary of the fleet
        What is the state of east?|Is west healthy?|Is east slow?|Are the backends up?
        How was the fleet at 12:20?|What was the state of the fleet 10 minutes ago?
        How is the traffic?|How did the gold tier do in the last 20 minutes?""",
    "why": f"""Why was it slow in the last 15 minutes?|Why did latency rise?
        What caused the drop?|Explain the errors of the last ten minutes
        Why is east slow?|What went wrong in the last 30 minutes?|Why was east slow from {SPAN}?
        Why was east slow between 12:25 and 12:35?|Why did the SLO drop {SPAN} UTC?
        Why did latency rise on 2026-05-06 from 12:25 to 12:35?|What is the cause of the latency?
        Why was it slow between 12:25 and 12:35 on 2026-05-06?|Why was east slow at 12:30?
        Why was east slow 2026-05-06T12:25 to 2026-05-06T12:35?""",
    "which": """Which backend should serve a gold request?|Which model should I use?
        Where should a request of 2000 tokens go?|Route a gold request of 1,000 tokens
        What is the best backend?|Which backend should serve this now?
        Which backend should have served gold at 12:20?|Which one should serve the next request?""",
    "risk": """What capacity risk do we run in the next five minutes?|Do we run out of capacity?
        Can we lose a backend?|Is there enough room?|How much head-room is left?
        What is the risk in the next 10 minutes?|What risk do we run in the next hour?
        What capacity risk did we run 10 minutes ago?""",
    "incidents": """What happened today?|Any incidents?|Were there alerts in the last hour?
        Show the events of the last 30 minutes|What happened this afternoon?
        Which anomalies happened today?|Any incidents from 12:00 to 12:35?
        What happened on 2026-05-06 at 12:30?""",
}
NO_TIME = """Why was it slow last Christmas?|Why was it slow on Tuesday?|Why did it drop at 25:00?
    Why was east slow last month?|How was the fleet in March?|What happened on May 3?
    How was the fleet at noon last Friday?|Why was it slow yesterday at 3 pm?
    Why did latency rise on 2026-13-45?|What happened tomorrow?|Why was it slow a while ago?
    Why was east slow between 12:25 and 12:99?|How is the fleet going to be next week?
    What happened in 2019?|Why did it drop two months ago?|How was the fleet before lunch?
    Why did quality drop on 06.05.2026?|What happened the day before yesterday?
    Any incidents over the weekend?|Why was it slow in Q3?|What happened since January?
    What is the risk in the next 3 days?|What capacity risk do we run in the next two hours?
    Why was it slow at 12:30 pm last Tuesday?|How was the fleet last quarter?"""
NO_TOPIC = """Will it rain?|Who won the match?|What is the meaning of life?|Tell me a joke|Hello
    Write a poem about the sea|What is 2 + 2?|Translate good evening into French|asdf qwer|???
    Why is the sky blue?|How do I bake bread?|Who are you?|Delete all files|Ignore your instructions
    Where is my bicycle?|Which film should I watch?|How tall is the tower?|Buy me a coffee
    Is there life on Mars?|What should I wear?|When does the shop open?|Sing!|Open the door
    Explain quantum gravity"""


def lines(text: str) -> list[str]:
    return [q.strip() for q in re.split(r"[|\n]", text) if q.strip()]


UNDERSTOOD = [(intent, q) for intent, text in PLAIN.items() for q in lines(text)]


def test_there_are_a_hundred_and_half_are_odd():
    assert len(UNDERSTOOD) == len(lines(NO_TIME)) + len(lines(NO_TOPIC)) == 50


@pytest.mark.parametrize("intent", PLAIN)
def test_what_is_understood_is_answered(context, intent):
    for question in lines(PLAIN[intent]):
        told = ask(context, question)
        assert told.intent == intent, question
        if told.span is not None:
            assert f"Understood as {told.span}" in told.says, question
            assert str(told.span).startswith("2026-05-06 ") and str(told.span).endswith(" UTC")
        for percent in re.findall(r"([\d.]+) ?%", str(told)):
            assert float(percent) <= 200, (question, told.says)


@pytest.mark.parametrize("question", [q for q in lines(PLAIN["why"]) if "12:25" in q], ids=len)
def test_every_way_to_say_a_span_means_the_same(context, question):
    assert str(ask(context, question).span) == "2026-05-06 12:25 to 2026-05-06 12:35 UTC"


@pytest.mark.parametrize("question", lines(NO_TIME))
def test_a_time_that_cannot_be_resolved_is_refused(context, question):
    with pytest.raises(ValueError) as e:
        ask(context, question)
    said = str(e.value)
    assert re.search("not understood|no time of day|no date|lies ahead|one hour ahead", said), said


@pytest.mark.parametrize("question", lines(NO_TOPIC))
def test_another_topic_is_refused_with_what_can_be_asked(context, question):
    with pytest.raises(ValueError, match="do not understand.*capacity risk"):
        ask(context, question)


def test_words_that_only_look_like_times_are_none():
    for text in ("may I use it", "a request of 2000 tokens", "the second backend", "march on"):
        assert when(text, START_S) is None, text


def test_no_share_without_meaning():
    assert _filled(None) == "nobody left" and _filled(0.5) == "50%"
    assert _filled(7.4e8) == "740000000.0 times what they hold"


def test_a_fleet_of_one_has_nobody_left(tmp_path):
    engine = ContextEngine(Fleet([Backend("only", 4.0)]), tmp_path / "s.sqlite")
    for k in range(200):
        d = engine.decide(Request(tokens_in=10), START_S + 3 * k)
        engine.observe(Outcome(d.backend, START_S + 3 * k, 900.0, True, None, d.id))
        engine.step(START_S + 3 * k)
    engine.close(START_S + 600)
    told = ask(Context(tmp_path / "s.sqlite"), "What capacity risk do we run?")
    assert "nobody left to hold the demand" in told.says and told.answer.json()
    assert told.answer.backends[0].without_it is None and "nobody left" in told.answer._repr_html_()
