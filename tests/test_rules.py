"""Rules and the word lists behind them."""

from pathlib import Path
from typing import Any

import pytest

from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.rules import Rule, read_words


def test_words_and_phrases_are_read_in_order(tmp_path: Path) -> None:
    path = tmp_path / "words.txt"
    path.write_text("o'clock\n\n  davy jones \r\nfar-off\n", encoding="utf-8")
    assert read_words(path) == ("o'clock", "davy jones", "far-off")


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", ": empty"),
        (b"\n \n", ": empty"),
        (b"aye\n\xff", ": not UTF-8 at byte 4"),
        (b"aye\nAye", ", line 2: 'Aye' is no word or phrase of small letters"),
        (b"# pirates", ", line 1: '# pirates' is no word"),
        (b"aye, aye", ", line 1: 'aye, aye' is no word"),
        (b"aye  aye", ", line 1: 'aye  aye' is no word"),
        (b"aye\n\nnay\naye", ", line 4: 'aye' stands already at line 1"),
    ],
)
def test_a_bad_word_list_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    path = tmp_path / "words.txt"
    path.write_bytes(content)
    with pytest.raises(MlxsteerError) as caught:
        read_words(path)
    assert str(caught.value).startswith(f"{path}{says}")


def test_a_word_list_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MlxsteerError, match=r"words.txt: cannot be read"):
        read_words(tmp_path / "words.txt")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("count", 1), "no rule is called 'count'; they are length, lexicon, sentiment"),
        (("length", 0), "the sign of a rule is 0; it must be 1 or -1"),
        (("lexicon", 1), "a lexicon needs words"),
        (("length", -1, ("aye",)), "the other rules have none"),
    ],
)
def test_a_rule_is_one_of_three(arguments: tuple[Any, ...], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        Rule(*arguments)
    assert Rule("lexicon", 1, ("aye",)).words == ("aye",)
