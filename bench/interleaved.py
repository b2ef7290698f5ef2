"""Two ways of doing the same work, timed in turn in one process.

Machines drift and are shared, so a lone figure means nothing: the two sides alternate A B B A, and
what is reported is the ratio of their medians with a bootstrap interval over the rounds.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Ratio:
    """Time of B over time of A: above 1, A is the faster.

    Attributes:
        ratio: of medians.
        low: lower end of its bootstrap 95% interval.
        high: upper end.
        a: median seconds of A.
        b: median seconds of B.
    """

    ratio: float
    low: float
    high: float
    a: float
    b: float


def interleaved(a: Callable[[], object], b: Callable[[], object], rounds: int) -> Ratio:
    """Run A B B A `rounds` times after one warm-up of each."""
    a()
    b()
    times: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for side in (0, 1, 1, 0):
            start = time.perf_counter()
            (a, b)[side]()
            times[side].append(time.perf_counter() - start)
    seconds = np.array(times)
    draws = np.random.default_rng(0).integers(0, 2 * rounds, (2000, 2 * rounds))
    ratios = np.median(seconds[1][draws], axis=1) / np.median(seconds[0][draws], axis=1)
    low, high = np.quantile(ratios, (0.025, 0.975))
    medians = np.median(seconds, axis=1)
    ratio = medians[1] / medians[0]
    return Ratio(float(ratio), float(low), float(high), float(medians[0]), float(medians[1]))
