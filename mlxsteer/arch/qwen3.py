"""Qwen3 (dense), with a residual tap at each join.

A Llama with norms on the heads of q and k. Equal to mlx-lm's own definition bit for bit where no
tap edits; it knows nothing of vectors.

    logits = model(tokens, cache, taps)      # [B, T] -> [B, T, V]
"""

from dataclasses import dataclass
from typing import Any, Protocol

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.rope_utils import initialize_rope

from .config import FamilyArgs
from .parts import MLP, Block, LanguageModel, Mask, Trunk, attend, heads, shard_attention, shard_mlp

__all__ = ["Attention", "Model", "ModelArgs"]


class AttentionArgs(Protocol):
    """What the attention reads: the same in the dense models and the mixtures of experts."""

    hidden_size: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    rms_norm_eps: float
    max_position_embeddings: int


@dataclass
class ModelArgs(FamilyArgs):
    """The fields of a Qwen3 `config.json` that decide the computation."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    rms_norm_eps: float
    vocab_size: int
    num_key_value_heads: int
    max_position_embeddings: int
    head_dim: int
    rope_theta: float
    tie_word_embeddings: bool
    rope_scaling: dict[str, Any] | None = None


class Attention(nn.Module):
    """Grouped-query attention with normed, rotated queries and keys."""

    def __init__(
        self, args: AttentionArgs, rope_theta: float, rope_scaling: dict[str, Any] | None
    ) -> None:
        super().__init__()
        dim, head_dim = args.hidden_size, args.head_dim
        self.n_heads = args.num_attention_heads
        self.n_kv_heads = args.num_key_value_heads
        self.scale = head_dim**-0.5
        self.q_proj = nn.Linear(dim, self.n_heads * head_dim, bias=False)
        self.k_proj = nn.Linear(dim, self.n_kv_heads * head_dim, bias=False)
        self.v_proj = nn.Linear(dim, self.n_kv_heads * head_dim, bias=False)
        self.o_proj = nn.Linear(self.n_heads * head_dim, dim, bias=False)
        self.q_norm = nn.RMSNorm(head_dim, eps=args.rms_norm_eps)
        self.k_norm = nn.RMSNorm(head_dim, eps=args.rms_norm_eps)
        self.rope = initialize_rope(
            head_dim, rope_theta, False, rope_scaling, args.max_position_embeddings
        )

    def __call__(self, x: mx.array, mask: Mask, cache: Any) -> mx.array:
        B, T, _ = x.shape
        q = self.q_norm(self.q_proj(x).reshape(B, T, self.n_heads, -1)).transpose(0, 2, 1, 3)
        k = self.k_norm(self.k_proj(x).reshape(B, T, self.n_kv_heads, -1)).transpose(0, 2, 1, 3)
        v = heads(self.v_proj(x), self.n_kv_heads)
        return self.o_proj(attend(q, k, v, self.rope, self.scale, mask, cache))


class Model(LanguageModel):
    """A Qwen3 language model."""

    args: ModelArgs

    def __init__(self, args: ModelArgs) -> None:
        blocks = [
            Block(
                args,
                Attention(args, args.rope_theta, args.rope_scaling),
                MLP(args.hidden_size, args.intermediate_size),
            )
            for _ in range(args.num_hidden_layers)
        ]
        super().__init__(args, Trunk(args, blocks), tied=args.tie_word_embeddings)

    def shard(self, group: mx.distributed.Group | None = None) -> None:
        """Split attention heads and MLP columns over `group`; the residual stream stays whole."""
        group = group or mx.distributed.init()
        for block in self.layers:
            shard_attention(block.self_attn, group)
            shard_mlp(block.mlp, group)
