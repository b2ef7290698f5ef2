"""From the words of a command to models and vectors: what is known is found, what is not is made.

A concept without a vector for the model at hand is extracted on the spot and cached. It knows
nothing of printing results.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ..errors import MlxsteerError, UsageError
from ..library import Concept, cached_vector_path, concept, home
from ..progress import Progress
from ..vector import Vector, read_vector
from .options import ModelChoice, check_output, parse_steer, short_name, strength_one

if TYPE_CHECKING:
    from ..steering import Steering  # imports mlx, which `vectors show` can do without

__all__ = ["find_vector", "load_model", "named_vectors", "read_file", "steering_of"]

log = logging.getLogger("mlxsteer")

Named = Sequence[tuple[Concept | Vector, float]]


def load_model(choice: ModelChoice, progress: Progress) -> tuple[Any, Any]:
    """Return the model and its tokenizer, after saying what slows this machine down."""
    from ..backend import announce
    from ..loading import load

    announce()
    return load(
        choice.name,
        revision=choice.revision,
        dtype=choice.dtype,
        keep_quantized=choice.keep_quantized,
        progress=progress,
    )


def named_vectors(words: Sequence[str]) -> Named:
    """Read `-s` words into concepts or vectors with strengths, before any model is loaded.

    Raises:
        UsageError: a strength that is no finite number, a name that is there twice.
        MlxsteerError: no concept or file of that name, or a file that is refused.
    """
    pairs = [parse_steer(word) for word in words]
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"-s {twice[0]} is there twice: give it one strength")
    return [(find_vector(name), strength) for name, strength in pairs]


def find_vector(name: str) -> Concept | Vector:
    """Return the vector of a file, or the concept of a library name or folder.

    Raises:
        MlxsteerError: there is neither, or the file is refused.
    """
    place = os.path.expanduser(name)
    if os.path.isfile(place) or place.endswith((".safetensors", ".gguf", ".f32")):
        return read_file(place)
    return concept(place)


def read_file(path: str, **options: Any) -> Vector:
    """Return the vector in a file of any format; options are those of `load_vector`.

    Raises:
        MlxsteerError: there is no such file, or it is refused.
    """
    from ..interop import load_vector

    if not os.path.isfile(path):
        raise MlxsteerError(f"there is no file {path!r}: check the path")
    return load_vector(path, **options)


def steering_of(
    named: Named,
    model: Any,
    tokenizer: Any,
    model_name: str,
    progress: Progress,
    *,
    layers: list[int] | None = None,
    **how: Any,
) -> Steering:
    """Return what the `-s` and `--layers` of a command ask for; `how` is passed to `Steering`.

    Files are checked against the model before any concept is extracted, and a strength of 0
    extracts nothing.
    """
    from ..runtime import check_steering
    from ..steering import Steering

    check_steering(model, Steering(*((v, s) for v, s in named if isinstance(v, Vector))))
    pairs = []
    for found, strength in named:
        if strength == 0:
            continue
        if isinstance(found, Concept):
            found = _vector_for(found, model, tokenizer, model_name, progress)
        whole = found.layers
        if layers is not None:
            found = found.restrict(layers)
        if not found.calibrated:
            left_out = layers is not None and found.layers != whole
            why = "on some of its layers" if left_out else "(mlxsteer calibrate does that)"
            does = strength_one(found)
            log.info("%r is not calibrated %s: strength 1 %s", found.name, why, does)
        pairs.append((found, strength))
    return Steering(*pairs, **how)


def _vector_for(
    found: Concept, model: Any, tokenizer: Any, model_name: str, progress: Progress
) -> Vector:
    """Return the vector of a concept for this model: shipped, cached, or extracted now."""
    from ..extract import defaults, extract

    shipped = found.vector_path(short_name(model_name))
    if shipped is not None:
        vector = read_vector(shipped)
        if vector.model is not None and vector.model.repo == model.source.repo:
            return vector
    cached = cached_vector_path(found, model.source, defaults(len(model.layers)))
    if cached.is_file():
        try:
            return read_vector(cached)
        except MlxsteerError as error:
            log.warning("extracting %r anew, what was kept is refused: %s", found.name, error)
    else:
        log.info("no vector of %r for this model yet: extracting it into %s", found.name, cached)
    try:
        cached.parent.mkdir(parents=True, exist_ok=True)
        check_output(cached, ".safetensors")
    except (OSError, UsageError) as error:
        raise MlxsteerError(
            f"vectors cannot be kept in {home()}: set MLXSTEER_HOME to a folder that can be written"
        ) from error
    vector = extract(model, tokenizer, found, progress=progress)
    vector.save(cached)
    return vector
