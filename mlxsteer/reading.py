"""Where the two sides of a pair are read: their token ids, and the token or the span of each.

| read | what is read of a side |
| --- | --- |
| `last` | its last token, the one that predicts the answer |
| an integer | that token, negative from the end |
| `content` | the last token of the last user message, before the template closes it |
| `response` | the mean over the tokens of the response |

A side that ends with a message of the assistant brings its response; otherwise the model writes one
under that side's own instruction, greedily. Either is read teacher-forced. What is not asked for by
name is `response` of pairs that bring theirs, and `last` of others. Where a content ends or
a response begins is found by putting one more letter there and looking where it appears in the
rendered text: that needs no knowledge of templates, and what a template does not show is refused.

It knows nothing of layers, activations or methods.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import mlx.nn as nn

from .capture import Position
from .errors import MlxsteerError, UsageError
from .generate import generate_batch
from .progress import Progress, silent
from .prompts import Message, Pair, Side, check_length, messages, render

__all__ = [
    "READS",
    "RESPONSE_TOKENS",
    "Read",
    "Reading",
    "content_end",
    "describe",
    "parse_read",
    "read_sides",
    "response_start",
    "usual_read",
]

READS = ("last", "content", "response")
RESPONSE_TOKENS = 32
ROWS = 32  # responses that are written at once

LETTERS = ("a", "b")  # what follows in a text is like one of them at most

Read = str | int


@dataclass(frozen=True)
class Reading:
    """What is read of one side of all pairs.

    Attributes:
        sequences: token ids of each.
        positions: the token or the span `(start, stop)` of each.
    """

    sequences: tuple[list[int], ...]
    positions: tuple[Position, ...]


def parse_read(read: Read) -> Read:
    """Return one of `READS` or an integer, which may come as text.

    Raises:
        UsageError: anything else.
    """
    if read in READS or type(read) is int:
        return read
    if isinstance(read, str) and re.fullmatch("-?[0-9]+", read):
        return int(read)
    raise UsageError(f"read {read!r} does not exist: use {', '.join(READS)}, or a token index")


def usual_read(pairs: Sequence[Pair]) -> Read:
    """Return what is read where nothing is said: responses if all pairs bring them, else `last`."""
    return "response" if all(_answered(pair.positive) for pair in pairs) else "last"


def describe(read: Read | None, pairs: Sequence[Pair], response_tokens: int) -> str:
    """Return the words for what is read, as a vector's `token` records it."""
    read = usual_read(pairs) if read is None else read
    if read == "response":
        given = sum(_answered(pair.positive) for pair in pairs)
        written = f"a greedy response of up to {response_tokens} tokens"
        if 0 < given < len(pairs):
            return f"mean of the given response or {written}"
        return f"mean of {'the given response' if given else written}"
    if isinstance(read, int) and read != -1:
        return f"prompt token {read}"
    return "last content token" if read == "content" else "last prompt token"


def read_sides(
    model: nn.Module,
    tokenizer: Any,
    pairs: Sequence[Pair],
    read: Read | None = None,
    *,
    response_tokens: int = RESPONSE_TOKENS,
    progress: Progress = silent,
) -> dict[str, Reading]:
    """Return what is read of the `positive` and of the `negative` side of pairs.

    Args:
        read: one of `READS`, a token index, or None (`usual_read`).
        response_tokens: the most tokens of a response that the model has to write.

    Raises:
        MlxsteerError: prompts over the context, a content or a response that cannot be found.
        UsageError: an unknown `read`, `response_tokens` below 1.
    """
    read = usual_read(pairs) if read is None else parse_read(read)
    if response_tokens < 1:
        raise UsageError(f"response_tokens is {response_tokens}: use 1 or more")
    context = getattr(model.args, "max_position_embeddings", None)
    sides: dict[str, tuple[list[list[int]], list[Position]]] = {}
    for which in ("positive", "negative"):
        sequences: list[list[int]] = []
        positions: list[Position] = []
        for i, pair in enumerate(pairs, 1):
            side: Side = getattr(pair, which)
            what = f"pair {i}, {which}"
            tokens = render(tokenizer, side)
            check_length(tokens, context, what)
            position: Position = -1 if isinstance(read, str) else read
            if read == "content":
                position = content_end(tokenizer, side, what)
            elif read == "response":
                position = _response(tokenizer, pair, side, tokens, what)
                if position == (len(tokens), len(tokens)):
                    longest = [*tokens, *[0] * response_tokens]
                    check_length(longest, context, f"{what}, with its response")
            sequences.append(tokens)
            positions.append(position)
        sides[which] = (sequences, positions)
    if read == "response":
        for which, (sequences, positions) in sides.items():
            _write(model, tokenizer, which, sequences, positions, response_tokens, progress)
    return {which: Reading(tuple(s), tuple(p)) for which, (s, p) in sides.items()}


def content_end(tokenizer: Any, side: Side, what: str = "the prompt") -> int:
    """Return the index of the last token of the last user message in `render(tokenizer, side)`.

    A token that holds the end of the content and the beginning of what closes it counts as content.

    Raises:
        MlxsteerError: the side has no user message, or its end cannot be told from what follows.
    """
    chat = messages(side)
    users = [i for i, message in enumerate(chat) if message["role"] == "user"]
    if not users:
        raise MlxsteerError(f"{what} has no user message: read the last token or an index")
    content = chat[users[-1]]["content"]
    index = _tokens_before(tokenizer, chat, users[-1], len(content.rstrip()))
    if index is None:
        raise MlxsteerError(
            f"{what}: the chat template does not show where the user's text ends: "
            "read the last token or an index"
        )
    return index[0] - 1


def response_start(tokenizer: Any, side: Side, what: str = "the prompt") -> int:
    """Return the index of the first token of the response that ends a side, in its rendering.

    A token that holds the end of the prompt and the beginning of the response counts as response.

    Raises:
        MlxsteerError: the beginning of the response cannot be told from what precedes it.
    """
    chat = messages(side)
    content = chat[-1]["content"]
    index = _tokens_before(tokenizer, chat, len(chat) - 1, len(content) - len(content.lstrip()))
    if index is None:
        raise MlxsteerError(
            f"{what}: the chat template does not show where the response begins: "
            "read the last token or an index"
        )
    return index[1]


def _tokens_before(
    tokenizer: Any, chat: list[Message], number: int, at: int
) -> tuple[int, int] | None:
    """Return how many tokens what stands before one character of one message takes, counted twice.

    A token that straddles the place counts in the first number and not in the second; None where
    the place does not show.
    """
    text, options = _text(tokenizer, chat)
    content, changed = chat[number]["content"], []
    for letter in LETTERS:
        other = {**chat[number], "content": content[:at] + letter + content[at:]}
        changed.append(_text(tokenizer, [*chat[:number], other, *chat[number + 1 :]])[0])
    place = _alike(text, *changed)
    if changed != [text[:place] + letter + text[place:] for letter in LETTERS]:
        return None
    before = [int(token) for token in tokenizer.encode(text[:place], **options)]
    tokens = [int(token) for token in tokenizer.encode(text, **options)]
    alike = _alike(tokens, before)
    return (len(before), alike) if alike >= len(before) - 1 else None


def _alike(*sequences: Sequence[Any]) -> int:
    """Return how many leading items all sequences share."""
    columns = enumerate(zip(*sequences, strict=False))
    end = min(map(len, sequences))
    return next((i for i, column in columns if any(x != column[0] for x in column)), end)


class _Listener:
    """A tokenizer that keeps the text which it is asked to encode."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.heard: tuple[str, dict[str, Any]] = ("", {})

    def __getattr__(self, name: str) -> Any:
        return getattr(self.tokenizer, name)

    def encode(self, text: str, **options: Any) -> list[int]:
        self.heard = (text, options)
        return [0]


def _text(tokenizer: Any, chat: list[Message]) -> tuple[str, dict[str, Any]]:
    """Return the text that `render` makes tokens of, and how it asks for them."""
    listener = _Listener(tokenizer)
    render(listener, chat)
    return listener.heard


def _answered(side: Side) -> bool:
    return messages(side)[-1]["role"] == "assistant"


def _response(
    tokenizer: Any, pair: Pair, side: Side, tokens: list[int], what: str
) -> tuple[int, int]:
    """Return the span of a response that is there, or an empty one behind the prompt."""
    if _answered(pair.positive) != _answered(pair.negative):
        raise MlxsteerError(
            f"{what}: one side of the pair ends with a response and the other does not: "
            "give it to both or to none"
        )
    if not _answered(side):
        return len(tokens), len(tokens)
    return response_start(tokenizer, side, what), len(tokens)


def _write(
    model: nn.Module,
    tokenizer: Any,
    which: str,
    sequences: list[list[int]],
    positions: list[Position],
    response_tokens: int,
    progress: Progress,
) -> None:
    """Let the model write the responses that are not there, in place."""
    missing = [i for i, s in enumerate(sequences) if positions[i] == (len(s), len(s))]
    missing.sort(key=lambda i: len(sequences[i]))
    stage, total = f"writing {which} responses", len(missing) * response_tokens
    for start in range(0, len(missing), ROWS):
        some = missing[start : start + ROWS]
        prompts = [tuple(sequences[i]) for i in some]
        done = start * response_tokens
        progress(stage, done, total)
        for row, token in generate_batch(model, tokenizer, prompts, max_tokens=response_tokens):
            sequences[some[row]].append(token)
            done += 1
            progress(stage, done, total)
        for i, prompt in zip(some, prompts, strict=True):
            if len(sequences[i]) == len(prompt):
                raise MlxsteerError(
                    f"pair {i + 1}, {which}: the model answers nothing: give the response in the "
                    "pair, or read the last token"
                )
            positions[i] = (len(prompt), len(sequences[i]))
        progress(stage, (start + len(some)) * response_tokens, total)
