"""What a vector must beat: vectors that cost as many nats and mean something else, or nothing.

| null | what it is |
| --- | --- |
| other | the vector of another concept |
| refit | the mean difference of the concept's own pairs with half of them turned around |
| isotropic | a random direction at every layer |

A refit turns exactly half of the pairs: with free coin flips a remainder of the true difference
stays in, and bringing it to the same cost would make it large again. It is a mean difference of the
pairs as they are usually read, however the judged vector was found. Isotropic directions come in
addition only.

Equal cost is measured, not assumed: every null is searched to the KL of the judged vector on the
same text. It knows nothing of scores. Shapes: `[N, n, D]` activations of `N` pairs at `n` layers.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .errors import MlxsteerError
from .meter import Meter, search
from .steering import Steering
from .vector import Vector

__all__ = ["Null", "equalised", "isotropic", "nearest", "refits"]

TOLERANCE = 0.05  # relative, of the KL that all nulls have


@dataclass(frozen=True)
class Null:
    """A null at the cost that it shall have: strength 1 of `vector`, `kl` nats per token."""

    kind: str
    name: str
    vector: Vector
    kl: float

    @property
    def steering(self) -> Steering:
        """What to steer with."""
        return Steering((self.vector, 1.0))


def nearest(vector: Vector, others: Sequence[Vector], most: int) -> list[Vector]:
    """Return those of the other vectors that point the most like `vector`: the hardest to beat.

    Only vectors that add can be brought to a cost; the nearness is the cosine of all rows.
    """
    rows = vector.rows()

    def cosine(other: Vector) -> float:
        theirs = other.rows()
        inner = sum(float(rows[n] @ theirs[n]) for n in rows.keys() & theirs.keys())
        return inner / float(np.linalg.norm(vector.scales) * np.linalg.norm(other.scales))

    usable = [v for v in others if v.op == "add" and not v.is_zero]
    return sorted(usable, key=lambda v: (-cosine(v), v.name))[:most]


def refits(
    positive: np.ndarray, negative: np.ndarray, like: Vector, count: int, seed: int = 0
) -> list[Vector]:
    """Return `count` mean differences in which half of the pairs stand the wrong way round.

    Args:
        positive, negative: `[N, n, D]` at the layers of `like`.
        like: gives layers, site and phase.

    Raises:
        MlxsteerError: fewer than four pairs.
    """
    difference = positive.astype(np.float64) - negative
    pairs = len(difference)
    if pairs < 4:
        raise MlxsteerError(f"{pairs} pairs cannot be turned around by halves: give 4 or more")
    rng = np.random.default_rng(seed)
    signs = np.where(np.arange(pairs) < pairs // 2, -1.0, 1.0)
    found = []
    for i in range(count):
        turned = rng.permutation(signs)
        rows = np.einsum("i,ind->nd", turned - turned.mean(), difference) / pairs
        found.append(_like(like, f"refit {i + 1}", rows))
    return found


def isotropic(like: Vector, count: int, seed: int = 0) -> list[Vector]:
    """Return `count` random directions with the scales of `like`."""
    rng = np.random.default_rng(seed)
    found = []
    for i in range(count):
        rows = rng.normal(size=like.directions.shape)
        rows *= (like.scales / np.linalg.norm(rows, axis=1))[:, None]
        found.append(_like(like, f"isotropic {i + 1}", rows))
    return found


def _like(like: Vector, name: str, rows: np.ndarray) -> Vector:
    """Return a vector of these rows with the norm of `like` in all, so that a search starts near
    its end."""
    whole = np.linalg.norm(like.scales) / max(float(np.linalg.norm(rows)), 1e-30)
    table = {layer: row * whole for layer, row in zip(like.layers, rows, strict=True)}
    return Vector.from_rows(name, table, site=like.site, phase=like.phase, model=like.model)


def equalised(
    meter: Meter,
    kind: str,
    vector: Vector,
    kl: float,
    *,
    slope: float = 1.7,
    least_step: float = 0.1,
) -> Null:
    """Return the null with the scale at which strength 1 costs `kl` nats.

    Args:
        slope, least_step: as for `search`, which begins at the scale that the null has.

    Raises:
        MlxsteerError: no scale does.
    """
    found = search(
        lambda factor: meter(Steering((vector, factor))),
        kl,
        vector.name,
        1.0,
        slope,
        TOLERANCE,
        least_step,
    )
    if found.factor != 1.0:
        scales = (vector.scales.astype(np.float64) * found.factor).astype(np.float32)
        vector = vector.replace(scales=scales)
    return Null(kind, vector.name, vector, found.kl)
