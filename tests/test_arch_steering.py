"""Every family is steered at its joins: there, nowhere else, at no cost and in its own dtype."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from test_steering import ORDER, TOKENS, check_footprint, decode_nodes, steered_by
from tiny import CONFIGS, DTYPES, LAYERS, WIDTH, direction, nodes, tiny, vector

from mlxsteer.arch.gemma3_text import clipped_add
from mlxsteer.capture import capturing
from mlxsteer.generate import forward
from mlxsteer.steering import Steering
from mlxsteer.taps import SITES, Tap, Taps

EACH = pytest.mark.parametrize(
    ("family", "dtype"),
    # gemma3 only hands on to gemma3_text, whose add clips in float16
    [(f, d) for f in CONFIGS if f != "gemma3" for d in DTYPES]
    + [("gemma3", "float32"), ("gemma3_text", "float16")],
)
EVERYWHERE = tuple(range(LAYERS))


@EACH
@pytest.mark.table("Families", "family", "footprint, four sites")
def test_footprint(family: str, dtype: str) -> None:
    model = tiny(dtype, family=family)
    for site in SITES:
        v = vector((2,), site=site, scale=3.0)
        check_footprint(model, steered_by((v, 0.5)), 2, site, 0.5 * v.rows()[2])


@pytest.mark.table("Families", "family", "footprint twins")
@pytest.mark.parametrize("site", SITES)
@pytest.mark.parametrize("family", CONFIGS)
def test_footprint_twins_fail(family: str, site: str) -> None:
    model, v = tiny(family=family), vector((2,), site=site, scale=3.0)
    row = v.rows()[2]
    with pytest.raises(AssertionError, match="moved"):
        check_footprint(model, steered_by((vector((1,), site=site, scale=3.0), 1)), 2, site, row)
    with pytest.raises(AssertionError, match="not the edit"):
        check_footprint(model, steered_by((v, -1)), 2, site, row)
    with pytest.raises(AssertionError, match="not the edit"):
        check_footprint(model, Taps({(2, SITES[site][0]): Tap()}), 2, site, row)


@pytest.mark.parametrize("family", ["gemma3", "gemma3_text"])
def test_what_is_captured_is_what_joins(family: str) -> None:
    """`attn_out` and `mlp_out` are what Gemma adds: after its second norms."""
    model = tiny(family=family)
    table, kept = capturing(EVERYWHERE, ORDER)
    model(TOKENS, taps=table)
    for layer in EVERYWHERE:
        site = kept[layer]
        assert mx.array_equal(site["resid_mid"] + site["mlp_out"], site["resid_post"])
        if layer:
            before = kept[layer - 1]["resid_post"]
            assert mx.array_equal(before + site["attn_out"], site["resid_mid"])
        block = model.layers[layer]
        raw = block.mlp(block.pre_feedforward_layernorm(site["resid_mid"]))
        assert mx.allclose(site["mlp_out"], block.post_feedforward_layernorm(raw), atol=1e-5)
        assert not mx.allclose(site["mlp_out"], raw, atol=1e-2)


def plain_nodes(model: nn.Module) -> int:
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([[1, 2, 3]]), cache=cache))
    return nodes(model(mx.array([[4]]), cache=cache))


@EACH
@pytest.mark.table("Families", "family", "nodes and dtypes")
def test_one_step_has_as_many_nodes_as_unsteered(family: str, dtype: str) -> None:
    """And the logits and the caches keep their dtype."""
    model = tiny(dtype, family=family)
    expected = (plain_nodes(model), mx.bfloat16 if dtype == "4bit" else getattr(mx, dtype))
    ten = [vector(EVERYWHERE, seed=s) for s in range(10)]
    all_sites = [vector(EVERYWHERE, seed=s, site=site) for s, site in enumerate(ORDER)]
    assert decode_nodes(model, None) == expected
    for many in (ten, all_sites):
        assert decode_nodes(model, Steering(*((v, 0.1) for v in many))) == expected


@pytest.mark.parametrize("family", CONFIGS)
def test_naive_wrapping_would_be_counted(family: str) -> None:
    class Naive(Tap):
        def stream(self, h: mx.array) -> mx.array:
            return h + 1.0 * mx.array(direction())

    model = tiny("4bit", family=family)
    naive = model(TOKENS, taps=Taps({(n, "mlp"): Naive() for n in EVERYWHERE}))
    assert nodes(naive) > nodes(model(TOKENS))
    assert naive.dtype == mx.float32


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
def test_the_clipped_join_equals_the_formula(dtype: str) -> None:
    """Compiled into the steered join, Gemma's add still clips before the stream is edited."""
    kind = getattr(mx, dtype)
    h, r = (mx.random.normal((3, 4, WIDTH), key=mx.random.key(k)).astype(kind) for k in (1, 2))
    h, r = (mx.where(mx.abs(x) > 1, mx.sign(x) * 5e4, x).astype(kind) for x in (h, r))
    v, w = (
        vector((1,), seed=s, site=s_, scale=9.0) for s, s_ in ((1, "mlp_out"), (2, "resid_post"))
    )
    write, stream = (mx.array(x.rows()[1]).astype(kind) for x in (v, w))
    joined = steered_by((v, 1), (w, 1)).at(1, "mlp").join(h, r, clipped_add)
    assert joined.dtype == kind
    assert mx.array_equal(joined, clipped_add(h, r + write) + stream)
    unclipped = steered_by((v, 1), (w, 1)).at(1, "mlp").join(h, r)
    assert mx.array_equal(joined, unclipped) == (dtype != "float16")


OPERATORS: dict[str, dict[str, Any]] = {
    "add": {},
    "project": {"op": "project"},
    "clamp": {"op": "clamp", "targets": [9e4]},
    "cap": {"op": "cap", "targets": [-9e4]},
}


@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("op", OPERATORS)
def test_an_edited_stream_stays_in_the_range_of_float16(op: str, keep_norm: bool) -> None:
    """Gemma's residual lies at the limit at times: an edit of it is clipped as its own adds are."""
    ones = mx.ones((1, TOKENS.shape[1], 1))
    h = (6e4 * ones * mx.array(np.sign(direction(7)))).astype(mx.float16)
    v = vector((1,), site="resid_post", scale=1.0 if op != "add" else 2e4, **OPERATORS[op])
    for strength in (-2.0, 2.0):
        taps = steered_by((v, strength), keep_norm=keep_norm)
        edited = taps.at(1, "mlp").join(h, h, clipped_add)
        assert mx.isfinite(edited).all()
        assert not mx.array_equal(edited, clipped_add(h, h))
        assert not mx.isfinite(taps.at(1, "mlp").join(h, h)).all()  # without Gemma's add
        watched, kept = capturing([1], ["resid_post"], inner=taps)
        assert mx.array_equal(watched.at(1, "mlp").join(h, h, clipped_add), edited)
        assert mx.array_equal(kept[1]["resid_post"], edited)


@EACH
@pytest.mark.table("Families", "family", "own vector per row")
def test_rows_of_a_batch_have_their_own(family: str, dtype: str) -> None:
    """Each row is as in a batch of its own kind, and the one at strength 0 as without steering."""
    model = tiny(dtype, family=family)
    rows = [
        Steering((vector(seed=1, scale=2.0), 1.0)),
        Steering((vector(), 0.0)),
        Steering((vector((0, 3), seed=2, site="attn_out", scale=2.0), -1.5), (vector(), 0.5)),
    ]
    batch = mx.repeat(TOKENS, 3, axis=0)
    together = forward(model, batch, steering=rows)
    alone = [forward(model, batch, steering=steering) for steering in rows]
    assert mx.array_equal(alone[1], model(batch).astype(mx.float32))
    for i, row in enumerate(together):
        assert [mx.array_equal(row, logits[i]) for logits in alone] == [i == n for n in range(3)]
    assert mx.isfinite(together).all()
