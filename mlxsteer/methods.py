"""How a direction is found in contrasting activations: arrays in, a direction out.

Every method gets the activations of the positive and of the negative side of the same pairs and
returns one row per layer whose sign is fixed: positive always means MORE of the concept. It knows
nothing of models, prompts or files.

Shapes: `positive`, `negative` `[N, n, D]` (pairs, layers, width) -> rows `[n, D]`, float32; the
norm of a row is the natural scale.
"""

from collections.abc import Callable

import numpy as np

from .errors import UsageError

__all__ = ["METHODS", "find_rows", "mean_diff"]


def mean_diff(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return `mean(positive) - mean(negative)` per layer.

    The difference of means of contrastive activation addition (Rimsky et al. 2023,
    arXiv:2312.06681) and of DiffMean in AxBench (Wu et al. 2025, arXiv:2501.17148). With paired
    prompts it equals the mean of the paired differences.
    """
    mean: np.ndarray = positive.mean(axis=0, dtype=np.float64)
    mean = mean - negative.mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {"mean_diff": mean_diff}


def find_rows(method: str, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return the rows `[n, D]` of a method by its name.

    Raises:
        UsageError: there is no such method.
    """
    if method not in METHODS:
        raise UsageError(f"method {method!r} does not exist; methods are {', '.join(METHODS)}")
    return METHODS[method](positive, negative)
