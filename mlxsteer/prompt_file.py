"""Many prompts from one file: a line each, or JSON lines with `prompt` or `messages`.

It knows nothing of models; what a prompt may be is decided where it is encoded.
"""

from pathlib import Path
from typing import Any

from .errors import MlxsteerError
from .prompts import Message
from .tables import read_rows

__all__ = ["read_prompt_file"]


def read_prompt_file(path: str | Path) -> list[str | list[Message]]:
    """Return the prompts of a file, at least one.

    A `.jsonl` file holds objects, `{"prompt": "..."}` or `{"messages": [{"role", "content"}]}`;
    any other is text, a prompt per line, blank lines left out.

    Raises:
        MlxsteerError: no file, not UTF-8, empty, or a line that is neither, with its number.
    """
    path = Path(path)
    if path.suffix == ".jsonl":
        rows = read_rows(path, required=(), optional=("prompt", "messages"))
        return [_prompt(where, row) for where, row in rows]
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except OSError as e:
        raise MlxsteerError(f"{path}: cannot be read: {e.strerror}") from e
    except UnicodeDecodeError as e:
        raise MlxsteerError(f"{path}: not UTF-8 at byte {e.start}") from e
    found: list[str | list[Message]] = [line for line in lines if line.strip()]
    if not found:
        raise MlxsteerError(f"{path}: empty; it needs a prompt per line")
    return found


def _prompt(where: str, row: dict[str, Any]) -> str | list[Message]:
    prompt, messages = row.get("prompt"), row.get("messages")
    if isinstance(prompt, str) and prompt.strip() and messages is None:
        return prompt
    said = messages if prompt is None and isinstance(messages, list) else []
    if said and all(_is_message(m) for m in said):
        return said
    raise MlxsteerError(f"{where}: use a text as prompt, or messages of role and content")


def _is_message(value: object) -> bool:
    return (
        isinstance(value, dict)
        and value.keys() == {"role", "content"}
        and all(isinstance(text, str) for text in value.values())
    )
