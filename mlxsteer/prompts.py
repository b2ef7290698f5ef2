"""Contrast data and chat templates: pairs, recipes, and how either becomes token ids.

A `Side` is what the model reads: a text (one user message) or a list of chat messages. A `Pair` is
one occasion with more (positive) and with less (negative) of a concept. A `Recipe` makes pairs from
prompts and what is said on each side. `render` turns a side into token ids `[T]`.

Files are JSON lines, UTF-8; blank lines are skipped, and every error names the file and the line:

    pairs.jsonl     {"positive": "...", "negative": [{"role": "user", "content": "..."}]}
    prompts.jsonl   {"prompt": "...", "split": "train" | "dev" | "test", "topic": "cooking"}

It knows nothing of models, arrays or where files are kept, and imports neither mlx nor
transformers: a tokenizer is anything with `encode`, `chat_template` and `apply_chat_template`.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

from .errors import MlxsteerError, UsageError
from .tables import read_rows, shown

__all__ = [
    "SPLITS",
    "Message",
    "Pair",
    "Prompt",
    "Recipe",
    "Side",
    "Split",
    "check_length",
    "check_text",
    "has_chat_template",
    "messages",
    "pairs_sha256",
    "read_pairs",
    "read_prompts",
    "render",
    "spread",
    "template_record",
]

Message = dict[str, str]
Side = str | list[Message]
Split = Literal["train", "dev", "test"]
T = TypeVar("T")

SPLITS: tuple[Split, ...] = ("train", "dev", "test")
ROLES = ("system", "user", "assistant")

# Chat templates print a date. It is pinned to the one that Llama 3's template falls back on.
DATE_STRING = "26 Jul 2024"
_STRFTIME = {
    "%F": "2024-07-26", "%D": "07/26/24", "%T": "12:00:00", "%R": "12:00",
    "%Y": "2024", "%y": "24", "%-m": "7", "%m": "07", "%B": "July", "%b": "Jul", "%h": "Jul",
    "%-d": "26", "%d": "26", "%e": "26", "%A": "Friday", "%a": "Fri", "%j": "208",
    "%-H": "12", "%H": "12", "%-I": "12", "%I": "12", "%M": "00", "%S": "00", "%p": "PM",
}  # fmt: skip
# A macro, since transformers 5 hands a template no callables ("<function>" arrives instead). It
# shadows the global of that name. The newline is eaten by trim_blocks.
_PIN = (
    "{%- macro strftime_now(format) -%}{{- format"
    + "".join(f"|replace('{code}', '{text}')" for code, text in _STRFTIME.items())
    + " -}}{%- endmacro %}\n"
)


@dataclass(frozen=True)
class Pair:
    """One contrast; `positive` has MORE of the concept. Empty and equal sides are refused."""

    positive: Side
    negative: Side

    def __post_init__(self) -> None:
        for name, side in (("positive", self.positive), ("negative", self.negative)):
            _check_side(name, side)
        if messages(self.positive) == messages(self.negative):
            raise MlxsteerError("both sides are equal; a pair must differ in the concept")


@dataclass(frozen=True)
class Prompt:
    """One prompt of a concept: extraction reads `train`; choices use `dev`, claims `test`."""

    text: str
    split: Split = "train"
    topic: str = ""


@dataclass(frozen=True)
class Recipe:
    """Prompts, and the instruction that is given with each of them on either side.

    `place` is where the instruction goes: "system" makes it the system message, "suffix" puts it
    behind the user text, after a space. With an empty instruction nothing is said on that side.
    """

    prompts: tuple[str, ...]
    positive: str
    negative: str
    place: Literal["system", "suffix"] = "system"

    def __post_init__(self) -> None:
        if self.place not in ("system", "suffix"):
            raise UsageError(f"place is {self.place!r}; it must be 'system' or 'suffix'")
        if not self.prompts:
            raise MlxsteerError("the recipe has no prompts to train on; give it at least one")
        if self.positive.strip() == self.negative.strip():
            raise MlxsteerError("the recipe says the same on both sides; they must differ")

    def pairs(self) -> list[Pair]:
        """One pair per prompt, in order."""
        return [
            Pair(self.side(prompt, self.positive), self.side(prompt, self.negative))
            for prompt in self.prompts
        ]

    def side(self, prompt: str, instruction: str) -> Side:
        """`prompt` with `instruction` in its place."""
        if not instruction:
            return prompt
        if self.place == "suffix":
            return f"{prompt} {instruction}"
        return [{"role": "system", "content": instruction}, {"role": "user", "content": prompt}]


def spread(items: Sequence[T], most: int) -> list[T]:
    """Return at most so many items, spread over all, the first and the last among them."""
    count = min(most, len(items))
    return [items[i * (len(items) - 1) // max(count - 1, 1)] for i in range(count)]


def messages(side: Side) -> list[Message]:
    """The side as chat messages; a text is one user message."""
    return [{"role": "user", "content": side}] if isinstance(side, str) else side


def pairs_sha256(pairs: Sequence[Pair]) -> str:
    """A hash of what the pairs say; a text and the one user message that it means are the same."""
    said = [[messages(pair.positive), messages(pair.negative)] for pair in pairs]
    canonical = json.dumps(said, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(canonical.encode()).hexdigest()


def read_pairs(path: str | Path) -> list[Pair]:
    """The pairs of a JSON-lines file, at least one."""
    pairs = []
    for where, row in read_rows(Path(path), required=("positive", "negative")):
        try:
            pairs.append(Pair(row["positive"], row["negative"]))
        except MlxsteerError as error:
            raise MlxsteerError(f"{where}: {error}") from error
    return pairs


def read_prompts(path: str | Path) -> tuple[Prompt, ...]:
    """The prompts of a recipe's JSON-lines file, at least one; repetitions are refused."""
    prompts: list[Prompt] = []
    seen: dict[str, str] = {}
    for where, row in read_rows(Path(path), required=("prompt", "split"), optional=("topic",)):
        text, split, topic = row["prompt"], row["split"], row.get("topic", "")
        if split not in SPLITS:
            raise MlxsteerError(f"{where}: split is {shown(split)}; it must be {', '.join(SPLITS)}")
        if not isinstance(topic, str):
            raise MlxsteerError(f"{where}: topic is {shown(topic)}; it must be a text")
        try:
            check_text("prompt", text)
        except MlxsteerError as error:
            raise MlxsteerError(f"{where}: {error}") from error
        if (key := " ".join(text.lower().split())) in seen:
            raise MlxsteerError(f"{where}: the prompt stands already at {seen[key]}")
        seen[key] = where
        prompts.append(Prompt(text, split, topic))
    return tuple(prompts)


def has_chat_template(tokenizer: Any) -> bool:
    """Whether `render` can use a chat template; without one it reads raw text."""
    wrapped = getattr(tokenizer, "has_chat_template", None)  # mlx-lm's wrapper
    return bool(getattr(tokenizer, "chat_template", None) if wrapped is None else wrapped)


def render(
    tokenizer: Any,
    side: Side,
    *,
    template: bool = True,
    add_generation_prompt: bool = True,
    thinking: bool | None = None,
) -> list[int]:
    """The token ids `[T]` that a model reads for `side`, the same on every day.

    With a chat template, a last message of the assistant is the start of the answer: it is left
    open, and no generation prompt is added. `thinking` switches a template's thinking mode; None
    takes the tokenizer's own. With `template=False`, or when the tokenizer has no chat template
    (`has_chat_template`), the contents are joined by blank lines to raw text behind the tokenizer's
    own start token, and the start of the answer follows directly.
    """
    chat = messages(side)
    if not chat:
        raise MlxsteerError("there is nothing to read: the conversation has no message")
    if not (template and has_chat_template(tokenizer)):
        return _render_raw(tokenizer, chat)
    arguments: dict[str, Any] = {"add_generation_prompt": add_generation_prompt}
    if chat[-1]["role"] == "assistant":
        arguments = {"add_generation_prompt": False, "continue_final_message": True}
    if (mode := _thinking(tokenizer, thinking)) is not None:
        arguments["enable_thinking"] = mode
    if (text := _jinja_text(tokenizer)) is not None:
        arguments |= {"date_string": DATE_STRING, "chat_template": _PIN + text}
    rendered = _apply(tokenizer, chat, arguments)
    return _ids(tokenizer.encode(rendered, add_special_tokens=False))


def template_record(
    tokenizer: Any, *, template: bool = True, thinking: bool | None = None
) -> dict[str, Any]:
    """The chat template that `render` used, for a vector's file; raw text has an empty hash."""
    if not (template and has_chat_template(tokenizer)):
        return {"sha256": "", "arguments": {}, "thinking": None}
    text = _jinja_text(tokenizer)
    arguments: dict[str, Any] = {"add_generation_prompt": True}
    if text is None:  # mlx-lm writes a few templates in Python
        code = getattr(tokenizer, "_chat_template", None) or type(tokenizer).apply_chat_template
        text = inspect.getsource(inspect.getmodule(code) or code)
    else:
        arguments |= {"date_string": DATE_STRING, "strftime_now": "2024-07-26T12:00:00"}
    return {
        "sha256": hashlib.sha256(text.encode()).hexdigest(),
        "arguments": arguments,
        "thinking": _thinking(tokenizer, thinking),
    }


def check_length(tokens: Sequence[int], context: int | None, what: str) -> None:
    """Refuse a prompt longer than the model's context (None: no limit known); `what` names it."""
    if context is not None and len(tokens) > context:
        raise MlxsteerError(
            f"{what} has {len(tokens)} tokens, but the model reads at most {context}; shorten it"
        )


def _apply(tokenizer: Any, chat: list[Message], arguments: dict[str, Any]) -> str:
    """The chat as text. A template that refuses or forgets the system message is an error."""
    from jinja2 import TemplateError

    refusals = (TemplateError, ValueError, TypeError, LookupError)
    system = [message for message in chat if message["role"] == "system"]
    plain = [message for message in chat if message["role"] != "system"]
    way_out = 'give the instruction in the user text (a recipe with place = "suffix")'
    try:
        text = str(tokenizer.apply_chat_template(chat, tokenize=False, **arguments))
    except refusals as error:
        why = " ".join(str(error).split())[:200]
        if system and plain:
            try:
                tokenizer.apply_chat_template(plain, tokenize=False, **arguments)
            except refusals:
                pass
            else:
                raise MlxsteerError(
                    f"the model's chat template refuses system messages: {why}; {way_out}"
                ) from error
        raise MlxsteerError(f"the model's chat template refuses the conversation: {why}") from error
    for message in system:
        if message["content"].strip() not in text:
            raise MlxsteerError(
                f"the model's chat template leaves out the system message "
                f"{shown(message['content'])}; {way_out}"
            )
    return text


def _render_raw(tokenizer: Any, chat: list[Message]) -> list[int]:
    answer = chat[-1]["content"] if chat[-1]["role"] == "assistant" else ""
    before = chat[:-1] if answer else chat
    text = "\n\n".join(message["content"] for message in before) + answer
    start = getattr(tokenizer, "bos_token", None)
    return _ids(tokenizer.encode(text, add_special_tokens=not start or not text.startswith(start)))


def _ids(tokens: Any) -> list[int]:
    ids = [int(token) for token in tokens]
    if not ids:
        raise MlxsteerError("there is nothing to read: the text has no tokens")
    return ids


def _thinking(tokenizer: Any, thinking: bool | None) -> bool | None:
    return getattr(tokenizer, "has_thinking", None) if thinking is None else thinking


def _jinja_text(tokenizer: Any) -> str | None:
    """The text of the chat template, None when it is written in Python."""
    if getattr(tokenizer, "_chat_template", None) is not None:
        return None
    text = getattr(tokenizer, "chat_template", None)
    return str(tokenizer.get_chat_template()) if isinstance(text, dict) else text


def _check_side(name: str, side: object) -> None:
    if isinstance(side, str):
        return check_text(name, side)
    if not isinstance(side, list):
        raise MlxsteerError(f"{name} is {shown(side)}; it must be a text or a list of messages")
    if not side:
        raise MlxsteerError(f"{name} is empty; it needs at least one message")
    for number, message in enumerate(side, 1):
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise MlxsteerError(
                f"{name}: message {number} is {shown(message)}; it must have role and content only"
            )
        if message["role"] not in ROLES:
            raise MlxsteerError(
                f"{name}: message {number} has the role {shown(message['role'])}; "
                f"it must be {', '.join(ROLES)}"
            )
        check_text(f"{name}: the content of message {number}", message["content"])
    return None


def check_text(name: str, text: object) -> None:
    """Refuse what is no text, or an empty one; `name` says in the error what it is."""
    if not isinstance(text, str):
        raise MlxsteerError(f"{name} is {shown(text)}; it must be a text")
    if not text.strip():
        raise MlxsteerError(f"{name} is empty")
    if re.search("[\ud800-\udfff]", text):
        raise MlxsteerError(f"{name} holds half a surrogate pair, which is no character")
