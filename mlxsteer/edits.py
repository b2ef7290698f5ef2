"""The algebra of edits: what is done to one activation, written once as arithmetic on arrays.

An edit is a `kind` (hashable, decides the formula) and `arrays` (strengths and directions, the only
things that change while a model writes). Strengths always travel as arrays: a Python float inside
a compiled function would be frozen there, the slider would move and nothing would change.

`join` compiles a whole tap, `h + (r + edits) + edits`, into one function per combination of kinds:
for additive edits one graph node, as many as the plain add, in every dtype. Vectors are float32 and
are cast to the dtype of the stream inside the compiled function, so that a bfloat16 stream stays
bfloat16.

Shapes: `x`, `h`, `r` are `[B, T, D]`; an additive vector is `[D]` or `[B, 1, D]`, its weight over
tokens `[1, T, 1]` or `[B, T, 1]`. This module knows nothing of layers, sites, phases or files.
"""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

__all__ = ["Edit", "add", "apply", "join"]


@dataclass(frozen=True)
class Edit:
    """One edit of one activation.

    Attributes:
        kind: which formula. `add`: `x + v`; `add-weighted`: `x + w * v`.
        arrays: the operands of the formula, in its order.
    """

    kind: str
    arrays: tuple[mx.array, ...]


_OPERANDS = {"add": 1, "add-weighted": 2}


def add(vector: mx.array, weight: mx.array | None = None) -> Edit:
    """Return the additive edit `x + weight * vector` (contrastive activation addition)."""
    if weight is None:
        return Edit("add", (vector,))
    return Edit("add-weighted", (vector, weight))


def _edited(x: mx.array, kinds: tuple[str, ...], arrays: Iterator[mx.array]) -> mx.array:
    for kind in kinds:
        operands = [next(arrays) for _ in range(_OPERANDS[kind])]
        v = operands[0] if kind == "add" else operands[0] * operands[1]
        x = x + v.astype(x.dtype)
    return x


def apply(x: mx.array, edits: tuple[Edit, ...]) -> mx.array:
    """Return `x` with the edits done in order, uncompiled: what `join` fuses."""
    return _edited(x, *_flat(edits))


def _flat(edits: tuple[Edit, ...]) -> tuple[tuple[str, ...], Iterator[mx.array]]:
    return tuple(e.kind for e in edits), (a for e in edits for a in e.arrays)


@functools.cache
def _compiled(
    plain_add: Callable[[mx.array, mx.array], mx.array],
    writes: tuple[str, ...],
    streams: tuple[str, ...],
) -> Callable[..., mx.array]:
    def fused(h: mx.array, r: mx.array, *arrays: mx.array) -> mx.array:
        rest = iter(arrays)
        r = _edited(r, writes, rest)
        return _edited(plain_add(h, r), streams, rest)

    compiled: Callable[..., mx.array] = mx.compile(fused, shapeless=True)
    return compiled


def join(
    h: mx.array,
    r: mx.array,
    writes: tuple[Edit, ...],
    streams: tuple[Edit, ...],
    plain_add: Callable[[mx.array, mx.array], mx.array],
) -> mx.array:
    """Return the edited join as one compiled call.

    Args:
        h: residual before the join, `[B, T, D]`.
        r: the sub-layer's output, `[B, T, D]`.
        writes: edits of `r`.
        streams: edits of the sum.
        plain_add: the family's own add.
    """
    write_kinds, write_arrays = _flat(writes)
    stream_kinds, stream_arrays = _flat(streams)
    return _compiled(plain_add, write_kinds, stream_kinds)(h, r, *write_arrays, *stream_arrays)
