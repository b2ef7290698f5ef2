"""DeepSeek-V4 (Flash), with a residual tap at each join of its four streams.

Four residual streams run through the model (`hyper_connections`). A block reads a mixture of them
twice, for its attention (`deepseek_v4_attention`) and for its experts, and each output is written
to all four: these are the joins. `attn_out` and `mlp_out` are what a sub-layer puts out,
`[B, T, D]`, before it is spread over the streams; `resid_mid` and `resid_post` are the streams,
`[B, T, 4, D]`. What is added to all streams is carried on unchanged by every later join; what is
added to a sub-layer's output reaches stream j times a weight in (0, 2) of its own.

In the first layers experts are looked up by the token's id, so steering cannot change the choice
there; in the others it can.

    logits = model(tokens, cache, taps)      # [B, T] -> [B, T, V]

Checked against transformers' definition on a tiny random model; no real weights have been run. It
knows nothing of vectors. Multi-token prediction (`mtp.*`) is left out.
"""

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.switch_layers import SwitchGLU

from ..errors import MlxsteerError
from ..taps import Tap, Taps
from .config import FamilyArgs
from .deepseek_v4_attention import Attention
from .deepseek_v4_cache import DeepseekV4BatchCache, DeepseekV4Cache
from .deepseek_v4_files import Packing, is_wide, packing, sanitized
from .deepseek_v4_prompt import TEMPLATE
from .hyper_connections import HyperConnection, HyperHead, spread
from .parts import LanguageModel
from .rounding import FP4_BLOCK, FP8_BLOCK

__all__ = ["Model", "ModelArgs"]

KINDS = {0: "window", 4: "csa", 128: "hca"}
RATES = {"csa": "compressed_sparse_attention", "hca": "heavily_compressed_attention"}

# What a config may say, where the definition knows one way only.
FIXED = {
    "attention_bias": False,
    "n_shared_experts": 1,
    "norm_topk_prob": True,
    "num_key_value_heads": 1,
    "scoring_func": "sqrtsoftplus",
    "tie_word_embeddings": False,
}


@dataclass
class ModelArgs(FamilyArgs):
    """The fields of a DeepSeek-V4 `config.json` that decide the computation.

    `compress_ratios` may be longer than the layers are: the rest is of multi-token prediction.
    `compress_rates` is transformers' way to name other rates than 4 and 128.
    `activation_rounding` is no field of any config; it is off where the reference does not round.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    qk_rope_head_dim: int
    q_lora_rank: int
    o_groups: int
    o_lora_rank: int
    moe_intermediate_size: int
    n_routed_experts: int
    num_experts_per_tok: int
    num_hash_layers: int
    routed_scaling_factor: float
    swiglu_limit: float
    rms_norm_eps: float
    hc_mult: int
    hc_sinkhorn_iters: int
    hc_eps: float
    sliding_window: int
    compress_ratios: list[int]
    index_n_heads: int
    index_head_dim: int
    index_topk: int
    rope_theta: float
    compress_rope_theta: float
    max_position_embeddings: int
    rope_scaling: dict[str, Any] | None = None
    compress_rates: dict[str, int] | None = None
    attention_bias: bool = False
    n_shared_experts: int = 1
    norm_topk_prob: bool = True
    num_key_value_heads: int = 1
    scoring_func: str = "sqrtsoftplus"
    tie_word_embeddings: bool = False
    activation_rounding: bool = True

    def __post_init__(self) -> None:
        for name, known in FIXED.items():
            if getattr(self, name) != known:
                raise MlxsteerError(f"{name} is {getattr(self, name)!r}; known is only {known!r}")
        scaling = self.rope_scaling
        if scaling and not ({"factor", "original_max_position_embeddings"} <= scaling.keys()):
            raise MlxsteerError(f"rope_scaling is {scaling!r}; take a config that was not cut down")
        if scaling and scaling.get("type", scaling.get("rope_type")) != "yarn":
            raise MlxsteerError(f"rope_scaling is {scaling!r}; known is only the type 'yarn'")
        ratios = self.compress_ratios[: self.num_hidden_layers]
        if len(ratios) < self.num_hidden_layers or not KINDS.keys() >= set(ratios):
            raise MlxsteerError(
                f"compress_ratios are {self.compress_ratios!r}; each of the "
                f"{self.num_hidden_layers} layers needs one of 0, 4 and 128"
            )
        key, index = self.head_dim - self.qk_rope_head_dim, self.index_head_dim
        if self.activation_rounding and (key % FP8_BLOCK or index % FP4_BLOCK):
            raise MlxsteerError(
                f"keys of {key} values and {index} of the indexer cannot be rounded in blocks of "
                f"{FP8_BLOCK} and {FP4_BLOCK}; say activation_rounding = false"
            )

    @property
    def layer_kinds(self) -> list[tuple[str, int]]:
        """What the attention of each layer is, and how many tokens it pools."""
        rates = self.compress_rates or {}
        kinds = [(KINDS[ratio], ratio) for ratio in self.compress_ratios[: self.num_hidden_layers]]
        return [(kind, rates.get(RATES.get(kind, ""), ratio)) for kind, ratio in kinds]


class ClampedSwiGLU(nn.Module):
    """The gated product of an expert: both factors are held within a limit, in float32."""

    def __init__(self, limit: float) -> None:
        super().__init__()
        self.limit = limit or float("inf")

    def __call__(self, up: mx.array, gate: mx.array) -> mx.array:
        wide = nn.silu(mx.minimum(gate.astype(mx.float32), self.limit))
        clipped = mx.clip(up.astype(mx.float32), -self.limit, self.limit)
        product: mx.array = (wide * clipped).astype(up.dtype)
        return product


class SharedExpert(nn.Module):
    """The expert that reads every token."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        dim, hidden = args.hidden_size, args.moe_intermediate_size
        self.gate_proj = nn.Linear(dim, hidden, bias=False)
        self.up_proj = nn.Linear(dim, hidden, bias=False)
        self.down_proj = nn.Linear(hidden, dim, bias=False)
        self.activation = ClampedSwiGLU(args.swiglu_limit)

    def __call__(self, x: mx.array) -> mx.array:
        out: mx.array = self.down_proj(self.activation(self.up_proj(x), self.gate_proj(x)))
        return out


class Gate(nn.Module):
    """Chooses the experts of each token: by its id in the first layers, else by their scores.

    The correction takes part in the choice only, never in the weights.
    """

    def __init__(self, args: ModelArgs, *, hashed: bool) -> None:
        super().__init__()
        self.top, self.scale = args.num_experts_per_tok, args.routed_scaling_factor
        self.weight = mx.zeros((args.n_routed_experts, args.hidden_size))
        if hashed:
            self.tid2eid = mx.zeros((args.vocab_size, self.top), dtype=mx.int32)
        else:
            self.e_score_correction_bias = mx.zeros((args.n_routed_experts,))

    def __call__(self, x: mx.array, tokens: mx.array) -> tuple[mx.array, mx.array]:
        """Return the experts and their weights, `[B, T, k]`."""
        scores = mx.sqrt(nn.softplus(x.astype(mx.float32) @ self.weight.T))
        if "tid2eid" in self:
            chosen = self.tid2eid[tokens]
        else:
            corrected = scores + self.e_score_correction_bias
            chosen = mx.argpartition(-corrected, self.top - 1, axis=-1)[..., : self.top]
        weights = mx.take_along_axis(scores, chosen, axis=-1)
        return chosen, weights / (weights.sum(axis=-1, keepdims=True) + 1e-20) * self.scale


class Experts(nn.Module):
    """A router, its experts and the one that is shared."""

    def __init__(self, args: ModelArgs, *, hashed: bool) -> None:
        super().__init__()
        self.gate = Gate(args, hashed=hashed)
        self.switch_mlp = SwitchGLU(
            args.hidden_size,
            args.moe_intermediate_size,
            args.n_routed_experts,
            activation=ClampedSwiGLU(args.swiglu_limit),
        )
        self.shared_experts = SharedExpert(args)

    def __call__(self, x: mx.array, tokens: mx.array) -> mx.array:
        chosen, weights = self.gate(x, tokens)
        routed = (self.switch_mlp(x, chosen).astype(mx.float32) * weights[..., None]).sum(axis=-2)
        return (routed + self.shared_experts(x)).astype(x.dtype)


class Block(nn.Module):
    """One block: two mixtures of the streams are read, two outputs joined to all of them."""

    def __init__(self, args: ModelArgs, layer: int) -> None:
        super().__init__()
        self.attn = Attention(args, *args.layer_kinds[layer])
        self.ffn = Experts(args, hashed=layer < args.num_hash_layers)
        self.attn_norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.ffn_norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)
        self.attn_hc = HyperConnection(args)
        self.ffn_hc = HyperConnection(args)

    def __call__(
        self,
        streams: mx.array,
        tokens: mx.array,
        cache: DeepseekV4Cache | DeepseekV4BatchCache,
        attn: Tap,
        mlp: Tap,
    ) -> mx.array:
        x, post, mix = self.attn_hc(streams)
        streams = attn.join(streams, self.attn(self.attn_norm(x), cache), spread, post, mix)
        x, post, mix = self.ffn_hc(streams)
        return mlp.join(streams, self.ffn(self.ffn_norm(x), tokens), spread, post, mix)


class Trunk(nn.Module):
    """Everything but the head."""

    def __init__(self, args: ModelArgs) -> None:
        super().__init__()
        self.streams = args.hc_mult
        self.embed_tokens = nn.Embedding(args.vocab_size, args.hidden_size)
        self.layers = [Block(args, layer) for layer in range(args.num_hidden_layers)]
        self.hc_head = HyperHead(args)
        self.norm = nn.RMSNorm(args.hidden_size, eps=args.rms_norm_eps)

    def __call__(
        self,
        tokens: mx.array,
        cache: list[Any] | None,
        taps: Taps,
        input_embeddings: mx.array | None,
    ) -> mx.array:
        h = self.embed_tokens(tokens) if input_embeddings is None else input_embeddings
        streams = mx.repeat(h[:, :, None], self.streams, axis=2)
        caches = cache if cache is not None else [DeepseekV4Cache() for _ in self.layers]
        for i, (block, c) in enumerate(zip(self.layers, caches, strict=True)):
            streams = block(streams, tokens, c, taps.at(i, "attn"), taps.at(i, "mlp"))
        normed: mx.array = self.norm(self.hc_head(streams))
        return normed


class Model(LanguageModel):
    """A DeepSeek-V4.

    `UNREAD` is how the names of what is left out begin, `CHAT_TEMPLATE` is for tokenizers without
    one.
    """

    UNREAD = ("mtp.", "model.mtp.")
    CHAT_TEMPLATE = TEMPLATE

    args: ModelArgs

    def __init__(self, args: ModelArgs) -> None:
        super().__init__(args, Trunk(args), tied=False)

    def make_cache(self) -> list[Any]:
        """Return one empty cache per block."""
        return [DeepseekV4Cache() for _ in self.layers]

    def sanitize(self, weights: dict[str, mx.array]) -> dict[str, mx.array]:
        """Take the official files, packed as they are, or a conversion of the Hub."""
        read = {name: w for name, w in weights.items() if not name.startswith(self.UNREAD)}
        return sanitized(read, self.args)

    @staticmethod
    def packing(config: dict[str, Any]) -> Packing | None:
        """Return how the files of a config are packed, where mlx-lm's loader does not see it."""
        return packing(config)

    @property
    def cast_predicate(self) -> Any:
        """Whether a parameter may be in the dtype of the streams; the others stay in float32."""
        return lambda name: not is_wide(name)
