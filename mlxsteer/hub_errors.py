"""What can go wrong with the Hub, each as one line with the way out.

It knows the errors of huggingface_hub (which has tried again by then, where that helps) and nothing
of what was asked for but its name.
"""

import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub import errors as hub

from .errors import MlxsteerError

__all__ = ["one_line"]

log = logging.getLogger("mlxsteer")

# What the Hub answers with -> the way out.
_REFUSALS = {
    403: "the token may not do this: make one with write access, then run hf auth login",
    409: "it is there already or was changed just now: try again, or choose another name",
    412: "it was changed just now: try again",
    413: "it is too large: leave files out",
    429: "too many requests: wait some minutes and try again",
    507: "the quota is used up: make room or choose another owner",
}


@contextmanager
def one_line(
    repo: str, revision: str | None = None, what: str = "model", here: str = "a folder or a file"
) -> Iterator[None]:
    """Turn what huggingface_hub raises into one line with the way out.

    Args:
        repo, revision: what was asked for.
        what: the kind of thing that `repo` is.
        here: what could be given in its place without a connection; "" if nothing.
    """
    at = f" at {revision}" if revision else ""
    try:
        with _relayed(), _unwrapped():
            yield
    except hub.GatedRepoError as error:
        raise MlxsteerError(
            f"{repo} is gated: accept its terms on its page, then run hf auth login"
        ) from error
    except hub.RevisionNotFoundError as error:
        raise MlxsteerError(f"{repo} has no revision {revision!r}: leave it out") from error
    except hub.RepositoryNotFoundError as error:
        also = ", and no folder has that name" if here else ""
        raise MlxsteerError(
            f"no {what} {repo!r} is on the Hub, or it is private (run hf auth login){also}"
        ) from error
    except hub.HFValidationError as error:
        raise MlxsteerError(f"{repo!r} is not a Hub id: write owner/name") from error
    except (
        hub.LocalEntryNotFoundError,
        hub.OfflineModeIsEnabled,
        hub.RevisionResolutionError,
    ) as error:
        out = "unset HF_HUB_OFFLINE" if constants.HF_HUB_OFFLINE else "connect"
        cached = f" and {repo}{at} is not in the cache: {out}, or give {here}"
        raise MlxsteerError(
            f"the Hub cannot be reached{cached if here else f' for {repo}: {out}'}"
        ) from error
    except hub.EntryNotFoundError as error:
        raise MlxsteerError(f"{repo}{at} lacks a file: {_first(error)}") from error
    except hub.HfHubHTTPError as error:
        raise MlxsteerError(f"the Hub refused {repo}{at}: {_refusal(error)}") from error
    except hub.HTTPError as error:  # type: ignore[attr-defined]
        raise MlxsteerError(
            f"the connection to the Hub broke at {repo}{at}: {_first(error)}; try again"
        ) from error
    except OSError as error:
        full = " (the disk is full)" if error.errno == errno.ENOSPC else ""
        raise MlxsteerError(f"{repo} cannot be stored{full}: {error}") from error


class _Relay(logging.Handler):
    """What huggingface_hub warns of, each as one line of ours, the same once."""

    def __init__(self, others: list[logging.Handler]) -> None:
        super().__init__()
        self.others, self.said = others, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        if record.levelno < logging.WARNING:  # only who asks for these gets them
            for other in self.others:
                other.handle(record)
            return
        said = _short((record.getMessage().strip().splitlines() or [""])[0])
        if record.name.endswith("._http"):
            said = "the Hub does not answer: trying again"
        elif "cached commit hash" in record.getMessage():
            said = "the Hub cannot be reached: what is in the cache is used"
        if said not in self.said:
            self.said.add(said)
            log.warning("%s", said)


@contextmanager
def _relayed() -> Iterator[None]:
    """Keep huggingface_hub from writing lines of its own, a dozen for a server that is away."""
    theirs = logging.getLogger("huggingface_hub")
    before = theirs.handlers
    theirs.handlers = [_Relay(before)]
    try:
        yield
    finally:
        theirs.handlers = before


@contextmanager
def _unwrapped() -> Iterator[None]:
    """Raise what lies behind the RuntimeError in which uploads of large files wrap it."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error.__cause__, hub.HTTPError):  # type: ignore[attr-defined]
            raise error.__cause__ from None
        raise MlxsteerError(f"the transfer failed: {_short(_first(error))}; try again") from error


def _refusal(error: hub.HfHubHTTPError) -> str:
    """What the Hub said, and what can be done about it."""
    status = error.response.status_code
    said = error.server_message or _first(error)
    if status == 401:
        return "the token is not valid: run hf auth login"
    if status in _REFUSALS:
        return f"{_REFUSALS[status]} ({status}: {_short(said)})"
    if status >= 500:
        return f"it is out of order ({status}): try again later"
    return _short(said)


def _short(text: str) -> str:
    return text if len(text) <= 160 else f"{text[:160]}..."


def _first(error: Exception) -> str:
    """The first line of what another library said."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
