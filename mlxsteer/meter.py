"""The cost of a steering in nats, and the search for the strength that has a given cost.

The cost is the mean KL(unsteered || steered) per response token on neutral text, teacher-forced on
the unsteered answers. Between two factors log KL is close to a straight line in the log of the
factor, so the search is a bisection that takes the secant's guess whenever it lies inside the
bracket: a handful of forward passes.

It knows nothing of what a vector is for, and does not say how much is too much.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.nn as nn
import numpy as np

from .errors import MlxsteerError
from .forced import Forced, Text
from .metrics import log_softmax, token_kl
from .neutral import Neutral
from .steering import Steering

__all__ = ["Found", "Meter", "search"]


class Meter:
    """Mean KL per response token of a steering on one text, against the unsteered distribution.

    Args:
        first: the lowest block that any steering will steer, or where several begin.
    """

    def __init__(self, model: nn.Module, text: Neutral, first: int | Sequence[int]) -> None:
        rows = zip(text.sequences, text.prompt_lengths, strict=True)
        self.forced = Forced(model, [Text(s, n) for s, n in rows if len(s) > n], first)
        read = self.forced.read(Steering())
        self.plain = [log_softmax(np.asarray(logits)) for _, _, logits in read]

    def __call__(self, steering: Steering) -> float:
        total, count = 0.0, 0
        for plain, (_, _, logits) in zip(self.plain, self.forced.read(steering), strict=True):
            per_token = token_kl(plain, np.asarray(logits))
            total, count = total + float(per_token.sum()), count + len(per_token)
        return total / count


@dataclass(frozen=True)
class Found:
    """A factor, what it costs, and the slope of log KL over log factor there."""

    factor: float
    kl: float
    slope: float


def search(
    kl_at: Callable[[float], float],
    budget: float,
    name: str,
    start: float,
    slope: float,
    tolerance: float,
    least_step: float = 0.1,
) -> Found:
    """Find the factor whose KL is the budget, within a relative tolerance.

    Args:
        start, slope: where to begin, and how steep log KL is over the log of the factor there.
        least_step: of that log, while all that was tried lies on one side of the budget.
    """
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
                return Found(math.exp(x), kl, slope)
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
            x = min(max(x, max(below)[0] + least_step), max(below)[0] + 2.5)
        else:
            x = max(min(x, min(above)[0] - least_step), min(above)[0] - 2.5)
        if abs(x - math.log(start)) > 14:
            break
    raise MlxsteerError(
        f"no strength of {name!r} moves the model by {budget:g} nats: it may be a vector for "
        "another model, or of layers that nothing reads"
    )
