"""Blocks of GGUF tensors: decoded as llama.cpp's own package does, packed as MLX does, exactly."""

from pathlib import Path

import gguf
import mlx.core as mx
import numpy as np
import pytest

from mlxsteer.errors import MlxsteerError
from mlxsteer.gguf import Header, read_header
from mlxsteer.gguf_tensors import PACKED_BITS, READABLE, dense, packed

ROWS, COLUMNS = 12, 512
# Where the float16 scales of a block are: they must be finite, all other bits may be anything.
HALVES = {
    "Q2_K": (80, 82),
    "Q3_K": (108,),
    "Q4_0": (0,),
    "Q4_1": (0, 2),
    "Q4_K": (0, 2),
    "Q5_0": (0,),
    "Q5_1": (0, 2),
    "Q5_K": (0, 2),
    "Q6_K": (208,),
    "Q8_0": (0,),
}


def random_blocks(kind: gguf.GGMLQuantizationType) -> np.ndarray:
    """Rows of random bytes, so that every bit of a block matters to the result."""
    rng = np.random.default_rng(0)
    if kind.name not in HALVES:
        return gguf.quants.quantize(rng.normal(size=(ROWS, COLUMNS)).astype(np.float32), kind)
    block, width = gguf.GGML_QUANT_SIZES[kind]
    raw = rng.integers(0, 256, (ROWS * COLUMNS // block, width), np.uint8)
    for at in HALVES[kind.name]:
        halves = rng.normal(size=(len(raw), 1)).astype(np.float16)
        raw[:, at : at + 2] = halves.view(np.uint8)
    return raw.reshape(ROWS, -1)


def written(path: Path, kind: str, blocks: np.ndarray | None = None) -> tuple[Header, np.ndarray]:
    """A file with one tensor, and its values as llama.cpp's package decodes them."""
    quantized = gguf.GGMLQuantizationType[kind]
    blocks = random_blocks(quantized) if blocks is None else blocks
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("t.weight", blocks, raw_dtype=quantized)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with np.errstate(all="ignore"):
        return read_header(path), gguf.quants.dequantize(blocks, quantized)


@pytest.mark.parametrize("kind", READABLE)
def test_decoded_exactly(kind: str, tmp_path: Path) -> None:
    header, expected = written(tmp_path / "t.gguf", kind)
    found = dense(header, "t.weight")
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("kind", READABLE)
def test_in_another_order_and_in_small_parts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlxsteer.gguf_tensors.CHUNK", 5 * COLUMNS)
    header, expected = written(tmp_path / "t.gguf", kind)
    order = np.random.default_rng(1).permutation(ROWS)
    np.testing.assert_array_equal(dense(header, "t.weight", order), expected[order])


@pytest.mark.parametrize("kind", PACKED_BITS)
def test_packed_as_mlx_packs(kind: str, tmp_path: Path) -> None:
    header, expected = written(tmp_path / "t.gguf", kind)
    parts = packed(header, "t.weight")
    theirs = mx.load(str(tmp_path / "t.gguf"))
    assert isinstance(theirs, dict)
    for name, array in parts._asdict().items():
        np.testing.assert_array_equal(array, np.array(theirs[f"t.{name}"]))
    scales, biases = (mx.array(a).astype(mx.float32) for a in (parts.scales, parts.biases))
    again = mx.dequantize(mx.array(parts.weight), scales, biases, 32, PACKED_BITS[kind])
    np.testing.assert_array_equal(np.array(again), expected)


@pytest.mark.parametrize("kind", PACKED_BITS)
def test_packed_in_another_order_and_in_small_parts(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    header, _ = written(tmp_path / "t.gguf", kind)
    order = np.random.default_rng(1).permutation(ROWS)
    whole = packed(header, "t.weight")
    monkeypatch.setattr("mlxsteer.gguf_tensors.CHUNK", 5 * COLUMNS)
    for part, expected in zip(packed(header, "t.weight", order), whole, strict=True):
        np.testing.assert_array_equal(part, expected[order])


def test_a_vector_stays_a_vector(tmp_path: Path) -> None:
    header, expected = written(tmp_path / "t.gguf", "F32", np.arange(5, dtype=np.float32))
    np.testing.assert_array_equal(dense(header, "t.weight"), expected)
    assert dense(header, "t.weight").shape == (5,)


def test_other_types_are_refused_by_name(tmp_path: Path) -> None:
    blocks = np.zeros((1, 2 * 66), np.uint8)
    header, _ = written(tmp_path / "t.gguf", "IQ2_XXS", blocks)
    with pytest.raises(MlxsteerError, match=r"'t.weight' is of the type IQ2_XXS, .* take a file"):
        dense(header, "t.weight")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q6_K"])
def test_weights_that_are_no_numbers_are_refused(kind: str, value: float, tmp_path: Path) -> None:
    blocks = random_blocks(gguf.GGMLQuantizationType[kind])
    if kind in HALVES:
        _, width = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
        at = HALVES[kind][-1]
        raw = blocks.reshape(-1, width)
        raw[-1, at : at + 2] = np.array([value], np.float16).view(np.uint8)
    else:
        rows = np.ones((ROWS, COLUMNS), np.float32)
        rows[-1, -1] = value
        blocks = gguf.quants.quantize(rows, gguf.GGMLQuantizationType[kind])
    header, _ = written(tmp_path / "t.gguf", kind, blocks)
    with pytest.raises(MlxsteerError, match=r"'t\.weight' holds NaN or infinity"):
        dense(header, "t.weight")
    if kind in PACKED_BITS:
        with pytest.raises(MlxsteerError, match=r"'t\.weight' holds NaN or infinity"):
            packed(header, "t.weight")
