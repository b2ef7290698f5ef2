"""What `evaluation.json` says of a vector, and what many of them say together.

A record is what `mlxsteer eval --json` wrote, or somebody else: what is missing or strange in it is
None or empty here, and never an error. The claim of a concept is that strength 1 does more than the
strongest null of the same cost. One of many claims is true by chance, so all of a library are
corrected together (Holm 1979). It knows nothing of vectors, files or models.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .stats import Interval, corrected

__all__ = [
    "Claim",
    "Record",
    "claims",
    "condition",
    "conditions",
    "interval",
    "nulls",
    "number",
    "records",
]

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One concept's claim among those of its library.

    Attributes:
        difference: strength 1 less the strongest null, nats per token, with the interval of its
            step in Holm's procedure.
        null: the name of that null.
        stands: the difference is above 0, at this step and at all before it.
        passed: it stands, and its own evaluation passed: it moves the completions its way, beats
            every null, and its text holds together.
    """

    difference: Interval
    null: str
    stands: bool
    passed: bool


def claims(library: Mapping[str, Record]) -> dict[str, Claim]:
    """Return the claims of records by name, corrected over all of them.

    A record without the scores that a claim needs makes none and counts for none.
    """
    scores = {name: found for name, record in library.items() if (found := _differences(record))}
    return {
        name: Claim(
            difference,
            str(nulls(library[name])[0].get("name", "")),
            stands,
            stands and library[name].get("passed") is True,
        )
        for name, (difference, stands) in corrected(scores).items()
    }


def records(read: Record) -> tuple[Record, ...]:
    """Return the evaluations of a file's content: it is one itself, or holds a list of them."""
    return _objects(read.get("evaluations", [read]))


def conditions(record: Record) -> tuple[Record, ...]:
    """Return the ways to get the concept that were measured."""
    return _objects(record.get("conditions"))


def condition(record: Record, strength: float, asked: bool = False) -> Record:
    """Return the condition of a strength, with or without words that ask; empty without one."""
    fits = (c for c in conditions(record) if c.get("strength") == strength)
    return next((c for c in fits if bool(c.get("asked")) == asked), {})


def nulls(record: Record) -> tuple[Record, ...]:
    """Return the nulls, the strongest first."""
    return _objects(record.get("nulls"))


def number(value: object) -> float | None:
    """Return a finite number, None for anything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if math.isfinite(value) else None


def interval(value: object) -> Interval | None:
    """Return the interval in a record, None for anything else."""
    if not isinstance(value, Mapping):
        return None
    mean, low, high = (number(value.get(key)) for key in ("mean", "low", "high"))
    if mean is None or low is None or high is None:
        return None
    p, wrong = number(value.get("p")), number(value.get("wrong_way"))
    return Interval(mean, low, high, 1.0 if p is None else p, 0.0 if wrong is None else wrong)


def _differences(record: Record) -> list[float] | None:
    """Return strength 1 less the strongest null, per prompt."""
    ours = _scores(condition(record, 1.0))
    theirs = _scores(nulls(record)[0]) if nulls(record) else None
    if ours is None or theirs is None or len(ours) != len(theirs) or len(ours) < 2:
        return None
    return [a - b for a, b in zip(ours, theirs, strict=True)]


def _scores(of: Record) -> list[float] | None:
    scores = of.get("scores")
    if not isinstance(scores, (list, tuple)):
        return None
    found = [value for one in scores if (value := number(one)) is not None]
    return found if len(found) == len(scores) else None


def _objects(value: object) -> tuple[Record, ...]:
    found = value if isinstance(value, (list, tuple)) else ()
    return tuple(one for one in found if isinstance(one, Mapping))
