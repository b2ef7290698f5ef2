"""How strong is too strong: the strengths between which text still holds together.

The model answers neutral prompts at several strengths in one batch, greedily, and each strength is
held against the unsteered answers by `coherence`. Perplexity is read under the model that was asked
for the pole in words. A vector that comes without words is read under the plain model, where the
concept itself costs likelihood, and may cost twice as many nats.

Strengths 1 and 2 of both poles are tried first, then what lies between the last that held and the
first that did not: `STRENGTHS` are all that a range can end at. It knows nothing of calibration and
effects.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn

from .answers import Written, read_coherence, write
from .coherence import MOST_PERPLEXITY, Coherence
from .errors import UsageError
from .library import neutral_prompts
from .progress import Progress, silent
from .prompts import Recipe, Side, spread
from .state import OFF
from .steering import Steering
from .vector import Vector

__all__ = ["STRENGTHS", "SafeRange", "safe_range"]

STRENGTHS = (0.5, 1.0, 1.5, 2.0, 3.0)
FIRST = (1.0, 2.0)
PROMPTS = 8
TOKENS = 20


@dataclass(frozen=True)
class SafeRange:
    """The strengths between which text holds together, 0 where even the weakest breaks it.

    Attributes:
        low: of the negative pole, at most 0; `high`: of the positive one.
        prompts, tokens: how many answers of how many tokens were written at each strength.
        asked: whether perplexity was read under the model that was asked in words.
    """

    low: float
    high: float
    prompts: int
    tokens: int
    asked: bool


def safe_range(
    model: nn.Module,
    tokenizer: Any,
    vector: Vector,
    *,
    recipe: Recipe | None = None,
    progress: Progress = silent,
) -> SafeRange:
    """Return the strengths of a vector between which text holds together.

    Args:
        recipe: what asks for either pole in words; None reads perplexity under the plain model.
    """
    picked = spread(neutral_prompts(), PROMPTS)
    ask = _Answers(model, tokenizer, vector, picked, recipe, progress)
    held: dict[float, bool] = ask([sign * s for sign in (1, -1) for s in FIRST])
    held |= ask([sign * between(held, sign) for sign in (1, -1)])
    low, high = (reach(held, sign) for sign in (-1, 1))
    return SafeRange(-low or 0.0, high, len(picked), TOKENS, recipe is not None)


def between(held: dict[float, bool], sign: int) -> float:
    """Return which strength of a pole to try next, given whether those of `FIRST` held."""
    weaker, stronger = FIRST
    if not held[sign * weaker]:
        return min(STRENGTHS)
    return max(STRENGTHS) if held[sign * stronger] else 1.5


def reach(held: dict[float, bool], sign: int) -> float:
    """Return the strongest strength of a pole before the weakest one that did not hold, of those
    that were tried; 0 without any.
    """
    tried = (s for s in STRENGTHS if sign * s in held)
    return max([0.0, *itertools.takewhile(lambda s: held[sign * s], tried)])


class _Answers:
    """What a model answers at strengths, held against what it answers without steering."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        vector: Vector,
        prompts: Sequence[str],
        recipe: Recipe | None,
        progress: Progress,
    ) -> None:
        self.model, self.tokenizer, self.vector = model, tokenizer, vector
        self.prompts, self.recipe, self.progress = prompts, recipe, progress
        self.plain: list[Written] = []
        self.baselines: dict[bool, Coherence] = {}

    def __call__(self, strengths: Sequence[float]) -> dict[float, bool]:
        """Return whether the text holds at each strength."""
        new = [] if self.plain else [0.0]
        try:
            rows = self._write([*new, *strengths])
        except UsageError:  # some strength gives no numbers
            if len(strengths) > 1:
                return {s: held for one in strengths for s, held in self([one]).items()}
            return {strengths[0]: False}
        if new:
            self.plain = rows.pop(0)
        written = dict(zip(strengths, rows, strict=True))
        poles = [{s: row for s, row in written.items() if (s > 0) is up} for up in (True, False)]
        return {s: held for some in poles if some for s, held in self._hold(some).items()}

    def _write(self, strengths: Sequence[float]) -> list[list[Written]]:
        steerings = [Steering((self.vector, s)) if s else OFF for s in strengths]
        wanted = [[(prompt, steering) for prompt in self.prompts] for steering in steerings]
        stage = f"writing with {self.vector.name}"
        return write(
            self.model, self.tokenizer, wanted, TOKENS, progress=self.progress, stage=stage
        )

    def _hold(self, answers: dict[float, list[Written]]) -> dict[float, bool]:
        """Return whether the answers at some strengths of one pole hold together."""
        positive = min(answers) > 0
        sides: list[Side] = list(self.prompts)
        if self.recipe is not None:
            said = self.recipe.positive if positive else self.recipe.negative
            sides = [self.recipe.side(prompt, said) for prompt in self.prompts]
        groups = [*([] if positive in self.baselines else [self.plain]), *answers.values()]
        found = read_coherence(self.model, self.tokenizer, sides, groups, self.progress)
        if positive not in self.baselines:
            self.baselines[positive] = found.pop(0)
        most = MOST_PERPLEXITY**2 if self.recipe is None else MOST_PERPLEXITY
        plain = self.baselines[positive]
        return {
            strength: one.holds(plain, most_perplexity=most)
            for strength, one in zip(answers, found, strict=True)
        }
