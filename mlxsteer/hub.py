"""Vectors in a repository of the Hub: what it holds, and the one that is wanted, verified.

A revision is resolved to a commit first; all comes from that commit, only the files that are
needed, into huggingface_hub's cache, so that a second time no connection is used. Our repositories
say in `config.json` what they hold:

    {"mlxsteer": 1, "vectors": [{"name": "pirate", "file": "pirate/smollm2-135m.safetensors",
     "sha256": "...", "model": {fields of ModelRef}, ...}]}

In any other repository each small .safetensors or .gguf is taken for a vector until it is read.
Pickles are never fetched. A file that is not what its commit or `config.json` says is removed from
the cache and refused. It knows nothing of what a vector does: who reads the file checks that.

    shared = open_repo(HubRef.parse("owner/name@v1:pirate"))
    path = shared.fetch(shared.choose(model.source))
"""

import hashlib
import json
import logging
import os
import re
import secrets
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from huggingface_hub import HfApi, try_to_load_from_cache

from .errors import MlxsteerError, UsageError
from .hub_errors import one_line
from .hub_ref import HubRef
from .library import known_model
from .model_ref import ModelRef, base_name
from .progress import Progress, silent
from .snapshot import SAFE, Snapshot
from .tables import near
from .values import brief, parsed, printable
from .vector import read_vector

__all__ = ["CONFIG_VERSION", "Entry", "Shared", "entries_of", "open_repo", "packings"]

CONFIG_VERSION = 1
MAX_CONFIG = 1 << 22

# What belongs to a concept and may be copied into a folder.
SUFFIXES = (".gguf", ".json", ".jsonl", ".md", ".png", ".safetensors", ".toml", ".txt")
_PICKLES = (".bin", ".ckpt", ".npy", ".npz", ".pickle", ".pkl", ".pt", ".pth")

log = logging.getLogger("mlxsteer")


@dataclass(frozen=True)
class Entry:
    """One vector of a repository; `sha256` "" and `model` None: nobody says."""

    name: str
    file: str
    sha256: str = ""
    model: ModelRef | None = None


@dataclass(frozen=True)
class Shared:
    """The vectors of one commit that a reference means, before one of them is chosen.

    Attributes:
        ref: what was asked for; `snapshot`: the commit that it was resolved to.
        entries: of the concept that was asked for, one per model; of a foreign repository one.
        ours: whether `config.json` says what they are.
    """

    ref: HubRef
    snapshot: Snapshot
    entries: tuple[Entry, ...]
    ours: bool

    def choose(self, model: ModelRef | str | None = None) -> Entry:
        """Return the vector for a model: of the same packing, else of the same weights.

        `model` may be a model's name as people write it; None takes the only one there is. A file
        that does not say its model is taken for any.
        """
        if isinstance(model, ModelRef):
            fits = [(e.model, e) for e in self.entries if e.model and e.model.same_model(model)]
            fits.sort(key=lambda fit: _packing(fit[0]) != _packing(model))
            foreign = [entry for entry in self.entries if entry.model is None]
            found = next(iter([entry for _, entry in fits] + foreign), None)
        elif len(self.entries) == 1 and (model is None or self.entries[0].model is None):
            return self.entries[0]
        else:
            found = next((e for e in self.entries if model and _is_called(e, model)), None)
        if found is None:
            models = {str(e.model) if e.model else PurePosixPath(e.file).stem for e in self.entries}
            has = f"{self.ref} has vectors for {printable(', '.join(sorted(models)))}"
            if model is None:
                raise UsageError(f"{has}: say for which model")
            raise MlxsteerError(
                f"{has}, none for {model}: mlxsteer vectors pull {self.ref} -o FOLDER, then "
                "mlxsteer extract FOLDER"
            )
        return found

    def fetch(self, entry: Entry, progress: Progress = silent) -> Path:
        """Return the verified file of a vector in the cache, and tell which commit it is of."""
        path = self.snapshot.fetch(entry.file, progress)
        if entry.sha256:
            with path.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != entry.sha256:
                    self.snapshot.refuse(path, f"{entry.file} is not what its config.json says")
        log.info("%s: %s of commit %s", self.ref, entry.file, self.snapshot.commit)
        return path

    def save(self, folder: Path, progress: Progress = silent) -> list[str]:
        """Copy all that is meant into a new folder, with `source.json`; all of it or nothing. A
        library, if `ref` names no concept of it, keeps its folder per concept.

        Returns:
            the names of the files.
        """
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UsageError(f"{folder} is there and not empty: name a new folder")
        wanted = self._belonging()
        temporary = folder.with_name(f".{secrets.token_hex(8)}")
        hashes = {entry.file: entry.sha256 for entry in self.entries}
        try:
            temporary.mkdir(parents=True)
            record: dict[str, str] = {}
            for name, target in wanted.items():
                path = self.snapshot.fetch(name, progress)
                data = path.read_bytes()
                record[target] = hashlib.sha256(data).hexdigest()
                if hashes.get(name) not in (None, "", record[target]):
                    self.snapshot.refuse(path, f"{name} is not what its config.json says")
                (temporary / target).parent.mkdir(parents=True, exist_ok=True)
                (temporary / target).write_bytes(data)
                if target.endswith(".safetensors") and self.ours:
                    read_vector(temporary / target)
            source = {"repo": self.ref.repo, "revision": self.ref.revision or "main"}
            source |= {"commit": self.snapshot.commit}
            (temporary / "source.json").write_text(
                json.dumps({**source, "files": record}, indent=2) + "\n"
            )
            if folder.is_dir():
                folder.rmdir()
            os.replace(temporary, folder)
        except OSError as error:
            raise MlxsteerError(f"{folder} cannot be written: {error.strerror}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        return [*record, "source.json"]

    def _belonging(self) -> dict[str, str]:
        """The files beside the chosen vectors -> their names in a folder of their own."""
        folders = {PurePosixPath(entry.file).parent.as_posix() for entry in self.entries}
        if not self.ours:
            return {entry.file: PurePosixPath(entry.file).name for entry in self.entries}
        if None in self.snapshot.files.values():
            cached = f"the Hub cannot be reached, the cache may not be all of {self.ref}"
            raise MlxsteerError(f"{cached}: connect, or leave out the folder")
        library = self.ref.name is None and folders != {"."}
        found = {}
        for name in sorted(self.snapshot.files):
            path = PurePosixPath(name)
            if path.parent.as_posix() in folders and path.suffix in SUFFIXES:
                found[name] = name if library else path.name
        return found


def _packing(model: ModelRef) -> tuple[str, str]:
    return model.repo, model.quantization


def _is_called(entry: Entry, model: str) -> bool:
    repo = base_name(entry.model.repo) if entry.model else ""
    return model.lower() == Path(entry.file).stem.lower() or repo in packings(model)


def open_repo(ref: HubRef, progress: Progress = silent, *, whole: bool = False) -> Shared:
    """Return what a reference means, after reading `config.json`; no vector is fetched yet.

    Of a library it must name a concept, unless `whole`.
    """
    with one_line(ref.repo, ref.revision, "repository of vectors"):
        commit = HfApi().resolve_revision(ref.repo, revision=ref.revision).resolved
    snapshot = Snapshot(ref.repo, commit)
    cached = try_to_load_from_cache(ref.repo, "config.json", revision=commit)
    config: dict[str, Any] = {}
    if isinstance(cached, str) or "config.json" in snapshot.files:
        path = snapshot.fetch("config.json", progress, MAX_CONFIG)
        config = parsed(path.read_bytes(), f"the config.json of {ref.repo}")
    if "mlxsteer" in config:
        return Shared(ref, snapshot, _of_concept(ref, entries_of(config, ref.repo), whole), True)
    return Shared(ref, snapshot, _foreign(ref, snapshot), False)


def entries_of(config: Mapping[str, Any], repo: str) -> tuple[Entry, ...]:
    """Return the vectors that our `config.json` lists, checked."""
    where = f"the config.json of {repo}"
    if config.get("mlxsteer") != CONFIG_VERSION:
        raise MlxsteerError(
            f"{where} is of version {brief(config.get('mlxsteer'))}, this mlxsteer reads "
            f"{CONFIG_VERSION}: update mlxsteer"
        )
    rows = config.get("vectors")
    if not isinstance(rows, list) or not rows:
        raise MlxsteerError(f"{where} lists no vectors")
    found = []
    for row in rows:
        row = row if isinstance(row, dict) else {}
        name, file, digest = (row.get(key) for key in ("name", "file", "sha256"))
        if not (isinstance(name, str) and isinstance(file, str) and isinstance(digest, str)):
            raise MlxsteerError(f"{where} has a vector without name, file and sha256")
        parts = file.split("/")
        if not SAFE.fullmatch(file) or ".." in parts or not file.endswith(".safetensors"):
            raise MlxsteerError(f"{where} names the file {brief(file)}, which is no vector's name")
        if not re.fullmatch("[0-9a-f]{64}", digest):
            raise MlxsteerError(f"{where} has the sha256 {brief(digest)}: 64 hex digits are one")
        try:
            model = ModelRef.from_json(row.get("model"))
        except MlxsteerError as error:
            raise MlxsteerError(f"{where}: {error}") from error
        found.append(Entry(name, file, digest, model))
    return tuple(found)


def packings(model: str) -> set[str]:
    """Return the names (`base_name`) of the weights that a known model's name or a Hub id means."""
    known = known_model(model)
    ids = [known.original, *(file.repo for file in known.hub)] if known else [model]
    return {base_name(name) for name in ids if name}


def _of_concept(ref: HubRef, entries: tuple[Entry, ...], whole: bool) -> tuple[Entry, ...]:
    names = sorted({entry.name for entry in entries})
    if ref.name is None and len(names) > 1 and not whole:
        shown = printable(", ".join(names))
        raise UsageError(f"{ref} has several concepts, say which, as in {ref}:{names[0]}: {shown}")
    found = tuple(entry for entry in entries if ref.name in (None, entry.name))
    if not found:
        raise MlxsteerError(f"{ref.repo} has no concept {ref.name!r}{near(ref.name or '', names)}")
    return found


def _foreign(ref: HubRef, snapshot: Snapshot) -> tuple[Entry, ...]:
    """The file that is meant in a repository that does not say what it holds."""
    names = sorted(name for name in snapshot.files if SAFE.fullmatch(name))
    files = [name for name in names if name.endswith((".gguf", ".safetensors"))]
    if pickles := [name for name in names if name.endswith(_PICKLES)]:
        log.info("%s: %s is left alone, it could run any program", ref.repo, brief(pickles[0]))
    if not files:
        but = f", only {brief(pickles[0])}, which could run any program" if pickles else ""
        raise MlxsteerError(f"{ref.repo} has no vector in .safetensors or .gguf{but}")
    if ref.name is not None:
        wanted = ref.name
        files = [f for f in files if f == wanted] or [
            f for f in files if wanted in (PurePosixPath(f).name, PurePosixPath(f).stem)
        ]
        if not files:
            stems = (PurePosixPath(name).stem for name in names)
            raise MlxsteerError(f"{ref.repo} has no vector {wanted!r}{near(wanted, stems)[:400]}")
    if len(files) > 1:
        shown = printable(", ".join(files[:6])) + (", ..." if len(files) > 6 else "")
        raise UsageError(f"{ref} has {len(files)} files, say which, as in {ref.repo}:FILE: {shown}")
    return tuple(Entry(PurePosixPath(file).stem, file) for file in files)
