"""What the user asked for, and its translation into taps: vectors x strengths x phases.

`Steering` is a frozen value. `taps` turns the steerings of the rows of a batch and the positions
that the next forward pass will read into the edits of that pass. All additive edits of one tap
collapse into one array, so ten vectors cost what one costs, and rows with different vectors differ
only in that array. A strength of 0, a zero vector and a phase outside the pass leave no trace: no
tap, the plain graph.

Positions are absolute token positions, 0-based. Shapes: `B` rows, `T` tokens of the pass, `D`
width. It knows nothing of models, caches or generation.
"""

import functools
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import mlx.core as mx
import numpy as np

from . import edits
from .errors import UsageError
from .taps import NO_TAPS, SITES, Add, Join, Tap, Taps
from .vector import Vector

__all__ = ["Phase", "Steering", "Term", "Weights", "taps"]

# How strongly a term acts on the tokens of one pass: one number per token, or None for 1
# everywhere.
Weights = tuple[float, ...] | None


@dataclass(frozen=True)
class Phase:
    """When a term acts: `all`, `prompt`, `response`, or the token window `start:stop`.

    `response` begins at the LAST position of the prompt, so that the first generated token is
    steered already; `prompt` is everything before it.
    """

    name: str
    start: int = 0
    stop: int | None = None

    @classmethod
    def parse(cls, text: "str | Phase") -> "Phase":
        """Read `all`, `prompt`, `response`, `START:STOP`, `START:` or `:STOP`.

        Raises:
            UsageError: anything else.
        """
        if isinstance(text, Phase):
            return text
        if text in ("all", "prompt", "response"):
            return cls(text)
        start, colon, stop = text.partition(":")
        if colon and all(part == "" or part.isdecimal() for part in (start, stop)):
            window = cls(text, int(start or 0), int(stop) if stop else None)
            if window.stop is None or window.stop > window.start:
                return window
        raise UsageError(
            f"phase {text!r}: use all, prompt, response or a token window such as 0:20"
        )

    @property
    def needs_prompt_length(self) -> bool:
        """Whether the phase can only be placed when the prompt's length is known."""
        return self.name in ("prompt", "response")

    def span(self, prompt_length: int | None) -> tuple[int, float]:
        """Return the half-open range of positions in which the phase holds.

        Raises:
            UsageError: the phase needs the prompt's length and it is None.
        """
        if not self.needs_prompt_length:
            return self.start, math.inf if self.stop is None else self.stop
        if prompt_length is None:
            raise UsageError(
                f"phase {self.name!r} needs the prompt's length: "
                "make_cache(steering, prompt_length=len(prompt))"
            )
        if self.name == "prompt":
            return 0, prompt_length - 1
        return prompt_length - 1, math.inf


@dataclass(frozen=True)
class Term:
    """One vector at one strength in one phase."""

    vector: Vector
    strength: float
    phase: Phase

    def weights(self, start: int, length: int, prompt_length: int | None) -> Weights | bool:
        """Return how the term acts on positions `start .. start+length`: False is not at all."""
        first, last = self.phase.span(prompt_length)
        if first <= start and start + length <= last:
            return None
        if last <= start or start + length <= first:
            return False
        return tuple(1.0 if first <= p < last else 0.0 for p in range(start, start + length))


@dataclass(frozen=True, init=False, repr=False)
class Steering:
    """Vectors x strengths x phases: everything that is asked for in one generation.

        Steering((joy, 1.0), (terse, -0.5), phase="response")

    Args:
        pairs: `(vector, strength)`; 0 is off, 1 the vector's calibrated strength, negative its
            opposite.
        phase: when all of them act; None (default) is each vector's own phase.

    Raises:
        UsageError: a strength that is no finite number, an unknown phase.
    """

    terms: tuple[Term, ...]

    def __init__(self, *pairs: tuple[Vector, float], phase: "str | Phase | None" = None) -> None:
        chosen = None if phase is None else Phase.parse(phase)
        terms = []
        for vector, strength in pairs:
            if isinstance(strength, bool) or not isinstance(strength, (int, float)):
                raise UsageError(f"strength of {vector.name!r} is {strength!r}: use a number")
            if not math.isfinite(strength):
                raise UsageError(f"strength of {vector.name!r} is {strength}: use a finite number")
            terms.append(Term(vector, float(strength), chosen or Phase.parse(vector.phase)))
        object.__setattr__(self, "terms", tuple(terms))

    def __deepcopy__(self, memo: dict[int, object]) -> "Steering":
        return self  # mlx-lm copies caches, and what they hold, when it splits batches

    def __iter__(self) -> Iterator[Term]:
        return iter(self.terms)

    def __repr__(self) -> str:
        inside = ", ".join(f"{t.vector.name}={t.strength:g} ({t.phase.name})" for t in self.terms)
        return f"Steering({inside})"

    def __add__(self, other: "Steering") -> "Steering":
        """Return both at once."""
        return Steering._of(self.terms + other.terms)

    def __mul__(self, factor: float) -> "Steering":
        """Return the same with every strength multiplied."""
        return Steering._of(replace(t, strength=t.strength * factor) for t in self.terms)

    __rmul__ = __mul__

    @classmethod
    def _of(cls, terms: Iterable[Term]) -> "Steering":
        steering = cls()
        object.__setattr__(steering, "terms", tuple(terms))
        return steering

    @property
    def active(self) -> tuple[Term, ...]:
        """The terms that change anything: a nonzero strength of a nonzero vector."""
        return tuple(t for t in self.terms if t.strength != 0 and not t.vector.is_zero)

    def at(self, start: int, length: int, prompt_length: int | None) -> "RowPass":
        """Return the terms that act on `length` positions from `start`, with their weights."""
        acting = ((t, t.weights(start, length, prompt_length)) for t in self.active)
        return tuple((t.vector, t.strength, w) for t, w in acting if not isinstance(w, bool))


# What acts on one row of a pass.
RowPass = tuple[tuple[Vector, float, Weights], ...]


class EditTap(Tap):
    """The tap of one join with the edits of one pass, fused into one compiled call."""

    def __init__(self, writes: tuple[edits.Edit, ...], streams: tuple[edits.Edit, ...]) -> None:
        self.writes = writes
        self.streams = streams

    def write(self, r: mx.array) -> mx.array:
        return edits.apply(r, self.writes)

    def stream(self, h: mx.array) -> mx.array:
        return edits.apply(h, self.streams)

    def join(self, h: mx.array, r: mx.array, add: Add = lambda h, r: h + r) -> mx.array:
        return edits.join(h, r, self.writes, self.streams, add)


@functools.lru_cache(maxsize=16)
def taps(rows: tuple[RowPass, ...]) -> Taps:
    """Return the taps of one pass over a batch.

    While nothing changes, a decode loop asks for the same rows again and again and gets the same
    taps with the same arrays: the arrays are made on the host when a strength changes, never in the
    loop.

    Args:
        rows: what acts on each row of the batch; all rows alike may be given once.
    """
    if len(set(rows)) == 1:
        rows = rows[:1]
    if not any(rows):
        return NO_TAPS
    slots = _slots(rows)
    places = sorted({(v.site, layer) for row in rows for v, _, _ in row for layer in v.layers})
    found: dict[tuple[int, Join], dict[bool, tuple[edits.Edit, ...]]] = {}
    for site, layer in places:
        join, stream = SITES[site]
        made = (_additive(slot, weight, site, layer) for slot, weight in slots)
        found.setdefault((layer, join), {})[stream] = tuple(e for e in made if e is not None)
    return Taps({k: EditTap(s.get(False, ()), s.get(True, ())) for k, s in found.items()})


# Per row of the batch: the vectors and strengths that share one weight over tokens.
Slot = list[list[tuple[Vector, float]]]


def _slots(rows: tuple[RowPass, ...]) -> list[tuple[Slot, mx.array | None]]:
    """Sort what acts by its weights over tokens: each slot becomes one array per tap.

    Rows need not agree: the n-th slot holds the n-th distinct weights of every row, so a batch of
    any mixture has as many slots as its most varied row has different weights, nearly always one.
    """
    per_row: list[dict[Weights, list[tuple[Vector, float]]]] = []
    for row in rows:
        groups: dict[Weights, list[tuple[Vector, float]]] = {}
        for vector, strength, weights in row:
            groups.setdefault(weights, []).append((vector, strength))
        per_row.append(groups)
    out: list[tuple[Slot, mx.array | None]] = []
    for i in range(max(len(groups) for groups in per_row)):
        picked = [list(groups.items())[i] if i < len(groups) else (None, []) for groups in per_row]
        length = max((len(w) for w, _ in picked if w is not None), default=0)
        weight = None
        if length:
            table = [w if w is not None else (1.0,) * length for w, _ in picked]
            weight = mx.array(np.array(table[:1] if len(set(table)) == 1 else table, np.float32))
            weight = weight[:, :, None]
            mx.eval(weight)
        out.append(([terms for _, terms in picked], weight))
    return out


def _additive(slot: Slot, weight: mx.array | None, site: str, layer: int) -> edits.Edit | None:
    """Collapse one slot at one place into a single edit: `[D]`, or `[B, 1, D]` when rows differ."""
    rows = []
    for terms in slot:
        row: np.ndarray | None = None
        for vector, strength in terms:
            if vector.site == site and layer in vector.layers:
                part = strength * vector.rows()[layer]
                row = part if row is None else row + part
        rows.append(row)
    width = next((len(r) for r in rows if r is not None), None)
    if width is None:
        return None
    filled = [np.zeros(width, np.float32) if r is None else r.astype(np.float32) for r in rows]
    if len(filled) == 1:
        return edits.add(mx.array(filled[0]), weight)
    return edits.add(mx.array(np.stack(filled)[:, None, :]), weight)
