"""Which model a vector belongs to, and when two names mean the same weights.

Knows nothing of loading and of the Hub: names are compared as text.
"""

import re
from dataclasses import asdict, dataclass, fields
from typing import Any

from .errors import MlxsteerError
from .values import brief

__all__ = ["ModelRef", "base_name", "misfit"]

# What repositories append to a model's name when they pack or convert the same weights.
_PACKING = re.compile(
    r"""(?<=.)[-_.](?:
    gguf | ggml | mlx | hf | safetensors | awq | gptq | hqq | exl[23] | bnb | unsloth | dwq
    | (?:m-)?dq
    | imatrix | i1 | dynamic | quantized
    | (?:bf|fp|f|int|mxfp|nvfp)\d+ | w\d+a\d+ | i?q\d+(?:_[a-z0-9]+)* | \d+(?:\.\d+)?-?(?:bits?|bpw)
    | gs?\d+ | group-?\d+
    )$""",
    re.VERBOSE,
)


def base_name(repo: str) -> str:
    """Return the model's own name: no owner, no quantization or file format, lower case.

    `mlx-community/Llama-3.2-1B-Instruct-4bit` and `bartowski/Llama-3.2-1B-Instruct-GGUF` are both
    `llama-3.2-1b-instruct`. What changes the weights before packing (`-qat`, `-instruct`) stays.
    """
    name = repo.rstrip("/").rsplit("/", 1)[-1].lower()
    while (shorter := _PACKING.sub("", name)) != name:
        name = shorter
    return name


# Types of one computation: a GGUF of Mistral says llama, one of Gemma 3 holds the text model only.
_SAME = {"mistral": "llama", "gemma3_text": "gemma3"}


@dataclass(frozen=True)
class ModelRef:
    """The model that a vector was extracted on, or the one that is loaded.

    Attributes:
        repo: Hub id, folder or file name; "" when only the shape is known.
        revision: commit, or "sha256:..." of a file's header.
        quantization: such as "q4_1", "4bit-g64" or "none".
        dtype: of the activations, such as "float32".
    """

    repo: str
    revision: str
    model_type: str
    n_layers: int
    hidden_size: int
    quantization: str
    dtype: str

    def __post_init__(self) -> None:
        for key, value in asdict(self).items():
            if key in ("n_layers", "hidden_size"):
                if type(value) is not int or value < 1:
                    raise MlxsteerError(f"model.{key} is {brief(value)}: use a number from 1")
            elif not isinstance(value, str):
                raise MlxsteerError(f"model.{key} is {brief(value)}: use a string")

    @classmethod
    def from_json(cls, value: Any) -> "ModelRef":
        """Return the reference that `dataclasses.asdict` made `value` of."""
        names = [f.name for f in fields(cls)]
        if not isinstance(value, dict) or sorted(value) != sorted(names):
            raise MlxsteerError(f"model is {brief(value)}: its fields are {', '.join(names)}")
        return cls(**value)

    def __str__(self) -> str:
        return self.repo or f"a {self.model_type} model of {self.n_layers} layers"

    def same_model(self, other: "ModelRef") -> bool:
        """Whether both are the same weights, whatever the owner, the quantization and the dtype."""
        if (self.n_layers, self.hidden_size) != (other.n_layers, other.hidden_size):
            return False
        # a GGUF file of a Mistral says that it is a llama
        types = {_SAME.get(m.model_type, m.model_type) for m in (self, other)}
        named = self.repo != "" and other.repo != ""
        return len(types) == 1 and (not named or base_name(self.repo) == base_name(other.repo))

    def differences(self, other: "ModelRef") -> str:
        """Return in words what sets two packings of one model apart; dtypes do not."""
        return ", ".join(
            f"{key} {getattr(self, key) or 'unknown'} -> {getattr(other, key) or 'unknown'}"
            for key in ("repo", "revision", "quantization")
            if getattr(self, key) != getattr(other, key)
        )


def misfit(
    model: ModelRef, width: int, layers: tuple[int, ...], origin: ModelRef | None = None
) -> str:
    """Return why a vector of this width, layers and origin is none for `model`; "" if it fits."""
    if width != model.hidden_size:
        return f"has width {width}, {model} has {model.hidden_size}"
    if origin and origin.n_layers != model.n_layers:
        return f"is for {origin.n_layers} layers, {model} has {model.n_layers}"
    if layers and layers[-1] >= model.n_layers:
        return f"steers layer {layers[-1]}, {model} has {model.n_layers} layers"
    if origin and not origin.same_model(model):
        return f"is from {origin} ({origin.model_type}), not from {model} ({model.model_type})"
    return ""
