"""A Llama from a GGUF file computes what the same weights compute in mlx-lm's own class."""

import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx_lm.models.llama as mlx_llama
import numpy as np
import pytest
from hostile.models import GGUF_MODELS
from mlx.utils import tree_flatten
from mlx_lm.generate import generate
from mlx_lm.models.rope_utils import Llama3RoPE
from tiny_gguf import plain_model, rounded, weights, write_gguf

from mlxsteer import gguf_model
from mlxsteer.errors import MlxsteerError
from mlxsteer.gguf import read_header
from mlxsteer.gguf_model import (
    load_gguf_model,
    model_config,
    quantization,
    resident_bytes,
    stored_dtype,
)
from mlxsteer.gguf_tokenizer import tokenizer_from_gguf

TOKENS = mx.array([[5, 80, 200, 3, 3, 91, 17, 260], [1, 2, 3, 4, 5, 6, 7, 8]])
KINDS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


def loaded(path: Path, dtype: mx.Dtype = mx.float32, keep: bool = False) -> nn.Module:
    return load_gguf_model(read_header(path), dtype=dtype, keep_quantized=keep)


def same(a: mx.array, b: mx.array) -> bool:
    return a.dtype == b.dtype and bool(mx.array_equal(a, b))


@pytest.mark.parametrize("kind", KINDS)
def test_the_numbers_of_mlx_lm(kind: str, tmp_path: Path) -> None:
    source = weights()
    path = write_gguf(tmp_path / "m.gguf", source, kind)
    reference = plain_model(rounded(source, kind), mlx_llama)
    assert same(loaded(path)(TOKENS), reference(TOKENS))


def test_interleaved_rows_would_be_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = weights()
    path = write_gguf(tmp_path / "m.gguf", source)
    monkeypatch.setattr(gguf_model, "_row_order", lambda count, heads: np.arange(count))
    wrong = loaded(path)(TOKENS)
    assert not mx.allclose(wrong, plain_model(source, mlx_llama)(TOKENS), atol=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {"tie_word_embeddings": False},
        {"attention_bias": True},
        {"mlp_bias": True},
        {"num_key_value_heads": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("keep", [False, True])
def test_variants(changes: dict[str, Any], keep: bool, tmp_path: Path) -> None:
    source = weights(**changes)
    kv_heads = changes.get("num_key_value_heads", 2)
    path = write_gguf(
        tmp_path / "m.gguf",
        source,
        "Q8_0",
        heads=(4, kv_heads),
        metadata={"llama.attention.head_count_kv": kv_heads},
    )
    reference = plain_model(rounded(source, "Q8_0"), mlx_llama, **changes)
    found = loaded(path, keep=keep)(TOKENS)
    assert mx.allclose(found, reference(TOKENS), rtol=1e-4, atol=1e-4)
    assert keep or same(found, reference(TOKENS))


def test_the_config_is_in_the_words_of_a_checkpoint(tmp_path: Path) -> None:
    path = write_gguf(
        tmp_path / "m.gguf",
        weights(),
        metadata={"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.5},
    )
    assert model_config(read_header(path)) == {
        "model_type": "llama",
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "intermediate_size": 128,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 2.5},
        "max_position_embeddings": 256,
        "vocab_size": 264,
        "tie_word_embeddings": True,
        "attention_bias": False,
        "mlp_bias": False,
    }


def test_linear_scaling(tmp_path: Path) -> None:
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    path = write_gguf(tmp_path / "m.gguf", weights(), metadata=scaling)
    args = {"rope_scaling": {"type": "linear", "factor": 4.0}}
    assert same(loaded(path)(TOKENS), plain_model(weights(), mlx_llama, **args)(TOKENS))


def test_the_frequencies_of_llama_3_1(tmp_path: Path) -> None:
    scaling = {
        "rope_type": "llama3",
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }
    theirs = Llama3RoPE(16, 256, False, 10000.0, scaling)
    plain = 10000.0 ** (mx.arange(0, 16, 2) / 16)
    factors = np.array(theirs._freqs / plain)  # what llama.cpp's converter writes
    assert len(set(factors.round(3))) > 2
    more = {"rope_freqs.weight": factors}
    source = weights()
    scaled = loaded(write_gguf(tmp_path / "a.gguf", source, more=more))(TOKENS)
    reference = plain_model(source, mlx_llama, rope_scaling=scaling)(TOKENS)
    assert mx.allclose(scaled, reference, rtol=1e-5, atol=1e-5)
    unscaled = loaded(write_gguf(tmp_path / "b.gguf", source))(TOKENS)
    assert not mx.allclose(unscaled, reference, atol=1e-2)


def mixed(name: str) -> str:
    """As in the default model: the embedding at 8 bits, the rest at 4."""
    return "Q8_0" if "embed" in name else "Q4_1"


@pytest.mark.parametrize(
    "kind", ["Q4_0", "Q4_1", "Q8_0", mixed], ids=lambda k: getattr(k, "__name__", k)
)
def test_packed_weights_stay_packed(kind: Any, tmp_path: Path) -> None:
    source = weights()
    path = write_gguf(tmp_path / "m.gguf", source, kind)
    model, plain = loaded(path, keep=True), loaded(path)
    assert isinstance(model.model.embed_tokens, nn.QuantizedEmbedding)
    attention = model.layers[0].self_attn
    assert isinstance(attention.q_proj, nn.QuantizedLinear)
    assert attention.q_proj.bits == (8 if kind == "Q8_0" else 4)
    assert model.model.embed_tokens.bits == (8 if kind in ("Q8_0", mixed) else 4)
    again = mx.dequantize(
        attention.q_proj.weight,
        attention.q_proj.scales,
        attention.q_proj.biases,
        32,
        attention.q_proj.bits,
    )
    assert same(again, plain.layers[0].self_attn.q_proj.weight)
    assert mx.allclose(model(TOKENS), plain(TOKENS), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16], ids=str)
def test_dtypes(dtype: mx.Dtype, keep: bool, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", weights(), mixed)
    model = loaded(path, dtype, keep)
    assert model(TOKENS).dtype == dtype
    cache = model.make_cache()
    model(TOKENS, cache)
    assert cache[0].keys.dtype == dtype
    found = sum(a.nbytes for a in dict(tree_flatten(model.parameters())).values())
    assert found == resident_bytes(read_header(path), dtype, keep)


def test_what_is_stored(tmp_path: Path) -> None:
    expected = {
        "F32": ("none", mx.float32),
        "F16": ("none", mx.bfloat16),
        "BF16": ("none", mx.bfloat16),
        "Q4_0": ("q4_0", mx.bfloat16),
        "Q8_0": ("q8_0", mx.bfloat16),
    }
    for kind, (packing, dtype) in expected.items():
        header = read_header(write_gguf(tmp_path / f"{kind}.gguf", weights(), kind))
        assert (quantization(header), stored_dtype(header)) == (packing, dtype)


def test_one_line_says_what_is_dequantized(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mlxsteer")
    path = write_gguf(tmp_path / "m.gguf", weights(), mixed)
    loaded(path, keep=True)
    assert caplog.messages == []
    loaded(path)
    assert caplog.messages == [
        "m.gguf: Q4_1, Q8_0 weights are dequantized to float32; the model takes 0.00 GB"
    ]


def test_progress(tmp_path: Path) -> None:
    said: list[tuple[str, int, int]] = []
    header = read_header(write_gguf(tmp_path / "m.gguf", weights()))
    load_gguf_model(
        header, dtype=mx.float32, keep_quantized=False, progress=lambda *step: said.append(step)
    )
    assert said == [("loading weights", done, 38) for done in range(39)]


@pytest.mark.parametrize("name", GGUF_MODELS)
def test_a_bad_model_is_refused(name: str, tmp_path: Path) -> None:
    change, metadata, words = GGUF_MODELS[name]
    source = weights()
    if change is not None:
        change(source)
    path = write_gguf(tmp_path / "bad.gguf", source, metadata=metadata)
    with pytest.raises(MlxsteerError, match=words) as caught:
        loaded(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_tensor_that_nobody_asked_for(tmp_path: Path) -> None:
    more = {"blk.0.ffn_gate_inp.weight": np.zeros((8, 64), np.float32)}
    path = write_gguf(tmp_path / "m.gguf", weights(), more=more)
    with pytest.raises(MlxsteerError, match=r"'blk\.0\.ffn_gate_inp\.weight' is no part of"):
        loaded(path)


def test_a_type_that_is_not_decoded(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", weights(), "Q4_0")
    raw = bytearray(path.read_bytes())
    at = raw.index(b"blk.1.ffn_up.weight") + len("blk.1.ffn_up.weight") + 4 + 16
    assert raw[at] == 2
    raw[at] = 20  # IQ4_NL is as large as Q4_0
    path.write_bytes(raw)
    with pytest.raises(MlxsteerError, match=r"1 tensors are of the type IQ4_NL, which mlxsteer"):
        loaded(path)


PEAK = """
import re, sys
def status(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+)", open("/proc/self/status").read())[1])
import mlxsteer, mlx.core as mx
from mlxsteer.gguf import read_header
from mlxsteer.gguf_model import load_gguf_model
import mlxsteer.arch.llama
header = read_header(sys.argv[1])
before = status("VmRSS")
open("/proc/self/clear_refs", "w").write("5")
model = load_gguf_model(header, dtype=mx.float32, keep_quantized=sys.argv[2] == "keep")
resident = mx.get_active_memory()
print(mx.get_peak_memory() / resident, (status("VmHWM") - before) / resident)
"""


@pytest.mark.real
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("how", ["dense", "keep"])
def test_loading_takes_hardly_more_than_the_model(how: str, smollm2_gguf: Path) -> None:
    command = [sys.executable, "-c", PEAK, str(smollm2_gguf), how]
    run = subprocess.run(command, capture_output=True, text=True, check=True)
    of_mlx, of_process = map(float, re.findall(r"[\d.]+", run.stdout))
    assert of_mlx <= 1.25
    assert of_process <= 1.25


@pytest.mark.real
def test_the_default_model_says_paris(smollm2_gguf: Path) -> None:
    header = read_header(smollm2_gguf)
    assert quantization(header) == "q4_1"
    model, tokenizer = loaded(smollm2_gguf), tokenizer_from_gguf(header)
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True)
    assert generate(model, tokenizer, prompt, max_tokens=12) == "The capital of France is Paris."
