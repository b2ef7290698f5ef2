"""Strength 1 is half a nat, measured again by hand on the same text."""

import functools
from typing import Any

import mlx.nn as nn
import numpy as np
import pytest
from tiny import LAYERS, direction, ref, tokenizer, vector
from tiny import tiny as blunt

from mlxsteer.calibrate import BUDGET, calibrate
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.generate import forward
from mlxsteer.meter import Meter
from mlxsteer.metrics import log_softmax, token_kl
from mlxsteer.neutral import Neutral
from mlxsteer.steering import Steering
from mlxsteer.vector import Vector

PROMPTS = [
    "how was your day",
    "why is the sky blue",
    "tell me about the sea",
    "be short",
    "what now",
]


def tiny(**changes):
    """Return the tiny model with a head sharp enough that a nat can be moved."""
    model = blunt(**changes)
    model.model.norm.weight = 6 * model.model.norm.weight
    return model


def neutral(model, tokens: int = 60) -> Neutral:
    return Neutral.write(model, tokenizer(), prompts=PROMPTS, min_tokens=tokens)


@functools.cache
def usual() -> tuple[nn.Module, Neutral]:
    """The model and its text that most tests share; nothing may be changed in it."""
    model = tiny()
    return model, neutral(model)


def by_hand(model, text: Neutral, steering: Steering) -> float:
    """Mean KL(unsteered || steered) per response token, one sequence at a time."""
    found = []
    for sequence, n in zip(text.sequences, text.prompt_lengths, strict=True):
        plain, steered = (
            np.array(forward(model, list(sequence[:-1]), steering=s, prompt_length=n))
            for s in (None, steering)
        )
        found.append(token_kl(log_softmax(plain), log_softmax(steered))[n - 1 :])
    return float(np.concatenate(found).mean())


@pytest.mark.parametrize(
    ("layers", "phase"),
    [((0,), "all"), ((1, 2), "all"), ((3,), "response"), ((1, 2), "response"), ((2,), "3:8")],
)
def test_the_meter_is_the_definition(layers: tuple[int, ...], phase: str) -> None:
    """Shared prefixes, batches and skipped blocks change nothing."""
    model, text = usual()
    v = vector(layers, scale=9.0, phase=phase)
    meter = Meter(model, text, v.layers[0])
    for strength in (0.7, -1.3):
        steering = Steering((v, strength))
        expected = by_hand(model, text, steering)
        assert expected > 0.01
        assert meter(steering) == pytest.approx(expected, rel=1e-3)
    assert meter(Steering((v, 0.7))) != pytest.approx(meter(Steering((v, -0.7))), rel=1e-3)
    assert meter(Steering()) == pytest.approx(0, abs=1e-6)


def test_sliding_windows_are_metered_too() -> None:
    kinds = {"layer_types": ["sliding_attention", "full_attention"] * 2, "sliding_window": 6}
    model = tiny(**kinds)
    text, v = neutral(model), vector((1,), scale=3.0)
    steering = Steering((v, 1.0))
    assert Meter(model, text, v.layers[0])(steering) == pytest.approx(
        by_hand(model, text, steering), rel=1e-3
    )


@pytest.mark.parametrize(
    ("layers", "natural", "width"),
    [
        ((0, 1), 0.01, 96),
        ((2, 3), 1.0, 64),
        ((2, 3), 300.0, 96),
        ((1,), 0.01, 64),
    ],
)
def test_strength_1_is_one_nat(layers: tuple[int, ...], natural: float, width: int) -> None:
    """Whatever the band, the width and the natural scale; and a strength is not a direction."""
    model = tiny(hidden_size=width, head_dim=16)
    text = neutral(model)
    rows = {n: natural * direction(n, width) for n in layers}
    raw = Vector.from_rows("v", rows, model=ref(hidden_size=width))
    v = calibrate(model, tokenizer(), raw, neutral=text)
    assert v.calibration is not None
    assert by_hand(model, text, Steering((v, 1.0))) == pytest.approx(BUDGET, rel=0.025)
    assert by_hand(model, text, Steering((v, 0.5))) < 0.6
    for n in layers:
        cosine = float(
            v.rows()[n] @ rows[n] / np.linalg.norm(v.rows()[n]) / np.linalg.norm(rows[n])
        )
        assert cosine == pytest.approx(1, abs=1e-5)
    assert v.scales / v.scales[0] == pytest.approx(raw.scales / raw.scales[0], rel=1e-4)


def test_the_record_says_how() -> None:
    model, text = usual()
    v = calibrate(model, tokenizer(), vector(scale=0.5), neutral=text)
    c = v.calibration
    assert c is not None
    assert (c["budget"], c["tokens"], c["prompts"]) == (0.5, text.tokens, len(text.sequences))
    assert c["kl"] == pytest.approx(0.5, abs=0.01)
    assert c["text_sha256"] == text.sha256
    assert list(c["natural_scale"]) == pytest.approx([0.5, 0.5])
    assert v.scales == pytest.approx(0.5 * c["factor"], rel=1e-4)
    again = calibrate(model, tokenizer(), v, neutral=text)
    assert again.scales == pytest.approx(v.scales, rel=0.03)


READING: list[tuple[str, dict[str, Any]]] = [
    ("project", {}),
    ("clamp", {"targets": [3.0, -3.0]}),
    ("cap", {"targets": [0.2, 0.1]}),
    ("clamp", {"targets": [3.0, 2.0], "encoder_biases": [0.1, 0.2]}),
]


@pytest.mark.parametrize(("op", "fields"), READING)
def test_what_reads_the_stream_is_measured_and_not_searched(
    op: str, fields: dict[str, Any]
) -> None:
    model, text = usual()
    if "encoder_biases" in fields:
        fields = {**fields, "encoders": [direction(7), direction(8)]}
    raw = vector(scale=0.25, op=op, **fields)
    seen: list[tuple[str, int, int]] = []
    v = calibrate(model, tokenizer(), raw, neutral=text, progress=lambda *s: seen.append(s))
    assert seen == [("calibrating v0", 0, 1), ("calibrating v0", 1, 1)]
    c = v.calibration
    assert c is not None
    assert list(v.scales) == list(c["natural_scale"]) == [1, 1]
    assert (c["factor"], c["tokens"], c["prompts"]) == (1, text.tokens, len(text.sequences))
    assert c["unit"].startswith(f"strength 1 {'removes' if op == 'project' else 'holds'} the")
    assert c["unit"].endswith("per response token on neutral prompts, nats")
    assert "budget" not in c
    cost = by_hand(model, text, Steering((v, 1.0)))
    assert c["kl"] == pytest.approx(cost, rel=1e-3, abs=1e-4)
    assert cost > 0.005
    # the twins: another strength, and the scale that it came with, cost something else
    assert by_hand(model, text, Steering((v, 0.5))) != pytest.approx(cost, rel=0.05)
    assert by_hand(model, text, Steering((raw, 1.0))) != pytest.approx(cost, rel=0.05)
    for key in ("op", "layers", "targets", "encoders", "encoder_biases", "directions"):
        np.testing.assert_array_equal(getattr(v, key), getattr(raw, key))


def test_what_reads_the_stream_has_no_budget_and_a_finite_cost() -> None:
    model, text = usual()
    with pytest.raises(UsageError, match="op project has no budget: strength 1 removes the dir"):
        calibrate(model, tokenizer(), vector(op="project"), neutral=text, budget=0.25)
    beyond = vector(op="clamp", targets=[1e6, 1e6])  # no float16 number
    with pytest.raises(MlxsteerError, match="'v0' at strength 1 moves the model beyond all num"):
        calibrate(tiny(dtype="float16"), tokenizer(), beyond, neutral=text)
    assert calibrate(model, tokenizer(), beyond, neutral=text).calibrated


def test_a_smaller_budget_is_a_smaller_scale() -> None:
    model, text = usual()
    small, large = (
        calibrate(model, tokenizer(), vector(), neutral=text, budget=b) for b in (0.1, 1.0)
    )
    assert small.scales[0] < large.scales[0] / 2
    assert by_hand(model, text, Steering((small, 1.0))) == pytest.approx(0.1, rel=0.025)


def test_a_vector_that_nothing_reads_is_refused() -> None:
    model = tiny()
    model.model.norm.weight = model.model.norm.weight * 0  # logits are constant now
    with pytest.raises(MlxsteerError, match=r"no strength of 'v0' moves the model by 0\.5 nats"):
        calibrate(model, tokenizer(), vector((LAYERS - 1,)), neutral=usual()[1])
    with pytest.raises(MlxsteerError, match="is zero"):
        calibrate(tiny(), tokenizer(), 0 * vector())


def test_neutral_text_is_the_models_own_and_long_enough() -> None:
    model = tiny()
    text = neutral(model, 50)
    assert text.tokens >= 50
    for sequence, n in zip(text.sequences, text.prompt_lengths, strict=True):
        logits = np.array(forward(model, list(sequence[:-1])))
        assert list(logits.argmax(-1)[n - 1 :]) == list(sequence[n:])
    with pytest.raises(MlxsteerError, match="5 neutral prompts gave"):
        neutral(model, 5000)


def test_progress_ends_where_it_says() -> None:
    model, text = usual()
    seen: list[tuple[str, int, int]] = []
    calibrate(model, tokenizer(), vector(), neutral=text, progress=lambda *s: seen.append(s))
    assert {s for s, _, _ in seen} == {"calibrating v0"}
    assert seen[-1][1] == seen[-1][2]
    assert all(done <= total for _, done, total in seen)
