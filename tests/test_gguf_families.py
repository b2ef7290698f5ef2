"""GGUF files of every family: the numbers of mlx-lm, and those of llama.cpp on the same file.

The files are written with llama.cpp's own table of names. llama.cpp judges all that a file leaves
to its reader: the layout of rotated rows, norms, windows, how positions are stretched.
"""

import importlib
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gguf
import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from hostile.models import GGUF_FAMILIES
from mlx.utils import tree_flatten
from mlx_lm.models.switch_layers import QuantizedSwitchLinear
from oracle import Array, Llama, library
from tiny import half_experts
from tiny_gguf import (
    ARCHITECTURES,
    VOCABULARY,
    family_config,
    family_metadata,
    plain_model,
    rounded,
    weights,
    write_gguf,
)

from mlxsteer import gguf_configs, gguf_families
from mlxsteer.errors import MlxsteerError
from mlxsteer.gguf import read_header
from mlxsteer.gguf_families import wanted_tensors
from mlxsteer.gguf_model import load_gguf_model, model_config, resident_bytes
from mlxsteer.loading import load

FAMILIES = list(ARCHITECTURES)
KINDS = ["F32", "Q8_0", "Q4_0"]
TOKENS = [int(token) for token in np.random.default_rng(0).integers(0, VOCABULARY, 22)]
PROMPT = mx.array([TOKENS])

# How far llama.cpp's logits may lie from ours, as a share of their spread (root mean squares). It
# is 4e-7 where all is float32; 2e-4 with Gemma's GELU, which llama.cpp looks up in a table of
# float16; 0.012 to 0.029 with packed weights, which it multiplies by activations in 8 bits. What is
# wrong is 0.037 off and more.
EXACT = {"gemma3_text": 2e-3}
PACKED = 0.05
WRONG = 0.03

LONG = [1.0, 1.4, 2.0, 4.0, 8.0, 16.0]
SHORT = [1.0, 1.0, 1.0, 1.05, 1.1, 1.2]


@dataclass(frozen=True)
class Variant:
    """Changes of a tiny config, and what a file says of them that the config's words do not."""

    family: str
    changes: dict[str, Any]
    metadata: dict[str, Any]
    more: dict[str, Array] | None = None


def yarn(family: str) -> Variant:
    name = f"{ARCHITECTURES[family]}.rope.scaling"
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}
    said = {"type": "yarn", "factor": 4.0, "original_context_length": 64}
    metadata = {f"{name}.{key}": value for key, value in said.items()}
    return Variant(family, {"rope_scaling": scaling}, metadata)


def linear(family: str, factor: float, named: bool = True) -> Variant:
    name = f"{ARCHITECTURES[family]}.rope.scaling"
    metadata = {f"{name}.factor": factor, **({f"{name}.type": "linear"} if named else {})}
    return Variant(family, {"rope_scaling": {"type": "linear", "factor": factor}}, metadata)


def longrope(original: int = 64, longest: int = 256) -> Variant:
    loud = math.sqrt(1 + math.log(longest / original) / math.log(original))
    return Variant(
        "phi3",
        {
            "rope_scaling": {"type": "longrope", "long_factor": LONG, "short_factor": SHORT},
            "original_max_position_embeddings": original,
            "max_position_embeddings": longest,
            "partial_rotary_factor": 0.75,
        },
        {"phi3.rope.scaling.attn_factor": loud},
        {
            "rope_factors_long.weight": np.array(LONG, np.float32),
            "rope_factors_short.weight": np.array(SHORT, np.float32),
        },
    )


VARIANTS = {
    **{
        f"{family} untied": Variant(family, {"tie_word_embeddings": False}, {})
        for family in FAMILIES
        if family != "phi3"
    },
    "phi3 tied": Variant("phi3", {"tie_word_embeddings": True}, {}),
    "phi3 partly rotated": Variant("phi3", {"partial_rotary_factor": 0.5}, {}),
    "phi3 longrope": longrope(),
    **{f"{family} yarn": yarn(family) for family in ("llama", "qwen2", "qwen3")},
    **{f"{family} linear": linear(family, 4.0) for family in ("qwen2", "gemma3_text")},
    "llama linear by its factor alone": linear("llama", 2.5, named=False),
    "gemma3_text base of windows": Variant(
        "gemma3_text", {"rope_local_base_freq": 300.0}, {"gemma3.rope.freq_base_swa": 300.0}
    ),
    "gemma3_text other windows": Variant(
        "gemma3_text",
        {"sliding_window_pattern": 3, "sliding_window": 5},
        {"gemma3.attention.sliding_window_pattern": 3},
    ),
    "gemma3_text without windows": Variant(
        "gemma3_text", {"sliding_window_pattern": 1}, {"gemma3.attention.sliding_window": ...}
    ),
    "qwen3_moe of one expert": Variant("qwen3_moe", {"num_experts_per_tok": 1}, {}),
}


def written(path: Path, variant: Variant, kind: str = "F32") -> Path:
    values = family_config(variant.family, **variant.changes)
    return write_gguf(
        path,
        weights(family=variant.family, **variant.changes),
        kind,
        metadata={**family_metadata(values), **variant.metadata},
        more=variant.more,
    )


def of_mlx_lm(variant: Variant, kind: str = "F32") -> nn.Module:
    module = importlib.import_module(f"mlx_lm.models.{variant.family}")
    kept = rounded(weights(family=variant.family, **variant.changes), kind)
    return plain_model(kept, module, **variant.changes)


def loaded(path: Path, dtype: mx.Dtype = mx.float32, keep: bool = False) -> nn.Module:
    return load_gguf_model(read_header(path), dtype=dtype, keep_quantized=keep)


def same(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and bool(mx.array_equal(a, b))


def off(model: nn.Module, theirs: Array) -> float:
    """The root mean square of the difference, as a share of the spread."""
    ours = np.array(model(PROMPT))[0]
    return float(np.sqrt(np.square(ours - theirs).mean()) / theirs.std())


def of_llama_cpp(path: Path) -> Array:
    try:
        library()
    except OSError as error:
        pytest.skip(f"llama.cpp cannot be opened: {error}")
    llama = Llama(path)
    logits = llama.logits(TOKENS)
    llama.close()
    return logits


@pytest.mark.table("Families", "family", "GGUF: mlx-lm and llama.cpp")
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("family", FAMILIES)
def test_the_numbers_of_mlx_lm_and_of_llama_cpp(family: str, kind: str, tmp_path: Path) -> None:
    variant = Variant(family, {}, {})
    path = written(tmp_path / "m.gguf", variant, kind)
    model = loaded(path)
    assert same(model(PROMPT), of_mlx_lm(variant, kind)(PROMPT))
    assert off(model, of_llama_cpp(path)) < (EXACT.get(family, 1e-5) if kind == "F32" else PACKED)


@pytest.mark.parametrize("name", VARIANTS)
def test_variants(name: str, tmp_path: Path) -> None:
    variant = VARIANTS[name]
    path = written(tmp_path / "m.gguf", variant)
    model = loaded(path)
    assert same(model(PROMPT), of_mlx_lm(variant)(PROMPT))
    theirs = of_llama_cpp(path)
    assert off(model, theirs) < EXACT.get(variant.family, 1e-5)
    # and it is another model than its family's plain one, which would be noticed
    plain = loaded(written(tmp_path / "plain.gguf", Variant(variant.family, {}, {})))
    assert off(plain, theirs) > WRONG


def test_the_largest_gemma_scales_its_queries_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = Variant("gemma3_text", {"num_hidden_layers": 62, "query_pre_attn_scalar": 16}, {})
    path = written(tmp_path / "m.gguf", variant)
    theirs = of_llama_cpp(path)
    assert off(loaded(path), theirs) < EXACT["gemma3_text"]
    monkeypatch.setattr(gguf_configs, "GEMMA_27B", 63)
    assert off(loaded(path), theirs) > WRONG


INTERLEAVED = ("attn_q", "attn_k")
LAYOUTS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama not put back in order": ("llama", {"interleaved": ()}),
    "gemma norms as stored": ("gemma3_text", {"plus_one": False}),
    **{
        f"{family} put in another order": (family, {"interleaved": INTERLEAVED})
        for family in ("gemma3_text", "qwen2", "qwen3", "qwen3_moe")
    },
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_another_layout_would_be_noticed(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family, changes = LAYOUTS[name]
    path = written(tmp_path / "m.gguf", Variant(family, {}, {}))
    wrong = replace(gguf_families.FAMILIES[ARCHITECTURES[family]], **changes)
    monkeypatch.setitem(gguf_families.FAMILIES, ARCHITECTURES[family], wrong)
    assert off(loaded(path), of_llama_cpp(path)) > WRONG


def exchange(part: Any, first: str, second: str) -> None:
    part[first], part[second] = part[second], part[first]


def exchange_rows(projection: Any, count: int) -> None:
    """The two halves of the first `count` rows."""
    w, half = projection.weight, count // 2
    projection.weight = mx.concatenate([w[half:count], w[:half], w[count:]])


NORMS = ("post_attention_layernorm", "pre_feedforward_layernorm")
# name -> (family, what is done to each block of a model that is right)
SPOILED: dict[str, tuple[str, Callable[[Any], object]]] = {
    "biases": ("qwen2", lambda block: block.self_attn.q_proj.pop("bias")),
    "norms of q and k": ("qwen3", lambda block: exchange(block.self_attn, "q_norm", "k_norm")),
    "experts": (
        "qwen3_moe",
        lambda block: exchange(block.mlp.switch_mlp, "gate_proj", "up_proj"),
    ),
    "shares of experts": ("qwen3_moe", lambda block: setattr(block.mlp, "norm_topk_prob", False)),
    "norms of Gemma": ("gemma3_text", lambda block: exchange(block, *NORMS)),
    "gate and up": ("phi3", lambda block: exchange_rows(block.mlp.gate_up_proj, 256)),
    "heads of q": ("phi3", lambda block: exchange_rows(block.self_attn.qkv_proj, 64)),
    "pairs of Phi": ("phi3", lambda block: setattr(block.self_attn.rope, "traditional", True)),
}


@pytest.mark.parametrize("name", SPOILED)
def test_exchanged_parts_would_be_noticed(name: str, tmp_path: Path) -> None:
    family, spoil = SPOILED[name]
    path = written(tmp_path / "m.gguf", Variant(family, {}, {}))
    model, theirs = loaded(path), of_llama_cpp(path)
    assert off(model, theirs) < EXACT.get(family, 1e-5)
    for block in model.layers:
        spoil(block)
    assert off(model, theirs) > WRONG


def test_phi_turns_by_its_long_factors_always(tmp_path: Path) -> None:
    """As in mlx-lm; llama.cpp does so if its context is longer than the original one."""
    path = written(tmp_path / "m.gguf", longrope(original=512, longest=2048))
    assert off(loaded(path), of_llama_cpp(path)) > WRONG
    header = read_header(path)
    assert model_config(header)["rope_scaling"] == {
        "type": "longrope",
        "long_factor": pytest.approx(LONG),
        "short_factor": pytest.approx(SHORT),
    }


@pytest.mark.parametrize("family", FAMILIES)
def test_every_tensor_is_wanted(family: str, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", Variant(family, {"tie_word_embeddings": False}, {}))
    header = read_header(path)
    found = {t.name: tuple(t.shape.tolist()[::-1]) for t in gguf.GGUFReader(path).tensors}
    wanted = wanted_tensors(header, model_config(header))
    assert {name: tensor.shape for name, tensor in wanted.items()} == found
    parameters = dict(tree_flatten(loaded(path).parameters()))
    assert {f"{t.module}.{t.parameter}" for t in wanted.values()} == set(parameters)


@pytest.mark.table("Families", "family", "GGUF: packed")
@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0"])
@pytest.mark.parametrize("family", FAMILIES)
def test_packed_weights_stay_packed(family: str, kind: str, tmp_path: Path) -> None:
    path = written(tmp_path / "m.gguf", Variant(family, {}, {}), kind)
    model, plain = loaded(path, keep=True), loaded(path)
    bits = {m.bits for m in model.modules() if hasattr(m, "bits")}
    assert bits == {8 if kind == "Q8_0" else 4}
    experts = [m for m in model.modules() if isinstance(m, QuantizedSwitchLinear)]
    assert len(experts) == (3 * len(model.layers) if family == "qwen3_moe" else 0)
    assert mx.allclose(model(PROMPT), plain(PROMPT), rtol=1e-3, atol=1e-3)


@pytest.mark.table("Families", "family", "GGUF: dtype")
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_dtypes(family: str, dtype: mx.Dtype, keep: bool, tmp_path: Path) -> None:
    if family == "qwen3_moe" and dtype != mx.float32 and not keep and not half_experts():
        pytest.skip("this device multiplies by experts in float32 or packed only")
    path = written(tmp_path / "m.gguf", Variant(family, {}, {}), "Q8_0")
    model = loaded(path, dtype, keep)
    cache = model.make_cache()
    assert model(PROMPT, cache).dtype == cache[0].keys.dtype == dtype
    arrays = dict(tree_flatten(model.parameters())).values()
    assert sum(array.nbytes for array in arrays) == resident_bytes(read_header(path), dtype, keep)


def test_experts_are_loaded_one_tensor_at_a_time(tmp_path: Path) -> None:
    variant = Variant("qwen3_moe", {"moe_intermediate_size": 256}, {})
    path = written(tmp_path / "m.gguf", variant, "Q4_0")
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = loaded(path)
    total = resident_bytes(read_header(path), mx.float32, False)
    assert mx.get_peak_memory() - before <= 1.25 * total
    del model


def test_configs_are_in_the_words_of_checkpoints(tmp_path: Path) -> None:
    common = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "rms_norm_eps": 1e-5,
        "max_position_embeddings": 256,
        "vocab_size": VOCABULARY,
        "rope_scaling": None,
    }
    small = {**common, "num_hidden_layers": 4, "tie_word_embeddings": True, "rope_theta": 1e6}
    expected: dict[str, dict[str, Any]] = {
        "qwen2": {**small, "qkv_bias": True},
        "qwen3": {**small, "head_dim": 32},
        "qwen3_moe": {
            **small,
            "head_dim": 32,
            "num_experts": 5,
            "num_experts_per_tok": 3,
            "moe_intermediate_size": 64,
            "norm_topk_prob": True,
            "decoder_sparse_step": 1,
            "mlp_only_layers": [],
        },
        "gemma3_text": {
            **small,
            "num_hidden_layers": 7,
            "head_dim": 32,
            "query_pre_attn_scalar": 32,
            "rope_local_base_freq": 10000.0,
            "sliding_window": 8,
            "sliding_window_pattern": 6,
        },
        "phi3": {
            **small,
            "tie_word_embeddings": False,
            "rope_theta": 10000.0,
            "partial_rotary_factor": 1.0,
            "original_max_position_embeddings": 256,
        },
    }
    for family, config in expected.items():
        path = written(tmp_path / "m.gguf", Variant(family, {}, {}))
        assert model_config(read_header(path)) == {"model_type": family, **config}


@pytest.mark.parametrize("family", FAMILIES)
def test_loading(family: str, tmp_path: Path) -> None:
    variant = Variant(family, {}, {})
    model, tokenizer = load(written(tmp_path / "Some-Model.Q8_0.gguf", variant, "Q8_0"))
    source = model.source
    assert (source.model_type, source.n_layers) == (family, len(model.layers))
    assert (source.hidden_size, source.quantization) == (64, "q8_0")
    assert model(mx.array([tokenizer.encode("hello")])).shape[-1] == VOCABULARY


@pytest.mark.parametrize("name", GGUF_FAMILIES)
def test_a_bad_file_is_refused(name: str, tmp_path: Path) -> None:
    family, metadata, words = GGUF_FAMILIES[name]
    variant = longrope() if family == "phi3 longrope" else Variant(family, {}, {})
    path = written(tmp_path / "bad.gguf", replace(variant, metadata=metadata))
    with pytest.raises(MlxsteerError, match=words) as caught:
        loaded(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("factors", "words"),
    [
        ({"rope_factors_short.weight": ...}, "'rope_factors_short.weight' is missing or not of"),
        ({"rope_factors_long.weight": np.ones(4, np.float32)}, r"or not of the shape \(6,\)"),
        ({"rope_factors_long.weight": np.zeros(6, np.float32)}, "stretches a wavelength by 0.0"),
        (
            {"rope_factors_long.weight": np.full(6, np.nan, np.float32)},
            "'rope_factors_long.weight' holds NaN",
        ),
    ],
)
def test_bad_factors_are_refused(factors: dict[str, Any], words: str, tmp_path: Path) -> None:
    variant = longrope()
    more = {k: v for k, v in {**(variant.more or {}), **factors}.items() if v is not ...}
    path = written(tmp_path / "bad.gguf", replace(variant, more=more))
    with pytest.raises(MlxsteerError, match=words):
        loaded(path)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "llama"])
def test_tensors_of_other_families_are_refused(family: str, tmp_path: Path) -> None:
    """What llama.cpp would silently leave out, or would compute otherwise."""
    more = {"rope_freqs.weight": np.ones(16, np.float32)}
    path = written(tmp_path / "bad.gguf", Variant(family, {}, {}, more))
    with pytest.raises(MlxsteerError, match=r"'rope_freqs\.weight' is no part of this architec"):
        loaded(path)
