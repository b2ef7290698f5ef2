"""Vectors are compared at equal cost, with their signs, on what was given and nothing else."""

import dataclasses
import functools

import numpy as np
import pytest
from test_calibrate import by_hand, neutral
from test_evaluate import NEGATIVE, POSITIVE, model, small_concept, towards
from tiny import LAYERS, tokenizer, vector

from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.grid import Cell
from mlxsteer.library import Concept
from mlxsteer.prompts import Split
from mlxsteer.scoring import LogOdds
from mlxsteer.steering import Steering
from mlxsteer.trials import Trials, check
from mlxsteer.vector import Vector


def dev_concept(**changes: object) -> Concept:
    """The small concept, all but two of whose held-out prompts are for choosing."""
    whole = small_concept()
    dev: Split = "dev"
    test: Split = "test"
    splits: list[Split] = [*[dev] * (len(whole.completions) - 2), test, test]
    completions = tuple(
        dataclasses.replace(one, split=split)
        for one, split in zip(whole.completions, splits, strict=True)
    )
    prompts = {one.prompt: one.split for one in completions}
    found = tuple(dataclasses.replace(p, split=prompts.get(p.text, p.split)) for p in whole.prompts)
    return small_concept(**{"completions": completions, "prompts": found, **changes})


@functools.cache
def trials() -> Trials:
    recipe, completions = check(dev_concept(), "dev")
    firsts = (0, 1, 2, LAYERS - 1)
    return Trials(model(), tokenizer(), completions, recipe, neutral(model()), firsts, tokens=4)


VECTORS = {
    "planted": towards(POSITIVE, NEGATIVE),
    "turned": towards(NEGATIVE, POSITIVE),
    "low": vector((0, 1), seed=3),
    "huge": vector((1,), seed=4, scale=300.0),
    "mlp": vector((2, 3), seed=5, site="mlp_out", scale=0.01),
}


@functools.cache
def cells(name: str) -> tuple[Cell, ...]:
    return tuple(trials().cells(VECTORS[name], "mean_diff", (1.0, 0.3)))


def at(cell: Cell, raw: Vector) -> Steering:
    assert cell.factor is not None
    return Steering((raw, cell.factor))


@pytest.mark.parametrize("name", VECTORS)
def test_all_cells_have_their_cost_whatever_their_scale_and_place(name: str) -> None:
    raw = VECTORS[name]
    assert [cell.budget for cell in cells(name)] == [1.0, 0.3]
    for cell in cells(name):
        assert (cell.site, cell.layers, cell.error) == (raw.site, raw.layers, "")
        kl = by_hand(model(), neutral(model()), at(cell, raw))
        assert kl == pytest.approx(cell.budget, rel=0.06)
        assert kl == pytest.approx(cell.kl, rel=0.01)


@pytest.mark.parametrize("name", VECTORS)
def test_changes_are_those_of_the_completions(name: str) -> None:
    raw, (cell, small) = VECTORS[name], cells(name)
    odds = LogOdds(model(), tokenizer(), check(dev_concept(), "dev")[1])
    changes = odds(at(cell, raw)) - odds(Steering())
    np.testing.assert_allclose(cell.changes, changes, atol=1e-4)
    assert not np.allclose(small.changes, changes, atol=1e-3)
    assert cell.effect is not None
    assert cell.effect.mean == pytest.approx(np.mean(changes), abs=1e-4)


def test_what_is_planted_is_found_and_its_opposite_is_the_opposite() -> None:
    planted, turned = cells("planted")[0].effect, cells("turned")[0].effect
    assert planted is not None
    assert turned is not None
    assert planted.above
    assert turned.below
    others = [cells(name)[0].effect for name in ("low", "huge", "mlp")]
    assert all(other is not None and other.low < planted.low for other in others)


def test_a_cost_out_of_reach_is_a_cell_that_says_so() -> None:
    flat = Vector.from_rows("flat", {LAYERS - 1: np.eye(64)[0] * 1e-12})
    near, far = trials().cells(flat, "pca", (1e-6, 1e9))
    assert far.error.startswith("no strength of 'flat' moves the model by 1e+09 nats")
    assert (far.kl, far.effect, far.changes) == (None, None, ())
    assert (near.error == "") == (near.effect is not None)


def test_text_is_read_beside_the_unsteered_one() -> None:
    """A vector so strong that all answers are one word over and over does not hold together."""
    raw = VECTORS["planted"]
    recipe, completions = check(dev_concept(), "dev")
    longer = Trials(
        model(), tokenizer(), completions, recipe, neutral(model()), (LAYERS - 1,), tokens=16
    )
    mild = dataclasses.replace(cells("planted")[0], factor=1e-6)
    wild = dataclasses.replace(cells("planted")[0], factor=1e4)
    failed = Cell("resid_post", "pca", (1,), 1.0, error="no")
    read = longer.read_text([failed, mild, wild], [raw] * 3)
    assert read[0] == failed
    assert [cell.coherent for cell in read[1:]] == [True, False]
    assert read[2].coherence is not None
    assert read[2].coherence.loop_rate == 1
    assert longer.read_text([wild], [raw]) == read[2:]  # the unsteered answers are kept
    (both,) = longer.read_text([wild], [raw], strengths=(1e-10, 1.0))
    assert both.coherence is not None
    assert longer.baseline.loop_rate < 1  # the strong one loops always, taken together less
    assert both.coherence.loop_rate == pytest.approx((1 + longer.baseline.loop_rate) / 2)


def test_a_concept_that_nothing_can_be_chosen_by_is_refused() -> None:
    with pytest.raises(MlxsteerError, match="nautical has 0 completions of the split dev"):
        check(small_concept(), "dev")
    with pytest.raises(MlxsteerError, match="nautical has pairs and no recipe"):
        check(dev_concept(recipe=None), "dev")
    with pytest.raises(MlxsteerError, match="pairs alone have no completions of the split dev"):
        check(None, "dev")
    with pytest.raises(UsageError, match="no split is called 'train'"):
        check(dev_concept(), "train")
    _, completions = check(dev_concept(), "dev")
    assert {one.split for one in completions} == {"dev"}
