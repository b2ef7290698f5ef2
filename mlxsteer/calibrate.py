"""What a strength of 1 means: the scale at which a vector moves the model by one nat.

The unit is the mean KL(unsteered || steered) per response token on neutral prompts, read
teacher-forced on the unsteered answers. `calibrate` searches the factor on a vector's natural scale
that gives the budget. Between two factors log KL is close to a straight line in the log of the
factor, so the search is a bisection that takes the secant's guess whenever it lies inside the
bracket: a handful of forward passes.

Edits that read the stream need no search: at strength 1 and scale 1 a projection removes, a clamp
holds its target and a cap holds its ceiling. What that costs is measured and recorded.

It knows nothing of how a vector was found, and does not say how strong is too strong.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache

from .capture import batches, capturing, repeat_cache, shared_prefix
from .errors import MlxsteerError, UsageError
from .metrics import log_softmax, token_kl
from .neutral import Neutral
from .patch import PatchTap
from .plan import taps
from .progress import Progress, silent
from .steering import Phase, Steering
from .taps import PLAIN, Taps
from .vector import Vector

__all__ = ["BUDGET", "Neutral", "calibrate"]

BUDGET = 1.0  # nats of mean KL per response token at strength 1
TOLERANCE = 0.02  # relative, of the budget
FEW = 4  # texts on which the search begins
UNIT = "mean KL(unsteered || steered) per response token on neutral prompts, nats"
MEANING = {
    "project": "strength 1 removes the direction",
    "clamp": "strength 1 holds the direction at its target",
    "cap": "strength 1 holds the direction at or below its target",
}


class _Meter:
    """Mean KL per response token of a steering on one text, against the unsteered distribution.

    Blocks below the first that is steered are read once, in the unsteered pass, and never again:
    their residual is patched in, and MLX never evaluates what is replaced.
    """

    def __init__(self, model: nn.Module, text: Neutral, vector: Vector) -> None:
        self.model = model
        self.first = vector.layers[0]
        inputs = [s[:-1] for s in text.sequences]
        whole = Phase.parse(vector.phase).needs_prompt_length or _slides(model)
        self.prefix = 0 if whole else shared_prefix(inputs)
        tokens = max(64, min(1024, (1 << 26) // int(model.args.vocab_size)))
        self.passes: list[_Pass] = []
        if self.prefix:
            self.passes.append(_Pass([inputs[0][: self.prefix]], 0, [self.prefix]))
        for batch in batches([len(s) - self.prefix for s in inputs], tokens):
            rows = [inputs[i][self.prefix :] for i in batch]
            self.passes.append(_Pass(rows, self.prefix, [text.prompt_lengths[i] for i in batch]))
        self.plain: list[np.ndarray] = []
        self.starts: list[mx.array | None] = []
        for logits, start in self._read(Steering(), [None] * len(self.passes)):
            self.starts.append(start)
            if logits is not None:
                self.plain.append(log_softmax(logits))

    def _read(
        self, steering: Steering, starts: Sequence[mx.array | None]
    ) -> Iterator[tuple[np.ndarray | None, mx.array | None]]:
        """Yield per pass the logits that predict response tokens, and the residual at the start."""
        cache: list[Any] | None = None
        for each, start in zip(self.passes, starts, strict=True):
            T = each.tokens.shape[1]
            acting = tuple(steering.at(each.position, T, n) for n in each.prompt_lengths)
            wanted, kept = taps(acting), None
            if self.first > 0 and start is None:
                wanted, table = capturing([self.first - 1], ["resid_post"], inner=wanted)
                kept = table[self.first - 1]
            elif start is not None:
                wanted = Taps(
                    {**wanted.table, (self.first - 1, "mlp"): PatchTap(PLAIN, None, start)}
                )
            is_prefix = bool(self.prefix) and each is self.passes[0]
            if is_prefix:
                cache = self.model.make_cache()
                mx.eval(self.model(each.tokens, cache=cache, taps=wanted)[:, -1, :1])
                picked = None
            else:
                copies = repeat_cache(cache, each.tokens.shape[0])
                logits = self.model(each.tokens, cache=copies, taps=wanted)
                logits = logits.reshape(-1, logits.shape[-1])[each.picked]
                picked = np.array(logits.astype(mx.float32))
            residual = kept["resid_post"] if kept is not None else None
            if residual is not None:
                mx.eval(residual)
            yield picked, residual

    def __call__(self, steering: Steering) -> float:
        total, count, plain = 0.0, 0, iter(self.plain)
        for logits, _ in self._read(steering, self.starts):
            if logits is not None:
                per_token = token_kl(next(plain), log_softmax(logits))
                total, count = total + float(per_token.sum()), count + len(per_token)
        return total / count


class _Pass:
    """The tokens of one forward pass, right-padded, and which of its rows' positions are scored."""

    def __init__(
        self, rows: Sequence[Sequence[int]], position: int, prompt_lengths: list[int]
    ) -> None:
        length = max(map(len, rows))
        padded = np.zeros((len(rows), length), np.int32)
        picked = []
        for i, (row, prompt_length) in enumerate(zip(rows, prompt_lengths, strict=True)):
            padded[i, : len(row)] = row
            picked += [i * length + t for t in range(prompt_length - 1 - position, len(row))]
        self.tokens = mx.array(padded)
        self.picked = mx.array(picked)
        self.position = position
        self.prompt_lengths = prompt_lengths


def _slides(model: nn.Module) -> bool:
    return not all(isinstance(c, KVCache) for c in model.make_cache())


def calibrate(
    model: nn.Module,
    tokenizer: Any,
    vector: Vector,
    *,
    budget: float = BUDGET,
    neutral: Neutral | None = None,
    progress: Progress = silent,
) -> Vector:
    """Return the vector with the scale at which strength 1 costs `budget` nats.

    The scale of a vector that projects, clamps or caps becomes 1, and what strength 1 costs is
    recorded.

    Args:
        vector: calibrated or not; its scales give the proportions between layers.
        budget: mean KL(unsteered || steered) per response token, nats; of `add` only.
        neutral: text to measure on, to be shared between vectors of one model; None takes what the
            model wrote before or lets it write (`Neutral.kept`).

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
        return vector.replace(scales=np.ones_like(vector.scales), calibration=record)

    def meter(texts: Neutral) -> Callable[[float], float]:
        measure = _Meter(model, texts, vector)

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
        rough = _search(meter(few), budget, vector.name, start, slope, tolerance=0.1)
        start, slope = rough.factor, rough.slope
    found = _search(meter(text), budget, vector.name, start, slope, TOLERANCE)
    progress(stage, passes, passes)
    record = {
        "unit": UNIT,
        "budget": budget,
        **_record(text, found.kl, found.factor, vector.scales),
    }
    scales = (vector.scales.astype(np.float64) * found.factor).astype(np.float32)
    return vector.replace(scales=scales, calibration=record)


def _cost(model: nn.Module, text: Neutral, vector: Vector) -> dict[str, Any]:
    """Return the calibration of a vector that reads the stream: what strength 1 costs."""
    whole = vector.replace(scales=np.ones_like(vector.scales))
    kl = _Meter(model, text, whole)(Steering((whole, 1.0)))
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


@dataclass(frozen=True)
class _Found:
    factor: float
    kl: float
    slope: float  # of log KL over log factor


def _search(
    kl_at: Callable[[float], float],
    budget: float,
    name: str,
    start: float,
    slope: float,
    tolerance: float,
) -> _Found:
    """Find the factor whose KL is the budget, within a relative tolerance."""
    points: list[tuple[float, float]] = []  # (log factor, log KL / budget), sorted by factor
    x = math.log(start)
    for _ in range(24):
        kl = kl_at(math.exp(x))
        if not math.isfinite(kl):
            points.append((x, math.inf))
        elif kl <= 0:
            points.append((x, -math.inf))
        else:
            points.append((x, math.log(kl / budget)))
            if abs(kl / budget - 1) <= tolerance:
                return _Found(math.exp(x), kl, slope)
        points.sort()
        below = [p for p in points if p[1] < 0]
        above = [p for p in points if p[1] >= 0]
        finite = sorted((p for p in points if math.isfinite(p[1])), key=lambda p: abs(p[1]))
        if len(finite) >= 2 and finite[0][0] != finite[1][0]:
            (x0, y0), (x1, y1) = finite[:2]
            slope = min(max((y1 - y0) / (x1 - x0), 0.3), 4.0)
        x = finite[0][0] - finite[0][1] / slope if finite else x
        if below and above:
            low, high = max(below)[0], min(above)[0]
            margin = 0.1 * (high - low)
            if not low + margin / 10 < x < high - margin / 10:
                x = (low + high) / 2
        elif below:
            x = min(max(x, max(below)[0] + 0.1), max(below)[0] + 2.5)
        else:
            x = max(min(x, min(above)[0] - 0.1), min(above)[0] - 2.5)
        if abs(x - math.log(start)) > 14:
            break
    raise MlxsteerError(
        f"no strength of {name!r} moves the model by {budget:g} nats: it may be a vector for "
        "another model, or of layers that nothing reads"
    )
