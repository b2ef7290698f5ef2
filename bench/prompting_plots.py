"""The plots of the study `steer_vs_prompt.py`, drawn from its record alone."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from prompting_page import Record, effect, judged, pooled, steered

from mlxsteer.report import COLOURS, figure
from mlxsteer.stats import paired_bootstrap

__all__ = ["PLOTS"]


def _plot_effects(record: Record, path: Path) -> None:
    """Draw the effect of each arm per concept, with intervals."""
    every = list(record["figures"]["concepts"].items())[::-1]
    with figure(path, 7, 1.0 + 0.3 * len(every)) as axes:
        for k, arm in enumerate(("asked", "steered", "both")):
            found = [effect(judged(entry), arm) for _, entry in every]
            y = np.arange(len(every)) + 0.22 * (1 - k)
            axes.hlines(y, [x.low for x in found], [x.high for x in found], color=COLOURS[k])
            axes.plot([x.mean for x in found], y, "o", color=COLOURS[k], markersize=4, label=arm)
        axes.axvline(0, color=COLOURS[4], linewidth=1)
        axes.set_yticks(range(len(every)), [name for name, _ in every])
        axes.set_xlabel("log-odds less those of the plain model (nats/token), 95% interval")
        axes.set_title(f"Asked in words, steered at 1, both: {record['model']['repo']}")
        axes.legend()


def _plot_fading(record: Record, path: Path) -> None:
    """Draw the effect of asking and of steering behind more and more turns."""
    turns = record["figures"]["turns"]
    with figure(path, 8, 3.4, axes=2) as both:
        top = []
        for k, (axes, arm) in enumerate(zip(both, ("asked", "steered"), strict=True)):
            for entry in record["figures"]["concepts"].values():
                y = [effect(entry["scores"][str(count)], arm).mean for count in turns]
                axes.plot(turns, y, color=COLOURS[4], linewidth=0.8, alpha=0.6)
            found = [paired_bootstrap(pooled(record, count, arm)) for count in turns]
            low, high = [x.low for x in found], [x.high for x in found]
            axes.fill_between(turns, low, high, color=COLOURS[k], alpha=0.25, linewidth=0)
            axes.plot(turns, [x.mean for x in found], "o-", color=COLOURS[k], label="all concepts")
            axes.axhline(0, color=COLOURS[4], linewidth=1)
            axes.set_xticks(turns)
            axes.set_xlabel("turns of plain talk in between")
            axes.set_title(f"{arm}{' at 1' if arm == 'steered' else ' where it began'}")
            axes.legend()
            top.append(axes.get_ylim())
        for axes in both:
            axes.set_ylim(min(low for low, _ in top), max(high for _, high in top))
        both[0].set_ylabel("log-odds less the plain model's (nats/token)")


def _plot_guide(record: Record, path: Path) -> None:
    """Draw score and nearness of the guide's vectors against their strength."""
    entry = record["figures"]["guide"]
    scores, kl = entry["scores"], {n: float(np.mean(v)) for n, v in entry["kl"].items()}
    with figure(path, 8, 3.4, axes=2) as (left, right):
        for how, colour in zip(entry["vectors"], (COLOURS[1], COLOURS[2]), strict=True):
            names = steered(record, how)
            x = [0.0, *(float(name.split()[1]) for name in names)]
            found = [effect(scores, name) for name in names]
            low, high = [0.0, *(f.low for f in found)], [0.0, *(f.high for f in found)]
            left.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
            y = [0.0, *(f.mean for f in found)]
            left.plot(x, y, "o-", color=colour, label=f"vector ({how})")
            right.plot(x, [kl["plain"], *(kl[n] for n in names)], "o-", color=colour)
        others = entry["others"]
        ones, done = [1.0] * len(others), [effect(scores, name).mean for name in others]
        left.plot(ones, done, "_", color=COLOURS[3], ms=12, label="vectors of other concepts")
        right.plot(ones, [kl[name] for name in others], "_", color=COLOURS[3], ms=12)
        guided = effect(scores, "guide")
        left.axhspan(guided.low, guided.high, color=COLOURS[0], alpha=0.15, linewidth=0)
        left.axhline(guided.mean, color=COLOURS[0], ls="--", label="guide in context")
        left.set_ylabel("log-odds less the plain model's (nats/token)")
        right.axhline(kl["plain"], color=COLOURS[4], ls="--", label="neither guide nor vector")
        right.set_ylim(bottom=0)
        right.set_ylabel("KL from the guided model (nats/token)")
        for axes in (left, right):
            axes.set_xlabel("strength of the guide's vector")
            axes.legend()


PLOTS: dict[str, Callable[[Record, Path], None]] = {
    "effects": _plot_effects,
    "fading": _plot_fading,
    "guide": _plot_guide,
}
