"""Nulls cost what they shall cost and hold nothing of the concept."""

import numpy as np
import pytest
from test_calibrate import by_hand, neutral, tiny
from tiny import WIDTH, vector

from mlxsteer.errors import MlxsteerError
from mlxsteer.meter import Meter
from mlxsteer.nulls import equalised, isotropic, nearest, refits
from mlxsteer.steering import Steering


def sides(pairs: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positive and negative activations that differ by a direction `[2, D]` and some noise."""
    rng = np.random.default_rng(0)
    truth = rng.normal(size=(2, WIDTH))
    negative = rng.normal(size=(pairs, 2, WIDTH))
    return negative + truth + 0.1 * rng.normal(size=negative.shape), negative, truth


@pytest.mark.parametrize("pairs", [12, 13])
def test_refits_hold_nothing_of_the_difference(pairs: int) -> None:
    positive, negative, truth = sides(pairs)
    found = refits(positive, negative, vector(), 8)
    assert len({v.content_sha256 for v in found}) == 8
    for v in found:
        assert v.layers == (1, 2)
        cosines = np.abs((v.directions * truth).sum(1) / np.linalg.norm(truth, axis=1))
        assert cosines.max() < 0.45  # chance, in 64 dimensions
    # the twin: signs that do not cancel leave the concept in
    signs = np.array([-1.0] + [1.0] * (pairs - 1))
    row = np.einsum("i,ind->nd", signs, positive - negative)[0]
    assert row @ truth[0] / np.linalg.norm(row) / np.linalg.norm(truth[0]) > 0.9
    assert found == refits(positive, negative, vector(), 8)
    with pytest.raises(MlxsteerError, match="3 pairs cannot be turned around by halves"):
        refits(positive[:3], negative[:3], vector(), 8)


def test_the_nearest_others_are_the_nulls() -> None:
    v = vector((1, 2), seed=1)
    near = (0.9 * v + 0.5 * vector((2, 3), seed=2)).replace(name="near")
    far, against = vector((1, 2), seed=4), -v
    holds = vector(op="project")
    assert nearest(v, [against, holds, 0 * v, far, near], 2) == [near, far]
    assert nearest(v, [against, far, near], 9)[-1] == against


def test_isotropic_ones_have_the_scales_of_the_vector() -> None:
    like = vector(scale=0.7)
    one, two = isotropic(like, 2)
    assert one.scales == pytest.approx(like.scales, rel=1e-5)
    assert abs(float(one.directions[0] @ two.directions[0])) < 0.5
    assert (one.site, one.phase, one.layers) == (like.site, like.phase, like.layers)


def test_all_nulls_cost_the_same() -> None:
    model = tiny()
    text, judged = neutral(model), vector(scale=4.0)
    meter = Meter(model, text, 1)
    kl = meter(Steering((judged, 1.0)))
    raw = [*isotropic(vector(scale=0.5), 2), vector(seed=5, scale=30.0)]
    before = [by_hand(model, text, Steering((v, 1.0))) for v in raw]
    assert max(before) > 2 * min(before)
    for v in raw:
        null = equalised(meter, "other", v, kl)
        assert null.kl == pytest.approx(kl, rel=0.05)
        assert by_hand(model, text, null.steering) == pytest.approx(kl, rel=0.06)
        assert null.vector.directions == pytest.approx(v.directions)
