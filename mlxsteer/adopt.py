"""Taps on any mlx-lm model: `adopt(model)` answers `model(tokens, cache=None, taps=None)`.

An adopted model is the same model with one more argument: of its class, with the same modules,
parameter names and caches. Without taps a call is the plain one of mlx-lm. With taps the call runs
on a view made for it alone: shallow copies of the containers, of the tapped blocks and of their
sub-layers, which share every array and every other module. Their outputs pass through the taps. So
nothing is left behind on a module, and calls in several threads do not meet.

mlx-lm's blocks add to the residual stream by themselves, so an edit is carried by what is about to
be added. `resid_post` is edited in the block's output, `attn_out` and `mlp_out` in the sub-layer's
(behind its norm, and read as it joins), `resid_mid` by what attention adds: exact up to the
rounding of the stream. Additive edits are one node per site. Which module is which is said by
`anatomy`, and held against the model by `selftest` when it is adopted.

It knows nothing of vectors, files or names of models.
"""

import copy
import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache

from .anatomy import Words, leaf, part, words_of
from .errors import MlxsteerError, UsageError
from .selftest import Report, selftest
from .taps import PLAIN, Join, Tap, Taps, check_site, site_place
from .view import Hook, Route, View, first_of, routes, twin

__all__ = ["adopt"]

log = logging.getLogger("mlxsteer")


class _Block:
    """Where a block lies in its model, and its sub-layers in it."""

    def __init__(self, route: Route, block: nn.Module, words: Words) -> None:
        self.route = route
        self.words = words
        attn, mlp = part(block, words.attn), part(block, words.mlp)
        self.parts: dict[Join, tuple[tuple[str, ...], ...]] = {"attn": attn, "mlp": mlp}
        self.entry = part(block, words.entry)
        self.scale = 1.0 if words.scale is None else words.scale(block)
        parallel = words.parallel
        if isinstance(parallel, str):
            parallel = bool(getattr(block, parallel))
        self.sites = {
            "attn_out": bool(attn),
            "resid_mid": bool(attn and mlp) and not parallel,
            "mlp_out": bool(mlp),
            "resid_post": True,
        }
        classes = [type(leaf(block, route)) for parts in (attn, mlp) for route in parts]
        self.kind = (type(block), *classes, *self.sites.values())


class _Pass:
    """One block in one pass: hooks that give what it computes to the taps of each of its visits."""

    def __init__(self, block: _Block, visits: Sequence[tuple[int, Tap, Tap]]) -> None:
        self.of = block
        self.visits = visits
        self.visit = 0
        self.fired: list[tuple[int, str]] = []
        self.h: Any = None  # the residual stream before the next join
        self.sum: dict[Join, Any] = {}  # what the other parts of a sum will add

    def tap(self, join: Join) -> Tap:
        _, attn, mlp = self.visits[self.visit % len(self.visits)]
        return attn if join == "attn" else mlp

    def carry(
        self, join: Join, stream: bool, target: mx.array, read: mx.array, scale: float
    ) -> mx.array:
        tap = self.tap(join)
        if not tap.acts(stream):
            return target
        layer = self.visits[self.visit % len(self.visits)][0]
        self.fired.append((layer, site_place(join, stream)))
        return tap.carry(target, read, stream=stream, scale=scale)

    def block(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.h = [*args, *kwargs.values()][self.of.words.argument]
        self.sum = {}
        out = first_of(call(*args, **kwargs), self.output)
        self.visit += 1
        return out

    def output(self, h: mx.array) -> mx.array:
        axis = self.of.words.streams
        # streams that lie first broadcast by themselves, others need their axis in what is read
        read = h if axis is None else h.mean(axis, keepdims=axis > 0)
        return self.carry("mlp", True, h, read, 1.0)

    def entry(self, call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.h = call(*args, **kwargs)
        return self.h

    def beside(self, join: Join) -> Hook:
        def hook(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            out = call(*args, **kwargs)
            self.sum[join] = out + self.sum[join] if join in self.sum else out
            return out

        return hook

    def joins(self, join: Join) -> Hook:
        def hook(call: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return first_of(call(*args, **kwargs), lambda r: self.joined(join, r))

        return hook

    def joined(self, join: Join, r: mx.array) -> mx.array:
        scale = self.of.scale
        r = self.carry(join, False, r, self.joining(join, r), scale)
        if join == "attn" and self.h is not None and self.tap("attn").acts(True):
            r = self.carry(join, True, r, self.h + self.joining(join, r), scale)
        return r

    def joining(self, join: Join, r: mx.array) -> mx.array:
        """What is added to the stream when a sub-layer gives `r`."""
        whole = self.sum[join] + r if join in self.sum else r
        return whole if self.of.scale == 1 else whole * self.of.scale


def _view(
    model: nn.Module, kind: type[nn.Module], blocks: Sequence[_Block], taps: Taps
) -> tuple[nn.Module, list[_Pass]]:
    """A view of a model for one pass, and the passes through its tapped blocks."""
    view, passes = View(twin(model, kind)), []
    count = len(blocks)
    layers = len(model.sites)
    wanted: dict[int, list[tuple[int, Tap, Tap]]] = {}
    for layer, join in taps.table:
        if not 0 <= layer < layers:
            raise UsageError(f"layer {layer} does not exist: the model has 0 to {layers - 1}")
        for stream in (False, True):
            site = site_place(join, stream)
            if taps.table[layer, join].acts(stream):
                check_site(model, site, layer)
        wanted[layer % count] = []
    for index in sorted(wanted):
        visits = [
            tuple(taps.table.get((layer, join), PLAIN) for join in ("attn", "mlp"))
            for layer in range(index, layers, count)
        ]
        numbered = [(index + i * count, attn, mlp) for i, (attn, mlp) in enumerate(visits)]
        passed = _Pass(blocks[index], numbered)
        _hang(view, passed)
        passes.append(passed)
    return view.root, passes


def _hang(view: View, passed: _Pass) -> None:
    """Put the hooks of one block into a view: only where something acts."""
    block = passed.of
    view.hook(block.route, passed.block)
    taps: dict[Join, list[Tap]] = {
        "attn": [attn for _, attn, _ in passed.visits],
        "mlp": [mlp for _, _, mlp in passed.visits],
    }
    if any(tap.acts(True) for tap in taps["attn"]):
        for route in block.entry:
            view.hook(block.route + route, passed.entry)
    for join, parts in block.parts.items():
        streams = (False, True) if join == "attn" else (False,)
        if parts and any(tap.acts(stream) for tap in taps[join] for stream in streams):
            for route in parts[:-1]:
                view.hook(block.route + route, passed.beside(join))
            view.hook(block.route + parts[-1], passed.joins(join))


@functools.cache
def _adopted(kind: type[nn.Module]) -> type[nn.Module]:
    """The class of adopted models of a class: the same, and called with taps."""

    def call(
        self: Any,
        tokens: mx.array,
        cache: list[Any] | None = None,
        taps: Taps | None = None,
        input_embeddings: mx.array | None = None,
    ) -> mx.array:
        """Return logits `[B, T, V]` for `tokens` `[B, T]`, with the residual edited by `taps`."""
        given = {} if input_embeddings is None else {"input_embeddings": input_embeddings}
        if not taps:
            return cast(mx.array, super(adopted, self).__call__(tokens, cache=cache, **given))
        view, passes = _view(self, kind, self._blocks, taps)
        logits: mx.array = view(tokens, cache=cache, **given)
        fired = sorted(place for passed in passes for place in passed.fired)
        places = sorted(
            (layer, site_place(join, stream))
            for (layer, join), tap in taps.table.items()
            for stream in (False, True)
            if tap.acts(stream)
        )
        if fired != places:
            layer, site = min(p for p in {*places, *fired} if fired.count(p) != places.count(p))
            raise MlxsteerError(
                f"the tap {site} of layer {layer} fired {fired.count((layer, site))} times: "
                f"this {self.model_type} is not steered"
            )
        taps.hits += len(taps)
        return logits

    def make_cache(self: Any) -> list[Any]:
        """Return the empty prompt cache that mlx-lm makes for the model."""
        made: list[Any] = make_prompt_cache(twin(self, kind))
        return made

    def layers(self: Any) -> list[nn.Module]:
        """The blocks, in the order in which they are visited."""
        blocks = list(twin(self, kind).layers)
        return blocks * (len(self.sites) // len(blocks))

    names = {"__call__": call, "make_cache": make_cache, "layers": property(layers)}
    adopted: type[nn.Module] = type(
        kind.__name__, (kind,), {**names, "__module__": kind.__module__}
    )
    return adopted


def adopt(model: nn.Module) -> nn.Module:
    """Return a model of mlx-lm with taps. It shares all modules, so use it in place of `model`.

        model = adopt(mlx_lm.load("owner/name", adapter_path="adapters")[0])

    It has `args` with `hidden_size`, `num_hidden_layers` and `vocab_size`, whatever the family
    calls them; `sites`, which of the four each layer has; and `report`, the self-test's result.

    Raises:
        MlxsteerError: a model without a list of layers, of a family that is not steered, or that
            fails the self-test.
    """
    if isinstance(getattr(model, "report", None), Report):
        return model  # it is adopted already
    places = _places(model)
    words = [words_of(block) for _, block in places]
    refused = next((w.refused for w in words if w.refused), "")
    if refused:
        raise MlxsteerError(f"models of type {model.model_type!r} are not steered: {refused}")
    blocks = [_Block(route, block, w) for (route, block), w in zip(places, words, strict=True)]
    try:
        return _adopt(model, blocks)
    except MlxsteerError as error:
        if any(w != Words() for w in words):
            raise
        # a family that nobody has described: what is known of every block is its output
        log.warning("of its sites only resid_post is steered, because %s", error)
        whole = Words("", "", sums=False)
        return _adopt(model, [_Block(route, block, whole) for route, block in places])


def _adopt(model: nn.Module, blocks: Sequence[_Block]) -> nn.Module:
    adopted = twin(model, _adopted(type(model)))
    visits = [block for _ in range(_loops(model, blocks[0])) for block in blocks]
    sites = [block.sites for block in visits]
    # not by setattr: a module takes lists for its parameters
    vars(adopted).update(_blocks=blocks, sites=sites)
    kinds, sums = [block.kind for block in visits], [block.words.sums for block in visits]
    report = selftest(adopted, sites, kinds, sums)
    vars(adopted).update(report=report, args=_arguments(model, report))
    return adopted


def _places(model: nn.Module) -> list[tuple[Route, nn.Module]]:
    """The blocks in the order in which they are run, and where they lie."""
    layers = getattr(model, "layers", None)
    if not isinstance(layers, (list, tuple)) or not layers:
        raise MlxsteerError(
            f"{type(model).__module__}.{type(model).__name__} has no list of layers: "
            "give a language model of mlx-lm"
        )
    at: dict[int, list[Route]] = {}
    for route, node in routes(model):
        at.setdefault(id(node), []).append(route)
    found = []
    for n, block in enumerate(layers):
        if not isinstance(block, nn.Module) or id(block) not in at:
            raise MlxsteerError(f"layer {n} of this {type(model).__name__} is not in its tree")
        mine = at[id(block)]  # a block that is there several times is taken in turn
        found.append((mine.pop(0) if len(mine) > 1 else mine[0], block))
    return found


def _loops(model: nn.Module, block: _Block) -> int:
    if not block.words.loops:
        return 1
    node: Any = model
    for step in block.route[:-2]:
        node = node[step]
    return int(getattr(node, block.words.loops))


def _arguments(model: nn.Module, report: Report) -> Any:
    """The model's arguments, with the three that everything here reads."""
    args = copy.copy(model.args if hasattr(model, "args") else model.config)
    known = {"hidden_size": report.width, "num_hidden_layers": report.layers}
    known["vocab_size"] = report.vocabulary
    text = getattr(args, "text_config", None)
    if isinstance(text, dict) and "max_position_embeddings" in text:
        known["max_position_embeddings"] = text["max_position_embeddings"]
    for name, value in known.items():
        if getattr(args, name, None) != value:
            setattr(args, name, value)
    return args
