"""The others in the same run: mlx-lm's own class, the naive way to steer it, and planted failures.

`theirs` is mlx-lm's model of the same family on the same arrays; `wrapped` steers it the way that
scripts do, with every layer wrapped and `h + s * v` behind it. On a tiny model, where an extra
kernel weighs more than the noise, the naive wrapper and a tap made slow on purpose must come out
as slower, or the instrument is blind.
"""

import importlib
from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache

from ..arch import get_classes
from ..taps import JOINS, Tap, Taps
from ..vector import Vector
from .cases import STRENGTH
from .works import Side

__all__ = ["plain_peer", "slow_tap", "theirs", "tiny", "wrapped"]

SLOW = 20  # operations that a tap which is slow on purpose does for nothing


def theirs(model: nn.Module) -> nn.Module:
    """Return mlx-lm's own model of the family, on the arrays of `model`: nothing is copied."""
    args = model.args
    module = importlib.import_module(f"mlx_lm.models.{args.model_type}")
    peer: nn.Module = module.Model(module.ModelArgs.from_dict(vars(args)))
    weights: dict[str, Any] = dict(tree_flatten(model.parameters()))
    weights = peer.sanitize(weights) if hasattr(peer, "sanitize") else weights
    packed = {
        path: {"group_size": m.group_size, "bits": m.bits, "mode": m.mode}
        for path, m in model.named_modules()
        if hasattr(m, "bits") and hasattr(m, "group_size")
    }
    if packed:
        nn.quantize(peer, class_predicate=lambda path, _: packed.get(path, False))
    peer.load_weights(list(weights.items()))
    peer.eval()
    return peer


def plain_peer(peer: nn.Module) -> Side:
    """Return mlx-lm's model, unsteered."""
    return Side(peer, lambda length: make_prompt_cache(peer))


class _Wrapped(nn.Module):
    """A layer and vectors behind it."""

    def __init__(self, layer: nn.Module, vectors: list[mx.array], strength: float) -> None:
        super().__init__()
        self.layer = layer
        self._vectors, self._strength = vectors, strength

    def __call__(self, *args: Any, **options: Any) -> mx.array:
        h: mx.array = self.layer(*args, **options)
        for vector in self._vectors:
            h = h + self._strength * vector
        return h

    def __getattr__(self, name: str) -> Any:
        if name in self or "layer" not in self:
            return super().__getattr__(name)
        return getattr(self["layer"], name)  # what a model asks of its layers


def wrapped(peer: nn.Module, vectors: Sequence[Vector]) -> Side:
    """Return mlx-lm's model with every layer wrapped; it is changed."""
    dtype = peer.layers[0].input_layernorm.weight.dtype  # of the residual stream
    for i, layer in enumerate(peer.layers):
        rows = [mx.array(v.directions[i] * v.scales[i]).astype(dtype) for v in vectors]
        mx.eval(rows)
        peer.layers[i] = _Wrapped(layer, rows, STRENGTH)
    return plain_peer(peer)


def tiny() -> nn.Module:
    """Return a random model of many narrow layers, in which kernels cost more than arithmetic."""
    config = {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 24,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "rms_norm_eps": 1e-5,
        "vocab_size": 256,
    }
    classes = get_classes(config)
    model: nn.Module = classes[0](classes[1].from_dict(config))  # type: ignore[attr-defined]
    mx.eval(model.parameters())
    return model


class _SlowTap(Tap):
    def stream(self, h: mx.array) -> mx.array:
        for _ in range(SLOW):
            h = mx.negative(mx.negative(h))
        return h


def slow_tap(model: nn.Module) -> Side:
    """Return the model with taps that do nothing slowly."""
    taps = Taps({(n, join): _SlowTap() for n in range(len(model.layers)) for join in JOINS})

    def call(tokens: mx.array, cache: list[Any]) -> mx.array:
        logits: mx.array = model(tokens, cache=cache, taps=taps)
        return logits

    return Side(call, lambda length: model.make_cache())
