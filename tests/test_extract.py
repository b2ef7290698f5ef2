"""Extraction finds what separates the two sides, at its layers, with its sign."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny import LAYERS, WIDTH, tiny, tokenizer

from mlxsteer.calibrate import Neutral
from mlxsteer.capture import capture
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.extract import default_layers, extract
from mlxsteer.library import concept
from mlxsteer.prompts import Pair, pairs_sha256, render

TOPICS = ["how was your day", "why is the sky blue", "tell me about the sea", "what should i cook"]
PAIRS = [
    Pair(
        [{"role": "system", "content": "be a pirate"}, {"role": "user", "content": topic}],
        [{"role": "system", "content": "be helpful"}, {"role": "user", "content": topic}],
    )
    for topic in TOPICS
]


def by_hand(site: str = "resid_post", position: int = -1) -> np.ndarray:
    model, words = tiny(), tokenizer()
    sides = []
    for which in ("positive", "negative"):
        tokens = [render(words, getattr(p, which)) for p in PAIRS]
        sides.append(capture(model, tokens, sites=[site], positions=position)[site].mean(axis=0))
    rows: np.ndarray = sides[0] - sides[1]
    return rows


@pytest.mark.parametrize("site", ["attn_out", "resid_mid", "mlp_out", "resid_post"])
@pytest.mark.parametrize("position", [-1, -3])
def test_the_rows_are_the_mean_difference(site: str, position: int) -> None:
    layers = (0, 2)
    v = extract(
        tiny(), tokenizer(), PAIRS, site=site, layers=layers, position=position, calibrate=False
    )
    assert (v.site, v.layers, v.op, v.calibrated) == (site, layers, "add", False)
    expected = by_hand(site, position)
    for layer in layers:
        np.testing.assert_allclose(v.rows()[layer], expected[layer], atol=2e-5)
        assert not np.allclose(v.rows()[layer], -expected[layer], atol=1e-3)
        assert not np.allclose(v.rows()[layer], expected[layer + 1], atol=1e-3)


def test_turned_pairs_give_the_opposite() -> None:
    a = extract(tiny(), tokenizer(), PAIRS, calibrate=False)
    turned = [Pair(p.negative, p.positive) for p in PAIRS]
    b = extract(tiny(), tokenizer(), turned, calibrate=False)
    for layer in a.layers:
        np.testing.assert_allclose(a.rows()[layer], -b.rows()[layer], atol=1e-5)


def test_provenance_is_recorded() -> None:
    v = extract(tiny(), tokenizer(), PAIRS, name="pirate", calibrate=False)
    assert (v.name, v.method, v.n_pairs) == ("pirate", "mean_diff", len(PAIRS))
    assert v.pairs_sha256 == pairs_sha256(PAIRS)
    assert v.model is not None
    assert (v.model.n_layers, v.model.hidden_size, v.model.model_type) == (LAYERS, WIDTH, "llama")
    assert v.template["sha256"]
    side = v.evidence["prompt_side"]
    assert side["layer"] in v.layers
    assert 0 <= side["auroc"] <= 1


def test_sources(tmp_path: Path) -> None:
    """A list of pairs, of mappings, a file and a concept folder say the same."""
    model, words = tiny(), tokenizer()
    mappings = [{"positive": p.positive, "negative": p.negative} for p in PAIRS]
    (tmp_path / "mine.jsonl").write_text("\n".join(map(json.dumps, mappings)))
    expected = extract(model, words, PAIRS, name="mine", calibrate=False)
    assert extract(model, words, mappings, name="mine", calibrate=False) == expected
    assert extract(model, words, tmp_path / "mine.jsonl", calibrate=False) == expected
    shipped = extract(model, words, "joyful", calibrate=False)
    found = concept("joyful")
    assert (shipped.name, shipped.positive) == ("joyful", found.positive)
    assert shipped.n_pairs == len(found.pairs()) >= 48
    assert shipped.license == found.license


def test_it_ends_calibrated() -> None:
    model = tiny()
    model.model.norm.weight = 6 * model.model.norm.weight
    text = Neutral.write(model, tokenizer(), prompts=TOPICS, min_tokens=50)
    v = extract(model, tokenizer(), PAIRS, neutral=text)
    assert v.calibration is not None
    assert v.calibration["kl"] == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize(
    ("n", "band"), [(30, range(10, 20)), (32, range(10, 21)), (4, [1]), (1, [0])]
)
def test_the_middle_third(n: int, band: range) -> None:
    assert default_layers(n) == tuple(band)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layers": [7]}, "layer 7 does not exist"),
        ({"layers": []}, "no layer"),
        ({"site": "here"}, "site 'here'"),
        ({"method": "magic"}, "method 'magic'"),
        ({"position": 99}, "position 99"),
    ],
)
def test_what_does_not_exist_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        extract(tiny(), tokenizer(), PAIRS, calibrate=False, **options)


def test_data_that_cannot_work_is_refused() -> None:
    with pytest.raises(MlxsteerError, match="no pairs"):
        extract(tiny(), tokenizer(), [])
    same = [Pair("tell me about the sea", "tell me about the unknownword sea") for _ in range(2)]
    long = [Pair("be " * 300, "be short")]
    with pytest.raises(MlxsteerError, match="pair 1, positive"):
        extract(tiny(), tokenizer(), long)
    alike = [Pair("zzz", "yyy")]  # both unknown words: the model reads the same tokens
    with pytest.raises(MlxsteerError, match="the same to the model"):
        extract(tiny(), tokenizer(), alike, calibrate=False)
    assert extract(tiny(), tokenizer(), same, calibrate=False).n_pairs == 2
