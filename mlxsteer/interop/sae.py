"""Features of sparse autoencoders as vectors: the decoder row is written, the encoder row is read.

A sparse autoencoder explains a stream `x` `[D]` by features `f_i = act(x . w_i + b_i)` and rewrites
it as the sum of `f_i * W_dec[i]`. Of one feature this makes, with `r` the norm of its decoder row
and `d` the unit row, at strength 1

    add      x + r d                        no encoder; uncalibrated
    project  x - r f d                      the feature is taken out
    clamp    x + r (target - f) d           it is held at `target`, in the feature's own units
    cap      x - r relu(f - target) d       it stays below `target`

`r` is folded into encoder, bias and target, so that the vector's scale is 1 for all but add, and
the decoder's bias into the encoder's where it is taken off the input.

Ours reads `relu(x . w + b)` and nothing else. An SAE whose activation is another one is refused for
what it would read wrongly, by name: top-k depends on all features, JumpReLU is 0 up to its
threshold. A cap at or above that threshold never sees the difference, and add reads nothing.

| file | beside it | layer and site from |
| --- | --- | --- |
| SAELens `sae_weights.safetensors` | `cfg.json` | its hook name |
| Gemma Scope `params.npz` | nothing | folders `layer_N` and `gemma-scope-...-res` or `-mlp` |
| Gemma Scope 2 `params.safetensors` | `config.json` | its hook name |
| EleutherAI `sae.safetensors` | `cfg.json` | folder `layers.N`, `layers.N.mlp` |

`hook_resid_pre` of block N is `resid_post` of layer N-1. It knows nothing of models: whose stream
it was, the file says at best in words.

    read_sae("layers.12/sae_weights.safetensors", 4711, op="clamp", target=8.0)
"""

import logging
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import MlxsteerError, UsageError
from ..values import brief, parsed, printable
from ..vector import OPS, SITES, Vector
from .arrays import Array, arrays

__all__ = ["read_sae"]

_HOOK = re.compile(r"blocks\.(\d{1,6})\.hook_(resid_pre|resid_mid|resid_post|attn_out|mlp_out)")
_MODULE = re.compile(
    r"model\.layers\.(\d{1,6})\.(post_attention_layernorm\.|post_feedforward_layernorm\.|)output"
)
_MODULES = {
    "": "resid_post",
    "post_attention_layernorm.": "attn_out",
    "post_feedforward_layernorm.": "mlp_out",
}
_FOLDER = re.compile(r"(?:.*\.)?layers\.(\d{1,6})(?:\.(mlp|self_attn|attention))?")
_FOLDERS = {None: "resid_post", "mlp": "mlp_out", "self_attn": "attn_out", "attention": "attn_out"}
_SCOPES = {"res": "resid_post", "mlp": "mlp_out"}
_MAX_JSON = 1 << 20
_NO_CONFIG = "it has no cfg.json beside it that names its activation"


@dataclass(frozen=True)
class _Coder:
    """What is known of an SAE besides its arrays.

    Attributes:
        obstacle: why none of its features can be read by a relu; "" if they can.
        subtracts: whether the decoder's bias is taken off the input.
        place: layer and site, each None if unknown.
        source: what said so, for messages.
        model: the model it was trained on, in words.
    """

    obstacle: str = ""
    subtracts: bool = False
    place: tuple[int | None, str | None] = (None, None)
    source: str = ""
    model: str = ""


def read_sae(
    path: str | os.PathLike[str],
    feature: int,
    *,
    layer: int | None = None,
    site: str | None = None,
    op: str = "add",
    target: float | None = None,
) -> Vector:
    """Read one feature of a sparse autoencoder; positive is more of it, but for op project.

    Args:
        path: of the weights, .safetensors or .npz; what lies beside them is read too.
        feature: its number, from 0.
        layer, site: where it acts, if file and folder do not say it; site is resid_post then.
        op: add, project, clamp or cap.
        target: for clamp and cap, in units of the feature's activation.
    """
    path = Path(path)
    if op not in OPS:
        raise UsageError(f"unknown op {brief(op)}: use {', '.join(OPS)}")
    if (target is not None) != (op in ("clamp", "cap")):
        if target is None:
            raise UsageError(f"op {op} needs a target: give one (--target 8)")
        raise UsageError(f"op {op} takes no target: leave it out, or use clamp or cap")
    if target is not None and not math.isfinite(target):
        raise UsageError(f"target is {target}: use a finite number")
    if site is not None and site not in SITES:
        raise UsageError(f"unknown site {brief(site)}: use {', '.join(SITES)}")
    stored = {re.sub("^w_", "W_", name): array for name, array in arrays(path).items()}
    decoder = _decoder(path, stored)
    known = range(decoder.shape[0])
    if isinstance(feature, bool) or not isinstance(feature, (int, np.integer)):
        raise UsageError(f"feature is {brief(feature)}: use a number from 0 to {known[-1]}")
    if feature not in known:
        raise UsageError(f"{path}: there is no feature {feature}: it has 0 to {known[-1]}")
    feature = int(feature)
    coder = _coder(path, stored)
    layer, site = _place(path, coder, layer, site)
    row = decoder.row(feature)
    norm = float(np.linalg.norm(row))
    if norm == 0:
        raise MlxsteerError(f"{path}: feature {feature} is dead: its decoder row is zero")
    fields: dict[str, Any] = {"scales": [norm]}
    if op != "add":
        weight, bias = _encoder(path, stored, coder, feature, op, target)
        fields = {
            "scales": [1],
            "encoders": [norm * weight],
            "encoder_biases": [norm * bias],
            "targets": None if target is None else [norm * target],
        }
    name = f"sae-{feature}"
    told = f"feature {feature} of {printable(path.parent.name)}/{path.name}"
    try:
        vector = Vector(
            name=name,
            layers=(layer,),
            directions=np.array([row / norm], np.float32),
            site=site,
            op=op,
            positive=f"without {told}" if op == "project" else told,
            negative=told if op == "project" else "",
            method=f"SAE {told}" + (f" for {coder.model}" if coder.model else ""),
            tool="SAE import",
            **fields,
        )
    except MlxsteerError as error:
        raise MlxsteerError(f"{path}: {error}") from error
    logging.getLogger("mlxsteer").info(
        "%s: feature %d, uncalibrated, %s at %s of layer %d", path, feature, op, site, layer
    )
    return vector


def _decoder(path: Path, stored: Mapping[str, Array]) -> Array:
    """`W_dec` `[n, D]`, the arrays beside it checked against its shape."""
    if "W_dec" not in stored:
        raise MlxsteerError(f"{path}: it is no SAE: it has no array W_dec of numbers")
    decoder = stored["W_dec"]
    if len(decoder.shape) != 2 or 0 in decoder.shape:
        raise MlxsteerError(f"{path}: W_dec has the shape {list(decoder.shape)}, not [features, D]")
    n, width = decoder.shape
    wanted = {"W_enc": (width, n), "b_enc": (n,), "b_dec": (width,), "threshold": (n,)}
    for name, shape in wanted.items():
        if name in stored and stored[name].shape != shape:
            raise MlxsteerError(
                f"{path}: {name} has the shape {list(stored[name].shape)}, "
                f"beside W_dec {list(decoder.shape)} it is {list(shape)}"
            )
    return decoder


# Where it acts


def _place(path: Path, coder: _Coder, layer: int | None, site: str | None) -> tuple[int, str]:
    """Layer and site, of which caller and file may not say different things."""
    known_layer, known_site = coder.place
    for what, said, known in (("layer", layer, known_layer), ("site", site, known_site)):
        if said is not None and known is not None and said != known:
            raise UsageError(
                f"{path}: {coder.source} is {known_site or 'a site'} of layer {known_layer}: "
                f"leave {what} {brief(said)} out"
            )
    layer = known_layer if layer is None else layer
    if layer is None:
        raise UsageError(
            f"{path}: neither the file nor its folder says the layer: give it (--layer 12)"
        )
    return layer, site or known_site or "resid_post"


def _hooked(path: Path, hook: object) -> tuple[int, str]:
    """Layer and site of a hook name."""
    if match := _HOOK.fullmatch(str(hook)):
        layer, site = int(match[1]), match[2]
        if site != "resid_pre":
            return layer, site
        if layer > 0:
            return layer - 1, "resid_post"
        raise MlxsteerError(f"{path}: it acts on the embeddings ({hook}), where nothing is steered")
    if match := _MODULE.fullmatch(str(hook)):
        return int(match[1]), _MODULES[match[2]]
    raise MlxsteerError(f"{path}: it acts at {brief(hook)}, which is none of {', '.join(SITES)}")


# What the formats say


def _coder(path: Path, stored: Mapping[str, Array]) -> _Coder:
    if path.suffix == ".npz":
        return _gemma_scope(path)
    config = _config(path.with_name("cfg.json")) or _config(path.with_name("config.json"))
    if "encoder.weight" in stored:
        return _eleuther(path)
    if "hf_hook_point_in" in config:
        return _gemma_scope_2(path, config)
    return _saelens(path, config)


def _config(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        with path.open("rb") as file:
            return parsed(file.read(_MAX_JSON), f"{path}: it")
    except OSError as error:
        raise MlxsteerError(f"{path} cannot be read: {error.strerror or error}") from error


def _saelens(path: Path, config: Mapping[str, Any]) -> _Coder:
    """SAELens: version 6 keeps what concerns the model under `metadata`, older ones do not."""
    if not config:
        return _Coder(_NO_CONFIG)
    metadata = config.get("metadata")
    said = {**(metadata if isinstance(metadata, dict) else {}), **config}
    activation = said.get("activation_fn_str") or said.get("activation_fn") or "relu"
    architecture = said.get("architecture") or "standard"
    normalized = said.get("normalize_activations") or "none"
    written = said.get("hook_name_out") or said.get("hook_point_out")
    obstacle = ""
    if architecture not in ("standard", "jumprelu"):
        obstacle = f"its activation is {brief(architecture)}"
    elif activation != "relu":
        obstacle = f"its activation is {brief(activation)}"
    elif normalized != "none":
        obstacle = f"it reads a stream that is normalized ({brief(normalized)})"
    elif written:
        obstacle = "it reads at another place than it writes"
    elif said.get("finetuning_scaling_factor"):
        obstacle = "it scales its features again"
    hook = written or said.get("hook_name") or said.get("hook_point")
    return _Coder(
        obstacle,
        bool(said.get("apply_b_dec_to_input", True)),
        _hooked(path, hook) if hook else (None, None),
        f"{brief(hook)} in cfg.json",
        _words(said.get("model_name")),
    )


def _gemma_scope_2(path: Path, config: Mapping[str, Any]) -> _Coder:
    read = config["hf_hook_point_in"]
    written = config.get("hf_hook_point_out") or read
    obstacle = "" if read == written else "it reads at another place than it writes"
    model = _words(config.get("model_name"))
    return _Coder(
        obstacle, False, _hooked(path, written), f"{brief(written)} in config.json", model
    )


def _gemma_scope(path: Path) -> _Coder:
    """Gemma Scope: all that the file does not hold is in the names of the folders above it."""
    parts = path.absolute().parts[:-1]
    layers = [m[1] for part in parts if (m := re.fullmatch(r"layer_(\d{1,6})", part))]
    scopes = [m for part in parts if (m := re.search(r"(gemma-scope-.+-([a-z]+))$", part))]
    layer = int(layers[-1]) if layers else None
    if not scopes:
        return _Coder(place=(layer, None), source=f"folder layer_{layer}")
    scope, kind = scopes[-1].groups()
    if kind not in _SCOPES:
        raise MlxsteerError(f"{path}: {scope} is of none of {', '.join(SITES)}: take -res or -mlp")
    return _Coder(
        place=(layer, _SCOPES[kind]), source=f"{scope}, folder layer_{layer}", model=_words(scope)
    )


def _eleuther(path: Path) -> _Coder:
    """EleutherAI's sparsify: top-k always."""
    folder = path.absolute().parent.name
    match = _FOLDER.fullmatch(folder)
    place = (int(match[1]), _FOLDERS[match[2]]) if match else (None, None)
    return _Coder("its activation is top-k", place=place, source=f"folder {brief(folder)}")


def _words(value: object) -> str:
    return printable(value[:80]) if isinstance(value, str) else ""


# What it reads


def _encoder(
    path: Path,
    stored: Mapping[str, Array],
    coder: _Coder,
    feature: int,
    op: str,
    target: float | None,
) -> tuple[np.ndarray[Any, np.dtype[np.float64]], float]:
    """Row `[D]` and bias that a relu reads as the SAE does; refused if none can."""
    obstacle = coder.obstacle
    if not obstacle and "threshold" in stored:
        threshold = float(stored["threshold"].column(feature)[0])
        if threshold > 0 and not (op == "cap" and target is not None and target >= threshold):
            obstacle = f"feature {feature} is JumpReLU, 0 up to {threshold:.6g}"
    if missing := {"W_enc", "b_enc", "b_dec"} - stored.keys():
        obstacle = obstacle or f"it has no {' and '.join(sorted(missing))}"
    if obstacle:
        exact = ", or op cap at that or above" if "JumpReLU" in obstacle else ""
        raise MlxsteerError(
            f"{path}: op {op} would read it by a relu, and {obstacle}: use op add{exact}"
        )
    weight = stored["W_enc"].column(feature)
    bias = float(stored["b_enc"].column(feature)[0])
    if coder.subtracts:
        bias -= float(stored["b_dec"].all() @ weight)
    return weight, bias
