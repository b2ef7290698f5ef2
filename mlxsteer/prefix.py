"""What prompts begin with alike, read once for a pass over all of them: its length and its caches.

A prefix is shared only where every cache is a plain KV cache, and under one steering. One token of
every prompt is always left to be read. It knows nothing of templates or of what is made of it.
"""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
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


def branch_cache(
    cache: list[Any] | None, rows: Sequence[int], length: int | None = None
) -> list[Any] | None:
    """Return fresh caches, a row for each of `rows`, that go on from those of `cache`, or from
    their first `length` tokens.
    """
    if cache is None:
        return None
    copies, wanted = [], mx.array(list(rows))
    for c in cache:
        copy = ConcatenateKVCache()
        copy.update_and_fetch(*(x[wanted, :, :length] for x in c.keys_and_values()))
        copies.append(copy)
    return copies
