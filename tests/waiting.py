"What tests wait by: events with a long limit, so that a slow machine passes too."

import time


def until(true, what: str = "what was awaited", limit_s: float = 60.0):
    "Wait until `true()` holds, and return what it says."
    end_s = time.monotonic() + limit_s
    while not (got := true()):
        assert time.monotonic() < end_s, f"not within {limit_s:g} s: {what}"
        time.sleep(0.02)
    return got
