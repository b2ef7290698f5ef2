"""Steer language models with MLX.

The names below are all there is to know; each loads its module when it is first used, so that
`import mlxsteer` costs next to nothing. Import mlxsteer before mlx: on Linux it opens the fast BLAS
that mlx takes up only while it is being imported (see `mlxsteer.backend`).

    from mlxsteer import Steering, generate, load, load_vector

    model, tokenizer = load("smollm2-135m")
    joy = load_vector("joyful.safetensors")
    print(generate(model, tokenizer, "How was your day?", steering=Steering((joy, 1.0))))
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from .backend import open_blas

if TYPE_CHECKING:
    from .adopt import adopt
    from .errors import MlxsteerError
    from .extract import extract
    from .generate import forward, generate, stream_generate
    from .interop import load_vector
    from .loading import load
    from .runtime import Steered
    from .steering import Steering
    from .vector import Vector

__all__ = [
    "MlxsteerError",
    "Steered",
    "Steering",
    "Vector",
    "adopt",
    "extract",
    "forward",
    "generate",
    "load",
    "load_vector",
    "stream_generate",
]

__version__ = "0.1.0"

open_blas()

_HOME = {
    "MlxsteerError": "errors",
    "Steered": "runtime",
    "Steering": "steering",
    "Vector": "vector",
    "adopt": "adopt",
    "extract": "extract",
    "forward": "generate",
    "generate": "generate",
    "load": "loading",
    "load_vector": "interop",
    "stream_generate": "generate",
}


class _Package(ModuleType):
    """Keeps `adopt`, `extract` and `generate`, which importing their modules would hide."""

    def __setattr__(self, name: str, value: object) -> None:
        if name in _HOME and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package


if not TYPE_CHECKING:  # a type checker would take any name for a public one

    def __getattr__(name: str) -> object:
        if name not in _HOME:
            raise AttributeError(f"module 'mlxsteer' has no attribute {name!r}")
        value = getattr(import_module(f"mlxsteer.{_HOME[name]}"), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
