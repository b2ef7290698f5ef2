"""What prompts begin with alike, such as a system prompt, read once: its length and its caches.

A prefix is shared only where every cache is a plain KV cache, and under one steering. One token of
every prompt is always left to be read. It knows nothing of templates or of what is made of it.
"""

from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import ConcatenateKVCache, KVCache

from .plan import RowPass, taps
from .steering import Steering

__all__ = ["read_alike", "read_prefix", "repeat_cache", "shared_prefix"]

WORTH = 64  # tokens that are not read again, below which nothing is shared


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


def repeat_cache(cache: list[Any] | None, batch: int) -> list[Any] | None:
    """Return fresh caches of `batch` rows that begin with what `cache` holds."""
    if cache is None:
        return None
    copies = []
    for c in cache:
        copy = ConcatenateKVCache()
        copy.update_and_fetch(*(mx.repeat(x, batch, axis=0) for x in c.keys_and_values()))
        copies.append(copy)
    return copies


def read_alike(
    steered: Callable[..., mx.array], rows: Sequence[list[int]], caches: Sequence[list[Any]]
) -> list[int]:
    """Read what prompts begin with alike into their caches, once under each steering, and return
    how many tokens of each prompt that were: 0 where it would save little.

    Alike are all prompts, or those that go on with the same token behind what all share.

    Args:
        steered: a model that steers.
        rows: token ids of each prompt.
        caches: of one request each, empty, with its steering as the last entry.
    """
    requests, begun = [cache[-1].rows[0] for cache in caches], [0] * len(rows)
    if any(r.live.steering.waits for r in requests) or not all(
        isinstance(c, KVCache) for cache in caches for c in cache[:-1]
    ):
        return begun

    def acting(i: int, length: int) -> RowPass:
        steering: Steering = requests[i].live.steering
        return steering.at(0, length, requests[i].prompt_length)

    def saved(length: int, some: list[int]) -> int:
        return length * (len(some) - 2 * len({acting(i, length) for i in some}))

    everyone = list(range(len(rows)))
    length = shared_prefix(rows)
    by_next: dict[int, list[int]] = {}  # as two system prompts differ, or two users' first words
    for i in everyone:
        by_next.setdefault(rows[i][length], []).append(i)
    parts = [(shared_prefix([rows[i] for i in some]), some) for some in by_next.values()]
    worth = [(n, some) for n, some in parts if saved(n, some) >= WORTH]
    whole = saved(length, everyone)
    if whole >= max(WORTH, sum(saved(n, some) for n, some in worth)):
        worth = [(length, everyone)]
    for length, some in worth:
        tokens = mx.array([rows[some[0]][:length]])
        read: dict[RowPass, list[Any]] = {}
        for i in some:
            begun[i], cache, acts = length, caches[i], acting(i, length)
            if acts not in read:
                steered(tokens, cache=cache)
                mx.eval([c.state for c in cache])
                read[acts] = cache
                continue
            for mine, theirs in zip(cache[:-1], read[acts], strict=False):
                mine.keys, mine.values = theirs.keys_and_values()
                mine.offset = length
            cache[-1].taps(tokens)
            cache[-1].advance(length)
    return begun
