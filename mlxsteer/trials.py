"""Vectors of one concept compared at equal cost: what each does to the same completions.

Every vector is searched to the same KL on the same neutral text, as nulls are; a site, a band of
layers or a method is better if it then moves the completions more. Which text holds together is
read as the evidence reads it: perplexity under the model that is asked in words, loops and variety
of greedy answers, against the unsteered ones.

It knows nothing of how the vectors were found.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import mlx.nn as nn
import numpy as np

from .answers import read_coherence, write
from .coherence import Coherence
from .completions import Completion
from .errors import MlxsteerError, UsageError
from .grid import Cell
from .library import Concept
from .meter import Meter
from .neutral import Neutral
from .nulls import equalised
from .progress import Progress, silent
from .prompts import SPLITS, Recipe, Side
from .scoring import LogOdds, prompted
from .state import OFF
from .stats import paired_bootstrap
from .steering import Steering
from .vector import Vector

__all__ = ["Trials", "check"]

SLOPE = 1.7  # of log KL over log strength, about
ANSWER_TOKENS = 24  # of an answer whose coherence is read, as in the evidence


def check(concept: Concept | None, split: str) -> tuple[Recipe, list[Completion]]:
    """Return what a concept is judged by: its recipe and its completions of one split.

    Raises:
        MlxsteerError: there is no concept, or it has no recipe, or no completions of that split.
        UsageError: an unknown split.
    """
    if split not in SPLITS[1:]:
        raise UsageError(f"no split is called {split!r} here; use {' or '.join(SPLITS[1:])}")
    if concept is None:
        raise MlxsteerError(
            f"pairs alone have no completions of the split {split}, by which layers are chosen: "
            "name layers, or make a concept of them"
        )
    if concept.recipe is None:
        raise MlxsteerError(
            f"the concept {concept.name} has pairs and no recipe: without prompts in splits and an "
            "instruction there is nothing to judge it by; write a [recipe] in its vector.toml"
        )
    found = [one for one in concept.completions if one.split == split]
    if len(found) < 2:
        raise MlxsteerError(
            f"the concept {concept.name} has {len(found)} completions of the split {split}, which "
            "it is judged by: write them into its completions.jsonl"
        )
    return concept.recipe, found


class Trials:
    """Completions and neutral text on which vectors are tried.

    Args:
        completions: two or more; of the split on which something is being chosen.
        recipe: asks for the concept in words where coherence is read.
        text: the cost is measured on it.
        firsts: the lowest blocks of the vectors that will be tried.
        tokens: of a written answer, at most.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        completions: Sequence[Completion],
        recipe: Recipe,
        text: Neutral,
        firsts: Sequence[int],
        tokens: int = ANSWER_TOKENS,
    ) -> None:
        self._model, self._tokenizer, self._tokens = model, tokenizer, tokens
        self._meter = Meter(model, text, firsts)
        self._odds = LogOdds(model, tokenizer, completions, first=firsts)
        self._base = self._odds(OFF)
        self._asked: list[Side] = [one.prompt for one in completions]
        self._in_words: list[Side] = [prompted(recipe, one.prompt) for one in completions]
        self._plain: Coherence | None = None
        self._near = {1.0: 2.0}  # budget -> what layers times factor was, last

    @property
    def baseline(self) -> Coherence:
        """The coherence of the unsteered answers, once text has been read."""
        assert self._plain is not None
        return self._plain

    def cells(self, vector: Vector, method: str, budgets: Sequence[float]) -> list[Cell]:
        """Return a vector of natural scale at each cost, the lowest searched first.

        A cost that it cannot have becomes a cell with the reason.
        """
        found: list[Cell] = []
        for budget in sorted(budgets):
            cell = Cell(vector.site, method, vector.layers, budget)
            near = min(self._near, key=lambda known: abs(math.log(known / budget)))
            guess = self._near[near] * (budget / near) ** (1 / SLOPE) / max(len(vector.layers), 2)
            try:
                null = equalised(self._meter, "cell", _scaled(vector, guess), budget)
            except MlxsteerError as error:
                found.append(dataclasses.replace(cell, error=str(error)))
                continue
            factor = float(null.vector.scales[0] / vector.scales[0])
            self._near[budget] = factor * max(len(vector.layers), 2)
            changes = self._odds(null.steering) - self._base
            found.append(
                dataclasses.replace(
                    cell,
                    kl=null.kl,
                    factor=factor,
                    changes=tuple(float(change) for change in changes),
                    effect=paired_bootstrap(changes),
                )
            )
        order = {budget: i for i, budget in enumerate(budgets)}
        return sorted(found, key=lambda cell: order[cell.budget])

    def read_text(
        self,
        cells: Sequence[Cell],
        vectors: Sequence[Vector],
        *,
        strengths: Sequence[float] = (1.0,),
        progress: Progress = silent,
    ) -> list[Cell]:
        """Return the cells with the coherence of what their vectors, of natural scale, write at
        some strengths, taken together.
        """
        groups = [
            [Steering((_scaled(vector, cell.factor), strength)) for strength in strengths]
            for cell, vector in zip(cells, vectors, strict=True)
            if cell.factor is not None
        ]
        new = [[OFF], *groups] if self._plain is None else groups
        wanted = [[(side, one) for one in some for side in self._asked] for some in new]
        written = write(self._model, self._tokenizer, wanted, self._tokens, progress=progress)
        read = read_coherence(self._model, self._tokenizer, self._in_words, written, progress)
        if self._plain is None:
            self._plain, *read = read
        plain, rest = self._plain, iter(read)
        return [
            cell
            if cell.factor is None
            else dataclasses.replace(cell, coherence=(one := next(rest)), coherent=one.holds(plain))
            for cell in cells
        ]


def _scaled(vector: Vector, factor: float) -> Vector:
    scales = (vector.scales.astype(np.float64) * factor).astype(np.float32)
    return vector.replace(scales=scales)
