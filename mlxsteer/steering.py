"""What the user asked for: vectors x strengths x phases x schedules, as frozen values.

`Steering.at` says what acts on a stretch of positions, and how strongly on each: plain numbers of
the host. Positions are absolute token positions, 0-based. It knows nothing of arrays on a device,
of models, caches or generation.
"""

import functools
import math
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from .errors import MlxsteerError, UsageError
from .values import brief
from .vector import Vector

__all__ = ["CONSTANT", "Acting", "Phase", "Schedule", "Steering", "Term", "Weights"]

KNOWN = 4  # weights of which a steering keeps what acts: prompt and response, also beside others

# How strongly a term acts on the tokens of one pass: a number per token, or None for 1 everywhere.
Weights = tuple[float, ...] | None


@dataclass(frozen=True)
class Phase:
    """When a term acts: `all`, `prompt`, `response`, `answer`, or the token window `start:stop`.

    `response` begins at the LAST position of the prompt, so that the first generated token is
    steered already; `prompt` is everything before it. `answer` is the part of the response behind
    the last token that closes its thinking; without thinking it is the response.
    """

    name: str
    start: int = 0
    stop: int | None = None

    @classmethod
    def parse(cls, text: "str | Phase") -> "Phase":
        """Read `all`, `prompt`, `response`, `answer`, `START:STOP`, `START:` or `:STOP`.

        Raises:
            UsageError: anything else.
        """
        if isinstance(text, Phase):
            return text
        if text in ("all", "prompt", "response", "answer"):
            return cls(text)
        start, colon, stop = text.partition(":")
        if colon and text != ":" and all(p == "" or p.isdecimal() for p in (start, stop)):
            window = cls(text, int(start or 0), int(stop) if stop else None)
            if window.stop is None or window.stop > window.start:
                return window
        raise UsageError(
            f"phase {text!r}: use all, prompt, response, answer or a token window such as 0:20"
        )

    @property
    def is_window(self) -> bool:
        """Whether it is a window of tokens rather than a named phase."""
        return ":" in self.name

    @property
    def needs_prompt_length(self) -> bool:
        """Whether the phase can only be placed when the prompt's length is known."""
        return self.name in ("prompt", "response", "answer")

    def span(self, prompt_length: int | None) -> tuple[int, float]:
        """Return the half-open range of positions in which the phase can hold.

        Raises:
            UsageError: the phase needs the prompt's length and it is None.
        """
        if not self.needs_prompt_length:
            return self.start, math.inf if self.stop is None else self.stop
        known = _known(prompt_length, f"phase {self.name!r}")
        return (0, known - 1) if self.name == "prompt" else (known - 1, math.inf)


def _known(prompt_length: int | None, what: str) -> int:
    if prompt_length is None:
        raise UsageError(
            f"{what} needs the prompt's length: make_cache(steering, prompt_length=len(prompt))"
        )
    return prompt_length


@dataclass(frozen=True)
class Schedule:
    """How a strength changes with the tokens of the response: `constant`, `decay(n)`, `ramp(n)`.

    With `t` counted from the response's start (0 there), `decay(n)` is `0.5 ** (t / n)`, n its half
    life, and 1 before; `ramp(n)` is `(t + 1) / n` up to 1, and 0 before.
    """

    name: str = "constant"
    length: float = 0.0

    @classmethod
    def parse(cls, text: "str | Schedule") -> "Schedule":
        """Read `constant`, `decay(N)` or `ramp(N)`.

        Raises:
            UsageError: anything else, among it a schedule without its length.
        """
        if isinstance(text, Schedule):
            return text
        if text == "constant":
            return CONSTANT
        if match := re.fullmatch(r"(decay|ramp)\((\d+(?:\.\d+)?)\)", text):
            if float(match[2]) > 0:
                return cls(match[1], float(match[2]))
        elif text in ("decay", "ramp"):
            raise UsageError(f"schedule {text!r} has no length: use {text}(32) for 32 tokens")
        raise UsageError(f"schedule {text!r}: use constant, decay(32) or ramp(32), in tokens")

    def factor(self, t: int) -> float:
        """Return the factor at token `t` of the response; negative is before it."""
        if self.name == "decay":
            return float(0.5 ** (max(t, 0) / self.length))
        if self.name == "ramp":
            return min(1.0, max(t + 1, 0) / self.length)
        return 1.0


CONSTANT = Schedule()


@dataclass(frozen=True)
class Term:
    """One vector at one strength in one phase."""

    vector: Vector
    strength: float
    phase: Phase
    schedule: Schedule = CONSTANT

    def positions(self, prompt_length: int | None) -> tuple[int, float]:
        """Return the half-open range of positions in which the term can act.

        Edits that read the stream leave position 0 alone, where the attention sink has coordinates
        far beyond all others; a window that names position 0 includes it.
        """
        first, last = self.phase.span(prompt_length)
        if self.vector.op != "add" and not self.phase.is_window:
            first = max(first, 1)
        return first, last

    def weights(self, start: int, length: int, prompt_length: int | None) -> Weights | bool:
        """Return how the term acts on positions `start .. start+length`: False is not at all."""
        first, last = self.positions(prompt_length)
        if min(last, start + length) <= max(first, start):
            return False
        if self.schedule == CONSTANT:
            if first <= start and start + length <= last:
                return None
            return tuple(float(first <= p < last) for p in range(start, start + length))
        origin = _known(prompt_length, f"schedule {self.schedule.name!r}") - 1
        weights = tuple(
            self.schedule.factor(p - origin) if first <= p < last else 0.0
            for p in range(start, start + length)
        )
        return weights if any(weights) else False


@dataclass(frozen=True)
class Acting:
    """What acts on one row in one pass: a vector, its strength and its weights over the tokens.

    Attributes:
        in_answer: whether it waits for the thinking to close; the weights hold from there only.
        keep_norm: whether every token keeps the norm that it had.
    """

    vector: Vector
    strength: float
    weights: Weights = None
    in_answer: bool = False
    keep_norm: bool = False


@dataclass(frozen=True, init=False, repr=False)
class Steering:
    """Vectors x strengths x phases: everything that is asked for in one generation.

        Steering((joy, 1.0), (terse, -0.5), phase="response")

    Args:
        pairs: `(vector, strength)`; 0 is off, 1 the calibrated strength, negative its opposite.
        phase: when all of them act; None (default) is each vector's own phase.
        schedule: how the strength changes along the response.
        keep_norm: give every token the norm back that it had before the edits of a place.

    Raises:
        UsageError: no such pairs, a strength that is no finite number, an unknown phase or
            schedule.
        MlxsteerError: vectors of different models.
    """

    terms: tuple[Term, ...]
    keep_norm: bool

    def __init__(
        self,
        *pairs: tuple[Vector, float],
        phase: str | Phase | None = None,
        schedule: str | Schedule = CONSTANT,
        keep_norm: bool = False,
    ) -> None:
        chosen = None if phase is None else Phase.parse(phase)
        along = Schedule.parse(schedule)
        terms = []
        for pair in pairs:
            if not (isinstance(pair, tuple) and len(pair) == 2 and isinstance(pair[0], Vector)):
                raise UsageError(f"{brief(pair)} is no pair: use Steering((vector, 1.0), ...)")
            vector, strength = pair
            if isinstance(strength, bool) or not isinstance(strength, (int, float)):
                raise UsageError(f"strength of {vector.name!r} is {strength!r}: use a number")
            if not math.isfinite(strength):
                raise UsageError(f"strength of {vector.name!r} is {strength}: use a finite number")
            when = chosen or Phase.parse(vector.phase)
            terms.append(Term(vector, float(strength), when, along))
        object.__setattr__(self, "terms", _of_one_model(terms))
        object.__setattr__(self, "keep_norm", keep_norm)

    def __deepcopy__(self, memo: dict[int, object]) -> "Steering":
        return self  # mlx-lm copies caches, and what they hold, when it splits batches

    def __iter__(self) -> Iterator[Term]:
        return iter(self.terms)

    def __repr__(self) -> str:
        inside = ", ".join(
            f"{t.vector.name}={t.strength:g} ({t.phase.name}"
            + ("" if t.schedule == CONSTANT else f", {t.schedule.name}({t.schedule.length:g})")
            + ")"
            for t in self.terms
        )
        return f"Steering({inside}{', keep_norm' if self.keep_norm else ''})"

    def __add__(self, other: "Steering") -> "Steering":
        """Return both at once.

        Raises:
            UsageError: one keeps norms and the other does not.
            MlxsteerError: their vectors are of different models.
        """
        if self.terms and other.terms and self.keep_norm != other.keep_norm:
            raise UsageError("one steering keeps norms and the other does not: choose for both")
        return Steering._of(self.terms + other.terms, self.keep_norm or other.keep_norm)

    def __mul__(self, factor: float) -> "Steering":
        """Return the same with every strength multiplied."""
        terms = (replace(t, strength=t.strength * factor) for t in self.terms)
        return Steering._of(terms, self.keep_norm)

    __rmul__ = __mul__

    @classmethod
    def _of(cls, terms: Iterable[Term], keep_norm: bool) -> "Steering":
        steering = cls(keep_norm=keep_norm)
        object.__setattr__(steering, "terms", _of_one_model(terms))
        return steering

    @functools.cached_property
    def active(self) -> tuple[Term, ...]:
        """The terms that change anything: a nonzero strength of a nonzero vector."""
        return tuple(t for t in self.terms if t.strength != 0 and not t.vector.is_zero)

    @functools.cached_property
    def waits(self) -> bool:
        """Whether a term waits for the thinking to close."""
        return any(t.phase.name == "answer" for t in self.active)

    def at(self, start: int, length: int, prompt_length: int | None) -> tuple[Acting, ...]:
        """Return what acts on `length` positions from `start`, with its weights.

        While no weight changes it is the very same tuple, by which a decode loop knows it again.
        """
        weights = tuple(t.weights(start, length, prompt_length) for t in self.active)
        acting = self._known.get(weights)
        if acting is None:
            acting = tuple(
                Acting(t.vector, t.strength, w, t.phase.name == "answer", self.keep_norm)
                for t, w in zip(self.active, weights, strict=True)
                if not isinstance(w, bool)
            )
            if len(self._known) == KNOWN:
                self._known.clear()
            self._known[weights] = acting
        return acting

    @functools.cached_property
    def _known(self) -> dict[tuple[Weights | bool, ...], tuple[Acting, ...]]:
        return {}


def _of_one_model(terms: Iterable[Term]) -> tuple[Term, ...]:
    """Return the terms, whose vectors belong together as far as they say where they are from."""
    found = tuple(terms)
    known = [t.vector for t in found if t.vector.model is not None and not t.vector.is_zero]
    for vector in known[1:]:
        first, model = known[0].model, vector.model
        if first is not None and model is not None and not first.same_model(model):
            raise MlxsteerError(
                f"{known[0].name!r} is from {first}, {vector.name!r} from {model}: "
                "extract both on one model"
            )
    return found
