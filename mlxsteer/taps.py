"""The seam between a model definition and whatever looks at or edits its residual stream.

A block joins the residual stream twice, `h = h + attn(norm(h))` and `h = h + mlp(norm(h))`, and
each join is one tap. A definition asks `taps.at(layer, join)` for it and calls `tap.join(h, r)`;
with `taps=None` it uses `NO_TAPS`, whose taps are the plain add. Capture, steering and patching are
taps; a definition never hears of vectors, strengths or phases, and nothing is stored on its
modules. A definition that adds by itself (one of mlx-lm's, see `adopt`) has its values changed
before it adds them: `tap.carry`.

Shapes: `h` and `r` are `[B, T, D]` in the model's dtype and keep shape and dtype. Where a family
carries several residual streams (hyper-connections), `h` is `[B, T, S, D]`: an edit of the stream
acts on each of the `S` alike, and one of the sub-layer's output is spread by the family's own add.
This module knows nothing of vectors or models.
"""

import operator
from collections.abc import Callable, Mapping
from typing import Any, Literal

import mlx.core as mx

from .errors import UsageError

__all__ = [
    "JOINS",
    "NO_TAPS",
    "PLAIN",
    "SITES",
    "Add",
    "Join",
    "Tap",
    "Taps",
    "check_site",
    "site_place",
]

Join = Literal["attn", "mlp"]
Add = Callable[..., mx.array]  # of h, r and what else the family's add needs

JOINS: tuple[Join, Join] = ("attn", "mlp")

# site -> (join, whether it edits the residual stream after the add rather than the sub-layer's
# output)
SITES: dict[str, tuple[Join, bool]] = {
    "attn_out": ("attn", False),
    "resid_mid": ("attn", True),
    "mlp_out": ("mlp", False),
    "resid_post": ("mlp", True),
}


def site_place(join: Join, stream: bool) -> str:
    """Return the site that a join has before (`stream=False`) or after the add."""
    return next(site for site, place in SITES.items() if place == (join, stream))


def check_site(model: Any, site: str, layer: int) -> None:
    """Refuse a site that a layer does not have: adopted models list theirs, ours have all four.

    Raises:
        UsageError: it is not there.
    """
    sites = getattr(model, "sites", None)
    if sites is not None and not sites[layer][site]:
        there = ", ".join(name for name, has in sites[layer].items() if has)
        raise UsageError(
            f"layer {layer} of this {model.model_type} has no site {site}: it has {there}"
        )


class Tap:
    """One join of one block. This one is the plain add; others override `write` and `stream`."""

    def write(self, r: mx.array) -> mx.array:
        """Edit the sub-layer's output before it joins (`attn_out`, `mlp_out`)."""
        return r

    def stream(self, h: mx.array) -> mx.array:
        """Edit the residual after the join (`resid_mid`, `resid_post`)."""
        return h

    def join(self, h: mx.array, r: mx.array, add: Add = operator.add, *more: mx.array) -> mx.array:
        """Return `stream(add(h, write(r), *more))`; `add` is the family's own (Gemma 3 clips)."""
        return self.stream(add(h, self.write(r), *more))

    def acts(self, stream: bool) -> bool:
        """Whether `stream` (else `write`) does anything; an adopted model goes only there."""
        name = "stream" if stream else "write"
        return getattr(type(self), name) is not getattr(Tap, name)

    def carry(
        self, target: mx.array, read: mx.array, *, stream: bool, scale: float = 1.0
    ) -> mx.array:
        """Return `target`, changed by what `stream` (else `write`) changes in `read`.

        Args:
            target: what an adopted model is about to add, times `scale`, to the stream.
            read: what the edit reads: `target` itself, or what the stream will be.
            stream: whether `read` is the residual stream.
            scale: the change is divided by it.
        """
        edited = self.stream(read) if stream else self.write(read)
        if edited is read:
            return target
        if read is target:
            return edited
        return target + ((edited - read) / scale).astype(target.dtype)


class _Plain(Tap):
    def join(self, h: mx.array, r: mx.array, add: Add = operator.add, *more: mx.array) -> mx.array:
        return add(h, r, *more)


PLAIN = _Plain()


class Taps:
    """The taps of one forward pass: a table of (layer, join), plain where nothing is listed.

    `hits` counts how often a listed tap was asked for, so that a caller can tell a definition that
    skipped one from one that did not: the count is of Python calls and costs no evaluation.
    """

    def __init__(self, table: Mapping[tuple[int, Join], Tap]) -> None:
        self.table = dict(table)
        self.hits = 0

    def __deepcopy__(self, memo: dict[int, Any]) -> "Taps":
        return self  # mlx-lm copies caches, and what they hold, when it splits batches

    def __len__(self) -> int:
        return len(self.table)

    def at(self, layer: int, join: Join) -> Tap:
        """Return the tap of one join of one block."""
        tap = self.table.get((layer, join))
        if tap is None:
            return PLAIN
        self.hits += 1
        return tap


NO_TAPS = Taps({})
