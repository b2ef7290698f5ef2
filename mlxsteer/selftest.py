"""Does a model with taps do what the taps say? Asked once, when it is loaded.

Every site of every layer is tapped in one pass, and the taps have to fire once each, layer by
layer: calls are counted, MLX is lazy, nothing is computed for it. Then one layer of every kind is
held against the meaning of the sites, on three tokens: it is its input plus what joins; an edit
leaves every layer below bit-identical, changes its own place by exactly the edit, enters the stream
and reaches the layer above. "The logits move" would not do: an edit at the wrong layer passes that.
It knows nothing of vectors, families or files.
"""

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn

from . import edits
from .errors import MlxsteerError
from .plan import EditTap
from .taps import JOINS, SITES, Join, Tap, Taps, site_place

__all__ = ["Report", "selftest"]

TOKENS = 3
ROUNDING = 2.0**-6  # of the summed magnitudes: a few roundings of bfloat16

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
    """

    layers: int
    taps: int
    tested: tuple[int, ...]
    sites: tuple[str, ...]
    width: int
    vocabulary: int

    def __str__(self) -> str:
        tested = ", ".join(map(str, self.tested))
        return (
            f"passed: {self.taps} taps in {self.layers} layers fired once each and in order; edits "
            f"followed through layer {tested} at {', '.join(self.sites)}"
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


def selftest(model: nn.Module, kinds: Sequence[Hashable], sums: Sequence[bool]) -> Report:
    """Test a model with taps.

    Args:
        model: it has `sites`, which of the four each layer has.
        kinds: what sets layers apart; one of each kind is tested.
        sums: whether a layer is its input plus what joins there.

    Raises:
        MlxsteerError: it fails; the line says in what.
    """
    plain, logits = _run(model, {})
    every = [(n, site) for n, sites in enumerate(model.sites) for site in SITES if sites[site]]
    _check_order(model, list(plain), every)
    layers = len(model.sites)
    first = {kind: n for n, kind in reversed(list(enumerate(kinds[1:], 1)))}
    tested = sorted(set(first.values())) or [0]
    for layer in tested:
        found = {site: plain[layer, site] for site in SITES if (layer, site) in plain}
        before = plain.get((layer - 1, "resid_post"))
        if sums[layer]:
            _check_sums(model, layer, before, found)
        for site in found:
            _check_edit(model, layer, site, plain, sums[layer])
    width, vocabulary = plain[0, "resid_post"].shape[-1], logits.shape[-1]
    sites = tuple(site for site in SITES if any(model.sites[n][site] for n in tested))
    return Report(layers, len(every), tuple(tested), sites, width, vocabulary)


def _run(model: nn.Module, inner: Mapping[tuple[int, Join], Tap]) -> tuple[Kept, mx.array]:
    """What passes every site during three tokens, not evaluated, in order; and the logits."""
    kept: Kept = {}
    taps = {
        (layer, join): _Watch(layer, join, sites, inner.get((layer, join)), kept)
        for layer, sites in enumerate(model.sites)
        for join in JOINS
        if any(sites[site_place(join, stream)] for stream in (False, True))
    }
    tokens = mx.arange(1, TOKENS + 1)[None]
    logits = model(tokens, cache=model.make_cache(), taps=Taps(taps))
    return kept, logits


def _fail(model: nn.Module, what: str) -> MlxsteerError:
    return MlxsteerError(
        f"this {model.model_type} fails the self-test and is not steered: {what}; "
        "mlx-lm itself runs it unsteered"
    )


def _check_order(
    model: nn.Module, fired: list[tuple[int, str]], every: list[tuple[int, str]]
) -> None:
    """A layer's sites fire after all of the layers below; the last of them is its output."""
    if set(fired) != set(every):
        layer, site = min(set(fired) ^ set(every))
        raise _fail(model, f"the tap {site} of layer {layer} never fired")
    for (layer, site), (after, _) in zip(fired, fired[1:], strict=False):
        if after != layer + (site == "resid_post"):
            raise _fail(model, f"layer {after} is run after {site} of layer {layer}")


def _near(a: mx.array, b: mx.array, parts: Sequence[mx.array]) -> bool:
    """Whether two sums of the parts are the same up to rounding, in every number."""
    size = sum((mx.abs(p.astype(mx.float32)) for p in parts), mx.abs(a))
    off = mx.abs(a.astype(mx.float32) - b.astype(mx.float32))
    return bool(mx.all(off <= ROUNDING * size).item())


def _check_sums(
    model: nn.Module,
    layer: int,
    before: mx.array | None,
    at: Mapping[str, mx.array],
    *edited: mx.array,
) -> None:
    """`resid_mid` and `resid_post` are what was there plus what joins."""
    parts = [at[site] for site in ("attn_out", "mlp_out") if site in at]
    parts += [x for x in (before, *edited) if x is not None]
    h = before
    for join in JOINS:
        r, after = at.get(site_place(join, False)), at.get(site_place(join, True))
        if h is not None and r is not None:
            h = h.astype(mx.float32) + r.astype(mx.float32)
        if h is not None and after is not None and not _near(h, after, parts):
            raise _fail(model, f"{site_place(join, True)} of layer {layer} is not what joins there")
        h = after if after is not None else h


def _check_edit(model: nn.Module, layer: int, site: str, plain: Kept, sums: bool) -> None:
    """An edit acts there, by exactly itself, nowhere below, and above."""
    join, stream = SITES[site]
    here = plain[layer, site]
    row = mx.cos(1.7 * mx.arange(here.shape[-1])) * mx.sqrt(
        mx.mean(mx.square(here.astype(mx.float32)))
    )
    edit = (edits.add(row),)
    tap = EditTap(() if stream else edit, edit if stream else ())
    steered, _ = _run(model, {(layer, join): tap})
    names = [name for name in SITES if (layer, name) in plain]
    for n in range(layer):
        for name in SITES:
            if (n, name) in plain and not mx.array_equal(steered[n, name], plain[n, name]):
                raise _fail(model, f"an edit at {site} of layer {layer} moves {name} of layer {n}")
    if not mx.array_equal(steered[layer, site], here + row.astype(here.dtype)):
        raise _fail(model, f"an edit at {site} of layer {layer} is not what changes there")
    moved = {n for n in names if not mx.array_equal(steered[layer, n], plain[layer, n])}
    expected = set(names[names.index(site) :])
    if site == "attn_out" and not model.sites[layer]["resid_mid"]:
        expected -= {"mlp_out"}
    if sums and moved != expected or not expected - {"mlp_out"} <= moved:
        raise _fail(
            model,
            f"an edit at {site} of layer {layer} moves {', '.join(sorted(moved))}, "
            f"not {', '.join(sorted(expected))}",
        )
    if sums and site != "resid_post":  # what was edited went into the stream
        before = plain.get((layer - 1, "resid_post"))
        at = {name: steered[layer, name] for name in names if not (stream and name == "attn_out")}
        parts = [row] if before is None else [row, before]
        _check_sums(model, layer, None if stream else before, at, *parts)
    above = layer + 1, "resid_post"
    if above in plain and mx.array_equal(steered[above], plain[above]):
        raise _fail(model, f"an edit at {site} of layer {layer} does not reach layer {layer + 1}")
