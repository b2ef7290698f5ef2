"""Many concepts, one model, one folder that is ready to be pushed.

`FOLDER/<concept>/` gets what the concept's own folder holds (vector.toml, prompts or pairs,
completions, words, card) and `<model>.safetensors`. Every file is moved into place whole, so a
build that was killed goes on where it stopped: a vector that is there, and is what would be made,
is left as it is.

A vector is the one that `extract` makes, byte for byte, on the layers that are chosen by the
concept's dev completions where it has them. The concepts are read one after another, what the sides
of each begin with once: on SmolLM2 the 1,470 sides of the 16 shipped concepts have 99,479 tokens,
of which this way reads 65,437, in 120 passes. No prompt stands in two concepts, so that reading
them all at once would save nothing. What they share is the neutral text on which they are
calibrated, and that is written once.

It knows nothing of the terminal, and of how a vector is found or calibrated.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.nn as nn

from .calibrate import BUDGET
from .choice import can_choose, settings
from .errors import MlxsteerError, UsageError
from .extract import defaults, extract, model_ref
from .library import Concept
from .neutral import Neutral
from .progress import Progress, silent
from .prompts import pairs_sha256, template_record
from .reading import describe
from .values import plain
from .vector import Vector, read_vector
from .vector_file import sweep, whole_file

__all__ = ["Built", "build"]

TEXTS = (".jsonl", ".md", ".toml", ".txt")  # what belongs to a concept besides its vectors

log = logging.getLogger("mlxsteer")


@dataclass(frozen=True)
class Built:
    """What became of one concept.

    Attributes:
        path: of the vector's file.
        vector: None if it could not be made; `error` says why.
        kept: it was there already.
    """

    concept: Concept
    path: Path
    vector: Vector | None = None
    kept: bool = False
    error: str = ""


def build(
    model: nn.Module,
    tokenizer: Any,
    concepts: Sequence[Concept],
    folder: Path,
    model_name: str,
    *,
    layers: Sequence[int] | str | None = None,
    anew: bool = False,
    progress: Progress = silent,
) -> Iterator[Built]:
    """Make the vectors of many concepts for a model, and yield each when its file is there.

    A concept that fails is yielded with its error, and the others go on.

    Args:
        folder: made if it is not there; files that have nothing to do with this are left alone.
        model_name: what the vectors' files are called.
        layers: as `extract` has it; None is `auto` for a concept that has dev completions.
        anew: also make vectors that are there.

    Raises:
        UsageError: two concepts of one name.
        MlxsteerError: the model writes no neutral text.
    """
    names = [found.name for found in concepts]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UsageError(f"two concepts are called {twice[0]!r}: build them into two folders")
    text = Neutral.kept(model, tokenizer, progress=progress)
    for done, found in enumerate(concepts):
        progress("concepts", done, len(concepts))
        path = folder / found.name / f"{model_name}.safetensors"

        def told(stage: str, done: int, total: int, name: str = found.name) -> None:
            progress(stage.removesuffix(f" {name}"), done, total)

        try:
            _copy_texts(found, path.parent)
            wanted = layers or ("auto" if can_choose(found) else "middle")
            vector = None if anew else _finished(path, found, model, tokenizer, text, wanted)
            kept = vector is not None
            if vector is None:
                vector = extract(
                    model, tokenizer, found, layers=wanted, neutral=text, progress=told
                )
                vector.save(path)
            built = Built(found, path, vector, kept)
        except MlxsteerError as error:
            left = f"; {path} is left as it was" if path.exists() else ""
            built = Built(found, path, error=f"{error}{left}")
        progress("concepts", done + 1, len(concepts))
        yield built


def _copy_texts(found: Concept, folder: Path) -> None:
    """Bring the files of a concept, its vectors aside, into its new folder."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)
    except OSError as error:
        raise MlxsteerError(f"{folder} cannot be written: {error.strerror}") from error
    if folder.samefile(found.folder):
        return
    for source in sorted(found.folder.iterdir()):
        if source.suffix in TEXTS and not source.name.startswith(".") and source.is_file():
            with whole_file(folder / source.name) as temporary:
                temporary.write_bytes(source.read_bytes())


def _finished(
    path: Path,
    found: Concept,
    model: nn.Module,
    tokenizer: Any,
    text: Neutral,
    layers: Sequence[int] | str,
) -> Vector | None:
    """Return the vector that is there, unless another one would be made now."""
    if not path.exists():
        return None
    try:
        vector = read_vector(path)
    except MlxsteerError as error:
        log.warning("making the vector of %r anew: %s", found.name, error)
        return None
    usual, pairs = defaults(len(model.layers)), found.pairs()
    wanted = {
        **{key: getattr(found, key) for key in ("name", "positive", "negative", "license")},
        **{key: usual[key] for key in ("method", "site", "op")},
        "token": describe(usual["read"], pairs, usual["response_tokens"]),
        "pairs_sha256": pairs_sha256(pairs),
        "template": template_record(tokenizer),
        "model": model_ref(model),
    }
    if layers == "auto":
        chosen, by = vector.evidence.get("layers", {}), settings(found, len(model.layers), text)
        wanted["layers"] = vector.layers
        if any(plain(chosen.get(key)) != value for key, value in by.items()):
            wanted["layers"] = ()
    else:
        wanted["layers"] = usual["layers"] if layers == "middle" else sorted(set(layers))
    unit = {"budget": BUDGET, "text_sha256": text.sha256}
    other = [key for key, value in wanted.items() if plain(getattr(vector, key)) != plain(value)]
    measured = vector.calibration or {}
    other += [key for key, value in unit.items() if measured.get(key) != value]
    other += [] if "safe" in measured else ["calibration"]
    if other:
        log.warning("making the vector of %r anew: it has another %s", found.name, other[0])
        return None
    return vector
