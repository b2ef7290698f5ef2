"""From what acts on the rows of a batch to taps: the arrays of one forward pass.

All additive edits of one place collapse into one array, so ten vectors cost what one costs, and
rows with different vectors differ only in that array. Directions that are projected out or clamped
on one token at one place are orthonormalised together, in their order, or two of them would
over-subtract; their targets are carried along, so that at strength 1 each direction holds its own.
Where nothing acts there is no tap: the plain graph.

While nothing changes a decode loop asks for the same rows again and again and gets the same taps:
arrays are made on the host when a strength changes, never in the loop.

Shapes: `B` rows, `T` tokens of the pass, `D` width. It knows nothing of models, caches or phases.
"""

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from . import edits
from .steering import Acting, Weights
from .taps import NO_TAPS, SITES, Add, Join, Tap, Taps
from .vector import Vector

__all__ = ["EditTap", "RowPass", "taps"]

RowPass = tuple[Acting, ...]
Slot = tuple[RowPass, ...]  # per row, what shares its weights over the tokens
DEPENDENT = 1e-6  # what is left of a unit direction that the ones before it span


class EditTap(Tap):
    """The tap of one join with the edits of one pass, fused into one compiled call."""

    def __init__(self, writes: tuple[edits.Edit, ...], streams: tuple[edits.Edit, ...]) -> None:
        self.writes = writes
        self.streams = streams
        self._joining = functools.cache(functools.partial(edits.joining, writes, streams))

    def write(self, r: mx.array) -> mx.array:
        return edits.apply(r, self.writes)

    def stream(self, h: mx.array) -> mx.array:
        return edits.apply(h, self.streams)

    def join(self, h: mx.array, r: mx.array, add: Add = operator.add, *more: mx.array) -> mx.array:
        fused, arrays = self._joining(add, len(more))
        return fused(h, r, *more, *arrays)

    def acts(self, stream: bool) -> bool:
        return bool(self.streams if stream else self.writes)

    def carry(
        self, target: mx.array, read: mx.array, *, stream: bool, scale: float = 1.0
    ) -> mx.array:
        return edits.carry(target, read, self.streams if stream else self.writes, scale)


def taps(rows: Sequence[RowPass], answer: mx.array | None = None) -> Taps:
    """Return the taps of one pass over a batch.

    Args:
        rows: what acts on each row of the batch; all rows alike may be given once.
        answer: `[B, T, 1]`, 1 where a row has closed its thinking, for what waits for it.
    """
    if any(acting.in_answer for row in rows for acting in row):
        return _build(tuple(rows), answer)
    return _taps(tuple(rows))


@functools.lru_cache(maxsize=16)
def _taps(rows: tuple[RowPass, ...]) -> Taps:
    return _build(rows[:1] if len(set(rows)) == 1 else rows, None)


def _build(rows: tuple[RowPass, ...], answer: mx.array | None) -> Taps:
    if not any(rows):
        return NO_TAPS
    slots = _slots(rows, answer)
    keep = [any(a.keep_norm for a in row) for row in rows]
    norm = (
        edits.keep_norm(mx.array(np.array(keep, np.float32)[:, None, None])) if any(keep) else None
    )
    acting = {a.vector: a.vector for row in rows for a in row}
    places = sorted({(v.site, layer) for v in acting.values() for layer in v.layers})
    found: dict[tuple[int, Join], dict[bool, tuple[edits.Edit, ...]]] = {}
    for site, layer in places:
        join, stream = SITES[site]
        made = [
            edit
            for slot, columns, weight in slots
            for edit in _weighted(_edits(slot, site, layer, columns), columns, weight)
        ]
        found.setdefault((layer, join), {})[stream] = (*made, norm) if norm else tuple(made)
    return Taps({k: EditTap(s.get(False, ()), s.get(True, ())) for k, s in found.items()})


@dataclass(frozen=True)
class _Group:
    """What acts on one row and shares its weights over the tokens.

    Attributes:
        terms: without their weights, so that a schedule finds the same arrays again at every token.
        weights: one for all, or one for each term.
        gate: where it acts: behind the end of thinking (True), before it (False), or in both.
    """

    terms: RowPass = ()
    weights: tuple[Weights, ...] = (None,)
    gate: bool | None = None


def _groups(row: RowPass, waits: bool) -> list[_Group]:
    """Sort what acts on a row by its weights over tokens, nearly always one group.

    What is orthonormalised together must be the same for a token whatever else is in its pass:
    those that act on that very token. Where their weights differ, each set of them is a group.
    """
    linear = [a for a in row if _reads_itself(a.vector)]
    apart = len({(a.weights, a.in_answer) for a in linear}) > 1
    shared: dict[tuple[Weights, bool], list[Acting]] = {}
    for acting in row:
        if not (apart and _reads_itself(acting.vector)):
            shared.setdefault((acting.weights, acting.in_answer), []).append(acting)
    groups = [
        _Group(_bare(terms), (weights,), True if waits and in_answer else None)
        for (weights, in_answer), terms in shared.items()
    ]
    return groups + (_sets(linear, waits) if apart else [])


def _sets(linear: list[Acting], waits: bool) -> list[_Group]:
    """Return a group for each set of edits that act on a token together."""
    length = max((len(a.weights) for a in linear if a.weights is not None), default=1)
    table = [a.weights or (1.0,) * length for a in linear]
    gates = (False, True) if waits and any(a.in_answer for a in linear) else (None,)
    groups = []
    for gate in gates:
        here = [
            tuple(
                i
                for i, acting in enumerate(linear)
                if table[i][t] != 0 and not (acting.in_answer and gate is False)
            )
            for t in range(length)
        ]
        for acting_here in dict.fromkeys(filter(None, here)):
            found: list[Weights] = [
                tuple(w * (h == acting_here) for w, h in zip(table[i], here, strict=True))
                for i in acting_here
            ]
            weights = tuple(None if w == (1.0,) * length else w for w in found)
            weights = weights[:1] if len(set(weights)) == 1 else weights
            groups.append(_Group(_bare([linear[i] for i in acting_here]), weights, gate))
    return groups


def _bare(terms: Sequence[Acting]) -> RowPass:
    return tuple(Acting(a.vector, a.strength) for a in terms)


def _slots(
    rows: tuple[RowPass, ...], answer: mx.array | None
) -> list[tuple[Slot, int, mx.array | None]]:
    """Return slots, each of which becomes one set of arrays per place: `(rows, k, weight)`.

    Rows need not agree: the n-th slot holds the n-th group of every row, so a batch of any mixture
    has as many slots as its most varied row has groups. Where edits that read have weights of their
    own, `k` is how many; else it is 0.
    """
    per_row = [_groups(row, answer is not None) for row in rows]
    out = []
    for i in range(max(map(len, per_row))):
        picked = [groups[i] if i < len(groups) else _Group() for groups in per_row]
        own = any(len(group.weights) > 1 for group in picked)
        columns = max(len(group.terms) for group in picked) if own else 0
        slot = tuple(group.terms for group in picked)
        out.append((slot, columns, _weight(picked, max(columns, 1), answer)))
    return out


def _weight(groups: list[_Group], columns: int, answer: mx.array | None) -> mx.array | None:
    """Return the weights of one slot over the tokens, `[1 or B, T, columns]`; None is 1."""
    weight: mx.array | None = None
    length = max((len(w) for g in groups for w in g.weights if w is not None), default=0)
    if length:
        table = np.ones((len(groups), length, columns), np.float32)
        for row, group in zip(table, groups, strict=True):
            for column in range(columns):
                own = group.weights[min(column, len(group.weights) - 1)]
                row[:, column] = 1.0 if own is None else own
        weight = mx.array(table[:1] if (table == table[:1]).all() else table)
    if answer is None or all(group.gate is None for group in groups):
        return weight
    gate = answer
    if not all(group.gate is True for group in groups):
        sign = np.array([{True: 1, False: -1, None: 0}[g.gate] for g in groups], np.float32)
        gate = (
            answer * mx.array(sign)[:, None, None]
            + mx.array((sign < 1).astype(np.float32))[:, None, None]
        )
    return gate if weight is None else weight * gate


def _weighted(
    made: tuple[edits.Edit, ...], columns: int, weight: mx.array | None
) -> tuple[edits.Edit, ...]:
    """Give edits their weights; `columns` are those of the edits that read."""
    if weight is None:
        return made
    one = weight[..., :1] if columns else weight
    reads = ("one", "many")
    return tuple(
        edits.weighted(e, weight if e.kind.name in reads and not e.kind.relu else one) for e in made
    )


@functools.lru_cache(maxsize=4096)
def _edits(slot: Slot, site: str, layer: int, columns: int = 0) -> tuple[edits.Edit, ...]:
    """Return the edits of one slot at one place: at most an addition and two that read.

    With `columns` every term of a row has one, at this place or not.
    """
    here = [[a for a in row if a.vector.site == site and layer in a.vector.layers] for row in slot]
    width = next((a.vector.hidden_size for row in here for a in row), 0)
    additions = [[a for a in row if a.vector.op == "add"] for row in here]
    linear = any(_reads_itself(a.vector) for row in here for a in row)
    relu = [
        [a for a in row if a.vector.op != "add" and not _reads_itself(a.vector)] for row in here
    ]
    found = []
    if any(additions):
        total = np.zeros((len(slot), 1, width), np.float32)
        for i, row in enumerate(additions):
            for a in row:
                k = a.vector.layers.index(layer)
                total[i, 0] += a.strength * (a.vector.directions[k] * a.vector.scales[k])
        found.append(edits.add(mx.array(total if len(slot) > 1 else total[0, 0])))
    if linear:
        read = [_orthonormal(row, site, layer) for row in slot]
        if not columns:
            read = [[reading for reading in row if reading is not None] for row in read]
        found.append(_reading(read, width, relu=False))
    if any(relu):
        found.append(_reading([[_relu(a, layer) for a in row] for row in relu], width, relu=True))
    return tuple(found)


def _reads_itself(vector: Vector) -> bool:
    """Whether an edit reads `x . d` as it is: not one-sided, and without an SAE's encoder."""
    return vector.op in ("project", "clamp") and vector.encoders is None


# r, b, a, g, d of `(a + g f(x . r + b)) d`
Reading = tuple[np.ndarray, float, float, float, np.ndarray]


def _at(vector: Vector, layer: int) -> tuple[int, np.ndarray, float, float]:
    """Return index, direction, scale and target at a layer; a projection's target is 0."""
    i = vector.layers.index(layer)
    target = 0.0 if vector.targets is None else float(vector.targets[i])
    return i, vector.directions[i].astype(np.float64), float(vector.scales[i]), target


def _orthonormal(row: RowPass, site: str, layer: int) -> list[Reading | None]:
    """Gram-Schmidt with targets: at strength 1 `x . d_i` becomes `t_i` for every i.

    None stands for a term that is not here, reads otherwise, or adds nothing to those before it.
    """
    found: list[Reading | None] = []
    basis: list[tuple[np.ndarray, float]] = []
    for acting in row:
        found.append(None)
        vector = acting.vector
        if not (_reads_itself(vector) and vector.site == site and layer in vector.layers):
            continue
        _, q, scale, target = _at(vector, layer)
        for other, other_target in basis:
            overlap = float(q @ other)
            q = q - overlap * other
            target -= overlap * other_target
        norm = float(np.linalg.norm(q))
        if norm < DEPENDENT:
            continue  # already held by the ones before
        q, target = q / norm, target / norm
        basis.append((q, target))
        s = acting.strength * scale
        found[-1] = (q, 0.0, s * target, -s, q)
    return found


def _relu(acting: Acting, layer: int) -> Reading:
    """Return a one-sided edit: a cap above the target, or an SAE feature read by its encoder."""
    vector = acting.vector
    i, d, scale, target = _at(vector, layer)
    s = acting.strength * scale
    if vector.encoders is None or vector.encoder_biases is None:
        return d, -target, 0.0, -s, d
    encoder, bias = vector.encoders[i].astype(np.float64), float(vector.encoder_biases[i])
    if vector.op == "cap":
        return encoder, bias - target, 0.0, -s, d
    return encoder, bias, s * target, -s, d


def _reading(rows: Sequence[Sequence[Reading | None]], width: int, *, relu: bool) -> edits.Edit:
    """Stack the readings of all rows, filled up with ones that do nothing."""
    k = max(map(len, rows))
    nothing: Reading = (np.zeros(width), 0.0, 0.0, 0.0, np.zeros(width))
    filled = [[r or nothing for r in (*row, *[None] * (k - len(row)))] for row in rows]
    arrays = [
        mx.array(np.array([[reading[part] for reading in row] for row in filled], np.float32))
        for part in range(5)
    ]
    if len(rows) == 1:
        arrays = [a[0] for a in arrays]
    return edits.read_and_write(*arrays, relu=relu)
