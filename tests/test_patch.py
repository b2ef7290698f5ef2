"""Patching puts exactly what was kept exactly where it is said, and the rest follows from it."""

import mlx.core as mx
import pytest
from tiny import LAYERS, nodes, tiny, vector

from mlxsteer.capture import capturing
from mlxsteer.errors import UsageError
from mlxsteer.generate import forward
from mlxsteer.patch import patching
from mlxsteer.plan import taps
from mlxsteer.steering import Steering
from mlxsteer.taps import SITES

CLEAN, OTHER = [5, 6, 7, 8], [5, 60, 61, 8]


def kept_of(model, tokens: list[int], layer: int, site: str):
    wanted, kept = capturing([layer], [site])
    forward(model, tokens, taps=wanted)
    return kept


def test_a_whole_residual_decides_all_that_follows() -> None:
    model = tiny()
    clean, other = forward(model, CLEAN), forward(model, OTHER)
    assert not mx.allclose(clean, other, atol=1e-2)
    for layer in range(LAYERS):
        patch = patching(kept_of(model, CLEAN, layer, "resid_post"))
        assert mx.array_equal(forward(model, OTHER, taps=patch), clean)
    # a part of the sum is not the whole of it
    patch = patching(kept_of(model, CLEAN, 1, "mlp_out"))
    assert not mx.allclose(forward(model, OTHER, taps=patch), clean, atol=1e-2)


@pytest.mark.parametrize("site", SITES)
def test_only_the_named_positions_are_replaced(site: str) -> None:
    model = tiny()
    kept = kept_of(model, CLEAN, 1, site)
    plain = kept_of(model, OTHER, 1, site)[1][site]
    patch = patching(kept, positions=[3, 1], sources=[0, 2])
    wanted, seen = capturing([1], [site], inner=patch)
    forward(model, OTHER, taps=wanted)
    got = seen[1][site]
    assert mx.array_equal(got[0, 3], kept[1][site][0, 0])
    assert mx.array_equal(got[0, 1], kept[1][site][0, 2])
    assert mx.array_equal(got[0, [0, 2]], plain[0, [0, 2]])
    assert not mx.array_equal(got[0, 1], plain[0, 1])


def test_into_another_model_of_the_same_shape() -> None:
    one, two = tiny(seed=1), tiny(seed=2)
    patch = patching(kept_of(one, CLEAN, LAYERS - 1, "resid_post"))
    two.model.norm.weight = one.model.norm.weight
    two.model.embed_tokens.weight = one.model.embed_tokens.weight
    assert mx.array_equal(forward(two, OTHER, taps=patch), forward(one, CLEAN))


def test_patching_over_steering() -> None:
    model = tiny()
    v = vector((0, 2), scale=4.0)
    inner = taps((Steering((v, 1.0)).at(0, 4, None),))
    kept = kept_of(model, CLEAN, 1, "resid_post")
    both = forward(model, OTHER, taps=patching(kept, inner=inner))
    above = taps((Steering((v.restrict((2,)), 1.0)).at(0, 4, None),))
    assert mx.array_equal(both, forward(model, CLEAN, taps=above))
    assert not mx.array_equal(both, forward(model, CLEAN))


def test_what_is_replaced_is_never_computed() -> None:
    model = tiny()
    patch = patching(kept_of(model, CLEAN, LAYERS - 1, "resid_post"))
    mx.eval(
        [
            value
            for sites in kept_of(model, CLEAN, 1, "mlp_out").values()
            for value in sites.values()
        ]
    )
    patched, plain = (model(mx.array([OTHER]), taps=t) for t in (patch, None))
    mx.eval(patch.table[LAYERS - 1, "mlp"].kept_stream)  # type: ignore[attr-defined]
    assert nodes(patched) < nodes(plain) / 3


def test_what_does_not_fit_is_named() -> None:
    model = tiny()
    kept = kept_of(model, CLEAN, 1, "resid_post")
    with pytest.raises(UsageError, match="4 tokens of width 64 cannot replace one of 2"):
        forward(model, [1, 2], taps=patching(kept))
    with pytest.raises(UsageError, match="2 positions cannot replace 1"):
        patching(kept, positions=[1], sources=[1, 2])
    with pytest.raises(UsageError, match="site 'here'"):
        patching({1: {"here": mx.zeros((1, 4, 64))}})
