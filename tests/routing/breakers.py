"A breaker that a few calls move, and how to bring one into a state."

from arcpoint_ce.routing.breaker import HALF_OPEN, OPEN, Breaker, BreakerConfig

SMALL = BreakerConfig(
    window=8,
    min_calls=4,
    consecutive=3,
    open_s=10.0,
    max_open_s=40.0,
    probes=2,
    probe_success=2,
    max_half_open_s=15.0,
)


def opened(config: BreakerConfig = SMALL, at: float = 100.0, seed: int = 0) -> Breaker:
    "One that has just opened on failures in a row."
    b = Breaker("x", config, seed)
    b.poll(at)
    for _ in range(config.consecutive):
        b.record(False, False, at)
    assert b.state == OPEN
    return b


def tried(config: BreakerConfig = SMALL, **how) -> Breaker:
    "One that has waited, and gives probes."
    b = opened(config, **how)
    assert b.poll(b.until_s) and b.state == HALF_OPEN
    return b
