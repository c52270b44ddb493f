"What would have happened, had we routed otherwise? A simulated fleet, and contests in it."

TYPE_CHECKING = False  # a type checker takes it for True
if TYPE_CHECKING:
    from .comparison import Candidate, Comparison, compare
    from .faults import Fault
    from .worlds import FAMILIES

_HOME = {
    "compare": "comparison",
    "Comparison": "comparison",
    "Candidate": "comparison",
    "Fault": "faults",
    "FAMILIES": "worlds",
}
__all__ = [*_HOME]


def __getattr__(name):
    "Load a public name on first use (PEP 562)."
    from importlib import import_module

    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOME[name]}", __name__), name)
    globals()[name] = value
    return value


def __dir__():
    return sorted({*globals(), *_HOME})
