"""Vectors of others, and one entry point for all vector files.

`control_vector` reads and writes the GGUF files of llama.cpp and repeng, `ds4` the headerless
`.f32` of ds4, and `sae` reads features of sparse autoencoders. None of their formats has a
calibration: each module says what strength 1 does. Pickles are never read.

    load_vector("joyful.safetensors")
    load_vector("joyful.gguf")
    load_vector("verbosity.f32", hidden_size=4096, site="attn_out")
    load_vector("sae_weights.safetensors", feature=123)
    load_vector("owner/name@v1:joyful", model=model.source)

It knows nothing of models: `Vector.check` compares width, layers and origin.
"""

import os
from pathlib import Path

from ..errors import MlxsteerError, UsageError
from ..hub_ref import HubRef
from ..model_ref import ModelRef
from ..progress import Progress, silent
from ..values import brief
from ..vector import Vector, read_vector
from ..vector_file import foreign_format
from .control_vector import read_control_vector, write_control_vector
from .ds4 import read_ds4, write_ds4
from .sae import read_sae

__all__ = [
    "load_vector",
    "read_control_vector",
    "read_ds4",
    "read_sae",
    "write_control_vector",
    "write_ds4",
]


def load_vector(
    path: str | os.PathLike[str],
    *,
    hidden_size: int | None = None,
    feature: int | None = None,
    layer: int | None = None,
    op: str = "add",
    target: float | None = None,
    site: str | None = None,
    model: ModelRef | None = None,
    progress: Progress = silent,
) -> Vector:
    """Read a vector from any file that holds one, or from the Hub.

    Args:
        path: .safetensors of mlxsteer, a .gguf control vector, ds4's .f32; with a feature, an SAE.
            Or `owner/name[@revision][:concept]`, a repository of the Hub.
        hidden_size: the width `D` that it must have; an .f32 file does not say its own.
        feature: of an SAE.
        layer: of an SAE whose file and folder do not say it.
        op, target: what is done with the feature, as in `read_sae`; the other formats say theirs.
        site: where an .f32 is to act, `mlp_out` or `attn_out`.
        model: `source` of the model that is to be steered, for a repository with several vectors.
        progress: told of a download.
    """
    if (ref := HubRef.parse(str(path))) is not None:
        from ..hub import open_repo  # asks for huggingface_hub, which files can do without

        shared = open_repo(ref, progress)
        path = shared.fetch(shared.choose(model), progress)
    path = Path(path)
    if site is not None and path.suffix != ".f32":
        raise UsageError(f"{path}: site {brief(site)} is for ds4's .f32: leave it out")
    vector = _read(path, hidden_size, feature, layer, op, target, site)
    if hidden_size is not None and vector.hidden_size != hidden_size:
        raise MlxsteerError(
            f"{path}: it has width {vector.hidden_size}, not {hidden_size}: "
            "it is for another model; extract it on this one"
        )
    return vector


def _read(
    path: Path,
    hidden_size: int | None,
    feature: int | None,
    layer: int | None,
    op: str,
    target: float | None,
    site: str | None,
) -> Vector:
    """Choose the reader by the first bytes, and by the suffix where these say too little."""
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise MlxsteerError(f"{path} cannot be read: {error.strerror or error}") from error
    is_npz = head[:4] == b"PK\x03\x04" and path.suffix == ".npz"
    if feature is not None:
        return read_sae(path, feature, layer=layer, op=op, target=target)
    if is_npz:
        raise UsageError(
            f"{path}: only an SAE is read from .npz: choose one of its features "
            "(mlxsteer vectors convert FILE.npz FILE.safetensors --feature N)"
        )
    for what, given in (("layer", layer), ("op", op if op != "add" else None), ("target", target)):
        if given is not None:
            raise UsageError(
                f"{path}: {what} {brief(given)} is for a feature of an SAE: leave it out, or give "
                "the feature"
            )
    if head[:4] == b"GGUF":
        return read_control_vector(path)
    if path.suffix == ".f32":
        return read_ds4(path, hidden_size, site)
    if path.suffix == ".safetensors" or head[8:9] == b"{":
        return read_vector(path)
    raise MlxsteerError(f"{path}: {foreign_format(head)}")
