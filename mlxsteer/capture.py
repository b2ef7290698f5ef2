"""From prompts to residuals: what every layer holds at one position of each prompt, or on average
over a span of them.

All wanted layers and sites are read in ONE forward pass per batch. Prompts are sorted by length and
right-padded (attention is causal, so padding changes nothing before it); the prefix that all of
them share is read once, as far as nothing of it is wanted; only the wanted positions are kept, one
gather or one masked mean per site; no logits are computed, because nothing asks for them and MLX is
lazy. Where a model carries several residual streams, the mean over them is read. It knows nothing
of concepts, pairs or methods.

Shapes: a result is `{site: [N, n, D]}` for `N` prompts and `n` layers, float32.
"""

import itertools
import operator
from collections.abc import Iterator, Sequence

import mlx.core as mx
import mlx.nn as nn
import numpy as np

from .errors import UsageError
from .plan import taps
from .prefix import branch_cache, read_prefix
from .progress import Progress, silent
from .steering import Steering
from .taps import PLAIN, SITES, Add, Join, Tap, Taps, check_site

__all__ = [
    "CaptureTap",
    "Position",
    "batches",
    "capture",
    "capturing",
    "check_places",
]

# Tokens in one forward pass: enough to fill a CPU or GPU, few enough to keep activations small.
BATCH_TOKENS = 1024
PASS = 32  # tokens that a forward pass takes on top of its own, about

Position = int | tuple[int, int]  # a token, or the span start, stop whose mean is read


class CaptureTap(Tap):
    """Keeps what passes one join, edited by `inner` or not.

    Args:
        inner: the tap that does the join; captured is what it makes.
        kept: where to put `{site: [B, D] or [B, T, D]}`.
        join: which join this is.
        sites: what to keep.
        positions: one token index per row, `[B]`; or a mask of tokens, `[B, T]`, whose mean is
            kept, in float32; None keeps all tokens. Of several residual streams their mean is kept,
            in float32, with None all of them.
    """

    def __init__(
        self,
        inner: Tap,
        kept: dict[str, mx.array],
        join: Join,
        sites: Sequence[str],
        positions: mx.array | None,
    ) -> None:
        self.inner = inner
        self.kept = kept
        self.joins = join
        self.sites = sites
        self.positions = positions

    def _keep(self, x: mx.array, stream: bool) -> None:
        for site in self.sites:
            if SITES[site] == (self.joins, stream):
                self.kept[site] = self._picked(x)

    def _picked(self, x: mx.array) -> mx.array:
        where = self.positions
        if where is None:
            return x
        if where.ndim == 1:
            picked = x[mx.arange(x.shape[0]), where]
            return picked if x.ndim == 3 else picked.astype(mx.float32).mean(axis=1)
        if x.ndim == 4:
            x = x.astype(mx.float32).mean(axis=2)
        wanted = mx.where(where[..., None], x.astype(mx.float32), 0)  # padding may be anything
        return wanted.sum(axis=1) / where.sum(axis=1, keepdims=True)

    def write(self, r: mx.array) -> mx.array:
        r = self.inner.write(r)
        self._keep(r, stream=False)
        return r

    def stream(self, h: mx.array) -> mx.array:
        h = self.inner.stream(h)
        self._keep(h, stream=True)
        return h

    def join(self, h: mx.array, r: mx.array, add: Add = operator.add, *more: mx.array) -> mx.array:
        if any(not SITES[site][1] for site in self.sites):
            self._keep(self.inner.write(r), stream=False)
        h = self.inner.join(h, r, add, *more)  # as it is without this tap, bit for bit
        self._keep(h, stream=True)
        return h

    def acts(self, stream: bool) -> bool:
        kept = any(SITES[site] == (self.joins, stream) for site in self.sites)
        return kept or self.inner.acts(stream)

    def carry(
        self, target: mx.array, read: mx.array, *, stream: bool, scale: float = 1.0
    ) -> mx.array:
        carried = self.inner.carry(target, read, stream=stream, scale=scale)
        edit = self.inner.stream if stream else self.inner.write
        self._keep(carried if read is target else edit(read), stream)
        return carried


def capturing(
    layers: Sequence[int],
    sites: Sequence[str],
    *,
    positions: mx.array | None = None,
    inner: Taps | None = None,
) -> tuple[Taps, dict[int, dict[str, mx.array]]]:
    """Return taps that capture, and the table `[layer][site]` that they fill during the next pass.

    Args:
        layers: which blocks.
        sites: which of the four sites.
        positions: one token index per row, or a mask `[B, T]` whose mean is kept; None keeps every
            token.
        inner: taps to do meanwhile (steering), so that a steered pass can be looked at.
    """
    kept: dict[int, dict[str, mx.array]] = {layer: {} for layer in layers}
    joins = {SITES[site][0] for site in sites}
    table: dict[tuple[int, Join], Tap] = dict(inner.table) if inner is not None else {}
    for layer in layers:
        for join in joins:
            tap = table.get((layer, join), PLAIN)
            table[layer, join] = CaptureTap(tap, kept[layer], join, sites, positions)
    return Taps(table), kept


def capture(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    *,
    sites: Sequence[str] = ("resid_post",),
    layers: Sequence[int] | None = None,
    positions: Sequence[Position] | int = -1,
    steering: Steering | None = None,
    progress: Progress = silent,
    stage: str = "reading prompts",
    batch_tokens: int = BATCH_TOKENS,
) -> dict[str, np.ndarray]:
    """Read the residuals of many prompts.

    Args:
        model: a definition with taps.
        sequences: token ids of each prompt.
        sites: which of `attn_out`, `resid_mid`, `mlp_out`, `resid_post`.
        layers: which blocks; None is all.
        positions: token index into each prompt, negative from its end, one for all or one each; or
            for any of them a span `(start, stop)` of which the mean is read.
        steering: steers meanwhile (phase `all` or a window only).
        batch_tokens: about how many tokens go through the model at once.

    Returns:
        `{site: [N, n, D]}` float32, rows in the order of `sequences`, layers in the order of
        `layers`.

    Raises:
        UsageError: an unknown site or layer, a position outside its prompt.
    """
    chosen = list(range(len(model.layers))) if layers is None else list(layers)
    check_places(model, sites, chosen)
    if not sequences or not all(sequences):
        raise UsageError("there is no prompt to read" if not sequences else "a prompt is empty")
    each = [positions] * len(sequences) if isinstance(positions, int) else list(positions)
    if len(each) != len(sequences):
        raise UsageError(f"{len(each)} positions for {len(sequences)} prompts: give one each")
    spans = [_span(p, len(s)) for p, s in zip(each, sequences, strict=True)]
    sequences = [s[:stop] for s, (_, stop) in zip(sequences, spans, strict=True)]
    # what is wanted of a prompt begins behind the prefix
    heads = [s[: start + 1] for s, (start, _) in zip(sequences, spans, strict=True)]

    prefix, cache = read_prefix(model, heads, steering)
    out: dict[str, list[np.ndarray | None]] = {site: [None] * len(sequences) for site in sites}
    done = 0
    progress(stage, 0, len(sequences))
    for batch in batches([len(s) - prefix for s in sequences], batch_tokens):
        length = max(len(sequences[i]) for i in batch) - prefix
        padded = np.zeros((len(batch), length), np.int32)
        for row, i in enumerate(batch):
            rest = sequences[i][prefix:]
            padded[row, : len(rest)] = rest
        inner = taps((steering.at(prefix, length, None),)) if steering is not None else None
        where = _where([(spans[i][0] - prefix, spans[i][1] - prefix) for i in batch], length)
        table, kept = capturing(chosen, sites, positions=where, inner=inner)
        model(mx.array(padded), cache=branch_cache(cache, [0] * len(batch)), taps=table)
        found = {s: mx.stack([kept[n][s] for n in chosen], 1).astype(mx.float32) for s in sites}
        mx.eval(found)
        for site in sites:
            for row, i in enumerate(batch):
                out[site][i] = np.array(found[site][row])
        done += len(batch)
        progress(stage, done, len(sequences))
    return {site: np.stack([row for row in out[site] if row is not None]) for site in sites}


def check_places(model: nn.Module, sites: Sequence[str], layers: Sequence[int]) -> None:
    """Refuse sites and layers that the model does not have.

    Raises:
        UsageError: an unknown site or layer.
    """
    count = len(model.layers)
    for layer in layers:
        if not 0 <= layer < count:
            raise UsageError(f"layer {layer} does not exist: the model has 0 to {count - 1}")
    for site in sites:
        if site not in SITES:
            raise UsageError(f"site {site!r} does not exist; sites are {', '.join(SITES)}")
        for layer in layers:
            check_site(model, site, layer)


def _span(position: Position, length: int) -> tuple[int, int]:
    """Return the first wanted token and the one behind the last."""
    if isinstance(position, int):
        if not -length <= position < length:
            raise UsageError(f"position {position} does not exist in a prompt of {length} tokens")
        return position % length, position % length + 1
    start, stop = position
    if not 0 <= start < stop <= length:
        raise UsageError(f"span {start}:{stop} does not exist in a prompt of {length} tokens")
    return start, stop


def _where(spans: Sequence[tuple[int, int]], length: int) -> mx.array:
    """Return indices `[B]` if each row wants one token, else a mask `[B, T]`."""
    start, stop = np.array(spans).T
    if (stop == start + 1).all():
        return mx.array(start)
    token = np.arange(length)
    return mx.array((token >= start[:, None]) & (token < stop[:, None]))


def batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Yield indices in batches of similar length, of at most `batch_tokens` padded tokens unless
    one alone has more: those that take the least, when each batch costs `PASS` tokens on top.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    costs, begins = [0], [0]  # of the first j in that order: the least tokens, the last batch
    for j, longest in enumerate((lengths[i] for i in order), start=1):
        most = max(1, batch_tokens // longest)
        cost, i = min((costs[i] + PASS + longest * (j - i), i) for i in range(max(0, j - most), j))
        costs.append(cost)
        begins.append(i)
    cuts = [len(order)]
    while cuts[-1]:
        cuts.append(begins[cuts[-1]])
    for start, stop in itertools.pairwise(reversed(cuts)):
        yield order[start:stop]
