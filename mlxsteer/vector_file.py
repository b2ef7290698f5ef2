"""The bytes of a vector file (format version 1): tensors and one JSON record, verified.

The file is safetensors. Its tensors are F32: `direction.N` (`[D]`, unit norm, N = 0-based layer),
`scale` (`[n]`, ascending layers), for clamp and cap `target` (`[n]`), and for an SAE feature that
is read by its encoder `encoder.N` (`[D]`) and `encoder_bias` (`[n]`). Its metadata has one entry,
`mlxsteer`: the fields of `Vector.record()` as canonical JSON, i.e. sorted keys, no spaces,
characters as they are (UTF-8), the shortest form of every float.

The field `content_sha256` is the SHA-256 of, for each tensor in the byte order of the names, the
line `NAME F32 [d0]` with a newline and the little-endian bytes, then of the JSON without the field.
safetensors sorts its header, so the same vector gives the same bytes everywhere.

Knows which fields there are and nothing of what they mean: `vector` does.
"""

import hashlib
import os
import re
import secrets
import struct
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import safetensors.numpy
from safetensors import SafetensorError

from .errors import MlxsteerError
from .values import AGAIN, Floats, brief, canonical, frozen, layer_numbers, parsed, plain

__all__ = [
    "FORMAT_VERSION",
    "OBJECTS",
    "TEXTS",
    "content_sha256",
    "foreign_format",
    "pack",
    "read_header",
    "sweep",
    "unpack",
    "whole_file",
]

FORMAT_VERSION = 1
TEXTS: tuple[str, ...] = ("name", "positive", "negative", "op", "site", "phase", "method")
TEXTS += ("token", "pairs_sha256", "license", "tool")
OBJECTS = ("template", "evidence", "calibration")
FIELDS = {*TEXTS, *OBJECTS, "format_version", "layers", "n_pairs", "model", "content_sha256"}
MAX_HEADER = 1 << 24

_TENSOR_NAME = re.compile(r"(?:direction|encoder)\.(?:0|[1-9][0-9]{0,5})|encoder_bias|scale|target")


# Writing


def content_sha256(tensors: Mapping[str, Floats], record: Mapping[str, Any]) -> str:
    """Return the digest of everything in the file but itself."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} F32 {list(tensors[name].shape)}\n".encode())
        digest.update(tensors[name].astype("<f4").tobytes())
    rest = {key: value for key, value in record.items() if key != "content_sha256"}
    digest.update(canonical(rest).encode())
    return digest.hexdigest()


def pack(tensors: Mapping[str, Floats], record: Mapping[str, Any]) -> bytes:
    """Return the bytes of the file."""
    return safetensors.numpy.save(dict(tensors), {"mlxsteer": canonical(record)})


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, moved there if the block ends well, else removed."""
    temporary = path.with_name(f".{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        raise MlxsteerError(
            f"{path} cannot be written: {error.strerror or error}; choose another place"
        ) from error
    finally:
        if temporary.exists():
            temporary.unlink()


def sweep(folder: Path) -> None:
    """Remove what a `whole_file` that was killed left in a folder."""
    for path in folder.glob(".*"):
        if re.fullmatch(r"\.[0-9a-f]{16}(?:\.\w+)?", path.name):
            path.unlink()


# Reading


def unpack(path: Path) -> tuple[dict[str, Any], dict[str, Floats]]:
    """Return record and tensors of a file that is complete, unaltered and of this version.

    The header comes first: model weights are refused without reading them.
    """
    try:
        with path.open("rb") as file:
            header, head = read_header(file)
            record = _record(header.pop("__metadata__", None), header)
            _check_layout(header, os.fstat(file.fileno()).st_size - len(head))
            tensors = safetensors.numpy.load(head + file.read())
            _check_content(record, tensors)
            return record, tensors
    except OSError as error:
        raise MlxsteerError(f"{path} cannot be read: {error.strerror or error}") from error
    except (MlxsteerError, SafetensorError) as error:
        raise MlxsteerError(f"{path}: {' '.join(str(error).split())}") from error


def read_header(file: IO[bytes]) -> tuple[dict[str, Any], bytes]:
    """Return the JSON header of a safetensors file, and all bytes before its data."""
    start = file.read(16)
    length = _header_length(start, os.fstat(file.fileno()).st_size)
    head = start + file.read(length - 8)
    return parsed(head[8:], "its header"), head


def _header_length(start: bytes, size: int) -> int:
    """The length of the JSON header, if the file can be safetensors at all."""
    if size < 16:
        raise MlxsteerError(f"it is truncated: it has {size} bytes; {AGAIN}")
    if start[8:9] != b"{":
        raise MlxsteerError(foreign_format(start))
    (length,) = struct.unpack("<Q", start[:8])
    if not 8 <= length <= MAX_HEADER:
        raise MlxsteerError(f"it is damaged: the header claims {length} bytes; {AGAIN}")
    if length > size - 8:
        raise MlxsteerError(f"it is truncated: the header claims {length} bytes of {size}; {AGAIN}")
    return int(length)


def foreign_format(head: bytes, use: str = ".safetensors or .gguf") -> str:
    """Say what a file that is no vector file is, from its first bytes, and what to use instead."""
    pickle = f"it could run any program when opened and is never read; use {use}"
    if head[:1] == b"\x80" and head[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05"):
        return f"it is a pickle, {pickle}"
    if head[:4] == b"PK\x03\x04":
        return f"it is a zip archive of pickles or arrays (torch .pt, numpy .npz), {pickle}"
    if head[:4] == b"GGUF":
        return "it is a GGUF file; name it .gguf"
    return f"it is no vector file, it begins with {head[:8]!r}; use {use}"


def _record(metadata: object, tensors: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(metadata, dict) or not isinstance(metadata.get("mlxsteer"), str):
        if {"W_dec", "w_dec"} & tensors.keys():
            raise MlxsteerError(
                "it is a sparse autoencoder: choose one of its features "
                "(mlxsteer vectors convert SAE.safetensors FILE.safetensors --feature N)"
            )
        raise MlxsteerError(
            "it is no vector file: its metadata has no entry mlxsteer; model weights go to -m, "
            "vectors are written by mlxsteer extract"
        )
    if len(metadata) > 1:
        other = brief(min(metadata.keys() - {"mlxsteer"}))
        raise MlxsteerError(f"its metadata has the unknown entry {other}; {AGAIN}")
    return parsed(metadata["mlxsteer"], "its entry mlxsteer")


def _check_layout(header: dict[str, Any], data_size: int) -> None:
    """Refuse names, types, shapes and places that a vector file does not have."""
    end = 0
    for name, info in header.items():
        if not _TENSOR_NAME.fullmatch(name):
            raise MlxsteerError(
                f"it has the unknown tensor {brief(name)}; extract the vector again"
            )
        if not isinstance(info, dict) or info.keys() != {"dtype", "shape", "data_offsets"}:
            raise MlxsteerError(f"it is damaged: the header says {brief(info)} of {name}; {AGAIN}")
        shape, place = info["shape"], info["data_offsets"]
        if info["dtype"] != "F32":
            raise MlxsteerError(f"{name} has the dtype {brief(info['dtype'])}; write it as F32")
        if isinstance(shape, list) and len(shape) == 2:
            raise MlxsteerError(
                f"{name} has the shape {brief(shape)}: several directions per layer are reserved "
                "for a later format; write one [D] per layer"
            )
        if not _sizes(shape, 1) or not _sizes(place, 2):
            raise MlxsteerError(f"{name} has the shape {brief(shape)} at {brief(place)}; write [D]")
        if place[1] - place[0] != 4 * shape[0] or place[1] > data_size:
            raise MlxsteerError(
                f"it is truncated or damaged: {name} {shape} lies at {place} of {data_size} bytes; "
                f"{AGAIN}"
            )
        end = max(end, place[1])
    if end != data_size:
        raise MlxsteerError(f"it is damaged: {end} of {data_size} bytes are tensors; {AGAIN}")


def _sizes(value: object, count: int) -> bool:
    return (
        isinstance(value, list)
        and len(value) == count
        and all(type(n) is int and 0 <= n < 2**63 for n in value)
    )


def _check_content(record: dict[str, Any], tensors: Mapping[str, Floats]) -> None:
    """Refuse fields and tensors that do not belong together, or not to this version."""
    version = record.get("format_version")
    if type(version) is not int or version != FORMAT_VERSION:
        raise MlxsteerError(
            f"format_version {brief(version)} is unknown, this mlxsteer reads {FORMAT_VERSION}; "
            "update mlxsteer or extract the vector again"
        )
    if record.keys() != FIELDS:
        key = min(record.keys() ^ FIELDS)
        verb = "lacks the field" if key in FIELDS else "has the unknown field"
        raise MlxsteerError(f"its entry mlxsteer {verb} {brief(key)}; extract the vector again")
    layers = record["layers"]
    if not isinstance(layers, list) or not layers:
        raise MlxsteerError(f"layers is {brief(layers)}; a file has a list of one or more")
    reads = any(name.startswith("encoder") for name in tensors)
    kinds = ("direction", "encoder") if reads else ("direction",)
    names = [f"{kind}.{n}" for kind in kinds for n in layer_numbers(layers)]
    wanted = {"scale", *names, *(["encoder_bias"] if reads else [])}
    strange = (tensors.keys() - {"target"}) ^ wanted
    if strange:
        verb = "is missing" if min(strange) in wanted else "is there"
        raise MlxsteerError(f"layers are {brief(layers)} and tensor {min(strange)} {verb}; {AGAIN}")
    for name in names:
        widths = [len(tensors[n]) for n in (names[0], name)]
        if widths[0] != widths[1]:
            raise MlxsteerError(f"{names[0]} and {name} differ in width, {widths}; {AGAIN}")
    said = record["content_sha256"]
    if said != content_sha256(tensors, plain(frozen(record, "mlxsteer"))):
        raise MlxsteerError(
            f"its content is not that of content_sha256 {brief(said)}: it was changed after it was "
            f"written; {AGAIN}"
        )
