"""What rules count, by hand."""

import importlib.util

import pytest

from mlxsteer.counting import count, missing
from mlxsteer.rules import Rule


def lexicon(*words: str) -> Rule:
    return Rule("lexicon", 1, words)


@pytest.mark.parametrize(
    ("rule", "text", "found"),
    [
        (Rule("length", -1), "Don't go, it is 7 o'clock!", 6),
        (Rule("length", -1), " \n", 0),
        (lexicon("ye"), "Ye, ye and yes", 0.5),
        (lexicon("ye", "me hearty", "me"), "Me hearty, ye told me.", 0.8),
        (lexicon("shiver me timbers"), "shiver me", 0),
        (lexicon("o'"), "a cup o\u2019 tea", 0.25),
        (lexicon("sea-dog"), "an old sea dog", 0.5),
        (lexicon("arr"), "", 0),
    ],
)
def test_words_are_counted(rule: Rule, text: str, found: float) -> None:
    assert count(rule, text) == pytest.approx(found)


def test_sentiment_needs_its_package() -> None:
    rule = Rule("sentiment", 1)
    if importlib.util.find_spec("vaderSentiment") is None:
        assert missing(rule) == "vaderSentiment"
    else:
        assert missing(rule) is None
        assert count(rule, "I love this!") > 0 > count(rule, "I hate this.")
    assert missing(Rule("length", 1)) is None
