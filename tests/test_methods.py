"""Directions from synthetic activations with a known answer, and a known sign."""

from typing import Any

import numpy as np
import pytest

from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.methods import (
    METHODS,
    find_rows,
    lda,
    mean_diff,
    pca,
    probe,
    remove_negative_mean,
)
from mlxsteer.metrics import auroc

WHITENED = ("probe", "lda")


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def two_sides(
    pairs: int = 200,
    width: int = 32,
    *,
    size: float = 2.0,
    loud: float = 0.0,
    offset: float = 0.0,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return positive, negative, the planted difference and a direction at right angles to it.

    `size` is the norm of the difference, `loud` the noise along the other direction beside 1
    everywhere, `offset` the norm of a mean that both sides have.
    """
    rng = np.random.default_rng(seed)
    planted, other, mean = np.linalg.qr(rng.normal(size=(width, 3)))[0].T
    noise = rng.normal(size=(2, pairs, width)) + loud * rng.normal(size=(2, pairs, 1)) * other
    middle = offset * mean + noise
    positive, negative = middle[0] + size / 2 * planted, middle[1] - size / 2 * planted
    return positive.astype(np.float32), negative.astype(np.float32), size * planted, other


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("pairs", "width"), [(100, 24), (20, 200)])
def test_a_planted_direction_is_found_with_its_sign(method: str, pairs: int, width: int) -> None:
    """In every layer, with more prompts than coordinates and with far fewer."""
    size = 4.0 if pairs > width else 20.0
    layers = [two_sides(pairs, width, size=size, seed=seed) for seed in range(3)]
    positive, negative = (np.stack([layer[i] for layer in layers], 1) for i in (0, 1))
    rows = find_rows(method, positive, negative)
    assert rows.shape == (3, width)
    assert rows.dtype == np.float32
    planted = [layer[2] for layer in layers]
    for row, truth in zip(rows, planted, strict=True):
        assert cosine(row, truth) > (0.85 if method == "probe" else 0.95)
        assert np.linalg.norm(row) == pytest.approx(size, rel=0.2)
    turned = find_rows(method, negative, positive)
    np.testing.assert_allclose(turned, -rows, rtol=1e-4, atol=1e-4 * size)
    assert abs(cosine(rows[0], planted[1])) < 0.5  # the twin: the neighbouring layer has another


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("loud", [0.0, 6.0])
def test_a_row_is_the_mean_difference_along_its_direction(method: str, loud: float) -> None:
    positive, negative, _, _ = two_sides(40, size=9.0, loud=loud)
    row, m = METHODS[method](positive, negative), mean_diff(positive, negative)
    d = row / np.linalg.norm(row)
    np.testing.assert_allclose(row, (m @ d) * d, atol=1e-5)
    assert m @ row > 0
    order = np.random.default_rng(1).permutation(40)
    again = METHODS[method](positive[order], negative[order])
    np.testing.assert_allclose(again, row, atol=1e-4)


def test_mean_diff_has_the_natural_scale() -> None:
    positive = np.full((4, 1, 3), 2.0, np.float32)
    negative = np.full((4, 1, 3), 0.5, np.float32)
    np.testing.assert_allclose(mean_diff(positive, negative), [[1.5, 1.5, 1.5]])


@pytest.mark.parametrize("method", WHITENED)
def test_whitening_helps_where_the_noise_is_correlated(method: str) -> None:
    """Both sides vary wildly along one direction: few prompts leave much of it in their means."""
    positive, negative, planted, _ = two_sides(1500, loud=20.0)
    held_out = positive[:500], negative[:500]
    found: dict[str, list[float]] = {"white": [], "plain": []}
    told: dict[str, list[float]] = {"white": [], "plain": []}
    for seed in range(6):
        some = np.random.default_rng(seed).permutation(np.arange(500, 1500))[:60]
        sides = positive[some], negative[some]
        for key, row in (("white", METHODS[method](*sides)), ("plain", mean_diff(*sides))):
            found[key].append(cosine(row, planted))
            told[key].append(auroc(held_out[0] @ row, held_out[1] @ row))
    assert min(found["white"]) > 0.7 > 0.65 > np.mean(found["plain"])
    assert min(told["white"]) > 0.8 > 0.65 > np.mean(told["plain"])


@pytest.mark.parametrize("method", WHITENED)
def test_whitening_does_not_help_without_correlation(method: str) -> None:
    """The twin: where no direction is louder than others, the mean difference is as good."""
    for seed in range(3):
        positive, negative, planted, _ = two_sides(60, seed=seed)
        white, plain = METHODS[method](positive, negative), mean_diff(positive, negative)
        assert cosine(white, planted) < cosine(plain, planted) + 0.02


# pca


def test_pca_is_not_centred() -> None:
    """Centred, it would find what the pairs disagree in."""
    positive, negative, planted, other = two_sides(100, size=20.0, loud=6.0)
    assert cosine(pca(positive, negative), planted) > 0.95
    difference = positive - negative
    centred = np.linalg.svd(difference - difference.mean(axis=0))[2][0]
    assert abs(cosine(centred, planted)) < 0.2
    assert abs(cosine(centred, other)) > 0.9


def test_pca_is_the_component_of_both_sides_around_the_middle_of_each_pair() -> None:
    positive, negative, _, _ = two_sides(50, size=6.0, loud=3.0)
    middle = (positive + negative) / 2
    around = np.concatenate([positive - middle, negative - middle]).astype(np.float64)
    np.testing.assert_allclose(around.mean(axis=0), 0, atol=1e-6)
    component = np.linalg.eigh(around.T @ around)[1][:, -1]
    assert abs(cosine(pca(positive, negative), component)) > 0.999999


def test_pca_refuses_a_sign_by_chance() -> None:
    """The pairs vary most in something else: the sign of that says nothing about the concept."""
    positive, negative, planted, _ = two_sides(100, size=2.0, loud=30.0, seed=3)
    with pytest.raises(MlxsteerError, match="a sign by chance: use mean_diff"):
        pca(positive, negative)
    louder = (positive + 20 * planted, negative - 20 * planted)  # the twin
    assert cosine(pca(*louder), planted) > 0.8
    with pytest.raises(MlxsteerError, match="layer 7: what the pairs vary in most"):
        find_rows("pca", positive[:, None], negative[:, None], layers=[7])


# probe and lda


@pytest.mark.parametrize("pairs", [8, 60])
def test_the_probe_is_the_minimum_of_its_loss(pairs: int) -> None:
    """By plain gradient descent in all coordinates, with and without a gap between the sides."""
    positive, negative, _, _ = two_sides(pairs, 10, loud=2.0)
    positive, negative = positive * np.linspace(1, 8, 10), negative * np.linspace(1, 8, 10)
    x = np.concatenate([positive, negative]).astype(np.float64)
    y = np.repeat([1.0, -1.0], pairs)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    v, b = np.zeros(10), 0.0
    rate = 1 / (np.linalg.norm(z, 2) ** 2 / 4 + 1)
    for _ in range(3000):
        pull = y / (1 + np.exp(y * (z @ v + b)))
        v, b = v - rate * (v - pull @ z), b + rate * pull.sum()
    row = probe(positive, negative)
    assert cosine(row, v / x.std(axis=0)) > 0.999999
    assert cosine(row, v) < 0.97  # the twin: in standardised coordinates it is another direction


@pytest.mark.parametrize(("pairs", "width"), [(60, 10), (8, 30)])
def test_lda_is_the_shrunken_formula(pairs: int, width: int) -> None:
    """Word for word after Ledoit and Wolf, with and without an inverse of the covariance."""
    positive, negative, _, _ = two_sides(pairs, width, loud=4.0)
    sides = [side.astype(np.float64) for side in (positive, negative)]
    x = np.concatenate([side - side.mean(axis=0) for side in sides])
    n = len(x)
    covariance = sum(np.outer(row, row) for row in x) / n
    mean = np.trace(covariance) / width
    spread = np.sum((covariance - mean * np.eye(width)) ** 2)
    noise = sum(np.sum((np.outer(row, row) - covariance) ** 2) for row in x) / n**2
    g = min(noise, spread) / spread
    assert 0.01 < g < 0.9
    shrunken = (1 - g) * covariance + g * mean * np.eye(width)
    d = np.linalg.solve(shrunken, sides[0].mean(axis=0) - sides[1].mean(axis=0))
    assert cosine(lda(positive, negative), d) > 0.999999
    assert cosine(mean_diff(positive, negative), d) < 0.99


def test_a_coordinate_that_hardly_varies_does_not_take_over() -> None:
    """Rounding in a constant coordinate is divided by no less than what the others vary by."""
    positive, negative, _, _ = two_sides(100, size=4.0)
    for side in (positive, negative):
        side[:, 5] = 3
    constant = probe(positive, negative)
    positive[:, 5] += 1e-6
    assert positive[0, 5] > negative[0, 5]
    assert cosine(probe(positive, negative), constant) > 0.999
    positive[:, 5] += 1  # the twin: a difference that is no rounding counts
    assert cosine(probe(positive, negative), constant) < 0.9


# What cannot work


@pytest.mark.parametrize("method", METHODS)
def test_one_pair(method: str) -> None:
    positive, negative, _, _ = two_sides(2)
    if method in WHITENED:
        with pytest.raises(MlxsteerError, match=f"layer 0: {method} needs two pairs or more"):
            find_rows(method, positive[:1, None], negative[:1, None])
        assert find_rows(method, positive[:, None], negative[:, None]).any()
    else:
        row = METHODS[method](positive[:1], negative[:1])
        np.testing.assert_allclose(row, positive[0] - negative[0], atol=1e-5)


def test_prompts_that_are_all_alike_have_no_covariance() -> None:
    positive, negative = np.ones((3, 4), np.float32), np.zeros((3, 4), np.float32)
    with pytest.raises(MlxsteerError, match="all are alike"):
        lda(positive, negative)
    np.testing.assert_allclose(probe(positive, negative), [1, 1, 1, 1], rtol=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_sides_with_one_mean_give_no_row(method: str) -> None:
    side = two_sides(5)[0][:, None]
    assert not find_rows(method, side, side.copy()).any()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"method": "magic"}, UsageError, "'magic' does not exist; methods are mean_diff, pca, pr"),
        ({"negative": np.zeros((1, 1, 32))}, UsageError, "must be the same pairs"),
        ({"negative": np.full((4, 1, 32), np.inf)}, MlxsteerError, "layer 0: activations are not"),
    ],
)
def test_bad_input_is_named(change: dict[str, Any], error: type[Exception], message: str) -> None:
    side = two_sides(4)[0][:, None]
    with pytest.raises(error, match=message):
        find_rows(**{"method": "pca", "positive": side, "negative": side, **change})


# The mean of the negative side


@pytest.mark.parametrize("method", METHODS)
def test_the_negative_mean_is_removed(method: str) -> None:
    positive, negative, planted, _ = two_sides(100, size=6.0, offset=50.0)
    # the concept lies partly along what all prompts have
    along = 8 * negative.mean(axis=0) / np.linalg.norm(negative.mean(axis=0))
    positive = positive + along.astype(np.float32)
    n = negative.mean(axis=0) / np.linalg.norm(negative.mean(axis=0))
    plain, row = (
        find_rows(method, positive[:, None], negative[:, None], without_negative_mean=without)[0]
        for without in (False, True)
    )
    assert abs(cosine(row, n)) < 1e-5
    assert cosine(plain, n) > 0.3  # the twin: it is there without the option
    assert cosine(row, planted) > (0.85 if method == "probe" else 0.95) > cosine(plain, planted)
    d = plain - (plain @ n) * n
    assert cosine(row, d) > 0.99999
    natural = mean_diff(positive, negative) @ (d / np.linalg.norm(d))
    assert np.linalg.norm(row) == pytest.approx(natural, rel=1e-4)
    turned = find_rows(method, negative[:, None], positive[:, None], without_negative_mean=True)[0]
    assert cosine(turned, planted) < 0


def test_a_direction_that_is_the_negative_mean_is_refused() -> None:
    negative = np.random.default_rng(0).normal(size=(6, 8)).astype(np.float32) + 2
    positive = negative + negative.mean(axis=0)
    with pytest.raises(MlxsteerError, match="mean of the negative side and nothing else"):
        remove_negative_mean(mean_diff(positive, negative), positive, negative)
    positive[:, 0] += 1
    assert remove_negative_mean(mean_diff(positive, negative), positive, negative).any()


def test_a_negative_side_around_zero_leaves_the_row_as_it_is() -> None:
    negative = np.array([[1, 2], [-1, -2]], np.float32)
    row = mean_diff(negative + 1, negative)
    np.testing.assert_array_equal(remove_negative_mean(row, negative + 1, negative), row)


def test_progress_ends_where_it_says() -> None:
    seen: list[tuple[str, int, int]] = []
    side = two_sides(4)[0][:, None].repeat(3, axis=1)
    find_rows("lda", side, side[::-1], progress=lambda *s: seen.append(s))
    assert seen == [("finding directions by lda", i, 3) for i in range(4)]
