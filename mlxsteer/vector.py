"""The steering vector: a frozen value, and reading and writing it.

A vector holds one unit direction per layer, `directions` `[n, D]` float32, and one scale per layer,
`scales` `[n]` float32: strength `s` adds `s * scale * direction`, and positive is MORE of the
concept. A `Vector` that exists is valid: finite, unit rows, ascending layers, known op, site and
phase. The zero vector has no layers and lives in memory only.

An op that reads takes `x . direction`, or `relu(x . encoder + bias)` if the vector is a feature of
a sparse autoencoder and brings its encoder rows: such a feature is written along one direction and
read along another. `algebra` has sums and multiples, `vector_file` describes the file.

This module knows nothing of MLX, of how directions are found and of how they are applied.

    joy = Vector.from_rows("joyful", {10: row, 11: row})
    joy.save("joyful.safetensors")
    assert read_vector("joyful.safetensors") == joy
"""

import dataclasses
import logging
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from . import algebra, vector_file
from .errors import MlxsteerError, UsageError
from .model_ref import ModelRef, misfit
from .values import Floats, brief, frozen, layer_array, layer_numbers, norms, plain
from .vector_file import FORMAT_VERSION, OBJECTS, TEXTS

__all__ = ["OPS", "PHASES", "SITES", "ModelRef", "Vector", "read_vector"]

SITES = ("attn_out", "resid_mid", "mlp_out", "resid_post")
OPS = ("add", "project", "clamp", "cap")
PHASES = ("all", "prompt", "response", "answer")  # or a window of tokens, "START:STOP"

_TARGETED = ("clamp", "cap")
_ARRAYS = {"directions": 2, "scales": 1, "targets": 1, "encoders": 2, "encoder_biases": 1}
_EFFECT = {"layers", *_ARRAYS, "site", "op", "phase"}
_NUMBERS = (int, float, np.integer, np.floating)
_UNIT_TOLERANCE = 1e-4


@dataclass(frozen=True, eq=False, repr=False)
class Vector:
    """Directions over layers with their scales, how they act, where they come from, what they do.

    Attributes:
        layers: absolute 0-based layers, ascending, `n` of them; none in the zero vector.
        directions: unit rows `[n, D]`.
        scales: `[n]`, above 0; strength `s` adds `s * scale * direction`.
        targets: `[n]` for clamp and cap, else None.
        encoders, encoder_biases: `[n, D]` and `[n]` of an SAE feature that is read; else None.
        positive, negative: the two poles in words; a positive strength is more of `positive`.
        phase: when it acts by default, one of `PHASES` or a token window `START:STOP`.
        method, token: how and at which position the directions were read.
        template: hash, arguments and thinking mode of the chat template.
        model: where it was extracted; None for an import.
        evidence, calibration: what was measured; `calibration` None: strength 1 means nothing yet.
        tool: what made it.
    """

    __array_ufunc__: ClassVar[None] = None  # numpy scalars leave `np.float32(2) * v` to us

    name: str
    layers: tuple[int, ...]
    directions: Floats
    scales: Floats
    site: str = "resid_post"
    op: str = "add"
    targets: Floats | None = None
    encoders: Floats | None = None
    encoder_biases: Floats | None = None
    positive: str = ""
    negative: str = ""
    phase: str = "all"
    method: str = ""
    token: str = ""
    pairs_sha256: str = ""
    n_pairs: int = 0
    template: Mapping[str, Any] = field(default_factory=dict)
    model: ModelRef | None = None
    evidence: Mapping[str, Any] = field(default_factory=dict)
    calibration: Mapping[str, Any] | None = None
    license: str = ""
    tool: str = "mlxsteer"

    def __post_init__(self) -> None:
        try:
            self._settle_words()
            self._settle_arrays()
        except MlxsteerError as error:
            raise MlxsteerError(f"vector {brief(self.name)}: {error}") from None

    def _settle_words(self) -> None:
        """Check all that is no array and replace what could change by read-only copies."""
        for key in (*TEXTS, *OBJECTS):
            value, wanted = getattr(self, key), str if key in TEXTS else Mapping
            if not isinstance(value, wanted) and not (key == "calibration" and value is None):
                raise MlxsteerError(f"{key} is {brief(value)}: use a {wanted.__name__.lower()}")
            object.__setattr__(self, key, frozen(value, key))
        if not self.name.strip() or not self.name.isprintable():
            raise MlxsteerError("use a name of one printable line")
        for key, known in (("op", OPS), ("site", SITES), ("phase", PHASES)):
            value = getattr(self, key)
            if value not in known and not (key == "phase" and _is_window(value)):
                raise MlxsteerError(f"unknown {key} {brief(value)}: use {', '.join(known)}")
        if not re.fullmatch(r"(?:[0-9a-f]{64})?", self.pairs_sha256):
            raise MlxsteerError(f"pairs_sha256 is {brief(self.pairs_sha256)}: use 64 hex digits")
        if type(self.n_pairs) is not int or self.n_pairs < 0:
            raise MlxsteerError(f"n_pairs is {brief(self.n_pairs)}: use a number from 0")
        if self.model is not None and not isinstance(self.model, ModelRef):
            raise MlxsteerError(f"model is {brief(self.model)}: use a ModelRef or None")
        if (self.targets is not None) != (self.op in _TARGETED):
            if self.op in _TARGETED:
                raise MlxsteerError(
                    f"op {self.op} needs a target per layer: give targets, or let extract with "
                    "this op measure them"
                )
            raise MlxsteerError(f"op {self.op} takes no target: {' and '.join(_TARGETED)} have one")
        if (self.encoders is None) != (self.encoder_biases is None):
            raise MlxsteerError("encoders and encoder_biases belong together: give both or neither")
        if self.encoders is not None and self.op == "add":
            raise MlxsteerError("op add reads nothing and takes no encoder: leave it out")

    def _settle_arrays(self) -> None:
        object.__setattr__(self, "layers", layer_numbers(self.layers))
        for key, ndim in _ARRAYS.items():
            if getattr(self, key) is not None:
                array = layer_array(getattr(self, key), key, self.layers, ndim)
                object.__setattr__(self, key, array)
        lengths = norms(self.directions)
        for layer, norm, scale in zip(self.layers, lengths, self.scales, strict=True):
            if abs(norm - 1) > _UNIT_TOLERANCE:
                raise MlxsteerError(f"the direction of layer {layer} has norm {norm:.6g}: use 1")
            if scale <= 0:
                raise MlxsteerError(f"the scale of layer {layer} is {scale}: use one above 0")
        if self.encoders is not None:
            self._check_encoders(self.encoders)
        if self.model and (problem := misfit(self.model, self.hidden_size, self.layers)):
            raise MlxsteerError(f"it {problem}: extract it on that model")

    def _check_encoders(self, encoders: Floats) -> None:
        if encoders.shape != self.directions.shape:
            shape = list(self.directions.shape)
            raise MlxsteerError(f"encoders have the shape {list(encoders.shape)}: use {shape}")
        for layer, norm in zip(self.layers, norms(encoders), strict=True):
            if norm == 0:
                raise MlxsteerError(f"the encoder of layer {layer} has norm 0: it reads nothing")
        if self.op == "cap" and self.targets is not None and (self.targets < 0).any():
            raise MlxsteerError("a feature is never below 0: cap it at a target from 0")

    @classmethod
    def from_rows(cls, name: str, rows: Mapping[int, npt.ArrayLike], **fields: Any) -> "Vector":
        """Make the vector that adds `rows[layer]` `[D]` at strength 1: the norm becomes the scale.

        Rows of zeros are dropped; if all are, it is the zero vector.
        """
        layers, what = layer_numbers(sorted(rows)), f"vector {brief(name)}: rows"
        wide = layer_array([rows[n] for n in layers], what, layers, 2, np.float64)
        with np.errstate(over="ignore", under="ignore"):
            lengths = norms(wide)
            scales = lengths.astype(np.float32)
        kept = np.flatnonzero(scales)
        units = (wide[kept] / lengths[kept, None]).astype(np.float32)
        return cls(name, tuple(layers[i] for i in kept), units, scales[kept], **fields)

    # What it is

    @property
    def hidden_size(self) -> int:
        """The width `D`."""
        return int(self.directions.shape[1])

    @property
    def n_layers(self) -> int | None:
        """Layers of the model it was extracted on; None if unknown."""
        return self.model.n_layers if self.model else None

    @property
    def is_zero(self) -> bool:
        """Whether it steers exactly like no steering."""
        return not self.layers

    @property
    def calibrated(self) -> bool:
        """Whether strength 1 has the measured meaning."""
        return self.calibration is not None

    @cached_property
    def content_sha256(self) -> str:
        """Digest of all of it: two vectors are equal if and only if theirs are."""
        return vector_file.content_sha256(self._tensors(), self._fields())

    def rows(self) -> dict[int, Floats]:
        """What strength 1 adds: layer -> `scale * direction` `[D]`."""
        scaled = self.directions * self.scales[:, None]
        scaled.flags.writeable = False
        return dict(zip(self.layers, scaled, strict=True))

    def record(self) -> dict[str, Any]:
        """Every field that is no array, as fresh plain JSON: the file's entry `mlxsteer`."""
        return {**self._fields(), "content_sha256": self.content_sha256}

    def _fields(self) -> dict[str, Any]:
        return {
            "format_version": FORMAT_VERSION,
            **{key: plain(getattr(self, key)) for key in (*TEXTS, *OBJECTS, "n_pairs", "layers")},
            "model": dataclasses.asdict(self.model) if self.model else None,
        }

    def _tensors(self) -> dict[str, Floats]:
        whole = {"scale": self.scales, "target": self.targets, "encoder_bias": self.encoder_biases}
        tensors = {name: array for name, array in whole.items() if array is not None}
        for key, rows in (("direction", self.directions), ("encoder", self.encoders)):
            if rows is not None:
                tensors |= {f"{key}.{n}": row for n, row in zip(self.layers, rows, strict=True)}
        return tensors

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Vector) and self.content_sha256 == other.content_sha256

    def __hash__(self) -> int:
        return hash(self.content_sha256)

    def __repr__(self) -> str:
        state = "calibrated" if self.calibrated else "uncalibrated"
        where = f"{self.op} at {self.site}, layers {list(self.layers)}, width {self.hidden_size}"
        return f"<Vector {self.name!r}: {where}, {state}>"

    def __deepcopy__(self, memo: object) -> "Vector":
        return self

    # New vectors from old ones

    def replace(self, **fields: Any) -> "Vector":
        """Return a copy with other fields.

        A change of its effect (layers, arrays, site, op, phase) drops calibration and evidence,
        unless it comes with a new calibration.
        """
        if _EFFECT & fields.keys() and "calibration" not in fields:
            fields = {"evidence": {}, **fields, "calibration": None}
        return dataclasses.replace(self, **fields)

    def restrict(self, layers: Iterable[int]) -> "Vector":
        """Return the vector of these layers only, uncalibrated if some are left out; it must have
        them all.
        """
        wanted = sorted(set(layers))
        if not wanted or not set(wanted) <= set(self.layers):
            raise UsageError(
                f"vector {brief(self.name)} has no layers {brief(wanted)}: "
                f"choose from {', '.join(map(str, self.layers)) or 'none, it is zero'}"
            )
        if tuple(wanted) == self.layers:
            return self
        at = [self.layers.index(n) for n in wanted]
        arrays = {key: getattr(self, key) for key in _ARRAYS}
        kept = {key: array if array is None else array[at] for key, array in arrays.items()}
        return self.replace(layers=wanted, **kept)

    def __add__(self, other: "Vector") -> "Vector":
        return algebra.total(self, other, 1) if isinstance(other, Vector) else NotImplemented

    def __sub__(self, other: "Vector") -> "Vector":
        return algebra.total(self, other, -1) if isinstance(other, Vector) else NotImplemented

    def __mul__(self, factor: float) -> "Vector":
        if isinstance(factor, bool) or not isinstance(factor, _NUMBERS):
            return NotImplemented
        return algebra.multiple(self, factor)

    __rmul__ = __mul__

    def __neg__(self) -> "Vector":
        return self * -1

    # Models and files

    def check(self, model: ModelRef) -> None:
        """Refuse a model that the vector does not fit; say so when only the packing differs."""
        name, mine = f"vector {brief(self.name)}", self.model
        if problem := misfit(model, self.hidden_size, self.layers, mine):
            raise MlxsteerError(f"{name} {problem}: extract it on this model")
        if mine and (told := mine.differences(model)):
            logging.getLogger("mlxsteer").info("%s: same model, other packing: %s", name, told)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the vector file, all of it or nothing."""
        path = Path(path)
        if self.is_zero:
            raise MlxsteerError(f"vector {brief(self.name)} is zero: there is nothing to save")
        if path.suffix != ".safetensors":
            raise UsageError(f"{path}: name it .safetensors (or write a control vector, .gguf)")
        data = vector_file.pack(self._tensors(), self.record())
        with vector_file.whole_file(path) as temporary:
            temporary.write_bytes(data)


def read_vector(path: str | os.PathLike[str]) -> Vector:
    """Read a vector file and verify all of it; anything amiss is an MlxsteerError of one line."""
    path = Path(path)
    record, tensors = vector_file.unpack(path)
    layers = record["layers"]
    reads = "encoder_bias" in tensors
    try:
        return Vector(
            layers=tuple(layers),
            directions=np.stack([tensors[f"direction.{n}"] for n in layers]),
            scales=tensors["scale"],
            targets=tensors.get("target"),
            encoders=np.stack([tensors[f"encoder.{n}"] for n in layers]) if reads else None,
            encoder_biases=tensors.get("encoder_bias"),
            model=None if record["model"] is None else ModelRef.from_json(record["model"]),
            **{key: record[key] for key in (*TEXTS, *OBJECTS, "n_pairs")},
        )
    except MlxsteerError as error:
        raise MlxsteerError(f"{path}: {error}") from error


def _is_window(phase: str) -> bool:
    window = re.fullmatch("([0-9]*):([0-9]*)", phase)
    start, stop = window.groups() if window else ("", "")
    return phase != ":" and window is not None and (not stop or int(start or 0) < int(stop))
