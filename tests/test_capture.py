"""Capture reads the residual stream itself: every site, any batch, any prefix, one pass."""

import itertools
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import LAYERS, WIDTH, nodes, tiny, vector

from mlxsteer.capture import CaptureTap, batches, capture, capturing
from mlxsteer.errors import UsageError
from mlxsteer.prefix import read_prefix, shared_prefix
from mlxsteer.steering import Steering
from mlxsteer.taps import PLAIN, SITES

SITES_IN_ORDER = ("attn_out", "resid_mid", "mlp_out", "resid_post")
PROMPTS = [[7, 7, 1, 2, 3, 4, 5], [7, 7, 9], [7, 7, 1, 2, 8, 8, 8, 8, 8, 8], [7, 7, 50, 60]]


def by_hand(model, tokens: list[int]) -> dict[str, np.ndarray]:
    """Compute every site of every block from the model's own parts, `[n, T, D]`."""
    out: dict[str, list[mx.array]] = {site: [] for site in SITES}
    h = model.model.embed_tokens(mx.array([tokens]))
    for block in model.layers:
        a = block.self_attn(block.input_layernorm(h), "causal" if len(tokens) > 1 else None, None)
        mid = h + a
        m = block.mlp(block.post_attention_layernorm(mid))
        h = mid + m
        for site, x in zip(SITES_IN_ORDER, (a, mid, m, h), strict=True):
            out[site].append(x[0])
    return {site: np.array(mx.stack(xs)) for site, xs in out.items()}


@pytest.mark.parametrize("batch_tokens", [1, 12, 1024])
@pytest.mark.parametrize("position", [-1, 1, 2])
def test_capture_is_the_residual_stream(batch_tokens: int, position: int) -> None:
    model = tiny()
    got = capture(
        model, PROMPTS, sites=SITES_IN_ORDER, positions=position, batch_tokens=batch_tokens
    )
    for i, prompt in enumerate(PROMPTS):
        expected = by_hand(model, prompt)
        for site in SITES_IN_ORDER:
            assert got[site].shape == (len(PROMPTS), LAYERS, WIDTH)
            assert got[site].dtype == np.float32
            np.testing.assert_allclose(got[site][i], expected[site][:, position], atol=2e-5)


def test_capture_twins_fail() -> None:
    """The neighbouring layer, position, prompt or site would be seen."""
    model = tiny()
    got = capture(model, PROMPTS, sites=SITES_IN_ORDER)
    right = by_hand(model, PROMPTS[0])
    assert not np.allclose(
        got["resid_post"][0], np.roll(right["resid_post"][:, -1], 1, 0), atol=0.1
    )
    assert not np.allclose(got["resid_post"][0], right["resid_post"][:, -2], atol=0.1)
    assert not np.allclose(got["resid_post"][1], right["resid_post"][:, -1], atol=0.1)
    for a, b in itertools.pairwise(SITES_IN_ORDER):
        assert not np.allclose(got[a], got[b], atol=0.1)


def test_some_layers_and_a_position_each() -> None:
    model = tiny()
    positions = [0, 2, -3, 3]
    got = capture(model, PROMPTS, layers=[3, 1], positions=positions)["resid_post"]
    for i, (prompt, position) in enumerate(zip(PROMPTS, positions, strict=True)):
        expected = by_hand(model, prompt)["resid_post"][[3, 1], position]
        np.testing.assert_allclose(got[i], expected, atol=2e-5)


SPANS: list[Any] = [(1, 5), (2, 3), (0, 10), -1]


@pytest.mark.parametrize("batch_tokens", [1, 12, 1024])
@pytest.mark.parametrize("spans", [SPANS, [(3, 7), -1, (2, 10), (3, 4)]])
def test_a_span_is_the_mean_of_its_tokens(batch_tokens: int, spans: list[Any]) -> None:
    """Beside single tokens in one batch, whatever is shared before it."""
    model = tiny()
    got = capture(model, PROMPTS, sites=SITES_IN_ORDER, positions=spans, batch_tokens=batch_tokens)
    for i, (prompt, span) in enumerate(zip(PROMPTS, spans, strict=True)):
        where = slice(*span) if isinstance(span, tuple) else slice(span, None)
        for site, right in by_hand(model, prompt).items():
            assert got[site].dtype == np.float32
            np.testing.assert_allclose(got[site][i], right[:, where].mean(axis=1), atol=2e-5)


def test_span_twins_fail() -> None:
    """A token more or less at either end would be seen."""
    model, prompt = tiny(), PROMPTS[2]
    right = by_hand(model, prompt)["resid_post"]
    got = capture(model, [prompt, prompt[:4]], positions=[(3, 6), (2, 4)])["resid_post"][0]
    np.testing.assert_allclose(got, right[:, 3:6].mean(axis=1), atol=2e-5)
    for start, stop in ((2, 6), (4, 6), (3, 5), (3, 7)):
        assert not np.allclose(got, right[:, start:stop].mean(axis=1), atol=0.05)


@pytest.mark.parametrize(
    ("positions", "prefix"), [([(1, 4), -1], 1), ([(0, 2), (3, 4)], 0), ([-1, (2, 4)], 2)]
)
def test_the_prefix_ends_before_the_first_wanted_token(
    positions: list[Any], prefix: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlxsteer.capture as module

    seen: list[int] = []

    def read(*arguments: Any) -> tuple[int, Any]:
        seen.append(read_prefix(*arguments)[0])
        return read_prefix(*arguments)

    monkeypatch.setattr(module, "read_prefix", read)
    capture(tiny(), [[7, 7, 7, 1, 2], [7, 7, 7, 3]], positions=positions)
    assert seen == [prefix]


@pytest.mark.parametrize("positions", [-1, [(1, 4), (0, 3)]])
def test_half_precision_is_averaged_in_float32(positions: Any) -> None:
    prompts = [[7, 1, 2, 3], [7, 9, 8]]
    model = tiny("bfloat16")
    got = capture(model, prompts, positions=positions)["resid_post"]
    assert got.dtype == np.float32
    table, kept = capturing(range(LAYERS), ["resid_post"])
    model(mx.array(prompts[:1]), taps=table)
    each = np.stack([np.array(kept[n]["resid_post"][0].astype(mx.float32)) for n in range(LAYERS)])
    right = each[:, -1] if positions == -1 else each[:, 1:4].mean(axis=1)
    np.testing.assert_allclose(got[0], right, rtol=0.02, atol=0.02)


def test_padding_does_not_leak_into_a_mean() -> None:
    """Not even where it is no number."""
    kept: dict[str, mx.array] = {}
    mask = mx.array([[True, True, False], [False, True, True]])
    tap = CaptureTap(PLAIN, kept, "mlp", ["resid_post"], mask)
    x = mx.array([[[1.0], [2.0], [float("nan")]], [[float("inf")], [3.0], [5.0]]])
    tap.stream(x)
    assert kept["resid_post"].tolist() == [[1.5], [4.0]]


def test_capture_sees_steering() -> None:
    model, v = tiny(), vector((1,), scale=4.0)
    steering = Steering((v, -0.5), phase="1:")
    plain = capture(model, PROMPTS)["resid_post"]
    steered = capture(model, PROMPTS, steering=steering)["resid_post"]
    np.testing.assert_array_equal(plain[:, 0], steered[:, 0])
    moved = np.broadcast_to(-0.5 * v.rows()[1], plain[:, 1].shape)
    np.testing.assert_allclose(steered[:, 1] - plain[:, 1], moved, atol=1e-5)
    assert not np.allclose(plain[:, 2], steered[:, 2], atol=1e-2)


def test_sliding_windows_read_no_shared_prefix_and_the_same_residuals() -> None:
    kinds: dict[str, Any] = {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "sliding_window": 4,
    }
    model = tiny(**kinds)
    together = capture(model, PROMPTS)["resid_post"]
    for i, prompt in enumerate(PROMPTS):
        alone = capture(model, [prompt])["resid_post"][0]
        np.testing.assert_allclose(together[i], alone, atol=2e-5)


def test_nothing_but_the_wanted_is_computed() -> None:
    """MLX is lazy: blocks above the last wanted one, and the head, are never evaluated."""
    model = tiny()
    model.layers[3].mlp.down_proj.weight = mx.zeros((1, 1))  # would raise on any use
    model.model.norm.weight = mx.zeros((WIDTH,))
    with pytest.raises(ValueError, match="matmul"):
        capture(model, PROMPTS, layers=[0])
    model = tiny()
    table, kept = capturing([0], ["resid_post"])
    model(mx.array([[1, 2]]), taps=table)
    plain = nodes(model(mx.array([[1, 2]])))
    assert nodes(kept[0]["resid_post"]) < plain / 3


def test_progress_counts_every_prompt_once() -> None:
    seen: list[tuple[str, int, int]] = []
    capture(tiny(), PROMPTS, batch_tokens=4, progress=lambda *s: seen.append(s), stage="s")
    assert seen[0] == ("s", 0, 4)
    assert seen[-1] == ("s", 4, 4)
    assert [done for _, done, _ in seen] == sorted({done for _, done, _ in seen})


def test_shared_prefix() -> None:
    assert shared_prefix(PROMPTS) == 2
    assert shared_prefix([[1, 2, 3]]) == 0  # there is nobody to share with
    assert shared_prefix([[1, 2, 3], [1, 2, 3]]) == 2  # one token is always left to read
    assert shared_prefix([[1], [1, 2]]) == 0
    assert shared_prefix([[1, 2], [3, 2]]) == 0


def test_batches_cover_every_prompt_once_and_hold_their_size() -> None:
    lengths = [5, 1, 9, 3, 3, 7, 2, 30]
    got = list(batches(lengths, 10))
    assert sorted(i for b in got for i in b) == list(range(8))
    assert all(len(b) == 1 or max(lengths[i] for i in b) * len(b) <= 10 for b in got)


def test_batches_pad_no_more_than_another_pass_would_cost() -> None:
    lengths = [4, 60, 5, 61, 4, 60, 6, 59]
    assert list(batches(lengths, 1024)) == [[0, 4, 2, 6], [7, 1, 5, 3]]
    # 27 tokens padded are less than a pass, 36 are more
    assert list(batches([4, 5, 6, 14], 1024)) == [[0, 1, 2, 3]]
    assert list(batches([4, 5, 6, 17], 1024)) == [[0, 1, 2], [3]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [4]}, "layer 4 does not exist: the model has 0 to 3"),
        ({"layers": [-1]}, "layer -1"),
        ({"sites": ["resid_pre"]}, "site 'resid_pre' does not exist; sites are attn_out"),
        ({"positions": 3}, "position 3 does not exist in a prompt of 3"),
        ({"positions": -4}, "position -4"),
        ({"positions": [(0, 2), (1, 4), 0, 0]}, "span 1:4 does not exist in a prompt of 3"),
        ({"positions": [(2, 2), 0, 0, 0]}, "span 2:2"),
        ({"positions": [(-2, 2), 0, 0, 0]}, "span -2:2"),
        ({"positions": [0, 0]}, "2 positions for 4 prompts"),
    ],
)
def test_what_does_not_exist_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        capture(tiny(), PROMPTS, **options)


@pytest.mark.parametrize("prompts", [[], [[1], []]])
def test_nothing_to_read(prompts: list[list[int]]) -> None:
    with pytest.raises(UsageError, match="prompt"):
        capture(tiny(), prompts)
