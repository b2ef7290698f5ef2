"""Bring a model from the Hub into the local cache: only the files that are needed, one commit.

A revision is resolved to a commit first, and everything comes from that commit. What is in the
cache already is used without a connection. It knows nothing of what the files mean: the caller
checks the config before the weights are fetched.
"""

import hashlib
import io
import json
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi, hf_hub_download, snapshot_download
from huggingface_hub import errors as hub
from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

from .errors import MlxsteerError
from .hub_errors import one_line
from .progress import Progress, silent

__all__ = ["Megabytes", "bar", "check_sha256", "download_file", "download_model"]

NEEDED = ["*.jinja", "*.json", "*.txt", "model*.safetensors", "tokenizer.model"]
NESTED = ["*/*"]  # onnx/, original/ and the like
STAGE = "downloading MB"

Check = Callable[[dict[str, Any], int], None]


def download_model(
    repo: str, revision: str | None, check: Check, progress: Progress = silent
) -> tuple[Path, str]:
    """The local folder of a repository's model, and its commit.

    `check(config, weight_bytes)` is called before any weights are fetched and may refuse.
    """
    with one_line(repo, revision, here="a folder or a .gguf file"):
        commit = HfApi().resolve_revision(repo, revision=revision).resolved
        try:
            folder = snapshot_download(
                repo,
                revision=commit,
                allow_patterns=NEEDED,
                ignore_patterns=NESTED,
                local_files_only=True,
            )
            return Path(folder), commit
        except hub.LocalEntryNotFoundError:
            pass
        files = _needed_files(repo, commit)
        told = Megabytes(progress, sum(files.values()))
        path = hf_hub_download(repo, "config.json", revision=commit, tqdm_class=bar(None))
        weights = sum(size for name, size in files.items() if name.endswith(".safetensors"))
        check(_json_object(path, repo), weights)
        folder = snapshot_download(
            repo,
            revision=commit,
            allow_patterns=NEEDED,
            ignore_patterns=NESTED,
            tqdm_class=bar(told),
        )
        told.end()
        return Path(folder), commit


def download_file(repo: str, file: str, revision: str | None, progress: Progress = silent) -> Path:
    """One file of a repository."""
    with one_line(repo, revision, here="a folder or a .gguf file"):
        told = bar(Megabytes(progress))
        return Path(hf_hub_download(repo, file, revision=revision, tqdm_class=told))


class Megabytes:
    """Tells a `Progress` of bytes in MB, only ever forwards; `total` 0 is learnt from the bars."""

    def __init__(self, progress: Progress, total: int = 0) -> None:
        self.progress = progress
        self.total = total
        self.done = -1
        if total:
            self(0, total)

    def __call__(self, done: int, total: int) -> None:
        total = self.total or total
        if self.done < done <= total:
            self.done = done
            self.progress(STAGE, -(-done // 10**6), -(-total // 10**6))

    def end(self) -> None:
        self(self.total, self.total)


def bar(told: Megabytes | None) -> type[tqdm]:
    """Return the class of a bar that tells of its bytes instead of drawing itself."""

    class Bar(tqdm):
        monitor_interval = 0  # no thread to redraw what is not drawn

        def __init__(self, *args: Any, **options: Any) -> None:
            options |= {"disable": told is None, "file": io.StringIO()}
            super().__init__(*args, **options)

        def display(self, msg: str | None = None, pos: int | None = None) -> None:
            if told is not None and self.unit == "B" and self.total:
                told(int(self.n), int(self.total))

    return Bar


def check_sha256(path: Path, expected: str, way_out: str) -> None:
    """Refuse a file that is not the one that was meant; nothing is checked if `expected` is ""."""
    if not expected:
        return
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise MlxsteerError(f"{path} cannot be read: {error.strerror}") from error
    if found != expected:
        raise MlxsteerError(
            f"{path} has the sha256 {found[:12]}..., not {expected[:12]}...: {way_out}"
        )


def _needed_files(repo: str, commit: str) -> dict[str, int]:
    """Name and size of the files to fetch."""
    siblings = HfApi().model_info(repo, revision=commit, files_metadata=True).siblings or []
    names = {sibling.rfilename: sibling.size or 0 for sibling in siblings}
    files = {
        name: size
        for name, size in names.items()
        if "/" not in name and any(fnmatch(name, pattern) for pattern in NEEDED)
    }
    if not any(name.endswith(".safetensors") for name in files):
        gguf = sorted(name for name in names if name.endswith(".gguf"))
        hint = (
            f"download one of its GGUF files, such as {gguf[0]}, and give its path"
            if gguf
            else ("take a conversion of it to safetensors")
        )
        raise MlxsteerError(f"{repo} has no weights in safetensors: {hint}")
    if "config.json" not in files:
        raise MlxsteerError(f"{repo} has no config.json: it is not a model that can be loaded")
    return files


def _json_object(path: str, repo: str) -> dict[str, Any]:
    try:
        config = json.loads(Path(path).read_bytes())
    except ValueError as error:
        raise MlxsteerError(f"the config.json of {repo} is not JSON: {error}") from error
    if not isinstance(config, dict):
        raise MlxsteerError(f"the config.json of {repo} is not a JSON object")
    return config
