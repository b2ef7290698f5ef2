"""The header of a GGUF file: what llama.cpp's own reader sees, and nothing of a bad file."""

import struct
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
from hostile.models import GGUF_HEADERS
from hypothesis import given
from hypothesis import strategies as st
from tiny_gguf import weights, write_gguf

from mlxsteer.errors import MlxsteerError
from mlxsteer.gguf import GGML_TYPES, read_header


def agree(path: Path) -> None:
    """Our header and the reader of llama.cpp's Python package say the same."""
    header, theirs = read_header(path), gguf.GGUFReader(path)
    assert header.metadata == {
        key: field.contents() for key, field in theirs.fields.items() if not key.startswith("GGUF.")
    }
    assert list(header.tensors) == [tensor.name for tensor in theirs.tensors]
    for tensor in theirs.tensors:
        info = header.tensors[tensor.name]
        assert info.shape == tuple(tensor.shape.tolist()[::-1])
        assert info.type == tensor.tensor_type.name
        assert (info.offset, info.nbytes) == (tensor.data_offset, tensor.n_bytes)


@pytest.fixture(scope="module")
def model_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "tiny.gguf", weights(), "Q8_0")


def test_every_kind_of_value(tmp_path: Path) -> None:
    path = tmp_path / "values.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint8("u8", 200)
    writer.add_int8("i8", -7)
    writer.add_uint16("u16", 60000)
    writer.add_int16("i16", -300)
    writer.add_uint32("u32", 4_000_000_000)
    writer.add_int32("i32", -5)
    writer.add_uint64("u64", 1 << 60)
    writer.add_int64("i64", -(1 << 60))
    writer.add_float32("f32", 0.5)
    writer.add_float64("f64", 0.1)
    writer.add_bool("yes", True)
    writer.add_string("text", "a ☠ b")
    writer.add_array("texts", ["", "é", "x" * 1000])
    writer.add_array("wholes", [1, -2, 3])
    writer.add_array("reals", [0.5, -2.0])
    writer.add_array("flags", [True, False])
    writer.add_tensor("vector", np.arange(7, dtype=np.float32))
    writer.add_tensor("cube", np.zeros((2, 3, 4), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    agree(path)


def test_a_model(model_file: Path) -> None:
    agree(model_file)


def test_the_digest_is_of_the_header_alone(model_file: Path, tmp_path: Path) -> None:
    first, raw = read_header(model_file), bytearray(model_file.read_bytes())
    raw[-1] ^= 1
    (tmp_path / "data.gguf").write_bytes(raw)
    assert read_header(tmp_path / "data.gguf").sha256 == first.sha256
    raw[raw.index(b"tiny")] ^= 1
    (tmp_path / "header.gguf").write_bytes(raw)
    assert read_header(tmp_path / "header.gguf").sha256 != first.sha256


def test_version_2_is_laid_out_the_same(model_file: Path, tmp_path: Path) -> None:
    raw = bytearray(model_file.read_bytes())
    raw[4:8] = struct.pack("<I", 2)
    (tmp_path / "old.gguf").write_bytes(raw)
    old, new = read_header(tmp_path / "old.gguf"), read_header(model_file)
    assert (old.version, new.version) == (2, 3)
    assert (old.metadata, old.tensors) == (new.metadata, new.tensors)


def test_block_sizes_are_those_of_ggml() -> None:
    sizes = {q.value: (q.name, *size) for q, size in gguf.GGML_QUANT_SIZES.items()}
    assert {key: sizes[key] for key in GGML_TYPES} == GGML_TYPES


@pytest.mark.parametrize("name", GGUF_HEADERS)
def test_a_bad_header_is_refused(name: str, tmp_path: Path) -> None:
    raw, words = GGUF_HEADERS[name]
    path = tmp_path / "bad.gguf"
    path.write_bytes(raw)
    with pytest.raises(MlxsteerError, match=words) as caught:
        read_header(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(MlxsteerError, match="cannot be read: No such file"):
        read_header(tmp_path / "missing.gguf")
    with pytest.raises(MlxsteerError, match="cannot be read: Is a directory"):
        read_header(tmp_path)


@given(cut=st.floats(0, 1, exclude_max=True))
def test_a_truncated_file_is_always_refused(
    cut: float, model_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = model_file.read_bytes()
    path = tmp_path_factory.getbasetemp() / "cut.gguf"
    path.write_bytes(raw[: int(cut * len(raw))])
    with pytest.raises(MlxsteerError, match=r"download it again$"):
        read_header(path)


@given(where=st.floats(0, 1, exclude_max=True), mask=st.integers(1, 255))
def test_a_flipped_byte_is_read_or_refused(
    where: float, mask: int, model_file: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    raw = bytearray(model_file.read_bytes())
    raw[int(where * read_header(model_file).data_offset)] ^= mask
    path = tmp_path_factory.getbasetemp() / "flipped.gguf"
    path.write_bytes(raw)
    try:
        header = read_header(path)
    except MlxsteerError:
        return
    for info in header.tensors.values():
        assert header.data_offset <= info.offset
        assert info.offset + info.nbytes <= header.file_size == len(raw)


def test_the_default_model(smollm2_gguf: Path) -> None:
    began = time.process_time()
    header = read_header(smollm2_gguf)
    assert time.process_time() - began < 0.5
    assert len(header.metadata["tokenizer.ggml.tokens"]) == 49152
    assert header.metadata["tokenizer.ggml.merges"][-1].count(" ") == 1
    assert len(header.tensors) == 272
    last = max(header.tensors.values(), key=lambda info: info.offset)
    assert 0 <= header.file_size - (last.offset + last.nbytes) < 32
