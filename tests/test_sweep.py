"""A sweep names what was planted, at every cost, and never its opposite."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_calibrate import neutral
from test_evaluate import NEGATIVE, POSITIVE, model, small_concept, towards
from test_trials import dev_concept
from tiny import LAYERS, tokenizer, vector

from mlxsteer.choice import bands
from mlxsteer.coherence import Coherence
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.grid import Sweep, draw, markdown, spelled
from mlxsteer.sweep import Size, each_layer, sweep

SIZE = Size(prompts=5, tokens=4, texts=4)
LAST = (LAYERS - 1,)
PLACES = ((0, 1), LAST, (2,))
BUDGETS = (0.5, 0.1)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Directions that mean nothing, but at one place by one method; text always holds together."""
    how: dict[str, Any] = {"positive": POSITIVE, "negative": NEGATIVE, "broken": False}

    class Planted:
        def __init__(self, *arguments: Any, **options: Any) -> None:
            how["read"] = arguments[3]

        def rows(self, method: str, site: str, layers: Any, **options: Any) -> np.ndarray:
            if method == "lda":
                raise MlxsteerError("lda finds nothing")
            if (method, site, tuple(layers)) == ("pca", "resid_post", LAST):
                return np.stack(list(towards(how["positive"], how["negative"]).rows().values()))
            seed = len(layers) + len(site) + len(method)
            return np.stack(list(vector(tuple(layers), seed=seed).rows().values()))

    monkeypatch.setattr("mlxsteer.sweep.Contrast", Planted)
    monkeypatch.setattr(Coherence, "holds", lambda self, base: not how["broken"])
    return how


def swept(**options: Any) -> Sweep:
    asked = {
        "layers": PLACES,
        "sites": ("resid_post", "mlp_out"),
        "methods": ("mean_diff", "pca"),
        "budgets": BUDGETS,
        "size": SIZE,
        "neutral": neutral(model()),
    }
    concept = options.pop("concept", dev_concept())
    return sweep(model(), tokenizer(), concept, **{**asked, **options})


@pytest.mark.usefixtures("planted")
def test_what_is_planted_is_named_at_every_cost(tmp_path: Path) -> None:
    found = swept()
    assert len(found.cells) == 2 * 2 * len(PLACES) * len(BUDGETS)
    for cell in found.cells:
        assert cell.kl == pytest.approx(cell.budget, rel=0.06)
    assert found.best is not None
    assert (found.best.method, found.best.site, found.best.layers) == ("pca", "resid_post", LAST)
    assert found.best.budget == 0.5
    assert found.best.effect is not None
    assert found.best.effect.above
    low, high, over = found.verdict()
    name = f"pca at resid_post, layers {LAYERS - 1}"
    assert low.startswith(f"At 0.1 nats (12 cells) the best is {name}, with +")
    assert high.startswith(f"At 0.5 nats (12 cells) the best is {name}, with +")
    assert "surely more than the next" in high
    assert f"Over all costs: {name} at 0.5 nats" in over
    text = markdown(found)
    assert text.count("\n| 0.5 | ") == text.count("\n| 0.1 | ") == 12
    record = json.loads(json.dumps(found.to_json()))
    assert record["best"]["layers"] == list(LAST)
    assert record["split"] == "dev"
    draw(found, tmp_path / "s.png")
    assert (tmp_path / "s.png").read_bytes().startswith(b"\x89PNG")


def test_what_does_the_opposite_is_never_named(planted: dict[str, Any]) -> None:
    planted["positive"], planted["negative"] = NEGATIVE, POSITIVE
    found = swept()
    ours = [c for c in found.cells if (c.method, c.site, c.layers) == ("pca", "resid_post", LAST)]
    assert all(cell.effect is not None and cell.effect.below for cell in ours)
    assert found.best not in ours


def test_where_no_text_holds_together_nothing_is_named(planted: dict[str, Any]) -> None:
    planted["broken"] = True
    found = swept(budgets=(0.5,))
    assert found.best is None
    assert found.verdict() == ("At 0.5 nats (12 cells) no text holds together: nothing is chosen.",)
    assert "| NO |" in markdown(found)


@pytest.mark.usefixtures("planted")
def test_a_way_that_finds_nothing_is_a_cell_that_says_so() -> None:
    found = swept(methods=("lda", "pca"), sites=("resid_post",), budgets=(0.5,))
    errors = [cell.error for cell in found.cells]
    assert errors == ["lda finds nothing"] * 3 + [""] * 3
    assert found.verdict()[0].startswith("At 0.5 nats (6 cells, 3 of them not to be had)")
    assert "lda finds nothing" in markdown(found)
    with pytest.raises(MlxsteerError, match="no cell of nautical can be measured: lda finds"):
        swept(methods=("lda",))


@pytest.mark.usefixtures("planted")
def test_the_test_split_is_never_read() -> None:
    concept = dev_concept()
    last = concept.completions[-1]
    other = dataclasses.replace(last, positive=last.negative, negative=last.positive)
    changed = dev_concept(completions=(*concept.completions[:-1], other))
    few: dict[str, Any] = {"layers": (LAST,), "budgets": (0.5,)}
    assert swept(concept=changed, **few) == swept(concept=concept, **few)
    first = concept.completions[0]
    other = dataclasses.replace(first, positive=first.negative, negative=first.positive)
    changed = dev_concept(completions=(other, *concept.completions[1:]))
    assert swept(concept=changed, **few) != swept(concept=concept, **few)  # the twin


def test_by_itself_it_tries_the_candidates_of_extract() -> None:
    found = sweep(model(), tokenizer(), dev_concept(), neutral=neutral(model()), size=SIZE)
    assert [cell.layers for cell in found.cells] == bands(LAYERS)
    assert {(cell.site, cell.method, cell.budget) for cell in found.cells} == {
        ("resid_post", "mean_diff", 0.5)
    }
    assert found.settings["read"] == "last"
    again = swept(layers=each_layer(LAYERS), sites=("resid_post",), methods=("mean_diff",))
    assert [spelled(cell.layers) for cell in again.cells[::2]] == [str(i) for i in range(LAYERS)]


@pytest.mark.parametrize(
    ("options", "error", "says"),
    [
        ({"budgets": (0.5, -1)}, UsageError, "use numbers of nats above 0"),
        ({"budgets": ()}, UsageError, "use numbers of nats above 0"),
        ({"budgets": (float("nan"),)}, UsageError, "use numbers of nats above 0"),
        ({"layers": ()}, UsageError, "no layer is named"),
        ({"layers": ((),)}, UsageError, "no layer is named"),
        ({"layers": ((LAYERS,),)}, UsageError, str(LAYERS)),
        ({"sites": ("attic",)}, UsageError, "attic"),
        ({"sites": ()}, UsageError, "no site is named"),
        ({"methods": ("guess",)}, UsageError, "method 'guess' does not exist"),
        ({"read": "first"}, UsageError, "read 'first' does not exist"),
        ({"concept": small_concept()}, MlxsteerError, "0 completions of the split dev"),
    ],
)
def test_bad_input(options: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        swept(**options)
