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
from mlx_lm.models.rope_utils import initialize_rope

from .config import FamilyArgs
from .parts import MLP, Block, LanguageModel, Mask, Trunk, attend, heads, shard_attention, shard_mlp

__all__ = ["Model", "ModelArgs"]


@dataclass
class ModelArgs(FamilyArgs):
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
        q = heads(self.q_proj(x), self.n_heads)
        k = heads(self.k_proj(x), self.n_kv_heads)
        v = heads(self.v_proj(x), self.n_kv_heads)
        return self.o_proj(attend(q, k, v, self.rope, self.scale, mask, cache))


class Model(LanguageModel):
    """A Llama-type language model."""

    args: ModelArgs

    def __init__(self, args: ModelArgs) -> None:
        assert args.layer_types is not None
        blocks = [
            Block(
                args,
                Attention(args),
                MLP(args.hidden_size, args.intermediate_size, args.mlp_bias),
                use_sliding=kind == "sliding_attention",
            )
            for kind in args.layer_types
        ]
        trunk = Trunk(args, blocks, args.sliding_window)
        super().__init__(args, trunk, tied=args.tie_word_embeddings)

    def shard(self, group: mx.distributed.Group | None = None) -> None:
        """Split attention heads and MLP columns over `group`; the residual stream stays whole."""
        group = group or mx.distributed.init()
        for block in self.layers:
            shard_attention(block.self_attn, group)
            shard_mlp(block.mlp, group)
