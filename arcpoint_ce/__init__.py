"Arcpoint Context Engine: predictive request routing across a fleet of LLM and model backends."
__version__ = "0.1.0"

from importlib import import_module

_HOME = {
    "Backend": "routing.core", "Request": "routing.core", "Outcome": "routing.core", "Decision": "routing.router",
    "Router": "routing.router", "ContextEngine": "learning.engine", "load_requests": "telemetry.requests", "run_report": "apps.report",
}
__all__ = [*_HOME, "__version__"]


def __getattr__(name):
    "Load a public name on first use (PEP 562): importing the package stays fast and loads no pandas."
    if name not in _HOME: raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__(): return sorted({*globals(), *_HOME})
