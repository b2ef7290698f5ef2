"""GGUF files and model folders that must be refused, each with words that the refusal has to say.

Headers are written byte by byte, so that anything can be wrong with them; whole models are a good
tiny one with one thing changed.
"""

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

UINT32, STRING, ARRAY = 4, 8, 9


def gguf_string(text: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text


def gguf_value(key: bytes, kind: int, raw: bytes) -> bytes:
    return gguf_string(key) + struct.pack("<I", kind) + raw


def gguf_tensor(
    name: bytes = b"t", shape: tuple[int, ...] = (32,), kind: int = 0, offset: int = 0
) -> bytes:
    dims = struct.pack(f"<I{len(shape)}Q", len(shape), *shape)
    return gguf_string(name) + dims + struct.pack("<IQ", kind, offset)


def gguf_file(
    values: tuple[bytes, ...] = (),
    tensors: tuple[bytes, ...] = (),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    n_values: int | None = None,
    n_tensors: int | None = None,
    data: int = 128,
) -> bytes:
    """A file of these parts; counts may lie, and `data` bytes follow the header."""
    counts = (
        len(tensors) if n_tensors is None else n_tensors,
        len(values) if n_values is None else n_values,
    )
    head = magic + struct.pack("<IQQ", version, *counts) + b"".join(values) + b"".join(tensors)
    return head + bytes(-len(head) % 32 + data)


NAME = gguf_value(b"general.name", STRING, gguf_string(b"x"))
HUGE = (1 << 64) - 1

# name -> (bytes, what the refusal says)
GGUF_HEADERS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "not a GGUF file: it has 0 bytes"),
    "short": (b"GGUF\3\0\0\0", "not a GGUF file: it has 8 bytes"),
    "html": (b"<!DOCTYPE html><html><body>Not found</body></html>", "begins with b'<!DO'"),
    "safetensors": (struct.pack("<Q", 2) + b"{}" + bytes(40), "not a GGUF file"),
    "version 1": (gguf_file(version=1), r"version 1 is not supported"),
    "version 99": (gguf_file(version=99), r"version 99 is not supported"),
    "big endian": (gguf_file(version=3 << 24), r"\(big endian\) is not supported"),
    "huge key count": (gguf_file(n_values=HUGE), "metadata of 18446744073709551615 keys"),
    "huge tensor count": (gguf_file(n_tensors=HUGE), "table of 18446744073709551615 tensors"),
    "one key too many": (gguf_file((NAME,), n_values=2), "a metadata key is empty"),
    "huge string": (
        gguf_file((gguf_value(b"a", STRING, struct.pack("<Q", HUGE)),)),
        "a needs 18446744073709551623 bytes",
    ),
    "huge key": (gguf_file((struct.pack("<Q", HUGE),) * 3, n_values=1), "a metadata key needs"),
    "huge array of numbers": (
        gguf_file((gguf_value(b"a", ARRAY, struct.pack("<IQ", UINT32, 1 << 62)),)),
        "a needs 18446744073709551616 bytes",
    ),
    "huge array of strings": (
        gguf_file((gguf_value(b"a", ARRAY, struct.pack("<IQ", STRING, 1 << 61)),)),
        "a needs 18446744073709551616 bytes",
    ),
    "strings that run out": (
        gguf_file((gguf_value(b"a", ARRAY, struct.pack("<IQQ", STRING, 3, 1 << 40)),)),
        "truncated or damaged: a needs",
    ),
    "arrays in arrays without end": (
        gguf_file((gguf_value(b"a", ARRAY, struct.pack("<IQ", ARRAY, 1) * 20),)),
        "a nests arrays more than 2 deep",
    ),
    "unknown value type": (
        gguf_file((gguf_value(b"a", 13, bytes(8)),)),
        "a has the unknown value type 13",
    ),
    "unknown type in an array": (
        gguf_file((gguf_value(b"a", ARRAY, struct.pack("<IQ", 77, 1)),)),
        "a has the unknown value type 77",
    ),
    "key twice": (gguf_file((NAME, NAME)), "the key 'general.name' occurs twice"),
    "key not UTF-8": (
        gguf_file((gguf_value(b"\xff\xfe", STRING, gguf_string(b"x")),)),
        r"a metadata key is not UTF-8: b'\\xff\\xfe'",
    ),
    "alignment 0": (
        gguf_file((gguf_value(b"general.alignment", UINT32, struct.pack("<I", 0)),)),
        "general.alignment is 0, not a power of two",
    ),
    "alignment 48": (
        gguf_file((gguf_value(b"general.alignment", UINT32, struct.pack("<I", 48)),)),
        "general.alignment is 48, not a power of two",
    ),
    "alignment is text": (
        gguf_file((gguf_value(b"general.alignment", STRING, gguf_string(b"32")),)),
        "general.alignment is '32', not a power of two",
    ),
    "tensor twice": (
        gguf_file(tensors=(gguf_tensor(), gguf_tensor())),
        "the tensor 't' occurs twice",
    ),
    "no dimensions": (gguf_file(tensors=(gguf_tensor(shape=()),)), "'t' has 0 dimensions"),
    "five dimensions": (
        gguf_file(tensors=(gguf_tensor(shape=(1, 1, 1, 1, 1)),)),
        "'t' has 5 dimensions",
    ),
    "a dimension of 0": (gguf_file(tensors=(gguf_tensor(shape=(0, 4)),)), r"the shape \(4, 0\)"),
    "rows of half a block": (
        gguf_file(tensors=(gguf_tensor(shape=(48, 2), kind=2),)),
        r"the shape \(2, 48\), which Q4_0 cannot hold",
    ),
    "unknown type": (
        gguf_file(tensors=(gguf_tensor(kind=250),)),
        "'t' has the GGML type 250, which mlxsteer does not know",
    ),
    "withdrawn type": (gguf_file(tensors=(gguf_tensor(kind=4),)), "the GGML type 4"),
    "offset not aligned": (
        gguf_file(tensors=(gguf_tensor(offset=8),)),
        "'t' lies at 8, not a mult",
    ),
    "beyond the end": (
        gguf_file(tensors=(gguf_tensor(offset=32),)),
        r"tensor 't' ends at byte \d+, the file has \d+",
    ),
    "huge tensor": (
        gguf_file(tensors=(gguf_tensor(shape=(1 << 62, 1 << 62)),)),
        "tensor 't' ends at byte",
    ),
    "huge offset": (
        gguf_file(tensors=(gguf_tensor(offset=HUGE - 31),)),
        "tensor 't' ends at byte",
    ),
}


def _without(name: str) -> Callable[[dict[str, Any]], None]:
    def change(weights: dict[str, Any]) -> None:
        del weights[name]

    return change


def _reshaped(name: str, shape: tuple[int, ...]) -> Callable[[dict[str, Any]], None]:
    def change(weights: dict[str, Any]) -> None:
        weights[name] = np.zeros(shape, np.float32)

    return change


# name -> (change of the weights or None, changed metadata, what the refusal says)
GGUF_MODELS: dict[str, tuple[Callable[[dict[str, Any]], None] | None, dict[str, Any], str]] = {
    "control vector": (None, {"general.architecture": "controlvector"}, "is a control vector"),
    "no architecture I know": (
        None,
        {"general.architecture": "bert"},
        "architecture 'bert' is not supported as GGUF, only gemma3, llama, phi3, qwen2, qwen3, "
        "qwen3moe; take the model in safetensors",
    ),
    "split file": (None, {"split.count": 3}, "one part of a split model"),
    "experts": (None, {"llama.expert_count": 8}, "llama.expert_count is 8; supported is 0"),
    "no embedding": (_without("model.embed_tokens.weight"), {}, "'token_embd.weight' is missing"),
    "tensor missing": (
        _without("model.layers.2.mlp.up_proj.weight"),
        {},
        "tensor 'blk.2.ffn_up.weight' is missing; download it again",
    ),
    "tensor of another shape": (
        _reshaped("model.layers.1.self_attn.v_proj.weight", (64, 64)),
        {},
        r"'blk.1.attn_v.weight' has the shape \(64, 64\), the metadata say \(32, 64\)",
    ),
    "one layer too many": (
        None,
        {"llama.block_count": 5},
        "tensor 'blk.4.attn_norm.weight' and 8 more is missing",
    ),
    "one layer too few": (
        None,
        {"llama.block_count": 3},
        "tensor 'blk.3.self_attn|tensor 'blk.3.* and 8 more is no part of this architecture",
    ),
    "layers without end": (
        None,
        {"llama.block_count": 2_000_000_000},
        "block_count is 2000000000; supported is at most the 38 tensors",
    ),
    "no layers": (
        None,
        {"llama.block_count": 0},
        "block_count is 0; supported is a positive whole",
    ),
    "width is text": (
        None,
        {"llama.embedding_length": "64"},
        "embedding_length is '64'; supported is a positive whole",
    ),
    "width missing": (None, {"llama.embedding_length": ...}, "embedding_length is None"),
    "another width": (
        None,
        {"llama.embedding_length": 128},
        r"the shape \(264, 64\), the metadata say \(264, 128\)",
    ),
    "heads per layer": (
        None,
        {"llama.attention.head_count": [4, 4, 4, 4]},
        r"head_count is \[4, 4, 4, 4\]; supported is a positive",
    ),
    "uneven groups": (
        None,
        {"llama.attention.head_count_kv": 3},
        "head_count_kv is 3; supported is a divisor of 4",
    ),
    "partly rotated": (
        None,
        {"llama.rope.dimension_count": 8},
        "rope.dimension_count is 8; supported is 16",
    ),
    "positions of no kind": (
        None,
        {"llama.rope.scaling.type": "longrope"},
        "rope.scaling.type is 'longrope'; supported is none, linear, yarn or a tensor 'rope_freqs",
    ),
    "yarn without its context": (
        None,
        {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.factor": 4.0},
        "rope.scaling.original_context_length is None; supported is a positive whole number",
    ),
    "logits squeezed": (
        None,
        {"llama.final_logit_softcapping": 30.0},
        "final_logit_softcapping is 30.0; supported is 0.0 or no such key",
    ),
    "epsilon of infinity": (
        None,
        {"llama.attention.layer_norm_rms_epsilon": float("inf")},
        "layer_norm_rms_epsilon is inf; supported is a positive number",
    ),
    "no context": (None, {"llama.context_length": ...}, "context_length is None"),
}

# name -> (our family, changed metadata, what the refusal says)
GGUF_FAMILIES: dict[str, tuple[str, dict[str, Any], str]] = {
    "a head of its own": (
        "qwen2",
        {"qwen2.attention.key_length": 32},
        "qwen2.attention.key_length is 32; supported is 16, the size of a head",
    ),
    "values of another size": (
        "qwen3",
        {"qwen3.attention.value_length": 16},
        "qwen3.attention.value_length is 16; supported is 32",
    ),
    "experts in a dense model": (
        "qwen3",
        {"qwen3.expert_count": 8},
        "qwen3.expert_count is 8; supported is 0",
    ),
    "no experts": (
        "qwen3_moe",
        {"qwen3moe.expert_count": 0},
        "qwen3moe.expert_count is 0; supported is a positive whole number",
    ),
    "more experts in use than there are": (
        "qwen3_moe",
        {"qwen3moe.expert_used_count": 6},
        "expert_used_count is 6; supported is at most 5, the experts",
    ),
    "another number of experts": (
        "qwen3_moe",
        {"qwen3moe.expert_count": 4},
        r"'blk.0.ffn_gate_inp.weight' has the shape \(5, 64\), the metadata say \(4, 64\)",
    ),
    "experts chosen by a sigmoid": (
        "qwen3_moe",
        {"qwen3moe.expert_gating_func": 2},
        "expert_gating_func is 2; supported is 1",
    ),
    "experts shared": (
        "qwen3_moe",
        {"qwen3moe.expert_shared_count": 1},
        "expert_shared_count is 1; supported is 0 or no such key",
    ),
    "stretched experts": (
        "qwen3_moe",
        {"qwen3moe.rope.scaling.type": "yarn", "qwen3moe.rope.scaling.factor": 4.0},
        "qwen3moe.rope.scaling.type is 'yarn'; supported is none$",
    ),
    "logits of Gemma 2": (
        "gemma3_text",
        {"gemma3.final_logit_softcapping": 30.0},
        "gemma3.final_logit_softcapping is 30.0; supported is 0.0 or no such key",
    ),
    "Gemma with yarn": (
        "gemma3_text",
        {"gemma3.rope.scaling.type": "yarn", "gemma3.rope.scaling.factor": 4.0},
        "gemma3.rope.scaling.type is 'yarn'; supported is none, linear",
    ),
    "windows as a list": (
        "gemma3_text",
        {"gemma3.attention.sliding_window_pattern": [True, False]},
        r"sliding_window_pattern is \[True, False\]; supported is a positive whole number",
    ),
    "other edges of yarn": (
        "qwen2",
        {"qwen2.rope.scaling.yarn_beta_fast": 16.0},
        "yarn_beta_fast is 16.0; supported is 32.0 or no such key",
    ),
    "an odd part rotated": (
        "phi3",
        {"phi3.rope.dimension_count": 7},
        "phi3.rope.dimension_count is 7; supported is 16, the size of a head, and even",
    ),
    "a loudness without factors": (
        "phi3",
        {"phi3.rope.scaling.attn_factor": 1.19},
        "rope.scaling.attn_factor is 1.19.*; supported is no such key",
    ),
    "another loudness": (
        "phi3 longrope",
        {"phi3.rope.scaling.attn_factor": 1.5},
        "rope.scaling.attn_factor is 1.5; supported is 1.15470, which follows from the context",
    ),
    "no original context": (
        "phi3 longrope",
        {"phi3.rope.scaling.original_context_length": 1},
        "original_context_length is 1; supported is a number from 2",
    ),
    "factors of another kind": (
        "phi3 longrope",
        {"phi3.rope.scaling.type": "yarn"},
        "rope.scaling.type is 'yarn'; supported is 'longrope' or 'none'",
    ),
}

# name -> (changed metadata of the tokenizer, what the refusal says)
GGUF_TOKENIZERS: dict[str, tuple[dict[str, Any], str]] = {
    "unknown kind": (
        {"model": "bert"},
        "tokenizer 'bert' is not supported, only 'gpt2' and 'llama'",
    ),
    "no kind": ({"model": ...}, "the tokenizer None is not supported"),
    "unknown pre-tokenizer": ({"pre": "klingon"}, "pre-tokenizer 'klingon' is not supported, only"),
    "no tokens": ({"tokens": ...}, "tokenizer.ggml.tokens is missing"),
    "tokens are numbers": ({"tokens": [1, 2]}, "tokenizer.ggml.tokens is missing"),
    "token twice": ({"tokens": ["a"] * 264}, "the token 'a' occurs twice"),
    "too few types": ({"token_type": [1, 1]}, "264 tokens have 2 types"),
    "no merges": ({"merges": ...}, "tokenizer.ggml.merges is missing"),
    "merge without token": ({"merges": ["h e", "q z"]}, "the merge 'q z' has no token"),
    "merge of one": ({"merges": ["he"]}, "the merge 'he' has no token"),
    "end token beyond": ({"eos_token_id": 264}, "eos_token_id is 264, there are 264 tokens"),
    "end token is text": ({"eos_token_id": "</s>"}, "eos_token_id is '</s>'"),
    "no scores": ({"model": "llama"}, "tokenizer.ggml.scores does not fit the tokens"),
    "template is a number": ({"@chat_template": 7}, "tokenizer.chat_template is 7"),
}


def _config(**changes: Any) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        config = {**json.loads((folder / "config.json").read_text()), **changes}
        kept = {key: value for key, value in config.items() if value is not ...}
        (folder / "config.json").write_text(json.dumps(kept))

    return spoil


def _wrote(name: str, raw: bytes) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        (folder / name).write_bytes(raw)

    return spoil


def _removed(*names: str) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        for name in names:
            (folder / name).unlink()

    return spoil


def _cut(name: str, keep: float) -> Callable[[Path], None]:
    def spoil(folder: Path) -> None:
        raw = (folder / name).read_bytes()
        (folder / name).write_bytes(raw[: int(keep * len(raw))])

    return spoil


def _pickled(folder: Path) -> None:
    _removed(*FIRST_AND_LAST, INDEX)(folder)
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04")


def _tensor(name: str, to: str | None) -> Callable[[Path], None]:
    """Rename or remove one tensor, and forget the index."""

    def spoil(folder: Path) -> None:
        _removed(INDEX)(folder)
        for file in FIRST_AND_LAST:
            weights = load_file(folder / file)
            if name in weights:
                array = weights.pop(name)
                if to is not None:
                    weights[to] = array
                save_file(weights, folder / file)

    return spoil


def _remote_tokenizer(folder: Path) -> None:
    settings = {"tokenizer_class": "OwnTokenizer", "auto_map": {"AutoTokenizer": ["own.Own", None]}}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    (folder / "own.py").write_text("raise SystemExit('code of a model was run')")


FIRST_AND_LAST = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
INDEX = "model.safetensors.index.json"

# name -> (what is done to a good folder of two weight files, what the refusal says)
MODEL_FOLDERS: dict[str, tuple[Callable[[Path], None], str]] = {
    "no config": (_removed("config.json"), "has no config.json; give the folder of a whole model"),
    "config cut off": (_cut("config.json", 0.5), "config.json is not JSON: .*download it again"),
    "config is a list": (_wrote("config.json", b"[1]"), "config.json is not a JSON object"),
    "config is binary": (_wrote("config.json", b"\xff\xfe\0"), "config.json is not JSON"),
    "no model type": (_config(model_type=...), "there is no model_type"),
    "unknown model type": (_config(model_type="zebra"), "'zebra'"),
    "code of its own": (_config(model_file="m.py"), "own code, 'm.py'; mlxsteer runs no code"),
    "no width": (_config(hidden_size=...), "the config has no hidden_size; take"),
    "width is text": (
        _config(hidden_size="64"),
        "config.json: hidden_size is '64', not a number from 1",
    ),
    "negative layers": (
        _config(num_hidden_layers=-1),
        "num_hidden_layers is -1, not a number from 1",
    ),
    "layers without end": (
        _config(num_hidden_layers=2_000_000_000),
        "num_hidden_layers is 2000000000, not a number from 1 to 65536",
    ),
    "a thousand layers": (
        _config(num_hidden_layers=1000),
        "config.json says 1000 layers, the weights are 38 tensors",
    ),
    "a language model of no kind": (
        _config(model_type="gemma3", text_config=[1]),
        "config.json cannot be used: 'list' object is not a mapping",
    ),
    "no heads": (_config(num_attention_heads=0), "num_attention_heads is 0, not a number from 1"),
    "positions of two kinds": (
        _config(rope_theta=1e4, rope_parameters={"rope_theta": 5e5, "rope_type": "default"}),
        "config.json: the config says rope_theta is 10000.0 in one place and 500000.0 in another",
    ),
    "layers of another model": (_config(num_hidden_layers=5), "cannot be loaded: Missing 9 param"),
    "width of another model": (
        _config(hidden_size=128),
        r"cannot be loaded: Expected shape \(96, 128\) but received shape \(96, 64\)",
    ),
    "no epsilon": (_config(rms_norm_eps=...), "config.json: the config has no rms_norm_eps; take"),
    "packing of no kind": (
        _config(quantization_config={"quant_method": "modelopt", "quant_algo": "X"}),
        "cannot be loaded: Unsupported modelopt quant_algo: X",
    ),
    "no weights": (_removed(*FIRST_AND_LAST, INDEX), r"has no weights: no model\*.safetensors;"),
    "pickled weights": (_pickled, r"has no weights: .*\(pytorch_model.bin is a pickle"),
    "a weight file missing": (
        _removed(FIRST_AND_LAST[1]),
        r"model-00002-of-00002.safetensors is missing \(1 of 2 weight files\); download it again",
    ),
    "a weight file cut off": (_cut(FIRST_AND_LAST[0], 0.5), "is damaged: .*; download it again"),
    "a weight file empty": (_wrote(FIRST_AND_LAST[0], b""), "is damaged: .*; download it again"),
    "a weight file of text": (
        _wrote(FIRST_AND_LAST[0], b"version https://git-lfs.github.com/spec/v1"),
        "is damaged: .*; download it again",
    ),
    "an index of nothing": (_wrote(INDEX, b"{}"), "has no weight_map"),
    "a tensor missing": (
        _tensor("model.layers.1.mlp.up_proj.weight", None),
        "cannot be loaded: Missing 1 parameters: model.layers.1.mlp.up_proj.weight",
    ),
    "a tensor too many": (
        _tensor("model.norm.weight", "model.norm.wait"),
        "cannot be loaded: Received 1 parameters not in model: model.norm.wait",
    ),
    "no tokenizer": (
        _removed("tokenizer.json", "tokenizer_config.json"),
        "has no usable tokenizer",
    ),
    "tokenizer cut off": (_cut("tokenizer.json", 0.5), "has no usable tokenizer"),
    "tokenizer of nothing": (_wrote("tokenizer.json", b"{}"), "has no usable tokenizer"),
    "tokenizer without model": (
        _wrote("tokenizer.json", b'{"version": "1.0", "added_tokens": [], "model": {"type": "X"}}'),
        "has no usable tokenizer",
    ),
    "uneven heads": (_config(num_attention_heads=5), "has no usable tokenizer: .*multiple of the"),
    "tokenizer with code": (
        _remote_tokenizer,
        "the tokenizer wants to run its own code; mlxsteer runs no",
    ),
    "generation config cut off": (
        _wrote("generation_config.json", b"{"),
        "generation_config.json is not JSON",
    ),
}
