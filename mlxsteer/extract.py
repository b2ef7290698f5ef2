"""From contrast data to a calibrated vector: read both sides, take the direction, fix the scale.

Prompt-side separation is recorded as a sanity check only: it says that the two instructions differ,
nothing more, and selects nothing. This module knows nothing of templates, of how directions are
found or of the terminal.
"""

import inspect
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlx.nn as nn
import numpy as np

from .calibrate import BUDGET
from .calibrate import calibrate as calibrated
from .capture import check_places
from .choice import SPLIT, choose
from .contrast import Contrast
from .errors import MlxsteerError, UsageError
from .library import Concept, concept, neutral_prompts
from .methods import check_method
from .metrics import auroc, cohens_d
from .neutral import ANSWER_TOKENS, MIN_TOKENS, Neutral
from .progress import Progress, silent
from .prompts import Pair, pairs_sha256, read_pairs, template_record
from .reading import RESPONSE_TOKENS, Read, describe, parse_read
from .safe import PROMPTS, STRENGTHS, TOKENS
from .trials import check
from .vector import OPS, ModelRef, Vector

__all__ = ["default_layers", "defaults", "extract"]

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
    remove_negative_mean: bool = False,
    site: str = "resid_post",
    layers: Sequence[int] | str | None = None,
    read: Read | None = None,
    response_tokens: int = RESPONSE_TOKENS,
    op: str = "add",
    calibrate: bool = True,
    neutral: Neutral | None = None,
    progress: Progress = silent,
) -> Vector:
    """Find the direction of a concept and fix its scale.

    Args:
        source: a concept (folder or library name), a `pairs.jsonl`, or pairs.
        name: of the vector; default is the concept's or the file's.
        method: one of `methods.METHODS`: `mean_diff`, `pca`, `probe` or `lda`.
        remove_negative_mean: take out what the direction has in common with the mean activation of
            the negative side.
        site: where to read and later to steer.
        layers: which blocks; None or `middle` is the middle third, `auto` the band that does most
            at the cost of strength 1 on the concept's dev completions (`choice`), of `add` only.
        read: what is read of each side: `last` (prompt token), a token index, `content` (end of the
            user's text) or `response` (its mean; written by the model where a side has none). None
            is `response` of pairs that bring theirs, as those of a concept whose answers are
            written out do (contrastive activation addition, Rimsky et al. 2024), else `last`.
        response_tokens: the most tokens of a response that the model has to write.
        op: `add`; `project` (strength 1 removes); `clamp`, whose target is the mean of the positive
            side along the direction; or `cap`, a ceiling on the concept, whose target is the mean
            of the negative side. Targets are measured where the sides are read. The scale of all
            but `add` is 1.
        calibrate: False leaves the natural scale (the norm of the difference), uncalibrated.
        neutral: text for the calibration, to be shared between vectors of one model.

    Raises:
        MlxsteerError: bad contrast data (with its line), prompts over the context, sides that do
            not differ inside the model, a concept that no strength brings to the budget, or that
            has no dev completions to choose layers by.
        UsageError: an unknown method, site, layer, op or way to read.
    """
    read = None if read is None else parse_read(read)
    check_method(method)
    if op not in OPS:
        raise UsageError(f"op {op!r} does not exist: use {', '.join(OPS)}")
    if layers == "auto" and op != "add":
        raise UsageError(f"layers are chosen by what adding does: name those for op {op}")
    wanted = _layers(layers, len(model.layers))
    check_places(model, (site,), wanted)
    judged, pairs, fields = _read(source)
    if layers == "auto":
        check(judged, SPLIT)
    title = name or fields.get("name", "vector")
    contrast = Contrast(
        model,
        tokenizer,
        pairs,
        read,
        sites=(site,),
        layers=wanted,
        response_tokens=response_tokens,
        progress=progress,
    )

    def rows_of(band: tuple[int, ...]) -> np.ndarray:
        return contrast.rows(
            method, site, band, without_negative_mean=remove_negative_mean, progress=progress
        )

    def vector_of(band: tuple[int, ...]) -> Vector:
        return Vector.from_rows(title, dict(zip(band, rows_of(band), strict=True)), site=site)

    evidence: dict[str, Any] = {}
    if layers == "auto" and judged is not None:
        neutral = neutral or Neutral.kept(model, tokenizer, progress=progress)
        wanted, evidence["layers"] = choose(
            model, tokenizer, judged, vector_of, neutral, progress=progress
        )
    rows = rows_of(wanted)
    positive, negative = contrast.at(site, wanted)
    separated = separation(wanted, rows, positive, negative)
    targets = None
    if op != "add":
        wide = rows.astype(np.float64)
        rows = wide / np.linalg.norm(wide, axis=1, keepdims=True)
        if op != "project":
            targets = mean_along(rows, positive if op == "clamp" else negative)
    vector = Vector.from_rows(
        title,
        dict(zip(wanted, rows, strict=True)),
        site=site,
        op=op,
        targets=targets,
        method=f"{method}, negative mean removed" if remove_negative_mean else method,
        token=describe(read, pairs, response_tokens),
        pairs_sha256=pairs_sha256(pairs),
        n_pairs=len(pairs),
        template=template_record(tokenizer),
        model=model_ref(model),
        evidence={"prompt_side": separated, **evidence},
        **{key: value for key, value in fields.items() if key != "name"},
    )
    if not calibrate:
        return vector
    recipe = None if judged is None else judged.recipe
    return calibrated(model, tokenizer, vector, neutral=neutral, recipe=recipe, progress=progress)


_OPTIONS = {name: p.default for name, p in inspect.signature(extract).parameters.items()}


def defaults(n_layers: int) -> dict[str, Any]:
    """Return what decides, besides data and model, what `extract` makes when nothing else is asked
    for, as plain JSON: where it changes, a vector that was kept is of another kind.
    """
    taken = {k: v for k, v in _OPTIONS.items() if v is not inspect.Parameter.empty}
    taken.pop("progress")
    unit = [BUDGET, MIN_TOKENS, ANSWER_TOKENS, PROMPTS, TOKENS, *STRENGTHS, *neutral_prompts()]
    return {**taken, "layers": default_layers(n_layers), "unit": unit}


def _layers(layers: Sequence[int] | str | None, n_layers: int) -> tuple[int, ...]:
    """Return the layers to read."""
    if layers is None or layers == "middle":
        return default_layers(n_layers)
    if layers == "auto":
        return tuple(range(n_layers))
    if isinstance(layers, str):
        raise UsageError(f"layers {layers!r} are unknown: name numbers, middle or auto")
    if not layers:
        raise UsageError("no layer is named: give one or more, or leave the option out")
    return tuple(sorted(set(layers)))


def _read(source: Source) -> tuple[Concept | None, list[Pair], dict[str, str]]:
    """Return the concept, if it is one, the pairs and what their source says about the vector."""
    if isinstance(source, (str, Path)) and Path(source).suffix == ".jsonl":
        return None, read_pairs(Path(source)), {"name": Path(source).stem}
    if isinstance(source, (str, Path)):
        source = concept(source)
    if isinstance(source, Concept):
        fields = ("name", "positive", "negative", "license")
        return source, source.pairs(), {f: getattr(source, f) for f in fields}
    pairs = [p if isinstance(p, Pair) else Pair(p["positive"], p["negative"]) for p in source]
    if not pairs:
        raise MlxsteerError("there are no pairs to extract from")
    return None, pairs, {}


def model_ref(model: nn.Module) -> ModelRef:
    """Return who the model is: what loading recorded, or its shape where it was made by hand."""
    source = getattr(model, "source", None)
    if isinstance(source, ModelRef):
        return source
    return ModelRef("", "", model.model_type, len(model.layers), model.args.hidden_size, "", "")


def mean_along(directions: np.ndarray, side: np.ndarray) -> np.ndarray:
    """Return the mean of `x . d` per layer, `[n]`, over a side `[N, n, D]`."""
    mean: np.ndarray = side.mean(axis=0, dtype=np.float64)
    along: np.ndarray = (mean * directions).sum(axis=1)
    return along.astype(np.float32)


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
