"""Prompt files in both forms, and what is none."""

from pathlib import Path

import pytest

from mlxsteer.errors import MlxsteerError
from mlxsteer.prompt_file import read_prompt_file


def test_lines_and_json_lines(tmp_path: Path) -> None:
    text = tmp_path / "prompts.txt"
    text.write_text("How are you?\n\n  {not json}  \r\nlast", encoding="utf-8-sig")
    assert read_prompt_file(text) == ["How are you?", "  {not json}  ", "last"]
    lines = tmp_path / "prompts.jsonl"
    lines.write_text('{"prompt": "hi"}\n\n{"messages": [{"role": "user", "content": "yo"}]}\n')
    assert read_prompt_file(lines) == ["hi", [{"role": "user", "content": "yo"}]]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "empty"),
        ("a.txt", b"\n \n", "empty"),
        ("a.txt", b"\xff\xfe\x00", "not UTF-8"),
        ("a.jsonl", b"", "empty"),
        ("a.jsonl", b'{"prompt": "x"}\n{"prompt": 3}', "line 2: use a text"),
        ("a.jsonl", b'{"prompt": "x", "messages": []}', "line 1"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', "line 1"),
        ("a.jsonl", b'{"messages": "x"}', "line 1"),
        ("a.jsonl", b"{}", "line 1"),
        ("a.jsonl", b"nothing", "line 1"),
    ],
)
def test_what_is_no_prompt_file(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(MlxsteerError, match=message) as e:
        read_prompt_file(tmp_path / name)
    assert "\n" not in str(e.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(MlxsteerError, match="cannot be read"):
        read_prompt_file(tmp_path / "none.txt")
