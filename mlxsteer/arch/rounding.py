"""Activations rounded to the formats that a model was trained to store them in.

DeepSeek-V4 learned with its keys rounded to 8 bits and those of its indexer to 4; without the
rounding the indexer picks other entries than the released model. Each block of values is divided by
the smallest power of two that brings it into the format's range, rounded to the nearest number of
the format (ties to even) and multiplied back. It knows nothing of models.

Shapes: any `[..., D]` with `D` a multiple of the block; the dtype is kept.
"""

import mlx.core as mx

__all__ = ["FP4_BLOCK", "FP8_BLOCK", "round_fp4", "round_fp8"]

FP4_BLOCK, FP8_BLOCK = 32, 64
FP4_MAX, FP8_MAX = 6.0, 448.0
FP8_LEAST = 1e-4  # what a block's largest magnitude counts for at least
FP4_LEAST = FP4_MAX * 2.0**-126


def round_fp8(x: mx.array) -> mx.array:
    """Return `x` in float8 e4m3, a scale per 64 values."""
    blocks, scale = _scaled(x, FP8_BLOCK, FP8_MAX, FP8_LEAST)
    rounded = mx.from_fp8(mx.to_fp8(blocks), mx.float32)
    return (rounded * scale).reshape(x.shape).astype(x.dtype)


def round_fp4(x: mx.array) -> mx.array:
    """Return `x` in float4 e2m1 (0, 0.5, 1, 1.5, 2, 3, 4, 6), a scale per 32 values."""
    blocks, scale = _scaled(x, FP4_BLOCK, FP4_MAX, FP4_LEAST)
    size = mx.abs(blocks)
    step = mx.where(size < 2, 0.5, mx.where(size < 4, 1.0, 2.0))
    return (mx.round(blocks / step) * step * scale).reshape(x.shape).astype(x.dtype)


def _scaled(x: mx.array, block: int, most: float, least: float) -> tuple[mx.array, mx.array]:
    """Return `x` in blocks within `most`, float32, and the scale of each block."""
    blocks = x.astype(mx.float32).reshape(*x.shape[:-1], -1, block)
    largest = mx.maximum(mx.abs(blocks).max(axis=-1, keepdims=True), least) * (1 / most)
    # the next power of two, in the bits of the number: a logarithm may be off at the powers
    bits = (largest.view(mx.uint32) + 0x7FFFFF) & 0x7F800000
    scale = bits.view(mx.float32)
    return mx.clip(blocks / scale, -most, most), scale
