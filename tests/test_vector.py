"""The value: what may exist, its algebra, and the models it fits."""

import copy
import json
import logging
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.vector import OPS, PHASES, SITES, ModelRef, Vector, read_vector

WIDTH = 4
MODEL = ModelRef("tiny/random", "0", "llama", 6, WIDTH, "none", "float32")


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


def unit(*row: float) -> np.ndarray:
    wide = np.asarray(row, np.float64)
    return (wide / np.linalg.norm(wide)).astype(np.float32)


def make(**fields: Any) -> Vector:
    given_fields: dict[str, Any] = {
        "name": "joyful",
        "layers": (1, 3),
        "directions": np.stack([unit(1, 2, 3, 4), unit(0, -1, 0, 1)]),
        "scales": f32(2, 0.5),
        "positive": "joyful",
        "negative": "gloomy",
        "model": MODEL,
    }
    return Vector(**{**given_fields, **fields})


# an SAE feature: read along another row than it is written, of any norm
FEATURE: dict[str, Any] = {
    "op": "project",
    "encoders": np.stack([f32(3, 0, -4, 0), f32(0, 1e-3, 0, 0)]),
    "encoder_biases": f32(-0.5, 0),
}

ELEMENTS = st.floats(-1e6, 1e6, width=32).filter(lambda x: x == 0 or abs(x) > 1e-6)
ROWS = st.dictionaries(
    st.integers(0, 5), st.lists(ELEMENTS, min_size=WIDTH, max_size=WIDTH), min_size=1, max_size=4
)
VECTORS = ROWS.map(lambda rows: Vector.from_rows("v", rows, model=MODEL))


def same_rows(a: Vector, b: Vector) -> bool:
    mine, theirs = a.rows(), b.rows()
    return mine.keys() == theirs.keys() and all(
        np.array_equal(mine[layer], theirs[layer]) for layer in mine
    )


def close_rows(a: Vector, b: Vector) -> bool:
    """Equal up to float32 rounding."""
    mine, theirs = a.rows(), b.rows()
    return mine.keys() == theirs.keys() and all(
        np.abs(mine[n] - theirs[n]).max() <= 2e-6 * np.linalg.norm(mine[n]) for n in mine
    )


# What may exist


def test_a_vector_is_what_was_given() -> None:
    vector = make()
    assert vector.layers == (1, 3)
    assert (vector.hidden_size, vector.n_layers) == (WIDTH, 6)
    assert (vector.op, vector.site, vector.phase) == ("add", "resid_post", "all")
    assert not vector.is_zero
    assert not vector.calibrated
    assert make(calibration={}).calibrated
    assert make(model=None).n_layers is None
    np.testing.assert_array_equal(vector.rows()[3], 0.5 * unit(0, -1, 0, 1))
    assert repr(vector) == (
        "<Vector 'joyful': add at resid_post, layers [1, 3], width 4, uncalibrated>"
    )


def test_nothing_can_be_changed_from_outside() -> None:
    directions, evidence = np.stack([unit(1, 2, 3, 4), unit(0, -1, 0, 1)]), {"kl": [1.0]}
    vector = make(directions=directions, evidence=evidence, layers=[np.int64(1), 3])
    before = vector.content_sha256
    directions[:] = 0
    evidence["kl"][0] = 2.0
    assert vector.layers == (1, 3)
    assert vector.evidence["kl"] == (1.0,)
    feature = make(**FEATURE)
    assert feature.encoders is not None
    assert feature.encoder_biases is not None
    arrays = (feature.encoders, feature.encoder_biases)
    for array in (vector.directions, vector.scales, vector.rows()[1], *arrays):
        assert array.dtype == np.float32
        assert array.flags.c_contiguous
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
    with pytest.raises(FrozenInstanceError):
        vector.name = "other"  # type: ignore[misc]
    with pytest.raises(TypeError):
        vector.evidence["kl"] = 1  # type: ignore[index]
    vector.record()["evidence"]["kl"].append(1)
    assert vector.replace().content_sha256 == before


def test_any_array_becomes_contiguous_float32() -> None:
    wide = np.asfortranarray(np.stack([unit(1, 2, 3, 4), unit(0, -1, 0, 1)]).astype(">f8"))
    vector = make(directions=wide, scales=[2, 0.5])
    assert vector == make()
    assert vector.directions.dtype == np.float32
    assert vector.directions.flags.c_contiguous


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"name": ""}, "vector '': use a name of one printable line"),
        ({"name": " "}, "one printable line"),
        ({"name": "a\nb"}, "one printable line"),
        ({"name": None}, "name is None"),
        ({"positive": b"joy"}, "positive is b'joy': use a str"),
        ({"negative": "\udc80"}, "no valid Unicode"),
        ({"op": "mul"}, "unknown op 'mul': use add, project, clamp, cap"),
        ({"site": "resid_pre"}, "unknown site 'resid_pre': use attn_out, resid_mid"),
        ({"phase": "later"}, "unknown phase 'later': use all, prompt, response"),
        ({"phase": "3:3"}, "unknown phase '3:3'"),
        ({"phase": "-1:3"}, "unknown phase '-1:3'"),
        ({"pairs_sha256": "F" * 64}, "pairs_sha256 is 'FFF"),
        ({"n_pairs": 1.0}, "n_pairs is 1.0"),
        ({"model": "tiny"}, "model is 'tiny': use a ModelRef"),
        ({"evidence": None}, "evidence is None: use a mapping"),
        ({"evidence": {"kl": float("nan")}}, "'evidence.kl' is nan: use a finite number"),
        ({"evidence": {"kl": np.float32(1)}}, "'evidence.kl' is of type float32"),
        ({"evidence": {1: 2}}, "'evidence' has a key that is no string"),
        ({"template": {"a": {1, 2}}}, "'template.a' is of type set"),
        ({"layers": (3, 1)}, r"layers \[3, 1\] are not ascending"),
        ({"layers": (1, 1)}, r"layers \[1, 1\] are not ascending"),
        ({"layers": (-1, 3)}, "layer -1 does not exist"),
        ({"layers": (1, 3.0)}, "layer 3.0 does not exist"),
        ({"layers": (True, 3)}, "layer True does not exist"),
        ({"layers": (1, 6)}, "steers layer 6, tiny/random has 6 layers"),
        ({"layers": (1,)}, r"directions have the shape \[2, 4\]: use \[1, D\]"),
        ({"directions": [[1.0], [1.0, 0.0]]}, "directions are no array of numbers"),
        ({"directions": [["a"], ["b"]]}, "directions are no array of numbers"),
        ({"directions": np.ones((2, 1, 4))}, r"directions have the shape \[2, 1, 4\]"),
        ({"directions": np.eye(2, 3)}, "has width 3, tiny/random has 4"),
        ({"directions": np.full((2, 4), np.nan)}, "directions of layer 1 have NaN"),
        ({"directions": np.full((2, 4), 1e300)}, "directions of layer 1 have NaN or infinity"),
        ({"directions": np.ones((2, 4))}, "direction of layer 1 has norm 2: use 1"),
        ({"directions": [unit(1, 2, 3, 4), 1.0002 * unit(1, 0, 0, 0)]}, "layer 3 has norm 1.0002"),
        ({"scales": [1, np.inf]}, "scales of layer 3 have NaN or infinity"),
        ({"scales": [0, 1]}, "the scale of layer 1 is 0.0: use one above 0"),
        ({"scales": [1, -1]}, "the scale of layer 3 is -1.0"),
        ({"scales": [1]}, r"scales have the shape \[1\]: use \[2\]"),
        ({"targets": [1, 1]}, "op add takes no target: clamp and cap have one"),
        ({"op": "clamp"}, "op clamp needs a target per layer: give targets"),
        ({"op": "cap", "targets": [1, np.nan]}, "targets of layer 3 have NaN"),
        ({"op": "cap", "targets": [[1, 1]]}, r"targets have the shape \[1, 2\]"),
        (FEATURE | {"op": "add"}, "op add reads nothing and takes no encoder: leave it out"),
        (FEATURE | {"encoders": None}, "belong together: give both or neither"),
        (FEATURE | {"encoder_biases": None}, "belong together: give both or neither"),
        (FEATURE | {"encoders": np.eye(2, 3)}, r"encoders have the shape \[2, 3\]: use \[2, 4\]"),
        (FEATURE | {"encoders": np.eye(3, 4)}, r"encoders have the shape \[3, 4\]"),
        (FEATURE | {"encoders": np.diag([1.0, 0, 1, 1])[:2]}, "encoder of layer 3 has norm 0"),
        (FEATURE | {"encoders": np.full((2, 4), np.inf)}, "encoders of layer 1 have NaN or inf"),
        (FEATURE | {"encoder_biases": [0.0]}, r"encoder_biases have the shape \[1\]: use \[2\]"),
        (FEATURE | {"encoder_biases": [0.0, np.nan]}, "encoder_biases of layer 3 have NaN"),
        (FEATURE | {"op": "cap", "targets": [1, -1]}, "never below 0: cap it at a target from 0"),
    ],
)
def test_what_cannot_exist_is_named(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(MlxsteerError, match=words) as caught:
        make(**fields)
    assert len(str(caught.value).splitlines()) == 1
    assert str(caught.value).startswith("vector ")


def test_what_may_exist() -> None:
    for phase in (*PHASES, "0:20", "5:", ":5"):
        assert make(phase=phase).phase == phase
    for site in SITES:
        assert make(site=site).site == site
    for op in OPS:
        targets = [-1.0, 2.0] if op in ("clamp", "cap") else None
        assert make(op=op, targets=targets).op == op
    assert make(directions=[unit(1, 2, 3, 4), 1.00005 * unit(1, 0, 0, 0)]).layers == (1, 3)
    for op in ("project", "clamp", "cap"):
        targets = None if op == "project" else [0.0, 2.0]
        assert make(**FEATURE | {"op": op, "targets": targets}).encoders is not None
    assert make(**FEATURE | {"op": "clamp", "targets": [-1, 2]}).op == "clamp"
    tiny = make(**FEATURE | {"encoders": np.full((2, 4), 1e-45)}).encoders
    assert tiny is not None
    assert (tiny > 0).all()


def test_equality_is_by_content() -> None:
    assert make() == make()
    assert hash(make()) == hash(make())
    assert make() != "joyful"
    assert len({make(), make(), make(name="x")}) == 2
    changes: tuple[dict[str, Any], ...] = (
        {"name": "x"},
        {"scales": [2, 0.25]},
        {"layers": (1, 4)},
        {"directions": [unit(1, 2, 3, 4), unit(0, 1, 0, 1)]},
        {"phase": "response"},
        {"model": None},
        {"evidence": {"kl": 1}},
        {"calibration": {}},
        {"license": "MIT"},
        {"tool": "x"},
    )
    for fields in changes:
        assert make(**fields) != make()
    assert make(op="clamp", targets=[0, 1]) != make(op="clamp", targets=[0, 2])
    feature = make(**FEATURE)
    assert feature == make(**FEATURE)
    assert feature != make(op="project")
    assert feature != make(**FEATURE | {"encoders": 2 * FEATURE["encoders"]})
    assert feature != make(**FEATURE | {"encoder_biases": f32(-0.5, 0.5)})


def test_a_copy_is_the_same_vector() -> None:
    vector = make(evidence={"kl": {"mean": 1.0}})
    assert copy.deepcopy(vector) is vector
    assert copy.copy(vector) == vector
    assert copy.deepcopy({"steering": [vector]})["steering"][0] is vector


def test_the_record_is_plain_json() -> None:
    vector = make(evidence={"kl": (1.0, {"a": None})}, template={})
    record = vector.record()
    assert json.loads(json.dumps(record)) == record
    assert record["evidence"] == {"kl": [1.0, {"a": None}]}
    assert record["model"]["hidden_size"] == WIDTH
    assert record["content_sha256"] == vector.content_sha256
    assert make(model=None).record()["model"] is None


# From rows


def test_rows_become_unit_directions_and_scales() -> None:
    vector = Vector.from_rows("v", {3: [0, 0, 0, 2], 1: f32(3, 4, 0, 0), 2: [0, 0, 0, 0]})
    assert vector.layers == (1, 3)
    np.testing.assert_array_equal(vector.scales, f32(5, 2))
    np.testing.assert_allclose(vector.directions[0], [0.6, 0.8, 0, 0], rtol=1e-7)


@given(rows=ROWS)
def test_rows_come_back(rows: dict[int, list[float]]) -> None:
    vector = Vector.from_rows("v", rows)
    for layer, row in rows.items():
        found = vector.rows().get(layer, np.zeros(WIDTH))
        assert np.abs(found - f32(*row)).max() <= 3e-7 * np.linalg.norm(row)


@pytest.mark.parametrize("size", [1e-300, 1e-46, 1e-30, 1e30])
def test_tiny_and_huge_rows(size: float) -> None:
    vector = Vector.from_rows("v", {1: [size, 0, 0, 0]})
    assert vector.is_zero == (size < 1e-45)
    if not vector.is_zero:
        np.testing.assert_array_equal(vector.directions, [[1, 0, 0, 0]])


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ({}, r"rows have the shape \[0\]: use \[0, D\]"),
        ({1: [1.0], 2: [1.0, 2.0]}, "vector 'v': rows are no array of numbers"),
        ({1: 1.0}, r"rows have the shape \[1\]"),
        ({1: [1.0, np.nan]}, "rows of layer 1 have NaN"),
        ({2: [1.0, np.inf]}, "rows of layer 2 have NaN or infinity"),
        ({2: [1e200, 1e200]}, "scales of layer 2 have NaN or infinity"),
        ({-2: [1.0]}, "layer -2 does not exist"),
    ],
)
def test_wrong_rows_are_named(rows: dict[int, Any], words: str) -> None:
    with pytest.raises(MlxsteerError, match=words):
        Vector.from_rows("v", rows)


# Algebra


@given(v=VECTORS, w=VECTORS)
def test_sums(v: Vector, w: Vector) -> None:
    assert same_rows(v + w, w + v)
    assert same_rows(v - w, -(w - v))
    assert (v - v).is_zero
    assert (v + -v).is_zero
    assert close_rows(v + (w - w), v)
    zero = np.zeros(WIDTH)
    for layer in {*v.layers, *w.layers}:
        a, b = v.rows().get(layer, zero), w.rows().get(layer, zero)
        size = np.linalg.norm(a) + np.linalg.norm(b)
        assert np.abs((v + w).rows().get(layer, zero) - (a + b)).max() <= 2e-6 * size
        assert np.abs((v - w).rows().get(layer, zero) - (a - b)).max() <= 2e-6 * size


@given(v=VECTORS, k=st.floats(-100, 100).filter(lambda x: x == 0 or abs(x) > 1e-3))
def test_multiples(v: Vector, k: float) -> None:
    negative = -v
    assert same_rows(-negative, v)
    assert same_rows(2 * v, v * 2.0)
    assert same_rows(0.5 * (2 * v), v)
    assert (0 * v).is_zero
    assert same_rows(-1.0 * v, -v)
    assert same_rows(k * v, v * k)
    assert close_rows(v + v, 2 * v)
    for layer, row in v.rows().items():
        found = (k * v).rows().get(layer, np.zeros(WIDTH))
        np.testing.assert_allclose(found, k * row.astype(np.float64), rtol=1e-6, atol=1e-38)
        if k:
            at = (k * v).layers.index(layer)
            np.testing.assert_array_equal(
                (k * v).directions[at], np.sign(k) * v.directions[v.layers.index(layer)]
            )


def test_rounding_is_no_direction() -> None:
    v, w = make(), make(directions=[unit(4, 3, 2, 1), unit(1, 1, 1, 1)], name="w")
    assert (3 * v - v - v - v).is_zero
    assert ((v + w) - w - v).is_zero
    almost = make(scales=[2.001, 0.5])
    assert (almost - v).layers == (1,)  # the twin: a real difference stays


def test_layers_of_a_sum() -> None:
    a = Vector.from_rows("a", {1: [1, 0, 0, 0], 2: [1, 1, 0, 0]})
    b = Vector.from_rows("b", {2: [-1, -1, 0, 0], 4: [0, 0, 0, 2]})
    assert (a + b).layers == (1, 4)
    np.testing.assert_array_equal((a - b).rows()[4], [0, 0, 0, -2])


def test_numpy_numbers_multiply_too() -> None:
    two: Any = np.float32(2)
    assert same_rows(two * make(), 2 * make())
    assert same_rows(make() * two, 2 * make())
    assert same_rows(make() * np.array(2)[()], 2 * make())


def test_names_are_short_and_sensible() -> None:
    v, w = make(name="a"), make(name="b", directions=[unit(1, 1, 1, 1), unit(1, 0, 0, 0)])
    assert (v + w).name == "(a+b)"
    assert (v - w).name == "(a-b)"
    assert (-v).name == "-a"
    negative = -v
    assert (-negative).name == "a"
    assert (2 * v).name == "2*a"
    assert (v * -0.5).name == "-0.5*a"
    assert (0.5 * v - w).name == "(0.5*a-b)"
    long = v
    for _ in range(40):
        long = long + w
    assert len(long.name) == 60


def test_what_a_new_vector_remembers() -> None:
    full = make(
        calibration={"unit": "nat"},
        evidence={"kl": 1.0},
        license="MIT",
        template={"sha256": "x"},
        method="mean_diff",
        n_pairs=3,
    )
    assert 1 * full is full
    for other in (-full, 2 * full, full.restrict([3])):
        assert not other.calibrated
        assert other.evidence == {}
        assert (other.license, other.n_pairs, other.method) == ("MIT", 3, "mean_diff")
    assert ((-full).positive, (-full).negative) == ("gloomy", "joyful")
    assert ((0.5 * full).positive, (0.5 * full).negative) == ("joyful", "gloomy")
    total = full + make(license="Apache-2.0", model=None)
    assert not total.calibrated
    assert total.evidence == {}
    assert total.method == "sum"
    assert total.license == "Apache-2.0 AND MIT"
    assert total.model == MODEL
    assert (make(model=None) + full).model == MODEL
    assert (full + full).license == "MIT"
    assert (full + full).template == {"sha256": "x"}
    assert (full + make()).license == ""
    assert (full + make()).template == {}


BOTH, ONE = "steer with both, each at its strength", "extract both on one model"


@pytest.mark.parametrize(
    ("fields", "words", "way"),
    [
        ({"site": "mlp_out"}, r"'joyful' \(site resid_post\) and 'b' \(site mlp_out\)", BOTH),
        ({"op": "project"}, r"'joyful' \(op add\) and 'b' \(op project\)", BOTH),
        ({"phase": "response"}, r"'joyful' \(phase all\) and 'b' \(phase response\)", BOTH),
        (
            {"directions": np.eye(2, 3), "model": None},
            r"'joyful' \(hidden_size 4\) and 'b' \(hidden_size 3\)",
            ONE,
        ),
        (
            {"model": ModelRef("tiny/other", "0", "llama", 6, WIDTH, "none", "float32")},
            r"'joyful' \(model tiny/random\) and 'b' \(model tiny/other\)",
            ONE,
        ),
    ],
)
def test_sums_that_mean_nothing_are_refused(fields: dict[str, Any], words: str, way: str) -> None:
    for combine in (Vector.__add__, Vector.__sub__):
        with pytest.raises(MlxsteerError, match=words + f" have no sum: {way}"):
            combine(make(), make(name="b", **fields))


def test_only_additive_vectors_add_up() -> None:
    project = make(op="project")
    with pytest.raises(MlxsteerError, match=r"\(op project\) and .* have no sum"):
        _ = project + project
    with pytest.raises(MlxsteerError, match=r"\(op project\) has no multiple: use the strength"):
        _ = 2 * project


def test_another_packing_of_the_model_adds_up() -> None:
    packed = ModelRef("other/random-4bit", "1", "llama", 6, WIDTH, "4bit-g64", "bfloat16")
    assert (make() + make(model=packed)).model == MODEL


def test_a_factor_is_finite() -> None:
    wrong: tuple[Any, ...] = (float("nan"), -float("inf"), -(10**400), np.float32("inf"))
    for k in wrong:
        with pytest.raises(UsageError, match=r"'joyful' times .*: use a finite number"):
            _ = k * make()


def test_a_factor_is_a_number() -> None:
    for wrong in ("2", None, True, 2j, np.ones(4)):
        with pytest.raises(TypeError):
            _ = make() * wrong  # type: ignore[operator]
        with pytest.raises(TypeError):
            _ = make() + wrong  # type: ignore[operator]


def test_a_multiple_out_of_range_is_refused() -> None:
    with pytest.raises(MlxsteerError, match="scales of layer 1 have NaN or infinity"):
        _ = 1e300 * make()
    assert (1e-300 * make()).is_zero


def test_the_zero_vector_lives_in_memory_only(tmp_path: Path) -> None:
    zero = make() - make()
    assert (zero.layers, zero.rows(), zero.hidden_size) == ((), {}, WIDTH)
    assert close_rows(zero + make(), make())
    assert (2 * zero).is_zero
    assert (zero + zero).is_zero
    zero.check(MODEL)
    with pytest.raises(MlxsteerError, match="is zero: there is nothing to save"):
        zero.save(tmp_path / "zero.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_replace() -> None:
    feature = make(**FEATURE, calibration={"unit": "nat"})
    assert not feature.replace(encoder_biases=[0, 0]).calibrated
    with pytest.raises(MlxsteerError, match="op add reads nothing"):
        feature.replace(op="add")
    full = make(calibration={"unit": "nat"}, evidence={"kl": 1.0})
    assert full.replace(name="x").calibrated
    for change in ({"phase": "response"}, {"scales": [1, 1]}, {"layers": (1, 4)}):
        changed = full.replace(**change)
        assert (changed.calibration, changed.evidence) == (None, {})
    again = full.replace(scales=[1, 1], calibration={"unit": "bit"})
    assert (again.calibration, again.evidence) == ({"unit": "bit"}, {"kl": 1.0})
    assert full.replace(phase="response", evidence={"a": 1}).evidence == {"a": 1}
    with pytest.raises(MlxsteerError, match="unknown site 'x'"):
        full.replace(site="x")


def test_restrict() -> None:
    clamp = make(op="clamp", targets=[1, 2])
    assert clamp.restrict([3]).layers == (3,)
    np.testing.assert_array_equal(clamp.restrict([3]).targets, [2])
    np.testing.assert_array_equal(clamp.restrict([3]).rows()[3], clamp.rows()[3])
    feature = make(**FEATURE).restrict([3])
    np.testing.assert_array_equal(feature.encoders, [FEATURE["encoders"][1]])
    np.testing.assert_array_equal(feature.encoder_biases, [0])
    assert make().restrict([3, 1, 3]) == make()
    for wrong in ([2], [1, 2], []):
        with pytest.raises(UsageError, match=rf"has no layers \{wrong}: choose from 1, 3"):
            make().restrict(wrong)


# Models


def test_check(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlxsteer")
    make().check(MODEL)
    make(model=None).check(ModelRef("any/model", "", "qwen3", 9, WIDTH, "", ""))
    assert caplog.messages == []
    make().check(ModelRef("tiny/random", "0", "llama", 6, WIDTH, "4bit-g64", "bfloat16"))
    assert caplog.messages == [
        "vector 'joyful': same model, other packing: quantization none -> 4bit-g64"
    ]


@pytest.mark.parametrize(
    ("vector", "model", "words"),
    [
        (make(), ModelRef("a/b", "", "llama", 6, 8, "", ""), "has width 4, a/b has 8"),
        (make(), ModelRef("a/b", "", "llama", 9, WIDTH, "", ""), "is for 6 layers, a/b has 9"),
        (
            make(model=None),
            ModelRef("a/b", "", "llama", 3, WIDTH, "", ""),
            "steers layer 3, a/b has 3 layers",
        ),
        (
            make(),
            ModelRef("a/b", "", "llama", 6, WIDTH, "", ""),
            r"is from tiny/random \(llama\), not from a/b \(llama\)",
        ),
    ],
)
def test_a_model_that_does_not_fit_is_named(vector: Vector, model: ModelRef, words: str) -> None:
    with pytest.raises(MlxsteerError, match=f"vector 'joyful' {words}.*: extract it on this model"):
        vector.check(model)


# Files (the bytes: test_vector_file.py)


@given(v=VECTORS.filter(lambda v: not v.is_zero))
def test_what_is_saved_reads_back(v: Vector, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "v.safetensors"
    v.save(path)
    assert read_vector(path) == v


def test_every_field_reads_back(tmp_path: Path) -> None:
    full = make(
        name="Freude ☺",
        site="mlp_out",
        phase="5:20",
        method="mean_diff",
        token="last",
        pairs_sha256="a" * 64,
        n_pairs=48,
        template={"thinking": False},
        evidence={"nested": {"list": [1, 2.5, None, True, "x"]}},
        calibration={"budget": 1.0},
        license="MIT",
        tool="mlxsteer 9.9.9",
    )
    full = full.replace(**FEATURE | {"op": "cap", "targets": [1.5, 0]})
    path = str(tmp_path / "full.safetensors")
    full.save(path)
    found = read_vector(path)
    assert found == full
    assert found.record() == full.record()
    for key in ("directions", "scales", "targets", "encoders", "encoder_biases"):
        np.testing.assert_array_equal(getattr(found, key), getattr(full, key))
        assert not getattr(found, key).flags.writeable


def test_saving_again_is_the_same_file(tmp_path: Path) -> None:
    make().save(tmp_path / "a.safetensors")
    read_vector(tmp_path / "a.safetensors").save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()


def test_a_vector_file_is_named_so(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"joy\.pt: name it \.safetensors"):
        make().save(tmp_path / "joy.pt")
    assert list(tmp_path.iterdir()) == []
