"""DeepSeek-V4 against transformers' own definition, on weights drawn by name, and steered."""

from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.generate import generate_step
from test_steering import ORDER
from tiny import direction, nodes, ref, tokenizer
from tiny_deepseek import (
    CONFIG,
    LAYERS,
    LONG,
    LONG_AT,
    PROMPT,
    RELEASED,
    TOTAL,
    VOCABULARY,
    WIDTH,
    deepseek,
    golden,
    long_ids,
    parameters,
)

from mlxsteer.arch import deepseek_v4_attention as attention
from mlxsteer.arch import hyper_connections
from mlxsteer.arch.deepseek_v4 import Model, ModelArgs
from mlxsteer.arch.deepseek_v4_cache import Pool
from mlxsteer.arch.rounding import round_fp4, round_fp8
from mlxsteer.calibrate import calibrate
from mlxsteer.capture import capture, capturing
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.extract import extract
from mlxsteer.generate import forward, generate, generate_batch
from mlxsteer.interop import read_ds4, write_ds4
from mlxsteer.neutral import Neutral
from mlxsteer.patch import patching
from mlxsteer.plan import taps
from mlxsteer.runtime import Steered
from mlxsteer.selftest import report_of
from mlxsteer.steering import Steering
from mlxsteer.taps import SITES, Tap, Taps
from mlxsteer.vector import Vector

CLOSE = 1e-4
EVERYWHERE = tuple(range(LAYERS))
STEPS = [PROMPT, *[1] * (TOTAL - PROMPT)]
PIECES = {"one piece": [TOTAL], "odd pieces": [7, 9, 16, 3, 18], "a prompt, then tokens": STEPS}
PIECES["token by token"] = [1] * TOTAL

Out = tuple[np.ndarray, dict[str, np.ndarray]]


@pytest.fixture(scope="module")
def model() -> Model:
    return deepseek()


@pytest.fixture(scope="module")
def packed() -> Model:
    return deepseek("4bit")


def ids() -> np.ndarray:
    return golden()["ids"][:1]


def in_pieces(model: Model, pieces: list[int], inner: Taps | None = None) -> Out:
    """Return logits `[T, V]` and all that the taps see, with the tokens given in pieces."""
    cache, start, logits = model.make_cache(), 0, []
    seen: dict[str, list[mx.array]] = {}
    for count in pieces:
        table, kept = capturing(EVERYWHERE, ORDER, inner=inner)
        logits.append(model(mx.array(ids()[:, start : start + count]), cache=cache, taps=table))
        mx.eval(logits[-1], kept)
        for layer in EVERYWHERE:
            for site in ORDER:
                seen.setdefault(f"{layer}.{site}", []).append(kept[layer][site])
        start += count
    assert start == TOTAL
    joined = {key: np.array(mx.concatenate(values, axis=1)) for key, values in seen.items()}
    return np.array(mx.concatenate(logits, axis=1)[0]), joined


def check_golden(model: Model, pieces: list[int]) -> None:
    logits, seen = in_pieces(model, pieces)
    np.testing.assert_allclose(logits, golden()["logits"][0], atol=CLOSE)
    for key, value in seen.items():
        np.testing.assert_allclose(value[:, golden()["at"]], golden()[key], atol=CLOSE)


@pytest.mark.table("DeepSeek-V4 in pieces", "pieces", "logits and taps of transformers")
@pytest.mark.parametrize("pieces", PIECES)
def test_it_computes_what_transformers_computes(model: Model, pieces: str) -> None:
    check_golden(model, PIECES[pieces])


def noted_lengths(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that fills with how many tokens attend at once."""
    lengths: list[int] = []
    attend = attention.Attention._attend

    def noted(self: Any, cache: Any, q: mx.array, *parts: mx.array) -> mx.array:
        lengths.append(q.shape[1])
        return attend(self, cache, q, *parts)

    monkeypatch.setattr(attention.Attention, "_attend", noted)
    return lengths


@pytest.mark.parametrize("pieces", [[LONG], [130, 7, 600, 163]], ids=str)
def test_windows_and_rates_of_the_released_model(
    pieces: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows of 128 and rates of 4 and 128, over more tokens than attend at once."""
    lengths = noted_lengths(monkeypatch)
    model = deepseek(**RELEASED)
    cache, start, logits = model.make_cache(), 0, []
    for count in pieces:
        logits.append(model(mx.array(long_ids()[:, start : start + count]), cache=cache))
        start += count
    got = np.array(mx.concatenate(logits, axis=1))[:, LONG_AT]
    np.testing.assert_allclose(got, golden()["long"], atol=CLOSE)
    assert max(lengths) == 512


def forgotten_overlap(pool: Any, *parts: mx.array) -> Any:
    """A window does not know the one before it where that was closed by another call."""
    pool.last_values = pool.last_gates = None
    return overlapping(pool, *parts)


def no_every(x: mx.array, rope: Any, offset: int, every: int = 1, **how: Any) -> mx.array:
    """An entry stands at its number instead of at its first token."""
    return rotate(x, rope, offset, **how)


def one_rope(args: Any, kind: str) -> Any:
    """All layers rotate as those with a window alone."""
    return make_rope(args, "window")


def other_axis(streams: mx.array, r: mx.array, post: mx.array, mix: mx.array) -> mx.array:
    return spread(streams, r, post, mix.swapaxes(-1, -2))


def no_sink(self: Any, q: mx.array, keys: mx.array, mask: mx.array) -> mx.array:
    return mx.fast.scaled_dot_product_attention(q, keys, keys, scale=self.dim**-0.5, mask=mask)


overlapping, rotate, make_rope = attention._overlapping, attention.rotate, attention.make_rope
spread = hyper_connections.spread
BROKEN: dict[str, tuple[Any, str, Any]] = {
    "the overlap is forgotten between calls": (attention, "_overlapping", forgotten_overlap),
    "entries stand at their numbers": (attention, "rotate", no_every),
    "one rope for all layers": (attention, "make_rope", one_rope),
    "the streams are mixed along the other axis": (None, "spread", other_axis),
    "there are no sinks": (attention.Attention, "_scores", no_sink),
}


@pytest.mark.parametrize("broken", BROKEN)
def test_what_other_ports_got_wrong_is_noticed(
    broken: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mlxsteer.arch import deepseek_v4

    where, name, wrong = BROKEN[broken]
    monkeypatch.setattr(where or deepseek_v4, name, wrong)
    model = deepseek()
    if broken.startswith("the overlap"):
        check_golden(model, [TOTAL])  # which is why it went unnoticed
    with pytest.raises(AssertionError, match="Not equal"):
        check_golden(model, PIECES["odd pieces"])


@pytest.mark.parametrize(
    "changes",
    [
        {"swiglu_limit": 0.0},
        {"routed_scaling_factor": 1.0},
        {"num_hash_layers": 2},
        {"sliding_window": 9},
        {"index_topk": 4},
        {"hc_sinkhorn_iters": 2},
        {"rope_theta": 160000},
        {"compress_rope_theta": 10000},
        {"rope_scaling": None},
        {"compress_ratios": [0, 0, 4, 128, 0, 128]},
    ],
    ids=str,
)
def test_every_word_of_the_config_counts(changes: dict[str, Any]) -> None:
    """The twin of the comparison: with another value the numbers are others."""
    model = Model(ModelArgs.from_dict({**CONFIG, **changes}))
    held = {k: v for k, v in parameters(deepseek()).items() if k in parameters(model)}
    for name, array in parameters(model).items():
        held.setdefault(name, mx.zeros(array.shape))
    model.load_weights(list(held.items()))
    assert np.abs(in_pieces(model, [TOTAL])[0] - golden()["logits"][0]).max() > 100 * CLOSE


# Steering


def acting(*pairs: tuple[Vector, float], **options: Any) -> Taps:
    return taps((Steering(*pairs, **options).at(0, TOTAL, None),))


def made(rows: dict[int, np.ndarray], **fields: Any) -> Vector:
    return Vector.from_rows("v", rows, **fields)


def steered_end(model: Model, *pairs: tuple[Vector, float], **options: Any) -> np.ndarray:
    """Return the last logits of a prompt, then single tokens, as a request would read them."""
    steered = Steered(model)
    cache = steered.make_cache(Steering(*pairs, **options))
    start, logits = 0, []
    for count in STEPS:
        logits.append(steered(mx.array(ids()[:, start : start + count]), cache=cache))
        start += count
    return np.array(mx.concatenate(logits, axis=1)[0, PROMPT:])


@pytest.fixture
def removing(tmp_path: Any) -> Vector:
    """The golden directions as a file of ds4."""
    path = tmp_path / "golden.f32"
    path.write_bytes(golden()["dirs"].astype("<f4").tobytes())
    return read_ds4(path, WIDTH)


def ds4(removing: Vector, attn: float, ffn: float) -> list[tuple[Vector, float]]:
    """What ds4 does with one file: `--dir-steering-attn`, `--dir-steering-ffn`."""
    return [(removing.replace(site="attn_out"), attn), (removing, ffn)]


@pytest.mark.parametrize(("run", "attn", "ffn"), [("ffn1", 0, 1), ("attn1", 1, 0), ("both", 2, -1)])
def test_ds4_directions_do_what_they_do_in_ds4(
    model: Model, removing: Vector, run: str, attn: float, ffn: float
) -> None:
    want = golden()[f"steer.{run}"][0]
    # a window that names position 0 includes it, as ds4 does
    got = steered_end(model, *ds4(removing, attn, ffn), phase="0:")
    np.testing.assert_allclose(got, want, atol=CLOSE)
    off_by_one = np.roll(removing.directions, 1, axis=0)
    for wrong in (
        ds4(removing, -attn, -ffn),
        ds4(removing, ffn, attn) if run != "both" else ds4(removing, 2, 0),
        ds4(removing.replace(directions=off_by_one), attn, ffn),
        [],
    ):
        assert np.abs(steered_end(model, *wrong, phase="0:") - want).max() > 0.01


def test_an_addition_to_all_streams_is_transformers(model: Model) -> None:
    row, want = golden()["dirs"][2], golden()["steer.add2"][0]
    np.testing.assert_allclose(steered_end(model, (made({2: row}), 1.0)), want, atol=CLOSE)
    for wrong in ((made({2: row}), -1.0), (made({1: row}), 1.0), (made({2: row}), 0.0)):
        assert np.abs(steered_end(model, wrong) - want).max() > 0.01


def residuals(model: Model, inner: Taps | None) -> dict[tuple[int, str], mx.array]:
    table, kept = capturing(EVERYWHERE, ORDER, inner=inner)
    model(mx.array(ids()), taps=table)
    mx.eval(kept)
    return {(layer, site): kept[layer][site] for layer in EVERYWHERE for site in ORDER}


def check_footprint(model: Model, inner: Taps, layer: int, site: str, row: np.ndarray) -> None:
    plain, steered = residuals(model, None), residuals(model, inner)
    place = (layer, ORDER.index(site))
    for key, before in plain.items():
        after, here = steered[key], (key[0], ORDER.index(key[1]))
        assert after.dtype == before.dtype
        assert before.ndim == (4 if SITES[key[1]][1] else 3)
        if here < place:
            assert mx.array_equal(after, before), f"{key} moved"
        elif here == place:
            moved = before + mx.array(row).astype(before.dtype)
            assert mx.array_equal(after, moved), "not the edit"
        else:
            assert not mx.array_equal(after, before), f"{key} did not move"


@pytest.mark.table("DeepSeek-V4 sites", "site", "footprint")
@pytest.mark.parametrize("dtype", ["float32", "4bit"])
@pytest.mark.parametrize("site", SITES)
def test_footprint(site: str, dtype: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue("packed" if dtype == "4bit" else "model")
    v = made({3: 3 * direction(7)}, site=site)
    check_footprint(model, acting((v, 0.5)), 3, site, 0.5 * v.rows()[3])


@pytest.mark.table("DeepSeek-V4 sites", "site", "footprint twins")
@pytest.mark.parametrize("site", SITES)
def test_footprint_twins_fail(model: Model, site: str) -> None:
    row = made({3: 3 * direction(7)}).rows()[3]
    other = next(s for s in ORDER if s != site)
    for words, inner in (
        ("moved", acting((made({2: row}, site=site), 1.0))),
        ("did not move|not the edit", acting((made({4: row}, site=site), 1.0))),
        ("not the edit", acting((made({3: row}, site=site), -1.0))),
        ("not the edit", Taps({(3, SITES[site][0]): Tap()})),
        ("moved|not the edit", acting((made({3: row}, site=other), 1.0))),
    ):
        with pytest.raises(AssertionError, match=words):
            check_footprint(model, inner, 3, site, row)


def test_an_addition_to_all_streams_is_carried_to_the_end(model: Model) -> None:
    """Columns of the mixture sum to one; what a sub-layer writes is weighted by stream instead."""
    post = np.random.default_rng(0).uniform(size=(1, 2, 4, 1)).astype(np.float32)
    streams = mx.random.normal((1, 2, 4, WIDTH), key=mx.random.key(0))
    _, _, mix = model.layers[3].ffn_hc(streams)
    np.testing.assert_allclose(np.array(mix.sum(axis=-1)), 1, atol=1e-5)
    r, v = mx.random.normal((1, 2, WIDTH), key=mx.random.key(1)), mx.array(direction(0))
    before = spread(streams, r, mx.array(post), mix)
    moved = np.array(spread(streams + v, r, mx.array(post), mix) - before)
    np.testing.assert_allclose(moved, np.broadcast_to(direction(0), moved.shape), atol=1e-5)
    written = np.array(spread(streams, r + v, mx.array(post), mix) - before)
    np.testing.assert_allclose(written, post * direction(0), atol=1e-5)


def test_opposite_strengths_move_opposite_ways(model: Model) -> None:
    v = made({LAYERS - 1: direction(0)})
    plain, up, down = (steered_end(model, (v, s)) for s in (0.0, 0.01, -0.01))
    a, b = (up - plain).ravel(), (plain - down).ravel()
    assert np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.999


def step(model: Model, steering: Steering | None) -> tuple[int, mx.Dtype, set[mx.Dtype]]:
    """Count the operations of a step behind a prompt, and name the dtypes that it leaves."""
    steered = Steered(model)
    cache = steered.make_cache(steering)
    mx.eval(steered(mx.array(ids()[:, :21]), cache=cache))
    logits = steered(mx.array(ids()[:, 21:22]), cache=cache)
    count = nodes(logits)
    kept = [x for c in cache[:-1] for x in (c.window, c.pool.entries, c.index.entries)]
    return count, logits.dtype, {x.dtype for x in kept if x is not None}


@pytest.mark.parametrize("dtype", ["float32", "4bit"])
def test_additions_cost_no_node_and_no_dtype(dtype: str, request: pytest.FixtureRequest) -> None:
    model = request.getfixturevalue("packed" if dtype == "4bit" else "model")
    kind = mx.bfloat16 if dtype == "4bit" else mx.float32
    plain = step(model, None)
    assert plain[1:] == (kind, {kind})
    many = [made({n: direction(n + s) for n in EVERYWHERE}, site=site) for s in (0, 9)
            for site in ORDER]  # fmt: skip
    for some in (many[3:4], many[2:3], many):
        assert step(model, Steering(*((v, 0.1) for v in some))) == plain
    one = [v.replace(op="project") for v in many[:4]]
    for v in one:
        count, *rest = step(model, Steering((v, 1.0)))
        assert (rest, count <= plain[0] + 5 * LAYERS) == (list(plain[1:]), True)

    class Naive(Tap):
        def stream(self, h: mx.array) -> mx.array:
            return h + 1.0 * mx.array(direction())

    naive = Taps({(n, "mlp"): Naive() for n in EVERYWHERE})
    tokens = mx.array(ids())
    assert model(tokens, taps=naive).dtype == mx.float32
    if dtype == "float32":
        assert nodes(model(tokens, taps=naive)) > nodes(model(tokens))


def test_all_streams_are_bfloat16(packed: Model) -> None:
    assert {x.dtype for x in residuals(packed, None).values()} == {mx.bfloat16}
    wide = {n for n, a in parameters(packed).items() if a.dtype == mx.float32}
    assert wide == {n for n in wide if not packed.cast_predicate(n)}
    assert any(n.endswith("attn_hc.fn") for n in wide)


def test_strength_0_is_the_plain_graph(model: Model) -> None:
    plain = model(mx.array(ids())).astype(mx.float32)[0]
    v = made(dict.fromkeys(EVERYWHERE, direction(0)))
    assert mx.array_equal(forward(model, ids()[0], steering=Steering((v, 0.0))), plain)
    assert not mx.array_equal(forward(model, ids()[0], steering=Steering((v, 0.1))), plain)


def test_rows_of_a_batch_have_their_own_steering(model: Model) -> None:
    rows = [
        Steering((made({2: direction(1)}), 2.0)),
        Steering(),
        Steering((made({n: direction(n) for n in (0, 3)}, site="attn_out"), -1.5)),
        Steering((made({4: direction(2)}, op="project"), 1.0), keep_norm=True),
    ]
    batch = mx.repeat(mx.array(ids()), len(rows), axis=0)
    together = forward(model, batch, steering=rows)
    alone = [forward(model, batch, steering=steering) for steering in rows]
    for i, row in enumerate(together):
        close = [bool(mx.allclose(row, logits[i], atol=1e-5)) for logits in alone]
        assert close == [i == n for n in range(len(rows))]


# Capture, patching, extraction


def test_capture_reads_the_mean_over_streams(model: Model) -> None:
    whole = residuals(model, None)
    prompt = ids()[0].tolist()
    for site in ORDER:
        at = capture(model, [prompt], sites=[site], positions=40)[site][0]
        span = capture(model, [prompt], sites=[site], positions=[(10, 20)])[site][0]
        for layer in EVERYWHERE:
            one = np.array(whole[layer, site][0]).reshape(TOTAL, -1, WIDTH).mean(axis=1)
            np.testing.assert_allclose(at[layer], one[40], atol=1e-5)
            np.testing.assert_allclose(span[layer], one[10:20].mean(axis=0), atol=1e-5)


def test_patched_streams_are_those_of_the_other_run(model: Model) -> None:
    clean, other = mx.array(ids()), mx.array(golden()["ids"][1:])
    table, kept = capturing([3], ["resid_post"])
    want = model(clean, taps=table)
    # experts are looked up by id in the layers below, and these are patched over
    assert mx.array_equal(model(other, taps=patching(kept)), want)
    some = model(other, taps=patching(kept, positions=[5, 6, 7, 8]))
    assert not mx.allclose(some, want, atol=1e-3)
    flat = {3: {"resid_post": kept[3]["resid_post"].mean(axis=2)}}
    for where in (None, [5, 6, 7, 8]):
        with pytest.raises(UsageError, match="several streams"):
            model(other, taps=patching(flat, positions=where))


PAIRS = [
    {"positive": f"be a pirate tell me {word}", "negative": f"be a helpful {word}"}
    for word in ("about the sea", "how was your day", "why is sky blue", "what should i cook")
]


def test_a_direction_extracted_here_is_written_for_ds4(model: Model, tmp_path: Any) -> None:
    found = extract(
        model, tokenizer(), PAIRS, name="pirate", site="mlp_out", op="project",
        layers=EVERYWHERE, calibrate=False,
    )  # fmt: skip
    write_ds4(found, tmp_path / "pirate.f32")
    again = read_ds4(tmp_path / "pirate.f32", WIDTH)
    assert again.layers == EVERYWHERE
    np.testing.assert_array_equal(again.directions, found.directions)
    pairs = (found, 1.0), (again, 1.0), (again, -1.0)
    ours, theirs, wrong = (steered_end(model, pair, phase="0:") for pair in pairs)
    np.testing.assert_array_equal(ours, theirs)
    assert np.abs(ours - wrong).max() > 0.01


def test_a_vector_is_calibrated(model: Model) -> None:
    rng = np.random.default_rng(2)
    texts = tuple(tuple(rng.integers(2, VOCABULARY, 12 + n).tolist()) for n in range(4))
    neutral = Neutral(texts, (6, 6, 7, 7))
    vector = extract(model, tokenizer(), PAIRS, layers=[2, 3], calibrate=False)
    found = calibrate(model, tokenizer(), vector, budget=0.1, neutral=neutral)
    assert found.calibration is not None
    assert found.calibration["kl"] == pytest.approx(0.1, rel=0.03)


# mlx-lm's generators


def greedy(steered: Steered, prompt: list[int], cache: list[Any], count: int = 8) -> list[int]:
    steps = generate_step(
        mx.array(prompt), steered, max_tokens=count, prompt_cache=cache, prefill_step_size=5
    )
    return [int(token) for token, _ in steps]


def test_every_request_of_a_batch_is_as_alone(model: Model) -> None:
    """Three lengths, three steerings, windows that close at other steps in each row."""
    prompts = [ids()[0, :n].tolist() for n in (31, 2, 18)]
    strong = made(dict.fromkeys((2, 3), direction(0)))
    steerings = [Steering((strong, 6.0)), None, Steering((strong, -6.0), phase="response")]
    steered = Steered(model)
    alone = [
        greedy(steered, p, steered.make_cache(s or Steering(), len(p), ()))
        for p, s in zip(prompts, steerings, strict=True)
    ]
    rows: list[list[int]] = [[] for _ in prompts]
    words = tokenizer()
    words.eos_token_ids = []
    for row, token in generate_batch(model, words, prompts, steering=steerings, max_tokens=8):
        rows[row].append(token)
    assert rows == alone
    plain = [greedy(steered, p, steered.make_cache(Steering(), len(p), ())) for p in prompts]
    assert [a == b for a, b in zip(alone, plain, strict=True)] == [False, True, False]


def test_text_is_written(model: Model) -> None:
    v = made(dict.fromkeys(EVERYWHERE, direction(0)))
    texts = {
        s: generate(
            model, tokenizer(), "how was your day", max_tokens=12, steering=Steering((v, s))
        )
        for s in (0.0, 4.0)
    }
    assert texts[0.0] == generate(model, tokenizer(), "how was your day", max_tokens=12)
    assert texts[0.0] != texts[4.0]


def test_a_long_prompt_attends_in_pieces(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """And the indexer scores in pieces of its own: the numbers stay."""
    from mlxsteer.arch import deepseek_v4_cache

    lengths = noted_lengths(monkeypatch)
    monkeypatch.setattr(deepseek_v4_cache, "PIECE", 20)
    monkeypatch.setattr(attention, "SCORES", 300)
    check_golden(model, [TOTAL])
    assert lengths[:3] == [20, 20, 13]


# Rounding


ROUNDED: dict[str, Any] = {"head_dim": 72, "index_head_dim": 32, "activation_rounding": True}


def fp8_numbers() -> np.ndarray:
    """All magnitudes of float8 e4m3, from its definition."""
    return np.array(
        [m / 8 * 2.0**-6 for m in range(8)]
        + [(1 + m / 8) * 2.0 ** (e - 7) for e in range(1, 16) for m in range(8)][:-1]
    )


FP4_NUMBERS = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def nearest(x: np.ndarray, numbers: np.ndarray, block: int) -> np.ndarray:
    """Round in blocks to the nearest number times a power of two, ties to even."""
    blocks = x.astype(np.float64).reshape(-1, block)
    largest = np.maximum(np.abs(blocks).max(axis=1, keepdims=True), 1e-30)
    scale = 2.0 ** np.ceil(np.log2(largest / numbers[-1]))
    size = np.abs(blocks / scale)
    low = np.clip(np.searchsorted(numbers, size, "right") - 1, 0, len(numbers) - 2)
    below, above = numbers[low], numbers[low + 1]
    up = (size - below > above - size) | ((size - below == above - size) & (low % 2 == 1))
    rounded: np.ndarray = np.sign(blocks) * np.where(up, above, below) * scale
    return rounded.reshape(x.shape)


def test_rounding_takes_the_nearest_number() -> None:
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(50, 128)) * 10.0 ** rng.uniform(-3, 3, (50, 1))).astype(np.float32)
    x[0, :64] = np.arange(64) / 8  # ties, and a largest value at the edge of the range
    x[0, 0], x[1, 0], x[2, 5] = 448, 6 * 2.0**7, -7.5
    np.testing.assert_array_equal(np.array(round_fp8(mx.array(x))), nearest(x, fp8_numbers(), 64))
    np.testing.assert_array_equal(np.array(round_fp4(mx.array(x))), nearest(x, FP4_NUMBERS, 32))
    assert not np.array_equal(nearest(x, FP4_NUMBERS, 32), nearest(x, FP4_NUMBERS, 64))
    assert round_fp8(mx.zeros((64,), mx.bfloat16)).dtype == mx.bfloat16


@pytest.mark.parametrize("rounding", [True, False])
def test_keys_are_rounded_where_the_model_was_trained_so(rounding: bool) -> None:
    """What carries a position stays as it is; the indexer's keys are rounded after a rotation."""
    model = deepseek(**{**ROUNDED, "activation_rounding": rounding})
    cache = model.make_cache()
    mx.eval(model(mx.array(ids()), cache=cache))
    for layer, (kind, _) in enumerate(model.args.layer_kinds):
        held = [cache[layer].window, *([cache[layer].pool.entries] if kind != "window" else [])]
        for keys in held:
            still, turned = np.array(keys[..., :64]), np.array(keys[..., 64:])
            assert np.array_equal(still, nearest(still, fp8_numbers(), 64)) == rounding
            assert not np.array_equal(turned, nearest(turned, fp8_numbers(), 8))
        if kind == "csa":
            index = np.array(cache[layer].index.entries)
            assert np.array_equal(index, nearest(index, FP4_NUMBERS, 32)) == rounding


def test_it_rounds_where_the_config_says_nothing() -> None:
    """No released config names it: real weights are rounded."""
    said = {**CONFIG, **ROUNDED}
    for rounds in (True, False):
        model = Model(ModelArgs.from_dict({**said, "activation_rounding": rounds}))
        parts = [m.rounding for m in model.modules() if hasattr(m, "rounding")]
        # 6 attentions, 4 compressors, 2 indexers with a compressor each
        assert parts == [rounds] * 14
    del said["activation_rounding"]
    assert ModelArgs.from_dict(said).activation_rounding


def hadamard(x: np.ndarray) -> np.ndarray:
    """Multiply by Sylvester's matrix, of norm 1."""
    matrix = np.ones((1, 1))
    while len(matrix) < x.shape[-1]:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    turned: np.ndarray = x @ matrix / np.sqrt(len(matrix))
    return turned


def test_the_indexer_chooses_with_rounded_queries_and_keys() -> None:
    """Against its equation, with the same weights and the rounding written down anew."""
    exact, rounded = (
        deepseek(**{**ROUNDED, "activation_rounding": on}).layers[2].attn for on in (False, True)
    )
    x, low = (mx.random.normal((1, 60, n), key=mx.random.key(n)) for n in (WIDTH, 32))
    q, weights, *pooled = exact.indexer.project(x, low)
    pools = Pool(), Pool()
    for layer, pool in zip((exact, rounded), pools, strict=True):
        layer.indexer.compressor.close(pool, layer.rope, mx.float32, *pooled)
    plain, keys = (np.array(pool.entries, np.float64)[0] for pool in pools)
    np.testing.assert_allclose(keys, nearest(hadamard(plain), FP4_NUMBERS, 32), atol=1e-6)
    turned = np.array(attention.rotate(q.swapaxes(1, 2), exact.rope, 0), np.float64)[0]
    chosen = []
    for queries in (nearest(hadamard(turned), FP4_NUMBERS, 32), hadamard(turned)):
        scores = np.einsum("htn,th->tn", np.maximum(queries @ keys.T, 0), np.array(weights)[0])
        ready = (np.arange(60) + 1) // 4
        scores[np.arange(len(keys)) >= ready[:, None]] = -np.inf
        best = np.argsort(-scores, axis=1)[:, : CONFIG["index_topk"]]
        chosen.append(np.sort(np.where(best < ready[:, None], best, -1), axis=1))
    pick = rounded.indexer.pick(pools[1], 0, rounded.rope, q, weights)
    assert pick is not None
    np.testing.assert_array_equal(np.sort(np.array(pick)[0], axis=1), chosen[0])
    assert not np.array_equal(chosen[0], chosen[1])


# Configs


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compress_ratios": [0, 0, 4]}, r"compress_ratios are \[0, 0, 4\]; each of the 6"),
        ({"compress_ratios": [0, 0, 4, 8, 4, 128]}, "needs one of 0, 4 and 128"),
        ({"compress_ratios": None}, "the config has no compress_ratios"),
        ({"scoring_func": "sigmoid"}, "scoring_func is 'sigmoid'; known is only 'sqrtsoftplus'"),
        ({"n_shared_experts": 2}, "n_shared_experts is 2"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings is True"),
        ({"rope_scaling": {"type": "yarn"}}, "not cut down"),
        (
            {"rope_scaling": {**CONFIG["rope_scaling"], "type": "linear"}},
            "known is only the type 'yarn'",
        ),
        ({"activation_rounding": True}, "keys of 24 values and 16 of the indexer cannot be"),
    ],
)
def test_configs_that_are_not_known_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(MlxsteerError, match=words) as caught:
        ModelArgs.from_dict({**CONFIG, **changes})
    assert len(str(caught.value).splitlines()) == 1


def test_the_layers_of_the_released_model() -> None:
    """Two with a window alone, 21 that choose and 20 that do not; the list is longer."""
    ratios = [0, 0, *[4, 128] * 20, 4, 0, 0, 0]
    released = {**CONFIG, "num_hidden_layers": 43, "compress_ratios": ratios}
    kinds = ModelArgs.from_dict({**released, "compress_rates": None}).layer_kinds
    assert len(kinds) == 43
    assert [kinds.count(k) for k in (("window", 0), ("csa", 4), ("hca", 128))] == [2, 21, 20]
    assert kinds[42] == ("csa", 4)


def test_the_protocol(model: Model) -> None:
    assert isinstance(model, nn.Module)
    assert model.args.max_position_embeddings == CONFIG["max_position_embeddings"]
    given = mx.random.normal((1, 3, WIDTH), key=mx.random.key(1))
    tokens = mx.array([[1, 2, 3]])
    embedded = model(tokens, input_embeddings=model.model.embed_tokens(tokens))
    assert mx.array_equal(embedded, model(tokens))
    assert not mx.array_equal(model(tokens, input_embeddings=given), model(tokens))
    foreign = made({0: np.ones(8)}, model=ref(hidden_size=8))
    with pytest.raises(MlxsteerError, match="width"):
        forward(model, [1, 2], steering=Steering((foreign, 1.0)))


def test_the_self_test_passes_on_four_streams() -> None:
    report = report_of(deepseek())
    assert report.taps == 4 * report.layers
    assert len(report.tested) == 3  # window, CSA and HCA
