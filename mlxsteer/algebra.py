"""Sums and multiples of additive vectors: row by row, then a new direction and a new scale.

A sum is made of the rows that strength 1 adds, `scale * direction` `[D]`, in float64. Its meaning
is new, so it is uncalibrated and without evidence. Only additive vectors have an algebra: two that
project or clamp are steered with side by side.

`Vector` gives its operators these functions. They know nothing of files and models.
"""

import math
import re
from typing import TYPE_CHECKING

import numpy as np

from .errors import MlxsteerError, UsageError
from .values import brief, norms

if TYPE_CHECKING:
    from .vector import Vector

__all__ = ["multiple", "total"]

_SUMMABLE = ("op", "site", "hidden_size", "phase", "model")
_CANCELLED = 1e-6  # a sum this small beside its parts is float32 rounding, not a direction


def total(a: "Vector", b: "Vector", sign: int) -> "Vector":
    """Return `a + sign * b`; what cancels but for rounding is dropped."""
    fits = {key: getattr(a, key) == getattr(b, key) for key in _SUMMABLE}
    fits["op"] = a.op == b.op == "add"
    fits["model"] = a.model is None or b.model is None or a.model.same_model(b.model)
    for key in (key for key, fit in fits.items() if not fit):
        one, other = (f"{brief(v.name)} ({key} {getattr(v, key)})" for v in (a, b))
        way = "steer with both, each at its strength"
        if key in ("hidden_size", "model"):
            way = "extract both on one model"
        raise MlxsteerError(f"{one} and {other} have no sum: {way}")
    layers = sorted({*a.layers, *b.layers}) or [0]
    parts = np.zeros((2, len(layers), a.hidden_size))
    for part, v in zip(parts, (a, b), strict=True):
        at = [layers.index(n) for n in v.layers]
        part[at] = v.directions.astype(np.float64) * v.scales[:, None]
    rows = parts[0] + sign * parts[1]
    rows[norms(rows) <= _CANCELLED * norms(parts).sum(0)] = 0
    licenses = {a.license, b.license}
    return type(a).from_rows(
        _short(f"({a.name}{'+' if sign > 0 else '-'}{b.name})"),
        dict(zip(layers, rows, strict=True)),
        site=a.site,
        phase=a.phase,
        method="sum",
        template=a.template if a.template == b.template else {},
        model=a.model or b.model,
        license="" if "" in licenses else " AND ".join(sorted(licenses)),
    )


def multiple(v: "Vector", factor: float) -> "Vector":
    """Return `factor * v`; below zero the poles change places."""
    name, words = brief(v.name), (v.positive, v.negative)
    k = math.inf if isinstance(factor, int) and abs(factor) >= 2**1023 else float(factor)
    if not math.isfinite(k):
        raise UsageError(f"vector {name} times {brief(factor)}: use a finite number")
    if v.op != "add":
        raise MlxsteerError(f"vector {name} (op {v.op}) has no multiple: use the strength")
    if k == 1:
        return v
    negated = v.name[1:] if re.match("-[^-]", v.name) else f"-{v.name}"
    with np.errstate(over="ignore", under="ignore"):
        scales = (v.scales.astype(np.float64) * abs(k)).astype(np.float32)
    at = np.flatnonzero(scales)
    return v.replace(
        name=_short(negated if k == -1 else f"{k:g}*{v.name}"),
        layers=[v.layers[i] for i in at],
        directions=v.directions[at] * np.float32(math.copysign(1, k)),
        scales=scales[at],
        positive=words[k < 0],
        negative=words[k >= 0],
    )


def _short(name: str) -> str:
    return name if len(name) <= 60 else name[:57] + "..."
