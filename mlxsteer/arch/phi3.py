"""Phi-3, Phi-3.5 and Phi-4 (also mini), with a residual tap at each join.

A Llama whose q, k and v are one projection and whose gate and up projections are one; positions
may turn only a part of each head, with stretched wavelengths for long contexts. Equal to mlx-lm's
own definition bit for bit where no tap edits; it knows nothing of vectors.

    logits = model(tokens, cache, taps)      # [B, T] -> [B, T, V]

As in mlx-lm, `longrope` always stretches by its long factors and no window limits attention.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.activations import swiglu
from mlx_lm.models.rope_utils import SuScaledRoPE

from ..errors import MlxsteerError
from .config import FamilyArgs
from .parts import Block, LanguageModel, Mask, Trunk, attend, heads

__all__ = ["Model", "ModelArgs"]

# type of rope_scaling -> what it must bring
ROPES = {"linear": "factor", "longrope": "long_factor", "su": "long_factor"}


@dataclass
class ModelArgs(FamilyArgs):
    """The fields of a Phi-3 `config.json` that decide the computation."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    rms_norm_eps: float
    vocab_size: int
    num_key_value_heads: int | None = None
    rope_theta: float = 10000
    rope_traditional: bool = False
    rope_scaling: dict[str, Any] | None = None
    partial_rotary_factor: float = 1.0
    max_position_embeddings: int = 131072
    original_max_position_embeddings: int = 4096
    tie_word_embeddings: bool = False

    def __post_init__(self) -> None:
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.rope_scaling:
            kind = self.rope_scaling.get("type")
            if kind not in ROPES or ROPES[kind] not in self.rope_scaling:
                raise MlxsteerError(
                    f"rope_scaling of type {kind!r} with {sorted(self.rope_scaling)} is not known "
                    "for phi3; it is longrope or su with long_factor, or linear with factor"
                )


def make_rope(args: ModelArgs, dims: int) -> nn.Module:
    """Return the rotary positions of the first `dims` coordinates of each head."""
    scaling = args.rope_scaling or {}
    if scaling and ROPES[scaling["type"]] == "long_factor":
        return SuScaledRoPE(
            dims,
            base=args.rope_theta,
            max_position_embeddings=args.max_position_embeddings,
            original_max_position_embeddings=args.original_max_position_embeddings,
            long_factor=scaling["long_factor"],
        )
    scale = 1 / scaling["factor"] if scaling else 1.0
    return nn.RoPE(dims, traditional=args.rope_traditional, base=args.rope_theta, scale=scale)


class Attention(nn.Module):
    """Grouped-query attention with one projection for q, k and v."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        assert args.num_key_value_heads is not None
        self.n_heads = args.num_attention_heads
        self.n_kv_heads = args.num_key_value_heads
        self.head_dim = head_dim = args.hidden_size // self.n_heads
        self.scale = head_dim**-0.5
        rows = (self.n_heads + 2 * self.n_kv_heads) * head_dim
        self.qkv_proj = nn.Linear(args.hidden_size, rows, bias=False)
        self.o_proj = nn.Linear(self.n_heads * head_dim, args.hidden_size, bias=False)
        self.rope = make_rope(args, int(head_dim * args.partial_rotary_factor))

    def __call__(self, x: mx.array, mask: Mask, cache: Any) -> mx.array:
        q_end = self.n_heads * self.head_dim
        k_end = q_end + self.n_kv_heads * self.head_dim
        q, k, v = mx.split(self.qkv_proj(x), [q_end, k_end], axis=-1)
        q, k, v = heads(q, self.n_heads), heads(k, self.n_kv_heads), heads(v, self.n_kv_heads)
        return self.o_proj(attend(q, k, v, self.rope, self.scale, mask, cache))


class MLP(nn.Module):
    """Gated feed-forward layer with one projection for gate and up."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.gate_up_proj = nn.Linear(dim, 2 * hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)

    def __call__(self, x: mx.array) -> mx.array:
        gate, up = mx.split(self.gate_up_proj(x), 2, axis=-1)
        return self.down_proj(swiglu(gate, up))


class Model(LanguageModel):
    """A Phi-3 language model."""

    args: ModelArgs

    def __init__(self, args: ModelArgs) -> None:
        blocks = [
            Block(args, Attention(args), MLP(args.hidden_size, args.intermediate_size))
            for _ in range(args.num_hidden_layers)
        ]
        super().__init__(args, Trunk(args, blocks), tied=args.tie_word_embeddings)
