"""Strict reading of small data files, TOML and JSON lines: an unknown key is refused.

    table = read_table(path)
    name = table.text("name")
    table.end()                  # unknown key nmae (did you mean name?)

    for where, row in read_rows(path, required=("positive", "negative")):
        ...                      # where = "pairs.jsonl, line 3"

Every error names the file and the key or the line. It knows nothing of what the files mean.
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from .errors import MlxsteerError

__all__ = ["Table", "near", "read_rows", "read_table", "shown"]

_MISSING = object()


def near(name: str, names: Iterable[str]) -> str:
    """The end of an error line: ' (did you mean x?)', or all names when none is near."""
    known = sorted(names)
    close = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.6)
    if close:
        return f" (did you mean {' or '.join(close)}?)"
    return f" (there are: {', '.join(known)})" if known else ""


def shown(value: object) -> str:
    """A value as an error line shows it: up to 60 characters; of lists and tables only the kind."""
    if isinstance(value, (list, dict)):
        return "a list" if isinstance(value, list) else "a table"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def read_table(path: Path) -> Table:
    """The top table of a TOML file."""
    try:
        return Table(path, tomllib.loads(path.read_text(encoding="utf-8")))
    except OSError as error:
        raise MlxsteerError(f"{path}: cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise MlxsteerError(f"{path}: not UTF-8 at byte {error.start}") from error
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise MlxsteerError(f"{path}: not TOML: {' '.join(str(error).split())}") from error


def read_rows(
    path: Path, required: Sequence[str], optional: Sequence[str] = ()
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a JSON-lines file with where each stands, "file, line 3"; at least one.

    UTF-8 (a byte order mark is skipped), lines end with a newline, blank lines are skipped.
    """
    try:
        lines = path.read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as error:
        raise MlxsteerError(f"{path}: cannot be read: {error.strerror}") from error
    empty = True
    for number, line in enumerate(lines, 1):
        if line.strip():
            empty = False
            where = f"{path}, line {number}"
            yield where, _read_row(where, line, required, optional)
    if empty:
        raise MlxsteerError(f"{path}: empty; it needs one JSON object per line")


def _read_row(
    where: str, line: bytes, required: Sequence[str], optional: Sequence[str]
) -> dict[str, Any]:
    def once(items: list[tuple[str, Any]]) -> dict[str, Any]:
        row: dict[str, Any] = {}
        for key, value in items:
            if key in row:
                raise MlxsteerError(f"{where}: the key {shown(key)} stands twice")
            row[key] = value
        return row

    try:
        row = json.loads(line.decode(), object_pairs_hook=once)
    except UnicodeDecodeError as error:
        raise MlxsteerError(f"{where}: not UTF-8 at byte {error.start} of the line") from error
    except json.JSONDecodeError as error:
        raise MlxsteerError(f"{where}: not JSON: {error.msg} at column {error.colno}") from error
    except (ValueError, RecursionError) as error:  # a number of 5,000 digits, 100,000 brackets
        raise MlxsteerError(f"{where}: not JSON that can be read: {error}") from error
    if not isinstance(row, dict):
        raise MlxsteerError(f"{where}: {shown(row)} is no object {{...}}")
    for key in required:
        if key not in row:
            raise MlxsteerError(f"{where}: the key {key!r} is missing")
    for key in row:
        if key not in required and key not in optional:
            wanted = ", ".join([*required, *optional])
            raise MlxsteerError(f"{where}: unknown key {shown(key)}; the keys are {wanted}")
    return row


class Table:
    """One table of a TOML file. A key with a default is optional; the others must be there."""

    def __init__(self, path: Path, values: Mapping[str, Any], prefix: str = "") -> None:
        self.path, self.values, self.prefix = path, values, prefix
        self._asked: set[str] = set()
        self._children: list[Table] = []

    def text(self, key: str, default: str | None = None) -> str:
        """A text that is not empty."""
        value = self._get(key, _MISSING if default is None else default)
        if not isinstance(value, str) or (key in self.values and not value.strip()):
            raise self.wrong(key, "a text that is not empty")
        return value

    def match(self, key: str, pattern: str, wanted: str, default: str | None = None) -> str:
        """A text that matches the whole of `pattern`; `wanted` says so in words."""
        value = self.text(key, default)
        if key in self.values and not re.fullmatch(pattern, value):
            raise self.wrong(key, wanted)
        return value

    def any_text(self, key: str) -> str:
        """A text that may be empty but must be there."""
        value = self._get(key, _MISSING)
        if not isinstance(value, str):
            raise self.wrong(key, "a text")
        return value

    def whole(self, key: str) -> int:
        """A positive whole number."""
        value = self._get(key, _MISSING)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 10**9:
            raise self.wrong(key, "a positive whole number")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A positive number."""
        value = self._get(key, _MISSING if default is None else default)
        if key in self.values and (
            not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e9
        ):
            raise self.wrong(key, "a positive number")
        return float(value)

    def sign(self, key: str) -> Literal[1, -1]:
        """1 or -1."""
        value = self._get(key, _MISSING)
        if type(value) is not int or value not in (1, -1):
            raise self.wrong(key, "1 or -1")
        return 1 if value == 1 else -1

    def pair(self, key: str) -> tuple[str, str] | None:
        """Two texts, or None when the key is not there."""
        value = self._get(key, None)
        if value is None:
            return None
        if not (isinstance(value, list) and len(value) == 2 and all(_is_text(v) for v in value)):
            raise self.wrong(key, "a list of two texts that are not empty")
        return value[0], value[1]

    def table(self, key: str) -> Table | None:
        """The table [key], or None when it is not there."""
        value = self._get(key, None)
        if value is None:
            return None
        if not isinstance(value, dict):
            raise self.wrong(key, f"a table [{key}]")
        return self._child(value, f"{key}.")

    def tables(self, key: str) -> list[Table]:
        """The tables [[key]], at least one."""
        value = self._get(key, _MISSING)
        if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
            raise self.wrong(key, f"one or more tables [[{key}]]")
        return [self._child(entry, f"{key}[{i}].") for i, entry in enumerate(value)]

    def end(self) -> None:
        """Refuse every key that nobody asked for, here and in the tables below."""
        for key in self.values:
            if key not in self._asked:
                hint = near(key, self._asked)
                raise MlxsteerError(f"{self.path}: unknown key {self.prefix}{key}{hint}")
        for child in self._children:
            child.end()

    def wrong(self, key: str, wanted: str) -> MlxsteerError:
        """The error for a value that is not what it must be."""
        value = shown(self.values.get(key))
        return MlxsteerError(f"{self.path}: {self.prefix}{key} is {value}; it must be {wanted}")

    def _get(self, key: str, default: object) -> Any:
        self._asked.add(key)
        if key not in self.values and default is _MISSING:
            raise MlxsteerError(f"{self.path}: {self.prefix}{key} is missing")
        return self.values.get(key, default)

    def _child(self, values: Mapping[str, Any], prefix: str) -> Table:
        self._children.append(Table(self.path, values, self.prefix + prefix))
        return self._children[-1]


def _is_text(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())
