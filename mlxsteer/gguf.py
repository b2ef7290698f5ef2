"""Read the header of a GGUF file: its metadata and where each tensor lies.

Pure Python with every length checked against the file's size, so that no other reader ever sees a
file which is truncated, damaged or not GGUF at all. It knows nothing of models, tokenizers or MLX:
`gguf_model`, `gguf_tokenizer` and `interop` make something of a header.

Versions 2 and 3, little endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md).
Shapes are in numpy's order, the slowest dimension first: a linear layer is `[out, in]`.

    header = read_header("model.gguf")
    header.metadata["general.architecture"], header.tensors["token_embd.weight"].shape
"""

import hashlib
import mmap
import os
import struct
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from mlxsteer.errors import MlxsteerError

__all__ = ["Header", "TensorInfo", "read_header"]

MAX_DIMENSIONS = 4
MAX_NESTING = 2  # arrays of arrays exist in the specification and in no model
AGAIN = "download it again"

# GGML type id -> (name, weights per block, bytes per block). Ids that are missing were withdrawn.
GGML_TYPES: dict[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
}

# Metadata value types: id -> (struct format, numpy format); string and array have their own.
NUMBERS: dict[int, tuple[str, str]] = {
    0: ("<B", "<u1"),
    1: ("<b", "<i1"),
    2: ("<H", "<u2"),
    3: ("<h", "<i2"),
    4: ("<I", "<u4"),
    5: ("<i", "<i4"),
    6: ("<f", "<f4"),
    7: ("<?", "|b1"),
    10: ("<Q", "<u8"),
    11: ("<q", "<i8"),
    12: ("<d", "<f8"),
}
STRING, ARRAY = 8, 9


@dataclass(frozen=True)
class TensorInfo:
    """One tensor: `shape` in numpy's order, `offset` from the file's first byte."""

    shape: tuple[int, ...]
    type: str
    offset: int
    nbytes: int


@dataclass(frozen=True, eq=False)
class Header:
    """All that a GGUF file says before its tensor data; `sha256` is the digest of those bytes."""

    path: Path
    version: int
    metadata: dict[str, Any]
    tensors: dict[str, TensorInfo]
    data_offset: int
    file_size: int
    sha256: str


def read_header(path: str | os.PathLike[str]) -> Header:
    """Parse and check the header; anything amiss is an MlxsteerError of one line."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size < 24:
                raise MlxsteerError(f"{path} is not a GGUF file: it has {size} bytes; {AGAIN}")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data, size).header()
    except OSError as error:
        raise MlxsteerError(f"{path} cannot be read: {error.strerror or error}") from error


class _Reader:
    """A cursor over the file that never leaves it."""

    def __init__(self, path: Path, data: mmap.mmap, size: int) -> None:
        self.path, self.data, self.size, self.at = path, data, size, 0

    def fail(self, problem: str) -> MlxsteerError:
        return MlxsteerError(f"{self.path}: {problem}; {AGAIN}")

    def need(self, count: int, what: str) -> None:
        if count > self.size - self.at:
            raise self.fail(
                f"truncated or damaged: {what} needs {count} bytes at byte {self.at}, "
                f"the file has {self.size}"
            )

    def number(self, kind: int, what: str) -> Any:
        form = NUMBERS[kind][0]
        width = struct.calcsize(form)
        self.need(width, what)
        (value,) = struct.unpack_from(form, self.data, self.at)
        self.at += width
        return value

    def strings(self, count: int, what: str) -> list[bytes]:
        """`count` strings: a length of 8 bytes, then so many bytes."""
        self.need(8 * count, what)
        data, at, size, length_at = self.data, self.at, self.size, struct.Struct("<Q").unpack_from
        found: list[bytes] = []
        for _ in range(count):
            start = at + 8
            end = start + length_at(data, at)[0] if start <= size else size + 1
            if end > size:
                self.at = min(at, size)
                self.need(end - self.at, what)
            found.append(data[start:end])
            at = end
        self.at = at
        return found

    def name(self, what: str) -> str:
        raw = self.strings(1, what)[0]
        if not raw:
            raise self.fail(f"damaged: {what} is empty")
        try:
            return raw.decode()
        except UnicodeDecodeError:
            raise self.fail(f"damaged: {what} is not UTF-8: {raw[:40]!r}") from None

    def value(self, kind: int, what: str, depth: int = 0) -> Any:
        if kind in NUMBERS:
            return self.number(kind, what)
        if kind == STRING:
            return self.strings(1, what)[0].decode(errors="replace")
        if kind != ARRAY:
            raise self.fail(f"damaged: {what} has the unknown value type {kind}")
        inner, count = self.number(4, what), self.number(10, what)
        if inner in NUMBERS:
            form = np.dtype(NUMBERS[inner][1])
            self.need(count * form.itemsize, what)
            numbers = np.frombuffer(self.data, form, count, self.at).tolist()
            self.at += count * form.itemsize
            return numbers
        if inner == STRING:
            return [raw.decode(errors="replace") for raw in self.strings(count, what)]
        if depth == MAX_NESTING:
            raise self.fail(f"damaged: {what} nests arrays more than {MAX_NESTING} deep")
        self.need(12 * count, what)
        return [self.value(inner, what, depth + 1) for _ in range(count)]

    def header(self) -> Header:
        magic = self.data[:4]
        if magic != b"GGUF":
            raise self.fail(f"not a GGUF file: it begins with {magic!r}")
        self.at = 4
        version = self.number(4, "the version")
        if version not in (2, 3):
            big = " (big endian)" if version in (2 << 24, 3 << 24) else ""
            raise MlxsteerError(
                f"{self.path}: GGUF version {version}{big} is not supported; "
                "take a file of version 2 or 3, little endian"
            )
        n_tensors, n_values = self.number(10, "the tensor count"), self.number(10, "the key count")
        self.need(13 * n_values, f"metadata of {n_values} keys")
        metadata: dict[str, Any] = {}
        for _ in range(n_values):
            key = self.name("a metadata key")
            if key in metadata:
                raise self.fail(f"damaged: the key {key!r} occurs twice")
            metadata[key] = self.value(self.number(4, key), key)
        alignment = metadata.get("general.alignment", 32)
        if type(alignment) is not int or alignment < 1 or alignment & (alignment - 1):
            raise self.fail(f"damaged: general.alignment is {alignment!r}, not a power of two")
        self.need(24 * n_tensors, f"the table of {n_tensors} tensors")
        table: dict[str, tuple[tuple[int, ...], str, int, int]] = {}
        for _ in range(n_tensors):
            name = self.name("a tensor name")
            if name in table:
                raise self.fail(f"damaged: the tensor {name!r} occurs twice")
            table[name] = self.tensor(name, alignment)
        begin = -(-self.at // alignment) * alignment
        tensors: dict[str, TensorInfo] = {}
        for name, (shape, kind, offset, nbytes) in table.items():
            if begin + offset + nbytes > self.size:
                raise self.fail(
                    f"truncated or damaged: tensor {name!r} ends at byte "
                    f"{begin + offset + nbytes}, the file has {self.size}"
                )
            tensors[name] = TensorInfo(shape, kind, begin + offset, nbytes)
        digest = hashlib.sha256(self.data[: self.at]).hexdigest()
        return Header(self.path, version, metadata, tensors, begin, self.size, digest)

    def tensor(self, name: str, alignment: int) -> tuple[tuple[int, ...], str, int, int]:
        """Shape, type, offset from the data section and size of the next table entry."""
        what = f"tensor {name!r}"
        count = self.number(4, what)
        if not 1 <= count <= MAX_DIMENSIONS:
            raise self.fail(f"damaged: {what} has {count} dimensions")
        shape = tuple(self.number(10, what) for _ in range(count))[::-1]
        kind, offset = self.number(4, what), self.number(10, what)
        if kind not in GGML_TYPES:
            raise MlxsteerError(
                f"{self.path}: {what} has the GGML type {kind}, which mlxsteer does not know; "
                "take another quantization of this model"
            )
        label, block, width = GGML_TYPES[kind]
        if 0 in shape or shape[-1] % block:
            raise self.fail(f"damaged: {what} has the shape {shape}, which {label} cannot hold")
        if offset % alignment:
            raise self.fail(f"damaged: {what} lies at {offset}, not a multiple of {alignment}")
        return shape, label, offset, prod(shape) // block * width
