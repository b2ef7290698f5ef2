"""The detector learns what differs, and is not admitted where nothing does."""

import numpy as np
import pytest

from mlxsteer.detection import Detector, by_topic
from mlxsteer.prompts import Prompt

Sides = tuple[np.ndarray, np.ndarray]


def sides(apart: float, seed: int, count: int = 16) -> Sides:
    rng = np.random.default_rng(seed)
    positive, negative = rng.normal(size=(2, count, 24)).astype(np.float32)
    positive[:, 3] += apart
    return positive, negative


def test_it_detects_what_it_learned() -> None:
    detector = Detector.fit(sides(4, 0), sides(4, 1))
    assert detector.auroc > 0.9
    assert detector.admitted
    positive, negative = sides(4, 2, 200)
    assert detector.share(positive) > 0.75
    assert detector.share(negative) < 0.25
    assert np.abs(detector.direction).argmax() == 3


def test_it_is_admitted_by_held_out_answers_alone() -> None:
    learned_by_heart = Detector.fit(sides(0, 0), sides(0, 1))
    assert not learned_by_heart.admitted
    positive, negative = sides(4, 1)
    assert Detector.fit(sides(4, 0), (negative, positive)).auroc < 0.1  # sides exchanged


@pytest.mark.parametrize("most", [6, 12, 100])
def test_topics_are_held_out_whole(most: int) -> None:
    names = ("a", "b", "c", "d", "e", "f")
    prompts = [Prompt(f"{t}{i}", "train", t) for t in names for i in range(4)]
    prompts += [Prompt("x", "test", "g")]
    learn, tried = by_topic(prompts, most)
    assert len(learn) + len(tried) == min(most, 24)
    assert {text[0] for text in tried} == {"c", "f"}
    assert {text[0] for text in learn} == {"a", "b", "d", "e"}
    bare = [Prompt(f"{i}", "train") for i in range(6)]
    assert by_topic(bare, 6) == (["0", "1", "3", "4"], ["2", "5"])
    assert by_topic([], 6) == ([], [])
