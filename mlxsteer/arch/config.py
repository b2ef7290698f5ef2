"""A `config.json` in the words that the definitions read, whichever release wrote it.

transformers 5 keeps all that turns positions under `rope_parameters`, for Gemma 3 once per kind of
layer, and has renamed a few fields. `plain` gives such a config the older names that mlx-lm reads,
too, and refuses what has none: a base or a scaling that is lost makes a model dull without any sign
of an error. It knows nothing of files, weights or layers.

    plain({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}})["rope_theta"]  # 5e5
"""

from dataclasses import MISSING, dataclass, fields
from typing import Any, Self

from mlx_lm.models.base import BaseModelArgs

from ..errors import MlxsteerError

__all__ = ["FamilyArgs", "plain"]

Values = dict[str, Any]

# rope_type -> (what it must bring, what it may bring)
ROPES: dict[str, tuple[set[str], set[str]]] = {
    "default": (set(), set()),
    "dynamic": ({"factor"}, set()),
    "linear": ({"factor"}, set()),
    "llama3": (
        {"factor", "high_freq_factor", "low_freq_factor", "original_max_position_embeddings"},
        set(),
    ),
    "longrope": (
        {"long_factor", "original_max_position_embeddings", "short_factor"},
        {"factor"},
    ),
    "yarn": (
        {"factor", "original_max_position_embeddings"},
        {"beta_fast", "beta_slow", "mscale", "mscale_all_dim"},
    ),
}
GEMMA = "gemma3_text"
KINDS = {"full_attention", "sliding_attention"}  # of layers
# What transformers 5 calls it -> what it was called, where no other family uses the word.
RENAMED = {"qwen3_moe": {"num_local_experts": "num_experts"}}


@dataclass
class FamilyArgs(BaseModelArgs):
    """Arguments of a definition, read from a `config.json` of any release."""

    @classmethod
    def from_dict(cls, params: Values) -> Self:
        """Return the arguments that a config gives; what the family does not use is left out.

        Raises:
            MlxsteerError: a field is missing, or says what no definition here can do.
        """
        config = plain(params)
        needed = (f.name for f in fields(cls) if f.default is f.default_factory is MISSING)
        if missing := [name for name in needed if config.get(name) is None]:
            raise MlxsteerError(f"the config has no {missing[0]}; take one that was not cut down")
        made: Self = super().from_dict(config)
        return made


def plain(config: Values) -> Values:
    """Return a copy of the config with the older names filled in from the newer ones."""
    config = dict(config)
    for new, old in RENAMED.get(config.get("model_type", ""), {}).items():
        if config.get(new) is not None:
            _put(config, old, config[new])
    if config.get("model_type") == GEMMA and config.get("layer_types"):
        _put(config, "sliding_window_pattern", _pattern(config))
    for key in ("rope_scaling", "rope_parameters"):
        if config.get(key) is not None and not isinstance(config[key], dict):
            raise MlxsteerError(f"{key} is {config[key]!r}, not a table")
    rope = config.get("rope_parameters")
    if not rope:
        return config
    if config.get("model_type") == GEMMA:
        _put_gemma(config, rope)
    elif KINDS & set(rope):
        raise MlxsteerError(
            f"rope_parameters are given per kind of layer ({', '.join(sorted(rope))}), which is "
            f"not known for {config.get('model_type')}"
        )
    else:
        _put_rope(config, rope)
    return config


def _put(config: Values, key: str, value: Any) -> None:
    """Set what is not set yet; two places that disagree are refused."""
    if config.get(key) is not None and config[key] != value:
        raise MlxsteerError(
            f"the config says {key} is {config[key]!r} in one place and {value!r} in another"
        )
    config[key] = value


def _put_gemma(config: Values, rope: Values) -> None:
    if set(rope) != KINDS or not all(isinstance(table, dict) for table in rope.values()):
        raise MlxsteerError(
            f"rope_parameters of {GEMMA} have {', '.join(sorted(rope))}, not a table for each of "
            f"{', '.join(sorted(KINDS))}"
        )
    _put_rope(config, rope["full_attention"])
    sliding = {"max_position_embeddings": config.get("max_position_embeddings")}
    _put_rope(sliding, rope["sliding_attention"])
    if sliding["rope_scaling"] is not None:
        raise MlxsteerError(
            f"rope_parameters scale sliding_attention by {sliding['rope_scaling']['type']!r}, "
            f"which is not known for {GEMMA}"
        )
    _put(config, "rope_local_base_freq", sliding["rope_theta"])


def _put_rope(config: Values, rope: Values) -> None:
    """Set `rope_theta`, `rope_scaling` and what belongs beside them."""
    rest = {key: value for key, value in rope.items() if value is not None}
    theta = rest.pop("rope_theta", config.get("rope_theta"))
    if theta is None:
        raise MlxsteerError(
            "rope_parameters has no rope_theta; take a config that was not cut down"
        )
    kind = rest.pop("rope_type", None) or rest.get("type", "default")
    if rest.pop("type", kind) != kind or kind not in ROPES:
        raise MlxsteerError(
            f"rope_parameters has the type {rope.get('type', kind)!r}; known are {', '.join(ROPES)}"
        )
    if (part := rest.pop("partial_rotary_factor", None)) is not None:
        if config.get("model_type") != "phi3" and part != 1:
            raise MlxsteerError(
                f"partial_rotary_factor is {part!r}, which is not known for "
                f"{config.get('model_type')}"
            )
        _put(config, "partial_rotary_factor", part)
    if kind == "longrope":
        _check_longrope(config, rest)
    needed, allowed = ROPES[kind]
    if missing := needed - set(rest):
        raise MlxsteerError(f"rope_parameters of type {kind!r} has no {min(missing)}")
    if unknown := set(rest) - needed - allowed:
        raise MlxsteerError(
            f"rope_parameters of type {kind!r} has {min(unknown)}, which is not known"
        )
    _put(config, "rope_theta", theta)
    _put_scaling(config, None if kind == "default" else {"type": kind, "rope_type": kind, **rest})


def _check_longrope(config: Values, rest: Values) -> None:
    """Its stretch is that of the context, which is the only one that definitions compute."""
    original = rest.get("original_max_position_embeddings")
    if original is None:
        original = config.get("original_max_position_embeddings")
    if original is None:
        return
    rest["original_max_position_embeddings"] = original
    _put(config, "original_max_position_embeddings", original)
    longest = config.get("max_position_embeddings")
    if "factor" in rest and longest != rest["factor"] * original:
        raise MlxsteerError(
            f"rope_parameters stretches by {rest['factor']!r}, the context grows from {original!r} "
            f"to {longest!r}"
        )


def _put_scaling(config: Values, scaling: Values | None) -> None:
    """Set `rope_scaling`; one that is there already must say the same in what both say."""
    old = config.get("rope_scaling")
    if old is not None:
        kind = old.get("rope_type") or old.get("type") or "default"
        new = scaling or {"rope_type": "default"}
        shared = (set(old) & set(new)) - {"rope_type", "type"}
        if kind != new["rope_type"] or any(old[key] != new[key] for key in shared):
            raise MlxsteerError(
                f"the config says rope_scaling is {old!r} in one place and {scaling!r} in another"
            )
    config["rope_scaling"] = scaling


def _pattern(config: Values) -> int:
    """Every how many layers one sees everything, from the kinds of the layers."""
    kinds, pattern = config["layer_types"], config.get("sliding_window_pattern")
    if pattern is None:
        pattern = config.get("_sliding_window_pattern")
    if pattern is None:
        full = "full_attention"
        pattern = kinds.index(full) + 1 if full in kinds else len(kinds) + 1
    regular = [
        "sliding_attention" if (layer + 1) % pattern else "full_attention"
        for layer in range(len(kinds))
    ]
    if kinds != regular:
        raise MlxsteerError(
            f"layer_types do not repeat every {pattern} layers, which is all that is known for "
            f"{GEMMA}"
        )
    found: int = pattern
    return found
