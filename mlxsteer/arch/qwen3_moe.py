"""Qwen3 mixture of experts, with a residual tap at each join.

The attention of Qwen3; in sparse layers a router picks a few experts per token and the weighted sum
of their outputs joins the residual stream, so `mlp_out` is that sum. Equal to mlx-lm's own
definition bit for bit where no tap edits; it knows nothing of vectors.

    logits = model(tokens, cache, taps)      # [B, T] -> [B, T, V]

As in mlx-lm, `rope_scaling` is not used; a config that has one is remarked upon.
"""

import logging
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.nn.layers.distributed import shard_inplace, sum_gradients
from mlx_lm.models.switch_layers import SwitchGLU

from .config import FamilyArgs
from .parts import MLP, Block, LanguageModel, Trunk, shard_attention, shard_mlp
from .qwen3 import Attention

__all__ = ["Model", "ModelArgs"]

log = logging.getLogger("mlxsteer")


@dataclass
class ModelArgs(FamilyArgs):
    """The fields of a Qwen3-MoE `config.json` that decide the computation."""

    model_type: str
    hidden_size: int
    num_hidden_layers: int
    intermediate_size: int
    num_attention_heads: int
    num_experts: int
    num_experts_per_tok: int
    decoder_sparse_step: int
    mlp_only_layers: list[int]
    moe_intermediate_size: int
    rms_norm_eps: float
    vocab_size: int
    num_key_value_heads: int
    head_dim: int
    rope_theta: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    norm_topk_prob: bool
    rope_scaling: dict[str, Any] | None = None

    def is_sparse(self, layer: int) -> bool:
        """Whether a layer has experts instead of one MLP."""
        if layer in self.mlp_only_layers or self.num_experts == 0:
            return False
        return (layer + 1) % self.decoder_sparse_step == 0


class Experts(nn.Module):
    """A router and its experts."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.top_k = args.num_experts_per_tok
        self.norm_topk_prob = args.norm_topk_prob
        self.gate = nn.Linear(args.hidden_size, args.num_experts, bias=False)
        self.switch_mlp = SwitchGLU(args.hidden_size, args.moe_intermediate_size, args.num_experts)
        self.sharding_group: mx.distributed.Group | None = None

    def __call__(self, x: mx.array) -> mx.array:
        if self.sharding_group is not None:
            x = sum_gradients(self.sharding_group)(x)
        gates = mx.softmax(self.gate(x), axis=-1, precise=True)
        chosen = mx.argpartition(gates, kth=-self.top_k, axis=-1)[..., -self.top_k :]
        chosen = mx.stop_gradient(chosen)
        scores = mx.take_along_axis(gates, chosen, axis=-1)
        if self.norm_topk_prob:
            scores = scores / mx.sum(scores, axis=-1, keepdims=True)
        y = self.switch_mlp(x, chosen)
        y = (y * scores[..., None]).sum(axis=-2).astype(y.dtype)
        if self.sharding_group is not None:
            y = mx.distributed.all_sum(y, group=self.sharding_group)
        return y


class Model(LanguageModel):
    """A Qwen3 mixture of experts."""

    args: ModelArgs

    def __init__(self, args: ModelArgs) -> None:
        if args.rope_scaling:
            log.warning("the rope_scaling of this qwen3_moe config is not used (mlx-lm does so)")
        blocks = [
            Block(
                args,
                Attention(args, args.rope_theta, None),
                Experts(args)
                if args.is_sparse(layer)
                else MLP(args.hidden_size, args.intermediate_size),
            )
            for layer in range(args.num_hidden_layers)
        ]
        super().__init__(args, Trunk(args, blocks), tied=args.tie_word_embeddings)

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Stack the experts of each layer, which checkpoints keep one by one."""
        weights = super().sanitize(weights)
        for layer in range(self.args.num_hidden_layers):
            mlp = f"model.layers.{layer}.mlp"
            if f"{mlp}.experts.0.up_proj.weight" not in weights:
                continue
            for name in ("up_proj", "down_proj", "gate_proj"):
                experts = [
                    weights.pop(f"{mlp}.experts.{e}.{name}.weight")
                    for e in range(self.args.num_experts)
                ]
                weights[f"{mlp}.switch_mlp.{name}.weight"] = mx.stack(experts)
        return weights

    def shard(self, group: mx.distributed.Group | None = None) -> None:
        """Split heads, MLP columns and those of each expert over `group`; routers stay whole."""
        group = group or mx.distributed.init()
        for block in self.layers:
            shard_attention(block.self_attn, group)
            if isinstance(block.mlp, MLP):
                shard_mlp(block.mlp, group)
                continue
            block.mlp.sharding_group = group
            for name in ("gate_proj", "up_proj"):
                shard_inplace(block.mlp.switch_mlp[name], "all-to-sharded", group=group)
            shard_inplace(block.mlp.switch_mlp.down_proj, "sharded-to-all", group=group)
