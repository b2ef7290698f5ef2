"""Qwen2 and Qwen2.5, with a residual tap at each join.

A Llama with biases on q, k and v only. Equal to mlx-lm's own definition bit for bit where no tap
edits; it knows nothing of vectors.

    logits = model(tokens, cache, taps)      # [B, T] -> [B, T, V]

As in mlx-lm, `use_sliding_window` of a config is not read: every layer attends to everything.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.rope_utils import initialize_rope

from .config import FamilyArgs
from .parts import MLP, Block, LanguageModel, Mask, Trunk, attend, heads, shard_attention, shard_mlp

__all__ = ["Model", "ModelArgs"]


@dataclass
class ModelArgs(FamilyArgs):
    """The fields of a Qwen2 `config.json` that decide the computation."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    rms_norm_eps: float
    vocab_size: int
    num_key_value_heads: int
    max_position_embeddings: int = 32768
    rope_theta: float = 1000000
    rope_traditional: bool = False
    rope_scaling: dict[str, Any] | None = None
    tie_word_embeddings: bool = True


class Attention(nn.Module):
    """Grouped-query attention with rotary positions and biases on q, k and v."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        dim = args.hidden_size
        self.n_heads = args.num_attention_heads
        self.n_kv_heads = args.num_key_value_heads
        head_dim = dim // self.n_heads
        self.scale = head_dim**-0.5
        self.q_proj = nn.Linear(dim, self.n_heads * head_dim, bias=True)
        self.k_proj = nn.Linear(dim, self.n_kv_heads * head_dim, bias=True)
        self.v_proj = nn.Linear(dim, self.n_kv_heads * head_dim, bias=True)
        self.o_proj = nn.Linear(self.n_heads * head_dim, dim, bias=False)
        self.rope = initialize_rope(
            head_dim,
            args.rope_theta,
            args.rope_traditional,
            args.rope_scaling,
            args.max_position_embeddings,
        )

    def __call__(self, x: mx.array, mask: Mask, cache: Any) -> mx.array:
        q = heads(self.q_proj(x), self.n_heads)
        k = heads(self.k_proj(x), self.n_kv_heads)
        v = heads(self.v_proj(x), self.n_kv_heads)
        return self.o_proj(attend(q, k, v, self.rope, self.scale, mask, cache))


class Model(LanguageModel):
    """A Qwen2 language model."""

    args: ModelArgs

    def __init__(self, args: ModelArgs) -> None:
        blocks = [
            Block(args, Attention(args), MLP(args.hidden_size, args.intermediate_size))
            for _ in range(args.num_hidden_layers)
        ]
        super().__init__(args, Trunk(args, blocks), tied=args.tie_word_embeddings)

    def shard(self, group: mx.distributed.Group | None = None) -> None:
        """Split attention heads and MLP columns over `group`; the residual stream stays whole."""
        group = group or mx.distributed.init()
        for block in self.layers:
            shard_attention(block.self_attn, group)
            shard_mlp(block.mlp, group)
