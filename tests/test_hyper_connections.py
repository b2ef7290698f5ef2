"""Every operator on several residual streams, against its formula in plain NumPy."""

from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from test_edits import CASES, formula, made
from tiny import WIDTH, nodes

from mlxsteer.arch.hyper_connections import HyperConnection, HyperHead, spread
from mlxsteer.plan import EditTap, taps
from mlxsteer.steering import Acting
from mlxsteer.taps import PLAIN, Tap
from mlxsteer.vector import Vector

B, T, S = 3, 5, 4
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}
WEIGHTS = (0.0, 1.0, 0.5, 0.0, 1.0)


def draw(shape: tuple[int, ...], seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def joined(streams: Any, r: Any, post: Any, comb: Any) -> np.ndarray:
    """`post_j r + sum_i comb_ij S_i`, float64."""
    streams, r, post, comb = (
        np.array(x.astype(mx.float32), np.float64) for x in (streams, r, post, comb)
    )
    carried: np.ndarray = np.einsum("btij,btid->btjd", comb, streams)
    carried += post * r[:, :, None]
    return carried


def operands(dtype: str) -> tuple[mx.array, mx.array, mx.array, mx.array]:
    streams, r = draw((B, T, S, WIDTH), 0), draw((B, T, WIDTH), 1)
    post, comb = mx.sigmoid(draw((B, T, S, 1), 2)) * 2, mx.softmax(draw((B, T, S, S), 3), axis=-2)
    return streams.astype(DTYPES[dtype]), r.astype(DTYPES[dtype]), post, comb


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_join_is_the_equation(dtype: str) -> None:
    streams, r, post, comb = operands(dtype)
    got = PLAIN.join(streams, r, spread, post, comb.swapaxes(-1, -2))
    assert got.dtype == DTYPES[dtype]
    step = 1e-5 if dtype == "float32" else 2.0**-7
    want = joined(streams, r, post, comb)
    seen = np.array(got.astype(mx.float32))
    np.testing.assert_allclose(seen, want, rtol=step, atol=step)
    assert np.abs(want - joined(streams, r, post, comb.swapaxes(-1, -2))).max() > 0.1


def on_site(vectors: list[tuple[Vector, float]], site: str) -> list[tuple[Vector, float]]:
    return [(v.replace(site=site), s) for v, s in vectors]


@pytest.mark.parametrize("site", ["mlp_out", "resid_post"])
@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_formula(dtype: str, case: str, keep_norm: bool, site: str) -> None:
    """Of each stream, and of what is spread over all; three rows, one of nothing, one weighted."""
    first = [(made(op, 10 + i, sae=sae), 0.5 + 0.25 * i) for i, (op, sae) in enumerate(CASES[case])]
    last = [(made("add", 50, scale=2.0), -1.0), (made("project", 51), 1.0)]
    rows = (
        tuple(Acting(v, s, None, False, keep_norm) for v, s in on_site(first, site)),
        (),
        tuple(Acting(v, s, WEIGHTS, False, keep_norm) for v, s in on_site(last, site)),
    )
    tap = taps(rows).at(1, "mlp")
    assert isinstance(tap, EditTap)
    streams, r, post, comb = operands(dtype)
    mix = comb.swapaxes(-1, -2)
    got = tap.join(streams, r, spread, post, mix)
    assert got.dtype == DTYPES[dtype]
    plain = spread(streams, r, post, mix)
    edited = r if site == "mlp_out" else plain
    x = np.array(edited.astype(mx.float32), np.float64).reshape(B, T, -1, WIDTH)
    y = x.copy()
    for i in range(x.shape[2]):
        y[0, :, i] = formula(x[0, :, i], first, keep_norm)
        whole = formula(x[2, :, i], last, False)
        y[2, :, i] += np.array(WEIGHTS)[:, None] * (whole - x[2, :, i])
        if keep_norm:
            old, new = (np.linalg.norm(a[2, :, i], axis=-1, keepdims=True) for a in (x, y))
            y[2, :, i] *= old / new
    want = y if site == "resid_post" else joined(streams, mx.array(y[:, :, 0]), post, comb)
    seen, before = (np.array(a.astype(mx.float32)) for a in (got, plain))
    step = 3e-5 if dtype == "float32" else 2.0**-6
    np.testing.assert_allclose(seen, want, rtol=step, atol=2 * step)
    np.testing.assert_array_equal(seen[1], before[1])  # a row of nothing is the plain result
    np.testing.assert_array_equal(seen[2, [0, 3]], before[2, [0, 3]])  # and so is a weight of 0
    assert not np.allclose(seen[0], before[0], atol=0.05)
    slow = Tap.join(tap, streams, r, spread, post, mix)
    assert mx.allclose(got, slow, rtol=step, atol=2 * step)


def test_one_addition_is_no_node() -> None:
    """At both sites of a join at once, on a step and on a prompt."""
    streams, r, post, comb = operands("bfloat16")
    for length in (1, T):
        parts = [x[:1, :length] for x in (streams, r, post, comb)]
        mx.eval(parts)
        h, f, *more = parts
        v = [made("add", 1).replace(site=site) for site in ("mlp_out", "resid_post")]
        tap = taps((tuple(Acting(x, 1.0) for x in v),)).at(1, "mlp")
        assert nodes(tap.join(h, f, spread, *more)) == nodes(PLAIN.join(h, f, spread, *more))
        assert nodes(Tap.join(tap, h, f, spread, *more)) > nodes(PLAIN.join(h, f, spread, *more))


class Sizes:
    hidden_size, rms_norm_eps, hc_mult, hc_sinkhorn_iters, hc_eps = WIDTH, 1e-6, S, 20, 1e-6


def test_the_weights_are_those_of_the_equation() -> None:
    """Written down with loops, in float64."""
    module, head = HyperConnection(Sizes()), HyperHead(Sizes())
    for i, each in enumerate((module, head)):
        each.fn, each.base = draw(each.fn.shape, 4 + i) / 16, draw(each.base.shape, 6 + i)
        each.scale = 0.5 + mx.abs(draw(each.scale.shape, 8 + i))
    streams = draw((1, 2, S, WIDTH), 9)
    x, post, mix = module(streams)
    out = head(streams)
    for t in range(2):
        s = np.array(streams[0, t], np.float64)
        flat = s.ravel() / np.sqrt((s**2).mean() + 1e-6)

        def raw(m: Any, flat: Any = flat) -> Any:
            return np.array(m.fn, np.float64) @ flat

        scale, base = np.array(module.scale), np.array(module.base)
        w = raw(module)
        pre = 1 / (1 + np.exp(-(w[:S] * scale[0] + base[:S]))) + 1e-6
        weight = 2 / (1 + np.exp(-(w[S : 2 * S] * scale[1] + base[S : 2 * S])))
        comb = np.exp((w[2 * S :] * scale[2] + base[2 * S :]).reshape(S, S))
        comb = comb / comb.sum(1, keepdims=True) + 1e-6
        for i in range(39):
            comb /= comb.sum(i % 2, keepdims=True) + 1e-6
        np.testing.assert_allclose(np.array(x[0, t]), pre @ s, atol=1e-4)
        np.testing.assert_allclose(np.array(post[0, t, :, 0]), weight, atol=1e-5)
        np.testing.assert_allclose(np.array(mix[0, t]), comb.T, atol=1e-5)
        np.testing.assert_allclose(comb.sum(0), 1, atol=1e-5)
        gate = 1 / (1 + np.exp(-(raw(head) * np.array(head.scale) + np.array(head.base)))) + 1e-6
        np.testing.assert_allclose(np.array(out[0, t]), gate @ s, atol=1e-4)
