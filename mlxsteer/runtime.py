"""How steering reaches mlx-lm: a view of a model, and one more entry in its prompt cache.

mlx-lm's `generate_step`, `stream_generate` and `BatchGenerator` call `model(tokens, cache=cache)`
and nothing else. `Steered(model)` is such a model. Its `make_cache()` appends one `SteeringState`
to the KV caches, which is stripped again before the model sees the list. It knows nothing of
tokenizers, sampling or text.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from .errors import MlxsteerError, UsageError
from .state import OFF, Live, Row, SteeringState
from .steering import Steering
from .taps import check_site
from .values import brief

__all__ = ["Live", "Steered", "SteeringState", "check_steering"]


def check_steering(model: nn.Module, steering: Steering) -> None:
    """Refuse vectors that do not belong to the model.

    Raises:
        MlxsteerError: another width, layer count or model, or a site that the model does not have.
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
        for layer in vector.layers:
            check_site(model, vector.site, layer)


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
        self,
        steering: Steering | Live | None = None,
        prompt_length: int | None = None,
        think_end: Sequence[int] | None = None,
    ) -> list[Any]:
        """Return an empty prompt cache for one request, with its steering as the last entry.

        Args:
            steering: this request's own; None follows `self.steering`.
            prompt_length: tokens of the prompt, for schedules and all phases but `all` and windows.
            think_end: tokens that close the thinking, for the phase `answer`; () without thinking.
        """
        live = self._live if steering is None else steering
        if isinstance(live, Steering):
            live = Live(live)
        if not isinstance(live, Live):
            raise UsageError(f"{brief(steering)} is no steering: use Steering((vector, 1.0))")
        check_steering(self.model, live.steering)
        return [*self.model.make_cache(), SteeringState([Row(live, prompt_length, think_end)])]

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
            state, kv = SteeringState([Row(self._live, None)]), None
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
        wanted = state.taps(tokens)
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
