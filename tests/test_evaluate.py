"""Evidence where the truth is known: effects that are planted must be found, others must not."""

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from test_calibrate import tiny
from tiny import LAYERS, ref, tokenizer, vector

from mlxsteer.calibrate import calibrate
from mlxsteer.completions import Completion
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.evaluate import Size, evaluate
from mlxsteer.evidence import SCHEMA, Evidence, draw, markdown
from mlxsteer.extract import extract
from mlxsteer.library import Concept, concept
from mlxsteer.loading import load
from mlxsteer.neutral import Neutral
from mlxsteer.prompts import Prompt, Recipe
from mlxsteer.rules import Rule
from mlxsteer.vector import Vector, read_vector

OTHERS = ("formal", "terse")
POSITIVE, NEGATIVE = ("sea", "pirate", "blue", "day"), ("sky", "cook", "short", "now")
SMALL = Size(prompts=8, tokens=4, questions=2, neutral=40, probe=6, refits=4, isotropic=2, others=2)


def small_concept(**changes: Any) -> Concept:
    """A concept whose completions say words of one list or of the other."""
    train = [f"tell me about {word}" for word in ("day", "sky", "cook", "answer", "long", "blue")]
    test = [f"what about {word}" for word in ("day", "sky", "cook", "now", "long", "then", "sea")]
    prompts = [Prompt(text, "train", topic=text[-3:]) for text in train]
    prompts += [Prompt(text, "test") for text in test]
    completions = [
        Completion(text, POSITIVE[i % 4], NEGATIVE[(i + i // 4) % 4], "test")
        for i, text in enumerate(test)
    ]
    fields: dict[str, Any] = {
        "name": "nautical",
        "folder": Path("nowhere"),
        "positive": "of the sea",
        "negative": "of the land",
        "sign": "A positive strength is more of the sea.",
        "license": "CC0-1.0",
        "recipe": Recipe(tuple(train), "be a pirate", "be short"),
        "prompts": tuple(prompts),
        "completions": tuple(completions),
        "rule": Rule("lexicon", 1, POSITIVE),
    }
    return Concept(**{**fields, **changes})


@functools.cache
def model() -> nn.Module:
    made: nn.Module = tiny()
    return made


def towards(positive: tuple[str, ...], negative: tuple[str, ...]) -> Vector:
    """The direction at the last block that the head reads as these words rather than those."""
    sides = []
    for words in (positive, negative):
        ids = [tokenizer().encode(w, add_special_tokens=False)[0] for w in words]
        sides.append(model().model.embed_tokens.weight[mx.array(ids)].mean(axis=0))
    row = np.array((sides[0] - sides[1]) * model().model.norm.weight)
    return Vector.from_rows("planted", {LAYERS - 1: row}, model=ref())


@functools.cache
def calibrated(raw: Vector) -> Vector:
    prompts = ["how was your day", "tell me about the sea", "be short", "what now", "why then"]
    text = Neutral.write(model(), tokenizer(), prompts=prompts, min_tokens=40)
    return calibrate(model(), tokenizer(), raw, neutral=text)


@functools.cache
def planted() -> Evidence:
    """The evidence that most tests look at."""
    others = (calibrated(vector((LAYERS - 1,), seed=3, name="other")),)
    v = calibrated(towards(POSITIVE, NEGATIVE))
    return evaluate(model(), tokenizer(), v, small_concept(), others=others, size=SMALL)


def test_a_planted_effect_is_found() -> None:
    e = planted()
    assert e.effect.above
    assert e.against_null.above
    assert e.effect.wrong_way == 0
    effects = [e.condition(s).effect for s in (-1.0, 0.5, 1.0, 1.5)]
    means = [effect.mean for effect in effects if effect is not None]
    assert means[0] < 0 < means[1] < means[2] < means[3]
    assert "Strength -1 moves them the other way: -" in " ".join(e.verdict())
    assert "It moves the completions its way" in " ".join(e.verdict())
    assert "beats the strongest of 7 nulls" in " ".join(e.verdict())


def test_it_names_what_it_was_held_against() -> None:
    (other,) = planted().others
    v = calibrated(vector((LAYERS - 1,), seed=3, name="other"))
    assert other == ("other", v.content_sha256)


def test_its_opposite_comes_out_as_the_opposite() -> None:
    v = calibrated(towards(NEGATIVE, POSITIVE))
    e = evaluate(model(), tokenizer(), v, small_concept(), size=SMALL)
    assert e.effect.below
    assert e.effect.wrong_way == 1
    assert not e.passed
    assert e.verdict()[0].startswith("planted FAILS")
    assert "It does the OPPOSITE" in e.verdict()[1]
    assert "Strength -1 does NOT move them the other way: +" in e.verdict()[2]


def test_a_direction_that_means_something_else_fails() -> None:
    v = calibrated(towards(("w3", "w5"), ("w8", "w9")))
    e = evaluate(model(), tokenizer(), v, small_concept(), size=SMALL)
    assert not e.passed
    assert not e.against_null.above
    assert "does NOT beat" in " ".join(e.verdict())


def test_what_is_measured() -> None:
    e = planted()
    assert [c.name for c in e.conditions] == [
        "baseline",
        "asked in words",
        "steered -1",
        "steered 0.5",
        "steered 1",
        "steered 1.5",
        "asked and steered 1",
    ]
    assert [n.kind for n in sorted(e.nulls, key=lambda n: n.kind)] == (
        ["isotropic"] * 2 + ["other"] + ["refit"] * 4
    )
    one = e.condition(1.0)
    assert one.kl is not None
    for null in e.nulls:
        assert null.kl == pytest.approx(one.kl, rel=0.05)
    assert e.nulls[0].effect.mean == max(n.effect.mean for n in e.nulls)
    base = np.array(e.condition(0.0).scores)
    assert e.effect.mean == pytest.approx(float(np.mean(np.array(one.scores) - base)))
    assert e.against_null.mean == pytest.approx(float(np.mean(e.differences)))
    assert e.against_prompt.mean == pytest.approx(
        float(np.mean(np.array(one.scores) - np.array(e.condition(0.0, True).scores)))
    )
    assert e.tokens_saved == 5  # <system> be a pirate <end>
    kl = [e.condition(s).kl for s in (0.0, 0.5, 1.0, 1.5)]
    assert kl[0] == 0
    assert kl == sorted(k for k in kl if k is not None)
    assert one.margin is not None
    assert e.rule == "lexicon (more is more)"
    assert e.counted_against_prompt is not None
    assert e.counted_against_prompt.mean == pytest.approx(
        np.mean(one.counts) - np.mean(e.condition(0.0, True).counts)
    )
    counted = [e.condition(s).counted for s in (0.0, 1.5)]
    assert counted[0] is not None
    assert counted[1] is not None
    assert counted[1] > counted[0]
    assert len(one.answers) == len(e.prompts) == 7


def test_it_is_the_same_again_and_survives_json() -> None:
    e = planted()
    v = calibrated(towards(POSITIVE, NEGATIVE))
    others = (calibrated(vector((LAYERS - 1,), seed=3, name="other")),)
    assert evaluate(model(), tokenizer(), v, small_concept(), others=others, size=SMALL) == e
    record = json.loads(json.dumps(e.to_json(), allow_nan=False))
    assert record["schema"] == SCHEMA
    assert record["passed"] == e.passed
    assert record["conditions"][4]["scores"] == list(e.condition(1.0).scores)
    assert record["settings"]["refits"] == 4


def test_table_and_plot(tmp_path: Path) -> None:
    e = planted()
    table = markdown(e)
    assert table.count("\n| ") == 2 + len(e.conditions) + 2 + len(e.nulls)
    assert " ".join(e.verdict()) in table
    draw(e, tmp_path / "dose.png")
    assert (tmp_path / "dose.png").read_bytes().startswith(b"\x89PNG")


def test_the_verdict_says_where_asking_wins() -> None:
    e = planted()
    lost = dataclasses.replace(e.against_prompt, mean=-1.0, low=-1.2, high=-0.8)
    assert "Asking in words does MORE" in " ".join(
        dataclasses.replace(e, against_prompt=lost).verdict()
    )
    less = dataclasses.replace(e, counted_against_prompt=lost)
    assert "By the rule its text shows LESS of the concept than that of asking" in " ".join(
        less.verdict()
    )
    dear = [dataclasses.replace(c, margin=lost) for c in e.conditions]
    assert "Strength 1 loses margin on plain knowledge: -1.00 [-1.20, -0.80]" in " ".join(
        dataclasses.replace(e, conditions=tuple(dear)).verdict()
    )
    assert "Steering saves 5 prompt tokens" in e.verdict()[-1]
    won = dataclasses.replace(e.against_prompt, mean=1.0, low=0.8, high=1.2)
    assert "more than asking" in " ".join(dataclasses.replace(e, against_prompt=won).verdict())


def test_the_verdict_says_that_there_is_no_effect() -> None:
    e = planted()
    one = e.condition(1.0)
    unsure = dataclasses.replace(e.effect, mean=0.01, low=-0.1, high=0.2)
    none = [dataclasses.replace(c, effect=unsure) if c is one else c for c in e.conditions]
    without = dataclasses.replace(e, conditions=tuple(none))
    assert not without.passed
    assert without.verdict()[0].startswith("planted FAILS")
    assert (
        "It has no effect on the completions that can be told from 0: +0.01 [-0.10, +0.20]"
        in (without.verdict()[1])
    )


def test_progress_ends_where_it_says() -> None:
    seen: dict[str, tuple[int, int]] = {}
    v = calibrated(towards(POSITIVE, NEGATIVE))

    def progress(stage: str, done: int, total: int) -> None:
        assert done <= total
        seen[stage] = done, total

    evaluate(model(), tokenizer(), v, small_concept(), size=SMALL, progress=progress)
    assert all(done == total for done, total in seen.values())
    assert {"scoring completions", "scoring nulls", "writing answers"} <= seen.keys()


BAD: list[tuple[Concept, str]] = [
    (small_concept(completions=()), "nautical has 0 completions of the split test, which it is"),
    (small_concept(recipe=None, prompts=()), "nautical has pairs and no recipe"),
]


@pytest.mark.parametrize(("bad", "line"), BAD)
def test_a_concept_that_cannot_be_judged_is_refused(bad: Concept, line: str) -> None:
    with pytest.raises(MlxsteerError, match=line):
        evaluate(model(), tokenizer(), vector(), bad, size=SMALL)


def test_a_vector_that_cannot_be_judged_is_refused() -> None:
    ours = small_concept()
    with pytest.raises(UsageError, match="has op project: only what adds is judged"):
        evaluate(model(), tokenizer(), vector(op="project"), ours, size=SMALL)
    with pytest.raises(MlxsteerError, match="is zero"):
        evaluate(model(), tokenizer(), 0 * vector(), ours, size=SMALL)
    with pytest.raises(MlxsteerError, match=r"'v0' at strength 1 moves the model by .* calibrate"):
        evaluate(model(), tokenizer(), vector(scale=1e-6), ours, size=SMALL)
    with pytest.raises(UsageError, match="no split is called 'train' here; use dev or test"):
        evaluate(model(), tokenizer(), vector(), ours, split="train", size=SMALL)


ON_REAL = Size(12, 4, 2, 128, 0, 3, 1, 1)


def others_shipped() -> list[Vector]:
    return [read_vector(concept(n).folder / "smollm2-135m.safetensors") for n in OTHERS]


@pytest.mark.usefixtures("smollm2_gguf")
def test_calm_passes() -> None:
    """On real weights, against the nulls that Bob from Ohio does not beat."""
    smollm2, words = load("smollm2-135m")
    calm = concept("calm")
    shipped = read_vector(calm.folder / "smollm2-135m.safetensors")
    good = evaluate(smollm2, words, shipped, calm, others=others_shipped(), size=ON_REAL)
    assert good.effect.above
    assert good.against_null.above


@pytest.mark.usefixtures("smollm2_gguf")
def test_bob_from_ohio_fails() -> None:
    """On real weights: a contrast of two names separates prompts as well as any, and means nothing.

    Bob is judged by calm's completions, against the same nulls but calm itself.
    """
    smollm2, words = load("smollm2-135m")
    calm = concept("calm")
    assert calm.recipe is not None
    names = Recipe(calm.recipe.prompts, "You are Bob from Ohio.", "You are Tom from Texas.")
    held_out = tuple(one for one in calm.completions if one.split != "train")
    bob = dataclasses.replace(calm, name="bob", recipe=names, completions=held_out)
    text = Neutral.write(smollm2, words, min_tokens=128)
    meaningless = extract(smollm2, words, bob, calibrate=False)
    meaningless = calibrate(smollm2, words, meaningless, neutral=text, limits=False)
    bad = evaluate(smollm2, words, meaningless, bob, others=others_shipped(), size=ON_REAL)
    assert not bad.passed
    assert not bad.against_null.above
    assert bad.verdict()[0].startswith("bob FAILS")
