"""Prompt caches that outlive a generation: reused, saved, loaded, refused and read again; and those
of many prompts, of which what they begin with alike is read once.

A cache is right for another steering where the edits on the shared positions are the same: a prompt
that was read under response-only steering serves any other. The record of what acted travels with
the cache; on disk it is in the metadata of mlx-lm's own format, whose loader knows no other classes
than mlx-lm's. This module knows nothing of tokenizers or text.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
from mlx.utils import tree_unflatten
from mlx_lm.models import cache as mlx_cache

from .arch.deepseek_v4_cache import DeepseekV4Cache
from .errors import MlxsteerError
from .plan import RowPass
from .prefix import shared_prefix
from .record import Record
from .runtime import Steered
from .state import Live, Row, SteeringState
from .steering import Steering
from .vector_file import whole_file

__all__ = ["load_prompt_cache", "read", "read_alike", "reuse", "save_prompt_cache"]

CHUNK = 512  # tokens of one forward pass of what is read here
WORTH = 64  # tokens that are not read again, below which prompts share nothing
OWN = {"DeepseekV4Cache": DeepseekV4Cache}  # classes that mlx-lm does not know
NO_ARRAYS: dict[str, Callable[[mx.array], Any]] = {
    "none": lambda _: None,
    "scalar": lambda array: array.item(),
    "string": lambda array: "".join(chr(letter) for letter in np.array(array)),
}


def read(
    steered: Steered,
    tokens: Sequence[int],
    steering: Steering | Live | None = None,
    *,
    prompt_length: int | None = None,
    think_end: Sequence[int] | None = None,
) -> list[Any]:
    """Return the prompt cache of `tokens` read under `steering`, also of a conversation anew.

    Args:
        tokens: all that the cache shall hold.
        prompt_length, think_end: as for `Steered.make_cache`.
    """
    cache = steered.make_cache(steering, prompt_length, think_end)
    _fill(steered, tokens, cache)
    return cache


def read_alike(
    steered: Steered, rows: Sequence[list[int]], caches: Sequence[list[Any]]
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
        isinstance(c, mlx_cache.KVCache) for cache in caches for c in cache[:-1]
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
        tokens = rows[some[0]][:length]
        filled: dict[RowPass, list[Any]] = {}
        for i in some:
            begun[i], cache, acts = length, caches[i], acting(i, length)
            if acts not in filled:
                _fill(steered, tokens, cache)
                filled[acts] = cache
                continue
            for mine, theirs in zip(cache[:-1], filled[acts], strict=False):
                mine.keys, mine.values = theirs.keys_and_values()
                mine.offset = length
            cache[-1].taps(mx.array([tokens]))
            cache[-1].advance(length)
    return begun


def _fill(steered: Steered, tokens: Sequence[int], cache: list[Any]) -> None:
    for start in range(0, len(tokens), CHUNK):
        steered(mx.array([tokens[start : start + CHUNK]]), cache=cache)
        mx.eval([c.state for c in cache])


def reuse(
    cache: list[Any],
    steering: Steering | Live,
    *,
    prompt_length: int | None = None,
    think_end: Sequence[int] | None = None,
) -> list[Any]:
    """Let a request with `steering` go on where `cache` ends; the list itself is returned.

    Args:
        cache: of one request.
        prompt_length: tokens of the new prompt in all, those in the cache among them.

    Raises:
        MlxsteerError: other edits acted on what the cache holds than `steering` asks for.
    """
    state = _state(cache)
    live = Live(steering) if isinstance(steering, Steering) else steering
    row = state.rows[0]
    asked = Record.expected(live.steering, row.position, prompt_length)
    differs = row.record.first_difference(asked, row.position)
    if differs is not None:
        trim = f"trim it to {differs} tokens, or " if mlx_cache.can_trim_prompt_cache(cache) else ""
        raise MlxsteerError(
            f"this prompt cache was read under another steering from position {differs} on: "
            f"{trim}read() the tokens again"
        )
    new = Row(live, prompt_length, think_end)
    new.position, new.record = row.position, row.record
    if new.think_end == row.think_end and prompt_length == row.prompt_length:
        new.answer, new.tail = row.answer, row.tail
    if new.think_end == row.think_end:
        new.unread = list(row.unread)
    state.rows = [new]
    return cache


def save_prompt_cache(
    path: str | os.PathLike[str], cache: list[Any], metadata: dict[str, str] | None = None
) -> None:
    """Write the cache of one request in mlx-lm's format, the steering record in its metadata."""
    state = _state(cache)
    mine = {
        "mlxsteer.position": str(state.size()),
        "mlxsteer.record": state.record.to_json(),
        "mlxsteer.thinking": state.rows[0].thinking_to_json(),
    }
    with whole_file(Path(path)) as temporary:
        target = temporary.with_suffix(".safetensors")  # mlx appends it where it is missing
        mlx_cache.save_prompt_cache(str(target), cache[:-1], {**(metadata or {}), **mine})
        target.replace(temporary)


def load_prompt_cache(path: str | os.PathLike[str]) -> tuple[list[Any], dict[str, str]]:
    """Return a saved cache, to be given to `reuse`, and its metadata.

    A cache that mlx-lm saved itself was read unsteered, and says so in its record.

    Raises:
        MlxsteerError: no file of this kind, or a damaged record.
    """
    try:
        cache, metadata = _read(path)
    except (RuntimeError, ValueError, KeyError, IndexError) as e:
        raise MlxsteerError(f"{path} is no prompt cache ({e}): save one first") from e
    fields = dict(metadata) if isinstance(metadata, dict) else {}
    steering = fields.pop("mlxsteer", {})
    row = Row(Live(), None)
    try:
        row.position = int(steering.get("position", max(c.size() for c in cache)))
    except ValueError as e:
        raise MlxsteerError(f"{path}: its position is damaged ({e}): read the prompt again") from e
    row.record = Record.from_json(steering.get("record", "{}"))
    if "thinking" in steering:
        row.thinking_from_json(steering["thinking"])
    return [*cache, SteeringState([row])], fields


def _read(path: str | os.PathLike[str]) -> tuple[list[Any], Any]:
    """Read mlx-lm's format, as its own loader does, which makes only classes that it knows."""
    values: Any
    header: Any
    values, header = mx.load(str(path), return_metadata=True)
    metadata, names, scalars = tree_unflatten(list(header.items()))
    for key, kind in scalars[1:]:  # what is no array was written as one
        values[key] = NO_ARRAYS[kind](values[key])
    theirs = {name: c for name, c in vars(mlx_cache).items() if hasattr(c, "from_state")}
    known = {**theirs, **OWN}
    states = tree_unflatten(list(values.items()))
    return [known[name].from_state(s) for name, s in zip(names, states, strict=True)], metadata


def _state(cache: list[Any]) -> SteeringState:
    state = cache[-1]
    if not isinstance(state, SteeringState):
        raise MlxsteerError(
            "this prompt cache carries no steering: make it with Steered.make_cache()"
        )
    if len(state.rows) != 1:
        raise MlxsteerError(f"this cache holds {len(state.rows)} requests: extract one of them")
    return state
