"""Activations are read once and give what the methods find in them."""

import numpy as np
import pytest
from test_extract import PAIRS, TOPICS, usual

from mlxsteer.capture import capture
from mlxsteer.contrast import Contrast
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.methods import METHODS, find_rows
from mlxsteer.prompts import Pair, render

SITES = ("resid_post", "attn_out")


def test_one_reading_serves_all_sites_layers_and_methods(monkeypatch: pytest.MonkeyPatch) -> None:
    model, words = usual()
    contrast = Contrast(model, words, PAIRS, sites=SITES, layers=(0, 2, 3))

    def twice(*arguments: object, **options: object) -> None:
        raise AssertionError("read again")

    monkeypatch.setattr(type(model), "__call__", twice)
    found = {(m, s): contrast.rows(m, s, (2, 3)) for m in METHODS for s in SITES}
    with pytest.raises(AssertionError, match="read again"):  # the twin: reading would be noticed
        Contrast(model, words, PAIRS, sites=SITES, layers=(0,))
    monkeypatch.undo()
    tokens = ([render(words, getattr(p, w)) for p in PAIRS] for w in ("positive", "negative"))
    sides = [capture(model, side, sites=SITES, layers=(2, 3)) for side in tokens]
    for (method, site), rows in found.items():
        expected = find_rows(method, sides[0][site], sides[1][site])
        np.testing.assert_allclose(rows, expected, atol=1e-4)
    assert not np.allclose(found["mean_diff", SITES[0]], found["mean_diff", SITES[1]], atol=1e-3)


def test_what_was_found_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    contrast = Contrast(*usual(), PAIRS, sites=("resid_post",), layers=(0, 1, 2))
    first = contrast.rows("mean_diff", "resid_post", (1, 2))
    asked: list[tuple[int, ...]] = []

    def finding(method: str, *sides: np.ndarray, **options: object) -> np.ndarray:
        asked.append(tuple(options["layers"]))  # type: ignore[arg-type]
        return find_rows(method, *sides)

    monkeypatch.setattr("mlxsteer.contrast.find_rows", finding)
    again = contrast.rows("mean_diff", "resid_post", (0, 1, 2))
    assert asked == [(0,)]
    np.testing.assert_array_equal(again[1:], first)
    contrast.rows("mean_diff", "resid_post", (1,), without_negative_mean=True)
    assert asked == [(0,), (1,)]  # the twin: another way is another direction


def test_turned_pairs_give_the_opposite() -> None:
    turned = [Pair(p.negative, p.positive) for p in PAIRS]
    rows, other = (
        Contrast(*usual(), pairs, sites=("mlp_out",), layers=(1,)).rows("pca", "mlp_out", (1,))
        for pairs in (PAIRS, turned)
    )
    np.testing.assert_allclose(rows, -other, atol=1e-5)


def test_what_cannot_be_read_is_refused() -> None:
    with pytest.raises(UsageError, match="layer 4 does not exist"):
        Contrast(*usual(), PAIRS, sites=("resid_post",), layers=(4,))
    unknown = [Pair(f"{topic} zzz", f"{topic} yyy") for topic in TOPICS]  # one token to both
    same = Contrast(*usual(), unknown, sites=("resid_post",), layers=(1,))
    with pytest.raises(MlxsteerError, match="both sides are the same to the model at layer 1"):
        same.rows("mean_diff", "resid_post", (1,))
