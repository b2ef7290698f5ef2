"""What the metadata of a GGUF file say of its model, in the words of a Hugging Face `config.json`.

One function per `general.architecture`. Every key is checked as it is read, and keys that would
change the computation in a way that our definitions do not know are refused, so that nothing is
lost without a word. It knows which tensors a file has, nothing of their weights or of MLX.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np

from .errors import MlxsteerError
from .gguf import Header

__all__ = ["CONFIGS", "LONG_FACTORS", "ROPE_FACTORS", "SHORT_FACTORS"]

Config = dict[str, Any]

# One number per rotated pair, by which its wavelength is stretched: Llama 3.1 and later;
ROPE_FACTORS = "rope_freqs.weight"
# Phi-3 and Phi-4-mini, in long contexts and in short ones.
LONG_FACTORS, SHORT_FACTORS = "rope_factors_long.weight", "rope_factors_short.weight"

# Keys that change the computation -> the values that leave it as it is.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.scale": (),
    "attn_logit_softcapping": (0.0,),
    "embedding_scale": (1.0,),
    "expert_group_count": (0, 1),
    "expert_shared_count": (0,),
    "final_logit_softcapping": (0.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "rope.scale_linear": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "rope.scaling.yarn_beta_fast": (32.0,),
    "rope.scaling.yarn_beta_slow": (1.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "use_parallel_residual": (False,),
}
GEMMA_WINDOWS = 6  # of the layers of a Gemma 3, every sixth sees everything
GEMMA_27B = 62  # layers; the only Gemma 3 that does not scale queries by the size of a head


class _Metadata:
    """The keys of one architecture, checked as they are read."""

    def __init__(self, header: Header) -> None:
        self.header, self.prefix = header, header.metadata["general.architecture"]

    def fail(self, key: str, wanted: str) -> MlxsteerError:
        return MlxsteerError(
            f"{self.header.path}: {self.prefix}.{key} is {self.get(key)!r}; supported is {wanted}"
        )

    def get(self, key: str, default: Any = None) -> Any:
        return self.header.metadata.get(f"{self.prefix}.{key}", default)

    def whole(self, key: str, default: int | None = None) -> int:
        value = self.get(key, default)
        if type(value) is not int or not 0 < value < 1 << 31:
            raise self.fail(key, "a positive whole number")
        return value

    def real(self, key: str, default: float | None = None) -> float:
        """A positive number as someone wrote it before it became a float32: 1e-05."""
        value = self.get(key, default)
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.fail(key, "a positive number")
        return float(str(np.float32(value)))

    def choice(self, key: str, default: Any, *values: Any) -> Any:
        value = self.get(key, default)
        if value not in values:
            raise self.fail(key, " or ".join(map(repr, values)))
        return value


def _common(meta: _Metadata) -> Config:
    """What all families have."""
    header, tensors = meta.header, meta.header.tensors
    if header.metadata.get("split.count", 1) != 1:
        raise MlxsteerError(
            f"{header.path} is one part of a split model; join them: llama-gguf-split --merge"
        )
    if "token_embd.weight" not in tensors:
        raise MlxsteerError(f"{header.path} holds no model: tensor 'token_embd.weight' is missing")
    layers = meta.whole("block_count")
    if layers > len(tensors):
        raise meta.fail("block_count", f"at most the {len(tensors)} tensors of the file")
    if meta.prefix != "qwen3moe":
        meta.choice("expert_count", 0, 0)
    for key, values in NEUTRAL.items():
        if meta.get(key) is not None and meta.get(key) not in values:
            raise meta.fail(key, " or ".join([*map(repr, values), "no such key"]))
    heads = meta.whole("attention.head_count")
    kv_heads = meta.whole("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise meta.fail("attention.head_count_kv", f"a divisor of {heads}, the heads")
    return {
        "hidden_size": meta.whole("embedding_length"),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "rms_norm_eps": meta.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": meta.real("rope.freq_base", 10000.0),
        "max_position_embeddings": meta.whole("context_length"),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
    }


def _head_dim(meta: _Metadata, config: Config, own: bool, partly: bool = False) -> int:
    """The size of a head: that of the metadata, or if not `own` what the width leaves for each.

    All of it is rotated, unless `partly` allows for less.
    """
    even = max(1, config["hidden_size"] // config["num_attention_heads"])
    head_dim = meta.whole("attention.key_length", even) if own else even
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        value = meta.whole(key, head_dim)
        if partly and key == "rope.dimension_count" and value < head_dim and value % 2 == 0:
            continue
        if value != head_dim or head_dim % 2:
            raise meta.fail(key, f"{head_dim}, the size of a head, and even")
    return head_dim


def _scaling(meta: _Metadata, *kinds: str) -> Config | None:
    """How positions are stretched: not at all, or by one of these kinds."""
    factor = meta.get("rope.scaling.factor")
    kind = meta.get("rope.scaling.type", "none" if factor is None else "linear")
    if kind not in ("none", *kinds):
        wanted = ", ".join(("none", *kinds))
        more = f" or a tensor {ROPE_FACTORS!r}" if meta.prefix == "llama" else ""
        raise meta.fail("rope.scaling.type", wanted + more)
    if meta.get("rope.scaling.attn_factor") is not None:
        raise meta.fail("rope.scaling.attn_factor", "no such key")
    if kind == "none":
        return None
    scaling: Config = {"type": kind, "factor": meta.real("rope.scaling.factor")}
    if kind == "yarn":
        original = meta.whole("rope.scaling.original_context_length")
        scaling["original_max_position_embeddings"] = original
    return scaling


def _llama(header: Header) -> Config:
    meta = _Metadata(header)
    config = _common(meta)
    return {
        "model_type": "llama",
        **config,
        "intermediate_size": meta.whole("feed_forward_length"),
        "head_dim": _head_dim(meta, config, own=True),
        "rope_scaling": _scaling(meta, "linear", "yarn"),
        "attention_bias": "blk.0.attn_q.bias" in header.tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in header.tensors,
    }


def _qwen2(header: Header) -> Config:
    meta = _Metadata(header)
    config = _common(meta)
    _head_dim(meta, config, own=False)
    return {
        "model_type": "qwen2",
        **config,
        "intermediate_size": meta.whole("feed_forward_length"),
        "rope_scaling": _scaling(meta, "linear", "yarn"),
        "qkv_bias": True,
    }


def _qwen3(header: Header) -> Config:
    meta = _Metadata(header)
    config = _common(meta)
    return {
        "model_type": "qwen3",
        **config,
        "intermediate_size": meta.whole("feed_forward_length"),
        "head_dim": _head_dim(meta, config, own=True),
        "rope_scaling": _scaling(meta, "linear", "yarn"),
    }


def _qwen3moe(header: Header) -> Config:
    meta = _Metadata(header)
    config = _common(meta)
    experts, used = meta.whole("expert_count"), meta.whole("expert_used_count")
    if used > experts:
        raise meta.fail("expert_used_count", f"at most {experts}, the experts")
    meta.choice("expert_gating_func", 1, 1)  # a softmax over all experts
    meta.choice("expert_weights_scale", 1.0, 0.0, 1.0)
    width = meta.whole("expert_feed_forward_length")
    return {
        "model_type": "qwen3_moe",
        **config,
        "intermediate_size": meta.whole("feed_forward_length", width),  # no layer has it
        "head_dim": _head_dim(meta, config, own=True),
        "rope_scaling": _scaling(meta),
        "num_experts": experts,
        "num_experts_per_tok": used,
        "moe_intermediate_size": width,
        "norm_topk_prob": meta.choice("expert_weights_norm", True, True, False),
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gemma3(header: Header) -> Config:
    meta = _Metadata(header)
    config = _common(meta)
    head_dim = _head_dim(meta, config, own=True)
    per_head = config["hidden_size"] // config["num_attention_heads"]
    windowed = meta.get("attention.sliding_window", 0) != 0
    return {
        "model_type": "gemma3_text",
        **config,
        "intermediate_size": meta.whole("feed_forward_length"),
        "head_dim": head_dim,
        "query_pre_attn_scalar": (
            per_head if config["num_hidden_layers"] == GEMMA_27B else head_dim
        ),
        "sliding_window": meta.whole("attention.sliding_window") if windowed else 512,
        "sliding_window_pattern": (
            meta.whole("attention.sliding_window_pattern", GEMMA_WINDOWS) if windowed else 1
        ),
        "rope_local_base_freq": meta.real("rope.freq_base_swa", 10000.0),
        "rope_scaling": _scaling(meta, "linear"),
    }


def _phi3(header: Header) -> Config:
    meta = _Metadata(header)
    config = _common(meta)
    head_dim = _head_dim(meta, config, own=False, partly=True)
    rotated = meta.whole("rope.dimension_count", head_dim)
    longest = config["max_position_embeddings"]
    original = meta.whole("rope.scaling.original_context_length", longest)
    scaling: Config | None = None
    if LONG_FACTORS in header.tensors or SHORT_FACTORS in header.tensors:
        _check_longrope(meta, rotated, longest, original)
        scaling = {"type": "longrope"}  # the factors are tensors, which are read later
    else:
        scaling = _scaling(meta, "linear")
    return {
        "model_type": "phi3",
        **config,
        "intermediate_size": meta.whole("feed_forward_length"),
        "partial_rotary_factor": _share(rotated, head_dim),
        "original_max_position_embeddings": original,
        "rope_scaling": scaling,
    }


def _share(rotated: int, head_dim: int) -> float:
    """The share that comes back as `rotated` when it is multiplied and cut off."""
    share = rotated / head_dim
    return share if int(head_dim * share) == rotated else math.nextafter(share, 1)


def _check_longrope(meta: _Metadata, rotated: int, longest: int, original: int) -> None:
    for name in (LONG_FACTORS, SHORT_FACTORS):
        info = meta.header.tensors.get(name)
        if info is None or info.shape != (rotated // 2,):
            raise MlxsteerError(
                f"{meta.header.path}: tensor {name!r} is missing or not of the shape "
                f"({rotated // 2},); download it again"
            )
    meta.choice("rope.scaling.type", "longrope", "longrope", "none")
    if original < 2:
        raise meta.fail("rope.scaling.original_context_length", "a number from 2")
    stretch = longest / original
    loud = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
    if not math.isclose(meta.real("rope.scaling.attn_factor", loud), loud, rel_tol=1e-4):
        raise meta.fail("rope.scaling.attn_factor", f"{loud:.5f}, which follows from the context")


CONFIGS: dict[str, Callable[[Header], Config]] = {
    "gemma3": _gemma3,
    "llama": _llama,
    "phi3": _phi3,
    "qwen2": _qwen2,
    "qwen3": _qwen3,
    "qwen3moe": _qwen3moe,
}
