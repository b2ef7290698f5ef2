"""Tiny models as folders: `config.json`, weights, a tokenizer."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_map
from tiny import VOCABULARY, config, tiny
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

PACKINGS: dict[str, dict[str, Any]] = {
    "4bit": {"group_size": 64, "bits": 4},
    "8bit": {"group_size": 32, "bits": 8},
    "mxfp4": {"group_size": 32, "bits": 4, "mode": "mxfp4"},
}


def write_folder(
    folder: Path,
    kind: str = "float32",
    *,
    family: str = "llama",
    shards: int = 1,
    more: dict[str, mx.array] | None = None,
    **changes: Any,
) -> Path:
    """Write the random tiny model of a family with these changes of its config."""
    folder.mkdir(parents=True)
    values = config(family, **changes)
    model = tiny("float32" if kind in PACKINGS else kind, family=family, **changes)
    if kind in PACKINGS:
        model.update(tree_map(lambda w: w.astype(mx.bfloat16), model.parameters()))
        values["quantization"] = PACKINGS[kind]
        nn.quantize(model, **PACKINGS[kind])
    (folder / "config.json").write_text(json.dumps(values))
    write_weights(folder, dict(tree_flatten(model.parameters())) | (more or {}), shards)
    write_tokenizer(folder)
    return folder


def write_weights(folder: Path, weights: dict[str, mx.array], shards: int) -> None:
    names = sorted(weights)
    files = [f"model-{i + 1:05}-of-{shards:05}.safetensors" for i in range(shards)]
    files = files if shards > 1 else ["model.safetensors"]
    for i, file in enumerate(files):
        part = {name: weights[name] for name in names[i::shards]}
        mx.save_safetensors(str(folder / file), part, metadata={"format": "mlx"})
    if shards > 1:
        where = {name: files[i % shards] for i, name in enumerate(names)}
        index = folder / "model.safetensors.index.json"
        index.write_text(json.dumps({"metadata": {}, "weight_map": where}))


def write_tokenizer(folder: Path) -> None:
    """Every printable ASCII character is a token."""
    letters = [chr(code) for code in range(33, 127)][: VOCABULARY - 2]
    vocabulary = {token: i for i, token in enumerate([*letters, "Ġ", "</s>"])}
    tokenizer = Tokenizer(BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["</s>"])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
