"""Completions: two answers to one prompt that differ in the concept alone, the ruler of a concept.

A JSON-lines file, read like the prompts that it belongs to:

    {"prompt": "...", "split": "dev" | "test", "positive": "...", "negative": "..."}

They are written before any vector is judged by them. This module knows nothing of models, nor of
how a completion is scored; every error names the file and the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import MlxsteerError
from .prompts import Prompt, Split, check_text
from .tables import read_rows, shown

__all__ = ["Completion", "read_completions"]


@dataclass(frozen=True)
class Completion:
    """Two answers to `prompt`; `positive` has MORE of the concept. Empty and equal are refused."""

    prompt: str
    positive: str
    negative: str
    split: Split = "test"

    def __post_init__(self) -> None:
        for name in ("prompt", "positive", "negative"):
            check_text(name, getattr(self, name))
        if self.positive.split() == self.negative.split():
            raise MlxsteerError("both answers are equal; they must differ in the concept")


def read_completions(path: str | Path, prompts: Sequence[Prompt]) -> tuple[Completion, ...]:
    """The completions of a file, at least one, each to another of the concept's `prompts`.

    Training prompts have none: a vector was made from what is said to them.
    """
    known = {(prompt.split, prompt.text) for prompt in prompts}
    found: list[Completion] = []
    seen: dict[str, str] = {}
    for where, row in read_rows(Path(path), ("prompt", "split", "positive", "negative")):
        if row["split"] not in ("dev", "test"):
            raise MlxsteerError(f"{where}: split is {shown(row['split'])}; it must be dev, test")
        try:
            one = Completion(**row)
        except MlxsteerError as error:
            raise MlxsteerError(f"{where}: {error}") from error
        if (one.split, one.prompt) not in known:
            raise MlxsteerError(
                f"{where}: the concept has no {one.split} prompt {shown(one.prompt)}"
            )
        if one.prompt in seen:
            raise MlxsteerError(f"{where}: the prompt stands already at {seen[one.prompt]}")
        seen[one.prompt] = where
        found.append(one)
    return tuple(found)
