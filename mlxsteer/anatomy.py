"""What the parts of a block are called in mlx-lm's models: one row of words per family.

A family is the module of mlx-lm that defines the block, or `module.Class` where one module has
several. Most need no row: their words are among the usual ones, of which a block has one of each.
Nothing here is code that runs a model, and no word is believed: `selftest` holds each against what
the model computes. It knows nothing of vectors.

    words_of(model.layers[0]).attn     # where `attn_out` is edited
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import mlx.nn as nn

__all__ = ["WORDS", "Words", "leaf", "part", "words_of"]


@dataclass(frozen=True)
class Words:
    """The words of one family.

    `attn` and `mlp` name the modules of a block whose outputs join the residual stream, e.g. the
    norm behind an attention: alternatives stand apart, dots lead inside, and `a+b` are two whose
    sum joins, the one called last behind the plus.

    Attributes:
        attn: what joins first.
        mlp: what joins second; none in blocks of one sub-layer.
        parallel: whether both read the same stream, so that there is no `resid_mid`; or the name of
            the block's attribute that says so.
        sums: whether the block's output is its input plus what joins, and nothing else.
        scale: the number by which a block multiplies what joins.
        argument: which argument of the block is the stream.
        entry: a module through which the stream goes before anything joins, if the block has it.
        streams: the axis over parallel streams, of which the mean counts.
        loops: the attribute, beside the list of blocks, that says how often the list is run; each
            visit is a layer of its own.
        refused: why models of the family are not steered.
    """

    attn: str = "self_attn attn attention linear_attn mamba conv mixer"
    mlp: str = "mlp feed_forward ffn block_sparse_moe moe"
    parallel: bool | str = False
    sums: bool = True
    scale: Callable[[Any], float] | None = None
    argument: int = 0
    entry: str = ""
    streams: int | None = None
    loops: str = ""
    refused: str = ""


def _granite(block: Any) -> float:
    return float(block.residual_multiplier)


def _minicpm(block: Any) -> float:
    return float(block.scale_depth / block.num_hidden_layers**0.5)


_PARALLEL = Words(parallel=True)
_SANDWICH = Words("post_attention_layernorm", "post_feedforward_layernorm")

# family -> its words, where they are not the usual ones
WORDS: dict[str, Words] = {
    "afmoe": Words("post_attention_layernorm", "post_mlp_layernorm"),
    "cohere": _PARALLEL,
    "cohere2": _PARALLEL,
    "dbrx": Words("norm_attn_norm.attn"),
    "deepseek_v41": Words(parallel=True, sums=False, streams=2),
    "exaone": Words("attn.attention"),
    "exaone4": _SANDWICH,
    "falcon_h1": Words("mamba+self_attn"),
    "gear": _SANDWICH,
    "gemma2": _SANDWICH,
    "gemma3_text": _SANDWICH,
    "gemma3n": Words("", "", sums=False, streams=0),
    "gemma4_text": Words("post_attention_layernorm", "post_feedforward_layernorm", sums=False),
    "glm4": Words("post_self_attn_layernorm", "post_mlp_layernorm"),
    "gpt_neox": Words(parallel="use_parallel_residual"),
    "gptj": _PARALLEL,
    "granite": Words(scale=_granite),
    "granitemoe": Words(scale=_granite),
    "granitemoehybrid": Words(mlp="block_sparse_moe+shared_mlp mlp", scale=_granite),
    "iquestloopcoder": Words(
        refused="it runs the parts of its blocks past the blocks, twice with other attention"
    ),
    "kimi_k3": Words(parallel="use_attn_res", sums=False),
    "longcat_flash": Words("", "", sums=False),
    "minicpm": Words(scale=_minicpm),
    "minicpm3": Words(scale=_minicpm),
    "muse_glimmer": _SANDWICH,
    "muse_spark": Words(
        refused="its blocks hand on the next norm's output beside the stream, which no edit reaches"
    ),
    "nanbeige": Words(loops="num_loops"),
    "olmo": Words("attn_out", "ff_out"),
    "olmo2": _SANDWICH,
    "olmo3": _SANDWICH,
    "olmo_hybrid.FullAttentionDecoderLayer": _SANDWICH,
    "phi": _PARALLEL,
    "phixtral": _PARALLEL,
    "plamo": _PARALLEL,
    "plamo2": Words("post_mixer_norm", "post_mlp_norm"),
    "plamo3": Words("post_mixer_norm", "post_mlp_norm"),
    "recurrent_gemma": Words("temporal_block", "mlp_block"),
    "rwkv7": Words(entry="pre_norm"),
    "stablelm": Words(parallel="use_parallel_residual"),
    "talkie": Words("attn_gain", "mlp_gain", sums=False, argument=1),
}


def words_of(block: nn.Module) -> Words:
    """Return the words of a block's family."""
    family = type(block).__module__.rpartition(".")[2]
    return WORDS.get(f"{family}.{type(block).__name__}") or WORDS.get(family) or Words()


def part(block: nn.Module, names: str) -> tuple[tuple[str, ...], ...]:
    """Return the routes to the first alternative that the block has, the last the one called last.

    `(("mamba",), ("self_attn",))` for `mamba+self_attn`; nothing if it has none.
    """
    for alternative in names.split():
        routes = tuple(tuple(name.split(".")) for name in alternative.split("+"))
        if all(leaf(block, route) is not None for route in routes):
            return routes
    return ()


def leaf(block: nn.Module, route: tuple[str, ...]) -> nn.Module | None:
    """Return the module at a route, or None."""
    node: Any = block
    for name in route:
        node = node.get(name)
        if not isinstance(node, nn.Module):
            return None
    return cast(nn.Module, node)
