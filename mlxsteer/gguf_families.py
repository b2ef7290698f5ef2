"""What each GGUF architecture is in our words: a config, names of tensors, how they are stored.

One `Family` per `general.architecture`. Everything the config says is checked against the file, so
that a model is never built from sizes that no tensor has. It knows nothing of MLX or of weights.
"""

from dataclasses import dataclass, field
from typing import Any

from .errors import MlxsteerError
from .gguf import Header
from .gguf_configs import CONFIGS, LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS

__all__ = ["RENAMED", "Family", "Tensor", "config_of", "family_of", "wanted_tensors"]

# model_type of a config.json -> general.architecture, where llama.cpp has another word for it
RENAMED = {"gemma3_text": "gemma3", "mistral": "llama", "qwen3_moe": "qwen3moe"}

# GGUF name -> (our module, the letters of its weight's shape, the slowest dimension first):
# V vocabulary, D width, F width of an MLP, H size of a head, Q and K rows of all heads, E experts.
Names = dict[str, tuple[str, str]]


@dataclass(frozen=True)
class Family:
    """How one GGUF architecture becomes one of our definitions.

    `block` are the tensors of each layer. `biases` maps a flag of the config to those of them that
    then have a bias, too. The rows of `interleaved` are stored for interleaved rotary positions.
    With `plus_one` norms are stored as `1 + w`.
    """

    block: Names
    biases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    interleaved: tuple[str, ...] = ()
    plus_one: bool = False


@dataclass(frozen=True)
class Tensor:
    """What one tensor of the file must be, and how it became what is stored.

    `heads` says in how many its rows are interleaved, `shift` what was added to it.
    """

    module: str
    parameter: str
    shape: tuple[int, ...]
    heads: int = 0
    shift: float = 0


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


def config_of(header: Header) -> dict[str, Any]:
    """The config that the metadata give, in the words of a Hugging Face `config.json`."""
    family_of(header)
    return CONFIGS[header.metadata["general.architecture"]](header)


def wanted_tensors(header: Header, config: dict[str, Any]) -> dict[str, Tensor]:
    """Every tensor that the config asks for, by its GGUF name; the file has all of them.

    Raises:
        MlxsteerError: a tensor is missing, unknown, or of another shape than the metadata say.
    """
    family, sizes = family_of(header), _sizes(config)
    heads = {"Q": config["num_attention_heads"], "K": config["num_key_value_heads"]}
    wanted: dict[str, Tensor] = {}

    def add(name: str, module: str, letters: str, turned: bool, biased: bool) -> None:
        shape = tuple(sizes[letter] for letter in letters.split())
        count = heads[letters[0]] if turned else 0
        shift = 1.0 if family.plus_one and len(shape) == 1 else 0.0
        wanted[f"{name}.weight"] = Tensor(module, "weight", shape, count, shift)
        if biased:
            wanted[f"{name}.bias"] = Tensor(module, "bias", shape[:1], count)

    for name, (module, letters) in TOP.items():
        if name != "output" or not config["tie_word_embeddings"]:
            add(name, module, letters, False, False)
    biased = {name for flag, names in family.biases.items() if config[flag] for name in names}
    for layer in range(config["num_hidden_layers"]):
        for name, (module, letters) in family.block.items():
            turned = name in family.interleaved
            ours = f"model.layers.{layer}.{module}"
            add(f"blk.{layer}.{name}", ours, letters, turned, name in biased)
    shapes = {name: tensor.shape for name, tensor in wanted.items()}
    _check(header, shapes | _factors(header, config))
    return wanted


def _sizes(config: dict[str, Any]) -> dict[str, int]:
    heads, kv_heads = config["num_attention_heads"], config["num_key_value_heads"]
    head_dim = config.get("head_dim") or config["hidden_size"] // heads
    return {
        "V": config["vocab_size"],
        "D": config["hidden_size"],
        "F": config.get("moe_intermediate_size") or config["intermediate_size"],
        "2F": 2 * config["intermediate_size"],
        "H": head_dim,
        "Q": heads * head_dim,
        "K": kv_heads * head_dim,
        "Q+2K": (heads + 2 * kv_heads) * head_dim,
        "E": config.get("num_experts", 0),
    }


def _factors(header: Header, config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Tensors that are no weights, and may be there: they stretch wavelengths."""
    if config["model_type"] == "llama" and ROPE_FACTORS in header.tensors:
        return {ROPE_FACTORS: (config["head_dim"] // 2,)}
    if config["model_type"] == "phi3" and LONG_FACTORS in header.tensors:
        return {name: header.tensors[name].shape for name in (LONG_FACTORS, SHORT_FACTORS)}
    return {}


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


TOP: Names = {
    "token_embd": ("model.embed_tokens", "V D"),
    "output_norm": ("model.norm", "D"),
    "output": ("lm_head", "V D"),
}
NORMS: Names = {
    "attn_norm": ("input_layernorm", "D"),
    "ffn_norm": ("post_attention_layernorm", "D"),
}
ATTENTION: Names = {
    "attn_q": ("self_attn.q_proj", "Q D"),
    "attn_k": ("self_attn.k_proj", "K D"),
    "attn_v": ("self_attn.v_proj", "K D"),
    "attn_output": ("self_attn.o_proj", "D Q"),
}
HEAD_NORMS: Names = {
    "attn_q_norm": ("self_attn.q_norm", "H"),
    "attn_k_norm": ("self_attn.k_norm", "H"),
}
MLP: Names = {
    "ffn_gate": ("mlp.gate_proj", "F D"),
    "ffn_up": ("mlp.up_proj", "F D"),
    "ffn_down": ("mlp.down_proj", "D F"),
}
EXPERTS: Names = {
    "ffn_gate_inp": ("mlp.gate", "E D"),
    "ffn_gate_exps": ("mlp.switch_mlp.gate_proj", "E F D"),
    "ffn_up_exps": ("mlp.switch_mlp.up_proj", "E F D"),
    "ffn_down_exps": ("mlp.switch_mlp.down_proj", "E D F"),
}
FUSED: Names = {
    "attn_qkv": ("self_attn.qkv_proj", "Q+2K D"),
    "attn_output": ("self_attn.o_proj", "D Q"),
    "ffn_up": ("mlp.gate_up_proj", "2F D"),
    "ffn_down": ("mlp.down_proj", "D F"),
}
SANDWICH: Names = {
    "attn_norm": ("input_layernorm", "D"),
    "post_attention_norm": ("post_attention_layernorm", "D"),
    "ffn_norm": ("pre_feedforward_layernorm", "D"),
    "post_ffw_norm": ("post_feedforward_layernorm", "D"),
}
FAMILIES = {
    "gemma3": Family({**SANDWICH, **ATTENTION, **HEAD_NORMS, **MLP}, plus_one=True),
    "llama": Family(
        {**NORMS, **ATTENTION, **MLP},
        biases={"attention_bias": tuple(ATTENTION), "mlp_bias": tuple(MLP)},
        interleaved=("attn_q", "attn_k"),
    ),
    "phi3": Family({**NORMS, **FUSED}),
    "qwen2": Family(
        {**NORMS, **ATTENTION, **MLP}, biases={"qkv_bias": ("attn_q", "attn_k", "attn_v")}
    ),
    "qwen3": Family({**NORMS, **ATTENTION, **HEAD_NORMS, **MLP}),
    "qwen3moe": Family({**NORMS, **ATTENTION, **HEAD_NORMS, **EXPERTS}),
}
