"""Gemma 3's language model, with a residual tap at each join.

Norms before and after each sub-layer, and what the second one leaves is what joins the residual
stream: `attn_out` and `mlp_out` are read and edited there. The join itself is `clipped_add`. Most
layers see a sliding window only and rotate with a shorter base; every `sliding_window_pattern`-th
sees everything. Equal to mlx-lm's own definition bit for bit where no tap edits; it knows nothing
of vectors.

    logits = model(tokens, cache, taps)      # [B, T] -> [B, T, V]

Embeddings are scaled by sqrt(D), those given as `input_embeddings` too. Norm weights are stored as
w and act as 1 + w.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.rope_utils import initialize_rope

from ..taps import Tap, Taps
from .config import FamilyArgs
from .parts import LanguageModel, Mask, attend, heads, through

__all__ = ["Model", "ModelArgs", "clipped_add"]


@dataclass
class ModelArgs(FamilyArgs):
    """The fields of a Gemma 3 text `config.json` that decide the computation."""

    model_type: str
    hidden_size: int = 1152
    num_hidden_layers: int = 26
    intermediate_size: int = 6912
    num_attention_heads: int = 4
    head_dim: int = 256
    rms_norm_eps: float = 1.0e-6
    vocab_size: int = 262144
    num_key_value_heads: int = 1
    rope_theta: float = 1_000_000.0
    rope_local_base_freq: float = 10_000.0
    query_pre_attn_scalar: float = 256
    sliding_window: int = 512
    sliding_window_pattern: int = 6
    max_position_embeddings: int = 32768
    rope_scaling: dict[str, Any] | None = None


@partial(mx.compile, shapeless=True)
def clipped_add(h: mx.array, r: mx.array) -> mx.array:
    """Return `h + r`, held inside the range of float16 where that is the dtype."""
    if h.dtype != mx.float16:
        return h + r
    limit = mx.finfo(mx.float16).max
    # mlx-lm adds in float32 and rounds: the same numbers, but steered more than one graph node
    return mx.clip(h + r, -limit, limit)


class RMSNorm(nn.Module):
    """Root-mean-square norm that scales by `1 + weight`."""

    def __init__(self, dim: int, eps: float) -> None:
        super().__init__()
        self.weight = mx.ones((dim,))
        self.eps = eps

    def __call__(self, x: mx.array) -> mx.array:
        return mx.fast.rms_norm(x, 1.0 + self.weight, self.eps)


class Attention(nn.Module):
    """Grouped-query attention with normed, rotated queries and keys."""

    def __init__(self, args: ModelArgs, use_sliding: bool) -> None:
        super().__init__()
        dim, head_dim = args.hidden_size, args.head_dim
        self.n_heads = args.num_attention_heads
        self.n_kv_heads = args.num_key_value_heads
        self.scale = args.query_pre_attn_scalar**-0.5
        self.q_proj = nn.Linear(dim, self.n_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, self.n_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, self.n_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.n_heads * head_dim, dim, bias=False)
        self.q_norm = RMSNorm(head_dim, args.rms_norm_eps)
        self.k_norm = RMSNorm(head_dim, args.rms_norm_eps)
        if use_sliding:
            self.rope = initialize_rope(head_dim, args.rope_local_base_freq, False)
        else:
            self.rope = initialize_rope(
                head_dim, args.rope_theta, False, args.rope_scaling, args.max_position_embeddings
            )

    def __call__(self, x: mx.array, mask: Mask, cache: Any) -> mx.array:
        q = self.q_norm(heads(self.q_proj(x), self.n_heads))
        k = self.k_norm(heads(self.k_proj(x), self.n_kv_heads))
        v = heads(self.v_proj(x), self.n_kv_heads)
        return self.o_proj(attend(q, k, v, self.rope, self.scale, mask, cache))


class MLP(nn.Module):
    """Feed-forward layer gated by a GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        return self.down_proj(nn.gelu_approx(self.gate_proj(x)) * self.up_proj(x))


class Block(nn.Module):
    """One transformer block with norms around each sub-layer: two joins, two taps."""

    def __init__(self, args: ModelArgs, use_sliding: bool) -> None:
        super().__init__()
        dim, eps = args.hidden_size, args.rms_norm_eps
        self.use_sliding = use_sliding
        self.self_attn = Attention(args, use_sliding)
        self.mlp = MLP(dim, args.intermediate_size)
        self.input_layernorm = RMSNorm(dim, eps)
        self.post_attention_layernorm = RMSNorm(dim, eps)
        self.pre_feedforward_layernorm = RMSNorm(dim, eps)
        self.post_feedforward_layernorm = RMSNorm(dim, eps)

    def __call__(self, h: mx.array, mask: Mask, cache: Any, attn: Tap, mlp: Tap) -> mx.array:
        r = self.self_attn(self.input_layernorm(h), mask, cache)
        h = attn.join(h, self.post_attention_layernorm(r), clipped_add)
        r = self.mlp(self.pre_feedforward_layernorm(h))
        return mlp.join(h, self.post_feedforward_layernorm(r), clipped_add)


class Trunk(nn.Module):
    """Everything but the head."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.sliding_window = args.sliding_window
        self.scale = args.hidden_size**0.5
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [
            Block(args, use_sliding=(layer + 1) % args.sliding_window_pattern != 0)
            for layer in range(args.num_hidden_layers)
        ]
        self.norm = RMSNorm(args.hidden_size, args.rms_norm_eps)

    def __call__(
        self,
        tokens: mx.array,
        cache: list[Any] | None,
        taps: Taps,
        input_embeddings: mx.array | None,
    ) -> mx.array:
        h = self.embed_tokens(tokens) if input_embeddings is None else input_embeddings
        h = h * mx.array(self.scale, mx.bfloat16).astype(h.dtype)  # rounded as it was in training
        normed: mx.array = self.norm(through(self.layers, h, cache, taps, self.sliding_window))
        return normed


class Model(LanguageModel):
    """A Gemma 3 text model. Whether its head is the embedding shows in the weights only."""

    args: ModelArgs

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args, Trunk(args), tied=False)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Drop what is not used, and the head of the model if the checkpoint has none."""
        if "lm_head.weight" not in weights:
            self.pop("lm_head", None)
        return super().sanitize(weights)
