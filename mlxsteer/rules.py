"""A rule: a concept that shows in the words of a text alone, so that counting can confirm it.

    length       the number of words
    lexicon      the share of words that stand in a list, case ignored, phrases as they are
    sentiment    the compound score of vaderSentiment

It says what to count and which way is more of the concept. It counts nothing itself, and knows
nothing of models.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from .errors import MlxsteerError, UsageError
from .tables import shown

__all__ = ["KINDS", "Kind", "Rule", "read_words"]

Kind = Literal["length", "lexicon", "sentiment"]

KINDS: tuple[Kind, ...] = ("length", "lexicon", "sentiment")
_WORD = r"[a-z0-9']+([ -][a-z0-9']+)*"


@dataclass(frozen=True)
class Rule:
    """What to count, and whether more of it is more (1) or less (-1) of the concept.

    `words` are those of a lexicon, in small letters; the other kinds have none.
    """

    kind: Kind
    sign: Literal[1, -1]
    words: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UsageError(f"no rule is called {self.kind!r}; they are {', '.join(KINDS)}")
        if self.sign not in (1, -1):
            raise UsageError(f"the sign of a rule is {self.sign!r}; it must be 1 or -1")
        if bool(self.words) != (self.kind == "lexicon"):
            raise UsageError("a lexicon needs words, and the other rules have none")


def read_words(path: Path) -> tuple[str, ...]:
    """The words and phrases of a text file, one per line, at least one; blank lines are skipped."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise MlxsteerError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MlxsteerError(f"{path}: not UTF-8 at byte {error.start}") from error
    found: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        word = line.strip()
        if word and not re.fullmatch(_WORD, word):
            raise MlxsteerError(
                f"{path}, line {number}: {shown(word)} is no word or phrase of small letters"
            )
        if word in found:
            raise MlxsteerError(
                f"{path}, line {number}: {shown(word)} stands already at line {found[word]}"
            )
        if word:
            found[word] = number
    if not found:
        raise MlxsteerError(f"{path}: empty; it needs a word per line")
    return tuple(found)
