"""Which classes define a checkpoint's model: our own where there is one, else those of mlx-lm.

A config is refused in one line where it names no model that can be steered: an encoder, a type that
is unknown, absurd sizes, code of its own. It knows nothing of weights, files or steering.
"""

from importlib.metadata import version
from typing import Any

from mlx_lm.utils import _get_classes as mlx_lm_classes

from .arch import FAMILIES, get_classes
from .errors import MlxsteerError

__all__ = ["ARGUMENT_ERRORS", "check_config", "classes", "is_own", "one_line"]

# What a config counts -> the most that is believed, so that no list without end is ever built.
SIZES = {
    **dict.fromkeys(("hidden_size", "n_embd", "d_model", "model_dim", "hidden_dim"), 1 << 24),
    **dict.fromkeys(("intermediate_size", "vocab_size"), 1 << 28),
    **dict.fromkeys(("num_attention_heads", "n_head", "n_heads", "num_heads"), 1 << 20),
    **dict.fromkeys(("num_experts", "n_routed_experts", "num_local_experts"), 1 << 20),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "n_layers", "num_layers"), 1 << 16),
}
ALWAYS = ("hidden_size", "num_hidden_layers", "vocab_size")  # what our own arguments have
# What a config without the keys that are needed, or with absurd values, makes the classes raise.
ARGUMENT_ERRORS = (AttributeError, KeyError, TypeError, ValueError, ZeroDivisionError)


def is_own(config: dict[str, Any]) -> bool:
    """Whether the definition is our own."""
    return config.get("model_type") in FAMILIES


def classes(config: dict[str, Any]) -> tuple[type, type]:
    """Return `(Model, ModelArgs)` for a checkpoint's config.

    Raises:
        MlxsteerError: neither we nor mlx-lm have a definition for this `model_type`.
    """
    if is_own(config):
        return get_classes(config)
    name = config["model_type"]
    try:
        found: tuple[type, type] = mlx_lm_classes(config)
    except SystemExit as error:  # one module of mlx-lm ends the program where a package is missing
        raise MlxsteerError(f"mlx-lm lacks a package for model_type {name!r}") from error
    except (AttributeError, TypeError, ValueError) as error:
        raise MlxsteerError(
            f"model_type {name!r} is known neither to mlxsteer nor to mlx-lm "
            f"{version('mlx-lm')}: a newer mlx-lm may know it"
        ) from error
    return found


def check_config(config: dict[str, Any], where: str) -> Any:
    """Return the arguments of the model's definition.

    Raises:
        MlxsteerError: the config is refused; the line begins with `where`.
    """
    if not isinstance(config.get("model_type"), str):
        raise MlxsteerError(f"{where}: there is no model_type; this is no language model's config")
    if config.get("model_file") is not None:
        raise MlxsteerError(
            f"{where}: the model wants to run its own code, {config['model_file']!r}; "
            "mlxsteer runs no code from models"
        )
    if _is_encoder(config):
        raise MlxsteerError(
            f"{where}: this {config['model_type']} is an encoder, which writes no text: "
            "give a language model"
        )
    try:
        args_class = classes(config)[1]
    except MlxsteerError as error:
        raise MlxsteerError(f"{where}: {error}") from error
    own = is_own(config)
    nested = config.get("text_config")
    for table in (config, nested if isinstance(nested, dict) else {}):
        for key in SIZES.keys() & table.keys():
            if own or type(table[key]) is int:  # elsewhere it may be a list, one for each layer
                _check_size(key, table[key], where)
    try:
        args = args_class.from_dict(config)  # type: ignore[attr-defined]
    except MlxsteerError as error:
        raise MlxsteerError(f"{where}: {error}") from error
    except ARGUMENT_ERRORS as error:
        raise MlxsteerError(f"{where} cannot be used: {one_line(error)}") from error
    for key in ALWAYS if own else ():
        _check_size(key, getattr(args, key), where)
    return args


def _is_encoder(config: dict[str, Any]) -> bool:
    nested = config.get("text_config")
    tables = (config, nested if isinstance(nested, dict) else {})
    if config.get("is_encoder_decoder") is True:
        return True
    # Gemma's says "vision" where it means images only
    if any(table.get("use_bidirectional_attention") is True for table in tables):
        return True
    names = config.get("architectures")
    return isinstance(names, list) and any("MaskedLM" in str(name) for name in names)


def _check_size(key: str, value: object, where: str) -> None:
    if type(value) is not int or not 0 < value <= SIZES[key]:
        raise MlxsteerError(f"{where}: {key} is {value!r}, not a number from 1 to {SIZES[key]}")


def one_line(error: Exception) -> str:
    """What another library said, as one short line."""
    text = " ".join(str(error).split())
    return text if len(text) <= 240 else f"{text[:240]}..."
