"""Cells of a search, each a place, a way and a cost, and which of them is the best.

A `Cell` is one vector of a concept brought to a cost in nats: what it does at that cost, and
whether the text still holds together. Cells are compared at equal cost only. It measures nothing
and knows no model.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .coherence import Coherence
from .stats import Interval

__all__ = ["Cell", "best", "ranked", "spelled"]


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
