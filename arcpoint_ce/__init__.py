"Arcpoint Context Engine: predictive request routing across a fleet of LLM and model backends."
__version__ = "0.1.0"

from importlib import import_module

TYPE_CHECKING = False  # a type checker takes it for True; `import typing` would cost every caller
if TYPE_CHECKING:
    from .apps.report import run_report
    from .engine.anomalies import learn_anomalies
    from .engine.engine import ContextEngine
    from .routing.records import Backend, Forecaster, Outcome, Request, Tier
    from .routing.router import Decision, NoBackend, Router, RouterConfig
    from .telemetry.fleet_file import load_fleet
    from .telemetry.requests import load_requests

_HOME = {
    "Backend": "routing.records",
    "Request": "routing.records",
    "Outcome": "routing.records",
    "Tier": "routing.records",
    "Forecaster": "routing.records",
    "Decision": "routing.router",
    "Router": "routing.router",
    "RouterConfig": "routing.router",
    "NoBackend": "routing.router",
    "ContextEngine": "engine.engine",
    "learn_anomalies": "engine.anomalies",
    "load_requests": "telemetry.requests",
    "load_fleet": "telemetry.fleet_file",
    "run_report": "apps.report",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name):
    "Load a public name on first use (PEP 562): importing the package stays fast and loads no pandas."
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_HOME})
