"""Directions from synthetic activations with a known answer, and a known sign."""

import numpy as np
import pytest

from mlxsteer.errors import UsageError
from mlxsteer.methods import METHODS, find_rows, mean_diff


@pytest.mark.parametrize("method", METHODS)
def test_a_planted_direction_is_found_with_its_sign(method: str) -> None:
    rng = np.random.default_rng(0)
    planted = rng.normal(size=(3, 32)).astype(np.float32)
    common = rng.normal(size=(200, 3, 32)).astype(np.float32) * 3
    noise = rng.normal(size=(2, 200, 3, 32)).astype(np.float32) * 0.2
    positive, negative = common + planted + noise[0], common - planted + noise[1]
    rows = find_rows(method, positive, negative)
    assert rows.shape == (3, 32)
    assert rows.dtype == np.float32
    for row, truth in zip(rows, planted, strict=True):
        assert row @ truth / np.linalg.norm(row) / np.linalg.norm(truth) > 0.99
    turned = find_rows(method, negative, positive)
    for row, truth in zip(turned, planted, strict=True):
        assert row @ truth / np.linalg.norm(row) / np.linalg.norm(truth) < -0.99


def test_mean_diff_has_the_natural_scale() -> None:
    positive = np.full((4, 1, 3), 2.0, np.float32)
    negative = np.full((4, 1, 3), 0.5, np.float32)
    np.testing.assert_allclose(mean_diff(positive, negative), [[1.5, 1.5, 1.5]])


def test_an_unknown_method_is_named() -> None:
    with pytest.raises(UsageError, match="'magic' does not exist; methods are mean_diff"):
        find_rows("magic", np.zeros((1, 1, 1)), np.zeros((1, 1, 1)))
