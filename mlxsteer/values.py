"""Values as vectors and files keep them: plain JSON and arrays, checked, read-only.

Knows nothing of what they mean.
"""

import json
import math
import reprlib
from collections.abc import Iterable, Mapping
from itertools import pairwise
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from .errors import MlxsteerError

__all__ = [
    "AGAIN",
    "Floats",
    "brief",
    "canonical",
    "frozen",
    "layer_array",
    "layer_numbers",
    "norms",
    "parsed",
    "plain",
    "printable",
]

AGAIN = "copy or download it again"
MAX_DEPTH = 32

Floats = npt.NDArray[np.float32]

_REPR = reprlib.Repr()
_REPR.maxstring = _REPR.maxother = 60


def brief(value: object) -> str:
    """Name any value in one short line."""
    return _REPR.repr(value).replace("\n", " ")


def printable(text: str) -> str:
    """Return a foreign name or remark as one line, which may be empty."""
    return "".join(c for c in " ".join(text.split()) if c.isprintable()).strip()


def frozen(value: object, where: str, depth: int = 0) -> Any:
    """Return a deep read-only copy of a JSON value: objects as mapping proxies, lists as tuples."""
    if depth > MAX_DEPTH:
        raise MlxsteerError(f"{brief(where)} is nested more than {MAX_DEPTH} deep: flatten it")
    if isinstance(value, Mapping):
        pairs = [(k, frozen(v, f"{where}.{k}", depth + 1)) for k, v in value.items()]
        if not all(isinstance(k, str) for k, _ in pairs):
            raise MlxsteerError(
                f"{brief(where)} has a key that is no string: use plain JSON values"
            )
        return MappingProxyType({frozen(k, f"a key of {where}"): v for k, v in pairs})
    if isinstance(value, (list, tuple)):
        return tuple(frozen(v, f"{where}[{i}]", depth + 1) for i, v in enumerate(value))
    if isinstance(value, str):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise MlxsteerError(f"{brief(where)} is {brief(value)}: no valid Unicode") from None
        return str(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise MlxsteerError(f"{brief(where)} is {value}: use a finite number")
        return float(value)
    if value is None or (isinstance(value, int) and -(2**63) <= value < 2**64):
        return value
    raise MlxsteerError(f"{brief(where)} is of type {type(value).__name__}: use plain JSON values")


def plain(value: Any) -> Any:
    """Return a fresh copy of a frozen value, made of dicts and lists."""
    if isinstance(value, Mapping):
        return {k: plain(v) for k, v in value.items()}
    return [plain(v) for v in value] if isinstance(value, tuple) else value


def canonical(value: Any) -> str:
    """Return the canonical JSON: sorted keys, no spaces, UTF-8, shortest floats."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )


def parsed(source: str | bytes, what: str) -> dict[str, Any]:
    """Return the JSON object in `source`, in which no key may occur twice."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        seen: dict[str, Any] = {}
        for key, value in pairs:
            if key in seen:
                raise MlxsteerError(f"{what} has {brief(key)} twice; {AGAIN}")
            seen[key] = value
        return seen

    try:
        value = json.loads(source, object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise MlxsteerError(f"{what} is not JSON ({error}); {AGAIN}") from None
    if not isinstance(value, dict):
        raise MlxsteerError(f"{what} is {brief(value)}, no JSON object; {AGAIN}")
    return value


def layer_array(
    value: object, what: str, layers: tuple[int, ...], ndim: int, dtype: Any = np.float32
) -> npt.NDArray[Any]:
    """Return a read-only contiguous copy, finite, `[n]` or `[n, D]` for the `n` layers."""
    try:
        with np.errstate(over="ignore"):
            array = np.array(value, dtype=dtype, order="C")
    except (TypeError, ValueError) as error:
        raise MlxsteerError(f"{what} are no array of numbers: {brief(str(error))}") from None
    shape = list(array.shape)
    if len(shape) != ndim or shape[0] != len(layers) or 0 in shape[1:]:
        wanted = f"[{len(layers)}, D]" if ndim == 2 else f"[{len(layers)}]"
        raise MlxsteerError(f"{what} have the shape {shape}: use {wanted}, a row per layer")
    for layer, row in zip(layers, array, strict=True):
        if not np.isfinite(row).all():
            raise MlxsteerError(f"{what} of layer {layer} have NaN or infinity: extract them again")
    array.flags.writeable = False
    return array


def norms(rows: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return the norm of every row, in float64."""
    lengths: npt.NDArray[np.float64] = np.sqrt(np.square(rows.astype(np.float64)).sum(-1))
    return lengths


def layer_numbers(layers: Iterable[Any]) -> tuple[int, ...]:
    """Return layers as ascending integers from 0."""
    found = tuple(layers)
    for n in found:
        if isinstance(n, bool) or not isinstance(n, (int, np.integer)) or n < 0:
            raise MlxsteerError(f"layer {brief(n)} does not exist: layers count from 0")
    if any(a >= b for a, b in pairwise(found)):
        raise MlxsteerError(f"layers {brief(list(found))} are not ascending")
    return tuple(int(n) for n in found)
