"""How far two vectors are the same: per layer the cosine and the norms, and the fields that differ.

The norm of a layer is what strength 1 adds there, its scale. The cosine is of the directions: 1 for
the same, -1 for opposite ones, and about `1 / sqrt(D)` in size where they have nothing in common.
Layers that only one of the two has are listed too.

It knows nothing of models: equal cosines are not equal effects.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import MlxsteerError
from .values import Floats, brief, norms
from .vector import Vector

__all__ = ["Diff", "LayerDiff", "diff"]

_ARRAYS = ("targets", "encoders", "encoder_biases")


@dataclass(frozen=True)
class LayerDiff:
    """One layer of two vectors; a norm is None where the vector lacks the layer."""

    layer: int
    cosine: float | None
    norm_a: float | None
    norm_b: float | None


@dataclass(frozen=True)
class Diff:
    """Two vectors side by side.

    Attributes:
        layers: those of either, ascending.
        fields: what else differs, by name and sorted: fields of the record, such as `op` or
            `model`, and the arrays `targets`, `encoders` and `encoder_biases`.
    """

    layers: tuple[LayerDiff, ...]
    fields: tuple[str, ...]


def diff(a: Vector, b: Vector) -> Diff:
    """Compare two vectors of one width.

    Raises:
        MlxsteerError: the widths differ.
    """
    if a.hidden_size != b.hidden_size:
        one, other = (f"{brief(v.name)} (width {v.hidden_size})" for v in (a, b))
        raise MlxsteerError(f"{one} and {other} are of different models: compare vectors of one")
    units = [_units(v) for v in (a, b)]
    scales = [dict(zip(v.layers, v.scales.tolist(), strict=True)) for v in (a, b)]
    layers = []
    for layer in sorted({*a.layers, *b.layers}):
        cosine = None
        if all(layer in known for known in units):
            cosine = min(1.0, max(-1.0, float(units[0][layer] @ units[1][layer])))
        layers.append(LayerDiff(layer, cosine, scales[0].get(layer), scales[1].get(layer)))
    mine, theirs = a.record(), b.record()
    fields = {key for key in mine if mine[key] != theirs[key]} - {"content_sha256", "layers"}
    fields |= {key for key in _ARRAYS if not _equal(getattr(a, key), getattr(b, key))}
    return Diff(tuple(layers), tuple(sorted(fields)))


def _units(vector: Vector) -> dict[int, npt.NDArray[np.float64]]:
    exact = vector.directions / norms(vector.directions)[:, None]
    return dict(zip(vector.layers, exact, strict=True))


def _equal(a: Floats | None, b: Floats | None) -> bool:
    return a is b if a is None or b is None else np.array_equal(a, b)
