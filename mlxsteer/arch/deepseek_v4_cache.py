"""The cache of one DeepSeek-V4 attention: a window of keys, pooled entries and windows still open.

A `DeepseekV4Cache` is of one request, or of several of equal length that stay together. A
`DeepseekV4BatchCache` holds one for each row, and what depends on the past is computed row by row:
windows close at other steps in other rows, and a left padding would shift every one of them. Both
speak mlx-lm's cache protocol.

Nothing is ever trimmed: a closed window has swallowed its tokens, and keys that left the window
are gone. Arrays are never changed in place, so a copy is a snapshot that costs nothing; go back to
one, or read again.

It knows nothing of projections, positions or weights.

Shapes: keys and entries `[B, n, d]`; rows of an open window `[B, n, w]`, float32.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import mlx.core as mx

from ..errors import MlxsteerError

__all__ = ["DeepseekV4BatchCache", "DeepseekV4Cache", "Pool"]

PIECE = 512  # tokens that attend at once: scores and gathered keys grow with it

Parts = tuple[mx.array, ...]  # [B, T, ...] each
# of a DeepseekV4Cache and parts; what it returns is shaped as the first part
Core = Callable[..., mx.array]


class Pool:
    """Pooled entries, the rows of the open window, and what the next window needs of the last.

    Attributes:
        entries: `[B, n, d]`.
        values, gates: rows of the window that is not full yet.
        last_values, last_gates: the first halves of the last full window, `[B, 1, rate, d]`.
    """

    NAMES = ("entries", "values", "gates", "last_values", "last_gates")

    def __init__(self) -> None:
        self.entries: mx.array | None = None
        self.values: mx.array | None = None
        self.gates: mx.array | None = None
        self.last_values: mx.array | None = None
        self.last_gates: mx.array | None = None

    def __len__(self) -> int:
        return 0 if self.entries is None else self.entries.shape[1]

    def add(self, entries: mx.array) -> None:
        """Append the entries of windows that have closed."""
        self.entries = _append(self.entries, entries)

    def full(self, values: mx.array, gates: mx.array, rate: int) -> tuple[mx.array, mx.array]:
        """Return all rows of the windows that are full now, and keep those of the open one."""
        values, gates = _append(self.values, values), _append(self.gates, gates)
        end = values.shape[1] // rate * rate
        self.values, self.gates = values[:, end:], gates[:, end:]
        return values[:, :end], gates[:, :end]

    @property
    def state(self) -> list[mx.array | None]:
        """The arrays, in the order of `NAMES`."""
        return [getattr(self, name) for name in self.NAMES]

    @state.setter
    def state(self, state: Sequence[mx.array | None]) -> None:
        for name, array in zip(self.NAMES, state, strict=True):
            setattr(self, name, array)


class DeepseekV4Cache:
    """What one attention remembers of one request.

    Attributes:
        offset: tokens read.
        window: the last keys, `[B, n, d]`.
        pool: pooled keys.
        index: pooled keys of the indexer.
    """

    def __init__(self) -> None:
        self.offset = 0
        self.window: mx.array | None = None
        self.pool = Pool()
        self.index = Pool()

    def slide(self, keys: mx.array, size: int) -> mx.array:
        """Append keys and return all that a query may see; a window of `size` is kept.

        The query's own key counts in the window, so the last `size - 1` are what the next needs.
        """
        seen = _append(self.window, keys)
        self.window = seen[:, max(seen.shape[1] - size + 1, 0) :]
        self.offset += keys.shape[1]
        return seen

    def over(self, core: Core, parts: Parts) -> mx.array:
        """Return `core(self, *parts)`, a piece of the tokens after another."""
        length = parts[0].shape[1]
        done = []
        for start in range(0, length, PIECE):
            out = core(self, *(part[:, start : start + PIECE] for part in parts))
            # whoever computes this also computes the state, which may be asked for much later: a
            # step that leaves it lazy grows a chain of thousands of buffers
            done.append(mx.depends(out, self.arrays))
        return done[0] if len(done) == 1 else mx.concatenate(done, axis=1)

    @property
    def arrays(self) -> list[mx.array]:
        """Everything that it holds on the device."""
        held = (self.window, *self.pool.state, *self.index.state)
        return [array for array in held if array is not None]

    def __deepcopy__(self, memo: dict[int, Any]) -> "DeepseekV4Cache":
        return self.from_state(self.state)

    # mlx-lm's cache protocol

    @property
    def state(self) -> tuple[Any, ...]:
        """All that there is to know."""
        return self.offset, self.window, self.pool.state, self.index.state

    @state.setter
    def state(self, state: tuple[Any, ...]) -> None:
        self.offset, self.window, self.pool.state, self.index.state = state

    @classmethod
    def from_state(cls, state: tuple[Any, ...]) -> "DeepseekV4Cache":
        """Return the cache that has this state."""
        cache = cls()
        cache.state = state
        return cache

    @classmethod
    def merge(cls, caches: Sequence["DeepseekV4Cache"]) -> "DeepseekV4BatchCache":
        """Return the cache of a batch with these requests as its rows."""
        return DeepseekV4BatchCache([copy.deepcopy(cache) for cache in caches])

    def is_trimmable(self) -> bool:
        """Return False: what a closed window has swallowed does not come back."""
        return False

    def size(self) -> int:
        """Return the tokens read."""
        return self.offset

    def empty(self) -> bool:
        """Return whether nothing was read yet."""
        return self.offset == 0

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(array.nbytes for array in self.arrays)


class DeepseekV4BatchCache:
    """What one attention remembers of the rows of a batch, however far each has been read."""

    def __init__(self, rows: list[DeepseekV4Cache]) -> None:
        self.rows = rows
        self._coming: list[int] | None = None  # tokens of each row before its padding

    def over(self, core: Core, parts: Parts) -> mx.array:
        """Return `core` of every row; behind a row's last token it is zero."""
        length = parts[0].shape[1]
        if len(self.rows) != parts[0].shape[0]:
            raise MlxsteerError(
                f"{parts[0].shape[0]} rows of tokens for a cache of {len(self.rows)} requests"
            )
        coming = self._coming or [length] * len(self.rows)
        done = []
        for i, (row, left) in enumerate(zip(self.rows, coming, strict=True)):
            count = min(left, length)
            out = [mx.zeros_like(parts[0][i : i + 1, count:])] if count < length else []
            if count:
                out.insert(0, row.over(core, tuple(part[i : i + 1, :count] for part in parts)))
            done.append(out[0] if len(out) == 1 else mx.concatenate(out, axis=1))
        if self._coming is not None:
            self._coming = [max(left - length, 0) for left in self._coming]
        return mx.concatenate(done, axis=0)

    # mlx-lm's cache protocol

    def prepare(
        self,
        *,
        left_padding: list[int] | None = None,
        lengths: list[int] | None = None,
        right_padding: list[int] | None = None,
    ) -> None:
        """Hear how many of the coming tokens are no padding.

        Raises:
            MlxsteerError: padding on the left, which would shift every window.
        """
        if left_padding is not None and any(left_padding):
            raise MlxsteerError("DeepSeek-V4 cannot read prompts padded on the left: pad the right")
        if right_padding is not None and lengths is not None:
            self._coming = list(lengths)

    def finalize(self) -> None:
        """Hear that the padding is over."""
        self._coming = None

    def extend(self, other: "DeepseekV4BatchCache") -> None:
        """Append the rows of `other`."""
        self.rows = self.rows + other.rows

    def filter(self, batch_indices: Any) -> None:
        """Keep the rows at `batch_indices`, in that order."""
        self.rows = [self.rows[int(i)] for i in batch_indices]

    def extract(self, idx: int) -> DeepseekV4Cache:
        """Return a copy of one row."""
        return copy.deepcopy(self.rows[idx])

    @property
    def state(self) -> list[Any]:
        """The states of the rows."""
        return [row.state for row in self.rows]

    def is_trimmable(self) -> bool:
        """Return False, as for every row."""
        return False

    def size(self) -> int:
        """Return the most tokens read by any row."""
        return max((row.size() for row in self.rows), default=0)

    def empty(self) -> bool:
        """Return whether nothing was read yet."""
        return self.size() == 0

    @property
    def nbytes(self) -> int:
        """Bytes on the device."""
        return sum(row.nbytes for row in self.rows)


def _append(old: mx.array | None, new: mx.array) -> mx.array:
    return new if old is None else mx.concatenate([old, new], axis=1)
