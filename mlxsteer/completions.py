"""Completions: two answers to one prompt that differ in the concept alone.

A JSON-lines file, read like the prompts that it belongs to:

    {"prompt": "...", "split": "train" | "dev" | "test", "positive": "...", "negative": "..."}

Those of `train` are what a vector is made of, the others are the ruler of the concept: they are
written before any vector is judged by them. This module knows nothing of models, nor of
how a completion is scored; every error names the file and the line.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import MlxsteerError
from .prompts import SPLITS, Pair, Prompt, Split, check_text
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

    def pair(self) -> Pair:
        """The prompt with either answer, as chat messages."""
        asked = {"role": "user", "content": self.prompt}
        positive, negative = (
            [asked, {"role": "assistant", "content": answer}]
            for answer in (self.positive, self.negative)
        )
        return Pair(positive, negative)


def read_completions(path: str | Path, prompts: Sequence[Prompt]) -> tuple[Completion, ...]:
    """The completions of a file, at least one, each to another of the concept's `prompts`."""
    known = {(prompt.split, prompt.text) for prompt in prompts}
    found: list[Completion] = []
    seen: dict[str, str] = {}
    for where, row in read_rows(Path(path), ("prompt", "split", "positive", "negative")):
        if row["split"] not in SPLITS:
            splits = ", ".join(SPLITS)
            raise MlxsteerError(f"{where}: split is {shown(row['split'])}; it must be {splits}")
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
