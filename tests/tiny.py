"""Tiny random models for fast tests: ours and mlx-lm's with the same weights."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.llama as mlx_llama
import numpy as np
from mlx.utils import tree_map
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import PreTrainedTokenizerFast

from mlxsteer.arch import llama
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


def _fill(model: nn.Module, dtype: str, seed: int) -> None:
    mx.random.seed(seed)
    draw = tree_map(lambda w: 0.3 * mx.random.normal(w.shape), model.parameters())
    model.update(draw)
    model.set_dtype(mx.float32 if dtype == "float32" else mx.bfloat16)
    if dtype == "4bit":
        nn.quantize(model, group_size=32, bits=4)
    mx.eval(model.parameters())
    model.eval()


def tiny(dtype: str = "float32", *, seed: int = 0, **changes: Any) -> llama.Model:
    """Return our Llama with random weights."""
    model = llama.Model(llama.ModelArgs.from_dict({**CONFIG, **changes}))
    _fill(model, dtype, seed)
    return model


def twins(dtype: str = "float32", **changes: Any) -> tuple[llama.Model, nn.Module]:
    """Return our Llama and mlx-lm's with the same random weights."""
    ours = tiny(dtype, **changes)
    theirs = mlx_llama.Model(mlx_llama.ModelArgs.from_dict({**CONFIG, **changes}))
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


def nodes(*outputs: mx.array) -> int:
    """Count the operations of an unevaluated graph."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.dot"
        mx.export_to_dot(str(path), *outputs)
        return path.read_text().count("shape=rectangle")


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


def tokenizer() -> TokenizerWrapper:
    """Return a word tokenizer with a chat template, for the tiny models."""
    words = WORDS.split() + [f"w{i}" for i in range(VOCABULARY - len(set(WORDS.split())))]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    assert len(vocabulary) == VOCABULARY
    backend = Tokenizer(WordLevel(vocabulary, "<unk>"))
    backend.pre_tokenizer = WhitespaceSplit()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="<end>", chat_template=CHAT_TEMPLATE
    )
    return TokenizerWrapper(fast, eos_token_ids=[1])
