"""A tiny DeepSeek-V4 whose weights are drawn by the official name of each tensor.

`golden/make_deepseek_v4.py` draws the same for transformers' definition, so that only what that one
computes is stored. Nothing is left at zero or one, so that no term of the computation can hide.
"""

import functools
import re
import zlib
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten

from mlxsteer.arch.deepseek_v4 import Model, ModelArgs

Arrays = dict[str, np.ndarray]

SEED = 0
LAYERS, WIDTH, VOCABULARY = 6, 64, 96
PROMPT, TOTAL = 41, 53  # neither is a multiple of a rate

# As the official config.json has it; `compress_rates` makes the long windows 16 instead of 128.
CONFIG: dict[str, Any] = {
    "model_type": "deepseek_v4",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "qk_rope_head_dim": 8,
    "q_lora_rank": 32,
    "o_groups": 2,
    "o_lora_rank": 16,
    "moe_intermediate_size": 32,
    "n_routed_experts": 8,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "num_hash_layers": 3,
    "scoring_func": "sqrtsoftplus",
    "norm_topk_prob": True,
    "routed_scaling_factor": 1.5,
    "swiglu_limit": 1.0,  # low, so that it holds something
    "rms_norm_eps": 1e-6,
    "hc_mult": 4,
    "hc_sinkhorn_iters": 20,
    "hc_eps": 1e-6,
    "sliding_window": 8,
    "compress_ratios": [0, 0, 4, 128, 4, 128, 0],  # one more than layers, as in the official one
    "compress_rates": {"compressed_sparse_attention": 4, "heavily_compressed_attention": 16},
    "index_n_heads": 8,
    "index_head_dim": 16,
    "index_topk": 3,  # low, so that something is left out from 16 tokens on
    "rope_theta": 10000,
    "compress_rope_theta": 160000,
    "rope_scaling": {
        "type": "yarn",
        "factor": 16,
        "beta_fast": 32,
        "beta_slow": 1,
        "original_max_position_embeddings": 65536,
    },
    "max_position_embeddings": 1048576,
    "num_nextn_predict_layers": 1,
    "tie_word_embeddings": False,
    "attention_bias": False,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "activation_rounding": False,  # transformers does not round
}

# The windows and rates of the released model, and tokens that fill them several times.
RELEASED: dict[str, Any] = {"sliding_window": 128, "compress_rates": None, "index_topk": 24}
LONG, LONG_AT = 900, [126, 127, 128, 300, 511, 512, 513, 767, 768, 899]

# Our names -> the official ones, written down apart from `sanitize`.
OFFICIAL = (
    (r"^model\.", ""),
    (r"^lm_head\.", "head."),
    (r"^embed_tokens\.", "embed."),
    (r"^hc_head\.", "hc_head_"),
    (r"\.(attn|ffn)_hc\.", r".hc_\1_"),
    (r"\.e_score_correction_bias$", ".bias"),
    (r"\.gate_proj\.", ".w1."),
    (r"\.down_proj\.", ".w2."),
    (r"\.up_proj\.", ".w3."),
)


def long_ids() -> np.ndarray:
    return np.random.default_rng([SEED, 2]).integers(2, VOCABULARY, (1, LONG))


def official_name(name: str) -> str:
    for ours, official in OFFICIAL:
        name = re.sub(ours, official, name)
    return name


def draw(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the values of one official tensor."""
    rng = np.random.default_rng([SEED, zlib.crc32(name.encode())])
    if name.endswith("tid2eid"):
        experts = CONFIG["n_routed_experts"]
        return np.stack([rng.permutation(experts)[: shape[1]] for _ in range(shape[0])])
    x = rng.standard_normal(shape)
    if name.endswith("norm.weight"):
        x = 1.0 + 0.2 * x
    elif name.endswith("_scale"):
        x = 0.7 + 0.2 * np.abs(x)
    elif name.endswith(("attn_sink", ".ape", "_base")):
        x = 0.5 * x
    elif name.endswith("gate.bias"):
        x = 0.2 * x
    elif name != "embed.weight":
        x = x / np.sqrt(shape[-1])
    return x.astype(np.float32)


def parameters(model: nn.Module) -> dict[str, mx.array]:
    return dict(tree_flatten(model.parameters()))


def official(model: nn.Module) -> Arrays:
    """Return all tensors of a model under their official names."""
    found: Arrays = {}
    for name, array in parameters(model).items():
        shape = tuple(array.shape)
        if ".switch_mlp." in name:
            for e in range(shape[0]):
                one = official_name(name.replace("switch_mlp", f"experts.{e}"))
                found[one] = draw(one, shape[1:])
        elif ".wo_a." in name:
            one = official_name(name)
            found[one] = draw(one, (shape[0] * shape[1], shape[2]))
        else:
            one = official_name(name)
            found[one] = draw(one, shape)
    return found


def deepseek(dtype: str = "float32", **changes: Any) -> Model:
    """Return the model; `4bit` is bfloat16 with packed weights."""
    model = Model(ModelArgs.from_dict({**CONFIG, **changes}))
    drawn = {name: mx.array(array) for name, array in official(model).items()}
    model.load_weights(list(model.sanitize(drawn).items()))
    if dtype == "4bit":
        model.set_dtype(mx.bfloat16)
        nn.quantize(model, group_size=32, bits=4)
        wide = {
            name: array.astype(mx.float32)
            for name, array in parameters(model).items()
            if array.dtype == mx.bfloat16 and not model.cast_predicate(name)
        }
        model.load_weights(list(wide.items()), strict=False)
    mx.eval(model.parameters())
    model.eval()
    return model


@functools.cache
def golden() -> Arrays:
    """Return what transformers computes: see `golden/make_deepseek_v4.py`."""
    with np.load(Path(__file__).parent / "golden" / "deepseek_v4.npz") as file:
        return dict(file)
