"""How sure a difference is: the paired bootstrap over prompts, and Holm's correction over claims.

Everything is deterministic: the same differences give the same interval. It knows nothing of what
was measured. Shapes: `differences` is `[N]`, one number per prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from .errors import UsageError

__all__ = ["ALPHA", "Interval", "corrected", "holm", "paired_bootstrap"]

ALPHA = 0.05
RESAMPLES = 10_000


@dataclass(frozen=True)
class Interval:
    """A mean difference with its interval.

    Attributes:
        low, high: percentiles of the resampled means, two-sided at `1 - alpha`.
        p: how likely resampled means are not above 0; the smallest is `1 / (RESAMPLES + 1)`.
        wrong_way: the share of prompts whose difference is below 0.
    """

    mean: float
    low: float
    high: float
    p: float
    wrong_way: float
    alpha: float = ALPHA

    @property
    def above(self) -> bool:
        """Whether the difference is surely above 0."""
        return self.low > 0

    @property
    def below(self) -> bool:
        """Whether the difference is surely below 0."""
        return self.high < 0


def paired_bootstrap(
    differences: Sequence[float] | np.ndarray, *, alpha: float = ALPHA, seed: int = 0
) -> Interval:
    """Return the mean of paired differences with its percentile interval (Efron 1979).

    Prompts are drawn with replacement `RESAMPLES` times; the mean of each draw is taken.

    Raises:
        UsageError: fewer than two differences, or one that is no finite number.
    """
    values = np.asarray(differences, np.float64)
    if values.ndim != 1 or len(values) < 2:
        raise UsageError(f"{values.size} differences have no interval: measure 2 prompts or more")
    if not np.isfinite(values).all():
        raise UsageError("a difference is no finite number: a strength is beyond all numbers")
    rng = np.random.default_rng(seed)
    means = values[rng.integers(len(values), size=(RESAMPLES, len(values)))].mean(axis=1)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    p = (1 + int((means <= 0).sum())) / (RESAMPLES + 1)
    below = float((values < 0).mean())
    return Interval(float(values.mean()), float(low), float(high), p, below, alpha)


def holm(p_values: Mapping[str, float]) -> dict[str, float]:
    """Return adjusted p-values (Holm 1979): the i-th smallest of m times `m - i` (i from 0), at
    least as large as those before it and at most 1.
    """
    adjusted, largest = {}, 0.0
    for i, name in enumerate(_ranked(p_values)):
        largest = max(largest, min(1.0, (len(p_values) - i) * p_values[name]))
        adjusted[name] = largest
    return {name: adjusted[name] for name in p_values}


def corrected(
    claims: Mapping[str, Sequence[float]], *, alpha: float = ALPHA
) -> dict[str, tuple[Interval, bool]]:
    """Return per claim its Holm-corrected interval, and whether it stands: the differences are
    above 0 at its step of Holm's procedure and at all steps before it.

    The i-th surest of m claims has the two-sided interval of the level `1 - alpha / (m - i)`.
    """
    p_values = {name: paired_bootstrap(values).p for name, values in claims.items()}
    found, standing = {}, True
    for i, name in enumerate(_ranked(p_values)):
        level = alpha / (len(claims) - i)
        interval = paired_bootstrap(claims[name], alpha=level)
        standing = standing and interval.above
        found[name] = interval, standing
    return {name: found[name] for name in claims}


def _ranked(p_values: Mapping[str, float]) -> list[str]:
    return sorted(p_values, key=lambda name: (p_values[name], name))
