"""Tiny GGUF models, written by llama.cpp's own Python package."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from tiny import CONFIG, tiny
from tokenizers import pre_tokenizers

SPECIAL = ["<|im_start|>", "<|im_end|>", "<|endoftext|>", "<s>", "</s>", "<unk>", "<tool>"]
TOKENS = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "he", *SPECIAL]
TYPES = [1] * 257 + [3] * 6 + [4]
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
VOCABULARY = len(TOKENS)
NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "tiny",
    "llama.block_count": CONFIG["num_hidden_layers"],
    "llama.context_length": CONFIG["max_position_embeddings"],
    "llama.embedding_length": CONFIG["hidden_size"],
    "llama.feed_forward_length": CONFIG["intermediate_size"],
    "llama.attention.head_count": CONFIG["num_attention_heads"],
    "llama.attention.head_count_kv": CONFIG["num_key_value_heads"],
    "llama.attention.layer_norm_rms_epsilon": CONFIG["rms_norm_eps"],
    "llama.rope.freq_base": 10000.0,
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


def weights(seed: int = 0, **changes: Any) -> Weights:
    """The weights of a random tiny Llama under the names of a checkpoint, float32."""
    model = tiny(seed=seed, **{"vocab_size": VOCABULARY, **changes})
    return {name: np.array(array) for name, array in dict(tree_flatten(model.parameters())).items()}


def gguf_name(name: str) -> str:
    module, _, parameter = name.rpartition(".")
    if module.startswith("model.layers."):
        _, _, layer, rest = module.split(".", 3)
        return f"blk.{layer}.{NAMES[rest]}.{parameter}"
    return f"{NAMES[module]}.{parameter}"


def permuted(name: str, array: np.ndarray, heads: int, kv_heads: int) -> np.ndarray:
    """The rows of q and k as llama.cpp's converter leaves them: pairs side by side."""
    if "q_proj" not in name and "k_proj" not in name:
        return array
    n = heads if "q_proj" in name else kv_heads
    return array.reshape(n, 2, -1, *array.shape[1:]).swapaxes(1, 2).reshape(array.shape)


def quantize(array: np.ndarray, kind: str) -> tuple[np.ndarray, gguf.GGMLQuantizationType]:
    quantized = gguf.GGMLQuantizationType[kind if array.ndim == 2 else "F32"]
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
    writer = gguf.GGUFWriter(path, metadata.pop("general.architecture"))
    for key, value in metadata.items():
        if value is not ...:
            _add(writer, key, value)
    for name, array in weights.items():
        data, quantized = quantize(
            permuted(name, array, *heads), kind(name) if callable(kind) else kind
        )
        writer.add_tensor(gguf_name(name), data, raw_dtype=quantized)
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
    args = module.ModelArgs.from_dict({**CONFIG, "vocab_size": VOCABULARY, **changes})
    model: nn.Module = module.Model(args)
    model.load_weights([(name, mx.array(array)) for name, array in weights.items()])
    model.eval()
    return model
