"Draws data/surge.png: one simulated world of sessions, by a reactive and by a predictive rule."

from pathlib import Path

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt

from arcpoint_ce.proof.sessions import surge_course

course = surge_course(seed=0, load=0.35, jitter_s=2.0)
minutes = course["at_s"] / 60
figure, (top, low) = plt.subplots(
    2, figsize=(7, 3.6), sharex=True, height_ratios=(1, 2), layout="constrained"
)
top.fill_between(minutes, 100 * course["tenants_share"], color="0.7", linewidth=0)
top.set(ylabel="others, %", ylim=(0, None))
title = "Simulated sessions, dear to move; three of six backends are taken by others once an hour"
top.set_title(title, fontsize=9, loc="left")
names = {"present_moves": "reactive: moves once it is slow"}
names |= {"placed_moves": "predictive: stays away before"}
for (rule, label), color in zip(names.items(), ("#d55e00", "#0072b2")):
    low.step(minutes, course[rule], color=color, label=label)
last = course.iloc[-1]
saved = f"{last['present_moves'] - last['placed_moves']:.0f} requests saved"
low.annotate(saved, (119, last["placed_moves"] + 10), ha="right", va="center")
low.set(xlabel="time, min", ylabel="missed limits so far", ylim=(0, None), xlim=(0, 120))
low.legend(frameon=False, loc="upper left")
for axes in (top, low):
    axes.spines[["top", "right"]].set_visible(False)
figure.savefig(Path(__file__).parent / "surge.png", dpi=110, metadata={"Software": None})
print(course.iloc[-1].to_dict())
