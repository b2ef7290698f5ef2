"""Extraction finds what separates the two sides, at its layers, with its sign."""

import functools
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from tiny import LAYERS, WIDTH, tiny, tokenizer

from mlxsteer.capture import capture, capturing
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.extract import default_layers, defaults, extract
from mlxsteer.generate import generate_batch
from mlxsteer.library import concept
from mlxsteer.methods import METHODS, find_rows
from mlxsteer.neutral import Neutral
from mlxsteer.plan import taps
from mlxsteer.prompts import Pair, pairs_sha256, render
from mlxsteer.steering import Steering

TOPICS = ["how was your day", "why is the sky blue", "tell me about the sea", "what should i cook"]
PAIRS = [
    Pair(
        [{"role": "system", "content": "be a pirate"}, {"role": "user", "content": topic}],
        [{"role": "system", "content": "be helpful"}, {"role": "user", "content": topic}],
    )
    for topic in TOPICS
]


@functools.cache
def usual() -> tuple[Any, Any]:
    """The model and tokenizer that most tests share; nothing may be changed in them."""
    return tiny(), tokenizer()


def by_hand(site: str = "resid_post", position: int = -1) -> np.ndarray:
    model, words = usual()
    sides = []
    for which in ("positive", "negative"):
        tokens = [render(words, getattr(p, which)) for p in PAIRS]
        sides.append(capture(model, tokens, sites=[site], positions=position)[site].mean(axis=0))
    rows: np.ndarray = sides[0] - sides[1]
    return rows


@pytest.mark.parametrize(
    ("site", "position"),
    [("attn_out", -1), ("resid_mid", -3), ("mlp_out", -1), ("resid_post", -1), ("resid_post", -3)],
)
def test_the_rows_are_the_mean_difference(site: str, position: int) -> None:
    layers = (0, 2)
    v = extract(*usual(), PAIRS, site=site, layers=layers, read=position, calibrate=False)
    assert (v.site, v.layers, v.op, v.calibrated) == (site, layers, "add", False)
    expected = by_hand(site, position)
    for layer in layers:
        np.testing.assert_allclose(v.rows()[layer], expected[layer], atol=2e-5)
        assert not np.allclose(v.rows()[layer], -expected[layer], atol=1e-3)
        assert not np.allclose(v.rows()[layer], expected[layer + 1], atol=1e-3)


def mean_of(model: Any, tokens: list[int], span: tuple[int, int]) -> np.ndarray:
    """Mean of `resid_post` over a span, `[n_layers, D]`, token by token."""
    table, kept = capturing(range(LAYERS), ["resid_post"])
    model(mx.array([tokens]), taps=table)
    rows = np.stack([np.array(kept[n]["resid_post"][0]) for n in range(LAYERS)])
    mean: np.ndarray = rows[:, slice(*span)].mean(axis=1)
    return mean


def test_responses_are_written_and_averaged() -> None:
    """Under each side's own instruction, greedily, by the model that is extracted from."""
    model, words = usual()
    v = extract(model, words, PAIRS, read="response", response_tokens=7, calibrate=False)
    assert v.token == "mean of a greedy response of up to 7 tokens"
    sides, prompts = [], []
    for which in ("positive", "negative"):
        found, asked = [], []
        for pair in PAIRS:
            prompt = render(words, getattr(pair, which))
            rows = generate_batch(model, words, [prompt], max_tokens=7)
            answer = [token for _, token in rows]
            whole = (len(prompt), len(prompt) + len(answer))
            found.append(mean_of(model, prompt + answer, whole))
            asked.append(mean_of(model, prompt + answer, (0, len(prompt))))
        sides.append(np.mean(found, axis=0))
        prompts.append(np.mean(asked, axis=0))
    for layer in v.layers:
        np.testing.assert_allclose(v.rows()[layer], (sides[0] - sides[1])[layer], atol=2e-5)
        assert not np.allclose(v.rows()[layer], (prompts[0] - prompts[1])[layer], atol=1e-2)
    longer = extract(model, words, PAIRS, read="response", response_tokens=8, calibrate=False)
    assert not np.allclose(v.directions, longer.directions, atol=1e-3)  # the twin: one more token


def test_given_responses_are_averaged_unless_something_else_is_read() -> None:
    model, words = usual()
    turns = [[{"role": "user", "content": topic}] for topic in TOPICS]
    answers = ({"role": "assistant", "content": text} for text in ("a pirate", "why not short"))
    more, less = answers
    pairs = [Pair([*turn, more], [*turn, less]) for turn in turns]
    v = extract(model, words, pairs, read="response", calibrate=False)
    assert v.token == "mean of the given response"
    assert extract(model, words, pairs, calibrate=False) == v
    last = extract(model, words, pairs, read="last", calibrate=False)
    assert last.token == "last prompt token"
    assert not np.allclose(v.directions, last.directions, atol=1e-2)
    sides = []
    for which, length in (("positive", 2), ("negative", 3)):
        tokens = [render(words, getattr(pair, which)) for pair in pairs]
        spans = [(len(t) - length, len(t)) for t in tokens]
        means = [mean_of(model, t, span) for t, span in zip(tokens, spans, strict=True)]
        sides.append(np.mean(means, axis=0))
    for layer in v.layers:
        np.testing.assert_allclose(v.rows()[layer], (sides[0] - sides[1])[layer], atol=2e-5)


def test_the_end_of_the_content_is_read() -> None:
    v = extract(*usual(), PAIRS, read="content", calibrate=False)
    assert v.token == "last content token"
    for layer in v.layers:  # <end> and <assistant> follow it
        np.testing.assert_allclose(v.rows()[layer], by_hand(position=-3)[layer], atol=2e-5)
        assert not np.allclose(v.rows()[layer], by_hand(position=-2)[layer], atol=1e-3)


def residuals(layers: tuple[int, ...]) -> list[np.ndarray]:
    model, words = usual()
    sides = ([render(words, getattr(p, w)) for p in PAIRS] for w in ("positive", "negative"))
    return [capture(model, tokens, layers=layers)["resid_post"] for tokens in sides]


@pytest.mark.parametrize(("method", "without"), [*((m, False) for m in METHODS), ("pca", True)])
def test_methods(method: str, without: bool) -> None:
    v = extract(
        *usual(),
        PAIRS,
        method=method,
        remove_negative_mean=without,
        layers=(1, 3),
        calibrate=False,
    )
    assert v.method == (f"{method}, negative mean removed" if without else method)
    sides = residuals((1, 3))
    expected = find_rows(method, *sides, without_negative_mean=without)
    other = find_rows(method, *sides, without_negative_mean=not without)
    for i, row in enumerate(v.rows().values()):
        np.testing.assert_allclose(row, expected[i], atol=1e-4)
        assert not np.allclose(row, other[i], atol=1e-3)
        assert row @ (sides[0] - sides[1]).mean(axis=0)[i] > 0


@pytest.mark.parametrize(("op", "side"), [("clamp", 0), ("cap", 1)])
def test_targets_are_where_a_side_lies(op: str, side: int) -> None:
    v = extract(*usual(), PAIRS, op=op, layers=(1, 2), calibrate=False)
    added = extract(*usual(), PAIRS, layers=(1, 2), calibrate=False)
    np.testing.assert_allclose(v.directions, added.directions, atol=1e-6)
    assert (v.op, list(v.scales), v.calibrated) == (op, [1, 1], False)
    assert v.targets is not None
    for i, d in enumerate(v.directions):
        means = [float((x[:, i] @ d).mean()) for x in residuals((1, 2))]
        assert v.targets[i] == pytest.approx(means[side], abs=1e-4)
        assert means[0] - means[1] == pytest.approx(added.scales[i], abs=1e-4)  # and not the other
        assert means[0] - means[1] > 0.1


@pytest.mark.parametrize("op", ["project", "clamp", "cap"])
def test_strength_1_does_what_the_op_says(op: str) -> None:
    """On the stream itself, at every position behind the first."""
    model = tiny()
    v = extract(model, tokenizer(), PAIRS, op=op, layers=(2,), calibrate=False)
    table, kept = capturing([2], ["resid_post"], inner=taps((Steering((v, 1.0)).at(0, 6, None),)))
    plain_table, plain = capturing([2], ["resid_post"])
    tokens = mx.array([[8, 9, 10, 11, 12, 13]])
    model(tokens, taps=table)
    model(tokens, taps=plain_table)
    after, before = (np.array(k[2]["resid_post"][0]) @ v.directions[0] for k in (kept, plain))
    target = 0.0 if v.targets is None else float(v.targets[0])
    assert (v.targets is None) == (op == "project")
    wanted = np.minimum(before, target) if op == "cap" else np.full_like(before, target)
    np.testing.assert_allclose(after[1:], wanted[1:], atol=1e-4)
    assert not np.allclose(before[1:], wanted[1:], atol=0.1)  # the twin: it was not so before
    assert after[0] == pytest.approx(before[0], abs=1e-5)


def test_an_op_that_reads_ends_calibrated_too() -> None:
    model = tiny()
    text = Neutral.write(model, tokenizer(), prompts=TOPICS, min_tokens=50)
    v = extract(model, tokenizer(), PAIRS, op="clamp", neutral=text)
    assert v.calibration is not None
    assert (v.calibration["factor"], list(v.scales)) == (1, [1] * len(v.layers))
    assert v.targets is not None
    assert "prompt_side" in v.evidence


def test_turned_pairs_give_the_opposite() -> None:
    a = extract(*usual(), PAIRS, calibrate=False)
    turned = [Pair(p.negative, p.positive) for p in PAIRS]
    b = extract(*usual(), turned, calibrate=False)
    for layer in a.layers:
        np.testing.assert_allclose(a.rows()[layer], -b.rows()[layer], atol=1e-5)


def test_provenance_is_recorded() -> None:
    v = extract(*usual(), PAIRS, name="pirate", calibrate=False)
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
    model, words = usual()
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
    assert v.calibration["kl"] == pytest.approx(0.5, abs=0.01)


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
        ({"read": 99}, "position 99"),
        ({"read": "first"}, "read 'first' does not exist: use last, content, response"),
        ({"read": "response", "response_tokens": 0}, "response_tokens is 0"),
        ({"op": "subtract"}, "op 'subtract' does not exist: use add, project, clamp, cap"),
    ],
)
def test_what_does_not_exist_is_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        extract(*usual(), PAIRS, calibrate=False, **options)


@pytest.mark.parametrize("options", [{"layers": [7]}, {"site": "here"}, {"method": "m"}])
def test_nothing_is_written_for_what_does_not_exist(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []

    def write(*arguments: Any, **words: Any) -> Iterator[tuple[int, int]]:
        written.append(1)
        return generate_batch(*arguments, **words)

    monkeypatch.setattr("mlxsteer.reading.generate_batch", write)
    kept: dict[str, Any] = {"read": "response", "response_tokens": 1, "calibrate": False}
    model, words = usual()
    with pytest.raises(UsageError):
        extract(model, words, PAIRS, **kept, **options)
    assert not written
    extract(model, words, PAIRS, **kept)
    assert written  # the twin


def test_one_pair_is_enough_for_a_difference_only() -> None:
    for method in ("mean_diff", "pca"):
        assert extract(*usual(), PAIRS[:1], method=method, calibrate=False).n_pairs == 1
    for method in ("probe", "lda"):
        with pytest.raises(MlxsteerError, match=f"layer 1: {method} needs two pairs or more"):
            extract(*usual(), PAIRS[:1], method=method, calibrate=False)


def test_data_that_cannot_work_is_refused() -> None:
    with pytest.raises(MlxsteerError, match="no pairs"):
        extract(*usual(), [])
    same = [Pair("tell me about the sea", "tell me about the unknownword sea") for _ in range(2)]
    long = [Pair("be " * 300, "be short")]
    with pytest.raises(MlxsteerError, match="pair 1, positive"):
        extract(*usual(), long)
    alike = [Pair("zzz", "yyy")]  # both unknown words: the model reads the same tokens
    with pytest.raises(MlxsteerError, match="the same to the model"):
        extract(*usual(), alike, calibrate=False)
    assert extract(*usual(), same, calibrate=False).n_pairs == 2


def test_the_defaults_are_what_is_done_when_nothing_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = defaults(LAYERS)
    assert json.loads(json.dumps(told)) == {**told, "layers": list(told["layers"])}
    words = {"method", "site", "layers", "read", "op", "remove_negative_mean", "unit"}
    assert words <= told.keys()
    v = extract(*usual(), PAIRS, calibrate=False)
    asked = {key: told[key] for key in words - {"unit"}}
    assert extract(*usual(), PAIRS, **asked, calibrate=False) == v
    assert (v.layers, v.site, v.op, v.method) == tuple(
        told[key] for key in ("layers", "site", "op", "method")
    )
    assert defaults(30)["layers"] != told["layers"]
    monkeypatch.setattr(sys.modules["mlxsteer.extract"], "BUDGET", 2.0)
    assert defaults(LAYERS) != told
