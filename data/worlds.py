"""Many experiments in one table: python data/worlds.py "engine physics=DIR" "load 0.4=DIR" ...

Writes results/worlds.csv, the counts of every run, and results/worlds.json, the metrics of every
experiment, both by the name given here. DIR is what `arcpoint experiment --out DIR` has written.
"""

import json
import sys
from pathlib import Path

import pandas as pd

RESULTS = Path(__file__).parent / "results"
# of a family's metrics, what the page of results shows
SHOWN = ("missed", "requests", "cost_usd", "best_rival", "missed_best_rival", "load_rule_kept")
RATIOS = ("ratio_sharp", "ratio_sharp_lo", "ratio_sharp_hi", "ratio", "on_off", "changed_share")


def shown(metrics: dict) -> dict:
    "Of one experiment, what the page of results shows."
    families = {
        family: {name: metrics[family][name] for name in (*SHOWN, *RATIOS)}
        for family in metrics["families"]
    }
    about = {name: metrics[name] for name in ("families", "seeds", "n", "load", "version")}
    settings = dict(metrics["settings"])
    if "arrivals" in settings:
        settings["arrivals"] = Path(settings["arrivals"]).name
    return about | {"settings": settings} | families


def main() -> None:
    counts, metrics = [], {}
    for pair in sys.argv[1:]:
        name, folder = pair.split("=")
        runs = pd.read_csv(Path(folder) / "runs.csv")
        counts.append(runs.assign(setting=name))
        metrics[name] = shown(json.loads((Path(folder) / "metrics.json").read_text()))
    table = pd.concat(counts)
    table.insert(0, "setting", table.pop("setting"))
    table["cost_usd"] = table["cost_usd"].round(6)
    table.to_csv(RESULTS / "worlds.csv", index=False)
    (RESULTS / "worlds.json").write_text(json.dumps(metrics, indent=1) + "\n")


if __name__ == "__main__":
    if len(sys.argv) < 2 or not all("=" in pair for pair in sys.argv[1:]):
        sys.exit(__doc__)
    main()
