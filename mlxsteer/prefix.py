"""What prompts begin with alike, read once for a pass over all of them: its length and its caches,
from which rows go on, all from its end or each from a length of its own.

A prefix is shared only where every cache is a plain KV cache, and under one steering. One token of
every prompt is always left to be read. It knows nothing of templates or of what is made of it.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.base import create_causal_mask
from mlx_lm.models.cache import ConcatenateKVCache, KVCache

from .plan import taps
from .steering import Steering

__all__ = ["branch_cache", "read_prefix", "shared_prefix"]


def shared_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Return how many leading tokens several sequences share, leaving at least one of each."""
    if len(sequences) < 2:
        return 0
    first, last = min(map(tuple, sequences)), max(map(tuple, sequences))
    most = min(len(s) for s in sequences) - 1
    return next((i for i in range(most) if first[i] != last[i]), most)


def read_prefix(
    model: nn.Module, sequences: Sequence[Sequence[int]], steering: Steering | None
) -> tuple[int, list[Any] | None]:
    """Read what all sequences share, once: its length and KV caches, or `(0, None)`."""
    length, cache = shared_prefix(sequences), model.make_cache()
    if length == 0 or not all(isinstance(c, KVCache) for c in cache):
        return 0, None
    inner = taps((steering.at(0, length, None),)) if steering is not None else None
    model(mx.array([sequences[0][:length]]), cache=cache, taps=inner)
    mx.eval([c.state[:2] for c in cache])
    return length, cache


class RaggedKVCache:
    """Keys and values of rows that were read to different lengths, at the right end of the widest.

    A forward pass goes on from it as from any other KV cache, with an offset per row.

    Args:
        keys, values: `[B, H, T, D]`.
        lengths: of each row, `[B]`, at most `T`.
    """

    def __init__(self, keys: mx.array, values: mx.array, lengths: mx.array) -> None:
        self.keys, self.values, self.offset = keys, values, lengths
        self._padding = keys.shape[2] - lengths

    def update_and_fetch(self, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Append to every row, and return all that is there."""
        self.keys = mx.concatenate([self.keys, keys], axis=2)
        self.values = mx.concatenate([self.values, values], axis=2)
        self.offset = self.offset + keys.shape[2]
        return self.keys_and_values()

    def keys_and_values(self) -> tuple[mx.array, mx.array]:
        """Return all that is there."""
        return self.keys, self.values

    def make_mask(self, N: int, return_array: bool = False, **kwargs: Any) -> mx.array:
        """Return which keys each of the next `N` tokens sees: those of its row, before it."""
        offset = self.keys.shape[2]
        mask: mx.array = create_causal_mask(N, offset, left_padding=self._padding, **kwargs)
        return mask


def branch_cache(
    cache: list[Any] | None, rows: Sequence[int], lengths: Sequence[int] | None = None
) -> list[Any] | None:
    """Return fresh caches, a row for each of `rows`, that go on from those of `cache`, or each
    from its first tokens, as many as `lengths` says.
    """
    if cache is None:
        return None
    picked = mx.array(list(rows))
    if lengths is None or len(set(lengths)) == 1:
        copies = []
        for c in cache:
            copy = ConcatenateKVCache()
            stop = None if lengths is None else lengths[0]
            copy.update_and_fetch(*(x[picked, :, :stop] for x in c.keys_and_values()))
            copies.append(copy)
        return copies
    each, longest = mx.array(list(lengths)), max(lengths)
    columns = mx.maximum(mx.arange(longest) - longest + each[:, None], 0)[:, None, :, None]

    def ends(x: mx.array) -> mx.array:
        return mx.take_along_axis(x[picked], columns, axis=2)

    held = (c.keys_and_values() for c in cache)
    return [RaggedKVCache(ends(keys), ends(values), each) for keys, values in held]
