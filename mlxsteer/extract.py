"""From contrast data to a calibrated vector: read both sides, take the direction, fix the scale.

Prompt-side separation is recorded as a sanity check only: it says that the two instructions differ,
nothing more, and selects nothing. This module knows nothing of generation or of the terminal.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from .calibrate import Neutral
from .calibrate import calibrate as calibrated
from .capture import capture
from .errors import MlxsteerError, UsageError
from .library import Concept, concept
from .methods import find_rows
from .metrics import auroc, cohens_d
from .progress import Progress, silent
from .prompts import Pair, check_length, pairs_sha256, read_pairs, render, template_record
from .vector import SITES, ModelRef, Vector

__all__ = ["default_layers", "extract"]

log = logging.getLogger("mlxsteer")

Source = str | Path | Concept | Sequence[Pair] | Sequence[Mapping[str, Any]]


def default_layers(n_layers: int) -> tuple[int, ...]:
    """Return the middle third: concepts have formed there and words are not chosen yet."""
    return tuple(range(n_layers // 3, max(2 * n_layers // 3, n_layers // 3 + 1)))


def extract(
    model: nn.Module,
    tokenizer: Any,
    source: Source,
    *,
    name: str | None = None,
    method: str = "mean_diff",
    site: str = "resid_post",
    layers: Sequence[int] | None = None,
    position: int = -1,
    calibrate: bool = True,
    neutral: Neutral | None = None,
    progress: Progress = silent,
) -> Vector:
    """Find the direction of a concept and fix its scale.

    Args:
        source: a concept (folder or library name), a `pairs.jsonl`, or pairs.
        name: of the vector; default is the concept's or the file's.
        method: `mean_diff`.
        site: where to read and later to steer.
        layers: which blocks; None is the middle third.
        position: token index into each prompt that is read, negative from its end.
        calibrate: False leaves the natural scale (the norm of the difference), uncalibrated.
        neutral: text for the calibration, to be shared between vectors of one model.

    Raises:
        MlxsteerError: bad contrast data (with its line), prompts over the context, sides that do
            not
            differ inside the model, a concept that no strength brings to the budget.
        UsageError: an unknown method, site or layer.
    """
    if site not in SITES:
        raise UsageError(f"site {site!r} does not exist; sites are {', '.join(SITES)}")
    pairs, fields = _read(source)
    chosen = tuple(sorted(set(layers))) if layers is not None else default_layers(len(model.layers))
    if not chosen:
        raise UsageError("no layer is named: give one or more, or leave the option out")
    context = getattr(model.args, "max_position_embeddings", None)
    sides: dict[str, np.ndarray] = {}
    for which in ("positive", "negative"):
        tokens = []
        for i, pair in enumerate(pairs, 1):
            tokens.append(render(tokenizer, getattr(pair, which)))
            check_length(tokens[-1], context, f"pair {i}, {which}")
        sides[which] = capture(
            model,
            tokens,
            sites=(site,),
            layers=chosen,
            positions=position,
            progress=progress,
            stage=f"reading {which} prompts",
        )[site]
    rows = find_rows(method, sides["positive"], sides["negative"])
    flat = [layer for layer, row in zip(chosen, rows, strict=True) if not np.any(row)]
    if flat:
        raise MlxsteerError(
            f"both sides are the same to the model at layer {flat[0]}: no direction"
        )
    vector = Vector.from_rows(
        name or fields.pop("name", "vector"),
        dict(zip(chosen, rows, strict=True)),
        site=site,
        method=method,
        token="last prompt token" if position == -1 else f"prompt token {position}",
        pairs_sha256=pairs_sha256(pairs),
        n_pairs=len(pairs),
        template=template_record(tokenizer),
        model=model_ref(model),
        evidence={"prompt_side": separation(chosen, rows, sides["positive"], sides["negative"])},
        **{key: value for key, value in fields.items() if key != "name"},
    )
    if not calibrate:
        return vector
    return calibrated(model, tokenizer, vector, neutral=neutral, progress=progress)


def _read(source: Source) -> tuple[list[Pair], dict[str, str]]:
    """Return the pairs and what their source says about the vector."""
    if isinstance(source, (str, Path)) and Path(source).suffix == ".jsonl":
        return read_pairs(Path(source)), {"name": Path(source).stem}
    if isinstance(source, (str, Path)):
        source = concept(source)
    if isinstance(source, Concept):
        fields = ("name", "positive", "negative", "license")
        return source.pairs(), {f: getattr(source, f) for f in fields}
    pairs = [p if isinstance(p, Pair) else Pair(p["positive"], p["negative"]) for p in source]
    if not pairs:
        raise MlxsteerError("there are no pairs to extract from")
    return pairs, {}


def model_ref(model: nn.Module) -> ModelRef:
    """Return who the model is: what loading recorded, or its shape where it was made by hand."""
    source = getattr(model, "source", None)
    if isinstance(source, ModelRef):
        return source
    return ModelRef("", "", model.model_type, len(model.layers), model.args.hidden_size, "", "")


def separation(
    layers: Sequence[int], rows: np.ndarray, positive: np.ndarray, negative: np.ndarray
) -> dict[str, Any]:
    """Return how the two sides separate along the direction, at the layer in the middle: a sanity
    check.

    It is near 1 for any two instructions that differ at all, and says nothing about steering.
    """
    i = len(layers) // 2
    direction = rows[i] / np.linalg.norm(rows[i])
    pos, neg = positive[:, i] @ direction, negative[:, i] @ direction
    return {
        "layer": layers[i],
        "auroc": round(auroc(pos, neg), 4),
        "cohens_d": round(cohens_d(pos, neg), 3) if len(pos) > 1 else None,
        "anti_aligned": round(float((pos <= neg).mean()), 4),
    }
