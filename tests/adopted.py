"""What is checked of a tiny random model of any architecture, adopted."""

import functools
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.models.cache import make_prompt_cache
from tiny import direction, nodes
from zoo import build, build_half

from mlxsteer.adopt import adopt
from mlxsteer.capture import capturing
from mlxsteer.generate import forward
from mlxsteer.plan import taps
from mlxsteer.runtime import Steered
from mlxsteer.steering import Steering
from mlxsteer.taps import SITES, Taps
from mlxsteer.vector import Vector

TOKENS = mx.random.randint(1, 60, (1, 13), key=mx.random.key(3))
# of what is there: one of them is small enough to be linear and to change no expert
STEPS = (3e-4, 3e-5, 3e-6)
SHOWN = 60  # logits that are compared; one family blocks some of its tokens


@functools.lru_cache(maxsize=4)
def pair(architecture: str) -> tuple[Any, nn.Module]:
    """Return an adopted model and mlx-lm's own, another object with the same weights."""
    return adopt(build(architecture)), build(architecture)


def sites_of(model: Any) -> tuple[str, ...]:
    """Return the sites that any layer has."""
    return tuple(s for s in SITES if any(has[s] for has in model.sites))


def layers_with(model: Any, site: str) -> tuple[int, ...]:
    return tuple(layer for layer, has in enumerate(model.sites) if has[site])


def vector(
    model: Any, layers: tuple[int, ...], site: str, *, scale: float, seed: int = 0
) -> Vector:
    width = model.args.hidden_size
    rows = {layer: scale * direction(seed + 100 * layer, width) for layer in layers}
    return Vector.from_rows(f"v{seed}", rows, site=site)


def everything(model: Any, inner: Taps | None = None) -> dict[tuple[int, str], mx.array]:
    """Return what passes every site in one pass."""
    kept: dict[tuple[int, str], mx.array] = {}
    table: dict[Any, Any] = {}
    found = []
    for layer, has in enumerate(model.sites):
        wanted, values = capturing([layer], [s for s in SITES if has[s]], inner=inner)
        table |= {place: tap for place, tap in wanted.table.items() if place[0] == layer}
        found.append(values)
    model(TOKENS, cache=model.make_cache(), taps=Taps(table))
    for values in found:
        kept |= {(n, site): x for n, sites in values.items() for site, x in sites.items()}
    mx.eval(kept)
    return kept


def turns(model: Any, v: Vector, logits: mx.array, step: float) -> bool:
    """Whether an edit turned round moves the logits of most tokens the other way."""
    up, down = (
        (forward(model, TOKENS, steering=Steering((v, s))) - logits)[..., :SHOWN]
        for s in (step, -step)
    )
    norms = mx.linalg.norm(up, axis=-1) * mx.linalg.norm(down, axis=-1)
    cosines = mx.sum(up * down, axis=-1) / mx.maximum(norms, 1e-30)
    return number(mx.median(cosines)) < -0.5


def number(x: mx.array) -> float:
    return float(np.array(x))


def size_at(model: Any, layer: int, site: str) -> float:
    """Return the usual length of what passes a site."""
    norms = mx.linalg.norm(everything(model)[layer, site].astype(mx.float32), axis=-1)
    return max(number(mx.mean(norms)), 1e-3)


def check_plain(model: Any, theirs: nn.Module) -> None:
    """Without taps it is mlx-lm's own: the same bits, the same graph, the same caches."""
    assert mx.array_equal(model(TOKENS), theirs(TOKENS), equal_nan=True)
    caches = model.make_cache(), make_prompt_cache(theirs)
    assert [type(c) for c in caches[0]] == [type(c) for c in caches[1]]
    for start, stop in ((0, 9), (9, 10), (10, 13)):
        chunk = TOKENS[:, start:stop]
        a, b = model(chunk, cache=caches[0]), theirs(chunk, cache=caches[1])
        assert nodes(a) == nodes(b)
        assert mx.array_equal(a, b)


def check_site(model: Any, site: str) -> None:
    """Every layer that has it: an edit acts there by exactly itself, above, and nowhere below.

    Turned round, it moves everything above the other way; at strength 0, nothing at all.
    """
    plain, order = everything(model), list(SITES)
    logits = forward(model, TOKENS)
    for layer in layers_with(model, site):
        v = vector(model, (layer,), site, scale=size_at(model, layer, site))
        row = mx.array(v.rows()[layer])
        steered = everything(model, taps((Steering((v, 1.0)).at(0, TOKENS.shape[1], None),)))
        for (n, name), before in plain.items():
            after = steered[n, name]
            if (n, order.index(name)) < (layer, order.index(site)):
                assert mx.array_equal(after, before), f"{name} of layer {n} moved"
            elif (n, name) == (layer, site):
                assert mx.array_equal(after, before + row), "not the edit"
            elif n > layer and name == "resid_post":
                assert not mx.array_equal(after, before), f"{name} of layer {n} did not move"
        check_joined(model, layer, site, row, plain, steered)
        assert any(turns(model, v, logits, step) for step in STEPS), f"layer {layer} is one-sided"
        off = forward(model, TOKENS, steering=Steering((v, 0.0)))
        assert mx.array_equal(off, logits)


def check_joined(
    model: Any, layer: int, site: str, row: mx.array, plain: Any, steered: Any
) -> None:
    """What is edited enters the stream with its sign and size, where nothing else is added."""
    if not model._blocks[layer % len(model._blocks)].words.sums or site == "resid_post":
        return
    a, b = ({s: kept.get((layer, s)) for s in SITES} for kept in (plain, steered))
    after = "resid_mid" if site == "attn_out" and a["resid_mid"] is not None else "resid_post"
    moved = b[after] - a[after]
    if after == "resid_post" and a["mlp_out"] is not None and site != "mlp_out":
        moved = moved - (b["mlp_out"] - a["mlp_out"])
    size = max(number(mx.max(mx.abs(a[after]))), number(mx.max(mx.abs(row))))
    assert mx.max(mx.abs(moved - row)) < 1e-4 * size, f"{site} of layer {layer} is not what joins"


def check_against_a_changed_model(model: Any, theirs: nn.Module) -> None:
    """The twin of `resid_post`: mlx-lm's own model with one block that adds the edit by itself."""
    count = len(theirs.layers)
    for layer in range(len(model.layers)):
        v = vector(model, (layer,), "resid_post", scale=1.0)
        row = mx.array(v.rows()[layer])
        visits: list[int] = []
        block, kind = theirs.layers[layer % count], type(theirs.layers[layer % count])

        def adding(self, *args, kind=kind, row=row, visits=visits, layer=layer, **kwargs):
            out = kind.__call__(self, *args, **kwargs)
            visits.append(layer)
            if len(visits) - 1 != layer // count:
                return out
            if isinstance(out, tuple):
                return (out[0] + row, *out[1:])
            return out + row

        block.__class__ = type(kind.__name__, (kind,), {"__call__": adding})
        changed = theirs(TOKENS, cache=make_prompt_cache(theirs))
        block.__class__ = kind
        steered = Steered(model, Steering((v, 1.0)))
        logits = steered(TOKENS, cache=steered.make_cache())
        assert mx.allclose(logits[..., :SHOWN], changed[..., :SHOWN], rtol=1e-4, atol=1e-4)
        assert not mx.allclose(logits[..., :SHOWN], model(TOKENS)[..., :SHOWN], rtol=1e-4)


def on_all(model: Any, strength: float, seed: int = 0) -> Steering:
    """Return a steering at every site of every layer."""
    made = [
        vector(model, layers_with(model, site), site, scale=0.3, seed=seed + i)
        for i, site in enumerate(sites_of(model))
    ]
    return Steering(*((v, strength) for v in made))


def deviation(a: mx.array, b: mx.array) -> float:
    a, b = (x[..., :SHOWN].astype(mx.float32) for x in (a, b))
    return number(mx.max(mx.abs(a - b)) / mx.max(mx.abs(a)))


def in_pieces(model: Any, steering: Steering) -> mx.array:
    steered = Steered(model, steering)
    cache = steered.make_cache()
    parts = ((0, 5), (5, 10), (10, 11), (11, 12), (12, 13))
    return mx.concatenate([steered(TOKENS[:, a:b], cache=cache) for a, b in parts], axis=1)


def check_pieces(model: Any) -> None:
    """In one piece, in chunks and token by token a steered model agrees as far as a plain one."""
    steering = on_all(model, 1.0)
    assert deviation(forward(model, TOKENS), forward(model, TOKENS, steering=steering)) > 1e-3
    plain, steered = (
        deviation(Steered(model, s)(TOKENS), in_pieces(model, s)) for s in (Steering(), steering)
    )
    assert steered <= max(4 * plain, 1e-4), (steered, plain)


def check_rows(model: Any) -> None:
    """Each row of a batch is as in a batch of its own kind, and the one at 0 as unsteered."""
    rows = [on_all(model, 1.0), on_all(model, 0.0), on_all(model, -0.5, seed=7)]
    batch = mx.repeat(TOKENS, 3, axis=0)
    together = forward(model, batch, steering=rows)
    alone = [forward(model, batch, steering=steering) for steering in rows]
    plain = forward(model, batch)
    assert deviation(plain[1], together[1]) < 1e-5
    for i, row in enumerate(together):
        near = [deviation(logits[i], row) for logits in alone]
        assert [d < 1e-5 for d in near] == [i == n for n in range(3)], near


def check_half(architecture: str) -> None:
    """In bfloat16 the self-test passes, and a steered pass keeps the dtypes of a plain one."""
    model = adopt(build_half(architecture))
    steered = Steered(model, on_all(model, 1.0))
    found = []
    for each in (model, steered):
        cache = each.make_cache()
        logits = each(TOKENS, cache=cache)
        held = dict(tree_flatten([c.state for c in cache[: len(model.make_cache())]]))
        dtypes = [x.dtype for x in held.values() if isinstance(x, mx.array)]
        found.append((logits.dtype, dtypes))
        assert mx.isfinite(logits[..., :SHOWN]).all()
    assert found[0] == found[1]
    assert deviation(model(TOKENS), steered(TOKENS)) > 1e-3


def step(model: Any) -> tuple[int, mx.Dtype]:
    """Return the nodes and the dtype of one step."""
    mx.eval(model.parameters())  # one family rewrites a parameter in each call
    logits = model(mx.array([[5]]), cache=model.make_cache())
    return nodes(logits), logits.dtype


def check_nodes(architecture: str) -> None:
    """One step, additive at every site of every layer: at most one node more for each."""
    model = adopt(build(architecture))
    model.set_dtype(mx.bfloat16)  # where a cast would be a node; nothing is computed
    steered = Steered(model, on_all(model, 1.0))
    step(model)  # gemma3n's casts a parameter in the first
    plain, idle, logits = (step(m) for m in (model, Steered(model), steered))
    assert idle == plain
    assert logits[1] == plain[1]
    sites = sum(sum(has.values()) for has in model.sites)
    extra = logits[0] - plain[0]
    assert 0 < extra <= sites, (extra, sites)
