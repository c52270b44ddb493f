"""Does a fresh run give the figures that README and pages quote?

Usage: python tests/same_run.py RUN_FOLDER_OR_ITS_PARENT     exit 1 with the figures that differ
"""

import json
import sys
from math import isclose
from pathlib import Path

STORED = Path(__file__).parents[1] / "data" / "results" / "routing_sample.json"


def figures(values: dict, prefix: str = "") -> dict:
    "Nested values by dotted name."
    out = {}
    for name, value in values.items():
        if isinstance(value, dict):
            out |= figures(value, f"{prefix}{name}.")
        else:
            out[f"{prefix}{name}"] = value
    return out


def same(a, b) -> bool:
    number = isinstance(a, float) and isinstance(b, (int, float))
    return isclose(a, b, rel_tol=1e-9, abs_tol=1e-12) if number else a == b


def moved(run: dict, stored: dict) -> list[str]:
    "What a run says otherwise than the stored figures, a line each."
    now, then = figures(run), figures(stored)
    names = sorted(now.keys() | then.keys())
    missing = "missing"
    return [
        f"{name}: the run says {now.get(name, missing)}, the stored file {then.get(name, missing)}"
        for name in names
        if not same(now.get(name, missing), then.get(name, missing))
    ]


def newest(folder: Path) -> Path:
    "The metrics of the newest routing run in a folder. FileNotFoundError where there is none."
    found = [
        p for p in folder.rglob("metrics.json") if "routing" in str(p.parent) or p.parent == folder
    ]
    if not found:
        raise FileNotFoundError(
            f"{folder}: no metrics.json of a routing run; `make run` writes one"
        )
    return max(found, key=lambda p: p.stat().st_mtime)


def main(folder: str) -> int:
    path = newest(Path(folder))
    lines = moved(json.loads(path.read_text()), json.loads(STORED.read_text()))
    if lines:
        print(f"{path} differs from {STORED.name}, which README quotes:", *lines, sep="\n  ")
        print(f"if the code is meant to say this: cp {path} {STORED}, run the pages, `make readme`")
        return 1
    print(f"{path.parent.name}: every figure is the one that README quotes")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
