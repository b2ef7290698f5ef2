"""Hyper-connections: several residual streams, mixed anew around every sub-layer.

With streams `S_i`, a sub-layer `f` and weights that are functions of the streams themselves,

    x    = sum_i pre_i S_i                     what the sub-layer reads
    S_j <- post_j f(x) + sum_i comb_ij S_i     the join, and so the tap

(Zhu et al. 2024, arXiv:2409.19606). `comb` is made doubly stochastic by Sinkhorn's iteration, which
ends on the columns: these sum to one within 1e-6, so what is added to all streams is carried on
unchanged by every later join. All of it is computed in float32, whatever the streams are.

The weights are mlx-lm's (DeepSeek-V4.1 has the same). On a CPU it iterates in plain operations,
which is what the tests here hold against the equation; on a GPU in one kernel of its own, WHICH HAS
NOT BEEN RUN HERE. This module knows nothing of attention, experts or vectors.

Shapes: streams `[B, T, S, D]`, `x` and `f` `[B, T, D]`.
"""

from typing import Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models import deepseek_v41

__all__ = ["HyperConnection", "HyperHead", "spread"]


class Args(Protocol):
    """What these parts read of a family's `ModelArgs`."""

    hidden_size: int
    rms_norm_eps: float
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float


@mx.compile
def spread(streams: mx.array, r: mx.array, post: mx.array, mix: mx.array) -> mx.array:
    """Return the join `post_j r + sum_i mix_ji streams_i`, in the dtype of the streams.

    Args:
        streams: `[B, T, S, D]`.
        r: the sub-layer's output, `[B, T, D]` or `[B, T, 1, D]`.
        post: `[B, T, S, 1]`, float32.
        mix: `comb` transposed, `[B, T, S, S]`, float32.
    """
    r = r if r.ndim == streams.ndim else r[..., None, :]
    carried = mix @ streams.astype(mx.float32)
    return (post * r.astype(mx.float32) + carried).astype(streams.dtype)


def _read(streams: mx.array, pre: mx.array) -> mx.array:
    """Return `sum_i pre_i streams_i` in the dtype of the streams."""
    return (pre[..., None] * streams.astype(mx.float32)).sum(axis=2).astype(streams.dtype)


class HyperConnection(deepseek_v41.HyperConnection):
    """What one sub-layer reads of the streams, and how its output is joined to them."""

    def __init__(self, args: Args) -> None:
        super().__init__(args)  # type: ignore[arg-type]  # these fields are all it reads

    def __call__(self, streams: mx.array) -> tuple[mx.array, mx.array, mx.array]:
        """Return `x` `[B, T, D]`, and `post` and `mix` as `spread` takes them."""
        pre, post, comb = super().__call__(streams)
        return _read(streams, pre), post[..., None], comb.swapaxes(-1, -2)


class HyperHead(nn.Module):
    """The one stream `[B, T, D]` that the final norm and the head read."""

    def __init__(self, args: Args) -> None:
        super().__init__()
        self.norm_eps, self.eps = args.rms_norm_eps, args.hc_eps
        self.fn = mx.zeros((args.hc_mult, args.hc_mult * args.hidden_size))
        self.base = mx.zeros((args.hc_mult,))
        self.scale = mx.ones((1,))

    def __call__(self, streams: mx.array) -> mx.array:
        flat = mx.fast.rms_norm(streams.flatten(-2).astype(mx.float32), None, self.norm_eps)
        pre = mx.sigmoid((flat @ self.fn.T) * self.scale + self.base) + self.eps
        return _read(streams, pre)
