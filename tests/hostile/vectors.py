"""Vector files that must be refused, each with words that the refusal has to say.

Written byte by byte from the description in `mlxsteer.vector_file`, without its code and without
safetensors, so that anything can be wrong with them; unless the hash is the point, it is right.
"""

import hashlib
import io
import json
import pickle
import re
import struct
import zipfile
from collections.abc import Callable
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]

MODEL: dict[str, Any] = {
    "repo": "tiny/random",
    "revision": "0",
    "model_type": "llama",
    "n_layers": 4,
    "hidden_size": 4,
    "quantization": "none",
    "dtype": "float32",
}


def record(**changes: Any) -> dict[str, Any]:
    """The JSON fields of a valid file; a change to `...` leaves the field out."""
    fields: dict[str, Any] = {
        "format_version": 1,
        "name": "tiny",
        "positive": "talks like a pirate ☠",
        "negative": "talks like a clerk",
        "op": "add",
        "site": "resid_post",
        "layers": [1, 2],
        "phase": "all",
        "method": "mean_diff",
        "token": "last prompt token",
        "pairs_sha256": "0" * 64,
        "n_pairs": 2,
        "template": {"sha256": "1" * 64, "arguments": {"date_string": "1 January 2025"}},
        "model": MODEL,
        "evidence": {"kl": [0.1, 1e-7, 3.0], "loops": None},
        "calibration": {"unit": "nat", "budget": 1.0},
        "license": "Apache-2.0",
        "tool": "mlxsteer",
    }
    return {key: value for key, value in {**fields, **changes}.items() if value is not ...}


def tensors(**changes: Any) -> Tensors:
    """The arrays of a valid file; `direction_1` stands for `direction.1`, `...` leaves one out."""
    arrays: dict[str, Any] = {
        "direction.1": [0.6, 0.0, -0.8, 0.0],
        "direction.2": [0.0, 1.0, 0.0, -0.0],
        "scale": [1.5, 0.25],
    }
    arrays |= {re.sub(r"_(\d+)$", r".\1", key): value for key, value in changes.items()}
    kept = {key: value for key, value in arrays.items() if value is not ...}
    return {key: np.asarray(value, dtype="<f4") for key, value in kept.items()}


def feature(**changes: Any) -> Tensors:
    """The arrays of a valid file of op project that reads by an encoder."""
    rows = {"encoder_1": [0.5, 0.0, 2.0, 0.0], "encoder_2": [0.0, 0.0, 0.0, -1.0]}
    return tensors(**{**rows, "encoder_bias": [-0.5, 0.25], **changes})


def signed(fields: dict[str, Any], arrays: Tensors) -> dict[str, Any]:
    """The fields with the digest of both."""
    digest = hashlib.sha256()
    for name in sorted(arrays, key=str.encode):
        digest.update(f"{name} F32 [{len(arrays[name])}]\n".encode() + arrays[name].tobytes())
    text = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    digest.update(text.encode(errors="surrogatepass"))
    return {**fields, "content_sha256": digest.hexdigest()}


def table(arrays: Tensors) -> dict[str, Any]:
    """What a safetensors header says of the arrays."""
    entries, at = {}, 0
    for name, array in arrays.items():
        entries[name] = {
            "dtype": "F32",
            "shape": list(array.shape),
            "data_offsets": [at, at + array.nbytes],
        }
        at += array.nbytes
    return entries


def raw(header: str | dict[str, Any], data: bytes) -> bytes:
    """A safetensors file of this header and this data."""
    text = header if isinstance(header, str) else json.dumps(header)
    padded = text.encode() + b" " * (-len(text.encode()) % 8)
    return struct.pack("<Q", len(padded)) + padded + data


def build(
    fields: dict[str, Any] | None = None,
    arrays: Tensors | None = None,
    *,
    text: str | None = None,
    metadata: object = None,
    entries: dict[str, Any] | None = None,
) -> bytes:
    """A vector file; `text` is its record, `metadata` and `entries` stand in the header."""
    arrays = tensors() if arrays is None else arrays
    record_text = json.dumps(signed(fields or record(), arrays)) if text is None else text
    header = {
        "__metadata__": {"mlxsteer": record_text} if metadata is None else metadata,
        **table(arrays),
        **(entries or {}),
    }
    return raw(header, b"".join(a.tobytes() for a in arrays.values()))


def changed(**fields: Any) -> Callable[[], bytes]:
    """A file that differs from a valid one in these fields, its hash right."""
    return lambda: build(record(**fields))


def given(**arrays: Any) -> Callable[[], bytes]:
    """A file that differs from a valid one in these tensors, its hash right."""
    return lambda: build(None, tensors(**arrays))


def read(op: str = "project", **arrays: Any) -> Callable[[], bytes]:
    """A file that reads by an encoder and differs in these tensors, its hash right."""
    return lambda: build(record(op=op), feature(**arrays))


def entry(**entries: Any) -> Callable[[], bytes]:
    """A file whose header says something else of `scale` (or of another tensor)."""
    scale = {**table(tensors())["scale"], **entries}
    return lambda: build(entries={"scale": scale})


def model(**fields: Any) -> Callable[[], bytes]:
    """A file whose model differs, its hash right."""
    kept = {key: value for key, value in {**MODEL, **fields}.items() if value is not ...}
    return changed(model=kept)


def altered() -> bytes:
    """A field that was changed after the hash was made."""
    return build().replace(b"Apache-2.0", b"Apache-9.9")


def zipped(name: str) -> bytes:
    """What torch.save and numpy.savez write."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, pickle.dumps({"direction.1": [1.0]}))
    return buffer.getvalue()


def twice() -> bytes:
    """A header in which a tensor occurs twice."""
    header = json.dumps({"__metadata__": {"mlxsteer": "{}"}, **table(tensors())})
    scale = json.dumps(table(tensors())["scale"])
    return raw(header[:-1] + f', "scale": {scale}}}', bytes(40))


def hole() -> bytes:
    """Eight bytes between two tensors that belong to none."""
    data = b"".join(a.tobytes() for a in tensors().values())
    entries = table(tensors())
    entries["scale"]["data_offsets"] = [40, 48]
    text = json.dumps(signed(record(), tensors()))
    header = {"__metadata__": {"mlxsteer": text}, **entries}
    return raw(header, data[:32] + bytes(8) + data[32:])


NAN, INFINITY = float("nan"), float("inf")

# name -> (how to make the file, words of the refusal)
CASES: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "empty": (lambda: b"", ("truncated", "0 bytes")),
    "short": (lambda: build()[:11], ("truncated", "11 bytes")),
    "cut in the header": (lambda: build()[:500], ("truncated", "500")),
    "cut in the data": (lambda: build()[:-1], ("truncated", "scale", "39")),
    "a byte too many": (lambda: build() + b"\0", ("damaged", "40 of 41")),
    "header of 2 GB": (
        lambda: struct.pack("<Q", 1 << 31) + build()[8:],
        ("damaged", "2147483648"),
    ),
    "header of 2^63": (lambda: struct.pack("<Q", 1 << 63) + build()[8:], ("9223372036854775808",)),
    "header of nothing": (lambda: struct.pack("<Q", 1) + build()[8:], ("claims 1 bytes",)),
    "pickle": (lambda: pickle.dumps([1.0] * 9, 4), ("pickle", ".safetensors")),
    "old pickle": (lambda: pickle.dumps([1.0] * 9, 2), ("pickle", "never read")),
    "torch": (lambda: zipped("archive/data.pkl"), ("zip", "torch")),
    "numpy": (lambda: b"\x93NUMPY\x01\x00" + bytes(80), ("no vector file", "NUMPY")),
    "GGUF": (lambda: b"GGUF" + bytes(60), ("GGUF", ".gguf")),
    "text": (lambda: b"Ahoy, this is no vector at all.\n", ("no vector file", "Ahoy")),
    "header cut off": (lambda: raw('{"scale": {"dtype"', bytes(8)), ("header", "not JSON")),
    "header deep": (lambda: raw('{"a":' * 5000, bytes(8)), ("header", "not JSON")),
    "header not UTF-8": (
        lambda: build().replace("☠".encode(), b"\xff\xfe\xfd").replace(b"\\u2620", b"\xff" * 6),
        ("header", "not JSON"),
    ),
    "tensor twice": (twice, ("'scale' twice",)),
    "hole between tensors": (hole, ("offset",)),
    "model weights": (
        lambda: raw(table(tensors(model_norm=[1.0])), bytes(44)),
        ("no entry mlxsteer", "-m"),
    ),
    "metadata is a list": (lambda: build(metadata=[1]), ("no entry mlxsteer",)),
    "metadata of others": (lambda: build(metadata={"format": "pt"}), ("no entry mlxsteer",)),
    "metadata besides": (
        lambda: build(metadata={"mlxsteer": "{}", "format": "pt"}),
        ("unknown entry 'format'",),
    ),
    "record no string": (lambda: build(metadata={"mlxsteer": {}}), ("no entry mlxsteer",)),
    "record not JSON": (lambda: build(text="{name: tiny}"), ("entry mlxsteer", "not JSON")),
    "record a list": (lambda: build(text="[1]"), ("[1]", "no JSON object")),
    "record deep": (lambda: build(text='{"a":' * 5000), ("entry mlxsteer", "not JSON")),
    "key twice": (lambda: build(text='{"op": "add", "op": "cap"}'), ("'op' twice",)),
    "unknown tensor": (given(bias=[1.0]), ("unknown tensor 'bias'",)),
    "layer with a zero": (given(direction_02=[1.0, 0, 0, 0]), ("unknown tensor 'direction.02'",)),
    "several directions": (
        lambda: build(entries={"scale": {**table(tensors())["scale"], "shape": [1, 2]}}),
        ("scale", "[1, 2]", "reserved"),
    ),
    "half precision": (entry(dtype="F16"), ("scale", "'F16'", "F32")),
    "dtype a list": (entry(dtype=["F32"]), ("['F32']",)),
    "no shape": (entry(shape=[]), ("scale", "[]")),
    "shape negative": (entry(shape=[-2]), ("scale", "[-2]")),
    "shape a float": (entry(shape=[2.0]), ("scale", "[2.0]")),
    "shape another": (entry(shape=[3]), ("scale", "[3]", "damaged")),
    "offsets outside": (entry(data_offsets=[400, 408]), ("scale", "400", "damaged")),
    "offsets overlap": (entry(data_offsets=[0, 8]), ("damaged", "32 of 40")),
    "offsets true": (entry(data_offsets=[True, 9]), ("[True, 9]",)),
    "entry besides": (entry(hidden=1), ("damaged", "scale")),
    "version 2": (changed(format_version=2), ("format_version 2", "reads 1", "update")),
    "version a string": (changed(format_version="1"), ("format_version '1'",)),
    "version true": (changed(format_version=True), ("format_version True",)),
    "no version": (changed(format_version=...), ("format_version None",)),
    "field missing": (changed(n_pairs=...), ("lacks the field 'n_pairs'",)),
    "field unknown": (changed(zeal=1), ("unknown field 'zeal'",)),
    "hash missing": (
        lambda: build(text=json.dumps(record())),
        ("lacks the field 'content_sha256'",),
    ),
    "hash wrong": (
        lambda: build(text=json.dumps({**record(), "content_sha256": "f" * 64})),
        ("content_sha256 'fff", "changed after it was written"),
    ),
    "hash a number": (
        lambda: build(text=json.dumps({**record(), "content_sha256": 1})),
        ("content_sha256 1",),
    ),
    "field altered": (altered, ("content_sha256", "changed after it was written")),
    "unknown op": (changed(op="multiply"), ("unknown op 'multiply'", "add, project, clamp")),
    "unknown site": (changed(site="resid_pre"), ("unknown site 'resid_pre'", "resid_post")),
    "unknown phase": (changed(phase="later"), ("unknown phase 'later'", "response")),
    "phase backwards": (changed(phase="9:3"), ("unknown phase '9:3'",)),
    "phase open": (changed(phase=":"), ("unknown phase ':'",)),
    "NaN direction": (given(direction_2=[0, NAN, 0, 0]), ("directions of layer 2", "NaN")),
    "infinite direction": (given(direction_1=[0, INFINITY, 0, 0]), ("directions of layer 1",)),
    "direction of zeros": (given(direction_1=[0, 0, 0, 0]), ("layer 1", "norm 0")),
    "direction too long": (given(direction_1=[0, 1.001, 0, 0]), ("layer 1", "norm 1.001")),
    "NaN scale": (given(scale=[1, NAN]), ("scales of layer 2", "NaN")),
    "scale zero": (given(scale=[0, 1]), ("scale of layer 1 is 0.0",)),
    "scale negative": (given(scale=[1, -2]), ("scale of layer 2 is -2.0",)),
    "scale too long": (given(scale=[1, 1, 1]), ("scales", "[3]", "[2]")),
    "no scale": (given(scale=...), ("scale is missing", "[1, 2]")),
    "target for add": (given(target=[1, 1]), ("op add takes no target",)),
    "no target for clamp": (changed(op="clamp"), ("op clamp needs a target",)),
    "no target for cap": (changed(op="cap"), ("op cap needs a target",)),
    "NaN target": (
        lambda: build(record(op="clamp"), tensors(target=[NAN, 1])),
        ("targets of layer 1", "NaN"),
    ),
    "target too short": (
        lambda: build(record(op="cap"), tensors(target=[1])),
        ("targets", "[1]", "[2]"),
    ),
    "encoder for add": (read("add"), ("op add reads nothing",)),
    "encoder bias missing": (read(encoder_bias=...), ("encoder_bias is missing", "[1, 2]")),
    "encoder missing": (read(encoder_2=...), ("encoder.2 is missing", "[1, 2]")),
    "encoders missing": (read(encoder_1=..., encoder_2=...), ("encoder.1 is missing",)),
    "encoder besides": (read(encoder_3=[1, 0, 0, 0]), ("encoder.3 is there", "[1, 2]")),
    "encoder of no layer": (read(encoder=[1, 0, 0, 0]), ("unknown tensor 'encoder'",)),
    "encoder with a zero": (read(encoder_01=[1, 0, 0, 0]), ("unknown tensor 'encoder.01'",)),
    "encoder of zeros": (read(encoder_2=[0, 0, 0, 0]), ("encoder of layer 2 has norm 0",)),
    "NaN encoder": (read(encoder_1=[NAN, 0, 0, 0]), ("encoders of layer 1", "NaN")),
    "infinite bias": (read(encoder_bias=[0, INFINITY]), ("encoder_biases of layer 2",)),
    "encoder width": (read(encoder_2=[1, 0, 0]), ("encoder.2", "width", "[4, 3]")),
    "encoder bias too short": (read(encoder_bias=[1]), ("encoder_biases", "[1]", "[2]")),
    "feature below zero": (read("cap", target=[1, -1]), ("cap it at a target from 0",)),
    "width another": (given(direction_2=[1.0, 0, 0]), ("direction.2", "width", "[4, 3]")),
    "width zero": (
        lambda: build(record(model=None), tensors(direction_1=[], direction_2=[])),
        ("directions", "[2, 0]"),
    ),
    "direction missing": (changed(layers=[1, 2, 3]), ("[1, 2, 3]", "direction.3 is missing")),
    "direction besides": (changed(layers=[1]), ("[1]", "direction.2 is there")),
    "layers descend": (changed(layers=[2, 1]), ("[2, 1]", "ascending")),
    "layer twice": (changed(layers=[1, 1, 2]), ("[1, 1, 2]", "ascending")),
    "layers empty": (changed(layers=[]), ("layers is []",)),
    "layers a number": (changed(layers=2), ("layers is 2",)),
    "layer a float": (changed(layers=[1.0, 2]), ("layer 1.0",)),
    "layer true": (changed(layers=[True, 2]), ("layer True",)),
    "layer negative": (changed(layers=[-1, 2]), ("layer -1",)),
    "name empty": (changed(name=""), ("name",)),
    "name of two lines": (changed(name="a\nb"), ("a\\nb", "one printable line")),
    "name a number": (changed(name=7), ("name is 7",)),
    "name no Unicode": (changed(name="\ud800"), ("name", "Unicode")),
    "pairs hash": (changed(pairs_sha256="123"), ("pairs_sha256 is '123'",)),
    "pairs negative": (changed(n_pairs=-1), ("n_pairs is -1",)),
    "pairs true": (changed(n_pairs=True), ("n_pairs is True",)),
    "template a list": (changed(template=[]), ("template is",)),
    "evidence null": (changed(evidence=None), ("evidence is None",)),
    "evidence NaN": (changed(evidence={"kl": NAN}), ("evidence.kl", "nan")),
    "evidence overflows": (
        lambda: build(text=json.dumps(signed(record(), tensors())).replace("1e-07", "1e999")),
        ("evidence.kl[1]", "inf"),
    ),
    "evidence huge": (changed(evidence={"n": 10**30}), ("evidence.n", "int")),
    "evidence deep": (
        lambda: build(record(evidence={"a": json.loads("[" * 40 + "]" * 40)})),
        ("nested", "32"),
    ),
    "model a string": (changed(model="tiny"), ("model is 'tiny'",)),
    "model without dtype": (model(dtype=...), ("model is", "dtype")),
    "model of no layers": (model(n_layers=0), ("model.n_layers is 0",)),
    "model repo null": (model(repo=None), ("model.repo is None",)),
    "model of another width": (model(hidden_size=8), ("width 4", "has 8")),
    "layer outside the model": (model(n_layers=2), ("layer 2", "2 layers")),
}
