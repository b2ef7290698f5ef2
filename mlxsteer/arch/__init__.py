"""Our own model definitions, one file per family, each with residual taps at every join.

A family's file has `ModelArgs` and `Model` in mlx-lm's protocol (`layers`, `make_cache`,
`sanitize`, and `shard` where mlx-lm has it), and `model(tokens, cache=None, taps=None)`; `parts`
holds what families share. This package maps a checkpoint's `model_type` to its file; it knows
nothing of weights, files or steering.
"""

import importlib
from typing import Any

from ..errors import MlxsteerError

__all__ = ["FAMILIES", "get_classes"]

# model_type of a config.json -> module of this package
FAMILIES = {
    "deepseek_v4": "deepseek_v4",
    "gemma3": "gemma3",
    "gemma3_text": "gemma3_text",
    "llama": "llama",
    "mistral": "llama",
    "phi3": "phi3",
    "qwen2": "qwen2",
    "qwen3": "qwen3",
    "qwen3_moe": "qwen3_moe",
}


def get_classes(config: dict[str, Any]) -> tuple[type, type]:
    """Return `(Model, ModelArgs)` for a checkpoint's config.

    Raises:
        MlxsteerError: there is no definition for this `model_type`.
    """
    model_type = config.get("model_type")
    if model_type not in FAMILIES:
        known = ", ".join(sorted(FAMILIES))
        raise MlxsteerError(
            f"no model definition with taps for model_type {model_type!r}; "
            f"there is one for: {known}"
        )
    module = importlib.import_module(f".{FAMILIES[model_type]}", __name__)
    return module.Model, module.ModelArgs
