"""The band that does most at equal cost is chosen, and what was seen is written down."""

import dataclasses
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_calibrate import neutral
from test_evaluate import NEGATIVE, POSITIVE, model, small_concept, towards
from test_trials import dev_concept
from tiny import LAYERS, tokenizer, vector

from mlxsteer.choice import bands, can_choose, choose, settings
from mlxsteer.coherence import Coherence
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.extract import default_layers, extract
from mlxsteer.grid import spelled
from mlxsteer.vector import Vector


@pytest.mark.parametrize("n", [1, 2, 3, 4, 12, 16, 30, 32, 61, 80])
def test_candidates_are_relative_to_the_depth(n: int) -> None:
    found = bands(n)
    assert default_layers(n) in found
    assert len(set(found)) == len(found)
    assert all(0 <= band[0] <= band[-1] < n for band in found)
    assert all(band == tuple(range(band[0], band[-1] + 1)) for band in found)
    assert found[-1][-1] == n - 1
    if n >= 12:
        assert found[0][0] == n // 6
        assert len(found) == 6
        assert {round(len(band) / n * 6) for band in found} >= {1, 2, 3}


def planting(band: tuple[int, ...], positive: Any = POSITIVE, negative: Any = NEGATIVE) -> Any:
    """Make vectors that mean nothing, but in one band, which holds the last layer."""

    def vector_of(layers: tuple[int, ...]) -> Vector:
        chance = vector(layers, seed=len(layers)).rows()
        if layers == band:
            rows = {**chance, **towards(positive, negative).rows()}
            chance = {n: row * (1 if n == LAYERS - 1 else 1e-3) for n, row in rows.items()}
        return Vector.from_rows("nautical", chance)

    return vector_of


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> dict[tuple[int, ...], float]:
    """How many answers of a band are said to loop, of one whose text does not hold together; a
    tiny model's own never does.
    """
    found: dict[tuple[int, ...], float] = {}

    def reading(
        self: object, cells: list[Any], vectors: list[Any], *, strengths: tuple[float, ...]
    ) -> list[Any]:
        assert [v.layers for v in vectors] == [c.layers for c in cells]
        assert (min(strengths) + max(strengths)) / 2 == 1.0
        return [
            dataclasses.replace(
                c,
                coherent=c.layers not in found,
                coherence=Coherence(1.0, found.get(c.layers, 0.0), 1.0),
            )
            for c in cells
        ]

    monkeypatch.setattr("mlxsteer.trials.Trials.read_text", reading)
    return found


@pytest.mark.usefixtures("broken")
def test_what_is_planted_is_chosen() -> None:
    band = (LAYERS - 2, LAYERS - 1)
    chosen, record = choose(model(), tokenizer(), dev_concept(), planting(band), neutral(model()))
    assert chosen == band
    assert [one["layers"] for one in record["candidates"]] == [spelled(b) for b in bands(LAYERS)]
    assert all(
        one["kl"] == pytest.approx(record["budget"], rel=0.05) for one in record["candidates"]
    )
    lows = {one["layers"]: one["low"] for one in record["candidates"]}
    assert max(lows, key=lambda key: lows[key]) == spelled(band)
    assert (record["split"], record["prompts"]) == ("dev", 5)


def test_what_does_the_opposite_is_not(caplog: pytest.LogCaptureFixture) -> None:
    band = (LAYERS - 2, LAYERS - 1)
    turned = planting(band, NEGATIVE, POSITIVE)
    chosen, record = choose(model(), tokenizer(), dev_concept(), turned, neutral(model()))
    assert chosen != band
    (ours,) = (one for one in record["candidates"] if one["layers"] == spelled(band))
    assert ours["high"] < 0


def test_text_that_breaks_is_passed_over(
    broken: dict[tuple[int, ...], float], caplog: pytest.LogCaptureFixture
) -> None:
    """For the next band that does something; where none holds together, for one that loops less."""
    most, next_ = (LAYERS - 2, LAYERS - 1), (LAYERS - 2,)
    made = planting(most)

    def vector_of(band: tuple[int, ...]) -> Vector:
        row = towards(POSITIVE, NEGATIVE).rows()[LAYERS - 1]
        return Vector.from_rows("nautical", {2: row}) if band == next_ else made(band)

    broken[most] = 0.5
    arguments = (model(), tokenizer(), dev_concept(), vector_of, neutral(model()))
    with caplog.at_level(logging.WARNING, "mlxsteer"):
        chosen, record = choose(*arguments)
        marks = {one["layers"]: one["coherent"] for one in record["candidates"]}
        assert (chosen, marks["2-3"], marks["2"]) == (next_, False, True)
        assert marks["0-1"] is None  # was not needed
        assert caplog.text == ""
        broken |= dict.fromkeys(bands(LAYERS), 0.5)
        assert choose(*arguments)[0] == most
        broken[next_] = 0.25
        assert choose(*arguments)[0] == next_
    assert "no band of layers that moves its completions the text holds together" in caplog.text


def test_the_test_split_is_never_read() -> None:
    """Other test completions change nothing; another dev completion does."""
    concept, band = dev_concept(), (LAYERS - 2, LAYERS - 1)
    last = concept.completions[-1]
    other = dataclasses.replace(last, positive=last.negative, negative=last.positive)
    changed = dev_concept(completions=(*concept.completions[:-1], other))
    arguments = (planting(band), neutral(model()))
    found = choose(model(), tokenizer(), concept, *arguments)
    assert choose(model(), tokenizer(), changed, *arguments) == found
    first = concept.completions[0]
    other = dataclasses.replace(first, positive=first.negative, negative=first.positive)
    changed = dev_concept(completions=(other, *concept.completions[1:]))
    assert choose(model(), tokenizer(), changed, *arguments)[1] != found[1]


def test_no_effect_is_said(caplog: pytest.LogCaptureFixture) -> None:
    words = tokenizer()
    ids = words.encode("sea pirate blue day sky cook short now", add_special_tokens=False)
    weights = np.array(model().model.embed_tokens.weight)[ids]
    basis = np.linalg.svd(weights)[2][: len(ids)]  # what the head reads of these words

    def harmless(layers: tuple[int, ...]) -> Vector:
        row = np.random.default_rng(0).normal(size=weights.shape[1])
        row -= basis.T @ (basis @ row)
        norm = np.array(model().model.norm.weight)
        return Vector.from_rows("nautical", {LAYERS - 1: row / norm})

    with caplog.at_level(logging.WARNING, "mlxsteer"):
        choose(model(), words, dev_concept(), harmless, neutral(model()))
    assert "nautical: no band of layers moves its completions surely" in caplog.text


def test_bands_that_cannot_be_measured_are_passed_over() -> None:
    band = (LAYERS - 2, LAYERS - 1)

    def only(layers: tuple[int, ...]) -> Vector:
        if layers != band:
            raise MlxsteerError("no direction")
        return planting(band)(layers)  # type: ignore[no-any-return]

    chosen, record = choose(model(), tokenizer(), dev_concept(), only, neutral(model()))
    assert chosen == band
    assert {one.get("error", "") for one in record["candidates"]} == {"no direction", ""}

    def none(layers: tuple[int, ...]) -> Vector:
        raise MlxsteerError("no direction")

    with pytest.raises(MlxsteerError, match=r"no band of layers of nautical .*: no direction"):
        choose(model(), tokenizer(), dev_concept(), none, neutral(model()))


def test_extract_chooses_and_writes_it_down(tmp_path: Path) -> None:
    concept, text = dev_concept(), neutral(model())
    v = extract(model(), tokenizer(), concept, layers="auto", neutral=text)
    record = v.evidence["layers"]
    assert v.layers in bands(LAYERS)
    order = sorted(record["candidates"], key=lambda one: -one["low"])
    good = [one for one in order if one["coherent"] and one["low"] > 0]
    assert spelled(v.layers) == (good or order)[0]["layers"]
    assert (
        dict(record).items()
        >= {
            k: tuple(x) if isinstance(x, list) else x
            for k, x in settings(concept, LAYERS, text).items()
        }.items()
    )
    named = extract(model(), tokenizer(), concept, layers=v.layers, neutral=text)
    np.testing.assert_array_equal(named.directions, v.directions)
    np.testing.assert_array_equal(named.scales, v.scales)
    assert "layers" not in named.evidence
    assert "prompt_side" in v.evidence
    v.save(tmp_path / "v.safetensors")


def test_what_cannot_be_chosen_is_refused() -> None:
    ours = (model(), tokenizer())
    with pytest.raises(MlxsteerError, match="0 completions of the split dev"):
        extract(*ours, small_concept(), layers="auto")
    with pytest.raises(MlxsteerError, match="pairs alone have no completions"):
        extract(*ours, dev_concept().pairs(), layers="auto")
    with pytest.raises(UsageError, match="by what adding does: name those for op clamp"):
        extract(*ours, dev_concept(), layers="auto", op="clamp")
    with pytest.raises(UsageError, match="layers 'most' are unknown"):
        extract(*ours, dev_concept(), layers="most")
    assert can_choose(dev_concept())
    assert not can_choose(small_concept())
    assert not can_choose(dev_concept(recipe=None))
