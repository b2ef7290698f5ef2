"""A tiny random model of every architecture that mlx-lm has: data first, then how it is built.

A config has the usual numbers for the fields that an architecture's `ModelArgs` has, and what is
its own in `OWN`. What cannot be built is in `LEFT_OUT`, with the reason.
"""

import copy
import dataclasses
import importlib
import pkgutil
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models
from mlx.utils import tree_map
from mlx_lm.models.switch_layers import SwitchLinear

LAYERS, WIDTH, VOCABULARY = 4, 32, 96

USUAL: dict[str, Any] = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim"), WIDTH),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), LAYERS),
    **dict.fromkeys(("vocab_size", "num_vocab", "vocab_size_per_layer_input"), VOCABULARY),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "n_kv_heads", "num_kv_heads"), 2),
    **dict.fromkeys(("intermediate_size", "ffn_hidden_size", "n_inner"), 64),
    **dict.fromkeys(("head_dim", "v_head_dim", "qk_nope_head_dim", "qk_rope_head_dim"), 8),
    **dict.fromkeys(("kv_lora_rank", "q_lora_rank", "rotary_dim"), 8),
    **dict.fromkeys(("index_head_dim", "index_n_heads", "index_topk"), 8),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim"), 8),
    **dict.fromkeys(("linear_num_key_heads", "linear_num_value_heads"), 4),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("shared_intermediate_size", "moe_shared_expert_intermediate_size"), 32),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_topk", "moe_k", "num_experts_per_token"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "num_shared_expert"), 1),
    **dict.fromkeys(("n_group", "topk_group", "moe_layer_freq", "decoder_sparse_step"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon", "norm_eps"), 1e-5),
    **dict.fromkeys(("layernorm_epsilon", "norm_epsilon"), 1e-5),
    **dict.fromkeys(("max_position_embeddings", "n_positions", "n_ctx", "block_size"), 256),
    **dict.fromkeys(("sliding_window", "sliding_window_size", "attention_window_size"), 8),
    **dict.fromkeys(("conv_kernel", "linear_conv_kernel_dim", "short_conv_kernel_size"), 4),
    **dict.fromkeys(("attention_bias", "mlp_bias", "use_bias", "bias", "mamba_proj_bias"), False),
    **dict.fromkeys(("tie_word_embeddings", "norm_topk_prob", "use_qk_norm", "qk_norm"), True),
    "rope_theta": 10000.0,
    "partial_rotary_factor": 0.5,
    "routed_scaling_factor": 1.0,
    "mlp_only_layers": [],
    "sliding_window_pattern": 2,
}
_SLIDING = ["sliding_attention", "full_attention"] * 2
_LINEAR = ["linear_attention", "full_attention"] * 2
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}
_YARN = {
    "type": "yarn",
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_LLAMA4_SCALE = {
    "rope_type": "yarn",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": 64,
    "llama_4_scaling_beta": 0.1,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
}
_KDA = {
    "kda_layers": [1, 3],
    "full_attn_layers": [2, 4],
    "num_heads": 4,
    "head_dim": 8,
    "short_conv_kernel_size": 4,
}
_GRANITE = {
    "logits_scaling": 2.0,
    "attention_multiplier": 0.3,
    "embedding_multiplier": 2.0,
    "residual_multiplier": 0.4,
}
_LONGCAT = {
    "expert_ffn_hidden_size": 32,
    "zero_expert_type": "identity",
    "zero_expert_num": 1,
    "attention_method": "MLA",
    "mla_scale_q_lora": True,
    "mla_scale_kv_lora": True,
}
# architecture -> what its config has besides or instead; `text_config` names another architecture
OWN: dict[str, dict[str, Any]] = {
    "afm7": {"num_kv_reuse_layers": 2},
    "afmoe": {"layer_types": _SLIDING},
    "apertus": {"post_norm": False},
    "baichuan_m1": {
        "sliding_window_layers": [0, 2],
        "conv_window": 2,
        "tie_word_embeddings": False,
    },
    "bailing_hybrid": {"layer_group_size": 2, "group_norm_size": 2, "num_key_value_heads": 4},
    "bailing_moe_linear": {"layer_group_size": 2, "group_norm_size": 2},
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "clip_qkv": 8.0, "rope_theta": 10000.0},
        "ffn_config": {"ffn_hidden_size": 32, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": {"rope_scaling": _YARN},
    "deepseek_v41": {"qk_rope_head_dim": 4, "o_groups": 2, "o_lora_rank": 8, "hc_mult": 3},
    "ernie4_5_moe": {"moe_num_shared_experts": 1},
    "exaone4": {"rope_scaling": None, "sliding_window_pattern": "LG"},
    "exaone_moe": {"layer_types": _SLIDING, "is_moe_layer": [False, True, True, True]},
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_proj_bias": False,
    },
    "gear": {"layer_types": ["full_attention", "conv_mixer", "sliding_attention", "conv_mixer"]},
    "gemma3n.TextConfig": {
        "num_kv_shared_layers": 1,
        "rope_local_base_freq": 10000.0,
        "final_logit_softcapping": 30.0,
        "layer_types": _SLIDING,
        "activation_sparsity_pattern": [0.0] * 4,
        "hidden_size_per_layer_input": 8,
        "altup_num_inputs": 3,
        "altup_coef_clip": 120.0,
        "altup_correct_scale": True,
        "altup_active_idx": 0,
        "laurel_rank": 4,
    },
    "gemma4_text": {
        "num_kv_shared_layers": 0,
        "global_head_dim": 16,
        "hidden_size_per_layer_input": 8,
        "use_double_wide_mlp": False,
        "enable_moe_block": True,
        "top_k_experts": 2,
    },
    "glm4_moe": {"rope_scaling": None},
    "glm_moe_dsa": {
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "rope_parameters": _ROPE,
    },
    "gpt_neox": {"rotary_emb_base": 10000, "rotary_pct": 0.5, "num_key_value_heads": None},
    "granite": _GRANITE,
    "granitemoe": _GRANITE,
    "granitemoehybrid": {
        **_GRANITE,
        "layer_types": ["mamba", "attention"] * 2,
        "mamba_n_heads": 8,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_d_conv": 4,
        "mamba_n_groups": 1,
        "mamba_conv_bias": True,
    },
    "hunyuan": {
        "use_mixed_mlp_moe": True,
        "use_cla": True,
        "cla_share_factor": 2,
        "rope_scaling": {"type": "dynamic", "factor": 1.0, "alpha": 8.0},
    },
    "jamba": {
        "attn_layer_offset": 1,
        "attn_layer_period": 2,
        "expert_layer_offset": 1,
        "expert_layer_period": 2,
        "mamba_d_conv": 4,
        "mamba_d_state": 8,
        "mamba_expand": 2,
    },
    "kimi_k25.TextConfig": {"rope_scaling": None},
    "kimi_k3.TextArgs": {"linear_attn_config": _KDA, "attn_res_block_size": 2},
    "kimi_linear": {"linear_attn_config": _KDA, "model_max_length": 256},
    "lfm2": {
        "conv_bias": False,
        "conv_L_cache": 3,
        "block_dim": 32,
        "block_multiple_of": 8,
        "block_ffn_dim_multiplier": 1.0,
        "block_auto_adjust_ff_dim": False,
        "layer_types": ["conv", "full_attention"] * 2,
    },
    "lfm2_moe": {
        "use_expert_bias": True,
        "conv_bias": False,
        "conv_L_cache": 3,
        "layer_types": ["conv", "full_attention"] * 2,
    },
    "lille-130m": {"n_embd": 768},
    "llama4.TextArgs": {
        "attention_chunk_size": 8,
        "interleave_moe_layer_step": 2,
        "intermediate_size_mlp": 64,
        "rope_scaling": None,
        "num_experts_per_tok": 1,
    },
    "llama4_text": {"intermediate_size_mlp": 64, "no_rope_layers": [1, 1, 1, 0]},
    "longcat_flash": _LONGCAT,
    "longcat_flash_ngram": _LONGCAT,
    "mamba": {"state_size": 8, "use_conv_bias": True, "time_step_rank": 4},
    "mamba2": {
        "num_heads": 8,
        "state_size": 8,
        "n_groups": 1,
        "use_conv_bias": True,
        "time_step_limit": [0.001, 100.0],
        "time_step_rank": 4,
    },
    "mellum": {"layer_types": _SLIDING, "rope_parameters": {k: _ROPE for k in _SLIDING}},
    "mimo_v2_flash": {
        "hybrid_layer_pattern": [1, 0, 1, 0],
        "moe_layer_freq": [0, 1, 1, 1],
        "add_swa_attention_sink_bias": True,
        "add_full_attention_sink_bias": False,
        "topk_method": "noaux_tc",
        "scoring_func": "sigmoid",
        "swa_rope_theta": 10000.0,
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "swa_v_head_dim": 8,
    },
    "minicpm": {"dim_model_base": 16, "scale_depth": 1.4, "scale_emb": 2.0},
    "minicpm3": {
        "dim_model_base": 16,
        "scale_depth": 1.4,
        "scale_emb": 2.0,
        "rope_scaling": {"short_factor": [1.0] * 4, "long_factor": [1.0] * 4},
    },
    "minimax_m3_vl.TextArgs": {
        "dense_intermediate_size": 64,
        "rotary_dim": 4,
        "mlp_layer_types": ["dense", "sparse"] * 2,
        "index_n_heads": None,
    },
    "ministral3": {"rope_parameters": _LLAMA4_SCALE},
    "mistral4": {"rope_parameters": _LLAMA4_SCALE},
    "muse_spark.TextArgs": {
        "post_norm_eps": 1e-6,
        "rope_parameters": _ROPE,
        "layer_rope_theta": [10000.0, 0.0] * 2,
        "layer_types": _SLIDING,
        "final_logit_softcapping": 20.0,
        "output_multiplier": 0.5,
        "moe_hidden_size": 32,
        "num_shared_experts": 0,
    },
    "nanbeige": {"num_loops": 2},
    "nemotron": {"hidden_act": "relu2"},
    "nemotron-nas": {
        "block_configs": [
            {"attention": {"n_heads_in_group": 2}, "ffn": {"ffn_mult": 2.0}},
            {"attention": {"no_op": True}, "ffn": {"ffn_mult": 2.0}},
            {"attention": {"n_heads_in_group": 2}, "ffn": {"no_op": True}},
            {"attention": {"replace_with_linear": True}, "ffn": {"replace_with_linear": True}},
        ]
    },
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "ssm_state_size": 8,
        "n_groups": 1,
        "use_conv_bias": True,
        "layers_block_type": ["mamba", "attention", "mlp", "moe"],
    },
    "olmo_hybrid": {"linear_allow_neg_eigval": True, "layer_types": _LINEAR},
    "openelm": {
        "num_transformer_layers": LAYERS,
        "ffn_dim_divisor": 8,
        "num_query_heads": [4] * LAYERS,
        "num_kv_heads": [2] * LAYERS,
        "ffn_multipliers": [1.0, 1.5, 2.0, 2.0],
    },
    "phi3small": {
        "vocab_size": 100352,  # tokens of its own, far out, are blocked
        "dense_attention_every_n_layers": 2,
        "ff_intermediate_size": 64,
        "gegelu_limit": 20.0,
    },
    "phimoe": {
        "rope_scaling": {
            **dict.fromkeys(("long_factor", "short_factor"), [1.0] * 4),
            **dict.fromkeys(("long_mscale", "short_mscale"), 1.2),
        }
    },
    "plamo": {"n_shared_head": 2},
    "prism_hadamard_qwen35": {
        "tensor_namespace": "mlx-vlm-qwen3_5",
        "quantization": {"bits": 2, "group_size": 128, "mode": "affine"},
        "modules": [
            {"path": path, "embedding": False, "dtype": "float16", "block": 0}
            for path in ("model.layers.0.mlp.gate_proj", "model.layers.3.mlp.up_proj")
        ],
        "text_config": {"hidden_size": 128, "num_experts": 0},
    },
    "qwen": {"kv_channels": 8},
    "qwen3_5": {"text_config": {"num_experts": 0}},
    "qwen3_5.TextModelArgs": {"full_attention_interval": 2},
    "qwen3_next": {"full_attention_interval": 2},
    "recurrent_gemma": {
        "conv1d_width": 4,
        "logits_soft_cap": 30.0,
        "block_types": ["recurrent", "attention"],
        "num_key_value_heads": 1,
    },
    "rwkv7": {
        "a_low_rank_dim": 8,
        "v_low_rank_dim": 8,
        "gate_low_rank_dim": 8,
        "decay_low_rank_dim": 8,
    },
    "spark2_5": {"rope_parameters": {k: _ROPE for k in _SLIDING}, "layer_types": _SLIDING},
    "stablelm": {"use_qkv_bias": False},
    "step3p5": {
        "num_attention_groups": 2,
        "moe_top_k": 2,
        "share_expert_dim": 32,
        "layer_types": _SLIDING,
    },
}
# architecture -> whose config its `text_config` is: another one, or a class of its own
NESTED: dict[str, str] = {
    "gemma3": "gemma3_text",
    "gemma3n": "gemma3n.TextConfig",
    "gemma4": "gemma4_text",
    "kimi_k25": "kimi_k25.TextConfig",
    "kimi_k3": "kimi_k3.TextArgs",
    "kimi_vl": "kimi_vl.TextArgs",
    "lfm2-vl": "lfm2",
    "llama4": "llama4.TextArgs",
    "minimax_m3_vl": "minimax_m3_vl.TextArgs",
    "mistral3": "ministral3",
    "muse_spark": "muse_spark.TextArgs",
    "pixtral": "llama",
    "prism_hadamard_qwen35": "qwen3_5.TextModelArgs",
    "qwen2_vl": "qwen2",
    "qwen3_5": "qwen3_5.TextModelArgs",
    "qwen3_5_moe": "qwen3_5.TextModelArgs",
    "qwen3_vl": "qwen3",
    "qwen3_vl_moe": "qwen3_moe",
}
# architecture -> its sites, where it has not all four (some of its layers may have fewer)
PARALLEL = ("attn_out", "mlp_out", "resid_post")
ONE = ("attn_out", "resid_post")
WHOLE = ("resid_post",)
FEWER: dict[str, tuple[str, ...]] = {
    **dict.fromkeys(("cohere", "cohere2", "gpt_neox", "gptj", "phi", "phixtral"), PARALLEL),
    **dict.fromkeys(("deepseek_v41", "kimi_k3", "plamo"), PARALLEL),
    **dict.fromkeys(("mamba", "mamba2", "nemotron_h"), ONE),
    **dict.fromkeys(("gemma3n", "longcat_flash", "longcat_flash_ngram"), WHOLE),
}
LEFT_OUT: dict[str, str] = {
    "bitnet": "its packed layers run as a Metal kernel only",
    "iquestloopcoder": "not steered: it runs the parts of its blocks past the blocks",
    "muse_spark": "not steered: no edit reaches the norm that its blocks hand on; Metal only",
    "olmo": "mlx-lm's module needs the package ai2-olmo",
}
# what this machine's CPU cannot run in half precision: experts that are not packed, or cannot be
ONLY_FLOAT32 = {"deepseek_v41", "kimi_k3"}
# modules of mlx-lm that define no model
HELPERS = ["activations", "base", "bitlinear_layers", "cache", "gated_delta", "mla", "pipeline"]
HELPERS += ["rope_utils", "ssm", "switch_layers"]


def modules() -> list[str]:
    """Return the names of mlx-lm's modules of models, none of them imported."""
    return sorted(module.name for module in pkgutil.iter_modules(mlx_lm.models.__path__))


ARCHITECTURES = [name for name in modules() if name not in HELPERS and name not in LEFT_OUT]


def sites_of(architecture: str) -> tuple[str, ...]:
    """Return the sites that an architecture has."""
    return FEWER.get(architecture, ("attn_out", "resid_mid", "mlp_out", "resid_post"))


def config(architecture: str, **changes: Any) -> dict[str, Any]:
    """Return the config of the tiny model of an architecture."""
    name, _, kind = architecture.partition(".")
    args = getattr(importlib.import_module(f"mlx_lm.models.{name}"), kind or "ModelArgs")
    names = {field.name for field in dataclasses.fields(args)}
    made = {name: value for name, value in USUAL.items() if name in names}
    made |= {"model_type": name, **OWN.get(architecture, {}), **changes}
    if architecture in NESTED:
        made["text_config"] = config(NESTED[architecture]) | made.get("text_config", {})
    return copy.deepcopy(made)


def build(architecture: str, *, seed: int = 0, dtype: str = "float32", **changes: Any) -> nn.Module:
    """Return mlx-lm's model with random weights."""
    module = importlib.import_module(f"mlx_lm.models.{architecture}")
    model: nn.Module = module.Model(module.ModelArgs.from_dict(config(architecture, **changes)))
    mx.random.seed(seed)
    model.update(tree_map(_random, model.parameters()))
    model.set_dtype(getattr(mx, dtype))
    mx.eval(model.parameters())
    model.eval()
    return model


def build_half(architecture: str) -> nn.Module:
    """Return the model in bfloat16, its experts packed in 8 bits as a CPU wants them."""
    model = build(architecture, dtype="bfloat16")
    nn.quantize(model, group_size=32, bits=8, class_predicate=_packs)
    return model


def _packs(path: str, module: nn.Module) -> bool:
    return isinstance(module, SwitchLinear) and module.weight.shape[-1] % 32 == 0


def _random(weight: mx.array) -> mx.array:
    if not mx.issubdtype(weight.dtype, mx.floating):
        return weight
    return 0.3 * mx.random.normal(weight.shape)
