"""Additive steering does exactly its edit, at its place, in every dtype, and nothing when off."""

import copy

import mlx.core as mx
import numpy as np
import pytest
from mlx_lm.models.cache import make_prompt_cache
from tiny import DTYPES, LAYERS, WIDTH, direction, nodes, ref, tiny, vector

from mlxsteer.capture import capturing
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.generate import forward
from mlxsteer.plan import EditTap, taps
from mlxsteer.runtime import Steered
from mlxsteer.state import Live, Row, SteeringState
from mlxsteer.steering import Phase, Steering
from mlxsteer.taps import JOINS, NO_TAPS, SITES, Tap, Taps, site_place
from mlxsteer.vector import Vector

TOKENS = mx.array([[5, 17, 3, 80, 41, 9]])
ORDER = ("attn_out", "resid_mid", "mlp_out", "resid_post")


def residuals(model, steering: Taps | None) -> dict[tuple[int, str], mx.array]:
    """Return everything the taps can see in one pass."""
    wanted, kept = capturing(range(LAYERS), ORDER, inner=steering)
    model(TOKENS, taps=wanted)
    out = {(layer, site): kept[layer][site] for layer in range(LAYERS) for site in ORDER}
    mx.eval(out)
    return out


def steered_by(*pairs: tuple[Vector, float], **options) -> Taps:
    return taps((Steering(*pairs, **options).at(0, TOKENS.shape[1], None),))


def check_footprint(model, table: Taps, layer: int, site: str, row: np.ndarray) -> None:
    """Nothing before the place moves, and the place itself moves by exactly the edit."""
    plain, steered = residuals(model, None), residuals(model, table)
    place = (layer, ORDER.index(site))
    for key, before in plain.items():
        after = steered[key]
        assert after.dtype == before.dtype
        here = (key[0], ORDER.index(key[1]))
        # attn_out feeds resid_mid of the same block, and so on: earlier places are bit-identical
        if here < place:
            assert mx.array_equal(after, before), f"{key} moved"
        elif here == place:
            assert mx.array_equal(after, before + mx.array(row).astype(before.dtype)), (
                "not the edit"
            )
        else:
            assert not mx.array_equal(after, before), f"{key} did not move"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("site", SITES)
def test_footprint(dtype: str, site: str) -> None:
    v = vector((2,), site=site, scale=3.0)
    check_footprint(tiny(dtype), steered_by((v, 0.5)), 2, site, 0.5 * v.rows()[2])


@pytest.mark.parametrize("site", SITES)
def test_footprint_twins_fail(site: str) -> None:
    model, v = tiny(), vector((2,), site=site, scale=3.0)
    row = v.rows()[2]
    wrong_layer = vector((1,), site=site, scale=3.0)
    with pytest.raises(AssertionError, match="moved"):
        check_footprint(model, steered_by((wrong_layer, 1)), 2, site, row)
    with pytest.raises(AssertionError, match="not the edit"):
        check_footprint(model, steered_by((v, -1)), 2, site, row)
    with pytest.raises(AssertionError, match="not the edit"):
        check_footprint(model, Taps({(2, SITES[site][0]): Tap()}), 2, site, row)
    other = next(s for s in ORDER if s != site)
    with pytest.raises(AssertionError):
        check_footprint(model, steered_by((vector((2,), site=other, scale=3.0), 1)), 2, site, row)


def expected_sum(vectors: list[Vector], site: str) -> np.ndarray:
    """Add up the rows of the vectors at one site, each at its strength."""
    total = np.zeros(WIDTH, np.float32)
    for i, v in enumerate(vectors):
        if v.site == site:
            total = total + (0.25 * (i + 1)) * v.rows()[1]
    return total


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_fused_join_equals_the_formula(dtype: str) -> None:
    """Compiled `join` against NumPy: all four sites of a block at once, two vectors each."""
    v = [vector((1,), seed=s, site=site, scale=2.0) for s in (1, 2) for site in ORDER]
    table = steered_by(*((x, 0.25 * (i + 1)) for i, x in enumerate(v)))
    mx_dtype = mx.float32 if dtype == "float32" else mx.bfloat16
    h, r = (mx.random.normal((3, 4, WIDTH), key=mx.random.key(k)).astype(mx_dtype) for k in (1, 2))
    for join in JOINS:
        tap = table.at(1, join)
        assert isinstance(tap, EditTap)
        write, stream = (
            mx.array(expected_sum(v, site_place(join, is_stream))).astype(mx_dtype)
            for is_stream in (False, True)
        )
        expected = (h + (r + write)) + stream
        assert tap.join(h, r).dtype == mx_dtype
        assert mx.array_equal(tap.join(h, r), expected)
        assert mx.array_equal(Tap.join(tap, h, r), expected)
        assert not mx.array_equal(expected, h + r)


@pytest.mark.parametrize("dtype", DTYPES)
def test_off_is_bit_identical_and_the_same_graph(dtype: str) -> None:
    model, v = tiny(dtype), vector()
    plain = model(TOKENS).astype(mx.float32)[0]
    later = Steering((v, 1.0), phase="50:60")
    for off in (
        Steering(),
        Steering((v, 0.0)),
        Steering((0 * v, 3.0)),
        Steering((v - v, 1)),
        later,
    ):
        assert taps((off.at(0, 6, 6),)) is NO_TAPS
        assert mx.array_equal(forward(model, TOKENS[0], steering=off), plain)
    assert not mx.array_equal(forward(model, TOKENS[0], steering=Steering((v, 0.1))), plain)


def test_opposite_strengths_move_opposite_ways() -> None:
    """First order: what +e adds to a logit, -e takes away; the sign is that of the strength."""
    model, v = tiny(), vector((LAYERS - 1,), scale=1.0)
    plain, up, down = (
        np.array(forward(model, TOKENS[0], steering=Steering((v, s)))) for s in (0.0, 0.01, -0.01)
    )
    a, b = (up - plain).ravel(), (plain - down).ravel()
    assert np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) > 0.999
    assert np.linalg.norm(a) > 0


def decode_nodes(model, steering: Steering | None, batch: int = 1, **cache) -> tuple[int, mx.Dtype]:
    """Count the operations of one decode step after a prompt, and name the dtypes it leaves."""
    steered = Steered(model)
    caches = [*model.make_cache(), steered.make_cache(steering, **cache)[-1]]
    mx.eval(steered(mx.array([[1, 2, 3]] * batch), cache=caches))
    logits = steered(mx.array([[4]] * batch), cache=caches)
    count = nodes(logits)
    assert all(c.keys.dtype == c.values.dtype == logits.dtype for c in caches[:-1])
    return count, logits.dtype


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_step_has_as_many_nodes_as_unsteered(dtype: str) -> None:
    model = tiny(dtype)
    cache = make_prompt_cache(model)
    mx.eval(model(mx.array([[1, 2, 3]]), cache=cache))
    plain = nodes(model(mx.array([[4]]), cache=cache))
    everywhere = tuple(range(LAYERS))
    one = [vector(everywhere)]
    ten = [vector(everywhere, seed=s) for s in range(10)]
    all_sites = [vector(everywhere, seed=s, site=site) for s, site in enumerate(ORDER)]
    expected = (plain, mx.float32 if dtype == "float32" else mx.bfloat16)
    assert decode_nodes(model, None) == expected
    for many in (one, ten, all_sites):
        assert decode_nodes(model, Steering(*((v, 0.1) for v in many))) == expected
    assert decode_nodes(model, Steering((one[0], 1)), prompt_length=3) == expected
    assert decode_nodes(model, Steering((one[0], 1), phase="response"), prompt_length=3) == expected
    assert decode_nodes(model, Steering((one[0], 1)), batch=3)[0] == decode_nodes(model, None, 3)[0]


def test_naive_wrapping_would_be_counted() -> None:
    """The twin: a tap that adds a float32 vector without fusing shows as nodes and as a dtype."""

    class Naive(Tap):
        def stream(self, h: mx.array) -> mx.array:
            return h + 1.0 * mx.array(direction())

    model = tiny("bfloat16")
    plain = nodes(model(TOKENS))
    naive = model(TOKENS, taps=Taps({(n, "mlp"): Naive() for n in range(LAYERS)}))
    assert nodes(naive) > plain
    assert naive.dtype == mx.float32


def test_many_vectors_are_one_array() -> None:
    many = [(vector(seed=s), 0.3) for s in range(10)]
    table = steered_by(*many)
    tap = table.at(1, "mlp")
    assert isinstance(tap, EditTap)
    assert [len(e.arrays) for e in tap.streams] == [1]
    total = sum(0.3 * v.rows()[1] for v, _ in many)
    assert np.allclose(np.array(tap.streams[0].arrays[0]), total, atol=1e-6)


def test_the_same_steering_reuses_its_arrays() -> None:
    row = Steering((vector(), 1.0)).at(0, 1, None)
    assert taps((row,)) is taps((row,))
    tap = taps((row, row)).at(1, "mlp")
    assert isinstance(tap, EditTap)
    assert tap.streams[0].arrays[0].ndim == 1  # equal rows are one row


def test_a_decode_loop_meets_the_same_again_until_something_changes(monkeypatch) -> None:
    """Taps are looked up, which hashes every vector, when something changes and not before."""
    looked_up = []

    def looking_up(rows, *answer) -> Taps:
        looked_up.append(rows)
        return taps(rows, *answer)

    monkeypatch.setattr("mlxsteer.state.taps", looking_up)
    state = SteeringState([Row(Live(Steering((vector(), 1.0), phase="response")), 2)])
    token = mx.array([[7]])

    def step() -> Taps:
        found = state.taps(token)
        state.advance(1)
        return found

    assert len(step()) == 0  # the prompt
    response = step()
    assert len(response) > 0
    looked_up.clear()
    assert all(step() is response for _ in range(3))
    assert not looked_up
    assert copy.deepcopy(state).taps(token) is response
    state.steering = Steering((vector(), 2.0), phase="response")
    doubled = step()
    assert doubled is not response
    assert len(looked_up) == 2  # by the copy, and after the change
    old, new = (t.at(1, "mlp").streams[0].arrays[0] for t in (response, doubled))  # type: ignore[attr-defined]
    assert mx.allclose(new, 2 * old)
    state.steering = Steering((vector(), 2.0), phase="response", schedule="decay(4)")
    assert step() is not step()


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_of_a_batch_have_their_own(dtype: str) -> None:
    """Three rows, three steerings (one of them none): each as if alone."""
    model = tiny(dtype)
    rows = [
        Steering((vector(seed=1, scale=2.0), 1.0)),
        Steering(),
        Steering((vector((0, 3), seed=2, site="attn_out", scale=2.0), -1.5), (vector(), 0.5)),
    ]
    batch = mx.repeat(TOKENS, 3, axis=0)
    together = forward(model, batch, steering=rows)
    # a batch of three rounds differently from a single row, so rows are compared within batches
    for i, steering in enumerate(rows):
        assert mx.array_equal(together[i], forward(model, batch, steering=steering)[i])
    assert not mx.array_equal(together[0], together[1])
    assert not mx.array_equal(together[1], together[2])


@pytest.mark.parametrize("phase", ["all", "prompt", "response", "2:4", "4:", ":3"])
def test_phases_place_the_edit(phase: str) -> None:
    model, v = tiny(), vector((1,), scale=2.0)
    first, last = Phase.parse(phase).span(4)
    row = Steering((v, 1.0), phase=phase).at(0, 6, 4)
    plain, steered = residuals(model, None), residuals(model, taps((row,)))
    moved = mx.any(plain[1, "resid_post"] != steered[1, "resid_post"], axis=-1)[0].tolist()
    assert moved == [first <= p < last for p in range(6)]


@pytest.mark.parametrize("phase", ["all", "prompt", "response", "2:4"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_phases_mean_the_same_in_chunks_and_at_once(phase: str, dtype: str) -> None:
    model, steering = tiny(dtype), Steering((vector(scale=8.0), 1.0), phase=phase)
    steered = Steered(model)
    whole = steered(TOKENS, cache=steered.make_cache(steering, prompt_length=4))
    cache = steered.make_cache(steering, prompt_length=4)
    parts = [steered(TOKENS[:, a:b], cache=cache) for a, b in ((0, 3), (3, 4), (4, 5), (5, 6))]
    chunked = mx.concatenate(parts, axis=1)
    wrong, effect = (
        np.linalg.norm(np.array((whole - x).astype(mx.float32))) for x in (chunked, model(TOKENS))
    )
    assert wrong <= (1e-4 if dtype == "float32" else 0.1) * effect


def test_rows_in_different_phases_of_one_pass() -> None:
    """Two rows, one whose response begins inside the pass, one with two vectors in two phases."""
    model = tiny()
    a, b = vector((1,), seed=1, scale=2.0), vector((1,), seed=2, scale=2.0)
    rows = [
        Steering((a, 1.0), phase="response").at(0, 6, 3),
        (*Steering((a, 1.0), phase="2:4").at(0, 6, None), *Steering((b, -1.0)).at(0, 6, None)),
    ]
    batch = mx.repeat(TOKENS, 2, axis=0)
    wanted, kept = capturing([1], ["resid_post"], inner=taps(tuple(rows)))
    model(batch, taps=wanted)
    plain_taps, plain = capturing([1], ["resid_post"])
    model(batch, taps=plain_taps)
    got = np.array(kept[1]["resid_post"] - plain[1]["resid_post"])
    expected = np.zeros_like(got)
    expected[0, 2:] = a.rows()[1]
    expected[1] = -b.rows()[1]
    expected[1, 2:4] += a.rows()[1]
    assert np.allclose(got, expected, atol=1e-5)


@pytest.mark.parametrize("strength", [float("nan"), float("inf"), -float("inf"), "1", None, True])
def test_a_strength_must_be_a_finite_number(strength) -> None:
    with pytest.raises(UsageError, match="strength of 'v0'"):
        Steering((vector(), strength))


@pytest.mark.parametrize("phase", ["", "always", "4:2", "-1:3", "a:b", "3", "2:2"])
def test_unknown_phases_are_refused(phase: str) -> None:
    with pytest.raises(UsageError, match="phase"):
        Phase.parse(phase)


def test_a_response_phase_wants_the_prompt_length() -> None:
    with pytest.raises(UsageError, match="prompt_length"):
        forward(tiny(), [1, 2], steering=Steering((vector(), 1.0), phase="response"))


def test_steering_is_a_frozen_value() -> None:
    v, w = vector(), vector(seed=1)
    s = Steering((v, 1.0), (w, -0.5))
    assert s == Steering((v, 1.0), (w, -0.5))
    assert hash(s) == hash(Steering((v, 1)) + Steering((w, -0.5)))
    assert 2 * s == Steering((v, 2.0), (w, -1.0))
    assert s != Steering((v, 1.0))
    with pytest.raises(AttributeError):
        s.terms = ()  # type: ignore[misc]
    assert repr(s) == "Steering(v0=1 (all), v1=-0.5 (all))"


def test_a_foreign_vector_is_refused() -> None:
    model = tiny(hidden_size=32, head_dim=8)
    with pytest.raises(MlxsteerError, match="width"):
        forward(model, [1, 2], steering=Steering((vector(), 1.0)))


@pytest.mark.parametrize(
    "pairs", [(vector(),), ([(vector(), 1.0)],), (("joyful", 1.0),), ((1.0, vector()),)]
)
def test_what_is_no_pair_is_refused(pairs) -> None:
    with pytest.raises(UsageError, match=r"is no pair: use Steering\(\(vector, 1.0\), ...\)"):
        Steering(*pairs)
    with pytest.raises(UsageError, match=r"is no steering: use Steering\(\(vector, 1.0\)\)"):
        Steered(tiny()).make_cache(pairs[0])


def test_vectors_of_different_models_are_refused() -> None:
    other = vector(name="other").replace(model=ref(repo="tiny/other"))
    packed = vector().replace(model=ref(quantization="4bit"))
    unknown = vector().replace(model=None)
    said = "'v0' is from tiny/random, 'other' from tiny/other: extract both on one model"
    with pytest.raises(MlxsteerError, match=said):
        Steering((vector(), 1.0), (unknown, 1.0), (other, 1.0))
    with pytest.raises(MlxsteerError, match=said):
        _ = Steering((vector(), 1.0)) + Steering((other, 1.0))
    assert len(Steering((vector(), 1.0), (unknown, 1.0), (packed, 1.0)).terms) == 3
