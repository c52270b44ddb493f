"One engine: whoever builds one from a fleet file gets the same product."

from dataclasses import asdict
from pathlib import Path

import pytest

from arcpoint_ce import ContextEngine, load_fleet
from arcpoint_ce.engine.store import FeedbackStore, NullStore

FLEET = """[tiers.fast]
slo_ms = 2000
[tiers.slow]
slo_ms = 8000
[[backend]]
name = "one"
capacity = 16
price_out = 4.0
[[backend]]
name = "two"
capacity = 24
rpm = 600
[[backend]]
name = "three"
capacity = 12
slo_ms = 1500
"""
LOG_S = 1_714_521_600  # begin of the log, s


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("one") / "fleet.toml"
    file.write_text(FLEET)
    return file


def program(path):
    return ContextEngine(load_fleet(path))


def laboratory(path):
    from arcpoint_ce.lab.chaos import site_of
    from arcpoint_ce.lab.contest import ours

    site = site_of(load_fleet(path), n=200)
    return ours(site, store=NullStore()).make(site.backends, 0)


def laboratory_with_a_past(path):
    from arcpoint_ce.lab.chaos import ours_at, site_of

    site = site_of(load_fleet(path), n=200)
    return ours_at(site).make(site.backends, 0)


def family_world(path):
    "The contender of `arcpoint experiment`; its fleet is the family's own."
    from arcpoint_ce.lab.contest import contenders
    from arcpoint_ce.lab.worlds import Setting, World

    (gateway,) = contenders(
        "ours", World(Setting("gray_failure", 0, n=200)), dict(store=NullStore()), {}
    )
    return gateway.make(tuple(load_fleet(path)), 0)


def simulation(path):
    from arcpoint_ce.apps.simulate import make_stage

    stage = make_stage(path, "backend_down", None, requests=200)
    return stage.router().make(stage.backends, 0)


def dashboards_demo(path):
    from arcpoint_ce.apps.simulate import _live_gateway, make_stage

    stage = make_stage(path, "backend_down", None, requests=200)
    return _live_gateway(stage, FeedbackStore()).make(stage.backends, 0)


def log_of(path):
    "A short request log of this fleet, as a source."
    from arcpoint_ce.telemetry.source import load_steps

    rows = [
        f"{LOG_S + k * 2},{('one', 'two', 'three')[k % 3]},{800 + 10 * (k % 7)},true,300,60"
        for k in range(600)
    ]
    log = path.with_name("log.csv")
    log.write_text("\n".join(["ts,backend,latency_ms,ok,tokens_in,tokens_out", *rows]))
    return load_steps(str(log))


def replay(path):
    from arcpoint_ce.apps.cli import _replayed

    _, engine, _ = _replayed(log_of(path), load_fleet(path), 0.0, None, 0.5, {})
    return engine


def decide(path):
    from arcpoint_ce.apps.cli import _engine_at_end

    engine, _ = _engine_at_end(log_of(path), load_fleet(path), None, 0, {})
    return engine


def service(path):
    from arcpoint_ce.context.service import make_service

    return make_service(None, load_fleet(path), clock=lambda: 0.0).engine


def kinds(forecaster):
    "A forecaster with its parts and how each is set up."
    parts = getattr(getattr(forecaster, "team", forecaster), "parts", ())
    plain = (
        "learn_s",
        "keep",
        "gate_config",
        "ahead_s",
        "forest",
        "horizon_s",
        "trees",
        "prior",
        "online",
        "drift",
    )
    settings = {k: v for k in plain if (v := vars(forecaster).get(k)) is not None}
    return type(forecaster), forecaster.name, settings, [kinds(p) for p in parts]


def settings(engine):
    """Everything that makes one engine decide otherwise than another, but for limits, steps, the
    pace of ticks, seeds and stores.
    """
    router = engine.router
    return dict(
        engine=type(engine),
        router=type(router),
        policy=(type(router.policy), router.policy.name, vars(router.policy)),
        breaker=asdict(router.breaker_config),
        shed=router.shedder.config,
        forecaster=kinds(engine.forecaster),
        explore=router.explore,
        gateways=router.config.gateways,
        act_s=router.config.act_s,
        rollout=engine.rollout,
        tight=(engine.config.tight_s, engine.config.tight_share),
    )


BUILDERS = (
    laboratory,
    laboratory_with_a_past,
    family_world,
    simulation,
    dashboards_demo,
    replay,
    decide,
    service,
)


@pytest.mark.parametrize("build", BUILDERS, ids=lambda b: b.__name__)
def test_every_way_leads_to_the_same_engine(path, build):
    engine, plain = build(path), program(path)
    assert settings(engine) == settings(plain)
    assert [b.name for b in engine.router.backends] == [b.name for b in plain.router.backends]
    assert list(engine.router.backends) == list(plain.router.backends)


@pytest.mark.parametrize(
    "how",
    [
        dict(policy="p2c"),
        dict(policy="head_room"),
        dict(forecaster="none"),
        dict(forecaster="room"),
        dict(holdout=0.1),
    ],
)
def test_another_setting_is_seen(path, how):
    "The comparison above would notice."
    assert settings(ContextEngine(load_fleet(path), **how)) != settings(program(path))


@pytest.mark.parametrize(
    "how", [dict(policy="p2c", forecaster="room"), dict(policy="previous", forecaster="none")]
)
@pytest.mark.filterwarnings("ignore:policy='previous'")
def test_what_is_asked_for_is_what_the_laboratory_builds(path, how):
    from arcpoint_ce.lab.chaos import site_of
    from arcpoint_ce.lab.contest import ours

    site = site_of(load_fleet(path), n=200)
    engine = ours(site, store=NullStore(), **how).make(site.backends, 0)
    assert settings(engine) == settings(ContextEngine(load_fleet(path), **how))
