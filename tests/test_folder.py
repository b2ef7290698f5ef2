"""Models from local folders: mlx-lm's numbers, float32 from packed ones, nothing of bad ones."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import pytest
from hostile.models import MODEL_FOLDERS
from mlx.utils import tree_flatten
from mlx_lm.utils import load_model
from tiny import CONFIGS, VOCABULARY, twins
from tiny_folder import write_folder

from mlxsteer import folder as folders
from mlxsteer.errors import MlxsteerError
from mlxsteer.folder import (
    config_quantization,
    dtype_of,
    folder_bytes,
    folder_tokenizer,
    load_folder,
    read_config,
)

TOKENS = mx.array([[5, 80, 20, 3, 3, 91, 17, 60], [1, 2, 3, 4, 5, 6, 7, 8]])
KINDS = ["float32", "bfloat16", "4bit", "8bit", "mxfp4"]


@pytest.fixture(scope="module", params=KINDS)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_folder(tmp_path_factory.mktemp(request.param) / "model", request.param)


def same(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and bool(mx.array_equal(a, b))


def resident(model: nn.Module) -> int:
    return sum(array.nbytes for array in dict(tree_flatten(model.parameters())).values())


def test_as_stored_it_is_mlx_lm(folder: Path) -> None:
    model = load_folder(folder, dtype=None, keep_quantized=True)
    theirs, _ = load_model(folder)
    assert same(model(TOKENS), theirs(TOKENS))
    assert dtype_of(model) == theirs(TOKENS).dtype
    config = read_config(folder)
    assert folder_bytes(folder, config, None, True) == resident(model)


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_dequantized(folder: Path, dtype: mx.Dtype) -> None:
    model = load_folder(folder, dtype=dtype, keep_quantized=False)
    assert not any(hasattr(module, "bits") for module in model.modules())
    assert model(TOKENS).dtype == dtype == dtype_of(model)
    assert folder_bytes(folder, read_config(folder), dtype, False) == resident(model)
    theirs, _ = load_model(folder)
    for name, module in theirs.named_modules():
        if isinstance(module, nn.QuantizedLinear) and dtype == mx.float32:
            affine = module.mode == "affine"
            scales = module.scales.astype(mx.float32) if affine else module.scales
            biases = module.biases
            weight = mx.dequantize(
                module.weight,
                scales,
                biases,
                module.group_size,
                module.bits,
                module.mode,
                dtype=mx.float32,
            )
            ours = dict(model.named_modules())[name]
            assert same(ours.weight, weight)
    exact, _ = load_model(folder)
    if folder.parent.name.startswith("float32") and dtype == mx.float32:
        assert same(model(TOKENS), exact(TOKENS))
    assert mx.allclose(model(TOKENS), exact(TOKENS), rtol=0.2, atol=0.5)


def test_kept_packed_in_another_dtype(folder: Path) -> None:
    model = load_folder(folder, dtype=mx.float32, keep_quantized=True)
    plain = load_folder(folder, dtype=mx.float32, keep_quantized=False)
    assert folder_bytes(folder, read_config(folder), mx.float32, True) == resident(model)
    packed = any(hasattr(module, "bits") for module in model.modules())
    assert packed == (not folder.parent.name.startswith(("float32", "bfloat16")))
    assert mx.allclose(model(TOKENS), plain(TOKENS), rtol=1e-3, atol=1e-3)


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
LONGROPE = {"type": "longrope", "short_factor": [1.0] * 8, "long_factor": [1.0, 1.1, 1.7, 4.3] * 2}


@pytest.mark.table("Families", "family", "folder: packed and plain")
@pytest.mark.parametrize("kind", ["float32", "bfloat16", "4bit"])
@pytest.mark.parametrize("family", CONFIGS)
def test_families(family: str, kind: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", kind, family=family)
    theirs, _ = load_model(folder)
    kept = load_folder(folder, dtype=None, keep_quantized=True)
    assert same(kept(TOKENS), theirs(TOKENS))
    config = read_config(folder)
    assert folder_bytes(folder, config, None, True) == resident(kept)
    plain = load_folder(folder, dtype=mx.float32, keep_quantized=False)
    assert not any(hasattr(module, "bits") for module in plain.modules())
    assert folder_bytes(folder, config, mx.float32, False) == resident(plain)
    assert {a.dtype for a in dict(tree_flatten(plain.parameters())).values()} == {mx.float32}
    theirs.set_dtype(mx.float32)
    assert mx.allclose(plain(TOKENS), theirs(TOKENS), rtol=1e-3, atol=1e-3)


def test_experts_are_dequantized_exactly(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", "4bit", family="qwen3_moe")
    plain = load_folder(folder, dtype=mx.float32, keep_quantized=False)
    packed = load_folder(folder, dtype=mx.float32, keep_quantized=True)
    ours = plain.layers[0].mlp.switch_mlp.up_proj
    theirs = packed.layers[0].mlp.switch_mlp.up_proj
    weight = mx.dequantize(
        theirs.weight, theirs.scales, theirs.biases, theirs.group_size, theirs.bits
    )
    assert same(ours.weight, weight)
    assert ours.weight.shape == (5, 64, 64)


def test_what_has_no_plain_form_is_refused(tmp_path: Path) -> None:
    model = load_folder(
        write_folder(tmp_path / "model", "mxfp4", family="qwen3_moe"),
        dtype=None,
        keep_quantized=True,
    )
    experts = model.layers[0].mlp.switch_mlp.up_proj
    experts.global_scale = mx.ones(5)
    with pytest.raises(MlxsteerError, match=r"up_proj is a Quant.* with a global scale, which has"):
        folders.convert(model, dtype=mx.float32, keep_quantized=False)


ROTARY: dict[str, dict[str, Any]] = {
    "llama": {"rope_scaling": LLAMA3_ROPE},
    "qwen2": {"rope_scaling": {**LLAMA3_ROPE, "rope_type": "yarn"}},
    "phi3": {"rope_scaling": LONGROPE, "original_max_position_embeddings": 64},
}


@pytest.mark.parametrize("family", ROTARY)
def test_rotary_frequencies_keep_their_precision(
    family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path / "model", "bfloat16", family=family, **ROTARY[family])
    theirs, _ = load_model(folder)
    model = load_folder(folder, dtype=mx.bfloat16, keep_quantized=False)
    assert model.layers[0].self_attn.rope._freqs.dtype == mx.float32
    far = mx.random.randint(0, VOCABULARY, (1, 200), key=mx.random.key(0))
    assert same(model(far), theirs(far))
    # and casting all that a module holds would be noticed

    def everything(part: nn.Module) -> list[tuple[str, mx.array]]:
        return [(name, a) for name, a in list(part.items()) if isinstance(a, mx.array)]

    monkeypatch.setattr(folders, "_own", everything)
    wrong = load_folder(folder, dtype=mx.bfloat16, keep_quantized=False)
    assert not same(wrong(far), theirs(far))


def test_weights_of_the_eyes_are_not_counted(tmp_path: Path) -> None:
    more = {
        "vision_tower.embed.weight": mx.zeros((64, 64)),
        "multi_modal_projector.norm.weight": mx.zeros(64),
    }
    folder = write_folder(tmp_path / "model", family="gemma3", more=more)
    model = load_folder(folder, dtype=None, keep_quantized=True)
    assert folder_bytes(folder, read_config(folder), None, True) == resident(model)


def test_variants(tmp_path: Path) -> None:
    changes: dict[str, Any] = {"tie_word_embeddings": False}
    changes |= {"attention_bias": True, "mlp_bias": True}
    folder = write_folder(tmp_path / "model", "4bit", **changes)
    packed = load_folder(folder, dtype=mx.float32, keep_quantized=True)
    plain = load_folder(folder, dtype=mx.float32, keep_quantized=False)
    assert mx.allclose(packed(TOKENS), plain(TOKENS), rtol=1e-3, atol=1e-3)


def test_weights_in_several_files(tmp_path: Path) -> None:
    whole = write_folder(tmp_path / "whole")
    parts = write_folder(tmp_path / "parts", shards=3)
    assert len(list(parts.glob("model-*.safetensors"))) == 3
    models = [load_folder(f, dtype=None, keep_quantized=True) for f in (whole, parts)]
    assert same(models[0](TOKENS), models[1](TOKENS))


def test_loading_takes_hardly_more_than_the_model(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "4bit", hidden_size=256, intermediate_size=1024)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_folder(folder, dtype=mx.float32, keep_quantized=False)
    assert mx.get_peak_memory() - before <= 1.25 * resident(model)
    whole = mx.get_active_memory() - before
    assert whole <= 1.05 * resident(model)  # nothing packed is left


def test_experts_are_loaded_one_tensor_at_a_time(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", "4bit", family="qwen3_moe", moe_intermediate_size=256)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    model = load_folder(folder, dtype=mx.float32, keep_quantized=False)
    assert mx.get_peak_memory() - before <= 1.25 * resident(model)


def test_progress(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    folder = write_folder(tmp_path / "model")
    load_folder(folder, dtype=None, keep_quantized=True, progress=lambda *step: said.append(step))
    total = said[-1][2]
    assert said == [("loading weights", done, total) for done in range(total + 1)]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({}, "none"),
        ({"quantization": {"bits": 4, "group_size": 64}}, "4bit-g64"),
        ({"quantization": {"bits": 4, "group_size": 32, "mode": "mxfp4"}}, "4bit-g32-mxfp4"),
        ({"quantization_config": {"quant_method": "awq"}}, "awq"),
    ],
)
def test_how_weights_are_packed(fields: dict[str, Any], words: str) -> None:
    assert config_quantization(fields) == words


def test_every_end_token(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", eos_token_id=90)
    ends = {91, 92}
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": sorted(ends)}))
    tokenizer = folder_tokenizer(folder, read_config(folder))
    assert tokenizer.eos_token_ids == {90, *ends, tokenizer.eos_token_id}
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_end_tokens_of_a_nested_config(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", family="gemma3", eos_token_id=[90, 91])
    assert folder_tokenizer(folder, read_config(folder)).eos_token_ids >= {90, 91}


def everything(folder: Path) -> nn.Module:
    config = read_config(folder)
    folder_bytes(folder, config, mx.float32, False)
    folder_tokenizer(folder, config)
    return load_folder(folder, dtype=mx.float32, keep_quantized=False)


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        ("llama", {"rope_scaling": {"type": "mrope"}}),
        ("qwen2", {"rope_scaling": {"type": "yarn"}}),
        ("qwen3", {"head_dim": 0}),
        ("qwen3_moe", {"decoder_sparse_step": 0}),
        ("gemma3_text", {"sliding_window_pattern": 0}),
        ("gemma3", {"query_pre_attn_scalar": 0}),
    ],
)
def test_numbers_that_make_no_model_are_refused(
    family: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "model", family=family)
    values = json.loads((folder / "config.json").read_text())
    values.get("text_config", values).update(changes)
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(MlxsteerError, match=r"cannot be loaded: |no usable tok") as caught:
        everything(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", MODEL_FOLDERS)
def test_a_bad_folder_is_refused(name: str, tmp_path: Path) -> None:
    spoil, words = MODEL_FOLDERS[name]
    folder = write_folder(tmp_path / "model", shards=2)
    spoil(folder)
    with pytest.raises(MlxsteerError, match=words) as caught:
        everything(folder)
    assert "model" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_good_folder_is_not_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "model", shards=2)
    ours, _ = twins()
    assert same(everything(folder)(TOKENS), ours(TOKENS))
