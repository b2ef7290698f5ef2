"""Both sides of contrast data as activations, read once, and the directions in them.

What is read serves every layer, site and method that is asked for later; what a method has found at
a layer is kept. It knows nothing of strengths, or of what a direction does.

Shapes: activations are `[N, n, D]` of `N` pairs at `n` layers, rows `[n, D]`.
"""

from collections.abc import Sequence
from typing import Any

import mlx.nn as nn
import numpy as np

from .capture import capture, check_places
from .errors import MlxsteerError
from .methods import find_rows
from .progress import Progress, silent
from .prompts import Pair
from .reading import RESPONSE_TOKENS, Read, read_sides

__all__ = ["Contrast"]


class Contrast:
    """The activations of pairs at some sites and layers.

    Args:
        layers: ascending; the rest is as `extract` has it.

    Raises:
        UsageError: a site or layer that the model does not have.
        MlxsteerError: prompts over the context, or whose place to read cannot be found.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        pairs: Sequence[Pair],
        read: Read | None = None,
        *,
        sites: Sequence[str],
        layers: Sequence[int],
        response_tokens: int = RESPONSE_TOKENS,
        progress: Progress = silent,
    ) -> None:
        check_places(model, sites, layers)
        self.layers = tuple(layers)
        self._rows: dict[tuple[str, str, bool, int], np.ndarray] = {}
        readings = read_sides(
            model, tokenizer, pairs, read, response_tokens=response_tokens, progress=progress
        )
        self._sides = [
            capture(
                model,
                readings[which].sequences,
                sites=sites,
                layers=layers,
                positions=readings[which].positions,
                progress=progress,
                stage=f"reading {which} prompts",
            )
            for which in ("positive", "negative")
        ]

    def at(self, site: str, layers: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Return the positive and the negative side at some of the layers."""
        where = [self.layers.index(layer) for layer in layers]
        positive, negative = (side[site][:, where] for side in self._sides)
        return positive, negative

    def rows(
        self,
        method: str,
        site: str,
        layers: Sequence[int],
        *,
        without_negative_mean: bool = False,
        progress: Progress = silent,
    ) -> np.ndarray:
        """Return what a method finds at some of the layers.

        Raises:
            MlxsteerError: sides that do not differ at a layer, or that the method cannot work with.
        """
        keys = {layer: (method, site, without_negative_mean, layer) for layer in layers}
        new = [layer for layer in layers if keys[layer] not in self._rows]
        if new:
            found = find_rows(
                method,
                *self.at(site, new),
                without_negative_mean=without_negative_mean,
                layers=new,
                progress=progress,
            )
            self._rows |= {keys[layer]: row for layer, row in zip(new, found, strict=True)}
        rows = np.stack([self._rows[keys[layer]] for layer in layers])
        flat = [layer for layer, row in zip(layers, rows, strict=True) if not np.any(row)]
        if flat:
            raise MlxsteerError(
                f"both sides are the same to the model at layer {flat[0]}: no direction"
            )
        return rows
