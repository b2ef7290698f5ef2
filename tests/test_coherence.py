"""Coherence is joint: each of its numbers can break it, and none saves it."""

import dataclasses

import numpy as np
import pytest

from mlxsteer.coherence import Coherence, coherence, distinct_2, loops

PLAIN = list(range(20))


def test_a_phrase_three_times_is_a_loop() -> None:
    assert loops([7] * 6)
    assert loops([1, 2, 3, 4] * 3)
    assert loops([9, *[1, 2, 3, 4, 5] * 3, 8])
    assert not loops([1, 2, 3, 4] * 2)
    assert not loops([7] * 5)
    assert not loops(PLAIN)
    assert not loops([])


@pytest.mark.parametrize(
    ("answer", "share"),
    [([1, 2, 3], 1), ([1, 2, 1, 2, 1], 0.5), ([5] * 11, 0.1), ([4], 1), ([], 1)],
)
def test_distinct_2_by_hand(answer: list[int], share: float) -> None:
    assert distinct_2(answer) == pytest.approx(share)


def test_all_three_by_hand() -> None:
    found = coherence([PLAIN, [7] * 6], np.log([0.5, 0.125]))
    assert found.perplexity == pytest.approx(4)
    assert found.loop_rate == 0.5
    assert found.distinct_2 == pytest.approx((1 + 0.2) / 2)


@pytest.mark.parametrize(
    ("change", "holds"),
    [
        ({}, True),
        ({"loop_rate": 0.15}, True),
        ({"loop_rate": 0.16}, False),
        ({"distinct_2": 0.73}, True),
        ({"distinct_2": 0.7}, False),
        ({"perplexity": 19.0}, True),
        ({"perplexity": 21.0}, False),
        ({"perplexity": 1.0, "loop_rate": 0.9}, False),
    ],
)
def test_each_number_breaks_it(change: dict[str, float], holds: bool) -> None:
    baseline = Coherence(5.0, 0.1, 0.9)
    assert dataclasses.replace(baseline, **change).holds(baseline) is holds
