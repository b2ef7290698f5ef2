"""How a direction is found in contrasting activations: arrays in, a direction out.

Every method gets the activations of the positive and of the negative side of the same pairs at one
layer, `p_i` and `q_i`, and returns a row whose sign is fixed: positive always means MORE of the
concept. All rows have the form

    row = (m . d) d,   m = mean(p) - mean(q),   |d| = 1

the mean difference along the direction `d` that the method finds. So the sign of `d` is that of the
mean difference whatever the method, and the norm of the row is the natural scale: how far the two
sides are apart along it. Everything is deterministic, in float64.

It knows nothing of models, prompts or files. Shapes: `positive`, `negative` `[N, D]` (pairs, width)
-> row `[D]`; `find_rows` does `n` layers, `[N, n, D]` -> `[n, D]`. Rows are float32.
"""

from collections.abc import Callable, Sequence

import numpy as np

from .errors import MlxsteerError, UsageError
from .progress import Progress, silent

__all__ = [
    "METHODS",
    "check_method",
    "find_rows",
    "lda",
    "mean_diff",
    "pca",
    "probe",
    "remove_negative_mean",
]

SURE = 2.0  # standard errors that a mean must be away from 0 before its sign counts
QUIET = 0.1  # of the median deviation: the least that a coordinate is divided by
NOTHING = 1e-4  # of a row: what is left of it is rounding
RANK = 1e-13  # of the largest component: what is less is rounding
NEWTON_STEPS = 100


def mean_diff(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return `m = mean(p) - mean(q)`.

    The difference of means of contrastive activation addition (Rimsky et al. 2023,
    arXiv:2312.06681) and of DiffMean in AxBench (Wu et al. 2025, arXiv:2501.17148). With paired
    prompts it equals the mean of the paired differences. Takes `[N, D]` or `[N, n, D]`.
    """
    mean: np.ndarray = positive.mean(axis=0, dtype=np.float64)
    mean = mean - negative.mean(axis=0, dtype=np.float64)
    return mean.astype(np.float32)


def pca(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return `(m . d) d` with the first principal component of the paired differences:

        d = argmax sum_i ((p_i - q_i) . d)^2   over |d| = 1

    The contrast vectors of representation engineering (Zou et al. 2023, arXiv:2310.01405). The
    differences are NOT centred: centring removes the mean difference, which is the concept, and
    leaves what the pairs disagree in. It equals the PCA of both sides around the middle of each
    pair (`pca_center` in repeng). With one pair it is the difference.

    Raises:
        MlxsteerError: the component is not what the sides differ in, so its sign would be chance.
    """
    difference = positive.astype(np.float64) - negative
    d = _components(difference)[1][0]
    along = difference @ d
    if abs(along.mean()) < SURE * along.std() / np.sqrt(len(along)):
        raise MlxsteerError(
            "what the pairs vary in most is not what the two sides differ in, so pca would give it "
            "a sign by chance: use mean_diff, or pairs that differ in the concept only"
        )
    return _row(d, positive, negative)


def probe(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return `(m . d) d` with the normal of a logistic regression that tells the sides apart:

        min sum_i log(1 + exp(-y_i (v . z_i + b))) + |v|^2 / 2   over v, b
        z = (x - mean(x)) / std(x) per coordinate,   y = 1 for p and -1 for q,   d ~ v / std(x)

    The probe weight direction of inference-time intervention (Li et al. 2023, arXiv:2306.03341).
    A deviation counts as a tenth of the median one at least, so that rounding decides nothing.

    `d` is the classifier's normal in activation space: the unit step that changes the log-odds
    most. It is a whitened direction, short where both sides vary anyway, and NOT where the positive
    side lies: that is the mean difference, with which the paper itself steers better.

    Raises:
        MlxsteerError: fewer than two pairs.
    """
    _several(positive, "probe")
    x = np.concatenate([positive, negative]).astype(np.float64)
    y = np.repeat([1.0, -1.0], [len(positive), len(negative)])
    deviation = x.std(axis=0)
    deviation = np.maximum(deviation, QUIET * np.median(deviation))
    deviation[deviation == 0] = 1
    z = (x - x.mean(axis=0)) / deviation
    # the penalty keeps v among the rows of z, so the search is in as many numbers as z has rank
    basis = _components(z)[1]
    return _row(_logistic(z @ basis.T, y) @ basis / deviation, positive, negative)


def lda(positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return `(m . d) d` with Fisher's linear discriminant, the mean difference whitened:

        d ~ S^-1 m,   S = (1 - g) C + g (tr C / D) I

    `C` is the covariance within the sides, `g` the shrinkage of Ledoit and Wolf (2004, "A
    well-conditioned estimator for large-dimensional covariance matrices"), without which `C` has no
    inverse when there are fewer prompts than coordinates. It is the covariance-corrected mass-mean
    probe of Marks and Tegmark (2023, arXiv:2310.06824): less than the mean difference of what the
    prompts of each side vary in. A normal like that of `probe`, without its search.

    Raises:
        MlxsteerError: fewer than two pairs, or prompts that are all alike.
    """
    _several(positive, "lda")
    sides = (positive.astype(np.float64), negative.astype(np.float64))
    x = np.concatenate([side - side.mean(axis=0) for side in sides])
    m = sides[0].mean(axis=0) - sides[1].mean(axis=0)
    n, D = x.shape
    if not x.any():
        raise MlxsteerError("lda needs prompts that differ within a side, and all are alike")
    squares, basis = _components(x)
    values = squares / n  # eigenvalues of C; those that are missing are 0
    mean = values.sum() / D
    spread = (values**2).sum() - D * mean**2
    noise = ((x**2).sum(axis=1) ** 2).sum() / n**2 - (values**2).sum() / n
    g = min(max(noise / spread, 1e-6), 1.0) if spread > 0 else 1.0
    floor = g * mean
    within = basis @ m
    d = m / floor + (within / ((1 - g) * values + floor) - within / floor) @ basis
    return _row(d, positive, negative)


METHODS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "mean_diff": mean_diff,
    "pca": pca,
    "probe": probe,
    "lda": lda,
}


def remove_negative_mean(row: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return `(m . d) d` with the direction of a row that the mean of the negative side has no part
    in:

        d ~ row - (row . n) n,   n = mean(q) / |mean(q)|

    The mean holds what every prompt has, concept or not; steering along it changes the size of the
    residual stream rather than what it says.

    Raises:
        MlxsteerError: nothing of the row is left.
    """
    n = negative.mean(axis=0, dtype=np.float64)
    n = n / (np.linalg.norm(n) or 1)
    wide = row.astype(np.float64)
    d = wide - (wide @ n) * n
    if np.linalg.norm(d) <= NOTHING * np.linalg.norm(wide):
        raise MlxsteerError(
            "the direction is the mean of the negative side and nothing else: keep that mean in"
        )
    return _row(d, positive, negative)


def check_method(method: str) -> None:
    """Refuse a method that does not exist.

    Raises:
        UsageError: there is no such method.
    """
    if method not in METHODS:
        raise UsageError(f"method {method!r} does not exist; methods are {', '.join(METHODS)}")


def find_rows(
    method: str,
    positive: np.ndarray,
    negative: np.ndarray,
    *,
    without_negative_mean: bool = False,
    layers: Sequence[int] | None = None,
    progress: Progress = silent,
) -> np.ndarray:
    """Return the rows `[n, D]` of a method by its name; zeros where the sides have one mean.

    Args:
        positive, negative: `[N, n, D]`, the same pairs in the same order.
        without_negative_mean: apply `remove_negative_mean` to each.
        layers: what the rows are called in messages; None counts from 0.

    Raises:
        UsageError: there is no such method, or the sides are no pairs.
        MlxsteerError: activations that are not finite, data that the method cannot work with.
    """
    check_method(method)
    if positive.shape != negative.shape:
        shapes = f"{list(positive.shape)} and {list(negative.shape)}"
        raise UsageError(f"the sides have the shapes {shapes}: they must be the same pairs")
    count = positive.shape[1]
    rows = np.zeros(positive.shape[1:], np.float32)
    stage = f"finding directions by {method}"
    progress(stage, 0, count)
    for i, layer in enumerate(range(count) if layers is None else layers):
        p, q = positive[:, i], negative[:, i]
        if not (np.isfinite(p).all() and np.isfinite(q).all()):
            raise MlxsteerError(
                f"layer {layer}: activations are not finite: load the model in bfloat16 or float32"
            )
        if np.any(mean_diff(p, q)):
            try:
                rows[i] = METHODS[method](p, q)
                if without_negative_mean:
                    rows[i] = remove_negative_mean(rows[i], p, q)
            except MlxsteerError as error:
                raise MlxsteerError(f"layer {layer}: {error}") from None
        progress(stage, i + 1, count)
    return rows


def _row(d: np.ndarray, positive: np.ndarray, negative: np.ndarray) -> np.ndarray:
    """Return the mean difference along a direction of any length and sign."""
    m = positive.mean(axis=0, dtype=np.float64) - negative.mean(axis=0, dtype=np.float64)
    d = d / (np.linalg.norm(d) or 1)
    row: np.ndarray = (m @ d) * d
    return row.astype(np.float32)


def _components(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the principal components of rows `[N, D]`, not centred, the largest first.

    They are the sums of squares along each, `[r]`, and unit rows `[r, D]`; from the smaller one of
    the two products of `x` with itself, which is much cheaper than its singular values.
    """
    wide = len(x) < x.shape[1]
    squares, vectors = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = np.flatnonzero(squares > RANK * squares[-1])[::-1]
    squares, rows = squares[kept], vectors.T[kept]
    return squares, rows @ x / np.sqrt(squares)[:, None] if wide else rows


def _several(side: np.ndarray, method: str) -> None:
    if len(side) < 2:
        raise MlxsteerError(
            f"{method} needs two pairs or more, there is {len(side)}: add pairs, or use mean_diff"
        )


def _logistic(features: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Return the weights `[r]` of a logistic regression of `features` `[N, r]` by Newton's method.

    The loss is strictly convex: a step that does not lower it is halved until it does.
    """
    x = np.column_stack([features, np.ones(len(features))])
    penalty = np.append(np.ones(features.shape[1]), 0.0)

    def loss(w: np.ndarray) -> float:
        return float(np.logaddexp(0, -y * (x @ w)).sum() + (penalty * w * w).sum() / 2)

    w = np.zeros(x.shape[1])
    for _ in range(NEWTON_STEPS):
        wrong = np.exp(-np.logaddexp(0, y * (x @ w)))  # the probability of the other side
        gradient = penalty * w - (y * wrong) @ x
        hessian = (x * (wrong * (1 - wrong))[:, None]).T @ x + np.diag(penalty)
        step = np.linalg.solve(hessian, gradient)
        gain = float(gradient @ step)  # about twice what a full step wins
        now, size = loss(w), 1.0
        if gain <= 1e-10 * (1 + now):
            return w[:-1]
        while loss(w - size * step) > now - 1e-4 * size * gain and size > 1e-6:
            size /= 2
        w = w - size * step
    raise MlxsteerError("probe found no end to its search: use lda, the same in closed form")
