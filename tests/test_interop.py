"""llama.cpp control vectors; the gguf package reads what we write and writes what we read."""

import logging
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_vector_file import GOLDEN, small_disk

from mlxsteer import gguf_families
from mlxsteer.arch import FAMILIES
from mlxsteer.errors import MlxsteerError, UsageError
from mlxsteer.interop import load_vector, read_control_vector, write_control_vector
from mlxsteer.vector import ModelRef, Vector, read_vector

WIDTH = 36  # no multiple of 8: rows do not end where GGUF aligns the next one
ROWS = {
    layer: np.random.default_rng(layer).normal(size=WIDTH).astype(np.float32)
    for layer in (1, 2, 11)
}


def vector(**fields: Any) -> Vector:
    model = ModelRef("tiny/random", "0", "llama", 12, WIDTH, "none", "float32")
    return Vector.from_rows("joyful", ROWS, **{"model": model, **fields})


def foreign(
    path: Path,
    rows: dict[str, np.ndarray],
    architecture: str = "controlvector",
    hint: str | None = "qwen2",
) -> Path:
    """What repeng writes: the gguf package with the two metadata keys."""
    writer = gguf.GGUFWriter(path, architecture)
    if hint is not None:
        writer.add_string("controlvector.model_hint", hint)
    writer.add_uint32("controlvector.layer_count", len(rows))
    for name, row in rows.items():
        writer.add_tensor(name, row)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


# Writing


def test_the_gguf_package_reads_what_we_write(tmp_path: Path) -> None:
    path = tmp_path / "joy.gguf"
    write_control_vector(vector(), path)
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert fields["general.architecture"] == "controlvector"
    assert fields["controlvector.model_hint"] == "llama"
    assert fields["controlvector.layer_count"] == 3
    found = {tensor.name: tensor for tensor in reader.tensors}
    assert sorted(found) == ["direction.1", "direction.11", "direction.2"]
    for layer, row in vector().rows().items():
        tensor = found[f"direction.{layer}"]
        assert tensor.tensor_type == gguf.GGMLQuantizationType.F32
        assert list(tensor.shape) == [WIDTH]
        np.testing.assert_array_equal(tensor.data, row)
        np.testing.assert_allclose(tensor.data, ROWS[layer], rtol=3e-7)
    assert list(tmp_path.iterdir()) == [path]


def test_layers_keep_their_numbers(tmp_path: Path) -> None:
    """direction.N acts on block N: a file shifted by one layer is another vector."""
    write_control_vector(vector(), tmp_path / "joy.gguf")
    assert read_control_vector(tmp_path / "joy.gguf").layers == (1, 2, 11)


def test_the_hint_can_be_given(tmp_path: Path) -> None:
    write_control_vector(vector(model=None), tmp_path / "joy.gguf", model_hint="gemma3")
    fields = gguf.GGUFReader(tmp_path / "joy.gguf").fields
    assert fields["controlvector.model_hint"].contents() == "gemma3"


@pytest.mark.parametrize("model_type", [f for f in FAMILIES if f != "deepseek_v4"])  # ds4's alone
def test_the_hint_is_llama_cpps_word(tmp_path: Path, model_type: str) -> None:
    model = ModelRef("tiny/random", "0", model_type, 12, WIDTH, "none", "float32")
    write_control_vector(vector(model=model), tmp_path / "joy.gguf")
    hint = gguf.GGUFReader(tmp_path / "joy.gguf").fields["controlvector.model_hint"].contents()
    assert hint in gguf.MODEL_ARCH_NAMES.values()
    assert hint in gguf_families.FAMILIES
    assert hint == model_type.replace("_text", "").replace("_", "").replace("mistral", "llama")
    told = read_control_vector(tmp_path / "joy.gguf").method.removeprefix("control vector of ")
    assert ModelRef("", "", told, 12, WIDTH, "", "").same_model(model)


@pytest.mark.parametrize(
    ("refused", "words"),
    [
        (vector(op="project"), "'joyful' .* op project cannot be written, only add"),
        (vector(op="cap", targets=[1, 1, 1]), "op cap cannot be written"),
        (vector(site="mlp_out"), "site mlp_out cannot be written; extract it at resid_post"),
        (vector(phase="response"), r"phase response cannot be written; replace\(phase='all'\)"),
        (
            Vector.from_rows("joyful", {0: ROWS[1], 4: ROWS[1]}),
            r"layer 0 cannot be written; restrict it to \[4\]",
        ),
        (Vector.from_rows("joyful", {0: ROWS[1]}), "only layer 0, which cannot be written"),
        (vector() - vector(), "it is zero; there is nothing to write"),
    ],
)
def test_what_llama_cpp_cannot_do_is_named(tmp_path: Path, refused: Vector, words: str) -> None:
    with pytest.raises(MlxsteerError, match=words) as caught:
        write_control_vector(refused, tmp_path / "joy.gguf", "llama")
    assert len(str(caught.value).splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_hint_and_name_are_asked_for(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="'joyful' has no model: give model_hint"):
        write_control_vector(vector(model=None), tmp_path / "joy.gguf")
    with pytest.raises(UsageError, match=r"joy.bin: name a control vector \.gguf"):
        write_control_vector(vector(), tmp_path / "joy.bin")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    path = tmp_path / "none" / "joy.gguf"
    with pytest.raises(MlxsteerError, match=f"^{path} cannot be written: No such file"):
        write_control_vector(vector(), path)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "joy.gguf"
    path.write_bytes(b"old")
    large = Vector.from_rows("v", {n: np.ones(WIDTH) for n in range(1, 40)})
    with pytest.raises(MlxsteerError, match=f"^{path} cannot be written: "), small_disk():
        write_control_vector(large, path, "llama")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


# Reading


def test_we_read_what_the_gguf_package_writes(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlxsteer")
    rows = {f"direction.{n}": row for n, row in ROWS.items()}
    path = foreign(tmp_path / "joy.gguf", {**rows, "direction.5": np.zeros(WIDTH, np.float32)})
    found = read_control_vector(path)
    assert found.layers == (1, 2, 11)
    assert (found.name, found.op, found.site, found.phase) == ("joy", "add", "resid_post", "all")
    assert not found.calibrated
    assert found.model is None
    assert found.method == "control vector of qwen2"
    for layer, row in ROWS.items():
        np.testing.assert_allclose(found.rows()[layer], row, rtol=3e-7)
        i = found.layers.index(layer)
        np.testing.assert_allclose(found.scales[i], np.linalg.norm(row), rtol=1e-6)
    assert caplog.messages == [
        f"{path}: a control vector for qwen2, uncalibrated: strength 1 adds its rows as stored"
    ]


def test_there_and_back(tmp_path: Path) -> None:
    write_control_vector(vector(), tmp_path / "a.gguf")
    once = read_control_vector(tmp_path / "a.gguf")
    write_control_vector(once, tmp_path / "b.gguf", "llama")
    twice = read_control_vector(tmp_path / "b.gguf")
    assert once.layers == twice.layers == vector().layers
    for layer, row in vector().rows().items():
        for other in (once, twice):
            np.testing.assert_allclose(other.rows()[layer], row, rtol=3e-7)


def test_an_import_is_saved_as_any_vector(tmp_path: Path) -> None:
    write_control_vector(vector(), tmp_path / "a.gguf")
    found = read_control_vector(tmp_path / "a.gguf")
    found.save(tmp_path / "a.safetensors")
    assert read_vector(tmp_path / "a.safetensors") == found


def test_a_file_without_hint_is_read(tmp_path: Path) -> None:
    path = foreign(tmp_path / "a\tb.gguf", {"direction.1": ROWS[1]}, hint=None)
    found = read_control_vector(path)
    assert found.method == "control vector of an unknown model type"
    assert found.name == "a b"


def test_the_files_of_repeng_are_read(tmp_path: Path) -> None:
    """Its export names the model type, counts the layers, and writes them in the order they came.

    repeng reads the output of the 0-based block N for direction N, which is where ours acts.
    """
    rows = {f"direction.{n}": np.full(WIDTH, n, np.float32) for n in (11, 3, 7)}
    path = foreign(tmp_path / "happy.gguf", rows, hint="mistral")
    fields = gguf.GGUFReader(path).fields
    assert [name for name in fields if not name.startswith("GGUF.")] == [
        "general.architecture",
        "controlvector.model_hint",
        "controlvector.layer_count",
    ]
    found = load_vector(path)
    assert found.layers == (3, 7, 11)
    assert found.method == "control vector of mistral"
    for layer in found.layers:  # the sign and the number of every layer survive
        np.testing.assert_allclose(found.rows()[layer], np.full(WIDTH, layer), rtol=3e-7)
    write_control_vector(found, tmp_path / "again.gguf", "mistral")
    ours = {t.name: t.data.tolist() for t in gguf.GGUFReader(tmp_path / "again.gguf").tensors}
    assert ours.keys() == rows.keys()
    for name, row in rows.items():
        np.testing.assert_allclose(ours[name], row, rtol=3e-7)


ROW = ROWS[1]
HOSTILE: dict[str, tuple[dict[str, np.ndarray], str, str]] = {
    "a model": ({"token_embd.weight": ROW}, "llama", "its architecture is 'llama'.*goes to -m"),
    "no directions": ({}, "controlvector", "no direction.N"),
    "another tensor": ({"output.weight": ROW}, "controlvector", "'output.weight' is no direction"),
    "leading zero": ({"direction.01": ROW}, "controlvector", "'direction.01' is no direction.N"),
    "no number": ({"direction.x": ROW}, "controlvector", "'direction.x' is no direction.N"),
    "layer 0": ({"direction.0": ROW, "direction.1": ROW}, "controlvector", "direction.0 is in no"),
    "half": ({"direction.1": ROW.astype(np.float16)}, "controlvector", r"is F16 \[36\]"),
    "matrix": ({"direction.1": np.ones((2, 8), np.float32)}, "controlvector", r"F32 \[2, 8\]"),
    "widths": (
        {"direction.1": ROW, "direction.2": ROW[:8]},
        "controlvector",
        "direction.2 has width 8, the others 36",
    ),
    "NaN": ({"direction.3": ROW * np.float32(np.nan)}, "controlvector", "layer 3 have NaN"),
    "zeros": ({"direction.3": ROW * 0}, "controlvector", "all its 1 directions are zero"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_control_vector_is_refused_by_name(tmp_path: Path, name: str) -> None:
    rows, architecture, words = HOSTILE[name]
    path = foreign(tmp_path / "joy.gguf", rows, architecture)
    for read in (read_control_vector, load_vector):
        with pytest.raises(MlxsteerError, match=words) as caught:
            read(path)
        assert str(caught.value).startswith(f"{path}: ")
        assert len(str(caught.value).splitlines()) == 1


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("control")
    write_control_vector(vector(), folder / "good.gguf")
    return folder / "bad.gguf", (folder / "good.gguf").read_bytes()


@given(data=st.data())
def test_damaged_files_are_refused_in_one_line(
    scratch: tuple[Path, bytes], data: st.DataObject
) -> None:
    """There is no hash in the format: a changed number passes, anything else has one line."""
    path, good = scratch
    at = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans(), label="cut"):
        path.write_bytes(good[:at])
        with pytest.raises(MlxsteerError):
            load_vector(path)
        return
    path.write_bytes(good[:at] + data.draw(st.binary(min_size=1, max_size=9)) + good[at + 1 :])
    try:
        found = load_vector(path)
    except MlxsteerError:
        with pytest.raises(MlxsteerError) as caught:
            load_vector(path)
        assert len(str(caught.value).splitlines()) == 1
        return
    assert np.isfinite(found.directions).all()


@given(data=st.binary(max_size=80))
def test_random_bytes_are_refused(scratch: tuple[Path, bytes], data: bytes) -> None:
    path, _ = scratch
    for magic in (b"", b"GGUF", b"GGUF\x03\0\0\0"):
        path.write_bytes(magic + data)
        with pytest.raises(MlxsteerError):
            load_vector(path)


# Any file


def test_load_vector_goes_by_content(tmp_path: Path) -> None:
    write_control_vector(vector(), tmp_path / "joy.gguf")
    (tmp_path / "blob").write_bytes((tmp_path / "joy.gguf").read_bytes())
    assert load_vector(tmp_path / "joy.gguf").layers == (1, 2, 11)
    assert load_vector(tmp_path / "blob").layers == (1, 2, 11)
    (tmp_path / "wrong.gguf").write_bytes(GOLDEN.read_bytes())
    assert load_vector(GOLDEN) == load_vector(str(tmp_path / "wrong.gguf")) == read_vector(GOLDEN)


def test_load_vector_checks_the_width(tmp_path: Path) -> None:
    write_control_vector(vector(), tmp_path / "joy.gguf")
    assert load_vector(tmp_path / "joy.gguf", hidden_size=WIDTH).hidden_size == WIDTH
    for path, width in ((tmp_path / "joy.gguf", WIDTH), (GOLDEN, 4)):
        with pytest.raises(MlxsteerError, match=f"{path}: it has width {width}, not 7: it is for"):
            load_vector(path, hidden_size=7)


def test_features_and_layers_are_for_autoencoders(tmp_path: Path) -> None:
    write_control_vector(vector(), tmp_path / "joy.gguf")
    for path in (tmp_path / "joy.gguf", GOLDEN):
        with pytest.raises(UsageError, match="layer 3 is for a feature of an SAE: leave it out"):
            load_vector(path, layer=3)
        with pytest.raises(UsageError, match="op 'cap' is for a feature of an SAE"):
            load_vector(path, op="cap", target=1.0)
        with pytest.raises(UsageError, match=r"target 1\.0 is for a feature of an SAE"):
            load_vector(path, target=1.0)
        with pytest.raises(MlxsteerError, match=r"it is no SAE|it is a GGUF file"):
            load_vector(path, feature=3)


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("joy.pt", b"\x80\x02}q\x00.", "it is a pickle, .*use .safetensors or .gguf"),
        ("joy.pkl", b"\x80\x05}\x94.", "it is a pickle"),
        ("joy.pt", b"PK\x03\x04" + bytes(20), "it is a zip archive of pickles .*torch .pt"),
        ("joy.bin", bytes(400), "it is no vector file, it begins with"),
        ("joy.gguf", b"GGML" + bytes(60), "it is no vector file, it begins with b'GGML"),
        ("joy.txt", b"", "it is no vector file"),
    ],
)
def test_load_vector_refuses_the_rest_by_name(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MlxsteerError, match=words) as caught:
        load_vector(tmp_path / name)
    assert str(caught.value).startswith(str(tmp_path / name))


def test_reading_needs_no_mlx(tmp_path: Path) -> None:
    write_control_vector(vector(), tmp_path / "joy.gguf")
    code = (
        "import sys; from mlxsteer.interop import load_vector; "
        f"load_vector({str(tmp_path / 'joy.gguf')!r}); load_vector({str(GOLDEN)!r}); "
        "print('mlx' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
