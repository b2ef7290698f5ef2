"""What the Hub has: repositories of vectors, ours and plain ones of llama.cpp's control vectors.

Ours carry the tag `mlxsteer-vector` and their base models; the others the tag `control-vector` or
`representation-engineering`, or are called so, and GGUF files. Nothing is downloaded, and nothing
here is verified.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from huggingface_hub import HfApi
from huggingface_hub.hf_api import ModelInfo

from .card import TAG
from .hub import packings
from .hub_errors import one_line
from .hub_ref import REPO
from .model_ref import base_name
from .values import printable

__all__ = ["Found", "search"]

LIMIT = 1000  # repositories of one kind
FOREIGN = ("control-vector", "representation-engineering")


@dataclass(frozen=True)
class Found:
    """A repository. `ours` says whether it says what it holds; `files` are its vectors."""

    repo: str
    ours: bool
    base_models: tuple[str, ...]
    files: tuple[str, ...]
    tags: tuple[str, ...]
    downloads: int
    updated: str
    license: str


def search(text: str = "", model: str = "") -> list[Found]:
    """Return repositories of vectors, ours first, each kind by downloads.

    Args:
        text: in the name of the repository, of one of its vectors, or in a tag.
        model: a known model's name or a Hub id: only vectors of its weights, in any packing.
    """
    api = HfApi()
    wanted = packings(model) if model else set()
    found: dict[str, Found] = {}
    tagged = [([TAG], None), *(([tag, "gguf"], None) for tag in FOREIGN)]
    with one_line("the search", None, "search", ""):
        for tags, name in (*tagged, (["gguf"], FOREIGN[0])):
            for row in api.list_models(filter=tags, search=name, full=True, limit=LIMIT):
                one = _found(row)
                words = " ".join((one.repo, *one.files, *one.tags)).lower()
                if text.lower() in words and (not model or _fits(one, wanted)):
                    found.setdefault(one.repo, one)
    return sorted(found.values(), key=lambda one: (not one.ours, -one.downloads, one.repo))


def _fits(one: Found, wanted: set[str]) -> bool:
    """Whether a repository says so, or, where it says nothing, its files are named so."""
    if one.base_models:
        return any(base_name(base) in wanted for base in one.base_models)
    words = [re.sub(r"[^a-z0-9]+", "-", name.lower()) for name in (one.repo, *one.files)]
    return any(re.sub(r"[^a-z0-9]+", "-", name) in word for name in wanted for word in words)


def _found(row: ModelInfo) -> Found:
    tags = [printable(tag) for tag in row.tags or [] if isinstance(tag, str)]
    bases = [tag.removeprefix("base_model:") for tag in tags if tag.startswith("base_model:")]
    licenses = [tag.removeprefix("license:") for tag in tags if tag.startswith("license:")]
    names = [sibling.rfilename for sibling in row.siblings or []]
    ours = TAG in tags
    return Found(
        repo=printable(row.id),
        ours=ours,
        base_models=tuple(dict.fromkeys(base for base in bases if re.fullmatch(REPO, base))),
        files=_vectors(names, (".safetensors",) if ours else (".gguf", ".safetensors")),
        tags=tuple(tag for tag in tags if ":" not in tag),
        downloads=row.downloads or 0,
        updated=row.last_modified.date().isoformat() if row.last_modified else "",
        license=", ".join(licenses),
    )


def _vectors(names: Sequence[str], suffixes: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(sorted(printable(name) for name in names if name.endswith(suffixes)))
