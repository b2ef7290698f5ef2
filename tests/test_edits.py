"""Every operator against its formula in plain NumPy: fused, in any dtype, per row and per token."""

import operator
from itertools import pairwise
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import LAYERS, WIDTH, direction, nodes, ref, tiny, vector

from mlxsteer.capture import capturing
from mlxsteer.errors import UsageError
from mlxsteer.generate import forward
from mlxsteer.plan import EditTap, taps
from mlxsteer.runtime import Steered
from mlxsteer.steering import Acting, Steering
from mlxsteer.taps import Join
from mlxsteer.vector import Vector

B, T = 3, 5
DTYPES = {"float32": mx.float32, "bfloat16": mx.bfloat16}


def made(op: str, seed: int, *, sae: bool = False, scale: float = 1.0) -> Vector:
    """Return a vector of one layer for any operator."""
    rng = np.random.default_rng(seed)
    fields: dict[str, Any] = {}
    if op in ("clamp", "cap"):
        fields["targets"] = rng.normal(size=1).astype(np.float32)
    if sae:
        fields["encoders"] = rng.normal(size=(1, WIDTH)).astype(np.float32)
        # some tokens on either side of the relu, and of a cap's target
        fields["encoder_biases"] = np.array([2.0], np.float32)
        fields.update({"targets": np.abs(fields["targets"])} if "targets" in fields else {})
    row = scale * direction(seed)
    return Vector.from_rows(f"{op}{seed}", {1: row}, op=op, model=ref(), **fields)


def formula(x: np.ndarray, acting: list[tuple[Vector, float]], keep_norm: bool) -> np.ndarray:
    """`x + sum (a + g f(x . w + b)) d` of one row `[T, D]`, float64, written down independently."""
    total = np.zeros_like(x)
    span: list[np.ndarray] = []
    held: list[float] = []
    for v, strength in acting:
        d, s = v.directions[0].astype(np.float64), strength * float(v.scales[0])
        t = 0.0 if v.targets is None else float(v.targets[0])
        if v.op == "add":
            total += s * d
        elif v.encoders is not None:
            assert v.encoder_biases is not None
            feature = x @ v.encoders[0] + float(v.encoder_biases[0])
            if v.op == "cap":
                total -= s * np.maximum(feature - t, 0)[:, None] * d
            else:
                total += s * (t - np.maximum(feature, 0))[:, None] * d
        elif v.op == "cap":
            total -= s * np.maximum(x @ d - t, 0)[:, None] * d
        else:
            # what this direction adds to the span of the ones before, and what it must hold there
            basis = np.array(span).reshape(-1, len(d))
            rest = d - basis.T @ (basis @ d)
            q = rest / np.linalg.norm(rest)
            target = (t - (basis @ d) @ np.array(held)) / np.linalg.norm(rest)
            span.append(q)
            held.append(target)
            total += s * (target - x @ q)[:, None] * q
    y: np.ndarray = x + total
    if keep_norm:
        y *= np.linalg.norm(x, axis=-1, keepdims=True) / np.linalg.norm(y, axis=-1, keepdims=True)
    return y


CASES = {
    "add": [("add", False)],
    "project": [("project", False)],
    "clamp": [("clamp", False)],
    "cap": [("cap", False)],
    "two projects": [("project", False)] * 2,
    "project, clamp, clamp": [("project", False), ("clamp", False), ("clamp", False)],
    "sae project": [("project", True)],
    "sae clamp, sae clamp": [("clamp", True), ("clamp", True)],
    "sae cap": [("cap", True)],
    "everything": [
        ("add", False),
        ("project", False),
        ("clamp", False),
        ("cap", False),
        ("clamp", True),
        ("add", False),
    ],
}


@pytest.mark.table("Operators", "case", "formula, rows, weights, norms")
@pytest.mark.parametrize("keep_norm", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_formula(dtype: str, case: str, keep_norm: bool) -> None:
    """Three rows of a batch: this case, nothing, another case with other weights over tokens."""
    x = (3 * mx.random.normal((B, T, WIDTH), key=mx.random.key(3))).astype(DTYPES[dtype])
    first = [(made(op, 10 + i, sae=sae), 0.5 + 0.25 * i) for i, (op, sae) in enumerate(CASES[case])]
    last = [
        (made("add", 50, scale=2.0), -1.0),
        (made("project", 51), 1.0),
        (made("project", 52), 0.5),
    ]
    weights = (0.0, 1.0, 0.5, 0.0, 1.0)
    rows = (
        tuple(Acting(v, s, None, False, keep_norm) for v, s in first),
        (),
        tuple(Acting(v, s, weights, False, keep_norm) for v, s in last),
    )
    tap = taps(rows).at(1, "mlp")
    assert isinstance(tap, EditTap)
    half = (0.5 * x).astype(x.dtype)
    got = tap.join(half, half)
    assert got.dtype == x.dtype
    plain = np.array((half + half).astype(mx.float32), np.float64)
    expected = plain.copy()
    expected[0] = formula(plain[0], first, keep_norm)
    full = formula(plain[2], last, False)
    expected[2] = plain[2] + np.array(weights)[:, None] * (full - plain[2])
    if keep_norm:
        norms = (np.linalg.norm(a[2], axis=-1, keepdims=True) for a in (plain, expected))
        old, new = norms
        expected[2] *= old / new
    seen = np.array(got.astype(mx.float32), np.float64)
    step = 2e-5 if dtype == "float32" else 2.0**-7
    np.testing.assert_allclose(seen, expected, rtol=step, atol=step)
    np.testing.assert_array_equal(seen[1], plain[1])  # a row of nothing is the plain result
    np.testing.assert_array_equal(seen[2, [0, 3]], plain[2, [0, 3]])  # and so is a weight of 0
    assert not np.allclose(seen[0], plain[0], atol=0.05)
    same = mx.allclose(got, tap.stream(half + half), rtol=step, atol=step)
    assert same.item()


@pytest.mark.table("Operators", "case", "twins")
@pytest.mark.parametrize("twin", ["sign", "layer", "join", "never"])
@pytest.mark.parametrize("case", CASES)
def test_the_twins_of_the_formula_fail(case: str, twin: str) -> None:
    x = 3 * mx.random.normal((1, T, WIDTH), key=mx.random.key(3))
    each = [(made(op, 10 + i, sae=sae), 0.5 + 0.25 * i) for i, (op, sae) in enumerate(CASES[case])]
    expected = formula(np.array(x[0], np.float64), each, False)

    def edited(strengths: float, layer: int, join: Join) -> np.ndarray:
        table = taps((tuple(Acting(v, strengths * s) for v, s in each),))
        return np.array(table.at(layer, join).join(x, mx.zeros_like(x))[0])

    np.testing.assert_allclose(edited(1, 1, "mlp"), expected, atol=2e-5)
    places: dict[str, tuple[float, int, Join]] = {
        "sign": (-1, 1, "mlp"),
        "layer": (1, 2, "mlp"),
        "join": (1, 1, "attn"),
        "never": (0, 1, "mlp"),
    }
    assert not np.allclose(edited(*places[twin]), expected, atol=0.05)


# phase and schedule -> the weights of `T` tokens, of which 3 are the prompt's; 4 is the answer's
PHASES: dict[str, tuple[dict[str, Any], list[float]]] = {
    "all": ({}, [1, 1, 1, 1, 1]),
    "prompt": ({"phase": "prompt"}, [1, 1, 0, 0, 0]),
    "response": ({"phase": "response"}, [0, 0, 1, 1, 1]),
    "answer": ({"phase": "answer"}, [0, 0, 0, 0, 1]),
    "window": ({"phase": "0:4"}, [1, 1, 1, 1, 0]),
    "decay": ({"schedule": "decay(2)"}, [1, 1, 1, 0.5**0.5, 0.5]),
    "ramp": ({"phase": "response", "schedule": "ramp(4)"}, [0, 0, 0.25, 0.5, 0.75]),
}


@pytest.mark.table("Operators", "case", "phases")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("case", CASES)
def test_an_operator_in_every_phase(case: str, phase: str) -> None:
    """Read at once, in chunks and token by token; what reads leaves position 0 to windows."""
    options, weights = PHASES[phase]
    x = 3 * np.random.default_rng(3).normal(size=(T, WIDTH)).astype(np.float32)
    each = [(made(op, 10 + i, sae=sae), 0.5 + 0.25 * i) for i, (op, sae) in enumerate(CASES[case])]
    expected = x + np.array(weights)[:, None] * (formula(x, each, False) - x)
    if phase != "window":
        added = formula(x[:1], [(v, s) for v, s in each if v.op == "add"], False)
        expected[0] = x[0] + weights[0] * (added[0] - x[0])
    steering = Steering(*each, **options)
    gate = mx.array([0.0, 0, 0, 0, 1])[None, :, None]
    for cuts in ([0, 5], [0, 2, 5], range(6)):
        for start, stop in pairwise(cuts):
            part = mx.array(x[None, start:stop])
            acting = steering.at(start, stop - start, 3)
            tap = taps((acting,), gate[:, start:stop]).at(1, "mlp")
            got = np.array(tap.join(part, mx.zeros_like(part))[0])
            np.testing.assert_allclose(got, expected[start:stop], atol=2e-5)


def test_at_strength_1_every_direction_holds_its_target_however_they_overlap() -> None:
    base = direction(1)
    near = base + 0.3 * direction(2)
    vectors = [
        Vector.from_rows("a", {1: base}, op="clamp", targets=[2.0], model=ref()),
        Vector.from_rows(
            "b", {1: near / np.linalg.norm(near)}, op="clamp", targets=[-1.0], model=ref()
        ),
        Vector.from_rows("c", {1: direction(3)}, op="project", model=ref()),
    ]
    tap = taps((tuple(Acting(v, 1.0) for v in vectors),)).at(1, "mlp")
    x = mx.random.normal((1, 4, WIDTH), key=mx.random.key(0))
    y = np.array(tap.join(x, x))[0]
    for v, target in zip(vectors, (2.0, -1.0, 0.0), strict=True):
        np.testing.assert_allclose(y @ v.directions[0], target, atol=1e-4)
    # the twin: done one after the other, the first would not hold
    x1 = 2 * np.array(x)[0].astype(np.float64)
    for v, target in zip(vectors, (2.0, -1.0, 0.0), strict=True):
        d = v.directions[0]
        x1 = x1 + (target - x1 @ d)[:, None] * d
    assert not np.allclose(x1 @ vectors[0].directions[0], 2.0, atol=0.1)


def test_the_same_direction_twice_is_removed_once() -> None:
    v = made("project", 1)
    tap = taps(((Acting(v, 1.0), Acting(v.replace(name="again"), 1.0)),)).at(1, "mlp")
    x = mx.random.normal((1, 4, WIDTH), key=mx.random.key(0))
    y = np.array(tap.join(x, x))[0]
    np.testing.assert_allclose(y @ v.directions[0], 0, atol=1e-5)


def test_a_cap_is_one_sided() -> None:
    d = direction(1)
    v = Vector.from_rows("cap", {1: d}, op="cap", targets=[1.0], model=ref())
    tap = taps(((Acting(v, 1.0),),)).at(1, "mlp")
    x = mx.array((np.array([[[-3.0], [0.5], [1.0], [4.0]]]) * d).astype(np.float32))
    y = np.array(tap.join(x, mx.zeros_like(x)))[0] @ d
    np.testing.assert_allclose(y, [-3.0, 0.5, 1.0, 1.0], atol=1e-5)


def test_norms_are_kept_and_zeros_stay() -> None:
    v = made("add", 1, scale=5.0)
    tap = taps(((Acting(v, 1.0, keep_norm=True),),)).at(1, "mlp")
    x = mx.random.normal((1, 4, WIDTH), key=mx.random.key(0))
    x = x * mx.array([0.0, 1e-20, 1.0, 1e15])[:, None]
    y = tap.join(x, mx.zeros_like(x))
    assert mx.isfinite(y).all()
    assert mx.array_equal(y[0, 0], mx.zeros(WIDTH))
    old, new = (np.linalg.norm(np.array(a[0, 2:], np.float64), axis=-1) for a in (x, y))
    np.testing.assert_allclose(new, old, rtol=1e-5)
    # an edit that takes everything away leaves nothing to give a norm to
    d = made("project", 1)
    gone = taps(((Acting(d, 1.0, keep_norm=True),),)).at(1, "mlp")
    only = mx.array(d.directions[None].astype(np.float32))
    assert mx.isfinite(gone.join(only, only)).all()


@pytest.mark.parametrize("op", ["project", "clamp", "cap"])
def test_reading_edits_leave_position_0_alone(op: str) -> None:
    model, v = tiny(), made(op, 4)
    for start, phase, moved in ((0, None, False), (0, "0:", True), (3, None, True)):
        acting = Steering((v, 1.0), phase=phase).at(start, 2, None)
        wanted, kept = capturing([1], ["resid_post"], inner=taps((acting,)))
        model(mx.array([[5, 6]]), taps=wanted)
        plain_taps, plain = capturing([1], ["resid_post"])
        model(mx.array([[5, 6]]), taps=plain_taps)
        same = mx.array_equal(kept[1]["resid_post"][0, 0], plain[1]["resid_post"][0, 0])
        assert bool(same) is not (moved and op != "cap") or op == "cap"
        if op != "cap":
            assert not mx.array_equal(kept[1]["resid_post"][0, 1], plain[1]["resid_post"][0, 1])
    assert Steering((vector(), 1.0)).at(0, 2, None)[0].weights is None  # additions act everywhere


def test_projection_in_a_model_removes_and_its_opposite_doubles() -> None:
    model, v = tiny(), made("project", 4)
    d = v.directions[0]
    along = {}
    for strength in (0.0, 1.0, -1.0):
        inner = taps((Steering((v, strength)).at(0, 4, None),))
        wanted, kept = capturing([1], ["resid_post"], inner=inner)
        model(mx.array([[5, 6, 7, 8]]), taps=wanted)
        along[strength] = np.array(kept[1]["resid_post"][0, 1:]) @ d
    np.testing.assert_allclose(along[1.0], 0, atol=1e-5)
    np.testing.assert_allclose(along[-1.0], 2 * along[0.0], rtol=1e-4, atol=1e-5)
    assert np.abs(along[0.0]).min() > 1e-3


EVERYWHERE = tuple(range(LAYERS))


def everywhere(op: str, seed: int) -> Vector:
    rows = {n: direction(seed + 7 * n) for n in EVERYWHERE}
    targets: dict[str, Any] = {"targets": [0.5] * LAYERS} if op in ("clamp", "cap") else {}
    return Vector.from_rows(f"{op}{seed}", rows, op=op, model=ref(), **targets)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "4bit"])
@pytest.mark.parametrize(
    ("ops", "options", "most"),
    [
        (["project"], {}, 5),
        (["clamp"], {}, 5),
        (["cap"], {}, 5),
        (["project"] * 3 + ["clamp"], {}, 5),
        (["add"], {"keep_norm": True}, 5),
        (["project", "add"], {}, 5),
        (["add"], {"schedule": "decay(4)"}, 0),
        (["add"] * 10, {"schedule": "ramp(4)"}, 0),
    ],
)
def test_nodes_per_tap(dtype: str, ops: list[str], options: dict[str, Any], most: int) -> None:
    model = tiny(dtype)
    steering = Steering(*((everywhere(op, i), 0.5) for i, op in enumerate(ops)), **options)
    counts = []
    for each in (Steering(), steering):
        steered = Steered(model)
        cache = steered.make_cache(each, prompt_length=3)
        mx.eval(steered(mx.array([[1, 2, 3]]), cache=cache))
        logits = steered(mx.array([[4]]), cache=cache)
        counts.append(nodes(logits))
        mx.eval(logits)
        assert logits.dtype == (mx.float32 if dtype == "float32" else mx.bfloat16)
        assert all(c.keys.dtype == logits.dtype for c in cache[:-1])
    assert counts[1] - counts[0] <= most * LAYERS


def test_strength_0_of_any_operator_is_off() -> None:
    model = tiny()
    plain = forward(model, [1, 2, 3])
    for op in ("project", "clamp", "cap"):
        off = Steering((everywhere(op, 1), 0.0), keep_norm=True)
        assert mx.array_equal(forward(model, [1, 2, 3], steering=off), plain)
        on = Steering((everywhere(op, 1), 1.0))
        assert not mx.array_equal(forward(model, [1, 2, 3], steering=on), plain)


def test_norm_keeping_is_for_a_whole_steering() -> None:
    v = vector()
    with pytest.raises(UsageError, match="keeps norms"):
        Steering((v, 1.0)) + Steering((v, 1.0), keep_norm=True)
    both = Steering((v, 1.0), keep_norm=True) + Steering()
    assert both.keep_norm
    assert (2 * both).keep_norm
    assert operator.ne(both, Steering((v, 1.0)))


# Edits of one place that act on different tokens

TOGETHER: dict[str, list[dict[str, Any]]] = {
    "phases": [{"phase": "prompt"}, {"phase": "all"}, {"phase": "2:6"}],
    "schedules": [{}, {"schedule": "decay(3)"}, {"schedule": "ramp(4)"}],
    "answers": [{"phase": "answer"}, {"phase": "all"}, {"phase": "response"}],
    "all of it": [{"phase": "answer", "schedule": "ramp(4)"}, {"schedule": "decay(2)"}, {}],
    "twice": [{"phase": "3:"}, {"phase": "response", "schedule": "decay(3)"}],
}
PROMPT_LENGTH, ANSWER_FROM, LENGTH = 4, 7, 11


def overlapping(how: list[dict[str, Any]], same: bool) -> Steering:
    """Projections and clamps whose directions have cosines of about 0.7, at one place."""
    steering = Steering()
    for i, each in enumerate(how):
        row = direction(1) + (0 if same else direction(2 + i))
        fields: dict[str, Any] = {"op": "clamp", "targets": [2.0]} if i % 2 else {"op": "project"}
        unit = {1: row / np.linalg.norm(row)}
        v = Vector.from_rows(f"v{i}", unit, site="resid_post", model=ref(), **fields)
        steering += Steering((v, (1.0, 0.5, -0.75)[i]), **each)
    return steering


def one_token(x: np.ndarray, steering: Steering, t: int) -> np.ndarray:
    """What the edits that act on token `t` make of it, orthonormalised among themselves."""
    basis: list[tuple[np.ndarray, float]] = []
    new = x.astype(np.float64)
    for term in steering:
        first, last = term.positions(PROMPT_LENGTH)
        if not first <= t < last or (term.phase.name == "answer" and t < ANSWER_FROM):
            continue
        weight = term.schedule.factor(t - PROMPT_LENGTH + 1)
        d = term.vector.directions[0].astype(np.float64)
        target = 0.0 if term.vector.targets is None else float(term.vector.targets[0])
        if weight == 0:
            continue
        for q, held in basis:
            d, target = d - (d @ q) * q, target - (d @ q) * held
        norm = float(np.linalg.norm(d))
        if norm < 1e-6:
            continue
        basis.append((d / norm, target / norm))
        q, held = basis[-1]
        new = new + term.strength * weight * (held - x @ q) * q
    return new


@pytest.mark.parametrize("same", [False, True])
@pytest.mark.parametrize("how", TOGETHER)
def test_what_acts_on_a_token_is_orthonormalised_whatever_else_is_read_with_it(
    how: str, same: bool
) -> None:
    steering = overlapping(TOGETHER[how], same)
    x = np.random.default_rng(0).normal(size=(LENGTH, WIDTH)).astype(np.float32) * 3
    expected = np.array([one_token(x[t], steering, t) for t in range(LENGTH)])
    gate = mx.array((np.arange(LENGTH) >= ANSWER_FROM).astype(np.float32))[None, :, None]
    for size in (LENGTH, 1, 3):
        chunks = []
        for start in range(0, LENGTH, size):
            part = mx.array(x[None, start : start + size])
            n = part.shape[1]
            acting = steering.at(start, n, PROMPT_LENGTH)
            tap = taps((acting,), gate[:, start : start + n]).at(1, "mlp")
            chunks.append(np.array(tap.join(part, mx.zeros_like(part)))[0])
        np.testing.assert_allclose(np.concatenate(chunks), expected, atol=2e-5)
    each = [overlapping(TOGETHER[how], same).terms[i : i + 1] for i in range(len(steering.terms))]
    apart = x + sum(
        np.array([one_token(x[t], Steering._of(term, False), t) for t in range(LENGTH)]) - x
        for term in each
    )
    assert not np.allclose(apart, expected, atol=1e-2)  # the twin: all of them at once


def test_rows_of_a_batch_may_mix_what_is_orthonormalised() -> None:
    rows = [overlapping(how, False) for how in TOGETHER.values()] + [Steering()]
    rows.append(Steering((vector((1,), scale=2.0), 1.0)) + overlapping(TOGETHER["phases"], True))
    x = np.random.default_rng(0).normal(size=(LENGTH, WIDTH)).astype(np.float32) * 3
    gate = mx.array((np.arange(LENGTH) >= ANSWER_FROM).astype(np.float32))[None, :, None]
    batch = mx.array(np.repeat(x[None], len(rows), 0))
    acting = tuple(s.at(0, LENGTH, PROMPT_LENGTH) for s in rows)
    table = taps(acting, mx.repeat(gate, len(rows), 0))
    together = table.at(1, "mlp").join(batch, mx.zeros_like(batch))
    for i, row in enumerate(acting):
        tap = taps((row,), gate).at(1, "mlp")
        alone = tap.join(batch[:1], mx.zeros_like(batch[:1]))[0]
        assert mx.allclose(together[i], alone, atol=2e-5)
