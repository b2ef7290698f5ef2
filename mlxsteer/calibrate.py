"""What a strength of 1 means: the scale at which a vector moves the model by half a nat.

The unit is the mean KL(unsteered || steered) per response token on neutral prompts, read
teacher-forced on the unsteered answers. Half a nat is what text bears: at a whole one that of most
shipped concepts broke. `calibrate` searches the factor on a vector's natural scale
that gives the budget, in a handful of forward passes.

Edits that read the stream need no search: at strength 1 and scale 1 a projection removes, a clamp
holds its target and a cap holds its ceiling. What that costs is measured and recorded.

With the scale goes the range of strengths in which text holds together (`safe`). It knows nothing
of how a vector was found.
"""

import math
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import mlx.nn as nn
import numpy as np

from .errors import MlxsteerError, UsageError
from .meter import Meter, search
from .neutral import Neutral
from .progress import Progress, silent
from .prompts import Recipe
from .safe import safe_range
from .steering import Steering
from .vector import Vector

__all__ = ["BUDGET", "Neutral", "calibrate"]

BUDGET = 0.5  # nats of mean KL per response token at strength 1
TOLERANCE = 0.02  # relative, of the budget
FEW = 4  # texts on which the search begins
UNIT = "mean KL(unsteered || steered) per response token on neutral prompts, nats"
MEANING = {
    "project": "strength 1 removes the direction",
    "clamp": "strength 1 holds the direction at its target",
    "cap": "strength 1 holds the direction at or below its target",
}


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    vector: Vector,
    *,
    budget: float = BUDGET,
    neutral: Neutral | None = None,
    recipe: Recipe | None = None,
    limits: bool = True,
    progress: Progress = silent,
) -> Vector:
    """Return the vector with the scale at which strength 1 costs `budget` nats.

    The scale of a vector that projects, clamps or caps becomes 1, and what strength 1 costs is
    recorded. So are the strengths between which text holds together, as `safe`.

    Args:
        vector: calibrated or not; its scales give the proportions between layers.
        budget: mean KL(unsteered || steered) per response token, nats; of `add` only.
        neutral: text to measure on, to be shared between vectors of one model; None takes what the
            model wrote before or lets it write (`Neutral.kept`).
        recipe: what asks for the concept in words, under which `safe` reads perplexity.
        limits: whether `safe` is measured, for which the model has to write.

    Raises:
        MlxsteerError: no strength of this vector reaches the budget.
        UsageError: a budget for an op that is not `add`.
    """
    if vector.op in MEANING and budget != BUDGET:
        raise UsageError(f"op {vector.op} has no budget: {MEANING[vector.op]}, whatever it costs")
    if vector.is_zero:
        raise MlxsteerError(f"vector {vector.name!r} is zero: no strength of it does anything")
    text = neutral or Neutral.kept(model, tokenizer, progress=progress)
    stage, passes = f"calibrating {vector.name}", 0

    if vector.op in MEANING:
        progress(stage, 0, 1)
        record = _cost(model, text, vector)
        progress(stage, 1, 1)
        fixed = vector.replace(scales=np.ones_like(vector.scales), calibration=record)
        return _with_range(model, tokenizer, fixed, recipe, progress) if limits else fixed

    def meter(texts: Neutral) -> Callable[[float], float]:
        measure = Meter(model, texts, vector.layers[0])

        def at(factor: float) -> float:
            nonlocal passes
            kl = measure(Steering((vector, factor)))
            passes += 1
            progress(stage, passes, max(passes + 1, 8))
            return kl

        return at

    progress(stage, 0, 8)
    start, slope, few = _first_guess(vector), 1.7, text.some(FEW)
    if len(few.sequences) < len(text.sequences):
        rough = search(meter(few), budget, vector.name, start, slope, tolerance=0.1)
        start, slope = rough.factor, rough.slope
    found = search(meter(text), budget, vector.name, start, slope, TOLERANCE)
    progress(stage, passes, passes)
    record = {
        "unit": UNIT,
        "budget": budget,
        **_record(text, found.kl, found.factor, vector.scales),
    }
    scales = (vector.scales.astype(np.float64) * found.factor).astype(np.float32)
    fixed = vector.replace(scales=scales, calibration=record)
    return _with_range(model, tokenizer, fixed, recipe, progress) if limits else fixed


def _with_range(
    model: nn.Module, tokenizer: Any, vector: Vector, recipe: Recipe | None, progress: Progress
) -> Vector:
    """Return a calibrated vector with its safe range in the record."""
    found = safe_range(model, tokenizer, vector, recipe=recipe, progress=progress)
    return vector.replace(calibration={**(vector.calibration or {}), "safe": asdict(found)})


def _cost(model: nn.Module, text: Neutral, vector: Vector) -> dict[str, Any]:
    """Return the calibration of a vector that reads the stream: what strength 1 costs."""
    whole = vector.replace(scales=np.ones_like(vector.scales))
    kl = Meter(model, text, whole.layers[0])(Steering((whole, 1.0)))
    if not math.isfinite(kl):
        raise MlxsteerError(
            f"{vector.name!r} at strength 1 moves the model beyond all numbers: {vector.op} it on "
            "fewer layers, or at another site"
        )
    unit = f"{MEANING[vector.op]}; kl is the {UNIT}"
    return {"unit": unit, **_record(text, kl, 1.0, whole.scales)}


def _record(text: Neutral, kl: float, factor: float, natural: np.ndarray) -> dict[str, Any]:
    return {
        "kl": round(kl, 4),
        "factor": round(factor, 6),
        "tokens": text.tokens,
        "prompts": len(text.sequences),
        "text_sha256": text.sha256,
        "natural_scale": [round(float(s), 6) for s in natural],
    }


def _first_guess(vector: Vector) -> float:
    """Return about where a mean difference over a third of the layers costs a nat."""
    return 1.0 if vector.calibrated else 2.0 / max(len(vector.layers), 2)
