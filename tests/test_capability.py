"""The multiple-choice questions: the reader, and the shipped set."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from mlxsteer.capability import CHOICES, Question, read_questions
from mlxsteer.errors import MlxsteerError

ROW = {"question": "Two and two?", "choices": ["three", "four", "five", "six"], "answer": 1}


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_questions_are_read(tmp_path: Path) -> None:
    (question,) = read_questions(write(tmp_path / "q.jsonl", ROW))
    assert question == Question("Two and two?", ("three", "four", "five", "six"), 1)
    assert question.choices[question.answer] == "four"


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"question": " "}, "question is empty"),
        ({"question": 4}, "question is 4; it must be a text"),
        ({"question": "two  and TWO?"}, "the question stands already at .*line 1"),
        ({"choices": "abcd"}, "choices is 'abcd'; it must be a list of texts"),
        ({"choices": ["a", "b", "c"]}, "there are 3 choices; give 4"),
        ({"choices": ["a", "b", "c", ""]}, "choice 3 is empty"),
        ({"choices": ["a", "b", 3, "d"]}, "choice 2 is 3; it must be a text"),
        ({"choices": ["a", "b", "c", "A "]}, "a choice stands there twice"),
        ({"answer": 4}, "answer is 4; it must be an index from 0 to 3"),
        ({"answer": -1}, "answer is -1"),
        ({"answer": True}, "answer is True"),
        ({"answer": "1"}, "answer is '1'"),
        ({"hint": "even"}, "unknown key 'hint'"),
    ],
)
def test_a_bad_question_is_refused_with_its_line(
    tmp_path: Path, changes: dict[str, Any], says: str
) -> None:
    path = write(tmp_path / "q.jsonl", ROW, {**ROW, "question": "One and one?", **changes})
    with pytest.raises(MlxsteerError, match=says) as caught:
        read_questions(path)
    assert str(caught.value).startswith(f"{path}, line 2: ")


def test_the_shipped_questions_are_many_and_balanced() -> None:
    questions = read_questions()
    assert len(questions) >= 120
    places = Counter(question.answer for question in questions)
    assert max(places.values()) - min(places.values()) <= 1
    assert set(places) == set(range(CHOICES))
    for question in questions:  # the length of a choice must not give the answer away
        lengths = [len(choice) for choice in question.choices]
        assert max(lengths) <= 1.6 * min(lengths) + 4, question
        assert question.text.endswith((".", "?", ":")), question.text


def test_the_longest_choice_is_no_clue() -> None:
    questions = read_questions()
    for pick in (max, min):
        clear = [q for q in questions if [len(c) for c in q.choices].count(_size(pick, q)) == 1]
        right = sum(len(q.choices[q.answer]) == _size(pick, q) for q in clear)
        assert right / len(clear) < 0.4, pick


def _size(pick: Any, question: Question) -> int:
    return int(pick(len(choice) for choice in question.choices))


def test_neighbours_do_not_share_their_answer_in_long_runs() -> None:
    answers = "".join(str(question.answer) for question in read_questions())
    assert not [place for place in "0123" if place * 5 in answers]
