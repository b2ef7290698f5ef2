"""The steering of the requests in a prompt cache: one more entry beside the KV caches.

A `SteeringState` speaks the protocol that mlx-lm calls on every entry of a prompt cache, so each
request's steering follows it when requests are merged into a batch, filtered, extended, extracted
and trimmed. Steerings and positions are host values, so nothing here waits for the device; only
where an answer begins is an array, because the token that decides it is still being computed.
It knows nothing of models.
"""

import json
import operator
from collections.abc import Sequence
from typing import Any

import mlx.core as mx

from .errors import MlxsteerError, UsageError
from .plan import RowPass, taps
from .record import Record
from .steering import Steering
from .taps import NO_TAPS, Taps

__all__ = ["OFF", "Live", "Row", "SteeringState"]

OFF = Steering()
NEVER = 1 << 30  # an answer that has not begun
TAIL = 8  # tokens at a prompt's end in which a template may have closed an empty thinking block


class Live:
    """A steering that may be changed while it is in use: what a slider moves.

    Requests made with the same `Live` share it, in whatever batch they are. One token is always in
    flight: a change made after token n was received steers the reading of token n+1 and first
    alters token n+2.
    """

    def __init__(self, steering: Steering = OFF) -> None:
        self.steering = steering

    def __deepcopy__(self, memo: dict[int, Any]) -> "Live":
        return self  # mlx-lm copies caches when it splits batches; the slider stays one


class Row:
    """One request: whose steering it follows, how far it has been read, and under what.

    Args:
        live: the steering.
        prompt_length: tokens of the prompt, for the phases that need it.
        think_end: tokens that close the thinking, () for a model without it, None for unknown.
    """

    def __init__(
        self, live: Live, prompt_length: int | None, think_end: Sequence[int] | None = None
    ) -> None:
        self.live = live
        self.prompt_length = prompt_length
        self.think_end = None if think_end is None else tuple(think_end)
        self.position = 0
        self.record = Record()
        self.checked: Steering | None = None  # the last steering found to fit the model
        self.answer: mx.array | None = None  # where the answer begins
        self.tail: mx.array | None = None  # the last tokens, for a marker of several
        self.unread: list[mx.array] = []  # tokens not looked at, for a steering to come that waits

    def copy(self) -> "Row":
        """Return a request of its own that has read the same."""
        copy = Row(self.live, self.prompt_length, self.think_end)
        copy.position, copy.record = self.position, self.record.copy()
        copy.answer, copy.tail, copy.unread = self.answer, self.tail, list(self.unread)
        return copy

    def thinking_to_json(self) -> str:
        """Return what is known of the end of thinking, as one line; it waits for the device."""
        unread = mx.concatenate(self.unread) if self.unread else None
        arrays = {"answer": self.answer, "tail": self.tail, "unread": unread}
        known = {key: array.tolist() for key, array in arrays.items() if array is not None}
        return json.dumps({"end": self.think_end, "prompt_length": self.prompt_length, **known})

    def thinking_from_json(self, text: str) -> None:
        """Take over what `thinking_to_json` returned.

        Raises:
            MlxsteerError: it is something else.
        """
        try:
            said = json.loads(text)
            end, prompt_length = said["end"], said["prompt_length"]
            self.think_end = None if end is None else tuple(map(int, end))
            self.prompt_length = None if prompt_length is None else int(prompt_length)
            found = {k: mx.array(said[k]) for k in ("answer", "tail", "unread") if k in said}
        except (ValueError, TypeError, KeyError) as e:
            raise MlxsteerError(
                "what this prompt cache says of its thinking is damaged: read the prompt again"
            ) from e
        self.answer, self.tail = found.get("answer"), found.get("tail")
        self.unread = [found["unread"]] if "unread" in found else []

    def back_to(self, position: int) -> None:
        """Forget what was read from `position` on."""
        if self.unread:
            tokens = mx.concatenate(self.unread)
            self.unread = [tokens[: max(0, tokens.shape[0] - (self.position - position))]]
        self.position = position
        self.record.trim(position)
        self.tail = None
        if self.answer is not None:
            self.answer = mx.where(self.answer > position, NEVER, self.answer)

    def pass_by(self, tokens: mx.array, row: int) -> None:
        """Keep the next tokens `[B, T]` of a row where nothing waits: a live change may ask."""
        if self.think_end and self.position + tokens.shape[1] > self._turn():
            self.unread.append(tokens[row])
        else:
            self.tail = None

    def _turn(self) -> int:
        """Return where the end of thinking begins to count: earlier turns have closed theirs."""
        return max((self.prompt_length or 0) - TAIL, 0)

    def watch(self, tokens: mx.array) -> mx.array:
        """Look for the end of thinking in the next tokens `[T]`; return `[T, 1]`, 1 from there on.

        Raises:
            UsageError: it is not known what closes the thinking.
        """
        marker, length = self.think_end, tokens.shape[0]
        if marker is None:
            raise UsageError(
                "phase 'answer' needs the tokens that close the thinking: "
                "make_cache(..., think_end=tokenizer.think_end_tokens), or () without thinking"
            )
        if not marker:
            return mx.ones((length, 1))
        if self.unread:
            passed, self.unread = mx.concatenate(self.unread), []
            self._look(passed, self.position - passed.shape[0])
        return self._look(tokens, self.position)

    def _look(self, tokens: mx.array, start: int) -> mx.array:
        """Look for the marker in the tokens `[T]` from position `start`, as `watch` does."""
        marker, length = self.think_end or (), tokens.shape[0]
        before = len(marker) - 1
        tail = mx.full((before,), -1, mx.int32) if self.tail is None else self.tail
        text = mx.concatenate([tail, tokens.astype(mx.int32)])
        self.tail = text[text.shape[0] - before :] if before else None
        hit = mx.array(True)
        for i, token in enumerate(marker):
            hit = hit & (text[i : i + length] == token)
        positions = mx.arange(start, start + length)
        found = mx.where(hit & (positions >= self._turn()), positions + 1, NEVER).min()
        self.answer = answer = found if self.answer is None else mx.minimum(self.answer, found)
        return (positions >= answer).astype(mx.float32)[:, None]


class SteeringState:
    """The entry of a prompt cache that carries the steering of its rows.

    Attributes:
        rows: one per row of the batch, in its order.
    """

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        self._right_padding = [0] * len(rows)
        self._last: tuple[tuple[RowPass, ...], Taps] = ((), NO_TAPS)

    @property
    def prompt_length(self) -> int | None:
        """Tokens of the prompt of the only row; set it anew for each turn of a conversation."""
        return self._only().prompt_length

    @prompt_length.setter
    def prompt_length(self, value: int | None) -> None:
        row = self._only()
        row.prompt_length, row.answer = value, None

    @property
    def steering(self) -> Steering:
        """The steering of the only row; setting it is a live change of this request alone."""
        return self._only().live.steering

    @steering.setter
    def steering(self, value: Steering) -> None:
        self._only().live = Live(value)

    @property
    def record(self) -> Record:
        """What acted on the positions of the only row so far."""
        return self._only().record

    def _only(self) -> Row:
        if len(self.rows) != 1:
            raise UsageError(f"this cache holds {len(self.rows)} requests: use the Live of each")
        return self.rows[0]

    def taps(self, tokens: mx.array) -> Taps:
        """Return the taps for the next tokens `[B, T]`.

        Raises:
            MlxsteerError: another number of rows.
            UsageError: a phase that needs what is not known of the request.
        """
        batch, length = tokens.shape
        if len(self.rows) != batch:
            if len(self.rows) != 1:
                raise MlxsteerError(
                    f"{batch} rows of tokens for a cache of {len(self.rows)} requests"
                )
            # a cache made for one request and used for a batch of equals
            self.rows = [self.rows[0].copy() for _ in range(batch)]
            self._right_padding = [0] * batch
        acting = tuple(r.live.steering.at(r.position, length, r.prompt_length) for r in self.rows)
        waiting = [row.live.steering.waits for row in self.rows]
        for i, (row, waits) in enumerate(zip(self.rows, waiting, strict=True)):
            if not waits:
                row.pass_by(tokens, i)
        if not any(waiting):
            return self._known(acting)
        gates = [
            row.watch(tokens[i]) if waits else mx.ones((length, 1))
            for i, (row, waits) in enumerate(zip(self.rows, waiting, strict=True))
        ]
        return taps(acting, mx.stack(gates))

    def _known(self, acting: tuple[RowPass, ...]) -> Taps:
        """Return the taps of the last pass if the very same acts now: hashing costs more."""
        before, found = self._last
        if len(before) != len(acting) or any(map(operator.is_not, before, acting)):
            found = taps(acting)
            self._last = acting, found
        return found

    def advance(self, length: int) -> None:
        """Count `length` more tokens as read in every row, under what acts now."""
        for row in self.rows:
            row.record.add(row.live.steering, row.position, length, row.prompt_length)
            row.position += length

    # mlx-lm's cache protocol

    @classmethod
    def merge(cls, caches: "Sequence[SteeringState]") -> "SteeringState":
        """Return one state with the rows of all."""
        return cls([row for cache in caches for row in cache.rows])

    def extend(self, other: "SteeringState") -> None:
        """Append the rows of `other`."""
        self.rows = self.rows + other.rows
        self._right_padding = self._right_padding + other._right_padding

    def filter(self, batch_indices: Any) -> None:
        """Keep the rows at `batch_indices`, in that order."""
        keep = [int(i) for i in batch_indices]
        self.rows = [self.rows[i] for i in keep]
        self._right_padding = [self._right_padding[i] for i in keep]

    def extract(self, idx: int) -> "SteeringState":
        """Return a state with a copy of one row."""
        return SteeringState([self.rows[idx].copy()])

    def prepare(
        self,
        *,
        left_padding: list[int] | None = None,
        lengths: list[int] | None = None,
        right_padding: list[int] | None = None,
    ) -> None:
        """Hear of the padding of the coming tokens; padding counts as no position."""
        if left_padding is not None:
            for row, pad in zip(self.rows, left_padding, strict=True):
                row.position -= pad
        if right_padding is not None:
            self._right_padding = list(right_padding)

    def finalize(self) -> None:
        """Take back the positions of right padding."""
        for row, pad in zip(self.rows, self._right_padding, strict=True):
            if pad:
                row.back_to(row.position - pad)
        self._right_padding = [0] * len(self.rows)

    def is_trimmable(self) -> bool:
        """Return True: positions can always be taken back."""
        return True

    def trim(self, n: int) -> int:
        """Forget the last `n` tokens of every row."""
        n = min(n, self.size())
        for row in self.rows:
            row.back_to(row.position - n)
        return n

    def size(self) -> int:
        """Return the most tokens read by any row."""
        return max((row.position for row in self.rows), default=0)

    def empty(self) -> bool:
        """Return whether nothing was read yet."""
        return self.size() == 0

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(array.nbytes for array in self.state)

    @property
    def state(self) -> list[mx.array]:
        """Arrays to evaluate: where answers begin."""
        found = (array for row in self.rows for array in (row.answer, row.tail))
        return [array for array in found if array is not None]
