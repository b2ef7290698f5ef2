"""Load a model from a local folder: `config.json`, `model*.safetensors`, tokenizer files.

mlx-lm opens the weights. We give it our definition, or adopt its own where we have none. They stay
unread until they are converted, one module at a time, the largest first, so that loading needs
little more memory than the model. Only safetensors are read and no code that comes with a model is
run. It knows nothing of the Hub, of model names or of devices.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from math import prod
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from huggingface_hub.errors import StrictDataclassError
from mlx_lm.models.mla import MultiLinear, QuantizedMultiLinear
from mlx_lm.models.switch_layers import QuantizedSwitchLinear, SwitchLinear
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_model, load_tokenizer
from safetensors import SafetensorError, safe_open

from .adopt import adopt
from .definition import ARGUMENT_ERRORS, check_config, classes, is_own, one_line
from .errors import MlxsteerError
from .progress import Progress, silent

__all__ = [
    "config_quantization",
    "dtype_of",
    "folder_bytes",
    "folder_tokenizer",
    "load_folder",
    "read_config",
]

LOADING_ERRORS = (*ARGUMENT_ERRORS, AssertionError, RuntimeError)
TOKENIZER_ERRORS = (*ARGUMENT_ERRORS, OSError, StrictDataclassError)  # it reads the config, too
BITS = {"F64": 64, "F32": 32, "U32": 32, "F16": 16, "BF16": 16, "U8": 8}


def read_config(folder: Path) -> dict[str, Any]:
    """The `config.json` of a folder, checked as `check_config` does."""
    path = folder / "config.json"
    if not path.is_file():
        raise MlxsteerError(f"{folder} has no config.json; give the folder of a whole model")
    config = _read_json(path)
    check_config(config, str(path))
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_bytes())
    except OSError as error:
        raise MlxsteerError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise MlxsteerError(f"{path} is not JSON: {error}; download it again") from error
    if not isinstance(values, dict):
        raise MlxsteerError(f"{path} is not a JSON object; download it again")
    return values


def config_quantization(config: dict[str, Any]) -> str:
    """How the weights are packed: "4bit-g64", "4bit-g32-mxfp4", "none"; else the method's name."""
    packing = config.get("quantization")
    if isinstance(packing, dict) and "bits" in packing:
        mode = packing.get("mode", "affine")
        suffix = "" if mode == "affine" else f"-{mode}"
        return f"{packing['bits']}bit-g{packing.get('group_size')}{suffix}"
    other = config.get("quantization_config")
    return str(other.get("quant_method", "unknown")) if isinstance(other, dict) else "none"


def folder_bytes(
    folder: Path, config: dict[str, Any], dtype: mx.Dtype | None, keep_quantized: bool
) -> int:
    """Bytes of all weights once loaded, from the headers of the weight files.

    Raises:
        MlxsteerError: there are no weights, a file is missing or damaged.
    """
    sizes: dict[str, tuple[str, list[int]]] = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    part = file.get_slice(name)
                    sizes[name] = part.get_dtype(), part.get_shape()
        except (OSError, SafetensorError) as error:
            raise MlxsteerError(
                f"{path} is damaged: {one_line(error)}; download it again"
            ) from error
    layers = getattr(check_config(config, str(folder)), "num_hidden_layers", None)
    if type(layers) is int and layers > len(sizes):
        raise MlxsteerError(
            f"{folder}: config.json says {layers} layers, the weights are {len(sizes)} tensors; "
            "the files do not belong together"
        )
    unread: tuple[str, ...] = getattr(classes(config)[0], "UNREAD", ())
    total, width = 0.0, (dtype or mx.float32).size
    for name, (kind, shape) in sizes.items():
        if name.startswith(unread):
            continue
        module, _, parameter = name.rpartition(".")
        scales = sizes.get(f"{module}.scales")
        if scales is None or keep_quantized or parameter == "bias":
            as_stored = dtype is None or kind in ("U32", "U8")
            total += prod(shape) * (BITS.get(kind, 8) / 8 if as_stored else width)
        elif parameter == "weight":
            group = _group_size(config.get("quantization"), module)
            total += prod(scales[1]) * group * width
    return int(total)


def _group_size(packing: object, module: str) -> int:
    if not isinstance(packing, dict):
        return 0
    own = packing.get(module)
    size = (own if isinstance(own, dict) else packing).get("group_size")
    return size if type(size) is int else 0


def _weight_files(folder: Path) -> list[Path]:
    found = sorted(folder.glob("model*.safetensors"))
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        names = _read_json(index).get("weight_map")
        if not isinstance(names, dict) or not all(isinstance(v, str) for v in names.values()):
            raise MlxsteerError(f"{index} has no weight_map; download it again")
        missing = sorted(set(names.values()) - {path.name for path in found})
        if missing:
            raise MlxsteerError(
                f"{folder}: {missing[0]} is missing ({len(missing)} of "
                f"{len(set(names.values()))} weight files); download it again"
            )
    if not found:
        pickled = [p.name for p in folder.iterdir() if p.suffix in (".bin", ".pt", ".pth")]
        hint = f" ({sorted(pickled)[0]} is a pickle, which is not opened)" if pickled else ""
        raise MlxsteerError(
            f"{folder} has no weights: no model*.safetensors{hint}; give the folder of a whole "
            "model, or convert it with mlx_lm.convert"
        )
    return found


def load_folder(
    folder: Path,
    *,
    dtype: mx.Dtype | None,
    keep_quantized: bool,
    progress: Progress = silent,
) -> nn.Module:
    """Build the model; `dtype` None keeps what is stored, else all that is not packed is in it."""
    config = read_config(folder)
    packing = getattr(classes(config)[0], "packing", None)  # a family's own, of its files
    said = packing(config) if packing is not None else None
    try:
        model, config = load_model(folder, lazy=True, model_config=said, get_model_classes=classes)
    except LOADING_ERRORS as error:
        raise MlxsteerError(f"{folder} cannot be loaded: {one_line(error)}") from error
    convert(model, dtype=dtype, keep_quantized=keep_quantized, progress=progress)
    if is_own(config):
        return model
    try:
        return adopt(model)
    except LOADING_ERRORS as error:
        raise MlxsteerError(f"{folder} cannot be run here: {one_line(error)}") from error


def convert(
    model: nn.Module,
    *,
    dtype: mx.Dtype | None,
    keep_quantized: bool,
    progress: Progress = silent,
) -> None:
    """Read the weights of a model in place, module by module, dequantized and cast as asked."""
    cast: Callable[[str], bool] = getattr(model, "cast_predicate", lambda name: True)
    modules = sorted(model.named_modules(), key=lambda named: -_own_bytes(named[1]))
    for done, (path, module) in enumerate(modules):
        progress("loading weights", done, len(modules))
        if not keep_quantized and "scales" in module:
            module = _dense_twin(path, module, dtype or mx.float32)
            _put(model, path, module)
        elif dtype is not None and getattr(module, "mode", "affine") == "affine":
            for name, array in _own(module):
                if mx.issubdtype(array.dtype, mx.floating) and cast(f"{path}.{name}"):
                    module[name] = array.astype(dtype)
        mx.eval([array for _, array in _own(module)])
    mx.clear_cache()
    progress("loading weights", len(modules), len(modules))


def _own(module: nn.Module) -> Iterator[tuple[str, mx.array]]:
    """The parameters of a module itself: not its children's, nor what it keeps as `_name`.

    The latter, such as the frequencies of rotary positions, are no weights and keep their dtype.
    """
    return (
        (name, value)
        for name, value in list(module.items())
        if isinstance(value, mx.array) and not name.startswith("_")
    )


def _own_bytes(module: nn.Module) -> int:
    return sum(array.nbytes for _, array in _own(module))


def _dense_twin(path: str, module: nn.Module, dtype: mx.Dtype) -> nn.Module:
    """The plain module that computes what a quantized one does, exactly if `dtype` is float32."""
    if getattr(module, "global_scale", None) is not None:
        raise _no_plain_form(path, f"{type(module).__name__} with a global scale")
    scales, biases = module["scales"], module.get("biases")
    if module.mode == "affine":  # arithmetic in the dtype of the scales: let it be float32
        scales = scales.astype(mx.float32)
        biases = biases if biases is None else biases.astype(mx.float32)
    weight = mx.dequantize(
        module["weight"],
        scales,
        biases,
        group_size=module.group_size,
        bits=module.bits,
        mode=module.mode,
        dtype=mx.float32,
    ).astype(dtype)
    *experts, rows, columns = weight.shape
    twin: nn.Module
    if isinstance(module, nn.QuantizedEmbedding):
        twin = nn.Embedding(rows, columns)
    elif isinstance(module, nn.QuantizedLinear):
        twin = nn.Linear(columns, rows, bias="bias" in module)
    elif isinstance(module, QuantizedSwitchLinear):
        twin = SwitchLinear(columns, rows, experts[0], bias="bias" in module)
    elif isinstance(module, QuantizedMultiLinear):
        twin = MultiLinear(columns, rows, experts[0])
    else:
        raise _no_plain_form(path, type(module).__name__)
    twin.weight = weight
    if "bias" in module:
        twin.bias = module["bias"].astype(dtype)
    return twin


def _no_plain_form(path: str, kind: str) -> MlxsteerError:
    return MlxsteerError(
        f"{path} is a {kind}, which has no plain form; load it with keep_quantized "
        "(--keep-quantized)"
    )


def _put(model: nn.Module, path: str, module: nn.Module) -> None:
    *route, last = path.split(".")
    node: Any = model
    for step in route:
        node = node[int(step)] if isinstance(node, list) else node[step]
    node[last] = module


def dtype_of(model: nn.Module) -> mx.Dtype:
    """The floating dtype of most parameters, which is that of the activations."""
    kinds: Counter[mx.Dtype] = Counter()
    for _, module in model.named_modules():
        for _, array in _own(module):
            if mx.issubdtype(array.dtype, mx.floating):
                kinds[array.dtype] += array.size
    return kinds.most_common(1)[0][0]


def folder_tokenizer(folder: Path, config: dict[str, Any]) -> TokenizerWrapper:
    """The tokenizer with every end token of `config.json` and `generation_config.json`.

    Without a chat template it takes that of its family, if there is one.
    """
    nested = config.get("text_config")
    ends = _ids(config.get("eos_token_id"))
    ends |= _ids(nested.get("eos_token_id")) if isinstance(nested, dict) else set()
    generation = folder / "generation_config.json"
    if generation.is_file():
        ends |= _ids(_read_json(generation).get("eos_token_id"))
    try:
        tokenizer: TokenizerWrapper = load_tokenizer(
            folder, {"trust_remote_code": False}, eos_token_ids=sorted(ends)
        )
    except Exception as error:
        # for a damaged tokenizer.json, tokenizers raises Exception itself and nothing narrower
        if type(error) is not Exception and not isinstance(error, TOKENIZER_ERRORS):
            raise
        if "trust_remote_code" in str(error):
            raise MlxsteerError(
                f"{folder}: the tokenizer wants to run its own code; "
                "mlxsteer runs no code from models"
            ) from error
        raise MlxsteerError(f"{folder} has no usable tokenizer: {one_line(error)}") from error
    template = getattr(classes(config)[0], "CHAT_TEMPLATE", None)
    if template is not None and not tokenizer.has_chat_template:
        tokenizer.chat_template, tokenizer.has_chat_template = template, True
    return tokenizer


def _ids(value: object) -> set[int]:
    values = value if isinstance(value, list) else [value]
    return {number for number in values if type(number) is int}
