"""Multiple-choice questions of plain knowledge, which show what a steering costs in ability.

`vectors/capability.jsonl`, written for this project; `answer` is the index of the right choice:

    {"question": "...", "choices": ["...", "...", "...", "..."], "answer": 0}

It knows nothing of models, nor of how an answer is scored.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .errors import MlxsteerError
from .library import data_folder
from .prompts import check_text
from .tables import read_rows, shown

__all__ = ["CHOICES", "Question", "read_questions"]

CHOICES = 4


@dataclass(frozen=True)
class Question:
    """A question, its choices, and which of them is right (0-based)."""

    text: str
    choices: tuple[str, ...]
    answer: int

    def __post_init__(self) -> None:
        check_text("question", self.text)
        if len(self.choices) != CHOICES:
            raise MlxsteerError(f"there are {len(self.choices)} choices; give {CHOICES}")
        for number, choice in enumerate(self.choices):
            check_text(f"choice {number}", choice)
        if len({choice.strip().lower() for choice in self.choices}) != CHOICES:
            raise MlxsteerError("a choice stands there twice; they must differ")
        if type(self.answer) is not int or not 0 <= self.answer < CHOICES:
            raise MlxsteerError(
                f"answer is {shown(self.answer)}; it must be an index from 0 to {CHOICES - 1}"
            )


def read_questions(path: str | Path | None = None) -> tuple[Question, ...]:
    """The questions of a JSON-lines file, at least one, by default the shipped ones.

    Raises:
        MlxsteerError: a line that is no such question, or one that was asked before.
    """
    path = data_folder("vectors") / "capability.jsonl" if path is None else Path(path)
    found: list[Question] = []
    seen: dict[str, str] = {}
    for where, row in read_rows(path, required=("question", "choices", "answer")):
        choices = row["choices"]
        if not isinstance(choices, list):
            raise MlxsteerError(f"{where}: choices is {shown(choices)}; it must be a list of texts")
        try:
            question = Question(row["question"], tuple(choices), row["answer"])
        except MlxsteerError as error:
            raise MlxsteerError(f"{where}: {error}") from error
        if (key := " ".join(question.text.lower().split())) in seen:
            raise MlxsteerError(f"{where}: the question stands already at {seen[key]}")
        seen[key] = where
        found.append(question)
    return tuple(found)
