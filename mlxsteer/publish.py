"""The files of a repository on their way to the Hub: one commit, only what changed.

A second push of the same content changes nothing, and nothing on the Hub is ever deleted: a push
that would orphan a vector there is refused. It reads `config.json` and knows no other file.
"""

import hashlib
import json
import logging
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from huggingface_hub import CommitInfo, CommitOperationAdd, HfApi, get_token
from huggingface_hub import errors as hub
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils.tqdm import (
    are_progress_bars_disabled,
    disable_progress_bars,
    enable_progress_bars,
)

from .errors import MlxsteerError, UsageError
from .hub import entries_of
from .hub_errors import one_line
from .hub_ref import REPO
from .progress import Progress, silent
from .snapshot import Snapshot
from .values import brief, parsed, printable

__all__ = ["Pushed", "check_models", "push"]

CHUNK = 8  # files that are sent between two words of progress

log = logging.getLogger("mlxsteer")


@dataclass(frozen=True)
class Pushed:
    """What a push did: where, which commit, the files that changed, a pull request's address."""

    url: str
    commit: str
    changed: tuple[str, ...]
    pull_request: str | None = None


def check_models(names: Sequence[str]) -> None:
    """Refuse a base model that nobody would find the vectors under.

    Raises:
        MlxsteerError: there is no such model on the Hub, or it cannot be asked.
    """
    for name in names:
        with one_line(name, None, "model", ""):
            HfApi().model_info(name)


def push(
    files: dict[str, bytes],
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    create_pr: bool = False,
    collection: str = "",
    progress: Progress = silent,
) -> Pushed:
    """Put the files into the repository as one commit, made if it is not there; only what changed.

    Args:
        private: of a repository that is new; revision: a branch, made if it is not there.
        create_pr: a pull request to a repository that is there.
        collection: the title of a collection of the same owner that shall show it.

    Raises:
        UsageError: no such name, or the options do not fit what is there.
        MlxsteerError: no token, the name is taken, or the Hub refuses.
    """
    if not re.fullmatch(REPO, repo):
        raise UsageError(f"--repo {brief(repo)}: write owner/name")
    if get_token() is None:
        raise MlxsteerError("there is no token of the Hub: run hf auth login, or set HF_TOKEN")
    api = HfApi()
    with one_line(repo, revision, "repository", ""), _quiet():
        head, branch_is_new = _prepare(api, repo, private, revision, create_pr)
        there = _files(api, repo, head)
        _check_taken(repo, head, there, files)
        if revision is not None and branch_is_new:
            api.create_branch(repo, branch=revision, exist_ok=True)
        changed = tuple(name for name, data in files.items() if not _same(there.get(name), data))
        pushed = Pushed(f"{api.endpoint}/{repo}", head, changed)
        if changed:
            with _card_refused(repo):
                made = _commit(api, repo, files, changed, head, progress, revision, create_pr)
            pushed = replace(pushed, commit=made.oid, pull_request=made.pr_url)
    if collection:
        _collect(api, repo, collection, private)
    return pushed


def _commit(
    api: HfApi,
    repo: str,
    files: dict[str, bytes],
    changed: Sequence[str],
    head: str,
    progress: Progress,
    revision: str | None,
    create_pr: bool,
) -> CommitInfo:
    """Send what changed, then make one commit of it onto `head`."""
    additions = [CommitOperationAdd(name, files[name]) for name in changed]
    branch: dict[str, Any] = {"revision": revision, "create_pr": create_pr}
    for start in range(0, len(additions), CHUNK):
        progress("pushing files", start, len(additions))
        sent = additions[start : start + CHUNK]
        api.preupload_lfs_files(repo, sent, free_memory=False, **branch)
    title = _title(files, changed)
    how: dict[str, Any] = {"commit_message": title, "parent_commit": head, **branch}
    made: CommitInfo = api.create_commit(repo, additions, **how)
    progress("pushing files", len(additions), len(additions))
    return made


def _collect(api: HfApi, repo: str, title: str, private: bool) -> None:
    """Show the repository in a collection of its owner, made if it is not there."""
    owner = repo.partition("/")[0]
    try:
        with one_line(repo, None, "repository", ""):
            shown = api.create_collection(title, namespace=owner, private=private, exists_ok=True)
            api.add_collection_item(shown.slug, repo, "model", exists_ok=True)
    except MlxsteerError as error:
        raise MlxsteerError(
            f"the files are on the Hub, their collection is not: {error}"
        ) from error


def _prepare(
    api: HfApi, repo: str, private: bool, revision: str | None, create_pr: bool
) -> tuple[str, bool]:
    """Make the repository if it is missing; return the commit to add to, and whether the branch
    has still to be made.
    """
    try:
        found = api.repo_info(repo)
    except hub.GatedRepoError:
        raise
    except hub.RepositoryNotFoundError:
        api.whoami()  # a token that is not valid sees no private repository
        if create_pr:
            raise
        api.create_repo(repo, private=private)
        found = api.repo_info(repo)
    else:
        if private and not found.private:
            raise UsageError(f"{repo} is there and public: choose another name for --private")
    if revision is None:
        return str(found.sha), False
    try:
        return str(api.repo_info(repo, revision=revision).sha), False
    except hub.RevisionNotFoundError:
        if create_pr:
            raise
        return str(found.sha), True


def _files(api: HfApi, repo: str, commit: str) -> dict[str, RepoFile]:
    tree = api.list_repo_tree(repo, recursive=True, revision=commit)
    return {item.path: item for item in tree if isinstance(item, RepoFile)}


def _same(there: RepoFile | None, data: bytes) -> bool:
    if there is None:
        return False
    if there.lfs is not None:
        return there.lfs.sha256 == hashlib.sha256(data).hexdigest()
    return there.blob_id == hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _check_taken(repo: str, head: str, there: dict[str, RepoFile], files: dict[str, bytes]) -> None:
    """Refuse a repository of something else, and one whose vectors would be lost."""
    others = there.keys() - {".gitattributes", "README.md", "LICENSE"}
    if "config.json" not in there:
        if others:
            raise MlxsteerError(
                f"{repo} is taken: it holds {brief(min(others))} and is no repository of vectors; "
                "choose another name"
            )
        return
    config = parsed(Snapshot(repo, head).fetch("config.json").read_bytes(), f"{repo}: config.json")
    if "mlxsteer" not in config:
        raise MlxsteerError(f"{repo} is taken, by something else than vectors; choose another name")
    here = {(row["name"], row["file"]) for row in json.loads(files["config.json"])["vectors"]}
    lost = {(entry.name, entry.file) for entry in entries_of(config, repo)} - here
    if not lost:
        return
    name, file = min(lost)
    if file in files:
        raise MlxsteerError(f"{repo} has {brief(name)} in {file}: choose another name for yours")
    raise MlxsteerError(
        f"{repo} also holds {file}, which is not here: mlxsteer vectors pull {repo} -o FOLDER, add "
        "to that and push it (a folder of several concepts with --all)"
    )


def _title(files: dict[str, bytes], changed: Sequence[str]) -> str:
    names = sorted({row["name"] for row in json.loads(files["config.json"])["vectors"]})
    what = names[0] if len(names) == 1 else f"{len(names)} concepts"
    return f"Vectors of {what}: {len(changed)} files"


@contextmanager
def _card_refused(repo: str) -> Iterator[None]:
    """Say in one line what the Hub has against the card's metadata."""
    with warnings.catch_warnings(record=True) as told:
        warnings.filterwarnings("always", "Warnings while validating")
        try:
            yield
        except ValueError as error:
            if not str(error).startswith("Invalid metadata"):
                raise
            said = printable(str(error).partition("\n")[2])
            raise MlxsteerError(
                f"the Hub refused the card of {repo}, nothing was pushed: {said[:200]}; does a "
                "--base-model say what there is not?"
            ) from error
    for one in told:
        log.info("%s: %s", repo, printable(str(one.message))[:200])


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep huggingface_hub from drawing bars of its own."""
    was = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not was:
            enable_progress_bars()
