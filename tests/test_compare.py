"""Two vectors side by side."""

import dataclasses
import json
from typing import Any

import numpy as np
import pytest

from mlxsteer.compare import Diff, LayerDiff, diff
from mlxsteer.errors import MlxsteerError
from mlxsteer.vector import ModelRef, Vector

MODEL = ModelRef("tiny/random", "0", "llama", 6, 4, "none", "float32")
ROWS = {1: [3, 4, 0, 0], 3: [0, 0, 2, 0]}


def make(rows: dict[int, Any] = ROWS, name: str = "joyful", **fields: Any) -> Vector:
    return Vector.from_rows(name, rows, **{"model": MODEL, **fields})


def test_cosines_and_norms_per_layer() -> None:
    found = diff(make(), make({1: [4, 3, 0, 0], 3: [0, 0, -0.5, 0]}))
    assert [(x.layer, x.norm_a, x.norm_b) for x in found.layers] == [(1, 5, 5), (3, 2, 0.5)]
    assert found.layers[0].cosine == pytest.approx(0.96)
    assert found.layers[1].cosine == -1
    assert found.fields == ()


def test_a_vector_is_like_itself_and_unlike_its_opposite() -> None:
    rows = {n: np.random.default_rng(n).normal(size=64) for n in range(6)}
    a = Vector.from_rows("a", rows)
    assert [x.cosine for x in diff(a, a).layers] == pytest.approx([1] * 6)
    assert all(-1 <= x.cosine <= 1 for x in diff(a, a).layers if x.cosine is not None)
    assert diff(a, a).fields == ()
    opposite = diff(a, -a)
    assert [x.cosine for x in opposite.layers] == pytest.approx([-1] * 6)
    assert [x.norm_a for x in opposite.layers] == [x.norm_b for x in opposite.layers]
    assert opposite.fields == ("name",)


def test_a_layer_of_one_only_is_listed() -> None:
    found = diff(make(), make({3: [0, 0, 2, 0], 5: [1, 0, 0, 0]}))
    assert found.layers == (
        LayerDiff(1, None, 5, None),
        LayerDiff(3, 1, 2, 2),
        LayerDiff(5, None, None, 1),
    )


def test_a_shift_by_one_layer_is_seen() -> None:
    shifted = make({layer + 1: row for layer, row in ROWS.items()})
    assert [x.cosine for x in diff(make(), shifted).layers] == [None] * 4


def test_a_zero_vector_has_no_layers() -> None:
    zero = make() - make()
    assert {x.norm_b for x in diff(make(), zero).layers} == {None}
    assert diff(zero, zero).layers == ()


def test_other_fields_are_named() -> None:
    b = make(name="b", site="mlp_out", license="MIT", model=None, evidence={"kl": 1})
    assert diff(make(), b).fields == ("evidence", "license", "model", "name", "site")
    feature: dict[str, Any] = {"op": "project", "encoders": np.eye(2, 4), "encoder_biases": [0, 1]}
    assert diff(make(op="project"), make(**feature)).fields == ("encoder_biases", "encoders")
    other = make(**feature | {"encoder_biases": [0, 2]})
    assert diff(make(**feature), other).fields == ("encoder_biases",)
    clamps = (make(op="clamp", targets=[1, 2]), make(op="clamp", targets=[1, 3]))
    assert diff(*clamps).fields == ("targets",)
    assert diff(make(**feature), make(**feature)).fields == ()


def test_a_diff_is_a_value_of_plain_numbers() -> None:
    found = diff(make(), make(name="b"))
    assert found == diff(make(), make(name="b"))
    assert json.loads(json.dumps(dataclasses.asdict(found)))["fields"] == ["name"]
    with pytest.raises(dataclasses.FrozenInstanceError):
        found.fields = ()  # type: ignore[misc]
    assert Diff((), ()) != found


def test_widths_must_agree() -> None:
    words = r"'joyful' \(width 4\) and 'b' \(width 8\) are of different models: compare"
    with pytest.raises(MlxsteerError, match=words):
        diff(make(), Vector.from_rows("b", {1: np.ones(8)}))
