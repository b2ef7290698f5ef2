"""The algebra of edits: what is done to one activation, written once as arithmetic on arrays.

Every edit is a case of

    x + sum_i w * (a_i + g_i * f(x . r_i + b_i)) d_i

with directions `d`, reading rows `r` (the directions themselves unless an SAE brings its encoder
row), `f` the identity or relu, and a weight `w` over tokens. All edits of one place read the same
`x`. An `Edit` is a `kind` (hashable, decides the formula) and `arrays`, the only things that change
while a model writes: a Python float inside a compiled function would be frozen there, the slider
would move and nothing would change.

`joining` makes a whole tap, `h + (r + edits) + edits`, one function per combination of kinds;
`carry` does so with the edits of one place in a model that adds by itself.
Additive edits are one graph node, as many as the plain add, in every dtype: vectors are float32 and
are cast to the stream's dtype inside the compiled function, so a bfloat16 stream stays bfloat16.
The others read and sum in float32 and round once.

Shapes: `x`, `h`, `r` are `[B, T, D]`. Rows of a batch that agree share their arrays, else these
have a leading `B`. Several residual streams, `[B, T, S, D]`, are edited each on its own and alike.
This module knows nothing of layers, sites, phases or files.
"""

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import mlx.core as mx

__all__ = [
    "Edit",
    "Kind",
    "add",
    "apply",
    "carry",
    "joining",
    "keep_norm",
    "read_and_write",
    "weighted",
]


_Add = Callable[..., mx.array]


@dataclass(frozen=True)
class Kind:
    """Which formula.

    Attributes:
        name: `add` (v), `one` and `many` (r, b, a, g, d) or `norm` (keep).
        weighted: whether a weight over tokens follows the operands.
        relu: whether the reading passes a relu.
    """

    name: str
    weighted: bool = False
    relu: bool = False


@dataclass(frozen=True)
class Edit:
    """One edit of one activation: a formula and its operands, in its order."""

    kind: Kind
    arrays: tuple[mx.array, ...]


_OPERANDS = {"add": 1, "one": 5, "many": 5, "norm": 1}


def add(vector: mx.array) -> Edit:
    """Return `x + v` (contrastive activation addition, Rimsky et al. 2023, arXiv:2312.06681).

    Args:
        vector: `[D]` or `[B, 1, D]`.
    """
    return Edit(Kind("add"), (vector,))


def read_and_write(
    rows: mx.array,
    bias: mx.array,
    base: mx.array,
    gain: mx.array,
    directions: mx.array,
    *,
    relu: bool = False,
) -> Edit:
    """Return `x + sum_i (base_i + gain_i f(x . rows_i + bias_i)) directions_i`.

    Args:
        rows: what is read, `[k, D]` or `[B, k, D]`.
        bias, base, gain: `[k]` or `[B, k]`.
        directions: what is written, as `rows`.
        relu: `f` is relu instead of the identity.
    """
    numbers = tuple(x if x.ndim == 1 else x[:, None, :] for x in (bias, base, gain))
    if rows.shape[-2] == 1:  # [D] or [B, 1, D]: one reduction is cheaper than two products
        flat = (rows[0], directions[0]) if rows.ndim == 2 else (rows, directions)
        arrays: tuple[mx.array, ...] = (flat[0], *numbers, flat[1])
    else:
        columns = mx.contiguous(mx.swapaxes(rows, -1, -2))
        arrays = tuple(x if x.ndim == 3 else x[None] for x in (columns, *numbers, directions))
    mx.eval(arrays)
    return Edit(Kind("one" if rows.shape[-2] == 1 else "many", relu=relu), arrays)


def weighted(edit: Edit, weight: mx.array) -> Edit:
    """Return the edit with a weight over tokens, `[1 or B, T, 1]`; one that reads k directions may
    have one for each of them, `[1 or B, T, k]`.
    """
    return Edit(dataclasses.replace(edit.kind, weighted=True), (*edit.arrays, weight))


def keep_norm(rows: mx.array) -> Edit:
    """Return the edit that gives every token the norm back that it had before the other edits.

    Args:
        rows: `[1, 1, 1]` or `[B, 1, 1]`, 1 for rows of the batch that keep norms, 0 for others.
    """
    return Edit(Kind("norm"), (rows,))


def _edited(
    x: mx.array, kinds: tuple[Kind, ...], arrays: Iterator[mx.array], plain_add: _Add = operator.add
) -> mx.array:
    operands = [
        (kind, [next(arrays) for _ in range(_OPERANDS[kind.name] + kind.weighted)])
        for kind in kinds
    ]
    if x.ndim == 4:
        operands = [(kind, _for_streams(kind, values)) for kind, values in operands]
    if all(kind.name == "add" for kind in kinds):
        for kind, (v, *weight) in operands:
            x = plain_add(x, (v * weight[0] if kind.weighted else v).astype(x.dtype))
        return x
    before = x.astype(mx.float32)
    parts, keep = [], None
    for kind, values in operands:
        if kind.name == "norm":
            keep = values[0]
            continue
        if kind.name == "add":
            part = values[0] * values[-1] if kind.weighted else values[0]
        else:
            rows, bias, base, gain, directions = values[:5]
            one = kind.name == "one"
            reading = bias + ((before * rows).sum(-1, keepdims=True) if one else before @ rows)
            write = base + gain * (mx.maximum(reading, 0) if kind.relu else reading)
            write = write * values[-1] if kind.weighted else write
            part = write * directions if one else write @ directions
        parts.append(part)
    total = functools.reduce(operator.add, parts)
    if keep is None:
        return _rounded(before + total, x.dtype, plain_add)
    old = mx.square(before).sum(-1, keepdims=True)
    new = mx.square(before + total).sum(-1, keepdims=True)
    ratio = mx.where((new > 0) & (keep > 0), mx.sqrt(old / mx.where(new > 0, new, 1)), 1)
    # not (before + total) * ratio: that sum would be a kernel of its own, read twice
    return _rounded(before * ratio + total * ratio, x.dtype, plain_add)


def _rounded(x: mx.array, dtype: mx.Dtype, plain_add: _Add) -> mx.array:
    """Round to the stream's dtype; an add that clips does so to what is edited, too."""
    x = x.astype(dtype)
    return x if plain_add is operator.add else plain_add(x, mx.array(0, dtype))


def _for_streams(kind: Kind, values: list[mx.array]) -> list[mx.array]:
    """Give what has an axis of rows or of tokens an axis of streams, too, of size 1."""
    *operands, last = [v[:, None] if v.ndim == 3 else v for v in values]
    return [*operands, values[-1][..., None, :] if kind.weighted else last]


def apply(x: mx.array, edits: tuple[Edit, ...]) -> mx.array:
    """Return `x` with the edits done, uncompiled: what `joining` fuses."""
    return _edited(x, *_flat(edits))


def _flat(edits: tuple[Edit, ...]) -> tuple[tuple[Kind, ...], Iterator[mx.array]]:
    return tuple(e.kind for e in edits), (a for e in edits for a in e.arrays)


@functools.cache
def _compiled(
    plain_add: _Add,
    more: int,
    writes: tuple[Kind, ...],
    streams: tuple[Kind, ...],
) -> Callable[..., mx.array]:
    def fused(h: mx.array, r: mx.array, *arrays: mx.array) -> mx.array:
        rest = iter(arrays[more:])
        if h.ndim == 4:  # before the edits, so that these fuse with what spreads it over streams
            r = r[..., None, :]
        r = _edited(r, writes, rest)
        # what mixes streams is no add of an edit
        edit_add = operator.add if more else plain_add
        return _edited(plain_add(h, r, *arrays[:more]), streams, rest, edit_add)

    # products and clips drag broadcasts along if shapeless; without it a new length is traced anew
    simple = not more and (plain_add is operator.add or not streams)
    shapeless = simple and all(kind.name == "add" for kind in (*writes, *streams))
    compiled: Callable[..., mx.array] = mx.compile(fused, shapeless=shapeless)
    return compiled


def joining(
    writes: tuple[Edit, ...], streams: tuple[Edit, ...], plain_add: _Add, more: int
) -> tuple[Callable[..., mx.array], tuple[mx.array, ...]]:
    """Return the edited join as one compiled function, `fused(h, r, *more, *arrays)`, and `arrays`.

    `h` is the residual before the join, `[B, T, D]` or `[B, T, S, D]`, and `r` the sub-layer's
    output, `[B, T, D]`. Both can be kept: looking them up costs more than the call.

    Args:
        writes: edits of `r`.
        streams: edits of the sum.
        plain_add: the family's own add; the stream is edited by it, too, unless it mixes streams.
            Of streams it takes `r` with and without their axis.
        more: how many arrays such an add needs besides.
    """
    write_kinds, write_arrays = _flat(writes)
    stream_kinds, stream_arrays = _flat(streams)
    fused = _compiled(plain_add, more, write_kinds, stream_kinds)
    return fused, (*write_arrays, *stream_arrays)


@functools.cache
def _carrying(
    kinds: tuple[Kind, ...], scale: float, own: bool, streams: bool
) -> Callable[..., mx.array]:
    additive = all(kind.name == "add" for kind in kinds)

    def fused(target: mx.array, *arrays: mx.array) -> mx.array:
        if own:
            return _edited(target, kinds, iter(arrays))
        if additive:  # what is read does not matter
            rest = iter(arrays)
            for kind in kinds:
                values = [next(rest) for _ in range(1 + kind.weighted)]
                v, *weight = _for_streams(kind, values) if streams else values
                v = v * weight[0] if kind.weighted else v
                target = target + (v if scale == 1 else v / scale).astype(target.dtype)
            return target
        before = arrays[0].astype(mx.float32)
        change: mx.array = _edited(before, kinds, iter(arrays[1:])) - before
        return (target.astype(mx.float32) + change / scale).astype(target.dtype)

    compiled: Callable[..., mx.array] = mx.compile(fused, shapeless=additive)
    return compiled


def carry(
    target: mx.array, read: mx.array, edits: tuple[Edit, ...], scale: float = 1.0
) -> mx.array:
    """Return `target + (apply(read, edits) - read) / scale` as one compiled call.

    Additive edits are one node. `read` may be `target` itself, else it has its shape, or one that
    broadcasts to it: of streams `[S, B, T, D]` that of each, of `[B, T, S, D]` with their axis.
    """
    kinds, arrays = _flat(edits)
    own = read is target and scale == 1
    fused = _carrying(kinds, scale, own, read.ndim == 4)
    if own or all(kind.name == "add" for kind in kinds):
        return fused(target, *arrays)
    return fused(target, read, *arrays)
