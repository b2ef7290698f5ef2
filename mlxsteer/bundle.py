"""What a repository of vectors is made of: the files of concepts and vectors, checked.

A repository holds one concept at its root, or a folder per concept:

    README.md                 the card              config.json   what `hub` reads
    <model>.safetensors       a vector per model    <model>.gguf  the same for llama.cpp
    vector.toml, *.jsonl, *.txt                     the contrast data
    evaluation.json, *.png                          what was measured

Nothing goes without a licence and provenance, nor with a local path in it. The same content makes
the same bytes. It knows nothing of the Hub but what `config.json` has to say.
"""

import hashlib
import json
import logging
import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from .card import Made, Part, library_card, part_card
from .claims import Record, records
from .errors import MlxsteerError, UsageError
from .hub import CONFIG_VERSION
from .hub_ref import REPO
from .interop import write_control_vector
from .library import Concept, KnownModel, known_model, known_models
from .model_ref import base_name
from .prompts import pairs_sha256
from .values import brief, parsed, printable
from .vector import Vector, read_vector

__all__ = ["Bundle", "collect", "of_concept", "of_vector"]

_FILE = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"
_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
_DATA = (".jsonl", ".toml", ".txt")
_MADE = ("README.md", "config.json", "source.json")  # written anew
# where people's files lie: a path that says who made the vector, and where
_LOCAL = re.compile(
    rb"(?:(?<![\w.])|(?<=\\[nt]))"  # not within a URL
    rb"(?:/(?:Users|home|root|tmp|Volumes|private|var/folders)/|[A-Za-z]:[\\/]+Users[\\/]+)[^\s\"'\\]"
)

log = logging.getLogger("mlxsteer")


@dataclass(frozen=True)
class Bundle:
    """One concept with all its files but card and config; `files` are named without a folder."""

    part: Part
    files: dict[str, bytes] = field(repr=False)


def of_concept(concept: Concept, base_models: Sequence[str] = ()) -> Bundle:
    """Collect a concept's folder, every vector in it.

    Raises:
        MlxsteerError: a vector is damaged, of other pairs or another licence, nothing is there to
            push, or the folder holds what belongs to no concept.
    """
    folder = concept.folder
    found = {p.name: p for p in sorted(folder.iterdir()) if p.name[0] != "."}
    kinds = (*_DATA, ".safetensors", ".gguf", ".png")
    for name, path in found.items():
        known = path.suffix in kinds or name in (*_MADE, "evaluation.json")
        if not (path.is_file() and known and re.fullmatch(_FILE, name)):
            raise MlxsteerError(f"{folder} holds {brief(name)}, no part of a concept: move it away")
    vectors = {p.stem: read_vector(p) for p in found.values() if p.suffix == ".safetensors"}
    if not vectors:
        raise MlxsteerError(
            f"{concept.name} has no vector to push: mlxsteer vectors build {folder} -o NEW makes "
            f"one, then push NEW/{concept.name}"
        )
    pairs = pairs_sha256(concept.pairs())
    for stem, vector in vectors.items():
        where = f"{folder.name}/{stem}.safetensors"
        if vector.name != concept.name:
            raise MlxsteerError(f"{where} is of {brief(vector.name)}, not of {concept.name}")
        if vector.pairs_sha256 != pairs:
            raise MlxsteerError(f"{where} was made from other pairs: extract it again")
        if vector.license != concept.license:
            raise MlxsteerError(
                f"{where} has the licence {brief(vector.license)}, its concept "
                f"{brief(concept.license)}: extract it again"
            )
    data = {name: p.read_bytes() for name, p in found.items() if p.suffix in (*_DATA, ".png")}
    judged: tuple[Record, ...] = ()
    if "evaluation.json" in found:
        data["evaluation.json"] = found["evaluation.json"].read_bytes()
        judged = records(parsed(data["evaluation.json"], f"{folder.name}/evaluation.json"))
    part = Part(
        name=concept.name,
        positive=concept.positive,
        negative=concept.negative,
        sign=concept.sign,
        license=concept.license,
        made=(),
        evaluations=judged,
        plots=tuple(name for name in data if name.endswith(".png")),
        data=tuple(name for name in data if name.endswith(_DATA)),
    )
    return _bundle(part, vectors, data, base_models)


def of_vector(vector: Vector, license: str = "", base_models: Sequence[str] = ()) -> Bundle:
    """Collect a vector without its contrast data; `license` for one that has none."""
    if license and vector.license and license != vector.license:
        raise UsageError(f"the vector has the licence {vector.license}: leave out {license}")
    if license:
        vector = vector.replace(license=license)
    sign = f"A positive strength is more of: {vector.positive or vector.name}."
    part = Part(vector.name, vector.positive, vector.negative, sign, vector.license, made=())
    stem = base_name(vector.model.repo) if vector.model else ""
    return _bundle(part, {stem or "vector": vector}, {}, base_models)


def _bundle(
    part: Part, vectors: dict[str, Vector], data: dict[str, bytes], base_models: Sequence[str]
) -> Bundle:
    """Put the vectors to the data, as they are read here and in llama.cpp."""
    if not re.fullmatch(_NAME, part.name):
        raise MlxsteerError(f"{brief(part.name)} is no concept's name: small letters, digits, ._-")
    made = []
    also = list(base_models)
    files = dict(data)
    with tempfile.TemporaryDirectory() as place:
        for stem, vector in vectors.items():
            _check_origin(vector)
            known = _known(stem, vector)
            base = _base_model(vector, base_models, known)
            path = Path(place, f"{stem}.safetensors")
            vector.save(path)
            files[path.name] = path.read_bytes()
            gguf = _control_vector(vector, path.with_suffix(".gguf"))
            if gguf:
                files[f"{stem}.gguf"] = gguf
            if known and known.original:
                also.append(known.original)
            made.append(Made(vector, stem, bool(gguf), base, known.name if known else base))
    return Bundle(replace(part, made=tuple(made), base_models=tuple(also)), files)


def _check_origin(vector: Vector) -> None:
    """Refuse what nobody may use or could make again."""
    name = brief(vector.name)
    if not vector.license.strip():
        raise MlxsteerError(f"vector {name} has no licence: say which with --license, e.g. CC0-1.0")
    lacks = [
        what
        for what, there in (
            ("the model", vector.model is not None),
            ("the method", vector.method),
            ("the pairs", vector.pairs_sha256),
        )
        if not there
    ]
    if lacks:
        raise MlxsteerError(
            f"vector {name} does not say where it is from ({', '.join(lacks)}): extract it with "
            "mlxsteer"
        )


def _known(stem: str, vector: Vector) -> KnownModel | None:
    """What `models/` says of the model that a vector was made on."""
    repo = vector.model.repo if vector.model else ""
    for model in known_models():
        if repo in (entry.repo for entry in model.hub):
            return model
    known = known_model(stem)
    names = {base_name(entry.repo) for entry in known.hub} if known else {""}
    return known if not re.fullmatch(REPO, repo) or base_name(repo) in names else None


def _base_model(vector: Vector, base_models: Sequence[str], known: KnownModel | None) -> str:
    """The Hub id of the model that a vector was made on."""
    repo = vector.model.repo if vector.model else ""
    ids = [repo, *base_models, *([known.hub[0].repo] if known else [])]
    found = next((name for name in ids if re.fullmatch(REPO, name)), None)
    if found is None:
        raise UsageError(
            f"vector {brief(vector.name)} was made on {brief(repo)}, which is no Hub id: name its "
            "base model with --base-model owner/name"
        )
    return found


def _control_vector(vector: Vector, path: Path) -> bytes:
    """The vector as llama.cpp reads it; nothing if it has no such form."""
    try:
        write_control_vector(vector, path)
    except MlxsteerError as error:
        log.info("no GGUF is made: %s", error)
        return b""
    return path.read_bytes()


def collect(bundles: Sequence[Bundle], repo: str, *, library: bool = False) -> dict[str, bytes]:
    """Return every file of the repository: one bundle at its root; several in folders, and one
    that is a `library`, so that others can join it.

    Raises:
        MlxsteerError: there is none, or a file tells of this machine.
    """
    if not bundles:
        raise MlxsteerError("no concept has a vector to push: mlxsteer extract makes one")
    whole = library or len(bundles) > 1
    files: dict[str, bytes] = {}
    rows = []
    for bundle in bundles:
        prefix = f"{bundle.part.name}/" if whole else ""
        files |= {prefix + name: data for name, data in bundle.files.items()}
        files[f"{prefix}README.md"] = part_card(bundle.part, repo, prefix).encode()
        rows += [_row(made, bundle, prefix) for made in bundle.part.made]
    if whole:
        files["README.md"] = library_card([b.part for b in bundles], repo).encode()
    config = {"mlxsteer": CONFIG_VERSION, "library_name": "mlxsteer", "vectors": rows}
    files["config.json"] = (json.dumps(config, indent=2, ensure_ascii=False) + "\n").encode()
    for name, data in files.items():
        _check_private(name, data)
    return dict(sorted(files.items()))


def _row(made: Made, bundle: Bundle, prefix: str) -> dict[str, Any]:
    file = f"{made.stem}.safetensors"
    vector, model = made.vector, made.vector.model
    assert model is not None
    return {
        "name": bundle.part.name,
        "file": prefix + file,
        "sha256": hashlib.sha256(bundle.files[file]).hexdigest(),
        "content_sha256": vector.content_sha256,
        "base_model": made.base_model,
        "model": asdict(model),
        "positive": vector.positive,
        "negative": vector.negative,
        "op": vector.op,
        "site": vector.site,
        "layers": list(vector.layers),
        "calibrated": vector.calibrated,
        "license": vector.license,
    }


def _check_private(name: str, data: bytes) -> None:
    """Refuse a file with a path of this machine or of anybody's."""
    home = os.path.expanduser("~").encode()
    own = re.search(re.escape(home) + rb"(?=[/\s\"']|$)", data) if len(home) > 1 else None
    if (found := own or _LOCAL.search(data)) is not None:
        end = data[found.start() : found.start() + 60].split(b"\n")[0]
        raise MlxsteerError(
            f"{name} holds a local path, {brief(printable(end.decode(errors='replace')))}: "
            "take it out"
        )
