"""What the families have in common, so that a family's file shows only what is its own.

Attention after its projections, the gated MLP, the pre-norm block with its two taps, the walk
through the blocks, the language model with its head, and the splitting over devices. It knows
nothing of configs, checkpoints or vectors.

Shapes: `x`, `h` are `[B, T, D]`, heads `[B, H, T, d]`.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_linear
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import create_attention_mask, scaled_dot_product_attention
from mlx_lm.models.cache import KVCache, RotatingKVCache

from ..taps import NO_TAPS, Tap, Taps

__all__ = [
    "MLP",
    "Args",
    "Block",
    "LanguageModel",
    "Mask",
    "Trunk",
    "attend",
    "heads",
    "shard_attention",
    "shard_linears",
    "shard_mlp",
    "through",
]

Mask = Any  # an array, "causal" or None, as mlx-lm makes them


class Args(Protocol):
    """What these parts read of a family's `ModelArgs`."""

    model_type: str
    hidden_size: int
    vocab_size: int
    rms_norm_eps: float


def heads(x: mx.array, count: int) -> mx.array:
    """Split `[B, T, H*d]` into heads, `[B, H, T, d]`."""
    B, T, _ = x.shape
    return x.reshape(B, T, count, -1).transpose(0, 2, 1, 3)


def attend(
    q: mx.array, k: mx.array, v: mx.array, rope: Any, scale: float, mask: Mask, cache: Any
) -> mx.array:
    """Rotate, extend the cache, attend and join the heads again: `[B, T, H*d]`."""
    if cache is None:
        q, k = rope(q), rope(k)
    else:
        q, k = rope(q, offset=cache.offset), rope(k, offset=cache.offset)
        k, v = cache.update_and_fetch(k, v)
    out = scaled_dot_product_attention(q, k, v, cache=cache, scale=scale, mask=mask)
    B, _, T, _ = out.shape
    joined: mx.array = out.transpose(0, 2, 1, 3).reshape(B, T, -1)
    return joined


class MLP(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, dim: int, hidden: int, bias: bool = False) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, dim, bias=bias)
        self.up_proj = nn.Linear(dim, hidden, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """One transformer block with a norm before each sub-layer: two joins, two taps."""

    def __init__(
        self, args: Args, attention: nn.Module, mlp: nn.Module, use_sliding: bool = False
    ) -> None:
        super().__init__()
        self.use_sliding = use_sliding
        self.self_attn = attention
        self.mlp = mlp
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, h: mx.array, mask: Mask, cache: Any, attn: Tap, mlp: Tap) -> mx.array:
        h = attn.join(h, self.self_attn(self.input_layernorm(h), mask, cache))
        return mlp.join(h, self.mlp(self.post_attention_layernorm(h)))


def through(
    blocks: Sequence[nn.Module],
    h: mx.array,
    cache: list[Any] | None,
    taps: Taps,
    window: int | None = None,
) -> mx.array:
    """Carry the residual stream through all blocks; `window` is that of the sliding ones."""
    caches = cache if cache is not None else [None] * len(blocks)
    masks: dict[bool, Mask] = {}
    for block, c in zip(blocks, caches, strict=True):
        if block.use_sliding not in masks:  # one mask per kind, before any cache is updated
            reach = window if block.use_sliding else None
            masks[block.use_sliding] = create_attention_mask(h, c, window_size=reach)
    for i, (block, c) in enumerate(zip(blocks, caches, strict=True)):
        h = block(h, masks[block.use_sliding], c, taps.at(i, "attn"), taps.at(i, "mlp"))
    return h


class Trunk(nn.Module):
    """Everything but the head: embedding, blocks, final norm."""

    def __init__(
        self, args: Args, blocks: Sequence[nn.Module], sliding_window: int | None = None
    ) -> None:
        super().__init__()
        self.sliding_window = sliding_window
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = list(blocks)
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(
        self,
        tokens: mx.array,
        cache: list[Any] | None,
        taps: Taps,
        input_embeddings: mx.array | None,
    ) -> mx.array:
        h = self.embed_tokens(tokens) if input_embeddings is None else input_embeddings
        normed: mx.array = self.norm(through(self.layers, h, cache, taps, self.sliding_window))
        return normed


class LanguageModel(nn.Module):
    """A trunk and its head: the embedding itself (`tied`), or `lm_head`."""

    def __init__(self, args: Args, trunk: nn.Module, *, tied: bool) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = trunk
        if not tied:
            self.lm_head = nn.Linear(args.hidden_size, args.vocab_size, bias=False)

    def __call__(
        self,
        tokens: mx.array,
        cache: list[Any] | None = None,
        taps: Taps | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Return logits `[B, T, V]` for `tokens` `[B, T]`, with the residual joined by `taps`."""
        h = self.model(tokens, cache, NO_TAPS if taps is None else taps, input_embeddings)
        head = self.lm_head if "lm_head" in self else self.model.embed_tokens.as_linear
        logits: mx.array = head(h)
        return logits

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks, in order."""
        blocks: list[nn.Module] = self.model.layers
        return blocks

    def make_cache(self) -> list[Any]:
        """Return one empty KV cache per block."""
        window = self.model.sliding_window
        return [
            RotatingKVCache(max_size=window) if block.use_sliding else KVCache()
            for block in self.layers
        ]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Drop what checkpoints carry and the computation does not use."""
        weights = {k: w for k, w in weights.items() if "rotary_emb.inv_freq" not in k}
        if "lm_head" not in self:
            weights.pop("lm_head.weight", None)
        return weights


def shard_linears(
    module: nn.Module, split: Sequence[str], joined: Sequence[str], group: mx.distributed.Group
) -> None:
    """Split the outputs of the layers `split` and the inputs of `joined` over `group`."""
    for names, way in ((split, "all-to-sharded"), (joined, "sharded-to-all")):
        for name in names:
            setattr(module, name, shard_linear(getattr(module, name), way, group=group))


def shard_attention(attention: nn.Module, group: mx.distributed.Group) -> None:
    """Split the heads over `group`; the residual stream stays whole."""
    attention.n_heads //= group.size()
    attention.n_kv_heads //= group.size()
    shard_linears(attention, ("q_proj", "k_proj", "v_proj"), ("o_proj",), group)


def shard_mlp(mlp: nn.Module, group: mx.distributed.Group) -> None:
    """Split the columns of a gated MLP over `group`."""
    shard_linears(mlp, ("gate_proj", "up_proj"), ("down_proj",), group)
