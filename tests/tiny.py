"""Tiny random models of every family for fast tests: ours and mlx-lm's with the same weights."""

import copy
import functools
import importlib
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx.utils import tree_flatten, tree_map
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from mlxsteer.arch import get_classes
from mlxsteer.bench.measure import nodes as nodes
from mlxsteer.vector import ModelRef, Vector

DTYPES = ("float32", "bfloat16", "4bit")
WIDTH, LAYERS, VOCABULARY = 64, 4, 96

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_size": WIDTH,
    "num_hidden_layers": LAYERS,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": VOCABULARY,
    "max_position_embeddings": 256,
}
_QWEN3 = {**CONFIG, "head_dim": 32, "rope_theta": 1e6, "tie_word_embeddings": True}
_GEMMA3 = {
    **CONFIG,
    "head_dim": 32,
    "query_pre_attn_scalar": 24,
    "sliding_window": 8,
    "sliding_window_pattern": 2,
}
# family (the model_type of a checkpoint and mlx-lm's module) -> its config
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": CONFIG,
    "qwen2": CONFIG,
    "qwen3": _QWEN3,
    "qwen3_moe": {
        **_QWEN3,
        "num_experts": 5,
        "num_experts_per_tok": 3,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [1],
        "moe_intermediate_size": 64,
        "norm_topk_prob": True,
    },
    "gemma3_text": _GEMMA3,
    "gemma3": {"vocab_size": VOCABULARY, "text_config": _GEMMA3},
    "phi3": CONFIG,
}


@functools.cache
def half_experts() -> bool:
    """Return whether this device multiplies by plain (not quantized) experts in half precision."""
    x, w = mx.ones((1, 1, 2), mx.bfloat16), mx.ones((1, 2, 2), mx.bfloat16)
    try:
        mx.eval(mx.gather_mm(x, w, rhs_indices=mx.array([0])))
    except RuntimeError:
        return False
    return True


def config(family: str = "llama", **changes: Any) -> dict[str, Any]:
    """Return the config of a tiny model."""
    made = copy.deepcopy({**CONFIGS[family], "model_type": family})
    made.get("text_config", made).update(changes)
    return made


def _build(classes: tuple[type, type], values: dict[str, Any]) -> nn.Module:
    """Return a model; Gemma learns from the weights whether its head is the embedding: it is."""
    tied = values.get("text_config", values).get("tie_word_embeddings", True)
    model: nn.Module = classes[0](classes[1].from_dict(values))  # type: ignore[attr-defined]
    if tied and "gemma" in values["model_type"]:
        names = dict(tree_flatten(model.parameters()))
        model.sanitize({n: w for n, w in names.items() if not n.endswith("lm_head.weight")})
    return model


_DRAWN: dict[tuple[str, str, int], Any] = {}


def _fill(model: nn.Module, values: dict[str, Any], dtype: str, seed: int) -> None:
    """Give a model its random weights, drawn once: a test takes many models and few kinds."""
    key = (json.dumps(values, sort_keys=True), dtype, seed)
    if key not in _DRAWN:
        mx.random.seed(seed)
        draw = tree_map(lambda w: 0.3 * mx.random.normal(w.shape), model.parameters())
        model.update(draw)
        model.set_dtype(mx.bfloat16 if dtype == "4bit" else getattr(mx, dtype))
    if dtype == "4bit":
        nn.quantize(model, group_size=32, bits=4)
    if key not in _DRAWN:
        mx.eval(model.parameters())
        _DRAWN[key] = tree_flatten(model.parameters())
    # arrays of its own: a test may write into them
    model.load_weights([(name, mx.array(w)) for name, w in _DRAWN[key]])
    mx.random.seed(seed)  # so that what a test draws next does not depend on the tests before it
    model.eval()


def tiny(
    dtype: str = "float32", *, family: str = "llama", seed: int = 0, **changes: Any
) -> nn.Module:
    """Return our model of a family with random weights; `dtype` is `4bit` or mlx's name."""
    values = config(family, **changes)
    if values.get("num_experts") and dtype in ("bfloat16", "float16") and not half_experts():
        pytest.skip("this device multiplies by experts in float32 or packed only")
    model = _build(get_classes(values), values)
    _fill(model, values, dtype, seed)
    return model


def twins(
    dtype: str = "float32", *, family: str = "llama", **changes: Any
) -> tuple[nn.Module, nn.Module]:
    """Return our model of a family and mlx-lm's with the same random weights."""
    ours = tiny(dtype, family=family, **changes)
    module = importlib.import_module(f"mlx_lm.models.{family}")
    theirs = _build((module.Model, module.ModelArgs), config(family, **changes))
    if dtype == "4bit":
        nn.quantize(theirs, group_size=32, bits=4)
    theirs.update(ours.parameters())
    theirs.eval()
    return ours, theirs


def ref(**changes: Any) -> ModelRef:
    """Return the reference of the tiny model."""
    fields: dict[str, Any] = {
        "repo": "tiny/random",
        "revision": "0",
        "model_type": "llama",
        "n_layers": LAYERS,
        "hidden_size": WIDTH,
        "quantization": "none",
        "dtype": "float32",
    }
    return ModelRef(**{**fields, **changes})


def direction(seed: int = 0, width: int = WIDTH) -> np.ndarray:
    """Return a random unit vector."""
    row = np.random.default_rng(seed).normal(size=width).astype(np.float32)
    return row / np.linalg.norm(row)


def vector(
    layers: tuple[int, ...] = (1, 2), *, seed: int = 0, scale: float = 1.0, **fields: Any
) -> Vector:
    """Return a random vector for the tiny model; `scale` is the norm of every row."""
    rows = {layer: scale * direction(seed + 100 * layer) for layer in layers}
    return Vector.from_rows(fields.pop("name", f"v{seed}"), rows, model=ref(), **fields)


def read_json(path: Path) -> Any:
    """Return a parsed JSON file."""
    return json.loads(path.read_text())


CHAT_TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
WORDS = """
<unk> <end> <system> <user> <assistant> be a pirate helpful assistant how was your day tell me
about the sea what should i cook tonight why is sky blue short long answer please now then
"""


def tokenizer(*, thinking: bool = False) -> TokenizerWrapper:
    """Return a word tokenizer with a chat template, for the tiny models; `thinking` has marks."""
    words = WORDS.split() + [f"w{i}" for i in range(VOCABULARY - len(set(WORDS.split())))]
    if thinking:
        words[-2:] = ["<think>", "</think>"]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    assert len(vocabulary) == VOCABULARY
    backend = Tokenizer(WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", chat_template=CHAT_TEMPLATE
    )
    return TokenizerWrapper(fast, eos_token_ids=[1])
