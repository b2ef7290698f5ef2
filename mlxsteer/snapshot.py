"""One commit of a repository of the Hub: its files, each verified, in huggingface_hub's cache.

Only what is asked for is fetched, and once it is there no connection is needed. A file that is not
what its commit says is removed from the cache and refused. It knows nothing of what a file means.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from huggingface_hub import HfApi, constants, hf_hub_download, try_to_load_from_cache
from huggingface_hub import errors as hub
from huggingface_hub.file_download import repo_folder_name
from huggingface_hub.hf_api import RepoFile

from .download import Megabytes, bar
from .errors import MlxsteerError
from .hub_errors import one_line
from .progress import Progress, silent
from .values import brief

__all__ = ["MAX_BYTES", "SAFE", "Snapshot"]

MAX_BYTES = 1 << 26  # of one file: no vector is near it, and no model is fetched for one
_PART = r"[A-Za-z0-9_][\w .,+()\[\]-]{0,127}"
SAFE = re.compile(rf"(?:{_PART}/){{0,4}}{_PART}")  # a name that cannot lead out of a folder


@dataclass(frozen=True)
class Snapshot:
    """One commit of a repository."""

    repo: str
    commit: str

    @cached_property
    def files(self) -> dict[str, RepoFile | None]:
        """Every file of the commit; without a connection, None for each that is in the cache."""
        try:
            with one_line(self.repo, self.commit, "repository", ""):
                tree = HfApi().list_repo_tree(self.repo, recursive=True, revision=self.commit)
                return {item.path: item for item in tree if isinstance(item, RepoFile)}
        except MlxsteerError as error:
            if not _unreachable(error.__cause__):
                raise
            name = repo_folder_name(repo_id=self.repo, repo_type="model")
            kept = Path(constants.HF_HUB_CACHE, name, "snapshots", self.commit)
            found = (path.relative_to(kept).as_posix() for path in kept.rglob("*"))
            if not (names := [name for name in found if (kept / name).is_file()]):
                raise
            return dict.fromkeys(names)

    def fetch(self, name: str, progress: Progress = silent, most: int = MAX_BYTES) -> Path:
        """Return one file's place in the cache.

        Raises:
            MlxsteerError: it is not there, too large for a vector, or not what the commit says.
        """
        if not SAFE.fullmatch(name) or ".." in name.split("/"):
            raise MlxsteerError(f"{self.repo} has a file of the name {brief(name)}: it is refused")
        cached = try_to_load_from_cache(self.repo, name, revision=self.commit)
        if isinstance(cached, str):
            path = Path(cached)
        else:
            found = self.files.get(name)
            if found is None:
                raise MlxsteerError(f"{self.repo} at {self.commit[:12]} has no file {brief(name)}")
            if found.size > most:
                raise MlxsteerError(
                    f"{self.repo}: {name} has {found.size} bytes: no vector is as large"
                )
            with one_line(self.repo, self.commit, "repository"):
                told = bar(Megabytes(progress, found.size))
                path = Path(hf_hub_download(self.repo, name, revision=self.commit, tqdm_class=told))
        self._verify(path, name)
        return path

    def _verify(self, path: Path, name: str) -> None:
        """Compare a file of the cache with the hash that it is kept under."""
        kept_as = _blob(path).name
        data = path.read_bytes()
        found = (
            hashlib.sha256(data).hexdigest()
            if len(kept_as) == 64
            else hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        )
        if re.fullmatch(r"[0-9a-f]{40}|[0-9a-f]{64}", kept_as) and kept_as != found:
            self.refuse(path, f"{name} is not the file of commit {self.commit[:12]}")

    def refuse(self, path: Path, why: str) -> None:
        """Remove a file from the cache, so that it can be fetched anew, and raise."""
        for place in (path.resolve(), _blob(path), path):
            place.unlink(missing_ok=True)
        raise MlxsteerError(
            f"{self.repo}: {why}: it was changed, and is not used; try again, or ask its owner"
        )


def _blob(path: Path) -> Path:
    """What a file of the cache is a link to, named by its hash (itself a link if xet shares it)."""
    return path.parent / os.readlink(path) if path.is_symlink() else path


def _unreachable(error: BaseException | None) -> bool:
    answered = isinstance(error, hub.HfHubHTTPError)
    return not answered and isinstance(
        error,
        (hub.OfflineModeIsEnabled, hub.HTTPError),  # type: ignore[attr-defined]
    )
