"""Completions from files: what is read, and what is refused with its line."""

import json
from pathlib import Path
from typing import Any

import pytest

from mlxsteer.completions import Completion, read_completions
from mlxsteer.errors import MlxsteerError
from mlxsteer.prompts import Prompt

PROMPTS = (Prompt("One?", "train"), Prompt("Two?", "dev"), Prompt("Three?", "test"))
TWO = {"prompt": "Two?", "split": "dev", "positive": "Aye", "negative": "Yes"}
THREE = {"prompt": "Three?", "split": "test", "positive": "Nay", "negative": "No"}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_completions_are_read_in_order(tmp_path: Path) -> None:
    path = write(tmp_path / "completions.jsonl", THREE, TWO)
    three, two = read_completions(path, PROMPTS)
    assert three == Completion("Three?", "Nay", "No", "test")
    assert (two.prompt, two.positive, two.negative, two.split) == ("Two?", "Aye", "Yes", "dev")
    assert read_completions(str(path), PROMPTS) == (three, two)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"positive": ""}, "positive is empty"),
        ({"negative": " \n"}, "negative is empty"),
        ({"negative": 3}, "negative is 3; it must be a text"),
        ({"prompt": None}, "prompt is None; it must be a text"),
        ({"positive": "\ud800"}, "half a surrogate pair"),
        ({"positive": "No"}, "both answers are equal"),
        ({"positive": " No\n"}, "both answers are equal"),
        ({"prompt": "Four?"}, "the concept has no test prompt 'Four\\?'"),
        ({"prompt": "Two?"}, "the concept has no test prompt 'Two\\?'"),
        ({"split": "dev"}, "the concept has no dev prompt 'Three\\?'"),
        ({"split": "train"}, "the concept has no train prompt 'Three\\?'"),
        ({"split": "valid"}, "split is 'valid'; it must be train, dev, test"),
        ({"split": ["test"]}, "split is a list; it must be train, dev, test"),
        ({"topic": "numbers"}, "unknown key 'topic'; the keys are prompt, split"),
        (TWO, "the prompt stands already at .*completions.jsonl, line 1"),
    ],
)
def test_a_bad_row_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = write(tmp_path / "completions.jsonl", TWO, THREE | changes)
    with pytest.raises(MlxsteerError, match=says) as caught:
        read_completions(path, PROMPTS)
    assert str(caught.value).startswith(f"{path}, line 2: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["prompt", "split", "positive", "negative"])
def test_a_missing_key_is_named(tmp_path: Path, key: str) -> None:
    row = {name: value for name, value in THREE.items() if name != key}
    path = write(tmp_path / "completions.jsonl", TWO, row)
    with pytest.raises(MlxsteerError, match=f"line 2: the key '{key}' is missing"):
        read_completions(path, PROMPTS)


def test_no_completions_are_refused(tmp_path: Path) -> None:
    with pytest.raises(MlxsteerError, match=r"none.jsonl: cannot be read"):
        read_completions(tmp_path / "none.jsonl", PROMPTS)
    with pytest.raises(MlxsteerError, match="empty"):
        read_completions(write(tmp_path / "empty.jsonl"), PROMPTS)
