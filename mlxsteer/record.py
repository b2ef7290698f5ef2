"""What a prompt cache remembers: which edits acted on which positions.

A KV cache read under one steering is wrong under another, but only where the two differ: a prompt
that response-only steering left alone can be shared. A `Record` is a list of spans per fingerprint
of an edit; two are compared on the span that is to be shared. It knows nothing of models or arrays.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field

from .errors import MlxsteerError
from .steering import CONSTANT, Steering, Term

__all__ = ["Record"]

Spans = list[tuple[int, int]]


@dataclass
class Record:
    """Spans `[start, stop)` of positions by fingerprint of what acted there."""

    spans: dict[str, Spans] = field(default_factory=dict)

    def add(self, steering: Steering, start: int, length: int, prompt_length: int | None) -> None:
        """Remember a pass over `length` positions from `start`."""
        for fingerprint, first, last in _acting(steering, start, length, prompt_length):
            spans = self.spans.setdefault(fingerprint, [])
            if spans and spans[-1][1] == first:
                first = spans.pop()[0]
            spans.append((first, last))

    def trim(self, position: int) -> None:
        """Forget everything from `position` on."""
        cut = self.until(position)
        self.spans = cut.spans

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


def _acting(
    steering: Steering, start: int, length: int, prompt_length: int | None
) -> Iterator[tuple[str, int, int]]:
    for term in steering.active:
        first, last = term.positions(prompt_length)
        a, b = max(start, first), min(start + length, last)
        if a < b:
            yield _fingerprint(term, steering.keep_norm, prompt_length), a, int(b)


def _fingerprint(term: Term, keep_norm: bool, prompt_length: int | None) -> str:
    parts = [term.vector.content_sha256[:16], repr(term.strength)]
    if term.schedule != CONSTANT:
        parts.append(f"{term.schedule.name}({term.schedule.length:g}) from {prompt_length}")
    if term.phase.name == "answer":
        parts.append("answer")
    if keep_norm:
        parts.append("keep_norm")
    return " ".join(parts)
