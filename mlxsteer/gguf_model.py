"""Build one of our models from a GGUF file: its config, its weights, its rotary frequencies.

Everything the file holds is checked by name, shape and type before a weight is read. Tensors are
converted one at a time, the largest first, so that loading needs hardly more memory than the model
does. It knows nothing of tokenizers, of model names or of the Hub.

Files of the llama family hold the rows of q and k for interleaved rotary positions,
`[heads, d/2, 2]`; our definitions rotate halves, `[heads, 2, d/2]`. Rows are put back in order,
packed or not. Gemma's norms are stored as `1 + w`; ours are w.
"""

import logging
from collections import Counter
from collections.abc import Iterator
from math import prod
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .arch import get_classes
from .errors import MlxsteerError
from .gguf import Header
from .gguf_configs import LONG_FACTORS, ROPE_FACTORS, SHORT_FACTORS
from .gguf_families import Tensor, config_of, wanted_tensors
from .gguf_tensors import GROUP, PACKED_BITS, READABLE, Array, dense, packed
from .progress import Progress, silent

__all__ = ["load_gguf_model", "model_config", "quantization", "resident_bytes", "stored_dtype"]

UNPACKED = {"F32", "F16", "BF16"}
FACTORS = (ROPE_FACTORS, LONG_FACTORS, SHORT_FACTORS)  # no weights, always float32

log = logging.getLogger("mlxsteer")


def quantization(header: Header) -> str:
    """The type that holds most weights: "q4_1", "q4_k"; "none" for F32, F16 and BF16."""
    kind = _main_type(header)
    return "none" if kind in UNPACKED else kind.lower()


def stored_dtype(header: Header) -> mx.Dtype:
    """What to compute in when weights are kept as stored: bfloat16, or float32 if they are that.

    Not float16, although GGUF keeps its scales in it: in SmolLM2-135M one MLP writes 24,900 into
    the residual stream at the first token, float16 ends at 65,504, and steering pushes further.
    Rounding scales to bfloat16 moves weights by at most 0.4%, far less than 4 bits have moved them.
    """
    return mx.float32 if _main_type(header) == "F32" else mx.bfloat16


def _main_type(header: Header) -> str:
    weights = Counter({"F32": 0})
    for info in header.tensors.values():
        weights[info.type] += prod(info.shape)
    return weights.most_common(1)[0][0]


def resident_bytes(header: Header, dtype: mx.Dtype, keep_quantized: bool) -> int:
    """Bytes of all weights once loaded."""
    total = 0
    for name, info in header.tensors.items():
        if name in FACTORS:
            continue
        bits: float = dtype.size * 8
        if keep_quantized and info.type in PACKED_BITS:
            bits = PACKED_BITS[info.type] + 2 * bits / GROUP
        total += int(prod(info.shape) * bits / 8)
    return total


def model_config(header: Header) -> dict[str, Any]:
    """The config of our definition, in the words of a Hugging Face `config.json`."""
    config = config_of(header)
    if config["rope_scaling"] == {"type": "longrope"}:
        for key, name in (("long_factor", LONG_FACTORS), ("short_factor", SHORT_FACTORS)):
            config["rope_scaling"][key] = _factors(header, name).tolist()
    return config


def load_gguf_model(
    header: Header, *, dtype: mx.Dtype, keep_quantized: bool, progress: Progress = silent
) -> nn.Module:
    """Build the model with its weights in `dtype`.

    With `keep_quantized`, Q4_0, Q4_1 and Q8_0 stay packed and their scales are in `dtype`.
    """
    config = model_config(header)
    wanted = wanted_tensors(header, config)
    _check_types(header)
    model_class, args_class = get_classes(config)
    model: nn.Module = model_class(args_class.from_dict(config))  # type: ignore[attr-defined]
    if config["tie_word_embeddings"]:
        model.pop("lm_head", None)  # Gemma's definition has one until it sees the weights
    kept = {
        name
        for name, tensor in wanted.items()
        if keep_quantized and len(tensor.shape) > 1 and header.tensors[name].type in PACKED_BITS
    }
    bits = {wanted[name].module: PACKED_BITS[header.tensors[name].type] for name in kept}

    def how(path: str, module: nn.Module) -> bool | dict[str, int]:
        return {"group_size": GROUP, "bits": bits[path]} if path in bits else False

    nn.quantize(model, class_predicate=how)
    _say(header, dtype, keep_quantized)
    weights: list[tuple[str, mx.array]] = []
    order = sorted(wanted, key=lambda name: -prod(wanted[name].shape))
    for done, name in enumerate(order):
        progress("loading weights", done, len(order))
        for path, array in _arrays(header, name, wanted[name], dtype, name in kept):
            mx.eval(array)
            weights.append((path, array))
    model.load_weights(weights, strict=True)
    if ROPE_FACTORS in header.tensors:
        _set_rotary(model, header, config)
    model.eval()
    mx.clear_cache()
    progress("loading weights", len(order), len(order))
    return model


def _check_types(header: Header) -> None:
    kinds = Counter(info.type for info in header.tensors.values())
    if unread := sorted(set(kinds) - set(READABLE)):
        raise MlxsteerError(
            f"{header.path}: {kinds[unread[0]]} tensors are of the type {unread[0]}, which "
            f"mlxsteer does not decode; take a file of {', '.join(READABLE)}"
        )


def _arrays(
    header: Header, name: str, tensor: Tensor, dtype: mx.Dtype, keep: bool
) -> Iterator[tuple[str, mx.array]]:
    rows = _row_order(tensor.shape[0], tensor.heads) if tensor.heads else None
    if keep:
        parts = packed(header, name, rows)
        yield f"{tensor.module}.weight", mx.array(parts.weight)
        yield f"{tensor.module}.scales", mx.array(parts.scales).astype(dtype)
        yield f"{tensor.module}.biases", mx.array(parts.biases).astype(dtype)
    else:
        weight = dense(header, name, rows)
        if tensor.shift:
            weight -= np.float32(tensor.shift)
        yield f"{tensor.module}.{tensor.parameter}", mx.array(weight).astype(dtype)


def _row_order(count: int, heads: int) -> Array:
    """Where each of our rows lies in the file: `[heads, d/2, 2]` read as `[heads, 2, d/2]`."""
    return np.arange(count).reshape(heads, -1, 2).swapaxes(1, 2).reshape(-1)


def _say(header: Header, dtype: mx.Dtype, keep_quantized: bool) -> None:
    kinds = {info.type for info in header.tensors.values()} - UNPACKED
    kinds -= set(PACKED_BITS) if keep_quantized else set()
    if kinds:
        log.info(
            "%s: %s weights are dequantized to %s; the model takes %.2f GB",
            header.path.name,
            ", ".join(sorted(kinds)),
            str(dtype).removeprefix("mlx.core."),
            resident_bytes(header, dtype, keep_quantized) / 1e9,
        )


def _factors(header: Header, name: str) -> Array:
    factors = dense(header, name)
    if not (factors > 0).all():
        raise MlxsteerError(
            f"{header.path}: tensor {name!r} stretches a wavelength by {factors.min()}; "
            "download it again"
        )
    return factors


class FactoredRoPE(nn.Module):
    """Rotary positions whose wavelengths are stretched one by one: `base^(2i/d) * factors_i`."""

    def __init__(self, dims: int, base: float, factors: mx.array) -> None:
        super().__init__()
        self.dims = dims
        self._freqs = base ** (mx.arange(0, dims, 2, dtype=mx.float32) / dims) * factors

    def __call__(self, x: mx.array, offset: int | mx.array = 0) -> mx.array:
        return mx.fast.rope(
            x, self.dims, traditional=False, base=None, scale=1.0, offset=offset, freqs=self._freqs
        )


def _set_rotary(model: Any, header: Header, config: dict[str, Any]) -> None:
    """Give every block the frequencies of the file.

    The file holds the outcome of Llama 3's scaling formula and not its four numbers; the outcome is
    all that the computation needs.
    """
    factors = mx.array(_factors(header, ROPE_FACTORS))
    rope = FactoredRoPE(config["head_dim"], config["rope_theta"], factors)
    mx.eval(rope._freqs)
    for block in model.layers:
        block.self_attn.rope = rope
