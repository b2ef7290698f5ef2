"""DeepSeek-V4's files: official and packed bit for bit, conversions of others, and bad ones."""

import importlib
import json
import re
import struct
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import numpy as np
import pytest
from mlx_lm.tokenizer_utils import TokenizerWrapper
from tiny_deepseek import (
    CONFIG,
    VOCABULARY,
    Arrays,
    deepseek,
    golden,
    official,
    official_name,
    parameters,
)
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE

from mlxsteer.arch.deepseek_v4_prompt import TEMPLATE
from mlxsteer.capture import capturing
from mlxsteer.errors import MlxsteerError
from mlxsteer.folder import convert, dtype_of, folder_tokenizer, load_folder, read_config
from mlxsteer.generate import generate
from mlxsteer.loading import load
from mlxsteer.prompts import render, template_record
from mlxsteer.reading import content_end, response_start
from mlxsteer.steering import Steering
from mlxsteer.vector import Vector

FP8 = {"quant_method": "fp8", "fmt": "e4m3", "scale_fmt": "ue8m0", "weight_block_size": [128, 128]}
IN_FP8 = re.compile(r"\.(wq_a|wq_b|wkv|wo_a|wo_b|w[123])\.weight$")
PLAIN = re.compile(r"\.compressor\.")  # of what the pattern above finds
EXPERT = re.compile(r"\.ffn\.experts\.")

BOS, EOS = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"  # noqa: RUF001
USER, ANSWER = "<｜User｜>", "<｜Assistant｜>"  # noqa: RUF001


# The official packings, written down from their definition


def fp8_table() -> np.ndarray:
    """The number of each code of float8 e4m3."""
    code = np.arange(256)
    exponent, mantissa = code >> 3 & 15, code & 7
    small = mantissa / 8 * 2.0**-6
    number = np.where(exponent == 0, small, (1 + mantissa / 8) * 2.0 ** (exponent - 7.0))
    number = np.where((exponent == 15) & (mantissa == 7), np.nan, number)
    table: np.ndarray = np.where(code > 127, -number, number)
    return table


FP4_TABLE = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6])


def codes(x: np.ndarray, table: np.ndarray) -> np.ndarray:
    distance = np.abs(x[..., None] - np.nan_to_num(table, nan=1e9))
    nearest: np.ndarray = distance.argmin(axis=-1).astype(np.uint8)
    return nearest


def power(largest: np.ndarray, most: float) -> np.ndarray:
    """The exponent of the power of two that brings a block into the range."""
    exponent: np.ndarray = np.ceil(np.log2(np.maximum(largest, 1e-9) / most)).astype(int)
    return exponent


def pack_fp8(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return codes, a scale per 128 x 128 block, and the numbers that they mean."""
    rows, columns = -(-w.shape[0] // 128), -(-w.shape[1] // 128)
    scale = np.zeros((rows, columns), np.uint8)
    code, meant = np.zeros(w.shape, np.uint8), np.zeros(w.shape)
    for i in range(rows):
        for j in range(columns):
            at = np.s_[128 * i : 128 * i + 128, 128 * j : 128 * j + 128]
            exponent = int(power(np.abs(w[at]).max(), 448))
            code[at] = codes(w[at] / 2.0**exponent, fp8_table())
            meant[at] = fp8_table()[code[at]] * 2.0**exponent
            scale[i, j] = exponent + 127
    return code, scale, meant.astype(np.float32)


def pack_fp4(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return two codes per byte, the low half first, a scale per 32, and what they mean."""
    blocks = w.reshape(w.shape[0], -1, 32)
    exponent = power(np.abs(blocks).max(axis=-1), 6)
    code = codes(blocks / 2.0 ** exponent[..., None], FP4_TABLE)
    meant = (FP4_TABLE[code] * 2.0 ** exponent[..., None]).reshape(w.shape)
    pairs = code.reshape(w.shape[0], -1, 2)
    both = (pairs[..., 0] | pairs[..., 1] << 4).astype(np.uint8)
    return both.view(np.int8), (exponent + 127).astype(np.uint8), meant.astype(np.float32)


KINDS = {"float32": "F32", "int32": "I32", "int64": "I64", "int8": "I8", "uint32": "U32"}


def write_tensors(path: Path, tensors: dict[str, tuple[str, np.ndarray]]) -> None:
    """Write safetensors by hand: no library here writes the 8-bit kinds."""
    header: dict[str, Any] = {}
    data = b""
    for name, (kind, array) in tensors.items():
        raw = np.ascontiguousarray(array).tobytes()
        where = [len(data), len(data) + len(raw)]
        header[name] = {"dtype": kind, "shape": list(array.shape), "data_offsets": where}
        data += raw
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data)


def write_tokenizer(folder: Path, **more: Any) -> None:
    """Bytes, and the tokens of its prompts."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(BPE({letter: i for i, letter in enumerate(letters)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BOS, EOS, USER, ANSWER])
    tokenizer.add_tokens([AddedToken(t, normalized=False) for t in ("<think>", "</think>")])
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "LlamaTokenizerFast", "bos_token": BOS, "eos_token": EOS}
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, **more}))


def write_folder(folder: Path, tensors: dict[str, tuple[str, np.ndarray]], **changes: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({**CONFIG, **changes}))
    write_tensors(folder / "model.safetensors", tensors)
    write_tokenizer(folder)
    return folder


def plain_tensors(arrays: Arrays) -> dict[str, tuple[str, np.ndarray]]:
    return {name: (KINDS[array.dtype.name], array) for name, array in arrays.items()}


def packed_tensors() -> tuple[dict[str, tuple[str, np.ndarray]], Arrays]:
    """Return the tiny model as the official files have it, and the numbers that these mean."""
    tensors: dict[str, tuple[str, np.ndarray]] = {}
    meant: Arrays = {}
    for name, array in official(deepseek()).items():
        scale = name.removesuffix("weight") + "scale"
        if EXPERT.search(name):
            code, exponents, meant[name] = pack_fp4(array)
            tensors[name], tensors[scale] = ("I8", code), ("F8_E8M0", exponents)
        elif IN_FP8.search(name) and not PLAIN.search(name):
            code, exponents, meant[name] = pack_fp8(array)
            tensors[name], tensors[scale] = ("F8_E4M3", code), ("F8_E8M0", exponents)
        else:
            kind = "I64" if name.endswith("tid2eid") else "F32"
            meant[name] = array.astype(np.int64) if kind == "I64" else array
            tensors[name] = (kind, meant[name])
    tensors["mtp.0.emb.weight"] = ("F32", np.zeros((2, 2), np.float32))
    return tensors, meant


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Arrays]:
    tensors, meant = packed_tensors()
    folder = tmp_path_factory.mktemp("official") / "DeepSeek-V4-Tiny"
    return write_folder(folder, tensors, quantization_config=FP8), meant


def tokens() -> mx.array:
    return mx.array(golden()["ids"])[:1]


def logits_of(arrays: Arrays) -> mx.array:
    """What the model computes with these numbers under their official names."""
    model = deepseek()
    model.load_weights(list(model.sanitize({k: mx.array(v) for k, v in arrays.items()}).items()))
    return model(tokens())


@pytest.mark.table("DeepSeek-V4 files", "loaded", "same numbers")
@pytest.mark.parametrize("loaded", ["official, packed", "official, plain"])
def test_official_files(packed: tuple[Path, Arrays], loaded: str) -> None:
    folder, meant = packed
    kept = loaded == "official, packed"
    model, _ = load(folder, keep_quantized=kept)
    want = logits_of(meant)
    assert mx.allclose(model(tokens()), want, atol=1e-4)
    assert not mx.allclose(want, deepseek()(tokens()), atol=1e-2)  # the packing does round
    modes = {getattr(m, "mode", None) for m in model.modules()}
    assert modes == ({None, "mxfp8", "mxfp4"} if kept else {None})
    assert model.source.quantization == "fp8"
    assert model.source.dtype == "float32"


def test_every_bit_is_kept(packed: tuple[Path, Arrays]) -> None:
    folder, meant = packed
    model = load_folder(folder, dtype=None, keep_quantized=False)
    for name, array in official_names(model).items():
        np.testing.assert_array_equal(array, meant[name])


def official_names(model: nn.Module) -> Arrays:
    """The weights of a loaded model under their official names."""
    found: Arrays = {}
    for name, array in parameters(model).items():
        value = np.array(array)
        if ".switch_mlp." in name:
            for e, one in enumerate(value):
                found[official_name(name.replace("switch_mlp", f"experts.{e}"))] = one
        else:
            found[official_name(name)] = (
                value.reshape(-1, value.shape[-1]) if (".wo_a." in name) else value
            )
    return found


def test_blocks_of_128_are_repeated() -> None:
    """More than one block each way, and one that is cut."""
    w = np.random.default_rng(0).normal(size=(200, 256)).astype(np.float32)
    w[:, 128:] *= 100
    w[128:] *= 1e-3
    code, scale, meant = pack_fp8(w)
    model = deepseek()
    tensors = {"layers.0.attn.wq_a.weight": mx.array(code)}
    tensors["layers.0.attn.wq_a.scale"] = mx.array(scale)
    made = model.sanitize(tensors)
    weight, scales = (made[f"model.layers.0.attn.wq_a.{x}"] for x in ("weight", "scales"))
    assert (weight.dtype, scales.shape) == (mx.uint32, (200, 8))
    got = mx.dequantize(weight, scales, None, group_size=32, bits=8, mode="mxfp8")
    np.testing.assert_array_equal(np.array(got.astype(mx.float32)), meant)


def test_norms_are_in_the_dtype_of_the_streams() -> None:
    """A norm in float32 would turn all streams; what mixes, routes and pools stays wide."""
    model = deepseek()
    half = {k: mx.array(v) for k, v in official(model).items()}
    half["embed.weight"] = half["embed.weight"].astype(mx.bfloat16)
    half["layers.2.hc_attn_fn"] = half["layers.2.hc_attn_fn"].astype(mx.bfloat16)
    made = model.sanitize(half)
    kinds = {name: array.dtype for name, array in made.items()}
    assert {k for n, k in kinds.items() if n.endswith("norm.weight")} == {mx.bfloat16}
    assert kinds["model.layers.2.attn_hc.fn"] == mx.float32
    assert kinds["model.layers.2.ffn.gate.tid2eid"] == mx.int32


WIDE = [
    *(f"{hc}.{x}" for hc in ("attn_hc", "ffn_hc", "hc_head") for x in ("fn", "base", "scale")),
    *("attn_sink", "ape", "ffn.gate.weight", "ffn.gate.e_score_correction_bias"),
    *("compressor.wkv.weight", "compressor.wgate.weight"),
]


def test_what_is_wide_is_widened() -> None:
    """All that mixes, routes and pools, whatever a conversion made of it; nothing else."""
    model = deepseek()
    halves = {
        name: mx.array(array) if array.dtype == np.int64 else mx.array(array).astype(mx.bfloat16)
        for name, array in official(model).items()
    }
    made = model.sanitize(halves)
    wide = {name for name, array in made.items() if array.dtype == mx.float32}
    assert wide == {name for name in made if name.endswith(tuple(WIDE))}
    assert all(any(name.endswith(end) for name in wide) for end in WIDE)


def test_a_cast_leaves_alone_what_is_wide() -> None:
    model = deepseek()
    convert(model, dtype=mx.bfloat16, keep_quantized=True)
    kinds = {name: array.dtype for name, array in parameters(model).items()}
    assert kinds["model.layers.2.attn_hc.fn"] == kinds["model.layers.0.attn.attn_sink"]
    assert kinds["model.layers.0.attn.attn_sink"] == mx.float32
    assert kinds["model.layers.0.attn.wq_a.weight"] == dtype_of(model) == mx.bfloat16


# Conversions of others


def in_four_bits(model: nn.Module) -> dict[str, Any]:
    nn.quantize(model, group_size=32, bits=4)
    return {"quantization": {"group_size": 32, "bits": 4}}


def saved(model: nn.Module) -> dict[str, mx.array]:
    return dict(parameters(model))


def with_flat_wo_a(model: nn.Module) -> dict[str, mx.array]:
    return {
        name: array.reshape(-1, array.shape[-1]) if ".wo_a." in name else array
        for name, array in saved(model).items()
    }


def early(model: nn.Module) -> dict[str, mx.array]:
    """Official names with mlx's scales: experts stacked, each group of `wo_a` on its own."""
    found: dict[str, mx.array] = {}
    for name, array in saved(model).items():
        name = name.removeprefix("model.").replace("embed_tokens.", "embed.")
        name = name.replace("lm_head.", "head.").replace(".e_score_correction_bias", ".bias")
        name = re.sub(r"\.(attn|ffn)_hc\.", r".hc_\1_", name).replace("hc_head.", "hc_head_")
        for ours, theirs in (("gate_proj", "w1"), ("down_proj", "w2"), ("up_proj", "w3")):
            name = name.replace(f"switch_mlp.{ours}", f"experts.{theirs}")
            name = name.replace(f"shared_experts.{ours}", f"shared_experts.{theirs}")
        if ".wo_a." in name:
            found |= {name.replace("wo_a.", f"wo_a.{i}."): one for i, one in enumerate(array)}
        else:
            found[name] = array
    return found


def with_mlp(model: nn.Module) -> dict[str, mx.array]:
    return {name.replace(".ffn.", ".mlp."): array for name, array in saved(model).items()}


CONVERSIONS = {
    "our names": saved,
    "flat wo_a": with_flat_wo_a,
    "early conversion": early,
    "mlp instead of ffn": with_mlp,
}


@pytest.mark.table("DeepSeek-V4 files", "names", "same numbers")
@pytest.mark.parametrize("four_bits", [False, True])
@pytest.mark.parametrize("names", CONVERSIONS)
def test_conversions(names: str, four_bits: bool, tmp_path: Path) -> None:
    model = deepseek()
    said = in_four_bits(model) if four_bits else {}
    found = {name: np.array(array) for name, array in CONVERSIONS[names](model).items()}
    folder = write_folder(tmp_path / "model", plain_tensors(found), **said)
    loaded = load_folder(folder, dtype=None, keep_quantized=True)
    assert mx.array_equal(loaded(tokens()), model(tokens()))


@pytest.mark.parametrize("names", ["our names", "mlp instead of ffn", "early conversion"])
def test_conversions_in_several_bits(names: str, tmp_path: Path) -> None:
    """Experts in 2 bits, the rest in 4 or mxfp8, whatever the config calls the modules."""
    model = deepseek()

    def kind(path: str, module: nn.Module) -> Any:
        if not hasattr(module, "to_quantized"):
            return False
        if "switch_mlp" in path:
            return {"group_size": 32, "bits": 2, "mode": "affine"}
        mxfp8 = {"group_size": 32, "bits": 8, "mode": "mxfp8"}
        return mxfp8 if "shared_experts" in path else {"group_size": 32, "bits": 4}

    nn.quantize(model, class_predicate=kind)
    found = {name: np.array(array) for name, array in CONVERSIONS[names](model).items()}
    tensors = {name: (KINDS.get(a.dtype.name, "U8"), a) for name, a in found.items()}
    said: dict[str, Any] = {"group_size": 32, "bits": 4}
    for name in tensors:
        module, _, part = name.rpartition(".")
        if part == "scales" and ("switch_mlp" in module or ".experts." in module):
            said[module] = {"group_size": 32, "bits": 2}
    folder = write_folder(tmp_path / "model", tensors, quantization=said)
    loaded = load_folder(folder, dtype=None, keep_quantized=True)
    experts = loaded.layers[3].ffn
    assert (experts.switch_mlp.up_proj.bits, experts.shared_experts.up_proj.mode) == (2, "mxfp8")
    model.set_dtype(mx.float32, lambda _: False)
    assert mx.allclose(loaded(tokens()), model(tokens()), atol=1e-4)


def test_streams_of_mxfp4_are_bfloat16(tmp_path: Path) -> None:
    """Its scales have no dtype of their own, and norms may have come in float32."""
    model = deepseek()
    nn.quantize(model, group_size=32, bits=4, mode="mxfp4")
    found = {name: np.array(array) for name, array in saved(model).items()}
    kinds = {name: (KINDS.get(a.dtype.name, "U8"), a) for name, a in found.items()}
    said = {"quantization": {"group_size": 32, "bits": 4, "mode": "mxfp4"}}
    folder = write_folder(tmp_path / "model", kinds, **said)
    loaded = load_folder(folder, dtype=None, keep_quantized=True)
    table, kept = capturing([0, 5], ["resid_post", "attn_out"])
    assert loaded(tokens(), taps=table).dtype == mx.bfloat16
    assert {x.dtype for sites in kept.values() for x in sites.values()} == {mx.bfloat16}


# Bad files


def without(*names: str) -> Any:
    def change(tensors: dict[str, Any]) -> None:
        for name in names:
            del tensors[name]

    return change


def wide_scales(tensors: dict[str, Any]) -> None:
    _, scale = tensors["layers.0.attn.wq_a.scale"]
    tensors["layers.0.attn.wq_a.scale"] = ("F32", 2.0 ** (scale.astype(np.float32) - 127))


def renamed(tensors: dict[str, Any]) -> None:
    tensors["layers.0.attn.wq_z.weight"] = tensors.pop("norm.weight")


ONE = "layers.4.ffn.experts.5.w2"
BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "an expert": (
        without(f"{ONE}.weight", f"{ONE}.scale"),
        {},
        r"layers\.4\.ffn\.switch_mlp\.down_proj\.weight is there for 7 of 8 pieces, 5 is missing",
    ),
    "the scale of an expert": (without(f"{ONE}.scale"), {}, r"experts\.5\.w2\.scale is missing"),
    "a norm": (without("layers.3.attn_norm.weight"), {}, "Missing 1 .*layers.3.attn_norm.weight"),
    "all experts of a layer": (
        lambda tensors: [tensors.pop(k) for k in list(tensors) if "layers.1.ffn.experts" in k],
        {},
        r"layers\.1\.ffn\.switch_mlp",
    ),
    "another name": (renamed, {}, "not in model: .*wq_z"),
    "wide scales": (wide_scales, {}, r"layers\.0\.attn\.wq_a\.scale is .*float32, not powers"),
    "other blocks": (
        lambda tensors: None,
        {"quantization_config": {**FP8, "weight_block_size": [64, 64]}},
        r"FP8 in blocks of \[64, 64\]",
    ),
    "other scales": (
        lambda tensors: None,
        {"quantization_config": {**FP8, "scale_fmt": None}},
        "with scales None",
    ),
    "no word of the packing": (lambda tensors: None, {"quantization_config": None}, "loaded"),
    "code of its own": (lambda tensors: None, {"model_file": "x.py"}, "runs no code from models"),
}


@pytest.mark.parametrize("bad", BAD)
def test_bad_files_are_refused(bad: str, tmp_path: Path) -> None:
    change, config, words = BAD[bad]
    tensors, _ = packed_tensors()
    change(tensors)
    folder = write_folder(tmp_path / "model", tensors, **{"quantization_config": FP8, **config})
    with pytest.raises(MlxsteerError, match=words) as caught:
        load(folder, keep_quantized=True)
    assert len(str(caught.value).splitlines()) == 1


# Prompts


@pytest.fixture(scope="module")
def tokenizer(packed: tuple[Path, Arrays]) -> TokenizerWrapper:
    return load(packed[0])[1]


def shown(tokenizer: TokenizerWrapper, chat: Any, **options: Any) -> str:
    return str(tokenizer.decode(render(tokenizer, chat, **options)))


def said(*texts: str, system: str = "") -> list[dict[str, str]]:
    """The user and the assistant in turns."""
    roles = ("user", "assistant")
    chat = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return [{"role": "system", "content": system}] * bool(system) + chat


@pytest.mark.parametrize(
    ("chat", "thinking", "text"),
    [
        (said("Hi"), False, f"{BOS}{USER}Hi{ANSWER}</think>"),
        (said("Hi"), True, f"{BOS}{USER}Hi{ANSWER}<think>"),
        (said("Hi"), None, f"{BOS}{USER}Hi{ANSWER}<think>"),  # it knows the tokens of thinking
        (said("Hi", system="Be brief."), False, f"{BOS}Be brief.{USER}Hi{ANSWER}</think>"),
        (
            said("a", "b", "c", system="s"),
            True,
            f"{BOS}s{USER}a{ANSWER}</think>b{EOS}{USER}c{ANSWER}<think>",
        ),
        (
            said("a", "b", "c"),
            False,
            f"{BOS}{USER}a{ANSWER}</think>b{EOS}{USER}c{ANSWER}</think>",
        ),
        (said("a", "b"), False, f"{BOS}{USER}a{ANSWER}</think>b"),
        (said("a", "b"), True, f"{BOS}{USER}a{ANSWER}<think></think>b"),
        ([*said("a"), *said("b")], False, f"{BOS}{USER}a\n\nb{ANSWER}</think>"),
    ],
)
def test_prompts(tokenizer: TokenizerWrapper, chat: Any, thinking: Any, text: str) -> None:
    assert shown(tokenizer, chat, thinking=thinking) == text


def test_prompts_open_to_what_reads_them(tokenizer: TokenizerWrapper) -> None:
    ids = render(tokenizer, "Hi there")
    assert tokenizer.decode(ids[content_end(tokenizer, "Hi there")]) == "e"
    answered = said("Hi", "Yes")
    start = response_start(tokenizer, answered)
    assert tokenizer.decode(render(tokenizer, answered)[start:]) == "Yes"
    assert template_record(tokenizer)["sha256"]
    assert tokenizer.think_end == "</think>"
    with pytest.raises(MlxsteerError, match="no role tool"):
        render(tokenizer, [{"role": "tool", "content": "x"}])


def test_a_template_of_its_own_is_used(tmp_path: Path, packed: tuple[Path, Arrays]) -> None:
    assert load(packed[0])[1].chat_template == TEMPLATE
    write_tokenizer(tmp_path, chat_template="{{ messages[0]['content'] }}!")
    own = folder_tokenizer(tmp_path, read_config(packed[0]))
    assert own.decode(render(own, "Hi")) == "Hi!"


def test_text_is_written_from_a_folder(tmp_path: Path) -> None:
    """From files to steered text; the vocabulary is made to hold all bytes."""
    model = deepseek(vocab_size=300)
    folder = write_folder(tmp_path / "model", plain_tensors(official(model)), vocab_size=300)
    loaded, tokenizer = load(folder)
    assert VOCABULARY < len(tokenizer) <= 300
    strong = Steering((Vector.from_rows("v", {2: np.ones(64)}), 2.0))
    texts = [generate(loaded, tokenizer, "Hi", steering=s, max_tokens=8) for s in (None, strong)]
    assert texts[0] != texts[1]


# The check on real weights


def vectors(folder: Path, model: Any, tokenizer: TokenizerWrapper, **changes: Any) -> Path:
    """The model's own greedy answer in the form of ds4's test vectors."""
    messages = said("Hi there, how are you?")
    prompt = render(tokenizer, messages, thinking=False)
    cache, ids = model.make_cache(), list(prompt)
    for _ in range(3):
        logits = model(mx.array([ids[cache[0].offset :]]), cache=cache)
        ids.append(int(logits[0, -1].argmax().item()))
    steps = [{"token": {"text": tokenizer.decode([token])}} for token in ids[len(prompt) :]]
    (folder / "official").mkdir(parents=True, exist_ok=True)
    case = {
        "id": "short",
        "request": {"messages": messages},
        "usage": {"prompt_tokens": len(prompt)},
        "steps": steps,
    }
    (folder / "official" / "short.official.json").write_text(json.dumps({**case, **changes}))
    return folder


def test_the_check_on_real_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It agrees with a model's own answer, and notices another prompt, token or model."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "bench"))
    bench = importlib.import_module("deepseek_v4_logprobs")
    model = deepseek(vocab_size=262)
    write_tokenizer(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({**CONFIG, "vocab_size": 262}))
    tokenizer = folder_tokenizer(tmp_path, read_config(tmp_path))
    letters = [len(tokenizer.decode([i]).encode()) == 1 for i in range(262)]
    model.lm_head.weight *= mx.array(letters)[:, None]  # only these are tokens by themselves
    monkeypatch.setattr(bench.mlxsteer, "load", lambda name: (model, tokenizer))

    def run(folder: Path) -> int:
        monkeypatch.setattr("sys.argv", ["check", str(folder)])
        return int(bench.main())

    assert run(vectors(tmp_path, model, tokenizer)) == 0
    (case,) = bench.check(model, tokenizer, tmp_path)
    assert [step.rank for step in case.steps] == [0, 0, 0]
    (other,) = bench.check(deepseek(vocab_size=262, swiglu_limit=0.1), tokenizer, tmp_path)
    assert not other.agrees
    wrong = [{"token": {"text": "~"}}, {"token": {"text": "~"}}]
    assert run(vectors(tmp_path, model, tokenizer, steps=wrong)) == 1
    assert run(vectors(tmp_path, model, tokenizer, usage={"prompt_tokens": 1})) == 1
    many = [{"token": {"text": "two"}}]
    with pytest.raises(SystemExit, match="'two' is one token to the API and 3 here"):
        run(vectors(tmp_path, model, tokenizer, steps=many))
    with pytest.raises(SystemExit, match="clone ds4 first"):
        run(tmp_path / "nothing")
