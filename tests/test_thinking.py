"""Thinking is told apart from the answer, however the text is cut."""

import pytest
from tiny import tokenizer

from mlxsteer.thinking import Thinking

OPENS, CLOSES = "<think>", "</think>"
TEXTS = {  # the place where it begins, the text -> its pieces, (text, thought)
    ("before", "<think>so</think>\n\nYes < no"): [
        ("<think>so</think>", True),
        ("\n\nYes < no", False),
    ],
    ("before", "Well <think>a < b</think> yes"): [
        ("Well ", False),
        ("<think>a < b</think>", True),
        (" yes", False),
    ],
    ("before", "so</think>Yes"): [("so", False), ("</think>", True), ("Yes", False)],
    ("before", "<think></think>"): [("<think></think>", True)],
    ("before", "No thought <thi"): [("No thought <thi", False)],
    ("inside", "so <think> it</think>Yes</think>"): [
        ("so <think> it</think>", True),
        ("Yes</think>", False),
    ],
    ("inside", "so it </thin"): [("so it </thin", True)],
    ("behind", "<think>Yes</think>"): [("<think>Yes</think>", False)],
}


def joined(pieces: list[tuple[str, bool]]) -> list[tuple[str, bool]]:
    found: list[tuple[str, bool]] = []
    for text, thought in pieces:
        if found and found[-1][1] == thought:
            text = found.pop()[0] + text
        found.append((text, thought))
    return found


@pytest.mark.parametrize("length", [1, 2, 3, 5, 100])
@pytest.mark.parametrize(("place", "text"), TEXTS)
def test_pieces(place, text: str, length: int) -> None:
    for hide in (False, True):
        thinking = Thinking(OPENS, CLOSES, place, hide=hide)
        pieces = []
        for start in range(0, len(text), length):
            last = start + length >= len(text)
            pieces += list(thinking.split(text[start : start + length], last=last))
        whole = TEXTS[place, text]
        if hide:
            said = [text for text, thought in joined(pieces)]
            head = [text for text, thought in whole[:1] if not thought]
            rest = "".join(t for t, thought in whole[len(head) :] if not thought)
            assert "".join(said) == "".join(head) + rest.lstrip()
        else:
            assert joined(pieces) == whole


def test_nothing_is_held_back_that_is_no_mark() -> None:
    thinking = Thinking(OPENS, CLOSES)
    assert list(thinking.split("a <")) == [("a ", False)]
    assert list(thinking.split("b")) == [("<b", False)]
    assert list(Thinking().split("a <")) == [("a <", False)]


def test_parts_of_a_whole_text() -> None:
    for place, text in (("before", "<think>\nso\n</think>\n\nYes"), ("inside", "so</think> Yes")):
        assert Thinking(OPENS, CLOSES, place).parts(text) == ("so", "Yes")  # type: ignore[arg-type]
    assert Thinking(OPENS, CLOSES, "inside").parts("so") == ("so", "")
    assert Thinking().parts(" <think>Yes") == ("", " <think>Yes")


@pytest.mark.parametrize(
    ("prompt", "place"),
    [
        ("why", "before"),
        ("why <think>", "inside"),
        ("why <think> </think> sky", "behind"),
        ("<think> a </think> b be a be a be a be a be a", "before"),  # of an earlier turn
        ("<think> a </think> why is <think>", "inside"),
    ],
)
def test_the_prompt_says_where_a_text_begins(prompt: str, place: str) -> None:
    words, plain = tokenizer(thinking=True), tokenizer()
    assert Thinking.after(words, words.encode(prompt)).place == place
    assert Thinking.after(plain, plain.encode(prompt)).place == "behind"  # it does not think
