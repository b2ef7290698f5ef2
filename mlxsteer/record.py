"""What a prompt cache remembers: which edits acted on which positions.

A KV cache read under one steering is wrong under another, but only where the two differ: a prompt
that response-only steering left alone can be shared. A `Record` is a list of spans per fingerprint
of an edit; two are compared on the span that is to be shared. It knows nothing of models or arrays.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass

from .errors import MlxsteerError
from .steering import CONSTANT, Steering, Term

__all__ = ["Record"]

Spans = list[tuple[int, int]]


@dataclass
class _Pass:
    """Positions `start .. stop` read under one steering."""

    steering: Steering
    prompt_length: int | None
    start: int
    stop: int


class Record:
    """Spans `[start, stop)` of positions by fingerprint of what acted there.

    A decode loop reads token after token under one steering: such a stretch grows, and its
    fingerprints are taken when somebody asks.
    """

    def __init__(self, spans: dict[str, Spans] | None = None) -> None:
        self._spans = {} if spans is None else spans
        self._growing: _Pass | None = None

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Record) and self.spans == other.spans

    def __repr__(self) -> str:
        return f"Record({self.spans})"

    @property
    def spans(self) -> dict[str, Spans]:
        """Fingerprint -> spans, in their order."""
        last, self._growing = self._growing, None
        if last is not None:
            for fingerprint, first, stop in _acting(last):
                spans = self._spans.setdefault(fingerprint, [])
                if spans and spans[-1][1] == first:
                    first = spans.pop()[0]
                spans.append((first, stop))
        return self._spans

    def add(self, steering: Steering, start: int, length: int, prompt_length: int | None) -> None:
        """Remember a pass over `length` positions from `start`."""
        last = self._growing
        went_on = (steering, prompt_length, start)
        if last is not None and (last.steering, last.prompt_length, last.stop) == went_on:
            last.stop += length
            return
        self._spans = self.spans  # with what has grown until now
        self._growing = _Pass(steering, prompt_length, start, start + length)

    def trim(self, position: int) -> None:
        """Forget everything from `position` on."""
        self._spans = self.until(position).spans

    def until(self, position: int) -> "Record":
        """Return the record of the positions before `position`."""
        cut = {
            f: [(a, min(b, position)) for a, b in spans if a < position]
            for f, spans in self.spans.items()
        }
        return Record({f: spans for f, spans in cut.items() if spans})

    def copy(self) -> "Record":
        """Return a record of its own."""
        return Record({f: list(spans) for f, spans in self.spans.items()})

    def first_difference(self, other: "Record", position: int) -> int | None:
        """Return the first position before `position` at which other edits acted, or None."""
        mine, theirs = self.until(position).spans, other.until(position).spans
        found = []
        for fingerprint in mine.keys() | theirs.keys():
            a, b = mine.get(fingerprint, []), theirs.get(fingerprint, [])
            i = next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None)
            if i is None:
                rest = a[len(b) :] or b[len(a) :]
                found += [rest[0][0]] if rest else []
            elif a[i][0] != b[i][0]:
                found.append(min(a[i][0], b[i][0]))
            else:
                found.append(min(a[i][1], b[i][1]))
        return min(found, default=None)

    @classmethod
    def expected(cls, steering: Steering, position: int, prompt_length: int | None) -> "Record":
        """Return what the record would be had all before `position` been read under `steering`."""
        record = cls()
        record.add(steering, 0, position, prompt_length)
        return record

    def to_json(self) -> str:
        """Return one line of JSON."""
        return json.dumps(self.spans, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Record":
        """Read what `to_json` wrote.

        Raises:
            MlxsteerError: it is something else.
        """
        try:
            read = json.loads(text)
            return cls({str(f): [(int(a), int(b)) for a, b in spans] for f, spans in read.items()})
        except (ValueError, TypeError, AttributeError) as e:
            raise MlxsteerError(
                "the steering record of this prompt cache is damaged: read the prompt again"
            ) from e


def _acting(read: _Pass) -> Iterator[tuple[str, int, int]]:
    for term in read.steering.active:
        first, last = term.positions(read.prompt_length)
        a, b = max(read.start, first), min(read.stop, last)
        if a < b:
            yield _fingerprint(term, read.steering.keep_norm, read.prompt_length), a, int(b)


def _fingerprint(term: Term, keep_norm: bool, prompt_length: int | None) -> str:
    parts = [term.vector.content_sha256[:16], repr(term.strength)]
    if term.schedule != CONSTANT:
        parts.append(f"{term.schedule.name}({term.schedule.length:g}) from {prompt_length}")
    if term.phase.name == "answer":
        parts.append("answer")
    if keep_norm:
        parts.append("keep_norm")
    return " ".join(parts)
