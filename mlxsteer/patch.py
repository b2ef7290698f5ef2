"""Activation patching: what one run holds at a place, put into another run.

    taps, kept = capturing([12], ["resid_post"])
    forward(model, clean, taps=taps)
    logits = forward(model, corrupted, taps=patching(kept, positions=[7]))

The runs may be of one model or of two of the same shape. MLX is lazy: where every position of a
residual is replaced, what would have computed it is never evaluated. It knows nothing of vectors.

Shapes: kept values are `[B, T, D]`, or `[B, T, S, D]` of `S` residual streams, as `capturing`
without positions leaves them.
"""

from collections.abc import Mapping, Sequence

import mlx.core as mx

from .errors import UsageError
from .taps import PLAIN, SITES, Join, Tap, Taps

__all__ = ["PatchTap", "patching"]


class PatchTap(Tap):
    """Replaces what passes one join by kept values, at some positions or at all.

    Args:
        inner: the tap that does the join; it is patched over.
        write, stream: kept values `[B, T, D]` of the two sites of the join, or None.
        positions: `(from, to)` token indices of the kept and of this run; None is all of them.
    """

    def __init__(
        self,
        inner: Tap,
        write: mx.array | None,
        stream: mx.array | None,
        positions: tuple[mx.array, mx.array] | None = None,
    ) -> None:
        self.inner = inner
        self.kept_write = write
        self.kept_stream = stream
        self.positions = positions

    def _patched(self, x: mx.array, kept: mx.array | None) -> mx.array:
        if kept is None:
            return x
        value = kept.astype(x.dtype)
        if value.ndim != x.ndim:
            raise UsageError(
                f"a residual of shape {value.shape} cannot replace one of shape {x.shape}: one of "
                "the models carries several streams, the other does not"
            )
        if self.positions is not None:
            source, target = self.positions
            patched = mx.array(x)
            patched[:, target] = value[:, source]
            return patched
        if value.shape[1:] != x.shape[1:]:
            raise UsageError(
                f"a run of {value.shape[1]} tokens of width {value.shape[-1]} cannot replace one "
                f"of {x.shape[1]} of width {x.shape[-1]}: name the positions, or take equal runs"
            )
        return mx.broadcast_to(value, x.shape)

    def write(self, r: mx.array) -> mx.array:
        return self._patched(self.inner.write(r), self.kept_write)

    def stream(self, h: mx.array) -> mx.array:
        return self._patched(self.inner.stream(h), self.kept_stream)

    def acts(self, stream: bool) -> bool:
        kept = self.kept_stream if stream else self.kept_write
        return kept is not None or self.inner.acts(stream)


def patching(
    kept: Mapping[int, Mapping[str, mx.array]],
    *,
    positions: Sequence[int] | None = None,
    sources: Sequence[int] | None = None,
    inner: Taps | None = None,
) -> Taps:
    """Return taps that put what `capturing` kept into the run they are given to.

    Args:
        kept: `[layer][site]`, as `capturing` fills it.
        positions: token indices of the run that are replaced; None is all.
        sources: the tokens of the kept run to take; None is the same positions.
        inner: taps to do meanwhile, e.g. of a steering.

    Raises:
        UsageError: an unknown site, or numbers of positions that differ.
    """
    where: tuple[mx.array, mx.array] | None = None
    if positions is not None:
        taken = list(positions) if sources is None else list(sources)
        if len(taken) != len(positions):
            raise UsageError(f"{len(taken)} positions cannot replace {len(positions)}: one each")
        where = mx.array(taken), mx.array(list(positions))
    table: dict[tuple[int, Join], Tap] = dict(inner.table) if inner is not None else {}
    places: dict[tuple[int, Join], dict[bool, mx.array]] = {}
    for layer, sites in kept.items():
        for site, value in sites.items():
            if site not in SITES:
                raise UsageError(f"site {site!r} does not exist; sites are {', '.join(SITES)}")
            join, stream = SITES[site]
            places.setdefault((layer, join), {})[stream] = value
    for place, values in places.items():
        base = table.get(place, PLAIN)
        table[place] = PatchTap(base, values.get(False), values.get(True), where)
    return Taps(table)
