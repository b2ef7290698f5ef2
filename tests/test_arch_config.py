"""Configs of transformers 5 give the numbers of those that came before, or are refused."""

import copy
import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from mlx.utils import tree_flatten
from tiny import config, tiny
from transformers import AutoConfig

from mlxsteer.arch import get_classes
from mlxsteer.arch.config import plain
from mlxsteer.errors import MlxsteerError

TOKENS = mx.arange(60)[None]
LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}
LINEAR = {"rope_type": "linear", "factor": 8.0}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 4, "long_factor": [1.0, 1.5, 2.5, 4.0]}
HALF = {"partial_rotary_factor": 0.5, "original_max_position_embeddings": 64}

# name -> (family, changes of the config in the old words); bases are nobody's default
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"rope_theta": 300.0}),
    "llama3": ("llama", {"rope_theta": 300.0, "rope_scaling": LLAMA3}),
    "linear": ("llama", {"rope_theta": 300.0, "rope_scaling": LINEAR}),
    "mistral": ("llama", {"rope_theta": 300.0, "model_type": "mistral"}),
    "qwen2": ("qwen2", {"rope_theta": 300.0}),
    "qwen2 yarn": ("qwen2", {"rope_theta": 300.0, "rope_scaling": YARN}),
    "qwen3": ("qwen3", {"rope_theta": 300.0}),
    "qwen3 yarn": ("qwen3", {"rope_theta": 300.0, "rope_scaling": YARN}),
    "qwen3_moe": ("qwen3_moe", {"rope_theta": 300.0}),
    "phi3": ("phi3", {"rope_theta": 300.0}),
    "phi3 longrope": ("phi3", {"rope_theta": 300.0, "rope_scaling": LONGROPE, **HALF}),
    "gemma3_text": (
        "gemma3_text",
        {"rope_theta": 3e3, "rope_local_base_freq": 300.0, "rope_scaling": LINEAR},
    ),
    "gemma3_text windows": ("gemma3_text", {"sliding_window_pattern": 3}),
    "gemma3": (
        "gemma3",
        {"rope_theta": 3e3, "rope_local_base_freq": 300.0, "rope_scaling": LINEAR},
    ),
}
# What transformers 5 does not write any more.
GONE = {"rope_theta", "rope_scaling", "rope_local_base_freq", "sliding_window_pattern"}


def saved(values: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What transformers makes of a config."""
    known = copy.deepcopy({key: value for key, value in values.items() if key != "model_type"})
    AutoConfig.for_model(values["model_type"], **known).save_pretrained(folder)
    written: dict[str, Any] = json.loads((folder / "config.json").read_text())
    for table in (written, written.get("text_config", {})):
        table.pop("sliding_window_pattern", None)  # it keeps what it is given
        assert not GONE & set(table)
    return written


def built(values: dict[str, Any], like: nn.Module) -> nn.Module:
    """A model of this config with the weights of another."""
    model_class, args_class = get_classes(values)
    model: nn.Module = model_class(args_class.from_dict(values))  # type: ignore[attr-defined]
    weights = dict(tree_flatten(like.parameters()))
    model.load_weights(list(model.sanitize(weights).items()))
    return model


@pytest.mark.parametrize("name", CASES)
def test_saved_by_transformers_5(name: str, tmp_path: Path) -> None:
    family, changes = CASES[name]
    model = tiny(family=family, tie_word_embeddings=True, **changes)
    values = saved(config(family, tie_word_embeddings=True, **changes), tmp_path)
    assert mx.array_equal(built(values, model)(TOKENS), model(TOKENS))
    # and what is lost would be noticed
    for table in (values, values.get("text_config", {})):
        for key in ("rope_parameters", "layer_types", "_sliding_window_pattern"):
            table.pop(key, None)
        if family in ("qwen3", "qwen3_moe"):
            table["rope_theta"] = 1e4
    assert not mx.array_equal(built(values, model)(TOKENS), model(TOKENS))


def test_what_is_given_is_not_altered() -> None:
    values = {"model_type": "llama", "rope_parameters": {**LLAMA3, "rope_theta": 300.0}}
    before = repr(values)
    plain(values)
    assert repr(values) == before


def test_old_configs_stay_as_they_are() -> None:
    for family in ("llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma3_text", "gemma3"):
        assert plain(config(family)) == config(family)


def test_both_ways_of_writing_may_stand_side_by_side() -> None:
    values = {
        "model_type": "llama",
        "rope_theta": 300,
        "rope_scaling": LLAMA3,
        "rope_parameters": {**LLAMA3, "rope_theta": 300.0},
    }
    assert plain(values)["rope_theta"] == 300
    assert plain(values)["rope_scaling"] == {"type": "llama3", **LLAMA3}


def test_a_pattern_is_found_in_the_kinds_of_layers() -> None:
    sliding, full = "sliding_attention", "full_attention"
    for kinds, pattern in (
        ([full, full], 1),
        ([sliding, full, sliding], 2),
        ([sliding, sliding], 3),
        ([sliding] * 5 + [full] + [sliding] * 2, 6),
    ):
        found = plain({"model_type": "gemma3_text", "layer_types": kinds})
        assert found["sliding_window_pattern"] == pattern
    given = {"model_type": "gemma3_text", "layer_types": [sliding] * 4}
    assert plain({**given, "sliding_window_pattern": 6})["sliding_window_pattern"] == 6


def default(**more: Any) -> dict[str, Any]:
    return {"rope_theta": 300.0, "rope_type": "default", **more}


GEMMA = {"full_attention": default(), "sliding_attention": default()}
REFUSED: dict[str, tuple[str, dict[str, Any], str]] = {
    "no base": ("llama", {"rope_parameters": {"rope_type": "default"}}, "has no rope_theta; take"),
    "no base for windows": (
        "gemma3_text",
        {"rope_parameters": {**GEMMA, "sliding_attention": {"rope_type": "default"}}},
        "has no rope_theta",
    ),
    "not a table": ("llama", {"rope_parameters": [1]}, r"rope_parameters is \[1\], not a table"),
    "scaling by a word": ("llama", {"rope_scaling": "yarn"}, "rope_scaling is 'yarn', not a table"),
    "unknown type": (
        "llama",
        {"rope_parameters": default(rope_type="spiral")},
        "has the type 'spiral'; known are default, dynamic, linear, llama3, longrope, yarn",
    ),
    "two types": (
        "llama",
        {"rope_parameters": {**YARN, "type": "linear", "rope_theta": 300.0}},
        "has the type 'linear'",
    ),
    "an unknown number": (
        "qwen2",
        {"rope_parameters": {**YARN, "rope_theta": 300.0, "attention_factor": 1.5}},
        "of type 'yarn' has attention_factor, which is not known",
    ),
    "a missing number": (
        "llama",
        {"rope_parameters": {**LLAMA3, "rope_theta": 300.0, "low_freq_factor": None}},
        "of type 'llama3' has no low_freq_factor",
    ),
    "half a head": (
        "llama",
        {"rope_parameters": default(partial_rotary_factor=0.5)},
        "partial_rotary_factor is 0.5, which is not known for llama",
    ),
    "two bases": (
        "llama",
        {"rope_theta": 1e4, "rope_parameters": default()},
        "rope_theta is 10000.0 in one place and 300.0 in another",
    ),
    "two scalings": (
        "llama",
        {"rope_scaling": LINEAR, "rope_parameters": default()},
        "rope_scaling is {.*'linear'.*} in one place and None in another",
    ),
    "two factors": (
        "llama",
        {
            "rope_scaling": LINEAR,
            "rope_parameters": {**LINEAR, "factor": 4.0, "rope_theta": 300.0},
        },
        "rope_scaling is .* in one place and .* in another",
    ),
    "kinds of layers": (
        "llama",
        {"rope_parameters": GEMMA},
        r"per kind of layer \(full_attention, sliding_attention\), which is not known for llama",
    ),
    "no kinds of layers": (
        "gemma3_text",
        {"rope_parameters": default()},
        "of gemma3_text have rope_theta, rope_type, not a table for each of full_attention, slid",
    ),
    "one kind of layers": (
        "gemma3_text",
        {"rope_parameters": {"full_attention": default()}},
        "have full_attention, not a table for each",
    ),
    "scaled windows": (
        "gemma3_text",
        {"rope_parameters": {**GEMMA, "sliding_attention": {**LINEAR, "rope_theta": 300.0}}},
        "scale sliding_attention by 'linear', which is not known for gemma3_text",
    ),
    "longrope without its context": (
        "phi3",
        {"rope_parameters": {**LONGROPE, "rope_theta": 300.0}},
        "of type 'longrope' has no original_max_position_embeddings",
    ),
    "longrope of another context": (
        "phi3",
        {
            "rope_parameters": {**LONGROPE, "rope_theta": 300.0, "factor": 8.0},
            "original_max_position_embeddings": 64,
        },
        "stretches by 8.0, the context grows from 64 to 256",
    ),
    "windows without a pattern": (
        "gemma3_text",
        {"sliding_window_pattern": None, "layer_types": ["full_attention", "sliding_attention"]},
        "do not repeat every 1 layers",
    ),
    "windows of another pattern": (
        "gemma3_text",
        {"sliding_window_pattern": 3, "layer_types": ["sliding_attention", "full_attention"]},
        "do not repeat every 3 layers",
    ),
    "experts counted twice": (
        "qwen3_moe",
        {"num_local_experts": 8},
        "num_experts is 5 in one place and 8 in another",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_mapped_is_refused(name: str) -> None:
    family, changes, words = REFUSED[name]
    values = config(family)
    for key in ("rope_theta", "rope_scaling"):
        values.pop(key, None)
    with pytest.raises(MlxsteerError, match=words) as caught:
        get_classes(values)[1].from_dict({**values, **changes})  # type: ignore[attr-defined]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3", "qwen3_moe", "phi3", "gemma3"])
def test_a_missing_field_is_named(family: str) -> None:
    values = config(family)
    key = "text_config" if family == "gemma3" else "hidden_size"
    del values[key]
    with pytest.raises(MlxsteerError, match=f"the config has no {key}; take"):
        get_classes(values)[1].from_dict(values)  # type: ignore[attr-defined]
