"""The work that is timed: prompts read until their first token is there, pieces of longer ones, and
steps of decoding.

A long prompt is not timed as a whole: what steering costs there is seen in a piece of it behind the
rest, in seconds instead of minutes, and so in enough rounds to tell.

A block can be run again: what a block wrote is trimmed from the cache, or, for caches that
cannot be trimmed, the next block starts from a copy, both outside the clock. Tokens are greedy and
end tokens are ignored, so that rows are comparable; as in mlx-lm's own loop each step is sent off
before the one before it has arrived. It knows nothing of steering: a side is a model and a maker of
its empty caches.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import numpy as np
from mlx_lm.models.cache import can_trim_prompt_cache

from .measure import Block, Patience, host_seconds, interleaved, nodes
from .results import Kind, named

__all__ = ["CHUNK", "Decoder", "Side", "Work", "read"]

CHUNK = 2048  # tokens of a prompt that are read at once, as in mlx-lm
LEAST_SECONDS = 0.05  # of a block: shorter ones would time the clock and the wait for the device
PIECE = 512, 32  # the most and the fewest tokens of a piece
PIECE_SECONDS = 0.25  # that it takes about: rounds narrow the interval, length does not


@dataclass(frozen=True)
class Work:
    """What is done.

    Attributes:
        kind: `decode` (tokens one by one) or `prefill` (tokens read at once).
        context: tokens of the prompt.
        batch: rows.
        behind: whether a prefill reads a piece behind the prompt, not the prompt itself until its
            first token is there.
    """

    kind: Kind
    context: int
    batch: int = 1
    behind: bool = False

    def __str__(self) -> str:
        return named(self.kind, self.context, self.batch, self.behind)

    def prompt(self, vocabulary: int) -> mx.array:
        """Return the same random tokens every time, `[B, T]`; rows differ."""
        drawn = np.random.default_rng(0).integers(5, vocabulary, (self.batch, self.context))
        return mx.array(drawn.astype(np.int32))


@dataclass(frozen=True)
class Side:
    """One side of a comparison.

    Attributes:
        model: called as `model(tokens, cache=cache)`.
        make_cache: an empty prompt cache for all rows, given the prompt's length.
    """

    model: Callable[..., mx.array]
    make_cache: Callable[[int], list[Any]]


def read(side: Side, prompt: mx.array) -> tuple[mx.array, list[Any]]:
    """Read a prompt `[B, T]` as mlx-lm does and return the last logits `[B, 1, V]` and the cache.

    All but the last token go through in chunks of which only the caches are evaluated.
    """
    cache = side.make_cache(prompt.shape[1])
    for start in range(0, prompt.shape[1] - 1, CHUNK):
        side.model(prompt[:, start : min(start + CHUNK, prompt.shape[1] - 1)], cache=cache)
        mx.eval([entry.state for entry in cache])
    logits = side.model(prompt[:, -1:], cache=cache)
    mx.eval(logits, [entry.state for entry in cache])
    return logits, cache


class Decoder:
    """Steps of greedy decoding, or pieces read, behind a prompt `[B, T]` that one side has read."""

    def __init__(self, side: Side, prompt: mx.array) -> None:
        self.model = side.model
        self.logits, self.cache = read(side, prompt)
        self.token = self.logits.argmax(-1)
        mx.eval(self.token)
        windows = any(hasattr(entry, "max_size") for entry in self.cache)  # full, they cannot trim
        trims = can_trim_prompt_cache(self.cache) and not windows
        self.kept = None if trims else copy.deepcopy(self.cache)

    def block(self, steps: int) -> Block:
        """Return the work of so many steps."""

        def run() -> None:
            token = self.token
            for _ in range(steps):
                token = self.model(token, cache=self.cache)[:, -1:].argmax(-1)
                mx.async_eval(token)
            mx.eval(token)

        return Block(run, lambda: self._undo(steps))

    def piece(self, tokens: mx.array) -> Block:
        """Return the work of reading more of the prompt, `[B, P]`, in one pass."""

        def run() -> None:
            logits = self.model(tokens, cache=self.cache)[:, -1:]
            mx.eval(logits, [entry.state for entry in self.cache])

        return Block(run, lambda: self._undo(tokens.shape[1]))

    def enough_tokens(self, vocabulary: int, room: int) -> mx.array:
        """Return a piece that takes about `PIECE_SECONDS` to read and fits in `room`, `[B, P]`."""
        most, fewest = min(PIECE[0], room), PIECE[1]
        drawn = np.random.default_rng(1).integers(5, vocabulary, (len(self.token), most))
        tokens = mx.array(drawn.astype(np.int32))
        once = self.piece(tokens[:, :fewest])
        each = interleaved(once, once, Patience(seconds=0)).seconds / fewest
        count = fewest
        while 2 * count <= most and 2 * count * each <= PIECE_SECONDS:
            count *= 2
        return tokens[:, :count]

    def enough_steps(self) -> int:
        """Return how many steps take long enough to be timed."""
        once = self.block(1)
        seconds = interleaved(once, once, Patience(seconds=0)).seconds
        return max(2, math.ceil(LEAST_SECONDS / seconds))

    def step(self) -> mx.array:
        """Return the logits of one step, `[B, 1, V]`, which is taken back."""
        logits = self.model(self.token, cache=self.cache)
        mx.eval(logits)
        self._undo(1)
        return logits

    def nodes(self, tokens: mx.array | None = None) -> int:
        """Return the graph nodes of one step, or of a piece `[B, P]`."""
        given = self.token if tokens is None else tokens
        logits = self.model(given, cache=self.cache)
        count = nodes(logits)
        mx.eval(logits)
        self._undo(given.shape[1])
        return count

    def host_seconds(self) -> float:
        """Return the seconds that the host takes to build the graph of one step."""
        return host_seconds(lambda: self.model(self.token, cache=self.cache), lambda: self._undo(1))

    def _undo(self, steps: int) -> None:
        if self.kept is not None:
            self.cache = copy.deepcopy(self.kept)
            return
        for entry in self.cache:
            entry.trim(steps)
