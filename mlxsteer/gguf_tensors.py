"""Read the tensors of a GGUF file: as float32, or still packed in MLX's quantized layout.

Blocks are decoded here and not by `mx.load`, which (mlx 0.32) gives every second group of a Q4_K
tensor its neighbour's scale, drops newer types without a word and reads the whole file at once.
Rows are decoded a few at a time, straight from the mapped file, so that hardly anything but the
result takes memory. It knows nothing of models: names mean nothing here.

Q4_0, Q4_1 and Q8_0 are what MLX calls affine quantization, `w = scale * q + bias` for each group of
32: `packed` keeps their integers and is exact. The block layouts are those of ggml-common.h.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from .errors import MlxsteerError
from .gguf import GGML_TYPES, Header

__all__ = ["GROUP", "PACKED_BITS", "READABLE", "Array", "Packed", "dense", "packed"]

Array = np.ndarray[Any, np.dtype[Any]]

PACKED_BITS = {"Q4_0": 4, "Q4_1": 4, "Q8_0": 8}
GROUP = 32
CHUNK = 1 << 18  # weights decoded at a time: all intermediates stay in the processor's cache
BLOCKS = {name: (block, width) for name, block, width in GGML_TYPES.values()}


class Packed(NamedTuple):
    """One quantized matrix as MLX keeps it: rows of 32-bit words, a scale and bias per group.

    Experts are stacked: one dimension more at the front.
    """

    weight: Array  # [out, in * bits / 32] uint32
    scales: Array  # [out, in / 32] float16
    biases: Array  # [out, in / 32] float16


def dense(header: Header, name: str, order: Array | None = None) -> Array:
    """The tensor in float32, its rows (of a vector: its numbers) taken in `order` if given."""
    shape, rows, decode = header.tensors[name].shape, _rows(header, name), _decoder(header, name)
    if order is not None and len(shape) == 1:
        return dense(header, name)[order]
    out = np.empty((rows.shape[0], shape[-1]), np.float32)
    with np.errstate(all="ignore"):
        for part in _parts(*out.shape):
            out[part] = decode(rows[part] if order is None else rows[order[part]])
            _check_finite(header, name, out[part])
    return out.reshape(shape)


def packed(header: Header, name: str, order: Array | None = None) -> Packed:
    """The matrix as MLX's quantized `weight`, `scales` and `biases`; only types of PACKED_BITS."""
    kind, (*front, columns) = header.tensors[name].type, header.tensors[name].shape
    rows, pack = _rows(header, name), _PACKERS[kind]
    count = rows.shape[0]
    weight = np.empty((count, columns * PACKED_BITS[kind] // 32), np.uint32)
    scales = np.empty((count, columns // GROUP), np.float16)
    biases = np.empty_like(scales)
    with np.errstate(all="ignore"):
        for part in _parts(count, columns):
            taken = rows[part] if order is None else rows[order[part]]
            blocks = taken.reshape(-1, BLOCKS[kind][1])
            words, scale, bias = (piece.reshape(taken.shape[0], -1) for piece in pack(blocks))
            weight[part], scales[part], biases[part] = words, scale, bias
    _check_finite(header, name, scales)
    _check_finite(header, name, biases)
    return Packed(*(part.reshape(*front, -1) for part in (weight, scales, biases)))


def _check_finite(header: Header, name: str, values: Array) -> None:
    if not np.isfinite(values).all():
        raise MlxsteerError(
            f"{header.path}: tensor {name!r} holds NaN or infinity; download it again"
        )


def _rows(header: Header, name: str) -> Array:
    """The tensor's bytes `[rows, bytes of a row]`, mapped and not yet read."""
    info = header.tensors[name]
    block, width = BLOCKS[info.type]
    raw = np.memmap(header.path, np.uint8, "r", info.offset, (info.nbytes,))
    return raw.reshape(-1, info.shape[-1] // block * width)


def _parts(rows: int, columns: int) -> list[slice]:
    step = max(1, CHUNK // columns)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _decoder(header: Header, name: str) -> Callable[[Array], Array]:
    kind = header.tensors[name].type
    if kind not in READABLE:
        raise MlxsteerError(
            f"{header.path}: tensor {name!r} is of the type {kind}, which mlxsteer does not "
            f"decode; take a file of {', '.join(READABLE)}"
        )
    _, width = BLOCKS[kind]

    def decode(rows: Array) -> Array:
        return _DECODERS[kind](np.ascontiguousarray(rows).reshape(-1, width)).reshape(
            rows.shape[0], -1
        )

    return decode


# Each decoder takes blocks `[n, bytes]` uint8 and returns their weights, `[n, 32 or 256]` float32.


def _half(blocks: Array, at: int) -> Array:
    """The float16 at byte `at` of each block, `[n, 1]` float32."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16).astype(np.float32)


def _nibbles(bytes_: Array) -> Array:
    """Low halves first, then high halves: `[..., m]` to `[..., 2 m]`."""
    return np.concatenate([bytes_ & 15, bytes_ >> 4], axis=-1)


def _f32(blocks: Array) -> Array:
    return blocks.view(np.float32)


def _f16(blocks: Array) -> Array:
    return blocks.view(np.float16).astype(np.float32)


def _bf16(blocks: Array) -> Array:
    return (blocks.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _q4_0(blocks: Array) -> Array:
    return (_nibbles(blocks[:, 2:]).astype(np.float32) - 8) * _half(blocks, 0)


def _q4_1(blocks: Array) -> Array:
    return _nibbles(blocks[:, 4:]).astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _fifth_bits(blocks: Array, at: int) -> Array:
    """The fifth bit of each of the 32 weights, in its place, from 4 bytes at `at`."""
    return np.unpackbits(blocks[:, at : at + 4], axis=1, bitorder="little") << 4


def _q5_0(blocks: Array) -> Array:
    q = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks, 2)
    return (q.astype(np.float32) - 16) * _half(blocks, 0)


def _q5_1(blocks: Array) -> Array:
    q = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks, 4)
    return q.astype(np.float32) * _half(blocks, 0) + _half(blocks, 2)


def _q8_0(blocks: Array) -> Array:
    return blocks[:, 2:].view(np.int8).astype(np.float32) * _half(blocks, 0)


def _q2_k(blocks: Array) -> Array:
    scales = blocks[:, :16]
    scale = (_half(blocks, 80) * (scales & 15))[..., None]  # [n, 16 groups, 1]
    least = (_half(blocks, 82) * (scales >> 4))[..., None]
    weights: Array = scale * _crumbs(blocks[:, 16:80]).reshape(-1, 16, 16) - least
    return weights.reshape(-1, 256)


def _crumbs(bytes_: Array) -> Array:
    """256 two-bit integers from 64 bytes: each 32 bytes hold four runs of 32, lowest bits first."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return ((bytes_.reshape(-1, 2, 1, 32) >> shifts) & 3).reshape(-1, 256)


def _q3_k(blocks: Array) -> Array:
    mask, low, packed_scales = blocks[:, :32], blocks[:, 32:96], blocks[:, 96:108]
    high = (packed_scales[:, None, 8:] >> np.arange(0, 8, 2, dtype=np.uint8)[:, None]) & 3
    scales = _nibbles(packed_scales[:, :8]) | (high.reshape(-1, 16) << 4)  # 6 bits
    scale = (_half(blocks, 108) * (scales.astype(np.float32) - 32))[..., None]
    third = (mask[:, None] >> np.arange(8, dtype=np.uint8)[:, None]) & 1  # [n, 8, 32]
    q = _crumbs(low).astype(np.float32) - 4.0 * (1 - third.reshape(-1, 256).astype(np.float32))
    weights: Array = scale * q.reshape(-1, 16, 16)
    return weights.reshape(-1, 256)


def _six_bits(blocks: Array) -> tuple[Array, Array]:
    """Scale and minimum of each of the eight groups of a Q4_K or Q5_K block, `[n, 8, 1]`."""
    first, second, rest = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = np.concatenate([first & 63, (rest & 15) | (first >> 6 << 4)], axis=1)
    least = np.concatenate([second & 63, (rest >> 4) | (second >> 6 << 4)], axis=1)
    return (_half(blocks, 0) * scales)[..., None], (_half(blocks, 2) * least)[..., None]


def _q4_k(blocks: Array) -> Array:
    scale, least = _six_bits(blocks)
    q = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    weights: Array = scale * q - least
    return weights.reshape(-1, 256)


def _q5_k(blocks: Array) -> Array:
    scale, least = _six_bits(blocks)
    fifth = (blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None]) & 1
    q = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | (fifth << 4)
    weights: Array = scale * q - least
    return weights.reshape(-1, 256)


def _q6_k(blocks: Array) -> Array:
    low, scales = blocks[:, :128].reshape(-1, 2, 64), blocks[:, 192:208].view(np.int8)
    q = _nibbles(low).reshape(-1, 256) | (_crumbs(blocks[:, 128:192]) << 4)
    scale = (_half(blocks, 208) * scales)[..., None]
    weights: Array = scale * (q.reshape(-1, 16, 16).astype(np.float32) - 32)
    return weights.reshape(-1, 256)


_DECODERS: dict[str, Callable[[Array], Array]] = {
    "F32": _f32,
    "F16": _f16,
    "BF16": _bf16,
    "Q4_0": _q4_0,
    "Q4_1": _q4_1,
    "Q5_0": _q5_0,
    "Q5_1": _q5_1,
    "Q8_0": _q8_0,
    "Q2_K": _q2_k,
    "Q3_K": _q3_k,
    "Q4_K": _q4_k,
    "Q5_K": _q5_k,
    "Q6_K": _q6_k,
}
READABLE = tuple(_DECODERS)

# Each packer takes blocks `[n, bytes]` and returns words `[n, bits]`, scale and bias `[n, 1]`.


def _pack_nibbles(bytes_: Array) -> Array:
    """GGML's 16 bytes (low halves are weights 0-15, high halves 16-31) as MLX's four words."""
    q = _nibbles(bytes_)
    return np.ascontiguousarray(q[:, 0::2] | (q[:, 1::2] << 4)).view(np.uint32)


def _raw_half(blocks: Array, at: int) -> Array:
    return np.ascontiguousarray(blocks[:, at : at + 2]).view(np.float16)


def _pack_q4_0(blocks: Array) -> tuple[Array, Array, Array]:
    scale = _raw_half(blocks, 0)
    return _pack_nibbles(blocks[:, 2:]), scale, scale * np.float16(-8)


def _pack_q4_1(blocks: Array) -> tuple[Array, Array, Array]:
    return _pack_nibbles(blocks[:, 4:]), _raw_half(blocks, 0), _raw_half(blocks, 2)


def _pack_q8_0(blocks: Array) -> tuple[Array, Array, Array]:
    scale = _raw_half(blocks, 0)
    words = np.ascontiguousarray(blocks[:, 2:] ^ 128).view(np.uint32)  # signed to unsigned
    return words, scale, scale * np.float16(-128)


_PACKERS = {"Q4_0": _pack_q4_0, "Q4_1": _pack_q4_1, "Q8_0": _pack_q8_0}
