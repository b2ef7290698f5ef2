"""ds4's directions: the bytes, the sign, and what the edit does, against ds4's own equation."""

import json
import logging
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.interop import load_vector, read_ds4, write_ds4
from mlxsteer.plan import taps
from mlxsteer.steering import Acting
from mlxsteer.vector import ModelRef, Vector

WIDTH, LAYERS = 4, 4
# layers 1 and 3 of 4: [0.6, 0, -0.8, 0] and [0, 1, 0, 0], as little-endian float32
ROW_1 = bytes.fromhex("9a99193f00000000cdcc4cbf00000000")
ROW_3 = bytes.fromhex("000000000000803f0000000000000000")
GOLDEN = bytes(16) + ROW_1 + bytes(16) + ROW_3
MODEL = ModelRef("tiny/random", "0", "llama", LAYERS, WIDTH, "none", "float32")
X = np.array([[1.0, -2.0, 3.0, 0.5], [0.0, 4.0, 1.0, -1.0]])


def vector(**fields: Any) -> Vector:
    given_fields: dict[str, Any] = {
        "name": "verbosity",
        "layers": (1, 3),
        "directions": np.array([[0.6, 0, -0.8, 0], [0, 1, 0, 0]], np.float32),
        "scales": np.ones(2, np.float32),
        "op": "project",
        "site": "mlp_out",
        "model": MODEL,
    }
    return Vector(**{**given_fields, **fields})


def golden(folder: Path, data: bytes = GOLDEN) -> Path:
    path = folder / "verbosity.f32"
    path.write_bytes(data)
    return path


def ours(v: Vector, strength: float, layer: int) -> np.ndarray:
    """What a strength of the vector makes of `X` where the feed-forward part of a block joins."""
    table = taps(((Acting(v, strength),),))
    edited = table.at(layer, "mlp").write(mx.array(X[None].astype(np.float32)))
    return np.array(edited[0])


def theirs(data: bytes, scale: float, layer: int) -> np.ndarray:
    """What ds4 makes of `X` with this file: y - scale * d * dot(d, y)."""
    d = np.frombuffer(data, "<f4").reshape(LAYERS, WIDTH)[layer].astype(np.float64)
    return X - scale * np.outer(X @ d, d)


def same_edit(v: Vector, strength: float, scale: float, shift: int = 0) -> bool:
    return all(
        np.allclose(ours(v, strength, n), theirs(GOLDEN, scale, (n + shift) % LAYERS), atol=1e-6)
        for n in range(LAYERS)
    )


# Reading


def test_the_file_is_read_as_a_projection(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "mlxsteer")
    path = golden(tmp_path)
    found = read_ds4(path, WIDTH)
    assert (found.layers, found.op, found.site, found.phase) == (
        (1, 3),
        "project",
        "mlp_out",
        "all",
    )
    assert (found.name, found.positive, found.negative) == (
        "verbosity",
        "without verbosity",
        "verbosity",
    )
    assert not found.calibrated
    assert found.model is None
    np.testing.assert_array_equal(found.directions, vector().directions)
    np.testing.assert_array_equal(found.scales, [1, 1])
    assert caplog.messages == [
        f"{path}: directions of ds4, uncalibrated: strength 1 removes them, -1 doubles them"
    ]
    assert load_vector(path, hidden_size=WIDTH) == found


@pytest.mark.parametrize("strength", [1.0, -1.0, 0.5, 2.0])
def test_a_strength_does_what_the_scale_does_there(tmp_path: Path, strength: float) -> None:
    found = read_ds4(golden(tmp_path), WIDTH)
    assert same_edit(found, strength, strength)


def test_another_sign_or_layer_is_another_edit(tmp_path: Path) -> None:
    """The twin: the comparison sees a strength of the other sign, and rows shifted by a layer."""
    found = read_ds4(golden(tmp_path), WIDTH)
    assert not same_edit(found, 1, -1)
    assert not same_edit(found, -1, 1)
    assert not same_edit(found, 1, 1, shift=1)
    assert not same_edit(found, 1, 1, shift=-1)


def test_one_removes_and_minus_one_doubles(tmp_path: Path) -> None:
    found = read_ds4(golden(tmp_path), WIDTH)
    d = found.directions[1]
    np.testing.assert_allclose(ours(found, 1, 3) @ d, 0, atol=1e-6)
    np.testing.assert_allclose(ours(found, -1, 3) @ d, 2 * (X @ d), atol=1e-6)


def test_the_builders_json_says_width_and_site(tmp_path: Path) -> None:
    path = golden(tmp_path)
    said = {"format": "ds4-directional-steering-v1", "shape": [4, 4], "component": "attn_out"}
    path.with_suffix(".json").write_text(json.dumps(said))
    found = load_vector(path)
    assert (found.site, found.hidden_size, found.layers) == ("attn_out", 4, (1, 3))
    assert read_ds4(path, WIDTH) == found
    with pytest.raises(MlxsteerError, match=r"its \.json says width 4, the model has 16"):
        read_ds4(path, 16)
    path.with_suffix(".json").write_text(json.dumps({"shape": [1, 16]}))  # somebody else's
    assert read_ds4(path, WIDTH).site == "mlp_out"


@pytest.mark.parametrize(
    ("said", "words"),
    [
        ({"shape": [4, 4], "component": "resid"}, "component is 'resid': use ffn_out or attn_out"),
        ({"shape": [4, 4], "component": ["x"]}, r"component is \['x'\]"),
        ({"shape": 16}, "shape is 16"),
        ({"shape": [4, True]}, r"shape is \[4, True\]"),
        ({"shape": [4, -4]}, "hidden_size is -4"),
        ({"shape": [4, 5]}, "64 bytes are no rows of 5 float32"),
    ],
)
def test_a_wrong_json_is_named(tmp_path: Path, said: dict[str, Any], words: str) -> None:
    path = golden(tmp_path)
    said = {"format": "ds4-directional-steering-v1", **said}
    path.with_suffix(".json").write_text(json.dumps(said))
    with pytest.raises(MlxsteerError, match=words):
        load_vector(path)


def test_a_damaged_json_is_named(tmp_path: Path) -> None:
    path = golden(tmp_path)
    path.with_suffix(".json").write_bytes(b"\xff{")
    with pytest.raises(MlxsteerError, match=r"verbosity.json: it is not JSON"):
        load_vector(path)


@pytest.mark.parametrize(
    ("data", "width", "words"),
    [
        (GOLDEN, None, "does not say its width: give that of the model"),
        (GOLDEN, 0, "hidden_size is 0"),
        (GOLDEN, True, "hidden_size is True"),
        (GOLDEN, 5, "64 bytes are no rows of 5 float32 numbers .*: it is cut off, or for another"),
        (GOLDEN, 32, "64 bytes are no rows of 32"),
        (GOLDEN[:-1], WIDTH, "63 bytes are no rows of 4"),
        (b"", WIDTH, "0 bytes are no rows"),
        (bytes(4 * 1025), 1, "4100 bytes are no rows of 1 float32 numbers for 1 to 1024 layers"),
        (bytes(64), WIDTH, "all its 4 rows are zero"),
        (ROW_1 + ROW_3, 8, "the row of layer 0 has norm 1.41421, not 1: .* width is not 8"),
        (GOLDEN, 2, "the row of layer 2 has norm 0.6, not 1: .* the model's width is not 2"),
        (ROW_1 + bytes.fromhex("0000c07f") + bytes(12), WIDTH, "row of layer 1 has NaN"),
        (ROW_1 + bytes.fromhex("0000807f") + bytes(12), WIDTH, "row of layer 1 has NaN or inf"),
        (ROW_1 + bytes.fromhex("0000003f") + bytes(12), WIDTH, "layer 1 has norm 0.5, not 1"),
        (ROW_3[::-1], WIDTH, "layer 0 has norm .*, not 1"),
    ],
)
def test_what_is_no_file_of_ds4_is_named(
    tmp_path: Path, data: bytes, width: int | None, words: str
) -> None:
    path = golden(tmp_path, data)
    for read in (lambda: read_ds4(path, width), lambda: load_vector(path, hidden_size=width)):
        with pytest.raises(MlxsteerError, match=words) as caught:
            read()
        assert len(str(caught.value).splitlines()) == 1


def test_no_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MlxsteerError, match=r"absent\.f32 cannot be read: No such file"):
        read_ds4(tmp_path / "absent.f32", WIDTH)


@given(data=st.binary(max_size=200), width=st.integers(1, 8))
def test_random_bytes_are_refused_or_unit_rows(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, width: int
) -> None:
    path = golden(tmp_path_factory.getbasetemp(), data)
    try:
        found = read_ds4(path, width)
    except MlxsteerError:
        with pytest.raises(MlxsteerError) as caught:
            read_ds4(path, width)
        assert len(str(caught.value).splitlines()) == 1
        return
    np.testing.assert_allclose(np.linalg.norm(found.directions, axis=1), 1, atol=1e-4)


# Writing


def test_golden_bytes(tmp_path: Path) -> None:
    path = tmp_path / "verbosity.f32"
    write_ds4(vector(), path)
    assert path.read_bytes() == GOLDEN
    assert list(tmp_path.iterdir()) == [path]


def test_the_attention_is_written_with_a_remark(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "verbosity.f32"
    caplog.set_level(logging.INFO, "mlxsteer")
    write_ds4(vector(site="attn_out"), path)
    assert path.read_bytes() == GOLDEN
    assert "--dir-steering-attn" in caplog.text
    assert read_ds4(path, WIDTH).site == "mlp_out"
    assert read_ds4(path, WIDTH, "attn_out").site == "attn_out"
    assert load_vector(path, hidden_size=WIDTH, site="attn_out").site == "attn_out"
    with pytest.raises(UsageError, match="site is 'resid_post': ds4 edits mlp_out or attn_out"):
        read_ds4(path, WIDTH, "resid_post")
    with pytest.raises(UsageError, match=r"x\.gguf: site 'attn_out' is for ds4's \.f32"):
        load_vector(tmp_path / "x.gguf", site="attn_out")


def test_there_and_back_is_the_same_file(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).normal(size=(43, 64))
    rows[[0, 7]] = 0
    rows[1:] /= np.maximum(np.linalg.norm(rows[1:], axis=1, keepdims=True), 1e-9)
    data = rows.astype("<f4").tobytes()
    found = read_ds4(golden(tmp_path, data), 64)
    assert found.layers == tuple(n for n in range(43) if n not in (0, 7))
    write_ds4(found, tmp_path / "again.f32", 43)
    assert (tmp_path / "again.f32").read_bytes() == data


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"op": "add"}, "op add cannot be written, only project"),
        ({"op": "clamp", "targets": [1, 1]}, "op clamp cannot be written"),
        ({"site": "resid_post"}, "site resid_post cannot be written; extract it at mlp_out"),
        ({"site": "resid_mid"}, "site resid_mid cannot be written"),
        ({"phase": "response"}, r"phase response cannot be written; replace\(phase='all'\)"),
        ({"scales": [1, 0.5]}, "the scale of layer 3 is 0.5; ds4 has none, replace it by 1"),
        (
            {"encoders": np.eye(2, 4), "encoder_biases": [0, 0]},
            "its encoder cannot be written; use it with mlxsteer",
        ),
        (
            {"layers": (), "directions": np.zeros((0, 4)), "scales": []},
            "it is zero; there is nothing to write",
        ),
    ],
)
def test_what_ds4_cannot_do_is_named(tmp_path: Path, fields: dict[str, Any], words: str) -> None:
    with pytest.raises(MlxsteerError, match=f"'verbosity' is no file of ds4: {words}") as caught:
        write_ds4(vector(**fields), tmp_path / "verbosity.f32")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "verbosity.f32"
    with pytest.raises(
        UsageError, match="'verbosity' does not say how many layers its model has: give n"
    ):
        write_ds4(vector(model=None), path)
    for count in (3, 0, 4.0, 2000):
        with pytest.raises(
            UsageError, match=f"n_layers is {count}, vector 'verbosity' has layer 3"
        ):
            write_ds4(vector(), path, count)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"verbosity.bin: name a file of ds4 \.f32"):
        write_ds4(vector(), tmp_path / "verbosity.bin")
    with pytest.raises(MlxsteerError, match="cannot be written"):
        write_ds4(vector(), tmp_path / "none" / "verbosity.f32")
    assert list(tmp_path.iterdir()) == []
