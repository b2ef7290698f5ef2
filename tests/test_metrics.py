"""The plain numbers, against their definitions."""

import numpy as np
import pytest

from mlxsteer import metrics
from mlxsteer.metrics import auroc, cohens_d, log_softmax, token_kl, token_log_probs


def test_token_kl_is_the_definition() -> None:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 40)).astype(np.float32) * 4
    p, q = (np.exp(x - x.max(-1, keepdims=True)) for x in (a, b))
    p, q = p / p.sum(-1, keepdims=True), q / q.sum(-1, keepdims=True)
    expected = (p * np.log(p / q)).sum(-1)
    got = token_kl(log_softmax(a.copy()), log_softmax(b.copy()))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    assert (got > 0).all()
    np.testing.assert_allclose(token_kl(log_softmax(a.copy()), b), got, rtol=1e-5)
    assert np.abs(token_kl(log_softmax(a.copy()), a)).max() < 1e-5
    swapped = token_kl(log_softmax(b.copy()), log_softmax(a.copy()))
    assert not np.allclose(got, swapped, rtol=0.01)  # it has a direction


def test_log_softmax_of_large_logits() -> None:
    x = np.array([[1000.0, 0.0, -1000.0]], np.float32)
    np.testing.assert_allclose(log_softmax(x)[0], [0, -1000, -2000])


def test_token_log_probs_are_those_of_the_softmax(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    logits = (rng.normal(size=(7, 40)) * 5).astype(np.float32)
    before = logits.copy()
    tokens = rng.integers(0, 40, 7)
    expected = log_softmax(logits.copy())[np.arange(7), tokens]
    for cached in (1, 100, 1 << 18):  # a row at a time, two, all
        monkeypatch.setattr(metrics, "CACHED", cached)
        np.testing.assert_allclose(token_log_probs(logits, tokens), expected, rtol=1e-6)
    np.testing.assert_array_equal(logits, before)  # it may be the model's own memory


def test_auroc_and_cohens_d() -> None:
    a, b = np.array([3.0, 4.0, 5.0]), np.array([0.0, 1.0, 4.0])
    assert auroc(a, b) == pytest.approx((2 + 2.5 + 3) / 9)
    assert auroc(b, a) == pytest.approx(1 - auroc(a, b))
    assert cohens_d(a, b) == pytest.approx((4 - 5 / 3) / np.sqrt((1 + 13 / 3) / 2))
    assert cohens_d(a, a) == 0
    assert cohens_d(np.ones(3), np.zeros(3)) == 0.0  # no spread to measure with
