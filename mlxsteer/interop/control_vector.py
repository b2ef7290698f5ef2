"""Control vectors of llama.cpp and repeng: GGUF files with a row per layer.

A control vector adds the row `direction.N` `[D]` to the output of the 0-based block N: it is our
additive vector at `resid_post` of layer N with `scale * direction` as its rows. There is no
`direction.0`; llama.cpp knows one site, one operator and no phase. repeng writes the same files.

It knows nothing of models; strengths of an import mean what its maker meant.
"""

import logging
import os
import re
from pathlib import Path

import numpy as np

from ..errors import MlxsteerError, UsageError
from ..gguf import Header, read_header
from ..gguf_families import RENAMED
from ..values import Floats, brief, printable
from ..vector import Vector
from ..vector_file import whole_file

__all__ = ["read_control_vector", "write_control_vector"]

_ARCHITECTURE = "controlvector"
# the other words of llama.cpp are model types, too
_OURS = {"qwen3moe": "qwen3_moe"}


def read_control_vector(path: str | os.PathLike[str]) -> Vector:
    """Read a llama.cpp control vector: strength 1 adds exactly its rows, uncalibrated.

    Rows of zeros are dropped; the model is unknown but for its type, noted under `method`.
    """
    path = Path(path)
    header = read_header(path)
    architecture = header.metadata.get("general.architecture")
    if architecture != _ARCHITECTURE:
        raise MlxsteerError(
            f"{path}: its architecture is {brief(architecture)}, not {_ARCHITECTURE}: "
            "it is no vector; a model goes to -m"
        )
    rows = _rows(header)
    if not any(row.any() for row in rows.values()):
        raise MlxsteerError(f"{path}: all its {len(rows)} directions are zero; make it again")
    hint = header.metadata.get(f"{_ARCHITECTURE}.model_hint", "")
    hint = printable(str(hint)[:60]) or "an unknown model type"
    hint = _OURS.get(hint, hint)
    name = printable(path.stem) or "import"
    try:
        vector = Vector.from_rows(
            name, rows, method=f"control vector of {hint}", tool="control vector import"
        )
    except MlxsteerError as error:
        raise MlxsteerError(f"{path}: {error}") from error
    logging.getLogger("mlxsteer").info(
        "%s: a control vector for %s, uncalibrated: strength 1 adds its rows as stored", path, hint
    )
    return vector


def _rows(header: Header) -> dict[int, Floats]:
    """The rows `[D]` of a control vector file by layer."""
    path, rows = header.path, dict[int, Floats]()
    for name, info in header.tensors.items():
        number = re.fullmatch(r"direction\.(0|[1-9][0-9]{0,5})", name)
        if number is None:
            raise MlxsteerError(f"{path}: tensor {brief(name)} is no direction.N; make it again")
        if int(number[1]) == 0:
            raise MlxsteerError(
                f"{path}: direction.0 is in no control vector (llama.cpp refuses it); "
                "leave it out and make it again"
            )
        if info.type != "F32" or len(info.shape) != 1:
            raise MlxsteerError(
                f"{path}: {name} is {info.type} {list(info.shape)}: control vectors are F32 [D]; "
                "make it again"
            )
        with path.open("rb") as file:
            row = np.fromfile(file, "<f4", info.shape[0], offset=info.offset)
        first = next(iter(rows.values()), row)
        if row.shape != info.shape or row.shape != first.shape:
            raise MlxsteerError(
                f"{path}: {name} has width {len(row)}, the others {len(first)}; make it again"
            )
        rows[int(number[1])] = row.astype(np.float32)
    if not rows:
        raise MlxsteerError(f"{path}: there is no direction.N in it; make it again")
    return rows


def write_control_vector(
    vector: Vector, path: str | os.PathLike[str], model_hint: str = ""
) -> None:
    """Write what strength 1 adds as a llama.cpp control vector, all of it or nothing.

    Args:
        vector: additive, at `resid_post`, in all phases, without layer 0.
        path: ends in .gguf.
        model_hint: the model type in llama.cpp's words; by default that of the vector's model.
    """
    path = Path(path)
    if problem := _unwritable(vector):
        raise MlxsteerError(f"vector {brief(vector.name)} is no control vector: {problem}")
    ours = vector.model.model_type if vector.model else ""
    hint = model_hint or RENAMED.get(ours, ours)
    if not hint:
        raise UsageError(f"vector {brief(vector.name)} has no model: give model_hint, e.g. 'llama'")
    if not hint.isprintable() or len(hint) > 60:
        raise UsageError(f"model_hint is {brief(hint)}: use a short word, such as llama")
    if path.suffix != ".gguf":
        raise UsageError(f"{path}: name a control vector .gguf")
    import mlx.core as mx  # reading needs none, and a listing has no time for it

    rows = {f"direction.{n}": mx.array(row) for n, row in vector.rows().items()}
    metadata: dict[str, mx.array | str | list[str]] = {
        "general.architecture": _ARCHITECTURE,
        f"{_ARCHITECTURE}.model_hint": hint,
        f"{_ARCHITECTURE}.layer_count": mx.array(len(rows), mx.uint32),
    }
    with whole_file(path) as temporary:
        temporary.touch(exist_ok=False)  # says what is wrong with the place; mlx does not
        try:
            mx.save_gguf(str(temporary), rows, metadata)
        except RuntimeError as error:
            raise MlxsteerError(f"{path} cannot be written: {error}; make room") from error


def _unwritable(vector: Vector) -> str:
    """Why llama.cpp cannot do what the vector does, and the way out; "" if it can."""
    if vector.op != "add":
        return f"op {vector.op} cannot be written, only add; use it with mlxsteer"
    if vector.site != "resid_post":
        return f"site {vector.site} cannot be written; extract it at resid_post"
    if vector.phase != "all":
        return f"phase {vector.phase} cannot be written; replace(phase='all') steers all tokens"
    if vector.is_zero:
        return "it is zero; there is nothing to write"
    if vector.layers == (0,):
        return "it has only layer 0, which cannot be written; extract other layers"
    if 0 in vector.layers:
        return f"layer 0 cannot be written; restrict it to {brief(list(vector.layers[1:]))}"
    return ""
