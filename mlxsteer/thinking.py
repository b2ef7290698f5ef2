"""What a model thinks, told apart from what it answers, while the text comes.

A model that thinks writes `<think>...</think>` (or other texts, which its tokenizer knows) before
its answer; a chat template may have opened that already, or have closed it again at once. It knows
text only: which tokens a steering of the answer waits for is `state`'s.
"""

from collections.abc import Iterator, Sequence
from typing import Any, Literal

from .state import TAIL

__all__ = ["Thinking"]

Place = Literal["before", "inside", "behind"]


class Thinking:
    """Splits one text as it is written: `for piece, thought in thinking.split(more): ...`.

    Args:
        opens, closes: the texts around the thinking, "" for a model that does not think.
        place: where the text begins: before the thinking, inside, or behind it.
        hide: leave out what is thought, and the white space between it and the answer.
    """

    def __init__(
        self, opens: str = "", closes: str = "", place: Place = "before", *, hide: bool = False
    ) -> None:
        self.opens, self.closes, self.hide = opens, closes, hide
        self.place: Place = place if closes else "behind"
        self._held = ""  # what may be the beginning of a mark
        self._strips = False

    @classmethod
    def after(cls, tokenizer: Any, prompt: Sequence[int], *, hide: bool = False) -> "Thinking":
        """Return the one for the text that follows a prompt."""
        if not tokenizer.has_thinking:
            return cls(hide=hide)
        opened, closed = tokenizer.rfind_think_start(prompt), tokenizer.rfind_think_end(prompt)
        place: Place = "inside" if opened > closed else "before"
        if closed > opened and closed + len(tokenizer.think_end_tokens) > len(prompt) - TAIL:
            place = "behind"
        return cls(tokenizer.think_start, tokenizer.think_end, place, hide=hide)

    def split(self, more: str, *, last: bool = False) -> Iterator[tuple[str, bool]]:
        """Yield the pieces of the text that comes next, and whether each is thought.

        The marks belong to the thinking. What may be the beginning of one is held back until it is
        known, or until it is the `last` text.
        """
        text, self._held = self._held + more, ""
        while text:
            piece, text, thought = self._next(text, last)
            if thought:
                self._strips = True
            elif self.hide and self._strips:
                piece = piece.lstrip()
            if piece and not (thought and self.hide):
                yield piece, thought
            if not thought and piece:
                self._strips = False

    def _next(self, text: str, last: bool) -> tuple[str, str, bool]:
        """Return the first piece, what is left of the text, and whether the piece is thought."""
        if self.place == "behind":
            return text, "", False
        inside = self.place == "inside"
        marks = (self.closes,) if inside else (self.opens, self.closes)
        found = [(at, mark) for mark in marks if (at := text.find(mark)) >= 0]
        if not found:
            keep = 0 if last else max(_begun(text, mark) for mark in marks)
            cut = len(text) - keep
            self._held = text[cut:]
            return text[:cut], "", inside
        at, mark = min(found)
        if at and not inside:
            return text[:at], text[at:], False
        self.place = "inside" if mark == self.opens else "behind"
        return text[: at + len(mark)], text[at + len(mark) :], True

    def parts(self, text: str) -> tuple[str, str]:
        """Return what a whole text thinks, without the marks, and what it answers."""
        thought, said = "", ""
        for piece, is_thought in self.split(text, last=True):
            if is_thought:
                thought += piece
            else:
                said += piece.lstrip() if thought else piece
        return thought.removeprefix(self.opens).removesuffix(self.closes).strip(), said


def _begun(text: str, mark: str) -> int:
    """Return how many characters at the end of a text are the beginning of a mark."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
