"""Directions of ds4 (DwarfStar 4): headerless `.f32` files, `[n_layers, D]`, little endian.

ds4 edits what the feed-forward part of each block writes, or its attention, or both,

    y <- y - c * d (d . y)        d: the unit row of the layer, c: its scale (--dir-steering-ffn,
                                  --dir-steering-attn)

which is our op `project` at `mlp_out` or `attn_out` and strength `c`, of equal sign: 1 removes, -1
doubles. The file does not say where; without a word it is `mlp_out`, in both programs. So a
positive strength is LESS of what the direction stands for, in both programs, because removing is
what the op does; `d` and `-d` are the same edit, and no sign of a row could turn it. Against an
additive vector of the concept the sign turns: its +1 is more, here more is -1. The poles of an
import are named accordingly.

Ours leaves position 0 alone, ds4 edits every position (as `phase="0:"` does). The file says neither
its width nor where its rows were read; ds4's builder writes both into a `.json` beside it, which is
believed if it is there.

It knows nothing of models.
"""

import logging
import os
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MlxsteerError, UsageError
from ..values import brief, norms, parsed, printable
from ..vector import Vector
from ..vector_file import whole_file

__all__ = ["read_ds4", "write_ds4"]

_SITES = {"ffn_out": "mlp_out", "attn_out": "attn_out"}
_FORMAT = "ds4-directional-steering-v1"
_UNIT_TOLERANCE = 1e-4  # a row that is read at a wrong width is far from norm 1
_MAX_LAYERS = 1024
_MAX_JSON = 1 << 20


def read_ds4(
    path: str | os.PathLike[str], hidden_size: int | None = None, site: str | None = None
) -> Vector:
    """Read ds4's directions as a vector that projects: strength 1 removes, as scale 1 does there.

    Rows of zeros are layers without a direction.

    Args:
        path: the .f32 file.
        hidden_size: the width `D` of the model, needed unless ds4's .json lies beside the file.
        site: where it is to act, `mlp_out` or `attn_out`; None is what the .json says.
    """
    path = Path(path)
    if site not in (None, *_SITES.values()):
        raise UsageError(f"site is {brief(site)}: ds4 edits {' or '.join(_SITES.values())}")
    said = _description(path)
    width = said.get("width", hidden_size)
    if width is None:
        raise UsageError(
            f"{path}: an .f32 file does not say its width: give that of the model "
            "(mlxsteer vectors convert FILE.f32 FILE.safetensors --width D)"
        )
    if type(width) is not int or width < 1:
        raise UsageError(f"hidden_size is {brief(width)}: use the width of the model")
    if hidden_size not in (None, width):
        raise MlxsteerError(f"{path}: its .json says width {width}, the model has {hidden_size}")
    rows = _rows(path, width)
    layers = np.flatnonzero(rows.any(1))
    if not layers.size:
        raise MlxsteerError(f"{path}: all its {len(rows)} rows are zero; make it again")
    lengths = norms(rows)
    for layer in layers:
        if abs(lengths[layer] - 1) > _UNIT_TOLERANCE:
            raise MlxsteerError(
                f"{path}: the row of layer {layer} has norm {lengths[layer]:.6g}, not 1: it is no "
                f"file of ds4, or the model's width is not {width}"
            )
    name = printable(path.stem) or "import"
    logging.getLogger("mlxsteer").info(
        "%s: directions of ds4, uncalibrated: strength 1 removes them, -1 doubles them", path
    )
    return Vector(
        name=name,
        layers=tuple(int(layer) for layer in layers),
        directions=rows[layers].astype(np.float32),
        scales=np.ones(len(layers), np.float32),
        site=site or said.get("site", "mlp_out"),
        op="project",
        positive=f"without {name}",
        negative=name,
        method=f"direction of ds4, {len(rows)} layers",
        tool="ds4 import",
    )


def _rows(path: Path, hidden_size: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The rows `[n_layers, D]` of the file."""
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            n_layers, rest = divmod(size, 4 * hidden_size)
            if rest or not 1 <= n_layers <= _MAX_LAYERS:
                raise MlxsteerError(
                    f"{path}: {size} bytes are no rows of {hidden_size} float32 numbers for 1 to "
                    f"{_MAX_LAYERS} layers: it is cut off, or for another model"
                )
            data = file.read(size)
    except OSError as error:
        raise MlxsteerError(f"{path} cannot be read: {error.strerror or error}") from error
    rows = np.frombuffer(data, "<f4").reshape(n_layers, hidden_size).astype(np.float64)
    if not (finite := np.isfinite(rows).all(1)).all():
        raise MlxsteerError(
            f"{path}: the row of layer {np.argmin(finite)} has NaN or infinity; make it again"
        )
    return rows


def _description(path: Path) -> dict[str, Any]:
    """Width and site from the .json that ds4's builder writes beside the file; {} without it."""
    beside = path.with_suffix(".json")
    if not beside.is_file():
        return {}
    try:
        with beside.open("rb") as file:
            said = parsed(file.read(_MAX_JSON), f"{beside}: it")
    except OSError as error:
        raise MlxsteerError(f"{beside} cannot be read: {error.strerror or error}") from error
    if said.get("format") != _FORMAT:
        return {}
    shape, component = said.get("shape"), said.get("component", "ffn_out")
    if component not in ("ffn_out", "attn_out"):
        raise MlxsteerError(f"{beside}: component is {brief(component)}: use ffn_out or attn_out")
    if not isinstance(shape, list) or [type(n) for n in shape] != [int, int]:
        raise MlxsteerError(f"{beside}: shape is {brief(shape)}, not [layers, width]")
    return {"width": shape[1], "site": _SITES[component]}


def write_ds4(vector: Vector, path: str | os.PathLike[str], n_layers: int | None = None) -> None:
    """Write a vector that projects as ds4's directions, all of it or nothing.

    Its strength is ds4's scale. Layers without a direction become rows of zeros.

    Args:
        vector: op project at mlp_out or attn_out, in all phases, with every scale 1.
        path: ends in .f32.
        n_layers: of the model; by default of the vector's model.
    """
    path = Path(path)
    if problem := _unwritable(vector):
        raise MlxsteerError(f"vector {brief(vector.name)} is no file of ds4: {problem}")
    count = vector.n_layers if n_layers is None else n_layers
    if count is None:
        raise UsageError(
            f"vector {brief(vector.name)} does not say how many layers its model has: give n_layers"
        )
    if type(count) is not int or not vector.layers[-1] < count <= _MAX_LAYERS:
        raise UsageError(
            f"n_layers is {brief(count)}, vector {brief(vector.name)} has layer "
            f"{vector.layers[-1]}: give the number of the model's layers"
        )
    if path.suffix != ".f32":
        raise UsageError(f"{path}: name a file of ds4 .f32")
    rows = np.zeros((count, vector.hidden_size), "<f4")
    rows[list(vector.layers)] = vector.directions
    with whole_file(path) as temporary:
        temporary.write_bytes(rows.tobytes())
    if vector.site == "attn_out":
        logging.getLogger("mlxsteer").info(
            "%s: it does not say that it is for the attention; run ds4 with --dir-steering-attn "
            "and --dir-steering-ffn 0",
            path,
        )


def _unwritable(vector: Vector) -> str:
    """Why ds4 cannot do what the vector does, and the way out; "" if it can."""
    if vector.op != "project":
        return f"op {vector.op} cannot be written, only project; use it with mlxsteer"
    if vector.site not in _SITES.values():
        return f"site {vector.site} cannot be written; extract it at mlp_out"
    if vector.encoders is not None:
        return "its encoder cannot be written; use it with mlxsteer"
    if vector.phase != "all":
        return f"phase {vector.phase} cannot be written; replace(phase='all') steers all tokens"
    if vector.is_zero:
        return "it is zero; there is nothing to write"
    for layer, scale in zip(vector.layers, vector.scales, strict=True):
        if scale != 1:
            return f"the scale of layer {layer} is {scale:.6g}; ds4 has none, replace it by 1"
    return ""
