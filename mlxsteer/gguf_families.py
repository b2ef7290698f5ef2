"""What each GGUF architecture is in our words: a config, names of tensors, rows to reorder.

One `Family` per `general.architecture`. Everything the config says is checked against the file, so
that a model is never built from sizes that no tensor has. It knows nothing of MLX or of weights.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .errors import MlxsteerError
from .gguf import Header

__all__ = ["ROPE_FACTORS", "Family", "Tensor", "family_of", "wanted_tensors"]

# Llama 3.1 and later: one number per rotated pair, by which its wavelength is stretched.
ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Family:
    """How one GGUF architecture becomes one of our definitions.

    `top` and `block` map a GGUF name to (our module, out, in); sizes are named by the letters of
    `sizes`, and `in` is empty for a norm. `biases` maps a config flag to the tensors of a block
    that then have a bias too. `rotary` are those whose rows are interleaved.
    """

    config: Callable[[Header], dict[str, Any]]
    sizes: Callable[[dict[str, Any]], dict[str, int]]
    top: dict[str, tuple[str, str, str]]
    block: dict[str, tuple[str, str, str]]
    biases: dict[str, tuple[str, ...]]
    rotary: tuple[str, ...]


@dataclass(frozen=True)
class Tensor:
    """What one tensor of the file must be; `heads` says in how many its rows are interleaved."""

    module: str
    parameter: str
    shape: tuple[int, ...]
    heads: int = 0


def family_of(header: Header) -> Family:
    """The family of a model file; other files are refused by what they are."""
    name = header.metadata.get("general.architecture")
    if name == "controlvector":
        raise MlxsteerError(f"{header.path} is a control vector, not a model; steer with it: -s")
    if name not in FAMILIES:
        raise MlxsteerError(
            f"{header.path}: the architecture {name!r} is not supported as GGUF, only "
            f"{', '.join(sorted(FAMILIES))}; take the model in safetensors"
        )
    return FAMILIES[name]


def wanted_tensors(header: Header, family: Family, config: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor that the config asks for, by its GGUF name; the file has all of them.

    Raises:
        MlxsteerError: a tensor is missing, unknown, or of another shape than the metadata say.
    """
    sizes = family.sizes(config)
    heads = {"Q": config["num_attention_heads"], "K": config["num_key_value_heads"]}
    wanted: dict[str, Tensor] = {}

    def add(name: str, module: str, out: str, into: str, rotary: bool, biased: bool) -> None:
        shape = (sizes[out], sizes[into]) if into else (sizes[out],)
        turned = heads[out] if rotary else 0
        wanted[f"{name}.weight"] = Tensor(module, "weight", shape, turned)
        if biased:
            wanted[f"{name}.bias"] = Tensor(module, "bias", shape[:1], turned)

    for name, (module, out, into) in family.top.items():
        if name != "output" or not config["tie_word_embeddings"]:
            add(name, module, out, into, False, False)
    biased = {name for flag, names in family.biases.items() if config[flag] for name in names}
    for layer in range(config["num_hidden_layers"]):
        for name, (module, out, into) in family.block.items():
            ours = f"model.layers.{layer}.{module}"
            add(f"blk.{layer}.{name}", ours, out, into, name in family.rotary, name in biased)
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    if ROPE_FACTORS in header.tensors:
        shapes[ROPE_FACTORS] = (config["head_dim"] // 2,)
    _check(header, shapes)
    return wanted


def _check(header: Header, shapes: dict[str, tuple[int, ...]]) -> None:
    path, tensors = header.path, header.tensors
    if missing := [name for name in shapes if name not in tensors]:
        more = f" and {len(missing) - 1} more" if missing[1:] else ""
        raise MlxsteerError(f"{path}: tensor {missing[0]!r}{more} is missing; download it again")
    if unknown := [name for name in tensors if name not in shapes]:
        more = f" and {len(unknown) - 1} more" if unknown[1:] else ""
        raise MlxsteerError(
            f"{path}: tensor {unknown[0]!r}{more} is no part of this architecture as mlxsteer "
            "knows it; take the model in safetensors"
        )
    for name, shape in shapes.items():
        if tensors[name].shape != shape:
            raise MlxsteerError(
                f"{path}: tensor {name!r} has the shape {tensors[name].shape}, the metadata say "
                f"{shape}; download it again"
            )


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


def _llama_config(header: Header) -> dict[str, Any]:
    meta, tensors = _Metadata(header), header.tensors
    if header.metadata.get("split.count", 1) != 1:
        raise MlxsteerError(
            f"{header.path} is one part of a split model; join them: llama-gguf-split --merge"
        )
    if "token_embd.weight" not in tensors:
        raise MlxsteerError(f"{header.path} holds no model: tensor 'token_embd.weight' is missing")
    layers = meta.whole("block_count")
    if layers > len(tensors):
        raise meta.fail("block_count", f"at most the {len(tensors)} tensors of the file")
    if meta.get("expert_count", 0):
        raise meta.fail("expert_count", "0: no mixture of experts")
    width, heads = meta.whole("embedding_length"), meta.whole("attention.head_count")
    kv_heads = meta.whole("attention.head_count_kv", heads)
    if heads % kv_heads:
        raise meta.fail("attention.head_count_kv", f"a divisor of {heads}, the heads")
    head_dim = meta.whole("attention.key_length", max(1, width // heads))
    for key in ("attention.key_length", "attention.value_length", "rope.dimension_count"):
        if meta.whole(key, head_dim) != head_dim or head_dim % 2:
            raise meta.fail(key, f"{head_dim}, the size of a head, and even")
    scaling = meta.get("rope.scaling.type", "none")
    if scaling not in ("none", "linear"):
        raise meta.fail("rope.scaling.type", f"none, linear or a tensor {ROPE_FACTORS!r}")
    linear = scaling == "linear"
    return {
        "model_type": "llama",
        "hidden_size": width,
        "num_hidden_layers": layers,
        "intermediate_size": meta.whole("feed_forward_length"),
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "head_dim": head_dim,
        "rms_norm_eps": meta.real("attention.layer_norm_rms_epsilon"),
        "rope_theta": meta.real("rope.freq_base", 10000.0),
        "rope_scaling": (
            {"type": "linear", "factor": meta.real("rope.scaling.factor")} if linear else None
        ),
        "max_position_embeddings": meta.whole("context_length"),
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "tie_word_embeddings": "output.weight" not in tensors,
        "attention_bias": "blk.0.attn_q.bias" in tensors,
        "mlp_bias": "blk.0.ffn_up.bias" in tensors,
    }


def _llama_sizes(config: dict[str, Any]) -> dict[str, int]:
    return {
        "V": config["vocab_size"],
        "D": config["hidden_size"],
        "F": config["intermediate_size"],
        "Q": config["num_attention_heads"] * config["head_dim"],
        "K": config["num_key_value_heads"] * config["head_dim"],
    }


FAMILIES = {
    "llama": Family(
        config=_llama_config,
        sizes=_llama_sizes,
        top={
            "token_embd": ("model.embed_tokens", "V", "D"),
            "output_norm": ("model.norm", "D", ""),
            "output": ("lm_head", "V", "D"),
        },
        block={
            "attn_norm": ("input_layernorm", "D", ""),
            "attn_q": ("self_attn.q_proj", "Q", "D"),
            "attn_k": ("self_attn.k_proj", "K", "D"),
            "attn_v": ("self_attn.v_proj", "K", "D"),
            "attn_output": ("self_attn.o_proj", "D", "Q"),
            "ffn_norm": ("post_attention_layernorm", "D", ""),
            "ffn_gate": ("mlp.gate_proj", "F", "D"),
            "ffn_up": ("mlp.up_proj", "F", "D"),
            "ffn_down": ("mlp.down_proj", "D", "F"),
        },
        biases={
            "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
            "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
        },
        rotary=("attn_q", "attn_k"),
    )
}
