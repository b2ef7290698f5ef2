"""Tiny GGUF models, written by llama.cpp's own Python package."""

import functools
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from tiny import config, tiny
from tokenizers import pre_tokenizers

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<tool>"]
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", *SPECIAL]
TYPES = [1] * 257 + [3] * 6 + [4]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = len(TOKENS)
# our family -> general.architecture
ARCHITECTURES = {
    "gemma3_text": "gemma3",
    "llama": "llama",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3moe",
}
# Changes of a tiny config: what llama.cpp takes for granted in every file of a family.
GRANTED: dict[str, dict[str, Any]] = {
    "gemma3_text": {
        "num_hidden_layers": 7,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 32,
        "rope_theta": 1e6,
    },
    "phi3": {"tie_word_embeddings": False},
    "qwen2": {"rope_theta": 1e6},
    "qwen3_moe": {"mlp_only_layers": []},
}
TOKENIZER: dict[str, Any] = {
    "tokenizer.ggml.model": "gpt2",
    "tokenizer.ggml.pre": "smollm",
    "tokenizer.ggml.tokens": TOKENS,
    "tokenizer.ggml.token_type": TYPES,
    "tokenizer.ggml.merges": ["h e"],
    "tokenizer.ggml.bos_token_id": 257,
    "tokenizer.ggml.eos_token_id": 258,
    "tokenizer.chat_template": TEMPLATE,
}

Weights = dict[str, np.ndarray]
Kind = str | Callable[[str], str]


def family_config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """The config of the tiny model of a family that a file is written of."""
    return config(family, **{"vocab_size": VOCABULARY, **GRANTED.get(family, {}), **changes})


def family_metadata(values: Mapping[str, Any]) -> dict[str, Any]:
    """What llama.cpp's converter writes of such a config."""
    family = values["model_type"]
    name = ARCHITECTURES[family]
    keys: dict[str, Any] = {
        "block_count": values["num_hidden_layers"],
        "context_length": values["max_position_embeddings"],
        "embedding_length": values["hidden_size"],
        "feed_forward_length": values["intermediate_size"],
        "attention.head_count": values["num_attention_heads"],
        "attention.head_count_kv": values["num_key_value_heads"],
        "attention.layer_norm_rms_epsilon": values["rms_norm_eps"],
        "rope.freq_base": values.get("rope_theta", 10000.0),
    }
    if "head_dim" in values:
        keys["attention.key_length"] = keys["attention.value_length"] = values["head_dim"]
    if family == "qwen3_moe":
        keys["expert_count"] = values["num_experts"]
        keys["expert_used_count"] = values["num_experts_per_tok"]
        keys["expert_feed_forward_length"] = values["moe_intermediate_size"]
    if family == "gemma3_text":
        keys["attention.sliding_window"] = values["sliding_window"]
    if family == "phi3":
        head_dim = values["hidden_size"] // values["num_attention_heads"]
        share = values.get("partial_rotary_factor", 1.0)
        keys["rope.dimension_count"] = int(share * head_dim)
        keys["rope.scaling.original_context_length"] = values.get(
            "original_max_position_embeddings", values["max_position_embeddings"]
        )
        keys["attention.sliding_window"] = 0
    top = {"general.architecture": name, "general.name": "tiny"}
    return {**top, **{f"{name}.{key}": value for key, value in keys.items()}, **TOKENIZER}


METADATA = family_metadata(family_config())


def weights(seed: int = 0, *, family: str = "llama", **changes: Any) -> Weights:
    """The weights of a random tiny model under the names of a checkpoint, float32."""
    model = tiny(family=family, seed=seed, **_own(family_config(family, **changes)))
    return {name: np.array(array) for name, array in dict(tree_flatten(model.parameters())).items()}


def _own(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != "model_type"}


@functools.cache
def _names(architecture: str) -> gguf.TensorNameMap:
    model = {name: key for key, name in gguf.MODEL_ARCH_NAMES.items()}[architecture]
    return gguf.get_tensor_name_map(model, 64)


def gguf_name(name: str, architecture: str = "llama") -> str:
    """The name by llama.cpp's own table of names."""
    stacked = name.replace(".switch_mlp.", ".experts.")
    found = _names(architecture).get_name(stacked, (".weight", ".bias"))
    assert found is not None, name
    return str(found)


def permuted(name: str, array: np.ndarray, heads: int, kv_heads: int) -> np.ndarray:
    """The rows of q and k as llama.cpp's converter leaves them: pairs side by side."""
    if "q_proj" not in name and "k_proj" not in name:
        return array
    n = heads if "q_proj" in name else kv_heads
    return array.reshape(n, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def quantize(array: np.ndarray, kind: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    quantized = gguf.GGMLQuantizationType[kind if array.ndim > 1 else "F32"]
    return gguf.quants.quantize(array, quantized), quantized


def rounded(weights: Mapping[str, np.ndarray], kind: Kind) -> Weights:
    """What is left of weights once they were quantized."""
    result = {}
    for name, array in weights.items():
        data, quantized = quantize(array, kind(name) if callable(kind) else kind)
        result[name] = gguf.quants.dequantize(data, quantized).astype(np.float32)
    return result


def write_gguf(
    path: Path,
    weights: Mapping[str, np.ndarray],
    kind: Kind = "F32",
    *,
    more: Mapping[str, np.ndarray] | None = None,
    heads: tuple[int, int] = (4, 2),
    metadata: Mapping[str, Any] | None = None,
) -> Path:
    """Write a GGUF model; its metadata may be altered, and `...` leaves a key out."""
    metadata = {**METADATA, **(metadata or {})}
    name = metadata.pop("general.architecture")
    architecture = name if name in ARCHITECTURES.values() else "llama"
    writer = gguf.GGUFWriter(path, name)
    for key, value in metadata.items():
        if value is not ...:
            _add(writer, key, value)
    for name, array in weights.items():
        if architecture == "llama":
            array = permuted(name, array, *heads)
        if architecture == "gemma3" and name.endswith("norm.weight"):
            array = array + np.float32(1)
        data, quantized = quantize(array, kind(name) if callable(kind) else kind)
        writer.add_tensor(gguf_name(name, architecture), data, raw_dtype=quantized)
    for name, array in (more or {}).items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, list):
        writer.add_array(key, value)
    elif isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_string(key, value)


def plain_model(weights: Mapping[str, np.ndarray], module: Any, **changes: Any) -> nn.Module:
    """A model of `module` (ours or mlx-lm's definition) with these weights."""
    family = module.__name__.rpartition(".")[2]
    args = module.ModelArgs.from_dict(family_config(family, **changes))
    model: nn.Module = module.Model(args)
    arrays = {name: mx.array(array) for name, array in weights.items()}
    if "gemma" in family:
        arrays = model.sanitize(arrays)  # it learns from the weights whether the head is tied
    model.load_weights(list(arrays.items()))
    model.eval()
    return model
