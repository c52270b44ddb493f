"At the end of a run: what it left out, and what it would have needed."

import pytest

NEEDED = {
    "redis-server": "apt-get install redis-server",
    "chromium": "apt-get install chromium",
    "ARCPOINT_DATA": "set ARCPOINT_DATA to a folder of public measurements",
}


def pytest_collection_modifyitems(config, items):
    config.slow_tests = sum(item.get_closest_marker("slow") is not None for item in items)


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["slow_tests"] = getattr(session.config, "slow_tests", 0)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    "A worker of pytest-xdist ends: it collected the tests, this process did not."
    node.config.slow_tests = getattr(node, "workeroutput", {}).get("slow_tests", 0)


def pytest_terminal_summary(terminalreporter, config):
    write = terminalreporter.write_line
    slow = getattr(config, "slow_tests", 0)
    if slow and "not slow" in config.getoption("-m"):
        write(f"left out: {slow} slow tests; `make test-all` runs them too")
    skipped = [str(report.longrepr) for report in terminalreporter.stats.get("skipped", [])]
    for what, remedy in NEEDED.items():
        if n := sum(what in reason for reason in skipped):
            write(f"skipped for want of {what}: {n} tests; {remedy}")
