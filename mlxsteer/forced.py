"""Teacher forcing: what a model says of given answers, token by token, under any steering.

A `Forced` holds texts, each a prompt and an answer that is read and not written. Every call reads
all of them once under one steering. What all texts share is read once, and so is a long prompt that
has several short answers, which go on from prompts of any length. Texts are batched by length, and
blocks below the first that can be steered are read in the first call and never again: their
residual is patched in, and MLX never evaluates what is replaced. Where several such places are
named, a call goes on from the highest that its steering does not reach below. Behind the last block
only the answers' tokens go on: the head, a fifth of a small model, is not for prompts.

It knows nothing of what the texts are nor of what is made of the logits. Shapes: a pass gives
`[n, V]` for the `n` answer tokens in it.
"""

import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx_lm.models.cache import KVCache

from .capture import batches, capturing
from .errors import MlxsteerError
from .metrics import token_log_probs
from .patch import PatchTap
from .plan import taps
from .prefix import branch_cache, shared_prefix
from .progress import Progress, silent
from .selftest import reads_ragged
from .state import OFF
from .steering import Steering
from .taps import PLAIN, Add, Join, Tap, Taps

__all__ = ["Forced", "Text", "read_means"]


@dataclass(frozen=True)
class Text:
    """A prompt and its answer as one sequence of token ids; `start` is the answer's first token.

    Neither may be empty.
    """

    tokens: tuple[int, ...]
    start: int

    def __post_init__(self) -> None:
        if not 0 < self.start < len(self.tokens):
            raise MlxsteerError(
                f"an answer that begins at token {self.start} of {len(self.tokens)}: a text needs "
                "a prompt and an answer"
            )


@dataclass(frozen=True, eq=False)
class _Trunk:
    """Prompts without their last token and what all texts share, right-padded: `[b, T]`."""

    tokens: mx.array
    starts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class _Pass:
    """One forward pass: its tokens `[B, T]`, right-padded, and which logits of it are wanted.

    Attributes:
        rows: which text every wanted logit belongs to, `[n]`.
        targets: the token that each should predict, `[n]`.
        positions, starts: where each row goes on in its text, and where its answer begins.
        picked: its place among the `B * T`, `[n]`.
        trunk: the prompts that are read before it, if they are; every row goes on from one of them.
        behind: which, per row; without a trunk all go on from what all texts share.
    """

    tokens: mx.array
    positions: tuple[int, ...]
    starts: tuple[int, ...]
    rows: np.ndarray
    targets: np.ndarray
    picked: mx.array
    behind: tuple[int, ...]
    trunk: _Trunk | None = None


class _PickTap(Tap):
    """Lets only the tokens `picked` through one join: `[B, T, ...]` becomes `[1, n, ...]`.

    An adopted model adds by itself and never asks for the join: then `done` stays False, and all
    tokens pass.
    """

    def __init__(self, inner: Tap, picked: mx.array) -> None:
        self.inner = inner
        self.picked = picked
        self.done = False

    def write(self, r: mx.array) -> mx.array:
        return self.inner.write(r)

    def stream(self, h: mx.array) -> mx.array:
        return self.inner.stream(h)

    def join(self, h: mx.array, r: mx.array, add: Add = operator.add, *more: mx.array) -> mx.array:
        self.done = True
        return _flat(self.inner.join(h, r, add, *more))[self.picked][None]

    def acts(self, stream: bool) -> bool:
        return self.inner.acts(stream)

    def carry(
        self, target: mx.array, read: mx.array, *, stream: bool, scale: float = 1.0
    ) -> mx.array:
        return self.inner.carry(target, read, stream=stream, scale=scale)


def _flat(x: mx.array) -> mx.array:
    """Return `[B, T, ...]` as `[B * T, ...]`."""
    return x.reshape(-1, *x.shape[2:])


class Forced:
    """Texts to be read under steerings.

    Args:
        texts: at least one.
        first: the lowest block that any steering will steer, or where several of them begin; what
            stands before each is kept when it has been read, best in a first call without steering.
    """

    def __init__(
        self, model: nn.Module, texts: Sequence[Text], first: int | Sequence[int] = 0
    ) -> None:
        self.model = model
        self.firsts = (first,) if isinstance(first, int) else tuple(sorted(set(first)))
        self.prefix = 0
        if all(isinstance(c, KVCache) for c in model.make_cache()):
            # of prompts alone, their last token aside: named phases treat it alike in every text
            self.prefix = shared_prefix([text.tokens[: text.start] for text in texts])
        size = max(64, min(1024, (1 << 26) // int(model.args.vocab_size)))
        trunks = _trunks(texts, self.prefix) if self.prefix else []
        if trunks:
            apart = not reads_ragged(model)
            self._passes = list(_branching(texts, trunks, self.prefix, size, apart))
        else:
            lengths = [len(text.tokens) - 1 - self.prefix for text in texts]
            some = batches(lengths, size)
            self._passes = [_make_pass(texts, batch, [self.prefix] * len(batch)) for batch in some]
        self._head = mx.array(np.array([texts[0].tokens[: self.prefix]], np.int32))
        self._head_end = mx.array([self.prefix - 1])
        # block -> its input; of every pass, every trunk, and what all share (None)
        self._residuals: dict[_Pass | _Trunk | None, dict[int, mx.array]] = {}

    def read(self, steering: Steering) -> Iterator[tuple[np.ndarray, np.ndarray, mx.array]]:
        """Yield per pass which text each answer token is of `[n]`, the tokens `[n]`, and the
        logits that should predict them `[n, V]`, float32.

        While the caller looks at one pass, MLX works on the next.

        Raises:
            MlxsteerError: a vector that steers below the first block that was named.
        """
        lowest = len(self.model.layers)
        for term in steering.active:
            lowest = min(lowest, term.vector.layers[0])
            if lowest < self.firsts[0]:
                raise MlxsteerError(
                    f"vector {term.vector.name!r} steers layer {lowest}, and "
                    f"{self.firsts[0]} was named as the lowest: name the lower one"
                )
        before: tuple[np.ndarray, np.ndarray, mx.array] | None = None
        for made in self._each(steering, lowest):
            mx.async_eval(made[-1])
            if before is not None:
                yield before
            before = made
        if before is not None:
            yield before

    def _each(
        self, steering: Steering, lowest: int
    ) -> Iterator[tuple[np.ndarray, np.ndarray, mx.array]]:
        """Yield what `read` does, unevaluated; the lowest block that is steered is known."""
        shared: list[Any] | None = None
        if self.prefix:
            shared = self.model.make_cache()
            wanted = taps((steering.at(0, self.prefix, self.prefix + 1),))
            mx.eval(self._through(None, self._head, self._head_end, shared, wanted, lowest))
        trunk, before = None, shared
        for each in self._passes:
            if each.trunk is not None and each.trunk is not trunk:
                trunk = each.trunk
                rows, T = trunk.tokens.shape
                before = branch_cache(shared, [0] * rows)
                wanted = taps(tuple(steering.at(self.prefix, T, n) for n in trunk.starts))
                self._through(trunk, trunk.tokens, mx.array([0]), before, wanted, lowest)
            T = each.tokens.shape[1]
            begun = zip(each.positions, each.starts, strict=True)
            wanted = taps(tuple(steering.at(position, T, start) for position, start in begun))
            cache = branch_cache(before, each.behind, each.positions)
            logits = self._through(each, each.tokens, each.picked, cache, wanted, lowest)
            yield each.rows, each.targets, logits.astype(mx.float32)

    def _through(
        self,
        key: _Pass | _Trunk | None,
        tokens: mx.array,
        picked: mx.array,
        cache: list[Any] | None,
        wanted: Taps,
        lowest: int,
    ) -> mx.array:
        """Return the logits `[n, V]` of the tokens `picked` in one pass; what blocks below the
        `lowest` steered one make is kept under `key`.
        """
        kept = self._residuals.setdefault(key, {})
        start = max((n for n in kept if n <= lowest), default=0)
        if start:
            patch = PatchTap(PLAIN, None, kept[start])
            wanted = Taps({**wanted.table, (start - 1, "mlp"): patch})
        new = [n for n in self.firsts if start < n <= lowest]
        table: dict[int, dict[str, mx.array]] = {}
        if new:
            wanted, table = capturing([n - 1 for n in new], ["resid_post"], inner=wanted)
        last: tuple[int, Join] = (len(self.model.layers) - 1, "mlp")
        pick = _PickTap(wanted.table.get(last, PLAIN), picked)
        logits = _flat(self.model(tokens, cache=cache, taps=Taps({**wanted.table, last: pick})))
        for n in new:
            kept[n] = table[n - 1]["resid_post"]
        mx.eval([kept[n] for n in new])
        return logits if pick.done else logits[picked]

    def residuals(self) -> Iterator[tuple[np.ndarray, mx.array]]:
        """Yield per pass which text each token of `read` is of `[n]`, and the residual that goes
        into the lowest block that was named there, unsteered, `[n, D]`, float32.
        """
        for each, _ in zip(self._passes, self._each(OFF, len(self.model.layers)), strict=True):
            residual = self._residuals.pop(each)[self.firsts[0]]  # behind it nothing is evaluated
            if residual.ndim == 4:  # streams
                residual = residual.astype(mx.float32).mean(axis=2)
            yield each.rows, _flat(residual)[each.picked].astype(mx.float32)

    def log_probs(self, steering: Steering, *, progress: Progress = silent) -> np.ndarray:
        """Return the mean log-probability of each text's answer tokens, `[N]`, in nats."""
        stage = "reading answers"
        found: dict[int, float] = {}
        for i, (rows, targets, logits) in enumerate(self.read(steering)):
            progress(stage, i, len(self._passes))
            values = token_log_probs(np.asarray(logits), targets)
            for row in np.unique(rows):
                found[int(row)] = float(values[rows == row].mean(dtype=np.float64))
        progress(stage, len(self._passes), len(self._passes))
        return np.array([found[row] for row in range(len(found))])


def _make_pass(texts: Sequence[Text], batch: list[int], positions: Sequence[int]) -> _Pass:
    T = max(len(texts[i].tokens) - 1 - p for i, p in zip(batch, positions, strict=True))
    padded = np.zeros((len(batch), T), np.int32)
    rows: list[int] = []
    targets: list[int] = []
    picked: list[int] = []
    for row, (i, position) in enumerate(zip(batch, positions, strict=True)):
        tokens, start = texts[i].tokens, texts[i].start
        rest = tokens[position:-1]
        padded[row, : len(rest)] = rest
        rows += [i] * (len(tokens) - start)
        targets += tokens[start:]
        picked += [row * T + t for t in range(start - 1 - position, len(rest))]
    starts = tuple(texts[i].start for i in batch)
    where = np.array(rows), np.array(targets), mx.array(picked)
    return _Pass(mx.array(padded), tuple(positions), starts, *where, (0,) * len(batch))


def _trunks(texts: Sequence[Text], prefix: int) -> list[list[int]]:
    """Return the texts by their prompts if to read each prompt once saves an eighth of all tokens,
    else nothing.
    """
    found: dict[tuple[int, ...], list[int]] = {}
    for i, text in enumerate(texts):
        found.setdefault(text.tokens[: text.start], []).append(i)
    whole = sum(len(text.tokens) - 1 - prefix for text in texts)
    saved = sum((len(some) - 1) * (len(prompt) - 1 - prefix) for prompt, some in found.items())
    return list(found.values()) if saved > whole / 8 else []


def _branching(
    texts: Sequence[Text], trunks: Sequence[list[int]], prefix: int, size: int, apart: bool
) -> Iterator[_Pass]:
    """Yield passes over answers alone, of about `size` tokens, each behind prompts that are read
    before in trunks of as many tokens.

    Args:
        apart: whether prompts of one length and of another have to be in different passes.
    """
    lengths = [texts[some[0]].start - 1 - prefix for some in trunks]
    for batch in batches([max(1, length) for length in lengths], size):
        padded = np.zeros((len(batch), max(lengths[n] for n in batch)), np.int32)
        groups: dict[int, dict[int, int]] = {}  # an answer's text -> its row of the trunk
        for row, n in enumerate(batch):
            first = texts[trunks[n][0]]
            padded[row, : lengths[n]] = first.tokens[prefix : first.start - 1]
            group = groups.setdefault(first.start if apart else 0, {})
            group.update(dict.fromkeys(trunks[n], row))
        starts = tuple(texts[trunks[n][0]].start for n in batch)
        trunk = _Trunk(mx.array(padded), starts) if padded.size else None
        for rows in groups.values():
            answers = list(rows)
            for some in batches([len(texts[i].tokens) - texts[i].start for i in answers], size):
                picked = [answers[n] for n in some]
                found = _make_pass(texts, picked, [texts[i].start - 1 for i in picked])
                if trunk is not None:
                    found = replace(found, behind=tuple(rows[i] for i in picked), trunk=trunk)
                yield found


def read_means(model: nn.Module, texts: Sequence[Text], layer: int) -> np.ndarray:
    """Return the mean residual over each answer after one block, unsteered, `[N, D]`."""
    # a pass does not read the last token of a text: nothing that is wanted hangs on this one
    longer = [replace(text, tokens=(*text.tokens, 0)) for text in texts]
    found: dict[int, np.ndarray] = {}
    for rows, residual in Forced(model, longer, first=layer + 1).residuals():
        values = np.asarray(residual)
        for row in np.unique(rows):
            # the first of a text's tokens here is the last of its prompt
            found[int(row)] = values[rows == row][1:].mean(axis=0, dtype=np.float64)
    return np.array([found[row] for row in range(len(found))], np.float32)
