"""The tensors of DeepSeek-V4 files, brought to the names and packings of our definition.

| files | what is done |
| --- | --- |
| official | FP8 and FP4 weights keep their bits, as mxfp8 and mxfp4; experts are stacked |
| conversions by drafts of mlx-lm | the names are ours; `wo_a` may have to be cut anew |
| early conversions | official names with mlx's scales; experts are stacked, `wo_a` is in pieces |

An official FP8 weight has a power-of-two scale per 128 x 128 values, an FP4 one per 32. mxfp8 wants
one per 32, so FP8 scales are repeated; no number changes. What decides the mixture of streams, the
routing and the pooling is kept in float32, norms in the dtype of the embedding: a float32 norm
would turn the whole residual stream, and every cache, into float32.

It knows nothing of modules or of where files lie. Other names are refused when they are loaded.
"""

import re
from typing import Any, Protocol

import mlx.core as mx

from ..errors import MlxsteerError

__all__ = ["Packing", "is_wide", "packing", "sanitized"]

BLOCK, GROUP = 128, 32  # values of a row per scale: of official FP8, of mxfp8 and mxfp4

Weights = dict[str, mx.array]
Packing = dict[str, dict[str, Any]]

PROJECTIONS = {"w1": "gate_proj", "w2": "down_proj", "w3": "up_proj"}
RENAMED = (  # all of it leaves our own names alone
    (r"^model\.", ""),
    (r"\.mlp\.", ".ffn."),
    (r"^embed\.", "embed_tokens."),
    (r"^head\.", "lm_head."),
    (r"^hc_head_", "hc_head."),
    (r"\.hc_(attn|ffn)_", r".\1_hc."),
    (r"\.ffn\.gate\.bias$", ".ffn.gate.e_score_correction_bias"),
    (r"\.ffn\.experts\.(\d+\.)?w([123])\.", r".ffn.switch_mlp.\1w\2."),
)
WIDE = re.compile(
    r"_hc\.(fn|base|scale)$|hc_head\.(fn|base|scale)$|\.attn_sink$|\.ape$"
    r"|\.ffn\.gate\.(weight|e_score_correction_bias)$|\.compressor\.w(kv|gate)\.weight$"
)


class Args(Protocol):
    """What is read of `ModelArgs`."""

    n_routed_experts: int
    o_groups: int


def is_wide(name: str) -> bool:
    """Whether a parameter of our definition is kept in float32."""
    return WIDE.search(name) is not None


def packing(config: dict[str, Any]) -> Packing | None:
    """Return mlx-lm's words for how official files are packed; None where it finds them itself.

    The words are those of FP8; which modules are FP4 is seen from their scales.

    Raises:
        MlxsteerError: FP8 in blocks or with scales of another kind.
    """
    said = config.get("quantization_config")
    if "quantization" in config or not isinstance(said, dict) or said.get("quant_method") != "fp8":
        return None
    block, scales = said.get("weight_block_size"), said.get("scale_fmt")
    if block != [BLOCK, BLOCK] or scales != "ue8m0":
        raise MlxsteerError(
            f"the weights are FP8 in blocks of {block!r} with scales {scales!r}; known is only "
            f"[{BLOCK}, {BLOCK}] with 'ue8m0': take the official files or a conversion to mlx"
        )
    return {"quantization": {"group_size": GROUP, "bits": 8, "mode": "mxfp8"}}


def sanitized(weights: Weights, args: Args) -> Weights:
    """Return the tensors under our names, in our packings.

    Raises:
        MlxsteerError: the weights of an expert are missing, or scales are of another kind.
    """
    weights = _stacked(_renamed(_repacked(weights)), args)
    weights = {name: _grouped(name, array, args) for name, array in weights.items()}
    streams = _dtype_of_streams(weights)
    for name, array in weights.items():
        if not mx.issubdtype(array.dtype, mx.floating):
            continue
        if is_wide(name):
            weights[name] = array.astype(mx.float32)
        elif name.endswith("norm.weight"):
            weights[name] = array.astype(streams)
    return weights


def _dtype_of_streams(weights: Weights) -> mx.Dtype:
    """What the embedding puts out: its own dtype, or that of its scales where these have one."""
    embedding = "model.embed_tokens"
    of = weights.get(f"{embedding}.scales", weights.get(f"{embedding}.weight"))
    return of.dtype if of is not None and mx.issubdtype(of.dtype, mx.floating) else mx.bfloat16


def _repacked(weights: Weights) -> Weights:
    """View official FP8 and FP4 as mlx packs them; the scales of each stand beside it."""
    out = {}
    for name, array in weights.items():
        module, _, kind = name.rpartition(".")
        scales = weights.get(f"{module}.scale")
        if kind == "scale" and f"{module}.weight" in weights:
            continue
        if kind != "weight" or (scales is None and array.dtype not in (mx.int8, mx.uint8)):
            out[name] = array
            continue
        if scales is None:
            raise MlxsteerError(f"{module}.scale is missing; download the weights again")
        if scales.dtype != mx.uint8:
            raise MlxsteerError(
                f"{module}.scale is {scales.dtype}, not powers of two in a byte each: take the "
                "official DeepSeek-V4-Flash or a conversion to mlx"
            )
        if array.dtype == mx.uint8:  # FP8 in blocks; FP4 comes as int8, with a scale per group
            rows, columns = array.shape
            scales = mx.repeat(mx.repeat(scales, BLOCK, axis=0), BLOCK // GROUP, axis=1)
            scales = scales[:rows, : columns // GROUP]
        out[name] = array.view(mx.uint32)
        out[f"{module}.scales"] = scales
    return out


def _renamed(weights: Weights) -> Weights:
    out = {}
    for name, array in weights.items():
        for old, new in RENAMED:
            name = re.sub(old, new, name)
        for old, new in PROJECTIONS.items():
            name = re.sub(
                rf"(\.(?:shared_experts|switch_mlp)(?:\.\d+)?)\.{old}\.", rf"\1.{new}.", name
            )
        name = name if name.startswith("lm_head.") else f"model.{name}"
        out[name] = array.astype(mx.int32) if name.endswith("tid2eid") else array
    return out


def _stacked(weights: Weights, args: Args) -> Weights:
    """Stack what comes in numbered pieces: experts, and the groups of `wo_a`."""
    out: Weights = {}
    pieces: dict[str, dict[int, mx.array]] = {}
    for name, array in weights.items():
        if found := re.fullmatch(r"(.*\.(?:switch_mlp|wo_a))\.(\d+)\.(.*)", name):
            pieces.setdefault(f"{found[1]}.{found[3]}", {})[int(found[2])] = array
        else:
            out[name] = array
    for name, rows in pieces.items():
        count = args.o_groups if ".wo_a." in name else args.n_routed_experts
        missing = sorted(set(range(count)) - rows.keys())
        if missing or len(rows) != count:
            raise MlxsteerError(
                f"{name} is there for {len(rows)} of {count} pieces"
                + (f", {missing[0]} is missing" if missing else "")
                + "; download the weights again"
            )
        out[name] = mx.stack([rows[i] for i in range(count)])
    return out


def _grouped(name: str, array: mx.array, args: Args) -> mx.array:
    """Give `wo_a`, whose rows are those of all groups, its axis of groups."""
    if ".attn.wo_a." in name and array.ndim == 2:
        return array.reshape(args.o_groups, -1, array.shape[-1])
    return array
