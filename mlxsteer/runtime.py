"""How steering reaches mlx-lm: a view of a model, and one more entry in its prompt cache.

mlx-lm's `generate_step`, `stream_generate` and `BatchGenerator` call `model(tokens, cache=cache)`
and nothing else. `Steered(model)` is such a model. Its `make_cache()` appends one `SteeringState`
to the KV caches; that entry speaks mlx-lm's cache protocol, so each request's steering follows it
when requests are merged into a batch, filtered, extended and extracted. The entry is stripped
before the model sees the list.

Positions are counted per row as Python ints, so nothing here waits for the device. It knows nothing
of tokenizers, sampling or text.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .errors import MlxsteerError, UsageError
from .plan import taps
from .steering import Steering
from .taps import Taps

__all__ = ["Live", "Steered", "SteeringState", "check_steering"]

OFF = Steering()


def check_steering(model: nn.Module, steering: Steering) -> None:
    """Refuse vectors that do not belong to the model.

    Raises:
        MlxsteerError: another width, layer count or model.
    """
    for term in steering:
        vector = term.vector
        source = getattr(model, "source", None)
        if source is not None:
            vector.check(source)
        width, layers = model.args.hidden_size, len(model.layers)
        if not vector.is_zero and (vector.hidden_size != width or vector.layers[-1] >= layers):
            raise MlxsteerError(
                f"vector {vector.name!r} is of width {vector.hidden_size} with layers up to "
                f"{vector.layers[-1]}; the model has width {width} and {layers} layers"
            )


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


class _Row:
    """One request: whose steering it follows and how far it has been read."""

    def __init__(self, live: Live, prompt_length: int | None) -> None:
        self.live = live
        self.prompt_length = prompt_length
        self.position = 0
        self.checked: Steering | None = None  # the last steering found to fit the model


class SteeringState:
    """The entry of a prompt cache that carries the steering of its rows.

    It has no arrays: its steerings and positions are host values. Methods are those that mlx-lm
    calls on every entry of a prompt cache.

    Attributes:
        rows: one per row of the batch, in its order.
    """

    def __init__(self, rows: list[_Row]) -> None:
        self.rows = rows
        self._right_padding = [0] * len(rows)

    @property
    def prompt_length(self) -> int | None:
        """Tokens of the prompt of the only row; set it anew for each turn of a conversation."""
        return self._only().prompt_length

    @prompt_length.setter
    def prompt_length(self, value: int | None) -> None:
        self._only().prompt_length = value

    @property
    def steering(self) -> Steering:
        """The steering of the only row; setting it is a live change of this request alone."""
        return self._only().live.steering

    @steering.setter
    def steering(self, value: Steering) -> None:
        self._only().live = Live(value)

    def _only(self) -> _Row:
        if len(self.rows) != 1:
            raise UsageError(f"this cache holds {len(self.rows)} requests: use the Live of each")
        return self.rows[0]

    def taps(self, batch: int, length: int) -> Taps:
        """Return the taps for the next `length` tokens of each of `batch` rows."""
        rows = self.rows
        if len(rows) != batch:
            if len(rows) != 1:
                raise MlxsteerError(f"{batch} rows of tokens for a cache of {len(rows)} requests")
            # a cache made for one request and used for a batch of equals
            rows = self.rows = [_copy(self.rows[0]) for _ in range(batch)]
            self._right_padding = [0] * batch
        return taps(tuple(r.live.steering.at(r.position, length, r.prompt_length) for r in rows))

    def advance(self, length: int) -> None:
        """Count `length` more tokens as read in every row."""
        for row in self.rows:
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
        return SteeringState([_copy(self.rows[idx])])

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
            row.position -= pad
        self._right_padding = [0] * len(self.rows)

    def is_trimmable(self) -> bool:
        """Return True: positions can always be taken back."""
        return True

    def trim(self, n: int) -> int:
        """Forget the last `n` tokens of every row."""
        n = min(n, self.size())
        for row in self.rows:
            row.position -= n
        return n

    def size(self) -> int:
        """Return the most tokens read by any row."""
        return max((row.position for row in self.rows), default=0)

    def empty(self) -> bool:
        """Return whether nothing was read yet."""
        return self.size() == 0

    @property
    def nbytes(self) -> int:
        """Bytes on the device: none."""
        return 0

    @property
    def state(self) -> list[mx.array]:
        """Arrays to evaluate: none."""
        return []


def _copy(row: _Row) -> _Row:
    copy = _Row(row.live, row.prompt_length)
    copy.position = row.position
    return copy


class Steered(nn.Module):
    """A view of a model that steers what it reads and writes, for anything that takes an mlx-lm
    model.

        steered = Steered(model, Steering((joy, 1.0)))
        mlx_lm.stream_generate(steered, tokenizer, prompt)

    Different requests of a `BatchGenerator` get their own vectors through their caches:
    `generator.insert(prompts, caches=[steered.make_cache(s, prompt_length=n) for ...])`.

    Args:
        model: one of our definitions, or an adopted one.
        steering: for requests that bring none of their own; `steered.steering = ...` changes it
            live.

    Raises:
        MlxsteerError: a vector that does not belong to the model.
    """

    def __init__(self, model: nn.Module, steering: Steering | None = None) -> None:
        super().__init__()
        self.model = model
        self._live = Live(OFF)
        self.steering = steering or OFF

    @property
    def steering(self) -> Steering:
        """The steering of requests that brought none of their own."""
        return self._live.steering

    @steering.setter
    def steering(self, steering: Steering) -> None:
        check_steering(self.model, steering)
        self._live.steering = steering

    @property
    def layers(self) -> list[nn.Module]:
        """The blocks of the model."""
        blocks: list[nn.Module] = self.model.layers
        return blocks

    @property
    def args(self) -> Any:
        """The arguments of the model."""
        return self.model.args

    def make_cache(
        self, steering: Steering | Live | None = None, prompt_length: int | None = None
    ) -> list[Any]:
        """Return an empty prompt cache for one request, with its steering as the last entry.

        Args:
            steering: this request's own; None follows `self.steering`.
            prompt_length: tokens of the prompt, needed by the phases `prompt` and `response`.
        """
        live = self._live if steering is None else steering
        if isinstance(live, Steering):
            live = Live(live)
        check_steering(self.model, live.steering)
        return [*self.model.make_cache(), SteeringState([_Row(live, prompt_length)])]

    def __call__(
        self,
        tokens: mx.array,
        cache: list[Any] | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Return logits `[B, T, V]` of `tokens` `[B, T]`, steered.

        Raises:
            MlxsteerError: a cache that was not made by `make_cache`, or a tap that the model passed
                by.
        """
        if cache is None:
            state, kv = SteeringState([_Row(self._live, None)]), None
        else:
            state, kv = cache[-1], cache[:-1]
            if not isinstance(state, SteeringState):
                raise MlxsteerError(
                    "this prompt cache carries no steering: make it with Steered.make_cache()"
                )
        for row in state.rows:
            if row.checked is not row.live.steering:
                check_steering(self.model, row.live.steering)
                row.checked = row.live.steering
        wanted = state.taps(tokens.shape[0], tokens.shape[1])
        before = wanted.hits
        logits: mx.array = self.model(tokens, cache=kv, taps=wanted, **_given(input_embeddings))
        if wanted.hits - before != len(wanted):
            raise MlxsteerError(
                f"{len(wanted) - (wanted.hits - before)} of {len(wanted)} taps never fired: "
                f"this {type(self.model).__name__} is not steered"
            )
        state.advance(tokens.shape[1])
        if kv is not None and cache is not None:
            cache[:-1] = kv  # a model may replace entries of its list
        return logits


def _given(input_embeddings: mx.array | None) -> dict[str, mx.array]:
    return {} if input_embeddings is None else {"input_embeddings": input_embeddings}
