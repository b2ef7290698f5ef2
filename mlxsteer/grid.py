"""Cells of a search, each a place, a way and a cost, and which of them is the best.

A `Cell` is one vector of a concept brought to a cost in nats: what it does at that cost, and
whether the text still holds together. Cells are compared at equal cost only. A `Sweep` is all of
them, as JSON, tables, a verdict in sentences and a heat map. It measures nothing and knows no
model.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .coherence import Coherence
from .report import figure, markdown_table
from .stats import Interval, paired_bootstrap

__all__ = ["SCHEMA", "Cell", "Sweep", "best", "draw", "markdown", "ranked", "spelled"]

SCHEMA = 1


@dataclass(frozen=True)
class Cell:
    """One vector at one cost, measured on the same prompts as all others.

    Attributes:
        budget: the cost that was asked for, mean KL in nats per response token on neutral text.
        kl: what it costs; `factor`: on the natural scale, where it does.
        changes: log-odds of positive over negative completions less the unsteered ones, per prompt,
            nats per token; `effect` is their mean with its interval.
        coherence, coherent: of the answers, None where none were written.
        error: why there is nothing to measure, "" otherwise.
    """

    site: str
    method: str
    layers: tuple[int, ...]
    budget: float
    kl: float | None = None
    factor: float | None = None
    changes: tuple[float, ...] = ()
    effect: Interval | None = None
    coherence: Coherence | None = None
    coherent: bool | None = None
    error: str = ""

    @property
    def name(self) -> str:
        """What it is, its cost aside."""
        return f"{self.method} at {self.site}, layers {spelled(self.layers)}"


def ranked(cells: Iterable[Cell]) -> list[Cell]:
    """Return the cells that were measured, the highest lower bound of the effect first."""

    def order(cell: Cell) -> tuple[float, float]:
        assert cell.effect is not None
        return -cell.effect.low, -cell.effect.mean

    return sorted((cell for cell in cells if cell.effect is not None), key=order)


def best(cells: Iterable[Cell]) -> Cell | None:
    """Return the cell with the highest lower bound among those whose text does not break."""
    return next((cell for cell in ranked(cells) if cell.coherent is not False), None)


def spelled(layers: Sequence[int]) -> str:
    """Return layers as `--layers` takes them: `10-19`, `3,5,7`."""
    parts: list[list[int]] = []
    for layer in layers:
        if parts and layer == parts[-1][-1] + 1:
            parts[-1].append(layer)
        else:
            parts.append([layer])
    return ",".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts)


@dataclass(frozen=True)
class Sweep:
    """All cells of one concept on one split.

    Attributes:
        prompts: those whose completions were read; `baseline` is the coherence of the unsteered
            answers to them.
        cells: by site, method and layers, and for each by cost.
        settings: what decides what was measured.
    """

    concept: str
    sentence: str
    model: str
    split: str
    prompts: tuple[str, ...]
    baseline: Coherence
    cells: tuple[Cell, ...]
    settings: dict[str, Any]

    @property
    def budgets(self) -> tuple[float, ...]:
        """The costs, ascending."""
        return tuple(sorted({cell.budget for cell in self.cells}))

    def at(self, budget: float) -> list[Cell]:
        """Return the cells of one cost."""
        return [cell for cell in self.cells if cell.budget == budget]

    @property
    def best(self) -> Cell | None:
        """The surest cell of all whose text holds together; of another cost than others."""
        return best(self.cells)

    def verdict(self) -> tuple[str, ...]:
        """Return which cell is the best at each cost, and why, in sentences."""
        said = [self._said(budget) for budget in self.budgets]
        if len(said) > 1:
            one = self.best
            name = "no cell" if one is None else f"{one.name} at {one.budget:g} nats"
            said.append(f"Over all costs: {name}. A higher cost does more until the text breaks.")
        return tuple(said)

    def _said(self, budget: float) -> str:
        cells = self.at(budget)
        order, one = ranked(cells), best(cells)
        broken = sum(cell.coherent is False for cell in cells)
        failed = sum(bool(cell.error) for cell in cells)
        count = f"{len(cells)} cells" + (f", {failed} of them not to be had" if failed else "")
        if one is None or one.effect is None:
            return f"At {budget:g} nats ({count}) no text holds together: nothing is chosen."
        why = f"{one.name}, with {_interval(one.effect)} nats per token"
        said = f"At {budget:g} nats ({count}) the best is {why}"
        if broken:
            said += f"; the text of {broken} does not hold together"
        if not one.effect.above:
            return f"{said}. NONE moves the completions surely."
        rest = [cell for cell in order if cell is not one and cell.coherent is not False]
        if rest:
            second = rest[0]
            pairs = zip(one.changes, second.changes, strict=True)
            lead = paired_bootstrap([ours - theirs for ours, theirs in pairs])
            sure = "surely" if lead.above else "not surely"
            said += f", {sure} more than the next, {second.name}: {_interval(lead)}"
        return f"{said}."

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON."""
        named = None if self.best is None else dataclasses.asdict(self.best)
        more = {"best": named, "verdict": self.verdict()}
        return {"schema": SCHEMA, **dataclasses.asdict(self), **more}


def _interval(x: Interval) -> str:
    return f"{x.mean:+.2f} [{x.low:+.2f}, {x.high:+.2f}]"


def markdown(sweep: Sweep) -> str:
    """Return the verdict and a table of all cells, at each cost the best first."""
    head = ["cost", "site", "method", "layers", "KL", "log-odds less baseline", "wrong way"]
    head += ["perplexity", "loops", "distinct-2", "coherent", "factor"]
    rows = []
    for budget in sweep.budgets:
        cells = sweep.at(budget)
        held = [cell for cell in ranked(cells) if cell.coherent is not False]
        broken = [cell for cell in ranked(cells) if cell.coherent is False]
        for cell in [*held, *broken]:
            name = [f"{budget:g}", cell.site, cell.method, spelled(cell.layers)]
            rows.append([*name, *_measured(cell)])
        for cell in (cell for cell in cells if cell.error):
            name = [f"{budget:g}", cell.site, cell.method, spelled(cell.layers)]
            rows.append([*name, "", cell.error, *[""] * (len(head) - 6)])
    title = f"## {sweep.concept} on {sweep.model}, {sweep.split} split\n\n{sweep.sentence}\n\n"
    return f"{title}{' '.join(sweep.verdict())}\n\n{markdown_table(head, rows)}"


def _measured(cell: Cell) -> list[str]:
    assert cell.effect is not None
    told = [f"{cell.kl:.2f}", _interval(cell.effect), f"{cell.effect.wrong_way:.0%}"]
    if (c := cell.coherence) is None:
        told += [""] * 4
    else:
        told += [f"{c.perplexity:.1f}", f"{c.loop_rate:.0%}", f"{c.distinct_2:.2f}"]
        told += ["yes" if cell.coherent else "NO"]
    return [*told, f"{cell.factor:.3g}"]


def draw(sweep: Sweep, path: Path) -> None:
    """Draw the effects as a heat map, a panel per cost: places across, ways down.

    A cross marks text that does not hold together, a frame the best cell of a cost, dotted where
    not even that surely moves the completions; what could not be measured is left white.

    Raises:
        MlxsteerError: matplotlib is not installed.
    """
    places = sorted({cell.layers for cell in sweep.cells})
    ways = list(dict.fromkeys((cell.method, cell.site) for cell in sweep.cells))
    means = [cell.effect.mean for cell in sweep.cells if cell.effect is not None]
    most = max((abs(mean) for mean in means), default=1.0) or 1.0
    budgets = sweep.budgets
    width = min(max(0.55 * len(places), 2.0) * len(budgets) + 2.4, 40.0)
    with figure(path, width, max(0.35 * len(ways) + 1.9, 2.7), len(budgets)) as axes:
        panels = [axes] if len(budgets) == 1 else list(axes)
        for budget, panel in zip(budgets, panels, strict=True):
            shown = [[math.nan] * len(places) for _ in ways]
            named = best(sweep.at(budget))
            for cell in sweep.at(budget):
                x, y = places.index(cell.layers), ways.index((cell.method, cell.site))
                if cell.effect is not None:
                    shown[y][x] = cell.effect.mean
                if cell.coherent is False:
                    panel.plot(x, y, "kx", ms=7)
                if cell is named and cell.effect is not None:
                    square = {"ec": "black", "fc": "none", "lw": 2, "transform": panel.transData}
                    square["ls"] = "-" if cell.effect.above else ":"
                    panel.add_patch(_rectangle((x - 0.5, y - 0.5), **square))
            image = panel.imshow(shown, cmap="PuOr_r", vmin=-most, vmax=most, aspect="auto")
            panel.grid(visible=False)
            panel.set_xticks(range(len(places)), [spelled(p) for p in places], rotation=90)
            panel.set_yticks(range(len(ways)), [" at ".join(way) for way in ways])
            panel.set_xlabel("layers")
            panel.set_title(f"{sweep.concept} at {budget:g} nats", fontsize=9)
        bar = panels[0].figure.colorbar(image, ax=panels)
        bar.set_label("log-odds less baseline\n(nats/token)", fontsize=8)


def _rectangle(corner: tuple[float, float], **how: Any) -> Any:
    from matplotlib.patches import Rectangle

    return Rectangle(corner, 1, 1, **how)
