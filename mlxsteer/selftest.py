"""Does a model with taps do what the taps say? Asked once, when it is loaded.

Every site of every layer is tapped in one pass, and the taps have to fire once each, layer by
layer: calls are counted, MLX is lazy, nothing is computed for it. Then one layer of every kind is
held against the meaning of the sites, on three tokens: it is its input plus what joins; an edit
leaves every layer below bit-identical, changes its own place by exactly the edit, enters the stream
and reaches the layer above, from the last one the logits. "The logits move" would not do: an edit
at the wrong layer passes that. Whether rows of different lengths may be read in one batch is asked
beside it. It knows nothing of vectors, families or files.
"""

import operator
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import mlx.core as mx
import mlx.nn as nn

from . import edits
from .errors import MlxsteerError
from .plan import EditTap
from .taps import JOINS, SITES, Add, Join, Tap, Taps, site_place

__all__ = ["Report", "reads_ragged", "report_of", "selftest"]

TOKENS = 3
ROUNDING = 2.0**-6  # of the summed magnitudes: a few roundings of bfloat16
# of the largest logit: what is more is no rounding
FAR = {mx.float32: 2.0**-12, mx.bfloat16: 2.0**-4, mx.float16: 2.0**-4}

Kept = dict[tuple[int, str], mx.array]


@dataclass(frozen=True)
class Report:
    """What the self-test found of a model that passed it.

    Attributes:
        layers: how many fired, in their order.
        taps: how many sites fired once each.
        tested: the layers whose edits were followed, one of each kind.
        sites: what the tested layers have.
        width, vocabulary: of the stream and of the logits.
        ragged: whether rows of different lengths go on in one batch as each does alone.
    """

    layers: int
    taps: int
    tested: tuple[int, ...]
    sites: tuple[str, ...]
    width: int
    vocabulary: int
    ragged: bool

    def __str__(self) -> str:
        tested = ", ".join(map(str, self.tested))
        return (
            f"passed: {self.taps} taps in {self.layers} layers fired once each and in order; edits "
            f"followed through layer {tested} at {', '.join(self.sites)}"
            + ("" if self.ragged else "; mlx-lm reads no rows of different lengths at once with it")
        )


class _Watch(Tap):
    """Does what an inner tap does and keeps what comes of it, in the order in which it comes."""

    def __init__(
        self, layer: int, join: Join, sites: Mapping[str, bool], inner: Tap | None, kept: Kept
    ) -> None:
        self.place = layer, join
        self.sites = sites
        self.inner = inner or Tap()
        self.kept = kept

    def acts(self, stream: bool) -> bool:
        return self.sites[site_place(self.place[1], stream)]

    def write(self, r: mx.array) -> mx.array:
        return self.keep(False, self.inner.write(r))

    def stream(self, h: mx.array) -> mx.array:
        return self.keep(True, self.inner.stream(h))

    def join(self, h: mx.array, r: mx.array, add: Add = operator.add, *more: mx.array) -> mx.array:
        self.keep(False, self.inner.write(r))
        return self.keep(True, self.inner.join(h, r, add, *more))

    def keep(self, stream: bool, x: mx.array) -> mx.array:
        layer, join = self.place
        if self.acts(stream):
            self.kept[layer, site_place(join, stream)] = x
        return x

    def carry(
        self, target: mx.array, read: mx.array, *, stream: bool, scale: float = 1.0
    ) -> mx.array:
        carried = self.inner.carry(target, read, stream=stream, scale=scale)
        edit = self.inner.stream if stream else self.inner.write
        self.keep(stream, carried if read is target else edit(read))
        return carried


def selftest(
    model: nn.Module,
    sites: Sequence[Mapping[str, bool]],
    kinds: Sequence[Hashable],
    sums: Sequence[bool],
) -> Report:
    """Test a model with taps.

    Args:
        model: answers `model(tokens, cache, taps)`.
        sites: which of the four each layer has.
        kinds: what sets layers apart; one of each kind is tested.
        sums: whether a layer is its input plus what joins there.

    Raises:
        MlxsteerError: it fails; the line says in what.
    """
    return _Test(model, sites).run(kinds, sums)


def report_of(model: nn.Module) -> Report:
    """Return the report of an adopted model, or test one of our own definitions now.

    Raises:
        MlxsteerError: it fails.
    """
    found: Report | None = getattr(model, "report", None)
    if found is not None:
        return found
    count = len(model.layers)
    kinds = [tuple(type(part) for _, part in block.named_modules()) for block in model.layers]
    return selftest(model, [dict.fromkeys(SITES, True)] * count, kinds, [True] * count)


def reads_ragged(model: nn.Module) -> bool:
    """Return whether rows of different lengths may be read in one batch: our definitions all do,
    and of an adopted model its self-test knows.
    """
    found: Report | None = getattr(model, "report", None)
    return found is None or found.ragged


class _Test:
    """One model and what an unedited pass leaves at each of its sites."""

    def __init__(self, model: nn.Module, sites: Sequence[Mapping[str, bool]]) -> None:
        self.model = model
        self.sites = sites
        self.plain, self.logits = self.passed({})

    def passed(self, inner: Mapping[tuple[int, Join], Tap]) -> tuple[Kept, mx.array]:
        """What passes every site during three tokens, not evaluated, in order; and the logits."""
        kept: Kept = {}
        taps = {
            (layer, join): _Watch(layer, join, sites, inner.get((layer, join)), kept)
            for layer, sites in enumerate(self.sites)
            for join in JOINS
            if any(sites[site_place(join, stream)] for stream in (False, True))
        }
        tokens = mx.arange(1, TOKENS + 1)[None]
        logits = self.model(tokens, cache=self.model.make_cache(), taps=Taps(taps))
        return kept, logits

    def run(self, kinds: Sequence[Hashable], sums: Sequence[bool]) -> Report:
        every = [(n, site) for n, has in enumerate(self.sites) for site in SITES if has[site]]
        self.check_order(every)
        first: dict[Hashable, int] = {}
        for n in (*range(1, len(kinds)), 0):  # of the lowest layer the input is not known
            first.setdefault(kinds[n], n)
        chosen = sorted(first.values())
        for layer in chosen:
            simple = sums[layer] and self.plain[layer, "resid_post"].ndim == 3  # streams are mixed
            if simple:
                self.check_sums(layer, self.at(self.plain, layer), self.before(layer))
            for site in self.at(self.plain, layer):
                self.check_edit(layer, site, simple)
        return Report(
            layers=len(self.sites),
            taps=len(every),
            tested=tuple(chosen),
            sites=tuple(site for site in SITES if any(self.sites[n][site] for n in chosen)),
            width=self.plain[0, "resid_post"].shape[-1],
            vocabulary=self.logits.shape[-1],
            ragged=self.ragged(),
        )

    def ragged(self) -> bool:
        """Whether rows of different lengths go on in one batch as each does alone: not in a class
        that takes one offset for that of all rows, or a mask for one without rows.
        """
        rows = [list(range(1, length + 1)) for length in range(1, TOKENS + 1)]
        alone, caches = [], []
        for row in rows:
            caches.append(self.model.make_cache())
            self.model(mx.array([row]), cache=caches[-1])
            alone.append(self.model(mx.array([[*row, TOKENS]]), cache=self.model.make_cache()))
        expected = mx.stack([logits[0, -1] for logits in alone]).astype(mx.float32)
        try:
            cache = [type(entries[0]).merge(entries) for entries in zip(*caches, strict=True)]
            found = self.model(mx.array([[TOKENS]] * len(rows)), cache=cache)[:, -1]
            off = mx.abs(found.astype(mx.float32) - expected).max()
            most = FAR[found.dtype] * mx.abs(expected).max()
            return bool((off <= most).item())
        except Exception:  # whatever a class makes of shapes that it does not expect
            return False

    def at(self, kept: Kept, layer: int) -> dict[str, mx.array]:
        return {site: kept[layer, site] for site in SITES if self.sites[layer][site]}

    def before(self, layer: int) -> mx.array | None:
        return self.plain.get((layer - 1, "resid_post"))

    def fail(self, what: str) -> MlxsteerError:
        return MlxsteerError(
            f"this {self.model.model_type} fails the self-test and is not steered: {what}; "
            "mlx-lm itself runs it unsteered"
        )

    def check_order(self, every: list[tuple[int, str]]) -> None:
        """A layer's sites fire after all of the layers below; the last of them is its output."""
        fired = list(self.plain)
        if set(fired) != set(every):
            layer, site = min(set(fired) ^ set(every))
            raise self.fail(f"the tap {site} of layer {layer} never fired")
        for (layer, site), (after, _) in pairwise(fired):
            if after != layer + (site == "resid_post"):
                raise self.fail(f"layer {after} is run after {site} of layer {layer}")

    def check_sums(
        self, layer: int, at: Mapping[str, mx.array], before: mx.array | None, *more: mx.array
    ) -> None:
        """`resid_mid` and `resid_post` are what was there plus what joins.

        Args:
            at: the values of the layer's sites; what is left out is not checked.
            before: the stream that enters the layer.
            more: whatever else was summed, to know how much rounding there may be.
        """
        parts = [at[site] for site in ("attn_out", "mlp_out") if site in at]
        parts += [x for x in (before, *more) if x is not None]
        h = before
        for join in JOINS:
            r, after = at.get(site_place(join, False)), at.get(site_place(join, True))
            if h is not None and r is not None:
                h = h.astype(mx.float32) + r.astype(mx.float32)
            if h is not None and after is not None and not _near(h, after, parts):
                site = site_place(join, True)
                raise self.fail(f"{site} of layer {layer} is not the sum of what joins there")
            h = after if after is not None else h

    def check_edit(self, layer: int, site: str, sums: bool) -> None:
        """An edit acts there, by exactly itself, nowhere below, and above."""
        join, stream = SITES[site]
        here, what = self.plain[layer, site], f"an edit at {site} of layer {layer}"
        size = mx.sqrt(mx.mean(mx.square(here.astype(mx.float32))))
        row = size * mx.cos(1.7 * mx.arange(here.shape[-1]))
        edit = (edits.add(row),)
        tap = EditTap(() if stream else edit, edit if stream else ())
        steered, logits = self.passed({(layer, join): tap})
        moved = [k for k in self.plain if k[0] <= layer + 1 and not self.same(steered, k)]
        if below := [k for k in moved if k[0] < layer]:
            raise self.fail(f"{what} moves {below[0][1]} of layer {below[0][0]}")
        if not mx.array_equal(steered[layer, site], here + row.astype(here.dtype)):
            raise self.fail(f"{what} is not what changes there")
        names = list(self.at(self.plain, layer))
        expected = set(names[names.index(site) :])
        if site == "attn_out" and "resid_mid" not in names:
            expected -= {"mlp_out"}  # they run in parallel
        found = {name for n, name in moved if n == layer}
        if found != expected if sums else not expected - {"mlp_out"} <= found:
            raise self.fail(f"{what} moves {', '.join(n for n in names if n in found)} there")
        if sums and site != "resid_post":  # what was edited went into the stream
            at = self.at(steered, layer)
            before = self.before(layer)
            parts = [row] if before is None else [row, before]
            if stream:
                at.pop("attn_out")
            self.check_sums(layer, at, None if stream else before, *parts)
        if layer + 1 == len(self.sites):
            if mx.array_equal(logits, self.logits):
                raise self.fail(f"{what} does not reach the logits")
        elif (layer + 1, "resid_post") not in moved:
            raise self.fail(f"{what} does not reach layer {layer + 1}")

    def same(self, steered: Kept, place: tuple[int, str]) -> bool:
        return bool(mx.array_equal(steered[place], self.plain[place]).item())


def _near(a: mx.array, b: mx.array, parts: Sequence[mx.array]) -> bool:
    """Whether two sums of the parts are the same up to rounding, in every number."""
    size = sum((mx.abs(p.astype(mx.float32)) for p in parts), mx.abs(a))
    off = mx.abs(a.astype(mx.float32) - b.astype(mx.float32))
    return bool(mx.all(off <= ROUNDING * size).item())
