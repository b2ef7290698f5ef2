"""Llama 2 and 3, Mistral and SmolLM2, with a residual tap at each join.

Equal to mlx-lm's own definition bit for bit where no tap edits. It knows nothing of vectors:
`taps` is asked for the tap of each join and the residual add is done by it.

    logits = model(tokens, cache, taps)      # [B, T] -> [B, T, V]

Weight names are those of the checkpoints. Sliding windows per layer as in `layer_types`.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_linear
from mlx_lm.models.activations import swiglu
from mlx_lm.models.base import (
    BaseModelArgs,
    create_attention_mask,
    scaled_dot_product_attention,
)
from mlx_lm.models.cache import KVCache, RotatingKVCache
from mlx_lm.models.rope_utils import initialize_rope

from ..taps import NO_TAPS, Tap, Taps

__all__ = ["Model", "ModelArgs"]

Mask = Any  # an array, "causal" or None, as mlx-lm makes them


@dataclass
class ModelArgs(BaseModelArgs):
    """The fields of a Llama `config.json` that decide the computation."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    rms_norm_eps: float
    vocab_size: int
    head_dim: int | None = None
    max_position_embeddings: int | None = None
    num_key_value_heads: int | None = None
    attention_bias: bool = False
    mlp_bias: bool = False
    rope_theta: float = 10000
    rope_traditional: bool = False
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = True
    layer_types: list[str] | None = None
    sliding_window: int | None = None

    def __post_init__(self) -> None:
        self.num_key_value_heads = self.num_key_value_heads or self.num_attention_heads
        self.head_dim = self.head_dim or self.hidden_size // self.num_attention_heads
        self.layer_types = self.layer_types or ["full_attention"] * self.num_hidden_layers


class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        assert args.head_dim is not None
        assert args.num_key_value_heads is not None
        dim, bias = args.hidden_size, args.attention_bias
        self.n_heads = args.num_attention_heads
        self.n_kv_heads = args.num_key_value_heads
        self.scale = args.head_dim**-0.5
        self.q_proj = nn.Linear(dim, self.n_heads * args.head_dim, bias=bias)
        self.k_proj = nn.Linear(dim, self.n_kv_heads * args.head_dim, bias=bias)
        self.v_proj = nn.Linear(dim, self.n_kv_heads * args.head_dim, bias=bias)
        self.o_proj = nn.Linear(self.n_heads * args.head_dim, dim, bias=bias)
        self.rope = initialize_rope(
            args.head_dim,
            args.rope_theta,
            args.rope_traditional,
            args.rope_scaling,
            args.max_position_embeddings,
        )

    def __call__(self, x: mx.array, mask: Mask, cache: Any) -> mx.array:
        B, T, _ = x.shape
        q, k, v = self.q_proj(x), self.k_proj(x), self.v_proj(x)
        q = q.reshape(B, T, self.n_heads, -1).transpose(0, 2, 1, 3)
        k = k.reshape(B, T, self.n_kv_heads, -1).transpose(0, 2, 1, 3)
        v = v.reshape(B, T, self.n_kv_heads, -1).transpose(0, 2, 1, 3)
        if cache is None:
            q, k = self.rope(q), self.rope(k)
        else:
            q, k = self.rope(q, offset=cache.offset), self.rope(k, offset=cache.offset)
            k, v = cache.update_and_fetch(k, v)
        out = scaled_dot_product_attention(q, k, v, cache=cache, scale=self.scale, mask=mask)
        return self.o_proj(out.transpose(0, 2, 1, 3).reshape(B, T, -1))


class MLP(nn.Module):
    """Gated feed-forward layer."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        dim, hidden, bias = args.hidden_size, args.intermediate_size, args.mlp_bias
        self.gate_proj = nn.Linear(dim, hidden, bias=bias)
        self.down_proj = nn.Linear(hidden, dim, bias=bias)
        self.up_proj = nn.Linear(dim, hidden, bias=bias)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(swiglu(self.gate_proj(x), self.up_proj(x)))


class Block(nn.Module):
    """One transformer block: two joins, two taps."""

    def __init__(self, args: ModelArgs, use_sliding: bool) -> None:
        super().__init__()
        self.use_sliding = use_sliding
        self.self_attn = Attention(args)
        self.mlp = MLP(args)
        self.input_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.post_attention_layernorm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(self, h: mx.array, mask: Mask, cache: Any, attn: Tap, mlp: Tap) -> mx.array:
        h = attn.join(h, self.self_attn(self.input_layernorm(h), mask, cache))
        return mlp.join(h, self.mlp(self.post_attention_layernorm(h)))


class Trunk(nn.Module):
    """Everything but the head."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        assert args.layer_types is not None
        self.sliding_window = args.sliding_window
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Block(args, kind == "sliding_attention") for kind in args.layer_types]
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(
        self,
        tokens: mx.array,
        cache: list[Any] | None,
        taps: Taps,
        input_embeddings: mx.array | None,
    ) -> mx.array:
        h = self.embed_tokens(tokens) if input_embeddings is None else input_embeddings
        caches = cache if cache is not None else [None] * len(self.layers)
        masks: dict[bool, Mask] = {}
        for block, c in zip(self.layers, caches, strict=True):
            if block.use_sliding not in masks:  # one mask per kind, before any cache is updated
                window = self.sliding_window if block.use_sliding else None
                masks[block.use_sliding] = create_attention_mask(h, c, window_size=window)
        for i, (block, c) in enumerate(zip(self.layers, caches, strict=True)):
            h = block(h, masks[block.use_sliding], c, taps.at(i, "attn"), taps.at(i, "mlp"))
        normed: mx.array = self.norm(h)
        return normed


class Model(nn.Module):
    """A Llama-type language model."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.args = args
        self.model_type = args.model_type
        self.model = Trunk(args)
        if not args.tie_word_embeddings:
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
        head = self.model.embed_tokens.as_linear if self.args.tie_word_embeddings else self.lm_head
        logits: mx.array = head(h)
        return logits

    @property
    def layers(self) -> list[Block]:
        """The blocks, in order."""
        return self.model.layers

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
        if self.args.tie_word_embeddings:
            weights.pop("lm_head.weight", None)
        return weights

    def shard(self, group: mx.distributed.Group | None = None) -> None:
        """Split attention heads and MLP columns over `group`; the residual stream stays whole."""
        group = group or mx.distributed.init()
        for block in self.layers:
            attention, mlp = block.self_attn, block.mlp
            attention.n_heads //= group.size()
            attention.n_kv_heads //= group.size()
            for module, names, way in (
                (attention, ("q_proj", "k_proj", "v_proj"), "all-to-sharded"),
                (attention, ("o_proj",), "sharded-to-all"),
                (mlp, ("gate_proj", "up_proj"), "all-to-sharded"),
                (mlp, ("down_proj",), "sharded-to-all"),
            ):
                for name in names:
                    linear = getattr(module, name)
                    setattr(module, name, shard_linear(linear, way, group=group))
