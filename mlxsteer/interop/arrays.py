"""Single rows and columns of the arrays in a safetensors or `.npz` file; nothing else is read.

The weights of a sparse autoencoder are gigabytes of which one feature needs kilobytes. Every length
is checked against the file's before it is used, and no pickle is ever opened: an `.npz` member of
Python objects is refused by name. It knows nothing of what the arrays mean.

    arrays(path)["W_dec"].row(12)       # [D], float64
    arrays(path)["W_enc"].column(12)    # [D]
"""

import os
import re
import struct
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import IO, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from ..errors import MlxsteerError
from ..values import AGAIN, brief
from ..vector_file import foreign_format, read_header

__all__ = ["Array", "arrays"]

_SAFETENSORS = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_NUMPY = ("<f2", "<f4", "<f8", ">f2", ">f4", ">f8")
_MAX_HEADER = 1 << 16
# what zipfile raises of damaged archives: names that are no UTF-8, extra fields that are cut off
_BROKEN = (
    OSError,
    EOFError,
    NotImplementedError,
    ValueError,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)
# exactly what numpy.save writes before the data of a plain array
_NPY = re.compile(
    rb"\{'descr': '([^']*)', 'fortran_order': (True|False), 'shape': \(([0-9, ]{0,80})\), \}\s*"
)


@dataclass(frozen=True)
class Array:
    """One array of a file: where it lies, and its lines as float64.

    Attributes:
        shape: of the array, `[n]` or `[n, m]`.
        dtype: of its stored numbers; bfloat16 is stored as `<u2`.
        start: first byte of the data, in the file or in the member of an .npz.
        member: of an .npz, or "".
        by_column: whether columns are contiguous instead of rows.
    """

    path: Path
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    start: int
    member: str = ""
    by_column: bool = False

    def row(self, index: int) -> npt.NDArray[np.float64]:
        """Return row `index` of a matrix."""
        return self._line(index, contiguous=not self.by_column)

    def column(self, index: int) -> npt.NDArray[np.float64]:
        """Return column `index` of a matrix."""
        return self._line(index, contiguous=self.by_column)

    def all(self) -> npt.NDArray[np.float64]:
        """Return a whole `[n]`."""
        return self._line(0, contiguous=True)

    def _line(self, index: int, contiguous: bool) -> npt.NDArray[np.float64]:
        rows, columns = (1, *self.shape)[-2:]
        if self.by_column:
            rows, columns = columns, rows
        size = self.dtype.itemsize
        with _opened(self.path, self.member) as file:
            if contiguous:
                file.seek(self.start + index * columns * size)
                data, count = file.read(columns * size), columns
            else:
                parts = []
                for n in range(rows):
                    file.seek(self.start + (n * columns + index) * size)
                    parts.append(file.read(size))
                data, count = b"".join(parts), rows
        if len(data) != count * size:
            raise MlxsteerError(f"{self.path}: {brief(self.name)} is cut off; {AGAIN}")
        numbers = np.frombuffer(data, self.dtype)
        if self.dtype == np.dtype("<u2"):
            numbers = (numbers.astype(np.uint32) << 16).view(np.float32)
        if not np.isfinite(numbers).all():
            raise MlxsteerError(
                f"{self.path}: {brief(self.name)} has NaN or infinity at {index}; {AGAIN}"
            )
        return numbers.astype(np.float64)


def arrays(path: Path) -> dict[str, Array]:
    """Return the arrays of a file by name, their shapes and places checked."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
            if head[:4] == b"PK\x03\x04" and path.suffix == ".npz":
                return _of_npz(path)
            if head[8:9] != b"{":
                raise MlxsteerError(foreign_format(head, ".safetensors or .npz"))
            file.seek(0)
            return _of_safetensors(path, file)
    except _BROKEN as error:
        raise MlxsteerError(f"{path} cannot be read: {brief(str(error))}; {AGAIN}") from error
    except MlxsteerError as error:
        raise MlxsteerError(f"{path}: {error}") from error


def _of_safetensors(path: Path, file: IO[bytes]) -> dict[str, Array]:
    header, head = read_header(file)
    size = os.fstat(file.fileno()).st_size - len(head)
    found = {}
    for name, info in header.items():
        if name == "__metadata__":
            continue
        said = info if isinstance(info, dict) else {}
        dtype = _SAFETENSORS.get(str(said.get("dtype")))
        if dtype is None:
            continue  # whole numbers, 8-bit floats: nothing of an SAE that is read here
        shape, place = said.get("shape"), said.get("data_offsets")
        if not _numbers(shape) or not _numbers(place) or len(place) != 2:
            raise MlxsteerError(f"it is damaged: the header says {brief(info)} of {brief(name)}")
        length = prod(shape) * np.dtype(dtype).itemsize
        if place[1] - place[0] != length or place[1] > size:
            raise MlxsteerError(
                f"it is truncated or damaged: {brief(name)} {shape} lies at {place} of {size} "
                f"bytes; {AGAIN}"
            )
        start = len(head) + place[0]
        found[name] = Array(path, name, tuple(shape), np.dtype(dtype), start)
    return found


def _numbers(value: object) -> TypeGuard[list[int]]:
    return isinstance(value, list) and all(type(n) is int and 0 <= n < 2**48 for n in value)


def _of_npz(path: Path) -> dict[str, Array]:
    found = {}
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name == info.filename:
                raise MlxsteerError(f"{brief(name)} in it is no .npy: it is no .npz of numpy")
            if info.flag_bits & 1 or info.compress_type not in (0, zipfile.ZIP_DEFLATED):
                raise MlxsteerError(f"{brief(name)} is encrypted or packed by no numpy: {AGAIN}")
            with archive.open(info) as member:
                array = _of_npy(path, name, info, member)
            if array is not None:
                found[name] = array
    return found


def _of_npy(path: Path, name: str, info: zipfile.ZipInfo, member: IO[bytes]) -> Array | None:
    """The array of a member; None if its numbers are no floats."""
    start = member.read(10)
    if start[:6] != b"\x93NUMPY" or len(start) < 10:
        raise MlxsteerError(f"{brief(name)} in it begins with {start[:6]!r}, no array; {AGAIN}")
    if start[6] > 1:  # version 1 gives the header's length in two bytes, the later ones in four
        start += member.read(2)
    length = int.from_bytes(start[8:], "little")
    header = member.read(min(length, _MAX_HEADER))
    match = _NPY.fullmatch(header)
    if match is None:
        raise MlxsteerError(f"{brief(name)} in it is no plain array, but {brief(header)}")
    descr = match[1].decode("ascii", "replace")
    if descr.endswith("O"):
        raise MlxsteerError(
            f"{brief(name)} in it holds Python objects, i.e. a pickle, which could run any program "
            "and is never read; save it as numbers"
        )
    if descr not in _NUMPY:
        return None
    shape = tuple(int(n) for n in match[3].replace(b" ", b"").split(b",") if n)
    dtype, begin = np.dtype(descr), len(start) + length
    if begin + prod(shape) * dtype.itemsize != info.file_size:
        raise MlxsteerError(
            f"{brief(name)} in it is truncated or damaged: {brief(shape)} in {info.file_size} "
            f"bytes; {AGAIN}"
        )
    by_column = match[2] == b"True" and len(shape) == 2
    return Array(path, name, shape, dtype, begin, info.filename, by_column)


@contextmanager
def _opened(path: Path, member: str) -> Iterator[IO[bytes]]:
    try:
        if not member:
            with path.open("rb") as file:
                yield file
        else:
            with zipfile.ZipFile(path) as archive, archive.open(member) as packed:
                yield packed
    except _BROKEN as error:
        raise MlxsteerError(f"{path} cannot be read: {brief(str(error))}; {AGAIN}") from error
