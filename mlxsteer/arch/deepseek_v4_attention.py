"""The attention of DeepSeek-V4: a short window of keys, and of all before it pooled entries.

One key per token, which is the value too, is shared by all heads. Beyond the window of `W` tokens a
layer sees entries, each pooled from `rate` tokens by a softmax of learned gates:

| layer | entries |
| --- | --- |
| `window` | none |
| `hca` | all that are complete, of disjoint windows (rate 128) |
| `csa` | the `k` that the indexer scores highest, of windows that overlap by half (rate 4) |

An entry is complete, and visible, once its last token was read. Because keys are values, outputs
carry positions; they are rotated back. Layers with entries rotate with a base and a scaling of
their own, an entry at the position of its first token.

What needs no past (the projections) is computed for all rows and tokens at once; the rest goes
through `cache.over`, row by row where rows differ and at most 512 tokens at a time. It knows
nothing of residual streams, experts or vectors.

Shapes: `x` `[B, T, D]`, queries `[B, T, H, d]`, keys `[B, K, d]`.
"""

from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.mla import MultiLinear
from mlx_lm.models.rope_utils import YarnRoPE

from .deepseek_v4_cache import DeepseekV4BatchCache, DeepseekV4Cache, Pool
from .rounding import round_fp4, round_fp8

__all__ = ["Attention", "Compressor", "Indexer", "rotate"]

SCORES = 1 << 28  # of the indexer, at once: 1 GB

F32 = mx.float32


class Args(Protocol):
    """What the attention reads of `ModelArgs`."""

    hidden_size: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    sliding_window: int
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    rms_norm_eps: float
    rope_theta: float
    compress_rope_theta: float
    rope_scaling: dict[str, Any] | None
    activation_rounding: bool


def make_rope(args: Args, kind: str) -> YarnRoPE:
    """Return the rotation of a layer: only those with entries are scaled, none is stretched."""
    scaling = args.rope_scaling or {}
    if kind == "window":
        return YarnRoPE(args.qk_rope_head_dim, traditional=True, base=args.rope_theta)
    return YarnRoPE(
        args.qk_rope_head_dim,
        traditional=True,
        base=args.compress_rope_theta,
        scaling_factor=float(scaling.get("factor", 1)),
        original_max_position_embeddings=scaling.get("original_max_position_embeddings", 4096),
        beta_fast=scaling.get("beta_fast", 32),
        beta_slow=scaling.get("beta_slow", 1),
        mscale=0,
        mscale_all_dim=0,
    )


def rotate(
    x: mx.array, rope: YarnRoPE, offset: int, every: int = 1, *, back: bool = False
) -> mx.array:
    """Rotate the last values of `x` `[..., T, d]`, which stand at `every * (offset + t)`."""
    turned = rope(x[..., -rope.dims :].astype(F32), offset=offset, scale=float(every), inverse=back)
    return mx.concatenate([x[..., : -rope.dims], turned.astype(x.dtype)], axis=-1)


def round_key(key: mx.array, rope: YarnRoPE) -> mx.array:
    """Round what of a key does not carry its position."""
    return mx.concatenate([round_fp8(key[..., : -rope.dims]), key[..., -rope.dims :]], axis=-1)


def round_index(x: mx.array) -> mx.array:
    """Spread the indexer's queries and keys evenly over their values, and round them."""
    return round_fp4(mx.hadamard_transform(x))


class Compressor(nn.Module):
    """Pools every `rate` tokens into one entry of width `dim`."""

    def __init__(self, args: Args, rate: int, dim: int, *, overlap: bool, index: bool) -> None:
        super().__init__()
        width = 2 * dim if overlap else dim
        self.rate, self.overlap, self.index = rate, overlap, index
        self.rounding = args.activation_rounding
        self.wkv = nn.Linear(args.hidden_size, width, bias=False)
        self.wgate = nn.Linear(args.hidden_size, width, bias=False)
        self.ape = mx.zeros((rate, width))
        self.norm = nn.RMSNorm(dim, eps=args.rms_norm_eps)

    def project(self, x: mx.array) -> tuple[mx.array, mx.array]:
        """Return what is pooled and its gates, `[B, T, w]`, float32."""
        wide = x.astype(F32)
        return self.wkv(wide), self.wgate(wide)

    def close(
        self, pool: Pool, rope: YarnRoPE, dtype: mx.Dtype, values: mx.array, gates: mx.array
    ) -> None:
        """Put the entries of the windows that these tokens close into the pool.

            entry = norm(sum_t softmax_t(gate_t + ape_t) value_t)

        With overlap the sum is over the first halves of the window before and the second halves of
        this one; before the first window there is nothing.
        """
        values, gates = pool.full(values, gates, self.rate)
        if values.shape[1] == 0:
            return
        values = values.reshape(values.shape[0], -1, self.rate, values.shape[-1])
        gates = gates.reshape(values.shape) + self.ape
        if self.overlap:
            values, gates = _overlapping(pool, values, gates)
        entries = (values * mx.softmax(gates, axis=2, precise=True)).sum(axis=2)
        entries = rotate(self.norm(entries.astype(dtype)), rope, len(pool), self.rate)
        if self.rounding:
            entries = round_index(entries) if self.index else round_key(entries, rope)
        pool.add(entries)


def _overlapping(pool: Pool, values: mx.array, gates: mx.array) -> tuple[mx.array, mx.array]:
    """Put the first halves of each window before the second halves of the next.

    The first halves of the last window are kept: the next one may close in another call.
    """
    first, second = mx.split(values, 2, axis=-1)
    first_gate, second_gate = mx.split(gates, 2, axis=-1)
    if pool.last_values is None or pool.last_gates is None:
        before, before_gate = mx.zeros_like(first[:, :1]), mx.full(first[:, :1].shape, -mx.inf)
    else:
        before, before_gate = pool.last_values, pool.last_gates
    pool.last_values, pool.last_gates = first[:, -1:], first_gate[:, -1:]
    shifted = mx.concatenate([before, first[:, :-1]], axis=1)
    shifted_gate = mx.concatenate([before_gate, first_gate[:, :-1]], axis=1)
    return (
        mx.concatenate([shifted, second], axis=2),
        mx.concatenate([shifted_gate, second_gate], axis=2),
    )


class Indexer(nn.Module):
    """Chooses for every token the entries that its heads see, by scores of its own small heads."""

    def __init__(self, args: Args, rate: int) -> None:
        super().__init__()
        self.heads, self.dim, self.top = args.index_n_heads, args.index_head_dim, args.index_topk
        self.rounding = args.activation_rounding
        self.wq_b = nn.Linear(args.q_lora_rank, self.heads * self.dim, bias=False)
        self.weights_proj = nn.Linear(args.hidden_size, self.heads, bias=False)
        self.compressor = Compressor(args, rate, self.dim, overlap=True, index=True)

    def project(self, x: mx.array, low: mx.array) -> tuple[mx.array, ...]:
        """Return queries `[B, T, h, d]`, the weights of heads `[B, T, h]`, and what is pooled."""
        q = self.wq_b(low).reshape(*low.shape[:2], self.heads, self.dim)
        weights = self.weights_proj(x).astype(F32) * (self.heads * self.dim) ** -0.5
        return q, weights, *self.compressor.project(x)

    def pick(
        self, pool: Pool, start: int, rope: YarnRoPE, q: mx.array, weights: mx.array
    ) -> mx.array | None:
        """Return the entries of each token, `[B, T, k]`, -1 for none; None is all that are ready.

        score_w = sum_h weight_h relu(q_h . key_w)
        """
        if pool.entries is None or len(pool) <= self.top:
            return None
        q = rotate(q.swapaxes(1, 2), rope, start)
        if self.rounding:
            q = round_index(q)
        keys = pool.entries[:, None].astype(F32).swapaxes(-1, -2)
        ready = (start + 1 + mx.arange(q.shape[2])) // self.compressor.rate
        step = max(1, SCORES // (self.heads * len(pool)))
        picks = [
            self._best(q[:, :, i : i + step], keys, weights[:, i : i + step], ready[i : i + step])
            for i in range(0, q.shape[2], step)
        ]
        return mx.concatenate(picks, axis=1)

    def _best(self, q: mx.array, keys: mx.array, weights: mx.array, ready: mx.array) -> mx.array:
        scores = mx.maximum(q.astype(F32) @ keys, 0)  # [B, h, T, n]
        total = (scores * weights.swapaxes(1, 2)[..., None]).sum(axis=1)
        total = mx.where(mx.arange(total.shape[-1]) < ready[:, None], total, -mx.inf)
        best = mx.argpartition(-total, self.top - 1, axis=-1)[..., : self.top].astype(mx.int32)
        return mx.where(best < ready[:, None], best, -1)


class Attention(nn.Module):
    """One layer's attention; `kind` is `window`, `hca` or `csa`."""

    def __init__(self, args: Args, kind: str, rate: int) -> None:
        super().__init__()
        dim, eps = args.hidden_size, args.rms_norm_eps
        self.heads, self.dim, self.groups = args.num_attention_heads, args.head_dim, args.o_groups
        self.size, self.rate, self.eps = args.sliding_window, rate, eps
        self.rounding = args.activation_rounding
        self.wq_a = nn.Linear(dim, args.q_lora_rank, bias=False)
        self.q_norm = nn.RMSNorm(args.q_lora_rank, eps=eps)
        self.wq_b = nn.Linear(args.q_lora_rank, self.heads * self.dim, bias=False)
        self.wkv = nn.Linear(dim, self.dim, bias=False)
        self.kv_norm = nn.RMSNorm(self.dim, eps=eps)
        self.wo_a = MultiLinear(self.heads * self.dim // self.groups, args.o_lora_rank, self.groups)
        self.wo_b = nn.Linear(self.groups * args.o_lora_rank, dim, bias=False)
        self.attn_sink = mx.zeros((self.heads,))
        self.rope = make_rope(args, kind)
        if kind != "window":
            csa = kind == "csa"
            self.compressor = Compressor(args, rate, self.dim, overlap=csa, index=False)
        if kind == "csa":
            self.indexer = Indexer(args, rate)

    def __call__(self, x: mx.array, cache: DeepseekV4Cache | DeepseekV4BatchCache) -> mx.array:
        B, T, _ = x.shape
        low = self.q_norm(self.wq_a(x))
        q = self.wq_b(low).reshape(B, T, self.heads, self.dim)
        parts = [mx.fast.rms_norm(q, None, self.eps), self.kv_norm(self.wkv(x))]
        if "compressor" in self:
            parts += self.compressor.project(x)
        if "indexer" in self:
            parts += self.indexer.project(x, low)
        out = cache.over(self._attend, tuple(parts))  # [B, T, H, d]
        out = out.reshape(B, T, self.groups, -1).swapaxes(1, 2)
        out = self.wo_a(out).swapaxes(1, 2)
        return self.wo_b(out.reshape(B, T, -1))

    def _attend(
        self, cache: DeepseekV4Cache, q: mx.array, key: mx.array, *parts: mx.array
    ) -> mx.array:
        """Attend with what was projected of the next tokens: `[B, T, H, d]`."""
        start, T, rope = cache.offset, q.shape[1], self.rope
        q = rotate(q.swapaxes(1, 2), rope, start)
        key = rotate(key, rope, start)
        if self.rounding:
            key = round_key(key, rope)
        keys = cache.slide(key, self.size)
        pick = None
        if "compressor" in self:
            self.compressor.close(cache.pool, rope, q.dtype, *parts[:2])
        if "indexer" in self:
            index_q, weights, *pooled = parts[2:]
            self.indexer.compressor.close(cache.index, rope, q.dtype, *pooled)
            pick = self.indexer.pick(cache.index, start, rope, index_q, weights)
        entries = cache.pool.entries
        if entries is not None and pick is not None:
            out = self._sparse(q, keys, entries, pick)
        else:
            out = self._dense(q, keys, entries, start + mx.arange(T)[:, None])
        return rotate(out.astype(q.dtype), rope, start, back=True).swapaxes(1, 2)

    def _dense(
        self, q: mx.array, keys: mx.array, entries: mx.array | None, here: mx.array
    ) -> mx.array:
        """Let every query see the keys of its window and all entries that are complete."""
        T, K = q.shape[2], keys.shape[1]
        age = mx.arange(T)[:, None] - (mx.arange(K) - (K - T))
        mask = (age >= 0) & (age < self.size)
        if entries is not None:
            complete = mx.arange(entries.shape[1]) < (here + 1) // self.rate
            mask = mx.concatenate([mask, complete], axis=-1)
            keys = mx.concatenate([keys, entries], axis=1)
        return self._scores(q, keys[:, None], mask)

    def _sparse(self, q: mx.array, keys: mx.array, entries: mx.array, pick: mx.array) -> mx.array:
        """Gather the window and the chosen entries of each query, whatever the context is long."""
        B, H, T, d = q.shape
        width = min(self.size, keys.shape[1])
        row = keys.shape[1] - T + mx.arange(T)[:, None] - width + 1 + mx.arange(width)
        near = keys[:, mx.maximum(row, 0).flatten()].reshape(B, T, width, d)
        far = mx.take_along_axis(entries[:, None], mx.maximum(pick, 0)[..., None], axis=2)
        seen = mx.concatenate([near, far], axis=2).reshape(B * T, 1, -1, d)
        mask = mx.concatenate([mx.broadcast_to(row >= 0, near.shape[:3]), pick >= 0], axis=-1)
        alone = q.swapaxes(1, 2).reshape(B * T, H, 1, d)
        out = self._scores(alone, seen, mask.reshape(B * T, 1, 1, -1))
        return out.reshape(B, T, H, d).swapaxes(1, 2)

    def _scores(self, q: mx.array, keys: mx.array, mask: mx.array) -> mx.array:
        """Softmax over what is seen and a sink per head, in float32.

        Without a fused kernel of this head size MLX would round the scores to the dtype of `q`.
        """
        keys = keys.astype(F32)
        out: mx.array = mx.fast.scaled_dot_product_attention(
            q.astype(F32),
            keys,
            keys,
            scale=self.dim**-0.5,
            mask=mask,
            sinks=self.attn_sink.astype(F32),
        )
        return out
