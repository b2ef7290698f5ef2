"""From the words of a command to models and vectors: what is known is found, what is not is made.

A concept without a vector for the model at hand is extracted on the spot and cached. It knows
nothing of printing results.
"""

from __future__ import annotations

import glob
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..errors import MlxsteerError, UsageError
from ..hub_ref import HubRef
from ..library import Concept, cached_vector_path, concept, concepts, home, read_concept
from ..model_ref import ModelRef
from ..progress import Progress, bars
from ..vector import Vector, read_vector
from .options import ModelChoice, check_output, parse_steer, short_name, strength_one

if TYPE_CHECKING:
    from ..hub import Shared  # imports huggingface_hub
    from ..steering import Steering  # imports mlx, which `vectors show` can do without

__all__ = [
    "asked_model",
    "beside",
    "find_vector",
    "library_at",
    "load_model",
    "named_vectors",
    "others_at_hand",
    "read_file",
    "read_shared",
    "steering_of",
]

log = logging.getLogger("mlxsteer")

Named = Sequence[tuple["Concept | Vector | Shared", float]]


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
        MlxsteerError: no concept, file or repository of that name, or one that is refused.
    """
    pairs = [parse_steer(word) for word in words]
    names = [name for name, _ in pairs]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"-s {twice[0]} is there twice: give it one strength")
    return [(find_vector(name), strength) for name, strength in pairs]


def find_vector(name: str) -> Concept | Vector | Shared:
    """Return the vector of a file, the concept of a library name or folder, or what is on the Hub.

    Raises:
        MlxsteerError: there is none, or it is refused.
    """
    place = os.path.expanduser(name)
    if (ref := HubRef.parse(name)) is not None:
        from ..hub import open_repo

        with bars() as progress:
            return open_repo(ref, progress)
    if os.path.isfile(place) or place.endswith((".safetensors", ".gguf", ".f32")):
        return read_file(place)
    within = [] if os.path.isfile(os.path.join(place, "vector.toml")) else _concepts_in(place)
    if within:
        raise UsageError(
            f"{name} holds a folder per concept: name one, as in {within[0]}, or push all of them "
            "with --all"
        )
    return concept(place)


def _concepts_in(folder: str | Path) -> list[Path]:
    return sorted(path.parent for path in Path(folder).glob("*/vector.toml"))


def library_at(folder: str | None) -> list[Concept]:
    """Return the concepts that have a vector, of a folder with a folder for each or of the library,
    after saying which have none.

    Raises:
        UsageError: the folder is a concept's own, or holds none.
        MlxsteerError: a concept is damaged, or none has a vector.
    """
    place = None if folder is None else Path(folder).expanduser()
    if place is not None and (place / "vector.toml").is_file():
        raise UsageError(f"{folder} is one concept: name one thing to push, or say --all")
    if place is not None and not _concepts_in(place):
        raise UsageError(f"{folder} holds no concepts: --all takes a folder with a folder for each")
    found = concepts() if place is None else [read_concept(path) for path in _concepts_in(place)]
    bare = [one.name for one in found if not any(one.folder.glob("*.safetensors"))]
    if len(bare) == len(found):
        raise MlxsteerError(
            "no concept has a vector to push: mlxsteer vectors build --all -o FOLDER makes them"
        )
    if bare:
        log.info("without a vector, left out: %s", ", ".join(bare))
    return [one for one in found if one.name not in bare]


def read_shared(shared: Shared, model: ModelRef | str | None, progress: Progress) -> Vector:
    """Return the vector of a repository for a model; its file stays in the cache."""
    from ..interop import load_vector

    return load_vector(shared.fetch(shared.choose(model), progress))


def asked_model(shared: Shared, model: str) -> str | None:
    """Return the model to choose by: where `-m` was not given, the only vector is as good."""
    source = click.get_current_context().get_parameter_source("model")
    given = source is not click.core.ParameterSource.DEFAULT
    return model if given or len(shared.entries) > 1 else None


def beside(vector: Vector | Shared, path: str) -> Concept:
    """Return the concept of a vector: that of its file's folder, else the library's of its name.

    Raises:
        MlxsteerError: there is neither.
    """
    folder = Path(path).expanduser().parent
    if (folder / "vector.toml").is_file():
        return read_concept(folder)
    name = vector.name if isinstance(vector, Vector) else vector.entries[0].name
    found = next((c for c in concepts() if c.name == name), None)
    if found is None:
        raise MlxsteerError(
            f"{path}: there is no vector.toml beside it, and the library has no concept "
            f"{name!r}: name a concept or its folder with --concept"
        )
    return found


def others_at_hand(than: Concept, model: Any, model_name: str) -> list[Vector]:
    """Return the vectors of other concepts for a model: those of the folders beside the concept's,
    as `vectors build` lays them out; of others of the library what is shipped, or kept.

    Raises:
        MlxsteerError: one of them is damaged.
    """
    from ..extract import defaults

    found: dict[str, Vector | None] = {}
    how, file = defaults(len(model.layers)), f"{short_name(model_name)}.safetensors"
    for other in concepts():
        cached = cached_vector_path(other, model.source, how)
        found[other.name] = _shipped(other, model, model_name)
        if found[other.name] is None and cached.is_file():
            found[other.name] = read_vector(cached)
    for path in sorted(than.folder.resolve().parent.glob(f"*/{glob.escape(file)}")):
        found[path.parent.name] = _made_for(model, path) or found.get(path.parent.name)
    own = (than.name, than.folder.name)
    return [v for name, v in found.items() if v is not None and name not in own]


def _shipped(found: Concept, model: Any, model_name: str) -> Vector | None:
    """Return the shipped vector of a concept, if it was made on this very model."""
    path = found.vector_path(short_name(model_name))
    return None if path is None else _made_for(model, path)


def _made_for(model: Any, path: Path) -> Vector | None:
    """Return the vector in a file, if it was made on this very model."""
    vector = read_vector(path)
    fits = vector.model is not None and vector.model.repo == model.source.repo
    return vector if fits else None


def read_file(path: str, **options: Any) -> Vector:
    """Return the vector in a file of any format; options are those of `load_vector`.

    Raises:
        MlxsteerError: there is no such file, or it is refused.
    """
    from ..interop import load_vector

    if HubRef.parse(path) is not None:
        with bars() as progress:
            return load_vector(path, progress=progress, **options)
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
    from ..measured import safe_range, strengths
    from ..runtime import check_steering
    from ..steering import Steering

    here: list[tuple[Concept | Vector, float]] = []
    for found, strength in named:
        if isinstance(found, (Concept, Vector)):
            here.append((found, strength))
        elif strength != 0:
            here.append((read_shared(found, model.source, progress), strength))
    check_steering(model, Steering(*((v, s) for v, s in here if isinstance(v, Vector))))
    pairs = []
    for found, strength in here:
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
        safe = safe_range(found)
        if safe is not None and not safe[0] <= strength <= safe[1]:
            log.warning(
                "%s=%g is beyond where text was found to hold together, %s",
                *(found.name, strength, strengths(safe)),
            )
        pairs.append((found, strength))
    return Steering(*pairs, **how)


def _vector_for(
    found: Concept, model: Any, tokenizer: Any, model_name: str, progress: Progress
) -> Vector:
    """Return the vector of a concept for this model: shipped, cached, or extracted now."""
    from ..extract import defaults, extract

    shipped = _shipped(found, model, model_name)
    if shipped is not None:
        return shipped
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
