"""What is compared: ways of steering against the plain model, by name.

A case is a recipe for the steering of every row of a batch. Directions are random, since a cost
does not depend on where a vector points, and strengths are so small that the text stays the same
and so do the experts that a mixture of them chooses. It knows nothing of clocks.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from ..capture import capturing
from ..errors import UsageError
from ..runtime import Steered
from ..state import SteeringState
from ..steering import Steering
from ..tables import near
from ..vector import Vector
from .works import Side

__all__ = ["CASES", "Case", "captured", "cases", "plain", "steered", "vectors"]

STRENGTH = 1e-4
VECTORS = 16  # as many as rows of the largest batch have

Recipe = Callable[[Sequence[Vector], int], Steering]


@dataclass(frozen=True)
class Case:
    """One way of steering, on every layer.

    Attributes:
        name: its name on the command line and in results.
        says: what it is, in words.
        recipe: `(vectors, row) -> Steering`.
        target: what the lower end of the interval must reach; None asks for the identical graph.
        every: whether it is measured at every context, or at the first one only.
        rows: whether every row has a vector of its own, so that it needs more than one.
    """

    name: str
    says: str
    recipe: Recipe
    target: float | None
    every: bool = False
    rows: bool = False


def _adding(count: int, **how: Any) -> Recipe:
    return lambda vectors, row: Steering(*((v, STRENGTH) for v in vectors[:count]), **how)


def _one(op: str) -> Recipe:
    def recipe(vectors: Sequence[Vector], row: int) -> Steering:
        targets = {"targets": [0.0] * len(vectors[0].layers)} if op in ("clamp", "cap") else {}
        return Steering((vectors[0].replace(op=op, **targets), STRENGTH))

    return recipe


ADD, READ = 0.98, 0.96

CASES = {
    case.name: case
    for case in (
        Case("idle", "strength 0", lambda vectors, row: Steering((vectors[0], 0.0)), None),
        Case("add-1", "one vector added", _adding(1), ADD, every=True),
        Case("add-4", "four vectors added", _adding(4), ADD),
        Case("add-10", "ten vectors added", _adding(10), ADD, every=True),
        Case("project", "one direction projected out", _one("project"), READ, every=True),
        Case("clamp", "one direction clamped", _one("clamp"), READ),
        Case("norm", "one vector added, norms kept", _adding(1, keep_norm=True), READ),
        Case("decay", "one vector added, decaying", _adding(1, schedule="decay(32)"), READ),
        Case("phase", "one vector added to the response", _adding(1, phase="response"), ADD),
        Case(
            "rows",
            "another vector added in every row",
            lambda vectors, row: Steering((vectors[row % len(vectors)], STRENGTH)),
            READ,
            rows=True,
        ),
    )
}


def cases(names: Sequence[str] = ()) -> list[Case]:
    """Return the cases of these names, all of them by default.

    Raises:
        UsageError: there is no such case.
    """
    for name in names:
        if name not in CASES:
            raise UsageError(f"no case is called {name!r}{near(name, CASES)}")
    return [case for name, case in CASES.items() if not names or name in names]


def vectors(model: nn.Module) -> list[Vector]:
    """Return random vectors on every layer of a model."""
    rng = np.random.default_rng(0)
    width, layers = model.args.hidden_size, range(len(model.layers))
    return [
        Vector.from_rows(f"random-{i}", {n: rng.normal(size=width) for n in layers})
        for i in range(VECTORS)
    ]


def plain(model: nn.Module) -> Side:
    """Return the model itself, unsteered."""
    return Side(model, lambda length: model.make_cache())


def steered(model: nn.Module, case: Case, found: Sequence[Vector], batch: int) -> Side:
    """Return the model steered as a case says in every row, as mlx-lm would see it."""
    view = Steered(model)
    rows = [case.recipe(found, row) for row in range(batch)]

    def make_cache(length: int) -> list[Any]:
        states = [view.make_cache(row, length)[-1] for row in rows]
        return [*model.make_cache(), SteeringState.merge(states)]

    return Side(view, make_cache)


def captured(model: nn.Module) -> Side:
    """Return the model with the mean residual of every layer captured from what it reads."""
    layers = range(len(model.layers))

    def call(tokens: mx.array, cache: list[Any]) -> mx.array:
        everything = mx.ones(tokens.shape, mx.bool_)
        taps, kept = capturing(layers, ["resid_post"], positions=everything)
        logits: mx.array = model(tokens, cache=cache, taps=taps)
        mx.async_eval([kept[layer]["resid_post"] for layer in layers])
        return logits

    return Side(call, lambda length: model.make_cache())
