"""Intervals and corrections against cases worked out by hand."""

import numpy as np
import pytest

from mlxsteer.errors import UsageError
from mlxsteer.stats import RESAMPLES, corrected, holm, paired_bootstrap


def test_two_prompts_by_hand() -> None:
    """Of -1 and 3 the resampled means are -1, 1 and 3, with chances 1/4, 1/2 and 1/4."""
    found = paired_bootstrap([-1.0, 3.0])
    assert (found.mean, found.low, found.high, found.wrong_way) == (1, -1, 3, 0.5)
    assert found.p == pytest.approx(0.25, abs=0.02)
    assert not found.above
    assert not found.below


def test_a_constant_difference_is_sure() -> None:
    found = paired_bootstrap([0.5] * 5)
    assert (found.mean, found.low, found.high, found.wrong_way) == (0.5, 0.5, 0.5, 0)
    assert found.p == 1 / (RESAMPLES + 1)
    assert found.above
    assert paired_bootstrap([-0.5] * 5).below
    nothing = paired_bootstrap([0.0] * 5)
    assert nothing.p == 1
    assert not nothing.above
    assert not nothing.below


def test_the_interval_is_that_of_the_normal_approximation() -> None:
    values = np.random.default_rng(1).normal(0.2, 1, 400)
    found = paired_bootstrap(values)
    error = values.std() / 20
    assert found.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)
    wide = paired_bootstrap(values, alpha=0.01)
    assert wide.high - wide.low == pytest.approx(2 * 2.576 * error, rel=0.05)
    assert found == paired_bootstrap(values)


def test_pairing_counts_and_the_sign_turns() -> None:
    prompts = np.linspace(-9, 9, 20)
    low = paired_bootstrap(prompts + 0.1 - prompts)
    assert low.above
    assert not paired_bootstrap(np.roll(prompts, 7) + 0.1 - prompts).above  # the twin: unpaired
    assert paired_bootstrap(prompts - (prompts + 0.1)).below


@pytest.mark.parametrize("values", [[], [1.0], [1.0, np.nan], [np.inf, 1.0]])
def test_what_has_no_interval_is_refused(values: list[float]) -> None:
    with pytest.raises(UsageError, match=r"differences have no interval|no finite number"):
        paired_bootstrap(values)


def test_holm_by_hand() -> None:
    assert holm({"a": 0.04, "b": 0.01, "c": 0.03}) == pytest.approx(
        {"b": 0.03, "c": 0.06, "a": 0.06}
    )
    assert holm({"a": 0.5, "b": 0.6}) == pytest.approx({"a": 1, "b": 1})
    assert holm({"a": 0.02}) == {"a": 0.02}
    assert list(holm({"z": 0.1, "a": 0.2})) == ["z", "a"]


def test_a_claim_falls_when_there_are_many() -> None:
    sure = [1.0, 1.1, 0.9, 1.05, 0.95]
    weak = [0.9, -0.3, 0.8, 0.7, -0.3, 0.9, 0.4, -0.1]
    alone = corrected({"weak": weak})["weak"]
    assert alone[1]
    many = {f"n{i}": list(np.roll([1.0, -1.0, 1.0, -1.0], i)) for i in range(9)}
    among = corrected({"sure": sure, "weak": weak, **many})
    assert list(among)[:2] == ["sure", "weak"]
    assert among["sure"][1]
    assert not among["weak"][1]
    assert among["weak"][0].low < alone[0].low
    assert not any(among[name][1] for name in many)
